//! `convoke bench`: the standard cases, timed.

mod predict;
mod versus;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use convoke::cases::{Case, NAMES, Ready};
use convoke::{DevicePolicy, Devices, RunMetadata, RunOptions, SessionOptions, Trace};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Failure, devices, write_file};

/// Runs of each case in a trace.
const TRACED: usize = 3;

#[derive(Args)]
pub(super) struct Options {
    /// Cases, by name or first letter: A,D64,E. J is from process start to the first result of D64.
    #[arg(long, value_delimiter = ',', default_value = "A,B256,B512,B1024,C,D,E,F,G,H,I,J,K,L,M")]
    case: Vec<String>,
    /// auto, cpu, gpu, GPU:0, part of an adapter's or driver's name, or auto:NAME for it and the CPU.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Seconds for each case, at least.
    #[arg(long, default_value = "1", value_parser = parse_seconds)]
    seconds: Duration,
    /// Show what each case is predicted to take beside what it takes: all cases in turns, and of each the mean of its
    /// turns' medians but for the slowest quarter. `convoke explain --measure` shows each kernel.
    #[arg(long, conflicts_with = "trace")]
    predict: bool,
    /// With --predict: calibrate the device anew meanwhile, a pass before each turn, so that what slows the machine
    /// down for a minute is in both. What was measured is kept, as by `convoke calibrate`.
    #[arg(long, requires = "predict", conflicts_with = "autotune")]
    calibrate: bool,
    /// Time automatic placement beside the CPU alone and the GPU of --device alone, in short turns, of which the clearly
    /// slower device has five. The ratio is the median of all rounds.
    #[arg(long, conflicts_with_all = ["predict", "trace"])]
    versus: bool,
    /// Let sessions learn from their own runs before they are timed: `SessionOptions::autotune`.
    #[arg(long)]
    autotune: bool,
    /// Print one JSON array.
    #[arg(long)]
    json: bool,
    /// Write a few runs of each case as a trace for Perfetto or chrome://tracing. They come after those that are
    /// timed; J has none.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Run D64 once and exit: what J times.
    #[arg(long, hide = true)]
    first: bool,
}

/// One line of the table.
struct Timing {
    case: String,
    device: String,
    median: Duration,
    least: Duration,
    /// The median time of the host outside of kernels.
    overhead: Duration,
    runs: usize,
    /// The first run, which plans and prepares.
    first: RunMetadata,
    last: RunMetadata,
    /// What a run is predicted to take.
    predicted: Duration,
    /// How many of the runs found their plan and program.
    cached: usize,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    if options.first {
        ready("D64", &options.device, options)?.0.run()?;
        return Ok(());
    }
    let mut names: Vec<&str> = Vec::new();
    for wanted in &options.case {
        let wanted = wanted.to_uppercase();
        let all = NAMES.iter().copied().chain(["J"]);
        let found: Vec<&str> =
            all.filter(|name| name.to_uppercase().starts_with(&wanted)).collect();
        if found.is_empty() {
            super::usage(format!("no case {wanted:?}; there are {} and J", NAMES.join(", ")));
        }
        names.extend(found);
    }
    if options.versus || options.predict {
        // J is a process, whose start is no matter of placement.
        names.retain(|name| *name != "J");
    }
    let bar =
        if options.json { ProgressBar::hidden() } else { ProgressBar::new(names.len() as u64) };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    if options.versus {
        let rows = versus::time_all(&names, options, &bar)?;
        return show(&rows, options, &bar, versus::json, versus::print);
    }
    if options.predict {
        let rows = predict::time(&names, options, &bar)?;
        return show(&rows, options, &bar, predict::json, predict::print);
    }
    let mut timings = Vec::new();
    let mut trace = Trace::new();
    for name in names {
        bar.set_message(name.to_owned());
        let timing = match name {
            "J" => time_start(options)?,
            _ => time(name, options, &mut trace)?,
        };
        timings.push(timing);
        bar.inc(1);
    }
    if let Some(path) = &options.trace {
        write_file(path, &trace.to_json())?;
    }
    show(&timings, options, &bar, json, print)
}

/// Prints a table, or all as one JSON array.
fn show<T>(
    rows: &[T],
    options: &Options,
    bar: &ProgressBar,
    json: impl Fn(&T) -> serde_json::Value,
    print: impl Fn(&[T]),
) -> Result<(), Failure> {
    bar.finish_and_clear();
    if options.json {
        let rows: Vec<serde_json::Value> = rows.iter().map(json).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(rows);
    }
    Ok(())
}

/// At most a day.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 =
        text.parse().map_err(|_| format!("expected a number of seconds, got {text:?}"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time <= Duration::from_secs(86_400) => Ok(time),
        _ => Err(format!("expected 0 to 86400 seconds, got {seconds}")),
    }
}

/// The case, and the name of the device that it prefers.
fn ready(name: &str, device: &str, options: &Options) -> Result<(Ready, String), Failure> {
    let (devices, policy) = devices::choose(device)?;
    let device = name_of(&policy).to_owned();
    Ok((ready_on(name, &devices, policy, options)?, device))
}

fn name_of(policy: &DevicePolicy) -> &str {
    match policy {
        DevicePolicy::Prefer(name) => name,
        DevicePolicy::Auto => "auto",
    }
}

fn ready_on(
    name: &str,
    devices: &Devices,
    policy: DevicePolicy,
    options: &Options,
) -> Result<Ready, Failure> {
    let autotune = options.autotune;
    let options = SessionOptions { policy, autotune, ..SessionOptions::default() };
    Ok(Case::new(name)?.ready(devices, options)?)
}

/// Runs the case until everything is compiled, pools are full and the session has learned what it wants to. Gives
/// the first run.
fn warm_up(case: &Ready, options: &Options) -> Result<RunMetadata, Failure> {
    let (_, first) = case.run()?;
    let mut calm = 0;
    // A session that learns has two runs that are not timed after each that compiled.
    while calm < if options.autotune { 3 } else { 1 } {
        let (_, run) = case.run()?;
        calm = if run.tunes || !run.program_cached { 0 } else { calm + 1 };
    }
    Ok(first)
}

/// Runs the case for so long, three times at least. The first run of a turn finds the caches as another case left them, and
/// does not count. Gives the times and the last run.
fn turn(case: &Ready, long: Duration) -> Result<(Vec<Duration>, RunMetadata), Failure> {
    let (_, mut last) = case.run()?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || start.elapsed() < long {
        let begun = Instant::now();
        (_, last) = case.run()?;
        times.push(begun.elapsed());
    }
    Ok((times, last))
}

fn time(name: &str, options: &Options, trace: &mut Trace) -> Result<Timing, Failure> {
    let (case, device) = ready(name, &options.device, options)?;
    let first = warm_up(&case, options)?;
    let mut last = first.clone();
    let (mut times, mut overheads, mut cached) = (Vec::new(), Vec::new(), 0);
    let start = Instant::now();
    while times.len() < 5 || start.elapsed() < options.seconds {
        let begun = Instant::now();
        (_, last) = case.run()?;
        times.push(begun.elapsed());
        overheads.push(last.overhead());
        cached += usize::from(last.plan_cached && last.program_cached);
    }
    if options.trace.is_some() {
        let timed = RunOptions::timed();
        for run in 1..=TRACED {
            trace.add(&format!("{name}, run {run}"), &case.run_with(timed.clone())?.1);
        }
    }
    let overhead = median(&mut overheads);
    let predicted = case.explain()?.predicted();
    Ok(Timing { overhead, first, predicted, cached, ..summary(name, &device, times, last) })
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// From process start to the first result.
fn time_start(options: &Options) -> Result<Timing, Failure> {
    let program = std::env::current_exe()?;
    let (_, device) = ready("D64", &options.device, options)?;
    let mut times = Vec::new();
    for _ in 0..7 {
        let begun = Instant::now();
        let mut child = std::process::Command::new(&program);
        let status = child.args(["bench", "--first", "--device", &options.device]).status()?;
        times.push(begun.elapsed());
        if !status.success() {
            return Err("the process that J times has failed".into());
        }
    }
    Ok(summary("J", &device, times, RunMetadata::default()))
}

fn summary(name: &str, device: &str, mut times: Vec<Duration>, last: RunMetadata) -> Timing {
    Timing {
        case: name.to_owned(),
        device: device.to_owned(),
        median: median(&mut times),
        overhead: Duration::ZERO,
        least: times[0],
        runs: times.len(),
        first: RunMetadata::default(),
        last,
        predicted: Duration::ZERO,
        cached: 0,
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn print(timings: &[Timing]) {
    println!(
        "{:9} {:8} {:>12} {:>12} {:>6} {:>10} {:>8} {:>11} {:>9} {:>10} {:>9} {:>11} {:>11} {:>8} {:>9} {:>6} {:>7}",
        "case",
        "device",
        "median us",
        "least us",
        "runs",
        "dispatches",
        "barriers",
        "submissions",
        "transfers",
        "kernel KiB",
        "peak KiB",
        "overhead us",
        "graph nodes",
        "plan ms",
        "pipelines",
        "found",
        "cached",
    );
    for t in timings {
        println!(
            "{:9} {:8} {:>12.1} {:>12.1} {:>6} {:>10} {:>8} {:>11} {:>9} {:>10} {:>9} {:>11.1} {:>11} {:>8.2} {:>9} {:>6} {:>7}",
            t.case,
            t.device,
            micros(t.median),
            micros(t.least),
            t.runs,
            t.last.dispatches,
            t.last.barriers,
            t.last.submissions,
            t.last.uploads + t.last.downloads,
            t.last.kernel_bytes.div_ceil(1024),
            (t.last.host_bytes + t.last.device_bytes).div_ceil(1024),
            micros(t.overhead),
            t.first.graph_nodes,
            micros(t.first.planning) / 1e3,
            t.first.pipelines_built,
            t.first.pipelines_found,
            t.cached,
        );
    }
}

fn json(t: &Timing) -> serde_json::Value {
    serde_json::json!({
        "case": t.case,
        "device": t.device,
        "median_us": micros(t.median),
        "min_us": micros(t.least),
        "predicted_us": micros(t.predicted),
        "runs": t.runs,
        "dispatches": t.last.dispatches,
        "barriers": t.last.barriers,
        "submissions": t.last.submissions,
        "transfers": t.last.uploads + t.last.downloads,
        "kernel_bytes": t.last.kernel_bytes,
        "planned_bytes": t.last.planned_bytes,
        "live_bytes": t.last.live_bytes,
        "peak_bytes": t.last.host_bytes + t.last.device_bytes,
        "overhead_us": micros(t.overhead),
        "graph_nodes": t.first.graph_nodes,
        "planning_us": micros(t.first.planning),
        "preparing_us": micros(t.first.preparing),
        "pipelines_built": t.first.pipelines_built,
        "pipelines_found": t.first.pipelines_found,
        "runs_cached": t.cached,
    })
}
