//! A configuration space beside its reference: bytes, and a mask of what a guest can change in each.

use super::{Device, Mood, Scripted};
use pollvisor::pci::{Bar, BarKind, ConfigSpace, ROM, Written};
use pollvisor_core::msix::msi::Msi;
use std::ops::Range;

/// The space of a [`Device`], the reference, and the device itself. Every call asserts that they agree.
#[derive(Debug)]
pub struct Checked {
    /// What is checked.
    pub space: ConfigSpace,
    /// The device.
    pub host: Scripted,
    /// What it is made from.
    pub device: Device,
    seen: Vec<u8>,
    /// With the bytes of configuration space that are its.
    msi: Option<(Range<usize>, Msi)>,
}

impl Checked {
    /// The space of `device`.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    pub fn new(device: Device) -> Self {
        let host = Scripted::new(device.config.clone());
        let space = ConfigSpace::new(&host, device.bar_sizes, device.rom_size, &device.options);
        let msi = device.msi.map(|(at, shape)| (at + 2..at + shape.bytes(), Msi::new(shape)));
        let seen = device.seen.clone();
        Self { space: space.expect("a good device"), host, device, seen, msi }
    }

    /// The guest reads.
    #[must_use]
    pub fn read<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0x5a; N];
        self.space.read(&self.host, offset, &mut data);
        data
    }

    /// The guest writes.
    ///
    /// # Panics
    /// When what follows is not what has to.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Written {
        let (command, decoded) = (self.space.command(), self.decoded());
        let start = usize::from(offset);
        let touched = if data.len() > 4 { start..start } else { start..(start + data.len()).min(4096) };
        let touches = |range: Range<usize>| {
            !touched.is_empty() && touched.start < range.end && range.start < touched.end
        };
        let written = self.space.write(&self.host, offset, data);

        let present = self.host.mood.get() == Mood::Present;
        let power = self.device.power.map(|(at, _)| (at, self.seen[at]));
        let (mut reset, mut told) = (false, touches(4..6));
        for (at, byte) in touched.clone().zip(data) {
            let passed = self.device.passed[at];
            told |= passed != 0;
            let mask = self.device.own[at] | if present { passed } else { 0 };
            self.seen[at] = self.seen[at] & !mask | byte & mask;
            reset |= byte & self.device.resets[at] != 0;
        }
        if let (Some((at, states)), Some((_, before))) = (self.device.power, power)
            && !states[usize::from(self.seen[at] & 3)]
        {
            self.seen[at] = before;
        }
        assert_eq!(written.reset, reset);
        assert_eq!(written.error.is_some(), told && self.host.mood.get() == Mood::Failing);
        let now = u16::from_le_bytes([self.seen[4], self.seen[5]]);
        assert_eq!(written.command, touches(4..6).then_some((command, now)));
        assert_eq!(written.msix.is_some(), self.device.msix.is_some_and(|at| touches(at..at + 2)));
        let msi = self.msi.as_mut().and_then(|(range, msi)| {
            let from = touched.start.max(range.start);
            let part = touched.end.min(range.end).checked_sub(from).filter(|n| *n > 0)?;
            let part = &data[from - start..][..part];
            Some(msi.write((from - range.start + 2) as u64, part))
        });
        assert_eq!(written.msi, msi);
        assert_eq!(written.decode_changed, decoded != self.decoded());
        self.compare_range(start & !3..(start & !3) + 8, 1);
        self.compare_range(0..0x40, 4);
        written
    }

    /// The function is reset.
    ///
    /// # Panics
    /// When what follows is not what has to.
    pub fn reset(&mut self) -> Written {
        let (command, decoded) = (self.space.command(), self.decoded());
        let written = self.space.reset(&self.host);
        for (seen, own) in self.seen.iter_mut().zip(&self.device.own) {
            *seen &= !own;
        }
        assert_eq!(written.msi, self.msi.as_mut().map(|(_, msi)| msi.reset()));
        assert_eq!(written.decode_changed, decoded != self.decoded());
        assert_eq!(written.command, Some((command, 0)));
        assert_eq!(written.error.is_some(), self.host.mood.get() == Mood::Failing);
        assert!(!written.reset);
        self.compare_range(0..0x100, 1);
        written
    }

    /// Firmware places a BAR.
    ///
    /// # Panics
    /// When it is not where it has to be.
    pub fn place(&mut self, index: u8, address: u64) {
        self.space.place(index, address);
        if let Some(bar) = self.device.bars.iter().find(|bar| bar.index == index) {
            let (at, length) = register(bar);
            for (place, byte) in (at..at + length).zip(address.to_le_bytes()) {
                let mask = self.device.own[place] & if index == ROM && place == at { 0xfe } else { 0xff };
                self.seen[place] = self.seen[place] & !mask | byte & mask;
            }
        }
        self.compare_range(0..0x40, 4);
    }

    /// Everything.
    ///
    /// # Panics
    /// When something differs.
    pub fn compare(&self) {
        self.compare_range(0..4096, 4);
        // What a guest may not write has not reached the device.
        let bytes = self.host.bytes.borrow();
        for (at, byte) in bytes.iter().enumerate().filter(|(at, _)| !(4..6).contains(at)) {
            let passed = self.device.passed[at];
            let want = self.seen[at] & passed | self.device.config[at] & !passed;
            // The bits beside a passed one are written as zeros, where a reset would be asked for.
            let want = if passed != 0 { want & self.device.live[at] } else { want };
            assert_eq!(*byte, want, "the device's {at:#x}");
        }
    }

    fn compare_range(&self, range: Range<usize>, length: usize) {
        for index in 0..7u8 {
            assert_eq!(self.space.decoded(index), self.decoded()[usize::from(index)], "BAR {index}");
            let held = self.device.bars.iter().find(|bar| bar.index == index);
            let address = held.map(|bar| self.address(bar));
            assert_eq!(self.space.bar(index).map(|bar| bar.address), address, "BAR {index}");
        }
        for first in (range.start..range.end.min(4096)).step_by(length) {
            let offset = u16::try_from(first).expect("below 4096");
            let mut data = [0x5a; 4];
            self.space.read(&self.host, offset, &mut data[..length]);
            let mood = self.host.mood.get();
            // All of an access is ones when the device was asked and did not answer.
            let silent = mood == Mood::Failing && self.device.live[first..first + length] != [0; 4][..length];
            for (at, got) in (first..).zip(&data[..length]) {
                // The device's bits of a byte are ones when it has gone.
                let gone = if mood == Mood::Vanished { self.device.live[at] } else { 0 };
                let want = if silent { 0xff } else { self.byte(at) | gone };
                assert_eq!(*got, want, "{at:#x}, {length} bytes at once, {mood:?}");
            }
        }
    }

    fn byte(&self, at: usize) -> u8 {
        let mut byte = [self.seen[at]];
        if let Some((range, msi)) = &self.msi
            && range.contains(&at)
        {
            let _always_inside = msi.read((at - range.start + 2) as u64, &mut byte);
        }
        byte[0]
    }

    fn address(&self, bar: &Bar) -> u64 {
        let (at, length) = register(bar);
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(&self.seen[at..at + length]);
        // The type bits and a ROM's enable bit are below the smallest BAR.
        u64::from_le_bytes(bytes) & !(bar.size - 1)
    }

    /// Where the BARs are decoded, by the reference.
    fn decoded(&self) -> [Option<u64>; 7] {
        let mut all = [None; 7];
        let awake = self.device.power.is_none_or(|(at, _)| self.seen[at] & 3 == 0);
        for bar in &self.device.bars {
            let (at, _) = register(bar);
            let address = self.address(bar);
            let end = match bar.kind {
                BarKind::Io => 1 << 16,
                BarKind::Memory32 => 1 << 32,
                BarKind::Memory64 => 1 << 64,
            };
            let end = [end, 1u128 << 32];
            // The last place there is, which sizing leaves.
            let sizing = end.contains(&(u128::from(address) + u128::from(bar.size)));
            let enabled = self.seen[4] & if bar.kind == BarKind::Io { 1 } else { 2 } != 0;
            let enabled = enabled && (bar.index != ROM || self.seen[at] & 1 != 0);
            if awake && enabled && address != 0 && !sizing {
                all[usize::from(bar.index)] = Some(address);
            }
        }
        all
    }
}

fn register(bar: &Bar) -> (usize, usize) {
    match (bar.index, bar.kind) {
        (ROM, _) => (0x30, 4),
        (index, BarKind::Memory64) => (0x10 + 4 * usize::from(index), 8),
        (index, _) => (0x10 + 4 * usize::from(index), 4),
    }
}
