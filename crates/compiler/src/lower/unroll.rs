//! Loops of few iterations, written out one after the other.

use std::sync::Arc;

use convoke_graph_core::{
    DType, Error, Fact, HostTensor, LoopOp, Move, Node, Output, Result, Shape, View,
};
use smallvec::SmallVec;

use super::{Form, Lowering};

/// Constants of more elements become values before a loop.
const ONCE: usize = 16;

impl Lowering<'_> {
    /// What a loop gives.
    pub(super) fn unrolled(
        &mut self,
        node: &Node,
        op: &LoopOp,
        forms: &[Form],
        facts: &[Fact],
        outputs: &[Fact],
    ) -> Result<SmallVec<[Form; 1]>> {
        let given: Vec<(Fact, Form)> = facts.iter().cloned().zip(forms.iter().cloned()).collect();
        let (.., carried, scanned, captures) = op.split(&given);
        let trips = op.trips.and_then(|trips| usize::try_from(trips).ok());
        let trips = trips.ok_or_else(|| Error::internal("a loop of unknown length is unrolled"))?;
        let asked = self.asked.clone();
        self.depth += 1;
        for (&output, given) in op.body.captures.iter().zip(captures) {
            let given = self.once(given)?;
            self.forms.insert(output, given);
        }
        let scanned: Vec<(Fact, Form)> =
            scanned.iter().map(|given| self.once(given)).collect::<Result<_>>()?;
        self.check_lengths(op, &scanned)?;
        let mut carried: Vec<(Fact, Form)> =
            carried.iter().map(|given| self.opened(given)).collect::<Result<_>>()?;
        let before = self.variables.clone();
        let first: Vec<Shape> =
            carried.iter().map(|(_, form)| self.shape(form)).collect::<Result<_>>()?;
        let mut rows: Vec<Vec<(Fact, Form)>> = vec![Vec::new(); outputs.len()];
        for iteration in 0..trips {
            let row = op.slice_of(iteration, op.trips);
            let mut params = carried.clone();
            for (fact, form) in &scanned {
                params.push(self.row(node, fact.dtype, form, row)?);
            }
            for (&param, given) in op.body.params.iter().zip(params) {
                let given = self.as_param(node, param, given)?;
                self.forms.insert(param, given);
            }
            let results = self.iteration(op)?;
            for (output, rows) in rows.iter_mut().enumerate() {
                let history = output.checked_sub(op.history_at()).and_then(|at| carried.get(at));
                if let Some(result) = op.collects(output) {
                    rows.push(results[result].clone());
                } else if let Some(history) = history {
                    rows.push(history.clone());
                }
            }
            carried = results[op.next_at()..][..op.n_carried].to_vec();
            for (at, (_, form)) in carried.iter().enumerate() {
                op.check_carried(at, &first[at], &self.shape(form)?)?;
            }
        }
        self.depth -= 1;
        self.asked = asked;
        self.variables = before;
        let mut given = SmallVec::new();
        for (output, (fact, mut rows)) in outputs.iter().zip(rows).enumerate() {
            if op.reverse {
                rows.reverse();
            }
            given.push(if output < op.n_carried {
                carried[output].1.clone()
            } else if output == op.trips_at() {
                Form::Constant(HostTensor::from(trips as i64))
            } else {
                self.stacked(node, op, output, fact, &rows)?
            });
        }
        Ok(given)
    }

    /// What is carried of a variable: its elements.
    fn opened(&mut self, (fact, form): &(Fact, Form)) -> Result<(Fact, Form)> {
        let Form::Handle(variable) = *form else { return Ok((fact.clone(), form.clone())) };
        let shape = fact
            .shape()
            .ok_or_else(|| Error::internal("a variable of unknown shape goes through a loop"))?;
        Ok((Fact::new(fact.dtype, &shape), self.elements(variable, fact.dtype, &shape)?))
    }

    /// What the body is given as a parameter, which may be the handle of a variable that has these elements now.
    fn as_param(
        &mut self,
        node: &Node,
        param: Output,
        (fact, form): (Fact, Form),
    ) -> Result<(Fact, Form)> {
        let Some((handle, Form::Handle(variable))) = self.forms.get(&param).cloned() else {
            return Ok((fact, form));
        };
        let elements = self.packed(node.id, &form, fact.dtype)?;
        self.variables.insert(variable, elements.value);
        Ok((handle, Form::Handle(variable)))
    }

    /// A constant as a value, so that there is one of it however often it is used.
    fn once(&mut self, (fact, form): &(Fact, Form)) -> Result<(Fact, Form)> {
        let form = match form {
            Form::Constant(tensor) if tensor.len() > ONCE && tensor.dtype() != DType::String => {
                Form::Operand(self.operand(form)?)
            }
            _ => form.clone(),
        };
        Ok((fact.clone(), form))
    }

    /// # Errors
    /// Tensors of other lengths than the loop has iterations.
    fn check_lengths(&self, op: &LoopOp, scanned: &[(Fact, Form)]) -> Result<()> {
        let mut lengths = Vec::with_capacity(scanned.len());
        for (_, form) in scanned {
            lengths.push(self.shape(form)?.dims().first().copied().unwrap_or(0));
        }
        match op.limit(None, &lengths)? {
            Some(limit) if op.trips.is_some_and(|trips| trips > limit) => Err(Error::invalid(
                format!("a loop of {:?} iterations has {limit} slices", op.trips),
            )),
            _ => Ok(()),
        }
    }

    /// Lowers the body once, of parameters that have their forms. Gives its results.
    fn iteration(&mut self, op: &LoopOp) -> Result<Vec<(Fact, Form)>> {
        let own = |node: &Arc<Node>| {
            let id = node.id;
            (0..node.facts.len() as u32).map(move |index| Output { node: id, index })
        };
        let params = &op.body.params;
        for node in &op.body.nodes {
            if own(node).any(|output| params.contains(&output)) {
                continue;
            }
            own(node).for_each(|output| {
                self.forms.remove(&output);
            });
            self.node(node).map_err(|e| e.with_node(&*node.name).with_location(node.location))?;
        }
        let result = |output: &Output| {
            let result = self.forms.get(output).cloned();
            result.ok_or_else(|| Error::internal("a result of a body was not lowered"))
        };
        op.body.results.iter().map(result).collect()
    }

    /// A slice along axis 0.
    fn row(&mut self, node: &Node, dtype: DType, form: &Form, row: usize) -> Result<(Fact, Form)> {
        let shape = self.shape(form)?;
        let dims = shape.dims();
        let mut one = dims.to_vec();
        let mut starts = vec![0; dims.len()];
        if let (Some(one), Some(start)) = (one.first_mut(), starts.first_mut()) {
            (*one, *start) = (1, row);
        }
        let rest = Shape::new(dims.get(1..).unwrap_or(&[]))?;
        let slice = View::Slice { starts, steps: vec![1; dims.len()] };
        let slice = self.view(node.id, &slice, form, dtype, &Shape::new(&one)?)?;
        let slice = self.view(node.id, &View::Reshape, &slice, dtype, &rest)?;
        Ok((Fact::new(dtype, &rest), slice))
    }

    /// Slices as one tensor.
    fn stacked(
        &mut self,
        node: &Node,
        op: &LoopOp,
        output: usize,
        fact: &Fact,
        rows: &[(Fact, Form)],
    ) -> Result<Form> {
        let Some((_, first)) = rows.first() else {
            return Ok(Form::Constant(op.none_collected(output)?));
        };
        let (row, dtype) = (self.shape(first)?, fact.dtype);
        let mut one = vec![1];
        one.extend_from_slice(row.dims());
        let one = Shape::new(&one)?;
        let mut forms = Vec::with_capacity(rows.len());
        for (_, form) in rows {
            let own = self.shape(form)?;
            if own != row {
                let message = format!("expected slices of one shape, got {row} and {own}");
                return Err(Error::invalid(message));
            }
            forms.push(self.view(node.id, &View::Reshape, form, dtype, &one)?);
        }
        let mut all = one.dims().to_vec();
        all[0] = rows.len();
        let all = Shape::new(&all)?;
        match rows.len() {
            1 => self.view(node.id, &View::Reshape, first, dtype, &all),
            _ => self.movement(node.id, &Move::Concat { axis: 0 }, &forms, dtype, &all),
        }
    }

    fn shape(&self, form: &Form) -> Result<Shape> {
        match form {
            Form::Operand(operand) => Ok(operand.layout.shape().clone()),
            Form::Constant(tensor) => Ok(tensor.shape().clone()),
            Form::Splat(_, shape) => Ok(shape.clone()),
            Form::Handle(_) => Err(Error::internal("a handle goes through a loop")),
        }
    }
}
