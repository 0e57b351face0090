//! Elements that go to other places: pad, concat, gather, and its gradient, scatter-add.
//!
//! Copies are of runs of bytes, by the size of an element, whatever its type.

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use convoke_compiler::{Group, Operand, Program};
use convoke_graph_core::{DType, Layout, OpError, Result, Shape};
use smallvec::SmallVec;

use crate::elements::Stored;
use crate::malformed;
use crate::threads::Threads;
use crate::walk::{Walk, copy_run};

/// Evaluates an expression with `$T` an unsigned type of so many bytes.
macro_rules! with_size {
    ($n_bytes:expr, $T:ident => $body:expr) => {{
        macro_rules! arm {
            ($t:ty) => {{
                type $T = $t;
                $body
            }};
        }
        match $n_bytes {
            1 => arm!(u8),
            2 => arm!(u16),
            4 => arm!(u32),
            _ => arm!(u64),
        }
    }};
}

/// A copy from one layout to another of the same shape, run by run of the last axis.
struct Copy {
    n_bytes: usize,
    /// The places of the elements read.
    from: Walk,
    /// The places of the first element of each run written, and the length of a run.
    to: Walk,
    run: usize,
}

impl Copy {
    /// From `from` to a packed part of a value.
    fn new(dtype: DType, from: &Layout, to: &Layout) -> Self {
        let packed = Walk::new(to);
        // What is packed on both sides of the last axes is one run.
        let (&run, lead) = packed.dims().split_last().unwrap_or((&1, &[]));
        let lead_strides = &packed.strides()[..lead.len()];
        let (run, to) = if packed.inner_stride() == 1 {
            (run, Walk::of_axes(lead, lead_strides, to.offset()))
        } else {
            (1, packed)
        };
        Self { n_bytes: dtype.n_bytes(), from: Walk::new(from), to, run }
    }

    fn run(&self, from: &[u8], to: &mut [u8]) {
        if self.from.len() > 0 {
            with_size!(self.n_bytes, T => self.copy::<T>(cast_slice(from), cast_slice_mut(to)));
        }
    }

    fn copy<T: Pod>(&self, from: &[T], to: &mut [T]) {
        let (mut read, mut write) = (self.from.start(0), self.to.start(0));
        self.to.runs(&mut write, self.to.len(), |first, stride, n_runs| {
            for i in 0..n_runs {
                let at = first.wrapping_add_signed(i as isize * stride);
                let out = &mut to[at..][..self.run];
                let mut done = 0;
                self.from.runs(&mut read, self.run, |at, stride, len| {
                    copy_run(from, at, stride, &mut out[done..][..len]);
                    done += len;
                });
            }
        });
    }
}

fn part(shape: &Shape, starts: &[usize], sizes: &[usize]) -> Result<Layout> {
    let steps: SmallVec<[isize; 6]> = sizes.iter().map(|_| 1).collect();
    let inside = (starts.len() == shape.rank() && sizes.len() == shape.rank())
        .then(|| Layout::packed(shape.clone()).slice(starts, sizes, &steps))
        .flatten();
    inside.ok_or_else(|| malformed("move", &format!("{sizes:?} at {starts:?} of {shape}")))
}

/// An input inside of zeros.
pub(crate) struct Pad {
    copy: Copy,
    /// Whether zeros remain around it.
    has_zeros: bool,
}

impl Pad {
    /// Compiles a group.
    pub fn compile(program: &Program, group: &Group, before: &[usize]) -> Result<Self> {
        let (operands, value) = operands::<1>(program, group, "pad")?;
        let from = &operands[0].layout;
        same_dtype(program, &[operands[0]], value.dtype)?;
        let to = part(&value.shape, before, from.shape().dims())?;
        let has_zeros = from.shape().len() != value.shape.len();
        Ok(Self { copy: Copy::new(value.dtype, from, &to), has_zeros })
    }

    /// Computes the group.
    pub fn run(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<()> {
        if self.has_zeros {
            outputs[0].fill(0);
        }
        self.copy.run(inputs[0], outputs[0]);
        Ok(())
    }
}

/// The inputs one after the other.
pub(crate) struct Concat {
    copies: Vec<Copy>,
}

impl Concat {
    /// Compiles a group.
    pub fn compile(program: &Program, group: &Group, axis: usize) -> Result<Self> {
        let [output] = group.outputs.as_slice() else {
            return Err(malformed("concat", "expected one output"));
        };
        let value = program.value(*output);
        let mut starts: SmallVec<[usize; 6]> = value.shape.dims().iter().map(|_| 0).collect();
        let mut copies = Vec::new();
        for operand in &group.inputs {
            same_dtype(program, &[operand], value.dtype)?;
            let sizes = operand.layout.shape().dims();
            let to = part(&value.shape, &starts, sizes)?;
            copies.push(Copy::new(value.dtype, &operand.layout, &to));
            match (starts.get_mut(axis), sizes.get(axis)) {
                (Some(start), Some(size)) => *start += size,
                _ => return Err(malformed("concat", &format!("axis {axis} of {sizes:?}"))),
            }
        }
        if starts.get(axis) != value.shape.dims().get(axis) {
            return Err(malformed("concat", "the inputs do not fill the output"));
        }
        Ok(Self { copies })
    }

    /// Computes the group.
    pub fn run(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<()> {
        for (copy, input) in self.copies.iter().zip(inputs) {
            copy.run(input, outputs[0]);
        }
        Ok(())
    }
}

/// Indices as the kernels read them.
struct Indices {
    walk: Walk,
    dtype: DType,
    /// The size of the axis that they index.
    size: usize,
}

impl Indices {
    fn new(program: &Program, operand: &Operand, size: usize) -> Result<Self> {
        let dtype = program.value(operand.value).dtype;
        if !dtype.is_int() {
            return Err(malformed("gather", &format!("indices of {dtype}")));
        }
        Ok(Self { walk: Walk::new(&operand.layout), dtype, size })
    }

    /// The bytes that [`Self::read`] fills.
    fn n_bytes(&self) -> usize {
        self.walk.len() * size_of::<u64>()
    }

    /// All indices, or the first that is out of range.
    fn read(&self, input: &[u8], out: &mut [u8]) -> Result<()> {
        let out: &mut [u64] = cast_slice_mut(out);
        let mut first_bad = None;
        let mut done = 0;
        macro_rules! read {
            ($t:ty) => {{
                let xs: &[$t] = cast_slice(input);
                self.walk.runs(&mut self.walk.start(0), out.len(), |at, stride, len| {
                    let places = (0..len).map(|i| at.wrapping_add_signed(i as isize * stride));
                    for (out, place) in out[done..][..len].iter_mut().zip(places) {
                        let x = xs[place];
                        *out = usize::try_from(x).unwrap_or(usize::MAX) as u64;
                        if *out >= self.size as u64 && first_bad.is_none() {
                            first_bad = Some((done, i64::try_from(x).unwrap_or(i64::MAX)));
                        }
                        done += 1;
                    }
                });
            }};
        }
        match self.dtype {
            DType::I8 => read!(i8),
            DType::U8 => read!(u8),
            DType::I16 => read!(i16),
            DType::U16 => read!(u16),
            DType::I32 => read!(i32),
            DType::U32 => read!(u32),
            DType::I64 => read!(i64),
            _ => read!(u64),
        }
        match first_bad {
            Some((position, index)) => {
                Err(OpError::Index { index, position, size: self.size }.into())
            }
            None => Ok(()),
        }
    }
}

/// Slices at indices along an axis.
pub(crate) struct Gather {
    indices: Indices,
    n_bytes: usize,
    /// The axes in front.
    outer: Walk,
    /// The step along the axis.
    stride: isize,
    /// One slice, its offset left out.
    inner: Walk,
    len: usize,
}

impl Gather {
    /// Compiles a group.
    pub fn compile(program: &Program, group: &Group, axis: usize) -> Result<Self> {
        let ([x, indices], value) = operands::<2>(program, group, "gather")?;
        same_dtype(program, &[x], value.dtype)?;
        let (dims, strides) = (x.layout.shape().dims(), x.layout.strides());
        if axis >= dims.len() {
            return Err(malformed("gather", &format!("axis {axis} of {dims:?}")));
        }
        let seen = indices.layout.shape().dims();
        let expected = [&dims[..axis], seen, &dims[axis + 1..]].concat();
        if value.shape.dims() != expected {
            return Err(malformed("gather", &format!("{expected:?} to {}", value.shape)));
        }
        Ok(Self {
            indices: Indices::new(program, indices, dims[axis])?,
            n_bytes: value.dtype.n_bytes(),
            outer: Walk::of_axes(&dims[..axis], &strides[..axis], x.layout.offset()),
            stride: strides[axis],
            inner: Walk::of_axes(&dims[axis + 1..], &strides[axis + 1..], 0),
            len: value.shape.len(),
        })
    }

    /// Computes the group.
    pub fn run(
        &self,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
    ) -> Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let n_indices_bytes = self.indices.n_bytes();
        let mut scratch = threads.scratch(n_indices_bytes)?;
        self.indices.read(inputs[1], &mut scratch[..n_indices_bytes])?;
        let indices: &[u64] = cast_slice(&scratch[..n_indices_bytes]);
        let n_slices = self.outer.len() * indices.len();
        let slice = self.inner.len() * self.n_bytes;
        let parallel = n_slices * slice >= PARALLEL_BYTES;
        let grain = (PARALLEL_BYTES / 8).div_ceil(slice.max(1));
        threads.split(parallel, grain, (outputs, &[slice]), n_slices, &|range, outputs| {
            with_size!(self.n_bytes, T => {
                let out = cast_slice_mut(outputs[0]);
                self.slices::<T>(cast_slice(inputs[0]), indices, range.start, out);
            });
            Ok(())
        })
    }

    /// The slices from number `first`, as many as fit into `out`.
    fn slices<T: Pod>(&self, xs: &[T], indices: &[u64], first: usize, out: &mut [T]) {
        let len = self.inner.len();
        let mut outer = self.outer.start(first / indices.len());
        let (mut base, mut next) = (0, first % indices.len());
        self.outer.runs(&mut outer, 1, |at, _, _| base = at);
        let inner = self.inner.start(0);
        for out in out.chunks_exact_mut(len) {
            if next == indices.len() {
                next = 0;
                self.outer.runs(&mut outer, 1, |at, _, _| base = at);
            }
            let offset = indices[next] as isize * self.stride;
            let offset = base.wrapping_add_signed(offset);
            next += 1;
            if self.inner.is_packed() {
                out.copy_from_slice(&xs[offset..][..len]);
                continue;
            }
            let (mut cursor, mut done) = (inner.clone().moved(offset), 0);
            self.inner.runs(&mut cursor, len, |at, stride, n| {
                copy_run(xs, at, stride, &mut out[done..][..n]);
                done += n;
            });
        }
    }
}

/// Bytes from which threads share a copy.
const PARALLEL_BYTES: usize = 1 << 18;

/// Slices that are added at indices along an axis of zeros.
pub(crate) struct ScatterAdd {
    indices: Indices,
    dtype: DType,
    n_outer: usize,
    /// All updates: for each outer place and index, one slice.
    updates: Walk,
    slice: usize,
    len: usize,
}

impl ScatterAdd {
    /// Compiles a group.
    pub fn compile(program: &Program, group: &Group, axis: usize) -> Result<Self> {
        let ([indices, updates], value) = operands::<2>(program, group, "scatter_add")?;
        same_dtype(program, &[updates], value.dtype)?;
        let dims = value.shape.dims();
        if axis >= dims.len() || value.dtype == DType::Bool {
            return Err(malformed("scatter_add", &format!("axis {axis} of {dims:?}")));
        }
        let seen = indices.layout.shape().dims();
        let expected = [&dims[..axis], seen, &dims[axis + 1..]].concat();
        let found = updates.layout.shape();
        if found.dims() != expected {
            return Err(malformed("scatter_add", &format!("updates {found}, not {expected:?}")));
        }
        Ok(Self {
            indices: Indices::new(program, indices, dims[axis])?,
            dtype: value.dtype,
            n_outer: dims[..axis].iter().product(),
            updates: Walk::new(&updates.layout),
            slice: dims[axis + 1..].iter().product(),
            len: value.shape.len(),
        })
    }

    /// One addition for each update.
    pub fn flops(&self) -> u64 {
        self.updates.len() as u64
    }

    /// Computes the group.
    pub fn run(
        &self,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
    ) -> Result<()> {
        let n_indices_bytes = self.indices.n_bytes();
        let mut scratch = threads.scratch(n_indices_bytes)?;
        self.indices.read(inputs[0], &mut scratch[..n_indices_bytes])?;
        outputs[0].fill(0);
        if self.len == 0 {
            return Ok(());
        }
        let indices: &[u64] = cast_slice(&scratch[..n_indices_bytes]);
        match self.dtype {
            DType::F16 => self.rounded::<half::f16>(inputs[1], indices, outputs[0], threads),
            DType::BF16 => self.rounded::<half::bf16>(inputs[1], indices, outputs[0], threads),
            DType::F32 => self.in_place(inputs[1], indices, outputs[0], |a: f32, b| a + b),
            DType::F64 => self.in_place(inputs[1], indices, outputs[0], |a: f64, b| a + b),
            // Sums of signed and unsigned integers wrap to the same bits.
            dtype => with_size!(dtype.n_bytes(), T => {
                self.in_place(inputs[1], indices, outputs[0], T::wrapping_add)
            }),
        }
    }

    fn in_place<T: Pod>(
        &self,
        updates: &[u8],
        indices: &[u64],
        out: &mut [u8],
        add: impl Fn(T, T) -> T,
    ) -> Result<()> {
        self.add(cast_slice::<_, T>(updates), indices, cast_slice_mut(out), |out: &mut T, x| {
            *out = add(*out, x);
        });
        Ok(())
    }

    /// Adds in f32 and rounds once.
    fn rounded<S: Stored<Wide = f32>>(
        &self,
        updates: &[u8],
        indices: &[u64],
        out: &mut [u8],
        threads: &Threads,
    ) -> Result<()> {
        let n_bytes = self.len * size_of::<f32>();
        let mut scratch = threads.scratch(n_bytes)?;
        let sums: &mut [f32] = cast_slice_mut(&mut scratch[..n_bytes]);
        sums.fill(0.0);
        self.add(cast_slice::<_, S>(updates), indices, sums, |out, x| *out += x.widen());
        for (out, &sum) in cast_slice_mut::<_, S>(out).iter_mut().zip(sums.iter()) {
            *out = S::narrow(sum);
        }
        Ok(())
    }

    fn add<S: Pod, T>(
        &self,
        updates: &[S],
        indices: &[u64],
        out: &mut [T],
        add: impl Fn(&mut T, S),
    ) {
        let rows = self.indices.size * self.slice;
        let mut cursor = self.updates.start(0);
        for outer in out.chunks_exact_mut(rows).take(self.n_outer) {
            for &index in indices {
                let mut row = outer[index as usize * self.slice..][..self.slice].iter_mut();
                self.updates.runs(&mut cursor, self.slice, |at, stride, len| {
                    if stride == 1 {
                        for (out, &x) in row.by_ref().take(len).zip(&updates[at..][..len]) {
                            add(out, x);
                        }
                        return;
                    }
                    for (i, out) in row.by_ref().take(len).enumerate() {
                        add(out, updates[at.wrapping_add_signed(i as isize * stride)]);
                    }
                });
            }
        }
    }
}

/// The `N` inputs and the value of the one output.
fn operands<'a, const N: usize>(
    program: &'a Program,
    group: &'a Group,
    kernel: &str,
) -> Result<([&'a Operand; N], &'a convoke_compiler::Value)> {
    let inputs: SmallVec<[&Operand; 3]> = group.inputs.iter().collect();
    match (<[&Operand; N]>::try_from(inputs.as_slice()), group.outputs.as_slice()) {
        (Ok(inputs), &[output]) => Ok((inputs, program.value(output))),
        _ => Err(malformed(kernel, &format!("expected {N} inputs and one output"))),
    }
}

fn same_dtype(program: &Program, operands: &[&Operand], dtype: DType) -> Result<()> {
    match operands.iter().find(|operand| program.value(operand.value).dtype != dtype) {
        Some(other) => {
            let found = program.value(other.value).dtype;
            Err(malformed("move", &format!("{found} goes to {dtype}")))
        }
        None => Ok(()),
    }
}
