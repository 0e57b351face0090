//! Windows that stand on images: the attributes and the arithmetic that convolutions and pooling share.
//!
//! Rows come before columns in every pair.

use crate::{Attribute, Attributes, Conv2d, Dim, Dims, OpError, Pool, Shape};

/// The order of the axes of a batch of images, and of filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ImageLayout {
    /// Images `[batch, channels, rows, columns]`, filters `[out, in / groups, rows, columns]`.
    #[default]
    Nchw,
    /// Images `[batch, rows, columns, channels]`, filters `[rows, columns, in / groups, out]`.
    Nhwc,
}

impl ImageLayout {
    /// Batch, channels, rows and columns of images of these sizes or strides.
    pub fn image<T: Copy>(self, [a, b, c, d]: [T; 4]) -> [T; 4] {
        match self {
            Self::Nchw => [a, b, c, d],
            Self::Nhwc => [a, d, b, c],
        }
    }

    /// The sizes of images in this order, from batch, channels, rows and columns.
    pub fn image_dims<T: Copy>(self, [n, c, h, w]: [T; 4]) -> [T; 4] {
        match self {
            Self::Nchw => [n, c, h, w],
            Self::Nhwc => [n, h, w, c],
        }
    }

    /// Outputs, inputs of a group, rows and columns of filters of these sizes or strides.
    pub fn filter<T: Copy>(self, [a, b, c, d]: [T; 4]) -> [T; 4] {
        match self {
            Self::Nchw => [a, b, c, d],
            Self::Nhwc => [d, c, a, b],
        }
    }

    /// The sizes of filters in this order, from outputs, inputs of a group, rows and columns.
    pub fn filter_dims<T: Copy>(self, [k, c, r, s]: [T; 4]) -> [T; 4] {
        match self {
            Self::Nchw => [k, c, r, s],
            Self::Nhwc => [r, s, c, k],
        }
    }
}

/// How many zeros stand around an image: as seen by a window, where there is no image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Padding {
    /// None: windows stand on the image.
    #[default]
    Valid,
    /// As many that there are `ceil(size / stride)` windows; an odd one stands at the end.
    Same,
    /// Before and after the rows, before and after the columns.
    Explicit([[usize; 2]; 2]),
}

impl From<Padding> for Attribute {
    fn from(padding: Padding) -> Self {
        match padding {
            Padding::Valid => "valid".into(),
            Padding::Same => "same".into(),
            Padding::Explicit(zeros) => zeros.into_iter().flatten().collect(),
        }
    }
}

impl Padding {
    /// From the attribute `padding`.
    pub(crate) fn decode(a: &Attributes) -> Result<Self, OpError> {
        match a.get("padding") {
            Some(Attribute::Text(text)) if text == "valid" => Ok(Self::Valid),
            Some(Attribute::Text(text)) if text == "same" => Ok(Self::Same),
            _ => {
                let [top, bottom, left, right] = a.array("padding")?;
                Ok(Self::Explicit([[top, bottom], [left, right]]))
            }
        }
    }
}

impl From<ImageLayout> for Attribute {
    fn from(layout: ImageLayout) -> Self {
        match layout {
            ImageLayout::Nchw => "nchw".into(),
            ImageLayout::Nhwc => "nhwc".into(),
        }
    }
}

impl ImageLayout {
    /// From the attribute `layout`.
    pub(crate) fn decode(a: &Attributes) -> Result<Self, OpError> {
        match a.text("layout")? {
            "nchw" => Ok(Self::Nchw),
            "nhwc" => Ok(Self::Nhwc),
            other => Err(OpError::Invalid(format!("there is no layout {other:?}"))),
        }
    }
}

/// How windows stand along one axis.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Along {
    /// 0 for rows, 1 for columns.
    pub axis: usize,
    pub window: Dim,
    pub stride: usize,
    pub dilation: usize,
    pub padding: Padding,
}

impl Along {
    /// How many windows stand on `size`.
    pub fn count(&self, size: Dim) -> Result<Dim, OpError> {
        match (size, self.window) {
            (Dim::Known(size), Dim::Known(window)) => Ok(Dim::Known(self.place(size, window)?.0)),
            (Dim::Known(size), _) if self.padding == Padding::Same => {
                Ok(Dim::Known(size.div_ceil(self.stride)))
            }
            (size, _) if self.padding == Padding::Same && self.stride == 1 => Ok(size),
            _ => Ok(Dim::Unknown),
        }
    }

    /// How many windows stand on `size`, and how many zeros before it.
    pub fn place(&self, size: usize, window: usize) -> Result<(usize, usize), OpError> {
        let Self { axis, stride, dilation, padding, .. } = *self;
        let overflow = || OpError::Overflow { dims: vec![window, dilation], max: usize::MAX };
        if window == 0 {
            return Err(OpError::Invalid("a window of size 0; expected at least 1".into()));
        }
        let span = (window - 1).checked_mul(dilation).and_then(|n| n.checked_add(1));
        let span = span.ok_or_else(overflow)?;
        let (before, after) = match padding {
            Padding::Valid => (0, 0),
            Padding::Explicit(zeros) => (zeros[axis][0], zeros[axis][1]),
            Padding::Same => {
                let count = size.div_ceil(stride);
                let reach = count.saturating_sub(1).checked_mul(stride);
                let reach = reach.and_then(|n| n.checked_add(span)).ok_or_else(overflow)?;
                let zeros = if count == 0 { 0 } else { reach.saturating_sub(size) };
                return Ok((count, zeros / 2));
            }
        };
        let whole = size.checked_add(before).and_then(|n| n.checked_add(after));
        let whole = whole.ok_or_else(overflow)?;
        let room = whole.checked_sub(span).ok_or_else(|| {
            let name = ["rows", "columns"][axis];
            OpError::Invalid(format!(
                "a window that spans {span} {name} does not fit into {whole}, padding included; pad \
                 more, or use Padding::Same"
            ))
        })?;
        Ok((room / stride + 1, before))
    }
}

/// An error unless each of these, rows and columns, is at least 1.
pub(crate) fn positive(what: &'static str, [rows, columns]: [usize; 2]) -> Result<(), OpError> {
    let least = rows.min(columns);
    if least > 0 {
        return Ok(());
    }
    Err(OpError::Range { what, value: 0, expected: "at least 1".into() })
}

/// The four dimensions, unknown ones for an unknown rank.
pub(crate) fn four(dims: &Dims) -> Result<[Dim; 4], OpError> {
    let known = dims.expect_rank(4)?;
    Ok([known[0], known[1], known[2], known[3]])
}

fn four_sizes(shape: &Shape) -> Result<[usize; 4], OpError> {
    let misfit = |_| OpError::Rank { expected: 4, found: shape.into() };
    shape.dims().try_into().map_err(misfit)
}

/// A convolution of concrete images: all that a kernel needs.
///
/// Output `(n, k, i, j)` is the sum over `c`, `r` and `s` of input `(n, g * C + c, y, x)` times filter
/// `(k, c, r, s)`, where `g = k / (out_channels / groups)`, `C = in_channels / groups`,
/// `y = i * stride[0] + r * dilation[0] - pad_before[0]`, and `x` alike; there is no term outside of the
/// image. Images and filters are packed in the order of `layout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvGeometry {
    /// The number of images.
    pub batch: usize,
    /// The number of groups; divides both numbers of channels, and is at least 1.
    pub groups: usize,
    /// Channels of an input image.
    pub in_channels: usize,
    /// Channels of an output image: filters.
    pub out_channels: usize,
    /// Rows and columns of an input image.
    pub in_size: [usize; 2],
    /// Rows and columns of an output image.
    pub out_size: [usize; 2],
    /// Rows and columns of a filter, at least 1.
    pub window: [usize; 2],
    /// The steps between windows, at least 1.
    pub stride: [usize; 2],
    /// The steps inside of a window, at least 1.
    pub dilation: [usize; 2],
    /// Zeros before the first row and column.
    pub pad_before: [usize; 2],
    /// The order of the axes.
    pub layout: ImageLayout,
}

impl ConvGeometry {
    /// The convolution `conv` of images of shape `input` with filters of shape `filters`.
    ///
    /// # Errors
    /// Attributes out of range, ranks other than 4, channels that do not fit, windows that do not fit
    /// into the padded image.
    pub fn new(conv: &Conv2d, input: &Shape, filters: &Shape) -> Result<Self, OpError> {
        let layout = conv.layout;
        conv.output_dims(&input.into(), &filters.into())?;
        let [batch, in_channels, rows, columns] = layout.image(four_sizes(input)?);
        let [out_channels, _, r, s] = layout.filter(four_sizes(filters)?);
        let (height, top) = conv.along(0, r.into()).place(rows, r)?;
        let (width, left) = conv.along(1, s.into()).place(columns, s)?;
        Ok(Self {
            batch,
            groups: conv.groups,
            in_channels,
            out_channels,
            in_size: [rows, columns],
            out_size: [height, width],
            window: [r, s],
            stride: conv.stride,
            dilation: conv.dilation,
            pad_before: [top, left],
            layout,
        })
    }

    /// The sizes of the input.
    pub fn input_dims(&self) -> [usize; 4] {
        let [h, w] = self.in_size;
        self.layout.image_dims([self.batch, self.in_channels, h, w])
    }

    /// The sizes of the output.
    pub fn output_dims(&self) -> [usize; 4] {
        let [h, w] = self.out_size;
        self.layout.image_dims([self.batch, self.out_channels, h, w])
    }

    /// The sizes of the filters.
    pub fn filter_dims(&self) -> [usize; 4] {
        let [r, s] = self.window;
        self.layout.filter_dims([self.out_channels, self.in_channels / self.groups, r, s])
    }

    /// A multiplication and an addition for each term, those with padding counted too: the arithmetic of
    /// the convolution and of each of its gradients.
    pub fn flops(&self) -> u64 {
        let dims = [self.batch, self.out_size[0], self.out_size[1], self.out_channels];
        let term = [self.in_channels / self.groups, self.window[0], self.window[1], 2];
        product(&dims).saturating_mul(product(&term))
    }

    /// The row and column of the input that lies under place `tap` of the window of `output`.
    pub fn source(&self, output: [usize; 2], tap: [usize; 2]) -> Option<[usize; 2]> {
        let at = |i: usize| {
            let at = output[i] * self.stride[i] + tap[i] * self.dilation[i];
            at.checked_sub(self.pad_before[i]).filter(|&at| at < self.in_size[i])
        };
        Some([at(0)?, at(1)?])
    }
}

/// Pooling of concrete images: all that a kernel needs. Packed in the order of `layout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PoolGeometry {
    /// The number of images.
    pub batch: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Rows and columns of an input image.
    pub in_size: [usize; 2],
    /// Rows and columns of an output image.
    pub out_size: [usize; 2],
    /// Rows and columns of a window, at least 1.
    pub window: [usize; 2],
    /// The steps between windows, at least 1.
    pub stride: [usize; 2],
    /// Rows and columns before the image that windows cover; less than a window.
    pub pad_before: [usize; 2],
    /// The order of the axes.
    pub layout: ImageLayout,
}

impl PoolGeometry {
    /// The pooling `pool` of images of shape `input`.
    ///
    /// # Errors
    /// Attributes out of range, a rank other than 4, windows that do not fit into the padded image.
    pub fn new(pool: &Pool, input: &Shape) -> Result<Self, OpError> {
        pool.output_dims(&input.into())?;
        let [batch, channels, rows, columns] = pool.layout.image(four_sizes(input)?);
        let (height, top) = pool.along(0).place(rows, pool.window[0])?;
        let (width, left) = pool.along(1).place(columns, pool.window[1])?;
        Ok(Self {
            batch,
            channels,
            in_size: [rows, columns],
            out_size: [height, width],
            window: pool.window,
            stride: pool.stride,
            pad_before: [top, left],
            layout: pool.layout,
        })
    }

    /// The sizes of the input.
    pub fn input_dims(&self) -> [usize; 4] {
        let [h, w] = self.in_size;
        self.layout.image_dims([self.batch, self.channels, h, w])
    }

    /// The sizes of the output.
    pub fn output_dims(&self) -> [usize; 4] {
        let [h, w] = self.out_size;
        self.layout.image_dims([self.batch, self.channels, h, w])
    }

    /// An operation for each element under each window.
    pub fn flops(&self) -> u64 {
        let dims = [self.batch, self.channels, self.out_size[0], self.out_size[1]];
        product(&dims).saturating_mul(product(&self.window))
    }

    /// Along rows (0) or columns (1): the part of the input under window `output`, from its first place
    /// to the one after its last.
    pub fn cover(&self, axis: usize, output: usize) -> std::ops::Range<usize> {
        let begin = output * self.stride[axis];
        let on_image = |at: usize| at.saturating_sub(self.pad_before[axis]).min(self.in_size[axis]);
        on_image(begin)..on_image(begin + self.window[axis])
    }
}

fn product(sizes: &[usize]) -> u64 {
    sizes.iter().fold(1, |n: u64, &size| n.saturating_mul(size as u64))
}
