//! The host side of pollvisor: raw system calls, the kernel's objects, the threads of the interrupt path.
#![deny(unsafe_code)]

pub mod error;
#[allow(unsafe_code, reason = "the one floor of system calls and shared memory")]
pub mod sys;

pub use error::{Error, Result};
