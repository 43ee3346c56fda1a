//! 32 to 45: mediated devices, groups and containers.

use super::*;
use pollvisor_core::prim::Mutation as M;

pub(super) const RACES: &[Race] = &[
    Race {
        number: 32,
        what: "a child is added behind the sweep, or removed past its parent's end: orphan, crash",
        rule: "a gate that the sweep closes and drains",
        covers: &[
            model(
                CHILDREN,
                "mediated_create_against_unregister",
                "mediated_create_against_unregister_no_drain",
                M::MediatedNoDrain,
            ),
            model(
                CHILDREN,
                "mediated_two_creates_against_unregister",
                "mediated_create_against_unregister_open_gate",
                M::GateCloseOpen,
            ),
            model(
                PATH_SYNC,
                "gate_keeps_entrants_and_closer_apart",
                "gate_left_open_lets_them_meet",
                M::GateCloseOpen,
            ),
        ],
    },
    Race {
        number: 33,
        what: "the remover that loses re-creates what the winner took down",
        rule: "no rollback: the loser has done nothing yet",
        covers: &[
            model(
                CHILDREN,
                "mediated_two_removers",
                "mediated_two_removers_no_election",
                M::MediatedNoElection,
            ),
            by(
                "claiming comes before any work, and its failure returns at once",
                "core/src/mediated/mod.rs",
                "fn remove",
            ),
        ],
    },
    Race {
        number: 34,
        what: "a child is probed before it is created",
        rule: "removing mirrors creating, and only what is active is found usable",
        covers: &[
            by(
                "active is what a child becomes when its parent's work has succeeded, and holding needs that",
                "core/src/mediated/mod.rs",
                "struct Reserved",
            ),
            test(MEDIATED_TESTS, "half_created_and_half_removed_say_try_again"),
            model(
                CHILDREN,
                "mediated_failed_creates",
                "mediated_failed_creates_leak",
                M::MediatedFailedCreateLeaks,
            ),
        ],
    },
    Race {
        number: 35,
        what: "the sweep stops at the first child that complains",
        rule: "it never stops early",
        covers: &[
            model(
                CHILDREN,
                "mediated_remove_against_unregister",
                "mediated_remove_against_unregister_sweep_stops",
                M::MediatedSweepStops,
            ),
            test(MEDIATED_TESTS, "the_sweep_goes_on_when_a_removal_complains"),
        ],
    },
    Race {
        number: 36,
        what: "a look finds what has lost its last reference",
        rule: "the last put and the look are under one lock",
        covers: &[
            by(
                "the last put frees the slot in its own critical section",
                "core/src/mediated/tables.rs",
                "fn put",
            ),
            by("a device is found and counted in one", "core/src/group/files.rs", "fn get_device"),
            test(MEDIATED_TESTS, "capacity_and_uuid_come_back_with_the_last_reference"),
            test(MEDIATED_TESTS, "random_calls_agree_with_the_reference"),
        ],
    },
    Race {
        number: 37,
        what: "a call in a container uses a driver that the detach takes away",
        rule: "calls are inside a gate that the detach drains",
        covers: &[model(
            GROUPS,
            "container_call_against_detach",
            "container_call_against_detach_no_drain",
            M::ContainerNoDrain,
        )],
    },
    Race {
        number: 38,
        what: "the release edits the unbound list under the notifier",
        rule: "unregister the notifier first",
        covers: &[
            by(
                "freeing needs the token that unregistering gives",
                "core/src/group/registry.rs",
                "struct Quiet",
            ),
            by(
                "unregistering closes the notifier's gate and drains it",
                "core/src/group/registry.rs",
                "fn unregister_notifier",
            ),
            test(GROUP_TESTS, "a_group_goes_in_order_with_everything_asserted"),
        ],
    },
    Race {
        number: 39,
        what: "UNSET counts down, SET installs, UNSET clears the new one: leak, null",
        rule: "count and pointer change under one lock",
        covers: &[model(
            GROUPS,
            "group_unset_against_set",
            "group_unset_against_set_in_two_steps",
            M::GroupUnsetTwice,
        )],
    },
    Race {
        number: 40,
        what: "a holder re-opens what is being unregistered, again and again: it never ends",
        rule: "unlist first",
        covers: &[model(
            GROUPS,
            "group_unlist_against_open",
            "group_unlist_against_open_found",
            M::GroupOpenUnlisted,
        )],
    },
    Race {
        number: 41,
        what: "the last reference to a VM is put under the lock that its end calls back into",
        rule: "no final put under a lock",
        covers: &[
            by(
                "the reference is returned, and dropped by the caller",
                "core/src/group/files.rs",
                "struct Closed",
            ),
            by("so is a driver", "core/src/group/container.rs", "struct Detached"),
            by("so is a trigger", "core/src/line/host_line.rs", "fn unregister_ack"),
            test(GROUP_TESTS, "a_group_goes_in_order_with_everything_asserted"),
        ],
    },
    Race {
        number: 42,
        what: "a group is used after the unlock, when another thread has deleted it",
        rule: "hold the lock, and name what you use by a generation",
        covers: &[
            by(
                "a group is reached through the tables, which are the lock's",
                "core/src/group/tables.rs",
                "fn group",
            ),
            test(GROUP_TESTS, "a_group_goes_in_order_with_everything_asserted"),
            test("core/src/group/tests/random.rs", "random_calls_agree_with_the_reference"),
        ],
    },
    Race {
        number: 43,
        what: "a close too many counts to -1, and the next open lets a second one in",
        rule: "refuse, do not count down",
        covers: &[model(
            GROUPS,
            "group_close_against_open",
            "group_close_against_open_unchecked",
            M::GroupCloseUnchecked,
        )],
    },
    Race {
        number: 44,
        what: "a leaked file of a group is in the way of an unplug",
        rule: "revoke it, do not wait for it",
        covers: &[
            test(GROUP_TESTS, "an_unplugged_device_is_revoked_not_waited_for"),
            model(
                GROUPS,
                "group_unlist_against_open",
                "group_unlist_against_open_found",
                M::GroupOpenUnlisted,
            ),
        ],
    },
    Race {
        number: 45,
        what: "connecting fails and leaves its pointer behind",
        rule: "a failure takes back what was done before it",
        covers: &[
            test(IRQFD_TESTS, "a_failed_hook_leaves_nothing"),
            test(RESAMPLE_TESTS, "a_failed_assign_lowers_what_a_member_left_up"),
            by("there is no bypass, so no pointer to it", "core/src/irqfd/slot.rs", "struct Slot"),
        ],
    },
];
