//! What other VMMs are made of: an event loop of somebody else's crate that sleeps, and `KVM_SIGNAL_MSI` by kvm-ioctls.
//! The VM is kvm-ioctls' own, with LAPICs that are set up as ours. Its thread is on the poller's CPU.

mod event_manager;
mod tokio;
mod uring;

use super::{Config, Path, Trigger, Way, message, target};
use crate::measure::matching::Taken;
use kvm_bindings as kb;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use pollvisor::clock::Clock;
use pollvisor::error::{Error, Result};
use pollvisor::pin::Placement;
use pollvisor::record::Sample;
use pollvisor::session::vcpus_for;
use pollvisor::sys::{fd::EventFd, sched};
use pollvisor::vm::{EOI_GSI, EOI_GSIS, requested};
use pollvisor_core::inject::Accepted;
use pollvisor_core::irqfd::Outcome;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

/// What the loop's thread and whoever asks it share.
struct Shared {
    clock: Clock,
    vm: VmFd,
    messages: Vec<kb::kvm_msi>,
    events: Vec<Arc<EventFd>>,
    /// Ends the loop.
    stop: AtomicBool,
    wake: Arc<EventFd>,
    room: usize,
    taken: Mutex<Taken>,
}

impl Shared {
    /// What every loop does with an eventfd that is said to be readable: read it, inject. False: nothing was in it.
    fn deliver(&self, vector: usize) -> bool {
        let seen = self.clock.now();
        let signals = self.events[vector].take();
        if signals == 0 {
            return false;
        }
        let accepted = self.vm.signal_msi(self.messages[vector]).is_ok_and(|accepted| accepted > 0);
        let injected = self.clock.now();
        let outcome = Outcome::of(signals, accepted.then(Accepted::default));
        let mut taken = self.taken();
        taken.outcome += outcome;
        if taken.samples.len() < self.room {
            taken.samples.push(Sample { slot: vector, signals, outcome, seen, injected, last: injected });
        } else if self.room > 0 {
            taken.lost += 1;
        }
        true
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

struct Rival {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
    thread_id: u32,
    vcpus: Vec<VcpuFd>,
    lacking: Vec<String>,
}

pub fn start(config: &Config, clock: Clock) -> Result<(Box<dyn Way>, Vec<Trigger>)> {
    let (vm, vcpus) = vm(config.vectors)?;
    let (events, triggers) = config.events(clock)?;
    let message = |vector| {
        let msi = message(vector, config.vectors);
        let (address_lo, address_hi, data) = (msi.address_lo, msi.address_hi, msi.data);
        kb::kvm_msi { address_lo, address_hi, data, ..Default::default() }
    };
    let shared = Arc::new(Shared {
        clock,
        vm,
        messages: (0..config.vectors).map(message).collect(),
        events,
        stop: AtomicBool::new(false),
        wake: Arc::new(EventFd::new()?),
        room: config.samples,
        taken: Mutex::new(Taken { samples: Vec::with_capacity(config.samples), ..Taken::default() }),
    });
    let body = match config.path {
        Path::Tokio => tokio::run,
        Path::IoUring => uring::run,
        _ => event_manager::run,
    };
    let (ready, started) = mpsc::sync_channel(1);
    let placement = Placement { cpu: config.cpus.first().copied(), fifo: None };
    let (its, who) = (shared.clone(), config.path.key());
    let run = move || {
        let placed = placement.apply(who).map(|lacking| (lacking, sched::thread_id()));
        let told = ready.clone();
        let result = placed.and_then(|placed| {
            body(&its, &|| {
                // The receiver waits for exactly this.
                let _ = told.send(Ok(placed.clone()));
            })
        });
        if let Err(error) = &result {
            let _ = ready.try_send(Err(error.clone()));
        }
        result
    };
    let thread = std::thread::Builder::new().name(who.to_string()).spawn(run);
    let thread = thread.map_err(|e| Error::os(format!("starting the thread of {who}"), &e))?;
    let (lacking, thread_id) = match started.recv() {
        Ok(placed) => placed?,
        Err(_) => return Err(Error::new(format!("{who} ended before it began"))),
    };
    let way = Rival { shared, thread: Some(thread), thread_id, vcpus, lacking };
    Ok((Box::new(way), triggers))
}

fn failed(what: &str) -> impl Fn(kvm_ioctls::Error) -> Error + '_ {
    move |error| Error::os(format!("{what} (kvm-ioctls)"), &std::io::Error::from_raw_os_error(error.errno()))
}

/// The same VM as `pollvisor::vm` makes, by kvm-ioctls.
fn vm(vectors: usize) -> Result<(VmFd, Vec<VcpuFd>)> {
    const TSS: usize = 0xfffb_d000;
    let kvm = Kvm::new().map_err(failed("opening /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(failed("making a VM"))?;
    vm.set_tss_address(TSS).map_err(failed("KVM_SET_TSS_ADDR"))?;
    let api = kb::KVM_X2APIC_API_USE_32BIT_IDS | kb::KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    for (cap, value) in [(kb::KVM_CAP_SPLIT_IRQCHIP, EOI_GSI + EOI_GSIS), (kb::KVM_CAP_X2APIC_API, api)] {
        let cap = kb::kvm_enable_cap { cap, args: [value.into(), 0, 0, 0], ..Default::default() };
        vm.enable_cap(&cap).map_err(failed("KVM_ENABLE_CAP"))?;
    }
    let cpuid =
        kvm.get_supported_cpuid(kb::KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    let vcpus = (0..vcpus_for(vectors)).map(|id| vcpu(&vm, id, &cpuid)).collect::<Result<_>>()?;
    Ok((vm, vcpus))
}

fn vcpu(vm: &VmFd, id: u32, cpuid: &kb::CpuId) -> Result<VcpuFd> {
    const X2APIC: u32 = 1 << 21;
    const APIC_ENABLED_X2APIC: u64 = 1 << 11 | 1 << 10;
    const SPURIOUS: usize = 0xf0;
    const SOFTWARE_ENABLED: u32 = 1 << 8;
    let vcpu = vm.create_vcpu(id.into()).map_err(failed("KVM_CREATE_VCPU"))?;
    let mut cpuid = cpuid.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0x00ff_ffff | id << 24;
                entry.ecx |= X2APIC;
            }
            0xb | 0x1f => entry.edx = id,
            _ => {}
        }
    }
    vcpu.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
    let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    sregs.apic_base |= APIC_ENABLED_X2APIC;
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    let mut lapic = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    let spurious = (SOFTWARE_ENABLED | 0xff).to_le_bytes().map(u8::cast_signed);
    lapic.regs[SPURIOUS..SPURIOUS + 4].copy_from_slice(&spurious);
    vcpu.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))?;
    Ok(vcpu)
}

impl Rival {
    fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.signal(1);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(Error::new("a rival's thread panicked")))
    }
}

impl Way for Rival {
    fn take(&mut self) -> Result<Taken> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.end()?;
            return Err(Error::new("a rival's thread ended by itself"));
        }
        let empty = Taken { samples: Vec::with_capacity(self.shared.room), ..Taken::default() };
        Ok(std::mem::replace(&mut *self.shared.taken(), empty))
    }

    fn is_requested(&self, vector: usize) -> Result<bool> {
        let (vcpu, idt) = target(vector, self.shared.events.len());
        let fd = self.vcpus.get(vcpu.0 as usize).ok_or_else(|| Error::new("no such vCPU"))?;
        let lapic = fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        Ok(requested(&lapic.regs.map(i8::cast_unsigned), idt))
    }

    fn threads(&self) -> Vec<u32> {
        vec![self.thread_id]
    }

    fn warnings(&self) -> Vec<String> {
        self.lacking.clone()
    }

    fn stop(mut self: Box<Self>) -> Result<()> {
        self.end()
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let _result = self.end();
    }
}
