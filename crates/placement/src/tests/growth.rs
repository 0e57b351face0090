//! Graphs that grow: what is new is placed beside what stands.

use std::time::{Duration, Instant};

use convoke_graph_core::ErrorKind;

use super::choice::large;
use super::*;
use crate::{Decision, Growth, Objective, Problem, Solution, Standing, price, solve};

/// The first `n` items of a problem, with what flows between them.
fn first(problem: &Problem, n: usize) -> Problem {
    let mut old = problem.clone();
    old.items.truncate(n);
    old.tensors.retain(|tensor| !matches!(tensor.producer, Producer::Item(item) if item >= n));
    old.tensors.iter_mut().for_each(|tensor| tensor.consumers.retain(|&item| item < n));
    for pairs in [&mut old.colocations, &mut old.resource_edges] {
        pairs.retain(|&(a, b)| a < n && b < n);
    }
    for constant in &mut old.constants {
        constant.consumers.retain(|&item| item < n);
    }
    old.fallible.retain(|&item| item < n);
    old
}

/// A problem of which the first items stand.
struct Growing {
    whole: Problem,
    standing: Standing,
    /// The number of each tensor that stands.
    numbers: Vec<Option<usize>>,
}

impl Growing {
    /// The first `n` items are where `solution` has them.
    fn from(whole: Problem, n: usize, device: &[usize]) -> Self {
        let old = first(&whole, n);
        let solution = Solution::grown(old, device.to_vec(), Default::default(), Vec::new());
        let standing = Standing::new(&solution.unwrap()).unwrap();
        let mut there = 0..;
        let number = |tensor: &TensorEdge| match tensor.producer {
            Producer::Item(item) if item >= n => None,
            _ => there.next(),
        };
        let numbers = whole.tensors.iter().map(number).collect();
        Self { whole, standing, numbers }
    }

    /// The first `n` items are where they are best.
    fn new(whole: Problem, n: usize) -> Self {
        let device = solve(first(&whole, n)).unwrap().device;
        Self::from(whole, n, &device)
    }

    /// What comes with the items up to `n`.
    fn growth(&self, n: usize) -> Growth {
        let (before, whole) = (self.standing.len(), &self.whole);
        let is_new = |item: &usize| (before..n).contains(item);
        let ties = |pairs: &[(usize, usize)]| {
            let new = |&&(a, b): &&(usize, usize)| a.max(b) < n && a.max(b) >= before;
            pairs.iter().filter(new).copied().collect()
        };
        let mut growth = Growth {
            items: whole.items[before..n].to_vec(),
            fallible: whole.fallible.iter().copied().filter(is_new).collect(),
            resource_edges: ties(&whole.resource_edges),
            colocations: ties(&whole.colocations),
            ..Growth::default()
        };
        for (tensor, number) in whole.tensors.iter().zip(&self.numbers) {
            let consumers = tensor.consumers.iter().copied();
            if let &Some(number) = number {
                growth.reads.extend(consumers.filter(is_new).map(|item| (number, item)));
            } else if tensor.producer.item().is_some_and(|item| is_new(&item)) {
                let consumers = consumers.filter(|&item| item < n).collect();
                growth.tensors.push(TensorEdge { consumers, ..tensor.clone() });
            }
        }
        growth
    }

    /// Grows to `n` items, and says how long that took; `None` if all is better placed again.
    fn grow_in(&mut self, n: usize) -> Option<Duration> {
        let (before, growth) = (self.standing.len(), self.growth(n));
        let mut next = self.standing.n_tensors()..;
        let start = Instant::now();
        let grown = self.standing.grow(&growth).unwrap().is_some();
        let time = start.elapsed();
        for (tensor, number) in self.whole.tensors.iter().zip(&mut self.numbers) {
            let is_new = |item| (before..n).contains(&item);
            if grown && tensor.producer.item().is_some_and(is_new) {
                *number = next.next();
            }
        }
        grown.then_some(time)
    }

    fn grow(&mut self, n: usize) -> bool {
        self.grow_in(n).is_some()
    }

    fn device(&self) -> Vec<usize> {
        (0..self.standing.len()).map(|item| self.standing.device(item).unwrap()).collect()
    }

    /// What all that stands takes.
    fn total(&self) -> u64 {
        let device = self.device();
        price(&first(&self.whole, device.len()), &device).unwrap().total
    }
}

/// Ten new items of ten thousand and of a hundred thousand take the same time; ten times as many take at most so much more.
#[test]
fn ten_more_items_cost_what_ten_items_cost() {
    let a_step_of = |n: usize, by: usize| -> Duration {
        let mut growing = Growing::new(large(n + 10 * by, 6), n);
        let steps = (n + by..=n + 10 * by).step_by(by);
        steps.map(|now| growing.grow_in(now).unwrap()).min().unwrap()
    };
    let (small, large) = (a_step_of(10_000, 10), a_step_of(100_000, 10));
    let more = a_step_of(100_000, 100);
    println!(
        "ten more of ten thousand items: {small:?}; of a hundred thousand: {large:?}; a hundred more of those: {more:?}"
    );
    assert!(large < small * 2 + Duration::from_millis(1), "{large:?}, of a tenth {small:?}");
    assert!(more < large * 40, "{more:?} for a hundred, {large:?} for ten");
}

#[test]
fn what_stands_stays_and_what_is_new_is_well_placed_beside_it() {
    let n = 20_000;
    let mut growing = Growing::new(large(n + 10, 6), n);
    let old = growing.device();
    assert!(growing.grow(n + 10));
    let device = growing.device();
    // Items pass tensors to the next twenty.
    assert_eq!(device[..n - 30], old[..n - 30]);
    for all_on in [0, 1] {
        let new = &growing.whole.items[n..];
        let beside = new.iter().map(|item| if item.refusals.is_empty() { all_on } else { 0 });
        let beside: Vec<usize> = old.iter().copied().chain(beside).collect();
        assert!(growing.total() <= price(&growing.whole, &beside).unwrap().total, "{all_on}");
    }
}

#[test]
fn what_was_placed_grows_step_by_step_to_nearly_the_best() {
    let mut rng = Rng(11);
    for seed in 0..6 {
        let n = 400 + rng.below(200) as usize;
        let mut growing = Growing::new(large(n, seed), n - 40);
        for now in (n - 30..=n).step_by(10) {
            assert!(growing.grow(now), "{seed}: {now} of {n}");
        }
        let (grown, best) = (growing.total(), solve(&growing.whole).unwrap().prediction().total);
        println!("{seed}: {grown} of {best}");
        assert!(grown <= best + best / 20, "{seed}: {grown} is more than 5 % above {best}");
    }
}

/// A random change of what stands, among it what can't be had.
fn random_growth(rng: &mut Rng, standing: &Standing, n_devices: usize) -> Growth {
    let (n_items, n_tensors) = (standing.len(), standing.n_tensors());
    let mut growth = Growth::default();
    let there: Vec<usize> = (0..n_items).filter(|&i| standing.device(i).is_some()).collect();
    let any = |rng: &mut Rng| there[rng.below(there.len() as u64) as usize];
    if rng.one_in(2) {
        growth.gone.push(any(rng));
    }
    let gone = growth.gone.clone();
    let passed = |tensor: usize| {
        let used = standing.tensor(tensor)?;
        used.producer.item().is_none_or(|item| !gone.contains(&item)).then_some(used)
    };
    let any_tensor = |rng: &mut Rng| rng.below(n_tensors as u64) as usize;
    for new in n_items..n_items + rng.below(4) as usize {
        let mut item = item("new", rng.below(200));
        item.is_resource = rng.one_in(8);
        if rng.one_in(2) {
            let free = rng.below(n_devices as u64) as usize;
            let refusal = |d: usize| (d != free).then(|| "no kernel".to_owned());
            item.refusals = (0..n_devices).map(refusal).collect();
        }
        growth.items.push(item);
        let reads = (0..rng.below(3)).map(|_| any_tensor(rng));
        let reads: Vec<usize> = reads.filter(|&tensor| passed(tensor).is_some()).collect();
        growth.reads.extend(reads.into_iter().map(|tensor| (tensor, new)));
        let made = edge("t", rng.below(100_000), Producer::Item(new), &[]);
        growth.tensors.push(TensorEdge { host_reads: rng.one_in(3), ..made });
        let with = any(rng);
        if rng.one_in(2) && !gone.contains(&with) {
            growth.colocations.push((new, with));
        }
        if rng.one_in(3) {
            growth.fallible.push(new);
        }
    }
    let item = any(rng);
    let read = standing.reads(item).find(|&tensor| passed(tensor).is_some());
    growth.unread.extend(read.filter(|_| !gone.contains(&item)).map(|tensor| (tensor, item)));
    let tensor = any_tensor(rng);
    growth.fetched.extend(passed(tensor).map(|used| (tensor, !used.host_reads)));
    growth
}

/// However much comes, goes and is passed on in other ways, what is counted is right, places are legal, and what stays
/// stays; what can't be had changes nothing.
#[test]
fn random_graphs_grow_and_shrink_within_the_rules() {
    let mut rng = Rng(5);
    let (mut n_grown, mut n_moved, mut n_refused) = (0, 0, 0);
    for seed in 0..200 {
        let n_gpus = 1 + (seed % 2) as u32;
        let mut whole = random_problem(&mut rng, n_gpus, 200);
        whole.objective = [Objective::Total, Objective::Makespan][seed % 2];
        if n_gpus == 2 && seed % 3 == 0 {
            whole.join(1, 2);
        }
        let n_devices = whole.devices.len();
        let mut standing = Standing::new(&solve(whole).unwrap()).unwrap();
        standing.check_counts();
        for _ in 0..8 {
            let growth = random_growth(&mut rng, &standing, n_devices);
            let before = standing.clone();
            match standing.grow(&growth) {
                Ok(Some(placed)) => {
                    n_grown += 1;
                    standing.check_counts();
                    n_moved += check_grown(&before, &growth, &standing, &placed);
                }
                refused => {
                    n_refused += usize::from(refused.is_err());
                    assert_eq!(format!("{standing:?}"), format!("{before:?}"), "{seed}");
                }
            }
        }
    }
    println!("{n_grown} grown, {n_moved} moved, {n_refused} refused");
    assert!(n_grown > 400 && n_moved > 20 && n_refused > 4);
}

/// Checks that all is as a growth says, and gives how many items have moved.
fn check_grown(before: &Standing, growth: &Growth, after: &Standing, placed: &[usize]) -> usize {
    let mut n_moved = 0;
    for item in 0..after.len() {
        let (was, is) = (before.device(item), after.device(item));
        let goes = growth.gone.contains(&item);
        assert_eq!(is.is_none(), goes || (was.is_none() && item < before.len()), "{item}");
        let stays = placed.binary_search(&item).is_err();
        assert!(is.is_none() || !stays || is == was, "{item}");
        n_moved += usize::from(was.is_some() && is.is_some() && is != was);
        let refusal = is.and_then(|on| after.refusals(item).get(on)?.as_ref());
        assert_eq!(refusal, None, "{item}");
    }
    for &(a, b) in &growth.colocations {
        assert_eq!(after.device(a), after.device(b), "{a} with {b}");
    }
    for &(tensor, item) in &growth.reads {
        assert!(after.reads(item).any(|read| read == tensor));
    }
    for &(tensor, is_fetched) in &growth.fetched {
        assert_eq!(after.tensor(tensor).unwrap().host_reads, is_fetched);
    }
    for &(tensor, item) in &growth.unread {
        let times = |standing: &Standing| standing.readers(tensor).filter(|&i| i == item).count();
        assert_eq!(times(after) + 1, times(before));
    }
    n_moved
}

/// A chain of work whose items pass 10 kB on, the last of it fetched.
fn chain(n: usize, cpu_us: u64) -> Problem {
    let mut problem = machine(1);
    problem.items = (0..n).map(|i| item(&format!("i{i}"), cpu_us)).collect();
    let links = (1..n).map(|i| edge("t", 10_000, Producer::Item(i - 1), &[i]));
    problem.tensors = links.chain([fetched(edge("y", 4, Producer::Item(n - 1), &[]))]).collect();
    problem
}

#[test]
fn much_that_is_new_is_to_be_placed_with_all_else() {
    // By hand: 500 us are 50 on the GPU, and 40 for a submission are soon won back.
    assert_eq!(solve(chain(32, 500)).unwrap().device, [1; 32]);
    let elsewhere = |n: usize| Growing::from(chain(32, 500), n, &vec![0; n]);
    // Three new ones are an eighth of 29, and with the one before them an eighth of 32.
    let mut growing = elsewhere(29);
    assert!(growing.grow(32));
    assert_eq!(growing.device()[..28], [0; 28]);
    assert!(!elsewhere(28).grow(32));
    assert!(!elsewhere(0).grow(32));
    // Step by step it is no other.
    let mut growing = elsewhere(24);
    assert!(growing.grow(26) && growing.grow(27) && !growing.grow(28));
}

/// New work that is tied to old work takes it along, within what is legal.
#[test]
fn what_is_new_may_move_what_it_is_tied_to() {
    let mut new = chain(64, 500);
    new.colocations = vec![(63, 3)];
    new.items[63].requested = Some(spec("GPU:0"));
    let mut growing = Growing::from(new, 63, &[0; 63]);
    assert!(growing.grow(64));
    let device = growing.device();
    assert_eq!((device[3], device[63]), (1, 1));
    // The two and those next to them are free.
    assert_eq!(device[5..62], [0; 57]);
    let mut new = chain(64, 500);
    new.colocations = vec![(63, 3)];
    new.items[63].refusals = vec![None, Some("no kernel".into())];
    let mut growing = Growing::from(new, 63, &[0; 63]);
    let growth = Growth { settled: vec![3], ..growing.growth(64) };
    assert!(growing.standing.grow(&growth).unwrap().is_some());
    assert_eq!(growing.device()[63], 0);
}

/// What can't be placed, and what is better placed with all else, leaves things as they were.
#[test]
fn what_does_not_grow_changes_nothing() {
    let mut new = chain(64, 500);
    new.colocations = vec![(63, 3)];
    new.items[63].refusals = vec![None, Some("no kernel".into())];
    let mut growing = Growing::from(new, 62, &[1; 62]);
    assert!(growing.grow(63));
    let before = format!("{:?}", growing.standing);
    // It may not leave the GPU, where the new one has no kernel.
    let growth = Growth { settled: vec![3], gone: vec![40], ..growing.growth(64) };
    let error = growing.standing.grow(&growth).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert_eq!(format!("{:?}", growing.standing), before);
    let all = Growth { colocations: (0..40).map(|i| (63, i)).collect(), ..growing.growth(64) };
    assert_eq!(growing.standing.grow(&all).unwrap(), None);
    assert_eq!(format!("{:?}", growing.standing), before);
    let malformed = [
        Growth { gone: vec![63], ..Growth::default() },
        Growth { gone: vec![3, 3], ..Growth::default() },
        Growth { gone: vec![3], settled: vec![64], ..Growth::default() },
        Growth { fallible: vec![3], ..Growth::default() },
        Growth { reads: vec![(1000, 63)], items: vec![item("new", 1)], ..Growth::default() },
        Growth { colocations: vec![(3, 63)], ..Growth::default() },
        Growth { colocations: vec![(3, 5)], ..Growth::default() },
        Growth { resource_edges: vec![(63, 3)], ..Growth::default() },
        Growth { tensors: vec![edge("t", 4, Producer::Item(63), &[])], ..Growth::default() },
        Growth { tensors: vec![edge("t", 4, Producer::Host, &[64])], ..Growth::default() },
        Growth { reads: vec![(0, 64)], ..Growth::default() },
        Growth { gone: vec![0], reads: vec![(0, 3)], ..Growth::default() },
        Growth { gone: vec![3], reads: vec![(0, 3)], ..Growth::default() },
        Growth { gone: vec![3], settled: vec![3], ..Growth::default() },
        Growth { unread: vec![(0, 3)], ..Growth::default() },
        Growth { unread: vec![(0, 1), (0, 1)], ..Growth::default() },
        Growth { fetched: vec![(1000, true)], ..Growth::default() },
        Growth { items: vec![Item { assigned: Some(2), ..item("i", 1) }], ..Growth::default() },
        Growth { items: vec![Item { refusals: vec![None], ..item("i", 1) }], ..Growth::default() },
    ];
    for growth in malformed {
        let error = growing.standing.grow(&growth).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{growth:?}: {error}");
        assert_eq!(format!("{:?}", growing.standing), before);
    }
}

/// A kernel becomes another where more is done behind it: the new one takes its place, between what stands.
#[test]
fn what_takes_the_place_of_what_has_gone_is_beside_its_neighbours() {
    for on in [0, 1] {
        let mut growing = Growing::from(chain(64, 20), 64, &[on; 64]);
        // By hand: with its neighbours 100 us on the host, and on the GPU 13, 40 for a submission and 50 for crossings.
        let growth = Growth {
            items: vec![item("more", 60)],
            tensors: vec![edge("t", 10_000, Producer::Item(64), &[33])],
            reads: vec![(31, 64)],
            gone: vec![32],
            ..Growth::default()
        };
        assert_eq!(growing.standing.grow(&growth).unwrap(), Some(vec![31, 33, 64]));
        let standing = &growing.standing;
        assert_eq!((standing.device(32), standing.device(64)), (None, Some(on)));
        assert_eq!(standing.device(65), None);
        assert!((0..32).chain(33..64).all(|item| standing.device(item) == Some(on)));
    }
}

/// New work pays for a submission where no segment of its device can go on with it, and else for none. By hand: it takes
/// 60 us on the host, 7 on the GPU, 15 for each crossing, and 40 for a submission.
#[test]
fn what_is_new_goes_on_with_the_segments_that_are_there() {
    // The GPU makes something that the host works on, and perhaps goes on with that in the end.
    let mut whole = chain(64, 1);
    whole.tensors.iter_mut().for_each(|tensor| tensor.bytes = 4);
    let host = [0; 60];
    let ends = [&[1][..], &host, &[0; 3]].concat();
    let goes_on = [&[1][..], &host, &[1; 3]].concat();
    for (device, reads, on) in [(&ends, 0, 1), (&ends, 1, 0), (&goes_on, 1, 1)] {
        let mut standing = Growing::from(whole.clone(), 64, device).standing;
        let growth = Growth {
            items: vec![item("new", 60)],
            tensors: vec![fetched(edge("y", 4, Producer::Item(64), &[]))],
            reads: vec![(reads, 64)],
            ..Growth::default()
        };
        // What it reads is made where it was.
        let growth = Growth { settled: vec![reads], ..growth };
        assert_eq!(standing.grow(&growth).unwrap(), Some(vec![reads, 64]));
        assert_eq!(standing.device(64), Some(on), "reads {reads}, {device:?}");
    }
    // In the middle of a segment, the host would cost two crossings and cut it in two: 71 us and what it takes there.
    let gpu_only = |item: &mut Item| item.refusals = vec![Some("no kernel".into()), None];
    for (gpu_us, on) in [(60, 1), (90, 0)] {
        let mut whole = chain(64, 1);
        whole.tensors.iter_mut().for_each(|tensor| tensor.bytes = 4);
        whole.items.iter_mut().for_each(gpu_only);
        let mut standing = Growing::from(whole, 64, &[1; 64]).standing;
        let new = Item { known: vec![Some(US), Some(gpu_us * US)], ..item("new", 1) };
        let growth = Growth {
            items: vec![new],
            tensors: vec![edge("t", 4, Producer::Item(64), &[33])],
            reads: vec![(31, 64)],
            gone: vec![32],
            ..Growth::default()
        };
        assert_eq!(standing.grow(&growth).unwrap(), Some(vec![31, 33, 64]));
        assert_eq!(standing.device(64), Some(on), "{gpu_us} us");
    }
}

/// What was somewhere only for what has gone may go elsewhere.
#[test]
fn what_has_lost_a_reader_or_a_tie_is_placed_anew() {
    let mut whole = chain(64, 20);
    // By hand: 100 us for 100 kB on each way, and 200 us are 20 on the GPU: only with its reader does it stay there.
    whole.items[0] = item("costly", 200);
    whole.items[1].refusals = vec![Some("no kernel".into()), None];
    whole.tensors[0] = edge("t", 100_000, Producer::Item(0), &[1]);
    whole.tensors[1] = edge("u", 4, Producer::Item(1), &[]);
    whole.tensors.push(edge("v", 4_000_000, Producer::Host, &[0]));
    let mut standing = Growing::from(whole, 64, &[&[1, 1][..], &[0; 62]].concat()).standing;
    let growth = Growth { gone: vec![1], ..Growth::default() };
    assert_eq!(standing.grow(&growth).unwrap(), Some(vec![0]));
    assert_eq!((standing.device(0), standing.device(1)), (Some(0), None));
    let mut whole = chain(64, 20);
    whole.colocations = vec![(40, 63)];
    whole.items[63].requested = Some(spec("GPU:0"));
    let mut device = vec![0; 64];
    (device[40], device[63]) = (1, 1);
    let mut standing = Growing::from(whole, 64, &device).standing;
    assert_eq!(standing.ties(false).collect::<Vec<_>>(), [(40, 63)]);
    let growth = Growth { gone: vec![63], ..Growth::default() };
    assert_eq!(standing.grow(&growth).unwrap(), Some(vec![40, 62]));
    assert_eq!((standing.device(40), standing.ties(false).count()), (Some(0), 0));
}

/// What was predicted and decided can be told of a program that has grown.
#[test]
fn a_grown_solution_tells_what_stayed() {
    let n = 400;
    let mut growing = Growing::new(large(n + 10, 6), n);
    assert!(growing.grow(n + 10));
    let (device, whole) = (growing.device(), &growing.whole);
    let kept = (0..n + 10).map(|item| item < n - 30).collect();
    let grown = Solution::grown(whole.clone(), device.clone(), Default::default(), kept).unwrap();
    let n_kept = grown.reasons().iter().filter(|reason| reason.decision == Decision::Kept).count();
    assert!(n_kept > n / 2, "{n_kept}");
    assert_eq!(grown.why(0), "kept: it was placed here before");
    assert_eq!(grown.prediction().transfers, price(whole, &device).unwrap().transfers);
    let error = Solution::grown(whole.clone(), vec![2; n + 10], Default::default(), Vec::new());
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Internal);
}
