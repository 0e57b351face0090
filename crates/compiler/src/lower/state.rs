//! What is kept from run to run: variables, with what the run commits and fetches, and how often was drawn.

use std::sync::Arc;

use convoke_graph_core::{
    Class, Counting, DType, Elementwise, Error, HostTensor, Layout, Node, NodeId, Output, Random,
    Result, Scatter, Shape, State, ops,
};
use smallvec::smallvec;

use super::{Form, Lowered, Lowering};
use crate::{Arg, Asked, Check, Commit, Fused, Kernel, Operand, Source};

impl Lowering<'_> {
    pub(super) fn state(
        &mut self,
        node: &Node,
        state: State,
        forms: &[Form],
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        let before = self.plan.order.after.get(&node.id).copied();
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
            (State::ReadOr, None) => self.read_or(node, variable, &forms[1], dtype, shape),
            (State::ReadOr, before) => self.current(variable, before, dtype, shape),
            (State::Count { limit }, before) => {
                let current = self.current(variable, before, dtype, shape)?;
                let current = self.packed(node.id, &current, dtype)?;
                let kernel = Kernel::Custom(Arc::new(Counting { limit }));
                Ok(self.group(node.id, kernel, smallvec![current], dtype, shape))
            }
            (State::Scatter(scatter), before) => {
                let current = self.current(variable, before, dtype, shape)?;
                self.scatter(node, scatter, [&current, &forms[1], &forms[2]], shape)
            }
            _ => Err(Error::internal(format!("no lowering of {state:?}"))),
        }
    }

    /// Random elements, which are others in each iteration of a loop that is written out.
    pub(super) fn random(
        &mut self,
        node: NodeId,
        random: Random,
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        let earlier = self.out.random.iter().filter(|&&drawn| drawn == node).count();
        let draws = Source::Draws(node, u32::try_from(earlier).unwrap_or(u32::MAX));
        self.out.random.push(node);
        let draws = self.source(DType::U32, Shape::scalar(), draws);
        let draws = self.operand(&draws)?;
        Ok(self.group(node, Kernel::Random(random), smallvec![draws], dtype, shape))
    }

    /// The elements of a variable, changed at indices. A GPU's kernel does not check them itself.
    fn scatter(
        &mut self,
        node: &Node,
        scatter: Scatter,
        [current, indices, updates]: [&Form; 3],
        shape: &Shape,
    ) -> Result<Form> {
        let dtypes = [current, indices, updates].map(|form| self.dtype(form));
        let [Some(dtype), Some(index), Some(_)] = dtypes else {
            return Err(Error::internal("a scatter has operands without elements"));
        };
        let rows = shape.dims().first().copied().unwrap_or(0);
        let mut indices = self.packed(node.id, indices, index)?;
        if let (DType::I32, Ok(below)) = (index, u32::try_from(rows)) {
            let fused = Fused {
                shape: indices.layout.shape().clone(),
                input_dtypes: smallvec![index],
                constants: Vec::new(),
                instrs: Vec::new(),
                stores: smallvec![Arg::Input(0)],
                check: Some(Check { arg: Arg::Input(0), below, node: node.id }),
            };
            let (kernel, shape) = (Kernel::Elementwise(fused), indices.layout.shape().clone());
            let checked = self.group(node.id, kernel, smallvec![indices], index, &shape);
            indices = self.operand(&checked)?;
        }
        let current = self.packed(node.id, current, dtype)?;
        let updates = self.packed(node.id, updates, dtype)?;
        let kernel = Kernel::Custom(Arc::new(scatter));
        Ok(self.group(node.id, kernel, smallvec![current, indices, updates], dtype, shape))
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
        self.required.insert(variable);
        self.elements(variable, dtype, shape)
    }

    /// The elements of a variable at the start of the run, if it has some.
    pub(super) fn elements(
        &mut self,
        variable: NodeId,
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
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

    /// The elements of a variable at the start of the run, or its initial value.
    fn read_or(
        &mut self,
        node: &Node,
        variable: NodeId,
        initial: &Form,
        dtype: DType,
        shape: &Shape,
    ) -> Result<Form> {
        let gives = |assign: &NodeId| {
            let assign = self.plan.nodes.iter().find(|node| node.id == *assign);
            assign.is_some_and(|assign| assign.inputs.get(1) == node.inputs.get(1))
        };
        let assigns = self.plan.order.assigns.get(&variable);
        let is_initial = self.plan.initial.contains(&node.id);
        if is_initial || assigns.is_some_and(|assigns| assigns.iter().any(gives)) {
            return Ok(initial.clone());
        }
        let has = self.source(DType::Bool, Shape::scalar(), Source::Initialized(variable));
        let current = self.elements(variable, dtype, shape)?;
        self.out.optional.push(variable);
        let args = [&has, &current, initial];
        self.elementwise(node.id, Elementwise::Select, &args, dtype, shape)
    }

    pub(super) fn finish(mut self) -> Result<Lowered> {
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
            self.asked = self.asked_by_id(fetch.node);
            fetches.push(self.packed(fetch.node, &form, fact.dtype)?);
        }
        self.out.fetches = fetches;
        let required = &self.required;
        self.out.optional.retain(|variable| !required.contains(variable));
        let own =
            self.plan.order.assigns.keys().filter(|variable| !self.plan.held.contains(variable));
        let mut variables: Vec<NodeId> = own.copied().collect();
        variables.sort_unstable();
        for variable in variables {
            let assigns = &self.plan.order.assigns[&variable];
            let Some(&last) = assigns.last() else { continue };
            let of = self.forms.get(&Output { node: last, index: 0 }).cloned();
            let (fact, form) = of.ok_or_else(|| Error::internal("an assignment is missing"))?;
            self.asked = self.asked_by_id(last);
            let value = self.packed(last, &form, fact.dtype)?.value;
            let accumulates = assigns.len() == 1 && self.all(assigns, State::accumulates);
            let sums = self.all(assigns, State::sums);
            self.out.commits.push(Commit { variable, value, accumulates, sums });
        }
        Ok(self.out)
    }

    /// What a node of the plan asks for.
    fn asked_by_id(&self, node: NodeId) -> Asked {
        let at = self.places.get(&node).and_then(|&at| self.plan.nodes.get(at));
        at.map_or_else(Asked::default, |node| self.asked_by(node))
    }

    /// Whether all of some assignments are of a kind.
    fn all(&self, assigns: &[NodeId], is_it: impl Fn(State) -> bool) -> bool {
        let mut own = self.plan.nodes.iter().filter(|node| assigns.contains(&node.id));
        own.all(|node| matches!(node.op.class(), Class::State(state) if is_it(state)))
    }
}
