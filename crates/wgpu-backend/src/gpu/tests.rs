//! Tests of the device layer: its rules on wgpu's noop backend, its results on the adapters that
//! `CONVOKE_TEST_ADAPTERS` names (a comma list of parts of names, any case).

mod adapters;
mod losses;
mod memory;
mod parts;
mod pipelines;
mod refusals;
mod runs;
mod transfers;

use std::sync::Arc;

use smallvec::smallvec;

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
