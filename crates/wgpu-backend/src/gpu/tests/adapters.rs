//! The adapters of this machine, and those of the app.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::losses::all_calls_answer_lost;
use super::*;

#[test]
fn adapters_are_numbered_hardware_first_and_once() {
    let all = enumerate();
    let kinds: Vec<bool> = all.iter().map(|a| a.info().kind == AdapterKind::Cpu).collect();
    assert!(kinds.is_sorted(), "{all:?}");
    for adapter in named_adapters() {
        println!("{}\n{:#?}", adapter.info(), adapter.info());
    }
}

#[test]
fn adapters_double_numbers() {
    for adapter in named_adapters() {
        for trusted in [false, true] {
            let options = GpuOptions { checked_shaders: false, ..GpuOptions::default() };
            let gpu = Gpu::open(&adapter, &options).unwrap();
            for len in [1u32, 3, 64, 65, 1000, 100_003] {
                let double = Double::new(&gpu, len, trusted);
                let values: Vec<f32> = (0..len).map(|i| i as f32 - 3.5).collect();
                double.check(&values);
            }
            let double = Double::new(&gpu, 1 << 20, trusted);
            let timed = gpu.info().features.timestamps;
            for (timestamps, n_times) in
                [(Timestamps::None, 0), (Timestamps::Whole, 1), (Timestamps::Each, 1)]
            {
                let output = double.run(&vec![1.0; 1 << 20], timestamps).unwrap();
                let told = timed && timestamps != Timestamps::None;
                assert_eq!(output.gpu_time.is_some(), told, "{}", gpu.info());
                assert_eq!(output.dispatch_times.len(), usize::from(timed) * n_times);
            }
            let buffer = gpu.buffer("b", 1 << 17, BufferUse::Storage).unwrap();
            for len in [1, 2, 3, 5, 65_537] {
                assert_eq!(
                    round_trip(&gpu, &buffer, 4, &pattern(len)),
                    pattern(len),
                    "{len} bytes"
                );
            }
            assert_eq!(gpu.stray_error(), None);
        }
    }
}

#[test]
fn adapters_serve_many_threads() {
    for adapter in named_adapters() {
        let gpu = Gpu::open(&adapter, &GpuOptions::default()).unwrap();
        let work = |thread: u32| {
            let len = 100 + thread * 37;
            let double = Double::new(&gpu, len, false);
            for run in 0..50 {
                let values: Vec<f32> = (0..len).map(|i| (i * run + thread) as f32).collect();
                double.check(&values);
            }
        };
        std::thread::scope(|scope| {
            (0..8).for_each(|thread| drop(scope.spawn(move || work(thread))));
        });
        assert_eq!(gpu.counters().submissions, 400);
        assert_eq!(gpu.counters().pipelines_created, 1);
        assert_eq!(gpu.stray_error(), None);
    }
}

#[test]
fn adapters_make_nothing_when_warm() {
    for adapter in named_adapters() {
        let gpu = Gpu::open(&adapter, &GpuOptions::default()).unwrap();
        let double = Double::new(&gpu, 1000, false);
        double.check(&[1.0; 1000]);
        let before = (gpu.counters(), gpu.internal_counters());
        let start = Instant::now();
        for _ in 0..200 {
            double.run(&[1.5; 1000], Timestamps::None).unwrap();
        }
        println!("{}: {:?} a run", gpu.info(), start.elapsed() / 200);
        let (after, internal) = (gpu.counters(), gpu.internal_counters());
        assert_eq!(internal, before.1);
        assert_eq!(after.buffers_created, before.0.buffers_created);
        assert_eq!(after.bind_groups_created, before.0.bind_groups_created);
    }
}

#[test]
fn adapters_are_not_waited_for_past_the_deadline() {
    let slow = DOUBLE.replace(
        "if id.x < n.x {",
        "var s = 0.0; for (var i = 0u; i < 60000u; i++) { s += sin(s + f32(i ^ id.x)); }
        if id.x < n.x { y[id.x] = s; } if id.x < n.x {",
    );
    for adapter in named_adapters() {
        let gpu = Gpu::open(&adapter, &GpuOptions::default()).unwrap();
        let double = Double::new(&gpu, 1 << 13, false);
        let mut commands = double.recording.commands().to_vec();
        if let Some(Command::Dispatch { pipeline, .. }) = commands.last_mut() {
            *pipeline = gpu.pipeline(&desc(&slow, false)).unwrap();
        }
        if adapter.info().kind != AdapterKind::Cpu {
            // What takes a processor seconds takes a GPU a few milliseconds.
            let dispatch = commands.last().cloned();
            commands.extend(std::iter::repeat_n(dispatch, 1000).flatten());
        }
        let recording = gpu.recording(commands).unwrap();
        let deadline = Some(Instant::now() + Duration::from_millis(300));
        let work = Submission { recording: Some(&recording), deadline, ..Submission::default() };
        let error = gpu.run(&work).unwrap_err();
        assert!(matches!(error, GpuError::Timeout { submitted: true, .. }), "{error}");
        double.check(&[1.0; 1 << 13]);
    }
}

#[test]
fn adapters_can_be_the_apps_own() {
    for adapter in named_adapters() {
        let open = || {
            let desc = wgpu::DeviceDescriptor::default();
            let (device, queue) = pollster::block_on(adapter.raw().request_device(&desc)).unwrap();
            Gpu::from_wgpu(device, queue, &GpuOptions::default()).unwrap()
        };
        let gpu = open();
        assert_eq!(gpu.info().features, GpuFeatures::NONE);
        assert_eq!(gpu.info().limits.max_storage_buffers_per_shader_stage, 8);
        let double = Double::new(&gpu, 1001, true);
        // The app may poll its device at any time.
        let running = Arc::new(());
        let until = Arc::downgrade(&running);
        let device = gpu.device().clone();
        let poller = std::thread::spawn(move || {
            while until.strong_count() > 0 {
                let _ = device.poll(wgpu::PollType::Poll);
            }
        });
        for run in 0..200 {
            double.check(&[run as f32; 1001]);
        }
        drop(running);
        poller.join().unwrap();
        all_calls_answer_lost(&gpu, |gpu| gpu.device().destroy());
    }
}

#[test]
fn adapters_that_are_destroyed_are_lost() {
    for adapter in named_adapters() {
        let open = || Gpu::open(&adapter, &GpuOptions::default()).unwrap();
        all_calls_answer_lost(&open(), |gpu| gpu.destroy());
        all_calls_answer_lost(&open(), |gpu| gpu.device().destroy());
        // While others are running.
        let gpu = open();
        let work = || {
            let double = Double::new(&gpu, 10_000, false);
            loop {
                if let Err(error) = double.run(&[1.0; 10_000], Timestamps::None) {
                    assert_eq!(error.kind(), GpuErrorKind::Lost, "{error}");
                    break;
                }
            }
        };
        std::thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(work)));
            std::thread::sleep(Duration::from_millis(200));
            gpu.destroy();
        });
        open();
    }
}
