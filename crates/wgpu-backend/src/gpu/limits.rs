//! Limits and features of adapters and devices as plain data: the part of wgpu's that computing needs.

/// The limits that kernels and memory plans depend on. Of an adapter: the most that a device of it can have;
/// of a device: what it was opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuLimits {
    /// Bytes of the largest buffer.
    pub max_buffer_size: u64,
    /// Bytes of the largest part of a buffer that a shader can see as one binding.
    pub max_storage_buffer_binding_size: u64,
    /// Bytes of the largest uniform binding.
    pub max_uniform_buffer_binding_size: u64,
    /// Storage buffers that one shader can name.
    pub max_storage_buffers_per_shader_stage: u32,
    /// Invocations in one workgroup.
    pub max_compute_invocations_per_workgroup: u32,
    /// Bytes of workgroup memory.
    pub max_compute_workgroup_storage_size: u32,
    /// Workgroups along each axis of a dispatch.
    pub max_compute_workgroups_per_dimension: u32,
    /// Bytes of immediates; 0 without the feature.
    pub max_immediate_size: u32,
    /// Offsets of uniform bindings are multiples of this.
    pub min_uniform_buffer_offset_alignment: u32,
    /// Offsets of storage bindings are multiples of this.
    pub min_storage_buffer_offset_alignment: u32,
}

/// The features that kernels can use where they are present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GpuFeatures {
    /// 16-bit floats in shaders.
    pub f16: bool,
    /// Subgroup operations.
    pub subgroups: bool,
    /// Times measured on the device.
    pub timestamps: bool,
    /// Immediates, once push constants.
    pub immediates: bool,
    /// 64-bit integers in shaders.
    pub i64: bool,
}

/// Limits to set instead of an adapter's own. See [`GpuLimits`] for their meaning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named after the fields of GpuLimits")]
pub struct LimitOverrides {
    pub max_buffer_size: Option<u64>,
    pub max_storage_buffer_binding_size: Option<u64>,
    pub max_storage_buffers_per_shader_stage: Option<u32>,
    pub max_compute_invocations_per_workgroup: Option<u32>,
    pub max_compute_workgroup_storage_size: Option<u32>,
    pub max_compute_workgroups_per_dimension: Option<u32>,
}

impl GpuLimits {
    pub(super) fn from_wgpu(limits: &wgpu::Limits) -> GpuLimits {
        GpuLimits {
            max_buffer_size: limits.max_buffer_size,
            max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
            max_uniform_buffer_binding_size: limits.max_uniform_buffer_binding_size,
            max_storage_buffers_per_shader_stage: limits.max_storage_buffers_per_shader_stage,
            max_compute_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
            max_compute_workgroup_storage_size: limits.max_compute_workgroup_storage_size,
            max_compute_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            max_immediate_size: limits.max_immediate_size,
            min_uniform_buffer_offset_alignment: limits.min_uniform_buffer_offset_alignment,
            min_storage_buffer_offset_alignment: limits.min_storage_buffer_offset_alignment,
        }
    }
}

impl GpuFeatures {
    /// All of them.
    pub const ALL: GpuFeatures =
        GpuFeatures { f16: true, subgroups: true, timestamps: true, immediates: true, i64: true };

    /// None of them: the portable floor.
    pub const NONE: GpuFeatures = GpuFeatures {
        f16: false,
        subgroups: false,
        timestamps: false,
        immediates: false,
        i64: false,
    };

    pub(super) fn from_wgpu(features: wgpu::Features) -> GpuFeatures {
        GpuFeatures {
            f16: features.contains(wgpu::Features::SHADER_F16),
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            immediates: features.contains(wgpu::Features::IMMEDIATES),
            i64: features.contains(wgpu::Features::SHADER_INT64),
        }
    }

    pub(super) fn to_wgpu(self) -> wgpu::Features {
        let mut features = wgpu::Features::empty();
        features.set(wgpu::Features::SHADER_F16, self.f16);
        features.set(wgpu::Features::SUBGROUP, self.subgroups);
        features.set(wgpu::Features::TIMESTAMP_QUERY, self.timestamps);
        features.set(wgpu::Features::IMMEDIATES, self.immediates);
        features.set(wgpu::Features::SHADER_INT64, self.i64);
        features
    }
}

impl LimitOverrides {
    /// What a device of an adapter with these limits has once they are lowered.
    pub fn lowered(&self, limits: GpuLimits) -> GpuLimits {
        fn low<T: Ord + Copy>(own: T, other: Option<T>) -> T {
            other.map_or(own, |other| own.min(other))
        }
        GpuLimits {
            max_buffer_size: low(limits.max_buffer_size, self.max_buffer_size),
            max_storage_buffer_binding_size: low(
                limits.max_storage_buffer_binding_size,
                self.max_storage_buffer_binding_size,
            ),
            max_storage_buffers_per_shader_stage: low(
                limits.max_storage_buffers_per_shader_stage,
                self.max_storage_buffers_per_shader_stage,
            ),
            max_compute_invocations_per_workgroup: low(
                limits.max_compute_invocations_per_workgroup,
                self.max_compute_invocations_per_workgroup,
            ),
            max_compute_workgroup_storage_size: low(
                limits.max_compute_workgroup_storage_size,
                self.max_compute_workgroup_storage_size,
            ),
            max_compute_workgroups_per_dimension: low(
                limits.max_compute_workgroups_per_dimension,
                self.max_compute_workgroups_per_dimension,
            ),
            ..limits
        }
    }

    /// Lowers `limits` to these values.
    pub(super) fn lower(&self, limits: &mut wgpu::Limits) {
        let old = limits.clone();
        self.replace(limits);
        *limits = limits.clone().or_worse_values_from(&old);
    }

    /// Sets `limits` to these values.
    pub(super) fn replace(&self, limits: &mut wgpu::Limits) {
        fn set<T: Copy>(target: &mut T, value: Option<T>) {
            *target = value.unwrap_or(*target);
        }
        set(&mut limits.max_buffer_size, self.max_buffer_size);
        set(&mut limits.max_storage_buffer_binding_size, self.max_storage_buffer_binding_size);
        set(
            &mut limits.max_storage_buffers_per_shader_stage,
            self.max_storage_buffers_per_shader_stage,
        );
        set(
            &mut limits.max_compute_invocations_per_workgroup,
            self.max_compute_invocations_per_workgroup,
        );
        set(
            &mut limits.max_compute_workgroup_storage_size,
            self.max_compute_workgroup_storage_size,
        );
        set(
            &mut limits.max_compute_workgroups_per_dimension,
            self.max_compute_workgroups_per_dimension,
        );
    }
}
