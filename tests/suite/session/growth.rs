//! A graph that grows after it has run: what is new costs by itself, however much is there.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use convoke::prelude::*;
use convoke::{Explanation, RunOptions};
use convoke_tests::{TestDevice, devices, slow_on_host};

/// `n` operations on a matrix, one after the other, of which none becomes one kernel with the next.
fn chain(x: &Tensor, n: usize) -> Tensor {
    let mut y = x.clone();
    for i in 0..n {
        y = if i % 2 == 0 { y.matmul(x) } else { &y.transpose() * (0.5 + (i % 3) as f64) };
    }
    y
}

#[test]
fn ten_more_nodes_cost_what_ten_nodes_cost() {
    let new_nodes = |before: usize| -> Duration {
        let g = Graph::new();
        let x = g.placeholder("x", F32, [2, 2]);
        let all = chain(&x, before);
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        let feeds = [x.feed([[0.5f32, 0.0], [0.0, 0.5]])];
        session.run(&feeds, &all).unwrap();
        let times = (0..7).map(|_| {
            let more = chain(&x, 10);
            let (_, run) = session.run_with(&feeds, &more, Default::default()).unwrap();
            assert!(run.graph_nodes < 40, "{}", run.graph_nodes);
            run.planning + run.preparing
        });
        times.min().unwrap()
    };
    let (small, large) = (new_nodes(10), new_nodes(10_000));
    println!("ten more nodes: {small:?} after ten, {large:?} after ten thousand");
    assert!(large < small * 4 + Duration::from_micros(500), "{small:?}, then {large:?}");
}

/// The test devices that are GPUs.
fn gpus() -> impl Iterator<Item = &'static TestDevice> {
    devices().iter().filter(|device| device.devices.list().len() > 1)
}

/// How many items of an explanation stayed while others were placed.
fn n_kept(explanation: &Explanation) -> usize {
    let is_kept = |&i: &usize| explanation.why(i) == "kept: it was placed here before";
    (0..explanation.items().len()).filter(is_kept).count()
}

/// What was placed with many others stays where it is, and ten more operations are placed beside it, as many of them as
/// without the others; where much is new, all of it is placed again.
#[test]
fn what_builds_on_a_large_program_keeps_its_places() {
    for device in gpus() {
        let placed_beside = [3000, 6000].map(|n| {
            let g = Graph::new();
            let x = g.placeholder("x", F32, [2, 2]);
            let all = chain(&x, n);
            let more = &all.matmul(&x) * 3.0;
            let grown = chain(&more, 8);
            let feeds = [x.feed([[0.5f32, 0.25], [-0.25, 0.5]])];
            let session = Session::new(&g, &device.devices).unwrap();
            let placed = |y: &Tensor| {
                let explanation = session.explain(&feeds, y).unwrap();
                (explanation.items().len(), n_kept(&explanation))
            };
            let (first, kept) = placed(&all);
            assert!(first >= 1024, "{}: {first} groups", device.name);
            assert_eq!(kept, 0, "{}", device.name);
            let (items, kept) = placed(&grown);
            let n_new = items - first;
            assert!((1..=10).contains(&n_new), "{}: {n_new}", device.name);
            // But for what became other kernels as there is more behind it, and what is next to that.
            let n_placed = items - kept;
            assert!(
                0 < n_placed && n_placed <= n_new + 4,
                "{}: {n_placed} of {items}",
                device.name
            );
            let reference = Session::new(&g, &Devices::cpu()).unwrap();
            assert_eq!(
                session.run(&feeds, &grown).unwrap(),
                reference.run(&feeds, &grown).unwrap()
            );
            // Half as much again is placed with all the rest, and what builds on that beside it again.
            let much = chain(&grown, n / 2);
            assert_eq!(placed(&much).1, 0, "{}", device.name);
            let (items, kept) = placed(&(much.matmul(&x) * 2.0));
            assert!(kept + 10 >= items, "{}: {kept} of {items}", device.name);
            n_placed
        });
        assert_eq!(placed_beside[0], placed_beside[1], "{}", device.name);
    }
}

/// Variables stay where they have settled while a large program grows that reads and stores them, also where all that
/// reads them is elsewhere by then.
#[test]
fn a_large_program_grows_around_its_variables() {
    for (device, home, away) in gpus().flat_map(|gpu| [(gpu, 0, 1), (gpu, 1, 0)]) {
        let g = Graph::new();
        let [v, w] = ["v", "w"].map(|name| g.variable(name, Init::Constant(0.25), F32, [2, 2]));
        let x = g.placeholder("x", F32, [2, 2]);
        let session = Session::new(&g, &device.devices).unwrap();
        let reference = Session::new(&g, &Devices::cpu()).unwrap();
        for session in [&session, &reference] {
            session.run(&[], g.initializers()).unwrap();
        }
        let homes = || session.variables().iter().map(|v| v.device).collect::<Vec<_>>();
        let feeds = [x.feed([[0.5f32, 0.25], [-0.25, 0.5]])];
        let all = chain(v.value(), 3000) + &x;
        let on = |place: usize, k: f64| {
            g.device(["CPU:0", "GPU:0"][place], || (w.value() * k).matmul(&all).tanh())
        };
        let mut y = on(home, 2.0);
        let mut settled = None;
        for step in 0..3 {
            let elements = |session: &Session| -> Vec<f32> {
                session.run(&feeds, &y).unwrap().to_vec().unwrap()
            };
            let (found, expected) = (elements(&session), elements(&reference));
            for (found, expected) in found.into_iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "{}: {found} of {expected}", device.name);
            }
            assert_eq!(homes(), *settled.get_or_insert_with(homes), "{}: {step}", device.name);
            assert_eq!(homes()[1], home, "{}: {step}", device.name);
            let explanation = session.explain(&feeds, &y).unwrap();
            let kept = n_kept(&explanation);
            assert!(kept > 1000 || step == 0, "{}: {step}: {kept}", device.name);
            let stored = v.assign(&y * 0.5);
            for session in [&session, &reference] {
                session.run(&feeds, stored.operation()).unwrap();
            }
            y = on(away, 3.0 + f64::from(step));
        }
    }
}

/// Around a large program, what is read, stored and fetched comes and goes, and variables are reset: each run gives what
/// the CPU gives, and makes the submissions and transfers that were predicted.
#[test]
fn what_a_large_program_reads_and_stores_comes_and_goes() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, [2, 2]);
        let v = g.variable("v", Init::Constant(0.5), F32, [2, 2]);
        let all = chain(&x, 3000);
        let on = |place: &str, f: &dyn Fn() -> Tensor| g.device(place, f);
        let z = on("GPU:0", &|| &all * 2.0);
        let read = on("GPU:0", &|| v.value().matmul(&x));
        let stored = v.assign(&z);
        let late = on("CPU:0", &|| v.value() * 3.0);
        let y = on("CPU:0", &|| &z + 1.0);
        let session = Session::new(&g, &device.devices).unwrap();
        let reference = Session::new(&g, &Devices::cpu()).unwrap();
        let feeds = [x.feed([[0.5f32, 0.25], [-0.25, 0.5]])];
        let set = |session: &Session| session.run(&[], g.initializers()).map(drop).unwrap();
        let steps: [(&str, &[&Tensor], bool); 9] = [
            ("a read", &[&all, &read], false),
            ("no read", &[&all], false),
            ("a store", &[&all], true),
            ("a store and a read", &[&all, &late], true),
            ("more that is fetched", &[&all, &late, &z], true),
            ("less that is fetched", &[&all, &y], false),
            ("two reads", &[&all, &y, &read, &late], false),
            ("all", &[&all, &y, &read, &late, &z], true),
            ("nothing but what is large", &[&all], false),
        ];
        for (round, resets) in [false, true].into_iter().enumerate() {
            for (what, fetches, stores) in steps {
                if resets || what == "a read" {
                    session.reset(&[]).unwrap();
                    reference.reset(&[]).unwrap();
                    set(&session);
                    set(&reference);
                }
                let at = format!("{}: {what}, round {round}", device.name);
                let target = stores.then(|| stored.operation());
                let fetched = (fetches.to_vec(), target.clone());
                let explanation = session.explain(&feeds, &fetched).unwrap();
                let kept = n_kept(&explanation);
                assert!(kept > 1000 || (round, what) == (0, "a read"), "{at}: {kept}");
                let (found, run) =
                    session.run_with(&feeds, &fetched, RunOptions::default()).unwrap();
                let expected = reference.run(&feeds, &fetched).unwrap();
                assert_eq!(found.0, expected.0, "{at}");
                let prediction = explanation.prediction();
                assert_eq!(run.submissions, prediction.submissions as u64, "{at}\n{explanation}");
                let crossed = run.uploads + run.downloads;
                assert_eq!(crossed, prediction.transfers.len() as u64, "{at}\n{explanation}");
            }
        }
    }
}

/// What is to be with an assignment is with its variable where the run makes none, however the large program around it
/// was placed before.
#[test]
fn ties_around_a_large_program_are_those_of_the_run() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, [2, 2]);
        let v = g.variable("v", Init::Constant(0.5), F32, [2, 2]);
        let all = chain(&x, 3000);
        let home = g.device("CPU:0", || v.value() * 2.0);
        let added = g.device("GPU:0", || v.assign_add(&x).operation());
        let with = g.colocate_with(&added, || x.sin());
        let session = Session::new(&g, &device.devices).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let feeds = [x.feed([[0.5f32, 0.25], [-0.25, 0.5]])];
        session.run(&feeds, &home).unwrap();
        let fresh = Session::new(&g, &device.devices).unwrap();
        fresh.run(&[], g.initializers()).unwrap();
        fresh.run(&feeds, &home).unwrap();
        for adds in [false, true, false, true] {
            let target = adds.then(|| added.clone());
            let place = |session: &Session, all: Option<&Tensor>| {
                let fetched = (all, &home, &with, target.clone());
                let explanation = session.explain(&feeds, fetched).unwrap();
                let item = explanation.items().iter().find(|item| item.name.starts_with("sin"));
                item.unwrap_or_else(|| panic!("{explanation}")).device
            };
            // Without what is large, all is placed by itself.
            let (small, large) = (place(&fresh, None), place(&session, Some(&all)));
            assert_eq!(small, usize::from(adds), "{}", device.name);
            assert_eq!(large, small, "{}: {adds}", device.name);
        }
    }
}

/// A variable is where it has settled however the graph grows, wherever new work is that reads it.
#[test]
fn a_settled_variable_stays_while_the_graph_grows() {
    for device in gpus() {
        let names = ["CPU:0", "GPU:0"];
        for (home, away) in [(0, 1), (1, 0)] {
            let g = Graph::new();
            let v = g.variable("v", Init::Constant(1.0), F32, [64]);
            let session = Session::new(&g, &device.devices).unwrap();
            session.run(&[], g.initializers()).unwrap();
            let at = |place: usize, k: f64| g.device(names[place], || v.value() * k);
            session.run(&[], &at(home, 2.0)).unwrap();
            let homes = || session.variables().iter().map(|v| v.device).collect::<Vec<_>>();
            assert_eq!(homes(), [home], "{}", device.name);
            for k in [3.0f32, 4.0, 5.0] {
                let y = at(away, k.into());
                let why = session.explain(&[], &y).unwrap().why(0);
                assert_eq!(why, "assigned: it is already here", "{}", device.name);
                let (y, run) = session.run_with(&[], &y, RunOptions::default()).unwrap();
                assert_eq!(y.to_vec::<f32>().unwrap(), [k; 64], "{}", device.name);
                // It goes to the GPU, or what it gives comes from there; either way its 256 bytes.
                let crossed = run.upload_bytes + run.download_bytes;
                assert_eq!(crossed, if home == 0 { 512 } else { 256 }, "{}: {run}", device.name);
                assert_eq!(homes(), [home], "{}", device.name);
            }
            let w = g.variable("w", Init::Constant(1.0), F32, [64]);
            session.run(&[], w.initializer()).unwrap();
            let y = g.device(names[away], || v.value() + &w);
            assert_eq!(session.run(&[], &y).unwrap().to_vec::<f32>().unwrap(), [2.0; 64]);
            assert_eq!(homes(), [home, away], "{}", device.name);
        }
    }
}

/// Keeps what is written.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What this thread logs in `f`.
pub(super) fn logged(f: impl FnOnce()) -> String {
    let log = Log::default();
    let own = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || own.clone());
    tracing::subscriber::with_default(subscriber.finish(), f);
    let bytes = log.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

/// What TensorFlow's users find out from a training that becomes slower and slower.
#[test]
fn a_graph_that_grows_run_after_run_is_told_of_once() {
    let run_and_grow = |warn_of_growth: bool, grows: bool| {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let options = SessionOptions { warn_of_growth, ..SessionOptions::default() };
        let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
        let fixed = &x + 1.0;
        let log = logged(|| {
            for i in 0..40 {
                let y = if grows { &x + f64::from(i) } else { fixed.clone() };
                session.run(&[x.feed(1.0)], &y).unwrap();
            }
        });
        // What this machine's user has calibrated may be told of as well.
        log.lines().filter(|line| line.contains("grow")).collect::<Vec<_>>().join("\n")
    };
    let told = run_and_grow(true, true);
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("the graph has grown before each of the last 16 runs"), "{told}");
    assert!(told.contains("growth.rs:") && told.contains("feed what differs"), "{told}");
    assert_eq!(run_and_grow(true, false), "");
    assert_eq!(run_and_grow(false, true), "");
}

/// TensorFlow: `testExtendWithStatelessOperations`.
#[test]
fn extend_with_stateless_operations() {
    for device in devices() {
        let g = Graph::new();
        let a = g.constant([[1.0f32, 2.0]]);
        let session = device.session(&g);
        let of = |x: &Tensor| session.run(&[], x).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(of(&a), [1.0, 2.0]);
        let c = a.matmul(g.constant([[2.0f32, 2.0], [3.0, 3.0]]));
        assert_eq!(of(&c), [8.0, 8.0], "{}", device.name);
        let e = c.matmul(g.constant([[1.0f32], [1.0]]));
        assert_eq!((of(&e), of(&c)), (vec![16.0], vec![8.0, 8.0]), "{}", device.name);
    }
}

/// TensorFlow: `testExtendWithStatefulOperations`: a variable keeps its elements while the graph grows.
#[test]
fn extend_with_stateful_operations() {
    for device in devices() {
        let g = Graph::new();
        let c = g.constant([[8.0f32, 8.0]]) * 1.0;
        let v = g.variable("v", Init::Zeros, F32, [1, 2]);
        let assign = v.assign(&c);
        let session = device.session(&g);
        let of = |x: &Tensor| session.run(&[], x).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(of(&assign), [8.0, 8.0]);
        assert_eq!(of(v.value()), [8.0, 8.0], "{}", device.name);
        let e = v.value() + 1.0;
        let again = v.assign_add(&e);
        assert_eq!(of(&e), [9.0, 9.0], "{}", device.name);
        assert_eq!(of(&again), [17.0, 17.0], "{}", device.name);
        let read = v.read() * 2.0;
        assert_eq!(of(&read), [34.0, 34.0], "{}", device.name);
    }
}

/// TensorFlow: `testExtendWithGroupBy`: initialisers are grouped anew as variables come.
#[test]
fn extend_with_group_by() {
    for device in devices() {
        let g = Graph::new();
        let p = g.variable("p", Init::Constant(1.0), F32, [1, 2]);
        let session = device.session(&g);
        let of = |x: &Variable| session.run(&[], x).unwrap().to_vec::<f32>().unwrap();
        session.run(&[], g.initializers()).unwrap();
        assert_eq!(of(&p), [1.0, 1.0]);
        let q = g.variable("q", Init::Constant(2.0), F32, [1, 2]);
        let r = g.variable("r", Init::Constant(3.0), F32, [1, 2]);
        session.run(&[], p.assign_add(5.0).operation()).unwrap();
        session.run(&[], g.group([q.initializer(), r.initializer()])).unwrap();
        assert_eq!((of(&p), of(&q), of(&r)), (vec![6.0; 2], vec![2.0; 2], vec![3.0; 2]));
        session.run(&[], g.initializers()).unwrap();
        assert_eq!(of(&p), [1.0, 1.0], "{}", device.name);
    }
}

/// TensorFlow: `testGraphDef`: the graph has the nodes that were built, and no others, whatever runs.
#[test]
fn graph_def() {
    let g = Graph::new();
    assert!(g.is_empty());
    let a = g.constant(5.0f32);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    assert_eq!(session.graph().len(), 1);
    let c = &a * g.constant(6.0f32);
    assert_eq!(session.graph().len(), 3);
    for _ in 0..3 {
        session.run(&[], &c).unwrap();
    }
    let snapshot = g.snapshot();
    assert_eq!((g.len(), snapshot.graph_id), (3, g.id()));
    let d = &c + 1.0;
    assert_eq!((g.len(), snapshot.nodes.len()), (5, 3));
    assert_eq!(session.run(&[], &d).unwrap().scalar::<f32>().unwrap(), 31.0);
}

/// TensorFlow: `testAddFunctionToSession`: what is composed of others, and what is defined anew, after the first run.
#[test]
fn add_function_to_session() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![2]);
        let session = device.session(&g);
        session.run(&[x.feed([1.0f32, 2.0])], &x).unwrap();
        let function = |a: &Tensor, b: &Tensor| slow_on_host(&(a * 2.0), Duration::ZERO) + b;
        let y = function(&function(&x, &x), &x);
        let y = session.run(&[x.feed([1.0f32, 2.0])], &y).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [7.0, 14.0], "{}", device.name);
    }
}

/// TensorFlow: `RunSimpleNetwork_OptimizeForStaticGraph`: a graph that is finished runs, and cannot be extended.
#[test]
fn run_simple_network_optimize_for_static_graph() {
    for device in devices() {
        let g = Graph::new();
        let a = g.constant([[3.0f32, 2.0], [-1.0, 0.0]]);
        let y = a.matmul(g.constant([[1.0f32], [1.0]]));
        g.finalize();
        let session = device.session(&g);
        let run = || session.run(&[], &y).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(run(), [5.0, -1.0], "{}", device.name);
        let error = session.run(&[], y.relu()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        assert!(error.message().contains("finalized"), "{error}");
        assert_eq!(run(), [5.0, -1.0], "{}", device.name);
    }
}
