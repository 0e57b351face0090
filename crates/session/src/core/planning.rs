//! Plans of what is asked for: found, or made of the graph as it is now.

use std::sync::Arc;
use std::time::Instant;

use convoke_compiler::flow::{FlowPlan, given, has_flow};
use convoke_compiler::{Plan, Signature};
use convoke_graph_core::{Error, Result, Tensor};

use super::{Core, Planned};
use crate::fetch::{Fetch, FetchList};
use crate::identity::Prefix;
use crate::metadata::RunMetadata;
use crate::queues::with_queues;

impl Core {
    /// What is fed and fetched.
    ///
    /// # Errors
    /// Handles of other graphs.
    pub fn listed<'t, F: Fetch>(
        &self,
        feeds: impl Iterator<Item = &'t Tensor>,
        fetch: &F,
    ) -> Result<FetchList> {
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
        let Signature { fetches, targets, feeds, .. } = &list.signature;
        let fetched = fetches.iter().map(|fetch| fetch.node).chain(targets.iter().copied());
        self.graph.check_marks(feeds, fetched)?;
        Ok(list)
    }

    /// The plan of what is fed and fetched.
    ///
    /// # Errors
    /// Handles of other graphs, marks, and what planning refuses.
    pub fn planned<'t, F: Fetch>(
        &self,
        feeds: impl Iterator<Item = &'t Tensor>,
        fetch: &F,
        metadata: &mut RunMetadata,
    ) -> Result<(FetchList, Arc<Planned>)> {
        self.planned_list(self.listed(feeds, fetch)?, metadata)
    }

    /// As [`Self::planned`], where some tensors stand for others.
    ///
    /// # Errors
    /// As [`Self::planned`], and what cannot be connected.
    pub fn planned_connected<'t, F: Fetch>(
        &self,
        feeds: impl Iterator<Item = &'t Tensor>,
        connections: &[(Tensor, Tensor)],
        fetch: &F,
        metadata: &mut RunMetadata,
    ) -> Result<(FetchList, Arc<Planned>)> {
        let mut list = self.listed(feeds, fetch)?;
        for (from, to) in connections {
            if let Some(other) = [from, to].iter().find(|t| t.graph().id() != self.graph.id()) {
                let message = "a tensor to connect belongs to another graph than the session's";
                return Err(Error::invalid(message).with_node(other.name()));
            }
            self.graph.check_marks(&[to.output()], std::iter::empty())?;
            list.signature.connections.push((from.output(), to.output()));
        }
        self.planned_list(list, metadata)
    }

    fn planned_list(
        &self,
        list: FetchList,
        metadata: &mut RunMetadata,
    ) -> Result<(FetchList, Arc<Planned>)> {
        let planned = self.planned_for(&list.signature, metadata)?;
        Ok((list, planned))
    }

    /// The plan of a signature.
    ///
    /// # Errors
    /// What planning refuses.
    pub fn planned_for(
        &self,
        signature: &Signature,
        metadata: &mut RunMetadata,
    ) -> Result<Arc<Planned>> {
        metadata.plan_cached = true;
        let planned = self.plans.get_or_make(signature, || self.plan(signature, metadata))?;
        metadata.graph_nodes = planned.n_nodes();
        Ok(planned)
    }

    /// A new plan.
    ///
    /// # Errors
    /// What planning refuses.
    fn plan(&self, signature: &Signature, metadata: &mut RunMetadata) -> Result<Arc<Planned>> {
        let start = Instant::now();
        metadata.plan_cached = false;
        let mut graph = self.graph.snapshot();
        let mut signature = signature.clone();
        if !signature.connections.is_empty() {
            let Signature { connections, feeds, fetches, targets, .. } = &mut signature;
            let (connected, stands) = graph.connect(connections, feeds)?;
            for target in targets {
                *target = graph.stand_in(*target, connections, &stands);
            }
            for fetch in fetches {
                let at = connections.iter().position(|(_, to)| to == fetch);
                *fetch = at.map_or(*fetch, |at| stands[at]);
            }
            graph = connected;
        }
        graph = graph.narrowed(&signature.fetches, &signature.targets, &given(&signature));
        let feeds = signature.feeds.clone();
        let (signature, mut uses) = with_queues(&graph, &signature).map_err(|e| self.located(e))?;
        uses.reserve_late();
        if self.options.warn_of_growth {
            let mut growth = self.growth.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if let Some(warning) = growth.warning(&graph) {
                let session = self.metadata().map(|metadata| &**metadata);
                tracing::warn!("{}{warning}", Prefix(session));
            }
        }
        let n = self.options.plans;
        let before = (!uses.wanted.is_empty()).then(|| {
            let fetches = uses.wanted.clone();
            let plan = Plan::new(&graph, Signature { fetches, feeds, ..Signature::default() });
            plan.map(|plan| Box::new(Planned::of(plan, graph.clone(), n)))
        });
        let before = before.transpose().map_err(|e| self.located(e))?;
        let planned = if has_flow(&graph, &signature) {
            let flow = FlowPlan::new(&graph, &signature).map_err(|e| self.located(e))?;
            Planned { uses, before, ..Planned::of_flow(flow, signature, graph, n) }
        } else {
            let plan = Plan::new(&graph, signature).map_err(|e| self.located(e))?;
            Planned { uses, before, ..Planned::of(plan, graph, n) }
        };
        metadata.planning += start.elapsed();
        Ok(Arc::new(planned))
    }
}
