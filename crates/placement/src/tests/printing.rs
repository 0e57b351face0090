//! How a placement prints.

use expect_test::expect;

use super::*;
use crate::solve;

/// Strings on the host, a network, and a device asked for by name.
fn example() -> Problem {
    let mut problem = machine(1);
    let unsupported = || vec![None, Some("unsupported: strings".into())];
    problem.items = vec![
        Item {
            refusals: unsupported(),
            location: Some("src/main.rs:4:9".into()),
            ..item("parse", 20)
        },
        variable("w"),
        item("matmul", 2000),
        item("relu", 10),
        Item { requested: Some(spec("CPU:0")), ..item("argmax", 5) },
        item("w/assign", 300),
        Item { requested: Some(spec("GPU:7")), ..item("norm", 1) },
    ];
    problem.tensors = vec![
        edge("text:0", 400, Producer::Host, &[0]),
        edge("parse:0", 64_000, Producer::Item(0), &[2]),
        edge("w:0", 2_000_000, Producer::Item(1), &[2, 5]),
        edge("matmul:0", 10_240, Producer::Item(2), &[3]),
        edge("relu:0", 10_240, Producer::Item(3), &[4, 5]),
        fetched(edge("argmax:0", 256, Producer::Item(4), &[])),
        edge("w/assign:0", 2_000_000, Producer::Item(5), &[1]),
    ];
    problem.resource_edges = vec![(1, 5)];
    problem.soft_placement = true;
    problem
}

#[test]
fn a_solution_prints_as_tables() {
    expect![[r#"
        device  items     compute  submitting  bytes
        CPU:0   3       26.000 us           0  73.1 KiB
        GPU:0   4      234.000 us   40.000 us  3.8 MiB
        predicted 404.240 us: 2 transfers of 72.5 KiB, 1 submission
        proven: no other placement takes less in all

        tensor   from      to     bytes  time
        parse:0  CPU:0  GPU:0  62.5 KiB  79.000 us
        relu:0   GPU:0  CPU:0  10.0 KiB  25.240 us

        item      device        cost          next best  why
        parse     CPU:0    20.000 us                  -  only kernel (GPU:0: unsupported: strings)
        w         GPU:0            0    CPU:0 +2.269 ms  cheapest, saves 2.269 ms
        matmul    GPU:0   201.000 us    CPU:0 +3.800 ms  cheapest, saves 3.800 ms
        relu      GPU:0     2.000 us   CPU:0 +73.240 us  cheapest, saves 73.240 us
        argmax    CPU:0     5.000 us                  -  CPU:0 requested
        w/assign  GPU:0    31.000 us    CPU:0 +2.269 ms  cheapest, saves 2.269 ms
        norm      CPU:0     1.000 us  GPU:0 +100.000 ns  GPU:7 requested, softened: there is no such device
    "#]].assert_eq(&solve(example()).unwrap().to_string());
}

#[test]
fn an_item_prints_with_its_candidates() {
    let solution = solve(example()).unwrap();
    let texts: Vec<String> =
        (0..7).map(|i| solution.explain_item(i).unwrap().to_string()).collect();
    expect![[r#"
        parse at src/main.rs:4:9 on CPU:0: only kernel (GPU:0: unsupported: strings)
          CPU:0: 20.000 us by itself
          GPU:0: excluded, unsupported: strings
        w on GPU:0: cheapest, saves 2.269 ms
          CPU:0: 0 by itself
          GPU:0: 0 by itself
          on CPU:0 the run would take 2.269 ms more
        matmul on GPU:0: cheapest, saves 3.800 ms
          CPU:0: 2.000 ms by itself
          GPU:0: 201.000 us by itself
          on CPU:0 the run would take 3.800 ms more
        relu on GPU:0: cheapest, saves 73.240 us
          CPU:0: 10.000 us by itself
          GPU:0: 2.000 us by itself
          on CPU:0 the run would take 73.240 us more
        argmax on CPU:0: CPU:0 requested
          CPU:0: 5.000 us by itself
          GPU:0: excluded, /device:CPU:0 is requested
        w/assign on GPU:0: cheapest, saves 2.269 ms
          CPU:0: 300.000 us by itself
          GPU:0: 31.000 us by itself
          on CPU:0 the run would take 2.269 ms more
        norm on CPU:0: GPU:7 requested, softened: there is no such device
          CPU:0: 1.000 us by itself
          GPU:0: 1.100 us by itself
          on GPU:0 the run would take 100.000 ns more
    "#]]
    .assert_eq(&texts.concat());
}

#[test]
fn one_device_decides_everything() {
    let mut problem = example();
    problem.devices.truncate(1);
    problem.links.truncate(1);
    for item in &mut problem.items {
        item.refusals.clear();
    }
    expect![[r#"
        device  items   compute  submitting  bytes
        CPU:0   7      2.336 ms           0  3.8 MiB
        predicted 2.336 ms: 0 transfers of 0 B, 0 submissions

        item      device        cost  next best  why
        parse     CPU:0    20.000 us          -  the only device
        w         CPU:0            0          -  the only device
        matmul    CPU:0     2.000 ms          -  the only device
        relu      CPU:0    10.000 us          -  the only device
        argmax    CPU:0     5.000 us          -  the only device
        w/assign  CPU:0   300.000 us          -  the only device
        norm      CPU:0     1.000 us          -  GPU:7 requested, softened: there is no such device
    "#]]
    .assert_eq(&solve(&problem).unwrap().to_string());
}

#[test]
fn long_tables_are_cut_off() {
    let mut problem = machine(0);
    problem.items = (0..1000).map(|i| item(&format!("i{i}"), 1)).collect();
    let text = solve(&problem).unwrap().to_string();
    assert!(text.ends_with("and 800 more\n"), "{text}");
    assert!(text.lines().count() < 250);
}

#[test]
fn devices_of_several_tasks_print_with_their_full_names() {
    let mut problem = machine(1);
    problem.devices[1].name = spec("/job:worker/replica:0/task:1/device:GPU:0");
    problem.items = vec![Item { requested: Some(spec("/job:worker")), ..item("a", 1) }];
    expect![[r#"
        a on /job:worker/replica:0/task:1/device:GPU:0: /job:worker requested
          /job:localhost/replica:0/task:0/device:CPU:0: excluded, /job:worker is requested
          /job:worker/replica:0/task:1/device:GPU:0: 1.100 us by itself
    "#]]
    .assert_eq(&solve(&problem).unwrap().explain_item(0).unwrap().to_string());
}
