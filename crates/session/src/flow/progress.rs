//! How far a run has come: a frame for its whole, and one for each branch or iteration that it is inside of. A run that
//! waits is this and no thread.

use std::sync::Arc;

use convoke_compiler::flow::{BranchStep, Part, Start, Step};
use convoke_graph_core::{Class, Flow, HostTensor, NodeId, Result, index_of};

use super::repeat::Turning;
use super::{Check, Running, named, no_value, results, value, values};
use crate::holding::Holdings;

/// How far a run has come.
pub(crate) struct Progress {
    pub(super) held: Holdings,
    /// The branch or loop of the whole that runs.
    pub(super) at: NodeId,
    /// The whole, and what it is inside of, the innermost last.
    pub(super) frames: Vec<Frame>,
}

/// A part that is under way.
pub(super) struct Frame {
    part: Arc<Part>,
    slots: Vec<Option<HostTensor>>,
    /// The step that comes next, or that is inside of another part.
    at: usize,
    inside: Inside,
}

/// The part that a step runs.
enum Inside {
    Nothing,
    /// One of the branches.
    Branch(usize),
    Loop(Turning),
}

/// What becomes of a part.
enum Next {
    GoesOn,
    /// Another begins inside of it.
    Begins(Frame),
    Waits,
    Ends(Vec<HostTensor>),
}

impl Progress {
    /// That of a run which has only begun, with what it holds.
    pub(super) fn new(held: Holdings) -> Self {
        Self { held, at: NodeId(0), frames: Vec::new() }
    }
}

impl Frame {
    /// Takes the results of the part that a step has run.
    fn take(&mut self, results: Vec<HostTensor>) -> Result<()> {
        match (self.part.steps.get(self.at), &mut self.inside) {
            (Some(Step::Loop(step)), Inside::Loop(turning)) => turning.take(step, results),
            (Some(Step::Branch(step)), &mut Inside::Branch(chosen)) => {
                let Class::Flow(Flow::Branch(op)) = step.node.op.class() else {
                    return Err(no_value());
                };
                for (&(output, slot), result) in step.outputs.iter().zip(&step.branches[chosen].1) {
                    self.slots[slot] = Some(match result {
                        Some(result) => results[*result].clone(),
                        None => op.absent(output)?,
                    });
                }
                (self.inside, self.at) = (Inside::Nothing, self.at + 1);
                Ok(())
            }
            _ => Err(no_value()),
        }
    }
}

impl Running<'_> {
    /// Goes on to the end, which gives results, or until it waits.
    pub(super) fn go_on(&mut self, check: Check<'_>) -> Result<Option<Vec<HostTensor>>> {
        loop {
            let mut frame = self.progress.frames.pop().ok_or_else(no_value)?;
            let next = self.step(&mut frame, check)?;
            let frames = &mut self.progress.frames;
            match (next, frames.last_mut()) {
                (Next::Ends(results), None) => return Ok(Some(results)),
                (Next::Ends(results), Some(outer)) => outer.take(results)?,
                (Next::GoesOn, _) => frames.push(frame),
                (Next::Begins(inner), _) => frames.extend([frame, inner]),
                (Next::Waits, _) => {
                    frames.push(frame);
                    return Ok(None);
                }
            }
        }
    }

    /// A part, with what it is given and what there is at its start.
    pub(super) fn begin(&self, part: &Arc<Part>, given: &[Option<HostTensor>]) -> Result<Frame> {
        let mut slots = vec![None; part.n_slots];
        for (slot, tensor) in part.given.iter().zip(given) {
            if let Some(slot) = *slot {
                slots[slot].clone_from(tensor);
            }
        }
        for (slot, tensor) in &part.constants {
            slots[*slot] = Some(tensor.clone());
        }
        let held = &self.progress.held;
        for &Start { variable, slot, must } in &part.starts {
            if must || held.is_initialized(variable) {
                slots[slot] = Some(held.now(variable, false)?);
            }
        }
        Ok(Frame { part: part.clone(), slots, at: 0, inside: Inside::Nothing })
    }

    /// One step of the innermost part.
    fn step(&mut self, frame: &mut Frame, check: Check<'_>) -> Result<Next> {
        let part = frame.part.clone();
        let is_whole = self.progress.frames.is_empty();
        let steps = part.steps.get(frame.at..).unwrap_or(&[]);
        // Only the last program of the whole stores by itself.
        if let (true, [] | [Step::Program(_)]) = (is_whole, steps) {
            return self.last(&part, steps.first(), &mut frame.slots, check);
        }
        let Some(step) = steps.first() else { return results(&part, &frame.slots).map(Next::Ends) };
        if let (true, Some(node)) = (is_whole, step.node()) {
            self.progress.at = node;
        }
        let slots = &mut frame.slots;
        match step {
            Step::Program(step) => self.program(step, slots, is_whole, None)?,
            Step::Branch(step) => {
                let (chosen, inner) = self.branch(step, slots)?;
                frame.inside = Inside::Branch(chosen);
                return Ok(Next::Begins(inner));
            }
            Step::Loop(step) => {
                if matches!(frame.inside, Inside::Nothing)
                    && let Some(turning) = self.repeat(step, slots)?
                {
                    frame.inside = Inside::Loop(turning);
                }
                if let Inside::Loop(turning) = &mut frame.inside
                    && let Some(given) = self.turn(step, turning, slots)?
                {
                    return self.begin(&step.body, &given).map(Next::Begins);
                }
                frame.inside = Inside::Nothing;
            }
            Step::Assert(node, inputs) => {
                if let Class::Flow(Flow::Assert(op)) = node.op.class() {
                    op.check(&values(slots, inputs)?).map_err(|e| named(e, node))?;
                }
            }
            Step::Call(step) => {
                self.stop.check().map_err(|e| named(e, &step.node))?;
                let given = values(slots, &step.inputs)?;
                let called = self.call(&step.node, &given).map_err(|e| named(e, &step.node))?;
                let Some(results) = called else { return Ok(Next::Waits) };
                for &(output, slot) in &step.outputs {
                    slots[slot] = Some(results.get(output).cloned().ok_or_else(no_value)?);
                }
            }
            Step::ReadOr(step) => {
                let start = slots.get(step.start).cloned().flatten();
                slots[step.output] = Some(start.map_or_else(|| value(slots, step.initial), Ok)?);
            }
        }
        frame.at += 1;
        Ok(Next::GoesOn)
    }

    /// The end of the whole, with its last program if it ends with one: what it needs to store is reserved and checked
    /// before.
    fn last(
        &mut self,
        part: &Part,
        last: Option<&Step>,
        slots: &mut [Option<HostTensor>],
        check: Check<'_>,
    ) -> Result<Next> {
        if !self.reserve()? {
            return Ok(Next::Waits);
        }
        if let Some(Step::Program(last)) = last {
            self.program(last, slots, true, Some((part, check)))?;
            return results(part, slots).map(Next::Ends);
        }
        let results = results(part, slots)?;
        let shapes: Vec<_> = results.iter().map(|t| (t.dtype(), t.shape())).collect();
        check(&shapes)?;
        self.stop.check()?;
        Ok(Next::Ends(results))
    }

    /// The branch that the data chooses.
    fn branch(&self, step: &BranchStep, slots: &[Option<HostTensor>]) -> Result<(usize, Frame)> {
        let Class::Flow(Flow::Branch(op)) = step.node.op.class() else { return Err(no_value()) };
        let index = index_of(&value(slots, step.index)?).map_err(|e| named(e, &step.node))?;
        let chosen = op.chosen(index);
        let given = step.captures.iter().map(|slot| slot.and_then(|slot| slots[slot].clone()));
        let given: Vec<Option<HostTensor>> = given.collect();
        Ok((chosen, self.begin(&step.branches[chosen].0, &given)?))
    }
}
