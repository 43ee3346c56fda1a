//! The posted-interrupt descriptor, L1 to L5, L7 and L11: nothing lost, nothing miscounted, nobody woken twice.

use crate::posted_twin::Vcpu;
use crate::spawn;
use pollvisor_core::ids::Trigger::{Edge, Level};
use pollvisor_core::lapic::Lapic;
use pollvisor_core::prim::{AtomicU32, Mutation, Ordering};
use pollvisor_tests::model::{check, check_broken};
use std::sync::Arc;

/// A low vector, and one of a higher class.
const LOW: u8 = 0x21;
const HIGH: u8 = 0x31;

/// L1. Two senders against an owner that halts: it takes both, whoever is asleep when.
fn both_taken((vcpu, mut lapic): (Vcpu, Lapic)) {
    let vcpu = Arc::new(vcpu);
    let a = spawn(&vcpu, |vcpu| vcpu.post(LOW, Edge));
    let b = spawn(&vcpu, |vcpu| vcpu.post(HIGH, Edge));
    let mut taken = [false; 2];
    vcpu.run(&mut lapic, |vector, _| {
        taken[usize::from(vector == HIGH)] = true;
        taken == [true; 2]
    });
    a.join().unwrap();
    b.join().unwrap();
    vcpu.assert_ledger(&lapic, 2);
}

#[test]
fn a_halting_owner_takes_everything() {
    check(3, || both_taken(Vcpu::new()));
}

#[test]
fn a_halting_owner_takes_everything_by_the_twins() {
    check(3, || both_taken(Vcpu::twin()));
}

#[test]
#[should_panic(expected = "deadlock")]
fn on_before_the_pir_loses_an_interrupt() {
    check_broken(Mutation::OnBeforePir, 3, || both_taken(Vcpu::new()));
}

#[test]
#[should_panic(expected = "deadlock")]
fn on_cleared_late_loses_an_interrupt() {
    check_broken(Mutation::ClearOnLate, 3, || both_taken(Vcpu::new()));
}

#[test]
#[should_panic(expected = "deadlock")]
fn sleeping_on_what_it_reads_loses_a_wake() {
    check_broken(Mutation::SleepBlind, 3, || both_taken(Vcpu::new()));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_sleep_word_of_its_own_loses_a_wake() {
    check_broken(Mutation::SleepApart, 3, || both_taken(Vcpu::new()));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_wake_dropped_is_lost() {
    check_broken(Mutation::WakeDropped, 3, || both_taken(Vcpu::new()));
}

/// L2. What `ON` announced is there for the harvest that clears it.
fn announced() {
    let (vcpu, mut lapic) = Vcpu::new();
    let vcpu = Arc::new(vcpu);
    let a = spawn(&vcpu, |vcpu| vcpu.post(LOW, Edge));
    let b = spawn(&vcpu, |vcpu| vcpu.post(LOW + 1, Level));
    if vcpu.posted().is_announced() {
        vcpu.harvest(&mut lapic);
        assert!(lapic.take().is_some(), "announced and not there");
    }
    a.join().unwrap();
    b.join().unwrap();
}

#[test]
fn what_on_announced_is_harvested() {
    check(3, announced);
}

#[test]
#[should_panic(expected = "announced and not there")]
fn on_without_release_announces_nothing() {
    check_broken(Mutation::OnRelaxed, 3, announced);
}

/// A vCPU, and what two signallers wrote before they posted.
struct Signals {
    vcpu: Vcpu,
    written: [AtomicU32; 2],
}

/// L3. Two signals of one vector: a run of the handler sees what each wrote, merged or not.
fn merging() {
    let (vcpu, mut lapic) = Vcpu::new();
    let world = Arc::new(Signals { vcpu, written: [AtomicU32::new(0), AtomicU32::new(0)] });
    let signal = |index: usize| {
        move |world: &Signals| {
            world.written[index].store(1, Ordering::Relaxed);
            world.vcpu.post(LOW, Edge);
        }
    };
    let a = spawn(&world, signal(0));
    let b = spawn(&world, signal(1));
    world.vcpu.run(&mut lapic, |_, _| {
        let seen = world.written.iter().map(|written| written.load(Ordering::Relaxed));
        seen.sum::<u32>() == 2
    });
    a.join().unwrap();
    b.join().unwrap();
    world.vcpu.harvest(&mut lapic);
    world.vcpu.assert_ledger(&lapic, 2);
}

#[test]
fn the_run_that_a_signal_merges_into_sees_its_payload() {
    check(3, merging);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_peek_at_the_pir_loses_a_payload() {
    check_broken(Mutation::PirPeek, 3, merging);
}

/// L4. The ledger: merges in the PIR, between the maps and in the IRR, and what still waits.
fn three_counted((vcpu, mut lapic): (Vcpu, Lapic)) {
    let vcpu = Arc::new(vcpu);
    let a = spawn(&vcpu, |vcpu| {
        vcpu.post(LOW, Edge);
        vcpu.post(HIGH, Edge);
    });
    let b = spawn(&vcpu, |vcpu| vcpu.post(LOW, Level));
    for _ in 0..2 {
        vcpu.harvest(&mut lapic);
        if lapic.take().is_some() {
            let _end = lapic.eoi();
        }
    }
    a.join().unwrap();
    b.join().unwrap();
    vcpu.assert_ledger(&lapic, 3);
    vcpu.harvest(&mut lapic);
    vcpu.assert_ledger(&lapic, 3);
}

#[test]
fn the_ledger_is_exact() {
    check(3, || three_counted(Vcpu::new()));
}

#[test]
fn the_ledger_is_exact_by_the_twins() {
    check(3, || three_counted(Vcpu::twin()));
}

#[test]
#[should_panic(expected = "the ledger")]
fn a_pir_taken_in_two_steps_loses_an_interrupt() {
    check_broken(Mutation::PirTakeInTwo, 3, || three_counted(Vcpu::new()));
}

#[test]
#[should_panic(expected = "the ledger")]
fn what_is_in_the_irr_already_counts() {
    check_broken(Mutation::CountNotIrr, 3, || three_counted(Vcpu::new()));
}

/// L5. A level and an edge of one vector: the level's EOI is broadcast, harvested together or apart.
fn triggers() {
    let (vcpu, mut lapic) = Vcpu::new();
    let vcpu = Arc::new(vcpu);
    let a = spawn(&vcpu, |vcpu| vcpu.post(LOW, Edge));
    let b = spawn(&vcpu, |vcpu| vcpu.post(LOW, Level));
    let mut broadcasts = 0;
    let mut look = |lapic: &mut _| {
        vcpu.harvest(lapic);
        if lapic.take().is_some() {
            broadcasts += u32::from(lapic.eoi().expect("in service").broadcast);
        }
    };
    look(&mut lapic);
    look(&mut lapic);
    a.join().unwrap();
    b.join().unwrap();
    look(&mut lapic);
    assert_eq!(broadcasts, 1, "a level line is dead");
}

#[test]
fn a_level_wins_over_an_edge() {
    check(3, triggers);
}

#[test]
#[should_panic(expected = "a level line is dead")]
fn an_edge_that_wins_leaves_a_line_dead() {
    check_broken(Mutation::EdgeWins, 3, triggers);
}

/// L7. Two senders, an owner that halts: as many wakes as sleeps at the most.
fn waking() {
    let (vcpu, mut lapic) = Vcpu::new();
    let vcpu = Arc::new(vcpu);
    let a = spawn(&vcpu, |vcpu| vcpu.post(LOW, Edge));
    let b = spawn(&vcpu, |vcpu| vcpu.post(LOW + 1, Edge));
    let mut left = 2;
    vcpu.run(&mut lapic, |_, _| {
        left -= 1;
        left == 0
    });
    a.join().unwrap();
    b.join().unwrap();
    let (wakes, sleeps) = (vcpu.wakes.load(Ordering::SeqCst), vcpu.sleeps.load(Ordering::SeqCst));
    assert!(wakes <= sleeps, "{wakes} wakes for {sleeps} sleeps");
}

#[test]
fn a_sleep_is_woken_once() {
    check(3, waking);
}

#[test]
#[should_panic(expected = "wakes for")]
fn everybody_wakes_a_sleeper() {
    check_broken(Mutation::WakeAlways, 3, waking);
}

/// L11. A sender that stops between its PIR and its `ON` holds up nobody: the next post of its vector arrives.
fn stuck_sender() {
    let (vcpu, mut lapic) = Vcpu::new();
    let vcpu = Arc::new(vcpu);
    let stuck = spawn(&vcpu, |vcpu| {
        vcpu.posted().maps()[0].fetch_or(1 << LOW, Ordering::Release);
    });
    let b = spawn(&vcpu, |vcpu| vcpu.post(LOW, Edge));
    vcpu.run(&mut lapic, |_, _| true);
    stuck.join().unwrap();
    b.join().unwrap();
}

#[test]
fn a_sender_that_stops_holds_up_nobody() {
    check(3, stuck_sender);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_merged_post_without_on_waits_for_another_sender() {
    check_broken(Mutation::MergedNoOn, 3, stuck_sender);
}
