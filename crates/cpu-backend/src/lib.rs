//! Runs a program's groups on the CPU, fast.
//!
//! [`CpuKernel::compile`] turns a group into a kernel; [`CpuKernel::run`] runs it on the bytes of values,
//! on the threads of a session. A warm run of a small group allocates nothing. Results do not depend on
//! the number of threads.
//!
//! Strings have no bytes of one size: a group with some is a [`StringKernel`], which gives a tensor of its own.
//!
//! Read next: `elementwise/mod.rs` (fused operations), `reduce/mod.rs`, `rows/mod.rs`,
//! `matmul.rs`, `moves.rs`, `strings.rs` and
//! `random.rs`; below them `walk.rs` (layouts), `elements.rs` (types) and `fast/` (all unsafe code).

mod conv;
mod custom;
mod elements;
mod elementwise;
mod fast;
mod lanes;
mod matmul;
mod moves;
mod operand;
mod pool;
mod random;
mod reduce;
mod reorder;
mod rows;
mod scratch;
mod strings;
mod tail;
mod threads;
mod walk;

#[cfg(test)]
mod tests;

use convoke_compiler::{Group, Kernel, Program};
use convoke_graph_core::{Error, OpError, Result};
use smallvec::SmallVec;

use conv::Conv;
use custom::Custom;
use elementwise::Elementwise;
pub use lanes::Lanes;
use matmul::Matmul;
use moves::{Concat, Gather, Pad, ScatterAdd};
use operand::{Heads, lying};
use pool::Pool;
use random::RandomFill;
use reduce::Reduce;
use reorder::Reorder;
use rows::Rows;
pub use scratch::scratch_bytes;
pub use strings::{Elements, StringKernel};
use tail::Tail;
pub use threads::Threads;
use walk::Walk;

/// A group compiled for the CPU. Immutable, shared by threads.
pub struct CpuKernel {
    run: Run,
    inputs: SmallVec<[Buffer; 3]>,
    outputs: SmallVec<[Buffer; 1]>,
    work: Work,
}

/// What a kernel does in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Arithmetic operations on elements.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// One kernel family each.
enum Run {
    Elementwise(Elementwise),
    Reorder(Reorder),
    Reduce(Reduce),
    Rows(Rows),
    Matmul(Matmul),
    Pad(Pad),
    Concat(Concat),
    Gather(Gather),
    ScatterAdd(ScatterAdd),
    Random(RandomFill),
    Conv(Conv),
    Pool(Pool),
    Custom(Custom),
    Heads(Heads),
    Tail(Tail),
}

/// What a value's bytes must be.
struct Buffer {
    n_bytes: usize,
    alignment: usize,
}

impl CpuKernel {
    /// Compiles a group.
    ///
    /// # Errors
    /// [`Unimplemented`](convoke_graph_core::ErrorKind::Unimplemented) if there is no kernel for it.
    pub fn compile(program: &Program, group: &Group) -> Result<Self> {
        check(program, group)?;
        let run = match &group.tail {
            Some(tail) => {
                let core = Run::compile(program, &group.core())?;
                Run::Tail(Tail::compile(program, group, tail, core)?)
            }
            None => Run::compile(program, group)?,
        };
        let buffer = |id| {
            let value = program.value(id);
            Buffer { n_bytes: value.n_bytes(), alignment: value.dtype.n_bytes() }
        };
        let inputs = group.inputs.iter().map(|operand| buffer(operand.value)).collect();
        let outputs = group.outputs.iter().map(|&id| buffer(id)).collect();
        let work = Work { flops: run.flops(), bytes: n_bytes(program, group) };
        Ok(Self { run, inputs, outputs, work })
    }

    /// Computes the outputs from the inputs: whole values' bytes, of which each operand's layout sees a
    /// part. What an output held before has no influence.
    ///
    /// # Errors
    /// An index in the data that is out of range, a buffer of another size or alignment than its
    /// value's, or no memory. The outputs may then hold garbage.
    pub fn run(
        &self,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
    ) -> Result<()> {
        let fits = inputs.len() == self.inputs.len()
            && outputs.len() == self.outputs.len()
            && inputs.iter().zip(&self.inputs).all(|(bytes, buffer)| buffer.fits(bytes))
            && outputs.iter().zip(&self.outputs).all(|(bytes, buffer)| buffer.fits(bytes));
        if !fits {
            return Err(Error::internal("buffers differ in number, size or alignment from values"));
        }
        self.run.run(inputs, outputs, threads)
    }

    /// Operations and bytes of one run, for cost models and reports.
    pub fn work(&self) -> Work {
        self.work
    }
}

impl std::fmt::Debug for CpuKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuKernel").field("work", &self.work).finish_non_exhaustive()
    }
}

impl Run {
    fn compile(program: &Program, group: &Group) -> Result<Self> {
        if !group.heads.is_empty() {
            return Ok(Self::Heads(Heads::compile(program, group)?));
        }
        Ok(match &group.kernel {
            Kernel::Elementwise(fused) => match Reorder::compile(program, group, fused) {
                Some(reorder) => Self::Reorder(reorder),
                None => Self::Elementwise(Elementwise::compile(program, group, fused)?),
            },
            Kernel::Reduce(reduction) => Self::Reduce(Reduce::compile(program, group, *reduction)?),
            Kernel::Rows(work) => match &work.seen {
                Some(seen) => Self::Reduce(Reduce::of_columns(program, group, work, seen)?),
                None => Self::Rows(Rows::compile(program, group, work)?),
            },
            Kernel::Matmul => Self::Matmul(Matmul::compile(program, group)?),
            Kernel::Pad { before } => Self::Pad(Pad::compile(program, group, before)?),
            Kernel::Concat { axis } => Self::Concat(Concat::compile(program, group, *axis)?),
            Kernel::Gather { axis } => Self::Gather(Gather::compile(program, group, *axis)?),
            Kernel::ScatterAdd { axis } => {
                Self::ScatterAdd(ScatterAdd::compile(program, group, *axis)?)
            }
            Kernel::Random(random) => Self::Random(RandomFill::compile(program, group, *random)?),
            Kernel::Conv2d(_) | Kernel::Conv2dInput(_) | Kernel::Conv2dFilter(_) => {
                Self::Conv(Conv::compile(program, group)?)
            }
            Kernel::Pool { kind, geometry } => {
                Self::Pool(Pool::compile(program, group, *kind, *geometry)?)
            }
            Kernel::Custom(kernel) => Self::Custom(Custom::compile(program, group, kernel)?),
            other => return Err(unsupported(&format!("the kernel {other}"))),
        })
    }

    fn run(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]], threads: &Threads) -> Result<()> {
        match self {
            Self::Elementwise(kernel) => kernel.run(inputs, outputs, threads),
            Self::Reorder(kernel) => kernel.run(inputs, outputs, threads),
            Self::Reduce(kernel) => kernel.run(inputs, outputs, threads),
            Self::Rows(kernel) => kernel.run(inputs, outputs, threads),
            Self::Matmul(kernel) => kernel.run(&lying(inputs), outputs, None, threads),
            Self::Pad(kernel) => kernel.run(inputs, outputs),
            Self::Concat(kernel) => kernel.run(inputs, outputs),
            Self::Gather(kernel) => kernel.run(inputs, outputs, threads),
            Self::ScatterAdd(kernel) => kernel.run(inputs, outputs, threads),
            Self::Random(kernel) => kernel.run(inputs, outputs, threads),
            Self::Conv(kernel) => kernel.run(&lying(inputs), outputs, None, threads),
            Self::Pool(kernel) => kernel.run(inputs, outputs, None, threads),
            Self::Custom(kernel) => kernel.run(inputs, outputs),
            Self::Heads(kernel) => kernel.run(inputs, outputs, None, threads),
            Self::Tail(kernel) => kernel.run(inputs, outputs, threads),
        }
    }

    fn flops(&self) -> u64 {
        match self {
            Self::Elementwise(kernel) => kernel.flops(),
            Self::Reduce(kernel) => kernel.flops(),
            Self::Rows(kernel) => kernel.flops(),
            Self::Matmul(kernel) => kernel.flops(),
            Self::ScatterAdd(kernel) => kernel.flops(),
            Self::Random(kernel) => kernel.flops(),
            Self::Conv(kernel) => kernel.flops(),
            Self::Pool(kernel) => kernel.flops(),
            Self::Custom(kernel) => kernel.flops(),
            Self::Heads(kernel) => kernel.flops(),
            Self::Tail(kernel) => kernel.flops(),
            Self::Reorder(_) | Self::Pad(_) | Self::Concat(_) | Self::Gather(_) => 0,
        }
    }
}

impl Buffer {
    fn fits(&self, bytes: &[u8]) -> bool {
        bytes.len() == self.n_bytes && bytes.as_ptr().addr().is_multiple_of(self.alignment.max(1))
    }
}

/// Whether [`CpuKernel::compile`] has a kernel for the group.
pub fn supports(program: &Program, group: &Group) -> bool {
    CpuKernel::compile(program, group).is_ok()
}

/// Refuses what no kernel of bytes can run.
fn check(program: &Program, group: &Group) -> Result<()> {
    check_values(program, group)?;
    if group.has_strings(&program.values) { Err(unsupported("strings as bytes")) } else { Ok(()) }
}

/// Refuses what no kernel can run: values that do not exist, layouts that leave their value.
fn check_values(program: &Program, group: &Group) -> Result<()> {
    let mut ids =
        group.inputs.iter().map(|operand| operand.value).chain(group.outputs.iter().copied());
    if let Some(id) = ids.find(|id| program.values.get(id.0 as usize).is_none()) {
        return Err(Error::internal(format!("there is no value {id}")));
    }
    for operand in &group.inputs {
        Walk::new(&operand.layout).check(program.value(operand.value).shape.len())?;
    }
    Ok(())
}

/// Each element that is seen counts once.
fn n_bytes(program: &Program, group: &Group) -> u64 {
    let seen = |operand: &convoke_compiler::Operand| {
        let value = program.value(operand.value);
        operand.layout.shape().len().min(value.shape.len()) * value.dtype.n_bytes()
    };
    let written = group.outputs.iter().map(|&id| program.value(id).n_bytes());
    group.inputs.iter().map(seen).chain(written).sum::<usize>() as u64
}

fn unsupported(what: &str) -> Error {
    OpError::Unsupported(format!("{what} on the CPU")).into()
}

/// The group's shape is not what its kernel is defined for: a bug of the compiler.
fn malformed(kernel: &str, why: &str) -> Error {
    Error::internal(format!("the {kernel} group does not fit: {why}"))
}
