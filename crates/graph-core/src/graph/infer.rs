//! What a new node is known to give, or why it is refused.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{BodyId, GraphState, NodeId};
use crate::{
    Class, Contents, DType, Dims, Fact, Flow, Host, HostTensor, Op, OpError, QueueRole, State,
    Tensor,
};

impl GraphState {
    /// How many bodies a body lies in, itself included.
    pub(super) fn depth(&self, body: BodyId) -> u32 {
        let at = (body.0 as usize).checked_sub(1);
        at.and_then(|at| self.bodies.get(at)).map_or(0, |(_, depth)| *depth)
    }

    /// Whether `inner` is `outer` or lies in it.
    pub(super) fn encloses(&self, outer: BodyId, mut inner: BodyId) -> bool {
        // A body has a smaller id than those that lie in it.
        while inner > outer {
            let at = inner.0 as usize - 1;
            inner = self.bodies.get(at).map_or(BodyId::GRAPH, |(around, _)| *around);
        }
        inner == outer
    }

    /// The facts of an operation's outputs, and the reason if it is refused. A refused operation has
    /// one output of which nothing is known.
    pub(super) fn infer(
        &self,
        graph_id: u64,
        body: BodyId,
        op: &dyn Op,
        inputs: &[Tensor],
        foreign: Option<&Arc<str>>,
    ) -> (SmallVec<[Fact; 1]>, Option<OpError>) {
        let own = match foreign {
            Some(name) => Err(OpError::Invalid(format!("{name} belongs to another graph"))),
            None => Ok(()),
        };
        let result =
            own.and_then(|()| self.input_facts(graph_id, body, inputs)).and_then(|facts| {
                check_in_body(body, op)?;
                let outputs = op.infer(&facts)?;
                op.class().check(&facts, &outputs)?;
                Ok(fold_small(op, &facts, outputs))
            });
        match result {
            Ok(facts) => (facts, None),
            Err(reason) => self.refuse(reason),
        }
    }

    /// What a refused operation gives.
    pub(super) fn refuse(&self, reason: OpError) -> (SmallVec<[Fact; 1]>, Option<OpError>) {
        let contents = Contents::Invalid(reason.to_string().into());
        let fact = Fact { dtype: DType::F32, dims: Dims::UnknownRank, contents };
        (SmallVec::from_iter([fact]), Some(reason))
    }

    /// Why a node that is part of a body is nothing for those outside.
    pub(super) fn leaves(&self, id: NodeId) -> OpError {
        let name = &self.nodes[id.0 as usize].name;
        OpError::Invalid(format!(
            "{name} is built inside of a branch or loop and has no value outside of it; return it from \
             the closure"
        ))
    }

    /// What an operation in a body runs after because something in its own bodies does, where that is none of its
    /// `controls`.
    pub(super) fn body_controls(
        &self,
        body: BodyId,
        op: &dyn Op,
        controls: &[NodeId],
    ) -> Box<[NodeId]> {
        let before: &[NodeId] = match op.class() {
            Class::Flow(Flow::Branch(branch)) => &branch.before,
            Class::Flow(Flow::Loop(repeated)) => &repeated.body.before,
            _ => &[],
        };
        // Of what is built again elsewhere, what came before has no place there.
        let is_around = |id: NodeId| self.encloses(self.nodes[id.0 as usize].body, body);
        let before = before.iter().copied();
        before.filter(|&id| is_around(id) && !controls.contains(&id)).collect()
    }

    fn input_facts(
        &self,
        graph_id: u64,
        body: BodyId,
        inputs: &[Tensor],
    ) -> Result<Vec<Fact>, OpError> {
        if self.freezes.any() {
            return Err(OpError::Finalized);
        }
        let fact = |tensor: &Tensor| {
            if tensor.graph().id() != graph_id {
                let name = tensor.name();
                return Err(OpError::Invalid(format!("input {name} belongs to another graph")));
            }
            let output = tensor.output();
            let node = &self.nodes[output.node.0 as usize];
            if !self.encloses(node.body, body) {
                return Err(self.leaves(output.node));
            }
            match &node.invalid {
                Some(_) => Err(OpError::InvalidInput(node.name.to_string())),
                None => Ok(node.facts[output.index as usize].clone()),
            }
        };
        inputs.iter().map(fact).collect()
    }
}

/// Refuses inside of a branch or loop what sessions keep by itself, but for queues and staging areas.
fn check_in_body(body: BodyId, op: &dyn Op) -> Result<(), OpError> {
    let (what, instead) = match op.class() {
        _ if body == BodyId::GRAPH => return Ok(()),
        Class::State(State::Variable) => ("a variable made", "build it outside"),
        Class::Queue(op) => match op.queue.role {
            QueueRole::Queue | QueueRole::Staging => return Ok(()),
            QueueRole::MapStaging => ("a map staging area", OUTSIDE),
            QueueRole::Barrier => ("a barrier", OUTSIDE),
            QueueRole::Accumulator(_) | QueueRole::SparseAccumulator(_) => {
                ("an accumulator", OUTSIDE)
            }
        },
        Class::Reader(_) => ("a reader", "read before it, or put what is read into a queue"),
        Class::Table(_) | Class::Flow(Flow::Find(_)) => ("a table that runs change", OUTSIDE),
        _ => return Ok(()),
    };
    Err(OpError::Unsupported(format!("{what} inside of a branch or loop; {instead}")))
}

/// What to do with what sessions keep.
const OUTSIDE: &str =
    "take or look at it before, and put in after it what the branch or loop gives";

/// Computes the contents of small integer results of small known integers, so that shapes that are
/// computed from shapes stay known.
pub(super) fn fold_small(
    op: &dyn Op,
    inputs: &[Fact],
    mut outputs: SmallVec<[Fact; 1]>,
) -> SmallVec<[Fact; 1]> {
    let impure = matches!(
        op.class(),
        Class::State(_)
            | Class::Random(_)
            | Class::Control(_)
            | Class::Queue(_)
            | Class::Reader(_)
            | Class::Table(_)
            | Class::Flow(_)
            | Class::Host(Host::Placeholder)
    );
    let small =
        |f: &Fact| f.dtype.is_int() && f.shape().is_some_and(|s| s.len() <= Fact::CONTENTS_MAX);
    if impure || inputs.is_empty() || !outputs.iter().all(small) {
        return outputs;
    }
    let values: Option<Vec<HostTensor>> = inputs
        .iter()
        .map(|f| match &f.contents {
            Contents::Known(tensor) => Some(tensor.clone()),
            _ => None,
        })
        .collect();
    if let Some(results) = values.and_then(|values| op.eval(&values).ok()) {
        for (fact, result) in outputs.iter_mut().zip(results) {
            *fact = Fact::of(&result);
        }
    }
    outputs
}
