//! Random graphs of 5 to 60 operations: on every device, fused and not, simplified and not, they agree with the reference, and so
//! does what a variable becomes; scattered over devices, they move what was predicted. On the CPU neither fusion, nor the number of threads, nor a memory budget changes
//! a bit.
//!
//! `CONVOKE_RANDOM_GRAPHS=1000` runs as many instead of a hundred. A graph that fails is shrunk before it is
//! shown; its steps are the test's message.

use convoke::prelude::*;
use convoke::{DeviceOptions, Explanation, Result, RunMetadata, Shape};
use convoke_tests::{TestDevice, compare, devices, ramp, reference, several_adapters};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

/// What one step does, of which earlier tensors: counted from the last one, past the first from anew.
type Step = (u8, u8, u8);

const ROWS: usize = 6;
const COLUMNS: usize = 37;

/// The tensors that steps make of `x [ROWS, COLUMNS]`, `row [COLUMNS]` and `column [ROWS, 1]`.
fn build(x: &Tensor, row: &Tensor, column: &Tensor, steps: &[Step]) -> Vec<Tensor> {
    let mut made = vec![x.clone(), row.clone(), column.clone()];
    for &(what, a, b) in steps {
        let earlier = |back: u8| made[made.len() - 1 - back as usize % made.len()].clone();
        let (a, b) = (earlier(a), earlier(b));
        made.push(step(what, &a, &b));
    }
    made
}

fn sizes(x: &Tensor) -> Vec<usize> {
    x.dims().shape().map_or_else(Vec::new, |shape| shape.dims().to_vec())
}

/// Every result is continuous in what it is made of and stays small, so that devices cannot part by much.
fn step(what: u8, a: &Tensor, b: &Tensor) -> Tensor {
    let (own, other) = (sizes(a), sizes(b));
    let shapes = [&own, &other].map(|sizes| Shape::new(sizes).unwrap());
    // Where two do not broadcast, the second is made a scalar.
    let b = &if shapes[0].broadcast(&shapes[1]).is_ok() { b.clone() } else { b.mean(()) };
    let last = own.last().copied().unwrap_or(1) as f64;
    match what % 27 {
        0 => a + b,
        1 => a - b,
        2 => (a * b).tanh(),
        3 => a.maximum(b),
        4 => a.greater(b).select(a, b),
        5 => a / (b.square() + 1.0),
        6 => a.tanh(),
        7 => a.sigmoid(),
        8 => (a.abs() + 0.5).log(),
        9 => (a.square() + 0.1).sqrt().tanh(),
        10 => a.tanh().exp(),
        11 => a.relu() * 0.5 - 0.25,
        12 if !own.is_empty() => a.sum_keep(-1) * (1.0 / last),
        13 if !own.is_empty() => a.mean(0),
        14 if !own.is_empty() => a - a.max_keep(-1),
        15 if !own.is_empty() => a.min_keep(0) + a,
        16 => a.mean(()),
        17 if !own.is_empty() => a.softmax(-1),
        18 if !own.is_empty() => a.layer_norm(0.5, 0.1, 0.1),
        19 if !own.is_empty() => a.log_softmax(-1) * 0.1,
        20 if own.len() == 2 => a.transpose(),
        21 => a.reshape(&[-1]),
        22 if own.len() == 1 && own[0] % ROWS == 0 => a.reshape(&[ROWS as i64, -1]),
        23 if own.len() == 2 => a.matmul(a.transpose()) * (1.0 / last),
        24 if own.first().is_some_and(|&n| n > 1) => {
            let starts: Vec<usize> =
                own.iter().enumerate().map(|(i, n)| if i == 0 { n / 2 } else { 0 }).collect();
            let wanted = (0..own.len()).map(|i| if i == 0 { Some(1) } else { None });
            a.slice(&starts, &wanted.collect::<Vec<_>>())
        }
        25 if own.len() == 2 && own[0] <= ROWS => {
            a.graph().concat(&[&a.tanh(), &a.sum_keep(0), a, &(a * 0.5)], 0)
        }
        25 if own.len() == 2 && own[1] <= COLUMNS => a.graph().concat(&[a, &(a * 0.5)], 1),
        26 if own.len() == 2 && own[1].is_multiple_of(2) => {
            let sizes = [own[0] as i64, own[1] as i64 / 2, 2];
            (a * 0.5).reshape(&sizes).permute(&[2, 1, 0]).mean(2)
        }
        _ => a * 0.5 + 0.1,
    }
}

/// Runs a graph everywhere, and panics where something differs.
fn run(steps: &[Step]) {
    let feeds = [ramp(&[ROWS, COLUMNS]), ramp(&[COLUMNS]), ramp(&[ROWS, 1])];
    let g = Graph::new();
    let xs = feeds.each_ref().map(|x| g.placeholder("x", F32, x.dims().to_vec()));
    let v = g.variable("v", Init::Value(feeds[1].clone()), F32, [COLUMNS]);
    // In the reference the variable is what is fed for it.
    let state = g.placeholder("v", F32, [COLUMNS].to_vec());
    let graph = |state: &Tensor| {
        let made = build(&xs[0], &(&xs[1] + state), &xs[2], steps);
        let last: Vec<Tensor> = made.iter().rev().take(3).cloned().collect();
        let next = state - (&made[made.len() - 1].mean(()) + made[1].tanh()) * 0.1;
        (last, next)
    };
    let (expected, expected_next) = graph(&state);
    let (last, next) = graph(v.value());
    assert!(g.check().is_empty(), "{:?}", g.check());
    let update = v.assign(&next).operation();
    let outputs = expected.iter().chain([&expected_next]).map(Tensor::output);
    let fed = xs.iter().chain([&state]).map(Tensor::output);
    let fed: Vec<_> = fed.zip(feeds.iter().chain([&feeds[1]]).cloned()).collect();
    let truth = reference(&g, &outputs.collect::<Vec<_>>(), &fed).unwrap();
    for device in devices() {
        for (fuse, simplify) in [(true, true), (false, true), (true, false)] {
            let place = format!("{}, fused {fuse}, simplified {simplify}", device.name);
            let options =
                SessionOptions { fuse, simplify, soft_placement: false, ..Default::default() };
            let session = device.session_with(&g, options);
            session.run(&[], g.initializers()).unwrap();
            let feeds: Vec<Feed<'_>> = xs.iter().zip(&feeds).map(|(x, of)| x.feed(of)).collect();
            let (got, _) =
                session.run(&feeds, (&last, &update)).unwrap_or_else(|e| panic!("{place}: {e}"));
            for (got, truth) in got.iter().zip(&truth) {
                compare(&place, got, truth, Some(1e-3));
            }
            let now = session.run(&[], v.value()).unwrap();
            compare(&format!("{place}: the variable"), &now, &truth[3], Some(1e-3));
        }
    }
}

/// Runs a graph on the CPU in several ways, and panics where a bit differs.
fn same_bits(steps: &[Step]) {
    let g = Graph::new();
    let feeds = [ramp(&[ROWS, COLUMNS]), ramp(&[COLUMNS]), ramp(&[ROWS, 1])];
    let xs = feeds.each_ref().map(|x| g.placeholder("x", F32, x.dims().to_vec()));
    let made = build(&xs[0], &xs[1], &xs[2], steps);
    let mut first: Option<Vec<HostTensor>> = None;
    for (fuse, threads) in [(true, 1), (false, 1), (true, 3), (false, 2)] {
        let options = SessionOptions { fuse, threads, ..SessionOptions::default() };
        let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
        let feeds: Vec<Feed<'_>> = xs.iter().zip(&feeds).map(|(x, of)| x.feed(of)).collect();
        let got = session.run(&feeds, &made).unwrap();
        match &first {
            None => first = Some(got),
            Some(first) => {
                let same = first.iter().zip(&got).position(|(a, b)| a.bytes() != b.bytes());
                assert_eq!(same, None, "fused {fuse}, {threads} threads: of {} tensors", got.len());
            }
        }
    }
}

/// Runs a graph on the CPU with less memory than it likes, and panics where a bit differs. Gives how many times
/// it ran.
fn with_less_memory(steps: &[Step]) -> usize {
    let g = Graph::new();
    let feeds = [ramp(&[ROWS, COLUMNS]), ramp(&[COLUMNS]), ramp(&[ROWS, 1])];
    let xs = feeds.each_ref().map(|x| g.placeholder("x", F32, x.dims().to_vec()));
    let made = build(&xs[0], &xs[1], &xs[2], steps);
    let last = made.last().unwrap();
    let run = |host_budget_bytes: u64| {
        let options =
            SessionOptions { host_budget_bytes, fuse: false, ..SessionOptions::default() };
        let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
        let feeds: Vec<Feed<'_>> = xs.iter().zip(&feeds).map(|(x, of)| x.feed(of)).collect();
        session.run_with(&feeds, last, Default::default())
    };
    let (kept, with_room) = run(1 << 30).unwrap();
    let tight = [99, 95, 90, 80].map(|part| run(with_room.planned_bytes * part / 100));
    let check = |result: Result<(HostTensor, RunMetadata)>| match result {
        Ok((again, _)) => {
            assert_eq!(kept.bytes(), again.bytes());
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
            false
        }
    };
    tight.map(check).into_iter().filter(|&ran| ran).count()
}

/// Runs a graph with its steps scattered over the CPU and two GPUs, and panics where values differ from the
/// reference's, or what crosses from what was predicted. The GPUs are parts of one, which copy from each other.
fn scattered(steps: &[Step]) {
    let g = Graph::new();
    let feeds = [ramp(&[ROWS, COLUMNS]), ramp(&[COLUMNS]), ramp(&[ROWS, 1])];
    let xs = feeds.each_ref().map(|x| g.placeholder("x", F32, x.dims().to_vec()));
    let mut made = xs.to_vec();
    for &(what, a, b) in steps {
        let earlier = |back: u8| made[made.len() - 1 - back as usize % made.len()].clone();
        let (a, b) = (earlier(a), earlier(b));
        let device = ["CPU:0", "GPU:0", "GPU:1", "GPU:0"][usize::from(what / 27 % 4)];
        let next = g.device(device, || step(what, &a, &b));
        made.push(next);
    }
    let v = g.device("GPU:1", || g.variable("v", Init::Zeros, F32, [COLUMNS]));
    let last: Vec<Tensor> = made.iter().rev().take(3).cloned().collect();
    let update = v.assign_add(made[made.len() - 1].mean(()) * 0.1 + v.value()).operation();
    let fed: Vec<_> = xs.iter().map(Tensor::output).zip(feeds.iter().cloned()).collect();
    let outputs: Vec<_> = last.iter().map(Tensor::output).collect();
    let truth = reference(&g, &outputs, &fed).unwrap();
    let halves = |device: &TestDevice| {
        let virtual_devices = vec![vec![1 << 28; 2]];
        let devices = device.open(DeviceOptions { virtual_devices, ..DeviceOptions::default() });
        (device.name.clone(), devices)
    };
    // Parts of one adapter copy from each other, and adapters send through the host.
    let adapters = several_adapters(DeviceOptions::default());
    let adapters = adapters.map(|devices| ("several adapters".to_owned(), devices));
    for (name, devices) in devices().iter().skip(1).map(halves).chain(adapters) {
        let session = Session::new(&g, &devices).unwrap();
        session.run(&[], g.initializers()).unwrap();
        for _ in 0..2 {
            let feeds: Vec<Feed<'_>> = xs.iter().zip(&feeds).map(|(x, of)| x.feed(of)).collect();
            let run = session.run_with(&feeds, (&last, &update), Default::default());
            let ((got, ()), metadata) = run.unwrap_or_else(|e| panic!("{name}: {e}"));
            for (got, truth) in got.iter().zip(&truth) {
                compare(&name, got, truth, Some(1e-3));
            }
            as_predicted(&session.explain(&feeds, (&last, &update)).unwrap(), &metadata);
        }
    }
}

/// Panics where what a run moved, or how many submissions it made, is not what was predicted.
fn as_predicted(explanation: &Explanation, run: &RunMetadata) {
    let crossed = (
        run.uploads + run.downloads + run.copies,
        run.upload_bytes + run.download_bytes + run.copy_bytes,
    );
    let predicted = (run.predicted_transfers, run.predicted_transfer_bytes);
    assert_eq!(crossed, predicted, "{run}\n{explanation}");
    let prediction = explanation.prediction();
    let copies = prediction.transfers.iter().filter(|transfer| transfer.is_copy()).count();
    assert_eq!(run.copies, copies as u64, "{run}\n{explanation}");
    assert_eq!(run.submissions, prediction.submissions as u64, "{run}\n{explanation}");
}

/// Checks a share of the graphs; each `part` has its own.
fn share(part: u8, shares: u32, check: impl Fn(&[Step])) {
    let n: u32 = std::env::var("CONVOKE_RANDOM_GRAPHS").map_or(100, |n| n.parse().unwrap());
    let cases = n.div_ceil(shares);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[part; 32]);
    let steps = prop::collection::vec((any::<u8>(), 0u8..8, 0u8..16), 5..60);
    let outcome = TestRunner::new_with_rng(config, rng).run(&steps, |steps| {
        check(&steps);
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, steps)) => panic!("{why}\nthe smallest graph: {steps:?}"),
        Err(why) => panic!("{why}"),
    }
}

fn quarter(part: u8) {
    share(part, 4, |steps| {
        run(steps);
        same_bits(steps);
    });
}

#[test]
fn less_memory() {
    let ran = std::cell::Cell::new(0);
    share(4, 1, |steps| ran.set(ran.get() + with_less_memory(steps)));
    println!("{} runs with less memory than planned", ran.get());
    assert!(ran.get() > 0, "no graph ran with less memory than planned");
}

#[test]
fn over_three_devices() {
    share(5, 4, scattered);
}

#[test]
fn first_quarter() {
    quarter(0);
}

#[test]
fn second_quarter() {
    quarter(1);
}

#[test]
fn third_quarter() {
    quarter(2);
}

#[test]
fn fourth_quarter() {
    quarter(3);
}

/// A path from one cluster to another may go through one that begins later than both.
#[test]
fn a_path_through_a_later_cluster() {
    same_bits(&[
        (128, 2, 0),
        (8, 4, 13),
        (164, 2, 15),
        (203, 5, 4),
        (69, 4, 6),
        (30, 3, 12),
        (31, 5, 10),
        (197, 3, 12),
        (7, 2, 5),
        (232, 2, 6),
        (7, 2, 13),
        (13, 4, 7),
        (46, 5, 6),
        (133, 1, 10),
        (2, 7, 5),
        (223, 3, 15),
        (107, 7, 8),
        (55, 3, 14),
        (188, 4, 6),
        (116, 5, 4),
        (194, 4, 12),
        (108, 4, 8),
        (73, 1, 8),
        (60, 5, 6),
        (172, 3, 3),
        (167, 7, 7),
        (242, 4, 2),
        (241, 5, 6),
        (246, 4, 0),
        (86, 2, 1),
        (222, 1, 4),
        (57, 6, 6),
    ]);
}
