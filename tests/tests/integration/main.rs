//! The integration tests, all in one binary. Those of the interrupt path run on every accelerator that the machine has:
//! `kvm::…` and `software::…`. What cannot run here is ignored, with its reason.
//!
//! `POLLVISOR_REQUIRE`: needs whose absence is a failure. `POLLVISOR_BIN_DIR`: a folder with the two commands, to be tested
//! in place of this build's. `POLLVISOR_DEVICE`: a PCI function that may be taken. It runs from any folder.

mod bench;
mod command;
mod devices;
mod differential;
mod fuzz;
mod harness;
mod hostile;
mod idle;
mod machines;
mod need;
mod pci;
mod platform;
mod poller_dies;
mod races;
mod role;
mod stress;

use harness::Test;
use pollvisor_tests::rig::Accel;
use std::collections::BTreeSet;
use std::process::ExitCode;

fn tests() -> Vec<Test> {
    [
        bench::all(),
        command::cli::tests(),
        command::pinned::tests(),
        devices::tests(),
        differential::tests(),
        fuzz::tests(),
        hostile::tests(),
        idle::tests(),
        machines::tests(),
        pci::tests(),
        platform::tests(),
        poller_dies::tests(),
        races::tests(),
        stress::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The names of the tests, without their accelerators; one that is on several is there once.
fn names() -> Vec<String> {
    let bare = |test: Test| {
        let accel =
            Accel::ALL.iter().find_map(|accel| test.name.strip_prefix(accel.name())?.strip_prefix("::"));
        accel.map_or(test.name.clone(), str::to_owned)
    };
    tests().into_iter().map(bare).collect::<BTreeSet<_>>().into_iter().collect()
}

fn main() -> ExitCode {
    match role::play() {
        Some(code) => code,
        None => harness::main(tests()),
    }
}
