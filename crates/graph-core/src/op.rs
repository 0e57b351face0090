//! What an operation must answer, and the classes that passes and backends match on.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::{
    AssertOp, Attributes, Backward, BranchOp, Conv2d, CustomKernel, DType, Dims, Fact, FindOp,
    HostCall, HostTensor, Layout, LoopOp, OpError, Pool, QueueOp, ReaderOp, Row, Scatter, Shape,
    TableOp, Tensor, TextOp,
};

/// The facts of an operation's outputs.
pub type Facts = SmallVec<[Fact; 1]>;

/// The values of an operation's outputs.
pub type Values = SmallVec<[HostTensor; 1]>;

/// Everything the engine knows about one operation.
///
/// No method has a default body. A new operation answers every question, and a new question is put to
/// every operation: the compiler lists what is missing. Attributes are fields; their `Debug` text is
/// what dumps print and what tells two operations apart.
pub trait Op: fmt::Debug + Send + Sync + 'static {
    /// The name in dumps, errors and automatic node names: `matmul`.
    fn name(&self) -> &str;

    /// What is known of each output, or why the inputs do not fit.
    ///
    /// # Errors
    /// What does not fit, with the numbers.
    fn infer(&self, inputs: &[Fact]) -> Result<Facts, OpError>;

    /// The definition: short, single-threaded, right; floats computed in `f64` and rounded once,
    /// integers exact and wrapped. Called by tests and to fold constants, never in a run.
    ///
    /// # Errors
    /// Data that the operation refuses, such as an index out of range, or an operation that has no
    /// value outside of a session.
    fn eval(&self, inputs: &[HostTensor]) -> Result<Values, OpError>;

    /// The gradient of each input, in order; `None` where there is none.
    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>>;

    /// What kind of work it is, with all that a backend needs to do it.
    fn class(&self) -> Class<'_>;

    /// What a file keeps of it, from which [`decode`](crate::ops::decode) makes it again: a name that no other
    /// operation has, and its fields. `None` if no file can keep it.
    fn encode(&self) -> Option<Attributes>;
}

/// The kinds of work that passes and backends tell apart.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Class<'a> {
    /// Each output element is a function of the input elements at its place, after broadcasting.
    Elementwise(Elementwise),
    /// The same elements, seen through another layout.
    View(View),
    /// Elements along some axes become one.
    Reduce(Reduce),
    /// Sums of products.
    Contract(Contract),
    /// Elements under windows that slide over images.
    Window(Window),
    /// Elements go to other places.
    Move(Move),
    /// Strings, or numbers as strings, become others.
    Text(&'a TextOp),
    /// Elements come from a counter-based generator.
    Random(Random),
    /// Known on the host before anything runs, or given to the run.
    Host(Host<'a>),
    /// Reads or changes what a session keeps.
    State(State),
    /// Takes from a queue before a run, or puts into it after.
    Queue(&'a QueueOp),
    /// Reads records of files before a run.
    Reader(&'a ReaderOp),
    /// Looks at a table before a run, or changes it after.
    Table(&'a TableOp),
    /// Orders other operations.
    Control(Control),
    /// Runs bodies as the data says, or ends the run.
    Flow(Flow<'a>),
    /// Work that only its own kernels know.
    Custom(Arc<dyn CustomKernel>),
}

impl Class<'_> {
    /// Whether an operation of this class can have these inputs and outputs, so that passes may take the
    /// inputs that they need without asking again.
    ///
    /// # Errors
    /// A number of inputs or outputs, or a rank, that does not belong to the class.
    pub fn check(&self, inputs: &[Fact], outputs: &[Fact]) -> Result<(), OpError> {
        let n_outputs = usize::from(!matches!(
            self,
            Self::Control(_) | Self::Queue(_) | Self::Reader(_) | Self::Table(_) | Self::Flow(_)
        ));
        if outputs.len() < n_outputs {
            return Err(OpError::Invalid(format!("an operation of class {self:?} has an output")));
        }
        let (least, most) = self.n_inputs();
        if inputs.len() < least || inputs.len() > most {
            return Err(OpError::Arity { expected: least, found: inputs.len() });
        }
        if let Some(fact) = outputs.first() {
            self.check_dtype(inputs, fact.dtype)?;
        }
        if let Self::Contract(Contract::Matmul { .. }) = self {
            let low = |fact: &&Fact| fact.dims.rank().is_some_and(|rank| rank < 2);
            if let Some(fact) = inputs.iter().chain(outputs).find(low) {
                return Err(OpError::Rank { expected: 2, found: fact.dims.clone() });
            }
        }
        Ok(())
    }

    /// Whether work of this class on such inputs, as many as it needs, gives elements of `output`.
    fn check_dtype(&self, inputs: &[Fact], output: DType) -> Result<(), OpError> {
        let all = |facts: &[Fact], dtype| facts.iter().all(|fact| fact.dtype == dtype);
        let fits = match self {
            Self::Elementwise(Elementwise::Row(row)) => {
                let first = inputs[0].dtype;
                row.output(first) == Some(output) && all(inputs, first)
            }
            Self::Elementwise(Elementwise::Select) => {
                inputs[0].dtype == DType::Bool && all(&inputs[1..], output)
            }
            Self::Reduce(reduce) => match reduce.kind {
                ReduceKind::ArgMax | ReduceKind::ArgMin => output == DType::I32,
                _ => all(&inputs[..1], output),
            },
            Self::Contract(Contract::Matmul { .. } | Contract::Conv2d(_)) => all(inputs, output),
            Self::Move(Move::Concat { .. }) => all(inputs, output),
            Self::Window(Window::AvgGrad(_)) => all(&inputs[1..], output),
            Self::Move(Move::Pad { .. }) | Self::Window(_) => all(&inputs[..1], output),
            _ => true,
        };
        if fits {
            return Ok(());
        }
        let given: Vec<DType> = inputs.iter().map(|fact| fact.dtype).collect();
        Err(OpError::Invalid(format!("{self:?} of {given:?} does not give {output}")))
    }

    /// Which input only gives sizes.
    pub fn size_operand(&self) -> Option<usize> {
        match self {
            Self::View(View::Reshape | View::Broadcast | View::Slice { .. }) => Some(1),
            Self::Reduce(reduce) if reduce.axes == ReduceAxes::ToShape => Some(1),
            Self::Move(Move::Pad { .. }) => Some(1),
            Self::Move(Move::ScatterAdd { .. }) => Some(0),
            Self::Contract(Contract::Conv2dInput(_)) => Some(0),
            Self::Contract(Contract::Conv2dFilter(_)) => Some(1),
            Self::Window(Window::AvgGrad(_)) => Some(0),
            Self::Random(_) => Some(0),
            _ => None,
        }
    }

    /// The least and the greatest number of inputs.
    fn n_inputs(&self) -> (usize, usize) {
        const ANY: usize = usize::MAX;
        match self {
            Self::Elementwise(Elementwise::Row(row)) => (row.arity, row.arity),
            Self::Elementwise(Elementwise::Select) => (3, 3),
            Self::Elementwise(Elementwise::Cast) => (1, 1),
            Self::View(_) | Self::Reduce(_) => (1, ANY),
            Self::Contract(Contract::Matmul { .. } | Contract::Conv2d(_)) => (2, 2),
            Self::Contract(Contract::Conv2dInput(_) | Contract::Conv2dFilter(_)) => (3, 3),
            Self::Window(Window::Max(_) | Window::Avg(_)) => (1, 1),
            Self::Window(Window::MaxAt(_) | Window::MaxGrad(_) | Window::AvgGrad(_)) => (2, 2),
            Self::Move(Move::Concat { .. } | Move::Pad { .. }) => (1, ANY),
            Self::Move(Move::Gather { .. }) => (2, 2),
            Self::Move(Move::ScatterAdd { .. }) => (3, 3),
            Self::Text(TextOp::Join { .. }) => (1, ANY),
            Self::Text(TextOp::Substr) => (3, 3),
            Self::Text(_) => (1, 1),
            Self::Host(Host::Placeholder) => (0, 1),
            Self::Host(Host::Constant(_)) | Self::State(State::Variable) => (0, 0),
            Self::State(State::Read | State::IsInitialized | State::Count { .. }) => (1, 1),
            Self::State(State::ReadOr | State::Assign | State::AssignAdd | State::AssignSub) => {
                (2, 2)
            }
            Self::State(State::Scatter(_)) => (3, 3),
            Self::Random(_) | Self::Host(Host::Metadata) => (0, ANY),
            Self::Control(_) | Self::Queue(_) | Self::Reader(_) | Self::Table(_) => (0, ANY),
            Self::Custom(_) | Self::Flow(_) => (0, ANY),
        }
    }
}

/// Elementwise work.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Elementwise {
    /// A row of the tables in `ops/unary.rs` and `ops/binary.rs`.
    Row(&'static Row),
    /// `if condition { x } else { y }`, of inputs condition, x, y.
    Select,
    /// To the dtype of the output. See [`Tensor::cast`] for the rules.
    Cast,
}

/// Other layouts of the same elements.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum View {
    /// As it is.
    Identity,
    /// Other sizes of the same count, in row-major order.
    Reshape,
    /// Axis `i` of the output is axis `axes[i]` of the input.
    Permute(Vec<usize>),
    /// Repeated along axes of size 1 and new leading axes.
    Broadcast,
    /// From `starts`, every `steps`-th, as many as the output has.
    Slice {
        /// The first coordinate along each axis.
        starts: Vec<usize>,
        /// The distance along each axis; negative to go backwards.
        steps: Vec<isize>,
    },
}

impl View {
    /// The layout of the output over the input's buffer; `None` if the elements must be moved first.
    pub fn layout(&self, input: &Layout, output: &Shape) -> Option<Layout> {
        match self {
            Self::Identity => Some(input.clone()),
            Self::Reshape => input.reshape(output),
            Self::Permute(axes) => input.permute(axes),
            Self::Broadcast => input.broadcast(output),
            Self::Slice { starts, steps } => input.slice(starts, output.dims(), steps),
        }
    }
}

/// How elements become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
#[non_exhaustive]
pub enum ReduceKind {
    Sum,
    Mean,
    Prod,
    Max,
    Min,
    Any,
    All,
    /// The index of the first greatest element, along one axis.
    ArgMax,
    /// The index of the first least element, along one axis.
    ArgMin,
}

/// Along which axes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReduceAxes {
    /// All.
    All,
    /// These; negative ones count from the end.
    List(SmallVec<[i64; 4]>),
    /// Those along which the output's shape was broadcast to the input's.
    ToShape,
}

/// A reduction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reduce {
    /// How.
    pub kind: ReduceKind,
    /// Along which axes.
    pub axes: ReduceAxes,
    /// Whether a reduced axis stays, with size 1.
    pub keep_dims: bool,
}

impl Reduce {
    /// For each axis of `input`, whether it is reduced.
    ///
    /// # Errors
    /// An axis that is out of range or given twice.
    pub fn mask(&self, rank: usize, input: &Dims, output: &Dims) -> Result<Vec<bool>, OpError> {
        match &self.axes {
            ReduceAxes::All => Ok(vec![true; rank]),
            ReduceAxes::List(axes) => axis_mask(axes, rank),
            ReduceAxes::ToShape => {
                let (input, output) = (input.dims().unwrap_or(&[]), output.dims().unwrap_or(&[]));
                let lead = rank.saturating_sub(output.len());
                Ok((0..rank)
                    .map(|axis| axis < lead || input[axis] != output[axis - lead])
                    .collect())
            }
        }
    }
}

/// For each axis of a tensor of `rank`, whether it is listed.
pub(crate) fn axis_mask(axes: &[i64], rank: usize) -> Result<Vec<bool>, OpError> {
    let mut mask = vec![false; rank];
    for &axis in axes {
        let at = resolve_axis(axis, rank)?;
        if std::mem::replace(&mut mask[at], true) {
            return Err(OpError::RepeatedAxis { axis });
        }
    }
    Ok(mask)
}

/// The axis that `axis` names, where negative ones count from the end.
pub(crate) fn resolve_axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    let at = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(at).ok().filter(|&at| at < rank).ok_or(OpError::Axis { axis, rank })
}

/// Sums of products.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Contract {
    /// `[.., m, k]` times `[.., k, n]`, either transposed in its last two axes; leading axes broadcast.
    Matmul {
        /// The left is `[.., k, m]`.
        transpose_a: bool,
        /// The right is `[.., n, k]`.
        transpose_b: bool,
    },
    /// Input 0, images, with input 1, filters. See [`Tensor::conv2d`].
    Conv2d(Conv2d),
    /// The gradient for images of the sizes in input 0, from filters and the output's gradient.
    Conv2dInput(Conv2d),
    /// The gradient for filters of the sizes in input 1, from images (input 0) and the output's gradient
    /// (input 2).
    Conv2dFilter(Conv2d),
}

/// What becomes of the elements under windows that slide over images.
///
/// A class of its own beside [`Reduce`]: windows overlap, so that no permutation of axes makes their
/// elements axes of the input, and what passes do with reductions (axes that stay, a sum to a shape) says
/// nothing of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Window {
    /// The greatest element.
    Max(Pool),
    /// The mean of the elements.
    Avg(Pool),
    /// The element of input 1 at the place of the first greatest element of input 0.
    MaxAt(Pool),
    /// Zeros shaped like input 0; each element of input 1 is added at the place of the first greatest
    /// element of input 0 under its window.
    MaxGrad(Pool),
    /// Zeros of the sizes in input 0; each element of input 1 is shared out evenly under its window.
    AvgGrad(Pool),
}

/// Elements that go to other places.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Move {
    /// The inputs one after the other along an axis.
    Concat {
        /// The axis, from the front.
        axis: usize,
    },
    /// The input inside of zeros; the output's shape says how many follow.
    Pad {
        /// How many zeros stand before the input along each axis.
        before: Vec<usize>,
    },
    /// Slices of input 0 along an axis, at the indices of input 1.
    Gather {
        /// The axis, from the front.
        axis: usize,
    },
    /// Zeros of the sizes in input 0, to which slices of input 2 are added along an axis at the
    /// indices of input 1: the gradient of a gather.
    ScatterAdd {
        /// The axis, from the front.
        axis: usize,
    },
}

/// The distribution of random elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Distribution {
    /// In `[0, 1)`: 24 bits of f32.
    Uniform,
    /// Mean 0, deviation 1.
    Normal,
    /// Mean 0, deviation 1, drawn again while above 2 in magnitude.
    TruncatedNormal,
}

/// Elements from Philox 4x32-10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Random {
    /// The distribution.
    pub distribution: Distribution,
    /// The generator's key, from the graph's and the operation's seed.
    pub key: u64,
}

/// What the host knows or is given.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Host<'a> {
    /// A value that a run is fed; input 0, if there is one, is the default.
    Placeholder,
    /// A value that never changes.
    Constant(&'a HostTensor),
    /// Computed from shapes and small integers, on the host.
    Metadata,
}

/// What a session keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// The handle of a variable.
    Variable,
    /// The variable's elements. Input 0 is the handle.
    Read,
    /// The variable's elements; input 1, its initial value, if it has none or the run gives it that.
    ReadOr,
    /// New elements: input 1. The output is what is stored.
    Assign,
    /// Input 1 is added to the elements at commit. The output is what is stored.
    AssignAdd,
    /// Input 1 is subtracted from the elements at commit. The output is what is stored.
    AssignSub,
    /// Slices at the indices of input 1 are changed by those of input 2 at commit. The output is what is stored.
    Scatter(Scatter),
    /// One more than the elements, which are below `limit`. The output is what is stored.
    Count {
        /// The first number that is not given.
        limit: i64,
    },
    /// Whether the variable has elements.
    IsInitialized,
}

/// What orders others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Control {
    /// Does nothing, after its controls.
    NoOp,
}

/// What runs as the data says.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Flow<'a> {
    /// One of several bodies.
    Branch(&'a BranchOp),
    /// A body, again and again.
    Loop(&'a LoopOp),
    /// Nothing, or the run fails.
    Assert(&'a AssertOp),
    /// A function of whole tensors on the host, strings too.
    Call(&'a dyn HostCall),
    /// Values of a table that the session keeps.
    Find(&'a FindOp),
}

impl State {
    /// Whether it gives the variable new elements.
    pub fn is_assign(self) -> bool {
        match self {
            Self::Assign
            | Self::AssignAdd
            | Self::AssignSub
            | Self::Scatter(_)
            | Self::Count { .. } => true,
            Self::Variable | Self::Read | Self::ReadOr | Self::IsInitialized => false,
        }
    }

    /// Whether it is an assignment that adds to the elements or subtracts from them.
    pub fn sums(self) -> bool {
        let scatters = matches!(self, Self::Scatter(Scatter::Add | Scatter::Sub));
        scatters || matches!(self, Self::AssignAdd | Self::AssignSub)
    }

    /// Whether it is an assignment that applies to the elements that are current when the run commits.
    pub fn accumulates(self) -> bool {
        matches!(self, Self::AssignAdd | Self::AssignSub | Self::Scatter(_))
    }
}

/// One output fact.
pub(crate) fn one(fact: Fact) -> Result<SmallVec<[Fact; 1]>, OpError> {
    Ok(SmallVec::from_iter([fact]))
}

/// One output value.
pub(crate) fn value(
    tensor: Result<HostTensor, impl Into<OpError>>,
) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
    match tensor {
        Ok(tensor) => Ok(SmallVec::from_iter([tensor])),
        Err(e) => Err(e.into()),
    }
}

/// The inputs, if there are exactly `N`.
pub(crate) fn arity<const N: usize, T>(inputs: &[T]) -> Result<&[T; N], OpError> {
    inputs.try_into().map_err(|_| OpError::Arity { expected: N, found: inputs.len() })
}

/// The one dtype of some inputs.
pub(crate) fn same_dtype(inputs: &[Fact]) -> Result<DType, OpError> {
    let first = inputs.first().ok_or(OpError::Arity { expected: 1, found: 0 })?.dtype;
    match inputs.iter().find(|f| f.dtype != first) {
        Some(other) => Err(OpError::DTypes { lhs: first, rhs: other.dtype }),
        None => Ok(first),
    }
}

/// The shape of the first output, for inputs at hand.
pub(crate) fn output_shape(op: &dyn Op, inputs: &[HostTensor]) -> Result<(DType, Shape), OpError> {
    let facts: SmallVec<[Fact; 4]> = inputs.iter().map(Fact::of).collect();
    let fact = op.infer(&facts)?.into_iter().next();
    let fact = fact.ok_or_else(|| OpError::Invalid(format!("{} has no output", op.name())))?;
    let shape = fact.shape().ok_or_else(|| {
        OpError::Invalid(format!("the shape {} of {} depends on data", fact.dims, op.name()))
    })?;
    Ok((fact.dtype, shape))
}

/// A shared operation, as nodes hold it.
pub(crate) type SharedOp = Arc<dyn Op>;
