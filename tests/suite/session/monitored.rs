//! Monitored sessions. TensorFlow: `python/training/monitored_session_test.py`, by meaning.

use std::cell::Cell;
use std::time::Duration;

use convoke::input::Coordinator;
use convoke::prelude::*;
use convoke::{
    AfterRun, BeforeRun, CheckpointSaver, Error, Hook, Missing, Monitor, MonitoredSession,
    QueueRunner, RestoreOptions, Result, RunOptions, SessionMetadata, StopAtStep, Timings, Wanted,
};
use convoke_tests::{Folder, devices};

fn monitor<'h>(g: &Graph) -> Monitor<'h> {
    Monitor::new(g, &Devices::cpu()).grace(Duration::from_secs(20))
}

/// The global step and what adds 1 to it.
fn counted(g: &Graph) -> (Variable, Tensor) {
    let step = g.global_step();
    let next = step.assign_add(1);
    (step, next)
}

#[track_caller]
fn is(session: &mut MonitoredSession<'_>, fetch: &Tensor, expected: i64) {
    assert_eq!(session.run(&[], fetch).unwrap().scalar::<i64>().unwrap(), expected);
}

/// What it asks for, and how often it was called.
#[derive(Default)]
struct FakeHook {
    fetch: Option<Tensor>,
    feeds: Vec<Feed<'static>>,
    timings: Timings,
    timeout: Option<Duration>,
    stops: Cell<bool>,
    wanted: Option<Wanted<Tensor>>,
    found: Option<HostTensor>,
    seen: Option<RunOptions>,
    calls: [u32; 5],
}

impl Hook for FakeHook {
    fn begin(&mut self, _: &Graph) -> Result<()> {
        self.calls[0] += 1;
        Ok(())
    }

    fn after_create_session(&mut self, _: &Session, _: &Coordinator) -> Result<()> {
        self.calls[1] += 1;
        Ok(())
    }

    fn before_run(&mut self, run: &mut BeforeRun<'_>) -> Result<()> {
        self.calls[2] += 1;
        self.wanted = self.fetch.clone().map(|fetch| run.fetch(fetch));
        self.feeds.iter().for_each(|feed| run.feed(feed.clone()));
        run.timings(self.timings);
        self.timeout.iter().for_each(|&timeout| run.timeout(timeout));
        Ok(())
    }

    fn after_run(&mut self, run: &AfterRun<'_>) -> Result<()> {
        self.calls[3] += 1;
        self.found = self.wanted.take().map(|wanted| run.get(&wanted)).transpose()?;
        self.seen = Some(run.options().clone());
        if self.stops.get() {
            run.request_stop();
        }
        Ok(())
    }

    fn end(&mut self, _: &Session) -> Result<()> {
        self.calls[4] += 1;
        Ok(())
    }
}

/// Fails before the `n`th run, once.
struct RaiseOnce {
    n: u32,
    kind: ErrorKind,
}

impl Hook for RaiseOnce {
    fn before_run(&mut self, _: &mut BeforeRun<'_>) -> Result<()> {
        self.n = self.n.wrapping_sub(1);
        match self.n {
            0 => Err(Error::new(self.kind, "raised by a hook")),
            _ => Ok(()),
        }
    }
}

/// Fails once in each of these ways that has an error.
#[derive(Default)]
struct Fails {
    /// When the second session is created.
    again: Option<Error>,
    created: Option<Error>,
    ran: Option<Error>,
    /// A thread, while the run is made.
    thread: Option<Error>,
    coordinator: Option<Coordinator>,
}

impl Hook for Fails {
    fn after_create_session(&mut self, _: &Session, coordinator: &Coordinator) -> Result<()> {
        let is_second = self.coordinator.replace(coordinator.clone()).is_some();
        let error = self.created.take();
        error.or(self.again.take_if(|_| is_second)).map_or(Ok(()), Err)
    }

    fn after_run(&mut self, _: &AfterRun<'_>) -> Result<()> {
        if let (Some(coordinator), Some(error)) = (&self.coordinator, self.thread.take()) {
            coordinator.request_stop_with(error)?;
        }
        self.ran.take().map_or(Ok(()), Err)
    }
}

fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "lost for now")
}

/// TensorFlow: `test_defaults`: variables have their initial values.
#[test]
fn defaults() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(7.0), F32, [2]);
        let local = g.local_variable("local", Init::Constant(1.0), F32, []);
        let mut session = Monitor::new(&g, &device.devices).start().unwrap();
        let (v, local) = session.run(&[], (&v, &local)).unwrap();
        assert_eq!(v.to_vec::<f32>().unwrap(), [7.0; 2], "{}", device.name);
        assert_eq!(local.scalar::<f32>().unwrap(), 1.0);
        session.close().unwrap();
    }
}

/// TensorFlow: `test_last_step`: up to step 3 and saved, then up to step 5.
#[test]
fn last_step() {
    let folder = Folder::new("monitored-last-step");
    let saver = Saver::new(folder.path().join("model"));
    let g = Graph::new();
    let (step, next) = counted(&g);
    let mut session = monitor(&g).hook(StopAtStep::last(3)).start().unwrap();
    is(&mut session, step.value(), 0);
    for i in 1..=3 {
        assert!(!session.should_stop());
        is(&mut session, &next, i);
    }
    assert!(session.should_stop());
    saver.save(session.session().unwrap(), 3).unwrap();
    session.close().unwrap();

    let mut session = monitor(&g).saver(saver).hook(StopAtStep::last(5)).start().unwrap();
    is(&mut session, step.value(), 3);
    for i in 4..=5 {
        assert!(!session.should_stop());
        is(&mut session, &next, i);
    }
    assert!(session.should_stop());
}

/// TensorFlow: `test_num_steps`: 3 steps and saved, then 4 from there.
#[test]
fn num_steps() {
    let folder = Folder::new("monitored-num-steps");
    let saver = Saver::new(folder.path().join("model"));
    let g = Graph::new();
    let (_, next) = counted(&g);
    for (n, last) in [(3, 3), (4, 7)] {
        let session = monitor(&g).saver(saver.clone()).hook(StopAtStep::after(n)).start();
        let mut runs = 0;
        let saved = session.unwrap().supervise(|session| {
            while !session.should_stop() {
                session.run(&[], &next)?;
                runs += 1;
            }
            let step = g.find_global_step().unwrap();
            is(session, step.value(), last);
            saver.save(session.session()?, 3).map(|_| ())
        });
        saved.unwrap();
        assert_eq!(runs, n);
    }
}

/// TensorFlow: `test_recovery`: what a hook has saved is where the next start begins; without a saver it is the start.
#[test]
fn recovery() {
    for device in devices() {
        let folder = Folder::new("monitored-recovery");
        let saver = Saver::new(folder.path().join("model"));
        let g = Graph::new();
        let (step, next) = counted(&g);
        let of = || Monitor::new(&g, &device.devices).saver(saver.clone());
        let hook = CheckpointSaver::every_steps(saver.clone(), 1);
        let mut session = of().hook(hook).start().unwrap();
        is(&mut session, step.value(), 0);
        is(&mut session, &next, 1);
        is(&mut session, &next, 2);
        session.close().unwrap();
        assert_eq!(saver.latest().unwrap().unwrap().step, 2, "{}", device.name);
        is(&mut of().start().unwrap(), step.value(), 2);
        is(&mut monitor(&g).start().unwrap(), step.value(), 0);
    }
}

/// Variables that the checkpoint does not have are initialised; `init` is for what was not restored.
#[test]
fn what_a_checkpoint_lacks_is_initialised() {
    let folder = Folder::new("monitored-lacks");
    let saver = Saver::new(folder.path().join("model"));
    let model = |more: bool| {
        let g = Graph::new();
        let old = g.variable("old", Init::Constant(1.0), F32, []);
        let new = more.then(|| g.variable("new", Init::Value(HostTensor::from(5.0f32)), F32, []));
        let bump = old.assign_add(1.0).operation();
        (g, old, new, bump)
    };
    let inits = Cell::new(0);
    let init = |_: &Session| {
        inits.set(inits.get() + 1);
        Ok(())
    };
    let (g, _, _, bump) = model(false);
    let mut session = monitor(&g).saver(saver.clone()).init(init).start().unwrap();
    session.run(&[], &bump).unwrap();
    saver.save(session.session().unwrap(), 1).unwrap();
    session.close().unwrap();
    assert_eq!(inits.get(), 1);

    let (g, old, new, _) = model(true);
    let error = monitor(&g).saver(saver.clone()).start().unwrap_err();
    assert_eq!(error.node(), Some("new"), "{error}");
    let (g2, old2, new2, _) = model(true);
    drop((g, old, new));
    let options = RestoreOptions { missing: Missing::Keep, ..RestoreOptions::default() };
    let of = monitor(&g2).saver(saver).restore_options(options).init(init);
    let mut session = of.start().unwrap();
    let (old, new) = session.run(&[], (&old2, &new2)).unwrap();
    assert_eq!(old.scalar::<f32>().unwrap(), 2.0);
    assert_eq!(new.unwrap().scalar::<f32>().unwrap(), 5.0);
    assert_eq!(inits.get(), 1);
}

/// TensorFlow: `test_retry_on_aborted_error`, `test_recover_and_retry_on_aborted_error`: the run is made again, in a
/// new session that begins where the checkpoint says, and hooks hear of both.
#[test]
fn recover_and_retry_on_aborted_error() {
    let folder = Folder::new("monitored-retry");
    let saver = Saver::new(folder.path().join("model"));
    for (kind, saves) in
        [(ErrorKind::Aborted, false), (ErrorKind::Unavailable, false), (ErrorKind::Aborted, true)]
    {
        let g = Graph::new();
        let (step, next) = counted(&g);
        let mut fake = FakeHook::default();
        let of = monitor(&g).hook(&mut fake).hook(RaiseOnce { n: 4, kind });
        let of = match saves {
            true => of.saver(saver.clone()).hook(CheckpointSaver::every_steps(saver.clone(), 1)),
            false => of.recoveries(1),
        };
        // A session that is given up gives back its name.
        let metadata = Some(SessionMetadata { name: "retried".into(), version: i64::from(saves) });
        let of = of.options(SessionOptions { metadata, ..SessionOptions::default() });
        let mut session = of.start().unwrap();
        is(&mut session, step.value(), 0);
        is(&mut session, &next, 1);
        is(&mut session, &next, 2);
        // Here it begins anew.
        is(&mut session, &next, if saves { 3 } else { 1 });
        assert!(!session.should_stop());
        session.close().unwrap();
        // The hook before it was asked once more.
        assert_eq!(fake.calls, [1, 2, 5, 4, 1]);
    }
}

/// TensorFlow: `test_retry_initialization_on_aborted_error`: also where the error comes while the session is made.
#[test]
fn retry_initialization_on_aborted_error() {
    let g = Graph::new();
    let (step, _) = counted(&g);
    let tries = Cell::new(0);
    let init = |_: &Session| {
        tries.set(tries.get() + 1);
        match tries.get() {
            1 => Err(Error::new(ErrorKind::Aborted, "not yet")),
            _ => Ok(()),
        }
    };
    let mut session = monitor(&g).init(init).start().unwrap();
    is(&mut session, step.value(), 0);
    drop(session);
    assert_eq!(tries.get(), 2);
    // It does not try for ever.
    let tries = Cell::new(0);
    let init = |_: &Session| {
        tries.set(tries.get() + 1);
        Err(Error::new(ErrorKind::Unavailable, "never"))
    };
    let error = monitor(&g).init(init).recoveries(3).start().unwrap_err();
    assert_eq!((error.kind(), tries.get()), (ErrorKind::Unavailable, 4));
}

/// TensorFlow: `SingularMonitoredSession`, `test_do_not_handle_aborted_error`.
#[test]
fn do_not_handle_aborted_error() {
    let g = Graph::new();
    let (step, next) = counted(&g);
    let hook = RaiseOnce { n: 2, kind: ErrorKind::Aborted };
    let mut session = monitor(&g).hook(hook).recoveries(0).start().unwrap();
    is(&mut session, step.value(), 0);
    assert_eq!(session.run(&[], &next).unwrap_err().kind(), ErrorKind::Aborted);
    // The session is there, and has not changed.
    is(&mut session, step.value(), 0);
}

/// TensorFlow: `test_exit_cleanly_on_out_of_range_exception`: the end of the inputs is no error, and hooks end.
#[test]
fn exit_cleanly_on_out_of_range_exception() {
    let g = Graph::new();
    let (step, next) = counted(&g);
    let mut fake = FakeHook::default();
    let hook = RaiseOnce { n: 2, kind: ErrorKind::OutOfRange };
    let session = monitor(&g).hook(&mut fake).hook(hook).start().unwrap();
    let mut is_over = false;
    let ended = session.supervise(|session| {
        is(session, step.value(), 0);
        let error = session.run(&[], &next).unwrap_err();
        is_over = true;
        Err(error)
    });
    ended.unwrap();
    assert!(is_over);
    assert_eq!(fake.calls, [1, 1, 2, 1, 1]);
}

/// TensorFlow: `test_regular_exception_pass_through_run`, `test_raises_regular_exceptions_in_with_body`: hooks do not
/// end.
#[test]
fn regular_exception_pass_through_run() {
    let g = Graph::new();
    let (_, next) = counted(&g);
    let mut fake = FakeHook::default();
    let hook = RaiseOnce { n: 1, kind: ErrorKind::DataLoss };
    let session = monitor(&g).hook(&mut fake).hook(hook).start().unwrap();
    let ended = session.supervise(|session| session.run(&[], &next).map(|_| ()));
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::DataLoss);
    assert_eq!(fake.calls, [1, 1, 1, 0, 0]);
}

/// A queue that a runner fills with numbers up to a limit, or with what fails.
fn numbers(g: &Graph, fails: Option<ErrorKind>) -> Tensor {
    let queue = g.fifo_queue("numbers", 2, [(I64, dims![])]);
    let count = g.local_variable("count", Init::Zeros, I64, []).count_up_to(5);
    let checked = g.host_function("check", &[&count], [(I64, dims![])], move |inputs| match fails
        .filter(|_| inputs[0].scalar::<i64>().unwrap() == 2)
    {
        Some(kind) => Err(Error::new(kind, "the input is broken")),
        None => Ok(vec![inputs[0].clone()]),
    });
    g.add_queue_runner(&QueueRunner::new(&queue, [queue.enqueue(&[&checked[0]])]));
    queue.dequeue().remove(0)
}

/// Inputs of queue runners come to their end, and their threads with them.
#[test]
fn queue_runners_end_a_training() {
    let g = Graph::new();
    let sum = g.variable("sum", Init::Zeros, I64, []);
    let add = sum.assign_add(numbers(&g, None));
    let mut last = 0;
    let session = monitor(&g).start().unwrap();
    let running = session.coordinator().unwrap().clone();
    assert_eq!(running.running().len(), 1);
    let ended = session.supervise(|session| {
        while !session.should_stop() {
            last = session.run(&[], &add)?.scalar::<i64>()?;
        }
        Ok(())
    });
    ended.unwrap();
    assert_eq!(last, 10);
    assert!(running.running().is_empty());
}

/// TensorFlow: `test_regular_exception_reported_to_coord_pass_through_run`: the caller hears of the cause.
#[test]
fn regular_exception_reported_to_coord_pass_through_run() {
    let g = Graph::new();
    let taken = numbers(&g, Some(ErrorKind::DataLoss));
    let session = monitor(&g).start().unwrap();
    let running = session.coordinator().unwrap().clone();
    let ended = session.supervise(|session| {
        loop {
            session.run(&[], &taken)?;
        }
    });
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
    assert!(running.running().is_empty());
}

/// TensorFlow: `test_regular_exception_reported_to_coord_pass_through_return`: also who asks whether to stop.
#[test]
fn regular_exception_reported_to_coord_pass_through_return() {
    let g = Graph::new();
    let (_, next) = counted(&g);
    let mut fake = FakeHook::default();
    let session = monitor(&g).hook(&mut fake).start().unwrap();
    let ended = session.supervise(|session| {
        let coordinator = session.coordinator()?.clone();
        coordinator.spawn("fails", |_| Err(Error::invalid("a thread has failed")))?;
        while !session.should_stop() {
            session.run(&[], &next)?;
        }
        Ok(())
    });
    assert_eq!(ended.unwrap_err().message(), "a thread has failed");
    assert_eq!(fake.calls[4], 1);
}

/// TensorFlow: `test_recovery_from_coordinator_exception`: a thread's error is one to recover from, too.
#[test]
fn recovery_from_coordinator_exception() {
    let g = Graph::new();
    let (_, next) = counted(&g);
    let mut fake = FakeHook::default();
    let mut session = monitor(&g).recoveries(1).hook(&mut fake).start().unwrap();
    is(&mut session, &next, 1);
    let coordinator = session.coordinator().unwrap().clone();
    coordinator.request_stop_with(Error::new(ErrorKind::Aborted, "lost")).unwrap();
    assert!(!session.should_stop(), "the next run recovers");
    is(&mut session, &next, 1);
    assert!(coordinator.joined());
    drop(session);
    assert_eq!(fake.calls[1], 2);
}

/// TensorFlow: `HookedSessionTest`: `testCallsHooksBeginEnd`, `testShouldStop`, `testFetchesHookRequests`.
#[test]
fn hooks_are_called_and_given_what_they_ask_for() {
    for device in devices() {
        let g = Graph::new();
        let (a, b, c) = (g.constant(0.0f32), g.constant([5.0f32]), g.constant([10.0f32, 11.0]));
        let mut first = FakeHook { fetch: Some(b), ..FakeHook::default() };
        let mut second = FakeHook { fetch: Some(c), ..FakeHook::default() };
        let of = Monitor::new(&g, &device.devices).hook(&mut first).hook(&mut second);
        let mut session = of.start().unwrap();
        let out = session.run(&[], (&a, [&a, &a])).unwrap();
        assert_eq!(out.0.scalar::<f32>().unwrap(), 0.0, "{}", device.name);
        assert!(!session.should_stop());
        session.request_stop();
        assert!(session.should_stop());
        session.run(&[], ()).unwrap();
        session.close().unwrap();
        assert_eq!(first.found.unwrap().to_vec::<f32>().unwrap(), [5.0], "{}", device.name);
        assert_eq!(second.found.unwrap().to_vec::<f32>().unwrap(), [10.0, 11.0]);
        assert_eq!((first.calls, second.calls), ([1, 1, 2, 2, 1], [1, 1, 2, 2, 1]));
    }
    let g = Graph::new();
    let hook = FakeHook::default();
    hook.stops.set(true);
    let mut session = monitor(&g).hook(hook).start().unwrap();
    session.run(&[], ()).unwrap();
    assert!(session.should_stop());
}

/// TensorFlow: `testOnlyHooksHaveFeeds`, `testBothHooksAndUserHaveFeeds`, `testHooksFeedConflicts`,
/// `testHooksAndUserFeedConflicts`.
#[test]
fn hooks_feed() {
    let g = Graph::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| g.placeholder_with_default(name, 0i64, dims![]));
    let sum = &(&a + &b) + &c;
    let hook = |feed: Feed<'static>| FakeHook { feeds: vec![feed], ..FakeHook::default() };
    let both = || monitor(&g).hook(hook(a.feed(5i64))).hook(hook(b.feed(10i64)));
    let mut session = both().start().unwrap();
    is(&mut session, &sum, 15);
    let feeds = [c.feed(20i64)];
    assert_eq!(session.run(&feeds, &sum).unwrap().scalar::<i64>().unwrap(), 35);
    let error = session.run(&[b.feed(1i64)], &sum).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("the same tensor is fed"), "{error}");
    let mut session = both().hook(hook(a.feed(1i64))).start().unwrap();
    let error = session.run(&[], &sum).unwrap_err();
    assert!(error.message().contains("the same tensor is fed"), "{error}");
    assert_eq!(error.node(), Some("a:0"));
}

/// TensorFlow: `test_merge_run_options_from_hooks`, `test_merge_caller_and_hook_run_options`: the most of each.
#[test]
fn merge_run_options_from_hooks() {
    let g = Graph::new();
    let a = g.constant(1i64);
    let (long, short) = (Duration::from_secs(120), Duration::from_secs(60));
    let mut first =
        FakeHook { timings: Timings::Devices, timeout: Some(short), ..FakeHook::default() };
    let mut second =
        FakeHook { timings: Timings::Nodes, timeout: Some(long), ..FakeHook::default() };
    let mut session = monitor(&g).hook(&mut first).hook(&mut second).start().unwrap();
    let options = RunOptions { timeout: Some(short), ..RunOptions::default() };
    let (_, run) = session.run_with(&[], &a, options).unwrap();
    assert!(run.begun.is_some(), "all times are recorded");
    session.close().unwrap();
    for seen in [first.seen, second.seen] {
        let seen = seen.unwrap();
        assert_eq!((seen.timings, seen.timeout), (Timings::Nodes, Some(long)));
    }
}

/// TensorFlow: `test_graph_finalized_during_run_unfinalized_after_exit`. Also after a start that fails.
#[test]
fn graph_finalized_during_run_unfinalized_after_exit() {
    struct Adds(Option<Tensor>);
    impl Hook for Adds {
        fn begin(&mut self, graph: &Graph) -> Result<()> {
            self.0 = Some(graph.constant(3i64));
            Ok(())
        }
    }
    let g = Graph::new();
    let mut hook = Adds(None);
    let session = monitor(&g).hook(&mut hook).start().unwrap();
    let late = g.constant(1i64);
    assert_eq!(
        session.session().unwrap().run(&[], &late).unwrap_err().kind(),
        ErrorKind::FailedPrecondition
    );
    session.close().unwrap();
    let added = hook.0.unwrap();
    let mut session = monitor(&g).start().unwrap();
    is(&mut session, &added, 3);
    drop(session);
    let fails = |_: &Session| Err(Error::invalid("no start"));
    monitor(&g).init(fails).start().unwrap_err();
    let after = g.constant(4i64);
    let is_4 = || Session::new(&g, &Devices::cpu()).unwrap().run(&[], &after).unwrap();
    assert_eq!(is_4().scalar::<i64>().unwrap(), 4);
    // One that its maker has finalized stays so, and one of two sessions is enough.
    let both = (monitor(&g).start().unwrap(), monitor(&g).start().unwrap());
    drop(both.0);
    let refused = |g: &Graph| {
        let late = Session::new(g, &Devices::cpu()).unwrap().run(&[], &g.constant(1i64));
        late.is_err_and(|error| error.kind() == ErrorKind::FailedPrecondition)
    };
    assert!(refused(&g));
    drop(both.1);
    assert!(!refused(&g));
    g.finalize();
    monitor(&g).start().unwrap().close().unwrap();
    assert!(refused(&g));
}

/// What was asked of one run is no part of another.
#[test]
fn what_was_asked_of_another_run_is_refused() {
    struct Late(Tensor, Option<Wanted<Tensor>>);
    impl Hook for Late {
        fn before_run(&mut self, run: &mut BeforeRun<'_>) -> Result<()> {
            let fetch = self.0.clone();
            self.1.get_or_insert_with(|| run.fetch(fetch));
            Ok(())
        }

        fn after_run(&mut self, run: &AfterRun<'_>) -> Result<()> {
            self.1.as_ref().map_or(Ok(()), |wanted| run.get(wanted).map(|_| ()))
        }
    }
    let g = Graph::new();
    let a = g.constant(1i64);
    let mut session = monitor(&g).hook(Late(a.clone(), None)).start().unwrap();
    is(&mut session, &a, 1);
    let error = session.run(&[], &a).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
}

/// What is made inside of `after` for the first time depends on nothing that trains. TensorFlow: variables are built
/// outside of control dependencies, so that `assign_add(get_or_create_global_step(), 1)` goes anywhere.
#[test]
fn a_global_step_may_be_made_after_what_trains() {
    for device in devices() {
        let g = Graph::new();
        let w = g.variable("w", Init::Zeros, F32, []);
        let train = w.assign_add(0.5f32).operation();
        let step = g.after(&[&train], || g.global_step().assign_add(1));
        assert_eq!(step.node().controls.to_vec(), [train.id()]);
        let made = g.find_global_step().unwrap();
        for node in [made.handle().node(), made.value().node(), made.initializer().node()] {
            assert!(node.controls.is_empty(), "{}", node.name);
        }
        let of = Monitor::new(&g, &device.devices).hook(StopAtStep::last(10));
        let mut session = of.start().unwrap();
        is(&mut session, made.value(), 0);
        while !session.should_stop() {
            session.run(&[], &step).unwrap();
        }
        let w = session.run(&[], &w).unwrap().scalar::<f32>().unwrap();
        assert_eq!(w, 5.0, "{}", device.name);
    }
}

/// Whoever asks for the end is heard, also when a thread has failed with what can be recovered from.
#[test]
fn a_stop_is_heard_after_a_thread_has_failed() {
    let g = Graph::new();
    let (_, next) = counted(&g);
    let mut session = monitor(&g).recoveries(5).start().unwrap();
    session.coordinator().unwrap().request_stop_with(unavailable()).unwrap();
    assert!(!session.should_stop());
    session.request_stop();
    assert!(session.should_stop());
    // What was trained is there to look at.
    is(&mut session, &next, 1);
    is(&mut session, &next, 2);
    assert!(session.should_stop());
    session.close().unwrap();
    // A hook asks, in the last of these runs, after the first has recovered.
    let mut session = monitor(&g).recoveries(5).hook(StopAtStep::last(3)).start().unwrap();
    is(&mut session, &next, 1);
    is(&mut session, &next, 2);
    let first = session.coordinator().unwrap().clone();
    first.request_stop_with(unavailable()).unwrap();
    for i in 1..=3 {
        assert!(!session.should_stop());
        is(&mut session, &next, i);
    }
    assert!(first.joined());
    assert!(session.should_stop());
    session.close().unwrap();
    // In the very run during which a thread fails, too.
    let mut fake = FakeHook::default();
    fake.stops.set(true);
    let fails = Fails { thread: Some(unavailable()), ..Fails::default() };
    let mut session = monitor(&g).recoveries(5).hook(fails).hook(&mut fake).start().unwrap();
    is(&mut session, &next, 1);
    assert!(session.should_stop());
}

/// What a hook fails with, be it `Unavailable`, costs nothing that was trained. TensorFlow recovers from it, too.
#[test]
fn errors_of_hooks_are_not_recovered_from() {
    let folder = Folder::new("monitored-hooks-fail");
    let saver = Saver::new(folder.path().join("model"));
    let g = Graph::new();
    let (_, next) = counted(&g);
    let fails = Fails { ran: Some(unavailable()), ..Fails::default() };
    let of = monitor(&g).saver(saver.clone());
    let of = of.hook(CheckpointSaver::every_steps(saver.clone(), 100)).hook(fails);
    let mut session = of.start().unwrap();
    let error = session.run(&[], &next).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    is(&mut session, &next, 2);
    session.close().unwrap();
    assert_eq!(saver.latest().unwrap().unwrap().step, 2);
    let fails = Fails { created: Some(unavailable()), ..Fails::default() };
    let error = monitor(&g).saver(saver).hook(fails).start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

/// Without a saver a new session would begin at the start, without a word.
#[test]
fn nothing_is_recovered_without_a_saver() {
    let g = Graph::new();
    let (_, next) = counted(&g);
    let hook = RaiseOnce { n: 2, kind: ErrorKind::Unavailable };
    let mut session = monitor(&g).hook(hook).start().unwrap();
    is(&mut session, &next, 1);
    assert_eq!(session.run(&[], &next).unwrap_err().kind(), ErrorKind::Unavailable);
    is(&mut session, &next, 2);
    // A thread's error is one to stop for then, and the end gives it.
    session.coordinator().unwrap().request_stop_with(unavailable()).unwrap();
    is(&mut session, &next, 3);
    assert!(session.should_stop());
    assert_eq!(session.close().unwrap_err().kind(), ErrorKind::Unavailable);
}

/// A session that was given up and could not be made anew ends nothing: no hook has ended.
#[test]
fn a_session_that_is_lost_has_no_good_end() {
    let g = Graph::new();
    let (_, next) = counted(&g);
    let mut fake = FakeHook::default();
    let again = Some(Error::new(ErrorKind::DataLoss, "no second session"));
    let raise = RaiseOnce { n: 2, kind: ErrorKind::Aborted };
    let of = monitor(&g).recoveries(5).hook(&mut fake).hook(raise);
    let mut session = of.hook(Fails { again, ..Fails::default() }).start().unwrap();
    is(&mut session, &next, 1);
    assert!(!session.should_stop());
    assert_eq!(session.run(&[], &next).unwrap_err().kind(), ErrorKind::DataLoss);
    assert!(session.should_stop(), "a loop that goes on would go on for ever");
    let error = session.session().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    let error = session.close().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.message().contains("no second session"), "{error}");
    assert_eq!(fake.calls[4], 0);
}

/// TensorFlow: `_WrappedSession.close` logs `Aborted` and `Unavailable`.
#[test]
fn what_fails_after_a_training_is_no_error_of_it() {
    let folder = Folder::new("monitored-late");
    let saver = Saver::new(folder.path().join("model"));
    let g = Graph::new();
    let (_, next) = counted(&g);
    for (kind, saves) in
        [(ErrorKind::Aborted, true), (ErrorKind::Unavailable, false), (ErrorKind::DataLoss, true)]
    {
        let mut fake = FakeHook::default();
        let mut of = monitor(&g).hook(&mut fake);
        if saves {
            of = of.saver(saver.clone());
        }
        let ended = of.start().unwrap().supervise(|session| {
            session.run(&[], &next)?;
            session.coordinator()?.request_stop_with(Error::new(kind, "too late"))
        });
        assert_eq!(ended.err().map(|e| e.kind()), (kind == ErrorKind::DataLoss).then_some(kind));
        assert_eq!(fake.calls[4], 1);
    }
}

/// A thread that waits in a run is cut off by the close, and has ended then.
#[test]
fn threads_that_wait_in_a_run_have_ended_after_the_end() {
    let g = Graph::new();
    let taken = g.fifo_queue("empty", 1, [(I64, dims![])]).dequeue().remove(0);
    let of = Monitor::new(&g, &Devices::cpu()).grace(Duration::from_millis(200));
    let session = of.start().unwrap();
    let coordinator = session.coordinator().unwrap().clone();
    let own = session.session().unwrap().clone();
    let waits = move |_: &Coordinator| {
        let run = own.run(&[], &taken).map(|_| ());
        std::thread::sleep(Duration::from_millis(100));
        run
    };
    coordinator.spawn("waits", waits).unwrap();
    session.close().unwrap();
    assert_eq!(coordinator.running(), Vec::<String>::new());
}

/// TensorFlow: `Scaffold`'s `init_feed_dict`.
#[test]
fn initialisers_are_fed() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![2]);
        let v = g.variable("v", Init::Tensor(&x * 2.0f32), F32, [2]);
        let of = || Monitor::new(&g, &device.devices);
        assert_eq!(of().start().unwrap_err().kind(), ErrorKind::InvalidArgument);
        let mut session = of().init_feed(x.feed(vec![1.0f32, 2.0])).start().unwrap();
        let v = session.run(&[], &v).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(v, [2.0, 4.0], "{}", device.name);
        session.close().unwrap();
    }
}

/// A hook that wants more time than others takes none from a run that has all the time there is, and none from one
/// that has the session's. TensorFlow limits the former.
#[test]
fn a_run_without_a_limit_stays_so() {
    let g = Graph::new();
    let a = g.constant(1i64);
    let (long, short) = (Duration::from_secs(60), Duration::from_secs(5));
    for (of_session, of_hook, expected) in
        [(None, short, None), (Some(long), short, Some(long)), (Some(short), long, Some(long))]
    {
        let mut hook = FakeHook { timeout: Some(of_hook), ..FakeHook::default() };
        let options = SessionOptions { timeout: of_session, ..SessionOptions::default() };
        let mut session = monitor(&g).options(options).hook(&mut hook).start().unwrap();
        is(&mut session, &a, 1);
        drop(session);
        assert_eq!(hook.seen.unwrap().timeout, expected);
    }
}

/// A thread that fails in each session does not have each run begin anew for ever, though the runs themselves succeed.
#[test]
fn a_thread_that_always_fails_ends_a_training() {
    struct Lost;
    impl Hook for Lost {
        fn after_create_session(&mut self, _: &Session, coordinator: &Coordinator) -> Result<()> {
            coordinator.request_stop_with(unavailable())
        }
    }
    let folder = Folder::new("monitored-always");
    let g = Graph::new();
    let (_, next) = counted(&g);
    let of = monitor(&g).saver(Saver::new(folder.path().join("model"))).recoveries(3).hook(Lost);
    let mut session = of.start().unwrap();
    for _ in 0..3 {
        assert!(!session.should_stop());
        is(&mut session, &next, 1);
    }
    assert!(session.should_stop());
    assert_eq!(session.close().unwrap_err().kind(), ErrorKind::Unavailable);
}
