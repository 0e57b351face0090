//! Gradients of branches and loops, nested and over devices. TensorFlow:
//! `python/kernel_tests/control_flow_ops_py_test.py`, by meaning.

use convoke::prelude::*;
use convoke_tests::{TestDevice, devices};

/// The devices' names for the scopes of a graph: the host, and the GPU if there is one.
fn places(device: &TestDevice) -> [&'static str; 2] {
    ["CPU:0", if device.name == "CPU" { "CPU:0" } else { "GPU:0" }]
}

fn number(session: &Session, feeds: &[Feed<'_>], x: &Tensor) -> f32 {
    session.run(feeds, x).unwrap().scalar::<f32>().unwrap()
}

fn gradient(y: &Tensor, x: &Tensor) -> Tensor {
    y.gradients(&[x]).remove(0).expect("a gradient")
}

/// `testNestedWhile_1`: the inner loop's sum on one device, its count and the outer loop on another; the sums of 0 to 9
/// until there are 200.
#[test]
fn nested_while_1() {
    for device in devices() {
        let [host, other] = places(device);
        for (inner, outer) in [(host, other), (other, host)] {
            let g = Graph::new();
            let sum = |s: &Tensor| {
                let (_, s) = g.while_loop(
                    (g.constant(0i32), s.clone()),
                    |(i, _)| i.less(10),
                    |(i, s)| (i + 1, g.device(inner, || i + s)),
                );
                s
            };
            let n = g.constant(0i32);
            let x = g.while_loop(n.clone(), |x| x.less(200), |x| g.device(outer, || x + sum(&n)));
            let x = device.session(&g).run(&[], &x).unwrap();
            assert_eq!(x.scalar::<i32>().unwrap(), 225, "{}", device.name);
        }
    }
}

/// `testNestedWhile_2`: doubled until 20 on one device, squared on the other, until 3000.
#[test]
fn nested_while_2() {
    for device in devices() {
        let [host, other] = places(device);
        let g = Graph::new();
        let double = |x: &Tensor| g.while_loop(x.clone(), |x| x.less(20.0), |x| x + x);
        let x = g.device(other, || {
            let square = |x: &Tensor| {
                let x = double(x);
                g.device(host, || x.square())
            };
            g.while_loop(g.constant(2.0f32), |x| x.less(3000.0), square)
        });
        assert_eq!(number(&device.session(&g), &[], &x), 1_048_576.0, "{}", device.name);
    }
}

/// `testCondWithTensorArrayGrad`.
#[test]
fn cond_with_tensor_array_grad() {
    for device in devices() {
        let g = Graph::new();
        let p = g.placeholder("p", Bool, dims![]);
        let x = g.constant([1.0f32, 2.0, 3.0]);
        let y = g.cond(&p, || g.map(x.clone(), |z| z * 2.0), || g.constant([1.0f32, 1.0, 1.0]));
        let grad = gradient(&y, &x);
        let session = device.session(&g);
        let run = |p_: bool| session.run(&[p.feed(p_)], &grad).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(run(true), [2.0, 2.0, 2.0], "{}", device.name);
        assert_eq!(run(false), [0.0, 0.0, 0.0], "{}", device.name);
    }
}

/// `testWhileCondGradMultiDevice`: a branch in a loop, its gradient on another device, and the gradient of that.
#[test]
fn while_cond_grad_multi_device() {
    for device in devices() {
        let [host, other] = places(device);
        for (forward, back) in [(host, other), (other, host)] {
            let g = Graph::new();
            let p = g.placeholder("p", Bool, dims![]);
            let x = g.constant(1.0f32);
            let (_, z) = g.device(forward, || {
                g.while_loop(
                    (g.constant(0i32), x.clone()),
                    |(i, _)| i.less(3),
                    |(i, x)| (i + 1, g.cond(&p, || x * 2.0, || g.constant(10.0f32))),
                )
            });
            let grad = g.device(back, || gradient(&z, &x));
            let again = g.device(forward, || grad.gradients(&[&x]).remove(0));
            let session = device.session(&g);
            assert_eq!(number(&session, &[p.feed(true)], &grad), 8.0, "{}", device.name);
            assert_eq!(number(&session, &[p.feed(false)], &grad), 0.0, "{}", device.name);
            if let Some(again) = again {
                assert_eq!(number(&session, &[p.feed(true)], &again), 0.0, "{}", device.name);
            }
        }
    }
}

/// A loop of `n` iterations that doubles.
fn doubled(g: &Graph, n: &Tensor, x: &Tensor) -> Tensor {
    let start = (g.constant(0i32), x.clone());
    g.while_loop(start, |(i, _)| i.less(n), |(i, x)| (i + 1, x * 2.0)).1
}

/// `testWhileGrad_Dependency`, `SerialTwoLoops`, `ParallelTwoLoops`; lengths that are known, and that are fed.
#[test]
fn while_grad_of_loops_after_and_beside_each_other() {
    for device in devices() {
        for is_fed in [false, true] {
            let g = Graph::new();
            let count = |n: i32| {
                if is_fed { g.placeholder_with_default("n", n, dims![]) } else { g.constant(n) }
            };
            let x = g.constant(2.0f32);
            let one = gradient(&doubled(&g, &count(10), &x), &x);
            let serial = doubled(&g, &count(5), &doubled(&g, &count(5), &x));
            let serial = gradient(&serial, &x);
            let parallel = doubled(&g, &count(5), &x) + doubled(&g, &count(5), &x);
            let parallel = gradient(&parallel, &x);
            let session = device.session(&g);
            assert_eq!(number(&session, &[], &one), 1024.0, "{}", device.name);
            assert_eq!(number(&session, &[], &serial), 1024.0, "{}", device.name);
            assert_eq!(number(&session, &[], &parallel), 64.0, "{}", device.name);
        }
    }
}

/// `testWhileGrad_Const`: what a body gives whatever it was given has no gradient; but where it never runs.
#[test]
fn while_grad_of_a_constant_body() {
    for device in devices() {
        let g = Graph::new();
        let n = g.placeholder("n", I32, dims![]);
        let x = g.constant(3.0f32);
        let start = (g.constant(0i32), x.clone());
        let (_, y) = g.while_loop(start, |(i, _)| i.less(&n), |(i, _)| (i + 1, g.constant(7.0f32)));
        let grad = gradient(&y, &x);
        let session = device.session(&g);
        for (n_, expected) in [(0, [3.0, 1.0]), (1, [7.0, 0.0]), (4, [7.0, 0.0])] {
            let feeds = [n.feed(n_)];
            let got = [number(&session, &feeds, &y), number(&session, &feeds, &grad)];
            assert_eq!(got, expected, "{n_} on {}", device.name);
        }
    }
}

/// `testWhileGrad_NoGradient`: a loop through which no gradient goes, beside a way on which one does.
#[test]
fn while_grad_that_is_stopped() {
    for device in devices() {
        let g = Graph::new();
        let v = g.constant(2.0f32);
        let r = g.while_loop(v.clone(), |v| v.less(100.0), |v| v * v).stop_gradient() + &v;
        let session = device.session(&g);
        assert_eq!(number(&session, &[], &r), 258.0, "{}", device.name);
        assert_eq!(number(&session, &[], &gradient(&r, &v)), 1.0, "{}", device.name);
    }
}

/// `testWhileGradGather`: rows that are taken by number, more than once, inside of a loop.
#[test]
fn while_grad_of_gathered_rows() {
    for device in devices() {
        let g = Graph::new();
        let rows = g.variable("rows", Init::Constant(2.0), F32, [3, 2]);
        let at = g.constant([0i32, 2, 2]);
        let (_, sum) = g.while_loop(
            (g.constant(0i32), g.constant(0.0f32)),
            |(i, _)| i.less(2),
            |(i, sum)| {
                let scale = (i + 1).cast(F32);
                (i + 1, sum + (rows.value().gather(&at, 0) * scale).sum(()))
            },
        );
        let grad = gradient(&sum, rows.value());
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        // Six elements of 2, once and twice.
        assert_eq!(number(&session, &[], &sum), 36.0, "{}", device.name);
        let grad = session.run(&[], &grad).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(grad, [3.0, 3.0, 0.0, 0.0, 6.0, 6.0], "{}", device.name);
    }
}

/// `testCondGradInNestedWhiles`: from 0, the gradient is 2 below 1 and 1 above it.
#[test]
fn cond_grad_in_nested_whiles() {
    for device in devices() {
        let g = Graph::new();
        let inner = |x: &Tensor| {
            let y = g.cond(&x.less(1.0), || x * 2.0, || x.identity());
            gradient(&y, x)
        };
        let start = || (g.constant(0i32), g.constant(0.0f32));
        let (i, x) = g.while_loop(
            start(),
            |(i, _)| i.less(3),
            |(i, _)| {
                let (_, x) = g.while_loop(start(), |(j, _)| j.less(3), |(j, x)| (j + 1, inner(x)));
                (i + 1, x)
            },
        );
        let (i, x) = device.session(&g).run(&[], (&i, &x)).unwrap();
        assert_eq!(i.scalar::<i32>().unwrap(), 3, "{}", device.name);
        assert_eq!(x.scalar::<f32>().unwrap(), 1.0, "{}", device.name);
    }
}

/// `testGradInWhileWrtInitialLoopVal`: what goes round does not depend, inside, on what it began with. TensorFlow raises
/// there; here there is no gradient, as of anything that does not depend on another.
#[test]
fn grad_in_while_of_what_it_began_with_is_none() {
    let g = Graph::new();
    let x = g.constant(1.0f32);
    let (mut of_start, mut of_parameter) = (None, None);
    g.while_loop(
        (g.constant(0i32), x.clone()),
        |(i, _)| i.less(2),
        |(i, parameter)| {
            let y = parameter * 3.0;
            of_start = y.gradients(&[&x]).remove(0);
            of_parameter = y.gradients(&[parameter]).remove(0);
            (i + 1, y)
        },
    );
    assert!(of_start.is_none());
    assert!(of_parameter.is_some());
    assert!(g.check().is_empty(), "{:?}", g.check());
}
