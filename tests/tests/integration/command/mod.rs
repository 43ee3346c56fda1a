//! The command `pollvisor`, as a user has it.

pub mod cli;
pub mod pinned;
