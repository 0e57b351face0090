//! Kernels of groups that read strings or give some: each gives a tensor of its own, on the calling thread.

use convoke_compiler::{Arg, Fused, Group, Kernel, Program, Value};
use convoke_graph_core::ops::text;
use convoke_graph_core::{
    DType, Elementwise, Error, ErrorKind, HostTensor, Layout, OpError, Result, Shape, TextOp,
};
use smallvec::SmallVec;

use crate::walk::Walk;
use crate::{check_values, malformed, unsupported};

/// A whole value's elements.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// Of any dtype but string.
    Bytes(&'a [u8]),
    /// Byte strings.
    Strings(&'a [Vec<u8>]),
}

/// A group with strings, compiled for the CPU. Immutable, shared by threads.
pub struct StringKernel {
    run: Run,
    inputs: SmallVec<[Input; 3]>,
    shape: Shape,
}

/// What a kernel does in one run.
enum Run {
    /// What an argument has.
    Store(Source),
    /// Of the second where the first is true, else of the third.
    Select([Source; 3]),
    /// Whether two strings pass a test.
    Test(fn(&[u8], &[u8]) -> bool, [Source; 2]),
    /// For each place along the axes in front, so many rows of each input.
    Concat(usize),
    Gather(Gather),
    /// Where the elements of the input stand between empty strings.
    Pad(Walk),
    Text(TextOp),
}

/// An argument of elementwise work.
#[derive(Debug, Clone)]
enum Source {
    Input(usize),
    /// One element, repeated.
    Constant(HostTensor),
}

/// Slices along an axis of `size`, of `inner` elements each.
struct Gather {
    outer: usize,
    size: usize,
    inner: usize,
}

/// How a kernel sees a value.
struct Input {
    dtype: DType,
    len: usize,
    walk: Walk,
}

/// The elements that a kernel sees, in row-major order.
enum Seen<'a> {
    Strings(Vec<&'a [u8]>),
    Numbers(HostTensor),
}

impl StringKernel {
    /// Compiles a group.
    ///
    /// # Errors
    /// [`Unimplemented`](ErrorKind::Unimplemented) if there is no kernel for it.
    pub fn compile(program: &Program, group: &Group) -> Result<Self> {
        check_values(program, group)?;
        let &[output] = group.outputs.as_slice() else {
            return Err(malformed("string", "expected one output"));
        };
        let value = program.value(output);
        let run = match &group.kernel {
            Kernel::Elementwise(fused) => elementwise(group, fused)?,
            Kernel::Concat { axis } => concat(group, *axis, value)?,
            Kernel::Gather { axis } => gather(group, *axis, value)?,
            Kernel::Pad { before } => pad(group, before, value)?,
            Kernel::Text(op) => Run::Text(op.clone()),
            other => return Err(unsupported(&format!("the kernel {other} of strings"))),
        };
        let input = |operand: &convoke_compiler::Operand| {
            let layout = seen_by(&run, &operand.layout, &value.shape)?;
            let value = program.value(operand.value);
            Ok(Input { dtype: value.dtype, len: value.shape.len(), walk: Walk::new(&layout) })
        };
        let inputs = group.inputs.iter().map(input).collect::<Result<_>>()?;
        Ok(Self { run, inputs, shape: value.shape.clone() })
    }

    /// Computes the output from the inputs: whole values, of which each operand's layout sees a part.
    ///
    /// # Errors
    /// An index in the data that is out of range, another number of elements than the value's, or no memory.
    pub fn run(&self, inputs: &[Elements<'_>]) -> Result<HostTensor> {
        if inputs.len() != self.inputs.len() {
            return Err(Error::internal("there are not as many elements as inputs"));
        }
        let seen = self.inputs.iter().zip(inputs).map(|(input, &elements)| input.seen(elements));
        let seen: SmallVec<[Seen<'_>; 3]> = seen.collect::<Result<_>>()?;
        let n = self.shape.len();
        match &self.run {
            Run::Store(source) => self.given(source.strings(&seen, n)?.into_iter()),
            Run::Select([condition, x, y]) => {
                let chosen = condition.flags(&seen, n)?;
                let (x, y) = (x.strings(&seen, n)?, y.strings(&seen, n)?);
                let pairs = chosen.into_iter().zip(x.into_iter().zip(y));
                self.given(pairs.map(|(is_x, (x, y))| if is_x { x } else { y }))
            }
            Run::Test(test, [x, y]) => {
                let (x, y) = (x.strings(&seen, n)?, y.strings(&seen, n)?);
                let passed = x.into_iter().zip(y).map(|(x, y)| test(x, y)).collect();
                Ok(HostTensor::with_shape(self.shape.clone(), passed)?)
            }
            Run::Concat(n_outer) => self.concat(&seen, *n_outer),
            Run::Gather(gather) => match seen.as_slice() {
                [x, indices] => {
                    self.given(gather.slices(x.strings()?, indices.numbers()?)?.into_iter())
                }
                _ => Err(malformed("gather", "expected two inputs")),
            },
            Run::Pad(to) => {
                let mut all: Vec<&[u8]> = reserved(n)?;
                all.resize(n, &[]);
                let strings = seen.first().map_or(Ok(&[][..]), Seen::strings)?;
                for (place, string) in places(to)?.into_iter().zip(strings) {
                    all[place] = string;
                }
                self.given(all.into_iter())
            }
            Run::Text(op) => self.text(op, &seen),
        }
    }

    fn text(&self, op: &TextOp, seen: &[Seen<'_>]) -> Result<HostTensor> {
        let (n, shape) = (self.shape.len(), self.shape.clone());
        let x = input(seen, 0)?;
        match op {
            TextOp::Join { separator } => {
                let all: Vec<&[&[u8]]> = seen.iter().map(Seen::strings).collect::<Result<_>>()?;
                let mut row = Vec::with_capacity(all.len());
                self.made(|i| {
                    row.clear();
                    row.extend(all.iter().map(|strings| strings[i]));
                    joined(&row, separator.as_bytes())
                })
            }
            TextOp::ReduceJoin { separator, .. } => {
                let strings = x.strings()?;
                let len = strings.len() / n.max(1);
                self.made(|i| joined(&strings[i * len..][..len], separator.as_bytes()))
            }
            TextOp::AsString => HostTensor::strings(shape.dims(), text::written(x.numbers()?)?),
            TextOp::ToNumber(dtype) => Ok(text::read(x.strings()?, *dtype, shape)?),
            TextOp::Length => {
                let lengths = x.strings()?.iter().map(|string| text::length(string));
                Ok(HostTensor::with_shape(shape, lengths.collect::<Result<Vec<i32>, _>>()?)?)
            }
            TextOp::Substr => {
                let [pos, len] = [input(seen, 1)?, input(seen, 2)?];
                let (pos, len) = (pos.numbers()?.to_i128s()?, len.numbers()?.to_i128s()?);
                let all = x.strings()?.iter().copied().zip(pos.into_iter().zip(len)).enumerate();
                let part = |(at, (string, (pos, len)))| text::part(string, pos, len, at);
                let parts = all.map(part).collect::<Result<Vec<&[u8]>, _>>()?;
                self.given(parts.into_iter())
            }
            other => Err(unsupported(&format!("{other:?}"))),
        }
    }

    /// The output, of strings that are made.
    fn made(&self, mut string: impl FnMut(usize) -> Result<Vec<u8>>) -> Result<HostTensor> {
        let mut all = reserved(self.shape.len())?;
        for i in 0..self.shape.len() {
            all.push(string(i)?);
        }
        HostTensor::strings(self.shape.dims(), all)
    }

    /// The output, of copies of strings.
    fn given<'a>(&self, strings: impl ExactSizeIterator<Item = &'a [u8]>) -> Result<HostTensor> {
        let mut own: Vec<Vec<u8>> = reserved(strings.len())?;
        for string in strings {
            let mut copy = reserved(string.len())?;
            copy.extend_from_slice(string);
            own.push(copy);
        }
        HostTensor::strings(self.shape.dims(), own)
    }

    fn concat(&self, seen: &[Seen<'_>], n_outer: usize) -> Result<HostTensor> {
        let inputs: Vec<&[&[u8]]> = seen.iter().map(Seen::strings).collect::<Result<_>>()?;
        let mut all: Vec<&[u8]> = reserved(self.shape.len())?;
        for outer in 0..if self.shape.is_empty() { 0 } else { n_outer } {
            for strings in &inputs {
                let row = strings.len() / n_outer;
                all.extend_from_slice(&strings[outer * row..][..row]);
            }
        }
        self.given(all.into_iter())
    }
}

impl std::fmt::Debug for StringKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StringKernel").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Input {
    fn seen<'a>(&self, elements: Elements<'a>) -> Result<Seen<'a>> {
        let misfit = || Error::internal("elements differ in number or dtype from their value");
        let n_bytes = self.dtype.n_bytes();
        match elements {
            Elements::Strings(strings) => {
                if self.dtype != DType::String || strings.len() != self.len {
                    return Err(misfit());
                }
                let seen = places(&self.walk)?.into_iter().map(|at| &strings[at][..]);
                Ok(Seen::Strings(seen.collect()))
            }
            Elements::Bytes(bytes) => {
                if self.dtype == DType::String || bytes.len() != self.len * n_bytes {
                    return Err(misfit());
                }
                let shape = Shape::new(&[self.walk.len()])?;
                let mut own: Vec<u8> = reserved(shape.len() * n_bytes)?;
                for at in places(&self.walk)? {
                    own.extend_from_slice(&bytes[at * n_bytes..][..n_bytes]);
                }
                HostTensor::copy_of(self.dtype, shape, &own).map(Seen::Numbers)
            }
        }
    }
}

impl<'a> Seen<'a> {
    fn strings(&self) -> Result<&[&'a [u8]]> {
        match self {
            Self::Strings(strings) => Ok(strings),
            Self::Numbers(_) => Err(malformed("string", "expected strings")),
        }
    }

    fn numbers(&self) -> Result<&HostTensor> {
        match self {
            Self::Numbers(tensor) => Ok(tensor),
            Self::Strings(_) => Err(malformed("string", "expected numbers")),
        }
    }
}

impl Source {
    fn of(fused: &Fused, arg: Arg) -> Result<Self> {
        match arg {
            Arg::Input(at) => Ok(Self::Input(at as usize)),
            Arg::Constant(at) => {
                let constant = fused.constants.get(at as usize).cloned();
                constant.map(Self::Constant).ok_or_else(|| malformed("string", "a constant lacks"))
            }
            Arg::Instr(_) => Err(malformed("string", "expected one operation")),
        }
    }

    /// The `n` strings.
    fn strings<'a>(&'a self, seen: &[Seen<'a>], n: usize) -> Result<Vec<&'a [u8]>> {
        match self {
            Self::Input(at) => Ok(input(seen, *at)?.strings()?.to_vec()),
            Self::Constant(tensor) => {
                let one = tensor.as_strings()?.first().map_or(&[][..], |string| string);
                let mut all = reserved(n)?;
                all.resize(n, one);
                Ok(all)
            }
        }
    }

    /// The `n` bools.
    fn flags(&self, seen: &[Seen<'_>], n: usize) -> Result<Vec<bool>> {
        match self {
            Self::Input(at) => input(seen, *at)?.numbers()?.to_vec(),
            Self::Constant(tensor) => Ok(vec![tensor.scalar()?; n]),
        }
    }
}

impl Gather {
    fn slices<'a>(&self, strings: &[&'a [u8]], indices: &HostTensor) -> Result<Vec<&'a [u8]>> {
        let row = |(position, index): (usize, i128)| {
            let row = usize::try_from(index).ok().filter(|&row| row < self.size);
            row.ok_or_else(|| {
                let index = i64::try_from(index).unwrap_or(i64::MAX);
                OpError::Index { index, position, size: self.size }
            })
        };
        let rows = indices.to_i128s()?.into_iter().enumerate().map(row);
        let rows: Vec<usize> = rows.collect::<Result<_, _>>()?;
        let n = rows.len().saturating_mul(self.outer).saturating_mul(self.inner);
        let mut all = reserved(n)?;
        for outer in 0..if n == 0 { 0 } else { self.outer } {
            for row in &rows {
                let begin = (outer * self.size + row) * self.inner;
                all.extend_from_slice(&strings[begin..][..self.inner]);
            }
        }
        Ok(all)
    }
}

/// How a kernel sees an operand: repeated to the output, the axes that are joined behind, or as it is.
fn seen_by(run: &Run, layout: &Layout, output: &Shape) -> Result<Layout> {
    match run {
        Run::Text(TextOp::Join { .. } | TextOp::Substr) => {
            layout.broadcast(output).ok_or_else(|| {
                malformed("string", &format!("{} does not broadcast to {output}", layout.shape()))
            })
        }
        Run::Text(TextOp::ReduceJoin { axes, .. }) => Ok(TextOp::turned(axes, layout)?),
        _ => Ok(layout.clone()),
    }
}

/// Strings one after the other.
fn joined(strings: &[&[u8]], separator: &[u8]) -> Result<Vec<u8>> {
    let between = separator.len().saturating_mul(strings.len().saturating_sub(1));
    let mut all =
        reserved(strings.iter().map(|string| string.len()).fold(between, usize::saturating_add))?;
    for (i, string) in strings.iter().enumerate() {
        if i > 0 {
            all.extend_from_slice(separator);
        }
        all.extend_from_slice(string);
    }
    Ok(all)
}

fn input<'s, 'a>(seen: &'s [Seen<'a>], at: usize) -> Result<&'s Seen<'a>> {
    seen.get(at).ok_or_else(|| malformed("string", "an input lacks"))
}

/// The place of each element of a walk.
fn places(walk: &Walk) -> Result<Vec<usize>> {
    let n = walk.len();
    let mut all = reserved(n)?;
    walk.runs(&mut walk.start(0), n, |at, stride, len| {
        all.extend((0..len).map(|i| at.wrapping_add_signed(i as isize * stride)));
    });
    Ok(all)
}

/// An empty vector with room for so many.
fn reserved<T>(n: usize) -> Result<Vec<T>> {
    let mut all = Vec::new();
    all.try_reserve_exact(n).map_err(|_| {
        let message = format!("no host memory for {n} strings or bytes; use smaller tensors");
        Error::new(ErrorKind::ResourceExhausted, message)
    })?;
    Ok(all)
}

/// One elementwise operation: strings are never fused.
fn elementwise(group: &Group, fused: &Fused) -> Result<Run> {
    let seen = |operand: &convoke_compiler::Operand| *operand.layout.shape() == fused.shape;
    if !group.inputs.iter().all(seen) {
        return Err(malformed("string", "inputs of another shape"));
    }
    let source = |arg| Source::of(fused, arg);
    match (fused.instrs.as_slice(), fused.stores.as_slice()) {
        ([], &[stored]) => Ok(Run::Store(source(stored)?)),
        ([instr], [Arg::Instr(0)]) => match (instr.op, instr.args.as_slice()) {
            (Elementwise::Select, &[condition, x, y]) => {
                Ok(Run::Select([source(condition)?, source(x)?, source(y)?]))
            }
            (Elementwise::Row(row), &[x, y]) => match row.strings {
                Some(test) => Ok(Run::Test(test, [source(x)?, source(y)?])),
                None => Err(unsupported(&format!("{} of strings", row.name))),
            },
            (op, _) => Err(unsupported(&format!("{op:?} of strings"))),
        },
        _ => Err(malformed("string", "expected one operation")),
    }
}

fn concat(group: &Group, axis: usize, value: &Value) -> Result<Run> {
    let dims = value.shape.dims();
    let wrong = || malformed("concat", &format!("axis {axis} of {dims:?}"));
    let n_outer: usize = dims.get(..axis).ok_or_else(wrong)?.iter().product();
    let shapes = group.inputs.iter().map(|operand| operand.layout.shape());
    let fits = shapes.clone().all(|shape| shape.dims().get(..axis) == dims.get(..axis));
    if !fits || shapes.map(Shape::len).sum::<usize>() != value.shape.len() {
        return Err(wrong());
    }
    Ok(Run::Concat(n_outer))
}

fn gather(group: &Group, axis: usize, value: &Value) -> Result<Run> {
    let [x, indices] = group.inputs.as_slice() else {
        return Err(malformed("gather", "expected two inputs"));
    };
    let (dims, seen) = (x.layout.shape().dims(), indices.layout.shape().dims());
    let (Some(&size), Some(front)) = (dims.get(axis), dims.get(..axis)) else {
        return Err(malformed("gather", &format!("axis {axis} of {dims:?}")));
    };
    let behind = &dims[axis + 1..];
    if value.shape.dims() != [front, seen, behind].concat() {
        return Err(malformed("gather", &format!("{dims:?} at {seen:?} to {}", value.shape)));
    }
    let (outer, inner) = (front.iter().product(), behind.iter().product());
    Ok(Run::Gather(Gather { outer, size, inner }))
}

fn pad(group: &Group, before: &[usize], value: &Value) -> Result<Run> {
    let [x] = group.inputs.as_slice() else {
        return Err(malformed("pad", "expected one input"));
    };
    let sizes = x.layout.shape().dims();
    let steps: SmallVec<[isize; 6]> = sizes.iter().map(|_| 1).collect();
    let inside = (before.len() == sizes.len() && sizes.len() == value.shape.rank())
        .then(|| Layout::packed(value.shape.clone()).slice(before, sizes, &steps))
        .flatten();
    let wrong = || malformed("pad", &format!("{sizes:?} at {before:?} of {}", value.shape));
    Ok(Run::Pad(Walk::new(&inside.ok_or_else(wrong)?)))
}
