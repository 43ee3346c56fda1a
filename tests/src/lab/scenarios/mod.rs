//! The scenarios, by subject.

pub mod benchmark;
pub mod config;
pub mod dma;
pub mod errors;
pub mod guest;
pub mod hostile;
pub mod kvm;
pub mod life;
pub mod linux;
pub mod mdev;
pub mod motion;
pub mod refusals;
pub mod registers;
pub mod sibling;
