//! Pooling: the maximum or the mean under windows that slide over images, and the gradients of both.

use std::sync::Arc;

use std::fmt;

use smallvec::SmallVec;

use crate::op::{arity, one, output_shape, value};
use crate::ops::gather::sizes_in;
use crate::ops::registry::Decode;
use crate::ops::window::{Along, four, positive};
use crate::{
    Attributes, Backward, Class, DType, Dim, Dims, Fact, HostTensor, ImageLayout, Op, OpError,
    Padding, PoolGeometry, Tensor, Window,
};

/// How windows move over images: attributes of pooling. Rows come before columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pool {
    /// The size of a window, at least 1.
    pub window: [usize; 2],
    /// The steps between windows, at least 1.
    pub stride: [usize; 2],
    /// What is outside of the image takes no part: it is neither a maximum, nor counted in a mean.
    /// Explicit padding is less than a window.
    pub padding: Padding,
    /// The order of the axes.
    pub layout: ImageLayout,
}

impl Default for Pool {
    /// Windows of 2 by 2, side by side, no padding, `Nchw`.
    fn default() -> Self {
        Self { window: [2, 2], stride: [2, 2], padding: Padding::Valid, layout: ImageLayout::Nchw }
    }
}

impl Tensor {
    /// The greatest element under each window; NaN if any is. The gradient goes to the first greatest,
    /// row by row.
    ///
    /// # Shapes
    /// `Nchw`: `[n, c, h, w]` → `[n, c, h', w']`; `Nhwc`: `[n, h, w, c]` → `[n, h', w', c]`.
    ///
    /// # Errors
    /// Recorded: a rank other than 4, a dtype that is no float, attributes out of range, windows that do
    /// not fit into the padded image.
    #[track_caller]
    pub fn max_pool(&self, pool: Pool) -> Tensor {
        self.apply(Pooling(Window::Max(pool)), &[self])
    }

    /// The mean of the elements under each window, padding left out.
    ///
    /// # Shapes
    /// As [`Self::max_pool`].
    ///
    /// # Errors
    /// As [`Self::max_pool`].
    #[track_caller]
    pub fn avg_pool(&self, pool: Pool) -> Tensor {
        self.apply(Pooling(Window::Avg(pool)), &[self])
    }
}

impl Pool {
    /// How windows stand along rows (0) or columns (1).
    pub(crate) fn along(&self, axis: usize) -> Along {
        let (window, stride) = (Dim::Known(self.window[axis]), self.stride[axis]);
        Along { axis, window, stride, dilation: 1, padding: self.padding }
    }

    /// The dimensions of the output, as far as they are known.
    pub(crate) fn output_dims(&self, x: &Dims) -> Result<Dims, OpError> {
        positive("a pooling window", self.window)?;
        positive("a pooling stride", self.stride)?;
        if let Padding::Explicit(zeros) = self.padding {
            for (axis, zeros) in zeros.iter().enumerate() {
                let (most, window) = (zeros[0].max(zeros[1]), self.window[axis]);
                if most >= window {
                    return Err(OpError::Range {
                        what: "the padding of pooling",
                        value: i64::try_from(most).unwrap_or(i64::MAX),
                        expected: format!("less than the window's {window}"),
                    });
                }
            }
        }
        let [n, c, h, w] = self.layout.image(four(x)?);
        let (h, w) = (self.along(0).count(h)?, self.along(1).count(w)?);
        self.layout.image_dims([n, c, h, w]).into_iter().collect::<Dims>().checked()
    }
}

/// One of the kinds of pooling.
#[derive(Clone, Copy)]
struct Pooling(Window);

/// The operation's name and attributes: `max_pool [2, 2] stride [2, 2] Valid Nchw`.
impl fmt::Debug for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pool { window, stride, padding, layout } = self.attributes();
        write!(f, "{} {window:?} stride {stride:?} {padding:?} {layout:?}", self.name())
    }
}

impl Op for Pooling {
    fn name(&self) -> &str {
        match self.0 {
            Window::Max(_) => "max_pool",
            Window::Avg(_) => "avg_pool",
            Window::MaxAt(_) => "max_pool_at",
            Window::MaxGrad(_) => "max_pool_grad",
            Window::AvgGrad(_) => "avg_pool_grad",
        }
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let pool = self.attributes();
        let (x, other) = match self.0 {
            Window::Max(_) | Window::Avg(_) => {
                let [x] = arity(inputs)?;
                (x.dims.clone(), x)
            }
            Window::MaxAt(_) | Window::MaxGrad(_) => {
                let [x, other] = arity(inputs)?;
                if x.dtype != other.dtype {
                    return Err(OpError::DTypes { lhs: x.dtype, rhs: other.dtype });
                }
                (x.dims.clone(), other)
            }
            Window::AvgGrad(_) => {
                let [sizes, dy] = arity(inputs)?;
                (sizes_in(sizes)?, dy)
            }
        };
        other.expect("pooling", "floats", DType::is_float)?;
        let y = pool.output_dims(&x)?;
        one(other.with_dims(match self.0 {
            Window::Max(_) | Window::Avg(_) => y,
            Window::MaxAt(_) => {
                x.unify(&other.dims)?;
                y
            }
            Window::MaxGrad(_) | Window::AvgGrad(_) => {
                let y = y.unify(&other.dims)?;
                let [n, c, ..] = pool.layout.image(four(&y)?);
                let open = pool.layout.image_dims([n, c, Dim::Unknown, Dim::Unknown]);
                x.unify(&open.into_iter().collect())?.checked()?
            }
        }))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let (dtype, shape) = output_shape(self, inputs)?;
        let is_sizes = matches!(self.0, Window::AvgGrad(_));
        let images = if is_sizes { &shape } else { inputs[0].shape() };
        let g = PoolGeometry::new(&self.attributes(), images)?;
        let floats = |x: &HostTensor| x.to_f64s().map_err(|e| OpError::Invalid(e.message().into()));
        let mut out = vec![0.0; shape.len()];
        match self.0 {
            Window::Max(_) => {
                let xs = floats(&inputs[0])?;
                let max = |places: &[usize]| first_max(&xs, places).map(|at| xs[at]);
                windows(&g, |y, places| out[y] = max(places).unwrap_or(f64::NEG_INFINITY));
            }
            Window::Avg(_) => {
                let xs = floats(&inputs[0])?;
                let sum = |places: &[usize]| places.iter().map(|&at| xs[at]).sum::<f64>();
                windows(&g, |y, places| out[y] = sum(places) / places.len() as f64);
            }
            Window::MaxAt(_) => {
                let (xs, vs) = (floats(&inputs[0])?, floats(&inputs[1])?);
                windows(&g, |y, places| out[y] = first_max(&xs, places).map_or(0.0, |at| vs[at]));
            }
            Window::MaxGrad(_) => {
                let (xs, dy) = (floats(&inputs[0])?, floats(&inputs[1])?);
                windows(&g, |y, places| {
                    if let Some(at) = first_max(&xs, places) {
                        out[at] += dy[y];
                    }
                });
            }
            Window::AvgGrad(_) => {
                let dy = floats(&inputs[1])?;
                windows(&g, |y, places| {
                    places.iter().for_each(|&at| out[at] += dy[y] / places.len() as f64);
                });
            }
        }
        value(HostTensor::from_f64s(dtype, shape, &out))
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let Some(dy) = backward.dy() else { return vec![None; backward.n_inputs()] };
        let x = backward.input(0);
        // Where the maxima are is constant almost everywhere: no gradient flows through that.
        match self.0 {
            Window::Max(pool) => {
                vec![Some(x.apply(Self(Window::MaxGrad(pool)), &[x, &dy]))]
            }
            Window::Avg(pool) => {
                vec![Some(x.apply(Self(Window::AvgGrad(pool)), &[&x.shape(), &dy]))]
            }
            Window::MaxAt(pool) => {
                vec![None, Some(x.apply(Self(Window::MaxGrad(pool)), &[x, &dy]))]
            }
            Window::MaxGrad(pool) => {
                vec![None, Some(x.apply(Self(Window::MaxAt(pool)), &[x, &dy]))]
            }
            Window::AvgGrad(pool) => vec![None, Some(dy.avg_pool(pool))],
        }
    }

    fn class(&self) -> Class<'_> {
        Class::Window(self.0)
    }

    fn encode(&self) -> Option<Attributes> {
        let Pool { window, stride, padding, layout } = self.attributes();
        let encoded = Attributes::of(self.name()).with("window", window).with("stride", stride);
        Some(encoded.with("padding", padding).with("layout", layout))
    }
}

impl Pooling {
    fn attributes(&self) -> Pool {
        match self.0 {
            Window::Max(pool)
            | Window::Avg(pool)
            | Window::MaxAt(pool)
            | Window::MaxGrad(pool)
            | Window::AvgGrad(pool) => pool,
        }
    }
}

/// The first place of the greatest element; the first NaN counts as greatest.
fn first_max(xs: &[f64], places: &[usize]) -> Option<usize> {
    let greater = |best: usize, at: usize| {
        let is_greater = xs[at] > xs[best] || (xs[at].is_nan() && !xs[best].is_nan());
        if is_greater { at } else { best }
    };
    places.iter().copied().reduce(greater)
}

/// Calls `window(y, places)` for every output element, with the places of the input elements under its
/// window, row by row.
fn windows(g: &PoolGeometry, mut window: impl FnMut(usize, &[usize])) {
    let strides = |[_, b, c, d]: [usize; 4]| [b * c * d, c * d, d, 1];
    let x_strides = g.layout.image(strides(g.input_dims()));
    let y_strides = g.layout.image(strides(g.output_dims()));
    let at = |coords: [usize; 4], strides: [usize; 4]| -> usize {
        coords.iter().zip(strides).map(|(c, s)| c * s).sum()
    };
    for n in 0..g.batch {
        for c in 0..g.channels {
            for i in 0..g.out_size[0] {
                for j in 0..g.out_size[1] {
                    let row = |h| g.cover(1, j).map(move |w| at([n, c, h, w], x_strides));
                    let places: Vec<usize> = g.cover(0, i).flat_map(row).collect();
                    window(at([n, c, i, j], y_strides), &places);
                }
            }
        }
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[
    ("max_pool", |a| Ok(Arc::new(Pooling(Window::Max(decode(a)?))))),
    ("avg_pool", |a| Ok(Arc::new(Pooling(Window::Avg(decode(a)?))))),
    ("max_pool_at", |a| Ok(Arc::new(Pooling(Window::MaxAt(decode(a)?))))),
    ("max_pool_grad", |a| Ok(Arc::new(Pooling(Window::MaxGrad(decode(a)?))))),
    ("avg_pool_grad", |a| Ok(Arc::new(Pooling(Window::AvgGrad(decode(a)?))))),
];

fn decode(a: &Attributes) -> Result<Pool, OpError> {
    let (window, stride) = (a.array("window")?, a.array("stride")?);
    Ok(Pool { window, stride, padding: Padding::decode(a)?, layout: ImageLayout::decode(a)? })
}
