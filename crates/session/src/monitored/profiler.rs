//! Traces of some runs of a training.
//!
//! Source: TensorFlow's `ProfilerHook`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use convoke_graph_core::{Error, Graph, Result, Variable};
use convoke_input::kind_of;

use super::hook::{AfterRun, BeforeRun, Hook, Wanted, global_step, step_now};
use super::timer::{Every, Timer};
use crate::session::Timings;

/// Writes traces of runs into a folder, which must exist: `timeline-N.json` of the run that came to step N. Perfetto
/// and Chrome show them. A run that is traced takes longer: see [`Timings::Nodes`].
#[derive(Debug)]
pub struct Profiler {
    folder: PathBuf,
    timer: Timer,
    step: Option<Variable>,
    /// The step that the next run is expected to come to, once there was a run.
    next: Option<i64>,
    traces: bool,
    wanted: Option<Wanted<Variable>>,
}

impl Profiler {
    /// Of the run that comes to `n` steps, at least 1, after those of the first run or of the last that was traced.
    pub fn every_steps(folder: impl Into<PathBuf>, n: u64) -> Self {
        Self::new(folder.into(), Every::Steps(n))
    }

    /// Of the first run that begins `interval` or more after the first or the last that was traced.
    pub fn every(folder: impl Into<PathBuf>, interval: Duration) -> Self {
        Self::new(folder.into(), Every::Time(interval))
    }

    fn new(folder: PathBuf, every: Every) -> Self {
        let timer = Timer::new(every);
        Self { folder, timer, step: None, next: None, traces: false, wanted: None }
    }
}

impl Hook for Profiler {
    fn begin(&mut self, graph: &Graph) -> Result<()> {
        self.step = Some(global_step(graph, "Profiler")?);
        self.timer.begin()
    }

    fn before_run(&mut self, run: &mut BeforeRun<'_>) -> Result<()> {
        // The first run makes programs, which is of no interest.
        self.traces = self.next.is_some_and(|step| self.timer.is_due(step));
        if self.traces {
            run.timings(Timings::Nodes);
        }
        self.wanted = self.step.clone().map(|step| run.fetch(step));
        Ok(())
    }

    fn after_run(&mut self, run: &AfterRun<'_>) -> Result<()> {
        let (Some(wanted), Some(step)) = (self.wanted.take(), &self.step) else { return Ok(()) };
        let before = run.get(&wanted)?.scalar::<i64>()?;
        if self.next.is_none() {
            self.timer.acted(before);
        }
        let mut now = before.saturating_add(1);
        if self.traces {
            now = step_now(run.session(), step)?;
            self.timer.acted(now);
            let path = self.folder.join(format!("timeline-{now}.json"));
            fs::write(&path, run.metadata().to_trace().to_json()).map_err(|e| {
                Error::new(kind_of(&e), format!("cannot write the trace {}: {e}", path.display()))
            })?;
        }
        self.next = Some(now.saturating_add(1));
        Ok(())
    }
}
