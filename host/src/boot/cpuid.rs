//! What CPUID says on a vCPU: what KVM supports here, with the topology of this guest in place of the host's: one package
//! of single-threaded cores (Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E).

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX as INDEXED, kvm_cpuid_entry2 as Leaf};

/// The most vCPUs: their LAPICs' IDs have eight bits in interrupt messages, and 255 is everybody.
pub const MAX_VCPUS: u32 = 254;

/// A guest's CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus {
    /// How many vCPUs.
    pub count: u32,
    /// Whether KVM emulates the LAPIC timer's TSC-deadline mode.
    pub tsc_deadline: bool,
    /// Whether vCPUs are never preempted for long (`KVM_HINTS_REALTIME`).
    pub dedicated: bool,
    /// Leaf 5, where MWAIT stays in the guest: EAX, EBX, ECX, EDX.
    pub mwait: Option<[u32; 4]>,
}

const SMT: u32 = 1;
const CORE: u32 = 2;

/// CPUID of vCPU `id`, from what KVM supports.
#[must_use]
pub fn leaves(supported: &[Leaf], id: u32, cpus: Cpus) -> Vec<Leaf> {
    // Extended topology is made anew below; AMD's has no place for a guest without SMT that 0xb has not.
    let host_topology = |leaf: &&Leaf| !matches!(leaf.function, 0xb | 0x1f | 0x8000_0026);
    let mut leaves: Vec<Leaf> = supported.iter().filter(host_topology).copied().collect();
    let amd = leaves.iter().any(|leaf| leaf.function == 0 && [leaf.ebx, leaf.edx, leaf.ecx] == AMD);
    let count = cpus.count.max(1);
    // Bits of an ID that number cores.
    let bits = 32 - (count - 1).leading_zeros();
    for leaf in &mut leaves {
        match leaf.function {
            0 => leaf.eax = leaf.eax.max(0xb),
            1 => {
                const X2APIC_HYPERVISOR: u32 = 1 << 21 | 1 << 31;
                leaf.ebx = leaf.ebx & 0xffff | count << 16 | id << 24;
                leaf.ecx = put(leaf.ecx, 1 << 24, cpus.tsc_deadline) | X2APIC_HYPERVISOR;
                leaf.ecx = put(leaf.ecx, 1 << 3, cpus.mwait.is_some());
                leaf.edx = put(leaf.edx, 1 << 28, count > 1);
            }
            5 => [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx] = cpus.mwait.unwrap_or_default(),
            // A cache's level is in 7:5, who shares it in 25:14, a package's cores in 31:26 (Intel).
            4 | 0x8000_001d if leaf.eax & 0x1f != 0 => {
                let shared = if leaf.eax >> 5 & 7 >= 3 { count - 1 } else { 0 };
                leaf.eax = leaf.eax & 0x3fff | shared << 14;
                if leaf.function == 4 {
                    leaf.eax |= (count - 1).min(63) << 26;
                }
            }
            0x4000_0001 => leaf.edx = put(leaf.edx, 1, cpus.dedicated),
            // CmpLegacy: the logical processors of leaf 1 are cores.
            0x8000_0001 if amd => leaf.ecx = put(leaf.ecx, 1 << 1, count > 1),
            0x8000_0008 if amd => leaf.ecx = leaf.ecx & !0xf0ff | (count - 1) | bits << 12,
            0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
    let level = |index, shift, logical, kind: u32| Leaf {
        function: 0xb,
        index,
        flags: INDEXED,
        eax: shift,
        ebx: logical,
        ecx: kind << 8 | index,
        edx: id,
        ..Default::default()
    };
    leaves.extend([level(0, 0, 1, SMT), level(1, bits, count, CORE), level(2, 0, 0, 0)]);
    leaves
}

/// Takes the claim of an invariant TSC back where the host's kernel does not trust its own: KVM copies the processor's.
pub fn withdraw_invariant_tsc(leaves: &mut [Leaf], trusted: bool) {
    const INVARIANT_TSC: u32 = 1 << 8;
    for leaf in leaves.iter_mut().filter(|leaf| leaf.function == 0x8000_0007 && !trusted) {
        leaf.edx &= !INVARIANT_TSC;
    }
}

/// `AuthenticAMD` in EBX, EDX, ECX.
const AMD: [u32; 3] = [0x6874_7541, 0x6974_6e65, 0x444d_4163];

fn put(register: u32, bit: u32, on: bool) -> u32 {
    if on { register | bit } else { register & !bit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> Leaf {
        Leaf { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    #[test]
    fn the_hosts_topology_is_gone() {
        let host = [
            leaf(0, 0xd, AMD[0], AMD[2], AMD[1]),
            leaf(1, 0, 0x1720_0800, 0, 1 << 28),
            Leaf { index: 3, ..leaf(0x8000_001d, 0x3c163, 0, 0, 0) },
            leaf(0xb, 1, 2, 0x100, 0x17),
            leaf(0x1f, 1, 2, 0x100, 0x17),
            leaf(0x8000_0008, 0x3030, 0, 0x501f, 0),
            leaf(0x8000_001e, 0x17, 0x10b, 0x102, 0),
        ];
        let cpus = Cpus { count: 3, tsc_deadline: true, dedicated: false, mwait: None };
        let leaves = leaves(&host, 2, cpus);
        let find = |function, index| {
            *leaves.iter().find(|l| l.function == function && l.index == index).expect("there")
        };
        assert_eq!(find(1, 0).ebx, 0x0203_0800);
        assert_eq!((find(1, 0).ecx, find(1, 0).edx), (1 << 21 | 1 << 24 | 1 << 31, 1 << 28));
        assert_eq!(find(0x8000_001d, 3).eax, 2 << 14 | 0x163);
        assert_eq!(find(0x8000_0008, 0).ecx, 0x2002);
        assert_eq!((find(0x8000_001e, 0).eax, find(0x8000_001e, 0).ebx), (2, 2));
        assert_eq!(
            (find(0xb, 1).eax, find(0xb, 1).ebx, find(0xb, 1).ecx, find(0xb, 1).edx),
            (2, 3, 0x201, 2)
        );
        assert!(leaves.iter().all(|l| l.function != 0x1f));
    }

    #[test]
    fn a_tsc_is_invariant_only_if_it_is() {
        for (trusted, edx) in [(true, 0x1ff), (false, 0xff)] {
            let mut leaves = [leaf(0x8000_0007, 0, 0, 0, 0x1ff), leaf(1, 0, 0, 0, 0x1ff)];
            withdraw_invariant_tsc(&mut leaves, trusted);
            assert_eq!((leaves[0].edx, leaves[1].edx), (edx, 0x1ff));
        }
    }

    #[test]
    fn one_cpu_has_no_id_bits() {
        let cpus = Cpus { count: 1, tsc_deadline: false, dedicated: true, mwait: Some([1, 2, 3, 4]) };
        let leaves = leaves(
            &[leaf(1, 0, 0xff00_0000, 1 << 24, 1 << 28), leaf(0x4000_0001, 0, 0, 0, 0), leaf(5, 9, 9, 9, 9)],
            0,
            cpus,
        );
        assert_eq!((leaves[0].ebx, leaves[0].ecx & 1 << 24, leaves[0].edx), (1 << 16, 0, 0));
        assert_eq!((leaves[0].ecx & 1 << 3, leaves[2].edx), (1 << 3, 4));
        assert_eq!(leaves[1].edx, 1);
        let core = leaves.iter().find(|l| l.function == 0xb && l.index == 1).expect("there");
        assert_eq!((core.eax, core.ebx), (0, 1));
    }
}
