//! A guest that writes at random: what it may reach is given, what it does there hangs on a number alone.

use super::puppet::Puppet;
use super::{SCRIBBLE, SCRIBBLE_TABLE, STACKS, outside};
use crate::error::{Error, Result};
use crate::sys::guest_scribble::{PLACE_WORDS, SHAPES, TABLE_WORDS, image};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress};

/// What there is at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Memory space.
    Memory = 0,
    /// I/O ports.
    Ports = 1,
    /// The LAPIC's end of interrupt, by its MSR; address, mask and shapes are of no use.
    EndOfInterrupt = 2,
}

/// What a value looks like: random bits where `random` has ones, and all of `set`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Where the random bits are.
    pub random: u64,
    /// What is set beside.
    pub set: u64,
}

/// Where to write and read.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// What is there.
    pub what: What,
    /// The address, or port.
    pub base: u64,
    /// What is added to it: random bits where this has ones. Below 4 GiB.
    pub mask: u32,
    /// What is written: one of these, 1 to 16.
    pub shapes: &'a [Shape],
}

impl Puppet {
    /// Lets the guest make `accesses` random ones, three writes to one read, of 1 to 8 bytes, all that `seed` says.
    /// Devices interrupt it meanwhile.
    ///
    /// # Errors
    /// When it is not done within `patience`: what it wrote may have stopped it. No shapes, or more than fit.
    pub fn scribble(&self, seed: u64, accesses: u64, places: &[Place<'_>], patience: Duration) -> Result<()> {
        let table = table(seed, accesses, places)?;
        let bytes: Vec<u8> = table.iter().flat_map(|word| word.to_le_bytes()).collect();
        if bytes.len() as u64 > STACKS - SCRIBBLE_TABLE {
            return Err(Error::new(format!("{} places are more than fit", places.len())));
        }
        let memory = self.guest().memory();
        memory.write_slice(image(), GuestAddress(SCRIBBLE)).map_err(outside)?;
        memory.write_slice(&bytes, GuestAddress(SCRIBBLE_TABLE)).map_err(outside)?;
        self.call(SCRIBBLE, SCRIBBLE_TABLE, patience).map(drop)
    }
}

fn table(seed: u64, accesses: u64, places: &[Place<'_>]) -> Result<Vec<u64>> {
    // The generator stays at 0 for ever.
    let mut table = vec![seed.max(1), accesses, places.len() as u64];
    let first_shape = TABLE_WORDS + places.len() * PLACE_WORDS;
    for (n, place) in places.iter().enumerate() {
        let shapes = first_shape + n * 2 * SHAPES;
        table.extend([place.base, place.mask.into(), place.what as u64, 8 * shapes as u64]);
    }
    for place in places {
        if place.shapes.is_empty() || place.shapes.len() > SHAPES {
            return Err(Error::new(format!("{} shapes; 1 to {SHAPES} go", place.shapes.len())));
        }
        let all = place.shapes.iter().cycle().take(SHAPES);
        table.extend(all.flat_map(|shape| [shape.random, shape.set]));
    }
    if places.is_empty() {
        return Err(Error::new("no place to scribble at"));
    }
    Ok(table)
}
