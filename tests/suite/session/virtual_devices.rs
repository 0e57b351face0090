//! One adapter split into several devices. TensorFlow: `virtual_device` of `python/framework/config_test.py`, by
//! meaning.

use convoke::prelude::*;
use convoke::{DeviceOptions, RunMetadata};
use convoke_tests::{TestDevice, compare, devices, ramp, several_adapters};

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
        // Up: the batch to each; down: the second's gradient, which is fetched; from one to the other: the variable,
        // and that gradient.
        assert_eq!(
            (metadata.uploads, metadata.downloads, metadata.copies),
            (2, 1, 2),
            "{metadata}"
        );
        let crossed = metadata.upload_bytes + metadata.download_bytes + metadata.copy_bytes;
        assert_eq!(metadata.predicted_transfer_bytes, crossed, "{metadata}");
        assert_eq!(metadata.predicted_transfers, 5);
    }
}

/// A run, of which the copies, transfers, bytes and submissions are those that were predicted.
fn predicted<F: Fetch + Copy>(
    session: &Session,
    feeds: &[Feed<'_>],
    fetch: F,
) -> (F::Output, RunMetadata) {
    let explanation = session.explain(feeds, fetch).unwrap();
    let (found, run) = session.run_with(feeds, fetch, Default::default()).unwrap();
    let crossings = explanation.crossings();
    let sums = |is_copy: bool| {
        let own = crossings.iter().filter(|crossing| crossing.is_copy() == is_copy);
        own.fold((0, 0), |(n, bytes), crossing| (n + 1, bytes + crossing.bytes))
    };
    assert_eq!((run.copies, run.copy_bytes), sums(true), "{run}\n{explanation}");
    let through = (run.uploads + run.downloads, run.upload_bytes + run.download_bytes);
    assert_eq!(through, sums(false), "{run}\n{explanation}");
    let all = (through.0 + run.copies, through.1 + run.copy_bytes);
    assert_eq!((run.predicted_transfers, run.predicted_transfer_bytes), all, "{run}");
    let prediction = explanation.prediction();
    let copies = prediction.transfers.iter().filter(|transfer| transfer.is_copy()).count();
    assert_eq!(run.copies, copies as u64, "{run}\n{explanation}");
    // What has no elements takes no submission.
    if run.dispatches > 0 {
        assert_eq!(run.submissions, prediction.submissions as u64, "{run}\n{explanation}");
    }
    (found, run)
}

/// At odd sizes: from the first to the second and back, with no word of the host in between.
#[test]
fn what_one_device_makes_another_copies() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let first = g.device("GPU:0", || &x * 2.0 + 1.0);
    let second = g.device("GPU:1", || (&first * 0.25).tanh() - &first);
    let last = g.device("GPU:0", || second.maximum(&first * -0.5));
    let cpu = Session::with_options(
        &g,
        &Devices::cpu(),
        SessionOptions { soft_placement: true, ..Default::default() },
    )
    .unwrap();
    for device in devices().iter().skip(1) {
        let session = Session::new(&g, &halves(device, 64 * MIB)).unwrap();
        for n in [0, 1, 1_000_003, 7, 0] {
            let of = ramp(&[n]);
            let feeds = [x.feed(&of)];
            let (found, run) = predicted(&session, &feeds, &last);
            let expected = cpu.run(&feeds, &last).unwrap();
            compare(&format!("{}, {n}", device.name), &found, &expected, Some(1e-5));
            let (one, bytes) = (u64::from(n > 0), 4 * n as u64);
            assert_eq!((run.uploads, run.downloads), (one, one), "{}: {run}", device.name);
            assert_eq!((run.copies, run.copy_bytes), (2 * one, 2 * bytes), "{run}");
            if n > 0 {
                assert_eq!(run.submissions, 3, "{}: {run}", device.name);
            }
        }
    }
}

/// Once to the host, and once to the other device: elements, of an odd number, and flags.
#[test]
fn what_the_host_reads_as_well_goes_to_it_beside_the_copy() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![1001]);
    let first = g.device("GPU:0", || &x * 2.0);
    let flags = g.device("GPU:0", || first.greater(0.0));
    let host = g.device("CPU:0", || &first + 3.0);
    let second = g.device("GPU:1", || flags.select(&first, &first * 0.5));
    let third = g.device("GPU:1", || &second - &first);
    for device in devices().iter().skip(1) {
        let session = Session::new(&g, &halves(device, 64 * MIB)).unwrap();
        let of = ramp(&[1001]);
        let (found, run) = predicted(&session, &[x.feed(&of)], (&first, &host, &second, &third));
        let of = of.to_vec::<f32>().unwrap();
        let doubled = found.0.to_vec::<f32>().unwrap();
        assert!(of.iter().zip(&doubled).all(|(x, y)| 2.0 * x == *y), "{}", device.name);
        let second = found.2.to_vec::<f32>().unwrap();
        let expected = doubled.iter().map(|&y| if y > 0.0 { y } else { 0.5 * y });
        assert!(expected.eq(second.iter().copied()), "{}", device.name);
        let third = found.3.to_vec::<f32>().unwrap();
        assert!(second.iter().zip(&doubled).map(|(a, b)| a - b).eq(third.iter().copied()));
        assert_eq!((run.uploads, run.downloads), (1, 3), "{}: {run}", device.name);
        assert!(run.copies >= 1 && run.submissions == 2, "{}: {run}", device.name);
    }
}

/// A variable is copied from where it lies, without a submission of its device. What a run stores there comes after, or
/// is not seen.
#[test]
fn variables_are_copied_from_where_they_lie() {
    let g = Graph::new();
    let v = g.device("GPU:0", || g.variable("v", Init::Value(ramp(&[333])), F32, [333]));
    let w = g.device("GPU:1", || g.variable("w", Init::Zeros, F32, [333]));
    let read = g.device("GPU:1", || (v.value() * 3.0).tanh());
    let step = g.device("GPU:0", || v.assign_add(v.value() * 0.5 + 1.0)).operation();
    let store = w.assign(v.value()).operation();
    // It is read after its device has worked, and stored into it.
    let early = g.device("GPU:0", || v.value() * 2.0);
    let late = g.device("GPU:1", || &early + v.value());
    for device in devices().iter().skip(1) {
        let session = Session::new(&g, &halves(device, 64 * MIB)).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let now = |session: &Session| session.run(&[], v.value()).unwrap().to_vec::<f32>().unwrap();
        session.run(&[], &early).unwrap();
        let before = now(&session);
        let (read, run) = predicted(&session, &[], &read);
        let expected = before.iter().map(|v| (v * 3.0).tanh());
        let close = |found: &HostTensor, expected: &mut dyn Iterator<Item = f32>| {
            let found = found.to_vec::<f32>().unwrap();
            let mut both = found.iter().zip(expected);
            both.all(|(found, expected)| (found - expected).abs() < 1e-4)
        };
        assert!(close(&read, &mut expected.into_iter()), "{}", device.name);
        assert_eq!((run.uploads, run.downloads, run.copies), (0, 1, 1), "{run}");
        assert_eq!((run.submissions, run.copy_bytes), (1, 4 * 333), "{}: {run}", device.name);
        let ((late, ()), run) = predicted(&session, &[], (&late, &step));
        assert!(close(&late, &mut before.iter().map(|v| 3.0 * v)), "{}: {run}", device.name);
        let after = now(&session);
        let both = before.iter().zip(&after);
        assert!({ both }.all(|(old, new)| (1.5 * old + 1.0 - new).abs() < 1e-4), "{}", device.name);
        let ((), run) = predicted(&session, &[], &store);
        assert_eq!((run.uploads, run.downloads, run.copies), (0, 0, 1), "{run}");
        assert_eq!(run.submissions, 1, "{}: {run}", device.name);
        let stored = session.run(&[], w.value()).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(stored, after, "{}", device.name);
    }
}

/// A variable that nobody has read yet moves to the part that reads it by a copy.
#[test]
fn variables_move_by_a_copy() {
    for device in devices().iter().skip(1) {
        for n in [3333, 1 << 19] {
            let g = Graph::new();
            let [v, w] = ["v", "w"].map(|name| g.variable(name, Init::Zeros, F32, [n]));
            let x = g.placeholder("x", F32, dims![]);
            let store = [("GPU:0", &v, 2.0), ("GPU:1", &w, 3.0)].map(|(part, variable, k)| {
                let all = (&x * k).broadcast_to(&[n as i64]);
                g.device(part, || variable.assign(all)).operation()
            });
            let [of_v, of_w] = [("GPU:1", &v), ("GPU:0", &w)]
                .map(|(part, variable)| g.device(part, || variable.value().sum(())));
            let devices = halves(device, 64 * MIB);
            let session = Session::new(&g, &devices).unwrap();
            for store in &store {
                session.run(&[x.feed(0.5f32)], store).unwrap();
            }
            let homes = || session.variables().iter().map(|v| v.device).collect::<Vec<_>>();
            assert_eq!(homes(), [1, 2], "{}", device.name);
            let counted = || {
                let [a, b] = [1, 2].map(|index| devices.gpu_counters(index).unwrap().0);
                [a.copies + b.copies, a.upload_bytes + b.upload_bytes]
            };
            let before = counted();
            let (found, metadata) =
                session.run_with(&[], (&of_v, &of_w), Default::default()).unwrap();
            let after = counted();
            assert_eq!(homes(), [2, 1], "{}", device.name);
            // Multiples of a half, so that sums are exact.
            let found = [found.0, found.1].map(|sum| sum.scalar::<f32>().unwrap());
            assert_eq!(found, [n as f32, 1.5 * n as f32], "{}", device.name);
            // Before the run, so that they are none of its own. Besides, programs' own constants are sent.
            assert_eq!((after[0] - before[0], metadata.copies), (2, 0), "{}: {n}", device.name);
            assert!(after[1] - before[1] < 4096, "{}: {n}", device.name);
        }
    }
}

/// Runs at the same time, each with its own memory on both devices: what one makes, no other's copy sees.
#[test]
fn runs_at_the_same_time_copy_what_is_theirs() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![5003]);
    let first = g.device("GPU:0", || &x + 1.0);
    let second = g.device("GPU:1", || &first * 2.0);
    let last = g.device("GPU:0", || &second - &first);
    for device in devices().iter().skip(1) {
        let session = Session::new(&g, &halves(device, 64 * MIB)).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (session, x, last) = (&session, &x, &last);
                scope.spawn(move || {
                    for turn in 0..25 {
                        let value = (100 * thread + turn) as f32;
                        let feed = HostTensor::new(&[5003], vec![value; 5003]).unwrap();
                        let found = session.run(&[x.feed(feed)], last).unwrap();
                        let found = found.to_vec::<f32>().unwrap();
                        assert!(found.iter().all(|&found| found == value + 1.0), "{value}");
                    }
                });
            }
        });
    }
}

/// What is copied is in the memory of both; each has its own limit, and gets back what is freed there.
#[test]
fn each_device_keeps_to_its_own_limit() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let on = |name: &str| g.device(name, || (&x * 2.0 + 1.0).tanh());
    let (small, large) = (on("GPU:0"), on("GPU:1"));
    let copied = g.device("GPU:0", || &large * 0.5);
    let n = (MIB / 4) as usize;
    let feed = ramp(&[n]);
    for device in devices().iter().skip(1) {
        let virtual_devices = vec![vec![2 * MIB, 32 * MIB]];
        let devices = device.open(DeviceOptions { virtual_devices, ..DeviceOptions::default() });
        let alive = |at: usize| devices.gpu_counters(at).map_or(0, |(own, _)| own.bytes_alive);
        let session = Session::new(&g, &devices).unwrap();
        session.run(&[x.feed(&feed)], &large).unwrap();
        assert_eq!(alive(1), 0, "{}: the first has nothing of it", device.name);
        assert!(alive(2) > 2 * MIB, "{}", device.name);
        // With what it is sent and gives, 4 MiB.
        for fetch in [&small, &copied] {
            let error = session.run(&[x.feed(&feed)], fetch).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}: {error}", device.name);
        }
        let few = ramp(&[n / 16]);
        let (_, run) = predicted(&session, &[x.feed(&few)], &copied);
        assert_eq!((run.copies, run.copy_bytes), (1, MIB / 16), "{}: {run}", device.name);
        assert!(alive(1) > 0 && alive(1) <= 2 * MIB, "{}", device.name);
        drop(session);
        // Parameters, values and staging memory: what is left is kept for later runs, and is the device's own.
        let idle = [alive(1), alive(2)];
        assert!(idle[0] <= 2 * MIB && idle[1] <= 32 * MIB, "{}: {idle:?}", device.name);
    }
}

/// Parts of two adapters: copies within each, and the way through the host between them.
#[test]
fn adapters_do_not_copy_from_each_other() {
    let virtual_devices = vec![vec![64 * MIB; 2]];
    let more = DeviceOptions { virtual_devices, ..DeviceOptions::default() };
    let Some(devices) = several_adapters(more) else { return };
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![1003]);
    let first = g.device("GPU:0", || &x * 2.0);
    let second = g.device("GPU:1", || &first + 1.0);
    let third = g.device("GPU:2", || &second - &first);
    let last = g.device("GPU:1", || &third * &second);
    let session = Session::new(&g, &devices).unwrap();
    let (found, run) = predicted(&session, &[x.feed([0.5f32; 1003])], &last);
    assert_eq!(found.to_vec::<f32>().unwrap(), [2.0; 1003]);
    // Up: the feed, two to the other adapter, and one back; down: those three, and the last.
    assert_eq!((run.uploads, run.downloads, run.copies), (4, 4, 1), "{run}");
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
