//! Two-dimensional convolutions and their two gradients, which are operations of their own: each is the
//! gradient of the others, so that they can be differentiated again.

use std::sync::Arc;

use std::fmt;

use smallvec::SmallVec;

use crate::op::{arity, one, output_shape, value};
use crate::ops::gather::sizes_in;
use crate::ops::registry::Decode;
use crate::ops::window::{Along, four, positive};
use crate::{
    Attributes, Backward, Class, Contract, ConvGeometry, DType, Dim, Dims, Fact, HostTensor,
    ImageLayout, IntoTensor, Op, OpError, Padding, Shape, Tensor,
};

/// How filters move over images: attributes of [`Tensor::conv2d`]. Rows come before columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Conv2d {
    /// The steps between windows, at least 1.
    pub stride: [usize; 2],
    /// The steps inside of a window, at least 1.
    pub dilation: [usize; 2],
    /// The channels are in so many groups that are convolved apart, at least 1.
    pub groups: usize,
    /// Zeros around the images.
    pub padding: Padding,
    /// The order of the axes.
    pub layout: ImageLayout,
}

impl Default for Conv2d {
    /// Steps of 1, one group, no padding, `Nchw`.
    fn default() -> Self {
        Self {
            stride: [1, 1],
            dilation: [1, 1],
            groups: 1,
            padding: Padding::Valid,
            layout: ImageLayout::Nchw,
        }
    }
}

impl Tensor {
    /// The cross-correlation of images with filters, as TensorFlow's `conv2d`.
    ///
    /// # Shapes
    /// `Nchw`: `self [n, c, h, w]`, `filters [k, c / groups, r, s]` → `[n, k, h', w']`. `Nhwc`:
    /// `self [n, h, w, c]`, `filters [r, s, c / groups, k]` → `[n, h', w', k]`.
    ///
    /// # Errors
    /// Recorded: ranks other than 4, dtypes that differ or are no floats, channels that do not fit,
    /// attributes out of range, windows that do not fit into the padded image.
    #[track_caller]
    pub fn conv2d(&self, filters: impl IntoTensor, conv: Conv2d) -> Tensor {
        let filters = filters.into_tensor(self);
        self.apply(Convolution(Contract::Conv2d(conv)), &[self, &filters])
    }

    /// The gradient of a convolution of images shaped like `like`, where this is that of its output.
    #[track_caller]
    fn conv2d_input(&self, like: &Tensor, filters: &Tensor, conv: Conv2d) -> Tensor {
        let op = Convolution(Contract::Conv2dInput(conv));
        self.apply(op, &[&like.shape(), filters, self])
    }

    /// The gradient for filters shaped like `like`, where this is that of the output.
    #[track_caller]
    fn conv2d_filter(&self, x: &Tensor, like: &Tensor, conv: Conv2d) -> Tensor {
        let op = Convolution(Contract::Conv2dFilter(conv));
        self.apply(op, &[x, &like.shape(), self])
    }
}

impl Conv2d {
    /// How windows stand along rows (0) or columns (1).
    pub(crate) fn along(&self, axis: usize, window: Dim) -> Along {
        let (stride, dilation) = (self.stride[axis], self.dilation[axis]);
        Along { axis, window, stride, dilation, padding: self.padding }
    }

    /// The dimensions of the output, as far as they are known.
    pub(crate) fn output_dims(&self, x: &Dims, filters: &Dims) -> Result<Dims, OpError> {
        positive("a convolution's stride", self.stride)?;
        positive("a convolution's dilation", self.dilation)?;
        positive("a convolution's number of groups", [self.groups; 2])?;
        let [n, c, h, w] = self.layout.image(four(x)?);
        let [k, of_group, r, s] = self.layout.filter(four(filters)?);
        let groups = self.groups;
        if let (Some(c), Some(of_group)) = (c.known(), of_group.known())
            && of_group.checked_mul(groups) != Some(c)
        {
            return Err(OpError::Invalid(format!(
                "filters {filters} take {of_group} channels in each of {groups} groups, and the \
                 images {x} have {c}"
            )));
        }
        if let Some(k) = k.known().filter(|k| k % groups != 0) {
            return Err(OpError::Invalid(format!(
                "{k} filters cannot be shared out to {groups} groups"
            )));
        }
        let (h, w) = (self.along(0, r).count(h)?, self.along(1, s).count(w)?);
        self.layout.image_dims([n, k, h, w]).into_iter().collect::<Dims>().checked()
    }
}

/// One of the three convolutions.
#[derive(Clone)]
struct Convolution(Contract);

/// The operation's name and attributes: `conv2d stride [1, 1] dilation [1, 1] groups 1 Same Nchw`.
impl fmt::Debug for Convolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conv2d { stride, dilation, groups, padding, layout } = self.attributes();
        write!(f, "{} stride {stride:?} dilation {dilation:?} ", self.name())?;
        write!(f, "groups {groups} {padding:?} {layout:?}")
    }
}

impl Op for Convolution {
    fn name(&self) -> &str {
        match self.0 {
            Contract::Conv2dInput(_) => "conv2d_input",
            Contract::Conv2dFilter(_) => "conv2d_filter",
            _ => "conv2d",
        }
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let conv = self.attributes();
        match self.0 {
            Contract::Conv2dInput(_) => {
                let [sizes, filters, dy] = arity(inputs)?;
                let dtype = floats(filters, dy)?;
                let x = sizes_in(sizes)?;
                let y = conv.output_dims(&x, &filters.dims)?.unify(&dy.dims)?;
                let [batch, ..] = conv.layout.image(four(&y)?);
                let [_, of_group, ..] = conv.layout.filter(four(&filters.dims)?);
                let c = of_group.known().and_then(|c| c.checked_mul(conv.groups));
                let implied = [batch, c.into(), Dim::Unknown, Dim::Unknown];
                let implied: Dims = conv.layout.image_dims(implied).into_iter().collect();
                one(Fact::new(dtype, x.unify(&implied)?.checked()?))
            }
            Contract::Conv2dFilter(_) => {
                let [x, sizes, dy] = arity(inputs)?;
                let dtype = floats(x, dy)?;
                let filters: Dims = four(&sizes_in(sizes)?)?.into_iter().collect();
                conv.output_dims(&x.dims, &filters)?.unify(&dy.dims)?;
                one(Fact::new(dtype, filters.checked()?))
            }
            _ => {
                let [x, filters] = arity(inputs)?;
                let dtype = floats(x, filters)?;
                one(Fact::new(dtype, conv.output_dims(&x.dims, &filters.dims)?))
            }
        }
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let (dtype, shape) = output_shape(self, inputs)?;
        let floats = |x: &HostTensor| x.to_f64s().map_err(|e| OpError::Invalid(e.message().into()));
        let mut sums = vec![0.0; shape.len()];
        match self.0 {
            Contract::Conv2dInput(_) => {
                let g = self.geometry(&shape, inputs[1].shape())?;
                let (filters, dy) = (floats(&inputs[1])?, floats(&inputs[2])?);
                terms(&g, |x, filter, y| sums[x] += filters[filter] * dy[y]);
            }
            Contract::Conv2dFilter(_) => {
                let g = self.geometry(inputs[0].shape(), &shape)?;
                let (xs, dy) = (floats(&inputs[0])?, floats(&inputs[2])?);
                terms(&g, |x, filter, y| sums[filter] += xs[x] * dy[y]);
            }
            _ => {
                let g = self.geometry(inputs[0].shape(), inputs[1].shape())?;
                let (xs, filters) = (floats(&inputs[0])?, floats(&inputs[1])?);
                terms(&g, |x, filter, y| sums[y] += xs[x] * filters[filter]);
            }
        }
        value(HostTensor::from_f64s(dtype, shape, &sums))
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let conv = self.attributes();
        let Some(dy) = backward.dy() else { return vec![None; backward.n_inputs()] };
        match self.0 {
            Contract::Conv2dInput(_) => {
                let (filters, y) = (backward.input(1), backward.input(2));
                let dfilters = y.conv2d_filter(&dy, filters, conv);
                vec![None, Some(dfilters), Some(dy.conv2d(filters, conv))]
            }
            Contract::Conv2dFilter(_) => {
                let (x, y) = (backward.input(0), backward.input(2));
                let dx = y.conv2d_input(x, &dy, conv);
                vec![Some(dx), None, Some(x.conv2d(&dy, conv))]
            }
            _ => {
                let (x, filters) = (backward.input(0), backward.input(1));
                let dx = dy.conv2d_input(x, filters, conv);
                vec![Some(dx), Some(dy.conv2d_filter(x, filters, conv))]
            }
        }
    }

    fn class(&self) -> Class<'_> {
        Class::Contract(self.0.clone())
    }

    fn encode(&self) -> Option<Attributes> {
        let Conv2d { stride, dilation, groups, padding, layout } = self.attributes();
        let encoded = Attributes::of(self.name()).with("stride", stride).with("dilation", dilation);
        Some(encoded.with("groups", groups).with("padding", padding).with("layout", layout))
    }
}

impl Convolution {
    fn attributes(&self) -> Conv2d {
        match self.0 {
            Contract::Conv2d(conv) | Contract::Conv2dInput(conv) | Contract::Conv2dFilter(conv) => {
                conv
            }
            Contract::Matmul { .. } => Conv2d::default(),
        }
    }

    fn geometry(&self, x: &Shape, filters: &Shape) -> Result<ConvGeometry, OpError> {
        ConvGeometry::new(&self.attributes(), x, filters)
    }
}

/// The one dtype of two factors, which are floats.
fn floats(a: &Fact, b: &Fact) -> Result<DType, OpError> {
    a.expect("a convolution", "floats", DType::is_float)?;
    if a.dtype != b.dtype {
        return Err(OpError::DTypes { lhs: a.dtype, rhs: b.dtype });
    }
    Ok(a.dtype)
}

/// Calls `term(x, filter, y)` for every product of a convolution, with the places of its factors and of
/// the sum that it belongs to.
fn terms(g: &ConvGeometry, mut term: impl FnMut(usize, usize, usize)) {
    let strides = |[_, b, c, d]: [usize; 4]| [b * c * d, c * d, d, 1];
    let x_strides = g.layout.image(strides(g.input_dims()));
    let y_strides = g.layout.image(strides(g.output_dims()));
    let f_strides = g.layout.filter(strides(g.filter_dims()));
    let at = |coords: [usize; 4], strides: [usize; 4]| -> usize {
        coords.iter().zip(strides).map(|(c, s)| c * s).sum()
    };
    let (in_group, out_group) = (g.in_channels / g.groups, g.out_channels / g.groups);
    let pairs = |[rows, columns]: [usize; 2]| {
        (0..rows).flat_map(move |row| (0..columns).map(move |column| [row, column]))
    };
    for n in 0..g.batch {
        for k in 0..g.out_channels {
            for [i, j] in pairs(g.out_size) {
                let y = at([n, k, i, j], y_strides);
                for c in 0..in_group {
                    for [r, s] in pairs(g.window) {
                        if let Some([h, w]) = g.source([i, j], [r, s]) {
                            let channel = k / out_group * in_group + c;
                            let x = at([n, channel, h, w], x_strides);
                            term(x, at([k, c, r, s], f_strides), y);
                        }
                    }
                }
            }
        }
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[
    ("conv2d", |a| Ok(Arc::new(Convolution(Contract::Conv2d(decode(a)?))))),
    ("conv2d_input", |a| Ok(Arc::new(Convolution(Contract::Conv2dInput(decode(a)?))))),
    ("conv2d_filter", |a| Ok(Arc::new(Convolution(Contract::Conv2dFilter(decode(a)?))))),
];

fn decode(a: &Attributes) -> Result<Conv2d, OpError> {
    let (stride, dilation, groups) = (a.array("stride")?, a.array("dilation")?, a.int("groups")?);
    let (padding, layout) = (Padding::decode(a)?, ImageLayout::decode(a)?);
    Ok(Conv2d { stride, dilation, groups, padding, layout })
}
