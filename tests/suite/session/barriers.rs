//! Barriers. TensorFlow: `kernel_tests/barrier_ops_test.py`, by meaning.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use convoke::prelude::*;
use convoke::{Barrier, RunOptions, TakenElements};
use convoke_tests::{A_WHILE, devices, fails_while, kind};

/// A barrier of two scalars, with what inserts each.
struct Pairs {
    g: Graph,
    barrier: Barrier,
    keys: Tensor,
    values: Tensor,
    insert: [Operation; 2],
}

impl Pairs {
    fn new() -> Self {
        let g = Graph::new();
        let barrier = g.barrier("b", [(F32, dims![]), (F32, dims![])], None);
        let keys = g.placeholder("keys", Strings, dims![None]);
        let values = g.placeholder("values", F32, dims![None]);
        let insert = [0, 1].map(|i| barrier.insert_many(i, &keys, &values));
        Self { g, barrier, keys, values, insert }
    }

    fn session(&self) -> Session {
        Session::new(&self.g, &Devices::cpu()).unwrap()
    }

    fn insert(
        &self,
        session: &Session,
        component: usize,
        all: &[(&str, f32)],
    ) -> convoke::Result<()> {
        let keys = strings(&all.iter().map(|(key, _)| *key).collect::<Vec<_>>());
        let values: Vec<f32> = all.iter().map(|(_, value)| *value).collect();
        session.run(&[self.keys.feed(keys), self.values.feed(&values)], &self.insert[component])
    }

    fn sizes(&self, session: &Session) -> [i32; 2] {
        let sizes = (self.barrier.ready_size(), self.barrier.incomplete_size());
        let (ready, incomplete) = session.run(&[], sizes).unwrap();
        [ready, incomplete].map(|n| n.scalar().unwrap())
    }
}

fn strings(all: &[&str]) -> HostTensor {
    HostTensor::strings(&[all.len()], all.iter().copied()).unwrap()
}

/// Index, key and components of each element that is taken.
type Element = (i64, String, Vec<f32>);

fn take(session: &Session, taken: &TakenElements) -> convoke::Result<Vec<Element>> {
    let fetch = (&taken.indices, &taken.keys, taken.components.iter().collect::<Vec<_>>());
    session
        .run(&[], fetch)
        .map(|(indices, keys, components)| elements(&indices, &keys, &components))
}

fn elements(indices: &HostTensor, keys: &HostTensor, components: &[HostTensor]) -> Vec<Element> {
    let columns: Vec<Vec<f32>> = components.iter().map(|c| c.to_vec().unwrap()).collect();
    let keys = keys.as_strings().unwrap().iter();
    let keys = keys.map(|key| String::from_utf8(key.clone()).unwrap());
    let indices: Vec<i64> = indices.to_vec().unwrap();
    let rows = indices.into_iter().zip(keys).enumerate();
    rows.map(|(i, (index, key))| (index, key, columns.iter().map(|c| c[i]).collect())).collect()
}

/// `testInsertMany`, `testTakeMany`: in the order of first insertion, with indices from the least on.
#[test]
fn insert_and_take_many() {
    let p = Pairs::new();
    let session = p.session();
    assert_eq!(p.sizes(&session), [0, 0]);
    p.insert(&session, 0, &[("a", 10.0), ("b", 20.0), ("c", 30.0)]).unwrap();
    assert_eq!(p.sizes(&session), [0, 3]);
    p.insert(&session, 1, &[("c", 300.0), ("a", 100.0)]).unwrap();
    assert_eq!(p.sizes(&session), [2, 1]);
    p.insert(&session, 1, &[("b", 200.0)]).unwrap();
    let got = take(&session, &p.barrier.take_many(3)).unwrap();
    let min = i64::MIN;
    let expected = [
        (min, "a".to_owned(), vec![10.0, 100.0]),
        (min + 1, "b".to_owned(), vec![20.0, 200.0]),
        (min + 2, "c".to_owned(), vec![30.0, 300.0]),
    ];
    assert_eq!(got, expected);
    // A key that was taken is another element.
    p.insert(&session, 1, &[("a", 1.0)]).unwrap();
    p.insert(&session, 0, &[("a", 2.0)]).unwrap();
    assert_eq!(
        take(&session, &p.barrier.take_many(1)).unwrap(),
        [(min + 3, "a".to_owned(), vec![2.0, 1.0])]
    );
    assert_eq!(p.sizes(&session), [0, 0]);
}

/// `testUseBarrierWithShape`: on each device, what is inserted and taken is computed with.
#[test]
fn use_barrier_with_shape() {
    for device in devices() {
        let g = Graph::new();
        let barrier = g.barrier("b", [(F32, dims![2, 2]), (F32, dims![8])], None);
        let keys = g.constant(strings(&["a", "b", "c"]));
        let x = g.placeholder("x", F32, dims![3]);
        let square = x.reshape(&[3, 1, 1]).broadcast_to(&[3, 2, 2]) * 10.0;
        let row = x.reshape(&[3, 1]).broadcast_to(&[3, 8]) * 100.0;
        let first = barrier.insert_many(0, &keys, &square);
        let second = barrier.insert_many(1, &keys, &row);
        let n = g.placeholder("n", I32, dims![]);
        let taken = barrier.take_many(&n);
        let sums = [&taken.components[0].sum([1, 2]), &taken.components[1].sum(1)].map(|t| t + 1.0);
        let session = device.session(&g);
        session.run(&[x.feed([1.0f32, 2.0, 3.0])], (&first, &second)).unwrap();
        let got = session.run(&[n.feed(2)], (&sums[0], &sums[1], &taken.keys)).unwrap();
        assert_eq!(got.0.to_vec::<f32>().unwrap(), [41.0, 81.0], "{}", device.name);
        assert_eq!(got.1.to_vec::<f32>().unwrap(), [801.0, 1601.0], "{}", device.name);
        assert_eq!(got.2, strings(&["a", "b"]));
    }
}

/// A component twice for a key is refused, also in one run and of runs under way, and nothing changes.
#[test]
fn a_component_comes_once() {
    let p = Pairs::new();
    let session = p.session();
    p.insert(&session, 0, &[("a", 1.0)]).unwrap();
    let before = session.state_digest().unwrap();
    for twice in [&[("b", 1.0), ("a", 2.0)][..], &[("b", 1.0), ("b", 1.0)]] {
        let error = p.insert(&session, 0, twice).unwrap_err();
        assert_eq!(
            (error.kind(), error.node()),
            (ErrorKind::InvalidArgument, Some("b_insert_many"))
        );
        assert!(error.message().contains("already has a value for component 0"), "{error}");
    }
    // Another number of values than of keys.
    let wrong = [p.keys.feed(strings(&["x", "y"])), p.values.feed([1.0f32])];
    assert_eq!(kind(session.run(&wrong, &p.insert[0])), ErrorKind::InvalidArgument);
    // A run that fails has promised nothing.
    let broken = Arc::new(AtomicBool::new(true));
    let fails = fails_while(&p.values, &broken);
    let feeds = [p.keys.feed(strings(&["b"])), p.values.feed([1.0f32])];
    assert_eq!(kind(session.run(&feeds, (&p.insert[0], &fails))), ErrorKind::Aborted);
    let other = p.barrier.insert_many(0, &p.keys, &p.values);
    assert_eq!(kind(session.run(&feeds, (&p.insert[0], &other))), ErrorKind::InvalidArgument);
    assert_eq!(session.state_digest().unwrap(), before);
    p.insert(&session, 0, &[("b", 1.0)]).unwrap();
    // While a run that inserts it is under way, another is refused.
    let inside = {
        let (session, other, keys, values) =
            (session.clone(), other.clone(), p.keys.clone(), p.values.clone());
        move |_: &[HostTensor]| {
            let feeds = [keys.feed(strings(&["c"])), values.feed([5.0f32])];
            let refused = session.run(&feeds, &other).unwrap_err();
            Ok(vec![HostTensor::from(refused.kind() == ErrorKind::InvalidArgument)])
        }
    };
    let refused = p.g.host_function("inserts", &[&p.values], [(Bool, dims![])], inside).remove(0);
    let feeds = [p.keys.feed(strings(&["c"])), p.values.feed([1.0f32])];
    let (refused, ()) = session.run(&feeds, (&refused, &p.insert[0])).unwrap();
    assert!(refused.scalar::<bool>().unwrap());
    assert_eq!(p.sizes(&session), [0, 3]);
}

/// `testBlockingTakeMany`; a taking run that fails gives back.
#[test]
fn blocking_take_many() {
    let p = Pairs::new();
    let session = p.session();
    let taken = p.barrier.take_many(3);
    let fetch = || (&taken.indices, &taken.keys, taken.components.iter().collect::<Vec<_>>());
    let waits = session.submit(&[], fetch(), RunOptions::default());
    for (i, key) in ["a", "b", "c"].into_iter().enumerate() {
        p.insert(&session, 1, &[(key, 10.0 * i as f32)]).unwrap();
        thread::sleep(A_WHILE);
        assert!(!waits.is_done());
        p.insert(&session, 0, &[(key, i as f32)]).unwrap();
    }
    let (indices, keys, components) = waits.wait().unwrap();
    let values: Vec<Vec<f32>> =
        elements(&indices, &keys, &components).into_iter().map(|e| e.2).collect();
    assert_eq!(values, [[0.0, 0.0], [1.0, 10.0], [2.0, 20.0]]);
    p.insert(&session, 0, &[("d", 1.0), ("e", 2.0)]).unwrap();
    p.insert(&session, 1, &[("e", 3.0), ("d", 4.0)]).unwrap();
    let two = p.barrier.take_many(2);
    let broken = Arc::new(AtomicBool::new(true));
    let fails = fails_while(&two.components[0], &broken);
    let before = session.state_digest().unwrap();
    assert_eq!(kind(session.run(&[], &fails)), ErrorKind::Aborted);
    assert_eq!(session.state_digest().unwrap(), before);
    let keys: Vec<String> = take(&session, &two).unwrap().into_iter().map(|e| e.1).collect();
    assert_eq!(keys, ["d", "e"]);
}

/// `testParallelInsertManyTakeMany`: each element comes out once, whole.
#[test]
fn parallel_insert_and_take() {
    let p = Pairs::new();
    let session = p.session();
    let taken = p.barrier.take_many(5);
    let mut all = thread::scope(|s| {
        let (p, session, taken) = (&p, &session, &taken);
        let takers: Vec<_> =
            (0..4).map(|_| s.spawn(move || take(session, taken).unwrap())).collect();
        for component in 0..2 {
            for part in 0..4 {
                s.spawn(move || {
                    let keys: Vec<String> = (0..5).map(|i| format!("{}", part * 5 + i)).collect();
                    let value = |i: usize| (component * 100 + part * 5 + i) as f32;
                    let all: Vec<(&str, f32)> =
                        keys.iter().enumerate().map(|(i, key)| (&**key, value(i))).collect();
                    p.insert(session, component, &all).unwrap();
                });
            }
        }
        takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect::<Vec<_>>()
    });
    all.sort_by_key(|element| element.0);
    let indices: Vec<i64> = all.iter().map(|e| e.0).collect();
    assert_eq!(indices, (0..20).map(|i| i64::MIN + i).collect::<Vec<_>>());
    let by_key: BTreeMap<String, Vec<f32>> =
        all.into_iter().map(|(_, key, all)| (key, all)).collect();
    for i in 0..20 {
        assert_eq!(by_key[&i.to_string()], [i as f32, 100.0 + i as f32]);
    }
}

/// `testClose`, `testTakeManySmallBatch`: no new keys, but what is there can become complete, and be taken.
#[test]
fn close() {
    let p = Pairs::new();
    let session = p.session();
    p.insert(&session, 0, &[("a", 1.0), ("b", 2.0), ("c", 3.0)]).unwrap();
    p.insert(&session, 1, &[("a", 1.0)]).unwrap();
    let close = p.barrier.close();
    session.run(&[], &close).unwrap();
    assert_eq!(kind(session.run(&[], &close)), ErrorKind::Cancelled);
    assert_eq!(kind(p.insert(&session, 0, &[("d", 1.0)])), ErrorKind::Cancelled);
    p.insert(&session, 1, &[("b", 2.0)]).unwrap();
    let keys = |taken: Vec<Element>| taken.into_iter().map(|e| e.1).collect::<Vec<_>>();
    assert_eq!(keys(take(&session, &p.barrier.take_many(1)).unwrap()), ["a"]);
    // One that lacks a component may still come.
    let (up_to, many) = (p.barrier.take_up_to(5), p.barrier.take_many(5));
    let waits = session.submit(&[], (&up_to.indices, &up_to.keys), RunOptions::default());
    thread::sleep(A_WHILE);
    assert!(!waits.is_done());
    p.insert(&session, 1, &[("c", 3.0)]).unwrap();
    assert_eq!(waits.wait().unwrap().1, strings(&["b", "c"]));
    for taken in [&up_to, &many] {
        let error = take(&session, taken).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
        assert!(
            error.message().contains("barrier 'b' is closed and has insufficient elements"),
            "{error}"
        );
    }
}

/// `testCancel`, `testClosedEmptyBarrierTakeManyAllowSmallBatchRaises`: what is incomplete is dropped.
#[test]
fn close_and_cancel() {
    let p = Pairs::new();
    let session = p.session();
    p.insert(&session, 0, &[("a", 1.0), ("b", 2.0)]).unwrap();
    p.insert(&session, 1, &[("b", 2.0)]).unwrap();
    let waits = p.barrier.take_many(2);
    let waits = session.submit(&[], &waits.keys, RunOptions::default());
    session.run(&[], p.barrier.close()).unwrap();
    let cancel = p.barrier.close_and_cancel();
    session.run(&[], &cancel).unwrap();
    assert_eq!(kind(waits.wait()), ErrorKind::OutOfRange);
    assert_eq!(kind(session.run(&[], &cancel)), ErrorKind::Cancelled);
    assert_eq!(kind(p.insert(&session, 1, &[("a", 1.0)])), ErrorKind::Cancelled);
    assert_eq!(p.sizes(&session), [1, 0]);
    let up_to = p.barrier.take_up_to(3);
    assert_eq!(take(&session, &up_to).unwrap(), [(i64::MIN + 1, "b".to_owned(), vec![2.0, 2.0])]);
    assert_eq!(kind(take(&session, &up_to)), ErrorKind::OutOfRange);
}

/// `testIncompatibleSharedBarrierErrors`, and what does not fit.
#[test]
fn wrong_barriers_are_refused() {
    let g = Graph::new();
    let shared = |dtype| g.barrier("b", [(dtype, dims![])], Some("shared".to_owned()));
    let (one, other) = (shared(F32), shared(I32));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], one.ready_size()).unwrap();
    assert_eq!(kind(session.run(&[], other.ready_size())), ErrorKind::InvalidArgument);
    let keys = g.constant(strings(&["a", "b"]));
    one.insert_many(1, &keys, &g.constant([1.0f32, 2.0]));
    one.insert_many(0, &keys, &g.constant([1.0f32, 2.0, 3.0]));
    one.insert_many(0, &keys, &g.constant([1i32, 2]));
    one.insert_many(0, &g.constant([1i32, 2]), &g.constant([1.0f32, 2.0]));
    g.barrier("unknown", [(F32, dims![None])], None);
    let messages: Vec<String> = g.check().iter().map(|e| e.message().to_owned()).collect();
    let expected = ["no component 1 of 1", "component 0", "i32", "i32", "specified sizes"];
    assert_eq!(messages.len(), expected.len(), "{messages:?}");
    for (message, expected) in messages.iter().zip(expected) {
        assert!(message.contains(expected), "{message}");
    }
    // Keys are known before the run.
    let q = g.fifo_queue("q", 3, [(Strings, dims![2])]);
    let insert = one.insert_many(0, &q.dequeue()[0], &g.constant([1.0f32, 2.0]));
    let error = session.run(&[], &insert).unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::Unimplemented, Some(&*insert.name())));
    assert!(error.message().contains("unsupported"), "{error}");
}
