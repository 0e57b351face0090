//! Submitted runs: waited for, awaited, cancelled, left alone.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use convoke::prelude::*;
use convoke::{CancelToken, RunOptions};
use convoke_tests::{TestDevice, devices, slow};

/// Wakes a thread.
struct Unpark(Thread, AtomicBool);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::SeqCst);
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let wake = Arc::new(Unpark(thread::current(), AtomicBool::new(false)));
    let waker = Waker::from(wake.clone());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        while !wake.1.swap(false, Ordering::SeqCst) {
            thread::park();
        }
    }
}

/// A run of about this time, which adds 1 to `v`.
struct Counter {
    g: Graph,
    x: Tensor,
    count: Operation,
}

impl Counter {
    fn new(time: Duration) -> Self {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![1]);
        let v = g.variable("v", Init::Zeros, F32, []);
        let count = v.assign_add(slow(&x, time).sum(())).operation();
        Self { g, x, count }
    }

    fn session(&self, device: &TestDevice, options: SessionOptions) -> Session {
        let session = device.session_with(&self.g, options);
        session.run(&[], self.g.initializers()).unwrap();
        session
    }

    fn submit<'c>(&'c self, session: &Session) -> convoke::RunHandle<&'c Operation> {
        session.submit(&[self.x.feed([1.0f32])], &self.count, RunOptions::default())
    }

    fn value(&self, session: &Session) -> f32 {
        session.run(&[], self.g.global_variables()).unwrap()[0].scalar::<f32>().unwrap()
    }
}

const SHORT: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_millis(40);

#[test]
fn a_run_is_waited_for_awaited_and_polled() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None]);
        let session = device.session(&g);
        let submit =
            |xs: &[f32]| session.submit(&[x.feed(xs)], (&x * 2.0, [&x]), RunOptions::default());
        let (y, [again]) = submit(&[1.0, 2.0]).wait().unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [2.0, 4.0], "{}", device.name);
        assert_eq!(again.to_vec::<f32>().unwrap(), [1.0, 2.0]);
        let mut run = submit(&[4.0]);
        let (y, _) = block_on(&mut run).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [8.0]);
        // It gives that once, and nobody waits for it for ever.
        assert!(run.is_done());
        assert_eq!(block_on(&mut run).unwrap_err().kind(), ErrorKind::FailedPrecondition);
        assert_eq!(run.wait().unwrap_err().kind(), ErrorKind::FailedPrecondition);
        let run = submit(&[5.0]);
        while !run.is_done() {
            thread::yield_now();
        }
        let ((y, _), metadata) = run.wait_with().unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [10.0]);
        assert!(!metadata.wall.is_zero());
    }
}

#[test]
fn what_is_submitted_at_once_is_all_done() {
    for device in devices() {
        let counter = Counter::new(SHORT);
        for runners in [1, 4] {
            let options = SessionOptions { runners, ..SessionOptions::default() };
            let session = counter.session(device, options);
            let runs: Vec<_> = (0..40).map(|_| counter.submit(&session)).collect();
            for run in runs {
                run.wait().unwrap();
            }
            assert_eq!(counter.value(&session), 40.0, "{}", device.name);
        }
    }
}

#[test]
fn the_caller_goes_on_meanwhile() {
    let counter = Counter::new(LONG);
    let session = counter.session(&devices()[0], SessionOptions::default());
    counter.submit(&session).wait().unwrap();
    let begun = Instant::now();
    let run = counter.submit(&session);
    assert!(begun.elapsed() < LONG / 2 && !run.is_done());
    let run = run.wait_for(SHORT).expect_err("it takes longer");
    assert!(run.wait_for(LONG * 100).expect("it is done by then").is_ok());
    assert_eq!(counter.value(&session), 2.0);
}

#[test]
fn what_a_run_refuses_its_handle_does() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![2]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let submit = |feeds: &[Feed<'_>]| session.submit(feeds, &x + 1.0, RunOptions::default());
    let kind = |run: convoke::RunHandle<Tensor>| run.wait().unwrap_err().kind();
    assert_eq!(kind(submit(&[])), ErrorKind::InvalidArgument);
    assert_eq!(kind(submit(&[x.feed([1.0f32])])), ErrorKind::InvalidArgument);
    assert_eq!(block_on(submit(&[])).unwrap_err().kind(), ErrorKind::InvalidArgument);
    session.close();
    assert_eq!(kind(submit(&[x.feed([1.0f32, 2.0])])), ErrorKind::FailedPrecondition);
}

#[test]
fn cancelling_one_leaves_the_others_alone() {
    for device in devices() {
        let counter = Counter::new(LONG / 8);
        let options = SessionOptions { runners: 1, ..SessionOptions::default() };
        let session = counter.session(device, options);
        let mut runs: Vec<_> = (0..5).map(|_| counter.submit(&session)).collect();
        let cancelled = runs.remove(3);
        cancelled.cancel();
        drop(runs.remove(2));
        let error = cancelled.wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{}: {error}", device.name);
        for run in runs {
            run.wait().unwrap();
        }
        assert_eq!(counter.value(&session), 3.0, "{}", device.name);
    }
}

#[test]
fn a_token_of_the_caller_cancels_many_and_a_handle_only_its_own() {
    let counter = Counter::new(LONG / 8);
    let session =
        counter.session(&devices()[0], SessionOptions { runners: 1, ..Default::default() });
    let token = CancelToken::new();
    let submit = || {
        let options = RunOptions { cancel: Some(token.clone()), ..RunOptions::default() };
        session.submit(&[counter.x.feed([1.0f32])], &counter.count, options)
    };
    let first = submit();
    drop(submit());
    assert!(!token.is_cancelled());
    first.wait().unwrap();
    let (second, third) = (submit(), submit());
    token.cancel();
    assert_eq!(third.wait().unwrap_err().kind(), ErrorKind::Cancelled);
    // It may have been done.
    let n = if second.wait().is_ok() { 2.0 } else { 1.0 };
    assert_eq!(counter.value(&session), n);
}

#[test]
fn a_detached_run_goes_on_and_keeps_its_session() {
    let counter = Counter::new(LONG);
    let session = counter.session(&devices()[0], SessionOptions::default());
    counter.submit(&session).detach();
    let begun = Instant::now();
    while counter.value(&session) == 0.0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is lost");
        thread::sleep(SHORT);
    }
    // The last handle of a session may go while its run is under way.
    let run = counter.submit(&session);
    drop(session);
    run.wait().unwrap();
}

#[test]
fn closing_cancels_what_is_under_way_and_what_waits() {
    for device in devices() {
        let counter = Counter::new(LONG);
        let options = SessionOptions { runners: 1, ..SessionOptions::default() };
        let session = counter.session(device, options);
        let runs: Vec<_> = (0..3).map(|_| counter.submit(&session)).collect();
        thread::sleep(LONG / 4);
        let begun = Instant::now();
        session.close();
        assert!(begun.elapsed() < LONG, "closing waits for nobody");
        for run in runs {
            let error = run.wait().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{}: {error}", device.name);
        }
    }
}
