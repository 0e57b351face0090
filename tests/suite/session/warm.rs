//! A warm run: nothing is made on the device, one submission for each GPU segment, many threads.

use std::time::Duration;

use convoke::models::{Classifier, Model, OptimizerKind};
use convoke::prelude::*;
use convoke::{Counters, RunOptions, Timings};
use convoke_tests::{TestDevice, devices, ramp};

fn classifier(optimizer: OptimizerKind) -> Classifier {
    Classifier::new(Model::Mlp, [8, 8], 10, optimizer, 0.05, 1)
}

fn ready(device: &TestDevice, c: &Classifier) -> Session {
    let session = device.session(&c.graph);
    session.run(&[], c.graph.initializers()).unwrap();
    session
}

#[test]
fn a_training_step_makes_nothing() {
    for device in devices().iter().map(TestDevice::alone) {
        let c = classifier(OptimizerKind::Adam);
        let session = ready(&device, &c);
        let labels: Vec<i32> = (0..20).map(|i| i % 10).collect();
        let images = ramp(&[20, 64]);
        let feeds = [c.images.feed(&images), c.labels.feed(&labels)];
        for _ in 0..2 {
            session.run(&feeds, (&c.loss, &c.step)).unwrap();
        }
        let counts = || device.devices.gpu_counters(1).map(|(own, wgpu)| (made(&own), wgpu));
        let (before, on_gpu) = (counts(), device.devices.list().len() > 1);
        assert_eq!(before.is_some(), on_gpu);
        for i in 0..100 {
            let (_, run) =
                session.run_with(&feeds, (&c.loss, &c.step), Default::default()).unwrap();
            assert!(run.plan_cached && run.program_cached, "{}", device.name);
            let made = (run.device_bytes_allocated, run.host_bytes_allocated, run.pipelines_built);
            assert_eq!(made, (0, 0, 0), "{}", device.name);
            assert_eq!(run.submissions, u64::from(on_gpu), "{}: {run}", device.name);
            if on_gpu {
                assert_eq!((run.uploads, run.downloads), (2, 1), "{}: {run}", device.name);
                assert_eq!(run.upload_bytes, (20 * 64 + 20) * 4);
            }
            if i == 50 {
                assert_eq!(counts(), before, "{} during the runs", device.name);
            }
        }
        assert_eq!(counts(), before, "{} after the runs", device.name);
    }
}

/// Buffers, their bytes, bind groups, pipelines and shader modules made so far.
fn made(counters: &Counters) -> [u64; 5] {
    [
        counters.buffers_created,
        counters.buffer_bytes_created,
        counters.bind_groups_created,
        counters.pipelines_created,
        counters.shader_modules_created,
    ]
}

#[test]
fn new_batch_sizes_build_no_pipeline() {
    let gpus = devices().iter().filter(|d| d.devices.list().len() > 1);
    for device in gpus.map(TestDevice::alone) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 16]);
        let w = g.variable("w", Init::glorot(1), F32, [16, 4]);
        let y = x.matmul(&w).relu().sum(1);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let pipelines = |batch: usize| {
            let feeds = [x.feed(ramp(&[batch, 16]))];
            let (_, run) = session.run_with(&feeds, &y, Default::default()).unwrap();
            (run.pipelines_built, run.pipelines_found)
        };
        let (built, found) = pipelines(33);
        assert!(built > 0, "{}", device.name);
        for batch in 34..134 {
            assert_eq!(pipelines(batch), (0, built + found), "{} at {batch}", device.name);
        }
        // The program is there, and asks for none.
        assert_eq!(pipelines(133), (0, 0), "{}", device.name);
    }
}

/// The same of a training step. Small batches have kernels of their own, which are few as well.
#[test]
fn new_batch_sizes_of_a_training_step_build_no_pipeline() {
    let gpus = devices().iter().filter(|d| d.devices.list().len() > 1);
    for device in gpus.map(TestDevice::alone) {
        let g = Graph::with_seed(1);
        let x = g.placeholder("x", F32, dims![None, 20]);
        let labels = g.placeholder("labels", I32, dims![None]);
        let [w, v] = [("w", [20, 16]), ("v", [16, 10])]
            .map(|(name, sizes)| g.variable(name, Init::glorot(1), F32, sizes));
        let loss = x.matmul(&w).relu().matmul(&v).cross_entropy(&labels).mean(());
        let step = Adam::new(0.01).minimize(&loss);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let built = |batch: usize| {
            let classes: Vec<i32> = (0..batch as i32).map(|i| i % 10).collect();
            let feeds = [x.feed(ramp(&[batch, 20])), labels.feed(classes)];
            session
                .run_with(&feeds, (&loss, &step), RunOptions::default())
                .unwrap()
                .1
                .pipelines_built
        };
        assert!(built(65) > 0);
        for batch in 66..=165 {
            assert_eq!(built(batch), 0, "{} at {batch}", device.name);
        }
        let small: Vec<usize> = (1..=64).rev().filter(|&batch| built(batch) > 0).collect();
        assert!(small.len() <= 6, "{}: {small:?}", device.name);
    }
}

#[test]
fn many_threads_run_one_session() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 16]);
        let w = g.variable("w", Init::glorot(1), F32, [16, 4]);
        let y = x.matmul(&w).softmax(-1);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let inputs = ramp(&[9, 16]);
        let truth = session.run(&[x.feed(&inputs)], &y).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        assert_eq!(session.run(&[x.feed(&inputs)], &y).unwrap(), truth);
                    }
                });
            }
        });
    }
}

#[test]
fn times_of_nodes_and_devices() {
    for device in devices() {
        let c = classifier(OptimizerKind::Sgd);
        let session = ready(device, &c);
        let feeds = [c.images.feed(ramp(&[20, 64])), c.labels.feed(vec![3i32; 20])];
        let name = if device.devices.list().len() > 1 { "GPU:0" } else { "CPU:0" };
        let fetch = (&c.loss, &c.step);
        let timed = |timings| {
            session
                .run_with(&feeds, fetch, RunOptions { timings, ..RunOptions::default() })
                .unwrap()
                .1
        };
        assert!(timed(Timings::Host).nodes.is_empty());
        assert!(timed(Timings::Devices).nodes.is_empty());
        let run = timed(Timings::Nodes);
        assert!(run.nodes.iter().all(|node| &*node.device == name), "{run}");
        assert!(run.nodes.iter().any(|node| node.kernel == "matmul"), "{run}");
        let times: Duration = run.nodes.iter().map(|node| node.time).sum();
        if name == "CPU:0" {
            assert!(times > Duration::ZERO && times <= run.cpu, "{run}");
        } else {
            assert_eq!(run.nodes.len() as u64, run.dispatches, "{run}");
            // Dispatches run one after the other, and the whole lasts at least as long as its parts.
            assert!(
                times > Duration::ZERO && times <= run.gpu,
                "{times:?} of {:?}\n{run}",
                run.gpu
            );
            assert!(run.gpu <= run.wall, "{run}");
        }
    }
}
