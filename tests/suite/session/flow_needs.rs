//! What a run needs of branches and loops is what its fetches need in their bodies.

use convoke::prelude::*;
use convoke::{CallableOptions, ModelForm, ModelSpec, SavedModel, SignatureSpec};
use convoke_tests::{Folder, TestDevice, devices};

/// A graph with what bodies capture.
struct Given {
    g: Graph,
    v: Variable,
    /// Adds 1 to `v`.
    add: Tensor,
    /// What nobody feeds.
    unfed: Tensor,
    p: Tensor,
    x: Tensor,
    n: Tensor,
    rows: Tensor,
}

impl Given {
    fn new() -> Self {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(0.0), F32, []);
        let add = v.assign_add(1.0);
        let [unfed, x] = ["unfed", "x"].map(|name| g.placeholder(name, F32, dims![]));
        let (p, n) = (g.placeholder("p", Bool, dims![]), g.placeholder("n", I32, dims![]));
        let rows = g.placeholder("rows", F32, dims![None]);
        Self { g, v, add, unfed, p, x, n, rows }
    }

    fn session(&self, device: &TestDevice) -> Session {
        let session = device.session(&self.g);
        session.run(&[], self.g.initializers()).unwrap();
        session
    }

    fn feeds(&self) -> [Feed<'_>; 4] {
        let Self { p, x, n, rows, .. } = self;
        [p.feed(true), x.feed(3.0), n.feed(2), rows.feed([1.0f32, 2.0, 4.0])]
    }

    /// Checks that `fetch` gives `expected` and needs neither `add` nor `unfed`.
    fn check(&self, fetch: &Tensor, expected: f32) {
        for device in devices() {
            let session = self.session(device);
            let found = session.run(&self.feeds(), fetch).unwrap();
            assert_eq!(found.sum_of(), expected, "{}", device.name);
            assert_eq!(value(&session, &self.v), 0.0, "{}", device.name);
            let Self { p, x, n, rows, .. } = self;
            let mut run = session.partial_run(&[p, x, n, rows], fetch).unwrap();
            let found = run.run(&self.feeds(), fetch).unwrap();
            assert_eq!(found.sum_of(), expected, "{}", device.name);
            assert!(run.is_done());
            assert_eq!(value(&session, &self.v), 0.0, "{}", device.name);
            session.explain(&self.feeds(), fetch).unwrap();
        }
    }

    /// Checks that `fetch` needs `add` once, and with `unfed` needs that.
    fn check_needs<F: Fetch>(&self, adds: &F, lacks: &F) {
        let session = self.session(&devices()[0]);
        session.run(&self.feeds(), adds).unwrap();
        assert_eq!(value(&session, &self.v), 1.0);
        let error = session.run(&self.feeds(), lacks).err().unwrap();
        assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("unfed")));
        assert!(error.message().contains("is needed and not fed"), "{error}");
    }
}

/// The sum of a tensor's elements.
trait Sum {
    fn sum_of(&self) -> f32;
}

impl Sum for HostTensor {
    fn sum_of(&self) -> f32 {
        self.to_vec::<f32>().unwrap().iter().sum()
    }
}

fn value(session: &Session, v: &Variable) -> f32 {
    session.run(&[], v).unwrap().scalar::<f32>().unwrap()
}

#[test]
fn what_only_other_results_of_a_branch_capture_is_not_needed() {
    let given = Given::new();
    let Given { g, add, unfed, p, x, .. } = &given;
    let [adds, lacks] =
        [add, unfed].map(|outer| g.cond(p, || (outer * 2.0, x * 5.0), || (x.clone(), x.clone())));
    given.check(&adds.1, 15.0);
    given.check(&lacks.1, 15.0);
    given.check_needs(&adds.0, &lacks.0);
    // As targets, and for what runs after them, branches give all.
    given.check_needs(&adds.1.operation(), &lacks.1.operation());
    let [adds, lacks] = [adds, lacks].map(|both| g.after(&[&both.1.operation()], || x.identity()));
    given.check_needs(&adds, &lacks);
}

#[test]
fn what_only_other_results_of_a_case_capture_is_not_needed() {
    let given = Given::new();
    let Given { g, add, unfed, p, x, n, .. } = &given;
    let [adds, lacks] = [add, unfed].map(|outer| {
        let one = || (outer * 2.0, x * 5.0);
        let two = || (x.clone(), outer.clone());
        let case = g.case(vec![(p.clone(), Box::new(one)), (p.clone(), Box::new(two))], || {
            (x.clone(), x.clone())
        });
        let index = n - 2;
        let switch = g.switch_case(&index, vec![Box::new(one)], || (x.clone(), x.clone()));
        (case, switch)
    });
    given.check(&adds.1.1, 15.0);
    given.check(&lacks.1.1, 15.0);
    // A branch that is not taken captures it.
    given.check_needs(&adds.0.1, &lacks.0.1);
    given.check_needs(&adds.1.0, &lacks.1.0);
}

#[test]
fn what_only_other_results_of_a_loop_capture_is_not_needed() {
    let given = Given::new();
    let Given { g, add, unfed, x, n, .. } = &given;
    // Of a length that is known while building, and of one that is not.
    for length in [g.constant(2i32), n.clone()] {
        let [adds, lacks] = [add, unfed].map(|outer| {
            g.while_loop(
                (x.clone(), g.constant(0i32), x.clone()),
                |(_, i, _)| i.less(&length),
                |(a, i, b)| (a + outer, i + 1, b * 2.0),
            )
        });
        given.check(&adds.2, 12.0);
        given.check(&lacks.2, 12.0);
        given.check_needs(&adds.0, &lacks.0);
        given.check_needs(&adds.2.operation(), &lacks.2.operation());
    }
}

#[test]
fn what_only_other_results_of_a_loop_begin_with_is_not_needed() {
    let given = Given::new();
    let Given { g, add, unfed, x, n, .. } = &given;
    for length in [g.constant(2i32), n.clone()] {
        let [adds, lacks] = [add, unfed].map(|outer| {
            g.while_loop(
                (outer * 2.0, g.constant(0i32), x.clone()),
                |(_, i, _)| i.less(&length),
                |(a, i, b)| (a + 1.0, i + 1, b * 2.0),
            )
        });
        given.check(&adds.2, 12.0);
        given.check(&lacks.2, 12.0);
        given.check_needs(&adds.0, &lacks.0);
        // `a` is needed by `b`.
        let [adds, lacks] = [add, unfed].map(|outer| {
            g.while_loop(
                (outer * 2.0, g.constant(0i32), x.clone()),
                |(_, i, _)| i.less(&length),
                |(a, i, b)| (a + 1.0, i + 1, b * a),
            )
        });
        given.check_needs(&adds.2, &lacks.2);
    }
}

#[test]
fn what_only_other_results_of_a_scan_need_is_not_needed() {
    let given = Given::new();
    let Given { g, add, unfed, x, rows, .. } = &given;
    // One loop is part of a program, the length of the other is told by what is fed.
    for rows in [g.constant([1.0f32, 2.0, 4.0]), rows.clone()] {
        let [adds, lacks] = [add, unfed].map(|outer| {
            g.scan((x.clone(), outer.clone()), rows.clone(), |(a, b), row| {
                ((a + row, b * 1.0), (row * outer, a * 1.0, row + outer))
            })
        });
        // 3 + 1 + 2 + 4, and 3 + 4 + 6.
        given.check(&adds.0.0, 10.0);
        given.check(&lacks.0.0, 10.0);
        given.check(&adds.1.1, 13.0);
        given.check(&lacks.1.1, 13.0);
        given.check_needs(&adds.0.1, &lacks.0.1);
        given.check_needs(&adds.1.0, &lacks.1.0);
    }
}

#[test]
fn what_only_other_results_of_inner_branches_and_loops_capture_is_not_needed() {
    let given = Given::new();
    let Given { g, add, unfed, p, x, n, .. } = &given;
    let inner = |outer: &Tensor| g.cond(p, || (outer * 2.0, x * 5.0), || (x.clone(), x.clone()));
    let [adds, lacks] =
        [add, unfed].map(|outer| g.cond(p, || inner(outer), || (x.clone(), x.clone())));
    given.check(&adds.1, 15.0);
    given.check(&lacks.1, 15.0);
    given.check_needs(&adds.0, &lacks.0);
    // The one result of the outer branch needs one of the inner one.
    let [adds, lacks] = [add, unfed].map(|outer| {
        let first = g.cond(p, || inner(outer).0 + 1.0, || x.clone());
        let second = g.cond(p, || inner(outer).1 + 1.0, || x.clone());
        (first, second)
    });
    given.check(&adds.1, 16.0);
    given.check(&lacks.1, 16.0);
    given.check_needs(&adds.0, &lacks.0);
    let [adds, lacks] = [add, unfed].map(|outer| {
        let start = (x.clone(), g.constant(0i32), x.clone());
        g.while_loop(
            start,
            |(_, i, _)| i.less(n),
            |(a, i, b)| {
                let both = || (a + outer, b * 2.0);
                let (a, b) = g.cond(&b.greater(0.0), both, || (a.clone(), b.clone()));
                (a, i + 1, b)
            },
        )
    });
    given.check(&adds.2, 12.0);
    given.check(&lacks.2, 12.0);
    given.check_needs(&adds.0, &lacks.0);
    let [adds, lacks] = [add, unfed].map(|outer| {
        let go_round = || {
            let start = (outer.clone(), g.constant(0i32), x.clone());
            let (a, _, b) =
                g.while_loop(start, |(_, i, _)| i.less(n), |(a, i, b)| (a * 2.0, i + 1, b * 2.0));
            (a, b)
        };
        g.cond(p, go_round, || (x.clone(), x.clone()))
    });
    given.check(&adds.1, 12.0);
    given.check(&lacks.1, 12.0);
    given.check_needs(&adds.0, &lacks.0);
}

#[test]
fn what_only_other_results_run_after_is_not_needed() {
    let given = Given::new();
    let Given { g, add, unfed, p, x, .. } = &given;
    let waiting = |outer: &Tensor| {
        let first = g.after(&[&outer.operation()], || x.identity());
        g.cond(p, || (first.clone(), x * 5.0), || (x.clone(), x.clone()));
        let waits = || (g.after(&[&outer.operation()], || x.identity()), x * 5.0);
        let inner = || g.cond(p, waits, || (x.clone(), x.clone()));
        g.cond(p, inner, || (x.clone(), x.clone()))
    };
    let [adds, lacks] = [add, unfed].map(waiting);
    given.check(&adds.1, 15.0);
    given.check(&lacks.1, 15.0);
    given.check_needs(&adds.0, &lacks.0);
    // A branch that is itself built after it still runs after it.
    let [adds, lacks] = [add, unfed].map(|outer| g.after(&[&outer.operation()], || waiting(outer)));
    given.check_needs(&adds.1, &lacks.1);
}

#[test]
fn what_has_an_effect_in_a_loop_still_needs_what_it_captures() {
    let given = Given::new();
    let Given { g, add, unfed, x, n, .. } = &given;
    let w = g.variable("w", Init::Constant(0.0), F32, []);
    let [adds, lacks] = [add, unfed].map(|outer| {
        let start = (x.clone(), g.constant(0i32), x.clone());
        g.while_loop(
            start,
            |(_, i, _)| i.less(n),
            |(a, i, b)| {
                let set = w.assign(a + outer);
                (set * 1.0, i + 1, b * 2.0)
            },
        )
    });
    given.check_needs(&adds.2, &lacks.2);
}

#[test]
fn gradients_need_what_their_results_need() {
    let given = Given::new();
    let Given { g, add, unfed, p, x, n, .. } = &given;
    let slope = |y: &Tensor| y.gradients(&[x]).remove(0).unwrap();
    let [adds, lacks] = [add, unfed].map(|outer| {
        let cond = g.cond(p, || (outer * x, x * x), || (x.clone(), x.clone()));
        let start = (x.clone(), g.constant(0i32), x.clone());
        let loops =
            g.while_loop(start, |(_, i, _)| i.less(n), |(a, i, b)| (a * outer, i + 1, b * b));
        (cond, loops)
    });
    // 2 * 3, and x to the fourth.
    given.check(&slope(&adds.0.1), 6.0);
    given.check(&slope(&lacks.0.1), 6.0);
    given.check(&slope(&adds.1.2), 108.0);
    given.check(&slope(&lacks.1.2), 108.0);
    given.check_needs(&slope(&adds.0.0), &slope(&lacks.0.0));
    given.check_needs(&slope(&adds.1.0), &slope(&lacks.1.0));
}

#[test]
fn what_only_other_results_capture_is_not_taken_from_a_queue() {
    let given = Given::new();
    let Given { g, p, x, .. } = &given;
    let queue = g.fifo_queue("queue", 10, [(F32, dims![])]);
    let taken = queue.dequeue().remove(0);
    let both = g.cond(p, || (taken, x * 5.0), || (x.clone(), x.clone()));
    let session = given.session(&devices()[0]);
    session.run(&[], queue.enqueue(&[&g.constant(7.0f32)])).unwrap();
    let size = |session: &Session| session.run(&[], queue.size()).unwrap().scalar::<i32>().unwrap();
    assert_eq!(session.run(&given.feeds(), &both.1).unwrap().sum_of(), 15.0);
    assert_eq!(size(&session), 1);
    assert_eq!(session.run(&given.feeds(), &both.0).unwrap().sum_of(), 7.0);
    assert_eq!(size(&session), 0);
}

#[test]
fn what_is_connected_is_needed_where_it_is_used() {
    let given = Given::new();
    let Given { g, add, unfed, p, x, .. } = &given;
    let both = g.cond(p, || (unfed * 2.0, x * 5.0), || (x.clone(), x.clone()));
    let session = given.session(&devices()[0]);
    for (fetch, expected, now) in [(&both.1, 15.0, 0.0), (&both.0, 2.0, 1.0)] {
        let options = CallableOptions::new().connect(add, unfed);
        let call = session.callable_with(&[p, x], fetch, &options).unwrap();
        let found = call.call((true, 3.0f32)).unwrap();
        assert_eq!((found.sum_of(), value(&session, &given.v)), (expected, now));
    }
}

#[test]
fn loaded_models_need_what_their_outputs_need() {
    for form in [ModelForm::Trainable, ModelForm::Frozen] {
        let given = Given::new();
        let Given { g, unfed, p, x, n, .. } = &given;
        let waits = || (g.after(&[&unfed.operation()], || x.identity()), x * 5.0);
        let (_, y) = g.cond(p, waits, || (x.clone(), x.clone()));
        let start = (unfed.clone(), g.constant(0i32), y);
        let (_, _, y) =
            g.while_loop(start, |(_, i, _)| i.less(n), |(a, i, b)| (a + 1.0, i + 1, b * 2.0));
        let session = given.session(&devices()[0]);
        let named = |list: &[(&str, &Tensor)]| {
            list.iter().map(|(name, tensor)| ((*name).to_owned(), (*tensor).clone())).collect()
        };
        let inputs = named(&[("p", p), ("x", x), ("n", n)]);
        let signature = SignatureSpec { inputs, outputs: named(&[("y", &y)]), operations: vec![] };
        let folder = Folder::new("flow_needs");
        let file = folder.path().join("model.safetensors");
        session.save_model(&file, &ModelSpec { signature, form, signatures: Vec::new() }).unwrap();
        let model = SavedModel::load(&file, &Devices::cpu()).unwrap();
        let input = |name: &str| model.input(name).unwrap();
        let feeds = [input("p").feed(true), input("x").feed(3.0), input("n").feed(2)];
        let found = model.session().run(&feeds, model.output("y").unwrap()).unwrap();
        assert_eq!(found.sum_of(), 60.0);
    }
}
