//! Compiled pipelines in files: what is not theirs is told of and left alone. What a driver gives out is found again
//! by the tests of `disk_cache.rs`; the drivers that stand in for GPUs give none out.

use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};

use convoke::prelude::*;
use convoke::{Calibrations, DeviceOptions, PipelineDir};
use convoke_tests::{Folder, TestDevice, devices};

use super::growth::logged;

/// Opens the adapter anew, multiplies there, and lets go of everything.
fn run(device: &TestDevice, dir: &Path) {
    let options = DeviceOptions {
        name: Some(device.name.clone()),
        calibrations: Calibrations::Nowhere,
        pipeline_dir: PipelineDir::At(dir.to_owned()),
        ..DeviceOptions::default()
    };
    let devices = Devices::with_options(&options).unwrap();
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![2, 2]);
    let y = g.device("GPU:0", || x.matmul(&x) + 1.0);
    let session = Session::new(&g, &devices).unwrap();
    let (y, run) =
        session.run_with(&[x.feed([[1.0f32, 2.0], [3.0, 4.0]])], &y, Default::default()).unwrap();
    assert_eq!(y.to_vec::<f32>().unwrap(), [8.0, 11.0, 16.0, 23.0], "{}", device.name);
    assert_eq!(run.pipelines_built, 1, "{}", device.name);
    session.close();
}

fn gpus() -> impl Iterator<Item = &'static TestDevice> {
    devices().iter().filter(|device| device.devices.list().len() > 1)
}

/// What is logged of a run whose directory is none, and the name that the adapter's file would have there.
fn without_directory(device: &TestDevice) -> (String, String) {
    let folder = Folder::new("pipelines");
    let file = folder.path().join("file");
    std::fs::write(&file, "none of ours").unwrap();
    let warnings = logged(|| run(device, &file));
    assert_eq!(std::fs::read(&file).unwrap(), b"none of ours", "{}", device.name);
    let (_, name) = warnings.split_once("/file/").unwrap();
    let (name, _) = name.split_once(" is ignored").unwrap();
    (warnings.clone(), name.to_owned())
}

#[test]
fn a_directory_that_is_none_is_told_of_once() {
    for device in gpus() {
        let (warnings, name) = without_directory(device);
        assert!(name.ends_with(".pipelines"), "{name}");
        assert_eq!(warnings.matches("is ignored").count(), 1, "{}: {warnings}", device.name);
        assert!(warnings.matches("WARN").count() <= 2, "reading and writing: {warnings}");
    }
}

#[test]
fn damaged_files_are_told_of_once() {
    for device in gpus() {
        let (_, name) = without_directory(device);
        for damaged in [&b""[..], b"convoke1", b"convoke1 of another time", &[0xff; 4096]] {
            let folder = Folder::new("pipelines");
            let dir = private(&folder);
            std::fs::write(dir.join(&name), damaged).unwrap();
            let warnings = logged(|| run(device, &dir));
            assert_eq!(warnings.matches("it is damaged").count(), 1, "{}: {warnings}", device.name);
            assert_eq!(warnings.matches("WARN").count(), 1, "{}: {warnings}", device.name);
        }
    }
}

/// The file is whole, and what it holds is of no driver: the driver is asked, and compiles.
#[test]
fn what_another_driver_left_is_compiled_anew() {
    for device in gpus() {
        let (_, name) = without_directory(device);
        for data in [&b"nothing that a driver knows"[..], &[0; 64], &[0xff; 4096]] {
            let folder = Folder::new("pipelines");
            let dir = private(&folder);
            let mut hasher = DefaultHasher::new();
            hasher.write(data);
            let hash = hasher.finish().to_le_bytes();
            std::fs::write(dir.join(&name), [b"convoke1", &hash[..], data].concat()).unwrap();
            assert_eq!(logged(|| run(device, &dir)), "", "{}", device.name);
        }
    }
}

/// A directory that only its owner may write.
fn private(folder: &Folder) -> PathBuf {
    let dir = folder.path().join("own");
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(&dir).unwrap();
    dir
}
