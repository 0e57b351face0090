//! What backends are given: values, groups of work, and segments of them on one device.

mod print;

use std::sync::Arc;

use convoke_graph_core::{
    ConvGeometry, CustomKernel, DType, Elementwise, HostTensor, KernelShapes, Layout, NodeId,
    Output, PoolGeometry, Random, ReduceKind, Shape, TextOp,
};
use smallvec::SmallVec;

use crate::{Apart, Asked};

/// The index of a value in its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// The index of a device in the session's list; 0 is the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceIndex(pub u32);

/// A tensor that exists during a run: packed, row-major, in one buffer on each device that needs it.
#[derive(Debug, Clone)]
pub struct Value {
    /// The element type.
    pub dtype: DType,
    /// The shape.
    pub shape: Shape,
    /// Where it comes from.
    pub source: Source,
}

impl Value {
    /// The size in bytes; 0 for strings.
    pub fn n_bytes(&self) -> usize {
        self.shape.len() * self.dtype.n_bytes()
    }
}

/// Where a value comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A group computes it.
    Computed,
    /// The run is given it, in host memory.
    Feed(Output),
    /// It never changes.
    Constant(HostTensor),
    /// A variable's elements at the start of the run; the node is the variable's handle.
    Variable(NodeId),
    /// Whether a variable has elements at the start of the run: one bool.
    Initialized(NodeId),
    /// How often committed runs drew from this random node before, and this run in earlier iterations, which is said
    /// here: one u32.
    Draws(NodeId, u32),
}

/// A value as a kernel sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Operand {
    /// The value.
    pub value: ValueId,
    /// Where the elements lie in the value's buffer.
    pub layout: Layout,
}

/// Work that is one kernel.
#[derive(Debug, Clone)]
pub struct Group {
    /// What is done.
    pub kernel: Kernel,
    /// What is read.
    pub inputs: SmallVec<[Operand; 3]>,
    /// What is written: packed values.
    pub outputs: SmallVec<[ValueId; 1]>,
    /// What makes operands of the kernel where it loads them, in the order of the operands. What a head reads takes the
    /// place of its operand among the inputs.
    pub heads: SmallVec<[Head; 1]>,
    /// What is done with the kernel's result before it is stored. The inputs are the kernel's, then those
    /// of the tail but its first.
    pub tail: Option<Tail>,
    /// The nodes that it does the work of, for placement and reports.
    pub nodes: Vec<NodeId>,
    /// Where it was asked to run.
    pub asked: Asked,
}

impl Group {
    /// A kernel with what it reads and writes, without heads and tail.
    pub fn plain(
        kernel: Kernel,
        (inputs, outputs): (SmallVec<[Operand; 3]>, SmallVec<[ValueId; 1]>),
        nodes: Vec<NodeId>,
        asked: Asked,
    ) -> Self {
        Self { kernel, inputs, outputs, heads: SmallVec::new(), tail: None, nodes, asked }
    }

    /// Whether what the data holds can fail the run, as it may in a user's own kernel.
    pub fn can_fail(&self) -> bool {
        match &self.kernel {
            Kernel::Gather { .. } | Kernel::ScatterAdd { .. } | Kernel::Custom(_) => true,
            Kernel::Text(op) => op.can_fail(),
            _ => self.check().is_some(),
        }
    }

    /// Whether anything but the system can fail it, or strings that it makes find no memory.
    pub fn can_fail_late(&self, values: &[Value]) -> bool {
        self.can_fail() || self.has_strings(values)
    }

    fn check(&self) -> Option<Check> {
        match &self.kernel {
            Kernel::Elementwise(fused) | Kernel::Rows(Rows { fused, .. }) => fused.check,
            _ => None,
        }
    }

    /// The node that an error of the group is about.
    pub fn blamed(&self) -> Option<NodeId> {
        self.check().map(|check| check.node).or(self.nodes.last().copied())
    }

    /// Whether it reads strings or gives some, so that it is for the host, and a kernel of its own.
    pub fn has_strings(&self, values: &[Value]) -> bool {
        let ids = self.inputs.iter().map(|input| input.value).chain(self.outputs.iter().copied());
        let mut dtypes = ids.map(|id| values[id.0 as usize].dtype).chain(self.constant_dtypes());
        dtypes.any(|dtype| dtype == DType::String)
    }

    fn constant_dtypes(&self) -> impl Iterator<Item = DType> {
        let fused = match &self.kernel {
            Kernel::Elementwise(fused) => Some(fused),
            _ => None,
        };
        fused.into_iter().flat_map(|fused| fused.constants.iter().map(HostTensor::dtype))
    }

    /// The dtypes and shapes of its inputs and outputs.
    pub fn shapes(&self, values: &[Value]) -> KernelShapes {
        let value = |id: ValueId| &values[id.0 as usize];
        let input = |x: &Operand| (value(x.value).dtype, x.layout.shape().clone());
        let output = |&id: &ValueId| (value(id).dtype, value(id).shape.clone());
        KernelShapes {
            inputs: self.inputs.iter().map(input).collect(),
            outputs: self.outputs.iter().map(output).collect(),
        }
    }
}

/// Elementwise work that gives an operand of a product or a convolution, instead of what was stored before.
#[derive(Debug, Clone)]
pub struct Head {
    /// Which operand of the kernel it makes.
    pub operand: usize,
    /// The operand's value, which is never stored.
    pub value: ValueId,
    /// How the kernel sees the value.
    pub layout: Layout,
    /// The work; it stores the value.
    pub fused: Fused,
}

/// Elementwise work on what a kernel gives, instead of storing it.
#[derive(Debug, Clone)]
pub struct Tail {
    /// The kernel's result, which is never stored.
    pub result: ValueId,
    /// How the work sees the result: all of it, maybe with its axes in another order.
    pub layout: Layout,
    /// The work; its input 0 is the result.
    pub fused: Fused,
}

/// What a group does.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Kernel {
    /// A chain or tree of elementwise operations over one shape.
    Elementwise(Fused),
    /// Some axes of input 0 become one.
    Reduce(Reduction),
    /// Elementwise work on rows, with what reductions of the same rows give.
    Rows(Rows),
    /// The sum over `k` of inputs `[batch.., m, k]` and `[batch.., k, n]` gives `[batch.., m, n]`. Both
    /// layouts have the output's batch axes; a stride of 0 repeats, swapped strides transpose.
    Matmul,
    /// Input 0 stands at `before` in zeros of the output's shape.
    Pad {
        /// The coordinates of the first element.
        before: Vec<usize>,
    },
    /// The inputs one after the other along an axis.
    Concat {
        /// The axis.
        axis: usize,
    },
    /// Slices of input 0 along an axis, at the indices of input 1.
    Gather {
        /// The axis.
        axis: usize,
    },
    /// Zeros to which slices of input 1 are added along an axis at the indices of input 0.
    ScatterAdd {
        /// The axis.
        axis: usize,
    },
    /// Images (input 0) with filters (input 1), all packed.
    Conv2d(ConvGeometry),
    /// The gradient for images: filters (input 0) and the gradient of the output (input 1), all packed.
    Conv2dInput(ConvGeometry),
    /// The gradient for filters: images (input 0) and the gradient of the output (input 1), all packed.
    Conv2dFilter(ConvGeometry),
    /// Windows over images, all packed.
    Pool {
        /// What becomes of the elements under a window.
        kind: PoolKind,
        /// How the windows stand.
        geometry: PoolGeometry,
    },
    /// What is made of strings, or strings of numbers.
    Text(TextOp),
    /// Random elements; input 0 is the number of draws before, one u32.
    Random(Random),
    /// What a user's own kernels do, of packed inputs.
    Custom(Arc<dyn CustomKernel>),
}

/// What becomes of the elements under a window. Where inputs are called `x`, they are shaped like the
/// images; `dy` is shaped like the images' pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PoolKind {
    /// The greatest of `x`; NaN if any is; of nothing, -inf.
    Max,
    /// The mean of `x`, padding left out.
    Avg,
    /// The element of the second input, shaped like `x`, at the first greatest of `x`; of nothing, 0.
    MaxAt,
    /// Zeros like `x`, to which `dy` (input 1) is added at the first greatest of `x` (input 0). The first
    /// NaN counts as greatest.
    MaxGrad,
    /// Zeros like `x`, to which `dy` (input 0) is added in equal shares.
    AvgGrad,
}

/// Elementwise work over `shape`: every input's layout has that shape, every output as many elements.
#[derive(Debug, Clone)]
pub struct Fused {
    /// The shape.
    pub shape: Shape,
    /// The dtype of each input.
    pub input_dtypes: SmallVec<[DType; 3]>,
    /// Scalar constants: one element each.
    pub constants: Vec<HostTensor>,
    /// The operations, arguments before users.
    pub instrs: Vec<Instr>,
    /// What is stored, one for each output of the group.
    pub stores: SmallVec<[Arg; 1]>,
    /// The indices that fail the run where they are out of range, if there are such.
    pub check: Option<Check>,
}

/// An i32 that must not be negative and must be below a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// The index.
    pub arg: Arg,
    /// The size.
    pub below: u32,
    /// The node that indexes with it.
    pub node: NodeId,
}

/// One operation of a [`Fused`].
#[derive(Debug, Clone)]
pub struct Instr {
    /// What is computed.
    pub op: Elementwise,
    /// Of what.
    pub args: SmallVec<[Arg; 3]>,
    /// The dtype of the result, to which it is rounded or wrapped.
    pub dtype: DType,
}

/// An argument of an [`Instr`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arg {
    /// The element of an input.
    Input(u32),
    /// A constant.
    Constant(u32),
    /// The result of an earlier instruction.
    Instr(u32),
}

impl Fused {
    /// All that is read, by instructions, stores and the check.
    pub fn args(&self) -> impl Iterator<Item = Arg> {
        let instrs = self.instrs.iter().flat_map(|instr| instr.args.iter().copied());
        let check = self.check.map(|check| check.arg);
        instrs.chain(self.stores.iter().copied()).chain(check)
    }

    /// The dtype of an argument.
    pub fn dtype(&self, arg: Arg) -> DType {
        match arg {
            Arg::Input(i) => self.input_dtypes[i as usize],
            Arg::Constant(i) => self.constants[i as usize].dtype(),
            Arg::Instr(i) => self.instrs[i as usize].dtype,
        }
    }
}

/// A reduction of input 0, whose layout's shape is `[outer.., inner..]`: the axes that stay, in order, then
/// those that are reduced. The output's elements are those of the outer axes in row-major order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reduction {
    /// How elements become one. `ArgMax` and `ArgMin` have one inner axis and give i32.
    pub kind: ReduceKind,
    /// How many axes stay.
    pub n_outer: usize,
}

/// Work row by row: a row is what the axes of the shape from `n_outer` on hold. Elementwise work and
/// reductions of rows take turns; what a reduction gives is seen by all elements of its row.
///
/// See `rows.rs` for what can be asked of it.
#[derive(Debug, Clone)]
pub struct Rows {
    /// How many axes of the shape come before those of a row.
    pub n_outer: usize,
    /// The elementwise work over the whole shape. Its inputs are the group's, all with layouts of the whole
    /// shape, then what the folds give. An output has an element for each element or for each row.
    pub fused: Fused,
    /// The reductions: each of what comes before it, so that no instruction that it needs reads it.
    pub folds: Vec<Fold>,
    /// If rows are columns of what lies in another order: how its elements, one after the other in that order, are
    /// seen as rows. There is one fold then, and its result is all that is stored.
    pub seen: Option<Layout>,
    /// Reductions over all rows of what each row has once. Their results are the group's last outputs, after
    /// those of the stores. See `total.rs` for how many rows there may be, and how long.
    pub totals: Vec<Fold>,
}

/// A reduction of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fold {
    /// How elements become one; not `ArgMax` or `ArgMin`.
    pub kind: ReduceKind,
    /// What is reduced. The result has its dtype.
    pub arg: Arg,
}

/// Groups that run on one device one after the other, between crossings.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The device.
    pub device: DeviceIndex,
    /// Host values that it needs on the device: feeds, run inputs and results of CPU segments. Empty for
    /// the CPU. Constants and variables are not listed: they are resident.
    pub uploads: Vec<ValueId>,
    /// Values that an earlier segment of this device made or was sent, with that segment's index: they are
    /// copied on the device. So is what a segment of a device with the same queue made.
    pub carried: Vec<(ValueId, u32)>,
    /// Variables of other devices with the same queue, into which no earlier segment stores: they are copied from where
    /// they lie.
    pub borrowed: Vec<ValueId>,
    /// Indices into the program's groups, in order.
    pub groups: Vec<u32>,
    /// Its values and uploads that later segments of this device, or of one with the same queue, take; and variables that
    /// they take as they were before it stores into them.
    pub kept: Vec<ValueId>,
    /// Its values, and variables of its device, that the host needs afterwards. Empty for the CPU.
    pub downloads: Vec<ValueId>,
    /// Its values, and variables of its device, that are fetched and stay there. Empty for the CPU.
    pub residents: Vec<ValueId>,
    /// What is stored into variables of this device when the run commits.
    pub commits: Vec<Commit>,
    /// Its values that are fetched, stay there, and are stored where a feed lies. Empty for the CPU.
    pub donations: Vec<Donation>,
}

impl Segment {
    /// A segment on a device, without work.
    pub fn on(device: DeviceIndex) -> Self {
        Self {
            device,
            uploads: Vec::new(),
            carried: Vec::new(),
            borrowed: Vec::new(),
            groups: Vec::new(),
            kept: Vec::new(),
            downloads: Vec::new(),
            residents: Vec::new(),
            commits: Vec::new(),
            donations: Vec::new(),
        }
    }
}

/// A value that gets the memory of a feed of as many bytes, once nothing reads that any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Donation {
    /// The feed, which is none of the segment's uploads: it is read and overwritten where it lies.
    pub feed: ValueId,
    /// The value, which is none of the segment's residents.
    pub value: ValueId,
}

/// New elements for a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The variable's handle.
    pub variable: NodeId,
    /// The new elements, if nobody else committed since the run's start.
    pub value: ValueId,
    /// True if one assignment makes them from those at the start: if others committed meanwhile, its group runs again.
    pub accumulates: bool,
    /// True if something is added to those at the start: if no group can run again, it is added to what is current.
    pub sums: bool,
}

/// A plan compiled for one set of input shapes.
#[derive(Debug, Clone)]
pub struct Program {
    /// The values.
    pub values: Vec<Value>,
    /// The groups, inputs before users.
    pub groups: Vec<Group>,
    /// The segments, in order.
    pub segments: Vec<Segment>,
    /// For each fetch of the signature, the value and how it is seen.
    pub fetches: Vec<Operand>,
    /// The places of those fetches whose values stay where they are.
    pub residents: Vec<usize>,
    /// The device that each variable lives on, for those that the program touches.
    pub variables: Vec<(NodeId, DeviceIndex)>,
    /// Variables that need no elements: those that have none are read as zeros, at which nobody looks.
    pub optional: Vec<NodeId>,
    /// Random nodes, whose count of draws goes up when the run commits.
    pub random: Vec<NodeId>,
    /// The values that go through memory from one group to another, and why.
    pub apart: Vec<(ValueId, Apart)>,
    /// Groups that come just before their first reader, so that less memory lives at once.
    pub late: Vec<u32>,
}

impl Program {
    /// The values that the host gets in the end.
    pub fn host_fetches(&self) -> impl Iterator<Item = ValueId> {
        let all = self.fetches.iter().enumerate();
        let on_host = all.filter(|(place, _)| !self.residents.contains(place));
        on_host.map(|(_, fetch)| fetch.value)
    }

    /// The values that are fetched and stay where they are.
    pub fn resident_fetches(&self) -> impl Iterator<Item = ValueId> {
        self.residents.iter().filter_map(|&place| Some(self.fetches.get(place)?.value))
    }

    /// The value with this id.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }
}
