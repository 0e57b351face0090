//! What can be asked of [`Rows`]: what differs along a row, and when each thing can be computed.
//!
//! The folds cut the work into stages: a stage walks over the elements of a row, and its folds give numbers
//! that later stages read.

use convoke_graph_core::{DType, Layout};

use crate::{Arg, Fold, Operand, Rows};

/// Elements of the longest row that is kept at hand for more than one walk over it, whatever the number of rows:
/// 64 KiB of f32, which fit the second cache of a CPU, and which a workgroup of 256 walks in 64 turns.
pub const ROW_MAX: usize = 16_384;

/// As [`ROW_MAX`], of rows that are enough to keep a device busy one by one: the scores of a large vocabulary.
const ROW_MAX_OF_MANY: usize = 65_536;

/// How many rows are enough.
const MANY: usize = 16;

/// Elements of the longest of `n_rows` rows that one kernel walks over more than once.
pub(crate) fn longest(n_rows: usize) -> usize {
    if n_rows >= MANY { ROW_MAX_OF_MANY } else { ROW_MAX }
}

/// When something can be computed, and whether it differs along a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stage {
    /// How many stages end before it is known.
    pub index: usize,
    /// Whether elements of one row differ.
    pub varies: bool,
}

impl Stage {
    fn with(self, other: Self) -> Self {
        Self { index: self.index.max(other.index), varies: self.varies || other.varies }
    }
}

/// The [`Stage`] of everything in a [`Rows`].
#[derive(Debug, Clone)]
pub struct Needs {
    inputs: Vec<Stage>,
    instrs: Vec<Stage>,
    /// How many stages there are. The last one folds nothing.
    pub n_stages: usize,
}

impl Needs {
    /// The stage of an argument.
    pub fn of(&self, arg: Arg) -> Stage {
        let stage = match arg {
            Arg::Input(i) => self.inputs.get(i as usize),
            Arg::Instr(i) => self.instrs.get(i as usize),
            Arg::Constant(_) => None,
        };
        stage.copied().unwrap_or_default()
    }
}

impl Rows {
    /// How many inputs come from outside.
    pub fn n_inputs(&self) -> usize {
        self.fused.input_dtypes.len().saturating_sub(self.folds.len())
    }

    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.fused.shape.dims().iter().take(self.n_outer).product()
    }

    /// The elements of a row.
    pub fn n_inner(&self) -> usize {
        self.fused.shape.dims().iter().skip(self.n_outer).product()
    }

    /// The dtype of a fold's result.
    pub fn dtype(&self, fold: &Fold) -> DType {
        self.fused.dtype(fold.arg)
    }

    /// Whether a row is not at hand as a whole: it is too long, or columns are walked together. There is one fold
    /// then, and its result is all that is stored.
    pub fn is_in_parts(&self) -> bool {
        (self.n_inner() > ROW_MAX || self.seen.is_some()) && self.only_fold().is_some()
    }

    /// The fold whose result is all that is stored, if there is no other.
    pub fn only_fold(&self) -> Option<Fold> {
        match (self.folds.as_slice(), self.fused.stores.as_slice()) {
            (&[fold], &[Arg::Input(i)]) if i as usize == self.n_inputs() => Some(fold),
            _ => None,
        }
    }

    /// When each thing can be computed, where the group's inputs are `inputs`.
    pub fn needs(&self, inputs: &[Operand]) -> Needs {
        let varies = |input: &Operand| {
            let (dims, strides) = (input.layout.shape().dims(), input.layout.strides());
            (self.n_outer..dims.len()).any(|axis| dims[axis] > 1 && strides[axis] != 0)
        };
        let known = |input| Stage { index: 0, varies: varies(input) };
        let mut needs =
            Needs { inputs: inputs.iter().map(known).collect(), instrs: Vec::new(), n_stages: 1 };
        let mut folds = self.folds.iter();
        let mut next = folds.next();
        for (i, instr) in self.fused.instrs.iter().enumerate() {
            while let Some(fold) = next.filter(|fold| precedes(fold, i)) {
                needs.add(fold);
                next = folds.next();
            }
            let stages = instr.args.iter().map(|&arg| needs.of(arg));
            let stage = stages.fold(Stage::default(), Stage::with);
            needs.instrs.push(stage);
        }
        next.into_iter().chain(folds).for_each(|fold| needs.add(fold));
        needs
    }
}

impl Needs {
    fn add(&mut self, fold: &Fold) {
        let index = self.of(fold.arg).index + 1;
        self.inputs.push(Stage { index, varies: false });
        self.n_stages = self.n_stages.max(index + 1);
    }
}

/// Whether a reduction of what `layout` shows, whose first `n_outer` axes stay, walks over neighbouring rows
/// together, because their elements lie closer to each other than those of a row.
pub fn by_columns(layout: &Layout, n_outer: usize) -> bool {
    match nearest(layout, n_outer) {
        (Some(outer), Some(inner)) => outer < inner && !layout.shape().is_empty(),
        _ => false,
    }
}

/// Whether neighbouring rows of such a reduction lie side by side, so that what feeds it can be computed some of
/// them at once.
pub(crate) fn are_columns(layout: &Layout, n_outer: usize) -> bool {
    by_columns(layout, n_outer) && nearest(layout, n_outer).0 == Some(1)
}

/// The steps along the last axis of more than one element of those that stay, and of the others.
fn nearest(layout: &Layout, n_outer: usize) -> (Option<usize>, Option<usize>) {
    let (dims, strides) = (layout.shape().dims(), layout.strides());
    let n_outer = n_outer.min(dims.len());
    let last = |axes: std::ops::Range<usize>| {
        axes.rev().find(|&axis| dims[axis] != 1).map(|axis| strides[axis].unsigned_abs())
    };
    (last(0..n_outer), last(n_outer..dims.len()))
}

/// Whether the elements of a row of such a reduction are steps of one size apart.
pub(crate) fn is_one_run(layout: &Layout, n_outer: usize) -> bool {
    let both = layout.shape().dims().iter().zip(layout.strides()).skip(n_outer);
    let mut axes = both.filter(|&(&dim, _)| dim != 1).peekable();
    while let Some((_, &stride)) = axes.next() {
        let next = axes.peek().copied();
        if next.is_some_and(|(&dim, &inner)| Some(stride) != inner.checked_mul(dim as isize)) {
            return false;
        }
    }
    true
}

/// Whether a fold can be computed before instruction `i`.
fn precedes(fold: &Fold, i: usize) -> bool {
    !matches!(fold.arg, Arg::Instr(arg) if arg as usize >= i)
}
