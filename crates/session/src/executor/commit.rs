//! The end of a run: new elements of variables on the host, all of them or none.

use std::sync::Arc;

use convoke_compiler::{Commit, HOST, Source, ValueId};
use convoke_cpu_backend::Threads;
use convoke_graph_core::{AlignedBytes, DType, Error, ErrorKind, NodeId, Result};
use smallvec::SmallVec;

use super::{Bound, Compiled, CpuStep, On, Outputs, Place, StepKernel};
use crate::instance::Instance;
use crate::state::{Elements, Kept, NewElements};
use crate::sums::add_difference;

impl Compiled {
    /// Stores new elements of variables on the host, and counts draws. Everything that can fail comes
    /// before the first store, and so does whether the session was closed, which frees what it keeps under the same
    /// lock. `has_stored` tells that something is stored elsewhere already.
    pub(super) fn commit(
        &self,
        instance: &mut Instance,
        bound: &mut Bound<'_>,
        on: &On<'_>,
        outputs: &mut Outputs<'_, '_>,
        has_stored: bool,
    ) -> Result<()> {
        let on_host = self.program.segments.iter().filter(|segment| segment.device == HOST);
        let commits: SmallVec<[&Commit; 8]> =
            on_host.flat_map(|segment| &segment.commits).collect();
        let draws = if on.journal.is_some() { &[][..] } else { &bound.drawn.ranges[..] };
        if let Some(journal) = on.journal {
            let mut journal = journal.borrow_mut();
            bound.drawn.ranges.iter().for_each(|&(node, _, after)| journal.drawn(node, after));
        }
        if commits.is_empty() && draws.is_empty() {
            return Ok(());
        }
        let stop = (!has_stored).then_some(&on.stop);
        match on.storing {
            // What bodies have assigned is stored later, and what was drawn.
            Some(storing) if on.journal.is_some() => storing.begin(stop)?,
            Some(storing) => storing.begin_if_it_goes_on(stop)?,
            None => {}
        }
        let mut kept = on.state.lock();
        on.check(has_stored)?;
        let (mut plain, mut late) =
            (SmallVec::<[&Commit; 8]>::new(), SmallVec::<[ValueId; 2]>::new());
        let mut stores: SmallVec<[(NodeId, NewElements, Option<usize>); 8]> = SmallVec::new();
        for commit in commits {
            match self.overtaken(commit, instance, bound, &kept, on.threads)? {
                Some(elements) => {
                    outputs.replace(&self.program, commit.value, &elements)?;
                    late.push(commit.value);
                    stores.push((commit.variable, NewElements::Bytes(elements), None));
                }
                None => plain.push(commit),
            }
        }
        for commit in &plain {
            let (elements, slot) = match late.iter().position(|&value| value == commit.value) {
                Some(at) => (stores[at].1.copy()?, None),
                None => self.new_elements(commit, &plain, instance, bound)?,
            };
            stores.push((commit.variable, elements, slot));
        }
        self.check_homes(stores.iter().map(|(variable, ..)| variable), &kept)?;
        // Nobody needs the elements of the start any more, so that their buffers may become slots.
        bound.variables.iter_mut().for_each(|variable| variable.elements = None);
        on.journal.inspect(|journal| journal.borrow_mut().forget_starts());
        for (variable, elements, slot) in stores {
            if self.was_reset(variable, &kept) {
                continue;
            }
            let old = kept.store(variable, elements);
            if let Some(slot) = slot {
                // The replaced buffer is the slot of the next run, if it is as large.
                let size = self.memory.slots[slot];
                instance.slots[slot] = old.filter(|old| old.len() >= size).unwrap_or_default();
            }
        }
        for &(node, _, after) in draws {
            kept.draws.drawn(node, after);
        }
        Ok(())
    }

    /// For a commit that builds on the variable's elements, those at the run's start and now, if others committed since.
    fn overtaking(
        &self,
        commit: &Commit,
        bound: &Bound<'_>,
        kept: &Kept,
    ) -> Option<(Arc<AlignedBytes>, Arc<AlignedBytes>)> {
        let builds = commit.accumulates || commit.sums;
        let entry = kept.variables.get(&commit.variable).filter(|_| builds)?;
        let at = self.variables.iter().position(|(id, _)| *id == commit.variable)?;
        let start = &bound.variables[at];
        let changed = start.version != entry.version;
        let shared = |elements: &Option<Elements>| elements.as_ref()?.shared().cloned();
        shared(&start.elements).zip(shared(&entry.elements)).filter(|_| changed)
    }

    /// # Errors
    /// A variable that is to be stored is not on the host any more.
    fn check_homes<'v>(
        &self,
        mut stored: impl Iterator<Item = &'v NodeId>,
        kept: &Kept,
    ) -> Result<()> {
        let moved = |variable: &&NodeId| {
            let entry = kept.variables.get(variable).filter(|_| !self.was_reset(**variable, kept));
            entry.is_some_and(|entry| entry.device != HOST)
        };
        let Some(variable) = stored.find(moved) else { return Ok(()) };
        let name = kept.variables.get(variable).map(|entry| entry.name.to_string());
        let message = "the variable moved to another device during the run; run again";
        Err(Error::new(ErrorKind::Aborted, message).with_node(name.unwrap_or_default()))
    }

    /// What a commit stores that builds on the variable's elements, if others committed since the run's start.
    fn overtaken(
        &self,
        commit: &Commit,
        instance: &Instance,
        bound: &Bound<'_>,
        kept: &Kept,
        threads: &Threads,
    ) -> Result<Option<AlignedBytes>> {
        let Some((start, current)) = self.overtaking(commit, bound, kept) else { return Ok(None) };
        match self.redo(commit) {
            Some(step) => self.again(step, commit, &current, instance, bound, threads),
            None => self.summed(commit, &start, &current, instance, bound),
        }
        .map(Some)
    }

    /// The step that gives a commit's elements from those of its variable, if it is one of the host that reads these itself.
    fn redo(&self, commit: &Commit) -> Option<&CpuStep> {
        let is_it = |source: &Source| matches!(source, Source::Variable(variable) if *variable == commit.variable);
        let mut steps = self.cpu_steps().filter(|_| commit.accumulates);
        let step = steps.find(|step| step.outputs.contains(&commit.value))?;
        step.inputs.iter().any(|id| is_it(&self.program.value(*id).source)).then_some(step)
    }

    /// What the run adds to the variable's elements at its start, added to those that are current.
    ///
    /// # Errors
    /// It does something else to them; no memory.
    fn summed(
        &self,
        commit: &Commit,
        start: &[u8],
        current: &[u8],
        instance: &Instance,
        bound: &Bound<'_>,
    ) -> Result<AlignedBytes> {
        let value = self.program.value(commit.value);
        if !commit.sums {
            let message = "others have stored into the variable meanwhile; run again";
            let name = self.variables.iter().find(|(id, _)| *id == commit.variable);
            let name = name.map(|(_, name)| name.to_string()).unwrap_or_default();
            return Err(Error::new(ErrorKind::Aborted, message).with_node(name));
        }
        let n_bytes = value.n_bytes();
        let [start, current] = [start, current].map(|bytes| &bytes[..n_bytes.min(bytes.len())]);
        let mut elements = AlignedBytes::copy_of(current)?;
        let now = self.bytes(commit.value, instance, bound)?;
        add_difference(value.dtype, &mut elements, start, now)?;
        Ok(elements)
    }

    /// Runs the step of a commit again, on the variable's current elements.
    fn again(
        &self,
        step: &CpuStep,
        commit: &Commit,
        current: &[u8],
        instance: &Instance,
        bound: &Bound<'_>,
        threads: &Threads,
    ) -> Result<AlignedBytes> {
        let input = |&id: &ValueId| match &self.program.value(id).source {
            Source::Variable(variable) if *variable == commit.variable => {
                Ok(&current[..self.program.value(id).n_bytes()])
            }
            _ => self.bytes(id, instance, bound),
        };
        let inputs: SmallVec<[&[u8]; 4]> = step.inputs.iter().map(input).collect::<Result<_>>()?;
        let size = |id: &ValueId| AlignedBytes::zeroed(self.program.value(*id).n_bytes());
        let mut outputs: Vec<AlignedBytes> =
            step.outputs.iter().map(size).collect::<Result<_>>()?;
        let mut written: SmallVec<[&mut [u8]; 2]> =
            outputs.iter_mut().map(|buffer| &mut buffer[..]).collect();
        match &step.kernel {
            StepKernel::Bytes(kernel) => kernel.run(&inputs, &mut written, threads)?,
            StepKernel::Strings(_) => return Err(Error::internal("strings do not accumulate")),
        }
        drop(written);
        let at = step.outputs.iter().position(|&output| output == commit.value).unwrap_or(0);
        Ok(outputs.swap_remove(at))
    }

    /// The elements that a commit stores, and the slot that they were taken from.
    fn new_elements(
        &self,
        commit: &Commit,
        all: &[&Commit],
        instance: &mut Instance,
        bound: &Bound<'_>,
    ) -> Result<(NewElements, Option<usize>)> {
        if self.program.value(commit.value).dtype == DType::String {
            let strings = self.strings(commit.value, instance, bound)?;
            let shape = self.program.value(commit.value).shape.clone();
            return Ok((NewElements::Strings(strings.reshaped(shape)?), None));
        }
        let users = all.iter().filter(|other| other.value == commit.value).count();
        if let (Place::Slot(slot), 1) = (self.places[commit.value.0 as usize], users) {
            let slot = slot as usize;
            let bytes = std::mem::take(&mut instance.slots[slot]);
            return Ok((NewElements::Bytes(bytes), Some(slot)));
        }
        let copy = AlignedBytes::copy_of(self.bytes(commit.value, instance, bound)?)?;
        Ok((NewElements::Bytes(copy), None))
    }
}
