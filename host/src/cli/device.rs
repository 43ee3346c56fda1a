//! `--device`: which device is assigned, and how. Cloud Hypervisor's `path=`, QEMU's `host=`.

use super::DeliveryArg;
use super::grammar::{bracketed, number, options, switch};
use crate::devices::DeviceAddress;
use crate::pci::Bdf;
use crate::pin::parse_list;
use clap::ValueEnum;
use pollvisor_core::mediated::Uuid;
use std::str::FromStr;

/// `--device`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceArg {
    /// Which.
    pub address: DeviceAddress,
    /// What to call it.
    pub id: Option<String>,
    /// By iommufd; `None`: as the host has it.
    pub iommufd: Option<bool>,
    /// BARs, 0 to 5, that the guest does not get mapped.
    pub exclude_mmap_bars: Vec<u8>,
    /// Host CPUs that take its interrupts; `None`: left as they are.
    pub irq_cpus: Option<Vec<usize>>,
    /// Who delivers its interrupts; `None`: as everything else.
    pub delivery: Option<DeliveryArg>,
}

impl From<DeviceAddress> for DeviceArg {
    /// That device, with everything else by default.
    fn from(address: DeviceAddress) -> Self {
        Self {
            address,
            id: None,
            iommufd: None,
            exclude_mmap_bars: Vec::new(),
            irq_cpus: None,
            delivery: None,
        }
    }
}

impl FromStr for DeviceArg {
    type Err = String;

    /// `path=/sys/bus/pci/devices/0000:01:00.0/[,id=nic0,iommufd=on,x_exclude_mmap_bars=[2],irq_cpus=@[2-5,8],
    /// delivery=polled]`, `path=/sys/bus/mdev/devices/UUID`, or `host=01:00.0`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (mut address, mut id, mut iommufd) = (None, None, None);
        let (mut exclude_mmap_bars, mut irq_cpus, mut delivery) = (Vec::new(), None, None);
        for (key, value) in options(text)? {
            match key {
                "path" | "host" if address.is_some() => return Err("path and host: one of them".into()),
                "path" => address = Some(path(value)?),
                "host" => {
                    address = Some(DeviceAddress::Pci(value.parse().map_err(|e| format!("host: {e}"))?))
                }
                "id" if value.is_empty() => return Err("id is empty".into()),
                "id" => id = Some(value.to_string()),
                "iommufd" => iommufd = Some(switch(key, value)?),
                "x_exclude_mmap_bars" => exclude_mmap_bars = bars(key, value)?,
                "irq_cpus" => irq_cpus = Some(cpus(key, value)?),
                "delivery" => {
                    let known = |_| format!("delivery=`{value}`: polled, irqfd or blocking");
                    delivery = Some(DeliveryArg::from_str(value, false).map_err(known)?);
                }
                _ => {
                    return Err(format!(
                        "`{key}` is not known; path, host, id, iommufd, x_exclude_mmap_bars, irq_cpus and delivery are"
                    ));
                }
            }
        }
        let address = address.ok_or("path=/sys/bus/pci/devices/… or host=01:00.0 is missing")?;
        Ok(Self { address, id, iommufd, exclude_mmap_bars, irq_cpus, delivery })
    }
}

/// A device's folder in sysfs. Its last component is the address; nothing is looked up.
fn path(text: &str) -> Result<DeviceAddress, String> {
    let wrong = || {
        format!("path=`{text}` is not like /sys/bus/pci/devices/0000:01:00.0 or /sys/bus/mdev/devices/UUID")
    };
    let (folder, name) = text.trim_end_matches('/').rsplit_once('/').ok_or_else(wrong)?;
    if !folder.starts_with("/sys/") {
        return Err(wrong());
    }
    // The kernel's names have the domain.
    let full = |address: &Bdf| address.to_string().eq_ignore_ascii_case(name);
    let pci = name.parse().ok().filter(full).map(DeviceAddress::Pci);
    pci.or_else(|| name.parse::<Uuid>().ok().map(DeviceAddress::Mdev)).ok_or_else(wrong)
}

/// `[0,2]`.
fn bars(key: &str, text: &str) -> Result<Vec<u8>, String> {
    let list = bracketed(text).filter(|list| !list.is_empty());
    let list = list.ok_or_else(|| format!("{key}=`{text}`: a list like [2] or [0,2]"))?;
    let mut bars = Vec::new();
    for part in list.split(',') {
        let bar: u8 = number(key, part)?;
        if bar > 5 {
            return Err(format!("{key}: there is no BAR {bar}; 0 to 5 are"));
        }
        if bars.contains(&bar) {
            return Err(format!("{key}: BAR {bar} is given twice"));
        }
        bars.push(bar);
    }
    Ok(bars)
}

/// `@[2-5,8]`.
fn cpus(key: &str, text: &str) -> Result<Vec<usize>, String> {
    let list = text.strip_prefix('@').and_then(bracketed);
    let list = list.ok_or_else(|| format!("{key}=`{text}`: a list like @[2-5,8]"))?;
    let cpus = parse_list(list).map_err(|e| format!("{key}: {e}"))?;
    if cpus.is_empty() {
        return Err(format!("{key}=`{text}` names no CPU"));
    }
    let twice = cpus.iter().enumerate().find(|(at, cpu)| cpus[..*at].contains(cpu));
    twice.map_or(Ok(()), |(_, cpu)| Err(format!("{key}: CPU {cpu} is given twice")))?;
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> Result<DeviceArg, String> {
        text.parse()
    }

    fn bare(address: DeviceAddress) -> DeviceArg {
        let exclude_mmap_bars = Vec::new();
        DeviceArg { address, id: None, iommufd: None, exclude_mmap_bars, irq_cpus: None, delivery: None }
    }

    #[test]
    fn addresses() {
        let pci = DeviceAddress::Pci("01:00.0".parse().expect("an address"));
        for text in [
            "path=/sys/bus/pci/devices/0000:01:00.0/",
            "path=/sys/bus/pci/devices/0000:01:00.0",
            "path=/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0",
            "host=01:00.0",
            "host=0000:01:00.0",
        ] {
            assert_eq!(device(text), Ok(bare(pci)), "{text}");
        }
        let uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
        let mdev = DeviceAddress::Mdev(uuid.parse().expect("a UUID"));
        assert_eq!(device(&format!("path=/sys/bus/mdev/devices/{uuid}")), Ok(bare(mdev)));
    }

    #[test]
    fn everything_at_once() {
        let text = "path=/sys/bus/pci/devices/0000:01:00.0/,id=nic0,iommufd=off,x_exclude_mmap_bars=[2,0],\
                    irq_cpus=@[2-5,8],delivery=irqfd";
        let expected = DeviceArg {
            address: DeviceAddress::Pci("01:00.0".parse().expect("an address")),
            id: Some("nic0".into()),
            iommufd: Some(false),
            exclude_mmap_bars: vec![2, 0],
            irq_cpus: Some(vec![2, 3, 4, 5, 8]),
            delivery: Some(DeliveryArg::Irqfd),
        };
        assert_eq!(device(text), Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("", "key=value"),
            ("id=x", "path="),
            ("host=01:00", "host"),
            ("host=01:00.0,path=/sys/bus/pci/devices/0000:01:00.0", "path"),
            ("path=/sys/bus/pci/devices/01:00.0", "path"),
            ("path=/dev/vfio/7", "path"),
            ("path=0000:01:00.0", "path"),
            ("path=/dev/0000:01:00.0", "path"),
            ("path=/sys/bus/mdev/devices/83b8f4f2", "path"),
            ("path=", "path"),
        ] {
            let error = device(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
        for (rest, word) in [
            ("speed=9", "speed"),
            ("id=a,id=b", "id"),
            ("id=", "id"),
            ("iommufd=maybe", "iommufd"),
            ("x_exclude_mmap_bars=[6]", "x_exclude_mmap_bars"),
            ("x_exclude_mmap_bars=[1,1]", "x_exclude_mmap_bars"),
            ("x_exclude_mmap_bars=[]", "x_exclude_mmap_bars"),
            ("x_exclude_mmap_bars=2", "x_exclude_mmap_bars"),
            ("x_exclude_mmap_bars=[-1]", "x_exclude_mmap_bars"),
            ("irq_cpus=[2]", "irq_cpus"),
            ("irq_cpus=@[]", "irq_cpus"),
            ("irq_cpus=@[a]", "irq_cpus"),
            ("irq_cpus=@[2-4,3]", "irq_cpus"),
            ("irq_cpus=@[2", "]"),
            ("delivery=slow", "delivery"),
        ] {
            let error = device(&format!("host=01:00.0,{rest}")).expect_err(rest);
            assert!(error.contains(word), "{rest}: {error}");
        }
    }
}
