//! Elements of different sizes. TensorFlow: `kernel_tests/padding_fifo_queue_test.py`, by meaning.

use convoke::prelude::*;
use convoke::{Dims, Queue, QueueKind, QueueOptions, RunOptions};
use convoke_tests::A_WHILE;

fn queue(g: &Graph, components: Vec<(DType, Dims)>) -> Queue {
    let options =
        QueueOptions { kind: QueueKind::PaddingFifo, capacity: Some(10), shared_name: None };
    g.queue("q", components, options)
}

fn put(session: &Session, q: &Queue, x: &Tensor, xs: &[f32]) {
    session.run(&[x.feed(xs)], q.enqueue(&[x])).unwrap();
}

/// `testEnqueueWrongShapeAtRuntime`: a size that is left open takes any, one that is said does not.
#[test]
fn enqueue_wrong_shape_at_runtime() {
    let g = Graph::new();
    let q = queue(&g, vec![(F32, dims![2, 2]), (F32, dims![None, 3])]);
    let (a, b) = (g.constant([[1.0f32; 2]; 2]), g.placeholder("b", F32, Dims::UnknownRank));
    let put = q.enqueue(&[&a, &b]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[b.feed([[1.0f32; 3]; 4])], &put).unwrap();
    let before = session.state_digest().unwrap();
    let error = session.run(&[b.feed([[1.0f32; 4]; 3])], &put).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("shape mismatch in component 1"), "{error}");
    assert_eq!(kind(&session, [b.feed([1.0f32; 3])], &put), ErrorKind::InvalidArgument);
    assert_eq!(session.state_digest().unwrap(), before);
}

fn kind(session: &Session, feeds: [Feed<'_>; 1], fetch: &Operation) -> ErrorKind {
    session.run(&feeds, fetch).unwrap_err().kind()
}

/// `testMultiDequeueManyWithPartiallyKnownShapesAndVariableSizeInput`: filled up with zeros to the largest of the batch.
#[test]
fn multi_dequeue_many_with_partially_known_shapes_and_variable_size_input() {
    let g = Graph::new();
    let q = queue(&g, vec![(F32, dims![None])]);
    let x = g.placeholder("x", F32, dims![None]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for n in [1usize, 3, 2, 0, 0] {
        put(&session, &q, &x, &vec![n as f32; n]);
    }
    let first = session.run(&[], q.dequeue_many(3)).unwrap().remove(0);
    assert_eq!(first.dims(), [3, 3]);
    assert_eq!(first.to_vec::<f32>().unwrap(), [1.0, 0.0, 0.0, 3.0, 3.0, 3.0, 2.0, 2.0, 0.0]);
    let none = session.run(&[], q.dequeue_up_to(2)).unwrap().remove(0);
    assert_eq!(none.dims(), [2, 0]);
}

/// `testDequeueUpToFromClosedQueueReturnsRemainder`: the rest has sizes of its own.
#[test]
fn dequeue_up_to_from_closed_queue_returns_remainder() {
    let g = Graph::new();
    let q = queue(&g, vec![(F32, dims![None])]);
    let x = g.placeholder("x", F32, dims![None]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for n in [4usize, 1, 2] {
        put(&session, &q, &x, &vec![1.0; n]);
    }
    session.run(&[], q.close()).unwrap();
    let two = q.dequeue_up_to(2);
    assert_eq!(session.run(&[], &two).unwrap()[0].dims(), [2, 4]);
    assert_eq!(session.run(&[], &two).unwrap()[0].dims(), [1, 2]);
    assert_eq!(session.run(&[], &two).unwrap_err().kind(), ErrorKind::OutOfRange);
}

/// `testBlockingDequeueMany`, `testClosedBlockingDequeueManyRestoresPartialBatch`.
#[test]
fn closed_blocking_dequeue_many_restores_partial_batch() {
    let g = Graph::new();
    let q = queue(&g, vec![(F32, dims![None])]);
    let x = g.placeholder("x", F32, dims![None]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    put(&session, &q, &x, &[1.0, 2.0]);
    put(&session, &q, &x, &[3.0]);
    let waits = session.submit(&[], q.dequeue_many(3), RunOptions::default());
    let waits = waits.wait_for(A_WHILE).expect_err("there are two");
    session.run(&[], q.close()).unwrap();
    assert_eq!(waits.wait().unwrap_err().kind(), ErrorKind::OutOfRange);
    // They are as they were put, not filled up.
    let taken = q.dequeue();
    assert_eq!(session.run(&[], &taken).unwrap()[0].to_vec::<f32>().unwrap(), [1.0, 2.0]);
    assert_eq!(session.run(&[], &taken).unwrap()[0].to_vec::<f32>().unwrap(), [3.0]);
}
