//! Assertions: a run fails unless something is true.
//!
//! Source: TensorFlow's `tf.Assert`.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::ops::registry::Decode;
use crate::{
    Attributes, Backward, Class, DType, Dims, Error, Fact, Flow, Graph, HostTensor, Op, OpError,
    Operation, Tensor,
};

impl Graph {
    /// A run that needs this operation fails with `message` and the first elements of `data`, unless `condition`, a
    /// scalar bool, is true. To have it needed, build what depends on it inside of [`Graph::after`], or fetch it.
    ///
    /// # Errors
    /// Recorded: a condition that is no scalar bool.
    #[track_caller]
    pub fn assert(&self, condition: &Tensor, message: &str, data: &[&Tensor]) -> Operation {
        let at = std::panic::Location::caller();
        let inputs: Vec<Tensor> =
            std::iter::once(condition).chain(data.iter().copied()).cloned().collect();
        let op = AssertOp { message: message.to_owned() };
        let node = self.append(Arc::new(op), &inputs, "assert", at);
        Operation::new(self.clone(), node)
    }
}

/// Fails a run unless input 0 is true. The other inputs are shown in the error.
#[derive(Debug, Clone)]
pub struct AssertOp {
    /// What the error says.
    pub message: String,
}

/// How many elements of a tensor an error shows.
const SHOWN_MAX: usize = 3;

impl AssertOp {
    /// Checks the values of the inputs.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) if the condition is not true.
    pub fn check(&self, inputs: &[HostTensor]) -> crate::Result<()> {
        let (condition, data) =
            inputs.split_first().ok_or_else(|| Error::internal("an assertion has no condition"))?;
        if condition.scalar::<bool>()? {
            return Ok(());
        }
        let mut message = format!("assertion failed: {}", self.message);
        for tensor in data {
            let shown = shown(tensor)?;
            message.push_str(&format!("; {}{} {shown}", tensor.dtype(), tensor.shape()));
        }
        Err(Error::invalid(message))
    }
}

/// The first elements of a tensor.
fn shown(tensor: &HostTensor) -> crate::Result<String> {
    let mut elements: Vec<String> = match tensor.dtype() {
        DType::String => {
            let strings = tensor.as_strings()?.iter().take(SHOWN_MAX);
            strings.map(|s| format!("{:?}", String::from_utf8_lossy(s))).collect()
        }
        DType::Bool => {
            tensor.as_slice::<bool>()?.iter().take(SHOWN_MAX).map(bool::to_string).collect()
        }
        dtype if dtype.is_float() => {
            tensor.to_f64s()?.iter().take(SHOWN_MAX).map(f64::to_string).collect()
        }
        _ => tensor.to_i128s()?.iter().take(SHOWN_MAX).map(i128::to_string).collect(),
    };
    if tensor.len() > SHOWN_MAX {
        elements.push("..".to_owned());
    }
    Ok(format!("[{}]", elements.join(", ")))
}

impl Op for AssertOp {
    fn name(&self) -> &str {
        "assert"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let condition = inputs.first().ok_or(OpError::Arity { expected: 1, found: 0 })?;
        condition.expect("an assertion", "bool", |dtype| dtype == DType::Bool)?;
        condition.dims.unify(&Dims::from([0usize; 0]))?;
        Ok(SmallVec::new())
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        self.check(inputs)?;
        Ok(SmallVec::new())
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None; backward.n_inputs()]
    }

    fn class(&self) -> Class<'_> {
        Class::Flow(Flow::Assert(self))
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("message", self.message.as_str()))
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] =
    &[("assert", |a| Ok(Arc::new(AssertOp { message: a.text("message")?.to_owned() })))];
