//! The orders in which things end, as types: a step cannot be made before its predecessor, nor twice.
//!
//! | what | order |
//! |---|---|
//! | [`vm`] | stop sources → routes → buses → vCPUs → chips → grace period → memory |
//! | [`device`] | SET_IRQS disable → irqfd or lane → route → GSI → BARs → device → KVM-VFIO group → container |
//! | [`irq`] | disable → wait → free → disable MSI → unregister the ack → lower the line |
//!
//! Each token is what its predecessor returned and is used up by its step, which runs the caller's work. A step
//! whose work fails gives the token back in [`Stuck`]: it may be tried again, and otherwise what comes after it
//! stays standing, because freeing memory under a vCPU that did not stop is worse than leaking it.
//!
//! A step before its predecessor does not compile:
//! ```compile_fail,E0599
//! use pollvisor_core::teardown::vm::Running;
//! Running::new().remove_routes(|| Ok::<_, ()>(())).unwrap();
//! ```
//! Nor does a step made twice:
//! ```compile_fail,E0382
//! use pollvisor_core::teardown::vm::Running;
//! let running = Running::new();
//! let _ = running.stop_sources(|| Ok::<_, ()>(()));
//! let _ = running.stop_sources(|| Ok::<_, ()>(()));
//! ```
//! Nor a token out of nothing, or out of another one:
//! ```compile_fail,E0451
//! use pollvisor_core::teardown::vm::Unobserved;
//! let _ = Unobserved { by_predecessor: () };
//! ```
//! ```compile_fail,E0308
//! use pollvisor_core::teardown::vm::Silent;
//! fn twice(token: &Silent) -> (Silent, Silent) { (token.clone(), token.clone()) }
//! ```

/// Makes one token and its one step to the next.
macro_rules! step {
    ($(#[$state:meta])* $from:ident, $(#[$how:meta])* $step:ident => $to:ident) => {
        $(#[$state])*
        #[derive(Debug, PartialEq, Eq)]
        #[must_use = "the steps from here on are still to be made"]
        pub struct $from {
            by_predecessor: (),
        }

        impl $from {
            $(#[$how])*
            ///
            /// # Errors
            /// [`Stuck`] with this token when `work` fails.
            pub fn $step<E>(self, work: impl FnOnce() -> Result<(), E>) -> Result<$to, Stuck<Self, E>> {
                match work() {
                    Ok(()) => Ok($to { by_predecessor: () }),
                    Err(error) => Err(Stuck { at: self, error }),
                }
            }
        }
    };
}

/// Makes the last token.
macro_rules! end {
    ($(#[$state:meta])* $end:ident) => {
        $(#[$state])*
        #[derive(Debug, PartialEq, Eq)]
        pub struct $end {
            by_predecessor: (),
        }
    };
}

pub mod device;
pub mod irq;
#[cfg(all(test, not(loom)))]
mod tests;
pub mod vm;

/// The work of a step failed, and the order stands where it stood.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the token in it is the only way on; dropping it leaves the rest standing"]
pub struct Stuck<S, E> {
    /// The token, to try again.
    pub at: S,
    /// What the work said.
    pub error: E,
}
