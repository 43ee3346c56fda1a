//! The differential against the kernel: random steps are applied to its interrupt machinery and to ours, on two VMs, and
//! after each step the answers and what the vCPUs' LAPICs hold have to be the same.
//!
//! ```text
//!            generate ─► Op ─┬─► kernel: KVM_SET_GSI_ROUTING, KVM_IRQFD ───────────► VM ─┐
//!                            │                                                           ├─► compare: errno, counts,
//!                            └─► polled, ours: route, irqfd, poll ─► lane, injector ► VM ┘   ISR, TMR, IRR, chips
//!            ioapic   ─► Op ─┬─► guest's MMIO ─► KVM's I/O APIC ───────────────────► VM ─┐
//!                            └─► Ioapic ─► KVM_SIGNAL_MSI, EOI exits ──────────────► VM ─┴─► compare: registers too
//! ```
//! Everything comes from the seed, and our side runs on the caller's thread: a seed shows the same run again.
//!
//! # Differences that are meant, and how a run allows for them
//! D1 to D3 cannot be seen from one thread: D1 concerns irqfds that are off the list, D2 what is under way while
//! routes change, D3 readers that meet a writer. Every step is over on both sides before the next begins. Beside them:
//! - **A pending count is taken.** Assigning an eventfd with signals in it delivers them on both sides, but the kernel
//!   leaves the count there, and delivers it once more if the eventfd is bound again. Ours takes it. The kernel's is
//!   taken by the test.
//! - **A refused assign touches nothing.** The kernel's, when it finds a resampling irqfd's eventfd busy, leaves the
//!   resampler that it has just joined, and as its last member lowers the line that the GSI has now, whoever raised
//!   it. The test lowers ours.
//! - **Closing is not a hang-up.** We hold the eventfds that we watch; the end of a producer is told
//!   (`Irqfds::hang_up`). The test closes there and tells here.
//! - **One eventfd in two VMs** loses interrupts, so ours and the kernel from 6.17 on refuse it. Where the kernel does not, it
//!   is not generated.
//! - **Born empty.** A VM with all chips in the kernel has routes for the PC's lines from birth; ours has none. Both
//!   start with the same table.
//! - **Types 4 and 5** of a route, the synthetic interrupts of Hyper-V and Xen, are unknown to us: never generated.
//! - **The ack comes first.** The kernel tells an ack from within its I/O APIC, before it looks at the line again. Our
//!   second VM has a chip of the kernel's as well, which tells nobody, so the test acks right before the guest's EOI.
//! - **Merging.** Of several signals that the slow path has not delivered yet, each side makes as many interrupts as it
//!   comes to. That is visible in the I/O APIC's saved IRR alone, on resampled edge entries: these get one at a time.
//! - What the core's I/O APIC does on purpose is in [`pollvisor_core::ioapic`]; an EOI whose vector an edge entry has
//!   is not generated.
//!
//! Not generated either, as the guest would notice: SMI, NMI and INIT.

pub mod compare;
pub mod generate;
mod history;
pub mod ioapic;
pub mod irqfd;
pub mod kernel;
pub mod machine;
pub mod ops;
pub mod ours;
pub mod polled;

pub use history::{Failure, Half, History, Tally};

/// Steps after which both sides begin anew: fewer than the 10 000 EOIs in a row of one pin that make KVM put the next
/// delivery off, which no step waits for.
pub const EPISODE: u64 = 50_000;

/// `ops` steps of one half, on one CPU.
///
/// # Errors
/// The first difference, or what kept the run from going on.
pub fn run(half: Half, ops: u64, seed: u64) -> Result<Tally, Failure> {
    let cpu = pollvisor::pin::available().last().copied();
    let placed = pollvisor::pin::Placement { cpu, fifo: Some(false) }.apply("the differential");
    placed.map_err(|error| History::new(half, seed).broken(&error))?;
    match half {
        Half::Irqfd => irqfd::run(ops, seed),
        Half::Ioapic => ioapic::run(ops, seed),
    }
}
