//! Runs that end early: cancelled, or after their timeout. Nothing has changed then.

use std::thread;
use std::time::{Duration, Instant};

use convoke::prelude::*;
use convoke::{CancelToken, RunOptions};
use convoke_tests::{TestDevice, devices, slow};

const STAGE: Duration = Duration::from_millis(5);

/// Stages that take their time one after the other, and an update of what they give.
struct Stages {
    g: Graph,
    x: Tensor,
    v: Variable,
    step: Operation,
}

impl Stages {
    fn new(n: usize, time: Duration) -> Self {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let v = g.variable("v", Init::Zeros, F32, [4]);
        let last = (0..n).fold(x.clone(), |x, _| slow(&x, time) * 1.0);
        let step = v.assign_add(&last).operation();
        Self { g, x, v, step }
    }

    fn session(&self, device: &TestDevice, options: SessionOptions) -> Session {
        let session = device.session_with(&self.g, options);
        session.run(&[], self.g.initializers()).unwrap();
        session
    }

    fn run(&self, session: &Session, options: RunOptions) -> convoke::Result<()> {
        session.run_with(&[self.x.feed([1.0f32; 4])], &self.step, options).map(|_| ())
    }

    /// How many steps were stored.
    fn count(&self, session: &Session) -> f32 {
        let v = session.run(&[], &self.v).unwrap().to_vec::<f32>().unwrap();
        assert!(v.iter().all(|&x| x == v[0]), "half a step: {v:?}");
        v[0]
    }
}

#[test]
fn a_cancelled_run_ends_and_changes_nothing() {
    for device in devices() {
        let stages = Stages::new(40, STAGE);
        let session = stages.session(device, SessionOptions::default());
        stages.run(&session, RunOptions::default()).unwrap();
        let token = CancelToken::new();
        let begun = Instant::now();
        let error = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(4 * STAGE);
                token.cancel();
            });
            let cancel = Some(token.clone());
            stages.run(&session, RunOptions { cancel, ..RunOptions::default() }).unwrap_err()
        });
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{}: {error}", device.name);
        assert!(begun.elapsed() < 30 * STAGE, "{}: it went on", device.name);
        assert_eq!(stages.count(&session), 1.0, "{}", device.name);
        // A cancelled token cancels at once; the session goes on.
        let cancel = Some(token);
        let error = stages.run(&session, RunOptions { cancel, ..RunOptions::default() });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Cancelled);
        stages.run(&session, RunOptions::default()).unwrap();
        assert_eq!(stages.count(&session), 2.0, "{}", device.name);
    }
}

#[test]
fn a_run_ends_after_its_timeout() {
    for device in devices() {
        let stages = Stages::new(40, STAGE);
        let session = stages.session(device, SessionOptions::default());
        stages.run(&session, RunOptions::default()).unwrap();
        let begun = Instant::now();
        let timeout = Some(4 * STAGE);
        let error = stages.run(&session, RunOptions { timeout, ..RunOptions::default() });
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{}: {error}", device.name);
        assert!(error.to_string().contains("20ms"), "{error}");
        assert!(begun.elapsed() < 30 * STAGE, "{}: it went on", device.name);
        assert_eq!(stages.count(&session), 1.0, "{}", device.name);
    }
}

/// TensorFlow: `TimeoutSession`: `operation_timeout_in_ms` of the session, and `timeout_in_ms` of a run, which
/// overrules it.
#[test]
fn timeout_session() {
    let stages = Stages::new(8, STAGE);
    let options = SessionOptions { timeout: Some(2 * STAGE), ..SessionOptions::default() };
    let session = stages.session(&devices()[0], options);
    let error = stages.run(&session, RunOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let timeout = Some(Duration::MAX);
    stages.run(&session, RunOptions { timeout, ..RunOptions::default() }).unwrap();
    assert_eq!(stages.count(&session), 1.0);
}

/// At any moment of a short run, a thousand times: a step is stored, or it is not.
#[test]
fn cancelling_at_random_moments() {
    for device in devices() {
        let stages = Stages::new(3, Duration::from_micros(50));
        let session = stages.session(device, SessionOptions::default());
        stages.run(&session, RunOptions::default()).unwrap();
        let begun = Instant::now();
        stages.run(&session, RunOptions::default()).unwrap();
        let usual = begun.elapsed().max(Duration::from_micros(100));
        let n = if device.name == "CPU" { 1000 } else { 300 };
        let (mut stored, mut seed) = (2u32, 12345u64);
        let mut before = session.state_digest().unwrap();
        for _ in 0..n {
            let token = CancelToken::new();
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let moment = usual.mul_f64((seed >> 40) as f64 / f64::from(1 << 24));
            let run = thread::scope(|scope| {
                scope.spawn(|| {
                    let begun = Instant::now();
                    while begun.elapsed() < moment {
                        thread::yield_now();
                    }
                    token.cancel();
                });
                let cancel = Some(token.clone());
                stages.run(&session, RunOptions { cancel, ..RunOptions::default() })
            });
            let after = session.state_digest().unwrap();
            match run {
                Ok(()) => {
                    stored += 1;
                    assert_ne!(after, before, "{}: nothing was stored", device.name);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
                    assert_eq!(after, before, "{}: something was stored", device.name);
                }
            }
            before = after;
        }
        assert_eq!(stages.count(&session), stored as f32, "{}", device.name);
        assert!(stored < n + 2, "{}: no run was cancelled", device.name);
    }
}

/// Who waits because as many runs as may be have the memory of a program on a GPU ends with its timeout and its token,
/// and not only when one of those has ended.
#[test]
fn who_waits_for_the_memory_of_a_program_ends() {
    const MOST: usize = 8;
    const STAGE: Duration = Duration::from_millis(2000);
    for device in devices().iter().filter(|device| device.name != "CPU") {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let sum = (slow(&(&x * 2.0), STAGE) + 1.0).sum(());
        let session = device.session(&g);
        let run = |options| session.run_with(&[x.feed([1.0f32; 4])], &sum, options);
        // So that all have the same program.
        run(RunOptions::default()).unwrap();
        let (late, cancelled) = thread::scope(|scope| {
            let runs: Vec<_> =
                (0..MOST).map(|_| scope.spawn(|| run(RunOptions::default()))).collect();
            thread::sleep(STAGE / 4);
            let begun = Instant::now();
            let timeout = Some(STAGE / 40);
            let late = run(RunOptions { timeout, ..RunOptions::default() }).unwrap_err();
            let token = CancelToken::new();
            let cancel = Some(token.clone());
            let waits = scope.spawn(|| run(RunOptions { cancel, ..RunOptions::default() }));
            thread::sleep(STAGE / 40);
            token.cancel();
            let cancelled = waits.join().unwrap().unwrap_err();
            assert!(begun.elapsed() < STAGE / 2, "{}: {:?}", device.name, begun.elapsed());
            for run in runs {
                // Four times `2 + 1`.
                assert_eq!(run.join().unwrap().unwrap().0.scalar::<f32>().unwrap(), 12.0);
            }
            (late, cancelled)
        });
        assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "{late}");
        assert_eq!(cancelled.kind(), ErrorKind::Cancelled, "{cancelled}");
    }
}
