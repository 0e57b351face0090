//! What was measured of devices, as sessions see it.

use std::ops::ControlFlow;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{CalibrateOptions, Calibrations};
use convoke_tests::Folder;

use super::growth::logged;

/// How long a session on `devices` predicts a small run to take, which it makes.
fn predicted(devices: &Devices) -> Duration {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![4]);
    let y = &x + 1.0;
    let options = SessionOptions { threads: 1, ..SessionOptions::default() };
    let session = Session::with_options(&g, devices, options).unwrap();
    let feeds = [x.feed([1.0f32; 4])];
    assert_eq!(session.run(&feeds, &y).unwrap().to_vec::<f32>().unwrap(), [2.0; 4]);
    session.explain(&feeds, &y).unwrap().predicted()
}

#[test]
fn a_damaged_calibration_is_told_of_once_and_ignored() {
    let folder = Folder::new("calibrations");
    let open = || Devices::cpu().with_calibrations(Calibrations::At(folder.path().to_owned()));
    let defaults = predicted(&Devices::cpu().with_calibrations(Calibrations::Nowhere));
    let options = CalibrateOptions { threads: 1, budget: Duration::ZERO };
    open().calibrate(0, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let [name] = &folder.files()[..] else { panic!("{:?}", folder.files()) };
    let path = folder.path().join(name);
    let whole = std::fs::read_to_string(&path).unwrap();
    let told = logged(|| _ = predicted(&open()));
    assert_eq!(told, "", "what is whole is not told of");
    let other = whole.replacen("launch_ps", "lunch_ps", 1);
    for damaged in [&whole[..whole.len() / 2], "", "{}", other.as_str()] {
        std::fs::write(&path, damaged).unwrap();
        let told = logged(|| {
            let devices = open();
            for _ in 0..3 {
                assert_eq!(predicted(&devices), defaults, "{damaged}");
            }
        });
        assert_eq!(told.lines().count(), 1, "{damaged}: {told}");
        assert!(told.contains("WARN") && told.contains(name.as_str()), "{told}");
        assert!(told.contains("is ignored: ") && told.contains("`convoke calibrate`"), "{told}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged, "nobody has touched it");
    }
}
