//! Graphs that run on two devices: values equal to the CPU's, and what crosses is what was predicted, once for
//! each tensor and destination.

use convoke::prelude::*;
use convoke::{DeviceOptions, Feed, RunMetadata};
use convoke_tests::{devices, ramp};

/// A graph with stages that only the CPU has kernels for, on numbers with 64 bits.
struct Split {
    name: &'static str,
    graph: Graph,
    input: Tensor,
    output: Tensor,
    shape: Vec<usize>,
}

/// What no GPU has a kernel for.
fn on_host(x: &Tensor) -> Tensor {
    x.cast(F64).exp().cast(F32)
}

fn in_front() -> Split {
    let graph = Graph::new();
    let input = graph.placeholder("x", F32, dims![None, 64]);
    let w = graph.device("GPU:0", || graph.variable("w", Init::glorot(1), F32, [64, 32]));
    let output = graph.device("GPU:0", || on_host(&input).matmul(&w).relu());
    Split { name: "in front", graph, input, output, shape: vec![7, 64] }
}

/// The second stage on the GPU takes up what the first made and what was fed.
fn in_between() -> Split {
    let graph = Graph::new();
    let input = graph.placeholder("x", F32, dims![None, 48]);
    let output = graph.device("GPU:0", || {
        let w = graph.variable("w", Init::glorot(2), F32, [48, 48]);
        let first = input.matmul(&w);
        let seen = on_host(&(&first * 0.1));
        (&first * &seen).matmul(&w) + &input
    });
    Split { name: "in between", graph, input, output, shape: vec![33, 48] }
}

fn at_the_end() -> Split {
    let graph = Graph::new();
    let input = graph.placeholder("x", F32, dims![None, 32]);
    let output = graph.device("GPU:0", || {
        let w = graph.variable("w", Init::glorot(3), F32, [32, 100]);
        let logits = input.matmul(&w).tanh();
        on_host(&logits) + on_host(&logits.sum(1).expand_dims(1))
    });
    Split { name: "at the end", graph, input, output, shape: vec![1, 32] }
}

#[test]
fn stages_that_only_the_host_has_split_a_graph() {
    for split in [in_front(), in_between(), at_the_end()] {
        let feed = ramp(&split.shape);
        let feeds: [Feed<'_>; 1] = [split.input.feed(&feed)];
        let run = |devices: &Devices| {
            let session = Session::new(&split.graph, devices).unwrap();
            session.run(&[], split.graph.initializers()).unwrap();
            let explanation = session.explain(&feeds, &split.output).unwrap();
            let run = session.run_with(&feeds, &split.output, Default::default()).unwrap();
            (run.0.to_vec::<f32>().unwrap(), run.1, explanation)
        };
        let (expected, ..) = run(&Devices::cpu());
        for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
            let at = format!("{} on {}", split.name, device.name);
            let (got, metadata, explanation) = run(&device.devices);
            for (got, expected) in got.iter().zip(&expected) {
                let error = (got - expected).abs() / expected.abs().max(1.0);
                assert!(error < 1e-4, "{at}: {got}, expected {expected}");
            }
            let prediction = explanation.prediction();
            assert!(metadata.submissions > 0, "{at}: {metadata}");
            assert_eq!(metadata.submissions, prediction.submissions as u64, "{at}: {metadata}");
            let transfers = &prediction.transfers;
            let bytes: u64 = transfers.iter().map(|transfer| transfer.bytes).sum();
            let crossed = metadata.uploads + metadata.downloads;
            assert_eq!(transfers.len() as u64, crossed, "{at}\n{metadata}\n{explanation}");
            assert_eq!(bytes, metadata.upload_bytes + metadata.download_bytes, "{at}");
        }
    }
}

#[test]
fn sizes_that_fill_no_word_cross_as_they_are() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", Bool, [5]);
        let y = g.device("GPU:0", || !&x);
        let session = Session::new(&g, &device.devices).unwrap();
        let feed = [x.feed([true, false, true, true, false])];
        let (y, run) = session.run_with(&feed, &y, Default::default()).unwrap();
        assert_eq!(y.to_vec::<bool>().unwrap(), [false, true, false, false, true]);
        assert_eq!((run.upload_bytes, run.download_bytes), (5, 5), "{run}");
        assert_eq!(run.predicted_transfer_bytes, 10);
    }
}

#[test]
fn what_a_gpu_has_is_not_sent_to_it_again() {
    let split = in_between();
    let feed = ramp(&[33, 48]);
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let session = Session::new(&split.graph, &device.devices).unwrap();
        session.run(&[], split.graph.initializers()).unwrap();
        for _ in 0..3 {
            let feeds = [split.input.feed(&feed)];
            let (_, run) = session.run_with(&feeds, &split.output, Default::default()).unwrap();
            // Up: the input, and what the host made; down: what it made that from, and the result.
            let bytes = 33 * 48 * 4;
            assert_eq!((run.uploads, run.downloads, run.submissions), (2, 2, 2), "{run}");
            assert_eq!((run.upload_bytes, run.download_bytes), (2 * bytes, 2 * bytes), "{run}");
        }
    }
}

/// Runs a step once, and gives what it did; that is what was predicted.
fn predicted(session: &Session, step: &Operation, at: &str) -> RunMetadata {
    let explanation = session.explain(&[], step).unwrap();
    let (_, run) = session.run_with(&[], step, Default::default()).unwrap();
    let prediction = explanation.prediction();
    let crossed = (run.submissions, run.uploads + run.downloads + run.copies);
    let expected = (prediction.submissions as u64, prediction.transfers.len() as u64);
    assert_eq!(crossed, expected, "{at}: {run}\n{explanation}");
    run
}

/// What the host computes of a variable is read by one segment of its device, and stored by another.
#[test]
fn what_the_host_computes_of_a_variable_is_read_and_stored() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let v = g.device("GPU:0", || g.variable("v", Init::Constant(0.5), F32, [40]));
        let step = v.assign(g.device("CPU:0", || on_host(v.value()))).operation();
        let session = Session::new(&g, &device.devices).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let run = predicted(&session, &step, &device.name);
        assert_eq!((run.submissions, run.uploads, run.downloads), (2, 1, 1), "{run}");
        let now = session.run(&[], v.value()).unwrap().to_vec::<f32>().unwrap();
        assert!(now.iter().all(|now| (now - 0.5f32.exp()).abs() < 1e-6), "{now:?}");
    }
}

/// Stores into variables of a GPU that has no work: a constant, and what another variable has.
#[test]
fn stores_without_work_share_a_submission() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let name = |name: &str, start: f64| g.variable(name, Init::Constant(start), F32, [6]);
        let [a, b, c] = g.device("GPU:0", || [name("a", 1.0), name("b", 2.0), name("c", 3.0)]);
        let stores = [a.assign(b.value()), b.assign(a.value()), c.assign(g.fill(&[6], 7f32))];
        let step = g.group(&stores.map(|store| store.operation()));
        let session = Session::new(&g, &device.devices).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let run = predicted(&session, &step, &device.name);
        assert_eq!(run.submissions, 1, "{run}");
        let now = session.run(&[], [a.value(), b.value(), c.value()]).unwrap();
        let first = now.map(|now| now.to_vec::<f32>().unwrap()[0]);
        assert_eq!(first, [2.0, 1.0, 7.0], "{}", device.name);
    }
}

/// Variables of two GPUs, of which one works after the other: what each has is copied, or kept, before the other stores
/// it.
#[test]
fn variables_of_two_devices_are_exchanged() {
    for device in devices().iter().skip(1) {
        let virtual_devices = vec![vec![1 << 28; 2]];
        let devices = device.open(DeviceOptions { virtual_devices, ..DeviceOptions::default() });
        for works in [false, true] {
            let g = Graph::new();
            let on = |at: usize| ["GPU:0", "GPU:1"][at];
            let variable = |at: usize| {
                let start = Init::Constant(1.0 + at as f64);
                g.device(on(at), || g.variable("v", start, F32, [6]))
            };
            let [a, b] = [variable(0), variable(1)];
            let exchange = [a.assign(b.value()).operation(), b.assign(a.value()).operation()];
            let mut all: Vec<&Operation> = exchange.iter().collect();
            let c = g.variable("c", Init::Zeros, F32, [6]);
            let work = g.device(on(1), || (b.value() * 2.0).tanh());
            let work = g.device(on(0), || c.assign(on_host(&work) + a.value())).operation();
            all.extend(works.then_some(&work));
            let step = g.group(all);
            let session = Session::new(&g, &devices).unwrap();
            session.run(&[], g.initializers()).unwrap();
            predicted(&session, &step, &device.name);
            let now = session.run(&[], [a.value(), b.value()]).unwrap();
            let first = now.map(|now| now.to_vec::<f32>().unwrap()[0]);
            assert_eq!(first, [2.0, 1.0], "{}, with work {works}", device.name);
        }
    }
}
