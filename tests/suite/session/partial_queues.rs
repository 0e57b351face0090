//! Partial runs with queues and readers: the first step that needs some of what the run takes takes all of it, and what
//! the run puts comes in at its end.

use std::thread;

use convoke::prelude::*;
use convoke::{CancelToken, Queue, QueueKind, QueueOptions, RunOptions};
use convoke_tests::{A_WHILE, Folder, devices};

/// Two queues of scalars, with what puts into them and takes from them.
struct Two {
    g: Graph,
    x: Tensor,
    a: Queue,
    b: Queue,
    put_a: Operation,
}

impl Two {
    fn new(capacity: usize) -> Self {
        let g = Graph::new();
        let queue = |name: &str| g.fifo_queue(name, capacity, [(F32, dims![])]);
        let (a, b) = (queue("a"), queue("b"));
        let x = g.placeholder("x", F32, dims![]);
        let put_a = a.enqueue(&[&x]);
        Self { g, x, a, b, put_a }
    }

    fn session(&self) -> Session {
        Session::new(&self.g, &Devices::cpu()).unwrap()
    }

    fn put(&self, session: &Session, all: impl IntoIterator<Item = f32>) {
        for x in all {
            session.run(&[self.x.feed(x)], &self.put_a).unwrap();
        }
    }

    fn sizes(&self, session: &Session) -> (i32, i32) {
        let (a, b) = session.run(&[], (self.a.size(), self.b.size())).unwrap();
        (a.scalar::<i32>().unwrap(), b.scalar::<i32>().unwrap())
    }
}

fn scalar(tensor: HostTensor) -> f32 {
    tensor.scalar::<f32>().unwrap()
}

fn at_once() -> RunOptions {
    RunOptions { fail_if_blocked: true, ..RunOptions::default() }
}

#[test]
fn the_first_step_that_needs_some_takes_all_and_the_last_puts() {
    for device in devices() {
        let two = Two::new(10);
        let (first, second) = (two.a.dequeue().remove(0), two.a.dequeue().remove(0));
        let y = two.g.placeholder("y", F32, dims![]);
        let double = &y * 2.0;
        let sum = &second + &double;
        let put = two.b.enqueue(&[&sum]);
        let session = device.session(&two.g);
        two.put(&session, [1.0, 2.0, 3.0]);
        let digest = session.state_digest().unwrap();
        let mut run = session.partial_run(&[&y], (&double, &second, &first, &put)).unwrap();
        assert_eq!(scalar(run.run(&[y.feed(5.0)], &double).unwrap()), 10.0, "{}", device.name);
        assert_eq!(session.state_digest().unwrap(), digest);
        // In the order of one run, whatever is asked for first.
        assert_eq!(scalar(run.run(&[], &second).unwrap()), 2.0, "{}", device.name);
        assert_eq!(two.sizes(&session), (1, 0));
        run.run(&[], &put).unwrap();
        assert_eq!(two.sizes(&session), (1, 0));
        assert_eq!(scalar(run.run(&[], &first).unwrap()), 1.0, "{}", device.name);
        assert!(run.is_done());
        assert_eq!(two.sizes(&session), (1, 1));
        let out = session.run(&[], two.b.dequeue().remove(0)).unwrap();
        assert_eq!(scalar(out), 12.0, "{}", device.name);
    }
}

#[test]
fn what_is_left_alone_or_fails_gives_back_what_it_took() {
    let two = Two::new(10);
    let ok = two.g.assert(&two.x.less(10.0), "small", &[]);
    let taken = two.a.dequeue().remove(0);
    let checked = two.g.after(&[&ok], || &taken + &two.x);
    let put = two.b.enqueue(&[&checked]);
    let session = two.session();
    two.put(&session, [1.0, 2.0]);
    let digest = session.state_digest().unwrap();
    let all = (&taken, &checked, &put);
    let mut run = session.partial_run(&[&two.x], all).unwrap();
    assert_eq!(scalar(run.run(&[], &taken).unwrap()), 1.0);
    assert_eq!(two.sizes(&session), (1, 0));
    drop(run);
    assert_eq!(session.state_digest().unwrap(), digest);
    // A step that takes and fails gives back at once, and may be made again.
    let mut run = session.partial_run(&[&two.x], all).unwrap();
    let error = run.run(&[two.x.feed(20.0)], &checked).unwrap_err();
    assert_eq!(error.message(), "assertion failed: small", "{error}");
    assert_eq!(session.state_digest().unwrap(), digest);
    assert_eq!(scalar(run.run(&[two.x.feed(3.0)], &checked).unwrap()), 4.0);
    run.run(&[], (&taken, &put)).unwrap();
    assert_eq!(two.sizes(&session), (1, 1));
}

#[test]
fn ended_early_it_puts_what_its_steps_have_come_to_put() {
    let two = Two::new(1);
    let taken = two.a.dequeue().remove(0);
    let put_b = two.b.enqueue(&[&two.x]);
    let session = two.session();
    two.put(&session, [7.0]);
    let mut run = session.partial_run(&[&two.x], (&taken, &put_b)).unwrap();
    assert_eq!(scalar(run.run(&[], &taken).unwrap()), 7.0);
    // Room is kept for what it may put.
    let full = session.run_with(&[two.x.feed(1.0)], &put_b, at_once()).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::FailedPrecondition, "{full}");
    run.finish().unwrap();
    assert_eq!(two.sizes(&session), (0, 0));
    session.run_with(&[two.x.feed(1.0)], &put_b, at_once()).unwrap();
    assert_eq!(two.sizes(&session), (0, 1));
}

#[test]
fn a_step_waits_as_its_options_say() {
    let two = Two::new(10);
    let taken = two.a.dequeue().remove(0);
    let double = &taken * &two.x;
    let session = two.session();
    let mut run = session.partial_run(&[&two.x], (&two.x, &double)).unwrap();
    run.run(&[two.x.feed(3.0)], &two.x).unwrap();
    let error = run.run_with(&[], &double, &at_once()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    let soon = RunOptions { timeout: Some(A_WHILE), ..RunOptions::default() };
    let error = run.run_with(&[], &double, &soon).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    let cancel = CancelToken::new();
    let options = RunOptions { cancel: Some(cancel.clone()), ..RunOptions::default() };
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(A_WHILE);
            cancel.cancel();
        });
        let error = run.run_with(&[], &double, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(A_WHILE);
            two.put(&session, [4.0]);
        });
        assert_eq!(scalar(run.run(&[], &double).unwrap()), 12.0);
    });
    assert!(run.is_done());
}

#[test]
fn elements_of_another_shape_fail_the_step_that_makes_them() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let q = g.queue(
        "q",
        [(F32, dims![None])],
        QueueOptions { kind: QueueKind::PaddingFifo, ..QueueOptions::default() },
    );
    let rows = g.placeholder("rows", F32, dims![None, None]);
    let put = q.enqueue_many(&[&rows]);
    let narrow = g.fifo_queue("narrow", 3, [(F32, dims![2])]);
    let pair = narrow.enqueue(&[&(&x * 1.0)]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let digest = session.state_digest().unwrap();
    let mut run = session.partial_run(&[&x, &rows], (&put, &pair)).unwrap();
    let error = run.run(&[x.feed([1.0f32, 2.0, 3.0])], &pair).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert_eq!(session.state_digest().unwrap(), digest);
    run.run(&[x.feed([1.0f32, 2.0])], &pair).unwrap();
    run.run(&[rows.feed([[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]])], &put).unwrap();
    let sizes = session.run(&[], (q.size(), narrow.size())).unwrap();
    assert_eq!((sizes.0.scalar::<i32>().unwrap(), sizes.1.scalar::<i32>().unwrap()), (2, 1));
}

#[test]
fn queues_are_closed_at_the_end_and_their_sizes_are_of_the_start() {
    let two = Two::new(10);
    let close = two.b.close();
    let (before, is_closed) = (two.b.size(), two.b.is_closed());
    let put = two.b.enqueue(&[&two.x]);
    let session = two.session();
    let all = (&put, &before, &is_closed, &close);
    let mut run = session.partial_run(&[&two.x], all).unwrap();
    run.run(&[two.x.feed(1.0)], &put).unwrap();
    run.run(&[], &close).unwrap();
    let (n, closed) = run.run(&[], (&before, &is_closed)).unwrap();
    assert_eq!((n.scalar::<i32>().unwrap(), closed.scalar::<bool>().unwrap()), (0, false));
    assert_eq!(two.sizes(&session), (0, 1));
    let closed = session.run(&[], two.b.is_closed()).unwrap();
    assert!(closed.scalar::<bool>().unwrap());
}

#[test]
fn readers_move_on_when_the_run_has_succeeded() {
    let folder = Folder::new("partial_readers");
    let path = folder.path().join("lines");
    std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
    let g = Graph::new();
    let q = g.fifo_queue("files", 10, [(Strings, dims![])]);
    let reader = g.text_line_reader("lines", 0);
    let (_, value) = reader.read(&q);
    let (_, next) = g.after(&[&value.operation()], || reader.read(&q));
    let name = g.placeholder("name", Strings, dims![]);
    let put = q.enqueue(&[&name]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let path = HostTensor::strings(&[], [path.to_str().unwrap().as_bytes()]).unwrap();
    session.run(&[name.feed(&path)], &put).unwrap();
    let digest = session.state_digest().unwrap();
    let text = |t: HostTensor| String::from_utf8(t.as_strings().unwrap()[0].clone()).unwrap();
    let mut run = session.partial_run(&[], (&value, &next)).unwrap();
    assert_eq!(text(run.run(&[], &next).unwrap()), "two");
    drop(run);
    assert_eq!(session.state_digest().unwrap(), digest);
    let mut run = session.partial_run(&[], (&value, &next)).unwrap();
    assert_eq!(text(run.run(&[], &value).unwrap()), "one");
    assert_eq!(text(run.run(&[], &next).unwrap()), "two");
    assert!(run.is_done());
    assert_eq!(text(session.run(&[], &value).unwrap()), "three");
}

#[test]
fn a_reader_is_restored_from_what_an_earlier_step_was_fed() {
    let g = Graph::new();
    let q = g.fifo_queue("names", 10, [(Strings, dims![])]);
    let reader = g.identity_reader("names");
    let name = g.placeholder("name", Strings, dims![]);
    let put = q.enqueue(&[&name]);
    let (key, _) = reader.read(&q);
    let save = reader.serialize_state();
    let state = g.placeholder("state", Strings, dims![]);
    let restore = reader.restore_state(&state);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let saved = session.run(&[], &save).unwrap();
    session.run(&[name.feed("one")], &put).unwrap();
    session.run(&[], &key).unwrap();
    let y = &g.constant(1.0f32) + 1.0;
    let mut run = session.partial_run(&[&state], (&y, &restore)).unwrap();
    let error = run.run(&[], &restore).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    run.run(&[state.feed(&saved)], &y).unwrap();
    run.run(&[], &restore).unwrap();
    assert!(run.is_done());
    assert_eq!(session.run(&[], &save).unwrap(), saved);
}
