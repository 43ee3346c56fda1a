//! 46 to 48: what comes of polling in user space.

use super::*;
use pollvisor_core::prim::Mutation as M;

pub(super) const RACES: &[Race] = &[
    Race {
        number: 46,
        what: "inject, a second signal, drain: the second one's edge is lost",
        rule: "a drained count above one injects again",
        covers: &[
            model(
                PATH_SIGNALS,
                "no_edge_is_lost_between_injection_and_drain",
                "a_count_above_one_injects_again",
                M::NoSecondInject,
            ),
            model(
                PATH_SIGNALS,
                "three_signals_meet_every_step_of_a_pass",
                "ready_again_only_when_drained",
                M::RearmBeforeDrain,
            ),
            test(IRQFD_TESTS, "one_signal_one_interrupt_and_many_are_merged"),
        ],
    },
    Race {
        number: 47,
        what: "a re-arm and a signal want one ring's lock: the completion goes to a kworker that a busy core starves",
        rule: "bound the delay",
        covers: &[
            by(
                "the kworker is of the signaller's CPU, and the poller's is nobody else's; the poller itself never cancels",
                "host/src/sys/aio.rs",
                "struct Canceller",
            ),
            by(
                "cancelling is done by whoever waits for the unhook",
                "host/src/source/port.rs",
                "fn wait_unhooked",
            ),
            test("host/src/run/place.rs", "defaults_keep_the_poller_alone"),
            test("host/src/sys/aio.rs", "cancel_completes_without_events"),
        ],
    },
    Race {
        number: 48,
        what: "the waiter changes, polled to in-kernel or back, with an event on its way: lost or doubled",
        rule: "each side looks for what is pending when it comes",
        covers: &[
            model(
                "tests/tests/loom_path/handover.rs",
                "a_hand_over_loses_and_doubles_nothing",
                "a_hand_over_without_a_look_loses_what_came_between",
                M::AssignNoPendingCheck,
            ),
            model(
                PATH_SIGNALS,
                "assign_loses_nothing_of_an_edge_only_source",
                "assign_marks_what_it_took_itself",
                M::AssignNotFresh,
            ),
        ],
    },
];
