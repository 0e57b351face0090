//! Operations that users bring: the kernels of [`Class::Custom`](crate::Class::Custom), and what they see.

use std::fmt;

use ndarray::{ArrayViewD, ArrayViewMutD, IxDyn};

use crate::{DType, Element, Error, Result, Shape};

/// The kernels of an operation that backends do not know.
pub trait CustomKernel: fmt::Debug + Send + Sync + 'static {
    /// Computes the outputs from the inputs, on the calling thread. What an output holds before is
    /// arbitrary.
    ///
    /// # Errors
    /// Data that the operation refuses. The run then fails and changes nothing.
    fn cpu(&self, inputs: &[TensorView<'_>], outputs: &mut [TensorViewMut<'_>]) -> Result<()>;

    /// The kernel for GPUs on these shapes; `None` if only the CPU does it.
    fn wgsl(&self, shapes: &KernelShapes) -> Option<Wgsl>;

    /// Arithmetic operations of one run, from which placement prices it.
    fn flops(&self, shapes: &KernelShapes) -> u64;
}

/// The dtypes and shapes that a kernel is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelShapes {
    /// Of the inputs.
    pub inputs: Vec<(DType, Shape)>,
    /// Of the outputs.
    pub outputs: Vec<(DType, Shape)>,
}

/// A compute kernel in WGSL.
///
/// `text` has the entry point `main`, a `@compute` function. What it may use is declared after it:
///
/// - `load_0(i: u32)`, `load_1`, ..: element `i`, in row-major order, of each input.
/// - `store_0(i: u32, value)`, ..: stores element `i` of each output. Every element must be stored once.
/// - `p.NAME` for each of `params`, and `p.x0_len`, .., `p.y0_len`, ..: the number of elements of each
///   input and output.
/// - with the comment line `// import place` at the top of `text`, `linear(workgroup_id, num_workgroups)`:
///   the number of the workgroup, from 0. It can be above `workgroups`, so compare with a length.
///
/// Elements are `f32`, `i32`, `u32`, and `bool` for inputs; those of f16, where the device has it, are loaded
/// and stored as `f32`. Other dtypes, and outputs of bool, run on the CPU. Indices out of range do no harm, but give arbitrary elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Wgsl {
    /// A name for messages and debuggers.
    pub name: &'static str,
    /// The shader.
    pub text: &'static str,
    /// Numbers for it, which are no part of its text: one text is compiled once.
    pub params: Vec<(&'static str, WgslParam)>,
    /// Workgroups to run, folded into a grid of up to three dimensions.
    pub workgroups: u64,
}

/// The value of a param of [`Wgsl`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum WgslParam {
    U32(u32),
    I32(i32),
    F32(f32),
}

/// A tensor that a kernel reads: packed, row-major.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    dtype: DType,
    shape: &'a Shape,
    bytes: &'a [u8],
}

/// A tensor that a kernel writes: packed, row-major.
#[derive(Debug)]
pub struct TensorViewMut<'a> {
    dtype: DType,
    shape: &'a Shape,
    bytes: &'a mut [u8],
}

impl<'a> TensorView<'a> {
    /// A view of the elements' bytes.
    ///
    /// # Errors
    /// The bytes are not those of as many elements, or the dtype is string.
    pub fn new(dtype: DType, shape: &'a Shape, bytes: &'a [u8]) -> Result<Self> {
        check_bytes(dtype, shape, bytes.len())?;
        Ok(Self { dtype, shape, bytes })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes.
    pub fn dims(&self) -> &'a [usize] {
        self.shape.dims()
    }

    /// The elements.
    ///
    /// # Errors
    /// The dtype is not `T`'s.
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T]> {
        check_dtype::<T>(self.dtype, self.shape)?;
        bytemuck::checked::try_cast_slice(self.bytes)
            .map_err(|e| Error::internal(format!("elements of {}: {e}", self.dtype)))
    }

    /// The elements as an `ndarray` view.
    ///
    /// # Errors
    /// The dtype is not `T`'s.
    pub fn view<T: Element>(&self) -> Result<ArrayViewD<'a, T>> {
        ArrayViewD::from_shape(IxDyn(self.dims()), self.as_slice()?)
            .map_err(|e| Error::internal(format!("shape {}: {e}", self.shape)))
    }
}

impl<'a> TensorViewMut<'a> {
    /// A view of the elements' bytes.
    ///
    /// # Errors
    /// As [`TensorView::new`].
    pub fn new(dtype: DType, shape: &'a Shape, bytes: &'a mut [u8]) -> Result<Self> {
        check_bytes(dtype, shape, bytes.len())?;
        if dtype == DType::Bool {
            // Whatever the memory held, it must be bools before it is seen as such.
            bytes.fill(0);
        }
        Ok(Self { dtype, shape, bytes })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes.
    pub fn dims(&self) -> &'a [usize] {
        self.shape.dims()
    }

    /// The elements.
    ///
    /// # Errors
    /// The dtype is not `T`'s.
    pub fn as_slice_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        check_dtype::<T>(self.dtype, self.shape)?;
        bytemuck::checked::try_cast_slice_mut(self.bytes)
            .map_err(|e| Error::internal(format!("elements of {}: {e}", self.dtype)))
    }

    /// Copies the bytes of another tensor of the dtype and sizes.
    ///
    /// # Errors
    /// There are more bytes, or fewer.
    pub fn copy_from(&mut self, bytes: &[u8]) -> Result<()> {
        check_bytes(self.dtype, self.shape, bytes.len())?;
        self.bytes.copy_from_slice(bytes);
        Ok(())
    }

    /// The elements as an `ndarray` view.
    ///
    /// # Errors
    /// The dtype is not `T`'s.
    pub fn view_mut<T: Element>(&mut self) -> Result<ArrayViewMutD<'_, T>> {
        let shape = self.shape;
        ArrayViewMutD::from_shape(IxDyn(shape.dims()), self.as_slice_mut()?)
            .map_err(|e| Error::internal(format!("shape {shape}: {e}")))
    }
}

fn check_bytes(dtype: DType, shape: &Shape, n_bytes: usize) -> Result<()> {
    let expected = shape.len() * dtype.n_bytes();
    if dtype == DType::String || n_bytes != expected {
        let message = format!("expected {expected} bytes of {dtype}{shape}, got {n_bytes}");
        return Err(Error::invalid(message));
    }
    Ok(())
}

fn check_dtype<T: Element>(dtype: DType, shape: &Shape) -> Result<()> {
    if T::DTYPE == dtype {
        return Ok(());
    }
    let message = format!("expected a tensor of {}, got {dtype}{shape}", T::DTYPE);
    Err(Error::invalid(message))
}
