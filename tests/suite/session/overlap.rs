//! Segments of different devices that do not need each other run at the same time.

use convoke::prelude::*;
use convoke_tests::{devices, ramp};

/// Two chains of products with nothing in common but their input, one on each device.
fn branches(g: &Graph, n: usize) -> (Tensor, Tensor, Tensor) {
    let x = g.placeholder("x", F32, [n, n]);
    let chain = |device: &str, steps: usize| {
        g.device(device, || {
            let mut y = x.clone();
            for _ in 0..steps {
                y = y.matmul(&x) * 0.01;
            }
            y.sum(())
        })
    };
    let on_gpu = chain("GPU:0", 2);
    let on_cpu = chain("CPU:0", 2);
    (x, on_gpu, on_cpu)
}

#[test]
fn the_host_works_while_a_gpu_does() {
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let (x, on_gpu, on_cpu) = branches(&g, 96);
        let session = device.session(&g);
        let feed = [x.feed(ramp(&[96, 96]))];
        let alone = |tensor: &Tensor| session.run(&feed, tensor).unwrap();
        let expected = (alone(&on_gpu), alone(&on_cpu));
        let (both, run) = session.run_with(&feed, (&on_gpu, &on_cpu), Default::default()).unwrap();
        assert_eq!((&both.0, &both.1), (&expected.0, &expected.1), "{}", device.name);
        assert_eq!((run.submissions, run.downloads, run.overlaps), (1, 1, 1), "{run}");
        // What needs the GPU's result waits for it, and work of the host before that does not.
        let sum = g.device("CPU:0", || &on_gpu + &on_cpu);
        let (got, run) = session.run_with(&feed, &sum, Default::default()).unwrap();
        let expected = [&expected.0, &expected.1].map(|x| x.scalar::<f32>().unwrap());
        assert_eq!(got.scalar::<f32>().unwrap(), expected[0] + expected[1]);
        assert_eq!((run.submissions, run.overlaps), (1, 1), "{run}");
        let sum = g.device("CPU:0", || &on_gpu + 1.0);
        let (_, run) = session.run_with(&feed, &sum, Default::default()).unwrap();
        assert_eq!(run.overlaps, 0, "{run}");
    }
}

#[test]
fn what_fails_on_one_device_stops_the_stores_of_another() {
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let table = g.constant(ramp(&[4]));
        let index = g.placeholder("index", I32, [1]);
        let (gathered, v) = g.device("GPU:0", || {
            let v = g.variable("v", Init::Zeros, F32, [1]);
            (table.gather(&index, 0), v)
        });
        // The store needs nothing of the gather; on the host there is work in between.
        let between = g.device("CPU:0", || index.cast(F32) + 1.0);
        let store = g.device("GPU:0", || v.assign_add(between * 2.0));
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let fetch = (&gathered, &store.operation());
        let error = session.run(&[index.feed([9])], fetch).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        let value = || session.run(&[], &v.value()).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(value(), [0.0], "{}", device.name);
        session.run(&[index.feed([3])], fetch).unwrap();
        assert_eq!(value(), [8.0], "{}", device.name);
    }
}
