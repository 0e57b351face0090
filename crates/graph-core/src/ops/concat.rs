//! Tensors one after the other along an axis.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::{one, output_shape, resolve_axis, same_dtype};
use crate::ops::control::Refused;
use crate::ops::gather::axis_of;
use crate::ops::host::Range;
use crate::ops::pick::picked;
use crate::ops::registry::Decode;
use crate::{
    Attributes, Backward, Class, DType, Dim, Dims, Fact, Graph, HostTensor, Move, Op, OpError,
    Tensor,
};

impl Graph {
    /// The tensors one after the other along `axis`; a negative axis counts from the end.
    ///
    /// # Shapes
    /// Each `[a.., n_i, b..]` → `[a.., sum of n_i, b..]`.
    ///
    /// # Errors
    /// Recorded: no tensors, an axis out of range, other sizes or dtypes that differ.
    #[track_caller]
    pub fn concat(&self, tensors: &[&Tensor], axis: i64) -> Tensor {
        let ranked = tensors.iter().map(|t| t.dims()).find(|dims| dims.rank().is_some());
        match axis_of(&ranked.unwrap_or(Dims::UnknownRank), axis) {
            _ if tensors.is_empty() => {
                let reason = OpError::Invalid("concat needs at least one tensor".into());
                self.apply(Refused(reason), &[])
            }
            Ok(axis) => self.apply(Concat { axis }, tensors),
            Err(reason) => self.apply(Refused(reason), tensors),
        }
    }

    /// The tensors one after the other along a new axis before `axis`; -1 is after the last.
    ///
    /// # Shapes
    /// `n` times `[a.., b..]` → `[a.., n, b..]`.
    ///
    /// # Errors
    /// Recorded: no tensors, an axis out of range, or shapes or dtypes that differ.
    #[track_caller]
    pub fn stack(&self, tensors: &[&Tensor], axis: i64) -> Tensor {
        let rows: Vec<Tensor> = tensors.iter().map(|t| t.expand_dims(axis)).collect();
        self.concat(&rows.iter().collect::<Vec<_>>(), axis)
    }
}

#[derive(Debug, Clone, Copy)]
struct Concat {
    axis: usize,
}

impl Op for Concat {
    fn name(&self) -> &str {
        "concat"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let dtype = same_dtype(inputs)?;
        let mut whole = Dims::UnknownRank;
        let mut sum = Some(0usize);
        for input in inputs {
            let mut open = input.dims.clone();
            sum = match &mut open {
                Dims::UnknownRank => None,
                Dims::Known(dims) => {
                    let axis = resolve_axis(self.axis as i64, dims.len())?;
                    let size = std::mem::replace(&mut dims[axis], Dim::Unknown);
                    size.known().zip(sum).map(|(n, sum)| sum.saturating_add(n))
                }
            };
            whole = whole.unify(&open)?;
        }
        if let Dims::Known(dims) = &mut whole {
            dims[self.axis] = sum.into();
        }
        one(Fact::new(dtype, whole.checked()?))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let (dtype, shape) = output_shape(self, inputs)?;
        let n_outer: usize = shape.dims()[..self.axis].iter().product();
        let row = |x: &HostTensor| x.dims()[self.axis..].iter().product::<usize>();
        let mut places = Vec::with_capacity(shape.len());
        for outer in 0..n_outer {
            for (from, x) in inputs.iter().enumerate() {
                let n = row(x);
                places.extend((outer * n..outer * n + n).map(|at| Some((from, at))));
            }
        }
        picked(dtype, shape, inputs, places)
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let n = backward.n_inputs();
        let Some(dy) = backward.dy() else { return vec![None; n] };
        let sizes: Vec<Option<usize>> =
            (0..n).map(|i| backward.input(i).dims().dims()?.get(self.axis)?.known()).collect();
        let mut end = Some(0usize);
        (0..n)
            .map(|i| {
                let begin = end;
                end = begin.zip(sizes[i]).map(|(begin, size)| begin.saturating_add(size));
                Some(match (begin, sizes[i], dy.dims().rank()) {
                    (Some(begin), Some(size), Some(rank)) => {
                        let (mut begins, mut parts) = (vec![0; rank], vec![None; rank]);
                        (begins[self.axis], parts[self.axis]) = (begin, Some(size));
                        dy.slice(&begins, &parts)
                    }
                    _ => self.part(backward, &dy, i),
                })
            })
            .collect()
    }

    fn class(&self) -> Class<'_> {
        Class::Move(Move::Concat { axis: self.axis })
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("axis", self.axis))
    }
}

impl Concat {
    /// The part of `dy` that belongs to input `i`, where the sizes are known only in a run.
    fn part(&self, backward: &Backward<'_>, dy: &Tensor, i: usize) -> Tensor {
        let size = |i: usize| {
            let sizes = backward.input(i).shape().slice(&[self.axis], &[Some(1)]);
            sizes.reshape(&[]).cast(DType::I32)
        };
        let start = (0..i).fold(dy.graph().constant(0i32), |sum, i| sum + size(i));
        let limit = &start + size(i);
        let indices = dy.apply(Range, &[&start, &limit]);
        dy.gather(indices, self.axis as i64)
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] =
    &[("concat", |a| Ok(Arc::new(Concat { axis: a.axis("axis")? })))];
