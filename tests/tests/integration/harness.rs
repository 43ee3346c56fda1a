//! The tests as data, and what becomes of each: it passes, it fails, or it is ignored because this machine lacks what it
//! needs, which is said with it and counted.
//!
//! `POLLVISOR_REQUIRE=kvm,cpus` makes the absence of a need a failure.

use crate::need::{Need, required};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use pollvisor_tests::note;
use pollvisor_tests::rig::Accel;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError, RwLock};

/// One test.
pub struct Test {
    /// As the runner shows it: the accelerator, the module, the function.
    pub name: String,
    needs: Vec<Need>,
    /// Whether nothing else may run meanwhile.
    alone: bool,
    body: Box<dyn FnOnce() + Send>,
}

/// The path of a module, without this binary's name.
fn place(module: &str) -> &str {
    module.split_once("::").map_or("", |(_, rest)| rest)
}

impl Test {
    /// One that shares the machine.
    pub fn shared(module: &str, name: &str, needs: &[Need], body: fn()) -> Vec<Self> {
        let name = format!("{}::{name}", place(module));
        vec![Self { name, needs: needs.to_vec(), alone: false, body: Box::new(body) }]
    }

    /// One that has the machine to itself.
    pub fn alone(module: &str, name: &str, needs: &[Need], body: fn()) -> Vec<Self> {
        Self::shared(module, name, needs, body).into_iter().map(|test| Self { alone: true, ..test }).collect()
    }

    /// One on KVM alone, of what only KVM has. It has the machine to itself: it has threads enough for it, and two pollers
    /// on a CPU wait for each other.
    pub fn kvm(module: &str, name: &str, needs: &[Need], body: fn()) -> Vec<Self> {
        vec![Self::on(Accel::Kvm, module, name, needs, body)]
    }

    /// One on every accelerator, with the machine to itself.
    pub fn each(module: &str, name: &str, needs: &[Need], body: fn(Accel)) -> Vec<Self> {
        Accel::ALL.map(|accel| Self::on(accel, module, name, needs, move || body(accel))).into()
    }

    fn on(
        accel: Accel,
        module: &str,
        name: &str,
        needs: &[Need],
        body: impl FnOnce() + Send + 'static,
    ) -> Self {
        let name = format!("{}::{}::{name}", accel.name(), place(module));
        let needs = [&[Need::Accel(accel)], needs].concat();
        Self { name, needs, alone: true, body: Box::new(body) }
    }
}

/// The tests of a module: how they run, what they need, which they are. A function that is in no such list is dead code, of
/// which the compiler warns.
macro_rules! tests {
    ($($how:ident $needs:expr => $($name:ident),+ $(,)?;)+) => {
        pub fn tests() -> Vec<$crate::harness::Test> {
            let mut all = Vec::new();
            $($(all.extend($crate::harness::Test::$how(module_path!(), stringify!($name), &$needs, $name));)+)+
            all
        }
    };
}
pub(crate) use tests;

/// Held for writing by a test that is alone.
static MACHINE: RwLock<()> = RwLock::new(());
/// Those that were ignored, by reason.
static IGNORED: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

impl Test {
    fn run(self, required: &[String]) -> Result<Completion, Failed> {
        for need in &self.needs {
            let Some(why) = need.missing() else { continue };
            let why = format!("needs {}: {}", need.name(), why.replace('\n', " "));
            if required.iter().any(|name| name == need.name()) {
                return Err(format!("{}: {why}; POLLVISOR_REQUIRE names {}", self.name, need.name()).into());
            }
            let mut ignored = IGNORED.lock().unwrap_or_else(PoisonError::into_inner);
            *ignored.entry(why.clone()).or_default() += 1;
            return Ok(Completion::ignored_with(why));
        }
        let (_shared, _alone);
        if self.alone {
            _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
        } else {
            _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        }
        // In a thread of its own, as it may tie it to a CPU.
        let body = move || (catch_unwind(AssertUnwindSafe(self.body)), note::taken());
        let thread = std::thread::Builder::new().name(self.name).spawn(body).expect("a thread");
        let (done, notes) = thread.join().expect("what it panics with is caught");
        let Err(panic) = done else { return Ok(Completion::Completed) };
        let what = panic.downcast_ref::<String>().map(String::as_str);
        let what = what.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        Err([notes, vec![what.to_string()]].concat().join("\n").into())
    }
}

/// The words that name tests, and the arguments without them: libtest-mimic takes one, Cargo's own runner several.
fn filters(arguments: impl Iterator<Item = String>) -> (Vec<String>, Vec<String>) {
    const WITH_VALUE: [&str; 6] = ["--test-threads", "--logfile", "--skip", "--color", "--format", "-Z"];
    // The first is this program's name.
    let (mut rest, mut filters, mut is_value) = (Vec::new(), Vec::new(), true);
    for argument in arguments {
        if is_value || argument.starts_with('-') {
            is_value = !is_value && WITH_VALUE.contains(&argument.as_str());
            rest.push(argument);
        } else {
            filters.push(argument);
        }
    }
    (filters, rest)
}

/// Runs those that the arguments name.
pub fn main(mut tests: Vec<Test>) -> ExitCode {
    let required = match required() {
        Ok(required) => required,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let (mut filters, rest) = filters(std::env::args());
    let mut arguments = Arguments::from_iter(rest);
    if filters.len() == 1 {
        arguments.filter = filters.pop();
    } else if !filters.is_empty() {
        let named = |name: &str, filter: &String| {
            if arguments.exact { name == filter } else { name.contains(filter.as_str()) }
        };
        tests.retain(|test| filters.iter().any(|filter| named(&test.name, filter)));
    }
    if !arguments.nocapture {
        note::keep();
    }
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    let trial = |test: Test| {
        let required = required.clone();
        Trial::ignorable_test(test.name.clone(), move || test.run(&required))
    };
    let conclusion = libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect());
    for (why, count) in IGNORED.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("ignored, {count} tests: {why}");
    }
    conclusion.exit_code()
}
