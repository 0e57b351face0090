//! Sparse conditional accumulators. TensorFlow: `kernel_tests/sparse_conditional_accumulator_test.py`, by meaning.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{
    AccumulatorOptions, CancelToken, Dims, IndexedSlices, Reduction, RunOptions,
    SparseConditionalAccumulator,
};
use convoke_tests::{A_WHILE, devices, fails_while};

/// An accumulator of rows of two, of a whole of as many rows as `n` says.
struct Rows {
    g: Graph,
    all: SparseConditionalAccumulator,
    gradient: IndexedSlices,
    step: Tensor,
    apply: Operation,
    set: Operation,
}

/// Indices, and a row for each.
type Slices = (Vec<i64>, Vec<f32>);

impl Rows {
    fn new(n: Option<usize>, reduction: Reduction) -> Self {
        let g = Graph::new();
        let options = AccumulatorOptions { reduction, ..AccumulatorOptions::default() };
        let all = g.sparse_conditional_accumulator("all", F32, dims![n, 2], options);
        let indices = g.placeholder("indices", I64, dims![None]);
        let values = g.placeholder("values", F32, dims![None, 2]);
        let gradient = IndexedSlices { values, indices, dense_shape: None };
        let step = g.placeholder("step", I64, dims![]);
        let (apply, set) = (all.apply_gradient(&gradient, &step), all.set_global_step(&step));
        Self { g, all, gradient, step, apply, set }
    }

    fn session(&self) -> Session {
        Session::new(&self.g, &Devices::cpu()).unwrap()
    }

    fn feeds(&self, indices: &[i64], rows: &[[f32; 2]], step: i64) -> Vec<Feed<'static>> {
        let values = HostTensor::new(&[rows.len(), 2], rows.concat()).unwrap();
        let value = IndexedSlices { values, indices: indices.to_vec().into(), dense_shape: None };
        let mut feeds = self.gradient.feed(&value);
        feeds.push(self.step.feed(step));
        feeds
    }

    fn apply(
        &self,
        session: &Session,
        indices: &[i64],
        rows: &[[f32; 2]],
        step: i64,
    ) -> convoke::Result<()> {
        session.run(&self.feeds(indices, rows, step), &self.apply)
    }

    fn take(&self, session: &Session, n: usize) -> Slices {
        let taken = session.run(&[], self.all.take_gradient(n)).unwrap();
        (taken.indices.to_vec().unwrap(), taken.values.to_vec().unwrap())
    }

    fn size(&self, session: &Session) -> i32 {
        session.run(&[], self.all.num_accumulated()).unwrap().scalar().unwrap()
    }
}

/// `testAccumulatorSizeEmpty`, `testAccumulatorApplyGradFloat32`, `testAccumulatorSetGlobalStep`.
#[test]
fn size_and_step() {
    let s = Rows::new(Some(3), Reduction::Mean);
    let session = s.session();
    assert_eq!(s.size(&session), 0);
    s.apply(&session, &[0, 2], &[[0.0, 1.0], [3.0, 4.0]], 0).unwrap();
    assert_eq!(s.size(&session), 1);
    session.run(&[s.step.feed(2i64)], &s.set).unwrap();
    // One too old is dropped.
    s.apply(&session, &[1], &[[5.0, 5.0]], 1).unwrap();
    assert_eq!(s.size(&session), 1);
    s.apply(&session, &[1], &[[6.0, 6.0]], 2).unwrap();
    assert_eq!(s.take(&session, 2), (vec![0, 1, 2], vec![0.0, 1.0, 6.0, 6.0, 3.0, 4.0]));
    // The step is one more now.
    s.apply(&session, &[1], &[[6.0, 6.0]], 2).unwrap();
    assert_eq!(s.size(&session), 0);
}

/// `testAccumulatorTakeGrad`, `testAccumulatorTakeGradSum`: an index is divided by how many gradients have it.
#[test]
fn take_grad() {
    for (reduction, rows, again) in [
        (Reduction::Mean, [0.5, 0.5, 0.0, 2.0, 3.0, 0.0], [5.0, 5.0, 0.0, 20.0, 30.0, 0.0]),
        (Reduction::Sum, [1.0, 1.0, 0.0, 2.0, 3.0, 0.0], [10.0, 10.0, 0.0, 20.0, 30.0, 0.0]),
    ] {
        for n in [None, Some(3)] {
            let s = Rows::new(n, reduction);
            let session = s.session();
            s.apply(&session, &[0, 1], &[[1.0, 0.0], [0.0, 2.0]], 0).unwrap();
            s.apply(&session, &[0, 2], &[[0.0, 1.0], [3.0, 0.0]], 0).unwrap();
            // Asked for one, it gives all that there are.
            assert_eq!(s.take(&session, 1), (vec![0, 1, 2], rows.to_vec()), "{reduction:?}");
            assert_eq!(s.size(&session), 0);
            // `testAccumulatorRepeatedTakeGrad`.
            s.apply(&session, &[0, 1], &[[10.0, 0.0], [0.0, 20.0]], 1).unwrap();
            s.apply(&session, &[0, 2], &[[0.0, 10.0], [30.0, 0.0]], 1).unwrap();
            assert_eq!(s.take(&session, 2), (vec![0, 1, 2], again.to_vec()), "{reduction:?}");
        }
    }
}

/// The indices of a gradient come in any order; of one gradient, slices of one index are added and count once.
#[test]
fn indices_in_any_order() {
    let s = Rows::new(Some(9), Reduction::Mean);
    let session = s.session();
    s.apply(&session, &[8, 1, 8], &[[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]], 0).unwrap();
    s.apply(&session, &[8], &[[1.0, 0.0]], 0).unwrap();
    s.apply(&session, &[], &[], 0).unwrap();
    assert_eq!(s.size(&session), 3);
    // 8: (1 + 10 + 1) / 2 and (2 + 20 + 0) / 2.
    assert_eq!(s.take(&session, 3), (vec![1, 8], vec![3.0, 4.0, 6.0, 11.0]));
    s.apply(&session, &[], &[], 1).unwrap();
    assert_eq!(s.take(&session, 1), (vec![], vec![]));
}

/// `testDtypes`, `testApplyGradtInt32IndicesAndShape`, `testReturnShape`: in each float dtype, on each device, as a
/// dense tensor.
#[test]
fn dtypes_and_shapes() {
    for device in devices() {
        for dtype in [F16, BF16, F32, F64] {
            let g = Graph::new();
            let options = AccumulatorOptions::default;
            let all = g.sparse_conditional_accumulator("all", dtype, dims![3, 2, 2], options());
            let values = g.placeholder("values", F32, dims![2, 2, 2]);
            let gradient = IndexedSlices {
                values: (&values * 2.0).cast(dtype),
                indices: g.constant([0i32, 2]),
                dense_shape: Some(g.constant([3i32, 2, 2])),
            };
            let apply = all.apply_gradient(&gradient, &g.constant(0i64));
            let taken = all.take_gradient(1);
            assert_eq!(taken.values.dims(), dims![None, 2, 2]);
            let twice = taken.to_dense().cast(F32) * 2.0;
            assert_eq!(twice.dims(), dims![3, 2, 2]);
            let session = device.session(&g);
            for x in [1.0f32, 2.0] {
                let x = HostTensor::new(&[2, 2, 2], vec![x; 8]).unwrap();
                session.run(&[values.feed(x)], &apply).unwrap();
            }
            let fetch = (&twice, &taken.indices, taken.dense_shape.as_ref().unwrap());
            let (twice, indices, shape) = session.run(&[], fetch).unwrap();
            // Twice the mean of twice each.
            let expected = [vec![6.0; 4], vec![0.0; 4], vec![6.0; 4]].concat();
            assert_eq!(twice.to_vec::<f32>().unwrap(), expected, "{} {dtype}", device.name);
            assert_eq!(indices.to_vec::<i64>().unwrap(), [0, 2]);
            assert_eq!(shape.to_vec::<i64>().unwrap(), [3, 2, 2]);
        }
    }
    // Where the number of rows is not said there is no dense shape.
    assert!(Rows::new(None, Reduction::Mean).all.take_gradient(1).dense_shape.is_none());
}

/// `testAccumulatorMultipleAccumulators`, and what two of one shared name are.
#[test]
fn multiple_accumulators() {
    let g = Graph::new();
    let shared = || AccumulatorOptions { shared_name: Some("s".into()), ..Default::default() };
    let accumulator =
        |name: &str, options| g.sparse_conditional_accumulator(name, F32, dims![2, 2], options);
    let all = [
        accumulator("q", AccumulatorOptions::default()),
        accumulator("q", AccumulatorOptions::default()),
        accumulator("one", shared()),
        accumulator("other", shared()),
    ];
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for (i, all) in all.iter().enumerate() {
        let values = g.constant([[i as f32, 1.0]]);
        let gradient = IndexedSlices { values, indices: g.constant([1i64]), dense_shape: None };
        session.run(&[], all.apply_gradient(&gradient, &g.constant(0i64))).unwrap();
    }
    let take = |i: usize, n: usize| {
        session.run(&[], all[i].take_gradient(n)).unwrap().values.to_vec::<f32>().unwrap()
    };
    assert_eq!(take(0, 1), [0.0, 1.0]);
    assert_eq!(take(1, 1), [1.0, 1.0]);
    assert_eq!(take(3, 2), [2.5, 1.0]);
    let dense = g.conditional_accumulator("dense", F32, dims![2, 2], shared());
    let error = session.run(&[], dense.num_accumulated()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
}

/// `testParallelApplyGrad`, `testParallelTakeGrad`.
#[test]
fn parallel_apply_and_take() {
    let s = Rows::new(Some(2), Reduction::Mean);
    let session = s.session();
    thread::scope(|scope| {
        for i in 1..=10 {
            let (s, session, x) = (&s, &session, 10.0 * i as f32);
            scope.spawn(move || s.apply(session, &[0, 1], &[[x, 0.0], [0.0, x]], 0).unwrap());
        }
    });
    assert_eq!(s.take(&session, 10), (vec![0, 1], vec![55.0, 0.0, 0.0, 55.0]));
    let take = s.all.take_gradient(1);
    let taken: Vec<_> = (0..5).map(|_| session.submit(&[], &take, RunOptions::default())).collect();
    for i in 0..5 {
        s.apply(&session, &[1], &[[i as f32, 0.0]], 1000).unwrap();
        while s.size(&session) > 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    let values = taken.into_iter().map(|taken| taken.wait().unwrap().values.to_vec::<f32>());
    assert_eq!(values.map(|row| row.unwrap()[0]).sum::<f32>(), 10.0);
}

/// `testAccumulatorApplyAndBlockingTake`, `testAccumulatorCancel`.
#[test]
fn blocking_take_and_cancel() {
    let s = Rows::new(Some(2), Reduction::Mean);
    let session = s.session();
    let take = s.all.take_gradient(3);
    let waits = session.submit(&[], &take, RunOptions::default());
    for x in [10.0, 20.0] {
        s.apply(&session, &[0], &[[0.0, x]], 0).unwrap();
        thread::sleep(A_WHILE);
        assert!(!waits.is_done());
    }
    s.apply(&session, &[0], &[[0.0, 30.0]], 0).unwrap();
    assert_eq!(waits.wait().unwrap().values.to_vec::<f32>().unwrap(), [0.0, 20.0]);
    let token = CancelToken::new();
    let options = RunOptions { cancel: Some(token.clone()), ..RunOptions::default() };
    let cancelled = session.submit(&[], &take, options);
    thread::sleep(A_WHILE);
    token.cancel();
    assert_eq!(cancelled.wait().unwrap_err().kind(), ErrorKind::Cancelled);
    let blocked = RunOptions { fail_if_blocked: true, ..RunOptions::default() };
    let error = session.run_with(&[], &take, blocked).unwrap_err();
    let expected = "elements of sparse accumulator 'all' (wanted 3, there 0)";
    assert!(error.message().contains(expected), "{error}");
}

/// A run that fails has applied and taken nothing, and the step is as it was.
#[test]
fn a_failed_run_changes_nothing() {
    let s = Rows::new(Some(2), Reduction::Mean);
    let session = s.session();
    s.apply(&session, &[1], &[[1.0, 2.0]], 0).unwrap();
    let before = session.state_digest().unwrap();
    let fails = fails_while(&s.gradient.values, &Arc::new(AtomicBool::new(true)));
    let fetch = (&fails, s.all.take_gradient(1), (&s.apply, &s.set));
    let error = session.run(&s.feeds(&[0], &[[1.0, 1.0]], 5), fetch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
    assert_eq!(session.state_digest().unwrap(), before);
    let taken = s.all.take_gradient(1);
    let both = session.run(&[], (&taken, s.all.take_gradient(1))).map(|_| ());
    assert_eq!(both.unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(s.take(&session, 1), (vec![1], vec![1.0, 2.0]));
}

/// `testValidateShape`, `testWrongNonEmptyInputValues`, `testDynamicWrongNonEmptyInputValues`: indices out of range and
/// shapes that only the run knows fail it before it stores anything.
#[test]
fn wrong_gradients_fail_the_run() {
    let s = Rows::new(Some(2), Reduction::Mean);
    let g = &s.g;
    let v = g.variable("v", Init::Zeros, F32, []);
    let count = v.assign_add(1.0).operation();
    let open = g.placeholder("open", F32, Dims::UnknownRank);
    let open = IndexedSlices { values: open, ..s.gradient.clone() };
    let apply_open = s.all.apply_gradient(&open, &s.step);
    let shape = g.placeholder("shape", I64, dims![2]);
    let shaped = IndexedSlices { dense_shape: Some(shape.clone()), ..s.gradient.clone() };
    let apply_shaped = s.all.apply_gradient(&shaped, &s.step);
    let session = s.session();
    session.run(&[], g.initializers()).unwrap();
    let before = session.state_digest().unwrap();
    let refused = |feeds: &[Feed<'_>], apply: &Operation, message: &str| {
        let error = session.run(feeds, (apply, &count)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains(message), "{error}");
        assert!(error.location().unwrap().file().ends_with("sparse_accumulators.rs"), "{error}");
        assert_eq!(session.state_digest().unwrap(), before);
    };
    let one = [[1.0, 2.0]];
    for index in [2, 3, -1, i64::MAX] {
        let message = "expected indices of slices in [0, 2)";
        refused(&s.feeds(&[index], &one, 0), &s.apply, message);
    }
    refused(&s.feeds(&[0, 1], &one, 0), &s.apply, "expected slices [2, 2], one for each index");
    let fed = |values: HostTensor| {
        let indices = s.gradient.indices.feed([0i64]);
        [open.values.feed(values), indices, s.step.feed(0i64)]
    };
    for values in [[[1.0f32, 2.0, 3.0]].into(), HostTensor::from([1.0f32]), 1.0f32.into()] {
        refused(&fed(values), &apply_open, "expected slices [1, 2], one for each index");
    }
    for sizes in [[2i64, 3], [3, 2], [-1, 2]] {
        let mut feeds = s.feeds(&[0], &one, 0);
        feeds.push(shape.feed(sizes));
        refused(&feeds, &apply_shaped, "expected a gradient of dense shape [2, 2]");
    }
    let mut feeds = s.feeds(&[0], &one, 0);
    feeds.push(shape.feed([2i64, 2]));
    session.run(&feeds, (&apply_shaped, &count)).unwrap();
    session.run(&fed([[3.0f32, 4.0]].into()), &apply_open).unwrap();
    assert_eq!(s.take(&session, 2), (vec![0], vec![2.0, 3.0]));
    // Without a number of rows, an index is at least 0.
    let s = Rows::new(None, Reduction::Mean);
    let session = s.session();
    let error = s.apply(&session, &[-1], &one, 0).unwrap_err();
    assert!(error.message().contains("indices of slices of at least 0"), "{error}");
    s.apply(&session, &[i64::MAX], &one, 0).unwrap();
    assert_eq!(s.take(&session, 1), (vec![i64::MAX], vec![1.0, 2.0]));
}

/// A dense shape of another length than the accumulator's fails the run, also one that would fit if it were repeated.
#[test]
fn dense_shapes_of_other_lengths_fail_the_run() {
    let s = Rows::new(Some(2), Reduction::Mean);
    let one = [[1.0, 2.0]];
    let any = s.g.placeholder("any", I64, dims![None]);
    let of_any = IndexedSlices { dense_shape: Some(any.clone()), ..s.gradient.clone() };
    let flat = s.g.placeholder("flat", F32, dims![None]);
    let of_flat = IndexedSlices { values: flat.clone(), ..of_any.clone() };
    let line =
        s.g.sparse_conditional_accumulator("line", F32, dims![4], AccumulatorOptions::default());
    let [apply_any, apply_flat] =
        [s.all.apply_gradient(&of_any, &s.step), line.apply_gradient(&of_flat, &s.step)];
    let session = s.session();
    let before = session.state_digest().unwrap();
    let with = |sizes: &[i64]| {
        let mut feeds = s.feeds(&[0], &one, 0);
        feeds.push(any.feed(sizes.to_vec()));
        feeds.push(flat.feed([7.0f32]));
        feeds
    };
    let refused = |sizes: &[i64], apply: &Operation, expected: &str| {
        let error = session.run(&with(sizes), apply).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{sizes:?}: {error}");
        assert!(error.message().contains(expected), "{sizes:?}: {error}");
        assert_eq!(session.state_digest().unwrap(), before);
    };
    for sizes in [&[2][..], &[], &[2, 2, 2], &[2, 3]] {
        refused(sizes, &apply_any, "expected a gradient of dense shape [2, 2]");
    }
    for sizes in [&[2][..], &[4, 4, 4], &[]] {
        refused(sizes, &apply_flat, "expected a gradient of dense shape [4]");
    }
    session.run(&with(&[2, 2]), &apply_any).unwrap();
    session.run(&with(&[4]), &apply_flat).unwrap();
    assert_eq!(s.take(&session, 1), (vec![0], vec![1.0, 2.0]));
    let taken = session.run(&[], line.take_gradient(1)).unwrap();
    assert_eq!(taken.values.to_vec::<f32>().unwrap(), [7.0]);
}

/// `testNonVectorIndices`, `testZeroDimensionValues`, `testEmptyShapeApply`, `testValidateShape`, and what accumulators
/// there are not.
#[test]
fn wrong_gradients_are_refused() {
    let g = Graph::new();
    let all = |name: &str, dtype, dims: Dims| {
        g.sparse_conditional_accumulator(name, dtype, dims, AccumulatorOptions::default())
    };
    let fine = all("fine", F32, dims![2, 2]);
    let zero = g.constant(0i64);
    let apply = |indices: Tensor, values: Tensor, shape: Option<Tensor>| {
        fine.apply_gradient(&IndexedSlices { values, indices, dense_shape: shape }, &zero)
    };
    let (indices, values) = (|| g.constant([1i64]), || g.constant([[1.0f32, 2.0]]));
    // What is known is looked at while building, and needs no assertion in the run.
    for shape in [None, Some(g.constant([2i64, 2]))] {
        assert!(apply(indices(), values(), shape).node().controls.is_empty());
    }
    assert!(g.check().is_empty(), "{:?}", g.check());
    apply(g.constant([[0i64, 1], [1, 0]]), values(), None);
    apply(g.constant(1i64), values(), None);
    apply(g.constant([1.0f32]), values(), None);
    apply(indices(), g.constant(1.0f32), None);
    apply(indices(), g.constant([1.0f32]), None);
    apply(indices(), g.constant([[1.0f32, 2.0, 3.0]]), None);
    apply(indices(), g.constant([[1.0f64, 2.0]]), None);
    apply(g.constant([0i64, 1]), values(), None);
    apply(indices(), values(), Some(g.constant([2i64, 3])));
    apply(indices(), values(), Some(g.constant([2i64])));
    apply(indices(), values(), Some(g.constant([2.0f32, 2.0])));
    apply(indices(), values(), Some(g.placeholder("shape", I64, Dims::UnknownRank)));
    apply(g.constant([2i64]), values(), None);
    apply(g.constant([-1i32]), values(), None);
    let gradient = IndexedSlices { values: values(), indices: indices(), dense_shape: None };
    fine.apply_gradient(&gradient, &g.constant(0i32));
    fine.take_gradient(0);
    fine.set_global_step(&g.constant([0i64]));
    let refused = g.check();
    assert!(refused.iter().all(|e| e.kind() == ErrorKind::InvalidArgument), "{refused:?}");
    assert_eq!(refused.len(), 17, "{refused:#?}");
    for (name, dtype, dims) in [
        ("int", I32, dims![2, 2]),
        ("scalar", F32, dims![]),
        ("any", F32, Dims::UnknownRank),
        ("rows", F32, dims![2, None]),
    ] {
        let n = g.check().len();
        all(name, dtype, dims).num_accumulated();
        assert_eq!(g.check().len(), n + 2, "{name}");
    }
    // `testAccumulatorInvalidTakeGrad`: a number below 1 that the run computes.
    let n = g.placeholder("n", I32, dims![]);
    let taken = fine.take_gradient(&n);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for below in [0, -1] {
        let error = session.run(&[n.feed(below)], &taken).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}

/// The gradient of an embedding goes into an accumulator, and what is taken into the table: only rows that somebody
/// looked up change.
#[test]
fn gradients_of_an_embedding_make_one_step() {
    for device in devices() {
        let g = Graph::new();
        let table = g.variable("table", Init::Constant(1.0), F32, [5, 2]);
        let ids = g.placeholder("ids", I32, dims![None]);
        let all = g.sparse_conditional_accumulator(
            "all",
            F32,
            dims![5, 2],
            AccumulatorOptions::default(),
        );
        let rows = table.value().embedding(&ids);
        let slices = rows.square().sum(()).gradients(&[&rows]).remove(0);
        let gradient =
            IndexedSlices { values: slices.unwrap(), indices: ids.clone(), dense_shape: None };
        let apply = all.apply_gradient(&gradient, &g.constant(0i64));
        let taken = all.take_gradient(2);
        let step = table.scatter_sub(&taken.indices, &(&taken.values * 0.25)).operation();
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        session.run(&[ids.feed([3i32, 1])], &apply).unwrap();
        session.run(&[ids.feed([3i32, 3])], &apply).unwrap();
        session.run(&[], &step).unwrap();
        let now = session.run(&[], table.value()).unwrap().to_vec::<f32>().unwrap();
        // 1: 1 - 2 / 4. 3: 1 - (2 + 4) / 2 / 4.
        let expected = [1.0, 1.0, 0.5, 0.5, 1.0, 1.0, 0.25, 0.25, 1.0, 1.0];
        assert_eq!(now, expected, "{}", device.name);
    }
}

/// A graph that is put together from its parts has the same accumulators.
#[test]
fn accumulators_of_a_graph_that_was_put_together() {
    let s = Rows::new(Some(3), Reduction::Sum);
    let taken = s.all.take_gradient(2).values;
    let again = Graph::from_parts(s.g.parts()).unwrap();
    let session = Session::new(&again, &Devices::cpu()).unwrap();
    let [indices, values, step] =
        ["indices", "values", "step"].map(|name| again.tensor(name).unwrap());
    let apply = again.operation(&s.apply.name()).unwrap();
    for x in [1.0f32, 2.0] {
        let feeds = [indices.feed([2i64]), values.feed([[x, 0.0]]), step.feed(0i64)];
        session.run(&feeds, &apply).unwrap();
    }
    let name = format!("{}:1", taken.operation().name());
    let taken = session.run(&[], again.tensor(&name).unwrap()).unwrap();
    assert_eq!(taken.to_vec::<f32>().unwrap(), [3.0, 0.0]);
}
