//! What one thread, or two real ones, can show; the interleavings are the loom models'.

extern crate std;
use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::vec::Vec;

#[test]
fn pending_set_takes_each_once_in_order() {
    let set = PendingSet::new();
    assert!(set.is_empty());
    let numbers = [0, 1, 63, 64, 65, 1000, PENDING_BITS - 1];
    for number in numbers.iter().rev() {
        assert!(set.add(*number), "new: wake the worker");
        assert!(!set.add(*number), "there already");
    }
    assert!(set.remove(64) && !set.remove(64));
    let mut taken = Vec::new();
    assert_eq!(set.take(|number| taken.push(number)), 6);
    assert_eq!(taken, [0, 1, 63, 65, 1000, PENDING_BITS - 1]);
    assert!(set.is_empty());
    assert_eq!(set.take(|_| unreachable!()), 0);
}

#[test]
fn pending_set_keeps_what_is_added_while_it_is_taken() {
    let set = PendingSet::new();
    set.add(5);
    assert_eq!(
        set.take(|number| {
            set.add(number + 1);
        }),
        1
    );
    let mut taken = Vec::new();
    set.take(|number| taken.push(number));
    assert_eq!(taken, [6]);
}

#[test]
#[should_panic(expected = "out of bounds")]
fn pending_set_has_an_end() {
    PendingSet::new().add(PENDING_BITS);
}

#[test]
fn gate_closes_once_and_opens_again() {
    let gate = Gate::new();
    let inside = gate.try_enter().unwrap();
    let also = gate.try_enter().unwrap();
    assert!(gate.close() && !gate.close() && gate.is_closed());
    assert!(gate.try_enter().is_none(), "closed to newcomers while some are inside");
    let mut waiting = Some([inside, also]);
    let mut looks = 0;
    gate.drain(|| {
        looks += 1;
        drop(waiting.take().expect("both have left, and it still waits"));
    });
    assert_eq!(looks, 1);
    gate.open();
    assert!(!gate.is_closed() && gate.try_enter().is_some());
}

#[test]
fn grace_seats_run_out_and_come_back() {
    let grace = Grace::new();
    let mut readers: Vec<_> = (0..READERS).map(|_| grace.register().unwrap()).collect();
    assert!(grace.register().is_none());
    let brief = grace.read_briefly(|| panic!("pollers do not use up the seats of control threads"));
    assert!(brief.is_online() && brief.is_of(&grace) && !brief.is_of(&Grace::new()));
    drop(brief);
    readers.pop();
    assert!(grace.register().is_some());
}

#[test]
fn brief_readers_wait_for_each_other_only() {
    let grace = Grace::new();
    let mut held: Vec<_> = (0..8).map(|_| grace.read_briefly(|| unreachable!())).collect();
    let mut waited = 0;
    let next = grace.read_briefly(|| {
        waited += 1;
        held.pop();
    });
    assert!(next.is_online());
    assert_eq!(waited, 1);
}

#[test]
fn synchronize_waits_for_those_online_only() {
    let grace = Grace::new();
    let never = || panic!("nobody to wait for");
    grace.synchronize(never);
    let mut reader = grace.register().unwrap();
    grace.synchronize(never);
    reader.online();
    let mut looks = 0;
    grace.synchronize(|| {
        looks += 1;
        if looks == 3 {
            reader.tick();
        }
    });
    assert_eq!(looks, 3);
    grace.synchronize(|| reader.offline());
    grace.synchronize(never);
    assert!(!reader.is_online());
}

fn step(old: &u32, new: &mut u32) -> Result<(), u32> {
    *new = *old + 1;
    Ok(())
}

#[test]
#[should_panic(expected = "an online reader of its own")]
fn rcu_is_not_for_readers_offline() {
    let rcu = Rcu::new(0u32, 0);
    let reader = rcu.grace().register().unwrap();
    rcu.read(&reader, |_| ());
}

#[test]
#[should_panic(expected = "an online reader of its own")]
fn rcu_is_not_for_readers_of_another_one() {
    let (rcu, other) = (Rcu::new(0u32, 0), Rcu::new(0u32, 0));
    let mut reader = other.grace().register().unwrap();
    reader.online();
    rcu.read(&reader, |_| ());
}

#[test]
fn rcu_keeps_the_table_when_the_next_one_is_refused() {
    let rcu = Rcu::new(7u32, 0);
    let mut reader = rcu.grace().register().unwrap();
    reader.online();
    let refused = rcu.replace(
        |_, next| {
            *next = 99;
            Err(5)
        },
        |_, _| unreachable!(),
        || unreachable!(),
    );
    assert_eq!(refused, Err(5));
    assert_eq!(rcu.read(&reader, |value| *value), 7);
    rcu.replace(step, |_, switch| switch(), || reader.tick()).unwrap();
    assert_eq!(rcu.read(&reader, |value| *value), 8);
}

#[test]
fn rcu_owes_the_grace_period_of_a_writer_that_panicked() {
    let rcu = Rcu::new(0u32, 0);
    let mut reader = rcu.grace().register().unwrap();
    reader.online();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        rcu.replace(
            step,
            |_, switch| {
                switch();
                panic!("in publish");
            },
            || (),
        )
    }));
    assert!(panicked.is_err());
    // The reader may still have the old copy, which is the one the next writer would overwrite.
    let ticked = AtomicBool::new(false);
    rcu.replace(
        |old, new| {
            assert!(ticked.load(SeqCst), "overwritten under a reader");
            step(old, new)
        },
        |_, switch| switch(),
        || {
            reader.tick();
            ticked.store(true, SeqCst);
        },
    )
    .unwrap();
    assert_eq!(rcu.read(&reader, |value| *value), 2);
}

#[test]
fn rcu_and_latch_with_real_threads() {
    let rcu = Rcu::new([0u64; 64], [0; 64]);
    let latch = Latch::new([0u64; 3]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut reader = rcu.grace().register().unwrap();
            reader.online();
            while !done.load(SeqCst) {
                rcu.read(&reader, |table| assert!(table.iter().all(|word| *word == table[0]), "torn"));
                if let Ok(words) = latch.read() {
                    assert!(words.iter().all(|word| *word == words[0]), "torn");
                }
                reader.tick();
            }
        });
        for round in 1..2000 {
            let build = |_: &[u64; 64], next: &mut [u64; 64]| {
                next.fill(round);
                Ok::<(), ()>(())
            };
            rcu.replace(build, |_, switch| switch(), std::thread::yield_now).unwrap();
            latch.write([round; 3]);
        }
        done.store(true, SeqCst);
    });
}
