//! When hooks act: every so many steps, or so often.
//!
//! Source: TensorFlow's `SecondOrStepTimer`.

use std::time::{Duration, Instant};

use convoke_graph_core::{Error, Result};

/// How often.
#[derive(Debug, Clone, Copy)]
pub(super) enum Every {
    Steps(u64),
    Time(Duration),
    Never,
}

/// Says when it is time again.
#[derive(Debug, Clone)]
pub(super) struct Timer {
    every: Every,
    last: Option<(i64, Instant)>,
}

impl Timer {
    pub fn new(every: Every) -> Self {
        Self { every, last: None }
    }

    /// Begins anew.
    ///
    /// # Errors
    /// Every 0 steps.
    pub fn begin(&mut self) -> Result<()> {
        self.last = None;
        match self.every {
            Every::Steps(0) => Err(Error::invalid("expected every 1 step or more, got 0")),
            _ => Ok(()),
        }
    }

    /// Whether it is time at this step: the first time at once, and never twice at one step.
    pub fn is_due(&self, step: i64) -> bool {
        let Some((last, at)) = self.last else { return !matches!(self.every, Every::Never) };
        if step == last {
            return false;
        }
        match self.every {
            Every::Steps(n) => step >= last.saturating_add_unsigned(n),
            Every::Time(time) => at.elapsed() >= time,
            Every::Never => false,
        }
    }

    /// Notes that it was acted at this step. Gives the time and the steps since the last time.
    pub fn acted(&mut self, step: i64) -> Option<(Duration, i64)> {
        let last = self.last.replace((step, Instant::now()))?;
        Some((last.1.elapsed(), step.saturating_sub(last.0)))
    }

    /// The step at which it was acted last.
    pub fn last_step(&self) -> Option<i64> {
        self.last.map(|(step, _)| step)
    }
}
