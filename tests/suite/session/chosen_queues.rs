//! How many elements a run takes, and of which queue, where tensors say so. TensorFlow: `kernel_tests/fifo_queue_test.py`,
//! by meaning.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{Amount, Queue, QueueKind, QueueOptions, RunOptions};
use convoke_tests::{A_WHILE, devices, fails_while, kind};

fn ints(tensor: &HostTensor) -> Vec<i32> {
    tensor.to_vec::<i32>().unwrap()
}

/// A queue of scalars of i32 with 0, 1, .. in it, as far as there is room.
fn filled(g: &Graph, name: &str, n: i32) -> (Queue, Operation) {
    let q = g.fifo_queue(name, 100, [(I32, dims![])]);
    let all = HostTensor::new(&[n as usize], (0..n).collect::<Vec<i32>>()).unwrap();
    let fill = q.enqueue_many(&[&g.constant(all)]);
    (q, fill)
}

/// `testDequeueManyWithTensorParameter`: the counts come from another queue, in a run before.
#[test]
fn dequeue_many_with_tensor_parameter() {
    for device in devices() {
        let g = Graph::new();
        let counts = g.fifo_queue("counts", 10, [(I32, dims![])]);
        let put_counts = counts.enqueue_many(&[&g.constant([3, 0, 1, 5])]);
        let next_count = counts.dequeue().remove(0);
        let (q, fill) = filled(&g, "q", 9);
        let n = g.placeholder("n", I32, dims![]);
        let batch = q.dequeue_many(&n).remove(0);
        let doubled = &batch * 2;
        let session = device.session(&g);
        session.run(&[], (&put_counts, &fill)).unwrap();
        let mut all = Vec::new();
        for expected in [3usize, 0, 1, 5] {
            let count = session.run(&[], &next_count).unwrap().scalar::<i32>().unwrap();
            let (batch, doubled) = session.run(&[n.feed(count)], (&batch, &doubled)).unwrap();
            assert_eq!(batch.dims(), [expected], "{}", device.name);
            let twice: Vec<i32> = ints(&batch).iter().map(|x| x * 2).collect();
            assert_eq!(ints(&doubled), twice, "{}", device.name);
            all.extend(ints(&batch));
        }
        assert_eq!(all, (0..9).collect::<Vec<i32>>());
    }
}

/// Constant, fed, computed from what is fed, or fed in the middle of that; as i32 and as i64; in runs, callables and
/// submitted runs.
#[test]
fn a_number_may_be_constant_fed_or_computed_from_that() {
    let g = Graph::new();
    let (q, fill) = filled(&g, "q", 20);
    let n = g.placeholder("n", I64, dims![]);
    let rows = g.placeholder("rows", F32, dims![None, 2]);
    let constant = q.dequeue_many(g.constant(2i64)).remove(0);
    assert_eq!(constant.dims(), dims![2]);
    let sum = &n + g.constant(1i64);
    let more = q.dequeue_many(&sum).remove(0);
    assert_eq!(more.dims(), dims![None]);
    let n_rows = rows.shape().slice(&[0], &[Some(1)]).reshape(&[]);
    let as_many_as_rows = q.dequeue_up_to(n_rows).remove(0);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], &fill).unwrap();
    assert_eq!(ints(&session.run(&[], &constant).unwrap()), [0, 1]);
    assert_eq!(ints(&session.run(&[n.feed(1i64)], &more).unwrap()), [2, 3]);
    assert_eq!(ints(&session.run(&[sum.feed(1i64)], &more).unwrap()), [4]);
    let call = session.callable(&[&n], &more).unwrap();
    assert_eq!(ints(&call.call([2i64]).unwrap()), [5, 6, 7]);
    assert_eq!(ints(&call.call([0i64]).unwrap()), [8]);
    let submitted = session.submit(&[n.feed(1i64)], &more, RunOptions::default());
    assert_eq!(ints(&submitted.wait().unwrap()), [9, 10]);
    let three = HostTensor::zeros(F32, convoke::Shape::new(&[3, 2]).unwrap()).unwrap();
    let (batch, sum) = session.run(&[rows.feed(three)], (&as_many_as_rows, rows.sum(()))).unwrap();
    assert_eq!((ints(&batch), sum.scalar::<f32>().unwrap()), (vec![11, 12, 13], 0.0));
    // A placeholder of the number is asked for as any other.
    let error = session.run(&[], &more).unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("n")));
}

/// Below 0 is refused, and nothing is taken; 0 waits for nothing.
#[test]
fn numbers_out_of_range() {
    let g = Graph::new();
    let (q, fill) = filled(&g, "q", 2);
    let n = g.placeholder("n", I32, dims![]);
    let (many, up_to) = (q.dequeue_many(&n).remove(0), q.dequeue_up_to(&n).remove(0));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    assert_eq!(session.run(&[n.feed(0)], &many).unwrap().dims(), [0]);
    assert_eq!(session.run(&[n.feed(0)], &up_to).unwrap().dims(), [0]);
    session.run(&[], &fill).unwrap();
    let before = session.state_digest().unwrap();
    for batch in [&many, &up_to] {
        let error = session.run(&[n.feed(-1)], batch).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("at least 0, got -1"), "{error}");
        let node = batch.operation().name().to_owned();
        assert_eq!(error.node(), Some(&*node));
        let submitted = session.submit(&[n.feed(-1)], batch, RunOptions::default());
        assert_eq!(kind(submitted.wait()), ErrorKind::InvalidArgument);
    }
    assert_eq!(session.state_digest().unwrap(), before);
    // A constant below 0 and what is no number are refused at once.
    q.dequeue_many(g.constant(-3));
    q.dequeue_many(g.constant([1, 2]));
    q.dequeue_many(g.constant(1.0f32));
    let errors = g.check();
    assert_eq!(errors.len(), 3);
    assert!(errors[0].message().contains("at least 0, got -3"), "{}", errors[0]);
    assert!(errors[2].message().contains("a scalar of i32 or i64"), "{}", errors[2]);
}

/// What only the run knows is no number: it is named, and what to do.
#[test]
fn numbers_that_are_not_known_before_the_run_are_refused() {
    let g = Graph::new();
    let (q, fill) = filled(&g, "q", 9);
    let v = g.variable("v", Init::Constant(2.0), F32, []);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], (&fill, g.initializers())).unwrap();
    let before = session.state_digest().unwrap();
    let dequeued = q.dequeue().remove(0);
    let table = g.mutable_table("t", I64, F32);
    let after = g.after(&[&v.assign_add(1.0).operation()], || g.constant(2).identity());
    for (n, named) in [
        (v.value().cast(I32), "v"),
        (dequeued.clone(), "q_dequeue"),
        (&dequeued + 1, "q_dequeue"),
        (q.size(), "q_size"),
        (after, "v"),
        (table.size(), "t_size"),
    ] {
        let batch = q.dequeue_many(&n).remove(0);
        let error = session.run(&[], &batch).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unimplemented);
        assert!(error.message().contains("unsupported") && error.message().contains("feed it"));
        assert!(error.message().contains(named), "{error}");
        let node = batch.operation().name().to_owned();
        assert_eq!(error.node(), Some(&*node));
        // Fed, it is known.
        assert_eq!(session.run(&[n.feed(0)], &batch).unwrap().len(), 0);
    }
    assert_eq!(session.state_digest().unwrap(), before);
}

/// A run that waits for a computed number of elements waits for all of them.
#[test]
fn who_takes_a_computed_number_waits_for_it() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 2, [(I32, dims![])]);
    let (x, n) = (g.placeholder("x", I32, dims![]), g.placeholder("n", I32, dims![]));
    let put = q.enqueue(&[&x]);
    let batch = q.dequeue_many(&n * 2).remove(0);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let waits = session.submit(&[n.feed(2)], &batch, RunOptions::default());
    for i in 0..4 {
        assert!(!waits.is_done());
        session.run(&[x.feed(i)], &put).unwrap();
    }
    assert_eq!(ints(&waits.wait().unwrap()), [0, 1, 2, 3]);
    let blocked = RunOptions { fail_if_blocked: true, ..RunOptions::default() };
    let error = session.run_with(&[n.feed(3)], &batch, blocked).unwrap_err();
    assert!(error.message().contains("wanted 6, there 0"), "{error}");
}

/// `testSelectQueue`.
#[test]
fn select_queue() {
    for device in devices() {
        let g = Graph::new();
        let (a, b) =
            (g.fifo_queue("a", 10, [(F32, dims![])]), g.fifo_queue("b", 15, [(F32, dims![])]));
        let (index, x) = (g.placeholder("index", I32, dims![]), g.placeholder("x", F32, dims![]));
        let chosen = g.select_queue(&index, &[&a, &b]);
        let (put, get) = (chosen.enqueue(&[&(&x * 2.0)]), chosen.dequeue().remove(0));
        let session = device.session(&g);
        for (i, x_i) in [(0, 1.0), (1, 2.0), (1, 3.0), (0, 4.0)] {
            session.run(&[index.feed(i), x.feed(x_i)], &put).unwrap();
        }
        let sizes = (chosen.size(), a.size(), b.size());
        let (own, a_size, b_size) = session.run(&[index.feed(1)], sizes).unwrap();
        assert_eq!([own, a_size, b_size].map(|n| n.scalar::<i32>().unwrap()), [2, 2, 2]);
        for (i, x_i) in [(1, 4.0), (0, 2.0), (0, 8.0), (1, 6.0)] {
            let got = session.run(&[index.feed(i)], &get).unwrap();
            assert_eq!(got.scalar::<f32>().unwrap(), x_i, "{}", device.name);
        }
        // Closing one leaves the other.
        session.run(&[index.feed(1)], chosen.close()).unwrap();
        assert_eq!(kind(session.run(&[index.feed(1)], &get)), ErrorKind::OutOfRange);
        assert_eq!(kind(session.run(&[index.feed(1), x.feed(0.0)], &put)), ErrorKind::Cancelled);
        session.run(&[index.feed(0), x.feed(0.0)], &put).unwrap();
        let closed = session.run(&[], (a.is_closed(), b.is_closed())).unwrap();
        assert_eq!(
            (closed.0.scalar::<bool>().unwrap(), closed.1.scalar::<bool>().unwrap()),
            (false, true)
        );
    }
}

/// `testSelectQueueOutOfRange`, on either side; nothing has changed.
#[test]
fn select_queue_out_of_range() {
    let g = Graph::new();
    let (a, fill) = filled(&g, "a", 3);
    let b = g.fifo_queue("b", 15, [(I32, dims![])]);
    let index = g.placeholder("index", I64, dims![]);
    let chosen = g.select_queue(&index, &[&a, &b]);
    let (get, put) = (chosen.dequeue().remove(0), chosen.enqueue(&[&g.constant(1)]));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], &fill).unwrap();
    let before = session.state_digest().unwrap();
    for i in [2i64, -1, i64::MAX] {
        let error = session.run(&[index.feed(i)], &get).unwrap_err();
        assert_eq!(
            (error.kind(), error.node()),
            (ErrorKind::InvalidArgument, Some("selected_dequeue"))
        );
        assert!(error.message().contains(&format!("index {i} is not in [0, 2)")), "{error}");
        assert_eq!(kind(session.run(&[index.feed(i)], &put)), ErrorKind::InvalidArgument);
    }
    assert_eq!(session.state_digest().unwrap(), before);
}

/// A computed number of a chosen queue, and who waits at it.
#[test]
fn a_chosen_queue_is_waited_for() {
    let g = Graph::new();
    let (a, b) = (g.fifo_queue("a", 3, [(I32, dims![])]), g.fifo_queue("b", 3, [(I32, dims![])]));
    let (i, n) = (g.placeholder("i", I32, dims![]), g.placeholder("n", I32, dims![]));
    let chosen = g.select_queue(&(g.constant(1) - &i), &[&a, &b]);
    let batch = chosen.dequeue_many(&n).remove(0);
    let x = g.placeholder("x", I32, dims![]);
    let (put_a, put_b) = (a.enqueue(&[&x]), b.enqueue(&[&x]));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    thread::scope(|s| {
        let taker = s.spawn(|| session.run(&[i.feed(0), n.feed(2)], &batch).unwrap());
        while session.waiting().is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(session.waiting()[0].operations[0].of, "b");
        session.run(&[x.feed(7)], &put_a).unwrap();
        session.run(&[x.feed(8)], &put_b).unwrap();
        thread::sleep(A_WHILE);
        assert!(!taker.is_finished());
        session.run(&[x.feed(9)], &put_b).unwrap();
        assert_eq!(ints(&taker.join().unwrap()), [8, 9]);
    });
    assert_eq!(ints(&session.run(&[i.feed(1), n.feed(1)], &batch).unwrap()), [7]);
}

/// A failed run gives back what it took of the queue that it chose.
#[test]
fn a_failed_run_gives_back_to_the_chosen_queue() {
    let g = Graph::new();
    let ((a, fill_a), (b, fill_b)) = (filled(&g, "a", 4), filled(&g, "b", 4));
    let (index, n) = (g.placeholder("index", I32, dims![]), g.placeholder("n", I32, dims![]));
    let batch = g.select_queue(&index, &[&a, &b]).dequeue_many(&n).remove(0);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], (&fill_a, &fill_b)).unwrap();
    let broken = Arc::new(AtomicBool::new(true));
    let fails = fails_while(&batch.cast(F32), &broken);
    for i in 0..2 {
        let before = session.state_digest().unwrap();
        assert!(session.run(&[index.feed(i), n.feed(3)], &fails).is_err());
        assert_eq!(session.state_digest().unwrap(), before);
        assert_eq!(ints(&session.run(&[index.feed(i), n.feed(3)], &batch).unwrap()), [0, 1, 2]);
    }
}

/// What queues must have in common, and what a chosen one is not for.
#[test]
fn queues_to_choose_from_are_alike() {
    let g = Graph::new();
    let index = g.placeholder("index", I32, dims![]);
    let a = g.fifo_queue("a", 3, [(F32, dims![2, 3])]);
    let b = g.queue(
        "b",
        [(F32, dims![2, 4])],
        QueueOptions { kind: QueueKind::PaddingFifo, ..Default::default() },
    );
    let strings = g.fifo_queue("strings", 3, [(Strings, dims![])]);
    let chosen = g.select_queue(&index, &[&a, &b]);
    assert_eq!(chosen.dequeue()[0].dims(), dims![2, None]);
    assert!(g.check().is_empty());
    let foreign = Graph::new();
    let foreign = foreign.fifo_queue("a", 3, [(F32, dims![])]);
    chosen.dequeue_many(2usize);
    g.select_queue(&index, &[&a, &strings]).dequeue();
    g.select_queue(&index, &[]).dequeue();
    g.select_queue(&index, &[&foreign]).size();
    g.select_queue(&index, &[&chosen]).size();
    g.select_queue(&g.constant(0.5f32), &[&a]).size();
    let reader = g.whole_file_reader("reader");
    reader.read(&g.select_queue(&index, &[&strings]));
    let messages: Vec<String> = g.check().iter().map(|e| e.message().to_owned()).collect();
    let expected = [
        "need components of specified shapes",
        "expected queues of the same dtypes, and 'strings'",
        "expected queues of this graph to choose from",
        "expected queues of this graph to choose from",
        "expected queues of this graph to choose from",
        "expected a scalar of i32 or i64",
        "unsupported for names",
    ];
    assert_eq!(messages.len(), expected.len(), "{messages:?}");
    for (message, expected) in messages.iter().zip(expected) {
        assert!(message.contains(expected), "{message}");
    }
    // Sizes that the chosen queue does not take.
    let x = g.placeholder("x", F32, dims![2, None]);
    let put = chosen.enqueue(&[&x]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let three = HostTensor::zeros(F32, convoke::Shape::new(&[2, 3]).unwrap()).unwrap();
    session.run(&[index.feed(0), x.feed(&three)], &put).unwrap();
    let error = session.run(&[index.feed(1), x.feed(&three)], &put).unwrap_err();
    assert!(error.message().contains("of queue 'b': expected [2, 4], got [2, 3]"), "{error}");
}

/// `Amount` is a number or a tensor.
#[test]
fn amounts() {
    let g = Graph::new();
    let n = g.constant(2);
    assert!(matches!(Amount::from(2usize), Amount::Fixed(2)));
    assert!(matches!(Amount::from(&n), Amount::Computed(_)));
    assert_eq!(Amount::value(&HostTensor::from(5i64)).unwrap(), 5);
    assert_eq!(kind(Amount::value(&HostTensor::from(-5i64))), ErrorKind::InvalidArgument);
    assert!(Amount::value(&HostTensor::new(&[2], vec![1, 2]).unwrap()).is_err());
}
