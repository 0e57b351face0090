//! Runs a program's segments on wgpu.
//!
//! `gpu` is the device layer: buffers, pipelines, submissions. `segment` puts kernels and memory of a program's
//! segments on it. [`supports`] tells placement what a device can do.

pub mod gpu;
mod segment;

pub use segment::{
    Carried, GpuInstance, GpuRun, GpuSegment, GpuTensor, GpuTensors, GpuVariables, Lease, Loading,
    Origin, RunOptions, Running, Sent, Work, supports,
};
pub use segment::{CompileError, to_error};
pub use wgpu;

/// A device that the app made, with what it was made with.
///
/// # Errors
/// A lost device, no memory, no thread.
pub fn adopt(
    device: wgpu::Device,
    queue: wgpu::Queue,
) -> Result<gpu::Gpu, convoke_graph_core::Error> {
    gpu::Gpu::from_wgpu(device, queue, &gpu::GpuOptions::default()).map_err(|e| to_error(&e))
}
