//! Finds the GPUs of this machine and describes each as plain data.
//!
//! One physical GPU seen through several backends is listed once, through the backend that we know to work
//! best. Looking for GPUs never fails: no driver means an empty list.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::limits::{GpuFeatures, GpuLimits, LimitOverrides};

/// The interface that an adapter is reached through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// Vulkan.
    Vulkan,
    /// Metal.
    Metal,
    /// Direct3D 12.
    Dx12,
    /// A browser's WebGPU.
    WebGpu,
    /// OpenGL or OpenGL ES; the last choice.
    Gl,
    /// wgpu's test backend: it copies and validates, but runs no shader.
    Noop,
}

/// What sort of device an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AdapterKind {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the host's memory.
    Integrated,
    /// A GPU lent by a hypervisor.
    Virtual,
    /// Software on the CPU (lavapipe, SwiftShader).
    Cpu,
    /// Unknown.
    Other,
}

/// An adapter or device as plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdapterInfo {
    /// The device's name, as the driver gives it.
    pub name: String,
    /// The driver's name.
    pub driver: String,
    /// The driver's version text.
    pub driver_info: String,
    /// The interface that it is reached through.
    pub backend: Backend,
    /// What sort of device it is.
    pub kind: AdapterKind,
    /// PCI vendor id, or a Khronos id; 0 if unknown.
    pub vendor: u32,
    /// PCI device id; 0 if unknown.
    pub device: u32,
    /// PCI bus address; empty if unknown.
    pub pci_bus_id: String,
    /// The smallest subgroup that a kernel may run with.
    pub subgroup_min_size: u32,
    /// The largest subgroup that a kernel may run with.
    pub subgroup_max_size: u32,
    /// What it can take.
    pub limits: GpuLimits,
    /// What it has.
    pub features: GpuFeatures,
    /// Whether large products are faster there with 8 by 8 elements for each invocation.
    pub wide_tiles: bool,
}

/// A GPU that can be opened. A cheap handle.
#[derive(Debug, Clone)]
pub struct Adapter {
    pub(super) raw: wgpu::Adapter,
    info: AdapterInfo,
}

/// The adapters of this machine that can compute, the noop backend excepted. Hardware comes first.
///
/// `WGPU_BACKEND` (a comma list: vulkan, metal, dx12, gl) narrows the search. The Vulkan loader itself reads
/// `VK_DRIVER_FILES`. OpenGL is asked only where nothing else finds a hardware GPU: elsewhere it
/// shows the same GPUs again, and takes long to start.
pub fn enumerate() -> Vec<Adapter> {
    enumerate_for(|info| info.kind != AdapterKind::Cpu)
}

/// As [`enumerate`], where OpenGL is asked only if nothing else finds an adapter that is `wanted`.
pub fn enumerate_for(wanted: impl Fn(&AdapterInfo) -> bool) -> Vec<Adapter> {
    let backends = wgpu::Backends::all().with_env() - wgpu::Backends::NOOP;
    let mut found = find(backends - wgpu::Backends::GL);
    if backends.contains(wgpu::Backends::GL) && !found.iter().any(|a| wanted(&a.info)) {
        found.extend(find(wgpu::Backends::GL));
    }
    found.sort_by_cached_key(|adapter| (adapter.info.backend, adapter.info.pci_bus_id.clone()));
    let infos: Vec<&AdapterInfo> = found.iter().map(|adapter| &adapter.info).collect();
    let keep = distinct(&infos);
    let mut kept: Vec<Adapter> =
        found.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(adapter, _)| adapter).collect();
    kept.sort_by_key(|adapter| adapter.info.kind.rank());
    kept
}

impl Adapter {
    /// What the adapter is and can do.
    pub fn info(&self) -> &AdapterInfo {
        &self.info
    }

    /// wgpu's handle.
    pub fn raw(&self) -> &wgpu::Adapter {
        &self.raw
    }

    /// wgpu's test adapter with the limits that every WebGPU device has: buffers, copies and validation are
    /// real, dispatches do nothing.
    pub fn noop() -> Adapter {
        Adapter::noop_with(LimitOverrides::default())
    }

    /// [`Adapter::noop`] with other limits, higher or lower.
    pub fn noop_with(overrides: LimitOverrides) -> Adapter {
        let mut limits = wgpu::Limits::defaults();
        limits.max_immediate_size = 128;
        overrides.replace(&mut limits);
        let noop = wgpu::NoopBackendOptions {
            limits: Some(limits),
            features: Some(GpuFeatures::ALL.to_wgpu()),
            ..wgpu::NoopBackendOptions::enabled()
        };
        let options = wgpu::BackendOptions { noop, ..Default::default() };
        let adapters = instance_adapters(wgpu::Backends::NOOP, options);
        let raw = adapters.into_iter().next().expect("the noop backend always has one adapter");
        Adapter::new(raw)
    }

    fn new(raw: wgpu::Adapter) -> Adapter {
        let info = AdapterInfo::new(&raw.get_info(), &raw.limits(), raw.features());
        Adapter { raw, info }
    }
}

/// The usable adapters of these backends.
fn find(backends: wgpu::Backends) -> Vec<Adapter> {
    if backends.is_empty() {
        return Vec::new();
    }
    // A broken driver can make wgpu panic while it looks; that driver then has no adapters.
    let look = || instance_adapters(backends, wgpu::BackendOptions::from_env_or_default());
    let adapters = catch_unwind(AssertUnwindSafe(look)).unwrap_or_default();
    let computes = |adapter: &wgpu::Adapter| {
        let flags = adapter.get_downlevel_capabilities().flags;
        flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
    };
    let usable = |adapter: &Adapter| {
        let limits = &adapter.info.limits;
        limits.max_storage_buffers_per_shader_stage >= 2 && limits.max_buffer_size >= 1 << 16
    };
    adapters.into_iter().filter(computes).map(Adapter::new).filter(usable).collect()
}

fn instance_adapters(
    backends: wgpu::Backends,
    backend_options: wgpu::BackendOptions,
) -> Vec<wgpu::Adapter> {
    let desc = wgpu::InstanceDescriptor {
        backends,
        // Without VALIDATION_INDIRECT_CALL, which caps buffers at 4 GiB: nothing here dispatches indirectly.
        // The driver's validation layers are a choice of whoever runs the program (WGPU_VALIDATION=1).
        flags: wgpu::InstanceFlags::empty().with_env(),
        backend_options,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    };
    let instance = wgpu::Instance::new(desc);
    pollster::block_on(instance.enumerate_adapters(backends))
}

/// Which of `infos`, sorted by backend, are not a GPU that an earlier one of another backend already is.
/// An earlier one stands for at most one of each later backend, so two equal cards stay two.
fn distinct(infos: &[&AdapterInfo]) -> Vec<bool> {
    let mut kept: Vec<(&AdapterInfo, Vec<Backend>)> = Vec::new();
    infos
        .iter()
        .map(|info| {
            let twin = kept.iter_mut().find(|(other, claimed)| {
                other.backend != info.backend
                    && !claimed.contains(&info.backend)
                    && same_device(other, info)
            });
            match twin {
                Some((_, claimed)) => {
                    claimed.push(info.backend);
                    false
                }
                None => {
                    kept.push((info, Vec::new()));
                    true
                }
            }
        })
        .collect()
}

/// Whether two backends seem to show the same device. OpenGL knows no device id and adds to the name.
fn same_device(a: &AdapterInfo, b: &AdapterInfo) -> bool {
    if !a.pci_bus_id.is_empty() && !b.pci_bus_id.is_empty() {
        return a.pci_bus_id == b.pci_bus_id;
    }
    if a.device != 0 && b.device != 0 {
        return (a.vendor, a.device) == (b.vendor, b.device);
    }
    let (a, b) = (a.name.to_lowercase(), b.name.to_lowercase());
    let rasteriser = |name: &str| ["llvmpipe", "swiftshader"].map(|part| name.contains(part));
    let both = rasteriser(&a).iter().zip(rasteriser(&b)).any(|(x, y)| *x && y);
    both || (!a.is_empty() && !b.is_empty() && (a.contains(&b) || b.contains(&a)))
}

impl AdapterInfo {
    pub(super) fn new(
        info: &wgpu::AdapterInfo,
        limits: &wgpu::Limits,
        features: wgpu::Features,
    ) -> AdapterInfo {
        AdapterInfo {
            name: info.name.clone(),
            driver: info.driver.clone(),
            driver_info: info.driver_info.clone(),
            backend: Backend::from_wgpu(info.backend),
            kind: AdapterKind::from_wgpu(info.device_type),
            vendor: info.vendor,
            device: info.device,
            pci_bus_id: info.device_pci_bus_id.clone(),
            subgroup_min_size: info.subgroup_min_size,
            subgroup_max_size: info.subgroup_max_size,
            limits: GpuLimits::from_wgpu(limits),
            features: GpuFeatures::from_wgpu(features),
            wide_tiles: info.device_type == wgpu::DeviceType::Cpu,
        }
    }
}

impl AdapterInfo {
    /// How many invocations a subgroup has, if kernels may use subgroups and all have as many.
    pub(crate) fn subgroup_size(&self) -> Option<u32> {
        let (size, is_fixed) =
            (self.subgroup_min_size, self.subgroup_min_size == self.subgroup_max_size);
        (self.features.subgroups && is_fixed && (4..=128).contains(&size)).then_some(size)
    }

    /// The same on an adapter that is a CPU. There the subgroups of a workgroup run one after the other, so that more of
    /// them help none, and a barrier changes from each to the next: one by itself is best.
    pub(crate) fn lone_subgroup_size(&self) -> Option<u32> {
        self.subgroup_size().filter(|_| self.kind == AdapterKind::Cpu)
    }

    /// A name that stays the same while the GPU, its slot and the backend do, such as
    /// `vulkan-10de:2684-0000:01:00.0`; equal for two adapters only if the backend tells no slot.
    pub fn id(&self) -> String {
        let slot = if self.pci_bus_id.is_empty() {
            let plain =
                |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
            self.name.chars().take_while(|&c| c != '(').map(plain).collect()
        } else {
            self.pci_bus_id.clone()
        };
        format!(
            "{}-{:04x}:{:04x}-{}",
            self.backend,
            self.vendor,
            self.device,
            slot.trim_matches('-')
        )
    }
}

/// For example `vulkan integrated "Intel(R) UHD Graphics 620" (Intel open-source Mesa driver, Mesa 24.0)`.
impl fmt::Display for AdapterInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.backend, self.kind, self.name)?;
        match (self.driver.is_empty(), self.driver_info.is_empty()) {
            (true, true) => Ok(()),
            (false, true) => write!(f, " ({})", self.driver),
            (true, false) => write!(f, " ({})", self.driver_info),
            (false, false) => write!(f, " ({}, {})", self.driver, self.driver_info),
        }
    }
}

impl Backend {
    fn from_wgpu(backend: wgpu::Backend) -> Backend {
        match backend {
            wgpu::Backend::Noop => Backend::Noop,
            wgpu::Backend::Vulkan => Backend::Vulkan,
            wgpu::Backend::Metal => Backend::Metal,
            wgpu::Backend::Dx12 => Backend::Dx12,
            wgpu::Backend::Gl => Backend::Gl,
            wgpu::Backend::BrowserWebGpu => Backend::WebGpu,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Vulkan => "vulkan",
            Backend::Metal => "metal",
            Backend::Dx12 => "dx12",
            Backend::WebGpu => "webgpu",
            Backend::Gl => "gl",
            Backend::Noop => "noop",
        })
    }
}

impl AdapterKind {
    fn from_wgpu(kind: wgpu::DeviceType) -> AdapterKind {
        match kind {
            wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
            wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
            wgpu::DeviceType::Cpu => AdapterKind::Cpu,
            wgpu::DeviceType::Other => AdapterKind::Other,
        }
    }

    /// The order in which devices are numbered.
    fn rank(self) -> u8 {
        match self {
            AdapterKind::Discrete => 0,
            AdapterKind::Integrated => 1,
            AdapterKind::Virtual => 2,
            AdapterKind::Other => 3,
            AdapterKind::Cpu => 4,
        }
    }
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AdapterKind::Discrete => "discrete",
            AdapterKind::Integrated => "integrated",
            AdapterKind::Virtual => "virtual",
            AdapterKind::Cpu => "cpu",
            AdapterKind::Other => "other",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a backend says of a device: its name, vendor and device number, and slot.
    fn told(backend: wgpu::Backend, name: &str, ids: [u32; 2], slot: &str) -> AdapterInfo {
        let mut info = wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, backend);
        (info.name, info.device_pci_bus_id) = (name.to_owned(), slot.to_owned());
        [info.vendor, info.device] = ids;
        AdapterInfo::new(&info, &wgpu::Limits::default(), wgpu::Features::empty())
    }

    fn kept(infos: &[AdapterInfo]) -> Vec<bool> {
        distinct(&infos.iter().collect::<Vec<_>>())
    }

    /// By slot where both tell it, else by number, else by name; an equal card beside it stays.
    #[test]
    fn a_device_that_two_backends_show_is_one() {
        use wgpu::Backend::{Dx12, Gl, Vulkan};
        let (card, other) = ([0x10de, 0x2684], [0x1002, 0x744c]);
        let [first, second] = ["0000:01:00.0", "0000:02:00.0"];
        let one = |backend, slot| told(backend, "GeForce", card, slot);
        let kept_of = |infos: &[AdapterInfo], expected: &[bool]| assert_eq!(kept(infos), expected);
        kept_of(&[one(Vulkan, first), one(Dx12, first)], &[true, false]);
        kept_of(&[one(Vulkan, first), one(Dx12, second)], &[true, true]);
        kept_of(&[one(Vulkan, ""), one(Dx12, first)], &[true, false]);
        kept_of(&[one(Vulkan, ""), told(Dx12, "GeForce", other, "")], &[true, true]);
        // Two equal cards, which each backend shows.
        let twice = [one(Vulkan, ""), one(Vulkan, ""), one(Dx12, ""), one(Dx12, "")];
        kept_of(&twice, &[true, true, false, false]);
        kept_of(
            &[one(Vulkan, first), one(Vulkan, second), one(Dx12, second)],
            &[true, true, false],
        );
        // OpenGL knows the name only, and adds to it.
        let gl = |name| told(Gl, name, [0, 0], "");
        kept_of(&[one(Vulkan, first), gl("NVIDIA GeForce/PCIe/SSE2")], &[true, false]);
        kept_of(&[one(Vulkan, first), gl("AMD Radeon")], &[true, true]);
        kept_of(&[one(Vulkan, first), gl("")], &[true, true]);
        let lavapipe = told(Vulkan, "llvmpipe (LLVM 19.1.7, 256 bits)", [0x10005, 0], "");
        kept_of(&[lavapipe, gl("llvmpipe (LLVM 15.0.6, 128 bits)")], &[true, false]);
    }
}
