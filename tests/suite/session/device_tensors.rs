//! Tensors that stay on their device. TensorFlow: `python/kernel_tests/session_ops_test.py` and
//! `FeedAndFetchTensorsInDeviceMemory*` of `core/common_runtime/direct_session_test.cc`, by meaning.

use convoke::prelude::*;
use convoke::{
    DeviceOptions, DeviceTensor, OnDevice, RunMetadata, RunOptions, Shape, TensorViewMut,
};
use convoke_tests::{TestDevice, devices, ramp};

/// The device that a test device prefers.
fn home(device: &TestDevice) -> &'static str {
    if is_gpu(device) { "GPU:0" } else { "CPU:0" }
}

fn is_gpu(device: &TestDevice) -> bool {
    device.devices.list().len() > 1
}

fn gpus() -> impl Iterator<Item = &'static TestDevice> {
    devices().iter().filter(|device| is_gpu(device))
}

fn scalar(tensor: &HostTensor) -> f32 {
    tensor.scalar::<f32>().unwrap()
}

/// Tensors that went to devices and came back.
fn crossed(run: &RunMetadata) -> [u64; 4] {
    [run.uploads, run.upload_bytes, run.downloads, run.download_bytes]
}

fn run<F: Fetch>(session: &Session, feeds: &[Feed<'_>], fetch: F) -> (F::Output, RunMetadata) {
    session.run_with(feeds, fetch, RunOptions::default()).unwrap()
}

/// TensorFlow: `FeedAndFetchTensorsInDeviceMemory`: what is squared twice is 16, and nothing crosses between.
#[test]
fn feed_and_fetch_tensors_in_device_memory() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let square = &x * &x;
        let session = device.session(&g);
        let (once, first) = run(&session, &[x.feed(2.0)], OnDevice(&square));
        let (twice, second) = run(&session, &[x.feed(&once)], OnDevice(&square));
        let (last, third) = run(&session, &[x.feed(&twice)], &square);
        let sent = u64::from(is_gpu(device));
        assert_eq!(crossed(&first), [sent, 4 * sent, 0, 0], "{}", device.name);
        assert_eq!(crossed(&second), [0; 4], "{}", device.name);
        assert_eq!(crossed(&third), [0, 0, sent, 4 * sent], "{}", device.name);
        for metadata in [first, second, third] {
            let transfers = metadata.uploads + metadata.downloads;
            assert_eq!(metadata.predicted_transfers, transfers, "{}", device.name);
        }
        assert_eq!((once.device(), twice.device()), (home(device), home(device)));
        assert_eq!(scalar(&once.to_host().unwrap()), 4.0);
        assert_eq!(scalar(&twice.to_host().unwrap()), 16.0);
        assert_eq!(scalar(&last), 256.0);
    }
}

/// TensorFlow: `FeedAndFetchTensorsInDeviceMemory_AllDataTypes`. There, most dtypes are refused; here each stays where a
/// kernel for it is, strings and what a GPU has no kernels for in host memory.
#[test]
fn feed_and_fetch_tensors_in_device_memory_all_data_types() {
    for device in devices() {
        let g = Graph::new();
        let session = device.session_with(&g, SessionOptions::default());
        for dtype in [Bool, I8, U8, I16, U16, I32, U32, I64, U64, F16, BF16, F32, F64] {
            let x = g.placeholder("x", dtype, dims![3]);
            let parts = [2, 1, 0].map(|at| x.slice(&[at], &[Some(1)]));
            let y = g.concat(&[&parts[0], &parts[1], &parts[2]], 0);
            let shape = Shape::new(&[3]).unwrap();
            let of = |elements: [i32; 3]| match dtype.is_float() {
                true => HostTensor::from_f64s(dtype, shape.clone(), &elements.map(f64::from)),
                false => HostTensor::from_i128s(dtype, shape.clone(), &elements.map(i128::from)),
            };
            let (value, turned) = (of([1, 0, 0]).unwrap(), of([0, 0, 1]).unwrap());
            let kept = session.run(&[x.feed(&value)], OnDevice(&y)).unwrap();
            assert_eq!((kept.dtype(), kept.shape().dims()), (dtype, &[3][..]));
            assert_eq!(kept.n_bytes(), 3 * dtype.n_bytes() as u64);
            assert_eq!(kept.to_host().unwrap(), turned, "{dtype} on {}", device.name);
            let back = session.run(&[x.feed(&kept)], &y).unwrap();
            assert_eq!(back, value, "{dtype} on {}", device.name);
        }
        let x = g.placeholder("x", Strings, dims![]);
        let kept = session.run(&[x.feed("two")], OnDevice(&x)).unwrap();
        assert_eq!((kept.device(), kept.to_host().unwrap()), ("CPU:0", "two".into()));
    }
}

/// TensorFlow: `HandleBasic`, `HandleEval`, `HandleAndValue`, `HandleCond`.
#[test]
fn handle_basic() {
    for device in devices() {
        let g = Graph::new();
        let (a, b) = (g.constant(10.0f32), g.constant(5.0f32));
        let p = g.placeholder("p", F32, dims![]);
        let c = &p * &b;
        let (d, chosen) = (&p * 10.0, g.cond(&a.greater(&b), || &p + 1.0, || &p + 2.0));
        let session = device.session(&g);
        let product = session.run(&[p.feed(10.0)], OnDevice(&c)).unwrap();
        assert_eq!(scalar(&product.to_host().unwrap()), 50.0);
        assert_eq!(scalar(&session.run(&[p.feed(&product)], &d).unwrap()), 500.0);
        // Both ways in one run, and as a part of something.
        let (kept, [value, again]) =
            session.run(&[p.feed(10.0)], (OnDevice(c.clone()), [&c, &c])).unwrap();
        assert_eq!(kept.to_host().unwrap(), value);
        assert_eq!(again, value);
        // Branches run on programs' results, which are on the host.
        assert_eq!(scalar(&session.run(&[p.feed(&product)], &chosen).unwrap()), 51.0);
        let kept = session.run(&[p.feed(&product)], OnDevice(&chosen)).unwrap();
        assert_eq!((kept.device(), scalar(&kept.to_host().unwrap())), ("CPU:0", 51.0));
    }
}

/// TensorFlow: `HandleForLoop`, `HandleWhileLoop`, `HandleGC`: nothing crosses in 100 iterations, nothing is made, and
/// what is not needed any more is not kept.
#[test]
fn handle_for_loop() {
    for device in devices().iter().map(TestDevice::alone) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![1000]);
        let next = &x + 1.0;
        let session = device.session(&g);
        let step = session.callable(&[&x], OnDevice(&next)).unwrap();
        let mut state = session.run(&[x.feed(vec![0.0f32; 1000])], OnDevice(&next)).unwrap();
        for _ in 0..2 {
            state = step.call([&state]).unwrap();
        }
        let alive = || {
            device.devices.gpu_counters(1).map(|(own, _)| (own.bytes_alive, own.buffers_created))
        };
        let before = alive();
        for _ in 0..97 {
            let (after, run) = step.call_with([&state], &RunOptions::default()).unwrap();
            state = after;
            assert_eq!(crossed(&run), [0; 4], "{}", device.name);
            assert!(run.program_cached);
            assert_eq!(run.device_bytes_allocated, 0, "{}", device.name);
        }
        assert_eq!(alive(), before, "{}", device.name);
        assert_eq!(state.to_host().unwrap().to_vec::<f32>().unwrap(), [100.0; 1000]);
        // A loop that ends when the data says so fetches that alone.
        let (ends, mut trips) = (next.mean(()).greater_equal(110.0), 0);
        loop {
            let (after, end) = session.run(&[x.feed(&state)], (OnDevice(&next), &ends)).unwrap();
            (state, trips) = (after, trips + 1);
            if end.scalar::<bool>().unwrap() {
                break;
            }
        }
        assert_eq!(trips, 10, "{}", device.name);
    }
}

/// TensorFlow: `HandleMover`: what is made on a GPU and read on the CPU is moved, and that is counted and predicted.
#[test]
fn handle_mover() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![8]);
        let made = g.device("GPU:0", || &x * 2.0);
        let p = g.placeholder("p", F32, dims![8]);
        let on_cpu = g.device("CPU:0", || &p + 1.0);
        let both = g.device("GPU:0", || &p * 3.0).sum(()) + on_cpu.sum(());
        let session = device.session(&g);
        let kept = session.run(&[x.feed(ramp(&[8]))], OnDevice(&made)).unwrap();
        let expected: Vec<f32> =
            ramp(&[8]).to_vec::<f32>().unwrap().iter().map(|x| 2.0 * x + 1.0).collect();
        for _ in 0..2 {
            let (found, metadata) = run(&session, &[p.feed(&kept)], &on_cpu);
            assert_eq!(found.to_vec::<f32>().unwrap(), expected, "{}", device.name);
            assert_eq!(crossed(&metadata), [0, 0, 1, 32], "{}", device.name);
            assert_eq!(metadata.predicted_transfers, 1);
            assert_eq!(metadata.predicted_transfer_bytes, 32);
        }
        // For the GPU it stays where it is all the same.
        let (_, metadata) = run(&session, &[p.feed(&kept)], (&on_cpu, OnDevice(&both)));
        assert_eq!(metadata.uploads + metadata.downloads, metadata.predicted_transfers);
        // A host tensor takes the other way, by another program.
        let (found, metadata) = run(&session, &[p.feed(kept.to_host().unwrap())], &on_cpu);
        assert_eq!(found.to_vec::<f32>().unwrap(), expected);
        assert_eq!(crossed(&metadata), [0; 4]);
    }
}

/// What is fed from a GPU stays there in runs with branches, too, as far as only programs of the run read it.
#[test]
fn fed_to_a_run_with_a_branch_it_stays() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![1000]);
        let made = g.device("GPU:0", || &x * 2.0);
        let p = g.placeholder("p", F32, dims![1000]);
        let sum = g.device("GPU:0", || p.sum(()));
        let chosen = g.cond(&sum.greater(10.0), || &sum * 2.0, || -&sum);
        // Another program reads it after the branch.
        let after = g.device("GPU:0", || (&p * &chosen).sum(()));
        let session = device.session(&g);
        let ones = HostTensor::new(&[1000], vec![1.0f32; 1000]).unwrap();
        let kept = session.run(&[x.feed(&ones)], OnDevice(&made)).unwrap();
        for _ in 0..2 {
            let (found, metadata) = run(&session, &[p.feed(&kept)], &after);
            // 2,000, of which the double is multiplied by the sum.
            assert_eq!(found.scalar::<f32>().unwrap(), 8e6, "{}", device.name);
            let [_, up, _, down] = crossed(&metadata);
            assert!(up < 100 && down < 100, "{}: {up} and {down}", device.name);
            assert_eq!(metadata.predicted_transfer_bytes, up + down, "{}", device.name);
        }
        // The branch itself reads this: it comes to the host, and is right.
        let inside = g.cond(&sum.greater(10.0), || &p + 1.0, || p.identity());
        let found = session.run(&[p.feed(&kept)], (&inside, &p)).unwrap();
        assert_eq!(found.0.to_vec::<f32>().unwrap(), [3.0; 1000], "{}", device.name);
        assert_eq!(found.1.to_vec::<f32>().unwrap(), [2.0; 1000], "{}", device.name);
    }
}

/// TensorFlow: `HandleDelete`, `HandleDeleteRaw`: the memory is free with the last clone, and only then.
#[test]
fn handle_delete() {
    for device in gpus().map(TestDevice::alone) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None]);
        let y = &x * 2.0;
        let alive = || device.devices.gpu_counters(1).unwrap().0.bytes_alive;
        let session = device.session(&g);
        // Larger than what is kept for later tensors.
        let n = (65 << 20) / 4;
        let feed = vec![1.0f32; n];
        drop(session.run(&[x.feed(&feed)], OnDevice(&y)).unwrap());
        let before = alive();
        let kept = session.run(&[x.feed(&feed)], OnDevice(&y)).unwrap();
        let clone = kept.clone();
        assert_eq!(alive(), before + 4 * n as u64, "{}", device.name);
        drop(kept);
        assert_eq!(alive(), before + 4 * n as u64, "{}", device.name);
        drop(session);
        assert_eq!(clone.to_host().unwrap().to_vec::<f32>().unwrap()[n - 1], 2.0);
        drop(clone);
        assert!(alive() < before, "{}", device.name);
    }
}

/// TensorFlow: `MultiDevices`, `HandlePlacement`: of two devices, the sum is on one of them, which copies the other's
/// tensor.
#[test]
fn multi_devices() {
    for device in gpus() {
        let halves =
            DeviceOptions { virtual_devices: vec![vec![64 << 20; 2]], ..Default::default() };
        let devices = device.open(halves);
        let g = Graph::new();
        let [a, b] = ["a", "b"].map(|name| g.placeholder(name, F32, dims![4]));
        let first = g.device("GPU:0", || &a * 2.0);
        let second = g.device("GPU:1", || &b * 3.0);
        let sum = g.device("GPU:1", || &a + &b);
        let session = Session::new(&g, &devices).unwrap();
        let values = [1.0f32, 2.0, 3.0, 4.0];
        let feeds = [a.feed(values), b.feed(values)];
        let (one, two) = session.run(&feeds, (OnDevice(&first), OnDevice(&second))).unwrap();
        assert_eq!((one.device(), two.device()), ("GPU:0", "GPU:1"));
        let (three, metadata) = run(&session, &[a.feed(&one), b.feed(&two)], OnDevice(&sum));
        assert_eq!(three.device(), "GPU:1");
        assert_eq!(crossed(&metadata), [0; 4], "{}", device.name);
        assert_eq!((metadata.copies, metadata.copy_bytes), (1, 16), "{}", device.name);
        assert_eq!(metadata.predicted_transfers, 1, "{}", device.name);
        let found = three.to_host().unwrap().to_vec::<f32>().unwrap();
        assert_eq!(found, [5.0, 10.0, 15.0, 20.0], "{}", device.name);
    }
}

/// TensorFlow: `FeedOneHandleDirectly`, `FeedTwoHandlesDirectly`, `DirectHandleFeedOverlappingWithFetches`: any tensor is
/// fed, and what is fed and fetched is what was given.
#[test]
fn feed_one_handle_directly() {
    for device in devices() {
        let g = Graph::new();
        let (a, b) = (g.constant(10.0f32), g.constant(5.0f32));
        let c = &a * &b;
        let d = &c * &c;
        let e = &c / &d;
        let x = g.placeholder("x", F32, dims![]);
        let session = device.session(&g);
        let two = session.run(&[x.feed(1.0)], OnDevice(&x + 1.0)).unwrap();
        let eight = session.run(&[x.feed(1.0)], OnDevice(&x + 7.0)).unwrap();
        assert_eq!(scalar(&session.run(&[c.feed(&two)], &d).unwrap()), 4.0);
        let feeds = [c.feed(&two), d.feed(&eight)];
        assert_eq!(scalar(&session.run(&feeds, &e).unwrap()), 0.25, "{}", device.name);
        let (found, same, metadata) = {
            let ((found, same), metadata) = run(&session, &[c.feed(&two)], (&d, OnDevice(&c)));
            (found, same, metadata)
        };
        assert_eq!((scalar(&found), scalar(&same.to_host().unwrap())), (4.0, 2.0));
        assert_eq!(same.device(), two.device());
        assert_eq!(metadata.uploads, 0, "{}", device.name);
        // To the host, though nothing of it runs.
        let (found, metadata) = run(&session, &[c.feed(&two)], &c);
        assert_eq!(scalar(&found), 2.0);
        let came = u64::from(two.device() != "CPU:0");
        assert_eq!(crossed(&metadata), [0, 0, came, 4 * came], "{}", device.name);
    }
}

/// TensorFlow: `FeedHandleToVariableDirectly`: a read that is fed hides what is stored.
#[test]
fn feed_handle_to_variable_directly() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(12.0), F32, []);
        let sum = v.value() + 2.0;
        let add = v.assign_add(g.constant(1.0f32)).operation();
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let kept = session.run(&[], OnDevice(v.value())).unwrap();
        session.run(&[], &add).unwrap();
        assert_eq!(scalar(&session.run(&[v.feed(&kept)], &sum).unwrap()), 14.0, "{}", device.name);
        assert_eq!(scalar(&session.run(&[], &sum).unwrap()), 15.0, "{}", device.name);
    }
}

/// TensorFlow: `RunHandleTest`: a handle of one run is used in another, and by another session.
#[test]
fn other_sessions_take_it() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![2]);
        let y = &x * 2.0;
        let kept = device.session(&g).run(&[x.feed([1.0f32, 2.0])], OnDevice(&y)).unwrap();
        let other = Graph::new();
        let p = other.placeholder("p", F32, dims![None]);
        let q = &p + 1.0;
        let (found, metadata) = run(&device.session(&other), &[p.feed(&kept)], OnDevice(&q));
        assert_eq!(crossed(&metadata), [0; 4], "{}", device.name);
        assert_eq!(found.to_host().unwrap().to_vec::<f32>().unwrap(), [3.0, 5.0]);
        // Of the same adapter, opened once more: another device, which is reached through the host.
        let alone = device.alone();
        let (found, metadata) = run(&alone.session(&other), &[p.feed(&kept)], &q);
        assert_eq!(found.to_vec::<f32>().unwrap(), [3.0, 5.0], "{}", device.name);
        let sent = u64::from(is_gpu(device));
        assert_eq!(crossed(&metadata), [sent, 8 * sent, 2 * sent, 16 * sent], "{}", device.name);
        // On the CPU alone.
        let cpu = Session::new(&other, &Devices::cpu()).unwrap();
        assert_eq!(cpu.run(&[p.feed(&kept)], &q).unwrap(), found);
    }
}

#[test]
fn a_variable_that_stays_is_what_it_was() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(1.0), F32, [64]);
        let x = g.placeholder("x", F32, dims![64]);
        let double = v.assign(&x * 2.0).operation();
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        // Read by a program, so that it is where the session's programs want it.
        session.run(&[], v.value().sum(())).unwrap();
        let before = session.run(&[], OnDevice(v.value())).unwrap();
        let ((at_start, ()), metadata) =
            run(&session, &[x.feed(&before)], (OnDevice(v.value()), &double));
        assert_eq!(crossed(&metadata), [0; 4], "{}", device.name);
        let now = session.run(&[], &v).unwrap();
        session.run(&[x.feed(&now)], &double).unwrap();
        for (tensor, expected) in [(before, 1.0), (at_start, 1.0)] {
            assert_eq!(tensor.device(), home(device));
            let found = tensor.to_host().unwrap().to_vec::<f32>().unwrap();
            assert_eq!(found, [expected; 64], "{}", device.name);
        }
        assert_eq!(session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(), [4.0f32; 64]);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_what_fits_is_converted() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![2]);
        let wide = g.placeholder("wide", F64, dims![2]);
        let narrow = g.placeholder("narrow", I32, dims![2]);
        let rows = g.placeholder("rows", F32, dims![3]);
        let session = device.session_with(&g, SessionOptions::default());
        let kept = session.run(&[x.feed([1.5f32, 2.0])], OnDevice(&x * 2.0)).unwrap();
        assert!(format!("{kept:?}").contains("f32[2] on "), "{kept:?}");
        let wider = session.run(&[wide.feed(&kept)], &wide).unwrap();
        assert_eq!(wider.to_vec::<f64>().unwrap(), [3.0, 4.0]);
        for (feed, fetch) in [(narrow.feed(&kept), &narrow), (rows.feed(&kept), &rows)] {
            let error = session.run(&[feed], fetch).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        }
        let callable = session.callable(&[&x], OnDevice(&x * 2.0)).unwrap();
        let (mut memory, shape) = ([0u8; 8], Shape::new(&[2]).unwrap());
        let view = TensorViewMut::new(F32, &shape, &mut memory).unwrap();
        let error = callable.call_into([&kept], &mut [view]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}

/// Sizes that are computed from what is fed have to be known on the host.
#[test]
fn sizes_that_stay_on_a_device_are_looked_at() {
    for device in devices() {
        let g = Graph::new();
        let n = g.placeholder("n", I32, dims![2]);
        let x = g.placeholder("x", F32, dims![6]);
        let (sizes, shaped) = (&n + 1, x.reshape_to(&n));
        let session = device.session_with(&g, SessionOptions::default());
        let kept = session.run(&[n.feed([1i32, 2])], OnDevice(&sizes)).unwrap();
        let feed = ramp(&[6]);
        let found = session.run(&[n.feed(&kept), x.feed(&feed)], &shaped).unwrap();
        assert_eq!(found.dims(), [2, 3], "{}", device.name);
        let other = session.run(&[n.feed([3i32, 2]), x.feed(&feed)], &shaped).unwrap();
        assert_eq!(other.dims(), [3, 2], "{}", device.name);
    }
}

#[test]
fn a_run_that_fails_leaves_nothing() {
    for device in gpus().map(TestDevice::alone) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![1024]);
        let i = g.placeholder("i", I32, dims![1]);
        let rows = (&x * 2.0).gather(&i, 0);
        let session = device.session(&g);
        let good = session.run(&[x.feed(ramp(&[1024])), i.feed([3])], OnDevice(&rows)).unwrap();
        let alive = || device.devices.gpu_counters(1).unwrap().0.bytes_alive;
        let before = alive();
        for _ in 0..20 {
            let error =
                session.run(&[x.feed(ramp(&[1024])), i.feed([5000])], OnDevice(&rows)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        }
        assert!(alive() <= before + 64, "{}: {} and {before}", device.name, alive());
        let expected = ramp(&[1024]).to_vec::<f32>().unwrap()[3] * 2.0;
        assert_eq!(good.to_host().unwrap().to_vec::<f32>().unwrap(), [expected]);
    }
}

#[test]
fn submitted_and_partial_runs_take_and_give_them() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let (y, q) = (&x * 3.0, g.fifo_queue("q", 4, [(F32, dims![])]));
        let put = q.enqueue(&[&y]);
        let session = device.session(&g);
        let submitted = session.submit(&[x.feed(2.0)], OnDevice(&y), RunOptions::default());
        let kept: DeviceTensor = submitted.wait().unwrap();
        assert_eq!(scalar(&kept.to_host().unwrap()), 6.0, "{}", device.name);
        let submitted = session.submit(&[x.feed(kept.clone())], &y, RunOptions::default());
        assert_eq!(scalar(&submitted.wait().unwrap()), 18.0, "{}", device.name);
        // What is put into a queue is on the host, also where the same tensor stays.
        let (again, ()) = session.run(&[x.feed(&kept)], (OnDevice(&y), &put)).unwrap();
        assert_eq!(scalar(&again.to_host().unwrap()), 18.0);
        assert_eq!(scalar(&session.run(&[], &q.dequeue()[0]).unwrap()), 18.0);
        let mut partial = session.partial_run(&[&x], OnDevice(&y)).unwrap();
        let last = partial.run(&[x.feed(&kept)], OnDevice(&y)).unwrap();
        assert_eq!((last.device(), scalar(&last.to_host().unwrap())), ("CPU:0", 18.0));
    }
}

/// Left to the cost model, work follows large tensors that are on a device already, and goes elsewhere where it would
/// have to be sent.
#[test]
fn work_goes_where_its_feeds_are() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![1 << 20]);
        let made = g.device("GPU:0", || &x * 2.0);
        let p = g.placeholder("p", F32, dims![1 << 20]);
        let sum = (&p + 1.0).sum(());
        let session = Session::new(&g, &device.devices).unwrap();
        let feed = ramp(&[1 << 20]);
        let kept = session.run(&[x.feed(&feed)], OnDevice(&made)).unwrap();
        let (_, metadata) = run(&session, &[p.feed(&kept)], &sum);
        let crossing = metadata.upload_bytes + metadata.download_bytes;
        assert_eq!(metadata.predicted_transfer_bytes, crossing, "{}", device.name);
    }
}
