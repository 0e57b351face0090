//! Runs that wait for queues inside of a branch or loop: who is told of, what ends them, and what keeps others going.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{CancelToken, Lack, Queue, QueueOptions, QueueRunner, RunOptions};
use convoke_tests::{A_WHILE, GRACE, comes, kind, waiting};

/// A queue of scalars, what puts one, and a loop that takes `n` and moves them to another queue.
struct Moving {
    g: Graph,
    q: Queue,
    x: Tensor,
    put: Operation,
    to: Queue,
    n: Tensor,
    moved: Tensor,
}

impl Moving {
    fn new(capacity: Option<usize>) -> Self {
        let g = Graph::new();
        let options = || QueueOptions { capacity, ..QueueOptions::default() };
        let q = g.queue("q", [(I32, dims![])], options());
        let to = g.queue("to", [(I32, dims![])], options());
        let x = g.placeholder("x", I32, dims![]);
        let put = q.enqueue(&[&x]);
        let n = g.placeholder("n", I32, dims![]);
        let (_, moved) = g.while_loop(
            (g.constant(0i32), g.constant(0i32)),
            |(i, _)| i.less(&n),
            |(i, sum)| {
                let x = q.dequeue().remove(0);
                let put = to.enqueue(&[&x]);
                g.after(&[&put], || (i + 1, sum * 10 + &x))
            },
        );
        Self { g, q, x, put, to, n, moved }
    }

    fn session(&self) -> Session {
        Session::new(&self.g, &Devices::cpu()).unwrap()
    }

    fn put(&self, session: &Session, x: i32) {
        session.run(&[self.x.feed(x)], &self.put).unwrap();
    }

    fn moves(&self, session: &Session, n: i32, options: &RunOptions) -> convoke::Result<i32> {
        session.run_with(&[self.n.feed(n)], &self.moved, options.clone())?.0.scalar::<i32>()
    }

    fn submit(&self, session: &Session, n: i32) -> convoke::RunHandle<&Tensor> {
        session.submit(&[self.n.feed(n)], &self.moved, RunOptions::default())
    }
}

fn size(session: &Session, q: &Queue) -> i32 {
    session.run(&[], q.size()).unwrap().scalar::<i32>().unwrap()
}

/// It is listed with what it lacks, has what it took before, and goes on when others put.
#[test]
fn a_run_waits_in_the_middle_and_goes_on() {
    let m = Moving::new(None);
    let session = m.session();
    m.put(&session, 1);
    thread::scope(|scope| {
        let run = scope.spawn(|| m.moves(&session, 3, &RunOptions::default()).unwrap());
        let runs = waiting(&session, 1);
        let operation = &runs[0].operations[0];
        assert_eq!((&*operation.name, &*operation.of), ("q_dequeue", "q"));
        assert_eq!(operation.location.file(), file!());
        assert_eq!(operation.lacks, Lack::Elements { wanted: 1, there: 0 });
        assert_eq!(size(&session, &m.q), 0);
        m.put(&session, 2);
        comes(|| size(&session, &m.q) == 0);
        assert_eq!(size(&session, &m.to), 0);
        m.put(&session, 3);
        assert_eq!(run.join().unwrap(), 123);
    });
    assert!(session.waiting().is_empty());
    assert_eq!(size(&session, &m.to), 3);
}

/// Timeouts, tokens, closing of the queue and closing of the session end a run that waits in the middle, and what it took is
/// there again.
#[test]
fn what_ends_a_run_that_waits_gives_back_what_it_took() {
    let m = Moving::new(None);
    let close = m.q.close();
    let session = m.session();
    m.put(&session, 1);
    m.put(&session, 2);
    let digest = session.state_digest().unwrap();
    let options = RunOptions { timeout: Some(A_WHILE), ..RunOptions::default() };
    assert_eq!(kind(m.moves(&session, 3, &options)), ErrorKind::DeadlineExceeded);
    assert_eq!(session.state_digest().unwrap(), digest);
    let token = CancelToken::new();
    let options = RunOptions { cancel: Some(token.clone()), ..RunOptions::default() };
    thread::scope(|scope| {
        let run = scope.spawn(|| m.moves(&session, 3, &options));
        waiting(&session, 1);
        assert_ne!(session.state_digest().unwrap(), digest);
        token.cancel();
        assert_eq!(kind(run.join().unwrap()), ErrorKind::Cancelled);
    });
    assert_eq!(session.state_digest().unwrap(), digest);
    let run = m.submit(&session, 3);
    waiting(&session, 1);
    drop(run);
    comes(|| session.state_digest().unwrap() == digest);
    let run = m.submit(&session, 3);
    waiting(&session, 1);
    session.run(&[], &close).unwrap();
    let error = run.wait().unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::OutOfRange, Some("q_dequeue")));
    let message =
        "FIFO queue 'q' is closed and has insufficient elements (requested 1, current size 0)";
    assert_eq!(error.message(), message);
    assert_eq!(size(&session, &m.q), 2);
    let session = m.session();
    let run = m.submit(&session, 3);
    waiting(&session, 1);
    session.close();
    assert_eq!(kind(run.wait()), ErrorKind::Cancelled);
}

/// A run that waits for room at its end has stored nothing, and is cancelled by `close_and_cancel`.
#[test]
fn a_run_waits_for_room_before_it_stores() {
    let m = Moving::new(Some(2));
    let v = m.g.variable("v", Init::Zeros, I32, []);
    let add = v.assign_add(1);
    let take = m.to.dequeue().remove(0);
    let cancel = m.to.close_and_cancel();
    let session = m.session();
    session.run(&[], m.g.initializers()).unwrap();
    let run = || session.submit(&[m.n.feed(2)], (&m.moved, &add), RunOptions::default());
    let now = || session.run(&[], v.value()).unwrap().scalar::<i32>().unwrap();
    [1, 2].into_iter().for_each(|x| m.put(&session, x));
    run().wait().unwrap();
    [3, 4].into_iter().for_each(|x| m.put(&session, x));
    let second = run();
    let runs = waiting(&session, 1);
    assert_eq!(&*runs[0].operations[0].name, "to_enqueue");
    assert_eq!(runs[0].operations[0].lacks, Lack::Room { capacity: 2, there: 2, promised: 0 });
    assert_eq!(now(), 1);
    assert_eq!(session.run(&[], &take).unwrap().scalar::<i32>().unwrap(), 1);
    thread::sleep(A_WHILE);
    // There must be room for both.
    assert!(!second.is_done());
    assert_eq!(session.run(&[], &take).unwrap().scalar::<i32>().unwrap(), 2);
    second.wait().unwrap();
    assert_eq!(now(), 2);
    [5, 6].into_iter().for_each(|x| m.put(&session, x));
    let third = run();
    waiting(&session, 1);
    session.run(&[], &cancel).unwrap();
    assert_eq!(kind(third.wait()), ErrorKind::Cancelled);
    assert_eq!((now(), size(&session, &m.q), size(&session, &m.to)), (2, 2, 2));
}

/// The only thread for submitted runs makes those that others wait for in the middle, for elements and for room.
#[test]
fn submitted_runs_that_wait_in_the_middle_hold_no_thread() {
    let m = Moving::new(None);
    let options = SessionOptions { runners: 1, ..SessionOptions::default() };
    let session = Session::with_options(&m.g, &Devices::cpu(), options).unwrap();
    for _ in 0..2 {
        let runs: Vec<_> = (0..10).map(|_| m.submit(&session, 2)).collect();
        waiting(&session, 10);
        let puts: Vec<_> = (0..20)
            .map(|_| session.submit(&[m.x.feed(1)], &m.put, RunOptions::default()))
            .collect();
        puts.into_iter().for_each(|put| put.wait().unwrap());
        for run in runs {
            assert_eq!(run.wait().unwrap().scalar::<i32>().unwrap(), 11);
        }
    }
    assert_eq!(size(&session, &m.to), 40);
    let m = Moving::new(Some(2));
    let take = m.to.dequeue().remove(0);
    let options = SessionOptions { runners: 1, ..SessionOptions::default() };
    let session = Session::with_options(&m.g, &Devices::cpu(), options).unwrap();
    let submit = |fetch| session.submit(&[m.x.feed(1)], fetch, RunOptions::default());
    let run = m.submit(&session, 2);
    (0..2).for_each(|_| submit(&m.put).wait().unwrap());
    run.wait().unwrap();
    let full = m.submit(&session, 1);
    submit(&m.put).wait().unwrap();
    comes(|| {
        session.waiting().iter().any(|run| matches!(run.operations[0].lacks, Lack::Room { .. }))
    });
    let taken = session.submit(&[], &take, RunOptions::default()).wait().unwrap();
    assert_eq!((taken.scalar::<i32>().unwrap(), size(&session, &m.q)), (1, 0));
    full.wait().unwrap();
}

/// A run that waited in its middle has what others wait for: it goes on before one that has not begun.
#[test]
fn who_waited_in_the_middle_goes_on_before_others_start() {
    let m = Moving::new(None);
    let order = Arc::new(Mutex::new(Vec::new()));
    let (open, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let noted = |name: &str, x: &Tensor, waits: Option<Mutex<mpsc::Receiver<()>>>| {
        let order = order.clone();
        let note = move |given: &[HostTensor]| {
            order.lock().unwrap().push(given[0].scalar::<i32>()?);
            waits.iter().for_each(|gate| gate.lock().unwrap().recv_timeout(GRACE).unwrap());
            Ok(given.to_vec())
        };
        m.g.host_function(name, &[x], [(I32, dims![])], note).remove(0)
    };
    let (moved, started) = (noted("moved", &m.moved, None), noted("started", &m.x, None));
    let busy = noted("busy", &m.x, Some(gate));
    let options = SessionOptions { runners: 1, ..SessionOptions::default() };
    let session = Session::with_options(&m.g, &Devices::cpu(), options).unwrap();
    m.put(&session, 1);
    let waits = session.submit(&[m.n.feed(2)], &moved, RunOptions::default());
    waiting(&session, 1);
    let busy = session.submit(&[m.x.feed(5)], &busy, RunOptions::default());
    comes(|| order.lock().unwrap().len() == 1);
    let starts = session.submit(&[m.x.feed(7)], &started, RunOptions::default());
    m.put(&session, 2);
    open.send(()).unwrap();
    busy.wait().unwrap();
    starts.wait().unwrap();
    assert_eq!(waits.wait().unwrap().scalar::<i32>().unwrap(), 12);
    assert_eq!(*order.lock().unwrap(), [5, 12, 7]);
}

/// A loop whose body has a branch, one of them with a loop, that takes from a queue five times in all.
struct Nested {
    g: Graph,
    q: Queue,
    x: Tensor,
    put: Operation,
    v: Variable,
    sum: Tensor,
    drawn: Tensor,
}

impl Nested {
    fn new() -> Self {
        let g = Graph::new();
        let q = g.queue("q", [(I32, dims![])], QueueOptions::default());
        let x = g.placeholder("x", I32, dims![]);
        let put = q.enqueue(&[&x]);
        let v = g.variable("v", Init::Zeros, I32, []);
        let two = || {
            let first = (g.constant(0i32), g.constant(0i32));
            let taken = || q.dequeue().remove(0);
            g.while_loop(first, |(j, _)| j.less(2i32), |(j, sum)| (j + 1, sum * 10 + taken())).1
        };
        let (_, sum, drawn) = g.while_loop(
            (g.constant(0i32), g.constant(0i32), g.constant(0.0f32)),
            |(i, ..)| i.less(3i32),
            |(i, sum, drawn)| {
                let drawn = drawn + g.random_uniform(&[], F32, 7);
                let taken = g.cond(&i.equal(1i32), || q.dequeue().remove(0), two);
                let add = v.assign_add(&taken);
                g.after(&[&add.operation()], || (i + 1, sum + &taken, drawn.identity()))
            },
        );
        Self { g, q, x, put, v, sum, drawn }
    }

    fn session(&self) -> Session {
        let options = SessionOptions { runners: 1, ..SessionOptions::default() };
        let session = Session::with_options(&self.g, &Devices::cpu(), options).unwrap();
        session.run(&[], self.g.initializers()).unwrap();
        session
    }

    fn put(&self, session: &Session, x: i32) {
        session.run(&[self.x.feed(x)], &self.put).unwrap();
    }
}

/// 12 and 3 and 45, as if all had been there: what was assigned and drawn before a wait stays, and is stored once.
#[test]
fn a_submitted_run_goes_on_where_it_waited_in_nested_bodies() {
    let m = Nested::new();
    let fetches = || (&m.sum, &m.drawn);
    let at_once = {
        let session = m.session();
        (1..=5).for_each(|x| m.put(&session, x));
        session.run(&[], fetches()).unwrap()
    };
    let session = m.session();
    let run = session.submit(&[], fetches(), RunOptions::default());
    for x in 1..=5 {
        comes(|| session.waiting().len() == 1 && size(&session, &m.q) == 0);
        assert_eq!(session.run(&[], m.v.value()).unwrap().scalar::<i32>().unwrap(), 0);
        assert!(!run.is_done());
        m.put(&session, x);
    }
    let (sum, drawn) = run.wait().unwrap();
    assert_eq!(sum.scalar::<i32>().unwrap(), 12 + 3 + 45);
    assert_eq!(session.run(&[], m.v.value()).unwrap().scalar::<i32>().unwrap(), 60);
    assert_eq!((sum.bytes(), drawn.bytes()), (at_once.0.bytes(), at_once.1.bytes()));
    assert!(session.waiting().is_empty());
}

/// Cancelled at each of its five waits it gives back what it has taken, leaves the line, and has drawn nothing.
#[test]
fn a_submitted_run_is_cancelled_at_each_wait_of_nested_bodies() {
    let m = Nested::new();
    let session = m.session();
    for n in 0..5 {
        let digest = session.state_digest().unwrap();
        let run = session.submit(&[], (&m.sum, &m.drawn), RunOptions::default());
        comes(|| session.waiting().len() == 1 && size(&session, &m.q) == 0);
        run.cancel();
        assert_eq!(kind(run.wait()), ErrorKind::Cancelled);
        assert_eq!(session.state_digest().unwrap(), digest, "after {n} elements");
        assert!(session.waiting().is_empty());
        let options = RunOptions { timeout: Some(A_WHILE), ..RunOptions::default() };
        let run = session.submit(&[], &m.sum, options);
        assert_eq!(kind(run.wait()), ErrorKind::DeadlineExceeded);
        assert_eq!(session.state_digest().unwrap(), digest, "after {n} elements");
        m.put(&session, n + 1);
    }
    assert_eq!(session.run(&[], &m.sum).unwrap().scalar::<i32>().unwrap(), 60);
}

/// Closing and dropping the session end a run that waits in nested bodies.
#[test]
fn a_session_ends_what_waits_in_nested_bodies() {
    for closes in [true, false] {
        let m = Nested::new();
        let session = m.session();
        [1, 2, 3].into_iter().for_each(|x| m.put(&session, x));
        let run = session.submit(&[], &m.sum, RunOptions::default());
        comes(|| session.waiting().len() == 1 && size(&session, &m.q) == 0);
        match closes {
            true => session.close(),
            false => drop(session),
        }
        assert_eq!(kind(run.wait()), ErrorKind::Cancelled);
    }
}

/// What others have counted while it waited it does not count again: it begins anew, with the same elements, and has 1 and 2
/// where it would have had 0 and 1.
#[test]
fn a_run_that_waited_begins_anew_where_others_have_counted() {
    let g = Graph::new();
    let q = g.queue("q", [(I32, dims![])], QueueOptions::default());
    let x = g.placeholder("x", I32, dims![]);
    let (put, v) = (q.enqueue(&[&x]), g.variable("v", Init::Zeros, I32, []));
    let next = v.count_up_to(100);
    let (_, counted) = g.while_loop(
        (g.constant(0i32), g.constant(0i32)),
        |(i, _)| i.less(2i32),
        |(i, all)| {
            let counted = v.count_up_to(100);
            let taken = g.after(&[&counted.operation()], || q.dequeue().remove(0));
            (i + 1, all * 100 + counted * 10 + taken)
        },
    );
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    session.run(&[x.feed(3)], &put).unwrap();
    let run = session.submit(&[], &counted, RunOptions::default());
    waiting(&session, 1);
    assert_eq!(session.run(&[], &next).unwrap().scalar::<i32>().unwrap(), 0);
    session.run(&[x.feed(4)], &put).unwrap();
    assert_eq!(run.wait().unwrap().scalar::<i32>().unwrap(), 1324);
    assert_eq!(session.run(&[], &next).unwrap().scalar::<i32>().unwrap(), 3);
    assert_eq!(size(&session, &q), 0);
}

/// A tensor that was donated is the run's from its start, whatever becomes of the donation while it waits.
#[test]
fn a_run_that_waits_keeps_what_was_donated() {
    let m = Moving::new(None);
    let (y, doubled) = (m.g.placeholder("y", I32, dims![]), &m.x * 2);
    let sum = &m.moved + &y;
    let session = m.session();
    let donation = session.run(&[m.x.feed(50)], convoke::OnDevice(&doubled)).unwrap().donate();
    let feeds = [m.n.feed(1), y.feed(&donation)];
    let run = session.submit(&feeds, &sum, RunOptions::default());
    waiting(&session, 1);
    drop(donation.take_back());
    m.put(&session, 1);
    assert_eq!(run.wait().unwrap().scalar::<i32>().unwrap(), 101);
}

/// Nobody puts any more: a run in the middle ends as one that has not begun, whatever it may put there itself.
#[test]
fn a_run_in_the_middle_ends_where_nobody_puts_any_more() {
    let g = Graph::new();
    let q = g.queue("q", [(I32, dims![])], QueueOptions::default());
    let numbers = g.fifo_queue("numbers", 9, [(I32, dims![])]);
    let fill = numbers.enqueue_many(&[&g.constant([1i32, 2])]);
    let put = q.enqueue(&[&numbers.dequeue()[0]]);
    let runner = QueueRunner::new(&q, [put]);
    g.add_queue_runner(&runner);
    let two = g.map(g.constant([0i32, 0]), |x| x + q.dequeue().remove(0));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], &fill).unwrap();
    session.run(&[], numbers.close()).unwrap();
    let coordinator = convoke::input::Coordinator::new();
    session.start_queue_runners(&coordinator).unwrap();
    assert_eq!(session.run(&[], &two).unwrap().to_vec::<i32>().unwrap(), [1, 2]);
    let error = session.run(&[], &two).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
    coordinator.request_stop();
    coordinator.join(GRACE).unwrap();
}

/// As above where the queue stays open. Another run that may still put in its middle may help; the run itself cannot.
#[test]
fn only_others_help_a_run_in_the_middle() {
    let g = Graph::new();
    let [q, side, gate] =
        ["q", "side", "gate"].map(|name| g.queue(name, [(I32, dims![])], QueueOptions::default()));
    let numbers = g.fifo_queue("numbers", 9, [(I32, dims![])]);
    let open = gate.enqueue(&[&g.constant(2i32)]);
    // What each takes of another queue it puts into that one.
    let forward = |from: &Queue| {
        g.map(g.constant([5i32]), |x| {
            let y = x + from.dequeue().remove(0);
            let put = side.enqueue(&[&y]);
            g.after(&[&put], || y.identity())
        })
    };
    let (from_gate, from_side) = (forward(&gate), forward(&side));
    let put = q.enqueue(&[&numbers.dequeue()[0]]);
    let all = g.group([&put, &from_gate.operation(), &from_side.operation()]);
    g.add_queue_runner(&QueueRunner::new(&q, [all]));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], numbers.close()).unwrap();
    let coordinator = convoke::input::Coordinator::new();
    session.start_queue_runners(&coordinator).unwrap();
    coordinator.join(GRACE).unwrap();
    let error = session.run(&[], &from_side).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
    let message = "all that put into FIFO queue 'side' belong to queue runners, which have ended";
    assert!(error.message().starts_with(message), "{error}");
    let first = session.submit(&[], &from_gate, RunOptions::default());
    // Nothing was put into the gate's queue by a runner, so that it waits.
    waiting(&session, 1);
    let second = session.submit(&[], &from_side, RunOptions::default());
    waiting(&session, 2);
    session.run(&[], &open).unwrap();
    assert_eq!(first.wait().unwrap().to_vec::<i32>().unwrap(), [7]);
    assert_eq!(second.wait().unwrap().to_vec::<i32>().unwrap(), [12]);
}

/// Submitted runs of a session that is gone: those that wait in the middle end when nobody is left who could help.
#[test]
fn nobody_waits_in_the_middle_in_a_session_that_is_gone() {
    let m = Moving::new(None);
    let session = m.session();
    m.put(&session, 7);
    let both: Vec<_> = (0..3).map(|_| m.submit(&session, 2)).collect();
    let parked = session.submit(&[], m.to.dequeue(), RunOptions::default());
    waiting(&session, 4);
    drop(session);
    let helped = both.into_iter().map(|run| run.wait().unwrap_err());
    for error in helped.chain([parked.wait().unwrap_err()]) {
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        assert!(error.message().contains("no handle any more"), "{error}");
    }
}

/// Who waits in the middle may be helped by one that is under way when the session goes.
#[test]
fn runs_under_way_help_those_in_the_middle() {
    let m = Moving::new(None);
    let back = m.g.map(m.g.constant([0i32]), |x| {
        let y = x + m.to.dequeue().remove(0);
        let put = m.q.enqueue(&[&y]);
        m.g.after(&[&put], || y.identity())
    });
    for _ in 0..20 {
        let session = m.session();
        let first = m.submit(&session, 2);
        let second = session.submit(&[], &back, RunOptions::default());
        let third = session.submit(&[], &back, RunOptions::default());
        waiting(&session, 3);
        // Two numbers: the first run moves them, and the others move them back.
        session.submit(&[m.x.feed(1)], &m.put, RunOptions::default()).detach();
        session.submit(&[m.x.feed(2)], &m.put, RunOptions::default()).detach();
        drop(session);
        // Two threads put them, in this order or the other.
        let first = first.wait().unwrap().scalar::<i32>().unwrap();
        assert!([12, 21].contains(&first), "{first}");
        let [a, b] = [second, third].map(|run| run.wait().unwrap().to_vec::<i32>().unwrap());
        assert_eq!(a[0] + b[0], 3);
    }
}

/// Many threads move elements from queue to queue, some of them failing on the way: each element is there once.
#[test]
fn many_threads_move_elements_inside() {
    let m = Moving::new(Some(5));
    let take = m.to.dequeue().remove(0);
    let session = m.session();
    let mut got: Vec<i32> = thread::scope(|scope| {
        scope.spawn(|| (0..120).for_each(|x| m.put(&session, x)));
        for t in 0..3u64 {
            let (m, session) = (&m, &session);
            scope.spawn(move || {
                let mut n_done = 0;
                let mut micros = 100 * (t + 1);
                while n_done < 20 {
                    // Those that take too long change nothing.
                    micros = micros * 2 % 50_000 + 50;
                    let timeout = Some(Duration::from_micros(micros));
                    let options = RunOptions { timeout, ..RunOptions::default() };
                    match m.moves(session, 2, &options) {
                        Ok(_) => n_done += 1,
                        Err(e) => assert_eq!(e.kind(), ErrorKind::DeadlineExceeded, "{e}"),
                    }
                }
            });
        }
        let taker = scope.spawn(|| {
            let take = || session.run(&[], &take).unwrap().scalar::<i32>().unwrap();
            (0..120).map(|_| take()).collect::<Vec<_>>()
        });
        taker.join().unwrap()
    });
    got.sort_unstable();
    assert_eq!(got, (0..120).collect::<Vec<i32>>());
    assert_eq!((size(&session, &m.q), size(&session, &m.to)), (0, 0));
}
