//! The hooks that are there. TensorFlow: `python/training/basic_session_run_hooks_test.py`, by meaning.

use std::ops::ControlFlow;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{
    CheckpointSaver, FeedFn, FinalOps, Hook, LoggingTensor, Monitor, MonitoredSession, NanTensor,
    Profiler, StepCounter, StopAtStep,
};
use convoke_tests::Folder;

fn monitor<'h>(g: &Graph, hook: impl Hook + 'h) -> MonitoredSession<'h> {
    Monitor::new(g, &Devices::cpu()).hook(hook).start().unwrap()
}

/// A graph whose global step is set to what is fed, as TensorFlow's tests do, and what adds 1.
fn counted() -> (Graph, Tensor, Operation, Operation) {
    let g = Graph::new();
    let to = g.placeholder("to", I64, dims![]);
    let step = g.global_step();
    let (set, next) = (step.assign(&to).operation(), step.assign_add(1).operation());
    (g, to, set, next)
}

/// TensorFlow: `test_raise_in_both_last_step_and_num_steps` is by type; `test_stop_based_on_last_step`.
#[test]
fn stop_based_on_last_step() {
    let (g, to, set, next) = counted();
    let no_op = g.no_op();
    let mut session = monitor(&g, StopAtStep::last(10));
    session.run(&[to.feed(5i64)], &set).unwrap();
    session.run(&[], &no_op).unwrap();
    assert!(!session.should_stop());
    session.run(&[to.feed(9i64)], &set).unwrap();
    session.run(&[], &no_op).unwrap();
    assert!(!session.should_stop(), "the run has not counted");
    session.run(&[], &next).unwrap();
    assert!(session.should_stop());
}

/// TensorFlow: `test_stop_based_with_multiple_steps`: a step may be passed over.
#[test]
fn stop_based_with_multiple_steps() {
    let (g, to, set, _) = counted();
    let no_op = g.no_op();
    let mut session = monitor(&g, StopAtStep::after(10));
    session.run(&[to.feed(15i64)], &set).unwrap();
    session.run(&[], &no_op).unwrap();
    assert!(session.should_stop());
}

/// Runs that count several steps each: the first that comes to the number or beyond is the last.
#[test]
fn stop_based_on_runs_of_several_steps() {
    for (last, runs) in [(3, 1), (4, 1), (5, 2), (11, 3)] {
        let g = Graph::new();
        let next = g.global_step().assign_add(4).operation();
        let no_op = g.no_op();
        let mut session = monitor(&g, StopAtStep::last(last));
        for made in 1..=runs {
            session.run(&[], &next).unwrap();
            assert_eq!(session.should_stop(), made == runs, "{last}: {made}");
            // One that counts none tells nothing of the others.
            session.run(&[], &no_op).unwrap();
        }
    }
}

/// TensorFlow: hooks that count raise without a global step.
#[test]
fn a_global_step_should_be_created() {
    let folder = Folder::new("hooks-none");
    let saver = Saver::new(folder.path().join("model"));
    let g = Graph::new();
    let of = || Monitor::new(&g, &Devices::cpu());
    let none = [
        of().hook(StopAtStep::last(1)).start(),
        of().hook(CheckpointSaver::every_steps(saver, 1)).start(),
        of().hook(StepCounter::every_steps(1)).start(),
        of().hook(Profiler::every_steps(folder.path(), 1)).start(),
    ];
    for session in none {
        let error = session.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.message().contains("a global step should be created"), "{error}");
    }
    assert!(g.find_global_step().is_none());
    let step = g.global_step();
    assert_eq!(step.name(), g.scope("other", || g.global_step()).name());
    assert!(g.trainable_variables().is_empty());
    assert_eq!(g.global_variables().len(), 1);
    let hook = StepCounter::every_steps(0);
    assert_eq!(of().hook(hook).start().unwrap_err().kind(), ErrorKind::InvalidArgument);
}

/// TensorFlow: `LoggingTensorHookTest`: `test_print_every_n_steps`, `test_print_first_step`, `test_print_at_end_only`.
#[test]
fn print_every_n_steps() {
    let g = Graph::new();
    let t = g.constant(42.0f32);
    let train = g.no_op();
    // The lines after each run, and at the end.
    let lines = |hook: LoggingTensor<'static>| {
        let lines = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let own = lines.clone();
        let mut session = monitor(&g, hook.to(move |line| own.borrow_mut().push(line.to_owned())));
        let mut counts = Vec::new();
        for _ in 0..7 {
            session.run(&[], &train).unwrap();
            counts.push(lines.borrow().len());
        }
        session.close().unwrap();
        let lines = lines.borrow().clone();
        (counts, lines)
    };
    let tensors = || [("answer", t.clone()), ("again", t.clone())];
    let (counts, all) = lines(LoggingTensor::every_runs(tensors(), 3));
    assert_eq!(counts, [1, 1, 1, 2, 2, 2, 3]);
    assert_eq!(all[0], "answer = f32[] [42], again = f32[] [42]");
    assert!(all[1].starts_with("answer = f32[] [42], again = f32[] [42] (0.0"), "{}", all[1]);
    assert_eq!(all.len(), 3);
    let (counts, all) = lines(LoggingTensor::every_runs(tensors(), 3).at_end());
    assert_eq!((counts[6], all.len()), (3, 4));
    let (counts, all) = lines(LoggingTensor::at_end_only(tensors()));
    assert_eq!((counts, all.len()), (vec![0; 7], 1));
    let (counts, _) = lines(LoggingTensor::every(tensors(), Duration::from_secs(3600)));
    assert_eq!(counts, [1; 7]);
    let (counts, _) = lines(LoggingTensor::every(tensors(), Duration::ZERO));
    assert_eq!(counts, [1, 2, 3, 4, 5, 6, 7]);
    let other = Graph::new();
    let hook = LoggingTensor::every_runs([("x", other.constant(1.0f32))], 1);
    let error = Monitor::new(&g, &Devices::cpu()).hook(hook).start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

/// TensorFlow: `CheckpointSaverHookTest`: `test_save_steps_saves_in_first_step`, `..saves_periodically`,
/// `test_save_saves_at_end`, and that listeners hear of each.
#[test]
fn save_steps_saves_periodically() {
    let folder = Folder::new("hooks-periodically");
    let saver = Saver::new(folder.path().join("model"));
    let (g, _, _, next) = counted();
    let mut told = Vec::new();
    let hook = CheckpointSaver::every_steps(saver.clone(), 2).on_save(|saved| {
        assert!(saved.path.exists());
        told.push(saved.step);
        Ok(ControlFlow::Continue(()))
    });
    let mut session = monitor(&g, hook);
    let latest = || saver.latest().unwrap().unwrap().step;
    let mut seen = vec![latest()];
    for _ in 0..5 {
        session.run(&[], &next).unwrap();
        seen.push(latest());
    }
    assert_eq!(seen, [0, 0, 2, 2, 4, 4]);
    session.close().unwrap();
    assert_eq!(latest(), 5);
    // What is saved already is not saved again.
    assert_eq!(told, [0, 2, 4, 5]);
}

/// TensorFlow: `test_save_steps_saves_periodically_with_steps_per_run`: the first run that comes to the step or beyond.
#[test]
fn runs_of_several_steps_are_saved_in_time() {
    let folder = Folder::new("hooks-several");
    let saver = Saver::new(folder.path().join("model"));
    let g = Graph::new();
    let next = g.global_step().assign_add(4).operation();
    let mut session = monitor(&g, CheckpointSaver::every_steps(saver.clone(), 6));
    let mut seen = Vec::new();
    for _ in 0..5 {
        session.run(&[], &next).unwrap();
        seen.push(saver.latest().unwrap().unwrap().step);
    }
    assert_eq!(seen, [0, 8, 8, 16, 16]);
}

/// What could not be saved is saved by the next run, or at the end.
#[test]
fn what_could_not_be_saved_is_saved_later() {
    let folder = Folder::new("hooks-later");
    let dir = folder.path().join("models");
    std::fs::create_dir(&dir).unwrap();
    let saver = Saver::new(dir.join("model"));
    let (g, _, _, next) = counted();
    let mut session = monitor(&g, CheckpointSaver::every_steps(saver.clone(), 2));
    session.run(&[], &next).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(session.run(&[], &next).unwrap_err().kind(), ErrorKind::NotFound);
    std::fs::create_dir(&dir).unwrap();
    session.close().unwrap();
    assert_eq!(saver.latest().unwrap().unwrap().step, 2);
}

/// TensorFlow: `test_listener_stops_training_in_after_save`.
#[test]
fn listener_stops_training_in_after_save() {
    let folder = Folder::new("hooks-listener");
    let saver = Saver::new(folder.path().join("model"));
    let (g, _, _, next) = counted();
    let hook = CheckpointSaver::every_steps(saver, 1).on_save(|saved| {
        let stops = saved.step == 2;
        Ok(if stops { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    let mut session = monitor(&g, hook);
    session.run(&[], &next).unwrap();
    assert!(!session.should_stop());
    session.run(&[], &next).unwrap();
    assert!(session.should_stop());
}

/// TensorFlow: `test_save_secs_saves_periodically`.
#[test]
fn save_secs_saves_periodically() {
    let folder = Folder::new("hooks-seconds");
    let saver = Saver::new(folder.path().join("model"));
    let (g, _, _, next) = counted();
    let hook = CheckpointSaver::every(saver.clone(), Duration::from_millis(400));
    let mut session = monitor(&g, hook);
    session.run(&[], &next).unwrap();
    assert_eq!(saver.latest().unwrap().unwrap().step, 0);
    std::thread::sleep(Duration::from_millis(450));
    session.run(&[], &next).unwrap();
    assert_eq!(saver.latest().unwrap().unwrap().step, 2);
}

/// A session that ends with an error saves nothing more.
#[test]
fn nothing_is_saved_after_an_error() {
    let folder = Folder::new("hooks-error");
    let saver = Saver::new(folder.path().join("model"));
    let (g, _, _, next) = counted();
    let loss = g.find_global_step().unwrap().value().cast(F32) * f32::NAN;
    let of = Monitor::new(&g, &Devices::cpu());
    let of = of.hook(CheckpointSaver::every_steps(saver.clone(), 10)).hook(NanTensor::new(&loss));
    let ended = of.start().unwrap().supervise(|session| session.run(&[], &next));
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(saver.latest().unwrap().unwrap().step, 0);
}

/// TensorFlow: `StepCounterHookTest`, `test_step_counter_every_n_steps`.
#[test]
fn step_counter_every_n_steps() {
    let (g, _, _, next) = counted();
    let mut hook = StepCounter::every_steps(10);
    let mut session = monitor(&g, &mut hook);
    for _ in 0..30 {
        std::thread::sleep(Duration::from_millis(2));
        session.run(&[], &next).unwrap();
    }
    session.close().unwrap();
    let rate = hook.steps_per_second().unwrap();
    // A run takes 2 ms or more.
    assert!(rate > 0.0 && rate <= 500.0, "{rate}");
}

/// TensorFlow: `NanTensorHookTest`: `test_loss_is_nan`, and `test_not_fail_on_nan`.
#[test]
fn nan_loss() {
    let g = Graph::new();
    let loss = g.placeholder("loss", F32, dims![None]);
    let (train, count) = (g.no_op(), g.constant(1i64));
    let feeds = |x: f32| [loss.feed(vec![1.0, x])];
    let mut session = monitor(&g, NanTensor::new(&loss));
    session.run(&feeds(f32::INFINITY), &train).unwrap();
    let error = session.run(&feeds(f32::NAN), &train).unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("loss:0")));
    assert!(!session.should_stop());
    let mut session = monitor(&g, NanTensor::stops(&loss));
    session.run(&feeds(1.0), &train).unwrap();
    assert!(!session.should_stop());
    session.run(&feeds(f32::NAN), &train).unwrap();
    assert!(session.should_stop());
    let error = Monitor::new(&g, &Devices::cpu()).hook(NanTensor::new(&count)).start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

/// TensorFlow: `FinalOpsHookTest`: `test_final_ops_is_scalar_tensor`, `test_final_ops_with_dictionary`,
/// `test_final_ops_triggers_out_of_range_error`.
#[test]
fn final_ops() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![2]);
    let (both, train) = ((&x + 1.0, g.constant(4i64)), g.no_op());
    let queue = g.fifo_queue("queue", 1, [(F32, dims![])]);
    let (taken, close) = (queue.dequeue().remove(0), queue.close());
    let mut hook = FinalOps::new(both).feed(x.feed(vec![1.0f32, 2.0]));
    let mut session = monitor(&g, &mut hook);
    session.run(&[], &train).unwrap();
    session.close().unwrap();
    let (y, four) = hook.into_value().unwrap();
    assert_eq!(y.to_vec::<f32>().unwrap(), [2.0, 3.0]);
    assert_eq!(four.scalar::<i64>().unwrap(), 4);
    let mut hook = FinalOps::new(&taken);
    let mut session = monitor(&g, &mut hook);
    session.run(&[], &close).unwrap();
    assert_eq!(session.close().unwrap_err().kind(), ErrorKind::OutOfRange);
    assert!(hook.value().is_none());
}

/// TensorFlow: `FeedFnHook`, and the end of what it gives.
#[test]
fn feed_fn() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let sum = g.variable("sum", Init::Zeros, F32, []);
    let add = sum.assign_add(&x);
    let mut numbers = [1.0f32, 2.0, 4.0].into_iter();
    let feed = || match numbers.next() {
        Some(number) => Ok(vec![x.feed(number)]),
        None => Err(convoke::Error::new(ErrorKind::OutOfRange, "no more numbers")),
    };
    let mut last = 0.0;
    let session = monitor(&g, FeedFn::new(feed));
    let ended = session.supervise(|session| {
        while !session.should_stop() {
            last = session.run(&[], &add)?.scalar::<f32>()?;
        }
        Ok(())
    });
    ended.unwrap();
    assert_eq!(last, 7.0);
}

/// TensorFlow: `ProfilerHookTest`: `test_run_in_every_n_steps`: every third step.
#[test]
fn run_in_every_n_steps() {
    let folder = Folder::new("hooks-profiler");
    let (g, _, _, next) = counted();
    let mut session = monitor(&g, Profiler::every_steps(folder.path(), 3));
    let mut counts = Vec::new();
    for _ in 0..8 {
        session.run(&[], &next).unwrap();
        counts.push(folder.files().len());
    }
    assert_eq!(counts, [0, 0, 1, 1, 1, 2, 2, 2]);
    assert_eq!(folder.files(), ["timeline-3.json", "timeline-6.json"]);
    let text = std::fs::read_to_string(folder.path().join("timeline-6.json")).unwrap();
    let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.iter().any(|event| event["name"] == "commit"), "a run with all its times");
    let mut session = monitor(&g, Profiler::every_steps(folder.path().join("nowhere"), 1));
    session.run(&[], &next).unwrap();
    assert_eq!(session.run(&[], &next).unwrap_err().kind(), ErrorKind::NotFound);
}
