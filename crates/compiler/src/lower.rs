//! From a plan to single operations on concrete shapes: shape arithmetic and constants are folded, equal
//! operations are shared, and views become layouts of their inputs.

mod images;

use std::sync::Arc;

use convoke_graph_core::{
    Class, Contents, Contract, Control, DType, Dims, Elementwise, Error, Fact, Host, HostTensor,
    Layout, Move, Node, NodeId, Output, Reduce, ReduceKind, Result, Shape, State, View, ops,
};
use rustc_hash::FxHashMap;
use smallvec::{SmallVec, smallvec};

use crate::{
    Arg, Commit, Fused, Group, Instr, Kernel, Operand, Plan, Reduction, Source, Value, ValueId,
};

/// Results of at most this many elements are computed when compiling, if all inputs are constant.
const FOLD_MAX: usize = 1024;

/// The host computes at most this many elements of shapes and ranges when compiling.
const METADATA_MAX: usize = 1 << 24;

/// What a run gives for a feed.
#[derive(Debug, Clone, PartialEq)]
pub struct InputFact {
    /// The shape.
    pub shape: Shape,
    /// The elements, where shapes may be computed from them.
    pub contents: Option<HostTensor>,
}

/// Single operations on concrete shapes.
#[derive(Debug, Clone, Default)]
pub struct Lowered {
    /// The values.
    pub values: Vec<Value>,
    /// The operations, inputs before users.
    pub groups: Vec<Group>,
    /// For each fetch, a packed value and the shape that it is seen with.
    pub fetches: Vec<Operand>,
    /// What variables get.
    pub commits: Vec<Commit>,
    /// Random nodes.
    pub random: Vec<NodeId>,
}

/// What is known of an output while lowering.
#[derive(Debug, Clone)]
enum Form {
    /// In the buffer of a value.
    Operand(Operand),
    /// Known elements.
    Constant(HostTensor),
    /// One known element, repeated.
    Splat(HostTensor, Shape),
    /// A variable's handle.
    Handle(NodeId),
}

struct Lowering<'a> {
    plan: &'a Plan,
    out: Lowered,
    forms: FxHashMap<Output, (Fact, Form)>,
    variables: FxHashMap<NodeId, ValueId>,
    /// The device that the node at hand asks for.
    device: Option<Arc<str>>,
    /// Equal operations, by their text and inputs.
    shared: FxHashMap<(String, Vec<Output>), NodeId>,
    /// For each output, the equal one that was lowered first.
    same: FxHashMap<Output, Output>,
}

/// Lowers `plan` for these inputs, one for each feed.
pub(crate) fn lower(plan: &Plan, inputs: &[InputFact]) -> Result<Lowered> {
    let mut lowering = Lowering {
        plan,
        out: Lowered::default(),
        forms: FxHashMap::default(),
        variables: FxHashMap::default(),
        device: None,
        shared: FxHashMap::default(),
        same: FxHashMap::default(),
    };
    lowering.feeds(inputs)?;
    for node in &plan.nodes {
        lowering.node(node).map_err(|e| e.with_node(&*node.name).with_location(node.location))?;
    }
    lowering.finish()
}

impl Lowering<'_> {
    fn feeds(&mut self, inputs: &[InputFact]) -> Result<()> {
        for (&feed, input) in self.plan.signature.feeds.iter().zip(inputs) {
            let dtype = self.feed_dtype(feed)?;
            let mut fact = Fact::new(dtype, &input.shape);
            if let Some(contents) = &input.contents {
                fact = Fact::of(contents);
            }
            let form = match &input.contents {
                Some(contents) => Form::Constant(contents.clone()),
                None => self.source(dtype, input.shape.clone(), Source::Feed(feed)),
            };
            self.forms.insert(feed, (fact, form));
        }
        Ok(())
    }

    fn feed_dtype(&self, feed: Output) -> Result<DType> {
        let dtypes = &self.plan.feed_dtypes;
        let at = self.plan.signature.feeds.iter().position(|&f| f == feed);
        at.and_then(|at| dtypes.get(at).copied())
            .ok_or_else(|| Error::internal("a feed has no dtype"))
    }

    fn node(&mut self, node: &Arc<Node>) -> Result<()> {
        self.device = node.device.clone();
        let mut inputs: SmallVec<[(Fact, Form); 3]> = SmallVec::new();
        for input in &node.inputs {
            let of = self.forms.get(input).cloned();
            inputs.push(of.ok_or_else(|| Error::internal("an input was not lowered"))?);
        }
        if self.reuse(node) {
            return Ok(());
        }
        let facts: SmallVec<[Fact; 3]> = inputs.iter().map(|(fact, _)| fact.clone()).collect();
        let outputs = match node.op.class() {
            // Unless it is fed, a placeholder is its default, whatever else it could be.
            Class::Host(Host::Placeholder) if !facts.is_empty() => smallvec![facts[0].clone()],
            _ => node.op.infer(&facts)?,
        };
        let forms: SmallVec<[Form; 3]> = inputs.into_iter().map(|(_, form)| form).collect();
        let results = match fold(node, &forms, &outputs) {
            Some(folded) => folded,
            None => self.lower_class(node, &forms, &facts, &outputs)?,
        };
        for (index, (mut fact, form)) in outputs.into_iter().zip(results).enumerate() {
            match &form {
                Form::Constant(tensor) => fact = Fact::of(tensor),
                Form::Splat(scalar, shape) if shape.rank() == 0 => fact = Fact::of(scalar),
                _ => {}
            }
            self.forms.entry(Output { node: node.id, index: index as u32 }).or_insert((fact, form));
        }
        Ok(())
    }

    /// Takes the result of an equal operation, if there was one.
    fn reuse(&mut self, node: &Node) -> bool {
        let pure = match node.op.class() {
            Class::State(_) | Class::Random(_) | Class::Control(_) => false,
            Class::Host(Host::Constant(tensor)) => tensor.len() <= 16,
            Class::Host(Host::Placeholder) => false,
            _ => true,
        };
        if !pure || node.device.is_some() || !node.colocated.is_empty() {
            return false;
        }
        let first = |output: &Output| self.same.get(output).copied().unwrap_or(*output);
        let key = (format!("{:?}", node.op), node.inputs.iter().map(first).collect());
        let Some(&equal) = self.shared.get(&key) else {
            self.shared.insert(key, node.id);
            return false;
        };
        for index in 0..node.facts.len() as u32 {
            let (own, other) = (Output { node: node.id, index }, Output { node: equal, index });
            let Some(form) = self.forms.get(&other).cloned() else { return false };
            self.forms.entry(own).or_insert(form);
            self.same.insert(own, other);
        }
        true
    }

    fn lower_class(
        &mut self,
        node: &Node,
        forms: &[Form],
        facts: &[Fact],
        outputs: &[Fact],
    ) -> Result<SmallVec<[Form; 1]>> {
        if let Class::Control(Control::NoOp) = node.op.class() {
            return Ok(SmallVec::new());
        }
        let fact = outputs.first().ok_or_else(|| Error::internal("an operation has no output"))?;
        let shape = fact.shape().ok_or_else(|| {
            Error::new(
                convoke_graph_core::ErrorKind::Unimplemented,
                format!("unsupported: the shape {} depends on computed data", fact.dims),
            )
        })?;
        let form = match node.op.class() {
            Class::Elementwise(op) => {
                let args: SmallVec<[&Form; 3]> = forms.iter().collect();
                self.elementwise(node.id, op, &args, fact.dtype, &shape)?
            }
            Class::View(view) => self.view(node.id, &view, &forms[0], fact.dtype, &shape)?,
            Class::Reduce(reduce) => {
                self.reduce(node.id, &reduce, &forms[0], &facts[0].dims, fact.dtype, &shape)?
            }
            Class::Contract(contract) => {
                self.contract(node.id, &contract, forms, fact.dtype, &shape)?
            }
            Class::Window(window) => self.window(node.id, window, forms, fact.dtype, &shape)?,
            Class::Move(movement) => {
                self.movement(node.id, &movement, forms, fact.dtype, &shape)?
            }
            Class::Random(random) => {
                self.out.random.push(node.id);
                let draws = self.source(DType::U32, Shape::scalar(), Source::Draws(node.id));
                let draws = self.operand(&draws)?;
                let kernel = Kernel::Random(random);
                self.group(node.id, kernel, smallvec![draws], fact.dtype, &shape)
            }
            Class::Host(Host::Constant(tensor)) => Form::Constant(tensor.clone()),
            Class::Host(Host::Placeholder) => match forms.first() {
                Some(default) => default.clone(),
                // A fed placeholder has its form already; a target may name it all the same.
                None => return Ok(SmallVec::new()),
            },
            Class::State(state) => self.state(node, state, forms, fact.dtype, &shape)?,
            other => {
                let message = format!("unsupported: {other:?} of values that are not known");
                return Err(Error::new(convoke_graph_core::ErrorKind::Unimplemented, message));
            }
        };
        Ok(smallvec![form])
    }

    fn elementwise(
        &mut self,
        node: NodeId,
        op: Elementwise,
        args: &[&Form],
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        let mut fused = Fused {
            shape: shape.clone(),
            input_dtypes: SmallVec::new(),
            constants: Vec::new(),
            instrs: Vec::new(),
            stores: smallvec![Arg::Instr(0)],
        };
        let mut inputs: SmallVec<[Operand; 3]> = SmallVec::new();
        let mut instr = Instr { op, args: SmallVec::new(), dtype };
        for form in args {
            if let Some(scalar) = splat(form) {
                instr.args.push(Arg::Constant(fused.constants.len() as u32));
                fused.constants.push(scalar);
                continue;
            }
            let operand = self.operand(form)?;
            let layout = operand.layout.broadcast(shape).ok_or_else(|| {
                let from = operand.layout.shape();
                Error::internal(format!("{from} does not broadcast to {shape}"))
            })?;
            let operand = Operand { value: operand.value, layout };
            let known = inputs.iter().position(|input| *input == operand);
            let at = known.unwrap_or(inputs.len());
            if known.is_none() {
                fused.input_dtypes.push(self.out.values[operand.value.0 as usize].dtype);
                inputs.push(operand);
            }
            instr.args.push(Arg::Input(at as u32));
        }
        fused.instrs.push(instr);
        Ok(self.group(node, Kernel::Elementwise(fused), inputs, dtype, shape))
    }

    fn view(
        &mut self,
        node: NodeId,
        view: &View,
        input: &Form,
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        if let Some(scalar) = splat(input) {
            return Ok(Form::Splat(scalar, shape.clone()));
        }
        if let (View::Identity, form) = (view, input) {
            return Ok(form.clone());
        }
        let operand = self.operand(input)?;
        if let Some(layout) = view.layout(&operand.layout, shape) {
            return Ok(Form::Operand(Operand { value: operand.value, layout }));
        }
        let packed = self.packed(node, input, dtype)?;
        let layout = view.layout(&packed.layout, shape);
        let layout = layout.ok_or_else(|| Error::internal("a packed tensor cannot be viewed"))?;
        Ok(Form::Operand(Operand { value: packed.value, layout }))
    }

    fn reduce(
        &mut self,
        node: NodeId,
        reduce: &Reduce,
        input: &Form,
        dims: &Dims,
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        let operand = self.operand(input)?;
        let rank = operand.layout.shape().rank();
        let mask = reduce.mask(rank, dims, &shape.into())?;
        let is_arg = matches!(reduce.kind, ReduceKind::ArgMax | ReduceKind::ArgMin);
        if !mask.contains(&true) && !is_arg {
            return self.view(node, &View::Reshape, input, dtype, shape);
        }
        let (mut axes, inner): (Vec<usize>, Vec<usize>) = (0..rank).partition(|&a| !mask[a]);
        let n_outer = axes.len();
        axes.extend(inner);
        let layout = operand.layout.permute(&axes);
        let layout = layout.ok_or_else(|| Error::internal("axes are not a permutation"))?;
        let operand = Operand { value: operand.value, layout };
        let kernel = Kernel::Reduce(Reduction { kind: reduce.kind, n_outer });
        Ok(self.group(node, kernel, smallvec![operand], dtype, shape))
    }

    fn contract(
        &mut self,
        node: NodeId,
        contract: &Contract,
        forms: &[Form],
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        let Contract::Matmul { transpose_a, transpose_b } = *contract else {
            return self.convolution(node, contract, forms, dtype, shape);
        };
        let mut inputs: SmallVec<[Operand; 3]> = SmallVec::new();
        for (form, transposed) in forms.iter().zip([transpose_a, transpose_b]) {
            let operand = self.operand(form)?;
            let rank = operand.layout.shape().rank();
            let mut axes: Vec<usize> = (0..rank).collect();
            if transposed && rank >= 2 {
                axes.swap(rank - 1, rank - 2);
            }
            let misfit = || Error::internal("an operand does not fit its product");
            let layout = operand.layout.permute(&axes).ok_or_else(misfit)?;
            let mut dims = shape.dims()[..shape.rank() - 2].to_vec();
            dims.extend_from_slice(&layout.shape().dims()[rank - 2..]);
            let layout = layout.broadcast(&Shape::new(&dims)?).ok_or_else(misfit)?;
            inputs.push(Operand { value: operand.value, layout });
        }
        Ok(self.group(node, Kernel::Matmul, inputs, dtype, shape))
    }

    fn movement(
        &mut self,
        node: NodeId,
        movement: &Move,
        forms: &[Form],
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        let (kernel, data): (Kernel, &[Form]) = match movement {
            Move::Pad { before } => (Kernel::Pad { before: before.clone() }, &forms[..1]),
            Move::Concat { axis } => (Kernel::Concat { axis: *axis }, forms),
            Move::Gather { axis } => (Kernel::Gather { axis: *axis }, forms),
            Move::ScatterAdd { axis } => (Kernel::ScatterAdd { axis: *axis }, &forms[1..]),
            other => return Err(Error::internal(format!("no lowering of {other:?}"))),
        };
        let inputs = data.iter().map(|form| self.operand(form)).collect::<Result<_>>()?;
        Ok(self.group(node, kernel, inputs, dtype, shape))
    }

    fn state(
        &mut self,
        node: &Node,
        state: State,
        forms: &[Form],
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        let before = self.plan.after.get(&node.id).copied();
        let variable = match (state, forms.first()) {
            (State::Variable, _) => return Ok(Form::Handle(node.id)),
            (_, Some(Form::Handle(variable))) => *variable,
            _ => return Err(Error::internal("the handle of a variable is missing")),
        };
        match (state, before) {
            (State::Assign, _) => Ok(forms[1].clone()),
            (State::IsInitialized, Some(_)) => Ok(Form::Constant(HostTensor::from(true))),
            (State::IsInitialized, None) => {
                Ok(self.source(DType::Bool, Shape::scalar(), Source::Initialized(variable)))
            }
            (State::Read, before) => self.current(variable, before, dtype, shape),
            (State::AssignAdd | State::AssignSub, before) => {
                let current = self.current(variable, before, dtype, shape)?;
                let name = if state == State::AssignAdd { "add" } else { "sub" };
                let row = ops::rows().find(|row| row.name == name);
                let row = row.ok_or_else(|| Error::internal(format!("no row {name}")))?;
                let args = [&current, &forms[1]];
                self.elementwise(node.id, Elementwise::Row(row), &args, dtype, shape)
            }
            _ => Err(Error::internal(format!("no lowering of {state:?}"))),
        }
    }

    /// The elements of a variable after `assign`, or at the start of the run.
    fn current(
        &mut self,
        variable: NodeId,
        assign: Option<NodeId>,
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        if let Some(assign) = assign {
            let of = self.forms.get(&Output { node: assign, index: 0 });
            return Ok(of.ok_or_else(|| Error::internal("an assignment is missing"))?.1.clone());
        }
        let layout = Layout::packed(shape.clone());
        if let Some(&value) = self.variables.get(&variable) {
            return Ok(Form::Operand(Operand { value, layout }));
        }
        let form = self.source(dtype, shape.clone(), Source::Variable(variable));
        if let Form::Operand(operand) = &form {
            self.variables.insert(variable, operand.value);
        }
        Ok(form)
    }

    fn finish(mut self) -> Result<Lowered> {
        let mut fetches = Vec::new();
        for fetch in &self.plan.signature.fetches {
            let (fact, form) = self
                .forms
                .get(fetch)
                .cloned()
                .ok_or_else(|| Error::internal("a fetch was not lowered"))?;
            if fact.is_variable() {
                let message = "a variable's handle has no value; fetch what it reads";
                return Err(Error::invalid(message));
            }
            fetches.push(self.packed(fetch.node, &form, fact.dtype)?);
        }
        self.out.fetches = fetches;
        let mut variables: Vec<NodeId> = self.plan.assigns.keys().copied().collect();
        variables.sort_unstable();
        for variable in variables {
            let assigns = &self.plan.assigns[&variable];
            let Some(&last) = assigns.last() else { continue };
            let of = self.forms.get(&Output { node: last, index: 0 }).cloned();
            let (fact, form) = of.ok_or_else(|| Error::internal("an assignment is missing"))?;
            let value = self.packed(last, &form, fact.dtype)?.value;
            // A longer chain, or a plain assignment, does not depend on what others committed.
            let accumulates = assigns.len() == 1 && self.accumulates(last);
            self.out.commits.push(Commit { variable, value, accumulates });
        }
        Ok(self.out)
    }

    fn accumulates(&self, assign: NodeId) -> bool {
        let node = self.plan.nodes.iter().find(|node| node.id == assign);
        let adds = |node: &Arc<Node>| {
            matches!(node.op.class(), Class::State(State::AssignAdd | State::AssignSub))
        };
        node.is_some_and(adds)
    }

    /// A value from outside of the program.
    fn source(&mut self, dtype: DType, shape: Shape, source: Source) -> Form {
        let value = self.value(dtype, shape.clone(), source);
        Form::Operand(Operand { value, layout: Layout::packed(shape) })
    }

    fn value(&mut self, dtype: DType, shape: Shape, source: Source) -> ValueId {
        self.out.values.push(Value { dtype, shape, source });
        ValueId(self.out.values.len() as u32 - 1)
    }

    fn group(
        &mut self,
        node: NodeId,
        kernel: Kernel,
        inputs: SmallVec<[Operand; 3]>,
        dtype: DType,
        shape: &Shape,
    ) -> Form {
        let value = self.value(dtype, shape.clone(), Source::Computed);
        let (outputs, nodes, device) = (smallvec![value], vec![node], self.device.clone());
        self.out.groups.push(Group { kernel, inputs, outputs, nodes, device });
        Form::Operand(Operand { value, layout: Layout::packed(shape.clone()) })
    }

    /// A form as it lies in some value's buffer.
    fn operand(&mut self, form: &Form) -> Result<Operand> {
        match form {
            Form::Operand(operand) => Ok(operand.clone()),
            Form::Constant(tensor) => {
                let (dtype, shape) = (tensor.dtype(), tensor.shape().clone());
                let layout = Layout::packed(shape.clone());
                let value = self.value(dtype, shape, Source::Constant(tensor.clone()));
                Ok(Operand { value, layout })
            }
            Form::Splat(scalar, shape) => {
                let one = Layout::packed(Shape::scalar());
                let value =
                    self.value(scalar.dtype(), Shape::scalar(), Source::Constant(scalar.clone()));
                let layout = one.broadcast(shape);
                let layout =
                    layout.ok_or_else(|| Error::internal("a scalar does not broadcast"))?;
                Ok(Operand { value, layout })
            }
            Form::Handle(_) => {
                Err(Error::invalid("a variable's handle has no elements; use what it reads"))
            }
        }
    }

    /// A form that fills a value's buffer in row-major order; copied if it does not yet.
    fn packed(&mut self, node: NodeId, form: &Form, dtype: DType) -> Result<Operand> {
        if !matches!(form, Form::Splat(_, shape) if shape.len() != 1) {
            let operand = self.operand(form)?;
            let whole = self.out.values[operand.value.0 as usize].shape.len();
            let layout = &operand.layout;
            if layout.is_packed() && layout.offset() == 0 && layout.shape().len() == whole {
                return Ok(operand);
            }
        }
        if dtype == DType::String {
            let message = "unsupported: strings that are transposed, broadcast or sliced";
            return Err(Error::new(convoke_graph_core::ErrorKind::Unimplemented, message));
        }
        let (shape, inputs, constants, store): (Shape, SmallVec<[Operand; 3]>, _, _) = match form {
            Form::Splat(scalar, shape) => {
                (shape.clone(), SmallVec::new(), vec![scalar.clone()], Arg::Constant(0))
            }
            _ => {
                let operand = self.operand(form)?;
                (operand.layout.shape().clone(), smallvec![operand], Vec::new(), Arg::Input(0))
            }
        };
        let input_dtypes = inputs.iter().map(|_| dtype).collect();
        let fused = Fused {
            shape: shape.clone(),
            input_dtypes,
            constants,
            instrs: Vec::new(),
            stores: smallvec![store],
        };
        let copy = self.group(node, Kernel::Elementwise(fused), inputs, dtype, &shape);
        self.operand(&copy)
    }
}

/// The one element of a form that repeats it.
fn splat(form: &Form) -> Option<HostTensor> {
    match form {
        Form::Splat(scalar, _) => Some(scalar.clone()),
        Form::Constant(tensor) if tensor.len() == 1 => tensor.reshaped(Shape::scalar()).ok(),
        _ => None,
    }
}

/// The results of an operation on constants, if they are small or only the host computes them.
fn fold(node: &Node, forms: &[Form], outputs: &[Fact]) -> Option<SmallVec<[Form; 1]>> {
    let class = node.op.class();
    let metadata = matches!(class, Class::Host(Host::Metadata));
    if metadata {
        let known = |fact: &Fact| match &fact.contents {
            Contents::Known(tensor) => Some(Form::Constant(tensor.clone())),
            _ => None,
        };
        if let Some(known) = outputs.iter().map(known).collect() {
            return Some(known);
        }
    }
    let pure = match &class {
        Class::State(_) | Class::Random(_) | Class::Control(_) => false,
        Class::Host(_) => metadata,
        // A view of one repeated element stays that.
        Class::View(_) => forms.first().is_some_and(|form| splat(form).is_none()),
        _ => true,
    };
    if !pure || forms.is_empty() {
        return None;
    }
    if let (Class::Elementwise(_), Some(fact)) = (&class, outputs.first()) {
        let scalars: Option<Vec<HostTensor>> = forms.iter().map(splat).collect();
        if let Some(result) = scalars.and_then(|scalars| node.op.eval(&scalars).ok()) {
            return Some(smallvec![Form::Splat(result.first()?.clone(), fact.shape()?)]);
        }
    }
    let small = |fact: &Fact| fact.shape().is_some_and(|s| s.len() <= FOLD_MAX);
    let bounded = |fact: &Fact| fact.shape().is_some_and(|s| s.len() <= METADATA_MAX);
    if !outputs.iter().all(|fact| small(fact) || (metadata && bounded(fact))) {
        return None;
    }
    let constant = |form: &Form| match form {
        Form::Constant(tensor) if tensor.len() <= FOLD_MAX || metadata => Some(tensor.clone()),
        Form::Splat(scalar, shape) if shape.rank() == 0 => Some(scalar.clone()),
        _ => None,
    };
    let values: Option<Vec<HostTensor>> = forms.iter().map(constant).collect();
    let results = node.op.eval(&values?).ok()?;
    Some(results.into_iter().map(Form::Constant).collect())
}
