//! The standard bench cases on Convoke and on its peers, one after the other in one run: Burn (its CPU backend
//! `flex`, and wgpu with Vulkan), ONNX Runtime and a session of TensorFlow 1.
//!
//! Every peer gets the same inputs and weights from the host, in the layout that it works best with, and gives its
//! result back to the host. What it gives is compared with Convoke's on the CPU; a `!` marks a peer that is wrong,
//! whose time is no bar. ONNX Runtime does not train.
#![expect(clippy::print_stdout, reason = "a command prints")]

mod burn_peer;
mod data;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use convoke::cases::{Case, NAMES, Ready};
use convoke::{DevicePolicy, Devices, SessionOptions};

use data::Data;

type Failure = Box<dyn std::error::Error>;

/// Times the standard cases on Convoke and its peers, and prints one table of ratios.
#[derive(Parser)]
struct Options {
    /// Cases, by name.
    #[arg(long, value_delimiter = ',', default_values = NAMES)]
    case: Vec<String>,
    /// `cpu`, or part of the name of a Vulkan adapter's driver; Burn uses the first one that it finds.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Seconds for each case and peer, at least.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// A Python with onnxruntime, onnx, tensorflow-cpu and safetensors; left out, they are.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Puts the table into this file, between the lines `<!-- peers on DEVICE -->` and `<!-- end of DEVICE -->`.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// What a peer did with a case.
struct Outcome {
    peer: &'static str,
    median: Duration,
    is_right: bool,
}

/// How much a result may differ, relative to the greater of it and 1.
const TOLERANCE: f32 = 2e-3;

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let mut rows = Vec::new();
    for name in &options.case {
        let outcomes = row(name, &options)?;
        tell(name, &outcomes);
        rows.push((name.clone(), outcomes));
    }
    let table = table::table(&rows, &options.device, options.seconds)?;
    println!("{table}");
    match &options.write {
        Some(path) => table::write(path, &options.device, &table),
        None => Ok(()),
    }
}

/// Runs `f` for some seconds, after two runs that compile and fill pools, and gives the median time and the
/// second result, which is right only if the first training step was.
fn time<T>(
    seconds: f64,
    mut f: impl FnMut() -> Result<T, Failure>,
) -> Result<(Duration, T), Failure> {
    f()?;
    let second = f()?;
    let (mut times, start) = (Vec::new(), Instant::now());
    while times.len() < 5 || start.elapsed().as_secs_f64() < seconds {
        let begun = Instant::now();
        f()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok((times[times.len() / 2], second))
}

fn ready(name: &str, device: &str) -> Result<Ready, Failure> {
    let (devices, policy) = match device {
        "cpu" => (Devices::cpu(), "CPU:0"),
        name => (Devices::named(name)?, "GPU:0"),
    };
    let policy = DevicePolicy::Prefer(policy.into());
    let options = SessionOptions { policy, ..SessionOptions::default() };
    Ok(Case::new(name)?.ready(&devices, options)?)
}

fn row(name: &str, options: &Options) -> Result<Vec<Outcome>, Failure> {
    let truth = ready(name, "cpu")?;
    let data = Data::of(&truth)?;
    truth.run()?;
    let expected = truth.run()?.0.to_vec::<f32>()?;
    drop(truth);
    let outcome = |peer, (median, found): (Duration, Vec<f32>)| {
        let is_right = is_right(&found, &expected);
        Outcome { peer, median, is_right }
    };
    let own = ready(name, &options.device)?;
    let (median, found) = time(options.seconds, || Ok(own.run()?.0))?;
    let mut all = vec![outcome("convoke", (median, found.to_vec()?))];
    drop(own);
    let (peer, found) = match options.device.as_str() {
        "cpu" => ("Burn flex", burn_peer::on_cpu(name, &data, options.seconds)?),
        _ => ("Burn wgpu", burn_peer::on_vulkan(name, &data, options.seconds)?),
    };
    all.extend(found.map(|found| outcome(peer, found)));
    if let (Some(python), "cpu") = (&options.python, options.device.as_str()) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers/data");
        std::fs::create_dir_all(&dir)?;
        data.save(&dir)?;
        for (peer, key) in [("ONNX Runtime", "ort"), ("TF session", "tf")] {
            match in_python(python, &dir, name, key, options.seconds) {
                Ok(found) => all.extend(found.map(|found| outcome(peer, found))),
                Err(error) => eprintln!("left out: {error}"),
            }
        }
    }
    Ok(all)
}

/// What the script says; nothing if the peer does not have the case.
fn in_python(
    python: &Path,
    dir: &Path,
    name: &str,
    peer: &str,
    seconds: f64,
) -> Result<Option<(Duration, Vec<f32>)>, Failure> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers.py");
    let output = Command::new(python)
        .args([script.as_os_str(), dir.as_os_str()])
        .args([name, peer, &seconds.to_string()])
        .env("TF_CPP_MIN_LOG_LEVEL", "3")
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{peer} failed on {name}: {said}").into());
    }
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let Some(micros) = said["median_us"].as_f64() else { return Ok(None) };
    let result = data::read(&dir.join("result.safetensors"))?;
    let found = result.get("result").map(|(_, xs)| xs.clone()).unwrap_or_default();
    Ok(Some((Duration::from_secs_f64(micros / 1e6), found)))
}

fn is_right(found: &[f32], expected: &[f32]) -> bool {
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= TOLERANCE * b.abs().max(1.0);
    found.len() == expected.len() && found.iter().zip(expected).all(near)
}

/// Tells times in microseconds, and how many times as long as Convoke each peer takes, as they come.
fn tell(name: &str, outcomes: &[Outcome]) {
    let own = outcomes[0].median.as_secs_f64();
    for Outcome { peer, median, is_right } in outcomes {
        let mark = if *is_right { "" } else { " !" };
        let time = median.as_secs_f64();
        eprintln!("{name:9} {peer:12}{mark:2} {:12.1} us {:8.2}", time * 1e6, time / own);
    }
}
