//! The command `pollvisor`.
#![deny(unsafe_code)]

fn main() -> std::process::ExitCode {
    pollvisor::command::main()
}
