//! Bindings, commands and transfers that are refused.

use smallvec::{SmallVec, smallvec};

use super::*;

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, GpuError>, text: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), GpuErrorKind::Validation);
    assert!(error.to_string().contains(text), "{error}");
}

#[test]
fn bad_bindings_are_refused() {
    let gpu = noop();
    let Double { x, y, params, .. } = Double::new(&gpu, 4, false);
    let pipeline = gpu.pipeline(&desc(DOUBLE, false)).unwrap();
    let slice = |buffer, offset, size| BindingSlice { buffer, offset, size };
    let bind = |slices: [BindingSlice; 3]| gpu.bind_group(&pipeline, &slices);
    let (a, b, c) = (slice(&x, 0, 16), slice(&y, 0, 16), slice(&params, 0, 16));
    bind([a, b, c]).unwrap();
    refused(gpu.bind_group(&pipeline, &[a]), "has 3 bindings, got 1 buffers");
    refused(
        bind([a, a, c]),
        "bindings 0 (read) and 1 (read_write) of pipeline \"double\" are one buffer",
    );
    refused(bind([c, b, c]), "expected a Storage buffer, got Uniform");
    refused(bind([slice(&x, 4, 4), b, c]), "offset 4 is not a multiple of 256");
    refused(bind([slice(&x, 0, 17), b, c]), "20 bytes at offset 0 don't fit a buffer of 16 bytes");
    let foreign = noop().buffer("f", 16, BufferUse::Storage).unwrap();
    refused(bind([slice(&foreign, 0, 16), b, c]), "another device");
    let limits =
        LimitOverrides { max_storage_buffer_binding_size: Some(64), ..LimitOverrides::default() };
    let small = Gpu::open(&Adapter::noop_with(limits), &GpuOptions::default()).unwrap();
    let big = small.buffer("big", 128, BufferUse::Storage).unwrap();
    let pipeline = small.pipeline(&desc(DOUBLE, false)).unwrap();
    let error = small.bind_group(&pipeline, &[slice(&big, 0, 128); 3]).unwrap_err();
    assert_eq!(error.kind(), GpuErrorKind::Validation, "one buffer read and written");
    let (other, params) = (
        small.buffer("other", 64, BufferUse::Storage).unwrap(),
        small.buffer("params", 64, BufferUse::Uniform).unwrap(),
    );
    let slices = [slice(&big, 0, 128), slice(&other, 0, 64), slice(&params, 0, 16)];
    let error = small.bind_group(&pipeline, &slices).unwrap_err();
    let limit = "max_storage_buffer_binding_size";
    assert_eq!(error, GpuError::LimitExceeded { limit, max: 64, got: 128 });
}

#[test]
fn bad_commands_are_refused() {
    let gpu = noop();
    let double = Double::new(&gpu, 4, false);
    let Some(Command::Dispatch { pipeline, bind_group, .. }) = double.recording.commands().get(1)
    else {
        panic!("the second command is the dispatch");
    };
    let dispatch = |dynamic_offsets: SmallVec<[u32; 1]>, groups| {
        let (pipeline, bind_group) = (pipeline.clone(), bind_group.clone());
        gpu.recording(vec![Command::Dispatch { pipeline, bind_group, dynamic_offsets, groups }])
    };
    refused(dispatch(smallvec![], [1; 3]), "takes 1 dynamic offsets, got 0");
    refused(dispatch(smallvec![4], [1; 3]), "has to be a multiple of 256 and at most 1008");
    refused(dispatch(smallvec![1024], [1; 3]), "has to be a multiple of 256 and at most 1008");
    let error = dispatch(smallvec![0], [1, 65_536, 1]).unwrap_err();
    assert_eq!(error.kind(), GpuErrorKind::LimitExceeded);
    assert_eq!(dispatch(smallvec![0], [1, 0, 1]).unwrap().n_dispatches(), 0);
    let copy = |src: &Buffer, dst: &Buffer, src_offset, size| {
        let (src, dst) = (src.clone(), dst.clone());
        gpu.recording(vec![Command::Copy { src, src_offset, dst, dst_offset: 0, size }])
    };
    let (x, y) = (&double.x, &double.y);
    refused(copy(x, x, 0, 4), "source and destination are one buffer");
    refused(copy(x, y, 2, 4), "offset 2 is not a multiple of 4");
    refused(copy(x, y, 0, 3), "size 3 is not a multiple of 4");
    refused(copy(x, y, 4, 16), "16 bytes at offset 4 don't fit a buffer of 16 bytes");
    refused(copy(x, y, u64::MAX - 3, 16), "don't fit");
}

#[test]
fn bad_transfers_are_refused_and_do_nothing() {
    let gpu = noop();
    let buffer = gpu.buffer("b", 16, BufferUse::Storage).unwrap();
    let before = gpu.counters().submissions;
    let upload = |bytes: &[u8], offset| {
        let uploads = [Upload { bytes, dst: &buffer, offset }];
        gpu.run(&Submission { uploads: &uploads, ..Submission::default() })
    };
    refused(upload(&[0; 17], 0), "20 bytes at offset 0 don't fit a buffer of 16 bytes");
    refused(upload(&[0; 4], 2), "offset 2 is not a multiple of 4");
    let download = |offset, size| {
        let downloads = [Download { src: &buffer, offset, size }];
        gpu.run(&Submission { downloads: &downloads, ..Submission::default() })
    };
    refused(download(16, 1), "4 bytes at offset 16 don't fit");
    refused(download(0, u64::MAX), "don't fit");
    assert_eq!(gpu.counters().submissions, before);
}
