//! How much a group computes and moves, for cost models and reports.

use convoke_placement::{Family, Work};

use crate::{Group, Kernel, Value};

/// Operations that one element of a fused group takes, for each of its instructions.
const FLOPS_PER_INSTR: u64 = 1;

impl Group {
    /// What the group does: its family, arithmetic operations, and bytes read and written once each.
    pub fn work(&self, values: &[Value]) -> Work {
        let value = |id: crate::ValueId| &values[id.0 as usize];
        // A broadcast operand is read once from memory, whatever the number of places that see it.
        let read = |input: &crate::Operand| {
            let seen = input.layout.shape().len() * value(input.value).dtype.n_bytes();
            seen.min(value(input.value).n_bytes()) as u64
        };
        let inputs: u64 = self.inputs.iter().map(read).sum();
        let outputs: u64 = self.outputs.iter().map(|&id| value(id).n_bytes() as u64).sum();
        let first = self.inputs.first().map_or(0, |input| input.layout.shape().len() as u64);
        let made = match &self.tail {
            Some(tail) => value(tail.result).shape.len() as u64,
            None => self.outputs.iter().map(|&id| value(id).shape.len() as u64).sum(),
        };
        let (family, flops) = match &self.kernel {
            Kernel::Elementwise(fused) => {
                let len = fused.shape.len() as u64;
                let per_element = fused.instrs.len() as u64 * FLOPS_PER_INSTR;
                (Family::Elementwise, len.saturating_mul(per_element))
            }
            Kernel::Reduce(_) => (Family::Reduce, first),
            Kernel::Rows(rows) => {
                let per_element = rows.fused.instrs.len() + rows.folds.len();
                let per_element = per_element as u64 * FLOPS_PER_INSTR;
                let len = rows.fused.shape.len() as u64;
                (Family::Reduce, len.saturating_mul(per_element))
            }
            Kernel::Matmul => {
                let depth = self.inputs.first().and_then(|i| i.layout.shape().dims().last());
                let depth = depth.copied().unwrap_or(0) as u64;
                (Family::Contract, made.saturating_mul(depth).saturating_mul(2))
            }
            Kernel::Conv2d(g) | Kernel::Conv2dInput(g) | Kernel::Conv2dFilter(g) => {
                (Family::Contract, g.flops())
            }
            Kernel::Pool { geometry, .. } => (Family::Reduce, geometry.flops()),
            Kernel::Pad { .. } | Kernel::Concat { .. } | Kernel::Gather { .. } => {
                (Family::Move, made)
            }
            Kernel::ScatterAdd { .. } => (Family::Move, first.max(made)),
            Kernel::Random(_) => (Family::Other, made.saturating_mul(100)),
            Kernel::Custom(kernel) => (Family::Other, kernel.flops(&self.shapes(values))),
        };
        let tail = self.tail.as_ref().map_or(0, |tail| {
            let per_element = tail.fused.instrs.len() as u64 * FLOPS_PER_INSTR;
            per_element.saturating_mul(tail.fused.shape.len() as u64)
        });
        let flops = flops.saturating_add(tail);
        Work { family, flops, bytes: inputs.saturating_add(outputs) }
    }
}
