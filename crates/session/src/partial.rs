//! Runs in steps: some is fed and some is fetched, and then more.

mod held;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use convoke_compiler::Signature;
use convoke_compiler::steps::{Given, Progress, StepPlan, Steps, Taken};
use convoke_graph_core::{
    Error, ErrorKind, Feed, GraphSnapshot, HostTensor, NodeId, Output, Result, Tensor,
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::core::{Planned, Request};
use crate::device_tensor::Fetched;
use crate::executor::Outputs;
use crate::feeds::{self, FeedData};
use crate::fetch::Fetch;
use crate::flow::Journal;
use crate::metadata::RunMetadata;
use crate::queues::with_queues;
use crate::session::{RunOptions, Session};
use held::Holding;

/// A run that is made in steps: each feeds some of what was declared and fetches some, and keeps what later ones need.
///
/// All steps together are one run. Nothing is computed twice, random nodes are drawn once, each tensor is fed once and
/// fetched once. A fetch needs only those feeds that it depends on. Variables are read as they were when the partial run
/// was made, unless an edge leads from an assignment. What is assigned, and how often random nodes were drawn, is stored
/// with the step that gives the last of what was declared, or by [`Self::finish`]. A handle that is dropped before has
/// changed nothing. Sums are added to what is current then; whatever else is made of a variable's elements at the start
/// refuses to be stored, with [`ErrorKind::Aborted`], where others have stored into the variable meanwhile.
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
    session: Session,
    steps: Steps,
    graph: GraphSnapshot,
    key: StepKey,
    progress: Progress,
    fed: FxHashSet<Output>,
    /// The values that later steps need.
    known: Known,
    /// The variables that the run uses.
    held: FxHashMap<NodeId, Holding>,
    journal: RefCell<Journal>,
    has_ended: bool,
}

/// What tells one step from others: what was asked for in all and in each step so far, and which variables had elements.
pub(crate) type StepKey = (Vec<Signature>, Vec<NodeId>);

/// A step and its programs.
pub(crate) struct PlannedStep {
    step: StepPlan,
    pub planned: Option<Planned>,
}

/// Values that there are.
type Known = FxHashMap<Output, HostTensor>;

/// What a step has made: values, and elements of variables.
#[derive(Default)]
struct Made {
    known: Known,
    variables: FxHashMap<NodeId, HostTensor>,
}

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
        let (_, uses) = with_queues(&graph, &signature)?;
        if !uses.is_empty() {
            let message = "unsupported: queues, readers and tables in a partial run; take what it needs in a run before, and feed it";
            return Err(Error::new(ErrorKind::Unimplemented, message));
        }
        let steps = Steps::new(&graph, signature.clone())?;
        let held = held::hold(core, &steps.variables())?;
        let mut initialized: Vec<NodeId> =
            held.iter().filter(|(_, held)| held.had_elements()).map(|(&id, _)| id).collect();
        initialized.sort_unstable();
        let journal =
            Journal::starting(held.iter().map(|(&id, holding)| (id, holding.had_elements())));
        let progress = Progress::starting(initialized.iter().copied());
        Ok(Self {
            key: (vec![signature], initialized),
            steps,
            graph,
            progress,
            fed: FxHashSet::default(),
            known: Known::default(),
            held,
            journal: RefCell::new(journal),
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
        let mut made = Made::default();
        for feed in feeds {
            let output = feed.tensor.output();
            let value = feeds::check(feed, self.graph.fact(output))?.to_tensor()?;
            made.known.insert(output, value);
        }
        let mut progress = self.progress.clone();
        progress.known.extend(made.known.keys());
        let mut metadata = RunMetadata::default();
        let mut key = self.key.clone();
        key.0.push(list.signature.clone());
        let planned = self.planned(&key, &progress, &mut metadata)?;
        // What random nodes draw counts only if all goes well.
        let journal = self.journal.borrow().clone();
        let computed = self.compute(&planned, &mut made, options, start, &mut metadata);
        let ended = computed.and_then(|values| {
            planned.step.done(&mut progress, &list.signature.fetches);
            if self.steps.is_done(&progress) {
                core.stop_of(options, start).check()?;
                self.store(&progress, &made)?;
            }
            Ok(values)
        });
        let values = match ended {
            Ok(values) => values,
            Err(error) => {
                self.journal.replace(journal);
                return Err(error);
            }
        };
        self.fed.extend(&list.signature.feeds);
        self.known.extend(made.known);
        self.known.retain(|output, _| progress.known.contains(output));
        for (variable, elements) in made.variables {
            self.held.entry(variable).and_modify(|holding| holding.now = Some(elements));
        }
        self.has_ended = self.steps.is_done(&progress);
        (self.progress, self.key) = (progress, key);
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
    pub fn finish(self) -> Result<()> {
        if self.has_ended {
            return Ok(());
        }
        self.session.core.check_open()?;
        self.store(&self.progress, &Made::default())
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
        let planned = step.plan.take().map(|plan| Planned::of(plan, self.graph.clone(), n));
        let planned = Arc::new(PlannedStep { step, planned });
        let planned = core.steps().insert(key.clone(), planned);
        metadata.graph_nodes = n_nodes(&planned);
        metadata.planning += start.elapsed();
        Ok(planned)
    }

    /// Runs a step. Gives what is fetched.
    fn compute(
        &self,
        PlannedStep { step, planned }: &PlannedStep,
        made: &mut Made,
        options: &RunOptions,
        start: Instant,
        metadata: &mut RunMetadata,
    ) -> Result<Vec<HostTensor>> {
        let core = &self.session.core;
        core.stop_of(options, start).check()?;
        if let Some(planned) = planned {
            let given = |given: &Given| self.value(*given, made, Some(planned));
            let data = step.feeds.iter().map(|from| Ok(FeedData::Tensor(given(from)?)));
            let data: Vec<FeedData<'_>> = data.collect::<Result<_>>()?;
            let request = Request {
                planned,
                data: &data,
                options,
                start,
                token: None,
                recent: None,
                tables: None,
                puts: None,
            };
            metadata.begin(&request);
            let mut tensors = Vec::new();
            let outputs = &mut Outputs::Tensors(&mut tensors);
            core.run_part(&request, &self.journal, outputs, metadata)?;
            for (taken, tensor) in step.fetches.iter().zip(tensors) {
                let tensor = tensor.into_host()?;
                match *taken {
                    Taken::Known(output) => made.known.insert(output, tensor).is_some(),
                    Taken::Variable(id) => made.variables.insert(id, tensor).is_some(),
                };
            }
        }
        step.results.iter().map(|given| self.value(*given, made, None)).collect()
    }

    fn value(&self, given: Given, made: &Made, of: Option<&Planned>) -> Result<HostTensor> {
        match given {
            Given::Known(output) => {
                let value = made.known.get(&output).or_else(|| self.known.get(&output));
                value.cloned().ok_or_else(|| {
                    let error = Error::internal("a value of the partial run is gone");
                    error.with_node(&*self.graph.node(output.node).name)
                })
            }
            Given::Start(variable) => self.holding(variable)?.start(),
            Given::Now(variable) => {
                let needs = of.is_none_or(|planned| held::needs_elements(&planned.plan, variable));
                self.holding(variable)?.now(needs)
            }
            Given::True => Ok(HostTensor::from(true)),
        }
    }

    fn holding(&self, variable: NodeId) -> Result<&Holding> {
        let missing = || Error::internal(format!("node {} is not held", variable.0));
        self.held.get(&variable).ok_or_else(missing)
    }

    /// Stores what was assigned and drawn, all or nothing.
    fn store(&self, progress: &Progress, made: &Made) -> Result<()> {
        let mut stores = Vec::new();
        for (id, holding) in &self.held {
            if let Some(now) = made.variables.get(id).or(holding.now.as_ref()) {
                stores.push((holding, now, self.steps.assigned(progress, *id)));
            }
        }
        held::store(&self.session.core, &stores, &self.journal.borrow())
    }
}

impl fmt::Debug for PartialRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Signature { fetches, .. } = self.steps.signature();
        let (n, fetched) = (fetches.len(), self.progress.fetched.len());
        write!(f, "PartialRun, {fetched} of {n} tensors fetched")
    }
}
