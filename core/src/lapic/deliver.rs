//! Delivery: which APICs an interrupt is for, and its post to each.
//!
//! Reads nothing but address words, writes nothing but descriptors: any thread, no lock, no allocation, bounded by the
//! number of vCPUs. An interrupt for one APIC by its ID does not look at the others.

use super::{Address, Destination, X2APIC_BROADCAST, XAPIC_BROADCAST};
use crate::ids::Trigger;
use crate::route::Msi;
use crate::sync::{PostedVcpu, Wake};

/// Vectors below this are illegal (SDM 5.2).
pub const FIRST_VECTOR: u8 = 16;

/// What is asked of the APICs that an interrupt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// An interrupt with a vector, by way of the IRR.
    Vector {
        /// The vector. Below [`FIRST_VECTOR`] it goes into the receiver's ESR.
        vector: u8,
        /// Whether its EOI is broadcast.
        trigger: Trigger,
    },
    /// A non-maskable interrupt.
    Nmi,
    /// An INIT.
    Init,
    /// A start-up IPI with its vector.
    Sipi(u8),
}

/// An interrupt on its way: an MSI, or an IPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// For whom.
    pub destination: Destination,
    /// For one of them only: the delivery mode *lowest priority*, or an MSI's redirection hint.
    pub lowest_priority: bool,
    /// What.
    pub request: Request,
}

/// What an interrupt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an interrupt that nobody accepted is to be counted as dropped"]
pub enum Delivery {
    /// At least one APIC accepted it.
    Accepted {
        /// How many did.
        apics: u32,
        /// For how many of them the vector was posted already.
        coalesced: u32,
    },
    /// Nobody did: there is no such APIC, it is disabled, or the vector is illegal.
    Blocked,
}

const MSI_MODE: u32 = 7 << 8;
pub(super) const MSI_LOGICAL: u32 = 1 << 2;
pub(super) const MSI_REDIRECTION_HINT: u32 = 1 << 3;
const MSI_ASSERT: u32 = 1 << 14;
const MSI_LEVEL: u32 = 1 << 15;

impl Interrupt {
    /// What an MSI asks for (SDM 11.1, 11.2; the destination's upper bits by KVM's x2APIC format). `None` when APICs do not
    /// act on it: SMI, ExtINT, the reserved delivery modes, and a level that is deasserted.
    #[inline]
    #[must_use]
    pub const fn from_msi(msi: &Msi) -> Option<Self> {
        let trigger = match msi.data & (MSI_LEVEL | MSI_ASSERT) {
            MSI_LEVEL => return None,
            level if level & MSI_LEVEL != 0 => Trigger::Level,
            _ => Trigger::Edge,
        };
        let mode = msi.data >> 8 & 7;
        let request = match mode {
            0 | 1 => Request::Vector { vector: msi.vector(), trigger },
            4 => Request::Nmi,
            5 => Request::Init,
            _ => return None,
        };
        let id = msi.destination();
        let logical = msi.address_lo & MSI_LOGICAL != 0;
        Some(Self {
            destination: if logical { Destination::Logical(id) } else { Destination::Physical(id) },
            lowest_priority: mode == 1 || msi.address_lo & MSI_REDIRECTION_HINT != 0,
            request,
        })
    }
}

/// Sends `msi` to the APICs of `vcpus` that it is for. `wake` is called for each that is halted: it makes the futex call.
///
/// Any thread. Fast for one APIC by its ID, when that is its index in `vcpus` too.
#[inline]
pub fn deliver_msi(vcpus: &[PostedVcpu], msi: &Msi, mut wake: impl FnMut(Wake<'_>)) -> Delivery {
    if let Some(delivery) = deliver_plain(vcpus, msi, &mut wake) {
        return delivery;
    }
    match Interrupt::from_msi(msi) {
        Some(interrupt) => deliver(vcpus, &interrupt, wake),
        None => Delivery::Blocked,
    }
}

/// A fixed edge for one APIC by its physical ID, which is its index: nearly every message. `None`: anything else, or not
/// accepted; [`deliver`] says what becomes of it.
#[inline]
fn deliver_plain(vcpus: &[PostedVcpu], msi: &Msi, wake: &mut impl FnMut(Wake<'_>)) -> Option<Delivery> {
    let is_plain =
        msi.data & (MSI_MODE | MSI_LEVEL) == 0 && msi.address_lo & (MSI_LOGICAL | MSI_REDIRECTION_HINT) == 0;
    let id = msi.destination();
    if !is_plain || id == XAPIC_BROADCAST || msi.vector() < FIRST_VECTOR {
        return None;
    }
    let vcpu = vcpus.get(id as usize)?;
    let address = Address::of(vcpu);
    if address.id() != id || !address.is_software_enabled() {
        return None;
    }
    let post = vcpu.posted().post(msi.vector(), Trigger::Edge);
    if let Some(woken) = post.wake {
        wake(woken);
    }
    Some(Delivery::Accepted { apics: 1, coalesced: post.coalesced.into() })
}

/// Sends `interrupt` to the APICs of `vcpus` that it is for, as [`deliver_msi`]. IDs are unique.
///
/// Each APIC is judged by one look at its address word. An APIC that changes its address meanwhile is judged by the old one
/// or the new one.
#[inline]
pub fn deliver(vcpus: &[PostedVcpu], interrupt: &Interrupt, mut wake: impl FnMut(Wake<'_>)) -> Delivery {
    match interrupt.destination {
        Destination::Physical(id) if id != XAPIC_BROADCAST && id != X2APIC_BROADCAST => {
            let Some((vcpu, address)) = find(vcpus, id) else { return Delivery::Blocked };
            match accept(vcpu, address, interrupt.request, &mut wake) {
                Some(coalesced) => Delivery::Accepted { apics: 1, coalesced: coalesced.into() },
                None => Delivery::Blocked,
            }
        }
        // By one physical ID, or to all by it, there is nobody to choose from.
        Destination::Physical(XAPIC_BROADCAST) => deliver_to_each(vcpus, interrupt, &mut wake),
        _ if interrupt.lowest_priority => deliver_to_one(vcpus, interrupt, &mut wake),
        _ => deliver_to_each(vcpus, interrupt, &mut wake),
    }
}

/// The APIC with this ID. Usually the ID is the index.
#[inline]
fn find(vcpus: &[PostedVcpu], id: u32) -> Option<(&PostedVcpu, Address)> {
    let judged = |vcpu| (vcpu, Address::of(vcpu));
    let is = |(_, address): &(&PostedVcpu, Address)| address.id() == id;
    vcpus.get(id as usize).map(judged).filter(is).or_else(|| vcpus.iter().map(judged).find(is))
}

fn deliver_to_each(vcpus: &[PostedVcpu], interrupt: &Interrupt, wake: &mut impl FnMut(Wake<'_>)) -> Delivery {
    let (mut apics, mut coalesced) = (0, 0);
    for vcpu in vcpus {
        let address = Address::of(vcpu);
        if address.matches(interrupt.destination)
            && let Some(merged) = accept(vcpu, address, interrupt.request, wake)
        {
            apics += 1;
            coalesced += u32::from(merged);
        }
    }
    if apics == 0 { Delivery::Blocked } else { Delivery::Accepted { apics, coalesced } }
}

/// Of *n* enabled APICs that match, in the order of the vCPUs, the one with number (vector mod *n*), as KVM hashes
/// (`kvm_vector_to_index`). One that stops matching between the two looks is not chosen; the last that still matches is.
fn deliver_to_one(vcpus: &[PostedVcpu], interrupt: &Interrupt, wake: &mut impl FnMut(Wake<'_>)) -> Delivery {
    let matching = || {
        let judged = vcpus.iter().map(|vcpu| (vcpu, Address::of(vcpu)));
        judged.filter(|(_, address)| address.is_software_enabled() && address.matches(interrupt.destination))
    };
    let vector = match interrupt.request {
        Request::Vector { vector, .. } => usize::from(vector),
        _ => 0,
    };
    let count = matching().count();
    let chosen = matching().take(vector % count.max(1) + 1).last();
    match chosen.and_then(|(vcpu, address)| accept(vcpu, address, interrupt.request, wake)) {
        Some(coalesced) => Delivery::Accepted { apics: 1, coalesced: coalesced.into() },
        None => Delivery::Blocked,
    }
}

/// Posts to one APIC, unless it does not take it; whether it coalesced.
#[inline]
fn accept(
    vcpu: &PostedVcpu,
    address: Address,
    request: Request,
    wake: &mut impl FnMut(Wake<'_>),
) -> Option<bool> {
    let posted = vcpu.posted();
    let (coalesced, woken) = match request {
        Request::Vector { .. } if !address.is_software_enabled() => return None,
        Request::Vector { vector, .. } if vector < FIRST_VECTOR => (None, posted.post_illegal_vector()),
        Request::Vector { vector, trigger } => {
            let post = posted.post(vector, trigger);
            (Some(post.coalesced), post.wake)
        }
        _ if !address.is_on() => return None,
        Request::Nmi => (Some(false), posted.post_nmi()),
        Request::Init => (Some(false), posted.post_init()),
        Request::Sipi(vector) => (Some(false), posted.post_sipi(vector)),
    };
    if let Some(woken) = woken {
        wake(woken);
    }
    coalesced
}
