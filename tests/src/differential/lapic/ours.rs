//! Our side: the core's local APICs, what was posted to them, and a vCPU's worth of state that a processor has beside them.

use super::steps::{EXITING, IDS};
use pollvisor_core::ioapic::{VectorSet, Version};
use pollvisor_core::lapic::{
    Delivery, Event, Fault, Interrupt, Lapic, Mode, Request, Role, Time, Written, deliver, deliver_msi,
};
use pollvisor_core::route::Msi;
use pollvisor_core::sync::PostedVcpu;

/// No clock runs here: the initial count stays 0, and deadlines are far off.
pub const NOW: Time = Time { bus: 0, tsc: 0 };

/// See the module's text.
#[derive(Debug)]
pub struct Ours {
    /// The APICs.
    pub lapics: [Lapic; IDS.len()],
    posted: [PostedVcpu; IDS.len()],
    started: [Option<u8>; IDS.len()],
    /// Whether KVM emulates the guest: an event that a vCPU sends itself waits for the end of its routine (30).
    pub events_wait: bool,
    /// An NMI was sent that the vCPU may still have to take.
    pub nmi_sent: [bool; IDS.len()],
    /// The handler of an NMI has not returned.
    pub in_nmi: [bool; IDS.len()],
    /// The ICR's high half came through a change of mode or an INIT (22, 29), and was not written since.
    pub icr_high_unknown: [bool; IDS.len()],
}

/// The words of a set of these vectors.
#[must_use]
pub fn set_of(vectors: &[u8]) -> VectorSet {
    let mut words = [0u64; 4];
    vectors.iter().for_each(|v| words[usize::from(v / 64)] |= 1 << (v % 64));
    VectorSet::from_words(words)
}

impl Ours {
    /// As [`Kernel::new`](super::kernel::Kernel::new) sets up.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        // KVM shows the guest of a split irqchip that EOI broadcasts can be suppressed.
        let mut lapics = IDS.map(|id| {
            let role = if id == IDS[0] { Role::Bsp } else { Role::Ap };
            Lapic::new(id, role).beside(Version::V20)
        });
        let posted = lapics.each_ref().map(Lapic::posted_vcpu);
        for (lapic, posted) in lapics.iter_mut().zip(&posted) {
            lapic.set_up(posted, mode, true);
            lapic.set_eoi_exits(set_of(&EXITING));
        }
        let no = [false; IDS.len()];
        Self {
            lapics,
            posted,
            events_wait: true,
            started: [None; IDS.len()],
            nmi_sent: no,
            in_nmi: no,
            icr_high_unknown: no,
        }
    }

    /// Sends; whether an APIC accepted it.
    pub fn msi(&mut self, msi: &Msi) -> bool {
        let sent = Interrupt::from_msi(msi);
        self.note(sent);
        let delivery = deliver_msi(&self.posted, msi, |_| {});
        self.harvest();
        delivery != Delivery::Blocked
    }

    /// An access that a guest makes on `vcpu`: the EOI that it passed on, if there is one.
    ///
    /// # Errors
    /// The fault.
    pub fn access(
        &mut self,
        vcpu: usize,
        access: impl FnOnce(&mut Lapic, &PostedVcpu) -> Result<Written, Fault>,
    ) -> Result<Option<u8>, Fault> {
        let eoi = match access(&mut self.lapics[vcpu], &self.posted[vcpu])? {
            Written::Ipi(ipi) => {
                self.note(Some(ipi));
                let _accepted = deliver(&self.posted, &ipi, |_| {});
                None
            }
            Written::Eoi(eoi) if eoi.broadcast => Some(eoi.vector),
            Written::Eoi(_) | Written::Nothing => None,
        };
        self.harvest();
        Ok(eoi)
    }

    fn note(&mut self, sent: Option<Interrupt>) {
        if sent.is_some_and(|interrupt| interrupt.request == Request::Nmi) {
            self.nmi_sent.fill(true);
        }
    }

    fn harvest(&mut self) {
        for vcpu in 0..IDS.len() {
            let lapic = &mut self.lapics[vcpu];
            lapic.harvest(&self.posted[vcpu]);
            loop {
                // An NMI stays until the vCPU takes it.
                match lapic.clone().event() {
                    None | Some(Event::Nmi) => break,
                    Some(_) => {}
                }
                match lapic.event() {
                    Some(Event::Init) => {
                        self.nmi_sent[vcpu] = false;
                        self.in_nmi[vcpu] = false;
                        // 29.
                        self.icr_high_unknown[vcpu] = lapic.mode() == Mode::X2Apic;
                    }
                    Some(Event::Startup { vector }) => self.started[vcpu] = Some(vector),
                    Some(Event::Nmi) | None => {}
                }
            }
        }
    }

    /// The vector by which `vcpu` started, told once.
    pub fn take_started(&mut self, vcpu: usize) -> Option<u8> {
        self.started[vcpu].take()
    }

    /// Whether `vcpu` has an NMI to take now.
    #[must_use]
    pub fn has_nmi(&self, vcpu: usize) -> bool {
        self.lapics[vcpu].clone().event() == Some(Event::Nmi)
    }

    /// What `vcpu` takes with interrupts let in: an NMI, 2, before all others.
    pub fn take(&mut self, vcpu: usize) -> Option<u8> {
        self.nmi_sent[vcpu] = false;
        if self.lapics[vcpu].event() == Some(Event::Nmi) {
            self.in_nmi[vcpu] = true;
            return Some(2);
        }
        self.lapics[vcpu].take()
    }
}
