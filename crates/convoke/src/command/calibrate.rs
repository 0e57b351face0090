//! `convoke calibrate`: measures how fast devices are, and keeps it for every later session.

use std::ops::ControlFlow;
use std::time::Instant;

use clap::Args;
use convoke::{
    CalibrateOptions, Calibration, Curve, DevicePolicy, Devices, Family, Link, ModelKind, Progress,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Failure, devices};

#[derive(Args)]
pub(super) struct Options {
    /// all (the CPU and every hardware GPU), cpu, gpu, GPU:0, or part of an adapter's or driver's name.
    #[arg(long, default_value = "all")]
    device: String,
    /// Measure nothing: show what is kept.
    #[arg(long)]
    show: bool,
    /// Print one JSON array.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let (devices, chosen) = choose(&options.device)?;
    let mut found = Vec::new();
    for index in chosen {
        let calibration = match options.show {
            true => devices.calibration(index, 0),
            false => Some(measure(&devices, index, options.json)?),
        };
        let name = &devices.list()[index];
        match calibration {
            Some(calibration) if options.json => found.push(calibration.to_json()),
            Some(calibration) => println!("{name}\n{}", table(&calibration)),
            None if options.json => {}
            None => println!("{name}\n  not calibrated: placement uses default speeds"),
        }
    }
    if options.json {
        let all = found.iter().map(|text| serde_json::from_str(text));
        let all: Vec<serde_json::Value> = all.collect::<Result<_, _>>()?;
        println!("{}", serde_json::to_string_pretty(&all)?);
    }
    Ok(())
}

fn choose(name: &str) -> Result<(Devices, Vec<usize>), Failure> {
    if name.eq_ignore_ascii_case("all") {
        let devices = Devices::open()?;
        let all = (0..devices.list().len()).collect();
        return Ok((devices, all));
    }
    let (devices, policy) = devices::choose(name)?;
    let index = match &policy {
        DevicePolicy::Prefer(name) => devices.index_of(name)?,
        DevicePolicy::Auto => {
            super::usage("a device is calibrated by itself: use all, or name one")
        }
    };
    Ok((devices, vec![index]))
}

fn measure(
    devices: &Devices,
    index: usize,
    quiet: bool,
) -> Result<std::sync::Arc<Calibration>, Failure> {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let begun = Instant::now();
    let name = devices.list()[index].name.clone();
    let mut report = |progress: &Progress| {
        bar.set_length(progress.of as u64);
        bar.set_position(progress.done as u64);
        bar.set_message(format!("{name} {}", progress.what));
        ControlFlow::Continue(())
    };
    let calibration = devices.calibrate(index, &CalibrateOptions::default(), &mut report)?;
    bar.finish_and_clear();
    if !quiet {
        println!("{name} measured in {:.1} s", begun.elapsed().as_secs_f64());
    }
    Ok(calibration)
}

/// What was measured, a line each.
fn table(calibration: &Calibration) -> String {
    let model = &calibration.model;
    let micros = |time: u64| format!("{:.1} us", time as f64 / 1e6);
    let mut lines = vec![("a kernel".to_owned(), micros(model.launch))];
    if model.kind == ModelKind::Cpu {
        lines.push(("a run on the host".to_owned(), micros(model.run)));
    } else {
        lines.push(("a submission".to_owned(), micros(model.submission)));
        lines.push(("upload".to_owned(), link(&calibration.upload)));
        lines.push(("download".to_owned(), link(&calibration.download)));
    }
    lines.push(("memory".to_owned(), curve(&model.memory, "B")));
    for family in Family::ALL.into_iter().filter(|&family| family != Family::Other) {
        lines.push((family.name().to_owned(), curve(model.arithmetic.of(family), "op")));
    }
    let line = |(what, text): &(String, String)| format!("  {what:18} {text}");
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn link(link: &Link) -> String {
    let rate = scaled(link.bytes_per_second as f64, "B/s");
    format!("{:.1} us and {rate}", link.latency as f64 / 1e6)
}

/// The rate of the smallest amount, of the fastest, and of the largest.
fn curve(curve: &Curve, unit: &str) -> String {
    let rate = |&(amount, time): &(u64, u64)| amount as f64 * 1e12 / time.max(1) as f64;
    let show = |point: &(u64, u64)| {
        let rate = scaled(rate(point), &format!("{unit}/s"));
        format!("{rate} at {}", scaled(point.0 as f64, unit))
    };
    let points = curve.points();
    let fastest = points.iter().max_by(|a, b| rate(a).total_cmp(&rate(b)));
    let mut shown: Vec<String> = Vec::new();
    for point in [points.first(), fastest, points.last()].into_iter().flatten() {
        let text = show(point);
        if shown.last() != Some(&text) {
            shown.push(text);
        }
    }
    shown.join(", ")
}

/// Three digits and a prefix.
fn scaled(number: f64, unit: &str) -> String {
    let prefixes = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (size, prefix) =
        prefixes.into_iter().find(|(size, _)| number >= *size).unwrap_or((1.0, ""));
    format!("{:.3} {prefix}{unit}", number / size)
}
