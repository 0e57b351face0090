//! Tests of the device layer: its rules on wgpu's noop backend, its results on the adapters that
//! `CONVOKE_TEST_ADAPTERS` names (a comma list of parts of names, any case).

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::{SmallVec, smallvec};

use super::*;

/// Writes twice its input, for as many elements as the uniform says.
const DOUBLE: &str = "
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<uniform> n: vec4<u32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < n.x { y[id.x] = 2.0 * x[id.x]; }
}
";
const BINDINGS: [BindingKind; 3] =
    [BindingKind::Read, BindingKind::ReadWrite, BindingKind::Uniform { dynamic: true }];

fn desc(wgsl: &str, trusted: bool) -> PipelineDesc<'_> {
    PipelineDesc { label: "double", wgsl, bindings: &BINDINGS, trusted }
}

fn noop() -> Gpu {
    Gpu::open(&Adapter::noop(), &GpuOptions::default()).unwrap()
}

fn named_adapters() -> Vec<Adapter> {
    let names = std::env::var("CONVOKE_TEST_ADAPTERS").unwrap_or_default().to_lowercase();
    let names: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
    let all = if names.is_empty() { Vec::new() } else { enumerate() };
    for name in &names {
        let found = all.iter().any(|a| a.info().name.to_lowercase().contains(name));
        assert!(found, "no adapter is named like {name:?}: {all:?}");
    }
    let named = |a: &Adapter| names.iter().any(|n| a.info().name.to_lowercase().contains(n));
    all.into_iter().filter(named).collect()
}

/// The doubling kernel with its buffers.
struct Double {
    gpu: Gpu,
    x: Buffer,
    y: Buffer,
    params: Buffer,
    recording: Arc<Recording>,
}

impl Double {
    fn new(gpu: &Gpu, len: u32, trusted: bool) -> Double {
        let n_bytes = u64::from(len) * 4;
        let x = gpu.buffer("x", n_bytes, BufferUse::Storage).unwrap();
        let y = gpu.buffer("y", n_bytes, BufferUse::Storage).unwrap();
        let params = gpu.buffer("params", 1024, BufferUse::Uniform).unwrap();
        let pipeline = gpu.pipeline(&desc(DOUBLE, trusted)).unwrap();
        let slices = [
            BindingSlice { buffer: &x, offset: 0, size: n_bytes },
            BindingSlice { buffer: &y, offset: 0, size: n_bytes },
            BindingSlice { buffer: &params, offset: 0, size: 16 },
        ];
        let bind_group = gpu.bind_group(&pipeline, &slices).unwrap();
        let dispatch = Command::Dispatch {
            pipeline,
            bind_group,
            dynamic_offsets: smallvec![256],
            groups: [len.div_ceil(64), 1, 1],
        };
        let clear = Command::Clear { buffer: y.clone(), offset: 0, size: n_bytes };
        let recording = gpu.recording(vec![clear, dispatch]).unwrap();
        Double { gpu: gpu.clone(), x, y, params, recording }
    }

    fn run(&self, values: &[f32], timestamps: Timestamps) -> Result<RunOutput, GpuError> {
        let n = [values.len() as u32, 0, 0, 0];
        let uploads = [
            Upload { bytes: bytemuck::cast_slice(values), dst: &self.x, offset: 0 },
            Upload { bytes: bytemuck::bytes_of(&n), dst: &self.params, offset: 256 },
        ];
        let size = values.len() as u64 * 4;
        let downloads = [Download { src: &self.y, offset: 0, size }];
        self.gpu.run(&Submission {
            uploads: &uploads,
            recording: Some(&self.recording),
            downloads: &downloads,
            timestamps,
            ..Submission::default()
        })
    }

    #[track_caller]
    fn check(&self, values: &[f32]) {
        let output = self.run(values, Timestamps::None).unwrap();
        let doubled: Vec<f32> = values.iter().map(|v| 2.0 * v).collect();
        assert_eq!(bytemuck::cast_slice::<u8, f32>(&output.data[0]), doubled);
    }
}

fn round_trip(gpu: &Gpu, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let uploads = [Upload { bytes, dst: buffer, offset }];
    let downloads = [Download { src: buffer, offset, size: bytes.len() as u64 }];
    let work = Submission { uploads: &uploads, downloads: &downloads, ..Submission::default() };
    gpu.run(&work).unwrap().data.swap_remove(0).to_vec()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[test]
fn bytes_come_back_whatever_their_number() {
    let gpu = noop();
    let buffer = gpu.buffer("b", 1 << 20, BufferUse::Storage).unwrap();
    for len in [0, 1, 2, 3, 4, 5, 15, 16, 17, 65_535, 65_537, 1 << 20] {
        assert_eq!(round_trip(&gpu, &buffer, 0, &pattern(len)), pattern(len), "{len} bytes");
    }
    assert_eq!(round_trip(&gpu, &buffer, 1028, &pattern(33)), pattern(33));
    assert_eq!(gpu.stray_error(), None);
}

#[test]
fn uploads_are_split_over_chunks() {
    let limits = LimitOverrides { max_buffer_size: Some(1 << 17), ..Default::default() };
    let gpu = Gpu::open(&Adapter::noop_with(limits), &GpuOptions::default()).unwrap();
    let buffers: Vec<Buffer> =
        (0..3).map(|_| gpu.buffer("b", 1 << 17, BufferUse::Storage).unwrap()).collect();
    let bytes = [pattern(100_003), pattern(131_072), pattern(7)];
    let uploads: Vec<Upload> =
        buffers.iter().zip(&bytes).map(|(dst, bytes)| Upload { bytes, dst, offset: 0 }).collect();
    let download =
        |(src, bytes): (_, &Vec<u8>)| Download { src, offset: 0, size: bytes.len() as u64 };
    let downloads: Vec<Download> = buffers.iter().zip(&bytes).map(download).collect();
    let work = Submission { uploads: &uploads, downloads: &downloads, ..Submission::default() };
    let output = gpu.run(&work).unwrap();
    for (got, expected) in output.data.iter().zip(&bytes) {
        assert!(**got == **expected);
    }
    assert_eq!(output.submissions, 1);
    assert_eq!(output.upload_bytes, 100_004 + 131_072 + 8);
}

#[test]
fn later_uploads_win_and_recordings_run_between() {
    let gpu = noop();
    let a = gpu.buffer("a", 16, BufferUse::Storage).unwrap();
    let b = gpu.buffer("b", 16, BufferUse::Storage).unwrap();
    let (src, dst) = (a.clone(), b.clone());
    let copy = Command::Copy { src, src_offset: 4, dst, dst_offset: 8, size: 4 };
    let clear = Command::Clear { buffer: a.clone(), offset: 4, size: 4 };
    let nothing = Command::Clear { buffer: a.clone(), offset: 4, size: 0 };
    let recording = gpu.recording(vec![copy, nothing, clear]).unwrap();
    assert_eq!(recording.to_string(), "copy 4 bytes 4 -> 8\nclear 4 bytes at 4\n");
    let work = Submission {
        uploads: &[
            Upload { bytes: &[9; 16], dst: &a, offset: 0 },
            Upload { bytes: &[1, 2, 3, 4], dst: &a, offset: 4 },
        ],
        recording: Some(&recording),
        downloads: &[
            Download { src: &a, offset: 0, size: 9 },
            Download { src: &b, offset: 8, size: 4 },
        ],
        ..Submission::default()
    };
    let output = gpu.run(&work).unwrap();
    assert_eq!(*output.data[0], [9, 9, 9, 9, 0, 0, 0, 0, 9]);
    assert_eq!(*output.data[1], [1, 2, 3, 4]);
    assert_eq!((output.copies, output.dispatches, output.submissions), (2, 0, 1));
}

#[test]
fn an_empty_submission_submits_nothing() {
    let gpu = noop();
    let before = gpu.counters();
    assert_eq!(gpu.run(&Submission::default()).unwrap(), RunOutput::default());
    assert_eq!(gpu.counters(), before);
}

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

#[test]
fn limits_and_features_can_be_lowered_and_not_raised() {
    let limits = LimitOverrides {
        max_buffer_size: Some(1 << 20),
        max_storage_buffers_per_shader_stage: Some(1),
        max_compute_workgroups_per_dimension: Some(1 << 30),
        ..LimitOverrides::default()
    };
    let features = GpuFeatures { f16: false, ..GpuFeatures::ALL };
    let options = GpuOptions { limits: Some(limits), features, ..GpuOptions::default() };
    let gpu = Gpu::open(&Adapter::noop(), &options).unwrap();
    assert_eq!(gpu.info().limits.max_buffer_size, 1 << 20);
    assert_eq!(gpu.info().limits.max_compute_workgroups_per_dimension, 65_535);
    assert_eq!(gpu.info().features, features);
    let error = gpu.pipeline(&desc(DOUBLE, false)).unwrap_err();
    let limit = "max_storage_buffers_per_shader_stage";
    assert_eq!(error, GpuError::LimitExceeded { limit, max: 1, got: 2 });
}

#[test]
fn a_bad_shader_is_refused_with_nagas_message() {
    let gpu = noop();
    let error = gpu.pipeline(&desc("@compute @workgroup_size(1)\nfn main() { x = 1; }", false));
    let GpuError::Shader { label, message } = error.unwrap_err() else {
        panic!("not a shader error")
    };
    assert_eq!(label, "double");
    assert!(message.contains("no definition in scope for identifier: `x`"), "{message}");
    assert!(message.contains("wgsl:2:"), "{message}");
    let no_main = DOUBLE.replace("fn main", "fn other");
    assert_eq!(gpu.pipeline(&desc(&no_main, false)).unwrap_err().kind(), GpuErrorKind::Shader);
    let one_more = DOUBLE.replace("@group(0) @binding(2)", "@group(0) @binding(3)");
    assert_eq!(gpu.pipeline(&desc(&one_more, false)).unwrap_err().kind(), GpuErrorKind::Shader);
    assert_eq!(gpu.counters().pipelines_created, 0);
    gpu.pipeline(&desc(DOUBLE, false)).unwrap();
    assert_eq!(gpu.stray_error(), None);
}

#[test]
fn equal_pipelines_are_made_once() {
    let options = GpuOptions { checked_shaders: false, max_pipelines: 2, ..GpuOptions::default() };
    let gpu = Gpu::open(&Adapter::noop(), &options).unwrap();
    let first = gpu.pipeline(&desc(DOUBLE, false)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                assert!(Arc::ptr_eq(&gpu.pipeline(&desc(DOUBLE, false)).unwrap(), &first));
            });
        }
    });
    assert_eq!(gpu.counters().pipelines_created, 1);
    gpu.pipeline(&desc(DOUBLE, true)).unwrap();
    assert_eq!(gpu.counters().pipelines_created, 2);
    // A third evicts the second, which nobody holds, and not the first.
    let other = DOUBLE.replace("2.0", "3.0");
    gpu.pipeline(&desc(&other, false)).unwrap();
    assert!(Arc::ptr_eq(&gpu.pipeline(&desc(DOUBLE, false)).unwrap(), &first));
    assert_eq!(gpu.counters().pipelines_created, 3);
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, GpuError>, text: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), GpuErrorKind::Validation);
    assert!(error.to_string().contains(text), "{error}");
}

#[test]
fn bad_bindings_are_refused() {
    let gpu = noop();
    let Double { x, y, params, .. } = Double::new(&gpu, 4, false);
    let pipeline = gpu.pipeline(&desc(DOUBLE, false)).unwrap();
    let slice = |buffer, offset, size| BindingSlice { buffer, offset, size };
    let bind = |slices: [BindingSlice; 3]| gpu.bind_group(&pipeline, &slices);
    let (a, b, c) = (slice(&x, 0, 16), slice(&y, 0, 16), slice(&params, 0, 16));
    bind([a, b, c]).unwrap();
    refused(gpu.bind_group(&pipeline, &[a]), "has 3 bindings, got 1 buffers");
    refused(
        bind([a, a, c]),
        "bindings 0 (read) and 1 (read_write) of pipeline \"double\" are one buffer",
    );
    refused(bind([c, b, c]), "expected a Storage buffer, got Uniform");
    refused(bind([slice(&x, 4, 4), b, c]), "offset 4 is not a multiple of 256");
    refused(bind([slice(&x, 0, 17), b, c]), "20 bytes at offset 0 don't fit a buffer of 16 bytes");
    let foreign = noop().buffer("f", 16, BufferUse::Storage).unwrap();
    refused(bind([slice(&foreign, 0, 16), b, c]), "another device");
    let limits =
        LimitOverrides { max_storage_buffer_binding_size: Some(64), ..LimitOverrides::default() };
    let small = Gpu::open(&Adapter::noop_with(limits), &GpuOptions::default()).unwrap();
    let big = small.buffer("big", 128, BufferUse::Storage).unwrap();
    let pipeline = small.pipeline(&desc(DOUBLE, false)).unwrap();
    let error = small.bind_group(&pipeline, &[slice(&big, 0, 128); 3]).unwrap_err();
    assert_eq!(error.kind(), GpuErrorKind::Validation, "one buffer read and written");
    let (other, params) = (
        small.buffer("other", 64, BufferUse::Storage).unwrap(),
        small.buffer("params", 64, BufferUse::Uniform).unwrap(),
    );
    let slices = [slice(&big, 0, 128), slice(&other, 0, 64), slice(&params, 0, 16)];
    let error = small.bind_group(&pipeline, &slices).unwrap_err();
    let limit = "max_storage_buffer_binding_size";
    assert_eq!(error, GpuError::LimitExceeded { limit, max: 64, got: 128 });
}

#[test]
fn bad_commands_are_refused() {
    let gpu = noop();
    let double = Double::new(&gpu, 4, false);
    let Some(Command::Dispatch { pipeline, bind_group, .. }) = double.recording.commands().get(1)
    else {
        panic!("the second command is the dispatch");
    };
    let dispatch = |dynamic_offsets: SmallVec<[u32; 1]>, groups| {
        let (pipeline, bind_group) = (pipeline.clone(), bind_group.clone());
        gpu.recording(vec![Command::Dispatch { pipeline, bind_group, dynamic_offsets, groups }])
    };
    refused(dispatch(smallvec![], [1; 3]), "takes 1 dynamic offsets, got 0");
    refused(dispatch(smallvec![4], [1; 3]), "has to be a multiple of 256 and at most 1008");
    refused(dispatch(smallvec![1024], [1; 3]), "has to be a multiple of 256 and at most 1008");
    let error = dispatch(smallvec![0], [1, 65_536, 1]).unwrap_err();
    assert_eq!(error.kind(), GpuErrorKind::LimitExceeded);
    assert_eq!(dispatch(smallvec![0], [1, 0, 1]).unwrap().n_dispatches(), 0);
    let copy = |src: &Buffer, dst: &Buffer, src_offset, size| {
        let (src, dst) = (src.clone(), dst.clone());
        gpu.recording(vec![Command::Copy { src, src_offset, dst, dst_offset: 0, size }])
    };
    let (x, y) = (&double.x, &double.y);
    refused(copy(x, x, 0, 4), "source and destination are one buffer");
    refused(copy(x, y, 2, 4), "offset 2 is not a multiple of 4");
    refused(copy(x, y, 0, 3), "size 3 is not a multiple of 4");
    refused(copy(x, y, 4, 16), "16 bytes at offset 4 don't fit a buffer of 16 bytes");
    refused(copy(x, y, u64::MAX - 3, 16), "don't fit");
}

#[test]
fn bad_transfers_are_refused_and_do_nothing() {
    let gpu = noop();
    let buffer = gpu.buffer("b", 16, BufferUse::Storage).unwrap();
    let before = gpu.counters().submissions;
    let upload = |bytes: &[u8], offset| {
        let uploads = [Upload { bytes, dst: &buffer, offset }];
        gpu.run(&Submission { uploads: &uploads, ..Submission::default() })
    };
    refused(upload(&[0; 17], 0), "20 bytes at offset 0 don't fit a buffer of 16 bytes");
    refused(upload(&[0; 4], 2), "offset 2 is not a multiple of 4");
    let download = |offset, size| {
        let downloads = [Download { src: &buffer, offset, size }];
        gpu.run(&Submission { downloads: &downloads, ..Submission::default() })
    };
    refused(download(16, 1), "4 bytes at offset 16 don't fit");
    refused(download(0, u64::MAX), "don't fit");
    assert_eq!(gpu.counters().submissions, before);
}

#[test]
fn a_passed_deadline_stops_the_work() {
    let gpu = noop();
    let buffer = gpu.buffer("b", 16, BufferUse::Storage).unwrap();
    let uploads = [Upload { bytes: &[1; 16], dst: &buffer, offset: 0 }];
    let deadline = Some(Instant::now() - Duration::from_secs(1));
    let work = Submission { uploads: &uploads, deadline, ..Submission::default() };
    let error = gpu.run(&work).unwrap_err();
    assert!(matches!(error, GpuError::Timeout { submitted: false, .. }), "{error}");
    let deadline = Some(Instant::now() + Duration::from_secs(60));
    gpu.run(&Submission { deadline, ..work }).unwrap();
    assert_eq!(gpu.counters().submissions, 1);
}

#[test]
fn submissions_can_be_waited_for_in_any_order_or_not_at_all() {
    let gpu = noop();
    let buffer = gpu.buffer("b", 4, BufferUse::Storage).unwrap();
    let submit = |i: u8| {
        let uploads = [Upload { bytes: &[i; 4], dst: &buffer, offset: 0 }];
        let downloads = [Download { src: &buffer, offset: 0, size: 4 }];
        let work = Submission { uploads: &uploads, downloads: &downloads, ..Submission::default() };
        gpu.submit(&work).unwrap()
    };
    let mut pending: Vec<(u8, Pending)> = (0..100).map(|i| (i, submit(i))).collect();
    pending.truncate(90);
    for (i, pending) in pending.into_iter().rev() {
        assert_eq!(*pending.wait().unwrap().data[0], [i; 4]);
    }
    let last = submit(7);
    drop((gpu, buffer));
    assert_eq!(*last.wait().unwrap().data[0], [7; 4]);
}

#[test]
fn a_lost_device_answers_nothing_else() {
    type Lose = fn(&Gpu);
    let app = |options: &GpuOptions| {
        let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        Gpu::from_wgpu(device, queue, options).unwrap()
    };
    let own = |options: &GpuOptions| Gpu::open(&Adapter::noop(), options).unwrap();
    let ways: [Lose; 3] = [
        |gpu| gpu.destroy(),
        |gpu| gpu.notify_lost("the app said so"),
        |gpu| gpu.device().destroy(),
    ];
    for lose in ways {
        for gpu in [app(&GpuOptions::default()), own(&GpuOptions::default())] {
            all_calls_answer_lost(&gpu, lose);
        }
    }
}

fn all_calls_answer_lost(gpu: &Gpu, lose: fn(&Gpu)) {
    let double = Double::new(gpu, 4, false);
    let pipeline = gpu.pipeline(&desc(DOUBLE, false)).unwrap();
    double.run(&[1.0; 4], Timestamps::None).unwrap();
    lose(gpu);
    let lost = |kind: GpuErrorKind| assert_eq!(kind, GpuErrorKind::Lost);
    let slices = [
        BindingSlice { buffer: &double.x, offset: 0, size: 16 },
        BindingSlice { buffer: &double.y, offset: 0, size: 16 },
        BindingSlice { buffer: &double.params, offset: 0, size: 16 },
    ];
    // Each of these may be the first to notice.
    lost(
        gpu.run(&Submission { recording: Some(&double.recording), ..Default::default() })
            .unwrap_err()
            .kind(),
    );
    lost(double.run(&[1.0; 4], Timestamps::None).unwrap_err().kind());
    lost(gpu.run(&Submission::default()).unwrap_err().kind());
    lost(gpu.buffer("b", 4, BufferUse::Storage).unwrap_err().kind());
    lost(gpu.pipeline(&desc(DOUBLE, false)).unwrap_err().kind());
    lost(gpu.bind_group(&pipeline, &slices).unwrap_err().kind());
    lost(gpu.lost().unwrap().kind());
    assert_eq!(gpu.stray_error(), None);
}

#[test]
fn handles_can_go_to_other_threads() {
    fn check<T: Send + Sync + 'static>() {}
    check::<(Gpu, Adapter, Buffer, BindGroup, Arc<Pipeline>, Arc<Recording>, GpuError, RunOutput)>(
    );
}

#[test]
fn the_thread_ends_with_the_last_handle() {
    let gpu = noop();
    let weak = Arc::downgrade(&gpu.0.shared);
    let buffer = gpu.buffer("b", 4, BufferUse::Storage).unwrap();
    drop(gpu.clone());
    assert!(weak.upgrade().is_some());
    drop(gpu);
    assert!(weak.upgrade().is_none(), "the owner thread still holds the device");
    drop(buffer);
}

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
