//! Limits and features that are asked for; shaders and pipelines.

use std::sync::Arc;

use super::*;

#[test]
fn limits_and_features_can_be_lowered_and_not_raised() {
    let limits = LimitOverrides {
        max_buffer_size: Some(1 << 20),
        max_storage_buffers_per_shader_stage: Some(1),
        max_compute_workgroups_per_dimension: Some(1 << 30),
        ..LimitOverrides::default()
    };
    let features = GpuFeatures { f16: false, ..GpuFeatures::ALL };
    let options = GpuOptions { limits: Some(limits), features, ..GpuOptions::default() };
    let gpu = Gpu::open(&Adapter::noop(), &options).unwrap();
    assert_eq!(gpu.info().limits.max_buffer_size, 1 << 20);
    assert_eq!(gpu.info().limits.max_compute_workgroups_per_dimension, 65_535);
    assert_eq!(gpu.info().features, features);
    let error = gpu.pipeline(&desc(DOUBLE, false)).unwrap_err();
    let limit = "max_storage_buffers_per_shader_stage";
    assert_eq!(error, GpuError::LimitExceeded { limit, max: 1, got: 2 });
}

#[test]
fn a_bad_shader_is_refused_with_nagas_message() {
    let gpu = noop();
    let error = gpu.pipeline(&desc("@compute @workgroup_size(1)\nfn main() { x = 1; }", false));
    let GpuError::Shader { label, message } = error.unwrap_err() else {
        panic!("not a shader error")
    };
    assert_eq!(label, "double");
    assert!(message.contains("no definition in scope for identifier: `x`"), "{message}");
    assert!(message.contains("wgsl:2:"), "{message}");
    let no_main = DOUBLE.replace("fn main", "fn other");
    assert_eq!(gpu.pipeline(&desc(&no_main, false)).unwrap_err().kind(), GpuErrorKind::Shader);
    let one_more = DOUBLE.replace("@group(0) @binding(2)", "@group(0) @binding(3)");
    assert_eq!(gpu.pipeline(&desc(&one_more, false)).unwrap_err().kind(), GpuErrorKind::Shader);
    assert_eq!(gpu.counters().pipelines_created, 0);
    gpu.pipeline(&desc(DOUBLE, false)).unwrap();
    assert_eq!(gpu.stray_error(), None);
}

#[test]
fn equal_pipelines_are_made_once() {
    let options = GpuOptions { checked_shaders: false, max_pipelines: 2, ..GpuOptions::default() };
    let gpu = Gpu::open(&Adapter::noop(), &options).unwrap();
    let first = gpu.pipeline(&desc(DOUBLE, false)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                assert!(Arc::ptr_eq(&gpu.pipeline(&desc(DOUBLE, false)).unwrap(), &first));
            });
        }
    });
    assert_eq!(gpu.counters().pipelines_created, 1);
    gpu.pipeline(&desc(DOUBLE, true)).unwrap();
    assert_eq!(gpu.counters().pipelines_created, 2);
    // A third evicts the second, which nobody holds, and not the first.
    let other = DOUBLE.replace("2.0", "3.0");
    gpu.pipeline(&desc(&other, false)).unwrap();
    assert!(Arc::ptr_eq(&gpu.pipeline(&desc(DOUBLE, false)).unwrap(), &first));
    assert_eq!(gpu.counters().pipelines_created, 3);
}
