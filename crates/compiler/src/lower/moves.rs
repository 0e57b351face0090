//! Lowering of what moves elements: gathers, scatters, pads, concatenations.

use convoke_graph_core::{DType, Error, HostTensor, Move, NodeId, Result, Shape};
use smallvec::smallvec;

use super::{Form, Lowering};
use crate::{Arg, Check, Fused, Kernel};

impl Lowering<'_> {
    pub(super) fn movement(
        &mut self,
        node: NodeId,
        movement: &Move,
        forms: &[Form],
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        if let (Move::Gather { axis: 0 }, [Form::Constant(range), Form::Operand(indices)]) =
            (movement, forms)
            && let Some(below) = range_len(range)
            && self.out.values[indices.value.0 as usize].dtype == DType::I32
        {
            // What is gathered from a range is the index itself.
            let fused = Fused {
                shape: shape.clone(),
                input_dtypes: smallvec![dtype],
                constants: Vec::new(),
                instrs: Vec::new(),
                stores: smallvec![Arg::Input(0)],
                check: Some(Check { arg: Arg::Input(0), below, node }),
            };
            let inputs = smallvec![indices.clone()];
            return Ok(self.group(node, Kernel::Elementwise(fused), inputs, dtype, shape));
        }
        let (kernel, data): (Kernel, &[Form]) = match movement {
            Move::Pad { before } => (Kernel::Pad { before: before.clone() }, &forms[..1]),
            Move::Concat { axis } => (Kernel::Concat { axis: *axis }, forms),
            Move::Gather { axis } => (Kernel::Gather { axis: *axis }, forms),
            Move::ScatterAdd { axis } => (Kernel::ScatterAdd { axis: *axis }, &forms[1..]),
            other => return Err(Error::internal(format!("no lowering of {other:?}"))),
        };
        let inputs = data.iter().map(|form| self.operand(form)).collect::<Result<_>>()?;
        Ok(self.group(node, kernel, inputs, dtype, shape))
    }
}

/// The number of elements of a constant that counts from 0 on.
fn range_len(constant: &HostTensor) -> Option<u32> {
    let elements = constant.as_slice::<i32>().ok().filter(|_| constant.shape().rank() == 1)?;
    let counts = elements.iter().enumerate().all(|(i, &x)| i32::try_from(i) == Ok(x));
    u32::try_from(elements.len()).ok().filter(|_| counts)
}
