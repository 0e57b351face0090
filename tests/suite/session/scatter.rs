//! Scatters into variables: values by hand, order, indices out of range, concurrent runs.

use convoke::prelude::*;
use convoke_tests::devices;

/// `v` after one run of `build`, and what the run gives.
#[track_caller]
fn stored(
    start: impl Into<HostTensor>,
    build: impl Fn(&Variable) -> Tensor,
    expected: impl Into<HostTensor>,
) {
    let (start, expected) = (start.into(), expected.into());
    for device in devices() {
        let g = Graph::new();
        let sizes = start.dims().to_vec();
        let v = g.variable("v", Init::Value(start.clone()), start.dtype(), sizes);
        let step = build(&v);
        assert!(g.check().is_empty(), "{:?}", g.check());
        // Other dtypes have no kernels on a GPU.
        let soft_placement = start.dtype() != F32;
        let options = SessionOptions { soft_placement, ..SessionOptions::default() };
        let session = device.session_with(&g, options);
        session.run(&[], g.initializers()).unwrap();
        let given = session.run(&[], &step).unwrap();
        assert_eq!(given, expected, "given on {}", device.name);
        assert_eq!(session.run(&[], &v).unwrap(), expected, "kept on {}", device.name);
    }
}

fn at(v: &Variable, indices: impl Into<HostTensor>) -> Tensor {
    v.graph().constant(indices.into())
}

/// `scatter_ops_test.py`, `testScatterUpdate` and its kin, with equal indices.
#[test]
fn slices_are_changed_in_the_order_of_the_indices() {
    let start = [[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]];
    let updates = || HostTensor::from([[10.0f32, 20.0], [0.5, 2.0], [100.0, 8.0]]);
    let rows = |v: &Variable| at(v, [2i32, 0, 2]);
    stored(
        start,
        |v| v.scatter_update(rows(v), updates()),
        [[0.5f32, 2.0], [3.0, 4.0], [100.0, 8.0]],
    );
    stored(
        start,
        |v| v.scatter_add(rows(v), updates()),
        [[1.5f32, 4.0], [3.0, 4.0], [115.0, 34.0]],
    );
    stored(
        start,
        |v| v.scatter_sub(rows(v), updates()),
        [[0.5f32, 0.0], [3.0, 4.0], [-105.0, -22.0]],
    );
    stored(
        start,
        |v| v.scatter_mul(rows(v), updates()),
        [[0.5f32, 4.0], [3.0, 4.0], [5000.0, 960.0]],
    );
    stored(
        start,
        |v| v.scatter_div(rows(v), HostTensor::from([[2.0f32, 4.0], [0.5, 2.0], [4.0, 0.5]])),
        [[2.0f32, 1.0], [3.0, 4.0], [0.625, 3.0]],
    );
    stored(start, |v| v.scatter_min(rows(v), updates()), [[0.5f32, 2.0], [3.0, 4.0], [5.0, 6.0]]);
    stored(
        start,
        |v| v.scatter_max(rows(v), updates()),
        [[1.0f32, 2.0], [3.0, 4.0], [100.0, 20.0]],
    );
}

#[test]
fn of_every_kind_of_dtype_index_and_shape() {
    stored(
        [1i64, 2, 3],
        |v| v.scatter_add(at(v, [1i64, 1]), HostTensor::from([i64::MAX, 5])),
        [1, i64::MIN + 6, 3],
    );
    stored([250u8, 2], |v| v.scatter_add(at(v, [0u8]), HostTensor::from([10u8])), [4u8, 2]);
    // `testBooleanScatterUpdate`.
    stored(
        [true, false],
        |v| {
            let first = v.scatter_update(at(v, 1i32), HostTensor::from(true));
            v.graph().after(&[&first.operation()], || {
                v.scatter_update(at(v, 0i64), HostTensor::from(false))
            })
        },
        [false, true],
    );
    // A scalar is repeated; indices of two axes.
    stored([1i32, 2, 3, 4], |v| v.scatter_sub(at(v, [[0i32, 3], [3, 3]]), 10), [-9i32, 2, 3, -26]);
    // No index, and slices without elements.
    let none = HostTensor::new(&[0], Vec::<i32>::new()).unwrap();
    let no_rows = HostTensor::new(&[0], Vec::<f32>::new()).unwrap();
    stored([1.0f32, 2.0], |v| v.scatter_add(at(v, none.clone()), no_rows.clone()), [1.0f32, 2.0]);
    let empty = HostTensor::new(&[3, 0], Vec::<f32>::new()).unwrap();
    let update = HostTensor::new(&[1, 0], Vec::<f32>::new()).unwrap();
    stored(empty.clone(), |v| v.scatter_add(at(v, [2i32]), update.clone()), empty);
}

/// `testScatterOutOfRangeCpu`.
#[test]
fn an_index_out_of_range_changes_nothing() {
    for device in devices() {
        let g = Graph::new();
        let start = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let v = g.variable("v", Init::Value(start.into()), F32, [6]);
        let other = g.variable("other", Init::Zeros, F32, []);
        let at = g.placeholder("at", I32, dims![None]);
        let far = g.placeholder("far", I64, dims![None]);
        let updates = g.placeholder("updates", F32, dims![None]);
        let bump = other.assign_add(1.0).operation();
        let near = v.scatter_add(&at, &updates).operation();
        let wide = v.scatter_update(&far, &updates).operation();
        let session = device.session_with(&g, SessionOptions::default());
        session.run(&[], g.initializers()).unwrap();
        let before = session.state_digest().unwrap();
        let check = |error: convoke::Error, index: i64, position, node| {
            let says =
                format!("index {index} at position {position} is out of range for an axis of 6");
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}: {error}", device.name);
            assert_eq!((error.message(), error.node()), (&*says, Some(node)), "{}", device.name);
            assert_eq!(session.state_digest().unwrap(), before, "{}", device.name);
        };
        for (indices, position) in [([-1i32, 0, 5], 0), ([2, 0, 6], 2)] {
            let feeds = [at.feed(indices), updates.feed([-3.0f32, -4.0, -5.0])];
            let error = session.run(&feeds, (&near, &bump)).unwrap_err();
            check(error, indices[position].into(), position, "scatter_add");
        }
        for index in [1i64 << 32, -1] {
            let feeds = [far.feed([0, index]), updates.feed([-3.0f32, -4.0])];
            let error = session.run(&feeds, (&wide, &bump)).unwrap_err();
            check(error, index, 1, "scatter_update");
        }
        let feeds = [at.feed([2i32, 0, 5]), updates.feed([-3.0f32, -4.0, -5.0])];
        session.run(&feeds, (&near, &bump)).unwrap();
        let kept = session.run(&[], &v).unwrap();
        assert_eq!(kept.to_vec::<f32>().unwrap(), [-3.0, 2.0, 0.0, 4.0, 5.0, 1.0]);
    }
}

#[test]
fn concurrent_scatters_lose_nothing() {
    for device in devices() {
        let g = Graph::new();
        let sums = g.variable("sums", Init::Zeros, F32, [4, 50]);
        let last = g.variable("last", Init::Zeros, I32, [4]);
        let at = g.placeholder("at", I32, dims![1]);
        let number = g.placeholder("number", I32, dims![1]);
        let step =
            [sums.scatter_add(&at, 1.0).operation(), last.scatter_update(&at, &number).operation()];
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        std::thread::scope(|scope| {
            for row in 0..4i32 {
                let (session, step, at, number) = (&session, &step, &at, &number);
                scope.spawn(move || {
                    for i in 1..=25i32 {
                        session.run(&[at.feed([row]), number.feed([i * 10 + row])], step).unwrap();
                    }
                });
            }
        });
        let (sums, last) = session.run(&[], (&sums, &last)).unwrap();
        assert_eq!(sums.to_vec::<f32>().unwrap(), [25.0; 200], "{}", device.name);
        assert_eq!(last.to_vec::<i32>().unwrap(), [250, 251, 252, 253], "{}", device.name);
    }
}

#[test]
fn a_read_that_follows_sees_what_is_stored() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(1.0), F32, [3]);
        let set = v.assign(v.value() * 4.0).operation();
        let add = g.after(&[&set], || v.scatter_add(at(&v, [1i32]), 0.5));
        let later = g.after(&[&add.operation()], || v.read() * 2.0);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let (before, later) = session.run(&[], (&v, &later)).unwrap();
        assert_eq!(before.to_vec::<f32>().unwrap(), [1.0; 3], "{}", device.name);
        assert_eq!(later.to_vec::<f32>().unwrap(), [8.0, 9.0, 8.0], "{}", device.name);
        assert_eq!(session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(), [4.0, 4.5, 4.0]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, F32, [4, 2]);
    let scalar = g.variable("scalar", Init::Zeros, F32, []);
    let flags = g.variable("flags", Init::Zeros, Bool, [2]);
    v.scatter_add(at(&v, [0.5f32]), 1.0);
    v.scatter_add(at(&v, [1i32]), HostTensor::from([[1.0f32, 2.0, 3.0]]));
    v.scatter_update(at(&v, [1i32]), HostTensor::from([[1.0f64, 2.0]]));
    scalar.scatter_update(at(&v, [0i32]), 1.0);
    flags.scatter_add(at(&v, [0i32]), HostTensor::from([true]));
    let messages: Vec<String> = g.check().iter().map(|e| e.message().to_owned()).collect();
    assert_eq!(
        messages,
        [
            "the indices of a scatter needs a tensor of integers, got f32; cast it first",
            "expected shape [1, 2], got [1, 3]",
            "dtypes differ: f32 and f64; cast one of them",
            "axis 0 is out of range for rank 0",
            "scattered arithmetic needs a tensor of numbers, got bool; cast it first",
        ]
    );
}
