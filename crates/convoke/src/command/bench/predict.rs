//! `convoke bench --predict`: what each case is predicted to take beside what it takes.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use convoke::cases::Ready;
use convoke::{CalibrateOptions, Calibrating, DevicePolicy, Devices, Progress};
use indicatif::ProgressBar;

use super::{Options, median, micros, ready_on, turn, warm_up};
use crate::command::{Failure, devices};

/// How often it is each case's turn, and how often at least if its time is up before.
const ROUNDS: u32 = 8;
const ROUNDS_LEAST: usize = 3;

/// What a case is predicted to take, and takes.
pub(super) struct Predicted {
    case: String,
    device: String,
    predicted: Duration,
    /// What it usually takes: of the medians of its turns.
    usual: Duration,
    least: Duration,
}

/// A case between its turns.
struct Timed {
    case: Ready,
    /// Of each turn.
    medians: Vec<Duration>,
    /// The time that its turns took.
    used: Duration,
    least: Duration,
}

/// Runs cases in turns, as a calibration does its probes: what slows a machine down for some seconds is in some of the
/// turns of each.
pub(super) fn time(
    names: &[&str],
    options: &Options,
    bar: &ProgressBar,
) -> Result<Vec<Predicted>, Failure> {
    let (devices, policy) = devices::choose(&options.device)?;
    let mut calibrating = match options.calibrate {
        true => Some(calibrating(&devices, &policy)?),
        false => None,
    };
    let mut all = Vec::new();
    bar.set_length(u64::from(ROUNDS + 1) * names.len() as u64);
    for &name in names {
        bar.set_message(name.to_owned());
        let case = ready_on(name, &devices, policy.clone(), options)?;
        warm_up(&case, options)?;
        let (used, least) = (Duration::ZERO, Duration::MAX);
        all.push(Timed { case, medians: Vec::new(), used, least });
        bar.inc(1);
    }
    for _ in 0..ROUNDS {
        if let Some(calibrating) = &mut calibrating {
            calibrating.pass(&mut |progress: &Progress| {
                bar.set_message(format!("calibrating {}", progress.what));
                ControlFlow::Continue(())
            })?;
        }
        for (timed, &name) in all.iter_mut().zip(names) {
            bar.set_message(name.to_owned());
            timed.turn(options.seconds)?;
            bar.inc(1);
        }
    }
    if let Some(calibrating) = calibrating {
        calibrating.finish()?;
        // Programs that are placed already keep their prices.
        for (timed, &name) in all.iter_mut().zip(names) {
            timed.case = ready_on(name, &devices, policy.clone(), options)?;
        }
    }
    all.into_iter().zip(names).map(|(timed, name)| timed.row(name, &policy)).collect()
}

fn calibrating(devices: &Devices, policy: &DevicePolicy) -> Result<Calibrating, Failure> {
    let DevicePolicy::Prefer(name) = policy else {
        crate::command::usage("--calibrate is for one device: name it by --device");
    };
    Ok(devices.calibrating(devices.index_of(name)?, &CalibrateOptions::default())?)
}

impl Timed {
    /// Runs for its part of all of its time; no more if that is used up.
    fn turn(&mut self, all: Duration) -> Result<(), Failure> {
        if self.medians.len() >= ROUNDS_LEAST && self.used >= all {
            return Ok(());
        }
        let begun = Instant::now();
        let (mut times, _) = turn(&self.case, all / ROUNDS)?;
        self.medians.push(median(&mut times));
        self.least = self.least.min(times[0]);
        self.used += begun.elapsed();
        Ok(())
    }

    fn row(self, name: &str, policy: &DevicePolicy) -> Result<Predicted, Failure> {
        let device = match policy {
            DevicePolicy::Prefer(name) => name,
            DevicePolicy::Auto => "auto",
        };
        let predicted = self.case.explain()?.predicted();
        let (usual, least) = (Calibrating::usual(&self.medians), self.least);
        Ok(Predicted { case: name.to_owned(), device: device.to_owned(), predicted, usual, least })
    }
}

impl Predicted {
    /// How many times as long as measured a run is predicted to take.
    fn ratio(&self) -> f64 {
        self.predicted.as_secs_f64() / self.usual.as_secs_f64()
    }
}

pub(super) fn print(rows: &[Predicted]) {
    println!(
        "{:9} {:8} {:>12} {:>12} {:>12} {:>7}",
        "case", "device", "predicted us", "usual us", "least us", "ratio",
    );
    for row in rows {
        println!(
            "{:9} {:8} {:>12.1} {:>12.1} {:>12.1} {:>7.2}",
            row.case,
            row.device,
            micros(row.predicted),
            micros(row.usual),
            micros(row.least),
            row.ratio(),
        );
    }
}

pub(super) fn json(row: &Predicted) -> serde_json::Value {
    serde_json::json!({
        "case": row.case,
        "device": row.device,
        "predicted_us": micros(row.predicted),
        "usual_us": micros(row.usual),
        "min_us": micros(row.least),
        "ratio": row.ratio(),
    })
}
