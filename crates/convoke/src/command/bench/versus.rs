//! `convoke bench --versus`: automatic placement beside each device alone.

use std::time::{Duration, Instant};

use convoke::cases::Ready;
use indicatif::ProgressBar;

use super::{Options, median, micros, ready, warm_up};
use crate::command::Failure;

/// How often it is each placement's turn.
const ROUNDS: u32 = 5;

/// What a case takes by each placement.
pub(super) struct Versus {
    case: String,
    cpu: Duration,
    gpu: Duration,
    auto: Duration,
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

/// Runs the case by each placement in turns, so that what disturbs the machine disturbs all. The first run of a turn
/// finds the caches as another left them, and does not count.
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
    let mut times: [Vec<Duration>; 3] = Default::default();
    let (mut submissions, mut cpu) = (0, Duration::ZERO);
    for _ in 0..ROUNDS {
        for (case, times) in all.iter().zip(&mut times) {
            (_, _) = case.run()?;
            let turn = Instant::now();
            loop {
                let begun = Instant::now();
                let (_, run) = case.run()?;
                times.push(begun.elapsed());
                (submissions, cpu) = (run.submissions, run.cpu);
                if turn.elapsed().as_secs_f64() * f64::from(ROUNDS) >= options.seconds {
                    break;
                }
            }
        }
    }
    let place = match (submissions, cpu.is_zero()) {
        (0, _) => "CPU",
        (_, true) => "GPU",
        (_, false) => "both",
    };
    let [cpu, gpu, auto] = times.each_mut().map(|times| median(times));
    Ok(Versus { case: name.to_owned(), cpu, gpu, auto, place })
}

impl Versus {
    /// How many times as long as the faster device automatic placement takes.
    fn ratio(&self) -> f64 {
        self.auto.as_secs_f64() / self.cpu.min(self.gpu).as_secs_f64()
    }
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
            row.ratio(),
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
        "ratio": row.ratio(),
        "on": row.place,
    })
}
