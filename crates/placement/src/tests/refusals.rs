//! What is said of a hundred operations that can't be placed: six errors, each in at most 15 lines with the nodes, the
//! devices and what would help.

use convoke_graph_core::{Error, ErrorKind};
use expect_test::{Expect, expect};

use super::legality::{asking, hard, held, not_on, soft, together};
use super::*;
use crate::solve;

const MAX_LINES: usize = 15;

#[track_caller]
fn said(error: &Error, kind: ErrorKind, expected: &Expect) {
    assert_eq!(error.kind(), kind, "{error}");
    let text = error.to_string();
    assert!(text.lines().count() <= MAX_LINES, "{text}");
    expected.assert_eq(&text);
}

#[track_caller]
fn refused(problem: &Problem, expected: &Expect) {
    said(&solve(problem).unwrap_err(), ErrorKind::InvalidArgument, expected);
}

/// An item with the line that declared it.
fn at_line(line: usize, item: Item) -> Item {
    Item { location: Some(format!("src/model.rs:{line}:9")), ..item }
}

/// A hundred items `x_0`, `x_1` and so on.
fn hundred(item: impl Fn(&str) -> Item) -> Vec<Item> {
    (0..100).map(|i| at_line(i + 10, item(&format!("x_{i}")))).collect()
}

/// The CPU and twelve GPUs.
fn many_devices(problem: Problem) -> Problem {
    let Problem { items, tensors, colocations, resource_edges, soft_placement, .. } = problem;
    Problem { items, tensors, colocations, resource_edges, soft_placement, ..machine(12) }
}

/// Devices of two tasks, which have long names.
fn two_tasks(problem: Problem) -> Problem {
    let mut problem = many_devices(problem);
    for (d, device) in problem.devices.iter_mut().enumerate().skip(7) {
        device.name = spec(&format!("/job:a_worker_far_away/replica:0/task:1/device:GPU:{d}"));
    }
    problem
}

#[test]
fn unknown_devices() {
    let items = || hundred(|name| asking(name, "GPU:77"));
    refused(
        &together(many_devices(hard(items()))),
        &expect![[r#"
        x_0: /device:GPU:77 was requested, and there is no such device
          'x_0' at src/model.rs:10:9 asks for /device:GPU:77
          'x_1' at src/model.rs:11:9 asks for /device:GPU:77
          'x_2' at src/model.rs:12:9 asks for /device:GPU:77
          'x_3' at src/model.rs:13:9 asks for /device:GPU:77
          and 96 more operations
          devices: CPU:0, GPU:0, GPU:1, GPU:2, GPU:3, GPU:4, GPU:5, GPU:6 and 5 more
          with a kernel: CPU:0, GPU:0, GPU:1, GPU:2, GPU:3, GPU:4, GPU:5, GPU:6 and 5 more
          help: ask for one of CPU:0, GPU:0, GPU:1, GPU:2, GPU:3, GPU:4, GPU:5, GPU:6 and 5 more, or turn soft placement on"#]],
    );
    refused(
        &together(two_tasks(hard(items()))),
        &expect![[r#"
        x_0: /device:GPU:77 was requested, and there is no such device
          'x_0' at src/model.rs:10:9 asks for /device:GPU:77
          'x_1' at src/model.rs:11:9 asks for /device:GPU:77
          'x_2' at src/model.rs:12:9 asks for /device:GPU:77
          'x_3' at src/model.rs:13:9 asks for /device:GPU:77
          and 96 more operations
          devices: /job:localhost/replica:0/task:0/device:CPU:0, /job:localhost/replica:0/task:0/device:GPU:0, /job:localhost/replica:0/task:0/device:GPU:1 and 10 more
          with a kernel: /job:localhost/replica:0/task:0/device:CPU:0, /job:localhost/replica:0/task:0/device:GPU:0, /job:localhost/replica:0/task:0/device:GPU:1 and 10 more
          help: ask for one of /job:localhost/replica:0/task:0/device:CPU:0, /job:localhost/replica:0/task:0/device:GPU:0, /job:localhost/replica:0/task:0/device:GPU:1 and 10 more, or turn soft placement on"#]],
    );
    let elsewhere = hundred(|name| asking(name, "/job:worker/gpu:0"));
    refused(
        &together(many_devices(soft(elsewhere))),
        &expect![[r#"
        x_0: /job:worker/device:GPU:0 was requested, and there is no such device
          'x_0' at src/model.rs:10:9 asks for /job:worker/device:GPU:0
          devices: CPU:0, GPU:0, GPU:1, GPU:2, GPU:3, GPU:4, GPU:5, GPU:6 and 5 more
          with a kernel: CPU:0, GPU:0, GPU:1, GPU:2, GPU:3, GPU:4, GPU:5, GPU:6 and 5 more
          help: ask for one of CPU:0, GPU:0, GPU:1, GPU:2, GPU:3, GPU:4, GPU:5, GPU:6 and 5 more: soft placement never changes job, replica or task"#]],
    );
}

#[test]
fn malformed_device_names() {
    let malformed = |problem: &Problem, name: &str, expected: &Expect| {
        // As a session names the node.
        let error = problem.device_spec(name).unwrap_err().with_node("x_0");
        said(&error, ErrorKind::InvalidArgument, expected);
    };
    malformed(
        &machine(1),
        "GPU:x",
        &expect![[r#"
        x_0: malformed device specification 'GPU:x': 'GPU:x' needs a number below 4294967296; expected something like '/job:localhost/replica:0/task:0/device:GPU:0', 'GPU:0', 'CPU' or '/job:worker', with '*' for any
          devices: CPU:0, GPU:0
          help: ask for one of CPU:0, GPU:0; soft placement does not relax this"#]],
    );
    malformed(
        &machine(0),
        "/job:a/job:b",
        &expect![[r#"
        x_0: malformed device specification '/job:a/job:b': 'job:b' gives again what an earlier part gave; expected something like '/job:localhost/replica:0/task:0/device:GPU:0', 'GPU:0', 'CPU' or '/job:worker', with '*' for any
          devices: CPU:0
          help: ask for CPU:0; soft placement does not relax this"#]],
    );
    malformed(
        &many_devices(machine(1)),
        "banana",
        &expect![[r#"
        x_0: malformed device specification 'banana': 'banana' is not a known part; expected something like '/job:localhost/replica:0/task:0/device:GPU:0', 'GPU:0', 'CPU' or '/job:worker', with '*' for any
          devices: CPU:0, GPU:0, GPU:1, GPU:2, GPU:3, GPU:4, GPU:5, GPU:6 and 5 more
          help: ask for one of CPU:0, GPU:0, GPU:1, GPU:2, GPU:3, GPU:4, GPU:5, GPU:6 and 5 more; soft placement does not relax this"#]],
    );
    malformed(
        &two_tasks(machine(1)),
        &format!("gpu:{}", "1\n".repeat(1000)),
        &expect![[r#"
        x_0: malformed device specification 'gpu:1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 ...': 'gpu:1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 ...' needs a number below 4294967296; expected something like '/job:localhost/replica:0/task:0/device:GPU:0', 'GPU:0', 'CPU' or '/job:worker', with '*' for any
          devices: /job:localhost/replica:0/task:0/device:CPU:0, /job:localhost/replica:0/task:0/device:GPU:0, /job:localhost/replica:0/task:0/device:GPU:1 and 10 more
          help: ask for one of /job:localhost/replica:0/task:0/device:CPU:0, /job:localhost/replica:0/task:0/device:GPU:0, /job:localhost/replica:0/task:0/device:GPU:1 and 10 more; soft placement does not relax this"#]],
    );
    assert_eq!(machine(1).device_spec("GPU:0").unwrap(), spec("GPU:0"));
}

#[test]
fn colocations_in_conflict() {
    let device = |name: &str| if name.len().is_multiple_of(2) { "GPU:0" } else { "CPU:0" };
    let items = || hundred(|name| asking(name, device(name)));
    refused(
        &together(hard(items())),
        &expect![[r#"
        x_10: can't be colocated with 'x_0': they ask for /device:GPU:0 and /device:CPU:0
          'x_0' at src/model.rs:10:9 asks for /device:CPU:0
          'x_10' at src/model.rs:20:9 asks for /device:GPU:0
          'x_1' at src/model.rs:11:9 asks for /device:CPU:0
          'x_2' at src/model.rs:12:9 asks for /device:CPU:0
          and 7 more operations
          devices: CPU:0, GPU:0
          with a kernel: CPU:0, GPU:0
          help: ask for the same device for all of them, take one out of the colocation, or turn soft placement on"#]],
    );
    // Only the last is in conflict with the ninety-nine before it.
    let mut last = hundred(|name| asking(name, "GPU:0"));
    last[99].requested = Some(spec("CPU:0"));
    refused(
        &together(hard(last)),
        &expect![[r#"
        x_99: can't be colocated with 'x_0': they ask for /device:CPU:0 and /device:GPU:0
          'x_0' at src/model.rs:10:9 asks for /device:GPU:0
          'x_99' at src/model.rs:109:9 asks for /device:CPU:0
          'x_1' at src/model.rs:11:9 asks for /device:GPU:0
          'x_2' at src/model.rs:12:9 asks for /device:GPU:0
          and 96 more operations
          devices: CPU:0, GPU:0
          with a kernel: CPU:0, GPU:0
          help: ask for the same device for all of them, take one out of the colocation, or turn soft placement on"#]],
    );
    // With soft placement the fields in conflict stay open, which explanations say.
    let solution = solve(together(soft(items()))).unwrap();
    expect![[r#"
        x_10 at src/model.rs:20:9 on CPU:0: GPU:0 requested, softened: 'x_0', colocated with it, asks for CPU:0
          CPU:0: 1.000 us by itself
          GPU:0: 1.100 us by itself
          on GPU:0 the run would take 50.000 us more
    "#]].assert_eq(&solution.explain_item(10).unwrap().to_string());
    assert!(solution.device.iter().all(|&device| device == solution.device[0]));
}

/// It is refused, or with soft placement dropped.
#[test]
fn colocations_without_a_common_kernel() {
    let kernels = || {
        let mut items = hundred(|name| not_on(1, item(name, 1)));
        items[99].refusals.reverse();
        items
    };
    refused(
        &together(hard(kernels())),
        &expect![[r#"
        x_99: can't be colocated with 'x_0': no device has a kernel for all that would share one
          'x_99' at src/model.rs:109:9 asks for no device
          'x_0' at src/model.rs:10:9 asks for no device
          'x_1' at src/model.rs:11:9 asks for no device
          'x_2' at src/model.rs:12:9 asks for no device
          and 96 more operations
          devices: CPU:0, GPU:0
          with a kernel: none
          CPU:0 can't run 'x_99': unsupported: sort of i64
          GPU:0 can't run 'x_0': unsupported: sort of i64
          GPU:0 can't run 'x_1': unsupported: sort of i64
          GPU:0 can't run 'x_2': unsupported: sort of i64
          help: take one out of the colocation, or turn soft placement on"#]],
    );
    let solution = solve(together(soft(kernels()))).unwrap();
    expect![[r#"
        x_99 at src/model.rs:109:9 on GPU:0: only kernel (CPU:0: unsupported: sort of i64)
          not with x_0: no device has a kernel for all that would share one
          CPU:0: excluded, unsupported: sort of i64
          GPU:0: 1.100 us by itself
    "#]]
    .assert_eq(&solution.explain_item(99).unwrap().to_string());
}

#[test]
fn resource_edges_that_cannot_be_met() {
    // Two variables that ask for different devices, and what uses both.
    let both = |build: fn(Vec<Item>) -> Problem| {
        let mut items = hundred(|name| item(name, 1));
        items[0] = at_line(10, held("w", "GPU:0"));
        items[1] = at_line(11, held("v", "CPU:0"));
        let resource_edges = (2..100).map(|user| (0, user)).chain([(1, 99)]).collect();
        Problem { resource_edges, ..build(items) }
    };
    for build in [hard, soft] {
        refused(
            &both(build),
            &expect![[r#"
        x_99: must be on the device of 'v', which it uses: variables ask for /device:CPU:0 and /device:GPU:0
          variable 'w' at src/model.rs:10:9 asks for /device:GPU:0
          variable 'v' at src/model.rs:11:9 asks for /device:CPU:0
          'x_99' at src/model.rs:109:9 asks for no device
          'x_2' at src/model.rs:12:9 asks for no device
          and 96 more operations
          devices: CPU:0, GPU:0
          with a kernel: CPU:0, GPU:0
          help: ask for the same device for all of them; soft placement does not relax this"#]],
        );
    }
}

/// A variable with users of which the last has no kernel where all others have theirs.
#[test]
fn resource_edges_without_a_common_kernel() {
    let users = |build: fn(Vec<Item>) -> Problem| {
        let mut items = hundred(|name| not_on(1, item(name, 1)));
        items[0] = at_line(10, variable("w"));
        items[99].refusals.reverse();
        let resource_edges = (1..100).map(|user| (0, user)).collect();
        Problem { resource_edges, ..build(items) }
    };
    for build in [hard, soft] {
        refused(
            &users(build),
            &expect![[r#"
        x_99: must be on the device of 'w', which it uses: no device has a kernel for all that would share one
          variable 'w' at src/model.rs:10:9 asks for no device
          'x_99' at src/model.rs:109:9 asks for no device
          'x_1' at src/model.rs:11:9 asks for no device
          'x_2' at src/model.rs:12:9 asks for no device
          and 96 more operations
          devices: CPU:0, GPU:0
          with a kernel: none
          CPU:0 can't run 'x_99': unsupported: sort of i64
          GPU:0 can't run 'x_1': unsupported: sort of i64
          GPU:0 can't run 'x_2': unsupported: sort of i64
          GPU:0 can't run 'x_3': unsupported: sort of i64
          help: give 'w' a dtype that both have kernels for; soft placement does not relax this"#]],
        );
    }
}

#[test]
fn no_devices_at_all() {
    let problem = |items: Vec<Item>| Problem { items, ..Problem::new(Vec::new()) };
    let none = |items: Vec<Item>, expected: &Expect| {
        let error = solve(problem(items)).unwrap_err();
        said(&error, ErrorKind::FailedPrecondition, expected);
    };
    none(
        hundred(|name| asking(name, "GPU:0")),
        &expect![[r#"
        no devices are registered: a session needs at least the CPU
          'x_0' at src/model.rs:10:9 asks for /device:GPU:0
          'x_1' at src/model.rs:11:9 asks for /device:GPU:0
          'x_2' at src/model.rs:12:9 asks for /device:GPU:0
          'x_3' at src/model.rs:13:9 asks for /device:GPU:0
          and 96 more operations
          devices: none
          help: open devices, with the CPU among them"#]],
    );
    none(
        vec![item("x", 1), Item { assigned: Some(0), ..variable("w") }],
        &expect![[r#"
        no devices are registered: a session needs at least the CPU
          'x' asks for no device
          devices: none
          help: open devices, with the CPU among them"#]],
    );
    none(
        Vec::new(),
        &expect![[r#"
        no devices are registered: a session needs at least the CPU
          devices: none
          help: open devices, with the CPU among them"#]],
    );
}

#[test]
fn a_budget_that_cannot_hold_one_node() {
    // A hundred tensors of a megabyte go into one node, which only GPUs have a kernel for.
    let mut problem = many_devices(hard(vec![at_line(12, not_on(0, item("concat", 1)))]));
    problem.items[0].refusals = (0..13).map(|d| (d == 0).then(|| "no kernel".into())).collect();
    problem.tensors = (0..100)
        .map(|i| edge(&format!("x_{i}:0"), 1_000_000 + i, Producer::Host, &[0]))
        .chain([fetched(edge("concat:0", 100_000_000, Producer::Item(0), &[]))])
        .collect();
    problem.devices[1..].iter_mut().for_each(|gpu| gpu.memory_bytes = 64 << 20);
    let error = solve(&problem).unwrap_err();
    said(
        &error,
        ErrorKind::ResourceExhausted,
        &expect![[r#"
        concat: GPU:0 has 67108864 bytes of memory, and what can't be anywhere else takes at least 100004950
          'concat' at src/model.rs:12:9 needs 100004950 bytes for what it reads and makes
          'concat:0' takes 100000000 bytes
          'x_99:0' takes 1000099 bytes
          'x_98:0' takes 1000098 bytes
          'x_97:0' takes 1000097 bytes
          and 97 more tensors
          CPU:0 has 1073741824 bytes
          GPU:1 has 67108864 bytes
          GPU:2 has 67108864 bytes
          GPU:3 has 67108864 bytes
          and 8 more devices
          help: use smaller tensors or batches, let variables be on other devices, or raise the device's budget"#]],
    );
    // A variable that is there at all times, and the host itself.
    let mut problem = hard(vec![Item { assigned: Some(1), ..variable("w") }, item("sum", 1)]);
    problem.tensors = vec![
        edge("w:0", 2_000_000, Producer::Item(0), &[1]),
        fetched(edge("sum:0", 4, Producer::Item(1), &[])),
    ];
    problem.devices[1].memory_bytes = 1_000_000;
    let error = solve(&problem).unwrap_err();
    said(
        &error,
        ErrorKind::ResourceExhausted,
        &expect![[r#"
            sum: GPU:0 has 1000000 bytes of memory, and what can't be anywhere else takes at least 2000004
              'sum' needs 4 bytes for what it reads and makes
              variables and constants there take 2000000 bytes at all times
              'w:0' takes 2000000 bytes
              'sum:0' takes 4 bytes
              CPU:0 has 1073741824 bytes
              help: use smaller tensors or batches, let variables be on other devices, or raise the device's budget"#]],
    );
    let mut problem = Problem { items: vec![at_line(3, item("grow", 1))], ..machine(0) };
    problem.tensors = vec![fetched(edge("grow:0", 8000, Producer::Item(0), &[]))];
    problem.devices[0].memory_bytes = 4000;
    let error = solve(&problem).unwrap_err();
    said(
        &error,
        ErrorKind::ResourceExhausted,
        &expect![[r#"
        grow: CPU:0 has 4000 bytes of memory, and what can't be anywhere else takes at least 8000
          'grow' at src/model.rs:3:9 needs 8000 bytes for what it reads and makes
          'grow:0' takes 8000 bytes
          help: use smaller tensors or batches, let variables be on other devices, or raise the device's budget"#]],
    );
}
