//! A real function of this machine, given to vfio-pci and back. `POLLVISOR_DEVICE` names one that may be taken; the lab has
//! some.

use crate::harness::tests;
use crate::need::{DEVICE, Need};
use crate::role::{self, Role};
use pollvisor::devices::affinity::set_irq_affinity;
use pollvisor::devices::{Action, Heard, Host, Uevent, Uevents, bind, list, unbind, vfio_path};
use pollvisor::pci::Bdf;
use pollvisor_tests::note;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

tests! {
    alone [Need::Lab] => a_function_goes_to_vfio_and_back;
    kvm [Need::Lab] => interrupts_go_to_the_cpus_asked_for;
}

fn device() -> Bdf {
    std::env::var(DEVICE).expect(DEVICE).parse().expect("a PCI address")
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

fn a_function_goes_to_vfio_and_back() {
    let address = device();
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

/// Ends the command with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _waited = self.0.wait();
    }
}

fn interrupts_go_to_the_cpus_asked_for() {
    let (address, host) = (device(), Host::default());
    let device = format!("host={address}");
    let arguments =
        ["run", "--device", &device, "--delivery", "irqfd", "--interval", "1ms", "-D", "10m", "--json"];
    let mut command = role::command(Role::Pollvisor);
    let command = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    let mut running = Running(command.spawn().expect("the command"));
    // Until its guest has enabled the vectors there are none.
    let began = Instant::now();
    let all = pollvisor::pin::available();
    while set_irq_affinity(&host, address, &all).expect("set").is_empty() {
        let ended = running.0.try_wait().expect("its state");
        assert!(
            ended.is_none() && began.elapsed() < Duration::from_secs(120),
            "no interrupts; ended: {ended:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    for cpu in all {
        let irqs = set_irq_affinity(&host, address, &[cpu]).expect("set");
        assert!(!irqs.is_empty(), "they were there");
        for irq in irqs {
            let list = std::fs::read_to_string(format!("/proc/irq/{}/smp_affinity_list", irq.irq));
            assert_eq!(list.expect("its CPUs").trim(), cpu.to_string());
            note!("{irq:?}");
        }
    }
}
