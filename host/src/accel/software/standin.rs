//! The thread that stands in for a vCPU: takes vectors, writes the built-in guest's record for each, ends the interrupt, and
//! halts or spins. Interrupts are always enabled (IF), but for the time of a handler.

use super::vcpu::{LapicCounts, Vcpu};
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::pin::Placement;
use crate::sys::{futex, tsc};
use pollvisor_core::sync::{Idle, PostedVcpu};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

/// A running stand-in. Dropping it stops it.
#[derive(Debug)]
pub struct StandIn {
    thread: Option<JoinHandle<Result<LapicCounts>>>,
    vcpus: Arc<[PostedVcpu]>,
    number: usize,
    lacking: Vec<String>,
}

impl StandIn {
    /// Lets a thread of its own stand in for `vcpu`, placed as asked. `spin`: it never halts.
    ///
    /// # Errors
    /// When it cannot be placed.
    pub fn start(mut vcpu: Vcpu, guest: Guest, spin: bool, placement: Placement) -> Result<Self> {
        let name = format!("vCPU {}", vcpu.id().0);
        let (vcpus, number) = (vcpu.all().clone(), vcpu.id().0 as usize);
        let (ready, started) = mpsc::sync_channel(1);
        let who = name.clone();
        let body = move || -> Result<LapicCounts> {
            let placed = placement.apply(&who);
            let failed = placed.as_ref().err().cloned();
            // The receiver waits for exactly this.
            let _ = ready.send(placed);
            if let Some(error) = failed {
                return Err(error);
            }
            guest.began(vcpu.id());
            while run(&mut vcpu, &guest)? {
                if spin {
                    while !vcpu.posted().is_announced() && vcpu.posted().parking().is_none() {
                        std::hint::spin_loop();
                    }
                } else {
                    halt(&mut vcpu);
                }
            }
            Ok(vcpu.counts())
        };
        let thread = crate::pin::thread(&name).spawn(body);
        let thread = thread.map_err(|e| Error::os(format!("starting the thread of {name}"), &e))?;
        let lacking = match started.recv() {
            Ok(placed) => placed?,
            Err(_) => return Err(Error::new(format!("{name} ended before it began"))),
        };
        Ok(Self { thread: Some(thread), vcpus, number, lacking })
    }

    /// What its placement lacks.
    #[must_use]
    pub fn lacking(&self) -> &[String] {
        &self.lacking
    }

    /// Whether it ended by itself, which is a bug.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops it, after what was posted until now. What its LAPIC counted.
    ///
    /// # Errors
    /// What made it end by itself.
    pub fn stop(mut self) -> Result<LapicCounts> {
        self.halt().unwrap_or_else(|| Err(Error::new("the vCPU was stopped already")))
    }

    fn halt(&mut self) -> Option<Result<LapicCounts>> {
        let thread = self.thread.take()?;
        if let Some(wake) = self.vcpus[self.number].posted().stop() {
            futex::wake(wake.word());
        }
        Some(thread.join().unwrap_or_else(|_| Err(Error::new("a vCPU's thread panicked"))))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _counts = self.halt();
    }
}

/// Takes all there is to take; false once it was asked to stop, after a last look.
fn run(vcpu: &mut Vcpu, guest: &Guest) -> Result<bool> {
    let goes_on = vcpu.posted().parking().is_none();
    loop {
        vcpu.harvest()?;
        let Some(vector) = vcpu.take() else { return Ok(goes_on) };
        // Before anything else, as the guest's handler reads it.
        let time = tsc::now();
        guest.handle(vcpu.id(), vector, time);
        vcpu.end_of_interrupt();
    }
}

/// Sleeps until somebody posts, or asks for something else.
fn halt(vcpu: &mut Vcpu) {
    if let Idle::Sleep { expect } = vcpu.posted().idle() {
        futex::wait(vcpu.posted().word(), expect, None);
    }
}
