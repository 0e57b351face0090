//! Sparse tensors and indexed slices, fed and fetched as one, and what may not be fed or fetched.

use convoke::prelude::*;
use convoke::{IndexedSlices, SparseTensor};
use convoke_tests::devices;

fn sparse(
    indices: [[i64; 2]; 2],
    values: [f32; 2],
    dense_shape: [i64; 2],
) -> SparseTensor<HostTensor> {
    SparseTensor {
        indices: HostTensor::from(indices),
        values: HostTensor::from(values),
        dense_shape: HostTensor::from(dense_shape),
    }
}

/// `session_test.py`: `testFetchSparseTensor`: alone, in a list, and its parts.
#[test]
fn fetch_sparse_tensor() {
    let g = Graph::new();
    let sp = SparseTensor {
        indices: g.constant([[3i64, 2], [4, 5]]),
        values: g.constant([1.0f32, 2.0]),
        dense_shape: g.constant([7i64, 9]),
    };
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let value = sparse([[3, 2], [4, 5]], [1.0, 2.0], [7, 9]);
    let (alone, [listed]) = session.run(&[], (&sp, [&sp])).unwrap();
    assert_eq!((&alone, &listed), (&value, &value));
    let parts = (&sp.indices, &sp.values, &sp.dense_shape);
    let (indices, values, dense_shape) = session.run(&[], parts).unwrap();
    assert_eq!(SparseTensor { indices, values, dense_shape }, value);
}

/// `session_test.py`: `testFeedSparseTensor`: what is made of three placeholders.
#[test]
fn feed_sparse_tensor() {
    let g = Graph::new();
    let sp = SparseTensor {
        indices: g.placeholder("indices", I64, dims![2, 2]),
        values: g.placeholder("values", F32, dims![2]),
        dense_shape: g.placeholder("dense_shape", I64, dims![2]),
    };
    let doubled = SparseTensor { values: &sp.values * 2.0, ..sp.clone() };
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let value = sparse([[3, 2], [4, 5]], [1.0, 2.0], [7, 9]);
    let feeds = sp.feed(&value);
    assert_eq!(feeds.len(), 3);
    let (same, double) = session.run(&feeds, (&sp, &doubled)).unwrap();
    assert_eq!(same, value);
    assert_eq!(double, sparse([[3, 2], [4, 5]], [2.0, 4.0], [7, 9]));
}

/// `session_test.py`: `testFeedSparsePlaceholder`.
#[test]
fn feed_sparse_placeholder() {
    let g = Graph::new();
    let sp = g.sparse_placeholder("sp", F32, dims![None, None]);
    let doubled = SparseTensor { values: &sp.values * 2.0, ..sp.clone() };
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let value = sparse([[3, 2], [4, 5]], [1.0, 2.0], [7, 9]);
    let (same, double) = session.run(&sp.feed(&value), (&sp, &doubled)).unwrap();
    assert_eq!(same, value);
    assert_eq!(double, sparse([[3, 2], [4, 5]], [2.0, 4.0], [7, 9]));
    let error = session.run(&sp.feed(&value)[..2], &sp).unwrap_err();
    assert!(error.message().contains("is needed and not fed"), "{error}");
}

/// `session_test.py`: `testFeedSparsePlaceholderConstantShape`.
#[test]
fn feed_sparse_placeholder_constant_shape() {
    for device in devices() {
        let g = Graph::new();
        let sp = g.sparse_placeholder("sp", F32, dims![3, 2]);
        let dense = sp.to_dense();
        let session = device.session(&g);
        let value = sparse([[0, 1], [2, 0]], [1.0, 2.0], [3, 2]);
        let feeds = sp.feed(&value);
        assert_eq!(feeds.len(), 2);
        let (back, dense_) = session.run(&feeds, (&sp, &dense)).unwrap();
        assert_eq!(back, value);
        let expected = [0.0, 1.0, 0.0, 0.0, 2.0, 0.0];
        assert_eq!(dense_.to_vec::<f32>().unwrap(), expected, "{}", device.name);
        // Outside along an axis, though the place in a row of all elements would be inside.
        let outside = sparse([[0, 2], [2, 0]], [1.0, 2.0], [3, 2]);
        let error = session.run(&sp.feed(&outside), &dense).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}", device.name);
        // The shape of the placeholder is a constant, and of no other is a value.
        let other = sparse([[0, 1], [2, 0]], [1.0, 2.0], [3, 3]);
        let error = session.run(&sp.feed(&other), &sp).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}", device.name);
        assert!(error.message().contains("[3, 2], got [3, 3]"), "{error}");
    }
}

/// `session_test.py`: `testFetchIndexedSlices`, `testFeedIndexedSlices`, with and without a dense shape.
#[test]
fn feed_and_fetch_indexed_slices() {
    let g = Graph::new();
    let values = g.placeholder("values", F32, dims![None, 2]);
    let indices = g.placeholder("indices", I32, dims![None]);
    let shape = g.constant([4i64, 2]);
    let with = IndexedSlices {
        values: values.clone(),
        indices: indices.clone(),
        dense_shape: Some(shape.clone()),
    };
    let without = IndexedSlices { dense_shape: None, ..with.clone() };
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let value = IndexedSlices {
        values: HostTensor::from([[1.0f32, 2.0], [3.0, 4.0]]),
        indices: HostTensor::from([3i32, 0]),
        dense_shape: None,
    };
    let fetch = (&with, &without, with.to_dense());
    let (with_, without_, dense) = session.run(&without.feed(&value), &fetch).unwrap();
    assert_eq!(without_, value);
    assert_eq!(with_.dense_shape, Some(HostTensor::from([4i64, 2])));
    assert_eq!(dense.to_vec::<f32>().unwrap(), [3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
    let refused = without.to_dense();
    assert_eq!(refused.node().error().unwrap().message(), "slices without a dense shape");
}

/// `control_flow_ops_py_test.py`: `testCondIndexedSlices`, `testCondSparseTensor`.
#[test]
fn cond_of_composites() {
    let g = Graph::new();
    let p = g.placeholder("p", Bool, dims![]);
    let sp = g.sparse_placeholder("sp", F32, dims![3, 2]);
    let slices = |x: f32| IndexedSlices {
        values: g.constant([x, x]),
        indices: g.constant([0i32, 1]),
        dense_shape: None,
    };
    let (sparse_, slices) = g.cond(
        &p,
        || (SparseTensor { values: &sp.values * 10.0, ..sp.clone() }, slices(1.0)),
        || (sp.clone(), slices(2.0)),
    );
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let value = sparse([[0, 1], [2, 0]], [1.0, 2.0], [3, 2]);
    let run = |p_: bool| {
        let mut feeds = sp.feed(&value);
        feeds.push(p.feed(p_));
        session.run(&feeds, (&sparse_, &slices)).unwrap()
    };
    let (taken, slices) = run(true);
    assert_eq!(taken, sparse([[0, 1], [2, 0]], [10.0, 20.0], [3, 2]));
    assert_eq!(slices.values, HostTensor::from([1.0f32, 1.0]));
    assert_eq!(run(false).0, value);
}

/// `control_flow_ops_py_test.py`: `testFetchable`, `testFeedable`; `ops_test.py`: `testPreventFeeding`.
#[test]
fn what_is_marked_is_not_fed_or_fetched() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let y = (&x * 2.0).named("y");
    let z = &y + 1.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let run = |feeds: &[Feed<'_>], fetch: &Tensor| session.run(feeds, fetch);
    assert!(run(&[y.feed(1.0f32)], &z).is_ok());
    assert!(run(&[x.feed(1.0f32)], &y).is_ok());
    g.prevent_feeding(&y);
    g.prevent_fetching(&y.operation());
    assert!(!g.is_feedable(y.output()) && !g.is_fetchable(y.output().node));
    assert!(g.is_feedable(x.output()) && g.is_fetchable(z.output().node));
    // What was planned before is refused, too.
    let error = run(&[y.feed(1.0f32)], &z).unwrap_err();
    assert_eq!(error.message(), "the tensor is marked as one that may not be fed");
    assert_eq!(error.node(), Some("y"));
    let error = run(&[x.feed(1.0f32)], &y).unwrap_err();
    assert_eq!(error.message(), "the tensor is marked as one that may not be fetched");
    assert_eq!(run(&[x.feed(1.0f32)], &z).unwrap().scalar::<f32>().unwrap(), 3.0);
}
