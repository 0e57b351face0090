//! The rows of the elementwise tables, and the operation that a row is.

use std::fmt;

use smallvec::SmallVec;

use crate::op::{one, output_shape, same_dtype, value};
use crate::{
    Attributes, Backward, Class, DType, Elementwise, Fact, HostTensor, Layout, Op, OpError, Shape,
    Tensor,
};

/// What is asked of two strings.
pub type StringTest = fn(&[u8], &[u8]) -> bool;

/// One elementwise operation: what it computes for floats, integers and bools, on the CPU and in
/// WGSL, its gradient, and the points that tests try.
///
/// A column that is `None` refuses those dtypes. All inputs have one dtype.
pub struct Row {
    /// The name in dumps and of the WGSL function.
    pub name: &'static str,
    /// The number of inputs: 1 or 2.
    pub arity: usize,
    /// f16, bf16, f32, f64.
    pub float: Option<FloatFns>,
    /// The integers.
    pub int: Option<IntFns>,
    /// Bools.
    pub bools: Option<BoolFns>,
    /// A test of two strings.
    pub strings: Option<StringTest>,
    /// The gradient of each input.
    pub gradient: fn(&Backward<'_>) -> Vec<Option<Tensor>>,
    /// Inputs worth testing; of pairs, all combinations.
    pub probe: &'static [f64],
}

/// A function of blocks: one slice for each input, all as long as the output.
#[derive(Clone, Copy)]
pub enum Block<T: 'static> {
    /// The output has the inputs' type.
    Same(fn(&[&[T]], &mut [T])),
    /// The output is bool: bytes 0 or 1.
    Test(fn(&[&[T]], &mut [u8])),
}

/// What a row computes for floats.
pub struct FloatFns {
    /// The definition; of a test, 0 or 1.
    pub reference: fn(&[f64]) -> f64,
    /// The CPU's block function for f16, bf16 and f32.
    pub f32: Block<f32>,
    /// The CPU's block function for f64.
    pub f64: Block<f64>,
    /// The WGSL expression of `x` and `y`; `T` is the float type.
    pub wgsl: &'static str,
    /// About how many exponentials it takes as long as on a CPU, where it is a function of several steps: placement's
    /// measure of functions.
    pub steps: u32,
}

/// What a row computes for integers: exact, then wrapped.
pub struct IntFns {
    /// The definition, before wrapping; of a test, 0 or 1.
    pub reference: fn(&[i128]) -> i128,
    /// The CPU's block function for i8, i16 and i32.
    pub i32: Block<i32>,
    /// The CPU's block function for u8, u16 and u32.
    pub u32: Block<u32>,
    /// The CPU's block function for i64.
    pub i64: Block<i64>,
    /// The CPU's block function for u64.
    pub u64: Block<u64>,
    /// The WGSL expression of `x` and `y`; `T` is the integer type.
    pub wgsl: &'static str,
}

/// What a row computes for bools.
pub struct BoolFns {
    /// The definition.
    pub reference: fn(&[bool]) -> bool,
    /// The CPU's block function, of bytes 0 and 1.
    pub block: fn(&[&[u8]], &mut [u8]),
    /// The WGSL expression of `x` and `y`.
    pub wgsl: &'static str,
}

impl<T> Block<T> {
    /// True if the output is bool.
    pub fn is_test(self) -> bool {
        matches!(self, Self::Test(_))
    }
}

impl Row {
    /// The dtype of the output for inputs of `dtype`; `None` if the row refuses it.
    pub fn output(&self, dtype: DType) -> Option<DType> {
        let is_test = match dtype {
            DType::Bool => {
                self.bools.as_ref()?;
                false
            }
            DType::String => {
                self.strings?;
                true
            }
            d if d.is_float() => self.float.as_ref()?.f32.is_test(),
            _ => self.int.as_ref()?.i32.is_test(),
        };
        Some(if is_test { DType::Bool } else { dtype })
    }

    /// The WGSL expression for inputs of `dtype`.
    pub fn wgsl(&self, dtype: DType) -> Option<&'static str> {
        match dtype {
            DType::Bool => self.bools.as_ref().map(|b| b.wgsl),
            DType::String => None,
            d if d.is_float() => self.float.as_ref().map(|f| f.wgsl),
            _ => self.int.as_ref().map(|i| i.wgsl),
        }
    }

    fn domain(&self) -> &'static str {
        match (&self.float, &self.int, &self.bools) {
            (Some(_), Some(_), Some(_)) => "numbers or bool",
            (Some(_), Some(_), None) => "numbers",
            (Some(_), None, _) => "floats",
            (None, Some(_), _) => "integers",
            _ => "bool",
        }
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// The operation that a row is.
#[derive(Clone, Copy)]
pub(crate) struct RowOp(pub(crate) &'static Row);

impl fmt::Debug for RowOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl Op for RowOp {
    fn name(&self) -> &str {
        self.0.name
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let row = self.0;
        if inputs.len() != row.arity {
            return Err(OpError::Arity { expected: row.arity, found: inputs.len() });
        }
        let dtype = same_dtype(inputs)?;
        let output = row.output(dtype).ok_or_else(|| OpError::DType {
            what: row.name,
            expected: row.domain(),
            found: dtype,
        })?;
        let mut dims = inputs[0].dims.clone();
        for input in &inputs[1..] {
            dims = dims.broadcast(&input.dims)?;
        }
        one(Fact::new(output, dims))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let (output, shape) = output_shape(self, inputs)?;
        let row = self.0;
        let dtype = inputs[0].dtype();
        if let (true, Some(float)) = (dtype.is_float(), &row.float) {
            let xs = broadcast(inputs, &shape, HostTensor::to_f64s)?;
            let ys: Vec<f64> = (0..shape.len()).map(|i| (float.reference)(&nth(&xs, i))).collect();
            return value(if output == DType::Bool {
                bools(shape, ys.iter().map(|&y| y != 0.0))
            } else {
                HostTensor::from_f64s(output, shape, &ys)
            });
        }
        if let ([x, y], Some(test)) = (inputs, row.strings.filter(|_| dtype == DType::String)) {
            let (x, y) = (broadcast_strings(x, &shape)?, broadcast_strings(y, &shape)?);
            return value(bools(shape, x.into_iter().zip(y).map(|(x, y)| test(x, y))));
        }
        let xs = broadcast(inputs, &shape, HostTensor::to_i128s)?;
        let reference = |xs: &[i128]| match (&row.int, &row.bools) {
            (Some(int), _) if dtype.is_int() => (int.reference)(xs),
            (_, Some(f)) => {
                let xs: SmallVec<[bool; 2]> = xs.iter().map(|&x| x != 0).collect();
                i128::from((f.reference)(&xs))
            }
            _ => 0,
        };
        let ys: Vec<i128> = (0..shape.len()).map(|i| reference(&nth(&xs, i))).collect();
        value(HostTensor::from_i128s(output, shape, &ys))
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        (self.0.gradient)(backward)
    }

    fn class(&self) -> Class<'_> {
        Class::Elementwise(Elementwise::Row(self.0))
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()))
    }
}

/// The elements of each input, repeated to `shape`.
pub(crate) fn broadcast<T: Copy>(
    inputs: &[HostTensor],
    shape: &Shape,
    elements: fn(&HostTensor) -> crate::Result<Vec<T>>,
) -> Result<Vec<Vec<T>>, OpError> {
    let one = |input: &HostTensor| {
        let xs = elements(input).map_err(|e| OpError::Invalid(e.message().to_owned()))?;
        let layout = Layout::packed(input.shape().clone())
            .broadcast(shape)
            .ok_or_else(|| OpError::Broadcast { lhs: input.shape().into(), rhs: shape.into() })?;
        Ok((0..shape.len()).map(|i| xs[layout.at(&shape.coords(i))]).collect())
    };
    inputs.iter().map(one).collect()
}

/// The strings of an input, repeated to `shape`.
pub(crate) fn broadcast_strings<'a>(
    input: &'a HostTensor,
    shape: &Shape,
) -> Result<Vec<&'a [u8]>, OpError> {
    let strings = input.as_strings()?;
    let layout = Layout::packed(input.shape().clone())
        .broadcast(shape)
        .ok_or_else(|| OpError::Broadcast { lhs: input.shape().into(), rhs: shape.into() })?;
    Ok((0..shape.len()).map(|i| &strings[layout.at(&shape.coords(i))][..]).collect())
}

fn nth<T: Copy>(columns: &[Vec<T>], i: usize) -> SmallVec<[T; 2]>
where
    [T; 2]: smallvec::Array<Item = T>,
{
    columns.iter().map(|xs| xs[i]).collect()
}

fn bools(shape: Shape, xs: impl Iterator<Item = bool>) -> crate::Result<HostTensor> {
    Ok(HostTensor::with_shape(shape, xs.collect())?)
}

/// The row called `name` in one of the tables.
pub(crate) fn find(table: &'static [Row], name: &str) -> RowOp {
    let row = table.iter().find(|row| row.name == name);
    RowOp(row.expect("a method names a row of its own table; a test calls every method"))
}

/// The inputs of a two-input row, broadcast sizes summed away from their gradients.
pub(crate) fn unbroadcast(
    backward: &Backward<'_>,
    grads: [Option<Tensor>; 2],
) -> Vec<Option<Tensor>> {
    let sum = |(i, grad): (usize, Option<Tensor>)| grad.map(|g| g.sum_to_like(backward.input(i)));
    grads.into_iter().enumerate().map(sum).collect()
}

/// Block functions of one expression, for a type.
macro_rules! block {
    ($kind:ident, $out:ty, |$x:ident| $body:expr) => {
        $crate::ops::Block::$kind(|a, out| {
            for (out, &$x) in out.iter_mut().zip(a[0]) {
                *out = <$out>::from($body);
            }
        })
    };
    ($kind:ident, $out:ty, |$x:ident, $y:ident| $body:expr) => {
        $crate::ops::Block::$kind(|a, out| {
            for ((out, &$x), &$y) in out.iter_mut().zip(a[0]).zip(a[1]) {
                *out = <$out>::from($body);
            }
        })
    };
}

/// The floats' column from one expression: `floats!(Same, "x + y", |x, y| x + y)`.
macro_rules! floats {
    (Test, $wgsl:expr, |$($x:ident),+| $body:expr) => {
        Some($crate::ops::FloatFns {
            reference: |a| { floats!(@bind a, $($x),+); f64::from($body) },
            f32: $crate::ops::row::block!(Test, u8, |$($x),+| $body),
            f64: $crate::ops::row::block!(Test, u8, |$($x),+| $body),
            wgsl: $wgsl,
            steps: 1,
        })
    };
    (Same, $steps:literal steps, $wgsl:expr, |$($x:ident),+| $body:expr) => {
        Some($crate::ops::FloatFns {
            reference: |a| { floats!(@bind a, $($x),+); $body },
            f32: $crate::ops::row::block!(Same, f32, |$($x),+| $body),
            f64: $crate::ops::row::block!(Same, f64, |$($x),+| $body),
            wgsl: $wgsl,
            steps: $steps,
        })
    };
    (Same, $wgsl:expr, |$($x:ident),+| $body:expr) => {
        floats!(Same, 1 steps, $wgsl, |$($x),+| $body)
    };
    (@bind $a:ident, $x:ident) => { let $x: f64 = $a[0]; };
    (@bind $a:ident, $x:ident, $y:ident) => { let ($x, $y): (f64, f64) = ($a[0], $a[1]); };
}

/// The integers' column from one expression.
macro_rules! ints {
    ($kind:ident, $wgsl:expr, |$($x:ident),+| $body:expr) => {
        Some($crate::ops::IntFns {
            reference: |a| { ints!(@bind a, $($x),+); i128::from($body) },
            i32: ints!(@block $kind, i32, |$($x),+| $body),
            u32: ints!(@block $kind, u32, |$($x),+| $body),
            i64: ints!(@block $kind, i64, |$($x),+| $body),
            u64: ints!(@block $kind, u64, |$($x),+| $body),
            wgsl: $wgsl,
        })
    };
    (@block Same, $t:ty, $($f:tt)*) => { $crate::ops::row::block!(Same, $t, $($f)*) };
    (@block Test, $t:ty, $($f:tt)*) => { $crate::ops::row::block!(Test, u8, $($f)*) };
    (@bind $a:ident, $x:ident) => { let $x: i128 = $a[0]; };
    (@bind $a:ident, $x:ident, $y:ident) => { let ($x, $y): (i128, i128) = ($a[0], $a[1]); };
}

/// The bools' column from one expression.
macro_rules! bool_fns {
    ($wgsl:expr, |$x:ident| $body:expr) => {
        Some($crate::ops::BoolFns {
            reference: |a| {
                let $x = a[0];
                $body
            },
            block: |a, out| {
                for (out, &x) in out.iter_mut().zip(a[0]) {
                    let $x = x != 0;
                    *out = u8::from($body);
                }
            },
            wgsl: $wgsl,
        })
    };
    ($wgsl:expr, |$x:ident, $y:ident| $body:expr) => {
        Some($crate::ops::BoolFns {
            reference: |a| {
                let ($x, $y) = (a[0], a[1]);
                $body
            },
            block: |a, out| {
                for ((out, &x), &y) in out.iter_mut().zip(a[0]).zip(a[1]) {
                    let ($x, $y) = (x != 0, y != 0);
                    *out = u8::from($body);
                }
            },
            wgsl: $wgsl,
        })
    };
}

pub(crate) use {block, bool_fns, floats, ints};
