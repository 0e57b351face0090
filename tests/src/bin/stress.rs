//! Many threads on one session of a device, at length: `cargo run --release -p convoke-tests --bin stress`.
//!
//! Exit codes: 0 all was right, 1 something was not, 2 wrong usage.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use convoke_tests::{Stress, device};
use indicatif::{ProgressBar, ProgressStyle};

/// Many threads run one session: different feeds, variables, a queue, a loop, and runs that are cancelled.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Options {
    /// Threads.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Runs of each thread.
    #[arg(long, default_value_t = 10_000)]
    runs: u32,
    /// Runs that are cancelled at random moments: so many beside others, and so many alone, between two digests.
    #[arg(long, default_value_t = 1000)]
    cancels: u32,
    /// CPU, or a part of an adapter's name.
    #[arg(long, default_value = "CPU")]
    device: String,
    /// Seconds without progress that are an error.
    #[arg(long, default_value_t = 60)]
    patience: u32,
    /// The seed of what is drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let stress = Stress {
        threads: options.threads.into(),
        runs: options.runs as usize,
        cancels: options.cancels as usize,
        patience: Duration::from_secs(options.patience.into()),
        seed: options.seed,
    };
    let bar = ProgressBar::new(stress.n_runs());
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} runs, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let figures = device(&options.device)
        .and_then(|device| stress.run(&device, |done| bar.set_position(done)));
    bar.finish_and_clear();
    match figures {
        Ok(figures) => {
            println!("{}, {} threads: no wrong bit; {figures}", options.device, stress.threads);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("stress: {error}");
            ExitCode::FAILURE
        }
    }
}
