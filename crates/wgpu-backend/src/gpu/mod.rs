//! The device layer: adapters, buffers, pipelines, recordings and submissions. Plain data in and out.
//!
//! It knows no tensors. Everything above it reaches wgpu through a [`Gpu`], which counts all that it makes,
//! holds a memory budget, turns every wgpu error into a [`GpuError`], and after a loss of the device answers
//! nothing but [`GpuError::Lost`].
//!
//! Read `submission.rs` and `owner.rs` for how a run goes: the calling thread copies uploads into mapped
//! staging memory; one owner thread per GPU encodes, submits, polls; the calling thread copies downloads
//! out of mapped staging memory. A warm run makes no wgpu object but its command encoder.

use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

mod adapter;
mod buffer;
mod device;
mod disk_cache;
mod error;
mod limits;
mod meter;
mod owner;
mod pipeline;
mod recording;
mod staging;
mod submission;
#[cfg(test)]
mod tests;
mod trusted;

pub use adapter::{Adapter, AdapterInfo, AdapterKind, Backend, enumerate, enumerate_for};
pub use buffer::{Buffer, BufferUse};
pub use device::GpuOptions;
pub use error::{GpuError, GpuErrorKind};
pub use limits::{GpuFeatures, GpuLimits, LimitOverrides};
pub use meter::{Counters, InternalCounters};
pub use pipeline::{BindGroup, BindingKind, BindingSlice, Pipeline, PipelineDesc};
pub use recording::{Command, Recording};
pub use submission::{
    BufferCopy, Download, HostBytes, Pending, RunOutput, Submission, Timestamps, Upload,
};

/// Submissions that may wait for the owner thread; more block their callers.
const MAX_WAITING: usize = 64;
/// How long the last submissions may take once all handles are gone.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// An open device. A cheap handle, usable from any thread.
///
/// It may be a [part](Gpu::part) of a GPU beside others. Dropping the last handle of all parts waits for what is on the
/// GPU, ends its thread and frees what no [`Buffer`], [`Pipeline`] or [`BindGroup`] handle keeps alive.
#[derive(Debug, Clone)]
pub struct Gpu(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    // Ends what is on the device, if it is the last, before what that uses goes.
    owner: Arc<Owner>,
    shared: Arc<device::Shared>,
}

/// The owner thread, of all parts of a GPU.
#[derive(Debug)]
struct Owner {
    /// `None` only while it is dropped.
    requests: Option<SyncSender<owner::Request>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.requests = None;
        let Some(thread) = device::lock(&self.thread).take() else { return };
        // An app's own callback, called by our poll, may hold the last handle.
        if thread.thread().id() == std::thread::current().id() {
            return;
        }
        // A device that hangs keeps its thread.
        let until = Instant::now() + LAST_WAIT;
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(50));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

impl Gpu {
    /// Opens a device of `adapter` with all of its limits, but for those that `options` lowers.
    ///
    /// # Errors
    /// [`GpuError::Open`] if the driver gives none, [`GpuError::OutOfMemory`], [`GpuError::Internal`] if no
    /// thread can be started.
    pub fn open(adapter: &Adapter, options: &GpuOptions) -> Result<Gpu, GpuError> {
        Gpu::start(device::Shared::open(adapter, options)?)
    }

    /// Works on a device that the app made, with the limits and features that it was made with.
    ///
    /// No callback is set on it: wgpu's errors are caught in error scopes, and the app should call
    /// [`Gpu::notify_lost`] from its own device-lost callback. Without that, a loss is noticed by the next
    /// call. `options.limits` and `options.features` have no effect.
    ///
    /// # Errors
    /// [`GpuError::Lost`], [`GpuError::OutOfMemory`], [`GpuError::Internal`] if no thread can be started.
    pub fn from_wgpu(
        device: wgpu::Device,
        queue: wgpu::Queue,
        options: &GpuOptions,
    ) -> Result<Gpu, GpuError> {
        Gpu::start(device::Shared::adopt(device, queue, options)?)
    }

    fn start(shared: device::Shared) -> Result<Gpu, GpuError> {
        let (sender, receiver) = sync_channel(MAX_WAITING);
        let thread = std::thread::Builder::new()
            .name("convoke-gpu".to_owned())
            .spawn(move || owner::serve(&receiver))
            .map_err(|e| GpuError::internal(format!("no thread for the device: {e}")))?;
        let thread = Mutex::new(Some(thread));
        let owner = Arc::new(Owner { requests: Some(sender), thread });
        Ok(Gpu(Arc::new(Handle { owner, shared: Arc::new(shared) })))
    }

    /// A device beside this one on the same GPU. Both have wgpu's device and queue, the owner thread and pipelines
    /// together, and are lost together; each has buffers, a budget, staging memory and counters of its own. A copy may
    /// read the other's buffers: what one was given before the other, the queue does before.
    pub fn part(&self, budget_bytes: Option<u64>) -> Gpu {
        let Handle { owner, shared } = &*self.0;
        Gpu(Arc::new(Handle { owner: owner.clone(), shared: Arc::new(shared.part(budget_bytes)) }))
    }

    /// What the device is, with the limits and features that it was opened with.
    pub fn info(&self) -> &AdapterInfo {
        &self.0.shared.info
    }

    /// wgpu's device. Poll it or make things on it as you like; to end it, call [`Gpu::destroy`].
    pub fn device(&self) -> &wgpu::Device {
        &self.0.shared.device
    }

    /// wgpu's queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.0.shared.queue
    }

    /// Whether both handles are of the same device.
    pub fn same(&self, other: &Gpu) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether both are parts of one GPU, or the same.
    pub fn is_beside(&self, other: &Gpu) -> bool {
        Arc::ptr_eq(&self.0.owner, &other.0.owner)
    }

    /// What was made and moved since the device was opened. A pipeline that parts of a GPU share counts where it was
    /// made.
    pub fn counters(&self) -> Counters {
        self.0.shared.counters()
    }

    /// Bytes that buffers may still take of the device's budget, if it has one. Staging memory that is kept for later
    /// runs gives way to them.
    pub fn free_bytes(&self) -> Option<u64> {
        let shared = &self.0.shared;
        Some(shared.meter.free_bytes()?.saturating_add(shared.staging.idle_bytes()))
    }

    /// wgpu's own counts of what exists in the driver, of all parts of the GPU.
    pub fn internal_counters(&self) -> InternalCounters {
        InternalCounters::read(&self.0.shared.device)
    }

    /// The first wgpu error that no error scope caught, if there was one: a fault of this layer.
    pub fn stray_error(&self) -> Option<String> {
        self.0.shared.lost.stray.get().cloned()
    }

    /// The reason, if the device is known to be lost.
    pub fn lost(&self) -> Option<GpuError> {
        self.0.shared.lost.check().err()
    }

    /// Tells that the device is lost. From now on, every call answers [`GpuError::Lost`].
    pub fn notify_lost(&self, reason: impl Into<String>) {
        self.0.shared.lost.set(reason.into());
    }

    /// Ends the device at once: every call, those in progress included, answers [`GpuError::Lost`].
    pub fn destroy(&self) {
        self.0.shared.destroy();
    }

    /// Memory on the device, zero at first. Its size is rounded up to a multiple of 16.
    ///
    /// # Errors
    /// [`GpuError::LimitExceeded`] above `max_buffer_size`, [`GpuError::OutOfMemory`], [`GpuError::Lost`].
    pub fn buffer(
        &self,
        label: &str,
        n_bytes: u64,
        buffer_use: BufferUse,
    ) -> Result<Buffer, GpuError> {
        self.0.shared.buffer(label, n_bytes, buffer_use)
    }

    /// A buffer that the app made on this device, to be read or written by copies.
    ///
    /// # Errors
    /// [`GpuError::Validation`] for one of another device, destroyed, or made without what it is `used` for;
    /// [`GpuError::Lost`].
    pub fn adopt_buffer(
        &self,
        raw: wgpu::Buffer,
        used: wgpu::BufferUsages,
    ) -> Result<Buffer, GpuError> {
        self.0.shared.adopt_buffer(raw, used)
    }

    /// The pipeline of `desc`, from the cache or compiled now, on the calling thread.
    ///
    /// # Errors
    /// [`GpuError::Shader`], [`GpuError::LimitExceeded`] for too many storage buffers, [`GpuError::Lost`].
    pub fn pipeline(&self, desc: &PipelineDesc<'_>) -> Result<Arc<Pipeline>, GpuError> {
        self.0.shared.pipeline(desc)
    }

    /// The pipelines of `descs`, from the cache or compiled now, several at once on threads of their own.
    ///
    /// # Errors
    /// As [`Gpu::pipeline`], for the first that fails, with its index.
    pub fn pipelines(
        &self,
        descs: &[PipelineDesc<'_>],
    ) -> Result<Vec<Arc<Pipeline>>, (usize, GpuError)> {
        self.0.shared.pipelines(descs)
    }

    /// Binds one slice to each binding of `pipeline`.
    ///
    /// # Errors
    /// [`GpuError::Validation`] for slices that don't fit the bindings or their buffers, or one buffer both
    /// read and written; [`GpuError::LimitExceeded`], [`GpuError::OutOfMemory`], [`GpuError::Lost`].
    pub fn bind_group(
        &self,
        pipeline: &Pipeline,
        slices: &[BindingSlice<'_>],
    ) -> Result<BindGroup, GpuError> {
        self.0.shared.bind_group(pipeline, slices)
    }

    /// Checks commands, so that they can be submitted again and again.
    ///
    /// # Errors
    /// [`GpuError::Validation`], or [`GpuError::LimitExceeded`] for too many workgroups.
    pub fn recording(&self, commands: Vec<Command>) -> Result<Arc<Recording>, GpuError> {
        Recording::new(&self.0.shared, commands).map(Arc::new)
    }

    /// Copies the uploads into staging memory and hands the work to the owner thread.
    ///
    /// # Errors
    /// [`GpuError::Validation`] for ranges outside of their buffers, [`GpuError::OutOfMemory`],
    /// [`GpuError::Timeout`], [`GpuError::Lost`]. Nothing of the work has been done then.
    pub fn submit(&self, work: &Submission<'_>) -> Result<Pending, GpuError> {
        let shared = &self.0.shared;
        let handed_over = Instant::now();
        shared.lost.check()?;
        if work.deadline.is_some_and(|deadline| handed_over >= deadline) {
            return Err(GpuError::Timeout { waited: Duration::ZERO, submitted: false });
        }
        let mut job = shared.stage(work)?;
        job.handed_over = Some(handed_over);
        let claim = job.claim.clone();
        let (reply, done) = sync_channel(1);
        if job.is_empty() {
            shared.probe()?;
            let _ = reply.send(Ok(job.into_done()));
        } else {
            job.output.submissions = 1;
            self.hand_over(owner::Request { shared: shared.clone(), job, reply }, handed_over)?;
        }
        let shared = shared.clone();
        Ok(Pending { shared, done, claim, handed_over, deadline: work.deadline })
    }

    /// [`Gpu::submit`] and [`Pending::wait`].
    ///
    /// # Errors
    /// Those of both.
    pub fn run(&self, work: &Submission<'_>) -> Result<RunOutput, GpuError> {
        self.submit(work)?.wait()
    }

    /// Sends a request to the owner, and waits while too many are before it.
    fn hand_over(&self, mut request: owner::Request, since: Instant) -> Result<(), GpuError> {
        let shared = &self.0.shared;
        let requests = self.0.owner.requests.as_ref().ok_or_else(|| shared.lost.error())?;
        loop {
            let deadline = request.job.deadline;
            request = match requests.try_send(request) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(shared.lost.error()),
                Err(TrySendError::Full(request)) => request,
            };
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                request.job.recycle(&shared.staging);
                return Err(GpuError::Timeout { waited: since.elapsed(), submitted: false });
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
