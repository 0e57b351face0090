//! The same plan gives the same bits on every run, on every device; on the CPU also for every number of threads and
//! with fusion off.

use std::collections::BTreeSet;

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

/// As in TensorFlow, no two runs draw the same numbers, though a run that fails leaves no trace.
#[test]
fn runs_at_the_same_time_draw_different_numbers() {
    for device in devices() {
        let g = Graph::with_seed(5);
        let x = g.random_uniform(&[4], F32, 3);
        let p = g.placeholder("p", F32, dims![]);
        let later = &p + 1.0;
        let session = device.session(&g);
        let expected: Vec<Vec<f32>> = {
            let alone = device.session(&g);
            (0..4).map(|_| alone.run(&[], &x).unwrap().to_vec().unwrap()).collect()
        };
        let values = |tensor: HostTensor| tensor.to_vec::<f32>().unwrap();
        let begin = || session.partial_run(&[&p], (&x, &later)).unwrap();
        let [mut first, mut second] = [(), ()].map(|()| begin());
        let before = session.state_digest().unwrap();
        assert_eq!(values(first.run(&[], &x).unwrap()), expected[0], "{}", device.name);
        assert_eq!(values(second.run(&[], &x).unwrap()), expected[1], "{}", device.name);
        assert_eq!(values(session.run(&[], &x).unwrap()), expected[2], "{}", device.name);
        let after = session.state_digest().unwrap();
        assert_ne!(before, after, "{}", device.name);
        // One ends well, the other does not: what was drawn last has been counted already.
        second.run(&[p.feed(1.0)], &later).unwrap();
        assert!(second.is_done());
        drop(first);
        assert_eq!(session.state_digest().unwrap(), after, "{}", device.name);
        assert_eq!(values(session.run(&[], &x).unwrap()), expected[3], "{}", device.name);
        // Nobody draws behind one that fails: its numbers are free again.
        let mut fails = begin();
        let lost = values(fails.run(&[], &x).unwrap());
        drop(fails);
        assert_eq!(values(session.run(&[], &x).unwrap()), lost, "{}", device.name);
    }
}

/// Many threads draw what one thread does, each number once, in loops too.
#[test]
fn threads_draw_each_number_once() {
    let g = Graph::with_seed(6);
    let x = g.random_uniform(&[2], F32, 3);
    // A loop whose length is fed draws in each of its iterations.
    let n = g.placeholder("n", I32, dims![]);
    let drawn = g.while_loop(
        (g.constant(0), g.constant([0.0f32, 0.0])),
        |(i, _)| i.less(&n),
        |(i, sum)| (i + 1, sum + g.random_uniform(&[2], F32, 4)),
    );
    let bits = |tensor: &HostTensor| -> Vec<u32> {
        tensor.to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
    };
    let run = |session: &Session| {
        let (x, (_, drawn)) = session.run(&[n.feed(2)], (&x, &drawn)).unwrap();
        (bits(&x), bits(&drawn))
    };
    let alone = Session::new(&g, &Devices::cpu()).unwrap();
    let expected: BTreeSet<_> = (0..400).map(|_| run(&alone)).collect();
    let (ones, twos): (BTreeSet<_>, BTreeSet<_>) = expected.into_iter().unzip();
    assert_eq!((ones.len(), twos.len()), (400, 400));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let got: Vec<_> = std::thread::scope(|scope| {
        let work = || (0..100).map(|_| run(&session)).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let (got_ones, got_twos): (BTreeSet<_>, BTreeSet<_>) = got.into_iter().unzip();
    assert_eq!(got_ones, ones);
    // Iterations of two runs may take turns, so that other sums come out; no two are the same.
    assert_eq!(got_twos.len(), 400);
    assert_eq!(session.state_digest().unwrap(), alone.state_digest().unwrap());
}
