//! Partial runs. TensorFlow: `python/client/session_partial_run_test.py` and `PartialRun*` of
//! `core/common_runtime/direct_session_test.cc`, by meaning.

use std::time::Duration;

use convoke::prelude::*;
use convoke::{CancelToken, PartialRun, RunOptions};
use convoke_tests::{TestDevice, devices};

/// `r1 = a + b`, `r2 = r1 * c`, with the placeholders.
fn model(g: &Graph) -> ([Tensor; 3], Tensor, Tensor) {
    let [a, b, c] = ["a", "b", "c"].map(|name| g.placeholder(name, F32, dims![]));
    let r1 = &a + &b;
    let r2 = &r1 * &c;
    ([a, b, c], r1, r2)
}

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

/// Checks that a step is refused with `message`, and that the run goes on as if it had not been asked for.
#[track_caller]
fn refused<F: Fetch>(run: &mut PartialRun, feeds: &[Feed<'_>], fetch: F, message: &str) {
    let error = run.run(feeds, fetch).err().expect("a step that is refused");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.message().contains(message), "{error}");
}

/// TensorFlow: `PartialRun`, `PartialRunTest`: what is fed later is made of what was fetched before, and the same can be
/// set up again.
#[test]
fn partial_run() {
    for device in devices() {
        let g = Graph::new();
        let ([a, b, c], r1, r2) = model(&g);
        let session = device.session(&g);
        for again in [false, true] {
            let mut run = session.partial_run(&[&a, &b, &c], (&r1, &r2)).unwrap();
            let feeds = [a.feed(1.0), b.feed(2.0)];
            let (first, before) = run.run_with(&feeds, &r1, &RunOptions::default()).unwrap();
            let first = scalar(first);
            let feeds = [c.feed(first * 17.0)];
            let (last, after) = run.run_with(&feeds, &r2, &RunOptions::default()).unwrap();
            assert_eq!((first, scalar(last)), (3.0, 153.0), "{}", device.name);
            assert!(run.is_done());
            // The second step does not add again: it has `c` and the product, the first `a`, `b` and the sum.
            assert_eq!((before.graph_nodes, after.graph_nodes), (1, 1));
            assert_eq!((before.plan_cached, after.plan_cached), (again, again));
            assert_eq!((before.program_cached, after.program_cached), (again, again));
        }
    }
}

/// TensorFlow: `PartialRunIncomplete`. What is left alone has changed nothing, and what it kept is gone.
#[test]
fn partial_run_incomplete() {
    for device in devices() {
        let g = Graph::new();
        let ([a, b, c], r1, r2) = model(&g);
        let v = g.variable("v", Init::Constant(1.0), F32, []);
        let add = g.after(&[&r1.operation()], || v.assign_add(&r1));
        let session = initialized(device, &g);
        let digest = session.state_digest().unwrap();
        let mut run = session.partial_run(&[&a, &b, &c], (&r1, add.operation(), &r2)).unwrap();
        let (sum, ()) = run.run(&[a.feed(1.0), b.feed(2.0)], (&r1, add.operation())).unwrap();
        assert_eq!(scalar(sum), 3.0);
        assert!(!run.is_done());
        drop(run);
        assert_eq!(session.state_digest().unwrap(), digest, "{}", device.name);
        // Ended early, it has stored what was run.
        let mut run = session.partial_run(&[&a, &b, &c], (&r1, add.operation(), &r2)).unwrap();
        run.run(&[a.feed(1.0), b.feed(2.0)], add.operation()).unwrap();
        assert_eq!(value(&session, &v), 1.0);
        run.finish().unwrap();
        assert_eq!(value(&session, &v), 4.0, "{}", device.name);
    }
}

/// TensorFlow: `ConcurrentPartialRun`.
#[test]
fn concurrent_partial_run() {
    for device in devices() {
        let g = Graph::new();
        let ([a, b, c], r1, r2) = model(&g);
        let session = device.session(&g);
        let mut one = session.partial_run(&[&a, &b, &c], (&r1, &r2)).unwrap();
        let mut two = session.partial_run(&[&a, &b, &c], (&r1, &r2)).unwrap();
        let first = scalar(one.run(&[a.feed(1.0), b.feed(2.0)], &r1).unwrap());
        let second = scalar(two.run(&[a.feed(3.0), b.feed(4.0)], &r1).unwrap());
        assert_eq!((first, second), (3.0, 7.0));
        assert_eq!(scalar(two.run(&[c.feed(first * 11.0)], &r2).unwrap()), 231.0);
        assert_eq!(scalar(one.run(&[c.feed(second * 9.0)], &r2).unwrap()), 189.0);
    }
}

/// TensorFlow: `ManyPartialRun`: 200 steps, then one plain run.
#[test]
fn many_partial_run() {
    let g = Graph::new();
    let mut product = g.constant(2.0f32);
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        inputs.push(g.placeholder("input", F32, dims![]));
        product = product * &inputs[inputs.len() - 1];
        outputs.push(product.clone());
    }
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let feeds: Vec<&Tensor> = inputs.iter().collect();
    let mut run = session.partial_run(&feeds, &outputs).unwrap();
    for (input, output) in inputs.iter().zip(&outputs) {
        assert_eq!(scalar(run.run(&[input.feed(1.0)], output).unwrap()), 2.0);
    }
    assert!(run.is_done());
    let feeds: Vec<Feed<'_>> = inputs.iter().map(|input| input.feed(1.0)).collect();
    let all = session.run(&feeds, &outputs).unwrap();
    assert!(all.into_iter().all(|product| scalar(product) == 2.0));
}

/// TensorFlow: `RunAndPartialRun`.
#[test]
fn run_and_partial_run() {
    for device in devices() {
        let g = Graph::new();
        let b = g.constant(2.0f32) * 2.0;
        let c = &b * 3.0;
        let session = device.session(&g);
        let whole = session.run(&[], [&b, &c]).unwrap();
        let mut run = session.partial_run(&[], [&b, &c]).unwrap();
        assert_eq!(run.run(&[], [&b, &c]).unwrap(), whole);
        assert_eq!(scalar(whole[1].clone()), 12.0);
    }
}

/// TensorFlow: `PartialRunMissingPlaceholderFeedException`. Here it is found when the run is made.
#[test]
fn partial_run_missing_placeholder_feed() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let y = &x * 2.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let error = session.partial_run(&[], &y).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert_eq!(error.node(), Some("x"));
    assert!(error.message().contains("not fed"), "{error}");
}

/// TensorFlow: `PartialRunMissingFeed` of `direct_session_test.cc`.
#[test]
fn partial_run_missing_feed() {
    let g = Graph::new();
    let ([a, b, c], r1, r2) = model(&g);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let mut run = session.partial_run(&[&a, &b, &c], (&r1, &r2)).unwrap();
    let missing = "can't be computed from what has been fed so far";
    refused(&mut run, &[a.feed(1.0)], &r1, missing);
    refused(&mut run, &[a.feed(1.0), b.feed(2.0)], &r2, missing);
    // Nothing was fed by what was refused.
    assert_eq!(scalar(run.run(&[a.feed(5.0), b.feed(2.0)], &r1).unwrap()), 7.0);
    let error = run.run(&[], &r2).unwrap_err();
    assert_eq!(error.node(), Some("c"), "{error}");
    assert_eq!(scalar(run.run(&[c.feed(2.0)], &r2).unwrap()), 14.0);
}

/// TensorFlow: `PartialRunMultiOutputFeed`: a later output of an operation is fed by itself.
#[test]
fn partial_run_multi_output_feed() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 2, [(F32, dims![]), (F32, dims![])]);
    let taken = q.dequeue();
    let y = &taken[1] * 2.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let mut run = session.partial_run(&[&taken[1]], &y).unwrap();
    assert_eq!(scalar(run.run(&[taken[1].feed(4.0)], &y).unwrap()), 8.0);
    // Where it is not, the run waits for it.
    let mut run = session.partial_run(&[], &y).unwrap();
    let options = RunOptions { fail_if_blocked: true, ..RunOptions::default() };
    let error = run.run_with(&[], &y, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
}

/// TensorFlow: `PartialRunUnspecifiedFeed`, `PartialRunUnspecifiedFetch`.
#[test]
fn partial_run_unspecified() {
    let g = Graph::new();
    let ([a, b, c], r1, r2) = model(&g);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let mut run = session.partial_run(&[&a, &b], &r1).unwrap();
    let both = [a.feed(1.0), b.feed(2.0)];
    refused(&mut run, &[a.feed(1.0), b.feed(2.0), c.feed(3.0)], &r1, "not declared");
    refused(&mut run, &both, &r2, "not declared");
    refused(&mut run, &both, r1.operation(), "not declared");
    assert_eq!(scalar(run.run(&both, &r1).unwrap()), 3.0);
}

/// TensorFlow: `PartialRunAlreadyFed`, `PartialRunAlreadyFetched`.
#[test]
fn partial_run_already() {
    let g = Graph::new();
    let ([a, b, c], r1, r2) = model(&g);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let mut run = session.partial_run(&[&a, &b, &c], (&r1, &r2)).unwrap();
    refused(&mut run, &[a.feed(1.0), a.feed(2.0), b.feed(2.0)], &r1, "already been fed");
    run.run(&[a.feed(1.0), b.feed(2.0)], &r1).unwrap();
    refused(&mut run, &[a.feed(62.0), c.feed(3.0)], &r2, "already been fed");
    refused(&mut run, &[c.feed(3.0)], &r1, "already been fetched");
    assert_eq!(scalar(run.run(&[c.feed(3.0)], &r2).unwrap()), 9.0);
    let error = run.run(&[], &r2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
}

/// TensorFlow: `PartialRunEmptyFetches`.
#[test]
fn partial_run_empty_fetches() {
    let g = Graph::new();
    let ([a, b, _], r1, _) = model(&g);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let mut run = session.partial_run(&[&a, &b], &r1).unwrap();
    run.run(&[a.feed(1.0), b.feed(2.0)], ()).unwrap();
    assert_eq!(scalar(run.run(&[], &r1).unwrap()), 3.0);
}

/// TensorFlow: `InvalidPartialRunSetup`, `PartialRunSetupNoFeedsPassed`.
#[test]
fn invalid_partial_run_setup() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let r = g.constant(1.0f32) + 2.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let error = session.partial_run(&[&x], ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.message().contains("specify at least one target"), "{error}");
    let mut run = session.partial_run(&[], &r).unwrap();
    assert_eq!(scalar(run.run(&[], &r).unwrap()), 3.0);
    let twice = session.partial_run(&[&x, &x], &r).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::InvalidArgument, "{twice}");
}

/// TensorFlow: `TestDirectSessionPRunClose`.
#[test]
fn direct_session_p_run_close() {
    let g = Graph::new();
    let ([a, b, c], r1, r2) = model(&g);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let mut run = session.partial_run(&[&a, &b, &c], (&r1, &r2)).unwrap();
    run.run(&[a.feed(1.0), b.feed(2.0)], &r1).unwrap();
    session.close();
    let error = run.run(&[c.feed(1.0)], &r2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    assert_eq!(run.finish().unwrap_err().kind(), ErrorKind::FailedPrecondition);
    assert!(session.partial_run(&[&a, &b, &c], &r1).is_err());
}

#[test]
fn reads_see_the_start_and_edges_of_the_whole_run() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let v = g.variable("v", Init::Constant(1.0), F32, []);
        let set = v.assign(&x);
        let mid = g.after(&[&set.operation()], || v.read());
        let add = g.after(&[&set.operation()], || v.assign_add(g.constant(10.0f32)));
        let last = g.after(&[&add.operation()], || v.read());
        let session = initialized(device, &g);
        let asked = (v.value(), set.operation(), &mid, add.operation(), &last);
        let mut run = session.partial_run(&[&x], asked).unwrap();
        run.run(&[x.feed(5.0)], set.operation()).unwrap();
        run.run(&[], add.operation()).unwrap();
        // Another run stores meanwhile: this one does not see it, and overwrites it.
        session.run(&[x.feed(100.0)], set.operation()).unwrap();
        assert_eq!(scalar(run.run(&[], v.value()).unwrap()), 1.0, "{}", device.name);
        assert_eq!(scalar(run.run(&[], &last).unwrap()), 15.0, "{}", device.name);
        assert_eq!(value(&session, &v), 100.0);
        assert_eq!(scalar(run.run(&[], &mid).unwrap()), 5.0, "{}", device.name);
        assert!(run.is_done());
        assert_eq!(value(&session, &v), 15.0, "{}", device.name);
    }
}

#[test]
fn sums_come_to_what_is_current_and_other_changes_are_refused() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let v = g.variable("v", Init::Constant(1.0), F32, [2]);
        let add = v.assign_add(x.broadcast_to(&[2])).operation();
        let rows = g.constant([0i32]);
        let double = v.scatter_mul(&rows, x.broadcast_to(&[1])).operation();
        let session = initialized(device, &g);
        let now = || session.run(&[], &v).unwrap().to_vec::<f32>().unwrap();
        let run_with_another = |target: &Operation| {
            let mut run = session.partial_run(&[&x], target).unwrap();
            session.run(&[x.feed(100.0)], &add).unwrap();
            run.run(&[x.feed(2.0)], target)
        };
        run_with_another(&add).unwrap();
        assert_eq!(now(), [103.0, 103.0], "{}", device.name);
        let error = run_with_another(&double).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
        assert_eq!(now(), [203.0, 203.0], "{}", device.name);
        let mut run = session.partial_run(&[&x], &double).unwrap();
        run.run(&[x.feed(2.0)], &double).unwrap();
        assert_eq!(now(), [406.0, 203.0], "{}", device.name);
        let replace = v.assign(v.value() * x.broadcast_to(&[2])).operation();
        run_with_another(&replace).unwrap();
        assert_eq!(now(), [812.0, 406.0], "{}", device.name);
    }
}

#[test]
fn random_nodes_are_drawn_once_and_counted_at_the_end() {
    for device in devices() {
        let drawn = |partial: bool| {
            let g = Graph::with_seed(7);
            let k = g.placeholder("k", F32, dims![]);
            let r = g.random_uniform(&[4], F32, 3);
            let scaled = &r * &k;
            let session = device.session(&g);
            let mut all = Vec::new();
            for _ in 0..2 {
                let (a, b) = if partial {
                    let mut run = session.partial_run(&[&k], (&r, &scaled)).unwrap();
                    let a = run.run(&[], &r).unwrap();
                    // A step that fails draws nothing.
                    assert!(run.run(&[], &scaled).is_err());
                    (a, run.run(&[k.feed(2.0)], &scaled).unwrap())
                } else {
                    session.run(&[k.feed(2.0)], (&r, &scaled)).unwrap()
                };
                let a = a.to_vec::<f32>().unwrap();
                let doubled: Vec<f32> = a.iter().map(|x| 2.0 * x).collect();
                assert_eq!(b.to_vec::<f32>().unwrap(), doubled, "{}", device.name);
                all.push(a);
            }
            assert_ne!(all[0], all[1]);
            all
        };
        assert_eq!(drawn(true), drawn(false), "{}", device.name);
    }
}

#[test]
fn initial_values_in_steps_are_those_of_one_run() {
    for device in devices() {
        let g = Graph::new();
        let a = g.variable("a", Init::Constant(3.0), F32, []);
        let b = g.variable("b", Init::Tensor(a.initialized_value() * 2.0), F32, []);
        let has = a.is_initialized();
        let session = device.session(&g);
        let (init_a, init_b) = (a.initializer(), b.initializer());
        let mut run = session.partial_run(&[], (&init_a, &init_b, &has)).unwrap();
        run.run(&[], &init_a).unwrap();
        // As at the start of the whole run.
        assert!(!run.run(&[], &has).unwrap().scalar::<bool>().unwrap());
        run.run(&[], &init_b).unwrap();
        assert_eq!((value(&session, &a), value(&session, &b)), (3.0, 6.0), "{}", device.name);
        let fresh = device.session(&g);
        let error = fresh.partial_run(&[], &a).unwrap().run(&[], &a).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    }
}

#[test]
fn each_step_has_its_own_options() {
    let g = Graph::new();
    let ([a, b, c], r1, r2) = model(&g);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let mut run = session.partial_run(&[&a, &b, &c], (&r1, &r2)).unwrap();
    let none = RunOptions { timeout: Some(Duration::ZERO), ..RunOptions::default() };
    let both = [a.feed(1.0), b.feed(2.0)];
    let late = run.run_with(&both, &r1, &none).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "{late}");
    let cancel = CancelToken::new();
    cancel.cancel();
    let cancelled = RunOptions { cancel: Some(cancel), ..RunOptions::default() };
    let error = run.run_with(&both, &r1, &cancelled).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    // Other steps, and other runs of the session, go on.
    let (sum, metadata) = run.run_with(&both, &r1, &RunOptions::timed()).unwrap();
    assert_eq!(scalar(sum), 3.0);
    assert!(!metadata.nodes.is_empty());
    assert_eq!(scalar(run.run(&[c.feed(2.0)], &r2).unwrap()), 6.0);
}

#[test]
fn sizes_and_strings_go_from_step_to_step() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None]);
        let name = g.placeholder("name", DType::String, dims![]);
        let n = x.shape();
        let rows = g.constant([1.0f32, 2.0, 3.0]).reshape_to(&n);
        let sum = &rows + &x;
        let session = device.session(&g);
        let mut run = session.partial_run(&[&x, &name], (&n, &name, &sum)).unwrap();
        let sizes = run.run(&[x.feed([1.0f32, 2.0, 3.0])], &n).unwrap();
        assert_eq!(sizes.to_i128s().unwrap(), [3]);
        let found = run.run(&[name.feed("two")], &name).unwrap();
        assert_eq!(found, "two".into());
        assert_eq!(run.run(&[], &sum).unwrap().to_vec::<f32>().unwrap(), [2.0, 4.0, 6.0]);
    }
}

/// A variable of a GPU comes to the host at the start, and goes back at the end, whatever the steps are.
#[test]
fn the_last_step_tells_what_crossed() {
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let v = g.device("GPU:0", || g.variable("v", Init::Zeros, F32, [1000]));
        let used = g.device("GPU:0", || v.value() * 2.0);
        let p = g.placeholder("p", F32, dims![]);
        let later = g.device("CPU:0", || &p + 1.0);
        let add = g.device("CPU:0", || v.assign_add(1.0));
        let session = initialized(device, &g);
        session.run(&[], &used).unwrap();
        let mut run = session.partial_run(&[&p], (add.operation(), &later)).unwrap();
        let options = RunOptions::default();
        let ((), first) = run.run_with(&[], add.operation(), &options).unwrap();
        assert_eq!((first.upload_bytes, first.download_bytes), (0, 0), "{}", device.name);
        let (_, last) = run.run_with(&[p.feed(1.0)], &later, &options).unwrap();
        assert!(run.is_done());
        assert_eq!((last.uploads, last.upload_bytes), (1, 4000), "{}", device.name);
        assert_eq!((last.downloads, last.download_bytes), (1, 4000), "{}", device.name);
        let used = session.run(&[], &used).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(used, [2.0; 1000], "{}", device.name);
    }
}
