//! A vCPU in a model: its descriptor, its owner's loop, the futex. And the descriptor's twins, in which the mistakes are
//! that take more than a word.

use loom::sync::{Condvar, Mutex};
use pollvisor_core::ids::Trigger;
use pollvisor_core::lapic::{Eoi, Lapic, Mode, Role};
use pollvisor_core::prim::{AtomicU32, AtomicU64, Mutation, Ordering, planted};
use pollvisor_core::sync::{Harvest, Idle, Posted, PostedVcpu};

/// The APIC's ID, which is the vector of the world's only route: the world wants them to be one.
pub const ID: u32 = 0x21;

const ON: u32 = 1;

/// A futex: who waits compares and goes to sleep as one step, as the kernel's lock around it has it.
pub struct Futex {
    lock: Mutex<()>,
    sleepers: Condvar,
}

impl Futex {
    pub fn new() -> Self {
        Self { lock: Mutex::new(()), sleepers: Condvar::new() }
    }

    pub fn wait(&self, word: &AtomicU32, expect: u32) {
        let guard = self.lock.lock().unwrap();
        if word.load(Ordering::Relaxed) == expect {
            drop(self.sleepers.wait(guard).unwrap());
        }
    }

    pub fn wake(&self) {
        let _guard = self.lock.lock().unwrap();
        self.sleepers.notify_one();
    }
}

/// What other threads see of a vCPU.
pub struct Vcpu {
    pub shared: PostedVcpu,
    pub futex: Futex,
    /// The twin's own SLEEP.
    sleep_apart: AtomicU32,
    /// The twins run, also without a mistake planted.
    twin: bool,
    /// What senders counted.
    pub coalesced: std::sync::atomic::AtomicU64,
    pub wakes: std::sync::atomic::AtomicU32,
    pub sleeps: std::sync::atomic::AtomicU32,
}

impl Vcpu {
    /// With an owner that takes interrupts.
    pub fn new() -> (Self, Lapic) {
        let mut lapic = Lapic::new(ID, Role::Bsp);
        let shared = lapic.posted_vcpu();
        lapic.set_up(&shared, Mode::X2Apic, true);
        let vcpu = Self {
            shared,
            futex: Futex::new(),
            sleep_apart: AtomicU32::new(0),
            twin: false,
            coalesced: Default::default(),
            wakes: Default::default(),
            sleeps: Default::default(),
        };
        (vcpu, lapic)
    }

    /// With the twins in the descriptor's place: without a mistake they have to be as good.
    pub fn twin() -> (Self, Lapic) {
        let (vcpu, lapic) = Self::new();
        (Self { twin: true, ..vcpu }, lapic)
    }

    pub fn posted(&self) -> &Posted {
        self.shared.posted()
    }

    /// A sender posts, and wakes whom it is told to.
    pub fn post(&self, vector: u8, trigger: Trigger) {
        let twins = [Mutation::OnBeforePir, Mutation::PirPeek, Mutation::MergedNoOn, Mutation::SleepApart];
        let (coalesced, wake) = if self.twin || twins.into_iter().any(planted) {
            self.post_twin(vector, trigger)
        } else {
            let post = self.posted().post(vector, trigger);
            (post.coalesced, post.wake.is_some())
        };
        self.coalesced.fetch_add(coalesced.into(), Ordering::SeqCst);
        if wake {
            self.wakes.fetch_add(1, Ordering::SeqCst);
            self.futex.wake();
        }
    }

    fn post_twin(&self, vector: u8, trigger: Trigger) -> (bool, bool) {
        let [edge, level] = self.posted().maps();
        let map = if trigger == Trigger::Level { level } else { edge };
        let (bit, control) = (1 << vector, self.posted().word());
        let request = || {
            if planted(Mutation::PirPeek) && map.load(Ordering::Relaxed) & bit != 0 {
                return true;
            }
            map.fetch_or(bit, Ordering::Release) & bit != 0
        };
        if planted(Mutation::OnBeforePir) {
            let old = control.fetch_or(ON, Ordering::Release);
            return (request(), old & !ON != 0 && old & ON == 0);
        }
        let coalesced = request();
        if coalesced && planted(Mutation::MergedNoOn) {
            return (true, false);
        }
        let old = control.fetch_or(ON, Ordering::Release);
        let asleep = if planted(Mutation::SleepApart) {
            self.sleep_apart.load(Ordering::Acquire) != 0
        } else {
            old & !ON != 0
        };
        (coalesced, asleep && old & ON == 0)
    }

    /// The owner harvests.
    pub fn harvest(&self, lapic: &mut Lapic) {
        let twins = [Mutation::ClearOnLate, Mutation::PirTakeInTwo, Mutation::SleepApart];
        if self.twin || twins.into_iter().any(planted) {
            let harvest = self.harvest_twin();
            lapic.accept_twin(&self.shared, &harvest);
        } else {
            lapic.harvest(&self.shared);
        }
    }

    fn harvest_twin(&self) -> Harvest {
        let control = self.posted().word();
        let clear = || {
            self.sleep_apart.store(0, Ordering::Relaxed);
            control.fetch_and(0, Ordering::Acquire);
        };
        let take = |map: &AtomicU64| {
            let seen = map.load(Ordering::Relaxed);
            if seen == 0 {
                return 0;
            }
            if planted(Mutation::PirTakeInTwo) {
                map.store(0, Ordering::Relaxed);
                return seen;
            }
            map.swap(0, Ordering::Acquire)
        };
        if !planted(Mutation::ClearOnLate) {
            clear();
        }
        let [edge, level] = self.posted().maps().map(take);
        if planted(Mutation::ClearOnLate) {
            clear();
        }
        Harvest { edge: [edge], level: [level], ..Harvest::default() }
    }

    /// The owner halts, unless there is something.
    pub fn halt(&self) {
        if planted(Mutation::SleepApart) {
            self.sleep_apart.store(1, Ordering::Release);
            if self.posted().word().load(Ordering::Acquire) == 0 {
                self.futex.wait(&self.sleep_apart, 1);
            }
            return;
        }
        if let Idle::Sleep { expect } = self.posted().idle() {
            self.sleeps.fetch_add(1, Ordering::SeqCst);
            self.futex.wait(self.posted().word(), expect);
        }
    }

    /// The owner's loop: hands each interrupt to `handler`, with its end, and halts, until `handler` has enough.
    pub fn run(&self, lapic: &mut Lapic, mut handler: impl FnMut(u8, Eoi) -> bool) {
        loop {
            self.harvest(lapic);
            while let Some(vector) = lapic.take() {
                let eoi = lapic.eoi().expect("in service");
                assert_eq!(eoi.vector, vector);
                if handler(vector, eoi) {
                    return;
                }
            }
            self.halt();
        }
    }

    /// Every interrupt that was accepted has an end. Of an owner at rest.
    pub fn assert_ledger(&self, lapic: &Lapic, accepted: u64) {
        let counts = lapic.counts();
        let merged = self.coalesced.load(Ordering::SeqCst) + counts.coalesced;
        let pending = u64::from(lapic.pending(&self.shared));
        assert_eq!(
            accepted,
            counts.taken + merged + pending + counts.discarded,
            "the ledger: {counts:?}, {merged} merged, {pending} pending"
        );
    }
}
