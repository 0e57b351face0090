//! Sums into variables of GPUs that are not computed where they are stored: from elements that a run was given before.

use convoke_graph_core::NodeId;

use crate::{HOST, Program, Segment, Source, ValueId};

impl Program {
    /// Whether a segment of a GPU stores a sum into a variable that it does not compute itself, from the variable's
    /// elements. If others store meanwhile, what they have stored would be lost.
    pub fn sums_elsewhere(&self) -> bool {
        self.segments.iter().filter(|segment| segment.device != HOST).any(|segment| {
            let mut commits = segment.commits.iter().filter(|c| c.accumulates || c.sums);
            commits.any(|commit| !self.builds_on(segment, commit.value, commit.variable))
        })
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
