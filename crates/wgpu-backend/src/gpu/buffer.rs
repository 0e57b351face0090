//! Buffers on a device: sizes, budget, lifetime.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::GpuError;
use super::device::{Shared, guarded_poll};
use super::meter::{Meter, Reservation};

/// What shaders use a buffer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BufferUse {
    /// Storage bindings.
    Storage,
    /// Uniform bindings.
    Uniform,
}

/// Memory on a device. A cheap handle; the memory is freed and its bytes returned to the budget when the
/// last handle is dropped, those in bind groups, recordings and running submissions included.
#[derive(Debug, Clone)]
pub struct Buffer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    // Freed before its bytes are given back.
    raw: wgpu::Buffer,
    n_bytes: u64,
    buffer_use: BufferUse,
    reservation: Reservation,
}

impl Buffer {
    /// Bytes asked for.
    pub fn n_bytes(&self) -> u64 {
        self.0.n_bytes
    }

    /// Bytes that it has: [`Buffer::n_bytes`] rounded up to a multiple of 16, at least 16; of the app's, as many.
    pub fn n_bytes_padded(&self) -> u64 {
        self.0.raw.size()
    }

    /// What shaders use it for.
    pub fn buffer_use(&self) -> BufferUse {
        self.0.buffer_use
    }

    /// wgpu's handle, usable as STORAGE or UNIFORM and as COPY_SRC and COPY_DST. Don't map or destroy it.
    pub fn raw(&self) -> &wgpu::Buffer {
        &self.0.raw
    }

    /// Whether both handles are of the same memory.
    pub fn same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Refuses a buffer of another device and a range that is not within it. `what` is for the message.
    pub(super) fn check_range(
        &self,
        what: &'static str,
        meter: &Arc<Meter>,
        offset: u64,
        n_bytes: u64,
    ) -> Result<(), GpuError> {
        if !self.0.reservation.is_from(meter) {
            return Err(GpuError::validation(what, "the buffer belongs to another device"));
        }
        self.check_bytes(what, offset, n_bytes)
    }

    /// As [`Self::check_range`], for what is only read: the buffer may be of another part of the same GPU.
    pub(super) fn check_source(
        &self,
        what: &'static str,
        meter: &Meter,
        offset: u64,
        n_bytes: u64,
    ) -> Result<(), GpuError> {
        if !self.0.reservation.is_beside(meter) {
            return Err(GpuError::validation(what, "the buffer belongs to another GPU"));
        }
        self.check_bytes(what, offset, n_bytes)
    }

    fn check_bytes(&self, what: &'static str, offset: u64, n_bytes: u64) -> Result<(), GpuError> {
        if !offset.is_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT) {
            return Err(GpuError::validation(
                what,
                format!("offset {offset} is not a multiple of {}", wgpu::COPY_BUFFER_ALIGNMENT),
            ));
        }
        match offset.checked_add(n_bytes) {
            Some(end) if end <= self.n_bytes_padded() => Ok(()),
            _ => Err(GpuError::validation(
                what,
                format!(
                    "{n_bytes} bytes at offset {offset} don't fit a buffer of {} bytes",
                    self.n_bytes_padded()
                ),
            )),
        }
    }
}

impl Shared {
    /// A storage or uniform buffer, zeroed by wgpu before its first use.
    pub(super) fn buffer(
        &self,
        label: &str,
        n_bytes: u64,
        buffer_use: BufferUse,
    ) -> Result<Buffer, GpuError> {
        let usage = match buffer_use {
            BufferUse::Storage => wgpu::BufferUsages::STORAGE,
            BufferUse::Uniform => wgpu::BufferUsages::UNIFORM,
        };
        let usage = usage | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let (raw, reservation) = self.raw_buffer(label, n_bytes, usage, false)?;
        Ok(Buffer(Arc::new(Inner { raw, n_bytes, buffer_use, reservation })))
    }

    /// Takes a buffer that the app made on this device, and that it goes on to own: its bytes are none of the budget.
    /// Encodes what it is used for and submits nothing, since wgpu tells no buffer's device. wgpu 30 panics at one of
    /// another instance, unless it takes it for one of its own.
    pub(super) fn adopt_buffer(
        &self,
        raw: wgpu::Buffer,
        used: wgpu::BufferUsages,
    ) -> Result<Buffer, GpuError> {
        let (what, missing) = ("buffer of the app", used.difference(raw.usage()));
        if !missing.is_empty() {
            return Err(GpuError::validation(what, format!("it was made without {missing:?}")));
        }
        if raw.size() >= wgpu::COPY_BUFFER_ALIGNMENT {
            let own = self.buffer("probe", wgpu::COPY_BUFFER_ALIGNMENT, BufferUse::Storage)?;
            let size = Some(wgpu::COPY_BUFFER_ALIGNMENT);
            let encode = || {
                let desc = wgpu::CommandEncoderDescriptor { label: None };
                let mut encoder = self.device.create_command_encoder(&desc);
                if used.contains(wgpu::BufferUsages::COPY_SRC) {
                    encoder.copy_buffer_to_buffer(&raw, 0, own.raw(), 0, size);
                }
                if used.contains(wgpu::BufferUsages::COPY_DST) {
                    encoder.copy_buffer_to_buffer(own.raw(), 0, &raw, 0, size);
                }
                drop(encoder.finish());
            };
            let encoded = self.scoped(what, 0, || catch_unwind(AssertUnwindSafe(encode)))?;
            encoded.map_err(|_| GpuError::validation(what, "it is of another wgpu instance"))?;
        }
        let (n_bytes, reservation) = (raw.size(), self.meter.reserve(0)?);
        Ok(Buffer(Arc::new(Inner { raw, n_bytes, buffer_use: BufferUse::Storage, reservation })))
    }

    /// The one place where buffers are made. When memory is short, idle staging memory is freed first.
    pub(super) fn raw_buffer(
        &self,
        label: &str,
        n_bytes: u64,
        usage: wgpu::BufferUsages,
        mapped_at_creation: bool,
    ) -> Result<(wgpu::Buffer, Reservation), GpuError> {
        let max = self.info.limits.max_buffer_size;
        let size = n_bytes.checked_next_multiple_of(16).unwrap_or(u64::MAX).max(16);
        GpuError::check_limit("max_buffer_size", max, size)?;
        let desc = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation };
        match self.try_raw_buffer(&desc) {
            Err(GpuError::OutOfMemory { .. }) if self.staging.free_idle() => {
                // Lets wgpu let go of what was just freed.
                let _ = guarded_poll(self, wgpu::PollType::Poll);
                self.try_raw_buffer(&desc)
            }
            result => result,
        }
    }

    fn try_raw_buffer(
        &self,
        desc: &wgpu::BufferDescriptor<'_>,
    ) -> Result<(wgpu::Buffer, Reservation), GpuError> {
        self.lost.check()?;
        let reservation = self.meter.reserve(desc.size)?;
        let raw = self.scoped("buffer", desc.size, || self.device.create_buffer(desc));
        let raw = raw.map_err(|e| match e {
            // As it was before the reservation that is about to be dropped.
            GpuError::OutOfMemory { asked, in_use, budget } => {
                GpuError::OutOfMemory { asked, in_use: in_use.saturating_sub(asked), budget }
            }
            other => other,
        })?;
        reservation.count_created();
        Ok((raw, reservation))
    }
}
