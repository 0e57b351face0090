//! Runs with branches, loops and assertions: programs one after the other, and between them what the data decides.
//!
//! Variables that branches and loops assign are held by the run, and stored with what random nodes drew when everything
//! has succeeded. The steps of a partial run are such runs, with variables that the partial run holds.

pub(crate) mod blocks;
mod progress;
mod quick;
mod repeat;

use std::sync::Arc;
use std::time::Instant;

use convoke_compiler::flow::{FlowPlan, Part, Place, ProgramStep, Step};
use convoke_graph_core::{
    Class, DType, Error, ErrorKind, Flow, GraphSnapshot, HostTensor, Node, Result, Shape, Values,
};
use smallvec::SmallVec;

use crate::cache::Cache;
use crate::cancel::Stop;
use crate::core::{Core, Marks, Planned, Request};
use crate::device_tensor::AllFetched;
use crate::devices::HOST_NAME;
use crate::executor::Outputs;
use crate::feeds::FeedData;
use crate::holding::Holdings;
use crate::metadata::RunMetadata;
use crate::queues::{self, Park};
use crate::recent::Recent;
use crate::turn::Taken;
use blocks::Block;
pub(crate) use progress::Progress;

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
    /// Whether it is no part of another.
    is_own: bool,
    progress: Progress,
    /// Its turn, if it counts and has nothing left to wait for.
    turn: Option<Taken<'a>>,
    metadata: &'a mut RunMetadata,
}

/// How a run that is to hold no thread waits.
#[derive(Clone, Copy)]
pub(crate) struct Parks<'a> {
    /// Where it leaves how far it has come, and finds it.
    pub marks: &'a Marks,
    /// What has it go on.
    pub park: Park<'a>,
}

/// What is to be known of results before a run stores anything: the dtype and shape of each.
pub(crate) type Check<'a> = &'a dyn Fn(&[(DType, &Shape)]) -> Result<()>;

/// Makes a run, which has changed nothing if it fails. `check` sees what it gives before it stores. A run that is part of
/// another stores nothing itself, and leaves that to the `held` of the other. Nothing, if the run waits and holds no
/// thread meanwhile.
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
) -> Result<Option<Vec<HostTensor>>> {
    let stop = core.stop(request);
    let before = request.parks.and_then(|parks| parks.marks.progress.take());
    let is_new = before.is_none();
    let progress = match (before, &held) {
        (Some(progress), _) => progress,
        (None, Some(held)) => Progress::new((**held).clone()),
        (None, None) => Progress::new(Holdings::take(core, &flow.plan.held, &flow.plan.read)?),
    };
    let (turn, is_own) = (None, held.is_none());
    let resident = resident(&flow.plan.whole, request.data);
    let mut running =
        Running { core, flow, request, resident, stop, is_own, progress, turn, metadata };
    if is_new {
        running.begin_whole()?;
    }
    let Some(results) = running.go_on(check)? else {
        if let Some(parks) = request.parks {
            parks.marks.progress.replace(Some(running.progress));
        }
        return Ok(None);
    };
    running.metadata.program_cached = running.metadata.preparing.is_zero();
    let own_held = running.progress.held;
    match held {
        Some(held) => *held = own_held,
        None => {
            let own = core.moments.storing(false);
            let storing = request.storing.unwrap_or(&own);
            let stored = own_held.store(core, storing, &running.stop);
            running.metadata.is_overtaken =
                matches!(&stored, Err(e) if e.kind() == ErrorKind::Aborted);
            stored?;
            own_held.note_crossings(running.metadata);
        }
    }
    Ok(Some(results))
}

impl<'a> Running<'a> {
    /// Begins with the whole, from nothing.
    fn begin_whole(&mut self) -> Result<()> {
        if let Some(held) = self.request.held {
            held.begin_again();
        }
        let given = self.given()?;
        let whole = self.begin(&self.flow.plan.whole, &given)?;
        self.progress.frames.push(whole);
        Ok(())
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

    /// What parks it where it waits, if that is not on its thread.
    fn park(&self) -> Option<Park<'a>> {
        self.request.parks.map(|parks| parks.park)
    }

    /// What the host computes by itself; nothing if that waits.
    fn call(&self, node: &Node, given: &[HostTensor]) -> Result<Option<Values>> {
        match (node.op.class(), given, self.request.held) {
            (Class::Flow(Flow::Call(op)), ..) => op.call(given).map(Some),
            (Class::Flow(Flow::Find(op)), [keys], Some(held)) => {
                let tables = held.tables().ok_or_else(no_value)?;
                Ok(Some(Values::from_iter([tables.find(op, keys)?])))
            }
            (Class::Queue(_), given, Some(held)) => {
                let call = queues::Call { node, of: self.progress.at, given };
                Ok(held.act(&call, &self.stop, self.park())?.map(Values::from_iter))
            }
            _ => Err(no_value()),
        }
    }

    /// Reserves room for what the run puts inside of branches and loops, and takes its turn if it counts and has none yet.
    /// False if it waits for that.
    fn reserve(&mut self) -> Result<bool> {
        let Some(held) = self.request.held else { return Ok(true) };
        let planned = self.request.planned;
        if !held.reserve(&planned.uses, &self.stop, self.park())? {
            return Ok(false);
        }
        if self.is_own && planned.counts && !planned.uses.inside.is_empty() {
            self.turn = Some(self.core.turn.take(&self.stop)?);
        }
        Ok(true)
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
                    self.progress.held.now(variable, step.optional.contains(&variable))?
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
            let storing =
                self.request.storing.filter(|_| self.is_own && self.progress.held.lie_on_gpus());
            storing.map_or(Ok(()), |storing| storing.begin_alone(Some(&self.stop)))?;
        }
        let mut tensors = AllFetched::new();
        let (core, timings) = (self.core, self.request.options.timings);
        let (begun, before) = (Instant::now(), self.metadata.noted());
        compiled.run(
            &data,
            core.run_state(self.request, Some(self.progress.held.journal())),
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
                    self.progress.held.change(variable, tensor.into_host()?, change);
                }
            }
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
