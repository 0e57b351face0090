//! Conditional accumulators. TensorFlow: `kernel_tests/conditional_accumulator_test.py`, by meaning.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{AccumulatorOptions, CancelToken, ConditionalAccumulator, Reduction, RunOptions};
use convoke_tests::{A_WHILE, devices, fails_while};

/// An accumulator of scalars.
struct Scalars {
    g: Graph,
    all: ConditionalAccumulator,
    x: Tensor,
    step: Tensor,
    apply: Operation,
    set: Operation,
}

impl Scalars {
    fn new(reduction: Reduction) -> Self {
        let g = Graph::new();
        let options = AccumulatorOptions { reduction, ..AccumulatorOptions::default() };
        let all = g.conditional_accumulator("all", F32, dims![], options);
        let (x, step) = (g.placeholder("x", F32, dims![]), g.placeholder("step", I64, dims![]));
        let (apply, set) = (all.apply_gradient(&x, &step), all.set_global_step(&step));
        Self { g, all, x, step, apply, set }
    }

    fn session(&self) -> Session {
        Session::new(&self.g, &Devices::cpu()).unwrap()
    }

    fn apply(&self, session: &Session, x: f32, step: i64) {
        session.run(&[self.x.feed(x), self.step.feed(step)], &self.apply).unwrap();
    }

    fn set(&self, session: &Session, step: i64) {
        session.run(&[self.step.feed(step)], &self.set).unwrap();
    }

    fn take(&self, session: &Session, n: usize) -> f32 {
        session.run(&[], self.all.take_gradient(n)).unwrap().scalar().unwrap()
    }

    fn size(&self, session: &Session) -> i32 {
        session.run(&[], self.all.num_accumulated()).unwrap().scalar().unwrap()
    }
}

/// `testAccumulatorSizeEmpty`, `testAccumulatorSizeAfterApplyGrad`, `testAccumulatorSizeAfterApplyGradAndTakeGrad`.
#[test]
fn size_after_apply_and_take() {
    let s = Scalars::new(Reduction::Mean);
    let session = s.session();
    assert_eq!(s.size(&session), 0);
    for round in 0..2i64 {
        s.apply(&session, 10.0, round);
        assert_eq!(s.size(&session), 1);
        s.apply(&session, 30.0, round);
        assert_eq!(s.size(&session), 2);
        // Asked for one, it gives all that there are.
        assert_eq!(s.take(&session, 1), 20.0);
        assert_eq!(s.size(&session), 0);
    }
}

/// `testAccumulatorRepeatedTakeGradMean`, `testAccumulatorRepeatedTakeGradSum`, `testAccumulatorTakeGradSum`.
#[test]
fn repeated_take_grad() {
    for (reduction, n) in [(Reduction::Mean, 3.0), (Reduction::Sum, 1.0)] {
        let s = Scalars::new(reduction);
        let session = s.session();
        for round in 0..3i64 {
            let all = [10.0, 20.0, 30.0].map(|x| x + round as f32 * 100.0);
            all.iter().for_each(|&x| s.apply(&session, x, round));
            assert_eq!(s.take(&session, 3), all.iter().sum::<f32>() / n);
        }
    }
}

/// `testAccumulatorApplyAndTakeGradWithShape`, `testDtypes`: on each device, in each float dtype.
#[test]
fn apply_and_take_with_shape() {
    for device in devices() {
        for dtype in [F16, BF16, F32, F64] {
            let g = Graph::new();
            let all =
                g.conditional_accumulator("all", dtype, dims![3, 2], AccumulatorOptions::default());
            let x = g.placeholder("x", F32, dims![3, 2]);
            let apply = all.apply_gradient(&(&x * 2.0).cast(dtype), &g.constant(0i64));
            let doubled = all.take_gradient(2).cast(F32) * 2.0;
            let session = device.session(&g);
            for x_i in
                [[[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]], [[3.0, 6.0], [1.0, -4.0], [0.0, 1.0]]]
            {
                session.run(&[x.feed(x_i)], &apply).unwrap();
            }
            let got = session.run(&[], &doubled).unwrap();
            // Twice the mean of twice each.
            let expected = [8.0, 16.0, 8.0, 0.0, 10.0, 14.0];
            assert_eq!(got.to_vec::<f32>().unwrap(), expected, "{} {dtype}", device.name);
        }
    }
}

/// `testAccumulatorMultipleAccumulators`, also in two sessions.
#[test]
fn multiple_accumulators() {
    let g = Graph::new();
    let all: Vec<ConditionalAccumulator> = (0..4)
        .map(|i| {
            g.conditional_accumulator(
                &format!("all{i}"),
                F32,
                dims![1],
                AccumulatorOptions::default(),
            )
        })
        .collect();
    let step = g.constant(0i64);
    let applies: Vec<Operation> = all
        .iter()
        .zip([1.0f32, 2.0, 3.0, 4.0])
        .map(|(a, x)| a.apply_gradient(&g.constant([x]), &step))
        .collect();
    let takes: Vec<Tensor> = all.iter().map(|a| a.take_gradient(1)).collect();
    let (one, other) =
        (Session::new(&g, &Devices::cpu()).unwrap(), Session::new(&g, &Devices::cpu()).unwrap());
    one.run(&[], &applies).unwrap();
    let got = one.run(&[], &takes).unwrap();
    let got: Vec<f32> = got.iter().map(|x| x.to_vec::<f32>().unwrap()[0]).collect();
    assert_eq!(got, [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(other.run(&[], all[0].num_accumulated()).unwrap().scalar::<i32>().unwrap(), 0);
}

/// `testAccumulatorSetGlobalStepPreventsAccumulation`: only gradients of that step or later count.
#[test]
fn set_global_step_prevents_accumulation() {
    let s = Scalars::new(Reduction::Mean);
    let session = s.session();
    let steps = 1000..1005i64;
    for least in steps.clone() {
        s.set(&session, least);
        steps.clone().for_each(|step| s.apply(&session, step as f32, step));
        let counted: Vec<f32> = (least..1005).map(|step| step as f32).collect();
        assert_eq!(s.size(&session), counted.len() as i32);
        assert_eq!(s.take(&session, 1), counted.iter().sum::<f32>() / counted.len() as f32);
    }
}

/// `testAccumulatorIncrementGlobalStep`: each take that succeeds makes it one more, and no other.
#[test]
fn increment_global_step() {
    let s = Scalars::new(Reduction::Sum);
    let session = s.session();
    let broken = Arc::new(AtomicBool::new(true));
    let take = s.all.take_gradient(1);
    let fails = fails_while(&take, &broken);
    for step in 0..3i64 {
        // One too old is dropped.
        s.apply(&session, 100.0, step - 1);
        assert_eq!(s.size(&session), 0);
        s.apply(&session, 1.0, step);
        let before = session.state_digest().unwrap();
        assert_eq!(session.run(&[], &fails).unwrap_err().kind(), ErrorKind::Aborted);
        assert_eq!(session.state_digest().unwrap(), before);
        s.apply(&session, 2.0, step);
        assert_eq!(session.run(&[], &take).unwrap().scalar::<f32>().unwrap(), 3.0);
    }
}

/// `testAccumulatorInvalidTakeGrad`: a number below 1; two takes in one run.
#[test]
fn invalid_take_grad() {
    let s = Scalars::new(Reduction::Mean);
    let n = s.g.placeholder("n", I32, dims![]);
    let take = s.all.take_gradient(&n);
    let session = s.session();
    s.apply(&session, 1.0, 0);
    let before = session.state_digest().unwrap();
    for wrong in [-1, 0] {
        let error = session.run(&[n.feed(wrong)], &take).unwrap_err();
        assert_eq!(
            (error.kind(), error.node()),
            (ErrorKind::InvalidArgument, Some("all_take_gradient"))
        );
    }
    let other = s.all.take_gradient(1);
    let error = session.run(&[n.feed(1)], (&take, &other)).unwrap_err();
    assert!(error.message().contains("all gradients of the same accumulator"), "{error}");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(session.state_digest().unwrap(), before);
    assert_eq!(session.run(&[n.feed(1)], &take).unwrap().scalar::<f32>().unwrap(), 1.0);
    s.all.take_gradient(0);
    assert_eq!(s.g.check().len(), 1);
}

/// `testAccumulatorApplyGradWithWrongShape`, `testAccumulatorWrongDynamicShape`, `testConstructorWithInvalidArg`.
#[test]
fn wrong_gradients_are_refused() {
    let g = Graph::new();
    let all = g.conditional_accumulator("all", F32, dims![2], AccumulatorOptions::default());
    let x = g.placeholder("x", F32, dims![None]);
    let apply = all.apply_gradient(&x, &g.constant(0i64));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[x.feed([1.0f32, 2.0])], &apply).unwrap();
    let before = session.state_digest().unwrap();
    let error = session.run(&[x.feed([1.0f32, 2.0, 3.0])], &apply).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("expected [2], got [3]"), "{error}");
    assert_eq!(session.state_digest().unwrap(), before);
    all.apply_gradient(&g.constant([1.0f32, 2.0, 3.0]), &g.constant(0i64));
    all.apply_gradient(&g.constant([1i32, 2]), &g.constant(0i64));
    all.apply_gradient(&g.constant([1.0f32, 2.0]), &g.constant(0i32));
    all.set_global_step(&g.constant([0i64]));
    g.conditional_accumulator("ints", I32, dims![], AccumulatorOptions::default());
    g.conditional_accumulator("unknown", F32, dims![None], AccumulatorOptions::default());
    let messages: Vec<String> = g.check().iter().map(|e| e.message().to_owned()).collect();
    let expected = [
        "shape mismatch",
        "f32",
        "a scalar of i64",
        "a scalar of i64",
        "a float dtype, got i32",
        "specified sizes",
    ];
    assert_eq!(messages.len(), expected.len(), "{messages:?}");
    for (message, expected) in messages.iter().zip(expected) {
        assert!(message.contains(expected), "{message}");
    }
}

/// `testParallelApplyGradMean`, `testParallelTakeGrad`.
#[test]
fn parallel_apply_and_take() {
    let s = Scalars::new(Reduction::Sum);
    let session = s.session();
    let take = s.all.take_gradient(1);
    thread::scope(|scope| {
        for i in 0..10 {
            let (s, session) = (&s, &session);
            scope.spawn(move || s.apply(session, i as f32, 1000));
        }
    });
    assert_eq!(s.take(&session, 10), 45.0);
    // Each applied gradient is in one of those that are taken.
    let taken = thread::scope(|scope| {
        let takers: Vec<_> = (0..5)
            .map(|_| {
                let taken = session.submit(&[], &take, RunOptions::default());
                scope.spawn(move || taken.wait().unwrap().scalar::<f32>().unwrap())
            })
            .collect();
        for i in 0..5 {
            s.apply(&session, 1.0 + i as f32, 1000);
            while s.size(&session) > 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        takers.into_iter().map(|taker| taker.join().unwrap()).sum::<f32>()
    });
    assert_eq!(taken, 15.0);
}

/// `testAccumulatorApplyAndBlockingTake`, `testAccumulatorCancel`.
#[test]
fn blocking_take_and_cancel() {
    let s = Scalars::new(Reduction::Mean);
    let session = s.session();
    let take = s.all.take_gradient(3);
    let waits = session.submit(&[], &take, RunOptions::default());
    for x in [10.0, 20.0] {
        s.apply(&session, x, 0);
        thread::sleep(A_WHILE);
        assert!(!waits.is_done());
    }
    s.apply(&session, 30.0, 0);
    assert_eq!(waits.wait().unwrap().scalar::<f32>().unwrap(), 20.0);
    s.apply(&session, 5.0, 1);
    let token = CancelToken::new();
    let options = RunOptions { cancel: Some(token.clone()), ..RunOptions::default() };
    let cancelled = session.submit(&[], &take, options);
    thread::sleep(A_WHILE);
    token.cancel();
    assert_eq!(cancelled.wait().unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!((s.size(&session), s.take(&session, 1)), (1, 5.0));
    let blocked = RunOptions { fail_if_blocked: true, ..RunOptions::default() };
    let error = session.run_with(&[], &take, blocked).unwrap_err();
    assert!(
        error.message().contains("elements of accumulator 'all' (wanted 3, there 0)"),
        "{error}"
    );
}

/// Accumulators train as they do in TensorFlow's `SyncReplicasOptimizer`: gradients of several runs, one step.
#[test]
fn gradients_of_several_runs_make_one_step() {
    let g = Graph::new();
    let w = g.variable("w", Init::Constant(0.0), F32, []);
    let target = g.placeholder("target", F32, dims![]);
    let off = w.value() - &target;
    let gradient = (&off * &off).gradients(&[w.value()]).remove(0).unwrap();
    let all = g.conditional_accumulator("all", F32, dims![], AccumulatorOptions::default());
    let apply = all.apply_gradient(&gradient, &g.constant(0i64));
    let step = w.assign_sub(all.take_gradient(2) * 0.5).operation();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    for x in [1.0, 3.0] {
        session.run(&[target.feed(x)], &apply).unwrap();
    }
    session.run(&[], &step).unwrap();
    // The mean of -2 and -6 is -4, of which half.
    assert_eq!(session.run(&[], w.value()).unwrap().scalar::<f32>().unwrap(), 2.0);
}

/// A step whose sizes only the run knows has one element, or the run fails and nothing has changed.
#[test]
fn a_step_of_several_elements_is_refused() {
    let g = Graph::new();
    let all = g.conditional_accumulator("all", F32, dims![], AccumulatorOptions::default());
    let step = g.placeholder("step", I64, convoke::Dims::UnknownRank);
    let targets = [all.apply_gradient(&g.constant(1.0f32), &step), all.set_global_step(&step)];
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[step.feed(0i64)], &targets[0]).unwrap();
    let before = session.state_digest().unwrap();
    for target in &targets {
        let error = session.run(&[step.feed([2i64, 3])], target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(
            error.message().contains("expected a step that is a scalar of i64, got i64[2]"),
            "{error}"
        );
        assert_eq!((error.node(), error.location().is_some()), (Some(&*target.name()), true));
    }
    assert_eq!(session.state_digest().unwrap(), before);
}
