//! Optimizers, clipping and schedules on `w^2` from `w = 1`: arithmetic by hand.

use convoke::prelude::*;
use convoke::train::{cosine_decay, exponential_decay, piecewise};
use convoke_tests::devices;

/// The variable after one and after two steps, on every device.
fn steps(optimizer: &dyn Optimizer, expected: [f32; 2]) {
    for device in devices() {
        let g = Graph::new();
        let w = g.variable("w", Init::Constant(1.0), F32, []);
        let step = optimizer.minimize(&w.value().square());
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        for expected in expected {
            session.run(&[], &step).unwrap();
            let got = session.run(&[], &w).unwrap().scalar::<f32>().unwrap();
            let name = optimizer.name();
            assert!(
                (got - expected).abs() < 2e-5,
                "{name} on {}: {got}, expected {expected}",
                device.name
            );
        }
    }
}

#[test]
fn two_steps_of_each() {
    // The gradient is 2 w.
    steps(&Sgd::new(0.1), [0.8, 0.64]);
    // v = 2, then 0.9 * 2 + 1.6 = 3.4.
    steps(&Momentum::new(0.1, 0.9), [0.8, 0.46]);
    // Ahead: 2 + 0.9 * 2 = 3.8; then v = 1.8 + 1.24 = 3.04, and 1.24 + 0.9 * 3.04 = 3.976.
    steps(&Momentum { nesterov: true, ..Momentum::new(0.1, 0.9) }, [0.62, 0.2224]);
    // The first step is the rate, whatever the gradient. Second: m = 0.36 / 0.19, v = 0.00723676 / 0.001999.
    let second = |w: f32| w - 0.1 * (0.36f32 / 0.19) / (0.007_236f32 / 0.001_999).sqrt();
    steps(&Adam::new(0.1), [0.9, second(0.9)]);
    // m = 0.3598 / 0.19, v = 0.007228804 / 0.001999: a step of 0.099582; the decay takes 0.001 of each weight.
    steps(&AdamW::new(0.1, 0.01), [0.899, 0.899 - 0.000_899 - 0.099_582]);
    // s = 0.9 + 0.4 = 1.3; w = 1 - 0.2 / sqrt(1.3).
    let first = 1.0 - 0.2 / 1.3f32.sqrt();
    let grad = 2.0 * first;
    steps(&RmsProp::new(0.1), [first, first - 0.1 * grad / (1.17 + 0.1 * grad * grad).sqrt()]);
    // s = 0.1 + 4.
    let first = 1.0 - 0.2 / 4.1f32.sqrt();
    let grad = 2.0 * first;
    steps(
        &Adagrad { rate: 0.1.into(), initial: 0.1 },
        [first, first - 0.1 * grad / (4.1 + grad * grad).sqrt()],
    );
}

#[test]
fn clipping() {
    let g = Graph::new();
    let grads = [Some(g.constant([3.0f32, 0.0])), None, Some(g.constant([0.0f32, -4.0]))];
    let by_value = clip_by_value(&grads, 1.0);
    let (by_norm, norm) = clip_by_global_norm(&grads, 1.0);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let (by_value, by_norm, norm) = session.run(&[], (by_value, by_norm, norm)).unwrap();
    let vec = |t: &Option<HostTensor>| t.as_ref().map(|t| t.to_vec::<f32>().unwrap());
    assert_eq!(vec(&by_value[0]), Some(vec![1.0, 0.0]));
    assert_eq!(vec(&by_value[1]), None);
    assert_eq!(vec(&by_norm[0]), Some(vec![0.6, 0.0]));
    assert_eq!(vec(&by_norm[2]), Some(vec![0.0, -0.8]));
    assert_eq!(norm.unwrap().scalar::<f32>().unwrap(), 5.0);
}

#[test]
fn schedules() {
    let g = Graph::new();
    let step = g.placeholder("step", I32, dims![]);
    let rates = [
        exponential_decay(1.0, &step, 10.0, 0.5, false),
        exponential_decay(1.0, &step, 10.0, 0.5, true),
        cosine_decay(1.0, 0.0, &step, 30.0),
        piecewise(&step, &[10.0, 20.0], &[3.0, 2.0, 1.0]),
    ];
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let at = |n: i32| -> Vec<f32> {
        let rates = session.run(&[step.feed(n)], &rates).unwrap();
        rates.iter().map(|rate| rate.scalar::<f32>().unwrap()).collect()
    };
    for (n, expected) in [
        (0, [1.0, 1.0, 1.0, 3.0]),
        (10, [0.5, 0.5, 0.75, 3.0]),
        (15, [0.353_553_4, 0.5, 0.5, 2.0]),
        (30, [0.125, 0.125, 0.0, 1.0]),
    ] {
        for (got, expected) in at(n).into_iter().zip(expected) {
            assert!((got - expected).abs() < 1e-5, "at {n}: {got}, expected {expected}");
        }
    }
}
