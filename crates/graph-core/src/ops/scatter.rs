//! Slices of a variable that are replaced or changed at indices along its first axis.
//!
//! Twin: `scatter.wgsl`. Source: TensorFlow's `tf.scatter_update` and its kin, which leave open which of equal
//! indices wins; here the last does, and sums are made in the order of the indices.

use std::sync::Arc;

use half::{bf16, f16};
use smallvec::SmallVec;

use crate::op::{arity, one};
use crate::ops::binary::BINARY;
use crate::ops::gather::gathered;
use crate::ops::registry::Decode;
use crate::ops::row::Block;
use crate::ops::state::{handle, no_value};
use crate::{
    Attributes, Backward, Class, CustomKernel, DType, Element, Error, Fact, HostTensor, IntoTensor,
    KernelShapes, Op, OpError, Result, Row, State, Tensor, TensorView, TensorViewMut, Variable,
    Wgsl, WgslParam,
};

/// Invocations of a workgroup.
const WORKGROUP: usize = 64;
/// The most indices that one invocation looks at.
const MAX_TURNS: usize = 60_000;

/// GPUs take no more work than this: elements times indices.
const MAX_LOOKS: usize = 1 << 30;

/// What becomes of an element and the update for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Scatter {
    Update,
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident $kind:ident),* $(,)?) => {
        impl Variable {
            $($(#[$doc])*
            ///
            /// It applies to the elements that are current when the run commits, as [`Self::assign_add`] does. The
            /// result is what is stored: the whole variable. That is also the cost, however few indices there are: a
            /// copy of the variable, and on a GPU a look at every index for every element.
            ///
            /// # Shapes
            /// `self [n, b..]`, `indices [i..]` of integers in `0..n`, `updates [i.., b..]` or a scalar, which is
            /// repeated → `[n, b..]`.
            ///
            /// # Errors
            /// Recorded: a scalar variable, indices that are no integers, other sizes. In a run: `InvalidArgument`
            /// for an index out of range; nothing has changed then.
            #[track_caller]
            pub fn $name(&self, indices: impl IntoTensor, updates: impl IntoTensor) -> Tensor {
                self.scatter(Scatter::$kind, indices, updates)
            })*
        }
    };
}

methods! {
    /// Replaces the slices at `indices` along the first axis. Of equal indices the last one wins.
    scatter_update Update,
    /// Adds to the slices at `indices` along the first axis. Equal indices add up, in order.
    scatter_add Add,
    /// Subtracts from the slices at `indices` along the first axis. Equal indices add up, in order.
    scatter_sub Sub,
    /// Multiplies the slices at `indices` along the first axis, once for each index.
    scatter_mul Mul,
    /// Divides the slices at `indices` along the first axis, once for each index.
    scatter_div Div,
    /// Keeps the lesser of the slices at `indices` along the first axis and the updates; NaN if either is.
    scatter_min Min,
    /// Keeps the greater of the slices at `indices` along the first axis and the updates; NaN if either is.
    scatter_max Max,
}

impl Variable {
    #[track_caller]
    fn scatter(&self, kind: Scatter, indices: impl IntoTensor, updates: impl IntoTensor) -> Tensor {
        let handle = self.handle();
        let (indices, updates) = (indices.into_tensor(handle), updates.into_tensor(handle));
        let sizes = gathered(&handle.dims(), &indices.dims(), 0).ok();
        let sizes = sizes.and_then(|dims| dims.shape());
        let updates = match sizes {
            Some(shape) if updates.dims().rank() == Some(0) && shape.rank() > 0 => {
                let sizes: Vec<i64> = shape.dims().iter().map(|&d| d as i64).collect();
                updates.broadcast_to(&sizes)
            }
            _ => updates,
        };
        handle.apply(kind, &[handle, &indices, &updates])
    }
}

impl Op for Scatter {
    fn name(&self) -> &str {
        match self {
            Self::Update => "scatter_update",
            Self::Add => "scatter_add",
            Self::Sub => "scatter_sub",
            Self::Mul => "scatter_mul",
            Self::Div => "scatter_div",
            Self::Min => "scatter_min",
            Self::Max => "scatter_max",
        }
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [variable, indices, updates] = arity(inputs)?;
        let variable = handle(variable)?;
        indices.expect("the indices of a scatter", "integers", DType::is_int)?;
        match self {
            Self::Update => {
                updates.expect("scatter_update", "numbers or bool", |d| d != DType::String)?;
            }
            _ => updates.expect("scattered arithmetic", "numbers", DType::is_number)?,
        }
        if updates.dtype != variable.dtype {
            return Err(OpError::DTypes { lhs: variable.dtype, rhs: updates.dtype });
        }
        gathered(&variable.dims, &indices.dims, 0)?.unify(&updates.dims)?;
        one(Fact::new(variable.dtype, variable.dims.clone()))
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Err(no_value())
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None; 3]
    }

    fn class(&self) -> Class<'_> {
        Class::State(State::Scatter(*self))
    }

    fn encode(&self) -> Option<Attributes> {
        // The gradient of a gather has the name of one of them.
        Some(Attributes::of("scatter").with("kind", self.name()))
    }
}

/// Of the elements, the indices and the updates.
impl CustomKernel for Scatter {
    fn cpu(&self, inputs: &[TensorView<'_>], outputs: &mut [TensorViewMut<'_>]) -> Result<()> {
        let ([x, indices, updates], [y]) = (inputs, outputs) else {
            return Err(Error::internal("a scatter has three inputs and one output"));
        };
        let rows = rows(indices, x.dims().first().copied().unwrap_or(0))?;
        match x.dtype() {
            DType::Bool => self.compute::<bool>(&rows, [x, updates], y),
            DType::I8 => self.compute::<i8>(&rows, [x, updates], y),
            DType::U8 => self.compute::<u8>(&rows, [x, updates], y),
            DType::I16 => self.compute::<i16>(&rows, [x, updates], y),
            DType::U16 => self.compute::<u16>(&rows, [x, updates], y),
            DType::I32 => self.compute::<i32>(&rows, [x, updates], y),
            DType::U32 => self.compute::<u32>(&rows, [x, updates], y),
            DType::I64 => self.compute::<i64>(&rows, [x, updates], y),
            DType::U64 => self.compute::<u64>(&rows, [x, updates], y),
            DType::F16 => self.compute::<f16>(&rows, [x, updates], y),
            DType::BF16 => self.compute::<bf16>(&rows, [x, updates], y),
            DType::F32 => self.compute::<f32>(&rows, [x, updates], y),
            DType::F64 => self.compute::<f64>(&rows, [x, updates], y),
            DType::String => Err(Error::internal("strings are not scattered")),
        }
    }

    /// Indices of i32 only: the program checks them before.
    fn wgsl(&self, shapes: &KernelShapes) -> Option<Wgsl> {
        let [(_, x), (index, indices), _] = &shapes.inputs[..] else { return None };
        // Each element looks at each index.
        let looks = x.len().saturating_mul(indices.len());
        if *index != DType::I32 || indices.len() > MAX_TURNS || looks > MAX_LOOKS {
            return None;
        }
        let inner = x.dims().iter().skip(1).product::<usize>();
        Some(Wgsl {
            name: "scatter",
            text: include_str!("scatter.wgsl"),
            params: vec![
                ("inner", WgslParam::U32(u32::try_from(inner).ok()?)),
                ("kind", WgslParam::U32(*self as u32)),
            ],
            workgroups: x.len().div_ceil(WORKGROUP) as u64,
        })
    }

    fn flops(&self, shapes: &KernelShapes) -> u64 {
        shapes.inputs.iter().map(|(_, shape)| shape.len() as u64).fold(0, u64::saturating_add)
    }
}

impl Scatter {
    /// The elementwise operation of an element and an update; none to take the update.
    fn row(self) -> Option<&'static Row> {
        let name = match self {
            Self::Update => return None,
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
            Self::Div => "div",
            Self::Min => "minimum",
            Self::Max => "maximum",
        };
        BINARY.iter().find(|row| row.name == name)
    }

    fn compute<T: Number>(
        self,
        rows: &[usize],
        [x, updates]: [&TensorView<'_>; 2],
        y: &mut TensorViewMut<'_>,
    ) -> Result<()> {
        let len = x.dims().iter().skip(1).product::<usize>();
        let updates = updates.as_slice::<T>()?;
        let y = y.as_slice_mut::<T>()?;
        y.copy_from_slice(x.as_slice()?);
        if len == 0 {
            return Ok(());
        }
        let block = self.row().and_then(T::block);
        let (mut old, mut new, mut result) =
            (Vec::new(), Vec::new(), vec![T::Wide::default(); len]);
        for (&row, update) in rows.iter().zip(updates.chunks_exact(len)) {
            let slice = &mut y[row * len..][..len];
            let Some(block) = block else {
                slice.copy_from_slice(update);
                continue;
            };
            old.clear();
            old.extend(slice.iter().map(|&x| x.widen()));
            new.clear();
            new.extend(update.iter().map(|&x| x.widen()));
            block(&[&old, &new], &mut result);
            slice.iter_mut().zip(&result).for_each(|(y, &x)| *y = T::narrow(x));
        }
        Ok(())
    }
}

/// The rows that indices name.
fn rows(indices: &TensorView<'_>, size: usize) -> Result<Vec<usize>> {
    macro_rules! of {
        ($t:ty) => {{
            let row = |(position, &index): (usize, &$t)| {
                let row = usize::try_from(index).ok().filter(|&row| row < size);
                row.ok_or_else(|| {
                    let index = i64::try_from(index).unwrap_or(i64::MAX);
                    OpError::Index { index, position, size }.into()
                })
            };
            indices.as_slice::<$t>()?.iter().enumerate().map(row).collect()
        }};
    }
    match indices.dtype() {
        DType::I8 => of!(i8),
        DType::U8 => of!(u8),
        DType::I16 => of!(i16),
        DType::U16 => of!(u16),
        DType::I32 => of!(i32),
        DType::U32 => of!(u32),
        DType::I64 => of!(i64),
        DType::U64 => of!(u64),
        other => Err(Error::internal(format!("indices of {other}"))),
    }
}

/// A function of blocks with outputs of the inputs' type.
type SameBlock<T> = fn(&[&[T]], &mut [T]);

/// Elements, and the type that rows compute them in.
trait Number: Element + Copy {
    type Wide: Copy + Default;
    fn widen(self) -> Self::Wide;
    fn narrow(wide: Self::Wide) -> Self;
    fn block(row: &Row) -> Option<SameBlock<Self::Wide>>;
}

macro_rules! numbers {
    ($($t:ty as $wide:ident of $column:ident: $widen:expr, $narrow:expr;)*) => {
        $(impl Number for $t {
            type Wide = $wide;
            fn widen(self) -> $wide { ($widen)(self) }
            fn narrow(wide: $wide) -> Self { ($narrow)(wide) }
            fn block(row: &Row) -> Option<SameBlock<$wide>> {
                match row.$column.as_ref()?.$wide {
                    Block::Same(block) => Some(block),
                    Block::Test(_) => None,
                }
            }
        })*
    };
}

numbers! {
    i8 as i32 of int: i32::from, |x| x as i8;
    u8 as u32 of int: u32::from, |x| x as u8;
    i16 as i32 of int: i32::from, |x| x as i16;
    u16 as u32 of int: u32::from, |x| x as u16;
    i32 as i32 of int: |x| x, |x| x;
    u32 as u32 of int: |x| x, |x| x;
    i64 as i64 of int: |x| x, |x| x;
    u64 as u64 of int: |x| x, |x| x;
    f16 as f32 of float: f16::to_f32, f16::from_f32;
    bf16 as f32 of float: bf16::to_f32, bf16::from_f32;
    f32 as f32 of float: |x| x, |x| x;
    f64 as f64 of float: |x| x, |x| x;
}

/// Only ever replaced.
impl Number for bool {
    type Wide = bool;
    fn widen(self) -> bool {
        self
    }
    fn narrow(wide: bool) -> Self {
        wide
    }
    fn block(_: &Row) -> Option<SameBlock<bool>> {
        None
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[("scatter", |a| {
    use Scatter::{Add, Div, Max, Min, Mul, Sub, Update};
    let kind = a.text("kind")?;
    let of = [Update, Add, Sub, Mul, Div, Min, Max].into_iter().find(|of| of.name() == kind);
    Ok(Arc::new(of.ok_or_else(|| OpError::Invalid(format!("there is no {kind:?}")))?))
})];
