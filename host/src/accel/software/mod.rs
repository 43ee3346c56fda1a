//! The software machine: local APICs of [`pollvisor_core::lapic`], each with a posted-interrupt descriptor in front, and
//! threads that stand in for vCPUs. It runs no guest instruction. It needs no privilege and no `/dev/kvm`: the path from a
//! signal to a LAPIC is the very same code as with KVM, and can be measured and tested anywhere.
//!
//! ```text
//!  poller: msi ──► address word of the target: matches?  pir[v] |= bit   C |= ON ──► SLEEP was set: futex_wake
//!  stand-in:       harvest → IRR   take → ISR   record (TSC first)   EOI   ◄── nothing to take: futex_wait, or spin
//! ```

mod posting;
mod standin;
mod vcpu;

pub use posting::Posting;
pub use standin::StandIn;
pub use vcpu::{LapicCounts, Vcpu};

use crate::error::{Error, Result};
use crate::guest::MAX_VCPUS;
use pollvisor_core::ids::VcpuId;
use pollvisor_core::lapic::Address;
use pollvisor_core::sync::PostedVcpu;
use std::sync::{Arc, Mutex, PoisonError};

/// A VM of the software machine.
#[derive(Debug)]
pub struct SoftwareVm {
    /// What senders see of each vCPU, by its number, which is its APIC ID.
    vcpus: Arc<[PostedVcpu]>,
    /// Which were created.
    created: Mutex<Vec<bool>>,
}

impl SoftwareVm {
    /// One for up to `vcpus` vCPUs, none of which is there yet: nobody accepts.
    ///
    /// # Errors
    /// EINVAL for more than [`MAX_VCPUS`], or none.
    pub fn new(vcpus: u32) -> Result<Self> {
        if vcpus == 0 || vcpus > MAX_VCPUS {
            return Err(Error::new(format!("{vcpus} vCPUs; 1 to {MAX_VCPUS} fit (EINVAL)")));
        }
        let created = Mutex::new(vec![false; vcpus as usize]);
        // Switched off until its vCPU is made: a LAPIC that is not there accepts nothing.
        let posted = |id| PostedVcpu::new(Address::off(id).bits());
        Ok(Self { vcpus: (0..vcpus).map(posted).collect(), created })
    }

    /// A vCPU whose LAPIC is in x2APIC mode, switched on, and accepts; it does not run.
    ///
    /// # Errors
    /// EINVAL for one beyond those that the VM was made for, EEXIST for one that is there.
    pub fn create_vcpu(&self, id: VcpuId) -> Result<Vcpu> {
        let mut created = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        let count = created.len();
        let place = created.get_mut(id.0 as usize);
        let place =
            place.ok_or_else(|| Error::new(format!("vCPU {}: 0 to {} fit (EINVAL)", id.0, count - 1)))?;
        if std::mem::replace(place, true) {
            return Err(Error::new(format!("vCPU {}: there is one already (EEXIST)", id.0)));
        }
        Ok(Vcpu::new(id, self.vcpus.clone()))
    }

    /// The way into its LAPICs.
    #[must_use]
    pub fn posting(&self) -> Posting {
        Posting::new(self.vcpus.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{FIRST_VECTOR, Guest};
    use crate::pin::Placement;
    use pollvisor_core::inject::{Inject, InjectError};
    use pollvisor_core::route::Msi;
    use std::time::{Duration, Instant};

    const NOWHERE: Placement = Placement { cpu: None, fifo: Some(false) };
    const VECTOR: u8 = FIRST_VECTOR + 1;

    #[test]
    fn a_vcpu_is_made_once_and_accepts_from_then_on() {
        let vm = SoftwareVm::new(2).expect("a VM");
        assert!(SoftwareVm::new(0).is_err() && SoftwareVm::new(MAX_VCPUS + 1).is_err());
        let (posting, to) = (vm.posting(), Msi::fixed(1, VECTOR));
        assert_eq!(posting.msi(&to), Err(InjectError::Blocked), "its LAPIC is not there");
        const NMI: u32 = 4 << 8;
        assert_eq!(posting.msi(&Msi { data: NMI, ..to }), Err(InjectError::Blocked), "for an NMI neither");
        let vcpu = vm.create_vcpu(VcpuId(1)).expect("a vCPU");
        assert!(vm.create_vcpu(VcpuId(1)).expect_err("twice").to_string().contains("EEXIST"));
        assert!(vm.create_vcpu(VcpuId(2)).expect_err("beyond").to_string().contains("EINVAL"));
        assert_eq!(posting.msi(&Msi::fixed(0, VECTOR)), Err(InjectError::Blocked));
        assert_eq!(posting.msi(&to).map(|accepted| accepted.coalesced), Ok(false));
        assert_eq!(posting.msi(&to).map(|accepted| accepted.coalesced), Ok(true));
        assert!(vcpu.is_requested(VECTOR) && !vcpu.is_requested(VECTOR + 1));
        assert_eq!(vcpu.counts().pending, 1);
    }

    #[test]
    fn what_is_cleared_is_counted_as_discarded() {
        let vm = SoftwareVm::new(1).expect("a VM");
        let mut vcpu = vm.create_vcpu(VcpuId(0)).expect("a vCPU");
        for vector in [VECTOR, VECTOR + 7] {
            vm.posting().msi(&Msi::fixed(0, vector)).expect("accepted");
        }
        vcpu.clear_requests();
        assert!(!vcpu.is_requested(VECTOR) && !vcpu.is_requested(VECTOR + 7));
        assert_eq!(vcpu.counts(), LapicCounts { discarded: 2, ..LapicCounts::default() });
    }

    /// From three threads to one stand-in, as fast as they can: nothing is lost, whether it halts or spins.
    #[test]
    fn every_post_is_taken_or_has_coalesced() {
        const POSTS: u64 = 20_000;
        for spin in [false, true] {
            let (vm, guest) = (SoftwareVm::new(1).expect("a VM"), Guest::new().expect("memory"));
            let vcpu = vm.create_vcpu(VcpuId(0)).expect("a vCPU");
            let thread = StandIn::start(vcpu, guest.clone(), spin, NOWHERE).expect("a thread");
            let sender = |number: u8| {
                let posting = vm.posting();
                move || {
                    let to = Msi::fixed(0, VECTOR + number);
                    let post = |_| posting.msi(&to).expect("accepted").coalesced;
                    (0..POSTS).map(post).filter(|coalesced| *coalesced).count() as u64
                }
            };
            let coalesced: u64 = std::thread::scope(|scope| {
                let senders: Vec<_> = [0, 1, 1].map(|number| scope.spawn(sender(number))).into();
                senders.into_iter().map(|sender| sender.join().expect("it posted")).sum()
            });
            let counts = thread.stop().expect("the account");
            assert_eq!((counts.pending, counts.discarded), (0, 0), "it looks once more when it is stopped");
            assert_eq!(counts.accepted() + coalesced, 3 * POSTS, "{counts:?}");
            let handled = |number| guest.handled(VcpuId(0), VECTOR + number);
            assert_eq!(handled(0) + handled(1), counts.taken, "each has its record");
            assert!(handled(0) > 0 && handled(1) > 0);
        }
    }

    #[test]
    fn a_halted_stand_in_is_woken_by_one_post() {
        let (vm, guest) = (SoftwareVm::new(1).expect("a VM"), Guest::new().expect("memory"));
        let vcpu = vm.create_vcpu(VcpuId(0)).expect("a vCPU");
        let thread = StandIn::start(vcpu, guest.clone(), false, NOWHERE).expect("a thread");
        for run in 1..=50 {
            // Time to halt; it has to be right also where it did not come to that.
            std::thread::sleep(Duration::from_millis(1));
            vm.posting().msi(&Msi::fixed(0, VECTOR)).expect("accepted");
            let began = Instant::now();
            while guest.handled(VcpuId(0), VECTOR) < run {
                assert!(began.elapsed() < Duration::from_secs(20), "run {run} does not come");
                std::thread::yield_now();
            }
        }
        assert_eq!(thread.stop().expect("the account").taken, 50);
    }

    #[test]
    fn a_stand_in_has_no_answer_to_an_init() {
        const INIT: u32 = 5 << 8;
        let (vm, guest) = (SoftwareVm::new(1).expect("a VM"), Guest::new().expect("memory"));
        let vcpu = vm.create_vcpu(VcpuId(0)).expect("a vCPU");
        let thread = StandIn::start(vcpu, guest, false, NOWHERE).expect("a thread");
        let _accepted = vm.posting().msi(&Msi { data: INIT, ..Msi::fixed(0, 0) });
        let began = Instant::now();
        while !thread.has_ended() {
            assert!(began.elapsed() < Duration::from_secs(20), "it goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
        let error = thread.stop().expect_err("it ended by itself").to_string();
        assert!(error.contains("vCPU 0") && error.contains("no guest code"), "{error}");
    }
}
