//! What is uploaded comes back, split and in order.

use super::*;

#[test]
fn bytes_come_back_whatever_their_number() {
    let gpu = noop();
    let buffer = gpu.buffer("b", 1 << 20, BufferUse::Storage).unwrap();
    for len in [0, 1, 2, 3, 4, 5, 15, 16, 17, 65_535, 65_537, 1 << 20] {
        assert_eq!(round_trip(&gpu, &buffer, 0, &pattern(len)), pattern(len), "{len} bytes");
    }
    assert_eq!(round_trip(&gpu, &buffer, 1028, &pattern(33)), pattern(33));
    assert_eq!(gpu.stray_error(), None);
}

#[test]
fn uploads_are_split_over_chunks() {
    let limits = LimitOverrides { max_buffer_size: Some(1 << 17), ..Default::default() };
    let gpu = Gpu::open(&Adapter::noop_with(limits), &GpuOptions::default()).unwrap();
    let buffers: Vec<Buffer> =
        (0..3).map(|_| gpu.buffer("b", 1 << 17, BufferUse::Storage).unwrap()).collect();
    let bytes = [pattern(100_003), pattern(131_072), pattern(7)];
    let uploads: Vec<Upload> =
        buffers.iter().zip(&bytes).map(|(dst, bytes)| Upload { bytes, dst, offset: 0 }).collect();
    let download =
        |(src, bytes): (_, &Vec<u8>)| Download { src, offset: 0, size: bytes.len() as u64 };
    let downloads: Vec<Download> = buffers.iter().zip(&bytes).map(download).collect();
    let work = Submission { uploads: &uploads, downloads: &downloads, ..Submission::default() };
    let output = gpu.run(&work).unwrap();
    for (got, expected) in output.data.iter().zip(&bytes) {
        assert!(**got == **expected);
    }
    assert_eq!(output.submissions, 1);
    assert_eq!(output.upload_bytes, 100_004 + 131_072 + 8);
}

#[test]
fn later_uploads_win_and_recordings_run_between() {
    let gpu = noop();
    let a = gpu.buffer("a", 16, BufferUse::Storage).unwrap();
    let b = gpu.buffer("b", 16, BufferUse::Storage).unwrap();
    let (src, dst) = (a.clone(), b.clone());
    let copy = Command::Copy { src, src_offset: 4, dst, dst_offset: 8, size: 4 };
    let clear = Command::Clear { buffer: a.clone(), offset: 4, size: 4 };
    let nothing = Command::Clear { buffer: a.clone(), offset: 4, size: 0 };
    let recording = gpu.recording(vec![copy, nothing, clear]).unwrap();
    assert_eq!(recording.to_string(), "copy 4 bytes 4 -> 8\nclear 4 bytes at 4\n");
    let work = Submission {
        uploads: &[
            Upload { bytes: &[9; 16], dst: &a, offset: 0 },
            Upload { bytes: &[1, 2, 3, 4], dst: &a, offset: 4 },
        ],
        recording: Some(&recording),
        downloads: &[
            Download { src: &a, offset: 0, size: 9 },
            Download { src: &b, offset: 8, size: 4 },
        ],
        ..Submission::default()
    };
    let output = gpu.run(&work).unwrap();
    assert_eq!(*output.data[0], [9, 9, 9, 9, 0, 0, 0, 0, 9]);
    assert_eq!(*output.data[1], [1, 2, 3, 4]);
    assert_eq!((output.copies, output.dispatches, output.submissions), (2, 0, 1));
}

#[test]
fn an_empty_submission_submits_nothing() {
    let gpu = noop();
    let before = gpu.counters();
    assert_eq!(gpu.run(&Submission::default()).unwrap(), RunOutput::default());
    assert_eq!(gpu.counters(), before);
}
