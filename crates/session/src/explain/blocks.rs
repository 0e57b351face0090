//! Loops on GPUs: what stays there, and how many trips are one program.

use std::sync::Arc;

use convoke_compiler::HOST;
use convoke_compiler::flow::{LoopStep, Place};
use convoke_graph_core::{HostTensor, LoopOp, Output, Result};

use super::parts::{Staying, Trips};
use super::walk::{Known, Slots, Walk};
use crate::executor::Compiled;
use crate::flow::blocks;

impl Walk<'_> {
    /// How a loop goes round on GPUs, if it is one that does: `first` is what is carried at first, `given` is what its body
    /// is given, and `results` what that gives.
    pub(super) fn staying(
        &mut self,
        step: &LoopStep,
        op: &LoopOp,
        trips: Trips,
        (first, given): (&Slots, &Slots),
        results: &Slots,
    ) -> Result<Option<Staying>> {
        let Some(program) = step.program() else { return Ok(None) };
        let Some(planned) = self.flow.program(program.plan) else { return Ok(None) };
        let carried = given.iter().take(op.n_carried);
        let next = results.iter().skip(op.next_at());
        let stays = carried.zip(next).all(|(given, next)| match (given, next) {
            (Some(given), Some(next)) => given.like.is_some() && given.like == next.like,
            _ => false,
        });
        if !stays || planned.plan.shape_feeds.contains(&true) {
            return Ok(None);
        }
        let slots = self.begin(&step.body, given);
        let fed: Slots = program
            .feeds
            .iter()
            .map(|place| match *place {
                Place::Slot(slot) => slots.get(slot).cloned().flatten(),
                Place::Variable(_) | Place::Changed(..) => None,
            })
            .collect();
        let Ok(body) = self.compile(planned, &fed) else { return Ok(None) };
        if !body.uses_gpus() {
            return Ok(None);
        }
        // Without the number of slices, it is not known which is the last.
        if op.has_pred && op.reverse {
            return Ok(None);
        }
        let known = match trips {
            Trips::Known(trips) => Some(trips),
            _ if !op.has_pred || self.is_counted(op, first, given) => None,
            _ => Some(1),
        };
        let slices = given.iter().skip(op.n_carried).take(op.n_scanned);
        let stacked = step.outputs.iter().filter_map(|&(output, _)| {
            match output.checked_sub(op.history_at()).filter(|&at| at < op.n_carried) {
                Some(at) => given.get(at),
                None => {
                    let stacked = step.stacked.iter().find(|(own, _)| *own == output);
                    stacked.and_then(|&(_, result)| results.get(result))
                }
            }
        });
        let bytes = |known: &Option<Known>| {
            let like = known.as_ref().and_then(|known| known.like.as_ref());
            like.map_or(0, |(dtype, shape)| shape.len().saturating_mul(dtype.n_bytes()) as u64)
        };
        let slices = slices.chain(stacked).map(bytes).fold(0, u64::saturating_add);
        let work = |trips| blocks::block_of(self.flow, step, op, &body, slices, trips);
        let prediction = body.placed.as_ref().map(|placed| placed.solution.prediction());
        let each = prediction.map_or(0, |prediction| {
            let moved = prediction.transfers.iter().map(|transfer| transfer.time);
            prediction.makespan.saturating_sub(moved.fold(0, u64::saturating_add))
        });
        let devices = self.gpus_of(&body);
        Ok(Some(Staying { devices, trips: known.map(work).transpose()?, each }))
    }

    /// The names of the GPUs that a program has work for.
    fn gpus_of(&self, body: &Compiled) -> Vec<Arc<str>> {
        let mut devices: Vec<usize> =
            body.program.segments.iter().map(|segment| segment.device.0 as usize).collect();
        devices.retain(|&device| device != HOST.0 as usize);
        devices.sort_unstable();
        devices.dedup();
        let names = self.core.devices.list();
        devices.iter().filter_map(|&at| Some(names.get(at)?.name.clone())).collect()
    }

    /// Whether a loop's length is known when it begins, where what it begins with is not known yet.
    fn is_counted(&self, op: &LoopOp, first: &Slots, given: &Slots) -> bool {
        // Whatever the numbers are.
        let any = |known: &Known| {
            let (dtype, shape) = known.like.clone()?;
            known.elements.clone().or_else(|| HostTensor::zeros(dtype, shape).ok())
        };
        let carried = |at: usize| any(first.get(at)?.as_ref()?);
        let outer = |output: Output| {
            let at = op.body.captures.iter().position(|capture| *capture == output)?;
            match given.get(op.n_carried + op.n_scanned + at)? {
                Some(known) => any(known),
                None => self.constant(output),
            }
        };
        op.is_counted(&carried, &outer)
    }
}
