//! A user's own kernel, on the calling thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use convoke_compiler::{Group, Operand, Program};
use convoke_graph_core::{CustomKernel, Error, KernelShapes, Result, TensorView, TensorViewMut};
use smallvec::SmallVec;

use crate::malformed;

/// A kernel and the shapes of one group.
pub(crate) struct Custom {
    kernel: Arc<dyn CustomKernel>,
    shapes: KernelShapes,
    flops: u64,
}

impl Custom {
    /// Compiles a group.
    pub fn compile(
        program: &Program,
        group: &Group,
        kernel: &Arc<dyn CustomKernel>,
    ) -> Result<Self> {
        let shapes = group.shapes(&program.values);
        let whole = |operand: &Operand| {
            let layout = &operand.layout;
            let n = program.value(operand.value).shape.len();
            layout.is_packed() && layout.offset() == 0 && layout.shape().len() == n
        };
        if !group.inputs.iter().all(whole) {
            return Err(malformed("custom", "expected packed inputs"));
        }
        let flops = kernel.flops(&shapes);
        Ok(Self { kernel: kernel.clone(), shapes, flops })
    }

    /// What the kernel says.
    pub fn flops(&self) -> u64 {
        self.flops
    }

    /// Computes the group. A panic of the kernel is an error of the run.
    pub fn run(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<()> {
        let mut views: SmallVec<[TensorView<'_>; 4]> = SmallVec::new();
        for ((dtype, shape), bytes) in self.shapes.inputs.iter().zip(inputs) {
            views.push(TensorView::new(*dtype, shape, bytes)?);
        }
        let mut views_mut: SmallVec<[TensorViewMut<'_>; 4]> = SmallVec::new();
        for ((dtype, shape), bytes) in self.shapes.outputs.iter().zip(outputs) {
            views_mut.push(TensorViewMut::new(*dtype, shape, bytes)?);
        }
        let call = AssertUnwindSafe(|| self.kernel.cpu(&views, &mut views_mut));
        catch_unwind(call).unwrap_or_else(|payload| {
            Err(Error::panicked(format_args!("the kernel {:?}", self.kernel), &*payload))
        })
    }
}
