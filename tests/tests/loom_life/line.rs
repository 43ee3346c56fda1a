//! INTx lines and trigger slots: interrupts against masking and release.

use super::{Faults, bounded, model};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use loom::thread;
use pollvisor_core::line::{IntxHost, IntxLine, IntxState, Level, Slot};
use pollvisor_core::prim::Mutation;

/// A host interrupt: its disable depth, and whether its handler and its line may still be touched.
#[derive(Debug)]
struct Wire {
    depth: AtomicUsize,
    closing: AtomicBool,
    gone: AtomicBool,
    high: AtomicBool,
    faults: Faults,
}

#[derive(Debug)]
struct Host(Arc<Wire>);

#[derive(Debug)]
struct Guest(Arc<Wire>);

impl IntxHost for Host {
    fn mask(&mut self) {
        let limit = if self.0.closing.load(SeqCst) { 2 } else { 1 };
        // Nested outside the teardown: a dead line.
        self.0.faults.unless(self.0.depth.fetch_add(1, SeqCst) < limit);
    }
    fn unmask(&mut self) {
        // Unmasked what was not masked.
        self.0.faults.unless(self.0.depth.fetch_sub(1, SeqCst) == 1);
    }
    fn is_pending(&mut self) -> bool {
        false
    }
}

impl Level for Guest {
    fn raise(&mut self) {
        // Raised after the release.
        self.0.faults.unless(!self.0.gone.load(SeqCst));
        self.0.high.store(true, SeqCst);
    }
    fn lower(&mut self) {
        self.0.high.store(false, SeqCst);
    }
}

type Line = IntxLine<Host, Guest>;

/// A requested line: registered disabled, so its depth is 1 from the first moment.
fn requested() -> (Arc<Wire>, Arc<Line>) {
    let wire = Arc::new(Wire {
        depth: AtomicUsize::new(1),
        closing: AtomicBool::new(false),
        gone: AtomicBool::new(false),
        high: AtomicBool::new(false),
        faults: Faults::default(),
    });
    let line = Line::new(Host(wire.clone()));
    line.request().unwrap();
    assert!(line.set_trigger(Some(Guest(wire.clone()))).is_none());
    (wire, Arc::new(line))
}

/// Race 27: interrupt and ack against mask and unmask against the guest's DisINTx. The depth is `masked`, before, between and after.
fn interrupt_against_mask() {
    let (wire, line) = requested();
    line.start(false).unwrap();
    let handler = {
        let line = line.clone();
        thread::spawn(move || {
            line.arrive().unwrap();
            line.ack().unwrap();
        })
    };
    let config = {
        let line = line.clone();
        thread::spawn(move || {
            line.set_disintx(true).unwrap();
            line.set_disintx(false).unwrap();
        })
    };
    line.mask().unwrap();
    line.unmask().unwrap();
    handler.join().unwrap();
    config.join().unwrap();
    // An arrival that was masked away is not ours; one that was not is acknowledged.
    assert!(wire.faults.none() && line.state() == IntxState::Idle);
    assert_eq!((wire.depth.load(SeqCst), wire.high.load(SeqCst)), (0, false), "a dead line");
}

#[test]
fn intx_interrupt_against_mask() {
    model(None, interrupt_against_mask);
}

#[test]
#[should_panic]
fn intx_interrupt_against_mask_owed_unlocked() {
    model(Some(Mutation::IntxOwedUnlocked), interrupt_against_mask);
}

/// Races 26, 27 and 29: an interrupt, the registration and the release, with the ack and the user's mask in
/// between. After the release nothing raises, and the line is low.
fn interrupt_against_release() {
    let (wire, line) = requested();
    let handler = {
        let line = line.clone();
        let wire = wire.clone();
        thread::spawn(move || {
            // As hardware does: only while the interrupt is enabled.
            if wire.depth.load(SeqCst) == 0 {
                let _ = line.arrive();
            }
        })
    };
    let user = {
        let line = line.clone();
        thread::spawn(move || {
            let _ = line.mask();
            let _ = line.ack();
        })
    };
    line.start(false).unwrap();
    wire.closing.store(true, SeqCst);
    let closing = line.close().unwrap();
    wire.faults.unless(wire.depth.load(SeqCst) >= 1);
    // Freeing waits for the handler.
    let freed = closing.free(|| handler.join().unwrap());
    let trigger = freed.unregister_ack(|| user.join().unwrap());
    wire.gone.store(true, SeqCst);
    assert!(wire.faults.none() && trigger.is_some() && !wire.high.load(SeqCst));
    assert_eq!(line.state(), IntxState::Free);
    assert!(line.arrive().is_err() && line.ack().is_err() && line.unmask().is_err());
}

#[test]
fn intx_interrupt_against_release() {
    bounded(Some(4), None, interrupt_against_release);
}

#[test]
#[should_panic]
fn intx_interrupt_against_release_owed_unlocked() {
    bounded(Some(3), Some(Mutation::IntxOwedUnlocked), interrupt_against_release);
}

/// Races 24 and 29: a signal against two that clear the slot. One of them gets the trigger to release.
fn signal_against_release() {
    let slot = Arc::new(Slot::new());
    let alive = Arc::new(AtomicBool::new(true));
    slot.install(alive.clone()).unwrap();
    let signaller = {
        let slot = slot.clone();
        thread::spawn(move || slot.with(|alive| assert!(alive.load(SeqCst), "signalled after its release")))
    };
    let ioctl = {
        let slot = slot.clone();
        thread::spawn(move || slot.take().map(|alive| alive.store(false, SeqCst)).is_some())
    };
    let released = slot.close().map(|alive| alive.store(false, SeqCst)).is_some();
    assert!(released != ioctl.join().unwrap(), "one of them releases");
    signaller.join().unwrap();
    assert!(slot.install(alive).is_err());
}

#[test]
fn slot_signal_against_release() {
    model(None, signal_against_release);
}

#[test]
#[should_panic]
fn slot_signal_against_release_peeked() {
    model(Some(Mutation::SlotPeeked), signal_against_release);
}
