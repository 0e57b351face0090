//! Runs with branches, loops and assertions: programs one after the other, and between them what the data decides.
//!
//! Variables that branches and loops assign are held by the run, and stored with what random nodes drew when everything
//! has succeeded.

mod quick;
mod repeat;

use std::cell::RefCell;

use convoke_compiler::HOST;
use convoke_compiler::flow::{BranchStep, FlowPlan, Held, Part, Place, ProgramStep, Step};
use convoke_graph_core::{
    AlignedBytes, Class, DType, Error, Flow, GraphSnapshot, HostTensor, Node, NodeId, Result,
    Shape, index_of,
};
use rustc_hash::FxHashMap;

use crate::cancel::Stop;
use crate::core::{Core, Planned, Request};
use crate::executor::Outputs;
use crate::feeds::FeedData;
use crate::metadata::RunMetadata;
use crate::recent::Recent;
use crate::state::{Kept, Snapshot};

/// A plan with branches, loops or assertions, and its programs.
pub(crate) struct Flowing {
    plan: FlowPlan,
    programs: Vec<(Planned, Recent)>,
}

impl Flowing {
    pub fn new(plan: FlowPlan, graph: &GraphSnapshot, n_programs: usize) -> Self {
        let programs = plan
            .plans
            .iter()
            .map(|plan| (Planned::of(plan.clone(), graph.clone(), n_programs), Recent::default()));
        Self { programs: programs.collect(), plan }
    }

    /// Its programs.
    pub fn programs(&self) -> impl Iterator<Item = &Planned> {
        self.programs.iter().map(|(planned, _)| planned)
    }
}

/// What a run with branches or loops keeps to itself until it ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal {
    /// How often it drew from random nodes.
    draws: FxHashMap<NodeId, u32>,
    /// The held variables that have elements, as the run sees them.
    initialized: FxHashMap<NodeId, bool>,
}

impl Journal {
    /// A journal of variables, each with whether it has elements.
    pub fn starting(initialized: impl Iterator<Item = (NodeId, bool)>) -> Self {
        Self { draws: FxHashMap::default(), initialized: initialized.collect() }
    }

    /// Stores what was drawn.
    pub fn store(&self, kept: &mut Kept) {
        for (&node, &draws) in &self.draws {
            let all = kept.draws.entry(node).or_insert(0);
            *all = all.wrapping_add(draws);
        }
    }

    /// How often the run has drawn from a random node.
    pub fn draws(&self, node: NodeId) -> u32 {
        self.draws.get(&node).copied().unwrap_or(0)
    }

    /// Notes that a program has drawn from a random node.
    pub fn draw(&mut self, node: NodeId) {
        let draws = self.draws.entry(node).or_insert(0);
        *draws = draws.wrapping_add(1);
    }

    /// Whether a variable has elements, if the run holds it.
    pub fn is_initialized(&self, variable: NodeId) -> Option<bool> {
        self.initialized.get(&variable).copied()
    }
}

/// A variable while a run holds it.
struct Holding<'a> {
    held: &'a Held,
    start: Snapshot,
    /// How often it was reset before.
    resets: u32,
    /// The elements at the start of the run, once somebody needed them.
    before: Option<HostTensor>,
    /// The elements that the run has assigned.
    now: Option<HostTensor>,
}

/// A run.
struct Running<'a> {
    core: &'a Core,
    flow: &'a Flowing,
    request: &'a Request<'a>,
    stop: Stop<'a>,
    journal: RefCell<Journal>,
    held: FxHashMap<NodeId, Holding<'a>>,
    metadata: &'a mut RunMetadata,
}

/// What is to be known of results before a run stores anything: the dtype and shape of each.
pub(crate) type Check<'a> = &'a dyn Fn(&[(DType, &Shape)]) -> Result<()>;

/// Makes a run, which has changed nothing if it fails. `check` sees what it gives before it stores.
///
/// # Errors
/// As `Session::run`.
pub(crate) fn run(
    core: &Core,
    flow: &Flowing,
    request: &Request<'_>,
    check: Check<'_>,
    metadata: &mut RunMetadata,
) -> Result<Vec<HostTensor>> {
    let stop = core.stop(request);
    let mut running = Running {
        core,
        flow,
        request,
        stop,
        journal: RefCell::default(),
        held: FxHashMap::default(),
        metadata,
    };
    running.hold();
    let given = request.data.iter().map(|data| data.to_tensor().map(Some));
    let given: Vec<Option<HostTensor>> = given.collect::<Result<_>>()?;
    let results = running.whole(&flow.plan.whole, &given, check)?;
    running.metadata.program_cached = running.metadata.preparing.is_zero();
    Ok(results)
}

impl<'a> Running<'a> {
    /// Takes the variables that the run holds as they are now.
    fn hold(&mut self) {
        let kept = self.core.state.lock();
        let mut journal = self.journal.borrow_mut();
        for held in &self.flow.plan.held {
            let variable = held.variable.id;
            let start = kept.read(variable, &held.variable.name).unwrap_or_default();
            journal.initialized.insert(variable, start.version > 0);
            let entry = kept.variables.get(&variable);
            let resets = entry.map_or(0, |entry| entry.generation().resets);
            self.held.insert(variable, Holding { held, start, resets, before: None, now: None });
        }
    }

    /// The elements of a held variable as the run sees them.
    fn elements(&mut self, variable: NodeId) -> Result<HostTensor> {
        let missing = || Error::internal(format!("node {} is not held", variable.0));
        let holding = self.held.get_mut(&variable).ok_or_else(missing)?;
        if let Some(now) = &holding.now {
            return Ok(now.clone());
        }
        if let Some(before) = &holding.before {
            return Ok(before.clone());
        }
        let node = &holding.held.variable;
        if holding.start.version == 0 {
            self.core.state.lock().read(variable, &node.name)?;
        }
        let fact = &node.facts[0];
        let shape = fact.shape().unwrap_or_default();
        let before = match &holding.start.elements {
            Some(elements) => HostTensor::from_shared(fact.dtype, shape, elements.clone())?,
            None => HostTensor::from_bytes(fact.dtype, shape, self.core.load(node)?)?,
        };
        holding.before = Some(before.clone());
        Ok(before)
    }

    /// The whole run, up to and with what it stores.
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
            self.step(step, &mut slots)?;
        }
        let stores = self.prepare()?;
        match last {
            Some(last) => self.program(last, &mut slots, Some((part, check)))?,
            None => {
                let results = results(part, &slots)?;
                let shapes: Vec<_> = results.iter().map(|t| (t.dtype(), t.shape())).collect();
                check(&shapes)?;
                self.stop.check()?;
            }
        }
        self.store(stores)?;
        results(part, &slots)
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
        for &(variable, slot) in &part.starts {
            slots[slot] = Some(self.elements(variable)?);
        }
        Ok(slots)
    }

    fn step(&mut self, step: &Step, slots: &mut [Option<HostTensor>]) -> Result<()> {
        match step {
            Step::Program(step) => self.program(step, slots, None),
            Step::Branch(step) => self.branch(step, slots),
            Step::Loop(step) => self.repeat(step, slots),
            Step::Assert(node, inputs) => {
                let inputs: Vec<HostTensor> =
                    inputs.iter().map(|&slot| value(slots, slot)).collect::<Result<_>>()?;
                let Class::Flow(Flow::Assert(op)) = node.op.class() else { return Ok(()) };
                op.check(&inputs).map_err(|e| named(e, node))
            }
        }
    }

    /// Runs a program. With a `check`, that sees what the part gives before the program runs.
    fn program(
        &mut self,
        step: &ProgramStep,
        slots: &mut [Option<HostTensor>],
        check: Option<(&Part, Check<'_>)>,
    ) -> Result<()> {
        let (planned, recent) = &self.flow.programs[step.plan];
        let mut data: Vec<FeedData<'_>> = Vec::with_capacity(step.feeds.len());
        for feed in &step.feeds {
            data.push(FeedData::Tensor(match *feed {
                Place::Slot(slot) => value(slots, slot)?,
                Place::Variable(variable) => self.elements(variable)?,
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
        }
        let mut tensors = Vec::new();
        let (core, timings) = (self.core, self.request.options.timings);
        compiled.run(
            &data,
            core.run_state(Some(&self.journal)),
            timings,
            self.stop,
            &mut Outputs::Tensors(&mut tensors),
            self.metadata,
        )?;
        compiled.describe(self.metadata);
        for (place, tensor) in step.fetches.iter().zip(tensors) {
            match *place {
                Place::Slot(slot) => slots[slot] = Some(tensor.into_host()?),
                Place::Variable(variable) => {
                    self.journal.borrow_mut().initialized.insert(variable, true);
                    if let Some(holding) = self.held.get_mut(&variable) {
                        holding.now = Some(tensor.into_host()?);
                    }
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

    /// Memory for what the run stores into held variables, so that storing cannot fail.
    fn prepare(&self) -> Result<FxHashMap<NodeId, AlignedBytes>> {
        let mut stores = FxHashMap::default();
        for (&variable, holding) in &self.held {
            let fact = &holding.held.variable.facts[0];
            let len = fact.shape().unwrap_or_default().len().saturating_mul(fact.dtype.n_bytes());
            stores.insert(variable, AlignedBytes::zeroed(len)?);
        }
        self.core.make_room(self.held.values().map(|holding| &holding.held.variable))?;
        Ok(stores)
    }

    /// Stores held variables and draws.
    fn store(&mut self, mut stores: FxHashMap<NodeId, AlignedBytes>) -> Result<()> {
        let journal = self.journal.borrow();
        if self.held.is_empty() && journal.draws.is_empty() {
            return Ok(());
        }
        let mut kept = self.core.state.lock();
        for (&variable, holding) in &self.held {
            let Some(now) = &holding.now else { continue };
            let Some(mut bytes) = stores.remove(&variable) else { continue };
            let entry = kept.entry(&holding.held.variable, HOST);
            if entry.generation().resets != holding.resets {
                continue;
            }
            let others = entry.version != holding.start.version;
            let current = entry.elements.clone().filter(|_| others && holding.held.accumulates);
            match (current, &holding.before) {
                (Some(current), Some(before)) => {
                    let shape = now.shape().clone();
                    let current = HostTensor::from_shared(now.dtype(), shape, current)?;
                    bytes.copy_from_slice(moved(&current, before, now)?.bytes());
                }
                _ => bytes.copy_from_slice(now.bytes()),
            }
            self.core.store(&mut kept, variable, bytes)?;
        }
        journal.store(&mut kept);
        Ok(())
    }
}

/// `current` and what a run added to `before`.
pub(crate) fn moved(
    current: &HostTensor,
    before: &HostTensor,
    now: &HostTensor,
) -> Result<HostTensor> {
    let (dtype, shape) = (now.dtype(), now.shape().clone());
    if dtype.is_float() {
        let (current, before, now) = (current.to_f64s()?, before.to_f64s()?, now.to_f64s()?);
        let sums = current.iter().zip(before.iter().zip(&now)).map(|(c, (b, n))| c + (n - b));
        return HostTensor::from_f64s(dtype, shape, &sums.collect::<Vec<_>>());
    }
    let (current, before, now) = (current.to_i128s()?, before.to_i128s()?, now.to_i128s()?);
    let (least, most) = dtype.int_range().unwrap_or((0, 1));
    let wrapped = |x: i128| (x - least).rem_euclid(most - least + 1) + least;
    let sums = current.iter().zip(before.iter().zip(&now)).map(|(c, (b, n))| wrapped(c + (n - b)));
    HostTensor::from_i128s(dtype, shape, &sums.collect::<Vec<_>>())
}

fn results(part: &Part, slots: &[Option<HostTensor>]) -> Result<Vec<HostTensor>> {
    part.results.iter().map(|&slot| value(slots, slot)).collect()
}

fn value(slots: &[Option<HostTensor>], slot: usize) -> Result<HostTensor> {
    slots.get(slot).cloned().flatten().ok_or_else(no_value)
}

fn no_value() -> Error {
    Error::internal("a part of a run has not given a value")
}

fn named(error: Error, node: &Node) -> Error {
    error.with_node(&*node.name).with_location(node.location)
}
