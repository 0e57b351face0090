//! A program that runs again and again on the host, without asking for anything twice.

use convoke_compiler::HOST;
use convoke_graph_core::Result;
use smallvec::SmallVec;

use super::{Bound, Compiled, Drawn, On, RunState};
use crate::cancel::Stop;
use crate::feeds::FeedData;
use crate::instance::Instance;
use crate::metadata::RunMetadata;
use crate::session::Timings;
use crate::state::Snapshot;

/// A program, the memory that it runs in, and the variables that it reads.
pub(crate) struct Turns<'a> {
    compiled: &'a Compiled,
    instance: Box<Instance>,
    variables: SmallVec<[Snapshot; 8]>,
    on: On<'a>,
}

impl Compiled {
    /// The program to be run many times; nothing if it is not only on the host, or leaves something behind.
    ///
    /// # Errors
    /// No memory, or a variable without elements.
    pub(crate) fn turns<'a>(
        &'a self,
        run: RunState<'a>,
        timings: Timings,
        stop: Stop<'a>,
        metadata: &mut RunMetadata,
    ) -> Result<Option<Turns<'a>>> {
        let is_plain = self.inputs.is_empty()
            && self.program.random.is_empty()
            && self.program.segments.iter().all(|s| s.device == HOST && s.commits.is_empty());
        if !is_plain {
            return Ok(None);
        }
        let variables = self.bind(&[], run)?.variables;
        let instance = self.lease(metadata)?;
        let RunState { state, threads, journal, storing } = run;
        let on = On { state, threads, journal, storing, timings, stop };
        metadata.host_bytes = metadata.host_bytes.max(self.memory.n_bytes());
        Ok(Some(Turns { compiled: self, instance, variables, on }))
    }
}

impl Turns<'_> {
    /// Runs once, and gives the bytes of each fetch.
    ///
    /// # Errors
    /// As a run of the program.
    pub(crate) fn turn(
        &mut self,
        feeds: &[FeedData<'_>],
        metadata: &mut RunMetadata,
        mut take: impl FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let variables = std::mem::take(&mut self.variables);
        let (inputs, drawn) = (SmallVec::new(), Drawn::default());
        let bound = Bound { feeds, variables, inputs, drawn };
        let result = self.run(&bound, metadata, &mut take);
        self.variables = bound.variables;
        result
    }

    fn run(
        &mut self,
        bound: &Bound<'_>,
        metadata: &mut RunMetadata,
        take: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let compiled = self.compiled;
        compiled.run_segments(
            #[cfg(feature = "gpu")]
            &mut super::Works::new(),
            &mut self.instance,
            bound,
            &self.on,
            metadata,
        )?;
        metadata.kernel_bytes += compiled.kernel_bytes;
        for (at, fetch) in compiled.program.fetches.iter().enumerate() {
            take(at, compiled.bytes(fetch.value, &self.instance, bound)?)?;
        }
        Ok(())
    }
}

impl Drop for Turns<'_> {
    fn drop(&mut self) {
        self.instance.forget();
        self.compiled.instances.give_back(std::mem::take(&mut self.instance));
    }
}
