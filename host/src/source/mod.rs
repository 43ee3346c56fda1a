//! What one poller watches: a lane of event sources, and the port by which control threads change it.
//!
//! ```text
//!  control thread                          poller (owns the lane)
//!  port.send(Hook { id, eventfd })  ─────► before a pass: arm it, state[slot] := Watched
//!  port.send(Unhook { id })         ─────► not armed: state := Idle
//!                                          armed:     state := Closing, and no event is reported any more
//!  Closing? cancel the poll, from here ──► its completion: state := Idle     (a poller never cancels, see sys::aio)
//!  wait for Idle
//! ```
//! The queue is lock-free; a full one makes the control thread wait, never the poller.

mod aio;
mod bells;
mod epoll;
mod lane;
mod port;

pub use aio::DEFAULT_PER_CONTEXT;
pub use lane::{Backend, Lane};
pub use port::{Command, MAX_REGIONS, Port};
