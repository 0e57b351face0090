//! First in, first out. TensorFlow: `kernel_tests/fifo_queue_test.py`, by meaning; `queues.rs` has the rest of it.

use std::collections::BTreeSet;
use std::thread;

use convoke::prelude::*;
use convoke::{Queue, QueueKind, QueueOptions, RunHandle, RunOptions, Shape};
use convoke_tests::{A_WHILE, cast, devices, fails_while, kind, ramp};

/// A queue of scalars, with what puts one and what puts many.
struct Fifo {
    g: Graph,
    q: Queue,
    x: Tensor,
    put: Operation,
    xs: Tensor,
    put_many: Operation,
}

impl Fifo {
    fn new(capacity: usize) -> Self {
        let g = Graph::new();
        let q = g.fifo_queue("q", capacity, [(F32, dims![])]);
        let x = g.placeholder("x", F32, dims![]);
        let xs = g.placeholder("xs", F32, dims![None]);
        let (put, put_many) = (q.enqueue(&[&x]), q.enqueue_many(&[&xs]));
        Self { g, q, x, put, xs, put_many }
    }

    fn session(&self) -> Session {
        Session::new(&self.g, &Devices::cpu()).unwrap()
    }

    fn put(&self, session: &Session, x: f32) {
        session.run(&[self.x.feed(x)], &self.put).unwrap();
    }

    fn put_many(&self, session: &Session, xs: &[f32]) -> convoke::Result<()> {
        session.run(&[self.xs.feed(xs)], &self.put_many)
    }

    fn size(&self, session: &Session) -> i32 {
        session.run(&[], self.q.size()).unwrap().scalar::<i32>().unwrap()
    }

    fn submit_put(&self, session: &Session, x: f32) -> RunHandle<&Operation> {
        session.submit(&[self.x.feed(x)], &self.put, RunOptions::default())
    }

    fn submit_many<'f>(&'f self, session: &Session, xs: &[f32]) -> RunHandle<&'f Operation> {
        session.submit(&[self.xs.feed(xs)], &self.put_many, RunOptions::default())
    }
}

/// Takes one again and again.
fn taker(s: &Fifo) -> impl Fn(&Session) -> convoke::Result<f32> {
    let taken = s.q.dequeue().remove(0);
    move |session| session.run(&[], &taken)?.scalar::<f32>()
}

fn submit<F: Fetch>(session: &Session, fetch: F) -> RunHandle<F> {
    session.submit(&[], fetch, RunOptions::default())
}

fn floats(tensors: &[HostTensor]) -> Vec<f32> {
    tensors[0].to_vec::<f32>().unwrap()
}

fn up_to(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

/// `testConstructor`, `testMultiQueueConstructor`, `testConstructorWithShapes`: what a queue says of itself.
#[test]
fn constructor() {
    let g = Graph::new();
    let one = g.fifo_queue("Q", 10, [(F32, dims![])]);
    let spec = one.spec();
    assert_eq!((&*spec.name, spec.kind, spec.capacity), ("Q", QueueKind::Fifo, Some(10)));
    assert_eq!(spec.components, [(F32, dims![])]);
    let two = g.scope("s", || g.fifo_queue("Q", 5, [(I32, dims![1, 1, 2]), (F32, dims![5, 8])]));
    assert_eq!(two.spec().name, "s/Q");
    let components: Vec<_> = two.spec().components.iter().map(|(t, d)| format!("{t}{d}")).collect();
    assert_eq!(components, ["i32[1, 1, 2]", "f32[5, 8]"]);
    let shared = QueueOptions { shared_name: Some("foo".into()), ..QueueOptions::default() };
    let three = g.queue("Q", [(F32, dims![])], shared);
    assert_eq!(three.spec().capacity, None);
    assert!(three.spec().name.contains("foo") && g.check().is_empty());
}

/// `testEnqueueHalf`, `testDtypes`: each dtype as a component of one element.
#[test]
fn dtypes() {
    for device in devices() {
        let g = Graph::new();
        let all: Vec<DType> = DType::NUMERIC.into_iter().chain([Strings]).collect();
        let q = g.fifo_queue("q", 5, all.iter().map(|&dtype| (dtype, dims![2])));
        let values: Vec<HostTensor> = DType::NUMERIC
            .into_iter()
            .map(|dtype| cast(&ramp(&[2]), dtype))
            .chain([HostTensor::strings(&[2], vec!["a", "b"]).unwrap()])
            .collect();
        let inputs: Vec<Tensor> = values.iter().map(|value| g.constant(value.clone())).collect();
        let put = q.enqueue(&inputs.iter().collect::<Vec<_>>());
        let session = device.session_with(&g, SessionOptions::default());
        session.run(&[], &put).unwrap();
        session.run(&[], &put).unwrap();
        assert_eq!(session.run(&[], q.dequeue()).unwrap(), values, "{}", device.name);
        let batch = session.run(&[], q.dequeue_many(1)).unwrap();
        for (batch, value) in batch.iter().zip(&values) {
            assert_eq!(batch.reshaped(Shape::new(&[2]).unwrap()).unwrap(), *value);
        }
    }
}

/// `testEnqueueWithShape`, `testEnqueueManyWithShape`.
#[test]
fn enqueue_with_shape() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 10, [(I32, dims![3, 2])]);
    let one = q.enqueue(&[&g.constant([[1i32, 2], [3, 4], [5, 6]])]);
    q.enqueue(&[&g.constant([[1i32, 2, 3], [4, 5, 6]])]);
    let errors = g.check();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].message().contains("expected [3, 2], got [2, 3]"), "{}", errors[0]);
    let many = g.constant(HostTensor::new(&[2, 3, 2], (0..12i32).collect::<Vec<_>>()).unwrap());
    let many = q.enqueue_many(&[&many]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], &one).unwrap();
    session.run(&[], &many).unwrap();
    assert_eq!(q.dequeue()[0].dims(), dims![3, 2]);
    assert_eq!(q.dequeue_many(2)[0].dims(), dims![2, 3, 2]);
    let got = session.run(&[], q.dequeue_many(3)).unwrap().remove(0).to_vec::<i32>().unwrap();
    assert_eq!(got, (1..7).chain(0..12).collect::<Vec<i32>>());
}

/// `testEnqueueWrongShapeAtRuntime`.
#[test]
fn enqueue_wrong_shape_at_runtime() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 10, [(I32, dims![2, 2]), (I32, dims![3, 3])]);
    let fits = g.constant([[1i32, 1], [2, 2]]);
    let x = g.placeholder("x", I32, convoke::Dims::UnknownRank);
    let put = q.enqueue(&[&fits, &x]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let before = session.state_digest().unwrap();
    let feed = [x.feed((&[1i32; 12][..], [3, 4]))];
    let error = session.run(&feed, &put).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("expected [3, 3], got [3, 4]"), "{error}");
    assert_eq!(session.state_digest().unwrap(), before);
}

/// `testEnqueueDequeueManyWrongShape`.
#[test]
fn enqueue_dequeue_many_wrong_shape() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 10, [(I32, dims![2, 2]), (I32, dims![3, 3])]);
    let fits = g.constant(HostTensor::new(&[2, 2, 2], vec![1i32; 8]).unwrap());
    let x = g.placeholder("x", I32, convoke::Dims::UnknownRank);
    let put = q.enqueue_many(&[&fits, &x]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let feed = [x.feed((&[1i32; 24][..], [2, 3, 4]))];
    let error = session.run(&feed, &put).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("shape mismatch in component 1"), "{error}");
    assert!(error.message().contains("[3, 3]") && error.message().contains("[3, 4]"), "{error}");
    assert_eq!(session.run(&[], q.size()).unwrap().scalar::<i32>().unwrap(), 0);
}

/// `testMultipleDequeues`: three in one run are three elements.
#[test]
fn multiple_dequeues() {
    for device in devices() {
        let s = Fifo::new(10);
        let taken = [(); 3].map(|()| s.q.dequeue().remove(0));
        let sum = &taken[0] * &taken[1] * &taken[2];
        let session = device.session(&s.g);
        s.put_many(&session, &[5.0, 6.0, 7.0]).unwrap();
        let (taken, product) = session.run(&[], (&taken, &sum)).unwrap();
        let mut taken = taken.map(|x| x.scalar::<f32>().unwrap());
        taken.sort_by(f32::total_cmp);
        assert_eq!(taken, [5.0, 6.0, 7.0], "{}", device.name);
        assert_eq!(product.scalar::<f32>().unwrap(), 210.0);
    }
}

/// `testQueuesDontShare`: two without a name of their own are two.
#[test]
fn queues_dont_share() {
    let g = Graph::new();
    let [one, other] = [(); 2].map(|()| g.fifo_queue("q", 1, [(F32, dims![])]));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], one.enqueue(&[&g.constant(10.0f32)])).unwrap();
    session.run(&[], other.enqueue(&[&g.constant(20.0f32)])).unwrap();
    assert_eq!(floats(&session.run(&[], other.dequeue()).unwrap()), [20.0]);
    assert_eq!(floats(&session.run(&[], one.dequeue()).unwrap()), [10.0]);
}

/// `testParallelDequeueMany`, `testParallelDequeueUpTo`: every element once.
#[test]
fn parallel_dequeue_many() {
    let s = Fifo::new(1000);
    let session = s.session();
    s.put_many(&session, &up_to(1000)).unwrap();
    for takes in [s.q.dequeue_many(100), s.q.dequeue_up_to(25)] {
        let mut got: Vec<f32> = thread::scope(|scope| {
            let threads: Vec<_> = (0..5)
                .map(|_| scope.spawn(|| floats(&session.run(&[], &takes).unwrap())))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        got.sort_by(f32::total_cmp);
        // Whoever comes first takes what comes first, all of a batch together.
        let first = got[0];
        assert_eq!(got, up_to(got.len()).iter().map(|x| x + first).collect::<Vec<_>>());
    }
    assert_eq!(s.size(&session), 1000 - 500 - 125);
}

/// `testBlockingDequeueMany`, `testBlockingDequeueUpTo`.
#[test]
fn blocking_dequeue_many() {
    let s = Fifo::new(10);
    let session = s.session();
    for takes in [s.q.dequeue_many(4), s.q.dequeue_up_to(4)] {
        let waits = submit(&session, takes).wait_for(A_WHILE).expect_err("there is nothing");
        s.put_many(&session, &[10.0, 20.0, 30.0, 40.0]).unwrap();
        assert_eq!(floats(&waits.wait().unwrap()), [10.0, 20.0, 30.0, 40.0]);
    }
}

/// `testDoesNotLoseValue`: looking takes nothing.
#[test]
fn does_not_lose_value() {
    let s = Fifo::new(10);
    let session = s.session();
    let size = s.q.size();
    s.put(&session, 10.0);
    for _ in 0..500 {
        assert_eq!(session.run(&[], &size).unwrap().scalar::<i32>().unwrap(), 1);
    }
    assert_eq!(taker(&s)(&session).unwrap(), 10.0);
}

/// `testEmptyEnqueueMany`: of no rows nothing comes in, and a full or closed queue is in nobody's way where it is known
/// before the run that there are none.
#[test]
fn empty_enqueue_many() {
    let s = Fifo::new(1);
    let (session, none) = (s.session(), Vec::<f32>::new());
    let fixed = s.q.enqueue_many(&[&s.g.constant(&none[..])]);
    let computed = s.q.enqueue_many(&[&(&s.xs * 2.0)]);
    let put = |put: &Operation| {
        let options = RunOptions { fail_if_blocked: true, ..RunOptions::default() };
        session.run_with(&[s.xs.feed(&none[..])], put, options).map(|_| ())
    };
    let all = [&s.put_many, &fixed, &computed];
    all.map(put).into_iter().for_each(|put| put.unwrap());
    assert_eq!(s.size(&session), 0);
    s.put(&session, 1.0);
    all[..2].iter().for_each(|&none| put(none).unwrap());
    assert_eq!(kind(put(&computed)), ErrorKind::FailedPrecondition);
    session.run(&[], s.q.close()).unwrap();
    all[..2].iter().for_each(|&none| put(none).unwrap());
    assert_eq!(kind(put(&computed)), ErrorKind::Cancelled);
    // Beside something that is put, and in a partial run.
    assert_eq!(
        kind(session.run(&[s.xs.feed(&none[..]), s.x.feed(1.0)], (&s.put_many, &s.put))),
        ErrorKind::Cancelled
    );
    let mut run = session.partial_run(&[&s.xs], &s.put_many).unwrap();
    run.run(&[s.xs.feed(&none[..])], &s.put_many).unwrap();
    assert_eq!(s.size(&session), 1);
    // Components are checked all the same.
    let g = Graph::new();
    let q = g.fifo_queue("q", 1, [(F32, dims![]), (F32, dims![2])]);
    let (a, b) = (g.placeholder("a", F32, dims![None]), g.placeholder("b", F32, dims![None, None]));
    let put = q.enqueue_many(&[&a, &b]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let run = |rows: usize, n: usize| {
        let b_is = vec![0.0f32; rows * n];
        session.run(&[a.feed(&none[..]), b.feed((&b_is[..], [rows, n]))], &put)
    };
    run(0, 2).unwrap();
    assert_eq!(kind(run(1, 2)), ErrorKind::InvalidArgument);
    assert_eq!(kind(run(0, 3)), ErrorKind::InvalidArgument);
}

/// `testEmptyDequeueMany`, `testEmptyDequeueUpTo`: none of an empty queue, at once, before and after.
#[test]
fn empty_dequeue_many() {
    let s = Fifo::new(10);
    let session = s.session();
    for none in [s.q.dequeue_many(0), s.q.dequeue_up_to(0)] {
        assert_eq!(session.run(&[], &none).unwrap()[0].dims(), [0]);
        s.put(&session, 10.0);
        assert_eq!(session.run(&[], &none).unwrap()[0].dims(), [0]);
        assert_eq!(taker(&s)(&session).unwrap(), 10.0);
    }
}

/// `testEmptyDequeueManyWithNoShape`, `testEmptyDequeueUpToWithNoShape`.
#[test]
fn empty_dequeue_many_with_no_shape() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 10, [(F32, convoke::Dims::UnknownRank)]);
    let put = q.enqueue(&[&g.constant([10.0f32, 20.0])]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], &put).unwrap();
    for takes in [q.dequeue_many(0), q.dequeue_up_to(0), q.dequeue_many(1)] {
        let error = session.run(&[], &takes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("specified shapes"), "{error}");
    }
    assert_eq!(floats(&session.run(&[], q.dequeue()).unwrap()), [10.0, 20.0]);
}

/// `testMultiEnqueueMany`, `testMultiDequeueMany`, `testMultiDequeueUpToNoBlocking`: several components.
#[test]
fn multi_dequeue_many() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 10, [(F32, dims![]), (I32, dims![2])]);
    let xs = up_to(10);
    let pairs: Vec<i32> = (0..20).collect();
    let (a, b) = (g.constant(xs.clone()), HostTensor::new(&[10, 2], pairs.clone()).unwrap());
    let put = q.enqueue_many(&[&a, &g.constant(b)]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], &put).unwrap();
    let mut at = 0;
    for takes in [q.dequeue_many(4), q.dequeue_up_to(4), q.dequeue()] {
        let got = session.run(&[], &takes).unwrap();
        let n = got[0].len();
        assert_eq!(floats(&got), xs[at..at + n]);
        assert_eq!(got[1].to_vec::<i32>().unwrap(), pairs[2 * at..2 * (at + n)]);
        at += n;
    }
    assert_eq!(at, 9);
}

/// `testHighDimension`.
#[test]
fn high_dimension() {
    for device in devices() {
        let g = Graph::new();
        let q = g.fifo_queue("q", 10, [(I32, dims![4, 4, 4, 4])]);
        let elements: Vec<i32> = (0..2560).collect();
        let all = HostTensor::new(&[10, 4, 4, 4, 4], elements).unwrap();
        let put = q.enqueue_many(&[&g.constant(all.clone())]);
        let session = device.session_with(&g, SessionOptions::default());
        session.run(&[], &put).unwrap();
        let got = session.run(&[], q.dequeue_many(10)).unwrap();
        assert_eq!(got, [all], "{}", device.name);
    }
}

/// `testMixtureOfEnqueueAndEnqueueMany`: one order for all, while others take.
#[test]
fn mixture_of_enqueue_and_enqueue_many() {
    let s = Fifo::new(10);
    let session = s.session();
    let take = taker(&s);
    thread::scope(|scope| {
        let taken = scope.spawn(|| (0..250).map(|_| take(&session).unwrap()).collect::<Vec<f32>>());
        let all = up_to(250);
        let mut at = 0;
        let mut n = 0;
        while at < 250 {
            n = n % 7 + 1;
            let more = &all[at..(at + n).min(250)];
            match more {
                [one] => s.put(&session, *one),
                many => s.put_many(&session, many).unwrap(),
            }
            at += more.len();
        }
        assert_eq!(taken.join().unwrap(), all);
    });
    assert_eq!(s.size(&session), 0);
}

/// `testMixtureOfDequeueAndDequeueMany`.
#[test]
fn mixture_of_dequeue_and_dequeue_many() {
    let s = Fifo::new(10);
    let session = s.session();
    let takes: Vec<Vec<Tensor>> = (1..6).map(|n| s.q.dequeue_many(n)).collect();
    let (all, take) = (up_to(250), taker(&s));
    thread::scope(|scope| {
        scope.spawn(|| all.chunks(5).for_each(|more| s.put_many(&session, more).unwrap()));
        let mut got = Vec::new();
        while got.len() < 250 {
            let n = (got.len() * 7 % 6).min(250 - got.len());
            match n {
                0 => got.push(take(&session).unwrap()),
                n => got.extend(floats(&session.run(&[], &takes[n - 1]).unwrap())),
            }
        }
        assert_eq!(got, all);
    });
}

/// `testDequeueFromClosedQueue`.
#[test]
fn dequeue_from_closed_queue() {
    let s = Fifo::new(10);
    let (session, take) = (s.session(), taker(&s));
    s.put_many(&session, &[10.0, 20.0, 30.0, 40.0]).unwrap();
    session.run(&[], s.q.close()).unwrap();
    for expected in [10.0, 20.0, 30.0, 40.0] {
        assert_eq!(take(&session).unwrap(), expected);
    }
    for _ in 0..2 {
        let error = take(&session).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
        let says = "is closed and has insufficient elements (requested 1, current size 0)";
        assert!(error.message().contains(says), "{error}");
    }
}

/// `testBlockingDequeueFromClosedQueue`, `testBlockingDequeueManyFromClosedQueue` and with `UpTo`: what is there is
/// given, and who waits for more is released.
#[test]
fn blocking_dequeue_from_closed_queue() {
    let s = Fifo::new(10);
    let session = s.session();
    for (more, rest) in [(s.q.dequeue_many(4), None), (s.q.dequeue_up_to(4), Some(vec![40.0]))] {
        let session = s.session();
        s.put_many(&session, &[10.0, 20.0, 30.0, 40.0]).unwrap();
        let first = floats(&session.run(&[], s.q.dequeue_many(3)).unwrap());
        assert_eq!(first, [10.0, 20.0, 30.0]);
        let waits = submit(&session, &more).wait_for(A_WHILE).expect_err("there is one");
        session.run(&[], s.q.close()).unwrap();
        match (waits.wait(), rest) {
            (Ok(got), Some(rest)) => assert_eq!(floats(&got), rest),
            (Err(error), None) => assert_eq!(error.kind(), ErrorKind::OutOfRange),
            (got, rest) => panic!("{got:?} for {rest:?}"),
        }
    }
    let waits = submit(&session, s.q.dequeue_up_to(4));
    let waits = waits.wait_for(A_WHILE).expect_err("there is nothing");
    session.run(&[], s.q.close()).unwrap();
    assert_eq!(kind(waits.wait()), ErrorKind::OutOfRange);
}

/// `testDequeueUpToFromClosedQueueReturnsRemainder`.
#[test]
fn dequeue_up_to_from_closed_queue_returns_remainder() {
    let s = Fifo::new(10);
    let session = s.session();
    let three = s.q.dequeue_up_to(3);
    s.put_many(&session, &[10.0, 20.0, 30.0, 40.0]).unwrap();
    session.run(&[], s.q.close()).unwrap();
    assert_eq!(floats(&session.run(&[], &three).unwrap()), [10.0, 20.0, 30.0]);
    let rest = session.run(&[], &three).unwrap();
    assert_eq!((rest[0].dims(), floats(&rest)), (&[1][..], vec![40.0]));
}

/// `testClosedBlockingDequeueManyRestoresPartialBatch`.
#[test]
fn closed_blocking_dequeue_many_restores_partial_batch() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 4, [(F32, dims![]), (F32, dims![])]);
    let (a, b) = (g.constant([1.0f32, 2.0, 3.0]), g.constant([10.0f32, 20.0, 30.0]));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], q.enqueue_many(&[&a, &b])).unwrap();
    let four = submit(&session, q.dequeue_many(4)).wait_for(A_WHILE).expect_err("there are three");
    session.run(&[], q.close()).unwrap();
    assert_eq!(kind(four.wait()), ErrorKind::OutOfRange);
    let taken = q.dequeue();
    for i in 1..4 {
        let got = session.run(&[], &taken).unwrap();
        assert_eq!(floats(&got), [i as f32]);
        assert_eq!(floats(&got[1..]), [10.0 * i as f32]);
    }
    assert_eq!(session.run(&[], q.size()).unwrap().scalar::<i32>().unwrap(), 0);
}

/// `testEnqueueManyLargerThanCapacityWithConcurrentDequeueMany`.
#[test]
fn enqueue_many_larger_than_capacity_with_concurrent_dequeue_many() {
    let s = Fifo::new(4);
    let session = s.session();
    let three = s.q.dequeue_many(3);
    let many = s.submit_many(&session, &[10.0, 20.0, 30.0, 40.0, 50.0]);
    assert_eq!(floats(&session.run(&[], &three).unwrap()), [10.0, 20.0, 30.0]);
    many.wait().unwrap();
    let waits = submit(&session, &three).wait_for(A_WHILE).expect_err("there are two");
    session.run(&[], s.q.close()).unwrap();
    assert_eq!(kind(waits.wait()), ErrorKind::OutOfRange);
    let two = session.run(&[], s.q.dequeue_many(2)).unwrap();
    assert_eq!(floats(&two), [40.0, 50.0]);
}

/// `testEnqueueToClosedQueue`, `testEnqueueManyToClosedQueue`.
#[test]
fn enqueue_many_to_closed_queue() {
    let s = Fifo::new(10);
    let session = s.session();
    s.put_many(&session, &[10.0, 20.0]).unwrap();
    session.run(&[], s.q.close()).unwrap();
    let error = s.put_many(&session, &[30.0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.message().contains("is closed"), "{error}");
    assert_eq!(kind(session.run(&[s.x.feed(1.0)], &s.put)), ErrorKind::Cancelled);
    assert_eq!(s.size(&session), 2);
}

/// `testBlockingEnqueueManyToFullQueue`. There, elements come in one by one as there is room; here the run waits for
/// room for one, and all come in.
#[test]
fn blocking_enqueue_many_to_full_queue() {
    let s = Fifo::new(4);
    let (session, take) = (s.session(), taker(&s));
    s.put_many(&session, &[10.0, 20.0, 30.0, 40.0]).unwrap();
    let waits = s.submit_many(&session, &[50.0, 60.0]);
    let waits = waits.wait_for(A_WHILE).expect_err("it is full");
    assert_eq!(s.size(&session), 4);
    assert_eq!(take(&session).unwrap(), 10.0);
    waits.wait().unwrap();
    assert_eq!(
        floats(&session.run(&[], s.q.dequeue_many(5)).unwrap()),
        [20.0, 30.0, 40.0, 50.0, 60.0]
    );
}

/// `testBlockingEnqueueManyBeforeClose`: who waited before is let in, all of it.
#[test]
fn blocking_enqueue_many_before_close() {
    let s = Fifo::new(4);
    let (session, take) = (s.session(), taker(&s));
    s.put_many(&session, &[10.0, 20.0, 30.0, 40.0]).unwrap();
    let waits = s.submit_many(&session, &[50.0, 60.0]).wait_for(A_WHILE).expect_err("it is full");
    session.run(&[], s.q.close()).unwrap();
    for expected in [10.0, 20.0, 30.0, 40.0, 50.0, 60.0] {
        assert_eq!(take(&session).unwrap(), expected);
    }
    waits.wait().unwrap();
    assert_eq!(kind(take(&session)), ErrorKind::OutOfRange);
}

/// `testIncompatibleSharedQueueErrors`: each thing in which queues of one shared name may differ.
#[test]
fn incompatible_shared_queue_errors() {
    let g = Graph::new();
    let make = |capacity, kind, components: Vec<(DType, convoke::Dims)>| {
        let options =
            QueueOptions { kind, capacity: Some(capacity), shared_name: Some("q".into()) };
        g.queue("q", components, options)
    };
    let fifo = QueueKind::Fifo;
    let first = make(10, fifo, vec![(F32, dims![2])]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], first.enqueue(&[&g.constant([1.0f32, 2.0])])).unwrap();
    let before = session.state_digest().unwrap();
    let others = [
        make(15, fifo, vec![(F32, dims![2])]),
        make(10, fifo, vec![(I32, dims![2])]),
        make(10, fifo, vec![(F32, dims![3])]),
        make(10, fifo, vec![(F32, dims![2]), (F32, dims![2])]),
        make(10, QueueKind::PaddingFifo, vec![(F32, dims![2])]),
        make(10, QueueKind::RandomShuffle { min_after_dequeue: 2, seed: 0 }, vec![(F32, dims![2])]),
    ];
    for other in others {
        let error = session.run(&[], other.size()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains("'shared: q'"), "{error}");
        assert_eq!(session.state_digest().unwrap(), before);
    }
    let same = make(10, fifo, vec![(F32, dims![2])]);
    assert_eq!(floats(&session.run(&[], same.dequeue()).unwrap()), [1.0, 2.0]);
}

/// `testResetOfBlockingOperation`: closing the session ends four kinds of waiting.
#[test]
fn reset_of_blocking_operation() {
    let g = Graph::new();
    let empty = g.fifo_queue("empty", 5, [(F32, dims![])]);
    let full = g.fifo_queue("full", 5, [(F32, dims![])]);
    let x = g.constant(6.0f32);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], full.enqueue_many(&[&g.constant([1.0f32; 5])])).unwrap();
    let takes = [empty.dequeue(), empty.dequeue_many(1), empty.dequeue_up_to(1)];
    let puts = [full.enqueue(&[&x]), full.enqueue_many(&[&g.constant([6.0f32])])];
    let takes = takes.map(|takes| submit(&session, takes));
    let puts = puts.map(|puts| submit(&session, puts));
    thread::sleep(A_WHILE);
    assert!(takes.iter().all(|run| !run.is_done()) && puts.iter().all(|run| !run.is_done()));
    session.close();
    assert!(takes.into_iter().all(|run| kind(run.wait()) == ErrorKind::Cancelled));
    assert!(puts.into_iter().all(|run| kind(run.wait()) == ErrorKind::Cancelled));
}

/// `testBigEnqueueMany`: more than there is room for comes in, and out in order.
#[test]
fn big_enqueue_many() {
    let s = Fifo::new(5);
    let (session, take) = (s.session(), taker(&s));
    s.put(&session, -1.0);
    s.put_many(&session, &up_to(10)).unwrap();
    let next = s.submit_put(&session, 10.0).wait_for(A_WHILE).expect_err("it is full");
    assert_eq!(take(&session).unwrap(), -1.0);
    for expected in up_to(11) {
        assert_eq!(take(&session).unwrap(), expected);
    }
    next.wait().unwrap();
}

/// `testBigDequeueMany`: a batch of more than there is room for makes room as elements come.
#[test]
fn big_dequeue_many() {
    let s = Fifo::new(2);
    let session = s.session();
    let four =
        submit(&session, s.q.dequeue_many(4)).wait_for(A_WHILE).expect_err("nothing is there");
    for x in up_to(4) {
        s.put(&session, x);
    }
    assert_eq!(floats(&four.wait().unwrap()), up_to(4));
    assert_eq!(s.size(&session), 0);
}

/// `testDequeueEnqueueFail`. There, the failure beside it cancels a pending dequeue; here the element is given back, and
/// the error is that of the cause.
#[test]
fn dequeue_enqueue_fail() {
    let s = Fifo::new(10);
    let (session, fails) = (s.session(), std::sync::Arc::default());
    let taken = s.q.dequeue().remove(0);
    let bad = fails_while(&s.xs, &fails);
    fails.store(true, std::sync::atomic::Ordering::Relaxed);
    s.put(&session, 10.0);
    for fetches in [vec![&taken, &bad], vec![&bad, &taken]] {
        let error = session.run(&[s.xs.feed([1.0f32])], fetches).unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::Aborted, Some("slow")), "{error}");
    }
    assert_eq!(taker(&s)(&session).unwrap(), 10.0);
}

/// `FIFOQueueWithTimeoutTest.testDequeueWithTimeout`, `testReusableAfterTimeout`.
#[test]
fn dequeue_with_timeout() {
    let s = Fifo::new(10);
    let options = SessionOptions { timeout: Some(A_WHILE), ..SessionOptions::default() };
    let session = Session::with_options(&s.g, &Devices::cpu(), options).unwrap();
    let take = taker(&s);
    assert_eq!(kind(take(&session)), ErrorKind::DeadlineExceeded);
    assert_eq!(kind(take(&session)), ErrorKind::DeadlineExceeded);
    s.put(&session, 37.0);
    assert_eq!(take(&session).unwrap(), 37.0);
}

/// `testParallelEnqueueAndDequeue`, with ten of each.
#[test]
fn parallel_enqueue_and_dequeue() {
    let s = Fifo::new(50);
    let (session, take) = (s.session(), taker(&s));
    s.put_many(&session, &[-1.0; 50]).unwrap();
    let got: Vec<f32> = thread::scope(|scope| {
        for t in 0..10 {
            let (s, session) = (&s, &session);
            scope.spawn(move || (0..100).for_each(|i| s.put(session, (t * 100 + i) as f32)));
        }
        let takers: Vec<_> = (0..10)
            .map(|_| scope.spawn(|| (0..100).map(|_| take(&session).unwrap()).collect::<Vec<_>>()))
            .collect();
        takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
    });
    let rest = floats(&session.run(&[], s.q.dequeue_many(50)).unwrap());
    assert_eq!(got.iter().chain(&rest).filter(|&&x| x == -1.0).count(), 50);
    let distinct: BTreeSet<u32> =
        got.iter().chain(&rest).filter(|&&x| x >= 0.0).map(|&x| x as u32).collect();
    assert_eq!((got.len() + rest.len(), distinct.len()), (1050, 1000));
    assert_eq!(s.size(&session), 0);
}
