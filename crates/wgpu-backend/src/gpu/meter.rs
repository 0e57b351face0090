//! Counts what is made and moved on a device, and holds its memory budget.
//!
//! Every buffer, bind group, pipeline and shader module of the device layer is made through a function
//! that counts it here, so that a test can show that a warm run makes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::GpuError;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a device has made and moved since it was opened. "Alive" and "peak" are levels, the rest
        /// only grows.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The live counters of one device.
        #[derive(Debug, Default)]
        pub(super) struct Meter {
            budget: Option<u64>,
            /// One for all parts of a GPU.
            queue: Arc<()>,
            $(pub(super) $name: AtomicU64,)*
        }

        impl Meter {
            /// The counters as they stand. They are read one by one, so while other threads run they need
            /// not fit each other.
            pub(super) fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Buffers created, staging included.
    buffers_created,
    /// Bytes of all buffers created.
    buffer_bytes_created,
    /// Buffers that exist.
    buffers_alive,
    /// Bytes of the buffers that exist.
    bytes_alive,
    /// The most that `bytes_alive` has been.
    peak_bytes,
    /// Bind groups created.
    bind_groups_created,
    /// Compute pipelines created.
    pipelines_created,
    /// Compute pipelines that were wanted and there already.
    pipelines_found,
    /// Shader modules created.
    shader_modules_created,
    /// Queue submissions.
    submissions,
    /// Dispatches submitted.
    dispatches,
    /// Copies and clears between device buffers submitted.
    copies,
    /// Copies from staging memory to the device submitted.
    uploads,
    /// Bytes of those.
    upload_bytes,
    /// Copies from the device to staging memory submitted.
    downloads,
    /// Bytes of those.
    download_bytes,
    /// wgpu errors outside any error scope, of all parts of a GPU; a fault of this layer if not 0.
    stray_errors,
}

/// wgpu's own live counters, for leak checks beside [`Counters`]. A backend may leave some at 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InternalCounters {
    /// Buffers that exist in the driver.
    pub buffers: i64,
    /// Bytes of buffers that exist in the driver.
    pub buffer_memory: i64,
    /// Blocks of device memory allocated.
    pub memory_allocations: i64,
    /// Bind groups that exist.
    pub bind_groups: i64,
    /// Bind group layouts that exist.
    pub bind_group_layouts: i64,
    /// Pipeline layouts that exist.
    pub pipeline_layouts: i64,
    /// Compute pipelines that exist.
    pub compute_pipelines: i64,
    /// Shader modules that exist.
    pub shader_modules: i64,
    /// Command encoders that exist, pooled ones included.
    pub command_encoders: i64,
    /// Query sets that exist.
    pub query_sets: i64,
    /// Fences that exist.
    pub fences: i64,
}

impl InternalCounters {
    pub(super) fn read(device: &wgpu::Device) -> InternalCounters {
        let hal = device.get_internal_counters().hal;
        let n = |counter: &wgpu::wgt::InternalCounter| counter.read() as i64;
        InternalCounters {
            buffers: n(&hal.buffers),
            buffer_memory: n(&hal.buffer_memory),
            memory_allocations: n(&hal.memory_allocations),
            bind_groups: n(&hal.bind_groups),
            bind_group_layouts: n(&hal.bind_group_layouts),
            pipeline_layouts: n(&hal.pipeline_layouts),
            compute_pipelines: n(&hal.compute_pipelines),
            shader_modules: n(&hal.shader_modules),
            command_encoders: n(&hal.command_encoders),
            query_sets: n(&hal.query_sets),
            fences: n(&hal.fences),
        }
    }
}

impl Meter {
    pub(super) fn new(budget: Option<u64>) -> Meter {
        Meter { budget, ..Meter::default() }
    }

    /// The meter of another part of the same GPU.
    pub(super) fn beside(&self, budget: Option<u64>) -> Meter {
        Meter { budget, queue: self.queue.clone(), ..Meter::default() }
    }

    /// What is left of the budget.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        self.budget.map(|budget| budget.saturating_sub(self.bytes_alive.load(Relaxed)))
    }

    /// Takes `n_bytes` out of the budget until the reservation is dropped.
    pub(super) fn reserve(self: &Arc<Meter>, n_bytes: u64) -> Result<Reservation, GpuError> {
        let limit = self.budget.unwrap_or(u64::MAX);
        let taken = self.bytes_alive.fetch_update(Relaxed, Relaxed, |in_use| {
            in_use.checked_add(n_bytes).filter(|total| *total <= limit)
        });
        match taken {
            Ok(before) => {
                self.peak_bytes.fetch_max(before + n_bytes, Relaxed);
                self.buffers_alive.fetch_add(1, Relaxed);
                Ok(Reservation { meter: self.clone(), n_bytes })
            }
            Err(_) => Err(self.out_of_memory(n_bytes)),
        }
    }

    /// The error for `asked` bytes that don't fit.
    pub(super) fn out_of_memory(&self, asked: u64) -> GpuError {
        GpuError::OutOfMemory { asked, in_use: self.bytes_alive.load(Relaxed), budget: self.budget }
    }
}

/// Bytes taken out of a device's budget. Dropping it gives them back.
#[derive(Debug)]
pub(super) struct Reservation {
    meter: Arc<Meter>,
    n_bytes: u64,
}

impl Reservation {
    /// Counts the buffer that the bytes were reserved for.
    pub(super) fn count_created(&self) {
        self.meter.buffers_created.fetch_add(1, Relaxed);
        self.meter.buffer_bytes_created.fetch_add(self.n_bytes, Relaxed);
    }

    /// Whether the bytes were taken out of this budget.
    pub(super) fn is_from(&self, meter: &Arc<Meter>) -> bool {
        Arc::ptr_eq(&self.meter, meter)
    }

    /// Whether the bytes are those of the same GPU, whichever part of it.
    pub(super) fn is_beside(&self, meter: &Meter) -> bool {
        Arc::ptr_eq(&self.meter.queue, &meter.queue)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.meter.bytes_alive.fetch_sub(self.n_bytes, Relaxed);
        self.meter.buffers_alive.fetch_sub(1, Relaxed);
    }
}
