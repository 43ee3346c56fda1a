//! Where every interrupt of a guest's device went, as exact equations between four that count: the host's VFIO handlers
//! and its KVM ([`trace`](crate::lab::trace)), pollvisor's ledger, the guest's `/proc/interrupts`.
//!
//! ```text
//!   fired = sent + irqfd           every signal was drained, or taken by an irqfd
//!   sent = delivered + merged + dropped
//!   accepted = delivered + irqfd   of which the LAPIC merges those that come while one waits
//!   accepted - merged = injected
//!   injected = handled             when the guest looked: it marks that time, which is in the trace
//! ```
//! A hand-over leaves one gap that nobody counts: signals that wait in the event when an irqfd is made are injected by its
//! worker, once, and are in the ledger (`delivered`); but if the device signals just then, the irqfd takes them all, and
//! they are not. How often that was is known from the workers' injections without one in the ledger.

use super::{Ended, told};
use crate::lab::Context;
use crate::lab::trace::{Counts, Lapic, Seen};
use pollvisor::error::{Error, Result};
use serde_json::Value;

/// What was counted of one vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// Runs of the host's handler: signals of the device.
    pub fired: u64,
    /// Drained, by the ledger.
    pub sent: u64,
    /// Of these, interrupts.
    pub delivered: u64,
    /// Of these, shared one.
    pub merged: u64,
    /// Of these, led to none.
    pub dropped: u64,
    /// The LAPIC's part.
    pub seen: Seen,
    /// Runs of the guest's handler.
    pub handled: u64,
}

impl Account {
    /// The equation that does not hold.
    ///
    /// # Errors
    /// That one.
    pub fn holds(&self) -> std::result::Result<(), String> {
        let Self { fired, sent, delivered, merged, dropped, seen, handled } = *self;
        let check = |holds: bool, what: &str| if holds { Ok(()) } else { Err(format!("{what}: {self:?}")) };
        check(sent == delivered + merged + dropped, "sent is not delivered + merged + dropped")?;
        // Of the ledger's, what an irqfd's worker injected.
        let worker = delivered.checked_sub(seen.ours).unwrap_or(u64::MAX);
        check(worker <= seen.worker, "delivered is not what the LAPIC accepted from us")?;
        let uncounted = seen.worker - worker;
        let lost = fired.checked_sub(sent + seen.irqfd);
        check(lost.is_some_and(|lost| lost >= uncounted), "fired is less than sent + irqfd")?;
        check(lost == Some(0) || uncounted > 0, "fired is not sent + irqfd")?;
        check(seen.injected <= seen.accepted(), "more went into the guest than was accepted")?;
        check(!seen.stuck, "the last one that was accepted did not go into the guest")?;
        check(handled == seen.marked, "handled is not what went into the guest")
    }
}

/// Who is to have delivered something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Pollers and nobody else.
    Poller,
    /// Irqfds and nobody else.
    Kernel,
    /// Both, the same vectors.
    Both,
    /// Both, each its own vectors.
    Apart,
}

/// Checks every vector of a device that had an interrupt.
///
/// # Errors
/// What does not fit.
pub fn check(context: &mut Context, ended: &Ended, counts: &Counts, device: &str, by: By) -> Result<()> {
    if counts.marks == 0 {
        return Err(told("the guest did not mark its counts".into()));
    }
    let mut handled = ended.handled();
    let mut accounts = Vec::new();
    for vector in ended.vectors() {
        let name = vector["vector"].as_str().unwrap_or_default();
        let is = |who: &Option<u32>| who.map_or("intx".into(), |number| number.to_string()) == name;
        let row = handled.iter().position(|row| is(&row.vector)).map(|at| handled.swap_remove(at));
        let account = account(vector, name, counts, device, row.as_ref().map_or(0, |row| row.count))?;
        if account == Account::default() {
            continue;
        }
        let who = row.map_or_else(|| "no handler now".into(), |row| row.who);
        let Account { fired, sent, seen, handled, .. } = account;
        let took = fired.saturating_sub(sent + seen.irqfd + if name == "intx" { seen.worker } else { 0 });
        context.note(format!(
            "vector {name}: fired {fired} = polled {sent} + irqfd {}{}; accepted {}, merged {}, handled {handled}: {who}",
            fired - sent.min(fired) - took,
            if took > 0 { format!(" + {took} taken along") } else { String::new() },
            seen.accepted(),
            seen.accepted() - seen.injected.min(seen.accepted()),
        ));
        account.holds().map_err(|what| told(format!("vector {name}: {what}")))?;
        accounts.push(account);
    }
    if !handled.is_empty() {
        return Err(told(format!("the report has nothing of {handled:?}")));
    }
    let irqfd = accounts.iter().any(|account| account.seen.irqfd + account.seen.worker > 0);
    let ours = accounts.iter().any(|account| account.seen.ours > 0);
    // Pings are requests and replies; the driver may take several at once.
    let both = |account: &&Account| account.seen.irqfd > 50 && account.seen.ours > 50;
    let as_asked = match by {
        By::Poller => ours && !irqfd,
        By::Kernel => irqfd && !ours,
        By::Both => accounts.iter().any(|account| both(&account)),
        By::Apart => irqfd && ours && !accounts.iter().any(|a| a.seen.irqfd > 0 && a.seen.ours > 0),
    };
    if as_asked && accounts.iter().map(|account| account.handled).max() > Some(100) {
        return Ok(());
    }
    Err(told(format!("not delivered as asked ({by:?}), or too few: {accounts:?}")))
}

fn account(vector: &Value, name: &str, counts: &Counts, device: &str, handled: u64) -> Result<Account> {
    let part = |key: &str| vector["ledger"][key].as_u64().unwrap_or(0);
    let sent = part("sent");
    let seen = match (lapic(&vector["message"]), name) {
        (Some(lapic), _) => counts.lapic.get(&lapic).copied().unwrap_or_default(),
        // No message: the only one with a level is the line.
        (None, "intx") => {
            let mut levels = counts.lapic.values().filter(|seen| seen.level);
            let first = levels.next().copied().unwrap_or_default();
            if levels.next().is_some() {
                return Err(Error::new(format!("more than one line: {:?}", counts.lapic)));
            }
            first
        }
        (None, _) if handled > 0 => return Err(told(format!("vector {name} is handled and has no message"))),
        // One that the driver has given up: that all was drained is known, and no more.
        (None, _) => Seen { ours: part("delivered"), injected: 0, ..Seen::default() },
    };
    let fired =
        |kind: &str| counts.fired.get(&format!("vfio-{kind}[{name}]({device})")).copied().unwrap_or(0);
    Ok(Account {
        // VFIO's handler of a line runs for others on that line, too; its irqfd injects by a worker alone.
        fired: if name == "intx" { sent + seen.worker } else { fired("msix") + fired("msi") },
        sent,
        delivered: part("delivered"),
        merged: part("merged"),
        dropped: part("dropped"),
        seen,
        handled,
    })
}

/// The LAPIC vector of a message; a logical destination is a bit (x2APIC, one vCPU).
fn lapic(message: &Value) -> Option<Lapic> {
    let (address, data) = (message["address"].as_u64()?, message["data"].as_u64()?);
    let destination = u32::try_from(address >> 12 & 0xff).ok()?;
    let apic = if address & 4 == 0 { destination } else { destination.trailing_zeros() };
    Some((apic, u32::try_from(data & 0xff).ok()?))
}
