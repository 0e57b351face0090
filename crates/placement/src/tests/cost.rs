//! Costs of work and transfers, and that they don't overflow.

use super::*;
use crate::{Queues, SegmentOrder, price, solve};

const GIGA: u64 = 1_000_000_000;

#[test]
fn work_takes_its_launch_and_the_slower_of_arithmetic_and_memory_of_a_gpu() {
    let gpu = DeviceModel::gpu(DeviceKind::DiscreteGpu, 0, GIB);
    let cost = |flops, bytes| gpu.cost(&Work::new(Family::Contract, flops, bytes));
    assert_eq!(cost(0, 0), 8 * US);
    assert_eq!(cost(5_000_000_000, 3_000_000), 1008 * US);
    assert_eq!(cost(5_000_000, 300_000_000), 1008 * US);
    assert_eq!(cost(10, 0), 8 * US + 2);
}

/// One and the same product may be an ordinary one for a processor and a thin one for a GPU.
#[test]
fn a_family_is_that_of_the_device() {
    let work = Work { on_gpu: Family::Thin, ..Work::new(Family::Contract, 60_000_000, 0) };
    // 60 GFLOP/s of products and 0.5 us for a kernel; 1 TFLOP/s of thin ones and 8 us.
    assert_eq!(DeviceModel::cpu(1, GIB).cost(&work), 1_000_500_000);
    let gpu = DeviceModel::gpu(DeviceKind::DiscreteGpu, 0, GIB);
    assert_eq!(gpu.cost(&work), 68 * US);
}

/// A launch of 8 us for four kernels is 2 us for each, and 4 for two that a kernel has buffers for.
#[test]
fn kernels_that_start_as_one_share_a_launch() {
    let gpu = DeviceModel::gpu(DeviceKind::DiscreteGpu, 0, GIB);
    let work = Work { beside: 4, buffers: 3, ..Work::new(Family::Contract, 0, 0) };
    assert_eq!(gpu.cost(&work), 2 * US);
    for (buffers, launch) in [(13, 2), (12, 8 / 3), (7, 4), (6, 8), (0, 8)] {
        let found = DeviceModel { buffers, ..gpu.clone() }.cost(&work);
        assert_eq!(found / US, launch, "{buffers} buffers");
    }
    let cpu = DeviceModel::cpu(1, GIB);
    assert_eq!(cpu.cost(&work), cpu.launch);
}

/// A processor waits for memory in the threads that compute.
#[test]
fn work_takes_arithmetic_and_memory_of_a_processor() {
    for (kind, rows) in [(DeviceKind::SoftwareGpu, 4), (DeviceKind::Cpu, 2)] {
        let software = DeviceModel::gpu(DeviceKind::SoftwareGpu, 0, GIB);
        let device = DeviceModel { kind, ..software };
        let work = Work::new(Family::Contract, 1_500_000, 5_000_000);
        assert_eq!(device.cost(&work), 6060 * US);
        assert_eq!(device.besides(&work), 5000 * US);
        // Each has its own tiles: 60 us, 1 ms for each 1.5 million operations, 5 ms.
        let tiles = Work { lanes: 9_000_000, narrow: 6_000_000, flops: 3_000_000, ..work };
        assert_eq!(device.cost(&tiles), (5060 + 1000 * rows) * US);
    }
}

/// 1000 bytes take 1 us, and 10,000 take 40: a tenth of what lies there takes 4.
#[test]
fn what_lies_among_more_takes_the_time_of_a_part_of_that() {
    let memory = Curve::through([(1000, US), (10_000, 40 * US)]).unwrap();
    let cost = |kind, family| {
        let device = DeviceModel { kind, memory: memory.clone(), launch: 0, ..gpu(0) };
        device.cost(&Work { among: 10_000, ..Work::new(family, 0, 1000) })
    };
    assert_eq!(cost(DeviceKind::Cpu, Family::Contract), 4 * US);
    assert_eq!(cost(DeviceKind::DiscreteGpu, Family::Contract), 4 * US);
    assert_eq!(cost(DeviceKind::SoftwareGpu, Family::Contract), US);
    assert_eq!(cost(DeviceKind::SoftwareGpu, Family::Move), 4 * US);
}

#[test]
fn what_is_done_element_by_element_comes_on_top_at_its_own_speed() {
    let mut gpu = gpu(0);
    gpu.arithmetic.set(Family::Contract, Curve::rate(1_000_000_000));
    gpu.arithmetic.set(Family::Elementwise, Curve::rate(2_000_000_000));
    gpu.arithmetic.set(Family::Function, Curve::rate(500_000_000));
    let product = Work::new(Family::Contract, 10_000, 0);
    let work =
        Work { pointwise: 4_000, functions: 1_000, again: [6_000, 500], lanes: 20_000, ..product };
    // A launch of 1 us; 20, 5 and 3 us.
    assert_eq!(gpu.cost(&work), 29 * US);
    // Idle invocations and elements that are computed again are a GPU's.
    let cpu = DeviceModel { kind: DeviceKind::Cpu, ..gpu };
    assert_eq!(cpu.cost(&work), 15 * US);
}

#[test]
fn a_curve_goes_through_its_points_and_on_at_the_last_ones_rate() {
    let curve = Curve::through([(1000, 50), (100, 10), (0, 7), (200, 30)]).unwrap();
    assert_eq!(curve.points(), [(100, 10), (200, 30), (1000, 50)]);
    let times = [0, 1, 50, 100, 150, 200, 600, 1000, 3000].map(|amount| curve.time(amount));
    assert_eq!(times, [0, 1, 5, 10, 20, 30, 40, 50, 150]);
    assert_eq!(Curve::through([(0, 5)]), None);
    assert_eq!(Curve::through([]), None);
    assert_eq!(curve.per_second(), 1000 * 1_000_000_000_000 / 50);
    let times = [1, 3, 6].map(|amount| Curve::rate(3).time(amount));
    assert_eq!(times, [333_333_333_334, 1_000_000_000_000, 2_000_000_000_000]);
}

#[test]
fn more_never_takes_less() {
    let mut rng = Rng(7);
    for _ in 0..200 {
        let n = 1 + rng.below(8);
        let mut points: Vec<(u64, u64)> =
            (0..n).map(|_| (rng.next() >> rng.below(64), rng.next() >> rng.below(64))).collect();
        points.push((1 + rng.below(1000), rng.below(1000)));
        let curve = Curve::through(points).unwrap();
        let mut amounts: Vec<u64> = (0..100).map(|_| rng.next() >> rng.below(64)).collect();
        amounts
            .extend(curve.points().iter().flat_map(|&(at, _)| [at - 1, at, at.saturating_add(1)]));
        amounts.sort_unstable();
        let times: Vec<u64> = amounts.iter().map(|&amount| curve.time(amount)).collect();
        assert!(times.is_sorted(), "{curve:?}");
    }
}

#[test]
fn a_disturbed_measurement_gives_way_to_a_faster_one_of_more() {
    let curve = Curve::through([(10, 900), (20, 200), (40, 300)]).unwrap();
    assert_eq!(curve.points(), [(10, 200), (20, 200), (40, 300)]);
}

#[test]
fn threads_help_less_the_more_there_are() {
    let speed = |n: usize, family| DeviceModel::cpu(n, 0).arithmetic.of(family).per_second();
    let bytes = |n: usize| DeviceModel::cpu(n, 0).memory.per_second();
    assert_eq!(speed(1, Family::Contract), 60 * GIGA);
    // 60 * 64 * 2 / 65 and 60 * 64 * 64 / 127.
    let near = |found: u64, expected: f64| (found as f64 / 1e9 / expected - 1.0).abs() < 1e-6;
    assert!(near(speed(2, Family::Contract), 7680.0 / 65.0));
    assert!(near(speed(64, Family::Contract), 245_760.0 / 127.0));
    assert!(near(bytes(16), 10.0 * 16.0 * 24.0 / 39.0));
    for n in 1..300 {
        assert!(speed(n, Family::Reduce) < speed(n + 1, Family::Reduce));
        assert!(bytes(n) < bytes(n + 1) && bytes(n) < 240 * GIGA);
    }
    // Small work is one thread's: 30,000 additions at 3 a nanosecond.
    let small = Work { pointwise: 30_000, ..Work::new(Family::Elementwise, 0, 0) };
    for n in [1, 2, 100] {
        assert_eq!(DeviceModel::cpu(n, 0).cost(&small), US / 2 + 10 * US);
    }
}

#[test]
fn a_copy_on_a_gpu_takes_a_launch_and_no_longer_than_the_way_through_the_host() {
    let gpu = |index| DeviceModel::gpu(DeviceKind::DiscreteGpu, index, GIB);
    let mut problem = Problem::new(vec![cpu(), gpu(0), gpu(1), gpu(2)]);
    let staged = *problem.link(1, 2);
    problem.join(1, 2);
    let copy = Link { latency: 8 * US, bytes_per_second: 150 * GIGA };
    assert_eq!([*problem.link(1, 2), *problem.link(2, 1)], [copy; 2]);
    // The third is another GPU, and what the host has is sent.
    assert_eq!([*problem.link(1, 3), *problem.link(3, 2)], [staged; 2]);
    assert_eq!(*problem.link(0, 1), Link::between(DeviceKind::Cpu, DeviceKind::DiscreteGpu));
    // A CPU that plays a GPU moves bytes no faster than the host does.
    let software = |index| DeviceModel::gpu(DeviceKind::SoftwareGpu, index, GIB);
    let mut problem = Problem::new(vec![cpu(), software(0), software(1)]);
    let staged = *problem.link(1, 2);
    problem.join(2, 1);
    assert_eq!(*problem.link(1, 2), staged);
}

/// A copy is part of the segment that takes it, and no host waits for it; one queue does one thing after the other.
#[test]
fn parts_of_one_gpu_work_one_after_the_other() {
    let mut problem = machine(2);
    problem.devices[1..].iter_mut().for_each(|gpu| gpu.memory = Curve::rate(2 * GIGA));
    problem.items = vec![item("first", 1000), item("second", 500)];
    problem.tensors = vec![
        edge("x", 1000, Producer::Item(0), &[1]),
        fetched(edge("y", 0, Producer::Item(1), &[])),
    ];
    let predicted = |problem: &Problem| price(problem, &[1, 2]).unwrap();
    // 40, 101 and 16 us; 40, 16, 51 and 15 us.
    let staged = predicted(&problem);
    assert_eq!((staged.total, staged.makespan), (279 * US, 279 * US));
    problem.join(1, 2);
    let copied = predicted(&problem);
    let [copy, fetch] = &copied.transfers[..] else { panic!("{:?}", copied.transfers) };
    assert_eq!((copy.is_copy(), copy.from, copy.to, copy.time), (true, 1, 2, 2 * US));
    assert_eq!((fetch.is_copy(), fetch.from, fetch.to), (false, 2, 0));
    // 40 and 101 us; 40, 2, 51 and 15 us, the submission while the first works.
    assert_eq!((copied.total, copied.makespan), (249 * US, 209 * US));
    let staged = price(&Problem { queues: Queues::default(), ..problem.clone() }, &[1, 2]).unwrap();
    // The host's staging memory is only for what crosses it: of two pieces, none is left.
    let peaks = |found: &crate::Prediction| [1, 2].map(|d| found.devices[d].peak_bytes);
    let [before, after] = [peaks(&staged), peaks(&copied)];
    assert_eq!([before[0] - after[0], before[1] - after[1]], [64 << 10; 2]);
    problem.queues.join(1, 3);
    assert_eq!(price(&problem, &[1, 2]).unwrap_err().to_string(), "3 devices and queues of 4");
}

#[test]
fn costs_saturate() {
    let slow = DeviceModel { memory: Curve::rate(0), ..cpu() };
    assert_eq!(slow.cost(&Work::new(Family::Move, 0, 1)), u64::MAX);
    assert_eq!(slow.cost(&Work::new(Family::Move, 0, 0)), 0);
    let most = Work::new(Family::Other, u64::MAX, u64::MAX);
    assert_eq!(cpu().cost(&most), u64::MAX);
    assert_eq!(Link { latency: 1, bytes_per_second: 0 }.cost(1), u64::MAX);
    assert_eq!(Link { latency: 7, bytes_per_second: 0 }.cost(0), 7);
    let most_threads = DeviceModel::cpu(usize::MAX, 0).arithmetic.of(Family::Contract).per_second();
    assert!(most_threads <= 64 * 60 * GIGA);
}

#[test]
fn a_run_takes_what_the_host_says_once() {
    let mut problem = machine(1);
    problem.devices[0].run = 3 * US;
    problem.devices[1].run = 50 * US;
    problem.items = vec![item("a", 10), item("b", 10)];
    assert_eq!(price(&problem, &[0, 0]).unwrap().total, 23 * US);
    assert_eq!(solve(&problem).unwrap().prediction().total, 23 * US);
}

#[test]
fn problems_with_absurd_numbers_are_solved() {
    let mut problem = machine(1);
    problem.devices.iter_mut().for_each(|device| device.memory_bytes = u64::MAX);
    for i in 0..20usize {
        let work = Work::new(Family::Other, u64::MAX, u64::MAX);
        problem.items.push(Item { work, ..item(&format!("i{i}"), 0) });
        let consumers: Vec<usize> = (i + 1..20).collect();
        problem.tensors.push(fetched(edge("t", u64::MAX, Producer::Item(i), &consumers)));
    }
    let solution = solve(&problem).unwrap();
    assert_eq!(solution.prediction().total, u64::MAX);
    assert!(!solution.to_string().is_empty());
}

#[test]
fn a_link_between_gpus_goes_through_the_host() {
    let both = Link::between(DeviceKind::DiscreteGpu, DeviceKind::IntegratedGpu);
    assert_eq!(both, Link { latency: 25 * US, bytes_per_second: 7_500_000_000 });
}

#[test]
fn a_crossing_pays_one_latency_and_each_tensor_its_bytes() {
    let mut problem = machine(1);
    problem.items = vec![item("a", 10), item("b", 10), item("c", 10)];
    problem.tensors = vec![
        edge("x", 1000, Producer::Host, &[0, 1]),
        edge("y", 2000, Producer::Host, &[0]),
        fetched(edge("a:0", 3000, Producer::Item(0), &[2])),
        edge("b:0", 4000, Producer::Item(1), &[2, 2]),
    ];
    let prediction = price(&problem, &[1, 1, 0]).unwrap();
    let times: Vec<u64> = prediction.transfers.iter().map(|transfer| transfer.time).collect();
    assert_eq!(times, [16 * US, 2 * US, 18 * US, 4 * US]);
    assert_eq!(prediction.submissions, 1);
    // Two items of 1 + 1 us and a submission of 40 on the GPU, one of 10 on the CPU, 40 of transfers.
    assert_eq!(prediction.total, (4 + 40 + 10 + 40) * US);
    assert_eq!(prediction.devices[1].bytes, 10_000);
    assert_eq!(prediction.devices[0].bytes, 10_000);
}

#[test]
fn segments_go_on_as_long_as_their_device_has_something_ready() {
    let mut problem = machine(1);
    problem.items = (0..6).map(|i| item(&format!("i{i}"), 1)).collect();
    problem.tensors = vec![
        edge("t0", 0, Producer::Item(0), &[1]),
        edge("t2", 0, Producer::Item(2), &[3]),
        edge("t1", 0, Producer::Item(1), &[4]),
        edge("t3", 0, Producer::Item(3), &[5]),
    ];
    // Two chains CPU, GPU, CPU side by side share their segments.
    assert_eq!(price(&problem, &[0, 1, 0, 1, 0, 0]).unwrap().submissions, 1);
    // CPU, GPU, CPU, GPU in a row do not.
    problem.tensors[1] = edge("t1", 0, Producer::Item(1), &[2]);
    problem.tensors.push(edge("t2", 0, Producer::Item(2), &[3]));
    assert_eq!(price(&problem, &[0, 1, 0, 1, 0, 0]).unwrap().submissions, 2);
}

#[test]
fn devices_go_first_where_that_saves_time_and_no_segment() {
    let mut problem = machine(1);
    let host = |name: &str| Item { requested: Some(spec("CPU:0")), ..item(name, 300) };
    let gpu = |name: &str| Item { requested: Some(spec("GPU:0")), ..item(name, 2990) };
    problem.items = vec![host("text"), gpu("image")];
    problem.tensors = vec![
        fetched(edge("text:0", 0, Producer::Item(0), &[])),
        fetched(edge("image:0", 0, Producer::Item(1), &[])),
    ];
    let solution = solve(&problem).unwrap();
    assert_eq!(solution.order, SegmentOrder::DevicesFirst);
    // The GPU's 40 + 300 us and 15 to bring it back; text is done meanwhile.
    assert_eq!(solution.prediction().makespan, (40 + 300 + 15) * US);
    assert_eq!(solution.prediction().total, (300 + 40 + 300 + 15) * US);
    // A network after the text: what the GPU could do before would be a segment more.
    problem.items.push(gpu("net"));
    problem.tensors[0] = edge("text:0", 0, Producer::Item(0), &[2]);
    let solution = solve(&problem).unwrap();
    assert_eq!((solution.order, solution.prediction().submissions), (SegmentOrder::Declared, 1));
}

#[test]
fn a_resource_is_there_from_the_start_and_stored_at_the_end() {
    let mut problem = machine(1);
    problem.items = vec![variable("w"), item("step", 100)];
    problem.tensors = vec![
        edge("w:0", 1000, Producer::Item(0), &[1]),
        edge("new", 1000, Producer::Item(1), &[0]),
    ];
    // What is computed from the variable goes back into it: no cycle.
    assert!(price(&problem, &[1, 1]).unwrap().transfers.is_empty());
    // A variable on a device without work there takes a submission for the reading, and one to store what comes of it.
    let prediction = price(&problem, &[1, 0]).unwrap();
    assert_eq!((prediction.submissions, prediction.transfers.len()), (2, 2));
}

#[test]
fn malformed_problems_are_refused() {
    let mut problem = machine(1);
    problem.items = vec![item("a", 1), item("b", 1)];
    problem.tensors = vec![edge("t", 1, Producer::Item(0), &[1])];
    assert!(price(&problem, &[0]).is_err() && price(&problem, &[0, 2]).is_err());
    assert!(price(&problem, &[0, 1]).is_ok());
    problem.tensors.push(edge("u", 1, Producer::Item(1), &[0]));
    let error = solve(&problem).unwrap_err();
    assert_eq!(error.to_string(), "a: waits for its own result");
    problem.tensors = vec![edge("t", 1, Producer::Item(2), &[1])];
    assert!(solve(&problem).is_err());
    problem.tensors = vec![edge("t", 1, Producer::Host, &[7])];
    assert!(solve(&problem).is_err());
    problem.tensors.clear();
    problem.links.pop();
    assert!(solve(&problem).is_err());
    let mut problem = machine(1);
    problem.items = vec![Item { refusals: vec![None], ..item("a", 1) }];
    assert!(solve(&problem).is_err());
    let error = solve(Problem::new(Vec::new())).unwrap_err();
    assert_eq!(error.kind(), convoke_graph_core::ErrorKind::FailedPrecondition);
}

#[test]
fn what_is_picked_from_many_bytes_takes_what_the_many_do() {
    let mut cpu = cpu();
    cpu.launch = 0;
    // A cache of 1000 bytes: 1 ps a byte inside, 10 beyond.
    cpu.memory = Curve::through([(1000, 1000), (10_000, 100_000)]).unwrap();
    let work = Work::new(Family::Move, 0, 500);
    assert_eq!(cpu.cost(&work), 500);
    assert_eq!(cpu.cost(&Work { among: 499, ..work }), 500);
    assert_eq!(cpu.cost(&Work { among: 20_000, ..work }), 5000);
}

#[test]
fn what_runs_took_is_what_an_item_takes() {
    let mut problem = machine(1);
    problem.items = vec![item("a", 100)];
    assert_eq!(solve(&problem).unwrap().device, [1]);
    problem.items[0].known = vec![None, Some(900 * US)];
    let solution = solve(&problem).unwrap();
    assert_eq!(solution.device, [0]);
    let candidates = &solution.reasons()[0].candidates;
    let shown: Vec<(u64, bool)> = candidates.iter().map(|c| (c.cost / US, c.is_known)).collect();
    assert_eq!(shown[1], (900, true));
    assert!(!shown[0].1);
    problem.items[0].known = vec![Some(1000 * US), Some(900 * US)];
    assert_eq!(solve(&problem).unwrap().device, [1]);
}
