//! Memory budgets: what is cheap is computed again where they ask for it; what does not fit is refused before it
//! runs, and the next run is fine.

use convoke::prelude::*;
use convoke::{DeviceOptions, OnDevice};
use convoke_tests::{devices, ramp};

const N: usize = 128;
const WIDE: usize = 4 * N;
/// An N x N tensor of f32.
const SMALL: u64 = (4 * N * N) as u64;
/// The sum that comes back.
const SUM: u64 = 4;

/// Twice the input is needed at the start and at the end; in between are a wide product and a narrow one.
fn model(g: &Graph) -> (Tensor, Tensor) {
    let x = g.placeholder("x", F32, dims![None, N]);
    let widen = g.constant(ramp(&[N, WIDE]));
    let narrow = g.constant(ramp(&[WIDE, N]));
    let doubled = &x * 2.0;
    let out = (doubled.matmul(&widen).matmul(&narrow) + doubled).sum(());
    (x, out)
}

#[test]
fn the_host_computes_again_rather_than_keep() {
    let g = Graph::new();
    let (x, out) = model(&g);
    let run = |budget: u64, rows: usize| {
        let options = SessionOptions { host_budget_bytes: budget, ..Default::default() };
        let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
        let small = session.run(&[x.feed(ramp(&[4, N]))], &out);
        assert!(small.is_ok(), "a small run under {budget} bytes: {small:?}");
        let result = session.run_with(&[x.feed(ramp(&[rows, N]))], &out, Default::default());
        assert!(session.run(&[x.feed(ramp(&[4, N]))], &out).is_ok(), "after {rows} rows");
        result
    };
    // The wide product with what it is of, or with what is made of it: 4 + 1; twice the input on top. The sum has memory of
    // its own from the start.
    let (kept, with_room) = run(6 * SMALL + SUM, N).unwrap();
    assert_eq!([with_room.live_bytes, with_room.planned_bytes], [6 * SMALL + SUM; 2]);
    let (again, tight) = run(5 * SMALL + SUM, N).unwrap();
    assert_eq!([tight.live_bytes, tight.planned_bytes], [5 * SMALL + SUM; 2]);
    assert_eq!(kept, again);
    assert!(tight.kernel_bytes > with_room.kernel_bytes, "{tight}");
    let (needed, budget) = (5 * SMALL + SUM, 5 * SMALL + SUM - 1);
    let error = run(budget, N).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    let says = format!("needs {needed} bytes of host memory, and its budget is {budget}");
    assert!(error.message().contains(&says), "{error}");
}

#[test]
fn gpus_compute_again_rather_than_keep() {
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let (x, out) = model(&g);
        let run = |gpu_budget_bytes: Option<u64>| {
            let devices = device.open(DeviceOptions { gpu_budget_bytes, ..Default::default() });
            let options = SessionOptions { policy: device.policy.clone(), ..Default::default() };
            let session = Session::with_options(&g, &devices, options).unwrap();
            session.run_with(&[x.feed(ramp(&[N, N]))], &out, Default::default())
        };
        let (kept, with_room) = run(None).unwrap();
        // Eight for the constants, one for the input, five for what lives at once, and two for what crosses: each way
        // takes 64 KiB at least.
        let budget = 16 * SMALL + SMALL / 2;
        let (again, tight) = run(Some(budget)).unwrap();
        assert_eq!(kept, again, "{}", device.name);
        assert!(tight.device_bytes <= budget, "{}: {tight}", device.name);
        assert!(tight.kernel_bytes > with_room.kernel_bytes, "{}: {tight}", device.name);
        assert!(tight.planned_bytes < with_room.planned_bytes, "{}: {tight}", device.name);
        // The constants alone take eight.
        let error = run(Some(8 * SMALL)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}: {error}", device.name);
    }
}

#[test]
fn memory_that_no_run_uses_makes_room() {
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, N]);
        let v = g.variable("v", Init::Zeros, F32, []);
        let sum = (&x * 2.0).matmul(g.constant(ramp(&[N, N]))).sum(());
        let step = v.assign_add(&sum).operation();
        let open = |gpu_budget_bytes: Option<u64>| {
            let devices = device.open(DeviceOptions { gpu_budget_bytes, ..Default::default() });
            let options = SessionOptions { policy: device.policy.clone(), ..Default::default() };
            let session = Session::with_options(&g, &devices, options).unwrap();
            session.run(&[], g.initializers()).unwrap();
            session
        };
        let run = |session: &Session, rows: usize| {
            let feed = ramp(&[rows, N]);
            session.run_with(&[x.feed(&feed)], (&sum, &step), Default::default())
        };
        let free = open(None);
        let needs = |rows: usize| run(&free, rows).unwrap().1.device_bytes;
        let (one, both) = (needs(8 * N), needs(9 * N));
        // Room for either size, but not for both at once.
        let budget = (one + both) / 2;
        let session = open(Some(budget));
        for rows in [8 * N, 9 * N, 8 * N] {
            let (_, metadata) = run(&session, rows).unwrap();
            assert!(metadata.device_bytes <= budget, "{}: {metadata}", device.name);
        }
        // The first that do not fit fail when they ask for memory; placement tells of larger ones that they can't.
        let mut told = [false; 2];
        for rows in [12, 14, 16, 20, 24, 32, 64] {
            let before = session.run(&[], &v.value()).unwrap();
            let Err(error) = run(&session, rows * N) else { continue };
            assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}: {error}", device.name);
            let (tried, placed) = ("asked for", format!("GPU:0 has {budget} bytes"));
            if let Some((_, numbers)) = error.message().split_once(tried) {
                let digits = numbers.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
                let numbers: Vec<u64> = digits.map(|n| n.parse().unwrap()).collect();
                let [asked, in_use, of, ..] = numbers[..] else { panic!("{error}") };
                assert_eq!(of, budget, "{}: {error}", device.name);
                assert!(asked > 0 && asked + in_use > budget, "{}: {error}", device.name);
                told[0] = true;
            }
            told[1] |= error.message().contains(&placed);
            assert_eq!(session.run(&[], &v.value()).unwrap(), before, "a failed run adds nothing");
        }
        assert_eq!(told, [true, true], "{}", device.name);
        run(&session, 9 * N).unwrap();
    }
}

/// What a run takes of a device is what was predicted, but for parameters and alignment, and as much suffices.
#[test]
fn a_run_takes_what_was_predicted() {
    const SLACK: u64 = 16 << 10;
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, N]);
        let w = g.constant(ramp(&[N, N]));
        let v = g.device("GPU:0", || g.variable("v", Init::Zeros, F32, [N, N]));
        let first = g.device("GPU:0", || (x.matmul(&w) + v.value().sum(())).tanh());
        let seen = g.device("CPU:0", || first.cast(F64).exp().cast(F32));
        let step = g.device("GPU:0", || {
            let second = (&first * &seen + &x).matmul(&w);
            v.assign(second.transpose().matmul(&x) * 1e-3).operation()
        });
        let run = |gpu_budget_bytes: Option<u64>| {
            let devices = device.open(DeviceOptions { gpu_budget_bytes, ..Default::default() });
            let session = Session::new(&g, &devices).unwrap();
            session.run(&[], g.initializers()).unwrap();
            let feed = ramp(&[16 * N, N]);
            let feeds = [x.feed(&feed)];
            let explanation = session.explain(&feeds, (&first, &step)).unwrap();
            let predicted = explanation.prediction().devices[1].peak_bytes;
            let run = session.run_with(&feeds, (&first, &step), Default::default());
            (predicted, run.map(|(_, run)| run))
        };
        let (predicted, metadata) = run(None);
        let metadata = metadata.unwrap();
        assert_eq!(metadata.submissions, 2, "{}: {metadata}", device.name);
        // Constants and parameters were sent through 64 KiB of their own.
        let (taken, kept) = (metadata.device_bytes, 64 << 10);
        assert!(taken <= predicted + SLACK + kept, "{}: {predicted}, {metadata}", device.name);
        assert!(taken + SLACK >= predicted / 10 * 9, "{}: {predicted}, {metadata}", device.name);
        let (again, tight) = run(Some(predicted + SLACK));
        let tight = tight.unwrap_or_else(|e| panic!("{}: {e}", device.name));
        assert_eq!((again, tight.submissions), (predicted, 2), "{}: {tight}", device.name);
        assert!(tight.device_bytes <= predicted + SLACK, "{}: {tight}", device.name);
    }
}

/// Two segments of a device beside each other: the second waits for the first where there is staging memory for one.
#[test]
fn a_segment_that_finds_no_memory_waits_for_others() {
    const MIB: u64 = 1 << 20;
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let [a, b] = ["a", "b"].map(|name| g.placeholder(name, F32, dims![512, 512]));
        let small = g.placeholder("small", F32, dims![1]);
        let first = g.device("GPU:0", || a.tanh());
        let seen = g.device("CPU:0", || small.cast(F64).exp().cast(F32));
        let second = g.device("GPU:0", || (&b * &seen).tanh());
        let feeds = [ramp(&[512, 512]), ramp(&[1])];
        let run = |gpu_budget_bytes: Option<u64>| {
            let devices = device.open(DeviceOptions { gpu_budget_bytes, ..Default::default() });
            let session = Session::new(&g, &devices).unwrap();
            let feeds = [a.feed(&feeds[0]), b.feed(&feeds[0]), small.feed(&feeds[1])];
            let fetch = || (&first, OnDevice(&second));
            let explanation = session.explain(&feeds, fetch()).unwrap();
            let predicted = explanation.prediction().devices[1].peak_bytes;
            let run = session.run_with(&feeds, fetch(), Default::default());
            let ((first, second), run) = run.unwrap_or_else(|e| panic!("{}: {e}", device.name));
            ((first, second.to_host().unwrap()), run, predicted)
        };
        let (expected, roomy, predicted) = run(None);
        assert_eq!((roomy.submissions, roomy.overlaps), (2, 2), "{}: {roomy}", device.name);
        // What stays is no part of the prediction: it is computed, and then has memory of its own.
        let budget = predicted + 2 * MIB + (16 << 10);
        assert!(roomy.device_bytes > budget + MIB, "{}: {budget}, {roomy}", device.name);
        let (found, tight, _) = run(Some(budget));
        assert_eq!(found, expected, "{}", device.name);
        assert!(tight.device_bytes <= budget, "{}: {tight}", device.name);
    }
}

/// Two values that only a result without elements needs: putting them off in turns would never end.
#[test]
fn values_for_nothing_do_not_keep_the_compiler_busy() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![N]);
    let nothing = |y: Tensor| y.slice(&[0], &[Some(0)]);
    let out = g.concat(&[&nothing(x.sqrt()), &nothing(x.exp())], 0);
    let options =
        SessionOptions { host_budget_bytes: 6 * N as u64, fuse: false, ..Default::default() };
    let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
    match session.run(&[x.feed(ramp(&[N]))], &out) {
        Ok(out) => assert_eq!(out.dims(), [0]),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}"),
    }
}
