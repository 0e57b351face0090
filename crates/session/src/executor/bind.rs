//! The start of a run: what it reads of the session's state, all under one lock.

use std::cell::RefCell;
use std::sync::Arc;

use convoke_compiler::{HOST, Source};
use convoke_graph_core::{Error, ErrorKind, NodeId, Result};
use smallvec::SmallVec;

use super::{Bound, Compiled, RunState};
use crate::drawing::{Drawing, Drawn};
use crate::feeds::FeedData;
use crate::holding::Journal;
use crate::state::{Elements, Generation, Kept, Snapshot, State};

impl Compiled {
    pub(super) fn bind<'a>(
        &self,
        feeds: &'a [FeedData<'a>],
        run: RunState<'_>,
    ) -> Result<Bound<'a>> {
        let (variables, inputs) = (SmallVec::new(), SmallVec::new());
        let mut bound = Bound { feeds, variables, inputs, drawn: Drawn::default() };
        if self.variables.is_empty() && self.inputs.is_empty() && self.draws.is_empty() {
            return Ok(bound);
        }
        let mut kept = run.state.lock();
        let journal = run.journal.map(RefCell::borrow);
        for (variable, name) in &self.variables {
            let start = journal.as_ref().and_then(|journal| journal.start(*variable));
            let read = self.read(*variable, name, &kept)?;
            bound.variables.push(match start {
                Some(start) if start.version == read.version || start.elements.is_some() => {
                    start.clone()
                }
                Some(_) => {
                    let message = "another run has changed the variable meanwhile; run again";
                    return Err(Error::new(ErrorKind::Aborted, message).with_node(&**name));
                }
                None => read,
            });
        }
        bound.drawn = self.draw(&mut kept, run.state, journal.as_deref());
        for input in &self.inputs {
            bound.inputs.push(match input {
                Source::Initialized(variable) => {
                    let own = journal.as_ref().and_then(|j| j.is_initialized(*variable));
                    [u8::from(own.unwrap_or_else(|| kept.is_initialized(*variable))), 0, 0, 0]
                }
                Source::Draws(node, earlier) => {
                    bound.drawn.first(*node).wrapping_add(*earlier).to_ne_bytes()
                }
                _ => [0; 4],
            });
        }
        Ok(bound)
    }

    /// The numbers that the program draws.
    fn draw(&self, kept: &mut Kept, state: &Arc<State>, journal: Option<&Journal>) -> Drawn {
        if self.draws.is_empty() {
            return Drawn::default();
        }
        let mut own = None;
        let range = |&(node, n): &(NodeId, u32)| {
            let draws = &mut kept.draws;
            let first = match journal {
                Some(journal) => journal.draws(draws, node, n),
                None => own.get_or_insert_with(|| Drawing::new(state)).take(draws, node, n, None),
            };
            (node, first, first.wrapping_add(n))
        };
        let ranges = self.draws.iter().map(range).collect();
        Drawn { ranges, _own: own }
    }

    /// A variable's generation when the program was made, and now.
    fn generations(&self, variable: NodeId, kept: &Kept) -> Option<[Generation; 2]> {
        let at = self.program.variables.binary_search_by_key(&variable, |&(node, _)| node).ok()?;
        Some([*self.generations.get(at)?, kept.variables.get(&variable)?.generation()])
    }

    /// Whether a variable was reset since the program was made: what a run stores into it then is lost.
    pub(super) fn was_reset(&self, variable: NodeId, kept: &Kept) -> bool {
        let generations = self.generations(variable, kept);
        generations.is_some_and(|[before, now]| before.resets != now.resets)
    }

    /// The elements of a variable; zeros where it may have none.
    fn read(&self, variable: NodeId, name: &str, kept: &Kept) -> Result<Snapshot> {
        if self.generations(variable, kept).is_some_and(|[before, now]| before != now) {
            let message = "the variable moved or was reset while the run began; run again";
            return Err(Error::new(ErrorKind::Aborted, message).with_node(name));
        }
        if kept.is_initialized(variable) || !self.program.optional.contains(&variable) {
            return kept.read(variable, name);
        }
        let mut homes = self.program.variables.iter();
        let on_host = homes.any(|&home| home == (variable, HOST));
        let is_it = |source: &Source| matches!(source, Source::Variable(id) if *id == variable);
        let value = self.program.values.iter().find(|value| on_host && is_it(&value.source));
        let zeros = value.map(|value| Elements::zeros(value.dtype, &value.shape));
        Ok(Snapshot { version: 0, elements: zeros.transpose()? })
    }
}
