//! PCI: addresses of the host's functions, and the bus that the guest sees.

mod address;

pub use address::Bdf;
