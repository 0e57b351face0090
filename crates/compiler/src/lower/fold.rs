//! What is known when compiling: operations on constants, and elements that repeat.

use convoke_graph_core::{AlignedBytes, Class, Contents, Fact, Host, HostTensor, Node, Shape};
use smallvec::{SmallVec, smallvec};

use super::Form;

/// The host computes at most this many elements of shapes and ranges when compiling.
const METADATA_MAX: usize = 1 << 24;

/// Results of at most this many elements are computed when compiling, if all inputs are constant.
const FOLD_MAX: usize = 1024;

/// The one element of a form that repeats it.
pub(super) fn splat(form: &Form) -> Option<HostTensor> {
    match form {
        Form::Splat(scalar, _) => Some(scalar.clone()),
        Form::Constant(tensor) if tensor.len() == 1 => tensor.reshaped(Shape::scalar()).ok(),
        _ => None,
    }
}

/// What an operation says of an output, with what its form says.
pub(super) fn refined(fact: Fact, form: &Form) -> Fact {
    let shape = match form {
        Form::Constant(tensor) => return Fact::of(tensor),
        Form::Splat(scalar, shape) => match repeated(scalar, shape) {
            Some(tensor) => return Fact::of(&tensor),
            None => shape,
        },
        Form::Operand(operand) => operand.layout.shape(),
        Form::Handle(_) => return fact,
    };
    // A loop that is unrolled says less of its results than there is.
    if fact.shape().is_none() { fact.with_dims(shape) } else { fact }
}

/// The elements of which one is repeated, if shapes may be computed from them.
fn repeated(scalar: &HostTensor, shape: &Shape) -> Option<HostTensor> {
    if !scalar.dtype().is_int() || shape.len() > Fact::CONTENTS_MAX {
        return None;
    }
    let bytes = AlignedBytes::copy_of(&scalar.bytes().repeat(shape.len())).ok()?;
    HostTensor::from_bytes(scalar.dtype(), shape.clone(), bytes).ok()
}

/// The results of an operation on constants, if they are small or only the host computes them.
pub(super) fn fold(node: &Node, forms: &[Form], outputs: &[Fact]) -> Option<SmallVec<[Form; 1]>> {
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
        Class::Queue(_) | Class::Reader(_) | Class::Table(_) => false,
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
