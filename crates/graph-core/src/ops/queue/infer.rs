//! Which actions and inputs a queue takes, and what they give.

use smallvec::SmallVec;

use super::{QueueAction, QueueOp, QueueRole, amount};
use crate::op::arity;
use crate::ops::{accumulator, barrier, sparse_accumulator};
use crate::{DType, Dim, Fact, OpError};

impl QueueOp {
    /// # Errors
    /// Inputs that are not what the action puts, or early ones that are no numbers or keys.
    pub(super) fn expect_inputs(&self, inputs: &[Fact], early: &[Fact]) -> Result<(), OpError> {
        if !matches!(self.action, QueueAction::InsertMany { .. }) {
            early.iter().try_for_each(amount::expect)?;
        }
        match self.action {
            QueueAction::InsertMany { component } => match (inputs, early) {
                ([values], [keys]) => barrier::expect_rows(&self.queue, component, values, keys)?,
                _ => return Err(OpError::Arity { expected: 2, found: inputs.len() + 1 }),
            },
            QueueAction::Enqueue => self.queue.expect_inputs(inputs, false)?,
            QueueAction::EnqueueMany => self.queue.expect_inputs(inputs, true)?,
            QueueAction::Put { .. } => self.queue.expect_parts(self.action, inputs)?,
            QueueAction::ApplyGradient if self.is_sparse() => {
                let [indices, values, step] = arity(inputs)?;
                sparse_accumulator::expect_slices(&self.queue, indices, values)?;
                accumulator::expect_step(step)?;
            }
            QueueAction::ApplyGradient => {
                let [gradient, step] = arity(inputs)?;
                self.queue.expect_inputs(std::slice::from_ref(gradient), false)?;
                accumulator::expect_step(step)?;
            }
            QueueAction::SetStep => {
                let [step] = arity(inputs)?;
                accumulator::expect_step(step)?;
            }
            QueueAction::TakeGradient(Some(0)) => {
                let message = "expected a number of gradients of at least 1, got 0";
                return Err(OpError::Invalid(message.into()));
            }
            _ => {
                let [] = arity(inputs)?;
            }
        }
        Ok(())
    }

    /// What the action gives.
    pub(super) fn outputs(&self, early: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        match self.action {
            QueueAction::TakeGradient(_) if self.is_sparse() => {
                sparse_accumulator::taken(&self.queue)
            }
            QueueAction::Dequeue | QueueAction::Peek(_) | QueueAction::TakeGradient(_) => {
                self.queue.facts(None)
            }
            QueueAction::GetKey | QueueAction::PeekKey => {
                Ok(self.queue.facts(None)?.into_iter().skip(1).collect())
            }
            QueueAction::DequeueMany(Some(n)) => self.queue.facts(Some(Dim::Known(n))),
            QueueAction::DequeueMany(None) => {
                let n = early.first().map_or(Ok(None), amount::known)?;
                self.queue.facts(Some(n.map_or(Dim::Unknown, Dim::Known)))
            }
            QueueAction::DequeueUpTo(_) => self.queue.facts(Some(Dim::Unknown)),
            QueueAction::TakeMany { n: Some(n), up_to: false } => {
                barrier::taken(&self.queue, Dim::Known(n))
            }
            QueueAction::TakeMany { .. } => barrier::taken(&self.queue, Dim::Unknown),
            QueueAction::Size | QueueAction::IncompleteSize => {
                Ok([Fact::new(DType::I32, Vec::new())].into_iter().collect())
            }
            QueueAction::IsClosed => Ok([Fact::new(DType::Bool, Vec::new())].into_iter().collect()),
            _ => Ok(SmallVec::new()),
        }
    }

    fn is_sparse(&self) -> bool {
        matches!(self.queue.role, QueueRole::SparseAccumulator(_))
    }

    /// # Errors
    /// What this kind of queue does not do, or only another.
    pub(super) fn expect_own(&self) -> Result<(), OpError> {
        use QueueAction::{ApplyGradient, Clear, Dequeue, GetKey, IncompleteSize, Make, PeekKey};
        use QueueAction::{Put, SetStep, Size, TakeGradient};
        let fits = match (self.queue.role, self.action) {
            (_, Make | Size) => true,
            (QueueRole::MapStaging, Put { .. } | GetKey | PeekKey) => true,
            (QueueRole::MapStaging, Dequeue | IncompleteSize | Clear) => true,
            (QueueRole::SparseAccumulator(_), ApplyGradient | TakeGradient(_) | SetStep) => true,
            (QueueRole::MapStaging | QueueRole::SparseAccumulator(_), _) => false,
            (_, action) => !matches!(action, Put { .. } | GetKey | PeekKey),
        };
        match fits {
            true => Ok(()),
            false => {
                let (role, action) = (self.queue.role, self.action.name());
                Err(OpError::Invalid(format!("there is no {action} of {role:?}")))
            }
        }
    }
}
