//! Queues inside of branches and loops: a run takes when it comes to it, and puts at its end, in order. TensorFlow:
//! `kernel_tests/control_flow_ops_py_test.py`, by meaning.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{
    CancelToken, LoopOptions, ModelSpec, Queue, QueueKind, QueueOptions, QueueRunner, RunOptions,
    SavedModel, StagingOptions, StepWork,
};
use convoke_tests::{A_WHILE, Folder, devices, fails_while, kind};

fn int(tensor: HostTensor) -> i32 {
    tensor.scalar::<i32>().unwrap()
}

fn ints(tensor: &HostTensor) -> Vec<i32> {
    tensor.to_vec::<i32>().unwrap()
}

fn at_once() -> RunOptions {
    RunOptions { fail_if_blocked: true, ..RunOptions::default() }
}

/// A queue of scalars of i32, and what puts a vector of them.
fn scalars(g: &Graph, name: &str, capacity: Option<usize>) -> (Queue, Tensor, Operation) {
    let options = QueueOptions { capacity, ..QueueOptions::default() };
    let q = g.queue(name, [(I32, dims![])], options);
    let rows = g.placeholder(&format!("{name}_rows"), I32, dims![None]);
    let put = q.enqueue_many(&[&rows]);
    (q, rows, put)
}

/// One element.
fn one(q: &Queue) -> Tensor {
    q.dequeue().remove(0)
}

/// The scalar, or an error while `fails` is set.
fn failing(x: &Tensor, fails: &Arc<AtomicBool>) -> Tensor {
    fails_while(&x.cast(F32).reshape(&[1]), fails).cast(I32).reshape(&[])
}

/// All that is in a queue.
fn drained(session: &Session, q: &Queue) -> Vec<i32> {
    let n = int(session.run(&[], q.size()).unwrap());
    ints(&session.run(&[], q.dequeue_many(n as usize).remove(0)).unwrap())
}

/// `testWhileQueue_1`: each iteration puts a number.
#[test]
fn while_queue_1() {
    for device in devices() {
        let g = Graph::new();
        let (q, ..) = scalars(&g, "q", None);
        let i = g.while_loop(
            g.constant(0i32),
            |i| i.less(10),
            |i| {
                let next = i + 1;
                let put = q.enqueue(&[i]);
                g.after(&[&put], || next.identity())
            },
        );
        let session = device.session(&g);
        let next = one(&q);
        assert_eq!(int(session.run(&[], &i).unwrap()), 10, "{}", device.name);
        for i in 0..10 {
            assert_eq!(int(session.run(&[], &next).unwrap()), i, "{}", device.name);
        }
        assert_eq!(int(session.run(&[], q.size()).unwrap()), 0, "{}", device.name);
    }
}

/// `tf.cond(training, lambda: train.dequeue(), lambda: test.dequeue())`: only the branch that is taken takes, and the other
/// waits for nothing.
#[test]
fn a_branch_that_is_not_taken_takes_nothing() {
    for device in devices() {
        let g = Graph::new();
        let (train, rows, fill) = scalars(&g, "train", Some(10));
        let (test, test_rows, fill_test) = scalars(&g, "test", Some(10));
        let training = g.placeholder("training", Bool, dims![]);
        let x = g.cond(&training, || one(&train), || one(&test));
        let double = &x * 2;
        let session = device.session(&g);
        session.run(&[rows.feed([1, 2, 3])], &fill).unwrap();
        let run = |training_now: bool| {
            session.run_with(&[training.feed(training_now)], &double, at_once()).map(|(x, _)| x)
        };
        assert_eq!(int(run(true).unwrap()), 2, "{}", device.name);
        let digest = session.state_digest().unwrap();
        let error = run(false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        assert_eq!(error.node(), Some("test_dequeue"));
        assert!(error.message().contains("FIFO queue 'test' (wanted 1, there 0)"), "{error}");
        assert_eq!(session.state_digest().unwrap(), digest);
        session.run(&[test_rows.feed([7])], &fill_test).unwrap();
        assert_eq!(int(run(false).unwrap()), 14, "{}", device.name);
        let call = session.callable(&[&training], &double).unwrap();
        assert_eq!(int(call.call([true]).unwrap()), 4, "{}", device.name);
        let submitted = session.submit(&[training.feed(true)], &double, RunOptions::default());
        assert_eq!(int(submitted.wait().unwrap()), 6, "{}", device.name);
        assert!(drained(&session, &train).is_empty() && drained(&session, &test).is_empty());
    }
}

/// Nested branches, each of which takes, puts, or does nothing.
#[test]
fn nested_branches_take_and_put_as_they_are_taken() {
    let g = Graph::new();
    let (a, rows, fill) = scalars(&g, "a", Some(100));
    let (b, ..) = scalars(&g, "b", Some(100));
    let index = g.placeholder("index", I32, dims![]);
    let p = g.placeholder("p", Bool, dims![]);
    let x = g.switch_case(
        &index,
        vec![
            Box::new(|| {
                let first = one(&a);
                g.cond(
                    &p,
                    || &first * 10 + &g.after(&[&first.operation()], || one(&a)),
                    || first.identity(),
                )
            }),
            Box::new(|| {
                let put = b.enqueue(&[&index]);
                g.after(&[&put], || g.constant(-1i32).identity())
            }),
        ],
        || g.constant(-2i32),
    );
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[rows.feed([1, 2, 3, 4])], &fill).unwrap();
    let run = |i: i32, q: bool| int(session.run(&[index.feed(i), p.feed(q)], &x).unwrap());
    assert_eq!(run(0, true), 12);
    assert_eq!(run(1, true), -1);
    assert_eq!(run(0, false), 3);
    assert_eq!(run(2, false), -2);
    assert_eq!(run(1, false), -1);
    assert_eq!(drained(&session, &a), [4]);
    assert_eq!(drained(&session, &b), [1, 1]);
}

/// What is not needed of a branch does not run, and what is run for its effect does.
#[test]
fn what_a_run_does_not_need_takes_nothing() {
    let g = Graph::new();
    let (q, rows, fill) = scalars(&g, "q", Some(10));
    let p = g.placeholder("p", Bool, dims![]);
    let (x, y) =
        g.cond(&p, || (one(&q), g.constant(1i32)), || (g.constant(5i32), g.constant(2i32)));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[rows.feed([7, 8])], &fill).unwrap();
    assert_eq!(int(session.run(&[p.feed(true)], &y).unwrap()), 1);
    assert_eq!(int(session.run(&[], q.size()).unwrap()), 2);
    session.run(&[p.feed(true)], &x.operation()).unwrap();
    assert_eq!(drained(&session, &q), [8]);
    // Also where the value goes nowhere.
    let taken = g.cond(&p, || one(&q).operation(), || g.no_op());
    session.run(&[rows.feed([9, 10])], &fill).unwrap();
    session.run(&[p.feed(true)], &taken).unwrap();
    session.run(&[p.feed(false)], &taken).unwrap();
    assert_eq!(drained(&session, &q), [10]);
}

/// A loop whose length is known, which would be part of a program; one over slices; one in another.
#[test]
fn loops_take_once_an_iteration_in_order() {
    for device in devices() {
        let g = Graph::new();
        let (q, rows, fill) = scalars(&g, "q", None);
        // Digits of a number, the first taken first.
        let (_, number) = g.while_loop(
            (g.constant(0i32), g.constant(0i32)),
            |(i, _)| i.less(4),
            |(i, sum)| (i + 1, sum * 10 + one(&q)),
        );
        let xs = g.constant([100i32, 200, 300]);
        let mapped = g.map(xs.clone(), |x| x + one(&q));
        let (last, all) = g.scan(g.constant(0i32), xs.clone(), |sum, x| {
            let next = sum + one(&q);
            (next.clone(), x + next)
        });
        let (back, from_the_end) = g.scan_reversed(g.constant(0i32), xs, |sum, x| {
            let next = sum + one(&q);
            (next.clone(), x + next)
        });
        let nested = g.map(g.constant([0i32, 10]), |x| {
            g.map(g.constant([0i32, 1, 2]), |y| x * 100 + y * 10 + one(&q))
        });
        let session = device.session(&g);
        let put = |all: &[i32]| session.run(&[rows.feed(all)], &fill).unwrap();
        put(&[1, 2, 3, 4, 5]);
        assert_eq!(int(session.run(&[], &number).unwrap()), 1234, "{}", device.name);
        put(&[6, 7]);
        assert_eq!(ints(&session.run(&[], &mapped).unwrap()), [105, 206, 307], "{}", device.name);
        put(&[1, 2, 3, 4, 5, 6]);
        let (last, all) = session.run(&[], (&last, &all)).unwrap();
        assert_eq!((int(last), ints(&all)), (6, vec![101, 203, 306]), "{}", device.name);
        let (back, all) = session.run(&[], (&back, &from_the_end)).unwrap();
        assert_eq!((int(back), ints(&all)), (15, vec![115, 209, 304]), "{}", device.name);
        put(&[1, 2, 3, 4, 5, 6]);
        let nested = session.run(&[], &nested).unwrap();
        assert_eq!(ints(&nested), [1, 12, 23, 1004, 1015, 1026], "{}", device.name);
        assert!(drained(&session, &q).is_empty());
    }
}

/// A batch whose size the loop computes, of a queue that it chooses; the rest of a closed queue.
#[test]
fn numbers_and_choices_may_be_computed_in_the_body() {
    let g = Graph::new();
    let (a, rows, fill) = scalars(&g, "a", None);
    let (b, rows_b, fill_b) = scalars(&g, "b", None);
    let v = g.variable("v", Init::Constant(2.0), I32, []);
    let (_, sum) = g.while_loop(
        (g.constant(0i32), g.constant(0i32)),
        |(i, _)| i.less(3),
        |(i, sum)| {
            // 2 + i elements of a, b, a.
            let batch =
                g.select_queue(&(i % 2), &[&a, &b]).dequeue_many(&(v.value() + i)).remove(0);
            (i + 1, sum + batch.sum(()))
        },
    );
    let (_, sizes) = g.scan((), g.constant([3i32, 3, 3]), |(), n| {
        ((), a.dequeue_up_to(n).remove(0).shape().cast(I32).sum(()))
    });
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    session.run(&[rows.feed([1, 2, 3, 4, 5, 6])], &fill).unwrap();
    session.run(&[rows_b.feed([100, 200, 300])], &fill_b).unwrap();
    assert_eq!(int(session.run(&[], &sum).unwrap()), 1 + 2 + 600 + 3 + 4 + 5 + 6);
    session.run(&[rows.feed([1, 2, 3, 4, 5, 6, 7])], &fill).unwrap();
    session.run(&[], a.close()).unwrap();
    assert_eq!(ints(&session.run(&[], &sizes).unwrap()), [3, 3, 1]);
    // A number that is none.
    let negative = g.map(g.constant([-1i32]), |n| b.dequeue_many(n).remove(0).sum(()));
    let error = session.run(&[], &negative).unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("b_dequeue_many")));
    assert_eq!(error.device(), Some("CPU:0"));
    assert!(error.location().is_some_and(|at| at.file() == file!()), "{error:?}");
}

/// `while q.size() > 0`: the condition sees what the body has taken.
#[test]
fn a_condition_sees_how_many_are_left() {
    let g = Graph::new();
    let (q, rows, fill) = scalars(&g, "q", None);
    let (n, sum) = g.while_loop(
        (g.constant(0i32), g.constant(0i32)),
        |_| q.size().greater(0),
        |(n, sum)| (n + 1, sum + one(&q)),
    );
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let run = || {
        let (n, sum) = session.run(&[], (&n, &sum)).unwrap();
        (int(n), int(sum))
    };
    assert_eq!(run(), (0, 0));
    session.run(&[rows.feed([5, 6, 7])], &fill).unwrap();
    assert_eq!(run(), (3, 18));
    assert_eq!(run(), (0, 0));
}

/// A run that takes and puts: what it puts comes behind all that is there, for later runs, in the order of the nodes.
#[test]
fn what_a_run_puts_comes_in_at_its_end_in_order() {
    for device in devices() {
        let g = Graph::new();
        let (q, rows, fill) = scalars(&g, "q", None);
        let first = q.enqueue(&[&g.constant(-1i32)]);
        let turned = g.map(g.constant([10i32, 20]), |ten| {
            let x = one(&q);
            let put = q.enqueue(&[&(&x + ten)]);
            let many = g.after(&[&put], || q.enqueue_many(&[&g.stack(&[&x, ten], 0)]));
            let none = q.enqueue_many(&[&x.reshape(&[1]).slice(&[0], &[Some(0)])]);
            g.after(&[&many, &none], || x.identity())
        });
        let last = g.after(&[&turned.operation()], || q.enqueue(&[&g.constant(-2i32)]));
        let session = device.session(&g);
        session.run(&[rows.feed([1, 2, 3])], &fill).unwrap();
        let (turned, ..) = session.run(&[], (&turned, &last, &first)).unwrap();
        assert_eq!(ints(&turned), [1, 2], "{}", device.name);
        let expected = [3, -1, 11, 1, 10, 22, 2, 20, -2];
        assert_eq!(drained(&session, &q), expected, "{}", device.name);
    }
}

/// Room for what is put outside and inside is taken at one time: a run that had some of it, and waited for more, would
/// wait for itself.
#[test]
fn what_is_put_outside_and_inside_waits_for_room_together() {
    let g = Graph::new();
    let (q, ..) = scalars(&g, "q", Some(2));
    let own = q.enqueue(&[&g.constant(-1i32)]);
    let p = g.placeholder("p", Bool, dims![]);
    let branch = || {
        let put = q.enqueue(&[&g.constant(5i32)]);
        g.after(&[&put], || g.constant(1i32))
    };
    let inside = g.cond(&p, branch, || g.constant(0i32));
    let pair = q.dequeue_many(2).remove(0);
    let options = SessionOptions { timeout: Some(Duration::from_secs(60)), ..Default::default() };
    let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    session.run(&[p.feed(true)], (&inside, &own)).unwrap();
                }
            });
        }
        for _ in 0..200 {
            assert_eq!(ints(&session.run(&[], &pair).unwrap()), [-1, 5]);
        }
    });
    assert_eq!(int(session.run(&[], q.size()).unwrap()), 0);
}

/// As with several puts of one run: there is room for all, or they are more than the capacity and the queue is empty.
#[test]
fn puts_of_a_loop_need_room_as_those_of_a_run_do() {
    let g = Graph::new();
    let (q, rows, fill) = scalars(&g, "q", Some(4));
    let n = g.placeholder("n", I32, dims![]);
    let own = q.enqueue(&[&g.constant(-1i32)]);
    let put = g.while_loop(
        g.constant(0i32),
        |i| i.less(&n),
        |i| {
            let put = q.enqueue(&[i]);
            g.after(&[&put], || i + 1)
        },
    );
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let run = |count: i32| session.run_with(&[n.feed(count)], &put, at_once());
    session.run(&[rows.feed([7])], &fill).unwrap();
    run(3).unwrap();
    let digest = session.state_digest().unwrap();
    let error = run(1).unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::FailedPrecondition, Some("q_enqueue_1")));
    assert!(error.message().contains("room in FIFO queue 'q' (capacity 4, there 4"), "{error}");
    run(0).unwrap();
    assert_eq!(session.state_digest().unwrap(), digest);
    assert_eq!(drained(&session, &q), [7, 0, 1, 2]);
    // More than there is room for, into an empty queue only; with one that the run puts outside.
    session.run(&[rows.feed([8])], &fill).unwrap();
    assert_eq!(kind(run(6)), ErrorKind::FailedPrecondition);
    assert_eq!(drained(&session, &q), [8]);
    run(6).unwrap();
    assert_eq!(drained(&session, &q), [0, 1, 2, 3, 4, 5]);
    session.run_with(&[n.feed(5)], (&put, &own), at_once()).unwrap();
    assert_eq!(drained(&session, &q), [-1, 0, 1, 2, 3, 4]);
    session.run_with(&[n.feed(3)], (&put, &own), at_once()).unwrap();
    assert_eq!(kind(session.run_with(&[], &own, at_once())), ErrorKind::FailedPrecondition);
    assert_eq!(drained(&session, &q), [-1, 0, 1, 2]);
    // Elements of another size are refused, and nothing changes.
    let shaped = g.queue("shaped", [(I32, dims![2])], QueueOptions::default());
    let wrong = g.while_loop_with(
        g.constant([1i32, 2]),
        |x| x.sum(()).less(100),
        |x| {
            let put = shaped.enqueue(&[x]);
            g.after(&[&put], || g.concat(&[x, &x.slice(&[0], &[Some(1)])], 0))
        },
        LoopOptions { invariants: vec![Some(dims![None])], ..LoopOptions::default() },
    );
    let error = session.run(&[], &wrong).unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("shaped_enqueue")));
    assert_eq!(int(session.run(&[], shaped.size()).unwrap()), 0);
}

/// Closing in a body, and what is put into a queue that is closed.
#[test]
fn a_loop_may_close_a_queue() {
    let g = Graph::new();
    let (q, rows, fill) = scalars(&g, "q", Some(10));
    let p = g.placeholder("p", Bool, dims![]);
    let put_all = g.while_loop(
        g.constant(0i32),
        |i| i.less(3),
        |i| {
            let put = q.enqueue(&[i]);
            let close = g.after(&[&put], || g.cond(&i.equal(2), || q.close(), || g.no_op()));
            g.after(&[&put, &close], || i + 1)
        },
    );
    let is_closed = g.cond(&p, || q.is_closed(), || g.constant(false));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let closed = || session.run(&[p.feed(true)], &is_closed).unwrap().scalar::<bool>().unwrap();
    assert!(!closed());
    session.run(&[], &put_all).unwrap();
    assert!(closed());
    let digest = session.state_digest().unwrap();
    let error = session.run(&[], &put_all).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(error.message().contains("FIFO queue 'q' is"), "{error}");
    assert_eq!(session.state_digest().unwrap(), digest);
    assert_eq!(kind(session.run(&[rows.feed([1])], &fill)), ErrorKind::Cancelled);
    let three = g.map(g.constant([0i32, 0, 0]), |x| x + one(&q));
    let four = g.map(g.constant([0i32, 0, 0, 0]), |x| x + one(&q));
    let error = session.run(&[], &four).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    let message =
        "FIFO queue 'q' is closed and has insufficient elements (requested 1, current size 0)";
    assert_eq!(error.message(), message);
    assert_eq!(session.state_digest().unwrap(), digest);
    assert_eq!(ints(&session.run(&[], &three).unwrap()), [0, 1, 2]);
}

/// Whatever fails gives all back, in order: an operation after several iterations, of each kind of queue.
#[test]
fn a_failed_run_gives_back_what_all_iterations_took() {
    let kinds = [
        QueueKind::Fifo,
        QueueKind::PaddingFifo,
        QueueKind::RandomShuffle { min_after_dequeue: 1, seed: 5 },
    ];
    for kind in kinds {
        let g = Graph::new();
        let q = g.queue("q", [(I32, dims![])], QueueOptions { kind, ..QueueOptions::default() });
        let (other, ..) = scalars(&g, "other", None);
        let rows = g.placeholder("rows", I32, dims![None]);
        let fill = q.enqueue_many(&[&rows]);
        let outside = one(&q);
        let n = g.placeholder("n", I32, dims![]);
        let v = g.variable("v", Init::Constant(0.0), I32, []);
        let (_, taken) = g.while_loop(
            (g.constant(0i32), g.constant(0i32)),
            |(i, _)| i.less(5),
            |(i, sum)| {
                let x = one(&q);
                let put = other.enqueue(&[&x]);
                let add = v.assign_add(&x).operation();
                let fine = g.assert(&i.less(&n), "too many", &[i]);
                g.after(&[&put, &add, &fine], || (i + 1, sum + &x))
            },
        );
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let all: Vec<i32> = (0..12).collect();
        session.run(&[rows.feed(&all)], &fill).unwrap();
        let digest = session.state_digest().unwrap();
        for n_fine in 0..5 {
            let error = session.run(&[n.feed(n_fine)], (&outside, &taken)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert_eq!(session.state_digest().unwrap(), digest, "{kind:?} after {n_fine}");
        }
        // As if nothing had been: another session that did not fail gives the same.
        let twin = Session::new(&g, &Devices::cpu()).unwrap();
        twin.run(&[], g.initializers()).unwrap();
        twin.run(&[rows.feed(&all)], &fill).unwrap();
        let run = |session: &Session| {
            let (x, sum) = session.run(&[n.feed(9)], (&outside, &taken)).unwrap();
            (int(x), int(sum), int(session.run(&[], v.value()).unwrap()), drained(session, &other))
        };
        let (found, expected) = (run(&session), run(&twin));
        assert_eq!(found, expected, "{kind:?}");
        assert_eq!(found.1, found.2);
        assert_eq!(found.3.iter().sum::<i32>(), found.1);
        assert_eq!(session.state_digest().unwrap(), twin.state_digest().unwrap(), "{kind:?}");
        if kind == QueueKind::Fifo {
            assert_eq!((found.0, found.1), (0, 1 + 2 + 3 + 4 + 5));
        }
    }
}

/// Runs that are cancelled wherever they are change nothing.
#[test]
fn cancelled_runs_change_nothing() {
    let g = Graph::new();
    let (q, rows, fill) = scalars(&g, "q", None);
    let (other, ..) = scalars(&g, "other", None);
    let moved = g.map(g.constant(vec![0i32; 300]), |x| {
        let y = one(&q) + x;
        let put = other.enqueue(&[&y]);
        g.after(&[&put], || y.identity())
    });
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let all: Vec<i32> = (0..300).collect();
    session.run(&[rows.feed(&all)], &fill).unwrap();
    let digest = session.state_digest().unwrap();
    let mut n_cancelled = 0;
    for i in 0..60u64 {
        let token = CancelToken::new();
        let options = RunOptions { cancel: Some(token.clone()), ..RunOptions::default() };
        let run = thread::scope(|scope| {
            let run = scope.spawn(|| session.run_with(&[], &moved, options));
            // A different moment each time.
            thread::sleep(Duration::from_micros(i * i * 7 % 2000));
            token.cancel();
            run.join().unwrap()
        });
        match run {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
                n_cancelled += 1;
                assert_eq!(session.state_digest().unwrap(), digest);
            }
            Ok((found, _)) => {
                assert_eq!(ints(&found), all);
                // Back to where they were.
                assert_eq!(drained(&session, &other), all);
                session.run(&[rows.feed(&all)], &fill).unwrap();
                assert_eq!(session.state_digest().unwrap(), digest);
            }
        }
    }
    assert!(n_cancelled > 0, "no run was cancelled in time");
}

/// The gradient takes nothing: it sees what the way there took.
#[test]
fn gradients_see_what_the_way_there_took() {
    for device in devices() {
        let g = Graph::new();
        let q = g.queue("q", [(F32, dims![])], QueueOptions::default());
        let rows = g.placeholder("rows", F32, dims![None]);
        let fill = q.enqueue_many(&[&rows]);
        let w = g.placeholder("w", F32, dims![]);
        let p = g.placeholder("p", Bool, dims![]);
        // w times the product of what was taken.
        let (_, product) = g.while_loop(
            (g.constant(0i32), w.clone()),
            |(i, _)| i.less(3),
            |(i, x)| (i + 1, x * one(&q)),
        );
        let chosen = g.cond(&p, || &w * &w * one(&q), || w.clone());
        let of_product = product.gradients(&[&w]).remove(0).unwrap();
        let of_chosen = chosen.gradients(&[&w]).remove(0).unwrap();
        let session = device.session(&g);
        session.run(&[rows.feed([2.0f32, 3.0, 4.0, 10.0, 7.0])], &fill).unwrap();
        let feeds = [w.feed(5.0f32), p.feed(true)];
        let number = |tensor: &HostTensor| tensor.scalar::<f32>().unwrap();
        let (y, dy) = session.run(&feeds, (&product, &of_product)).unwrap();
        assert_eq!((number(&y), number(&dy)), (120.0, 24.0), "{}", device.name);
        // The gradient alone takes as the way there does.
        let dy = session.run(&feeds, &of_chosen).unwrap();
        assert_eq!(number(&dy), 100.0, "{}", device.name);
        assert_eq!(int(session.run(&[], q.size()).unwrap()), 1);
        let dy = session.run(&[w.feed(5.0f32), p.feed(false)], &of_chosen).unwrap();
        assert_eq!(number(&dy), 1.0, "{}", device.name);
        assert_eq!(int(session.run(&[], q.size()).unwrap()), 1);
    }
}

/// A partial run takes inside of a branch when it comes to it, keeps it until its end, and gives it back if it is dropped.
/// A step that fails gives back what it took itself.
#[test]
fn partial_runs_keep_what_their_branches_took() {
    let g = Graph::new();
    let (q, rows, fill) = scalars(&g, "q", Some(10));
    let (other, ..) = scalars(&g, "other", Some(10));
    let n = g.placeholder("n", I32, dims![]);
    let moved = |name: &str| {
        let fails = Arc::new(AtomicBool::new(false));
        let limit = g.placeholder(name, I32, dims![]);
        let (_, sum) = g.while_loop(
            (g.constant(0i32), g.constant(0i32)),
            |(i, _)| i.less(&limit),
            |(i, sum)| {
                let x = one(&q);
                let put = other.enqueue(&[&x]);
                g.after(&[&put], || (i + 1, sum * 10 + failing(&x, &fails)))
            },
        );
        (limit, sum, fails)
    };
    let (first_n, first, _) = moved("first");
    let (second_n, second, fails) = moved("second");
    let outside = one(&q);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[rows.feed([1, 2, 3, 4, 5, 6, 7])], &fill).unwrap();
    let digest = session.state_digest().unwrap();
    let begin = || {
        session
            .partial_run(&[&first_n, &second_n, &n], (&first, &second, &outside, &(&n + 0)))
            .unwrap()
    };
    let mut run = begin();
    // With the first step that needs anything of queues the run takes what lies outside.
    assert_eq!(int(run.run(&[first_n.feed(2)], &first).unwrap()), 23);
    assert_eq!(int(session.run(&[], q.size()).unwrap()), 4);
    fails.store(true, Ordering::SeqCst);
    assert!(run.run(&[second_n.feed(2)], &second).is_err());
    assert_eq!(int(session.run(&[], q.size()).unwrap()), 4);
    fails.store(false, Ordering::SeqCst);
    assert_eq!(int(run.run(&[second_n.feed(2)], &second).unwrap()), 45);
    assert_eq!(int(run.run(&[], &outside).unwrap()), 1);
    assert_eq!(int(session.run(&[], other.size()).unwrap()), 0);
    drop(run);
    assert_eq!(session.state_digest().unwrap(), digest);
    let mut run = begin();
    assert_eq!(int(run.run(&[second_n.feed(1)], &second).unwrap()), 2);
    assert_eq!(int(run.run(&[first_n.feed(2)], &first).unwrap()), 34);
    run.finish().unwrap();
    assert_eq!(drained(&session, &q), [5, 6, 7]);
    // In the order of the nodes, whatever came first.
    assert_eq!(drained(&session, &other), [3, 4, 2]);
}

/// Counting runs that wait inside hold up nobody who counts, and no number comes twice.
#[test]
fn no_number_comes_twice_where_runs_wait_inside() {
    let g = Graph::new();
    let (q, ..) = scalars(&g, "q", None);
    let v = g.variable("v", Init::Zeros, I32, []);
    let p = g.constant(true);
    let (_, x) =
        g.while_loop((p, g.constant(0i32)), |(p, _)| p.clone(), |_| (g.constant(false), one(&q)));
    let take = (v.count_up_to(1000), x);
    let put = (v.count_up_to(1000), q.enqueue(&[&g.constant(1i32)]));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let mut all: Vec<i32> = thread::scope(|scope| {
        let takers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let take = || int(session.run(&[], (&take.0, &take.1)).unwrap().0);
                    (0..10).map(|_| take()).collect::<Vec<_>>()
                })
            })
            .collect();
        // They wait now, as far as they do.
        thread::sleep(A_WHILE);
        let mut all: Vec<i32> = Vec::new();
        for _ in 0..30 {
            all.push(int(session.run(&[], (&put.0, &put.1)).unwrap().0));
        }
        all.extend(takers.into_iter().flat_map(|taker| taker.join().unwrap()));
        all
    });
    all.sort_unstable();
    assert_eq!(all, (0..60).collect::<Vec<i32>>());
}

/// A staging area inside of a loop, which puts, gets, looks and clears.
#[test]
fn staging_areas_work_inside() {
    let g = Graph::new();
    let area = g.staging_area("area", [(I32, dims![])], StagingOptions::default());
    let x = g.placeholder("x", I32, dims![]);
    let put = area.put(&[&x]);
    let xs = g.constant([1i32, 2, 3]);
    let put_all = g.map(xs.clone(), |x| {
        let put = area.put(&[x]);
        g.after(&[&put], || x.identity())
    });
    let get_two = g.map(g.constant([10i32, 20]), |ten| {
        let next = area.peek(0).remove(0);
        let got = g.after(&[&next.operation()], || area.get().remove(0));
        &next * 100 + got + ten
    });
    let clear = g.map(g.constant([0i32]), |x| {
        let clear = area.clear();
        g.after(&[&clear], || x.identity())
    });
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let size = || int(session.run(&[], area.size()).unwrap());
    session.run(&[x.feed(9)], &put).unwrap();
    session.run(&[], &put_all).unwrap();
    assert_eq!(size(), 4);
    assert_eq!(ints(&session.run(&[], &get_two).unwrap()), [919, 121]);
    session.run(&[], &clear).unwrap();
    assert_eq!(size(), 0);
}

/// What stays outside says what to do.
#[test]
fn what_is_not_for_bodies_says_what_to_do() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let sum = g.conditional_accumulator("sum", F32, dims![], Default::default());
    let barrier = g.barrier("barrier", [(F32, dims![])], None);
    let map = g.map_staging_area("map", [(F32, dims![])], Default::default());
    let key = g.constant(1i64);
    let refused = |build: &dyn Fn() -> Tensor, message: &str| {
        let y = g.cond(&p, build, || g.constant(1.0f32));
        assert!(y.node().invalid.is_some());
        assert!(g.check().iter().any(|e| e.message().contains(message)), "{:?}", g.check());
    };
    let what = "inside of a branch or loop; take or look at it before, and put in after it what the branch or loop gives";
    refused(&|| sum.take_gradient(1), &format!("an accumulator {what}"));
    refused(&|| barrier.ready_size().cast(F32), &format!("a barrier {what}"));
    refused(&|| map.get(&key).remove(0), &format!("a map staging area {what}"));
}

/// A model keeps queues inside of its branches and loops, and the runner that fills one by a loop.
#[test]
fn a_model_keeps_queues_inside() {
    let folder = Folder::new("inside_queues");
    let file = folder.path().join("model");
    let g = Graph::new();
    let (q, ..) = scalars(&g, "q", Some(3));
    let (other, ..) = scalars(&g, "other", None);
    let fill = g.while_loop(
        g.constant(0i32),
        |i| i.less(3),
        |i| {
            let put = q.enqueue(&[i]);
            g.after(&[&put], || i + 1)
        },
    );
    g.add_queue_runner(&QueueRunner::new(&q, [fill.operation()]));
    let n = g.placeholder("n", I32, dims![]);
    let (_, sum) = g.while_loop(
        (g.constant(0i32), g.constant(0i32)),
        |(i, _)| i.less(&n),
        |(i, sum)| {
            let x = one(&q);
            let put = other.enqueue(&[&x]);
            g.after(&[&put], || (i + 1, sum * 10 + &x))
        },
    );
    let left = other.size();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let spec = ModelSpec::trainable(&[("n", &n)], &[("sum", &sum), ("left", &left)], &[]);
    session.save_model(&file, &spec).unwrap();
    let model = SavedModel::load(&file, &Devices::cpu()).unwrap();
    let coordinator = convoke::input::Coordinator::new();
    let session = model.session();
    assert_eq!(session.start_queue_runners(&coordinator).unwrap(), 1);
    let run = |count: i32| {
        let feeds = [model.input("n").unwrap().feed(count)];
        int(session.run(&feeds, model.output("sum").unwrap()).unwrap())
    };
    assert_eq!((run(4), run(2)), (120, 12));
    assert_eq!(int(session.run(&[], model.output("left").unwrap()).unwrap()), 6);
    coordinator.request_stop();
    coordinator.join(Duration::from_secs(20)).unwrap();
}

/// An explanation has what a loop does with queues as steps.
#[test]
fn explanations_show_what_bodies_take() {
    let g = Graph::new();
    let (q, ..) = scalars(&g, "q", None);
    let y = g.map(g.constant([1i32, 2]), |x| x * one(&q));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let explanation = session.explain(&[], &y).unwrap();
    let whole = &explanation.parts().unwrap().whole;
    let body = whole.steps.iter().find_map(|step| match &step.work {
        StepWork::Loop(_, _, body) => Some(body),
        _ => None,
    });
    let body = body.expect("a loop");
    let StepWork::Call(node) = &body.steps[0].work else { panic!("{:?}", body.steps[0]) };
    assert_eq!(&*node.name, "q_dequeue");
    assert!(matches!(body.steps[1].work, StepWork::Program(_)), "{:?}", body.steps[1]);
    assert!(explanation.to_string().contains("q_dequeue"), "{explanation}");
}
