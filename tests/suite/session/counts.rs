//! What a run is made of, counted: dispatches of the standard cases, bytes of their kernels, barriers.

use convoke::cases::Case;
use convoke::prelude::*;
use convoke::{ItemKind, RunMetadata};
use convoke_tests::{devices, ramp};

/// The most dispatches that each case may take.
const MOST: [(&str, u64); 17] = [
    ("A", 1),
    ("B256", 3),
    ("B512", 3),
    ("B1024", 3),
    ("C", 2),
    ("D1", 3),
    ("D64", 3),
    ("E-sgd", 8),
    ("E-adam", 9),
    ("F", 3),
    ("G", 14),
    ("H", 9),
    ("K", 4),
    ("L", 258),
    ("M", 2),
    ("I-norm", 1),
    ("I-softmax", 1),
];

#[test]
fn dispatches_of_the_standard_cases() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        for (name, most) in MOST {
            // A training step of a CNN takes seconds where software is the GPU: one driver has to do.
            if name == "G" && device.name != devices()[1].name {
                continue;
            }
            let options = SessionOptions { policy: device.policy.clone(), ..Default::default() };
            let case = Case::new(name).unwrap().ready(&device.devices, options).unwrap();
            case.run().unwrap();
            let (_, run) = case.run().unwrap();
            assert!(run.dispatches <= most, "{name} on {}: {run}", device.name);
            assert!(run.dispatches > 0, "{name} on {}: {run}", device.name);
            assert!(run.barriers < run.dispatches, "{name} on {}: {run}", device.name);
            assert_eq!(run.submissions, 1, "{name} on {}: {run}", device.name);
            assert_eq!(run.device_bytes_allocated, 0, "{name} on {}: {run}", device.name);
            check_memory(name, &device.name, &run);
        }
    }
}

/// What is planned is little more than what lives at once, which is known when it is planned.
fn check_memory(name: &str, device: &str, run: &RunMetadata) {
    let (planned, live) = (run.planned_bytes, run.live_bytes);
    println!("{name} on {device}: {planned} bytes planned, {live} live");
    let near = planned as f64 <= 1.1 * live as f64;
    assert!(near || live < 1 << 20, "{name} on {device}: {planned} of {live}");
}

/// What is fetched has memory of its own from the start of a run, maybe the caller's.
#[test]
fn memory_of_the_standard_cases_on_the_host() {
    let device = &devices()[0];
    for (name, _) in MOST {
        let case = Case::new(name).unwrap().ready(&device.devices, Default::default()).unwrap();
        check_memory(name, &device.name, &case.run().unwrap().1);
    }
}

#[test]
fn kernels_read_their_inputs_once() {
    let n = 1000;
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![n]);
        let v = g.variable("v", Init::Constant(1.0), F32, [n]);
        let sum = ((&x * &v + &x) * 0.5 - &v).relu().tanh().sum(());
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let run = |fetch: &Tensor| {
            session.run_with(&[x.feed(ramp(&[n]))], fetch, Default::default()).unwrap().1
        };
        // Two vectors and the sum.
        assert_eq!(run(&sum).kernel_bytes, 2 * 4 * 1000 + 4, "{}", device.name);
        let metadata = run(&(&x * &v));
        assert_eq!((metadata.kernel_bytes, metadata.barriers), (3 * 4 * 1000, 0), "{metadata}");
        assert!(metadata.overhead() <= metadata.wall);
    }
}

/// Behind a clipping by the norm of all gradients, no update is part of the kernel that makes its gradient.
#[test]
fn updates_of_many_variables_are_few_dispatches() {
    let sizes: [&[usize]; 6] = [&[30, 20], &[20], &[20, 7], &[7], &[7, 1], &[1]];
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        for (optimizer, name) in
            [(&Sgd::new(0.5) as &dyn Optimizer, "SGD"), (&Adam::new(0.1), "Adam")]
        {
            let g = Graph::new();
            let k = g.placeholder("k", F32, dims![]);
            let mut loss = g.constant(0.0f32);
            let mut variables = Vec::new();
            for (i, size) in sizes.iter().enumerate() {
                let w = g.variable(&format!("w{i}"), Init::Constant(1.0), F32, *size);
                loss = loss + (w.value() * &k).square().sum(()) * 0.5;
                variables.push(w);
            }
            let wrt: Vec<&Tensor> = variables.iter().map(|w| w.value()).collect();
            let (grads, norm) = clip_by_global_norm(&loss.gradients(&wrt), 1.0);
            let step = optimizer.apply_gradients(&g, &variables, &grads);
            let session = device.session(&g);
            session.run(&[], g.initializers()).unwrap();
            let fetch = (&norm, &step);
            let run = || session.run_with(&[k.feed(2.0f32)], &fetch, Default::default()).unwrap();
            let ((found, ()), _) = run();
            // Each of 796 elements has the gradient 4.
            let n: usize = sizes.iter().map(|size| size.iter().product::<usize>()).sum();
            let expected = 4.0 * (n as f32).sqrt();
            let found = found.unwrap().scalar::<f32>().unwrap();
            assert!((found - expected).abs() < 1e-4 * expected, "{found}, expected {expected}");
            // Adam's first step is its rate.
            let expected = if name == "SGD" { 1.0 - 0.5 * 4.0 / expected } else { 0.9 };
            for w in &variables {
                let found = session.run(&[], w).unwrap().to_vec::<f32>().unwrap();
                let near = |x: &f32| (x - expected).abs() < 1e-5;
                assert!(found.iter().all(near), "{name} on {}: {found:?}", device.name);
            }
            let (_, run) = run();
            println!("{name} on {}: {run}", device.name);
            // Of the six updates one is part of the norm's kernel or goes over its gradient in another order. Swiftshader
            // binds ten buffers to a kernel: four of SGD's updates, and one of Adam's.
            let explanation = session.explain(&[k.feed(2.0f32)], fetch).unwrap();
            let items = explanation.items().iter();
            let kernels = items.filter(|item| item.kind == ItemKind::Kernel).count() as u64;
            let fewer = match (device.name.as_str(), name) {
                ("llvmpipe", "SGD") => 3,
                ("llvmpipe", _) => 4,
                (_, "SGD") => 2,
                _ => continue,
            };
            assert!(run.dispatches <= kernels - fewer, "{kernels} kernels: {run}");
        }
    }
}

/// Updates that are one dispatch store nothing in a run that fails, and each its own in one that does not.
#[test]
fn updates_of_one_dispatch_are_stored_together_or_not_at_all() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let at = g.placeholder("at", I32, dims![1]);
        let table = g.placeholder("table", F32, dims![3]);
        let sizes = [1, 300, 7, 5];
        let variables: Vec<Variable> = (0..4)
            .map(|i| g.variable(&format!("w{i}"), Init::Constant(1.0), F32, [sizes[i]]))
            .collect();
        let grads: Vec<Tensor> =
            (0..4).map(|i| g.placeholder(&format!("g{i}"), F32, dims![sizes[i]])).collect();
        let some: Vec<Option<Tensor>> = grads.iter().cloned().map(Some).collect();
        let step = Sgd::new(0.5).apply_gradients(&g, &variables, &some);
        let taken = table.gather(&at, 0);
        // Its parts are written by work of one kind too.
        let whole = g.concat(&[&(&grads[1] * 2.0), &(&grads[2] * 3.0), &(&grads[3] * 4.0)], 0);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let values: Vec<HostTensor> = sizes.iter().map(|&n| ramp(&[n])).collect();
        let run = |index: i32| {
            let mut feeds = vec![at.feed([index]), table.feed([1.0f32, 2.0, 3.0])];
            feeds.extend(grads.iter().zip(&values).map(|(grad, value)| grad.feed(value)));
            session.run_with(&feeds, (&taken, &whole, &step), Default::default())
        };
        let stored = || -> Vec<Vec<f32>> {
            let read = |w: &Variable| session.run(&[], w).unwrap().to_vec::<f32>().unwrap();
            variables.iter().map(read).collect()
        };
        let before = stored();
        assert!(run(3).is_err(), "{}", device.name);
        assert_eq!(stored(), before, "{}", device.name);
        let ((_, whole, ()), metadata) = run(1).unwrap();
        let of = |value: &HostTensor, f: fn(f32) -> f32| -> Vec<f32> {
            value.to_vec::<f32>().unwrap().into_iter().map(f).collect()
        };
        let expected: Vec<Vec<f32>> = values.iter().map(|v| of(v, |x| 1.0 - 0.5 * x)).collect();
        assert_eq!(stored(), expected, "{}", device.name);
        let parts =
            [of(&values[1], |x| 2.0 * x), of(&values[2], |x| 3.0 * x), of(&values[3], |x| 4.0 * x)];
        assert_eq!(whole.to_vec::<f32>().unwrap(), parts.concat(), "{}", device.name);
        // A gather; two or three parts; at most two for four updates, which bind two buffers each and the status word.
        assert!(metadata.dispatches <= 6, "{}: {metadata}", device.name);
    }
}

#[test]
fn dispatches_that_wait_for_each_other_are_apart() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![8, 8]);
        // Two products side by side, then one of both.
        let product = x.matmul(&x).matmul(x.matmul(x.transpose()));
        let session = device.session(&g);
        let feed = [x.feed(ramp(&[8, 8]))];
        let (_, run) = session.run_with(&feed, &product, Default::default()).unwrap();
        assert_eq!((run.dispatches, run.barriers), (3, 1), "{}: {run}", device.name);
    }
}
