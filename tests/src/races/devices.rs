//! 20 to 31: interrupts of assigned devices.

use super::*;
use pollvisor_core::prim::Mutation as M;

pub(super) const RACES: &[Race] = &[
    Race {
        number: 20,
        what: "the guest masks, ends, quiets the device, unmasks: an interrupt for nothing",
        rule: "an unmask looks again and does not inject from memory",
        covers: &[
            test(INTX_TESTS, "unmask_resamples_instead_of_injecting"),
            test(IOAPIC_TESTS, "an_unmask_asks_the_resampler_first"),
            model(
                PATH_RESAMPLE,
                "an_ack_misses_no_member",
                "an_ack_that_looks_first_misses_one",
                M::AckMembersFirst,
            ),
        ],
    },
    Race {
        number: 21,
        what: "an entry is rewritten in service: its EOI is missed, or exits for ever",
        rule: "the old vector's EOI is followed until it comes",
        covers: &[
            test(IOAPIC_TESTS, "an_entry_rewritten_in_service"),
            test("core/src/ioapic/against_model.rs", "as_the_model"),
        ],
    },
    Race {
        number: 22,
        what: "something looked up is unmapped before it is used: use after free",
        rule: "what is looked up is held before the look ends",
        covers: &[
            model(
                PATH_SYNC,
                "rcu_readers_keep_what_they_read",
                "rcu_without_grace_overwrites_a_reader",
                M::RouteNoGrace,
            ),
            model(
                PATH_SYNC,
                "grace_outlasts_every_pass",
                "grace_without_fence_misses_a_reader",
                M::GraceNoFence,
            ),
            model(
                PATH_RESAMPLE,
                "an_update_outlasts_every_ack",
                "lowered_after_the_lookup_an_ack_outlasts_an_update",
                M::LowerAfterLookup,
            ),
            test(IRQFD_TESTS, "stale_handles_touch_nobody"),
        ],
    },
    Race {
        number: 23,
        what: "a signal made inside a wake-up comes back to the lock that it holds: deadlock",
        rule: "signal with no lock held, or defer",
        covers: &[
            test(RESAMPLE_TESTS, "a_member_that_leaves_hides_nobody"),
            by(
                "keys are copied under the lock and signalled after it",
                "core/src/irqfd/resample.rs",
                "fn members",
            ),
            by(
                "a poller that cannot deliver at once adds to a set, and signals nobody under a lock",
                "core/src/poll.rs",
                "fn defer",
            ),
        ],
    },
    Race {
        number: 24,
        what: "a close and an ioctl both release one trigger",
        rule: "the slot is cleared under its lock, and whoever cleared it releases",
        covers: &[
            model(LINES, "slot_signal_against_release", "slot_signal_against_release_peeked", M::SlotPeeked),
            test(LINE_TESTS, "a_slot_is_cleared_once_and_by_the_right_one"),
        ],
    },
    Race {
        number: 25,
        what: "a write of DisINTx meets SET_IRQS: it acts on a type read before",
        rule: "one gate, entered before the type is read",
        covers: &[
            by(
                "the type is inside the gate, and is reached through the guard alone",
                "core/src/line/irq_type.rs",
                "struct InGate",
            ),
            test(LINE_TESTS, "the_gate_lets_one_in_and_nobody_after_the_release"),
        ],
    },
    Race {
        number: 26,
        what: "the trigger is removed, an unmask signals it: null",
        rule: "the handler outlives the trigger",
        covers: &[
            model(LINES, "slot_signal_against_release", "slot_signal_against_release_peeked", M::SlotPeeked),
            test(INTX_TESTS, "a_missing_trigger_is_no_mistake_and_a_late_one_is_raised"),
        ],
    },
    Race {
        number: 27,
        what: "an interrupt between its request and the mask: disabled twice, enabled once, dead",
        rule: "register it disabled; what a transition owes is done under its lock",
        covers: &[
            model(
                LINES,
                "intx_interrupt_against_mask",
                "intx_interrupt_against_mask_owed_unlocked",
                M::IntxOwedUnlocked,
            ),
            model(
                LINES,
                "intx_interrupt_against_release",
                "intx_interrupt_against_release_owed_unlocked",
                M::IntxOwedUnlocked,
            ),
            test(INTX_TESTS, "every_pair_of_the_table"),
        ],
    },
    Race {
        number: 28,
        what: "a mask takes effect late and swallows what asserts meanwhile: stall",
        rule: "mask at once",
        covers: &[
            test(INTX_TESTS, "the_line_is_masked_before_it_is_raised"),
            test(INTX_TESTS, "random_lives_keep_depth_and_lose_nothing"),
            test(IOAPIC_TESTS, "levels_behind_masks"),
        ],
    },
    Race {
        number: 29,
        what: "the release clears what a request is signalling: null",
        rule: "a slot is looked at and used in one critical section, the release's too",
        covers: &[
            model(LINES, "slot_signal_against_release", "slot_signal_against_release_peeked", M::SlotPeeked),
            model(
                LINES,
                "intx_interrupt_against_release",
                "intx_interrupt_against_release_owed_unlocked",
                M::IntxOwedUnlocked,
            ),
        ],
    },
    Race {
        number: 30,
        what: "three threads, three locks in a ring: deadlock",
        rule: "whoever needs a look only takes no lock for it",
        covers: &[
            by(
                "no lock is held inside the gate, and a line's or slot's lock is a leaf: there are no two to hold",
                "core/src/line/irq_type.rs",
                "struct IrqGate",
            ),
            by(
                "work done under a line's lock has no way back to it",
                "core/src/line/host_line.rs",
                "trait IntxHost",
            ),
            test(LINE_TESTS, "a_gate_waiter_is_refused_when_the_one_inside_releases"),
        ],
    },
    Race {
        number: 31,
        what: "start and count overflow, and the range passes the checks",
        rule: "ranges are checked without overflow",
        covers: &[
            test("core/src/line/tests/set_irqs.rs", "nothing_accepted_overflows"),
            test("tests/tests/integration/fuzz.rs", "irq_set"),
        ],
    },
];
