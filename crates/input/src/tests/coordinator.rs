//! Coordinators, by the meaning of TensorFlow's `coordinator_test.py`, and what threads add in Rust.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use convoke_graph_core::{Error, ErrorKind, Result};

use crate::Coordinator;

const TICK: Duration = Duration::from_millis(1);

/// Happens once: when the sender is dropped.
fn event() -> (Sender<()>, Receiver<()>) {
    mpsc::channel()
}

fn wait(event: &Receiver<()>) {
    assert!(event.recv().is_err(), "nothing is sent");
}

fn aborted(message: &str) -> Error {
    Error::new(ErrorKind::Aborted, message)
}

#[track_caller]
fn check_failed(joined: Result<()>, kind: ErrorKind, message: &str) {
    super::check_refused(joined, kind, message);
}

/// Two threads, of which the second fails after the first has, by `fail`; gives what join gives.
fn two_failures(fail: fn(&Coordinator, Error) -> Result<()>) -> Result<()> {
    let coordinator = Coordinator::new();
    let (first, second) = (event(), event());
    coordinator
        .spawn("first", move |coordinator| {
            wait(&first.1);
            let failed = fail(coordinator, aborted("first"));
            // The second begins when a stop is requested at the latest.
            drop(second.0);
            failed
        })
        .expect("a thread");
    coordinator
        .spawn("second", move |coordinator| {
            wait(&second.1);
            coordinator.wait_for_stop(None);
            fail(coordinator, aborted("too late"))
        })
        .expect("a thread");
    drop(first.0);
    coordinator.join(Coordinator::GRACE)
}

/// `testStopAPI`.
#[test]
fn stop_api() {
    let coordinator = Coordinator::default();
    assert!(!coordinator.should_stop());
    assert!(!coordinator.wait_for_stop(TICK));
    coordinator.request_stop();
    assert!(coordinator.should_stop());
    assert!(coordinator.wait_for_stop(TICK));
    assert!(coordinator.wait_for_stop(Duration::MAX));
    assert!(coordinator.wait_for_stop(None));
}

/// `testStopAsync`.
#[test]
fn stop_from_another_thread() {
    let coordinator = Coordinator::new();
    let (stop, stops) = event();
    let stopper = move |coordinator: &Coordinator| {
        wait(&stops);
        coordinator.request_stop();
        Ok(())
    };
    coordinator.spawn("stopper", stopper).expect("a thread");
    assert!(!coordinator.should_stop());
    assert!(!coordinator.wait_for_stop(TICK));
    drop(stop);
    assert!(coordinator.wait_for_stop(None));
    assert!(coordinator.should_stop());
    coordinator.join(Coordinator::GRACE).expect("no error");
}

/// `testJoin`, `testJoinAllRegistered`.
#[test]
fn join_waits_for_all_threads() {
    let coordinator = Coordinator::new();
    let ended = Arc::new(AtomicUsize::new(0));
    for n in 0..3 {
        let ended = ended.clone();
        let sleeper = move |_: &Coordinator| {
            thread::sleep(TICK * n);
            ended.fetch_add(1, SeqCst);
            Ok(())
        };
        coordinator.spawn(format!("sleeper {n}"), sleeper).expect("a thread");
    }
    coordinator.join(Duration::ZERO).expect("without a stop, time does not matter");
    assert_eq!(ended.load(SeqCst), 3);
    assert_eq!((coordinator.running(), coordinator.joined()), (vec![], true));
    assert!(!coordinator.should_stop(), "nobody asked for it");
}

/// `testJoinSomeRegistered`.
#[test]
fn join_waits_for_threads_that_others_have_started() {
    let coordinator = Coordinator::new();
    let ended = AtomicUsize::new(0);
    thread::scope(|scope| {
        let (enter, entered) = event();
        scope.spawn(|| {
            let _registered = coordinator.register("scoped");
            drop(enter);
            thread::sleep(TICK * 3);
            ended.fetch_add(1, SeqCst);
        });
        coordinator.spawn("spawned", |_| Ok(())).expect("a thread");
        wait(&entered);
        coordinator.join(Coordinator::GRACE).expect("no error");
        assert_eq!(ended.load(SeqCst), 1);
    });
}

/// `testJoinGraceExpires`, `testJoinWithoutGraceExpires`.
#[test]
fn grace_expires() {
    for grace in [Duration::ZERO, TICK * 2] {
        let coordinator = Coordinator::new();
        let (end, ends) = event();
        let sleeper = move |_: &Coordinator| {
            wait(&ends);
            Ok(())
        };
        coordinator.spawn("sleeper", sleeper).expect("a thread");
        let stopped_at = Instant::now();
        coordinator.request_stop();
        let message = format!(
            "threads still run {grace:?} after a stop was requested: sleeper; each must end soon after \
             should_stop"
        );
        check_failed(coordinator.join(grace), ErrorKind::DeadlineExceeded, &message);
        assert!(stopped_at.elapsed() >= grace);
        // Who ignores it sees who is left, and can join again.
        assert_eq!(coordinator.running(), ["sleeper"]);
        drop(end);
        coordinator.join(Coordinator::GRACE).expect("it has ended now");
        assert!(coordinator.running().is_empty());
    }
}

/// `testJoinRaiseReportExcInfo`, `testJoinRaiseReportException`.
#[test]
fn join_gives_the_first_error_reported() {
    let joined = two_failures(|coordinator, error| coordinator.request_stop_with(error));
    check_failed(joined, ErrorKind::Aborted, "first");
}

/// `testJoinRaiseReportExceptionUsingHandler`.
#[test]
fn join_gives_the_first_error_returned() {
    let joined = two_failures(|coordinator, error| {
        let given = coordinator.stop_on_error::<()>(|| Err(error.clone()));
        assert_eq!(given.expect_err("passed on").message(), error.message());
        Ok(())
    });
    check_failed(joined, ErrorKind::Aborted, "first");
    let coordinator = Coordinator::new();
    coordinator.spawn("failing", |_| Err(aborted("returned"))).expect("a thread");
    check_failed(coordinator.join(Coordinator::GRACE), ErrorKind::Aborted, "returned");
    check_failed(coordinator.check(), ErrorKind::Aborted, "returned");
}

/// The error is more than that a thread is late.
#[test]
fn an_error_goes_before_stragglers() {
    let coordinator = Coordinator::new();
    let _registered = coordinator.register("joiner");
    let (_end, ends) = event();
    let sleeper = move |_: &Coordinator| {
        wait(&ends);
        Ok(())
    };
    coordinator.spawn("sleeper", sleeper).expect("a thread");
    coordinator.request_stop_with(aborted("first")).expect("recorded");
    check_failed(coordinator.join(Duration::ZERO), ErrorKind::Aborted, "first");
}

#[test]
fn an_error_after_a_stop_is_its_consequence() {
    let coordinator = Coordinator::new();
    coordinator.request_stop();
    coordinator.request_stop_with(aborted("cancelled by the stop")).expect("dropped");
    coordinator.join(Coordinator::GRACE).expect("a clean stop");
}

/// `testJoinIgnoresOutOfRange`.
#[test]
fn out_of_range_is_a_clean_stop() {
    let coordinator = Coordinator::new();
    let end = || Error::new(ErrorKind::OutOfRange, "the end of the queue");
    coordinator.spawn("reader", move |_| Err(end())).expect("a thread");
    assert!(coordinator.wait_for_stop(None));
    coordinator.join(Coordinator::GRACE).expect("a clean stop");
    coordinator.request_stop_with(end()).expect("clean after a join too");
}

/// `testJoinIgnoresMyExceptionType`.
#[test]
fn kinds_of_clean_stops_can_be_chosen() {
    let coordinator = Coordinator::with_clean_stops([ErrorKind::Aborted]);
    coordinator.spawn("reader", |_| Err(aborted("a clean stop"))).expect("a thread");
    assert!(coordinator.wait_for_stop(None));
    coordinator.join(Coordinator::GRACE).expect("a clean stop");
    coordinator.clear_stop();
    let end = Error::new(ErrorKind::OutOfRange, "not clean here");
    coordinator.request_stop_with(end).expect("recorded");
    check_failed(coordinator.join(Coordinator::GRACE), ErrorKind::OutOfRange, "not clean here");
}

/// `testClearStopClearsExceptionToo`.
#[test]
fn clear_stop_clears_the_error_too() {
    let coordinator = Coordinator::new();
    for message in ["first", "second"] {
        coordinator.spawn("failing", move |_| Err(aborted(message))).expect("a thread");
        check_failed(coordinator.join(Coordinator::GRACE), ErrorKind::Aborted, message);
        assert!(coordinator.should_stop());
        coordinator.clear_stop();
        assert!(!coordinator.should_stop() && !coordinator.joined());
        coordinator.check().expect("cleared");
    }
}

/// `testRequestStopRaisesIfJoined`, `testRequestStopRaisesIfJoined_ExcInfo`.
#[test]
fn an_error_after_the_join_is_given_back() {
    let coordinator = Coordinator::new();
    coordinator.join(Coordinator::GRACE).expect("there are no threads");
    let given_back = coordinator.request_stop_with(aborted("too late"));
    check_failed(given_back, ErrorKind::Aborted, "too late");
    let passed_on = coordinator.stop_on_error(|| Err(aborted("too late as well")));
    check_failed(passed_on, ErrorKind::Aborted, "too late as well");
    coordinator.clear_stop();
    coordinator.request_stop_with(aborted("after clear")).expect("recorded");
    check_failed(coordinator.join(Coordinator::GRACE), ErrorKind::Aborted, "after clear");
}

/// `LooperTest.testTargetArgs`, `testTargetKwargs`, `testTargetMixedArgs`.
#[test]
fn loopers_run_until_a_stop() {
    let coordinator = Coordinator::new();
    let left = Arc::new(Mutex::new(3));
    let count = left.clone();
    let stop_at_0 = move |coordinator: &Coordinator| {
        let mut n = count.lock().expect("no panic");
        match *n {
            0 => coordinator.request_stop(),
            _ => *n -= 1,
        }
        Ok(())
    };
    coordinator.looper("looper", Duration::ZERO, stop_at_0).expect("a thread");
    coordinator.join(Coordinator::GRACE).expect("no error");
    assert_eq!(*left.lock().expect("no panic"), 0);
}

#[test]
fn loopers_keep_their_interval_and_begin_at_once() {
    let coordinator = Coordinator::new();
    let (call, calls) = mpsc::channel();
    let send = move |_: &Coordinator| call.send(Instant::now()).map_err(|_| aborted("not heard"));
    let since = Instant::now();
    coordinator.looper("clock", TICK * 2, send).expect("a thread");
    let fourth = calls.iter().nth(3).expect("it goes on");
    assert!(fourth - since >= TICK * 6, "not before its time");
    // The error of a call ends the loop, and everything.
    drop(calls);
    check_failed(coordinator.join(Coordinator::GRACE), ErrorKind::Aborted, "not heard");

    for interval in [Duration::from_secs(3600), Duration::MAX] {
        let coordinator = Coordinator::new();
        let (call, calls) = mpsc::channel();
        let send = move |_: &Coordinator| call.send(()).map_err(|_| aborted("not heard"));
        coordinator.looper("rare", interval, send).expect("a thread");
        calls.recv().expect("at once");
        coordinator.request_stop();
        coordinator.join(Coordinator::GRACE).expect("a stop ends its wait");
        assert!(calls.recv().is_err(), "called once");
    }
}

#[test]
fn a_panic_is_an_error_that_stops() {
    let coordinator = Coordinator::new();
    let other = |coordinator: &Coordinator| {
        coordinator.wait_for_stop(None);
        Ok(())
    };
    coordinator.spawn("other", other).expect("a thread");
    let bad = |_: &Coordinator| panic!("no such {}", "file");
    coordinator.spawn("decoder", bad).expect("a thread");
    let message = "the thread decoder panicked: no such file";
    check_failed(coordinator.join(Coordinator::GRACE), ErrorKind::Unknown, message);

    let coordinator = Coordinator::new();
    let caught = coordinator.stop_on_error(|| -> Result<()> { std::panic::panic_any(3) });
    let message = caught.expect_err("it panicked").message().to_owned();
    assert!(message.ends_with("panicked: no message"), "{message}");
    assert!(coordinator.should_stop());
}

#[test]
fn names_are_checked() {
    let coordinator = Coordinator::new();
    let message = "expected a name without zero bytes, got \"a\\0b\"";
    check_failed(coordinator.spawn("a\0b", |_| Ok(())), ErrorKind::InvalidArgument, message);
    let (sent, name) = mpsc::channel();
    let send_name = move |_: &Coordinator| {
        let name = thread::current().name().map(str::to_owned);
        sent.send(name).map_err(|_| aborted("not heard"))
    };
    coordinator.spawn("reader", send_name).expect("a thread");
    assert_eq!(name.recv().expect("sent"), Some("reader".to_owned()));
    coordinator.join(Coordinator::GRACE).expect("no error");
}

#[test]
fn a_thread_can_join_the_others() {
    let coordinator = Coordinator::new();
    let (start, starts) = event();
    let (done, is_done) = mpsc::channel();
    let joiner = move |coordinator: &Coordinator| {
        wait(&starts);
        let joined = coordinator.join(Coordinator::GRACE);
        done.send(joined).map_err(|_| aborted("not heard"))
    };
    coordinator.spawn("joiner", joiner).expect("a thread");
    let other = |coordinator: &Coordinator| {
        coordinator.wait_for_stop(None);
        Ok(())
    };
    coordinator.spawn("other", other).expect("a thread");
    drop(start);
    coordinator.request_stop();
    is_done.recv().expect("it does not wait for itself").expect("no error");
    coordinator.join(Coordinator::GRACE).expect("no error");
}

#[test]
fn dropping_handles_does_not_wait() {
    let coordinator = Coordinator::new();
    let (end, ends) = event();
    let (done, is_done) = event();
    let sleeper = move |_: &Coordinator| {
        wait(&ends);
        drop(done);
        Ok(())
    };
    coordinator.spawn("sleeper", sleeper).expect("a thread");
    drop(coordinator.clone());
    drop(coordinator);
    drop(end);
    wait(&is_done);
}

#[test]
fn many_threads_one_error() {
    let coordinator = Coordinator::new();
    let errors = Arc::new(AtomicUsize::new(0));
    for n in 0..32 {
        let errors = errors.clone();
        let failing = move |coordinator: &Coordinator| {
            if n % 2 == 0 {
                coordinator.wait_for_stop(None);
            }
            errors.fetch_add(1, SeqCst);
            Err(aborted(if n % 2 == 0 { "a consequence" } else { "a cause" }))
        };
        coordinator.spawn(format!("{n}"), failing).expect("a thread");
    }
    let joins: Vec<_> = thread::scope(|scope| {
        let join = || coordinator.join(Coordinator::GRACE);
        let joins = [scope.spawn(join), scope.spawn(join)];
        joins.map(|join| join.join().expect("no panic")).into()
    });
    assert_eq!(errors.load(SeqCst), 32);
    for joined in joins {
        check_failed(joined, ErrorKind::Aborted, "a cause");
    }
}

#[test]
fn a_coordinator_can_be_printed() {
    let coordinator = Coordinator::new();
    let _registered = coordinator.register("main");
    let text = format!("{coordinator:?}");
    assert_eq!(text, "Coordinator { stopped: false, error: None, running: [\"main\"], .. }");
}

#[test]
fn hooks_are_called_once_when_a_stop_is_requested() {
    let coordinator = Coordinator::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = |n: usize| {
        let calls = calls.clone();
        move || _ = calls.fetch_add(n, SeqCst)
    };
    let _kept = coordinator.on_stop(count(1));
    drop(coordinator.on_stop(count(10)));
    let own = coordinator.clone();
    let _asks = coordinator.on_stop(move || assert!(own.should_stop()));
    assert_eq!(calls.load(SeqCst), 0);
    coordinator.request_stop_with(Error::internal("stop")).unwrap();
    assert_eq!(calls.load(SeqCst), 1);
    coordinator.request_stop();
    assert_eq!(calls.load(SeqCst), 1);
    // At once, if it was requested before; and anew after it was forgotten.
    let _late = coordinator.on_stop(count(100));
    assert_eq!(calls.load(SeqCst), 101);
    coordinator.clear_stop();
    let _again = coordinator.on_stop(count(1000));
    assert_eq!(calls.load(SeqCst), 101);
    coordinator.request_stop();
    assert_eq!(calls.load(SeqCst), 1101);
}
