//! The standard cases on each device, by criterion: `cargo bench -p convoke-benches -- D64/CPU:0`.
//!
//! The list is `convoke::cases`, which `convoke bench` runs too. Hardware GPUs are found; a software adapter
//! is used where `CONVOKE_BENCH_DEVICE` names it, a part of its name.

use std::time::{Duration, Instant};

use convoke::cases::{Case, NAMES};
use convoke::{DevicePolicy, Devices, Result, SessionOptions};
use criterion::{Criterion, criterion_group, criterion_main};

fn cases(criterion: &mut Criterion) {
    let devices = match std::env::var("CONVOKE_BENCH_DEVICE") {
        Ok(name) => Devices::named(&name),
        Err(_) => Devices::open(),
    };
    let outcome = devices.and_then(|devices| {
        let names = || devices.list().iter().map(|device| device.name.to_string());
        NAMES.iter().try_for_each(|case| {
            names().try_for_each(|device| bench(criterion, case, &devices, &device))
        })
    });
    if let Err(error) = outcome {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn bench(criterion: &mut Criterion, name: &str, devices: &Devices, device: &str) -> Result<()> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    let mut outcome = Ok(());
    // The closure runs only if the filter on the command line takes this bench.
    group.bench_function(device, |bencher| {
        let policy = DevicePolicy::Prefer(device.to_owned());
        let options = SessionOptions { policy, ..SessionOptions::default() };
        let case = Case::new(name).and_then(|case| case.ready(devices, options));
        bencher.iter_custom(|n| {
            let begun = Instant::now();
            let runs = case
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|case| (0..n).try_for_each(|_| case.run().map(|_| ())));
            if runs.is_err() {
                outcome = runs;
            }
            // Criterion cannot estimate from a time of nothing.
            begun.elapsed().max(Duration::from_nanos(1))
        });
    });
    group.finish();
    outcome
}

criterion_group!(standard, cases);
criterion_main!(standard);
