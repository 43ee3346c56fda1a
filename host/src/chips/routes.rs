//! Who has which GSI, and where each leads: ours, by which pollers and the deferred worker deliver, and KVM's.
//!
//! GSIs 0 to 23 are the I/O APIC's pins. Messages begin at 256: below that a split irqchip reserves numbers for its EOIs.

use super::KernelTable;
use crate::error::{Error, Result};
use crate::interrupts::Interrupts;
use pollvisor_core::ids::Gsi;
use pollvisor_core::route::{Chip, IOAPIC_PINS, Irqchip, MAX_ROUTES, Msi, RawRoute};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

const FIRST_MESSAGE: u32 = 256;

/// See the module's text.
#[derive(Debug)]
pub struct Routes {
    interrupts: Arc<Interrupts>,
    kernel: Arc<KernelTable>,
    /// Held while the core's table is replaced, which waits for pollers and the deferred worker: neither takes it.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    taken: BTreeSet<Gsi>,
    messages: BTreeMap<Gsi, Msi>,
    in_kernel: BTreeSet<Gsi>,
}

impl Routes {
    /// The tables of a VM, with the pins in ours.
    ///
    /// # Errors
    /// None that a new VM can give.
    pub fn new(interrupts: Arc<Interrupts>, kernel: Arc<KernelTable>) -> Result<Self> {
        let routes = Self { interrupts, kernel, table: Mutex::default() };
        routes.publish(&Table::default())?;
        Ok(routes)
    }

    /// Takes `count` GSIs for messages, each with a slot of its own: all or none.
    ///
    /// # Errors
    /// ENOSPC, with how many are left.
    pub fn allocate(&self, count: usize) -> Result<Vec<Gsi>> {
        let mut table = self.lock();
        let slots = self.interrupts.irqfds().capacity().min(MAX_ROUTES);
        let last = FIRST_MESSAGE.saturating_add(u32::try_from(slots).unwrap_or(u32::MAX));
        let last = last.min(u32::try_from(MAX_ROUTES).unwrap_or(u32::MAX));
        let free = (FIRST_MESSAGE..last).map(Gsi).filter(|gsi| !table.taken.contains(gsi));
        let gsis: Vec<_> = free.take(count).collect();
        if gsis.len() < count {
            let left = gsis.len();
            return Err(Error::new(format!(
                "{count} interrupt vectors are wanted and {left} are left (ENOSPC)"
            ))
            .remedy("fewer devices, or devices with fewer vectors, for this guest"));
        }
        table.taken.extend(&gsis);
        Ok(gsis)
    }

    /// The irqfd slot that goes with a GSI of [`allocate`](Self::allocate).
    #[must_use]
    pub fn slot(&self, gsi: Gsi) -> u32 {
        gsi.0.saturating_sub(FIRST_MESSAGE)
    }

    /// Gives GSIs back; their routes go.
    ///
    /// # Errors
    /// The kernel's.
    pub fn free(&self, gsis: &[Gsi]) -> Result<()> {
        self.set(&gsis.iter().map(|gsi| (*gsi, None)).collect::<Vec<_>>())?;
        let mut table = self.lock();
        table.taken.retain(|gsi| !gsis.contains(gsi));
        Ok(())
    }

    /// Sets or removes routes, in both tables as they are used. On return nothing is delivered by an old one.
    ///
    /// # Errors
    /// EINVAL and what is wrong with a message; nothing has changed in our table then.
    pub fn set(&self, changes: &[(Gsi, Option<Msi>)]) -> Result<()> {
        let mut table = self.lock();
        let before: Vec<_> =
            changes.iter().map(|(gsi, _)| (*gsi, table.messages.get(gsi).copied())).collect();
        table.apply(changes);
        if let Err(error) = self.publish(&table) {
            table.apply(&before);
            return Err(error);
        }
        let kernel: Vec<_> =
            changes.iter().filter(|(gsi, _)| table.in_kernel.contains(gsi)).copied().collect();
        if kernel.is_empty() { Ok(()) } else { self.kernel.set_messages(&kernel) }
    }

    /// Whether a GSI's route is to be in KVM's table, too: an irqfd of the kernel's delivers by it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn use_in_kernel(&self, gsi: Gsi, used: bool) -> Result<()> {
        let mut table = self.lock();
        let changed = if used { table.in_kernel.insert(gsi) } else { table.in_kernel.remove(&gsi) };
        if !changed {
            return Ok(());
        }
        let message = table.messages.get(&gsi).copied().filter(|_| used);
        self.kernel.set_messages(&[(gsi, message)])
    }

    /// KVM's table.
    #[must_use]
    pub fn kernel(&self) -> &Arc<KernelTable> {
        &self.kernel
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, table: &Table) -> Result<()> {
        let pins = (0..IOAPIC_PINS).filter(|_| self.interrupts.irqfds().irqchip() == Irqchip::Kernel);
        let pins = pins.map(|pin| RawRoute::pin(Gsi(pin), Chip::Ioapic, pin));
        let messages = table.messages.iter().map(|(gsi, message)| RawRoute::msi(*gsi, *message));
        self.interrupts.set_routes(&pins.chain(messages).collect::<Vec<_>>())
    }
}

impl Table {
    fn apply(&mut self, changes: &[(Gsi, Option<Msi>)]) {
        for (gsi, message) in changes {
            match message {
                Some(message) => self.messages.insert(*gsi, *message),
                None => self.messages.remove(gsi),
            };
        }
    }
}
