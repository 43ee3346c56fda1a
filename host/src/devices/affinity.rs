//! Which CPUs take a device's interrupts on the host.
//!
//! VFIO names them by device and vector (`vfio_msi_set_vector_signal`, `vfio_intx_set_signal`), and they are there only
//! while a VMM has them enabled.

use super::Host;
use super::sysfs::{self, Write};
use crate::error::{Error, Result};
use crate::pci::Bdf;
use crate::pin::parse_list;
use serde::Serialize;

/// A host interrupt of an assigned device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Irq {
    /// Its number in `/proc/interrupts`.
    pub irq: u32,
    /// The device's vector, 0 for INTx.
    pub vector: u32,
    /// The CPU asked for.
    pub cpu: usize,
    /// The CPUs that it goes to, as the kernel says afterwards; `None`: not said. A change may wait for the next
    /// interrupt, so this can lag.
    pub effective: Option<Vec<usize>>,
}

/// Sends the VFIO interrupts of a device to `cpus` in turn, in the order of its vectors; what was set. Empty when no VMM
/// has any enabled.
///
/// # Errors
/// EACCES or EPERM without root, EIO for an interrupt that cannot be moved there, EINVAL for a CPU that is not online,
/// ENOSPC for one whose vectors are all taken.
pub fn set_irq_affinity(host: &Host, address: Bdf, cpus: &[usize]) -> Result<Vec<Irq>> {
    set_with(host, address, cpus, &mut sysfs::write)
}

fn set_with(host: &Host, address: Bdf, cpus: &[usize], write: Write<'_>) -> Result<Vec<Irq>> {
    if cpus.is_empty() {
        return Err(Error::new(format!("no CPUs are given for the interrupts of {address}")));
    }
    let interrupts = sysfs::must_read(&host.proc.join("interrupts"))?;
    let mut irqs = Vec::new();
    for ((vector, irq), cpu) in vfio_irqs(&interrupts, address).into_iter().zip(cpus.iter().cycle()) {
        let folder = host.proc.join(format!("irq/{irq}"));
        let path = folder.join("smp_affinity_list");
        write(&path, &cpu.to_string()).map_err(|error| {
            sysfs::write_error(&path, &cpu.to_string(), &error)
                .context(format!("sending interrupt {irq}, vector {vector} of {address}, to CPU {cpu}"))
                .remedy_for(libc::EIO, "choose another CPU: this one cannot take the interrupt")
                .remedy_for(libc::EINVAL, "choose a CPU that is online (/sys/devices/system/cpu/online)")
                .remedy_for(libc::EOVERFLOW, "choose a CPU that is online (/sys/devices/system/cpu/online)")
                .remedy_for(libc::ENOSPC, "choose another CPU: all interrupt vectors of this one are taken")
        })?;
        let effective = sysfs::read(folder.join("effective_affinity_list"));
        let effective = effective.and_then(|list| parse_list(&list).ok());
        irqs.push(Irq { irq, vector, cpu: *cpu, effective });
    }
    Ok(irqs)
}

/// The device's VFIO interrupts in a text like `/proc/interrupts`: (vector, number), by vector.
fn vfio_irqs(interrupts: &str, address: Bdf) -> Vec<(u32, u32)> {
    let line = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        let number = number.trim().parse().ok()?;
        // Handlers that share an interrupt stand in one line, separated by `, `.
        let mut words = rest.split([' ', '\t', ',']).rev();
        words.find_map(|word| Some((vector(word, address)?, number)))
    };
    let mut irqs: Vec<_> = interrupts.lines().filter_map(line).collect();
    irqs.sort_unstable();
    irqs
}

/// The vector of a handler's name: `vfio-msix[3](0000:01:00.0)`, `vfio-msi[0](…)`, `vfio-intx(…)`.
fn vector(word: &str, address: Bdf) -> Option<u32> {
    let kind = word.strip_suffix(')')?.strip_suffix(&address.to_string())?.strip_suffix('(')?;
    let kind = kind.strip_prefix("vfio-")?;
    if kind == "intx" {
        return Some(0);
    }
    kind.strip_prefix("msix[").or_else(|| kind.strip_prefix("msi["))?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    const INTERRUPTS: &str = "           CPU0       CPU1
  9:          0          0  IR-IO-APIC   9-fasteoi   acpi
 16:          0          0  IR-IO-APIC  16-fasteoi   vfio-intx(0000:03:00.0), ehci_hcd:usb1
 45:          7          0  IR-PCI-MSIX-0000:01:00.0   2-edge      vfio-msix[10](0000:01:00.0)
 46:          0          0  IR-PCI-MSIX-0000:01:00.0   1-edge      vfio-msix[2](0000:01:00.0)
 47:          0          0  IR-PCI-MSIX-0000:01:00.1   0-edge      vfio-msix[0](0000:01:00.1)
 48:          0          0  IR-PCI-MSIX-0000:01:00.0   0-edge      vfio-msix[0](0000:01:00.0)
 49:          0          0  IR-PCI-MSI-0000:04:00.0    0-edge      vfio-msi[0](0000:04:00.0)
 50:          0          0  IR-PCI-MSIX-0000:05:00.0   0-edge      eth0-TxRx-0
NMI:          0          0   Non-maskable interrupts
";

    fn address(text: &str) -> Bdf {
        text.parse().expect("an address")
    }

    #[test]
    fn names_are_read() {
        let irqs = |text: &str| vfio_irqs(INTERRUPTS, address(text));
        assert_eq!(irqs("01:00.0"), [(0, 48), (2, 46), (10, 45)]);
        assert_eq!(irqs("01:00.1"), [(0, 47)]);
        assert_eq!(irqs("03:00.0"), [(0, 16)]);
        assert_eq!(irqs("04:00.0"), [(0, 49)]);
        assert!(irqs("05:00.0").is_empty());
        for odd in
            ["", ":", "1", "1: vfio-msix[](0000:05:00.0)", "1: (0000:05:00.0)", "x: vfio-intx(0000:05:00.0)"]
        {
            assert!(vfio_irqs(odd, address("05:00.0")).is_empty(), "{odd}");
        }
    }

    fn machine() -> Fixture {
        let fixture = Fixture::new();
        fixture.file("proc/interrupts", INTERRUPTS);
        for irq in [45, 46, 48] {
            fixture.file(&format!("proc/irq/{irq}/smp_affinity_list"), "0-1\n");
        }
        fixture.file("proc/irq/48/effective_affinity_list", "5\n");
        fixture
    }

    #[test]
    fn vectors_go_round_the_cpus() {
        let fixture = machine();
        let irqs = set_irq_affinity(&fixture.host, address("01:00.0"), &[5, 8]).expect("set");
        let set: Vec<_> = irqs.iter().map(|irq| (irq.vector, irq.irq, irq.cpu)).collect();
        assert_eq!(set, [(0, 48, 5), (2, 46, 8), (10, 45, 5)]);
        assert_eq!((&irqs[0].effective, &irqs[1].effective), (&Some(vec![5]), &None));
        for (irq, list) in [(48, "5"), (46, "8"), (45, "5")] {
            assert_eq!(fixture.read(&format!("proc/irq/{irq}/smp_affinity_list")), list);
        }
        assert_eq!(set_irq_affinity(&fixture.host, address("05:00.0"), &[0]), Ok(vec![]));
    }

    #[test]
    fn errors_name_what_to_do() {
        let fixture = machine();
        let host = &fixture.host;
        for (errno, word) in [
            (libc::EACCES, "root"),
            (libc::EPERM, "root"),
            (libc::EIO, "cannot take"),
            (libc::EINVAL, "online"),
            (libc::ENOSPC, "vectors"),
        ] {
            let mut fails = |_: &std::path::Path, _: &str| Err(std::io::Error::from_raw_os_error(errno));
            let error = set_with(host, address("01:00.0"), &[1], &mut fails).expect_err(word);
            assert_eq!(error.errno(), Some(errno));
            let text = error.to_string();
            assert!(text.contains(word) && text.contains("interrupt 48") && text.contains("CPU 1"), "{text}");
        }
        set_irq_affinity(host, address("01:00.0"), &[]).expect_err("no CPUs");
        std::fs::remove_file(fixture.path("proc/interrupts")).expect("the file");
        let error = set_irq_affinity(host, address("01:00.0"), &[1]).expect_err("no file");
        assert_eq!(error.errno(), Some(libc::ENOENT));
    }
}
