//! Loops whose body has work for a GPU: what they carry stays on its device from one program to the next. Where their
//! length is known, many iterations are one program.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use convoke_compiler::flow::{BlockFeed, BlockPlan, LoopStep};
use convoke_compiler::{HOST, ValueId};
use convoke_graph_core::{
    Class, Error, ErrorKind, Flow, Host, HostTensor, LoopOp, Output, Result, Shape,
};

use super::quick::Stack;
use super::repeat::{Repeat, Repeated};
use super::{Flowing, Running, no_value};
use crate::core::{Planned, Sent};
use crate::device_tensor::{AllFetched, Fetched};
use crate::executor::{Compiled, Outputs};
use crate::feeds::FeedData;
use crate::recent::Recent;

/// Operations of one program, at most: as in one where a loop is written out while lowering.
const OPERATIONS_MAX: u64 = 4096;

/// Bytes of slices that one program takes and gives, at most: they lie on the device while it runs.
const SLICES_MAX: u64 = 16 << 20;

/// Picoseconds that one program is predicted to take, at most: it can't be cancelled, and drivers end what takes seconds.
const TIME_MAX: u64 = 500_000_000_000;

/// Picoseconds that it takes to compile an operation, and to submit a program and wait for it.
const COMPILING: u128 = 10_000_000;
const SUBMITTING: u128 = 100_000_000;

/// What decides how many iterations are one program.
#[derive(Debug, Clone, Copy)]
struct Work {
    trips: u64,
    /// Of one iteration.
    operations: u64,
    slices: u64,
    time: u64,
}

impl Work {
    /// How many iterations are one program: as many as make programs and runs take least together, if nothing is there yet.
    /// A power of two, and the rest is a sum of smaller ones: so that loops of any length share their programs.
    fn block(&self) -> u64 {
        let of = |most: u64, each: u64| most.checked_div(each).unwrap_or(u64::MAX);
        let most = of(OPERATIONS_MAX, self.operations)
            .min(of(SLICES_MAX, self.slices))
            .min(of(TIME_MAX, self.time))
            .clamp(1, self.trips.max(1));
        let cost = |&size: &u64| {
            let rest = self.trips % size;
            let compiled = (size + rest).saturating_mul(self.operations);
            let runs = self.trips / size + u64::from(rest.count_ones());
            u128::from(compiled) * COMPILING + u128::from(runs) * SUBMITTING
        };
        (0..=most.ilog2()).map(|power| 1 << power).min_by_key(cost).unwrap_or(1)
    }
}

/// The program of iterations of a loop.
pub(crate) struct Block {
    pub plan: BlockPlan,
    pub planned: Planned,
    recent: Recent,
}

impl Flowing {
    /// The program of `trips` iterations of a loop whose body is one program; without a number, of one that says whether
    /// the loop goes on.
    ///
    /// # Errors
    /// A step that is none of the run's.
    pub(crate) fn block(&self, step: &LoopStep, trips: Option<u64>) -> Result<Arc<Block>> {
        let Class::Flow(Flow::Loop(op)) = step.node.op.class() else { return Err(no_value()) };
        let program = step.program().ok_or_else(no_value)?.plan;
        let (body, _) = self.programs.get(program).ok_or_else(no_value)?;
        let blocks = self.blocks.get(program).ok_or_else(no_value)?;
        blocks.get_or_make(&trips, || {
            let plan = step.block(op, &body.plan, &body.graph, trips)?;
            let planned = Planned::of(plan.plan.clone(), body.graph.clone(), self.n_programs);
            Ok(Arc::new(Block { plan, planned, recent: Recent::default() }))
        })
    }
}

/// A block that has not run.
struct Failed {
    error: Error,
    /// How many iterations may be a program nevertheless; 0 if none. `None` where that is not why it fails.
    then: Option<u64>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, then: None }
    }
}

/// What goes from block to block.
struct Going {
    carried: Vec<Option<FeedData<'static>>>,
    captures: Vec<Option<FeedData<'static>>>,
}

impl Running<'_> {
    /// Runs a loop in blocks, or iteration by iteration if only the data says how many there are. `body` is the program of
    /// one iteration, which gives what is carried in the shapes that it has. Nothing if blocks are no programs.
    pub(super) fn in_blocks(
        &mut self,
        repeat: &Repeat<'_>,
        body: &Compiled,
        mut stacks: Vec<Stack>,
    ) -> Result<Option<Repeated>> {
        let (step, flow) = (repeat.step, self.flow);
        let known = self.known_trips(repeat);
        if known.is_none() && repeat.op.reverse {
            return Ok(None);
        }
        let limit = known.or(repeat.limit);
        let slices = slices(repeat, &stacks);
        let size = |trips| block_of(flow, step, repeat.op, body, slices, trips);
        let mut size = known.map(size).transpose()?;
        let fed = flow.block(step, size)?;
        let mut going = self.placed(repeat, body, &fed.plan.feeds)?;
        let (mut done, mut goes_on) = (0, true);
        let (mut is_freed, mut is_smaller) = (false, false);
        while goes_on && limit.is_none_or(|limit| done < limit) {
            self.stop.check()?;
            let rest = limit.map_or(1, |limit| limit - done);
            let n = 1 << size.unwrap_or(1).min(rest).ilog2();
            let first = if repeat.op.reverse { rest - n } else { done };
            let block = flow.block(step, size.map(|_| n))?;
            let tensors = match self.run_block(repeat, &block, &going, first, n) {
                Ok(tensors) => tensors,
                Err(failed) => {
                    let name = &step.node.name;
                    tracing::debug!("{n} iterations of {name} are no program: {}", failed.error);
                    let next = self.after(failed, n, &mut is_freed)?;
                    // What can't be one program may still run iteration by iteration.
                    if next == 0 && done == 0 {
                        return Ok(None);
                    }
                    is_smaller |= next < n;
                    size = size.map(|_| next.max(1));
                    continue;
                }
            };
            is_freed = false;
            if std::mem::take(&mut is_smaller) {
                body.trips_max.fetch_min(n, Ordering::Relaxed);
            }
            let mut given = tensors.into_iter();
            for (&at, tensor) in block.plan.carried.iter().zip(given.by_ref()) {
                going.carried[at] = Some(match tensor {
                    Fetched::Device(tensor) => FeedData::of_tensor(tensor),
                    Fetched::Host(tensor) => FeedData::Tensor(tensor),
                });
            }
            if size.is_none() && repeat.op.has_pred {
                let pred = given.next().ok_or_else(no_value)?.into_host()?;
                goes_on = pred.bytes().first() == Some(&1);
            }
            let first = usize::try_from(first).map_err(|_| no_value())?;
            for (stack, rows) in stacks.iter_mut().zip(given) {
                stack.put(first, rows.into_host()?.bytes(), limit)?;
            }
            done += n;
        }
        self.finished_blocks(repeat, going, &fed.plan, stacks, done).map(Some)
    }

    /// Runs `n` iterations as one program, whose slices in memory begin with `first`.
    fn run_block(
        &mut self,
        repeat: &Repeat<'_>,
        block: &Block,
        going: &Going,
        first: u64,
        n: u64,
    ) -> std::result::Result<AllFetched, Failed> {
        let [Ok(first), Ok(n_rows)] = [first, n].map(usize::try_from) else {
            return Err(Failed::from(no_value()));
        };
        let feeds = block.plan.feeds.iter();
        let data = feeds.map(|feed| going.feed(repeat, *feed, first, n_rows));
        let data: Vec<FeedData<'_>> = data.collect::<Result<_>>()?;
        let current = self.core.current(&block.planned, &data, Some(&block.recent), self.metadata);
        let (compiled, _stays) = current.map_err(|error| Failed { error, then: Some(n / 2) })?;
        if n > 1 && compiled.is_split() {
            let error = Error::internal("a device has more than one part of it");
            return Err(Failed { error, then: Some(1) });
        }
        let mut tensors = AllFetched::new();
        let (run, timings) = (
            self.core.run_state(self.request, Some(self.progress.held.journal())),
            self.request.options.timings,
        );
        let (begun, before) = (Instant::now(), self.metadata.noted());
        let outputs = &mut Outputs::Tensors(&mut tensors);
        let run = compiled.run(&data, run, timings, self.stop, outputs, self.metadata);
        compiled.describe(self.metadata);
        run.map_err(|error| {
            let has_none = error.kind() == ErrorKind::ResourceExhausted && n > 1;
            Failed { error, then: has_none.then_some(1) }
        })?;
        compiled.predict(self.metadata);
        let plan = repeat.step.program().ok_or_else(no_value)?.plan;
        self.metadata.note_block(plan, before, begun.elapsed());
        Ok(tensors)
    }

    /// How many iterations are tried after `n` of them have failed: as many, once, if memory was freed that programs of
    /// other sizes kept, or else fewer. None if there is no program at all.
    ///
    /// # Errors
    /// That it fails for another reason.
    fn after(&self, failed: Failed, n: u64, is_freed: &mut bool) -> Result<u64> {
        let Failed { error, then } = failed;
        let has_no_memory = error.kind() == ErrorKind::ResourceExhausted;
        if has_no_memory && !std::mem::replace(is_freed, true) && self.core.free_caches() {
            return Ok(n);
        }
        then.ok_or(error)
    }

    /// How many iterations a loop has, if that is known.
    fn known_trips(&self, repeat: &Repeat<'_>) -> Option<u64> {
        let op = repeat.op;
        if !op.has_pred {
            return repeat.limit;
        }
        let first = |at: usize| repeat.carried.get(at).cloned();
        let outer = |output: Output| {
            let at = op.body.captures.iter().position(|capture| *capture == output)?;
            if let Some(Some(given)) = repeat.captures.get(at) {
                return Some(given.clone());
            }
            match self.request.planned.graph.node(output.node).op.class() {
                Class::Host(Host::Constant(tensor)) => Some(tensor.clone()),
                _ => None,
            }
        };
        // What the graph says of its length nothing may have shown.
        let counted = op.counted(&first, &outer).filter(|_| !op.reverse)?;
        Some(repeat.limit.map_or(counted, |limit| counted.min(limit)))
    }

    /// What is carried at first and what is captured, as far as blocks are fed it, each where the body needs it.
    fn placed(&mut self, repeat: &Repeat<'_>, body: &Compiled, fed: &[BlockFeed]) -> Result<Going> {
        let Repeat { step, op, carried, captures, .. } = repeat;
        let feeds = &self.body(step)?.plan.signature.feeds;
        let graph = &self.request.planned.graph;
        let sent = |output: &Output, tensor, is_fed: bool| {
            let at = feeds.iter().position(|feed| feed == output).filter(|_| is_fed);
            let device = at.map_or(HOST, |at| body.first_reader(at));
            Sent { device, tensor, name: graph.node(output.node).name.clone() }
        };
        let carried = carried.iter().zip(&op.body.params).enumerate();
        let carried = carried.map(|(at, (tensor, param))| {
            sent(param, Some(tensor), fed.contains(&BlockFeed::Carried(at)))
        });
        let captures = captures.iter().zip(&op.body.captures).enumerate();
        let captures = captures.map(|(at, (tensor, output))| {
            let is_fed = fed.contains(&BlockFeed::Capture(at));
            sent(output, tensor.as_ref().filter(|_| is_fed), is_fed)
        });
        let wanted: Vec<Sent<'_>> = carried.chain(captures).collect();
        let mut carried = self.core.send(&wanted, self.metadata)?;
        let captures = carried.split_off(op.n_carried.min(carried.len()));
        Ok(Going { carried, captures })
    }

    /// The plan of an iteration.
    fn body(&self, step: &LoopStep) -> Result<&Planned> {
        let program = step.program().ok_or_else(no_value)?;
        self.flow.program(program.plan).ok_or_else(no_value)
    }

    /// What a loop gives in the end: what is asked for comes to the host.
    fn finished_blocks(
        &mut self,
        repeat: &Repeat<'_>,
        going: Going,
        plan: &BlockPlan,
        stacks: Vec<Stack>,
        trips: u64,
    ) -> Result<Repeated> {
        let Repeat { step, op, .. } = repeat;
        let trips = usize::try_from(trips).map_err(|_| no_value())?;
        let mut carried = repeat.carried.clone();
        let asked: Vec<usize> = step.asked(op).filter(|at| plan.carried.contains(at)).collect();
        let given = |&at: &usize| {
            let data = going.carried.get(at).cloned().flatten().ok_or_else(no_value)?;
            let param = op.body.params.get(at).ok_or_else(no_value)?;
            Ok((data, self.request.planned.graph.node(param.node).name.clone()))
        };
        let given: Vec<_> = asked.iter().map(given).collect::<Result<_>>()?;
        let received = self.core.receive(&given, self.metadata)?;
        for (at, tensor) in asked.into_iter().zip(received) {
            carried[at] = tensor;
        }
        let refused = |e| super::named(e, &step.node);
        let stacks = stacks.into_iter().map(|stack| stack.finish(op, trips).map_err(refused));
        Ok(Repeated { carried, trips, stacks: stacks.collect::<Result<_>>()? })
    }
}

/// How many iterations of a loop are one program, if all of them are so many. `body` is the program of one, which takes and
/// gives slices of so many bytes.
///
/// # Errors
/// A step that is none of the run's.
pub(crate) fn block_of(
    flow: &Flowing,
    step: &LoopStep,
    op: &LoopOp,
    body: &Compiled,
    slices: u64,
    trips: u64,
) -> Result<u64> {
    let program = step.program().ok_or_else(no_value)?;
    let planned = flow.program(program.plan).ok_or_else(no_value)?;
    let time = body.placed.as_ref().map_or(0, |placed| placed.solution.prediction().makespan);
    if body.comes_back(&next_of(step, op, body, planned)) {
        // Each iteration needs memory of its own on the device.
        return Ok(1);
    }
    let operations = step.n_operations(op, &planned.plan);
    let block = Work { trips, operations, slices, time }.block();
    Ok(block.min(body.trips_max.load(Ordering::Relaxed)))
}

/// For the carried tensors that the program of one iteration is fed, what of it they are in the next one.
fn next_of(
    step: &LoopStep,
    op: &LoopOp,
    body: &Compiled,
    planned: &Planned,
) -> Vec<(ValueId, ValueId)> {
    let fetches = &planned.plan.signature.fetches;
    let params = op.body.params.iter().take(op.n_carried);
    let next = step.results.iter().skip(op.next_at());
    let pair = |(param, next): (&Output, &Output)| {
        let fetch = fetches.iter().position(|fetch| fetch == next);
        let fetched = fetch.and_then(|at| Some(body.program.fetches.get(at)?.value));
        Some((body.fed(*param)?, fetched.or_else(|| body.fed(*next))?))
    };
    params.zip(next).filter_map(pair).collect()
}

/// The bytes of what an iteration takes slices of and stacks.
fn slices(repeat: &Repeat<'_>, stacks: &[Stack]) -> u64 {
    let row = |tensor: &HostTensor| {
        let n = tensor.dims().first().copied().unwrap_or(0).max(1);
        (tensor.bytes().len() / n) as u64
    };
    let given = stacks.iter().map(|stack| stack.n_bytes() as u64);
    repeat.scanned.iter().map(row).chain(given).fold(0, u64::saturating_add)
}

impl Going {
    /// What a block is fed, whose slices in memory begin with `first`.
    fn feed<'a>(
        &self,
        repeat: &'a Repeat<'_>,
        feed: BlockFeed,
        first: usize,
        n: usize,
    ) -> Result<FeedData<'a>> {
        match feed {
            BlockFeed::Carried(at) => self.carried.get(at).cloned().flatten().ok_or_else(no_value),
            BlockFeed::Capture(at) => self.captures.get(at).cloned().flatten().ok_or_else(no_value),
            BlockFeed::Slices(at) => {
                let tensor = repeat.scanned.get(at).ok_or_else(no_value)?;
                let mut dims = tensor.dims().to_vec();
                let all = dims.first_mut().ok_or_else(no_value)?;
                let n_bytes = tensor.bytes().len() / (*all).max(1);
                *all = n;
                let range = first.checked_mul(n_bytes).zip(n.checked_mul(n_bytes));
                let (from, len) = range.ok_or_else(no_value)?;
                let bytes = tensor.bytes().get(from..).and_then(|rest| rest.get(..len));
                let bytes = bytes.ok_or_else(no_value)?;
                Ok(FeedData::Borrowed(tensor.dtype(), Shape::new(&dims)?, bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: (size + rest) * operations * 10 us of compiling, and 100 us for each run.
    #[test]
    fn blocks_are_as_large_as_they_pay() {
        let work = Work { trips: 10_000, operations: 5, slices: 0, time: 0 };
        assert_eq!(work.block(), 128);
        // A submission costs less than 100 iterations of 10 operations.
        assert_eq!(Work { trips: 100, operations: 1000, ..work }.block(), 1);
        // 16 MiB hold 16 slices of 1 MiB, and half a second five iterations of 0.1.
        assert_eq!(Work { slices: 1 << 20, ..work }.block(), 16);
        assert_eq!(Work { time: 100_000_000_000, ..work }.block(), 4);
        // 4,096 operations at most, however often the loop goes round; never more than it does.
        assert_eq!(Work { trips: u64::MAX, ..work }.block(), 512);
        assert_eq!(Work { trips: 3, operations: 1, ..work }.block(), 2);
        assert_eq!(Work { operations: u64::MAX, slices: u64::MAX, ..work }.block(), 1);
    }
}
