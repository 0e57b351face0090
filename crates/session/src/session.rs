//! The session: plans, programs, variables, runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use convoke_compiler::{
    CompileOptions, GroupLimits, HOST, InputFact, Plan, Program, Signature, compile,
};
use convoke_cpu_backend::Threads;
use convoke_graph_core::{
    AlignedBytes, Error, ErrorKind, Fact, Feed, Graph, GraphSnapshot, HostTensor, NodeId, Result,
    Shape, Variable,
};
use convoke_placement::Objective;

use crate::autotune::{Known, Tuning};
use crate::budget;
use crate::cache::Lru;
use crate::calibrate::{Activity, Background, CalibrateOptions};
use crate::devices::{Devices, Gpus};
use crate::executor::{Compiled, Failure, Refused};
use crate::explain::Explanation;
use crate::feeds::{self, FeedData};
use crate::fetch::{Fetch, FetchList};
use crate::metadata::{PhaseKind, RunMetadata};
use crate::place::Placing;
use crate::state::{State, VariableInfo};

/// Where groups go that no scope asks a device for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DevicePolicy {
    /// Where the cost model says.
    #[default]
    Auto,
    /// On the device with this name, `CPU:0` or `GPU:1`, as far as it has kernels.
    Prefer(String),
}

/// How a session works.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Where groups go that no scope asks a device for.
    pub policy: DevicePolicy,
    /// What placement keeps small.
    pub objective: Objective,
    /// Whether an operation may run elsewhere than asked, where its device does not exist or has no
    /// kernel for it.
    pub soft_placement: bool,
    /// Threads of the session's own pool; 0 is one for each core.
    pub threads: usize,
    /// How many signatures stay compiled, and for each, how many sets of shapes.
    pub plans: usize,
    /// Bytes of host memory that the values of one run may take; more is refused before it runs.
    pub host_budget_bytes: u64,
    /// Whether elementwise operations become one kernel; off only to compare.
    pub fuse: bool,
    /// Whether operations may become others that give the same within their error: equal ones are computed once,
    /// factors of channels go into constant filters, casts cancel; off only to compare.
    pub simplify: bool,
    /// Whether a thread calibrates the devices that nothing is known of, once the session has run, while it has
    /// nothing to do. A run that begins meanwhile may find a device busy for a fraction of a second, and its
    /// metadata may count what a probe makes on a GPU. Dropping the session waits for the probe at hand.
    pub calibrate: bool,
    /// Whether what kernels took in the session's own runs replaces what the cost model predicts. Of each program
    /// five runs are timed kernel by kernel, after two that are not; then it is placed anew, with its variables, and
    /// timed again if it went elsewhere, in five rounds at most. The run after a round takes the time of compiling.
    /// GPUs that have no timestamps teach nothing.
    pub autotune: bool,
}

impl Default for SessionOptions {
    /// Automatic placement for the least total time, soft, one thread for each core, 64 plans, as much as there is
    /// physical memory (16 GiB where the system does not tell), simplified and fused, no calibration and no tuning by itself.
    fn default() -> Self {
        Self {
            policy: DevicePolicy::Auto,
            objective: Objective::Total,
            soft_placement: true,
            threads: 0,
            plans: 64,
            host_budget_bytes: physical_memory().unwrap_or(16 << 30),
            fuse: true,
            simplify: true,
            calibrate: false,
            autotune: false,
        }
    }
}

/// What to record of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Which times.
    pub timings: Timings,
}

/// Which times a run records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Timings {
    /// Those that the host sees: in CPU kernels, waiting for GPUs, and in all.
    #[default]
    Host,
    /// Also what GPUs say of their own work, where they can tell.
    Devices,
    /// Also each kernel on each device, each tensor that crosses, and when every part of the run began: all that
    /// [`Explanation::measured`] and [`Trace`](crate::Trace) need. GPUs then run dispatches one by one, which takes
    /// longer in all.
    Nodes,
}

/// Runs parts of a graph, and keeps its variables.
///
/// `run` takes `&self`: many threads may run one session at once.
pub struct Session {
    graph: Graph,
    devices: Devices,
    options: SessionOptions,
    threads: Threads,
    state: State,
    gpus: Gpus,
    /// What kernels took in runs that were timed for it.
    known: Known,
    plans: Mutex<Lru<Signature, Arc<Planned>>>,
    closed: AtomicBool,
    activity: Arc<Activity>,
    /// Ends with the session.
    _background: Option<Background>,
}

const fn is_shared<T: Send + Sync>() {}
const _: () = is_shared::<Session>();

/// A plan and its programs.
struct Planned {
    plan: Plan,
    graph: GraphSnapshot,
    feed_facts: Vec<Fact>,
    programs: Mutex<Lru<ProgramKey, Arc<Compiled>>>,
}

/// The shapes of the feeds, and the elements of those that shapes are computed from.
type ProgramKey = Vec<(Shape, Option<Vec<i128>>)>;

impl Session {
    /// A session with default options.
    ///
    /// # Errors
    /// Threads cannot be started.
    pub fn new(graph: &Graph, devices: &Devices) -> Result<Self> {
        Self::with_options(graph, devices, SessionOptions::default())
    }

    /// A session with these options.
    ///
    /// # Errors
    /// Threads cannot be started, or the preferred device does not exist.
    pub fn with_options(graph: &Graph, devices: &Devices, options: SessionOptions) -> Result<Self> {
        if let DevicePolicy::Prefer(name) = &options.policy {
            devices.index_of(name)?;
        }
        let threads = Threads::new(match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        })?;
        let activity = Arc::<Activity>::default();
        let background = options.calibrate.then(|| {
            let options = CalibrateOptions { threads: threads.len(), ..Default::default() };
            Background::start(devices.clone(), options, activity.clone())
        });
        Ok(Self {
            graph: graph.clone(),
            devices: devices.clone(),
            threads,
            activity,
            _background: background.transpose()?,
            state: State::default(),
            gpus: Gpus::new(devices),
            known: Known::default(),
            plans: Mutex::new(Lru::new(options.plans)),
            closed: AtomicBool::new(false),
            options,
        })
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Computes what `fetch` asks for, with these feeds. Only what the fetches need runs. See
    /// [`Fetch`] for what comes back.
    ///
    /// Reads of variables give their elements at the start of the run; assignments are stored when
    /// everything has succeeded.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for feeds and fetches that do not fit, before any work;
    /// [`ErrorKind::FailedPrecondition`] for a variable without elements or a closed session;
    /// [`ErrorKind::ResourceExhausted`] where memory does not suffice, even after the session has freed what no
    /// run uses; what operations refuse. Nothing has changed then.
    pub fn run<F: Fetch>(&self, feeds: &[Feed<'_>], fetch: F) -> Result<F::Output> {
        self.run_with(feeds, fetch, RunOptions::default()).map(|(output, _)| output)
    }

    /// As [`Self::run`], and says what the run did.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with<F: Fetch>(
        &self,
        feeds: &[Feed<'_>],
        fetch: F,
        options: RunOptions,
    ) -> Result<(F::Output, RunMetadata)> {
        let start = Instant::now();
        let run = match self.attempt(feeds, &fetch, options, start) {
            Err(e) if e.kind() == ErrorKind::ResourceExhausted && self.free_caches() => {
                self.attempt(feeds, &fetch, options, start)
            }
            run => run,
        };
        let (list, values, mut metadata) = run?;
        let output = fetch.take(&mut list.results(values))?;
        metadata.wall = start.elapsed();
        Ok((output, metadata))
    }

    /// A run that has changed nothing if it fails.
    fn attempt<F: Fetch>(
        &self,
        feeds: &[Feed<'_>],
        fetch: &F,
        options: RunOptions,
        start: Instant,
    ) -> Result<(FetchList, Vec<HostTensor>, RunMetadata)> {
        self.check_open()?;
        let _active = self.activity.begin();
        let begun = (options.timings == Timings::Nodes).then_some(start);
        let mut timings = options.timings;
        let mut metadata = RunMetadata { begun, ..RunMetadata::default() };
        let planning = metadata.now();
        let (list, planned) = self.planned(feeds, fetch, &mut metadata)?;
        let data = planned.check_feeds(feeds)?;
        let before = self.gpus.made();
        let compiled = self.compiled(&planned, &data, &mut metadata)?;
        metadata.note(PhaseKind::Plan, planning);
        metadata.tunes = compiled.tuning.as_ref().is_some_and(Tuning::begin);
        if metadata.tunes {
            (timings, metadata.begun) = (Timings::Nodes, Some(start));
        }
        let values = compiled.run(&data, &self.state, &self.threads, timings, &mut metadata)?;
        if let Some(tuning) = compiled.tuning.as_ref().filter(|_| metadata.tunes) {
            let models = self.devices.problem(self.threads.len()).devices;
            tuning.end(&metadata.notes.kernels, &compiled.program, &models, &self.known);
            if options.timings != Timings::Nodes {
                metadata.forget_times();
            }
        }
        compiled.predict(&mut metadata);
        let [bytes, pipelines, alive] = self.gpus.made();
        metadata.device_bytes_allocated = bytes.saturating_sub(before[0]);
        metadata.pipelines_built = pipelines.saturating_sub(before[1]);
        metadata.device_bytes = alive;
        compiled.describe(&mut metadata);
        Ok((list, values, metadata))
    }

    /// Frees the memory of programs that no run uses at the moment; where there is none, forgets the programs,
    /// whose constants take memory too. True if there was anything.
    fn free_caches(&self) -> bool {
        let plans: Vec<Arc<Planned>> = self.plans().values().cloned().collect();
        let mut is_freed = false;
        for planned in &plans {
            for compiled in planned.programs().values() {
                is_freed |= compiled.shrink();
            }
        }
        if is_freed {
            return true;
        }
        for planned in &plans {
            let mut programs = planned.programs();
            is_freed |= programs.len() > 0;
            programs.clear();
        }
        is_freed
    }

    /// The program that a run with these feeds uses, to be printed.
    ///
    /// # Errors
    /// As [`Self::run`], for what is found before work begins.
    pub fn program<F: Fetch>(&self, feeds: &[Feed<'_>], fetch: F) -> Result<Program> {
        self.check_open()?;
        let mut metadata = RunMetadata::default();
        let (_, planned) = self.planned(feeds, &fetch, &mut metadata)?;
        let data = planned.check_feeds(feeds)?;
        Ok(self.compiled(&planned, &data, &mut metadata)?.program.clone())
    }

    /// Where a run with these feeds goes and why, with what it is predicted to take.
    ///
    /// # Errors
    /// As [`Self::run`], for what is found before work begins.
    pub fn explain<F: Fetch>(&self, feeds: &[Feed<'_>], fetch: F) -> Result<Explanation> {
        self.check_open()?;
        let mut metadata = RunMetadata::default();
        let (_, planned) = self.planned(feeds, &fetch, &mut metadata)?;
        let data = planned.check_feeds(feeds)?;
        let compiled = self.compiled(&planned, &data, &mut metadata)?;
        Explanation::of(&compiled, &planned.plan, &planned.graph)
    }

    /// The variables that runs have needed so far, by name.
    pub fn variables(&self) -> Vec<VariableInfo> {
        let kept = self.state.lock();
        let mut all: Vec<VariableInfo> = kept.variables.values().map(|e| e.info()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Ends the session: later runs are refused.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.plans().clear();
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            let message = "the session is closed; make a new one";
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        Ok(())
    }

    fn plans(&self) -> MutexGuard<'_, Lru<Signature, Arc<Planned>>> {
        self.plans.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn planned<F: Fetch>(
        &self,
        feeds: &[Feed<'_>],
        fetch: &F,
        metadata: &mut RunMetadata,
    ) -> Result<(FetchList, Arc<Planned>)> {
        let mut list = FetchList::default();
        fetch.collect(&mut list);
        list.check_graph(self.graph.id())?;
        for feed in feeds {
            if feed.tensor.graph().id() != self.graph.id() {
                let message = "a feed belongs to another graph than the session's";
                return Err(Error::invalid(message).with_node(feed.tensor.name()));
            }
            list.signature.feeds.push(feed.tensor.output());
        }
        if let Some(planned) = self.plans().get(&list.signature) {
            metadata.plan_cached = true;
            metadata.graph_nodes = planned.plan.nodes.len() as u64;
            return Ok((list, planned));
        }
        let start = Instant::now();
        let graph = self.graph.snapshot();
        let plan = Plan::new(&graph, list.signature.clone())?;
        let feed_facts = plan.signature.feeds.iter().map(|&f| graph.fact(f).clone()).collect();
        let programs = Mutex::new(Lru::new(self.options.plans));
        #[expect(
            clippy::arc_with_non_send_sync,
            reason = "the lint gives up on wgpu's types; is_shared::<Session> holds"
        )]
        let planned = Arc::new(Planned { plan, graph, feed_facts, programs });
        metadata.graph_nodes = planned.plan.nodes.len() as u64;
        let planned = self.plans().insert(list.signature.clone(), planned);
        metadata.planning += start.elapsed();
        Ok((list, planned))
    }

    fn compiled(
        &self,
        planned: &Planned,
        data: &[FeedData<'_>],
        metadata: &mut RunMetadata,
    ) -> Result<Arc<Compiled>> {
        let key = planned.key(data)?;
        let before = planned.programs().get(&key);
        if let Some(compiled) = &before
            && compiled.is_current(&self.state.lock())
            && !compiled.is_stale()
        {
            metadata.program_cached = true;
            return Ok(compiled.clone());
        }
        let facts = data.iter().zip(&planned.plan.shape_feeds);
        let facts = facts.map(|(data, &keeps)| {
            let contents = keeps.then(|| data.to_tensor()).transpose()?;
            Ok(InputFact { shape: data.shape().clone(), contents })
        });
        let inputs: Vec<InputFact> = facts.collect::<Result<_>>()?;
        let mut refused: Vec<Refused> = Vec::new();
        loop {
            let error = match self.compile(planned, &inputs, &refused, before.as_deref(), metadata)
            {
                Ok(compiled) => {
                    let compiled = Arc::new(compiled);
                    planned.programs().replace(key, compiled.clone());
                    return Ok(compiled);
                }
                Err(Failure::Error(error)) => return Err(error),
                Err(Failure::Refused(error)) => error,
            };
            let Refused { device, node, reason, .. } = &error;
            let device = self.devices.list().get(*device).map_or("?", |info| &*info.name);
            if !self.options.soft_placement {
                let error = Error::new(ErrorKind::Internal, reason.clone());
                return Err(error.with_node(&**node).with_device(device));
            }
            tracing::warn!(
                "{device} has no kernel for {node}, so that it runs elsewhere: {reason}"
            );
            refused.push(error);
        }
    }

    /// A program with its kernels, not on devices that refused them. There may have been one `before` it.
    fn compile(
        &self,
        planned: &Planned,
        inputs: &[InputFact],
        refused: &[Refused],
        before: Option<&Compiled>,
        metadata: &mut RunMetadata,
    ) -> std::result::Result<Compiled, Failure> {
        let (start, begun) = (Instant::now(), metadata.now());
        let placing = Placing {
            devices: &self.devices,
            graph: &planned.graph,
            plan: &planned.plan,
            state: &self.state,
            options: &self.options,
            threads: self.threads.len(),
            known: &self.known,
            unsettles: before.is_some_and(Compiled::is_stale),
            refused,
            placed: std::cell::OnceCell::new(),
        };
        let limits =
            if self.options.fuse { self.devices.group_limits() } else { GroupLimits::SINGLE };
        let simplify = self.options.simplify;
        let place = |unplaced: &convoke_compiler::Unplaced<'_>| placing.place(unplaced);
        let mut program =
            compile(&planned.plan, inputs, &CompileOptions { limits, simplify, place: &place })?;
        budget::fit(&mut program, self.options.host_budget_bytes, &self.gpus)?;
        metadata.planning += start.elapsed();
        metadata.note(PhaseKind::Compile, begun);
        let (start, begun) = (Instant::now(), metadata.now());
        let feeds = &planned.plan.signature.feeds;
        let mut compiled = Compiled::new(program, &planned.graph, feeds, &self.gpus)?;
        compiled.moves = placing.settle(&compiled.program, &self.gpus)?;
        compiled.placed = placing.placed.into_inner();
        compiled.tuning = self.options.autotune.then(|| {
            let before = before.and_then(|b| Some((b.tuning.as_ref()?, b.is_placed_as(&compiled))));
            before.map_or_else(Tuning::default, |(tuning, is_same)| tuning.next(is_same))
        });
        metadata.preparing += start.elapsed();
        metadata.note(PhaseKind::Prepare, begun);
        Ok(compiled)
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Stores elements of variables, and draws of random nodes if there are any to store.
    pub(crate) fn set_variables(
        &self,
        values: Vec<(Variable, HostTensor)>,
        draws: Option<Vec<(NodeId, u32)>>,
    ) -> Result<()> {
        self.check_open()?;
        let mut kept = self.state.lock();
        let mut elements = Vec::new();
        for (variable, value) in values {
            let node = variable.handle().node();
            let device = kept.entry(&node, HOST).device;
            // What there is no memory for is found before anything is stored.
            #[cfg(feature = "gpu")]
            if device != HOST {
                let (_, variables) = self.gpus.get(device.0 as usize)?;
                variables.buffer(node.id, value.bytes().len() as u64)?;
            }
            elements.push((node.id, device, AlignedBytes::copy_of(value.bytes())?));
        }
        for (variable, device, elements) in elements {
            if device == HOST {
                kept.store(variable, elements);
                continue;
            }
            #[cfg(feature = "gpu")]
            {
                self.gpus.get(device.0 as usize)?.1.store(variable, &elements)?;
                kept.stored_on_device(variable);
            }
        }
        if let Some(draws) = draws {
            kept.draws = draws.into_iter().collect();
        }
        Ok(())
    }
}

impl Planned {
    fn programs(&self) -> MutexGuard<'_, Lru<ProgramKey, Arc<Compiled>>> {
        self.programs.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn check_feeds<'a>(&self, feeds: &'a [Feed<'_>]) -> Result<Vec<FeedData<'a>>> {
        feeds.iter().zip(&self.feed_facts).map(|(feed, fact)| feeds::check(feed, fact)).collect()
    }

    fn key(&self, data: &[FeedData<'_>]) -> Result<ProgramKey> {
        let part = |(data, &keeps): (&FeedData<'_>, &bool)| {
            let contents = if keeps { Some(data.to_tensor()?.to_i128s()?) } else { None };
            Ok((data.shape().clone(), contents))
        };
        data.iter().zip(&self.plan.shape_feeds).map(part).collect()
    }
}

/// The machine's memory in bytes, where the system tells it as Linux does.
fn physical_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session of graph {} with {} plans", self.graph.id(), self.plans().len())
    }
}
