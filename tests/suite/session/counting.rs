//! Counts up to a limit: what they give, at the limit, beside other stores, from many threads.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use convoke::prelude::*;
use convoke::{CancelToken, RunOptions};
use convoke_tests::{devices, slow};

/// `variables_test.py`, `testCountUpTo`.
#[test]
fn a_count_gives_what_was_there_until_the_limit() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Zeros, I32, []);
        let wide = g.variable("wide", Init::Value((1i64 << 40).into()), I64, []);
        let (next, far) = (v.count_up_to(3), wide.count_up_to((1 << 40) + 1));
        let session = device.session_with(&g, SessionOptions::default());
        session.run(&[], g.initializers()).unwrap();
        for expected in 0..3 {
            let given = session.run(&[], &next).unwrap().scalar::<i32>().unwrap();
            assert_eq!(given, expected, "{}", device.name);
            let kept = session.run(&[], &v).unwrap().scalar::<i32>().unwrap();
            assert_eq!(kept, expected + 1, "{}", device.name);
        }
        let before = session.state_digest().unwrap();
        // The other count stores nothing either.
        let error = session.run(&[], (&far, &next)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "{}: {error}", device.name);
        assert_eq!(error.message(), "reached the limit of 3");
        assert_eq!(error.node(), Some("count_up_to"));
        assert_eq!(session.state_digest().unwrap(), before, "{}", device.name);
        assert_eq!(session.run(&[], &far).unwrap().scalar::<i64>().unwrap(), 1 << 40);
    }
}

#[test]
fn the_limit_stops_the_stores_of_a_gpu() {
    for device in devices() {
        let g = Graph::new();
        let epoch = g.variable("epoch", Init::Zeros, I32, []);
        let w = g.variable("w", Init::Constant(1.0), F32, [64]);
        let next = g.device("CPU:0", || epoch.count_up_to(2));
        let step = w.assign_add(w.value() * 2.0).operation();
        let session = device.session_with(&g, SessionOptions::default());
        session.run(&[], g.initializers()).unwrap();
        for expected in [3.0, 9.0] {
            session.run(&[], (&next, &step)).unwrap();
            let kept = session.run(&[], &w).unwrap().to_vec::<f32>().unwrap();
            assert_eq!(kept, [expected; 64], "{}", device.name);
        }
        let error = session.run(&[], (&next, &step)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "{}: {error}", device.name);
        let kept = session.run(&[], &w).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(kept, [9.0; 64], "{}", device.name);
    }
}

#[test]
fn no_number_comes_twice() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Zeros, I32, []);
        let next = v.count_up_to(100);
        let session = device.session_with(&g, SessionOptions::default());
        session.run(&[], g.initializers()).unwrap();
        let all = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        match session.run(&[], &next) {
                            Ok(number) => {
                                all.lock().unwrap().push(number.scalar::<i32>().unwrap());
                            }
                            Err(e) => break assert_eq!(e.kind(), ErrorKind::OutOfRange, "{e}"),
                        }
                    }
                });
            }
        });
        let mut all = all.into_inner().unwrap();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<i32>>(), "{}", device.name);
    }
}

#[test]
fn two_counts_in_one_run_are_ordered() {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, I64, []);
    let first = v.count_up_to(10);
    let second = g.after(&[&first.operation()], || v.count_up_to(10));
    let beside = v.count_up_to(10);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let (first, second) = session.run(&[], (&first, &second)).unwrap();
    assert_eq!((first.scalar::<i64>().unwrap(), second.scalar::<i64>().unwrap()), (0, 1));
    let error = session.run(&[], (&beside, v.count_up_to(10))).unwrap_err();
    assert!(error.message().contains("both assign v in one run"), "{error}");
    assert_eq!(session.run(&[], &v).unwrap().scalar::<i64>().unwrap(), 2);
}

#[test]
fn a_run_that_waits_for_its_turn_can_be_ended() {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, I64, []);
    let x = g.placeholder("x", F32, [1]);
    let next = v.count_up_to(10);
    let busy = slow(&x, Duration::from_millis(1500));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let start = Instant::now();
    let holder = session.submit(&[x.feed([1.0f32])], (&next, &busy), RunOptions::default());
    std::thread::sleep(Duration::from_millis(150));
    let timeout = Some(Duration::from_millis(20));
    let options = RunOptions { timeout, ..RunOptions::default() };
    let error = session.run_with(&[], &next, options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    let token = CancelToken::new();
    let options = RunOptions { cancel: Some(token.clone()), ..RunOptions::default() };
    let waits = session.submit(&[], &next, options);
    token.cancel();
    assert_eq!(waits.wait().unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(start.elapsed() < Duration::from_millis(1400), "{:?}", start.elapsed());
    let (number, _) = holder.wait().unwrap();
    assert_eq!(number.scalar::<i64>().unwrap(), 0);
    assert_eq!(session.run(&[], &next).unwrap().scalar::<i64>().unwrap(), 1);
}

#[test]
fn only_a_scalar_of_integers_counts() {
    let g = Graph::new();
    g.variable("floats", Init::Zeros, F32, []).count_up_to(3);
    g.variable("many", Init::Zeros, I32, [2]).count_up_to(3);
    let errors = g.check();
    let messages: Vec<&str> = errors
        .iter()
        .filter(|e| e.node().is_some_and(|node| node.starts_with("count_up_to")))
        .map(|e| e.message())
        .collect();
    assert_eq!(
        messages,
        [
            "count_up_to needs a tensor of i32 or i64, got f32; cast it first",
            "expected rank 0, got shape [2]",
        ]
    );
}
