//! How long it takes from the exec of `pollvisor` to its guest's first instruction, and how much memory it needs.

use crate::common::{Bench, Goal};
use crate::measure::matching::Found;
use crate::measure::{float, histogram};
use crate::model::{Load, PathResult, Stage};
use crate::rounds::result;
use crate::way::Path as Way;
use pollvisor::accel::Accelerator;
use pollvisor::error::{Error, Result};
use pollvisor::guest::MEMORY;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What was found.
pub struct Started {
    /// As a result with the stages `exec_to_guest` in nanoseconds and `resident_bytes`.
    pub result: PathResult,
    /// 5 ms and 8 MiB.
    pub goals: Vec<Goal>,
}

/// Starts `pollvisor run` so many times.
///
/// # Errors
/// When it is not there, or does not start a guest.
pub fn startup(bench: &Bench, command: Option<&Path>, starts: u32) -> Result<Started> {
    let command = command.map_or_else(beside, |path| Ok(path.to_path_buf()))?;
    let (mut took, mut resident) = (histogram()?, histogram()?);
    for _ in 0..starts {
        let (ns, bytes) = once(bench, &command)?;
        took.saturating_record(ns);
        resident.saturating_record(bytes);
        if bench.is_interrupted() {
            break;
        }
    }
    let mut result = result((Way::PolledEventfd, bench.accelerator()), 1, 1, Load::Closed, &Found::new()?);
    result.path = crate::way::name_on(bench.accelerator(), "costs/startup");
    result.stages.insert("exec_to_guest".into(), Stage::of(&took));
    result.stages.insert("resident_bytes".into(), Stage::of(&resident));
    let median = |histogram: &hdrhistogram::Histogram<u64>| float(histogram.value_at_quantile(0.5));
    let mut goals =
        vec![Goal::at_most("resident beyond guest memory, MiB", median(&resident) / f64::from(1 << 20), 8.0)];
    // The software machine's guest has no instruction.
    if bench.accelerator() == Accelerator::Kvm {
        goals.push(Goal::at_most("exec to the guest's first instruction, ms", median(&took) / 1e6, 5.0));
    }
    Ok(Started { result, goals })
}

fn beside() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|e| Error::os("finding this command", &e))?;
    let path = own.with_file_name("pollvisor");
    if path.exists() {
        return Ok(path);
    }
    Err(Error::new(format!("{} is not there", path.display()))
        .remedy("cargo build --release, or --pollvisor FILE"))
}

/// The time from exec to the guest, and the memory beyond the guest's, of one start.
fn once(bench: &Bench, command: &Path) -> Result<(u64, u64)> {
    let what = || format!("starting {}", command.display());
    let began = bench.clock.now();
    let child = Command::new(command)
        .args([
            "run",
            "--vectors",
            "1",
            "--interval",
            "1ms",
            "--duration",
            "100ms",
            "--warm-up",
            "0",
            "--json",
            "--accel",
            bench.accelerator().key(),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|e| Error::os(what(), &e))?;
    let resident = resident(&mut child);
    let output = child.wait_with_output().map_err(|e| Error::os(what(), &e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(format!("{}: {}", what(), said.trim())));
    }
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| Error::new(format!("{}: its report: {e}", what())))?;
    let guest = report.get("guest_began_tsc").and_then(serde_json::Value::as_u64);
    let guest =
        guest.ok_or_else(|| Error::new(format!("{}: it does not say when its guest began", what())))?;
    let resident = resident.ok_or_else(|| Error::new("its memory could not be seen while it ran"))?;
    Ok((bench.clock.ns(guest.saturating_sub(began)), resident))
}

/// The most that is resident beyond the guest's memory while it runs.
fn resident(child: &mut Child) -> Option<u64> {
    let path = format!("/proc/{}/smaps", child.id());
    let began = Instant::now();
    let mut most = None;
    while matches!(child.try_wait(), Ok(None)) && began.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
        most = most.max(std::fs::read_to_string(&path).ok().and_then(|smaps| beyond_guest(&smaps)));
    }
    most
}

/// The resident bytes of all mappings but the guest's, which is the one of its size; `None` while it is not there.
fn beyond_guest(smaps: &str) -> Option<u64> {
    let (mut all, mut guest, mut size) = (0, None, 0);
    for line in smaps.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let kib = || value.trim().strip_suffix(" kB").and_then(|kib| kib.trim().parse::<u64>().ok());
        match key {
            "Size" => size = kib()? * 1024,
            "Rss" => {
                all += kib()? * 1024;
                if size == MEMORY as u64 && guest.is_none() {
                    guest = Some(kib()? * 1024);
                }
            }
            _ => {}
        }
    }
    Some(all - guest?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_not_counted() {
        let smaps = "55d0-55e0 r-xp 0 fe:00 12   /bin/x\nSize:   64 kB\nRss:     40 kB\nPss: 1 kB\n\
                     7f00-8f00 rw-p 0 00:00 0\nSize:   8192 kB\nRss:   5000 kB\n";
        assert_eq!(beyond_guest(smaps), Some(40 * 1024));
        assert_eq!(beyond_guest("Size:   64 kB\nRss:     40 kB\n"), None);
    }
}
