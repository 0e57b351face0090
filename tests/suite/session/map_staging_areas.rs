//! Map staging areas. TensorFlow: `kernel_tests/map_stage_op_test.py`, by meaning.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{
    Dims, Lack, MapStagingArea, MapStagingOptions, QueueAction, QueueOp, RunHandle, RunOptions,
    StagedElement,
};
use convoke_tests::{A_WHILE, devices, fails_while, slow_on_host};

/// An area of scalars.
struct Scalars {
    g: Graph,
    area: MapStagingArea,
    key: Tensor,
    x: Tensor,
    put: Operation,
    get: Tensor,
    any: StagedElement,
}

impl Scalars {
    fn new(options: MapStagingOptions) -> Self {
        let g = Graph::new();
        let area = g.map_staging_area("area", [(F32, dims![])], options);
        let (key, x) = (g.placeholder("key", I64, dims![]), g.placeholder("x", F32, dims![]));
        let (put, get) = (area.put(&key, &[&x]), area.get(&key).remove(0));
        let any = area.get_any();
        Self { g, area, key, x, put, get, any }
    }

    fn of(capacity: usize) -> Self {
        Self::new(MapStagingOptions { capacity: Some(capacity), ..MapStagingOptions::default() })
    }

    fn session(&self) -> Session {
        Session::new(&self.g, &Devices::cpu()).unwrap()
    }

    fn feeds(&self, key: i64, x: f32) -> [Feed<'static>; 2] {
        [self.key.feed(key), self.x.feed(x)]
    }

    fn put(&self, session: &Session, key: i64, x: f32) {
        session.run(&self.feeds(key, x), &self.put).unwrap();
    }

    fn submit_put(&self, session: &Session, key: i64, x: f32) -> RunHandle<&Operation> {
        session.submit(&self.feeds(key, x), &self.put, RunOptions::default())
    }

    fn submit_get(&self, session: &Session, key: i64) -> RunHandle<&Tensor> {
        let handle = session.submit(&[self.key.feed(key)], &self.get, RunOptions::default());
        // It stands in line, or is done.
        while !handle.is_done() && session.waiting().iter().all(|run| !seeks(run, key)) {
            thread::sleep(Duration::from_millis(1));
        }
        handle
    }

    fn get(&self, session: &Session, key: i64) -> f32 {
        session.run(&[self.key.feed(key)], &self.get).unwrap().scalar().unwrap()
    }

    fn any(&self, session: &Session) -> (i64, f32) {
        let (key, x) = session.run(&[], (&self.any.key, &self.any.components[0])).unwrap();
        (key.scalar().unwrap(), x.scalar().unwrap())
    }

    /// How many are complete, and how many are not.
    fn sizes(&self, session: &Session) -> [i32; 2] {
        sizes(&self.area, session)
    }
}

fn seeks(run: &convoke::WaitingRun, key: i64) -> bool {
    run.operations.iter().any(|operation| operation.lacks == Lack::Key { key })
}

fn sizes(area: &MapStagingArea, session: &Session) -> [i32; 2] {
    let (size, incomplete) = session.run(&[], (area.size(), area.incomplete_size())).unwrap();
    [size, incomplete].map(|n| n.scalar().unwrap())
}

/// `testSimple`, `testMultiple`, `testDictionary`: what one run stages the next computes with, on each device.
#[test]
fn simple_and_multiple() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let (into, of) = (g.placeholder("into", I64, dims![]), g.placeholder("of", I32, dims![]));
        let area = g.map_staging_area(
            "area",
            [(F32, dims![]), (F32, dims![4])],
            MapStagingOptions::default(),
        );
        let stage = area.put(&into, &[&x.sum(()), &(&x * 2.0)]);
        let got = area.get(&of);
        let y = &got[0] + &got[1];
        let session = device.session(&g);
        session.run(&[x.feed([0.0f32, 1.0, 2.0, 3.0]), into.feed(0i64)], &stage).unwrap();
        for i in 0..5 {
            let feeds =
                [x.feed([0.0, i as f32, 0.0, 9.0]), into.feed(i64::from(i) + 1), of.feed(i)];
            let (y, ()) = session.run(&feeds, (&y, &stage)).unwrap();
            let before =
                if i == 0 { vec![0.0, 1.0, 2.0, 3.0] } else { vec![0.0, i as f32 - 1.0, 0.0, 9.0] };
            let sum: f32 = before.iter().sum();
            let expected: Vec<f32> = before.iter().map(|x| 2.0 * x + sum).collect();
            assert_eq!(y.to_vec::<f32>().unwrap(), expected, "{}", device.name);
        }
        assert_eq!(sizes(&area, &session), [1, 0]);
    }
}

/// `testPeek`: of each key, without taking.
#[test]
fn peek() {
    let s = Scalars::of(10);
    let session = s.session();
    let peek = s.area.peek(&s.key).remove(0);
    (0..10).rev().for_each(|i| s.put(&session, i - 5, i as f32));
    for i in 0..10 {
        let seen = session.run(&[s.key.feed(i - 5)], &peek).unwrap();
        assert_eq!(seen.scalar::<f32>().unwrap(), i as f32);
    }
    assert_eq!(s.sizes(&session), [10, 0]);
    // As it is when the run begins, whatever the run takes.
    let (got, seen) = session.run(&[s.key.feed(-2i64)], (&s.get, &peek)).unwrap();
    assert_eq!([got, seen].map(|x| x.scalar::<f32>().unwrap()), [3.0, 3.0]);
    let waits = session.submit(&[s.key.feed(-2i64)], &peek, RunOptions::default());
    thread::sleep(A_WHILE);
    assert!(!waits.is_done());
    s.put(&session, -2, 30.0);
    assert_eq!(waits.wait().unwrap().scalar::<f32>().unwrap(), 30.0);
}

/// `testSizeAndClear`: what lacks components is taken out, too, and who waits for room gets in.
#[test]
fn size_and_clear() {
    let g = Graph::new();
    let options = MapStagingOptions { capacity: Some(3), ..MapStagingOptions::default() };
    let area = g.map_staging_area("area", [(F32, dims![]), (I32, dims![2])], options);
    let key = g.placeholder("key", I64, dims![]);
    let (one, two) = (g.constant(1.0f32), g.constant([1i32, 2]));
    let whole = area.put(&key, &[&one, &two]);
    let (first, second) = (area.put_some(&key, &[(0, &one)]), area.put_some(&key, &[(1, &two)]));
    let clear = area.clear();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let run = |key_is: i64, operation: &Operation| {
        session.run(&[key.feed(key_is)], operation).unwrap();
    };
    run(3, &whole);
    assert_eq!(sizes(&area, &session), [1, 0]);
    run(1, &whole);
    run(2, &first);
    assert_eq!(sizes(&area, &session), [2, 1]);
    let waits = session.submit(&[key.feed(5i64)], &first, RunOptions::default());
    thread::sleep(A_WHILE);
    assert!(!waits.is_done());
    session.run(&[], &clear).unwrap();
    waits.wait().unwrap();
    assert_eq!(sizes(&area, &session), [0, 1]);
    // Nothing is left of the element of key 2.
    run(2, &first);
    run(2, &second);
    assert_eq!(sizes(&area, &session), [1, 1]);
}

/// `testCapacity`: who puts waits for room.
#[test]
fn capacity() {
    let s = Scalars::of(3);
    let session = s.session();
    (0..3).for_each(|i| s.put(&session, i, i as f32));
    let waits: Vec<_> = (3..5).map(|i| s.submit_put(&session, i, i as f32)).collect();
    thread::sleep(A_WHILE);
    assert!(waits.iter().all(|put| !put.is_done()));
    let full = RunOptions { fail_if_blocked: true, ..RunOptions::default() };
    let error = session.run_with(&s.feeds(9, 9.0), &s.put, full).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    assert_eq!(s.get(&session, 1), 1.0);
    assert_eq!(s.any(&session), (0, 0.0));
    waits.into_iter().for_each(|put| put.wait().unwrap());
    assert_eq!(s.sizes(&session), [3, 0]);
    let mut left: Vec<_> = (0..3).map(|_| s.any(&session)).collect();
    left.sort_by_key(|(key, _)| *key);
    assert_eq!(left, [(2, 2.0), (3, 3.0), (4, 4.0)]);
}

/// `testMemoryLimit`: elements of 1 KiB, of which 7 fit; the key counts for nothing.
#[test]
fn memory_limit() {
    let g = Graph::new();
    let options =
        MapStagingOptions { memory_limit: Some(7 * 1024 + 1000), ..MapStagingOptions::default() };
    let area = g.map_staging_area("area", [(U8, dims![1024])], options);
    assert_eq!(area.spec().capacity, Some(7));
    let (key, x) = (g.placeholder("key", I64, dims![]), g.placeholder("x", U8, dims![1024]));
    let (put, get) = (area.put(&key, &[&x]), area.get(&key).remove(0));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let full = RunOptions { fail_if_blocked: true, ..RunOptions::default() };
    let run = |i: u8| {
        let feeds = [key.feed(i64::from(i)), x.feed([i; 1024])];
        session.run_with(&feeds, &put, full.clone())
    };
    for i in 0..7 {
        run(i).unwrap();
    }
    let error = run(7).unwrap_err();
    let expected = "room in map staging area 'area' (capacity 7, there 7";
    assert!(error.message().contains(expected), "{error}");
    for i in (0..7u8).rev() {
        let got = session.run(&[key.feed(i64::from(i))], &get).unwrap();
        assert_eq!(got.to_vec::<u8>().unwrap(), [i; 1024]);
    }
}

/// `testOrdering`: by key where it is asked for, else as they came.
#[test]
fn ordering() {
    let keys = [4i64, -7, 0, 9, i64::MIN, 3, i64::MAX];
    let mut sorted = keys;
    sorted.sort_unstable();
    for ordered in [true, false] {
        let s = Scalars::new(MapStagingOptions { ordered, ..MapStagingOptions::default() });
        let session = s.session();
        keys.iter().for_each(|&key| s.put(&session, key, key as f32));
        let expected = if ordered { sorted } else { keys };
        assert_eq!(keys.map(|_| s.any(&session).0), expected, "{ordered}");
        assert_eq!(s.sizes(&session), [0, 0]);
    }
}

/// `testPartialDictInsert`, `testPartialIndexInsert`: an element is there once it has all its components.
#[test]
fn partial_insert() {
    let g = Graph::new();
    let components = [(F32, dims![]), (F32, dims![2]), (Strings, dims![None])];
    let area = g.map_staging_area("area", components, MapStagingOptions::default());
    let key = g.placeholder("key", I64, dims![]);
    let (x, v) = (g.placeholder("x", F32, dims![]), g.placeholder("v", F32, dims![2]));
    let f = g.placeholder("f", Strings, dims![None]);
    // In any order.
    let stage_xf = area.put_some(&key, &[(2, &f), (0, &x)]);
    let stage_v = area.put_some(&key, &[(1, &v)]);
    let got = area.get(&key);
    let any = area.get_any();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let xf = |i: i64, x_is: f32| {
        let words = HostTensor::strings(&[1], [format!("f{i}")]).unwrap();
        session.run(&[key.feed(i), x.feed(x_is), f.feed(words)], &stage_xf).unwrap();
    };
    let put_v = |i: i64, v_is: [f32; 2]| {
        session.run(&[key.feed(i), v.feed(v_is)], &stage_v).unwrap();
    };
    assert_eq!(sizes(&area, &session), [0, 0]);
    xf(0, 1.0);
    assert_eq!(sizes(&area, &session), [0, 1]);
    xf(1, 2.0);
    assert_eq!(sizes(&area, &session), [0, 2]);
    let before = session.state_digest().unwrap();
    put_v(1, [3.0, 4.0]);
    assert_eq!(sizes(&area, &session), [1, 1]);
    assert_ne!(session.state_digest().unwrap(), before);
    put_v(0, [5.0, 6.0]);
    assert_eq!(sizes(&area, &session), [2, 0]);
    let fetch = (&got[0], &got[1], &got[2]);
    let (x_is, v_is, f_is) = session.run(&[key.feed(1i64)], fetch).unwrap();
    assert_eq!(x_is.scalar::<f32>().unwrap(), 2.0);
    assert_eq!(v_is.to_vec::<f32>().unwrap(), [3.0, 4.0]);
    assert_eq!(f_is.as_strings().unwrap(), [b"f1"]);
    assert_eq!(sizes(&area, &session), [1, 0]);
    let (key_is, v_is) = session.run(&[], (&any.key, &any.components[1])).unwrap();
    assert_eq!(key_is.scalar::<i64>().unwrap(), 0);
    assert_eq!(v_is.to_vec::<f32>().unwrap(), [5.0, 6.0]);
    // A component twice; sizes that only the run knows.
    xf(7, 1.0);
    let before = session.state_digest().unwrap();
    let words = HostTensor::strings(&[1], ["again"]).unwrap();
    let feeds = [key.feed(7i64), x.feed(1.0f32), f.feed(words)];
    let error = session.run(&feeds, &stage_xf).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let expected = "key 7 already has a value for component 0";
    assert!(error.message().contains(expected), "{error}");
    assert_eq!(session.state_digest().unwrap(), before);
}

/// Who has begun an element completes it also where there is no room for another, and one that has failed has begun
/// none.
#[test]
fn an_element_has_its_room_from_the_first_component_on() {
    let g = Graph::new();
    let options = MapStagingOptions { capacity: Some(1), ..MapStagingOptions::default() };
    let area = g.map_staging_area("area", [(F32, dims![]), (F32, dims![])], options);
    let (key, x) = (g.placeholder("key", I64, dims![]), g.placeholder("x", F32, dims![]));
    let broken = Arc::new(AtomicBool::new(true));
    let fails = fails_while(&x, &broken);
    let (first, second) = (area.put_some(&key, &[(0, &fails)]), area.put_some(&key, &[(1, &x)]));
    let got = area.get(&key);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let feeds = |i: i64| [key.feed(i), x.feed(i as f32)];
    let before = session.state_digest().unwrap();
    let error = session.run(&feeds(1), &first).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
    assert_eq!((sizes(&area, &session), session.state_digest().unwrap()), ([0, 0], before));
    broken.store(false, Ordering::Relaxed);
    session.run(&feeds(2), &second).unwrap();
    let waits = session.submit(&feeds(1), (&first, &second), RunOptions::default());
    thread::sleep(A_WHILE);
    assert!(!waits.is_done());
    session.run(&feeds(2), &first).unwrap();
    assert_eq!(sizes(&area, &session), [1, 0]);
    let both = session.run(&[key.feed(2i64)], (&got[0], &got[1])).unwrap();
    assert_eq!([both.0, both.1].map(|x| x.scalar::<f32>().unwrap()), [2.0, 2.0]);
    waits.wait().unwrap();
    assert_eq!(sizes(&area, &session), [1, 0]);
}

/// Who waits for a key gets it, before who came later and before who takes any; others are not in its way.
#[test]
fn who_waits_for_a_key_gets_it() {
    let s = Scalars::of(9);
    let session = s.session();
    let seven = s.submit_get(&session, 7);
    let lacks = &session.waiting()[0];
    assert_eq!(lacks.operations[0].lacks, Lack::Key { key: 7 });
    let text = lacks.to_string();
    assert!(text.contains("lacks the element of key 7 of map staging area 'area'"), "{text}");
    s.put(&session, 3, 3.0);
    assert_eq!(s.get(&session, 3), 3.0);
    assert!(!seven.is_done());
    let any = session.submit(&[], &s.any.key, RunOptions::default());
    while session.waiting().len() < 2 {
        thread::sleep(Duration::from_millis(1));
    }
    s.put(&session, 7, 7.0);
    assert_eq!(seven.wait().unwrap().scalar::<f32>().unwrap(), 7.0);
    thread::sleep(A_WHILE);
    assert!(!any.is_done());
    s.put(&session, 8, 8.0);
    assert_eq!(any.wait().unwrap().scalar::<i64>().unwrap(), 8);
    // Of those who wait for one key, in order.
    let first = s.submit_get(&session, 5);
    let second = s.submit_get(&session, 5);
    s.put(&session, 5, 50.0);
    assert_eq!(first.wait().unwrap().scalar::<f32>().unwrap(), 50.0);
    assert!(!second.is_done());
    s.put(&session, 5, 51.0);
    assert_eq!(second.wait().unwrap().scalar::<f32>().unwrap(), 51.0);
    // A key that the run itself asks for is not any.
    s.put(&session, 1, 1.0);
    s.put(&session, 2, 2.0);
    let (got, any) = session.run(&[s.key.feed(1i64)], (&s.get, &s.any.key)).unwrap();
    assert_eq!((got.scalar::<f32>().unwrap(), any.scalar::<i64>().unwrap()), (1.0, 2));
    assert_eq!(s.sizes(&session), [0, 0]);
}

/// Who takes several elements at once has room made for them, and those that are there already stay for it.
#[test]
fn several_keys_at_once() {
    let s = Scalars::of(1);
    let session = s.session();
    let [one, two] = [1i64, 2].map(|key| s.area.get(&s.g.constant(key)).remove(0));
    s.put(&session, 1, 1.0);
    let second = s.submit_put(&session, 2, 2.0);
    thread::sleep(A_WHILE);
    assert!(!second.is_done());
    let both = session.submit(&[], (&one, &two), RunOptions::default());
    second.wait().unwrap();
    let (one, two) = both.wait().unwrap();
    assert_eq!([one, two].map(|x| x.scalar::<f32>().unwrap()), [1.0, 2.0]);
    assert_eq!(s.sizes(&session), [0, 0]);
}

/// A run that fails has taken and put nothing. Until it ends, nobody puts under a key that it has taken, as the element
/// may come back.
#[test]
fn failing_and_coming_back() {
    let s = Scalars::of(5);
    let broken = Arc::new(AtomicBool::new(true));
    let late = slow_on_host(&s.get, Duration::from_millis(120));
    let fails = fails_while(&late, &broken);
    let session = s.session();
    for i in [6i64, 4, 5] {
        s.put(&session, i, i as f32);
    }
    let before = session.state_digest().unwrap();
    let error = session.run(&s.feeds(4, 0.0), (&fails, &s.any.key, s.area.clear())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
    assert_eq!(session.state_digest().unwrap(), before);
    let run = session.submit(&s.feeds(4, 0.0), &fails, RunOptions::default());
    while s.sizes(&session)[0] == 3 {
        thread::sleep(Duration::from_millis(1));
    }
    let put = s.submit_put(&session, 4, 40.0);
    thread::sleep(A_WHILE);
    assert!(!put.is_done());
    run.wait().unwrap_err();
    // It is there again, and two of one key there are not.
    let error = put.wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert_eq!(session.state_digest().unwrap(), before);
    broken.store(false, Ordering::Relaxed);
    let run = session.submit(&s.feeds(4, 0.0), &fails, RunOptions::default());
    while s.sizes(&session)[0] == 3 {
        thread::sleep(Duration::from_millis(1));
    }
    let put = s.submit_put(&session, 4, 40.0);
    assert_eq!(run.wait().unwrap().scalar::<f32>().unwrap(), 4.0);
    put.wait().unwrap();
    assert_eq!(s.sizes(&session), [3, 0]);
    assert_eq!([s.any(&session), s.any(&session), s.any(&session)].map(|(key, _)| key), [6, 5, 4]);
    // What was cleared meanwhile does not come back.
    broken.store(true, Ordering::Relaxed);
    s.put(&session, 4, 4.0);
    let run = session.submit(&s.feeds(4, 0.0), &fails, RunOptions::default());
    while s.sizes(&session)[0] == 1 {
        thread::sleep(Duration::from_millis(1));
    }
    session.run(&[], s.area.clear()).unwrap();
    s.put(&session, 4, 41.0);
    run.wait().unwrap_err();
    assert_eq!((s.sizes(&session), s.get(&session, 4)), ([1, 0], 41.0));
}

/// A run may put under a key whose element it takes, but not take one twice.
#[test]
fn one_key_twice_in_a_run() {
    let s = Scalars::of(1);
    let session = s.session();
    let again = s.area.put(&s.key, &[&(&s.get + 1.0)]);
    s.put(&session, 3, 1.0);
    session.run(&[s.key.feed(3i64)], &again).unwrap();
    assert_eq!(s.get(&session, 3), 2.0);
    s.put(&session, 3, 1.0);
    let (key, ()) = session.run(&s.feeds(3, 9.0), (&s.any.key, &s.put)).unwrap();
    assert_eq!(key.scalar::<i64>().unwrap(), 3);
    let other = s.area.get(&s.key).remove(0);
    let before = session.state_digest().unwrap();
    let refused = [
        session.run(&[s.key.feed(3i64)], (&s.get, &other)).map(|_| ()),
        session.run(&s.feeds(4, 1.0), (&s.put, s.area.put(&s.key, &[&s.x]))).map(|_| ()),
        session.run(&s.feeds(3, 1.0), &s.put),
    ];
    for error in refused.map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    assert_eq!((s.get(&session, 3), s.sizes(&session)), (9.0, [0, 0]));
    assert_ne!(session.state_digest().unwrap(), before);
}

/// Who takes an element and puts one under its key needs no room, and does not wait behind those that wait for some;
/// what else it puts does.
#[test]
fn who_replaces_an_element_needs_no_room() {
    let s = Scalars::of(1);
    let at_once = || RunOptions { fail_if_blocked: true, ..RunOptions::default() };
    let again = s.area.put(&s.key, &[&(&s.get + 1.0)]);
    let session = s.session();
    s.put(&session, 3, 1.0);
    let waits = s.submit_put(&session, 4, 40.0);
    while session.waiting().is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    session.run_with(&[s.key.feed(3i64)], &again, at_once()).unwrap();
    assert!(!waits.is_done());
    assert_eq!(s.get(&session, 3), 2.0);
    waits.wait().unwrap();
    assert_eq!(s.get(&session, 4), 40.0);
    // Beside another key it has no more room than that of its own.
    let s = Scalars::of(2);
    let other = s.area.put(&s.g.constant(4i64), &[&s.x]);
    let again = s.area.put(&s.key, &[&(&s.get + 1.0)]);
    let session = s.session();
    s.put(&session, 3, 1.0);
    s.put(&session, 5, 1.0);
    let both = |session: &Session| {
        session.run_with(&s.feeds(3, 9.0), (&again, &other), at_once()).map(|_| ())
    };
    let error = both(&session).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    let expected = "room in map staging area 'area' (capacity 2, there 2, promised 0)";
    assert!(error.message().contains(expected), "{error}");
    s.get(&session, 5);
    both(&session).unwrap();
    assert_eq!((s.get(&session, 3), s.get(&session, 4)), (2.0, 9.0));
}

/// What areas and operations there are not.
#[test]
fn wrong_areas_are_refused() {
    let g = Graph::new();
    let limited =
        |limit| MapStagingOptions { memory_limit: Some(limit), ..MapStagingOptions::default() };
    let no_room = MapStagingOptions { capacity: Some(0), ..MapStagingOptions::default() };
    g.map_staging_area("small", [(F32, dims![2])], limited(7)).size();
    g.map_staging_area("strings", [(Strings, dims![])], limited(1 << 20)).size();
    g.map_staging_area("full", [(F32, dims![])], no_room).size();
    g.map_staging_area::<Dims>("empty", [], MapStagingOptions::default()).get_any();
    g.map_staging_area("wide", vec![(F32, dims![]); 65], MapStagingOptions::default()).size();
    let fine = g.map_staging_area("fine", vec![(F32, dims![]); 64], MapStagingOptions::default());
    let (one, key) = (g.constant(1.0f32), g.constant(5i64));
    assert_eq!(g.check().len(), 10, "{:?}", g.check());
    fine.put_some(&key, &[(63, &one)]);
    assert_eq!(g.check().len(), 10);
    let of_queue = g.fifo_queue("queue", 1, [(F32, dims![])]);
    let on_queue = |action, queue: &convoke::QueueSpec, inputs: &[&Tensor]| {
        let queue = Arc::new(queue.clone());
        g.apply(QueueOp { queue, action, among: Arc::default() }, inputs)
    };
    fine.put(&key, &[&one]);
    fine.put_some(&key, &[(64, &one)]);
    fine.put_some(&key, &[(1, &one), (1, &one)]);
    fine.put_some(&key, &[]);
    fine.put_some(&key, &[(1, &key)]);
    fine.put_some(&g.constant(1.0f32), &[(1, &one)]);
    fine.put_some(&g.constant([1i64]), &[(1, &one)]);
    on_queue(QueueAction::Close { cancel_pending: true }, fine.spec(), &[]);
    on_queue(QueueAction::Put { places: 1 }, of_queue.spec(), &[&one, &key]);
    on_queue(QueueAction::Put { places: 0 }, fine.spec(), &[&key]);
    let refused = g.check();
    assert!(refused.iter().all(|e| e.kind() == ErrorKind::InvalidArgument), "{refused:?}");
    assert_eq!(refused.len(), 20, "{refused:?}");
    // An area among queues to choose from, also one that is like them.
    let single = g.map_staging_area("single", [(F32, dims![])], MapStagingOptions::default());
    let pairs = g.fifo_queue("pairs", 1, [(I64, dims![]), (F32, dims![])]);
    let index = g.constant(0i64);
    for (queue, among) in [(pairs.spec(), single.spec()), (single.spec(), pairs.spec())] {
        let (queue, among) = (Arc::new(queue.clone()), [Arc::new(among.clone())].into());
        let op = QueueOp { queue, action: QueueAction::Dequeue, among };
        let error = g.apply(op, &[&index]).operation().node().error().unwrap().to_string();
        assert!(error.contains("expected queues to choose from"), "{error}");
    }
    // A key that is not known before the run.
    let v = g.variable("v", Init::Zeros, I64, []);
    let late = fine.put_some(v.value(), &[(0, &one)]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let error = session.run(&[], &late).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unimplemented, "{error}");
}

/// Areas of one shared name are one if they are alike; a reset empties those of its containers.
#[test]
fn shared_areas_and_reset() {
    let g = Graph::new();
    let shared = |ordered| MapStagingOptions {
        ordered,
        shared_name: Some("s".into()),
        ..MapStagingOptions::default()
    };
    let area = |name: &str, ordered| {
        g.container("c", || g.map_staging_area(name, vec![(I32, dims![]); 2], shared(ordered)))
    };
    let (one, other, unlike) = (area("one", false), area("other", false), area("unlike", true));
    let key = g.constant(-1i64);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], one.put(&key, &[&g.constant(5), &g.constant(6)])).unwrap();
    assert_eq!(session.run(&[], other.peek(&key)).unwrap()[1].scalar::<i32>().unwrap(), 6);
    let error = session.run(&[], unlike.size()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    session.run(&[], one.put_some(&g.constant(2i64), &[(1, &g.constant(5))])).unwrap();
    session.reset(&[""]).unwrap();
    assert_eq!(sizes(&one, &session), [1, 1]);
    session.reset(&["c"]).unwrap();
    // Nothing is left, so that it may be another one now.
    assert_eq!(sizes(&unlike, &session), [0, 0]);
}

/// A graph that is put together from its parts has the same areas.
#[test]
fn areas_of_a_graph_that_was_put_together() {
    let s = Scalars::new(MapStagingOptions { ordered: true, ..MapStagingOptions::default() });
    let again = Graph::from_parts(s.g.parts()).unwrap();
    let session = Session::new(&again, &Devices::cpu()).unwrap();
    let (key, x) = (again.tensor("key").unwrap(), again.tensor("x").unwrap());
    let put = again.operation(&s.put.name()).unwrap();
    let any = again.operation(&s.any.key.operation().name()).unwrap().outputs();
    for i in [8i64, 2] {
        session.run(&[key.feed(i), x.feed(i as f32)], &put).unwrap();
    }
    let (first, value) = session.run(&[], (&any[0], &any[1])).unwrap();
    assert_eq!((first.scalar::<i64>().unwrap(), value.scalar::<f32>().unwrap()), (2, 2.0));
}

/// Many threads put and take by key, and each gets its own.
#[test]
fn many_keys_at_the_same_time() {
    let s = Scalars::of(4);
    let session = s.session();
    thread::scope(|scope| {
        for lane in 0..3i64 {
            let (s, session) = (&s, &session);
            scope.spawn(move || {
                for i in 0..30 {
                    s.put(session, lane * 100 + i, (lane * 100 + i) as f32);
                }
            });
            scope.spawn(move || {
                for i in 0..30 {
                    let key = lane * 100 + i;
                    assert_eq!(s.get(session, key), key as f32);
                }
            });
        }
    });
    assert_eq!(s.sizes(&session), [0, 0]);
}
