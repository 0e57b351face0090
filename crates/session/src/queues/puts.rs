//! What a run puts into queues: checked, and with memory for it, before the run stores anything.

use std::cell::{Cell, RefCell};

use convoke_graph_core::{
    AlignedBytes, DType, Error, ErrorKind, HostTensor, QueueAction, QueueSpec, Result, Shape,
    TableAction, batches,
};
use smallvec::SmallVec;

use super::kept::Item;
use super::uses::{Use, Uses, puts};
use super::{Claimed, Held};
use crate::cancel::Stop;

/// What a run puts, and memory for the rows of it that are elements of their own.
pub(crate) struct Puts<'a> {
    uses: &'a Uses,
    rows: RefCell<Vec<Rows>>,
    /// What was taken for the run, and what may end it while it waits.
    held: Option<(&'a Held, Stop<'a>)>,
    claimed: RefCell<Option<Claimed>>,
    is_outdated: Cell<bool>,
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
    /// # Errors
    /// No memory.
    fn of(used: &Use, facts: &[(DType, &Shape)]) -> Result<Self> {
        if is_one(used.action) {
            return Ok(Self::default());
        }
        Self::of_all(facts).map_err(|e| e.with_node(&*used.node))
    }

    fn of_all(facts: &[(DType, &Shape)]) -> Result<Self> {
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
        let (rows, claimed) = (RefCell::default(), RefCell::default());
        Self { uses, rows, held: None, claimed, is_outdated: Cell::new(false) }
    }

    /// As [`Self::new`], of a run that `held` was taken for.
    pub fn of(uses: &'a Uses, held: &'a Held, stop: Stop<'a>) -> Self {
        Self { held: Some((held, stop)), ..Self::new(uses) }
    }

    /// Whether a table has changed that the run has looked at, and it is to change some, so that it can't succeed.
    pub fn is_outdated(&self) -> bool {
        self.is_outdated.get()
    }

    /// Gives up the tables that it was about to change, or has somebody else keep them.
    pub fn give_up(&self) -> Option<Claimed> {
        self.claimed.take()
    }

    /// Checks the shapes, sees to the memory, and has the tables that the run is about to change for it. `fetched`
    /// knows dtypes and shapes of what the run fetches.
    ///
    /// # Errors
    /// Sizes that a queue does not take, rows of different numbers, or keys and values of a table that do not go
    /// together; no memory; `Aborted` for a table that the run has looked at, and another has changed since.
    pub fn check<'s>(&self, fetched: &dyn Fn(usize) -> Option<(DType, &'s Shape)>) -> Result<()> {
        // Another attempt of the run may have been here.
        let mut all = std::mem::take(&mut *self.rows.borrow_mut());
        all.clear();
        for used in self.uses.queues.iter().filter(|used| puts(used.action)) {
            let facts: SmallVec<[(DType, &Shape); 4]> =
                used.places.iter().filter_map(|&place| fetched(place)).collect();
            let shapes: SmallVec<[&Shape; 4]> = facts.iter().map(|(_, shape)| *shape).collect();
            check(used, &shapes)?;
            all.push(Rows::of(used, &facts)?);
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
        self.claim()
    }

    /// Has the tables for the run that it is about to change, until it ends or gives them up.
    fn claim(&self) -> Result<()> {
        let Some((held, stop)) = self.held.filter(|_| self.claimed.borrow().is_none()) else {
            return Ok(());
        };
        let claimed = held.claim(self.uses.changed_tables(), &stop);
        self.is_outdated.set(matches!(&claimed, Err(e) if e.kind() == ErrorKind::Aborted));
        self.claimed.replace(claimed?);
        Ok(())
    }

    /// What each use of a queue puts, of what the run fetched.
    pub fn items(self, fetched: &[HostTensor]) -> Vec<Option<Vec<Item>>> {
        let mut rows = self.rows.into_inner().into_iter();
        let items = self.uses.queues.iter().map(|used| {
            if !puts(used.action) {
                return Some(Vec::new());
            }
            let components = used.places.iter().filter_map(|&place| fetched.get(place).cloned());
            let items = items_in(used, rows.next().unwrap_or_default(), components.collect());
            // Shapes and memory were seen to before.
            Some(items.unwrap_or_else(|error| {
                tracing::error!("{}: what is put is lost: {error}", used.node);
                Vec::new()
            }))
        });
        items.collect()
    }
}

/// Checks the shapes of what one operation puts.
///
/// # Errors
/// Sizes that a queue does not take, or rows of different numbers.
pub(crate) fn check(used: &Use, shapes: &[&Shape]) -> Result<()> {
    let checked = match used.action {
        action @ QueueAction::Put { .. } => used.queue.check_parts(action, shapes),
        action if is_one(action) => used.queue.check_element(shapes),
        QueueAction::InsertMany { component } => check_rows_of_keys(used, component, shapes),
        _ => check_rows(&used.queue, shapes),
    };
    checked.map_err(|e| e.with_node(&*used.node))
}

/// What one operation puts, of checked shapes, with memory of its own.
///
/// # Errors
/// No memory.
pub(crate) fn items(used: &Use, components: Item) -> Result<Vec<Item>> {
    let facts = components.iter().map(|component| (component.dtype(), component.shape()));
    let rows = Rows::of(used, &facts.collect::<SmallVec<[(DType, &Shape); 4]>>())?;
    items_in(used, rows, components)
}

/// Whether an action puts one element.
fn is_one(action: QueueAction) -> bool {
    use QueueAction::{ApplyGradient, Enqueue, Put};
    matches!(action, Enqueue | ApplyGradient | Put { .. })
}

/// The elements that a use puts: rows in the memory that was seen to.
///
/// # Errors
/// The memory is for something else.
fn items_in(used: &Use, rows: Rows, components: Item) -> Result<Vec<Item>> {
    if is_one(used.action) {
        return Ok(vec![components]);
    }
    let n_rows = rows.components.first().map_or(0, Vec::len);
    let mut items = rows.items;
    items.resize_with(n_rows, Item::new);
    for (component, memory) in components.iter().zip(rows.components) {
        for (at, (item, memory)) in items.iter_mut().zip(memory).enumerate() {
            item.push(batches::row_in(component, at, memory)?);
        }
    }
    Ok(items)
}

/// Whether there is a row of the component for each key.
fn check_rows_of_keys(used: &Use, component: usize, shapes: &[&Shape]) -> Result<()> {
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
