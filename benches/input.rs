//! What an input costs a training step on the CPU: batches of 64x784 floats that are made on another thread, beside one
//! batch that is there. `cargo bench -p convoke-benches --bench input`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use convoke::input::InputExt;
use convoke::prelude::*;
use convoke::{Callable, Result, SessionOptions};
use criterion::{Criterion, criterion_group, criterion_main};

const BATCH: usize = 64;
const WIDTH: usize = 784;

/// How many batches are made ahead: the thread that makes them takes a core from the kernels once for half of them.
const AHEAD: usize = 32;

type Batch = (HostTensor, HostTensor);

/// A batch of images, from bytes as files have them, and labels.
fn batch(bytes: &[u8], at: usize) -> Result<Batch> {
    let pixels = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
    let labels = (0..BATCH).map(|i| ((i + at) % 10) as i32).collect();
    Ok((HostTensor::new(&[BATCH, WIDTH], pixels)?, HostTensor::new(&[BATCH], labels)?))
}

/// An SGD step of an MLP 784-128-10, with kernels on `threads` threads.
fn step(threads: usize) -> Result<Callable<Operation>> {
    let g = Graph::with_seed(1);
    let x = g.placeholder("x", F32, dims![BATCH, WIDTH]);
    let labels = g.placeholder("labels", I32, dims![BATCH]);
    let dense = |x: &Tensor, name: &str, from: usize, to: usize| {
        let w = g.variable(name, Init::Constant(0.01), F32, [from, to]);
        x.matmul(&w)
    };
    let hidden = dense(&x, "w1", WIDTH, 128).relu();
    let loss = dense(&hidden, "w2", 128, 10).cross_entropy(&labels).mean(());
    let train = Sgd::new(0.01).minimize(&loss);
    let options = SessionOptions { threads, ..SessionOptions::default() };
    let session = Session::with_options(&g, &Devices::cpu(), options)?;
    session.run(&[], g.initializers())?;
    session.callable(&[&x, &labels], train)
}

fn timed(n: u64, mut step: impl FnMut() -> Result<()>) -> Duration {
    let begun = Instant::now();
    if let Err(error) = (0..n).try_for_each(|_| step()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
    begun.elapsed()
}

/// The next batch of an input that never ends.
fn next(input: &mut dyn Iterator<Item = Result<Batch>>) -> Result<Batch> {
    input.next().ok_or_else(|| convoke::Error::internal("the input has ended"))?
}

fn inputs(criterion: &mut Criterion) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for (threads, name) in [(cores, "all cores"), (cores.saturating_sub(1).max(1), "one core left")]
    {
        if let Err(error) = measure(criterion, threads, name) {
            eprintln!("error: {error}");
            std::process::exit(1);
        }
    }
}

fn measure(criterion: &mut Criterion, threads: usize, name: &str) -> Result<()> {
    let bytes: Arc<[u8]> = (0..BATCH * WIDTH).map(|i| (i * 31 % 251) as u8).collect();
    let step = step(threads)?;
    let there = batch(&bytes, 0)?;
    let kept = there.clone();
    let mut handed = std::iter::repeat_with(move || Ok(kept.clone())).prefetch(AHEAD);
    let mut made = (0..).map(move |at| batch(&bytes, at)).prefetch(AHEAD);

    let mut group = criterion.benchmark_group(format!("training step, 64x784, {name}"));
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    group.bench_function("a batch that is there", |bencher| {
        bencher.iter_custom(|n| timed(n, || step.call((&there.0, &there.1)).map(|_| ())));
    });
    let mut ahead = |name: &str, input: &mut dyn Iterator<Item = Result<Batch>>| {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|n| {
                timed(n, || {
                    let (x, labels) = next(input)?;
                    step.call((&x, &labels)).map(|_| ())
                })
            });
        });
    };
    ahead("handed over", &mut handed);
    ahead("made from bytes and handed over", &mut made);
    group.finish();
    Ok(())
}

criterion_group!(all, inputs);
criterion_main!(all);
