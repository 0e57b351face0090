//! Sessions that learn from their own runs.

use std::time::Duration;

use convoke::prelude::*;
use convoke::{RunMetadata, RunOptions};
use convoke_tests::{devices, ramp, slow, slow_on_host};

const HOST_TIME: Duration = Duration::from_millis(30);

fn options() -> SessionOptions {
    SessionOptions { autotune: true, ..SessionOptions::default() }
}

#[test]
fn what_runs_took_decides_where_the_next_ones_go() {
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None]);
        let v = g.variable("v", Init::Zeros, F32, [4]);
        let y = slow_on_host(&x, HOST_TIME) + &v;
        let step = v.assign_add(&y * 0.5).operation();
        let alone = device.alone();
        let session = Session::with_options(&g, &alone.devices, options()).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let feed = ramp(&[4]);
        let runs: Vec<RunMetadata> = (0..24)
            .map(|_| {
                let run = session.run_with(&[x.feed(&feed)], &step, RunOptions::default());
                run.unwrap_or_else(|e| panic!("{}: {e}", device.name)).1
            })
            .collect();
        // Two runs, then five that are timed, on the host; then the same on the GPU, which remains.
        let tunes: Vec<usize> = (0..runs.len()).filter(|&i| runs[i].tunes).collect();
        assert_eq!(tunes, [2, 3, 4, 5, 6, 9, 10, 11, 12, 13], "{}", device.name);
        for (i, run) in runs.iter().enumerate() {
            assert_eq!(run.submissions, u64::from(i > 6), "{}, run {i}", device.name);
            assert!(run.nodes.is_empty() && run.phases.is_empty(), "nobody asked for times");
        }
        let again: Vec<usize> = (0..runs.len()).filter(|&i| !runs[i].program_cached).collect();
        assert_eq!(again, [0, 7, 14], "{}", device.name);
        // The variable has moved along with what it was: v becomes 1.5 v + x / 2 in each run.
        let v = session.run(&[], v.value()).unwrap().to_vec::<f32>().unwrap();
        for (v, x) in v.iter().zip(feed.to_vec::<f32>().unwrap()) {
            let expected = (0..24).fold(0.0, |v, _| 1.5 * v + f64::from(x) / 2.0);
            let error = (f64::from(*v) - expected).abs();
            assert!(error <= 1e-5 * expected.abs().max(1.0), "{}: {v} for {expected}", device.name);
        }
        let explanation = session.explain(&[x.feed(&feed)], &step).unwrap();
        let report = explanation.node("slow").unwrap().to_string();
        let line = report.lines().find_map(|line| line.trim().strip_prefix("CPU:0: "));
        let time = line.and_then(|line| line.split_once(" ms by itself in runs"));
        let time: f64 = time.and_then(|(time, _)| time.parse().ok()).expect(&report);
        assert!(time >= HOST_TIME.as_secs_f64() * 1e3, "{report}");
    }
}

/// A graph whose middle only the host can do, and that asks for no device: what runs took splits it in three.
#[test]
fn a_graph_with_a_stage_of_the_host_is_split_by_itself() {
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None]);
        let middle = slow_on_host(&x, HOST_TIME).cast(F64).exp().cast(F32);
        let y = slow_on_host(&middle, HOST_TIME);
        let alone = device.alone();
        let session = Session::with_options(&g, &alone.devices, options()).unwrap();
        let feed = ramp(&[4]);
        let runs: Vec<(HostTensor, RunMetadata)> = (0..30)
            .map(|_| session.run_with(&[x.feed(&feed)], &y, RunOptions::default()).unwrap())
            .collect();
        let (first, last) = (&runs[0], &runs[29]);
        assert_eq!((first.1.submissions, first.1.uploads), (0, 0), "{}", device.name);
        // The input and what the host made go up, what it makes that of and the result come down: four floats each.
        let RunMetadata { submissions, uploads, downloads, .. } = last.1;
        assert_eq!((submissions, uploads, downloads), (2, 2, 2), "{}: {}", device.name, last.1);
        let bytes = last.1.upload_bytes + last.1.download_bytes;
        assert_eq!((bytes, last.1.predicted_transfer_bytes), (64, 64), "{}", device.name);
        let explanation = session.explain(&[x.feed(&feed)], &y).unwrap();
        let places: Vec<usize> = explanation.segments().iter().map(|s| s.device).collect();
        assert_eq!(places, [1, 0, 1], "{}: {explanation}", device.name);
        for (y, _) in &runs {
            for (y, x) in y.to_vec::<f32>().unwrap().iter().zip(feed.to_vec::<f32>().unwrap()) {
                assert!((y - x.exp()).abs() <= 1e-6 * x.exp(), "{}: {y}", device.name);
            }
        }
    }
}

#[test]
fn without_it_no_run_is_timed() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let y = slow(&x, Duration::from_millis(1));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for _ in 0..4 {
        let (_, run) = session.run_with(&[x.feed(ramp(&[4]))], &y, Default::default()).unwrap();
        assert!(!run.tunes);
    }
}
