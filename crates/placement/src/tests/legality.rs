//! Which devices are legal, and what is said where none is.

use convoke_graph_core::ErrorKind;
use expect_test::{Expect, expect};

use super::*;
use crate::{Decision, solve};

/// An item that asks for a device.
fn asking(name: &str, device: &str) -> Item {
    Item { requested: Some(spec(device)), ..item(name, 1) }
}

fn together(item: Item) -> Item {
    Item { colocation: Some(0), ..item }
}

/// Without a kernel on device `d` of two.
fn not_on(d: usize, item: Item) -> Item {
    let refusal = |at: usize| (at == d).then(|| "unsupported: sort of i64".to_owned());
    Item { refusals: vec![refusal(0), refusal(1)], ..item }
}

/// The devices chosen for items on the CPU and a GPU.
#[track_caller]
fn placed(soft_placement: bool, items: Vec<Item>) -> Vec<usize> {
    solve(&Problem { items, soft_placement, ..machine(1) }).unwrap().device
}

#[track_caller]
fn refused(soft_placement: bool, items: Vec<Item>, expected: &Expect) {
    let error = solve(&Problem { items, soft_placement, ..machine(1) }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().lines().count() <= 15);
    expected.assert_eq(&error.to_string());
}

#[test]
fn requests_filter_devices() {
    let cases = [("GPU:0", 1), ("gpu", 1), ("CPU:0", 0), ("/task:0/cpu", 0), ("*", 0)];
    for (device, expected) in cases {
        for soft in [false, true] {
            assert_eq!(placed(soft, vec![asking("a", device)]), [expected], "{device}");
        }
    }
}

#[test]
fn a_kernel_decides_where_there_is_one() {
    assert_eq!(placed(false, vec![not_on(0, item("a", 1)), not_on(1, item("b", 9999))]), [1, 0]);
}

#[test]
fn colocation_intersects_kernels_and_merges_requests() {
    let gpu_only = not_on(0, item("a", 1));
    assert_eq!(placed(false, vec![together(gpu_only), together(item("b", 1))]), [1, 1]);
    let items = vec![together(asking("a", "GPU")), together(asking("b", "/task:0/device:*:0"))];
    assert_eq!(placed(false, items), [1, 1]);
}

#[test]
fn a_variables_request_overrules_its_users() {
    let on_gpu = Item { requested: Some(spec("GPU:0")), ..variable("w", 0) };
    for soft in [false, true] {
        let items = vec![together(asking("assign", "CPU:0")), on_gpu.clone()];
        assert_eq!(placed(soft, items), [1, 1]);
    }
    // A variable that asks for nothing goes where its users ask.
    assert_eq!(placed(false, vec![variable("w", 0), together(asking("a", "GPU"))]), [1, 1]);
}

#[test]
fn soft_placement_relaxes_type_and_index() {
    assert_eq!(placed(true, vec![asking("a", "GPU:11")]), [0]);
    assert_eq!(placed(true, vec![asking("a", "/device:TPU:0")]), [0]);
    assert_eq!(placed(true, vec![not_on(1, asking("a", "GPU:0"))]), [0]);
    assert_eq!(placed(true, vec![not_on(0, asking("a", "CPU:0"))]), [1]);
    // Conflicting requests drop the field, and it stays open.
    let items = vec![
        together(asking("a", "GPU:0")),
        together(asking("b", "CPU:0")),
        together(asking("c", "GPU:0")),
    ];
    assert_eq!(placed(true, items), [0, 0, 0]);
    // A variable moves only where nothing else helps.
    let on_gpu = Item { requested: Some(spec("GPU:0")), ..variable("w", 0) };
    let items = vec![on_gpu, not_on(1, together(item("assign", 1)))];
    assert_eq!(placed(true, items), [0, 0]);
}

#[test]
fn softened_requests_say_why() {
    let problem = Problem {
        items: vec![not_on(1, asking("a", "GPU:0")), asking("b", "GPU:3")],
        soft_placement: true,
        ..machine(1)
    };
    let reasons = solve(&problem).unwrap().reasons;
    let why = |i: usize| match &reasons[i].decision {
        Decision::Softened { why, .. } => why.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(why(0), "unsupported: sort of i64");
    assert_eq!(why(1), "there is no such device");
}

#[test]
fn a_device_that_does_not_exist() {
    let mut missing = asking("logits", "GPU:3");
    missing.location = Some("src/model.rs:12:9".into());
    refused(
        false,
        vec![missing],
        &expect![[r#"
        logits: /device:GPU:3 was requested, and there is no such device
          'logits' at src/model.rs:12:9 asks for /device:GPU:3
          devices: CPU:0, GPU:0
          with a kernel: CPU:0, GPU:0
          help: ask for one of CPU:0, GPU:0, or turn soft placement on"#]],
    );
}

#[test]
fn a_job_that_does_not_exist_even_with_soft_placement() {
    refused(
        true,
        vec![asking("a", "/job:worker/gpu:0")],
        &expect![[r#"
        a: /job:worker/device:GPU:0 was requested, and there is no such device
          'a' asks for /job:worker/device:GPU:0
          devices: CPU:0, GPU:0
          with a kernel: CPU:0, GPU:0
          help: ask for one of CPU:0, GPU:0: soft placement never changes job, replica or task"#]],
    );
}

#[test]
fn a_device_without_a_kernel() {
    refused(
        false,
        vec![not_on(1, asking("a", "GPU:0"))],
        &expect![[r#"
        a: /device:GPU:0 was requested, and it has no kernel for this operation
          'a' asks for /device:GPU:0
          devices: CPU:0, GPU:0
          with a kernel: CPU:0
          GPU:0 can't run 'a': unsupported: sort of i64
          help: ask for CPU:0, or turn soft placement on"#]],
    );
}

#[test]
fn an_operation_without_any_kernel() {
    let refusals = vec![Some("unsupported: f16".into()), Some("unsupported: no f16 here".into())];
    let items = vec![Item { refusals, ..asking("a", "GPU:0") }];
    refused(
        true,
        items,
        &expect![[r#"
        a: no device has a kernel for this operation
          'a' asks for /device:GPU:0
          devices: CPU:0, GPU:0
          with a kernel: none
          CPU:0 can't run 'a': unsupported: f16
          GPU:0 can't run 'a': unsupported: no f16 here
          help: use another dtype or other attributes, or open a device that has such a kernel"#]],
    );
}

#[test]
fn colocated_operations_without_a_common_device() {
    let items = || {
        let mut items = vec![variable("w", 0), together(not_on(0, item("gather", 1)))];
        items.extend((0..40).map(|i| together(not_on(1, item(&format!("sort_{i}"), 1)))));
        items
    };
    let expected = expect![[r#"
        gather: 42 operations are colocated, and no device has a kernel for all of them
          variable 'w' asks for no device
          'gather' asks for no device
          'sort_0' asks for no device
          'sort_1' asks for no device
          and 38 more operations
          devices: CPU:0, GPU:0
          with a kernel: none
          CPU:0 can't run 'gather': unsupported: sort of i64
          GPU:0 can't run 'sort_0': unsupported: sort of i64
          GPU:0 can't run 'sort_1': unsupported: sort of i64
          GPU:0 can't run 'sort_2': unsupported: sort of i64
          help: take the operation that needs another device out of the colocation, or give the variable that ties them a dtype that both have kernels for"#]];
    refused(false, items(), &expected);
    // Soft placement does not help.
    let soft = Problem { items: items(), soft_placement: true, ..machine(1) };
    let hard = Problem { soft_placement: false, ..soft.clone() };
    let text = |problem| solve(problem).unwrap_err().to_string();
    assert_eq!(text(&soft), text(&hard));
}

#[test]
fn colocated_operations_that_ask_for_different_devices() {
    let items = vec![
        together(asking("a", "GPU:0")),
        together(item("b", 1)),
        together(asking("c", "CPU:0")),
    ];
    refused(
        false,
        items,
        &expect![[r#"
        c: colocated operations ask for different devices, which can't be merged
          'a' asks for /device:GPU:0
          'c' asks for /device:CPU:0
          devices: CPU:0, GPU:0
          with a kernel: CPU:0, GPU:0
          help: ask for the same device for all of them, take one out of the colocation, or turn soft placement on"#]],
    );
}

#[test]
fn variables_that_ask_for_different_devices() {
    let on = |name: &str, device: &str| Item { requested: Some(spec(device)), ..variable(name, 0) };
    refused(
        true,
        vec![on("w", "GPU:0"), on("v", "CPU:0")],
        &expect![[r#"
        v: colocated variables ask for different devices, which can't be merged
          variable 'w' asks for /device:GPU:0
          variable 'v' asks for /device:CPU:0
          devices: CPU:0, GPU:0
          with a kernel: CPU:0, GPU:0
          help: ask for the same device for all of them (soft placement does not relax this), or take one out of the colocation"#]],
    );
}

#[test]
fn a_group_that_forces_an_operation_off_its_device() {
    let items = vec![together(asking("a", "GPU:0")), together(not_on(1, item("b", 1)))];
    refused(
        false,
        items,
        &expect![[r#"
        a: /device:GPU:0 was requested, and it has no kernel for all that is colocated here
          'a' asks for /device:GPU:0
          devices: CPU:0, GPU:0
          with a kernel: CPU:0
          GPU:0 can't run 'b': unsupported: sort of i64
          help: ask for CPU:0, or turn soft placement on"#]],
    );
}
