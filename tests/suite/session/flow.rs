//! Branches, loops and assertions. TensorFlow: `python/kernel_tests/control_flow_ops_py_test.py`, by meaning.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{Build, CancelToken, LoopOptions, RunOptions, Shape, Structure, TensorArray};
use convoke_tests::{devices, fails_while};

fn on_host(g: &Graph) -> Session {
    Session::new(g, &Devices::cpu()).unwrap()
}

fn number(session: &Session, x: &Tensor) -> f32 {
    session.run(&[], x).unwrap().scalar::<f32>().unwrap()
}

fn whole(session: &Session, x: &Tensor) -> i32 {
    session.run(&[], x).unwrap().scalar::<i32>().unwrap()
}

/// A loop of `n` iterations over one tensor.
fn times(g: &Graph, n: i32, x: &Tensor, body: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
    let start = (g.constant(0i32), x.clone());
    g.while_loop(start, |(i, _)| i.less(n), |(i, x)| (i + 1, body(x))).1
}

#[test]
fn cond_1_runs_the_taken_branch_only() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(7.0), F32, []);
    let p = g.placeholder("p", Bool, dims![]);
    let y = g.cond(&p, || v.assign(1.0), || g.constant(-1.0f32));
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    let run = |p_: bool| session.run(&[p.feed(p_)], &y).unwrap().scalar::<f32>().unwrap();
    assert_eq!(run(false), -1.0);
    assert_eq!(number(&session, v.value()), 7.0);
    assert_eq!(run(true), 1.0);
    assert_eq!(number(&session, v.value()), 1.0);
}

#[test]
fn cond_on_devices() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None]);
        let w = g.variable("w", Init::Constant(3.0), F32, [4]);
        let y = g.cond(&x.sum(()).greater(0.0), || &x * &w, || -(&x));
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let run = |x_: [f32; 4]| session.run(&[x.feed(x_)], &y).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(run([1.0, 2.0, -1.0, 0.5]), [3.0, 6.0, -3.0, 1.5], "{}", device.name);
        assert_eq!(run([-1.0, -2.0, 1.0, 0.5]), [1.0, 2.0, -1.0, -0.5], "{}", device.name);
    }
}

#[test]
fn cond_outputs_keep_their_structure() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let branch = |x: f32| {
        let c = |k: f32| g.constant(x * k);
        (
            vec![c(1.0), c(2.0)],
            [c(3.0)],
            BTreeMap::from([("a", c(4.0)), ("b", c(5.0))]),
            Some(c(6.0)),
        )
    };
    let (list, [one], map, some) = g.cond(&p, || branch(1.0), || branch(-1.0));
    let session = on_host(&g);
    let all = (list, one, map.into_values().collect::<Vec<_>>(), some);
    let (list, one, map, some) = session.run(&[p.feed(false)], &all).unwrap();
    let x = |t: &HostTensor| t.scalar::<f32>().unwrap();
    assert_eq!(list.iter().map(x).collect::<Vec<_>>(), [-1.0, -2.0]);
    assert_eq!((x(&one), x(&map[0]), x(&map[1]), x(&some.unwrap())), (-3.0, -4.0, -5.0, -6.0));
}

#[test]
fn cond_branches_that_disagree_are_refused() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let x = g.placeholder("x", F32, dims![2]);
    let v = g.variable("v", Init::Constant(7.0), F32, [2]);
    let add = v.assign_add(1.0).operation();
    let dtypes = g.cond(&p, || x.clone(), || x.cast(I32));
    let effects = g.cond(&p, || v.assign(&x), || x.cast(I32));
    let numbers = g.cond(&p, || vec![x.clone(), x.clone()], || vec![x.clone()]);
    let structures = g.cond(&p, || (x.clone(), Some(x.clone())), || (x.clone(), None));
    let condition = g.cond(&x, || x.clone(), || x.clone());
    let refused = "the condition of cond needs a tensor of bool, got f32; cast it first";
    assert!(g.check().iter().any(|error| error.message() == refused), "{:?}", g.check());
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    let before = session.state_digest().unwrap();
    let run = |y: &Tensor, refused: &str| {
        let feeds = [p.feed(true), x.feed([1.0f32, 2.0])];
        let error = session.run(&feeds, (y, &add)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert_eq!(error.message(), refused);
        assert!(error.location().is_some());
        assert_eq!(session.state_digest().unwrap(), before, "{error}");
    };
    run(&condition, refused);
    let dtype = "result 0 is i32 in branch 0 and f32 in branch 1; cast one of them";
    let number = "branch 0 gives 1 tensors and branch 1 2";
    let all =
        [(dtypes, dtype), (effects, dtype), (numbers[0].clone(), number), (structures.0, number)];
    for (y, refused) in &all {
        assert_eq!(y.node().error().unwrap().message(), *refused);
        run(y, refused);
    }
}

/// Structures with the same number of tensors, but other keys or lengths.
#[test]
fn structures_that_differ_are_refused() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let c = |x: f32| g.constant(x);
    let named = |name| BTreeMap::from([(name, c(1.0))]);
    let keys = g.cond(&p, || named("a"), || named("b"));
    let nested = |n, m| [n, m].map(|n| (0..n).map(|i| c(i as f32)).collect::<Vec<_>>());
    let lengths = g.case(vec![(p.clone(), Box::new(|| nested(1, 2)))], || nested(2, 1));
    let once = |x: Option<Tensor>, y| (x, y);
    let looped = g.while_loop(
        once(Some(c(1.0)), None),
        |_| c(1.0).less(0.0),
        |(x, _)| once(None, x.clone()),
    );
    let scanned = g.scan(named("a"), c(1.0).reshape(&[1]), |_, x| (named("b"), x.clone())).0;
    let session = on_host(&g);
    let before = session.state_digest().unwrap();
    let (branches, body) = (
        "branches give different structures: other keys, lengths or options, with the same number of tensors",
        "a loop's body gives another structure than it was given: other keys, lengths or options, with the same \
         number of tensors",
    );
    let [lengths, looped] = [lengths[0][0].clone(), looped.0.unwrap()];
    for (refused, message) in
        [(&keys["a"], branches), (&lengths, branches), (&looped, body), (&scanned["a"], body)]
    {
        let error = session.run(&[p.feed(true)], refused).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().ends_with(&format!(": {message}")), "{error}");
        assert_eq!(session.state_digest().unwrap(), before);
    }
    // The same ones are alike.
    let same = g.cond(&p, || named("a"), || named("a"));
    assert_eq!(session.run(&[p.feed(true)], &same["a"]).unwrap().scalar::<f32>().unwrap(), 1.0);
}

/// What is refused inside of bodies is named with its own line, however deep it lies.
#[test]
fn what_is_refused_in_a_body_is_named() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let x = g.placeholder("x", F32, dims![2, 3]);
    let line = line!() + 1;
    let inner = || x.matmul(&x).relu() * 2.0;
    let y = g.cond(&p, || g.cond(&p, inner, || x.sum(())), || x.sum(()));
    let session = on_host(&g);
    let error = session.run(&[p.feed(true)], &y).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let message = error.message();
    assert!(message.contains(&format!("flow.rs:{line}:")), "{error}");
    assert!(message.starts_with("built on ") && message.contains("matmul at "), "{error}");
    assert!(message.ends_with(": inner sizes differ: [2, 3] times [2, 3]"), "{error}");
}

#[test]
fn cond_shapes_that_differ_are_not_known() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let y = g.cond(&p, || g.constant([1.0f32, 2.0]), || g.constant([1.0f32, 2.0, 3.0]));
    assert_eq!(y.dims().to_string(), "[?]");
    let double = &y * 2.0;
    let session = on_host(&g);
    assert_eq!(session.run(&[p.feed(true)], &double).unwrap().dims(), [2]);
    assert_eq!(session.run(&[p.feed(false)], &double).unwrap().dims(), [3]);
}

#[test]
fn cond_pruning() {
    let g = Graph::new();
    let v1 = g.variable("v1", Init::Constant(7.0), F32, []);
    let v2 = g.variable("v2", Init::Constant(7.0), F32, []);
    let p = g.placeholder("p", Bool, dims![]);
    let both = g.cond(&p, || (v1.assign(1.0), v2.assign(2.0)), || (v1.read(), v2.read()));
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    assert_eq!(session.run(&[p.feed(true)], &both.1).unwrap().scalar::<f32>().unwrap(), 2.0);
    assert_eq!(number(&session, v1.value()), 7.0);
    assert_eq!(number(&session, v2.value()), 2.0);
}

#[test]
fn cond_of_operations() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(1.0), F32, []);
    let p = g.placeholder("p", Bool, dims![]);
    let step = g.cond(&p, || v.assign_add(1.0).operation(), || g.no_op());
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    for p_ in [true, false, true] {
        session.run(&[p.feed(p_)], &step).unwrap();
    }
    assert_eq!(number(&session, v.value()), 3.0);
}

#[test]
fn uninitialized_ref_identity() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(1.0), F32, []);
    let y = g.cond(&v.is_initialized(), || v.read(), || v.assign(5.0));
    let session = on_host(&g);
    assert_eq!(number(&session, &y), 5.0);
    assert_eq!(number(&session, &(&y + 0.0)), 5.0);
}

#[test]
fn case_takes_the_first_that_is_true() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let when = |limit: f32, y: f32| -> (Tensor, Build<'_, Tensor>) {
        let g = g.clone();
        (x.less(limit), Box::new(move || g.constant(y)))
    };
    let y = g.case(vec![when(0.0, -1.0), when(10.0, 1.0)], || g.constant(2.0f32));
    let session = on_host(&g);
    for (x_, expected) in [(-5.0f32, -1.0f32), (3.0, 1.0), (30.0, 2.0)] {
        assert_eq!(session.run(&[x.feed(x_)], &y).unwrap().scalar::<f32>().unwrap(), expected);
    }
}

#[test]
fn switch_case_beyond_the_last_is_the_default() {
    let g = Graph::new();
    let i = g.placeholder("i", I32, dims![]);
    let branch = |y: f32| -> Build<'_, Tensor> {
        let g = g.clone();
        Box::new(move || g.constant(y))
    };
    let y = g.switch_case(&i, vec![branch(0.0), branch(1.0)], || g.constant(9.0f32));
    let session = on_host(&g);
    for (i_, expected) in [(0i32, 0.0f32), (1, 1.0), (2, 9.0), (-1, 9.0)] {
        assert_eq!(session.run(&[i.feed(i_)], &y).unwrap().scalar::<f32>().unwrap(), expected);
    }
}

/// What a condition is fed, what it gives, and a tensor inside of one of its branches.
fn with_inner(g: &Graph) -> ([Tensor; 2], Tensor, Tensor) {
    let [p, x] = [g.placeholder("p", Bool, dims![]), g.placeholder("x", F32, dims![])];
    let mut inner = None;
    let y = g.cond(&p, || inner.insert(&x * 2.0).clone(), || x.clone());
    ([p, x], y, inner.unwrap())
}

#[test]
fn fetchable() {
    let g = Graph::new();
    let ([p, x], y, inner) = with_inner(&g);
    let outside = &inner + 1.0;
    let error = outside.node().error().unwrap();
    assert!(error.message().contains("return it from the closure"), "{error}");
    let v = g.variable("v", Init::Constant(7.0), F32, []);
    let add = v.assign_add(1.0).operation();
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    let before = session.state_digest().unwrap();
    let feeds = [p.feed(true), x.feed(1.0f32)];
    let refused = |fetch: &Tensor, target: &Operation, message: &str| {
        let error = session.run(&feeds, (fetch, target, &add)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains(message), "{error}");
        assert_eq!(session.state_digest().unwrap(), before, "{error}");
    };
    refused(&inner, &add, "cannot be fetched");
    refused(&y, &inner.operation(), "cannot be run by itself");
    refused(&outside, &add, "return it from the closure");
}

#[test]
fn feedable() {
    let g = Graph::new();
    let ([p, x], y, inner) = with_inner(&g);
    let v = g.variable("v", Init::Constant(7.0), F32, []);
    let add = v.assign_add(1.0).operation();
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    let fed = session.run(&[p.feed(true), x.feed(2.0f32)], &y).unwrap();
    assert_eq!(fed.scalar::<f32>().unwrap(), 4.0);
    let before = session.state_digest().unwrap();
    let error = session.run(&[p.feed(true), inner.feed(1.0f32)], (&y, &add)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.message().contains("cannot be fed"), "{error}");
    assert_eq!(session.state_digest().unwrap(), before, "{error}");
}

#[test]
fn while_1() {
    let g = Graph::new();
    let n = g.while_loop(g.constant(0i32), |n| n.less(10_000), |n| n + 1);
    assert_eq!(whole(&on_host(&g), &n), 10_000);
}

#[test]
fn while_with_maximum_iterations() {
    let g = Graph::new();
    let options = LoopOptions { max_iterations: Some(10), ..LoopOptions::default() };
    let n = g.while_loop_with(g.constant(0i32), |n| n.less(10_000), |n| n + 1, options);
    assert_eq!(whole(&on_host(&g), &n), 10);
}

#[test]
fn while_on_devices() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 3]);
        let w = g.variable("w", Init::Constant(0.5), F32, [3, 3]);
        let n = g.placeholder("n", I32, dims![]);
        let start = (g.constant(0i32), x.clone());
        let (i, y) = g.while_loop(start, |(i, _)| i.less(&n), |(i, y)| (i + 1, y.matmul(&w)));
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        for (n_, expected) in [(3, 3.375f32), (0, 1.0)] {
            let feeds = [x.feed([[1.0f32, 1.0, 1.0]]), n.feed(n_)];
            let (i, y) = session.run(&feeds, (&i, &y)).unwrap();
            assert_eq!(i.scalar::<i32>().unwrap(), n_);
            assert_eq!(y.to_vec::<f32>().unwrap(), [expected; 3], "{}", device.name);
        }
    }
}

#[test]
fn while_external_control_dependencies() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(0.0), F32, []);
    let add = v.assign_add(1.0).operation();
    let n = g.after(&[&add], || g.while_loop(g.constant(0i32), |n| n.less(10), |n| n + 1));
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    assert_eq!(whole(&session, &n), 10);
    assert_eq!(number(&session, v.value()), 1.0);
}

#[test]
fn while_update_variable() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(1.0), F32, [2]);
        let start = (g.constant(0i32), g.constant(0.0f32));
        let (_, seen) = g.while_loop(
            start,
            |(i, _)| i.less(5),
            |(i, _)| {
                let now = v.assign_add(2.0);
                (i + 1, now.sum(()))
            },
        );
        let again = &v.value().sum(()) * 1.0;
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        // Once it lives where it is read.
        assert_eq!(number(&session, &again), 2.0);
        assert_eq!(number(&session, &seen), 22.0, "{}", device.name);
        assert_eq!(number(&session, &again), 22.0, "{}", device.name);
    }
}

/// `testWhileCondWithControl_1`; here the condition reads what the body stores.
#[test]
fn while_conditions_see_effects() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(0.0), F32, []);
    let n = g.while_loop(
        g.constant(0i32),
        |_| v.read().less(4.5),
        |n| {
            let add = v.assign_add(1.0).operation();
            g.after(&[&add], || n + 1)
        },
    );
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    assert_eq!(whole(&session, &n), 5);
    assert_eq!(number(&session, v.value()), 5.0);
}

#[test]
fn reads_outside_see_the_start_unless_they_follow() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(1.0), F32, []);
    let double = times(&g, 3, &g.constant(0.0f32), |_| v.assign(v.read() * 2.0));
    let after = g.after(&[&double.operation()], || v.read());
    let last = g.after(&[&double.operation()], || v.assign(after + 100.0));
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    let (start, double, last) = session.run(&[], (&v, &double, &last)).unwrap();
    let x = |t: HostTensor| t.scalar::<f32>().unwrap();
    assert_eq!((x(start), x(double), x(last)), (1.0, 8.0, 108.0));
    assert_eq!(number(&session, v.value()), 108.0);
}

#[test]
fn effects_without_an_order_are_refused() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(1.0), F32, []);
    let looped = times(&g, 3, &g.constant(0.0f32), |_| v.assign_add(1.0));
    let other = v.assign(5.0);
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    let before = session.state_digest().unwrap();
    let error = session.run(&[], (&looped, &other)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("neither follows the other"), "{error}");
    assert_eq!(session.state_digest().unwrap(), before);
}

#[test]
fn while_shape_invariants() {
    let g = Graph::new();
    let x = g.constant([1.0f32]);
    let grow = |t: &Tensor| g.concat(&[t, &x], 0);
    let start = || (g.constant(0i32), x.clone());
    let options = |dims| LoopOptions { invariants: vec![None, Some(dims)], ..Default::default() };
    let next = |(i, t): &(Tensor, Tensor)| (i + 1, grow(t));
    let good = g.while_loop_with(start(), |(i, _)| i.less(3), next, options(dims![None]));
    assert_eq!(on_host(&g).run(&[], &good.1).unwrap().dims(), [4]);
    let error = |t: &Tensor| t.node().error().unwrap().message().to_owned();
    let bad = g.while_loop(start(), |(i, _)| i.less(3), next);
    assert_eq!(
        error(&bad.1),
        "loop variable 1 is [1] and becomes [2]; give it a shape that is both in \
         LoopOptions::invariants"
    );
    let bad = g.while_loop_with(start(), |(i, _)| i.less(3), next, options(dims![2]));
    assert_eq!(
        error(&bad.1),
        "loop variable 1 begins as [1], which its invariant [2] does not admit"
    );
}

#[test]
fn nested_while_1() {
    let g = Graph::new();
    // Of TensorFlow's: ((1 + 1 + .. five times) doubled ..) = 225.
    let n = g.constant(0i32);
    let (_, s) = g.while_loop(
        (n.clone(), g.constant(0i32)),
        |(i, _)| i.less(15),
        |(i, s)| {
            let inner = g.while_loop(
                (g.constant(0i32), s.clone()),
                |(j, _)| j.less(15),
                |(j, s)| (j + 1, s + 1),
            );
            (i + 1, inner.1)
        },
    );
    assert_eq!(whole(&on_host(&g), &s), 225);
}

#[test]
fn nested_while_2() {
    for device in devices() {
        let g = Graph::new();
        let s = g.constant(2.0f32);
        // Squared as often as the inner loop says, 2 ^ 20 in the end.
        let y = times(&g, 2, &s, |s| times(&g, 2, s, |s| s * s));
        let y = times(&g, 1, &y, |y| y * 16.0);
        assert_eq!(number(&device.session(&g), &y), 1_048_576.0, "{}", device.name);
    }
}

/// A loop with a branch inside: five times 1, and five times 10.
fn while_cond(g: &Graph) -> Tensor {
    let start = (g.constant(0i32), g.constant(0i32));
    let (_, sum) = g.while_loop(
        start,
        |(i, _)| i.less(10),
        |(i, s)| {
            let small = i.less(5);
            (i + 1, g.cond(&small, || s + 1, || s + 10))
        },
    );
    sum
}

#[test]
fn while_cond_1() {
    let g = Graph::new();
    let sum = while_cond(&g);
    assert_eq!(whole(&on_host(&g), &sum), 55);
}

#[test]
fn cond_while_1() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let y = g.cond(&p, || while_cond(&g), || g.constant(-1i32));
    let session = on_host(&g);
    assert_eq!(session.run(&[p.feed(true)], &y).unwrap().scalar::<i32>().unwrap(), 55);
    assert_eq!(session.run(&[p.feed(false)], &y).unwrap().scalar::<i32>().unwrap(), -1);
}

#[test]
fn while_grad_ys_xs() {
    let g = Graph::new();
    let (x, y) = (g.constant(3.0f32), g.constant(2.0f32));
    let (rx, ry) = g.while_loop(
        (x.clone(), y.clone()),
        |(x, _)| x.less(100.0),
        |(x, y)| {
            let y = x + y;
            (x * &y, y)
        },
    );
    let session = on_host(&g);
    let grad = |z: &Tensor, x: &Tensor| number(&session, z.gradients(&[x])[0].as_ref().unwrap());
    let both = &rx + &ry;
    assert_eq!(grad(&both, &x), 304.0);
    assert_eq!(grad(&both, &y), 124.0);
    assert_eq!(grad(&rx, &x), 295.0);
    assert_eq!(grad(&rx, &y), 120.0);
}

#[test]
fn while_grad_in_cond() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let y = g.cond(
        &x.greater(0.0),
        || {
            let y = times(&g, 3, &x, |y| y * &x);
            y.gradients(&[&x]).remove(0).unwrap()
        },
        || g.constant(0.0f32),
    );
    // x^4 by a loop: 4 x^3.
    let y = on_host(&g).run(&[x.feed(2.0f32)], &y).unwrap();
    assert_eq!(y.scalar::<f32>().unwrap(), 32.0);
}

#[test]
fn while_grad_in_while() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    // Each iteration takes the gradient of y^2 * x by an inner loop: 2 x y.
    let y = times(&g, 2, &x, |y| {
        let square = times(&g, 1, y, |z| z * z * &x);
        square.gradients(&[y]).remove(0).unwrap()
    });
    // 2*3*3 = 18, then 2*3*18.
    let y = on_host(&g).run(&[x.feed(3.0f32)], &y).unwrap();
    assert_eq!(y.scalar::<f32>().unwrap(), 108.0);
}

#[test]
fn nested_resource_access() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(3.0), F32, []);
        let x = g.constant(0.0f32);
        let y = times(&g, 2, &x, |y| y + times(&g, 3, y, |z| z + v.value() * v.value()));
        let grads = y.gradients(&[&x, v.value()]);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let at_x = number(&session, grads[0].as_ref().unwrap());
        let at_v = number(&session, grads[1].as_ref().unwrap());
        // y' = 2 y + 3 v^2, twice: 81, and d/dv 9 v^2 = 54.
        assert_eq!((number(&session, &y), at_x, at_v), (81.0, 4.0, 54.0), "{}", device.name);
    }
}

#[test]
fn while_grad_of_variables_trains() {
    for device in devices() {
        let g = Graph::new();
        let xs = g.placeholder("xs", F32, dims![None, 4, 2]);
        let target = g.placeholder("target", F32, dims![4, 3]);
        let w = g.variable("w", Init::Constant(0.1), F32, [2, 3]);
        let u = g.variable("u", Init::Constant(0.2), F32, [3, 3]);
        let state = g.fill(&[4, 3], 0.0f32);
        let (last, ()) =
            g.scan(state, xs.clone(), |s, x| ((x.matmul(&w) + s.matmul(&u)).tanh(), ()));
        let error = &last - &target;
        let loss = (&error * &error).mean(());
        let train = Sgd::new(0.5).minimize(&loss);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let data = HostTensor::new(&[5, 4, 2], (0..40).map(|i| (i % 7) as f32 * 0.1).collect());
        let data = data.unwrap();
        let goal = HostTensor::new(&[4, 3], vec![0.5f32; 12]).unwrap();
        let step = || {
            let feeds = [xs.feed(&data), target.feed(&goal)];
            let (loss, ()) = session.run(&feeds, (&loss, &train)).unwrap();
            loss.scalar::<f32>().unwrap()
        };
        let first = step();
        let last = (0..60).fold(first, |_, _| step());
        assert!(last < first * 0.05, "{}: from {first} to {last}", device.name);
    }
}

#[test]
fn random_draws_differ_by_iteration_and_run() {
    let g = Graph::with_seed(3);
    let xs = g.constant([0.0f32; 4]);
    let draws = g.map(xs, |x| x + g.random_uniform(&[2], F32, 1));
    let session = on_host(&g);
    let run = || session.run(&[], &draws).unwrap().to_vec::<f32>().unwrap();
    let (first, second) = (run(), run());
    let mut all: Vec<u32> = first.iter().chain(&second).map(|x| x.to_bits()).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 16);
    let again = on_host(&g);
    assert_eq!(again.run(&[], &draws).unwrap().to_vec::<f32>().unwrap(), first);
}

#[test]
fn gradients_see_the_draws_of_the_way_there() {
    for device in devices() {
        let g = Graph::with_seed(11);
        let w = g.placeholder("w", F32, dims![8]);
        let xs = g.constant(HostTensor::new(&[3, 8], vec![1.0f32; 24]).unwrap());
        // Nested: the mask is drawn in a loop in a branch in a loop.
        let (sum, masks) = g.scan(g.fill(&[8], 0.0f32), xs, |sum, x| {
            let y = g.cond(
                &x.sum(()).greater(0.0),
                || times(&g, 2, &(x * &w), |y| y * g.random_uniform(&[8], F32, 1)),
                || x.clone(),
            );
            (sum + &y, y)
        });
        let grad = sum.gradients(&[&w]).remove(0).unwrap();
        let session = device.session(&g);
        let feed = HostTensor::new(&[8], vec![2.0f32; 8]).unwrap();
        for _ in 0..2 {
            let (masks, grad) = session.run(&[w.feed(&feed)], (&masks, &grad)).unwrap();
            let masks = masks.to_vec::<f32>().unwrap();
            // Of w times the product of two draws: the gradient is that product.
            for (i, grad) in grad.to_vec::<f32>().unwrap().into_iter().enumerate() {
                let expected: f32 = (0..3).map(|row| masks[row * 8 + i] / 2.0).sum();
                assert!((grad - expected).abs() < 1e-6, "{}: {grad} {expected}", device.name);
            }
        }
    }
}

#[test]
fn asserts_fail_the_run_and_nothing_changes() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(1.0), F32, [3]);
        let x = g.placeholder("x", F32, dims![None]);
        let ok = g.assert(&x.sum(()).less(10.0), "the sum is too large", &[&x]);
        let step = g.after(&[&ok], || v.assign_add(1.0));
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        session.run(&[x.feed([1.0f32, 2.0])], &step).unwrap();
        let before = session.state_digest().unwrap();
        let error = session.run(&[x.feed([9.0f32, 8.0, 7.0, 6.0])], &step).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert_eq!(error.message(), "assertion failed: the sum is too large; f32[4] [9, 8, 7, ..]");
        assert!(error.location().is_some());
        assert_eq!(session.state_digest().unwrap(), before, "{}", device.name);
        let v = session.run(&[], &v).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(v, [2.0; 3], "{}", device.name);
    }
}

#[test]
fn failing_iterations_change_nothing() {
    for device in devices() {
        let g = Graph::with_seed(5);
        let v = g.variable("v", Init::Constant(0.0), F32, [2]);
        let w = g.variable("w", Init::Constant(0.0), F32, [2]);
        let limit = g.placeholder("limit", I32, dims![]);
        let last = g.while_loop(
            g.constant(0i32),
            |i| i.less(8),
            |i| {
                let add = v.assign_add(g.random_uniform(&[2], F32, 1)).operation();
                let ok = g.assert(&i.less(&limit), "enough", &[i]);
                g.after(&[&add, &ok], || i + 1)
            },
        );
        let also = g.after(&[&last.operation()], || w.assign_add(1.0));
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        session.run(&[limit.feed(8)], (&last, &also)).unwrap();
        let before = session.state_digest().unwrap();
        let error = session.run(&[limit.feed(5)], (&last, &also)).unwrap_err();
        assert!(error.message().contains("enough; i32[] [5]"), "{error}");
        assert_eq!(session.state_digest().unwrap(), before, "{}", device.name);
        session.run(&[limit.feed(8)], (&last, &also)).unwrap();
        assert_ne!(session.state_digest().unwrap(), before);
    }
}

#[test]
fn updates_of_concurrent_loops_add_up() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(0.0), F32, []);
    let step = times(&g, 10, &g.constant(0.0f32), |_| v.assign_add(1.0)).operation();
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..50).for_each(|_| session.run(&[], &step).unwrap()));
        }
    });
    assert_eq!(number(&session, v.value()), 2000.0);
}

#[test]
fn a_loop_that_never_ends_ends_with_its_deadline() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(0.0), F32, []);
    let n = g.while_loop(
        g.constant(0i64),
        |n| n.greater_equal(g.constant(0i64)),
        |n| {
            let add = v.assign_add(1.0).operation();
            g.after(&[&add], || n + 0)
        },
    );
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    let before = session.state_digest().unwrap();
    let timeout = Some(Duration::from_millis(20));
    let options = RunOptions { timeout, ..RunOptions::default() };
    let error = session.run_with(&[], &n, options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(session.state_digest().unwrap(), before);
    let token = CancelToken::new();
    let options = RunOptions { cancel: Some(token.clone()), ..RunOptions::default() };
    let error = thread::scope(|scope| {
        let run = scope.spawn(|| session.run_with(&[], &n, options).unwrap_err());
        thread::sleep(Duration::from_millis(10));
        token.cancel();
        run.join().unwrap()
    });
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(session.state_digest().unwrap(), before);
}

#[test]
fn callables_and_submitted_runs_have_loops() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let y = times(&g, 3, &x, |y| y * 2.0);
    let session = on_host(&g);
    let callable = session.callable(&[&x], &y).unwrap();
    assert_eq!(callable.call([1.5f32]).unwrap().scalar::<f32>().unwrap(), 12.0);
    let handle = session.submit(&[x.feed(2.0f32)], y.clone(), RunOptions::default());
    assert_eq!(handle.wait().unwrap().scalar::<f32>().unwrap(), 16.0);
}

#[test]
fn queues_feed_loops() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 4, [(F32, dims![])]);
    let x = g.placeholder("x", F32, dims![]);
    let put = q.enqueue(&[&times(&g, 2, &x, |y| y + 1.0)]);
    let get = times(&g, 3, &q.dequeue().remove(0), |y| y * 2.0);
    let session = on_host(&g);
    session.run(&[x.feed(1.0f32)], &put).unwrap();
    assert_eq!(number(&session, &get), 24.0);
}

#[test]
fn what_fails_in_a_branch_is_named() {
    let g = Graph::new();
    let fails = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let x = g.placeholder("x", F32, dims![2]);
    let p = g.placeholder("p", Bool, dims![]);
    let y = g.cond(&p, || g.scope("inner", || fails_while(&x, &fails)), || x.clone());
    let session = on_host(&g);
    session.run(&[x.feed([1.0f32, 2.0]), p.feed(false)], &y).unwrap();
    let error = session.run(&[x.feed([1.0f32, 2.0]), p.feed(true)], &y).unwrap_err();
    assert!(error.node().unwrap().starts_with("inner/"), "{error}");
}

#[test]
fn too_deep_is_refused() {
    fn nest(g: &Graph, x: &Tensor, depth: usize) -> Tensor {
        match depth {
            0 => x + 1.0,
            _ => times(g, 1, x, |x| nest(g, x, depth - 1)),
        }
    }
    let g = Graph::new();
    let x = g.constant(1.0f32);
    assert_eq!(number(&on_host(&g), &nest(&g, &x, 32)), 2.0);
    let error = nest(&g, &x, 33).node().error().unwrap();
    let errors = g.check();
    assert!(errors.iter().any(|e| e.message().contains("the limit is 32")), "{error}");
}

#[test]
fn variables_and_queues_are_made_outside() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let y = g.cond(
        &p,
        || g.variable("v", Init::Constant(1.0), F32, []).value().clone(),
        || g.constant(1.0f32),
    );
    assert!(y.node().invalid.is_some());
    let message = "unsupported: a variable made inside of a branch or loop; build it outside";
    assert!(g.check().iter().any(|error| error.message() == message), "{:?}", g.check());
}

#[test]
fn while_nested_input() {
    #[derive(Clone)]
    struct Named {
        a: Tensor,
        b: (Tensor, Tensor),
    }
    impl Structure for Named {
        fn flatten(&self, parts: &mut Vec<Tensor>) {
            self.a.flatten(parts);
            self.b.flatten(parts);
        }
        fn rebuild(&self, parts: &mut dyn Iterator<Item = Tensor>) -> Self {
            Self { a: self.a.rebuild(parts), b: self.b.rebuild(parts) }
        }
        fn is_like(&self, other: &Self) -> bool {
            self.b.is_like(&other.b)
        }
    }
    let g = Graph::new();
    let c = |x: f32| g.constant(x);
    let init = Named { a: c(0.0), b: (c(2.0), c(3.0)) };
    let out = g.while_loop(
        init,
        |n| n.a.less(100.0),
        |n| Named { a: &n.a + &n.b.0, b: (&n.b.0 + 1.0, n.b.1.clone()) },
    );
    let session = on_host(&g);
    // 2 + 3 + .. + 14 = 104.
    assert_eq!(number(&session, &out.a), 104.0);
    assert_eq!(number(&session, &out.b.0), 15.0);
    assert_eq!(number(&session, &out.b.1), 3.0);
}

#[test]
fn scans_over_nothing_give_nothing() {
    let g = Graph::new();
    let xs = g.placeholder("xs", F32, dims![None, 2]);
    let (sum, all) = g.scan(g.fill(&[2], 5.0f32), xs.clone(), |s, x| (s + x, s * 2.0));
    let session = on_host(&g);
    let none = HostTensor::zeros(F32, Shape::new(&[0, 2]).unwrap()).unwrap();
    let (sum, all) = session.run(&[xs.feed(&none)], (&sum, &all)).unwrap();
    assert_eq!(sum.to_vec::<f32>().unwrap(), [5.0, 5.0]);
    assert_eq!(all.dims(), [0, 2]);
}

#[test]
fn short_loops_on_a_gpu_are_one_submission() {
    for device in devices().iter().filter(|device| device.name != "CPU") {
        let g = Graph::new();
        let xs = g.placeholder("xs", F32, dims![8, 4, 16]);
        let w = g.variable("w", Init::Constant(0.01), F32, [16, 16]);
        let state = g.fill(&[4, 16], 0.0f32);
        let (last, all) = g.scan(state, xs.clone(), |s, x| {
            let next = (x + s.matmul(&w)).tanh();
            (next.clone(), next)
        });
        let y = last.sum(()) + all.sum(());
        let grads = y.variable_gradients(std::slice::from_ref(&w));
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let data = HostTensor::new(&[8, 4, 16], vec![0.5f32; 512]).unwrap();
        let run = || {
            let fetch = (&y, grads[0].as_ref().unwrap());
            session.run_with(&[xs.feed(&data)], fetch, RunOptions::default()).unwrap()
        };
        run();
        let (_, metadata) = run();
        assert_eq!(metadata.submissions, 1, "{}", device.name);
        assert_eq!(metadata.uploads, 1, "{}", device.name);
    }
}

#[test]
fn loops_of_known_length_give_what_others_give() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![3]);
        let n = g.placeholder("n", I32, dims![]);
        let run = |limit: &dyn Fn(&Tensor) -> Tensor| {
            let start = (g.constant(1i32), x.clone());
            let (i, y) =
                g.while_loop(start, |(i, _)| limit(i), |(i, y)| (i * 2, y * 0.5 + i.cast(F32)));
            (i, y.clone(), y.gradients(&[&x]).remove(0).unwrap())
        };
        let unrolled = run(&|i| i.less(100));
        let looped = run(&|i| i.less(&n));
        let session = device.session(&g);
        let feeds = [x.feed([1.0f32, -2.0, 3.0]), n.feed(100)];
        assert!(session.program(&feeds, &unrolled).is_ok(), "{}", device.name);
        assert!(session.program(&feeds, &looped).is_err(), "{}", device.name);
        let (unrolled, looped) = session.run(&feeds, (&unrolled, &looped)).unwrap();
        assert_eq!(unrolled, looped, "{}", device.name);
        assert_eq!(unrolled.0.scalar::<i32>().unwrap(), 128);
    }
}

#[test]
fn tensor_arrays_in_loops() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![2]);
        let n = g.placeholder("n", I32, dims![]);
        let array = g.tensor_array(4, F32, &[2]).write(&g.constant(0i32), &x);
        let (_, array) = g.while_loop(
            (g.constant(1i32), array),
            |(i, _)| i.less(&n),
            |(i, array)| {
                let before = array.read(&(i - 1));
                (i + 1, array.write(i, &(before * 2.0)))
            },
        );
        let all = array.stack();
        let grad = all.gradients(&[&x]).remove(0).unwrap();
        let session = device.session(&g);
        let run = |n_: i32| {
            let feeds = [x.feed([1.0f32, 3.0]), n.feed(n_)];
            session
                .run(&feeds, (&all, &grad))
                .map(|(all, grad)| (all.to_vec::<f32>().unwrap(), grad.to_vec::<f32>().unwrap()))
        };
        let (all, grad) = run(4).unwrap();
        assert_eq!(all, [1.0, 3.0, 2.0, 6.0, 4.0, 12.0, 8.0, 24.0], "{}", device.name);
        assert_eq!(grad, [15.0, 15.0], "{}", device.name);
        let (all, _) = run(2).unwrap();
        assert_eq!(all, [1.0, 3.0, 2.0, 6.0, 0.0, 0.0, 0.0, 0.0], "{}", device.name);
        assert_eq!(run(5).unwrap_err().kind(), ErrorKind::InvalidArgument, "{}", device.name);
    }
}

#[test]
fn tensor_arrays_take_one_shape() {
    let g = Graph::new();
    let array = g.tensor_array(4, F32, &[2]);
    let bad = array.write(&g.constant(0i32), &g.constant([1.0f32, 2.0, 3.0])).stack();
    assert_eq!(bad.node().error().unwrap().message(), "expected shape [2], got [3]");
    let whole = TensorArray::unstack(&g.constant([[1.0f32, 2.0], [3.0, 4.0]]));
    let rows = whole.gather(&g.constant([1i32, 0]));
    let rows = on_host(&g).run(&[], &rows).unwrap();
    assert_eq!(rows.to_vec::<f32>().unwrap(), [3.0, 4.0, 1.0, 2.0]);
}

#[test]
fn cond_with_control() {
    // A placeholder that only what is not needed waits for is not missed.
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let unfed = g.placeholder("unfed", F32, dims![]);
    let both = g.cond(
        &p,
        || {
            let waits = g.after(&[&unfed.operation()], || g.constant(1.0f32).identity());
            (waits, g.constant(2.0f32))
        },
        || (g.constant(3.0f32), g.constant(4.0f32)),
    );
    let session = on_host(&g);
    let run = |fetch: &Tensor| session.run(&[p.feed(true)], fetch);
    assert_eq!(run(&both.1).unwrap().scalar::<f32>().unwrap(), 2.0);
    assert!(run(&both.0).unwrap_err().message().contains("is needed and not fed"));
}

#[test]
fn while_scatters_into_a_variable() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Zeros, F32, [4]);
        let n = g.placeholder("n", I32, dims![]);
        let last = g.while_loop(
            g.constant(0i32),
            |i| i.less(&n),
            |i| {
                let put = v.scatter_add(i.reshape(&[1]), i.cast(F32).reshape(&[1]));
                g.after(&[&put.operation()], || i + 1)
            },
        );
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        session.run(&[n.feed(3)], &last).unwrap();
        session.run(&[n.feed(4)], &last).unwrap();
        let v_ = session.run(&[], &v).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(v_, [0.0, 2.0, 4.0, 3.0], "{}", device.name);
        let before = session.state_digest().unwrap();
        assert_eq!(
            session.run(&[n.feed(5)], &last).unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
        assert_eq!(session.state_digest().unwrap(), before);
    }
}

#[test]
fn while_grad_no_dependency() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let y = times(&g, 3, &g.constant(1.0f32), |y| y + 2.0);
    assert!(y.gradients(&[&x])[0].is_none());
    let (_, z) = g.while_loop(
        (g.constant(0i32), x.clone()),
        |(i, _)| i.less(2),
        |(i, z)| (i + 1, z.stop_gradient() * 2.0),
    );
    let grad = z.gradients(&[&x]).remove(0);
    let grad = grad.expect("a gradient of zero, as TensorFlow gives");
    let grad = on_host(&g).run(&[x.feed(1.0f32)], &grad).unwrap();
    assert_eq!(grad.scalar::<f32>().unwrap(), 0.0);
}

#[test]
fn while_bad_arity() {
    let g = Graph::new();
    let out = g.while_loop(
        vec![g.constant(0i32)],
        |all| all[0].less(3),
        |all| vec![&all[0] + 1, all[0].clone()],
    );
    assert_eq!(
        out[0].node().error().unwrap().message(),
        "a loop of 1 variables gives 2 for the next iteration"
    );
}

#[test]
fn plain_assignments_in_a_quick_loop_are_stored() {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, F32, []);
    let n = g.placeholder("n", I32, dims![]);
    let last = g.while_loop(
        g.constant(0i32),
        |i| i.less(&n),
        |i| {
            let set = v.assign(i.cast(F32)).operation();
            g.after(&[&set], || i + 1)
        },
    );
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    session.run(&[n.feed(4)], &last).unwrap();
    assert_eq!(number(&session, v.value()), 3.0);
}

#[test]
fn what_loops_do_not_change_may_be_carried() {
    let g = Graph::new();
    let n = g.placeholder("n", I32, dims![]);
    let x = g.placeholder("x", F32, dims![2]);
    let start = (g.constant(0i32), x.clone(), &x + 1.0, x.clone());
    let out = g.while_loop(
        start,
        |(i, ..)| i.less(&n),
        |(i, a, b, _)| (i + 1, a.clone(), b.clone() * 2.0, b.clone()),
    );
    let feeds = [n.feed(3), x.feed([1.0f32, 2.0])];
    let (_, same, doubled, before) = on_host(&g).run(&feeds, &out).unwrap();
    assert_eq!(same.to_vec::<f32>().unwrap(), [1.0, 2.0]);
    assert_eq!(doubled.to_vec::<f32>().unwrap(), [16.0, 24.0]);
    assert_eq!(before.to_vec::<f32>().unwrap(), [8.0, 12.0]);
}

#[test]
fn variables_and_constants_may_be_fed() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(1.0), F32, []);
    let c = g.constant(10.0f32);
    let n = g.placeholder("n", I32, dims![]);
    let start = (g.constant(0i32), g.constant(0.0f32));
    let (_, y) = g.while_loop(start, |(i, _)| i.less(&n), |(i, y)| (i + 1, y + v.value() + &c));
    let session = on_host(&g);
    // The variable has no elements, and needs none.
    let y_ = session.run(&[n.feed(2), v.feed(3.0f32), c.feed(100.0f32)], &y).unwrap();
    assert_eq!(y_.scalar::<f32>().unwrap(), 206.0);
    session.run(&[], g.initializers()).unwrap();
    assert_eq!(session.run(&[n.feed(2)], &y).unwrap().scalar::<f32>().unwrap(), 22.0);
}

#[test]
fn nothing_is_stored_before_the_end() {
    let g = Graph::new();
    let (a, b) = (g.variable("a", Init::Zeros, F32, []), g.variable("b", Init::Zeros, F32, []));
    let p = g.placeholder("p", Bool, dims![]);
    let fine = g.placeholder("fine", Bool, dims![]);
    let add = b.assign_add(1.0).operation();
    let seen = g.after(&[&add], || a.read());
    let c = g.cond(
        &p,
        || {
            let ok = g.assert(&fine, "not fine", &[]);
            g.after(&[&ok], || a.assign(5.0))
        },
        || a.read(),
    );
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    let before = session.state_digest().unwrap();
    let feeds = [p.feed(true), fine.feed(false)];
    assert!(session.run(&feeds, (&seen, &c)).is_err());
    assert_eq!(session.state_digest().unwrap(), before);
    let feeds = [p.feed(true), fine.feed(true)];
    session.run(&feeds, (&seen, &c)).unwrap();
    assert_eq!((number(&session, a.value()), number(&session, b.value())), (5.0, 1.0));
}

#[test]
fn initial_values_in_branches() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(4.0), F32, []);
    let p = g.placeholder("p", Bool, dims![]);
    let y = g.cond(&p, || v.assign(v.initialized_value() + 1.0), || g.constant(0.0f32));
    let session = on_host(&g);
    assert_eq!(session.run(&[p.feed(true)], &y).unwrap().scalar::<f32>().unwrap(), 5.0);
    assert_eq!(session.run(&[p.feed(true)], &y).unwrap().scalar::<f32>().unwrap(), 6.0);
}

#[test]
fn initial_values_that_come_late_do_not_see_what_they_do_not_follow() {
    // The assignment runs before a branch that needs it; the initial value is known only after a loop.
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let n = g.placeholder("n", I32, dims![]);
    let start = (g.constant(0i32), g.constant(10.0f32));
    let (_, y) = g.while_loop(start, |(i, _)| i.less(&n), |(i, y)| (i + 1, y + 1.0));
    // By its value, or by an edge alone.
    let x = g.placeholder("x", F32, dims![]);
    let inits = [&y * 2.0, g.after(&[&y.operation()], || &x * 2.0)];
    for (i, init) in inits.into_iter().enumerate() {
        let v = g.variable(&format!("v{i}"), Init::Tensor(init), F32, []);
        let set = v.assign(7.0);
        let first = g.cond(&p, || &set + 1.0, || g.constant(0.0f32));
        let (value, is_set) = (v.initialized_value() + 0.5, v.is_initialized().cast(F32));
        let run = |session: &Session| -> Vec<f32> {
            let feeds = [p.feed(true), n.feed(2i32), x.feed(12.0f32)];
            let fetched = session.run(&feeds, &[&first, &value, &is_set]).unwrap();
            fetched.iter().map(|x| x.scalar().unwrap()).collect()
        };
        let session = on_host(&g);
        assert_eq!(run(&session), [8.0, 24.5, 0.0]);
        assert_eq!(number(&session, v.value()), 7.0);
        assert_eq!(run(&session), [8.0, 7.5, 1.0]);
        session.run(&[], v.assign(5.0).operation()).unwrap();
        assert_eq!(run(&session), [8.0, 5.5, 1.0]);
    }
}

#[test]
fn loops_read_what_there_was_at_their_start() {
    // Both halves of the sum are of one moment, though another thread steps meanwhile.
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, F32, []);
    let n = g.placeholder("n", I32, dims![]);
    let first =
        g.host_function("early", &[v.value()], [(F32, dims![])], |x| Ok(x.to_vec())).remove(0);
    let start = (g.constant(0i32), &first * 0.0);
    let (_, y) = g.while_loop(start, |(i, _)| i.less(&n), |(i, y)| (i + 1, y + v.value()));
    let twice = &y - &first * 50.0;
    let step = v.assign_add(1.0).operation();
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| (0..2000).for_each(|_| session.run(&[], &step).unwrap()));
        for _ in 0..200 {
            let rest = session.run(&[n.feed(50)], &twice).unwrap();
            assert_eq!(rest.scalar::<f32>().unwrap(), 0.0);
        }
    });
}

#[test]
fn updates_of_concurrent_loops_add_up_on_devices() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Zeros, F32, [3]);
        let w = g.variable("w", Init::Zeros, I64, [2]);
        let n = g.placeholder("n", I32, dims![]);
        let last = g.while_loop(
            g.constant(0i32),
            |i| i.less(&n),
            |i| {
                let add = v.assign_add(1.0).operation();
                let put = w.scatter_sub(g.constant([1i32]), g.constant([2i64])).operation();
                g.after(&[&add, &put], || i + 1)
            },
        );
        let again = &v.value().sum(()) * 1.0;
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        session.run(&[], &again).unwrap();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    (0..10).for_each(|_| {
                        session.run(&[n.feed(3)], &last).unwrap();
                    });
                });
            }
        });
        assert_eq!(number(&session, &again), 270.0, "{}", device.name);
        let w = session.run(&[], &w).unwrap().to_vec::<i64>().unwrap();
        assert_eq!(w, [0, -180], "{}", device.name);
    }
}

#[test]
fn what_comes_before_runs_once() {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, F32, []);
    let delta = g.placeholder("delta", F32, dims![]);
    let p = g.placeholder("p", Bool, dims![]);
    let n = g.placeholder("n", I32, dims![]);
    let add = v.assign_add(&delta).operation();
    let step = g.cond(&p, || add.clone(), || g.no_op());
    let looped = g.while_loop(g.constant(0i32), |i| i.less(&n), |i| g.after(&[&add], || i + 1));
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    session.run(&[p.feed(true), delta.feed(1.0f32)], &step).unwrap();
    assert_eq!(number(&session, v.value()), 1.0);
    session.run(&[n.feed(5), delta.feed(1.0f32)], &looped).unwrap();
    assert_eq!(number(&session, v.value()), 2.0);
}

#[test]
fn unrolled_loops_of_unknown_sizes() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 3]);
        let xs = g.placeholder("xs", F32, dims![4, None, 3]);
        let y = times(&g, 3, &x, |y| y * 2.0) + 1.0;
        let (sum, all) = g.scan(&x * 0.0, xs.clone(), |s, x| (s + x, (s * 2.0).sum(-1)));
        let grads = (&y.sum(()) + sum.sum(()) + (&all * &all).sum(())).gradients(&[&x, &xs]);
        let fetch = (&y, &sum * 2.0, &all + 1.0, grads[0].clone(), grads[1].clone());
        let session = device.session(&g);
        let one = HostTensor::new(&[2, 3], vec![1.0f32; 6]).unwrap();
        let many = HostTensor::new(&[4, 2, 3], vec![1.0f32; 24]).unwrap();
        let feeds = [x.feed(&one), xs.feed(&many)];
        let (y, sum, all, dx, dxs) = session.run(&feeds, &fetch).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [9.0; 6], "{}", device.name);
        assert_eq!(sum.to_vec::<f32>().unwrap(), [8.0; 6]);
        // Twice the sum of three of what was carried: 0, 1, 2, 3.
        assert_eq!(all.to_vec::<f32>().unwrap(), [1.0, 1.0, 7.0, 7.0, 13.0, 13.0, 19.0, 19.0]);
        assert_eq!(dx.unwrap().dims(), [2, 3]);
        // Of the last, 1; before, 2 * 2 * 18 more for each later one: 4 a of a = 6 k.
        let expected = [1.0f32 + 24.0 + 48.0 + 72.0, 1.0 + 48.0 + 72.0, 1.0 + 72.0, 1.0];
        let dxs = dxs.unwrap().to_vec::<f32>().unwrap();
        for (row, expected) in dxs.chunks(6).zip(expected) {
            assert_eq!(row, [expected; 6], "{}", device.name);
        }
    }
}

#[test]
fn branches_and_loops_as_targets_have_their_effects() {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, F32, []);
    let p = g.placeholder("p", Bool, dims![]);
    let xs = g.placeholder("xs", F32, dims![None]);
    let set = g.cond(&p, || v.assign(7.0), || v.read()).operation();
    let adds = g.map(xs.clone(), |x| v.assign_add(x)).operation();
    let after = g.after(&[&set], || g.constant(3.0f32).identity());
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    session.run(&[p.feed(true)], &set).unwrap();
    assert_eq!(number(&session, v.value()), 7.0);
    session.run(&[xs.feed([1.0f32, 2.0])], &adds).unwrap();
    assert_eq!(number(&session, v.value()), 10.0);
    let after = session.run(&[p.feed(true)], &after).unwrap();
    assert_eq!((after.scalar::<f32>().unwrap(), number(&session, v.value())), (3.0, 7.0));
}

#[test]
fn what_branches_and_loops_give_may_be_fed() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let (a, b) = g.cond(
        &p,
        || (g.constant(1.0f32), g.constant(2.0f32)),
        || (g.constant(3.0f32), g.constant(4.0f32)),
    );
    let z = &a + &b;
    let limit = g.constant(10i32);
    let count = g.while_loop(g.constant(0i32), |i| i.less(&limit), |i| i + 1);
    let session = on_host(&g);
    let run = |feeds: &[Feed<'_>], y: &Tensor| session.run(feeds, y).unwrap();
    assert_eq!(run(&[p.feed(true), a.feed(100.0f32)], &z).scalar::<f32>().unwrap(), 102.0);
    assert_eq!(run(&[], &count).scalar::<i32>().unwrap(), 10);
    assert_eq!(run(&[limit.feed(3)], &count).scalar::<i32>().unwrap(), 3);
}

/// Whatever the number of iterations was folded from may be fed, however far back.
#[test]
fn loops_whose_folded_limits_are_fed() {
    let g = Graph::new();
    let c = g.constant(2i32);
    let x = g.placeholder("x", F32, dims![5]);
    let counts = |limit: &Tensor| g.while_loop(g.constant(0i32), |i| i.less(limit), |i| i + 1);
    let folded = counts(&((&c + 1) * 2));
    // By a size, which is a number of elements.
    let n = g.constant([2i64, 3]);
    let ones = |n: &Tensor| g.constant(1i32).broadcast_to_sizes(n);
    let sized = counts(&ones(&(&n + 1)).cast(F32).relu().size().cast(I32));
    let sum = g.scan(g.constant(0i32), ones(&(&n * 2)), |s, x| (s + x.sum(()), ())).0;
    let of_x = counts(&(x.relu().size() * 2).cast(I32));
    let session = on_host(&g);
    let run =
        |feeds: &[Feed<'_>], y: &Tensor| session.run(feeds, y).unwrap().scalar::<i32>().unwrap();
    assert_eq!((run(&[], &folded), run(&[c.feed(4)], &folded)), (6, 10));
    let other = || [n.feed([4i64, 1])];
    // 3 by 4, and 5 by 2; 4 by 6, and 8 by 2.
    assert_eq!((run(&[], &sized), run(&other(), &sized)), (12, 10));
    assert_eq!((run(&[], &sum), run(&other(), &sum)), (24, 16));
    // The elements of what only gives a size decide nothing: the loop stays unrolled.
    let feeds = [x.feed([1.0f32; 5])];
    assert_eq!(run(&feeds, &of_x), 10);
    assert!(session.program(&feeds, &of_x).is_ok());
}

#[test]
fn assignments_without_an_order_are_refused_across_programs() {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, F32, []);
    let p = g.placeholder("p", Bool, dims![]);
    let first = v.assign(1.0);
    let c = g.cond(&p, || &first * 2.0, || &first * 3.0);
    let second = v.assign(2.0);
    let session = on_host(&g);
    let error = session.run(&[p.feed(true)], (&c, &second)).unwrap_err();
    assert!(error.message().contains("neither follows the other"), "{error}");
}

#[test]
fn scans_over_unequal_lengths_are_refused() {
    let g = Graph::new();
    let (xs, ys) = (g.placeholder("xs", F32, dims![4]), g.placeholder("ys", F32, dims![None]));
    let sum = g.scan(g.constant(0.0f32), (xs.clone(), ys.clone()), |s, (x, y)| (s + x * y, ())).0;
    let session = on_host(&g);
    let run = |n: usize| {
        let feeds = [xs.feed([1.0f32; 4]), ys.feed(vec![2.0f32; n])];
        session.run(&feeds, &sum).map(|s| s.scalar::<f32>().unwrap())
    };
    assert_eq!(run(4).unwrap(), 8.0);
    assert_eq!(run(6).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_size_that_is_not_known_stays() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let n = g.placeholder("n", I32, dims![]);
    let grow = |limit: &dyn Fn(&Tensor) -> Tensor| {
        let start = (g.constant(0i32), x.clone());
        g.while_loop(start, |(i, _)| limit(i), |(i, y)| (i + 1, g.concat(&[y, &x], 0))).1
    };
    let (looped, unrolled) = (grow(&|i| i.less(&n)), grow(&|i| i.less(2)));
    let session = on_host(&g);
    for y in [looped, unrolled] {
        let error = session.run(&[x.feed([1.0f32]), n.feed(2)], &y).unwrap_err();
        assert!(error.message().contains("LoopOptions::invariants"), "{error}");
    }
}

#[test]
fn nothing_leaks_out_of_bodies() {
    let (g, h) = (Graph::new(), Graph::new());
    let v = g.variable("v", Init::Zeros, F32, []);
    let p = g.placeholder("p", Bool, dims![]);
    let mut inner = None;
    g.cond(&p, || inner.insert(v.assign(1.0).operation()).clone(), || g.no_op());
    let inner = inner.unwrap();
    let after = g.after(&[&inner], || g.constant(1.0f32));
    let error = after.node().error().unwrap();
    assert!(error.message().contains("return it from the closure"), "{error}");
    for i in 0..50 {
        h.constant(i);
    }
    let foreign = g.while_loop(h.constant(0i32), |i| i.less(3), |i| i + 1);
    assert!(foreign.node().invalid.is_some());
    assert!(g.check().iter().any(|error| error.message().contains("another graph")));
    let add = v.assign_add(1.0).operation();
    let session = on_host(&g);
    session.run(&[], g.initializers()).unwrap();
    let before = session.state_digest().unwrap();
    let refused = |target: &Operation, message: &str| {
        let error = session.run(&[p.feed(true)], (target, &add)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains(message), "{error}");
        assert_eq!(session.state_digest().unwrap(), before, "{error}");
    };
    refused(&inner, "cannot be run by itself");
    refused(&after.operation(), "return it from the closure");
    refused(&foreign.operation(), "another graph");
}

#[test]
fn long_maps_over_nothing_of_their_own() {
    let g = Graph::new();
    let c = g.constant(2.0f32);
    let xs = g.fill(&[100_000], 1.0f32);
    let y = g.map(xs, |_| c.clone()).sum(());
    assert_eq!(number(&on_host(&g), &y), 200_000.0);
}

#[test]
fn gradients_need_no_history_of_what_they_do_not_use() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![2]);
    let n = g.placeholder("n", I32, dims![]);
    let options =
        LoopOptions { invariants: vec![None, None, Some(dims![None])], ..LoopOptions::default() };
    let (_, y, buffer) = g.while_loop_with(
        (g.constant(0i32), x.clone(), x.clone()),
        |(i, ..)| i.less(&n),
        |(i, y, buffer)| (i + 1, y * y, g.concat(&[buffer, &x], 0)),
        options,
    );
    let grad = y.gradients(&[&x]).remove(0).unwrap();
    let feeds = [x.feed([1.0f32, 2.0]), n.feed(2)];
    let (grad, buffer) = on_host(&g).run(&feeds, (&grad, &buffer)).unwrap();
    // x^4: 4 x^3.
    assert_eq!(grad.to_vec::<f32>().unwrap(), [4.0, 32.0]);
    assert_eq!(buffer.dims(), [6]);
}
