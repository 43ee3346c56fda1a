//! A mediated device with two ports in a Linux guest, whose own serial driver knows it.

use super::{PARENT, TWO, fresh, removed};
use crate::lab::linux::start;
use crate::lab::{Context, Need};
use pollvisor::devices::mdev;
use pollvisor::error::{Error, Result};

pub(super) const NEEDS: &[Need] = &[Need::Mtty, Need::Kvm, Need::Linux];

/// What goes through its ports comes back whole.
pub(super) fn talks(context: &mut Context, delivery: &str, irqchip: &str) -> Result<()> {
    let host = fresh()?;
    let uuid = mdev::create(&host, PARENT, TWO, None)?;
    let device = format!("path=/sys/bus/mdev/devices/{uuid}");
    let arguments = ["--device", &device, "--delivery", delivery, "--irqchip", irqchip];
    let ended = start("vmlinux", "serial", &arguments)?.end()?.with(0)?;
    for port in ["ttyS1", "ttyS2"] {
        let received = ended.line(&format!("{port} received"))?;
        if received != ".".repeat(40) {
            return Err(Error::new(format!("{port} received {received:?}")));
        }
    }
    let ledger = &ended.report["ledger"];
    context.note(format!("400 bytes through each of two ports; {ledger}"));
    // The kernel's irqfd counts nothing.
    let counts = delivery != "irqfd";
    if counts && (ledger["delivered"].as_u64().unwrap_or(0) < 2 || ledger["sent"] != ledger["delivered"]) {
        return Err(Error::new(format!("the ledger: {ledger}")));
    }
    removed(&host, &[uuid])
}
