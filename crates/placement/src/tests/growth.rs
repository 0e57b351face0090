//! Problems that grow: what is new is placed beside what was placed before.

use std::sync::Arc;
use std::time::Duration;

use convoke_graph_core::ErrorKind;

use super::choice::{busy, large};
use super::*;
use crate::{Decision, Problem, grow, price, solve};

/// The first `n` items of a problem, with what flows between them.
fn first(problem: &Problem, n: usize) -> Problem {
    let mut old = problem.clone();
    old.items.truncate(n);
    old.tensors.retain(|tensor| !matches!(tensor.producer, Producer::Item(item) if item >= n));
    old.tensors.iter_mut().for_each(|tensor| tensor.consumers.retain(|&item| item < n));
    old.colocations.retain(|&(a, b)| a < n && b < n);
    old
}

/// Places as they were, and none for what is new.
fn before(old: &[usize], new: &Problem) -> Vec<Option<usize>> {
    (0..new.items.len()).map(|item| old.get(item).copied()).collect()
}

fn total(problem: &Problem, device: &[usize]) -> u64 {
    price(problem, device).unwrap().total
}

/// What the ten new items and those beside them are is chosen; the others are only counted, in time that is small beside
/// that of placing them.
#[test]
fn ten_more_of_a_hundred_thousand_items_are_placed_by_themselves() {
    let n = 100_000;
    let new = Arc::new(large(n + 10, 6));
    let old = solve(first(&new, n)).unwrap().device;
    let before = before(&old, &new);
    let time = |place: &dyn Fn()| -> Duration {
        let times = (0..2).map(|_| {
            let start = busy();
            place();
            busy() - start
        });
        times.min().unwrap()
    };
    let grown = grow(new.clone(), &before).unwrap();
    let n_placed = new.items.len() - grown.n_kept;
    let (all, ten) = (
        time(&|| _ = solve(new.clone()).unwrap()),
        time(&|| _ = grow(new.clone(), &before).unwrap()),
    );
    println!(
        "a hundred thousand items: {all:?}; ten more: {n_placed} placed, {ten:?} with the price of all"
    );
    // Items pass tensors to the next twenty: so many may have some of the ten beside them, and one of them has the rest.
    assert!((10..=30).contains(&n_placed), "{n_placed}");
    assert!(ten < all / 2, "{ten:?} of {all:?}");
    let kept = grown.reasons().iter().filter(|reason| reason.decision == Decision::Kept).count();
    assert!(kept > n / 2, "{kept}");
    assert_eq!(grown.why(0), "kept: it was placed here before");
    assert_eq!(grown.device[..n - 30], old[..n - 30]);
    assert_eq!(grown.prediction, price(&new, &grown.device).unwrap());
    assert_eq!(grow(new.clone(), &before).unwrap().device, grown.device);
    for all_on in [0, 1] {
        let mut beside = old.clone();
        beside
            .extend((n..n + 10).map(|i| if new.items[i].refusals.is_empty() { all_on } else { 0 }));
        assert!(grown.prediction.total <= total(&new, &beside), "{all_on}");
    }
}

#[test]
fn what_was_placed_grows_step_by_step_to_nearly_the_best() {
    let mut rng = Rng(11);
    for seed in 0..6 {
        let n = 400 + rng.below(200) as usize;
        let new = large(n, seed);
        let mut device = solve(first(&new, n - 40)).unwrap().device;
        for now in (n - 30..=n).step_by(10) {
            let part = first(&new, now);
            let grown = grow(&part, &before(&device, &part)).unwrap();
            assert!(grown.n_kept >= now - 40, "{} of {now}", grown.n_kept);
            device = grown.device;
        }
        let (grown, best) = (total(&new, &device), solve(&new).unwrap().prediction.total);
        assert!(grown <= best + best / 20, "{seed}: {grown} is more than 5 % above {best}");
    }
}

/// A chain of work whose items pass 10 kB on, the last of it fetched.
fn chain(n: usize) -> Problem {
    let mut problem = machine(1);
    problem.items = (0..n).map(|i| item(&format!("i{i}"), 500)).collect();
    let links = (1..n).map(|i| edge("t", 10_000, Producer::Item(i - 1), &[i]));
    problem.tensors = links.chain([fetched(edge("y", 4, Producer::Item(n - 1), &[]))]).collect();
    problem
}

#[test]
fn much_that_is_new_is_placed_with_all_else() {
    let new = chain(32);
    // By hand: 500 us are 50 on the GPU, and 40 for a submission are soon won back.
    assert_eq!(solve(&new).unwrap().device, [1; 32]);
    let elsewhere = |n: usize| grow(&new, &before(&vec![0; n], &new)).unwrap();
    // Three new ones and the one before them are an eighth of 32.
    let grown = elsewhere(29);
    assert_eq!((grown.n_kept, &grown.device[..28]), (28, &[0; 28][..]));
    let placed = elsewhere(28);
    assert_eq!((placed.n_kept, placed.device), (0, vec![1; 32]));
    assert_eq!(grow(&new, &[]).unwrap().device, [1; 32]);
}

/// New work that is tied to old work takes it along, within what is legal.
#[test]
fn what_is_new_may_move_what_it_is_tied_to() {
    let mut new = chain(64);
    new.colocations = vec![(63, 3)];
    new.items[63].requested = Some(spec("GPU:0"));
    let grown = grow(&new, &before(&[0; 63], &new)).unwrap();
    assert_eq!((grown.device[3], grown.device[63]), (1, 1));
    // The two and those next to them are free.
    assert_eq!((grown.n_kept, &grown.device[5..62]), (59, &[0; 57][..]), "{grown}");
    // A variable that has moved since is where it is, and what reads it is placed anew.
    let mut new = chain(32);
    new.items[0] = Item { assigned: Some(1), ..variable("v") };
    let grown = grow(&new, &before(&[0; 32], &new)).unwrap();
    assert_eq!((grown.device[0], grown.n_kept), (1, 30));
    new.colocations = vec![(31, 0)];
    new.items[31].refusals = vec![None, Some("no kernel".into())];
    let error = grow(&new, &before(&[0; 31], &new)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
}

/// Where old and new do not fit together, all of it is placed again.
#[test]
fn what_stays_makes_room_for_what_is_new() {
    let mut new = chain(32);
    for item in &mut new.items[30..] {
        item.refusals = vec![Some("no kernel".into()), None];
    }
    let old = [&[0; 20][..], &[1; 10]].concat();
    let weights = edge("weights", 1 << 20, Producer::Host, &[25, 26]);
    let more = edge("more", 1 << 20, Producer::Host, &[30, 31]);
    new.tensors.extend([weights, more]);
    assert!(grow(&new, &before(&old, &new)).unwrap().n_kept > 0);
    // Each takes 1 MiB, and 2 on its way; both take 2, and 4.
    new.devices[1].memory_bytes = 4 << 20;
    let grown = grow(&new, &before(&old, &new)).unwrap();
    assert_eq!((grown.n_kept, grown.device[30], grown.device[31]), (0, 1, 1));
    assert!(grown.prediction.devices[1].peak_bytes <= 4 << 20, "{grown}");
}
