//! The least first. TensorFlow: `kernel_tests/priority_queue_test.py`, by meaning.

use std::thread;

use convoke::prelude::*;
use convoke::{Queue, QueueKind, QueueOptions, RunOptions};
use convoke_tests::A_WHILE;

struct ByPriority {
    g: Graph,
    q: Queue,
    p: Tensor,
    x: Tensor,
    put: Operation,
    put_many: Operation,
}

impl ByPriority {
    fn new(capacity: Option<usize>) -> Self {
        let g = Graph::new();
        let options = QueueOptions { kind: QueueKind::Priority, capacity, shared_name: None };
        let q = g.queue("q", [(I64, dims![]), (F32, dims![])], options);
        let (p, x) = (g.placeholder("p", I64, dims![None]), g.placeholder("x", F32, dims![None]));
        let put = q.enqueue(&[&p.reshape(&[]), &x.reshape(&[])]);
        let put_many = q.enqueue_many(&[&p, &x]);
        Self { g, q, p, x, put, put_many }
    }

    fn put(&self, session: &Session, priority: i64, x: f32) {
        session.run(&[self.p.feed([priority]), self.x.feed([x])], &self.put).unwrap();
    }
}

/// `testRoundTripInsertOnceReadOnceSorts`.
#[test]
fn round_trip_insert_once_read_once_sorts() {
    let s = ByPriority::new(None);
    let session = Session::new(&s.g, &Devices::cpu()).unwrap();
    let priorities: Vec<i64> = (0..1000).map(|i| i * 7919 % 100 - 50).collect();
    let xs: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    session.run(&[s.p.feed(&priorities), s.x.feed(&xs)], &s.put_many).unwrap();
    let got = session.run(&[], s.q.dequeue_many(1000)).unwrap();
    let mut expected: Vec<(i64, f32)> = priorities.into_iter().zip(xs).collect();
    // Equal ones as they came; in TensorFlow in no order.
    expected.sort_by_key(|(priority, _)| *priority);
    let (priorities, xs): (Vec<i64>, Vec<f32>) = expected.into_iter().unzip();
    assert_eq!(got[0].to_vec::<i64>().unwrap(), priorities);
    assert_eq!(got[1].to_vec::<f32>().unwrap(), xs);
}

/// `testRoundTripFillsCapacityMultiThreadedEnqueueAndDequeue`: every element once.
#[test]
fn round_trip_fills_capacity_multi_threaded_enqueue_and_dequeue() {
    let s = ByPriority::new(Some(10));
    let session = Session::new(&s.g, &Devices::cpu()).unwrap();
    let taken = s.q.dequeue();
    let mut got: Vec<f32> = thread::scope(|scope| {
        for t in 0..5 {
            let (s, session) = (&s, &session);
            scope.spawn(move || {
                (0..40).for_each(|i| s.put(session, i % 7, (t * 40 + i) as f32));
            });
        }
        let takers: Vec<_> = (0..5)
            .map(|_| {
                scope.spawn(|| {
                    let take = || session.run(&[], &taken).unwrap()[1].scalar::<f32>().unwrap();
                    (0..40).map(|_| take()).collect::<Vec<_>>()
                })
            })
            .collect();
        takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
    });
    got.sort_by(f32::total_cmp);
    assert_eq!(got, (0..200).map(|i| i as f32).collect::<Vec<_>>());
}

/// `testRoundTripInsertManyMultiThreadedReadManyMultithreadedSorts`: what is put while a batch waits is in its order.
#[test]
fn round_trip_insert_many_multi_threaded_read_many_multithreaded_sorts() {
    let s = ByPriority::new(None);
    let session = Session::new(&s.g, &Devices::cpu()).unwrap();
    let batch = session.submit(&[], s.q.dequeue_many(3), RunOptions::default());
    let batch = batch.wait_for(A_WHILE).expect_err("there is nothing");
    for (priority, x) in [(9, 0.0), (-3, 1.0), (4, 2.0)] {
        s.put(&session, priority, x);
    }
    let batch = batch.wait().unwrap();
    assert_eq!(batch[0].to_vec::<i64>().unwrap(), [-3, 4, 9]);
    assert_eq!(batch[1].to_vec::<f32>().unwrap(), [1.0, 2.0, 0.0]);
}

/// `testInsertingNonInt64Fails`, `testInsertingNonScalarFails`.
#[test]
fn inserting_non_int64_or_non_scalar_fails() {
    let s = ByPriority::new(None);
    let x = s.g.constant(1.0f32);
    s.q.enqueue(&[&s.g.constant(1i32), &x]);
    s.q.enqueue(&[&x, &x]);
    s.q.enqueue(&[&s.g.constant([1i64, 2]), &x]);
    let messages: Vec<String> = s.g.check().iter().map(|e| e.message().to_owned()).collect();
    assert_eq!(messages.len(), 3, "{messages:?}");
    assert!(messages[0].contains("i64 and i32") && messages[1].contains("i64 and f32"));
    assert!(messages[2].contains("component 0") && messages[2].contains("[2]"), "{messages:?}");
}
