//! Loops: a part runs again and again on what it gave before. One that is no single program goes round by frames.

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

/// A loop that goes round as a part again and again.
#[derive(Default)]
pub(super) struct Turning {
    carried: Vec<HostTensor>,
    scanned: Vec<HostTensor>,
    captures: Vec<Option<HostTensor>>,
    limit: Option<u64>,
    /// The shapes of what was carried at first.
    first: Vec<Shape>,
    stacked: Vec<(usize, Kept)>,
    /// For each output that is stacked, what it has.
    rows: Vec<Vec<HostTensor>>,
    trips: usize,
    goes_on: bool,
}

impl Turning {
    fn new(repeat: Repeat<'_>) -> Self {
        let stacked: Vec<(usize, Kept)> = repeat.stacked().collect();
        let Repeat { carried, scanned, captures, limit, .. } = repeat;
        let first = carried.iter().map(|tensor| tensor.shape().clone()).collect();
        let (rows, trips, goes_on) = (vec![Vec::new(); stacked.len()], 0, true);
        Self { carried, scanned, captures, limit, first, stacked, rows, trips, goes_on }
    }

    /// What the next iteration is given, if there is one.
    fn given(&mut self, op: &LoopOp) -> Result<Option<Vec<Option<HostTensor>>>> {
        if !self.goes_on || self.limit.is_some_and(|limit| (self.trips as u64) >= limit) {
            return Ok(None);
        }
        for (rows, (_, kept)) in self.rows.iter_mut().zip(&self.stacked) {
            if let Kept::History(at) = kept {
                rows.push(self.carried[*at].clone());
            }
        }
        let row = op.slice_of(self.trips, self.limit);
        let slices = self.scanned.iter().map(|tensor| batches::row(tensor, row).map(Some));
        let mut given: Vec<Option<HostTensor>> = self.carried.drain(..).map(Some).collect();
        for slice in slices {
            given.push(slice?);
        }
        given.extend(self.captures.iter().cloned());
        Ok(Some(given))
    }

    /// Takes the results of an iteration.
    pub fn take(&mut self, step: &LoopStep, results: Vec<HostTensor>) -> Result<()> {
        let op = loop_of(step)?;
        if op.has_pred {
            self.goes_on = results.first().ok_or_else(no_value)?.scalar::<bool>()?;
        }
        self.carried.extend(results[op.next_at()..].iter().take(op.n_carried).cloned());
        for (at, tensor) in self.carried.iter().enumerate() {
            let checked = op.check_carried(at, &self.first[at], tensor.shape());
            checked.map_err(|e| named(e, &step.node))?;
        }
        for (rows, (_, kept)) in self.rows.iter_mut().zip(&self.stacked) {
            if let Kept::Collected(result) = kept {
                rows.push(results[*result].clone());
            }
        }
        self.trips += 1;
        Ok(())
    }

    fn finish(self, step: &LoopStep, op: &LoopOp) -> Result<Repeated> {
        let stack = |((output, _), rows): (&(usize, Kept), Vec<HostTensor>)| {
            stacked_rows(op, *output, rows).map_err(|e| named(e, &step.node))
        };
        let stacks = self.stacked.iter().zip(self.rows).map(stack).collect::<Result<_>>()?;
        Ok(Repeated { carried: self.carried, trips: self.trips, stacks })
    }
}

fn loop_of(step: &LoopStep) -> Result<&LoopOp> {
    match step.node.op.class() {
        Class::Flow(Flow::Loop(op)) => Ok(op),
        _ => Err(no_value()),
    }
}

impl Running<'_> {
    /// Runs a loop, or gives one that is to go round.
    pub(super) fn repeat(
        &mut self,
        step: &LoopStep,
        slots: &mut [Option<HostTensor>],
    ) -> Result<Option<Turning>> {
        let op = loop_of(step)?;
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
            repeat.carried.push(self.progress.held.now(own.variable, !is_needed)?);
        }
        for (at, tensor) in repeat.carried.iter().enumerate() {
            op.check_carried(at, tensor.shape(), tensor.shape()).map_err(refused)?;
        }
        match self.quickly(&repeat)? {
            Some(repeated) => self.repeated(step, op, repeated, slots).map(|()| None),
            None => Ok(Some(Turning::new(repeat))),
        }
    }

    /// What the next iteration is given of a loop that goes round; nothing, if that has ended.
    pub(super) fn turn(
        &mut self,
        step: &LoopStep,
        turning: &mut Turning,
        slots: &mut [Option<HostTensor>],
    ) -> Result<Option<Vec<Option<HostTensor>>>> {
        let op = loop_of(step)?;
        if let Some(given) = turning.given(op)? {
            self.stop.check()?;
            return Ok(Some(given));
        }
        let ended = std::mem::take(turning).finish(step, op)?;
        self.repeated(step, op, ended, slots).map(|()| None)
    }

    /// A loop has ended.
    fn repeated(
        &mut self,
        step: &LoopStep,
        op: &LoopOp,
        repeated: Repeated,
        slots: &mut [Option<HostTensor>],
    ) -> Result<()> {
        let fed = given(&self.request.planned.plan.signature);
        if !op.counted_by.iter().any(|output| fed.contains(output)) {
            op.check_trips(repeated.trips).map_err(|e| named(e, &step.node))?;
        }
        let variables = repeated.carried.iter().rev().zip(step.variables.iter().rev());
        for (now, own) in variables.filter(|_| repeated.trips > 0) {
            if let Some(change) = own.change {
                self.progress.held.change(own.variable, now.clone(), change);
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
