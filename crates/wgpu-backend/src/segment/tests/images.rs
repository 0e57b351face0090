//! Convolutions, pooling and their gradients: both orders of axes, odd sizes, padding, long sums, refusals.

use convoke_compiler::{Kernel, PoolKind};
use convoke_graph_core::{Conv2d, ConvGeometry, DType, ImageLayout, Padding, Pool, PoolGeometry};

use super::harness::*;
use crate::gpu::{Adapter, Gpu, GpuOptions};
use crate::segment::supports;

const BOTH: [ImageLayout; 2] = [ImageLayout::Nchw, ImageLayout::Nhwc];
const KINDS: [PoolKind; 5] =
    [PoolKind::Max, PoolKind::Avg, PoolKind::MaxAt, PoolKind::MaxGrad, PoolKind::AvgGrad];

/// Where element `[a, b, c, d]` lies of sizes in the order that `strides` are asked in.
fn strides(dims: [usize; 4], order: impl Fn([isize; 4]) -> [isize; 4]) -> [usize; 4] {
    let strides: [isize; 4] = packed(&dims).strides().try_into().unwrap();
    order(strides).map(|stride| stride as usize)
}

fn dot(at: [usize; 4], strides: [usize; 4]) -> usize {
    at.iter().zip(strides).map(|(i, stride)| i * stride).sum()
}

/// The output and both gradients, term by term.
fn convolve(g: &ConvGeometry, x: &[f32], f: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
    let image = |dims| strides(dims, |s| g.layout.image(s));
    let (sx, sy) = (image(g.input_dims()), image(g.output_dims()));
    let sf = strides(g.filter_dims(), |s| g.layout.filter(s));
    let mut sums = [vec![0f64; dy.len()], vec![0f64; x.len()], vec![0f64; f.len()]];
    let out = shape(&[g.batch, g.out_channels, g.out_size[0], g.out_size[1]]);
    let taps = shape(&[g.in_channels, g.window[0], g.window[1]]);
    let taps: Vec<_> = (0..taps.len()).map(|t| taps.coords(t)).collect();
    for o in 0..out.len() {
        let at = out.coords(o);
        let [n, k, i, j] = [at[0], at[1], at[2], at[3]];
        for tap in &taps {
            let [c, r, s] = [tap[0], tap[1], tap[2]];
            let Some([h, w]) = g.source([i, j], [r, s]) else { continue };
            let [ix, jf] = [dot([n, c, h, w], sx), dot([k, c, r, s], sf)];
            let iy = dot([n, k, i, j], sy);
            sums[0][iy] += f64::from(x[ix]) * f64::from(f[jf]);
            sums[1][ix] += f64::from(f[jf]) * f64::from(dy[iy]);
            sums[2][jf] += f64::from(x[ix]) * f64::from(dy[iy]);
        }
    }
    sums.map(|sums| sums.into_iter().map(|sum| sum as f32).collect())
}

fn add_conv(b: &mut Build, g: &ConvGeometry) -> [Vec<f32>; 3] {
    let dims = [g.input_dims(), g.filter_dims(), g.output_dims()];
    let data = [0, 1, 2].map(|i| noise(shape(&dims[i]).len(), i as u64 + 3));
    let ids = [0, 1, 2].map(|i| b.upload(&dims[i], &data[i]));
    let [x, f, dy] = ids.map(|id| b.whole(id));
    for (kernel, inputs, dims) in [
        (Kernel::Conv2d(*g), [x.clone(), f.clone()], dims[2]),
        (Kernel::Conv2dInput(*g), [f, dy.clone()], dims[0]),
        (Kernel::Conv2dFilter(*g), [x, dy], dims[1]),
    ] {
        let y = b.one(kernel, &inputs, DType::F32, &dims);
        b.download(y);
    }
    data
}

fn conv_geometry(x: [usize; 4], filters: [usize; 4], conv: &Conv2d) -> ConvGeometry {
    let x = shape(&conv.layout.image_dims(x));
    ConvGeometry::new(conv, &x, &shape(&conv.layout.filter_dims(filters))).unwrap()
}

/// Images `[n, c, h, w]` and filters `[k, c, r, s]`, in both orders.
#[track_caller]
fn check_conv(x: [usize; 4], filters: [usize; 4], conv: Conv2d) {
    for layout in BOTH {
        let g = conv_geometry(x, filters, &Conv2d { layout, ..conv });
        let mut b = Build::new();
        let [x, f, dy] = add_conv(&mut b, &g);
        let expected = convolve(&g, &x, &f, &dy);
        b.with_all_tiles(|name, data| {
            for (i, what) in ["output", "images' gradient", "filters' gradient"].iter().enumerate()
            {
                let what = format!("{what} of {g:?} on {name}");
                assert_near(&elements::<f32>(&data[i]), &expected[i], 1e-4, &what);
            }
        });
    }
}

fn same() -> Conv2d {
    Conv2d { padding: Padding::Same, ..Conv2d::default() }
}

#[test]
fn convolutions_of_small_and_odd_images() {
    check_conv([1, 1, 1, 1], [1, 1, 1, 1], Conv2d::default());
    check_conv([3, 4, 1, 1], [5, 4, 1, 1], Conv2d::default());
    check_conv([2, 3, 9, 7], [5, 3, 3, 2], Conv2d::default());
    check_conv([2, 3, 9, 7], [5, 3, 2, 3], same());
    check_conv([1, 40, 5, 5], [70, 40, 3, 3], same());
    // A window larger than the image.
    check_conv([2, 2, 3, 2], [3, 2, 5, 5], same());
    let padding = Padding::Explicit([[2, 3], [1, 4]]);
    check_conv([2, 2, 3, 2], [3, 2, 6, 5], Conv2d { padding, ..Conv2d::default() });
    check_conv([0, 2, 5, 5], [3, 2, 3, 3], same());
    check_conv([2, 0, 5, 5], [3, 0, 3, 3], same());
    check_conv([2, 2, 5, 5], [0, 2, 3, 3], same());
}

#[test]
fn convolutions_with_strides() {
    for stride in [[2, 2], [1, 3], [3, 2]] {
        check_conv([2, 3, 11, 10], [4, 3, 3, 3], Conv2d { stride, ..same() });
        check_conv([2, 3, 11, 10], [4, 3, 2, 4], Conv2d { stride, ..Conv2d::default() });
        // Columns that no window meets.
        check_conv([1, 2, 8, 9], [3, 2, 1, 1], Conv2d { stride, ..Conv2d::default() });
    }
}

#[test]
fn convolutions_of_handwriting() {
    check_conv([2, 1, 28, 28], [32, 1, 5, 5], same());
    check_conv([2, 32, 14, 14], [64, 32, 3, 3], same());
}

#[test]
fn gradients_of_filters_over_a_batch() {
    check_conv([32, 1, 28, 28], [8, 1, 5, 5], same());
    check_conv([32, 8, 8, 8], [16, 8, 3, 3], Conv2d { stride: [2, 2], ..same() });
}

/// What each kind gives, of `x`, another tensor like `x`, and `dy`.
fn pooled(kind: PoolKind, g: &PoolGeometry, x: &[f32], other: &[f32], dy: &[f32]) -> Vec<f32> {
    let image = |dims| strides(dims, |s| g.layout.image(s));
    let (sx, sy) = (image(g.input_dims()), image(g.output_dims()));
    let mut to_out = vec![0f32; dy.len()];
    let mut to_in = vec![0f32; x.len()];
    let out = shape(&[g.batch, g.channels, g.out_size[0], g.out_size[1]]);
    for o in 0..out.len() {
        let at = out.coords(o);
        let under: Vec<usize> = g
            .cover(0, at[2])
            .flat_map(|h| g.cover(1, at[3]).map(move |w| [h, w]))
            .map(|[h, w]| dot([at[0], at[1], h, w], sx))
            .collect();
        let mut first = under[0];
        for &i in &under {
            if x[i] > x[first] || (x[i].is_nan() && !x[first].is_nan()) {
                first = i;
            }
        }
        let iy = dot([at[0], at[1], at[2], at[3]], sy);
        let n = under.len() as f32;
        to_out[iy] = match kind {
            PoolKind::Max => x[first],
            PoolKind::MaxAt => other[first],
            _ => under.iter().map(|&i| x[i]).sum::<f32>() / n,
        };
        match kind {
            PoolKind::MaxGrad => to_in[first] += dy[iy],
            _ => under.iter().for_each(|&i| to_in[i] += dy[iy] / n),
        }
    }
    if matches!(kind, PoolKind::MaxGrad | PoolKind::AvgGrad) { to_in } else { to_out }
}

/// The data: images with equal elements and some NaNs, others like them, and gradients of the output.
fn add_pools(b: &mut Build, g: &PoolGeometry) -> [Vec<f32>; 3] {
    let dims = [g.input_dims(), g.input_dims(), g.output_dims()];
    let mut data = [0, 1, 2].map(|i| noise(shape(&dims[i]).len(), i as u64 + 11));
    for (i, x) in data[0].iter_mut().enumerate() {
        let infinite = if i % 5 == 0 { f32::NEG_INFINITY } else { (*x * 3.0).round() };
        *x = if i % 23 == 22 { f32::NAN } else { infinite };
    }
    let ids = [0, 1, 2].map(|i| b.upload(&dims[i], &data[i]));
    let [x, other, dy] = ids.map(|id| b.whole(id));
    for kind in KINDS {
        let (inputs, dims) = match kind {
            PoolKind::MaxAt => (vec![x.clone(), other.clone()], dims[2]),
            PoolKind::MaxGrad => (vec![x.clone(), dy.clone()], dims[0]),
            PoolKind::AvgGrad => (vec![dy.clone()], dims[0]),
            _ => (vec![x.clone()], dims[2]),
        };
        let y = b.one(Kernel::Pool { kind, geometry: *g }, &inputs, DType::F32, &dims);
        b.download(y);
    }
    data
}

#[track_caller]
fn check_pools(x: [usize; 4], pool: Pool) {
    for layout in BOTH {
        let pool = Pool { layout, ..pool };
        let g = PoolGeometry::new(&pool, &shape(&layout.image_dims(x))).unwrap();
        let mut b = Build::new();
        let [x, other, dy] = add_pools(&mut b, &g);
        b.on_all(|name, data| {
            for (kind, bytes) in KINDS.iter().zip(data) {
                let expected = pooled(*kind, &g, &x, &other, &dy);
                let what = format!("{kind:?} of {g:?} on {name}");
                assert_near(&elements::<f32>(bytes), &expected, 1e-5, &what);
            }
        });
    }
}

#[test]
fn pooling_and_its_gradients() {
    let same = Pool { padding: Padding::Same, ..Pool::default() };
    check_pools([1, 1, 2, 2], Pool::default());
    check_pools([2, 3, 8, 6], Pool::default());
    check_pools([2, 3, 9, 7], same);
    for (window, stride) in [([3, 3], [2, 2]), ([3, 2], [1, 1]), ([2, 5], [3, 1]), ([1, 1], [2, 3])]
    {
        check_pools([2, 5, 11, 13], Pool { window, stride, ..same });
        check_pools([2, 5, 11, 13], Pool { window, stride, ..Pool::default() });
    }
    let padding = Padding::Explicit([[1, 2], [2, 0]]);
    check_pools([1, 2, 6, 5], Pool { window: [3, 3], stride: [2, 1], padding, ..Pool::default() });
    check_pools([3, 4, 17, 19], Pool { window: [17, 19], stride: [1, 1], ..Pool::default() });
    // A window larger than the image, and no images.
    check_pools([1, 2, 3, 2], Pool { window: [6, 7], stride: [1, 1], ..same });
    check_pools([0, 2, 3, 2], same);
    check_pools([33, 32, 28, 28], Pool::default());
}

/// Refusals name what is not there.
#[test]
fn refusals() {
    let gpu = Gpu::open(&Adapter::noop(), &GpuOptions::default()).unwrap();
    let refused = |b: &Build| -> Vec<String> {
        let all = b.program.groups.iter();
        all.filter_map(|group| supports(gpu.info(), &b.program, group).err()).collect()
    };
    let mut b = Build::new();
    let x = [2, 4, 9, 9];
    add_conv(&mut b, &conv_geometry(x, [6, 2, 3, 3], &Conv2d { groups: 2, ..same() }));
    let errors = refused(&b);
    assert!(errors.len() == 3 && errors.iter().all(|e| e.contains("groups is 2")), "{errors:?}");
    let mut b = Build::new();
    add_conv(&mut b, &conv_geometry(x, [6, 4, 3, 3], &Conv2d { dilation: [1, 2], ..same() }));
    let errors = refused(&b);
    assert!(errors.len() == 3 && errors.iter().all(|e| e.contains("dilation")), "{errors:?}");
    // Windows of more elements than an invocation may go through, which the mean's gradient need not.
    let mut b = Build::new();
    let pool = Pool { window: [300, 300], stride: [300, 300], ..Pool::default() };
    add_pools(&mut b, &PoolGeometry::new(&pool, &shape(&[1, 1, 300, 300])).unwrap());
    let errors = refused(&b);
    assert!(errors.len() == 4 && errors.iter().all(|e| e.contains("window")), "{errors:?}");
    let pool = Pool { window: [300, 300], stride: [1, 1], ..Pool::default() };
    let geometry = PoolGeometry::new(&pool, &shape(&[1, 1, 599, 599])).unwrap();
    let mut b = Build::new();
    let dy = b.upload(&[1, 1, 300, 300], &[0f32; 90_000]);
    let (kernel, inputs) = (Kernel::Pool { kind: PoolKind::AvgGrad, geometry }, [b.whole(dy)]);
    b.one(kernel, &inputs, DType::F32, &[1, 1, 599, 599]);
    let errors = refused(&b);
    assert!(errors.len() == 1 && errors[0].contains("windows over an element"), "{errors:?}");
}

/// One of each, in both orders, with parts of sums and without.
pub(super) fn every_kind() -> Build {
    let mut b = Build::new();
    for layout in BOTH {
        for (x, filters) in [([2, 3, 8, 8], [4, 3, 3, 3]), ([32, 64, 28, 28], [64, 64, 3, 3])] {
            add_conv(&mut b, &conv_geometry(x, filters, &Conv2d { layout, ..same() }));
        }
        let pool = Pool { layout, ..Pool::default() };
        let images = shape(&layout.image_dims([2, 3, 8, 8]));
        add_pools(&mut b, &PoolGeometry::new(&pool, &images).unwrap());
    }
    b
}
