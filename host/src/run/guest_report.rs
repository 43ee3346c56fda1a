//! The figures of a guest that was booted: per device and vector, what was drained of its eventfd and how long injecting
//! took. When the device signalled is not known, so stages that begin there are absent; what the kernel's irqfds deliver,
//! nobody here counts.

use super::guest::How;
use super::guest_devices::Attached;
use super::name;
use super::report::{Ledger, StageFigures, microseconds};
use crate::error::{Error, Result};
use crate::legacy::End;
use crate::machine::Machine;
use crate::record::{Figures, Stage};
use comfy_table::{CellAlignment, Table, presets};
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::route::Msi;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

/// What the guest's driver wrote for a vector, the IOMMU's remapping not applied.
#[derive(Debug, Serialize)]
struct Message {
    address: u64,
    data: u32,
}

impl From<Msi> for Message {
    fn from(msi: Msi) -> Self {
        Self { address: u64::from(msi.address_hi) << 32 | u64::from(msi.address_lo), data: msi.data }
    }
}

/// One vector.
#[derive(Debug, Serialize)]
struct Vector {
    /// Its number, or `intx`.
    vector: String,
    /// Where it goes now; absent while the guest masks it, and of INTx.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message>,
    ledger: Ledger,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen_to_injected: Option<StageFigures>,
    #[serde(skip)]
    slot: usize,
}

/// One device.
#[derive(Debug, Serialize)]
struct Device {
    name: String,
    delivery: String,
    /// Those that signalled.
    vectors: Vec<Vector>,
}

/// See the module's text.
#[derive(Debug, Serialize)]
pub(super) struct GuestReport {
    /// `running`, `shutdown`, `reboot`, `panic`, `signal 15` or `failure`.
    ended: String,
    seconds: f64,
    ledger: Ledger,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen_to_injected: Option<StageFigures>,
    spurious: u64,
    deferred: u64,
    /// Vectors handed over, each time counted; absent without `--hand-over`.
    #[serde(skip_serializing_if = "Option::is_none")]
    hand_overs: Option<u64>,
    devices: Vec<Device>,
    machine: Machine,
}

/// All that was drained, and so all that was sent.
fn ledger(outcome: Outcome) -> Ledger {
    Ledger::new(outcome.signals(), outcome)
}

impl GuestReport {
    /// The figures so far.
    pub fn new(devices: &[Arc<Attached>], figures: &Figures, machine: &Machine, time: Duration) -> Self {
        let mut total = Outcome::default();
        let mut of = |attached: &Arc<Attached>| {
            let device = &attached.device;
            let mut messages = device.messages().unwrap_or_default();
            let slots = device.slots();
            let last = slots.len().saturating_sub(1);
            let vectors = slots.iter().enumerate().map(|(n, slot)| {
                let slot = usize::try_from(*slot).unwrap_or(usize::MAX);
                let mut outcome = figures.ledger.get(slot).copied().unwrap_or_default();
                outcome += device.counted(slot);
                total += outcome;
                let stages = figures.vectors.get(slot);
                let histogram = stages.and_then(|stages| stages.get(Stage::SeenToInjected));
                Vector {
                    message: messages.get_mut(n).and_then(Option::take).map(Message::from),
                    vector: if n == last { "intx".into() } else { n.to_string() },
                    ledger: ledger(outcome),
                    seen_to_injected: histogram.and_then(StageFigures::of),
                    slot,
                }
            });
            Device {
                name: device.name().to_string(),
                delivery: name(attached.by),
                vectors: vectors.collect(),
            }
        };
        let devices = devices.iter().map(&mut of).collect();
        Self {
            ended: "running".into(),
            seconds: time.as_secs_f64(),
            ledger: ledger(total),
            seen_to_injected: figures.stages.get(Stage::SeenToInjected).and_then(StageFigures::of),
            spurious: figures.spurious,
            deferred: figures.deferred,
            hand_overs: None,
            devices,
            machine: machine.clone(),
        }
    }

    /// What came while everything was taken down: counted, and in no percentile.
    pub fn add_late(&mut self, figures: &Figures) {
        let mut total = self.ledger;
        for vector in self.devices.iter_mut().flat_map(|device| &mut device.vectors) {
            let late = figures.ledger.get(vector.slot).copied().unwrap_or_default();
            for ledger in [&mut vector.ledger, &mut total] {
                ledger.sent += late.signals();
                ledger.delivered += late.delivered;
                ledger.merged += late.merged;
                ledger.dropped += late.dropped;
            }
        }
        self.ledger = total;
        self.spurious += figures.spurious;
    }

    /// How often vectors were handed over; the part of the kernel's irqfds is in no ledger.
    pub fn handed_over(&mut self, moves: Option<u64>) {
        self.hand_overs = moves;
    }

    /// How it ended.
    pub fn ended(&mut self, how: How) {
        self.ended = match how {
            How::Guest(End::Shutdown) => "shutdown".into(),
            How::Guest(End::Reboot) => "reboot".into(),
            How::Guest(End::Panic) => "panic".into(),
            How::Signal(number) => format!("signal {number}"),
            How::Failed => "failure".into(),
        };
    }

    fn signalled(&self) -> impl Iterator<Item = (&Device, &Vector)> {
        self.devices.iter().flat_map(|device| {
            device.vectors.iter().filter(|vector| vector.ledger.sent > 0).map(move |vector| (device, vector))
        })
    }

    /// For scripts.
    pub fn json(&self) -> Result<String> {
        let json = serde_json::to_string_pretty(self);
        Ok(json.map_err(|e| Error::new(format!("writing JSON: {e}")))? + "\n")
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY);
        table.set_header([
            "vector",
            "sent",
            "delivered",
            "merged",
            "dropped",
            "seen → injected, µs: p50",
            "p99",
            "max",
        ]);
        let mut row = |who: String, ledger: &Ledger, stage: &Option<StageFigures>| {
            let figure = |of: fn(&StageFigures) -> u64| {
                stage.as_ref().map_or_else(String::new, |stage| microseconds(of(stage)))
            };
            table.add_row([
                who,
                ledger.sent.to_string(),
                ledger.delivered.to_string(),
                ledger.merged.to_string(),
                ledger.dropped.to_string(),
                figure(|f| f.p50_ns),
                figure(|f| f.p99_ns),
                figure(|f| f.max_ns),
            ]);
        };
        for (device, vector) in self.signalled() {
            row(format!("{} {}", device.name, vector.vector), &vector.ledger, &vector.seen_to_injected);
        }
        row("all".into(), &self.ledger, &self.seen_to_injected);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!("{}\n{table}\n", self.machine.accelerator.headline());
        let kernel = self.devices.iter().filter(|device| device.delivery == "irqfd");
        for device in kernel {
            text.push_str(&format!("{}: delivered by the kernel, which does not count\n", device.name));
        }
        if let Some(moves) = self.hand_overs {
            text.push_str(&format!(
                "{moves} hand-overs; what the kernel delivered in between is not counted\n"
            ));
        }
        text.push_str(&format!("{} after {:.1} s; {} spurious\n", self.ended, self.seconds, self.spurious));
        text.push_str(&format!("{}\n", self.machine.line()));
        for warning in &self.machine.warnings {
            text.push_str(&format!("note: {warning}\n"));
        }
        text
    }
}
