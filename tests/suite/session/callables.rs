//! Prepared runs. TensorFlow: `make_callable` of `python/client/session_test.py`, by meaning.

use std::thread;

use convoke::prelude::*;
use convoke::{Shape, TensorViewMut};
use convoke_tests::{TestDevice, devices, ramp};

/// `y = 2 x + v`, and a step that adds the mean of `y` to `v`.
fn model(g: &Graph) -> (Tensor, Tensor, Operation) {
    let x = g.placeholder("x", F32, dims![None]);
    let v = g.variable("v", Init::Constant(1.0), F32, []);
    let y = &x * 2.0 + &v;
    let step = v.assign_add(y.mean(())).operation();
    (x, y, step)
}

fn session(device: &TestDevice, g: &Graph) -> Session {
    let session = device.session(g);
    session.run(&[], g.initializers()).unwrap();
    session
}

#[test]
fn on_tensors_and_operations_and_structures_of_them() {
    for device in devices() {
        let g = Graph::new();
        let (x, y, step) = model(&g);
        let session = session(device, &g);
        let of_tensor = session.callable(&[&x], &y).unwrap();
        let of_step = session.callable(&[&x], &step).unwrap();
        let of_both = session.callable(&[&x], (&y, [&x, &y], &step)).unwrap();
        assert_eq!(of_tensor.call([&[1.0f32, 2.0]]).unwrap().to_vec::<f32>().unwrap(), [3.0, 5.0]);
        of_step.call([&[1.0f32, 2.0]]).unwrap();
        // v is 1 + 4.
        let found = of_tensor.call([&[1.0f32, 2.0]]).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(found, [7.0, 9.0], "{}", device.name);
        let (y, [x, again], ()) = of_both.call([&[0.5f32]]).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [6.0]);
        assert_eq!((x.to_vec::<f32>().unwrap(), &again), (vec![0.5], &y));
        // Without feeds, and with what a run would be fed.
        let read = session.callable(&[], g.global_variables()).unwrap();
        assert_eq!(read.call(()).unwrap()[0].scalar::<f32>().unwrap(), 11.0);
    }
}

#[test]
fn other_shapes_compile_once_and_the_last_one_is_not_looked_up() {
    for device in devices() {
        let g = Graph::new();
        let (x, y, _) = model(&g);
        let callable = session(device, &g).callable(&[&x], &y).unwrap();
        let mut cached = Vec::new();
        for n in [2usize, 2, 3, 2, 3, 3, 0, 1] {
            let xs: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let (y, run) = callable.call_with([&xs], &Default::default()).unwrap();
            let expected: Vec<f32> = xs.iter().map(|x| 2.0 * x + 1.0).collect();
            assert_eq!(y.to_vec::<f32>().unwrap(), expected, "{}", device.name);
            assert!(run.plan_cached);
            cached.push(run.program_cached);
        }
        assert_eq!(cached, [false, true, false, true, true, true, false, false]);
    }
}

#[test]
fn several_types_are_a_tuple() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let n = g.placeholder("n", I32, dims![]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let callable = session.callable(&[&x, &n], &x * n.cast(F32)).unwrap();
    let found = callable.call((ramp(&[2]), 3)).unwrap();
    let expected = ramp(&[2]).to_vec::<f32>().unwrap().iter().map(|x| 3.0 * x).collect::<Vec<_>>();
    assert_eq!(found.to_vec::<f32>().unwrap(), expected);
    // In the order in which it was made, not in that of the graph.
    let turned = session.callable(&[&n, &x], &x * n.cast(F32)).unwrap();
    assert_eq!(turned.call((3, ramp(&[2]))).unwrap(), found);
}

#[test]
fn wrong_calls_are_refused_and_change_nothing() {
    for device in devices() {
        let g = Graph::new();
        let (x, y, step) = model(&g);
        let session = session(device, &g);
        let callable = session.callable(&[&x], (&y, &step)).unwrap();
        let refused = |error: convoke::Error, kind: ErrorKind, what: &str| {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(what), "{error}");
            let v = session.run(&[], g.global_variables()).unwrap().remove(0);
            assert_eq!(v.scalar::<f32>().unwrap(), 1.0, "{}", device.name);
        };
        let invalid = ErrorKind::InvalidArgument;
        refused(callable.call(()).unwrap_err(), invalid, "expected values for 1 tensors, got 0");
        let two = callable.call([&[1.0f32], &[2.0]]).unwrap_err();
        refused(two, invalid, "expected values for 1 tensors, got 2");
        refused(callable.call([ramp(&[2, 2])]).unwrap_err(), invalid, "shape");
        refused(callable.call([&[1.5f64]]).unwrap_err(), invalid, "f64");
        let other = Graph::new().placeholder("x", F32, dims![]);
        refused(session.callable(&[&other], &y).unwrap_err(), invalid, "another graph");
        session.close();
        let closed = callable.call([&[1.0f32]]).unwrap_err();
        assert_eq!(closed.kind(), ErrorKind::FailedPrecondition);
        let closed = session.callable(&[&x], &y).unwrap_err();
        assert_eq!(closed.kind(), ErrorKind::FailedPrecondition);
    }
}

#[test]
fn into_memory_of_the_caller() {
    for device in devices() {
        let g = Graph::new();
        let (x, y, step) = model(&g);
        let session = session(device, &g);
        let (total, constant) = (y.sum(()), g.constant(7i32));
        let callable = session.callable(&[&x], (&y, &total, &y, &constant, &step)).unwrap();
        let mut memory = [[0u8; 8]; 2];
        let (mut one, mut seven) = ([0u8; 4], [0u8; 4]);
        let (pair, single) = (Shape::new(&[2]).unwrap(), Shape::scalar());
        for v in [1.0f32, 5.0] {
            let [first, second] = &mut memory;
            let mut outputs = [
                TensorViewMut::new(F32, &pair, first).unwrap(),
                TensorViewMut::new(F32, &single, &mut one).unwrap(),
                TensorViewMut::new(F32, &pair, second).unwrap(),
                TensorViewMut::new(I32, &single, &mut seven).unwrap(),
            ];
            callable.call_into([&[1.0f32, 2.0]], &mut outputs).unwrap();
            let floats = |bytes: &[u8]| -> Vec<f32> {
                let words = bytes.chunks_exact(4);
                words.map(|w| f32::from_ne_bytes(w.try_into().unwrap())).collect()
            };
            assert_eq!(floats(&memory[0]), [2.0 + v, 4.0 + v], "{}", device.name);
            assert_eq!(memory[0], memory[1]);
            assert_eq!(floats(&one), [6.0 + 2.0 * v]);
            assert_eq!(i32::from_ne_bytes(seven), 7);
        }
        // v is now 5 + 8.
        let three = Shape::new(&[3]).unwrap();
        let mut wide = [0u8; 12];
        let refused = |outputs: &mut [TensorViewMut<'_>], what: &str| {
            let error = callable.call_into([&[1.0f32, 2.0]], outputs).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert!(error.to_string().contains(what), "{error}");
        };
        refused(&mut [], "expected memory for 4 tensors, got 0");
        let mut outputs = [
            TensorViewMut::new(F32, &three, &mut wide).unwrap(),
            TensorViewMut::new(F32, &single, &mut one).unwrap(),
            TensorViewMut::new(F32, &pair, &mut memory[0]).unwrap(),
            TensorViewMut::new(I32, &single, &mut seven).unwrap(),
        ];
        refused(&mut outputs, "f32[2] at place 0, got f32[3]");
        let v = session.run(&[], g.global_variables()).unwrap().remove(0).scalar::<f32>().unwrap();
        assert_eq!(v, 13.0, "{}", device.name);
    }
}

/// TensorFlow: `testConcurrentCalls`.
#[test]
fn many_threads_call_one() {
    for device in devices() {
        let g = Graph::new();
        let (x, y, step) = model(&g);
        let session = session(device, &g);
        let of_tensor = session.callable(&[&x], &y - g.global_variables()[0].value()).unwrap();
        let of_step = session.callable(&[&x], &step).unwrap();
        thread::scope(|scope| {
            for thread in 0..8 {
                let (of_tensor, of_step) = (&of_tensor, &of_step);
                scope.spawn(move || {
                    for i in 0..50 {
                        // Threads have shapes of their own.
                        let xs = vec![(thread * 50 + i) as f32; 1 + thread % 3];
                        let y = of_tensor.call([&xs]).unwrap().to_vec::<f32>().unwrap();
                        assert_eq!(y, xs.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
                        of_step.call([&[-0.5f32]]).unwrap();
                    }
                });
            }
        });
        // Each step adds 2 x + v, which is 0 where x is -1/2 and v is 1.
        let v = session.run(&[], g.global_variables()).unwrap().remove(0).scalar::<f32>().unwrap();
        assert_eq!(v, 1.0, "{}", device.name);
    }
}
