//! Lowering of what slides windows over images: convolutions and pooling, with concrete geometry and
//! packed operands.

use convoke_graph_core::{
    Contract, ConvGeometry, DType, Error, NodeId, PoolGeometry, Result, Shape, Window,
};
use smallvec::SmallVec;

use super::{Form, Lowering};
use crate::{Kernel, Operand, PoolKind};

impl Lowering<'_> {
    pub(super) fn convolution(
        &mut self,
        node: NodeId,
        contract: &Contract,
        forms: &[Form],
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        // The sizes, which are one of the operands of a gradient, are those of the output.
        let data = match contract {
            Contract::Conv2d(_) => [0, 1],
            Contract::Conv2dInput(_) => [1, 2],
            _ => [0, 2],
        };
        let inputs = self.all_packed(node, data.map(|i| &forms[i]), dtype)?;
        let of = |i: usize| inputs[i].layout.shape();
        let kernel = match contract {
            Contract::Conv2d(conv) => Kernel::Conv2d(ConvGeometry::new(conv, of(0), of(1))?),
            Contract::Conv2dInput(conv) => {
                Kernel::Conv2dInput(ConvGeometry::new(conv, shape, of(0))?)
            }
            Contract::Conv2dFilter(conv) => {
                Kernel::Conv2dFilter(ConvGeometry::new(conv, of(0), shape)?)
            }
            other => return Err(Error::internal(format!("no lowering of {other:?}"))),
        };
        Ok(self.group(node, kernel, inputs, dtype, shape))
    }

    pub(super) fn window(
        &mut self,
        node: NodeId,
        window: Window,
        forms: &[Form],
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        let (kind, pool, inputs) = match window {
            Window::Max(pool) => (PoolKind::Max, pool, self.all_packed(node, [&forms[0]], dtype)?),
            Window::Avg(pool) => (PoolKind::Avg, pool, self.all_packed(node, [&forms[0]], dtype)?),
            Window::MaxAt(pool) => {
                (PoolKind::MaxAt, pool, self.all_packed(node, [&forms[0], &forms[1]], dtype)?)
            }
            Window::MaxGrad(pool) => {
                (PoolKind::MaxGrad, pool, self.all_packed(node, [&forms[0], &forms[1]], dtype)?)
            }
            Window::AvgGrad(pool) => {
                (PoolKind::AvgGrad, pool, self.all_packed(node, [&forms[1]], dtype)?)
            }
            other => return Err(Error::internal(format!("no lowering of {other:?}"))),
        };
        let images = if kind == PoolKind::AvgGrad { shape } else { inputs[0].layout.shape() };
        let geometry = PoolGeometry::new(&pool, images)?;
        Ok(self.group(node, Kernel::Pool { kind, geometry }, inputs, dtype, shape))
    }

    fn all_packed<const N: usize>(
        &mut self,
        node: NodeId,
        forms: [&Form; N],
        dtype: DType,
    ) -> Result<SmallVec<[Operand; 3]>> {
        forms.into_iter().map(|form| self.packed(node, form, dtype)).collect()
    }
}
