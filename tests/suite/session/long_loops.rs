//! Loops of known length that are too long for one program: they run in blocks of iterations, and on a GPU what they
//! carry stays there. TensorFlow: `WhileLoop` with `maximum_iterations` on a device, by meaning.

use std::time::Duration;

use convoke::prelude::*;
use convoke::{CancelToken, DeviceOptions, LoopOptions, RunMetadata, RunOptions};
use convoke_tests::{TestDevice, devices};

/// The test devices that are GPUs.
fn gpus() -> impl Iterator<Item = &'static TestDevice> {
    devices().iter().filter(|device| device.devices.list().len() > 1)
}

/// A loop of `n` iterations over one tensor.
fn times(g: &Graph, n: &Tensor, x: &Tensor, body: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
    let start = (g.constant(0i32), x.clone());
    g.while_loop(start, |(i, _)| i.less(n), |(i, x)| (i + 1, body(x))).1
}

fn run(session: &Session, feeds: &[Feed<'_>], y: &Tensor) -> (HostTensor, RunMetadata) {
    session.run_with(feeds, y, RunOptions::default()).unwrap()
}

/// A quarter is added 10,000 times to small integers, which is exact.
#[test]
fn what_is_carried_goes_to_the_device_and_back_once() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![64, 64]);
        let y = times(&g, &g.constant(10_000i32), &x, |x| x + 0.25);
        let session = device.session(&g);
        let data: Vec<f32> = (0..4096).map(|i| (i % 7) as f32).collect();
        let expected: Vec<f32> = data.iter().map(|x| x + 2500.0).collect();
        let data = HostTensor::new(&[64, 64], data).unwrap();
        for _ in 0..2 {
            let (y, metadata) = run(&session, &[x.feed(&data)], &y);
            assert_eq!(y.to_vec::<f32>().unwrap(), expected, "{}", device.name);
            let RunMetadata { uploads, upload_bytes, downloads, download_bytes, .. } = metadata;
            if device.name == "CPU" {
                assert_eq!((uploads, downloads, metadata.submissions), (0, 0, 0));
                continue;
            }
            assert_eq!((uploads, upload_bytes), (1, 16_384), "{}", device.name);
            assert_eq!((downloads, download_bytes), (1, 16_384), "{}", device.name);
            // Five operations an iteration: 128 iterations and 16 are 7.2 ms of compiling, and 78 + 1 submissions of 0.1 ms;
            // with 64 it would be 4 ms and 157, with 256 it is 13.6 ms and 40. What is carried goes and comes by itself.
            assert_eq!(metadata.submissions, 78 + 1 + 2, "{}", device.name);
        }
    }
}

/// Rows go down by one in each of 2,507 iterations: by 2,507 modulo 64, which is 11.
#[test]
fn what_is_captured_goes_to_the_device_once() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![64, 64]);
        let turn = g.placeholder("turn", F32, dims![64, 64]);
        let y = times(&g, &g.constant(2507i32), &x, |x| turn.matmul(x));
        let session = device.session(&g);
        let row = |i: usize| (0..64).map(move |j| (i * 64 + j) as f32);
        let data: Vec<f32> = (0..64).flat_map(row).collect();
        let turned: Vec<f32> = (0..64).flat_map(|i| row((i + 64 - 11) % 64)).collect();
        let is_before = |i: usize, j: usize| (j + 1) % 64 == i;
        let turns: Vec<f32> = (0..64)
            .flat_map(|i| (0..64).map(move |j| f32::from(u8::from(is_before(i, j)))))
            .collect();
        let data = HostTensor::new(&[64, 64], data).unwrap();
        let turns = HostTensor::new(&[64, 64], turns).unwrap();
        let (y, metadata) = run(&session, &[x.feed(&data), turn.feed(&turns)], &y);
        assert_eq!(y.to_vec::<f32>().unwrap(), turned, "{}", device.name);
        assert_eq!((metadata.uploads, metadata.downloads), (2, 1), "{}", device.name);
        assert!(metadata.submissions <= 60, "{} on {}", metadata.submissions, device.name);
    }
}

/// A number of iterations that is fed is known when the loop begins.
#[test]
fn the_number_of_iterations_may_be_fed() {
    for device in devices() {
        let g = Graph::new();
        let (x, n) = (g.placeholder("x", F32, dims![8]), g.placeholder("n", I32, dims![]));
        let y = times(&g, &n, &x, |x| x + 1.0);
        let down = g.while_loop(
            (&n * 3, x.clone()),
            |(i, _)| i.greater_equal(1),
            |(i, x)| (i - 3, x - 1.0),
        );
        let session = device.session(&g);
        for n_ in [0, 1, 5, 3000] {
            let feeds = [x.feed([0.5f32; 8]), n.feed(n_)];
            let fetches = (&y, &down.1, &down.0);
            let (values, metadata) =
                session.run_with(&feeds, fetches, RunOptions::default()).unwrap();
            let (up, down, i) = values;
            assert_eq!(up.to_vec::<f32>().unwrap(), [0.5 + n_ as f32; 8], "{}", device.name);
            assert_eq!(down.to_vec::<f32>().unwrap(), [0.5 - n_ as f32; 8], "{}", device.name);
            assert_eq!(i.scalar::<i32>().unwrap(), 0, "{}", device.name);
            assert!(metadata.submissions < 400, "{} on {}", metadata.submissions, device.name);
        }
    }
}

/// Only the data says when to stop, and only that comes to the host in between.
#[test]
fn a_condition_of_the_data_comes_to_the_host_alone() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![1000]);
        let (y, n) = g.while_loop(
            (x.clone(), g.constant(0i32)),
            |(x, _)| x.max(()).greater_equal(1.0f32 / 1024.0),
            |(x, n)| (x * 0.5, n + 1),
        );
        let session = device.session(&g);
        let feeds = [x.feed(HostTensor::new(&[1000], vec![1024.0f32 * 1024.0; 1000]).unwrap())];
        let (found, metadata) = session.run_with(&feeds, (&y, &n), RunOptions::default()).unwrap();
        // 2^20 is 2^-11 after 31 halvings.
        assert_eq!(found.0.to_vec::<f32>().unwrap(), [2.0f32.powi(-11); 1000], "{}", device.name);
        assert_eq!(found.1.scalar::<i32>().unwrap(), 31, "{}", device.name);
        if device.name != "CPU" {
            // The condition before the loop reads the tensor as well.
            assert!(
                metadata.upload_bytes <= 2 * 4000 + 31 * 4 + 4,
                "{metadata} on {}",
                device.name
            );
            assert!(metadata.download_bytes <= 4000 + 33 * 4 + 4, "{metadata} on {}", device.name);
        }
    }
}

/// Each iteration draws other elements, those that it draws by itself on the CPU; so does the next run.
#[test]
fn iterations_draw_what_they_draw_one_by_one() {
    for device in gpus() {
        let g = Graph::with_seed(3);
        let x = g.placeholder("x", F32, dims![16]);
        let y = times(&g, &g.constant(300i32), &x, |x| (x + g.random_uniform(&[16], F32, 5)) * 0.5);
        let once = g.random_uniform(&[16], F32, 5);
        let (session, host) = (device.session(&g), Session::new(&g, &Devices::cpu()).unwrap());
        let feeds = [x.feed([1.0f32; 16])];
        let mut before = None;
        for _ in 0..3 {
            let (own, metadata) = run(&session, &feeds, &y);
            assert_eq!(own, host.run(&feeds, &y).unwrap(), "{}", device.name);
            assert_ne!(before.replace(own.clone()), Some(own), "{}", device.name);
            assert!(metadata.submissions < 150, "{} on {}", metadata.submissions, device.name);
        }
        assert_eq!(session.run(&[], &once).unwrap(), host.run(&[], &once).unwrap());
    }
}

/// What is stacked, what is scanned, forwards and backwards, and gradients, as the CPU has them bit by bit.
#[test]
fn stacks_and_gradients_are_those_of_single_iterations() {
    for device in devices() {
        let g = Graph::new();
        let (xs, w) = (g.placeholder("xs", F32, dims![1500, 8]), g.placeholder("w", F32, dims![8]));
        let zero = || g.constant(vec![0.0f32; 8]);
        let step = |h: &Tensor, x: &Tensor| {
            let h = (h + x) * &w;
            (h.clone(), &h * &h)
        };
        let (last, squares) = g.scan(zero(), xs.clone(), step);
        let (first, back) = g.scan_reversed(zero(), xs.clone(), step);
        let loss = &last.sum(()) + squares.mean(()) + back.mean(()) + first.sum(());
        let grads = loss.gradients(&[&xs, &w]);
        let (by_xs, by_w) = (grads[0].clone().unwrap(), grads[1].clone().unwrap());
        let data: Vec<f32> = (0..1500 * 8).map(|i| ((i * 37) % 11) as f32 * 0.25).collect();
        let data = HostTensor::new(&[1500, 8], data).unwrap();
        let feeds = [xs.feed(&data), w.feed([0.5f32; 8])];
        let session = device.session(&g);
        let fetches = (&last, &squares, &first, &back);
        let found = session.run(&feeds, fetches).unwrap();
        let host = Session::new(&g, &Devices::cpu()).unwrap();
        assert_eq!(found, host.run(&feeds, fetches).unwrap(), "{}", device.name);
        let (found, metadata) =
            session.run_with(&feeds, (&by_xs, &by_w), RunOptions::default()).unwrap();
        let expected = host.run(&feeds, (&by_xs, &by_w)).unwrap();
        let close = |a: &HostTensor, b: &HostTensor| {
            let pairs = a.to_vec::<f32>().unwrap().into_iter().zip(b.to_vec::<f32>().unwrap());
            pairs.into_iter().all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1.0))
        };
        assert!(close(&found.0, &expected.0) && close(&found.1, &expected.1), "{}", device.name);
        // Four loops of 1,500 iterations.
        assert!(metadata.submissions < 600, "{} on {}", metadata.submissions, device.name);
    }
}

/// Two tensors change places, a third stays, and the counter is used; by hand: after 2,001 iterations `a` is what `b`
/// was, and the sum of 0 to 2,000 is 2,001,000.
#[test]
fn carried_tensors_may_change_places_and_stay() {
    for device in devices() {
        let g = Graph::new();
        let (a, b) = (g.placeholder("a", F32, dims![4]), g.placeholder("b", F32, dims![4]));
        let kept = g.placeholder("kept", F32, dims![]);
        let start = (g.constant(0i32), a.clone(), b.clone(), kept.clone(), g.constant(0.0f32));
        let (i, a_, b_, kept_, sum) = g.while_loop(
            start,
            |(i, ..)| i.less_equal(2000),
            |(i, a, b, kept, sum)| {
                (i + 1, b.clone(), a.clone(), kept.clone(), sum + i.cast(F32) * kept)
            },
        );
        let session = device.session(&g);
        let feeds = [a.feed([1.0f32; 4]), b.feed([2.0f32; 4]), kept.feed(1.0f32)];
        let (i, a, b, kept, sum) = session.run(&feeds, (&i, &a_, &b_, &kept_, &sum)).unwrap();
        assert_eq!(i.scalar::<i32>().unwrap(), 2001, "{}", device.name);
        assert_eq!(a.to_vec::<f32>().unwrap(), [2.0; 4], "{}", device.name);
        assert_eq!(b.to_vec::<f32>().unwrap(), [1.0; 4], "{}", device.name);
        assert_eq!(kept.scalar::<f32>().unwrap(), 1.0, "{}", device.name);
        assert_eq!(sum.scalar::<f32>().unwrap(), 2_001_000.0, "{}", device.name);
    }
}

/// Each size of block has a copy of what is captured: where not all fit at once, one makes room for the next.
#[test]
fn blocks_of_one_size_make_room_for_those_of_the_next() {
    for device in gpus() {
        let g = Graph::new();
        let (x, n) = (g.placeholder("x", F32, dims![512]), g.placeholder("n", I32, dims![]));
        let w = g.placeholder("w", F32, dims![512, 512]);
        let y = times(&g, &n, &x, |x| x + w.slice(&[3, 0], &[Some(1), None]).reshape(&[512]));
        let ones = HostTensor::new(&[512, 512], vec![0.25f32; 512 * 512]).unwrap();
        let open = |gpu_budget_bytes: Option<u64>| {
            let devices = device.open(DeviceOptions { gpu_budget_bytes, ..Default::default() });
            let options = SessionOptions {
                policy: device.policy.clone(),
                soft_placement: false,
                ..Default::default()
            };
            Session::with_options(&g, &devices, options).unwrap()
        };
        let run = |session: &Session, trips: i32| {
            let feeds = [x.feed(vec![1.0f32; 512]), n.feed(trips), w.feed(&ones)];
            let (y, metadata) = run(session, &feeds, &y);
            assert_eq!(y.to_vec::<f32>().unwrap(), [1.0 + 0.25 * trips as f32; 512]);
            assert!(metadata.submissions < 200, "{} on {}", metadata.submissions, device.name);
            metadata.device_bytes
        };
        // 2,048 are blocks of one size, 2,507 of several.
        let (one, all) = (run(&open(None), 2048), run(&open(None), 2507));
        assert!(all > one + (2 << 20), "{one} and {all} on {}", device.name);
        let budget = one + (1 << 20);
        let session = open(Some(budget));
        for _ in 0..2 {
            let bytes = run(&session, 2507);
            assert!(bytes <= budget, "{bytes} of {budget} on {}", device.name);
        }
    }
}

/// What a block stacks lies on the device while it runs: where there is no room for it, there is for that of one iteration.
#[test]
fn a_block_that_does_not_fit_runs_iteration_by_iteration() {
    for device in gpus() {
        let g = Graph::new();
        let (xs, w) =
            (g.placeholder("xs", F32, dims![None]), g.placeholder("w", F32, dims![65_536]));
        let (last, rows) = g.scan(g.constant(0.0f32), xs.clone(), |h, x| {
            let h = h + x;
            (h.clone(), &w + &h)
        });
        let data = HostTensor::new(&[100], vec![1.0f32; 100]).unwrap();
        let zeros = HostTensor::new(&[65_536], vec![0.0f32; 65_536]).unwrap();
        let run = |gpu_budget_bytes: Option<u64>| {
            let devices = device.open(DeviceOptions { gpu_budget_bytes, ..Default::default() });
            let options = SessionOptions { policy: device.policy.clone(), ..Default::default() };
            let session = Session::with_options(&g, &devices, options).unwrap();
            let feeds = [xs.feed(&data), w.feed(&zeros)];
            let mut all = Vec::new();
            for _ in 0..2 {
                let fetches = (&last, &rows);
                let (found, metadata) =
                    session.run_with(&feeds, fetches, RunOptions::default()).unwrap();
                assert_eq!(found.0.scalar::<f32>().unwrap(), 100.0, "{}", device.name);
                let rows = found.1.to_vec::<f32>().unwrap();
                let is_own = |(at, row): (usize, &[f32])| row.iter().all(|x| *x == at as f32 + 1.0);
                assert!(rows.chunks(65_536).enumerate().all(is_own), "{}", device.name);
                all.push(metadata);
            }
            all
        };
        let free = run(None);
        assert!(free[1].submissions < 50, "{} on {}", free[1], device.name);
        // Blocks of 32 stack 8 MiB, and one iteration 256 KiB.
        let budget = 6 << 20;
        for metadata in run(Some(budget)) {
            assert!(metadata.device_bytes <= budget, "{metadata} on {}", device.name);
            assert!(metadata.submissions > free[1].submissions, "{metadata} on {}", device.name);
        }
    }
}

/// What one device computes and the other needs in the next iteration keeps iterations apart. By hand: rows change places
/// and signs 1,101 times.
#[test]
fn bodies_may_be_on_both_devices() {
    for device in gpus() {
        let g = Graph::new();
        let (x, turn) =
            (g.placeholder("x", F32, dims![2, 2]), g.placeholder("turn", F32, dims![2, 2]));
        let y = times(&g, &g.constant(1101i32), &x, |x| {
            let there = g.device("CPU:0", || x * -1.0);
            g.device("GPU:0", || turn.matmul(&there))
        });
        let session = device.session(&g);
        let feeds = [x.feed([[1.0f32, 2.0], [3.0, 4.0]]), turn.feed([[0.0f32, 1.0], [1.0, 0.0]])];
        let explanation = session.explain(&feeds, &y).unwrap();
        let stays = explanation.parts().unwrap().whole.steps.iter().find_map(|s| s.stays.clone());
        assert_eq!(stays.unwrap().trips, Some(1), "{}", device.name);
        let (y, metadata) = run(&session, &feeds, &y);
        assert_eq!(y.to_vec::<f32>().unwrap(), [-3.0, -4.0, -1.0, -2.0], "{}", device.name);
        assert!(metadata.submissions >= 1101, "{} on {}", metadata.submissions, device.name);
    }
}

/// An iteration that fails fails the run, which has changed nothing: the next draws what the first of another session does.
#[test]
fn a_run_that_fails_has_drawn_nothing() {
    for device in devices() {
        let g = Graph::with_seed(5);
        let table = g.placeholder("table", F32, dims![None]);
        let start = (g.constant(0i32), g.constant([0.0f32, 0.0]));
        let (_, y) = g.while_loop(
            start,
            |(i, _)| i.less(2501),
            |(i, x)| (i + 1, x * 0.5 + g.random_uniform(&[2], F32, 7) + table.gather(i, 0)),
        );
        let ones = |n: usize| HostTensor::new(&[n], vec![1.0f32; n]).unwrap();
        let (session, fresh) = (device.session(&g), device.session(&g));
        let error = session.run(&[table.feed(ones(2500))], &y).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}: {error}", device.name);
        let feeds = [table.feed(ones(2501))];
        let [first, second] = [0, 1].map(|_| session.run(&feeds, &y).unwrap());
        assert_eq!(first, fresh.run(&feeds, &y).unwrap(), "{}", device.name);
        assert_ne!(first, second, "{}", device.name);
    }
}

/// An index that is out of range in the 2,500th iteration fails the run, which has stored nothing.
#[test]
fn an_iteration_that_fails_fails_the_run() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(1.0), F32, [2]);
        let table = g.placeholder("table", F32, dims![2500]);
        let start = (g.constant(0i32), g.constant([0.0f32, 0.0]));
        let (_, y) =
            g.while_loop(start, |(i, _)| i.less(2501), |(i, x)| (i + 1, x + table.gather(i, 0)));
        let step = v.assign(&y);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let ones = HostTensor::new(&[2500], vec![1.0f32; 2500]).unwrap();
        let error = session.run(&[table.feed(&ones)], &step).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}: {error}", device.name);
        let v = session.run(&[], v.value()).unwrap();
        assert_eq!(v.to_vec::<f32>().unwrap(), [1.0, 1.0], "{}", device.name);
    }
}

/// Variables that are read in the body are as they were at the start of the run; what is assigned comes after.
#[test]
fn bodies_read_variables() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(0.5), F32, [4]);
        let y = times(&g, &g.constant(2000i32), &g.constant([0.0f32; 4]), |x| x + v.read());
        let step = v.assign(&y);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let run = || {
            session.run(&[], &step).unwrap();
            session.run(&[], v.value()).unwrap().to_vec::<f32>().unwrap()
        };
        assert_eq!((run(), run()), (vec![1000.0; 4], vec![2_000_000.0; 4]), "{}", device.name);
    }
}

/// A run ends between two blocks.
#[test]
fn long_loops_are_cancelled() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![64]);
        let y = times(&g, &g.constant(2_000_000_000i32), &x, |x| (x * 0.5).tanh() + 1.0);
        let session = device.session(&g);
        let timeout = Some(Duration::from_millis(300));
        let feeds = [x.feed([1.0f32; 64])];
        let options = RunOptions { timeout, ..RunOptions::default() };
        let error = session.run_with(&feeds, &y, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{}", device.name);
        let cancel = CancelToken::new();
        let options = RunOptions { cancel: Some(cancel.clone()), ..RunOptions::default() };
        let error = std::thread::scope(|scope| {
            let run = scope.spawn(|| session.run_with(&feeds, &y, options).unwrap_err());
            std::thread::sleep(Duration::from_millis(100));
            cancel.cancel();
            run.join().unwrap()
        });
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{}", device.name);
    }
}

/// Tensors that grow are carried through the host.
#[test]
fn what_is_carried_may_grow() {
    for device in devices() {
        let g = Graph::new();
        let start = (g.constant(0i32), g.constant([1.0f32]));
        let options =
            LoopOptions { invariants: vec![None, Some(dims![None])], ..LoopOptions::default() };
        let (_, y) = g.while_loop_with(
            start,
            |(i, _)| i.less(4),
            |(i, x)| (i + 1, g.concat(&[x, &(x * 2.0)], 0)),
            options,
        );
        let session = device.session(&g);
        let y = session.run(&[], &y).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap()[..4], [1.0, 2.0, 2.0, 4.0], "{}", device.name);
        assert_eq!(y.dims(), [16]);
    }
}

/// Counters of all widths, that are fed, and limits that are not all that ends a loop; by hand.
#[test]
fn counters_of_all_widths_end_loops_on_devices() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let session = device.session(&g);
        let check = |dtype: DType,
                     [start, step, limit]: [i64; 3],
                     holds: &dyn Fn(&Tensor, &Tensor) -> Tensor,
                     max_iterations: Option<u64>,
                     trips: i64| {
            let [start_, step_, limit_] = [0; 3].map(|_| g.placeholder("n", I64, dims![]));
            let whole = |n: &Tensor| n.cast(dtype);
            let (step_of, limit_of) = (whole(&step_), whole(&limit_));
            let options = LoopOptions { max_iterations, ..LoopOptions::default() };
            let (i, y) = g.while_loop_with(
                (whole(&start_), x.clone()),
                |(i, _)| holds(i, &limit_of),
                |(i, x)| (i + &step_of, x + 1.0),
                options,
            );
            let feeds =
                [x.feed([0.0f32; 4]), start_.feed(start), step_.feed(step), limit_.feed(limit)];
            let (i, y) = session.run(&feeds, (&i.cast(I64), &y)).unwrap();
            let name = format!("{dtype} from {start} by {step} to {limit} on {}", device.name);
            assert_eq!(y.to_vec::<f32>().unwrap(), [trips as f32; 4], "{name}");
            let bits = if dtype == U8 { 0xff } else { -1 };
            assert_eq!(i.scalar::<i64>().unwrap(), (start + trips * step) & bits, "{name}");
        };
        let less = |i: &Tensor, n: &Tensor| i.less(n);
        let differs = |i: &Tensor, n: &Tensor| i.not_equal(n);
        check(U8, [3, 1, 200], &less, None, 197);
        // 511 is 255 once it has wrapped around.
        check(U8, [0, 7, 255], &less, None, 73);
        check(I64, [-5_000_000_000, 5_000_000, 0], &less, None, 1000);
        check(U64, [5, 2, 2005], &differs, None, 1000);
        // It steps over its limit.
        check(I32, [0, 3, 1000], &differs, Some(1100), 1100);
        check(I32, [0, 1, 5000], &less, Some(1500), 1500);
    }
}

/// A loop ends where its counter says, by hand.
#[test]
fn counters_count_up_and_down() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let check = |start: i32, step: i32, limit: &dyn Fn(&Tensor) -> Tensor, last: i32| {
        let carried = (g.constant(start), x.clone());
        let (i, y) = g.while_loop(carried, |(i, _)| limit(i), |(i, x)| (i + step, x * 0.999));
        let (i, _) = session.run(&[x.feed(1.0f32)], (&i, &y)).unwrap();
        assert_eq!(i.scalar::<i32>().unwrap(), last);
    };
    check(0, 7, &|i| i.less(9000), 9002);
    check(0, 7, &|i| i.less_equal(9002), 9009);
    check(9000, -4, &|i| i.greater(0), 0);
    check(9000, -4, &|i| i.greater_equal(0), -4);
    check(0, 3, &|i| i.not_equal(9000), 9000);
    check(0, 3, &|i| (i * 2).less(&(i + 3000)), 3000);
    // It wraps around: from 2^31 - 1 on it is negative.
    check(i32::MAX - 2000, 1, &|i| i.greater(0), i32::MIN);
}
