//! Queue runners, and queues of names that they fill. TensorFlow: `queue_runner_test.py` and `input_test.py`, by
//! meaning.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use convoke::input::Coordinator;
use convoke::prelude::*;
use convoke::{Error, ProducerOptions, Queue, QueueRunner, RunOptions};
use convoke_tests::{A_WHILE, Folder, GRACE, comes, fails_while, kind};

/// A source of scalars of f32 and a sink that a runner fills from it.
struct Pipe {
    g: Graph,
    source: Queue,
    sink: Queue,
    x: Tensor,
    put: Operation,
    runner: QueueRunner,
}

impl Pipe {
    /// The runner has `n` threads.
    fn new(n: usize, capacity: usize) -> Self {
        let g = Graph::new();
        let source = g.fifo_queue("source", 100, [(F32, dims![])]);
        let sink = g.fifo_queue("sink", capacity, [(F32, dims![])]);
        let x = g.placeholder("x", F32, dims![]);
        let put = source.enqueue(&[&x]);
        let moves = (0..n).map(|_| sink.enqueue(&[&source.dequeue()[0]]));
        let runner = QueueRunner::new(&sink, moves.collect::<Vec<_>>());
        Self { g, source, sink, x, put, runner }
    }

    fn session(&self) -> Session {
        Session::new(&self.g, &Devices::cpu()).unwrap()
    }

    fn put(&self, session: &Session, n: usize) {
        (0..n).for_each(|i| session.run(&[self.x.feed(i as f32)], &self.put).unwrap());
    }
}

fn is_closed(session: &Session, queue: &Queue) -> bool {
    session.run(&[], queue.is_closed()).unwrap().scalar::<bool>().unwrap()
}

fn size(session: &Session, queue: &Queue) -> i32 {
    session.run(&[], queue.size()).unwrap().scalar::<i32>().unwrap()
}

fn texts(tensor: &HostTensor) -> Vec<String> {
    tensor.as_strings().unwrap().iter().map(|s| String::from_utf8(s.clone()).unwrap()).collect()
}

/// `testBasic`, `testRealDequeueEnqueue`: the end of the source ends the thread, without an error, and the thread
/// closes the sink.
#[test]
fn the_end_of_the_source_closes_the_sink() {
    let p = Pipe::new(1, 100);
    let (session, coordinator) = (p.session(), Coordinator::new());
    p.put(&session, 3);
    session.run(&[], p.source.close()).unwrap();
    assert_eq!(session.start_queue_runner(&p.runner, &coordinator).unwrap(), 1);
    coordinator.join(GRACE).unwrap();
    assert!(!coordinator.should_stop());
    assert!(is_closed(&session, &p.sink));
    let all = session.run(&[], p.sink.dequeue_many(3)).unwrap();
    assert_eq!(all[0].to_vec::<f32>().unwrap(), [0.0, 1.0, 2.0]);
    assert_eq!(kind(session.run(&[], p.sink.dequeue())), ErrorKind::OutOfRange);
}

/// `testTwoOps`: the last thread closes the queue, not the first.
#[test]
fn the_last_thread_closes_the_queue() {
    let g = Graph::new();
    let sources = ["a", "b"].map(|name| g.fifo_queue(name, 100, [(F32, dims![])]));
    let sink = g.fifo_queue("sink", 100, [(F32, dims![])]);
    let x = g.placeholder("x", F32, dims![]);
    let runner = QueueRunner::new(
        &sink,
        sources.iter().map(|q| sink.enqueue(&q.dequeue().iter().collect::<Vec<_>>())),
    );
    let (session, coordinator) = (Session::new(&g, &Devices::cpu()).unwrap(), Coordinator::new());
    let put = |queue: &Queue| session.run(&[x.feed(1.0)], queue.enqueue(&[&x])).unwrap();
    put(&sources[0]);
    session.run(&[], sources[0].close()).unwrap();
    assert_eq!(session.start_queue_runner(&runner, &coordinator).unwrap(), 2);
    comes(|| coordinator.running().len() == 1);
    assert!(!is_closed(&session, &sink));
    put(&sources[1]);
    put(&sources[1]);
    session.run(&[], sources[1].close()).unwrap();
    coordinator.join(GRACE).unwrap();
    assert!(is_closed(&session, &sink));
    assert_eq!(size(&session, &sink), 3);
}

/// `testExceptionsCaptured`, `testRequestStopOnException`: join gives the error, and the other thread ends.
#[test]
fn an_error_stops_all_and_comes_from_join() {
    let g = Graph::new();
    let fails = Arc::new(AtomicBool::new(true));
    let sink = g.fifo_queue("sink", 2, [(F32, dims![1])]);
    let never = g.fifo_queue("never", 2, [(F32, dims![1])]);
    let source = g.fifo_queue("source", 2, [(F32, dims![1])]);
    let put = source.enqueue(&[&g.constant([1.0f32])]);
    let bad = sink.enqueue(&[&fails_while(&source.dequeue()[0], &fails)]);
    let waits = sink.enqueue(&[&never.dequeue()[0]]);
    let runner = QueueRunner::new(&sink, [waits, bad]);
    let (session, coordinator) = (Session::new(&g, &Devices::cpu()).unwrap(), Coordinator::new());
    session.run(&[], &put).unwrap();
    session.start_queue_runner(&runner, &coordinator).unwrap();
    let error = coordinator.join(GRACE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
    assert_eq!(size(&session, &source), 1);
    assert!(coordinator.should_stop());
    assert!(is_closed(&session, &sink));
    assert_eq!(size(&session, &sink), 0);
    // The session is as good as before, and the next start has errors of its own.
    let again = Coordinator::new();
    assert_eq!(session.start_queue_runner(&runner, &again).unwrap(), 2);
    again.request_stop();
    again.join(GRACE).unwrap();
}

/// `testGracePeriod`, `testRespectCoordShouldStop`: a stop frees who waits for room, who waits for elements, and
/// closes the queue.
#[test]
fn grace_period() {
    let p = Pipe::new(3, 1);
    let (session, coordinator) = (p.session(), Coordinator::new());
    p.put(&session, 2);
    session.start_queue_runner(&p.runner, &coordinator).unwrap();
    // One thread waits for room, the others for elements.
    comes(|| size(&session, &p.sink) == 1);
    let room = session.submit(&[], p.sink.enqueue(&[&p.g.constant(7.0f32)]), RunOptions::default());
    let room = room.wait_for(A_WHILE).expect_err("there is no room");
    assert_eq!(coordinator.running().len(), 3);
    coordinator.request_stop();
    coordinator.join(GRACE).unwrap();
    assert!(is_closed(&session, &p.sink));
    assert_eq!(kind(room.wait()), ErrorKind::Cancelled);
    // What a thread waited with is in its place again.
    assert_eq!(size(&session, &p.source) + size(&session, &p.sink), 2);
    assert!(!is_closed(&session, &p.source));
    // Stopped before it begins: nothing is run.
    let session = p.session();
    p.put(&session, 2);
    session.start_queue_runner(&p.runner, &coordinator).unwrap();
    coordinator.join(GRACE).unwrap();
    assert_eq!((size(&session, &p.source), is_closed(&session, &p.sink)), (2, true));
}

/// `testMultipleSessions`, `testIgnoreMultiStarts`.
#[test]
fn a_runner_is_at_work_once_in_each_session() {
    let p = Pipe::new(2, 100);
    let sessions = [p.session(), p.session()];
    let coordinator = Coordinator::new();
    for session in &sessions {
        assert_eq!(session.start_queue_runner(&p.runner, &coordinator).unwrap(), 2);
        assert_eq!(session.start_queue_runner(&p.runner, &coordinator).unwrap(), 0);
    }
    assert_eq!(coordinator.running().len(), 4);
    p.put(&sessions[1], 5);
    comes(|| size(&sessions[1], &p.sink) == 5);
    assert_eq!(size(&sessions[0], &p.sink), 0);
    // A session that is closed ends its own threads, and is no error.
    sessions[0].close();
    comes(|| coordinator.running().len() == 2);
    assert_eq!(
        kind(sessions[0].start_queue_runner(&p.runner, &coordinator)),
        ErrorKind::FailedPrecondition
    );
    assert!(!coordinator.should_stop());
    coordinator.request_stop();
    coordinator.join(GRACE).unwrap();
}

/// `testStartQueueRunners`, `testStartQueueRunnersNonDefaultGraph`, `testName`.
#[test]
fn a_graph_keeps_its_runners() {
    let p = Pipe::new(2, 100);
    let other = Pipe::new(1, 100);
    p.g.add_queue_runner(&p.runner);
    p.g.add_queue_runner(&other.runner);
    let kept = p.g.queue_runners();
    assert_eq!(kept.iter().map(QueueRunner::name).collect::<Vec<_>>(), ["sink"]);
    assert_eq!(kept[0].enqueues().len(), 2);
    let (session, coordinator) = (p.session(), Coordinator::new());
    assert_eq!(session.start_queue_runners(&coordinator).unwrap(), 2);
    assert_eq!(session.start_queue_runners(&coordinator).unwrap(), 0);
    let error = session.start_queue_runner(&other.runner, &coordinator).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("another graph"), "{error}");
    p.put(&session, 4);
    comes(|| size(&session, &p.sink) == 4);
    session.run(&[], p.source.close()).unwrap();
    coordinator.join(GRACE).unwrap();
    assert!(is_closed(&session, &p.sink));
    assert_eq!(Pipe::new(1, 1).session().start_queue_runners(&coordinator).unwrap(), 0);
}

/// The parameter `queue_closed_exception_types`: what ends a thread well is said for each runner.
#[test]
fn a_runner_ends_at_the_kinds_that_it_names() {
    let sides = |ends: Option<&[ErrorKind]>| {
        let g = Graph::new();
        let (source, sink) = (
            g.fifo_queue("source", 9, [(F32, dims![1])]),
            g.fifo_queue("sink", 9, [(F32, dims![1])]),
        );
        let fails = Arc::new(AtomicBool::new(true));
        let bad = sink.enqueue(&[&fails_while(&source.dequeue()[0], &fails)]);
        let runner = QueueRunner::new(&sink, [bad]);
        let runner = match ends {
            Some(kinds) => runner.ending_at(kinds.iter().copied()),
            None => runner,
        };
        let put = source.enqueue(&[&g.constant([1.0f32])]);
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        (session, put, source, sink, runner)
    };
    // `fails_while` fails as `Aborted`.
    let (session, put, _, sink, runner) = sides(Some(&[ErrorKind::DataLoss, ErrorKind::Aborted]));
    let coordinator = Coordinator::new();
    session.run(&[], &put).unwrap();
    session.start_queue_runner(&runner, &coordinator).unwrap();
    coordinator.join(GRACE).unwrap();
    assert!(!coordinator.should_stop());
    assert!(is_closed(&session, &sink));
    // They take the place of `OutOfRange`, which coordinators take for a good reason to stop.
    for (ends, stops) in [(Some(&[][..]), true), (None, false)] {
        let (session, _, source, sink, runner) = sides(ends);
        let coordinator = Coordinator::new();
        session.run(&[], source.close()).unwrap();
        session.start_queue_runner(&runner, &coordinator).unwrap();
        coordinator.join(GRACE).unwrap();
        assert_eq!(coordinator.should_stop(), stops);
        assert!(is_closed(&session, &sink));
    }
}

/// A queue that an iterator fills: pairs in order, waiting for room, and who takes more than there is hears of the end.
#[test]
fn an_iterator_fills_a_queue() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 2, [(F32, dims![2]), (I32, dims![])]);
    let (x, y) = (g.placeholder("x", F32, dims![2]), g.placeholder("y", I32, dims![]));
    let runner = QueueRunner::new(&q, [q.enqueue(&[&x, &y])]);
    let taken = q.dequeue();
    let (session, coordinator) = (Session::new(&g, &Devices::cpu()).unwrap(), Coordinator::new());
    let item = |i: i32| Ok((HostTensor::new(&[2], vec![i as f32, 0.5])?, i));
    let start = || session.start_queue_input(&runner, &[&x, &y], (0..5).map(item), &coordinator);
    assert!(start().unwrap());
    assert!(!start().unwrap(), "it is at work");
    comes(|| size(&session, &q) == 2);
    for i in 0..5 {
        let got = session.run(&[], &taken).unwrap();
        assert_eq!(got[0].to_vec::<f32>().unwrap(), [i as f32, 0.5]);
        assert_eq!(got[1].scalar::<i32>().unwrap(), i);
    }
    coordinator.join(GRACE).unwrap();
    assert!(is_closed(&session, &q));
    assert_eq!(kind(session.run(&[], &taken)), ErrorKind::OutOfRange);
}

/// All that put into a queue have ended, and nothing closes it.
#[test]
fn who_waits_for_an_iterator_that_has_ended_is_told() {
    let g = Graph::new();
    let source = g.fifo_queue("source", 9, [(F32, dims![])]);
    let sink = g.fifo_queue("sink", 9, [(F32, dims![])]);
    let x = g.placeholder("x", F32, dims![]);
    // The runner puts into both, and closes the sink only.
    let puts = g.group([&source.enqueue(&[&x]), &sink.enqueue(&[&x])]);
    let runner = QueueRunner::new(&sink, [puts]);
    let (session, coordinator) = (Session::new(&g, &Devices::cpu()).unwrap(), Coordinator::new());
    let input = [1.0f32, 2.0].map(|x| Ok((x,)));
    session.start_queue_input(&runner, &[&x], input, &coordinator).unwrap();
    coordinator.join(GRACE).unwrap();
    assert!(!is_closed(&session, &source));
    session.run(&[], source.dequeue_many(2)).unwrap();
    let error = session.run(&[], source.dequeue()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    assert!(error.to_string().contains("which have ended"), "{error}");
}

#[test]
fn an_input_that_fails_stops_the_coordinator() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 9, [(F32, dims![])]);
    let x = g.placeholder("x", F32, dims![]);
    let put = q.enqueue(&[&x]);
    let runner = QueueRunner::new(&q, [put.clone()]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let run = |input: Vec<convoke::Result<(HostTensor,)>>| {
        let coordinator = Coordinator::new();
        session.start_queue_input(&runner, &[&x], input, &coordinator).unwrap();
        coordinator.join(GRACE).unwrap_err()
    };
    let lost = Error::new(ErrorKind::DataLoss, "the third record is damaged");
    let error = run(vec![Ok((1.0f32.into(),)), Err(lost)]);
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    assert_eq!((size(&session, &q), is_closed(&session, &q)), (1, true));
    // Shapes that do not fit are the operation's error; two operations have no place for one input.
    let other = Session::new(&g, &Devices::cpu()).unwrap();
    let coordinator = Coordinator::new();
    let vector = HostTensor::new(&[2], vec![1.0f32, 2.0]).unwrap();
    other.start_queue_input(&runner, &[&x], [Ok((vector,))], &coordinator).unwrap();
    assert_eq!(kind(coordinator.join(GRACE)), ErrorKind::InvalidArgument);
    let two = QueueRunner::new(&q, [put.clone(), put]);
    let refused = other.start_queue_input(&two, &[&x], [Ok((1.0f32,))], &coordinator);
    assert_eq!(kind(refused), ErrorKind::InvalidArgument);
}

/// The session's timeout is for its runs, not for those that wait in the background.
#[test]
fn runners_wait_longer_than_the_sessions_timeout() {
    let p = Pipe::new(1, 100);
    let options = SessionOptions { timeout: Some(A_WHILE), ..SessionOptions::default() };
    let session = Session::with_options(&p.g, &Devices::cpu(), options).unwrap();
    let coordinator = Coordinator::new();
    session.start_queue_runner(&p.runner, &coordinator).unwrap();
    thread::sleep(3 * A_WHILE);
    assert!(!coordinator.should_stop());
    coordinator.request_stop();
    coordinator.join(GRACE).unwrap();
}

/// `StringInputProducerTest.testNoShuffle`: the order of the list, so many times, then `OutOfRange`.
#[test]
fn names_are_produced_epoch_by_epoch() {
    let g = Graph::new();
    let options = ProducerOptions { epochs: Some(3), ..ProducerOptions::default() };
    let names = g.string_input_producer("files", ["to", "be", "or"], options);
    let (session, coordinator) = (Session::new(&g, &Devices::cpu()).unwrap(), Coordinator::new());
    assert_eq!(session.start_queue_runners(&coordinator).unwrap(), 1);
    let all = session.run(&[], names.dequeue_many(9)).unwrap();
    assert_eq!(texts(&all[0]), ["to", "be", "or"].repeat(3));
    assert_eq!(kind(session.run(&[], names.dequeue())), ErrorKind::OutOfRange);
    coordinator.join(GRACE).unwrap();
    // A later start finds that all was given.
    assert_eq!(session.start_queue_runners(&coordinator).unwrap(), 1);
    coordinator.join(GRACE).unwrap();
}

/// `StringInputProducerTest.testShuffle`: each epoch has all names, in an order of its own that the seed gives.
#[test]
fn names_are_shuffled_by_a_seed() {
    let epochs = |seed: u64| -> Vec<Vec<String>> {
        let g = Graph::new();
        let list: Vec<String> = (0..20).map(|i| format!("file {i}")).collect();
        let options = ProducerOptions { epochs: Some(3), shuffle: Some(seed), capacity: 1 };
        let names = g.string_input_producer("files", list.clone(), options);
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        let coordinator = Coordinator::new();
        session.start_queue_runners(&coordinator).unwrap();
        let all = session.run(&[], names.dequeue_many(60)).unwrap();
        let all = texts(&all[0]);
        let epochs: Vec<Vec<String>> = all.chunks(20).map(<[String]>::to_vec).collect();
        for epoch in &epochs {
            assert_ne!(*epoch, list);
            assert_eq!(epoch.iter().collect::<BTreeSet<_>>().len(), 20);
        }
        coordinator.join(GRACE).unwrap();
        epochs
    };
    let first = epochs(1);
    assert_eq!(first, epochs(1));
    assert_ne!(first, epochs(2));
    assert_ne!(first[0], first[1]);
    assert_ne!(first[1], first[2]);
}

/// An epoch that waits for room is not given yet; one that fails is given again.
#[test]
fn an_epoch_waits_for_room() {
    let g = Graph::new();
    let options = ProducerOptions { capacity: 3, ..ProducerOptions::default() };
    let names = g.string_input_producer("files", ["a", "b"], options);
    let enqueue = g.queue_runners()[0].enqueues()[0].clone();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], &enqueue).unwrap();
    session.run(&[], &enqueue).unwrap();
    // The names of an epoch may be more than there is room for, once there is room for one.
    assert_eq!(size(&session, &names), 4);
    let before = session.state_digest().unwrap();
    let third = session.submit(&[], &enqueue, RunOptions::default());
    let third = third.wait_for(A_WHILE).expect_err("there is no room");
    assert_eq!(session.state_digest().unwrap(), before);
    drop(third);
    assert_eq!(texts(&session.run(&[], names.dequeue_many(4)).unwrap()[0]), ["a", "b", "a", "b"]);
}

/// `StringInputProducerTest.testNullStringPython`.
#[test]
fn no_names_and_no_epochs_are_refused() {
    let g = Graph::new();
    let said = || g.check().iter().map(Error::to_string).collect::<Vec<_>>().join("\n");
    g.string_input_producer("none", Vec::<String>::new(), ProducerOptions::default());
    assert!(said().contains("expected at least one name"), "{}", said());
    let options = ProducerOptions { epochs: Some(0), ..ProducerOptions::default() };
    g.string_input_producer("never", ["a"], options);
    assert!(said().contains("expected at least 1 epoch"), "{}", said());
    assert!(said().contains("queue_runners.rs"), "{}", said());
    // The runner's own error.
    let (session, coordinator) = (Session::new(&g, &Devices::cpu()).unwrap(), Coordinator::new());
    session.start_queue_runners(&coordinator).unwrap();
    assert_eq!(kind(coordinator.join(GRACE)), ErrorKind::InvalidArgument);
}

/// The whole way: names, readers on threads, a shuffling queue, batches; every line of every epoch once.
#[test]
fn from_names_to_batches() {
    let folder = Folder::new("pipeline");
    let files: Vec<String> = (0..4)
        .map(|i| {
            let path = folder.path().join(i.to_string());
            let lines: String = (0..10).map(|line| format!("{i}{line}\n")).collect();
            std::fs::write(&path, lines).unwrap();
            path.display().to_string()
        })
        .collect();
    let g = Graph::new();
    let options = ProducerOptions { epochs: Some(2), shuffle: Some(5), ..Default::default() };
    let names = g.string_input_producer("names", files, options);
    let kind_of = convoke::QueueKind::RandomShuffle { min_after_dequeue: 10, seed: 5 };
    let options = convoke::QueueOptions { kind: kind_of, capacity: Some(30), shared_name: None };
    let lines = g.queue("lines", [(Strings, dims![])], options);
    let fills = (0..2).map(|i| {
        let reader = g.text_line_reader(&format!("reader{i}"), 0);
        lines.enqueue_many(&[&reader.read_up_to(&names, 4).1])
    });
    g.add_queue_runner(&QueueRunner::new(&lines, fills.collect::<Vec<_>>()));
    let batch = lines.dequeue_up_to(7).remove(0);
    let (session, coordinator) = (Session::new(&g, &Devices::cpu()).unwrap(), Coordinator::new());
    assert_eq!(session.start_queue_runners(&coordinator).unwrap(), 3);
    let mut got = Vec::new();
    loop {
        match session.run(&[], &batch) {
            Ok(batch) => got.extend(texts(&batch)),
            Err(e) if e.kind() == ErrorKind::OutOfRange => break,
            Err(e) => panic!("{e}"),
        }
    }
    coordinator.join(GRACE).unwrap();
    let mut sorted = got.clone();
    sorted.sort();
    let mut expected: Vec<String> =
        (0..4).flat_map(|i| (0..10).flat_map(move |line| vec![format!("{i}{line}"); 2])).collect();
    expected.sort();
    assert_eq!(sorted, expected);
    assert_ne!(got, sorted);
}
