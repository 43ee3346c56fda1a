//! The devices. Each register is written down twice: what the device has, and what the guest is to see of it.

use pollvisor::pci::{Bar, BarKind, Options, ROM};
use pollvisor_core::msix::msi::Shape;

/// A device, and what its guest has to see. Masks are of bits, one byte for each of configuration space.
#[derive(Debug, Clone)]
pub struct Device {
    /// The device's registers.
    pub config: Vec<u8>,
    /// Bytes of each BAR.
    pub bar_sizes: [u64; 6],
    /// Bytes of the expansion ROM.
    pub rom_size: u64,
    /// What of it is shown.
    pub options: Options,
    /// What the guest reads at first.
    pub seen: Vec<u8>,
    /// What the guest can write that the device is not told. The command register it is told as a whole.
    pub own: Vec<u8>,
    /// What the guest can write that goes to the device.
    pub passed: Vec<u8>,
    /// What the device says at each moment, writable or not.
    pub live: Vec<u8>,
    /// What asks for a reset.
    pub resets: Vec<u8>,
    /// MSI: where, and what it is built with.
    pub msi: Option<(usize, Shape)>,
    /// Where the MSI-X control register is.
    pub msix: Option<usize>,
    /// Where the power state is, and which there are.
    pub power: Option<(usize, [bool; 4])>,
    /// The BARs.
    pub bars: Vec<Bar>,
}

impl Device {
    fn new(size: usize, identity: &[u8; 16], options: Options) -> Self {
        let mut device = Self {
            config: vec![0; size],
            bar_sizes: [0; 6],
            rom_size: 0,
            options,
            seen: vec![0; 4096],
            own: vec![0; 4096],
            passed: vec![0; 4096],
            live: vec![0; 4096],
            resets: vec![0; 4096],
            msi: None,
            msix: None,
            power: None,
            bars: Vec::new(),
        };
        device.shown(0, identity);
        // Command and the capabilities bit are ours; so is the header type.
        device.seen[4..6].fill(0);
        device.own[4..6].copy_from_slice(&[0x47, 0x05]);
        device.live[4..6].fill(0);
        device.live[6] = 0xef;
        device.seen[14] = 0;
        device.live[14] = 0;
        // CardBus CIS, subsystem; line 11, pin A; grant, latency.
        device.shown(0x28, &[0, 0, 0, 0, 0x86, 0x80, 0x1f, 0xa0]);
        device.config[0x3c..0x3e].copy_from_slice(&[11, 1]);
        device.own[0x3c] = 0xff;
        device.seen[0x3d] = u8::from(options.intx);
        device.shown(0x3e, &[8, 255]);
        device
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.config[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// What the guest reads instead of what is there.
    fn see(&mut self, at: usize, bytes: &[u8]) {
        self.seen[at..at + bytes.len()].copy_from_slice(bytes);
        self.live[at..at + bytes.len()].fill(0);
        self.passed[at..at + bytes.len()].fill(0);
    }

    fn shown(&mut self, at: usize, bytes: &[u8]) {
        self.put(at, bytes);
        self.see(at, bytes);
        self.live[at..at + bytes.len()].fill(0xff);
    }

    fn passed(&mut self, at: usize, bytes: &[u8]) {
        self.shown(at, bytes);
        self.passed[at..at + bytes.len()].fill(0xff);
    }

    /// `register`: the device's low half, an address of the host's and the type bits.
    fn bar(&mut self, index: u8, register: u32, size: u64) {
        let at = if index == ROM { 0x30 } else { 0x10 + 4 * usize::from(index) };
        self.put(at, &register.to_le_bytes());
        let (kind, keeps, mask) = match register & 7 {
            _ if index == ROM => (BarKind::Memory32, 0, 0xffff_ffff & !(size - 1) | 1),
            1 => (BarKind::Io, 1, 0xffff & !(size - 1)),
            0 => (BarKind::Memory32, register & 8, 0xffff_ffff & !(size - 1)),
            _ => (BarKind::Memory64, register & 12, !(size - 1)),
        };
        let bytes = if kind == BarKind::Memory64 { 8 } else { 4 };
        if bytes == 8 {
            self.put(at + 4, &[0x20, 0, 0, 0]);
        }
        self.see(at, &keeps.to_le_bytes());
        self.own[at..at + bytes].copy_from_slice(&mask.to_le_bytes()[..bytes]);
        match self.bar_sizes.get_mut(usize::from(index)) {
            Some(of) => *of = size,
            None => self.rom_size = size,
        }
        let prefetchable = keeps & 8 != 0;
        self.bars.push(Bar { index, kind, prefetchable, size, address: 0 });
    }

    /// The device's chain, and the one that the guest follows.
    fn chains(&mut self, device: &[(u8, u8)], guest: &[u8]) {
        for (index, (id, at)) in device.iter().enumerate() {
            let next = device.get(index + 1).map_or(0, |(_, next)| *next);
            self.put(usize::from(*at), &[*id, next]);
            self.see(usize::from(*at), &[0, 0]);
        }
        self.put(0x34, &[device[0].1]);
        self.see(0x34, &[guest[0]]);
        for (index, at) in guest.iter().enumerate() {
            let next = guest.get(index + 1).copied().unwrap_or(0);
            let id = self.config[usize::from(*at)];
            self.see(usize::from(*at), &[id, next]);
        }
        self.config[6] |= 0x10;
        self.seen[6] |= 0x10;
    }

    /// Version 3, D3hot only; D3hot now, PME on; bridge extensions and data are 0x5a.
    fn power_management(&mut self, at: usize, d1_d2: bool) {
        let high = if d1_d2 { 0xce } else { 0xc8 };
        self.passed(at + 2, &[0x23, high, 0x03, 0x01, 0x5a, 0x5a]);
        self.see(at + 4, &[0x08]);
        self.own[at + 4] = 3;
        self.power = Some((at + 4, [true, d1_d2, d1_d2, true]));
    }

    /// Enabled by the host, with addresses of the host's.
    fn message(&mut self, at: usize, control: u16, shape: Shape) {
        self.put(at + 2, &(control | 1).to_le_bytes());
        self.put(at + 4, &[0x0c, 0xf0, 0xe0, 0xfe]);
        self.msi = Some((at, shape));
    }

    fn message_x(&mut self, at: usize, vectors: u16, table: u32, pending: u32) {
        self.put(at + 2, &(0xc000 | (vectors - 1)).to_le_bytes());
        self.see(at + 2, &(vectors - 1).to_le_bytes());
        self.own[at + 3] = 0xc0;
        self.shown(at + 4, &[table.to_le_bytes(), pending.to_le_bytes()].concat());
        self.live[at + 4..at + 12].fill(0);
        self.msix = Some(at + 2);
    }

    /// `flags` as the device has them; shown as type 9, version kept.
    fn express(&mut self, at: usize, flags: u16, length: usize, flr: bool) {
        self.passed(at + 2, &vec![0x36; length - 2]);
        self.put(at + 2, &flags.to_le_bytes());
        self.see(at + 2, &(flags & !0xf0 | 0x90).to_le_bytes());
        for link in [0x0c..0x14, 0x2c..0x34] {
            let zeros = vec![0; link.end.min(length).saturating_sub(link.start)];
            self.see(at + link.start, &zeros);
        }
        let high = if flr { 0x11 } else { 0x01 };
        self.passed(at + 7, &[high]);
        // Bit 15 of device control.
        self.passed[at + 9] = 0x7f;
        self.live[at + 9] = 0x7f;
        self.resets[at + 9] = if flr { 0x80 } else { 0 };
    }

    fn extended(&mut self, at: usize, id: u16, next: u32, bytes: &[u8]) {
        self.put(at, &(u32::from(id) | 1 << 16 | next << 20).to_le_bytes());
        self.put(at + 4, bytes);
    }
}

const NOTHING: Options = Options { rom: false, intx: false };

/// As an 82574: 32-bit BARs, PCI Express 1, MSI without masks, five MSI-X vectors in a BAR of their own; no
/// function-level reset; the serial number behind AER.
///
/// # Panics
/// Never.
#[must_use]
pub fn e1000e() -> Device {
    let identity = [0x86, 0x80, 0xd3, 0x10, 0x07, 0x04, 0x10, 0, 0, 0, 0, 2, 16, 0, 0, 0];
    let mut device = Device::new(4096, &identity, Options { intx: true, ..NOTHING });
    device.bar(0, 0xf7c0_0000, 128 << 10);
    device.bar(1, 0xf7c8_0000, 512 << 10);
    device.bar(2, 0xe001, 32);
    device.bar(3, 0xf7c2_0000, 16 << 10);
    // There, and not to be shown.
    device.put(0x30, &[1, 0, 0xc4, 0xf7]);
    device.rom_size = 64 << 10;
    device.power_management(0xc8, false);
    device.message(0xd0, 0x0080, Shape::new(1, true, false).expect("one vector"));
    device.express(0xe0, 0x0001, 0x14, false);
    device.message_x(0xa0, 5, 3, 0x2003);
    device.chains(&[(1, 0xc8), (5, 0xd0), (0x10, 0xe0), (0x11, 0xa0)], &[0xc8, 0xd0, 0xe0, 0xa0]);
    device.extended(0x100, 0x0001, 0x140, &[0xee; 0x40 - 4]);
    device.extended(0x140, 0x0003, 0, &[]);
    device.shown(0x144, &[1, 2, 3, 4, 5, 6, 7, 8]);
    device.see(0x140, &[3, 0, 1, 0]);
    device.see(0x100, &[0, 0, 0, 0x14]);
    device
}

/// As an 82576, with its BARs 64 bits wide: PCI Express 2 with function-level reset, 16 MSI vectors with masks, ten
/// MSI-X vectors in pages that have other registers too; an unknown capability between the others, SR-IOV and ARI.
///
/// # Panics
/// Never.
#[must_use]
pub fn igb() -> Device {
    let identity = [0x86, 0x80, 0xc9, 0x10, 0x07, 0x04, 0x10, 0, 1, 0, 0, 2, 16, 0, 0x80, 0];
    let mut device = Device::new(4096, &identity, Options { rom: true, intx: false });
    device.bar(0, 0xd000_000c, 1 << 20);
    device.bar(2, 0xd021, 32);
    device.bar(4, 0xd010_0004, 16 << 10);
    device.bar(ROM, 0xfb80_0000, 64 << 10);
    device.power_management(0x40, true);
    device.message(0x50, 0x0188, Shape::new(16, true, true).expect("16 vectors"));
    device.message_x(0x70, 10, 0x1004, 0x1804);
    device.express(0xa0, 0x0002, 0x3c, true);
    device.put(0x80, &[0x0d, 0, 0xde, 0xad]);
    device
        .chains(&[(1, 0x40), (5, 0x50), (0x11, 0x70), (0x0d, 0x80), (0x10, 0xa0)], &[0x40, 0x50, 0x70, 0xa0]);
    device.extended(0x100, 0x0001, 0x150, &[0xee; 0x50 - 4]);
    device.extended(0x150, 0x000e, 0x160, &[0xee; 12]);
    device.extended(0x160, 0x0010, 0, &[0xee; 0x3c]);
    device
}

/// A conventional device of 256 bytes: VPD, two vendor-specific capabilities, advanced features with function-level
/// reset, MSI of 32 bits; a second MSI that nobody may see.
///
/// # Panics
/// Never.
#[must_use]
pub fn conventional() -> Device {
    let identity = [0x34, 0x12, 0x78, 0x56, 0, 0, 0x90, 0x02, 3, 0, 0, 1, 0, 64, 0, 0];
    let mut device = Device::new(256, &identity, NOTHING);
    device.bar(5, 0xfebf_0008, 256);
    device.put(0x10, &[0x99; 4]);
    device.passed(0x42, &[0x80, 0x80, 0x11, 0x22, 0x33, 0x44]);
    device.passed(0x4a, &[0x10, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
    device.passed(0x5a, &[1]);
    device.shown(0x62, &[6, 3, 0, 1]);
    device.see(0x64, &[0]);
    device.resets[0x64] = 1;
    device.message(0x70, 0, Shape::new(1, false, false).expect("one vector"));
    device.put(0x82, &[0x80, 0]);
    device.chains(
        &[(3, 0x40), (9, 0x48), (9, 0x58), (0x13, 0x60), (5, 0x70), (5, 0x80)],
        &[0x40, 0x48, 0x58, 0x60, 0x70],
    );
    device
}
