//! Turning: work whose readers all see its results with the axes in another order is done in their order, so that
//! it is one kernel with them.

use convoke_graph_core::{Layout, Shape};
use smallvec::SmallVec;

use super::Grouping;
use super::domain::Domain;
use crate::rows::are_columns;
use crate::{Group, Kernel, ValueId};

impl Grouping<'_> {
    /// Makes the clusters of `maker` and `reader`, which reads `value` from it, one in the order of the reader.
    pub(super) fn unite_turned(&mut self, value: ValueId, maker: usize, reader: usize) -> bool {
        let (a, b) = (self.cluster[maker], self.cluster[reader]);
        let Domain::Elements(shape) = &self.clusters[&a].domain else { return false };
        let mut seen = self.groups[reader].inputs.iter().filter(|input| input.value == value);
        let Some(layout) = seen.next().map(|input| input.layout.clone()) else { return false };
        let Some(axes) = permutation(&layout, shape) else { return false };
        if a == b || !self.can_turn(a, shape) || !self.is_seen_so(a, b, &layout) {
            return false;
        }
        let (before, domain) = (self.turn(a, b, &axes, &layout), layout.shape().clone());
        let domain = Domain::Elements(domain);
        let turned = self.clusters.get_mut(&a);
        let own = turned.map(|cluster| std::mem::replace(&mut cluster.domain, domain));
        if self.unite(a, b).is_ok() {
            return true;
        }
        for (m, group) in before {
            self.groups[m] = group;
            self.turned.remove(&m);
        }
        if let (Some(cluster), Some(own)) = (self.clusters.get_mut(&a), own) {
            cluster.domain = own;
        }
        false
    }

    /// Whether all members of a cluster go over its own shape, whose axes are turned, and none tells where in it
    /// something is wrong.
    fn can_turn(&self, cluster: usize, shape: &Shape) -> bool {
        let groups = self.clusters[&cluster].members.iter().map(|&m| &self.groups[m]);
        groups.into_iter().all(|group| {
            let over = matches!(&group.kernel, Kernel::Elementwise(fused) if fused.shape == *shape);
            over && !group.can_fail()
        })
    }

    /// Whether all that leaves cluster `a` goes to `b`, which sees it through `layout` and, where it reduces,
    /// takes columns of it.
    fn is_seen_so(&self, a: usize, b: usize, layout: &Layout) -> bool {
        let outputs = self.clusters[&a].members.iter().flat_map(|&m| &self.groups[m].outputs);
        let mut outputs = outputs.into_iter();
        outputs.all(|output| {
            let readers = &self.readers[output.0 as usize];
            let mut outside = readers.iter().filter(|&&reader| self.cluster[reader] != a);
            let fits = |&reader: &usize| {
                let group = &self.groups[reader];
                let takes_columns = match &group.kernel {
                    Kernel::Reduce(reduction) => are_columns(layout, reduction.n_outer),
                    _ => true,
                };
                let mut seen = group.inputs.iter().filter(|input| input.value == *output);
                self.cluster[reader] == b && takes_columns && seen.all(|x| x.layout == *layout)
            };
            !self.kept.contains(output) && !readers.is_empty() && outside.all(fits)
        })
    }

    /// Turns the members of cluster `a` and what `b` sees of them. Gives the groups as they were.
    fn turn(&mut self, a: usize, b: usize, axes: &[usize], layout: &Layout) -> Vec<(usize, Group)> {
        let mut before = Vec::new();
        let packed = Layout::packed(layout.shape().clone());
        let made: Vec<ValueId> = self.clusters[&a]
            .members
            .iter()
            .flat_map(|&m| self.groups[m].outputs.clone())
            .collect();
        for &m in &self.clusters[&a].members {
            before.push((m, self.groups[m].clone()));
            let Group { kernel, inputs, .. } = &mut self.groups[m];
            for input in inputs {
                match input.layout.permute(axes) {
                    _ if made.contains(&input.value) => input.layout = packed.clone(),
                    Some(turned) => input.layout = turned,
                    None => {}
                }
            }
            if let Kernel::Elementwise(fused) = kernel {
                fused.shape = layout.shape().clone();
            }
        }
        for &m in &self.clusters[&b].members {
            if !self.groups[m].inputs.iter().any(|input| made.contains(&input.value)) {
                continue;
            }
            before.push((m, self.groups[m].clone()));
            for input in &mut self.groups[m].inputs {
                if made.contains(&input.value) {
                    input.layout = packed.clone();
                }
            }
            if self.is_fold(m) {
                self.turned.insert(m, layout.clone());
            }
        }
        before
    }
}

/// The order of the axes in which `layout` sees packed elements of `shape`, if it is another one.
fn permutation(layout: &Layout, shape: &Shape) -> Option<SmallVec<[usize; 6]>> {
    if layout.is_packed() || layout.offset() != 0 || layout.shape().rank() != shape.rank() {
        return None;
    }
    let own = shape.strides();
    let mut axes: SmallVec<[usize; 6]> = SmallVec::new();
    for (&dim, &stride) in layout.shape().dims().iter().zip(layout.strides()) {
        let is_it = |&axis: &usize| {
            let same = shape.dims()[axis] == dim && (dim == 1 || own[axis] == stride);
            same && !axes.contains(&axis)
        };
        axes.push((0..shape.rank()).find(is_it)?);
    }
    Some(axes)
}
