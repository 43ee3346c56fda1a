//! The command `pollvisor-bench`.
#![deny(unsafe_code)]

fn main() -> std::process::ExitCode {
    pollvisor_bench::main()
}
