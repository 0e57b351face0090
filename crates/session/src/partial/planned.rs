//! What is planned of partial runs: of the whole, and of each step.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use convoke_compiler::Signature;
use convoke_compiler::flow::{Held, given};
use convoke_compiler::steps::{StepPlan, Steps};
use convoke_graph_core::{Error, Graph, GraphSnapshot, NodeId, Output, Result};
use rustc_hash::FxHashSet;

use crate::cache::{Cache, Lru};
use crate::core::{Core, Planned};
use crate::metadata::RunMetadata;
use crate::queues::{Uses, with_queues};
use crate::sync::{Mutex, MutexGuard};

/// The plans of a session's partial runs.
pub(crate) struct PartialPlans {
    declared: Cache<Signature, Arc<Declared>>,
    steps: Mutex<Lru<StepKey, Arc<PlannedStep>>>,
    next_id: AtomicU64,
}

/// What was asked for in all.
pub(super) struct Declared {
    /// No other plan of the session has it.
    pub id: u64,
    pub graph: GraphSnapshot,
    pub steps: Steps,
    pub uses: Arc<Uses>,
    /// What it feeds because it takes it, in order.
    pub takes: Vec<Output>,
    /// How many tensors it fetches, with those that it puts.
    pub n_fetches: usize,
    /// The places of those feeds that must be there before it takes anything.
    pub early: Vec<usize>,
    /// What computes what else must be known before.
    pub before: Option<Arc<Planned>>,
    /// The variables that it uses, in order.
    pub variables: Vec<Held>,
    feeds: FxHashSet<Output>,
    fetches: FxHashSet<Output>,
    targets: FxHashSet<NodeId>,
}

/// What tells one step from others, in as many bytes however many there were before it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StepKey {
    /// The step before it, whose key tells of those before that; of a first step, what was declared.
    pub after: u64,
    /// Of a first step, the variables that had elements.
    pub initialized: Vec<NodeId>,
    pub asked: Signature,
}

/// A step and its programs.
pub(crate) struct PlannedStep {
    /// No other plan of the session has it.
    pub(super) id: u64,
    pub(super) step: StepPlan,
    pub planned: Option<Planned>,
    /// Whether all that was declared has been fetched and run afterwards.
    pub(super) ends: bool,
}

impl PartialPlans {
    /// No plans yet, and at most `n` of each kind.
    pub fn new(n: usize) -> Self {
        let (declared, steps) = (Cache::new(n), Mutex::new(Lru::new(n)));
        Self { declared, steps, next_id: AtomicU64::new(0) }
    }

    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Lru<StepKey, Arc<PlannedStep>>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The steps.
    pub fn steps(&self) -> Vec<Arc<PlannedStep>> {
        self.lock().values().cloned().collect()
    }

    /// What computes what must be known before partial runs take anything.
    pub fn before(&self) -> Vec<Arc<Planned>> {
        self.declared.lock().values().filter_map(|declared| declared.before.clone()).collect()
    }

    /// Forgets all plans.
    pub fn clear(&self) {
        self.declared.lock().clear();
        self.lock().clear();
    }

    pub(super) fn step(&self, key: &StepKey) -> Option<Arc<PlannedStep>> {
        self.lock().get(key)
    }

    /// Keeps a step with its programs.
    pub(super) fn keep(
        &self,
        key: StepKey,
        step: StepPlan,
        planned: Option<Planned>,
        ends: bool,
    ) -> Arc<PlannedStep> {
        let planned = Arc::new(PlannedStep { id: self.next_id(), step, planned, ends });
        self.lock().insert(key, planned)
    }
}

impl PlannedStep {
    pub(super) fn n_nodes(&self) -> u64 {
        self.planned.as_ref().map_or(0, Planned::n_nodes)
    }
}

impl Declared {
    /// The plan of what was declared: found, or made of the graph as it is now.
    ///
    /// # Errors
    /// What planning refuses.
    pub fn of(core: &Core, signature: &Signature) -> Result<Arc<Self>> {
        let plans = &core.partial;
        plans.declared.get_or_make(signature, || Self::new(core, signature).map(Arc::new))
    }

    fn new(core: &Core, signature: &Signature) -> Result<Self> {
        let Signature { fetches, targets, .. } = signature;
        let graph = core.graph.snapshot().narrowed(fetches, targets, &given(signature));
        let located = |e| core.located(e);
        let (wider, uses) = with_queues(&graph, signature).map_err(located)?;
        let early = uses.early_feeds(&graph, signature);
        let feeds = early.iter().filter_map(|&at| signature.feeds.get(at).copied());
        let feeds: Vec<Output> = feeds.collect();
        let before = (!uses.wanted.is_empty()).then(|| {
            let (fetches, feeds) = (uses.wanted.clone(), feeds.clone());
            let before = Signature { fetches, feeds, ..Signature::default() };
            core.planned_for(&before, &mut RunMetadata::default())
        });
        let before = before.transpose()?;
        let steps = Steps::new(&graph, signature.clone(), &wider, feeds).map_err(located)?;
        Ok(Self {
            id: core.partial.next_id(),
            graph,
            variables: steps.variables(),
            steps,
            uses: Arc::new(uses),
            takes: wider.feeds[signature.feeds.len()..].to_vec(),
            n_fetches: wider.fetches.len(),
            early,
            before,
            feeds: signature.feeds.iter().copied().collect(),
            fetches: signature.fetches.iter().copied().collect(),
            targets: signature.targets.iter().copied().collect(),
        })
    }

    /// `graph` is the graph as it is now: what is asked for may be newer than the plan.
    ///
    /// # Errors
    /// A step asks for something that was not declared.
    pub fn check(&self, asked: &Signature, graph: &Graph) -> Result<()> {
        let refused = |id: NodeId, what: &str| {
            let message = format!("{what} was not declared when the partial run was made");
            Err(Error::invalid(message).with_node(&*graph.snapshot().node(id).name))
        };
        if let Some(feed) = asked.feeds.iter().find(|feed| !self.feeds.contains(feed)) {
            return refused(feed.node, "the feed");
        }
        if let Some(fetch) = asked.fetches.iter().find(|fetch| !self.fetches.contains(fetch)) {
            return refused(fetch.node, "the fetch");
        }
        match asked.targets.iter().find(|target| !self.targets.contains(target)) {
            Some(&target) => refused(target, "the operation"),
            None => Ok(()),
        }
    }
}
