//! An operation of one's own: the running sum along the last axis, from either end.

use std::sync::Arc;

use convoke::{
    Attributes, Backward, Class, CustomKernel, DType, Fact, Facts, HostTensor, KernelShapes, Op,
    OpError, Result, Shape, Tensor, TensorView, TensorViewMut, Values, Wgsl, WgslParam,
};

/// Invocations of a workgroup in `cumsum.wgsl`.
const WORKGROUP: usize = 64;

/// The longest row for which a GPU invocation loops: a portable bound is 65,535.
const MAX_ROW: usize = 60_000;

/// The running sum; with `reverse`, from the last element on.
#[derive(Debug, Clone, Copy)]
pub struct CumSum {
    pub reverse: bool,
}

/// The running sum of `x` along its last axis.
#[track_caller]
pub fn cumsum(x: &Tensor) -> Tensor {
    x.apply(CumSum { reverse: false }, &[x])
}

/// How a saved model's operation is made: for `LoadOptions::operations`, under the name that `encode` gives.
pub fn decode(attributes: &Attributes) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(CumSum { reverse: attributes.bool("reverse")? }))
}

impl Op for CumSum {
    fn name(&self) -> &str {
        "cumsum"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<Facts, OpError> {
        let [x] = inputs else {
            return Err(OpError::Arity { expected: 1, found: inputs.len() });
        };
        if x.dtype != DType::F32 {
            let (what, expected, found) = ("cumsum", "f32", x.dtype);
            return Err(OpError::DType { what, expected, found });
        }
        if x.dims.rank() == Some(0) {
            return Err(OpError::Rank { expected: 1, found: x.dims.clone() });
        }
        Ok([Fact::new(x.dtype, x.dims.clone())].into())
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<Values, OpError> {
        let x = inputs[0].to_f64s()?;
        let mut y = x.clone();
        for row in y.chunks_mut(row_len(inputs[0].shape()).max(1)) {
            running_sum(row, self.reverse, |row, at, sum| {
                let sum = sum + row[at];
                row[at] = sum;
                sum
            });
        }
        Ok([HostTensor::from_f64s(DType::F32, inputs[0].shape().clone(), &y)?].into())
    }

    /// An element of the input is part of every sum from it on, so the gradient sums the other way.
    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let turned = Self { reverse: !self.reverse };
        vec![backward.dy().map(|dy| dy.apply(turned, &[&dy]))]
    }

    fn class(&self) -> Class<'_> {
        Class::Custom(Arc::new(*self))
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of("cumsum").with("reverse", self.reverse))
    }
}

impl CustomKernel for CumSum {
    fn cpu(&self, inputs: &[TensorView<'_>], outputs: &mut [TensorViewMut<'_>]) -> Result<()> {
        let x = inputs[0].as_slice::<f32>()?;
        let len = inputs[0].dims().last().copied().unwrap_or(1).max(1);
        let y = outputs[0].as_slice_mut::<f32>()?;
        for (x, y) in x.chunks(len).zip(y.chunks_mut(len)) {
            running_sum(y, self.reverse, |y, at, sum: f32| {
                y[at] = sum + x[at];
                y[at]
            });
        }
        Ok(())
    }

    fn wgsl(&self, shapes: &KernelShapes) -> Option<Wgsl> {
        let shape = &shapes.inputs[0].1;
        let len = row_len(shape);
        if len > MAX_ROW {
            return None;
        }
        let rows = shape.len() / len.max(1);
        Some(Wgsl {
            name: "cumsum",
            text: include_str!("cumsum.wgsl"),
            params: vec![
                ("rows", WgslParam::U32(rows as u32)),
                ("row_len", WgslParam::U32(len as u32)),
                ("reverse", WgslParam::U32(self.reverse.into())),
            ],
            workgroups: rows.div_ceil(WORKGROUP) as u64,
        })
    }

    fn flops(&self, shapes: &KernelShapes) -> u64 {
        shapes.inputs[0].1.len() as u64
    }
}

fn row_len(shape: &Shape) -> usize {
    shape.dims().last().copied().unwrap_or(1)
}

/// Calls `add` with each place of a row in order, and the sum that it gave for the place before.
fn running_sum<T, S: Default>(
    row: &mut [T],
    reverse: bool,
    mut add: impl FnMut(&mut [T], usize, S) -> S,
) {
    let mut sum = S::default();
    for i in 0..row.len() {
        let at = if reverse { row.len() - 1 - i } else { i };
        sum = add(row, at, sum);
    }
}
