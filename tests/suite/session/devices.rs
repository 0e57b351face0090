//! Devices: scopes, soft placement, truly split graphs.

use convoke::half::f16;
use convoke::prelude::*;
use convoke::{DeviceKind, DevicePolicy, Shape};
use convoke_tests::devices;

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
