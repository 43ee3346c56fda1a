//! The posted-interrupt descriptor: how interrupts reach a local APIC whose owner is another thread.
//!
//! The shape is the hardware's (Intel SDM 3C, table 29-1): a sender sets the vector's bit in the PIR, then `ON`. Everything
//! that the owner must notice is in one word, *C*, which is also the futex that a halted owner sleeps on.
//!
//! ```text
//!  sender: a poller, another vCPU's IPI               owner: the vCPU's thread; IRR, ISR and TMR are its own
//!  address.load           Relaxed  matches, enabled?  harvest  C.load ≠ 0 ⇒ C &= STOP      Acquire  first
//!  pir[v] |= bit          Release  old bit: coalesced          word.load ≠ 0 ⇒ swap(0)     Acquire  ⇒ IRR, TMR
//!  old := C |= ON         Release                     idle     nothing to take: old := C |= SLEEP   Relaxed
//!  old: SLEEP, not ON ⇒ Wake                                   old ≠ 0 ⇒ harvest
//!  host: futex_wake(C, 1), never blocks                        else host: futex_wait(C, SLEEP, deadline)
//! ```
//! **No lost wake-up.** C is one location, so its read-modify-writes have one order. A post whose `|= ON` is before the
//! harvest's `&= STOP` is acquired by it: its PIR bit is seen, by the plain load too. One whose `|= ON` is after found `ON`
//! clear, and either `SLEEP` (it wakes) or not (the owner's `|= SLEEP` is later and returns `ON`); or it found the `ON` of
//! another post since, for which the same holds. The futex sleeps on `SLEEP` alone, never over `ON`, an event or `STOP`.
//! `SLEEP` is in `ON`'s word, so there is no pair of locations to order and no SeqCst.
//!
//! **Merged means seen.** The PIR read-modify-write is made even if the bit is set already. The owner's later swap acquires it,
//! so the run of the handler that a signal merged into sees what the signaller wrote before. A load in its place would lose
//! that. `ON` is set too (KVM and the hardware return early): a post that has returned depends on no other sender.
//!
//! **Level.** Two maps, so that the request and its trigger mode are one read-modify-write.
//!
//! Who counts what coalesces: the sender, when the post finds its bit set; the owner, when a bit is in both maps or in the IRR
//! already. There are no shared counters.

use super::CachePadded;
use crate::ids::Trigger;
use crate::prim::{AtomicU32, AtomicU64, Mutation, Ordering, planted};

/// Words of a map: 256 vectors, in a model 64.
pub const POSTED_WORDS: usize = if cfg!(loom) { 1 } else { 4 };

/// Something was posted since the last harvest.
const ON: u32 = 1 << 0;
/// The owner sleeps, or is about to: the value it expects [`Posted::word`] to have.
const SLEEP: u32 = 1 << 1;
/// The owner is asked to park. Only [`Posted::unstop`] clears it.
const STOP: u32 = 1 << 2;
const NMI: u32 = 1 << 3;
const INIT: u32 = 1 << 4;
const SIPI: u32 = 1 << 5;
/// An interrupt with an illegal vector came: it is the receiver's ESR that says so.
const ILLEGAL: u32 = 1 << 6;
/// The start-up vector, while `SIPI` is set.
const SIPI_VECTOR: u32 = 0xff << SIPI_SHIFT;
const SIPI_SHIFT: u32 = 24;

/// What a sender owes a halted owner: one `futex_wake` of one waiter on [`word`](Self::word). Never blocks.
#[derive(Debug)]
#[must_use = "a halted vCPU that nobody wakes sleeps on"]
pub struct Wake<'a> {
    word: &'a AtomicU32,
}

impl<'a> Wake<'a> {
    /// The futex.
    #[must_use]
    pub const fn word(&self) -> &'a AtomicU32 {
        self.word
    }
}

/// What posting a vector came to. It is accepted in any case.
#[derive(Debug)]
#[must_use = "it may hold a vCPU to wake"]
pub struct Post<'a> {
    /// The vector was posted already and not harvested yet: two requests, one interrupt. The sender counts it.
    pub coalesced: bool,
    /// The owner to wake, if it is halted and nobody else was told to.
    pub wake: Option<Wake<'a>>,
}

/// Whether the owner may halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "says whether to halt"]
pub enum Idle {
    /// Something came: [`harvest`](Posted::harvest), and look at [`parking`](Posted::parking).
    Busy,
    /// Nothing there: `futex_wait` on [`word`](Posted::word) for as long as it has this value, then harvest, whatever the
    /// call returned.
    Sleep {
        /// The value to expect.
        expect: u32,
    },
}

/// What came beside the maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events(u32);

impl Events {
    /// A non-maskable interrupt.
    #[must_use]
    pub const fn nmi(self) -> bool {
        self.0 & NMI != 0
    }

    /// An INIT. It comes before the SIPI, if there is one.
    #[must_use]
    pub const fn init(self) -> bool {
        self.0 & INIT != 0
    }

    /// A start-up IPI, with its vector.
    #[must_use]
    pub const fn sipi(self) -> Option<u8> {
        if self.0 & SIPI == 0 { None } else { Some((self.0 >> SIPI_SHIFT) as u8) }
    }

    /// An interrupt with a vector below 16.
    #[must_use]
    pub const fn illegal_vector(self) -> bool {
        self.0 & ILLEGAL != 0
    }

    /// Whether there is nothing but interrupts.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 & (NMI | INIT | SIPI | ILLEGAL) == 0
    }
}

/// What a harvest took: the owner's now, and gone from the descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "an interrupt that nobody puts into the IRR is lost"]
pub struct Harvest {
    /// Vectors posted with an edge, one bit each.
    pub edge: [u64; POSTED_WORDS],
    /// Vectors posted with a level.
    pub level: [u64; POSTED_WORDS],
    /// Everything else.
    pub events: Events,
}

/// What every sender writes, on one cache line.
#[derive(Debug)]
#[repr(C, align(64))]
struct Requests {
    pir: [AtomicU64; POSTED_WORDS],
    control: AtomicU32,
}

/// What senders of level interrupts write too.
#[derive(Debug)]
#[repr(C, align(64))]
struct Levels {
    pir: [AtomicU64; POSTED_WORDS],
}

/// The descriptor: 128 bytes, aligned. See the module's text.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Posted {
    edge: Requests,
    level: Levels,
}

impl Posted {
    /// Nothing posted, the owner running.
    #[must_use]
    pub fn new() -> Self {
        let words = || core::array::from_fn(|_| AtomicU64::new(0));
        Self { edge: Requests { pir: words(), control: AtomicU32::new(0) }, level: Levels { pir: words() } }
    }

    /// The futex that a halted owner sleeps on: *C*. For the two system calls; its bits are this module's.
    #[must_use]
    pub const fn word(&self) -> &AtomicU32 {
        &self.edge.control
    }

    /// Requests `vector` with this trigger mode. Any thread; two read-modify-writes, never blocks.
    ///
    /// Whether the APIC accepts it is asked before: see [`PostedVcpu::address`].
    #[inline]
    pub fn post(&self, vector: u8, trigger: Trigger) -> Post<'_> {
        let map = match trigger {
            Trigger::Edge => &self.edge.pir,
            Trigger::Level => &self.level.pir,
        };
        let bit = 1 << (vector % 64);
        // Release: pairs with the Acquire swap in `harvest`, for the handler's run that this one merges into.
        let before = map[usize::from(vector / 64)].fetch_or(bit, Ordering::Release);
        // Release: pairs with the Acquire in `harvest`, for the bit just set.
        let order = if planted(Mutation::OnRelaxed) { Ordering::Relaxed } else { Ordering::Release };
        let old = self.edge.control.fetch_or(ON, order);
        Post { coalesced: before & bit != 0, wake: self.wake_after(old) }
    }

    /// A non-maskable interrupt. One that the owner has not seen yet takes this one in.
    pub fn post_nmi(&self) -> Option<Wake<'_>> {
        self.announce(0, NMI)
    }

    /// An INIT. It discards a start-up IPI that the owner has not seen yet.
    pub fn post_init(&self) -> Option<Wake<'_>> {
        self.announce(SIPI | SIPI_VECTOR, INIT)
    }

    /// A start-up IPI. It takes the place of one that the owner has not seen yet.
    pub fn post_sipi(&self, vector: u8) -> Option<Wake<'_>> {
        self.announce(SIPI_VECTOR, SIPI | u32::from(vector) << SIPI_SHIFT)
    }

    /// Somebody sent a vector below 16: the owner's ESR has to say so.
    pub fn post_illegal_vector(&self) -> Option<Wake<'_>> {
        self.announce(0, ILLEGAL)
    }

    /// Clears `clear`, sets `set` and `ON`, as one step. Bounded where there is nothing to clear; else each retry is another
    /// thread's success.
    fn announce(&self, clear: u32, set: u32) -> Option<Wake<'_>> {
        // Release: pairs with the Acquire in `harvest`, for what the sender did before.
        let order = if planted(Mutation::AnnounceRelaxed) { Ordering::Relaxed } else { Ordering::Release };
        if clear == 0 {
            return self.wake_after(self.edge.control.fetch_or(set | ON, order));
        }
        let mut seen = self.edge.control.load(Ordering::Relaxed);
        loop {
            let next = seen & !clear | set | ON;
            match self.edge.control.compare_exchange_weak(seen, next, order, Ordering::Relaxed) {
                Ok(old) => return self.wake_after(old),
                Err(now) => seen = now,
            }
        }
    }

    /// Whoever sets `ON` over `SLEEP` wakes; those that find `ON` set need not.
    #[inline]
    fn wake_after(&self, old: u32) -> Option<Wake<'_>> {
        let first = old & ON == 0 || planted(Mutation::WakeAlways);
        let asleep = old & SLEEP != 0 && !planted(Mutation::WakeDropped);
        (first && asleep).then_some(Wake { word: &self.edge.control })
    }

    /// Takes everything that was posted; `None` when nothing was. The owner's thread only.
    #[inline]
    pub fn harvest(&self) -> Option<Harvest> {
        // Relaxed: only says whether it is worth while. What is missed here is found by the next look, and `idle` looks last.
        if self.edge.control.load(Ordering::Relaxed) & !STOP == 0 {
            return None;
        }
        Some(self.harvest_now())
    }

    fn harvest_now(&self) -> Harvest {
        let keep = if planted(Mutation::HarvestClearsStop) { 0 } else { STOP };
        // Acquire: pairs with the Release in `post` and `announce`. Before the maps are read: a post after it sets ON anew.
        let old = self.edge.control.fetch_and(keep, Ordering::Acquire);
        let take = |word: &AtomicU64| {
            // Relaxed: the bits that the ON just cleared announced are seen, on account of the Acquire above.
            if word.load(Ordering::Relaxed) == 0 {
                return 0;
            }
            // Acquire: pairs with the Release in `post`, also of one that merged and whose ON is still to come.
            word.swap(0, Ordering::Acquire)
        };
        Harvest {
            edge: self.edge.pir.each_ref().map(take),
            level: self.level.pir.each_ref().map(take),
            events: Events(old),
        }
    }

    /// Takes everything out of the maps and drops it; how many interrupts that was. Events stay, but for the note of an
    /// illegal vector: it is about an interrupt. The owner's thread only.
    pub fn discard(&self) -> u32 {
        // Relaxed: nobody acts on it either.
        self.edge.control.fetch_and(!ILLEGAL, Ordering::Relaxed);
        // Relaxed: nobody acts on what is dropped. ON stays, so a post behind this is harvested.
        let maps = self.edge.pir.iter().chain(&self.level.pir);
        maps.map(|word| word.swap(0, Ordering::Relaxed).count_ones()).sum()
    }

    /// The owner has nothing to take and wants to halt. Its thread only, after a [`harvest`](Self::harvest).
    ///
    /// From [`Idle::Sleep`] on a post returns a [`Wake`]; the next harvest ends that.
    #[inline]
    pub fn idle(&self) -> Idle {
        // Relaxed: it is the order of C's changes that counts; what a post before it published, the harvest acquires.
        let old = self.edge.control.fetch_or(SLEEP, Ordering::Relaxed);
        if old == 0 || planted(Mutation::SleepBlind) {
            Idle::Sleep { expect: old | SLEEP }
        } else {
            Idle::Busy
        }
    }

    /// Asks the owner to park. What the caller did before, the owner's [`parking`](Self::parking) sees. Posts go on, and wake
    /// nobody; they are found after [`unstop`](Self::unstop).
    pub fn stop(&self) -> Option<Wake<'_>> {
        // Release: pairs with the Acquire in `parking`.
        let order = if planted(Mutation::StopRelaxed) { Ordering::Relaxed } else { Ordering::Release };
        let old = self.edge.control.fetch_or(STOP, order);
        // Also over ON: the post that was told to wake may not have come to it.
        let others = old & ON != 0 && planted(Mutation::StopTrustsOn);
        (old & SLEEP != 0 && !others).then_some(Wake { word: &self.edge.control })
    }

    /// Lets the owner run again. The wake is for an owner that waits in the kernel for [`parking`](Self::parking) to end.
    pub fn unstop(&self) -> Wake<'_> {
        // Release: pairs with the Acquire in `parking`.
        let order = if planted(Mutation::StopRelaxed) { Ordering::Relaxed } else { Ordering::Release };
        self.edge.control.fetch_and(!STOP, order);
        Wake { word: &self.edge.control }
    }

    /// While the owner is asked to park: the value to expect of [`word`](Self::word) in a `futex_wait`, after which to ask
    /// again. A post may change it, once; [`harvest`](Self::harvest) before parking, so that posts wake nobody.
    #[inline]
    #[must_use]
    pub fn parking(&self) -> Option<u32> {
        // Acquire: pairs with the Release in `stop` and `unstop`.
        let control = self.edge.control.load(Ordering::Acquire);
        (control & STOP != 0).then_some(control)
    }

    /// Whether anything waits for a harvest: what a spinning owner polls, with a spin hint between looks.
    #[inline]
    #[must_use]
    pub fn is_announced(&self) -> bool {
        // Relaxed: the harvest acquires.
        self.edge.control.load(Ordering::Relaxed) & !(SLEEP | STOP) != 0
    }

    /// Whether `vector` is posted and not harvested. Means something while nobody harvests: of a parked owner.
    #[must_use]
    pub fn is_posted(&self, vector: u8) -> bool {
        let (word, bit) = (usize::from(vector / 64), 1 << (vector % 64));
        // Acquire: pairs with the Release in `post`.
        [&self.edge.pir[word], &self.level.pir[word]].iter().any(|map| map.load(Ordering::Acquire) & bit != 0)
    }

    /// The first word of each map, for the models' twins, beside [`word`](Self::word) with `ON` in bit 0.
    #[cfg(loom)]
    #[must_use]
    pub fn maps(&self) -> [&AtomicU64; 2] {
        [&self.edge.pir[0], &self.level.pir[0]]
    }

    /// How many interrupts are posted and not harvested, a vector in both maps as two. Of a parked owner, as
    /// [`is_posted`](Self::is_posted).
    #[must_use]
    pub fn count_posted(&self) -> u32 {
        let maps = self.edge.pir.iter().chain(&self.level.pir);
        // Acquire: pairs with the Release in `post`.
        maps.map(|word| word.load(Ordering::Acquire).count_ones()).sum()
    }
}

impl Default for Posted {
    fn default() -> Self {
        Self::new()
    }
}

/// Everything of a vCPU's local APIC that other threads touch: its descriptor, and the address word.
///
/// The owner publishes the word whenever what it says changes. A sender reads it once and acts on what it read: the fields
/// change as one, or not at all. Its own cache lines, for every sender reads it and hardly anybody writes it.
#[derive(Debug)]
pub struct PostedVcpu {
    posted: Posted,
    address: CachePadded<AtomicU64>,
}

impl PostedVcpu {
    /// Nothing posted, at this address ([`crate::lapic::Address`] gives the bits their meaning).
    #[must_use]
    pub fn new(address: u64) -> Self {
        Self { posted: Posted::new(), address: CachePadded::new(AtomicU64::new(address)) }
    }

    /// The descriptor.
    #[inline]
    #[must_use]
    pub const fn posted(&self) -> &Posted {
        &self.posted
    }

    /// The address word, whole.
    #[inline]
    #[must_use]
    pub fn address(&self) -> u64 {
        // Relaxed: the word stands for itself.
        self.address.load(Ordering::Relaxed)
    }

    /// Publishes a new address word. The owner's thread only.
    pub fn publish(&self, address: u64) {
        // Relaxed: as in `address`.
        self.address.store(address, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use core::mem::{align_of, offset_of, size_of};

    #[test]
    fn the_descriptor_is_two_lines_and_the_address_is_apart() {
        assert_eq!((size_of::<Posted>(), align_of::<Posted>()), (128, 128));
        assert_eq!((offset_of!(Posted, edge), offset_of!(Posted, level)), (0, 64));
        assert_eq!((offset_of!(Requests, pir), offset_of!(Requests, control)), (0, 32));
        assert_eq!((size_of::<PostedVcpu>(), offset_of!(PostedVcpu, address)), (256, 128));
    }

    #[test]
    fn a_post_is_harvested_once_and_coalesces_until_then() {
        let posted = Posted::new();
        assert_eq!(posted.harvest(), None);
        assert!(!posted.post(0x41, Trigger::Edge).coalesced);
        assert!(posted.post(0x41, Trigger::Edge).coalesced);
        assert!(!posted.post(0x41, Trigger::Level).coalesced, "a map each");
        assert!(posted.is_posted(0x41) && posted.is_announced());
        assert_eq!(posted.count_posted(), 2);
        let harvest = posted.harvest().expect("posted");
        assert_eq!((harvest.edge, harvest.level), ([0, 2, 0, 0], [0, 2, 0, 0]));
        assert!(harvest.events.is_empty());
        assert_eq!(posted.harvest(), None);
        assert!(!posted.post(0x41, Trigger::Edge).coalesced);
    }

    #[test]
    fn one_wake_a_sleep() {
        let posted = Posted::new();
        assert_eq!(posted.idle(), Idle::Sleep { expect: SLEEP });
        assert!(posted.post(0x31, Trigger::Edge).wake.is_some());
        assert!(posted.post(0x32, Trigger::Edge).wake.is_none());
        assert!(posted.stop().is_some(), "STOP wakes for itself");
        assert_eq!(posted.harvest().expect("posted").edge[0], 3 << 0x31);
        assert_eq!(posted.parking(), Some(STOP));
        assert!(posted.post(0x33, Trigger::Edge).wake.is_none());
        assert_eq!(posted.parking(), Some(STOP | ON));
        assert_eq!(posted.idle(), Idle::Busy);
        let _wake = posted.unstop();
        assert_eq!(posted.parking(), None);
        assert_eq!(posted.idle(), Idle::Busy);
    }

    #[test]
    fn an_init_discards_an_earlier_sipi_and_the_last_sipi_counts() {
        let posted = Posted::new();
        assert!(posted.post_sipi(0xff).is_none());
        assert!(posted.post_sipi(0x9a).is_none());
        assert_eq!(posted.harvest().expect("events").events.sipi(), Some(0x9a));
        let _none = posted.post_sipi(0x12).or(posted.post_init());
        let events = posted.harvest().expect("events").events;
        assert!(events.init() && !events.nmi() && !events.illegal_vector());
        assert_eq!(events.sipi(), None);
        let _none = posted.post_init().or(posted.post_sipi(0x34)).or(posted.post_nmi());
        let events = posted.harvest().expect("events").events;
        assert!(events.init() && events.nmi());
        assert_eq!(events.sipi(), Some(0x34));
        let _none = posted.post_illegal_vector();
        assert!(posted.harvest().expect("events").events.illegal_vector());
    }
}
