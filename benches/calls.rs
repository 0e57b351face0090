//! What a run costs that does next to nothing: a scalar addition on the CPU, by each way of running it, a queue, and a
//! loop.
//! `cargo bench -p convoke-benches --bench calls`.

use std::thread;
use std::time::{Duration, Instant};

use convoke::prelude::*;
use convoke::{Callable, RunOptions, Shape, TensorViewMut};
use criterion::{Bencher, Criterion, criterion_group, criterion_main};

/// How many runs; what is wrong.
type Timed<'a> = dyn Fn(u64) -> convoke::Result<()> + 'a;

fn time(bencher: &mut Bencher<'_>, timed: &Timed<'_>) {
    bencher.iter_custom(|n| {
        let begun = Instant::now();
        if let Err(error) = timed(n) {
            eprintln!("error: {error}");
            std::process::exit(1);
        }
        begun.elapsed()
    });
}

/// `n` calls by so many threads in all.
fn by_threads(callable: &Callable<&Tensor>, n_threads: u64, n: u64) -> convoke::Result<()> {
    let calls =
        || (0..n.div_ceil(n_threads)).try_for_each(|_| callable.call([1.0, 2.0]).map(|_| ()));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(calls)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(convoke::Error::internal("a thread panicked")))
        })
    })
}

fn calls(criterion: &mut Criterion) {
    if let Err(error) = try_calls(criterion) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn try_calls(criterion: &mut Criterion) -> convoke::Result<()> {
    let g = Graph::new();
    let (a, b) = (g.placeholder("a", F32, dims![]), g.placeholder("b", F32, dims![]));
    let y = &a + &b;
    let session = Session::new(&g, &Devices::cpu())?;
    let callable = session.callable(&[&a, &b], &y)?;
    let queue = g.fifo_queue("queue", 8, [(F32, dims![])]);
    let put = session.callable(&[&a], queue.enqueue(&[&a]))?;
    let take = session.callable(&[], queue.dequeue())?;
    let scalar = Shape::scalar();
    let mut group = criterion.benchmark_group("scalar add");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let mut bench = |name: &str, timed: &Timed<'_>| {
        group.bench_function(name, |bencher| time(bencher, timed));
    };
    bench("run", &|n| {
        (0..n).try_for_each(|_| session.run(&[a.feed(1.0), b.feed(2.0)], &y).map(|_| ()))
    });
    bench("call", &|n| (0..n).try_for_each(|_| callable.call([1.0, 2.0]).map(|_| ())));
    bench("call_into", &|n| {
        let mut memory = [0u8; 4];
        (0..n).try_for_each(|_| {
            let view = TensorViewMut::new(F32, &scalar, &mut memory)?;
            callable.call_into([1.0, 2.0], &mut [view]).map(|_| ())
        })
    });
    bench("submit", &|n| {
        let feeds = [a.feed(1.0), b.feed(2.0)];
        (0..n)
            .try_for_each(|_| session.submit(&feeds, &y, RunOptions::default()).wait().map(|_| ()))
    });
    bench("enqueue and dequeue, a run each", &|n| {
        (0..n).try_for_each(|_| put.call([1.0]).and_then(|()| take.call(())).map(|_| ()))
    });
    let limit = g.placeholder("limit", I32, dims![]);
    let counted = g.while_loop(g.constant(0i32), |i| i.less(&limit), |i| i + 1);
    let count = session.callable(&[&limit], &counted)?;
    bench("a loop of 1,000 iterations", &|n| {
        (0..n).try_for_each(|_| count.call([1000i32]).map(|_| ()))
    });
    for n_threads in [1, 2, 8] {
        bench(&format!("call/{n_threads} threads"), &|n| by_threads(&callable, n_threads, n));
    }
    group.finish();
    Ok(())
}

criterion_group!(all, calls);
criterion_main!(all);
