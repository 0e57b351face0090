//! The session: plans, programs, variables, runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use convoke_compiler::Program;
#[expect(unused_imports, reason = "docs link to it")]
use convoke_graph_core::ErrorKind;
use convoke_graph_core::{Feed, Graph, Result, Tensor};
use convoke_placement::Objective;

use crate::callable::{Callable, CallableOptions};
use crate::cancel::CancelToken;
use crate::core::{Core, Request};
use crate::device_tensor::AllFetched;
use crate::devices::Devices;
use crate::donation::Settled;
use crate::executor::Outputs;
use crate::explain::{Explanation, explain_parts};
use crate::fetch::Fetch;
use crate::identity::{Prefix, SessionMetadata};
use crate::metadata::RunMetadata;
use crate::partial::PartialRun;
use crate::queues::{Handles, WaitingRun};
use crate::state::{State, VariableInfo};
use crate::submit::RunHandle;

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
    /// How long a run may take, if its own options say nothing. See [`RunOptions::timeout`].
    pub timeout: Option<Duration>,
    /// Whether a graph that grows run after run is told of, once, through `tracing`: such a run is planned anew each
    /// time.
    pub warn_of_growth: bool,
    /// Threads for submitted runs: so many run at once, the others wait in line. 0 is one for each core. They start
    /// with the first [`Session::submit`]. Those that wait for queues inside of branches and loops do not count: others
    /// take their places meanwhile.
    pub runners: usize,
    /// How long a run waits for queues or readers before it is told of, once, through `tracing`, with what
    /// [`Session::waiting`] says of it; `None` is never. Those of queue runners are not told of: they wait most of the
    /// time.
    pub stall_after: Option<Duration>,
    /// The session's name and version, which no other open session of the process has. Logs, metadata of runs and
    /// traces say it.
    pub metadata: Option<SessionMetadata>,
}

impl Default for SessionOptions {
    /// Automatic placement for the least total time, soft, one thread for each core, 64 plans, as much as there is
    /// physical memory (16 GiB where the system does not tell), simplified and fused, no calibration and no tuning by itself, no
    /// timeout, told of after waiting for 10 seconds.
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
            timeout: None,
            warn_of_growth: true,
            runners: 0,
            stall_after: Some(Duration::from_secs(10)),
            metadata: None,
        }
    }
}

/// What to record of a run, and what may end it early.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Which times.
    pub timings: Timings,
    /// How long the run may take from its call, or, if it is submitted, from when it begins. It then ends with
    /// [`ErrorKind::DeadlineExceeded`] where it would look for its cancelling: see [`CancelToken`].
    pub timeout: Option<Duration>,
    /// What cancels it.
    pub cancel: Option<CancelToken>,
    /// Whether a run that would have to wait for queues or readers ends at once with
    /// [`ErrorKind::FailedPrecondition`], which names what lacks. Others have to change the queues before it can
    /// succeed; `Unavailable` and `Aborted` are for what the same call may find better the next time, and TensorFlow's
    /// monitored sessions recover from those by themselves.
    pub fail_if_blocked: bool,
}

impl RunOptions {
    /// With all times.
    pub fn timed() -> Self {
        Self { timings: Timings::Nodes, ..Self::default() }
    }
}

/// Which times a run records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
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
/// A handle, as graphs and tensors are: clones are the same session, which ends with the last of them. `run` takes
/// `&self`: many threads may run one session at once.
#[derive(Clone)]
pub struct Session {
    pub(crate) core: Arc<Core>,
    /// Runs have the core, and not this.
    _handles: Arc<Handles>,
}

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
    /// Threads cannot be started, or the preferred device does not exist; [`ErrorKind::InvalidArgument`] for metadata
    /// with a negative version, or that another open session has.
    pub fn with_options(graph: &Graph, devices: &Devices, options: SessionOptions) -> Result<Self> {
        let core = Arc::new(Core::new(graph, devices, options)?);
        let _handles = core.queues.handles();
        Ok(Self { core, _handles })
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.core.graph
    }

    /// The name and version that it was made with.
    pub fn metadata(&self) -> Option<&SessionMetadata> {
        self.core.metadata().map(|metadata| &**metadata)
    }

    /// The devices.
    pub fn devices(&self) -> &Devices {
        &self.core.devices
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
    /// run uses; [`ErrorKind::Cancelled`] where the session is closed meanwhile;
    /// [`ErrorKind::DeadlineExceeded`] after the session's timeout; [`ErrorKind::OutOfRange`] where a queue lacks
    /// elements and is closed, or all that put into it belong to queue runners that have ended, and no other run is
    /// under way that does; what operations refuse. Nothing has changed then.
    pub fn run<F: Fetch>(&self, feeds: &[Feed<'_>], fetch: F) -> Result<F::Output> {
        self.run_with(feeds, fetch, RunOptions::default()).map(|(output, _)| output)
    }

    /// As [`Self::run`], and says what the run did.
    ///
    /// # Errors
    /// As [`Self::run`]; [`ErrorKind::Cancelled`] and [`ErrorKind::DeadlineExceeded`] as the options say.
    pub fn run_with<F: Fetch>(
        &self,
        feeds: &[Feed<'_>],
        fetch: F,
        options: RunOptions,
    ) -> Result<(F::Output, RunMetadata)> {
        let start = Instant::now();
        let _at_work = self.core.enter()?;
        let mut metadata = RunMetadata::default();
        let tensors = feeds.iter().map(|feed| &feed.tensor);
        let (list, planned) = self.core.planned(tensors, &fetch, &mut metadata)?;
        let data = planned.check_feeds(feeds)?;
        let request = Request::new(&planned, &data, &options, start);
        metadata.begin(&request);
        let mut values = AllFetched::new();
        self.core.run(&request, &mut Outputs::Tensors(&mut values), &mut metadata)?;
        let output = fetch.take(&mut list.results(values))?;
        metadata.wall = start.elapsed();
        Ok((output, metadata))
    }

    /// Prepares a run that is made many times: what is fed is given by place, and nothing is looked up. See
    /// [`Callable`].
    ///
    /// # Errors
    /// As [`Self::run`], for what is found before feeds are known.
    pub fn callable<F: Fetch>(&self, feeds: &[&Tensor], fetch: F) -> Result<Callable<F>> {
        self.callable_with(feeds, fetch, &CallableOptions::default())
    }

    /// As [`Self::callable`], where the values of some tensors stand for others.
    ///
    /// # Errors
    /// As [`Self::callable`]; [`ErrorKind::InvalidArgument`] for tensors that cannot be connected: see
    /// [`CallableOptions::connect`].
    pub fn callable_with<F: Fetch>(
        &self,
        feeds: &[&Tensor],
        fetch: F,
        options: &CallableOptions,
    ) -> Result<Callable<F>> {
        Callable::new(self.clone(), feeds, fetch, options)
    }

    /// Begins a run that is made in steps: of `feeds` and of what `fetch` asks for, each step takes some. What it takes from
    /// queues, readers and tables it takes with the first step that needs any of it, and what it puts comes in at its end.
    /// See [`PartialRun`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where nothing is asked for, and for a placeholder that is needed and not among
    /// `feeds`; [`ErrorKind::Unimplemented`] for
    /// [`Variable::initialized_value`](convoke_graph_core::Variable::initialized_value) after a branch or loop that assigns
    /// the variable; as [`Self::run`], for what is found before feeds are known.
    pub fn partial_run<F: Fetch>(&self, feeds: &[&Tensor], fetch: F) -> Result<PartialRun> {
        PartialRun::new(self.clone(), feeds, &fetch)
    }

    /// Starts a run and does not wait for it. See [`RunHandle`], which tells how it went: what [`Self::run`] refuses,
    /// the handle does.
    ///
    /// Elements that are borrowed are copied first. Submitted runs start in the order in which they were submitted,
    /// as many at once as [`SessionOptions::runners`] says; those that wait for queues hold no thread meanwhile, and those
    /// that waited inside of branches and loops go on before others start. There is no order in which runs end, or store
    /// what they assign.
    pub fn submit<F: Fetch>(
        &self,
        feeds: &[Feed<'_>],
        fetch: F,
        options: RunOptions,
    ) -> RunHandle<F> {
        RunHandle::start(self, feeds, fetch, options)
    }

    /// The program that a run with these feeds uses, to be printed.
    ///
    /// # Errors
    /// As [`Self::run`], for what is found before work begins; [`ErrorKind::Unimplemented`] for a run with branches,
    /// loops or assertions, which has several: see [`Self::programs`].
    pub fn program<F: Fetch>(&self, feeds: &[Feed<'_>], fetch: F) -> Result<Program> {
        let _at_work = self.core.enter()?;
        let mut metadata = RunMetadata::default();
        let tensors = feeds.iter().map(|feed| &feed.tensor);
        let (_, planned) = self.core.planned(tensors, &fetch, &mut metadata)?;
        planned.check_is_program()?;
        let data = planned.check_feeds(feeds)?;
        let settled = Settled::of(&planned, &data)?;
        let data = settled.as_ref().map_or(&*data, |settled| &settled.data);
        Ok(self.core.compiled(&planned, data, None, &mut metadata)?.program.clone())
    }

    /// The programs of a run with branches, loops or assertions with these feeds that are known before it, each with its
    /// place in [`ExplainedParts::programs`](crate::ExplainedParts::programs); of another run, its one program, with 0.
    ///
    /// # Errors
    /// As [`Self::run`], for what is found before work begins.
    pub fn programs<F: Fetch>(
        &self,
        feeds: &[Feed<'_>],
        fetch: F,
    ) -> Result<Vec<(usize, Program)>> {
        let _at_work = self.core.enter()?;
        let mut metadata = RunMetadata::default();
        let tensors = feeds.iter().map(|feed| &feed.tensor);
        let (_, planned) = self.core.planned(tensors, &fetch, &mut metadata)?;
        match &planned.flow {
            None => Ok(vec![(0, self.program(feeds, fetch)?)]),
            Some(flow) => {
                let data = planned.check_feeds(feeds)?;
                Ok(explain_parts(&self.core, &planned, flow, &data)?.1)
            }
        }
    }

    /// Where a run with these feeds goes and why, with what it is predicted to take. A run with branches, loops or
    /// assertions is explained part by part: see [`Explanation::parts`].
    ///
    /// # Errors
    /// As [`Self::run`], for what is found before work begins.
    pub fn explain<F: Fetch>(&self, feeds: &[Feed<'_>], fetch: F) -> Result<Explanation> {
        let _at_work = self.core.enter()?;
        let mut metadata = RunMetadata::default();
        let tensors = feeds.iter().map(|feed| &feed.tensor);
        let (_, planned) = self.core.planned(tensors, &fetch, &mut metadata)?;
        let data = planned.check_feeds(feeds)?;
        if let Some(flow) = &planned.flow {
            let (parts, _) = explain_parts(&self.core, &planned, flow, &data)?;
            let devices = self.core.devices.list().iter().map(|info| info.name.to_string());
            return Ok(Explanation::of_parts(parts, devices.collect()));
        }
        let settled = Settled::of(&planned, &data)?;
        let data = settled.as_ref().map_or(&*data, |settled| &settled.data);
        let compiled = self.core.compiled(&planned, data, None, &mut metadata)?;
        Explanation::of(&compiled, &planned.plan, &planned.graph)
    }

    /// The variables that runs have needed so far, by name. Those of a closed session have no elements.
    pub fn variables(&self) -> Vec<VariableInfo> {
        let kept = self.core.state.lock();
        let mut all: Vec<VariableInfo> = kept.variables.values().map(|e| e.info()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The runs that wait for queues or readers at this moment, however long, in the order in which they came.
    pub fn waiting(&self) -> Vec<WaitingRun> {
        self.core.queues.waiting()
    }

    /// A digest of all that runs can change: the elements of variables, what queues and tables hold, where readers stand, and
    /// how often random operations were drawn.
    /// Equal before and after a run that fails. Which value a state has may differ between versions of Convoke.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] for a closed session; a device that does not give its elements.
    pub fn state_digest(&self) -> Result<u64> {
        self.core.digest()
    }

    /// Ends the session for all its handles: runs that are under way end with [`ErrorKind::Cancelled`] where they
    /// would look for their cancelling, later ones are refused. Does not wait for them.
    ///
    /// What the session keeps is freed, whatever handles and callables there are: the elements of variables on all
    /// devices, what queues and tables hold, what readers have read, and the memory of programs. [`Self::variables`]
    /// says then that no variable has elements. What a run under way uses is freed when it ends, and nothing of what it
    /// stores stays; a [`PartialRun`] keeps what it has until it is dropped. What was fetched is the caller's.
    pub fn close(&self) {
        self.core.close();
    }

    pub(crate) fn state(&self) -> &State {
        &self.core.state
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
        write!(
            f,
            "{}Session of graph {} with {} plans",
            Prefix(self.metadata()),
            self.core.graph.id(),
            self.core.plans().len()
        )
    }
}
