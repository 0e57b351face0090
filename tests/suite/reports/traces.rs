//! Traces: valid by the format's schema, with lanes that nest and bytes that add up.

use std::collections::{BTreeMap, HashSet};

use convoke::prelude::*;
use convoke::{RunMetadata, RunOptions, Timings, Trace};
use convoke_tests::{devices, ramp};
use serde_json::Value;

use super::Staged;
use super::schema::fault;

/// Times are microseconds with nanoseconds as decimals.
const NANO: f64 = 1e-3;

/// The events of a trace that keeps the schema, in which lanes nest and have names.
pub fn checked(trace: &Trace) -> Vec<Value> {
    let schema: Value = serde_json::from_str(include_str!("trace.schema.json")).unwrap();
    let json: Value = serde_json::from_str(&trace.to_json()).unwrap();
    assert_eq!(fault(&schema, &json, ""), None);
    let events = json["traceEvents"].as_array().unwrap().clone();
    let lane = |event: &Value| (event["pid"].as_u64().unwrap(), event["tid"].as_u64());
    let named = |name: &str| -> HashSet<(u64, Option<u64>)> {
        events.iter().filter(|event| event["name"] == name).map(lane).collect()
    };
    let (processes, threads) = (named("process_name"), named("thread_name"));
    let mut lanes: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
    let mut open = HashSet::new();
    for event in &events {
        assert!(processes.contains(&(lane(event).0, None)), "{event}");
        match event["ph"].as_str().unwrap() {
            "X" => {
                assert!(threads.contains(&lane(event)), "{event}");
                let start = event["ts"].as_f64().unwrap();
                let end = start + event["dur"].as_f64().unwrap();
                lanes.entry(lane(event)).or_default().push((start, end));
            }
            "b" => assert!(open.insert(event["id"].as_u64().unwrap()), "{event}"),
            "e" => assert!(open.remove(&event["id"].as_u64().unwrap()), "{event}"),
            _ => {}
        }
    }
    assert!(open.is_empty(), "segments that never end: {open:?}");
    for (lane, mut spans) in lanes {
        spans.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
        let mut outer: Vec<f64> = Vec::new();
        for (start, end) in spans {
            outer.retain(|&until| until > start + NANO);
            let fits = outer.iter().all(|&until| end <= until + 2.0 * NANO);
            assert!(fits, "{lane:?}: {start} to {end} goes beyond one of {outer:?}");
            outer.push(end);
        }
    }
    events
}

/// The sum over the events of a name and category.
pub fn sum(events: &[Value], category: &str, name: &str, field: &str) -> u64 {
    let of = events.iter().filter(|event| event["cat"] == category && event["name"] == name);
    of.map(|event| event["args"][field].as_u64().unwrap()).sum()
}

fn check_run(run: &RunMetadata) {
    let events = checked(&run.to_trace());
    assert_eq!(sum(&events, "transfer", "upload", "bytes"), run.upload_bytes, "{run}");
    assert_eq!(sum(&events, "transfer", "download", "bytes"), run.download_bytes, "{run}");
    let kernels: Vec<&Value> = events.iter().filter(|event| event["cat"] == "kernel").collect();
    assert_eq!(kernels.len(), run.nodes.len(), "{run}");
    let compiled = events.iter().filter(|e| e["name"] == "compile" || e["name"] == "prepare");
    assert_eq!(compiled.count(), if run.program_cached { 0 } else { 2 });
    // Each tensor that crosses is named once, by an upload or a download.
    let tensors = |name: &str| -> usize {
        let of = events.iter().filter(|event| event["cat"] == "transfer" && event["name"] == name);
        of.map(|event| event["args"]["tensors"].as_array().unwrap().len()).sum()
    };
    assert_eq!(tensors("upload") as u64, run.uploads, "{run}");
    assert_eq!(tensors("download") as u64, run.downloads, "{run}");
    // Memory as it was, and as it is.
    let counters = events.iter().filter(|event| event["ph"] == "C").map(|event| &event["args"]);
    let counted: Vec<[u64; 2]> = counters
        .map(|args| ["host bytes", "device bytes"].map(|name| args[name].as_u64().unwrap()))
        .collect();
    let before =
        [run.host_bytes - run.host_bytes_allocated, run.device_bytes - run.device_bytes_allocated];
    assert_eq!(counted, [before, [run.host_bytes, run.device_bytes]], "{run}");
    let spans = events.iter().filter(|event| event["ph"] == "b").count();
    assert_eq!(spans as u64, run.submissions, "{run}");
    let whole = events.iter().find(|event| event["cat"] == "run").unwrap();
    let end = whole["ts"].as_f64().unwrap() + whole["dur"].as_f64().unwrap();
    for event in events.iter().filter(|event| event["ph"] == "X") {
        let until = event["ts"].as_f64().unwrap() + event["dur"].as_f64().unwrap();
        assert!(
            until <= end + NANO || event["args"]["aligned"].is_string(),
            "{event} ends at {end}"
        );
    }
}

#[test]
fn a_run_is_a_valid_trace() {
    for device in devices() {
        let staged = Staged::new(device);
        let cold = staged.run();
        let run = staged.run();
        assert!(!cold.program_cached && run.program_cached);
        for run in [&cold, &run] {
            check_run(run);
        }
        // 6 rows of 8 floats, and the weights.
        let first = checked(&run.to_trace()).into_iter().find(|event| event["cat"] == "kernel");
        let args = first.unwrap()["args"].clone();
        let shapes = args["shapes"].as_str().unwrap();
        assert!(shapes.starts_with("f32[6, 8], f32[8, 4] -> f32[6, 4]"), "{args}");
        assert!(args["kernel"].as_str().unwrap().starts_with("matmul"), "{args}");
        let is_gpu = device.devices.list().len() > 1;
        let n_transfers = if is_gpu { 4 } else { 0 };
        assert_eq!(run.transfers.len(), n_transfers, "{}: {run}", device.name);
    }
}

#[test]
fn a_plain_run_records_nothing() {
    for device in devices() {
        let staged = Staged::new(device);
        for timings in [Timings::Host, Timings::Devices] {
            let options = RunOptions { timings, ..RunOptions::default() };
            let run = staged.session.run_with(&staged.feeds(), &staged.y, options).unwrap().1;
            assert!(run.begun.is_none() && run.phases.is_empty() && run.transfers.is_empty());
            // It shows as a whole.
            let events = checked(&run.to_trace());
            assert_eq!(events.iter().filter(|event| event["ph"] == "X").count(), 1);
        }
    }
}

#[test]
fn a_status_word_is_no_tensor_that_crosses() {
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let index = g.placeholder("index", I32, [1]);
        let row = g.constant(ramp(&[4])).gather(&index, 0);
        let session = device.session(&g);
        let timed = RunOptions::timed();
        let run = session.run_with(&[index.feed([2])], &row, timed).unwrap().1;
        check_run(&run);
        // One index, one float.
        assert_eq!((run.downloads, run.transfers.len()), (1, 2), "{run}");
        assert_eq!((run.upload_bytes, run.download_bytes), (4, 4), "{run}");
    }
}

#[test]
fn runs_share_a_time_line() {
    for device in devices() {
        let staged = Staged::new(device);
        let runs: Vec<RunMetadata> = std::thread::scope(|scope| {
            let one = scope.spawn(|| [staged.run(), staged.run(), staged.run()]);
            let other = [staged.run(), staged.run(), staged.run()];
            one.join().unwrap().into_iter().chain(other).collect()
        });
        let mut trace = Trace::new();
        assert!(trace.is_empty());
        // In any order.
        for (i, run) in runs.iter().enumerate() {
            trace.add(&format!("run {i}"), run);
        }
        let events = checked(&trace);
        let starts: Vec<f64> = (0..6)
            .map(|i| {
                let name = format!("run {i}");
                events.iter().find(|e| e["name"] == name).unwrap()["ts"].as_f64().unwrap()
            })
            .collect();
        assert!(starts[0] < starts[1] && starts[1] < starts[2], "{starts:?}");
        let bytes: u64 = runs.iter().map(|run| run.upload_bytes).sum();
        assert_eq!(sum(&events, "transfer", "upload", "bytes"), bytes);
    }
}
