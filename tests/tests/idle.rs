//! An idle poller makes no system call: counted from outside, by ptrace, for a second.
#![cfg(not(loom))]

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pollvisor_tests::needs_kvm;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// System calls of a traced thread, until `period` is over: entries and exits, half of their sum.
fn count(thread: Pid, period: Duration) -> usize {
    let began = Instant::now();
    let mut stops = 0usize;
    while began.elapsed() < period {
        match waitpid(thread, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)).expect("waitpid") {
            WaitStatus::StillAlive => std::thread::sleep(Duration::from_millis(1)),
            WaitStatus::PtraceSyscall(_) => {
                stops += 1;
                ptrace::syscall(thread, None).expect("go on");
            }
            // The stop we asked for, or a signal that is none of ours.
            _ => ptrace::syscall(thread, None).expect("go on"),
        }
    }
    stops.div_ceil(2)
}

#[test]
fn an_idle_poller_makes_no_system_call() {
    needs_kvm!();
    let mut child = Command::new(env!("CARGO_BIN_EXE_idle_poller"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("idle_poller");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("its thread");
    let thread = Pid::from_raw(line.trim().parse().expect("a thread's number"));
    // What it does to start is over; so is hooking, which answers the attaches before the line was printed.
    std::thread::sleep(Duration::from_millis(100));
    ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("seize");
    ptrace::interrupt(thread).expect("interrupt");
    let idle = count(thread, Duration::from_secs(1));
    let mut input = child.stdin.take().expect("stdin");
    writeln!(input, "signal").expect("a line");
    let busy = count(thread, Duration::from_millis(300));
    drop(input);
    // Its last calls, until it is gone; then the process itself.
    while !matches!(
        waitpid(thread, Some(WaitPidFlag::__WALL)),
        Err(_) | Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(_, Signal::SIGKILL, _))
    ) {
        let _gone = ptrace::syscall(thread, None);
    }
    child.wait().expect("its end");
    println!("{idle} system calls in a second without events, {busy} for one event");
    assert_eq!(idle, 0);
    // KVM_SIGNAL_MSI, read, io_submit: the counter counts.
    assert!((3..=6).contains(&busy), "{busy}");
}
