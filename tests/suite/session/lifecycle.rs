//! Sessions from the first to the last: opened, shared, apart from each other, closed.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use convoke::prelude::*;
use convoke::{DeviceKind, Queue, RunOptions};
use convoke_tests::{A_WHILE, devices, kind};

/// `6 * 7`, as a product of matrices, of which one is drawn in each run, so that it is not computed beforehand.
fn product(g: &Graph) -> Tensor {
    let zero = g.random_uniform(&[1, 1], F32, 1).floor();
    (zero + 6.0).matmul(g.constant([[7.0f32]]))
}

fn number(session: &Session, x: &Tensor) -> f32 {
    session.run(&[], x).unwrap().to_vec::<f32>().unwrap()[0]
}

/// A queue of scalars, and what takes one, for which nobody comes.
fn starving(g: &Graph) -> (Queue, Tensor) {
    let q = g.fifo_queue("q", 1, [(F32, dims![])]);
    let taken = q.dequeue().remove(0);
    (q, taken)
}

/// TensorFlow: `testUseExistingGraph`, `testUseDefaultGraph`.
#[test]
fn use_existing_graph() {
    for device in devices() {
        let g = Graph::new();
        let y = product(&g);
        assert_eq!(number(&device.session(&g), &y), 42.0, "{}", device.name);
    }
}

/// TensorFlow: `testOpenAndCloseSession`.
#[test]
fn open_and_close_session() {
    for device in devices() {
        let g = Graph::new();
        let session = device.session(&g);
        session.close();
        session.close();
        drop(session);
        let y = product(&g);
        drop(device.session(&g));
        assert_eq!(number(&device.session(&g), &y), 42.0);
    }
}

/// TensorFlow: `testUseEmptyGraph`. There, a session of an empty graph refuses to run; here nothing is asked for, and
/// nothing comes back.
#[test]
fn use_empty_graph() {
    let g = Graph::new();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], ()).unwrap();
    assert!(session.run(&[], Vec::<Tensor>::new()).unwrap().is_empty());
    assert!(session.run(&[], BTreeMap::<i32, Tensor>::new()).unwrap().is_empty());
    session.callable(&[], ()).unwrap().call(()).unwrap();
    session.submit(&[], (), RunOptions::default()).wait().unwrap();
    assert!(g.is_empty() && session.variables().is_empty());
    session.close();
    assert_eq!(kind(session.run(&[], ())), ErrorKind::FailedPrecondition);
}

/// TensorFlow: `testUseAfterClose`.
#[test]
fn use_after_close() {
    for device in devices() {
        let g = Graph::new();
        let y = product(&g);
        let session = device.session(&g);
        assert_eq!(number(&session, &y), 42.0);
        let other = session.clone();
        session.close();
        let error = other.run(&[], &y).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{}", device.name);
        assert!(error.message().contains("closed"), "{error}");
    }
}

/// TensorFlow: `testUseAfterCloseConcurrent`: closed while another thread runs it again and again.
#[test]
fn use_after_close_concurrent() {
    for device in devices() {
        let g = Graph::new();
        let y = product(&g);
        let session = device.session(&g);
        thread::scope(|scope| {
            let runs = scope.spawn(|| {
                loop {
                    match session.run(&[], &y) {
                        Ok(y) => assert_eq!(y.to_vec::<f32>().unwrap(), [42.0]),
                        Err(error) => return error,
                    }
                }
            });
            thread::sleep(A_WHILE);
            session.close();
            let last = runs.join().unwrap().kind();
            let expected = [ErrorKind::FailedPrecondition, ErrorKind::Cancelled];
            assert!(expected.contains(&last), "{}: {last:?}", device.name);
        });
        assert_eq!(kind(session.run(&[], &y)), ErrorKind::FailedPrecondition);
    }
}

/// TensorFlow: `testAsDefault`: a session lives as long as somebody has it, and a callable has it too.
#[test]
fn as_default_keeps_the_session_alive() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(2.0), F32, []);
        let bump = v.assign_add(1.0);
        let session = device.session(&g);
        session.run(&[], v.initializer()).unwrap();
        let (other, callable) = (session.clone(), session.callable(&[], &bump).unwrap());
        drop(session);
        assert_eq!(number(&other, &bump), 3.0, "{}", device.name);
        drop((other, g));
        assert_eq!(callable.call(()).unwrap().scalar::<f32>().unwrap(), 4.0, "{}", device.name);
    }
}

/// TensorFlow: `testSharedGraph`: two sessions of one graph agree.
#[test]
fn shared_graph() {
    for device in devices() {
        let g = Graph::new();
        let y = product(&g);
        let (one, other) = (device.session(&g), device.session(&g));
        assert_eq!((number(&one, &y), number(&other, &y)), (42.0, 42.0), "{}", device.name);
    }
}

/// TensorFlow: `testMultipleSessions` of `server_lib_test.py`, in one process: closing one leaves the other alone.
#[test]
fn multiple_sessions() {
    for device in devices() {
        let g = Graph::new();
        let y = product(&g);
        let (one, other) = (device.session(&g), device.session(&g));
        one.close();
        assert_eq!(kind(one.run(&[], &y)), ErrorKind::FailedPrecondition);
        assert_eq!(number(&other, &y), 42.0, "{}", device.name);
    }
}

/// TensorFlow: `testRunStep` of `server_lib_test.py`, in one process.
#[test]
fn run_step() {
    for device in devices() {
        let g = Graph::new();
        let v0 = g.variable("v0", Init::Constant(2.0), F32, [1, 1]);
        let v1 = g.variable("v1", Init::Constant(3.0), F32, [1, 1]);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let v2 = v0.value().matmul(&v1);
        assert_eq!(number(&session, &v2), 6.0, "{}", device.name);
    }
}

/// TensorFlow: `testIsolateSessionState`. Sessions of one process never share variables.
#[test]
fn isolate_session_state() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let v = g.variable("v", Init::Zeros, F32, []);
        let assign = v.assign(&x).operation();
        let sessions = [(); 4].map(|()| device.session(&g));
        for (i, session) in sessions.iter().enumerate() {
            assert_eq!(kind(session.run(&[], &v)), ErrorKind::FailedPrecondition);
            session.run(&[x.feed(i as f32)], &assign).unwrap();
        }
        let values = sessions.each_ref().map(|session| number(session, v.value()));
        assert_eq!(values, [0.0, 1.0, 2.0, 3.0], "{}", device.name);
    }
}

/// TensorFlow: `testShapeChangingIsolateState`: a variable of the same name and another shape, in another graph.
#[test]
fn shape_changing_isolate_state() {
    for device in devices() {
        let of = |n: usize| {
            let g = Graph::new();
            let v = g.variable("v", Init::Constant(n as f64), F32, [n]);
            let session = device.session(&g);
            session.run(&[], v.initializer()).unwrap();
            (session, v)
        };
        let all = [of(1), of(3)];
        for ((session, v), n) in all.iter().zip([1, 3]) {
            let value = session.run(&[], v).unwrap().to_vec::<f32>().unwrap();
            assert_eq!(value, vec![n as f32; n], "{}", device.name);
        }
    }
}

/// TensorFlow: `testLargeConstant`, `testLargeFetch` and `testLargeFeed` of `server_lib_test.py`, in one process: 120 MB
/// each on the CPU, 12 MB where a driver computes in software.
#[test]
fn large_constant_fetch_and_feed() {
    for device in devices() {
        let rows = if device.name == "CPU" { 10_000 } else { 1000 };
        let ones = HostTensor::new(&[rows, 3000], vec![1.0f32; rows * 3000]).unwrap();
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 3000]);
        let constant = g.constant(ones.clone());
        let session = device.session(&g);
        let expected = (rows * 3000) as f32;
        let total = |x: &Tensor, feeds: &[Feed<'_>]| {
            session.run(feeds, x.sum(())).unwrap().scalar::<f32>().unwrap()
        };
        let near = |found: f32| (found - expected).abs() <= 1e-3 * expected;
        assert!(near(total(&constant, &[])), "{}", device.name);
        assert!(near(total(&x, &[x.feed(&ones)])), "{}", device.name);
        let fetched = session.run(&[], g.fill(&[rows as i64, 3000], 1.0f32)).unwrap();
        assert!(fetched == ones, "{}", device.name);
    }
}

/// TensorFlow: `TestDirectSessionRunClose`: runs, callables and what waits.
#[test]
fn direct_session_run_close() {
    for device in devices() {
        let g = Graph::new();
        let y = product(&g);
        let (_, taken) = starving(&g);
        let session = device.session(&g);
        let callable = session.callable(&[], &y).unwrap();
        assert_eq!(callable.call(()).unwrap().to_vec::<f32>().unwrap(), [42.0]);
        let waits = session.submit(&[], &taken, RunOptions::default());
        session.close();
        let closed = ErrorKind::FailedPrecondition;
        assert_eq!(kind(waits.wait()), ErrorKind::Cancelled, "{}", device.name);
        assert_eq!(kind(session.run(&[], &y)), closed);
        assert_eq!(kind(callable.call(())), closed);
        assert_eq!(kind(session.callable(&[], &y)), closed);
        assert_eq!(kind(session.submit(&[], &y, RunOptions::default()).wait()), closed);
        assert_eq!(kind(session.explain(&[], &y)), closed);
        assert_eq!(kind(session.program(&[], &y)), closed);
    }
}

/// TensorFlow: `testCloseCancelsBlockingOperation` of `server_lib_test.py`, in one process.
#[test]
fn close_cancels_blocking_operation() {
    let g = Graph::new();
    let (_, taken) = starving(&g);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    thread::scope(|scope| {
        let blocked = scope.spawn(|| session.run(&[], &taken));
        thread::sleep(2 * A_WHILE);
        session.close();
        // A thread that the system starts late finds the session closed.
        let ended = kind(blocked.join().unwrap());
        assert!(matches!(ended, ErrorKind::Cancelled | ErrorKind::FailedPrecondition), "{ended:?}");
    });
}

/// TensorFlow: `testTimeoutRaisesException` of `server_lib_test.py`, in one process: the session goes on.
#[test]
fn timeout_raises_exception() {
    let g = Graph::new();
    let (q, taken) = starving(&g);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let timeout = || RunOptions { timeout: Some(A_WHILE), ..RunOptions::default() };
    assert_eq!(kind(session.run_with(&[], &taken, timeout())), ErrorKind::DeadlineExceeded);
    assert_eq!(kind(session.run_with(&[], &taken, timeout())), ErrorKind::DeadlineExceeded);
    session.run(&[], q.enqueue(&[&g.constant(5.0f32)])).unwrap();
    let (taken, _) = session.run_with(&[], &taken, timeout()).unwrap();
    assert_eq!(taken.scalar::<f32>().unwrap(), 5.0);
}

/// TensorFlow: `testLocalMasterSessionTimeout`: the session's own timeout ends what waits.
#[test]
fn local_master_session_timeout() {
    let g = Graph::new();
    let (_, taken) = starving(&g);
    let options = SessionOptions { timeout: Some(A_WHILE), ..SessionOptions::default() };
    let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
    let begun = Instant::now();
    assert_eq!(kind(session.run(&[], &taken)), ErrorKind::DeadlineExceeded);
    assert!(begun.elapsed() >= A_WHILE);
}

/// TensorFlow: `testTimeoutWithShortOperations`: a generous timeout is in nobody's way.
#[test]
fn timeout_with_short_operations() {
    for device in devices() {
        let g = Graph::new();
        let q = g.fifo_queue("q", 50, [(I32, dims![])]);
        let put = q.enqueue_many(&[&g.range(0, 10)]);
        let options =
            SessionOptions { timeout: Some(Duration::from_secs(60)), ..SessionOptions::default() };
        let session = device.session_with(&g, options);
        for _ in 0..5 {
            session.run(&[], &put).unwrap();
        }
        let size = session.run(&[], q.size()).unwrap();
        assert_eq!(size.scalar::<i32>().unwrap(), 50, "{}", device.name);
    }
}

/// TensorFlow: `LocalDeviceManager`, `testListDevices` and `testInvalidDeviceNumber`.
#[test]
fn list_devices() {
    for device in devices() {
        let g = Graph::new();
        let session = device.session(&g);
        let list = session.devices().list();
        assert_eq!((&*list[0].name, list[0].kind), ("CPU:0", DeviceKind::Cpu));
        let count = list.iter().filter(|d| d.kind == DeviceKind::Cpu).count();
        assert_eq!((count, list.len()), (1, if device.name == "CPU" { 1 } else { 2 }));
        for (i, info) in list.iter().enumerate() {
            assert_eq!(session.devices().index_of(&info.name).unwrap(), i);
            assert!(!info.id.is_empty() && !info.adapter.is_empty(), "{info:?}");
        }
        let error = session.devices().index_of("GPU:9").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.message().contains("CPU:0"), "{error}");
    }
}

/// TensorFlow: `testDeviceAttributesCanonicalization` and the spellings of `session_clusterspec_prop_test.py`.
#[test]
fn canonical_device_names() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![2]);
        let last = device.devices.list().last().unwrap().name.to_lowercase();
        let session = device.session(&g);
        let spellings = [
            format!("/{last}"),
            format!("/device:{}", last.to_uppercase()),
            format!("/job:localhost/replica:0/task:0/{last}"),
            format!("/job:localhost/replica:0/task:0/device:{}", last.to_uppercase()),
            last.to_uppercase(),
        ];
        for name in &spellings {
            assert_eq!(device.devices.index_of(name).unwrap(), device.devices.list().len() - 1);
            let y = g.device(name, || &x * 2.0);
            let feeds = [x.feed([1.0f32, 2.0])];
            let y_is = session.run(&feeds, &y).unwrap().to_vec::<f32>().unwrap();
            assert_eq!(y_is, [2.0, 4.0], "{name} on {}", device.name);
            let explanation = session.explain(&feeds, &y).unwrap();
            let full = &explanation.devices()[device.devices.list().len() - 1];
            assert!(full.ends_with(&last.to_uppercase()), "{full} for {name}");
        }
    }
}
