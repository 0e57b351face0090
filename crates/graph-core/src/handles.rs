//! Handles to what a graph holds: `Tensor`, `Operation`, `Variable`.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use crate::ops::state::{Assign, IsInitialized, Read};
use crate::{DType, Dims, Element, Fact, Graph, HostTensor, Node, NodeId, Op, Output, Shape};

/// One value of a graph: an output of an operation. It has no elements until a session runs it.
#[derive(Clone)]
pub struct Tensor {
    graph: Graph,
    output: Output,
}

/// An operation of a graph, to be run for its effect.
#[derive(Clone)]
pub struct Operation {
    graph: Graph,
    id: NodeId,
}

/// A tensor that a session keeps from run to run.
///
/// Where a tensor is expected, a variable stands for its elements at the start of the run. See
/// [`Graph::variable`].
#[derive(Clone)]
pub struct Variable {
    pub(crate) handle: Tensor,
    pub(crate) read: Tensor,
    pub(crate) initializer: Operation,
}

impl Tensor {
    pub(crate) fn new(graph: Graph, output: Output) -> Self {
        Self { graph, output }
    }

    /// The graph that it belongs to.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Which output of which node it is.
    pub fn output(&self) -> Output {
        self.output
    }

    /// The node that computes it.
    pub fn node(&self) -> Arc<Node> {
        self.graph.node(self.output.node)
    }

    /// The operation that computes it.
    pub fn operation(&self) -> Operation {
        Operation::new(self.graph.clone(), self.output.node)
    }

    /// The name: `scope/op:0`.
    pub fn name(&self) -> String {
        format!("{}:{}", self.node().name, self.output.index)
    }

    /// What is known of it before a run.
    pub fn fact(&self) -> Fact {
        self.node().facts[self.output.index as usize].clone()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.node().facts[self.output.index as usize].dtype
    }

    /// What is known of the shape.
    pub fn dims(&self) -> Dims {
        self.fact().dims
    }

    /// True if `other` is the same output of the same graph.
    pub fn is(&self, other: &Self) -> bool {
        self.output == other.output && self.graph.id() == other.graph.id()
    }

    /// Applies `op` to some tensors of this graph; gives output 0.
    #[track_caller]
    pub fn apply(&self, op: impl Op, inputs: &[&Tensor]) -> Tensor {
        self.graph.apply(op, inputs)
    }

    /// A constant of the graph with this tensor's dtype, rounded to it.
    #[track_caller]
    pub(crate) fn like(&self, x: f64) -> Tensor {
        self.graph.number(self.dtype(), x)
    }
}

impl Graph {
    /// Applies `op` to some tensors of this graph; gives output 0.
    #[track_caller]
    pub fn apply(&self, op: impl Op, inputs: &[&Tensor]) -> Tensor {
        let name = op.name().to_owned();
        self.apply_named(op, inputs, &name)
    }

    /// As [`Self::apply`], with a name of your own.
    #[track_caller]
    pub fn apply_named(&self, op: impl Op, inputs: &[&Tensor], name: &str) -> Tensor {
        let inputs: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
        let node = self.append(Arc::new(op), &inputs, name, Location::caller());
        Tensor::new(self.clone(), Output { node, index: 0 })
    }

    /// A scalar constant of `dtype`, rounded to it; of strings, zero is the empty one.
    #[track_caller]
    pub(crate) fn number(&self, dtype: DType, x: f64) -> Tensor {
        let value = if dtype == DType::String && x == 0.0 {
            Ok(HostTensor::from(""))
        } else if dtype.is_float() {
            HostTensor::from_f64s(dtype, Shape::scalar(), &[x])
        } else {
            HostTensor::from_i128s(dtype, Shape::scalar(), &[x as i128])
        };
        // Strings have no other numbers; the operation that uses this refuses them itself.
        self.constant(value.unwrap_or_else(|_| HostTensor::from(x)))
    }
}

impl Operation {
    pub(crate) fn new(graph: Graph, id: NodeId) -> Self {
        Self { graph, id }
    }

    /// The graph that it belongs to.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Its place in the graph.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The node.
    pub fn node(&self) -> Arc<Node> {
        self.graph.node(self.id)
    }

    /// The name: `scope/op`.
    pub fn name(&self) -> String {
        self.node().name.to_string()
    }

    /// Its outputs, in order.
    pub fn outputs(&self) -> Vec<Tensor> {
        let output = |index| Tensor::new(self.graph.clone(), Output { node: self.id, index });
        (0..self.node().facts.len() as u32).map(output).collect()
    }
}

impl Variable {
    /// Its elements at the start of the run.
    pub fn value(&self) -> &Tensor {
        &self.read
    }

    /// The handle that assignments take.
    pub fn handle(&self) -> &Tensor {
        &self.handle
    }

    /// The name, under which checkpoints keep it.
    pub fn name(&self) -> String {
        self.handle.node().name.to_string()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.handle.dtype()
    }

    /// The shape.
    pub fn dims(&self) -> Dims {
        self.handle.dims()
    }

    /// The graph that it belongs to.
    pub fn graph(&self) -> &Graph {
        self.handle.graph()
    }

    /// Gives the variable its first elements.
    pub fn initializer(&self) -> &Operation {
        &self.initializer
    }

    /// Its elements once the controls in scope have run: inside [`Graph::after`] an assignment, what
    /// that assigned.
    #[track_caller]
    pub fn read(&self) -> Tensor {
        self.handle.apply(Read, &[&self.handle])
    }

    /// Whether it has elements.
    #[track_caller]
    pub fn is_initialized(&self) -> Tensor {
        self.handle.apply(IsInitialized, &[&self.handle])
    }

    /// New elements, stored when the run commits; a scalar is repeated. The result is what is stored.
    #[track_caller]
    pub fn assign(&self, value: impl IntoTensor) -> Tensor {
        self.update(Assign::SET, value)
    }

    /// Adds to the elements that are current when the run commits. The result is what is stored.
    #[track_caller]
    pub fn assign_add(&self, delta: impl IntoTensor) -> Tensor {
        self.update(Assign::ADD, delta)
    }

    /// Subtracts from the elements that are current when the run commits. The result is what is
    /// stored.
    #[track_caller]
    pub fn assign_sub(&self, delta: impl IntoTensor) -> Tensor {
        self.update(Assign::SUB, delta)
    }

    #[track_caller]
    fn update(&self, op: Assign, value: impl IntoTensor) -> Tensor {
        let value = value.into_tensor(&self.handle);
        let (from, to) = (value.dims().shape(), self.handle.dims().shape());
        let value = match (from, to) {
            (Some(from), Some(to)) if from.rank() == 0 && to.rank() > 0 => {
                let sizes: Vec<i64> = to.dims().iter().map(|&d| d as i64).collect();
                value.broadcast_to(&sizes)
            }
            _ => value,
        };
        self.handle.apply(op, &[&self.handle, &value])
    }
}

impl AsRef<Tensor> for Tensor {
    fn as_ref(&self) -> &Tensor {
        self
    }
}

impl AsRef<Tensor> for Variable {
    fn as_ref(&self) -> &Tensor {
        &self.read
    }
}

/// What can stand as an operand beside a tensor: tensors, variables, references to them, texts, and
/// Rust numbers, which take the tensor's dtype.
pub trait IntoTensor {
    /// Itself as a tensor of the graph and, for numbers, of the dtype of `like`.
    #[track_caller]
    fn into_tensor(self, like: &Tensor) -> Tensor;
}

impl IntoTensor for Tensor {
    fn into_tensor(self, _like: &Tensor) -> Tensor {
        self
    }
}

impl IntoTensor for &Tensor {
    fn into_tensor(self, _like: &Tensor) -> Tensor {
        self.clone()
    }
}

impl IntoTensor for Variable {
    fn into_tensor(self, _like: &Tensor) -> Tensor {
        self.read
    }
}

impl IntoTensor for &Variable {
    fn into_tensor(self, _like: &Tensor) -> Tensor {
        self.read.clone()
    }
}

impl IntoTensor for HostTensor {
    #[track_caller]
    fn into_tensor(self, like: &Tensor) -> Tensor {
        like.graph().constant(self)
    }
}

impl IntoTensor for &str {
    #[track_caller]
    fn into_tensor(self, like: &Tensor) -> Tensor {
        like.graph().constant(self)
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {
        $(impl IntoTensor for $number {
            #[track_caller]
            fn into_tensor(self, like: &Tensor) -> Tensor {
                number_like(like, self.into(), <$number as Element>::DTYPE)
            }
        })*
    };
}

numbers! { f32, f64, i32, u32, u8 }

/// `x` as a constant of the dtype of `like`; of its own dtype if that would change its value, so that
/// the operation refuses it.
#[track_caller]
fn number_like(like: &Tensor, x: f64, own: DType) -> Tensor {
    let dtype = like.dtype();
    let fits = match dtype.int_range() {
        Some((min, max)) => x.fract() == 0.0 && x >= min as f64 && x <= max as f64,
        None => dtype.is_float(),
    };
    like.graph().number(if fits { dtype } else { own }, x)
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name(), self.fact())
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl fmt::Debug for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name(), self.handle.fact())
    }
}
