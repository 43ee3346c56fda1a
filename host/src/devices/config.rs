//! What a function's configuration space says about its interrupts.

use std::path::Path;

/// The kernel shows this much to an ordinary user.
const HEADER: usize = 64;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const HEADER_TYPE: usize = 0x0e;
const CAPABILITIES: usize = 0x34;
const CARDBUS_CAPABILITIES: usize = 0x14;
const INTERRUPT_PIN: usize = 0x3d;
const CARDBUS: u8 = 2;
const MSI: u8 = 0x05;
const MSIX: u8 = 0x11;
/// As many capabilities as fit, `PCI_FIND_CAP_TTL`: the end of a list that loops.
const LONGEST: usize = 48;

/// The answer; `None` is "unknown" everywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Config {
    /// 0: an ordinary function, 1: a PCI bridge, 2: a CardBus bridge.
    pub(super) header_type: Option<u8>,
    /// MSI-X vectors, 0 without the capability.
    pub(super) msix: Option<u16>,
    /// MSI vectors, 0 without the capability.
    pub(super) msi: Option<u16>,
    /// 0: none, 1 to 4: INTA to INTD.
    pub(super) pin: Option<u8>,
}

impl Config {
    pub(super) fn read(node: &Path) -> Self {
        Self::parse(&std::fs::read(node.join("config")).unwrap_or_default())
    }

    pub(super) fn parse(bytes: &[u8]) -> Self {
        let byte = |at: usize| bytes.get(at).copied();
        let word = |at: usize| Some(u16::from_le_bytes([byte(at)?, byte(at + 1)?]));
        // All ones: the function does not answer. The vendor alone is no sign: a virtual function has ones there.
        if bytes.get(..HEADER).is_none_or(|header| header.iter().all(|byte| *byte == 0xff)) {
            return Self::default();
        }
        let header_type = byte(HEADER_TYPE).map(|kind| kind & 0x7f);
        let pin = byte(INTERRUPT_PIN).filter(|pin| *pin <= 4);
        let mut config = Self { header_type, pin, ..Self::default() };
        let mut at = 0;
        if word(STATUS).is_some_and(|status| status & STATUS_CAPABILITIES != 0) {
            let first = if header_type == Some(CARDBUS) { CARDBUS_CAPABILITIES } else { CAPABILITIES };
            at = usize::from(byte(first).unwrap_or(0)) & !3;
        }
        for _ in 0..LONGEST {
            if at < HEADER {
                break;
            }
            let (Some(id), Some(next), Some(control)) = (byte(at), byte(at + 1), word(at + 2)) else {
                return config;
            };
            match id {
                MSI => config.msi = config.msi.or(Some(1 << (control >> 1 & 7).min(5))),
                MSIX => config.msix = config.msix.or(Some((control & 0x7ff) + 1)),
                _ => {}
            }
            at = usize::from(next) & !3;
        }
        // The list was read to its end: what is not in it is not there.
        Self { msi: config.msi.or(Some(0)), msix: config.msix.or(Some(0)), ..config }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A function with these capabilities: (ID, control word), from 0x40 on, 16 bytes apart.
    pub(in crate::devices) fn space(capabilities: &[(u8, u16)]) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        bytes[..4].copy_from_slice(&[0x86, 0x80, 0xc9, 0x10]);
        bytes[INTERRUPT_PIN] = 1;
        let mut pointer = CAPABILITIES;
        for (at, (id, control)) in capabilities.iter().enumerate() {
            bytes[STATUS] = 0x10;
            let here = 0x40 + 16 * at;
            bytes[pointer] = u8::try_from(here).expect("few");
            bytes[here] = *id;
            bytes[here + 2..here + 4].copy_from_slice(&control.to_le_bytes());
            pointer = here + 1;
        }
        bytes
    }

    #[test]
    fn vectors_and_pins() {
        let config = Config::parse(&space(&[(1, 0), (MSI, 0b0110), (0x10, 0), (MSIX, 0x8009)]));
        let wanted = Config { header_type: Some(0), msix: Some(10), msi: Some(8), pin: Some(1) };
        assert_eq!(config, wanted);
        let mut virtual_function = space(&[(MSIX, 2)]);
        virtual_function[..4].fill(0xff);
        assert_eq!(Config::parse(&virtual_function).msix, Some(3));
        let bare = Config::parse(&space(&[]));
        assert_eq!((bare.msix, bare.msi, bare.pin), (Some(0), Some(0), Some(1)));
        let mut bridge = space(&[(MSI, 0)]);
        bridge[HEADER_TYPE] = 0x81;
        assert_eq!((Config::parse(&bridge).header_type, Config::parse(&bridge).msi), (Some(1), Some(1)));
    }

    #[test]
    fn what_an_ordinary_user_is_not_shown_is_unknown() {
        let whole = space(&[(MSI, 0), (MSIX, 4)]);
        let config = Config::parse(&whole[..64]);
        assert_eq!(config, Config { header_type: Some(0), msix: None, msi: None, pin: Some(1) });
        // Without capabilities the header says it all.
        assert_eq!(Config::parse(&space(&[])[..64]).msix, Some(0));
        // Cut within the list: what was found counts, the rest is unknown.
        assert_eq!((Config::parse(&whole[..0x48]).msi, Config::parse(&whole[..0x48]).msix), (Some(1), None));
    }

    #[test]
    fn lists_that_loop_end() {
        let mut bytes = space(&[(MSI, 0), (9, 0)]);
        bytes[0x51] = 0x40;
        let config = Config::parse(&bytes);
        assert_eq!((config.msi, config.msix), (Some(1), Some(0)));
        bytes[0x41] = 0x40;
        assert_eq!(Config::parse(&bytes).msix, Some(0));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        assert_eq!(Config::parse(&[]), Config::default());
        assert_eq!(Config::parse(&[0xff; 256]), Config::default());
        let mut seed = 1u32;
        for length in 0..=256 {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    seed.to_le_bytes()[3]
                })
                .collect();
            let config = Config::parse(&bytes);
            assert!(config.msix.is_none_or(|n| n <= 2048) && config.msi.is_none_or(|n| n <= 32));
        }
    }
}
