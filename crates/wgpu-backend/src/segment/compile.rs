//! What of a segment is the same for all runs: pipelines, params, constants and the memory plan.

use std::fmt;
use std::sync::Arc;

use convoke_compiler::{Program, Segment, Source, ValueId};
use convoke_graph_core::{Error, HostTensor, NodeId, Shape};
use convoke_shaders::Access;
use rustc_hash::{FxHashMap, FxHashSet};

use super::error::{CompileError, to_error};
use super::instance::GpuInstance;
use super::memory::{self, Plan, Slot, Uses};
use super::pool::Pool;
use super::resident::GpuTensor;
use super::schedule::{Merging, Schedule, schedule};
use super::step::{Origin, Place, Step};
use super::variables::GpuVariables;
use crate::gpu::{
    BindingKind, Buffer, BufferUse, Gpu, GpuErrorKind, Pipeline, PipelineDesc, Submission, Upload,
};

/// Instances of one segment that may exist at once, where nothing else is said.
const MAX_INSTANCES: usize = 8;

/// A segment of a program, compiled for a device. Immutable; shared by all threads that run it.
pub struct GpuSegment {
    pub(super) gpu: Gpu,
    pub(super) schedule: Schedule,
    pub(super) pipelines: Vec<Arc<Pipeline>>,
    /// The params of all steps, one after the other.
    pub(super) params: Buffer,
    /// For each step, where its params are and how many bytes.
    pub(super) param_places: Vec<(u64, u64)>,
    /// Where each place lies that isn't computed.
    pub(super) fixed: FxHashMap<Place, Home>,
    pub(super) constants: Vec<Buffer>,
    pub(super) variables: FxHashMap<NodeId, Buffer>,
    pub(super) plan: Plan,
    /// The slot of each place that lies in a slab.
    pub(super) slots: FxHashMap<Place, usize>,
    /// Bytes of each upload arena.
    pub(super) upload_arenas: Vec<u64>,
    pub(super) uploads: Vec<(ValueId, Home, u64)>,
    pub(super) downloads: Vec<(Home, u64)>,
    /// What is copied to tensors that stay on the device.
    pub(super) residents: Vec<(Home, u64)>,
    /// Bytes of each tensor that is read and overwritten where it lies.
    pub(super) donated: Vec<u64>,
    /// What is copied from earlier segments, and then from variables elsewhere: where to, and bytes.
    pub(super) carried: Vec<(ValueId, Home, u64)>,
    /// Where values lie that later segments take.
    pub(super) kept: FxHashMap<ValueId, Home>,
    /// The shape of each value that a place is, for the sizes of bindings.
    pub(super) sizes: FxHashMap<Place, u64>,
    pub(super) shapes: Vec<Shape>,
    pub(super) pool: Pool<GpuInstance>,
    /// The name of each of the program's groups.
    pub(super) names: Vec<Arc<str>>,
}

/// Where a place lies in the buffers of a segment or an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// A slab and an offset.
    Slab(usize, u64),
    /// An arena of uploads and an offset.
    Upload(usize, u64),
    /// An arena of constants and an offset.
    Constant(usize, u64),
    /// A variable's own buffer.
    Variable(NodeId),
    /// A donated tensor's own buffer.
    Donated(usize),
    /// The status word's buffer.
    Status,
}

impl fmt::Debug for GpuSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.schedule, self.plan)
    }
}

/// The steps, the downloads and the memory plan.
impl fmt::Display for GpuSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.schedule, self.plan)
    }
}

impl GpuSegment {
    /// Compiles segment `segment_index` of `program` for the device: all pipelines, params and constants.
    ///
    /// # Errors
    /// A kernel that the driver refuses, groups that [`super::supports`] refuses, no memory, a lost device.
    pub fn compile(
        gpu: &Gpu,
        program: &Program,
        segment_index: usize,
        variables: &GpuVariables,
    ) -> Result<GpuSegment, CompileError> {
        let segment = program.segments.get(segment_index);
        let segment =
            segment.ok_or_else(|| Error::internal(format!("no segment {segment_index}")))?;
        let (schedule, pipelines) = scheduled(gpu, program, segment)?;
        let (params, param_places) = params(gpu, &schedule)?;
        let sizes = sizes(program, &schedule);
        let mut fixed = FxHashMap::default();
        fixed.insert(Place::Status, Home::Status);
        let sent = segment.uploads.iter().copied();
        let carried = segment.carried.iter().map(|&(id, _)| id).chain(segment.borrowed.clone());
        let mut arenas = Arenas::new(gpu);
        let uploads = place_uploads(&mut arenas, program, sent, &mut fixed)?;
        let carried = place_uploads(&mut arenas, program, carried, &mut fixed)?;
        let mut donated = Vec::with_capacity(segment.donations.len());
        for donation in &segment.donations {
            fixed.insert(Place::Value(donation.feed), Home::Donated(donated.len()));
            donated.push(program.value(donation.feed).n_bytes() as u64);
        }
        let constants = constants(gpu, program, &sizes, &mut fixed)?;
        let variables = needed_variables(&sizes, variables, &mut fixed)?;
        let (plan, slots) = plan(gpu, &schedule, &sizes, &fixed)?;
        let (kept, n_downloads) = (segment.kept.clone(), segment.downloads.len());
        let mut segment = GpuSegment {
            gpu: gpu.clone(),
            schedule,
            pipelines,
            params,
            param_places,
            fixed,
            constants,
            variables,
            plan,
            slots,
            upload_arenas: arenas.sizes,
            uploads,
            downloads: Vec::new(),
            residents: Vec::new(),
            donated,
            carried,
            kept: FxHashMap::default(),
            sizes,
            shapes: segment.uploads.iter().map(|&id| program.value(id).shape.clone()).collect(),
            pool: Pool::new(MAX_INSTANCES),
            names: Vec::new(),
        };
        for &place in &segment.schedule.downloads {
            let home = segment.home(place)?;
            let n_bytes = segment.sizes.get(&place).copied().unwrap_or(0);
            segment.downloads.push((home, n_bytes));
        }
        segment.residents = segment.downloads.split_off(n_downloads.min(segment.downloads.len()));
        for (&place, id) in segment.schedule.kept.iter().zip(kept) {
            segment.kept.insert(id, segment.home(place)?);
        }
        Ok(segment)
    }

    /// With at most `max` instances, and so as many runs at once; at least one.
    #[must_use]
    pub fn with_max_instances(mut self, max: usize) -> GpuSegment {
        self.pool = Pool::new(max);
        self
    }

    /// With a name for each of the program's groups, for errors in data.
    #[must_use]
    pub fn with_names(mut self, names: Vec<Arc<str>>) -> GpuSegment {
        self.names = names;
        self
    }

    /// Bytes of the slabs and upload arenas of one instance.
    pub fn instance_bytes(&self) -> u64 {
        self.plan.slabs.iter().chain(&self.upload_arenas).sum()
    }

    /// Bytes of the slabs of one instance, and the least that any plan would take for what lives at once.
    pub fn planned_bytes(&self) -> (u64, u64) {
        (self.plan.slabs.iter().sum(), self.plan.live_bytes)
    }

    /// Dispatches of one run.
    pub fn n_dispatches(&self) -> usize {
        self.schedule.steps.len()
    }

    /// How often the device has to wait for dispatches before it can go on with others: between levels of
    /// dispatches that don't depend on each other, and between two of one level that store parts of one value.
    pub fn n_barriers(&self) -> usize {
        let pairs = self.schedule.steps.windows(2);
        let waits = pairs.filter(|pair| {
            let [(level, step), (next, after)] = pair else { return false };
            let shares = |(place, _): &(Place, bool)| after.parts.iter().any(|(p, _)| p == place);
            level != next || step.parts.iter().any(shares)
        });
        waits.count()
    }

    /// The groups of the program that each step does the work of; none for the copies of commits.
    pub fn origins(&self) -> impl Iterator<Item = &[Origin]> {
        self.schedule.steps.iter().map(|(_, step)| step.origins.as_slice())
    }

    /// Whether a tensor is on the segment's device.
    pub fn has(&self, tensor: &GpuTensor) -> bool {
        self.gpu.same(tensor.gpu())
    }

    /// Whether a tensor is on the segment's device, or on another part of its GPU: then the segment can copy it.
    pub fn reaches(&self, tensor: &GpuTensor) -> bool {
        self.gpu.is_beside(tensor.gpu())
    }

    /// Where a place lies.
    pub(super) fn home(&self, place: Place) -> Result<Home, Error> {
        if let Some(home) = self.fixed.get(&place) {
            return Ok(*home);
        }
        let spot = self.slots.get(&place).and_then(|&slot| self.plan.spots.get(slot));
        let spot = spot.ok_or_else(|| Error::internal(format!("{place} lies nowhere")))?;
        Ok(Home::Slab(spot.slab, spot.offset))
    }
}

/// The work in order, and its pipelines.
fn scheduled(
    gpu: &Gpu,
    program: &Program,
    segment: &Segment,
) -> Result<(Schedule, Vec<Arc<Pipeline>>), CompileError> {
    let work = schedule(gpu.info(), program, segment, Merging::Alike)?;
    match pipelines(gpu, &work) {
        // Each alone may well be taken.
        Err(CompileError::Kernel { groups, .. }) if groups.len() > 1 => {
            let work = schedule(gpu.info(), program, segment, Merging::None)?;
            let pipelines = pipelines(gpu, &work)?;
            Ok((work, pipelines))
        }
        made => Ok((work, made?)),
    }
}

fn pipelines(gpu: &Gpu, schedule: &Schedule) -> Result<Vec<Arc<Pipeline>>, CompileError> {
    let kind = |access| match access {
        Access::Read => BindingKind::Read,
        Access::ReadWrite => BindingKind::ReadWrite,
    };
    let shader = |(_, step): &(u32, Step)| {
        let bindings = step.kernel.bindings().iter().map(|binding| kind(binding.access));
        let bindings = bindings.chain([BindingKind::Uniform { dynamic: false }]);
        (step.kernel.assemble(), bindings.collect::<Vec<_>>())
    };
    let shaders: Vec<(String, Vec<BindingKind>)> = schedule.steps.iter().map(shader).collect();
    let both = schedule.steps.iter().zip(&shaders);
    let descs: Vec<PipelineDesc<'_>> = both
        .map(|((_, step), (wgsl, bindings))| PipelineDesc {
            label: step.kernel.name(),
            wgsl,
            bindings,
            trusted: step.trusted,
        })
        .collect();
    gpu.pipelines(&descs).map_err(|(refused, error)| {
        let same =
            shaders.iter().zip(&schedule.steps).filter(|(shader, _)| **shader == shaders[refused]);
        let origins = same.flat_map(|(_, (_, step))| &step.origins);
        let groups: Vec<u32> = origins.map(|origin| origin.group).collect();
        if groups.is_empty() || error.kind() != GpuErrorKind::Shader {
            return CompileError::Other(to_error(&error));
        }
        CompileError::Kernel { groups, reason: error.to_string() }
    })
}

/// The params of all steps in one uniform buffer, and where those of each are.
fn params(gpu: &Gpu, schedule: &Schedule) -> Result<(Buffer, Vec<(u64, u64)>), Error> {
    let alignment = gpu.info().limits.min_uniform_buffer_offset_alignment.max(16) as usize;
    let mut bytes: Vec<u8> = Vec::new();
    let mut places: Vec<(u64, u64)> = Vec::new();
    for (_, step) in &schedule.steps {
        let mut own = step.kernel.param_bytes();
        own.resize(own.len().next_multiple_of(16), 0);
        places.push((bytes.len() as u64, own.len() as u64));
        bytes.extend(own);
        bytes.resize(bytes.len().next_multiple_of(alignment), 0);
    }
    let buffer = gpu.buffer("params", bytes.len() as u64, BufferUse::Uniform);
    let buffer = buffer.map_err(|e| to_error(&e))?;
    upload(gpu, &[(&buffer, 0, &bytes)])?;
    Ok((buffer, places))
}

fn upload(gpu: &Gpu, parts: &[(&Buffer, u64, &[u8])]) -> Result<(), Error> {
    let uploads: Vec<Upload<'_>> =
        parts.iter().map(|&(dst, offset, bytes)| Upload { bytes, dst, offset }).collect();
    let work = Submission { uploads: &uploads, ..Submission::default() };
    gpu.run(&work).map(|_| ()).map_err(|e| to_error(&e))
}

/// Bytes of each place that a step, a snapshot, a download or a later segment touches.
fn sizes(program: &Program, schedule: &Schedule) -> FxHashMap<Place, u64> {
    let mut variables: FxHashMap<NodeId, u64> = FxHashMap::default();
    for value in &program.values {
        if let Source::Variable(node) = value.source {
            variables.insert(node, value.n_bytes() as u64);
        }
    }
    for commit in program.segments.iter().flat_map(|segment| &segment.commits) {
        variables.insert(commit.variable, program.value(commit.value).n_bytes() as u64);
    }
    let steps = schedule.steps.iter().flat_map(|(_, step)| step.places.iter().copied());
    let snapshots = schedule.snapshots.iter().flat_map(|&(from, to)| [from, to]);
    steps
        .chain(snapshots)
        .chain(schedule.downloads.iter().chain(&schedule.kept).copied())
        .map(|place| {
            let n_bytes = match place {
                Place::Value(id) => program.value(id).n_bytes() as u64,
                Place::Variable(node) => variables.get(&node).copied().unwrap_or(0),
                Place::Scratch(i) => schedule.scratch.get(i as usize).copied().unwrap_or(0),
                Place::Status => convoke_placement::STATUS_BYTES,
            };
            (place, n_bytes)
        })
        .collect()
}

/// Places one after the other in arenas that are not too large for a buffer.
struct Arenas {
    alignment: u64,
    max: u64,
    sizes: Vec<u64>,
}

impl Arenas {
    fn new(gpu: &Gpu) -> Arenas {
        let limits = &gpu.info().limits;
        let alignment = u64::from(limits.min_storage_buffer_offset_alignment).max(16);
        Arenas { alignment, max: limits.max_buffer_size, sizes: Vec::new() }
    }

    fn place(&mut self, n_bytes: u64) -> (usize, u64) {
        let size = n_bytes.max(1).next_multiple_of(self.alignment);
        match self.sizes.last_mut() {
            Some(used) if *used + size <= self.max => *used += size,
            _ => self.sizes.push(size),
        }
        let arena = self.sizes.len() - 1;
        (arena, self.sizes[arena] - size)
    }
}

/// For each value that is brought, its home and size.
fn place_uploads(
    arenas: &mut Arenas,
    program: &Program,
    ids: impl Iterator<Item = ValueId>,
    fixed: &mut FxHashMap<Place, Home>,
) -> Result<Vec<(ValueId, Home, u64)>, Error> {
    let mut uploads = Vec::new();
    for id in ids {
        let n_bytes = program.value(id).n_bytes() as u64;
        let (arena, offset) = arenas.place(n_bytes);
        let home = Home::Upload(arena, offset);
        if fixed.insert(Place::Value(id), home).is_some() {
            return Err(Error::internal(format!("{id} is uploaded twice")));
        }
        uploads.push((id, home, n_bytes));
    }
    Ok(uploads)
}

/// Brings the constants that are needed to the device.
fn constants(
    gpu: &Gpu,
    program: &Program,
    sizes: &FxHashMap<Place, u64>,
    fixed: &mut FxHashMap<Place, Home>,
) -> Result<Vec<Buffer>, Error> {
    let mut arenas = Arenas::new(gpu);
    let mut needed: Vec<ValueId> = sizes
        .keys()
        .filter_map(|place| match place {
            Place::Value(id) if !fixed.contains_key(place) => Some(*id),
            _ => None,
        })
        .collect();
    needed.sort_unstable();
    let mut placed: Vec<(usize, u64, &HostTensor)> = Vec::new();
    for id in needed {
        if let Source::Constant(tensor) = &program.value(id).source {
            let (arena, offset) = arenas.place(tensor.bytes().len() as u64);
            fixed.insert(Place::Value(id), Home::Constant(arena, offset));
            placed.push((arena, offset, tensor));
        }
    }
    let buffer = |&size: &u64| gpu.buffer("constants", size, BufferUse::Storage);
    let buffers: Result<Vec<Buffer>, _> = arenas.sizes.iter().map(buffer).collect();
    let buffers = buffers.map_err(|e| to_error(&e))?;
    let parts: Vec<(&Buffer, u64, &[u8])> = placed
        .iter()
        .map(|&(arena, offset, tensor)| (&buffers[arena], offset, tensor.bytes()))
        .collect();
    upload(gpu, &parts)?;
    Ok(buffers)
}

fn needed_variables(
    sizes: &FxHashMap<Place, u64>,
    variables: &GpuVariables,
    fixed: &mut FxHashMap<Place, Home>,
) -> Result<FxHashMap<NodeId, Buffer>, Error> {
    let mut needed = FxHashMap::default();
    for (&place, &n_bytes) in sizes {
        if let Place::Variable(node) = place {
            needed.insert(node, variables.buffer(node, n_bytes)?);
            fixed.insert(place, Home::Variable(node));
        }
    }
    Ok(needed)
}

/// Refuses a segment that reads what nobody gives it.
fn check_written(
    schedule: &Schedule,
    sizes: &FxHashMap<Place, u64>,
    slots: &FxHashMap<Place, usize>,
) -> Result<(), Error> {
    let steps = schedule.steps.iter();
    let mut written: FxHashSet<Place> =
        steps.flat_map(|(_, step)| step.with_access(Access::ReadWrite)).collect();
    written.extend(schedule.snapshots.iter().map(|(_, to)| *to));
    let lacking = |place: &&Place| !written.contains(place) && sizes.get(place) != Some(&0);
    match slots.keys().find(lacking) {
        Some(place) => Err(Error::internal(format!("{place} is neither uploaded nor computed"))),
        None => Ok(()),
    }
}

/// Slabs for all that is computed.
fn plan(
    gpu: &Gpu,
    schedule: &Schedule,
    sizes: &FxHashMap<Place, u64>,
    fixed: &FxHashMap<Place, Home>,
) -> Result<(Plan, FxHashMap<Place, usize>), Error> {
    let mut slots: FxHashMap<Place, usize> = FxHashMap::default();
    let mut lives: Vec<Slot> = Vec::new();
    let mut uses: Vec<Uses> = Vec::new();
    let mut slot = |lives: &mut Vec<Slot>, place: Place, level: u32| {
        if fixed.contains_key(&place) {
            return None;
        }
        let index = *slots.entry(place).or_insert_with(|| {
            let n_bytes = sizes.get(&place).copied().unwrap_or(0);
            lives.push(Slot { n_bytes, first: level, last: level });
            lives.len() - 1
        });
        lives[index].first = lives[index].first.min(level);
        lives[index].last = lives[index].last.max(level);
        Some(index)
    };
    for &(_, place) in &schedule.snapshots {
        slot(&mut lives, place, 0);
    }
    for (level, step) in &schedule.steps {
        let mut own = Uses { level: *level, ..Uses::default() };
        for place in step.with_access(Access::ReadWrite) {
            own.writes.extend(slot(&mut lives, place, *level));
        }
        for place in step.with_access(Access::Read) {
            own.reads.extend(slot(&mut lives, place, *level));
        }
        uses.push(own);
    }
    for &place in schedule.downloads.iter().chain(&schedule.kept) {
        slot(&mut lives, place, u32::MAX);
    }
    check_written(schedule, sizes, &slots)?;
    let limits = &gpu.info().limits;
    let alignment = u64::from(limits.min_storage_buffer_offset_alignment);
    let plan = memory::plan(&lives, &uses, alignment, limits.max_buffer_size);
    Ok((plan, slots))
}

impl GpuSegment {
    /// Frees the instances that no run uses, to make room. True if there were any.
    pub fn shrink(&self) -> bool {
        self.pool.shrink()
    }
}
