//! The end after so many steps.
//!
//! Source: TensorFlow's `StopAtStepHook`.

use convoke_graph_core::{Graph, Result, Variable};
use convoke_input::Coordinator;

use super::hook::{AfterRun, BeforeRun, Hook, Wanted, global_step, step_now};
use crate::session::Session;

/// Asks for the end when the global step has come to a number.
#[derive(Debug)]
pub struct StopAtStep {
    /// How many steps are made, if that is what counts.
    steps: i64,
    last: Option<i64>,
    step: Option<Variable>,
    wanted: Option<Wanted<Variable>>,
}

impl StopAtStep {
    /// Stops when the global step is `step` or more.
    pub fn last(step: i64) -> Self {
        Self { steps: 0, last: Some(step), step: None, wanted: None }
    }

    /// Stops after `steps` steps from where the first session begins.
    pub fn after(steps: i64) -> Self {
        Self { steps, last: None, step: None, wanted: None }
    }
}

impl Hook for StopAtStep {
    fn begin(&mut self, graph: &Graph) -> Result<()> {
        self.step = Some(global_step(graph, "StopAtStep")?);
        Ok(())
    }

    fn after_create_session(&mut self, session: &Session, _: &Coordinator) -> Result<()> {
        if let (None, Some(step)) = (self.last, &self.step) {
            self.last = Some(step_now(session, step)?.saturating_add(self.steps));
        }
        Ok(())
    }

    fn before_run(&mut self, run: &mut BeforeRun<'_>) -> Result<()> {
        self.wanted = self.step.clone().map(|step| run.fetch(step));
        Ok(())
    }

    fn after_run(&mut self, run: &AfterRun<'_>) -> Result<()> {
        let (Some(wanted), Some(step), Some(last)) = (self.wanted.take(), &self.step, self.last)
        else {
            return Ok(());
        };
        // The step at the start of the run; whether the run has counted one more is looked up only where it matters.
        let before = run.get(&wanted)?.scalar::<i64>()?;
        if before.saturating_add(1) >= last && step_now(run.session(), step)? >= last {
            run.request_stop();
        }
        Ok(())
    }
}
