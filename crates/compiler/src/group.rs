//! Grouping: elementwise operations and reductions that pass elements to each other become one kernel.
//!
//! From the last operation to the first, an operation's cluster and those of its readers are united where one
//! kernel can do the work of both: elementwise work over as many elements, or work row by row (see [`Rows`]). No path
//! may lead from one to the other through a third.

mod domain;
mod line;
mod merge;
mod turn;

use convoke_graph_core::{DType, Layout, ReduceKind};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use crate::lower::Lowered;
use crate::rows::{is_one_run, longest};
use crate::tail::{kept, readers};
use crate::{Apart, Group, Kernel, Operand, Reduction, Value, ValueId, by_columns};
use domain::{Domain, Level};
use line::Line;

/// How large a group may become.
#[derive(Debug, Clone, Copy)]
pub struct GroupLimits {
    /// Inputs and outputs together: what a device binds to one kernel.
    pub buffers: usize,
    /// Values that are needed at one time, and constants: what an invocation of a GPU keeps in registers, and a CPU in
    /// its nearest cache for a block of elements.
    pub registers: usize,
    /// Operations: what compiles in little time.
    pub instrs: usize,
}

impl Default for GroupLimits {
    /// Twelve buffers: a product with its bias and what an optimizer keeps for it. 48 values, with which a GPU of 64
    /// registers an invocation is full of invocations. 256 operations.
    fn default() -> Self {
        Self { buffers: 12, registers: 48, instrs: 256 }
    }
}

impl GroupLimits {
    /// For a device that binds so many storage buffers to a kernel, one of which is a status word.
    pub fn with_bindings(self, n: usize) -> Self {
        Self { buffers: self.buffers.min(n.saturating_sub(1)), ..self }
    }

    /// No grouping at all.
    pub const SINGLE: Self = Self { buffers: 0, registers: 0, instrs: 0 };
}

/// Reductions in one group.
const FOLDS_MAX: usize = 8;

/// Groups that become one.
#[derive(Debug, Clone)]
struct Cluster {
    /// In order.
    members: Vec<usize>,
    domain: Domain,
}

struct Grouping<'a> {
    values: &'a [Value],
    groups: Vec<Group>,
    /// For each value, the groups that read it.
    readers: Vec<SmallVec<[usize; 2]>>,
    /// For each value, the group that computes it.
    producer: Vec<Option<usize>>,
    /// Values that fetches and commits need.
    kept: FxHashSet<ValueId>,
    /// For each group, its cluster.
    cluster: Vec<usize>,
    clusters: FxHashMap<usize, Cluster>,
    line: Line,
    /// For reductions whose producers were turned to their order, how they saw the value before.
    turned: FxHashMap<usize, Layout>,
    /// For values, what kept their two ends from becoming one.
    apart: FxHashMap<ValueId, Apart>,
    limits: GroupLimits,
}

/// Joins groups of `lowered`, and puts the result in an order where inputs come first.
pub(crate) fn group(lowered: &mut Lowered, limits: GroupLimits) {
    let readers = readers(lowered);
    let mut producer = vec![None; lowered.values.len()];
    for (i, group) in lowered.groups.iter().enumerate() {
        group.outputs.iter().for_each(|output| producer[output.0 as usize] = Some(i));
    }
    let kept = kept(lowered);
    let cluster =
        |(i, group)| (i, Cluster { members: vec![i], domain: Domain::of(group, &lowered.values) });
    let n_groups = lowered.groups.len();
    let clusters = lowered.groups.iter().enumerate().map(cluster).collect();
    let mut grouping = Grouping {
        values: &lowered.values,
        groups: std::mem::take(&mut lowered.groups),
        readers,
        producer,
        kept,
        cluster: (0..n_groups).collect(),
        clusters,
        line: Line::new(n_groups),
        turned: FxHashMap::default(),
        apart: FxHashMap::default(),
        limits,
    };
    if limits.buffers > 0 {
        // What has a size of its own joins rows only after their reduction has.
        let mut n_clusters = usize::MAX;
        while grouping.clusters.len() < n_clusters {
            n_clusters = grouping.clusters.len();
            for i in (0..n_groups).rev() {
                grouping.unite_with_readers(i);
            }
        }
        grouping.unite_readers_of_rows();
    }
    let order = grouping.order();
    debug_assert_eq!(order.len(), grouping.clusters.len(), "clusters lead to each other");
    if order.len() != grouping.clusters.len() {
        lowered.groups = grouping.groups;
        return;
    }
    let merged = order.iter().flat_map(|id| grouping.merged(&grouping.clusters[id])).collect();
    let apart = grouping.apart;
    lowered.groups = merged;
    lowered.apart.extend(apart);
}

impl Grouping<'_> {
    fn unite_with_readers(&mut self, i: usize) {
        if self.clusters[&self.cluster[i]].domain == Domain::Alone {
            return;
        }
        let outputs = &self.groups[i].outputs;
        let readers = |&output: &ValueId| {
            self.readers[output.0 as usize].iter().map(move |&reader| (output, reader))
        };
        let edges: SmallVec<[(ValueId, usize); 4]> = outputs.iter().flat_map(readers).collect();
        for (value, reader) in edges {
            if let Err(apart) = self.unite(self.cluster[i], self.cluster[reader])
                && !self.unite_turned(value, i, reader)
            {
                self.apart.insert(value, apart);
            }
        }
    }

    /// Unites clusters that reduce the same rows of one value.
    fn unite_readers_of_rows(&mut self) {
        for value in 0..self.values.len() {
            let folds: SmallVec<[usize; 4]> = self.readers[value]
                .iter()
                .filter(|&&reader| matches!(self.groups[reader].kernel, Kernel::Reduce(_)))
                .copied()
                .collect();
            for pair in folds.windows(2) {
                let (a, b) = (self.cluster[pair[0]], self.cluster[pair[1]]);
                if self.groups[pair[0]].inputs == self.groups[pair[1]].inputs {
                    // No value goes from one to the other.
                    let _ = self.unite(a, b);
                }
            }
        }
    }

    /// Makes clusters `a` and `b` one, if one kernel can do their work.
    fn unite(&mut self, a: usize, b: usize) -> Result<(), Apart> {
        if a == b {
            return Ok(());
        }
        let (one, other) = (&self.clusters[&a], &self.clusters[&b]);
        let (first, second) = (one.members[0], other.members[0]);
        self.groups[first].asked.with(&self.groups[second].asked)?;
        let domains = one.domain.with(&other.domain)?;
        let mut members: Vec<usize> = one.members.iter().chain(&other.members).copied().collect();
        members.sort_unstable();
        let mut united = Cluster { members, domain: Domain::Alone };
        let mut fits = Ok(());
        for domain in domains {
            united.domain = domain.clone();
            fits = self.check(&united);
            if fits.is_ok() {
                break;
            }
        }
        fits?;
        let ends = self.line.sorted(a, b);
        let room = self.room(ends).ok_or(Apart::Between)?;
        self.line.unite(ends, a, &room);
        for &member in &united.members {
            self.cluster[member] = a;
        }
        self.clusters.remove(&b);
        self.clusters.insert(a, united);
        Ok(())
    }

    /// Whether one kernel could do the work of a cluster.
    fn check(&self, cluster: &Cluster) -> Result<(), Apart> {
        // The cheapest first: a cluster that is full is asked about for each that hands it something.
        let instrs = self.n_instrs(cluster);
        if instrs > self.limits.instrs {
            return Err(Apart::Operations(instrs, self.limits.instrs));
        }
        self.check_views(cluster)?;
        self.check_size(cluster, instrs)?;
        self.check_rows(cluster)
    }

    /// Whether each member of one kernel sees what others compute at its own place.
    fn check_views(&self, cluster: &Cluster) -> Result<(), Apart> {
        let made = self.made(cluster);
        let level = |m: usize| cluster.domain.level(&self.groups[m]);
        for &reader in &cluster.members {
            let wanted = if self.is_fold(reader) { Level::Element } else { level(reader) };
            for input in &self.groups[reader].inputs {
                let Some(&producer) = made.get(&input.value) else { continue };
                if !cluster.domain.sees(level(producer), wanted, &input.layout) {
                    return Err(Apart::Order);
                }
            }
        }
        Ok(())
    }

    /// Whether one kernel of so many operations would be small enough.
    fn check_size(&self, cluster: &Cluster, instrs: usize) -> Result<(), Apart> {
        let inputs = self.inputs(cluster).ok_or(Apart::Order)?;
        let sources: FxHashSet<ValueId> = inputs.iter().map(|input| input.value).collect();
        let outputs = self.outputs(cluster);
        let buffers = sources.len() + outputs.len();
        if buffers > self.limits.buffers {
            return Err(Apart::Buffers(buffers, self.limits.buffers));
        }
        if instrs > self.limits.registers {
            let registers = self.registers(cluster, &outputs);
            if registers > self.limits.registers {
                return Err(Apart::Registers(registers, self.limits.registers));
            }
        }
        if cluster.members.iter().filter(|&&m| self.groups[m].can_fail()).count() > 1 {
            return Err(Apart::Errors);
        }
        Ok(())
    }

    /// Whether one kernel that goes over rows could do it.
    fn check_rows(&self, cluster: &Cluster) -> Result<(), Apart> {
        let Domain::Rows { shape, n_outer } = &cluster.domain else { return Ok(()) };
        let outputs = self.outputs(cluster);
        let folds: SmallVec<[usize; 4]> =
            cluster.members.iter().copied().filter(|&m| self.is_fold(m)).collect();
        if folds.len() > FOLDS_MAX {
            return Err(Apart::Reductions(folds.len(), FOLDS_MAX));
        }
        let is_bool = |id: &ValueId| self.values[id.0 as usize].dtype == DType::Bool;
        if outputs.iter().any(is_bool) || !self.has_one_kind_of_dtypes(cluster) {
            return Err(Apart::DTypes);
        }
        let inner: usize = shape.dims()[*n_outer..].iter().product();
        if folds.iter().any(|&m| self.has_own_order(m)) && !self.is_bare(cluster) {
            return Err(Apart::Columns);
        }
        let longest = longest(shape.dims()[..*n_outer].iter().product());
        if inner > longest && !self.is_bare(cluster) {
            return Err(Apart::LongRows(inner, longest));
        }
        Ok(())
    }

    /// Whether there is one reduction, and all that comes before it is for elements, and all after it for rows: its
    /// rows are walked over once.
    fn is_bare(&self, cluster: &Cluster) -> bool {
        let made = self.made(cluster);
        let level = |m: usize| cluster.domain.level(&self.groups[m]);
        let at_elements = |m: usize| self.is_fold(m) || level(m) == Level::Element;
        let readers = cluster.members.iter().filter(|&&m| at_elements(m));
        let mut seen = readers.flat_map(|&m| &self.groups[m].inputs);
        cluster.members.iter().filter(|&&m| self.is_fold(m)).count() == 1
            && self.outputs(cluster).iter().all(|output| level(made[output]) == Level::Row)
            && !seen.any(|x| made.get(&x.value).is_some_and(|&m| level(m) == Level::Row))
    }

    /// Whether a reduction adds its elements up in an order that depends on how they lie, so that it must be alone
    /// with what feeds it: a kernel with others would take them row by row.
    fn has_own_order(&self, m: usize) -> bool {
        let (Kernel::Reduce(reduction), Some(x)) =
            (&self.groups[m].kernel, self.groups[m].inputs.first())
        else {
            return false;
        };
        let is_sum = !matches!(reduction.kind, ReduceKind::Max | ReduceKind::Min);
        let n_outer = reduction.n_outer;
        let lies_so = || by_columns(&x.layout, n_outer) || !is_one_run(&x.layout, n_outer);
        self.turned.contains_key(&m) || (is_sum && lies_so())
    }

    /// The member that computes each value of a cluster.
    fn made(&self, cluster: &Cluster) -> FxHashMap<ValueId, usize> {
        let outputs = |&m: &usize| self.groups[m].outputs.iter().map(move |&output| (output, m));
        cluster.members.iter().flat_map(outputs).collect()
    }

    /// Whether all dtypes are those that most devices compute with, or none is.
    fn has_one_kind_of_dtypes(&self, cluster: &Cluster) -> bool {
        let groups = cluster.members.iter().map(|&m| &self.groups[m]);
        let ids = groups.flat_map(|g| g.inputs.iter().map(|x| x.value).chain(g.outputs.clone()));
        let mut dtypes = ids.map(|id| self.values[id.0 as usize].dtype);
        let first = dtypes.next().is_none_or(is_common);
        dtypes.all(|dtype| is_common(dtype) == first)
    }

    fn is_fold(&self, i: usize) -> bool {
        matches!(self.groups[i].kernel, Kernel::Reduce(_))
    }

    fn n_instrs(&self, cluster: &Cluster) -> usize {
        let instrs = |&m: &usize| match &self.groups[m].kernel {
            Kernel::Elementwise(fused) => fused.instrs.len().max(1),
            _ => 1,
        };
        cluster.members.iter().map(instrs).sum()
    }

    /// The most values of a cluster that are needed at one time: each from where it is computed or first read to where
    /// it is last read, or to the end if it is among the `outputs`; and its constants.
    fn registers(&self, cluster: &Cluster, outputs: &[ValueId]) -> usize {
        let mut lives: FxHashMap<ValueId, (usize, usize)> = FxHashMap::default();
        for (at, &member) in cluster.members.iter().enumerate() {
            let group = &self.groups[member];
            let inputs = group.inputs.iter().map(|input| input.value);
            for value in inputs.chain(group.outputs.iter().copied()) {
                lives.entry(value).or_insert((at, at)).1 = at;
            }
        }
        for &output in outputs {
            lives.entry(output).or_default().1 = cluster.members.len();
        }
        let mut begin = vec![0usize; cluster.members.len() + 1];
        let mut end = vec![0usize; cluster.members.len() + 1];
        for (first, last) in lives.into_values() {
            begin[first] += 1;
            end[last] += 1;
        }
        let (mut now, mut most) = (0, 0);
        for (begun, ended) in begin.into_iter().zip(end) {
            now += begun;
            most = most.max(now);
            now -= ended;
        }
        let constants = |&m: &usize| match &self.groups[m].kernel {
            Kernel::Elementwise(fused) => fused.constants.len(),
            _ => 0,
        };
        most + cluster.members.iter().map(constants).sum::<usize>()
    }

    /// The clusters that compute what a cluster reads.
    fn before(&self, cluster: usize) -> impl Iterator<Item = usize> {
        let inputs = self.clusters[&cluster].members.iter().flat_map(|&m| &self.groups[m].inputs);
        inputs.filter_map(|x| self.producer[x.value.0 as usize]).map(|made| self.cluster[made])
    }

    /// The clusters that read what a cluster computes.
    fn after(&self, cluster: usize) -> impl Iterator<Item = usize> {
        let outputs = self.clusters[&cluster].members.iter().flat_map(|&m| &self.groups[m].outputs);
        outputs.flat_map(|o| &self.readers[o.0 as usize]).map(|&reader| self.cluster[reader])
    }

    /// What a cluster reads from outside, as its kernel sees it; none if it cannot be seen so.
    fn inputs(&self, cluster: &Cluster) -> Option<Vec<Operand>> {
        let groups = || cluster.members.iter().map(|&m| &self.groups[m]);
        let own: FxHashSet<ValueId> = groups().flat_map(|g| g.outputs.iter().copied()).collect();
        let mut inputs: Vec<Operand> = Vec::new();
        for input in groups().flat_map(|g| &g.inputs).filter(|x| !own.contains(&x.value)) {
            let layout = cluster.domain.seen(&input.layout)?;
            let input = Operand { value: input.value, layout };
            if !inputs.contains(&input) {
                inputs.push(input);
            }
        }
        Some(inputs)
    }

    /// What a cluster must store.
    fn outputs(&self, cluster: &Cluster) -> Vec<ValueId> {
        let outside = |value: &ValueId| {
            let readers = &self.readers[value.0 as usize];
            self.kept.contains(value)
                || readers.is_empty()
                || readers.iter().any(|reader| cluster.members.binary_search(reader).is_err())
        };
        let all = cluster.members.iter().flat_map(|&m| self.groups[m].outputs.iter().copied());
        all.filter(outside).collect()
    }

    /// The clusters, producers before consumers, otherwise in the order of their last operations.
    fn order(&self) -> Vec<usize> {
        let mut waits: FxHashMap<usize, usize> = FxHashMap::default();
        let mut users: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
        let mut edges = FxHashSet::default();
        for &from in self.clusters.keys() {
            for to in self.after(from) {
                if from != to && edges.insert((from, to)) {
                    *waits.entry(to).or_default() += 1;
                    users.entry(from).or_default().push(to);
                }
            }
        }
        let key = |id: usize| (self.clusters[&id].members.last().copied(), id);
        let ready = self.clusters.keys().filter(|c| !waits.contains_key(c)).map(|&c| key(c));
        let mut heap: std::collections::BTreeSet<(Option<usize>, usize)> = ready.collect();
        let mut order = Vec::with_capacity(self.clusters.len());
        while let Some((_, cluster)) = heap.pop_first() {
            order.push(cluster);
            for &user in users.get(&cluster).into_iter().flatten() {
                if let Some(wait) = waits.get_mut(&user) {
                    *wait -= 1;
                    if *wait == 0 {
                        heap.insert(key(user));
                    }
                }
            }
        }
        order
    }
}

/// Whether most devices compute with the dtype, so that work of it does not keep other work from them.
pub(crate) fn is_common(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::I32 | DType::U32 | DType::Bool | DType::F16)
}

/// Whether rows can be reduced so in a group with other work.
fn is_joinable(reduction: Reduction, dtype: DType) -> bool {
    !matches!(reduction.kind, ReduceKind::ArgMax | ReduceKind::ArgMin) && dtype != DType::Bool
}
