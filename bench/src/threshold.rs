//! What is done when a latency is beyond `--threshold`, as rtla has it: actions in their order, none after one that failed.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pollvisor::error::{Error, Result};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

/// The flags of a threshold.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ThresholdArgs {
    /// The longest signal → accepted that is all right, in nanoseconds: a longer one ends the run with exit code 2
    #[arg(long, value_name = "NS")]
    pub threshold: Option<u64>,
    /// What to do at a latency beyond the threshold; given several times, one after the other, until one fails.
    ///
    /// trace[,file=FILE]: writes the last 4096 events of every poller as a trace for ui.perfetto.dev [default FILE:
    /// pollvisor-bench_trace.json]. They are recorded with this action only; `overhead` says what that costs.
    ///
    /// signal,num=N,pid=PID|parent: sends a signal.
    ///
    /// shell,command=COMMAND: runs a command, its output on stderr.
    ///
    /// continue: the run goes on, and the next one beyond it is dealt with in the same way; the exit code is 2 all the same.
    /// Only as the last one. Signals go on meanwhile, so a slow command costs the run its completeness.
    #[arg(long, value_name = "ACTION", requires = "threshold", verbatim_doc_comment)]
    pub on_threshold: Vec<Action>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Writes the last events into a file.
    Trace(PathBuf),
    /// Sends a signal; without a process to the parent.
    Signal(Signal, Option<Pid>),
    /// Runs a command.
    Shell(String),
    /// Goes on.
    Continue,
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, rest) = text.split_once(',').map_or((text, None), |(name, rest)| (name, Some(rest)));
        match (name, rest) {
            ("trace", None) => Ok(Self::Trace("pollvisor-bench_trace.json".into())),
            ("trace", Some(rest)) => match rest.strip_prefix("file=") {
                Some(file) if !file.is_empty() => Ok(Self::Trace(file.into())),
                _ => Err(format!("trace,`{rest}`: file=FILE, or nothing")),
            },
            ("signal", rest) => signal(rest.unwrap_or_default()),
            ("shell", rest) => match rest.and_then(|rest| rest.strip_prefix("command=")) {
                Some(command) if !command.is_empty() => Ok(Self::Shell(command.into())),
                _ => Err("shell: command=COMMAND is missing".into()),
            },
            ("continue", None) => Ok(Self::Continue),
            ("continue", Some(_)) => Err("continue takes nothing".into()),
            _ => Err(format!("`{name}` is none of trace, signal, shell and continue")),
        }
    }
}

/// `num=N,pid=PID|parent`.
fn signal(text: &str) -> std::result::Result<Action, String> {
    let (mut number, mut process) = (None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("num", value)) => {
                let known = value.parse().ok().and_then(|number: i32| Signal::try_from(number).ok());
                number = Some(known.ok_or_else(|| format!("num=`{value}` is no signal's number"))?);
            }
            Some(("pid", "parent")) => process = Some(None),
            Some(("pid", value)) => {
                // 0 and less would be groups of processes.
                let id = value.parse().ok().filter(|id: &i32| *id > 0);
                process =
                    Some(Some(Pid::from_raw(id.ok_or_else(|| {
                        format!("pid=`{value}` is no process's number, and not `parent`")
                    })?)));
            }
            _ => return Err(format!("signal,`{part}`: num=N and pid=PID or pid=parent")),
        }
    }
    match (number, process) {
        (Some(number), Some(process)) => Ok(Action::Signal(number, process)),
        _ => Err("signal: num=N and pid=PID or pid=parent are both needed".into()),
    }
}

/// The threshold of a run, and whether it was hit.
#[derive(Debug)]
pub struct Threshold {
    ns: Option<u64>,
    actions: Vec<Action>,
    hit: Cell<bool>,
    failed: RefCell<Vec<String>>,
}

impl Threshold {
    /// Not hit yet.
    ///
    /// # Errors
    /// A file that cannot be written, or an action after the one that ends them.
    pub fn new(args: &ThresholdArgs) -> Result<Self> {
        let actions = args.on_threshold.clone();
        if let Some(at) = actions.iter().position(|action| *action == Action::Continue)
            && at + 1 < actions.len()
        {
            return Err(Error::new("--on-threshold continue: nothing after it would be done")
                .remedy("continue as the last one"));
        }
        actions.iter().try_for_each(|action| match action {
            Action::Trace(file) => writable(file),
            _ => Ok(()),
        })?;
        Ok(Self { ns: args.threshold, actions, hit: Cell::new(false), failed: RefCell::default() })
    }

    /// The longest latency that is all right, in nanoseconds.
    #[must_use]
    pub fn ns(&self) -> u64 {
        self.ns.unwrap_or(u64::MAX)
    }

    /// Whether events have to be recorded.
    #[must_use]
    pub fn records(&self) -> bool {
        self.actions.iter().any(|action| matches!(action, Action::Trace(_)))
    }

    /// Whether a latency was beyond it.
    #[must_use]
    pub fn is_hit(&self) -> bool {
        self.hit.get()
    }

    /// Whether the run is to end for it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.hit.get() && !self.actions.contains(&Action::Continue)
    }

    /// What could not be done.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.failed.borrow().clone()
    }

    /// A latency was beyond it: does what was asked. `trace` makes the events' text.
    pub fn act(&self, trace: impl Fn() -> String) {
        self.hit.set(true);
        let done = self.actions.iter().try_for_each(|action| match action {
            Action::Trace(file) => write(file, &trace()),
            Action::Signal(signal, process) => send(*signal, *process),
            Action::Shell(command) => shell(command),
            Action::Continue => Ok(()),
        });
        if let Err(error) = done {
            self.failed.borrow_mut().push(error.context("--on-threshold").to_string());
        }
    }
}

/// Whether a file can be written, known before anything is measured. Leaves none behind, and what there is as it is.
fn writable(path: &Path) -> Result<()> {
    let there = path.exists();
    let opened = File::options().create(true).append(true).open(path);
    opened.map_err(|e| {
        Error::os(format!("creating {}", path.display()), &e)
            .remedy("--on-threshold trace,file=FILE in a writable folder")
    })?;
    if !there {
        // It is made again when it is needed.
        let _gone = std::fs::remove_file(path);
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Error::os(format!("writing the trace {}", path.display()), &e))
}

fn send(signal: Signal, process: Option<Pid>) -> Result<()> {
    let process = process.unwrap_or_else(|| Pid::from_raw(i32::try_from(parent_id()).unwrap_or(0)));
    if process.as_raw() <= 0 {
        return Err(Error::new("there is no parent to signal"));
    }
    kill(process, signal).map_err(|e| {
        Error::os(
            format!("sending {signal} to process {process}"),
            &std::io::Error::from_raw_os_error(e as i32),
        )
    })
}

/// stdout holds the result and nothing else, so the command's goes to stderr.
fn shell(command: &str) -> Result<()> {
    let what = || format!("running `{command}`");
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map_err(|e| Error::os(what(), &e))?;
    let status = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).stdout(stderr).status();
    let status = status.map_err(|e| Error::os(what(), &e))?;
    if status.success() { Ok(()) } else { Err(Error::new(format!("{}: {status}", what()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(text: &str) -> std::result::Result<Action, String> {
        text.parse()
    }

    fn threshold(actions: &[&str]) -> Result<Threshold> {
        let on_threshold = actions.iter().map(|text| action(text).unwrap()).collect();
        Threshold::new(&ThresholdArgs { threshold: Some(5), on_threshold })
    }

    #[test]
    fn actions_are_written_as_rtlas() {
        assert_eq!(action("trace"), Ok(Action::Trace("pollvisor-bench_trace.json".into())));
        assert_eq!(action("trace,file=a,b"), Ok(Action::Trace("a,b".into())));
        assert_eq!(action("signal,num=2,pid=parent"), Ok(Action::Signal(Signal::SIGINT, None)));
        let to = Some(Pid::from_raw(77));
        assert_eq!(action("signal,pid=77,num=15"), Ok(Action::Signal(Signal::SIGTERM, to)));
        assert_eq!(action("shell,command=echo a,b=c"), Ok(Action::Shell("echo a,b=c".into())));
        assert_eq!(action("continue"), Ok(Action::Continue));
        for wrong in [
            "",
            "tracing",
            "trace,",
            "trace,file=",
            "trace,to=x",
            "signal",
            "signal,num=2",
            "signal,pid=1",
            "signal,num=0,pid=1",
            "signal,num=999,pid=1",
            "signal,num=2,pid=0",
            "signal,num=2,pid=-1",
            "signal,num=2,pid=1,to=3",
            "shell",
            "shell,command=",
            "shell,echo",
            "continue,",
        ] {
            assert!(action(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn they_are_done_in_their_order_until_one_fails() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name).display().to_string();
        let (first, second, trace) = (place("first"), place("second"), place("trace"));
        let touch = |file: &str| format!("shell,command=test -e {trace} && touch {file}");
        let threshold = threshold(&[
            &format!("trace,file={trace}"),
            &touch(&first),
            "shell,command=exit 3",
            &touch(&second),
        ]);
        let threshold = threshold.unwrap();
        assert!(!Path::new(&trace).exists(), "not before it is needed");
        assert!(threshold.records() && !threshold.is_hit() && !threshold.is_over());
        threshold.act(|| "events".into());
        assert!(threshold.is_hit() && threshold.is_over());
        assert_eq!(std::fs::read_to_string(&trace).unwrap(), "events");
        assert!(Path::new(&first).exists() && !Path::new(&second).exists());
        let failures = threshold.failures();
        assert!(failures.len() == 1 && failures[0].contains("exit 3"), "{failures:?}");
    }

    #[test]
    fn continue_goes_on_and_is_the_last() {
        let goes_on = threshold(&["continue"]).unwrap();
        goes_on.act(String::new);
        assert!(
            goes_on.is_hit() && !goes_on.is_over() && goes_on.failures().is_empty() && !goes_on.records()
        );
        assert!(threshold(&["continue", "trace"]).is_err());
    }

    #[test]
    fn a_signal_reaches_its_process_and_a_missing_one_is_said() {
        use std::os::unix::process::ExitStatusExt;
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let to = format!("signal,num=15,pid={}", child.id());
        let there = threshold(&[&to]).unwrap();
        there.act(String::new);
        assert_eq!(child.wait().unwrap().signal(), Some(15));
        assert!(there.failures().is_empty());
        // Beyond the greatest number that a process can have.
        let beyond = threshold(&["signal,num=15,pid=2147483647"]).unwrap();
        beyond.act(String::new);
        assert!(beyond.failures()[0].contains("ESRCH"), "{:?}", beyond.failures());
    }

    #[test]
    fn a_trace_that_cannot_be_written_is_refused_and_an_old_one_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = format!("trace,file={}", folder.path().join("none").join("x").display());
        assert!(threshold(&[&nowhere]).unwrap_err().to_string().contains("ENOENT"));
        let old = folder.path().join("old");
        std::fs::write(&old, "old").unwrap();
        threshold(&[&format!("trace,file={}", old.display())]).unwrap();
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "old");
    }
}
