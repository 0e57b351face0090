//! Runs with branches, loops and assertions: programs one after the other, and between them what the data decides.
//!
//! Variables that branches and loops assign are held by the run, and stored with what random nodes drew when everything
//! has succeeded. The steps of a partial run are such runs, with variables that the partial run holds.

pub(crate) mod blocks;
mod quick;
mod repeat;

use std::sync::Arc;
use std::time::Instant;

use convoke_compiler::flow::{BranchStep, FlowPlan, Part, Place, ProgramStep, Start, Step};
use convoke_graph_core::{
    Class, DType, Error, ErrorKind, Flow, GraphSnapshot, HostTensor, Node, NodeId, Result, Shape,
    Values, index_of,
};
use smallvec::SmallVec;

use crate::cache::Cache;
use crate::cancel::Stop;
use crate::core::{Core, Planned, Request};
use crate::devices::HOST_NAME;
use crate::executor::Outputs;
use crate::feeds::FeedData;
use crate::holding::Holdings;
use crate::metadata::RunMetadata;
use crate::queues;
use crate::recent::Recent;
use crate::submit::HeldUp;
use crate::turn::Taken;
use blocks::Block;

/// How many programs of many iterations are kept of each loop.
const BLOCKS_MAX: usize = 16;

/// A plan with branches, loops or assertions, and its programs.
pub(crate) struct Flowing {
    plan: FlowPlan,
    programs: Vec<(Planned, Recent)>,
    /// For each program those that are many times that one, by how many.
    blocks: Vec<Cache<Option<u64>, Arc<Block>>>,
    /// How many programs each plan keeps.
    n_programs: usize,
}

impl Flowing {
    pub fn new(plan: FlowPlan, graph: &GraphSnapshot, n_programs: usize) -> Self {
        let programs = plan
            .plans
            .iter()
            .map(|plan| (Planned::of(plan.clone(), graph.clone(), n_programs), Recent::default()));
        let blocks = plan.plans.iter().map(|_| Cache::new(BLOCKS_MAX)).collect();
        Self { programs: programs.collect(), plan, blocks, n_programs }
    }

    /// What its runs do.
    pub fn whole(&self) -> &Part {
        &self.plan.whole
    }

    /// The plan of one of its programs.
    pub fn program(&self, at: usize) -> Option<&Planned> {
        self.programs.get(at).map(|(planned, _)| planned)
    }

    /// The programs of many iterations that there are.
    pub fn blocks(&self) -> Vec<Arc<Block>> {
        let of =
            |blocks: &Cache<_, Arc<Block>>| blocks.lock().values().cloned().collect::<Vec<_>>();
        self.blocks.iter().flat_map(of).collect()
    }

    /// Forgets the programs of many iterations, and which were used last.
    pub fn forget(&self) {
        self.programs.iter().for_each(|(_, recent)| recent.clear());
        self.blocks.iter().for_each(|blocks| blocks.lock().clear());
    }

    /// Its programs.
    pub fn programs(&self) -> impl Iterator<Item = &Planned> {
        self.programs.iter().map(|(planned, _)| planned)
    }
}

/// A run.
struct Running<'a> {
    core: &'a Core,
    flow: &'a Flowing,
    request: &'a Request<'a>,
    /// The slots of the whole whose values stay on a GPU.
    resident: SmallVec<[(usize, &'a FeedData<'a>); 2]>,
    stop: Stop<'a>,
    held: Holdings,
    /// Whether it is no part of another.
    is_own: bool,
    /// The branch or loop of the whole that runs.
    at: NodeId,
    /// Its turn, if it counts and has nothing left to wait for.
    turn: Option<Taken<'a>>,
    metadata: &'a mut RunMetadata,
}

/// What is to be known of results before a run stores anything: the dtype and shape of each.
pub(crate) type Check<'a> = &'a dyn Fn(&[(DType, &Shape)]) -> Result<()>;

/// Makes a run, which has changed nothing if it fails. `check` sees what it gives before it stores. A run that is part of
/// another stores nothing itself, and leaves that to the `held` of the other.
///
/// # Errors
/// As `Session::run`.
pub(crate) fn run(
    core: &Core,
    flow: &Flowing,
    request: &Request<'_>,
    held: Option<&mut Holdings>,
    check: Check<'_>,
    metadata: &mut RunMetadata,
) -> Result<Vec<HostTensor>> {
    let stop = core.stop(request);
    if let Some(held) = request.held {
        held.begin_again();
    }
    let own = match &held {
        Some(held) => (**held).clone(),
        None => Holdings::take(core, &flow.plan.held, &flow.plan.read)?,
    };
    let (at, turn, is_own) = (NodeId(0), None, held.is_none());
    let resident = resident(&flow.plan.whole, request.data);
    let mut running =
        Running { core, flow, request, resident, stop, held: own, is_own, at, turn, metadata };
    let given = running.given()?;
    let results = running.whole(&flow.plan.whole, &given, check)?;
    running.metadata.program_cached = running.metadata.preparing.is_zero();
    match held {
        Some(held) => *held = running.held,
        None => {
            let own = core.moments.storing(false);
            let storing = request.storing.unwrap_or(&own);
            let stored = running.held.store(core, storing, &running.stop);
            running.metadata.is_overtaken =
                matches!(&stored, Err(e) if e.kind() == ErrorKind::Aborted);
            stored?;
            running.held.note_crossings(running.metadata);
        }
    }
    Ok(results)
}

impl<'a> Running<'a> {
    /// The whole run, up to what it holds. It counts by itself, if it does and is no part of another.
    fn whole(
        &mut self,
        part: &Part,
        given: &[Option<HostTensor>],
        check: Check<'_>,
    ) -> Result<Vec<HostTensor>> {
        let mut slots = self.begin(part, given)?;
        // Only the last program stores by itself.
        let (last, before) = match part.steps.split_last() {
            Some((Step::Program(last), before)) => (Some(last), before),
            _ => (None, &part.steps[..]),
        };
        for step in before {
            if let Some(node) = step.node() {
                self.at = node;
            }
            match step {
                Step::Program(step) => self.program(step, &mut slots, true, None)?,
                step => self.step(step, &mut slots)?,
            }
        }
        self.reserve()?;
        match last {
            Some(last) => self.program(last, &mut slots, true, Some((part, check)))?,
            None => {
                let results = results(part, &slots)?;
                let shapes: Vec<_> = results.iter().map(|t| (t.dtype(), t.shape())).collect();
                check(&shapes)?;
                self.stop.check()?;
            }
        }
        results(part, &slots)
    }

    /// What is fed and is not to stay on a GPU.
    fn given(&self) -> Result<Vec<Option<HostTensor>>> {
        let slots = self.flow.plan.whole.given.iter();
        let given = self.request.data.iter().zip(slots).map(|(data, slot)| {
            let stays = slot.is_none_or(|slot| self.resident.iter().any(|(own, _)| *own == slot));
            if stays { Ok(None) } else { data.to_tensor().map(Some) }
        });
        given.collect()
    }

    fn part(&mut self, part: &Part, given: &[Option<HostTensor>]) -> Result<Vec<HostTensor>> {
        let mut slots = self.begin(part, given)?;
        for step in &part.steps {
            self.step(step, &mut slots)?;
        }
        results(part, &slots)
    }

    /// The slots of a part, with what it is given and what there is at its start.
    fn begin(
        &mut self,
        part: &Part,
        given: &[Option<HostTensor>],
    ) -> Result<Vec<Option<HostTensor>>> {
        let mut slots = vec![None; part.n_slots];
        for (slot, tensor) in part.given.iter().zip(given) {
            if let Some(slot) = *slot {
                slots[slot].clone_from(tensor);
            }
        }
        for (slot, tensor) in &part.constants {
            slots[*slot] = Some(tensor.clone());
        }
        for &Start { variable, slot, must } in &part.starts {
            if must || self.held.is_initialized(variable) {
                slots[slot] = Some(self.held.now(variable, false)?);
            }
        }
        Ok(slots)
    }

    fn step(&mut self, step: &Step, slots: &mut [Option<HostTensor>]) -> Result<()> {
        match step {
            Step::Program(step) => self.program(step, slots, false, None),
            Step::Branch(step) => self.branch(step, slots),
            Step::Loop(step) => self.repeat(step, slots),
            Step::Assert(node, inputs) => {
                let Class::Flow(Flow::Assert(op)) = node.op.class() else { return Ok(()) };
                op.check(&values(slots, inputs)?).map_err(|e| named(e, node))
            }
            Step::Call(step) => {
                self.stop.check()?;
                let given = values(slots, &step.inputs)?;
                let results = self.call(&step.node, &given).map_err(|e| named(e, &step.node))?;
                for &(output, slot) in &step.outputs {
                    slots[slot] = Some(results.get(output).cloned().ok_or_else(no_value)?);
                }
                Ok(())
            }
            Step::ReadOr(step) => {
                let start = slots.get(step.start).cloned().flatten();
                slots[step.output] = Some(start.map_or_else(|| value(slots, step.initial), Ok)?);
                Ok(())
            }
        }
    }

    /// What the host computes by itself.
    fn call(&self, node: &Node, given: &[HostTensor]) -> Result<Values> {
        match (node.op.class(), given, self.request.held) {
            (Class::Flow(Flow::Call(op)), ..) => op.call(given),
            (Class::Flow(Flow::Find(op)), [keys], Some(held)) => {
                let tables = held.tables().ok_or_else(no_value)?;
                Ok(Values::from_iter([tables.find(op, keys)?]))
            }
            (Class::Queue(_), given, Some(held)) => {
                let call = queues::Call { node, of: self.at, given };
                let mut held_up = None;
                let values = held.act(&call, &self.stop, &mut || self.hold_up(&mut held_up))?;
                Ok(Values::from_iter(values))
            }
            _ => Err(no_value()),
        }
    }

    /// Reserves room for what the run puts inside of branches and loops, and takes its turn if it counts and has none yet.
    fn reserve(&mut self) -> Result<()> {
        let Some(held) = self.request.held else { return Ok(()) };
        let mut held_up = None;
        held.reserve(&self.request.planned.uses, &self.stop, &mut || self.hold_up(&mut held_up))?;
        drop(held_up);
        let planned = self.request.planned;
        if self.is_own && planned.counts && !planned.uses.inside.is_empty() {
            self.turn = Some(self.core.turn.take(&self.stop)?);
        }
        Ok(())
    }

    /// Has another thread work while a submitted run waits on this one.
    fn hold_up(&self, held_up: &mut Option<HeldUp<'a>>) {
        if self.request.token.is_some() && held_up.is_none() {
            *held_up = Some(self.core.runners.hold_up());
        }
    }

    /// Runs a program, of the whole or of another part. With a `check`, that sees what the part gives before the program
    /// runs.
    fn program(
        &mut self,
        step: &ProgramStep,
        slots: &mut [Option<HostTensor>],
        is_of_whole: bool,
        check: Option<(&Part, Check<'_>)>,
    ) -> Result<()> {
        let (planned, recent) = &self.flow.programs[step.plan];
        let mut data: Vec<FeedData<'_>> = Vec::with_capacity(step.feeds.len());
        for feed in &step.feeds {
            let mut resident = self.resident.iter().filter(|_| is_of_whole);
            if let Some((_, fed)) = resident.find(|(slot, _)| *feed == Place::Slot(*slot)) {
                data.push((*fed).clone());
                continue;
            }
            data.push(FeedData::Tensor(match *feed {
                Place::Slot(slot) => value(slots, slot)?,
                Place::Variable(variable) | Place::Changed(variable, _) => {
                    self.held.now(variable, step.optional.contains(&variable))?
                }
            }));
        }
        let (compiled, _stays) = self.core.current(planned, &data, Some(recent), self.metadata)?;
        if let Some((part, check)) = check {
            let fetched = |slot: usize| {
                let at = step.fetches.iter().position(|fetch| *fetch == Place::Slot(slot))?;
                compiled.fetched(at)
            };
            let shape = |&slot: &usize| match &slots[slot] {
                Some(tensor) => Ok((tensor.dtype(), tensor.shape())),
                None => fetched(slot).ok_or_else(no_value),
            };
            check(&part.results.iter().map(shape).collect::<Result<Vec<_>>>()?)?;
            let storing = self.request.storing.filter(|_| self.is_own && self.held.lie_on_gpus());
            storing.map_or(Ok(()), |storing| storing.begin_alone(Some(&self.stop)))?;
        }
        let mut tensors = Vec::new();
        let (core, timings) = (self.core, self.request.options.timings);
        let (begun, before) = (Instant::now(), self.metadata.noted());
        compiled.run(
            &data,
            core.run_state(self.request, Some(self.held.journal())),
            timings,
            self.stop,
            &mut Outputs::Tensors(&mut tensors),
            self.metadata,
        )?;
        compiled.predict(self.metadata);
        compiled.describe(self.metadata);
        self.metadata.note_executions(step.plan, 1, before, begun.elapsed());
        for (place, tensor) in step.fetches.iter().zip(tensors) {
            match *place {
                Place::Slot(slot) => slots[slot] = Some(tensor.into_host()?),
                Place::Variable(_) => {}
                Place::Changed(variable, change) => {
                    self.held.change(variable, tensor.into_host()?, change);
                }
            }
        }
        Ok(())
    }

    fn branch(&mut self, step: &BranchStep, slots: &mut [Option<HostTensor>]) -> Result<()> {
        let Class::Flow(Flow::Branch(op)) = step.node.op.class() else { return Err(no_value()) };
        let index = index_of(&value(slots, step.index)?).map_err(|e| named(e, &step.node))?;
        let (part, results) = &step.branches[op.chosen(index)];
        let given = step.captures.iter().map(|slot| slot.and_then(|slot| slots[slot].clone()));
        let given: Vec<Option<HostTensor>> = given.collect();
        let values = self.part(part, &given)?;
        for (&(output, slot), result) in step.outputs.iter().zip(results) {
            slots[slot] = Some(match result {
                Some(result) => values[*result].clone(),
                None => op.absent(output)?,
            });
        }
        Ok(())
    }
}

/// What is fed from a GPU and only programs of the whole read: it stays there. Nobody overwrites it, as it is not donated.
fn resident<'a>(
    whole: &Part,
    data: &'a [FeedData<'a>],
) -> SmallVec<[(usize, &'a FeedData<'a>); 2]> {
    let stays = |(data, slot): (&'a FeedData<'a>, &Option<usize>)| {
        let is_there = matches!(data, FeedData::Device(..));
        slot.filter(|&slot| is_there && !is_read_by_others(whole, slot)).map(|slot| (slot, data))
    };
    data.iter().zip(&whole.given).filter_map(stays).collect()
}

/// Whether anything but a program of the part reads a slot.
fn is_read_by_others(part: &Part, slot: usize) -> bool {
    let reads = |step: &Step| match step {
        Step::Program(_) => false,
        Step::Branch(step) => step.index == slot || step.captures.contains(&Some(slot)),
        Step::Loop(step) => {
            [step.pred, step.count].contains(&Some(slot))
                || step.carried.contains(&slot)
                || step.scanned.contains(&slot)
                || step.captures.contains(&Some(slot))
        }
        Step::Assert(_, inputs) => inputs.contains(&slot),
        Step::Call(step) => step.inputs.contains(&slot),
        Step::ReadOr(step) => [step.start, step.initial].contains(&slot),
    };
    part.results.contains(&slot) || part.steps.iter().any(reads)
}

fn results(part: &Part, slots: &[Option<HostTensor>]) -> Result<Vec<HostTensor>> {
    values(slots, &part.results)
}

fn values(slots: &[Option<HostTensor>], places: &[usize]) -> Result<Vec<HostTensor>> {
    places.iter().map(|&slot| value(slots, slot)).collect()
}

fn value(slots: &[Option<HostTensor>], slot: usize) -> Result<HostTensor> {
    slots.get(slot).cloned().flatten().ok_or_else(no_value)
}

fn no_value() -> Error {
    Error::internal("a part of a run has not given a value")
}

fn named(error: Error, node: &Node) -> Error {
    error.with_node(&*node.name).with_location(node.location).with_device(HOST_NAME)
}
