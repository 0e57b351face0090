//! One adapter split into several devices. TensorFlow: `virtual_device` of `python/framework/config_test.py`, by
//! meaning.

use convoke::DeviceOptions;
use convoke::prelude::*;
use convoke_tests::{TestDevice, devices, ramp};

const MIB: u64 = 1 << 20;

/// Two devices of one adapter, with this many bytes each.
fn halves(device: &TestDevice, bytes: u64) -> Devices {
    device.open(DeviceOptions { virtual_devices: vec![vec![bytes; 2]], ..DeviceOptions::default() })
}

#[test]
fn an_adapter_is_split_into_devices_of_their_own() {
    for device in devices().iter().skip(1) {
        let devices = halves(device, 64 * MIB);
        let names: Vec<&str> = devices.list().iter().map(|info| &*info.name).collect();
        assert_eq!(names[..3], ["CPU:0", "GPU:0", "GPU:1"]);
        let [_, first, second] = &devices.list()[..3] else { panic!("three devices") };
        assert_eq!(first.adapter, second.adapter);
        let id = first.id.strip_suffix(".0").unwrap();
        assert_eq!(second.id, format!("{id}.1"));
        // The stable name finds the adapter.
        let options = DeviceOptions { name: Some(id.to_owned()), ..DeviceOptions::default() };
        assert_eq!(Devices::with_options(&options).unwrap().list()[1].id, id);
    }
    let options = DeviceOptions {
        name: Some("llvmpipe".into()),
        virtual_devices: vec![vec![MIB]; 9],
        ..DeviceOptions::default()
    };
    if let Err(error) = Devices::with_options(&options) {
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::NotFound),
            "{error}"
        );
    }
}

/// A batch in two halves, each on its device, with one variable: the mean of both gradients is stored.
#[test]
fn a_batch_is_split_over_devices_by_scopes() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![8, 16]);
    let w = g.device("GPU:0", || g.variable("w", Init::glorot(5), F32, [16, 4]));
    let half = |name: &str, at: usize| {
        g.device(name, || {
            let rows = x.slice(&[4 * at, 0], &[Some(4), Some(16)]);
            rows.transpose().matmul(rows.matmul(&w).tanh())
        })
    };
    let (first, second) = (half("GPU:0", 0), half("GPU:1", 1));
    let step = g.device("GPU:0", || w.assign_sub((first + &second) * 0.05));
    let feed = ramp(&[8, 16]);
    let run = |devices: &Devices| {
        let session = Session::new(&g, devices).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let mut last = None;
        for _ in 0..3 {
            let fetch = (&step.operation(), &second);
            last = Some(session.run_with(&[x.feed(&feed)], fetch, Default::default()).unwrap());
        }
        let w = session.run(&[], w.value()).unwrap().to_vec::<f32>().unwrap();
        (w, last.unwrap().1)
    };
    let (expected, _) = run(&Devices::cpu());
    for device in devices().iter().skip(1) {
        let (got, metadata) = run(&halves(device, 64 * MIB));
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-4, "{}: {got} for {expected}", device.name);
        }
        // Up: the batch to each, the variable to the second, its gradient to the first; down: the variable and
        // the gradient, which is fetched too.
        assert_eq!((metadata.uploads, metadata.downloads), (4, 2), "{metadata}");
        let predicted = metadata.predicted_transfer_bytes;
        assert_eq!(predicted, metadata.upload_bytes + metadata.download_bytes, "{metadata}");
        assert_eq!(metadata.predicted_transfers, 6);
    }
}

#[test]
fn variables_spread_over_devices_that_hold_one_each() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![8, 512]);
    // 2 MiB each, and any GPU.
    let (a, b, y) = g.device("GPU", || {
        let a = g.variable("a", Init::Constant(0.001), F32, [512, 1024]);
        let b = g.variable("b", Init::Constant(0.002), F32, [1024, 512]);
        let y = x.matmul(&a).matmul(&b).sum(());
        (a, b, y)
    });
    for device in devices().iter().skip(1) {
        let devices = halves(device, 7 * MIB / 2);
        let session = Session::new(&g, &devices).unwrap();
        for variable in [&a, &b] {
            session.run(&[], variable.initializer()).unwrap();
        }
        let y = session.run(&[x.feed(HostTensor::new(&[8, 512], vec![1.0f32; 4096]).unwrap())], &y);
        // 512 * 0.001 = 0.512 in 1024 columns, times 0.002: 1.048576 in each of 8 * 512.
        let y = y.unwrap().scalar::<f32>().unwrap();
        assert!((y - 4294.967).abs() < 0.5, "{}: {y}", device.name);
        let homes: Vec<usize> = session.variables().iter().map(|info| info.device).collect();
        assert!(homes == [1, 2] || homes == [2, 1], "{}: {homes:?}", device.name);
    }
}
