//! The command line: `train`, `devices`, `explain`, `calibrate`, `bench`.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

mod bench;
mod calibrate;
mod devices;
mod explain;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use convoke::models::{Model, OptimizerKind};

/// Session engine for tensor graphs: declare a graph, and run it on any GPU and on the CPU.
#[derive(Parser)]
#[command(name = "convoke", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a classifier on real data, and show where it ran and where the time went.
    Train(train::Options),
    /// List every device with its driver and the limits that matter.
    Devices(devices::Options),
    /// Show where each part of a model or standard case runs, and why.
    Explain(explain::Options),
    /// Measure how fast devices are, for better placement.
    Calibrate(calibrate::Options),
    /// Time the standard cases.
    Bench(bench::Options),
}

#[derive(Clone, Copy, ValueEnum)]
enum ModelName {
    /// Two dense layers.
    Mlp,
    /// Two convolutions with pooling, and two dense layers.
    Cnn,
}

impl ModelName {
    /// The name in file names.
    fn text(self) -> &'static str {
        match self {
            Self::Mlp => "mlp",
            Self::Cnn => "cnn",
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum OptimizerName {
    /// Stochastic gradient descent.
    Sgd,
    /// Gradient descent with momentum 0.9.
    Momentum,
    /// Adam.
    Adam,
}

impl From<ModelName> for Model {
    fn from(name: ModelName) -> Self {
        match name {
            ModelName::Mlp => Self::Mlp,
            ModelName::Cnn => Self::Cnn,
        }
    }
}

impl From<OptimizerName> for OptimizerKind {
    fn from(name: OptimizerName) -> Self {
        match name {
            OptimizerName::Sgd => Self::Sgd,
            OptimizerName::Momentum => Self::Momentum,
            OptimizerName::Adam => Self::Adam,
        }
    }
}

/// Any failure: its text is what the user sees.
type Failure = Box<dyn std::error::Error>;

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    // clap itself exits with 2 for wrong usage.
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    let result = match cli.command {
        Command::Train(options) => train::run(&options),
        Command::Devices(options) => devices::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::Calibrate(options) => calibrate::run(&options),
        Command::Bench(options) => bench::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes a whole file.
fn write_file(path: &std::path::Path, text: &str) -> Result<(), Failure> {
    let written = std::fs::write(path, text);
    written.map_err(|error| format!("can't write {}: {error}", path.display()).into())
}

/// Refuses what clap cannot: exits with 2.
fn usage(message: impl std::fmt::Display) -> ! {
    use clap::CommandFactory;
    Cli::command().error(clap::error::ErrorKind::ValueValidation, message).exit()
}
