//! Tails: elementwise work on what a product, a convolution, a pooling or a reduction gives, done where it is stored.
//!
//! The result then never goes through memory. A tail is attached if nobody else reads the result, and if it
//! sees each element once: at its own place, or with the axes in another order.

use convoke_graph_core::{DType, Layout, ReduceKind};
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use crate::group::is_common;
use crate::head::takes_heads;
use crate::lower::Lowered;
use crate::{Apart, Arg, Fused, Group, GroupLimits, Kernel, Operand, Tail, Value, ValueId};

/// Attaches tails to the groups of `lowered`.
pub(crate) fn attach(lowered: &mut Lowered, limits: GroupLimits) {
    let (kept, readers) = (kept(lowered), readers(lowered));
    for i in 0..lowered.groups.len() {
        let core = &lowered.groups[i];
        let &[result] = core.outputs.as_slice() else { continue };
        if !has_store(core) {
            continue;
        }
        let joined = match readers[result.0 as usize].as_slice() {
            [] => continue,
            _ if kept.contains(&result) => Err(Apart::Kept),
            &[reader] => {
                join(&lowered.values, core, &lowered.groups[reader], result, limits).map(|joined| {
                    lowered.groups[reader] = joined;
                    lowered.groups[i].outputs.clear();
                })
            }
            several => Err(Apart::Readers(several.len())),
        };
        if let Err(apart) = joined {
            lowered.apart.insert(result, apart);
        }
    }
    lowered.groups.retain(|group| !group.outputs.is_empty());
}

/// The values that fetches and commits need.
pub(crate) fn kept(lowered: &Lowered) -> FxHashSet<ValueId> {
    let fetched = lowered.fetches.iter().map(|f| f.value);
    fetched.chain(lowered.commits.iter().map(|commit| commit.value)).collect()
}

/// For each value, the groups that read it.
pub(crate) fn readers(lowered: &Lowered) -> Vec<SmallVec<[usize; 2]>> {
    let mut readers: Vec<SmallVec<[usize; 2]>> = vec![SmallVec::new(); lowered.values.len()];
    for (i, group) in lowered.groups.iter().enumerate() {
        for input in &group.inputs {
            let of = &mut readers[input.value.0 as usize];
            if of.last() != Some(&i) {
                of.push(i);
            }
        }
    }
    readers
}

/// Whether kernels of the group store each element of its result once, at the end, and do so plainly yet.
pub(crate) fn has_store(core: &Group) -> bool {
    core.tail.is_none()
        && match &core.kernel {
            Kernel::Matmul
            | Kernel::Conv2d(_)
            | Kernel::Conv2dInput(_)
            | Kernel::Conv2dFilter(_)
            | Kernel::Pool { .. } => true,
            Kernel::Reduce(reduction) => {
                !matches!(reduction.kind, ReduceKind::ArgMax | ReduceKind::ArgMin)
            }
            Kernel::Rows(rows) => rows.is_in_parts(),
            _ => false,
        }
}

fn join(
    values: &[Value],
    core: &Group,
    reader: &Group,
    result: ValueId,
    limits: GroupLimits,
) -> Result<Group, Apart> {
    let Kernel::Elementwise(fused) = &reader.kernel else {
        return Err(if takes_heads(&reader.kernel) { Apart::Kernels } else { Apart::Reader });
    };
    let value = &values[result.0 as usize];
    let mut seen = reader.inputs.iter().filter(|input| input.value == result);
    let layout = seen.next().ok_or(Apart::Order)?.layout.clone();
    let in_order = seen.next().is_none() && is_permutation(&layout, value.shape.len());
    core.asked.with(&reader.asked)?;
    if fused.shape.len() != value.shape.len() {
        return Err(Apart::Shapes(value.shape.clone(), fused.shape.clone()));
    }
    if !in_order {
        return Err(Apart::Order);
    }
    if reader.tail.is_some() || fused.check.is_some() {
        return Err(Apart::Reader);
    }
    let stored = reader.outputs.iter().map(|id| values[id.0 as usize].dtype);
    let has_bool = stored.chain([value.dtype]).any(|dtype| dtype == DType::Bool);
    if has_bool || !dtypes(fused).all(is_common) {
        return Err(Apart::DTypes);
    }
    let others: Vec<usize> =
        (0..reader.inputs.len()).filter(|&k| reader.inputs[k].value != result).collect();
    let mut inputs = core.inputs.clone();
    inputs.extend(others.iter().map(|&k| reader.inputs[k].clone()));
    let distinct: FxHashSet<ValueId> = inputs.iter().map(|input| input.value).collect();
    let buffers = distinct.len() + reader.outputs.len();
    if buffers > limits.buffers {
        return Err(Apart::Buffers(buffers, limits.buffers));
    }
    let fused = renumbered(fused, &others, value);
    let nodes = core.nodes.iter().chain(&reader.nodes).copied().collect();
    Ok(Group {
        kernel: core.kernel.clone(),
        inputs,
        outputs: reader.outputs.clone(),
        heads: core.heads.clone(),
        tail: Some(Tail { result, layout, fused }),
        nodes,
        asked: core.asked.clone(),
    })
}

/// Whether a layout sees `len` packed elements once each, maybe with their axes in another order.
fn is_permutation(layout: &Layout, len: usize) -> bool {
    let (dims, strides) = (layout.shape().dims(), layout.strides());
    let mut axes: SmallVec<[(isize, usize); 6]> =
        strides.iter().copied().zip(dims.iter().copied()).filter(|&(_, dim)| dim != 1).collect();
    axes.sort_unstable();
    let mut step = 1;
    let packed = axes.iter().all(|&(stride, dim)| {
        let is_next = stride == step;
        step *= dim as isize;
        is_next
    });
    packed && layout.offset() == 0 && layout.shape().len() == len
}

/// The work with the result as input 0, and `others` of its inputs after it.
fn renumbered(fused: &Fused, others: &[usize], result: &Value) -> Fused {
    let number = |arg: Arg| match arg {
        Arg::Input(k) => {
            let at = others.iter().position(|&other| other == k as usize);
            Arg::Input(at.map_or(0, |at| at as u32 + 1))
        }
        arg => arg,
    };
    let mut fused = fused.clone();
    let dtypes = others.iter().map(|&k| fused.input_dtypes[k]);
    fused.input_dtypes = std::iter::once(result.dtype).chain(dtypes).collect();
    for arg in fused.instrs.iter_mut().flat_map(|instr| &mut instr.args) {
        *arg = number(*arg);
    }
    for store in &mut fused.stores {
        *store = number(*store);
    }
    fused
}

pub(crate) fn dtypes(fused: &Fused) -> impl Iterator<Item = DType> {
    let constants = fused.constants.iter().map(|constant| constant.dtype());
    let instrs = fused.instrs.iter().map(|instr| instr.dtype);
    fused.input_dtypes.iter().copied().chain(constants).chain(instrs)
}

impl Group {
    /// The group without its tail: it gives the tail's input 0.
    pub fn core(&self) -> Group {
        let Some(tail) = &self.tail else { return self.clone() };
        let n = self.inputs.len() + 1 - tail.fused.input_dtypes.len();
        Group {
            inputs: self.inputs[..n].iter().cloned().collect(),
            outputs: SmallVec::from_slice(&[tail.result]),
            tail: None,
            ..self.clone()
        }
    }

    /// The tail as a group of its own.
    pub fn tail(&self) -> Option<Group> {
        let Tail { result, layout, fused } = self.tail.as_ref()?;
        let n = self.inputs.len() + 1 - fused.input_dtypes.len();
        let first = Operand { value: *result, layout: layout.clone() };
        let inputs = std::iter::once(first).chain(self.inputs[n..].iter().cloned()).collect();
        let kernel = Kernel::Elementwise(fused.clone());
        Some(Group { kernel, inputs, heads: SmallVec::new(), tail: None, ..self.clone() })
    }
}
