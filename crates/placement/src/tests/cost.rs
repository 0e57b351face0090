//! Costs of work and transfers, and that they don't overflow.

use super::*;
use crate::{SegmentOrder, price, solve};

#[test]
fn work_takes_its_launch_and_the_slower_of_arithmetic_and_memory() {
    let gpu = DeviceModel::gpu(DeviceKind::SoftwareGpu, 0, GIB);
    let cost = |flops, bytes| gpu.cost(&Work { family: Family::Contract, flops, bytes });
    assert_eq!(cost(0, 0), 60 * US);
    assert_eq!(cost(1_500_000, 1), 1060 * US);
    assert_eq!(cost(1, 5_000_000), 5060 * US);
    assert_eq!(cost(1, 0), 60 * US + 667);
}

#[test]
fn costs_saturate() {
    let slow = DeviceModel { bytes_per_second: 0, ..cpu() };
    assert_eq!(slow.cost(&Work { family: Family::Move, flops: 0, bytes: 1 }), u64::MAX);
    let most = Work { family: Family::Other, flops: u64::MAX, bytes: u64::MAX };
    assert_eq!(cpu().cost(&most), u64::MAX);
    assert_eq!(Link { latency: 1, bytes_per_second: 0 }.cost(1), u64::MAX);
    assert_eq!(Link { latency: 7, bytes_per_second: 0 }.cost(0), 7);
    assert_eq!(DeviceModel::cpu(usize::MAX, 0).flops_per_second.contract, u64::MAX);
}

#[test]
fn problems_with_absurd_numbers_are_solved() {
    let mut problem = machine(1);
    problem.devices.iter_mut().for_each(|device| device.memory_bytes = u64::MAX);
    for i in 0..20usize {
        let work = Work { family: Family::Other, flops: u64::MAX, bytes: u64::MAX };
        problem.items.push(Item { work, ..item(&format!("i{i}"), 0) });
        let consumers: Vec<usize> = (i + 1..20).collect();
        problem.tensors.push(fetched(edge("t", u64::MAX, Producer::Item(i), &consumers)));
    }
    let solution = solve(&problem).unwrap();
    assert_eq!(solution.prediction.total, u64::MAX);
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
    assert_eq!(solution.prediction.makespan, (40 + 300 + 15) * US);
    assert_eq!(solution.prediction.total, (300 + 40 + 300 + 15) * US);
    // A network after the text: what the GPU could do before would be a segment more.
    problem.items.push(gpu("net"));
    problem.tensors[0] = edge("text:0", 0, Producer::Item(0), &[2]);
    let solution = solve(&problem).unwrap();
    assert_eq!((solution.order, solution.prediction.submissions), (SegmentOrder::Declared, 1));
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
    // A variable on a device without work there takes a submission for the reading.
    let prediction = price(&problem, &[1, 0]).unwrap();
    assert_eq!((prediction.submissions, prediction.transfers.len()), (1, 2));
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
    let error = solve(&Problem::new(Vec::new())).unwrap_err();
    assert_eq!(error.kind(), convoke_graph_core::ErrorKind::FailedPrecondition);
}
