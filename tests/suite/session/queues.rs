//! Queues. TensorFlow: `fifo_queue_test.py`, `random_shuffle_queue_test.py`, `padding_fifo_queue_test.py` and
//! `priority_queue_test.py`, by meaning.

use std::thread;
use std::time::{Duration, Instant};

use convoke::prelude::*;
use convoke::{CancelToken, Dims, Queue, QueueKind, QueueOptions, RunHandle, RunOptions};
use convoke_tests::{A_WHILE, devices, fails_while, kind, slow};

/// A queue of scalars of f32, with what puts one and what takes one.
struct Scalars {
    g: Graph,
    q: Queue,
    x: Tensor,
    put: Operation,
    get: Tensor,
}

impl Scalars {
    fn new(options: QueueOptions) -> Self {
        let g = Graph::new();
        let q = g.queue("q", [(F32, dims![])], options);
        let x = g.placeholder("x", F32, dims![]);
        let put = q.enqueue(&[&x]);
        let get = q.dequeue().remove(0);
        Self { g, q, x, put, get }
    }

    fn fifo(capacity: usize) -> Self {
        Self::new(QueueOptions { capacity: Some(capacity), ..QueueOptions::default() })
    }

    fn session(&self) -> Session {
        Session::new(&self.g, &Devices::cpu()).unwrap()
    }

    fn put(&self, session: &Session, x: f32) -> convoke::Result<()> {
        session.run(&[self.x.feed(x)], &self.put)
    }

    fn get(&self, session: &Session) -> convoke::Result<f32> {
        session.run(&[], &self.get)?.scalar::<f32>()
    }

    fn size(&self, session: &Session) -> i32 {
        session.run(&[], self.q.size()).unwrap().scalar::<i32>().unwrap()
    }

    fn submit<F: Fetch>(&self, session: &Session, fetch: F) -> RunHandle<F> {
        session.submit(&[], fetch, RunOptions::default())
    }
}

fn floats(tensor: &HostTensor) -> Vec<f32> {
    tensor.to_vec::<f32>().unwrap()
}

/// Submits a run that has to wait, and gives it once it does.
fn blocked<F: Fetch>(session: &Session, feeds: &[Feed<'_>], fetch: F) -> RunHandle<F> {
    let last = || session.waiting().last().map(|waiting| waiting.run);
    let before = last();
    let run = session.submit(feeds, fetch, RunOptions::default());
    while last() <= before {
        assert!(!run.is_done());
        thread::sleep(Duration::from_millis(1));
    }
    run
}

/// `testEnqueue`, `testDequeue`, `testQueueSizeAfterEnqueueAndDequeue`.
#[test]
fn elements_come_out_as_they_went_in() {
    let s = Scalars::fifo(10);
    let session = s.session();
    assert_eq!(s.size(&session), 0);
    for x in [10.0, 20.0, 30.0] {
        s.put(&session, x).unwrap();
    }
    assert_eq!(s.size(&session), 3);
    for x in [10.0, 20.0, 30.0] {
        assert_eq!(s.get(&session).unwrap(), x);
    }
    assert_eq!(s.size(&session), 0);
}

/// `testMultipleQueues`, `testMultiEnqueueAndDequeue` and state of their own in two sessions.
#[test]
fn elements_have_components_and_sessions_queues_of_their_own() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 10, [(I32, dims![2]), (F32, dims![])]);
    let (a, b) = (g.placeholder("a", I32, dims![2]), g.placeholder("b", F32, dims![]));
    let put = q.enqueue(&[&a, &b]);
    let get = q.dequeue();
    let (one, other) = (Session::new(&g, &Devices::cpu()), Session::new(&g, &Devices::cpu()));
    let (one, other) = (one.unwrap(), other.unwrap());
    for i in 0..3i32 {
        one.run(&[a.feed([i, -i]), b.feed(i as f32)], &put).unwrap();
    }
    assert_eq!(other.run(&[], q.size()).unwrap().scalar::<i32>().unwrap(), 0);
    for i in 0..3i32 {
        let got = one.run(&[], &get).unwrap();
        assert_eq!(got[0].to_vec::<i32>().unwrap(), [i, -i]);
        assert_eq!(got[1].scalar::<f32>().unwrap(), i as f32);
    }
}

/// What a run takes it computes with, on each device; two fetches of one take are of one element.
#[test]
fn a_run_computes_with_what_it_takes() {
    for device in devices() {
        let g = Graph::new();
        let q = g.fifo_queue("q", 10, [(F32, dims![3])]);
        let w = g.variable("w", Init::Constant(2.0), F32, [3]);
        let x = g.placeholder("x", F32, dims![3]);
        let put = q.enqueue(&[&(&x * 10.0)]);
        let taken = q.dequeue().remove(0);
        let y = &taken * w.value() + 1.0;
        let step = w.assign_add(taken.sum(())).operation();
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        for i in 0..2 {
            session.run(&[x.feed([i as f32, 0.0, 1.0])], &put).unwrap();
        }
        let (t, y1, ()) = session.run(&[], (&taken, &y, &step)).unwrap();
        assert_eq!((floats(&t), floats(&y1)), (vec![0.0, 0.0, 10.0], vec![1.0, 1.0, 21.0]));
        // w is 12 now.
        let y2 = session.run(&[], &y).unwrap();
        assert_eq!(floats(&y2), [121.0, 1.0, 121.0], "{}", device.name);
    }
}

/// `testEnqueueMany`, `testDequeueMany`, `testDequeueManyWithTensorParameter`, `testEmptyDequeueMany`.
#[test]
fn many_at_once() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 10, [(F32, dims![2]), (I32, dims![])]);
    let (a, b) = (g.placeholder("a", F32, dims![None, 2]), g.placeholder("b", I32, dims![None]));
    let put = q.enqueue_many(&[&a, &b]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let run = |rows: usize| {
        let xs: Vec<f32> = (0..rows * 2).map(|i| i as f32).collect();
        let ns: Vec<i32> = (0..rows as i32).collect();
        session.run(&[a.feed((&xs[..], [rows, 2])), b.feed(&ns)], &put)
    };
    run(3).unwrap();
    run(0).unwrap();
    run(2).unwrap();
    let got = session.run(&[], q.dequeue_many(4)).unwrap();
    assert_eq!(got[0].dims(), [4, 2]);
    assert_eq!(floats(&got[0]), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 1.0]);
    assert_eq!(got[1].to_vec::<i32>().unwrap(), [0, 1, 2, 0]);
    let none = session.run(&[], q.dequeue_many(0)).unwrap();
    assert_eq!((none[0].dims(), none[1].dims()), (&[0, 2][..], &[0][..]));
    // Rows that do not fit together are refused before anything is put.
    let feeds = [a.feed((&[0.0f32; 4][..], [2, 2])), b.feed([1i32, 2, 3])];
    assert_eq!(kind(session.run(&feeds, &put)), ErrorKind::InvalidArgument);
    assert_eq!(session.run(&[], q.size()).unwrap().scalar::<i32>().unwrap(), 1);
}

/// `testEnqueueAndBlockingDequeue`: a taker waits for an element; the thread that waits is its own.
#[test]
fn enqueue_and_blocking_dequeue() {
    let s = Scalars::fifo(3);
    let session = s.session();
    thread::scope(|scope| {
        let waits = scope.spawn(|| s.get(&session).unwrap());
        thread::sleep(A_WHILE);
        assert!(!waits.is_finished());
        s.put(&session, 7.0).unwrap();
        assert_eq!(waits.join().unwrap(), 7.0);
    });
}

/// `testBlockingEnqueueToFullQueue`, and `testBlockingEnqueueManyToFullQueue` but that the others are let in.
#[test]
fn blocking_enqueue_to_full_queue() {
    let s = Scalars::fifo(2);
    let session = s.session();
    s.put(&session, 1.0).unwrap();
    s.put(&session, 2.0).unwrap();
    let third = session.submit(&[s.x.feed(3.0)], &s.put, RunOptions::default());
    let third = third.wait_for(A_WHILE).expect_err("there is no room");
    assert_eq!(s.size(&session), 2);
    assert_eq!(s.get(&session).unwrap(), 1.0);
    third.wait().unwrap();
    assert_eq!(s.get(&session).unwrap(), 2.0);
    assert_eq!(s.get(&session).unwrap(), 3.0);
}

/// More runs wait than there are threads for submitted runs: those that wait hold none.
#[test]
fn submitted_runs_that_wait_hold_no_thread() {
    let s = Scalars::fifo(100);
    let options = SessionOptions { runners: 1, ..SessionOptions::default() };
    let session = Session::with_options(&s.g, &Devices::cpu(), options).unwrap();
    let takers: Vec<_> = (0..40).map(|_| s.submit(&session, &s.get)).collect();
    thread::sleep(A_WHILE);
    assert!(takers.iter().all(|taker| !taker.is_done()));
    // The only thread makes these.
    let puts: Vec<_> = (0..40)
        .map(|i| session.submit(&[s.x.feed(i as f32)], &s.put, RunOptions::default()))
        .collect();
    puts.into_iter().for_each(|put| put.wait().unwrap());
    // They are served in the order in which they came.
    for (i, taker) in takers.into_iter().enumerate() {
        assert_eq!(taker.wait().unwrap().scalar::<f32>().unwrap(), i as f32);
    }
}

/// `testParallelEnqueue`: every element is there once.
#[test]
fn parallel_enqueue() {
    let s = Scalars::fifo(200);
    let session = s.session();
    thread::scope(|scope| {
        for t in 0..10 {
            let (s, session) = (&s, &session);
            scope.spawn(move || (0..20).for_each(|i| s.put(session, (t * 20 + i) as f32).unwrap()));
        }
    });
    let mut got: Vec<f32> = (0..200).map(|_| s.get(&session).unwrap()).collect();
    got.sort_by(f32::total_cmp);
    assert_eq!(got, (0..200).map(|i| i as f32).collect::<Vec<_>>());
}

/// `testParallelDequeue`: every element comes out once.
#[test]
fn parallel_dequeue() {
    let s = Scalars::fifo(200);
    let session = s.session();
    (0..200).for_each(|i| s.put(&session, i as f32).unwrap());
    let mut got: Vec<f32> = thread::scope(|scope| {
        let takers: Vec<_> = (0..10)
            .map(|_| scope.spawn(|| (0..20).map(|_| s.get(&session).unwrap()).collect::<Vec<_>>()))
            .collect();
        takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
    });
    got.sort_by(f32::total_cmp);
    assert_eq!(got, (0..200).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(s.size(&session), 0);
}

/// `testParallelEnqueueAndDequeue`, of a queue with less room than there are threads: every element once.
#[test]
fn parallel_enqueue_and_dequeue() {
    let s = Scalars::fifo(5);
    let session = s.session();
    let mut got: Vec<f32> = thread::scope(|scope| {
        let takers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..50).map(|_| s.get(&session).unwrap()).collect::<Vec<_>>()))
            .collect();
        for t in 0..4 {
            let (s, session) = (&s, &session);
            scope.spawn(move || (0..50).for_each(|i| s.put(session, (t * 50 + i) as f32).unwrap()));
        }
        takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
    });
    got.sort_by(f32::total_cmp);
    assert_eq!(got, (0..200).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(s.size(&session), 0);
}

/// `testDequeueManyWaits`, and of more than there is room for.
#[test]
fn a_batch_waits_for_all_its_elements() {
    let s = Scalars::fifo(3);
    let session = s.session();
    let batch = s.submit(&session, s.q.dequeue_many(5));
    for i in 0..4 {
        s.put(&session, i as f32).unwrap();
    }
    let batch = batch.wait_for(A_WHILE).expect_err("one is missing");
    s.put(&session, 4.0).unwrap();
    assert_eq!(floats(&batch.wait().unwrap()[0]), [0.0, 1.0, 2.0, 3.0, 4.0]);
    // Who waited for room before has it now.
    (0..3).for_each(|i| s.put(&session, i as f32).unwrap());
    let puts: Vec<_> = (3..5)
        .map(|i| session.submit(&[s.x.feed(i as f32)], &s.put, RunOptions::default()))
        .collect();
    thread::sleep(A_WHILE);
    let mut batch = floats(&session.run(&[], s.q.dequeue_many(5)).unwrap()[0]);
    // There is no order in which runs end that are under way at once.
    batch.sort_by(f32::total_cmp);
    assert_eq!(batch, [0.0, 1.0, 2.0, 3.0, 4.0]);
    puts.into_iter().for_each(|put| put.wait().unwrap());
}

/// `testClosedBlockingDequeue...`, `testDequeueFromClosedQueue`, `testEnqueueToClosedQueue`,
/// `testCloseTwice`, `testIsClosed`.
#[test]
fn enqueue_to_closed_queue() {
    let s = Scalars::fifo(10);
    let session = s.session();
    let is_closed = || session.run(&[], s.q.is_closed()).unwrap().scalar::<bool>().unwrap();
    s.put(&session, 1.0).unwrap();
    s.put(&session, 2.0).unwrap();
    assert!(!is_closed());
    session.run(&[], s.q.close()).unwrap();
    assert!(is_closed());
    let error = s.put(&session, 3.0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.to_string().contains("FIFO queue 'q' is closed"), "{error}");
    assert_eq!(s.get(&session).unwrap(), 1.0);
    // Too few for a batch: they stay, and come one by one.
    let error = session.run(&[], s.q.dequeue_many(2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    assert!(error.to_string().contains("requested 2, current size 1"), "{error}");
    assert_eq!(s.get(&session).unwrap(), 2.0);
    assert_eq!(kind(s.get(&session)), ErrorKind::OutOfRange);
    let error = session.run(&[], s.q.close()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.to_string().contains("already closed"), "{error}");
}

/// `testBlockingDequeueFromClosedEmptyQueue`, `testBlockingDequeueManyFromClosedQueue`.
#[test]
fn blocking_dequeue_from_closed_empty_queue() {
    let s = Scalars::fifo(10);
    let session = s.session();
    let one = s.submit(&session, &s.get);
    let many = s.submit(&session, s.q.dequeue_many(2));
    thread::sleep(A_WHILE);
    session.run(&[], s.q.close()).unwrap();
    assert_eq!(kind(one.wait()), ErrorKind::OutOfRange);
    assert_eq!(kind(many.wait()), ErrorKind::OutOfRange);
}

/// `testBlockingEnqueueBeforeClose`: who waited for room before gets it, and `is_closed` is said at once.
#[test]
fn blocking_enqueue_before_close() {
    let s = Scalars::fifo(1);
    let session = s.session();
    s.put(&session, 1.0).unwrap();
    let waits = session.submit(&[s.x.feed(2.0)], &s.put, RunOptions::default());
    let waits = waits.wait_for(A_WHILE).expect_err("there is no room");
    session.run(&[], s.q.close()).unwrap();
    assert_eq!(kind(s.put(&session, 3.0)), ErrorKind::Cancelled);
    assert_eq!(s.get(&session).unwrap(), 1.0);
    waits.wait().unwrap();
    assert_eq!(s.get(&session).unwrap(), 2.0);
    assert_eq!(kind(s.get(&session)), ErrorKind::OutOfRange);
}

/// `close(cancel_pending_enqueues=True)`, also of a queue that is closed, but not twice.
#[test]
fn closing_may_cancel_who_waited_before() {
    for is_closed in [false, true] {
        let s = Scalars::fifo(1);
        let session = s.session();
        s.put(&session, 1.0).unwrap();
        let waits = blocked(&session, &[s.x.feed(2.0)], &s.put);
        if is_closed {
            session.run(&[], s.q.close()).unwrap();
        }
        session.run(&[], s.q.close_and_cancel()).unwrap();
        assert_eq!(kind(waits.wait()), ErrorKind::Cancelled);
        assert_eq!(s.get(&session).unwrap(), 1.0);
        assert_eq!(kind(s.get(&session)), ErrorKind::OutOfRange);
        for close in [s.q.close(), s.q.close_and_cancel()] {
            let error = session.run(&[], close).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled);
            assert!(error.to_string().contains("already closed"), "{error}");
        }
    }
}

/// Who waited for something else when a queue was closed puts nothing into it, and takes nothing for that.
#[test]
fn closing_lets_in_nobody_who_waited_elsewhere() {
    let g = Graph::new();
    let queue = |name| g.fifo_queue(name, 9, [(F32, dims![])]);
    let (q_in, q_out) = (queue("in"), queue("out"));
    let x = g.placeholder("x", F32, dims![]);
    let (put, over) = (q_in.enqueue(&[&x]), q_out.enqueue(&[&q_in.dequeue()[0]]));
    let taken = q_out.dequeue().remove(0);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let waits = blocked(&session, &[], &over);
    session.run(&[], q_out.close()).unwrap();
    assert_eq!(kind(session.run(&[], &taken)), ErrorKind::OutOfRange);
    session.run(&[x.feed(1.0)], &put).unwrap();
    let error = waits.wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.to_string().contains("FIFO queue 'out' is closed"), "{error}");
    let left = session.run(&[], q_in.size()).unwrap().scalar::<i32>().unwrap();
    assert_eq!((left, kind(session.run(&[], &taken))), (1, ErrorKind::OutOfRange));
}

/// Who waited for room in a queue when it was closed may have to wait for something else once there is room. The queue
/// is not at its end before all of them have put, in their order, or have given up.
#[test]
fn a_closed_queue_is_at_its_end_after_all_who_waited_for_room() {
    for gives_up in [false, true] {
        let g = Graph::new();
        let queue = |name| g.fifo_queue(name, 1, [(F32, dims![])]);
        let (q, other) = (queue("q"), queue("other"));
        let x = g.placeholder("x", F32, dims![]);
        let (put, put_other) = (q.enqueue(&[&x]), other.enqueue(&[&x]));
        let (take, take_other) = (q.dequeue().remove(0), other.dequeue().remove(0));
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        let get = || session.run(&[], &take).map(|taken| taken.scalar::<f32>().unwrap());
        session.run(&[x.feed(1.0)], (&put, &put_other)).unwrap();
        let both = blocked(&session, &[x.feed(2.0)], (&put, &put_other));
        let others = [3.0, 4.0].map(|y| blocked(&session, &[x.feed(y)], &put));
        session.run(&[], q.close()).unwrap();
        assert_eq!([get(), get(), get()].map(Result::unwrap), [1.0, 3.0, 4.0]);
        others.into_iter().for_each(|other| other.wait().unwrap());
        let end = blocked(&session, &[], &take);
        if gives_up {
            drop(both);
            assert_eq!(kind(end.wait()), ErrorKind::OutOfRange);
        } else {
            session.run(&[], &take_other).unwrap();
            both.wait().unwrap();
            assert_eq!(end.wait().unwrap().scalar::<f32>().unwrap(), 2.0);
        }
        assert_eq!(kind(get()), ErrorKind::OutOfRange);
    }
}

/// `testDequeueUpTo...`.
#[test]
fn up_to_so_many_gives_the_rest_of_a_closed_queue() {
    let s = Scalars::fifo(10);
    let session = s.session();
    let up_to = s.q.dequeue_up_to(3).remove(0);
    for i in 0..5 {
        s.put(&session, i as f32).unwrap();
    }
    assert_eq!(floats(&session.run(&[], &up_to).unwrap()), [0.0, 1.0, 2.0]);
    let waits = s.submit(&session, &up_to).wait_for(A_WHILE).expect_err("it is not closed");
    session.run(&[], s.q.close()).unwrap();
    assert_eq!(floats(&waits.wait().unwrap()), [3.0, 4.0]);
    assert_eq!(kind(session.run(&[], &up_to)), ErrorKind::OutOfRange);
}

/// `testBlockedDequeue...` with a timeout, a cancelled token and a closed session; the others go on.
#[test]
fn who_waits_can_be_cancelled_in_each_way() {
    let s = Scalars::fifo(1);
    let session = s.session();
    let begun = Instant::now();
    let timeout = RunOptions { timeout: Some(A_WHILE), ..RunOptions::default() };
    let here = session.run_with(&[], &s.get, timeout.clone()).map(|_| ());
    assert_eq!(kind(here), ErrorKind::DeadlineExceeded);
    assert_eq!(kind(session.submit(&[], &s.get, timeout).wait()), ErrorKind::DeadlineExceeded);
    assert!(begun.elapsed() >= 2 * A_WHILE);
    let token = CancelToken::new();
    let cancel = RunOptions { cancel: Some(token.clone()), ..RunOptions::default() };
    let submitted = session.submit(&[], &s.get, cancel.clone());
    thread::scope(|scope| {
        let here = scope.spawn(|| session.run_with(&[], &s.get, cancel).map(|_| ()));
        thread::sleep(A_WHILE);
        token.cancel();
        assert_eq!(kind(here.join().unwrap()), ErrorKind::Cancelled);
    });
    assert_eq!(kind(submitted.wait()), ErrorKind::Cancelled);
    // Nobody waits any more: an element is for who comes now.
    s.put(&session, 5.0).unwrap();
    assert_eq!(s.get(&session).unwrap(), 5.0);
    let submitted = s.submit(&session, &s.get);
    drop(s.submit(&session, &s.get));
    thread::scope(|scope| {
        let here = scope.spawn(|| s.get(&session));
        thread::sleep(A_WHILE);
        session.close();
        // A thread that the system starts late finds the session closed.
        let ended = kind(here.join().unwrap());
        assert!(matches!(ended, ErrorKind::Cancelled | ErrorKind::FailedPrecondition), "{ended:?}");
    });
    assert_eq!(kind(submitted.wait()), ErrorKind::Cancelled);
}

/// Not as TensorFlow does: there a step that fails has lost what it took.
#[test]
fn a_failed_run_gives_back_what_it_took() {
    let g = Graph::new();
    let kinds = [QueueKind::Fifo, QueueKind::RandomShuffle { min_after_dequeue: 1, seed: 3 }];
    let queues = kinds.map(|kind| {
        let options = QueueOptions { kind, capacity: Some(8), shared_name: None };
        g.queue("q", [(F32, dims![1])], options)
    });
    let x = g.placeholder("x", F32, dims![1]);
    let fails = std::sync::Arc::default();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for q in &queues {
        let put = q.enqueue(&[&x]);
        for i in 0..6 {
            session.run(&[x.feed([i as f32])], &put).unwrap();
        }
    }
    let take = |n: usize| queues.iter().map(|q| q.dequeue_many(n).remove(0)).collect::<Vec<_>>();
    let (two, three) = (take(2), take(3));
    let sum = fails_while(&two[0].reshape(&[-1]), &fails).sum(()) + two[1].sum(());
    let again = queues[0].enqueue(&[&(sum.reshape(&[1]))]);
    let before = session.state_digest().unwrap();
    fails.store(true, std::sync::atomic::Ordering::Relaxed);
    for _ in 0..3 {
        assert_eq!(kind(session.run(&[], &again)), ErrorKind::Aborted);
        assert_eq!(session.state_digest().unwrap(), before);
    }
    // An element of the wrong sizes is found before anything is stored, too.
    let wide = g.placeholder("wide", F32, Dims::UnknownRank);
    let bad = queues[0].enqueue(&[&wide]);
    let error = session.run(&[wide.feed([1.0f32, 2.0])], &bad).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("shape mismatch in component 0"), "{error}");
    assert_eq!(session.state_digest().unwrap(), before);
    fails.store(false, std::sync::atomic::Ordering::Relaxed);
    session.run(&[], &again).unwrap();
    assert_ne!(session.state_digest().unwrap(), before);
    let left = session.run(&[], &three).unwrap();
    assert_eq!(floats(&left[0]), [2.0, 3.0, 4.0]);
}

/// `testSharedQueueSameSession`, `testIncompatibleSharedQueueErrors`.
#[test]
fn shared_queue_same_session() {
    let g = Graph::new();
    let shared = |capacity: usize| QueueOptions {
        capacity: Some(capacity),
        shared_name: Some("both".into()),
        ..QueueOptions::default()
    };
    let first = g.queue("first", [(F32, dims![])], shared(4));
    let second = g.queue("second", [(F32, dims![])], shared(4));
    let other = g.queue("other", [(F32, dims![])], shared(5));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], first.enqueue(&[&g.constant(3.0f32)])).unwrap();
    assert_eq!(session.run(&[], second.dequeue()).unwrap()[0].scalar::<f32>().unwrap(), 3.0);
    let error = session.run(&[], other.size()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("both"), "{error}");
}

/// `RandomShuffleQueue`: at least `min_after_dequeue` are left until it is closed; a seed gives its order.
#[test]
fn a_shuffling_queue_mixes_and_keeps_back() {
    let order = |seed: u64| -> Vec<f32> {
        let kind = QueueKind::RandomShuffle { min_after_dequeue: 5, seed };
        let s = Scalars::new(QueueOptions { kind, capacity: Some(100), shared_name: None });
        let session = s.session();
        (0..40).for_each(|i| s.put(&session, i as f32).unwrap());
        let mut got: Vec<f32> = (0..35).map(|_| s.get(&session).unwrap()).collect();
        let waits = s.submit(&session, &s.get).wait_for(A_WHILE).expect_err("five stay");
        session.run(&[], s.q.close()).unwrap();
        got.push(waits.wait().unwrap().scalar::<f32>().unwrap());
        got.extend((0..4).map(|_| s.get(&session).unwrap()));
        assert_eq!(kind_of_next(&s, &session), ErrorKind::OutOfRange);
        got
    };
    fn kind_of_next(s: &Scalars, session: &Session) -> ErrorKind {
        kind(s.get(session))
    }
    let (first, again, other) = (order(1), order(1), order(2));
    assert_eq!(first, again);
    assert_ne!(first, other);
    let mut sorted = first.clone();
    sorted.sort_by(f32::total_cmp);
    assert_eq!(sorted, (0..40).map(|i| i as f32).collect::<Vec<_>>());
    assert_ne!(first, sorted);
}

/// `PaddingFIFOQueue`: the largest of a batch decides, per batch.
#[test]
fn a_padding_queue_fills_up_with_zeros() {
    let g = Graph::new();
    let options =
        QueueOptions { kind: QueueKind::PaddingFifo, capacity: Some(9), shared_name: None };
    let dims = || dims![None, 2];
    let q = g.queue("q", [(F32, dims()), (DType::String, dims![None])], options);
    let x = g.placeholder("x", F32, dims![None, 2]);
    let names = g.placeholder("names", DType::String, dims![None]);
    let put = q.enqueue(&[&x, &names]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for rows in [1usize, 3, 2] {
        let xs: Vec<f32> = (0..rows * 2).map(|i| 1.0 + i as f32).collect();
        let words = HostTensor::strings(&[rows - 1], vec!["w"; rows - 1]).unwrap();
        session.run(&[x.feed((&xs[..], [rows, 2])), names.feed(words)], &put).unwrap();
    }
    let got = session.run(&[], q.dequeue_many(2)).unwrap();
    assert_eq!(got[0].dims(), [2, 3, 2]);
    let expected = [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    assert_eq!(floats(&got[0]), expected);
    assert_eq!(got[1].dims(), [2, 2]);
    assert_eq!(got[1].as_strings().unwrap(), [&b""[..], b"", b"w", b"w"]);
    let last = session.run(&[], q.dequeue()).unwrap();
    assert_eq!(last[0].dims(), [2, 2]);
}

/// `PriorityQueue`: the least first, equal ones as they came.
#[test]
fn a_priority_queue_gives_the_least_first() {
    let g = Graph::new();
    let options = QueueOptions { kind: QueueKind::Priority, capacity: None, shared_name: None };
    let q = g.queue("q", [(I64, dims![]), (F32, dims![])], options);
    let (p, x) = (g.placeholder("p", I64, dims![]), g.placeholder("x", F32, dims![]));
    let put = q.enqueue(&[&p, &x]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for (i, priority) in [5i64, -1, 3, 3, i64::MAX, i64::MIN].into_iter().enumerate() {
        session.run(&[p.feed(priority), x.feed(i as f32)], &put).unwrap();
    }
    let got = session.run(&[], q.dequeue_many(6)).unwrap();
    assert_eq!(got[0].to_vec::<i64>().unwrap(), [i64::MIN, -1, 3, 3, 5, i64::MAX]);
    assert_eq!(floats(&got[1]), [5.0, 1.0, 2.0, 3.0, 0.0, 4.0]);
}

/// `testConstructors...` and wrong tuples: recorded, with the line, and said by a run.
#[test]
fn wrong_queues_and_elements_are_refused() {
    let g = Graph::new();
    let refused = |what: &str, message: &str| {
        let errors = g.check();
        let text = errors.last().map(ToString::to_string).unwrap_or_default();
        assert!(text.contains(message) && text.contains("queues.rs"), "{what}: {text}");
    };
    let q = g.fifo_queue("q", 4, [(F32, dims![2]), (I32, dims![])]);
    let (x, n) = (g.placeholder("x", F32, dims![2]), g.placeholder("n", I32, dims![]));
    q.enqueue(&[&x]);
    refused("arity", "expected 2 inputs, got 1");
    q.enqueue(&[&n, &x]);
    refused("dtypes", "dtypes differ: f32 and i32; cast one of them");
    q.enqueue(&[&x, &g.placeholder("m", I32, dims![3])]);
    refused("sizes", "shape mismatch in component 1");
    q.enqueue_many(&[&g.placeholder("xs", F32, dims![5, 2]), &g.placeholder("ns", I32, dims![4])]);
    refused("rows", "rows");
    let unknown = g.fifo_queue("unknown", 4, [(F32, dims![None])]);
    unknown.dequeue_many(2);
    refused("batches", "specified shapes");
    g.fifo_queue("none", 0, [(F32, dims![])]);
    refused("capacity", "capacity 0");
    g.fifo_queue("empty", 1, Vec::<(DType, Dims)>::new());
    refused("components", "at least one component");
    let kind = QueueKind::RandomShuffle { min_after_dequeue: 5, seed: 0 };
    g.queue("mixed", [(F32, dims![])], QueueOptions { kind, capacity: Some(5), shared_name: None });
    refused("keeps back", "keeps back 5");
    let kind = QueueKind::Priority;
    g.queue("first", [(F32, dims![])], QueueOptions { kind, capacity: None, shared_name: None });
    refused("priority", "scalar of i64");
}

/// A run of what was refused fails, as one that is fed different numbers of rows, and changes nothing.
#[test]
fn runs_of_wrong_elements_change_nothing() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 4, [(F32, dims![2]), (I32, dims![])]);
    let (x, n) = (g.placeholder("x", F32, dims![2]), g.placeholder("n", I32, dims![]));
    let xs = g.placeholder("xs", F32, dims![None, 2]);
    let ns = g.placeholder("ns", I32, dims![None]);
    let put = q.enqueue(&[&x, &n]);
    let wrong = [
        ("expected 2 inputs, got 1", q.enqueue(&[&x])),
        ("expected 2 inputs, got 3", q.enqueue(&[&x, &n, &n])),
        ("dtypes differ: f32 and i32; cast one of them", q.enqueue(&[&n, &n])),
        ("dtypes differ: i32 and f32; cast one of them", q.enqueue_many(&[&xs, &xs])),
        ("component 1 has 3 rows, and those before have 2", q.enqueue_many(&[&xs, &ns])),
    ];
    let v = g.variable("v", Init::Constant(0.0), F32, []);
    let step = v.assign_add(1.0).operation();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let row = [1.0f32, 2.0];
    let feeds = [x.feed(row), n.feed(7i32), xs.feed([row, row]), ns.feed([1i32, 2, 3])];
    session.run(&feeds, &put).unwrap();
    let before = session.state_digest().unwrap();
    for (message, put) in &wrong {
        let error = session.run(&feeds, (put, &step)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains(message), "{error}");
        assert_eq!(session.state_digest().unwrap(), before, "{message}");
    }
    session.run(&feeds, (&put, &step)).unwrap();
    assert_eq!(session.run(&[], q.size()).unwrap().scalar::<i32>().unwrap(), 2);
}

/// A value that is taken can be fed instead: then nothing is taken. Callables take too.
#[test]
fn feeding_and_calling() {
    let s = Scalars::fifo(4);
    let session = s.session();
    let y = &s.get * 2.0;
    let fed = session.run(&[s.get.feed(4.0)], &y).unwrap();
    assert_eq!(fed.scalar::<f32>().unwrap(), 8.0);
    let put = session.callable(&[&s.x], &s.put).unwrap();
    let get = session.callable(&[], &y).unwrap();
    for i in 0..3 {
        put.call([i as f32]).unwrap();
    }
    let mut memory = [0u8; 4];
    let shape = convoke::Shape::scalar();
    let view = convoke::TensorViewMut::new(F32, &shape, &mut memory).unwrap();
    get.call_into((), &mut [view]).unwrap();
    assert_eq!(f32::from_ne_bytes(memory), 0.0);
    assert_eq!(get.call(()).unwrap().scalar::<f32>().unwrap(), 2.0);
    // Running the operation for its effect alone takes one as well.
    session.run(&[], s.get.operation()).unwrap();
    assert_eq!(s.size(&session), 0);
}

/// A run that takes and puts stands in line only where something is lacking, so that others can go on.
#[test]
fn a_run_that_takes_and_puts_lets_others_by() {
    for capacity in [None, Some(1)] {
        let s = Scalars::new(QueueOptions { capacity, ..QueueOptions::default() });
        let session = s.session();
        let next = s.q.enqueue(&[&(&s.get + 1.0)]);
        // It waits for an element, and puts none before: who puts goes first.
        let first = s.submit(&session, &next);
        thread::sleep(A_WHILE);
        s.put(&session, 1.0).unwrap();
        first.wait().unwrap();
        // The room for what it puts is that of what it takes.
        session.run(&[], &next).unwrap();
        assert_eq!((s.size(&session), s.get(&session).unwrap()), (1, 3.0));
        // Nobody else could put an element when the queue is closed, and neither could it.
        let last = s.submit(&session, &next).wait_for(A_WHILE).expect_err("there is none");
        session.run(&[], s.q.close()).unwrap();
        assert_eq!(kind(last.wait()), ErrorKind::OutOfRange);
    }
}

#[test]
fn a_run_waits_for_nothing_that_others_could_have() {
    let g = Graph::new();
    let (a, b) = (g.fifo_queue("a", 9, [(F32, dims![])]), g.fifo_queue("b", 9, [(F32, dims![])]));
    let x = g.placeholder("x", F32, dims![]);
    let (put_a, put_b) = (a.enqueue(&[&x]), b.enqueue(&[&x]));
    let both = (a.dequeue(), b.dequeue());
    let over = b.enqueue(&[&a.dequeue()[0]]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for i in 0..2 {
        session.run(&[x.feed(i as f32)], &put_a).unwrap();
    }
    let waits = session.submit(&[], &both, RunOptions::default());
    let waits = waits.wait_for(A_WHILE).expect_err("b is empty");
    session.run(&[], &over).unwrap();
    let (from_a, from_b) = waits.wait().unwrap();
    assert_eq!((floats(&from_a[0]), floats(&from_b[0])), (vec![1.0], vec![0.0]));
    session.run(&[x.feed(1.0)], &put_b).unwrap();
}

/// More of one queue in a run than there is room for, in parts.
#[test]
fn several_elements_of_one_queue_in_a_run() {
    let s = Scalars::fifo(1);
    let session = s.session();
    let (first, second) = (s.q.dequeue().remove(0), s.q.dequeue().remove(0));
    let again = s.q.enqueue(&[&(&s.x * 2.0)]);
    session.run(&[s.x.feed(1.0)], (&s.put, &again)).unwrap();
    assert_eq!(s.size(&session), 2);
    let sum = &first + &second * 10.0 + s.q.size().cast(F32) * 100.0;
    assert_eq!(session.run(&[], &sum).unwrap().scalar::<f32>().unwrap(), 221.0);
    let both = s.submit(&session, (&first, &second));
    thread::sleep(A_WHILE);
    s.put(&session, 5.0).unwrap();
    // It looks at the first one, and still waits for room for two.
    thread::sleep(A_WHILE);
    s.put(&session, 6.0).unwrap();
    let (first, second) = both.wait().unwrap();
    assert_eq!((floats(&first), floats(&second)), (vec![5.0], vec![6.0]));
}

/// What comes meanwhile does not change the order in which elements that were given back leave.
#[test]
fn what_is_given_back_has_its_place() {
    let fails = std::sync::Arc::default();
    for queue_kind in [QueueKind::Fifo, QueueKind::Priority] {
        let g = Graph::new();
        let options = QueueOptions { kind: queue_kind, ..QueueOptions::default() };
        let q = g.queue("q", [(I64, dims![])], options);
        let x = g.placeholder("x", I64, dims![]);
        let put = q.enqueue(&[&x]);
        let taken = q.dequeue().remove(0).cast(F32).reshape(&[1]);
        let bad = fails_while(&slow(&taken, 4 * A_WHILE), &fails);
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        let run = |i: i64| session.run(&[x.feed(i)], &put).unwrap();
        run(5);
        run(6);
        fails.store(true, std::sync::atomic::Ordering::Relaxed);
        // The second begins a little later and fails a little later.
        let first = session.submit(&[], &bad, RunOptions::default());
        thread::sleep(A_WHILE);
        let second = session.submit(&[], &bad, RunOptions::default());
        thread::sleep(A_WHILE);
        run(1);
        assert_eq!(
            (kind(first.wait()), kind(second.wait())),
            (ErrorKind::Aborted, ErrorKind::Aborted)
        );
        let left = session.run(&[], q.dequeue_many(3)).unwrap().remove(0).to_vec::<i64>().unwrap();
        let expected = if queue_kind == QueueKind::Fifo { [5, 6, 1] } else { [1, 5, 6] };
        assert_eq!(left, expected);
    }
}

#[test]
fn a_run_that_fails_early_leaves_no_trace() {
    let s = Scalars::fifo(4);
    let session = s.session();
    let digest = || session.state_digest().unwrap();
    let empty = digest();
    let timeout = RunOptions { timeout: Some(Duration::from_millis(1)), ..RunOptions::default() };
    assert_eq!(kind(session.run_with(&[], &s.get, timeout)), ErrorKind::DeadlineExceeded);
    assert_eq!(digest(), empty);
    // Memory for another tensor is refused before anything is taken.
    s.put(&session, 1.0).unwrap();
    let one = digest();
    let get = session.callable(&[], &s.get).unwrap();
    let (mut memory, shape) = ([0u8; 4], convoke::Shape::scalar());
    let wrong = convoke::TensorViewMut::new(I32, &shape, &mut memory).unwrap();
    assert_eq!(kind(get.call_into((), &mut [wrong])), ErrorKind::InvalidArgument);
    assert_eq!(kind(get.call_into((), &mut [])), ErrorKind::InvalidArgument);
    assert_eq!(digest(), one);
}

/// Rows for which there is no memory fail the run before it stores anything: none is lost. They take none themselves,
/// but the queue's places do.
#[test]
fn rows_without_memory_fail_the_run() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 4, [(F32, dims![0])]);
    let rows = g.placeholder("rows", F32, dims![None, 0]);
    let put = q.enqueue_many(&[&rows]);
    let v = g.variable("v", Init::Constant(0.0), F32, []);
    let step = v.assign_add(1.0).operation();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let empty = |n: usize| HostTensor::zeros(F32, convoke::Shape::new(&[n, 0]).unwrap()).unwrap();
    let before = session.state_digest().unwrap();
    let error = session.run(&[rows.feed(empty(1 << 46))], (&put, &step)).unwrap_err();
    assert_eq!(
        (error.kind(), error.node()),
        (ErrorKind::ResourceExhausted, Some("q_enqueue_many"))
    );
    assert_eq!(session.state_digest().unwrap(), before);
    session.run(&[rows.feed(empty(3))], (&put, &step)).unwrap();
    assert_eq!(session.run(&[], q.size()).unwrap().scalar::<i32>().unwrap(), 3);
}
