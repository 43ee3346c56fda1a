//! A PCI function's address.

use std::fmt;
use std::str::FromStr;

/// `domain:bus:device.function`, as Linux writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    /// The segment, 16 bits on real machines, 32 where a bridge driver invents them (VMD).
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device, 0 to 31.
    pub device: u8,
    /// The function, 0 to 7.
    pub function: u8,
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl FromStr for Bdf {
    type Err = String;

    /// `0000:01:00.0`, or `01:00.0` in domain 0.
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
            let hex = |text: &str, longest: usize| {
                let digits = !text.is_empty() && text.len() <= longest;
                let digits = digits && text.bytes().all(|b| b.is_ascii_hexdigit());
                digits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
            };
            let byte = |text, below| hex(text, 2).and_then(|n| u8::try_from(n).ok()).filter(|n| *n < below);
            Some(Self {
                domain: hex(domain, 8)?,
                bus: hex(bus, 2).and_then(|n| u8::try_from(n).ok())?,
                device: byte(device, 32)?,
                function: byte(function, 8)?,
            })
        };
        parse().ok_or_else(|| format!("`{text}` is not a PCI address like 0000:01:00.0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let wanted = Bdf { domain: 0, bus: 1, device: 0x1f, function: 7 };
        assert_eq!("01:1f.7".parse(), Ok(wanted));
        assert_eq!("0000:01:1f.7".parse(), Ok(wanted));
        assert_eq!("10000:01:1f.7".parse(), Ok(Bdf { domain: 0x10000, ..wanted }));
        assert_eq!(wanted.to_string(), "0000:01:1f.7");
        for wrong in [
            "",
            ".",
            "1",
            "01:00",
            "01:20.0",
            "01:00.8",
            "x:01:00.0",
            "0:0:0:0.0",
            "+1:00.0",
            ":00.0",
            "01:00.",
        ] {
            assert!(wrong.parse::<Bdf>().is_err(), "{wrong}");
        }
    }
}
