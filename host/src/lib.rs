//! pollvisor host.
