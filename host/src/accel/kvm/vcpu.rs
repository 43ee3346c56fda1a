//! A virtual CPU's thread.
//!
//! It carries its exits out itself, also those that change routes or an assigned device's set-up: an access has to have had
//! its effect when the guest's instruction is over (no message by the old route after a mask was written, PCI 3.0, 6.8.3.4),
//! so the vCPU would wait for any other thread, its CPU idle meanwhile, and two switches longer. A poller's CPU has no part in
//! it: it never waits, it is waited for. Whatever need not be over by then is done elsewhere: deferred deliveries,
//! shutdowns, an I/O APIC's pauses, devices that go.

use crate::error::{Error, Result};
use crate::pin::Placement;
use crate::sys::kvm::{Exit, VcpuFd};
use crate::sys::sched;
use pollvisor_core::ids::VcpuId;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// What is done with a vCPU's exits.
pub trait Exits: Send + Sync {
    /// Carries one out, on the vCPU's thread.
    ///
    /// # Errors
    /// What ends the vCPU.
    fn exit(&self, vcpu: VcpuId, exit: &mut Exit<'_>) -> Result<()>;
}

/// A running vCPU. Dropping it stops it.
#[derive(Debug)]
pub struct VcpuThread {
    thread: Option<JoinHandle<Result<()>>>,
    stop: Arc<AtomicBool>,
    lacking: Vec<String>,
}

impl VcpuThread {
    /// Runs `vcpu` on a thread of its own, placed as asked; an error of `exits` ends it.
    ///
    /// # Errors
    /// When it cannot be placed, or KVM does not run it.
    pub fn start(mut vcpu: VcpuFd, placement: Placement, exits: Arc<dyn Exits>) -> Result<Self> {
        sched::handle_kicks();
        // A VM's first KVM_RUN makes a thread of KVM's (`kvm_mmu_post_init_vm`, Linux 6.14) that has the CPUs and the priority
        // of who called: this thread's, not the vCPU's. It comes back before the guest is entered.
        vcpu.set_immediate_exit(true);
        let entered = vcpu.run().map(drop);
        vcpu.set_immediate_exit(false);
        entered?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, started) = mpsc::sync_channel(1);
        let name = format!("vCPU {}", vcpu.id().0);
        let (its_stop, who) = (stop.clone(), name.clone());
        let body = move || -> Result<()> {
            let placed = placement.apply(&who);
            let failed = placed.as_ref().err().cloned();
            let _ = ready.send(placed);
            if let Some(error) = failed {
                return Err(error);
            }
            while !its_stop.load(Ordering::Acquire) {
                let id = vcpu.id();
                if let Err(error) = vcpu.run().and_then(|mut exit| exits.exit(id, &mut exit)) {
                    eprintln!("pollvisor: {error}; {}", registers(&vcpu));
                    return Err(error);
                }
            }
            Ok(())
        };
        let thread = crate::pin::thread(&name).spawn(body);
        let thread = thread.map_err(|e| Error::os(format!("starting the thread of {name}"), &e))?;
        let lacking = match started.recv() {
            Ok(placed) => placed?,
            Err(_) => return Err(Error::new(format!("{name} ended before it began"))),
        };
        Ok(Self { thread: Some(thread), stop, lacking })
    }

    /// What its placement lacks.
    #[must_use]
    pub fn lacking(&self) -> &[String] {
        &self.lacking
    }

    /// Whether it ended by itself, which a vCPU does only on an error.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops it.
    ///
    /// # Errors
    /// What made it end by itself.
    pub fn stop(mut self) -> Result<()> {
        self.halt()
    }

    fn halt(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.stop.store(true, Ordering::Release);
        // A kick that comes just before KVM_RUN is lost, so kick until it is heard.
        while !thread.is_finished() {
            sched::kick(&thread);
            std::thread::sleep(Duration::from_millis(1));
        }
        thread.join().unwrap_or_else(|_| Err(Error::new("a vCPU's thread panicked")))
    }
}

/// What a vCPU that cannot go on leaves: said at once, for who waits for the guest learns of its end only later. After a
/// triple fault on AMD these are the values of a reset (`shutdown_interception`).
fn registers(vcpu: &VcpuFd) -> String {
    match (vcpu.regs(), vcpu.sregs()) {
        (Ok(regs), Ok(sregs)) => format!(
            "registers: rip {:#x}, rsp {:#x}, rflags {:#x}, cr0 {:#x}, cr2 {:#x}, cr3 {:#x}, cr4 {:#x}, efer {:#x}",
            regs.rip, regs.rsp, regs.rflags, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer
        ),
        (Err(error), _) | (_, Err(error)) => format!("registers: {error}"),
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        let _result = self.halt();
    }
}
