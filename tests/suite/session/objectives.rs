//! What a session's placement makes small: all work together, or the time until a run is done.

use convoke::prelude::*;
use convoke::{DeviceKind, Objective, RunOptions};
use convoke_tests::{devices, ramp};

/// Chains of functions with nothing in common but their input.
fn chains(g: &Graph, x: &Tensor, n: usize) -> Vec<Tensor> {
    let chain = |i: usize| {
        let mut y = x * (1.0 + i as f64 / 64.0);
        for _ in 0..12 {
            y = y.tanh() * 1.5;
        }
        y.sum(())
    };
    (0..n).map(|i| g.scope(&format!("chain{i}"), || chain(i))).collect()
}

/// A driver that computes on the CPU does no chain in less time than the CPU itself, so that all together they take least
/// there. Beside each other the two are done before one of them alone.
#[test]
fn the_makespan_uses_devices_beside_each_other() {
    let is_software = |d: &&convoke_tests::TestDevice| {
        d.devices.list().get(1).is_some_and(|gpu| gpu.kind == DeviceKind::SoftwareGpu)
    };
    for device in devices().iter().filter(is_software) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, [1 << 16]);
        let chains = chains(&g, &x, 32);
        let feed = ramp(&[1 << 16]);
        let feeds = [x.feed(&feed)];
        let placed = |objective: Objective| {
            let options = SessionOptions { objective, threads: 1, ..SessionOptions::default() };
            let session = Session::with_options(&g, &device.devices, options).unwrap();
            let explanation = session.explain(&feeds, &chains).unwrap();
            let (y, run) = session.run_with(&feeds, &chains, RunOptions::default()).unwrap();
            let y: Vec<f32> = y.iter().map(|y| y.scalar::<f32>().unwrap()).collect();
            (y, run, explanation)
        };
        let (expected, alone, total) = placed(Objective::Total);
        let (got, run, makespan) = placed(Objective::Makespan);
        let places = |explanation: &convoke::Explanation| {
            let on =
                |device: usize| explanation.items().iter().filter(|i| i.device == device).count();
            [on(0), on(1)]
        };
        assert_eq!(places(&total)[1], 0, "{}: {total}", device.name);
        assert!(places(&makespan).iter().all(|&n| n > 0), "{}: {makespan}", device.name);
        let (sooner, later) = (makespan.prediction(), total.prediction());
        assert!(sooner.makespan < later.makespan, "{}: {makespan}\n{total}", device.name);
        assert!(sooner.total > later.total, "{}: {makespan}\n{total}", device.name);
        assert_eq!((alone.submissions, alone.overlaps), (0, 0), "{}: {alone}", device.name);
        assert!(run.submissions > 0 && run.overlaps > 0, "{}: {run}", device.name);
        for (got, expected) in got.iter().zip(expected) {
            let error = (got - expected).abs() / expected.abs().max(1.0);
            assert!(error < 1e-3, "{}: {got}, expected {expected}", device.name);
        }
    }
}
