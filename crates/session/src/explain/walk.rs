//! Follows shapes through the parts of a run, and makes the programs that they decide.

use std::sync::Arc;

use convoke_compiler::flow::{
    BranchStep, CallStep, LoopStep, Part, Place, ProgramStep, Start, Step,
};
use convoke_compiler::{Program, Source};
use convoke_graph_core::{
    Class, DType, Flow, GraphSnapshot, Host, HostTensor, LoopOp, Node, NodeId, Output, Result,
    Shape,
};
use rustc_hash::FxHashSet;

use super::Explanation;
use super::build::{FED, GIVEN, location};
use super::parts::{
    ExplainedPart, ExplainedParts, ExplainedProgram, ExplainedStep, PartValue, StepNode, StepWork,
    Trips,
};
use crate::core::{Core, Planned};
use crate::executor::Compiled;
use crate::feeds::FeedData;
use crate::flow::Flowing;
use crate::metadata::RunMetadata;
use crate::recent::Current;

/// What is known of a value before a run.
#[derive(Debug, Clone)]
pub(super) struct Known {
    id: usize,
    name: Arc<str>,
    pub(super) like: Option<(DType, Shape)>,
    /// The elements, if they are the same in every run with these feeds.
    pub(super) elements: Option<HostTensor>,
}

/// The parts of a run, and its programs, as far as they are known, with their places among those of the parts.
///
/// # Errors
/// A feed that its device does not give.
pub(crate) fn explain(
    core: &Core,
    planned: &Planned,
    flow: &Flowing,
    data: &[FeedData<'_>],
) -> Result<(ExplainedParts, Vec<(usize, Program)>)> {
    let metadata = RunMetadata::default();
    let (programs, compiled) = (Vec::new(), Vec::new());
    let graph = &planned.graph;
    let feeds = &planned.plan.signature.feeds;
    let fed = feeds.iter().map(|feed| graph.node(feed.node).name.clone()).collect();
    let mut walk = Walk { core, flow, graph, fed, metadata, n_values: 0, programs, compiled };
    let mut given = Vec::with_capacity(feeds.len());
    for (at, feed) in feeds.iter().enumerate() {
        given.push(Some(match data.get(at) {
            Some(data) => walk.known(walk.output_name(*feed), Some(data.to_tensor()?)),
            // What comes from queues, readers and tables.
            None => walk.of_output(&graph.node(feed.node).clone(), feed.index as usize),
        }));
    }
    let (whole, _) = walk.part(flow.whole(), &given)?;
    Ok((ExplainedParts { whole, programs: walk.programs }, walk.compiled))
}

pub(super) struct Walk<'a> {
    pub(super) core: &'a Core,
    pub(super) flow: &'a Flowing,
    graph: &'a GraphSnapshot,
    /// The names of what the run is fed.
    fed: FxHashSet<Arc<str>>,
    metadata: RunMetadata,
    n_values: usize,
    programs: Vec<ExplainedProgram>,
    /// With their places among the programs.
    compiled: Vec<(usize, Program)>,
}

pub(super) type Slots = Vec<Option<Known>>;

impl Walk<'_> {
    /// A new value, with these elements.
    fn known(&mut self, name: Arc<str>, elements: Option<HostTensor>) -> Known {
        let like = elements.as_ref().map(|tensor| (tensor.dtype(), tensor.shape().clone()));
        Known { elements, ..self.like(name, like) }
    }

    /// A new value, of which this is known.
    fn like(&mut self, name: Arc<str>, like: Option<(DType, Shape)>) -> Known {
        self.n_values += 1;
        Known { id: self.n_values - 1, name, like, elements: None }
    }

    fn output_name(&self, output: Output) -> Arc<str> {
        let node = self.graph.node(output.node);
        match output.index {
            0 => node.name.clone(),
            index => format!("{}:{index}", node.name).into(),
        }
    }

    /// What the graph tells of an output.
    fn of_output(&mut self, node: &Node, output: usize) -> Known {
        let fact = node.facts.get(output);
        let like = fact.and_then(|fact| Some((fact.dtype, fact.shape()?)));
        let name = self.output_name(Output { node: node.id, index: output as u32 });
        self.like(name, like)
    }

    /// A variable that the run holds.
    fn variable(&mut self, variable: NodeId) -> Known {
        let node = self.graph.node(variable).clone();
        self.of_output(&node, 0)
    }

    /// The slots of a part, with what it is given and what there is at its start.
    pub(super) fn begin(&mut self, part: &Part, given: &[Option<Known>]) -> Slots {
        let mut slots: Slots = vec![None; part.n_slots];
        for (slot, known) in part.given.iter().zip(given) {
            if let Some(slot) = *slot {
                slots[slot].clone_from(known);
            }
        }
        for (slot, tensor) in &part.constants {
            slots[*slot] = Some(self.known("constant".into(), Some(tensor.clone())));
        }
        for &Start { variable, slot, .. } in &part.starts {
            slots[slot] = Some(self.variable(variable));
        }
        slots
    }

    fn part(&mut self, part: &Part, given: &[Option<Known>]) -> Result<(ExplainedPart, Slots)> {
        let mut slots = self.begin(part, given);
        let mut steps = Vec::with_capacity(part.steps.len());
        for step in &part.steps {
            steps.push(self.step(step, &mut slots)?);
        }
        let results = part.results.iter().map(|&slot| slots.get(slot).cloned().flatten()).collect();
        Ok((ExplainedPart { steps }, results))
    }

    fn step(&mut self, step: &Step, slots: &mut Slots) -> Result<ExplainedStep> {
        match step {
            Step::Program(step) => self.program(step, slots),
            Step::Branch(step) => self.branch(step, slots),
            Step::Loop(step) => self.repeat(step, slots),
            Step::Assert(node, inputs) => Ok(ExplainedStep {
                work: StepWork::Assertion(step_node(node)),
                takes: values(slots, inputs.iter().copied()),
                gives: Vec::new(),
                stays: None,
            }),
            Step::ReadOr(step) => {
                let takes = values(slots, [step.start, step.initial].into_iter());
                slots[step.output] = Some(self.of_output(&step.node, 0));
                let gives = values(slots, std::iter::once(step.output));
                let work = StepWork::ReadOr(step_node(&step.node));
                Ok(ExplainedStep { work, takes, gives, stays: None })
            }
            Step::Call(CallStep { node, inputs, outputs }) => {
                let takes = values(slots, inputs.iter().copied());
                for &(output, slot) in outputs {
                    slots[slot] = Some(self.of_output(node, output));
                }
                let gives = values(slots, outputs.iter().map(|&(_, slot)| slot));
                Ok(ExplainedStep {
                    work: StepWork::Call(step_node(node)),
                    takes,
                    gives,
                    stays: None,
                })
            }
        }
    }

    fn program(&mut self, step: &ProgramStep, slots: &mut Slots) -> Result<ExplainedStep> {
        let flow = self.flow;
        let Some(planned) = flow.program(step.plan) else {
            return Err(convoke_graph_core::Error::internal("a step without its program"));
        };
        let mut fed = Vec::with_capacity(step.feeds.len());
        for feed in &step.feeds {
            fed.push(match *feed {
                Place::Slot(slot) => slots.get(slot).cloned().flatten(),
                Place::Variable(variable) | Place::Changed(variable, _) => {
                    Some(self.variable(variable))
                }
            });
        }
        let takes = fed.iter().flatten().map(value).collect();
        let at = self.programs.len();
        let compiled = self.compile(planned, &fed);
        let explanation = compiled.as_ref().map_err(Clone::clone).and_then(|compiled| {
            let explanation = Explanation::of(compiled, &planned.plan, &planned.graph);
            let explanation =
                explanation.map(|explanation| Box::new(self.told_givers(explanation)));
            explanation.map_err(|e| e.to_string())
        });
        self.programs.push(ExplainedProgram { explanation, plan: step.plan });
        let program = compiled.as_ref().ok().map(|compiled| (at, compiled.program.clone()));
        self.compiled.extend(program);
        let mut gives = Vec::with_capacity(step.fetches.len());
        for (place, (fetch, output)) in
            step.fetches.iter().zip(planned.plan.signature.fetches.iter().enumerate())
        {
            let known = match &compiled {
                Ok(compiled) => {
                    let like = compiled.fetched(fetch).map(|(dtype, shape)| (dtype, shape.clone()));
                    let elements = constant(compiled, fetch);
                    Known { elements, ..self.like(self.output_name(*output), like) }
                }
                Err(_) => {
                    let node = self.graph.node(output.node).clone();
                    self.of_output(&node, output.index as usize)
                }
            };
            match *place {
                Place::Slot(slot) => {
                    gives.push(value(&known));
                    slots[slot] = Some(known);
                }
                Place::Variable(variable) | Place::Changed(variable, _) => {
                    let name = self.graph.node(variable).name.clone();
                    gives.push(value(&Known { name, ..known }));
                }
            }
        }
        Ok(ExplainedStep { work: StepWork::Program(at), takes, gives, stays: None })
    }

    /// An explanation that says of what its program is fed whether the caller gives it.
    fn told_givers(&self, mut explanation: Explanation) -> Explanation {
        for node in &mut explanation.absent {
            if node.why == FED && !self.fed.contains(&node.name) {
                node.why = GIVEN;
            }
        }
        explanation
    }

    /// A program for what is known of its feeds, or why there is none yet.
    pub(super) fn compile(
        &mut self,
        planned: &Planned,
        fed: &[Option<Known>],
    ) -> std::result::Result<Current, String> {
        let mut data: Vec<FeedData<'_>> = Vec::with_capacity(fed.len());
        for (known, &decides) in fed.iter().zip(&planned.plan.shape_feeds) {
            let name = known.as_ref().map_or("?", |known| &*known.name);
            match known {
                Some(Known { elements: Some(tensor), .. }) => {
                    data.push(FeedData::Tensor(tensor.clone()));
                }
                Some(Known { like: Some((dtype, shape)), .. }) if !decides => {
                    data.push(FeedData::Borrowed(*dtype, shape.clone(), &[]));
                }
                _ => {
                    let what = if decides { "elements decide shapes, and" } else { "shape" };
                    let verb = if decides { "are" } else { "is" };
                    return Err(format!("not known before a run: the {what} of {name} {verb}"));
                }
            }
        }
        let compiled = self.core.compiled(planned, &data, None, &mut self.metadata);
        compiled.map_err(|error| format!("there is none for these shapes: {error}"))
    }

    fn branch(&mut self, step: &BranchStep, slots: &mut Slots) -> Result<ExplainedStep> {
        let captures = step.captures.iter().flatten().copied();
        let takes = values(slots, std::iter::once(step.index).chain(captures));
        let given: Slots =
            step.captures.iter().map(|slot| slot.and_then(|slot| slots[slot].clone())).collect();
        let mut parts = Vec::with_capacity(step.branches.len());
        // For each output, what all parts that give it agree on.
        let mut agreed: Vec<Option<Option<(DType, Shape)>>> = vec![None; step.outputs.len()];
        for (part, results) in &step.branches {
            let (explained, given) = self.part(part, &given)?;
            parts.push(explained);
            for (agreed, result) in agreed.iter_mut().zip(results) {
                let Some(result) = *result else { continue };
                let like = given.get(result).cloned().flatten().and_then(|known| known.like);
                match agreed {
                    None => *agreed = Some(like),
                    Some(before) if *before != like => *before = None,
                    Some(_) => {}
                }
            }
        }
        for (&(output, slot), agreed) in step.outputs.iter().zip(agreed) {
            let known = self.of_output(&step.node, output);
            slots[slot] = Some(Known { like: known.like.clone().or(agreed.flatten()), ..known });
        }
        let gives = values(slots, step.outputs.iter().map(|&(_, slot)| slot));
        Ok(ExplainedStep {
            work: StepWork::Branch(step_node(&step.node), parts),
            takes,
            gives,
            stays: None,
        })
    }

    fn repeat(&mut self, step: &LoopStep, slots: &mut Slots) -> Result<ExplainedStep> {
        let Class::Flow(Flow::Loop(op)) = step.node.op.class() else {
            return Err(convoke_graph_core::Error::internal("a loop that is none"));
        };
        let outside = step.pred.iter().chain(&step.count).chain(&step.carried);
        let outside = outside.chain(&step.scanned).chain(step.captures.iter().flatten());
        let mut takes = values(slots, outside.copied());
        let variables: Vec<Known> =
            step.variables.iter().map(|own| self.variable(own.variable)).collect();
        takes.extend(variables.iter().map(value));
        let of = |slot: usize| slots.get(slot).cloned().flatten();
        let trips = self.trips(step, op, &of);
        let name = &step.node.name;
        let begin = step.carried.iter().map(|&slot| of(slot));
        let begin: Slots = begin.chain(variables.iter().cloned().map(Some)).collect();
        let first: Vec<_> = begin.iter().map(|known| known.as_ref()?.like.clone()).collect();
        let names = (0..step.carried.len()).map(|at| op.node_output(at));
        let names = names.map(|at| format!("carried {at} of {name}").into());
        let names = names.chain(variables.iter().map(|variable| variable.name.clone()));
        let given = names.zip(&first).map(|(name, like)| Some(self.like(name, like.clone())));
        let mut given: Slots = given.collect();
        for (at, &slot) in step.scanned.iter().enumerate() {
            let like = of(slot)
                .and_then(|known| known.like)
                .and_then(|(dtype, shape)| Some((dtype, Shape::new(shape.dims().get(1..)?).ok()?)));
            given.push(Some(self.like(format!("slice {at} of {name}").into(), like)));
        }
        given.extend(step.captures.iter().map(|slot| slot.and_then(of)));
        let (body, results) = self.part(&step.body, &given)?;
        let stays = self.staying(step, op, trips, (&begin, &given), &results)?;
        let like_of = |result: usize| {
            results.get(result).cloned().flatten().and_then(|known: Known| known.like)
        };
        for &(output, slot) in &step.outputs {
            let stacked = step.stacked.iter().find(|(own, _)| *own == output);
            let row = match output.checked_sub(op.history_at()) {
                Some(at) if at < op.n_carried => first.get(at).cloned().flatten(),
                _ => stacked.and_then(|&(_, result)| like_of(result)),
            };
            let like = match output {
                at if at < op.n_carried => {
                    let next = like_of(op.next_at() + at);
                    next.filter(|next| first.get(at).and_then(Option::as_ref) == Some(next))
                }
                at if at == op.trips_at() => Some((DType::I64, Shape::default())),
                _ => row.and_then(|(dtype, row)| stack(dtype, &row, trips)),
            };
            let node = self.graph.node(step.node.id).clone();
            let known = self.of_output(&node, step.own_output(op, output));
            slots[slot] = Some(Known { like: known.like.clone().or(like), ..known });
        }
        let mut gives = values(slots, step.outputs.iter().map(|&(_, slot)| slot));
        let changed = step.variables.iter().zip(&variables).filter(|(own, _)| own.change.is_some());
        gives.extend(changed.map(|(_, variable)| value(variable)));
        let work = StepWork::Loop(step_node(&step.node), trips, body);
        Ok(ExplainedStep { work, takes, gives, stays })
    }

    /// The elements of a constant of the graph.
    pub(super) fn constant(&self, output: Output) -> Option<HostTensor> {
        match self.graph.node(output.node).op.class() {
            Class::Host(Host::Constant(tensor)) => Some(tensor.clone()),
            _ => None,
        }
    }

    /// How often a loop goes round.
    fn trips(&self, step: &LoopStep, op: &LoopOp, of: &dyn Fn(usize) -> Option<Known>) -> Trips {
        let count = step.count.and_then(of).and_then(|known| known.elements?.scalar::<i64>().ok());
        let sizes = step.scanned.iter().map(|&slot| of(slot)?.like?.1.dims().first().copied());
        let sizes: Option<Vec<usize>> = sizes.collect();
        let is_told = count.is_some() == step.count.is_some() && sizes.is_some();
        let limit = op.limit(count, &sizes.unwrap_or_default());
        let first = |at: usize| of(*step.carried.get(at)?)?.elements;
        let outer = |output: Output| {
            let at = op.body.captures.iter().position(|capture| *capture == output)?;
            match step.captures.get(at)? {
                Some(slot) => of(*slot)?.elements,
                None => self.constant(output),
            }
        };
        let goes_on =
            || step.pred.and_then(of)?.elements?.scalar::<bool>().ok().filter(|goes| *goes);
        let counted = || op.counted(&first, &outer).filter(|_| goes_on().is_some());
        match limit {
            Ok(Some(trips)) if is_told && !op.has_pred => Trips::Known(trips),
            Ok(limit) => match counted() {
                Some(counted) => Trips::Known(limit.map_or(counted, |limit| counted.min(limit))),
                None => limit.map_or(Trips::Unknown, Trips::AtMost),
            },
            Err(_) => Trips::Unknown,
        }
    }
}

/// What a loop collects.
fn stack(dtype: DType, row: &Shape, trips: Trips) -> Option<(DType, Shape)> {
    let Trips::Known(trips) = trips else { return None };
    let mut dims = vec![usize::try_from(trips).ok()?];
    dims.extend_from_slice(row.dims());
    Some((dtype, Shape::new(&dims).ok()?))
}

/// What a program gives if that never changes.
fn constant(compiled: &Compiled, fetch: usize) -> Option<HostTensor> {
    let fetched = compiled.program.fetches.get(fetch)?;
    match &compiled.program.value(fetched.value).source {
        Source::Constant(tensor) => tensor.reshaped(fetched.layout.shape().clone()).ok(),
        _ => None,
    }
}

fn step_node(node: &Node) -> StepNode {
    StepNode { name: node.name.clone(), location: location(node) }
}

fn values(slots: &Slots, places: impl Iterator<Item = usize>) -> Vec<PartValue> {
    let mut values: Vec<PartValue> = Vec::new();
    for known in places.filter_map(|slot| slots.get(slot).and_then(Option::as_ref)) {
        let is_constant = known.elements.is_some() && &*known.name == "constant";
        if !is_constant && values.iter().all(|value| value.id != known.id) {
            values.push(value(known));
        }
    }
    values
}

fn value(known: &Known) -> PartValue {
    let bytes = |(dtype, shape): &(DType, Shape)| {
        (*dtype != DType::String).then(|| shape.len().saturating_mul(dtype.n_bytes()) as u64)
    };
    PartValue {
        id: known.id,
        name: known.name.clone(),
        shape: known.like.as_ref().map(|(dtype, shape)| format!("{dtype}{shape}")),
        bytes: known.like.as_ref().and_then(bytes),
    }
}
