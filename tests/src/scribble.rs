//! What a hostile guest writes where, and what its VMM must not have more of afterwards. The accesses themselves are made
//! by the built-in guest's own CPU, [`Puppet::scribble`](pollvisor::guest::puppet::Puppet::scribble).

use pollvisor::chips::IOAPIC_BASE;
use pollvisor::guest::scribble::{Place, Shape, What};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The environment's number for a run that is to be made again.
const SEED: &str = "SCRIBBLE_SEED";
/// The environment's number of seconds.
const SECONDS: &str = "SCRIBBLE_SECONDS";

const fn shape(random: u64, set: u64) -> Shape {
    Shape { random, set }
}

/// Anything, and what masks are made of.
pub const WILD: &[Shape] = &[
    shape(u64::MAX, 0),
    shape(0, 0),
    shape(0, u64::MAX),
    shape(0xffff_ffff, 0),
    shape(0xff, 0),
    shape(0x3f, 0),
];
/// A message's address: a processor.
pub const ADDRESS: &[Shape] =
    &[shape(0xf_f000, 0xfee0_0000), shape(0, 0xfee0_0000), shape(0x3_ffff, 0xfee0_0000)];
/// The upper half of one; bits 7:0 are not allowed there. In a write of eight bytes the data follows, as in [`DATA`].
pub const ADDRESS_HIGH: &[Shape] = &[
    shape(0xdf << 32, 0x20 << 32),
    shape(0xdf << 32 | 0xff00, 0x20 << 32),
    shape(0xdf << 32 | 0x1ff, 0x20 << 32),
];
/// A message's data: fixed or lowest priority, a vector that has a handler.
pub const DATA: &[Shape] = &[shape(0x1df, 0x20)];
/// One bit, or a few.
pub const SWITCH: &[Shape] = &[shape(1, 0), shape(7, 0), shape(0xc000, 0)];
/// Where BARs can be, on the edges of that, and outside.
pub const BAR: &[Shape] = &[
    shape(0x1fff_f000, 0xc000_0000),
    shape(0x0fff_0000, 0xd000_0000),
    shape(0xfff, 0xdfff_f000),
    shape(0, 0xffff_ffff),
    shape(0xffff_ffff, 0),
    shape(0xf, 0),
];
/// CONFIG_ADDRESS.
pub const CONFIG_ADDRESS: &[Shape] =
    &[shape(0x7ffc, 0x8000_0000), shape(0x8fc, 0x8000_0000), shape(0xffff_ffff, 0)];
/// The same for the registers that all functions have.
pub const HEADER_ADDRESS: &[Shape] = &[shape(0x783c, 0x8000_0000), shape(0x83c, 0x8000_0000)];
/// A redirection entry's lower half that leaves the guest alive: fixed or lowest priority.
pub const REDIRECTION: &[Shape] = &[shape(0x1_a9df, 0x20)];
/// The I/O APIC's registers by number: the lower halves of the redirection entries, and the others.
pub const LOW_HALF: &[Shape] = &[shape(0x1e, 0x10), shape(0xe, 0x20), shape(0xe, 0x30)];
/// See [`LOW_HALF`].
pub const OTHER_HALF: &[Shape] = &[shape(0x1e, 0x11), shape(0xe, 0x21), shape(3, 0), shape(0xc0, 0x40)];

/// `count` bytes of memory space, a power of two, at any offset.
#[must_use]
pub fn memory(base: u64, count: u32, shapes: &'static [Shape]) -> Place<'static> {
    Place { what: What::Memory, base, mask: count - 1, shapes }
}

/// Every `step` bytes of them, a power of two.
#[must_use]
pub fn every(base: u64, count: u32, step: u32, shapes: &'static [Shape]) -> Place<'static> {
    Place { what: What::Memory, base, mask: (count - 1) & !(step - 1), shapes }
}

/// `count` ports, a power of two.
#[must_use]
pub fn ports(base: u16, count: u32, shapes: &'static [Shape]) -> Place<'static> {
    Place { what: What::Ports, base: base.into(), mask: count - 1, shapes }
}

/// The ends of interrupt, also of none.
pub const EOI: Place<'static> = Place { what: What::EndOfInterrupt, base: 0, mask: 0, shapes: WILD };

/// The I/O APIC: everywhere if `wild`. Else what is written to its window makes no message but one that the built-in
/// guest has a handler for, whichever register is selected: nothing but lower halves is written with the rest masked off.
#[must_use]
pub fn ioapic(wild: bool) -> Vec<Place<'static>> {
    if wild {
        return vec![
            every(IOAPIC_BASE, 16, 16, LOW_HALF),
            every(IOAPIC_BASE, 16, 16, OTHER_HALF),
            every(IOAPIC_BASE + 0x10, 16, 16, WILD),
            every(IOAPIC_BASE + 0x10, 16, 16, REDIRECTION),
            memory(IOAPIC_BASE, 0x1000, WILD),
        ];
    }
    vec![
        every(IOAPIC_BASE, 16, 16, LOW_HALF),
        every(IOAPIC_BASE, 16, 16, OTHER_HALF),
        every(IOAPIC_BASE + 0x10, 16, 16, REDIRECTION),
        every(IOAPIC_BASE + 0x10, 16, 16, REDIRECTION),
        memory(IOAPIC_BASE + 0x20, 0x80, WILD),
    ]
}

/// What this process has that must not become more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vitals {
    /// Resident memory, in KiB.
    pub resident: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

/// What resident memory may grow by, in KiB.
const GROWTH: u64 = 1024;

impl Vitals {
    /// As they are now.
    #[must_use]
    pub fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        let count = |folder| std::fs::read_dir(folder).map_or(0, Iterator::count);
        Self {
            resident: line.trim().trim_end_matches(" kB").parse().unwrap_or(0),
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
        }
    }

    /// That there is not more now than there was: a mebibyte of memory, nothing of the rest.
    ///
    /// # Errors
    /// What there is more of.
    pub fn check(&self) -> pollvisor::Result<Self> {
        // A thread that was told to end may take a moment.
        let began = Instant::now();
        let mut now = Self::now();
        while now.threads > self.threads && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
            now = Self::now();
        }
        if now.resident > self.resident + GROWTH
            || now.descriptors > self.descriptors
            || now.threads > self.threads
        {
            return Err(pollvisor::Error::new(format!("the VMM grew: {self:?}, now {now:?}")));
        }
        Ok(now)
    }
}

/// The seed of this run: the environment's, or the clock's. Said, so that the run can be made again.
#[must_use]
pub fn seed() -> u64 {
    let given = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    let clock =
        || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| u64::from(time.subsec_nanos()) | 1);
    let seed = given.unwrap_or_else(clock);
    crate::note!("{SEED}={seed}");
    seed
}

/// How long to go on: as the environment says, or `usual`.
#[must_use]
pub fn duration(usual: Duration) -> Duration {
    let given = std::env::var(SECONDS).ok().and_then(|text| text.parse().ok());
    given.map_or(usual, Duration::from_secs)
}
