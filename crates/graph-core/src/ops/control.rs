//! Operations that only order others.

use smallvec::SmallVec;

use crate::{Backward, Class, Control, Fact, Graph, HostTensor, Op, OpError, Operation, Tensor};

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

    fn infer(&self, _: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
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
}
