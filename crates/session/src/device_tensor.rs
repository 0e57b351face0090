//! Tensors that stay on the device where a run has left them.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

#[cfg(feature = "gpu")]
#[expect(unused_imports, reason = "docs link to it")]
use convoke_graph_core::ErrorKind;
use convoke_graph_core::{
    DType, Error, FeedValue, HostTensor, IntoFeed, Resident, Result, Shape, Tensor,
};
#[cfg(feature = "gpu")]
use convoke_wgpu_backend::{GpuTensor, wgpu};

use smallvec::SmallVec;

#[cfg(feature = "gpu")]
use crate::devices::Devices;
use crate::devices::HOST_NAME;
use crate::fetch::{Fetch, FetchList, FetchResults};

/// A fetched tensor whose elements stay on the device that computed them: the CPU's lie in host memory.
///
/// It can be fed like any other value, by reference, to runs of any session on the same [`Devices`](crate::Devices). A
/// run whose kernels are on its device, or on another part of the same adapter, takes it from there, with no copy through
/// the host; for others it is brought to the host and sent on. Clones are the same elements, which never change. The memory is free for others when the last
/// clone is dropped.
///
/// ```
/// # use convoke_session::{Devices, OnDevice, Session};
/// # use convoke_graph_core::{DType, Graph, dims};
/// # fn main() -> convoke_graph_core::Result<()> {
/// let g = Graph::new();
/// let x = g.placeholder("x", DType::F32, dims![]);
/// let square = &x * &x;
/// let session = Session::new(&g, &Devices::cpu())?;
/// let once = session.run(&[x.feed(2.0)], OnDevice(&square))?;
/// let twice = session.run(&[x.feed(&once)], &square)?;
/// assert_eq!(twice.scalar::<f32>()?, 16.0);
/// # Ok(())
/// # }
/// ```
///
/// Source: TensorFlow's session handles (`tf.get_session_handle`), and `feed_devices` and `fetch_devices` of its
/// `CallableOptions`.
#[derive(Clone)]
pub struct DeviceTensor(Arc<Inner>);

struct Inner {
    dtype: DType,
    shape: Shape,
    device: Arc<str>,
    home: Home,
}

enum Home {
    Host(HostTensor),
    #[cfg(feature = "gpu")]
    Gpu(GpuTensor),
}

impl DeviceTensor {
    /// A tensor in host memory.
    pub(crate) fn on_host(tensor: HostTensor) -> Self {
        let (dtype, shape) = (tensor.dtype(), tensor.shape().clone());
        Self(Arc::new(Inner { dtype, shape, device: HOST_NAME.into(), home: Home::Host(tensor) }))
    }

    /// A tensor on a GPU.
    #[cfg(feature = "gpu")]
    pub(crate) fn on_gpu(dtype: DType, shape: Shape, device: Arc<str>, tensor: GpuTensor) -> Self {
        Self(Arc::new(Inner { dtype, shape, device, home: Home::Gpu(tensor) }))
    }

    /// The same elements with another shape.
    ///
    /// # Errors
    /// Another number of elements.
    pub(crate) fn reshaped(&self, shape: &Shape) -> Result<Self> {
        if shape == &self.0.shape {
            return Ok(self.clone());
        }
        if shape.len() != self.0.shape.len() {
            return Err(Error::internal(format!("{self:?} is no tensor of shape {shape}")));
        }
        match &self.0.home {
            Home::Host(tensor) => Ok(Self::on_host(tensor.reshaped(shape.clone())?)),
            #[cfg(feature = "gpu")]
            Home::Gpu(tensor) => {
                let device = self.0.device.clone();
                Ok(Self::on_gpu(self.0.dtype, shape.clone(), device, tensor.clone()))
            }
        }
    }

    /// The tensor in host memory, if it is there.
    pub(crate) fn host(&self) -> Option<&HostTensor> {
        match &self.0.home {
            Home::Host(tensor) => Some(tensor),
            #[cfg(feature = "gpu")]
            Home::Gpu(_) => None,
        }
    }

    /// The elements on a GPU, if they are on one.
    #[cfg(feature = "gpu")]
    pub(crate) fn gpu(&self) -> Option<&GpuTensor> {
        match &self.0.home {
            Home::Host(_) => None,
            Home::Gpu(tensor) => Some(tensor),
        }
    }

    /// Whether it is on a GPU, and this is the only handle of its memory.
    pub(crate) fn is_sole(&self) -> bool {
        match &self.0.home {
            Home::Host(_) => false,
            #[cfg(feature = "gpu")]
            Home::Gpu(tensor) => Arc::strong_count(&self.0) == 1 && tensor.is_sole(),
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.0.shape
    }

    /// The name of the device that has it, as in [`DeviceInfo::name`](crate::DeviceInfo::name): `CPU:0`, `GPU:0`.
    pub fn device(&self) -> &str {
        &self.0.device
    }

    /// The bytes of its elements; 0 for strings.
    pub fn n_bytes(&self) -> u64 {
        (self.0.shape.len() as u64).saturating_mul(self.0.dtype.n_bytes() as u64)
    }

    /// A copy in host memory; of a tensor that is there, the tensor itself.
    ///
    /// # Errors
    /// No memory, or a device that is lost.
    pub fn to_host(&self) -> Result<HostTensor> {
        match &self.0.home {
            Home::Host(tensor) => Ok(tensor.clone()),
            #[cfg(feature = "gpu")]
            Home::Gpu(tensor) => {
                let bytes = tensor.load().map_err(|e| e.with_device(&*self.0.device))?;
                HostTensor::from_bytes(self.0.dtype, self.0.shape.clone(), bytes)
            }
        }
    }
}

#[cfg(feature = "gpu")]
impl DeviceTensor {
    /// Copies of tensors of one device in host memory, all brought there in one submission.
    ///
    /// # Errors
    /// No memory, or a device that is lost.
    pub(crate) fn all_to_host(all: &[&Self]) -> Result<Vec<HostTensor>> {
        let on_gpu: Vec<&GpuTensor> = all.iter().filter_map(|tensor| tensor.gpu()).collect();
        let device = all.first().map_or("GPU", |tensor| tensor.device());
        let loaded = GpuTensor::load_all(&on_gpu).map_err(|e| e.with_device(device))?;
        let tensor = |(own, bytes): (&&Self, _)| {
            HostTensor::from_bytes(own.0.dtype, own.0.shape.clone(), bytes)
        };
        all.iter().zip(loaded).map(tensor).collect()
    }
}

/// Buffers of the app, on a wgpu device that it shares: see [`Devices::from_wgpu`].
#[cfg(feature = "gpu")]
impl DeviceTensor {
    /// The elements in a buffer that the app made, to be fed with no copy through the host. `device` is the GPU's name
    /// among `devices`, `GPU:0`; the buffer has `COPY_SRC` and begins with the elements, row-major, as host tensors
    /// have them: a bool is a byte.
    ///
    /// The app goes on to own the buffer. It has to be of the wgpu instance that the device is of: wgpu may take one of
    /// another instance for some other buffer. A run sees what was submitted to the device's queue before it; a write that
    /// is submitted while the run is under way may come before its read or after. The buffer must not be mapped then.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a buffer of another wgpu device, without `COPY_SRC`, destroyed, or smaller
    /// than the elements rounded up to a multiple of 4 bytes, and for strings; [`ErrorKind::NotFound`] for another
    /// device's name.
    ///
    /// ```no_run
    /// # use convoke_session::{DeviceTensor, Devices, OnDevice, Session};
    /// # use convoke_wgpu_backend::wgpu;
    /// # use convoke_graph_core::{DType, Graph, Shape, dims};
    /// # fn run(devices: &Devices, mine: wgpu::Buffer, out: &wgpu::Buffer) -> convoke_graph_core::Result<()> {
    /// let g = Graph::new();
    /// let x = g.placeholder("x", DType::F32, dims![1024]);
    /// let y = g.device("GPU:0", || &x * 2.0);
    /// let session = Session::new(&g, devices)?;
    /// let shape = Shape::new(&[1024])?;
    /// let fed = DeviceTensor::from_buffer(devices, "GPU:0", mine, DType::F32, shape)?;
    /// session.run(&[x.feed(&fed)], OnDevice(&y))?.copy_to_buffer(out, 0)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_buffer(
        devices: &Devices,
        device: &str,
        buffer: wgpu::Buffer,
        dtype: DType,
        shape: Shape,
    ) -> Result<Self> {
        let index = devices.index_of(device)?;
        let name =
            devices.list().get(index).map_or_else(|| device.into(), |info| info.name.clone());
        let named = |e: Error| e.with_device(&*name);
        if index == 0 || dtype == DType::String {
            let message = format!(
                "a buffer on {name} holds no tensor of {dtype}; GPUs have buffers, and strings are the host's"
            );
            return Err(Error::invalid(message));
        }
        let gpu = devices.gpu(index)?;
        let n_bytes = (shape.len() as u64).saturating_mul(dtype.n_bytes() as u64);
        let tensor = GpuTensor::of_buffer(&gpu, buffer, n_bytes).map_err(named)?;
        Ok(Self::on_gpu(dtype, shape, name.clone(), tensor))
    }

    /// Copies the elements into a buffer of the app on the tensor's device, which has `COPY_DST`, from this offset on,
    /// and waits for it. Up to 3 bytes more are written, up to a multiple of 4.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a tensor on the host, a buffer of another wgpu device, without `COPY_DST` or
    /// too small, and an offset that is no multiple of 4.
    pub fn copy_to_buffer(&self, buffer: &wgpu::Buffer, offset: u64) -> Result<()> {
        match &self.0.home {
            Home::Host(_) => Err(Error::invalid(
                "the tensor is on the host, and a buffer on a GPU; compute it inside of a device scope",
            )),
            Home::Gpu(tensor) => {
                tensor.copy_to(buffer, offset).map_err(|e| e.with_device(&*self.0.device))
            }
        }
    }

    /// The buffer that begins with the elements, if they are on a GPU: with `STORAGE`, `COPY_SRC` and `COPY_DST`, or the
    /// app's own. It is to be read only, by work that is submitted while the tensor lives: afterwards it may be another
    /// tensor's. Once it was shown, the memory is not used for what a run gives that the tensor is donated to.
    pub fn buffer(&self) -> Option<&wgpu::Buffer> {
        self.gpu().map(GpuTensor::raw)
    }
}

impl Resident for DeviceTensor {
    fn dtype(&self) -> DType {
        self.0.dtype
    }

    fn to_host(&self) -> Result<HostTensor> {
        Self::to_host(self)
    }
}

impl<'a> IntoFeed<'a> for &DeviceTensor {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        self.clone().into_feed()
    }
}

impl<'a> IntoFeed<'a> for DeviceTensor {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        Ok(FeedValue::Resident(Arc::new(self)))
    }
}

impl fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} on {}", self.0.dtype, self.0.shape, self.0.device)
    }
}

/// Fetches a tensor and leaves it where it is: gives a [`DeviceTensor`].
///
/// The tensor's place is for the cost model to choose, as that of others; a device scope decides it. Of a run with
/// branches, loops or assertions, and of a partial run, results are on the host.
#[derive(Debug, Clone, Copy)]
pub struct OnDevice<T>(pub T);

impl<T: Borrow<Tensor>> Fetch for OnDevice<T> {
    type Output = DeviceTensor;

    fn collect(&self, list: &mut FetchList) {
        list.on_device(self.0.borrow());
    }

    fn take(&self, results: &mut FetchResults) -> Result<DeviceTensor> {
        results.on_device()
    }
}

/// What a run gives for its fetches. Few need no memory but their own.
pub(crate) type AllFetched = SmallVec<[Fetched; 2]>;

/// What a run gives for one fetch.
#[derive(Debug, Clone)]
pub(crate) enum Fetched {
    /// In host memory.
    Host(HostTensor),
    /// Where it is.
    Device(DeviceTensor),
}

impl Fetched {
    /// # Errors
    /// It stays on a device.
    pub fn host(&self) -> Result<&HostTensor> {
        match self {
            Self::Host(tensor) => Ok(tensor),
            Self::Device(_) => Err(mismatch()),
        }
    }

    /// # Errors
    /// It stays on a device.
    pub fn into_host(self) -> Result<HostTensor> {
        match self {
            Self::Host(tensor) => Ok(tensor),
            Self::Device(_) => Err(mismatch()),
        }
    }

    /// # Errors
    /// It was brought to the host.
    pub fn device(&self) -> Result<&DeviceTensor> {
        match self {
            Self::Host(_) => Err(mismatch()),
            Self::Device(tensor) => Ok(tensor),
        }
    }

    /// Tensors of the host as what is fetched, of which some, at these places, stay where they are.
    pub fn all(tensors: Vec<HostTensor>, residents: &[usize]) -> AllFetched {
        let fetched = |(place, tensor): (usize, HostTensor)| match residents.contains(&place) {
            true => Self::Device(DeviceTensor::on_host(tensor)),
            false => Self::Host(tensor),
        };
        tensors.into_iter().enumerate().map(fetched).collect()
    }
}

fn mismatch() -> Error {
    Error::internal("a fetch takes something else than it listed")
}
