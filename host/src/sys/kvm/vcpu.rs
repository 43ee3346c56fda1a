//! A virtual CPU's handle, and why it comes back.

use super::{Lapic, get, set};
use crate::error::{Error, Result};
use crate::sys::ioctl as io;
use crate::sys::mem::Mapping;
use kvm_bindings as kb;
use pollvisor_core::ids::VcpuId;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// Why `KVM_RUN` came back. Data is in the vCPU's page that the kernel shares: what a read is answered with goes there
/// and reaches the guest with the next run.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit<'a> {
    /// A signal, or the request to come back at once.
    Interrupted,
    /// The guest read an I/O port, so many times (`INS` repeats): `size` bytes each.
    PortRead {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: usize,
        /// The answers.
        data: &'a mut [u8],
    },
    /// The guest wrote to an I/O port, so many times: `size` bytes each.
    PortWrite {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: usize,
        /// What it wrote.
        data: &'a [u8],
    },
    /// The guest read where no memory is.
    MmioRead {
        /// The guest-physical address.
        address: u64,
        /// The answer, 1 to 8 bytes.
        data: &'a mut [u8],
    },
    /// The guest wrote where no memory is.
    MmioWrite {
        /// The guest-physical address.
        address: u64,
        /// What it wrote, 1 to 8 bytes.
        data: &'a [u8],
    },
    /// The guest halted, and the LAPIC is not in the kernel.
    Halted,
    /// The guest lets interrupts in, as [`VcpuFd::request_interrupt_window`] asked.
    InterruptWindow,
    /// The guest ended a level interrupt of the user-space I/O APIC.
    IoapicEoi {
        /// Its vector.
        vector: u8,
    },
    /// A triple fault.
    Shutdown,
    /// The processor refused the guest's state; its reason.
    FailEntry(u64),
    /// KVM gave up; its reason.
    InternalError(u32),
    /// Anything else, by number.
    Other(u32),
}

/// A virtual CPU.
#[derive(Debug)]
pub struct VcpuFd {
    fd: OwnedFd,
    run: Mapping,
    id: VcpuId,
    _memory: Option<Arc<GuestMemoryMmap>>,
}

impl VcpuFd {
    /// Takes over a descriptor that `KVM_CREATE_VCPU` made, with its `kvm_run` of this size.
    pub(super) fn new(
        fd: OwnedFd,
        run_size: usize,
        id: VcpuId,
        memory: Option<Arc<GuestMemoryMmap>>,
    ) -> Result<Self> {
        let run = Mapping::new(fd.as_fd(), run_size)?;
        Ok(Self { fd, run, id, _memory: memory })
    }

    /// Its ID.
    #[must_use]
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// What CPUID the guest sees here.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_cpuid(&self, entries: &[kb::kvm_cpuid_entry2]) -> Result<()> {
        let cpuid = kb::CpuId::from_entries(entries).map_err(|_| Error::new("too many CPUID entries"))?;
        // SAFETY: the wrapper's entries follow its header.
        unsafe { io::read(self.fd.as_fd(), &io::KVM_SET_CPUID2, cpuid.as_fam_struct_ptr())? };
        Ok(())
    }

    /// The segment and control registers.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sregs(&self) -> Result<kb::kvm_sregs> {
        get(self.fd.as_fd(), &io::KVM_GET_SREGS, kb::kvm_sregs::default())
    }

    /// Sets the segment and control registers.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_sregs(&self, sregs: &kb::kvm_sregs) -> Result<()> {
        set(self.fd.as_fd(), &io::KVM_SET_SREGS, sregs).map(drop)
    }

    /// The general registers.
    ///
    /// # Errors
    /// The kernel's.
    pub fn regs(&self) -> Result<kb::kvm_regs> {
        get(self.fd.as_fd(), &io::KVM_GET_REGS, kb::kvm_regs::default())
    }

    /// Sets the general registers.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_regs(&self, regs: &kb::kvm_regs) -> Result<()> {
        set(self.fd.as_fd(), &io::KVM_SET_REGS, regs).map(drop)
    }

    /// Sets model-specific registers: number and value.
    ///
    /// # Errors
    /// The kernel's; the number of the register that KVM does not take.
    pub fn set_msrs(&self, msrs: &[(u32, u64)]) -> Result<()> {
        let list = msr_list(msrs)?;
        // SAFETY: the wrapper's entries follow its header.
        let done = unsafe { io::read(self.fd.as_fd(), &io::KVM_SET_MSRS, list.as_fam_struct_ptr())? };
        match usize::try_from(done).ok().and_then(|done| msrs.get(done)) {
            None => Ok(()),
            Some((index, value)) => {
                Err(Error::new(format!("KVM does not take {value:#x} in MSR {index:#x}")))
            }
        }
    }

    /// Writes one model-specific register; false where a guest's WRMSR would fault. KVM says it by a count short by one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_msr(&self, index: u32, value: u64) -> Result<bool> {
        let list = msr_list(&[(index, value)])?;
        // SAFETY: the wrapper's entries follow its header.
        let done = unsafe { io::read(self.fd.as_fd(), &io::KVM_SET_MSRS, list.as_fam_struct_ptr())? };
        Ok(done == 1)
    }

    /// Reads one model-specific register; `None` where a guest's RDMSR would fault.
    ///
    /// # Errors
    /// The kernel's.
    pub fn msr(&self, index: u32) -> Result<Option<u64>> {
        let mut list = msr_list(&[(index, 0)])?;
        // SAFETY: the wrapper has room for as many entries as it says.
        let done = unsafe { io::write(self.fd.as_fd(), &io::KVM_GET_MSRS, list.as_mut_fam_struct_ptr())? };
        Ok(list.as_slice().first().filter(|_| done == 1).map(|entry| entry.data))
    }

    /// Whether it runs, waits for a start-up IPI, and so on: `KVM_MP_STATE_*`. Asking makes KVM act on an INIT or a start-up
    /// IPI that has come.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mp_state(&self) -> Result<u32> {
        get(self.fd.as_fd(), &io::KVM_GET_MP_STATE, kb::kvm_mp_state::default()).map(|state| state.mp_state)
    }

    /// Lets it run at once: one that is not the first would wait for INIT and SIPI.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make_runnable(&self) -> Result<()> {
        let state = kb::kvm_mp_state { mp_state: kb::KVM_MP_STATE_RUNNABLE };
        set(self.fd.as_fd(), &io::KVM_SET_MP_STATE, &state).map(drop)
    }

    /// Exceptions, interrupts and NMIs that wait or are under way.
    ///
    /// # Errors
    /// The kernel's.
    pub fn events(&self) -> Result<kb::kvm_vcpu_events> {
        get(self.fd.as_fd(), &io::KVM_GET_VCPU_EVENTS, kb::kvm_vcpu_events::default())
    }

    /// Sets them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_events(&self, events: &kb::kvm_vcpu_events) -> Result<()> {
        set(self.fd.as_fd(), &io::KVM_SET_VCPU_EVENTS, events).map(drop)
    }

    /// The LAPIC's register page.
    ///
    /// # Errors
    /// EINVAL when it is not in the kernel.
    pub fn lapic(&self) -> Result<Lapic> {
        let state = get(self.fd.as_fd(), &io::KVM_GET_LAPIC, kb::kvm_lapic_state { regs: [0; 1024] })?;
        Ok(state.regs.map(i8::cast_unsigned))
    }

    /// Sets the LAPIC's register page.
    ///
    /// # Errors
    /// EINVAL when it is not in the kernel.
    pub fn set_lapic(&self, lapic: &Lapic) -> Result<()> {
        let state = kb::kvm_lapic_state { regs: lapic.map(u8::cast_signed) };
        set(self.fd.as_fd(), &io::KVM_SET_LAPIC, &state).map(drop)
    }

    /// What is added to the host's TSC to make this vCPU's; `None` where the kernel does not say.
    #[must_use]
    pub fn tsc_offset(&self) -> Option<u64> {
        let mut offset = 0u64;
        let mut attribute = tsc_offset_attribute(&raw mut offset);
        // SAFETY: the attribute is 8 bytes, written to `offset`.
        unsafe { io::write(self.fd.as_fd(), &io::KVM_GET_DEVICE_ATTR, &raw mut attribute) }.ok()?;
        Some(offset)
    }

    /// Sets what is added to the host's TSC.
    ///
    /// # Errors
    /// ENXIO where the kernel does not have the attribute.
    pub fn set_tsc_offset(&self, mut offset: u64) -> Result<()> {
        let attribute = tsc_offset_attribute(&raw mut offset);
        // SAFETY: the attribute is 8 bytes, read from `offset`.
        unsafe { io::read(self.fd.as_fd(), &io::KVM_SET_DEVICE_ATTR, &raw const attribute) }.map(drop)
    }

    /// Runs the guest until something is for us to do.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run(&mut self) -> Result<Exit<'_>> {
        if let Err(error) = io::value(self.fd.as_fd(), &io::KVM_RUN, 0) {
            return if matches!(error.errno(), Some(libc::EINTR | libc::EAGAIN)) {
                Ok(Exit::Interrupted)
            } else {
                Err(error)
            };
        }
        // SAFETY: the kernel maps a kvm_run here and writes it only within KVM_RUN, which needs `&mut self`, as does
        // whoever holds an exit. The union's members are plain numbers, the one read is the one the exit reason names.
        let run = unsafe { &mut *self.run.address().cast::<kb::kvm_run>() };
        match run.exit_reason {
            kb::KVM_EXIT_IO => self.port_exit(),
            kb::KVM_EXIT_MMIO => {
                // SAFETY: as above.
                let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
                let address = mmio.phys_addr;
                let length = usize::try_from(mmio.len).unwrap_or(0).min(mmio.data.len());
                let data = &mut mmio.data[..length];
                Ok(if mmio.is_write != 0 {
                    Exit::MmioWrite { address, data }
                } else {
                    Exit::MmioRead { address, data }
                })
            }
            kb::KVM_EXIT_HLT => Ok(Exit::Halted),
            kb::KVM_EXIT_IRQ_WINDOW_OPEN => Ok(Exit::InterruptWindow),
            kb::KVM_EXIT_INTR => Ok(Exit::Interrupted),
            kb::KVM_EXIT_SHUTDOWN => Ok(Exit::Shutdown),
            kb::KVM_EXIT_IOAPIC_EOI => {
                // SAFETY: as above.
                let vector = unsafe { run.__bindgen_anon_1.eoi.vector };
                Ok(Exit::IoapicEoi { vector })
            }
            kb::KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: as above.
                let reason = unsafe { run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason };
                Ok(Exit::FailEntry(reason))
            }
            kb::KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: as above.
                Ok(Exit::InternalError(unsafe { run.__bindgen_anon_1.internal.suberror }))
            }
            other => Ok(Exit::Other(other)),
        }
    }

    fn port_exit(&mut self) -> Result<Exit<'_>> {
        // SAFETY: as in `run`; the exit reason said that this is the member.
        let io = unsafe { (*self.run.address().cast::<kb::kvm_run>()).__bindgen_anon_1.io };
        let at = usize::try_from(io.data_offset).unwrap_or(usize::MAX);
        let (size, count) = (usize::from(io.size), usize::try_from(io.count).unwrap_or(usize::MAX));
        let length = size
            .checked_mul(count)
            .filter(|length| at.checked_add(*length).is_some_and(|end| end <= self.run.length()) && size > 0);
        let Some(length) = length else {
            return Err(Error::new("KVM_RUN: port data that is not within the vCPU's page"));
        };
        // SAFETY: within the mapping, as just checked, and behind the kvm_run, so nothing else refers to it.
        let data = unsafe { std::slice::from_raw_parts_mut(self.run.address().add(at), length) };
        Ok(if u32::from(io.direction) == kb::KVM_EXIT_IO_OUT {
            Exit::PortWrite { port: io.port, size, data }
        } else {
            Exit::PortRead { port: io.port, size, data }
        })
    }

    /// Injects a vector with the next [`run`](Self::run), where the LAPIC is not in the kernel; only while
    /// [`lets_interrupts_in`](Self::lets_interrupts_in).
    ///
    /// # Errors
    /// EEXIST when one is under way, ENXIO when the LAPIC is in the kernel.
    pub fn interrupt(&self, vector: u8) -> Result<()> {
        set(self.fd.as_fd(), &io::KVM_INTERRUPT, &kb::kvm_interrupt { irq: vector.into() }).map(drop)
    }

    /// Whether KVM and the guest take an interrupt: as the last [`run`](Self::run) left it.
    #[must_use]
    pub fn lets_interrupts_in(&self) -> bool {
        // SAFETY: the kernel maps a kvm_run here and writes it only within KVM_RUN, which needs `&mut self`.
        let run = unsafe { &*self.run.address().cast::<kb::kvm_run>() };
        run.ready_for_interrupt_injection != 0 && run.if_flag != 0
    }

    /// Makes runs come back as soon as an interrupt can be injected, or not.
    pub fn request_interrupt_window(&mut self, on: bool) {
        // SAFETY: as in `run`; a byte that the kernel only reads.
        unsafe { (*self.run.address().cast::<kb::kvm_run>()).request_interrupt_window = on.into() };
    }

    /// CR8 from the next [`run`](Self::run) on, where the LAPIC is not in the kernel.
    pub fn set_cr8(&mut self, value: u8) {
        // SAFETY: as in `run`; a number that the kernel reads and writes within KVM_RUN.
        unsafe { (*self.run.address().cast::<kb::kvm_run>()).cr8 = value.into() };
    }

    /// Makes the next [`run`](Self::run) come back before it enters the guest, or not.
    pub fn set_immediate_exit(&self, on: bool) {
        // SAFETY: a byte the kernel only reads; volatile, as it is shared with the kernel.
        unsafe {
            let run = self.run.address().cast::<kb::kvm_run>();
            (&raw mut (*run).immediate_exit).write_volatile(on.into());
        }
    }
}

fn msr_list(msrs: &[(u32, u64)]) -> Result<kb::Msrs> {
    let entry =
        |(index, data): &(u32, u64)| kb::kvm_msr_entry { index: *index, data: *data, ..Default::default() };
    let entries: Vec<_> = msrs.iter().map(entry).collect();
    kb::Msrs::from_entries(&entries).map_err(|_| Error::new("too many MSRs"))
}

fn tsc_offset_attribute(offset: *mut u64) -> kb::kvm_device_attr {
    kb::kvm_device_attr {
        flags: 0,
        group: kb::KVM_VCPU_TSC_CTRL,
        attr: u64::from(kb::KVM_VCPU_TSC_OFFSET),
        addr: offset as u64,
    }
}
