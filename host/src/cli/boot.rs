//! The flags of `run` for a guest that is booted.

use super::grammar::{bracketed, duration, options, switch};
use crate::error::Error;
use crate::legacy::Console;
use crate::pin::parse_list;
use crate::sys::guest_memory::{MAX_NODES, Nodes};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// What to boot, and on what.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct BootArgs {
    /// Boot this kernel: a bzImage, or an ELF file with a PVH note
    ///
    /// The figures of its devices' interrupts come at the end, and at SIGUSR1 on standard error. SIGTERM, SIGINT and
    /// SIGHUP press its power button and give it --grace; a second one, or SIGQUIT, ends it at once. Exit codes: 0 the
    /// guest shut down, 1 a failure of this program, 3 the guest rebooted, 4 it panicked (told by pvpanic, or a triple
    /// fault), 128 and the signal's number when a signal ended it.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The initramfs that the kernel begins with
    #[arg(long, visible_alias = "initrd", value_name = "FILE")]
    pub initramfs: Option<PathBuf>,
    /// The kernel's parameters [default: console=ttyS0]
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// The guest's memory [default: size=512M]
    #[arg(
        long,
        value_parser = memory,
        value_name = "size=N",
        help = "The guest's memory: size=1G[,hugepages=on,hugepage_size=2M|1G,prefault=on,mlock=on,thp=on,host_numa_node=N] [default: size=512M]"
    )]
    pub memory: Option<MemoryArg>,
    /// Where the guest's serial port leads [default: tty]
    #[arg(
        long,
        value_parser = console,
        value_name = "tty",
        help = "Where the guest's serial port leads: tty, off or file=PATH; on a terminal Ctrl-A x ends the guest [default: tty]"
    )]
    pub serial: Option<Console>,
    /// How long a guest may take to shut down after SIGTERM [default: 10s]
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub grace: Option<Duration>,
    /// Everything below at once, and each vCPU on a CPU of its own, memory locked, device interrupts on the poller's CPU
    #[arg(long, value_enum)]
    pub profile: Option<Profile>,
    /// Keep HLT, MWAIT and PAUSE in the guest: its CPUs are its own
    #[arg(
        long,
        value_parser = overcommit,
        value_name = "cpu-pm=on",
        help = "Keep HLT, MWAIT and PAUSE in the guest, which has its CPUs for itself then: cpu-pm=on|off"
    )]
    pub overcommit: Option<bool>,
    /// Keep the host's CPUs out of deep sleep (/dev/cpu_dma_latency): on or off
    #[arg(long, value_parser = on_off, value_name = "on|off")]
    pub cpu_dma_latency: Option<bool>,
    /// SCHED_FIFO for the vCPUs: on or off [default: on isolated CPUs]
    #[arg(long, value_parser = on_off, value_name = "on|off")]
    pub vcpu_fifo: Option<bool>,
}

/// `--profile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// --overcommit cpu-pm=on, --cpu-dma-latency on, --halt-poll 1000000, --memory mlock=on,hugepages=on, affinity, irq_cpus
    LowLatency,
}

/// `--memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryArg {
    /// Bytes.
    pub size: u64,
    /// Bytes of a huge page of hugetlbfs; `None`: ordinary memory.
    pub hugepage: Option<u64>,
    /// Whether all of it is there before the guest runs.
    pub prefault: bool,
    /// Whether it stays.
    pub mlock: bool,
    /// Whether the kernel is to make huge pages of it; `None`: as the host is set.
    pub thp: Option<bool>,
    /// Whether huge pages were refused.
    pub ordinary: bool,
    /// The host's NUMA nodes that it comes from; `None`: as the kernel finds it.
    pub nodes: Option<Nodes>,
}

impl MemoryArg {
    /// Ordinary memory.
    #[must_use]
    pub const fn of(size: u64) -> Self {
        Self { size, hugepage: None, prefault: false, mlock: false, thp: None, ordinary: false, nodes: None }
    }
}

impl BootArgs {
    /// That none of these flags is given, as without `--kernel` they do nothing.
    ///
    /// # Errors
    /// The one that is.
    pub fn none_without_kernel(&self) -> crate::error::Result<()> {
        let given = [
            ("--initramfs", self.initramfs.is_some()),
            ("--cmdline", self.cmdline.is_some()),
            ("--memory", self.memory.is_some()),
            ("--serial", self.serial.is_some()),
            ("--grace", self.grace.is_some()),
            ("--profile", self.profile.is_some()),
            ("--overcommit", self.overcommit.is_some()),
            ("--cpu-dma-latency", self.cpu_dma_latency.is_some()),
            ("--vcpu-fifo", self.vcpu_fifo.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((flag, _)) => {
                Err(Error::new(format!("{flag} is for a guest that is booted"))
                    .remedy("--kernel FILE with it"))
            }
        }
    }
}

fn memory(text: &str) -> Result<MemoryArg, String> {
    const HUGE: u64 = 2 << 20;
    let (mut size, mut huge, mut page) = (None, None, None);
    let mut memory = MemoryArg::of(0);
    for (key, value) in options(text)? {
        match key {
            "size" => size = Some(bytes(key, value)?),
            "hugepages" => huge = Some(switch(key, value)?),
            "hugepage_size" => page = Some(bytes(key, value)?),
            "prefault" => memory.prefault = switch(key, value)?,
            "mlock" => memory.mlock = switch(key, value)?,
            "thp" => memory.thp = Some(switch(key, value)?),
            "host_numa_node" => memory.nodes = Some(nodes(key, value)?),
            _ => {
                return Err(format!(
                    "`{key}` is not known; size, hugepages, hugepage_size, prefault, mlock, thp and host_numa_node are"
                ));
            }
        }
    }
    memory.size = size.ok_or("size=N is missing")?;
    memory.ordinary = huge == Some(false);
    memory.hugepage = match (huge, page) {
        (Some(true), page) => Some(page.unwrap_or(HUGE)),
        (None, Some(page)) => Some(page),
        (Some(false), Some(_)) => return Err("hugepage_size with hugepages=off".into()),
        _ => None,
    };
    if memory.hugepage.is_some() && memory.thp.is_some() {
        return Err("thp is for memory that is not hugepages".into());
    }
    if let Some(page) = memory.hugepage.filter(|page| ![HUGE, 1 << 30].contains(page)) {
        return Err(format!("hugepage_size={page}: 2M or 1G"));
    }
    Ok(memory)
}

/// `1`, or `[0-1,3]`.
fn nodes(key: &str, text: &str) -> Result<Nodes, String> {
    let list = parse_list(bracketed(text).unwrap_or(text)).map_err(|e| format!("{key}: {e}"))?;
    let nodes = Nodes::of(&list).filter(|_| !list.is_empty());
    nodes.ok_or_else(|| format!("{key}=`{text}`: a node's number below {MAX_NODES}, or a list [0-1,3]"))
}

/// `512M`, `1G`; a bare number is in bytes.
fn bytes(key: &str, text: &str) -> Result<u64, String> {
    let wrong = || format!("{key}=`{text}` is not a size such as 512M or 1G");
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (value, unit) = text.split_at(at);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let value: u64 = value.parse().map_err(|_| wrong())?;
    value.checked_mul(1 << shift).ok_or_else(wrong)
}

fn overcommit(text: &str) -> Result<bool, String> {
    let [("cpu-pm", value)] = options(text)?[..] else {
        return Err(format!("`{text}` is not cpu-pm=on|off"));
    };
    switch("cpu-pm", value)
}

fn on_off(text: &str) -> Result<bool, String> {
    switch("it", text).map_err(|_| format!("`{text}`: on or off"))
}

fn console(text: &str) -> Result<Console, String> {
    match text.split_once('=') {
        None if text == "tty" => Ok(Console::Tty),
        None if text == "off" => Ok(Console::Off),
        Some(("file", path)) if !path.is_empty() => Ok(Console::File(path.into())),
        _ => Err(format!("`{text}`: tty, off or file=PATH")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read() {
        let plain = MemoryArg::of(1 << 30);
        assert_eq!(memory("size=1G"), Ok(plain));
        assert_eq!(memory("size=1G,hugepages=off"), Ok(MemoryArg { ordinary: true, ..plain }));
        assert_eq!(memory("size=1024M,thp=on"), Ok(MemoryArg { thp: Some(true), ..plain }));
        let huge = MemoryArg { hugepage: Some(1 << 30), prefault: true, mlock: true, ..plain };
        assert_eq!(memory("size=1G,hugepage_size=1G,prefault=on,mlock=on"), Ok(huge));
        let numa = |numbers: &[usize]| MemoryArg { nodes: Nodes::of(numbers), ..plain };
        assert_eq!(memory("size=1G,host_numa_node=1"), Ok(numa(&[1])));
        assert_eq!(memory("size=1G,host_numa_node=[0-1,1023]"), Ok(numa(&[0, 1, 1023])));
        for wrong in [
            "",
            "size=1G,host_numa_node=",
            "size=1G,host_numa_node=[]",
            "size=1G,host_numa_node=1024",
            "size=1G,host_numa_node=a",
            "size=",
            "size=G",
            "size=1X",
            "size=99999999T",
            "hugepages=on",
            "size=1G,hugepages=on,hugepage_size=4K",
            "size=1G,hugepages=off,hugepage_size=2M",
            "size=1G,hugepages=on,thp=on",
            "size=-1",
            "size=1G,numa=1",
        ] {
            assert!(memory(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn consoles() {
        assert_eq!(console("tty"), Ok(Console::Tty));
        assert_eq!(console("file=/a=b"), Ok(Console::File("/a=b".into())));
        assert!(console("file=").is_err() && console("pty").is_err() && console("tty=").is_err());
    }
}
