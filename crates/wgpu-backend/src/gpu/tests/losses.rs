//! Devices that are lost, and handles on other threads.

use std::sync::Arc;

use super::*;

#[test]
fn a_lost_device_answers_nothing_else() {
    type Lose = fn(&Gpu);
    let app = |options: &GpuOptions| {
        let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        Gpu::from_wgpu(device, queue, options).unwrap()
    };
    let own = |options: &GpuOptions| Gpu::open(&Adapter::noop(), options).unwrap();
    let ways: [Lose; 3] = [
        |gpu| gpu.destroy(),
        |gpu| gpu.notify_lost("the app said so"),
        |gpu| gpu.device().destroy(),
    ];
    for lose in ways {
        for gpu in [app(&GpuOptions::default()), own(&GpuOptions::default())] {
            all_calls_answer_lost(&gpu, lose);
        }
    }
}

pub(super) fn all_calls_answer_lost(gpu: &Gpu, lose: fn(&Gpu)) {
    let double = Double::new(gpu, 4, false);
    let pipeline = gpu.pipeline(&desc(DOUBLE, false)).unwrap();
    double.run(&[1.0; 4], Timestamps::None).unwrap();
    lose(gpu);
    let lost = |kind: GpuErrorKind| assert_eq!(kind, GpuErrorKind::Lost);
    let slices = [
        BindingSlice { buffer: &double.x, offset: 0, size: 16 },
        BindingSlice { buffer: &double.y, offset: 0, size: 16 },
        BindingSlice { buffer: &double.params, offset: 0, size: 16 },
    ];
    // Each of these may be the first to notice.
    lost(
        gpu.run(&Submission { recording: Some(&double.recording), ..Default::default() })
            .unwrap_err()
            .kind(),
    );
    lost(double.run(&[1.0; 4], Timestamps::None).unwrap_err().kind());
    lost(gpu.run(&Submission::default()).unwrap_err().kind());
    lost(gpu.buffer("b", 4, BufferUse::Storage).unwrap_err().kind());
    lost(gpu.pipeline(&desc(DOUBLE, false)).unwrap_err().kind());
    lost(gpu.bind_group(&pipeline, &slices).unwrap_err().kind());
    lost(gpu.lost().unwrap().kind());
    assert_eq!(gpu.stray_error(), None);
}

#[test]
fn handles_can_go_to_other_threads() {
    fn check<T: Send + Sync + 'static>() {}
    check::<(Gpu, Adapter, Buffer, BindGroup, Arc<Pipeline>, Arc<Recording>, GpuError, RunOutput)>(
    );
}

#[test]
fn the_thread_ends_with_the_last_handle() {
    let gpu = noop();
    let weak = Arc::downgrade(&gpu.0.shared);
    let buffer = gpu.buffer("b", 4, BufferUse::Storage).unwrap();
    drop(gpu.clone());
    assert!(weak.upgrade().is_some());
    drop(gpu);
    assert!(weak.upgrade().is_none(), "the owner thread still holds the device");
    drop(buffer);
}
