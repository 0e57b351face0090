//! Training on the digits: accuracy, agreement of devices, bit-identical resumption.

use convoke::data::{Dataset, digits};
use convoke::models::{Classifier, Model, OptimizerKind};
use convoke::prelude::*;
use convoke_tests::{TestDevice, devices};

struct Trained {
    losses: Vec<f32>,
    session: Session,
    classifier: Classifier,
}

fn batch(data: &Dataset, step: usize) -> (Vec<f32>, Vec<i32>) {
    let rows: Vec<usize> = (0..32).map(|i| (step * 32 + i) * 7 % data.train.len()).collect();
    let (mut pixels, mut labels) = (vec![0.0; 32 * 64], vec![0; 32]);
    data.train.write_batch(&rows, &mut pixels, &mut labels).unwrap();
    (pixels, labels)
}

fn steps(trained: &mut Trained, data: &Dataset, range: std::ops::Range<usize>) {
    let c = &trained.classifier;
    for step in range {
        let (pixels, labels) = batch(data, step);
        let feeds = [c.images.feed((&pixels[..], [32, 64])), c.labels.feed(&labels)];
        let (loss, ()) = trained.session.run(&feeds, (&c.loss, &c.step)).unwrap();
        trained.losses.push(loss.scalar::<f32>().unwrap());
    }
}

fn start(device: &TestDevice, model: Model, optimizer: OptimizerKind) -> Trained {
    start_at(device, model, optimizer, optimizer.default_rate())
}

fn start_at(device: &TestDevice, model: Model, optimizer: OptimizerKind, rate: f64) -> Trained {
    let classifier = Classifier::new(model, [8, 8], 10, optimizer, rate, 1);
    let session = device.session(&classifier.graph);
    session.run(&[], classifier.graph.initializers()).unwrap();
    Trained { losses: Vec::new(), session, classifier }
}

/// The losses of the first steps agree between devices, and fall to less than a share of the first.
fn agree(
    (model, optimizer, rate): (Model, OptimizerKind, f64),
    n: usize,
    tolerance: f32,
    share: f32,
) {
    let data = digits().unwrap();
    let mut truth: Option<Vec<f32>> = None;
    for device in devices() {
        let mut trained = start_at(device, model, optimizer, rate);
        steps(&mut trained, &data, 0..n);
        let truth = truth.get_or_insert_with(|| trained.losses.clone());
        for (step, (own, truth)) in trained.losses.iter().zip(truth.iter()).enumerate() {
            let near = (own - truth).abs() <= tolerance * truth.abs();
            assert!(near, "{} at step {step}: {own}, on the CPU {truth}", device.name);
        }
        assert!(trained.losses[n - 1] < trained.losses[0] * share, "{:?}", trained.losses);
    }
}

#[test]
fn losses_of_sgd_agree() {
    agree((Model::Mlp, OptimizerKind::Sgd, 0.1), 100, 1e-3, 0.5);
}

#[test]
fn losses_of_adam_agree() {
    agree((Model::Mlp, OptimizerKind::Adam, 3e-3), 100, 1e-2, 0.5);
}

#[test]
fn losses_of_the_cnn_agree() {
    agree((Model::Cnn, OptimizerKind::Sgd, 0.03), 100, 1e-2, 0.98);
}

/// Adam divides by roots of small squares: where a gradient is little more than rounding, so is the quotient,
/// and the losses part at last.
#[test]
fn losses_of_the_cnn_agree_at_first_with_adam() {
    agree((Model::Cnn, OptimizerKind::Adam, 3e-3), 20, 1e-2, 0.9);
}

#[test]
fn resumption_is_bit_identical() {
    let data = digits().unwrap();
    let path =
        std::env::temp_dir().join(format!("convoke-resume-{}.safetensors", std::process::id()));
    for device in devices() {
        let mut whole = start(device, Model::Mlp, OptimizerKind::Adam);
        steps(&mut whole, &data, 0..20);
        let mut first = start(device, Model::Mlp, OptimizerKind::Adam);
        steps(&mut first, &data, 0..10);
        first.session.save(&path).unwrap();
        let mut second = start(device, Model::Mlp, OptimizerKind::Adam);
        second.session.restore(&path).unwrap();
        steps(&mut second, &data, 10..20);
        assert_eq!(second.losses, whole.losses[10..], "{}", device.name);
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn the_digits_are_learned() {
    let data = digits().unwrap();
    let mut trained = start(&devices()[0], Model::Mlp, OptimizerKind::Adam);
    steps(&mut trained, &data, 0..600);
    let rows: Vec<usize> = (0..data.test.len()).collect();
    let (mut pixels, mut labels) = (vec![0.0; rows.len() * 64], vec![0; rows.len()]);
    data.test.write_batch(&rows, &mut pixels, &mut labels).unwrap();
    let c = &trained.classifier;
    let feeds = [c.images.feed((&pixels[..], [rows.len(), 64])), c.labels.feed(&labels)];
    let accuracy = trained.session.run(&feeds, &c.accuracy).unwrap().scalar::<f32>().unwrap();
    assert!(accuracy >= 0.95, "{accuracy}");
}
