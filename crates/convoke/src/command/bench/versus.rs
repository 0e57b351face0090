//! `convoke bench --versus`: automatic placement beside each device alone.

use std::time::{Duration, Instant};

use convoke::Calibrating;
use convoke::cases::Ready;
use indicatif::ProgressBar;

use super::{Options, median, micros, ready, turn, warm_up};
use crate::command::Failure;

/// How long a turn is.
const TURN: Duration = Duration::from_millis(20);
/// How often it is each placement's turn at least.
const ROUNDS_LEAST: usize = 5;

/// What a case takes by each placement.
pub(super) struct Versus {
    case: String,
    /// What it usually takes on the CPU, on the GPU, and placed automatically: of the medians of its turns.
    cpu: Duration,
    gpu: Duration,
    auto: Duration,
    /// How many times as long as on the faster device: the median of all rounds.
    ratio: f64,
    /// Submissions and host kernels' time of the automatic placement say where it went.
    place: &'static str,
}

/// Times each case.
pub(super) fn time_all(
    names: &[&str],
    options: &Options,
    bar: &ProgressBar,
) -> Result<Vec<Versus>, Failure> {
    let mut rows = Vec::with_capacity(names.len());
    for &name in names {
        bar.set_message(name.to_owned());
        rows.push(time(name, options)?);
        bar.inc(1);
    }
    Ok(rows)
}

/// Runs the case by each placement in short turns, and compares those of each round: what slows the machine down for a
/// while slows all of them down.
fn time(name: &str, options: &Options) -> Result<Versus, Failure> {
    let gpu = options.device.strip_prefix("auto:").unwrap_or(&options.device);
    if matches!(gpu, "cpu" | "auto") {
        return Err("--versus compares with a GPU; name one by --device, gpu or NAME".into());
    }
    let auto = if gpu == "gpu" { "auto".to_owned() } else { format!("auto:{gpu}") };
    let mut all: Vec<Ready> = Vec::new();
    for device in ["cpu", gpu, &auto] {
        let (case, _) = ready(name, device, options)?;
        warm_up(&case, options)?;
        all.push(case);
    }
    let mut rounds: Vec<Round> = Vec::new();
    let (mut submissions, mut cpu) = (0, Duration::ZERO);
    // The time of automatic placement's turns.
    let mut used = Duration::ZERO;
    let mut has_turn = [true; 3];
    while rounds.len() < ROUNDS_LEAST || used < options.seconds {
        let mut round = [None; 3];
        // None comes always after the same one, which leaves the caches as it does.
        let order =
            if rounds.len().is_multiple_of(2) { [CPU, AUTO, GPU] } else { [GPU, AUTO, CPU] };
        for place in order.into_iter().filter(|&place| has_turn[place]) {
            let begun = Instant::now();
            let (mut times, last) = turn(&all[place], TURN)?;
            round[place] = Some(median(&mut times));
            if place == AUTO {
                used += begun.elapsed();
                (submissions, cpu) = (last.submissions, last.cpu);
            }
        }
        rounds.push(round);
        if rounds.len() == ROUNDS_LEAST {
            has_turn = wanted(&rounds);
        }
    }
    let place = match (submissions, cpu.is_zero()) {
        (0, _) => "CPU",
        (_, true) => "GPU",
        (_, false) => "both",
    };
    let [cpu, gpu, auto] = [CPU, GPU, AUTO].map(|place| usual(&rounds, place));
    Ok(Versus { case: name.to_owned(), cpu, gpu, auto, ratio: ratio(&rounds), place })
}

/// What each placement took in its turn, if it had one.
type Round = [Option<Duration>; 3];

const CPU: usize = 0;
const GPU: usize = 1;
const AUTO: usize = 2;

fn usual(rounds: &[Round], place: usize) -> Duration {
    let times: Vec<Duration> = rounds.iter().filter_map(|round| round[place]).collect();
    Calibrating::usual(&times)
}

/// The device that takes less.
fn faster(rounds: &[Round]) -> usize {
    if usual(rounds, CPU) <= usual(rounds, GPU) { CPU } else { GPU }
}

/// Who has a turn in the next round: after the first ones no device that takes twice as long as the other.
fn wanted(rounds: &[Round]) -> [bool; 3] {
    let faster = faster(rounds);
    let is_close = |place: usize| usual(rounds, place) < 2 * usual(rounds, faster);
    [CPU, GPU, AUTO].map(|place| place == AUTO || is_close(place))
}

/// The median, over the rounds, of how many times as long as on the faster device automatic placement takes.
fn ratio(rounds: &[Round]) -> f64 {
    let faster = faster(rounds);
    let of_round = |round: &Round| Some(round[AUTO]?.as_secs_f64() / round[faster]?.as_secs_f64());
    let mut ratios: Vec<f64> = rounds.iter().filter_map(of_round).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or_default()
}

pub(super) fn print(rows: &[Versus]) {
    println!(
        "{:9} {:>12} {:>12} {:>12} {:>7} {:>5}",
        "case", "CPU us", "GPU us", "auto us", "ratio", "on"
    );
    for row in rows {
        println!(
            "{:9} {:>12.1} {:>12.1} {:>12.1} {:>7.3} {:>5}",
            row.case,
            micros(row.cpu),
            micros(row.gpu),
            micros(row.auto),
            row.ratio,
            row.place,
        );
    }
}

pub(super) fn json(row: &Versus) -> serde_json::Value {
    serde_json::json!({
        "case": row.case,
        "cpu_us": micros(row.cpu),
        "gpu_us": micros(row.gpu),
        "auto_us": micros(row.auto),
        "ratio": row.ratio,
        "on": row.place,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the CPU, the GPU and automatic placement, in microseconds; 0 is no turn.
    fn rounds(times: &[[u64; 3]]) -> Vec<Round> {
        let time = |micros| (micros > 0).then(|| Duration::from_micros(micros));
        times.iter().map(|round| round.map(time)).collect()
    }

    #[test]
    fn a_slow_minute_is_in_both_sides_of_a_ratio() {
        // On the CPU, which is twice as slow in two rounds of five; once it was the slower device.
        let all = rounds(&[[10, 30, 11], [20, 30, 22], [10, 30, 11], [40, 30, 44], [10, 0, 30]]);
        assert_eq!(faster(&all), CPU);
        assert!((ratio(&all) - 1.1).abs() < 1e-9, "{}", ratio(&all));
        assert!((ratio(&rounds(&[[30, 10, 12], [0, 20, 24]])) - 1.2).abs() < 1e-9);
    }

    #[test]
    fn a_device_that_is_clearly_slower_has_no_more_turns() {
        assert_eq!(wanted(&rounds(&[[10, 19, 9], [10, 19, 90]])), [true; 3]);
        assert_eq!(wanted(&rounds(&[[10, 20, 10]])), [true, false, true]);
        assert_eq!(wanted(&rounds(&[[20, 10, 10]])), [false, true, true]);
    }
}
