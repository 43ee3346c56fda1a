//! Reading the real device's registers, once, when the space is made.

use super::HostConfig;
use crate::error::Result;

pub(super) struct Device<'a>(pub &'a dyn HostConfig);

impl Device<'_> {
    pub fn u8(&self, at: usize) -> Result<u8> {
        let [byte] = self.read(at)?;
        Ok(byte)
    }

    pub fn u16(&self, at: usize) -> Result<u16> {
        self.read(at).map(u16::from_le_bytes)
    }

    pub fn u32(&self, at: usize) -> Result<u32> {
        self.read(at).map(u32::from_le_bytes)
    }

    fn read<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        // Beyond 16 bits there is no register; the device will say so.
        let offset = u16::try_from(at).unwrap_or(u16::MAX);
        self.0.read(offset, &mut bytes).map_err(|error| error.context("the device's configuration space"))?;
        Ok(bytes)
    }
}
