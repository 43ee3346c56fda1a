//! PCI: addresses of the host's functions, and the bus that the guest sees.
//!
//! ```text
//!  guest's access ──► RootBus ──► Function ──► ConfigSpace ──► HostConfig (the real device's registers)
//!                                                  │ Written: decoding, messages, command, reset
//!                                                  ▼
//!                                   the Function's owner: mappings, routes, a reset
//! ```
//! Nothing here makes a system call, and whatever the guest writes costs a bounded amount of work.

mod address;
mod bar;
mod bus;
mod config;
mod windows;

pub use address::Bdf;
pub use bar::{Bar, BarKind, PAGE, Pages, pages};
pub use bus::{ECAM_SIZE, Function, HOST_BRIDGE_ID, RootBus, SLOTS};
pub use config::{CONFIG_SIZE, ConfigSpace, HostConfig, MsixCap, Options, Place, ROM, Written};
pub use windows::Windows;

use std::ops::Range;

/// An access in naturally aligned pieces of 4, 2 and 1 bytes: where each begins, and which of the access's bytes it is.
fn aligned(offset: u64, length: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset.checked_add(done as u64)?;
        let size = [4, 2, 1].into_iter().find(|n| at.is_multiple_of(*n as u64) && *n <= length - done)?;
        done += size;
        Some((at, done - size..done))
    })
}

#[cfg(test)]
mod tests {
    use super::aligned;

    #[test]
    fn pieces_are_aligned() {
        let pieces = |offset, length| aligned(offset, length).map(|(at, range)| (at, range.len())).collect();
        let expect: [(_, _, Vec<_>); 6] = [
            (8, 4, vec![(8, 4)]),
            (8, 8, vec![(8, 4), (12, 4)]),
            (7, 4, vec![(7, 1), (8, 2), (10, 1)]),
            (6, 4, vec![(6, 2), (8, 2)]),
            (1, 0, vec![]),
            (u64::MAX - 1, 4, vec![(u64::MAX - 1, 2)]),
        ];
        for (offset, length, wanted) in expect {
            let got: Vec<_> = pieces(offset, length);
            assert_eq!(got, wanted);
        }
    }
}
