//! Which devices are legal, and what is said where none is.

use convoke_graph_core::ErrorKind;
use expect_test::{Expect, expect};

use super::*;
use crate::{Decision, solve};

/// An item that asks for a device.
pub(super) fn asking(name: &str, device: &str) -> Item {
    Item { requested: Some(spec(device)), ..item(name, 1) }
}

/// Without a kernel on device `d` of two.
pub(super) fn not_on(d: usize, item: Item) -> Item {
    let refusal = |at: usize| (at == d).then(|| "unsupported: sort of i64".to_owned());
    Item { refusals: vec![refusal(0), refusal(1)], ..item }
}

/// A variable that asks for a device.
pub(super) fn held(name: &str, device: &str) -> Item {
    Item { requested: Some(spec(device)), ..variable(name) }
}

pub(super) fn hard(items: Vec<Item>) -> Problem {
    Problem { items, ..machine(1) }
}

pub(super) fn soft(items: Vec<Item>) -> Problem {
    Problem { soft_placement: true, ..hard(items) }
}

/// All items colocated with the first.
pub(super) fn together(problem: Problem) -> Problem {
    let colocations = (1..problem.items.len()).map(|item| (item, 0)).collect();
    Problem { colocations, ..problem }
}

/// All items using the first.
fn using_first(problem: Problem) -> Problem {
    let resource_edges = (1..problem.items.len()).map(|item| (0, item)).collect();
    Problem { resource_edges, ..problem }
}

/// The devices chosen for items on the CPU and a GPU.
#[track_caller]
fn placed(problem: &Problem) -> Vec<usize> {
    solve(problem).unwrap().device
}

#[track_caller]
fn decisions(problem: &Problem) -> Vec<Decision> {
    solve(problem).unwrap().reasons().iter().map(|reason| reason.decision.clone()).collect()
}

#[track_caller]
fn refused(problem: &Problem, expected: &Expect) {
    let error = solve(problem).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().lines().count() <= 15);
    expected.assert_eq(&error.to_string());
}

#[test]
fn requests_filter_devices() {
    let cases = [("GPU:0", 1), ("gpu", 1), ("CPU:0", 0), ("/task:0/cpu", 0), ("*", 0)];
    for (device, expected) in cases {
        for build in [hard, soft] {
            assert_eq!(placed(&build(vec![asking("a", device)])), [expected], "{device}");
        }
    }
}

#[test]
fn a_kernel_decides_where_there_is_one() {
    let items = vec![not_on(0, item("a", 1)), not_on(1, item("b", 9999))];
    assert_eq!(placed(&hard(items)), [1, 0]);
}

#[test]
fn colocation_intersects_kernels_and_merges_requests() {
    let gpu_only = not_on(0, item("a", 1));
    assert_eq!(placed(&together(hard(vec![gpu_only, item("b", 1)]))), [1, 1]);
    let items = vec![asking("a", "GPU"), asking("b", "/task:0/device:*:0")];
    assert_eq!(placed(&together(hard(items))), [1, 1]);
}

#[test]
fn a_variables_request_overrules_its_users() {
    for build in [hard, soft] {
        let items = vec![held("w", "GPU:0"), asking("assign", "CPU:0")];
        let problem = using_first(build(items));
        assert_eq!(placed(&problem), [1, 1]);
        let requested = spec("CPU:0");
        assert_eq!(decisions(&problem)[1], Decision::Overruled { requested, by: 0 });
    }
    // A variable that asks for nothing goes where its users ask; the first of them, if they disagree.
    let items = vec![variable("w"), asking("a", "GPU"), asking("b", "CPU")];
    assert_eq!(placed(&using_first(hard(items))), [1, 1, 1]);
}

#[test]
fn a_variables_request_overrules_what_its_users_take_from_elsewhere() {
    // 'b' uses 'w', and what 'a' passes on: in whichever order that is said, 'w' decides.
    for resource_edges in [vec![(0, 2), (1, 2)], vec![(1, 2), (0, 2)]] {
        let items = vec![held("w", "CPU:0"), asking("a", "GPU:0"), item("b", 1)];
        let problem = Problem { resource_edges, ..hard(items) };
        assert_eq!(placed(&problem), [0, 0, 0]);
        let by = |decision: &Decision| matches!(decision, Decision::Overruled { .. });
        assert!(by(&decisions(&problem)[1]));
    }
}

#[test]
fn an_overruled_wish_does_not_stand_in_the_way_of_others() {
    // 'a' would have CPU:0, and counts no more when 'c' asks for the second of its kind.
    let on_two_gpus = |items: Vec<Item>, resource_edges: Vec<(usize, usize)>| Problem {
        items,
        resource_edges,
        ..machine(2)
    };
    let [w, a, b, c] =
        [held("w", "GPU"), asking("a", "CPU:0"), item("b", 1), asking("c", "/device:*:1")];
    let as_user = vec![(0, 1), (0, 3)];
    let problem = on_two_gpus(vec![w.clone(), a.clone(), b.clone(), c.clone()], as_user);
    assert_eq!(placed(&problem), [2, 2, 0, 2]);
    let as_source = vec![(0, 2), (1, 2), (0, 3)];
    let problem = on_two_gpus(vec![w.clone(), a.clone(), b.clone(), c], as_source);
    assert_eq!(placed(&problem), [2, 2, 2, 2]);
    // What binds is not overruled with the wishes beside it.
    let items = vec![held("v", "/device:*:0"), w.clone(), a.clone()];
    let problem = on_two_gpus(items, vec![(0, 2), (1, 2)]);
    assert_eq!(placed(&problem), [1, 1, 1]);
    assert_eq!(decisions(&problem)[0], Decision::Requested { spec: spec("/device:*:0") });
    // Nor is it what keeps others away.
    let w = Item { requested: Some(spec("GPU:0")), ..w };
    let solution = solve(on_two_gpus(vec![a, w, b], vec![(1, 0), (1, 2)])).unwrap();
    let excluded = |d: usize| solution.reasons()[2].candidates[d].excluded.as_deref();
    let by_w = Some("'w', colocated with it, can't be there");
    assert_eq!([0, 1, 2].map(excluded), [by_w, None, by_w]);
}

#[test]
fn a_store_into_a_variable_does_not_bind_it() {
    let store = |device: &str| Item { is_resource: true, ..asking("w/assign", device) };
    let problem = using_first(hard(vec![held("w", "GPU:0"), store("CPU:0")]));
    assert_eq!(placed(&problem), [1, 1]);
    let problem = using_first(hard(vec![variable("w"), store("GPU:0")]));
    assert_eq!(placed(&problem), [1, 1]);
}

#[test]
fn soft_placement_relaxes_type_and_index() {
    assert_eq!(placed(&soft(vec![asking("a", "GPU:11")])), [0]);
    assert_eq!(placed(&soft(vec![asking("a", "/device:TPU:0")])), [0]);
    assert_eq!(placed(&soft(vec![not_on(1, asking("a", "GPU:0"))])), [0]);
    assert_eq!(placed(&soft(vec![not_on(0, asking("a", "CPU:0"))])), [1]);
    // Conflicting requests drop the field, and it stays open.
    let items = vec![asking("a", "GPU:0"), asking("b", "CPU:0"), asking("c", "GPU:0")];
    assert_eq!(placed(&together(soft(items))), [0, 0, 0]);
    // So do indices, and the type stays.
    let items = vec![asking("a", "GPU:0"), asking("b", "GPU:1")];
    let problem = together(Problem { items, soft_placement: true, ..machine(2) });
    assert_eq!(placed(&problem), [1, 1]);
    assert!(solve(&Problem { soft_placement: false, ..problem }).is_err());
    // Wishes give way before variables do.
    let items = vec![held("w", "GPU"), asking("a", "/device:*:7")];
    assert_eq!(placed(&using_first(soft(items))), [1, 1]);
    // A variable moves only where nothing else helps.
    let items = vec![held("w", "GPU:0"), not_on(1, item("assign", 1))];
    let problem = using_first(soft(items));
    assert_eq!(placed(&problem), [0, 0]);
    let why = "'assign', colocated with it, can't be there".to_owned();
    let requested = spec("GPU:0");
    assert_eq!(decisions(&problem)[0], Decision::Softened { requested, why });
}

#[test]
fn soft_placement_drops_the_one_colocation_that_fails() {
    // 'c' asks to be with 'a' and with 'd'. The first can't be; the second is heard all the same.
    let items = vec![not_on(1, item("a", 1)), item("b", 1), not_on(0, item("c", 1)), item("d", 1)];
    let problem = Problem { colocations: vec![(1, 0), (2, 0), (2, 3)], ..soft(items) };
    let solution = solve(&problem).unwrap();
    assert_eq!(solution.device, [0, 0, 1, 1]);
    let dropped = |item: usize| &solution.reasons()[item].dropped[..];
    let [one] = dropped(2) else { panic!("{:?}", dropped(2)) };
    assert_eq!(one.with, 0);
    assert!(one.why.contains("no device has a kernel"), "{}", one.why);
    assert!([0, 1, 3].map(dropped).iter().all(|dropped| dropped.is_empty()));
    expect![[r#"
        c on GPU:0: only kernel (CPU:0: unsupported: sort of i64)
          not with a: no device has a kernel for all that would share one
          CPU:0: excluded, unsupported: sort of i64
          GPU:0: 1.100 us by itself
    "#]]
    .assert_eq(&solution.explain_item(2).unwrap().to_string());
    // The same colocation is refused without soft placement.
    let refused = solve(&Problem { soft_placement: false, ..problem }).unwrap_err();
    assert_eq!(refused.node(), Some("c"));
}

#[test]
fn a_dropped_colocation_leaves_no_request_behind() {
    // Both ask for devices of their own; the kernels don't meet. TensorFlow leaves the merged request
    // behind, so that 'b' would be on any device.
    let items =
        vec![not_on(1, asking("a", "CPU:0")), not_on(0, asking("b", "GPU:0")), item("c", 1)];
    let problem = Problem { colocations: vec![(1, 0), (2, 1)], ..soft(items) };
    let requested = |device: &str| Decision::Requested { spec: spec(device) };
    assert_eq!(placed(&problem), [0, 1, 1]);
    assert_eq!(decisions(&problem)[2], Decision::Colocated { with: 1 });
    let items = vec![held("v", "CPU:0"), held("w", "GPU:0")];
    let problem = together(soft(items));
    assert_eq!(decisions(&problem), [requested("CPU:0"), requested("GPU:0")]);
}

#[test]
fn assignments_overrule_requests() {
    let lives = |item: Item, device: usize| Item { assigned: Some(device), ..item };
    for build in [hard, soft] {
        let problem = using_first(build(vec![lives(held("w", "CPU:0"), 1), asking("a", "CPU:0")]));
        assert_eq!(placed(&problem), [1, 1]);
        let requested = spec("CPU:0");
        let overruled = Decision::Overruled { requested, by: 0 };
        assert_eq!(decisions(&problem), [Decision::Assigned, overruled]);
    }
    // A variable gives way to an assigned user, if anything may give way.
    let problem = using_first(soft(vec![held("w", "GPU:0"), lives(item("a", 1), 0)]));
    assert_eq!(placed(&problem), [0, 0]);
    let problem = Problem { soft_placement: false, ..problem };
    refused(
        &problem,
        &expect![[r#"
        a: must be on the device of 'w', which it uses: one is assigned to /job:localhost/replica:0/task:0/device:CPU:0, and a variable asks for /device:GPU:0
          variable 'w' asks for /device:GPU:0
          'a' is assigned to CPU:0
          devices: CPU:0, GPU:0
          with a kernel: CPU:0, GPU:0
          help: ask for the same device for all of them, or turn soft placement on"#]],
    );
    // The colocation of two that live elsewhere is dropped.
    let problem = together(soft(vec![lives(variable("v"), 0), lives(variable("w"), 1)]));
    assert_eq!(placed(&problem), [0, 1]);
    // So is one that would leave no device.
    let problem = together(soft(vec![lives(variable("w"), 1), not_on(1, item("a", 1))]));
    assert_eq!(placed(&problem), [1, 0]);
}

#[test]
fn what_only_the_library_can_get_wrong_is_internal() {
    let lives = |device: usize| Item { assigned: Some(device), ..not_on(1, item("a", 1)) };
    for (device, expected) in [(2, "there are 2"), (1, "assigned to GPU:0, which has no kernel")] {
        for build in [hard, soft] {
            let error = solve(build(vec![lives(device)])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal);
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(error.node(), Some("a"));
        }
    }
    for pair in [(0, 1), (1, 0)] {
        let problem = Problem { colocations: vec![pair], ..hard(vec![item("a", 1)]) };
        assert_eq!(solve(&problem).unwrap_err().kind(), ErrorKind::Internal);
        let problem = Problem { resource_edges: vec![pair], ..hard(vec![item("a", 1)]) };
        assert_eq!(solve(&problem).unwrap_err().kind(), ErrorKind::Internal);
    }
    let problem = Problem { preferred: Some(2), ..hard(vec![item("a", 1)]) };
    assert_eq!(solve(&problem).unwrap_err().kind(), ErrorKind::Internal);
    for name in ["/job:localhost/replica:0/task:0/device:CPU:0", "GPU:0"] {
        let mut problem = hard(vec![item("a", 1)]);
        problem.devices[1].name = spec(name);
        let error = solve(&problem).unwrap_err();
        assert!(error.to_string().contains("device 1 needs a full name of its own"), "{error}");
    }
}

#[test]
fn the_preferred_device_takes_what_nobody_asked_for() {
    let items = vec![
        item("free", 1),
        asking("asks", "CPU:0"),
        not_on(1, item("no kernel", 1)),
        Item { assigned: Some(0), ..variable("lives") },
        item("with asks", 1),
        variable("w"),
        asking("asks for any", "/job:localhost"),
    ];
    let problem = Problem { colocations: vec![(4, 1)], preferred: Some(1), ..hard(items) };
    let solution = solve(&problem).unwrap();
    assert_eq!(solution.device, [1, 0, 0, 0, 0, 1, 0]);
    assert_eq!(solution.reasons()[0].decision, Decision::Preferred);
    assert_eq!(solution.reasons()[3].decision, Decision::Assigned);
    assert_eq!(solution.reasons()[4].decision, Decision::Colocated { with: 1 });
    expect![[r#"
        free on GPU:0: the session prefers it
          CPU:0: excluded, the session prefers another device
          GPU:0: 1.100 us by itself
    "#]]
    .assert_eq(&solution.explain_item(0).unwrap().to_string());
}

#[test]
fn softened_requests_say_why() {
    let problem = soft(vec![not_on(1, asking("a", "GPU:0")), asking("b", "GPU:3")]);
    let reasons = solve(&problem).unwrap().reasons().to_vec();
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
        &hard(vec![missing]),
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
        &soft(vec![asking("a", "/job:worker/gpu:0")]),
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
        &hard(vec![not_on(1, asking("a", "GPU:0"))]),
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
        &soft(items),
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
fn an_operation_that_uses_a_variable_without_a_kernel_there() {
    // 'gather' and the variable are on the GPU; then comes a class of 40 without a kernel there.
    let mut items = vec![variable("w"), not_on(0, item("gather", 1))];
    items.extend((0..40).map(|i| not_on(1, item(&format!("sort_{i}"), 1))));
    let mut resource_edges: Vec<(usize, usize)> = (3..42).map(|item| (2, item)).collect();
    resource_edges.extend([(0, 1), (0, 2)]);
    let expected = expect![[r#"
        sort_0: must be on the device of 'w', which it uses: no device has a kernel for all that would share one
          variable 'w' asks for no device
          'sort_0' asks for no device
          'gather' asks for no device
          'sort_1' asks for no device
          and 38 more operations
          devices: CPU:0, GPU:0
          with a kernel: none
          GPU:0 can't run 'sort_0': unsupported: sort of i64
          CPU:0 can't run 'gather': unsupported: sort of i64
          GPU:0 can't run 'sort_1': unsupported: sort of i64
          GPU:0 can't run 'sort_2': unsupported: sort of i64
          help: give 'w' a dtype that both have kernels for; soft placement does not relax this"#]];
    for build in [hard, soft] {
        refused(
            &Problem { resource_edges: resource_edges.clone(), ..build(items.clone()) },
            &expected,
        );
    }
}

#[test]
fn colocated_operations_without_a_common_device() {
    let items = vec![not_on(0, item("gather", 1)), not_on(1, item("sort", 1))];
    refused(
        &together(hard(items)),
        &expect![[r#"
        sort: can't be colocated with 'gather': no device has a kernel for all that would share one
          'sort' asks for no device
          'gather' asks for no device
          devices: CPU:0, GPU:0
          with a kernel: none
          GPU:0 can't run 'sort': unsupported: sort of i64
          CPU:0 can't run 'gather': unsupported: sort of i64
          help: take one out of the colocation, or turn soft placement on"#]],
    );
}

#[test]
fn colocated_operations_that_ask_for_different_devices() {
    refused(
        &together(hard(vec![asking("a", "GPU:0"), item("b", 1), asking("c", "CPU:0")])),
        &expect![[r#"
            c: can't be colocated with 'a': they ask for /device:CPU:0 and /device:GPU:0
              'a' asks for /device:GPU:0
              'c' asks for /device:CPU:0
              'b' asks for no device
              devices: CPU:0, GPU:0
              with a kernel: CPU:0, GPU:0
              help: ask for the same device for all of them, take one out of the colocation, or turn soft placement on"#]],
    );
}

#[test]
fn variables_that_ask_for_different_devices() {
    let items = vec![held("w", "GPU:0"), held("v", "CPU:0"), item("both", 1)];
    let problem = Problem { resource_edges: vec![(0, 2), (1, 2)], ..soft(items) };
    refused(
        &problem,
        &expect![[r#"
            both: must be on the device of 'v', which it uses: variables ask for /device:CPU:0 and /device:GPU:0
              variable 'w' asks for /device:GPU:0
              variable 'v' asks for /device:CPU:0
              'both' asks for no device
              devices: CPU:0, GPU:0
              with a kernel: CPU:0, GPU:0
              help: ask for the same device for all of them; soft placement does not relax this"#]],
    );
}

#[test]
fn a_group_that_forces_an_operation_off_its_device() {
    refused(
        &together(hard(vec![asking("a", "GPU:0"), not_on(1, item("b", 1))])),
        &expect![[r#"
        a: /device:GPU:0 was requested, and it has no kernel for all that is colocated here
          'a' asks for /device:GPU:0
          devices: CPU:0, GPU:0
          with a kernel: CPU:0
          GPU:0 can't run 'b': unsupported: sort of i64
          help: ask for CPU:0, or turn soft placement on"#]],
    );
}

#[test]
fn a_user_without_a_kernel_where_its_variable_lives() {
    let items = vec![Item { assigned: Some(1), ..variable("w") }, not_on(1, item("sort", 1))];
    refused(
        &using_first(soft(items)),
        &expect![[r#"
        sort: has to share GPU:0 with 'w', and it has no kernel there
          variable 'w' is assigned to GPU:0
          'sort' asks for no device
          devices: CPU:0, GPU:0
          with a kernel: CPU:0
          GPU:0 can't run 'sort': unsupported: sort of i64
          help: use another dtype or other attributes, or take the operation out of what shares GPU:0"#]],
    );
}

#[test]
fn long_chains_of_colocations_are_not_walked_by_recursion() {
    let n = 200_000;
    let items = (0..n).map(|i| item(&i.to_string(), 0)).collect();
    let colocations = (1..n).rev().map(|item| (item, item - 1)).collect();
    let problem = Problem { colocations, ..hard(items) };
    let classes = crate::legal::Classes::new(&problem).unwrap();
    assert_eq!((classes.len(), classes.members(0).len()), (1, n));
}
