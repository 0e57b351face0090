//! How fast a training goes.
//!
//! Source: TensorFlow's `StepCounterHook`.

use std::time::Duration;

use convoke_graph_core::{Graph, Result, Variable};

use super::hook::{AfterRun, BeforeRun, Hook, Wanted, global_step, step_now};
use super::timer::{Every, Timer};

/// So many runs in a row that count no step are told of.
const STILL: u32 = 20;

/// Tells, through `tracing`, how many steps are made in a second; and of runs that leave the global step as it is.
#[derive(Debug)]
pub struct StepCounter {
    timer: Timer,
    step: Option<Variable>,
    wanted: Option<Wanted<Variable>>,
    rate: Option<f64>,
    last: Option<i64>,
    n_still: u32,
}

impl StepCounter {
    /// Tells every `n` steps, at least 1.
    pub fn every_steps(n: u64) -> Self {
        Self::new(Every::Steps(n))
    }

    /// Tells after the first run that ends `interval` or more after the last time.
    pub fn every(interval: Duration) -> Self {
        Self::new(Every::Time(interval))
    }

    fn new(every: Every) -> Self {
        let timer = Timer::new(every);
        Self { timer, step: None, wanted: None, rate: None, last: None, n_still: 0 }
    }

    /// The steps in a second that were told last.
    pub fn steps_per_second(&self) -> Option<f64> {
        self.rate
    }
}

impl Hook for StepCounter {
    fn begin(&mut self, graph: &Graph) -> Result<()> {
        self.step = Some(global_step(graph, "StepCounter")?);
        self.timer.begin()
    }

    fn before_run(&mut self, run: &mut BeforeRun<'_>) -> Result<()> {
        self.wanted = self.step.clone().map(|step| run.fetch(step));
        Ok(())
    }

    fn after_run(&mut self, run: &AfterRun<'_>) -> Result<()> {
        let (Some(wanted), Some(step)) = (self.wanted.take(), &self.step) else { return Ok(()) };
        let before = run.get(&wanted)?.scalar::<i64>()?;
        if self.timer.is_due(before.saturating_add(1)) {
            let now = step_now(run.session(), step)?;
            if self.timer.is_due(now)
                && let Some((time, steps)) = self.timer.acted(now)
            {
                let rate = steps as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE);
                self.rate = Some(rate);
                tracing::info!("{}: {rate:.4} steps a second, step {now}", step.name());
            }
        }
        self.n_still = if self.last == Some(before) { self.n_still + 1 } else { 0 };
        if self.n_still == STILL {
            self.n_still = 0;
            tracing::warn!(
                "{} is {before} after {STILL} runs: add 1 to it in each step; see Graph::global_step",
                step.name()
            );
        }
        self.last = Some(before);
        Ok(())
    }
}
