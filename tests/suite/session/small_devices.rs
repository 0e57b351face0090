//! The standard cases at an eighth of their size on adapters with the least limits: 256 invocations, 16 KiB of
//! workgroup memory, 4 storage buffers, 1 MiB in a binding.

use convoke::cases::{Case, NAMES};
use convoke::{DeviceOptions, LimitOverrides, prelude::*};
use convoke_tests::{compare, devices};

#[test]
fn the_standard_cases() {
    let gpu_limits = LimitOverrides {
        max_storage_buffer_binding_size: Some(1 << 20),
        max_storage_buffers_per_shader_stage: Some(4),
        max_compute_invocations_per_workgroup: Some(256),
        max_compute_workgroup_storage_size: Some(16 << 10),
        ..LimitOverrides::default()
    };
    let run = |name: &str, devices: &Devices, options: SessionOptions| {
        let case = Case::reduced(name, 8).unwrap().ready(devices, options).unwrap();
        case.run().unwrap();
        case.run().unwrap()
    };
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let small = device.open(DeviceOptions { gpu_limits, ..DeviceOptions::default() });
        for name in NAMES {
            let (expected, _) = run(name, &Devices::cpu(), SessionOptions::default());
            let options = SessionOptions { policy: device.policy.clone(), ..Default::default() };
            let (found, metadata) = run(name, &small, options);
            let what = format!("{name} on small {}", device.name);
            println!("{what}: {metadata}");
            compare(&what, &found, &expected, Some(1e-3));
            // C's vectors of 2 MiB fit no binding, so that it runs on the CPU.
            assert_eq!(metadata.dispatches > 0, name != "C", "{what}: {metadata}");
        }
    }
}
