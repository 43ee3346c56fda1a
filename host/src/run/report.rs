//! The result: one table for people, one JSON document for scripts.

use crate::accel::Accelerator;
use crate::accel::software::LapicCounts;
use crate::machine::Machine;
use crate::record::{Figures, Stage, Stages};
use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use pollvisor_core::irqfd::Outcome;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What became of the signals: `sent = delivered + merged + dropped`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Signals made.
    pub sent: u64,
    /// Interrupts that a LAPIC accepted.
    pub delivered: u64,
    /// Signals that share one of those.
    pub merged: u64,
    /// Signals that led to none.
    pub dropped: u64,
}

impl Ledger {
    /// A ledger of what was sent and what became of it.
    #[must_use]
    pub fn new(sent: u64, outcome: Outcome) -> Self {
        let Outcome { delivered, merged, dropped, .. } = outcome;
        Self { sent, delivered, merged, dropped }
    }

    /// Signals that are not accounted for: 0, or something is wrong.
    #[must_use]
    pub fn missing(&self) -> i128 {
        i128::from(self.sent)
            - i128::from(self.delivered)
            - i128::from(self.merged)
            - i128::from(self.dropped)
    }
}

/// A stage's figures, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageFigures {
    /// Samples.
    pub count: u64,
    /// The shortest.
    pub min_ns: u64,
    /// Percentiles.
    pub p50_ns: u64,
    /// 90 %.
    pub p90_ns: u64,
    /// 99 %.
    pub p99_ns: u64,
    /// 99.9 %.
    pub p999_ns: u64,
    /// 99.99 %.
    pub p9999_ns: u64,
    /// 99.999 %.
    pub p99999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl StageFigures {
    /// The figures of a histogram; `None` of an empty one.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| histogram.value_at_quantile(quantile);
        (!histogram.is_empty()).then(|| Self {
            count: histogram.len(),
            min_ns: histogram.min(),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            p9999_ns: at(0.9999),
            p99999_ns: at(0.99999),
            max_ns: histogram.max(),
        })
    }
}

type StageMap = BTreeMap<&'static str, StageFigures>;

fn stage_map(stages: &Stages) -> StageMap {
    let figures = |stage: &Stage| Some((stage.key(), StageFigures::of(stages.get(*stage)?)?));
    Stage::ALL.iter().filter_map(figures).collect()
}

/// One vector's result.
#[derive(Debug, Serialize)]
pub struct VectorReport {
    /// Its number.
    pub vector: usize,
    /// Its signals.
    pub ledger: Ledger,
    /// Handler runs; absent when no guest ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handled: Option<u64>,
    /// Its latencies.
    pub stages: StageMap,
}

/// The software LAPICs' account: `accepted = taken + coalesced + pending + discarded`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LapicReport {
    /// What senders were told was accepted.
    pub accepted: u64,
    /// What became of it.
    #[serde(flatten)]
    pub counts: LapicCounts,
}

/// A run's result.
#[derive(Debug, Serialize)]
pub struct Report {
    /// All vectors' signals.
    pub ledger: Ledger,
    /// All vectors' latencies; a stage that was not measured is absent.
    pub stages: StageMap,
    /// Handler runs; absent when no guest ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handled: Option<u64>,
    /// Interrupts that the LAPICs merged before a handler ran; absent when no guest ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coalesced: Option<u64>,
    /// Interrupts injected without a signal.
    pub spurious: u64,
    /// Deliveries whose signal's time is not known.
    pub unstamped: u64,
    /// Latencies below zero: clocks that disagree. They are in no percentile.
    pub negative: u64,
    /// Events that took the slow path.
    pub deferred: u64,
    /// How long was measured, in seconds.
    pub seconds: f64,
    /// Whether it was cut short by a signal.
    pub interrupted: bool,
    /// When the guest was first seen to run, by the host's TSC; absent when none ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_began_tsc: Option<u64>,
    /// What the software LAPICs counted from the guest's start to its end; absent with KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lapic: Option<LapicReport>,
    /// Each vector.
    pub vectors: Vec<VectorReport>,
    /// Where.
    pub machine: Machine,
}

impl Report {
    /// Puts the figures together.
    #[must_use]
    pub fn new(figures: &Figures, sent: &[u64], handled: Option<&[u64]>, machine: Machine) -> Self {
        let vectors = sent.iter().enumerate().map(|(vector, sent)| VectorReport {
            vector,
            ledger: Ledger::new(*sent, figures.ledger[vector]),
            handled: handled.map(|handled| handled[vector]),
            stages: figures.vectors.get(vector).map(stage_map).unwrap_or_default(),
        });
        let ledger = Ledger::new(sent.iter().sum(), figures.total());
        let handled = handled.map(|handled| handled.iter().sum::<u64>());
        Self {
            ledger,
            stages: stage_map(&figures.stages),
            handled,
            coalesced: handled.map(|handled| ledger.delivered.saturating_sub(handled)),
            spurious: figures.spurious,
            unstamped: figures.unstamped,
            negative: figures.negative,
            deferred: figures.deferred,
            seconds: 0.0,
            guest_began_tsc: None,
            interrupted: false,
            lapic: None,
            vectors: vectors.collect(),
            machine,
        }
    }

    /// Interrupts that the software LAPICs accepted and do not account for: 0, or something is wrong.
    #[must_use]
    pub fn missing_in_lapics(&self) -> i128 {
        self.lapic.map_or(0, |lapic| i128::from(lapic.accepted) - i128::from(lapic.counts.accepted()))
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY);
        table.set_header(["stage, µs", "count", "min", "p50", "p90", "p99", "p99.9", "max"]);
        for stage in Stage::ALL {
            let Some(f) = self.stages.get(stage.key()) else { continue };
            let few = |ns: u64, beyond: u64| {
                let mark = if f.count / beyond < 10 { "*" } else { "" };
                format!("{}{mark}", microseconds(ns))
            };
            table.add_row([
                stage.name().to_string(),
                f.count.to_string(),
                microseconds(f.min_ns),
                few(f.p50_ns, 2),
                few(f.p90_ns, 10),
                few(f.p99_ns, 100),
                few(f.p999_ns, 1000),
                microseconds(f.max_ns),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!("{}\n{table}\n", self.machine.accelerator.headline());
        if self.stages.values().any(|f| f.count < 10_000) {
            text.push_str("* fewer than ten samples beyond it\n");
        }
        let Ledger { sent, delivered, merged, dropped } = self.ledger;
        text.push_str(&format!("sent {sent} = delivered {delivered} + merged {merged} + dropped {dropped}"));
        if let (Some(handled), Some(coalesced)) = (self.handled, self.coalesced) {
            let who = match self.machine.accelerator {
                Accelerator::Kvm => "handled",
                Accelerator::Software => "taken",
            };
            text.push_str(&format!("; {who} {handled}, coalesced in the LAPIC {coalesced}"));
        }
        for (count, what) in [
            (self.spurious, "spurious"),
            (self.unstamped, "without a time"),
            (self.negative, "with a negative time"),
            (self.deferred, "by the slow path"),
        ] {
            if count > 0 {
                text.push_str(&format!("; {count} {what}"));
            }
        }
        text.push_str(&format!("\n{}\n", self.machine.line()));
        for warning in &self.machine.warnings {
            text.push_str(&format!("note: {warning}\n"));
        }
        text
    }
}

/// Nanoseconds as microseconds, to two or three figures.
#[must_use]
pub fn microseconds(ns: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "for display")]
    let us = ns as f64 / 1000.0;
    match ns {
        0..10_000 => format!("{us:.2}"),
        10_000..100_000 => format!("{us:.1}"),
        _ => format!("{us:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_that_does_not_add_up_says_by_how_much() {
        let outcome = Outcome { delivered: 3, merged: 2, dropped: 1, ..Outcome::default() };
        assert_eq!(Ledger::new(6, outcome).missing(), 0);
        assert_eq!(Ledger::new(9, outcome).missing(), 3);
        assert_eq!(Ledger::new(5, outcome).missing(), -1);
    }

    #[test]
    fn an_unmeasured_stage_is_absent() {
        let mut figures = Figures::new(&[Stage::SignalToSeen, Stage::SeenToInjected], 1, true);
        figures.record(0, Stage::SignalToSeen, 1500);
        let keys: Vec<_> = stage_map(&figures.stages).into_keys().collect();
        assert_eq!(keys, ["signal_to_seen"]);
    }

    #[test]
    fn microseconds_keep_their_figures() {
        assert_eq!([420, 12_345, 1_234_567].map(microseconds), ["0.42", "12.3", "1235"]);
    }
}
