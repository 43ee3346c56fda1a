//! The scenarios, by subject.

pub mod dma;
pub mod guest;
pub mod registers;
