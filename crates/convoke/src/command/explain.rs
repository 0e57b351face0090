//! `convoke explain`: where each part of a model or of a standard case runs, and why.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use convoke::cases::{Case, NAMES, Ready};
use convoke::models::{Classifier, OptimizerKind};
use convoke::{Devices, Explanation, RunMetadata, RunOptions, Session, SessionOptions, Trace};

use super::{Failure, ModelName, OptimizerName, devices, write_file};

/// Runs before those that are measured: they compile, and fill pools.
const WARM_UP: usize = 2;
/// Runs that are measured: so many at least, and until this time has passed or there are enough.
const MEASURED: usize = 7;
const ENOUGH: usize = 200;
const MEASURING: Duration = Duration::from_millis(300);

#[derive(Args)]
pub(super) struct Options {
    /// The network.
    #[arg(long, value_enum, default_value = "mlp")]
    model: ModelName,
    /// The optimizer.
    #[arg(long, value_enum, default_value = "adam")]
    optimizer: OptimizerName,
    /// Images in a batch.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// A standard case instead of a network, by name: A, D64, E-adam, ...
    #[arg(long, conflicts_with_all = ["model", "optimizer", "batch"])]
    case: Option<String>,
    /// auto, cpu, gpu, GPU:0, part of an adapter's or driver's name, or auto:NAME for it and the CPU.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Only this node: its candidates, what decided, the next best device, and what crosses for it.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Print one JSON object.
    #[arg(long, conflicts_with = "dot")]
    json: bool,
    /// Print the graph in Graphviz's language.
    #[arg(long, conflicts_with = "node")]
    dot: bool,
    /// Write a page that a browser shows without a network.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Run the step for a moment, and put what it took beside what was predicted.
    #[arg(long)]
    measure: bool,
    /// Write the first measured runs as a trace for Perfetto or chrome://tracing.
    #[arg(long, value_name = "FILE", requires = "measure")]
    trace: Option<PathBuf>,
}

/// A step that can be explained and run.
enum Step {
    Case(Ready),
    Model { classifier: Box<Classifier>, session: Session, batch: usize },
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let (devices, policy) = devices::choose(&options.device)?;
    let session_options = SessionOptions { policy, ..SessionOptions::default() };
    let step = Step::new(options, &devices, session_options)?;
    let mut explanation = step.explain()?;
    if options.measure {
        let runs = step.measure()?;
        // Variables may have moved before the first run.
        explanation = step.explain()?.measured(&runs)?;
        if let Some(path) = &options.trace {
            write_trace(path, &runs)?;
        }
    }
    if let Some(path) = &options.html {
        write_file(path, &explanation.to_html())?;
        eprintln!("page written to {}", path.display());
    }
    match (&options.node, options.json, options.dot) {
        (Some(name), json, _) => {
            let node = explanation.node(name.as_str())?;
            if json { println!("{}", node.to_json()) } else { print!("{node}") }
        }
        (None, true, _) => println!("{}", explanation.to_json()),
        (None, _, true) => print!("{}", explanation.to_dot()),
        // The page is all that was asked for.
        (None, ..) if options.html.is_some() => {}
        (None, ..) => {
            devices.list().iter().for_each(|device| println!("{device}"));
            println!("{explanation}");
        }
    }
    Ok(())
}

fn write_trace(path: &Path, runs: &[RunMetadata]) -> Result<(), Failure> {
    let mut trace = Trace::new();
    for (i, run) in runs.iter().take(MEASURED).enumerate() {
        trace.add(&format!("run {}", i + 1), run);
    }
    write_file(path, &trace.to_json())?;
    eprintln!("trace written to {}", path.display());
    Ok(())
}

impl Step {
    fn new(options: &Options, devices: &Devices, session: SessionOptions) -> Result<Self, Failure> {
        if let Some(wanted) = &options.case {
            let is_it = |name: &&str| name.eq_ignore_ascii_case(wanted);
            let Some(name) = NAMES.iter().copied().find(is_it) else {
                super::usage(format!("no case {wanted:?}; there are {}", NAMES.join(", ")));
            };
            return Ok(Self::Case(Case::new(name)?.ready(devices, session)?));
        }
        let optimizer = OptimizerKind::from(options.optimizer);
        let rate = optimizer.default_rate();
        let classifier = Classifier::new(options.model.into(), [8, 8], 10, optimizer, rate, 1);
        let session = Session::with_options(&classifier.graph, devices, session)?;
        let batch = options.batch as usize;
        Ok(Self::Model { classifier: Box::new(classifier), session, batch })
    }

    fn explain(&self) -> Result<Explanation, Failure> {
        match self {
            Self::Case(ready) => Ok(ready.explain()?),
            Self::Model { classifier, session, batch } => {
                let (images, labels) = (vec![0.0f32; batch * 64], vec![0i32; *batch]);
                let images = classifier.images.feed((images.as_slice(), [*batch, 64]));
                let feeds = [images, classifier.labels.feed(&labels)];
                Ok(session.explain(&feeds, (&classifier.loss, &classifier.step))?)
            }
        }
    }

    /// What warm runs took, kernel by kernel.
    fn measure(&self) -> Result<Vec<RunMetadata>, Failure> {
        if let Self::Model { classifier, session, .. } = self {
            session.run(&[], classifier.graph.initializers())?;
        }
        for _ in 0..WARM_UP {
            self.run()?;
        }
        let (start, mut runs) = (Instant::now(), Vec::new());
        while runs.len() < MEASURED || (runs.len() < ENOUGH && start.elapsed() < MEASURING) {
            runs.push(self.run()?);
        }
        Ok(runs)
    }

    fn run(&self) -> Result<RunMetadata, Failure> {
        let timed = RunOptions::timed();
        match self {
            Self::Case(ready) => Ok(ready.run_with(timed)?.1),
            Self::Model { classifier, session, batch } => {
                let (images, labels) = (vec![0.0f32; batch * 64], vec![0i32; *batch]);
                let images = classifier.images.feed((images.as_slice(), [*batch, 64]));
                let feeds = [images, classifier.labels.feed(&labels)];
                let fetch = (&classifier.loss, &classifier.step);
                Ok(session.run_with(&feeds, fetch, timed)?.1)
            }
        }
    }
}
