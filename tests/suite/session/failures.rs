//! Runs that fail change nothing: not a variable, not a random state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use convoke::prelude::*;
use convoke_tests::{TestDevice, devices, fails_while, indices, ramp};

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
