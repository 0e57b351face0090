//! Loops with control edges, branches and variables in them, one by one. TensorFlow:
//! `python/kernel_tests/control_flow_ops_py_test.py`, by meaning. What TensorFlow has as constants is also fed here, so
//! that loops of known lengths and others do the same.

use convoke::prelude::*;
use convoke_tests::{TestDevice, devices};

fn initialized(device: &TestDevice, g: &Graph) -> Session {
    let session = device.session(g);
    session.run(&[], g.initializers()).unwrap();
    session
}

fn number(session: &Session, feeds: &[Feed<'_>], x: &Tensor) -> f32 {
    session.run(feeds, x).unwrap().scalar::<f32>().unwrap()
}

fn whole(session: &Session, feeds: &[Feed<'_>], x: &Tensor) -> i32 {
    session.run(feeds, x).unwrap().scalar::<i32>().unwrap()
}

fn elements(session: &Session, x: &Tensor) -> Vec<f32> {
    session.run(&[], x).unwrap().to_vec().unwrap()
}

/// A number that is known while building, and one that a run may be fed.
fn known_and_not(g: &Graph, n: i32) -> [Tensor; 2] {
    [g.constant(n), g.placeholder_with_default("n", n, dims![])]
}

/// The same of conditions.
fn given_and_not(g: &Graph, p: bool) -> [Tensor; 2] {
    [g.constant(p), g.placeholder_with_default("p", p, dims![])]
}

/// `testWhile_2`: 0 + 1 + .. + 9 = 45.
#[test]
fn while_2() {
    for device in devices() {
        let g = Graph::new();
        for limit in known_and_not(&g, 10) {
            let start = (g.constant(0i32), g.constant(0i32));
            let (_, sum) = g.while_loop(start, |(i, _)| i.less(&limit), |(i, s)| (i + 1, i + s));
            assert_eq!(whole(&device.session(&g), &[], &sum), 45, "{}", device.name);
        }
    }
}

/// `testWhile_3`: 100 iterations, of which the one of number k adds k twice: 2 (1 + .. + 100) = 10100.
#[test]
fn while_3() {
    for device in devices() {
        let g = Graph::new();
        let zero = || g.constant(0i32);
        for limit in known_and_not(&g, 100) {
            let (.., sum) = g.while_loop(
                (zero(), zero(), zero(), zero()),
                |(i, ..)| i.less(&limit),
                |(i, m, c, sum)| {
                    let (m, c) = (m + 1, c + 1);
                    let sum = sum + &m + &c;
                    (i + 1, m, c, sum)
                },
            );
            assert_eq!(whole(&device.session(&g), &[], &sum), 10_100, "{}", device.name);
        }
    }
}

/// `testWhile_4`: twice each element of a tensor whose size ends the loop: 2 (1 + .. + 6) = 42.
#[test]
fn while_4() {
    for device in devices() {
        let g = Graph::new();
        let zero = || g.constant(0i32);
        let x = [1i32, 2, 3, 4, 5, 6];
        for x in [g.constant(x), g.placeholder_with_default("x", x, dims![None])] {
            let size = x.size().cast(I32);
            let (.., sum) = g.while_loop(
                (zero(), zero(), zero(), zero()),
                |(i, ..)| i.less(&size),
                |(i, _, _, sum)| {
                    let (m, c) = (x.gather(i, 0), x.gather(i, 0));
                    let sum = sum + &m + &c;
                    (i + 1, m, c, sum)
                },
            );
            assert_eq!(whole(&device.session(&g), &[], &sum), 42, "{}", device.name);
        }
    }
}

/// `testWhileExternalControlDependenciesNoInput`: what a body comes after runs once, before the loop, though the body
/// uses nothing else; an iteration gives 5. The last loop begins with 5 and has none, and its edge counts all the same.
#[test]
fn while_external_control_dependencies_no_input() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(0.0), F32, []);
        let add = v.assign_add(1.0).operation();
        let looped = |first: i32, limit: &Tensor| {
            let five = |_: &Tensor| g.after(&[&add], || g.constant(5i32));
            g.while_loop(g.constant(first), |i| i.less(limit), five)
        };
        let [known, fed] = known_and_not(&g, 5);
        let loops = [looped(0, &known), looped(0, &fed), looped(5, &fed)];
        let session = initialized(device, &g);
        for (looped, adds) in loops.iter().zip([1.0, 2.0, 3.0]) {
            assert_eq!(whole(&session, &[], looped), 5, "{}", device.name);
            assert_eq!(number(&session, &[], v.value()), adds, "{}", device.name);
        }
    }
}

/// `testWhileWithControl_1`: a constant that comes after what was carried is carried next: 12, as 10 iterations go.
#[test]
fn while_with_control_1() {
    for device in devices() {
        let g = Graph::new();
        for limit in known_and_not(&g, 10) {
            let start = (g.constant(0i32), g.constant(0i32));
            let (_, r) = g.while_loop(
                start,
                |(n, _)| n.less(&limit),
                |(n, r)| (n + 1, g.after(&[&r.operation()], || g.constant(12i32))),
            );
            assert_eq!(whole(&device.session(&g), &[], &r), 12, "{}", device.name);
        }
    }
}

/// `testWhileWithControl_2`: the same where that constant ends the loop, after one iteration: 12.
#[test]
fn while_with_control_2() {
    for device in devices() {
        let g = Graph::new();
        for limit in known_and_not(&g, 10) {
            let r = g.while_loop(
                g.constant(0i32),
                |r| r.less(&limit),
                |r| g.after(&[&r.operation()], || g.constant(12i32)),
            );
            assert_eq!(whole(&device.session(&g), &[], &r), 12, "{}", device.name);
        }
    }
}

/// Checks that `x` is 10 in a run that is fed `b`, and that no other run gives it.
fn check_ten_after(device: &TestDevice, g: &Graph, b: &Tensor, x: &Tensor) {
    let session = device.session(g);
    assert_eq!(whole(&session, &[b.feed(true)], x), 10, "{}", device.name);
    let error = session.run(&[], x).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.message().contains("is needed and not fed"), "{}: {error}", device.name);
}

/// `testWhileWithControl_3`: a loop that comes after a placeholder, counting up to 10.
#[test]
fn while_with_control_3() {
    for device in devices() {
        let g = Graph::new();
        let b = g.placeholder("b", Bool, dims![]);
        let (c, zero) = (g.constant(1i32), g.constant(0i32));
        for limit in known_and_not(&g, 10) {
            let count = || g.while_loop(zero.clone(), |x| x.less(&limit), |x| x + &c);
            let x = g.after(&[&b.operation()], count);
            check_ten_after(device, &g, &b, &x);
        }
    }
}

/// `testWhileWithControl_4`: the same with an operation in the body that has only outer inputs: 10.
#[test]
fn while_with_control_4() {
    for device in devices() {
        let g = Graph::new();
        let b = g.placeholder("b", Bool, dims![]);
        let (c, zero) = (g.constant(1i32), g.constant(0i32));
        for limit in known_and_not(&g, 10) {
            let count = || g.while_loop(zero.clone(), |x| x.less(&limit), |x| x + c.identity());
            let x = g.after(&[&b.operation()], count);
            check_ten_after(device, &g, &b, &x);
        }
    }
}

/// `testWhileWithControl_5`: the same where it is the body that comes after the placeholder: 10.
#[test]
fn while_with_control_5() {
    for device in devices() {
        let g = Graph::new();
        let b = g.placeholder("b", Bool, dims![]);
        let (c, zero) = (g.constant(1i32), g.constant(0i32));
        for limit in known_and_not(&g, 10) {
            let add = |x: &Tensor| g.after(&[&b.operation()], || x + &c);
            let x = g.while_loop(zero.clone(), |x| x.less(&limit), add);
            check_ten_after(device, &g, &b, &x);
        }
    }
}

/// `testWhileCondWithControl`: branches in a loop's condition and body, where the loop comes after something: from 5
/// down to 0.
#[test]
fn while_cond_with_control() {
    for device in devices() {
        let g = Graph::new();
        let is_above = |i: &Tensor| {
            let above = i.greater(0);
            g.cond(&above, || g.constant(true), || g.constant(false))
        };
        let less = |i: &Tensor| g.cond(&i.greater(0), || i - 1, || i.clone());
        for start in known_and_not(&g, 5) {
            let before = g.no_op();
            let last = g.after(&[&before], || g.while_loop(start, is_above, less));
            assert_eq!(whole(&device.session(&g), &[], &last), 0, "{}", device.name);
        }
    }
}

/// `testWhileCondWithControl_1`: 2 is squared four times by a branch that each iteration comes after: 65536.
#[test]
fn while_cond_with_control_1() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(2.0), F32, []);
        for p in given_and_not(&g, true) {
            let next = |i: &Tensor| {
                let square = g.cond(&p, || v.assign(v.read().square()), || v.read());
                g.after(&[&square.operation()], || i + 1)
            };
            let last = g.while_loop(g.constant(0i32), |i| i.less(4), next);
            let session = initialized(device, &g);
            assert_eq!(whole(&session, &[], &last), 4, "{}", device.name);
            assert_eq!(number(&session, &[], v.value()), 65_536.0, "{}", device.name);
        }
    }
}

/// `testWhileCondExitControl`: a branch gives 6 after a loop in it has ended, which assigns 0 to 99.
#[test]
fn while_cond_exit_control() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(1.0), I32, []);
        for p in given_and_not(&g, false) {
            let after_loop = || {
                let last = g.while_loop(g.constant(0i32), |i| i.less(100), |i| v.assign(i) + 1);
                g.after(&[&last.operation()], || g.constant(6.0f32))
            };
            let r = g.cond(&p, || g.constant(1.0f32), after_loop);
            let session = initialized(device, &g);
            assert_eq!(number(&session, &[], &r), 6.0, "{}", device.name);
            assert_eq!(whole(&session, &[], v.value()), 99, "{}", device.name);
        }
    }
}

/// `testCondWhile_2`: the branch that is taken where the condition is false is a loop up to 10.
#[test]
fn cond_while_2() {
    for device in devices() {
        let g = Graph::new();
        let n = g.constant(0i32);
        for one in known_and_not(&g, 1) {
            let count = || g.while_loop(n.clone(), |x| x.less(10), |x| x + 1);
            let r = g.cond(&one.less(0), || &n + 1, count);
            assert_eq!(whole(&device.session(&g), &[], &r), 10, "{}", device.name);
        }
    }
}

/// `testCondWhile_3`: from 0 up to 10 on the CPU, with a gradient of 1, or twice 0, with one of 2.
#[test]
fn cond_while_3() {
    for device in devices() {
        let g = Graph::new();
        let p = g.placeholder("p", Bool, dims![]);
        let n = g.constant(0.0f32);
        let add = |x: &Tensor| g.device("CPU:0", || x + 1.0);
        let count = || g.while_loop(n.clone(), |x| x.less(10.0), add);
        let r = g.cond(&p, count, || &n * 2.0);
        let grad = r.gradients(&[&n]).remove(0).expect("a gradient");
        let session = device.session(&g);
        for (p_, expected) in [(true, [10.0, 1.0]), (false, [0.0, 2.0])] {
            let feeds = [p.feed(p_)];
            let got = [number(&session, &feeds, &r), number(&session, &feeds, &grad)];
            assert_eq!(got, expected, "{p_} on {}", device.name);
        }
    }
}

/// `testWhileCond_2`: a branch in a body adds 1, and the other would give what the loop began with: 10.
#[test]
fn while_cond_2() {
    for device in devices() {
        let g = Graph::new();
        let n = g.constant(0i32);
        for p in given_and_not(&g, true) {
            let next = |x: &Tensor| g.cond(&p, || x + 1, || n.clone());
            let r = g.while_loop(n.clone(), |x| x.less(10), next);
            assert_eq!(whole(&device.session(&g), &[], &r), 10, "{}", device.name);
        }
    }
}

/// `testWhileCond_3`: a branch in a body whose condition is computed there adds 1, and the other would subtract it: 10.
#[test]
fn while_cond_3() {
    for device in devices() {
        let g = Graph::new();
        for zero in known_and_not(&g, 0) {
            let next = |x: &Tensor| g.cond(&zero.less(1), || x + 1, || x - 1);
            let r = g.while_loop(g.constant(0i32), |x| x.less(10), next);
            assert_eq!(whole(&device.session(&g), &[], &r), 10, "{}", device.name);
        }
    }
}

fn three_four_five(g: &Graph, name: &str) -> Variable {
    g.variable(name, Init::Value([3.0f32, 4.0, 5.0].into()), F32, [3])
}

/// `testWhileUpdateVariable_1`: each of three iterations puts 10 at its own place.
#[test]
fn while_update_variable_1() {
    for device in devices() {
        let g = Graph::new();
        let select = three_four_five(&g, "select");
        for limit in known_and_not(&g, 3) {
            let next = |j: &Tensor| {
                let put = select.scatter_update(j, 10.0).operation();
                g.after(&[&put], || j + 1)
            };
            let last = g.while_loop(g.constant(0i32), |j| j.less(&limit), next);
            let session = initialized(device, &g);
            assert_eq!(whole(&session, &[], &last), 3, "{}", device.name);
            assert_eq!(elements(&session, select.value()), [10.0; 3], "{}", device.name);
        }
    }
}

/// `testWhileUpdateVariable_2`: the same of two variables at once, both all 10 in the end.
#[test]
fn while_update_variable_2() {
    for device in devices() {
        let g = Graph::new();
        let selects = ["select1", "select2"].map(|name| three_four_five(&g, name));
        for limit in known_and_not(&g, 3) {
            let next = |j: &Tensor| {
                let puts = selects.each_ref().map(|v| v.scatter_update(j, 10.0).operation());
                g.after(&[&g.group(&puts)], || j + 1)
            };
            let last = g.while_loop(g.constant(0i32), |j| j.less(&limit), next);
            let session = initialized(device, &g);
            assert_eq!(whole(&session, &[], &last), 3, "{}", device.name);
            for select in &selects {
                assert_eq!(elements(&session, select.value()), [10.0; 3], "{}", device.name);
            }
        }
    }
}

/// `testWhileUpdateVariable_3`: what a scatter stores is carried, and all 10 in the end.
#[test]
fn while_update_variable_3() {
    for device in devices() {
        let g = Graph::new();
        let select = three_four_five(&g, "select");
        for limit in known_and_not(&g, 3) {
            let (_, stored) = g.while_loop(
                (g.constant(0i32), select.value().identity()),
                |(j, _)| j.less(&limit),
                |(j, _)| (j + 1, select.scatter_update(j, 10.0)),
            );
            let session = initialized(device, &g);
            assert_eq!(elements(&session, &stored), [10.0; 3], "{}", device.name);
            assert_eq!(elements(&session, select.value()), [10.0; 3], "{}", device.name);
        }
    }
}

/// Two variables of i32 that begin with 0.
fn two_counts(g: &Graph) -> [Variable; 2] {
    ["a", "b"].map(|name| g.variable(name, Init::Zeros, I32, []))
}

/// The loop gives 10, and leaves this in variables that had nothing.
#[track_caller]
fn counted(device: &TestDevice, g: &Graph, last: &Tensor, counts: [&Variable; 2], left: [i32; 2]) {
    let session = initialized(device, g);
    let now = || counts.map(|v| whole(&session, &[], v.value()));
    assert_eq!(now(), [0, 0], "{}", device.name);
    assert_eq!(whole(&session, &[], last), 10, "{}", device.name);
    assert_eq!(now(), left, "{}", device.name);
}

/// `testWhileUpdateVariable_4`: 1, which is stored in `a` once and before the loop, is added to `b` ten times.
#[test]
fn while_update_variable_4() {
    for device in devices() {
        let g = Graph::new();
        let [a, b] = two_counts(&g);
        let once = a.assign_add(1);
        for limit in known_and_not(&g, 10) {
            let next = |i: &Tensor| {
                let add = b.assign_add(&once).operation();
                g.after(&[&add], || i + 1)
            };
            let last = g.while_loop(g.constant(0i32), |i| i.less(&limit), next);
            counted(device, &g, &last, [&a, &b], [1, 10]);
        }
    }
}

/// `testWhileUpdateVariable_5`: the condition reads `b`, to which the body adds 1 as it does to `a`: both are 10.
#[test]
fn while_update_variable_5() {
    for device in devices() {
        let g = Graph::new();
        let [a, b] = two_counts(&g);
        let next = |_: &Tensor| {
            let adds = [&a, &b].map(|v| v.assign_add(1).operation());
            g.after(&[&adds[0], &adds[1]], || b.read())
        };
        let last = g.while_loop(b.value().clone(), |_| b.read().less(10), next);
        counted(device, &g, &last, [&a, &b], [10, 10]);
    }
}

/// `testWhileUpdateVariable_6`: 1 is added to `a`, and then `a` to `b`: 1 + 2 + .. + 10 = 55.
#[test]
fn while_update_variable_6() {
    for device in devices() {
        let g = Graph::new();
        let [a, b] = two_counts(&g);
        for limit in known_and_not(&g, 10) {
            let next = |i: &Tensor| {
                let one = a.assign_add(1).operation();
                let add = g.after(&[&one], || b.assign_add(a.read())).operation();
                g.after(&[&add], || i + 1)
            };
            let last = g.while_loop(g.constant(0i32), |i| i.less(&limit), next);
            counted(device, &g, &last, [&a, &b], [10, 55]);
        }
    }
}
