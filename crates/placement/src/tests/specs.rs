//! Device names: reading, printing, merging, matching, refusals.

use super::spec;
use crate::{DeviceSpec, FieldConflict};
use convoke_graph_core::ErrorKind;

#[test]
fn names_read_and_print() {
    let cases = [
        ("/job:worker/replica:0/task:1/device:GPU:0", "/job:worker/replica:0/task:1/device:GPU:0"),
        ("/device:CPU:0", "/device:CPU:0"),
        ("GPU:0", "/device:GPU:0"),
        ("GPU", "/device:GPU"),
        ("gpu:*", "/device:GPU"),
        ("/gpu:0", "/device:GPU:0"),
        ("/GPU:3", "/device:GPU:3"),
        ("cpu", "/device:CPU"),
        ("/job:x", "/job:x"),
        ("/job:*/task:2", "/task:2"),
        ("/replica:*", "*"),
        ("/device:*:1", "/device:*:1"),
        ("/device:*", "*"),
        ("/device:npu:0", "/device:NPU:0"),
        ("/task:4294967295/gpu:07", "/task:4294967295/device:GPU:7"),
        ("/job:my-job_2/cpu:0", "/job:my-job_2/device:CPU:0"),
        ("*", "*"),
        ("", "*"),
    ];
    for (text, printed) in cases {
        let read = spec(text);
        assert_eq!(read.to_string(), printed, "{text:?}");
        assert_eq!(spec(printed), read, "{text:?} again");
    }
}

#[test]
fn malformed_names_are_refused() {
    let cases = [
        ("/foo:bar", "'foo:bar' is not a known part"),
        ("banana", "'banana' is not a known part"),
        ("GPU:x", "'GPU:x' needs a number"),
        ("GPU:", "'GPU:' needs a number"),
        ("GPU:-1", "'GPU:-1' needs a number"),
        ("GPU:0:1", "'GPU:0:1' needs a number"),
        ("/gpu:4294967296", "'gpu:4294967296' needs a number below 4294967296"),
        ("/job:", "'job:' needs a name"),
        ("/job:1x", "'job:1x' needs a name"),
        ("/device:", "'device:' needs a name"),
        ("/job:a/job:b", "'job:b' gives again"),
        ("/gpu:0/device:CPU", "'device:CPU' gives again"),
        ("//gpu:0", "'' is not a known part"),
        ("/gpu:0/", "'' is not a known part"),
        ("gpu:0/*", "'*' is not a known part"),
        ("GPU :0", "'GPU :0' is not a known part"),
        ("/job:\u{e9}", "needs a name"),
    ];
    for (text, expected) in cases {
        let error = text.parse::<DeviceSpec>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text:?}");
        assert!(error.message().contains(expected), "{text:?}: {error}");
        assert!(error.message().contains("expected something like"), "{text:?}: {error}");
    }
    let long = "/job:".to_owned() + &"\u{fc}".repeat(10_000);
    assert!(long.parse::<DeviceSpec>().unwrap_err().message().len() < 700);
}

#[test]
fn an_inner_scope_overrides_an_outer_one() {
    let cases = [
        ("/job:a/gpu:1", "/task:2", "/job:a/task:2/device:GPU:1"),
        ("/job:a", "/job:b", "/job:b"),
        ("/gpu:1", "/gpu:2", "/device:GPU:2"),
        ("/gpu:1", "gpu", "/device:GPU:1"),
        ("/gpu:1", "cpu", "/device:CPU"),
        ("/gpu:1", "/device:*:3", "/device:GPU:3"),
        ("*", "/cpu:0", "/device:CPU:0"),
        ("/cpu:0", "*", "/device:CPU:0"),
    ];
    for (outer, inner, merged) in cases {
        assert_eq!(spec(outer).merge(&spec(inner)).to_string(), merged, "{inner} in {outer}");
    }
}

#[test]
fn specs_match_full_names() {
    let full = DeviceSpec::local("gpu", 1);
    assert_eq!(full.to_string(), "/job:localhost/replica:0/task:0/device:GPU:1");
    assert_eq!((full.short().as_str(), spec("/job:x").short().as_str()), ("GPU:1", "/job:x"));
    assert!(full.is_complete() && !spec("/gpu:0").is_complete() && spec("*").is_open());
    for text in ["*", "GPU", "gpu:1", "/job:localhost", "/task:0/device:*:1"] {
        assert!(spec(text).matches(&full), "{text}");
    }
    for text in ["GPU:0", "cpu", "/job:worker", "/task:1", "/job:Localhost"] {
        assert!(!spec(text).matches(&full), "{text}");
    }
}

#[test]
fn specs_combine_or_conflict() {
    let combined = spec("/job:a").combine(&spec("gpu:1")).unwrap();
    assert_eq!(combined, spec("/job:a/gpu:1"));
    let cases = [
        ("/job:a", "/job:b/gpu", FieldConflict::Task),
        ("/task:1/cpu", "/task:2/gpu", FieldConflict::Task),
        ("gpu:0", "cpu:1", FieldConflict::Type),
        ("gpu:0", "gpu:1", FieldConflict::Index),
    ];
    for (a, b, field) in cases {
        assert_eq!(spec(a).combine(&spec(b)), Err(field), "{a} and {b}");
    }
}
