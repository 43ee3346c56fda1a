//! The interrupt path and the lifecycles of pollvisor.
//!
//! `no_std`, no allocation, no clock, no thread, no file descriptor: time, waiting and system calls are passed in
//! by the host crate, so everything here runs under loom and on a scripted host.
//!
//! # Lock order
//! The writer's turn of a replaced table ([`sync::Rcu`]) before the irqfd list. Everything else is a leaf, taken with
//! nothing held: the resampler list, the register of bindings. Nothing is waited for, and no
//! [`Host`](irqfd::Host) or [`Inject`](inject::Inject) is called, with a lock held. Being an online reader counts as
//! holding what [`sync::Grace::synchronize`] waits for: a thread that is one calls neither `set_routes` nor
//! `deassign`, `release` or a shutdown.
#![cfg_attr(not(loom), no_std)]
#![deny(unsafe_code)]

pub mod errno;
pub mod group;
pub mod ids;
pub mod inject;
pub mod ioapic;
pub mod irqfd;
pub mod lapic;
pub mod line;
pub mod mediated;
pub mod msix;
pub mod poll;
pub mod prim;
pub mod route;
pub mod source;
#[allow(unsafe_code, reason = "the one module whose job it is")]
pub mod sync;
pub mod teardown;

pub use errno::Errno;
