//! What is made of strings, and of numbers as strings: joins, lengths, parts, and conversions.
//!
//! Strings are bytes; nothing asks for UTF-8. Semantics: TensorFlow 1's `string_join_op.cc`, `reduce_join_op.cc`,
//! `as_string_op.cc`, `string_to_number_op.cc`, `string_length_op.cc` and `substr_op.cc`.

use std::str::FromStr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::{arity, axis_mask, one, output_shape, resolve_axis, value};
use crate::ops::control::Refused;
use crate::ops::reduce::IntoAxes;
use crate::ops::registry::Decode;
use crate::ops::row::{broadcast, broadcast_strings};
use crate::{
    Attributes, Backward, Class, DType, Dim, Dims, Fact, Graph, HostTensor, IntoTensor, Layout, Op,
    OpError, ReduceAxes, Shape, Tensor,
};

/// What is done with strings.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TextOp {
    /// The strings of all inputs at a place, one after the other.
    Join {
        /// What stands between two.
        separator: String,
    },
    /// Strings along axes, one after the other.
    ReduceJoin {
        /// The axes; along the first, strings are nearest to each other.
        axes: ReduceAxes,
        /// Whether a reduced axis stays, with size 1.
        keep_dims: bool,
        /// What stands between two.
        separator: String,
    },
    /// Numbers as they are written.
    AsString,
    /// Numbers that are written.
    ToNumber(DType),
    /// How many bytes there are.
    Length,
    /// From a place on, so many bytes: inputs strings, places, lengths.
    Substr,
}

impl Graph {
    /// The strings of some tensors, joined place by place, with `separator` between two.
    ///
    /// # Shapes
    /// All `[..]` or scalars, which are repeated → `[..]`.
    ///
    /// # Errors
    /// Recorded: no tensors, shapes that differ, or what is no string.
    ///
    /// # Source
    /// TensorFlow's `tf.string_join`.
    #[track_caller]
    pub fn string_join(&self, tensors: &[&Tensor], separator: &str) -> Tensor {
        if tensors.is_empty() {
            let reason = OpError::Invalid("string_join needs at least one tensor".into());
            return self.apply(Refused(reason), &[]);
        }
        self.apply(TextOp::Join { separator: separator.to_owned() }, tensors)
    }
}

impl Tensor {
    /// The strings along `axes` joined to one, with `separator` between two; of nothing, the empty string. Of several
    /// axes the first is gone along first, so that `[1, 0]` reads a matrix row by row; all axes, `()`, are taken in
    /// this order, the last first. Reduced axes are left out, or stay with size 1 if `keep_dims`.
    ///
    /// # Errors
    /// Recorded: an axis that is out of range or given twice, or what is no string.
    ///
    /// # Source
    /// TensorFlow's `tf.reduce_join`.
    #[track_caller]
    pub fn reduce_join(&self, axes: impl IntoAxes, keep_dims: bool, separator: &str) -> Tensor {
        let (axes, separator) = (axes.into_axes(), separator.to_owned());
        self.apply(TextOp::ReduceJoin { axes, keep_dims, separator }, &[self])
    }

    /// Each number as a string: an integer by its digits, a float by C's `%f` with six digits behind the point, `inf`,
    /// `-inf` or `nan`, and a bool as `true` or `false`.
    ///
    /// # Errors
    /// Recorded: what is a string.
    ///
    /// # Source
    /// TensorFlow's `tf.as_string`, without options.
    #[track_caller]
    pub fn as_string(&self) -> Tensor {
        self.apply(TextOp::AsString, &[self])
    }

    /// The number that each string is: decimal digits, for floats with a point and an exponent or `inf` or `nan` in any
    /// case, and blanks around it. Integers are i32 or i64, floats f32 or f64, rounded to the nearest.
    ///
    /// # Errors
    /// Recorded: another dtype, or what is no string. In a run: a string that is no such number, or an integer that
    /// is out of range; a float that is too large is infinite.
    ///
    /// # Source
    /// TensorFlow's `tf.string_to_number`, which also takes hexadecimal floats.
    #[track_caller]
    pub fn string_to_number(&self, dtype: DType) -> Tensor {
        self.apply(TextOp::ToNumber(dtype), &[self])
    }

    /// The number of bytes of each string, as i32.
    ///
    /// # Errors
    /// Recorded: what is no string.
    ///
    /// # Source
    /// TensorFlow's `tf.strings.length`, of bytes.
    #[track_caller]
    pub fn string_length(&self) -> Tensor {
        self.apply(TextOp::Length, &[self])
    }

    /// Of each string, from byte `pos` on, `len` bytes or as many as there are. A negative `pos` counts from the end.
    ///
    /// # Shapes
    /// Strings, places and lengths broadcast; places and lengths are integers of one dtype.
    ///
    /// # Errors
    /// Recorded: other dtypes. In a run: a place that is outside of its string (its end is inside), or a negative
    /// length.
    ///
    /// # Source
    /// TensorFlow's `tf.substr`, of bytes, where a negative length is as a great one.
    #[track_caller]
    pub fn substr(&self, pos: impl IntoTensor, len: impl IntoTensor) -> Tensor {
        let pos = pos.into_tensor(self);
        let len = len.into_tensor(&pos);
        self.apply(TextOp::Substr, &[self, &pos, &len])
    }
}

impl TextOp {
    /// Whether what the data holds can fail it.
    pub fn can_fail(&self) -> bool {
        matches!(self, Self::ToNumber(_) | Self::Substr | Self::Length)
    }

    /// The axes of a join of a tensor of `rank`, the outermost of what is joined first.
    ///
    /// # Errors
    /// An axis that is out of range or given twice.
    pub fn joined(axes: &ReduceAxes, rank: usize) -> Result<Vec<usize>, OpError> {
        match axes {
            ReduceAxes::List(axes) => {
                axis_mask(axes, rank)?;
                axes.iter().rev().map(|&axis| resolve_axis(axis, rank)).collect()
            }
            ReduceAxes::All | ReduceAxes::ToShape => Ok((0..rank).collect()),
        }
    }

    /// `layout` with the axes that stay in front, then those that are joined.
    ///
    /// # Errors
    /// As [`Self::joined`].
    pub fn turned(axes: &ReduceAxes, layout: &Layout) -> Result<Layout, OpError> {
        let rank = layout.shape().rank();
        let joined = Self::joined(axes, rank)?;
        let mut all: Vec<usize> = (0..rank).filter(|axis| !joined.contains(axis)).collect();
        all.extend(joined);
        let misfit = || OpError::Invalid(format!("{all:?} are not the axes of rank {rank}"));
        layout.permute(&all).ok_or_else(misfit)
    }

    fn dims(&self, inputs: &[Fact]) -> Result<Dims, OpError> {
        match self {
            Self::Join { .. } => joined_dims(inputs),
            Self::ReduceJoin { axes, keep_dims, .. } => reduced_dims(axes, *keep_dims, &inputs[0]),
            Self::Substr => inputs[0].dims.broadcast(&inputs[1].dims)?.broadcast(&inputs[2].dims),
            Self::AsString | Self::ToNumber(_) | Self::Length => Ok(inputs[0].dims.clone()),
        }
    }
}

/// Scalars are repeated to the shape of the others.
fn joined_dims(inputs: &[Fact]) -> Result<Dims, OpError> {
    let mut all: Option<Dims> = None;
    for input in inputs.iter().filter(|input| input.dims.rank().is_some_and(|rank| rank > 0)) {
        all = Some(match all {
            Some(all) => all.unify(&input.dims)?,
            None => input.dims.clone(),
        });
    }
    let may_be_more = inputs.iter().any(|input| input.dims.rank().is_none());
    let scalar = if may_be_more { Dims::UnknownRank } else { Dims::from(&[][..]) };
    Ok(all.unwrap_or(scalar))
}

fn reduced_dims(axes: &ReduceAxes, keep_dims: bool, input: &Fact) -> Result<Dims, OpError> {
    let Some(dims) = input.dims.dims() else {
        let is_scalar = *axes == ReduceAxes::All && !keep_dims;
        return Ok(if is_scalar { Dims::from(&[][..]) } else { Dims::UnknownRank });
    };
    let joined = TextOp::joined(axes, dims.len())?;
    let left = dims.iter().enumerate().filter_map(|(axis, &dim)| {
        match (joined.contains(&axis), keep_dims) {
            (false, _) => Some(dim),
            (true, true) => Some(Dim::Known(1)),
            (true, false) => None,
        }
    });
    Ok(left.collect())
}

impl Op for TextOp {
    fn name(&self) -> &str {
        match self {
            Self::Join { .. } => "string_join",
            Self::ReduceJoin { .. } => "reduce_join",
            Self::AsString => "as_string",
            Self::ToNumber(_) => "string_to_number",
            Self::Length => "string_length",
            Self::Substr => "substr",
        }
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let (what, is_string): (_, fn(DType) -> bool) =
            ("an operation on strings", |dtype| dtype == DType::String);
        let dtype = match self {
            Self::Join { .. } => {
                inputs.first().ok_or(OpError::Arity { expected: 1, found: 0 })?;
                inputs.iter().try_for_each(|input| input.expect(what, "strings", is_string))?;
                DType::String
            }
            Self::AsString => {
                let [x] = arity(inputs)?;
                x.expect("as_string", "numbers or bool", |dtype| dtype != DType::String)?;
                DType::String
            }
            Self::Substr => {
                let [x, pos, len] = arity(inputs)?;
                x.expect(what, "strings", is_string)?;
                pos.expect("substr's place", "integers", DType::is_int)?;
                if pos.dtype != len.dtype {
                    return Err(OpError::DTypes { lhs: pos.dtype, rhs: len.dtype });
                }
                DType::String
            }
            Self::ReduceJoin { .. } | Self::ToNumber(_) | Self::Length => {
                let [x] = arity(inputs)?;
                x.expect(what, "strings", is_string)?;
                match *self {
                    Self::ToNumber(to) => number_dtype(to)?,
                    Self::Length => DType::I32,
                    _ => DType::String,
                }
            }
        };
        one(Fact::new(dtype, self.dims(inputs)?.checked()?))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let (_, shape) = output_shape(self, inputs)?;
        let x = &inputs[0];
        let strings = match self {
            Self::Join { separator } => {
                let all: Vec<Vec<&[u8]>> = inputs
                    .iter()
                    .map(|x| broadcast_strings(x, &shape))
                    .collect::<Result<_, _>>()?;
                let at = |i: usize| all.iter().map(|strings| strings[i]).collect::<Vec<_>>();
                (0..shape.len()).map(|i| at(i).join(separator.as_bytes())).collect()
            }
            Self::ReduceJoin { axes, separator, .. } => {
                let own = x.as_strings()?;
                let layout = Self::turned(axes, &Layout::packed(x.shape().clone()))?;
                let n = x.len() / shape.len().max(1);
                let at = |i: usize| &own[layout.at(&layout.shape().coords(i))][..];
                let row = |i: usize| (i * n..(i + 1) * n).map(at).collect::<Vec<_>>();
                (0..shape.len()).map(|i| row(i).join(separator.as_bytes())).collect()
            }
            Self::AsString => written(x)?,
            Self::ToNumber(dtype) => {
                let all: Vec<&[u8]> = x.as_strings()?.iter().map(|string| &string[..]).collect();
                return value(read(&all, *dtype, shape));
            }
            Self::Length => {
                let lengths = x.as_strings()?.iter().map(|string| length(string));
                return value(HostTensor::with_shape(shape, lengths.collect::<Result<_, _>>()?));
            }
            Self::Substr => {
                let own = broadcast_strings(x, &shape)?;
                let places = broadcast(&inputs[1..], &shape, HostTensor::to_i128s)?;
                let part =
                    |i: usize| part(own[i], places[0][i], places[1][i], i).map(<[u8]>::to_vec);
                (0..shape.len()).map(part).collect::<Result<Vec<_>, _>>()?
            }
        };
        value(HostTensor::strings(shape.dims(), strings))
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None; backward.n_inputs()]
    }

    fn class(&self) -> Class<'_> {
        Class::Text(self)
    }

    fn encode(&self) -> Option<Attributes> {
        let attributes = Attributes::of(self.name());
        Some(match self {
            Self::Join { separator } => attributes.with("separator", separator.as_str()),
            Self::ReduceJoin { axes, keep_dims, separator } => {
                let axes = match axes {
                    ReduceAxes::List(axes) => Some(axes.to_vec()),
                    ReduceAxes::All | ReduceAxes::ToShape => None,
                };
                let attributes = attributes.with_some("axes", axes).with("keep_dims", *keep_dims);
                attributes.with("separator", separator.as_str())
            }
            Self::ToNumber(dtype) => attributes.with("dtype", *dtype),
            Self::AsString | Self::Length | Self::Substr => attributes,
        })
    }
}

/// The dtypes that strings are read as.
fn number_dtype(dtype: DType) -> Result<DType, OpError> {
    match dtype {
        DType::F32 | DType::F64 | DType::I32 | DType::I64 => Ok(dtype),
        other => {
            Err(OpError::Unsupported(format!("strings as {other}; read f32, f64, i32 or i64")))
        }
    }
}

/// Each element of a tensor of numbers or bools, as it is written.
///
/// # Errors
/// Its elements are strings.
pub fn written(tensor: &HostTensor) -> Result<Vec<Vec<u8>>, OpError> {
    if tensor.dtype() == DType::Bool {
        let flags = tensor.as_slice::<bool>()?.iter();
        return Ok(flags.map(|flag| flag.to_string().into_bytes()).collect());
    }
    if tensor.dtype().is_float() {
        return Ok(tensor.to_f64s()?.into_iter().map(|x| decimal(x).into_bytes()).collect());
    }
    Ok(tensor.to_i128s()?.into_iter().map(|x| x.to_string().into_bytes()).collect())
}

/// A float as C's `%f` writes it.
fn decimal(x: f64) -> String {
    match (x.is_nan(), x.is_infinite(), x.is_sign_negative()) {
        (true, ..) => "nan".to_owned(),
        (_, true, true) => "-inf".to_owned(),
        (_, true, false) => "inf".to_owned(),
        _ => format!("{x:.6}"),
    }
}

/// The number that some bytes are, with blanks around it.
pub fn parse_number<T: FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes.trim_ascii()).ok()?.parse().ok()
}

/// The numbers that strings are.
///
/// # Errors
/// A string that is none, with its place.
pub fn read(strings: &[&[u8]], dtype: DType, shape: Shape) -> Result<HostTensor, OpError> {
    fn all<T: FromStr + crate::Element>(
        strings: &[&[u8]],
        shape: Shape,
    ) -> Result<HostTensor, OpError> {
        let number = |(at, string): (usize, &&[u8])| {
            parse_number::<T>(string).ok_or_else(|| {
                let (dtype, shown) = (T::DTYPE, shown(string));
                OpError::Invalid(format!(
                    "expected a number of {dtype}, got {shown:?} at place {at}"
                ))
            })
        };
        HostTensor::with_shape(
            shape,
            strings.iter().enumerate().map(number).collect::<Result<_, _>>()?,
        )
    }
    match number_dtype(dtype)? {
        DType::F32 => all::<f32>(strings, shape),
        DType::F64 => all::<f64>(strings, shape),
        DType::I32 => all::<i32>(strings, shape),
        _ => all::<i64>(strings, shape),
    }
}

/// The number of bytes.
///
/// # Errors
/// There are more than an i32 counts.
pub fn length(string: &[u8]) -> Result<i32, OpError> {
    i32::try_from(string.len()).map_err(|_| {
        OpError::Invalid(format!("a string has {} bytes, more than {}", string.len(), i32::MAX))
    })
}

/// From byte `pos` on, `len` bytes or as many as there are, of the string at place `at`.
///
/// # Errors
/// `pos` is outside, or `len` is negative.
pub fn part(string: &[u8], pos: i128, len: i128, at: usize) -> Result<&[u8], OpError> {
    let size = string.len() as i128;
    let begin = if pos < 0 { size + pos } else { pos };
    let rest = usize::try_from(begin).ok().and_then(|begin| string.get(begin..));
    let rest = rest.ok_or_else(|| OpError::Range {
        what: "the first byte",
        value: i64::try_from(pos).unwrap_or(i64::MAX),
        expected: format!("from -{size} to {size}, of the string at place {at}"),
    })?;
    let len = usize::try_from(len).map_err(|_| OpError::Range {
        what: "the length",
        value: i64::try_from(len).unwrap_or(i64::MAX),
        expected: format!("at least 0, of the string at place {at}"),
    })?;
    Ok(&rest[..len.min(rest.len())])
}

/// As much of a string as a message should show.
pub fn shown(string: &[u8]) -> String {
    const SHOWN: usize = 64;
    match string.get(..SHOWN) {
        Some(start) if string.len() > SHOWN => {
            format!("{}... ({} bytes)", String::from_utf8_lossy(start), string.len())
        }
        _ => String::from_utf8_lossy(string).into_owned(),
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[
    ("string_join", |a| Ok(Arc::new(TextOp::Join { separator: a.text("separator")?.to_owned() }))),
    ("reduce_join", |a| {
        let axes = match a.get("axes") {
            None => ReduceAxes::All,
            Some(_) => ReduceAxes::List(a.ints("axes")?.into()),
        };
        let (keep_dims, separator) = (a.bool("keep_dims")?, a.text("separator")?.to_owned());
        Ok(Arc::new(TextOp::ReduceJoin { axes, keep_dims, separator }))
    }),
    ("as_string", |_| Ok(Arc::new(TextOp::AsString))),
    ("string_to_number", |a| Ok(Arc::new(TextOp::ToNumber(number_dtype(a.dtype("dtype")?)?)))),
    ("string_length", |_| Ok(Arc::new(TextOp::Length))),
    ("substr", |_| Ok(Arc::new(TextOp::Substr))),
];
