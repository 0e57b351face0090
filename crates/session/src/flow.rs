//! Runs with branches, loops and assertions: programs one after the other, and between them what the data decides.
//!
//! Variables that branches and loops assign are held by the run, and stored with what random nodes drew when everything
//! has succeeded.

mod quick;
mod repeat;

use std::cell::RefCell;
use std::time::Instant;

use convoke_compiler::HOST;
use convoke_compiler::flow::{
    BranchStep, FlowPlan, Held, Meanwhile, Part, Place, ProgramStep, Step,
};
use convoke_graph_core::{
    AlignedBytes, Class, DType, Element, Error, ErrorKind, Flow, GraphSnapshot, HostTensor, Node,
    NodeId, Result, Shape, Values, index_of,
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

    /// What its runs do.
    pub fn whole(&self) -> &Part {
        &self.plan.whole
    }

    /// The plan of one of its programs.
    pub fn program(&self, at: usize) -> Option<&Planned> {
        self.programs.get(at).map(|(planned, _)| planned)
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
    /// The other variables that it reads, as they were at its start.
    starts: FxHashMap<NodeId, Snapshot>,
}

impl Journal {
    /// A journal of variables, each with whether it has elements.
    pub fn starting(initialized: impl Iterator<Item = (NodeId, bool)>) -> Self {
        Self { initialized: initialized.collect(), ..Self::default() }
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

    /// A variable at the start of the run, if the run reads it.
    pub fn start(&self, variable: NodeId) -> Option<&Snapshot> {
        self.starts.get(&variable)
    }

    /// Lets the elements at the start go: nothing reads them any more.
    pub fn forget_starts(&mut self) {
        self.starts.clear();
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
    /// The elements at the start of the run.
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
    running.hold()?;
    let given = request.data.iter().map(|data| data.to_tensor().map(Some));
    let given: Vec<Option<HostTensor>> = given.collect::<Result<_>>()?;
    let results = running.whole(&flow.plan.whole, &given, check)?;
    running.metadata.program_cached = running.metadata.preparing.is_zero();
    Ok(results)
}

impl<'a> Running<'a> {
    /// Takes the variables that the run holds and reads, as they are now.
    ///
    /// # Errors
    /// A device does not give elements.
    fn hold(&mut self) -> Result<()> {
        let kept = self.core.state.lock();
        let mut journal = self.journal.borrow_mut();
        for held in &self.flow.plan.held {
            let node = &held.variable;
            let start = kept.read(node.id, &node.name).unwrap_or_default();
            journal.initialized.insert(node.id, start.version > 0);
            let entry = kept.variables.get(&node.id);
            let resets = entry.map_or(0, |entry| entry.generation().resets);
            let before = match start.version {
                0 => None,
                _ => Some(self.core.elements_of(&kept, node)?),
            };
            self.held.insert(node.id, Holding { held, start, resets, before, now: None });
        }
        for node in &self.flow.plan.read {
            if let Ok(start) = kept.read(node.id, &node.name) {
                journal.starts.insert(node.id, start);
            }
        }
        Ok(())
    }

    /// The elements of a held variable as the run sees them; zeros for one that may have none.
    fn elements(&mut self, variable: NodeId, is_optional: bool) -> Result<HostTensor> {
        let missing = || Error::internal(format!("node {} is not held", variable.0));
        let holding = self.held.get_mut(&variable).ok_or_else(missing)?;
        if let Some(now) = &holding.now {
            return Ok(now.clone());
        }
        if let Some(before) = &holding.before {
            return Ok(before.clone());
        }
        let node = &holding.held.variable;
        if is_optional {
            let fact = &node.facts[0];
            return HostTensor::zeros(fact.dtype, fact.shape().unwrap_or_default());
        }
        // There is none, and that is said.
        self.core.state.lock().read(node.id, &node.name)?;
        Err(changed(node))
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
            slots[slot] = Some(self.elements(variable, false)?);
        }
        Ok(slots)
    }

    fn step(&mut self, step: &Step, slots: &mut [Option<HostTensor>]) -> Result<()> {
        match step {
            Step::Program(step) => self.program(step, slots, None),
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
        }
    }

    /// What the host computes by itself.
    fn call(&self, node: &Node, given: &[HostTensor]) -> Result<Values> {
        match (node.op.class(), given, self.request.tables) {
            (Class::Flow(Flow::Call(op)), ..) => op.call(given),
            (Class::Flow(Flow::Find(op)), [keys], Some(tables)) => {
                Ok(Values::from_iter([tables.find(op, keys)?]))
            }
            _ => Err(no_value()),
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
                Place::Variable(variable) => {
                    let is_optional = step.optional.contains(&variable);
                    self.elements(variable, is_optional)?
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
        }
        let mut tensors = Vec::new();
        let (core, timings) = (self.core, self.request.options.timings);
        let (begun, before) = (Instant::now(), self.metadata.noted());
        compiled.run(
            &data,
            core.run_state(Some(&self.journal)),
            timings,
            self.stop,
            &mut Outputs::Tensors(&mut tensors),
            self.metadata,
        )?;
        compiled.describe(self.metadata);
        self.metadata.note_executions(step.plan, 1, before, begun.elapsed());
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
            let Some(bytes) = stores.get_mut(&variable) else { continue };
            let node = &holding.held.variable;
            let others = kept.entry(node, HOST).version != holding.start.version;
            match (holding.held.meanwhile, &holding.before) {
                (Meanwhile::Again, _) if others => return Err(changed(node)),
                (Meanwhile::Added, Some(before)) if others => {
                    let current = self.core.elements_of(&kept, node)?;
                    bytes.copy_from_slice(current.bytes());
                    add_difference(now.dtype(), bytes, before.bytes(), now.bytes())?;
                }
                _ => bytes.copy_from_slice(now.bytes()),
            }
        }
        for (&variable, holding) in &self.held {
            let entry = kept.entry(&holding.held.variable, HOST);
            let is_lost = holding.now.is_none() || entry.generation().resets != holding.resets;
            let bytes = stores.remove(&variable).filter(|_| !is_lost);
            bytes.map_or(Ok(()), |bytes| self.core.store(&mut kept, variable, bytes))?;
        }
        journal.store(&mut kept);
        Ok(())
    }
}

/// Adds what a run added, `now` less `before`, to the elements in `bytes`.
///
/// # Errors
/// Elements that are no numbers.
pub(crate) fn add_difference(
    dtype: DType,
    bytes: &mut [u8],
    before: &[u8],
    now: &[u8],
) -> Result<()> {
    fn each<T: Element>(
        bytes: &mut [u8],
        before: &[u8],
        now: &[u8],
        add: impl Fn(T, T, T) -> T,
    ) -> Result<()> {
        let misfit = |_| Error::internal("elements are not aligned");
        let before: &[T] = bytemuck::checked::try_cast_slice(before).map_err(misfit)?;
        let now: &[T] = bytemuck::checked::try_cast_slice(now).map_err(misfit)?;
        let size = size_of::<T>();
        for ((to, &before), &now) in bytes.chunks_exact_mut(size).zip(before).zip(now) {
            let sum = add(bytemuck::checked::pod_read_unaligned(to), before, now);
            to.copy_from_slice(bytemuck::bytes_of(&sum));
        }
        Ok(())
    }
    macro_rules! by_dtype {
        ($($integer:ident $int:ty),*; $($half:ident $h:ty),*) => {
            match dtype {
                DType::F32 => each::<f32>(bytes, before, now, |c, b, n| c + (n - b)),
                DType::F64 => each::<f64>(bytes, before, now, |c, b, n| c + (n - b)),
                $(DType::$half => each::<$h>(bytes, before, now, |c, b, n| {
                    <$h>::from_f32(c.to_f32() + (n.to_f32() - b.to_f32()))
                }),)*
                $(DType::$integer => each::<$int>(bytes, before, now, |c, b, n| {
                    c.wrapping_add(n.wrapping_sub(b))
                }),)*
                other => Err(Error::internal(format!("nothing is added to {other}"))),
            }
        };
    }
    by_dtype!(
        I8 i8, I16 i16, I32 i32, I64 i64, U8 u8, U16 u16, U32 u32, U64 u64;
        F16 half::f16, BF16 half::bf16
    )
}

/// A run is to begin anew: another has changed a variable.
fn changed(node: &Node) -> Error {
    let message = "another run has changed the variable meanwhile; run again";
    Error::new(ErrorKind::Aborted, message).with_node(&*node.name)
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
    error.with_node(&*node.name).with_location(node.location)
}
