//! How much a group computes and moves, for cost models and reports.

use convoke_graph_core::{ConvGeometry, Elementwise, ImageLayout, Row};
use convoke_placement::{Family, Work};
use smallvec::SmallVec;

use crate::head::times;
use crate::{
    Arg, Fused, Group, Head, Instr, Kernel, Operand, PoolKind, Reduction, Rows, Source, Value,
    ValueId,
};

/// Turning from one row to the next costs the CPU's kernels as much as this many elements.
const ROW: u64 = 48;
/// Windows of fewer taps than this take the CPU as long as it.
const TAPS: u64 = 96;
/// Rows and columns of the tiles of a GPU's products, but for large ones, whose tiles are larger.
pub(crate) const TILE: u64 = 32;
/// The same for products of few elements and a long sum, which GPUs share out.
pub const DEEP_SIDE: u64 = 4;
/// The tiles that such a product has at most.
const DEEP_FEW: u64 = 64;
/// The terms that each of its sums has at least.
const DEEP_LEAST: u64 = 256;
/// The same for products of so few rows or columns that other tiles are mostly empty.
const DEEP_LEAST_THIN: u64 = 64;
/// Simple operations in the time of an exponential.
const EXPONENTIAL: u64 = 8;
/// Finding a greatest element once more, and what is at its place, costs this many times a pooling.
const POOL_AGAIN: u64 = 4;

/// Columns that a processor's vector has.
const VECTOR: u64 = 16;
/// Storing an element of a product takes a processor as long as so many terms.
const STORED: u64 = 16;

/// Rows of the tiles of products where a driver computes on the CPU.
const NARROW: u64 = 16;

/// A kernel's family on the CPU and on a GPU, and its operations on the CPU, on a GPU, and on one that is a driver's work on
/// the CPU.
type Operations = ([Family; 2], u64, [u64; 2]);

impl Group {
    /// What the group does: its family, operations, and bytes read and written once each.
    pub fn work(&self, values: &[Value]) -> Work {
        let value = |id: ValueId| &values[id.0 as usize];
        let outputs: u64 = self.outputs.iter().map(|&id| value(id).n_bytes() as u64).sum();
        let read = |input: &Operand| bytes_read(input, values);
        let inputs = self.inputs.iter().enumerate().map(|(i, input)| match self.kernel {
            // Of what it gathers from, only what it takes.
            Kernel::Gather { .. } if i == 0 => read(input).min(outputs),
            _ => read(input),
        });
        let bytes = inputs.fold(outputs, u64::saturating_add);
        let ([family, on_gpu], flops, [lanes, narrow]) = self.operations(values);
        let own = match &self.kernel {
            Kernel::Elementwise(fused) => Pointwise::of(fused),
            Kernel::Rows(rows) => self.pointwise_of_rows(rows),
            _ => Pointwise::default(),
        };
        let besides = self.heads.iter().map(|head| &head.fused);
        let besides = besides.chain(self.tail.as_ref().map(|tail| &tail.fused));
        let all = besides.map(Pointwise::of).fold(own, Pointwise::plus);
        let Pointwise { simple, functions } = all;
        let among = match &self.kernel {
            Kernel::Gather { .. } => self.inputs.first().map_or(0, read),
            _ => 0,
        };
        let again = if self.heads.is_empty() { [0; 2] } else { self.again() };
        let mut all: Vec<ValueId> = self.inputs.iter().map(|input| input.value).collect();
        all.extend(&self.outputs);
        all.sort_unstable();
        all.dedup();
        Work {
            on_gpu,
            lanes,
            narrow,
            pointwise: simple,
            functions,
            again,
            buffers: u32::try_from(all.len()).unwrap_or(u32::MAX),
            among,
            ..Work::new(family, flops, bytes)
        }
    }

    /// The variables that the group reads, and how many bytes of each.
    pub fn resident<'a>(
        &'a self,
        values: &'a [Value],
    ) -> impl Iterator<Item = (ValueId, u64)> + 'a {
        let inputs = self.inputs.iter().map(|input| (input.value, bytes_read(input, values)));
        let is_table = matches!(self.kernel, Kernel::Gather { .. });
        let inputs = inputs.skip(usize::from(is_table));
        inputs.filter(|&(id, _)| matches!(values[id.0 as usize].source, Source::Variable(_)))
    }

    /// The operations and functions of heads for each time but the first that a GPU computes an element.
    fn again(&self) -> [u64; 2] {
        let bare = self.bare();
        let of_head = |head: &Head| {
            Pointwise::of(&head.fused).times(times(&bare, head.operand).saturating_sub(1))
        };
        let all = self.heads.iter().map(of_head).fold(Pointwise::default(), Pointwise::plus);
        [all.simple, all.functions]
    }

    fn operations(&self, values: &[Value]) -> Operations {
        let len = |id: ValueId| values[id.0 as usize].shape.len() as u64;
        let first = self.inputs.first().map_or(0, |input| input.layout.shape().len() as u64);
        let made = match &self.tail {
            Some(tail) => len(tail.result),
            None => self.outputs.iter().map(|&id| len(id)).sum(),
        };
        let same = |family: Family, flops: u64| ([family; 2], flops, [flops; 2]);
        match &self.kernel {
            Kernel::Elementwise(_) => same(Family::Elementwise, 0),
            Kernel::Reduce(reduction) => same(self.reduction_family(reduction), first),
            Kernel::Rows(rows) => {
                let elements = rows.fused.shape.len() as u64;
                rows_operations(rows, self.outputs.iter().any(|&id| len(id) == elements))
            }
            Kernel::Matmul => self.product(made),
            Kernel::Conv2d(g) | Kernel::Conv2dInput(g) | Kernel::Conv2dFilter(g) => {
                convolution(&self.kernel, g)
            }
            Kernel::Pool { kind: PoolKind::MaxAt | PoolKind::MaxGrad, geometry } => {
                same(Family::Pool, geometry.flops().saturating_mul(POOL_AGAIN))
            }
            Kernel::Pool { geometry, .. } => same(Family::Pool, geometry.flops()),
            Kernel::Pad { .. } | Kernel::Concat { .. } | Kernel::Gather { .. } => {
                same(Family::Move, made)
            }
            Kernel::ScatterAdd { .. } => same(Family::Move, first.max(made)),
            Kernel::Text(_) => same(Family::Other, first.max(made)),
            Kernel::Random(_) => same(Family::Random, made),
            Kernel::Custom(kernel) => same(Family::Other, kernel.flops(&self.shapes(values))),
        }
    }

    fn product(&self, made: u64) -> Operations {
        let inputs = self.bare().inputs;
        let dims = |at: usize| inputs.get(at).map_or(&[][..], |x| x.layout.shape().dims());
        let size = |dims: &[usize], from_end: usize| {
            let at = dims.len().checked_sub(from_end);
            at.and_then(|at| dims.get(at)).copied().unwrap_or(0) as u64
        };
        let sizes = [size(dims(0), 2), size(dims(1), 1), size(dims(0), 1)];
        let flops = made.saturating_mul(sizes[2]).saturating_mul(2);
        let [m, n, _] = sizes;
        let tile = tile_of_product(made / m.saturating_mul(n).max(1), sizes);
        let thin = |is_thin: bool| if is_thin { Family::Thin } else { Family::Contract };
        let families = [thin(m <= 1 || n <= 1), thin(tile == DEEP_SIDE)];
        let tiles = |rows: u64| in_tiles(flops, [(m, rows), (n, tile)]);
        (families, on_cpu(flops, sizes), [tiles(tile), tiles(tile.min(NARROW))])
    }

    /// What differs within a row is computed for each element, the rest once for the row.
    fn pointwise_of_rows(&self, rows: &Rows) -> Pointwise {
        let differs = |strides: &[isize]| strides.iter().skip(rows.n_outer).any(|&s| s != 0);
        let of_input = |i: usize| self.inputs.get(i).is_some_and(|x| differs(x.layout.strides()));
        let mut varies: Vec<bool> = Vec::with_capacity(rows.fused.instrs.len());
        let (mut each, mut once) = (Pointwise::default(), Pointwise::default());
        let differences = exponents(&rows.fused);
        for (i, instr) in rows.fused.instrs.iter().enumerate() {
            let arg_varies = |arg: &Arg| match *arg {
                Arg::Input(i) => (i as usize) < rows.n_inputs() && of_input(i as usize),
                Arg::Constant(_) => false,
                Arg::Instr(i) => varies.get(i as usize).copied().unwrap_or(true),
            };
            let does = instr.args.iter().any(arg_varies);
            let sum = if does { &mut each } else { &mut once };
            if !differences.contains(&i) {
                *sum = sum.plus(Pointwise::one(instr));
            }
            varies.push(does);
        }
        each.times(rows.fused.shape.len() as u64).plus(once.times(rows.n_rows() as u64))
    }

    /// Whether what becomes one element lies side by side.
    fn reduction_family(&self, reduction: &Reduction) -> Family {
        let strides = self.inputs.first().map_or(&[][..], |x| x.layout.strides());
        match strides.get(reduction.n_outer..).and_then(<[isize]>::last) {
            Some(1) | None => Family::Reduce,
            Some(_) => Family::Columns,
        }
    }
}

/// A broadcast operand is read once from memory, whatever the number of places that see it.
fn bytes_read(input: &Operand, values: &[Value]) -> u64 {
    let value = &values[input.value.0 as usize];
    let seen = input.layout.shape().len().saturating_mul(value.dtype.n_bytes());
    seen.min(value.n_bytes()) as u64
}

/// Each fold's elements, and each row's steps. A GPU goes over the row once more if it stores elements.
fn rows_operations(rows: &Rows, stores: bool) -> Operations {
    let fused = &rows.fused;
    let n_rows = rows.n_rows() as u64;
    let n_folds = rows.folds.len() as u64;
    let folded = n_folds.saturating_mul(fused.shape.len() as u64);
    if rows.seen.is_some() {
        return ([Family::Columns; 2], folded, [folded; 2]);
    }
    let steps = n_rows.saturating_mul(n_folds + fused.instrs.len() as u64);
    let last = if stores { fused.shape.len() as u64 } else { 0 };
    let lanes = folded.saturating_add(last);
    ([Family::Reduce; 2], folded.saturating_add(steps.saturating_mul(ROW)), [lanes; 2])
}

fn convolution(kernel: &Kernel, g: &ConvGeometry) -> Operations {
    let pixels = |size: [usize; 2]| {
        let images = if g.layout == ImageLayout::Nhwc { g.batch as u64 } else { 1 };
        (size[0] as u64).saturating_mul(size[1] as u64).saturating_mul(images)
    };
    let window = (g.window[0] as u64).saturating_mul(g.window[1] as u64);
    let taps = ((g.in_channels / g.groups.max(1)) as u64).saturating_mul(window).max(1);
    let sides = match kernel {
        Kernel::Conv2dInput(_) => [g.in_channels as u64, pixels(g.in_size)],
        Kernel::Conv2dFilter(_) => [g.out_channels as u64, taps],
        _ => [g.out_channels as u64, pixels(g.out_size)],
    };
    let flops = (g.flops() / taps).saturating_mul(taps.max(TAPS));
    ([Family::Convolve; 2], flops, [in_tiles(g.flops(), sides.map(|side| (side, TILE))); 2])
}

/// Rows and columns of a GPU's tiles for products of these sizes.
pub(crate) fn tile_of_product(batches: u64, [m, n, k]: [u64; 3]) -> u64 {
    if shares_sums(batches, [m, n, k]) { DEEP_SIDE } else { TILE }
}

/// Whether GPUs share out the sums of products of these sizes: where there are few elements, each of a long sum.
pub fn shares_sums(batches: u64, [m, n, k]: [u64; 3]) -> bool {
    let [tiles_m, tiles_n] = [m, n].map(|size| size.div_ceil(DEEP_SIDE));
    let least = if tiles_m.min(tiles_n) <= 1 { DEEP_LEAST_THIN } else { DEEP_LEAST };
    tiles_m.saturating_mul(tiles_n).saturating_mul(batches) <= DEEP_FEW && k >= least
}

/// The operations of the CPU's kernel for a product: whole vectors of columns, and what each element of the result takes
/// besides its terms.
fn on_cpu(flops: u64, [m, n, k]: [u64; 3]) -> u64 {
    if m <= 1 || n <= 1 || k == 0 {
        return flops;
    }
    let in_vectors = (flops / n).saturating_mul(n.next_multiple_of(VECTOR));
    in_vectors.saturating_add((in_vectors / k).saturating_mul(STORED))
}

/// The operations of a product with so many rows and columns, with those at the edges of tiles of as many.
fn in_tiles(flops: u64, sides: [(u64, u64); 2]) -> u64 {
    sides.iter().fold(flops, |flops, &(side, tile)| {
        let side = side.max(1);
        (flops / side).saturating_mul(side.div_ceil(tile)).saturating_mul(tile)
    })
}

/// The differences of which exponentials are taken: kernels of rows do both in one step.
fn exponents(fused: &Fused) -> SmallVec<[usize; 2]> {
    let is =
        |instr: &Instr, name: &str| matches!(instr.op, Elementwise::Row(row) if row.name == name);
    let exponentials = fused.instrs.iter().filter(|instr| is(instr, "exp"));
    let differences = exponentials.filter_map(|instr| match instr.args.first() {
        Some(&Arg::Instr(i)) => {
            fused.instrs.get(i as usize).filter(|of| is(of, "sub")).map(|_| i as usize)
        }
        _ => None,
    });
    differences.collect()
}

/// Elementwise operations.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pointwise {
    simple: u64,
    functions: u64,
}

impl Pointwise {
    fn of(fused: &Fused) -> Self {
        Self::each(fused).times(fused.shape.len() as u64)
    }

    /// Those of an element.
    pub(crate) fn each(fused: &Fused) -> Self {
        fused.instrs.iter().map(Self::one).fold(Self::default(), Self::plus)
    }

    /// All of them, functions as what they take.
    pub(crate) fn operations(self) -> u64 {
        self.simple.saturating_add(self.functions.saturating_mul(EXPONENTIAL))
    }

    /// What integers lack is a function of several steps.
    fn one(instr: &Instr) -> Self {
        match instr.op {
            Elementwise::Row(Row { float: Some(float), int: None, .. }) => {
                Self { simple: 0, functions: float.steps.into() }
            }
            _ => Self { simple: 1, functions: 0 },
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            simple: self.simple.saturating_add(other.simple),
            functions: self.functions.saturating_add(other.functions),
        }
    }

    fn times(self, n: u64) -> Self {
        Self { simple: self.simple.saturating_mul(n), functions: self.functions.saturating_mul(n) }
    }
}

#[cfg(test)]
mod tests;
