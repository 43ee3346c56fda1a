//! The machines that the scenarios run in: `tests/lab/lab run` with the files and options that they need.

use super::Lab;
use super::boot::{Boot, boot};
use crate::lab::scenarios::kvm;
use crate::lab::{Need, Scenario, linux};
use pollvisor::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Seconds for one scenario, and what a machine may take beside.
const LIMIT: u64 = 200;
const BESIDE: u64 = 60;

/// The options of `tests/lab/run`.
#[derive(Debug, Default, Clone, clap::Args)]
pub struct Options {
    /// The lab's kernel: 6.12, 6.1 or iommufd.
    #[arg(long, default_value = "6.12")]
    pub kernel: String,
    /// More kernel parameters.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// All CPUs in one thread of QEMU, also for scenarios with a guest.
    #[arg(long)]
    pub single: bool,
    /// Seconds for one machine; else 60, and 200 for each of its scenarios.
    #[arg(long)]
    pub timeout: Option<u64>,
    /// CPUs of the machine.
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Its memory, as QEMU's -m takes it.
    #[arg(long)]
    pub mem: Option<String>,
    /// Where the last machine's console log goes.
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// More arguments for QEMU, split at blanks.
    #[arg(long, allow_hyphen_values = true)]
    pub qemu: Option<String>,
}

/// What all of them share.
pub struct Machine {
    options: Options,
    /// The script, and the folder that it is in.
    script: PathBuf,
    log: PathBuf,
    /// Goes with this program.
    folder: PathBuf,
    /// Beside the two commands: for all scenarios, and for Linux as a guest.
    files: Vec<PathBuf>,
    linux: Vec<PathBuf>,
}

impl Machine {
    /// Builds and fetches what the scenarios chosen need.
    pub fn new(chosen: &[&'static Scenario], options: &Options) -> Result<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let script = source.join("lab/lab");
        let cache = cache()?;
        // The script removes those whose process is gone.
        let folder = cache.join(format!("run.{}", std::process::id()));
        run(lab(&script).args(["fetch", &options.kernel]))?;
        std::fs::create_dir_all(&folder).map_err(|e| Error::os(folder.display().to_string(), &e))?;
        let mut machine = Self {
            options: options.clone(),
            log: options.log.clone().unwrap_or_else(|| cache.join("console.log")),
            script,
            files: programs()?,
            linux: Vec::new(),
            folder,
        };
        let needs = |need| chosen.iter().any(|scenario| scenario.needs.contains(&need));
        if needs(Need::Benchmark) {
            run(cargo().args(["build", "--release", "-p", "pollvisor-bench", "--features", "rivals"]))?;
            machine.files.push(beside("pollvisor-bench")?);
        }
        if needs(Need::Integration) {
            machine.files.extend(test_binaries(&machine.folder)?);
        }
        if needs(Need::Linux) {
            let kernel = cache.join("kernel").join(&options.kernel);
            machine.linux.extend(linux::FILES.map(|file| kernel.join(file)));
        }
        if needs(Need::Qemu) {
            let qemu = machine.folder.join(linux::QEMU);
            run(lab(&machine.script).arg("qemu").arg(&qemu))?;
            machine.linux.push(qemu);
        }
        Ok(machine)
    }

    /// Boots one, runs these scenarios in it.
    pub fn boot(&self, lab: Lab, names: &[String]) -> Result<Boot> {
        let options = &self.options;
        // Dies with this program.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "bash"]).arg(&self.script).arg("run");
        let single = options.single || lab == Lab::NoGuest;
        // Two CPUs that wait for each other take long in one thread.
        let limit = if single { 3 * LIMIT } else { LIMIT };
        let scenarios = u64::try_from(names.len()).unwrap_or(u64::MAX);
        let timeout = options.timeout.unwrap_or_else(|| BESIDE + limit.saturating_mul(scenarios));
        command.args(["--kernel", &options.kernel, "--timeout", &timeout.to_string()]);
        command.arg("--log").arg(&self.log);
        let paging = if lab == Lab::Linux { "" } else { "kvm_amd.npt=0 " };
        command.args(["--append", &format!("{paging}{}", options.append)]);
        if single {
            command.arg("--single");
        }
        let memory = options.mem.as_deref().or((lab == Lab::Linux).then_some("2G"));
        command.args(memory.iter().flat_map(|memory| ["--mem", *memory]));
        if let Some(cpus) = options.cpus {
            command.args(["--cpus", &cpus.to_string()]);
        }
        if let Some(qemu) = &options.qemu {
            command.args(["--qemu", qemu]);
        }
        command.args(&self.files);
        if lab == Lab::Linux {
            command.args(&self.linux);
        }
        command.args(["--", "./lab", "run", "--limit", &limit.to_string()]).args(names);
        boot(&mut command, &self.log, linux::MEMORY)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _the_next_run_does = std::fs::remove_dir_all(&self.folder);
    }
}

/// As `tests/lab/lab` has it.
fn cache() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("POLLVISOR_LAB_CACHE").or_else(|| {
        let caches = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
        Some(caches.join("pollvisor-lab"))
    });
    let cache = cache.ok_or_else(|| Error::new("no place for the lab's cache").remedy("set HOME"))?;
    std::path::absolute(&cache).map_err(|e| Error::os(cache.display().to_string(), &e))
}

/// A program built beside this one.
fn beside(name: &str) -> Result<PathBuf> {
    let myself = std::env::current_exe().map_err(|e| Error::os("this program", &e))?;
    Ok(myself.with_file_name(name))
}

fn programs() -> Result<Vec<PathBuf>> {
    ["lab", "pollvisor"].into_iter().map(beside).collect()
}

/// The tests' binaries as `cargo test --workspace` builds them, without what only a debugger wants, in `folder`.
fn test_binaries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--lib", "--test", "integration", "--no-run"]);
    command.arg("--message-format=json-render-diagnostics");
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|e| Error::os(format!("{command:?}"), &e))?;
    let messages = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<serde_json::Value>();
    let built: Vec<(String, PathBuf)> = messages
        .map_while(std::result::Result::ok)
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?;
            Some((name.to_owned(), message["executable"].as_str()?.into()))
        })
        .collect();
    let stripped = |name: &&str| {
        let (_, built) = built
            .iter()
            .find(|(other, _)| other == name)
            .ok_or_else(|| Error::new(format!("{command:?}: {}, without {name}", output.status)))?;
        // Without that `pollvisor` would be the command's.
        let file = folder.join(format!("{}{name}", kvm::TESTS_OF));
        run(Command::new("strip").arg("-o").arg(&file).arg(built))?;
        Ok(file)
    };
    kvm::BINARIES.iter().map(stripped).collect()
}

fn lab(script: &Path) -> Command {
    let mut command = Command::new("bash");
    command.arg(script);
    command
}

fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|e| Error::os(format!("{command:?}"), &e))?;
    if status.success() { Ok(()) } else { Err(Error::new(format!("{command:?}: {status}"))) }
}
