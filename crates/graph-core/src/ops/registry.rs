//! Operations by the names under which files keep them.

use std::sync::Arc;

use super::{
    assert, branch, cast, concat, control, conv, count, gather, host, loops, matmul, mutable_table,
    pad, pool, queue, random, reader, reduce, row, rows, scatter, select, state, table, text, view,
};
use crate::{Attributes, Op, OpError};

/// Makes an operation from what a file keeps of it, or says what is wrong with that.
pub type Decode = fn(&Attributes) -> Result<Arc<dyn Op>, OpError>;

/// What each room makes, beside the rows of the elementwise tables.
const ROOMS: [&[(&str, Decode)]; 24] = [
    assert::SAVED,
    branch::SAVED,
    cast::SAVED,
    concat::SAVED,
    control::SAVED,
    conv::SAVED,
    count::SAVED,
    gather::SAVED,
    host::SAVED,
    loops::SAVED,
    matmul::SAVED,
    mutable_table::SAVED,
    pad::SAVED,
    pool::SAVED,
    queue::SAVED,
    random::SAVED,
    reader::SAVED,
    reduce::SAVED,
    scatter::SAVED,
    select::SAVED,
    state::SAVED,
    table::SAVED,
    text::SAVED,
    view::SAVED,
];

/// The names of all operations that [`decode`] makes.
pub fn saved_names() -> impl Iterator<Item = &'static str> {
    ROOMS.into_iter().flatten().map(|(name, _)| *name).chain(rows().map(|row| row.name))
}

/// The operation that these are the attributes of; none if no operation of Convoke has the name.
///
/// # Errors
/// Attributes that the operation does not have, or not like that.
pub fn decode(attributes: &Attributes) -> Result<Option<Arc<dyn Op>>, OpError> {
    let name = attributes.operation();
    let decoder = ROOMS.into_iter().flatten().find(|(own, _)| *own == name);
    let op: Arc<dyn Op> = match (decoder, rows().find(|row| row.name == name)) {
        (Some((_, decode)), _) => decode(attributes)?,
        (None, Some(row)) => Arc::new(row::RowOp(row)),
        (None, None) => return Ok(None),
    };
    // What is written once more is the same, so that nothing in a file goes unread.
    if op.encode().as_ref() != Some(attributes) {
        let names: Vec<&str> = attributes.iter().map(|(name, _)| name).collect();
        return Err(OpError::Invalid(format!("{name:?} does not have the attributes {names:?}")));
    }
    Ok(Some(op))
}
