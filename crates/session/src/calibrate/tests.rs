//! Calibrations: fitted to made-up times, kept in files, measured in small, and used by placement.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use convoke_graph_core::{DType, ErrorKind, Graph, Init, dims};
use convoke_placement::{Curve, DeviceKind as ModelKind, DeviceModel, Family, Link, Work};

use super::fit::fit;
use super::graphs::CHAIN;
use super::measure::{Amount, Key, SERIES, Samples, count};
use super::probe::Timed;
use super::*;
use crate::session::{Session, SessionOptions};

const US: u64 = 1_000_000;

/// A directory that goes away with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "convoke-calibration-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        Self(std::env::temp_dir().join(name))
    }

    fn devices(&self) -> Devices {
        Devices::cpu().with_calibrations(Calibrations::At(self.0.clone()))
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Two places, so that every number is another one than the default.
fn calibration(devices: &Devices) -> Calibration {
    let device = measured(&devices.list()[0], 2);
    let mut model = DeviceModel::cpu(2, u64::MAX);
    model.launch = 123 * US;
    model.run = 7 * US;
    model.memory = Curve::through([(10, 20), (1000, 400)]).unwrap();
    model.arithmetic.set(Family::Reduce, Curve::through([(5, 6), (50, 7)]).unwrap());
    let link = |latency| Link { latency, bytes_per_second: 5 * latency };
    Calibration { device, model, upload: link(1), download: link(2) }
}

fn timed(time: u64, work: Work) -> Timed {
    Timed { times: vec![time], work: vec![work] }
}

#[test]
fn speeds_follow_from_the_times_of_probes() {
    let none = |time| timed(time, Work::NONE);
    let chain = CHAIN as u64;
    let at = |family| SERIES.iter().position(|series| series.family == family).unwrap();
    let mut samples = Samples::from([
        (Key::One, none(100 * US)),
        (Key::Chain, none(100 * US + chain * 5 * US)),
        (Key::Least, none(90 * US)),
        (Key::Run, none(2 * US)),
        (Key::Resident(Amount::Few), none(91 * US)),
        (Key::Resident(Amount::Many), none(1091 * US)),
        (Key::Fed(Amount::Few), none(101 * US)),
        (Key::Fed(Amount::Many), none(2101 * US)),
        (Key::Fetched(Amount::Few), none(111 * US)),
        // As fast as if nothing crossed: rather the latency than less than nothing.
        (Key::Fetched(Amount::Many), none(1000 * US)),
    ]);
    let bytes = Work::new(Family::Elementwise, 0, 3000);
    samples.insert(Key::Series(at(None), 0), timed(92 * US, bytes));
    let simple = Work { pointwise: 1000, ..bytes };
    samples.insert(Key::Series(at(Some(Family::Elementwise)), 0), timed(94 * US, simple));
    let product = Work { lanes: 640, pointwise: 500, ..Work::new(Family::Contract, 10, 0) };
    samples.insert(Key::Series(at(Some(Family::Contract)), 1), timed(122 * US, product));
    let large = Work { lanes: 6400, ..product };
    samples.insert(Key::Series(at(Some(Family::Contract)), 2), timed(392 * US, large));
    let default = DeviceModel::gpu(ModelKind::DiscreteGpu, 0, u64::MAX);
    let (model, upload, download) = fit(&samples, default.clone()).unwrap();
    // 90 us less a kernel of 5 and a run of 2.
    assert_eq!((model.launch, model.submission, model.run), (5 * US, 83 * US, 0));
    assert_eq!(model.memory.points(), [(3000, 2 * US)]);
    assert_eq!(model.arithmetic.of(Family::Elementwise).points(), [(1000, 4 * US)]);
    // 32 and 302 us, less 2 for the elementwise half.
    let products = model.arithmetic.of(Family::Contract);
    assert_eq!(products.points(), [(640, 30 * US), (6400, 300 * US)]);
    // What was not probed stays.
    assert_eq!(model.arithmetic.of(Family::Pool), default.arithmetic.of(Family::Pool));
    // 10 us; then 4 MiB in 1000 us.
    assert_eq!(upload, Link { latency: 10 * US, bytes_per_second: (4 << 20) * 1000 });
    assert_eq!(download.latency, 20 * US);
    // Both at once take 21 us more than neither, 7 and 14 by what each takes alone.
    samples.insert(Key::Both, none(111 * US));
    let (_, upload, download) = fit(&samples, default).unwrap();
    assert_eq!([upload.latency, download.latency], [7 * US, 14 * US]);
    assert_eq!(upload.bytes_per_second, (4 << 20) * 1000);
}

/// A processor takes arithmetic and memory: what memory takes is not that of the arithmetic.
#[test]
fn speeds_of_processors_are_without_their_memory() {
    let at = |family| SERIES.iter().position(|series| series.family == family).unwrap();
    let bytes = Work::new(Family::Elementwise, 0, 3000);
    let product = Work { narrow: 640, pointwise: 500, ..Work::new(Family::Contract, 10, 6000) };
    let mut samples = Samples::from([(Key::Least, timed(90 * US, Work::NONE))]);
    for (family, time, work) in [
        (None, 92, bytes),
        (Some(Family::Elementwise), 96, Work { pointwise: 1000, ..bytes }),
        (Some(Family::Function), 99, Work { functions: 100, pointwise: 500, ..bytes }),
        (Some(Family::Contract), 122, product),
    ] {
        samples.insert(Key::Series(at(family), 0), timed(time * US, work));
    }
    let default = DeviceModel::gpu(ModelKind::SoftwareGpu, 0, u64::MAX);
    let (model, ..) = fit(&samples, default).unwrap();
    assert_eq!(model.memory.points(), [(3000, 2 * US)]);
    // 6 us less 2; 9 less 2 and 2; 32 less 4 and 2.
    assert_eq!(model.arithmetic.of(Family::Elementwise).points(), [(1000, 4 * US)]);
    assert_eq!(model.arithmetic.of(Family::Function).points(), [(100, 5 * US)]);
    assert_eq!(model.arithmetic.of(Family::Contract).points(), [(640, 26 * US)]);
}

/// A quarter that is slower says nothing of the rest.
#[test]
fn what_is_usual_is_the_mean_of_all_but_the_slowest_quarter() {
    let usual = |micros: &[u64]| {
        let times: Vec<Duration> = micros.iter().copied().map(Duration::from_micros).collect();
        Calibrating::usual(&times).as_micros()
    };
    assert_eq!(usual(&[]), 0);
    assert_eq!(usual(&[7]), 7);
    assert_eq!(usual(&[10, 30]), 20);
    assert_eq!(usual(&[10, 400, 20]), 15);
    assert_eq!(usual(&[900, 10, 30, 20]), 20);
    assert_eq!(usual(&[50, 900, 10, 30, 20, 800, 40, 60]), 35);
    assert_eq!(Calibrating::usual(&[Duration::MAX; 2]).as_secs(), u64::MAX / 1_000_000_000_000);
}

/// A run of next to nothing is timed several times in each pass, a chain once.
#[test]
fn a_pass_counts_each_probe_once() {
    let several = |times: &[u64]| Timed { times: times.to_vec(), work: vec![Work::NONE] };
    let mut samples = Samples::from([(Key::Least, several(&[4]))]);
    let pass = [(Key::Least, several(&[9, 1, 5, 6, 2])), (Key::Chain, several(&[30]))];
    count(&mut samples, Samples::from(pass));
    assert_eq!(samples[&Key::Least].times, [4, 5]);
    assert_eq!(samples[&Key::Chain].times, [30]);
}

#[test]
fn what_is_stored_is_loaded() {
    let dir = Dir::new();
    let devices = dir.devices();
    let kept = calibration(&devices);
    let path = dir.0.join("deep").join(file::name(&kept.device));
    assert_eq!(file::load(&path, &kept.device), Ok(None));
    file::store(&path, &kept).unwrap();
    assert_eq!(file::load(&path, &kept.device), Ok(Some(kept)));
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a draft is left");
}

#[test]
fn what_is_damaged_or_of_others_is_refused() {
    let dir = Dir::new();
    let kept = calibration(&dir.devices());
    let path = dir.0.join("a.json");
    file::store(&path, &kept).unwrap();
    let refusal = |device: &MeasuredDevice| file::load(&path, device).unwrap_err();
    for (change, why) in [
        (MeasuredDevice { driver: "other".into(), ..kept.device.clone() }, "driver"),
        (MeasuredDevice { adapter: "other".into(), ..kept.device.clone() }, "adapter"),
        (MeasuredDevice { backend: "other".into(), ..kept.device.clone() }, "backend"),
        (MeasuredDevice { host: "other".into(), ..kept.device.clone() }, "processor"),
        (MeasuredDevice { version: "0.0.0/0".into(), ..kept.device.clone() }, "version"),
        (MeasuredDevice { threads: 3, ..kept.device.clone() }, "2 threads"),
    ] {
        assert!(refusal(&change).contains(why), "{}", refusal(&change));
    }
    let text = fs::read_to_string(&path).unwrap();
    for at in (0..text.len()).step_by(7) {
        // A cut, and another digit.
        fs::write(&path, &text[..at]).unwrap();
        assert!(file::load(&path, &kept.device).is_err(), "{at} bytes");
        let mut bytes = text.clone().into_bytes();
        if bytes[at].is_ascii_digit() {
            bytes[at] = if bytes[at] == b'9' { b'1' } else { bytes[at] + 1 };
            fs::write(&path, &bytes).unwrap();
            assert!(file::load(&path, &kept.device).is_err(), "byte {at}");
        }
    }
    for text in ["[]", "{}", "{\"calibration\":{},\"checksum\":\"\"}", "nonsense"] {
        fs::write(&path, text).unwrap();
        assert!(file::load(&path, &kept.device).is_err(), "{text}");
    }
    fs::write(&path, vec![b' '; 1 << 17]).unwrap();
    assert!(refusal(&kept.device).contains("at most"));
    assert!(file::load(&dir.0, &kept.device).is_err());
}

/// How long a session on `devices` predicts a small run to take.
fn predicted(devices: &Devices) -> Duration {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![4]);
    let options = SessionOptions { threads: 2, ..SessionOptions::default() };
    let session = Session::with_options(&g, devices, options).unwrap();
    session.explain(&[x.feed([0.0f32; 4])], &(&x + 1.0)).unwrap().predicted()
}

#[test]
fn sessions_use_what_is_kept_and_defaults_where_it_is_not_to_be_trusted() {
    let dir = Dir::new();
    let default = predicted(&dir.devices());
    let nowhere = Devices::cpu().with_calibrations(Calibrations::Nowhere);
    assert_eq!(default, predicted(&nowhere));
    let kept = calibration(&dir.devices());
    let path = dir.0.join(file::name(&kept.device));
    file::store(&path, &kept).unwrap();
    // A kernel of 123 us and a run of 7.
    assert_eq!(predicted(&dir.devices()).as_micros(), 130);
    assert_eq!(predicted(&nowhere), default);
    // What sort of device it is, is not for a file to say.
    let mut other = kept;
    other.model.kind = ModelKind::SoftwareGpu;
    file::store(&path, &other).unwrap();
    assert_eq!(predicted(&dir.devices()).as_micros(), 130);
    fs::write(&path, "{}").unwrap();
    assert_eq!(predicted(&dir.devices()), default);
}

/// Only the smallest probes.
const QUICK: CalibrateOptions = CalibrateOptions { threads: 2, budget: Duration::ZERO };

#[test]
fn a_calibration_counts_at_once_and_for_later_processes() {
    let dir = Dir::new();
    let devices = dir.devices();
    assert!(devices.calibration(0, 2).is_none());
    let mut steps = Vec::new();
    let mut report = |progress: &Progress| {
        assert!(progress.done < progress.of);
        steps.push(progress.what);
        ControlFlow::Continue(())
    };
    let found = devices.calibrate(0, &QUICK, &mut report).unwrap();
    steps.dedup();
    assert!(steps.len() >= SERIES.len(), "{steps:?}");
    assert!(found.model.launch < 1000 * US, "{found:?}");
    assert!(found.model.memory.points().iter().all(|&(_, time)| time > 0));
    assert_eq!(dir.files().len(), 1);
    assert_eq!(devices.calibration(0, 2), Some(found.clone()));
    assert_eq!(dir.devices().calibration(0, 2), Some(found));
    assert!(dir.devices().calibration(0, 1).is_none(), "another number of threads");
}

#[test]
fn a_calibration_that_is_broken_off_changes_nothing() {
    let dir = Dir::new();
    let devices = dir.devices();
    let mut probes = 0;
    let mut report = |_: &Progress| {
        probes += 1;
        if probes < 5 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let error = devices.calibrate(0, &QUICK, &mut report).unwrap_err();
    assert_eq!((error.kind(), probes), (ErrorKind::Cancelled, 5));
    assert!(devices.calibration(0, 2).is_none() && dir.files().is_empty());
    let error = devices.calibrate(9, &QUICK, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
}

#[test]
fn passes_are_taken_one_by_one() {
    let dir = Dir::new();
    let devices = dir.devices();
    let early = devices.calibrating(0, &QUICK).unwrap().finish().unwrap_err();
    assert_eq!(early.kind(), ErrorKind::FailedPrecondition);
    // No budget is too long.
    let long = CalibrateOptions { budget: Duration::MAX, ..QUICK };
    let mut calibrating = devices.calibrating(0, &long).unwrap();
    let error = calibrating.pass(&mut |_| ControlFlow::Break(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let mut calibrating = devices.calibrating(0, &QUICK).unwrap();
    let mut done = Vec::new();
    for _ in 0..=Calibrating::PASSES {
        assert!(devices.calibration(0, 2).is_none(), "nothing counts before the end");
        let mut last = 0;
        calibrating
            .pass(&mut |progress| {
                assert!(progress.done < progress.of, "{progress:?}");
                last = progress.done;
                ControlFlow::Continue(())
            })
            .unwrap();
        done.push(last);
    }
    // Without a budget only the first pass measures.
    assert!(done[0] > 0 && done[1..].iter().all(|&last| last == 0), "{done:?}");
    // What is broken off takes nothing away, and one more than usual is not beyond the end.
    let whole = calibrating.samples.clone();
    calibrating.left = Duration::MAX;
    let mut probes = 0;
    let mut report = |progress: &Progress| {
        assert!(progress.done < progress.of, "{progress:?}");
        probes += 1;
        if probes < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    assert_eq!(calibrating.pass(&mut report).unwrap_err().kind(), ErrorKind::Cancelled);
    let times =
        |samples: &Samples| samples.values().map(|timed| timed.times.clone()).collect::<Vec<_>>();
    assert_eq!(times(&calibrating.samples), times(&whole));
    let found = calibrating.finish().unwrap();
    assert_eq!(devices.calibration(0, 2), Some(found));
}

#[test]
fn a_session_calibrates_when_it_is_idle_and_stops_with_it() {
    let dir = Dir::new();
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(1.0), DType::F32, [4]);
    let options = SessionOptions { threads: 1, calibrate: true, ..SessionOptions::default() };
    let devices = dir.devices();
    let session = Session::with_options(&g, &devices, options.clone()).unwrap();
    // Nothing is measured before the first run.
    std::thread::sleep(Duration::from_millis(100));
    assert!(devices.calibration(0, 1).is_none());
    session.run(&[], g.initializers()).unwrap();
    let more = v.assign_add(1.0);
    for _ in 0..20 {
        session.run(&[], &more.operation()).unwrap();
    }
    assert_eq!(session.run(&[], v.value()).unwrap().to_vec::<f32>().unwrap(), [21.0; 4]);
    // Dropped in the middle, it waits for one probe, not for all.
    let begun = Instant::now();
    drop(session);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn an_idle_session_calibrates_each_device_once() {
    let dir = Dir::new();
    let (devices, activity) = (dir.devices(), Arc::<Activity>::default());
    let background = Background::start(devices.clone(), QUICK, activity.clone()).unwrap();
    let wait = |until: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !until() && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(10));
        }
        until()
    };
    // A run that goes on keeps it waiting.
    let run = activity.begin();
    drop(activity.begin());
    std::thread::sleep(Duration::from_millis(100));
    assert!(dir.files().is_empty());
    drop(run);
    assert!(wait(&|| devices.calibration(0, 2).is_some()));
    drop(background);
    assert_eq!(dir.files().len(), 1);
}
