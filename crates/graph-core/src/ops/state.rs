//! Variables: what a session keeps from run to run. Semantics: TensorFlow's resource variables.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::graph::SharedVariable;
use crate::op::{arity, one};
use crate::ops::control::Refused;
use crate::ops::registry::Decode;
use crate::{
    Attributes, Backward, Class, Collection, Contents, DType, Dims, Fact, Graph, HostTensor, Init,
    Op, OpError, Operation, Output, State, Tensor, Variable,
};

impl Graph {
    /// A tensor that sessions keep from run to run, on the device that it is placed on. It is in the
    /// collections `Trainable` and `Global`, and its initializer in `Initializers`.
    ///
    /// # Errors
    /// Recorded: sizes that overflow, or an initial value of another shape or dtype.
    #[track_caller]
    pub fn variable(
        &self,
        name: &str,
        init: Init,
        dtype: DType,
        sizes: impl AsRef<[usize]>,
    ) -> Variable {
        let variable = self.untrained_variable(name, init, dtype, sizes);
        self.collect(Collection::Trainable, &variable.handle);
        variable
    }

    /// As [`Self::variable`], but no optimizer trains it: a step counter, a moving average.
    #[track_caller]
    pub fn untrained_variable(
        &self,
        name: &str,
        init: Init,
        dtype: DType,
        sizes: impl AsRef<[usize]>,
    ) -> Variable {
        let variable = self.variable_in(name, init, dtype, sizes.as_ref());
        self.collect(Collection::Global, &variable.handle);
        self.collect_initializer(Collection::Initializers, &variable);
        variable
    }

    /// As [`Self::variable`], but neither trained nor kept by checkpoints, and with the initializer in
    /// `LocalInitializers`: a count of an epoch, the statistics of a metric. It is in the collection `Local`.
    #[track_caller]
    pub fn local_variable(
        &self,
        name: &str,
        init: Init,
        dtype: DType,
        sizes: impl AsRef<[usize]>,
    ) -> Variable {
        let variable = self.variable_in(name, init, dtype, sizes.as_ref());
        self.collect(Collection::Local, &variable.handle);
        self.collect_initializer(Collection::LocalInitializers, &variable);
        variable
    }

    /// The variable of this shared name in the container in scope: made as by [`Self::variable`] if there is none, and
    /// otherwise the one that is there, with its name, device and initial value.
    ///
    /// # Errors
    /// Recorded: another dtype or other sizes than those of the variable that is there.
    #[track_caller]
    pub fn shared_variable(
        &self,
        name: &str,
        init: Init,
        dtype: DType,
        sizes: impl AsRef<[usize]>,
    ) -> Variable {
        let (key, sizes) = ((self.container_now(), name.to_owned()), sizes.as_ref());
        let mut shared = self.shared();
        let Some(&SharedVariable { handle, read, initializer }) = shared.get(&key) else {
            let variable = self.variable(name, init, dtype, sizes);
            let [handle, read] = [&variable.handle, &variable.read].map(|t| t.output().node);
            let initializer = variable.initializer.id();
            if self.node(handle).invalid.is_none() {
                shared.insert(key, SharedVariable { handle, read, initializer });
            }
            return variable;
        };
        drop(shared);
        let first = |node| Tensor::new(self.clone(), Output { node, index: 0 });
        let (handle, read) = (first(handle), first(read));
        let dims = Dims::from(sizes);
        if (handle.dtype(), handle.dims()) == (dtype, dims.clone()) {
            return Variable {
                handle,
                read,
                initializer: Operation::new(self.clone(), initializer),
            };
        }
        let reason = OpError::Invalid(format!(
            "the variable {name:?} is shared and is {}{}, and here {dtype}{dims}",
            handle.dtype(),
            handle.dims()
        ));
        let refused = self.apply_named(Refused(reason), &[], name);
        Variable { handle: refused.clone(), initializer: refused.operation(), read: refused }
    }

    fn collect_initializer(&self, collection: Collection, variable: &Variable) {
        let output = Output { node: variable.initializer.id(), index: 0 };
        self.collect(collection, &Tensor::new(self.clone(), output));
    }

    /// A variable in no collection. It runs after nothing that a scope around it names: one that is made inside of
    /// [`Graph::after`] is initialised as any other.
    #[track_caller]
    fn variable_in(&self, name: &str, init: Init, dtype: DType, sizes: &[usize]) -> Variable {
        let _uncontrolled = self.uncontrolled();
        let op = VariableOp { dtype, dims: Dims::from(sizes) };
        let handle = self.apply_named(op, &[], name);
        let base = handle.node().name.to_string();
        let local = base.rsplit('/').next().unwrap_or(&base).to_owned();
        let read = self.apply_named(Read, &[&handle], &format!("{local}/read"));
        let value = init.build(self, &local, dtype, sizes);
        let assign = self.apply_named(Assign::SET, &[&handle, &value], &format!("{local}/initial"));
        Variable { handle, read, initializer: assign.operation() }
    }
}

impl Variable {
    /// Its elements at the start of the run, or its initial value if it has none yet or gets it in the run: what
    /// initial values of other variables are made of, whichever initializers run together. The initial value is
    /// computed in any case.
    ///
    /// # Source
    /// TensorFlow's `Variable.initialized_value`.
    #[track_caller]
    pub fn initialized_value(&self) -> Tensor {
        let node = self.initializer().node();
        // A refused initializer may have lost it; then this is refused, too.
        let initial = node.inputs.get(1).map(|&output| Tensor::new(self.graph().clone(), output));
        let inputs: Vec<&Tensor> = std::iter::once(self.handle()).chain(&initial).collect();
        self.handle().apply(ReadOr, &inputs)
    }
}

pub(crate) fn no_value() -> OpError {
    OpError::Invalid("a variable has no value outside of a session".into())
}

#[derive(Debug, Clone)]
struct VariableOp {
    dtype: DType,
    dims: Dims,
}

impl Op for VariableOp {
    fn name(&self) -> &str {
        "variable"
    }

    fn infer(&self, _: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let dims = self.dims.clone().checked()?;
        one(Fact { dtype: self.dtype, dims, contents: Contents::Variable })
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Err(no_value())
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        Vec::new()
    }

    fn class(&self) -> Class<'_> {
        Class::State(State::Variable)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("dtype", self.dtype).with("dims", self.dims.clone()))
    }
}

/// The variable that an operation's first input must be.
pub(crate) fn handle(fact: &Fact) -> Result<&Fact, OpError> {
    if fact.is_variable() {
        Ok(fact)
    } else {
        Err(OpError::Invalid(format!("expected a variable's handle, got a tensor {fact}")))
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Read;

impl Op for Read {
    fn name(&self) -> &str {
        "read"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [variable] = arity(inputs)?;
        let variable = handle(variable)?;
        one(Fact::new(variable.dtype, variable.dims.clone()))
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Err(no_value())
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None]
    }

    fn class(&self) -> Class<'_> {
        Class::State(State::Read)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()))
    }
}

#[derive(Debug, Clone, Copy)]
struct ReadOr;

impl Op for ReadOr {
    fn name(&self) -> &str {
        "initialized_value"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [variable, initial] = arity(inputs)?;
        let variable = handle(variable)?;
        if initial.dtype != variable.dtype {
            return Err(OpError::DTypes { lhs: variable.dtype, rhs: initial.dtype });
        }
        one(Fact::new(variable.dtype, variable.dims.unify(&initial.dims)?))
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Err(no_value())
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None, None]
    }

    fn class(&self) -> Class<'_> {
        Class::State(State::ReadOr)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()))
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Assign(State);

impl Assign {
    pub(crate) const SET: Self = Self(State::Assign);
    pub(crate) const ADD: Self = Self(State::AssignAdd);
    pub(crate) const SUB: Self = Self(State::AssignSub);
}

impl Op for Assign {
    fn name(&self) -> &str {
        match self.0 {
            State::AssignAdd => "assign_add",
            State::AssignSub => "assign_sub",
            _ => "assign",
        }
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [variable, value] = arity(inputs)?;
        let variable = handle(variable)?;
        if value.dtype != variable.dtype {
            return Err(OpError::DTypes { lhs: variable.dtype, rhs: value.dtype });
        }
        let dims = variable.dims.unify(&value.dims)?;
        if self.0 != State::Assign {
            value.expect("assign_add and assign_sub", "numbers", DType::is_number)?;
        }
        one(Fact::new(variable.dtype, dims))
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Err(no_value())
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None, None]
    }

    fn class(&self) -> Class<'_> {
        Class::State(self.0)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()))
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct IsInitialized;

impl Op for IsInitialized {
    fn name(&self) -> &str {
        "is_initialized"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [variable] = arity(inputs)?;
        handle(variable)?;
        one(Fact::new(DType::Bool, Vec::new()))
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Err(no_value())
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None]
    }

    fn class(&self) -> Class<'_> {
        Class::State(State::IsInitialized)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()))
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[
    ("variable", |a| {
        let (dtype, dims) = (a.dtype("dtype")?, a.dims("dims")?);
        if dims.shape().is_none() {
            return Err(OpError::Invalid(format!("a variable needs all its sizes, not {dims}")));
        }
        Ok(Arc::new(VariableOp { dtype, dims }))
    }),
    ("read", |_| Ok(Arc::new(Read))),
    ("initialized_value", |_| Ok(Arc::new(ReadOr))),
    ("assign", |_| Ok(Arc::new(Assign::SET))),
    ("assign_add", |_| Ok(Arc::new(Assign::ADD))),
    ("assign_sub", |_| Ok(Arc::new(Assign::SUB))),
    ("is_initialized", |_| Ok(Arc::new(IsInitialized))),
];
