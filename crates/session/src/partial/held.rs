//! The variables of a partial run: as they are when it is made, as its steps leave them, and how they are stored.

use std::sync::Arc;

use convoke_compiler::steps::{Assigned, UsedVariable};
use convoke_compiler::{HOST, Plan};
use convoke_graph_core::{
    AlignedBytes, Class, Error, ErrorKind, HostTensor, Node, NodeId, Result, State,
};
use rustc_hash::FxHashMap;

use crate::core::Core;
use crate::flow::{Journal, add_difference};
use crate::state::uninitialized;

/// A variable while a partial run holds it.
pub(super) struct Holding {
    variable: Arc<Node>,
    /// How often it was stored into and reset when the run was made.
    version: u64,
    resets: u32,
    /// The elements at the start, if it had some that may be needed.
    before: Option<HostTensor>,
    /// The elements that steps have assigned.
    pub now: Option<HostTensor>,
}

/// Takes the variables as they are now, all at once.
pub(super) fn hold(core: &Core, used: &[UsedVariable]) -> Result<FxHashMap<NodeId, Holding>> {
    let kept = core.state.lock();
    let read: Vec<&Arc<Node>> =
        used.iter().filter(|used| used.is_read).map(|used| &used.node).collect();
    let elements = core.elements(&kept, &read)?;
    let mut held = FxHashMap::default();
    for used in used {
        let id = used.node.id;
        let entry = kept.variables.get(&id);
        held.insert(
            id,
            Holding {
                variable: used.node.clone(),
                version: entry.map_or(0, |entry| entry.version),
                resets: entry.map_or(0, |entry| entry.generation().resets),
                before: elements.get(&id).cloned(),
                now: None,
            },
        );
    }
    Ok(held)
}

impl Holding {
    /// Whether it had elements when the run was made.
    pub fn had_elements(&self) -> bool {
        self.version > 0
    }

    /// The elements at the start of the run.
    pub fn start(&self) -> Result<HostTensor> {
        if self.version == 0 {
            return Err(uninitialized(&self.variable.name));
        }
        self.before
            .clone()
            .ok_or_else(|| Error::internal("elements are not held").with_node(&*self.variable.name))
    }

    /// The elements as the run has left them; zeros for none, if nobody `needs` them.
    pub fn now(&self, needs: bool) -> Result<HostTensor> {
        match &self.now {
            Some(now) => Ok(now.clone()),
            None if self.version == 0 && !needs => {
                let fact = &self.variable.facts[0];
                let shape = fact.shape().unwrap_or_default();
                let n_bytes = shape.len().saturating_mul(fact.dtype.n_bytes());
                HostTensor::from_bytes(fact.dtype, shape, AlignedBytes::zeroed(n_bytes)?)
            }
            None => self.start(),
        }
    }
}

/// Whether a plan does more with a variable's elements than to take them if there are any.
pub(super) fn needs_elements(plan: &Plan, variable: NodeId) -> bool {
    plan.nodes.iter().any(|node| {
        let uses = node.inputs.first().is_some_and(|handle| handle.node == variable);
        let Class::State(state) = node.op.class() else { return false };
        let looks = matches!(state, State::ReadOr | State::IsInitialized | State::Assign);
        uses && !looks && plan.is_first(node.id)
    })
}

/// Stores elements of variables, each with what was done to it, and what was drawn.
///
/// # Errors
/// Nothing is stored.
pub(super) fn store(
    core: &Core,
    stores: &[(&Holding, &HostTensor, Assigned)],
    journal: &Journal,
) -> Result<()> {
    core.make_room(stores.iter().map(|(holding, ..)| &holding.variable))?;
    let mut kept = core.state.lock();
    let mut ready = Vec::with_capacity(stores.len());
    for &(holding, now, assigned) in stores {
        let variable = &holding.variable;
        let entry = kept.entry(variable, HOST);
        if entry.generation().resets != holding.resets {
            continue;
        }
        let is_other = entry.version != holding.version;
        let elements = match (assigned, &holding.before) {
            (Assigned::Moved, Some(before)) if is_other => {
                let current = core.elements(&kept, &[variable])?.remove(&variable.id);
                let current = current.ok_or_else(|| uninitialized(&variable.name))?;
                let mut bytes = AlignedBytes::copy_of(current.bytes())?;
                add_difference(now.dtype(), &mut bytes, before.bytes(), now.bytes())?;
                HostTensor::from_bytes(now.dtype(), now.shape().clone(), bytes)?
            }
            (Assigned::Changed, _) if is_other => {
                let message = "others have stored into the variable since the partial run was made; make it again";
                return Err(Error::new(ErrorKind::Aborted, message).with_node(&*variable.name));
            }
            _ => now.clone(),
        };
        ready.push((variable.id, AlignedBytes::copy_of(elements.bytes())?));
    }
    for (variable, elements) in ready {
        core.store(&mut kept, variable, elements)?;
    }
    journal.store(&mut kept);
    Ok(())
}
