//! What is bound by memory, beside a plain copy that reads and writes as many bytes, on as many threads:
//! `cargo bench -p convoke-benches --bench copies`.

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use convoke::cases::Case;
use convoke::{Devices, Result, SessionOptions};
use criterion::{Criterion, criterion_group, criterion_main};

const CASES: [&str; 3] = ["C", "I-norm", "I-softmax"];

/// Threads that copy when they are told to, without sleeping in between: each a part of its own.
struct Copiers {
    from: Arc<Vec<f32>>,
    own: Vec<f32>,
    told: Arc<AtomicUsize>,
    done: Arc<AtomicUsize>,
    n_others: usize,
}

impl Copiers {
    /// For a copy that reads and writes `n_bytes` in all.
    fn new(n_bytes: u64, n_threads: usize) -> Self {
        let len = (n_bytes / 8) as usize / n_threads;
        let from = Arc::new((0..len * n_threads).map(|i| i as f32).collect::<Vec<f32>>());
        let (told, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for at in 1..n_threads {
            let (from, told, done) = (from.clone(), told.clone(), done.clone());
            let mut own = vec![0f32; len];
            let mut seen = 0;
            thread::spawn(move || {
                loop {
                    let now = told.load(Ordering::Acquire);
                    if now == seen {
                        spin_loop();
                        continue;
                    }
                    if now == END {
                        return;
                    }
                    seen = now;
                    own.copy_from_slice(&from[at * len..][..len]);
                    black_box(&mut own);
                    done.fetch_add(1, Ordering::Release);
                }
            });
        }
        Self { from, own: vec![0f32; len], told, done, n_others: n_threads - 1 }
    }

    fn copy(&mut self) {
        let expected = self.done.load(Ordering::Relaxed) + self.n_others;
        self.told.fetch_add(1, Ordering::Release);
        let len = self.own.len();
        self.own.copy_from_slice(&self.from[..len]);
        black_box(&mut self.own);
        while self.done.load(Ordering::Acquire) < expected {
            spin_loop();
        }
    }
}

/// The number that tells the threads to end.
const END: usize = usize::MAX;

impl Drop for Copiers {
    fn drop(&mut self) {
        self.told.store(END, Ordering::Release);
    }
}

fn beside(criterion: &mut Criterion, name: &str) -> Result<()> {
    let case = Case::new(name)?.ready(&Devices::cpu(), SessionOptions::default())?;
    case.run()?;
    let n_bytes = case.run()?.1.kernel_bytes;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    let mut outcome = Ok(());
    group.bench_function("the case", |bencher| {
        bencher.iter_custom(|n| {
            let begun = Instant::now();
            outcome = (0..n).try_for_each(|_| case.run().map(|_| ()));
            begun.elapsed()
        });
    });
    group.bench_function(format!("a copy, {n_bytes} bytes read and written"), |bencher| {
        let mut copiers = Copiers::new(n_bytes, threads);
        bencher.iter(|| copiers.copy());
    });
    group.finish();
    outcome
}

fn copies(criterion: &mut Criterion) {
    if let Err(error) = CASES.iter().try_for_each(|name| beside(criterion, name)) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

criterion_group!(all, copies);
criterion_main!(all);
