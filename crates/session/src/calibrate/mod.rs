//! Calibration: how fast this machine's devices really are, measured by small graphs that run on them, and kept
//! for later processes.
//!
//! [`Devices::calibrate`] measures, placement uses what was measured, and where there is nothing it falls back on
//! the defaults of [`DeviceModel`].

mod background;
mod file;
mod fit;
mod graphs;
mod measure;
mod probe;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use convoke_graph_core::{Error, ErrorKind, Result};
use convoke_placement::{DeviceKind as ModelKind, DeviceModel, Link, Picoseconds, Problem};
use rustc_hash::FxHashMap;

use crate::devices::{DeviceInfo, DeviceKind, Devices, cores};
#[cfg(feature = "gpu")]
use convoke_compiler::alike::PLACES_MOST;

pub(crate) use background::{Activity, Background};
use measure::{Pass, STEPS, Samples};
use probe::Bench;

/// Changes when the meaning of what is measured does: older files are measured anew.
const FORMAT: &str = concat!(env!("CARGO_PKG_VERSION"), "/5");

/// Where calibrations are kept for later processes.
///
/// A file that is damaged, or of another machine, driver, number of threads or version of Convoke, is ignored
/// with one warning; where there is none, the default speeds are used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Calibrations {
    /// `convoke/calibration` in the user's cache directory.
    #[default]
    User,
    /// This directory.
    At(PathBuf),
    /// Nowhere: nothing is read or written, and [`Devices::calibrate`] counts for its [`Devices`] alone.
    Nowhere,
}

impl Calibrations {
    fn dir(&self) -> Option<PathBuf> {
        match self {
            Self::User => dirs::cache_dir().map(|dir| dir.join("convoke").join("calibration")),
            Self::At(path) => Some(path.clone()),
            Self::Nowhere => None,
        }
    }
}

/// What was measured, of whom: a calibration is good for nobody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasuredDevice {
    /// What the driver calls the device.
    pub adapter: String,
    /// The driver and its version; empty for the CPU.
    pub driver: String,
    /// How it is reached.
    pub backend: String,
    /// The host's processor and its number of threads.
    pub host: String,
    /// The session's threads; 0 for a GPU.
    pub threads: usize,
    /// The version of Convoke, and of what it measures.
    pub version: String,
}

/// What was measured of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calibration {
    /// Of whom.
    pub device: MeasuredDevice,
    /// Its speeds. The name is that of the device when it was measured.
    pub model: DeviceModel,
    /// From the host; the default for the CPU.
    pub upload: Link,
    /// To the host; the default for the CPU.
    pub download: Link,
}

/// How to calibrate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CalibrateOptions {
    /// Threads of the sessions that it is for; 0 is one for each core. Only the CPU's speeds depend on it.
    pub threads: usize,
    /// After this much time only what is still missing is measured, at its smallest.
    pub budget: Duration,
}

impl Default for CalibrateOptions {
    /// One thread for each core, 15 seconds.
    fn default() -> Self {
        Self { threads: 0, budget: Duration::from_secs(15) }
    }
}

/// How far a calibration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is measured now.
    pub what: &'static str,
    /// Steps that are done.
    pub done: usize,
    /// Steps in all.
    pub of: usize,
}

/// Is told before each probe, and may break the calibration off.
pub type Report<'a> = dyn FnMut(&Progress) -> ControlFlow<()> + 'a;

/// A calibration under way: see [`Devices::calibrating`].
pub struct Calibrating {
    devices: Devices,
    index: usize,
    bench: Bench,
    defaults: DeviceModel,
    samples: Samples,
    /// What is left of the budget.
    left: Duration,
    /// Those that were gone through.
    passes: usize,
}

impl Calibrating {
    /// How many passes [`Devices::calibrate`] takes, so that what slows the machine down for a second or two is not taken
    /// for its speed.
    pub const PASSES: usize = 6;

    /// What something usually takes that took these times in so many passes, as calibrations take it of each probe: the
    /// mean without the slowest quarter, which is one of three; zero of none.
    pub fn usual(times: &[Duration]) -> Duration {
        let times: Vec<Picoseconds> = times.iter().map(|&time| probe::picoseconds(time)).collect();
        Duration::from_nanos(probe::usual(&times) / 1000)
    }

    /// Goes through all probes once.
    ///
    /// # Errors
    /// `Cancelled` if `report` breaks it off; what the device refuses. The passes before stay.
    pub fn pass(&mut self, report: &mut Report<'_>) -> Result<()> {
        let begun = Instant::now();
        let pass = Pass {
            bench: &self.bench,
            kind: self.defaults.kind,
            until: begun.checked_add(self.left),
            report,
            samples: &mut self.samples,
            own: Samples::new(),
            done: self.passes * STEPS,
            of: Self::PASSES.max(self.passes + 1) * STEPS,
        };
        let result = pass.run();
        self.left = self.left.saturating_sub(begun.elapsed());
        self.passes += usize::from(result.is_ok());
        result
    }

    /// Keeps what was measured: see [`Devices::calibrate`].
    ///
    /// # Errors
    /// `FailedPrecondition` before the first pass is through.
    pub fn finish(self) -> Result<Arc<Calibration>> {
        if self.passes == 0 {
            let message = "a calibration needs one pass at least, got 0: call `pass` before";
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        let (model, upload, download) = fit::fit(&self.samples, self.defaults)?;
        let (devices, threads) = (self.devices, self.bench.threads);
        let info = &devices.list()[self.index];
        let device = measured(info, threads);
        let calibration = Arc::new(Calibration { device, model, upload, download });
        if let Some(dir) = devices.kept().place.dir() {
            let path = dir.join(file::name(&calibration.device));
            if let Err(error) = file::store(&path, &calibration) {
                tracing::warn!("the calibration {} is not written: {error}", path.display());
            }
        }
        let key = (self.index, key_threads(info, threads));
        devices.kept().known().insert(key, Some(calibration.clone()));
        Ok(calibration)
    }
}

/// The calibrations of some devices: read when first asked for.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    place: Calibrations,
    known: Mutex<Known>,
}

/// What is known of each device, with so many threads.
type Known = FxHashMap<(usize, usize), Option<Arc<Calibration>>>;

impl Kept {
    pub fn new(place: Calibrations) -> Self {
        Self { place, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Devices {
    /// Measures how fast the device at `index` of [`Self::list`] is, and keeps that where these devices keep
    /// calibrations. Programs that are placed from then on, in all sessions of these devices, use it; those that
    /// are placed already stay.
    ///
    /// It takes about [`CalibrateOptions::budget`] at most, in which other work on the machine would make it look slow.
    /// What can't be written is warned of, and counts for these devices all the same.
    ///
    /// # Errors
    /// `OutOfRange` for an index that is not there, `Cancelled` if `report` breaks it off; what the device refuses.
    /// What was known before stays then.
    pub fn calibrate(
        &self,
        index: usize,
        options: &CalibrateOptions,
        report: &mut Report<'_>,
    ) -> Result<Arc<Calibration>> {
        let mut calibrating = self.calibrating(index, options)?;
        for _ in 0..Calibrating::PASSES {
            calibrating.pass(report)?;
        }
        calibrating.finish()
    }

    /// As [`Self::calibrate`], pass by pass, for callers that do other things in between.
    ///
    /// # Errors
    /// `OutOfRange` for an index that is not there.
    pub fn calibrating(&self, index: usize, options: &CalibrateOptions) -> Result<Calibrating> {
        let info = self.list().get(index).ok_or_else(|| {
            let n = self.list().len();
            let message = format!("expected a device below {n}, got {index}");
            Error::new(ErrorKind::OutOfRange, message)
        })?;
        let threads = self.threads_of(options.threads);
        let devices = self.clone().with_calibrations(Calibrations::Nowhere);
        let bench = Bench { devices, device: info.name.to_string(), threads };
        let defaults = default_model(info.kind, index, threads);
        let (devices, samples, left) = (self.clone(), Samples::new(), options.budget);
        Ok(Calibrating { devices, index, bench, defaults, samples, left, passes: 0 })
    }

    /// What was measured of the device at `index` of [`Self::list`], by this process or another, for sessions of so
    /// many threads; 0 is one for each core.
    pub fn calibration(&self, index: usize, threads: usize) -> Option<Arc<Calibration>> {
        let info = self.list().get(index)?;
        let threads = self.threads_of(threads);
        let key = (index, key_threads(info, threads));
        let mut known = self.kept().known();
        known.entry(key).or_insert_with(|| self.read(info, threads)).clone()
    }

    fn read(&self, info: &DeviceInfo, threads: usize) -> Option<Arc<Calibration>> {
        let device = measured(info, threads);
        let path = self.kept().place.dir()?.join(file::name(&device));
        let calibration = file::load(&path, &device).unwrap_or_else(|reason| {
            let path = path.display();
            tracing::warn!(
                "the calibration {path} is ignored: {reason}; `convoke calibrate` measures anew"
            );
            None
        });
        calibration.map(Arc::new)
    }

    fn threads_of(&self, threads: usize) -> usize {
        match threads {
            0 => cores(),
            n => n,
        }
    }

    /// The most buffers that one kernel of several groups binds on a device.
    fn buffers(&self, index: usize) -> u32 {
        #[cfg(feature = "gpu")]
        if let Ok(adapter) = self.adapter(index) {
            return adapter.limits.max_storage_buffers_per_shader_stage.min(PLACES_MOST as u32);
        }
        let _ = index;
        u32::MAX
    }

    /// An empty placement problem with these devices' speeds and links: measured, or the defaults.
    pub(crate) fn problem(&self, threads: usize) -> Problem {
        let n = self.list().len();
        let known: Vec<Option<Arc<Calibration>>> =
            (0..n).map(|index| self.calibration(index, threads)).collect();
        let model = |(index, info): (usize, &DeviceInfo)| {
            let default = default_model(info.kind, index, threads);
            let buffers = self.buffers(index);
            match &known[index] {
                Some(calibration) => DeviceModel {
                    name: default.name,
                    kind: default.kind,
                    memory_bytes: default.memory_bytes,
                    buffers,
                    ..calibration.model.clone()
                },
                None => DeviceModel { buffers, ..default },
            }
        };
        let mut problem = Problem::new(self.list().iter().enumerate().map(model).collect());
        let kind = |at: usize| problem.devices[at].kind;
        let to_host = |at: usize| match &known[at] {
            Some(calibration) => calibration.download,
            None => Link::between(kind(at), ModelKind::Cpu),
        };
        let from_host = |at: usize| match &known[at] {
            Some(calibration) => calibration.upload,
            None => Link::between(ModelKind::Cpu, kind(at)),
        };
        let pairs = (0..n).flat_map(|from| (0..n).map(move |to| (from, to)));
        let links = pairs.map(|(from, to)| match (from, to) {
            (0, to) => from_host(to),
            (from, 0) => to_host(from),
            (from, to) => to_host(from).then(&from_host(to)),
        });
        problem.links = links.collect();
        let queues = self.queues();
        (0..n).for_each(|at| problem.join(queues.of(at), at));
        problem
    }
}

/// The documented default speeds of the device at `index` of the list.
fn default_model(kind: DeviceKind, index: usize, n_threads: usize) -> DeviceModel {
    let gpu = |kind| DeviceModel::gpu(kind, index.saturating_sub(1) as u32, u64::MAX);
    match kind {
        DeviceKind::Cpu => DeviceModel::cpu(n_threads, u64::MAX),
        DeviceKind::DiscreteGpu => gpu(ModelKind::DiscreteGpu),
        DeviceKind::IntegratedGpu => gpu(ModelKind::IntegratedGpu),
        DeviceKind::SoftwareGpu => gpu(ModelKind::SoftwareGpu),
    }
}

/// The threads that a device's speeds depend on.
fn key_threads(info: &DeviceInfo, threads: usize) -> usize {
    if info.kind == DeviceKind::Cpu { threads } else { 0 }
}

/// Who a device is, with this process's host and library.
fn measured(info: &DeviceInfo, threads: usize) -> MeasuredDevice {
    MeasuredDevice {
        adapter: info.adapter.clone(),
        driver: info.driver.clone(),
        backend: info.backend.clone(),
        host: format!("{}, {} threads", file::processor(), cores()),
        threads: key_threads(info, threads),
        version: FORMAT.to_owned(),
    }
}
