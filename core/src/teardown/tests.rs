extern crate std;

use core::cell::RefCell;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// Notes which work ran, and fails when `failing` says so.
struct Trace {
    ran: RefCell<Vec<&'static str>>,
    failures: RefCell<Vec<bool>>,
}

impl Trace {
    fn new(failures: Vec<bool>) -> Self {
        Self { ran: RefCell::default(), failures: RefCell::new(failures) }
    }

    fn work(&self, name: &'static str) -> Result<(), &'static str> {
        if self.failures.borrow_mut().pop() == Some(true) {
            return Err(name);
        }
        self.ran.borrow_mut().push(name);
        Ok(())
    }
}

/// Makes the named steps in order, each again until it succeeds.
macro_rules! walk {
    ($trace:expr, $token:expr, $($step:ident),* $(,)?) => {{
        let token = $token;
        $(
            let mut token = Some(token);
            let token = loop {
                match token.take().expect("given back").$step(|| $trace.work(stringify!($step))) {
                    Ok(next) => break next,
                    Err(Stuck { at, error }) => {
                        assert_eq!(error, stringify!($step));
                        token = Some(at);
                    }
                }
            };
        )*
        token
    }};
}

const VM: [&str; 7] = [
    "stop_sources",
    "remove_routes",
    "remove_buses",
    "stop_vcpus",
    "destroy_chips",
    "grace_period",
    "free_memory",
];
const DEVICE: [&str; 8] = [
    "disable_irqs",
    "stop_listening",
    "remove_route",
    "free_gsi",
    "unmap_bars",
    "close_device",
    "leave_kvm",
    "leave_container",
];

proptest! {
    /// Whatever fails and however often, each step's work succeeds once and in order.
    #[test]
    fn failures_delay_but_do_not_reorder(failures: Vec<bool>) {
        let trace = Trace::new(failures.clone());
        let _: vm::Dead = walk!(trace, vm::Running::new(), stop_sources, remove_routes, remove_buses, stop_vcpus,
            destroy_chips, grace_period, free_memory);
        prop_assert_eq!(trace.ran.into_inner(), VM);

        let trace = Trace::new(failures.clone());
        let up = walk!(trace, device::Opened::new(), add_route, listen, set_irqs);
        prop_assert_eq!(core::mem::take(&mut *trace.ran.borrow_mut()), ["add_route", "listen", "set_irqs"]);
        let _: device::Gone = walk!(trace, up, disable_irqs, stop_listening, remove_route, free_gsi, unmap_bars,
            close_device, leave_kvm, leave_container);
        prop_assert_eq!(trace.ran.into_inner(), DEVICE);

        let trace = Trace::new(failures);
        let _: irq::Low = walk!(trace, irq::Requested::new(), disable, wait, free, disable_msi, unregister_ack, lower);
        prop_assert_eq!(trace.ran.into_inner(), ["disable", "wait", "free", "disable_msi", "unregister_ack", "lower"]);
    }
}

#[test]
fn a_set_up_backs_out_of_what_it_did_and_no_more() {
    let trace = Trace::new(Vec::new());
    let token = device::Opened::new().back_out();
    let _: device::Gone = walk!(trace, token, unmap_bars, close_device, leave_kvm, leave_container);
    let token = walk!(trace, device::Opened::new(), add_route).back_out();
    let _ = walk!(trace, token, remove_route, free_gsi);
    let token = walk!(trace, device::Opened::new(), add_route, listen).back_out();
    let _ = walk!(trace, token, stop_listening, remove_route);
}
