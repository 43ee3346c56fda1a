//! A poller with nothing to do, for a test that counts its system calls from outside. Prints its thread's number; a
//! line on standard input makes one signal, the end of input ends it.

#[cfg(not(loom))]
fn main() {
    use pollvisor::session::Signals;
    use pollvisor_tests::rig::{POLLED, accepting};
    use std::io::Write;

    let (session, mut signaller) = accepting(8, Signals::Eventfd, POLLED);
    let thread = session.poller().expect("a poller").thread_id();
    println!("{thread}");
    std::io::stdout().flush().expect("stdout");
    for line in std::io::stdin().lines() {
        line.expect("stdin");
        signaller.signal(0);
    }
    session.stop().expect("stop");
}

#[cfg(loom)]
fn main() {}
