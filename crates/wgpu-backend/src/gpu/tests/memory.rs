//! What is made, what is given back, budgets, and limits of memory.

use super::*;

#[test]
fn a_warm_run_makes_nothing() {
    let gpu = noop();
    let double = Double::new(&gpu, 1000, true);
    let values = [1.5; 1000];
    double.run(&values, Timestamps::Each).unwrap();
    let before = (gpu.counters(), gpu.internal_counters());
    for _ in 0..20 {
        double.run(&values, Timestamps::Each).unwrap();
    }
    let (after, internal) = (gpu.counters(), gpu.internal_counters());
    assert_eq!(internal, before.1);
    let expected = Counters {
        submissions: before.0.submissions + 20,
        dispatches: before.0.dispatches + 20,
        copies: before.0.copies + 20,
        uploads: before.0.uploads + 40,
        upload_bytes: before.0.upload_bytes + 20 * 4016,
        downloads: before.0.downloads + 20,
        download_bytes: before.0.download_bytes + 20 * 4000,
        ..before.0
    };
    assert_eq!(after, expected);
}

#[test]
fn dropped_handles_give_their_bytes_back() {
    let gpu = noop();
    let start = gpu.counters();
    let double = Double::new(&gpu, 100, false);
    let held = gpu.counters();
    assert_eq!(held.bytes_alive - start.bytes_alive, 400 + 400 + 1024);
    let Double { x, y, params, recording, .. } = double;
    drop((x, y, params));
    assert_eq!(gpu.counters().bytes_alive, held.bytes_alive, "the recording holds them");
    drop(recording);
    assert_eq!(gpu.counters().bytes_alive, start.bytes_alive);
    assert_eq!(gpu.counters().buffers_alive, start.buffers_alive);
    assert_eq!(gpu.counters().peak_bytes, held.bytes_alive);
}

#[test]
fn the_budget_is_kept_and_staging_memory_yields() {
    let options = GpuOptions { budget_bytes: Some(300_000), ..GpuOptions::default() };
    let gpu = Gpu::open(&Adapter::noop(), &options).unwrap();
    let a = gpu.buffer("a", 100_000, BufferUse::Storage).unwrap();
    round_trip(&gpu, &a, 0, &[1]);
    assert_eq!(gpu.counters().bytes_alive, 100_000 + 2 * 65_536);
    let b = gpu.buffer("b", 150_000, BufferUse::Storage).unwrap();
    let error = gpu.buffer("c", 100_000, BufferUse::Storage).unwrap_err();
    let budget = Some(300_000);
    assert_eq!(error, GpuError::OutOfMemory { asked: 100_000, in_use: 250_000, budget });
    assert_eq!(
        error.to_string(),
        "out of device memory: asked for 100000 bytes with 250000 in use of a budget of 300000; free \
         tensors, use smaller batches or raise the budget"
    );
    drop(b);
    gpu.buffer("c", 100_000, BufferUse::Storage).unwrap();
}

#[test]
fn the_drivers_want_of_memory_is_told_from_limits() {
    let limits = LimitOverrides { max_buffer_size: Some(1 << 60), ..Default::default() };
    let gpu = Gpu::open(&Adapter::noop_with(limits), &GpuOptions::default()).unwrap();
    let asked = 1 << 50;
    let error = gpu.buffer("huge", asked, BufferUse::Storage).unwrap_err();
    assert_eq!(error, GpuError::OutOfMemory { asked, in_use: 0, budget: None });
    let got = 1 << 61;
    let error = gpu.buffer("huge", got, BufferUse::Storage).unwrap_err();
    assert_eq!(error, GpuError::LimitExceeded { limit: "max_buffer_size", max: 1 << 60, got });
    assert_eq!(
        gpu.buffer("huge", u64::MAX, BufferUse::Storage).unwrap_err().kind(),
        GpuErrorKind::LimitExceeded
    );
    assert_eq!((gpu.counters().buffers_created, gpu.counters().bytes_alive), (0, 0));
}
