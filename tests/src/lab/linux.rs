//! Debian's kernel as a guest of the command `pollvisor`, in the lab: what it is given, and what became of it.

use pollvisor::error::{Error, Result};
use serde_json::Value;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Files that `tests/lab/run` puts beside this program.
pub const KERNELS: [&str; 2] = ["vmlinuz", "vmlinux"];
const BASE: &str = "base.cpio";
const INITRAMFS: &str = "guest.cpio";
const CONSOLE: &str = "console";
/// Longer than the slowest takes.
const PATIENCE: Duration = Duration::from_secs(50);

/// Whether the files are there.
///
/// # Errors
/// The first that is not.
pub fn files() -> std::result::Result<(), String> {
    let gone = KERNELS.iter().chain(&[BASE]).find(|file| !std::path::Path::new(file).exists());
    gone.map_or(Ok(()), |file| Err(format!("no file {file}")))
}

/// The guest's first program. `net=MODULE` on the kernel's command line: that network device gets a lease and pings.
/// `nvme`: 8 MiB are read. `end=`: how it ends, when not by switching itself off.
const INIT: &str = r#"#!/bin/sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /sbin /usr/bin /usr/sbin /var/log /var/run /etc/acpi/PWRF
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "guest: up after $(cut -d' ' -f1 /proc/uptime) s, $(nproc) CPUs, Linux $(uname -r)"
for word in $(cat /proc/cmdline); do
    case $word in
        net=*) net=${word#net=} ;;
        options=*) options=$(echo "${word#options=}" | tr : ' ') ;;
        nvme) nvme=1 ;;
        end=*) end=${word#end=} ;;
    esac
done
handled() { sed -n "s/^ *[0-9]*: *\([0-9]*\) *\(PCI-MSI.*\|IO-APIC.*fasteoi.*\)/guest: handled \1 \2/p" /proc/interrupts; }
if [ -n "$net" ]; then
    modprobe $net $options
    ip link set eth0 up
    n=0
    while [ "$(cat /sys/class/net/eth0/carrier)" != 1 ] && [ $n -lt 100 ]; do
        sleep 0.1
        n=$((n + 1))
    done
    printf '#!/bin/sh\n[ "$1" != bound ] || ip addr add $ip/24 dev eth0\n' >/tmp/bound
    chmod +x /tmp/bound
    udhcpc -i eth0 -n -q -s /tmp/bound && ping -c 100 -i 0.02 10.0.2.2 | sed -n 's/^/guest: /;/packets/p'
fi
if [ -n "$nvme" ]; then
    modprobe nvme
    n=0
    while [ ! -e /dev/nvme0n1 ] && [ $n -lt 100 ]; do
        sleep 0.1
        n=$((n + 1))
    done
    echo "guest: read $(dd if=/dev/nvme0n1 bs=1M count=8 2>/dev/null | tr -d '\0' | wc -c) bytes that are not zero"
    echo "guest: read $(dd if=/dev/nvme0n1 bs=1M count=8 2>/dev/null | wc -c) bytes"
fi
case $end in
    reboot) reboot -f ;;
    panic)
        modprobe pvpanic-mmio
        echo c >/proc/sysrq-trigger
        ;;
    deaf)
        echo "guest: waits"
        sleep 1000
        ;;
    button)
        modprobe button
        modprobe evdev
        printf '#!/bin/sh\necho "guest: the button" >/dev/console\npoweroff -f\n' >/etc/acpi/PWRF/00000080
        chmod +x /etc/acpi/PWRF/00000080
        acpid -c /etc/acpi
        echo "guest: waits"
        sleep 1000
        ;;
esac
# Counts that stay for as long as it takes to print them; then off at once, before a driver makes one more.
sleep 0.5
while now=$(handled) && echo "$now" && sleep 0.2 && [ "$now" != "$(handled)" ]; do echo "guest: once more"; done
printf '\064' | dd of=/dev/port bs=1 seek=$((0x600)) conv=notrunc 2>/dev/null
poweroff -f
"#;

/// A `newc` archive of one file, to come behind the base.
fn archive(name: &str, data: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut entry = |name: &str, mode: usize, data: &[u8]| {
        let fields = [0, mode, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend_from_slice(b"070701");
        fields.iter().for_each(|field| archive.extend_from_slice(format!("{field:08x}").as_bytes()));
        for part in [&[name.as_bytes(), &[0]].concat(), data] {
            archive.extend_from_slice(part);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
    };
    entry(name, 0o100_755, data);
    entry("TRAILER!!!", 0, &[]);
    archive
}

/// A guest that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    began: Instant,
}

/// What became of one.
#[derive(Debug)]
pub struct Ended {
    /// The command's exit code.
    pub code: i32,
    /// What it wrote to its serial port.
    pub console: String,
    /// The command's report.
    pub report: Value,
}

/// Starts a guest with this kernel; `parameters` are the kernel's, `arguments` the command's.
///
/// # Errors
/// When files cannot be written, or the command not started.
pub fn start(kernel: &str, parameters: &str, arguments: &[&str]) -> Result<Running> {
    let file = |what: &str, e: &std::io::Error| Error::os(what.to_string(), e);
    let mut initramfs = fs::read(BASE).map_err(|e| file(BASE, &e))?;
    initramfs.resize(initramfs.len().next_multiple_of(512), 0);
    initramfs.extend(archive("init", INIT.as_bytes()));
    fs::write(INITRAMFS, initramfs).map_err(|e| file(INITRAMFS, &e))?;
    let _none_yet = fs::remove_file(CONSOLE);
    let parameters = format!("console=ttyS0 quiet panic=-1 {parameters}");
    let child = Command::new("./pollvisor")
        .args(["run", "--kernel", kernel, "--initramfs", INITRAMFS, "--cmdline", &parameters])
        .args(["--memory", "size=256M", "--serial", "file=console", "--json"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    Ok(Running { child: child.map_err(|e| file("starting pollvisor", &e))?, began: Instant::now() })
}

impl Running {
    /// Waits until it writes `text`.
    ///
    /// # Errors
    /// When it does not, with the end of what it wrote.
    pub fn says(&mut self, text: &str) -> Result<()> {
        while !console().contains(text) {
            let ended = self.child.try_wait().map_err(|e| Error::os("waiting for pollvisor", &e))?;
            if ended.is_some() || self.began.elapsed() > PATIENCE {
                return Err(told(format!("the guest does not say `{text}`")));
            }
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The command's process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end, or is killed.
    pub fn end(self) -> Result<Ended> {
        let output = self.child.wait_with_output().map_err(|e| Error::os("waiting for pollvisor", &e))?;
        let code =
            output.status.code().ok_or_else(|| told(format!("pollvisor ended with {}", output.status)))?;
        let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Ok(Ended { code, console: console(), report })
    }
}

impl Ended {
    /// That it ended with `code`.
    ///
    /// # Errors
    /// When it did not, with the end of what it wrote.
    pub fn with(self, code: i32) -> Result<Self> {
        if self.code == code { Ok(self) } else { Err(told(format!("exit code {}, not {code}", self.code))) }
    }

    /// Its lines that begin with `guest: ` and `what`, without that.
    pub fn lines<'a>(&'a self, what: &'a str) -> impl Iterator<Item = &'a str> {
        let ours = move |line: &'a str| line.trim_end().split_once("guest: ")?.1.strip_prefix(what);
        self.console.lines().filter_map(ours).map(str::trim)
    }

    /// The last of those lines.
    ///
    /// # Errors
    /// When there is none, with the end of what it wrote.
    pub fn line(&self, what: &str) -> Result<&str> {
        self.console
            .lines()
            .rev()
            .find_map(|line| line.trim_end().split_once("guest: ")?.1.strip_prefix(what))
            .map(str::trim)
            .ok_or_else(|| told(format!("the guest does not say `{what}`")))
    }

    /// The handlers' counts by what stands behind them in `/proc/interrupts`, as last said.
    #[must_use]
    pub fn handled(&self) -> Vec<(u64, String)> {
        let last = self.console.rsplit("guest: once more").next().unwrap_or_default();
        let counts =
            last.lines().filter_map(|line| line.split_once("guest: handled ")?.1.trim().split_once(' '));
        counts.filter_map(|(count, who)| Some((count.parse().ok()?, who.to_string()))).collect()
    }

    /// Vectors of the report's first device: name, delivered; those that signalled.
    #[must_use]
    pub fn delivered(&self) -> Vec<(String, u64)> {
        let vectors = self.report["devices"][0]["vectors"].as_array().cloned().unwrap_or_default();
        let read = |vector: &Value| {
            let count = vector["ledger"]["delivered"].as_u64()?;
            Some((vector["vector"].as_str()?.to_string(), count)).filter(|_| count > 0)
        };
        vectors.iter().filter_map(read).collect()
    }
}

fn console() -> String {
    String::from_utf8_lossy(&fs::read(CONSOLE).unwrap_or_default()).into_owned()
}

/// An error, with the end of the guest's console printed.
#[must_use]
pub fn told(what: String) -> Error {
    let console = console();
    let lines: Vec<_> = console.lines().collect();
    for line in &lines[lines.len().saturating_sub(30)..] {
        println!("console: {line}");
    }
    Error::new(what)
}
