//! Synchronisation: the only module of this crate with `unsafe` in it.
//!
//! | type | who waits | used for |
//! |---|---|---|
//! | [`SpinLock`] | control threads, for each other | irqfd list, resamplers; never taken by a poller |
//! | [`Latch`] | nobody | the route copy in each irqfd |
//! | [`Rcu`] | its writer, for readers to pass | the routing table, read by the deferred worker |
//! | [`Grace`] | `synchronize`, for every online reader | "no poller still uses the old one" |
//! | [`Gate`] | `drain`, for those inside | assigners against the VM's release, children against their parent |
//! | [`PendingSet`] | nobody | work handed from pollers to the deferred worker |
//! | [`Posted`] | nobody; a halted owner sleeps on its futex | interrupts posted to a vCPU's local APIC by any thread |

mod gate;
mod grace;
mod latch;
mod padded;
mod pending;
mod posted;
mod rcu;
mod spinlock;
#[cfg(all(test, not(loom)))]
mod tests;

pub use gate::{Gate, Inside};
pub use grace::{Grace, READERS, Reader};
pub use latch::{Busy, Latch};
pub use padded::CachePadded;
pub use pending::{PENDING_BITS, PendingSet};
pub use posted::{Events, Harvest, Idle, POSTED_WORDS, Post, Posted, PostedVcpu, Wake};
pub use rcu::Rcu;
pub use spinlock::{SpinGuard, SpinLock};
