//! Feeds: conversions, and refusals before any work.

use std::sync::{Mutex, mpsc};
use std::time::Duration;

use convoke::input::InputExt;
use convoke::prelude::*;
use convoke::{Feed, Shape, ndarray};
use convoke_tests::{cast, devices, ramp};

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
    assert_eq!(error.message(), "expected a feed of shape [s0, 2], got [2]");
    assert_eq!(error.node(), Some("x:0"));
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

/// Sizes of which each is the same: computed from equal elements, when compiling.
#[test]
fn shapes_can_be_computed_from_equal_elements() {
    let g = Graph::new();
    let sizes = g.constant([2i64, 2]) + 1;
    let ones = g.constant(1.0f32).broadcast_to_sizes(&sizes);
    let one = g.constant(2.0f32).broadcast_to_sizes(&(g.constant([3i64]) - 1));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let (ones, one) = session.run(&[], (&ones, &one)).unwrap();
    assert_eq!((ones.dims(), ones.to_vec::<f32>().unwrap()), (&[3, 3][..], vec![1.0; 9]));
    assert_eq!(one.to_vec::<f32>().unwrap(), [2.0, 2.0]);
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

/// TensorFlow: `testCreate`: a feed by name overrides a constant, for its run alone.
#[test]
fn create() {
    for device in devices() {
        let g = Graph::new();
        let input = g.constant(10.0f32).named("inp");
        let doubled = (&input + &input).named("out");
        let session = device.session(&g);
        let by_name = |name: &str| g.tensor(name).unwrap();
        let run = |feeds: &[Feed<'_>]| {
            session.run(feeds, by_name("out:0")).unwrap().scalar::<f32>().unwrap()
        };
        assert_eq!(run(&[by_name("inp:0").feed(11.0)]), 22.0, "{}", device.name);
        assert_eq!(run(&[]), 20.0, "{}", device.name);
        assert_eq!(run(&[doubled.feed(1.0)]), 1.0, "{}", device.name);
    }
}

/// TensorFlow: `testTensorGetMethod`.
#[test]
fn tensor_get_method() {
    for device in devices() {
        let g = Graph::new();
        let x = g.constant([[1.0f32, 1.0]]).named("x");
        let y = g.constant([[2.0f32, 2.0], [3.0, 3.0]]);
        let c = x.matmul(&y);
        let session = device.session(&g);
        let of = |feeds: &[Feed<'_>]| session.run(feeds, &c).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(of(&[]), [5.0, 5.0], "{}", device.name);
        assert_eq!(of(&[g.tensor("x").unwrap().feed([[2.0f32, 2.0]])]), [10.0, 10.0]);
    }
}

/// TensorFlow: `testOperationRunMethod`: what is assigned is fed.
#[test]
fn operation_run_method() {
    for device in devices() {
        let g = Graph::new();
        let a = g.constant([[1.0f32, 2.0]]);
        let v = g.variable("v", Init::Zeros, F32, [1, 2]);
        let assign = v.assign(&a).operation();
        let session = device.session(&g);
        let value = || session.run(&[], &v).unwrap().to_vec::<f32>().unwrap();
        session.run(&[], &assign).unwrap();
        assert_eq!(value(), [1.0, 2.0], "{}", device.name);
        session.run(&[a.feed([[3.0f32, 4.0]])], &assign).unwrap();
        assert_eq!(value(), [3.0, 4.0], "{}", device.name);
    }
}

/// TensorFlow: `testRunFeedDict`: any tensor, by handle and by name, from lists and numbers.
#[test]
fn run_feed_dict() {
    for device in devices() {
        let g = Graph::new();
        let zeros = g.fill(&[2, 2], 0.0f32).named("zeros");
        let y = &zeros * 2.0;
        let session = device.session(&g);
        let of = |feed: Feed<'_>| session.run(&[feed], &y).unwrap().to_vec::<f32>().unwrap();
        let rows = ndarray::array![[1.0f32, 1.0], [1.0, 1.0]];
        assert_eq!(of(zeros.feed(&rows)), [2.0; 4], "{}", device.name);
        assert_eq!(of(g.tensor("zeros:0").unwrap().feed(&rows)), [2.0; 4]);
        assert_eq!(of(zeros.feed([[1.0f32, 1.0], [1.0, 1.0]])), [2.0; 4]);
        let (flat, host) = ([1.0f32; 4], HostTensor::new(&[2, 2], vec![1.0f32; 4]).unwrap());
        assert_eq!(of(zeros.feed((&flat[..], [2, 2]))), [2.0; 4]);
        assert_eq!(of(zeros.feed(&host)), [2.0; 4]);
        assert_eq!(of(y.feed(host)), [1.0; 4]);
    }
}

/// TensorFlow: `testFeedAndFetch`: every dtype, also in shapes without elements, itself and through an identity, by
/// runs and by callables.
#[test]
fn feed_and_fetch() {
    for device in devices() {
        for dtype in DType::NUMERIC {
            for dims in [&[32, 4, 128][..], &[37], &[2, 0, 6], &[0, 0, 0]] {
                let g = Graph::new();
                let x = g.placeholder("x", dtype, convoke::Dims::UnknownRank);
                let y = x.identity();
                let session = device.session_with(&g, SessionOptions::default());
                let value = cast(&ramp(dims), dtype);
                let feeds = [x.feed(&value)];
                let what = format!("{dtype}{dims:?} on {}", device.name);
                assert_eq!(session.run(&feeds, &y).unwrap(), value, "{what}");
                assert_eq!(session.run(&feeds, &x).unwrap(), value, "{what}");
                let both = session.run(&feeds, (&x, &y)).unwrap();
                assert_eq!(both, (value.clone(), value.clone()), "{what}");
                let callable = session.callable(&[&x], (&x, &y)).unwrap();
                assert_eq!(callable.call([&value]).unwrap(), both, "{what}");
            }
        }
    }
}

/// TensorFlow: `testFeedPrecisionLossError`.
#[test]
fn feed_precision_loss_error() {
    let g = Graph::new();
    let (narrow, wide) = (g.placeholder("n", I32, dims![]), g.placeholder("w", I64, dims![]));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let large = i64::from(i32::MAX) + 1;
    for feed in [narrow.feed(large), narrow.feed(i64::MIN), wide.feed(u64::MAX)] {
        let fetch = feed.tensor.clone();
        refused(session.run(&[feed], fetch), "expected a feed of i");
    }
    let fits = session.run(&[narrow.feed(i64::from(i32::MAX))], &narrow).unwrap();
    assert_eq!(fits.scalar::<i32>().unwrap(), i32::MAX);
    assert_eq!(session.run(&[wide.feed(large)], &wide).unwrap().scalar::<i64>().unwrap(), large);
}

/// The shapes of TensorFlow's tests of strings.
const STRING_DIMS: [&[usize]; 4] = [&[32, 4, 128], &[37], &[2, 0, 6], &[0, 0, 0]];

fn strings(dims: &[usize]) -> HostTensor {
    let n = dims.iter().product();
    HostTensor::strings(dims, (0..n).map(|i: usize| i.to_string()).collect::<Vec<_>>()).unwrap()
}

/// TensorFlow: `testStringFetch`.
#[test]
fn string_fetch() {
    for dims in STRING_DIMS {
        let g = Graph::new();
        let c = g.constant(strings(dims));
        let got = Session::new(&g, &Devices::cpu()).unwrap().run(&[], &c).unwrap();
        assert_eq!((got.dtype(), got.dims()), (Strings, dims));
        assert_eq!(got, strings(dims));
    }
}

/// TensorFlow: `testStringFeed`.
#[test]
fn string_feed() {
    for dims in STRING_DIMS {
        let g = Graph::new();
        let x = g.placeholder("x", Strings, convoke::Dims::from(dims.to_vec()));
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        let value = strings(dims);
        let (fed, identity) = session.run(&[x.feed(&value)], (&x, x.identity())).unwrap();
        assert_eq!((&fed, &identity), (&value, &value));
    }
}

fn through(words: &[&[u8]]) -> Vec<Vec<u8>> {
    let value = HostTensor::strings(&[words.len()], words.to_vec()).unwrap();
    let g = Graph::new();
    let x = g.placeholder("x", Strings, dims![None]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let got = session.run(&[x.feed(value)], x.identity()).unwrap();
    got.as_strings().unwrap().to_vec()
}

/// TensorFlow: `testStringFeedWithNullCharacters`.
#[test]
fn string_feed_with_null_characters() {
    assert_eq!(
        through(&[b"\n\x01\x00", b"\n\x00\x01", b"\0"]),
        [&b"\n\x01\x00"[..], b"\n\x00\x01", b"\0"]
    );
}

/// TensorFlow: `testStringFeedWithUnicode`; and bytes that are no text.
#[test]
fn string_feed_with_unicode() {
    let words = ["\u{3c0} a", "A\u{1f600}", ""];
    let got = through(&words.map(str::as_bytes));
    assert_eq!(got.iter().map(|w| std::str::from_utf8(w).unwrap()).collect::<Vec<_>>(), words);
    assert_eq!(through(&[&[0xff, 0xfe]]), [[0xff, 0xfe]]);
}

/// TensorFlow: `testFeedShapeCompatibility`: static shapes before the run, those that are computed in it.
#[test]
fn feed_shape_compatibility() {
    for device in devices() {
        let g = Graph::new();
        let some = g.constant([2.0f32; 4]);
        let sizes = g.placeholder_with_default("sizes", [2i32, 2], dims![2]);
        let reshaped = some.reshape_to(&sizes);
        let fixed = some.reshape(&[2, 2]);
        let session = device.session(&g);
        let before = session.state_digest().unwrap();
        assert_eq!(session.run(&[], &reshaped).unwrap().dims(), [2, 2], "{}", device.name);
        refused(
            session.run(&[fixed.feed([[1.0f32, 2.0, 3.0]])], &fixed),
            "expected a feed of shape [2, 2], got [1, 3]",
        );
        refused(
            session.run(&[sizes.feed([3i32])], &reshaped),
            "expected a feed of shape [2], got [1]",
        );
        let error = session.run(&[sizes.feed([3i32, 7])], &reshaped);
        refused(error, "cannot reshape [4], which has 4 elements, to [3, 7]");
        assert_eq!(session.run(&[sizes.feed([4i32, 1])], &reshaped).unwrap().dims(), [4, 1]);
        assert_eq!(session.state_digest().unwrap(), before);
    }
}

/// TensorFlow: `testAutoConvertAndCheckData`.
#[test]
fn auto_convert_and_check_data() {
    refused(fed(Strings, |x| x.feed(1i32)), "expected a feed of string, got i32");
    refused(fed(Strings, |x| x.feed([1.0f32])), "expected a feed of string, got f32");
    refused(fed(I32, |x| x.feed("1")), "expected a feed of i32, got string");
}

/// TensorFlow: `MultipleFeedTest` of `direct_session_test.cc`: the order of feeds and that of fetches are apart.
#[test]
fn multiple_feed() {
    for device in devices() {
        let g = Graph::new();
        let (first, second) = (g.constant(7.0f32), g.constant(1.0f32));
        let (a, b) = (first.identity(), second.identity());
        let session = device.session(&g);
        let (f, s) = (first.feed(11.0), second.feed(22.0));
        let run = |feeds: &[Feed<'_>], fetches: [&Tensor; 2]| {
            session.run(feeds, fetches).map(|got| got.map(|x| x.scalar::<f32>().unwrap()))
        };
        for feeds in [[f.clone(), s.clone()], [s.clone(), f.clone()]] {
            assert_eq!(run(&feeds, [&a, &b]).unwrap(), [11.0, 22.0], "{}", device.name);
            assert_eq!(run(&feeds, [&b, &a]).unwrap(), [22.0, 11.0], "{}", device.name);
        }
        assert_eq!(run(&[], [&b, &a]).unwrap(), [1.0, 7.0]);
        let error = run(&[f.clone(), f], [&a, &b]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("fed twice"), "{error}");
    }
}

/// TensorFlow: `MultipleFeedTest_Callable`.
#[test]
fn multiple_feed_callable() {
    for device in devices() {
        let g = Graph::new();
        let (first, second) = (g.constant(7.0f32), g.constant(1.0f32));
        let (a, b) = (first.identity(), second.identity());
        let session = device.session(&g);
        let call = |feeds: [&Tensor; 2], fetches: [&Tensor; 2], values: [f32; 2]| {
            let callable = session.callable(&feeds, fetches).unwrap();
            callable.call(values).unwrap().map(|x| x.scalar::<f32>().unwrap())
        };
        let [f, s] = [&first, &second];
        assert_eq!(call([f, s], [&a, &b], [11.0, 22.0]), [11.0, 22.0], "{}", device.name);
        assert_eq!(call([f, s], [&b, &a], [11.0, 22.0]), [22.0, 11.0]);
        assert_eq!(call([s, f], [&a, &b], [22.0, 11.0]), [11.0, 22.0]);
        assert_eq!(call([s, f], [&b, &a], [22.0, 11.0]), [22.0, 11.0]);
        let error = session.callable(&[f, f], (&a, &b)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("fed twice"), "{error}");
    }
}

/// TensorFlow: `PartialRunMultiOutputFeed` of `direct_session_test.cc`, of a whole run: a later output of an operation
/// is fed by itself.
#[test]
fn multi_output_feed() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 2, [(F32, dims![]), (F32, dims![])]);
    let taken = q.dequeue();
    let y = &taken[1] * 2.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    assert_eq!(session.run(&[taken[1].feed(4.0)], &y).unwrap().scalar::<f32>().unwrap(), 8.0);
}

/// TensorFlow: `CreateGraphFailsWhenAssigningAFedVar`. There, a variable that is fed is no variable for the run, and
/// cannot be assigned to; here a read is fed, the variable is what it was, and its handle cannot be fed.
#[test]
fn create_graph_fails_when_assigning_a_fed_var() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(1.0), F32, []);
        let assign = v.assign(v.value() * 10.0);
        let session = device.session(&g);
        session.run(&[], v.initializer()).unwrap();
        let value = || session.run(&[], &v).unwrap().scalar::<f32>().unwrap();
        let error = session.run(&[v.handle().feed(2.0)], assign.operation()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert_eq!(value(), 1.0, "{}", device.name);
        session.run(&[v.feed(2.0)], assign.operation()).unwrap();
        assert_eq!(value(), 20.0, "{}", device.name);
    }
}

/// Elements that are made ahead come in their order, and each but the first is made while the run before it is under way:
/// that run ends once the element is begun, and the element is made once that run has begun.
#[test]
fn elements_are_made_while_runs_are_under_way() {
    const N: usize = 5;
    const PATIENCE: Duration = Duration::from_secs(60);
    for device in devices() {
        for depth in [1, 2] {
            let (begins, begun) = mpsc::channel::<usize>();
            let (runs, running) = mpsc::channel::<usize>();
            let elements = (0..N).map(move |at| {
                begins.send(at).unwrap();
                while at > 0 && running.recv_timeout(PATIENCE).unwrap() + 1 < at {}
                HostTensor::from([at as f32; 4])
            });
            let begun = Mutex::new(begun);
            let waits = move |inputs: &[HostTensor]| {
                let at = inputs[0].to_vec::<f32>()?[0] as usize / 2;
                // There is nobody any more who makes an element when the last is made.
                let _ = runs.send(at);
                let begun = begun.lock().unwrap();
                while at + 1 < N && begun.recv_timeout(PATIENCE).unwrap() < at + 1 {}
                Ok(inputs.to_vec())
            };
            let g = Graph::new();
            let x = g.placeholder("x", F32, dims![4]);
            let waited = g.host_function("waits", &[&(&x * 2.0)], [(F32, dims![4])], waits);
            let sum = (&waited[0] + 1.0).sum(());
            let session = device.session(&g);
            let sums: Vec<f32> = elements
                .prefetch(depth)
                .map(|element| session.run(&[x.feed(&element)], &sum).unwrap().scalar().unwrap())
                .collect();
            // Four times `2 at + 1`.
            assert_eq!(sums, [4.0, 12.0, 20.0, 28.0, 36.0], "{depth} ahead on {}", device.name);
        }
    }
}
