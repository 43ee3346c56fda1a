//! How a VM dies.
//!
//! ```text
//!  Running ─stop_sources─► Silent ─remove_routes─► Unrouted ─remove_buses─► Busless ─stop_vcpus─► Halted
//!          ─destroy_chips─► Chipless ─grace_period─► Unobserved ─free_memory─► Dead
//! ```
//! ```
//! use pollvisor_core::teardown::vm::{Dead, Running};
//! let work = || Ok::<(), ()>(());
//! let silent = Running::new().stop_sources(work).unwrap();
//! let halted = silent.remove_routes(work).unwrap().remove_buses(work).unwrap().stop_vcpus(work).unwrap();
//! let _: Dead = halted.destroy_chips(work).unwrap().grace_period(work).unwrap().free_memory(work).unwrap();
//! ```
//! Memory goes last:
//! ```compile_fail,E0599
//! use pollvisor_core::teardown::vm::Halted;
//! fn too_early(halted: Halted) { let _ = halted.free_memory(|| Ok::<_, ()>(())); }
//! ```

use super::Stuck;

step! {
    /// A VM in use. Made once, with the VM.
    Running,
    /// Every assigned device goes, and every other source of events stops, while the VM can still take one.
    stop_sources => Silent
}

step! {
    /// Nothing raises interrupts any more.
    Silent,
    /// The routing table goes.
    remove_routes => Unrouted
}

step! {
    /// No interrupt has a way any more.
    Unrouted,
    /// The I/O buses go, and the devices on them.
    remove_buses => Busless
}

step! {
    /// An exit of a vCPU finds no device any more.
    Busless,
    /// The vCPUs stop and go.
    stop_vcpus => Halted
}

step! {
    /// No vCPU runs any more.
    Halted,
    /// The interrupt chips go.
    destroy_chips => Chipless
}

step! {
    /// No interrupt can be accepted any more.
    Chipless,
    /// Waits for every poller and worker that may still look at something of this VM.
    grace_period => Unobserved
}

step! {
    /// Nobody looks at anything of this VM any more.
    Unobserved,
    /// The guest's memory is unmapped and freed.
    free_memory => Dead
}

end! {
    /// The VM is gone.
    Dead
}

impl Running {
    /// The token of a new VM.
    #[expect(clippy::new_without_default, reason = "a VM is not had by default")]
    pub const fn new() -> Self {
        Self { by_predecessor: () }
    }
}
