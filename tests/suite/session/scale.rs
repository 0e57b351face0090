//! Many feeds, many fetches, deep graphs: no more than each costs.

use std::thread;
use std::time::{Duration, Instant};

use convoke::prelude::*;

/// The least time of a warm run and of a call with `n` feeds and fetches.
fn warm(n: usize) -> [Duration; 2] {
    let g = Graph::new();
    let xs: Vec<Tensor> = (0..n).map(|_| g.placeholder("x", F32, dims![])).collect();
    let ys: Vec<Tensor> = xs.iter().map(Tensor::identity).collect();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let feeds: Vec<Feed<'_>> = xs.iter().enumerate().map(|(i, x)| x.feed(i as f32)).collect();
    let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let callable = session.callable(&xs.iter().collect::<Vec<_>>(), &ys).unwrap();
    let right = |got: &[HostTensor]| {
        assert_eq!(got.len(), n);
        assert!(got.iter().zip(&values).all(|(y, x)| y.scalar::<f32>().unwrap() == *x));
    };
    right(&session.run(&feeds, &ys).unwrap());
    right(&callable.call(values.clone()).unwrap());
    let least = |f: &dyn Fn() -> Vec<HostTensor>| {
        let times = (0..5).map(|_| {
            let begun = Instant::now();
            let got = f();
            let time = begun.elapsed();
            right(&got);
            time
        });
        times.min().unwrap()
    };
    [
        least(&|| session.run(&feeds, &ys).unwrap()),
        least(&|| callable.call(values.clone()).unwrap()),
    ]
}

/// TensorFlow: `BM_FeedFetch`, `BM_FeedFetchCallable` of `direct_session_test.cc`: each of ten thousand costs what each
/// of a hundred does.
#[test]
fn bm_feed_fetch() {
    let (few, many) = (warm(100), warm(10_000));
    println!("100 and 10 000 feeds and fetches: run and call {few:?}, {many:?}");
    for (few, many) in few.into_iter().zip(many) {
        assert!(many < few * 400 + Duration::from_millis(5), "{few:?}, then {many:?}");
    }
}

#[test]
fn a_hundred_thousand_fetches() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let y = &x + 1.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let got = session.run(&[x.feed(1.0)], vec![&y; 100_000]).unwrap();
    assert_eq!(got.len(), 100_000);
    assert!(got.iter().all(|y| y.scalar::<f32>().unwrap() == 2.0));
}

/// No code recurses over a graph: a chain of so many operations, and its gradient, on a small stack.
#[test]
fn a_chain_of_a_hundred_thousand_operations() {
    let small = thread::Builder::new().stack_size(512 << 10);
    let run = small.spawn(|| {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let y = (0..100_000).fold(x.clone(), |y, _| -y);
        let dy = y.gradients(&[&x]).remove(0).unwrap();
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        let (y, dy) = session.run(&[x.feed(3.0)], (&y, &dy)).unwrap();
        assert_eq!((y.scalar::<f32>().unwrap(), dy.scalar::<f32>().unwrap()), (3.0, 1.0));
        assert!(g.check().is_empty());
    });
    run.unwrap().join().unwrap();
}

/// So many tensors of one element each, which `join` makes a vector of: its elements, and gradients at both ends and
/// between.
fn seventy_thousand(dims: &[usize], join: impl Fn(&Graph, &[&Tensor]) -> Tensor) {
    const N: usize = 70_000;
    let g = Graph::new();
    let xs: Vec<Tensor> = (0..N).map(|_| g.placeholder("x", F32, dims)).collect();
    let all: Vec<&Tensor> = xs.iter().collect();
    let y = join(&g, &all);
    let values: Vec<f32> = (0..N).map(|i| i as f32).collect();
    // The weight of each is its gradient.
    let weights: Vec<f32> = values.iter().map(|x| x * 2.0).collect();
    let grads = (&y * g.constant(weights)).sum(()).gradients(&all);
    assert!(g.check().is_empty(), "{:?}", g.check());
    let some = [0, N / 2, N - 1].map(|i| grads[i].as_ref().unwrap());
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let fed = values.iter().map(|&x| HostTensor::new(dims, vec![x]).unwrap());
    let feeds: Vec<Feed<'_>> = xs.iter().zip(fed).map(|(x, value)| x.feed(value)).collect();
    let (found, some) = session.run(&feeds, (&y, some)).unwrap();
    assert_eq!(found.to_vec::<f32>().unwrap(), values);
    assert!(some.iter().all(|grad| grad.dims() == dims));
    let some = some.map(|grad| grad.to_vec::<f32>().unwrap()[0]);
    assert_eq!(some, [0.0, 70_000.0, 139_998.0]);
}

/// Neither a concat nor its gradient takes more than each tensor costs.
#[test]
fn a_concat_of_seventy_thousand_tensors() {
    seventy_thousand(&[1], |g, xs| g.concat(xs, 0));
}

#[test]
fn a_stack_of_seventy_thousand_tensors() {
    seventy_thousand(&[], |g, xs| g.stack(xs, 0));
}
