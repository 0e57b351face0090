//! What all handles of a session share: plans, programs, variables; the way of a run.

use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use convoke_compiler::{CompileOptions, GroupLimits, HOST, InputFact, Plan, Signature, compile};
use convoke_cpu_backend::Threads;
use convoke_graph_core::{
    AlignedBytes, Error, ErrorKind, Fact, Feed, Graph, GraphSnapshot, HostTensor, NodeId, Result,
    Shape, Tensor, Variable,
};

use crate::autotune::{Known, Tuning};
use crate::budget;
use crate::cache::Lru;
use crate::calibrate::{Activity, Background, CalibrateOptions};
use crate::cancel::{Bell, CancelToken, Stop};
use crate::devices::{Devices, Gpus};
use crate::executor::{Compiled, Failure, Outputs, Refused};
use crate::feeds::{self, FeedData};
use crate::fetch::{Fetch, FetchList};
use crate::growth::Growth;
use crate::metadata::{PhaseKind, RunMetadata};
use crate::place::Placing;
use crate::queues::{Queues, Taken, Uses, check_puts, with_queues};
use crate::recent::Recent;
use crate::session::{DevicePolicy, RunOptions, SessionOptions, Timings};
use crate::state::State;
use crate::submit::Runners;

/// A session, without the handle.
pub(crate) struct Core {
    pub graph: Graph,
    pub devices: Devices,
    pub options: SessionOptions,
    pub state: State,
    pub runners: Runners,
    pub queues: Arc<Queues>,
    threads: Threads,
    gpus: Gpus,
    /// What kernels took in runs that were timed for it.
    known: Known,
    plans: Mutex<Lru<Signature, Arc<Planned>>>,
    closed: AtomicBool,
    growth: Mutex<Growth>,
    /// Held for writing by what moves variables that have settled, for reading by the runs of a session that does.
    moves: RwLock<()>,
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
    feed_facts: Vec<Fact>,
    programs: Mutex<Lru<ProgramKey, Arc<Compiled>>>,
}

/// The shapes of the feeds, and the elements of those that shapes are computed from.
pub(crate) type ProgramKey = Vec<(Shape, Option<Vec<i128>>)>;

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
}

impl Core {
    /// # Errors
    /// As `Session::with_options`.
    pub fn new(graph: &Graph, devices: &Devices, options: SessionOptions) -> Result<Self> {
        if let DevicePolicy::Prefer(name) = &options.policy {
            devices.index_of(name)?;
        }
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
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
            state: State::default(),
            gpus: Gpus::new(devices),
            known: Known::default(),
            plans: Mutex::new(Lru::new(options.plans)),
            closed: AtomicBool::new(false),
            growth: Mutex::default(),
            moves: RwLock::default(),
            queues: Queues::new(),
            runners: Runners::new(or_cores(options.runners)),
            options,
        })
    }

    /// Ends it: runs that are under way are cancelled, later ones refused.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.queues.ring();
        self.plans().clear();
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
        if uses.is_empty() {
            return self.run_once(request, outputs, None, metadata);
        }
        let taken = self.queues.take(uses, request.data, &self.stop(request))?;
        self.run_with(request, taken, outputs, metadata)
    }

    /// Runs with what was taken from queues, and gives it back if that fails.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with(
        &self,
        request: &Request<'_>,
        mut taken: Taken,
        outputs: &mut Outputs<'_, '_>,
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        let values = std::mem::take(&mut taken.values).into_iter();
        let mut data = request.data.to_vec();
        data.extend(values.map(FeedData::Tensor));
        let held = self.queues.hold(taken);
        let mut tensors = Vec::new();
        let own = &mut Outputs::Tensors(&mut tensors);
        self.run_once(&Request { data: &data, ..*request }, own, Some(outputs), metadata)?;
        held.put(&request.planned.uses, &tensors);
        outputs.fill(tensors)
    }

    /// `others` are to fit what the program fetches, too.
    fn run_once(
        &self,
        request: &Request<'_>,
        outputs: &mut Outputs<'_, '_>,
        others: Option<&Outputs<'_, '_>>,
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        let _active = self.activity.begin();
        let planned = (metadata.plan_cached, metadata.graph_nodes, metadata.planning);
        match self.attempt(request, outputs, others, metadata) {
            // What a GPU has stored already would be stored twice.
            Err(e)
                if e.kind() == ErrorKind::ResourceExhausted
                    && !metadata.stores
                    && self.free_caches() =>
            {
                *metadata = RunMetadata::default();
                metadata.begin(request);
                (metadata.plan_cached, metadata.graph_nodes, metadata.planning) = planned;
                self.attempt(request, outputs, others, metadata)
            }
            run => run,
        }
    }

    /// A run that has changed nothing if it fails.
    fn attempt(
        &self,
        request: &Request<'_>,
        outputs: &mut Outputs<'_, '_>,
        others: Option<&Outputs<'_, '_>>,
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        let &Request { planned, data, options, start, recent, .. } = request;
        let stop = self.stop(request);
        stop.check()?;
        let before = self.gpus.made();
        let mut compiled = self.compiled(planned, data, recent, metadata)?;
        // Nothing moves variables from here on; where something has, there is another program.
        let mut stays = self.options.autotune.then(|| self.read_moves());
        while stays.is_some() && !compiled.is_current(&self.state) {
            drop(stays.take());
            compiled = self.compiled(planned, data, recent, metadata)?;
            stays = Some(self.read_moves());
        }
        metadata.note(PhaseKind::Plan, metadata.begun.map(|_| Duration::ZERO));
        outputs.check(&compiled.program)?;
        others.map_or(Ok(()), |others| others.check(&compiled.program))?;
        check_puts(&planned.uses, &compiled.program)?;
        let mut timings = options.timings;
        // Beside others a kernel takes longer than by itself.
        let tuning = compiled.tuning.as_ref().filter(|_| self.activity.is_alone());
        metadata.tunes = tuning.is_some_and(Tuning::begin);
        if metadata.tunes {
            (timings, metadata.begun) = (Timings::Nodes, Some(start));
        }
        compiled.run(data, &self.state, &self.threads, timings, stop, outputs, metadata)?;
        if let Some(tuning) = compiled.tuning.as_ref().filter(|_| metadata.tunes) {
            let models = self.devices.problem(self.threads.len()).devices;
            tuning.end(&metadata.notes.kernels, &compiled.program, &models, &self.known);
            if options.timings != Timings::Nodes {
                metadata.forget_times();
            }
        }
        compiled.predict(metadata);
        let [bytes, pipelines, alive] = self.gpus.made();
        metadata.device_bytes_allocated = bytes.saturating_sub(before[0]);
        metadata.pipelines_built = pipelines.saturating_sub(before[1]);
        metadata.device_bytes = alive;
        compiled.describe(metadata);
        Ok(())
    }

    fn read_moves(&self) -> RwLockReadGuard<'_, ()> {
        self.moves.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A digest of all that is kept from run to run.
    ///
    /// # Errors
    /// The session is closed, or a device does not give its elements.
    pub fn digest(&self) -> Result<u64> {
        self.check_open()?;
        let mut hasher = DefaultHasher::new();
        let kept = self.state.lock();
        kept.hash(&mut hasher, |variable, entry| {
            #[cfg(feature = "gpu")]
            {
                let (_, variables) = self.gpus.get(entry.device.0 as usize)?;
                variables.load(variable, entry.n_bytes())
            }
            #[cfg(not(feature = "gpu"))]
            {
                let message = format!("node {} has no elements on the host", variable.0);
                Err(Error::internal(message).with_node(&*entry.name))
            }
        })?;
        self.queues.hash(&mut hasher);
        Ok(hasher.finish())
    }

    /// What may end a run.
    pub fn stop<'a>(&'a self, request: &Request<'a>) -> Stop<'a> {
        let &Request { options, start, token, .. } = request;
        let timeout = options.timeout.or(self.options.timeout);
        let deadline = timeout.and_then(|timeout| Some((start.checked_add(timeout)?, timeout)));
        Stop { closed: &self.closed, tokens: [options.cancel.as_ref(), token], deadline }
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

    /// # Errors
    /// The session is closed.
    pub fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            let message = "the session is closed; make a new one";
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        Ok(())
    }

    pub fn plans(&self) -> MutexGuard<'_, Lru<Signature, Arc<Planned>>> {
        self.plans.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The plan of what is fed and fetched.
    ///
    /// # Errors
    /// Handles of other graphs, and what planning refuses.
    pub fn planned<'t, F: Fetch>(
        &self,
        feeds: impl Iterator<Item = &'t Tensor>,
        fetch: &F,
        metadata: &mut RunMetadata,
    ) -> Result<(FetchList, Arc<Planned>)> {
        let mut list = FetchList::default();
        fetch.collect(&mut list);
        list.check_graph(self.graph.id())?;
        for tensor in feeds {
            if tensor.graph().id() != self.graph.id() {
                let message = "a feed belongs to another graph than the session's";
                return Err(Error::invalid(message).with_node(tensor.name()));
            }
            list.signature.feeds.push(tensor.output());
        }
        if let Some(planned) = self.plans().get(&list.signature) {
            metadata.plan_cached = true;
            metadata.graph_nodes = planned.plan.nodes.len() as u64;
            return Ok((list, planned));
        }
        let start = Instant::now();
        let graph = self.graph.snapshot();
        let (signature, uses) = with_queues(&graph, &list.signature)?;
        if self.options.warn_of_growth {
            let mut growth = self.growth.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if let Some(warning) = growth.warning(&graph) {
                tracing::warn!("{warning}");
            }
        }
        let plan = Plan::new(&graph, signature)?;
        let feed_facts = plan.signature.feeds.iter().map(|&f| graph.fact(f).clone()).collect();
        let programs = Mutex::new(Lru::new(self.options.plans));
        let planned = Arc::new(Planned { plan, graph, uses, feed_facts, programs });
        metadata.graph_nodes = planned.plan.nodes.len() as u64;
        let planned = self.plans().insert(list.signature.clone(), planned);
        metadata.planning += start.elapsed();
        Ok((list, planned))
    }

    /// The program for these feeds.
    ///
    /// # Errors
    /// What compiling refuses.
    pub fn compiled(
        &self,
        planned: &Planned,
        data: &[FeedData<'_>],
        recent: Option<&Recent>,
        metadata: &mut RunMetadata,
    ) -> Result<Arc<Compiled>> {
        if let Some(compiled) = recent.and_then(|recent| recent.get(data))
            && compiled.is_current(&self.state)
            && !compiled.is_stale()
        {
            metadata.program_cached = true;
            return Ok(compiled);
        }
        let key = planned.key(data)?;
        let compiled = self.looked_up(planned, data, key.clone(), metadata)?;
        if let Some(recent) = recent {
            recent.set(key, compiled.clone());
        }
        Ok(compiled)
    }

    /// The program of a key: one that is there, or a new one.
    fn looked_up(
        &self,
        planned: &Planned,
        data: &[FeedData<'_>],
        key: ProgramKey,
        metadata: &mut RunMetadata,
    ) -> Result<Arc<Compiled>> {
        let before = planned.programs().get(&key);
        if let Some(compiled) = &before
            && compiled.is_current(&self.state)
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
        let stale = before.as_ref().filter(|before| before.is_stale());
        if let Some(before) = stale {
            match self.compile_anew(planned, &inputs, before, metadata) {
                Some(compiled) => {
                    planned.programs().replace(key, compiled.clone());
                    return Ok(compiled);
                }
                None if before.is_current(&self.state) => return Ok(before.clone()),
                None => {}
            }
        }
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

    /// The program that its runs suggest instead of a stale one; nothing if it can't be had. The stale one is not
    /// stale any more then.
    fn compile_anew(
        &self,
        planned: &Planned,
        inputs: &[InputFact],
        before: &Compiled,
        metadata: &mut RunMetadata,
    ) -> Option<Arc<Compiled>> {
        let _alone = self.moves.write().unwrap_or_else(PoisonError::into_inner);
        match self.compile(planned, inputs, &[], Some(before), metadata) {
            Ok(compiled) => Some(Arc::new(compiled)),
            Err(failure) => {
                let reason = match failure {
                    Failure::Refused(refused) => refused.reason,
                    Failure::Error(error) => error.to_string(),
                };
                tracing::warn!("what runs took suggests another placement, which fails: {reason}");
                if let Some(tuning) = &before.tuning {
                    tuning.give_up();
                }
                None
            }
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

    /// Stores elements of variables, and draws of random nodes if there are any to store.
    ///
    /// # Errors
    /// The session is closed, or a device has no memory.
    pub fn set_variables(
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

    fn key(&self, data: &[FeedData<'_>]) -> Result<ProgramKey> {
        let part = |(data, &keeps): (&FeedData<'_>, &bool)| {
            let contents = if keeps { Some(data.to_tensor()?.to_i128s()?) } else { None };
            Ok((data.shape().clone(), contents))
        };
        data.iter().zip(&self.plan.shape_feeds).map(part).collect()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.queues.end();
    }
}
