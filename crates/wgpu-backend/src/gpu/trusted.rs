//! Makes what wgpu makes only through unsafe functions: shader modules without bounds checks and loop bounding, and
//! pipeline caches with what a file held.
//!
//! The one file of this crate with `unsafe`. A kernel comes here only if the host has proved that its indices
//! are in range and its loops end, and the same kernel passes its tests with the checks on.

use super::disk_cache::Checked;

/// A module without bounds checks and loop bounding; the other runtime checks stay.
#[expect(unsafe_code, reason = "wgpu makes unchecked modules only through an unsafe function")]
pub(super) fn create_module(device: &wgpu::Device, label: &str, wgsl: &str) -> wgpu::ShaderModule {
    let mut checks = wgpu::ShaderRuntimeChecks::checked();
    checks.bounds_checks = false;
    checks.force_loop_bounding = false;
    let desc = wgpu::ShaderModuleDescriptor {
        label: Some(label),
        source: wgpu::ShaderSource::Wgsl(wgsl.into()),
    };
    // SAFETY: `PipelineDesc::trusted` is the caller's promise, made by the kernel table of this workspace and
    // never by an input, that every index is within its binding and every loop is bounded by the host.
    unsafe { device.create_shader_module_trusted(desc, checks) }
}

/// A pipeline cache that starts with `data`, or empty where the driver doesn't take that.
#[expect(unsafe_code, reason = "wgpu makes pipeline caches only through an unsafe function")]
pub(super) fn create_pipeline_cache(
    device: &wgpu::Device,
    data: Option<&Checked>,
) -> wgpu::PipelineCache {
    let data = data.map(Checked::bytes);
    let desc = wgpu::PipelineCacheDescriptor { label: Some("pipelines"), data, fallback: true };
    // SAFETY: `data` comes from `PipelineCache::get_data`: `Checked` is made only of a file whose checksum is right
    // and, on Unix, that nobody else may write; its name is that of this adapter and driver, and wgpu compares
    // the driver's own key.
    unsafe { device.create_pipeline_cache(&desc) }
}
