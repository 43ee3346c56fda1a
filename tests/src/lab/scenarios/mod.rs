//! The scenarios, by subject.

pub mod dma;
pub mod registers;
