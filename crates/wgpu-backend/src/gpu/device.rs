//! What handles share: those of one device its meter and pools, and those of several that are parts of one GPU wgpu's
//! device and queue, the pipelines and the lost flag.
//!
//! Invariant: wgpu reports no error outside an error scope, and once `Lost` is set nothing that the device
//! says is believed.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use super::adapter::{Adapter, AdapterInfo};
use super::disk_cache::DiskCache;
use super::limits::{GpuFeatures, LimitOverrides};
use super::meter::{Counters, Meter};
use super::pipeline::PipelineCache;
use super::staging::Staging;
use super::{GpuError, error};

/// How a device is opened. The default takes all that the adapter has.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// Limits to lower; a value above the adapter's own has no effect.
    pub limits: Option<LimitOverrides>,
    /// Features that may be used where the adapter has them.
    pub features: GpuFeatures,
    /// Bytes that all buffers together may take, staging included. Without one, the driver decides.
    pub budget_bytes: Option<u64>,
    /// Bytes of idle staging memory that are kept for later runs, for each direction.
    pub staging_keep_bytes: u64,
    /// Pipelines kept in the cache. Above this, those that nobody holds are dropped.
    pub max_pipelines: usize,
    /// Keeps bounds checks and loop bounding in trusted shaders too.
    pub checked_shaders: bool,
    /// Whether an invocation computes 8 by 8 elements of a large product instead of 4 by 4. Without one, software
    /// does, where it has no subgroups for them: it spends its time on reading workgroup memory, and GPUs may lack
    /// registers.
    pub wide_tiles: Option<bool>,
    /// A directory of this user's own where compiled pipelines are kept between processes, if the backend can.
    pub pipeline_dir: Option<PathBuf>,
    /// The least time that each submission takes: the device sleeps until it is over, as if it were busy.
    pub least_time: Duration,
}

impl Default for GpuOptions {
    fn default() -> GpuOptions {
        GpuOptions {
            limits: None,
            features: GpuFeatures::ALL,
            budget_bytes: None,
            staging_keep_bytes: 256 << 20,
            max_pipelines: 4096,
            checked_shaders: cfg!(debug_assertions),
            wide_tiles: None,
            pipeline_dir: None,
            least_time: Duration::ZERO,
        }
    }
}

/// wgpu's device and queue, with what all parts that submit to it share.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) info: AdapterInfo,
    pub(super) lost: Arc<Lost>,
    pub(super) pipelines: PipelineCache,
    pub(super) disk_cache: Option<DiskCache>,
    pub(super) checked_shaders: bool,
    /// The least time of a submission.
    pub(super) least_time: Duration,
    /// Held for reading by whoever touches mapped memory, for writing by whoever destroys the device: wgpu
    /// frees mapped memory when it is destroyed.
    pub(super) mapped: RwLock<()>,
}

/// What all handles of one device share, which may be a part of a GPU. It doesn't keep the owner thread alive; what is
/// submitted holds one.
#[derive(Debug)]
pub(super) struct Shared {
    driver: Arc<Driver>,
    pub(super) meter: Arc<Meter>,
    pub(super) staging: Staging,
}

impl Deref for Shared {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        &self.driver
    }
}

impl Shared {
    /// Opens a device of `adapter`, with handlers for errors and loss set before its first use.
    pub(super) fn open(adapter: &Adapter, options: &GpuOptions) -> Result<Shared, GpuError> {
        let mut features = options.features.to_wgpu();
        features.set(wgpu::Features::PIPELINE_CACHE, options.pipeline_dir.is_some());
        features &= adapter.raw.features();
        let mut limits = adapter.raw.limits();
        if let Some(overrides) = &options.limits {
            overrides.lower(&mut limits);
        }
        if !features.contains(wgpu::Features::IMMEDIATES) {
            limits.max_immediate_size = 0;
        }
        // DX12 allocates descriptors for as many bindings as are asked for.
        let ordinary = wgpu::Limits::defaults().max_non_sampler_bindings;
        limits.max_non_sampler_bindings = limits.max_non_sampler_bindings.min(ordinary);
        let desc = wgpu::DeviceDescriptor {
            label: Some("convoke"),
            required_features: features,
            required_limits: limits,
            ..Default::default()
        };
        let (device, queue) =
            pollster::block_on(adapter.raw.request_device(&desc)).map_err(|e| GpuError::Open {
                adapter: adapter.info().name.clone(),
                reason: e.to_string(),
            })?;
        let lost = Arc::new(Lost::default());
        install_handlers(&device, &lost);
        Shared::new(device, queue, lost, options)
    }

    /// Takes a device that the app made and leaves its handlers alone.
    pub(super) fn adopt(
        device: wgpu::Device,
        queue: wgpu::Queue,
        options: &GpuOptions,
    ) -> Result<Shared, GpuError> {
        Shared::new(device, queue, Arc::default(), options)
    }

    fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        lost: Arc<Lost>,
        options: &GpuOptions,
    ) -> Result<Shared, GpuError> {
        let mut info =
            AdapterInfo::new(&device.adapter_info(), &device.limits(), device.features());
        info.wide_tiles = options.wide_tiles.unwrap_or(info.wide_tiles);
        let disk_cache = DiskCache::open(&device, options.pipeline_dir.as_deref());
        let driver = Driver {
            device,
            queue,
            info,
            lost,
            pipelines: PipelineCache::new(options.max_pipelines),
            disk_cache,
            checked_shaders: options.checked_shaders,
            least_time: options.least_time,
            mapped: RwLock::new(()),
        };
        driver.probe()?;
        Ok(Shared {
            driver: Arc::new(driver),
            meter: Arc::new(Meter::new(options.budget_bytes)),
            staging: Staging::new(options.staging_keep_bytes),
        })
    }

    /// A part of the same GPU, with a meter and staging memory of its own.
    pub(super) fn part(&self, budget_bytes: Option<u64>) -> Shared {
        Shared {
            driver: self.driver.clone(),
            meter: Arc::new(self.meter.beside(budget_bytes)),
            staging: self.staging.beside(),
        }
    }

    /// What was made and moved.
    pub(super) fn counters(&self) -> Counters {
        let stray_errors = self.lost.n_stray.load(Ordering::Relaxed);
        Counters { stray_errors, ..self.meter.snapshot() }
    }

    /// Does `make` within error scopes, and answers its value if wgpu reported nothing and the device still
    /// lives. `what` names the thing made, and `n_bytes` what it takes, for messages.
    pub(super) fn scoped<T>(
        &self,
        what: &'static str,
        n_bytes: u64,
        make: impl FnOnce() -> T,
    ) -> Result<T, GpuError> {
        self.lost.check()?;
        let scopes = Scopes::push(&self.device);
        let made = make();
        let popped = scopes.pop(what, || self.meter.out_of_memory(n_bytes));
        self.probe()?;
        popped.map(|()| made)
    }
}

impl Driver {
    /// The loss of the device, if that is what made a call fail with `error`.
    pub(super) fn or_lost(&self, error: GpuError) -> GpuError {
        self.probe().err().unwrap_or(error)
    }

    /// Asks wgpu whether the device still takes commands.
    ///
    /// wgpu tells nobody of a loss but the callback, which an app's device may not have and which `destroy`
    /// calls late: what is asked of a lost device fails in silence. So this asks for something invalid, at
    /// which only a device that lives complains.
    pub(super) fn probe(&self) -> Result<(), GpuError> {
        self.lost.check()?;
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        drop(self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4,
            usage: wgpu::BufferUsages::empty(),
            mapped_at_creation: false,
        }));
        if pollster::block_on(scope.pop()).is_none() {
            self.lost.set("it no longer takes commands".to_owned());
        }
        self.lost.check()
    }

    /// Ends the device. Waits for whoever touches mapped memory, and refuses later ones.
    pub(super) fn destroy(&self) {
        let _alone = self.mapped.write().unwrap_or_else(PoisonError::into_inner);
        self.lost.set("it was destroyed".to_owned());
        self.device.destroy();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(cache) = self.disk_cache.as_ref().filter(|_| self.probe().is_ok()) {
            cache.store();
        }
    }
}

/// Errors outside any scope and the loss of the device only set atomics and keep the first message.
fn install_handlers(device: &wgpu::Device, lost: &Arc<Lost>) {
    let stray = lost.clone();
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        stray.n_stray.fetch_add(1, Ordering::Relaxed);
        let _ = stray.stray.set(error.to_string());
    }));
    let lost = lost.clone();
    device.set_device_lost_callback(move |reason, message| {
        let message =
            if message.is_empty() { format!("{reason:?}").to_lowercase() } else { message };
        lost.set(message);
    });
}

/// Whether and why the device is gone. Once set, it stays.
#[derive(Debug, Default)]
pub(super) struct Lost {
    flag: AtomicBool,
    reason: OnceLock<String>,
    /// The first error outside any scope.
    pub(super) stray: OnceLock<String>,
    /// How many there were.
    n_stray: AtomicU64,
}

impl Lost {
    pub(super) fn set(&self, reason: String) {
        let _ = self.reason.set(reason);
        self.flag.store(true, Ordering::Release);
    }

    pub(super) fn check(&self) -> Result<(), GpuError> {
        if self.flag.load(Ordering::Acquire) { Err(self.error()) } else { Ok(()) }
    }

    /// The error that a lost device answers.
    pub(super) fn error(&self) -> GpuError {
        let reason =
            self.reason.get().cloned().unwrap_or_else(|| "for an unknown reason".to_owned());
        GpuError::Lost { reason }
    }
}

/// Error scopes for all three filters, of this thread and device. Dropping them ignores what they caught.
pub(super) struct Scopes {
    // Scopes have to be popped in reverse order; fields are dropped in this one.
    internal: wgpu::ErrorScopeGuard,
    validation: wgpu::ErrorScopeGuard,
    memory: wgpu::ErrorScopeGuard,
}

impl Scopes {
    pub(super) fn push(device: &wgpu::Device) -> Scopes {
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        Scopes { internal, validation, memory }
    }

    /// Answers what was caught; want of memory first, since it causes others.
    pub(super) fn pop(
        self,
        what: &'static str,
        out_of_memory: impl FnOnce() -> GpuError,
    ) -> Result<(), GpuError> {
        let internal = pollster::block_on(self.internal.pop());
        let validation = pollster::block_on(self.validation.pop());
        let memory = pollster::block_on(self.memory.pop());
        if memory.is_some() {
            return Err(out_of_memory());
        }
        if let Some(error) = validation {
            return Err(GpuError::validation(what, wgpu_message(&error)));
        }
        match internal {
            Some(error) => Err(GpuError::internal(format!("{what}: {}", wgpu_message(&error)))),
            None => Ok(()),
        }
    }
}

/// wgpu's message without its fixed first lines.
fn wgpu_message(error: &wgpu::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("Validation Error\n\nCaused by:\n").unwrap_or(&text);
    text.trim().to_owned()
}

/// Polls under `catch_unwind`: wgpu 30 panics in `poll` when the device is really lost.
pub(super) fn guarded_poll(
    shared: &Shared,
    poll: wgpu::PollType,
) -> Option<Result<wgpu::PollStatus, wgpu::PollError>> {
    let call = std::panic::AssertUnwindSafe(|| shared.device.poll(poll));
    match std::panic::catch_unwind(call) {
        Ok(status) => Some(status),
        Err(payload) => {
            shared.lost.set(error::panic_message(&*payload));
            None
        }
    }
}

/// Locks whether or not a thread panicked while it held the lock: every value here is valid at all times.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
