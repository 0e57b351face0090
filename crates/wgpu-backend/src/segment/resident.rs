//! Tensors on a device that outlive the run that computed them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use convoke_graph_core::{AlignedBytes, Error};

use super::error::to_error;
use crate::gpu::{Buffer, BufferCopy, BufferUse, Download, Gpu, GpuErrorKind, Submission, Upload};

/// Buffers that stay for later tensors, and their bytes.
const IDLE_MAX: usize = 16;
const IDLE_MAX_BYTES: u64 = 64 << 20;

/// Makes tensors on a device, of the memory of those that are gone where the size is the same. A cheap handle.
#[derive(Debug, Clone)]
pub struct GpuTensors {
    gpu: Gpu,
    idle: Arc<Idle>,
}

/// The buffers of tensors that are gone, the longest idle first.
#[derive(Debug, Default)]
struct Idle(Mutex<VecDeque<Buffer>>);

/// The elements of a tensor, in a buffer of their own. They never change while anybody holds the handle.
#[derive(Debug, Clone)]
pub struct GpuTensor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    gpu: Gpu,
    buffer: Buffer,
    n_bytes: u64,
    /// Where the buffer goes when the tensor is gone, as long as that is there; an app's own goes nowhere.
    idle: Weak<Idle>,
    /// Whether wgpu's handle was given to somebody.
    is_shown: AtomicBool,
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Buffer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, n_bytes: u64) -> Option<Buffer> {
        let mut idle = self.lock();
        let at = idle.iter().rposition(|buffer| buffer.n_bytes() == n_bytes)?;
        idle.remove(at)
    }

    fn put(&self, buffer: Buffer) {
        let mut idle = self.lock();
        idle.push_back(buffer);
        let bytes = |idle: &VecDeque<Buffer>| -> u64 {
            idle.iter().map(Buffer::n_bytes_padded).fold(0, u64::saturating_add)
        };
        while idle.len() > IDLE_MAX || bytes(&idle) > IDLE_MAX_BYTES {
            idle.pop_front();
        }
    }
}

impl GpuTensors {
    /// No tensors yet.
    pub fn new(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone(), idle: Arc::default() }
    }

    /// A tensor of `n_bytes`, whose elements a segment is to write before anybody reads them.
    ///
    /// # Errors
    /// No memory, a lost device.
    pub fn tensor(&self, n_bytes: u64) -> Result<GpuTensor, Error> {
        let buffer = match self.idle.take(n_bytes) {
            Some(buffer) => buffer,
            None => {
                let buffer = self.gpu.buffer("tensor", n_bytes, BufferUse::Storage);
                buffer.map_err(|e| to_error(&e))?
            }
        };
        let (gpu, idle) = (self.gpu.clone(), Arc::downgrade(&self.idle));
        Ok(GpuTensor(Arc::new(Inner {
            gpu,
            buffer,
            n_bytes,
            idle,
            is_shown: AtomicBool::new(false),
        })))
    }

    /// Tensors with these elements, all brought to the device in one submission.
    ///
    /// # Errors
    /// No memory, a lost device.
    pub fn send(&self, all: &[&[u8]]) -> Result<Vec<GpuTensor>, Error> {
        let tensors = all.iter().map(|bytes| self.tensor(bytes.len() as u64));
        let tensors: Vec<GpuTensor> = tensors.collect::<Result<_, _>>()?;
        let uploads = all.iter().zip(&tensors);
        let uploads: Vec<Upload<'_>> = uploads
            .map(|(&bytes, tensor)| Upload { bytes, dst: tensor.buffer(), offset: 0 })
            .collect();
        let work = Submission { uploads: &uploads, ..Submission::default() };
        self.gpu.run(&work).map_err(|e| to_error(&e))?;
        Ok(tensors)
    }

    /// Frees the memory of tensors that are gone. True if there was any.
    pub fn shrink(&self) -> bool {
        let idle = std::mem::take(&mut *self.idle.lock());
        !idle.is_empty()
    }
}

impl GpuTensor {
    /// The first `n_bytes` of a buffer that the app made on this device, which has COPY_SRC.
    ///
    /// # Errors
    /// A buffer of another device, without COPY_SRC, or too small; a lost device.
    pub fn of_buffer(gpu: &Gpu, buffer: wgpu::Buffer, n_bytes: u64) -> Result<Self, Error> {
        let buffer = fitting(gpu, buffer, wgpu::BufferUsages::COPY_SRC, 0, n_bytes)?;
        let (gpu, is_shown) = (gpu.clone(), AtomicBool::new(true));
        Ok(Self(Arc::new(Inner { gpu, buffer, n_bytes, idle: Weak::new(), is_shown })))
    }

    /// Copies the elements into a buffer that the app made on this device, which has COPY_DST, and waits for it. Up to
    /// 3 bytes more are written, up to a multiple of 4.
    ///
    /// # Errors
    /// A buffer of another device, without COPY_DST, or too small; an offset that is no multiple of 4; a lost device.
    pub fn copy_to(&self, buffer: &wgpu::Buffer, offset: u64) -> Result<(), Error> {
        let (gpu, used) = (&self.0.gpu, wgpu::BufferUsages::COPY_DST);
        let to = fitting(gpu, buffer.clone(), used, offset, self.0.n_bytes)?;
        let copy = BufferCopy {
            src: &self.0.buffer,
            src_offset: 0,
            dst: &to,
            dst_offset: offset,
            size: self.0.n_bytes,
        };
        let work = Submission { copies: &[copy], ..Submission::default() };
        gpu.run(&work).map(|_| ()).map_err(|e| to_error(&e))
    }

    /// wgpu's handle of the buffer whose first bytes are the elements.
    pub fn raw(&self) -> &wgpu::Buffer {
        self.0.is_shown.store(true, Ordering::Release);
        self.0.buffer.raw()
    }

    /// Whether this is the only handle, and nobody was given wgpu's handle: then the memory may be overwritten.
    pub fn is_sole(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && !self.0.is_shown.load(Ordering::Acquire)
    }

    /// Bytes of the elements.
    pub fn n_bytes(&self) -> u64 {
        self.0.n_bytes
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }

    pub(super) fn buffer(&self) -> &Buffer {
        &self.0.buffer
    }

    /// The elements, after all that was submitted before.
    ///
    /// # Errors
    /// No host memory, a lost device.
    pub fn load(&self) -> Result<AlignedBytes, Error> {
        Ok(Self::load_all(&[self])?.pop().unwrap_or_default())
    }

    /// The elements of tensors of one device, after all that was submitted before, in one submission.
    ///
    /// # Errors
    /// No host memory, a lost device.
    pub fn load_all(all: &[&Self]) -> Result<Vec<AlignedBytes>, Error> {
        let Some(first) = all.first() else { return Ok(Vec::new()) };
        if all.iter().any(|own| !own.0.gpu.same(&first.0.gpu)) {
            return Err(Error::internal("tensors of several devices"));
        }
        let downloads = all.iter().map(|own| &own.0);
        let downloads: Vec<Download<'_>> = downloads
            .map(|own| Download { src: &own.buffer, offset: 0, size: own.n_bytes })
            .collect();
        let work = Submission { downloads: &downloads, ..Submission::default() };
        let mut loaded: Vec<Result<AlignedBytes, Error>> =
            all.iter().map(|_| Ok(AlignedBytes::default())).collect();
        let pending = first.0.gpu.submit(&work).map_err(|e| to_error(&e))?;
        let mut visit = |at: usize, bytes: &[u8]| {
            if let Some(place) = loaded.get_mut(at) {
                *place = AlignedBytes::copy_of(bytes);
            }
        };
        pending.wait_with(&mut visit).map_err(|e| to_error(&e))?;
        loaded.into_iter().collect()
    }
}

/// A buffer of the app, if so many bytes from an offset, up to a multiple of 4, are in it.
fn fitting(
    gpu: &Gpu,
    buffer: wgpu::Buffer,
    used: wgpu::BufferUsages,
    offset: u64,
    n_bytes: u64,
) -> Result<Buffer, Error> {
    let end = n_bytes.checked_next_multiple_of(4).and_then(|n_bytes| n_bytes.checked_add(offset));
    if end.is_none_or(|end| end > buffer.size()) {
        let size = buffer.size();
        return Err(Error::invalid(format!(
            "{n_bytes} bytes, up to a multiple of 4, at offset {offset} don't fit the app's buffer of {size} bytes"
        )));
    }
    if !offset.is_multiple_of(4) {
        return Err(Error::invalid(format!(
            "expected an offset that is a multiple of 4, got {offset}"
        )));
    }
    gpu.adopt_buffer(buffer, used).map_err(|e| match e.kind() {
        GpuErrorKind::Validation => Error::invalid(e.to_string()),
        _ => to_error(&e),
    })
}

impl Drop for Inner {
    /// What was submitted before and reads the buffer comes before whatever writes it next.
    fn drop(&mut self) {
        if let Some(idle) = self.idle.upgrade() {
            idle.put(self.buffer.clone());
        }
    }
}
