//! Callables in which the value of one tensor stands for another. TensorFlow: `TensorConnection` of
//! `core/common_runtime/direct_session_test.cc`, by meaning.

use convoke::prelude::*;
use convoke::{CallableOptions, LookupTable, RunOptions};
use convoke_tests::devices;

fn connect(from: &Tensor, to: &Tensor) -> CallableOptions {
    CallableOptions::new().connect(from, to)
}

#[track_caller]
fn refused<F: Fetch>(session: &Session, fetch: F, options: &CallableOptions, says: &str) {
    let error = session.callable_with(&[], fetch, options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.to_string().contains(says), "{error}");
}

/// TensorFlow: `TestTensorConnection`. Names that no tensor has are refused where a tensor is looked up; a fetch of
/// what is connected is refused there, and given here, as that of what is fed is.
#[test]
fn tensor_connection() {
    for device in devices() {
        let g = Graph::new();
        let a = g.constant([[3.0f32, 2.0], [-1.0, 0.0]]);
        // TensorFlow looks at no shapes, and has one column here.
        let x = g.placeholder_with_default("x", [[1.0f32], [1.0]], dims![2, None]);
        let y = a.matmul(&x);
        let neg = -&y;
        let z = -&neg;
        let session = device.session(&g);
        let values = |t: HostTensor| t.to_vec::<f32>().unwrap();
        let call = session.callable_with(&[], &neg, &connect(&a, &y)).unwrap();
        assert_eq!(values(call.call(()).unwrap()), [-3.0, -2.0, 1.0, 0.0], "{}", device.name);
        let call = session.callable_with(&[], (&a, &neg, &y), &connect(&a, &y)).unwrap();
        let (of_a, neg_a, of_y) = call.call(()).unwrap();
        assert_eq!(values(neg_a), [-3.0, -2.0, 1.0, 0.0], "{}", device.name);
        assert_eq!(
            (values(of_a), values(of_y)),
            (vec![3.0, 2.0, -1.0, 0.0], vec![3.0, 2.0, -1.0, 0.0])
        );
        // Without a connection nothing has changed.
        assert_eq!(values(session.run(&[], &neg).unwrap()), [-5.0, 1.0]);

        let b = g.placeholder_with_default("b", [[1.0f32]], dims![None, None]);
        let product = b.matmul(&b);
        refused(&session, &product, &connect(&product, &b), "would create a cycle");
        let there_and_back = connect(&b, &y).connect(&y, &b);
        refused(&session, &neg, &there_and_back, "would create a cycle");
        let kind = |name: &str| g.tensor(name).unwrap_err().kind();
        assert_eq!(kind("unknown_node:0"), ErrorKind::NotFound);
        assert_eq!(kind(&a.name().replace(":0", ":17")), ErrorKind::NotFound);
        let twice = connect(&a, &neg).connect(&x, &neg);
        let error = session.callable_with(&[], &z, &twice).unwrap_err();
        assert!(error.to_string().contains("fed more than once"), "{error}");
        let error = session.callable_with(&[&y], &neg, &connect(&a, &y)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("fed more than once"), "{error}");
    }
}

/// TensorFlow: `TestTensorConnectionUseTwice`. There the shapes differ from what the graph says.
#[test]
fn tensor_connection_use_twice() {
    for device in devices() {
        let g = Graph::new();
        let a = g.constant([[1.0f32, 2.0], [3.0, 4.0]]);
        let left = g.placeholder("left", F32, dims![2, None]);
        let right = g.placeholder("right", F32, dims![None, 2]);
        let y = &left + &right;
        let session = device.session(&g);
        let both = connect(&a, &left).connect(&a, &right);
        let call = session.callable_with(&[], &y, &both).unwrap();
        let found = call.call(()).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(found, [2.0, 4.0, 6.0, 8.0], "{}", device.name);
        // Both are the same tensor for who takes one of them twice.
        let chain = connect(&a, &left).connect(&left, &right);
        let call = session.callable_with(&[], &y, &chain).unwrap();
        let found = call.call(()).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(found, [2.0, 4.0, 6.0, 8.0], "{}", device.name);
    }
}

/// One model's result is another's input, whichever was built first.
#[test]
fn what_was_built_later_feeds_what_was_built_before() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![2]);
        let v = g.variable("v", Init::Constant(1.0), F32, [2]);
        let first = v.assign_add(&x);
        let after = g.after(&[&first.operation()], || v.read()) * 10.0;
        let input = g.placeholder("input", F32, dims![None]);
        let later = &input * 2.0;
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let fetch = (&after, &x);
        let call = session.callable_with(&[&input], fetch, &connect(&later, &x)).unwrap();
        let (after, fed) = call.call([&[3.0f32, 4.0]]).unwrap();
        assert_eq!(fed.to_vec::<f32>().unwrap(), [6.0, 8.0], "{}", device.name);
        assert_eq!(after.to_vec::<f32>().unwrap(), [70.0, 90.0], "{}", device.name);
        let (_, run) = call.call_with([&[3.0f32, 4.0]], &RunOptions::default()).unwrap();
        assert_eq!(run.downloads, run.predicted_transfers - run.uploads, "{}", device.name);
        let before = session.state_digest().unwrap();
        // The shape is known only in the call, and nothing has changed.
        let error = call.call([&[1.0f32, 2.0, 3.0]]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains("expected a tensor of f32[2]"), "{error}");
        assert_eq!(session.state_digest().unwrap(), before);
        assert_eq!(session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(), [13.0, 17.0]);
    }
}

#[test]
fn branches_and_loops_capture_what_is_connected() {
    for device in devices() {
        let g = Graph::new();
        let one = g.constant(1.0f32);
        let pred = g.placeholder("pred", Bool, dims![]);
        let x = g.placeholder("x", F32, dims![]);
        let either = g.cond(&pred, || &x + &one, || &x - &one);
        let limit = g.placeholder_with_default("limit", 3i32, dims![]);
        let scale = g.constant(2.0f32);
        let counted = g.while_loop(
            (g.constant(0i32), x.clone()),
            |(i, _): &(Tensor, Tensor)| i.less(&limit),
            |(i, y): &(Tensor, Tensor)| (i + 1i32, y * &scale),
        );
        let (ten, two) = (g.constant(10.0f32), g.constant(2i32));
        let session = device.session(&g);
        let options = connect(&ten, &one).connect(&ten, &scale).connect(&two, &limit);
        let call = session.callable_with(&[&pred, &x], (&either, &counted.1), &options).unwrap();
        for (pred, expected) in [(true, 15.0), (false, -5.0)] {
            let feeds = (pred, 5.0f32);
            let (either, counted) = call.call(feeds).unwrap();
            assert_eq!(either.scalar::<f32>().unwrap(), expected, "{}", device.name);
            // Twice by ten, and not three times by two.
            assert_eq!(counted.scalar::<f32>().unwrap(), 500.0, "{}", device.name);
        }
    }
}

/// A constant limit is not what the graph says where something else stands for it.
#[test]
fn a_loop_whose_constant_limit_is_connected() {
    for device in devices() {
        let g = Graph::new();
        let (limit, five) = (g.constant(3i32), g.placeholder("five", I32, dims![]));
        let x = g.placeholder("x", F32, dims![]);
        let run = |limit: &Tensor| {
            g.while_loop(
                (g.constant(0i32), x.clone()),
                |(i, _): &(Tensor, Tensor)| i.less(limit),
                |(i, y): &(Tensor, Tensor)| (i + 1i32, y * 2.0),
            )
            .1
        };
        let (counted, folded) = (run(&limit), run(&((&limit + 1) * 2)));
        let session = device.session(&g);
        let (feeds, fetch) = ([&five, &x], (&counted, &folded));
        let call = session.callable_with(&feeds, fetch, &connect(&five, &limit)).unwrap();
        for (n, expected) in [(5, 32.0), (2, 4.0), (3, 8.0)] {
            let (counted, folded) = call.call((n, 1.0f32)).unwrap();
            assert_eq!(counted.scalar::<f32>().unwrap(), expected, "{}", device.name);
            let twice = 4.0 * expected * expected;
            assert_eq!(folded.scalar::<f32>().unwrap(), twice, "{}", device.name);
        }
        // Without a connection the graph is right.
        let (counted, _) = session.run(&[x.feed(1.0f32)], fetch).unwrap();
        assert_eq!(counted.scalar::<f32>().unwrap(), 8.0, "{}", device.name);
    }
}

/// Who runs after what is connected, or runs it for its effect, runs after what stands for it.
#[test]
fn controls_and_targets_that_are_connected() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let y = g.after(&[&x.operation()], || g.constant(1.0f32) + 1.0);
        let v = g.variable("v", Init::Zeros, F32, []);
        let stored = v.assign_add(3.0);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let call = session.callable_with(&[], &y, &connect(&stored, &x)).unwrap();
        assert_eq!(call.call(()).unwrap().scalar::<f32>().unwrap(), 2.0, "{}", device.name);
        let target = x.operation();
        let call = session.callable_with(&[], &target, &connect(&stored, &x)).unwrap();
        call.call(()).unwrap();
        // Both have run what stands for `x`.
        let v = session.run(&[], v.value()).unwrap();
        assert_eq!(v.scalar::<f32>().unwrap(), 6.0, "{}", device.name);
        let three = g.constant(3.0f32);
        let after = g.after(&[&x.operation()], || &three * 2.0);
        refused(&session, &after, &connect(&after, &x), "would create a cycle");
    }
}

#[test]
fn strings_and_queues() {
    let g = Graph::new();
    let table =
        LookupTable::new(HostTensor::strings(&[2], ["a", "b"]).unwrap(), [1i64, 2]).unwrap();
    let word = g.placeholder("word", Strings, dims![]);
    let found = table.lookup(&word, -1i64);
    let queue = g.fifo_queue("queue", 9, [(Strings, dims![])]);
    let taken = queue.dequeue().remove(0);
    let put = queue.enqueue(&[&word]);
    let unknown = g.placeholder("unknown", Strings, dims![None]);
    let some = g.placeholder("some", Strings, dims![3]);
    let joined = table.lookup(&some, -1i64);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for text in ["b", "c"] {
        session.run(&[word.feed(HostTensor::strings(&[], [text]).unwrap())], &put).unwrap();
    }
    let call = session.callable_with(&[], &found, &connect(&taken, &word)).unwrap();
    assert_eq!(call.call(()).unwrap().scalar::<i64>().unwrap(), 2);
    assert_eq!(call.call(()).unwrap().scalar::<i64>().unwrap(), -1);
    let error = session.callable_with(&[&unknown], &joined, &connect(&unknown, &some)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unimplemented);
    assert!(error.to_string().contains("unsupported"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![2]);
    let y = &x * 2.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let integers = g.constant([1i32, 2]);
    refused(&session, &y, &connect(&integers, &x), "expected a tensor of f32");
    let three = g.constant([1.0f32, 2.0, 3.0]);
    refused(&session, &y, &connect(&three, &x), "expected a shape like [2]");
    let v = g.variable("v", Init::Zeros, F32, [2]);
    refused(&session, &y, &connect(v.handle(), &x), "a variable's handle cannot be connected");
    let other = Graph::new();
    refused(&session, &y, &connect(&other.constant([1.0f32, 2.0]), &x), "another graph");
    g.prevent_feeding(&x);
    refused(&session, &y, &connect(&v.read(), &x), "may not be fed");
}
