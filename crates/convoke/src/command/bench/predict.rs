//! `convoke bench --predict`: what each case is predicted to take beside what it takes.

use std::time::{Duration, Instant};

use convoke::cases::Ready;
use indicatif::ProgressBar;

use super::{Options, median, micros, ready, warm_up};
use crate::command::Failure;

/// How often it is each case's turn.
const ROUNDS: u32 = 3;

/// What a case is predicted to take, and takes.
pub(super) struct Predicted {
    case: String,
    device: String,
    predicted: Duration,
    /// The median of the turn in which it took least.
    median: Duration,
    least: Duration,
}

/// A case between its turns.
struct Timed {
    case: Ready,
    row: Predicted,
}

/// Runs cases in turns. What slows a machine down for some seconds is in some of the turns of each case; a calibration
/// takes probes in turns as well, and the best of them. The first run of a turn finds the caches as another case left them,
/// and does not count.
pub(super) fn time(
    names: &[&str],
    options: &Options,
    bar: &ProgressBar,
) -> Result<Vec<Predicted>, Failure> {
    let mut all = Vec::new();
    bar.set_length(u64::from(ROUNDS + 1) * names.len() as u64);
    for &name in names {
        bar.set_message(name.to_owned());
        let (case, device) = ready(name, &options.device, options)?;
        warm_up(&case, options)?;
        let (predicted, case_name) = (case.explain()?.predicted(), name.to_owned());
        let (median, least) = (Duration::MAX, Duration::MAX);
        let row = Predicted { case: case_name, device, predicted, median, least };
        all.push(Timed { case, row });
        bar.inc(1);
    }
    for _ in 0..ROUNDS {
        for timed in &mut all {
            bar.set_message(timed.row.case.clone());
            timed.turn(options.seconds / f64::from(ROUNDS))?;
            bar.inc(1);
        }
    }
    Ok(all.into_iter().map(|timed| timed.row).collect())
}

impl Timed {
    /// Runs for so many seconds, at least three times.
    fn turn(&mut self, seconds: f64) -> Result<(), Failure> {
        self.case.run()?;
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.len() < 3 || start.elapsed().as_secs_f64() < seconds {
            let begun = Instant::now();
            self.case.run()?;
            times.push(begun.elapsed());
        }
        let row = &mut self.row;
        row.median = row.median.min(median(&mut times));
        row.least = row.least.min(times[0]);
        Ok(())
    }
}

impl Predicted {
    /// How many times as long as measured a run is predicted to take.
    fn ratio(&self) -> f64 {
        self.predicted.as_secs_f64() / self.median.as_secs_f64()
    }
}

pub(super) fn print(rows: &[Predicted]) {
    println!(
        "{:9} {:8} {:>12} {:>12} {:>12} {:>7}",
        "case", "device", "predicted us", "median us", "least us", "ratio",
    );
    for row in rows {
        println!(
            "{:9} {:8} {:>12.1} {:>12.1} {:>12.1} {:>7.2}",
            row.case,
            row.device,
            micros(row.predicted),
            micros(row.median),
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
        "median_us": micros(row.median),
        "min_us": micros(row.least),
        "ratio": row.ratio(),
    })
}
