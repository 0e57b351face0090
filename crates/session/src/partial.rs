//! Runs in steps: some is fed and some is fetched, and then more.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use convoke_compiler::Signature;
use convoke_compiler::steps::{Given, Progress, StepPlan, Steps};
use convoke_graph_core::{
    Error, ErrorKind, Feed, GraphSnapshot, HostTensor, NodeId, Output, QueueRole, Result, Tensor,
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::cancel::Stop;
use crate::core::{Planned, Request};
use crate::device_tensor::Fetched;
use crate::executor::Outputs;
use crate::feeds::{self, FeedData};
use crate::fetch::Fetch;
use crate::holding::Holdings;
use crate::metadata::RunMetadata;
use crate::queues::{self, Item, Use, Uses, with_queues};
use crate::session::{RunOptions, Session};

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
/// The first step that needs anything of queues or readers takes all that the whole run takes from them, at one time, and
/// keeps room for what the run puts; it waits for that as its options say. So a run never waits for one thing while it
/// keeps another, and gets the elements that one run would get, in whatever order steps ask for them. What it puts comes
/// into the queues at the end, and readers stand where they stood until then. A run that is dropped before gives back what
/// it has taken. One that is ended by [`Self::finish`] puts what its steps have come to put; what it has taken is gone.
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
    queues: PartialQueues,
    session: Session,
    steps: Steps,
    graph: GraphSnapshot,
    key: StepKey,
    progress: Progress,
    fed: FxHashSet<Output>,
    /// The values that later steps need.
    known: Known,
    /// The variables that the run uses, and what it drew.
    held: Holdings,
    has_ended: bool,
}

/// What tells one step from others: what was asked for in all and in each step so far, and which variables had elements.
pub(crate) type StepKey = (Vec<Signature>, Vec<NodeId>);

/// A step and its programs.
pub(crate) struct PlannedStep {
    step: StepPlan,
    pub planned: Option<Planned>,
}

/// What a partial run does with queues and readers.
struct PartialQueues {
    uses: Uses,
    /// What it feeds because it takes it, in order.
    takes: Vec<Output>,
    /// What it fetches, that it may put.
    fetches: Vec<Output>,
    /// What it has taken, once a step has needed some of it.
    taken: Option<queues::Held>,
    /// What its steps have come to put.
    puts: Known,
}

impl PartialQueues {
    /// What its operations on queues put, as far as they have run: of what a step made, or what there was before.
    ///
    /// # Errors
    /// No memory.
    fn items(&self, progress: &Progress, made: &Known) -> Result<Vec<Option<Vec<Item>>>> {
        let items = |used: &Use| {
            if !progress.has_run(used.id) {
                return Ok(None);
            }
            if !queues::puts(used.action) {
                return Ok(Some(Vec::new()));
            }
            let outputs = used.places.iter().filter_map(|&place| self.fetches.get(place));
            let values = outputs.filter_map(|o| made.get(o).or_else(|| self.puts.get(o)).cloned());
            queues::items(used, values.collect()).map(Some)
        };
        self.uses.queues.iter().map(items).collect()
    }

    /// Puts these.
    fn put(&mut self, items: Vec<Option<Vec<Item>>>) {
        if let Some(taken) = self.taken.take() {
            taken.put(&self.uses, items, &[]);
        }
    }
}

/// # Errors
/// What partial runs do not do.
fn check_uses(uses: &Uses) -> Result<()> {
    let is_other = |used: &&Use| used.queue.role != QueueRole::Queue || !used.early.is_empty();
    let node = uses.queues.iter().find(is_other).map(|used| &used.node);
    let table = uses.tables.first().map(|used| &used.node);
    let Some(node) = node.or(table).map(|node| &**node).or(uses.finds.first().map(|t| &*t.name))
    else {
        return Ok(());
    };
    let message = "unsupported: tables that change, staging areas, accumulators, barriers, computed numbers of elements, \
                   and queues that are chosen in the run, in a partial run; do it in a run before, and feed what it \
                   gives";
    Err(Error::new(ErrorKind::Unimplemented, message).with_node(node))
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
        let graph = core.graph.snapshot();
        let located = |e| core.located(e);
        let (wider, uses) = with_queues(&graph, &signature).map_err(located)?;
        check_uses(&uses).map_err(located)?;
        let steps = Steps::new(&graph, signature.clone(), &wider).map_err(located)?;
        let takes = wider.feeds[signature.feeds.len()..].to_vec();
        let (fetches, puts) = (wider.fetches, Known::default());
        let queues = PartialQueues { uses, takes, fetches, taken: None, puts };
        let held = Holdings::take(core, &steps.variables(), &[])?;
        let initialized = held.initialized();
        let progress = Progress::starting(initialized.iter().copied());
        Ok(Self {
            key: (vec![signature], initialized),
            steps,
            graph,
            progress,
            fed: FxHashSet::default(),
            known: Known::default(),
            held,
            queues,
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
        core.check_open()?;
        if self.has_ended {
            let message =
                "the partial run has ended: all that was declared has been fetched; make another";
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        let list = core.listed(feeds.iter().map(|feed| &feed.tensor), &fetch)?;
        self.check(&list.signature)?;
        let mut made = Known::default();
        for feed in feeds {
            let output = feed.tensor.output();
            let value = feeds::check(feed, self.graph.fact(output))?.to_tensor()?;
            made.insert(output, value);
        }
        let mut progress = self.progress.clone();
        progress.known.extend(made.keys());
        let mut metadata = RunMetadata::default();
        let mut key = self.key.clone();
        key.0.push(list.signature.clone());
        let planned = self.planned(&key, &progress, &mut metadata)?;
        // What is assigned and drawn counts only if all goes well.
        let mut held = self.held.clone();
        let stop = core.stop_of(options, start);
        stop.check()?;
        let mut taken = None;
        if planned.step.takes && self.queues.taken.is_none() {
            taken = Some(self.take(&mut made, &stop)?);
            progress.known.extend(&self.queues.takes);
        }
        self.compute(&planned, &mut made, &mut held, (options, start), &mut metadata)?;
        let results = planned.step.results.iter();
        let values = results.map(|given| self.value(*given, &made)).collect::<Result<_>>()?;
        let puts = planned.step.puts.iter();
        let puts = puts.map(|(output, given)| Ok((*output, self.value(*given, &made)?)));
        let puts: Known = puts.collect::<Result<_>>()?;
        planned.step.done(&mut progress, &list.signature.fetches);
        self.check_puts(&progress, &puts)?;
        let has_ended = self.steps.is_done(&progress);
        let mut items = Vec::new();
        if has_ended {
            stop.check()?;
            items = self.queues.items(&progress, &puts)?;
            held.store(&core, &core.moments.storing(false))?;
        }
        self.queues.puts.extend(puts);
        self.queues.taken = taken.or(self.queues.taken.take());
        self.fed.extend(&list.signature.feeds);
        self.known.extend(made);
        self.known.retain(|output, _| progress.known.contains(output));
        self.has_ended = has_ended;
        (self.progress, self.key, self.held) = (progress, key, held);
        if has_ended {
            self.queues.put(items);
        }
        let values = Fetched::all(values, &list.signature.residents);
        let output = fetch.take(&mut list.results(values))?;
        metadata.wall = start.elapsed();
        Ok((output, metadata))
    }

    /// Whether all that was declared has been fetched and run, and stored.
    pub fn is_done(&self) -> bool {
        self.has_ended
    }

    /// Ends the run: stores what its steps have assigned. Not needed, and without effect, where all that was declared has
    /// been fetched.
    ///
    /// # Errors
    /// [`ErrorKind::Aborted`] if others have stored meanwhile what can't be brought together with it;
    /// [`ErrorKind::FailedPrecondition`] for a closed session; a device without memory. Nothing has changed then.
    pub fn finish(mut self) -> Result<()> {
        if self.has_ended {
            return Ok(());
        }
        self.session.core.check_open()?;
        let items = self.queues.items(&self.progress, &Known::default())?;
        let core = &self.session.core;
        self.held.store(core, &core.moments.storing(false))?;
        self.queues.put(items);
        Ok(())
    }

    /// Takes all that the run takes from queues and readers, or waits for it.
    fn take(&self, made: &mut Known, stop: &Stop<'_>) -> Result<queues::Held> {
        let core = &self.session.core;
        let PartialQueues { uses, takes, .. } = &self.queues;
        let feeds = &self.steps.signature().feeds;
        let mut data = vec![FeedData::Tensor(HostTensor::from(false)); feeds.len()];
        for (at, used) in uses.fed_states() {
            let state = feeds.get(at).and_then(|o| made.get(o).or_else(|| self.known.get(o)));
            let missing = || {
                let message = "the state that a reader is restored from is fed with the first step that takes \
                               from queues or readers, or before";
                Error::invalid(message).with_node(&*used.node)
            };
            data[at] = FeedData::Tensor(state.cloned().ok_or_else(missing)?);
        }
        let mut taken = core.queues.take(uses, &data, stop).map_err(|e| core.located(e))?;
        made.extend(takes.iter().copied().zip(std::mem::take(&mut taken.values)));
        Ok(core.queues.hold(taken))
    }

    /// Checks the shapes of what it puts.
    fn check_puts(&self, progress: &Progress, made: &Known) -> Result<()> {
        let PartialQueues { uses, fetches, puts, .. } = &self.queues;
        let put = uses.queues.iter().filter(|used| queues::puts(used.action));
        for used in put.filter(|used| progress.has_run(used.id)) {
            let outputs = used.places.iter().filter_map(|&place| fetches.get(place));
            let values = outputs.filter_map(|o| made.get(o).or_else(|| puts.get(o)));
            queues::check(used, &values.map(HostTensor::shape).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Refuses what a step can't ask for.
    fn check(&self, asked: &Signature) -> Result<()> {
        let whole = self.steps.signature();
        let refused = |id: NodeId, message: &str| {
            Err(Error::invalid(message).with_node(&*self.graph.node(id).name))
        };
        for feed in &asked.feeds {
            if !whole.feeds.contains(feed) {
                return refused(
                    feed.node,
                    "the feed was not declared when the partial run was made",
                );
            }
            let twice = asked.feeds.iter().filter(|other| *other == feed).count() > 1;
            if twice || self.fed.contains(feed) {
                return refused(feed.node, "the tensor has already been fed to the partial run");
            }
        }
        for fetch in &asked.fetches {
            if !whole.fetches.contains(fetch) {
                return refused(
                    fetch.node,
                    "the fetch was not declared when the partial run was made",
                );
            }
            if self.progress.fetched.contains(fetch) {
                return refused(
                    fetch.node,
                    "the tensor has already been fetched from the partial run",
                );
            }
        }
        for &target in &asked.targets {
            if !whole.targets.contains(&target) {
                return refused(
                    target,
                    "the operation was not declared when the partial run was made",
                );
            }
        }
        Ok(())
    }

    fn planned(
        &self,
        key: &StepKey,
        progress: &Progress,
        metadata: &mut RunMetadata,
    ) -> Result<Arc<PlannedStep>> {
        let core = &self.session.core;
        let n_nodes = |step: &PlannedStep| step.planned.as_ref().map_or(0, Planned::n_nodes);
        if let Some(planned) = core.steps().get(key) {
            metadata.plan_cached = true;
            metadata.graph_nodes = n_nodes(&planned);
            return Ok(planned);
        }
        let start = Instant::now();
        let Some(asked) = key.0.last() else {
            return Err(Error::internal("a step without a signature"));
        };
        let mut step = self.steps.step(progress, &asked.fetches, &asked.targets)?;
        let n = core.options.plans;
        let planned = step
            .plan
            .take()
            .map(|(plan, signature)| Planned::of_flow(plan, signature, self.graph.clone(), n));
        let planned = Arc::new(PlannedStep { step, planned });
        let planned = core.steps().insert(key.clone(), planned);
        metadata.graph_nodes = n_nodes(&planned);
        metadata.planning += start.elapsed();
        Ok(planned)
    }

    /// Runs what a step runs.
    fn compute(
        &self,
        PlannedStep { step, planned }: &PlannedStep,
        made: &mut Known,
        held: &mut Holdings,
        (options, start): (&RunOptions, Instant),
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        let Some(planned) = planned else { return Ok(()) };
        let data = step.feeds.iter();
        let data = data.map(|given| Ok(FeedData::Tensor(self.value(*given, made)?)));
        let data: Vec<FeedData<'_>> = data.collect::<Result<_>>()?;
        let request = Request::new(planned, &data, options, start);
        metadata.begin(&request);
        let mut tensors = Vec::new();
        let outputs = &mut Outputs::Tensors(&mut tensors);
        self.session.core.run_part(&request, held, outputs, metadata)?;
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
                    error.with_node(&*self.graph.node(output.node).name)
                })
            }
            Given::Start(variable) => self.held.start(variable),
            Given::Bool(value) => Ok(HostTensor::from(value)),
        }
    }
}

impl fmt::Debug for PartialRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Signature { fetches, .. } = self.steps.signature();
        let (n, fetched) = (fetches.len(), self.progress.fetched.len());
        write!(f, "PartialRun, {fetched} of {n} tensors fetched")
    }
}
