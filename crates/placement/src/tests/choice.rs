//! What is chosen: against brute force over prices, against single devices, and in good time.

use std::time::{Duration, SystemTime};

use super::*;
use crate::choose::all_on;
use crate::legal::Classes;
use crate::{Decision, price, solve};

/// The price of classes at these places.
fn priced(problem: &Problem, classes: &Classes, places: &[usize]) -> u64 {
    let mut device = Vec::new();
    classes.spread(places, &mut device);
    price(problem, &device).unwrap().total
}

fn places_of(classes: &Classes, device: &[usize]) -> Vec<usize> {
    (0..classes.len()).map(|class| device[classes.members(class)[0]]).collect()
}

/// The lowest price of all legal places.
fn brute_force(problem: &Problem, classes: &Classes) -> u64 {
    let mut places: Vec<usize> =
        (0..classes.len()).map(|class| classes.devices(class).next().unwrap()).collect();
    let mut best = u64::MAX;
    loop {
        best = best.min(priced(problem, classes, &places));
        let mut class = 0;
        loop {
            if class == places.len() {
                return best;
            }
            match classes.devices(class).find(|&d| d > places[class]) {
                Some(next) => {
                    places[class] = next;
                    break;
                }
                None => {
                    places[class] = classes.devices(class).next().unwrap();
                    class += 1;
                }
            }
        }
    }
}

/// Checks what is promised of each solution, and gives its price and the best there is.
fn checked(problem: &Problem) -> (u64, u64) {
    let classes = Classes::new(problem).unwrap();
    let solution = solve(problem).unwrap();
    let total = solution.prediction.total;
    assert_eq!(solution.prediction, price(problem, &solution.device).unwrap());
    for d in 0..problem.devices.len() {
        assert!(total <= priced(problem, &classes, &all_on(problem, &classes, d)), "device {d}");
    }
    let places = places_of(&classes, &solution.device);
    for class in 0..classes.len() {
        assert!(classes.legal(class, places[class]));
        let mut next: Option<i64> = None;
        for d in classes.devices(class).filter(|&d| d != places[class]) {
            let mut moved = places.clone();
            moved[class] = d;
            let more = priced(problem, &classes, &moved) as i64 - total as i64;
            assert!(more >= 0, "moving class {class} to {d} helps");
            next = Some(next.map_or(more, |next| next.min(more)));
        }
        let reason = &solution.reasons[classes.members(class)[0]];
        assert_eq!(reason.next_best.map(|next| next.more), next);
        assert_eq!(reason.device, places[class]);
    }
    (total, brute_force(problem, &classes))
}

#[test]
fn no_single_device_and_no_single_move_is_better() {
    let mut rng = Rng(4);
    let (mut n_best, mut sum, mut best_sum) = (0, 0, 0);
    for _ in 0..2000 {
        let problem = random_problem(&mut rng, 1, 12);
        let (total, best) = checked(&problem);
        n_best += u64::from(total == best);
        sum += total;
        best_sum += best;
    }
    println!("{n_best} of 2000 are the cheapest of all; {sum} ps against {best_sum} ps");
    assert!(n_best >= 1900, "{n_best} of 2000 are the cheapest of all");
    assert!((sum - best_sum) * 200 < best_sum, "more than 0.5 % above the best");
}

#[test]
fn three_devices_come_close_to_the_best() {
    let mut rng = Rng(5);
    let (mut sum, mut best_sum) = (0, 0);
    for _ in 0..300 {
        let problem = random_problem(&mut rng, 2, 7);
        let (total, best) = checked(&problem);
        sum += total;
        best_sum += best;
    }
    println!("{sum} ps against {best_sum} ps");
    assert!((sum - best_sum) * 50 < best_sum, "more than 2 % above the best");
}

#[test]
fn small_work_stays_and_large_work_moves() {
    let mut problem = machine(1);
    problem.items = vec![item("small", 50)];
    problem.tensors = vec![fetched(edge("out", 100, Producer::Item(0), &[]))];
    assert_eq!(solve(&problem).unwrap().device, [0]);
    problem.items = vec![item("large", 500)];
    assert_eq!(solve(&problem).unwrap().device, [1]);
}

#[test]
fn a_small_item_goes_where_its_neighbours_are() {
    let mut problem = machine(1);
    problem.items = vec![item("matmul", 900), item("scalar", 0), item("matmul_1", 900)];
    problem.tensors = vec![
        edge("matmul:0", 50_000, Producer::Item(0), &[1]),
        edge("scalar:0", 50_000, Producer::Item(1), &[2]),
    ];
    let solution = solve(&problem).unwrap();
    assert_eq!(solution.device, [1, 1, 1]);
    assert_eq!(solution.reasons[1].decision, Decision::Neighbour { tensor: 0 });
    assert!(matches!(solution.reasons[0].decision, Decision::Cheapest { saved } if saved > 0));
}

/// A layered net of `n` items with weights, as a large model has.
fn large(n: usize, seed: u64) -> Problem {
    let mut rng = Rng(seed);
    let mut problem = machine(1);
    problem.devices[1].arithmetic.set(Family::Other, Curve::rate(200_000_000));
    for i in 0..n {
        let mut item = item(&format!("node_{i}"), rng.below(120));
        if rng.one_in(2) {
            item.work.family = Family::Other;
        }
        if rng.one_in(50) {
            item.refusals = vec![None, Some("unsupported: strings".into())];
        }
        problem.items.push(item);
        let near = |rng: &mut Rng| (i + 1 + rng.below(20) as usize).min(n - 1);
        let mut consumers: Vec<usize> = (0..1 + rng.below(3)).map(|_| near(&mut rng)).collect();
        consumers.retain(|&consumer| consumer > i);
        let name = format!("node_{i}:0");
        problem.tensors.push(edge(&name, rng.below(40_000), Producer::Item(i), &consumers));
    }
    // One scalar that everything reads.
    problem.tensors.push(edge("rate", 4, Producer::Host, &(0..n).collect::<Vec<_>>()));
    problem
}

#[test]
fn ten_thousand_items_are_placed_in_good_time() {
    let chain = |n: usize| {
        let mut rng = Rng(7);
        let mut problem = machine(1);
        problem.devices[1].arithmetic.set(Family::Elementwise, Curve::rate(1_100_000_000));
        problem.items = (0..n).map(|i| item(&format!("i{i}"), rng.below(100))).collect();
        let links = (1..n).map(|i| edge("t", rng.below(20_000), Producer::Item(i - 1), &[i]));
        problem.tensors = links.collect();
        problem
    };
    // About 35 ms in release by itself; tests run side by side with others.
    let limit = Duration::from_millis(if cfg!(debug_assertions) { 500 } else { 150 });
    for (name, problem) in [("layers", large(10_000, 6)), ("chain", chain(10_000))] {
        let time = || {
            let start = busy();
            solve(&problem).unwrap();
            busy() - start
        };
        let best = (0..3).map(|_| time()).min().unwrap();
        println!("{name}: {best:?}");
        assert!(best < limit, "{name} took {best:?}");
    }
}

/// The time that this thread has computed, where Linux tells; elsewhere the time of day.
fn busy() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    match stat.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok()) {
        Some(nanoseconds) => Duration::from_nanos(nanoseconds),
        None => SystemTime::UNIX_EPOCH.elapsed().unwrap(),
    }
}

#[test]
fn the_same_problem_has_the_same_solution() {
    let problem = large(500, 8);
    let text = solve(&problem).unwrap().to_string();
    assert_eq!(solve(&problem).unwrap().to_string(), text);
}

#[test]
fn an_empty_problem_has_an_empty_solution() {
    let solution = solve(&machine(1)).unwrap();
    assert!(solution.device.is_empty() && solution.explain_item(0).is_none());
    assert_eq!(solution.prediction.total, 0);
}
