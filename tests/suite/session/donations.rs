//! Feeds whose memory a run may use for what it gives. JAX: `tests/pmap_test.py` and `tests/api_test.py`, the tests of
//! `donate_argnums`, by meaning.

use convoke::prelude::*;
use convoke::{CancelToken, DeviceTensor, Donation, OnDevice, RunMetadata, RunOptions};
use convoke_tests::{TestDevice, devices};

const LEN: usize = 1 << 18;
const BYTES: u64 = 4 * LEN as u64;

fn is_gpu(device: &TestDevice) -> bool {
    device.devices.list().len() > 1
}

fn gpus() -> impl Iterator<Item = TestDevice> {
    devices().iter().filter(|device| is_gpu(device)).map(TestDevice::alone)
}

fn elements(tensor: &DeviceTensor) -> Vec<f32> {
    tensor.to_host().unwrap().to_vec::<f32>().unwrap()
}

fn run<F: Fetch>(session: &Session, feeds: &[Feed<'_>], fetch: F) -> (F::Output, RunMetadata) {
    session.run_with(feeds, fetch, RunOptions::default()).unwrap()
}

/// These elements, small integers, as a tensor of the session's device.
fn on_device(session: &Session, x: &Tensor, elements: Vec<f32>) -> DeviceTensor {
    let less: Vec<f32> = elements.iter().map(|x| x - 1.0).collect();
    let dims = x.dims();
    let dims: Vec<usize> = dims.dims().unwrap().iter().map(|dim| dim.known().unwrap()).collect();
    let less = HostTensor::new(&dims, less).unwrap();
    session.run(&[x.feed(&less)], OnDevice(x + 1.0)).unwrap()
}

/// Live bytes of the device, and buffers and bind groups made.
fn made(device: &TestDevice) -> [u64; 3] {
    let counters = device.devices.gpu_counters(1).unwrap().0;
    [counters.bytes_alive, counters.buffers_created, counters.bind_groups_created]
}

/// A state that goes round takes its memory once: nothing else of its size is there, and a step makes nothing.
#[test]
fn a_state_goes_round_in_one_place() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![LEN]);
        let next = &x * 0.5 + 1.0;
        let session = device.session(&g);
        let mut state = on_device(&session, &x, vec![4.0; LEN]);
        let step = session.callable(&[&x], OnDevice(&next)).unwrap();
        state = step.call([state.donate()]).unwrap();
        let before = made(&device);
        let peak = device.devices.gpu_counters(1).unwrap().0.peak_bytes;
        for _ in 0..20 {
            let (after, run) = step.call_with([state.donate()], &RunOptions::default()).unwrap();
            state = after;
            assert_eq!((run.donations, run.uploads, run.downloads), (1, 0, 0), "{}", device.name);
            assert_eq!((run.device_bytes_allocated, run.planned_bytes), (0, 0), "{}", device.name);
            assert_eq!((run.dispatches, run.submissions), (1, 1), "{}", device.name);
        }
        assert_eq!(made(&device), before, "{}", device.name);
        assert_eq!(device.devices.gpu_counters(1).unwrap().0.peak_bytes, peak);
        // 4 -> 3 -> 2.5 -> .., 2 + 2 / 2^21 after 21 steps.
        assert_eq!(elements(&state), vec![2.0 + 2.0 / (1 << 21) as f32; LEN], "{}", device.name);
    }
}

/// The same loop without donation, in sessions of their own: beside the state it takes a copy of it, room for the
/// result, and the result's own memory.
#[test]
fn a_donated_state_takes_a_quarter_of_the_memory() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![LEN]);
        let next = &x * 0.5 + 1.0;
        let alive = |device: &TestDevice, donates: bool| {
            let session = device.session(&g);
            let mut state = on_device(&session, &x, vec![4.0; LEN]);
            let start = made(device)[0];
            for _ in 0..3 {
                state = match donates {
                    true => session.run(&[x.feed(state.donate())], OnDevice(&next)).unwrap(),
                    false => session.run(&[x.feed(&state)], OnDevice(&next)).unwrap(),
                };
            }
            let end = made(device)[0];
            assert_eq!(elements(&state)[7], 2.25);
            end - start
        };
        let small = 1 << 16;
        assert!(alive(&device.alone(), true) < small, "{}", device.name);
        assert!(alive(&device.alone(), false) >= 3 * BYTES, "{}", device.name);
    }
}

/// What no elementwise kernel gives is copied into the donated memory at the end; what reads the state late has it as it
/// was.
#[test]
fn results_of_other_kernels_are_copied() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![3, 3]);
        let product = x.matmul(&x);
        let (sum, double) = (x.sum(()), &x * 2.0);
        let session = device.session(&g);
        let state = on_device(&session, &x, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
        let fetch = (OnDevice(&product), &sum, &double);
        let ((state, sum, double), metadata) = run(&session, &[x.feed(state.donate())], fetch);
        assert_eq!(metadata.donations, 1, "{}", device.name);
        // By hand: the square of the matrix.
        assert_eq!(elements(&state), [30., 36., 42., 66., 81., 96., 102., 126., 150.]);
        assert_eq!(sum.scalar::<f32>().unwrap(), 45.0);
        assert_eq!(double.to_vec::<f32>().unwrap()[8], 18.0);
    }
}

/// Two states that become each other: neither is overwritten before the other is read.
#[test]
fn two_states_change_places() {
    for device in gpus() {
        let g = Graph::new();
        let [x, y] = ["x", "y"].map(|name| g.placeholder(name, F32, dims![5]));
        let (a, b) = (&y + 1.0, &x * 10.0);
        let session = device.session(&g);
        let mut one = on_device(&session, &x, vec![1.0; 5]);
        let mut two = on_device(&session, &y, vec![2.0; 5]);
        for _ in 0..3 {
            let feeds = [x.feed(one.donate()), y.feed(two.donate())];
            let (pair, metadata) = run(&session, &feeds, (OnDevice(&a), OnDevice(&b)));
            (one, two) = pair;
            assert_eq!(metadata.donations, 2, "{}", device.name);
        }
        // (1, 2) -> (3, 10) -> (11, 30) -> (31, 110).
        assert_eq!((elements(&one), elements(&two)), (vec![31.0; 5], vec![110.0; 5]));
    }
}

/// A result that reads other elements of the state than it replaces is not stored in place.
#[test]
fn a_turned_state_is_not_overwritten_early() {
    for device in gpus() {
        let g = Graph::new();
        let n = 300;
        let x = g.placeholder("x", F32, dims![n, n]);
        let turned = x.transpose() + &x;
        let session = device.session(&g);
        let start: Vec<f32> = (0..n * n).map(|i| (i % 1009) as f32).collect();
        let state = on_device(&session, &x, start.clone());
        let (after, metadata) = run(&session, &[x.feed(state.donate())], OnDevice(&turned));
        assert_eq!(metadata.donations, 1, "{}", device.name);
        let expected = |i: usize| start[i] + start[i % n * n + i / n];
        let expected: Vec<f32> = (0..n * n).map(expected).collect();
        assert_eq!(elements(&after), expected, "{}", device.name);
    }
}

/// JAX: `test_jit_donate_weak_type`, `test_donate_argnums_larger_to_smaller_wont_alias`: another size or nothing that
/// stays is no place for it; another dtype of as many bytes is.
#[test]
fn sizes_decide() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![8]);
        let session = device.session(&g);
        let donations = |fetch: &Tensor, stays: bool| {
            let state = on_device(&session, &x, vec![1.0; 8]);
            let feeds = [x.feed(state.donate())];
            match stays {
                true => run(&session, &feeds, OnDevice(fetch)).1.donations,
                false => run(&session, &feeds, fetch).1.donations,
            }
        };
        let n = |fetch: &Tensor, stays| (donations(fetch, stays), device.name.clone());
        let yes = (1, device.name.clone());
        let no = (0, device.name.clone());
        assert_eq!(n(&x.cast(I32), true), yes);
        assert_eq!(n(&(&x + 1.0).reshape(&[2, 4]), true), yes);
        assert_eq!(n(&x.sum(()), true), no);
        assert_eq!(n(&g.concat(&[&x, &x], 0), true), no);
        assert_eq!(n(&(&x + 1.0), false), no);
        // What is fed and fetched is not computed.
        assert_eq!(n(&x, true), no);
    }
}

/// Another handle of the memory keeps it as it is.
#[test]
fn what_others_hold_is_not_overwritten() {
    for device in gpus() {
        let g = Graph::new();
        let [x, y] = ["x", "y"].map(|name| g.placeholder(name, F32, dims![4]));
        let next = &x + &y;
        let session = device.session(&g);
        let make = || on_device(&session, &x, vec![1.0; 4]);
        let one = y.feed(vec![1.0f32; 4]);
        let donations = |feeds: &[Feed<'_>]| {
            let (after, metadata) = run(&session, feeds, OnDevice(&next));
            assert_eq!(elements(&after), [2.0; 4], "{}", device.name);
            metadata.donations
        };
        let state = make();
        let clone = state.clone();
        assert_eq!(donations(&[x.feed(state.donate()), one.clone()]), 0);
        assert_eq!(elements(&clone), [1.0; 4], "{}", device.name);
        // The last of them may be.
        assert_eq!(donations(&[x.feed(clone.donate()), one.clone()]), 1);
        // Fed twice, as one donation and as two tensors of one memory.
        let twice: Donation = make().donate();
        assert_eq!(donations(&[x.feed(&twice), y.feed(&twice)]), 0);
        assert!(twice.take_back().is_none());
        let state = make();
        let other = state.clone();
        assert_eq!(donations(&[x.feed(state.donate()), y.feed(&other)]), 0);
        assert_eq!(elements(&other), [1.0; 4], "{}", device.name);
        // Its buffer was given to the app.
        let state = make();
        let buffer = state.buffer().unwrap().clone();
        assert_eq!(donations(&[x.feed(state.donate()), one.clone()]), 0);
        drop(buffer);
    }
}

/// JAX: `test_jit_donate_invalidates_input`, `test_invalidate_twice`: what was donated is gone, whatever became of its
/// memory.
#[test]
fn what_was_donated_is_gone() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let (next, on_host) = (&x + 1.0, g.cond(&x.greater(0.0), || &x * 2.0, || &x * 3.0));
        let session = device.session(&g);
        let kept = session.run(&[x.feed(1.0)], OnDevice(&next)).unwrap().donate();
        let feed = x.feed(&kept);
        let state = session.run(std::slice::from_ref(&feed), OnDevice(&next)).unwrap();
        assert_eq!(state.to_host().unwrap().scalar::<f32>().unwrap(), 3.0);
        let error = session.run(&[feed], OnDevice(&next)).unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::FailedPrecondition, Some("x:0")));
        assert!(error.to_string().contains("was donated to a run"), "{error}");
        assert!(kept.take_back().is_none(), "{kept:?}");
        // Branches read it, and it is gone all the same.
        let kept = state.donate();
        let six = session.run(&[x.feed(&kept)], &on_host).unwrap();
        assert_eq!(six.scalar::<f32>().unwrap(), 6.0);
        assert!(kept.take_back().is_none(), "{kept:?}");
        // So does a run that is submitted.
        let state = session.run(&[x.feed(1.0)], OnDevice(&next)).unwrap();
        let feeds = [x.feed(state.donate())];
        let handle = session.submit(&feeds, OnDevice(next.clone()), RunOptions::default());
        let (state, metadata) = handle.wait_with().unwrap();
        assert_eq!(state.to_host().unwrap().scalar::<f32>().unwrap(), 3.0);
        assert_eq!(metadata.donations, u64::from(is_gpu(device)), "{}", device.name);
    }
}

/// A run that fails before anything is stored gives the tensor back, and so does one that the data fails.
#[test]
fn a_failed_run_gives_it_back() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let at = g.placeholder("at", I32, dims![4]);
        let next = x.gather(&at, 0) + &x;
        let session = device.session(&g);
        let made = on_device(&session, &x, vec![1.0, 2.0, 3.0, 4.0]);
        let kept: Donation = made.donate();
        let step =
            |at_feed: [i32; 4]| session.run(&[x.feed(&kept), at.feed(at_feed)], OnDevice(&next));
        let error = step([0, 1, 2, 9]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}: {error}", device.name);
        let cancelled = CancelToken::new();
        cancelled.cancel();
        let options = RunOptions { cancel: Some(cancelled), ..RunOptions::default() };
        let feeds = [x.feed(&kept), at.feed([0; 4])];
        let error = session.run_with(&feeds, OnDevice(&next), options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        let tensor = kept.take_back().unwrap();
        assert_eq!(elements(&tensor), [1.0, 2.0, 3.0, 4.0], "{}", device.name);
        let kept = tensor.donate();
        let (state, metadata) =
            run(&session, &[x.feed(&kept), at.feed([3, 2, 1, 0])], OnDevice(&next));
        assert_eq!(elements(&state), [5.0, 5.0, 5.0, 5.0], "{}", device.name);
        assert_eq!(metadata.donations, u64::from(is_gpu(device)), "{}", device.name);
    }
}

/// Where the program would change, printing it leaves the tensor where it is.
#[test]
fn a_program_says_what_is_overwritten() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let next = &x + 1.0;
        let session = device.session(&g);
        let kept = on_device(&session, &x, vec![1.0; 4]).donate();
        let program = session.program(&[x.feed(&kept)], OnDevice(&next)).unwrap().to_string();
        assert!(program.contains("leave v1 where v0 was"), "{program}");
        assert!(!program.contains("upload"), "{program}");
        let plain = session.program(&[x.feed([1.0f32; 4])], OnDevice(&next)).unwrap().to_string();
        assert!(plain.contains("  leave v1\n"), "{plain}");
        assert_eq!(elements(&kept.take_back().unwrap()), [1.0; 4]);
    }
}

/// Threads that each have a state of their own in one session, and one donation that all feed: one of them has it.
#[test]
fn threads_do_not_overwrite_each_others() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![64]);
        let next = &x + 1.0;
        let session = device.session(&g);
        let shared = on_device(&session, &x, vec![0.0; 64]).donate();
        let gained: usize = std::thread::scope(|scope| {
            let work = |start: usize| {
                let (session, x, next, shared) = (&session, &x, &next, &shared);
                move || {
                    let mut state = on_device(session, x, vec![start as f32; 64]);
                    for _ in 0..30 {
                        state = session.run(&[x.feed(state.donate())], OnDevice(next)).unwrap();
                    }
                    assert_eq!(elements(&state), vec![(start + 30) as f32; 64]);
                    match session.run(&[x.feed(shared)], OnDevice(next)) {
                        Ok(one) => {
                            assert_eq!(elements(&one), [1.0; 64]);
                            1
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
                            0
                        }
                    }
                }
            };
            let threads: Vec<_> = (0..4).map(|i| scope.spawn(work(100 * i))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(gained >= 1, "{}", device.name);
    }
}

/// On the host, two places take turns.
#[test]
fn a_state_on_the_host_has_two_places() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![LEN]);
    let next = &x * 0.5 + 1.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let step = session.callable(&[&x], OnDevice(&next)).unwrap();
    let mut state = on_device(&session, &x, vec![4.0; LEN]);
    for trip in 0..10 {
        let (after, run) = step.call_with([state.donate()], &RunOptions::default()).unwrap();
        state = after;
        let made = if trip < 2 { BYTES } else { 0 };
        assert_eq!((run.host_bytes_allocated, run.donations), (made, 0), "in trip {trip}");
    }
    assert_eq!(elements(&state)[LEN - 1], 2.0 + 2.0 / 1024.0);
}

/// What is copied to the host as well is that of the end; bools have a byte each, and their number need not fill words.
#[test]
fn what_stays_is_given_to_the_host_too() {
    for device in gpus() {
        let g = Graph::new();
        let (x, b) = (g.placeholder("x", F32, dims![7]), g.placeholder("b", Bool, dims![7]));
        let (next, turned) = (&x + 2.0, !&b);
        let session = device.session(&g);
        let state = on_device(&session, &x, vec![1.0; 7]);
        let asked = session.run(&[x.feed(state.donate())], OnDevice(x.greater(0.0))).unwrap();
        let state = on_device(&session, &x, vec![1.0; 7]);
        let feeds = [x.feed(state.donate()), b.feed(asked.donate())];
        let fetch = (OnDevice(&next), &next, &x, OnDevice(&turned), &turned);
        let ((stays, next, before, turned_stays, turned), metadata) = run(&session, &feeds, fetch);
        assert_eq!(metadata.donations, 2, "{}", device.name);
        assert_eq!(
            (stays.to_host().unwrap(), before.to_vec::<f32>().unwrap()),
            (next, vec![1.0; 7])
        );
        assert_eq!(turned_stays.to_host().unwrap(), turned, "{}", device.name);
        assert_eq!(turned.to_vec::<bool>().unwrap(), [false; 7]);
    }
}

/// What the data can still fail afterwards is not overwritten.
#[test]
fn what_fails_later_leaves_it_as_it_was() {
    for device in gpus() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let at = g.placeholder("at", I32, dims![1]);
        let next = g.device("GPU:0", || &x + 1.0);
        let late = g.device("CPU:0", || next.cast(F64).gather(&at, 0));
        let session = device.session(&g);
        let kept = on_device(&session, &x, vec![1.0; 4]).donate();
        let step =
            |index: i32| session.run(&[x.feed(&kept), at.feed([index])], (OnDevice(&next), &late));
        let error = step(4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}: {error}", device.name);
        let (stays, late) = step(3).unwrap();
        assert_eq!((elements(&stays), late.to_vec::<f64>().unwrap()), (vec![2.0; 4], vec![2.0]));
        assert!(kept.take_back().is_none());
    }
}

/// Each of two states that go round together takes the memory of its own, whichever was built first.
#[test]
fn states_are_replaced_in_place_by_what_is_made_of_them() {
    for device in gpus() {
        let g = Graph::new();
        let (x, y) = (g.placeholder("x", F32, dims![LEN]), g.placeholder("y", F32, dims![LEN]));
        let after_y = &y * 2.0;
        let after_x = &x * 3.0;
        let session = device.session(&g);
        let mut states = [&x, &y].map(|of| on_device(&session, of, vec![1.0; LEN]));
        for _ in 0..3 {
            let [before_x, before_y] = states;
            let feeds = [x.feed(before_x.donate()), y.feed(before_y.donate())];
            let (after, metadata) = run(&session, &feeds, [OnDevice(&after_x), OnDevice(&after_y)]);
            assert_eq!((metadata.donations, metadata.planned_bytes), (2, 0), "{}", device.name);
            states = after;
        }
        assert_eq!((elements(&states[0])[7], elements(&states[1])[7]), (27.0, 8.0));
    }
}

/// A number of elements that is computed from a donated tensor before the run.
#[test]
fn what_is_known_first_only_reads_it() {
    for device in devices() {
        let g = Graph::new();
        let queue = g.fifo_queue("q", 8, [(F32, dims![])]);
        let x = g.placeholder("x", F32, dims![2]);
        let fill = queue.enqueue_many(&[&g.constant([1.0f32, 2.0, 3.0])]);
        let taken = queue.dequeue_many(x.sum(()).cast(I32)).remove(0);
        let next = &x + 1.0;
        let session = device.session(&g);
        session.run(&[], &fill).unwrap();
        let state = on_device(&session, &x, vec![1.0, 1.0]);
        let feeds = [x.feed(state.donate())];
        let (stays, taken) = session.run(&feeds, (OnDevice(&next), &taken)).unwrap();
        assert_eq!(taken.to_vec::<f32>().unwrap(), [1.0, 2.0], "{}", device.name);
        assert_eq!(elements(&stays), [2.0, 2.0]);
    }
}
