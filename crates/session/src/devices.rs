//! The devices of this machine, shared by sessions.
//!
//! Finding them opens no GPU: a wgpu device is made when the first program of a session runs on it.

mod made;
#[cfg(feature = "gpu")]
mod whole;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use convoke_compiler::{DeviceIndex, GroupLimits, HOST};
#[cfg(feature = "gpu")]
use convoke_graph_core::HostTensor;
use convoke_graph_core::{Error, ErrorKind, Result};
use convoke_placement::{DeviceSpec, Queues};

use crate::calibrate::{Calibrations, Kept};
#[cfg(feature = "gpu")]
use crate::device_tensor::DeviceTensor;
use crate::feeds::FeedData;

#[cfg(feature = "gpu")]
use convoke_wgpu_backend::gpu::{
    Adapter, AdapterInfo, AdapterKind, Counters, Gpu, GpuFeatures, GpuOptions, InternalCounters,
    LimitOverrides, enumerate, enumerate_for,
};
#[cfg(feature = "gpu")]
use convoke_wgpu_backend::{GpuTensors, GpuVariables};
pub(crate) use made::Made;
#[cfg(feature = "gpu")]
use whole::WholeGpu;

/// What sort of device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// The CPU.
    Cpu,
    /// A GPU with memory of its own.
    DiscreteGpu,
    /// A GPU that shares the host's memory.
    IntegratedGpu,
    /// A GPU driver that computes on the CPU, such as lavapipe or SwiftShader.
    SoftwareGpu,
}

/// A device as sessions and people see it.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// `CPU:0`, `GPU:0`: its number among what was opened.
    pub name: Arc<str>,
    /// A name that stays the same whatever else the machine has, such as `vulkan-10de:2684-0000:01:00.0`. It can
    /// be given as [`DeviceOptions::name`], without the `#1`, `#2` that tell equal GPUs apart of which no slot
    /// is known, and the `.0`, `.1` of parts of one GPU.
    pub id: String,
    /// What sort it is.
    pub kind: DeviceKind,
    /// What the driver calls it.
    pub adapter: String,
    /// The driver and its version; empty for the CPU.
    pub driver: String,
    /// How it is reached: `native`, `Vulkan`, `Metal`, ...
    pub backend: String,
    /// The limits that matter, for people.
    pub limits: String,
}

/// Which devices to look for.
#[derive(Debug, Clone, Default)]
pub struct DeviceOptions {
    /// Use software adapters too, as if they were GPUs.
    pub allow_software: bool,
    /// Only adapters of which the adapter's or driver's name contains this, or whose stable name
    /// ([`DeviceInfo::id`]) it is, software or not.
    pub name: Option<String>,
    /// Bytes that all buffers of one GPU together may take; `None` leaves it to the driver.
    pub gpu_budget_bytes: Option<u64>,
    /// For each adapter in order, the bytes of memory of the devices that it is split into: `[[1 << 28; 2]]`
    /// makes `GPU:0` and `GPU:1` of the first adapter, with 256 MiB each. Adapters without an entry, or with an
    /// empty one, stay whole. Devices of one adapter do their work one after the other, take what another of them has by
    /// a copy on the adapter, and are lost together. TensorFlow: `GPUOptions.Experimental.virtual_devices`.
    pub virtual_devices: Vec<Vec<u64>>,
    /// The least time that GPUs take for each of their segments: they sleep until it is over. A software adapter
    /// with it stands in for a GPU with cores of its own, to see what overlaps.
    pub least_gpu_time: Duration,
    /// Where compiled pipelines are kept for later processes.
    pub pipeline_dir: PipelineDir,
    /// Where calibrations are kept for later processes.
    pub calibrations: Calibrations,
    /// Limits of GPUs to lower, to see what a graph does on smaller ones. A value above the adapter's own has
    /// no effect.
    #[cfg(feature = "gpu")]
    pub gpu_limits: LimitOverrides,
    /// Kernels of GPUs use no subgroups, as where there are none: for drivers that have them wrong.
    /// Calibrations do not tell the two apart: calibrate again.
    pub without_subgroups: bool,
}

/// Where compiled pipelines are kept for later processes. Only Vulkan drivers give them out, and some keep them
/// by themselves; elsewhere nothing is written.
///
/// A file that is damaged, of another driver, or that other users may write is ignored with one warning, and so
/// is a directory that cannot be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PipelineDir {
    /// `convoke/pipelines` in the user's cache directory.
    #[default]
    User,
    /// This directory. Nobody else may be able to write it.
    At(PathBuf),
    /// Nowhere.
    Nowhere,
}

#[cfg(feature = "gpu")]
impl PipelineDir {
    fn path(&self) -> Option<PathBuf> {
        match self {
            Self::User => dirs::cache_dir().map(|dir| dir.join("convoke").join("pipelines")),
            Self::At(path) => Some(path.clone()),
            Self::Nowhere => None,
        }
    }
}

/// The devices that sessions use: the CPU, and GPUs if there are any. Clones share them.
#[derive(Clone)]
pub struct Devices(Arc<Inner>, Arc<Kept>);

struct Inner {
    infos: Vec<DeviceInfo>,
    #[cfg(feature = "gpu")]
    gpus: Vec<GpuDevice>,
}

#[cfg(feature = "gpu")]
struct GpuDevice {
    source: GpuSource,
    info: AdapterInfo,
    /// Bytes that all its buffers may take.
    budget_bytes: Option<u64>,
    opened: std::sync::Mutex<Option<Gpu>>,
}

#[cfg(feature = "gpu")]
enum GpuSource {
    /// Alone, or beside others of the same.
    PartOf(Arc<WholeGpu>),
    /// The app opened it.
    Given,
}

impl Devices {
    /// The CPU alone. Nothing of any GPU is touched.
    pub fn cpu() -> Self {
        let inner = Inner {
            infos: vec![cpu_info()],
            #[cfg(feature = "gpu")]
            gpus: Vec::new(),
        };
        Self(Arc::new(inner), Arc::default())
    }

    /// The CPU and every hardware GPU. Software adapters are left out.
    ///
    /// # Errors
    /// None yet: a machine without GPUs has the CPU.
    pub fn open() -> Result<Self> {
        Self::with_options(&DeviceOptions::default())
    }

    /// The CPU and the GPUs whose adapter's or driver's name contains `name`, whatever the case:
    /// `llvmpipe`, `swiftshader`, `radeon`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none; the message names those there are.
    pub fn named(name: &str) -> Result<Self> {
        Self::with_options(&DeviceOptions { name: Some(name.into()), ..DeviceOptions::default() })
    }

    /// The devices that `options` ask for.
    ///
    /// # Errors
    /// As [`Self::named`].
    pub fn with_options(options: &DeviceOptions) -> Result<Self> {
        #[cfg(feature = "gpu")]
        {
            gpu_devices(options)
        }
        #[cfg(not(feature = "gpu"))]
        match &options.name {
            Some(name) => Err(not_found(name, &[])),
            None => Ok(Self::cpu().with_calibrations(options.calibrations.clone())),
        }
    }

    /// The same devices, whose calibrations are kept elsewhere: those that these [`Devices`] have measured or
    /// read count no more.
    #[must_use]
    pub fn with_calibrations(self, place: Calibrations) -> Self {
        Self(self.0, Arc::new(Kept::new(place)))
    }

    pub(crate) fn kept(&self) -> &Kept {
        &self.1
    }

    /// The CPU, and a GPU that the app opened and shares. Convoke sets no callback on it; the app should
    /// call [`Self::notify_lost`] when it is lost.
    ///
    /// # Errors
    /// [`ErrorKind::ResourceExhausted`] if the device's thread cannot be started.
    #[cfg(feature = "gpu")]
    pub fn from_wgpu(
        device: convoke_wgpu_backend::wgpu::Device,
        queue: convoke_wgpu_backend::wgpu::Queue,
    ) -> Result<Self> {
        let gpu = convoke_wgpu_backend::adopt(device, queue)?;
        let info = gpu.info().clone();
        let opened = std::sync::Mutex::new(Some(gpu));
        let infos = vec![cpu_info(), gpu_info(0, &info)];
        let gpus = vec![GpuDevice { source: GpuSource::Given, info, budget_bytes: None, opened }];
        Ok(Self(Arc::new(Inner { infos, gpus }), Arc::default()))
    }

    /// Tells that the app's own GPU was lost, so that no result of it is believed any more.
    #[cfg(feature = "gpu")]
    pub fn notify_lost(&self, reason: &str) {
        for gpu in &self.0.gpus {
            let opened = gpu.opened.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if let Some(gpu) = &*opened {
                gpu.notify_lost(reason);
            }
        }
    }

    /// All devices; the first is the CPU.
    pub fn list(&self) -> &[DeviceInfo] {
        &self.0.infos
    }

    /// The index of the device with this name: `GPU:0`, `/gpu:0`, or a longer one up to
    /// `/job:localhost/replica:0/task:0/device:GPU:0`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] with the names there are.
    pub fn index_of(&self, name: &str) -> Result<usize> {
        let asked = name.parse::<DeviceSpec>().ok();
        let asked = asked.filter(|spec| spec.device_type.is_some() && spec.index.is_some());
        let is_it = |info: &DeviceInfo| {
            let own = info.name.parse::<DeviceSpec>().ok();
            let full = own.map(|own| DeviceSpec::local("CPU", 0).merge(&own));
            asked.as_ref().zip(full).is_some_and(|(asked, full)| asked.matches(&full))
        };
        let found = self.0.infos.iter().position(is_it);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.0.infos.iter().map(|info| &*info.name).collect();
            let message = format!("no device {name:?}; there are {}", names.join(", "));
            Error::new(ErrorKind::NotFound, message)
        })
    }

    /// The software adapters that [`Self::open`] leaves out.
    pub fn software_adapters() -> Vec<String> {
        #[cfg(feature = "gpu")]
        {
            let software = enumerate().into_iter().filter(|a| a.info().kind == AdapterKind::Cpu);
            software.map(|adapter| adapter.info().name.clone()).collect()
        }
        #[cfg(not(feature = "gpu"))]
        Vec::new()
    }

    /// What the GPU at `index` of [`Self::list`] has made and moved for all sessions, and what wgpu counts
    /// of what exists in its driver: for all devices of one adapter together. `None` for the CPU, and for a GPU that
    /// nothing has used yet.
    #[cfg(feature = "gpu")]
    pub fn gpu_counters(&self, index: usize) -> Option<(Counters, InternalCounters)> {
        let gpu = self.0.gpus.get(index.checked_sub(1)?)?;
        let opened = gpu.opened.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        opened.as_ref().map(|gpu| (gpu.counters(), gpu.internal_counters()))
    }

    /// How large groups become, so that each of the devices can run them.
    pub(crate) fn group_limits(&self) -> GroupLimits {
        let limits = GroupLimits::default();
        #[cfg(feature = "gpu")]
        let limits = self.0.gpus.iter().fold(limits, |limits, gpu| {
            limits.with_bindings(gpu.info.limits.max_storage_buffers_per_shader_stage as usize)
        });
        limits
    }

    /// Bytes that all buffers of a device may take, if that is limited.
    pub(crate) fn budget_bytes(&self, index: usize) -> Option<u64> {
        #[cfg(feature = "gpu")]
        {
            self.0.gpus.get(index.checked_sub(1)?)?.budget_bytes
        }
        #[cfg(not(feature = "gpu"))]
        {
            let _ = index;
            None
        }
    }

    /// Which devices submit to one queue: those of one adapter.
    pub(crate) fn queues(&self) -> Queues {
        #[cfg(feature = "gpu")]
        {
            whole::queues(&self.0.gpus)
        }
        #[cfg(not(feature = "gpu"))]
        Queues::default()
    }

    /// What is known of GPU `index` (from 1) without opening it.
    #[cfg(feature = "gpu")]
    pub(crate) fn adapter(&self, index: usize) -> Result<&AdapterInfo> {
        let gpu = index.checked_sub(1).and_then(|at| self.0.gpus.get(at));
        gpu.map(|gpu| &gpu.info).ok_or_else(|| Error::internal(format!("no GPU {index}")))
    }

    /// GPU `index` (from 1), opened when first asked for, and again after a loss.
    #[cfg(feature = "gpu")]
    pub(crate) fn gpu(&self, index: usize) -> Result<Gpu> {
        let gpu = index.checked_sub(1).and_then(|at| self.0.gpus.get(at));
        let gpu = gpu.ok_or_else(|| Error::internal(format!("no GPU {index}")))?;
        let mut opened = gpu.opened.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(gpu) = &*opened {
            return Ok(gpu.clone());
        }
        match &gpu.source {
            GpuSource::PartOf(whole) => Ok(opened.insert(whole.part(gpu.budget_bytes)?).clone()),
            GpuSource::Given => Err(Error::internal("the app's GPU is not open")),
        }
    }
}

/// A session's part of the GPUs: which are open, and its variables on them.
pub(crate) struct Gpus {
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "only GPUs are asked for"))]
    devices: Devices,
    #[cfg(feature = "gpu")]
    variables: std::sync::Mutex<rustc_hash::FxHashMap<usize, GpuVariables>>,
    #[cfg(feature = "gpu")]
    tensors: std::sync::Mutex<rustc_hash::FxHashMap<usize, GpuTensors>>,
}

impl Gpus {
    pub(crate) fn new(devices: &Devices) -> Self {
        Self {
            devices: devices.clone(),
            #[cfg(feature = "gpu")]
            variables: std::sync::Mutex::default(),
            #[cfg(feature = "gpu")]
            tensors: std::sync::Mutex::default(),
        }
    }

    /// GPU `index` (from 1), and the session's variables on it.
    #[cfg(feature = "gpu")]
    pub(crate) fn get(&self, index: usize) -> Result<(Gpu, GpuVariables)> {
        let gpu = self.devices.gpu(index)?;
        let mut variables = self.variables.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let own = variables.entry(index).or_insert_with(|| GpuVariables::new(&gpu)).clone();
        Ok((gpu, own))
    }

    /// What makes the session's tensors on GPU `index` (from 1).
    #[cfg(feature = "gpu")]
    pub(crate) fn tensors(&self, index: usize) -> Result<GpuTensors> {
        let gpu = self.devices.gpu(index)?;
        let mut tensors = self.tensors.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        Ok(tensors.entry(index).or_insert_with(|| GpuTensors::new(&gpu)).clone())
    }

    /// Tensors of the host on GPU `index` (from 1).
    ///
    /// # Errors
    /// No memory, a lost device.
    #[cfg(feature = "gpu")]
    pub(crate) fn send(&self, index: usize, all: &[&HostTensor]) -> Result<Vec<DeviceTensor>> {
        let name = self.name(index);
        let bytes: Vec<&[u8]> = all.iter().map(|tensor| tensor.bytes()).collect();
        let sent = self.tensors(index)?.send(&bytes).map_err(|e| e.with_device(&*name))?;
        let tensor = |(of, sent): (&&HostTensor, _)| {
            DeviceTensor::on_gpu(of.dtype(), of.shape().clone(), name.clone(), sent)
        };
        Ok(all.iter().zip(sent).map(tensor).collect())
    }

    /// Takes all variables of the session, and the memory of tensors that are gone or will be. It is given back when
    /// they are dropped, as far as no program uses it.
    #[cfg(feature = "gpu")]
    pub(crate) fn take_memory(&self) -> impl Sized {
        let mut variables = self.variables.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut tensors = self.tensors.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        (std::mem::take(&mut *variables), std::mem::take(&mut *tensors))
    }

    /// There are none.
    #[cfg(not(feature = "gpu"))]
    pub(crate) fn take_memory(&self) -> impl Sized {}

    /// Frees the memory of tensors that are gone. True if there was any.
    pub(crate) fn shrink(&self) -> bool {
        #[cfg(feature = "gpu")]
        {
            let tensors = self.tensors.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            tensors.values().filter(|tensors| tensors.shrink()).count() > 0
        }
        #[cfg(not(feature = "gpu"))]
        false
    }

    /// Where the elements of a feed are: the host, if on none of these devices.
    pub(crate) fn home(&self, feed: &FeedData<'_>) -> DeviceIndex {
        #[cfg(feature = "gpu")]
        if let Some(tensor) = feed.resident().and_then(|tensor| tensor.gpu()) {
            let gpus = self.devices.0.gpus.iter();
            let is_it = |gpu: &GpuDevice| {
                let opened = gpu.opened.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                opened.as_ref().is_some_and(|gpu| gpu.same(tensor.gpu()))
            };
            let at = gpus.map(is_it).position(|is_it| is_it);
            return at.map_or(HOST, |at| DeviceIndex(at as u32 + 1));
        }
        let _ = feed;
        HOST
    }

    /// Which devices submit to one queue.
    #[cfg(feature = "gpu")]
    pub(crate) fn queues(&self) -> Queues {
        self.devices.queues()
    }

    /// The device's name.
    #[cfg(feature = "gpu")]
    pub(crate) fn name(&self, index: usize) -> Arc<str> {
        self.devices.list().get(index).map_or_else(|| "GPU".into(), |info| info.name.clone())
    }
}

/// The name of the host among devices.
pub(crate) const HOST_NAME: &str = "CPU:0";

/// How many threads this process may run at once, as of when it was first asked: the system takes long to say so.
pub(crate) fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn cpu_info() -> DeviceInfo {
    let cores = cores();
    DeviceInfo {
        name: HOST_NAME.into(),
        id: "cpu".to_owned(),
        kind: DeviceKind::Cpu,
        adapter: std::env::consts::ARCH.to_owned(),
        driver: String::new(),
        backend: "native".into(),
        limits: format!("{cores} threads"),
    }
}

#[cfg(feature = "gpu")]
fn gpu_devices(options: &DeviceOptions) -> Result<Devices> {
    let wanted = |info: &AdapterInfo| match &options.name {
        Some(name) => {
            let name = name.to_lowercase();
            let texts = [&info.name, &info.driver, &info.driver_info];
            texts.iter().any(|text| text.to_lowercase().contains(&name)) || info.id() == name
        }
        None => options.allow_software || info.kind != AdapterKind::Cpu,
    };
    let all = enumerate_for(wanted);
    let names: Vec<String> = all.iter().map(|a| a.info().name.clone()).collect();
    let chosen: Vec<Adapter> = all.into_iter().filter(|adapter| wanted(adapter.info())).collect();
    if let (Some(name), true) = (&options.name, chosen.is_empty()) {
        return Err(not_found(name, &names));
    }
    let split = options.virtual_devices.len();
    if split > chosen.len() {
        let found = chosen.len();
        return Err(Error::invalid(format!(
            "virtual devices of {split} adapters are asked for, and there are {found}; name an adapter or allow \
             software"
        )));
    }
    let mut infos = vec![cpu_info()];
    let mut gpus = Vec::new();
    let ids = whole::distinct_ids(&chosen);
    for (at, (adapter, id)) in chosen.into_iter().zip(ids).enumerate() {
        let parts = options.virtual_devices.get(at).map_or(&[][..], |parts| parts);
        let whole = [(options.gpu_budget_bytes, id.clone())];
        let part = |(k, &bytes): (usize, &u64)| (Some(bytes), format!("{id}.{k}"));
        let parts: Vec<(Option<u64>, String)> = parts.iter().enumerate().map(part).collect();
        let mut info = adapter.info().clone();
        info.limits = options.gpu_limits.lowered(info.limits);
        info.features.subgroups &= !options.without_subgroups;
        let opening = GpuOptions {
            pipeline_dir: options.pipeline_dir.path(),
            limits: Some(options.gpu_limits),
            features: GpuFeatures { subgroups: !options.without_subgroups, ..GpuFeatures::ALL },
            least_time: options.least_gpu_time,
            ..GpuOptions::default()
        };
        let adapter = Arc::new(WholeGpu::new(adapter, opening));
        for (budget_bytes, id) in if parts.is_empty() { whole.to_vec() } else { parts } {
            infos.push(DeviceInfo { id, ..gpu_info(gpus.len(), &info) });
            let (source, opened) =
                (GpuSource::PartOf(adapter.clone()), std::sync::Mutex::default());
            gpus.push(GpuDevice { source, info: info.clone(), budget_bytes, opened });
        }
    }
    let kept = Kept::new(options.calibrations.clone());
    Ok(Devices(Arc::new(Inner { infos, gpus }), Arc::new(kept)))
}

#[cfg(feature = "gpu")]
fn gpu_info(at: usize, info: &AdapterInfo) -> DeviceInfo {
    let limits = &info.limits;
    DeviceInfo {
        name: format!("GPU:{at}").into(),
        id: info.id(),
        kind: match info.kind {
            AdapterKind::Integrated => DeviceKind::IntegratedGpu,
            AdapterKind::Cpu => DeviceKind::SoftwareGpu,
            _ => DeviceKind::DiscreteGpu,
        },
        adapter: info.name.clone(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        backend: format!("{:?}", info.backend),
        limits: format!(
            "buffers of {} MiB, bindings of {} MiB, {} invocations, {} KiB workgroup memory{}{}",
            limits.max_buffer_size >> 20,
            limits.max_storage_buffer_binding_size >> 20,
            limits.max_compute_invocations_per_workgroup,
            limits.max_compute_workgroup_storage_size >> 10,
            if info.features.f16 { ", f16" } else { "" },
            if info.features.subgroups { ", subgroups" } else { "" },
        ),
    }
}

fn not_found(name: &str, there: &[String]) -> Error {
    let list = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    let message = format!(
        "no adapter or driver is named like {name:?}; found {list}; install a Vulkan, Metal or DX12 \
         driver, or use the CPU"
    );
    Error::new(ErrorKind::NotFound, message)
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.infos.iter().map(|info| &info.name)).finish()
    }
}

/// `GPU:0 llvmpipe (LLVM 15.0.6) via Vulkan: lavapipe ...`
impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} via {}", self.name, self.adapter, self.backend)?;
        if !self.driver.is_empty() {
            write!(f, ", {}", self.driver)?;
        }
        write!(f, "; {}", self.limits)?;
        if self.kind == DeviceKind::SoftwareGpu {
            f.write_str("; software on the CPU")?;
        }
        Ok(())
    }
}
