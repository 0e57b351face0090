//! Runs that wait: who is told of, what refuses to wait, and what would wait for ever and does not.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use convoke::input::Coordinator;
use convoke::prelude::*;
use convoke::{
    Lack, Queue, QueueKind, QueueOptions, QueueRunner, RunHandle, RunOptions, WaitingRun,
};
use convoke_tests::{A_WHILE, Folder, GRACE, comes, fails_while, kind, slow, waiting};

/// A queue of scalars of f32, with what puts one and what takes one.
struct Scalars {
    g: Graph,
    q: Queue,
    x: Tensor,
    put: Operation,
    get: Tensor,
}

impl Scalars {
    fn new(name: &str, capacity: usize) -> Self {
        let g = Graph::new();
        let q = g.fifo_queue(name, capacity, [(F32, dims![])]);
        let x = g.placeholder("x", F32, dims![]);
        let put = q.enqueue(&[&x]);
        let get = q.dequeue().remove(0);
        Self { g, q, x, put, get }
    }

    fn session(&self) -> Session {
        self.session_with(SessionOptions::default())
    }

    fn session_with(&self, options: SessionOptions) -> Session {
        Session::with_options(&self.g, &Devices::cpu(), options).unwrap()
    }

    fn put(&self, session: &Session, x: f32) {
        session.run(&[self.x.feed(x)], &self.put).unwrap();
    }

    fn get(&self, session: &Session) -> convoke::Result<f32> {
        session.run(&[], &self.get)?.scalar::<f32>()
    }

    fn submit<F: Fetch>(&self, session: &Session, fetch: F) -> RunHandle<F> {
        session.submit(&[self.x.feed(1.0)], fetch, RunOptions::default())
    }
}

fn lacks(runs: &[WaitingRun]) -> Vec<Lack> {
    runs.iter().flat_map(|run| run.operations.iter().map(|operation| operation.lacks)).collect()
}

#[test]
fn who_waits_says_for_what_and_since_when() {
    let before = Instant::now();
    let s = Scalars::new("q", 1);
    let line = line!() + 1;
    let three = s.q.dequeue_many(3).remove(0);
    let session = s.session();
    assert!(session.waiting().is_empty());
    let many = s.submit(&session, &three);
    let runs = waiting(&session, 1);
    assert_eq!(lacks(&runs), [Lack::Elements { wanted: 3, there: 0 }]);
    let operation = &runs[0].operations[0];
    assert_eq!((&*operation.name, &*operation.of), ("q_dequeue_many", "q"));
    assert_eq!((operation.location.line(), operation.location.file()), (line, file!()));
    assert!(runs[0].since >= before && runs[0].since <= Instant::now());
    let text = runs[0].to_string();
    assert!(text.starts_with(&format!("run {} has waited for 0.", runs[0].run)), "{text}");
    let rest = format!(
        " s: q_dequeue_many at {}:{line}:21 lacks elements of FIFO queue 'q' (wanted 3, there 0)",
        file!()
    );
    assert!(text.ends_with(&rest), "{text}");
    // Two come in, since the batch makes room; one of them could be had, but for the turn.
    s.put(&session, 1.0);
    s.put(&session, 2.0);
    let single = s.submit(&session, &s.get);
    let runs = waiting(&session, 2);
    assert_eq!(lacks(&runs), [Lack::Elements { wanted: 3, there: 2 }, Lack::Turn]);
    assert!(runs[0].run < runs[1].run && runs[0].since <= runs[1].since);
    assert!(runs[1].to_string().ends_with("lacks its turn at FIFO queue 'q'"), "{}", runs[1]);
    s.put(&session, 3.0);
    many.wait().unwrap();
    s.put(&session, 4.0);
    single.wait().unwrap();
    assert!(session.waiting().is_empty());
    // On a thread of the caller's, and for room.
    s.put(&session, 5.0);
    thread::scope(|scope| {
        let putter = scope.spawn(|| s.put(&session, 6.0));
        let runs = waiting(&session, 1);
        assert_eq!(lacks(&runs), [Lack::Room { capacity: 1, there: 1, promised: 0 }]);
        let text = runs[0].to_string();
        let rest = "lacks room in FIFO queue 'q' (capacity 1, there 1, promised 0)";
        assert!(text.ends_with(rest), "{text}");
        assert_eq!(s.get(&session).unwrap(), 5.0);
        putter.join().unwrap();
    });
    assert!(session.waiting().is_empty());
}

/// Of several things that a run needs, those that are there are not listed; and what is kept back does not count.
#[test]
fn a_run_lists_each_operation_that_lacks() {
    let g = Graph::new();
    let [full, empty] = ["full", "empty"].map(|name| g.fifo_queue(name, 1, [(F32, dims![])]));
    let kind = QueueKind::RandomShuffle { min_after_dequeue: 2, seed: 1 };
    let options = QueueOptions { kind, capacity: Some(9), shared_name: None };
    let mixed = g.queue("mixed", [(F32, dims![])], options);
    let one = g.constant(1.0f32);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], full.enqueue(&[&one])).unwrap();
    session.run(&[], mixed.enqueue_many(&[&g.constant([1.0f32, 2.0])])).unwrap();
    let (there, missing) = (full.dequeue(), empty.dequeue());
    let run = session.submit(&[], (there, missing, mixed.dequeue()), RunOptions::default());
    let runs = waiting(&session, 1);
    let names: Vec<&str> = runs[0].operations.iter().map(|o| &*o.of).collect();
    assert_eq!(names, ["empty", "mixed"]);
    assert_eq!(lacks(&runs), [Lack::Elements { wanted: 1, there: 0 }; 2]);
    session.run(&[], mixed.enqueue(&[&one])).unwrap();
    comes(|| session.waiting()[0].operations.len() == 1);
    session.run(&[], empty.enqueue(&[&one])).unwrap();
    run.wait().unwrap();
}

#[test]
fn who_waits_for_a_reader_says_so() {
    let folder = Folder::new("waiting");
    let path = folder.path().join("lines");
    std::fs::write(&path, "one\ntwo\n").unwrap();
    let g = Graph::new();
    let names = g.fifo_queue("names", 5, [(Strings, dims![])]);
    let reader = g.text_line_reader("lines", 0);
    let x = g.placeholder("x", F32, dims![1]);
    let slow = slow(&x, 20 * A_WHILE);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let name = g.constant(HostTensor::strings(&[], [path.display().to_string()]).unwrap());
    let (first, second) = (reader.read(&names).1, reader.read(&names).1);
    // The name is the second operation's lack as much as the first's.
    let waits = session.submit(&[], &first, RunOptions::default());
    let runs = waiting(&session, 1);
    assert_eq!(runs[0].operations[0].of, "names");
    assert_eq!(runs[0].operations[0].name, first.operation().name());
    drop(waits);
    session.run(&[], names.enqueue(&[&name])).unwrap();
    let feeds = [x.feed([1.0f32])];
    let has = session.submit(&feeds, (&first, &slow), RunOptions::default());
    let n_names = || session.run(&[], names.size()).unwrap().scalar::<i32>().unwrap();
    comes(|| n_names() == 0);
    let late = session.submit(&[], &second, RunOptions::default());
    waiting(&session, 1);
    let found = session.waiting();
    assert_eq!(found[0].operations[0].of, "lines");
    let rest = "lacks reader 'lines', which another run has";
    assert!(found[0].to_string().ends_with(rest), "{}", found[0]);
    has.wait().unwrap();
    late.wait().unwrap();
}

/// Keeps what is written.
#[derive(Clone)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was logged so far, by all threads, that names this queue.
fn logged(queue: &str) -> Vec<String> {
    static LOG: OnceLock<Log> = OnceLock::new();
    let log = LOG.get_or_init(|| {
        let log = Log(Arc::default());
        let own = log.clone();
        let logs = tracing_subscriber::fmt().with_ansi(false).with_writer(move || own.clone());
        tracing::subscriber::set_global_default(logs.finish()).unwrap();
        log
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let name = format!("'{queue}'");
    text.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect()
}

/// On the caller's thread and of submitted runs, which hold no thread; each run once, and only after a while.
#[test]
fn who_waits_long_is_told_of_once() {
    assert!(logged("told").is_empty());
    let s = Scalars::new("told", 9);
    let options = SessionOptions { stall_after: Some(A_WHILE), ..SessionOptions::default() };
    let session = s.session_with(options);
    let submitted = s.submit(&session, &s.get);
    comes(|| logged("told").len() == 1);
    thread::scope(|scope| {
        let waits = scope.spawn(|| s.get(&session).unwrap());
        comes(|| logged("told").len() == 2);
        // They look again whenever something changes, and are not told of again.
        for _ in 0..5 {
            session.run(&[], s.q.size()).unwrap();
            drop(s.submit(&session, s.q.dequeue_many(2)));
            thread::sleep(A_WHILE / 5);
        }
        thread::sleep(3 * A_WHILE);
        s.put(&session, 1.0);
        s.put(&session, 2.0);
        waits.join().unwrap();
    });
    submitted.wait().unwrap();
    let lines = logged("told");
    let singles = lines.iter().filter(|line| line.contains("wanted 1, there 0)"));
    assert_eq!(singles.clone().count(), 2, "{lines:#?}");
    for line in singles {
        let text = format!("told_dequeue at {}", file!());
        assert!(line.contains("WARN") && line.contains(&text), "{line}");
    }
    // A later run that waits is another one.
    let later = s.submit(&session, &s.get);
    comes(|| logged("told").len() == lines.len() + 1);
    drop(later);
}

#[test]
fn who_waits_a_little_or_in_the_background_is_not_told_of() {
    assert!(logged("quiet").is_empty());
    let s = Scalars::new("quiet", 1);
    let runner = QueueRunner::new(&s.q, [s.q.enqueue(&[&s.g.constant(1.0f32)])]);
    for stall_after in [None, Some(Duration::MAX), Some(A_WHILE)] {
        let options = SessionOptions { stall_after, ..SessionOptions::default() };
        let session = s.session_with(options);
        let coordinator = Coordinator::new();
        if stall_after != Some(A_WHILE) {
            let waits = s.submit(&session, &s.get);
            thread::sleep(3 * A_WHILE);
            s.put(&session, 1.0);
            waits.wait().unwrap();
        }
        // It waits for room, as it does most of the time.
        session.start_queue_runner(&runner, &coordinator).unwrap();
        let runs = waiting(&session, 1);
        assert!(matches!(lacks(&runs)[..], [Lack::Room { capacity: 1, .. }]));
        thread::sleep(3 * A_WHILE);
        coordinator.request_stop();
        coordinator.join(GRACE).unwrap();
    }
    assert!(logged("quiet").is_empty(), "{:?}", logged("quiet"));
}

#[test]
fn a_run_may_refuse_to_wait() {
    let s = Scalars::new("q", 1);
    let session = s.session();
    let options = || RunOptions { fail_if_blocked: true, ..RunOptions::default() };
    let digest = session.state_digest().unwrap();
    let error = session.run_with(&[], &s.get, options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert_eq!(error.node(), Some("q_dequeue"));
    let text = error.to_string();
    assert!(text.contains("would wait") && text.contains("waiting.rs"), "{text}");
    assert!(text.ends_with("lacks elements of FIFO queue 'q' (wanted 1, there 0)"), "{text}");
    assert_eq!(kind(session.submit(&[], &s.get, options()).wait()), ErrorKind::FailedPrecondition);
    let get = session.callable(&[], &s.get).unwrap();
    assert_eq!(kind(get.call_with((), &options())), ErrorKind::FailedPrecondition);
    assert_eq!(session.state_digest().unwrap(), digest);
    assert!(session.waiting().is_empty());
    // What need not wait does not.
    let put = |x: f32| session.run_with(&[s.x.feed(x)], &s.put, options()).map(|_| ());
    put(1.0).unwrap();
    assert_eq!(kind(put(2.0)), ErrorKind::FailedPrecondition);
    let got = get.call_with((), &options()).unwrap().0;
    assert_eq!(got.scalar::<f32>().unwrap(), 1.0);
    // Nor does it take the place of those who wait.
    let waits = s.submit(&session, s.q.dequeue_many(2));
    waiting(&session, 1);
    put(3.0).unwrap();
    let error = session.run_with(&[], &s.get, options()).unwrap_err();
    assert!(error.to_string().ends_with("lacks its turn at FIFO queue 'q'"), "{error}");
    put(4.0).unwrap();
    let got = waits.wait().unwrap();
    assert_eq!(got[0].to_vec::<f32>().unwrap(), [3.0, 4.0]);
}

/// A runner that moves elements from a source to a sink, whose queue it closes, and to another, which it does not.
struct Pipe {
    g: Graph,
    source: Queue,
    side: Queue,
    runner: QueueRunner,
    one: Tensor,
}

impl Pipe {
    fn new() -> Self {
        let g = Graph::new();
        let [source, sink, side] =
            ["source", "sink", "side"].map(|name| g.fifo_queue(name, 9, [(F32, dims![])]));
        let one = g.constant(1.0f32);
        let x = source.dequeue().remove(0);
        let moves = g.group([&sink.enqueue(&[&x]), &side.enqueue(&[&x])]);
        let runner = QueueRunner::new(&sink, [moves]);
        Self { g, source, side, runner, one }
    }

    fn session(&self) -> Session {
        let options = SessionOptions { runners: 1, ..SessionOptions::default() };
        Session::with_options(&self.g, &Devices::cpu(), options).unwrap()
    }

    /// Starts the runner, lets it move an element, and ends its source.
    fn run_dry(&self, session: &Session) {
        let coordinator = Coordinator::new();
        session.run(&[], self.source.enqueue(&[&self.one])).unwrap();
        assert_eq!(session.start_queue_runner(&self.runner, &coordinator).unwrap(), 1);
        session.run(&[], self.source.close()).unwrap();
        coordinator.join(GRACE).unwrap();
    }
}

/// What no queue that is closed tells: that of another queue nothing comes any more.
#[test]
fn what_ended_runners_filled_is_not_waited_for() {
    let p = Pipe::new();
    let session = p.session();
    let (two, up_to) = (p.side.dequeue_many(2), p.side.dequeue_up_to(2));
    let submitted = session.submit(&[], &two, RunOptions::default());
    thread::scope(|scope| {
        let waits = scope.spawn(|| session.run(&[], &two));
        // Nothing has ended yet: a runner may still be started.
        waiting(&session, 2);
        thread::sleep(A_WHILE);
        assert_eq!(session.waiting().len(), 2);
        p.run_dry(&session);
        let error = submitted.wait().unwrap_err();
        assert_eq!(
            (error.kind(), error.node()),
            (ErrorKind::OutOfRange, Some("side_dequeue_many"))
        );
        let text = error.to_string();
        let reason =
            "all that put into FIFO queue 'side' belong to queue runners, which have ended: side_";
        assert!(text.contains(reason), "{text}");
        assert!(text.ends_with("(wanted 2, there 1)"), "{text}");
        assert_eq!(kind(waits.join().unwrap()), ErrorKind::OutOfRange);
    });
    // A later one finds it at once, and what is there can be taken.
    let digest = session.state_digest().unwrap();
    assert_eq!(kind(session.run(&[], &two)), ErrorKind::OutOfRange);
    assert_eq!(kind(session.run(&[], &up_to)), ErrorKind::OutOfRange);
    assert_eq!(session.state_digest().unwrap(), digest);
    assert_eq!(session.run(&[], p.side.dequeue()).unwrap()[0].scalar::<f32>().unwrap(), 1.0);
    assert_eq!(kind(session.run(&[], p.side.dequeue())), ErrorKind::OutOfRange);
}

#[test]
fn what_somebody_else_may_put_is_waited_for() {
    // Another operation of the graph, which nobody runs yet.
    let p = Pipe::new();
    let session = p.session();
    let get = p.side.dequeue();
    p.run_dry(&session);
    session.run(&[], &get).unwrap();
    assert_eq!(kind(session.run(&[], &get)), ErrorKind::OutOfRange);
    let put = p.side.enqueue(&[&p.one]);
    let waits = session.submit(&[], &get, RunOptions::default());
    let waits = waits.wait_for(A_WHILE).expect_err("somebody may put");
    session.run(&[], &put).unwrap();
    waits.wait().unwrap();
    // The runner's own operation in a submitted run that has no thread yet.
    let p = Pipe::new();
    let x = p.g.placeholder("x", F32, dims![1]);
    let slow = slow(&x, 4 * A_WHILE);
    let session = p.session();
    let get = p.side.dequeue();
    p.run_dry(&session);
    session.run(&[], &get).unwrap();
    let busy = session.submit(&[x.feed([1.0f32])], &slow, RunOptions::default());
    let again = p.runner.enqueues()[0].clone();
    let later = session.submit(&[], &again, RunOptions::default());
    // It fails, since its source is at its end; then there is nobody.
    assert_eq!(kind(session.run(&[], &get)), ErrorKind::OutOfRange);
    assert!(busy.is_done());
    assert_eq!(kind(later.wait()), ErrorKind::OutOfRange);
    busy.wait().unwrap();
}

/// A runner that begins again, and a session that is reset, give hope again.
#[test]
fn runners_that_begin_again_are_waited_for() {
    let g = Graph::new();
    let fails = Arc::new(AtomicBool::new(true));
    let [source, sink, side] =
        ["source", "sink", "side"].map(|name| g.fifo_queue(name, 1, [(F32, dims![1])]));
    let feed = source.enqueue(&[&g.constant([1.0f32])]);
    let x = fails_while(&source.dequeue()[0], &fails);
    let runner = QueueRunner::new(&sink, [g.group([&sink.enqueue(&[&x]), &side.enqueue(&[&x])])]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let get = side.dequeue();
    let run = |session: &Session| {
        let coordinator = Coordinator::new();
        session.start_queue_runner(&runner, &coordinator).unwrap();
        coordinator
    };
    session.run(&[], &feed).unwrap();
    assert_eq!(kind(run(&session).join(GRACE)), ErrorKind::Aborted);
    assert_eq!(kind(session.run(&[], &get)), ErrorKind::OutOfRange);
    session.reset(&[]).unwrap();
    fails.store(false, Ordering::Relaxed);
    let waits = session.submit(&[], &get, RunOptions::default());
    let waits = waits.wait_for(A_WHILE).expect_err("all is as new");
    session.run(&[], &feed).unwrap();
    let coordinator = run(&session);
    waits.wait().unwrap();
    coordinator.request_stop();
    coordinator.join(GRACE).unwrap();
}

/// The memory of a session, as something that its graph holds.
struct Witness(Arc<AtomicBool>);

impl Witness {
    fn new() -> Self {
        Self(Arc::new(AtomicBool::new(false)))
    }

    fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

#[test]
fn nobody_waits_in_a_session_that_is_gone() {
    let witness = Witness::new();
    let error = {
        let s = Scalars::new("q", 1);
        let session = s.session();
        let both = session.clone();
        fails_while(&s.g.placeholder("y", F32, dims![1]), &witness.0);
        s.submit(&session, &s.get).detach();
        let held = s.submit(&session, s.q.dequeue_many(2));
        waiting(&session, 2);
        drop(session);
        // There is another handle.
        let held = held.wait_for(A_WHILE).expect_err("somebody may put");
        assert_eq!(both.waiting().len(), 2);
        drop(both);
        held.wait().unwrap_err()
    };
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(error.to_string().contains("no handle any more"), "{error}");
    comes(|| witness.is_alone());
}

/// What is under way may help; who is not helped ends after it.
#[test]
fn runs_under_way_help_those_that_wait() {
    let witness = Witness::new();
    let (first, second) = {
        let g = Graph::new();
        let q = g.fifo_queue("q", 9, [(F32, dims![1])]);
        let x = g.placeholder("x", F32, dims![1]);
        let put = q.enqueue(&[&slow(&fails_while(&x, &witness.0), 4 * A_WHILE)]);
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        let first = session.submit(&[], q.dequeue(), RunOptions::default());
        waiting(&session, 1);
        let second = session.submit(&[], q.dequeue(), RunOptions::default());
        waiting(&session, 2);
        session.submit(&[x.feed([7.0f32])], &put, RunOptions::default()).detach();
        (first, second)
    };
    assert_eq!(first.wait().unwrap()[0].to_vec::<f32>().unwrap(), [7.0]);
    assert_eq!(kind(second.wait()), ErrorKind::Cancelled);
    comes(|| witness.is_alone());
}

/// Callables are handles: a session that only one of them has is in use.
#[test]
fn a_callable_keeps_hope() {
    let s = Scalars::new("q", 1);
    let session = s.session();
    let put = session.callable(&[&s.x], &s.put).unwrap();
    let waits = s.submit(&session, &s.get);
    drop(session);
    let waits = waits.wait_for(A_WHILE).expect_err("the callable may put");
    put.call([5.0f32]).unwrap();
    assert_eq!(waits.wait().unwrap().scalar::<f32>().unwrap(), 5.0);
}

/// A session in which nothing waits has no thread for time; one in which something has waited has one.
#[cfg(target_os = "linux")]
#[test]
fn only_who_waits_needs_a_thread() {
    let names = || -> BTreeSet<(String, String)> {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let name = |task: std::fs::DirEntry| {
            let id = task.file_name().into_string().unwrap();
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            (id, name.trim().to_owned())
        };
        tasks.map(name).filter(|(_, name)| name.starts_with("convoke-deadlin")).collect()
    };
    let s = Scalars::new("q", 1);
    let before = names();
    let session = s.session();
    s.put(&session, 1.0);
    s.submit(&session, &s.get).wait().unwrap();
    // Others in this process may end theirs meanwhile, and begin one.
    let own = || names().difference(&before).count();
    let n = own();
    let waits = s.submit(&session, &s.get);
    comes(|| own() > n);
    s.put(&session, 2.0);
    waits.wait().unwrap();
}
