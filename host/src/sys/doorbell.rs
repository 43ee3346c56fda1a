//! Doorbells: signals by plain stores into shared memory, for a data plane that wants neither a system call nor a lock.
//!
//! A region has one producer, one poller, and up to [`MAX_BELLS`] bells. The producer only ever stores; the poller
//! only ever loads. Nothing is written by both, so there is no locked instruction and no line fought over:
//!
//! ```text
//!  producer: ring(b)                                poller: next_rung
//!  counts[b] := c                  (Relaxed)        w := log[p % LOG].word      (Acquire, pairs with the Release)
//!  e := log[p % LOG]                                position(w) == p: one ring; (c, stamp) := e, look at word again
//!  e.word := 0; fence(Release)                      position(w) >  p: lapped; every count that moved is a ring
//!  e.count, e.stamp := c, now      (Relaxed)        else: nothing. An idle look is this one load, of a line that
//!  e.word := (p + 1, b)            (Release)              stays in the poller's cache, for 1 bell or for 4096.
//! ```
//! The log stands in for the summary bitmap that one would think of first: a bitmap needs a locked read-modify-write
//! on a line that both sides use, which costs the producer more than all of this, and the poller a second miss.
//! The counts are the truth; the log says where to look. A poller that was lapped sweeps the counts, so rings merge
//! but none is lost. What the producer stores is checked, never trusted: it can only hurt its own vectors.

use super::mem::{Mapping, SealedMemory};
use crate::error::{Error, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Bells in a region at the most.
pub const MAX_BELLS: usize = 4096;

const LOG: usize = 256;
const MAGIC: u64 = u64::from_le_bytes(*b"pollbell");
const BELL_BITS: u32 = 16;

/// The start of a region.
#[repr(C, align(128))]
struct Header {
    magic: AtomicU64,
    bells: AtomicU64,
}

#[repr(C, align(32))]
struct Entry {
    /// `(position + 1) << 16 | bell`; 0 while it is being written.
    word: AtomicU64,
    stamp: AtomicU64,
    count: AtomicU64,
}

/// Shared memory with bells in it.
#[derive(Debug)]
pub struct Region {
    memory: SealedMemory,
    mapping: Mapping,
    bells: usize,
}

fn length(bells: usize) -> usize {
    size_of::<Header>() + LOG * size_of::<Entry>() + bells * size_of::<AtomicU64>()
}

impl Region {
    /// A new region.
    ///
    /// # Errors
    /// With no bells or more than [`MAX_BELLS`]; and the kernel's.
    pub fn new(bells: usize) -> Result<Arc<Self>> {
        if bells == 0 || bells > MAX_BELLS {
            return Err(Error::new(format!("a region of {bells} doorbells; 1 to {MAX_BELLS} fit")));
        }
        let memory = SealedMemory::new(length(bells))?;
        let region = Self { mapping: Mapping::new(memory.as_fd(), length(bells))?, memory, bells };
        region.header().bells.store(bells as u64, Ordering::Relaxed);
        region.header().magic.store(MAGIC, Ordering::Release);
        Ok(Arc::new(region))
    }

    /// A region that another process made, by its descriptor.
    ///
    /// # Errors
    /// When it is not one.
    pub fn open(fd: OwnedFd) -> Result<Arc<Self>> {
        let (memory, size) = SealedMemory::from_fd(fd)?;
        if size < size_of::<Header>() {
            return Err(Error::new(format!("a doorbell region of {size} bytes is too short")));
        }
        let mapping = Mapping::new(memory.as_fd(), size)?;
        let mut region = Self { memory, mapping, bells: 0 };
        let header = region.header();
        let (magic, bells) = (header.magic.load(Ordering::Acquire), header.bells.load(Ordering::Relaxed));
        let bells = usize::try_from(bells).unwrap_or(0);
        if magic != MAGIC || bells == 0 || bells > MAX_BELLS || length(bells) > size {
            return Err(Error::new("that shared memory is not a doorbell region"));
        }
        region.bells = bells;
        Ok(Arc::new(region))
    }

    /// How many bells it has.
    #[must_use]
    pub fn bells(&self) -> usize {
        self.bells
    }

    /// Where it is mapped, page-aligned: different for every region of this process.
    #[must_use]
    pub fn address(&self) -> usize {
        self.mapping.address() as usize
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is at least a header long and page-aligned; all fields are atomics.
        unsafe { &*self.mapping.address().cast() }
    }

    fn log(&self) -> &[Entry; LOG] {
        // SAFETY: the mapping's length was checked; the offset keeps the alignment; all fields are atomics.
        unsafe { &*self.mapping.address().add(size_of::<Header>()).cast() }
    }

    fn counts(&self) -> &[AtomicU64] {
        let offset = size_of::<Header>() + LOG * size_of::<Entry>();
        // SAFETY: the mapping's length was checked for `bells` words here; they are atomics.
        unsafe { std::slice::from_raw_parts(self.mapping.address().add(offset).cast(), self.bells) }
    }

    /// How often `bell` was rung, ever.
    #[must_use]
    pub fn count(&self, bell: usize) -> u64 {
        self.counts()[bell].load(Ordering::Acquire)
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

/// The one who rings. There is to be one per region; a second one would only mix up its own signals.
#[derive(Debug)]
pub struct Producer {
    region: Arc<Region>,
    position: u64,
}

impl Producer {
    /// The producer of a region that has none yet, or whose last one is gone.
    #[must_use]
    pub fn new(region: Arc<Region>) -> Self {
        let newest = region.log().iter().map(|e| e.word.load(Ordering::Acquire) >> BELL_BITS).max();
        Self { position: newest.unwrap_or(0), region }
    }

    /// Rings `bell`; `stamp` is the time of the signal, in TSC cycles. Wait-free: six stores.
    ///
    /// # Panics
    /// When there is no such bell.
    #[inline]
    pub fn ring(&mut self, bell: usize, stamp: u64) {
        let count = &self.region.counts()[bell];
        // Relaxed: this is its only writer.
        let rung = count.load(Ordering::Relaxed).wrapping_add(1);
        count.store(rung, Ordering::Relaxed);
        let at = usize::try_from(self.position % LOG as u64).unwrap_or(0);
        self.position += 1;
        let entry = &self.region.log()[at];
        entry.word.store(0, Ordering::Relaxed);
        // Pairs with the Acquire fence in `Consumer::next_rung`: who sees a new field sees the 0 or what follows it.
        fence(Ordering::Release);
        entry.count.store(rung, Ordering::Relaxed);
        entry.stamp.store(stamp, Ordering::Relaxed);
        // Release: pairs with the Acquire load in `Consumer::next_rung`.
        entry.word.store(self.position << BELL_BITS | bell as u64, Ordering::Release);
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }
}

/// Rings of one bell that the poller has not had yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rung {
    /// The bell.
    pub bell: usize,
    /// How many, at least 1.
    pub signals: u64,
    /// When the last one was made, in TSC cycles; 0 when a lap lost that.
    pub stamp: u64,
}

/// The poller's side: what it has seen, and which bells it listens to.
#[derive(Debug)]
pub struct Consumer {
    region: Arc<Region>,
    position: u64,
    /// The next count to compare, while sweeping.
    sweep: Option<usize>,
    bells: Box<[Listened]>,
    /// Times the log lapped this poller.
    laps: u64,
}

#[derive(Debug, Clone, Copy)]
struct Listened {
    seen: u64,
    on: bool,
}

impl Consumer {
    /// The consumer of a region; rings before this are found when their bell is first listened to.
    #[must_use]
    pub fn new(region: Arc<Region>) -> Self {
        let bells = vec![Listened { seen: 0, on: false }; region.bells].into_boxed_slice();
        Self { region, position: 0, sweep: None, bells, laps: 0 }
    }

    /// Listens to `bell`, or no more. What was rung while nobody listened comes when somebody does.
    pub fn listen(&mut self, bell: usize, on: bool) {
        self.bells[bell].on = on;
        if on {
            self.sweep = Some(0);
        }
    }

    /// The next ring of a bell that is listened to. With nothing new: one load.
    #[inline]
    pub fn next_rung(&mut self) -> Option<Rung> {
        if self.sweep.is_some()
            && let Some(rung) = self.sweep_on()
        {
            return Some(rung);
        }
        for _ in 0..LOG {
            let entry = &self.region.log()[usize::try_from(self.position % LOG as u64).unwrap_or(0)];
            // Acquire: pairs with the Release in `ring`.
            let word = entry.word.load(Ordering::Acquire);
            let ahead = (word >> BELL_BITS).wrapping_sub(self.position);
            if ahead == 0 || word == 0 || ahead > u64::MAX / 2 {
                return None;
            }
            let (count, stamp) = (entry.count.load(Ordering::Relaxed), entry.stamp.load(Ordering::Relaxed));
            // Pairs with the Release fence in `ring`.
            fence(Ordering::Acquire);
            if ahead > 1 || entry.word.load(Ordering::Relaxed) != word {
                return self.lapped(word >> BELL_BITS);
            }
            self.position += 1;
            let bell = (word & 0xffff) as usize;
            // A bell that does not exist, or one rung before the sweep saw it: not an event.
            if let Some(rung) = self.rung(bell, count, stamp) {
                return Some(rung);
            }
        }
        None
    }

    /// What `count` adds to what was seen of `bell`.
    #[inline]
    fn rung(&mut self, bell: usize, count: u64, stamp: u64) -> Option<Rung> {
        let listened = self.bells.get_mut(bell).filter(|l| l.on)?;
        let signals = count.wrapping_sub(listened.seen);
        if signals == 0 || signals > u64::MAX / 2 {
            return None;
        }
        listened.seen = count;
        Some(Rung { bell, signals, stamp })
    }

    #[cold]
    fn lapped(&mut self, newest: u64) -> Option<Rung> {
        self.laps += 1;
        // What comes after `newest` is still in the log or will be; what came before is in the counts.
        self.position = self.position.max(newest);
        self.sweep = Some(0);
        self.sweep_on()
    }

    fn sweep_on(&mut self) -> Option<Rung> {
        let from = self.sweep.take()?;
        for bell in from..self.bells.len() {
            // Acquire: pairs, through the log's word, with the Release in `ring`.
            let count = self.region.counts()[bell].load(Ordering::Acquire);
            if let Some(rung) = self.rung(bell, count, 0) {
                self.sweep = Some(bell + 1);
                return Some(rung);
            }
        }
        None
    }

    /// How often the producer was more than a whole log ahead.
    #[must_use]
    pub fn laps(&self) -> u64 {
        self.laps
    }

    /// Rings of `bell` not yet reported, while it is not listened to.
    #[must_use]
    pub fn unseen(&self, bell: usize) -> u64 {
        self.region.count(bell).wrapping_sub(self.bells[bell].seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(bells: usize) -> (Producer, Consumer) {
        let region = Region::new(bells).expect("region");
        let mut consumer = Consumer::new(region.clone());
        for bell in 0..bells {
            consumer.listen(bell, true);
        }
        (Producer::new(region), consumer)
    }

    #[test]
    fn rings_come_in_order_with_their_stamps() {
        let (mut producer, mut consumer) = pair(3);
        assert_eq!(consumer.next_rung(), None);
        for (bell, stamp) in [(2, 10), (0, 11), (2, 12)] {
            producer.ring(bell, stamp);
        }
        for (bell, stamp) in [(2, 10), (0, 11), (2, 12)] {
            assert_eq!(consumer.next_rung(), Some(Rung { bell, signals: 1, stamp }));
        }
        assert_eq!(consumer.next_rung(), None);
    }

    #[test]
    fn a_lapped_consumer_loses_stamps_but_no_signal() {
        let (mut producer, mut consumer) = pair(2);
        for i in 0..LOG * 2 + 5 {
            producer.ring(i % 2, 1);
        }
        let mut sums = [0; 2];
        while let Some(rung) = consumer.next_rung() {
            sums[rung.bell] += rung.signals;
        }
        assert_eq!(sums.iter().sum::<u64>(), LOG as u64 * 2 + 5);
        assert_eq!(consumer.laps(), 1);
        producer.ring(1, 99);
        assert_eq!(consumer.next_rung(), Some(Rung { bell: 1, signals: 1, stamp: 99 }));
    }

    #[test]
    fn rings_while_nobody_listens_are_kept() {
        let (mut producer, mut consumer) = pair(1);
        consumer.listen(0, false);
        producer.ring(0, 1);
        producer.ring(0, 2);
        assert_eq!((consumer.next_rung(), consumer.unseen(0)), (None, 2));
        consumer.listen(0, true);
        assert_eq!(consumer.next_rung(), Some(Rung { bell: 0, signals: 2, stamp: 0 }));
    }

    #[test]
    fn a_hostile_producer_can_say_anything() {
        let (mut producer, mut consumer) = pair(1);
        let log = producer.region.log();
        log[0].word.store(1 << BELL_BITS | 0xffff, Ordering::Release);
        assert_eq!(consumer.next_rung(), None, "no such bell");
        log[1].word.store(u64::MAX, Ordering::Release);
        producer.region.counts()[0].store(u64::MAX, Ordering::Release);
        for _ in 0..1000 {
            consumer.next_rung();
        }
        producer.ring(0, 1);
        consumer.next_rung();
    }

    #[test]
    fn a_foreign_file_is_refused() {
        let unsealed = std::fs::File::open("/proc/self/exe").expect("open");
        assert!(Region::open(unsealed.into()).is_err());
        let (other, _) = (SealedMemory::new(8192).expect("memory"), ());
        assert!(Region::open(other.as_fd().try_clone_to_owned().expect("dup")).is_err());
        let region = Region::new(4).expect("region");
        let again = Region::open(region.as_fd().try_clone_to_owned().expect("dup")).expect("open");
        assert_eq!(again.bells(), 4);
    }

    #[test]
    fn two_threads_agree_on_every_ring() {
        let (mut producer, mut consumer) = pair(7);
        const RINGS: u64 = 300_000;
        let thread = std::thread::spawn(move || {
            for i in 0..RINGS {
                producer.ring((i % 7) as usize, i + 1);
            }
        });
        let mut sums = [0u64; 7];
        while sums.iter().sum::<u64>() < RINGS {
            match consumer.next_rung() {
                Some(rung) => sums[rung.bell] += rung.signals,
                None => std::thread::yield_now(),
            }
        }
        thread.join().expect("producer");
        assert_eq!(consumer.next_rung(), None);
        for (bell, sum) in sums.iter().enumerate() {
            assert_eq!(*sum, (0..RINGS).filter(|i| i % 7 == bell as u64).count() as u64);
        }
    }
}
