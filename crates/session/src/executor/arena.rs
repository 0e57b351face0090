//! The arena of a run: what a step writes of it, and what it may read meanwhile.

use convoke_graph_core::{Error, Result};
use smallvec::SmallVec;

/// An output of a step that lies in the arena.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub offset: usize,
    pub n_bytes: usize,
    /// Its place among the step's outputs.
    pub output: usize,
}

/// Pieces of the arena that are not written, each with its offset.
pub(super) type Rest<'a> = SmallVec<[(usize, &'a [u8]); 3]>;

/// Takes the parts, which are in the order of their offsets, and gives the rest.
///
/// # Errors
/// Parts that overlap or lie outside.
pub(super) fn carve<'a>(
    arena: &'a mut [u8],
    parts: &[Part],
    written: &mut [&'a mut [u8]],
) -> Result<Rest<'a>> {
    let mut rest = Rest::new();
    let (mut after, mut at) = (arena, 0);
    for part in parts {
        let split = part.offset.checked_sub(at).and_then(|n| after.split_at_mut_checked(n));
        let (before, from) = split.ok_or_else(misplaced)?;
        let (own, behind) = from.split_at_mut_checked(part.n_bytes).ok_or_else(misplaced)?;
        rest.push((at, before));
        *written.get_mut(part.output).ok_or_else(misplaced)? = own;
        (after, at) = (behind, part.offset + part.n_bytes);
    }
    rest.push((at, after));
    Ok(rest)
}

/// Bytes that are not written.
///
/// # Errors
/// They are, or lie outside.
pub(super) fn find<'a>(rest: &Rest<'a>, offset: usize, n_bytes: usize) -> Result<&'a [u8]> {
    let mut pieces = rest.iter();
    let piece =
        pieces.find_map(|&(at, piece)| piece.get(offset.checked_sub(at)?..)?.get(..n_bytes));
    piece.ok_or_else(misplaced)
}

fn misplaced() -> Error {
    Error::internal("a value lies where another does")
}
