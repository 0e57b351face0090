//! Colocation: what was asked to be with something is there, whatever becomes one kernel, and in branches and loops too.

use convoke::prelude::*;
use convoke::{Apart, Explanation, RunMetadata};
use convoke_tests::{devices, ramp};

fn hard() -> SessionOptions {
    SessionOptions { soft_placement: false, ..SessionOptions::default() }
}

/// The gap of the value that a node gives.
fn gap<'e>(explanation: &'e Explanation, node: &str) -> Option<&'e Apart> {
    let gap = explanation.gaps().iter().find(|gap| &*gap.node == node);
    gap.map(|gap| &gap.why)
}

/// Work that asks to be with one thing, then work on its result that asks to be with another.
struct Pair {
    graph: Graph,
    x: Tensor,
    /// What the two are with.
    anchors: [Tensor; 2],
    y: Tensor,
}

fn pair(
    devices: [Option<&str>; 2],
    first: impl Fn(&Tensor) -> Tensor,
    second: impl Fn(&Tensor) -> Tensor,
) -> Pair {
    let graph = Graph::new();
    let g = &graph;
    let x = g.placeholder("x", F32, dims![8, 4]);
    let at = |device: Option<&str>, build: &dyn Fn() -> Tensor| match device {
        Some(device) => g.device(device, build),
        None => build(),
    };
    let one = at(devices[0], &|| x.square());
    let other = at(devices[1], &|| x.cos());
    let between = g.colocate_with(&one.operation(), || g.scope("between", || first(&x)));
    let y = g.colocate_with(&other.operation(), || second(&between));
    Pair { x, anchors: [one, other], y, graph: graph.clone() }
}

/// Elementwise work, a product with work behind it, and rows with a total.
fn pairs(devices: [Option<&str>; 2]) -> [Pair; 3] {
    [
        pair(devices, Tensor::sin, Tensor::exp),
        pair(devices, |x| x.matmul(x.transpose()), Tensor::relu),
        pair(devices, |x| x.exp().sum(1), |rows| rows.mean(())),
    ]
}

#[test]
fn work_with_different_company_is_not_one_kernel() {
    for pair in pairs([None; 2]) {
        let session = Session::with_options(&pair.graph, &Devices::cpu(), hard()).unwrap();
        let feed = [pair.x.feed(ramp(&[8, 4]))];
        let [one, other] = &pair.anchors;
        let explanation = session.explain(&feed, (&pair.y, one, other)).unwrap();
        let found = explanation.gaps().iter().find(|gap| gap.why == Apart::Company);
        let found = found.unwrap_or_else(|| panic!("{explanation}"));
        assert!(found.node.starts_with("between/"), "{explanation}");
        let text = explanation.to_string();
        assert!(text.contains("its two ends are to be with different nodes"), "{text}");
    }
}

#[test]
fn work_with_the_same_company_is_one_kernel() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![8]);
    let near = x.square();
    let y = g.colocate_with(&near.operation(), || x.sin().exp());
    let session = Session::with_options(&g, &Devices::cpu(), hard()).unwrap();
    let explanation = session.explain(&[x.feed([0.5f32; 8])], (&y, &near)).unwrap();
    assert!(explanation.gaps().is_empty(), "{explanation}");
    assert_eq!(gap(&explanation, "sin"), None);
}

#[test]
fn each_end_is_where_its_company_is() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        for names in [["CPU:0", "GPU:0"], ["GPU:0", "CPU:0"]] {
            for pair in pairs(names.map(Some)) {
                let feed = [pair.x.feed(ramp(&[8, 4]))];
                let reference = Session::new(&pair.graph, &Devices::cpu()).unwrap();
                let expected = reference.run(&feed, &pair.y).unwrap().to_vec::<f32>().unwrap();
                let options = hard();
                let session = Session::with_options(&pair.graph, &device.devices, options).unwrap();
                let [one, other] = &pair.anchors;
                let (got, ..) = session.run(&feed, (&pair.y, one, other)).unwrap();
                for (got, expected) in got.to_vec::<f32>().unwrap().iter().zip(expected) {
                    let difference = (got - expected).abs();
                    assert!(difference <= 1e-4 * expected.abs().max(1.0), "{got} {expected}");
                }
                // Where the anchors are not computed they say all the same where the two are.
                let explanation = session.explain(&feed, &pair.y).unwrap();
                let places: Vec<usize> = explanation.items().iter().map(|i| i.device).collect();
                let [first, second] = names.map(|name| usize::from(name == "GPU:0"));
                let is_there = places[0] == first && places[1..].iter().all(|&at| at == second);
                assert!(places.len() > 1 && is_there, "{}: {explanation}", device.name);
            }
        }
    }
}

#[test]
fn a_malformed_device_is_refused_whatever_becomes_of_the_work() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![2, 3]);
    let works: [(&str, Tensor); 4] = [
        ("folded", g.device("/device:GPU:x", || (g.constant(1.0f32) + 2.0).named("folded"))),
        ("view", g.device("/device:GPU:x", || x.transpose().named("view"))),
        ("constant", g.device("/GPU:0/GPU:1", || g.constant([1.0f32; 4]).named("constant"))),
        ("work", g.device("/device:GPU:x", || x.sin().named("work"))),
    ];
    for soft_placement in [false, true] {
        let options = SessionOptions { soft_placement, ..SessionOptions::default() };
        let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
        for (name, work) in &works {
            let error = session.run(&[x.feed([[0.0f32; 3]; 2])], work).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{name}: {error}");
            assert!(error.node().is_some() && error.location().is_some(), "{name}: {error}");
            let helps =
                "\n  devices: CPU:0\n  help: ask for CPU:0; soft placement does not relax this";
            assert!(error.message().ends_with(helps), "{name}: {error}");
        }
        let in_loop = g.while_loop(
            (g.constant(0i32), x.clone()),
            |(i, _)| i.less(3),
            |(i, x)| (i + 1, g.device("/device:GPU:x", || x.transpose()).transpose()),
        );
        let error = session.run(&[x.feed([[0.0f32; 3]; 2])], &in_loop.1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}

/// TensorFlow: what is made in a branch inside of `with tf.colocate_with(op)` is colocated with `op`; device scopes around
/// that are ignored, and those inside of it are not.
#[test]
fn branches_and_loops_keep_the_scope_around_them() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![4]);
    let near = g.device("GPU:1", || x.square()).operation();
    let p = g.placeholder("p", Bool, dims![]);
    g.device("CPU:0", || {
        g.colocate_with(&near, || {
            g.cond(&p, || x.sin().named("branch"), || g.device("GPU:2", || x.cos().named("inner")));
            let cell = |(i, x): &(Tensor, Tensor)| (i + 1, x.exp().named("cell"));
            g.while_loop((g.constant(0i32), x.clone()), |(i, _)| i.less(3), cell);
        });
        g.cond(&p, || x.tan().named("scoped"), || x.clone());
    });
    let found = |name: &str| {
        let nodes = g.snapshot().nodes;
        let node = nodes.iter().find(|node| node.name.rsplit('/').next() == Some(name));
        let node = node.unwrap_or_else(|| panic!("{name}")).clone();
        (node.colocated.to_vec(), node.device.as_deref().map(str::to_owned))
    };
    assert_eq!(found("branch"), (vec![near.id()], None));
    assert_eq!(found("inner"), (vec![near.id()], Some("GPU:2".to_owned())));
    assert_eq!(found("cell"), (vec![near.id()], None));
    assert_eq!(found("scoped"), (vec![], Some("CPU:0".to_owned())));
}

#[test]
fn a_body_runs_where_its_company_is() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let p = g.placeholder("p", Bool, dims![]);
        let n = g.placeholder("n", I32, dims![]);
        let v = g.device("GPU:0", || g.variable("v", Init::Constant(1.0), F32, [4]));
        let near = g.device("GPU:0", || x.square());
        let (branch, looped) = (
            || g.cond(&p, || &x * 2.0, || -&x),
            || {
                let cell = |(i, x): &(Tensor, Tensor)| (i + 1, x * 2.0);
                g.while_loop((g.constant(0i32), x.clone()), |(i, _)| i.less(&n), cell).1
            },
        );
        let (handle, near) = (v.handle().operation(), near.operation());
        let with = |work: &dyn Fn() -> Tensor| {
            [g.colocate_with(&handle, work), g.colocate_with(&near, work), g.device("GPU:0", work)]
        };
        let (on_gpu, on_host) = ([with(&branch), with(&looped)].concat(), [branch(), looped()]);
        let session = Session::with_options(&g, &device.devices, hard()).unwrap();
        session.run(&[], g.initializers()).unwrap();
        // The variable lives on the GPU from now on.
        session.run(&[], &(&v + 1.0)).unwrap();
        let run = |fetch: &Tensor| -> RunMetadata {
            let feeds = [x.feed([1.0f32, 2.0, 3.0, 4.0]), p.feed(true), n.feed(1i32)];
            let (got, run) = session.run_with(&feeds, fetch, Default::default()).unwrap();
            assert_eq!(got.to_vec::<f32>().unwrap(), [2.0, 4.0, 6.0, 8.0]);
            run
        };
        for fetch in &on_gpu {
            assert!(run(fetch).dispatches > 0, "{}: {}", device.name, fetch.node().name);
        }
        for fetch in &on_host {
            assert_eq!(run(fetch).dispatches, 0, "{}: {}", device.name, fetch.node().name);
        }
    }
}
