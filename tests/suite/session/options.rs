//! What runs are asked to say of themselves, and say only then.

use convoke::prelude::*;
use convoke::{RunMetadata, RunOptions, Timings};
use convoke_tests::{TestDevice, devices};

/// `2 x + v` on the last device, and a step that adds its sum to `v`.
struct Model {
    g: Graph,
    x: Tensor,
    y: Tensor,
    step: Operation,
}

impl Model {
    fn new() -> Self {
        let g = Graph::new();
        let x = g.placeholder_with_default("x", [1.0f32, 2.0], dims![2]);
        let v = g.variable("v", Init::Zeros, F32, []);
        let y = &x * 2.0 + &v;
        let step = v.assign_add(y.sum(())).operation();
        Self { g, x, y, step }
    }

    fn session(&self, device: &TestDevice) -> Session {
        let session = device.session(&self.g);
        session.run(&[], self.g.initializers()).unwrap();
        session
    }
}

fn options(timings: Timings) -> RunOptions {
    RunOptions { timings, ..RunOptions::default() }
}

/// Each kernel of one device is named if `full`; none else.
#[track_caller]
fn check(run: &RunMetadata, full: bool, device: &TestDevice) {
    assert_eq!(run.nodes.is_empty(), !full, "{}: {run}", device.name);
    let own = device.devices.list().last().unwrap().name.clone();
    assert!(run.nodes.iter().all(|node| *node.device == *own), "{own}: {run}");
    assert_eq!(run.phases.is_empty(), !full, "{}: {run}", device.name);
    assert!(!run.wall.is_zero());
}

/// TensorFlow: `testRunOptionsRunMetadata`: with and without options, with and without what they ask for.
#[test]
fn run_options_run_metadata() {
    for device in devices() {
        let model = Model::new();
        let session = model.session(device);
        let right = |y: HostTensor| assert_eq!(y.to_vec::<f32>().unwrap(), [2.0, 4.0]);
        right(session.run(&[], &model.y).unwrap());
        for (timings, full) in [(Timings::Host, false), (Timings::Nodes, true)] {
            let (y, run) = session.run_with(&[], &model.y, options(timings)).unwrap();
            right(y);
            check(&run, full, device);
            let submitted = session.submit(&[], &model.y, options(timings));
            right(submitted.wait().unwrap());
            let (y, run) = session.submit(&[], &model.y, options(timings)).wait_with().unwrap();
            right(y);
            check(&run, full, device);
        }
    }
}

/// TensorFlow: `testPerStepTrace`: run after run, each says what it was asked for.
#[test]
fn per_step_trace() {
    for device in devices() {
        let model = Model::new();
        let session = model.session(device);
        for timings in [Timings::Host, Timings::Nodes, Timings::Host, Timings::Nodes] {
            let (_, run) = session.run_with(&[], &model.y, options(timings)).unwrap();
            check(&run, timings == Timings::Nodes, device);
        }
    }
}

/// TensorFlow: `testMakeCallableOnTensorWithRunOptions`.
#[test]
fn make_callable_on_tensor_with_run_options() {
    for device in devices() {
        let model = Model::new();
        let callable = model.session(device).callable(&[], &model.y).unwrap();
        let (y, run) = callable.call_with((), &options(Timings::Nodes)).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [2.0, 4.0]);
        check(&run, true, device);
        let (_, run) = callable.call_with((), &RunOptions::default()).unwrap();
        check(&run, false, device);
    }
}

/// TensorFlow: `testMakeCallableOnOperationWithRunOptions`.
#[test]
fn make_callable_on_operation_with_run_options() {
    for device in devices() {
        let model = Model::new();
        let session = model.session(device);
        let callable = session.callable(&[], &model.step).unwrap();
        let ((), run) = callable.call_with((), &options(Timings::Nodes)).unwrap();
        check(&run, true, device);
        let v = session.run(&[], model.g.global_variables()).unwrap().remove(0);
        assert_eq!(v.scalar::<f32>().unwrap(), 6.0, "{}", device.name);
    }
}

/// TensorFlow: `testMakeCallableWithFeedListAndRunOptions`.
#[test]
fn make_callable_with_feed_list_and_run_options() {
    for device in devices() {
        let model = Model::new();
        let callable = model.session(device).callable(&[&model.x], &model.y).unwrap();
        let (y, run) = callable.call_with([[10.0f32, 20.0]], &options(Timings::Nodes)).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [20.0, 40.0]);
        check(&run, true, device);
        assert_eq!(callable.call([[0.0f32; 2]]).unwrap().to_vec::<f32>().unwrap(), [0.0, 0.0]);
    }
}

/// TensorFlow: `testOptimizedMakeCallable`: made three times, called five times each.
#[test]
fn optimized_make_callable() {
    for device in devices() {
        let model = Model::new();
        let session = model.session(device);
        for _ in 0..3 {
            let callable = session.callable(&[&model.x], (&model.y, &model.x)).unwrap();
            for i in 0..5 {
                let x = [i as f32, 1.0];
                let (y, again) = callable.call([&x]).unwrap();
                assert_eq!(y.to_vec::<f32>().unwrap(), [2.0 * x[0], 2.0], "{}", device.name);
                assert_eq!(again.to_vec::<f32>().unwrap(), x);
            }
        }
    }
}

/// TensorFlow: `testOptimizedMakeCallableWithRunMetadata`.
#[test]
fn optimized_make_callable_with_run_metadata() {
    for device in devices() {
        let model = Model::new();
        let callable = model.session(device).callable(&[&model.x], &model.y).unwrap();
        for i in 0..5 {
            let (_, run) = callable.call_with([[1.0f32, 1.0]], &options(Timings::Nodes)).unwrap();
            check(&run, true, device);
            assert_eq!(run.program_cached, i > 0, "{}", device.name);
        }
    }
}

/// TensorFlow: `testInferShapesTrue`, `testInferShapesFalse`: shapes are inferred as the graph grows, always.
#[test]
fn infer_shapes() {
    let g = Graph::new();
    let (a, b) = (g.placeholder("a", F32, dims![None, 3]), g.constant([[1.0f32]; 3]));
    let y = a.matmul(&b);
    assert_eq!(y.dims().to_string(), format!("[{}, 1]", a.dims().dims().unwrap()[0]));
    assert_eq!(b.dims().shape().unwrap().dims(), [3, 1]);
    assert!(y.dims().shape().is_none());
}

/// TensorFlow: `testBuildCostModel`: what a run costs is told when it is asked for, predicted and measured.
#[test]
fn build_cost_model() {
    for device in devices() {
        let model = Model::new();
        let session = model.session(device);
        let explanation = session.explain(&[], &model.y).unwrap();
        assert!(!explanation.predicted().is_zero(), "{}", device.name);
        assert!(!explanation.items().is_empty());
        let (_, run) = session.run_with(&[], &model.y, options(Timings::Nodes)).unwrap();
        assert!(explanation.measured([&run]).is_ok(), "{}", device.name);
        let (_, run) = session.run_with(&[], &model.y, options(Timings::Host)).unwrap();
        assert!(explanation.measured([&run]).is_err(), "{}", device.name);
    }
}

/// TensorFlow: `testOutputPartitionGraphsDirect`: the parts for each device are there to be looked at.
#[test]
fn output_partition_graphs_direct() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let last = device.devices.list().last().unwrap().name.clone();
        let doubled = g.device(&last, || &x * 2.0);
        let y = g.device("CPU:0", || doubled.sum(()));
        let session = Session::new(&g, &device.devices).unwrap();
        let feeds = [x.feed([1.0f32, 2.0, 3.0, 4.0])];
        assert_eq!(session.run(&feeds, &y).unwrap().scalar::<f32>().unwrap(), 20.0);
        let explanation = session.explain(&feeds, &y).unwrap();
        let segments = explanation.segments().len();
        assert_eq!(segments, device.devices.list().len(), "{}: {explanation}", device.name);
        let text = session.program(&feeds, &y).unwrap().to_string();
        assert!(device.devices.list().len() == 1 || text.contains("device 1"), "{text}");
    }
}

/// TensorFlow: `testDefaultLogDevicePlacement`: each operation with its device's name.
#[test]
fn default_log_device_placement() {
    for device in devices() {
        let g = Graph::new();
        let last = device.devices.list().last().unwrap().name.clone();
        let x = g.placeholder("x", F32, dims![4]);
        let y = g.device(&last, || (&x * 2.0).named("doubled"));
        let session = device.session(&g);
        let explanation = session.explain(&[x.feed([1.0f32; 4])], &y).unwrap();
        let text = explanation.to_string();
        assert!(text.contains("mul") && text.contains(&*last), "{text}");
    }
}
