//! Simplifications that look at more than one operation: casts that cancel, factors of channels that go into
//! filters, and groups that nobody needs.

use std::sync::Arc;

use convoke_graph_core::{
    Class, Contract, DType, Elementwise, HostTensor, ImageLayout, Node, NodeId, Output, Result,
    Shape,
};
use rustc_hash::FxHashSet;

use super::fold::splat;
use super::{Form, Lowered, Lowering};
use crate::{Operand, ValueId};

/// Filters of at most this many elements are multiplied when compiling.
const FILTER_MAX: usize = 1 << 24;

impl Lowering<'_> {
    /// What a cast is of, without a cast before it that changes nothing in the result.
    pub(super) fn without_cast(&self, form: &Form, to: DType) -> Option<Form> {
        let Form::Operand(operand) = form else { return None };
        let value = &self.out.values[operand.value.0 as usize];
        let layout = &operand.layout;
        let is_whole = layout.is_packed() && layout.shape().len() == value.shape.len();
        let source = self.casts.get(&operand.value).filter(|_| is_whole)?;
        let from = self.out.values[source.value.0 as usize].dtype;
        let (is_exact, between) = (keeps(from, value.dtype), value.dtype);
        // From a float to an integer the nearest is taken, from an integer the low bits.
        let rounds = !from.is_float() && between.is_float() && !to.is_float() && to != from;
        let shape = layout.shape();
        let layout = source.layout.reshape(shape).filter(|_| is_exact && !rounds)?;
        Some(Form::Operand(Operand { value: source.value, layout }))
    }

    /// A product of a convolution with one constant for each channel, maybe after something constant was added:
    /// filters that are constant too are multiplied instead. Batch norm in inference is such a product.
    ///
    /// # Errors
    /// What lowering refuses.
    pub(super) fn scaled_convolution(
        &mut self,
        node: &Node,
        forms: &[Form],
        (dtype, shape): (DType, &Shape),
    ) -> Result<Option<Form>> {
        if row_name(node) != Some("mul") || shape.rank() != 4 {
            return Ok(None);
        }
        for (x, factor) in [(0, 1), (1, 0)] {
            let (Some(input), Some(factor)) = (node.inputs.get(x), constant(&forms[factor])) else {
                continue;
            };
            if let Some(found) = self.find_convolution(*input)
                && found.is_beside(node)
            {
                return self.scale(node, &found, &factor, (dtype, shape));
            }
        }
        Ok(None)
    }

    /// The convolution that an output is, or is a constant more or less than, if nobody else needs it.
    fn find_convolution(&self, output: Output) -> Option<Found> {
        let is_near = |node: &Arc<Node>| {
            matches!(node.op.class(), Class::Contract(Contract::Conv2d(_)))
                || matches!(row_name(node), Some("add" | "sub"))
        };
        let first = self.node_of(output).filter(is_near)?;
        let first = self.only_for_one(output, first)?;
        if let Class::Contract(Contract::Conv2d(_)) = first.op.class() {
            return Some(Found { convolution: first, shifted: None });
        }
        let is_shift = matches!(row_name(&first), Some("add" | "sub"));
        let input = *first.inputs.first().filter(|_| is_shift)?;
        let convolution = self.node_of(input).filter(is_near)?;
        let convolution = self.only_for_one(input, convolution)?;
        let shift = first.inputs.get(1).and_then(|input| self.forms.get(input));
        let shift = shift.and_then(|(_, form)| constant(form))?;
        matches!(convolution.op.class(), Class::Contract(Contract::Conv2d(_)))
            .then_some(Found { convolution, shifted: Some((first, shift)) })
    }

    fn node_of(&self, output: Output) -> Option<Arc<Node>> {
        self.plan.nodes.get(*self.places.get(&output.node)?).cloned()
    }

    /// The node of an output, if one input of one node reads that, and nobody else.
    fn only_for_one(&self, output: Output, node: Arc<Node>) -> Option<Arc<Node>> {
        let signature = &self.plan.signature;
        let inputs = self.plan.nodes.iter().flat_map(|node| &node.inputs);
        let is_outside = signature.fetches.contains(&output)
            || signature.feeds.contains(&output)
            || signature.targets.contains(&output.node);
        let n_readers = inputs.filter(|input| **input == output).take(2).count();
        (n_readers == 1 && !is_outside).then_some(node)
    }

    fn scale(
        &mut self,
        node: &Node,
        found: &Found,
        factor: &HostTensor,
        (dtype, shape): (DType, &Shape),
    ) -> Result<Option<Form>> {
        let Class::Contract(contract) = found.convolution.op.class() else { return Ok(None) };
        let Contract::Conv2d(conv) = &contract else { return Ok(None) };
        let own = self.forms.get(&Output { node: found.convolution.id, index: 0 });
        let has_shape = own.is_some_and(|(fact, _)| fact.shape().as_ref() == Some(shape));
        let operand = |i: usize| {
            let input = found.convolution.inputs.get(i)?;
            self.forms.get(input).map(|(_, form)| form.clone())
        };
        let (Some(images), Some(filters)) = (operand(0), operand(1).as_ref().and_then(constant))
        else {
            return Ok(None);
        };
        let (axis, own) = match conv.layout {
            ImageLayout::Nchw => (1, 0),
            ImageLayout::Nhwc => (3, 3),
        };
        let Some(factors) = of_channels(factor, axis, own) else { return Ok(None) };
        // Narrow floats could overflow where the product of the whole would not.
        let is_wide = matches!(dtype, DType::F32 | DType::F64) && filters.dtype() == dtype;
        if filters.len() > FILTER_MAX || !is_wide || !has_shape {
            return Ok(None);
        }
        let Ok([scaled]) = <[_; 1]>::try_from(node.op.eval(&[filters, factors])?.into_vec()) else {
            return Ok(None);
        };
        let forms = [images, Form::Constant(scaled)];
        let y = self.convolution(found.convolution.id, &contract, &forms, dtype, shape)?;
        let Some((shifted, shift)) = &found.shifted else { return Ok(Some(y)) };
        let mut shift = node.op.eval(&[shift.clone(), factor.clone()])?.into_vec();
        let (Class::Elementwise(op), Some(shift)) = (shifted.op.class(), shift.pop()) else {
            return Ok(None);
        };
        let args = [&y, &Form::Constant(shift)];
        self.elementwise(shifted.id, op, &args, dtype, shape).map(Some)
    }
}

/// See [`Lowering::find_convolution`].
struct Found {
    convolution: Arc<Node>,
    shifted: Option<(Arc<Node>, HostTensor)>,
}

impl Found {
    /// Whether nothing asks for a device that the node does not ask for.
    fn is_beside(&self, node: &Node) -> bool {
        let is_free = |other: &Node| other.device == node.device && other.colocated.is_empty();
        let shifted = self.shifted.iter().map(|(shifted, _)| shifted);
        node.colocated.is_empty()
            && [&self.convolution].into_iter().chain(shifted).all(|n| is_free(n))
    }
}

fn row_name(node: &Node) -> Option<&'static str> {
    match node.op.class() {
        Class::Elementwise(Elementwise::Row(row)) => Some(row.name),
        _ => None,
    }
}

fn constant(form: &Form) -> Option<HostTensor> {
    match form {
        Form::Constant(tensor) => Some(tensor.clone()),
        form => splat(form),
    }
}

/// Factors that differ along `axis` of four at most, seen so that they differ along `own` of four.
fn of_channels(factor: &HostTensor, axis: usize, own: usize) -> Option<HostTensor> {
    let before = 4usize.checked_sub(factor.dims().len())?;
    let mut at = factor.dims().iter().enumerate().filter(|&(_, &dim)| dim != 1);
    let differs = at.next();
    if at.next().is_some() || differs.is_some_and(|(i, _)| i + before != axis) {
        return None;
    }
    let mut dims = [1; 4];
    dims[own] = factor.len();
    factor.reshaped(Shape::new(&dims).ok()?).ok()
}

/// Whether each number of a dtype is one of another.
fn keeps(from: DType, to: DType) -> bool {
    use DType as D;
    match from {
        _ if from == to => true,
        D::Bool => to.is_float() || to.is_int(),
        D::I8 => matches!(to, D::I16 | D::I32 | D::I64 | D::F16 | D::BF16 | D::F32 | D::F64),
        D::U8 => matches!(
            to,
            D::I16
                | D::U16
                | D::I32
                | D::U32
                | D::I64
                | D::U64
                | D::F16
                | D::BF16
                | D::F32
                | D::F64
        ),
        D::I16 => matches!(to, D::I32 | D::I64 | D::F32 | D::F64),
        D::U16 => matches!(to, D::I32 | D::U32 | D::I64 | D::U64 | D::F32 | D::F64),
        D::I32 => matches!(to, D::I64 | D::F64),
        D::U32 => matches!(to, D::I64 | D::U64 | D::F64),
        D::F16 | D::BF16 => matches!(to, D::F32 | D::F64),
        D::F32 => to == D::F64,
        _ => false,
    }
}

/// Removes groups whose results nobody needs, unless they are asked for or could refuse what they are given.
pub(super) fn remove_dead(lowered: &mut Lowered, targets: &[NodeId]) {
    let fetched = lowered.fetches.iter().map(|fetch| fetch.value);
    let committed = lowered.commits.iter().map(|commit| commit.value);
    let mut read: FxHashSet<ValueId> = fetched.chain(committed).collect();
    let mut is_needed = vec![false; lowered.groups.len()];
    for (group, needed) in lowered.groups.iter().zip(&mut is_needed).rev() {
        *needed = group.outputs.iter().any(|output| read.contains(output))
            || group.can_fail()
            || group.nodes.iter().any(|node| targets.contains(node));
        if *needed {
            read.extend(group.inputs.iter().map(|input| input.value));
        }
    }
    let mut needed = is_needed.into_iter();
    lowered.groups.retain(|_| needed.next().unwrap_or(true));
}
