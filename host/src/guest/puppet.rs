//! A vCPU of the built-in guest on strings: the accesses it is asked for are made by its own instructions, so they take the
//! way that a guest's accesses take, through memory slots, exits and the bus.

use super::{Guest, outside};
use crate::error::{Error, Result};
use crate::sys::guest_code::{ACKNOWLEDGE, MAILBOX, RECORD_SIZE, acknowledging};
use crate::sys::kvm::VmFd;
use pollvisor_core::ids::VcpuId;
use pollvisor_core::route::Msi;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// The vector that wakes a puppet; devices use lower ones.
pub const WAKE_VECTOR: u8 = 0xfe;

/// How long one access may take: a busy host, not a slow device.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a wake is repeated that nobody heard.
const AGAIN: Duration = Duration::from_millis(100);

/// See the module's text. Accesses of several threads take turns.
#[derive(Debug)]
pub struct Puppet {
    guest: Guest,
    vm: Arc<VmFd>,
    vcpu: VcpuId,
    turn: Mutex<()>,
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Load = 1,
    Store = 2,
    In = 3,
    Out = 4,
    Call = 5,
}

impl Puppet {
    /// The strings of a vCPU that was prepared as [`Role::Puppet`](super::Role::Puppet).
    #[must_use]
    pub fn new(guest: Guest, vm: Arc<VmFd>, vcpu: VcpuId) -> Self {
        Self { guest, vm, vcpu, turn: Mutex::new(()) }
    }

    /// Reads `bytes` (1, 2, 4, 8) at a guest-physical address below 4 GiB.
    ///
    /// # Errors
    /// When the vCPU does not answer within 20 s.
    pub fn read(&self, address: u64, bytes: usize) -> Result<u64> {
        self.access(Operation::Load, address, bytes, 0, PATIENCE)
    }

    /// Writes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&self, address: u64, bytes: usize, value: u64) -> Result<()> {
        self.access(Operation::Store, address, bytes, value, PATIENCE).map(drop)
    }

    /// Reads `bytes` (1, 2, 4) at an I/O port.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn port_read(&self, port: u16, bytes: usize) -> Result<u64> {
        self.access(Operation::In, port.into(), bytes, 0, PATIENCE)
    }

    /// Writes to an I/O port.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn port_write(&self, port: u16, bytes: usize, value: u64) -> Result<()> {
        self.access(Operation::Out, port.into(), bytes, value, PATIENCE).map(drop)
    }

    /// Calls code in the guest's memory, `argument` in `rdi`, interrupts off; it keeps `rbx` and `rdi`.
    ///
    /// # Errors
    /// When it does not return within `patience`.
    pub(super) fn call(&self, address: u64, argument: u64, patience: Duration) -> Result<u64> {
        self.access(Operation::Call, address, 1, argument, patience)
    }

    /// The built-in guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    fn access(
        &self,
        operation: Operation,
        address: u64,
        bytes: usize,
        value: u64,
        patience: Duration,
    ) -> Result<u64> {
        let longest = if matches!(operation, Operation::Load | Operation::Store) { 8 } else { 4 };
        if !bytes.is_power_of_two() || bytes > longest {
            return Err(Error::new(format!("no access has {bytes} bytes here")));
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (memory, mailbox) = (self.guest.memory(), Guest::records(self.vcpu) + MAILBOX);
        let at = |word: u64| GuestAddress(mailbox + 8 * word);
        let store = |word, value| memory.store(value, at(word), Ordering::Relaxed).map_err(outside);
        store(1, address)?;
        store(2, value)?;
        // Release: the vCPU reads the address and the value after this.
        let order = (operation as u64) << 4 | bytes as u64;
        memory.store(order, at(0), Ordering::Release).map_err(outside)?;
        let began = Instant::now();
        let mut woken = None;
        // Acquire: the value was stored before this.
        while memory.load::<u64>(at(0), Ordering::Acquire).map_err(outside)? != 0 {
            let waited = began.elapsed();
            if woken.is_none_or(|last| waited - last > AGAIN) {
                let wake = Msi::fixed(self.vcpu.0, WAKE_VECTOR);
                let refused =
                    |errno| Error::os("waking the guest", &std::io::Error::from_raw_os_error(errno));
                self.vm.signal_msi(&wake).map_err(refused)?;
                woken = Some(waited);
            }
            if waited > patience {
                return Err(Error::new(format!(
                    "the guest did not finish its {operation:?} of {bytes} bytes at {address:#x} within {patience:?}"
                )));
            }
            std::thread::yield_now();
        }
        memory.load(at(2), Ordering::Relaxed).map_err(outside)
    }
}

impl Guest {
    /// Makes `vector`'s handler write `value` to the register at `address`, below 4 GiB, before its EOI: what a driver
    /// does to a device that raises a level. Before the vector is in use.
    ///
    /// # Errors
    /// None that this guest's memory can give.
    pub fn acknowledge_in_handler(&self, vcpu: VcpuId, vector: u8, address: u64, value: u32) -> Result<()> {
        let record = Self::records(vcpu) + u64::from(vector) * RECORD_SIZE + ACKNOWLEDGE;
        let words = [address.to_le_bytes(), u64::from(value).to_le_bytes()].concat();
        self.memory.write_slice(&words, GuestAddress(record)).map_err(outside)?;
        let (at, jump) = acknowledging(vector);
        self.memory.write_slice(&jump, GuestAddress(super::CODE + at as u64)).map_err(outside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::kvm::Vm;
    use crate::accel::kvm::{Exits, VcpuThread};
    use crate::accel::{Idle, VmConfig};
    use crate::bus::{Buses, Device};
    use crate::guest::{Bare, Role};
    use crate::pin::Placement;
    use crate::sys::kvm::Exit;
    use pollvisor_core::route::Irqchip;

    #[derive(Debug, Default)]
    struct Register(Mutex<Vec<u8>>);

    impl Device for Register {
        fn read(&self, _: u64, data: &mut [u8]) {
            let kept = self.0.lock().expect("no panic");
            data.iter_mut().zip(kept.iter()).for_each(|(to, from)| *to = *from);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            assert_eq!(offset, 8);
            *self.0.lock().expect("no panic") = data.to_vec();
        }
    }

    struct OnBuses(Arc<Buses>);

    impl Exits for OnBuses {
        fn exit(&self, vcpu: VcpuId, exit: &mut Exit<'_>) -> Result<()> {
            if self.0.serve(exit) { Ok(()) } else { Bare.exit(vcpu, exit) }
        }
    }

    /// A guest that reads an MSR.
    fn reads_msr(number: u32) -> Result<()> {
        let guest = Guest::new()?;
        let config = VmConfig { irqchip: Irqchip::Split, idle: Idle::Halt, halt_poll_ns: None };
        let vm = Vm::new(&config, Some(guest.memory().clone()))?;
        let vcpu = vm.create_vcpu(VcpuId(0))?;
        guest.prepare(&vcpu, Role::Puppet)?;
        let [a, b, c, d] = number.to_le_bytes();
        // mov ecx, number; rdmsr; ret
        let code = [0xb9, a, b, c, d, 0x0f, 0x32, 0xc3];
        guest.memory().write_slice(&code, GuestAddress(super::super::SCRIBBLE)).map_err(outside)?;
        let placement = Placement { cpu: None, fifo: None };
        let thread = VcpuThread::start(vcpu, placement, Arc::new(Bare))?;
        let puppet = Puppet::new(guest, vm.fd().clone(), VcpuId(0));
        std::thread::scope(|scope| {
            let called = scope.spawn(|| puppet.call(super::super::SCRIBBLE, 0, PATIENCE));
            while !called.is_finished() && !thread.has_ended() {
                std::thread::yield_now();
            }
            // One that ended is not waited for: its answer comes from here.
            let mailbox = Guest::records(VcpuId(0)) + MAILBOX;
            let _over = puppet.guest.memory().store(0u64, GuestAddress(mailbox), Ordering::Release);
        });
        thread.stop()
    }

    #[test]
    #[ignore = "needs /dev/kvm; where it is, .ci/run runs the ignored ones"]
    fn an_unknown_msr_is_a_general_protection_fault() {
        const EFER: u32 = 0xc000_0080;
        reads_msr(EFER).expect("one that every processor has");
        let ignored = std::fs::read_to_string("/sys/module/kvm/parameters/ignore_msrs").unwrap_or_default();
        if ignored.trim() == "Y" {
            return reads_msr(0x1234_5678).expect("this host's KVM answers for MSRs that nobody has");
        }
        let error = reads_msr(0x1234_5678).expect_err("no processor has it").to_string();
        assert!(error.contains("exception 13"), "{error}");
    }

    #[test]
    #[ignore = "needs /dev/kvm; where it is, .ci/run runs the ignored ones"]
    fn every_access_arrives_as_the_guests() {
        let guest = Guest::new().expect("memory");
        let config = VmConfig { irqchip: Irqchip::Split, idle: Idle::Halt, halt_poll_ns: None };
        let vm = Vm::new(&config, Some(guest.memory().clone())).expect("a VM");
        let vcpu = vm.create_vcpu(VcpuId(0)).expect("a vCPU");
        guest.prepare(&vcpu, Role::Puppet).expect("registers");
        let buses = Arc::new(Buses::default());
        buses.add_memory(0xd000_0000, 16, Arc::new(Register::default())).expect("free");
        buses.add_ports(0x500, 16, Arc::new(Register::default())).expect("free");
        let placement = Placement { cpu: None, fifo: None };
        let thread = VcpuThread::start(vcpu, placement, Arc::new(OnBuses(buses))).expect("a thread");
        let puppet = Puppet::new(guest, vm.fd().clone(), VcpuId(0));
        for bytes in [1, 2, 4, 8] {
            let value = 0x8877_6655_4433_2211 & (u64::MAX >> (64 - 8 * bytes));
            puppet.write(0xd000_0008, bytes, u64::MAX).expect("an access");
            puppet.write(0xd000_0008, bytes, value).expect("an access");
            assert_eq!(puppet.read(0xd000_0008, bytes).expect("an access"), value);
            if bytes < 8 {
                puppet.port_write(0x508, bytes, value).expect("an access");
                assert_eq!(puppet.port_read(0x508, bytes).expect("an access"), value);
            }
        }
        assert_eq!(puppet.read(0xd000_1000, 4).expect("an access"), 0xffff_ffff, "nobody is there");
        assert!(puppet.read(0, 3).is_err());
        thread.stop().expect("it ran to the end");
    }
}
