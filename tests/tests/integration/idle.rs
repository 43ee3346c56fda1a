//! An idle poller makes no system call: counted from outside, by ptrace, for a second, in which it passes over its sources.

use crate::harness::tests;
use crate::need::Need;
use crate::role::{self, Role};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pollvisor::session::Signals;
use pollvisor_tests::note;
use pollvisor_tests::rig::{Accel, POLLED, accepting};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

tests! {
    each [Need::Ptrace] => an_idle_poller_makes_no_system_call;
}

/// The child: a poller with nothing to do. It says its thread's number; for a line of input it makes a signal or says how
/// often the poller has passed.
pub fn poller(accel: Accel) {
    let (session, mut signaller) = accepting(accel, 8, Signals::Eventfd, POLLED);
    let poller = session.poller().expect("a poller");
    println!("{}", poller.thread_id());
    for line in std::io::stdin().lines() {
        match line.expect("stdin").as_str() {
            "signal" => drop(signaller.signal(0)),
            "passes" => println!("{}", poller.passes()),
            other => panic!("{other}"),
        }
    }
    session.stop().expect("stop");
}

/// The child, as its parent has it.
struct Watched {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Watched {
    fn start(accel: Accel) -> Self {
        let mut command = role::child(Role::IdlePoller, accel);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a poller");
        let input = child.stdin.take().expect("stdin");
        let output = BufReader::new(child.stdout.take().expect("stdout"));
        Self { child, input, output }
    }

    fn say(&mut self, word: &str) {
        writeln!(self.input, "{word}").expect("a line");
    }

    fn number(&mut self) -> u64 {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        line.trim().parse().expect("a number")
    }

    fn passes(&mut self) -> u64 {
        self.say("passes");
        self.number()
    }
}

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

fn an_idle_poller_makes_no_system_call(accel: Accel) {
    let mut watched = Watched::start(accel);
    let thread = Pid::from_raw(watched.number().try_into().expect("a thread's number"));
    // What it does to start is over; so is hooking, which answers the attaches before the line was printed.
    std::thread::sleep(Duration::from_millis(100));
    ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("seize");
    ptrace::interrupt(thread).expect("interrupt");
    let stopped = count(thread, Duration::from_millis(100));
    let before = watched.passes();
    let idle = count(thread, Duration::from_secs(1));
    let passes = watched.passes() - before;
    // KVM_SIGNAL_MSI, read, io_submit: the counter counts. A store has no call to inject.
    let least = 2 + usize::from(accel == Accel::Kvm);
    watched.say("signal");
    let (began, mut busy) = (Instant::now(), 0);
    while busy < least && began.elapsed() < Duration::from_secs(30) {
        busy += count(thread, Duration::from_millis(50));
    }
    busy += count(thread, Duration::from_millis(100));
    let Watched { mut child, input, output: _open } = watched;
    drop(input);
    // Its last calls, until it is gone; then the process itself.
    while !matches!(
        waitpid(thread, Some(WaitPidFlag::__WALL)),
        Err(_) | Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(_, Signal::SIGKILL, _))
    ) {
        let _gone = ptrace::syscall(thread, None);
    }
    child.wait().expect("its end");
    note!("{idle} system calls in {passes} passes of a second without events, {busy} for one event");
    assert_eq!((stopped, idle), (0, 0));
    // One that has no CPU, or sleeps, makes no call either.
    assert!(passes >= 1000, "{passes} passes in a second: it did not run");
    assert!((least..=least + 3).contains(&busy), "{busy}");
}
