//! What the devices' own DMA can reach: the memory that was mapped for them, in the direction allowed, and no other.

use crate::lab::assigned::{Assigned, By};
use crate::lab::devices::{Access, Device, Direction, Edu, Kind, Nvme, Transfer};
use crate::lab::in_guest::{Delivery, Guest, Hands};
use crate::lab::{Context, Need, Scenario};
use pollvisor::error::{Error, Result};
use pollvisor::guest::SCRATCH;
use pollvisor::sys::fd::EventFd;
use pollvisor::sys::vfio::DmaAccess;
use std::process::Command;
use std::time::Duration;

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "dma: edu", needs: &[Need::Edu], run: |c| edu(c, By::Group) },
    Scenario { name: "dma: nvme", needs: &[Need::Nvme], run: nvme },
    Scenario { name: "dma: guest: edu", needs: &[Need::Kvm, Need::Edu], run: |c| in_guest(c, false) },
    Scenario {
        name: "cdev: dma: guest: edu",
        needs: &[Need::Iommufd, Need::Kvm, Need::Edu],
        run: |c| in_guest(c, true),
    },
    Scenario { name: "cdev: dma: edu", needs: &[Need::Iommufd, Need::Edu], run: |c| edu(c, By::File) },
];

const PAGE: usize = 4096;
const SOURCE: u64 = 0x10_0000;
const TARGET: u64 = 0x10_2000;
const READ_ONLY: u64 = 0x10_4000;
const NOWHERE: u64 = 0x20_0000;

/// edu's buffer and memory, both ways.
struct Mover<'a> {
    device: &'a mut Assigned,
    edu: Edu,
    data: Vec<u8>,
}

impl Mover<'_> {
    fn transfer(&mut self, direction: Direction, address: u64, interrupt: bool) -> Result<()> {
        let transfer = Transfer { direction, address, offset: 0, length: PAGE as u64, interrupt };
        self.edu.dma(self.device, transfer)
    }

    /// From the device's buffer to memory that holds something else; whether it got there, whole.
    fn writes(&mut self, address: u64) -> Result<bool> {
        let (before, mut after) = (vec![0x5a; PAGE], vec![0; PAGE]);
        self.device.write_memory(address, &before);
        self.transfer(Direction::ToMemory, address, false)?;
        self.device.read_memory(address, &mut after);
        match after {
            after if after == self.data => Ok(true),
            after if after == before => Ok(false),
            _ => {
                Err(Error::new(format!("memory at {address:#x} is neither what it was nor what was written")))
            }
        }
    }

    fn expect(&mut self, what: &str, address: u64, wanted: bool) -> Result<()> {
        if self.writes(address)? == wanted {
            return Ok(());
        }
        Err(Error::new(format!("{what}: the write {}", if wanted { "did not arrive" } else { "arrived" })))
    }
}

fn edu(context: &mut Context, by: By) -> Result<()> {
    let mut device = Assigned::open(context.address(Need::Edu)?, by)?;
    device.add_memory(SOURCE, PAGE, DmaAccess::Read)?;
    device.add_memory(TARGET, PAGE, DmaAccess::ReadWrite)?;
    device.add_memory(READ_ONLY, PAGE, DmaAccess::Read)?;
    let data: Vec<u8> = (0..PAGE).map(|_| fastrand::u8(..)).collect();
    device.write_memory(SOURCE, &data);
    let event = EventFd::new()?;
    device.signal(Kind::Msi, std::slice::from_ref(&event))?;
    let mut edu = Edu::new();
    edu.set_up(&mut device, Kind::Msi, 0)?;

    let mut mover = Mover { device: &mut device, edu, data };
    mover.transfer(Direction::ToDevice, SOURCE, true)?;
    event.wait(1000);
    match event.take() {
        1 => mover.edu.acknowledge(mover.device, 0)?,
        seen => return Err(Error::new(format!("the end of a transfer interrupted {seen} times"))),
    }
    mover.expect("mapped memory", TARGET, true)?;
    mover.expect("memory mapped for reading", READ_ONLY, false)?;
    mover.device.hide(TARGET)?;
    mover.expect("memory that was taken back", TARGET, false)?;
    mover.device.show(TARGET, DmaAccess::ReadWrite)?;
    mover.expect("memory mapped again", TARGET, true)?;
    // Nothing is there to be looked at; that the device goes on is all there is.
    mover.transfer(Direction::ToMemory, NOWHERE, false)?;
    mover.expect("after a write to nowhere", TARGET, true)?;
    mover.edu.quiet(mover.device)
}

/// The guest's driver moves data: into the guest's memory it goes, beyond that it is blocked.
fn in_guest(context: &mut Context, iommufd: bool) -> Result<()> {
    let mut guest = Guest::start(Delivery::Blocking, Kind::Msi)?;
    let via = guest.via(Delivery::Blocking, 0)?;
    let device = guest.attach(context, Need::Edu, (Kind::Msi, 1), via, iommufd)?;
    let device = device.ok_or_else(|| Error::new("edu has no MSI"))?;
    let (mut edu, mut hands) = (Edu::new(), guest.hands(&device));
    let (source, target, beyond) = (SCRATCH.start, SCRATCH.end - PAGE as u64, SCRATCH.end);
    let data: Vec<u8> = (0..PAGE).map(|_| fastrand::u8(..)).collect();
    hands.write_memory(source, &data);
    let mut transfer = |direction, address, hands: &mut Hands<'_>| {
        edu.dma(hands, Transfer { direction, address, offset: 0, length: PAGE as u64, interrupt: false })
    };
    transfer(Direction::ToDevice, source, &mut hands)?;
    transfer(Direction::ToMemory, target, &mut hands)?;
    let mut arrived = vec![0; PAGE];
    hands.read_memory(target, &mut arrived);
    if arrived != data {
        return Err(Error::new("the last page of the guest's memory is not what was written"));
    }
    transfer(Direction::ToMemory, beyond, &mut hands)?;
    hands.write_memory(target, &[0x5a; PAGE]);
    transfer(Direction::ToMemory, target, &mut hands)?;
    hands.read_memory(target, &mut arrived);
    if arrived != data {
        return Err(Error::new("after a write beyond the memory the device is not what it was"));
    }
    let fault = format!("fault addr {beyond:#x}");
    // The kernel tells of ten faults in five seconds, and another scenario may have had them.
    for _ in 0..4 {
        let log = Command::new("dmesg").output().map_err(|e| Error::os("dmesg", &e))?;
        if String::from_utf8_lossy(&log.stdout).contains(&fault) {
            return guest.session.stop();
        }
        std::thread::sleep(Duration::from_secs(2));
        transfer(Direction::ToMemory, beyond, &mut hands)?;
    }
    Err(Error::new(format!("the IOMMU did not tell of a blocked write: no `{fault}` in the kernel's log")))
}

fn nvme(context: &mut Context) -> Result<()> {
    let mut device = Assigned::open(context.address(Need::Nvme)?, By::Group)?;
    let mut nvme = Nvme::new();
    device.add_memory(SOURCE, nvme.memory(), DmaAccess::ReadWrite)?;
    // No interrupts are turned on, and only the admin queue is wanted.
    nvme.set_up(&mut device, Kind::Intx, SOURCE)?;
    let data = nvme.identify(&mut device)?;
    let (vendor, text) = (u16::from_le_bytes([data[0], data[1]]), |from: usize, to: usize| {
        String::from_utf8_lossy(&data[from..to]).trim_end().to_owned()
    });
    context.note(format!("vendor {vendor:04x}, serial {}, model {}", text(4, 24), text(24, 64)));
    // Entries of the queues have at least 64 and 16 bytes (SQES, CQES): a figure the specification fixes.
    if data[512] & 0xf != 6 || data[513] & 0xf != 4 || data[..PAGE].iter().all(|byte| *byte == data[0]) {
        return Err(Error::new("the Identify data did not arrive in memory"));
    }
    nvme.quiet(&mut device)
}
