//! Operations that only order others.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::arity;
use crate::ops::registry::Decode;
use crate::{
    Attributes, Backward, Class, Control, Fact, Graph, HostTensor, Op, OpError, Operation, Tensor,
};

impl Graph {
    /// Does nothing, after the controls in scope.
    #[track_caller]
    pub fn no_op(&self) -> Operation {
        self.group([])
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct NoOp;

impl Op for NoOp {
    fn name(&self) -> &str {
        "no_op"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [] = arity(inputs)?;
        Ok(SmallVec::new())
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Ok(SmallVec::new())
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        Vec::new()
    }

    fn class(&self) -> Class<'_> {
        Class::Control(Control::NoOp)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()))
    }
}

/// An operation whose attributes are wrong: always refused.
#[derive(Debug, Clone)]
pub(crate) struct Refused(pub(crate) OpError);

impl Op for Refused {
    fn name(&self) -> &str {
        "refused"
    }

    fn infer(&self, _: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        Err(self.0.clone())
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Err(self.0.clone())
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None; backward.n_inputs()]
    }

    fn class(&self) -> Class<'_> {
        Class::Control(Control::NoOp)
    }

    fn encode(&self) -> Option<Attributes> {
        None
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[("no_op", |_| Ok(Arc::new(NoOp)))];
