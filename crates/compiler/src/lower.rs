//! From a plan to single operations on concrete shapes: shape arithmetic and constants are folded, equal
//! operations are shared, and views become layouts of their inputs.

mod fold;
mod identities;
mod images;
mod moves;
mod simplify;
mod state;
mod unroll;

use std::sync::Arc;

use convoke_graph_core::{
    Class, Contract, Control, CustomKernel, DType, Dims, Elementwise, Error, ErrorKind, Fact, Flow,
    Host, HostTensor, Layout, Node, NodeId, Output, Reduce, ReduceKind, Result, Shape, View,
};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::{SmallVec, smallvec};

use crate::asked::Companies;
use fold::{fold, refined, splat};
use identities::identity;
use simplify::remove_dead;

use crate::{
    Apart, Arg, Asked, Commit, DeviceIndex, Fused, Group, Instr, Kernel, Operand, Plan, Reduction,
    Source, Value, ValueId,
};

/// What a run gives for a feed.
#[derive(Debug, Clone, PartialEq)]
pub struct InputFact {
    /// The shape.
    pub shape: Shape,
    /// The elements, where shapes may be computed from them.
    pub contents: Option<HostTensor>,
    /// The device whose memory it lies in, if the run may write its results there.
    pub donated: Option<DeviceIndex>,
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
    /// Variables that may have no elements.
    pub optional: Vec<NodeId>,
    /// Random nodes.
    pub random: Vec<NodeId>,
    /// For values, why those who compute and read them are not one kernel.
    pub apart: FxHashMap<ValueId, Apart>,
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
    /// Variables that must have elements.
    required: FxHashSet<NodeId>,
    /// What the node at hand asks for.
    asked: Asked,
    companies: Companies,
    /// How many loops are being unrolled: what their bodies give is another thing in each iteration.
    depth: u32,
    /// Equal operations, by their text and inputs.
    shared: FxHashMap<(String, Vec<Output>), NodeId>,
    /// For each output, the equal one that was lowered first.
    same: FxHashMap<Output, Output>,
    /// For values that casts give, what they are of.
    casts: FxHashMap<ValueId, Operand>,
    /// Whether operations may become others that give the same.
    simplify: bool,
    /// The places of the plan's nodes.
    places: FxHashMap<NodeId, usize>,
}

/// Lowers `plan` for these inputs, one for each feed.
pub(crate) fn lower(plan: &Plan, inputs: &[InputFact], simplify: bool) -> Result<Lowered> {
    let mut lowering = Lowering {
        plan,
        out: Lowered::default(),
        forms: FxHashMap::default(),
        variables: FxHashMap::default(),
        required: FxHashSet::default(),
        asked: Asked::default(),
        companies: Companies::of(plan),
        depth: 0,
        shared: FxHashMap::default(),
        same: FxHashMap::default(),
        casts: FxHashMap::default(),
        simplify,
        places: plan.nodes.iter().enumerate().map(|(at, node)| (node.id, at)).collect(),
    };
    lowering.feeds(inputs)?;
    for node in &plan.nodes {
        lowering.node(node).map_err(|e| e.with_node(&*node.name).with_location(node.location))?;
    }
    let mut lowered = lowering.finish()?;
    if simplify {
        remove_dead(&mut lowered, &plan.signature.targets);
    }
    Ok(lowered)
}

impl Lowering<'_> {
    fn feeds(&mut self, inputs: &[InputFact]) -> Result<()> {
        for (&feed, input) in self.plan.signature.feeds.iter().zip(inputs) {
            let dtype = self.feed_dtype(feed)?;
            if self.plan.handles.contains(&feed) {
                let form = self.source(dtype, input.shape.clone(), Source::Feed(feed));
                if let Form::Operand(operand) = form {
                    self.variables.insert(feed.node, operand.value);
                }
                continue;
            }
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

    fn asked_by(&self, node: &Node) -> Asked {
        Asked { device: node.device.clone(), company: self.companies.of_node(node.id) }
    }

    fn node(&mut self, node: &Arc<Node>) -> Result<()> {
        self.asked = self.asked_by(node);
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
            class => {
                let outputs = node.op.infer(&facts)?;
                class.check(&facts, &outputs)?;
                outputs
            }
        };
        let forms: SmallVec<[Form; 3]> = inputs.into_iter().map(|(_, form)| form).collect();
        let results = match fold(node, &forms, &outputs) {
            Some(folded) => folded,
            None => self.lower_class(node, &forms, &facts, &outputs)?,
        };
        for (index, (fact, form)) in outputs.into_iter().zip(results).enumerate() {
            self.check_form(&form, &fact)?;
            let index = match node.op.class() {
                Class::Flow(Flow::Loop(op)) => op.node_output(index),
                _ => index,
            };
            let output = Output { node: node.id, index: index as u32 };
            self.forms.entry(output).or_insert((refined(fact, &form), form));
        }
        Ok(())
    }

    /// Whether what an operation's class gives is what the operation says of its output.
    fn check_form(&self, form: &Form, fact: &Fact) -> Result<()> {
        let (dtype, shape) = match form {
            Form::Operand(o) => (self.out.values[o.value.0 as usize].dtype, o.layout.shape()),
            Form::Constant(tensor) => (tensor.dtype(), tensor.shape()),
            Form::Splat(scalar, shape) => (scalar.dtype(), shape),
            Form::Handle(_) => return Ok(()),
        };
        if dtype == fact.dtype && fact.dims.admits(shape) {
            return Ok(());
        }
        let Fact { dtype: said, dims, .. } = fact;
        let message =
            format!("the operation says that it gives {said}{dims}, and gives {dtype}{shape}");
        Err(Error::invalid(message))
    }

    /// Takes the result of an equal operation, if there was one.
    fn reuse(&mut self, node: &Node) -> bool {
        let pure = match node.op.class() {
            Class::State(_) | Class::Random(_) | Class::Control(_) => false,
            Class::Queue(_) | Class::Reader(_) | Class::Table(_) | Class::Flow(_) => false,
            Class::Host(Host::Constant(tensor)) => tensor.len() <= 16,
            Class::Host(Host::Placeholder) => false,
            _ => true,
        };
        let is_free = node.device.is_none() && node.colocated.is_empty();
        if !pure || !is_free || !self.simplify || self.depth > 0 {
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
        match node.op.class() {
            Class::Control(Control::NoOp) => return Ok(SmallVec::new()),
            // What is taken or read is fed, and what is put is fetched.
            Class::Queue(_) | Class::Reader(_) | Class::Table(_) => return Ok(SmallVec::new()),
            Class::Custom(kernel) => return self.custom(node.id, kernel, forms, facts, outputs),
            Class::Flow(Flow::Loop(op)) => return self.unrolled(node, op, forms, facts, outputs),
            _ => {}
        }
        let fact = outputs.first().ok_or_else(|| Error::internal("an operation has no output"))?;
        let shape = known_shape(fact)?;
        let form = match node.op.class() {
            Class::Elementwise(op) => {
                let args: SmallVec<[&Form; 3]> = forms.iter().collect();
                let scaled = match self.simplify {
                    true => self.scaled_convolution(node, forms, (fact.dtype, &shape))?,
                    false => None,
                };
                match scaled {
                    Some(scaled) => scaled,
                    None => self.elementwise(node.id, op, &args, fact.dtype, &shape)?,
                }
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
            Class::Text(op) => {
                let inputs = forms.iter().map(|form| self.operand(form)).collect::<Result<_>>()?;
                self.group(node.id, Kernel::Text(op.clone()), inputs, fact.dtype, &shape)
            }
            Class::Random(random) => self.random(node.id, random, fact.dtype, &shape)?,
            Class::Host(Host::Constant(tensor)) => Form::Constant(tensor.clone()),
            Class::Host(Host::Placeholder) => match forms.first() {
                Some(default) => default.clone(),
                // A fed placeholder has its form already; a target may name it all the same.
                None => return Ok(SmallVec::new()),
            },
            Class::State(state) => self.state(node, state, forms, fact.dtype, &shape)?,
            other => {
                let message = format!("unsupported: {other:?} of values that are not known");
                return Err(Error::new(ErrorKind::Unimplemented, message));
            }
        };
        Ok(smallvec![form])
    }

    /// A user's own kernel, which sees packed inputs.
    fn custom(
        &mut self,
        node: NodeId,
        kernel: Arc<dyn CustomKernel>,
        forms: &[Form],
        facts: &[Fact],
        outputs: &[Fact],
    ) -> Result<SmallVec<[Form; 1]>> {
        let both = forms.iter().zip(facts);
        let inputs = both.map(|(form, fact)| self.packed(node, form, fact.dtype));
        let inputs = inputs.collect::<Result<_>>()?;
        let mut ids = SmallVec::new();
        for fact in outputs {
            ids.push(self.value(fact.dtype, known_shape(fact)?, Source::Computed));
        }
        let form = |&value: &ValueId| {
            let layout = Layout::packed(self.out.values[value.0 as usize].shape.clone());
            Form::Operand(Operand { value, layout })
        };
        let results = ids.iter().map(form).collect();
        let (kernel, nodes, asked) = (Kernel::Custom(kernel), vec![node], self.asked.clone());
        self.out.groups.push(Group::plain(kernel, (inputs, ids), nodes, asked));
        Ok(results)
    }

    fn elementwise(
        &mut self,
        node: NodeId,
        op: Elementwise,
        args: &[&Form],
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        if self.simplify
            && let Some(&given) = identity(op, args, dtype).and_then(|at| args.get(at))
        {
            return self.broadcast(given, shape);
        }
        if let (Elementwise::Cast, &[arg], true) = (op, args, self.simplify) {
            let source = self.without_cast(arg, dtype);
            let arg = source.as_ref().unwrap_or(arg);
            if self.dtype(arg) == Some(dtype) {
                return self.broadcast(arg, shape);
            }
            let cast = self.single(node, op, &[arg], dtype, shape)?;
            if let (Form::Operand(of), Form::Operand(given)) = (arg, &cast) {
                self.casts.insert(given.value, of.clone());
            }
            return Ok(cast);
        }
        self.single(node, op, args, dtype, shape)
    }

    /// The dtype of what has elements.
    fn dtype(&self, form: &Form) -> Option<DType> {
        match form {
            Form::Operand(operand) => Some(self.out.values[operand.value.0 as usize].dtype),
            Form::Constant(tensor) | Form::Splat(tensor, _) => Some(tensor.dtype()),
            Form::Handle(_) => None,
        }
    }

    /// One elementwise operation as a group.
    fn single(
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
            check: None,
        };
        let mut inputs: SmallVec<[Operand; 3]> = SmallVec::new();
        let mut instr = Instr { op, args: SmallVec::new(), dtype };
        for form in args {
            if let Some(scalar) = splat(form) {
                instr.args.push(Arg::Constant(fused.constants.len() as u32));
                fused.constants.push(scalar);
                continue;
            }
            let Form::Operand(operand) = self.broadcast(form, shape)? else {
                return Err(Error::internal("a constant was not seen as one"));
            };
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

    /// A form, seen with a shape that it broadcasts to.
    fn broadcast(&mut self, form: &Form, shape: &Shape) -> Result<Form> {
        if let Some(scalar) = splat(form) {
            return Ok(Form::Splat(scalar, shape.clone()));
        }
        let operand = self.operand(form)?;
        let layout = operand.layout.broadcast(shape).ok_or_else(|| {
            let from = operand.layout.shape();
            Error::internal(format!("{from} does not broadcast to {shape}"))
        })?;
        Ok(Form::Operand(Operand { value: operand.value, layout }))
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
        let layout = layout.ok_or_else(|| {
            let from = packed.layout.shape();
            Error::invalid(format!("{view:?} of {from} does not give {shape}"))
        })?;
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
        let kept: usize = layout.shape().dims()[..n_outer].iter().product();
        if kept != shape.len() || (is_arg && rank != n_outer + 1) {
            let from = operand.layout.shape();
            return Err(Error::invalid(format!("{reduce:?} of {from} does not give {shape}")));
        }
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
        let (outputs, nodes, asked) = (smallvec![value], vec![node], self.asked.clone());
        self.out.groups.push(Group::plain(kernel, (inputs, outputs), nodes, asked));
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
            check: None,
        };
        let copy = self.group(node, Kernel::Elementwise(fused), inputs, dtype, &shape);
        self.operand(&copy)
    }
}

/// The shape of an output, which has to be known by now.
fn known_shape(fact: &Fact) -> Result<Shape> {
    fact.shape().ok_or_else(|| {
        let message = format!("unsupported: the shape {} depends on computed data", fact.dims);
        Error::new(ErrorKind::Unimplemented, message)
    })
}
