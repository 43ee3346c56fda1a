//! No C library, no start-up code: what core does not bring is not there.

fn main() {
    println!("cargo:rustc-link-arg-bins=-nostdlib");
    println!("cargo:rustc-link-arg-bins=-nostartfiles");
    println!("cargo:rustc-link-arg-bins=-static");
    // Nobody would relocate it.
    println!("cargo:rustc-link-arg-bins=-no-pie");
}
