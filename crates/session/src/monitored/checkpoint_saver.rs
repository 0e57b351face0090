//! Checkpoints while a training goes on.
//!
//! Source: TensorFlow's `CheckpointSaverHook`, and `CheckpointSaverListener` as a closure.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use convoke_graph_core::{Error, Graph, Result, Variable};
use convoke_input::Coordinator;

use super::hook::{AfterRun, BeforeRun, Hook, Increment, Wanted, global_step, step_now};
use super::timer::{Every, Timer};
use crate::saver::Saver;
use crate::session::Session;

/// Saves by the global step: each session as it begins, then every so many steps or so often, and at the end. What
/// could not be saved, with an error of the run that has come to the step, is saved after the next run.
pub struct CheckpointSaver<'h> {
    saver: Saver,
    timer: Timer,
    listeners: Vec<Listener<'h>>,
    step: Option<Variable>,
    increment: Increment,
    wanted: Option<Wanted<Variable>>,
}

type Listener<'h> = Box<dyn FnMut(&Saved<'_>) -> Result<ControlFlow<()>> + 'h>;

/// A checkpoint that was just saved.
#[derive(Debug)]
pub struct Saved<'a> {
    /// The session.
    pub session: &'a Session,
    /// The global step.
    pub step: i64,
    /// What [`Session::restore`] takes.
    pub path: &'a Path,
}

impl<'h> CheckpointSaver<'h> {
    /// Saves every `n` steps, at least 1.
    pub fn every_steps(saver: Saver, n: u64) -> Self {
        Self::new(saver, Every::Steps(n))
    }

    /// Saves after the first run that ends `interval` or more after the last that was saved.
    pub fn every(saver: Saver, interval: Duration) -> Self {
        Self::new(saver, Every::Time(interval))
    }

    fn new(saver: Saver, every: Every) -> Self {
        let timer = Timer::new(every);
        let (listeners, increment) = (Vec::new(), Increment::default());
        Self { saver, timer, listeners, step: None, increment, wanted: None }
    }

    /// Calls `f` after each checkpoint; it may ask for the end by [`ControlFlow::Break`].
    #[must_use]
    pub fn on_save(mut self, f: impl FnMut(&Saved<'_>) -> Result<ControlFlow<()>> + 'h) -> Self {
        self.listeners.push(Box::new(f));
        self
    }

    /// Saves, and says whether to go on.
    fn save(&mut self, session: &Session, step: i64) -> Result<ControlFlow<()>> {
        let number = u64::try_from(step).map_err(|_| {
            Error::invalid(format!("expected a global step of at least 0 to save, got {step}"))
        })?;
        let path = self.saver.save(session, number)?;
        self.timer.acted(step);
        let saved = Saved { session, step, path: &path };
        let mut flow = ControlFlow::Continue(());
        for listener in &mut self.listeners {
            if listener(&saved)?.is_break() {
                flow = ControlFlow::Break(());
            }
        }
        Ok(flow)
    }
}

impl Hook for CheckpointSaver<'_> {
    fn begin(&mut self, graph: &Graph) -> Result<()> {
        self.step = Some(global_step(graph, "CheckpointSaver")?);
        self.increment = Increment::default();
        self.timer.begin()
    }

    fn after_create_session(&mut self, session: &Session, coordinator: &Coordinator) -> Result<()> {
        let Some(step) = self.step.clone() else { return Ok(()) };
        if self.save(session, step_now(session, &step)?)?.is_break() {
            coordinator.request_stop();
        }
        Ok(())
    }

    fn before_run(&mut self, run: &mut BeforeRun<'_>) -> Result<()> {
        self.wanted = self.step.clone().map(|step| run.fetch(step));
        Ok(())
    }

    fn after_run(&mut self, run: &AfterRun<'_>) -> Result<()> {
        let (Some(wanted), Some(step)) = (self.wanted.take(), self.step.clone()) else {
            return Ok(());
        };
        let before = run.get(&wanted)?.scalar::<i64>()?;
        if self.increment.may_come_to(before).is_some_and(|step| !self.timer.is_due(step)) {
            return Ok(());
        }
        let now = step_now(run.session(), &step)?;
        self.increment.is_at(now);
        if self.timer.is_due(now) && self.save(run.session(), now)?.is_break() {
            run.request_stop();
        }
        Ok(())
    }

    fn end(&mut self, session: &Session) -> Result<()> {
        let Some(step) = self.step.clone() else { return Ok(()) };
        let now = step_now(session, &step)?;
        if self.timer.last_step() != Some(now) {
            let _is_the_end = self.save(session, now)?;
        }
        Ok(())
    }
}

impl fmt::Debug for CheckpointSaver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { saver, timer, .. } = self;
        f.debug_struct("CheckpointSaver").field("saver", saver).field("timer", timer).finish()
    }
}
