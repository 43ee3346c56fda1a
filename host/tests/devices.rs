//! A real function of this machine, given to vfio-pci and back. `POLLVISOR_DEVICE` names one that may be taken; without
//! it these tests say SKIPPED.

use pollvisor::devices::affinity::set_irq_affinity;
use pollvisor::devices::{Action, Heard, Host, Uevent, Uevents, bind, list, unbind, vfio_path};
use pollvisor::pci::Bdf;
use std::sync::{Mutex, MutexGuard};

/// The tests take turns with the function.
static TURN: Mutex<()> = Mutex::new(());

fn device() -> Option<(Bdf, MutexGuard<'static, ()>)> {
    let Ok(address) = std::env::var("POLLVISOR_DEVICE") else {
        println!("SKIPPED: POLLVISOR_DEVICE does not name a PCI function");
        return None;
    };
    let address = address.parse().expect("POLLVISOR_DEVICE is a PCI address");
    Some((address, TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)))
}

/// What was heard of the function itself: of drivers that came and went.
fn heard(uevents: &Uevents, address: Bdf) -> Vec<(Action, Option<String>)> {
    let next = || match uevents.next().expect("no error") {
        Some(Heard::Event(event)) => Some(event),
        Some(Heard::Overrun) => panic!("an overrun"),
        None => None,
    };
    let of_it = |event: Uevent| {
        let bound = matches!(event.action, Action::Bind | Action::Unbind);
        (bound && event.pci_slot == Some(address)).then(|| {
            assert_eq!(event.subsystem.as_deref(), Some("pci"));
            (event.action, event.driver)
        })
    };
    std::iter::from_fn(next).filter_map(of_it).collect()
}

#[test]
fn a_function_goes_to_vfio_and_back() {
    let Some((address, _turn)) = device() else { return };
    let host = Host::default();
    let uevents = Uevents::new().expect("a listener");
    let vfio = Some("vfio-pci".to_string());

    let given_back = unbind(&host, address).expect("given back to the host");
    assert_eq!(given_back.before, vfio, "POLLVISOR_DEVICE has to be bound to vfio-pci at first");
    let mut expected = vec![(Action::Unbind, None)];
    expected.extend(given_back.now.clone().map(|driver| (Action::Bind, Some(driver))));
    assert_eq!(heard(&uevents, address), expected);
    let entry =
        |host: &Host| list(host).expect("a list").into_iter().find(|d| d.address == address).expect("it");
    assert_eq!(entry(&host).driver, given_back.now);
    assert!(entry(&host).assignable().is_err());

    let taken = bind(&host, address).expect("taken from the host");
    assert_eq!((&taken.before, &taken.now), (&given_back.now, &vfio));
    let events = heard(&uevents, address);
    assert_eq!(events.last(), Some(&(Action::Bind, vfio)), "{events:?}");
    assert_eq!(events.len(), 1 + usize::from(given_back.now.is_some()));
    assert_eq!(entry(&host).assignable(), Ok(()));
    let paths = vfio_path(&host, address).expect("paths");
    let node = paths.group_node(&host).expect("a group");
    assert!(node.exists() || paths.cdev.is_some_and(|cdev| cdev.exists()), "{}", node.display());
}

#[test]
fn interrupts_go_to_the_cpus_asked_for() {
    let Some((address, _turn)) = device() else { return };
    for cpu in pollvisor::pin::available() {
        let irqs = set_irq_affinity(&Host::default(), address, &[cpu]).expect("set");
        if irqs.is_empty() {
            return println!("SKIPPED: no VMM has interrupts of {address} enabled");
        }
        for irq in irqs {
            let list = std::fs::read_to_string(format!("/proc/irq/{}/smp_affinity_list", irq.irq));
            assert_eq!(list.expect("its CPUs").trim(), cpu.to_string());
            println!("{irq:?}");
        }
    }
}
