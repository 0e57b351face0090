//! What crosses in runs with branches and loops is what was predicted, to the byte: by the placement of each program that
//! ran, each time, and of what the run holds and carries.

use convoke::prelude::*;
use convoke::{RunMetadata, RunOptions};
use convoke_tests::{TestDevice, devices};

/// The test devices that are GPUs.
fn gpus() -> impl Iterator<Item = &'static TestDevice> {
    devices().iter().filter(|device| device.devices.list().len() > 1)
}

/// A session that places nothing on GPUs that does not ask for them.
fn session(device: &TestDevice, g: &Graph) -> Session {
    let options = SessionOptions { soft_placement: false, ..SessionOptions::default() };
    let session = Session::with_options(g, &device.devices, options).unwrap();
    session.run(&[], g.initializers()).unwrap();
    session
}

/// How many tensors crossed and their bytes, after a comparison with what was predicted.
fn crossed(run: &RunMetadata, what: &str) -> (u64, u64) {
    let crossed = (run.uploads + run.downloads, run.upload_bytes + run.download_bytes);
    let predicted = (run.predicted_transfers, run.predicted_transfer_bytes);
    assert_eq!(crossed, predicted, "{what}: {run}");
    crossed
}

/// By hand: what a branch reads goes to its device, and what it gives comes back; the other one stays on the host.
#[test]
fn a_branch_crosses_if_it_runs() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![256]);
        let p = g.placeholder("p", Bool, dims![]);
        let on_gpu = || g.device("GPU:0", || &x * 2.0 + 1.0);
        let y = g.cond(&p, on_gpu, || -&x) + 1.0;
        let session = session(device, &g);
        for (chosen, expected, bytes) in [(true, 4.0, (2, 2048)), (false, 0.0, (0, 0))] {
            let feeds = [x.feed([1.0f32; 256]), p.feed(chosen)];
            let (y, run) = session.run_with(&feeds, &y, RunOptions::default()).unwrap();
            assert_eq!(y.to_vec::<f32>().unwrap(), [expected; 256], "{}", device.name);
            assert_eq!(crossed(&run, &device.name), bytes, "{}", device.name);
        }
    }
}

/// By hand: 4,096 bytes go up once and come down once; each of the blocks in between leaves them where they are. Where a
/// body has a branch each of its iterations has crossings of its own.
#[test]
fn loops_cross_as_often_as_their_programs_run() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![1024]);
        let n = g.placeholder("n", I32, dims![]);
        let times = |body: &dyn Fn(&Tensor) -> Tensor| {
            let start = (g.constant(0i32), x.clone());
            g.while_loop(start, |(i, _)| i.less(&n), |(i, x)| (i + 1, body(x))).1
        };
        let on_gpu = |x: &Tensor| g.device("GPU:0", || x * 0.5 + 1.0);
        let in_blocks = times(&on_gpu);
        let in_parts = times(&|x| g.cond(&x.sum(()).less(1e9), || on_gpu(x), || x - 1.0));
        let session = session(device, &g);
        for trips in [1i32, 2, 7, 300] {
            let feeds = [x.feed([0.0f32; 1024]), n.feed(trips)];
            let expected = (0..trips).fold(0.0f32, |x, _| x * 0.5 + 1.0);
            let run = |y: &Tensor, what: &str| {
                let (y, run) = session.run_with(&feeds, y, RunOptions::default()).unwrap();
                let what = format!("{trips} {what} on {}", device.name);
                assert_eq!(y.to_vec::<f32>().unwrap(), [expected; 1024], "{what}");
                crossed(&run, &what)
            };
            assert_eq!(run(&in_blocks, "in blocks"), (2, 8192));
            let trips = trips as u64;
            assert_eq!(run(&in_parts, "with a branch"), (2 * trips, 8192 * trips));
        }
    }
}

/// Loops that only the data ends, that take slices, that stack what they carry, and their gradients.
#[test]
fn all_that_loops_take_and_give_is_predicted() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![64]);
        let rows = g.placeholder("rows", F32, dims![None, 64]);
        let w = g.device("GPU:0", || g.variable("w", Init::Constant(0.5), F32, [64]));
        let on_gpu = |build: &dyn Fn() -> Tensor| g.device("GPU:0", build);
        let until =
            g.while_loop(x.clone(), |x| x.max(()).greater_equal(1.0f32), |x| on_gpu(&|| x * 0.5));
        let scanned = g
            .scan(x.clone(), rows.clone(), |x, row| {
                let next = on_gpu(&|| x * 0.5 + row);
                (next.clone(), next)
            })
            .1;
        let n = g.placeholder("n", I32, dims![]);
        let start = (g.constant(0i32), x.clone());
        let trained =
            g.while_loop(start, |(i, _)| i.less(&n), |(i, x)| (i + 1, on_gpu(&|| x * &w))).1;
        let gradient = trained.sum(()).gradients(&[&x]).pop().unwrap().unwrap();
        let session = session(device, &g);
        // The variable lives on the GPU from now on.
        session.run(&[], &on_gpu(&|| w.value() + 1.0)).unwrap();
        let many = HostTensor::new(&[200, 64], vec![1.0f32; 200 * 64]).unwrap();
        for (name, y) in [
            ("until", &until),
            ("scanned", &scanned),
            ("trained", &trained),
            ("gradient", &gradient),
        ] {
            let feeds = [x.feed([1024.0f32; 64]), rows.feed(&many), n.feed(40)];
            for _ in 0..2 {
                let (_, run) = session.run_with(&feeds, y, RunOptions::default()).unwrap();
                let (n, _) = crossed(&run, &format!("{name} on {}", device.name));
                assert!(n > 0, "{name} on {}", device.name);
            }
        }
    }
}

/// By hand: a variable of 1,024 bytes on a GPU comes to a run that holds it and goes back changed.
#[test]
fn held_variables_cross_as_predicted() {
    for device in gpus() {
        let g = Graph::new();
        let p = g.placeholder("p", Bool, dims![]);
        let v = g.device("GPU:0", || g.variable("v", Init::Constant(1.0), F32, [256]));
        let read = g.device("GPU:0", || v.value() + 1.0);
        let add = |by: f32| v.assign_add(g.constant(vec![by; 256])).operation();
        let y = g.cond(&p, || g.after(&[&add(2.0)], || g.constant(1i32)), || g.constant(0i32));
        let session = session(device, &g);
        session.run(&[], &read).unwrap();
        assert_eq!(session.variables()[0].device, 1, "{}", device.name);
        let run = |chosen: bool| {
            let run = session.run_with(&[p.feed(chosen)], &y, RunOptions::default()).unwrap();
            crossed(&run.1, &device.name)
        };
        assert_eq!(run(true), (2, 2048), "{}", device.name);
        // Nothing is stored, so that it only comes.
        assert_eq!(run(false), (1, 1024), "{}", device.name);
        let v = session.run(&[], v.value()).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(v, [3.0; 256], "{}", device.name);
    }
}
