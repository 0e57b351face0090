//! Partial runs with branches, loops, assertions, functions of the host and queues: what is computed when, what is stored
//! at the end, and that in whatever parts a graph is run, it gives the bits of one run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use convoke::prelude::*;
use convoke::{
    AccumulatorOptions, Barrier, ConditionalAccumulator, MutableTable, PartialRun, Queue,
    Reduction, RunOptions, StagingArea, StagingOptions,
};
use convoke_tests::{TestDevice, devices, ramp};

fn scalar(tensor: HostTensor) -> f32 {
    tensor.scalar::<f32>().unwrap()
}

fn value(session: &Session, v: &Variable) -> f32 {
    scalar(session.run(&[], v).unwrap())
}

fn initialized(device: &TestDevice, g: &Graph) -> Session {
    let session = device.session(g);
    session.run(&[], g.initializers()).unwrap();
    session
}

/// The tensor, and a count of how often it was computed.
fn counted(g: &Graph, x: &Tensor) -> (Tensor, Arc<AtomicUsize>) {
    let calls = Arc::<AtomicUsize>::default();
    let counts = calls.clone();
    let y = g.host_function("counted", &[x], [(F32, dims![])], move |inputs| {
        counts.fetch_add(1, Ordering::Relaxed);
        Ok(inputs.to_vec())
    });
    (y[0].clone(), calls)
}

#[test]
fn a_branch_that_has_run_does_not_run_again() {
    for device in devices() {
        let g = Graph::new();
        let [x, y] = ["x", "y"].map(|name| g.placeholder(name, F32, dims![]));
        let v = g.variable("v", Init::Constant(1.0), F32, []);
        let (counts, calls) = counted(&g, &x);
        let (a, b) = g.cond(
            &x.greater(0.0),
            || (counted(&g, &(&counts * 2.0)).0, v.assign_add(&counts)),
            || (counts.clone(), v.read()),
        );
        let (sum, also) = (&a + &y, &b * &y);
        let session = initialized(device, &g);
        let digest = session.state_digest().unwrap();
        let mut run = session.partial_run(&[&x, &y], (&a, &sum, &also)).unwrap();
        assert_eq!(scalar(run.run(&[x.feed(3.0)], &a).unwrap()), 6.0, "{}", device.name);
        assert_eq!(session.state_digest().unwrap(), digest);
        assert_eq!(scalar(run.run(&[y.feed(10.0)], &sum).unwrap()), 16.0);
        assert_eq!(value(&session, &v), 1.0);
        assert_eq!(scalar(run.run(&[], &also).unwrap()), 40.0);
        assert!(run.is_done());
        assert_eq!(value(&session, &v), 4.0, "{}", device.name);
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        // The other branch stores nothing.
        let mut run = session.partial_run(&[&x, &y], (&a, &sum, &also)).unwrap();
        assert_eq!(scalar(run.run(&[x.feed(-3.0)], &a).unwrap()), -3.0);
        run.run(&[y.feed(10.0)], (&sum, &also)).unwrap();
        assert_eq!(value(&session, &v), 4.0);
        // Nor does one that is left alone.
        let mut run = session.partial_run(&[&x, &y], (&a, &sum, &also)).unwrap();
        run.run(&[x.feed(3.0)], &a).unwrap();
        drop(run);
        assert_eq!(value(&session, &v), 4.0, "{}", device.name);
    }
}

#[test]
fn all_that_the_whole_run_needs_of_a_branch_has_its_effects() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let [v, w] = ["v", "w"].map(|name| g.variable(name, Init::Constant(0.0), F32, []));
    let (a, b) = g.cond(&p, || (v.assign(1.0), w.assign(2.0)), || (v.read(), w.read()));
    let session = initialized(&devices()[0], &g);
    // TensorFlow prunes inside of branches, too: what nobody asks for is not assigned.
    let mut run = session.partial_run(&[&p], &a).unwrap();
    run.run(&[p.feed(true)], &a).unwrap();
    assert_eq!((value(&session, &v), value(&session, &w)), (1.0, 0.0));
    session.run(&[], g.initializers()).unwrap();
    let mut run = session.partial_run(&[&p], (&a, &b)).unwrap();
    run.run(&[p.feed(true)], &a).unwrap();
    run.finish().unwrap();
    assert_eq!((value(&session, &v), value(&session, &w)), (1.0, 2.0));
    session.run(&[], g.initializers()).unwrap();
    // As a target it gives all, in whatever step.
    let branch = a.operation();
    let mut run = session.partial_run(&[&p], (&a, &branch)).unwrap();
    run.run(&[p.feed(true)], &a).unwrap();
    assert!(run.is_done());
    assert_eq!((value(&session, &v), value(&session, &w)), (1.0, 2.0));
}

#[test]
fn what_is_fed_of_a_branch_is_not_computed() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let (a, b) = g.cond(
        &p,
        || (g.constant(1.0f32), g.constant(2.0f32)),
        || (g.constant(3.0f32), g.constant(4.0f32)),
    );
    let sum = &a + &b;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let mut run = session.partial_run(&[&p, &a], (&a, &b, &sum)).unwrap();
    run.run(&[p.feed(false), a.feed(10.0)], &b).unwrap();
    let (a, sum) = run.run(&[], (&a, &sum)).unwrap();
    assert_eq!((scalar(a), scalar(sum)), (10.0, 14.0));
}

#[test]
fn loops_in_steps_carry_and_stack_once() {
    for device in devices() {
        let g = Graph::new();
        let n = g.placeholder("n", I32, dims![]);
        let x = g.placeholder("x", F32, dims![]);
        let v = g.variable("v", Init::Constant(0.0), F32, []);
        let (counts, calls) = counted(&g, &x);
        let (_, last) = g.while_loop(
            (g.constant(0i32), counts.clone()),
            |(i, _)| i.less(&n),
            |(i, s)| {
                let add = v.assign_add(s).operation();
                g.after(&[&add], || (i + 1, s * 2.0))
            },
        );
        let rows = g.constant([1.0f32, 2.0, 3.0]);
        let (sum, sums) = g.scan(last.clone(), rows.clone(), |s, row| (s + row, s * 1.0));
        let mapped = g.map(rows, |row| row * &sum);
        let seen = g.after(&[&last.operation()], || v.read());
        let session = initialized(device, &g);
        let mut run = session.partial_run(&[&n, &x], (&last, &sum, &sums, &mapped, &seen)).unwrap();
        // What lacks is said, and nothing of the step has happened.
        let error = run.run(&[n.feed(3)], &last).unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("x")));
        let feeds = [n.feed(3), x.feed(1.0)];
        assert_eq!(scalar(run.run(&feeds, &last).unwrap()), 8.0, "{}", device.name);
        assert_eq!(scalar(run.run(&[], &sum).unwrap()), 14.0);
        let all = run.run(&[], (&mapped, &sums)).unwrap();
        let lists = (all.0.to_vec::<f32>().unwrap(), all.1.to_vec::<f32>().unwrap());
        assert_eq!(lists, (vec![14.0, 28.0, 42.0], vec![8.0, 9.0, 11.0]), "{}", device.name);
        assert_eq!(value(&session, &v), 0.0);
        assert_eq!(scalar(run.run(&[], &seen).unwrap()), 7.0);
        assert!(run.is_done());
        assert_eq!((value(&session, &v), calls.load(Ordering::Relaxed)), (7.0, 1));
    }
}

#[test]
fn a_step_whose_assertion_fails_changes_nothing_and_is_made_again() {
    for device in devices() {
        let g = Graph::with_seed(3);
        let [x, y] = ["x", "y"].map(|name| g.placeholder(name, F32, dims![]));
        let v = g.variable("v", Init::Constant(1.0), F32, []);
        let first = v.assign_add(&x);
        let ok = g.assert(&y.less(10.0), "y is too large", &[&y]);
        let add = g.after(&[&first.operation()], || {
            g.cond(&y.less(100.0), || v.assign_add(&y), || v.read())
        });
        let draw = g.random_uniform(&[2], F32, 5);
        let last = g.after(&[&ok, &add.operation()], || &draw + &y);
        let session = initialized(device, &g);
        let mut run = session.partial_run(&[&x, &y], (&first, &last)).unwrap();
        assert_eq!(scalar(run.run(&[x.feed(2.0)], &first).unwrap()), 3.0);
        for _ in 0..2 {
            let error = run.run(&[y.feed(50.0)], &last).unwrap_err();
            assert!(error.message().contains("y is too large"), "{error}");
            assert!(!run.is_done());
        }
        let last = run.run(&[y.feed(4.0)], &last).unwrap();
        assert!(run.is_done());
        // Once, not three times.
        assert_eq!(value(&session, &v), 7.0, "{}", device.name);
        let alone = device.session(&g);
        let drawn = alone.run(&[], &draw).unwrap().to_vec::<f32>().unwrap();
        let sums: Vec<f32> = drawn.iter().map(|x| x + 4.0).collect();
        assert_eq!(last.to_vec::<f32>().unwrap(), sums, "{}", device.name);
    }
}

#[test]
fn reads_between_branches_see_what_they_follow_in_whatever_step() {
    for device in devices() {
        let g = Graph::new();
        let [x, y] = ["x", "y"].map(|name| g.placeholder(name, F32, dims![]));
        let v = g.variable("v", Init::Constant(1.0), F32, []);
        let w = g.variable("w", Init::Constant(1.0), F32, []);
        let is_there = g.after(&[], || w.is_initialized());
        let one = g.cond(&x.greater(0.0), || v.assign(&x), || v.read());
        let between = g.after(&[&one.operation()], || v.read() * &y);
        let two = g.after(&[&one.operation()], || {
            g.cond(&x.greater(0.0), || v.assign_add(100.0), || v.read())
        });
        let three = g.after(&[&two.operation()], || v.assign_add(1000.0));
        let after = g.after(&[&two.operation()], || v.read());
        let all = (&one, &between, &two, &three, &after, v.value(), &is_there);
        let session = initialized(device, &g);
        let feeds = [x.feed(5.0), y.feed(1.0)];
        let whole = session.run(&feeds, all).unwrap();
        assert_eq!((scalar(whole.1), scalar(whole.4), scalar(whole.5)), (5.0, 105.0, 1.0));
        assert_eq!(value(&session, &v), 1105.0);
        session.run(&[], g.initializers()).unwrap();
        let mut run = session.partial_run(&[&x, &y], all).unwrap();
        assert_eq!(scalar(run.run(&[x.feed(5.0)], &three).unwrap()), 1105.0, "{}", device.name);
        assert_eq!(scalar(run.run(&[y.feed(1.0)], &between).unwrap()), 5.0, "{}", device.name);
        let (start, after, is_there) = run.run(&[], (v.value(), &after, &is_there)).unwrap();
        assert_eq!((scalar(start), scalar(after)), (1.0, 105.0), "{}", device.name);
        assert!(is_there.scalar::<bool>().unwrap());
        assert!(!run.is_done());
        assert_eq!(value(&session, &v), 1.0);
        run.run(&[], (&one, &two)).unwrap();
        assert!(run.is_done());
        assert_eq!(value(&session, &v), 1105.0, "{}", device.name);
    }
}

#[test]
fn what_branches_add_comes_to_what_is_current() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let p = g.placeholder("p", Bool, dims![]);
        let v = g.variable("v", Init::Constant(1.0), F32, []);
        let add = v.assign_add(&x);
        // Whether it is replaced is only known when the branch has run.
        let set = g.after(&[&add.operation()], || g.cond(&p, || v.assign(7.0), || v.read()));
        let session = initialized(device, &g);
        for (p_, now) in [(false, 111.0), (true, 7.0)] {
            session.run(&[], g.initializers()).unwrap();
            let mut run = session.partial_run(&[&x, &p], (&add, &set)).unwrap();
            run.run(&[x.feed(10.0)], &add).unwrap();
            session.run(&[x.feed(100.0)], &add).unwrap();
            run.run(&[p.feed(p_)], &set).unwrap();
            assert_eq!(value(&session, &v), now, "{}", device.name);
        }
    }
}

#[test]
fn a_step_ends_with_its_deadline() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let first = &x * 2.0;
    let endless = g.while_loop(&first + 0.0, |s| s.less(1.0), |s| s * 1.0);
    let session = initialized(&devices()[0], &g);
    let mut run = session.partial_run(&[&x], (&first, &endless)).unwrap();
    run.run(&[x.feed(0.0)], &first).unwrap();
    let timeout = Some(std::time::Duration::from_millis(20));
    let options = RunOptions { timeout, ..RunOptions::default() };
    let error = run.run_with(&[], &endless, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!(!run.is_done());
}

/// What a branch assigns, an initial value after it sees, in the same step or a later one; where it assigns nothing,
/// what there was, or else the initial value.
#[test]
fn initial_values_after_branches_that_assign() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let v = g.variable("v", Init::Constant(1.0), F32, []);
    let set = g.cond(&p, || v.assign(2.0), || g.constant(0.0f32));
    let initial = g.after(&[&set.operation()], || v.initialized_value() * 10.0);
    let is_set = g.after(&[&set.operation()], || v.is_initialized());
    for in_steps in [false, true] {
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        let run = |sets: bool| -> (f32, bool) {
            let mut run = session.partial_run(&[&p], (&set, &initial, &is_set)).unwrap();
            if in_steps {
                let first: f32 = run.run(&[p.feed(sets)], &set).unwrap().scalar().unwrap();
                assert_eq!(first, if sets { 2.0 } else { 0.0 });
                let last = run.run(&[], (&initial, &is_set)).unwrap();
                return (last.0.scalar().unwrap(), last.1.scalar().unwrap());
            }
            let (_, last, is_set) = run.run(&[p.feed(sets)], (&set, &initial, &is_set)).unwrap();
            (last.scalar().unwrap(), is_set.scalar().unwrap())
        };
        assert_eq!(run(false), (10.0, false));
        assert_eq!(run(true), (20.0, true));
        session.run(&[], v.assign(5.0).operation()).unwrap();
        assert_eq!(run(false), (50.0, true));
    }
}

#[test]
fn what_a_partial_run_does_not_do_is_said() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let v = g.variable("v", Init::Constant(1.0), F32, []);
    let set = g.cond(&p, || v.assign(2.0), || v.read());
    let initial = g.after(&[&set.operation()], || v.initialized_value());
    let again = g.after(&[&set.operation()], || v.assign(7.0));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let error = session.partial_run(&[&p], (&initial, &again)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unimplemented, "{error}");
    assert!(error.message().contains("unsupported"), "{error}");
}

/// Numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// A graph of some operations on vectors of three, whose order of effects is given by edges.
struct Mixed {
    g: Graph,
    feeds: [Tensor; 2],
    fetches: Vec<Tensor>,
    kept: Kept,
    fill: Operation,
}

/// What a session keeps besides variables.
struct Kept {
    qs: [Queue; 2],
    area: StagingArea,
    table: MutableTable,
    gradients: ConditionalAccumulator,
    barrier: Barrier,
    /// All gradients, which a run takes once.
    gradient: Tensor,
    n: Variable,
}

const FETCHES: usize = 4;

impl Kept {
    fn new(g: &Graph) -> Self {
        let qs = ["q", "p"].map(|name| g.fifo_queue(name, 1000, [(F32, dims![3])]));
        let area = g.staging_area("area", [(F32, dims![3])], StagingOptions::default());
        let table = g.mutable_table("table", I64, F32);
        let options = AccumulatorOptions { reduction: Reduction::Mean, ..Default::default() };
        let gradients = g.conditional_accumulator("gradients", F32, dims![3], options);
        let barrier = g.barrier("barrier", [(F32, dims![3])], None);
        let gradient = gradients.take_gradient(1);
        let n = g.variable("n", Init::Zeros, I64, []);
        Self { qs, area, table, gradients, barrier, gradient, n }
    }

    /// Puts something into each.
    fn fill(&self, g: &Graph) -> Operation {
        let rows = g.constant(ramp(&[60, 3]));
        let some = |i: usize| g.constant([i as f32, 0.5, -1.0]);
        let mut all: Vec<Operation> = self.qs.iter().map(|q| q.enqueue_many(&[&rows])).collect();
        all.extend((0..40).map(|i| self.area.put(&[&some(i)])));
        all.extend((0..5).map(|i| self.gradients.apply_gradient(&some(i), &g.constant(9i64))));
        let keys = HostTensor::strings(&[60], (0..60).map(|i| format!("first {i}"))).unwrap();
        all.push(self.barrier.insert_many(0, &g.constant(keys), &rows));
        let keys = g.constant([-2i64, -1, 0, 1, 2, 3]);
        all.push(self.table.insert(&keys, &g.constant([1.0f32, 2.0, 4.0, 8.0, 16.0, 32.0])));
        g.group(&all)
    }
}

impl Mixed {
    fn new(seed: u64) -> Self {
        let mut numbers = Numbers(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let g = Graph::with_seed(seed);
        let feeds = ["x", "y"].map(|name| g.placeholder(name, F32, dims![3]));
        let vs = ["v", "w"].map(|name| g.variable(name, Init::Constant(1.0), F32, [3]));
        let kept = Kept::new(&g);
        let fill = kept.fill(&g);
        let mixed = Self { g, feeds, fetches: Vec::new(), kept, fill };
        let mut made = mixed.feeds.to_vec();
        // The last effect: each comes after the one before.
        let mut last = mixed.g.no_op();
        for _ in 0..14 {
            let (a, b) = (&made[numbers.below(made.len())], &made[numbers.below(made.len())]);
            let v = &vs[numbers.below(2)];
            let tensor = match numbers.below(33) {
                what @ 0..9 => mixed.plain(what, a, b, made.len() as u64),
                what @ 9..13 => {
                    let effect = mixed.g.after(&[&last], || mixed.effect(what, v, a, b));
                    last = effect.operation();
                    effect
                }
                what @ 13..19 => mixed.other(what, v, a, &last),
                what @ 19..26 => mixed.given(what, a),
                26 => {
                    let count = mixed.g.after(&[&last], || mixed.kept.n.count_up_to(1000));
                    last = count.operation();
                    count.cast(F32) + a
                }
                what => {
                    let put = mixed.put(what, a, b, made.len());
                    mixed.g.after(&[&put], || a * 0.25)
                }
            };
            made.push(tensor);
        }
        let mut fetches = made.split_off(mixed.feeds.len());
        while fetches.len() > FETCHES {
            fetches.remove(numbers.below(fetches.len() - 1));
        }
        Self { fetches, ..mixed }
    }

    fn plain(&self, what: usize, a: &Tensor, b: &Tensor, seed: u64) -> Tensor {
        let g = &self.g;
        let rows = g.constant([[1.0f32, -2.0, 3.0], [0.5, 4.0, -1.0], [2.0, 0.0, 1.5]]);
        let more = a.max(()).greater(b.max(()));
        match what {
            0 => a + b,
            1 => (a - b) * 0.5,
            2 => a.maximum(b),
            3 | 4 => g.cond(&more, || a - b, || b + 1.0),
            5 => {
                let start = (g.constant(0i32), a.clone());
                let n = more.cast(I32) + 2;
                g.while_loop(start, |(i, _)| i.less(&n), |(i, x)| (i + 1, (x - b) * 0.5)).1
            }
            6 => g.scan(a.clone(), rows, |s, x| (s + x, s.maximum(x))).1.max(0),
            7 => g.map(rows, |x| x + a).max(0),
            _ => g.random_uniform(&[3], F32, seed),
        }
    }

    fn effect(&self, what: usize, v: &Variable, a: &Tensor, b: &Tensor) -> Tensor {
        let g = &self.g;
        match what {
            9 => v.assign_add(a),
            10 => v.assign(a * 0.5),
            11 => g.cond(&a.max(()).greater(b.max(())), || v.assign(a), || v.read()),
            _ => {
                let start = (g.constant(0i32), a.clone());
                let body = |(i, x): &(Tensor, Tensor)| {
                    let add = v.assign_add(x).operation();
                    g.after(&[&add], || (i + 1, x - 1.0))
                };
                g.while_loop(start, |(i, _)| i.less(3), body).1
            }
        }
    }

    fn other(&self, what: usize, v: &Variable, a: &Tensor, last: &Operation) -> Tensor {
        let g = &self.g;
        match what {
            13 | 14 => g.after(&[last], || v.read()),
            15 => {
                let ok = g.assert(&a.max(()).less(1e9), "small", &[a]);
                g.after(&[&ok], || a + 0.5)
            }
            16 => g.host_function("host", &[a], [(F32, dims![3])], |x| Ok(x.to_vec())).remove(0),
            17 => self.kept.qs[0].dequeue().remove(0),
            _ => {
                let put = self.kept.qs[0].enqueue(&[a]);
                g.after(&[&put], || v.value() - a)
            }
        }
    }

    /// A small number, known once the second tensor is fed, or the first one is, which is there from the beginning.
    fn number(&self, which: usize) -> Tensor {
        self.feeds[which].max(()).cast(I32)
    }

    /// What is there before the run begins.
    fn given(&self, what: usize, a: &Tensor) -> Tensor {
        let (g, kept) = (&self.g, &self.kept);
        match what {
            19 => kept.qs[1].dequeue_many(self.number(1) - 3).remove(0).max(0),
            20 => {
                let chosen = g.select_queue(&(self.number(1) / 5), &[&kept.qs[0], &kept.qs[1]]);
                chosen.dequeue_up_to(self.number(0)).remove(0).max(0)
            }
            21 => kept.table.find(&a.cast(I64), -3.5f32) + a,
            22 => {
                let (keys, values) = kept.table.export();
                let sum = keys.cast(F32).sum(()) + values.sum(()) + kept.table.size().cast(F32);
                a + sum
            }
            23 => kept.area.get().remove(0),
            24 => {
                let seen = kept.area.peek(self.number(1)).remove(0);
                let n = kept.area.size() + kept.gradients.num_accumulated();
                let n = n + kept.barrier.ready_size() + kept.barrier.incomplete_size();
                seen + n.cast(F32)
            }
            _ => {
                let taken = kept.barrier.take_many(self.number(0));
                taken.components[0].max(0) + &kept.gradient
            }
        }
    }

    /// What comes in at the end. `key` is another one for each.
    fn put(&self, what: usize, a: &Tensor, b: &Tensor, key: usize) -> Operation {
        let (g, kept) = (&self.g, &self.kept);
        match what {
            27 => {
                let chosen = g.select_queue(&(self.number(0) - 2), &[&kept.qs[0], &kept.qs[1]]);
                chosen.enqueue(&[&(a - b)])
            }
            28 => kept.table.insert(&a.cast(I64), b),
            29 => kept.table.remove(&b.cast(I64)),
            30 => kept.area.put(&[a]),
            31 => kept.gradients.apply_gradient(b, &g.constant(key as i64)),
            _ => {
                let keys = HostTensor::strings(&[3], [0, 1, 2].map(|i| format!("{key} {i}")));
                let rows = g.constant([[1.0f32, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) * a;
                kept.barrier.insert_many(0, &g.constant(keys.unwrap()), &rows)
            }
        }
    }
}

const FED: [[f32; 3]; 2] = [[3.0, -1.5, 2.0], [0.25, 5.0, -4.0]];

/// All ways to spread fetches over steps, as the step of each.
fn splits() -> Vec<[usize; FETCHES]> {
    let steps = |code: usize| std::array::from_fn(|i| code / FETCHES.pow(i as u32) % FETCHES);
    let all = (0..FETCHES.pow(FETCHES as u32)).map(steps);
    let is_full = |split: &[usize; FETCHES]| {
        let most = split.iter().copied().max().unwrap_or(0);
        (0..most).all(|step| split.contains(&step))
    };
    all.filter(is_full).collect()
}

/// One step. The second feed is given when it is missing.
fn stepped(
    mixed: &Mixed,
    run: &mut PartialRun,
    fetches: &[&Tensor],
    is_fed: &mut bool,
) -> Vec<HostTensor> {
    match run.run(&[], fetches.to_vec()) {
        Err(error) if !*is_fed && error.message().contains("fed so far") => {
            assert_eq!(error.node(), Some("y"), "{error}");
            *is_fed = true;
            run.run(&[mixed.feeds[1].feed(FED[1])], fetches.to_vec()).unwrap()
        }
        found => found.unwrap(),
    }
}

#[test]
fn in_whatever_parts_a_graph_runs_it_gives_the_bits_of_one_run() {
    let splits = splits();
    assert_eq!(splits.len(), 75);
    for (at, device) in devices().iter().enumerate() {
        for seed in 0..if at == 0 { 40 } else { 12 } {
            let mixed = Mixed::new(seed);
            let Mixed { feeds, fetches, .. } = &mixed;
            let one = initialized(device, &mixed.g);
            let whole = [0, 1].map(|_| {
                one.run(&[], &mixed.fill).unwrap();
                let found =
                    one.run(&[feeds[0].feed(FED[0]), feeds[1].feed(FED[1])], fetches).unwrap();
                (found, one.state_digest().unwrap())
            });
            let every = if at == 0 { 1 } else { 19 };
            for split in splits.iter().skip(seed as usize % every).step_by(every) {
                let session = initialized(device, &mixed.g);
                for (found, digest) in &whole {
                    session.run(&[], &mixed.fill).unwrap();
                    let mut run = session.partial_run(&[&feeds[0], &feeds[1]], fetches).unwrap();
                    run.run(&[feeds[0].feed(FED[0])], ()).unwrap();
                    let mut is_fed = false;
                    for step in 0..FETCHES {
                        let here = (0..FETCHES).filter(|&i| split[i] == step);
                        let here: Vec<usize> = here.collect();
                        if here.is_empty() {
                            continue;
                        }
                        let own: Vec<&Tensor> = here.iter().map(|&i| &fetches[i]).collect();
                        let results = stepped(&mixed, &mut run, &own, &mut is_fed);
                        for (i, result) in here.into_iter().zip(results) {
                            let text =
                                format!("{}, seed {seed}, {split:?}, fetch {i}", device.name);
                            assert_eq!(result, found[i], "{text}");
                        }
                    }
                    assert!(run.is_done());
                    let now = session.state_digest().unwrap();
                    assert_eq!(now, *digest, "{}, seed {seed}, {split:?}", device.name);
                }
            }
        }
    }
}
