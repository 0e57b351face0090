//! Feeds: conversions, and refusals before any work.

use convoke::prelude::*;
use convoke::{Feed, Shape, ndarray};
use convoke_tests::devices;

fn fed(dtype: DType, feed: impl FnOnce(&Tensor) -> Feed<'static>) -> convoke::Result<HostTensor> {
    let g = Graph::new();
    let x = g.placeholder("x", dtype, convoke::Dims::UnknownRank);
    Session::new(&g, &Devices::cpu())?.run(&[feed(&x)], &x)
}

#[track_caller]
fn refused(result: convoke::Result<HostTensor>, part: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.message().contains(part), "{error}");
}

#[test]
fn three_dtypes_in_one_run() {
    let g = Graph::new();
    let text = g.placeholder("text", Strings, dims![]);
    let count = g.placeholder("count", I32, dims![]);
    let x = g.placeholder("x", F32, dims![None]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let feeds = [text.feed("hello"), count.feed(3i32), x.feed([1.5f32])];
    let (text, count, x) =
        session.run(&feeds, (&text.identity(), &(&count + 1i32), &(&x * 2.0))).unwrap();
    assert_eq!(text.as_strings().unwrap(), [b"hello".to_vec()]);
    assert_eq!((count.scalar::<i32>().unwrap(), x.to_vec::<f32>().unwrap()), (4, vec![3.0]));
}

#[test]
fn what_always_fits_is_converted() {
    assert_eq!(fed(F32, |x| x.feed([1u8, 255])).unwrap().to_vec::<f32>().unwrap(), [1.0, 255.0]);
    assert_eq!(fed(I64, |x| x.feed([-1i32])).unwrap().to_vec::<i64>().unwrap(), [-1]);
    assert_eq!(fed(F64, |x| x.feed([0.5f32])).unwrap().to_vec::<f64>().unwrap(), [0.5]);
    assert_eq!(fed(I32, |x| x.feed([7i64])).unwrap().to_vec::<i32>().unwrap(), [7]);
    assert_eq!(fed(F32, |x| x.feed(0.1f64)).unwrap().scalar::<f32>().unwrap(), 0.1);
    assert_eq!(fed(F32, |x| x.feed(3i32)).unwrap().scalar::<f32>().unwrap(), 3.0);
}

#[test]
fn what_may_not_fit_is_refused() {
    refused(fed(I32, |x| x.feed([1i64 << 40])), "element 0 is 1099511627776");
    refused(fed(U8, |x| x.feed([1i32, -1])), "element 1 is -1");
    refused(fed(I32, |x| x.feed([1.5f32])), "expected a feed of i32, got f32[1]");
    refused(fed(F32, |x| x.feed([1.5f64])), "expected a feed of f32, got f64[1]");
    refused(fed(F32, |x| x.feed([1i32])), "expected a feed of f32, got i32[1]");
    refused(fed(Bool, |x| x.feed([1u8])), "expected a feed of bool");
}

#[test]
fn shapes_and_duplicates_are_checked() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None, 2]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let error = session.run(&[x.feed([1.0f32, 2.0])], &x).unwrap_err();
    assert_eq!(error.to_string(), "x:0: expected a feed of shape [s0, 2], got [2]");
    let empty: [[f32; 2]; 0] = [];
    assert_eq!(session.run(&[x.feed(empty)], &(&x * 2.0)).unwrap().dims(), [0, 2]);
    let twice = [x.feed([[1.0f32, 2.0]]), x.feed([[1.0f32, 2.0]])];
    refused(session.run(&twice, &x), "fed twice");
    refused(session.run(&[], &x.relu()), "is needed and not fed");
    let wrong = session.run(&[x.feed((&[1.0f32, 2.0, 3.0][..], [2, 2]))], &x);
    refused(wrong, "expected 4 elements for shape [2, 2], got 3");
}

#[test]
fn arrays_in_any_order() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None, None]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let array = ndarray::array![[1.0f32, 2.0], [3.0, 4.0]];
    let flipped = array.t();
    let y = session.run(&[x.feed(&flipped)], &(&x + 0.0)).unwrap();
    assert_eq!(y.view::<f32>().unwrap(), flipped.into_dyn());
    assert_eq!(
        HostTensor::try_from(array.clone()).unwrap().to_array::<f32>().unwrap(),
        array.into_dyn()
    );
}

#[test]
fn a_default_stands_in_and_shapes_may_change() {
    let g = Graph::new();
    let x = g.placeholder_with_default("x", [1.0f32, 2.0], dims![None]);
    let y = x.sum(());
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    assert_eq!(session.run(&[], &y).unwrap().scalar::<f32>().unwrap(), 3.0);
    for n in 0..5usize {
        let fed = vec![1.0f32; n];
        assert_eq!(session.run(&[x.feed(&fed)], &y).unwrap().scalar::<f32>().unwrap(), n as f32);
    }
}

#[test]
fn shapes_can_be_computed_from_feeds() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let sizes = g.placeholder("sizes", I32, dims![2]);
    let y = x.reshape_to(&sizes).sum(0);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for (sizes_fed, expected) in [([2i32, 3], vec![5.0f32, 7.0, 9.0]), ([3, 2], vec![9.0, 12.0])] {
        let feeds = [x.feed([1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]), sizes.feed(sizes_fed)];
        assert_eq!(session.run(&feeds, &y).unwrap().to_vec::<f32>().unwrap(), expected);
    }
    let misfit = [x.feed([1.0f32; 5]), sizes.feed([2i32, 3])];
    refused(session.run(&misfit, &y), "cannot reshape [5], which has 5 elements, to [2, 3]");
}

#[test]
fn more_than_the_memory_is_refused_before_it_runs() {
    let g = Graph::new();
    let huge = g.fill(&[1 << 40], 1.0f32);
    let fits = g.fill(&[4], 1.0f32);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let error = session.run(&[], &huge).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    assert!(error.message().contains("4398046511104 bytes"), "{error}");
    let error = session.run(&[], g.range(0, i32::MAX)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unimplemented, "{error}");
    let overflow = g.fill(&[1 << 40, 1 << 40], 1.0f32);
    assert_eq!(session.run(&[], &overflow).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(session.run(&[], &fits).unwrap().to_vec::<f32>().unwrap(), [1.0; 4]);
}

/// A mean of nothing is NaN, as in TensorFlow; a gradient summed over no example is 0.
#[test]
fn batches_of_nothing_work() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 3]);
        let labels = g.placeholder("labels", I32, dims![None]);
        let w = g.variable("w", Init::Constant(1.0), F32, [3, 2]);
        let logits = x.matmul(&w);
        let loss = logits.cross_entropy(&labels).mean(());
        let step = Sgd::new(0.1).minimize(&loss);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let none: HostTensor = Vec::<f32>::new().into();
        let none = none.reshaped(Shape::new(&[0, 3]).unwrap()).unwrap();
        let feeds = [x.feed(none), labels.feed(Vec::<i32>::new())];
        let (logits, ()) = session.run(&feeds, (&logits, &step)).unwrap();
        assert_eq!(logits.shape().dims(), [0, 2], "{}", device.name);
        let w = session.run(&[], &w).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(w, [1.0; 6], "{}", device.name);
        assert!(session.run(&feeds, &loss).unwrap().scalar::<f32>().unwrap().is_nan());
    }
}
