//! Runs a compiled program: binds inputs, runs the segments in order, collects fetches, commits.

#[cfg(feature = "gpu")]
mod across;
mod arena;
mod bind;
mod commit;
mod feeds;
#[cfg(feature = "gpu")]
mod gpu;
mod outputs;
mod record;
mod steps;
mod turns;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use arena::Part;
use convoke_compiler::memory::{HostMemory, HostPlace, host_memory};
use convoke_compiler::{HOST, Program, Source, ValueId};
use convoke_cpu_backend::{CpuKernel, StringKernel, Threads};
#[cfg(feature = "gpu")]
use convoke_graph_core::ErrorKind;
use convoke_graph_core::{DType, Error, GraphSnapshot, NodeId, Output, Result};
#[cfg(feature = "gpu")]
use convoke_wgpu_backend::{CompileError, GpuSegment};
#[cfg(feature = "gpu")]
use gpu::{GpuWork, Leases, RunningWork, Works};
use smallvec::SmallVec;

pub(crate) use outputs::Outputs;

use crate::autotune::Tuning;
use crate::cancel::Stop;
use crate::devices::{Gpus, HOST_NAME};
use crate::drawing::{self, Drawn};
use crate::explain::MemoryUse;
use crate::feeds::FeedData;
use crate::holding::Journal;
use crate::instance::Instance;
use crate::metadata::{PhaseKind, RunMetadata};
use crate::moment::Storing;
use crate::place::Placed;
use crate::pool::Pool;
use crate::session::Timings;
use crate::state::{Generation, Snapshot, State};

/// A program with its kernels and the memory of its runs.
pub(crate) struct Compiled {
    pub(crate) program: Program,
    /// Where its groups went and why.
    pub(crate) placed: Option<Placed>,
    /// The generation of each of the program's variables when it was made.
    pub(crate) generations: Vec<Generation>,
    /// Its timed runs, where the session learns from them.
    pub(crate) tuning: Option<Tuning>,
    memory: HostMemory,
    segments: Vec<SegmentWork>,
    places: Vec<Place>,
    /// The variables that are read, with their names.
    variables: Vec<(NodeId, Arc<str>)>,
    inputs: Vec<Source>,
    /// How many numbers a run draws from each random node.
    draws: Vec<(NodeId, u32)>,
    instances: Pool<Instance>,
    names: Vec<Vec<Arc<str>>>,
    /// The outputs that are fed, with the names of their nodes.
    feeds: Vec<(Output, Arc<str>)>,
    /// The name of the node that an error of each group is about.
    blamed: Vec<Arc<str>>,
    /// For each feed, whether the host reads its elements.
    host_feeds: Vec<bool>,
    /// Whether a sum into a variable of a GPU is computed elsewhere.
    stores_alone: bool,
    /// What all groups read and write.
    kernel_bytes: u64,
    /// If it is an iteration of a loop, how many may be one program at most, as far as it was tried.
    pub(crate) trips_max: AtomicU64,
}

/// Why a program has no kernels.
pub(crate) enum Failure {
    /// A device refuses the kernel of groups.
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "only GPUs compile kernels late"))]
    Refused(Refused),
    /// Anything else.
    Error(Error),
}

/// A kernel that a driver refuses to compile.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) device: usize,
    /// The groups' indices.
    pub(crate) groups: Vec<u32>,
    /// The node that the first of them computes.
    pub(crate) node: Arc<str>,
    pub(crate) reason: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

enum SegmentWork {
    Cpu(Vec<CpuStep>),
    #[cfg(feature = "gpu")]
    Gpu(Box<GpuWork>),
}

struct CpuStep {
    kernel: StepKernel,
    group: u32,
    inputs: SmallVec<[ValueId; 4]>,
    outputs: SmallVec<[ValueId; 2]>,
    /// Which outputs lie in the arena, by offset.
    in_arena: SmallVec<[Part; 2]>,
}

enum StepKernel {
    Bytes(CpuKernel),
    Strings(StringKernel),
}

/// Where the host finds a value's elements.
#[derive(Debug, Clone, Copy)]
enum Place {
    Slot(u32),
    /// At an offset in the arena.
    Arena(usize),
    /// Among the strings that a run computes.
    Strings(u32),
    Feed(u32),
    Constant,
    Variable(u32),
    Input(u32),
    /// On a device only.
    Device,
}

/// What a session's programs run on.
#[derive(Clone, Copy)]
pub(crate) struct RunState<'a> {
    pub(crate) state: &'a Arc<State>,
    pub(crate) threads: &'a Threads,
    /// What the run keeps to itself, if the program is only a part of it.
    pub(crate) journal: Option<&'a RefCell<Journal>>,
    /// Where the run notes that it has begun to store.
    pub(crate) storing: Option<&'a Storing<'a>>,
}

/// What a run runs on, and what may end it.
struct On<'a> {
    state: &'a State,
    threads: &'a Threads,
    journal: Option<&'a RefCell<Journal>>,
    storing: Option<&'a Storing<'a>>,
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "the host is always timed"))]
    timings: Timings,
    stop: Stop<'a>,
}

impl On<'_> {
    /// # Errors
    /// The run is to end, and nothing is stored yet.
    fn check(&self, stores: bool) -> Result<()> {
        if stores { Ok(()) } else { self.stop.check() }
    }
}

/// What a run was given.
struct Bound<'a> {
    feeds: &'a [FeedData<'a>],
    variables: SmallVec<[Snapshot; 8]>,
    inputs: SmallVec<[[u8; 4]; 2]>,
    drawn: Drawn,
}

#[cfg(feature = "gpu")]
fn lacks_memory(error: &Error) -> bool {
    error.kind() == ErrorKind::ResourceExhausted
}

impl Compiled {
    /// Adds kernels to a program.
    pub(crate) fn new(
        program: Program,
        graph: &GraphSnapshot,
        feeds: &[Output],
        gpus: &Gpus,
    ) -> std::result::Result<Self, Failure> {
        let memory = host_memory(&program);
        let mut compiled = Self {
            placed: None,
            generations: Vec::new(),
            tuning: None,
            memory,
            segments: Vec::new(),
            places: Vec::new(),
            variables: Vec::new(),
            inputs: Vec::new(),
            draws: drawing::counted(&program.random),
            instances: Pool::default(),
            names: Vec::new(),
            feeds: feeds.iter().map(|feed| (*feed, graph.node(feed.node).name.clone())).collect(),
            blamed: Vec::new(),
            host_feeds: vec![false; feeds.len()],
            stores_alone: program.sums_elsewhere(),
            kernel_bytes: 0,
            trips_max: AtomicU64::new(u64::MAX),
            program,
        };
        compiled.place_values(graph, feeds);
        let name = |id: &NodeId| graph.node(*id).name.clone();
        compiled.names =
            compiled.program.groups.iter().map(|g| g.nodes.iter().map(name).collect()).collect();
        let bytes = compiled.program.groups.iter().map(|g| g.work(&compiled.program.values).bytes);
        compiled.kernel_bytes = bytes.fold(0, u64::saturating_add);
        let blamed = compiled.program.groups.iter().map(|group| group.blamed());
        compiled.blamed =
            blamed.map(|node| node.map_or_else(Arc::default, |id| name(&id))).collect();
        for at in 0..compiled.program.segments.len() {
            let work = compiled.segment_work(at, gpus)?;
            compiled.segments.push(work);
        }
        compiled.find_host_feeds();
        Ok(compiled)
    }

    /// The memory that a run takes, on the host and for each segment of a GPU.
    pub(crate) fn memory(&self) -> Vec<MemoryUse> {
        let host = MemoryUse {
            device: HOST_NAME.to_owned(),
            planned_bytes: self.memory.n_bytes(),
            live_bytes: self.memory.live_bytes,
        };
        let segment = |work: &SegmentWork| match work {
            SegmentWork::Cpu(_) => None,
            #[cfg(feature = "gpu")]
            SegmentWork::Gpu(work) => Some(MemoryUse {
                device: work.device.to_string(),
                planned_bytes: work.planned_bytes,
                live_bytes: work.live_bytes,
            }),
        };
        std::iter::once(host).chain(self.segments.iter().filter_map(segment)).collect()
    }

    fn place_values(&mut self, graph: &GraphSnapshot, feeds: &[Output]) {
        let mut n_strings = 0;
        for (i, value) in self.program.values.iter().enumerate() {
            if let Source::Variable(variable) = &value.source {
                self.variables.push((*variable, graph.node(*variable).name.clone()));
            }
            let place = match (&value.source, self.memory.of[i]) {
                (Source::Computed, _) if value.dtype == DType::String => {
                    n_strings += 1;
                    Place::Strings(n_strings - 1)
                }
                (_, Some(HostPlace::Slot(slot))) => Place::Slot(slot),
                (_, Some(HostPlace::Arena(offset))) => Place::Arena(offset),
                (Source::Computed, None) => Place::Device,
                (Source::Constant(_), _) => Place::Constant,
                (Source::Feed(output), _) => {
                    let at = feeds.iter().position(|feed| feed == output);
                    at.map_or(Place::Device, |at| Place::Feed(at as u32))
                }
                (Source::Variable(_), _) => Place::Variable(self.variables.len() as u32 - 1),
                (source @ (Source::Initialized(_) | Source::Draws(..)), _) => {
                    self.inputs.push(source.clone());
                    Place::Input(self.inputs.len() as u32 - 1)
                }
            };
            self.places.push(place);
        }
    }

    fn segment_work(&self, at: usize, gpus: &Gpus) -> std::result::Result<SegmentWork, Failure> {
        let segment = &self.program.segments[at];
        if segment.device == HOST {
            let steps = segment.groups.iter().map(|&group| self.cpu_step(group));
            return Ok(SegmentWork::Cpu(steps.collect::<Result<_>>()?));
        }
        #[cfg(feature = "gpu")]
        {
            let device = segment.device.0 as usize;
            let (gpu, variables) = gpus.get(device)?;
            let compiled = GpuSegment::compile(&gpu, &self.program, at, &variables);
            let compiled = compiled.map_err(|error| match error {
                CompileError::Kernel { groups, reason } => {
                    let group = groups.first().copied().unwrap_or(0);
                    let names = self.names.get(group as usize);
                    let node = names.and_then(|names| names.last().cloned()).unwrap_or_default();
                    Failure::Refused(Refused { device, groups, node, reason })
                }
                CompileError::Other(error) => {
                    Failure::Error(error.with_device(&*gpus.name(device)))
                }
            })?;
            let (planned_bytes, live_bytes) = compiled.planned_bytes();
            Ok(SegmentWork::Gpu(Box::new(GpuWork {
                barriers: compiled.n_barriers() as u64,
                planned_bytes,
                live_bytes,
                segment: compiled.with_names(self.blamed.clone()),
                at,
                device: gpus.name(device),
                uploads: segment.uploads.clone(),
                downloads: segment.downloads.clone(),
                residents: segment.residents.clone(),
                tensors: gpus.tensors(device)?,
                carried: segment.carried.clone(),
                borrowed: self.borrowed(segment, gpus)?,
                across: self.across_to(segment, gpus)?,
                commits: segment.commits.iter().map(|commit| commit.variable).collect(),
                donations: segment.donations.clone(),
            })))
        }
        #[cfg(not(feature = "gpu"))]
        {
            let _ = gpus;
            Err(Error::internal("a segment is on a device that this build has not").into())
        }
    }

    /// Notes what placement expected to cross.
    pub(crate) fn predict(&self, metadata: &mut RunMetadata) {
        let transfers = self.placed.iter().flat_map(|p| &p.solution.prediction().transfers);
        transfers.for_each(|transfer| metadata.predict(transfer.bytes));
    }

    /// True if all items of both are on the same devices.
    pub(crate) fn is_placed_as(&self, other: &Self) -> bool {
        let devices = |compiled: &Self| compiled.placed.as_ref().map(|p| p.solution.device.clone());
        devices(self) == devices(other)
    }

    /// True if the program is to be placed anew for what its runs took.
    pub(crate) fn is_stale(&self) -> bool {
        self.tuning.as_ref().is_some_and(Tuning::is_stale)
    }

    /// True if every variable still lives where the program expects it.
    pub(crate) fn is_current(&self, state: &State) -> bool {
        if self.program.variables.is_empty() {
            return true;
        }
        let kept = state.lock();
        let mut homes = self.program.variables.iter().zip(&self.generations);
        homes.all(|(&(variable, device), &generation)| {
            let entry = kept.variables.get(&variable);
            entry.is_none_or(|entry| entry.device == device && entry.generation() == generation)
        })
    }

    fn cpu_step(&self, group: u32) -> Result<CpuStep> {
        let work = &self.program.groups[group as usize];
        let part = |(output, id): (usize, &ValueId)| match self.places[id.0 as usize] {
            Place::Arena(offset) => {
                Some(Part { offset, n_bytes: self.program.value(*id).n_bytes(), output })
            }
            _ => None,
        };
        let mut in_arena: SmallVec<[Part; 2]> =
            work.outputs.iter().enumerate().filter_map(part).collect();
        in_arena.sort_unstable_by_key(|part| (part.offset, part.n_bytes));
        Ok(CpuStep {
            kernel: match work.has_strings(&self.program.values) {
                true => StepKernel::Strings(StringKernel::compile(&self.program, work)?),
                false => StepKernel::Bytes(CpuKernel::compile(&self.program, work)?),
            },
            group,
            in_arena,
            inputs: work.inputs.iter().map(|input| input.value).collect(),
            outputs: work.outputs.iter().copied().collect(),
        })
    }

    /// Runs once. `feeds` are in the order of the plan's signature.
    pub(crate) fn run(
        &self,
        feeds: &[FeedData<'_>],
        run: RunState<'_>,
        timings: Timings,
        stop: Stop<'_>,
        outputs: &mut Outputs<'_, '_>,
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        let alone = run.storing.filter(|_| self.stores_alone);
        alone.map_or(Ok(()), |storing| storing.begin_alone(Some(&stop)))?;
        let result = self.run_bound(feeds, run, timings, stop, outputs, metadata);
        if result.is_err() {
            // It may be made again, and wait for others.
            run.storing.inspect(|storing| storing.end());
        }
        result
    }

    fn run_bound(
        &self,
        feeds: &[FeedData<'_>],
        run: RunState<'_>,
        timings: Timings,
        stop: Stop<'_>,
        outputs: &mut Outputs<'_, '_>,
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        let feeds = &*self.brought(feeds, metadata)?;
        let start = metadata.now();
        let mut bound = self.bind(feeds, run)?;
        let mut instance = self.lease(metadata)?;
        metadata.note(PhaseKind::Bind, start);
        let RunState { state, threads, journal, storing } = run;
        let on = On { state, threads, journal, storing, timings, stop };
        let result = self.run_in(&mut instance, &mut bound, &on, outputs, metadata);
        // What stays on a device is the caller's now, and so are strings.
        instance.forget();
        self.instances.give_back(instance);
        result
    }

    fn run_in(
        &self,
        instance: &mut Instance,
        bound: &mut Bound<'_>,
        on: &On<'_>,
        outputs: &mut Outputs<'_, '_>,
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        #[cfg(feature = "gpu")]
        {
            let mut running = Works::new();
            let done = self.run_segments(&mut running, instance, bound, on, metadata);
            if done.is_err() {
                // What a GPU was given it does, and its memory is not for others before.
                for work in running {
                    let _ = self.finish_gpu(work, instance, on.state, metadata);
                }
            }
            done?;
        }
        #[cfg(not(feature = "gpu"))]
        self.run_segments(instance, bound, on, metadata)?;
        let start = metadata.now();
        self.fetch_all(instance, bound, outputs)?;
        metadata.note(PhaseKind::Fetch, start);
        let start = metadata.now();
        self.commit(instance, bound, on, outputs, metadata.stores)?;
        metadata.note(PhaseKind::Commit, start);
        metadata.host_bytes = metadata.host_bytes.max(self.memory.n_bytes());
        metadata.planned_bytes += self.memory.n_bytes();
        metadata.live_bytes += self.memory.live_bytes;
        metadata.kernel_bytes += self.kernel_bytes;
        Ok(())
    }

    /// Runs all segments, and waits for them. Once one is given to a GPU that stores into variables or feeds, nothing
    /// ends the run any more.
    fn run_segments<'a>(
        &'a self,
        #[cfg(feature = "gpu")] running: &mut Works<'a>,
        instance: &mut Instance,
        bound: &Bound<'_>,
        on: &On<'_>,
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        #[cfg(feature = "gpu")]
        let mut leases = Leases::new();
        for (segment, work) in self.segments.iter().enumerate() {
            match work {
                SegmentWork::Cpu(steps) => {
                    let start = Instant::now();
                    #[cfg_attr(not(feature = "gpu"), expect(unused_mut, reason = "nobody waits"))]
                    let mut waited = Duration::ZERO;
                    #[cfg(feature = "gpu")]
                    if let Some(first) = steps.first() {
                        waited +=
                            self.wait_for_inputs(first, running, instance, on.state, metadata)?;
                        metadata.overlaps += u64::from(!running.is_empty());
                    }
                    for step in steps {
                        #[cfg(feature = "gpu")]
                        {
                            waited +=
                                self.wait_for_inputs(step, running, instance, on.state, metadata)?;
                        }
                        on.check(metadata.stores)?;
                        self.run_step(step, segment, instance, bound, on.threads, metadata)?;
                    }
                    metadata.cpu += start.elapsed().saturating_sub(waited);
                }
                #[cfg(feature = "gpu")]
                SegmentWork::Gpu(work) => {
                    let delays = |before: &RunningWork<'_>| before.delays(work);
                    self.wait_for(delays, running, instance, on.state, metadata)?;
                    on.check(metadata.stores)?;
                    if !work.commits.is_empty() {
                        // What was donated may be overwritten already.
                        let stop = (!metadata.stores).then_some(&on.stop);
                        on.storing.map_or(Ok(()), |storing| storing.begin(stop))?;
                    }
                    let n_residents = instance.residents.len();
                    let mut started =
                        self.start_gpu(work, &mut leases, instance, bound, on, metadata);
                    let is_beside = |other: &RunningWork<'_>| other.is_on(work);
                    if running.iter().any(is_beside) && started.as_ref().is_err_and(lacks_memory) {
                        // The staging memory of others is free once they are done.
                        instance.residents.truncate(n_residents);
                        self.wait_for(is_beside, running, instance, on.state, metadata)?;
                        on.check(metadata.stores)?;
                        started = self.start_gpu(work, &mut leases, instance, bound, on, metadata);
                    }
                    metadata.overlaps += u64::from(!running.is_empty());
                    running.push(started?);
                    metadata.stores |= work.stores();
                }
            }
        }
        #[cfg(feature = "gpu")]
        self.wait_for(|_| true, running, instance, on.state, metadata)?;
        on.check(metadata.stores)
    }

    /// The bytes of a value, exactly as long as it is.
    fn bytes<'b>(
        &'b self,
        id: ValueId,
        instance: &'b Instance,
        bound: &'b Bound<'_>,
    ) -> Result<&'b [u8]> {
        let value = self.program.value(id);
        let bytes: &[u8] = match self.places[id.0 as usize] {
            Place::Slot(slot) => instance.slot(slot as usize),
            Place::Arena(offset) => instance.arena.get(offset..).unwrap_or(&[]),
            Place::Feed(feed) => bound.feeds[feed as usize].bytes(),
            Place::Constant => match &value.source {
                Source::Constant(tensor) => tensor.bytes(),
                _ => &[],
            },
            Place::Variable(at) => match &bound.variables[at as usize].elements {
                Some(elements) => elements.bytes(),
                None => &[],
            },
            Place::Input(at) => &bound.inputs[at as usize],
            Place::Device | Place::Strings(_) => &[],
        };
        bytes.get(..value.n_bytes()).ok_or_else(|| {
            Error::internal(format!("{id} has {} bytes of {}", bytes.len(), value.n_bytes()))
        })
    }

    fn cpu_steps(&self) -> impl Iterator<Item = &CpuStep> {
        self.segments.iter().flat_map(|work| match work {
            SegmentWork::Cpu(steps) => steps.iter(),
            #[cfg(feature = "gpu")]
            SegmentWork::Gpu(_) => [].iter(),
        })
    }

    fn lease(&self, metadata: &mut RunMetadata) -> Result<Box<Instance>> {
        let mut instance = self.instances.take().unwrap_or_default();
        metadata.host_bytes_allocated += instance.prepare(&self.memory)?;
        Ok(instance)
    }

    /// Frees the memory that no run uses. True if there was any.
    pub(crate) fn shrink(&self) -> bool {
        let is_freed = self.instances.clear() && self.memory.n_bytes() > 0;
        #[cfg(feature = "gpu")]
        let is_freed = self.segments.iter().fold(is_freed, |is_freed, work| match work {
            SegmentWork::Gpu(work) => work.segment.shrink() || is_freed,
            SegmentWork::Cpu(_) => is_freed,
        });
        is_freed
    }
}
