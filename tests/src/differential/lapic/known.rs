//! Where KVM differs and is known to: by number, why, and what the run does about it. Nothing else is left out.
//!
//! *Kept out*: such a step is not generated. *Masked*: it is made, and this much of it not compared.
//!
//! | # | KVM | here |
//! |---|---|---|
//! | 1 | Vectors 0 to 15 enter the IRR, count as accepted, and are never taken. | kept out: [`FIRST`] |
//! | 2 | The ESR records nothing, and so the error LVT never fires. | masked: [`ESR`]; the error LVT stays masked in xAPIC mode |
//! | 3 | An x2APIC EOI takes any value (without APICv). | kept out: 0 is written |
//! | 4 | Reserved bits of TPR, SVR, LVT and divide are dropped, not faulted; LVT bits 12 and 14, and all bits of the xAPIC ICR, keep what was written. | kept out: [`defined`] |
//! | 5 | SVR\[12\] is stored, yet EOIs still exit. | masked: [`suppressed`] |
//! | 6 | An MSI "level, deassert" is delivered; an ICR's level sets TMR. | kept out |
//! | 7 | Lowest priority hashes over the bits of a logical destination, in their order: absent and disabled members take part, and lose the interrupt. | kept out: [`hashes_alike`] |
//! | 8 | Off and on again keeps the registers; an APIC base set by the host skips the rules. | off: the test resets KVM's registers; the guest writes the base |
//! | 9 | Timer: 1 GHz, coarse, fires at unmask, and `KVM_SET_LAPIC` fires anew. | kept out: the initial count is 0, deadlines are far |
//! | 10 | Nobody at a unicast ID is 0, nobody at a broadcast −1 (EPERM); mode 3 counts as accepted. | both are "nobody"; no MSI of mode 3 |
//! | 11 | The ID can be written in xAPIC mode. | kept out |
//! | 12 | Version and current count are the host's. | masked: [`HOSTS_OWN`] |
//! | 13 | What coalesces is not told. | the IRR is compared |
//!
//! Found by this test, or by reading `arch/x86/kvm/lapic.c` for it, beside the thirteen that were known before:
//!
//! | # | KVM | here |
//! |---|---|---|
//! | 14 | An MSI of mode 6, which the manual reserves (11.2.2), is a SIPI. | kept out |
//! | 15 | Two NMIs that wait for one vCPU are two, for it may have been off its CPU (`process_nmi`). | kept out: an NMI is taken first |
//! | 16 | INIT and SIPI by the shorthand "self" are sent; table 6-3 calls them invalid. | kept out |
//! | 17 | An NMI or INIT with a redirection hint is hashed by its vector, which the manual ignores (11.2.2). | kept out: vector 0 |
//! | 18 | NMI, INIT and SIPI by a logical destination do not reach an APIC that is software-disabled, as the map of logical IDs leaves it out; 4.7.2 says they do. | kept out: [`all_enabled`] |
//! | 19 | vCPUs of different modes: one map of logical IDs, and 0xff or ffff_ffff is a broadcast to one kind only. | kept out: then by ID only |
//! | 20 | xAPIC mode, an MSI to a logical ID above 0xff: its low byte counts. | kept out |
//! | 21 | A DFR model that is neither flat nor cluster matches as a cluster by the map, and nobody without it. | kept out |
//! | 22 | The ICR's high half, by xAPIC → x2APIC: 0 on Intel, kept on AMD. | masked until it is written: [`super::ours::Ours::icr_high_unknown`] |
//! | 23 | What a read of an xAPIC offset without a readable register returns is left open by KVM. | kept out |
//! | 24 | Lowest priority by shorthand with 0xff in the ICR's high half goes to all. | kept out |
//! | 25 | The BSP bit of the APIC base can be written. | kept out |
//! | 26 | `KVM_SET_LAPIC` works the PPR out before it has looked at the new ISR. | the guest runs once, which works it out again |
//! | 27 | An MSI with a redirection hint to physical 0xff is for one by hash (its mode is made fixed, the hint stays); 11.1 forbids it. | kept out |
//! | 28 | On SVM without AVIC, TPR bits 3:0 are lost when the guest runs: `sync_cr8_to_lapic` writes V_TPR back, which has bits 7:4. Seen in the lab. | probed; then TPRs have none: [`super::kernel::Kernel::tpr`] |
//! | 29 | An INIT in x2APIC mode leaves the ICR's high half where KVM keeps it as two registers (AMD, 6.12). Seen in the lab. | masked until it is written, as 22 |
//! | 30 | Where the processor runs the guest, an NMI or INIT that a vCPU sends itself comes in the middle of its routine, and an NMI beside an interrupt may come second. Seen in the lab. | there NMIs are kept out, and INIT and SIPI by a guest's store |
//!
//! Beside KVM's core, of what runs the guest: one that ends an interrupt as it delivers it is found out and made up for, see
//! [`Kernel::ends_by_itself`](super::kernel::Kernel::ends_by_itself).

use super::ours::{NOW, Ours};
use super::steps::IDS;
use pollvisor_core::lapic::{Address, Mode, X2APIC_BROADCAST, XAPIC_BROADCAST};

/// 1: the first vector that is generated.
pub const FIRST: u8 = 16;
/// 2: the ESR.
pub const ESR: u32 = 0x28;
/// 12: version and current count.
pub const HOSTS_OWN: [u32; 2] = [0x03, 0x39];
/// The ID register, by its number.
pub const ID: u32 = 0x02;
const SVR: u32 = 0x0f;
const LDR: u32 = 0x0d;
const DFR: u32 = 0x0e;
/// The ICR's high half.
pub const ICR_HIGH: u32 = 0x31;

/// Whether the register is not compared, by its number.
#[must_use]
pub fn is_masked(ours: &Ours, vcpu: usize, register: u32) -> bool {
    let off = ours.lapics[vcpu].mode() == Mode::Off;
    register == ESR
        || HOSTS_OWN.contains(&register)
        // 8: off, KVM's ID register keeps the format of the mode before.
        || register == ID && off
        || register == ICR_HIGH && ours.icr_high_unknown[vcpu]
}

/// 4: the bits of the register that may be written.
#[must_use]
pub const fn defined(register: u32) -> u32 {
    match register {
        0x08 => 0xff,
        0x0f => 0x13ff,
        0x32 => 0x7_00ff,
        0x33 | 0x34 => 0x1_07ff,
        0x35 | 0x36 => 0x1_a7ff,
        0x37 => 0x1_00ff,
        0x3e => 0b1011,
        _ => u32::MAX,
    }
}

fn register(ours: &Ours, vcpu: usize, number: u32) -> u32 {
    ours.lapics[vcpu].register(number * 16, NOW).unwrap_or(0)
}

/// 5: whether this APIC's SVR says that EOIs are not broadcast.
#[must_use]
pub fn suppressed(ours: &Ours, vcpu: usize) -> bool {
    register(ours, vcpu, SVR) & 1 << 12 != 0
}

/// 18: whether every APIC is software-enabled.
#[must_use]
pub fn all_enabled(ours: &Ours) -> bool {
    ours.lapics.iter().all(|lapic| lapic.address().is_software_enabled())
}

/// 19: the mode that all APICs are in.
#[must_use]
pub fn common_mode(ours: &Ours) -> Option<Mode> {
    let mode = ours.lapics[0].mode();
    ours.lapics.iter().all(|lapic| lapic.mode() == mode).then_some(mode)
}

/// 7: whether lowest priority to this logical destination hashes over the same APICs in the same order: each bit of it
/// is one enabled APIC's, in the order of the vCPUs. By broadcast KVM goes by the vCPUs itself.
#[must_use]
pub fn hashes_alike(ours: &Ours, logical: u32) -> bool {
    let Some(mode) = common_mode(ours) else { return false };
    if logical == if mode == Mode::X2Apic { X2APIC_BROADCAST } else { XAPIC_BROADCAST } {
        return true;
    }
    let x2apic = mode == Mode::X2Apic;
    // Of each enabled APIC that has one: its logical ID's cluster, and its bits there; in the flat model there is one cluster.
    let member = |vcpu: usize| {
        let own = match x2apic {
            true => Address::x2apic_logical_id(IDS[vcpu]),
            false => register(ours, vcpu, LDR) >> 24,
        };
        let shift = match (x2apic, register(ours, vcpu, DFR) >> 28) {
            (true, _) => 16,
            (false, 0) => 4,
            (false, _) => 8,
        };
        let enabled = ours.lapics[vcpu].address().is_software_enabled();
        (enabled && own != 0).then_some((own, shift))
    };
    let members: Vec<(u32, u32)> = (0..IDS.len()).filter_map(member).collect();
    let Some((_, shift)) = members.first().copied() else { return false };
    if members.iter().any(|(_, other)| *other != shift) {
        return false;
    }
    let bits = |id: u32| id & ((1 << shift) - 1);
    let (mut wanted, mut last) = (bits(logical), 0);
    for (own, _) in members {
        if own >> shift != logical >> shift || bits(own) & wanted == 0 {
            continue;
        }
        if !bits(own).is_power_of_two() || bits(own) <= last {
            return false;
        }
        last = bits(own);
        wanted &= !last;
    }
    wanted == 0
}
