//! Loops carry on what is needed of them: what decides when they end, and what outputs need.

use convoke::prelude::*;
use convoke_tests::devices;

/// Whether any program of a run contains a text.
fn contains(session: &Session, feeds: &[Feed<'_>], fetch: &Tensor, text: &str) -> bool {
    let programs = session.programs(feeds, fetch).unwrap();
    programs.iter().any(|(_, program)| program.to_string().contains(text))
}

fn floats(tensor: &HostTensor) -> Vec<f32> {
    tensor.to_vec::<f32>().unwrap()
}

/// `a` doubles until its sum is 100, `b` is a long way of doing nothing with `b` alone.
fn two(g: &Graph, x: &Tensor) -> [Tensor; 2] {
    let (a, b) = g.while_loop(
        (x.clone(), x.clone()),
        |(a, _)| a.sum(()).less(100.0),
        |(a, b)| (a * 2.0, b.tanh()),
    );
    [a, b]
}

#[test]
fn what_nobody_needs_is_not_computed() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![2]);
        let [a, b] = two(&g, &x);
        let session = device.session(&g);
        let feeds = [x.feed([1.0f32, 1.0])];
        assert!(!contains(&session, &feeds, &a, "tanh"), "{}", device.name);
        assert!(contains(&session, &feeds, &b, "tanh"), "{}", device.name);
        // 1 doubled six times is 64, twice 128.
        assert_eq!(floats(&session.run(&feeds, &a).unwrap()), [64.0, 64.0], "{}", device.name);
        let six = (0..6).fold(1.0f64, |b, _| b.tanh()) as f32;
        let found = floats(&session.run(&feeds, &b).unwrap());
        assert!((found[0] - six).abs() < 1e-4, "{}: {found:?}", device.name);
        let [both_a, both_b] = session.run(&feeds, [&a, &b]).unwrap();
        assert_eq!((floats(&both_a)[1], floats(&both_b)), (64.0, found), "{}", device.name);
    }
}

#[test]
fn what_others_need_is_kept() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![2]);
        // `c` is needed by `b`, and `b` by `a`, from one trip to the next; `d` by nobody.
        let (_, a, _, _, d) = g.while_loop(
            (g.constant(0i32), x.clone(), x.clone(), x.clone(), x.clone()),
            |(i, ..)| i.less(4),
            |(i, a, b, c, d)| (i + 1, a + b, b + c, c.tanh(), d.exp()),
        );
        let session = device.session(&g);
        let feeds = [x.feed([1.0f32, 1.0])];
        assert!(contains(&session, &feeds, &a, "tanh"), "{}", device.name);
        assert!(!contains(&session, &feeds, &a, "exp"), "{}", device.name);
        let (mut ra, mut rb, mut rc) = (1.0f64, 1.0f64, 1.0f64);
        for _ in 0..4 {
            (ra, rb, rc) = (ra + rb, rb + rc, rc.tanh());
        }
        let found = floats(&session.run(&feeds, &a).unwrap());
        assert!((f64::from(found[0]) - ra).abs() < 1e-4, "{}: {found:?}, {ra}", device.name);
        assert!(contains(&session, &feeds, &d, "exp"), "{}", device.name);
    }
}

#[test]
fn what_has_an_effect_is_kept() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let v = g.variable("v", Init::Constant(0.0), F32, []);
        let (a, _) = g.while_loop(
            (x.clone(), x.clone()),
            |(a, _)| a.less(10.0),
            |(a, b)| {
                let add = v.assign_add(g.constant(1.0f32)).operation();
                (a + 3.0, g.after(&[&add], || b.tanh() + 0.5))
            },
        );
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let a = session.run(&[x.feed(1.0)], &a).unwrap();
        assert_eq!(a.scalar::<f32>().unwrap(), 10.0, "{}", device.name);
        // 1, 4, 7: three trips.
        let v = session.run(&[], v.value()).unwrap();
        assert_eq!(v.scalar::<f32>().unwrap(), 3.0, "{}", device.name);
    }
}

/// A branch or loop without effects is left out as any other operation, and one with effects is not.
#[test]
fn pure_bodies_are_left_out() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let v = g.variable("v", Init::Constant(0.0), F32, []);
        let (a, _, _) = g.while_loop(
            (x.clone(), x.clone(), x.clone()),
            |(a, ..)| a.less(10.0),
            |(a, b, c)| {
                let b = g.cond(&b.greater(0.0), || b.tanh(), || b.exp());
                let c = g.while_loop(c.clone(), |c| c.less(-1.0), |c| c.sqrt() + 1.0);
                (a + 3.0, b, c)
            },
        );
        let (stored, _) = g.while_loop(
            (x.clone(), x.clone()),
            |(a, _)| a.less(10.0),
            |(a, b)| {
                let add = || v.assign_add(g.constant(1.0f32)).operation();
                let b = g.cond(&b.greater(0.0), || g.after(&[&add()], || b.tanh()), || b.exp());
                (a + 3.0, b)
            },
        );
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let feeds = [x.feed(1.0)];
        for text in ["tanh", "exp", "sqrt"] {
            assert!(!contains(&session, &feeds, &a, text), "{}: {text}", device.name);
        }
        assert_eq!(session.run(&feeds, &a).unwrap().scalar::<f32>().unwrap(), 10.0);
        assert_eq!(session.run(&feeds, &stored).unwrap().scalar::<f32>().unwrap(), 10.0);
        let v = session.run(&[], v.value()).unwrap();
        assert_eq!(v.scalar::<f32>().unwrap(), 3.0, "{}", device.name);
    }
}

/// What happens on the way to a tensor that the body only passes on does not happen in the loop, and not at all if nobody
/// needs what is passed on.
#[test]
fn a_body_that_gives_an_outer_tensor_does_not_have_its_effects() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let v = g.variable("v", Init::Constant(0.0), F32, []);
        let outer = v.assign_add(1.0) * 2.0;
        let (a, b, _) = g.while_loop(
            (x.clone(), x.clone(), x.clone()),
            |(a, ..)| a.less(10.0),
            |(a, _, c)| (a + 3.0, outer.clone(), c.tanh()),
        );
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let feeds = [x.feed(1.0)];
        assert!(!contains(&session, &feeds, &a, "tanh"), "{}", device.name);
        assert_eq!(session.run(&feeds, &a).unwrap().scalar::<f32>().unwrap(), 10.0);
        let now = || session.run(&[], v.value()).unwrap().scalar::<f32>().unwrap();
        assert_eq!(now(), 0.0, "{}", device.name);
        // What a loop captures is computed before it, once.
        assert!(!contains(&session, &feeds, &b, "tanh"), "{}", device.name);
        assert_eq!(session.run(&feeds, &b).unwrap().scalar::<f32>().unwrap(), 2.0);
        assert_eq!(now(), 1.0, "{}", device.name);
    }
}

/// Gradients need what was carried on the way there.
#[test]
fn gradients_keep_what_they_go_back_over() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let (_, a, _) = g.while_loop(
            (g.constant(0i32), x.clone(), x.clone()),
            |(i, ..)| i.less(3),
            |(i, a, b)| (i + 1, a * a, b.exp()),
        );
        let slope = a.gradients(&[&x]).remove(0).unwrap();
        let session = device.session(&g);
        let feeds = [x.feed(1.5)];
        assert!(!contains(&session, &feeds, &slope, "exp"), "{}", device.name);
        // a is x to the 8th.
        let found = session.run(&feeds, &slope).unwrap().scalar::<f32>().unwrap();
        assert!((found - 8.0 * 1.5f32.powi(7)).abs() < 1e-3, "{}: {found}", device.name);
    }
}
