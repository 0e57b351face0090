//! The end after so many steps.
//!
//! Source: TensorFlow's `StopAtStepHook`.

use convoke_graph_core::{Graph, Result, Variable};
use convoke_input::Coordinator;

use super::hook::{AfterRun, BeforeRun, Hook, Increment, Wanted, global_step, step_now};
use crate::session::Session;

/// Asks for the end when the global step has come to a number.
#[derive(Debug)]
pub struct StopAtStep {
    /// How many steps are made, if that is what counts.
    steps: i64,
    last: Option<i64>,
    step: Option<Variable>,
    increment: Increment,
    wanted: Option<Wanted<Variable>>,
}

impl StopAtStep {
    /// Stops when the global step is `step` or more.
    pub fn last(step: i64) -> Self {
        Self { last: Some(step), ..Self::after(0) }
    }

    /// Stops after `steps` steps from where the first session begins.
    pub fn after(steps: i64) -> Self {
        Self { steps, last: None, step: None, increment: Increment::default(), wanted: None }
    }
}

impl Hook for StopAtStep {
    fn begin(&mut self, graph: &Graph) -> Result<()> {
        self.step = Some(global_step(graph, "StopAtStep")?);
        self.increment = Increment::default();
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
        let before = run.get(&wanted)?.scalar::<i64>()?;
        if self.increment.may_come_to(before).is_some_and(|step| step < last) {
            return Ok(());
        }
        let now = step_now(run.session(), step)?;
        self.increment.is_at(now);
        if now >= last {
            run.request_stop();
        }
        Ok(())
    }
}
