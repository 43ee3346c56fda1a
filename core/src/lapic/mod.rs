//! A local APIC in software, xAPIC and x2APIC: the owner's half. It has no clock, no thread and no atomics.
//!
//! ```text
//!  any thread                                     the vCPU's thread
//!  deliver_msi(vcpus, msi) ─► Posted ──────────►  harvest ─► IRR ─► take ─► handler ─► eoi ─► Eoi: to the I/O APIC
//! ```
//! What other threads touch is in [`crate::sync::PostedVcpu`]: a descriptor that they post to, and the address word, which
//! this side publishes. Everything here is `&mut self` of the thread that runs the vCPU.
//!
//! # Where the manuals are open: as KVM
//! - What the IRR holds is still taken while the APIC is software-disabled.
//! - Of equal classes in service and in the TPR, the PPR shows the TPR.
//! - Lowest priority is by (vector mod number of APICs), not by priority.
//! - An APIC whose ID has more than 8 bits is found by all of them in xAPIC mode too, or nobody could start it.
//!
//! # Different from KVM, on purpose
//! - A vector below 16 is accepted by nobody, and not sent by the ICR. Errors are in the ESR, and an interrupt if the guest
//!   wants it.
//! - x2APIC: reserved bits fault, in TPR, SVR, LVT and divide register too, and so does an EOI other than 0. Lowest priority
//!   is not sent (ESR bit 4). In xAPIC mode the ID is read-only.
//! - IPIs are edges, whatever the ICR says. An MSI that deasserts a level is nobody's.
//! - Of a logical destination's members, those that do not exist or are disabled do not count for lowest priority.
//! - A level posted together with an edge of its vector wins; the last one does in KVM.
//! - Switching the APIC off resets its registers and discards what waits.
//! - The timer's expiry is lost while its entry is masked. Late periods are one interrupt and keep their phase.
//!
//! # Not there
//! LVT CMCI, SMI, ExtINT, fixed levels by LINT0 and LINT1, the arbitration priority and remote read registers (0).
//!
//! Sources: Intel SDM 3A, the APIC chapter; Linux `arch/x86/kvm/lapic.c`.

mod access;
mod address;
#[cfg(all(test, not(loom)))]
mod against_model;
mod deliver;
mod icr;
mod lvt;
mod mode;
#[cfg(all(test, not(loom)))]
mod model;
mod priority;
mod registers;
mod state;
#[cfg(all(test, not(loom)))]
mod tests;
mod timer;

pub use access::{MSR_APIC_BASE, MSR_TSC_DEADLINE, PAGE};
pub use address::{Address, Destination, X2APIC_BROADCAST, XAPIC_BROADCAST};
pub use deliver::{Delivery, FIRST_VECTOR, Interrupt, Request, deliver, deliver_msi};
pub use lvt::{LocalDelivery, Lvt};
pub use mode::Event;
pub use priority::Eoi;
pub use registers::Written;
pub use state::Interrupts;
pub use timer::{Deadline, Time};

use crate::ioapic::{VectorSet, Version};
use crate::prim::{Mutation, planted};
use crate::sync::{Harvest, PostedVcpu};
use core::fmt;
use timer::Timer;

/// SVR: the APIC is software-enabled.
const SVR_ENABLED: u32 = 1 << 8;
const SVR_RESET: u32 = 0xff;
const DFR_RESET: u32 = u32::MAX;

/// How an APIC is talked to: the two enable bits of the APIC base register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Globally disabled: no registers, no interrupts.
    Off,
    /// By memory, with 8 bits of ID.
    XApic,
    /// By MSRs, with 32.
    X2Apic,
}

/// How the vCPU comes out of a reset or an INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The bootstrap processor: runs.
    Bsp,
    /// An application processor: waits for a start-up IPI.
    Ap,
}

/// #GP(0): what the guest tried is refused, and nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("general protection fault: the guest's access to its local APIC is not allowed")
    }
}

impl core::error::Error for Fault {}

/// What became of the interrupts, in interrupts. With what senders counted as `accepted` and `coalesced`, always:
/// `accepted + local = taken + coalesced (the sender's) + coalesced + local_coalesced + pending + discarded`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Handed to the vCPU.
    pub taken: u64,
    /// Posted, and found at harvest to be in the IRR already or posted with both triggers.
    pub coalesced: u64,
    /// Lost on purpose: by INIT, by a reset, by switching the APIC off.
    pub discarded: u64,
    /// Made by this APIC itself: its timer, its other local interrupts, self IPIs.
    pub local: u64,
    /// Those of them that were in the IRR already.
    pub local_coalesced: u64,
}

/// The owner's half of a local APIC.
#[derive(Clone, Debug)]
pub struct Lapic {
    // Hot: what an interrupt touches.
    irr: VectorSet,
    isr: VectorSet,
    tmr: VectorSet,
    tpr: u8,
    svr: u32,
    counts: Counts,
    /// Vectors whose EOI is broadcast though they were edges.
    eoi_exits: VectorSet,
    // Beside the IRR.
    waits_for_sipi: bool,
    init_pending: bool,
    startup: Option<u8>,
    nmi_pending: bool,
    /// Its handler runs.
    nmi_blocked: bool,
    // Registers.
    mode: Mode,
    base: u64,
    ldr: u32,
    dfr: u32,
    esr: u32,
    /// Errors since the ESR was written last.
    errors: u32,
    icr_low: u32,
    icr_high: u32,
    lvt: [u32; lvt::ENTRIES],
    timer: Timer,
    // Set-up.
    id: u32,
    role: Role,
    eoi_suppression: bool,
}

impl Lapic {
    /// As it comes out of reset: xAPIC mode, software-disabled.
    #[must_use]
    pub const fn new(id: u32, role: Role) -> Self {
        Self {
            irr: VectorSet::EMPTY,
            isr: VectorSet::EMPTY,
            tmr: VectorSet::EMPTY,
            tpr: 0,
            svr: SVR_RESET,
            counts: Counts { taken: 0, coalesced: 0, discarded: 0, local: 0, local_coalesced: 0 },
            eoi_exits: VectorSet::EMPTY,
            waits_for_sipi: matches!(role, Role::Ap),
            init_pending: false,
            startup: None,
            nmi_pending: false,
            nmi_blocked: false,
            mode: Mode::XApic,
            base: mode::DEFAULT_BASE,
            ldr: 0,
            dfr: DFR_RESET,
            esr: 0,
            errors: 0,
            icr_low: 0,
            icr_high: 0,
            lvt: [lvt::MASKED; lvt::ENTRIES],
            timer: Timer::RESET,
            id,
            role,
            eoi_suppression: false,
        }
    }

    /// Beside this I/O APIC. Only with an EOI register there may a guest do without EOI broadcasts (SVR\[12\]).
    #[must_use]
    pub const fn beside(mut self, ioapic: Version) -> Self {
        self.eoi_suppression = matches!(ioapic, Version::V20);
        self
    }

    /// What other threads may post to: new, at this APIC's address.
    #[must_use]
    pub fn posted_vcpu(&self) -> PostedVcpu {
        PostedVcpu::new(self.address().bits())
    }

    /// What this APIC answers to at this moment.
    #[must_use]
    pub const fn address(&self) -> Address {
        let enabled = self.svr & SVR_ENABLED != 0;
        Address::new(self.id, self.mode, enabled, self.ldr, self.dfr)
    }

    /// Sets mode and software enable as a host does for a vCPU that starts without firmware: it runs, and no rule of a guest's
    /// applies.
    pub fn set_up(&mut self, vcpu: &PostedVcpu, mode: Mode, software_enabled: bool) {
        self.mode = mode;
        self.waits_for_sipi = false;
        self.set_svr(if software_enabled { self.svr | SVR_ENABLED } else { self.svr & !SVR_ENABLED });
        vcpu.publish(self.address().bits());
    }

    /// Takes over what was posted. The owner's thread, before each [`take`](Self::take); one load when nothing was. Then look
    /// at [`event`](Self::event).
    #[inline]
    pub fn harvest(&mut self, vcpu: &PostedVcpu) {
        if let Some(harvest) = vcpu.posted().harvest() {
            self.accept(vcpu, &harvest);
        }
    }

    fn accept(&mut self, vcpu: &PostedVcpu, harvest: &Harvest) {
        if !harvest.events.is_empty() {
            self.accept_events(vcpu, harvest.events);
        }
        let discard = harvest.events.init() && !planted(Mutation::InitKeepsPir) || self.mode == Mode::Off;
        if discard { self.discard(harvest) } else { self.request(harvest) }
    }

    /// What a model's twin harvested.
    #[cfg(loom)]
    pub fn accept_twin(&mut self, vcpu: &PostedVcpu, harvest: &Harvest) {
        self.accept(vcpu, harvest);
    }

    /// The vectors whose EOI has to reach the I/O APIC whatever their trigger mode was: [`crate::ioapic::Ioapic::eoi_vectors`].
    pub fn set_eoi_exits(&mut self, vectors: VectorSet) {
        self.eoi_exits = vectors;
    }

    /// What became of the interrupts.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether `vector` waits in the IRR, or is posted: of a parked vCPU.
    #[must_use]
    pub fn is_requested(&self, vcpu: &PostedVcpu, vector: u8) -> bool {
        self.irr.contains(vector) || vcpu.posted().is_posted(vector)
    }

    /// How many interrupts wait, in the IRR or posted: of a parked vCPU.
    #[must_use]
    pub fn pending(&self, vcpu: &PostedVcpu) -> u32 {
        self.irr.len() + vcpu.posted().count_posted()
    }

    /// Takes out all that waits, in the IRR and posted, and counts it as discarded: of a parked vCPU. What is in service
    /// stays.
    pub fn discard_requests(&mut self, vcpu: &PostedVcpu) {
        self.harvest(vcpu);
        self.counts.discarded += u64::from(self.irr.len());
        self.irr = VectorSet::EMPTY;
    }
}
