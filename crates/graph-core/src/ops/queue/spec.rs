//! What a queue is made of, and what fits into it.

use smallvec::SmallVec;

use super::{QueueAction, QueueKind, QueueRole, QueueSpec};
use crate::ops::{accumulator, barrier, map_staging, sparse_accumulator};
use crate::{DType, Dim, Dims, Error, Fact, OpError, Result, Shape};

impl QueueSpec {
    pub(super) fn check(&self) -> Result<(), OpError> {
        let refuse = |message: String| Err(OpError::Invalid(message));
        if self.components.is_empty() {
            return refuse("a queue has at least one component".into());
        }
        let is_area = matches!(self.role, QueueRole::Staging | QueueRole::MapStaging);
        if self.capacity == Some(0) && is_area {
            return refuse(
                "the staging area has no room; give a capacity of at least 1, and a memory limit of at least the \
                 bytes of one element, whose components are of specified sizes and no strings"
                    .into(),
            );
        }
        if self.capacity == Some(0) {
            return refuse("a queue of capacity 0 has no room; give at least 1, or None".into());
        }
        match self.role {
            QueueRole::Queue => {}
            QueueRole::Staging if self.kind == QueueKind::Fifo => {}
            QueueRole::Accumulator(_) if self.kind == QueueKind::Fifo => accumulator::check(self)?,
            QueueRole::Barrier if self.kind == QueueKind::Fifo => barrier::check(self)?,
            QueueRole::SparseAccumulator(_) if self.kind == QueueKind::Fifo => {
                sparse_accumulator::check(self)?;
            }
            QueueRole::MapStaging if matches!(self.kind, QueueKind::Fifo | QueueKind::Priority) => {
                map_staging::check(self)?;
            }
            role => {
                return refuse(format!("{role:?} gives in order, and this is {:?}", self.kind));
            }
        }
        match (self.kind, &self.components[0]) {
            (QueueKind::Priority, (DType::I64, dims)) if dims.rank() == Some(0) => Ok(()),
            (QueueKind::Priority, (dtype, dims)) => refuse(format!(
                "the first component of a queue by priority is a scalar of i64, and this is {dtype}{dims}"
            )),
            (QueueKind::RandomShuffle { min_after_dequeue, .. }, _)
                if self.capacity.is_some_and(|capacity| capacity <= min_after_dequeue) =>
            {
                let capacity = self.capacity.unwrap_or_default();
                refuse(format!(
                    "a queue of capacity {capacity} that keeps back {min_after_dequeue} gives nothing"
                ))
            }
            _ => Ok(()),
        }
    }

    /// The facts of elements of these components, with `first` before their sizes.
    pub(in crate::ops) fn facts(&self, first: Option<Dim>) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let pads = self.kind == QueueKind::PaddingFifo;
        let fact = |(dtype, dims): &(DType, Dims)| {
            let Some(first) = first else { return Ok(Fact::new(*dtype, dims.clone())) };
            let sizes =
                dims.dims().filter(|dims| pads || dims.iter().all(|dim| dim.known().is_some()));
            let Some(sizes) = sizes else {
                let name = &self.name;
                return Err(OpError::Invalid(format!(
                    "batches of queue '{name}' need components of specified shapes, and one is {dtype}{dims}"
                )));
            };
            let sizes: SmallVec<[Dim; 6]> =
                std::iter::once(first).chain(sizes.iter().copied()).collect();
            Ok(Fact::new(*dtype, Dims::Known(sizes).checked()?))
        };
        self.components.iter().map(fact).collect()
    }

    pub(super) fn expect_inputs(&self, inputs: &[Fact], many: bool) -> Result<(), OpError> {
        self.expect(self.components.iter().enumerate(), inputs, many)
    }

    /// As [`Self::expect_inputs`], of those components that the action puts.
    pub(super) fn expect_parts(&self, action: QueueAction, inputs: &[Fact]) -> Result<(), OpError> {
        let n = self.parts().len();
        if action.parts().next().is_none() || action.parts().any(|place| place >= n) {
            return Err(OpError::Invalid(format!(
                "expected at least one of {n} components to put"
            )));
        }
        self.expect(self.parts_of(action), inputs, false)
    }

    /// What an element consists of beside its key, if that is among its components.
    pub fn parts(&self) -> &[(DType, Dims)] {
        let n_keys = usize::from(self.role == QueueRole::MapStaging);
        self.components.get(n_keys..).unwrap_or_default()
    }

    /// The components that an action puts, with their places.
    fn parts_of(
        &self,
        action: QueueAction,
    ) -> impl Iterator<Item = (usize, &(DType, Dims))> + Clone {
        action.parts().filter_map(|place| Some((place, self.parts().get(place)?)))
    }

    fn expect<'a>(
        &self,
        components: impl Iterator<Item = (usize, &'a (DType, Dims))> + Clone,
        inputs: &[Fact],
        many: bool,
    ) -> Result<(), OpError> {
        let n = components.clone().count();
        if inputs.len() != n {
            return Err(OpError::Arity { expected: n, found: inputs.len() });
        }
        let mut rows = Dim::Unknown;
        for (fact, (i, (dtype, dims))) in inputs.iter().zip(components) {
            let own = match (many, fact.dims.dims()) {
                (false, _) => fact.dims.clone(),
                (true, None) => Dims::UnknownRank,
                (true, Some([])) => {
                    let found = fact.dims.clone();
                    return Err(OpError::Rank { expected: 1, found });
                }
                (true, Some([first, rest @ ..])) => {
                    let shared = rows.unify(*first).ok_or_else(|| {
                        OpError::Invalid(format!(
                            "component {i} has {first} rows, and those before have {rows}"
                        ))
                    })?;
                    rows = shared;
                    Dims::Known(rest.iter().copied().collect())
                }
            };
            if fact.dtype != *dtype {
                return Err(OpError::DTypes { lhs: *dtype, rhs: fact.dtype });
            }
            dims.unify(&own).map_err(|_| {
                OpError::Invalid(format!(
                    "shape mismatch in component {i} of queue '{}': expected {dims}, got {own}",
                    self.name
                ))
            })?;
        }
        Ok(())
    }

    /// Checks the components of an element, or a gradient and its step.
    ///
    /// # Errors
    /// One that has sizes that the queue does not take.
    pub fn check_element(&self, shapes: &[&Shape]) -> Result<()> {
        match (self.role, shapes) {
            (QueueRole::SparseAccumulator(_), [indices, values, _]) => {
                sparse_accumulator::check_shapes(self, indices, values)
            }
            _ => self.check_shapes(self.components.iter().enumerate(), shapes),
        }
    }

    /// Checks the components of an element that an action puts.
    ///
    /// # Errors
    /// As [`Self::check_element`].
    pub fn check_parts(&self, action: QueueAction, shapes: &[&Shape]) -> Result<()> {
        self.check_shapes(self.parts_of(action), shapes)
    }

    fn check_shapes<'a>(
        &self,
        components: impl Iterator<Item = (usize, &'a (DType, Dims))>,
        shapes: &[&Shape],
    ) -> Result<()> {
        for (shape, (i, (_, dims))) in shapes.iter().zip(components) {
            if !dims.admits(shape) {
                let message = format!(
                    "shape mismatch in component {i} of queue '{}': expected {dims}, got {shape}",
                    self.name
                );
                return Err(Error::invalid(message));
            }
        }
        Ok(())
    }
}
