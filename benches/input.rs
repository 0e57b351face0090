//! What an input costs a training step on the CPU: batches of 64x784 floats made from bytes on another thread, beside one
//! batch that is there. `cargo bench -p convoke-benches --bench input`.

use std::time::{Duration, Instant};

use convoke::input::InputExt;
use convoke::prelude::*;
use convoke::{Callable, Result};
use criterion::{Criterion, criterion_group, criterion_main};

const BATCH: usize = 64;
const WIDTH: usize = 784;

/// A batch of images, from bytes as files have them, and labels.
fn batch(bytes: &[u8], at: usize) -> Result<(HostTensor, HostTensor)> {
    let pixels = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
    let labels = (0..BATCH).map(|i| ((i + at) % 10) as i32).collect();
    Ok((HostTensor::new(&[BATCH, WIDTH], pixels)?, HostTensor::new(&[BATCH], labels)?))
}

/// An SGD step of an MLP 784-128-10.
fn step() -> Result<Callable<Operation>> {
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
    let session = Session::new(&g, &Devices::cpu())?;
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

fn inputs(criterion: &mut Criterion) {
    if let Err(error) = try_inputs(criterion) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn try_inputs(criterion: &mut Criterion) -> Result<()> {
    let bytes: Vec<u8> = (0..BATCH * WIDTH).map(|i| (i * 31 % 251) as u8).collect();
    let step = step()?;
    let (x, labels) = batch(&bytes, 0)?;
    let mut made = (0..).map(move |at| batch(&bytes, at)).prefetch(4);
    let mut group = criterion.benchmark_group("training step, 64x784");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    group.bench_function("a batch that is there", |bencher| {
        bencher.iter_custom(|n| timed(n, || step.call((&x, &labels)).map(|_| ())));
    });
    group.bench_function("batches made ahead", |bencher| {
        bencher.iter_custom(|n| {
            timed(n, || {
                let ended = || convoke::Error::internal("the input has ended");
                let (x, labels) = made.next().ok_or_else(ended)??;
                step.call((&x, &labels)).map(|_| ())
            })
        });
    });
    group.finish();
    Ok(())
}

criterion_group!(all, inputs);
criterion_main!(all);
