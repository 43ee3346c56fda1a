//! `pollvisor devices` and `pollvisor mdev`: results on stdout, everything else on stderr.

use super::mdev::{self, Mdev, MdevType};
use super::{DeviceAddress, Host, Obstacle, PciDevice, Rebound, bind, list, unbind};
use crate::accel::choose;
use crate::cli::{DevicesCommand, MdevCommand};
use crate::error::{Error, Result};
use crate::pci::Bdf;
use comfy_table::{Table, presets};
use serde::Serialize;

/// Runs `pollvisor devices`.
///
/// # Errors
/// What failed; of several devices all are tried, and the last failure is returned.
pub fn devices(host: &Host, command: &DevicesCommand) -> Result<()> {
    match command {
        DevicesCommand::List { json: true } => print_json(&list(host)?),
        DevicesCommand::List { json: false } => {
            let devices = list(host)?;
            println!("{}", table(&devices));
            eprint!("{}", advice(&devices));
            Ok(())
        }
        DevicesCommand::Test { addresses, run } => {
            let flag = ("devices test", true, "maps nothing into a guest and runs no driver");
            choose(run.accel)?.refuse(&[flag])?;
            let mut run = (**run).clone();
            run.device.extend(addresses.iter().map(|address| DeviceAddress::Pci(*address).into()));
            crate::run::run(&run).map(drop)
        }
        DevicesCommand::Bind { addresses } => rebind(host, addresses, bind),
        DevicesCommand::Unbind { addresses } => rebind(host, addresses, unbind),
    }
}

/// Runs `pollvisor mdev`.
///
/// # Errors
/// What failed.
pub fn mdev(host: &Host, command: &MdevCommand) -> Result<()> {
    match command {
        MdevCommand::List { json } => {
            let (types, devices) = (mdev::types(host), mdev::devices(host));
            if *json {
                return print_json(&serde_json::json!({ "types": types, "devices": devices }));
            }
            if types.is_empty() && devices.is_empty() {
                eprintln!("no device of this host makes mediated devices");
            }
            print!("{}", mdev_tables(&types, &devices));
        }
        MdevCommand::Create { parent, kind, uuid } => {
            println!("{}", mdev::create(host, parent, kind, uuid.as_deref())?);
        }
        MdevCommand::Remove { uuid } => println!("{}", mdev::remove(host, uuid)?),
    }
    Ok(())
}

fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::new(format!("writing JSON: {e}")))?;
    println!("{text}");
    Ok(())
}

fn rebind(host: &Host, addresses: &[Bdf], change: fn(&Host, Bdf) -> Result<Rebound>) -> Result<()> {
    let mut failed = None;
    for address in addresses {
        match change(host, *address) {
            Ok(rebound) => {
                println!("{}", line(&rebound));
                if rebound.now.is_none() {
                    let alias = host.sys.join(format!("bus/pci/devices/{address}/modalias"));
                    eprintln!("no loaded driver takes {address}\n  try: modprobe $(cat {})", alias.display());
                }
            }
            // The last is printed by who called.
            Err(error) => {
                if let Some(earlier) = failed.replace(error) {
                    eprintln!("pollvisor: {earlier}");
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

fn line(rebound: &Rebound) -> String {
    let name = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "no driver".into());
    let Rebound { address, before, now } = rebound;
    if before == now {
        return format!("{address}: {}, as before", name(now));
    }
    format!("{address}: {} → {}", name(before), name(now))
}

fn or<T: ToString>(value: Option<T>, other: &str) -> String {
    value.map_or_else(|| other.to_string(), |value| value.to_string())
}

fn table(devices: &[PciDevice]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header([
        "address",
        "id",
        "class",
        "driver",
        "group",
        "NUMA",
        "MSI-X",
        "MSI",
        "INTx",
        "VFs",
        "assignable",
    ]);
    for device in devices {
        let others = device.group_members.len();
        let shared = if others == 0 { String::new() } else { format!(" +{others}") };
        let group = device.vfio.group.map(|group| format!("{group}{shared}"));
        let pin = device
            .intx_pin
            .map(|pin| ["-", "A", "B", "C", "D"].get(usize::from(pin)).unwrap_or(&"?").to_string());
        table.add_row([
            device.address.to_string(),
            format!("{:04x}:{:04x}", device.vendor, device.device),
            device.class.to_string(),
            or(device.driver.as_ref(), "-"),
            or(group, "-"),
            or(device.numa_node, "-"),
            or(device.msix_vectors, "?"),
            or(device.msi_vectors, "?"),
            or(pin, "?"),
            or(device.sriov.map(|sriov| format!("{} of {}", sriov.enabled, sriov.total)), "-"),
            if device.assignable().is_ok() { "yes" } else { "no" }.to_string(),
        ]);
    }
    table
}

/// What is in the way of those that are not assignable, once for all devices that share it. Bridges are left out.
fn advice(devices: &[PciDevice]) -> String {
    let mut shared: Vec<(&Obstacle, Vec<String>)> = Vec::new();
    for device in devices.iter().filter(|device| device.class.0 >> 16 != 0x06) {
        for obstacle in &device.obstacles {
            match shared.iter_mut().find(|(other, _)| *other == obstacle) {
                Some((_, addresses)) => addresses.push(device.address.to_string()),
                None => shared.push((obstacle, vec![device.address.to_string()])),
            }
        }
    }
    let line = |(obstacle, addresses): (&Obstacle, Vec<String>)| {
        format!("{}: {}\n  try: {}\n", addresses.join(", "), obstacle.what, obstacle.remedy)
    };
    shared.into_iter().map(line).collect()
}

fn mdev_tables(types: &[MdevType], devices: &[Mdev]) -> String {
    let new = |header: &[&str]| {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY);
        table.set_header(header);
        table
    };
    let mut text = String::new();
    if !types.is_empty() {
        let mut table = new(&["parent", "type", "name", "available", "API", "description"]);
        for offer in types {
            table.add_row([
                offer.parent.clone(),
                offer.id.clone(),
                or(offer.name.as_ref(), "-"),
                or(offer.available, "?"),
                or(offer.device_api.as_ref(), "?"),
                or(offer.description.as_ref(), "-"),
            ]);
        }
        text.push_str(&format!("{table}\n"));
    }
    if !devices.is_empty() {
        let mut table = new(&["device", "parent", "type", "driver", "group"]);
        for device in devices {
            table.add_row([
                device.uuid.to_string(),
                or(device.parent.as_ref(), "?"),
                or(device.mdev_type.as_ref(), "?"),
                or(device.driver.as_ref(), "-"),
                or(device.iommu_group, "-"),
            ]);
        }
        text.push_str(&format!("{table}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    #[test]
    fn a_row_for_each_function_and_advice_once() {
        let fixture = Fixture::new();
        fixture.pci("0000:00:01.0", 0x06_0400, Some("pcieport"), Some(1));
        fixture.pci("0000:01:00.0", 0x02_0000, Some("igb"), None);
        fixture.pci("0000:02:00.0", 0x02_0000, Some("igb"), None);
        let devices = list(&fixture.host).expect("a list");
        let text = table(&devices).to_string();
        for word in ["0000:00:01.0", "8086:10c9", "bridge", "network", "pcieport", "igb"] {
            assert!(text.contains(word), "no {word} in {text}");
        }
        assert_eq!(text.matches(" no ").count(), 3, "{text}");
        let text = advice(&devices);
        assert!(text.starts_with("0000:01:00.0, 0000:02:00.0: it has no IOMMU group\n  try: "), "{text}");
        assert_eq!(text.matches("pollvisor devices bind").count(), 2, "{text}");
        assert!(!text.contains("bridge"), "{text}");
    }

    #[test]
    fn changes_in_a_line() {
        let address = "01:00.0".parse().expect("an address");
        let change = |before: Option<&str>, now: Option<&str>| {
            let text = |name: Option<&str>| name.map(ToString::to_string);
            line(&Rebound { address, before: text(before), now: text(now) })
        };
        assert_eq!(change(Some("igb"), Some("vfio-pci")), "0000:01:00.0: igb → vfio-pci");
        assert_eq!(change(Some("vfio-pci"), None), "0000:01:00.0: vfio-pci → no driver");
        assert_eq!(change(Some("igb"), Some("igb")), "0000:01:00.0: igb, as before");
    }
}
