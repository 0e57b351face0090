//! Convolutions and their gradients, as matrix products whose operands are read where they lie.
//!
//! Which operand is on the left is so chosen that the product, row-major, is the packed result:
//!
//! | result | layout | matrices | left, rows | right, columns | summed over |
//! |---|---|---|---|---|---|
//! | output | `Nchw` | images | filters | pixels | taps of the input |
//! | output | `Nhwc` | 1 | pixels of all images | filters | taps of the input |
//! | images' gradient | `Nchw` | images | channels | pixels | taps of the output |
//! | images' gradient | `Nhwc` | 1 | pixels of all images | channels | taps of the output |
//! | filters' gradient | `Nchw` | 1 | filters | taps of the input | pixels of all outputs |
//! | filters' gradient | `Nhwc` | 1 | taps of the input | filters | pixels of all outputs |
//!
//! Taps are channels, rows and columns of a window in `Nchw`, rows, columns and channels in `Nhwc`: the order
//! of filters. Long sums are split as those of any product.

use convoke_compiler::{Group, Kernel};
use convoke_graph_core::{ConvGeometry, ImageLayout, Layout, Shape};

use super::Lowering;
use super::head::Loaded;
use super::matmul::{Sizes, product};
use crate::segment::step::{MAX_LEN, Step, StepBuilder};

/// What is computed of the other two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Forward,
    Input,
    Filter,
}

/// The steps of a convolution or a gradient of it.
pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    group: &Group,
    way: Way,
    g: &ConvGeometry,
) -> Result<Vec<Step>, String> {
    check(&group.kernel, g)?;
    let (images, filters, results) = (g.input_dims(), g.filter_dims(), g.output_dims());
    let (inputs, dims) = match way {
        Way::Forward => ([images, filters], results),
        Way::Input => ([filters, results], images),
        Way::Filter => ([images, results], filters),
    };
    let dtype = lowering.float(group);
    let output = lowering.check_packed(&group.bare(), &inputs, dims, dtype)?;
    // One operand is seen through windows, the other as a matrix.
    let (seen, matrix) = if way == Way::Input { (1, 0) } else { (0, 1) };
    let sizes = sizes(way, g);
    let mut step = sizes.step(lowering.info);
    step.kernel.declare("alias T = f32;").import("window");
    let image = lowering.operand(&mut step, group, seen)?.element("i");
    step.kernel.declare(format!("fn image(i: u32) -> T {{ {image} }}"));
    let matrix = lowering.operand(&mut step, group, matrix)?;
    windows(&mut step, way, g)?;
    operands(&mut step, way, g, matrix);
    let target = lowering.target(output);
    product(lowering, step, sizes, dtype, target)
}

/// Refuses attributes that there is no kernel for, and numbers that could leave 32 bits.
fn check(kernel: &Kernel, g: &ConvGeometry) -> Result<(), String> {
    if g.groups != 1 {
        return Err(format!("unsupported: {kernel} on a GPU: groups is {}, not 1", g.groups));
    }
    if g.dilation != [1, 1] {
        let dilation = g.dilation;
        return Err(format!(
            "unsupported: {kernel} on a GPU: dilation is {dilation:?}, not [1, 1]"
        ));
    }
    for axis in 0..2 {
        let reach = g.out_size[axis].checked_mul(g.stride[axis]);
        let reach = reach.and_then(|n| n.checked_add(g.window[axis]));
        let padded = g.in_size[axis].checked_add(g.pad_before[axis]);
        let most = reach.and_then(|n| n.checked_add(padded?)).map_or(u64::MAX, |n| n as u64);
        if most >= MAX_LEN {
            return Err(format!("unsupported: {kernel} on a GPU: more than {MAX_LEN} places"));
        }
    }
    Ok(())
}

fn sizes(way: Way, g: &ConvGeometry) -> Sizes {
    let pixels = |[rows, columns]: [usize; 2]| rows * columns;
    let [batch, inputs, outputs] = [g.batch, g.in_channels, g.out_channels];
    let (rows, columns, k) = match way {
        Way::Forward => (outputs, pixels(g.out_size), inputs * pixels(g.window)),
        Way::Input => (inputs, pixels(g.in_size), outputs * pixels(g.window)),
        Way::Filter => (outputs, inputs * pixels(g.window), batch * pixels(g.out_size)),
    };
    let (batches, m, n) = match (g.layout, way) {
        (ImageLayout::Nchw, Way::Filter) => (1, rows, columns),
        (ImageLayout::Nchw, _) => (batch, rows, columns),
        (ImageLayout::Nhwc, Way::Filter) => (1, columns, rows),
        (ImageLayout::Nhwc, _) => (1, batch * columns, rows),
    };
    Sizes { batches: batches as u64, m: m as u64, n: n as u64, k: k as u64 }
}

/// Declares what `lib/window.wgsl` reads.
fn windows(step: &mut StepBuilder, way: Way, g: &ConvGeometry) -> Result<(), String> {
    let (grid, image, dims, channels) = match way {
        Way::Input => (g.in_size, g.out_size, g.output_dims(), g.out_channels),
        _ => (g.out_size, g.in_size, g.input_dims(), g.in_channels),
    };
    let shape = Shape::new(&dims).map_err(|e| e.to_string())?;
    let strides = Layout::packed(shape).strides().to_vec();
    let strides: [isize; 4] = strides.try_into().map_err(|_| "images have four axes".to_owned())?;
    let kernel = &mut step.kernel;
    for (name, [rows, columns]) in [
        ("grid", grid),
        ("window", g.window),
        ("image", image),
        ("stride", g.stride),
        ("pad", g.pad_before),
    ] {
        kernel.size(format!("{name}_h"), rows as u32).size(format!("{name}_w"), columns as u32);
    }
    for (axis, stride) in ["n", "c", "h", "w"].into_iter().zip(g.layout.image(strides)) {
        kernel.size(format!("step_{axis}"), stride as u32);
    }
    if g.layout == ImageLayout::Nhwc {
        kernel.size("channels", channels as u32).declare(
            "fn tap(k: u32) -> vec3<u32> { return rows_of(k, p.window_w, p.channels).zxy; }",
        );
    }
    Ok(())
}

/// Declares `load_a` and `load_b`.
fn operands(step: &mut StepBuilder, way: Way, g: &ConvGeometry, matrix: Loaded) {
    let read = match way {
        Way::Input => "above",
        _ => "under",
    };
    let kernel = &mut step.kernel;
    let window = g.window[0] * g.window[1];
    // The index that goes with rows or columns of the result, and that of the sum, as pixel and tap.
    let (pixel, tap) = match (way, g.layout) {
        (Way::Filter, ImageLayout::Nchw) => ("k", "j"),
        (Way::Filter, ImageLayout::Nhwc) => ("k", "i"),
        (_, ImageLayout::Nchw) => ("j", "k"),
        (_, ImageLayout::Nhwc) => ("i", "k"),
    };
    let seen = format!("return {read}(start, pixel({pixel}), tap({tap}));");
    match g.layout {
        ImageLayout::Nchw => {
            // Rows of the matrix are cut into runs, between which all other rows' lie.
            let at = if way == Way::Forward {
                "i * p.k + k"
            } else {
                let pixels = g.out_size[0] * g.out_size[1];
                let run = if way == Way::Input { window } else { pixels };
                kernel.size("run", run as u32);
                "(k / p.run * p.m + i) * p.run + k % p.run"
            };
            let element = matrix.element(at);
            kernel.declare(format!("fn load_a(start: u32, i: u32, k: u32) -> T {{ {element} }}"));
            kernel.declare(format!("fn load_b(start: u32, k: u32, j: u32) -> T {{ {seen} }}"));
            let start = if way == Way::Filter { "0u" } else { "z * p.step_n" };
            kernel.declare(format!("fn b_start(z: u32) -> u32 {{ return {start}; }}"));
        }
        ImageLayout::Nhwc => {
            let at = if way == Way::Input {
                "(k / p.channels * p.n + j) * p.channels + k % p.channels"
            } else {
                "k * p.n + j"
            };
            let element = matrix.element(at);
            kernel.declare(format!("fn load_b(start: u32, k: u32, j: u32) -> T {{ {element} }}"));
            kernel.declare(format!("fn load_a(start: u32, i: u32, k: u32) -> T {{ {seen} }}"));
            kernel.declare("fn a_start(z: u32) -> u32 { return 0u; }");
        }
    }
}
