//! The name of a mediated device.

use core::fmt;
use core::str::FromStr;

use crate::Errno;

/// A 128-bit UUID in its one textual form: 32 hexadecimal digits of either case in groups of 8-4-4-4-12, nothing
/// before, between or after them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(u128);

/// The text is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadUuid;

const LENGTH: usize = 36;

impl Uuid {
    /// The UUID whose digits, read as one number, are `value`.
    #[must_use]
    pub const fn from_u128(value: u128) -> Self {
        Self(value)
    }

    /// Its digits as one number.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// Reads the textual form.
    ///
    /// # Errors
    /// [`BadUuid`] for a wrong length, a hyphen out of place, or any byte that is no hexadecimal digit.
    pub const fn parse(text: &[u8]) -> Result<Self, BadUuid> {
        if text.len() != LENGTH {
            return Err(BadUuid);
        }
        let mut value: u128 = 0;
        let mut at = 0;
        while at < LENGTH {
            let byte = text[at];
            if matches!(at, 8 | 13 | 18 | 23) {
                if byte != b'-' {
                    return Err(BadUuid);
                }
            } else {
                let digit = match byte {
                    b'0'..=b'9' => byte - b'0',
                    b'a'..=b'f' => byte - b'a' + 10,
                    b'A'..=b'F' => byte - b'A' + 10,
                    _ => return Err(BadUuid),
                };
                value = value << 4 | digit as u128;
            }
            at += 1;
        }
        Ok(Self(value))
    }
}

impl FromStr for Uuid {
    type Err = BadUuid;

    fn from_str(text: &str) -> Result<Self, BadUuid> {
        Self::parse(text.as_bytes())
    }
}

impl BadUuid {
    /// EINVAL.
    #[must_use]
    pub const fn errno(self) -> Errno {
        Errno::EINVAL
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = self.0;
        let group = |shift: u32, digits: u32| v >> shift & ((1 << (4 * digits)) - 1);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            group(96, 8),
            group(80, 4),
            group(64, 4),
            group(48, 4),
            group(0, 12)
        )
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for BadUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a UUID: expected 8-4-4-4-12 hexadecimal digits")
    }
}

impl core::error::Error for BadUuid {}
