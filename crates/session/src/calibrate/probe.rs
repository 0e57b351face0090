//! Probes: small graphs that run on one device alone, and how long a run of each takes.

use std::time::{Duration, Instant};

use convoke_graph_core::{Feed, Graph, HostTensor, Operation, Result, Tensor};
use convoke_placement::{Picoseconds, Work};

use crate::devices::{Devices, HOST_NAME};
use crate::explain::ItemKind;
use crate::session::{DevicePolicy, Session, SessionOptions};

/// A run is timed until this much time has gone by, and at least so often.
const ENOUGH: Duration = Duration::from_millis(20);
const RUNS_MIN: usize = 3;
const RUNS_MAX: usize = 2000;

/// A graph that is timed.
pub(super) struct Probe {
    pub graph: Graph,
    pub feeds: Vec<(Tensor, HostTensor)>,
    pub fetch: Option<Tensor>,
    pub target: Option<Operation>,
    /// What makes the elements that are read anew before each run: in a program, another kernel on any thread has just
    /// made them.
    pub before: Vec<Operation>,
}

impl Probe {
    /// One that fetches nothing.
    pub fn stores(graph: Graph, target: Operation) -> Self {
        Self { graph, feeds: Vec::new(), fetch: None, target: Some(target), before: Vec::new() }
    }
}

/// What a probe takes.
#[derive(Debug, Clone)]
pub(super) struct Timed {
    /// In each pass, the median of its runs.
    pub times: Vec<Picoseconds>,
    /// What its kernels do.
    pub work: Vec<Work>,
}

impl Timed {
    /// The time that it usually takes.
    pub fn usual(&self) -> Picoseconds {
        usual(&self.times)
    }
}

/// What something usually takes that took these times in so many passes: the mean without the slowest quarter, which is one
/// of three. A machine that others slow down now and then is as slow as it usually is.
pub(super) fn usual(times: &[Picoseconds]) -> Picoseconds {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.truncate(times.len() - (times.len() + 1) / 4);
    let sum: u128 = times.iter().map(|&time| u128::from(time)).sum();
    let mean = sum.checked_div(times.len() as u128).unwrap_or(0);
    Picoseconds::try_from(mean).unwrap_or(Picoseconds::MAX)
}

/// Where probes run.
pub(super) struct Bench {
    /// Without what was measured before.
    pub devices: Devices,
    /// The device's name.
    pub device: String,
    pub threads: usize,
}

impl Bench {
    /// The CPU of the same devices.
    pub fn on_host(&self) -> Self {
        let (devices, threads) = (self.devices.clone(), self.threads);
        Self { devices, device: HOST_NAME.to_owned(), threads }
    }

    /// Times a probe.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn time(&self, probe: &Probe) -> Result<Timed> {
        let options = SessionOptions {
            policy: DevicePolicy::Prefer(self.device.clone()),
            soft_placement: false,
            threads: self.threads,
            ..SessionOptions::default()
        };
        let session = Session::with_options(&probe.graph, &self.devices, options)?;
        session.run(&[], probe.graph.initializers())?;
        let feeds: Vec<Feed<'_>> = probe.feeds.iter().map(|(x, value)| x.feed(value)).collect();
        let fetch = (&probe.fetch, &probe.target);
        let explanation = session.explain(&feeds, fetch)?;
        let kernels = explanation.items().iter().filter(|item| item.kind == ItemKind::Kernel);
        let work = kernels.map(|kernel| kernel.work).collect();
        // The first run prepares.
        session.run(&feeds, fetch)?;
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.len() < RUNS_MAX && (start.elapsed() < ENOUGH || times.len() < RUNS_MIN) {
            if !probe.before.is_empty() {
                session.run(&[], &probe.before)?;
            }
            let begun = Instant::now();
            session.run(&feeds, fetch)?;
            times.push(begun.elapsed());
        }
        // What a run usually takes is what is to be predicted, not what it takes at best.
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        Ok(Timed { times: vec![picoseconds(median)], work })
    }
}

pub(super) fn picoseconds(time: Duration) -> Picoseconds {
    Picoseconds::try_from(time.as_nanos().saturating_mul(1000)).unwrap_or(Picoseconds::MAX)
}
