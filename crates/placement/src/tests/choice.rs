//! What is chosen: against brute force over prices, against single devices, and in good time.

use std::time::{Duration, SystemTime};

use super::best::{least, plain_price};
use super::*;
use crate::choose::all_on;
use crate::legal::Classes;
use crate::price::{Pricer, Score};
use crate::{Constant, Decision, Objective, price, solve};

/// The price of classes at these places.
fn priced(problem: &Problem, classes: &Classes, places: &[usize]) -> u64 {
    let mut device = Vec::new();
    classes.spread(places, &mut device);
    price(problem, &device).unwrap().total
}

fn places_of(classes: &Classes, device: &[usize]) -> Vec<usize> {
    (0..classes.len()).map(|class| device[classes.members(class)[0]]).collect()
}

/// The best score of all legal places.
pub(super) fn brute_force(problem: &Problem, classes: &Classes) -> Score {
    let order = problem.check().unwrap();
    let mut pricer = Pricer::new(problem, &order);
    let mut places: Vec<usize> =
        (0..classes.len()).map(|class| classes.devices(class).next().unwrap()).collect();
    let mut device = Vec::new();
    let mut best = Score::WORST;
    loop {
        classes.spread(&places, &mut device);
        best = best.min(pricer.score(&device));
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

/// Checks what is promised of each solution, and gives its price.
fn checked(problem: &Problem, classes: &Classes) -> u64 {
    let solution = solve(problem).unwrap();
    let total = solution.prediction().total;
    assert_eq!(*solution.prediction(), price(problem, &solution.device).unwrap());
    assert_eq!(total, plain_price(problem, &solution.device), "the price by itself");
    for d in 0..problem.devices.len() {
        assert!(total <= priced(problem, classes, &all_on(problem, classes, d)), "device {d}");
    }
    let places = places_of(classes, &solution.device);
    for class in 0..classes.len() {
        assert!(classes.legal(class, places[class]));
        let mut next: Option<i64> = None;
        for d in classes.devices(class).filter(|&d| d != places[class]) {
            let mut moved = places.clone();
            moved[class] = d;
            let more = priced(problem, classes, &moved) as i64 - total as i64;
            assert!(more >= 0, "moving class {class} to {d} helps");
            next = Some(next.map_or(more, |next| next.min(more)));
        }
        let reason = &solution.reasons()[classes.members(class)[0]];
        assert_eq!(reason.next_best.map(|next| next.more), next);
        assert_eq!(reason.device, places[class]);
    }
    total
}

#[test]
fn two_devices_have_the_best_of_all_places() {
    let mut rng = Rng(4);
    for case in 0..2000 {
        let problem = random_problem(&mut rng, 1, 14);
        let classes = Classes::new(&problem).unwrap();
        let (total, best) = (checked(&problem, &classes), brute_force(&problem, &classes).time);
        assert_eq!(total, best, "case {case}");
        assert_eq!(solve(&problem).unwrap().bound, best, "case {case}: not proven");
        assert_eq!(least(&problem, &classes), best, "case {case}: by branch and bound");
    }
}

/// The best is found by branch and bound, and where there are few classes by trying all their places too.
#[test]
fn three_devices_come_close_to_the_best() {
    let mut rng = Rng(5);
    let (mut sum, mut best_sum, mut ratios, mut worst) = (0, 0, 0.0, 1.0f64);
    let (mut n_best, mut n_tried, mut sizes) = (0, 0, [0; 15]);
    for case in 0..2000 {
        let problem = random_problem(&mut rng, 2, 14);
        let classes = Classes::new(&problem).unwrap();
        let (total, best) = (checked(&problem, &classes), least(&problem, &classes));
        assert!(best <= total, "case {case}: {total} is below {best}");
        if classes.len() <= 8 {
            assert_eq!(brute_force(&problem, &classes).time, best, "case {case}");
            n_tried += 1;
        }
        let ratio = if best == 0 { 1.0 } else { total as f64 / best as f64 };
        ratios += ratio;
        worst = worst.max(ratio);
        (sum, best_sum) = (sum + total, best_sum + best);
        n_best += usize::from(total == best);
        sizes[problem.items.len()] += 1;
    }
    println!("graphs by their groups, from one to 14: {:?}; {n_tried} tried in full", &sizes[1..]);
    println!("{n_best} of 2000 have the best; {sum} ps against {best_sum} ps");
    println!("times the best: {:.5} on average, {worst:.4} at worst", ratios / 2000.0);
    assert!((sum - best_sum) * 50 < best_sum, "more than 2 % above the best");
    assert!(ratios < 2040.0, "more than 2 % above the best on average");
    assert!(sizes[9..].iter().sum::<usize>() > 600, "many are large");
}

/// Two GPUs that are parts of one, beside a third: copies are cheaper than ways through the host, or dearer.
#[test]
fn parts_of_one_gpu_come_close_to_the_best() {
    let mut rng = Rng(12);
    let (mut sum, mut best_sum, mut n_copies) = (0, 0, 0);
    for case in 0..400 {
        let mut problem = random_problem(&mut rng, 3, 8);
        problem.join(1, 2);
        let latency = rng.below(30) * US;
        (problem.links[4 + 2].latency, problem.links[8 + 1].latency) = (latency, latency);
        let classes = Classes::new(&problem).unwrap();
        let (total, best) = (checked(&problem, &classes), least(&problem, &classes));
        assert!(best <= total, "case {case}: {total} is below {best}");
        if classes.len() <= 5 {
            assert_eq!(brute_force(&problem, &classes).time, best, "case {case}");
        }
        let device: Vec<usize> = problem.items.iter().map(|_| rng.below(4) as usize).collect();
        let priced = price(&problem, &device).unwrap();
        assert_eq!(priced.total, plain_price(&problem, &device), "case {case}: {device:?}");
        n_copies += priced.transfers.iter().filter(|transfer| transfer.is_copy()).count();
        (sum, best_sum) = (sum + total, best_sum + best);
    }
    assert!((sum - best_sum) * 25 < best_sum, "{sum} ps against {best_sum} ps");
    assert!(n_copies > 100, "{n_copies} copies");
}

#[test]
fn memory_comes_before_time() {
    let mut rng = Rng(9);
    let mut n_split = 0;
    for case in 0..500 {
        let mut problem = random_problem(&mut rng, 1, 9);
        let classes = Classes::new(&problem).unwrap();
        let roomy = solve(&problem).unwrap();
        problem.devices[1].memory_bytes = 1 + roomy.prediction().devices[1].peak_bytes / 2;
        let best = brute_force(&problem, &classes);
        let Ok(solution) = solve(&problem) else {
            assert!(best.excess > 0, "case {case}: refused what fits");
            continue;
        };
        assert_eq!(solution.prediction().total, best.total, "case {case}");
        let peak = solution.prediction().devices[1].peak_bytes;
        let excess = peak.saturating_sub(problem.devices[1].memory_bytes);
        assert_eq!(excess, best.excess, "case {case}");
        n_split += usize::from(excess == 0 && solution.device.contains(&1));
    }
    assert!(n_split > 50, "{n_split} problems with a part of the work on the device");
}

#[test]
fn constants_take_memory_and_no_time() {
    let mut problem = machine(1);
    problem.items = vec![item("a", 4000), item("b", 4000)];
    problem.tensors = vec![fetched(edge("a:0", 1000, Producer::Item(0), &[1]))];
    problem.constants = vec![
        Constant { bytes: 600_000_000, consumers: vec![0] },
        Constant { bytes: 600_000_000, consumers: vec![1] },
    ];
    // One fits into a GiB with the tensor, both do not.
    let solution = solve(&problem).unwrap();
    assert_eq!(solution.device.iter().sum::<usize>(), 1);
    assert_eq!(solution.prediction().devices[1].peak_bytes / 1_000_000, 600);
    problem.devices[1].memory_bytes = 1_300_000_000;
    let solution = solve(&problem).unwrap();
    assert_eq!(solution.device, [1, 1]);
    // 40 to submit, twice 1 + 400, and 15 + 1 for what is fetched.
    assert_eq!(solution.prediction().total, (40 + 802 + 16) * US);
}

#[test]
fn a_large_problem_is_cut_to_the_memory_there_is() {
    let mut problem = large(2000, 3);
    problem.devices[1].memory_bytes = u64::MAX;
    let roomy = solve(&problem).unwrap();
    let needed = roomy.prediction().devices[1].peak_bytes;
    problem.devices[1].memory_bytes = needed / 2;
    let tight = solve(&problem).unwrap();
    assert!(tight.prediction().devices[1].peak_bytes <= needed / 2);
    let host = price(&problem, &vec![0; 2000]).unwrap().total;
    assert!(tight.prediction().total < host, "half of the memory is of use");
    assert!(tight.prediction().total >= roomy.prediction().total);
}

#[test]
fn the_makespan_comes_close_to_the_best() {
    let mut rng = Rng(10);
    let (mut sum, mut best_sum, mut single_sum) = (0, 0, 0);
    for _ in 0..1000 {
        let mut problem = random_problem(&mut rng, 1, 10);
        problem.objective = Objective::Makespan;
        let classes = Classes::new(&problem).unwrap();
        let solution = solve(&problem).unwrap();
        let single = |d: usize| {
            let mut device = Vec::new();
            classes.spread(&all_on(&problem, &classes, d), &mut device);
            price(&problem, &device).unwrap().makespan
        };
        assert!(solution.prediction().makespan <= single(0).min(single(1)));
        sum += solution.prediction().makespan;
        best_sum += brute_force(&problem, &classes).time;
        single_sum += single(0).min(single(1));
    }
    println!("{sum} ps against {best_sum} ps; the best single devices take {single_sum} ps");
    assert!((sum - best_sum) * 50 < best_sum, "more than 2 % above the best");
}

#[test]
fn work_that_can_overlap_does() {
    let mut problem = machine(1);
    problem.items = vec![item("left", 4000), item("right", 300), item("last", 10)];
    problem.items[2].refusals = vec![None, Some("unsupported: strings".into())];
    problem.tensors = vec![
        edge("left:0", 1000, Producer::Item(0), &[2]),
        edge("right:0", 1000, Producer::Item(1), &[2]),
        fetched(edge("last:0", 8, Producer::Item(2), &[])),
    ];
    // On the GPU right takes 31 us; beside it on the CPU it would take 300 of the 457 that left takes there.
    assert_eq!(solve(&problem).unwrap().device, [1, 1, 0]);
    problem.objective = Objective::Makespan;
    problem.items[1].work.flops = 250_000;
    problem.devices[1].launch = 400 * US;
    // Left: 40 + 400 + 400 + 15 + 1 us; right on the GPU 400 + 25 + 1 more, on the CPU 250 beside it.
    let solution = solve(&problem).unwrap();
    assert_eq!(solution.device, [1, 0, 0]);
    assert_eq!(solution.prediction().makespan, (40 + 400 + 400 + 16 + 10) * US);
    assert_eq!(solution.prediction().total, (40 + 400 + 400 + 16 + 10 + 250) * US);
}

#[test]
fn what_two_gpus_share_goes_through_the_host() {
    let mut problem = machine(2);
    let on =
        |name: &str, d: u32| Item { requested: Some(spec(&format!("GPU:{d}"))), ..item(name, 10) };
    problem.items = vec![on("a", 0), on("b", 1), on("c", 1)];
    problem.tensors = vec![fetched(edge("a:0", 1000, Producer::Item(0), &[1, 2]))];
    let solution = solve(&problem).unwrap();
    let prediction = solution.prediction();
    let ways = prediction.transfers.iter().map(|transfer| (transfer.from, transfer.to));
    assert_eq!(ways.collect::<Vec<_>>(), [(1, 0), (0, 2)]);
    // Three items of 1 + 1 us, two submissions of 40, two transfers of 15 + 1.
    assert_eq!(prediction.total, (6 + 80 + 32) * US);
    // One after the other: the second GPU waits for what the first sends.
    assert_eq!(prediction.makespan, (40 + 2 + 16 + 40 + 4 + 16) * US);
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
    assert_eq!(solution.reasons()[1].decision, Decision::Neighbour { tensor: 0 });
    assert!(matches!(solution.reasons()[0].decision, Decision::Cheapest { saved } if saved > 0));
}

/// A layered net of `n` items with weights, as a large model has.
pub(super) fn large(n: usize, seed: u64) -> Problem {
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
    let problems = [
        ("layers", large(10_000, 6), 1),
        ("chain", chain(10_000), 1),
        ("many layers", large(100_000, 6), 20),
    ];
    for (name, problem, times) in problems {
        let time = || {
            let start = busy();
            solve(&problem).unwrap();
            busy() - start
        };
        let best = (0..3).map(|_| time()).min().unwrap();
        println!("{name}: {best:?}");
        assert!(best < limit * times, "{name} took {best:?}");
    }
}

/// The time that this thread has computed, where Linux tells; elsewhere the time of day.
pub(super) fn busy() -> Duration {
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
    let solution = solve(machine(1)).unwrap();
    assert!(solution.device.is_empty() && solution.explain_item(0).is_none());
    assert_eq!(solution.prediction().total, 0);
}
