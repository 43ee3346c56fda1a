//! What a thread of the interrupt path measured, kept to itself until somebody asks.
//!
//! ```text
//!  reporter                              poller (owns `Recorder`)
//!  exchange.offer(empty buffers) ──────► between passes: swaps it for the full ones
//!  exchange.take() ◄──────────────────── hands the full ones back
//! ```
//! Nobody interrupts the poller to read, and it neither allocates nor frees: buffers go round.
//!
//! * [`stages`](Stages) the stretches of an interrupt's way, a histogram each
//! * [`figures`](Figures) all that one thread measured
//! * [`exchange`](Exchange) where it is handed over · [`recorder`](Recorder) the poller's observer

mod exchange;
mod figures;
mod recorder;
mod stages;

pub use exchange::Exchange;
pub use figures::{Figures, SHORTEST_GAP_NS, Sample};
pub use recorder::Recorder;
pub use stages::{LONGEST_NS, Stage, Stages};
