//! Sums into variables of GPUs that are not computed where they are stored: from elements that a run was given before.

use convoke_graph_core::NodeId;
use rustc_hash::FxHashSet;

use crate::{HOST, Program, Segment, Source, ValueId};

impl Program {
    /// Whether a segment of a GPU stores a sum into a variable that it does not compute itself, from the variable's
    /// elements. If others store meanwhile, what they have stored would be lost.
    pub fn sums_elsewhere(&self) -> bool {
        self.segments.iter().filter(|segment| segment.device != HOST).any(|segment| {
            let mut commits = segment.commits.iter().filter(|c| c.accumulates || c.sums);
            commits.any(|commit| {
                let (value, variable) = (commit.value, commit.variable);
                // Of several sums, one may have been computed elsewhere, and another reads the variable here.
                !self.builds_on(segment, value, variable)
                    || (!commit.accumulates && self.is_sent(segment, value, variable))
            })
        })
    }

    /// Whether groups of a segment make a value from something that others have made from the elements of a variable.
    fn is_sent(&self, segment: &Segment, value: ValueId, variable: NodeId) -> bool {
        let mut wanted = FxHashSet::from_iter([value]);
        let mut sent = FxHashSet::default();
        let is_own: FxHashSet<u32> = segment.groups.iter().copied().collect();
        for (at, group) in self.groups.iter().enumerate().rev() {
            let [is_wanted, is_sent] =
                [&wanted, &sent].map(|of| group.outputs.iter().any(|output| of.contains(output)));
            if !is_wanted && !is_sent {
                continue;
            }
            let here = is_own.contains(&(at as u32)) && !is_sent;
            for input in &group.inputs {
                match self.value(input.value).source {
                    Source::Variable(own) if own == variable && !here => return true,
                    _ if here => wanted.insert(input.value),
                    _ => sent.insert(input.value),
                };
            }
        }
        false
    }

    /// Whether groups of a segment make a value from the elements of a variable.
    fn builds_on(&self, segment: &Segment, value: ValueId, variable: NodeId) -> bool {
        let is_it =
            |id: ValueId| matches!(self.value(id).source, Source::Variable(own) if own == variable);
        let mut wanted = vec![value];
        // What a group reads is made by those before it.
        for &group in segment.groups.iter().rev() {
            let group = &self.groups[group as usize];
            if !group.outputs.iter().any(|output| wanted.contains(output)) {
                continue;
            }
            if group.inputs.iter().any(|input| is_it(input.value)) {
                return true;
            }
            wanted.extend(group.inputs.iter().map(|input| input.value));
        }
        false
    }
}
