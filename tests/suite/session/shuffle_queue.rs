//! At random. TensorFlow: `kernel_tests/random_shuffle_queue_test.py`, by meaning.

use convoke::prelude::*;
use convoke::{Queue, QueueKind, QueueOptions, RunOptions};
use convoke_tests::A_WHILE;

fn queue(g: &Graph, capacity: usize, min_after_dequeue: usize, seed: u64) -> Queue {
    let kind = QueueKind::RandomShuffle { min_after_dequeue, seed };
    let options = QueueOptions { kind, capacity: Some(capacity), shared_name: None };
    g.queue("q", [(F32, dims![])], options)
}

fn filled(g: &Graph, q: &Queue, n: usize) -> Session {
    let xs: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let put = q.enqueue_many(&[&g.constant(xs)]);
    let session = Session::new(g, &Devices::cpu()).unwrap();
    session.run(&[], put).unwrap();
    session
}

fn floats(tensors: &[HostTensor]) -> Vec<f32> {
    tensors[0].to_vec::<f32>().unwrap()
}

fn sorted(mut xs: Vec<f32>) -> Vec<f32> {
    xs.sort_by(f32::total_cmp);
    xs
}

/// `testEmpty`, `testEmptyDequeueMany`, `testEmptyDequeueUpTo`.
#[test]
fn empty() {
    let g = Graph::new();
    let q = queue(&g, 10, 5, 0);
    let session = filled(&g, &q, 0);
    assert_eq!(session.run(&[], q.size()).unwrap().scalar::<i32>().unwrap(), 0);
    for none in [q.dequeue_many(0), q.dequeue_up_to(0)] {
        assert_eq!(session.run(&[], none).unwrap()[0].dims(), [0]);
    }
}

/// `testDequeueUpToNoBlocking`, `testMultiDequeueMany`: batches are mixed too, and give each element once.
#[test]
fn multi_dequeue_many() {
    let g = Graph::new();
    let q = queue(&g, 100, 0, 7);
    let session = filled(&g, &q, 100);
    let (many, up_to) = (q.dequeue_many(30), q.dequeue_up_to(20));
    let mut all = floats(&session.run(&[], &many).unwrap());
    assert_ne!(all, sorted(all.clone()), "a batch is mixed");
    all.extend(floats(&session.run(&[], &up_to).unwrap()));
    all.extend(floats(&session.run(&[], q.dequeue_many(50)).unwrap()));
    assert_eq!(sorted(all), (0..100).map(|i| i as f32).collect::<Vec<_>>());
}

/// `testBlockingDequeueManyFromClosedQueueWithElementsRemaining`: as many as it keeps back stay, until it is closed.
#[test]
fn blocking_dequeue_many_from_closed_queue_with_elements_remaining() {
    let g = Graph::new();
    let q = queue(&g, 10, 4, 3);
    let session = filled(&g, &q, 8);
    let four = q.dequeue_many(4);
    let first = floats(&session.run(&[], &four).unwrap());
    let waits = session.submit(&[], &four, RunOptions::default());
    let waits = waits.wait_for(A_WHILE).expect_err("four stay");
    assert_eq!(session.run(&[], q.size()).unwrap().scalar::<i32>().unwrap(), 4);
    session.run(&[], q.close()).unwrap();
    let rest = floats(&waits.wait().unwrap());
    assert_eq!(sorted([first, rest].concat()), (0..8).map(|i| i as f32).collect::<Vec<_>>());
    let error = session.run(&[], q.dequeue()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    assert!(error.message().contains("requested 1, current size 0"), "{error}");
}

/// `testDequeueUpToFromClosedQueueReturnsRemainder`.
#[test]
fn dequeue_up_to_from_closed_queue_returns_remainder() {
    let g = Graph::new();
    let q = queue(&g, 10, 2, 3);
    let session = filled(&g, &q, 4);
    session.run(&[], q.close()).unwrap();
    let three = q.dequeue_up_to(3);
    let first = floats(&session.run(&[], &three).unwrap());
    let rest = floats(&session.run(&[], &three).unwrap());
    assert_eq!((first.len(), rest.len()), (3, 1));
    assert_eq!(sorted([first, rest].concat()), [0.0, 1.0, 2.0, 3.0]);
}

/// `testBlockingDequeueManyFromClosedQueue`: too few for a batch stay.
#[test]
fn blocking_dequeue_many_from_closed_queue() {
    let g = Graph::new();
    let q = queue(&g, 10, 0, 1);
    let session = filled(&g, &q, 3);
    let waits = session.submit(&[], q.dequeue_many(4), RunOptions::default());
    let waits = waits.wait_for(A_WHILE).expect_err("there are three");
    session.run(&[], q.close()).unwrap();
    assert_eq!(waits.wait().unwrap_err().kind(), ErrorKind::OutOfRange);
    let rest = floats(&session.run(&[], q.dequeue_many(3)).unwrap());
    assert_eq!(sorted(rest), [0.0, 1.0, 2.0]);
}

/// `testIncompatibleSharedQueueErrors`: also of other seeds and of another number that stays.
#[test]
fn incompatible_shared_queue_errors() {
    let g = Graph::new();
    let make = |min_after_dequeue, seed| {
        let kind = QueueKind::RandomShuffle { min_after_dequeue, seed };
        let options = QueueOptions { kind, capacity: Some(10), shared_name: Some("q".into()) };
        g.queue("q", [(F32, dims![])], options)
    };
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], make(5, 1).size()).unwrap();
    for (min_after_dequeue, seed) in [(6, 1), (5, 2)] {
        let error = session.run(&[], make(min_after_dequeue, seed).size()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    session.run(&[], make(5, 1).size()).unwrap();
}

/// `testDequeueManyInDifferentOrders`: a seed gives its order in every session, and another seed another.
#[test]
fn dequeue_many_in_different_orders() {
    let order = |seed: u64| {
        let g = Graph::new();
        let q = queue(&g, 50, 0, seed);
        let session = filled(&g, &q, 50);
        floats(&session.run(&[], q.dequeue_many(50)).unwrap())
    };
    assert_eq!(order(1), order(1));
    let orders = [0, 1, 2, u64::MAX].map(order);
    for (i, one) in orders.iter().enumerate() {
        assert_eq!(sorted(one.clone()).len(), 50);
        assert!(orders[..i].iter().all(|other| other != one));
    }
}
