//! Shuffling: seeds, that nothing is lost, how far ahead.

use std::cell::Cell;

use proptest::prelude::*;

use crate::InputExt;

fn order(len: usize, n: usize, seed: u64) -> Vec<usize> {
    (0..len).shuffled(n, seed).collect()
}

proptest! {
    #[test]
    fn every_item_once_and_none_early(len in 0usize..200, n in 0usize..250, seed: u64) {
        let shuffled = order(len, n, seed);
        for (place, &item) in shuffled.iter().enumerate() {
            prop_assert!(item < place + n.max(1), "item {item} at {place}");
        }
        let mut sorted = shuffled.clone();
        sorted.sort_unstable();
        prop_assert!(sorted.into_iter().eq(0..len));
        prop_assert_eq!(shuffled, order(len, n, seed));
    }
}

#[test]
fn the_order_is_by_the_seed() {
    assert_ne!(order(100, 10, 1), order(100, 10, 2));
    assert_ne!(order(100, 10, 1), order(100, 10, 1 << 40));
    assert_ne!(order(100, 10, 1), order(100, 11, 1));
    // Written down: an order is the same in every version and on every machine.
    assert_eq!(order(12, 5, 7), [3, 4, 0, 1, 8, 7, 2, 10, 5, 6, 9, 11]);
}

#[test]
fn a_buffer_of_one_keeps_the_order() {
    for n in [0, 1] {
        assert!(order(50, n, 3).into_iter().eq(0..50));
    }
}

#[test]
fn no_more_than_the_buffer_is_ahead() {
    let pulled = Cell::new(0);
    let mut shuffled = (0..50).inspect(|_| pulled.set(pulled.get() + 1)).shuffled(8, 5);
    assert_eq!(pulled.get(), 0, "nothing is pulled before it is needed");
    for given in 1..=50 {
        assert_eq!(shuffled.size_hint(), (51 - given, Some(51 - given)));
        shuffled.next();
        assert_eq!(pulled.get(), (given + 7).min(50));
    }
    assert_eq!((shuffled.next(), shuffled.next()), (None, None));
}

/// Each of the 24 orders of 4 items comes about as often as the others.
#[test]
fn orders_are_uniform() {
    let mut counts = std::collections::HashMap::new();
    for seed in 0..24_000 {
        *counts.entry(order(4, 4, seed)).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 24);
    // Five standard deviations.
    assert!(counts.values().all(|count| (845..=1155).contains(count)), "{counts:?}");
}
