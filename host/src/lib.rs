//! The host side of pollvisor: raw system calls, the kernel's objects, the threads of the interrupt path.
#![deny(unsafe_code)]

pub mod accel;
pub mod assign;
pub mod boot;
pub mod bus;
pub mod chips;
pub mod cli;
pub mod clock;
pub mod command;
mod complaints;
pub mod devices;
pub mod error;
pub mod flight;
pub mod guest;
pub mod interrupts;
pub mod legacy;
pub mod machine;
pub mod pci;
pub mod pin;
pub mod platform;
pub mod poller;
pub mod record;
pub mod run;
pub mod session;
pub mod source;
#[allow(unsafe_code, reason = "the one floor of system calls and shared memory")]
pub mod sys;
mod workers;

pub use error::{Error, Result};
