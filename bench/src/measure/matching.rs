//! Matches deliveries with signals by number: the k-th signal of a vector that a path took is the k-th that was made.
//! So every signal has its latency, those that share an interrupt too, and the ledger is exact.
//!
//! ```text
//!  producer's log:  planned, made, paid       ─┐ per vector
//!  path's samples:  signals, seen, injected   ─┴► from planned: corrected · from made: uncorrected · stages · ledger
//! ```

use super::watch::{Recent, Watch};
use super::{add, histogram};
use crate::model::Ledger;
use hdrhistogram::Histogram;
use pollvisor::clock::Clock;
use pollvisor::error::{Error, Result};
use pollvisor::record::Sample;
use std::collections::VecDeque;

/// A signal as its producer knows it. Times in TSC cycles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Which vector.
    pub vector: usize,
    /// When it was to be made; in a closed loop when it was made. 0: to warm up, not to be measured.
    pub planned: u64,
    /// When it was made.
    pub made: u64,
    /// When the producer had done with it.
    pub paid: u64,
}

/// What a path took, one by one or, where nobody keeps samples, in sum.
#[derive(Debug, Default)]
pub struct Taken {
    /// Events.
    pub samples: Vec<Sample>,
    /// What became of the signals.
    pub outcome: pollvisor_core::irqfd::Outcome,
    /// Samples that there was no room for.
    pub lost: u64,
    /// Gaps between the poller's passes.
    pub gaps: Option<Histogram<u64>>,
}

/// Latencies, in nanoseconds.
#[derive(Debug, Clone)]
pub struct Found {
    /// From the planned time until a LAPIC has it, every signal.
    pub accepted: Histogram<u64>,
    /// From the time it was made, the first signal of every interrupt: what a closed loop sees.
    pub uncorrected: Histogram<u64>,
    /// From the time it was made to the first sight of it.
    pub seen: Histogram<u64>,
    /// From there to the end of the injecting call.
    pub injected: Histogram<u64>,
    /// What it cost its producer.
    pub paid: Histogram<u64>,
    /// How late the producer was.
    pub late: Histogram<u64>,
}

impl Found {
    /// Nothing.
    ///
    /// # Errors
    /// Never.
    pub fn new() -> Result<Self> {
        Ok(Self {
            accepted: histogram()?,
            uncorrected: histogram()?,
            seen: histogram()?,
            injected: histogram()?,
            paid: histogram()?,
            late: histogram()?,
        })
    }

    fn all(&mut self) -> [&mut Histogram<u64>; 6] {
        let Self { accepted, uncorrected, seen, injected, paid, late } = self;
        [accepted, uncorrected, seen, injected, paid, late]
    }

    /// Adds another one, and empties it.
    ///
    /// # Errors
    /// Never: all have the same bounds.
    pub fn take(&mut self, other: &mut Self) -> Result<()> {
        for (mine, theirs) in self.all().into_iter().zip(other.all()) {
            if !theirs.is_empty() {
                add(mine, theirs)?;
                theirs.reset();
            }
        }
        Ok(())
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Matching {
    clock: Clock,
    /// Whether the injection is within the signal, in the producer: an in-kernel irqfd.
    by_producer: bool,
    sent: Vec<VecDeque<Sent>>,
    samples: Vec<VecDeque<Sample>>,
    /// What was found since it was taken.
    pub found: Found,
    /// Everything since the start, warm-up and all.
    pub ledger: Ledger,
    /// Signals seen before they were made: clocks that disagree.
    pub negative: u64,
    /// Samples lost, after which numbers do not match any more.
    pub lost: u64,
    /// Who is told of every latency and event that is measured.
    pub watch: Watch,
}

impl Matching {
    /// Nothing yet, of so many vectors.
    ///
    /// # Errors
    /// Never.
    pub fn new(clock: Clock, vectors: usize, by_producer: bool) -> Result<Self> {
        Ok(Self {
            clock,
            by_producer,
            sent: vec![VecDeque::new(); vectors],
            samples: vec![VecDeque::new(); vectors],
            found: Found::new()?,
            ledger: Ledger::default(),
            negative: 0,
            lost: 0,
            watch: Watch::new(u64::MAX, 0),
        })
    }

    /// A producer made these.
    pub fn sent(&mut self, log: &[Sent]) {
        self.ledger.sent += log.len() as u64;
        for sent in log {
            if sent.planned != 0 {
                self.found.paid.saturating_record(self.clock.ns(sent.paid.saturating_sub(sent.made)));
                self.found.late.saturating_record(self.clock.ns(sent.made.saturating_sub(sent.planned)));
            }
            if self.by_producer {
                self.ledger.delivered += 1;
                self.first(sent, 1, sent.made, sent.paid);
                self.one(sent, sent.made, sent.paid, true);
            } else if let Some(queue) = self.sent.get_mut(sent.vector) {
                queue.push_back(*sent);
            }
        }
    }

    /// A path took these. What its producer has not told yet waits for it.
    pub fn took(&mut self, taken: &Taken) {
        self.ledger.delivered += taken.outcome.delivered;
        self.ledger.merged += taken.outcome.merged;
        self.ledger.dropped += taken.outcome.dropped;
        self.lost += taken.lost;
        for sample in &taken.samples {
            if let Some(queue) = self.samples.get_mut(sample.slot) {
                queue.push_back(*sample);
            }
        }
    }

    /// Matches what there is.
    pub fn run(&mut self) {
        for vector in 0..self.sent.len() {
            while let Some(sample) = self.samples[vector].front().copied() {
                let count = usize::try_from(sample.signals).unwrap_or(usize::MAX);
                if self.sent[vector].len() < count || self.lost > 0 {
                    break;
                }
                self.samples[vector].pop_front();
                for number in 0..count {
                    if let Some(sent) = self.sent[vector].pop_front() {
                        self.matched(&sample, &sent, number);
                    }
                }
            }
        }
    }

    fn matched(&mut self, sample: &Sample, sent: &Sent, number: usize) {
        if sample.outcome.delivered == 0 || sent.planned == 0 {
            return;
        }
        if number == 0 {
            if sample.seen < sent.made {
                self.negative += 1;
                return;
            }
            self.found.seen.saturating_record(self.clock.ns(sample.seen - sent.made));
            self.found.injected.saturating_record(self.clock.ns(sample.injected - sample.seen));
            self.first(sent, sample.signals, sample.seen, sample.injected);
        }
        let accepted = if number == 0 { sample.injected } else { sample.last };
        self.one(sent, sample.seen, accepted, number == 0);
    }

    fn first(&mut self, sent: &Sent, signals: u64, seen: u64, injected: u64) {
        self.watch.event(Recent { vector: sent.vector, made: sent.made, seen, injected, signals });
    }

    fn one(&mut self, sent: &Sent, seen: u64, accepted: u64, first: bool) {
        if sent.planned == 0 {
            return;
        }
        let ns = self.clock.ns(accepted.saturating_sub(sent.planned));
        self.found.accepted.saturating_record(ns);
        self.watch.latency(sent.vector, ns, seen);
        if first {
            self.found.uncorrected.saturating_record(self.clock.ns(accepted.saturating_sub(sent.made)));
        }
    }

    /// Starts anew, once everything is accounted for: the warm-up is over.
    ///
    /// # Errors
    /// Never.
    pub fn reset(&mut self) -> Result<()> {
        self.found = Found::new()?;
        self.ledger = Ledger::default();
        Ok(())
    }

    /// Signals made by a producer that keeps no log.
    pub fn counted(&mut self, signals: u64) {
        self.ledger.sent += signals;
        if self.by_producer {
            self.ledger.delivered += signals;
        }
    }

    /// Signals not accounted for yet.
    #[must_use]
    pub fn open(&self) -> u64 {
        let Ledger { sent, delivered, merged, dropped } = self.ledger;
        sent.saturating_sub(delivered + merged + dropped)
    }

    /// An in-kernel irqfd did not take these after all.
    pub fn refused(&mut self, signals: u64) {
        self.ledger.delivered = self.ledger.delivered.saturating_sub(signals);
        self.ledger.dropped += signals;
    }

    /// Whether everything adds up.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<()> {
        let Ledger { sent, delivered, merged, dropped } = self.ledger;
        if sent != delivered + merged + dropped {
            return Err(Error::new(format!(
                "sent {sent} signals, and delivered {delivered} + merged {merged} + dropped {dropped} is not that"
            ))
            .remedy("report this as a bug"));
        }
        if self.lost > 0 {
            return Err(Error::new(format!(
                "{} events came faster than they could be kept, so latencies are not complete",
                self.lost
            ))
            .remedy("a lower --rate, or `saturation`, which keeps none"));
        }
        if self.negative > 0 {
            return Err(Error::new(format!(
                "{} signals were seen before they were made: the CPUs' clocks disagree",
                self.negative
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollvisor_core::irqfd::Outcome;

    /// A cycle is a nanosecond.
    fn clock() -> Clock {
        Clock::from_khz(1_000_000)
    }

    fn sent(vector: usize, planned: u64, made: u64) -> Sent {
        Sent { vector, planned, made, paid: made + 7 }
    }

    fn event(slot: usize, signals: u64, seen: u64, injected: u64) -> Sample {
        let outcome = Outcome {
            delivered: signals.min(2),
            merged: signals.saturating_sub(2),
            dropped: 0,
            ..Outcome::default()
        };
        Sample { slot, signals, outcome, seen, injected, last: injected + 50 }
    }

    fn taken(samples: Vec<Sample>) -> Taken {
        let mut outcome = Outcome::default();
        samples.iter().for_each(|sample| outcome += sample.outcome);
        Taken { samples, outcome, ..Taken::default() }
    }

    fn within(histogram: &Histogram<u64>, quantile: f64, expected: u64) {
        let got = histogram.value_at_quantile(quantile);
        assert_eq!(got, histogram.highest_equivalent(expected), "{quantile}: not {expected}");
    }

    #[test]
    fn known_delays_are_found_again_to_the_histograms_precision() {
        // Signal n takes 1000 + 10 n ns to be seen and half of that to be injected.
        let mut matching = Matching::new(clock(), 4, false).unwrap();
        let delay = |n: u64| 1000 + 10 * n;
        for chunk in 0..10 {
            let numbers = chunk * 1000..(chunk + 1) * 1000;
            let vector = |n: u64| usize::try_from(n % 4).unwrap();
            let log: Vec<_> =
                numbers.clone().map(|n| sent(vector(n), (n + 1) * 200_000, (n + 1) * 200_000)).collect();
            let samples = numbers.map(|n| {
                let seen = (n + 1) * 200_000 + delay(n);
                event(vector(n), 1, seen, seen + delay(n) / 2)
            });
            // The samples come before the log: they wait for it.
            matching.took(&taken(samples.collect()));
            matching.run();
            matching.sent(&log);
            matching.run();
        }
        matching.check().unwrap();
        for n in [0u32, 999, 4999, 8999, 9899, 9989, 9999] {
            // The middle of the n-th sample's share, so that no rounding makes it another one's.
            let (quantile, n) = ((f64::from(n) + 0.5) / 10_000.0, u64::from(n));
            within(&matching.found.seen, quantile, delay(n));
            within(&matching.found.accepted, quantile, delay(n) + delay(n) / 2);
            within(&matching.found.uncorrected, quantile, delay(n) + delay(n) / 2);
        }
        within(&matching.found.paid, 1.0, 7);
        assert_eq!(matching.ledger.delivered, 10_000);
    }

    #[test]
    fn a_stalled_consumer_shows_in_every_signal_planned_meanwhile() {
        // A signal every 100 µs for a second, injected 1 µs later; from 500 ms on the consumer sleeps for 100 ms, and the
        // producer waits for it, as a closed loop's would: 999 signals are made late, at its end.
        const STALL: std::ops::Range<u64> = 500_000_000..600_000_000;
        let mut matching = Matching::new(clock(), 1, false).unwrap();
        for planned in (1..=10_000u64).map(|n| n * 100_000) {
            let made = if planned > STALL.start && planned < STALL.end { STALL.end } else { planned };
            let injected = if planned == STALL.start { STALL.end } else { made } + 1000;
            matching.sent(&[sent(0, planned, made)]);
            matching.took(&taken(vec![event(0, 1, injected - 10, injected)]));
        }
        matching.run();
        matching.check().unwrap();
        // Uncorrected, one sample in ten thousand knows of it.
        within(&matching.found.uncorrected, 0.999, 1000);
        assert!(matching.found.uncorrected.max() > 99_000_000);
        // Corrected, a tenth: the 99th percentile is in the middle of it.
        within(&matching.found.accepted, 0.5, 1000);
        within(&matching.found.accepted, 0.9, 1000);
        let p99 = matching.found.accepted.value_at_quantile(0.99);
        assert!((85_000_000..95_000_000).contains(&p99), "{p99}");
        assert!(matching.found.late.max() > 99_000_000, "and the producer says that it was late");
    }

    #[test]
    fn signals_that_share_an_interrupt_have_their_own_latencies() {
        let mut matching = Matching::new(clock(), 1, false).unwrap();
        matching.sent(&[sent(0, 1000, 1000), sent(0, 2000, 2000), sent(0, 3000, 3500)]);
        matching.took(&taken(vec![event(0, 3, 4000, 5000)]));
        matching.run();
        matching.check().unwrap();
        let Ledger { sent, delivered, merged, dropped } = matching.ledger;
        assert_eq!((sent, delivered, merged, dropped), (3, 2, 1, 0));
        // 5000 - 1000; 5050 - 2000; 5050 - 3000: the second injection stands for the latter two.
        assert_eq!(matching.found.accepted.len(), 3);
        within(&matching.found.accepted, 1.0, 4000);
        within(&matching.found.accepted, 0.5, 3050);
        within(&matching.found.accepted, 0.1, 2050);
        assert_eq!(matching.found.uncorrected.len(), 1);
    }

    #[test]
    fn what_is_missing_or_impossible_is_said() {
        let mut matching = Matching::new(clock(), 1, false).unwrap();
        matching.sent(&[sent(0, 1000, 1000)]);
        assert_eq!(matching.open(), 1);
        assert!(matching.check().unwrap_err().to_string().contains("sent 1"));
        matching.took(&taken(vec![event(0, 1, 900, 1100)]));
        matching.run();
        assert!(matching.check().unwrap_err().to_string().contains("before they were made"));
        let mut matching = Matching::new(clock(), 1, false).unwrap();
        matching.took(&Taken { lost: 3, ..Taken::default() });
        assert!(matching.check().unwrap_err().to_string().contains("faster than they could be kept"));
    }

    #[test]
    fn an_irqfd_is_accounted_for_by_its_producer() {
        let mut matching = Matching::new(clock(), 2, true).unwrap();
        matching.sent(&[sent(0, 1000, 1500), sent(1, 2000, 2000)]);
        matching.check().unwrap();
        within(&matching.found.accepted, 1.0, 507);
        within(&matching.found.uncorrected, 1.0, 7);
        matching.refused(1);
        matching.check().unwrap();
        assert_eq!((matching.ledger.delivered, matching.ledger.dropped), (1, 1));
    }
}
