//! Configuration space: whatever the guest writes, against masks of what it can change; and devices that contradict
//! themselves, against nothing but what holds of every function.

use super::bytes::Bytes;
use crate::pci::{Checked, Device, Mood, Scripted, conventional, e1000e, igb};
use pollvisor::pci::ConfigSpace;

/// Any accesses, resets and placements, of devices that may vanish; or of a device with a few bytes changed.
///
/// # Panics
/// When the space disagrees with the reference.
pub fn config(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let choice = bytes.below(8);
    let device = [igb, e1000e, conventional][usize::from(choice % 3)]();
    if choice < 6 { good(device, &mut bytes) } else { odd(device, &mut bytes) }
}

fn good(device: Device, bytes: &mut Bytes<'_>) {
    let registers = places(&device);
    let mut checked = Checked::new(device);
    for _ in 0..200 {
        if bytes.is_empty() {
            break;
        }
        match bytes.below(16) {
            0 => drop(checked.reset()),
            1 => {
                let index = bytes.below(9);
                let address = if bytes.bool() { u64::from(bytes.u32()) } else { bytes.u64() };
                checked.place(index, address);
            }
            2 => {
                let moods = [Mood::Present, Mood::Vanished, Mood::Failing, Mood::Present];
                checked.host.mood.set(moods[usize::from(bytes.below(4))]);
            }
            _ => {
                let (offset, data) = access(&registers, bytes);
                drop(checked.write(offset, data));
            }
        }
    }
    checked.compare();
}

/// Where there is something to be written.
fn places(device: &Device) -> Vec<u32> {
    let masks = device.own.iter().zip(&device.passed).zip(&device.resets);
    let there = masks.map(|((own, passed), resets)| own | passed | resets);
    let mut places: Vec<u32> =
        (0..).zip(there).filter(|(_, mask)| *mask != 0).map(|(at, _)| at & !3).collect();
    places.dedup();
    if let Some(at) = device.msi.and_then(|(at, _)| u32::try_from(at).ok()) {
        places.extend((at..at + 24).step_by(4));
    }
    places
}

fn access<'a>(registers: &[u32], bytes: &mut Bytes<'a>) -> (u16, &'a [u8]) {
    let choice = bytes.u8();
    let register = registers.get(usize::from(bytes.u8())).copied().unwrap_or_else(|| bytes.u32());
    let [a, b, _, _] = register.wrapping_add(u32::from(choice & 3)).to_le_bytes();
    let length = [4, 4, 4, 2, 2, 1, 1, 3];
    let ones: &[u8] = &[0xff; 4];
    let length = length[usize::from(choice >> 2 & 7)];
    let data = match choice >> 5 {
        0 => &ones[..length],
        1 => bytes.take(8),
        _ => bytes.take(length),
    };
    (u16::from_le_bytes([a, b]), data)
}

/// Some bytes of the device's are not what they should be: refused, or a function like any other.
fn odd(mut device: Device, bytes: &mut Bytes<'_>) {
    let registers = places(&device);
    for _ in 0..bytes.below(8) {
        let at = usize::try_from(bytes.near(&[0, 0x34, 0x40, 0x48, 0x70, 0xa0, 0x100, 0x140])).unwrap_or(0);
        let length = device.config.len();
        device.config[at % length] = bytes.u8();
    }
    if bytes.bool() {
        let size = 1u64.checked_shl(u32::from(bytes.u8())).unwrap_or_else(|| bytes.u64());
        device.bar_sizes[usize::from(bytes.below(6))] = size;
    }
    let host = Scripted::new(device.config);
    let mut space = match ConfigSpace::new(&host, device.bar_sizes, device.rom_size, &device.options) {
        Ok(space) => space,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for _ in 0..200 {
        if bytes.is_empty() {
            break;
        }
        let (offset, data) = access(&registers, bytes);
        let before: Vec<_> = (0..7).map(|index| space.decoded(index)).collect();
        let written = space.write(&host, offset, data);
        let after: Vec<_> = (0..7).map(|index| space.decoded(index)).collect();
        assert_eq!(written.decode_changed, before != after);
        for (index, address) in (0..).zip(after) {
            let Some((bar, address)) = space.bar(index).zip(address) else { continue };
            assert!(address != 0 && address % bar.size == 0 && address.checked_add(bar.size).is_some());
        }
    }
    chain_ends(&space, &host);
}

/// The guest's chains of capabilities lead somewhere, and end.
fn chain_ends(space: &ConfigSpace, host: &Scripted) {
    let word = |at: u16| {
        let mut data = [0; 4];
        space.read(host, at, &mut data);
        u32::from_le_bytes(data)
    };
    let mut at = word(0x34) & 0xff;
    for _ in 0..48 {
        if at == 0 {
            break;
        }
        assert!((0x40..0x100).contains(&at), "{at:#x}");
        at = word(u16::try_from(at).expect("below 256")) >> 8 & 0xff;
    }
    assert_eq!(at, 0);
    let next = word(0x100) >> 20;
    assert!(next == 0 || word(u16::try_from(next).expect("12 bits")) >> 20 == 0);
}
