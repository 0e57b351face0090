//! From clusters to groups.

use convoke_graph_core::Shape;
use rustc_hash::FxHashMap;
use smallvec::{SmallVec, smallvec};

use super::domain::{Domain, Level};
use super::{Cluster, Grouping};
use crate::{Arg, Check, Fold, Fused, Group, Kernel, Operand, ROW_MAX, Rows, ValueId};

impl Grouping<'_> {
    /// The groups that do the work of a cluster, in order: mostly one.
    pub(super) fn merged(&self, cluster: &Cluster) -> SmallVec<[Group; 1]> {
        let Domain::Rows { shape, n_outer } = &cluster.domain else {
            return smallvec![self.one(cluster)];
        };
        // Work after a single reduction of what is stored is its tail; so is that of long rows and of columns,
        // which are reduced in parts.
        let level = |m: usize| cluster.domain.level(&self.groups[m]);
        let (core, tail): (Vec<usize>, Vec<usize>) =
            cluster.members.iter().partition(|&&m| self.is_fold(m) || level(m) == Level::Element);
        let is_long = shape.dims()[*n_outer..].iter().product::<usize>() > ROW_MAX;
        let is_turned = core.iter().any(|m| self.turned.contains_key(m));
        if !self.is_bare(cluster) || !(is_long || is_turned || core.len() == 1) {
            return smallvec![self.one(cluster)];
        }
        let mut parts = smallvec![self.one(&Cluster { members: core, ..cluster.clone() })];
        // All of the tail has been found to see rows with the axes that come before those of a row.
        let rows = Shape::new(&shape.dims()[..*n_outer]);
        if let (false, Ok(rows)) = (tail.is_empty(), rows) {
            let domain = Domain::Elements(rows);
            parts.push(self.one(&Cluster { members: tail, domain }));
        }
        parts
    }

    /// One kernel for the whole cluster.
    fn one(&self, cluster: &Cluster) -> Group {
        if let [only] = cluster.members[..] {
            return self.groups[only].clone();
        }
        let inputs = self.inputs(cluster).unwrap_or_default();
        let outputs = self.outputs(cluster);
        let (shape, n_outer) = match &cluster.domain {
            Domain::Rows { shape, n_outer } => (shape.clone(), Some(*n_outer)),
            Domain::Elements(shape) => (shape.clone(), None),
            Domain::Alone => Default::default(),
        };
        let dtype = |id: ValueId| self.values[id.0 as usize].dtype;
        let folds = cluster.members.iter().filter(|&&m| self.is_fold(m));
        let folded = folds.flat_map(|&m| self.groups[m].outputs.iter().map(|&id| dtype(id)));
        let mut merging = Merging {
            cluster,
            inputs: &inputs,
            stored: FxHashMap::default(),
            folds: Vec::new(),
            fused: Fused {
                shape,
                input_dtypes: inputs.iter().map(|input| dtype(input.value)).chain(folded).collect(),
                constants: Vec::new(),
                instrs: Vec::new(),
                stores: SmallVec::new(),
                check: None,
            },
        };
        for &member in &cluster.members {
            merging.append(&self.groups[member]);
        }
        let Merging { stored, folds, mut fused, .. } = merging;
        fused.stores = outputs.iter().filter_map(|output| stored.get(output).copied()).collect();
        let kernel = match n_outer {
            Some(n_outer) => {
                let seen = cluster.members.iter().find_map(|m| self.turned.get(m)).cloned();
                Kernel::Rows(Rows { n_outer, fused, folds, seen, totals: Vec::new() })
            }
            None => Kernel::Elementwise(fused),
        };
        let members = &cluster.members;
        let nodes = members.iter().flat_map(|&m| self.groups[m].nodes.iter().copied()).collect();
        let (inputs, outputs) = (inputs.into(), outputs.into());
        let asked = self.groups[members[0]].asked.clone();
        Group::plain(kernel, (inputs, outputs), nodes, asked)
    }
}

/// A kernel that grows.
struct Merging<'a> {
    cluster: &'a Cluster,
    inputs: &'a [Operand],
    /// Where the values of earlier parts are.
    stored: FxHashMap<ValueId, Arg>,
    folds: Vec<Fold>,
    fused: Fused,
}

impl Merging<'_> {
    fn append(&mut self, group: &Group) {
        match &group.kernel {
            Kernel::Elementwise(part) => self.append_elementwise(part, group),
            Kernel::Reduce(reduction) => {
                let result = Arg::Input((self.inputs.len() + self.folds.len()) as u32);
                let arg = self.resolve(Arg::Input(0), group, 0, 0);
                self.folds.push(Fold { kind: reduction.kind, arg });
                self.stored.extend(group.outputs.iter().map(|&output| (output, result)));
            }
            _ => {}
        }
    }

    fn append_elementwise(&mut self, part: &Fused, group: &Group) {
        let first_instr = self.fused.instrs.len() as u32;
        let first_constant = self.fused.constants.len() as u32;
        let resolve = |arg: Arg| self.resolve(arg, group, first_instr, first_constant);
        let mut instrs = part.instrs.clone();
        for instr in &mut instrs {
            for arg in &mut instr.args {
                *arg = resolve(*arg);
            }
        }
        let check = part.check.map(|check| Check { arg: resolve(check.arg), ..check });
        let stores: Vec<Arg> = part.stores.iter().map(|&arg| resolve(arg)).collect();
        self.stored.extend(group.outputs.iter().copied().zip(stores));
        self.fused.constants.extend(part.constants.iter().cloned());
        self.fused.instrs.extend(instrs);
        self.fused.check = self.fused.check.or(check);
    }

    /// An argument of a part, as one of the whole.
    fn resolve(&self, arg: Arg, group: &Group, first_instr: u32, first_constant: u32) -> Arg {
        match arg {
            Arg::Constant(c) => Arg::Constant(first_constant + c),
            Arg::Instr(i) => Arg::Instr(first_instr + i),
            Arg::Input(i) => {
                let input = &group.inputs[i as usize];
                let layout = self.cluster.domain.seen(&input.layout);
                let is_it = |other: &Operand| {
                    other.value == input.value && Some(&other.layout) == layout.as_ref()
                };
                let outside = self.inputs.iter().position(is_it);
                let place = outside.map(|at| Arg::Input(at as u32));
                self.stored.get(&input.value).copied().or(place).unwrap_or(arg)
            }
        }
    }
}
