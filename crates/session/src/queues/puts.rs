//! What a run puts into queues: checked, and with memory for it, before the run stores anything.

use std::cell::RefCell;

use convoke_graph_core::{
    AlignedBytes, DType, Error, ErrorKind, HostTensor, QueueAction, QueueSpec, Result, Shape,
    TableAction, batches,
};
use smallvec::SmallVec;

use super::kept::Item;
use super::uses::{Use, Uses, puts};

/// What a run puts, and memory for the rows of it that are elements of their own.
pub(crate) struct Puts<'a> {
    pub uses: &'a Uses,
    rows: RefCell<Vec<Rows>>,
}

/// The memory of one use.
#[derive(Default)]
pub(super) struct Rows {
    /// For each component, of each row.
    components: SmallVec<[Vec<AlignedBytes>; 2]>,
    /// For the elements themselves.
    items: Vec<Item>,
}

impl Rows {
    fn of(facts: &[(DType, &Shape)]) -> Result<Self> {
        let components = facts.iter().map(|(dtype, shape)| batches::memory(*dtype, shape));
        let components: SmallVec<[Vec<AlignedBytes>; 2]> = components.collect::<Result<_>>()?;
        let n_rows = components.first().map_or(0, Vec::len);
        let mut items = Vec::new();
        items.try_reserve_exact(n_rows).map_err(|_| {
            let message = format!("no memory for {n_rows} elements");
            Error::new(ErrorKind::ResourceExhausted, message)
        })?;
        Ok(Self { components, items })
    }
}

impl<'a> Puts<'a> {
    pub fn new(uses: &'a Uses) -> Self {
        Self { uses, rows: RefCell::default() }
    }

    /// Checks the shapes, and sees to the memory. `fetched` knows dtypes and shapes of what the run fetches.
    ///
    /// # Errors
    /// Sizes that a queue does not take, rows of different numbers, or keys and values of a table that do not go
    /// together; no memory.
    pub fn check<'s>(&self, fetched: &dyn Fn(usize) -> Option<(DType, &'s Shape)>) -> Result<()> {
        // Another attempt of the run may have been here.
        let mut all = std::mem::take(&mut *self.rows.borrow_mut());
        all.clear();
        for used in self.uses.queues.iter().filter(|used| puts(used.action)) {
            let facts: SmallVec<[(DType, &Shape); 4]> =
                used.places.iter().filter_map(|&place| fetched(place)).collect();
            let shapes: SmallVec<[&Shape; 4]> = facts.iter().map(|(_, shape)| *shape).collect();
            let rows = match used.action {
                QueueAction::Enqueue | QueueAction::ApplyGradient => {
                    used.queue.check_element(&shapes).map(|()| Rows::default())
                }
                QueueAction::InsertMany { component } => {
                    check_parts(used, component, &shapes).and_then(|()| Rows::of(&facts))
                }
                _ => check_rows(&used.queue, &shapes).and_then(|()| Rows::of(&facts)),
            };
            all.push(rows.map_err(|e| e.with_node(&*used.node))?);
        }
        for used in self.uses.tables.iter().filter(|used| used.action == TableAction::Insert) {
            if let [Some((_, keys)), Some((_, values))] =
                [0, 1].map(|i| used.places.get(i).and_then(|&place| fetched(place)))
            {
                let checked = used.table.check_shapes(keys, values);
                checked.map_err(|e| e.with_node(&*used.node))?;
            }
        }
        self.rows.replace(all);
        Ok(())
    }

    /// The memory of each use that puts, in order.
    pub(super) fn into_rows(self) -> impl Iterator<Item = Rows> {
        self.rows.into_inner().into_iter()
    }
}

/// The elements that a use puts: rows in the memory that was seen to.
///
/// # Errors
/// The memory is for something else.
pub(super) fn items(used: &Use, rows: Rows, fetched: &[HostTensor]) -> Result<Vec<Item>> {
    if matches!(used.action, QueueAction::Enqueue | QueueAction::ApplyGradient) {
        let components = used.places.iter().filter_map(|&place| fetched.get(place).cloned());
        return Ok(vec![components.collect()]);
    }
    let n_rows = rows.components.first().map_or(0, Vec::len);
    let mut items = rows.items;
    items.resize_with(n_rows, Item::new);
    for (&place, memory) in used.places.iter().zip(rows.components) {
        let component = fetched.get(place);
        let component = component.ok_or_else(|| Error::internal("what is put is not fetched"))?;
        for (at, (item, memory)) in items.iter_mut().zip(memory).enumerate() {
            item.push(batches::row_in(component, at, memory)?);
        }
    }
    Ok(items)
}

/// Whether there is a row of the component for each key.
fn check_parts(used: &Use, component: usize, shapes: &[&Shape]) -> Result<()> {
    let (Some((_, dims)), [shape]) = (used.queue.components.get(component), shapes) else {
        return Err(Error::internal("a component has no values"));
    };
    let n_keys = used.keys.len();
    if let Some((&n, rest)) = shape.dims().split_first()
        && n == n_keys
        && dims.admits(&Shape::new(rest)?)
    {
        return Ok(());
    }
    let name = &used.queue.name;
    let message = format!(
        "expected {n_keys} rows of {dims} of component {component} of barrier '{name}', got {shape}"
    );
    Err(Error::invalid(message))
}

fn check_rows(queue: &QueueSpec, shapes: &[&Shape]) -> Result<()> {
    let mut rows: SmallVec<[Shape; 4]> = SmallVec::new();
    let n = shapes.first().and_then(|shape| shape.dims().first().copied());
    for (i, shape) in shapes.iter().enumerate() {
        match shape.dims().split_first() {
            Some((own, rest)) if Some(*own) == n => rows.push(Shape::new(rest)?),
            _ => {
                let n = n.map_or_else(|| "no".to_owned(), |n| n.to_string());
                let message = format!("component {i} is {shape}, and the first has {n} rows");
                return Err(Error::invalid(message));
            }
        }
    }
    queue.check_element(&rows.iter().collect::<SmallVec<[&Shape; 4]>>())
}
