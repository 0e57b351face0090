//! Staging areas. TensorFlow: `kernel_tests/stage_op_test.py`, by meaning.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{Lack, RunHandle, RunOptions, StagingArea, StagingOptions};
use convoke_tests::{A_WHILE, devices, fails_while};

/// An area of scalars.
struct Scalars {
    g: Graph,
    area: StagingArea,
    x: Tensor,
    put: Operation,
    get: Tensor,
}

impl Scalars {
    fn new(options: StagingOptions) -> Self {
        let g = Graph::new();
        let area = g.staging_area("area", [(F32, dims![])], options);
        let x = g.placeholder("x", F32, dims![]);
        let (put, get) = (area.put(&[&x]), area.get().remove(0));
        Self { g, area, x, put, get }
    }

    fn of(capacity: usize) -> Self {
        Self::new(StagingOptions { capacity: Some(capacity), ..StagingOptions::default() })
    }

    fn session(&self) -> Session {
        Session::new(&self.g, &Devices::cpu()).unwrap()
    }

    fn put(&self, session: &Session, x: f32) {
        session.run(&[self.x.feed(x)], &self.put).unwrap();
    }

    fn submit_put(&self, session: &Session, x: f32) -> RunHandle<&Operation> {
        session.submit(&[self.x.feed(x)], &self.put, RunOptions::default())
    }

    fn get(&self, session: &Session) -> f32 {
        session.run(&[], &self.get).unwrap().scalar().unwrap()
    }

    fn size(&self, session: &Session) -> i32 {
        session.run(&[], self.area.size()).unwrap().scalar().unwrap()
    }
}

/// `testSimple`, `testMultiple`, `testDictionary`: what one run stages the next computes with, on each device.
#[test]
fn simple_and_multiple() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let area =
            g.staging_area("area", [(F32, dims![]), (F32, dims![4])], StagingOptions::default());
        let stage = area.put(&[&x.sum(()), &(&x * 2.0)]);
        let got = area.get();
        let y = &got[0] + &got[1];
        let session = device.session(&g);
        session.run(&[x.feed([0.0f32, 1.0, 2.0, 3.0])], &stage).unwrap();
        for i in 0..5 {
            // `x` is 0, 1, 2, 3, and then that of the run before.
            let (y, ()) = session.run(&[x.feed([0.0, i as f32, 0.0, 9.0])], (&y, &stage)).unwrap();
            let before =
                if i == 0 { vec![0.0, 1.0, 2.0, 3.0] } else { vec![0.0, i as f32 - 1.0, 0.0, 9.0] };
            let sum: f32 = before.iter().sum();
            let expected: Vec<f32> = before.iter().map(|x| 2.0 * x + sum).collect();
            assert_eq!(y.to_vec::<f32>().unwrap(), expected, "{}", device.name);
        }
    }
}

/// `testPeek`: of each index, constant and fed, without taking.
#[test]
fn peek() {
    let s = Scalars::of(10);
    let session = s.session();
    let index = s.g.placeholder("index", I32, dims![]);
    let peek = s.area.peek(&index).remove(0);
    (0..10).for_each(|i| s.put(&session, i as f32));
    for i in 0..10 {
        let seen = session.run(&[index.feed(i)], &peek).unwrap();
        assert_eq!(seen.scalar::<f32>().unwrap(), i as f32);
    }
    assert_eq!(s.size(&session), 10);
    // As it is when the run begins, whatever the run takes.
    let third = s.area.peek(2).remove(0);
    let (got, third, size) = session.run(&[], (&s.get, &third, s.area.size())).unwrap();
    assert_eq!([got, third].map(|x| x.scalar::<f32>().unwrap()), [0.0, 2.0]);
    assert_eq!(size.scalar::<i32>().unwrap(), 10);
    for i in [10, -1] {
        let error = session.run(&[index.feed(i)], &peek).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}

/// Who looks waits for the element, and keeps nobody from taking what is there.
#[test]
fn who_peeks_waits_and_is_in_nobodys_way() {
    let s = Scalars::of(3);
    let session = s.session();
    let second = s.area.peek(1).remove(0);
    let looks = session.submit(&[], &second, RunOptions::default());
    while session.waiting().is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(session.waiting()[0].operations[0].lacks, Lack::Elements { wanted: 2, there: 0 });
    s.put(&session, 1.0);
    assert_eq!(s.get(&session), 1.0);
    s.put(&session, 2.0);
    assert!(!looks.is_done());
    s.put(&session, 3.0);
    assert_eq!(looks.wait().unwrap().scalar::<f32>().unwrap(), 3.0);
    assert_eq!(s.size(&session), 2);
}

/// `testSizeAndClear`, and who waits for room.
#[test]
fn size_and_clear() {
    let s = Scalars::of(2);
    let session = s.session();
    let clear = s.area.clear();
    s.put(&session, -1.0);
    assert_eq!(s.size(&session), 1);
    s.put(&session, -2.0);
    let waits = s.submit_put(&session, -3.0);
    thread::sleep(A_WHILE);
    assert!(!waits.is_done());
    session.run(&[], &clear).unwrap();
    waits.wait().unwrap();
    assert_eq!(s.get(&session), -3.0);
    assert_eq!(s.size(&session), 0);
}

/// A run that has taken an element and fails does not bring it back into an area that was cleared meanwhile; one that
/// clears and fails has cleared nothing.
#[test]
fn clearing_and_failing() {
    let s = Scalars::of(5);
    let session = s.session();
    let broken = Arc::new(AtomicBool::new(true));
    let (fails, clear) = (fails_while(&s.x, &broken), s.area.clear());
    (0..3).for_each(|i| s.put(&session, i as f32));
    let before = session.state_digest().unwrap();
    let error = session.run(&[s.x.feed(0.0)], (&fails, &clear, &s.get)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
    assert_eq!(session.state_digest().unwrap(), before);
    let clears = {
        let (session, clear) = (session.clone(), clear.clone());
        move |_: &[HostTensor]| {
            session.run(&[], &clear)?;
            Err(convoke::Error::invalid("it fails"))
        }
    };
    let taken = s.g.host_function("clears", &[&s.get], [(F32, dims![])], clears).remove(0);
    assert_eq!(session.run(&[], &taken).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(s.size(&session), 0);
    broken.store(false, Ordering::Relaxed);
    // What a run puts by what was built after clearing stays.
    let late = s.area.put(&[&s.x]);
    session.run(&[s.x.feed(7.0)], (&s.put, &clear, &late)).unwrap();
    assert_eq!((s.size(&session), s.get(&session)), (1, 7.0));
}

/// `testCapacity`: who puts waits for room, and all comes out in order.
#[test]
fn capacity() {
    let s = Scalars::of(3);
    let session = s.session();
    let puts: Vec<_> = (0..8)
        .map(|i| {
            let put = s.submit_put(&session, i as f32);
            if i < 3 {
                put.wait().unwrap();
                None
            } else {
                Some(put)
            }
        })
        .collect();
    thread::sleep(A_WHILE);
    assert_eq!(s.size(&session), 3);
    let mut got: Vec<f32> = (0..8).map(|_| s.get(&session)).collect();
    assert_eq!(got[..3], [0.0, 1.0, 2.0]);
    got.sort_by(f32::total_cmp);
    assert_eq!(got, (0..8).map(|i| i as f32).collect::<Vec<_>>());
    puts.into_iter().flatten().for_each(|put| put.wait().unwrap());
    assert_eq!(s.size(&session), 0);
}

/// `testMemoryLimit`: elements of 1 KiB, of which 7 fit.
#[test]
fn memory_limit() {
    let g = Graph::new();
    let options =
        StagingOptions { memory_limit: Some(7 * 1024 + 1000), ..StagingOptions::default() };
    let area = g.staging_area("area", [(U8, dims![1024])], options);
    assert_eq!(area.spec().capacity, Some(7));
    let x = g.placeholder("x", U8, dims![1024]);
    let put = area.put(&[&x]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let full = RunOptions { fail_if_blocked: true, ..RunOptions::default() };
    for i in 0..7u8 {
        session.run_with(&[x.feed([i; 1024])], &put, full.clone()).unwrap();
    }
    let error = session.run_with(&[x.feed([9; 1024])], &put, full).unwrap_err();
    assert!(
        error.message().contains("room in staging area 'area' (capacity 7, there 7"),
        "{error}"
    );
    let got = area.get().remove(0);
    for i in 0..7u8 {
        assert_eq!(session.run(&[], &got).unwrap().to_vec::<u8>().unwrap(), [i; 1024]);
    }
}

/// What areas there are not.
#[test]
fn wrong_areas_are_refused() {
    let g = Graph::new();
    let limited = |limit| StagingOptions { memory_limit: Some(limit), ..StagingOptions::default() };
    g.staging_area("small", [(F32, dims![2])], limited(7)).size();
    g.staging_area("unknown", [(F32, dims![None])], limited(1 << 20)).size();
    g.staging_area("strings", [(Strings, dims![])], limited(1 << 20)).size();
    g.staging_area::<convoke::Dims>("empty", [], StagingOptions::default()).size();
    let fine = g.staging_area("fine", [(F32, dims![])], StagingOptions::default());
    fine.put(&[&g.constant([1.0f32])]);
    let refused = g.check();
    assert_eq!(
        refused.iter().filter(|e| e.kind() == ErrorKind::InvalidArgument).count(),
        refused.len()
    );
    assert_eq!(refused.len(), 9, "{refused:?}");
}

/// Areas of one shared name are one if they are alike, and none is a queue of that name.
#[test]
fn shared_areas() {
    let g = Graph::new();
    let shared = || StagingOptions { shared_name: Some("s".into()), ..StagingOptions::default() };
    let (one, other) = (
        g.staging_area("one", [(I32, dims![])], shared()),
        g.staging_area("other", [(I32, dims![])], shared()),
    );
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], one.put(&[&g.constant(5)])).unwrap();
    assert_eq!(session.run(&[], other.get()).unwrap()[0].scalar::<i32>().unwrap(), 5);
    let options = convoke::QueueOptions { shared_name: Some("s".into()), ..Default::default() };
    let queue = g.queue("queue", [(I32, dims![])], options);
    let error = session.run(&[], queue.size()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("is shared, and another of the name differs"), "{error}");
    session.reset(&[]).unwrap();
}
