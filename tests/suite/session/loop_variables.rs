//! Loops whose bodies assign variables: their elements go from iteration to iteration where the body is, as what is
//! carried does. TensorFlow: a `while_loop` that trains, by meaning; `control_flow_ops_py_test`'s assignments in loops.

use convoke::prelude::*;
use convoke::{ErrorKind, RunMetadata, RunOptions, Variable};
use convoke_tests::{TestDevice, devices};

/// `n` iterations that run `body` for its effect.
fn repeated(g: &Graph, n: &Tensor, body: impl FnOnce(&Tensor) -> Vec<Tensor>) -> Tensor {
    let next = |i: &Tensor| {
        let done: Vec<_> = body(i).iter().map(Tensor::operation).collect();
        g.after(&done.iter().collect::<Vec<_>>(), || i + 1)
    };
    g.while_loop(g.constant(0i32), |i| i.less(n), next)
}

fn elements(session: &Session, v: &Variable) -> Vec<f32> {
    session.run(&[], v.value()).unwrap().to_vec().unwrap()
}

fn initialized(device: &TestDevice, g: &Graph) -> Session {
    let session = device.session(g);
    session.run(&[], g.initializers()).unwrap();
    session
}

/// A quarter is added 3,000 times to ones, which is exact. What crosses does not grow with the iterations.
#[test]
fn what_a_loop_assigns_stays_on_its_device() {
    for device in devices() {
        let g = Graph::new();
        let n = g.placeholder("n", I32, dims![]);
        let v = g.variable("v", Init::Constant(1.0), F32, [64, 64]);
        let last = repeated(&g, &n, |_| vec![v.assign_add(0.25)]);
        let session = initialized(device, &g);
        let mut crossed = Vec::new();
        for (n_, expected) in [(1000, 251.0), (3000, 1001.0)] {
            let (i, metadata) =
                session.run_with(&[n.feed(n_)], &last, RunOptions::default()).unwrap();
            assert_eq!(i.scalar::<i32>().unwrap(), n_, "{}", device.name);
            assert_eq!(elements(&session, &v), [expected; 4096], "{}", device.name);
            let RunMetadata { uploads, upload_bytes, downloads, download_bytes, .. } = metadata;
            assert!(metadata.submissions <= 60, "{} on {}", metadata.submissions, device.name);
            crossed.push([uploads, upload_bytes, downloads, download_bytes]);
        }
        assert_eq!(crossed[0], crossed[1], "{}", device.name);
        // It comes to the run and goes to the loop, comes from it and goes back; so do a few numbers.
        let expected = if device.name == "CPU" { [0, 0] } else { [2, 2] };
        let [_, upload_bytes, _, download_bytes] = crossed[0];
        assert_eq!([upload_bytes / 16_384, download_bytes / 16_384], expected, "{}", device.name);
    }
}

/// Fibonacci's numbers: what is read before the assignment is of the iteration before, what is read after it is new.
#[test]
fn iterations_see_what_the_last_one_left() {
    for device in devices() {
        let g = Graph::new();
        let steps = g.placeholder("steps", F32, dims![None, 2]);
        let v = g.variable("v", Init::Constant(1.0), F32, [2]);
        let (x, (sums, news)) = g.scan(g.constant([1.0f32, 0.0]), steps.clone(), |x, step| {
            let before = v.read();
            let set = v.assign(&before + x).operation();
            let new = g.after(&[&set], || v.read() * 1.0);
            (before.clone(), (&before + step, new))
        });
        let session = initialized(device, &g);
        // 30 of them: v goes 1, 2, 3, 5, 8 .. and 1, 1, 2, 3, 5 ..
        let fibonacci = |a: f32, b: f32| {
            let mut all = vec![a, b];
            (2..33).for_each(|i| all.push(all[i - 1] + all[i - 2]));
            all
        };
        let (first, second) = (fibonacci(1.0, 1.0), fibonacci(0.0, 1.0));
        let rows: Vec<f32> = (0..60).map(|i| i as f32).collect();
        let feed = HostTensor::new(&[30, 2], rows.clone()).unwrap();
        let (x, (sums, news)) = session.run(&[steps.feed(&feed)], (&x, (&sums, &news))).unwrap();
        assert_eq!(x.to_vec::<f32>().unwrap(), [first[30], second[30]], "{}", device.name);
        let pairs = |from: usize| (from..from + 30).flat_map(|i| [first[i], second[i]]);
        let expected: Vec<f32> = pairs(1).zip(&rows).map(|(v, row)| v + row).collect();
        assert_eq!(sums.to_vec::<f32>().unwrap(), expected, "{}", device.name);
        assert_eq!(news.to_vec::<f32>().unwrap(), pairs(2).collect::<Vec<_>>(), "{}", device.name);
        assert_eq!(elements(&session, &v), [first[31], second[31]], "{}", device.name);
    }
}

/// A loop that trains does what its step does in as many runs: gradient descent with momentum on powers of two.
#[test]
fn a_loop_that_trains_is_as_many_steps() {
    for device in devices() {
        let g = Graph::new();
        let (x, n) = (g.placeholder("x", F32, dims![None, 4]), g.placeholder("n", I32, dims![]));
        let w = g.variable("w", Init::Constant(64.0), F32, [4, 3]);
        let m = g.variable("m", Init::Zeros, F32, [4, 3]);
        let rate = g.variable("rate", Init::Constant(0.125), F32, []);
        let step = || {
            let now = w.read();
            let loss = (x.matmul(&now) - 8.0).square().sum(());
            let grad = loss.gradients(&[&now]).remove(0).unwrap();
            let moved = m.assign(m.read() * 0.5 + grad);
            vec![w.assign_sub(moved * rate.read())]
        };
        let once = step().remove(0).operation();
        let all = repeated(&g, &n, |_| step());
        let data =
            HostTensor::new(&[2, 4], vec![1.0f32, 0.0, 0.0, 0.5, 0.0, 0.25, 0.0, 0.0]).unwrap();
        let (one, other) = (initialized(device, &g), initialized(device, &g));
        for _ in 0..6 {
            one.run(&[x.feed(&data)], &once).unwrap();
        }
        other.run(&[x.feed(&data), n.feed(6)], &all).unwrap();
        assert_eq!(elements(&one, &w), elements(&other, &w), "{}", device.name);
        assert_eq!(elements(&one, &m), elements(&other, &m), "{}", device.name);
        assert_ne!(elements(&one, &w), [64.0; 12], "{}", device.name);
    }
}

/// A variable that is assigned and never read needs no elements; one that is read does, if there is an iteration.
#[test]
fn variables_without_elements() {
    for device in devices() {
        let g = Graph::new();
        let n = g.placeholder("n", I32, dims![]);
        let (set, read) =
            (g.variable("set", Init::Zeros, F32, [3]), g.variable("read", Init::Zeros, F32, [3]));
        let sets =
            repeated(&g, &n, |i| vec![set.assign(i.cast(F32) + g.constant([0.0f32, 1.0, 2.0]))]);
        let reads = repeated(&g, &n, |_| vec![read.assign_add(1.0)]);
        let session = device.session(&g);
        let run = |loops: &Tensor, n_: i32| session.run(&[n.feed(n_)], loops);
        let before = session.state_digest().unwrap();
        run(&sets, 0).unwrap();
        run(&reads, 0).unwrap();
        let error = run(&reads, 3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        assert_eq!(session.state_digest().unwrap(), before, "{}", device.name);
        run(&sets, 1500).unwrap();
        assert_eq!(elements(&session, &set), [1499.0, 1500.0, 1501.0], "{}", device.name);
        let error = session.run(&[], read.value()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    }
}

/// An index that runs out of its range in the ninth of ten iterations leaves nothing of the eight before.
#[test]
fn a_loop_that_fails_has_assigned_nothing() {
    for device in devices() {
        let g = Graph::new();
        let n = g.placeholder("n", I32, dims![]);
        let table = g.placeholder("table", F32, dims![8]);
        let v = g.variable("v", Init::Constant(1.0), F32, []);
        let last = repeated(&g, &n, |i| vec![v.assign_add(table.gather(i, 0))]);
        let session = initialized(device, &g);
        let before = session.state_digest().unwrap();
        let table_ = HostTensor::new(&[8], vec![0.5f32; 8]).unwrap();
        let run = |n_: i32| session.run(&[n.feed(n_), table.feed(&table_)], &last);
        let error = run(10).unwrap_err();
        assert!(error.to_string().contains('8'), "{error}");
        assert_eq!(session.state_digest().unwrap(), before, "{}", device.name);
        run(8).unwrap();
        assert_eq!(elements(&session, &v), [5.0], "{}", device.name);
    }
}

/// What else the run does to the variable comes before or after all iterations.
#[test]
fn what_comes_before_and_after_a_loop() {
    for device in devices() {
        let g = Graph::new();
        let n = g.placeholder("n", I32, dims![]);
        let v = g.variable("v", Init::Constant(9.0), F32, [2]);
        let start = v.read();
        let set = v.assign(g.constant([1.0f32, 2.0])).operation();
        let doubled = g.after(&[&set], || repeated(&g, &n, |_| vec![v.assign_add(v.read())]));
        let end = g.after(&[&doubled.operation()], || v.read() * 1.0);
        let last = g.after(&[&end.operation()], || v.assign_sub(1.0));
        let session = initialized(device, &g);
        let (start, end, last) = session.run(&[n.feed(10)], (&start, &end, &last)).unwrap();
        assert_eq!(start.to_vec::<f32>().unwrap(), [9.0; 2], "{}", device.name);
        assert_eq!(end.to_vec::<f32>().unwrap(), [1024.0, 2048.0], "{}", device.name);
        assert_eq!(last.to_vec::<f32>().unwrap(), [1023.0, 2047.0], "{}", device.name);
        assert_eq!(elements(&session, &v), [1023.0, 2047.0], "{}", device.name);
    }
}

/// A variable that the run assigned before a loop, which only reads it, is read as it was assigned.
#[test]
fn a_loop_reads_what_the_run_assigned_before() {
    for device in devices() {
        let g = Graph::new();
        let n = g.placeholder("n", I32, dims![]);
        let w = g.variable("w", Init::Constant(1.0), F32, [64]);
        let v = g.variable("v", Init::Zeros, F32, [64]);
        let set = w.assign(g.constant([5.0f32; 64])).operation();
        let last = g.after(&[&set], || {
            let sum = repeated(&g, &n, |_| vec![v.assign_add(w.read())]);
            let start = (g.constant(0i32), g.constant([1.0f32; 64]));
            let next = |(i, x): &(Tensor, Tensor)| (i + 1, x + w.read());
            let (_, x) = g.while_loop(start, |(i, _)| i.less(&n), next);
            g.after(&[&sum.operation()], || x * 1.0)
        });
        let session = device.session(&g);
        session.run(&[], v.initializer()).unwrap();
        for round in [1.0, 2.0] {
            let x = session.run(&[n.feed(1500)], &last).unwrap();
            assert_eq!(x.to_vec::<f32>().unwrap(), [7501.0; 64], "{}", device.name);
            assert_eq!(elements(&session, &v), [7500.0 * round; 64], "{}", device.name);
            assert_eq!(elements(&session, &w), [5.0; 64], "{}", device.name);
        }
    }
}
