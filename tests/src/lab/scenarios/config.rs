//! What the guest does to configuration space, and what the user asks of it.

use crate::lab::devices::{Access, Kind};
use crate::lab::in_guest::{Delivery, Guest, InGuest};
use crate::lab::{Context, Need, Scenario};
use pollvisor::cli::DeviceArg;
use pollvisor::error::{Error, Result};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "config: BARs sized, moved, switched off and on",
        needs: &[Need::Kvm, Need::Igb],
        run: moved,
    },
    Scenario { name: "config: the ports 0xcf8 and 0xcfc", needs: &[Need::Kvm, Need::Igb], run: ports },
    Scenario { name: "config: a function-level reset", needs: &[Need::Kvm, Need::Nvme], run: reset },
    Scenario { name: "config: a BAR that is not mapped", needs: &[Need::Kvm, Need::Igb], run: excluded },
    Scenario {
        name: "config: a NIC's interrupts on chosen CPUs",
        needs: &[Need::Kvm, Need::Igb],
        run: affinity,
    },
];

/// igb's status register, which reads the same at any time.
const STATUS: u64 = 8;
const BAR0: u16 = 0x10;
const COMMAND: u16 = 4;

fn attached(context: &Context, guest: &mut Guest, need: Need) -> Result<InGuest> {
    let via = guest.via(Delivery::Irqfd, 0)?;
    let device = guest.attach(context, need, (Kind::Msix, 4), via, false)?;
    device.ok_or_else(|| Error::new(format!("{} has no MSI-X", need.name())))
}

fn expect(what: &str, got: u64, wanted: u64) -> Result<()> {
    if got == wanted { Ok(()) } else { Err(Error::new(format!("{what}: {got:#x}, not {wanted:#x}"))) }
}

fn moved(context: &mut Context) -> Result<()> {
    let mut guest = Guest::start(Delivery::Irqfd, Kind::Msix)?;
    let mut device = attached(context, &mut guest, Need::Igb)?;
    let (driver, puppet) = (guest.session.driver(&device.assigned), guest.session.puppet().clone());
    let (first, status) = (driver.bar(0)?, guest.hands(&device).read(0, STATUS, 4));
    driver.set_config(BAR0, 4, 0xffff_ffff)?;
    let size = (!(driver.config(BAR0, 4)? & !0xf) + 1) & 0xffff_ffff;
    expect("BAR 0's size", size, 0x2_0000)?;
    expect("a BAR that is being sized", puppet.read(first + STATUS, 4)?, 0xffff_ffff)?;
    let elsewhere = 0xd800_0000;
    driver.set_config(BAR0, 4, elsewhere)?;
    expect("moved", puppet.read(elsewhere + STATUS, 4)?, status)?;
    expect("where it was", puppet.read(first + STATUS, 4)?, 0xffff_ffff)?;
    // Onto the guest's own memory, and onto the I/O APIC: it is not decoded, and they are as they were.
    for taken in [0, 0x20_0000, 0xfec0_0000u64] {
        let before = puppet.read(0x1008, 8)?;
        driver.set_config(BAR0, 4, taken)?;
        expect("the guest's memory", puppet.read(0x1008, 8)?, before)?;
    }
    driver.set_config(BAR0, 4, first)?;
    let command = driver.config(COMMAND, 2)?;
    driver.set_config(COMMAND, 2, command & !2)?;
    expect("decoding off", puppet.read(first + STATUS, 4)?, 0xffff_ffff)?;
    driver.set_config(COMMAND, 2, command)?;
    expect("decoding on", puppet.read(first + STATUS, 4)?, status)?;
    guest.raise(&mut device, 1)?;
    guest.session.stop()
}

fn ports(context: &mut Context) -> Result<()> {
    let mut guest = Guest::start(Delivery::Irqfd, Kind::Msix)?;
    let device = attached(context, &mut guest, Need::Igb)?;
    let (driver, puppet) = (guest.session.driver(&device.assigned), guest.session.puppet());
    for offset in [0u16, 4, 8, 0x3c, 0x70, 0xa0] {
        let address = 1u64 << 31 | u64::from(device.assigned.slot()) << 11 | u64::from(offset);
        puppet.port_write(0xcf8, 4, address)?;
        expect("CONFIG_ADDRESS", puppet.port_read(0xcf8, 4)?, address)?;
        expect("CONFIG_DATA", puppet.port_read(0xcfc, 4)?, driver.config(offset, 4)?)?;
        expect("its upper half", puppet.port_read(0xcfe, 2)?, driver.config(offset + 2, 2)?)?;
    }
    puppet.port_write(0xcf8, 4, 1 << 31 | 0x1f << 11)?;
    expect("an empty slot", puppet.port_read(0xcfc, 4)?, 0xffff_ffff)?;
    guest.session.stop()
}

fn reset(context: &mut Context) -> Result<()> {
    const EXPRESS: u8 = 0x10;
    let mut guest = Guest::start(Delivery::Irqfd, Kind::Msix)?;
    let mut device = attached(context, &mut guest, Need::Nvme)?;
    guest.raise(&mut device, 1)?;
    let driver = guest.session.driver(&device.assigned);
    let at = driver.capability(EXPRESS)?.ok_or_else(|| Error::new("nvme is no PCI Express device"))?;
    if driver.config(at + 4, 4)? & 1 << 28 == 0 {
        return Err(Error::new("nvme does not offer a function-level reset"));
    }
    let bars = [driver.config(BAR0, 4)?, driver.config(BAR0 + 4, 4)?];
    let control = driver.config(at + 8, 2)?;
    driver.set_config(at + 8, 2, control | 1 << 15)?;
    expect("the command register after it", driver.config(COMMAND, 2)?, 0)?;
    expect("MSI-X after it", driver.config(driver.capability(0x11)?.unwrap_or(0) + 2, 2)? >> 15, 0)?;
    // As a driver does after it: registers back, interrupts anew.
    driver.set_config(BAR0, 4, bars[0])?;
    driver.set_config(BAR0 + 4, 4, bars[1])?;
    driver.enable()?;
    let gates = device.gates.clone();
    driver.enable_msix(&gates)?;
    expect("the controller is off", guest.hands(&device).read(0, 0x1c, 4) & 1, 0)?;
    let mut hands = guest.hands(&device);
    device.driver.set_up(&mut hands, Kind::Msix, pollvisor::guest::SCRATCH.start)?;
    // Its commands interrupt, too: until the last of those has been handled.
    let mut before = Vec::new();
    while before != guest.handled(&device) {
        before = guest.handled(&device);
        std::thread::sleep(Duration::from_millis(100));
    }
    guest.raise(&mut device, 2)?;
    guest.session.stop()
}

/// BAR 0 by exits only: the device does not notice.
fn excluded(context: &mut Context) -> Result<()> {
    let guest = Guest::start(Delivery::Irqfd, Kind::Msix)?;
    let text = format!("host={},x_exclude_mmap_bars=[0]", context.address(Need::Igb)?);
    let mut wanted: DeviceArg = text.parse().map_err(Error::new)?;
    wanted.iommufd = Some(false);
    let assigned = guest.session.attach(&wanted, guest.via(Delivery::Irqfd, 0)?)?;
    if assigned.mapped(0, STATUS)?.is_some() || assigned.mapped(3, 0x2000)?.is_some() {
        return Err(Error::new("BAR 0, or a page of the MSI-X table, is mapped"));
    }
    let driver = guest.session.driver(&assigned);
    driver.enable()?;
    let (puppet, bar) = (guest.session.puppet(), driver.bar(0)?);
    let first = puppet.read(bar + STATUS, 4)?;
    if first == 0xffff_ffff || first == 0 {
        return Err(Error::new(format!("igb's status register reads {first:#x}")));
    }
    for _ in 0..100 {
        expect("igb's status", puppet.read(bar + STATUS, 4)?, first)?;
    }
    guest.session.stop()
}

/// `irq_cpus=` sends the host's interrupts of the device there.
fn affinity(context: &mut Context) -> Result<()> {
    let address = context.address(Need::Igb)?;
    for cpu in ["1", "0"] {
        let device = format!("host={address},irq_cpus=@[{cpu}]");
        let mut child = Command::new("./pollvisor")
            .args(["run", "--device", &device, "-D", "60s", "--delivery", "irqfd", "--json"])
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| Error::os("starting ./pollvisor", &e))?;
        let ours = format!("({address})");
        let cpus = || -> Vec<String> {
            let lines = std::fs::read_to_string("/proc/interrupts").unwrap_or_default();
            lines
                .lines()
                .filter(|line| line.contains("vfio-msix") && line.contains(&ours))
                .filter_map(|line| line.trim().split(':').next())
                .map(|irq| {
                    std::fs::read_to_string(format!("/proc/irq/{irq}/smp_affinity_list")).unwrap_or_default()
                })
                .collect()
        };
        let moved = |numbers: &[String]| numbers.len() == 10 && numbers.iter().all(|list| list.trim() == cpu);
        // How long it takes to start is the machine's affair.
        let (began, mut numbers) = (Instant::now(), cpus());
        while !moved(&numbers) && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(50));
            numbers = cpus();
        }
        let killed = child.kill().and_then(|()| child.wait());
        killed.map_err(|e| Error::os("stopping ./pollvisor", &e))?;
        if !moved(&numbers) {
            return Err(Error::new(format!(
                "CPU {cpu} was asked for, and the interrupts' CPUs are {numbers:?}"
            )));
        }
    }
    Ok(())
}
