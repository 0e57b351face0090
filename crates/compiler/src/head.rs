//! Heads: elementwise work that makes an operand of a product or a convolution where that is loaded.
//!
//! The operand then never goes through memory. A device computes an element of it for each tile that needs it, so
//! that a head is attached where this takes less than storing the element and reading it would, if nobody else reads
//! what it makes. Tails come first: what can be computed where a product is stored is computed once.

use convoke_graph_core::{ConvGeometry, DType, Layout};
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use crate::group::is_common;
use crate::lower::Lowered;
use crate::tail::{dtypes, kept, readers};
use crate::work::{Pointwise, TILE, tile_of_product};
use crate::{Apart, Fused, Group, GroupLimits, Head, Kernel, Operand, Value, ValueId};

/// Operations in the time that it takes to read or to write a byte: about what GPUs and processors have.
const OPERATIONS_PER_BYTE: u64 = 8;
/// Operations for each axis of an address that is more than a place.
const OPERATIONS_PER_AXIS: u64 = 4;

/// Attaches heads to the groups of `lowered`.
pub(crate) fn attach(lowered: &mut Lowered, limits: GroupLimits) {
    if limits.buffers == 0 {
        return;
    }
    let (kept, readers) = (kept(lowered), readers(lowered));
    for i in 0..lowered.groups.len() {
        if !matches!(lowered.groups[i].kernel, Kernel::Elementwise(_)) {
            continue;
        }
        for result in lowered.groups[i].outputs.clone() {
            let readers = readers[result.0 as usize].as_slice();
            if !readers.iter().all(|&reader| takes_heads(&lowered.groups[reader].kernel)) {
                continue;
            }
            let joined = match readers {
                [] => continue,
                _ if kept.contains(&result) => Err(Apart::Kept),
                &[reader] => {
                    let (maker, reader) = (&lowered.groups[i], &lowered.groups[reader]);
                    join(&lowered.values, maker, reader, result, limits)
                }
                several => Err(Apart::Readers(several.len())),
            };
            match joined {
                Ok(joined) => {
                    lowered.groups[readers[0]] = joined;
                    lowered.groups[i].outputs.clear();
                }
                Err(apart) => _ = lowered.apart.insert(result, apart),
            }
        }
    }
    lowered.groups.retain(|group| !group.outputs.is_empty());
}

/// Whether kernels load each element of their first two inputs by a function.
pub(crate) fn takes_heads(kernel: &Kernel) -> bool {
    matches!(
        kernel,
        Kernel::Matmul | Kernel::Conv2d(_) | Kernel::Conv2dInput(_) | Kernel::Conv2dFilter(_)
    )
}

fn join(
    values: &[Value],
    maker: &Group,
    reader: &Group,
    result: ValueId,
    limits: GroupLimits,
) -> Result<Group, Apart> {
    let Kernel::Elementwise(fused) = &maker.kernel else { return Err(Apart::Reader) };
    if maker.outputs.len() != 1 {
        return Err(Apart::Stores(maker.outputs.len()));
    }
    let bare = reader.bare();
    let operand =
        bare.inputs.iter().position(|input| input.value == result).ok_or(Apart::Behind)?;
    if reader.inputs.iter().filter(|input| input.value == result).count() > 1 {
        return Err(Apart::Order);
    }
    let layout = bare.inputs[operand].layout.clone();
    if !maker.inputs.iter().all(|input| lies_in_rows(&input.layout)) {
        return Err(Apart::Order);
    }
    maker.asked.with(&reader.asked)?;
    if fused.check.is_some() {
        return Err(Apart::Errors);
    }
    let dtype = values[result.0 as usize].dtype;
    if dtype == DType::Bool || !dtypes(fused).all(is_common) {
        return Err(Apart::DTypes);
    }
    worth(values, &bare, operand, maker, fused)?;
    let at = reader.heads.iter().position(|head| head.operand > operand);
    let at = at.unwrap_or(reader.heads.len());
    let mut heads = reader.heads.clone();
    heads.insert(at, Head { operand, value: result, layout, fused: fused.clone() });
    let mut inputs = reader.inputs.clone();
    let place = inputs.iter().position(|input| input.value == result).ok_or(Apart::Order)?;
    inputs.remove(place);
    inputs.insert_many(place, maker.inputs.iter().cloned());
    let distinct: FxHashSet<ValueId> = inputs.iter().map(|input| input.value).collect();
    let buffers = distinct.len() + reader.outputs.len();
    if buffers > limits.buffers {
        return Err(Apart::Buffers(buffers, limits.buffers));
    }
    let nodes = maker.nodes.iter().chain(&reader.nodes).copied().collect();
    Ok(Group { inputs, heads, nodes, ..reader.clone() })
}

/// Whether neighbours in the order of a layout's shape lie beside each other, or are one element: else a kernel that
/// brings them into order is worth its time.
fn lies_in_rows(layout: &Layout) -> bool {
    let axes = layout.shape().dims().iter().zip(layout.strides());
    let inner = axes.rev().find(|&(&dim, _)| dim != 1);
    inner.is_none_or(|(_, &stride)| stride == 0 || stride == 1)
}

/// Whether computing an operand where it is loaded takes less than memory would.
fn worth(
    values: &[Value],
    reader: &Group,
    operand: usize,
    maker: &Group,
    fused: &Fused,
) -> Result<(), Apart> {
    let n_bytes = |id: ValueId| values[id.0 as usize].dtype.n_bytes() as u64;
    let own = n_bytes(reader.inputs[operand].value);
    let is_each = |input: &&Operand| input.layout.strides().iter().any(|&stride| stride != 0);
    let read: u64 = maker.inputs.iter().filter(is_each).map(|input| n_bytes(input.value)).sum();
    let axes: u64 = maker.inputs.iter().map(|input| axes(&input.layout)).sum();
    let each = Pointwise::each(fused).operations()
        + OPERATIONS_PER_BYTE * read.saturating_sub(own)
        + OPERATIONS_PER_AXIS * axes;
    let times = times(reader, operand);
    let cost = each.saturating_mul(times - 1);
    let most = OPERATIONS_PER_BYTE * 2 * own;
    if cost > most { Err(Apart::Again { times, cost, most }) } else { Ok(()) }
}

/// The axes that an address in a layout is made from; none where it is the place itself or always the same.
fn axes(layout: &Layout) -> u64 {
    let is_plain = layout.is_packed() || layout.strides().iter().all(|&stride| stride == 0);
    if is_plain { 0 } else { layout.shape().dims().iter().filter(|&&dim| dim != 1).count() as u64 }
}

/// How often a device loads each element of an operand, at least once.
pub(crate) fn times(reader: &Group, operand: usize) -> u64 {
    let tiles = match &reader.kernel {
        Kernel::Matmul => tiles_of_product(reader, operand),
        Kernel::Conv2d(g) => match operand {
            0 => taps(g).saturating_mul(tiles(g.out_channels)),
            _ => tiles(g.out_size[0].saturating_mul(g.out_size[1])).saturating_mul(g.batch as u64),
        },
        Kernel::Conv2dInput(g) => match operand {
            0 => tiles(g.in_size[0].saturating_mul(g.in_size[1])).saturating_mul(g.batch as u64),
            _ => taps(g).saturating_mul(tiles(g.in_channels)),
        },
        Kernel::Conv2dFilter(g) => match operand {
            0 => taps(g).saturating_mul(tiles(g.out_channels)),
            _ => tiles(g.in_channels).saturating_mul(taps(g)),
        },
        _ => 1,
    };
    tiles.max(1)
}

fn tiles_of_product(reader: &Group, operand: usize) -> u64 {
    let [a, b] = reader.inputs.as_slice() else { return 1 };
    let (da, db) = (a.layout.shape().dims(), b.layout.shape().dims());
    let ([lead @ .., m, k], [.., n]) = (da, db) else { return 1 };
    let batches: usize = lead.iter().product();
    let tile = tile_of_product(batches as u64, [*m as u64, *n as u64, *k as u64]);
    let seen = &reader.inputs[operand].layout;
    // What is repeated along the batch is computed for each matrix.
    let axes = seen.strides().iter().zip(seen.shape().dims()).take(lead.len());
    let repeats = axes.filter(|&(&stride, _)| stride == 0).map(|(_, &dim)| dim as u64);
    let other = if operand == 0 { *n } else { *m };
    repeats.fold((other as u64).div_ceil(tile), u64::saturating_mul)
}

fn tiles(size: usize) -> u64 {
    (size as u64).div_ceil(TILE)
}

/// How many windows an element is under.
fn taps(g: &ConvGeometry) -> u64 {
    let along = |axis: usize| g.window[axis].div_ceil(g.stride[axis].max(1)) as u64;
    along(0).saturating_mul(along(1))
}

impl Group {
    /// What its kernel does alone, without heads and tail.
    pub fn bare(&self) -> Group {
        let core = self.core();
        let mut inputs: SmallVec<[Operand; 3]> = SmallVec::new();
        let mut rest = &core.inputs[..];
        let mut heads = core.heads.iter().peekable();
        while !rest.is_empty() || heads.peek().is_some() {
            if let Some(head) = heads.next_if(|head| head.operand == inputs.len()) {
                rest = rest.get(head.fused.input_dtypes.len()..).unwrap_or_default();
                inputs.push(Operand { value: head.value, layout: head.layout.clone() });
            } else if let Some((first, others)) = rest.split_first() {
                inputs.push(first.clone());
                rest = others;
            } else {
                break;
            }
        }
        Group { inputs, heads: SmallVec::new(), ..core }
    }

    /// The heads as groups of their own, each with its operand and the number of its first input in this group.
    pub fn heads(&self) -> impl Iterator<Item = (usize, usize, Group)> + '_ {
        // Inputs of heads before it, and how many operands they are.
        let (mut taken, mut made) = (0, 0);
        self.heads.iter().map(move |head| {
            let n = head.fused.input_dtypes.len();
            let first = head.operand - made + taken;
            (taken, made) = (taken + n, made + 1);
            let inputs = self.inputs.get(first..first + n).unwrap_or_default();
            let kernel = Kernel::Elementwise(head.fused.clone());
            let ends = (inputs.iter().cloned().collect(), SmallVec::from_slice(&[head.value]));
            let group = Group::plain(kernel, ends, self.nodes.clone(), self.asked.clone());
            (head.operand, first, group)
        })
    }
}

#[cfg(test)]
mod tests;
