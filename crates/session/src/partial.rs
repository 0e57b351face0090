//! Runs in steps: some is fed and some is fetched, and then more.

mod planned;
mod taking;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use convoke_compiler::Signature;
use convoke_compiler::steps::{Given, Progress};
use convoke_graph_core::{Error, ErrorKind, Feed, HostTensor, NodeId, Output, Result, Tensor};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::cancel::Stop;
use crate::core::{Planned, Request};
use crate::device_tensor::{AllFetched, Fetched};
use crate::executor::Outputs;
use crate::feeds::{self, FeedData};
use crate::fetch::Fetch;
use crate::holding::Holdings;
use crate::metadata::RunMetadata;
use crate::moment::Storing;
use crate::queues::{Claimed, Held};
use crate::session::{RunOptions, Session};
pub(crate) use planned::PartialPlans;
use planned::{Declared, PlannedStep, StepKey};
use taking::{Put, Taking};

/// A run that is made in steps: each feeds some of what was declared and fetches some, and keeps what later ones need.
///
/// All steps together are one run. Nothing is computed twice, random nodes are drawn once, each tensor is fed once and
/// fetched once. A fetch needs only those feeds that it depends on. Variables are read as they were when the partial run
/// was made, unless an edge leads from an assignment. What is assigned, and how often random nodes were drawn, is stored
/// with the step that gives the last of what was declared, or by [`Self::finish`]. A handle that is dropped before has
/// changed nothing. Sums are added to what is current then, and an `assign` replaces it. Other changes of the elements at
/// the start, as scatters that multiply, refuse to be stored, with [`ErrorKind::Aborted`], where others have stored into
/// the variable meanwhile.
///
/// Branches, loops, assertions and functions of the host run in the first step that needs them, with all that the whole run
/// needs of them, and not again.
///
/// The first step that needs anything of queues (staging areas, accumulators and barriers among them), readers or tables
/// that change takes all that the whole run takes from them, at one time, and keeps room for what the run puts; it waits
/// for that as its options say, and gets the elements that one run would get, in whatever order steps ask for them. Inside of
/// branches and loops a step takes as it comes to it, and keeps what it has taken: two runs may wait for one another there. Numbers of elements, keys of a barrier and choices of a queue that
/// are fed, or computed from what is fed, are known by then: what they depend on is fed with that step or before it, also
/// where the step itself asks for something else. What the run puts comes into the queues at the end, and readers stand
/// where they stood until then. A run that is dropped before gives back what it has taken. One that is ended by
/// [`Self::finish`] puts what its steps have come to put; what it has taken is gone.
///
/// Tables are seen as they were when the run took, whatever it or others put into them, and changed at the end. That may
/// be later than when variables were read: where others change both in between, the run sees the variables of before and
/// the tables of after. A run that looks at a table and changes it ends with [`ErrorKind::Aborted`] where another has
/// changed the table since it took.
///
/// A number of [`Variable::count_up_to`](convoke_graph_core::Variable::count_up_to) is the next one when the partial run is
/// made, and taken at its end. A run that is open keeps nobody from counting, or its own caller could wait for ever; it
/// ends with [`ErrorKind::Aborted`] where another has counted since it was made, or the variable was reset, so that no number
/// counts twice.
///
/// A step that fails changes nothing, and may be made again. Each has its own options and so its own timeout. Between
/// steps, what is kept is on the host: variables that live on GPUs are brought there when the run is made, as far as they
/// are read.
///
/// ```
/// # use convoke_session::{Devices, Session};
/// # use convoke_graph_core::{DType, Graph, dims};
/// # fn main() -> convoke_graph_core::Result<()> {
/// let g = Graph::new();
/// let x = g.placeholder("x", DType::F32, dims![]);
/// let y = g.placeholder("y", DType::F32, dims![]);
/// let double = &x * 2.0;
/// let sum = &double + &y;
/// let session = Session::new(&g, &Devices::cpu())?;
/// let mut run = session.partial_run(&[&x, &y], (&double, &sum))?;
/// let first = run.run(&[x.feed(3.0)], &double)?.scalar::<f32>()?;
/// let last = run.run(&[y.feed(first + 1.0)], &sum)?;
/// assert_eq!(last.scalar::<f32>()?, 13.0);
/// # Ok(())
/// # }
/// ```
///
/// Source: TensorFlow's `Session.partial_run_setup` and `partial_run`, which take neither targets nor options, and where
/// effects happen as the operations run.
pub struct PartialRun {
    // Given back before the session goes.
    taken: Option<Taking>,
    session: Session,
    declared: Arc<Declared>,
    /// The step that was made last, or what was declared.
    after: u64,
    /// Before the first step, the variables that had elements at the start.
    initialized: Vec<NodeId>,
    progress: Progress,
    fed: FxHashSet<Output>,
    /// The values that later steps need.
    known: Known,
    /// The variables that the run uses, and what it drew.
    held: Holdings,
    has_ended: bool,
}

/// Values that there are.
type Known = FxHashMap<Output, HostTensor>;

impl PartialRun {
    pub(crate) fn new<F: Fetch>(session: Session, feeds: &[&Tensor], fetch: &F) -> Result<Self> {
        let core = &session.core;
        core.check_open()?;
        let signature = core.listed(feeds.iter().copied(), fetch)?.signature;
        if signature.fetches.is_empty() && signature.targets.is_empty() {
            let message =
                "a partial run without fetches; specify at least one target to fetch or execute";
            return Err(Error::invalid(message));
        }
        let declared = Declared::of(core, &signature)?;
        let held = Holdings::take(core, &declared.variables, &[])?;
        let initialized = held.initialized();
        let progress = Progress::starting(initialized.iter().copied());
        Ok(Self {
            taken: None,
            after: declared.id,
            declared,
            initialized,
            progress,
            fed: FxHashSet::default(),
            known: Known::default(),
            held,
            has_ended: false,
            session,
        })
    }

    /// Feeds these values, and computes what `fetch` asks for of what was declared.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for what was not declared, has been fed or fetched before, or depends on what was
    /// not fed yet; [`ErrorKind::FailedPrecondition`] after the end; as [`Session::run`]. Nothing has changed then.
    pub fn run<F: Fetch>(&mut self, feeds: &[Feed<'_>], fetch: F) -> Result<F::Output> {
        self.run_with(feeds, fetch, &RunOptions::default()).map(|(output, _)| output)
    }

    /// As [`Self::run`], with options, and says what the step did.
    ///
    /// # Errors
    /// As [`Self::run`]; [`ErrorKind::Cancelled`] and [`ErrorKind::DeadlineExceeded`] as the options say.
    pub fn run_with<F: Fetch>(
        &mut self,
        feeds: &[Feed<'_>],
        fetch: F,
        options: &RunOptions,
    ) -> Result<(F::Output, RunMetadata)> {
        let step = self.step(feeds, fetch, options);
        if let (Err(_), Some(taken)) = (&step, &self.taken) {
            taken.held().begin_again();
        }
        step.map_err(|e| self.session.core.located(e))
    }

    fn step<F: Fetch>(
        &mut self,
        feeds: &[Feed<'_>],
        fetch: F,
        options: &RunOptions,
    ) -> Result<(F::Output, RunMetadata)> {
        let start = Instant::now();
        let core = self.session.core.clone();
        let _at_work = core.enter()?;
        if self.has_ended {
            let message = "the partial run has ended: all that was declared has been fetched, or it was finished; make another";
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        let list = core.listed(feeds.iter().map(|feed| &feed.tensor), &fetch)?;
        let asked = &list.signature;
        self.check(asked)?;
        let mut made = Known::default();
        for feed in feeds {
            let output = feed.tensor.output();
            let value = feeds::check(feed, self.declared.graph.fact(output))?.to_tensor()?;
            made.insert(output, value);
        }
        let mut metadata = RunMetadata::default();
        let planned = self.planned(asked, &mut metadata)?;
        let PlannedStep { step, ends, .. } = &*planned;
        // What is assigned and drawn counts only if all goes well.
        let mut held = self.held.clone();
        let stop = core.stop_of(options, start);
        stop.check()?;
        let takes = step.takes && self.taken.is_none();
        let taken = takes.then(|| self.take(&mut made, options, start)).transpose()?;
        let taking = taken.as_ref().or(self.taken.as_ref());
        let of_queues = taking.map(Taking::held);
        self.compute(&planned, &mut made, &mut held, of_queues, (options, start), &mut metadata)?;
        let results = step.results.iter();
        let values = results.map(|given| self.value(*given, &made)).collect::<Result<_>>()?;
        let puts = self.puts(&planned, taking, &made)?;
        let storing = core.moments.storing(taking.is_some());
        let claimed = match ends {
            true => self.store(&held, taking, &puts, &storing, &stop)?,
            false => None,
        };
        // Nothing fails any more that could change something.
        self.taken = taken.or(self.taken.take());
        if let Some(taken) = &mut self.taken {
            taken.note(puts);
        }
        self.fed.extend(&asked.feeds);
        self.progress.known.extend(&asked.feeds);
        if takes {
            self.progress.known.extend(&self.declared.takes);
        }
        step.done(&mut self.progress, &asked.fetches);
        self.known.extend(made);
        self.known.retain(|output, _| self.progress.known.contains(output));
        (self.held, self.has_ended, self.after) = (held, *ends, planned.id);
        self.initialized.clear();
        if *ends {
            self.held.note_crossings(&mut metadata);
            self.end(claimed);
            storing.end();
        }
        let values = Fetched::all(values, &asked.residents);
        let output = fetch.take(&mut list.results(values))?;
        metadata.wall = start.elapsed();
        Ok((output, metadata))
    }

    /// Whether it has ended and is stored: all that was declared has been fetched and run, or it was finished before.
    pub fn is_done(&self) -> bool {
        self.has_ended
    }

    /// Ends the run: stores what its steps have assigned, and puts what they have come to put. Not needed, and without
    /// effect, where all that was declared has been fetched.
    ///
    /// It waits where another run is about to change a table that this one changes, or is counting, if this one has
    /// counted. Whether it ends or fails, the run is gone: [`Self::finish_with`] leaves one that fails as it was.
    ///
    /// # Errors
    /// [`ErrorKind::Aborted`] if others have stored or counted meanwhile what can't be brought together with it, or have
    /// changed a table that it has looked at and changes; [`ErrorKind::DeadlineExceeded`] where it waits longer than
    /// [`SessionOptions::timeout`](crate::SessionOptions::timeout); [`ErrorKind::Cancelled`] if the session is closed
    /// meanwhile; [`ErrorKind::FailedPrecondition`] for a closed session; a device without memory. Nothing has changed
    /// then, and what the run has taken is given back.
    pub fn finish(mut self) -> Result<()> {
        self.finish_with(&RunOptions::default())
    }

    /// As [`Self::finish`], with options: how long it waits, and what cancels it. A run that fails to end goes on: it may
    /// be finished again, make other steps, or be dropped.
    ///
    /// # Errors
    /// As [`Self::finish`]; [`ErrorKind::Cancelled`] and [`ErrorKind::DeadlineExceeded`] as the options say.
    pub fn finish_with(&mut self, options: &RunOptions) -> Result<()> {
        if self.has_ended {
            return Ok(());
        }
        let core = self.session.core.clone();
        let _at_work = core.enter()?;
        let stop = core.stop_of(options, Instant::now());
        let storing = core.moments.storing(self.taken.is_some());
        let claimed = self.store(&self.held, self.taken.as_ref(), &[], &storing, &stop);
        let claimed = claimed.map_err(|e| core.located_on_host(e))?;
        self.has_ended = true;
        self.end(claimed);
        storing.end();
        Ok(())
    }

    /// Takes all that the run takes from queues, readers and tables, or waits for it.
    fn take(&self, made: &mut Known, options: &RunOptions, start: Instant) -> Result<Taking> {
        let core = &self.session.core;
        let Declared { steps, uses, takes, early, before, .. } = &*self.declared;
        let feeds = &steps.signature().feeds;
        let known = |feed: &Output| made.get(feed).or_else(|| self.known.get(feed)).cloned();
        if let Some(&missing) = early.iter().find(|&&at| known(&feeds[at]).is_none()) {
            return Err(steps.missing_early(feeds[missing]));
        }
        // In the places of those that are not fed yet are scalars, which tell nothing.
        let given = |feed: &Output| FeedData::Tensor(known(feed).unwrap_or_else(|| false.into()));
        let data: Vec<FeedData<'_>> = feeds.iter().map(given).collect();
        let mut computed = AllFetched::new();
        if let Some(before) = before {
            let data: Vec<FeedData<'_>> = early.iter().map(|&at| data[at].clone()).collect();
            let request = Request::new(before, &data, options, start);
            let outputs = &mut Outputs::Tensors(&mut computed);
            core.run(&request, outputs, &mut RunMetadata::default())?;
        }
        let uses = match uses.is_open(&data) {
            true => {
                let computed = computed.into_iter().map(Fetched::into_host);
                Arc::new(uses.resolved(&data, &computed.collect::<Result<Vec<_>>>()?)?)
            }
            false => uses.clone(),
        };
        let taken = core.queues.take(&uses, &data, &core.stop_of(options, start));
        let mut taken = taken.map_err(|e| core.located_on_host(e))?;
        made.extend(takes.iter().copied().zip(std::mem::take(&mut taken.values)));
        Ok(Taking::new(uses, core.queues.hold(taken), self.declared.n_fetches))
    }

    /// What a step puts, of what it has made or what there was before.
    fn puts(
        &self,
        planned: &PlannedStep,
        taking: Option<&Taking>,
        made: &Known,
    ) -> Result<Vec<Put>> {
        let Some(taking) = taking else { return Ok(Vec::new()) };
        let mut puts = Vec::with_capacity(planned.step.puts.len());
        for (node, put) in &planned.step.puts {
            let values = put.iter().map(|given| self.value(*given, made));
            puts.extend(taking.put(*node, values.collect::<Result<_>>()?)?);
        }
        Ok(puts)
    }

    /// Stores what was assigned and drawn, with the tables claimed that are changed next. Others that count don't store
    /// meanwhile: what the run has counted is stored only if nobody has since it began.
    fn store(
        &self,
        held: &Holdings,
        taking: Option<&Taking>,
        last: &[Put],
        storing: &Storing<'_>,
        stop: &Stop<'_>,
    ) -> Result<Option<Claimed>> {
        let core = &self.session.core;
        stop.check()?;
        let _turn = held.counts().then(|| core.turn.take(stop)).transpose()?;
        let claimed = taking.map(|taking| taking.claim(last, stop)).transpose()?;
        held.store(core, storing, stop)?;
        Ok(claimed.flatten())
    }

    /// Puts what the run puts, now that all is stored.
    fn end(&mut self, claimed: Option<Claimed>) {
        if let Some(taken) = self.taken.take() {
            taken.end(claimed.as_ref());
        }
        drop(claimed);
        self.held.let_go(&self.session.core.state);
        self.known.clear();
    }

    /// Refuses what a step can't ask for.
    fn check(&self, asked: &Signature) -> Result<()> {
        self.declared.check(asked, &self.session.core.graph)?;
        let refused = |id: NodeId, message: &str| {
            Err(Error::invalid(message).with_node(&*self.declared.graph.node(id).name))
        };
        for (at, feed) in asked.feeds.iter().enumerate() {
            if self.fed.contains(feed) || asked.feeds[..at].contains(feed) {
                return refused(feed.node, "the tensor has already been fed to the partial run");
            }
        }
        let fetched = &self.progress.fetched;
        match asked.fetches.iter().find(|fetch| fetched.contains(fetch)) {
            Some(fetch) => {
                refused(fetch.node, "the tensor has already been fetched from the partial run")
            }
            None => Ok(()),
        }
    }

    fn planned(&self, asked: &Signature, metadata: &mut RunMetadata) -> Result<Arc<PlannedStep>> {
        let core = &self.session.core;
        let (after, initialized) = (self.after, self.initialized.clone());
        let key = StepKey { after, initialized, asked: asked.clone() };
        if let Some(planned) = core.partial.step(&key) {
            metadata.plan_cached = true;
            metadata.graph_nodes = planned.n_nodes();
            return Ok(planned);
        }
        let start = Instant::now();
        let Declared { steps, graph, .. } = &*self.declared;
        let mut progress = self.progress.clone();
        progress.known.extend(&asked.feeds);
        let mut step = steps.step(&progress, &asked.fetches, &asked.targets)?;
        step.done(&mut progress, &asked.fetches);
        let ends = steps.is_done(&progress);
        let n = core.options.plans;
        let planned = step
            .plan
            .take()
            .map(|(plan, signature)| Planned::of_flow(plan, signature, graph.clone(), n));
        let planned = core.partial.keep(key, step, planned, ends);
        metadata.graph_nodes = planned.n_nodes();
        metadata.planning += start.elapsed();
        Ok(planned)
    }

    /// Runs what a step runs.
    fn compute(
        &self,
        PlannedStep { step, planned, .. }: &PlannedStep,
        made: &mut Known,
        variables: &mut Holdings,
        held: Option<&Held>,
        (options, start): (&RunOptions, Instant),
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        let Some(planned) = planned else { return Ok(()) };
        let data = step.feeds.iter();
        let data = data.map(|given| Ok(FeedData::Tensor(self.value(*given, made)?)));
        let data: Vec<FeedData<'_>> = data.collect::<Result<_>>()?;
        let request = Request { held, ..Request::new(planned, &data, options, start) };
        metadata.begin(&request);
        let mut tensors = AllFetched::new();
        let outputs = &mut Outputs::Tensors(&mut tensors);
        self.session.core.run_part(&request, variables, outputs, metadata)?;
        for (&output, tensor) in planned.plan.signature.fetches.iter().zip(tensors) {
            made.insert(output, tensor.into_host()?);
        }
        Ok(())
    }

    fn value(&self, given: Given, made: &Known) -> Result<HostTensor> {
        match given {
            Given::Known(output) => {
                let value = made.get(&output).or_else(|| self.known.get(&output));
                value.cloned().ok_or_else(|| {
                    let error = Error::internal("a value of the partial run is gone");
                    error.with_node(&*self.declared.graph.node(output.node).name)
                })
            }
            Given::Start(variable) => self.held.start(variable),
            Given::Bool(value) => Ok(HostTensor::from(value)),
        }
    }
}

impl fmt::Debug for PartialRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Signature { fetches, .. } = self.declared.steps.signature();
        let (n, fetched) = (fetches.len(), self.progress.fetched.len());
        write!(f, "PartialRun, {fetched} of {n} tensors fetched")
    }
}
