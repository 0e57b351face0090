//! Sums into one variable by runs at one time: none is lost, and what is fetched of one is what it stored. TensorFlow:
//! `assign_add` with `use_locking`, `variable_ops_test`, by meaning.

use std::thread;

use convoke::prelude::*;
use convoke_tests::devices;

const THREADS: usize = 4;
const RUNS: usize = 50;

/// Runs `step` on some threads, many times each.
fn at_once(step: impl Fn() + Sync) {
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..RUNS).for_each(|_| step()));
        }
    });
}

#[test]
fn sums_in_one_run_are_all_kept() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Zeros, F32, [100]);
        let by = g.placeholder("by", F32, dims![100]);
        let first = v.assign_add(&by);
        let second = g.after(&[&first.operation()], || v.assign_sub(&by * 3.0));
        let third = g.after(&[&second.operation()], || v.assign_add((&second * 0.0 + &by) * 4.0));
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        at_once(|| {
            session.run(&[by.feed([1.0f32; 100])], third.operation()).unwrap();
        });
        let v = session.run(&[], &v).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(v, [(THREADS * RUNS * 2) as f32; 100], "{}", device.name);
    }
}

/// The numbers that a counter gives are all different.
#[test]
fn what_is_fetched_of_a_sum_is_what_it_stored() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Zeros, I32, []);
        let next = v.assign_add(1);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let call = session.callable(&[], &next).unwrap();
        let (seen, fetched) = (std::sync::Mutex::new(Vec::new()), &call);
        at_once(|| {
            let number = fetched.call(()).unwrap().scalar::<i32>().unwrap();
            seen.lock().unwrap().push(number);
        });
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        let all: Vec<i32> = (1..=(THREADS * RUNS) as i32).collect();
        assert_eq!(seen, all, "{}", device.name);
    }
}

/// What is added may be nothing, which needs no kernel.
#[test]
fn sums_of_nothing_are_sums() {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, I32, [3]);
    let (nothing, one) = (v.assign_add(0), v.assign_add(1));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    at_once(|| {
        session.run(&[], nothing.operation()).unwrap();
        session.run(&[], one.operation()).unwrap();
    });
    let v = session.run(&[], &v).unwrap().to_vec::<i32>().unwrap();
    assert_eq!(v, [(THREADS * RUNS) as i32; 3]);
}

/// A variable of the host, to which a GPU adds.
#[test]
fn sums_may_be_computed_elsewhere() {
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let v = g.device("CPU:0", || g.variable("v", Init::Zeros, F32, [1000]));
        let by = g.placeholder("by", F32, dims![1000]);
        let add = g.device("GPU:0", || v.assign_add(&by));
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        at_once(|| {
            session
                .run(
                    &[by.feed(HostTensor::new(&[1000], vec![1.0f32; 1000]).unwrap())],
                    add.operation(),
                )
                .unwrap();
        });
        let v = session.run(&[], &v).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(v, vec![(THREADS * RUNS) as f32; 1000], "{}", device.name);
    }
}

/// A variable of a GPU, to which the host adds: by its device, and by indices that the GPU has not.
#[test]
fn sums_for_a_gpu_may_be_computed_on_the_host() {
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let v = g.device("GPU:0", || g.variable("v", Init::Zeros, F32, [1000, 4]));
        let by = g.placeholder("by", F32, dims![1000, 4]);
        let at = g.placeholder("at", I64, dims![2]);
        let used = g.device("GPU:0", || v.value() * 2.0);
        let whole = g.device("CPU:0", || v.assign_add(&by));
        let rows = v.scatter_add(&at, 1.0f32);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        session.run(&[], &used).unwrap();
        at_once(|| {
            let ones = HostTensor::new(&[1000, 4], vec![1.0f32; 4000]).unwrap();
            session.run(&[by.feed(ones)], whole.operation()).unwrap();
            session.run(&[at.feed([7i64, 7])], rows.operation()).unwrap();
        });
        let (v_, at_gpu) = session.run(&[], (&v, &used)).unwrap();
        let n = (THREADS * RUNS) as f32;
        let mut expected = vec![n; 4000];
        expected[28..32].fill(3.0 * n);
        assert_eq!(v_.to_vec::<f32>().unwrap(), expected, "{}", device.name);
        assert_eq!(at_gpu.to_vec::<f32>().unwrap()[0], 2.0 * n, "{}", device.name);
        let home = &session.variables()[0];
        assert_eq!((&*home.name, home.device), ("v", 1), "{}", device.name);
    }
}

/// Elements that are infinite stay so while others are added to.
#[test]
fn infinite_elements_stay_infinite() {
    let g = Graph::new();
    let start = g.constant([f32::INFINITY, 0.0]);
    let v = g.variable("v", Init::Tensor(start), F32, [2]);
    let by = g.placeholder("by", F32, dims![2]);
    let first = v.assign_add(&by);
    let both = g.after(&[&first.operation()], || v.assign_add(&by));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    at_once(|| {
        session.run(&[by.feed([0.0f32, 1.0])], both.operation()).unwrap();
    });
    let v = session.run(&[], &v).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(v, [f32::INFINITY, (THREADS * RUNS * 2) as f32]);
}

/// What is assigned to another variable is what was stored.
#[test]
fn a_copy_of_a_sum_is_the_sum() {
    let g = Graph::new();
    let (v, w) = (g.variable("v", Init::Zeros, I32, []), g.variable("w", Init::Zeros, I32, []));
    let sum = v.assign_add(1);
    let last = w.assign(&sum);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    at_once(|| {
        let (sum, last) = session.run(&[], (&sum, &last)).unwrap();
        assert_eq!(sum.scalar::<i32>().unwrap(), last.scalar::<i32>().unwrap());
        let (v, w) = session.run(&[], (v.value(), w.value())).unwrap();
        assert_eq!(v.scalar::<i32>().unwrap(), w.scalar::<i32>().unwrap());
    });
}
