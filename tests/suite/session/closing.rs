//! What a session gives back when it is closed or dropped, and what it says then.

use std::thread;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{Callable, OnDevice, ProducerOptions, RunOptions};
use convoke_tests::{TestDevice, devices, kind, slow};

/// Bytes of a large variable, and what is taken for anything else of a session.
const LARGE: u64 = 4 << 20;
const SMALL: u64 = 1 << 20;

/// The bytes that are taken on the device, which is used by one test alone.
fn alive(device: &TestDevice) -> u64 {
    device.devices.gpu_counters(1).map_or(0, |(own, _)| own.bytes_alive)
}

/// A graph with a large variable, which grows, and which a run with a branch reads. It never leaves its device: what
/// tensors pass through on their way is the device's, and stays.
fn growing() -> (Graph, Variable, [Tensor; 2]) {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, F32, [LARGE as usize / 4]);
    let w = g.variable("w", Init::Zeros, F32, [4]);
    let sum = v.assign_add(1.0).sum(());
    let is_small = (v.value().sum(()) + w.value().sum(())).less(1.0f32);
    let other = g.cond(&is_small, || w.assign_add(1.0).sum(()), || w.assign_sub(1.0).sum(()));
    (g, v, [sum, other])
}

/// Programs of callables, of plans and of branches hold the memory of variables; all are there still.
#[test]
fn closing_gives_a_gpus_memory_back() {
    for device in devices().iter().skip(1).map(TestDevice::alone) {
        let (g, v, fetches) = growing();
        for is_closed in [true, false] {
            let before = alive(&device);
            let session = device.session_with(&g, SessionOptions::default());
            session.run(&[], g.initializers()).unwrap();
            let callables = fetches.each_ref().map(|y| session.callable(&[], y).unwrap());
            for _ in 0..2 {
                callables.iter().for_each(|callable| drop(callable.call(()).unwrap()));
                fetches.iter().for_each(|y| drop(session.run(&[], y).unwrap()));
            }
            let kept = session.run(&[], OnDevice(&(v.value() * 2.0))).unwrap();
            assert!(alive(&device) >= before + 2 * LARGE, "{}: {before}", device.name);
            if is_closed {
                session.close();
                assert!(
                    callables.iter().all(|callable| {
                        kind(callable.call(())) == ErrorKind::FailedPrecondition
                    })
                );
            } else {
                drop((session, callables));
            }
            // What was fetched stays.
            let after = alive(&device);
            let bounds = before + LARGE..before + LARGE + SMALL;
            assert!(bounds.contains(&after), "{}: {before} and {after}", device.name);
            assert_eq!(kept.to_host().unwrap().to_vec::<f32>().unwrap()[0], 8.0);
            let held = alive(&device);
            drop(kept);
            assert_eq!(alive(&device) + LARGE, held, "{}: it is kept for nobody", device.name);
        }
    }
}

/// However runs and closing meet, no run fails for what is freed, and none leaves anything behind.
#[test]
fn runs_that_are_closed_leave_nothing_behind() {
    for device in devices().iter().map(TestDevice::alone) {
        let (g, _, fetches) = growing();
        let before = alive(&device);
        for i in 0..12 {
            let session = device.session_with(&g, SessionOptions::default());
            session.run(&[], g.initializers()).unwrap();
            let callables: Vec<Callable<_>> =
                fetches.iter().map(|y| session.callable(&[], y).unwrap()).collect();
            let run = |n: usize| match n {
                0 | 1 => callables[n].call(()).map(|_| ()),
                2 => session.run(&[], &fetches[0]).map(|_| ()),
                3 => session.run(&[], g.initializers()),
                _ => session.submit(&[], &fetches[1], RunOptions::default()).wait().map(|_| ()),
            };
            thread::scope(|scope| {
                let runs = [0, 1, 2, 3, 4].map(|n| {
                    scope.spawn(move || {
                        let error = (0..).find_map(|_| run(n).err()).unwrap();
                        let expected = [ErrorKind::FailedPrecondition, ErrorKind::Cancelled];
                        assert!(expected.contains(&error.kind()), "{error}");
                        assert!(error.message().contains("closed"), "{error}");
                    })
                });
                thread::sleep(Duration::from_millis(i * 5));
                session.close();
                runs.into_iter().for_each(|run| run.join().unwrap());
            });
            // A thread of the runners may still have its run.
            let is_free = || alive(&device) < before + SMALL;
            let waits = (0..2000).take_while(|_| !is_free());
            waits.for_each(|_| thread::sleep(Duration::from_millis(1)));
            assert!(is_free(), "{}: {before} and {}", device.name, alive(&device));
            assert!(session.variables().iter().all(|variable| !variable.initialized));
        }
    }
}

/// A run that comes to a variable only after the close ends as others do.
#[test]
fn a_run_under_way_ends_when_its_session_is_closed() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Zeros, F32, [1]);
        let x = g.placeholder("x", F32, [1]);
        let late = slow(&x, Duration::from_millis(150));
        let called = g.cond(&late.sum(()).less(9.0f32), || v.assign_add(&x), || v.assign_sub(&x));
        let session = device.session_with(&g, SessionOptions::default());
        session.run(&[], g.initializers()).unwrap();
        let mut partial = session.partial_run(&[&x], &called).unwrap();
        let add = v.assign_add(&late);
        for y in [&add, &called] {
            session.run(&[x.feed([1.0f32])], y).unwrap();
        }
        let runs =
            [&add, &called].map(|y| session.submit(&[x.feed([1.0f32])], y, RunOptions::default()));
        thread::sleep(Duration::from_millis(50));
        session.close();
        for run in runs {
            // On a busy machine it may have ended before.
            let ended = run.wait().err().map(|error| error.kind());
            assert!(matches!(ended, None | Some(ErrorKind::Cancelled)), "{ended:?}");
        }
        let step = partial.run(&[x.feed([1.0f32])], &called);
        assert_eq!(kind(step), ErrorKind::FailedPrecondition, "{}", device.name);
    }
}

/// A closed session has no elements, and nothing else of what it kept.
#[test]
fn a_closed_session_says_that_it_has_nothing() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(1.0), F32, [2]);
    let names = g.string_input_producer("names", ["a".to_owned()], ProducerOptions::default());
    let key = g.identity_reader("reader").read(&names).0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let twice = session.run(&[], v.value() * 2.0).unwrap();
    let waits = session.submit(&[], &key, RunOptions::default());
    while session.waiting().is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    session.close();
    assert_eq!(kind(waits.wait()), ErrorKind::Cancelled);
    assert_eq!(twice.to_vec::<f32>().unwrap(), [2.0; 2]);
    let all = session.variables();
    assert_eq!((all.len(), &*all[0].name, all[0].initialized), (1, "v", false));
    assert_eq!(session.uninitialized().len(), 1);
    assert!(session.waiting().is_empty());
    let closed = ErrorKind::FailedPrecondition;
    let path = std::env::temp_dir().join(format!("convoke-closed-{}", std::process::id()));
    assert_eq!(kind(session.check_initialized()), closed);
    assert_eq!(kind(session.state_digest()), closed);
    assert_eq!(kind(session.reset(&[])), closed);
    assert_eq!(kind(session.save(&path)), closed);
    assert!(!path.exists());
}

/// Closing ends sixty-four runs that are under way, in line or waiting for a queue: each has its value or was cancelled.
#[test]
fn closing_ends_many_runs() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let takes = g.fifo_queue("q", 4, [(F32, dims![4])]).dequeue().remove(0).sum(());
        let computes = slow(&x, Duration::from_millis(2)).sum(());
        let session = device.session(&g);
        let runs: Vec<_> = (0..64)
            .map(|i| {
                let fetched = if i % 4 == 0 { &takes } else { &computes };
                session.submit(&[x.feed([i as f32; 4])], fetched, RunOptions::default())
            })
            .collect();
        thread::sleep(Duration::from_millis(10));
        session.close();
        for (i, run) in runs.into_iter().enumerate() {
            match run.wait() {
                Ok(sum) => assert_eq!(sum.scalar::<f32>().unwrap(), 4.0 * i as f32),
                Err(error) => {
                    let kinds = [ErrorKind::Cancelled, ErrorKind::FailedPrecondition];
                    assert!(kinds.contains(&error.kind()), "{i} on {}: {error}", device.name);
                }
            }
        }
    }
}
