extern crate std;

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::super::*;
use crate::Errno;
use crate::ids::Gsi;

fn open(_: u32, fd: i32) -> Result<i32, Errno> {
    if fd == 13 { Err(Errno::EBADF) } else { Ok(fd) }
}

fn triggers<const N: usize>(vectors: &Vectors<i32, N>) -> [Option<i32>; N] {
    core::array::from_fn(|n| vectors.trigger(u32::try_from(n).unwrap()).copied())
}

#[test]
fn too_few_vectors_is_a_count_and_sets_up_nothing() {
    let mut vectors = Vectors::<i32, 4>::new();
    assert_eq!(vectors.enable(4, 3, false), Ok(Enabled::Only(3)));
    assert_eq!(vectors.enabled(), 0);
    assert_eq!(vectors.enable(5, 9, false).unwrap_err().errno(), Errno::ENOMEM);
    assert_eq!(vectors.enable(1, 0, false).unwrap_err().errno(), Errno::ENOSPC);
    assert_eq!(vectors.bind(0, &[1], open, |_, _| ()), Err(VectorsError::WrongState));
    assert_eq!(vectors.disable(|_, _| ()), Err(VectorsError::WrongState));
    assert_eq!(vectors.enable(3, 3, false), Ok(Enabled::Done));
    assert_eq!(vectors.enable(3, 3, false).unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn a_failing_block_clears_what_it_touched_and_no_more() {
    let mut vectors = Vectors::<i32, 4>::new();
    let _ = vectors.enable(4, 4, false).unwrap();
    vectors.bind(0, &[1, 2, 3, 4], open, |_, _| ()).unwrap();
    vectors.bind(0, &[-1], open, |_, _| ()).unwrap();
    assert_eq!(triggers(&vectors), [None, Some(2), Some(3), Some(4)], "-1 removes one");
    vectors.bind(0, &[1], open, |_, _| ()).unwrap();
    let mut retired = Vec::new();
    let failed = vectors.bind(1, &[20, 13, 40], open, |v, t| retired.push((v, t)));
    assert_eq!(failed, Err(VectorsError::Block { vector: 2, errno: Errno::EBADF }));
    assert_eq!(triggers(&vectors), [Some(1), None, None, Some(4)]);
    assert_eq!(retired, [(1, 2), (2, 3), (1, 20)]);
    let mut fired = Vec::new();
    assert_eq!(vectors.fire(0, 4, |n| n != 0, |&t| fired.push(t)), 1);
    assert_eq!(fired, [4]);
    assert_eq!(vectors.fire(u32::MAX, 4, |_| true, |_| unreachable!()), 0);
    let mut all = Vec::new();
    vectors.disable(|v, t| all.push((v, t))).unwrap();
    assert_eq!(all, [(0, 1), (3, 4)]);
    assert_eq!(vectors.enabled(), 0);
}

#[test]
fn only_a_resizable_device_gets_vectors_later() {
    for (resizable, expected) in
        [(false, Err(VectorsError::Block { vector: 2, errno: Errno::EINVAL })), (true, Ok(()))]
    {
        let mut vectors = Vectors::<i32, 4>::new();
        let _ = vectors.enable(1, 4, resizable).unwrap();
        assert_eq!(vectors.bind(2, &[7], open, |_, _| ()), expected);
        assert!(vectors.bind(u32::MAX, &[7, 7], open, |_, _| ()).is_err());
    }
}

#[test]
fn vector_to_index_to_gsi() {
    let mut map = VectorMap::<3>::new();
    map.set(2, 0, Gsi(40)).unwrap();
    assert_eq!(map.set(1, 0, Gsi(41)).unwrap_err().errno(), Errno::EEXIST);
    assert_eq!(map.set(3, 1, Gsi(41)).unwrap_err().errno(), Errno::EINVAL);
    map.set(2, 0, Gsi(42)).unwrap();
    assert_eq!(map.lookup(0), Some((2, Gsi(42))));
    assert_eq!(map.arrive(0, |_| Ok(())), Arrival::Delivered);
    assert_eq!(map.arrive(1, |_| unreachable!()), Arrival::Unmapped);
    let Arrival::Deferred(deferred) = map.arrive(0, |_| Err(WouldBlock)) else { panic!("would block") };
    assert_eq!(deferred.deliver(|gsi| gsi), Gsi(42));
    map.clear(2);
    assert_eq!(map.lookup(0), None);
}

proptest! {
    /// Random blocks against a map: every trigger opened is in the table or retired, exactly once.
    #[test]
    fn blocks_agree_with_a_map(blocks: Vec<(u8, Vec<i8>)>, resizable: bool, wanted in 1..8u32) {
        let mut vectors = Vectors::<u32, 8>::new();
        let _ = vectors.enable(wanted, 8, resizable).unwrap();
        let mut model = BTreeMap::new();
        let (mut opened, mut retired) = (0, Vec::new());
        for (start, fds) in blocks {
            let start = u32::from(start % 10);
            let fds: Vec<i32> = fds.iter().take(6).map(|&fd| i32::from(fd).max(-1)).collect();
            let mut expected = Ok(());
            let mut next = opened;
            for (vector, &fd) in (start..).zip(&fds) {
                model.remove(&vector);
                let reachable = vector < if resizable { 8 } else { wanted };
                let errno = if fd >= 0 && !reachable { Errno::EINVAL } else { Errno::EBADF };
                if fd >= 0 && (!reachable || fd % 5 == 3) {
                    model.retain(|v, _| !(start..=vector).contains(v));
                    expected = Err(VectorsError::Block { vector, errno });
                    break;
                }
                if fd >= 0 {
                    next += 1;
                    model.insert(vector, next);
                }
            }
            let open = |_, fd| if fd % 5 == 3 { Err(Errno::EBADF) } else { opened += 1; Ok(opened) };
            prop_assert_eq!(vectors.bind(start, &fds, open, |_, t| retired.push(t)), expected);
            for vector in 0..10 {
                prop_assert_eq!(vectors.trigger(vector), model.get(&vector));
            }
        }
        vectors.disable(|_, t| retired.push(t)).unwrap();
        retired.sort_unstable();
        prop_assert_eq!(retired, (1..=opened).collect::<Vec<_>>());
    }
}
