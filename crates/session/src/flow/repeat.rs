//! Loops: a part runs again and again on what it gave before.

use convoke_compiler::flow::{LoopStep, given};
use convoke_graph_core::{Class, Flow, HostTensor, LoopOp, Result, Shape, batches};

use super::{Running, named, no_value, value, values};

/// A loop that is about to run.
pub(super) struct Repeat<'s> {
    pub step: &'s LoopStep,
    pub op: &'s LoopOp,
    pub carried: Vec<HostTensor>,
    pub scanned: Vec<HostTensor>,
    pub captures: Vec<Option<HostTensor>>,
    /// At most so many iterations.
    pub limit: Option<u64>,
}

/// What a loop gives.
pub(super) struct Repeated {
    pub carried: Vec<HostTensor>,
    pub trips: usize,
    /// For each output that is stacked, in order: what was carried at the start of each iteration, or what was collected.
    pub stacks: Vec<HostTensor>,
}

/// Where an output of a loop comes from.
pub(super) enum Kept {
    /// What is carried in the end.
    Carried(usize),
    /// The number of iterations.
    Trips,
    /// What was carried at the start of each iteration.
    History(usize),
    /// A result of each iteration.
    Collected(usize),
}

/// Where an output of a loop comes from.
pub(super) fn kept(step: &LoopStep, op: &LoopOp, output: usize) -> Kept {
    match output.checked_sub(op.history_at()) {
        Some(at) if at < op.n_carried => Kept::History(at),
        _ if output < op.n_carried => Kept::Carried(output),
        _ if output == op.trips_at() => Kept::Trips,
        _ => {
            let stacked = step.stacked.iter().find(|(own, _)| *own == output);
            Kept::Collected(stacked.map_or(0, |(_, result)| *result))
        }
    }
}

impl Repeat<'_> {
    /// The outputs that are stacked.
    pub fn stacked(&self) -> impl Iterator<Item = (usize, Kept)> {
        let outputs = self.step.outputs.iter();
        let outputs = outputs.map(|&(output, _)| (output, kept(self.step, self.op, output)));
        outputs.filter(|(_, kept)| matches!(kept, Kept::History(_) | Kept::Collected(_)))
    }
}

impl Running<'_> {
    pub(super) fn repeat(
        &mut self,
        step: &LoopStep,
        slots: &mut [Option<HostTensor>],
    ) -> Result<()> {
        let Class::Flow(Flow::Loop(op)) = step.node.op.class() else { return Err(no_value()) };
        let refused = |e| named(e, &step.node);
        let scalar = |slot: Option<usize>| slot.map(|slot| value(slots, slot)).transpose();
        let goes_on = scalar(step.pred)?.map_or(Ok(true), |pred| pred.scalar::<bool>())?;
        let count = scalar(step.count)?.map(|count| count.scalar::<i64>()).transpose()?;
        let scanned = values(slots, &step.scanned)?;
        let lengths: Vec<usize> =
            scanned.iter().map(|tensor| tensor.dims().first().copied().unwrap_or(0)).collect();
        let captures = step.captures.iter().map(|slot| slot.and_then(|slot| slots[slot].clone()));
        let mut repeat = Repeat {
            step,
            op,
            carried: values(slots, &step.carried)?,
            captures: captures.collect(),
            limit: op.limit(count, &lengths).map_err(refused)?,
            scanned,
        };
        if !goes_on {
            repeat.limit = Some(0);
        }
        for own in &step.variables {
            let is_needed = own.is_read && repeat.limit != Some(0);
            repeat.carried.push(self.held.now(own.variable, !is_needed)?);
        }
        for (at, tensor) in repeat.carried.iter().enumerate() {
            op.check_carried(at, tensor.shape(), tensor.shape()).map_err(refused)?;
        }
        let repeated = match self.quickly(&repeat)? {
            Some(repeated) => repeated,
            None => self.step_by_step(repeat)?,
        };
        let fed = given(&self.request.planned.plan.signature);
        if !op.counted_by.iter().any(|output| fed.contains(output)) {
            op.check_trips(repeated.trips).map_err(refused)?;
        }
        let variables = repeated.carried.iter().rev().zip(step.variables.iter().rev());
        for (now, own) in variables.filter(|_| repeated.trips > 0) {
            if let Some(change) = own.change {
                self.held.change(own.variable, now.clone(), change);
            }
        }
        let mut stacks = repeated.stacks.into_iter();
        for &(output, slot) in &step.outputs {
            slots[slot] = Some(match kept(step, op, output) {
                Kept::Carried(at) => repeated.carried[at].clone(),
                Kept::Trips => HostTensor::from(repeated.trips as i64),
                Kept::History(_) | Kept::Collected(_) => stacks.next().ok_or_else(no_value)?,
            });
        }
        Ok(())
    }

    /// Runs the body as a part.
    fn step_by_step(&mut self, repeat: Repeat<'_>) -> Result<Repeated> {
        let stacked: Vec<(usize, Kept)> = repeat.stacked().collect();
        let Repeat { step, op, mut carried, scanned, captures, limit } = repeat;
        let refused = |e| named(e, &step.node);
        let mut given: Vec<Option<HostTensor>> = vec![None; carried.len() + scanned.len()];
        given.extend(captures);
        let mut rows: Vec<Vec<HostTensor>> = vec![Vec::new(); stacked.len()];
        let first: Vec<Shape> = carried.iter().map(|tensor| tensor.shape().clone()).collect();
        let (mut trips, mut goes_on) = (0usize, true);
        while goes_on && limit.is_none_or(|limit| (trips as u64) < limit) {
            self.stop.check()?;
            for (rows, (_, kept)) in rows.iter_mut().zip(&stacked) {
                if let Kept::History(at) = kept {
                    rows.push(carried[*at].clone());
                }
            }
            let row = op.slice_of(trips, limit);
            let slices = scanned.iter().map(|tensor| batches::row(tensor, row));
            for (place, tensor) in given.iter_mut().zip(carried.drain(..).map(Ok).chain(slices)) {
                *place = Some(tensor?);
            }
            let results = self.part(&step.body, &given)?;
            if op.has_pred {
                goes_on = results.first().ok_or_else(no_value)?.scalar::<bool>()?;
            }
            carried.extend(results[op.next_at()..].iter().take(op.n_carried).cloned());
            for (at, tensor) in carried.iter().enumerate() {
                op.check_carried(at, &first[at], tensor.shape()).map_err(refused)?;
            }
            for (rows, (_, kept)) in rows.iter_mut().zip(&stacked) {
                if let Kept::Collected(result) = kept {
                    rows.push(results[*result].clone());
                }
            }
            trips += 1;
        }
        let stack = |((output, _), rows): (&(usize, Kept), Vec<HostTensor>)| {
            stacked_rows(op, *output, rows).map_err(refused)
        };
        let stacks = stacked.iter().zip(rows).map(stack).collect::<Result<_>>()?;
        Ok(Repeated { carried, trips, stacks })
    }
}

/// What an output of a loop gives that collected these.
fn stacked_rows(op: &LoopOp, output: usize, mut rows: Vec<HostTensor>) -> Result<HostTensor> {
    if op.reverse {
        rows.reverse();
    }
    let Some(first) = rows.first() else { return op.none_collected(output) };
    let (dtype, dims) = (first.dtype(), first.dims().to_vec());
    batches::stacked(dtype, &dims, &rows.iter().collect::<Vec<_>>(), false)
}
