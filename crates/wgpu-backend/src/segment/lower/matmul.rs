//! Matrix products: tiles, and where those are few, invocations that share a sum, or parts of it that are added
//! afterwards.

use convoke_compiler::{DEEP_SIDE, Group, Operand, shares_sums};
use convoke_graph_core::DType;

use super::{Lowering, reduce};
use crate::gpu::AdapterInfo;
use crate::segment::address::Axes;
use crate::segment::step::{MAX_LEN, MAX_TURNS, Place, Step, StepBuilder, wgsl};

/// Tiles that keep a GPU busy.
const BUSY_TILES: u64 = 128;
/// Steps of k that are worth a workgroup of their own.
const LEAST_SPLIT: u64 = 2048;
/// Steps of k in one workgroup, so that its loops turn less often than 60,000 times: at most 8 per 16 steps.
const MOST_SPLIT: u64 = 98_304;

/// How many products there are, and their sizes: the sum over `k` gives `[batches, m, n]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub batches: u64,
    pub m: u64,
    pub n: u64,
    pub k: u64,
}

/// Tiles of `matmul_deep.wgsl`, which loads more for each product, that it is used for at most.
const DEEP_TILES: u64 = 512;
/// Turns of its loop that are worth a larger workgroup.
const DEEP_TURNS: u64 = 32;

/// Rows and columns of a product from which wide tiles are worth it.
const WIDE_LEAST: u64 = 33;
/// Steps of k in one workgroup of wide tiles, whose loops turn 21 times per 16 steps.
const WIDE_MOST: u64 = 32_768;

/// Rows of a product from which `matmul_subgroups.wgsl` is worth it.
const SUBGROUPS_LEAST: u64 = 8;

/// Invocations along a side of a tile, and the parts of k.
struct Split {
    side: u64,
    splits: u64,
    split: u64,
}

/// The kernels of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tile {
    /// An invocation has 4 by 4 elements: `matmul.wgsl`.
    Square,
    /// It has 8 by 8: `matmul_wide.wgsl`.
    Wide,
    /// A workgroup has 4 by 4, and shares out their sums: `matmul_deep.wgsl`.
    Deep,
    /// A subgroup of so many invocations has 16 rows: `matmul_subgroups.wgsl`.
    Subgroup(u32),
}

/// The steps of a matrix product.
pub(super) fn lower(lowering: &mut Lowering<'_>, group: &Group) -> Result<Vec<Step>, String> {
    let bare = group.bare();
    let ([a, b], [output]) = (bare.inputs.as_slice(), bare.outputs.as_slice()) else {
        return Err("a matrix product has two inputs and one output".to_owned());
    };
    let dtype = lowering.dtype(*output);
    if dtype == DType::Bool {
        return Err("unsupported: matmul of bool".to_owned());
    }
    let sizes = sizes(a, b)?;
    let mut step = sizes.step(lowering.info);
    operands(lowering, &mut step, group, [a, b], dtype)?;
    let target = lowering.target(*output);
    product(lowering, step, sizes, dtype, target)
}

/// The steps of a product, of [`Sizes::step`] with `T` and all about the operands declared.
pub(super) fn product(
    lowering: &mut Lowering<'_>,
    mut step: StepBuilder,
    sizes: Sizes,
    dtype: DType,
    target: Place,
) -> Result<Vec<Step>, String> {
    let tile = sizes.tile(lowering.info);
    if tile == Tile::Deep {
        return deep(lowering, step, sizes, dtype, target);
    }
    let Sizes { batches, m, n, k } = sizes;
    let Split { side, splits, split } = sizes.split_for(tile);
    let len = batches * m * n;
    if len * splits >= MAX_LEN {
        return Err(format!("unsupported: {splits} parts of {len} elements"));
    }
    let parts = match splits {
        1 => target,
        splits => lowering.new_scratch(splits * len * 4)?,
    };
    let (rows, columns) = match tile {
        Tile::Subgroup(lanes) => (16, 4 * u64::from(lanes)),
        Tile::Wide => (64, 64),
        Tile::Square | Tile::Deep => (4 * side, 4 * side),
    };
    let (tiles_m, tiles_n) = (m.div_ceil(rows), n.div_ceil(columns));
    for (name, size) in [
        ("m", m),
        ("n", n),
        ("k", k),
        ("batches", batches),
        ("splits", splits),
        ("split", split),
        ("tiles_m", tiles_m),
        ("tiles_n", tiles_n),
    ] {
        step.kernel.size(name, size as u32);
    }
    match tile {
        Tile::Subgroup(lanes) => step.kernel.declare(format!("const LANES = {lanes}u;")),
        Tile::Wide => step.kernel.declare("const SIDE = 8u;"),
        Tile::Square | Tile::Deep => step.kernel.declare(format!("const SIDE = {side}u;")),
    };
    let part = if splits > 1 { reduce::accumulator(dtype) } else { dtype };
    lowering.declare_store(&mut step, parts, part)?;
    let n_tiles = tiles_m * tiles_n * batches * splits;
    let mut steps = vec![step.finish(n_tiles, &lowering.info.limits)?];
    if splits > 1 {
        steps.extend(reduce::sum_parts(lowering, parts, dtype, splits, len, target)?);
    }
    Ok(steps)
}

/// The step of a product of few elements and a long sum.
fn deep(
    lowering: &Lowering<'_>,
    mut step: StepBuilder,
    sizes: Sizes,
    dtype: DType,
    target: Place,
) -> Result<Vec<Step>, String> {
    let Sizes { batches, m, n, k } = sizes;
    let (tiles_m, tiles_n) = (m.div_ceil(DEEP_SIDE), n.div_ceil(DEEP_SIDE));
    let named = [m, n, k, batches, tiles_m, tiles_n];
    for (name, size) in ["m", "n", "k", "batches", "tiles_m", "tiles_n"].into_iter().zip(named) {
        step.kernel.size(name, size as u32);
    }
    let limits = &lowering.info.limits;
    // Each invocation has four vectors of 16 bytes in workgroup memory.
    let has_room = limits.max_compute_workgroup_storage_size >= 256 * 64
        && limits.max_compute_invocations_per_workgroup >= 256;
    let lanes = if k >= 64 * DEEP_TURNS && has_room { 256 } else { 64 };
    step.kernel.declare(format!("const LANES = {lanes}u;"));
    lowering.declare_store(&mut step, target, dtype)?;
    Ok(vec![step.finish(tiles_m * tiles_n * batches, limits)?])
}

impl Sizes {
    /// The step that its operands are declared in.
    pub(super) fn step(&self, info: &AdapterInfo) -> StepBuilder {
        StepBuilder::new(match self.tile(info) {
            Tile::Square => "matmul",
            Tile::Wide => "matmul_wide",
            Tile::Deep => "matmul_deep",
            Tile::Subgroup(_) => "matmul_subgroups",
        })
    }

    /// The kernel for it.
    fn tile(&self, info: &AdapterInfo) -> Tile {
        let is_large = self.m >= WIDE_LEAST && self.n >= WIDE_LEAST;
        let lanes = info.lone_subgroup_size().filter(|lanes| matches!(lanes, 4 | 8));
        if self.is_deep() {
            Tile::Deep
        } else if let Some(lanes) = lanes.filter(|_| self.m >= SUBGROUPS_LEAST) {
            Tile::Subgroup(lanes)
        } else if info.wide_tiles && is_large && self.split().split <= WIDE_MOST {
            Tile::Wide
        } else {
            Tile::Square
        }
    }

    /// Whether `matmul_deep.wgsl` keeps the device busier: where there are few elements, and somewhat more of
    /// them where `matmul.wgsl` would need a second dispatch.
    fn is_deep(&self) -> bool {
        let Sizes { batches, m, n, k } = *self;
        let tiles = m.div_ceil(DEEP_SIDE) * n.div_ceil(DEEP_SIDE) * batches;
        let few = shares_sums(batches, [m, n, k]);
        let is_split = tiles <= DEEP_TILES && self.split().splits > 1;
        (few || is_split) && k / 64 < MAX_TURNS
    }

    /// The parts of k for a kernel. A CPU has few cores to keep busy.
    fn split_for(&self, tile: Tile) -> Split {
        let Tile::Subgroup(_) = tile else { return self.split() };
        let split = self.k.clamp(1, MAX_TURNS);
        Split { side: 0, splits: self.k.div_ceil(split).max(1), split }
    }

    /// Tiles that keep the device busy, and parts of k where there are few of them.
    fn split(&self) -> Split {
        let Sizes { batches, m, n, k } = *self;
        let tiles = |side: u64| m.div_ceil(4 * side) * n.div_ceil(4 * side) * batches;
        let side = if m >= 48 && n >= 48 && tiles(16) >= BUSY_TILES { 16 } else { 8 };
        // A quarter of the device busy is better than a second dispatch that adds the parts.
        let wanted =
            if tiles(side) >= BUSY_TILES / 4 { 1 } else { BUSY_TILES / tiles(side).max(1) };
        let wanted = wanted.clamp(1, (k / LEAST_SPLIT).max(1));
        let split = k.div_ceil(wanted).next_multiple_of(16).clamp(16, MOST_SPLIT);
        Split { side, splits: k.div_ceil(split).max(1), split }
    }
}

/// The sizes of a product of two operands.
fn sizes(a: &Operand, b: &Operand) -> Result<Sizes, String> {
    let (da, db) = (a.layout.shape().dims(), b.layout.shape().dims());
    let ([lead_a @ .., m, k], [lead_b @ .., k2, n]) = (da, db) else {
        return Err("a matrix product needs matrices".to_owned());
    };
    if lead_a != lead_b || k != k2 {
        return Err(format!("matmul of {} and {}", a.layout.shape(), b.layout.shape()));
    }
    let batches = lead_a.iter().product::<usize>() as u64;
    let [m, n, k] = [m, n, k].map(|&size| size as u64);
    Ok(Sizes { batches, m, n, k })
}

/// Declares what `matmul.wgsl` reads: where each matrix starts, and its elements.
fn operands(
    lowering: &Lowering<'_>,
    step: &mut StepBuilder,
    group: &Group,
    [a, b]: [&Operand; 2],
    dtype: DType,
) -> Result<(), String> {
    let batch = a.layout.shape().rank() - 2;
    let leading = |x: &Operand| x.layout.strides()[..batch].to_vec();
    let axes = Axes::merge(&a.layout.shape().dims()[..batch], &[&leading(a), &leading(b)]);
    axes.size_params(&mut step.kernel, "z");
    for (index, (x, name)) in [(a, 'a'), (b, 'b')].into_iter().enumerate() {
        if lowering.dtype(x.value) != dtype {
            return Err("a matrix product has one dtype".to_owned());
        }
        let loaded = lowering.operand(step, group, index)?;
        let kernel = &mut step.kernel;
        kernel.size(format!("x{name}"), x.layout.offset() as u32);
        let start = axes.address(kernel, index, "z", &format!("x{name}_z"), &format!("p.x{name}"));
        kernel.declare(format!("fn {name}_start(i: u32) -> u32 {{ {start} }}"));
        let mut at = "start".to_owned();
        for (stride, index) in x.layout.strides()[batch..].iter().zip(["row", "column"]) {
            match stride {
                0 => {}
                1 => at.push_str(&format!(" + {index}")),
                &stride => {
                    kernel.size(format!("x{name}_{index}"), stride as u32);
                    at.push_str(&format!(" + {index} * p.x{name}_{index}"));
                }
            }
        }
        let element = loaded.element(&at);
        kernel.declare(format!(
            "fn load_{name}(start: u32, row: u32, column: u32) -> T {{ {element} }}"
        ));
    }
    step.kernel.declare(format!("alias T = {};", wgsl(dtype)?));
    Ok(())
}
