//! Debian's kernel as a guest of the command `pollvisor`, in the lab: what it is given, and what became of it.

pub mod accounts;

use super::drive::fault::crash;
use super::trace::MARK;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pollvisor::error::{Error, Result};
use serde_json::Value;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Files that `tests/lab/run` puts beside this program.
pub const KERNELS: [&str; 2] = ["vmlinuz", "vmlinux"];
/// Those that they need beside.
pub const FILES: [&str; 3] = [KERNELS[0], KERNELS[1], BASE];
/// Bytes of memory that a guest has.
pub const MEMORY: u64 = 256 << 20;
const BASE: &str = "base.cpio";
const INITRAMFS: &str = "guest.cpio";
const CONSOLE: &str = "console";
const TALK: &str = "stderr";
/// Longer than the slowest takes on a busy machine, and less than a scenario may take.
const PATIENCE: Duration = Duration::from_secs(140);
/// The folder with the lab's QEMU, its loader, libraries and firmware.
pub const QEMU: &str = "qemu";

/// Whether the files are there.
///
/// # Errors
/// The first that is not.
pub fn files() -> std::result::Result<(), String> {
    let gone = FILES.iter().find(|file| !std::path::Path::new(file).exists());
    gone.map_or(Ok(()), |file| Err(format!("no file {file}")))
}

/// Whether QEMU is there.
#[must_use]
pub fn has_qemu() -> bool {
    std::path::Path::new(QEMU).exists()
}

/// The guest's first program. `net=MODULE` on the kernel's command line: that network device gets a lease and pings, 1000
/// times or as `pings=N` says, with `pause=SECONDS` in between. `nvme`: 8 MiB are read. `serial`: 400 bytes go through each of two
/// serial ports that hear themselves. `end=`: how it ends, when not by
/// switching itself off.
const INIT: &str = r#"#!/bin/sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /sbin /usr/bin /usr/sbin /var/log /var/run /etc/acpi/PWRF
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "guest: up after $(cut -d' ' -f1 /proc/uptime) s, $(nproc) CPUs, Linux $(uname -r)"
pings=1000 pause=0.002
for word in $(cat /proc/cmdline); do
    case $word in
        pings=*) pings=${word#pings=} ;;
        pause=*) pause=${word#pause=} ;;
        net=*) net=${word#net=} ;;
        options=*) options=$(echo "${word#options=}" | tr : ' ') ;;
        nvme) nvme=1 ;;
        serial) serial="1 2" ;;
        end=*) end=${word#end=} ;;
    esac
done
handled() { sed -n "s/^ *[0-9]*:\(.*\(PCI-MSI\|IO-APIC.*fasteoi\).*\)/guest: handled \1/p" /proc/interrupts; }
# The kernel's own count of ICMP messages, by name.
icmp() { awk -v name=$1 '/^Icmp:/ { if (n) print $n; else for (n = 1; $n != name; n++); }' /proc/net/snmp; }
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
    udhcpc -i eth0 -n -q -s /tmp/bound
    # A few at a time: an emulated machine may stand still for a second, and queues are finite.
    left=$pings
    while [ $left -gt 0 ]; do
        ping -c $((left < 50 ? left : 50)) -i $pause 10.0.2.2 >/dev/null
        left=$((left - 50))
    done
    # ping does not wait for the last replies as long as an emulated machine may take.
    n=0
    while [ "$(icmp InEchoReps)" -lt $pings ] && [ $n -lt 50 ]; do
        sleep 0.1
        n=$((n + 1))
    done
    echo "guest: exchanged $(icmp OutEchos) requests, $(icmp InEchoReps) replies"
    dmesg | sed -n 's/^.*eth0: \(MSI.*\)/guest: driver: \1/p'
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
for port in $serial; do
    stty -F /dev/ttyS$port raw -echo
    timeout 30 dd if=/dev/ttyS$port of=/tmp/received bs=1 count=400 2>/dev/null &
    reader=$!
    sleep 0.3
    n=0
    while [ $n -lt 40 ]; do
        printf 0123456789 >/dev/ttyS$port
        n=$((n + 1))
        sleep 0.02
    done
    wait $reader
    echo "guest: ttyS$port received $(sed s/0123456789/./g /tmp/received)"
done
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
# Counts, and a mark in the host's trace while they were so.
mark() { printf '\0' | dd of=/dev/port bs=1 seek=$((MARK)) conv=notrunc 2>/dev/null; }
while now=$(handled) && mark && [ "$now" != "$(handled)" ]; do sleep 0.1; done
echo "$now"
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
    /// What it wrote to standard error.
    pub talk: String,
}

/// Starts a guest with this kernel; `parameters` are the kernel's, `arguments` the command's.
///
/// # Errors
/// When files cannot be written, or the command not started.
pub fn start(kernel: &str, parameters: &str, arguments: &[&str]) -> Result<Running> {
    let mut command = Command::new("./pollvisor");
    command.args(["run", "--kernel", kernel, "--initramfs", INITRAMFS, "--cmdline", &cmdline(parameters)]);
    let memory = format!("size={}M", MEMORY >> 20);
    command.args(["--memory", &memory, "--serial", "file=console", "--json"]).args(arguments);
    spawn(command)
}

/// The same guest by the lab's own QEMU, with KVM and the device at `address`.
///
/// # Errors
/// As in [`start`].
pub fn start_in_qemu(kernel: &str, parameters: &str, address: &str) -> Result<Running> {
    let mut command = Command::new(format!("{QEMU}/ld-linux-x86-64.so.2"));
    command.args(["--library-path", QEMU, &format!("{QEMU}/qemu-system-x86_64"), "-L", QEMU]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"]);
    command.args([
        "-M",
        "q35",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-m",
        &format!("{}M", MEMORY >> 20),
        "-serial",
        "file:console",
    ]);
    command.args(["-kernel", kernel, "-initrd", INITRAMFS, "-append", &cmdline(parameters)]);
    command.args(["-device", &format!("vfio-pci,host={address}")]);
    spawn(command)
}

fn cmdline(parameters: &str) -> String {
    format!("console=ttyS0 quiet panic=-1 {parameters}")
}

fn spawn(mut command: Command) -> Result<Running> {
    let file = |what: &str, e: &std::io::Error| Error::os(what.to_string(), e);
    let mut initramfs = fs::read(BASE).map_err(|e| file(BASE, &e))?;
    initramfs.resize(initramfs.len().next_multiple_of(512), 0);
    initramfs.extend(archive("init", INIT.replace("MARK", &MARK.to_string()).as_bytes()));
    fs::write(INITRAMFS, initramfs).map_err(|e| file(INITRAMFS, &e))?;
    let _none_yet = fs::remove_file(CONSOLE);
    let talk = fs::File::create(TALK).map_err(|e| file(TALK, &e))?;
    let began = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(talk).spawn();
    Ok(Running { child: child.map_err(|e| file("starting a guest", &e))?, began })
}

impl Running {
    /// Waits until it writes `text`.
    ///
    /// # Errors
    /// When it does not, with the end of what it wrote.
    pub fn says(&mut self, text: &str) -> Result<()> {
        while !console().contains(text) {
            let ended = self.child.try_wait().map_err(|e| Error::os("waiting for the guest", &e))?;
            if ended.is_some() || self.began.elapsed() > PATIENCE {
                let how = ended.map_or("it runs still".to_string(), |status| format!("it ended: {status}"));
                return Err(told(format!("the guest does not say `{text}`; {how}, {:.1?}", self.time())));
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// How long it runs.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait().map(drop).map_err(|e| Error::os("waiting for it", &e))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        kill(id, signal).map_err(|e| Error::new(format!("{signal}: {e}")))
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
        Ok(Ended { code, console: console(), report, talk: talk() })
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

    /// The handlers' counts.
    #[must_use]
    pub fn handled(&self) -> Vec<Handled> {
        let rows = self.console.lines().filter_map(|line| line.trim_end().split_once("guest: handled "));
        rows.map(|(_, row)| Handled::read(row)).filter(|handled| handled.count > 0).collect()
    }

    /// Vectors of the report's first device that signalled: name, delivered.
    #[must_use]
    pub fn delivered(&self) -> Vec<(String, u64)> {
        let read = |vector: &Value| {
            let count = vector["ledger"]["delivered"].as_u64()?;
            Some((vector["vector"].as_str()?.to_string(), count)).filter(|_| count > 0)
        };
        self.vectors().iter().filter_map(read).collect()
    }

    /// The report's vectors of its first device.
    #[must_use]
    pub fn vectors(&self) -> &[Value] {
        self.report["devices"][0]["vectors"].as_array().map_or(&[], Vec::as_slice)
    }
}

/// A row of the guest's `/proc/interrupts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handled {
    /// On all CPUs.
    pub count: u64,
    /// Which of its device's vectors, if it is one.
    pub vector: Option<u32>,
    /// What stands behind the counts.
    pub who: String,
}

impl Handled {
    /// `12 0 PCI-MSIX-0000:00:01.0 1-edge eth0`. Before 6.5 the device's address is in the number, above the vector's 11
    /// bits (`pci_msi_domain_calc_hwirq`).
    fn read(row: &str) -> Self {
        let words: Vec<&str> = row.split_whitespace().collect();
        let cpus = words.iter().take_while(|word| word.parse::<u64>().is_ok()).count();
        let (counts, who) = words.split_at(cpus);
        let number = who.iter().find_map(|word| word.strip_suffix("-edge")?.parse::<u32>().ok());
        Self {
            count: counts.iter().filter_map(|count| count.parse::<u64>().ok()).sum(),
            vector: number.map(|number| number & 0x7ff),
            who: who.join(" "),
        }
    }
}

fn console() -> String {
    String::from_utf8_lossy(&fs::read(CONSOLE).unwrap_or_default()).into_owned()
}

/// What pollvisor has written to standard error.
#[must_use]
pub fn talk() -> String {
    fs::read_to_string(TALK).unwrap_or_default()
}

/// An error, with the end of the guest's console printed, and of what pollvisor said; of a crash all of it, which tells
/// whose fault it is.
#[must_use]
pub fn told(what: String) -> Error {
    for (who, text) in [("console", console()), ("pollvisor", talk())] {
        let lines: Vec<_> = text.lines().collect();
        let crash = lines.iter().position(|line| crash(line).is_some());
        let from = lines.len().saturating_sub(30).min(crash.unwrap_or(lines.len()));
        for line in &lines[from..] {
            println!("{who}: {line}");
        }
    }
    Error::new(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_interrupts() {
        let row = |count, vector, who: &str| Handled { count, vector, who: who.into() };
        let new = Handled::read("         12    3  PCI-MSIX-0000:00:01.0   1-edge      eth0-TxRx-0");
        assert_eq!(new, row(15, Some(1), "PCI-MSIX-0000:00:01.0 1-edge eth0-TxRx-0"));
        let old = Handled::read(" 7  PCI-MSI 16386-edge      eth0");
        assert_eq!(old, row(7, Some(2), "PCI-MSI 16386-edge eth0"));
        let line = Handled::read(" 9  IO-APIC  16-fasteoi   eth0");
        assert_eq!(line, row(9, None, "IO-APIC 16-fasteoi eth0"));
    }
}
