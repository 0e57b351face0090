//! The start of a run: what it reads of the session's state, all under one lock.

use std::sync::Arc;

use convoke_compiler::{HOST, Source};
use convoke_graph_core::{AlignedBytes, NodeId, Result};
use smallvec::SmallVec;

use super::{Bound, Compiled};
use crate::feeds::FeedData;
use crate::state::{Kept, Snapshot, State};

impl Compiled {
    pub(super) fn bind<'a>(&self, feeds: &'a [FeedData<'a>], state: &State) -> Result<Bound<'a>> {
        let mut bound = Bound { feeds, variables: SmallVec::new(), inputs: SmallVec::new() };
        if self.variables.is_empty() && self.inputs.is_empty() {
            return Ok(bound);
        }
        let kept = state.lock();
        for (variable, name) in &self.variables {
            bound.variables.push(self.read(*variable, name, &kept)?);
        }
        for input in &self.inputs {
            bound.inputs.push(match input {
                Source::Initialized(variable) => {
                    [u8::from(kept.is_initialized(*variable)), 0, 0, 0]
                }
                Source::Draws(node) => kept.draws(*node).to_ne_bytes(),
                _ => [0; 4],
            });
        }
        Ok(bound)
    }

    /// The elements of a variable; zeros where it may have none.
    fn read(&self, variable: NodeId, name: &str, kept: &Kept) -> Result<Snapshot> {
        if kept.is_initialized(variable) || !self.program.optional.contains(&variable) {
            return kept.read(variable, name);
        }
        let mut homes = self.program.variables.iter();
        let on_host = homes.any(|&home| home == (variable, HOST));
        let is_it = |source: &Source| matches!(source, Source::Variable(id) if *id == variable);
        let value = self.program.values.iter().find(|value| on_host && is_it(&value.source));
        let zeros = value.map(|value| AlignedBytes::zeroed(value.n_bytes()).map(Arc::new));
        Ok(Snapshot { version: 0, elements: zeros.transpose()? })
    }
}
