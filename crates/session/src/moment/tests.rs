//! Who restores or resets, beside a run that is half through with storing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use convoke_graph_core::{DType, Graph, Init};

use crate::{Devices, Session};

/// A session whose one variable is 1, after it was saved as 0.
fn session(name: &str) -> (Session, std::path::PathBuf) {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, DType::F32, [1]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let path = std::env::temp_dir().join(format!("convoke-{name}-{}", std::process::id()));
    session.save(&path).unwrap();
    session.run(&[], v.assign_add(1.0)).unwrap();
    (session, path)
}

/// What `change` does, it does not do before the run has ended; and none begins before it is done.
fn check(session: &Session, change: impl Fn() + Sync) {
    let before = session.state_digest().unwrap();
    let moments = &session.core.moments;
    let (first, second) = (moments.storing(true), moments.storing(true));
    let has_changed = AtomicBool::new(false);
    first.begin(None).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            change();
            has_changed.store(true, Ordering::SeqCst);
        });
        while moments.lock().waiting.is_empty() && !has_changed.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(20));
        let is_early = has_changed.load(Ordering::SeqCst);
        let version = session.core.state.lock().variables.values().map(|v| v.version).max();
        first.end();
        second.begin(None).unwrap();
        second.end();
        assert_eq!((is_early, version), (false, Some(2)));
    });
    assert_ne!(session.state_digest().unwrap(), before);
}

#[test]
fn who_restores_waits_for_who_stores() {
    let (session, path) = session("restores");
    check(&session, || session.restore(&path).unwrap());
    std::fs::remove_file(path).unwrap();
}

#[test]
fn who_resets_waits_for_who_stores() {
    let (session, path) = session("resets");
    std::fs::remove_file(path).unwrap();
    check(&session, || session.reset(&[]).unwrap());
}

#[test]
fn who_stores_alone_waits_for_all_and_all_wait_for_him() {
    let moments = Arc::new(super::Moments::default());
    let [is_alone, has_begun, looks, may_end] = [(); 4].map(|()| AtomicBool::new(false));
    let comes = |flag: &AtomicBool| {
        while !flag.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
    };
    let beside = moments.storing(false);
    beside.begin(None).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let alone = moments.storing(false);
            alone.begin_alone(None).unwrap();
            is_alone.store(true, Ordering::SeqCst);
            comes(&may_end);
            alone.end();
        });
        while moments.lock().waiting.is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(20));
        assert!(!is_alone.load(Ordering::SeqCst), "somebody stores");
        beside.end();
        comes(&is_alone);
        scope.spawn(|| {
            moments.storing(false).begin(None).unwrap();
            has_begun.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            drop(moments.look());
            looks.store(true, Ordering::SeqCst);
        });
        thread::sleep(Duration::from_millis(20));
        let early = [&has_begun, &looks].map(|flag| flag.load(Ordering::SeqCst));
        may_end.store(true, Ordering::SeqCst);
        comes(&has_begun);
        comes(&looks);
        assert_eq!(early, [false, false]);
    });
    let line = moments.lock();
    assert!(line.inside.is_none() && line.waiting.is_empty(), "{line:?}");
}
