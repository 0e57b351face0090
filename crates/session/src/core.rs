//! What all handles of a session share: plans, programs, variables; the way of a run.

mod again;
mod closing;
mod kept;
mod moving;
mod planning;
mod programs;
#[cfg(all(test, not(loom)))]
mod tests;
mod under_way;

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use convoke_compiler::flow::FlowPlan;
use convoke_compiler::{DeviceIndex, Plan, Signature};
use convoke_cpu_backend::Threads;
use convoke_graph_core::{
    DType, Error, ErrorKind, Fact, Feed, Graph, GraphSnapshot, HostTensor, Result, Shape,
};

use crate::autotune::{Known, Tuning};
use crate::cache::{Cache, Lru};
use crate::calibrate::{Activity, Background, CalibrateOptions};
use crate::cancel::{CancelToken, Stop};
use crate::device_tensor::{AllFetched, Fetched};
use crate::devices::{Devices, Gpus, HOST_NAME, Made, cores};
use crate::donation::Settled;
use crate::executor::{Compiled, Outputs, RunState};
use crate::feeds::{self, FeedData};
use crate::flow::{Flowing, Parks};
use crate::growth::Growth;
use crate::holding::{Holdings, Journal};
use crate::identity::{Identity, SessionMetadata};
use crate::metadata::{PhaseKind, RunMetadata};
use crate::moment::{Moments, Storing};
use crate::partial::PartialPlans;
use crate::place::LastGrown;
use crate::prepared::AllPrepared;
use crate::queues::{Held, Park, Puts, Queues, Uses};
use crate::recent::Recent;
use crate::session::{DevicePolicy, RunOptions, SessionOptions, Timings};
use crate::state::State;
use crate::submit::Runners;
use crate::sync::{AtomicBool, Mutex, MutexGuard};
use crate::turn::Turn;
pub(crate) use kept::Moment;

pub(crate) use moving::Sent;
pub(crate) use under_way::{Came, Marks, UnderWay};

/// How often a run that changes tables begins where other runs change those that it has looked at.
const TABLE_ATTEMPTS: usize = 16;

/// A session, without the handle.
pub(crate) struct Core {
    pub graph: Graph,
    pub devices: Devices,
    pub options: SessionOptions,
    pub state: Arc<State>,
    pub runners: Runners,
    pub queues: Arc<Queues>,
    /// Its name and version, if it has them.
    pub identity: Option<Identity>,
    threads: Threads,
    gpus: Gpus,
    /// What kernels took in runs that were timed for it.
    known: Known,
    plans: Cache<Signature, Arc<Planned>>,
    /// Those of partial runs.
    pub partial: PartialPlans,
    /// Those of callables, which may keep them longer.
    pub prepared: AllPrepared,
    closed: AtomicBool,
    growth: Mutex<Growth>,
    grown: LastGrown,
    /// Held for writing by what moves variables that have settled, for reading by the runs of a session that does.
    moves: RwLock<()>,
    /// When nobody is half through with storing.
    pub moments: Arc<Moments>,
    /// Runs that count follow one another.
    pub turn: Arc<Turn>,
    activity: Arc<Activity>,
    /// Ends with the session.
    _background: Option<Background>,
}

const fn is_shared<T: Send + Sync>() {}
const _: () = is_shared::<Core>();

/// A plan and its programs.
pub(crate) struct Planned {
    pub plan: Plan,
    pub graph: GraphSnapshot,
    /// What it does with queues and readers. What it takes comes after what is fed, and what it puts after what is fetched.
    pub uses: Uses,
    /// What computes what it must know before it takes anything, if there is something.
    before: Option<Box<Planned>>,
    /// If the plan has branches, loops or assertions, what runs instead of a program.
    pub flow: Option<Flowing>,
    feed_facts: Vec<Fact>,
    /// Whether it takes the next number of a variable.
    pub counts: bool,
    programs: Cache<ProgramKey, Arc<Compiled>>,
}

/// The shapes of the feeds, where they are, whether they are the run's alone, and the elements of those that shapes
/// are computed from.
pub(crate) type ProgramKey = Vec<(Shape, DeviceIndex, bool, Option<Vec<i128>>)>;

/// What a run is of.
pub(crate) struct Request<'a> {
    pub planned: &'a Planned,
    pub data: &'a [FeedData<'a>],
    pub options: &'a RunOptions,
    /// When it was called.
    pub start: Instant,
    /// What else cancels it than its options.
    pub token: Option<&'a CancelToken>,
    /// Where programs are kept that need no look-up.
    pub recent: Option<&'a Recent>,
    /// What it puts into queues, if it uses any.
    pub puts: Option<&'a Puts<'a>>,
    /// What was taken for it, if it uses queues, readers or tables.
    pub held: Option<&'a Held>,
    /// Where it notes that it has begun to store.
    pub storing: Option<&'a Storing<'a>>,
    /// How it waits in its middle, if not on its thread.
    pub parks: Option<Parks<'a>>,
}

impl<'a> Request<'a> {
    /// A run of a plan with these feeds, that nothing but its options cancels.
    pub fn new(
        planned: &'a Planned,
        data: &'a [FeedData<'a>],
        options: &'a RunOptions,
        start: Instant,
    ) -> Self {
        let (token, recent, puts, held, storing) = (None, None, None, None, None);
        let parks = None;
        Self { planned, data, options, start, token, recent, puts, held, storing, parks }
    }
}

impl Core {
    /// # Errors
    /// As `Session::with_options`.
    pub fn new(graph: &Graph, devices: &Devices, options: SessionOptions) -> Result<Self> {
        if let DevicePolicy::Prefer(name) = &options.policy {
            devices.index_of(name)?;
        }
        let identity = options.metadata.as_ref().map(Identity::claim).transpose()?;
        let metadata = identity.as_ref().map(|identity| identity.metadata().clone());
        let or_cores = |n: usize| if n == 0 { cores() } else { n };
        let threads = Threads::new(or_cores(options.threads))?;
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
            state: Arc::default(),
            gpus: Gpus::new(devices),
            known: Known::default(),
            plans: Cache::new(options.plans),
            partial: PartialPlans::new(options.plans),
            prepared: AllPrepared::default(),
            closed: AtomicBool::new(false),
            growth: Mutex::default(),
            grown: LastGrown::default(),
            moves: RwLock::default(),
            moments: Arc::default(),
            turn: Arc::default(),
            queues: Queues::new(graph, options.stall_after, metadata),
            identity,
            runners: Runners::new(or_cores(options.runners)),
            options,
        })
    }

    /// Its name and version.
    pub fn metadata(&self) -> Option<&Arc<SessionMetadata>> {
        self.identity.as_ref().map(Identity::metadata)
    }

    /// Runs what `request` says. A run that finds no memory frees what no run uses, and is made once more.
    ///
    /// # Errors
    /// As `Session::run`.
    pub fn run(
        &self,
        request: &Request<'_>,
        outputs: &mut Outputs<'_, '_>,
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        let uses = &request.planned.uses;
        if !uses.is_empty() {
            let uses = &*self.resolved(request)?;
            let taken = self.queues.take(uses, request.data, &self.stop(request));
            let taken = taken.map_err(|e| self.located_on_host(e))?;
            let run = UnderWay::new(&self.queues, request.planned, request.data, taken)?;
            return self.run_with(request, uses, run, None, outputs, metadata).map(drop);
        }
        let run = |request: &Request<'_>| self.run_once(request, outputs, None, None, metadata);
        self.settled(request, run).map(drop)
    }

    /// Runs with what is donated: consumed if that succeeds, and given back if not, where nothing was stored in it.
    fn settled(
        &self,
        request: &Request<'_>,
        run: impl FnOnce(&Request<'_>) -> Result<Came>,
    ) -> Result<Came> {
        match Settled::of(request.planned, request.data)? {
            None => run(request),
            Some(settled) => {
                let came = run(&Request { data: &settled.data, ..*request })?;
                if came == Came::ToItsEnd {
                    settled.consume();
                }
                Ok(came)
            }
        }
    }

    /// What a run does with queues and readers, once it is known what must be known first.
    ///
    /// # Errors
    /// A number of elements below 0, an index of a queue out of range; what computing them refuses.
    pub fn resolved<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, Uses>> {
        let uses = &request.planned.uses;
        if !uses.is_open(request.data) {
            return Ok(Cow::Borrowed(uses));
        }
        let mut computed = AllFetched::new();
        if let Some(before) = &request.planned.before {
            let data = request.data.iter().map(FeedData::only_read).collect::<Result<Vec<_>>>()?;
            let request =
                Request { planned: before, data: &data, recent: None, puts: None, ..*request };
            let outputs = &mut Outputs::Tensors(&mut computed);
            self.run_once(&request, outputs, None, None, &mut RunMetadata::default())?;
        }
        let computed = computed.into_iter().map(Fetched::into_host).collect::<Result<Vec<_>>>()?;
        let resolved = uses.resolved(request.data, &computed);
        resolved.map(Cow::Owned).map_err(|e| self.located_on_host(e))
    }

    /// Runs with what was taken from queues, and gives it back if that fails. Anew, if other runs have changed tables
    /// meanwhile that it has looked at. Gives the run back if it waits and holds no thread meanwhile, which it does where
    /// something can park it.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with<'d>(
        &self,
        request: &Request<'_>,
        uses: &Uses,
        mut run: UnderWay<'d>,
        park: Option<Park<'_>>,
        outputs: &mut Outputs<'_, '_>,
        metadata: &mut RunMetadata,
    ) -> Result<Option<UnderWay<'d>>> {
        let mut tensors = AllFetched::new();
        let storing = self.moments.storing(uses.changed_tables().next().is_some());
        let puts = loop {
            let UnderWay { settled, held, marks, .. } = &run;
            let puts = Puts::of(uses, held, self.stop(request));
            let own = Request { puts: Some(&puts), held: Some(held), ..*request };
            let parks = park.map(|park| Parks { marks, park });
            let own = Request { data: &settled.data, storing: Some(&storing), parks, ..own };
            let own_outputs = &mut Outputs::Tensors(&mut tensors);
            let error = match self.run_once(&own, own_outputs, Some(outputs), None, metadata) {
                Ok(Came::ToItsEnd) => break puts,
                Ok(Came::ToAWait) => return Ok(Some(run)),
                Err(error) => error,
            };
            if !puts.is_outdated() || metadata.stores || run.n_looks == TABLE_ATTEMPTS {
                return Err(error);
            }
            storing.end();
            drop(puts);
            run.look_again(uses)?;
            metadata.begin_again(request);
        };
        run.settled.consume();
        // What it puts is on the host; in the places of the others is something that nobody looks at.
        let on_host = |tensor: &Fetched| tensor.host().map_or_else(|_| false.into(), Clone::clone);
        let values: Vec<HostTensor> = tensors.iter().map(on_host).collect();
        let claimed = puts.give_up();
        let items = puts.items(&values);
        run.held.put(uses, items, uses.changed_tables(), &values, claimed.as_ref());
        storing.end();
        drop(claimed);
        outputs.fill(tensors).map(|()| None)
    }

    /// Makes a run that is only a part of another, which holds what this one would store.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_part(
        &self,
        request: &Request<'_>,
        held: &mut Holdings,
        outputs: &mut Outputs<'_, '_>,
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        self.run_once(request, outputs, None, Some(held), metadata).map(drop)
    }

    /// `others` are to fit what the program fetches, too.
    fn run_once(
        &self,
        request: &Request<'_>,
        outputs: &mut Outputs<'_, '_>,
        others: Option<&Outputs<'_, '_>>,
        mut held: Option<&mut Holdings>,
        metadata: &mut RunMetadata,
    ) -> Result<Came> {
        let _active = self.activity.begin();
        let own = self.moments.storing(false);
        let request = &Request { storing: request.storing.or(Some(&own)), ..*request };
        let has_freed = Cell::new(false);
        let has_freed = request.parks.map_or(&has_freed, |parks| &parks.marks.has_freed);
        let run = match self.attempt(request, outputs, others, held.as_deref_mut(), metadata) {
            // What a GPU has stored already would be stored twice.
            Err(e)
                if e.kind() == ErrorKind::ResourceExhausted
                    && !metadata.stores
                    && !has_freed.get()
                    && self.free_caches() =>
            {
                has_freed.set(true);
                // Others that hold what this waits for may wait for these tables.
                drop(request.puts.and_then(Puts::give_up));
                metadata.begin_again(request);
                self.attempt(request, outputs, others, held, metadata)
            }
            run => run,
        };
        run.map_err(|e| self.reason(e, metadata.stores))
    }

    /// As [`Self::located`], of what the host does by itself.
    pub fn located_on_host(&self, error: Error) -> Error {
        let error = self.located(error);
        if error.node().is_some() { error.with_device(HOST_NAME) } else { error }
    }

    /// An error with the line where the node that it names was built.
    pub fn located(&self, error: Error) -> Error {
        let name = error.node().map(|node| node.split_once(':').map_or(node, |(name, _)| name));
        match name.and_then(|name| self.graph.operation(name).ok()) {
            Some(operation) => error.with_location(operation.node().location),
            None => error,
        }
    }

    /// A run that has changed nothing if it fails.
    fn attempt(
        &self,
        request: &Request<'_>,
        outputs: &mut Outputs<'_, '_>,
        others: Option<&Outputs<'_, '_>>,
        held: Option<&mut Holdings>,
        metadata: &mut RunMetadata,
    ) -> Result<Came> {
        let &Request { planned, data, options, start, recent, puts, .. } = request;
        let stop = self.stop(request);
        // Who goes on after a wait is told where it has ended.
        if request.parks.is_none_or(|parks| parks.marks.progress.borrow().is_none()) {
            stop.check()?;
        }
        // A part of a run stores nothing, and its whole has its turn when it does. Who may wait under way takes it later.
        let counts = planned.counts && held.is_none() && planned.uses.inside.is_empty();
        let _turn = counts.then(|| self.turn.take(&stop)).transpose()?;
        let before = self.gpus.made();
        if let Some(flow) = &planned.flow {
            let check = |shapes: &[(DType, &Shape)]| {
                let shape = |place: usize| shapes.get(place).copied();
                outputs.check(&shape)?;
                others.map_or(Ok(()), |others| others.check(&shape))?;
                puts.map_or(Ok(()), |puts| puts.check(&shape))
            };
            let tensors = self.run_flow(flow, request, held, &check, metadata)?;
            let Some(tensors) = tensors else {
                self.count(before, metadata);
                return Ok(Came::ToAWait);
            };
            outputs.fill(Fetched::all(tensors, &planned.plan.signature.residents))?;
            self.count(before, metadata);
            return Ok(Came::ToItsEnd);
        }
        let (mut compiled, _stays) = self.current(planned, data, recent, metadata)?;
        metadata.note(PhaseKind::Plan, metadata.begun.map(|_| Duration::ZERO));
        let shape = |place: usize| compiled.fetched(place);
        outputs.check(&shape)?;
        others.map_or(Ok(()), |others| others.check(&shape))?;
        puts.map_or(Ok(()), |puts| puts.check(&shape))?;
        let mut timings = options.timings;
        // Beside others a kernel takes longer than by itself.
        let tuning = compiled.tuning.as_ref().filter(|_| self.activity.is_alone());
        metadata.tunes = tuning.is_some_and(Tuning::begin);
        if metadata.tunes {
            (timings, metadata.begun) = (Timings::Nodes, Some(start));
        }
        loop {
            let run = self.run_state(request, None);
            match compiled.run(data, run, timings, stop, outputs, metadata) {
                // A variable has moved or was reset between looking at it and the run.
                Err(e)
                    if e.kind() == ErrorKind::Aborted && self.is_outdated(&compiled, metadata) =>
                {
                    compiled = self.compiled(planned, data, recent, metadata)?;
                }
                run => break run?,
            }
        }
        if let Some(tuning) = compiled.tuning.as_ref().filter(|_| metadata.tunes) {
            let models = self.devices.problem(self.threads.len()).devices;
            tuning.end(&metadata.notes.kernels, &compiled.program, &models, &self.known);
            if options.timings != Timings::Nodes {
                metadata.forget_times();
            }
        }
        compiled.predict(metadata);
        self.count(before, metadata);
        compiled.describe(metadata);
        Ok(Came::ToItsEnd)
    }

    /// Notes what GPUs made since `before`, and whose run it was.
    fn count(&self, before: Made, metadata: &mut RunMetadata) {
        let Made { bytes, pipelines, found, alive } = self.gpus.made();
        metadata.device_bytes_allocated += bytes.saturating_sub(before.bytes);
        metadata.pipelines_built += pipelines.saturating_sub(before.pipelines);
        metadata.pipelines_found += found.saturating_sub(before.found);
        metadata.device_bytes = alive;
        metadata.session = self.metadata().cloned();
    }

    /// What programs run on.
    pub fn run_state<'a>(
        &'a self,
        request: &Request<'a>,
        journal: Option<&'a RefCell<Journal>>,
    ) -> RunState<'a> {
        let storing = request.storing;
        RunState { state: &self.state, threads: &self.threads, journal, storing }
    }

    /// Whether a run that has failed is to be made with another program, if nothing is stored yet.
    fn is_outdated(&self, compiled: &Compiled, metadata: &RunMetadata) -> bool {
        !metadata.stores && !self.options.autotune && !compiled.is_current(&self.state)
    }

    fn read_moves(&self) -> RwLockReadGuard<'_, ()> {
        self.moves.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may end a run.
    pub fn stop<'a>(&'a self, request: &Request<'a>) -> Stop<'a> {
        let stop = self.stop_of(request.options, request.start);
        Stop { tokens: [stop.tokens[0], request.token], ..stop }
    }

    /// What may end a run that began at `start`.
    pub fn stop_of<'a>(&'a self, options: &'a RunOptions, start: Instant) -> Stop<'a> {
        let timeout = options.timeout.or(self.options.timeout);
        let deadline = timeout.and_then(|timeout| Some((start.checked_add(timeout)?, timeout)));
        let (tokens, fails_if_blocked) = ([options.cancel.as_ref(), None], options.fail_if_blocked);
        Stop { closed: &self.closed, tokens, deadline, fails_if_blocked }
    }

    pub fn plans(&self) -> MutexGuard<'_, Lru<Signature, Arc<Planned>>> {
        self.plans.lock()
    }

    /// Forgets all plans.
    fn forget_plans(&self) {
        self.plans().clear();
        self.partial.clear();
    }
}

impl Planned {
    /// A plan without programs yet, of which so many are kept.
    pub fn of(plan: Plan, graph: GraphSnapshot, n_programs: usize) -> Self {
        let feed_facts = plan.signature.feeds.iter().map(|&f| graph.fact(f).clone()).collect();
        let programs = Cache::new(n_programs);
        let counts = plan.counts();
        let (uses, before) = (Uses::default(), None);
        Self { plan, graph, uses, before, flow: None, feed_facts, counts, programs }
    }

    /// As [`Self::of`], of a plan with branches, loops or assertions.
    pub fn of_flow(
        flow: FlowPlan,
        signature: Signature,
        graph: GraphSnapshot,
        n_programs: usize,
    ) -> Self {
        let flow = Flowing::new(flow, &graph, n_programs);
        let counts = flow.programs().any(|planned| planned.counts);
        let bare = Self::of(Plan::bare(&graph, signature), graph, n_programs);
        Self { flow: Some(flow), counts, ..bare }
    }

    /// Itself and the plans of its parts.
    fn all(&self) -> impl Iterator<Item = &Self> {
        let before = self.before.as_deref().into_iter();
        std::iter::once(self).chain(before).chain(self.flow.iter().flat_map(Flowing::programs))
    }

    /// Does something with it, with the plans of its parts, and with those of many iterations of its loops.
    fn for_each(&self, each: &mut dyn FnMut(&Self)) {
        self.all().for_each(&mut *each);
        let blocks = self.flow.iter().flat_map(Flowing::blocks);
        blocks.for_each(|block| each(&block.planned));
    }

    /// How many nodes it runs.
    pub fn n_nodes(&self) -> u64 {
        self.all().map(|planned| planned.plan.nodes.len() as u64).sum()
    }

    /// # Errors
    /// It has branches or loops.
    pub fn check_is_program(&self) -> Result<()> {
        if self.flow.is_some() {
            let message = "unsupported: the program of a run with branches, loops or assertions, \
                           which has several; Session::programs gives them";
            return Err(Error::new(ErrorKind::Unimplemented, message));
        }
        Ok(())
    }

    fn programs(&self) -> MutexGuard<'_, Lru<ProgramKey, Arc<Compiled>>> {
        self.programs.lock()
    }

    /// Drops its programs, and those of its parts.
    pub fn forget_programs(&self) {
        self.flow.iter().for_each(Flowing::forget);
        self.all().for_each(|planned| planned.programs().clear());
    }

    /// What is known of the tensors that are fed.
    pub fn feed_facts(&self) -> &[Fact] {
        &self.feed_facts
    }

    /// The feeds' elements, in the tensors' dtypes.
    ///
    /// # Errors
    /// A feed that does not fit its tensor.
    pub fn check_feeds<'a>(&self, feeds: &'a [Feed<'_>]) -> Result<Vec<FeedData<'a>>> {
        let feeds = feeds.iter().zip(&self.feed_facts);
        feeds.map(|(feed, fact)| feeds::check(feed, fact)).collect()
    }

    fn key(&self, data: &[FeedData<'_>], gpus: &Gpus) -> Result<ProgramKey> {
        let part = |(data, &keeps): (&FeedData<'_>, &bool)| {
            let contents = if keeps { Some(data.to_tensor()?.to_i128s()?) } else { None };
            let is_given = matches!(data, FeedData::Given(..));
            Ok((data.shape().clone(), gpus.home(data), is_given, contents))
        };
        data.iter().zip(&self.plan.shape_feeds).map(part).collect()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.queues.end();
    }
}
