//! The same plan gives the same bits on every run, on every device; on the CPU also for every number of threads and
//! with fusion off.

use convoke::models::{Classifier, Model, OptimizerKind};
use convoke::prelude::*;
use convoke_tests::{TestDevice, devices, ramp};

/// The losses of some steps of training, and the scores afterwards.
fn trained(device: &TestDevice, model: Model, options: &SessionOptions) -> Vec<Vec<u8>> {
    let c = Classifier::new(model, [8, 8], 10, OptimizerKind::Adam, 0.01, 1);
    let session = device.session_with(&c.graph, options.clone());
    session.run(&[], c.graph.initializers()).unwrap();
    let images = ramp(&[33, 64]);
    let labels: Vec<i32> = (0..33).map(|i| i * 7 % 10).collect();
    let feeds = [c.images.feed(&images), c.labels.feed(&labels)];
    let losses = (0..4).map(|_| session.run(&feeds, (&c.loss, &c.step)).unwrap().0);
    let losses: Vec<HostTensor> = losses.collect();
    let scores = session.run(&feeds[..1], &c.logits).unwrap();
    losses.iter().chain([&scores]).map(|tensor| tensor.bytes().to_vec()).collect()
}

#[test]
fn training_gives_the_same_bits_again() {
    for device in devices() {
        for model in [Model::Mlp, Model::Cnn] {
            let options = SessionOptions::default();
            let first = trained(device, model, &options);
            for run in 0..2 {
                let again = trained(device, model, &options);
                assert_eq!(first, again, "{model:?} on {}, run {run}", device.name);
            }
        }
    }
}

#[test]
fn on_the_cpu_neither_threads_nor_fusion_change_a_bit() {
    let cpu = &devices()[0];
    for model in [Model::Mlp, Model::Cnn] {
        let with = |threads, fuse| {
            trained(cpu, model, &SessionOptions { threads, fuse, ..Default::default() })
        };
        let first = with(1, true);
        for (threads, fuse) in [(2, true), (5, true), (1, false), (3, false)] {
            assert_eq!(first, with(threads, fuse), "{model:?}, {threads} threads, fused {fuse}");
        }
    }
}
