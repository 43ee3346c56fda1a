//! 1 to 19: irqfds and routes.

use super::*;
use pollvisor_core::prim::Mutation as M;

pub(super) const RACES: &[Race] = &[
    Race {
        number: 1,
        what: "work has run already, its cancel says otherwise: one reference is dropped twice",
        rule: "infer no references from a cancel",
        covers: &[
            by(
                "nothing is cancelled: the shutdown waits until what is owed is 0, and counts nothing from how it got there",
                "core/src/irqfd/shutdown.rs",
                "fn shut_down",
            ),
            model(
                PATH_SYNC,
                "pending_set_keeps_everything",
                "pending_set_taken_in_two_steps_loses_what_is_added_between",
                M::PendingTakeInTwo,
            ),
        ],
    },
    Race {
        number: 2,
        what: "the MSI fires again between the cancel and the free: use after free",
        rule: "stop the source, drain, free",
        covers: &[
            model(
                PATH_LIFE,
                "deassign_outlasts_every_pass",
                "without_grace_a_pass_outlasts_deassign",
                M::ShutdownNoGrace,
            ),
            model(
                PATH_LIFE,
                "deassign_flushes_what_was_deferred",
                "without_flush_the_worker_outlasts_deassign",
                M::ShutdownNoFlush,
            ),
            by(
                "freeing needs the token that waiting gives, and waiting the one that disabling gives",
                "core/src/teardown/irq.rs",
                "Drained,",
            ),
        ],
    },
    Race {
        number: 3,
        what: "a deassign waits, with the VM's lock, for work that wants it: deadlock",
        rule: "never drain under a lock of the worker's",
        covers: &[
            by(
                "the list's guard ends with the block that reads the ticket; what waits runs after it",
                "core/src/irqfd/mod.rs",
                "fn flush_shutdowns",
            ),
            by(
                "the worker that injects is never the one that waits",
                "host/src/workers.rs",
                "struct Workers",
            ),
            model(
                PATH_LIFE,
                "deassign_flushes_what_was_deferred",
                "without_flush_the_worker_outlasts_deassign",
                M::ShutdownNoFlush,
            ),
        ],
    },
    Race {
        number: 4,
        what: "A lets go and reads low, B raises, A writes low: B's level is lost",
        rule: "the OR over the sources and the write of the pin are one step",
        covers: &[
            by("both happen under one lock of the pin's", "host/src/accel/kvm/vm.rs", "fn pin"),
            by(
                "one `&mut` step changes a source and acts on the OR",
                "core/src/ioapic/mod.rs",
                "fn set_line",
            ),
            test(IOAPIC_TESTS, "a_line_is_the_or_of_its_sources"),
        ],
    },
    Race {
        number: 5,
        what: "a hang-up meets a deassign or the VM's release: the shutdown runs twice",
        rule: "leaving the list elects one owner",
        covers: &[
            model(
                PATH_LIFE,
                "one_owner_shuts_down",
                "without_election_there_are_two_owners",
                M::ShutdownNoElection,
            ),
            model(
                PATH_LIFE,
                "a_reported_hang_up_is_the_irqfds_own",
                "without_election_a_reported_hang_up_is_another_owner",
                M::ShutdownNoElection,
            ),
        ],
    },
    Race {
        number: 6,
        what: "assign unlocks, a deassign frees, assign queues the event it found: use after free",
        rule: "queue what was pending while the irqfd is still protected",
        covers: &[model(
            PATH_LIFE,
            "deassign_meets_no_assigner",
            "an_assigner_that_looks_late_meets_the_shutdown",
            M::AssignPendingLate,
        )],
    },
    Race {
        number: 7,
        what: "assign locks list then source, a hang-up source then list: inversion",
        rule: "one order of locks",
        covers: &[
            by(
                "a poller reports a hang-up by a bit, without a lock",
                "core/src/irqfd/mod.rs",
                "fn hang_up_from_poller",
            ),
            by(
                "the sources are hooked with no lock held; the one order is written there",
                "core/src/lib.rs",
                "# Lock order",
            ),
            model(
                PATH_LIFE,
                "a_hang_up_waits_for_the_assigner",
                "a_hang_up_that_does_not_wait_is_forgotten",
                M::HangUpNoWait,
            ),
        ],
    },
    Race {
        number: 8,
        what: "a deassign waits for its own shutdown or for none: it returns early",
        rule: "wait for the whole queue",
        covers: &[
            model(
                PATH_LIFE,
                "one_owner_shuts_down",
                "a_deassign_that_waits_for_its_own_alone_returns_early",
                M::DeassignOwnOnly,
            ),
            test(IRQFD_TESTS, "what_was_deferred_is_delivered_before_deassign_returns"),
        ],
    },
    Race {
        number: 9,
        what: "the file is closed while its bypass is being registered: freed under it",
        rule: "whoever registers holds the file",
        covers: &[
            by(
                "no bypass is registered from here; while an eventfd is hooked, its request holds it",
                "host/src/interrupts.rs",
                "struct Request",
            ),
            test(IRQFD_TESTS, "deactivation_keeps_the_copy_and_stops_its_use"),
        ],
    },
    Race {
        number: 10,
        what: "another thread deassigns in the middle of an assign: use after free",
        rule: "a shutdown waits for assigners",
        covers: &[
            model(
                PATH_LIFE,
                "deassign_meets_no_assigner",
                "an_assigner_that_looks_late_meets_the_shutdown",
                M::AssignPendingLate,
            ),
            model(
                PATH_LIFE,
                "release_waits_for_assigners",
                "release_that_lets_assigners_in_is_none",
                M::GateCloseOpen,
            ),
            model(
                PATH_LIFE,
                "a_hang_up_waits_for_the_assigner",
                "a_hang_up_that_does_not_wait_is_forgotten",
                M::HangUpNoWait,
            ),
        ],
    },
    Race {
        number: 11,
        what: "two VMs bind one eventfd: each takes interrupts of the other's",
        rule: "an eventfd has one waiter, host-wide",
        covers: &[
            test(IRQFD_TESTS, "every_refusal_and_its_number"),
            by(
                "one register for all VMs of the process, keyed by the eventfd and not its number",
                "host/src/interrupts.rs",
                "static BINDINGS",
            ),
        ],
    },
    Race {
        number: 12,
        what: "deassign blanks the route, so that undoing the bypass is skipped: use after free",
        rule: "D1: the copy is kept, and active is what is asked",
        covers: &[
            test(IRQFD_TESTS, "deactivation_keeps_the_copy_and_stops_its_use"),
            by(
                "the copy is written for a listed irqfd, or one being listed, by the table alone",
                "core/src/irqfd/mod.rs",
                "fn copy_route",
            ),
        ],
    },
    Race {
        number: 13,
        what: "deactivated, then the route changes, then an event: it goes the old way",
        rule: "an inactive irqfd's events go the slow way",
        covers: &[
            test(IRQFD_TESTS, "deactivation_keeps_the_copy_and_stops_its_use"),
            model(
                PATH_ROUTES,
                "an_update_outlasts_the_deferred_worker",
                "without_grace_the_worker_outlasts_an_update",
                M::RouteNoGrace,
            ),
        ],
    },
    Race {
        number: 14,
        what: "a route update looks at what is just being added or removed",
        rule: "updates, adding and removing exclude one another",
        covers: &[
            model(
                PATH_ROUTES,
                "an_update_leaves_the_next_owner_alone",
                "an_update_outside_the_lock_does_not",
                M::RouteRefreshUnlocked,
            ),
            model(
                PATH_ROUTES,
                "an_assign_copies_the_new_route",
                "an_assign_that_copies_outside_the_lock_keeps_the_old_one",
                M::AssignCopyUnlocked,
            ),
        ],
    },
    Race {
        number: 15,
        what: "a route changes its type and nothing else: the update is skipped",
        rule: "the type is compared too",
        covers: &[
            test(IRQFD_TESTS, "a_route_that_changes_its_type_only_is_copied"),
            test(IRQFD_TESTS, "listed_irqfds_follow_the_routes"),
            test(ROUTE_TESTS, "packing_is_lossless"),
        ],
    },
    Race {
        number: 16,
        what: "the new route cannot be posted, so the old posting stays",
        rule: "what no longer holds is always undone",
        covers: &[
            by(
                "every refresh writes the copy, also with nothing in it when the new route cannot be delivered at once",
                "core/src/irqfd/mod.rs",
                "fn refresh",
            ),
            test(IRQFD_TESTS, "listed_irqfds_follow_the_routes"),
        ],
    },
    Race {
        number: 17,
        what: "more entries of one GSI than a fixed array holds",
        rule: "limits are checked where entries come in",
        covers: &[
            test(ROUTE_TESTS, "every_refusal"),
            test(ROUTE_TESTS, "three_chips_share_a_gsi_and_are_not_cacheable"),
            by(
                "a copy of a GSI's targets has a bound, and what is beyond it has no place",
                "core/src/route/mod.rs",
                "MAX_PER_GSI",
            ),
        ],
    },
    Race {
        number: 18,
        what: "a GSI beyond the table: an assertion stops the host",
        rule: "it is an unrouted one",
        covers: &[test(IRQFD_TESTS, "an_unrouted_gsi_drops_and_counts")],
    },
    Race {
        number: 19,
        what: "an irqfd is assigned before there are routes",
        rule: "a table exists from birth, empty",
        covers: &[
            test(ROUTE_TESTS, "empty_is_legal_and_the_state_at_birth"),
            test(IRQFD_TESTS, "listed_irqfds_follow_the_routes"),
        ],
    },
];
