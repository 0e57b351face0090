//! Compute pipelines, each made once per device, and the bind groups for them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::buffer::{Buffer, BufferUse};
use super::device::{Shared, lock};
use super::disk_cache::DiskCache;
use super::{GpuError, error, trusted};

/// How a shader sees one binding of group 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BindingKind {
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    ReadWrite,
    /// `var<uniform>`.
    Uniform {
        /// Whether each dispatch gives an offset that is added to the bind group's.
        dynamic: bool,
    },
}

/// What a pipeline is made from.
#[derive(Debug, Clone, Copy)]
pub struct PipelineDesc<'a> {
    /// A name for messages and debuggers. Pipelines that differ in it alone are one.
    pub label: &'a str,
    /// The whole shader; its entry point is `main`.
    pub wgsl: &'a str,
    /// The bindings of group 0, from binding 0 on.
    pub bindings: &'a [BindingKind],
    /// Drops bounds checks and loop bounding, unless [`super::GpuOptions::checked_shaders`].
    ///
    /// It is the caller's promise that no input and no data can bring an index out of its binding or a loop
    /// past its bound. Where it is broken, the shader reads and writes memory that isn't its own.
    pub trusted: bool,
}

/// A compiled shader.
#[derive(Debug)]
pub struct Pipeline {
    pub(super) raw: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    label: String,
    bindings: SmallVec<[BindingKind; 8]>,
}

/// A part of a buffer, to be bound.
#[derive(Debug, Clone, Copy)]
pub struct BindingSlice<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// Bytes from its start; a multiple of the device's offset alignment.
    pub offset: u64,
    /// Bytes that the shader sees, rounded up to a multiple of 4, at least 4. For a dynamic uniform, what it
    /// sees from each dynamic offset on.
    pub size: u64,
}

/// Buffers bound to the bindings of a pipeline, or of any other with the same bindings. A cheap handle that
/// keeps the buffers alive.
#[derive(Debug, Clone)]
pub struct BindGroup(Arc<Bound>);

#[derive(Debug)]
struct Bound {
    raw: wgpu::BindGroup,
    bindings: SmallVec<[BindingKind; 8]>,
    /// For each dynamic uniform, in order, the largest offset that stays within its buffer.
    max_offsets: SmallVec<[u64; 1]>,
    _buffers: SmallVec<[Buffer; 8]>,
}

impl Pipeline {
    /// The label that it was first made with.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The bindings of group 0.
    pub fn bindings(&self) -> &[BindingKind] {
        &self.bindings
    }

    /// wgpu's handle.
    pub fn raw(&self) -> &wgpu::ComputePipeline {
        &self.raw
    }
}

impl BindGroup {
    /// wgpu's handle.
    pub fn raw(&self) -> &wgpu::BindGroup {
        &self.0.raw
    }

    pub(super) fn same(&self, other: &BindGroup) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Refuses a bind group made for other bindings, and dynamic offsets that don't fit.
    pub(super) fn check(
        &self,
        pipeline: &Pipeline,
        offsets: &[u32],
        alignment: u32,
    ) -> Result<(), GpuError> {
        let refuse = |message: String| Err(GpuError::validation("dispatch", message));
        if self.0.bindings != pipeline.bindings {
            return refuse(format!(
                "pipeline {:?} has bindings {:?}, the bind group was made for {:?}",
                pipeline.label, pipeline.bindings, self.0.bindings
            ));
        }
        if offsets.len() != self.0.max_offsets.len() {
            return refuse(format!(
                "pipeline {:?} takes {} dynamic offsets, got {}",
                pipeline.label,
                self.0.max_offsets.len(),
                offsets.len()
            ));
        }
        for (&offset, &max) in offsets.iter().zip(&self.0.max_offsets) {
            if !offset.is_multiple_of(alignment) || u64::from(offset) > max {
                return refuse(format!(
                    "dynamic offset {offset} of pipeline {:?} has to be a multiple of {alignment} and at \
                     most {max}",
                    pipeline.label
                ));
            }
        }
        Ok(())
    }
}

/// What decides whether two pipelines are one.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    wgsl: Box<str>,
    bindings: SmallVec<[BindingKind; 8]>,
    trusted: bool,
}

/// A place for one pipeline; locked while it is compiled, so that two threads don't both do it.
type Cell = Arc<Mutex<Option<Arc<Pipeline>>>>;

/// The pipelines of one device.
#[derive(Debug)]
pub(super) struct PipelineCache {
    max: usize,
    cells: Mutex<FxHashMap<Key, Cell>>,
}

impl PipelineCache {
    pub(super) fn new(max: usize) -> PipelineCache {
        PipelineCache { max, cells: Mutex::default() }
    }

    /// Whether a pipeline is there, or somebody is compiling it.
    fn contains(&self, key: &Key) -> bool {
        let cells = lock(&self.cells);
        cells.get(key).is_some_and(|cell| cell.try_lock().map_or(true, |cell| cell.is_some()))
    }

    fn cell(&self, key: Key) -> Cell {
        let mut cells = lock(&self.cells);
        if let Some(cell) = cells.get(&key) {
            return cell.clone();
        }
        if cells.len() >= self.max {
            // Keeps what is being compiled and what somebody holds.
            cells.retain(|_, cell| match cell.try_lock() {
                Ok(pipeline) => pipeline.as_ref().is_some_and(|p| Arc::strong_count(p) > 1),
                Err(_) => true,
            });
        }
        cells.entry(key).or_default().clone()
    }
}

impl Shared {
    /// The pipeline of `desc`, compiled on the calling thread if it isn't there yet.
    pub(super) fn pipeline(&self, desc: &PipelineDesc<'_>) -> Result<Arc<Pipeline>, GpuError> {
        self.lost.check()?;
        let key = self.key(desc);
        let trusted = key.trusted;
        let cell = self.pipelines.cell(key);
        let mut place = lock(&cell);
        if let Some(pipeline) = &*place {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(self.compile(desc, trusted)?);
        *place = Some(pipeline.clone());
        Ok(pipeline)
    }

    /// The pipelines of `descs`, or the first that fails. Those that aren't there yet are compiled side by side
    /// on threads of their own.
    pub(super) fn pipelines(
        &self,
        descs: &[PipelineDesc<'_>],
    ) -> Result<Vec<Arc<Pipeline>>, (usize, GpuError)> {
        let mut seen = FxHashSet::default();
        let distinct = descs.iter().filter(|desc| seen.insert(self.key(desc)));
        let (found, new): (Vec<&PipelineDesc<'_>>, Vec<&PipelineDesc<'_>>) =
            distinct.partition(|desc| self.pipelines.contains(&self.key(desc)));
        self.meter.pipelines_found.fetch_add(found.len() as u64, Relaxed);
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        let n_threads = n_cores.min(new.len());
        if n_threads > 1 {
            let next = AtomicUsize::new(0);
            let work = || {
                while let Some(desc) = new.get(next.fetch_add(1, Relaxed)) {
                    // One that is refused is tried again below, where its error is told.
                    let _ = self.pipeline(desc);
                }
            };
            std::thread::scope(|scope| {
                for _ in 1..n_threads {
                    let thread = std::thread::Builder::new().name("convoke-pipelines".to_owned());
                    // Without the thread, the others have more to do.
                    let _ = thread.spawn_scoped(scope, work);
                }
                work();
            });
        }
        let both = descs.iter().enumerate();
        both.map(|(i, desc)| self.pipeline(desc).map_err(|error| (i, error))).collect()
    }

    fn key(&self, desc: &PipelineDesc<'_>) -> Key {
        let trusted = desc.trusted && !self.checked_shaders;
        Key { wgsl: desc.wgsl.into(), bindings: desc.bindings.into(), trusted }
    }

    fn compile(&self, desc: &PipelineDesc<'_>, trusted: bool) -> Result<Pipeline, GpuError> {
        let storage =
            |kind: &&BindingKind| matches!(kind, BindingKind::Read | BindingKind::ReadWrite);
        let n_storage = desc.bindings.iter().filter(storage).count() as u64;
        let max = self.info.limits.max_storage_buffers_per_shader_stage.into();
        GpuError::check_limit("max_storage_buffers_per_shader_stage", max, n_storage)?;
        let layout =
            self.scoped("bindings", 0, || self.bind_group_layout(desc.label, desc.bindings))?;
        let refused = |message| GpuError::Shader { label: desc.label.to_owned(), message };
        // Shader translation and drivers panic on some shaders that are merely unusual.
        let build = AssertUnwindSafe(|| {
            let module = self.scoped("shader", 0, || self.module(desc, trusted))?;
            self.meter.shader_modules_created.fetch_add(1, Relaxed);
            self.scoped("pipeline", 0, || self.raw_pipeline(desc, &layout, &module))
        });
        let raw = match catch_unwind(build) {
            Ok(Ok(raw)) => raw,
            Ok(Err(GpuError::Validation { message, .. } | GpuError::Internal { message })) => {
                return Err(refused(message));
            }
            Ok(Err(error)) => return Err(error),
            Err(payload) => {
                return Err(refused(format!(
                    "the compiler panicked: {}",
                    error::panic_message(&*payload)
                )));
            }
        };
        self.meter.pipelines_created.fetch_add(1, Relaxed);
        let (label, bindings) = (desc.label.to_owned(), desc.bindings.into());
        Ok(Pipeline { raw, layout, label, bindings })
    }

    fn module(&self, desc: &PipelineDesc<'_>, trusted: bool) -> wgpu::ShaderModule {
        if trusted {
            return trusted::create_module(&self.device, desc.label, desc.wgsl);
        }
        self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(desc.label),
            source: wgpu::ShaderSource::Wgsl(desc.wgsl.into()),
        })
    }

    fn bind_group_layout(&self, label: &str, bindings: &[BindingKind]) -> wgpu::BindGroupLayout {
        let entry = |(binding, kind): (u32, &BindingKind)| {
            let (ty, has_dynamic_offset) = match *kind {
                BindingKind::Read => (wgpu::BufferBindingType::Storage { read_only: true }, false),
                BindingKind::ReadWrite => {
                    (wgpu::BufferBindingType::Storage { read_only: false }, false)
                }
                BindingKind::Uniform { dynamic } => (wgpu::BufferBindingType::Uniform, dynamic),
            };
            wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
                count: None,
            }
        };
        let entries: SmallVec<[_; 8]> = (0..).zip(bindings).map(entry).collect();
        let desc = wgpu::BindGroupLayoutDescriptor { label: Some(label), entries: &entries };
        self.device.create_bind_group_layout(&desc)
    }

    fn raw_pipeline(
        &self,
        desc: &PipelineDesc<'_>,
        layout: &wgpu::BindGroupLayout,
        module: &wgpu::ShaderModule,
    ) -> wgpu::ComputePipeline {
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(desc.label),
            bind_group_layouts: &[Some(layout)],
            immediate_size: 0,
        });
        self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(desc.label),
            layout: Some(&layout),
            module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Kernels write workgroup memory before they read it.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.disk_cache.as_ref().map(DiskCache::raw),
        })
    }

    /// Binds one slice to each binding of `pipeline`.
    pub(super) fn bind_group(
        &self,
        pipeline: &Pipeline,
        slices: &[BindingSlice<'_>],
    ) -> Result<BindGroup, GpuError> {
        let kinds = &pipeline.bindings;
        if slices.len() != kinds.len() {
            return Err(GpuError::validation(
                "bind group",
                format!(
                    "pipeline {:?} has {} bindings, got {} buffers",
                    pipeline.label,
                    kinds.len(),
                    slices.len()
                ),
            ));
        }
        check_aliases(pipeline, slices)?;
        let mut entries = SmallVec::<[_; 8]>::new();
        let mut max_offsets = SmallVec::new();
        for ((binding, kind), slice) in (0..).zip(kinds).zip(slices) {
            let size = self.check_slice(*kind, slice)?;
            if *kind == (BindingKind::Uniform { dynamic: true }) {
                max_offsets.push(slice.buffer.n_bytes_padded() - slice.offset - size);
            }
            let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: slice.buffer.raw(),
                offset: slice.offset,
                size: wgpu::BufferSize::new(size),
            });
            entries.push(wgpu::BindGroupEntry { binding, resource });
        }
        let desc = wgpu::BindGroupDescriptor {
            label: Some(&pipeline.label),
            layout: &pipeline.layout,
            entries: &entries,
        };
        let raw = self.scoped("bind group", 0, || self.device.create_bind_group(&desc))?;
        self.meter.bind_groups_created.fetch_add(1, Relaxed);
        let buffers = slices.iter().map(|slice| slice.buffer.clone()).collect();
        Ok(BindGroup(Arc::new(Bound {
            raw,
            bindings: kinds.clone(),
            max_offsets,
            _buffers: buffers,
        })))
    }

    /// The size to bind, or what is wrong with the slice.
    fn check_slice(&self, kind: BindingKind, slice: &BindingSlice<'_>) -> Result<u64, GpuError> {
        let limits = &self.info.limits;
        let (needed, limit, max, alignment) = match kind {
            BindingKind::Read | BindingKind::ReadWrite => (
                BufferUse::Storage,
                "max_storage_buffer_binding_size",
                limits.max_storage_buffer_binding_size,
                limits.min_storage_buffer_offset_alignment,
            ),
            BindingKind::Uniform { .. } => (
                BufferUse::Uniform,
                "max_uniform_buffer_binding_size",
                limits.max_uniform_buffer_binding_size,
                limits.min_uniform_buffer_offset_alignment,
            ),
        };
        let size = slice.size.checked_next_multiple_of(4).unwrap_or(u64::MAX).max(4);
        GpuError::check_limit(limit, max, size)?;
        slice.buffer.check_range("bind group", &self.meter, slice.offset, size)?;
        if slice.buffer.buffer_use() != needed {
            return Err(GpuError::validation(
                "bind group",
                format!("expected a {needed:?} buffer, got {:?}", slice.buffer.buffer_use()),
            ));
        }
        if !slice.offset.is_multiple_of(alignment.into()) {
            return Err(GpuError::validation(
                "bind group",
                format!("offset {} is not a multiple of {alignment}", slice.offset),
            ));
        }
        Ok(size)
    }
}

/// Refuses one buffer as read-only and read-write, which wgpu would refuse only when it is dispatched.
fn check_aliases(pipeline: &Pipeline, slices: &[BindingSlice<'_>]) -> Result<(), GpuError> {
    let bound = |wanted: BindingKind| {
        let both = pipeline.bindings.iter().zip(slices).enumerate();
        both.filter(move |(_, (kind, _))| **kind == wanted).map(|(i, (_, slice))| (i, slice.buffer))
    };
    for (read, buffer) in bound(BindingKind::Read) {
        if let Some((written, _)) =
            bound(BindingKind::ReadWrite).find(|(_, other)| buffer.same(other))
        {
            return Err(GpuError::validation(
                "bind group",
                format!(
                    "bindings {read} (read) and {written} (read_write) of pipeline {:?} are one buffer; put \
                     them in different buffers",
                    pipeline.label
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Adapter, Gpu, GpuOptions};

    #[test]
    fn equal_pipelines_of_one_call_are_compiled_once() {
        let gpu = Gpu::open(&Adapter::noop(), &GpuOptions::default()).unwrap();
        let shader = |n: usize| {
            let set = format!("@compute @workgroup_size({n}) fn main() {{ x[0] = {n}u; }}");
            format!("@group(0) @binding(0) var<storage, read_write> x: array<u32>; {set}")
        };
        let texts: Vec<String> = (0..12).map(|i| shader(1 + i % 4)).collect();
        let desc = |wgsl| PipelineDesc {
            label: "set",
            wgsl,
            bindings: &[BindingKind::ReadWrite],
            trusted: false,
        };
        let descs: Vec<PipelineDesc<'_>> = texts.iter().map(|text| desc(text)).collect();
        let made = gpu.pipelines(&descs).unwrap();
        for (i, pipeline) in made.iter().enumerate() {
            assert!(Arc::ptr_eq(pipeline, &made[i % 4]), "{i}");
        }
        assert_eq!(gpu.counters().pipelines_created, 4);
        let refused = gpu.pipelines(&[descs[0], desc("fn main() {"), desc("?")]);
        assert!(matches!(refused, Err((1, GpuError::Shader { .. }))), "{refused:?}");
        assert_eq!(gpu.counters().pipelines_created, 4);
    }
}
