//! The name and version of a session. TensorFlow: `SessionMetadata` of `core/common_runtime/direct_session_test.cc`.

use convoke::prelude::*;
use convoke::{RunOptions, SessionMetadata};

fn metadata(name: &str, version: i64) -> SessionMetadata {
    SessionMetadata { name: name.to_owned(), version }
}

fn session(g: &Graph, metadata: SessionMetadata) -> convoke::Result<Session> {
    let options = SessionOptions { metadata: Some(metadata), ..SessionOptions::default() };
    Session::with_options(g, &Devices::cpu(), options)
}

/// TensorFlow: `SessionMetadataAbsent`, where a kernel sees that there is none.
#[test]
fn session_metadata_absent() {
    let g = Graph::new();
    let x = g.constant(1.0f32);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    assert_eq!(session.metadata(), None);
    let (_, run) = session.run_with(&[], &x, RunOptions::timed()).unwrap();
    assert_eq!(run.session, None);
    assert!(!run.to_trace().to_json().contains("\"session\""));
}

/// TensorFlow: `SessionMetadataPresent`, where a kernel sees it; here runs say it.
#[test]
fn session_metadata_present() {
    let g = Graph::new();
    let (x, pred) = (g.placeholder("x", F32, dims![]), g.placeholder("pred", Bool, dims![]));
    let (y, either) = (&x * 2.0, g.cond(&pred, || &x + 1.0, || x.clone()));
    let session = session(&g, metadata("present", 1)).unwrap();
    assert_eq!(session.metadata(), Some(&metadata("present", 1)));
    let (_, run) = session.run_with(&[x.feed(1.0f32)], &y, RunOptions::timed()).unwrap();
    assert_eq!(run.session.as_deref(), Some(&metadata("present", 1)));
    assert!(run.to_string().starts_with("session present version 1: "), "{run}");
    let trace: serde_json::Value = serde_json::from_str(&run.to_trace().to_json()).unwrap();
    let runs = trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["cat"] == "run");
    let said: Vec<_> = runs.map(|run| run["args"]["session"].to_string()).collect();
    assert_eq!(said, [r#"{"name":"present","version":1}"#]);
    let feeds = [x.feed(1.0f32), pred.feed(true)];
    let (_, run) = session.run_with(&feeds, &either, RunOptions::default()).unwrap();
    assert_eq!(run.session.as_deref(), Some(&metadata("present", 1)));
    let (_, run) = session.submit(&feeds, &y, RunOptions::default()).wait_with().unwrap();
    assert_eq!(run.session.as_deref(), Some(&metadata("present", 1)));
    let call = session.callable(&[&x], &y).unwrap();
    let (_, run) = call.call_with([1.0f32], &RunOptions::default()).unwrap();
    assert_eq!(run.session.as_deref(), Some(&metadata("present", 1)));
    let mut partial = session.partial_run(&[&x], &y).unwrap();
    let (_, run) = partial.run_with(&feeds[..1], &y, &RunOptions::default()).unwrap();
    assert_eq!(run.session.as_deref(), Some(&metadata("present", 1)));
    assert!(format!("{session:?}").contains("present version 1"), "{session:?}");
}

/// TensorFlow: `SessionMetadataKey`: two sessions at a time have not both in common.
#[test]
fn session_metadata_key() {
    let g = Graph::new();
    let first = session(&g, metadata("key", 1)).unwrap();
    let error = session(&g, metadata("key", 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("a session with the same name and version"), "{error}");
    let _other = session(&g, metadata("key", 2)).unwrap();
    drop(session(&g, metadata("key 2", 1)).unwrap());
    let clone = first.clone();
    drop(first);
    assert!(session(&g, metadata("key", 1)).is_err());
    clone.close();
    let second = session(&g, metadata("key", 1)).unwrap();
    // What was closed before has nothing to give away any more.
    drop(clone);
    assert!(session(&g, metadata("key", 1)).is_err());
    drop(second);
    session(&g, metadata("key", 1)).unwrap();
}

/// TensorFlow: `SessionMetadataInvalid`: a negative version. An empty name is one.
#[test]
fn session_metadata_invalid() {
    let g = Graph::new();
    let error = session(&g, metadata("invalid", -1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("at least 0"), "{error}");
    assert_eq!(session(&g, metadata("", 0)).unwrap().metadata(), Some(&metadata("", 0)));
}
