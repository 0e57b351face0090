//! Containers: what a reset drops, what it leaves, and what of runs that are under way; shared variables.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use convoke::prelude::*;
use convoke::{ProducerOptions, Queue, QueueOptions, RunOptions};
use convoke_tests::{devices, fails_while, slow};

/// `server_lib_test.py`: `testResetFails`: a container that there is not; all stays as it is.
#[test]
fn reset_fails() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(1.0), F32, [4]);
        let queue = g.fifo_queue("queue", 3, [(F32, dims![])]);
        let put = queue.enqueue(&[&g.constant(7.0f32)]);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        session.run(&[], &put).unwrap();
        let before = session.state_digest().unwrap();
        session.reset(&["nobody's"]).unwrap();
        assert_eq!(session.state_digest().unwrap(), before, "{}", device.name);
        assert_eq!(session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(), [1.0; 4]);
    }
}

/// `server_lib_multiple_containers_test.py`.
#[test]
fn a_reset_drops_what_is_in_the_containers_that_it_names() {
    for device in devices() {
        let g = Graph::new();
        let one = g.container("one", || g.variable("one", Init::Constant(1.0), F32, [4]));
        let inner = g.container("one", || {
            g.container("two", || g.variable("two", Init::Constant(2.0), F32, [4]))
        });
        let plain = g.container("one", || {
            g.container("", || g.variable("plain", Init::Constant(3.0), F32, [4]))
        });
        let queue = g.container("one", || g.fifo_queue("queue", 3, [(F32, dims![])]));
        let value = g.constant(7.0f32);
        let (put, size) = (queue.enqueue(&[&value]), queue.size());
        let sum = &one + &inner + &plain;
        let session = device.session_with(&g, SessionOptions::default());
        session.run(&[], g.initializers()).unwrap();
        let bump = one.assign_add(1.0);
        session.run(&[], (&bump, &put)).unwrap();
        assert_eq!(session.run(&[], &sum).unwrap().to_vec::<f32>().unwrap(), [7.0; 4]);
        let without = || session.uninitialized().iter().map(|n| n.to_string()).collect::<Vec<_>>();
        session.reset(&["one", "nobody's"]).unwrap();
        assert_eq!(without(), ["one"], "{}", device.name);
        let error = session.run(&[], &sum).unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::FailedPrecondition, Some("one")));
        assert_eq!(session.run(&[], &size).unwrap().scalar::<i32>().unwrap(), 0);
        let (two, plain) = session.run(&[], (&inner, &plain)).unwrap();
        assert_eq!(two.to_vec::<f32>().unwrap(), [2.0; 4], "{}", device.name);
        assert_eq!(plain.to_vec::<f32>().unwrap(), [3.0; 4], "{}", device.name);
        // As new: the same programs go on.
        session.run(&[], one.initializer()).unwrap();
        assert_eq!(session.run(&[], &sum).unwrap().to_vec::<f32>().unwrap(), [6.0; 4]);
        session.run(&[], &bump).unwrap();
        assert_eq!(session.run(&[], &sum).unwrap().to_vec::<f32>().unwrap(), [7.0; 4]);
        session.reset(&[""]).unwrap();
        assert_eq!(without(), ["plain"], "{}", device.name);
        session.reset(&[]).unwrap();
        assert_eq!(without(), ["one", "two", "plain"], "{}", device.name);
        session.close();
        assert_eq!(session.reset(&[]).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    }
}

#[test]
fn a_reset_gives_a_gpus_memory_back() {
    for device in devices().iter().skip(1) {
        let device = device.alone();
        let g = Graph::new();
        let large = g.container("large", || g.variable("large", Init::Zeros, F32, [1 << 20]));
        let small = g.variable("small", Init::Zeros, F32, [4]);
        let twice = small.value() * 2.0;
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        session.run(&[], (large.assign_add(1.0).operation(), &twice)).unwrap();
        let bytes = || session.run_with(&[], &twice, RunOptions::default()).unwrap().1.device_bytes;
        let before = bytes();
        session.reset(&["large"]).unwrap();
        let after = bytes();
        assert!(after + (4 << 20) <= before, "{}: {before} and {after}", device.name);
        session.run(&[], large.initializer()).unwrap();
        let sum = session.run(&[], large.value().sum(())).unwrap();
        assert_eq!(sum.scalar::<f32>().unwrap(), 0.0, "{}", device.name);
    }
}

/// TensorFlow: `TestDirectSessionReset`, which closes the session; here it and its callables go on.
#[test]
fn direct_session_reset() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(1.0), F32, [3]);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let bump = session.callable(&[], v.assign_add(1.0)).unwrap();
        let call = || bump.call(()).map(|v| v.to_vec::<f32>().unwrap());
        assert_eq!((call().unwrap(), call().unwrap()), (vec![2.0; 3], vec![3.0; 3]));
        session.reset(&[]).unwrap();
        assert_eq!(call().unwrap_err().kind(), ErrorKind::FailedPrecondition, "{}", device.name);
        session.run(&[], g.initializers()).unwrap();
        assert_eq!(call().unwrap(), [2.0; 3], "{}", device.name);
        assert_eq!(session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(), [2.0; 3]);
    }
}

/// Readers begin anew, names are given from the first epoch, and what a run under way has read does not count.
#[test]
fn a_reset_has_readers_begin() {
    let g = Graph::new();
    let names = g.container("names", || {
        let options = ProducerOptions { epochs: Some(1), ..ProducerOptions::default() };
        g.string_input_producer("names", ["a", "b", "c"].map(String::from), options)
    });
    let reader = g.container("readers", || g.identity_reader("reader"));
    let other = g.identity_reader("other");
    let (key, _) = reader.read(&names);
    let (other_key, _) = other.read(&names);
    let (n, of_other) = (reader.num_records_produced(), other.num_records_produced());
    let x = g.placeholder("x", F32, [1]);
    let late = slow(&x, Duration::from_millis(300));
    let fill = g.queue_runners().remove(0).enqueues()[0].clone();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let counts = || {
        let (n, of_other) = session.run(&[], (&n, &of_other)).unwrap();
        (n.scalar::<i64>().unwrap(), of_other.scalar::<i64>().unwrap())
    };
    let new = session.state_digest().unwrap();
    session.run(&[], &fill).unwrap();
    session.run(&[], (&key, &other_key)).unwrap();
    assert_eq!(counts(), (1, 1));
    let run = session.submit(&[x.feed([1.0f32])], (&key, &late), RunOptions::default());
    std::thread::sleep(Duration::from_millis(100));
    session.reset(&["readers"]).unwrap();
    run.wait().unwrap();
    assert_eq!(counts(), (0, 1));
    // The epoch is over.
    assert_eq!(session.run(&[], &fill).unwrap_err().kind(), ErrorKind::OutOfRange);
    session.reset(&["names"]).unwrap();
    session.run(&[], &fill).unwrap();
    session.run(&[], &key).unwrap();
    assert_eq!(counts(), (1, 1));
    session.reset(&[]).unwrap();
    assert_eq!(session.state_digest().unwrap(), new);
}

/// Waits until a run has taken the queue's last element, and reads its variables.
fn wait_until_empty(session: &Session, queue: &Queue) {
    let size = queue.size();
    while session.run(&[], &size).unwrap().scalar::<i32>().unwrap() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(100));
}

#[test]
fn what_a_run_under_way_stores_into_a_reset_variable_is_lost() {
    for device in devices() {
        let g = Graph::new();
        let queue = g.fifo_queue("queue", 9, [(F32, dims![2])]);
        let put = queue.enqueue(&[&g.constant([1.0f32, 2.0])]);
        let x = queue.dequeue().remove(0);
        let gone = g.container("gone", || g.variable("gone", Init::Zeros, F32, [2]));
        let stays = g.variable("stays", Init::Zeros, F32, [2]);
        let late = slow(&x, Duration::from_millis(300));
        let step = [gone.assign_add(&late).operation(), stays.assign_add(&late).operation()];
        let session = device.session_with(&g, SessionOptions::default());
        session.run(&[], g.initializers()).unwrap();
        session.run(&[], &put).unwrap();
        session.run(&[], &step).unwrap();
        session.run(&[], &put).unwrap();
        let run = session.submit(&[], &step, RunOptions::default());
        wait_until_empty(&session, &queue);
        session.reset(&["gone"]).unwrap();
        run.wait().unwrap();
        let kept = session.run(&[], &stays).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(kept, [2.0, 4.0], "{}", device.name);
        let error = session.run(&[], &gone).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{}", device.name);
        session.run(&[], gone.initializer()).unwrap();
        let kept = session.run(&[], &gone).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(kept, [0.0, 0.0], "{}", device.name);
    }
}

#[test]
fn a_reset_queue_keeps_who_waits_and_forgets_what_was_taken() {
    let g = Graph::new();
    let queue = g.container("c", || g.fifo_queue("queue", 1, [(F32, dims![1])]));
    let x = g.placeholder("x", F32, [1]);
    let (put, taken) = (queue.enqueue(&[&x]), queue.dequeue().remove(0));
    let fails = Arc::new(AtomicBool::new(true));
    let failing = fails_while(&slow(&taken, Duration::from_millis(300)), &fails);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[x.feed([1.0f32])], &put).unwrap();
    // It has taken the element when the queue is reset, and does not give it back.
    let run = session.submit(&[], &failing, RunOptions::default());
    wait_until_empty(&session, &queue);
    session.reset(&["c"]).unwrap();
    assert_eq!(run.wait().unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(session.run(&[], queue.size()).unwrap().scalar::<i32>().unwrap(), 0);
    // Who waits for an element gets the next one, who waits for room has it now.
    let waits = session.submit(&[], &taken, RunOptions::default());
    std::thread::sleep(Duration::from_millis(50));
    session.reset(&[]).unwrap();
    session.run(&[x.feed([2.0f32])], &put).unwrap();
    assert_eq!(waits.wait().unwrap().to_vec::<f32>().unwrap(), [2.0]);
    session.run(&[x.feed([3.0f32])], &put).unwrap();
    let puts = session.submit(&[x.feed([4.0f32])], &put, RunOptions::default());
    std::thread::sleep(Duration::from_millis(50));
    session.reset(&["c"]).unwrap();
    puts.wait().unwrap();
    assert_eq!(session.run(&[], &taken).unwrap().to_vec::<f32>().unwrap(), [4.0]);
    // A closed queue is open again.
    session.run(&[], queue.close()).unwrap();
    assert_eq!(session.run(&[x.feed([5.0f32])], &put).unwrap_err().kind(), ErrorKind::Cancelled);
    session.reset(&["c"]).unwrap();
    session.run(&[x.feed([5.0f32])], &put).unwrap();
    fails.store(false, Ordering::Relaxed);
    assert_eq!(session.run(&[], &failing).unwrap().to_vec::<f32>().unwrap(), [5.0]);
}

#[test]
fn variables_of_one_shared_name_are_one() {
    for device in devices() {
        let g = Graph::new();
        let a = g.shared_variable("v", Init::Constant(1.0), F32, [2]);
        let b = g.scope("other", || g.shared_variable("v", Init::Constant(9.0), F32, [2]));
        let c = g.container("c", || g.shared_variable("v", Init::Constant(5.0), F32, [2]));
        assert_eq!(g.trainable_variables().len(), 2);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        session.run(&[], b.assign_add(1.0).operation()).unwrap();
        let (a, c) = session.run(&[], (&a, &c)).unwrap();
        assert_eq!(a.to_vec::<f32>().unwrap(), [2.0; 2], "{}", device.name);
        assert_eq!(c.to_vec::<f32>().unwrap(), [5.0; 2], "{}", device.name);
        session.reset(&["c"]).unwrap();
        assert_eq!(session.run(&[], &b).unwrap().to_vec::<f32>().unwrap(), [2.0; 2]);
    }
    let g = Graph::new();
    g.shared_variable("v", Init::Zeros, F32, [2]);
    let sizes = g.shared_variable("v", Init::Zeros, F32, [3]);
    let dtype = g.shared_variable("v", Init::Zeros, I32, [2]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for (other, here) in [(&sizes, "f32[3]"), (&dtype, "i32[2]")] {
        let error = session.run(&[], other).unwrap_err();
        let says = format!("the variable \"v\" is shared and is f32[2], and here {here}");
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidArgument, &*says));
    }
}

#[test]
fn queues_of_one_shared_name_are_one_in_a_container() {
    let g = Graph::new();
    let queue = || {
        let options = QueueOptions { shared_name: Some("q".into()), ..QueueOptions::default() };
        g.queue("queue", [(F32, dims![])], options)
    };
    let (a, b) = (queue(), g.container("c", queue));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let value = g.constant(1.0f32);
    session.run(&[], (a.enqueue(&[&value]), b.enqueue(&[&value]))).unwrap();
    session.run(&[], queue().enqueue(&[&value])).unwrap();
    let sizes = || {
        let (a, b) = session.run(&[], (a.size(), b.size())).unwrap();
        (a.scalar::<i32>().unwrap(), b.scalar::<i32>().unwrap())
    };
    assert_eq!(sizes(), (2, 1));
    session.reset(&["c"]).unwrap();
    assert_eq!(sizes(), (2, 0));
}
