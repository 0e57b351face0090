//! Values that are shown while a training goes on.
//!
//! Source: TensorFlow's `LoggingTensorHook`.

use std::fmt;
use std::time::Duration;

use convoke_graph_core::{Error, Graph, HostTensor, Result, Tensor};

use super::hook::{AfterRun, BeforeRun, Hook, Wanted};
use super::timer::{Every, Timer};
use crate::session::Session;

/// Tells values of tensors, through `tracing` or as the caller likes.
pub struct LoggingTensor<'h> {
    names: Vec<String>,
    tensors: Vec<Tensor>,
    timer: Timer,
    at_end: bool,
    /// How many runs there were.
    n_runs: i64,
    wanted: Option<Wanted<Vec<Tensor>>>,
    tell: Box<dyn FnMut(&str) + 'h>,
}

impl<'h> LoggingTensor<'h> {
    /// Of these tensors under these names: in the first run and every `n` runs from there, at least 1.
    pub fn every_runs<N: Into<String>>(
        tensors: impl IntoIterator<Item = (N, Tensor)>,
        n: u64,
    ) -> Self {
        Self::new(tensors, Every::Steps(n))
    }

    /// Of these tensors under these names: in the first run, and in the first that begins `interval` or more after
    /// the last time.
    pub fn every<N: Into<String>>(
        tensors: impl IntoIterator<Item = (N, Tensor)>,
        interval: Duration,
    ) -> Self {
        Self::new(tensors, Every::Time(interval))
    }

    /// Of these tensors under these names, at the end only.
    pub fn at_end_only<N: Into<String>>(tensors: impl IntoIterator<Item = (N, Tensor)>) -> Self {
        Self::new(tensors, Every::Never).at_end()
    }

    fn new<N: Into<String>>(tensors: impl IntoIterator<Item = (N, Tensor)>, every: Every) -> Self {
        let (names, tensors) =
            tensors.into_iter().map(|(name, tensor)| (name.into(), tensor)).unzip();
        let timer = Timer::new(every);
        let tell = Box::new(|line: &str| tracing::info!("{line}"));
        Self { names, tensors, timer, at_end: false, n_runs: 0, wanted: None, tell }
    }

    /// Also at the end, in a run of its own: the tensors should have no effects.
    #[must_use]
    pub fn at_end(mut self) -> Self {
        self.at_end = true;
        self
    }

    /// Gives the lines to `tell`.
    #[must_use]
    pub fn to(mut self, tell: impl FnMut(&str) + 'h) -> Self {
        self.tell = Box::new(tell);
        self
    }

    fn log(&mut self, values: &[HostTensor]) {
        let pairs = self.names.iter().zip(values);
        let pairs: Vec<String> = pairs.map(|(name, value)| format!("{name} = {value}")).collect();
        let time = match self.timer.acted(self.n_runs) {
            Some((time, _)) => format!(" ({:.3} s)", time.as_secs_f64()),
            None => String::new(),
        };
        (self.tell)(&format!("{}{time}", pairs.join(", ")));
    }
}

impl Hook for LoggingTensor<'_> {
    fn begin(&mut self, graph: &Graph) -> Result<()> {
        if let Some(other) = self.tensors.iter().find(|t| t.graph().id() != graph.id()) {
            let message = "a tensor to log belongs to another graph";
            return Err(Error::invalid(message).with_node(other.name()));
        }
        self.n_runs = 0;
        self.timer.begin()
    }

    fn before_run(&mut self, run: &mut BeforeRun<'_>) -> Result<()> {
        let is_due = self.timer.is_due(self.n_runs);
        self.wanted = is_due.then(|| run.fetch(self.tensors.clone()));
        Ok(())
    }

    fn after_run(&mut self, run: &AfterRun<'_>) -> Result<()> {
        if let Some(wanted) = self.wanted.take() {
            let values = run.get(&wanted)?;
            self.log(&values);
        }
        self.n_runs = self.n_runs.saturating_add(1);
        Ok(())
    }

    fn end(&mut self, session: &Session) -> Result<()> {
        if self.at_end {
            let values = session.run(&[], &self.tensors)?;
            self.log(&values);
        }
        Ok(())
    }
}

impl fmt::Debug for LoggingTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { names, timer, at_end, .. } = self;
        let mut f = f.debug_struct("LoggingTensor");
        f.field("names", names).field("timer", timer).field("at_end", at_end);
        f.finish_non_exhaustive()
    }
}
