//! What a run gets of what it took. It is made without the lock: batches may be large.

use convoke_graph_core::{
    DType, Error, HostTensor, QueueAction, QueueKind, QueueRole, QueueSpec, Reduction, Result,
    TableAction, batches,
};

use super::kept::{Item, Popped};
use super::uses::Uses;
use super::{Taken, Undo};

/// What a use of a queue has given.
#[derive(Debug)]
pub(super) enum Draft {
    Nothing,
    /// What was only looked at.
    Values(Item),
    /// Elements, at this place among what can be undone.
    Elements(usize),
}

impl Taken {
    /// Makes the values from what was taken.
    ///
    /// # Errors
    /// No memory for a batch, or rows of one batch that differ.
    pub(super) fn finish(&mut self, uses: &Uses) -> Result<()> {
        for (used, draft) in uses.queues.iter().zip(std::mem::take(&mut self.drafts)) {
            let values = match draft {
                Draft::Nothing => continue,
                Draft::Values(values) => values,
                Draft::Elements(at) => match self.undo.get(at) {
                    Some(Undo::Elements { items, .. }) => {
                        let values = values_of(&used.queue, used.action, items);
                        values.map_err(|e| e.with_node(&*used.node))?
                    }
                    _ => return Err(Error::internal("what was taken is not there")),
                },
            };
            let wanted = used.places.iter().filter_map(|&place| values.get(place).cloned());
            self.values.extend(wanted);
        }
        for (used, values) in uses.readers.iter().zip(std::mem::take(&mut self.read)) {
            let wanted = used.places.iter().filter_map(|&place| values.get(place).cloned());
            self.values.extend(wanted);
        }
        let of_tables = self.values_of_tables(uses)?;
        self.values.extend(of_tables);
        Ok(())
    }

    /// What is fed of tables.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn values_of_tables(&mut self, uses: &Uses) -> Result<Vec<HostTensor>> {
        let mut all = Vec::new();
        for (used, contents) in uses.tables.iter().zip(std::mem::take(&mut self.of_tables)) {
            let Some(contents) = contents else { continue };
            let values = match used.action {
                TableAction::Export => {
                    let (keys, values) = contents.export().map_err(|e| e.with_node(&*used.node))?;
                    vec![keys, values]
                }
                _ => vec![HostTensor::from(i64::try_from(contents.len()).unwrap_or(i64::MAX))],
            };
            all.extend(used.places.iter().filter_map(|&place| values.get(place).cloned()));
        }
        Ok(all)
    }
}

/// The outputs of an action that took these elements.
fn values_of(spec: &QueueSpec, action: QueueAction, items: &[Popped]) -> Result<Item> {
    if action == QueueAction::Dequeue {
        return Ok(items.first().map(|(.., item)| item.clone()).unwrap_or_default());
    }
    if action == QueueAction::GetKey {
        return Ok(items.first().and_then(|(.., item)| item.get(1..)).unwrap_or_default().into());
    }
    if let (QueueRole::SparseAccumulator(reduction), [(dtype, dims)]) =
        (spec.role, &spec.components[..])
    {
        let slice: Option<Vec<usize>> =
            dims.dims().and_then(|dims| dims.get(1..)?.iter().map(|dim| dim.known()).collect());
        let slice = slice.ok_or_else(|| Error::internal("slices are of unknown sizes"))?;
        let all: Vec<(&HostTensor, &HostTensor)> =
            items.iter().filter_map(|(.., item)| Some((item.first()?, item.get(1)?))).collect();
        let is_mean = reduction == Reduction::Mean;
        let (indices, values) = batches::total_of_slices(*dtype, &slice, &all, is_mean)?;
        return Ok([indices, values].into_iter().collect());
    }
    if let (QueueRole::Accumulator(reduction), [(dtype, dims)]) = (spec.role, &spec.components[..])
    {
        let shape = dims.shape();
        let shape = shape.ok_or_else(|| Error::internal("gradients are of unknown sizes"))?;
        let all: Vec<&HostTensor> = items.iter().filter_map(|(.., item)| item.first()).collect();
        let total = batches::total(*dtype, &shape, &all, reduction == Reduction::Mean)?;
        return Ok([total].into_iter().collect());
    }
    let pads = spec.kind == QueueKind::PaddingFifo;
    let column = |at: usize, dtype: DType, least: &[usize]| {
        let column: Vec<&HostTensor> = items.iter().filter_map(|(.., item)| item.get(at)).collect();
        batches::stacked(dtype, least, &column, pads)
    };
    let mut values = Item::new();
    if spec.role == QueueRole::Barrier {
        // From the least on.
        let index = |number: u64| i64::MIN.wrapping_add_unsigned(number);
        let indices: Vec<i64> = items.iter().map(|(_, number, _)| index(*number)).collect();
        values.push(HostTensor::new(&[indices.len()], indices)?);
        values.push(column(0, DType::String, &[])?);
    }
    let n_own = usize::from(spec.role == QueueRole::Barrier);
    for (c, (dtype, dims)) in spec.components.iter().enumerate() {
        let least: Vec<usize> =
            dims.dims().unwrap_or_default().iter().map(|d| d.known().unwrap_or(0)).collect();
        values.push(column(n_own + c, *dtype, &least)?);
    }
    Ok(values)
}
