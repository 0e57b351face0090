//! `convoke bench --predict`: what each case is predicted to take beside what it takes.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use convoke::cases::Ready;
use convoke::{CalibrateOptions, Calibrating, DevicePolicy, Devices, Progress};
use indicatif::ProgressBar;

use super::{Options, median, micros, name_of, ready_on, turn, warm_up};
use crate::command::{Failure, devices};

/// How many rounds there are, in each of which it is a case's turn if it has time for so many; and how many turns each has at
/// least.
const ROUNDS: u32 = 8;
const TURNS_LEAST: u32 = 3;

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
    /// How many turns it has.
    turns: u32,
    /// Of each turn.
    medians: Vec<Duration>,
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
        let begun = Instant::now();
        turn(&case, Duration::ZERO)?;
        let turns = turns(options.seconds, begun.elapsed());
        all.push(Timed { case, turns, medians: Vec::new(), least: Duration::MAX });
        bar.inc(1);
    }
    for round in 0..ROUNDS {
        if let Some(calibrating) = &mut calibrating {
            calibrating.pass(&mut |progress: &Progress| {
                bar.set_message(format!("calibrating {}", progress.what));
                ControlFlow::Continue(())
            })?;
        }
        for (timed, &name) in all.iter_mut().zip(names) {
            bar.set_message(name.to_owned());
            if has_turn(round, timed.turns) {
                timed.turn(options.seconds / ROUNDS)?;
            }
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
    // Each round has a pass, however long that takes.
    let options = CalibrateOptions { budget: Duration::MAX, ..CalibrateOptions::default() };
    Ok(devices.calibrating(devices.index_of(name)?, &options)?)
}

/// How many turns there are in all of a case's time, of which one takes at least so long.
fn turns(all: Duration, least: Duration) -> u32 {
    let fit = all.as_nanos() / least.as_nanos().max(1);
    u32::try_from(fit).unwrap_or(u32::MAX).clamp(TURNS_LEAST, ROUNDS)
}

/// Whether a case that has so many turns, as far apart as can be, has one in this round.
fn has_turn(round: u32, turns: u32) -> bool {
    (round + 1) * turns / ROUNDS > round * turns / ROUNDS
}

impl Timed {
    /// Runs for so long.
    fn turn(&mut self, long: Duration) -> Result<(), Failure> {
        let (mut times, _) = turn(&self.case, long)?;
        self.medians.push(median(&mut times));
        self.least = self.least.min(times[0]);
        Ok(())
    }

    fn row(self, name: &str, policy: &DevicePolicy) -> Result<Predicted, Failure> {
        Ok(Predicted {
            case: name.to_owned(),
            device: name_of(policy).to_owned(),
            predicted: self.case.explain()?.predicted(),
            usual: Calibrating::usual(&self.medians),
            least: self.least,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_spread_over_the_rounds() {
        let seconds = Duration::from_secs;
        assert_eq!(turns(seconds(10), seconds(2)), 5);
        assert_eq!([turns(seconds(1), seconds(9)), turns(seconds(9), Duration::ZERO)], [3, 8]);
        for (n, rounds) in [(3, vec![2, 5, 7]), (5, vec![1, 3, 4, 6, 7]), (8, (0..8).collect())] {
            let found: Vec<u32> = (0..ROUNDS).filter(|&round| has_turn(round, n)).collect();
            assert_eq!(found, rounds);
        }
    }
}
