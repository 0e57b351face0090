//! Devices: scopes, soft placement, truly split graphs.

use convoke::half::f16;
use convoke::prelude::*;
use convoke::{DeviceKind, DeviceOptions, DevicePolicy, RunOptions, Shape};
use convoke_tests::{TestDevice, devices, slow};

fn with_soft(soft_placement: bool) -> SessionOptions {
    SessionOptions { soft_placement, ..SessionOptions::default() }
}

#[test]
fn a_device_that_does_not_exist() {
    let g = Graph::new();
    let x = g.constant([1.0f32, 2.0]);
    let v = g.variable("v", Init::Constant(1.0), F32, [2]);
    let y = g.device("GPU:7", || &v + &x);
    let hard = Session::with_options(&g, &Devices::cpu(), with_soft(false)).unwrap();
    hard.run(&[], g.initializers()).unwrap();
    let error = hard.run(&[], &y).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("GPU:7"), "{error}");
    let soft = Session::with_options(&g, &Devices::cpu(), with_soft(true)).unwrap();
    soft.run(&[], g.initializers()).unwrap();
    assert_eq!(soft.run(&[], &y).unwrap().to_vec::<f32>().unwrap(), [2.0, 3.0]);
    let malformed = g.device("/device:GPU:x", || &v * 2.0);
    assert_eq!(soft.run(&[], &malformed).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let unknown = SessionOptions {
        policy: DevicePolicy::Prefer("GPU:3".into()),
        ..SessionOptions::default()
    };
    assert_eq!(
        Session::with_options(&g, &Devices::cpu(), unknown).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(Devices::named("no such adapter").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn an_operation_without_a_kernel_there() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F64, dims![3]);
        let y = g.device("GPU:0", || x.sin());
        let hard = Session::with_options(&g, &device.devices, with_soft(false)).unwrap();
        let error = hard.run(&[x.feed([0.0f64; 3])], &y).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        let soft = Session::with_options(&g, &device.devices, with_soft(true)).unwrap();
        assert_eq!(
            soft.run(&[x.feed([0.0f64; 3])], &y).unwrap().to_vec::<f64>().unwrap(),
            [0.0; 3]
        );
    }
}

#[test]
fn a_graph_with_stages_on_both_devices() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 8]);
        let w = g.device("GPU:0", || g.variable("w", Init::Constant(0.5), F32, [8, 4]));
        let first = g.device("CPU:0", || &x * 2.0);
        let second = g.device("GPU:0", || first.matmul(&w).relu());
        let third = g.device("CPU:0", || second.sum(1));
        let session = Session::new(&g, &device.devices).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let images = [[1.0f32; 8], [-1.0; 8], [0.5; 8]];
        let (y, metadata) =
            session.run_with(&[x.feed(images)], &third, Default::default()).unwrap();
        // 2 * 8 * 0.5 = 8 for each of 4 columns.
        assert_eq!(y.to_vec::<f32>().unwrap(), [32.0, 0.0, 16.0], "{}", device.name);
        assert_eq!((metadata.uploads, metadata.downloads), (1, 1), "{metadata}");
        assert_eq!((metadata.upload_bytes, metadata.download_bytes), (3 * 8 * 4, 3 * 4 * 4));
        let predicted = (metadata.predicted_transfers, metadata.predicted_transfer_bytes);
        assert_eq!(predicted, (2, 3 * 8 * 4 + 3 * 4 * 4));
        assert_eq!(metadata.submissions, 1);
        let explanation = session.explain(&[x.feed(images)], &third).unwrap();
        assert_eq!(explanation.prediction().transfers.len(), 2, "{explanation}");
        assert_eq!(session.variables()[0].device, 1);
    }
}

#[test]
fn software_adapters_are_used_only_when_named() {
    let hardware = Devices::open().unwrap();
    assert!(hardware.list().iter().all(|device| device.kind != DeviceKind::SoftwareGpu));
    for device in devices() {
        let named = device.devices.list();
        for gpu in named.iter().filter(|gpu| gpu.kind == DeviceKind::SoftwareGpu) {
            let without = hardware.list().iter().all(|other| other.adapter != gpu.adapter);
            assert!(without, "{}", device.name);
        }
    }
}

#[test]
fn colocated_work_follows() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let v = g.device("GPU:0", || g.variable("v", Init::Constant(1.0), F32, [4]));
        let y = g.colocate_with(&v.handle().operation(), || &x * 2.0);
        let session = Session::new(&g, &device.devices).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let run = |fetch: &Tensor| {
            session.run_with(&[x.feed([1.0f32; 4])], fetch, Default::default()).unwrap()
        };
        let (got, metadata) = run(&(&y + &v));
        assert_eq!(got.to_vec::<f32>().unwrap(), [3.0; 4]);
        assert!(metadata.dispatches > 0, "{}: {metadata}", device.name);
        assert_eq!(run(&(&x * 2.0)).1.dispatches, 0, "{}: alone it stays on the CPU", device.name);
    }
}

#[test]
fn halves_run_where_the_adapter_has_them() {
    let mut n = 0;
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F16, dims![2, 2]);
        let y = g.device("GPU:0", || x.matmul(&x) * 0.5);
        let session = Session::with_options(&g, &device.devices, with_soft(false)).unwrap();
        let halves = [1.0f32, 2.0, 3.0, 4.0].map(f16::from_f32).to_vec();
        let feed = HostTensor::from(halves).reshaped(Shape::new(&[2, 2]).unwrap()).unwrap();
        let run = session.run_with(&[x.feed(&feed)], &y, Default::default());
        if device.devices.list()[1].limits.contains("f16") {
            let (y, metadata) = run.unwrap();
            // The square is [[7, 10], [15, 22]].
            let expected = [3.5f32, 5.0, 7.5, 11.0].map(f16::from_f32);
            assert_eq!(y.to_vec::<f16>().unwrap(), expected, "{}", device.name);
            assert_eq!((metadata.dispatches, metadata.upload_bytes), (1, 8), "{metadata}");
            n += 1;
        } else {
            let error = run.unwrap_err();
            assert!(error.to_string().contains("unsupported"), "{}: {error}", device.name);
        }
    }
    println!("{n} adapters have f16");
}

#[test]
fn a_variable_gets_what_another_device_computes_later() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        for (one, other) in [("GPU:0", "CPU:0"), ("CPU:0", "GPU:0")] {
            let g = Graph::new();
            let x = g.placeholder("x", F32, dims![3]);
            let v = g.device(one, || g.variable("v", Init::Zeros, F32, [3]));
            let doubled = g.device(one, || &x * 2.0);
            let more = g.device(other, || &doubled + 1.0);
            let assign = v.assign(&more).operation();
            let session = Session::new(&g, &device.devices).unwrap();
            session.run(&[], g.initializers()).unwrap();
            let fetches = (&doubled, &assign);
            session.run(&[x.feed([1.0f32, 2.0, 3.0])], fetches).unwrap();
            let now = session.run(&[], v.value()).unwrap();
            assert_eq!(now.to_vec::<f32>().unwrap(), [3.0, 5.0, 7.0], "{} {one}", device.name);
        }
    }
}

/// A program that was made for a variable's memory before it moved must not store there when it is back.
#[test]
fn a_variable_that_moves_away_and_back_has_new_memory() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None]);
        let v = g.variable("v", Init::Zeros, F32, [3]);
        let value = x.sum(()) + g.constant([0.0f32; 3]);
        let on_gpu = g.device("GPU:0", || v.assign(&value)).operation();
        let on_cpu = g.device("CPU:0", || v.assign(&value)).operation();
        let session = Session::new(&g, &device.devices).unwrap();
        let run = |target: &Operation, x_is: &[f32]| {
            session.run(&[x.feed(x_is.to_vec())], target).unwrap();
            session.variables()[0].device
        };
        assert_eq!(run(&on_gpu, &[1.0, 1.0]), 1, "{}", device.name);
        assert_eq!(run(&on_gpu, &[1.0, 1.0, 1.0]), 1);
        assert_eq!(run(&on_cpu, &[5.0]), 0);
        assert_eq!(run(&on_gpu, &[2.0, 2.0]), 1);
        assert_eq!(run(&on_gpu, &[3.0, 3.0, 3.0]), 1);
        let now = session.run(&[], v.value()).unwrap();
        assert_eq!(now.to_vec::<f32>().unwrap(), [9.0; 3], "{}", device.name);
    }
}

const ONES: [[f32; 1]; 2] = [[1.0], [1.0]];

/// The CPU's name, and that of the last device.
fn ends(device: &TestDevice) -> [&str; 2] {
    let list = device.devices.list();
    [&list[0].name, &list[list.len() - 1].name]
}

/// TensorFlow: `testManyCPUs`, of GPUs, as there is one CPU: there are as many devices as were asked for.
#[test]
fn many_cpus() {
    for device in devices().iter().skip(1) {
        for n in 1..4 {
            let virtual_devices = vec![vec![32 << 20; n]];
            let many = device.open(DeviceOptions { virtual_devices, ..DeviceOptions::default() });
            let names: Vec<&str> = many.list().iter().map(|info| &*info.name).collect();
            let expected = ["CPU:0", "GPU:0", "GPU:1", "GPU:2"];
            assert_eq!(names, expected[..=n], "{}", device.name);
            let g = Graph::new();
            let x = g.placeholder("x", F32, dims![2]);
            let y = (0..n).map(|i| g.device(&format!("GPU:{i}"), || &x + 1.0));
            let y = y.reduce(|x, y| x + y).unwrap();
            let session = Session::new(&g, &many).unwrap();
            let y = session.run(&[x.feed([10.0f32; 2])], &y).unwrap();
            let y = y.to_vec::<f32>().unwrap();
            assert_eq!(y, [11.0 * n as f32; 2], "{}", device.name);
        }
    }
}

/// TensorFlow: `testInteractivePlacePrunedGraph`, `PlacePrunedGraph`: what cannot be placed harms no run that does
/// without it.
#[test]
fn interactive_place_pruned_graph() {
    for device in devices() {
        let g = Graph::new();
        let a = g.placeholder("a", F32, dims![1]);
        let stray = g.device("GPU:7", || slow(&a, Default::default()));
        let session = Session::with_options(&g, &device.devices, with_soft(false)).unwrap();
        let feeds = [a.feed([1.0f32])];
        let y = session.run(&feeds, &a + 1.0).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [2.0], "{}", device.name);
        let error = session.run(&feeds, &stray).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}: {error}", device.name);
    }
}

/// TensorFlow: `testDefaultSessionPlacePrunedGraph`. There, an operation that cannot be placed stops every run of the
/// graph; here only those that need it, before and after.
#[test]
fn default_session_place_pruned_graph() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![2]);
        let stray = g.device("GPU:7", || &x * 3.0);
        let y = &x * 2.0;
        let session = Session::with_options(&g, &device.devices, with_soft(false)).unwrap();
        for _ in 0..2 {
            let feeds = [x.feed([1.0f32, 2.0])];
            let error = session.run(&feeds, (&y, &stray)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert!(error.to_string().contains("GPU:7"), "{error}");
            assert_eq!(session.run(&feeds, &y).unwrap().to_vec::<f32>().unwrap(), [2.0, 4.0]);
        }
    }
}

/// TensorFlow: `InvalidDevice` of `direct_session_test.cc`: one too many, and the last there is.
#[test]
fn invalid_device() {
    for device in devices() {
        let g = Graph::new();
        let a = g.constant([[3.0f32, 2.0], [-1.0, 0.0]]);
        let x = g.placeholder("x", F32, dims![2, 1]);
        let n = device.devices.list().len() - 1;
        let wrong = g.device(&format!("GPU:{n}"), || a.matmul(&x));
        let right = g.device(ends(device)[1], || a.matmul(&x));
        let session = Session::with_options(&g, &device.devices, with_soft(false)).unwrap();
        let error = session.run(&[x.feed(ONES)], &wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}: {error}", device.name);
        let y = session.run(&[x.feed(ONES)], &right).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(y, [5.0, -1.0], "{}", device.name);
    }
}

/// `direct_session_test.cc`: a product on the first device, its negative on the last, and a variable that is set beside.
struct Network {
    g: Graph,
    x: Tensor,
    y: Tensor,
    y_neg: Tensor,
    set: Operation,
}

impl Network {
    fn new(device: &TestDevice) -> Self {
        let [first, last] = ends(device);
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![2, 1]);
        let v = g.variable("v", Init::Zeros, F32, [2, 1]);
        let y = g.device(first, || g.constant([[3.0f32, 2.0], [-1.0, 0.0]]).matmul(&x));
        let y_neg = g.device(last, || -&y);
        let set = v.assign(&y_neg).operation();
        Self { g, x, y, y_neg, set }
    }

    fn session(&self, device: &TestDevice) -> Session {
        Session::new(&self.g, &device.devices).unwrap()
    }
}

fn floats(tensor: &HostTensor) -> Vec<f32> {
    tensor.to_vec::<f32>().unwrap()
}

/// TensorFlow: `RunSimpleNetwork`: what is fetched, and what runs beside it.
#[test]
fn run_simple_network() {
    for device in devices() {
        let n = Network::new(device);
        let session = n.session(device);
        let (y, ()) = session.run(&[n.x.feed(ONES)], (&n.y, &n.set)).unwrap();
        assert_eq!(floats(&y), [5.0, -1.0], "{}", device.name);
        let v = session.run(&[], n.g.global_variables()).unwrap().remove(0);
        assert_eq!(floats(&v), [-5.0, 1.0], "{}", device.name);
    }
}

/// TensorFlow: `RunSimpleNetwork_Callable`. A callable that is released, or of an unknown handle, is none by type.
#[test]
fn run_simple_network_callable() {
    for device in devices() {
        let n = Network::new(device);
        let session = n.session(device);
        for _ in 0..2 {
            let callable = session.callable(&[&n.x], (&n.y, &n.set)).unwrap();
            for _ in 0..2 {
                assert_eq!(floats(&callable.call([ONES]).unwrap().0), [5.0, -1.0]);
            }
            let error = callable.call_into([ONES], &mut []).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        }
        let v = session.run(&[], n.g.global_variables()).unwrap().remove(0);
        assert_eq!(floats(&v), [-5.0, 1.0], "{}", device.name);
    }
}

/// TensorFlow: `TestFeed`, `TestFeed_Callable`: what is fed is needed on the last device.
#[test]
fn feed() {
    for device in devices() {
        let g = Graph::new();
        let [first, last] = ends(device);
        let x = g.device(last, || g.placeholder("x", F32, dims![2, 1]));
        let doubled = g.device(last, || &x * 2.0);
        let y = g.device(first, || g.constant([[3.0f32, 2.0], [-1.0, 0.0]]).matmul(&doubled));
        let session = Session::new(&g, &device.devices).unwrap();
        let fed = [[4.0f32], [1.0]];
        assert_eq!(floats(&session.run(&[x.feed(fed)], &y).unwrap()), [28.0, -8.0]);
        let callable = session.callable(&[&x], &y).unwrap();
        assert_eq!(floats(&callable.call([fed]).unwrap()), [28.0, -8.0], "{}", device.name);
        // So is what is computed on the other one, if it is fed.
        assert_eq!(floats(&session.run(&[doubled.feed(fed)], &y).unwrap()), [14.0, -4.0]);
    }
}

/// TensorFlow: `RunSimpleNetworkWithOpts`: each device has its times.
#[test]
fn run_simple_network_with_opts() {
    for device in devices() {
        let n = Network::new(device);
        let session = n.session(device);
        let feeds = [n.x.feed([[2.0f32], [2.0]])];
        let (y, run) = session.run_with(&feeds, (&n.y, &n.y_neg), RunOptions::timed()).unwrap();
        assert_eq!((floats(&y.0), floats(&y.1)), (vec![10.0, -2.0], vec![-10.0, 2.0]));
        for name in ends(device) {
            assert!(run.nodes.iter().any(|node| &*node.device == name), "{name}: {run}");
        }
        let callable = session.callable(&[&n.x], &n.y_neg).unwrap();
        let (_, run) = callable.call_with([ONES], &RunOptions::timed()).unwrap();
        for name in ends(device) {
            assert!(run.nodes.iter().any(|node| &*node.device == name), "{name}: {run}");
        }
    }
}

/// TensorFlow: `testMultipleLocalDevices`: over every device there is, and back.
#[test]
fn multiple_local_devices() {
    let options =
        || DeviceOptions { virtual_devices: vec![vec![32 << 20; 2]], ..DeviceOptions::default() };
    let opened = devices().iter().map(|device| match device.devices.list().len() {
        1 => device.devices.clone(),
        _ => device.open(options()),
    });
    for opened in opened {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![1]);
        let mut y = g.device("CPU:0", || &x * 1.0);
        for info in opened.list() {
            y = g.device(&info.name, || &y + 5.0);
        }
        let y = g.device("CPU:0", || y * 2.0);
        let session = Session::new(&g, &opened).unwrap();
        let y = session.run(&[x.feed([5.0f32])], &y).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(y, [10.0 * (1 + opened.list().len()) as f32], "{:?}", opened.list());
    }
}
