//! What an assignment takes of devices' memory, by hand.

use super::*;
use crate::price::Pricer;
use crate::{Staged, chunk_bytes, price, solve};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What each device takes at once.
fn peaks(problem: &Problem, device: &[usize]) -> Vec<u64> {
    price(problem, device).unwrap().devices.iter().map(|total| total.peak_bytes).collect()
}

/// A staging buffer for each of two ways, of no more than 64 KiB.
const STAGED: u64 = 128 * KIB;

#[test]
fn staging_memory_comes_in_pieces() {
    let cases = [
        (0, 0),
        (1, 64 * KIB),
        (64 * KIB + 1, 128 * KIB),
        (33 * MIB, 64 * MIB),
        (64 * MIB + 1, 80 * MIB),
    ];
    for (n_bytes, piece) in cases {
        assert_eq!(chunk_bytes(n_bytes), piece, "{n_bytes}");
    }
    let staged = |up: &[u64], down: &[u64]| {
        let mut staged = Staged::default();
        up.iter().for_each(|&n_bytes| staged.send(n_bytes));
        down.iter().for_each(|&n_bytes| staged.receive(n_bytes));
        staged.bytes()
    };
    assert_eq!(staged(&[], &[]), 0);
    // What goes to a device is cut where a piece ends.
    assert_eq!(staged(&[65 * MIB, 65 * MIB], &[]), (64 + 64 + 2) * MIB);
    assert_eq!(staged(&[64 * KIB - 15, 1], &[]), 128 * KIB);
    // What comes from it is not.
    assert_eq!(staged(&[], &[40 * MIB, 40 * MIB, 24 * MIB]), (64 + 64) * MIB);
    assert_eq!(staged(&[], &[100 * MIB, 4]), 112 * MIB + 64 * KIB);
    assert_eq!(staged(&[4], &[4]), STAGED);
    let mut failing = Staged::default();
    failing.receive(64 * KIB - 16);
    failing.receive_status();
    assert_eq!(failing.bytes(), 128 * KIB);
    assert_eq!(staged(&[u64::MAX, u64::MAX], &[u64::MAX]), u64::MAX);
}

#[test]
fn what_crosses_is_on_its_device_and_on_its_way() {
    let mut problem = machine(1);
    problem.items = vec![item("work", 10_000_000)];
    problem.tensors = vec![
        edge("x", 100 * MIB, Producer::Host, &[0]),
        fetched(edge("work:0", 4, Producer::Item(0), &[])),
    ];
    // On its way it fills 64 MiB, and 36 of 64 more.
    let needed = 100 * MIB + 4 + 128 * MIB + 64 * KIB;
    assert_eq!(peaks(&problem, &[1])[1], needed);
    problem.devices[1].memory_bytes = needed;
    assert_eq!(solve(&problem).unwrap().device, [1]);
    problem.devices[1].memory_bytes -= 1;
    assert_eq!(solve(&problem).unwrap().device, [0]);
}

#[test]
fn what_is_brought_stays_to_the_end_of_its_segment() {
    let mut problem = machine(1);
    problem.items = vec![item("first", 10), item("second", 10), item("third", 10)];
    problem.tensors = vec![
        edge("x", 1000, Producer::Host, &[0]),
        edge("first:0", 1000, Producer::Item(0), &[1]),
        edge("second:0", 500, Producer::Item(1), &[2]),
        fetched(edge("third:0", 10_000, Producer::Item(2), &[])),
    ];
    // Elementwise results lie where their operands were, but not in what was sent.
    assert_eq!(peaks(&problem, &[1, 1, 1])[1], 1000 + 10_000 + STAGED);
    // A segment that takes it later has it once more, until that ends.
    problem.tensors[0].consumers.push(2);
    problem.tensors[1].bytes = 0;
    assert_eq!(peaks(&problem, &[1, 0, 1])[1], 1000 + (1000 + 500 + 10_000) + STAGED);
}

#[test]
fn each_segment_has_its_constants() {
    let mut problem = machine(1);
    problem.items = vec![item("a", 10), item("b", 10), item("c", 10), variable("v")];
    problem.tensors =
        vec![edge("a:0", 0, Producer::Item(0), &[1]), edge("b:0", 0, Producer::Item(1), &[2])];
    problem.constants = vec![Constant { bytes: 1000, consumers: vec![0, 2] }];
    assert_eq!(peaks(&problem, &[1, 1, 1, 0]), [0, 1000]);
    assert_eq!(peaks(&problem, &[1, 0, 1, 0]), [0, 2000]);
    // What is stored is in the variable as well.
    problem.constants[0].consumers = vec![0, 3];
    assert_eq!(peaks(&problem, &[1, 0, 0, 1]), [0, 2000]);
    problem.fallible = vec![2];
    assert_eq!(peaks(&problem, &[1, 0, 0, 1]), [0, 3000]);
}

#[test]
fn what_is_stored_at_the_end_is_kept_until_then() {
    let mut problem = machine(1);
    problem.items = vec![variable("v"), item("step", 100), item("check", 10)];
    problem.tensors = vec![
        edge("step:0", 1000, Producer::Item(1), &[0]),
        edge("seen", 1000, Producer::Host, &[2]),
    ];
    // Stored where the variable is.
    assert_eq!(peaks(&problem, &[1, 1, 0])[1], 1000);
    // What the host does may fail: the segment that made it has it, and the one that stores it.
    problem.fallible = vec![2];
    problem.tensors.push(edge("again", 0, Producer::Item(1), &[2]));
    assert_eq!(price(&problem, &[1, 1, 0]).unwrap().submissions, 2);
    assert_eq!(peaks(&problem, &[1, 1, 0])[1], 3000);
    // On the device, what tells of it crosses.
    problem.tensors.pop();
    assert_eq!(peaks(&problem, &[1, 1, 1])[1], 2000 + STAGED);
}

#[test]
fn no_device_takes_more_than_what_is_looked_at() {
    let mut rng = Rng(12);
    for case in 0..2000 {
        let mut problem = random_problem(&mut rng, 2, 12);
        problem.tensors.iter_mut().for_each(|tensor| tensor.bytes <<= rng.below(12));
        let order = problem.check().unwrap();
        let mut pricer = Pricer::new(&problem, &order);
        let device: Vec<usize> = problem.items.iter().map(|_| rng.below(3) as usize).collect();
        pricer.total(&device);
        let most = pricer.most_bytes();
        let peaks = pricer.peaks(&device);
        assert!(peaks.iter().all(|&peak| peak <= most), "case {case}: {peaks:?}, {most}");
    }
}
