//! `convoke train`: a classifier on real data, from the devices found to the checkpoint written.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use convoke::data::{self, Dataset, Images};
use convoke::models::{Classifier, OptimizerKind};
use convoke::{
    Devices, ModelSpec, RunMetadata, RunOptions, Session, SessionOptions, Timings, Trace,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Failure, ModelName, OptimizerName, devices, write_file};

/// Steps in a trace.
const TRACED: u64 = 50;

#[derive(Args)]
pub(super) struct Options {
    /// The network.
    #[arg(long, value_enum, default_value = "mlp")]
    model: ModelName,
    /// The optimizer.
    #[arg(long, value_enum, default_value = "adam")]
    optimizer: OptimizerName,
    /// The learning rate; by default 0.1 for sgd, 0.05 for momentum, 0.003 for adam.
    #[arg(long)]
    rate: Option<f64>,
    /// Times that all training images are seen; by default 30 for the digits and 5 for IDX files.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    epochs: Option<u32>,
    /// Images in a batch; by default 32 for the digits and 128 for IDX files.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: Option<u32>,
    /// Seed of the variables and of the order of images.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// auto, cpu, gpu, GPU:0, part of an adapter's or driver's name, or auto:NAME for it and the CPU. Software
    /// adapters are used only when named.
    #[arg(long, default_value = "auto")]
    device: String,
    /// digits, or fashion-mnist[=DIR] for IDX files, gzipped or not.
    #[arg(long, default_value = "digits")]
    data: String,
    /// Where to write what was learned; by default target/convoke-MODEL.safetensors.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint.
    #[arg(long)]
    resume: bool,
    /// Write the trained classifier as a frozen model, which takes `images` and gives `logits`.
    #[arg(long, value_name = "FILE")]
    save_model: Option<PathBuf>,
    /// Write the first 50 steps as a trace for Perfetto or chrome://tracing. They take longer, since GPUs then run
    /// kernels one by one.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print the result only.
    #[arg(long, short)]
    quiet: bool,
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    json: bool,
}

/// What training gave.
#[derive(Default)]
struct Outcome {
    losses: Vec<f32>,
    accuracy: f64,
    seconds: f64,
    totals: Totals,
    trace: Trace,
}

/// Sums over the training steps.
#[derive(Default)]
struct Totals {
    steps: u64,
    wall: Duration,
    cpu: Duration,
    gpu: Duration,
    gpu_wait: Duration,
    upload_bytes: u64,
    download_bytes: u64,
    uploads: u64,
    downloads: u64,
    dispatches: u64,
    submissions: u64,
    pipelines: u64,
    first_step: Duration,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let start = Instant::now();
    let shown = !options.quiet && !options.json;
    let (devices, policy) = devices::choose(&options.device)?;
    if shown {
        show_devices(&devices);
    }
    let data = load(&options.data)?;
    let optimizer = OptimizerKind::from(options.optimizer);
    let rate = options.rate.unwrap_or(optimizer.default_rate());
    let image = [data.height, data.width];
    let classifier =
        Classifier::new(options.model.into(), image, data.classes, optimizer, rate, options.seed);
    let session_options = SessionOptions { policy, ..SessionOptions::default() };
    let session = Session::with_options(&classifier.graph, &devices, session_options)?;
    let checkpoint = checkpoint_path(options);
    if options.resume {
        session.restore(&checkpoint)?;
    } else {
        session.run(&[], classifier.graph.initializers())?;
    }
    let outcome = train(options, &session, &classifier, &data, shown, start)?;
    if let Some(folder) = checkpoint.parent().filter(|_| options.checkpoint.is_none()) {
        std::fs::create_dir_all(folder)?;
    }
    session.save(&checkpoint)?;
    if let Some(path) = &options.save_model {
        let inputs = [("images", &classifier.images)];
        session.save_model(path, &ModelSpec::frozen(&inputs, &[("logits", &classifier.logits)]))?;
    }
    if let Some(path) = &options.trace {
        write_file(path, &outcome.trace.to_json())?;
    }
    if options.json {
        println!("{}", json(options, &devices, &data, &outcome, &checkpoint));
    } else {
        show_outcome(&devices, &data, &outcome, &checkpoint, options.quiet);
    }
    Ok(())
}

fn checkpoint_path(options: &Options) -> PathBuf {
    options.checkpoint.clone().unwrap_or_else(|| {
        let model = options.model.text();
        PathBuf::from(format!("target/convoke-{model}.safetensors"))
    })
}

fn load(name: &str) -> Result<Dataset, Failure> {
    match name.split_once('=').unwrap_or((name, data::DEFAULT_DIR)) {
        ("digits", _) => Ok(data::digits()?),
        ("fashion-mnist", dir) => Ok(data::idx(dir.as_ref())?),
        _ => super::usage(format!("unknown data {name:?}; expected digits or fashion-mnist[=DIR]")),
    }
}

fn show_devices(devices: &Devices) {
    println!("devices");
    for device in devices.list() {
        println!("  {device}");
    }
    if devices.list().len() == 1 {
        println!("  no usable GPU was found or asked for; training on the CPU");
    }
}

fn train(
    options: &Options,
    session: &Session,
    classifier: &Classifier,
    data: &Dataset,
    shown: bool,
    start: Instant,
) -> Result<Outcome, Failure> {
    let is_digits = data.train.len() < 10_000;
    let batch = options.batch.map_or(if is_digits { 32 } else { 128 }, |b| b as usize);
    let epochs = options.epochs.unwrap_or(if is_digits { 30 } else { 5 });
    let batches = data.train.len().div_ceil(batch);
    let bar = progress(shown, u64::from(epochs) * batches as u64);
    let mut outcome = Outcome::default();
    let mut pixels = vec![0.0f32; batch * data.train.row_len()];
    let mut labels = vec![0i32; batch];
    let begun = Instant::now();
    for epoch in 0..epochs {
        let order = shuffled(data.train.len(), options.seed, epoch);
        for rows in order.chunks(batch) {
            let (pixels, labels) = fill(&data.train, rows, &mut pixels, &mut labels)?;
            let feeds = [
                classifier.images.feed((pixels, [rows.len(), data.train.row_len()])),
                classifier.labels.feed(labels),
            ];
            if shown && outcome.totals.steps == 0 {
                let explained = session.explain(&feeds, (&classifier.loss, &classifier.step))?;
                bar.suspend(|| println!("placement\n{}", explained.summary()));
            }
            let fetch = (&classifier.loss, &classifier.step);
            let traced = options.trace.is_some() && outcome.totals.steps < TRACED;
            let timings = if traced { Timings::Nodes } else { Timings::Devices };
            let ((loss, ()), metadata) =
                session.run_with(&feeds, fetch, RunOptions { timings, ..RunOptions::default() })?;
            outcome.totals.add(&metadata, start);
            if traced {
                outcome.trace.add(&format!("step {}", outcome.totals.steps), &metadata);
            }
            let loss = loss.scalar::<f32>()?;
            if !loss.is_finite() {
                let step = outcome.totals.steps;
                return Err(format!("the loss is {loss} at step {step}; try a lower --rate").into());
            }
            outcome.losses.push(loss);
            bar.set_message(format!("{loss:.4}"));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    outcome.seconds = begun.elapsed().as_secs_f64();
    outcome.accuracy = test(session, classifier, &data.test)?;
    Ok(outcome)
}

fn progress(shown: bool, steps: u64) -> ProgressBar {
    if !shown {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps);
    let template = "{bar:30} {pos}/{len} steps  loss {msg}  {per_sec}  {eta} left";
    bar.set_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar
}

/// Writes a batch into the buffers, and gives the parts that it fills.
fn fill<'a>(
    images: &Images,
    rows: &[usize],
    pixels: &'a mut [f32],
    labels: &'a mut [i32],
) -> Result<(&'a [f32], &'a [i32]), Failure> {
    let (pixels, labels) =
        (&mut pixels[..rows.len() * images.row_len()], &mut labels[..rows.len()]);
    images.write_batch(rows, pixels, labels)?;
    Ok((pixels, labels))
}

/// The order of images in an epoch: Fisher and Yates, with Philox.
fn shuffled(n: usize, seed: u64, epoch: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let word = convoke::philox::philox(seed, [i as u32, epoch, 0, u32::MAX])[0];
        let j = ((u64::from(word) * (i as u64 + 1)) >> 32) as usize;
        order.swap(i, j);
    }
    order
}

/// The share of the held-out images that is classified right.
fn test(session: &Session, classifier: &Classifier, images: &Images) -> Result<f64, Failure> {
    const BATCH: usize = 500;
    let mut pixels = vec![0.0f32; BATCH * images.row_len()];
    let mut labels = vec![0i32; BATCH];
    let rows: Vec<usize> = (0..images.len()).collect();
    let mut correct = 0i64;
    for rows in rows.chunks(BATCH) {
        let (pixels, labels) = fill(images, rows, &mut pixels, &mut labels)?;
        let feeds = [
            classifier.images.feed((pixels, [rows.len(), images.row_len()])),
            classifier.labels.feed(labels),
        ];
        correct += i64::from(session.run(&feeds, &classifier.correct)?.scalar::<i32>()?);
    }
    Ok(correct as f64 / images.len().max(1) as f64)
}

impl Totals {
    fn add(&mut self, run: &RunMetadata, start: Instant) {
        if self.steps == 0 {
            self.first_step = start.elapsed();
        }
        self.steps += 1;
        self.wall += run.wall;
        self.cpu += run.cpu;
        self.gpu += run.gpu;
        self.gpu_wait += run.gpu_wait + run.copying;
        self.upload_bytes += run.upload_bytes;
        self.download_bytes += run.download_bytes;
        self.uploads += run.uploads;
        self.downloads += run.downloads;
        self.dispatches += run.dispatches;
        self.submissions += run.submissions;
        self.pipelines += run.pipelines_built;
    }

    fn host(&self) -> Duration {
        self.wall.saturating_sub(self.cpu + self.gpu_wait)
    }
}

fn show_outcome(
    devices: &Devices,
    data: &Dataset,
    outcome: &Outcome,
    checkpoint: &std::path::Path,
    quiet: bool,
) {
    let last = outcome.losses.last().copied().unwrap_or(f32::NAN);
    println!(
        "test accuracy {:.4} on {} held-out images of {}; last loss {last:.4}",
        outcome.accuracy,
        data.test.len(),
        data.name
    );
    if quiet {
        return;
    }
    let totals = &outcome.totals;
    println!(
        "time: {:.2} s for {} steps, {:.0} steps/s; first step done {:.1} ms after the start",
        outcome.seconds,
        totals.steps,
        totals.steps as f64 / outcome.seconds.max(1e-9),
        totals.first_step.as_secs_f64() * 1e3,
    );
    println!(
        "  CPU:0 kernels {:.3} s, host {:.3} s",
        totals.cpu.as_secs_f64(),
        totals.host().as_secs_f64()
    );
    if devices.list().len() > 1 {
        println!(
            "  GPU kernels {:.3} s, transfers and waiting {:.3} s, {} dispatches in {} submissions",
            totals.gpu.as_secs_f64(),
            totals.gpu_wait.saturating_sub(totals.gpu).as_secs_f64(),
            totals.dispatches,
            totals.submissions
        );
        println!(
            "  transfers: {} uploads of {} bytes, {} downloads of {} bytes",
            totals.uploads, totals.upload_bytes, totals.downloads, totals.download_bytes
        );
    }
    println!("checkpoint written to {}", checkpoint.display());
}

fn json(
    options: &Options,
    devices: &Devices,
    data: &Dataset,
    outcome: &Outcome,
    checkpoint: &std::path::Path,
) -> serde_json::Value {
    let totals = &outcome.totals;
    let devices: Vec<serde_json::Value> = devices.list().iter().map(devices::json).collect();
    serde_json::json!({
        "data": data.name,
        "seed": options.seed,
        "accuracy": outcome.accuracy,
        "losses": outcome.losses,
        "seconds": outcome.seconds,
        "first_step_seconds": totals.first_step.as_secs_f64(),
        "devices": devices,
        "transfers": {
            "uploads": totals.uploads,
            "upload_bytes": totals.upload_bytes,
            "downloads": totals.downloads,
            "download_bytes": totals.download_bytes,
        },
        "counters": {
            "steps": totals.steps,
            "dispatches": totals.dispatches,
            "submissions": totals.submissions,
            "pipelines_built": totals.pipelines,
        },
        "time": {
            "cpu_seconds": totals.cpu.as_secs_f64(),
            "gpu_seconds": totals.gpu.as_secs_f64(),
            "gpu_wait_seconds": totals.gpu_wait.as_secs_f64(),
            "host_seconds": totals.host().as_secs_f64(),
        },
        "checkpoint": checkpoint.display().to_string(),
    })
}
