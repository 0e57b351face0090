//! Grouping: elementwise operations that pass elements to each other become one kernel.
//!
//! From the last operation to the first, an operation joins the group of its consumers, if they are one
//! group that reads its elements each at its own place, and if no other consumer leads back to that group.

use convoke_graph_core::Layout;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use crate::lower::Lowered;
use crate::{Arg, Fused, Group, Kernel, Operand, Value, ValueId};

/// How large a group may become.
#[derive(Debug, Clone, Copy)]
pub struct GroupLimits {
    /// Inputs and outputs together: what a device binds to one kernel.
    pub buffers: usize,
    /// Operations.
    pub instrs: usize,
}

impl Default for GroupLimits {
    /// Seven buffers, which with a status word are WebGPU's eight; 64 operations.
    fn default() -> Self {
        Self { buffers: 7, instrs: 64 }
    }
}

impl GroupLimits {
    /// No grouping at all.
    pub const SINGLE: Self = Self { buffers: 0, instrs: 0 };
}

/// How many groups are looked at to find out whether one leads to another.
const SEARCH_MAX: usize = 512;

struct Grouping<'a> {
    values: &'a [Value],
    groups: &'a [Group],
    /// For each value, the groups that read it.
    readers: Vec<Vec<usize>>,
    /// Values that fetches and commits need.
    kept: FxHashSet<ValueId>,
    /// For each group, the last of the cluster that it is in.
    cluster: Vec<usize>,
    members: FxHashMap<usize, Vec<usize>>,
    limits: GroupLimits,
}

/// Joins elementwise groups of `lowered`, and puts the result in an order where inputs come first.
pub(crate) fn group(lowered: &mut Lowered, limits: GroupLimits) {
    let mut readers = vec![Vec::new(); lowered.values.len()];
    for (i, group) in lowered.groups.iter().enumerate() {
        for input in &group.inputs {
            readers[input.value.0 as usize].push(i);
        }
    }
    let fetched = lowered.fetches.iter().map(|f| f.value);
    let committed = lowered.commits.iter().map(|commit| commit.value);
    let kept = fetched.chain(committed).collect();
    let n = lowered.groups.len();
    let mut grouping = Grouping {
        values: &lowered.values,
        groups: &lowered.groups,
        readers,
        kept,
        cluster: (0..n).collect(),
        members: (0..n).map(|i| (i, vec![i])).collect(),
        limits,
    };
    for i in (0..n).rev() {
        if let Some(target) = grouping.target(i) {
            grouping.join(i, target);
        }
    }
    let order = grouping.order();
    let merged: Vec<Group> = order.iter().map(|cluster| grouping.merged(*cluster)).collect();
    lowered.groups = merged;
}

impl Grouping<'_> {
    fn fused(&self, i: usize) -> Option<&Fused> {
        match &self.groups[i].kernel {
            Kernel::Elementwise(fused) => Some(fused),
            _ => None,
        }
    }

    /// The cluster that group `i` can join.
    fn target(&self, i: usize) -> Option<usize> {
        let fused = self.fused(i)?;
        let output = *self.groups[i].outputs.first()?;
        let readers = &self.readers[output.0 as usize];
        // The nearest consumer that could take it; others may stay outside.
        let fits = |&&reader: &&usize| {
            self.fused(reader).is_some_and(|r| r.shape == fused.shape)
                && self.groups[reader].device == self.groups[i].device
                && self.reads_in_place(reader, output)
        };
        let target = self.cluster[*readers.iter().find(fits)?];
        let inside_in_place = readers
            .iter()
            .filter(|&&r| self.cluster[r] == target)
            .all(|&r| self.reads_in_place(r, output));
        let others: Vec<usize> =
            readers.iter().map(|&r| self.cluster[r]).filter(|&c| c != target).collect();
        (inside_in_place && !self.leads(&others, target) && self.within_limits(i, target))
            .then_some(target)
    }

    /// True if group `reader` sees the elements of `value` in their own order.
    fn reads_in_place(&self, reader: usize, value: ValueId) -> bool {
        let own = Layout::packed(self.values[value.0 as usize].shape.clone());
        let mut inputs = self.groups[reader].inputs.iter().filter(|input| input.value == value);
        inputs.all(|input| input.layout == own)
    }

    /// True if one of `from` leads to `target`, or if that takes too long to find out.
    fn leads(&self, from: &[usize], target: usize) -> bool {
        let mut seen = FxHashSet::default();
        let mut stack = from.to_vec();
        while let Some(cluster) = stack.pop() {
            if cluster == target || seen.len() > SEARCH_MAX {
                return true;
            }
            if seen.insert(cluster) {
                let outputs = self.members[&cluster].iter().flat_map(|&m| &self.groups[m].outputs);
                let readers = outputs.flat_map(|output| &self.readers[output.0 as usize]);
                stack.extend(readers.map(|&reader| self.cluster[reader]));
            }
        }
        false
    }

    fn within_limits(&self, i: usize, target: usize) -> bool {
        let mut members = self.members[&target].clone();
        members.push(i);
        let instrs: usize =
            members.iter().filter_map(|&m| self.fused(m)).map(|f| f.instrs.len().max(1)).sum();
        let (inputs, outputs) = self.boundary(&members);
        instrs <= self.limits.instrs && inputs.len() + outputs.len() <= self.limits.buffers
    }

    /// What a set of groups reads from outside, and what it must store.
    fn boundary(&self, members: &[usize]) -> (Vec<Operand>, Vec<ValueId>) {
        let own: FxHashSet<ValueId> =
            members.iter().flat_map(|&m| self.groups[m].outputs.iter().copied()).collect();
        let mut inputs: Vec<Operand> = Vec::new();
        for input in members.iter().flat_map(|&m| &self.groups[m].inputs) {
            if !own.contains(&input.value) && !inputs.contains(input) {
                inputs.push(input.clone());
            }
        }
        let outside = |value: &ValueId| {
            let readers = &self.readers[value.0 as usize];
            self.kept.contains(value)
                || readers.is_empty()
                || readers.iter().any(|reader| !members.contains(reader))
        };
        let all = members.iter().flat_map(|&m| self.groups[m].outputs.iter().copied());
        (inputs, all.filter(outside).collect())
    }

    fn join(&mut self, i: usize, target: usize) {
        self.members.remove(&i);
        self.cluster[i] = target;
        self.members.entry(target).or_default().push(i);
    }

    /// The clusters, producers before consumers, otherwise in the order of their last operations.
    fn order(&self) -> Vec<usize> {
        let mut waits: FxHashMap<usize, usize> = FxHashMap::default();
        let mut users: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
        let mut edges = FxHashSet::default();
        for (producer, group) in self.groups.iter().enumerate() {
            let from = self.cluster[producer];
            for &reader in group.outputs.iter().flat_map(|o| &self.readers[o.0 as usize]) {
                let to = self.cluster[reader];
                if from != to && edges.insert((from, to)) {
                    *waits.entry(to).or_default() += 1;
                    users.entry(from).or_default().push(to);
                }
            }
        }
        let ready = |c: &&usize| !waits.contains_key(c);
        let mut heap: std::collections::BTreeSet<usize> =
            self.members.keys().filter(ready).copied().collect();
        let mut order = Vec::with_capacity(self.members.len());
        while let Some(cluster) = heap.pop_first() {
            order.push(cluster);
            for &user in users.get(&cluster).into_iter().flatten() {
                if let Some(wait) = waits.get_mut(&user) {
                    *wait -= 1;
                    if *wait == 0 {
                        heap.insert(user);
                    }
                }
            }
        }
        order
    }

    fn merged(&self, cluster: usize) -> Group {
        let mut members = self.members[&cluster].clone();
        members.sort_unstable();
        if let [only] = members[..] {
            return self.groups[only].clone();
        }
        let (inputs, outputs) = self.boundary(&members);
        let mut fused = Fused {
            shape: self.fused(cluster).map(|f| f.shape.clone()).unwrap_or_default(),
            input_dtypes: SmallVec::new(),
            constants: Vec::new(),
            instrs: Vec::new(),
            stores: SmallVec::new(),
        };
        fused.input_dtypes =
            inputs.iter().map(|input| self.values[input.value.0 as usize].dtype).collect();
        let mut stored: FxHashMap<ValueId, Arg> = FxHashMap::default();
        for &member in &members {
            let (Some(part), group) = (self.fused(member), &self.groups[member]) else { continue };
            append(&mut fused, part, group, &inputs, &mut stored);
        }
        fused.stores = outputs.iter().filter_map(|output| stored.get(output).copied()).collect();
        let nodes = members.iter().flat_map(|&m| self.groups[m].nodes.iter().copied()).collect();
        let (inputs, outputs) = (inputs.into(), outputs.into());
        let device = self.groups[cluster].device.clone();
        Group { kernel: Kernel::Elementwise(fused), inputs, outputs, tail: None, nodes, device }
    }
}

/// Appends the work of `group` to `fused`, whose inputs are `inputs`; `stored` says where the values of
/// earlier parts are.
fn append(
    fused: &mut Fused,
    part: &Fused,
    group: &Group,
    inputs: &[Operand],
    stored: &mut FxHashMap<ValueId, Arg>,
) {
    let first_instr = fused.instrs.len() as u32;
    let first_constant = fused.constants.len() as u32;
    let resolve = |arg: Arg| match arg {
        Arg::Constant(c) => Arg::Constant(first_constant + c),
        Arg::Instr(i) => Arg::Instr(first_instr + i),
        Arg::Input(i) => {
            let input = &group.inputs[i as usize];
            let outside = inputs.iter().position(|other| other == input);
            let place = outside.map(|at| Arg::Input(at as u32));
            stored.get(&input.value).copied().or(place).unwrap_or(arg)
        }
    };
    let mut instrs = part.instrs.clone();
    for instr in &mut instrs {
        for arg in &mut instr.args {
            *arg = resolve(*arg);
        }
    }
    let stores: Vec<Arg> = part.stores.iter().map(|&arg| resolve(arg)).collect();
    stored.extend(group.outputs.iter().copied().zip(stores));
    fused.constants.extend(part.constants.iter().cloned());
    fused.instrs.extend(instrs);
}
