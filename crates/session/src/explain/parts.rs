//! Runs with branches, loops and assertions: the parts that they are made of, as a tree, and their programs.
//!
//! Shapes are followed from what is fed through the parts (`walk.rs`): what only a run knows is said to be unknown.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use convoke_graph_core::{Error, ErrorKind, Result};
use convoke_placement::{Bytes, Picoseconds, Time};

use super::Explanation;
use super::measured::{Measured, median, other_program, picoseconds};
use crate::metadata::{Execution, RunMetadata};

/// The parts of a run with branches, loops or assertions, and its programs.
#[derive(Debug, Clone)]
pub struct ExplainedParts {
    /// What the run does.
    pub whole: ExplainedPart,
    /// Its programs, in the order in which they are met.
    pub programs: Vec<ExplainedProgram>,
}

/// What is done one after the other: the whole run, a branch, or one trip of a loop.
#[derive(Debug, Clone, Default)]
pub struct ExplainedPart {
    /// The steps, in order.
    pub steps: Vec<ExplainedStep>,
}

/// A step of a part. Values go from step to step in host memory.
#[derive(Debug, Clone)]
pub struct ExplainedStep {
    /// What is done.
    pub work: StepWork,
    /// What it needs of earlier steps, of the parts around it and of variables that the run holds.
    pub takes: Vec<PartValue>,
    /// What later steps need of it.
    pub gives: Vec<PartValue>,
    /// Of a loop that goes round on GPUs, what stays there.
    pub stays: Option<Staying>,
}

/// How a loop goes round on GPUs: what it carries stays there from trip to trip, and comes to the host when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staying {
    /// The names of the GPUs.
    pub devices: Vec<Arc<str>>,
    /// How many trips are one program: 1 where the data says after each whether there is another. What is left of the
    /// others is a sum of smaller powers of two, each a program. `None` where numbers decide it that are known only when
    /// the loop begins: as many as pay then.
    pub trips: Option<u64>,
    /// What a trip is predicted to take, in picoseconds: what its program takes, but for transfers.
    pub each: Picoseconds,
}

/// What a step does.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum StepWork {
    /// Runs a program: a place in [`ExplainedParts::programs`].
    Program(usize),
    /// Runs one of several parts, as a value says.
    Branch(StepNode, Vec<ExplainedPart>),
    /// Runs a part again and again. What its body is said to take and give is that of the first trip.
    Loop(StepNode, Trips, ExplainedPart),
    /// Fails the run unless a value is true.
    Assertion(StepNode),
    /// Calls a function of the host, or does something with a queue.
    Call(StepNode),
    /// Gives a variable as it was before, or an initial value where it had none.
    ReadOr(StepNode),
}

/// The node that a step is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepNode {
    /// Its name.
    pub name: Arc<str>,
    /// The line that declared it.
    pub location: String,
}

/// How often a loop goes round, as far as that is known before it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trips {
    /// So often.
    Known(u64),
    /// Until the data says so, and no more often than this.
    AtMost(u64),
    /// Until the data says so.
    Unknown,
}

/// A value that goes from step to step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartValue {
    /// The same number wherever the same value is given or taken.
    pub id: usize,
    /// The node that it comes from, or what it is to a loop's body: `carried 0 of loop`.
    pub name: Arc<str>,
    /// Dtype and shape, `f32[32, 64]`; `None` if only a run knows it.
    pub shape: Option<String>,
    /// Its size in bytes, if that is known.
    pub bytes: Option<u64>,
}

/// A program of a run.
#[derive(Debug, Clone)]
pub struct ExplainedProgram {
    /// Where it goes and why, or why that is not known before a run.
    pub explanation: std::result::Result<Box<Explanation>, String>,
    /// Its plan's place among those of the run.
    pub(super) plan: usize,
}

impl ExplainedStep {
    /// The node that the step is made of; `None` for a program, which does the work of many.
    pub fn node(&self) -> Option<&StepNode> {
        match &self.work {
            StepWork::Program(_) => None,
            StepWork::Branch(node, _)
            | StepWork::Loop(node, ..)
            | StepWork::Assertion(node)
            | StepWork::Call(node)
            | StepWork::ReadOr(node) => Some(node),
        }
    }

    /// `program`, `branch`, `loop`, `assertion`, `call` or `read_or`.
    pub fn kind(&self) -> &'static str {
        match &self.work {
            StepWork::Program(_) => "program",
            StepWork::Branch(..) => "branch",
            StepWork::Loop(..) => "loop",
            StepWork::Assertion(_) => "assertion",
            StepWork::Call(_) => "call",
            StepWork::ReadOr(_) => "read_or",
        }
    }

    /// The parts in it: of a branch those that it chooses from, of a loop its body.
    pub fn parts(&self) -> &[ExplainedPart] {
        match &self.work {
            StepWork::Branch(_, parts) => parts,
            StepWork::Loop(_, _, body) => std::slice::from_ref(body),
            _ => &[],
        }
    }
}

impl ExplainedParts {
    /// The programs that are known before a run, with their places.
    pub fn known(&self) -> impl Iterator<Item = (usize, &Explanation)> {
        let programs = self.programs.iter().enumerate();
        programs.filter_map(|(at, program)| Some((at, &**program.explanation.as_ref().ok()?)))
    }

    /// What a part is predicted to take, in picoseconds: of branches the dearest counts, and of a loop one trip if it is
    /// not known how many there are. `None` if it needs a program that only a run knows.
    pub fn predicted(&self, part: &ExplainedPart) -> Option<Picoseconds> {
        self.price(part, None)
    }

    /// As [`Self::predicted`], where a program that only a run knows takes no time.
    pub(super) fn predicted_of_known(&self, part: &ExplainedPart) -> Picoseconds {
        self.price(part, Some(0)).unwrap_or(0)
    }

    /// What a part is predicted to take, where a program that is not known takes `unknown`.
    fn price(&self, part: &ExplainedPart, unknown: Option<Picoseconds>) -> Option<Picoseconds> {
        let step = |step: &ExplainedStep| match &step.work {
            StepWork::Program(at) => match &self.programs.get(*at)?.explanation {
                Ok(explanation) => Some(explanation.solution.prediction().makespan),
                Err(_) => unknown,
            },
            StepWork::Branch(_, parts) => {
                let parts = parts.iter().map(|part| self.price(part, unknown));
                Some(parts.collect::<Option<Vec<_>>>()?.into_iter().max().unwrap_or(0))
            }
            StepWork::Loop(_, trips, body) => {
                let trips = if let Trips::Known(trips) = trips { *trips } else { 1 };
                let each = match &step.stays {
                    Some(staying) => staying.each,
                    None => self.price(body, unknown)?,
                };
                Some(each.saturating_mul(trips))
            }
            StepWork::Assertion(_) | StepWork::Call(_) | StepWork::ReadOr(_) => Some(0),
        };
        part.steps.iter().map(step).try_fold(0, |sum: u64, own| Some(sum.saturating_add(own?)))
    }

    /// Whether a run may be one of these parts: one of its programs is one of theirs or many times one of theirs, or may
    /// be one that is not known; and it has none that is many times one of others.
    fn may_be_of(&self, run: &RunMetadata) -> bool {
        let fits = |program: &ExplainedProgram| {
            let mut own = run.executions_of(program.plan);
            own.any(|own| match &program.explanation {
                Ok(explanation) => explanation.measured([&own]).is_ok(),
                Err(_) => true,
            })
        };
        let mut blocks = run.executions.iter().filter(|own| own.is_block).peekable();
        let has_some = blocks.peek().is_some() || self.programs.iter().any(fits);
        run.executions.is_empty() || (has_some && blocks.all(|own| self.has_block(run, own)))
    }

    /// Whether a program that ran does many times the work of one of these.
    fn has_block(&self, run: &RunMetadata, block: &Execution) -> bool {
        let nodes = run.nodes.get(block.nodes.clone()).unwrap_or_default();
        let mut of_plan = self.programs.iter().filter(|program| program.plan == block.plan);
        of_plan.any(|program| {
            let Ok(explanation) = &program.explanation else { return true };
            let is_own = |name: &Arc<str>| {
                explanation.items.iter().any(|item| item.nodes.contains(name))
                    || explanation.absent.iter().any(|node| node.name == *name)
            };
            nodes.iter().flat_map(|node| &node.nodes).all(is_own)
        })
    }

    /// All steps, those in branches and loops included.
    pub(super) fn steps(&self) -> impl Iterator<Item = &ExplainedStep> {
        let mut stack: Vec<&ExplainedStep> = self.whole.steps.iter().rev().collect();
        std::iter::from_fn(move || {
            let step = stack.pop()?;
            let inner = step.parts().iter().flat_map(|part| &part.steps);
            stack.extend(inner.collect::<Vec<_>>().into_iter().rev());
            Some(step)
        })
    }

    /// The same with what the programs took in these runs, each time that they ran.
    pub(super) fn measured(&self, runs: &[&RunMetadata]) -> Result<Self> {
        let mut parts = self.clone();
        for program in &mut parts.programs {
            let plan = program.plan;
            let Ok(explanation) = &mut program.explanation else { continue };
            let own = runs.iter().flat_map(|run| run.executions_of(plan));
            // With other shapes it is another program.
            let fits = |run: &RunMetadata| explanation.measured([run]).is_ok();
            let own: Vec<RunMetadata> = own.filter(fits).collect();
            if !own.is_empty() {
                **explanation = explanation.measured(&own)?;
            }
        }
        Ok(parts)
    }
}

impl Explanation {
    /// The parts of a run with branches, loops or assertions, whose programs are explained one by one: the other lists
    /// are empty then. `None` for a run that is one program.
    pub fn parts(&self) -> Option<&ExplainedParts> {
        self.parts.as_ref()
    }

    /// The explanation of a run of several programs.
    pub(crate) fn of_parts(parts: ExplainedParts, devices: Vec<String>) -> Self {
        Self { devices, parts: Some(parts), ..Self::default() }
    }

    /// What the runs took, with what each program took.
    pub(super) fn measured_parts(
        &self,
        parts: &ExplainedParts,
        runs: &[&RunMetadata],
    ) -> Result<Self> {
        if runs.iter().any(|run| run.begun.is_none()) {
            let message = "the run has no times of kernels; ask for them with Timings::Nodes";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let has_parts = |run: &RunMetadata| !run.executions.is_empty() || run.nodes.is_empty();
        if !runs.iter().all(|run| has_parts(run) && parts.may_be_of(run)) {
            return Err(other_program());
        }
        let wall = median(runs.iter().map(|run| run.wall).collect()).unwrap_or_default();
        let measured = Measured { runs: runs.len(), wall, ..Measured::default() };
        let parts = Some(parts.measured(runs)?);
        Ok(Self { parts, measured: Some(measured), ..self.clone() })
    }

    /// The tree as text, each program's tables under its step.
    pub(super) fn write_parts(
        &self,
        f: &mut fmt::Formatter<'_>,
        parts: &ExplainedParts,
    ) -> fmt::Result {
        let n = parts.programs.len();
        let programs = if n == 1 { "program" } else { "programs" };
        writeln!(f, "{n} {programs}, and between them what the data decides")?;
        parts.write_part(f, &parts.whole, 0)?;
        if let Some(measured) = &self.measured {
            let runs = if measured.runs == 1 { "run" } else { "runs" };
            let wall = Time(picoseconds(measured.wall));
            writeln!(f, "measured in {} {runs}: {wall} in all", measured.runs)?;
        }
        Ok(())
    }
}

impl ExplainedParts {
    fn write_part(
        &self,
        f: &mut fmt::Formatter<'_>,
        part: &ExplainedPart,
        indent: usize,
    ) -> fmt::Result {
        let pad = "  ".repeat(indent);
        for step in &part.steps {
            let predicted = |part| self.predicted(part).map(|time| Time(time).to_string());
            let title = match &step.work {
                StepWork::Program(at) => self.program_title(*at),
                StepWork::Branch(node, parts) => {
                    format!("branch {}: one of {} parts", node.name, parts.len())
                }
                StepWork::Loop(node, trips, body) => {
                    let each = match &step.stays {
                        Some(staying) => Some(Time(staying.each).to_string()),
                        None => predicted(body),
                    };
                    let each = each.map_or_else(String::new, |time| format!(", {time} a trip"));
                    let stays = step.stays.iter().map(|staying| format!(", {staying}"));
                    format!("loop {}: {trips}{each}{}", node.name, stays.collect::<String>())
                }
                StepWork::Assertion(node) => format!("assertion {}", node.name),
                StepWork::Call(node) => format!("call {}", node.name),
                StepWork::ReadOr(node) => format!("initialized value {}", node.name),
            };
            writeln!(f, "{pad}{title}")?;
            for (verb, values) in [("takes", &step.takes), ("gives", &step.gives)] {
                values.iter().try_for_each(|value| writeln!(f, "{pad}  {verb} {value}"))?;
            }
            match &step.work {
                StepWork::Program(at) => {
                    let program = self.programs.get(*at).map(|program| &program.explanation);
                    if let Some(Ok(explanation)) = program {
                        let text = explanation.to_string();
                        let mut lines = text.lines();
                        lines.try_for_each(|line| {
                            writeln!(f, "{}", format!("{pad}  | {line}").trim_end())
                        })?;
                    }
                }
                StepWork::Branch(_, parts) => {
                    for (at, part) in parts.iter().enumerate() {
                        let nothing = if part.steps.is_empty() { ": nothing runs" } else { "" };
                        writeln!(f, "{pad}  part {at}{nothing}")?;
                        self.write_part(f, part, indent + 2)?;
                    }
                }
                StepWork::Loop(_, _, body) => self.write_part(f, body, indent + 1)?,
                StepWork::Assertion(_) | StepWork::Call(_) | StepWork::ReadOr(_) => {}
            }
        }
        Ok(())
    }

    pub(super) fn program_title(&self, at: usize) -> String {
        match self.programs.get(at).map(|program| &program.explanation) {
            Some(Ok(explanation)) => {
                let predicted = Time(explanation.solution.prediction().makespan);
                format!("program {at}: predicted {predicted}")
            }
            Some(Err(unknown)) => format!("program {at}: {unknown}"),
            None => format!("program {at}"),
        }
    }
}

impl fmt::Display for Trips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(1) => f.write_str("1 trip"),
            Self::Known(n) => write!(f, "{n} trips"),
            Self::AtMost(n) => write!(f, "until the data says so, {n} trips at most"),
            Self::Unknown => f.write_str("until the data says so"),
        }
    }
}

/// `128 in a program; what is carried stays on GPU:0`.
impl fmt::Display for Staying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.trips {
            Some(1) => f.write_str("each its own program")?,
            Some(trips) => write!(f, "{trips} in a program")?,
            None => f.write_str("as many in a program as pay when the loop begins")?,
        }
        write!(f, "; what is carried stays on {}", self.devices.join(", "))
    }
}

/// `x f32[4], 16 B`.
impl fmt::Display for PartValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        match (&self.shape, self.bytes) {
            (Some(shape), Some(bytes)) => write!(f, " {shape}, {}", Bytes(bytes)),
            (Some(shape), None) => write!(f, " {shape}"),
            (None, _) => write!(f, ", whose shape only a run knows"),
        }
    }
}

impl RunMetadata {
    /// For each time that a program of the run's parts ran, what it did, as if that had been a run.
    fn executions_of(&self, plan: usize) -> impl Iterator<Item = Self> + '_ {
        let is_own = move |execution: &&Execution| execution.plan == plan && !execution.is_block;
        let own = self.executions.iter().filter(is_own);
        own.map(|execution| Self {
            begun: self.begun,
            wall: execution.wall,
            nodes: self.nodes.get(execution.nodes.clone()).unwrap_or_default().to_vec(),
            transfers: self.transfers.get(execution.transfers.clone()).unwrap_or_default().to_vec(),
            ..Self::default()
        })
    }

    /// Notes that a program ran that is many times that of a plan, since there were so many nodes and transfers.
    pub(crate) fn note_block(
        &mut self,
        plan: usize,
        [nodes, transfers]: [usize; 2],
        wall: Duration,
    ) {
        if self.begun.is_some() {
            let (nodes, transfers) = (nodes..self.nodes.len(), transfers..self.transfers.len());
            self.executions.push(Execution { plan, is_block: true, nodes, transfers, wall });
        }
    }

    /// How many nodes and transfers are noted.
    pub(crate) fn noted(&self) -> [usize; 2] {
        [self.nodes.len(), self.transfers.len()]
    }

    /// Notes that a program ran `times` times one after the other, since there were so many nodes and transfers.
    pub(crate) fn note_executions(
        &mut self,
        plan: usize,
        times: usize,
        [nodes, transfers]: [usize; 2],
        wall: Duration,
    ) {
        let (n_nodes, n_transfers) = (
            self.nodes.len().saturating_sub(nodes),
            self.transfers.len().saturating_sub(transfers),
        );
        if self.begun.is_none() || times == 0 || n_nodes % times + n_transfers % times > 0 {
            return;
        }
        let part = |from: usize, n: usize, at: usize| {
            let each = n / times;
            from + at * each..from + (at + 1) * each
        };
        let wall = wall / u32::try_from(times).unwrap_or(u32::MAX);
        self.executions.extend((0..times).map(|at| Execution {
            plan,
            is_block: false,
            nodes: part(nodes, n_nodes, at),
            transfers: part(transfers, n_transfers, at),
            wall,
        }));
    }
}
