//! Runs that fail change nothing: not a variable, not a random state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use convoke::input::{CsvDecoder, CsvOptions, DecodeExt};
use convoke::prelude::*;
use convoke::{AccumulatorOptions, Reduction, RunOptions};
use convoke_tests::{Folder, TestDevice, devices, fails_while, indices, ramp};

/// A training step with dropout, in which the operation `which` may fail.
struct Step {
    g: Graph,
    x: Tensor,
    labels: Tensor,
    loss: Tensor,
    train: Operation,
    fails: Arc<AtomicBool>,
    /// How many operations there are to fail.
    n: usize,
}

/// The elements, which go through the host if it is their turn.
struct Taps {
    which: usize,
    n: usize,
    fails: Arc<AtomicBool>,
}

impl Taps {
    fn tap(&mut self, x: Tensor) -> Tensor {
        self.n += 1;
        if self.n - 1 == self.which { fails_while(&x, &self.fails) } else { x }
    }
}

impl Step {
    fn new(which: usize) -> Self {
        let g = Graph::with_seed(7);
        let mut taps = Taps { which, n: 0, fails: Arc::default() };
        let x = g.placeholder("x", F32, dims![8, 6]);
        let labels = g.placeholder("labels", I32, dims![8]);
        let w = g.variable("w", Init::glorot(1), F32, [6, 5]);
        let b = g.variable("b", Init::Zeros, F32, [5]);
        let steps = g.untrained_variable("steps", Init::Zeros, F32, [] as [usize; 0]);
        let product = taps.tap(x.matmul(&w));
        let sum = taps.tap(product + &b);
        let hidden = taps.tap(sum.tanh());
        let kept = taps.tap(hidden.dropout(0.3, 11));
        let losses = taps.tap(kept.cross_entropy(&labels));
        let loss = taps.tap(losses.mean(()));
        let variables = [w, b];
        let gradients = loss.variable_gradients(&variables).into_iter();
        let gradients: Vec<_> = gradients.map(|grad| grad.map(|grad| taps.tap(grad))).collect();
        let apply = Adam::new(0.01).apply_gradients(&g, &variables, &gradients);
        let count = steps.assign_add(taps.tap(&loss * 0.0 + 1.0)).operation();
        let train = g.group([&apply, &count]);
        let Taps { n, fails, .. } = taps;
        Self { g, x, labels, loss, train, fails, n }
    }

    fn run(&self, session: &Session) -> convoke::Result<f32> {
        let feeds = [self.x.feed(ramp(&[8, 6])), self.labels.feed(indices(&[8], 5))];
        session.run(&feeds, (&self.loss, &self.train)).and_then(|(loss, ())| loss.scalar::<f32>())
    }
}

fn fail_each(device: &TestDevice) {
    let n = Step::new(usize::MAX).n;
    for which in 0..n {
        let step = Step::new(which);
        let what = format!("{}, operation {which}", device.name);
        let session = device.session(&step.g);
        let empty = session.state_digest().unwrap();
        let not_yet = step.run(&session).unwrap_err();
        assert_eq!(not_yet.kind(), ErrorKind::FailedPrecondition, "{what}: {not_yet}");
        assert_eq!(session.state_digest().unwrap(), empty, "{what}");
        session.run(&[], step.g.initializers()).unwrap();
        step.run(&session).unwrap();
        let before = session.state_digest().unwrap();
        assert_ne!(before, empty, "{what}");
        step.fails.store(true, Ordering::Relaxed);
        for _ in 0..2 {
            let error = step.run(&session).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Aborted, "{what}: {error}");
            assert!(error.to_string().contains("slow"), "{what}: {error}");
            assert_eq!(session.state_digest().unwrap(), before, "{what} failed and left a trace");
        }
        step.fails.store(false, Ordering::Relaxed);
        step.run(&session).unwrap();
        assert_ne!(session.state_digest().unwrap(), before, "{what}: a step changes the state");
    }
}

#[test]
fn each_operation_of_a_training_step_in_turn() {
    devices().iter().for_each(fail_each);
}

/// A step that uses each kind of state: it reads a line whose name comes from a queue, takes a batch, draws, computes
/// gradients and a momentum by hand, and stores into variables by assignment, by sum and by scatter, into a table, an
/// accumulator and a queue. In it the operation `which` may fail.
struct Everything {
    g: Graph,
    put_batch: Operation,
    put_name: Operation,
    name: Tensor,
    step: Operation,
    loss: Tensor,
    fails: Arc<AtomicBool>,
    n: usize,
}

impl Everything {
    fn new(which: usize) -> Self {
        let g = Graph::with_seed(9);
        let mut taps = Taps { which, n: 0, fails: Arc::default() };
        let names = g.fifo_queue("names", 9, [(Strings, dims![])]);
        let name = g.placeholder("name", Strings, dims![]);
        let lines = g.text_line_reader("lines", 0);
        let batches = g.fifo_queue("batches", 9, [(F32, dims![3, 2])]);
        let done = g.fifo_queue("done", 9, [(F32, dims![])]);
        let table = g.mutable_table("table", I64, F32);
        let options = AccumulatorOptions { reduction: Reduction::Mean, shared_name: None };
        let gathered = g.conditional_accumulator("gathered", F32, dims![2, 2], options);
        let w = g.variable("w", Init::glorot(1), F32, [2, 2]);
        let momentum = g.untrained_variable("momentum", Init::Zeros, F32, [2, 2]);
        let rows = g.untrained_variable("rows", Init::Zeros, F32, [4, 2]);
        let seen = g.untrained_variable("seen", Init::Zeros, F32, [] as [usize; 0]);

        let (_, line) = lines.read(&names);
        let csv = CsvDecoder::new(vec![0.0f32.into()], CsvOptions::default()).unwrap();
        let scale = taps.tap(line.decode_csv(csv).remove(0));
        let x = taps.tap(batches.dequeue().remove(0));
        let noise = taps.tap(g.random_uniform(&[3, 2], F32, 3));
        let noisy = taps.tap(&x + &noise * &scale);
        let y = taps.tap(noisy.matmul(&w));
        let loss = taps.tap(y.square().mean(()));
        let gradient = loss.variable_gradients(std::slice::from_ref(&w)).remove(0);
        let gradient = taps.tap(gradient.unwrap());
        let next = taps.tap(&momentum * 0.9 + &gradient);
        let stores = [
            momentum.assign(&next).operation(),
            w.assign_sub(taps.tap(&next * 0.1)).operation(),
            rows.scatter_add(g.constant([2i64, 0, 2]), taps.tap(y.clone())).operation(),
            seen.assign_add(taps.tap(&loss * 0.0 + 1.0)).operation(),
            table.insert(&g.constant([1i64, 2]), &taps.tap(gradient.sum([0]))),
            gathered.apply_gradient(&taps.tap(&gradient * 2.0), &g.constant(0i64)),
            done.enqueue(&[&taps.tap(&loss + 1.0)]),
        ];
        let step = g.group(stores.iter().collect::<Vec<_>>());
        let put_batch = batches.enqueue(&[&g.constant(ramp(&[3, 2]))]);
        let put_name = names.enqueue(&[&name]);
        let Taps { n, fails, .. } = taps;
        Self { g, put_batch, put_name, name, step, loss, fails, n }
    }

    fn session(&self, device: &TestDevice, file: &str) -> Session {
        let session = device.session(&self.g);
        session.run(&[self.name.feed(HostTensor::from(file))], &self.put_name).unwrap();
        for _ in 0..3 {
            session.run(&[], &self.put_batch).unwrap();
        }
        session
    }

    fn run(&self, session: &Session) -> convoke::Result<f32> {
        // No run is to wait: what a failed run takes comes back.
        let options = RunOptions { fail_if_blocked: true, ..RunOptions::default() };
        let run = session.run_with(&[], (&self.loss, &self.step), options);
        run.and_then(|((loss, ()), _)| loss.scalar::<f32>())
    }
}

#[test]
fn each_operation_of_a_step_with_queues_readers_and_tables_in_turn() {
    let folder = Folder::new("failures");
    let file = folder.path().join("lines").display().to_string();
    std::fs::write(&file, "0.5\n0.25\n0.125\n").unwrap();
    let n = Everything::new(usize::MAX).n;
    assert_eq!(n, 14);
    for device in devices() {
        let untouched = Everything::new(usize::MAX);
        let session = untouched.session(device, &file);
        session.run(&[], untouched.g.initializers()).unwrap();
        let expected = [untouched.run(&session).unwrap(), untouched.run(&session).unwrap()];
        for which in 0..n {
            let what = format!("{}, operation {which}", device.name);
            let step = Everything::new(which);
            let session = step.session(device, &file);
            let empty = session.state_digest().unwrap();
            let not_yet = step.run(&session).unwrap_err();
            assert_eq!(not_yet.kind(), ErrorKind::FailedPrecondition, "{what}: {not_yet}");
            assert_eq!(session.state_digest().unwrap(), empty, "{what}");
            session.run(&[], step.g.initializers()).unwrap();
            for expected in expected {
                let before = session.state_digest().unwrap();
                step.fails.store(true, Ordering::Relaxed);
                for _ in 0..2 {
                    let error = step.run(&session).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Aborted, "{what}: {error}");
                    assert_eq!(session.state_digest().unwrap(), before, "{what} left a trace");
                }
                step.fails.store(false, Ordering::Relaxed);
                let loss = step.run(&session).unwrap();
                assert!(
                    (loss - expected).abs() <= 1e-5 * expected.abs(),
                    "{what}: {loss}, {expected}"
                );
                assert_ne!(session.state_digest().unwrap(), before, "{what}");
            }
        }
    }
}

#[test]
fn a_failed_run_draws_nothing() {
    for device in devices() {
        let losses = |fails_first: bool| -> Vec<f32> {
            let step = Step::new(4);
            let session = device.session(&step.g);
            session.run(&[], step.g.initializers()).unwrap();
            step.fails.store(fails_first, Ordering::Relaxed);
            if fails_first {
                step.run(&session).unwrap_err();
            }
            step.fails.store(false, Ordering::Relaxed);
            (0..3).map(|_| step.run(&session).unwrap()).collect()
        };
        assert_eq!(losses(false), losses(true), "{}", device.name);
    }
}

#[test]
fn the_digest_tells_states_apart() {
    let g = Graph::with_seed(3);
    let v = g.variable("v", Init::Zeros, F32, [2]);
    let random = g.random_uniform(&[2], F32, 5);
    let step = v.assign_add(g.constant(vec![1.0f32, 0.0])).operation();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let mut seen = vec![session.state_digest().unwrap()];
    let mut is_new = |session: &Session| {
        let digest = session.state_digest().unwrap();
        let new = !seen.contains(&digest);
        seen.push(digest);
        new
    };
    session.run(&[], g.initializers()).unwrap();
    assert!(is_new(&session));
    session.run(&[], &v).unwrap();
    assert!(!is_new(&session), "reading changes nothing");
    session.run(&[], &random).unwrap();
    assert!(is_new(&session), "a draw is state");
    session.run(&[], &step).unwrap();
    assert!(is_new(&session));
    // Another session with the same history has the same state.
    let other = Session::new(&g, &Devices::cpu()).unwrap();
    other.run(&[], g.initializers()).unwrap();
    assert_eq!(other.state_digest().unwrap(), seen[1]);
    session.close();
    assert_eq!(session.state_digest().unwrap_err().kind(), ErrorKind::FailedPrecondition);
}
