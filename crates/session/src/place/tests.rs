//! What the placement problem gets from a graph.

use std::cell::RefCell;

use convoke_compiler::{CompileOptions, GroupLimits, InputFact, Signature, compile};
use convoke_graph_core::{DType, ErrorKind, Graph, Init, Operation, Tensor, Variable};

use super::*;

/// The problem of a run of `targets`, of which every operation is a group of its own.
fn problem(g: &Graph, state: &State, options: &SessionOptions, targets: &[&Operation]) -> Problem {
    let graph = g.snapshot();
    let targets = targets.iter().map(|target| target.id()).collect();
    let plan = Plan::new(&graph, Signature { targets, ..Signature::default() }).unwrap();
    problem_of(&graph, &plan, state, options, &[])
}

/// The problem of a plan that is fed such tensors.
fn problem_of(
    graph: &GraphSnapshot,
    plan: &Plan,
    state: &State,
    options: &SessionOptions,
    fed: &[InputFact],
) -> Problem {
    let devices = Devices::cpu();
    let placing = Placing {
        known: &Known::default(),
        unsettles: false,
        devices: &devices,
        graph,
        plan,
        homes: &vec![HOST; fed.len()],
        state,
        options,
        threads: 1,
        refused: &[],
        grown: &LastGrown::default(),
        placed: OnceCell::new(),
    };
    let found = RefCell::new(None);
    let place = |unplaced: &Unplaced<'_>| {
        *found.borrow_mut() = Some(placing.problem(unplaced, &unplaced.variables(), None)?.0);
        placing.place(unplaced)
    };
    let options = CompileOptions { limits: GroupLimits::SINGLE, simplify: false, place: &place };
    compile(plan, fed, &options).unwrap();
    found.into_inner().unwrap()
}

fn name(operation: &Operation) -> String {
    operation.node().name.to_string()
}

fn variable(g: &Graph, name: &str) -> Variable {
    g.variable(name, Init::Zeros, DType::F32, [4])
}

/// The names of what is to share a device.
fn named(problem: &Problem, pairs: &[(usize, usize)]) -> Vec<(String, String)> {
    let name = |item: usize| problem.items[item].name.clone();
    pairs.iter().map(|&(a, b)| (name(a), name(b))).collect()
}

#[test]
fn colocations_come_in_the_order_of_the_graph() {
    let g = Graph::new();
    let (v, w) = (variable(&g, "v"), variable(&g, "w"));
    let a = &v + &w;
    let b = g.colocate_with(&a.operation(), || &v * &w);
    let c = g.colocate_with(&b.operation(), || g.colocate_with(&a.operation(), || &v - &w));
    // A read or an assignment stands for its variable.
    let d = g.colocate_with(&v.value().operation(), || &w * &w);
    let store = v.assign(&d);
    let e = g.colocate_with(&store.operation(), || w.value().sin());
    let operations = [&a, &b, &c, &d, &e, &store].map(|tensor| tensor.operation());
    let [a, b, c, d, e, _] = operations.each_ref().map(name);
    let options = SessionOptions::default();
    let targets: Vec<&Operation> = operations.iter().collect();
    let problem = problem(&g, &State::default(), &options, &targets);
    let expected = [(&b, &a), (&c, &b), (&c, &a), (&d, &"v".to_owned()), (&e, &"v".to_owned())];
    let expected = expected.map(|(item, with)| (item.clone(), with.clone()));
    assert_eq!(named(&problem, &problem.colocations), expected);
    assert!(problem.resource_edges.is_empty());
}

/// What others are to be with counts where it is not computed: they are together, where it asks to be.
#[test]
fn what_is_not_computed_says_where_its_company_is() {
    let g = Graph::new();
    let (v, w, u) = (variable(&g, "v"), variable(&g, "w"), variable(&g, "u"));
    let near = g.device("GPU:3", || u.value().sin());
    let with = |x: &Tensor| g.colocate_with(&near.operation(), || x.exp());
    let (b, c) = (with(v.value()), with(w.value()));
    let further = g.colocate_with(&u.handle().operation(), || u.value().cos());
    let d = g.colocate_with(&further.operation(), || v.value().tan());
    let targets = [&b, &c, &d].map(|tensor| tensor.operation());
    let targets: Vec<&Operation> = targets.iter().collect();
    let state = State::default();
    state.lock().entry(&u.handle().node(), HOST).settled = true;
    let options = SessionOptions { soft_placement: true, ..SessionOptions::default() };
    let problem = problem(&g, &state, &options, &targets);
    let name = |tensor: &Tensor| name(&tensor.operation());
    let pairs = [(&b, name(&near)), (&c, name(&near)), (&d, name(&further))];
    let mut expected = pairs.map(|(own, with)| (name(own), with)).to_vec();
    expected.insert(2, (name(&further), "u".to_owned()));
    let mut found = named(&problem, &problem.colocations);
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let item = |name: &str| problem.items.iter().find(|item| item.name == name).unwrap();
    assert_eq!(item(&name(&near)).requested, Some("GPU:3".parse().unwrap()));
    assert_eq!(item("u").assigned, Some(0));
    // It asks as others do: with soft placement it gives way.
    assert!(solve(&problem).unwrap().to_string().contains("GPU:3 requested, softened"));
    let hard = Problem { soft_placement: false, ..problem };
    let error = solve(&hard).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("GPU:3"), "{error}");
}

#[test]
fn an_assignment_that_asks_uses_its_variable() {
    let g = Graph::new();
    let (v, w) = (variable(&g, "v"), variable(&g, "w"));
    let sum = &v + &w;
    let store = g.device("GPU:3", || v.assign(&sum).operation());
    let other = w.assign(&sum).operation();
    let options = SessionOptions { soft_placement: true, ..SessionOptions::default() };
    let problem = problem(&g, &State::default(), &options, &[&store, &other]);
    assert_eq!(named(&problem, &problem.resource_edges), [("v".into(), name(&store))]);
    let last = problem.items.last().unwrap();
    assert_eq!((last.requested.clone(), last.is_resource), (Some("GPU:3".parse().unwrap()), true));
    let solution = solve(&problem).unwrap();
    assert!(solution.to_string().contains("GPU:3 requested, softened"), "{solution}");
    let hard = Problem { soft_placement: false, ..problem };
    let error = solve(&hard).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("GPU:3"), "{error}");
}

/// What reads variables above all finds them where all that the run reads lie, each counted once.
#[test]
fn variables_lie_among_those_of_the_run() {
    let g = Graph::new();
    let (a, b) = (variable(&g, "a"), variable(&g, "b"));
    let table = g.variable("table", Init::Zeros, DType::F32, [1000, 4]);
    let sum = a.value() + b.value();
    let tanh = sum.tanh();
    let other = &sum * a.value() + &tanh;
    let row = table.value().gather(g.constant([3i32]), 0);
    let stored = [a.assign(&sum).operation(), b.assign(&other).operation()];
    let all = [&stored[0], &stored[1], &row.operation()];
    let found = problem(&g, &State::default(), &SessionOptions::default(), &all);
    let among = |name: &str| {
        let item = found.items.iter().find(|item| item.name.starts_with(name)).unwrap();
        (item.work.bytes, item.work.among)
    };
    // 16 bytes each of a and b; a table is not gone through.
    assert_eq!(among(&sum.node().name), (48, 32));
    // Nothing of its own; a table as it is.
    assert_eq!(among(&tanh.node().name).1, 0);
    assert_eq!(among(&row.node().name).1, 16_000);
}

#[test]
fn a_settled_variable_is_assigned_and_a_policy_prefers() {
    let g = Graph::new();
    let (v, w) = (variable(&g, "v"), variable(&g, "w"));
    let sum = (&v + &w).operation();
    let state = State::default();
    state.lock().entry(&v.handle().node(), HOST).settled = true;
    let policy = DevicePolicy::Prefer("/cpu:0".into());
    let options = SessionOptions { policy, ..SessionOptions::default() };
    let problem = problem(&g, &state, &options, &[&sum]);
    let assigned: Vec<Option<usize>> = problem.items.iter().map(|item| item.assigned).collect();
    assert_eq!(assigned, [Some(0), None, None]);
    assert_eq!(problem.preferred, Some(0));
}

#[test]
fn devices_have_short_and_long_names() {
    let devices = Devices::cpu();
    for name in ["CPU:0", "cpu:0", "/cpu:0", "/device:CPU:0", "/job:localhost/task:0/cpu:0"] {
        assert_eq!(devices.index_of(name).unwrap(), 0, "{name}");
    }
    for name in ["GPU:0", "CPU", "CPU:1", "/job:x/cpu:0", "cpu:x", ""] {
        assert_eq!(devices.index_of(name).unwrap_err().kind(), ErrorKind::NotFound, "{name}");
    }
}

/// Each iteration of a loop that is written out has its own item for a node, and all of them share the device.
#[test]
fn all_iterations_are_colocated() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, [4]);
    let y = g
        .while_loop(
            (g.constant(0i32), x.clone()),
            |(i, _)| i.less(3),
            |(i, x)| {
                let a = x.tanh();
                let b = g.colocate_with(&a.operation(), || a.exp());
                (i + 1, b)
            },
        )
        .1;
    let graph = g.snapshot();
    let signature =
        Signature { feeds: vec![x.output()], fetches: vec![y.output()], ..Signature::default() };
    let plan = Plan::new(&graph, signature).unwrap();
    let shape = convoke_graph_core::Shape::new(&[4]).unwrap();
    let fed = [InputFact { shape, contents: None, donated: None }];
    let problem = problem_of(&graph, &plan, &State::default(), &SessionOptions::default(), &fed);
    let own = |name: &str| -> Vec<usize> {
        let items = problem.items.iter().enumerate();
        items.filter(|(_, item)| item.name == name).map(|(at, _)| at).collect()
    };
    let (a, b) = (own("tanh"), own("exp"));
    assert_eq!((a.len(), b.len()), (3, 3));
    // What is tied to the first of them, through others or not.
    let mut tied = vec![a[0]];
    for _ in 0..6 {
        for &(item, with) in &problem.colocations {
            if tied.contains(&item) != tied.contains(&with) {
                tied.extend([item, with]);
            }
        }
    }
    assert!(a.iter().chain(&b).all(|item| tied.contains(item)), "{:?}", problem.colocations);
}
