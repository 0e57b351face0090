//! From groups with devices to segments with their transfers: the program.

use convoke_graph_core::{NodeId, Result};
use convoke_placement::{Queues, SegmentOrder};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::apart::gaps;
use crate::donate;
use crate::group::group;
use crate::lower::{InputFact, lower};
use crate::{
    Commit, DeviceIndex, Group, GroupLimits, Plan, Program, Segment, Source, Value, ValueId,
};
use crate::{head, tail, total};

/// The CPU, which every session has.
pub const HOST: DeviceIndex = DeviceIndex(0);

/// Where groups run and variables live.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The device of each group.
    pub groups: Vec<DeviceIndex>,
    /// The device of each variable that the program touches.
    pub variables: FxHashMap<NodeId, DeviceIndex>,
    /// Whose turn it is when a segment ends. The rule of placement's schedule.
    pub order: SegmentOrder,
    /// Which devices submit to one queue.
    pub queues: Queues,
}

/// Chooses [`Places`] for the groups of a program.
pub type Placer<'a> = dyn Fn(&Unplaced<'_>) -> Result<Places> + 'a;

/// What a placer sees.
#[derive(Debug)]
pub struct Unplaced<'a> {
    /// The values, groups and fetches; there are no segments yet.
    pub program: &'a Program,
    /// What variables get.
    pub commits: &'a [Commit],
}

impl Unplaced<'_> {
    /// The variables that are read or assigned.
    pub fn variables(&self) -> Vec<NodeId> {
        let read = self.program.values.iter().filter_map(|value| match value.source {
            Source::Variable(variable) => Some(variable),
            _ => None,
        });
        let mut all: Vec<NodeId> =
            read.chain(self.commits.iter().map(|commit| commit.variable)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// How to compile.
#[derive(Clone, Copy)]
pub struct CompileOptions<'a> {
    /// How large groups become.
    pub limits: GroupLimits,
    /// Whether operations may become others that give the same; off only to compare.
    pub simplify: bool,
    /// Where groups run.
    pub place: &'a Placer<'a>,
}

/// Compiles `plan` for these inputs, one for each feed.
///
/// # Errors
/// Shapes that do not fit, an operation that is not implemented for what is known, or a refusal of the
/// placer.
pub fn compile(plan: &Plan, inputs: &[InputFact], options: &CompileOptions<'_>) -> Result<Program> {
    let mut lowered = lower(plan, inputs, options.simplify)?;
    group(&mut lowered, options.limits);
    tail::attach(&mut lowered, options.limits);
    head::attach(&mut lowered, options.limits);
    if options.limits.buffers > 0 {
        total::attach(&mut lowered, options.limits);
    }
    let (commits, random, optional) = (lowered.commits, lowered.random, lowered.optional);
    let mut program = Program {
        apart: gaps(&lowered.groups, &lowered.values, &lowered.apart),
        late: Vec::new(),
        values: lowered.values,
        groups: lowered.groups,
        segments: Vec::new(),
        fetches: lowered.fetches,
        residents: plan.signature.residents.clone(),
        variables: Vec::new(),
        optional,
        random,
    };
    let places = (options.place)(&Unplaced { program: &program, commits: &commits })?;
    let mut scheduling = Scheduling::new(&program.values, &program.groups, &places);
    scheduling.order();
    scheduling.finish(&commits, &program);
    scheduling.keep_borrowed();
    program.segments = scheduling.segments;
    program.variables = places.variables.into_iter().collect();
    program.variables.sort_unstable();
    donate::pair(&mut program, plan, inputs);
    Ok(program)
}

struct Scheduling<'a> {
    values: &'a [Value],
    groups: &'a [Group],
    places: &'a Places,
    /// For each computed value, the group that computes it.
    producer: Vec<Option<usize>>,
    /// For each computed value, the segment that does.
    made_in: Vec<Option<usize>>,
    /// The segment that each value was first brought to on each device.
    brought: FxHashMap<(ValueId, DeviceIndex), usize>,
    segments: Vec<Segment>,
}

impl<'a> Scheduling<'a> {
    fn new(values: &'a [Value], groups: &'a [Group], places: &'a Places) -> Self {
        let mut producer = vec![None; values.len()];
        for (i, group) in groups.iter().enumerate() {
            for output in &group.outputs {
                producer[output.0 as usize] = Some(i);
            }
        }
        let made_in = vec![None; values.len()];
        let brought = FxHashMap::default();
        Self { values, groups, places, producer, made_in, brought, segments: Vec::new() }
    }

    /// Cuts the groups into segments: each goes on as long as a group of its device is ready.
    fn order(&mut self) {
        let mut waits = vec![0usize; self.groups.len()];
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); self.groups.len()];
        for (i, group) in self.groups.iter().enumerate() {
            let mut producers: Vec<usize> =
                group.inputs.iter().filter_map(|o| self.producer[o.value.0 as usize]).collect();
            producers.sort_unstable();
            producers.dedup();
            waits[i] = producers.len();
            for producer in producers {
                users[producer].push(i);
            }
        }
        let mut ready: FxHashMap<DeviceIndex, std::collections::BTreeSet<usize>> =
            FxHashMap::default();
        for i in (0..waits.len()).filter(|&i| waits[i] == 0) {
            ready.entry(self.places.groups[i]).or_default().insert(i);
        }
        let comes_last =
            |d: DeviceIndex| self.places.order == SegmentOrder::DevicesFirst && d == HOST;
        let next = |ready: &FxHashMap<DeviceIndex, std::collections::BTreeSet<usize>>| {
            let firsts =
                ready.iter().filter_map(|(&d, set)| Some((comes_last(d), *set.first()?, d)));
            firsts.min().map(|(_, _, d)| d)
        };
        while let Some(device) = next(&ready) {
            self.segments.push(Segment::on(device));
            while let Some(i) = ready.get_mut(&device).and_then(|set| set.pop_first()) {
                self.add(i);
                for &user in &users[i] {
                    waits[user] -= 1;
                    if waits[user] == 0 {
                        ready.entry(self.places.groups[user]).or_default().insert(user);
                    }
                }
            }
        }
    }

    /// Adds group `i` to the last segment.
    fn add(&mut self, i: usize) {
        for input in &self.groups[i].inputs {
            self.bring(input.value, self.segments.len() - 1);
        }
        let at = self.segments.len() - 1;
        for output in &self.groups[i].outputs {
            self.made_in[output.0 as usize] = Some(at);
        }
        self.segments[at].groups.push(i as u32);
    }

    /// The device where a value is without a transfer.
    fn home(&self, value: ValueId) -> DeviceIndex {
        match (&self.values[value.0 as usize].source, self.made_in[value.0 as usize]) {
            (Source::Variable(variable), _) => self.device_of(*variable),
            (_, Some(segment)) => self.segments[segment].device,
            _ => HOST,
        }
    }

    /// Makes sure that a value is where segment `at` can read it, and gives that segment's place
    /// afterwards: one may have been put in front.
    fn bring(&mut self, value: ValueId, at: usize) -> usize {
        let device = self.segments[at].device;
        let source = &self.values[value.0 as usize].source;
        let resident = matches!(source, Source::Variable(_));
        let home = self.home(value);
        let here = self.made_in[value.0 as usize] == Some(at)
            || (home == device && (device == HOST || resident));
        if here || matches!(source, Source::Constant(_)) {
            return at;
        }
        if device != HOST
            && let Some(from) = self.first_on(value, device)
        {
            self.carry(value, from, at);
            return at;
        }
        if self.is_direct(home, device) {
            match self.made_in[value.0 as usize] {
                Some(from) => self.carry(value, from, at),
                None => self.segments[at].borrowed.push(value),
            }
            self.brought.insert((value, device), at);
            return at;
        }
        let before = self.segments.len();
        if home != HOST {
            self.download(value, home);
        }
        let at = at + self.segments.len() - before;
        if device != HOST {
            self.segments[at].uploads.push(value);
            self.brought.insert((value, device), at);
        }
        at
    }

    /// The first segment of a device that has a value which is no variable of it.
    fn first_on(&self, value: ValueId, device: DeviceIndex) -> Option<usize> {
        let made = self.made_in[value.0 as usize];
        let made = made.filter(|&at| self.segments[at].device == device);
        made.or_else(|| self.brought.get(&(value, device)).copied())
    }

    /// Lets segment `at` take a value from an earlier one of its device, or of its queue.
    fn carry(&mut self, value: ValueId, from: usize, at: usize) {
        let taken = (value, from as u32);
        if from == at || self.segments[at].carried.contains(&taken) {
            return;
        }
        self.segments[at].carried.push(taken);
        if !self.segments[from].kept.contains(&value) {
            self.segments[from].kept.push(value);
        }
    }

    /// Asks the segment that has `value` to send it to the host.
    fn download(&mut self, value: ValueId, home: DeviceIndex) {
        let at = self.segment_with(value, home);
        if !self.segments[at].downloads.contains(&value) {
            self.segments[at].downloads.push(value);
        }
    }

    /// The segment that makes a value, or the first of its device: one may be put in front.
    fn segment_with(&mut self, value: ValueId, home: DeviceIndex) -> usize {
        let made_in = self.made_in[value.0 as usize];
        let first = self.segments.iter().position(|segment| segment.device == home);
        match made_in.or(first) {
            Some(at) => at,
            None => {
                // Only a variable is on a device without work there; it is read before everything else.
                self.segments.insert(0, Segment::on(home));
                let brought = self.brought.values_mut();
                self.made_in.iter_mut().flatten().chain(brought).for_each(|at| *at += 1);
                let carried = self.segments.iter_mut().flat_map(|segment| &mut segment.carried);
                carried.for_each(|(_, from)| *from += 1);
                0
            }
        }
    }

    /// Adds commits, and what is fetched: the host gets it, or it stays.
    fn finish(&mut self, commits: &[Commit], program: &Program) {
        let home = |commit: &Commit| self.device_of(commit.variable);
        let (on_host, others): (Vec<&Commit>, Vec<&Commit>) =
            commits.iter().partition(|commit| home(commit) == HOST);
        self.store(&others);
        self.store(&on_host);
        let is_constant =
            |value: ValueId| matches!(program.value(value).source, Source::Constant(_));
        let sorted = |values: FxHashSet<ValueId>| {
            let mut values: Vec<ValueId> = values.into_iter().collect();
            values.sort_unstable();
            values
        };
        for value in sorted(program.host_fetches().collect()) {
            let home = self.home(value);
            if home != HOST && !is_constant(value) {
                self.download(value, home);
            }
        }
        for value in sorted(program.resident_fetches().collect()) {
            let home = self.home(value);
            if home != HOST && !is_constant(value) {
                let at = self.segment_with(value, home);
                self.segments[at].residents.push(value);
            }
        }
    }

    /// Adds commits, each to the last segment of its device that works or reads, if what is stored is there by then and
    /// nothing can fail later; else to one more segment of the device, at the end. Which of them depends on no other commit.
    fn store(&mut self, commits: &[&Commit]) {
        for commit in commits {
            let home = self.home(commit.value);
            let device = self.device_of(commit.variable);
            if home != HOST && home != device && !self.is_direct(home, device) {
                self.segment_with(commit.value, home);
            }
        }
        let fallible = self.segments.iter().rposition(|segment| self.can_fail(segment));
        let at = self.segments.iter().enumerate();
        let last: FxHashMap<DeviceIndex, usize> =
            at.map(|(at, segment)| (segment.device, at)).collect();
        let mut more: FxHashMap<DeviceIndex, usize> = FxHashMap::default();
        for &commit in commits {
            let device = self.device_of(commit.variable);
            let sent = self.sent_by(commit.value, device);
            let fits = |at: usize| {
                let is_front = self.segments[at].groups.is_empty();
                sent.is_none_or(|sent| sent < at && !is_front) && fallible.is_none_or(|f| f <= at)
            };
            let at = match last.get(&device) {
                Some(&at) if fits(at) => at,
                _ => *more.entry(device).or_insert_with(|| {
                    self.segments.push(Segment::on(device));
                    self.segments.len() - 1
                }),
            };
            let at = self.bring(commit.value, at);
            self.segments[at].commits.push(commit.clone());
        }
    }

    /// The segment of another device that makes a value, or sends a variable; none for what a device has anyway, or
    /// copies from where it lies.
    fn sent_by(&self, value: ValueId, device: DeviceIndex) -> Option<usize> {
        let home = self.home(value);
        if home == device {
            return None;
        }
        let lies_there = home == HOST || self.is_direct(home, device);
        let first = || self.segments.iter().position(|segment| segment.device == home);
        self.made_in[value.0 as usize].or_else(|| if lies_there { None } else { first() })
    }

    /// Where a variable is borrowed after a segment has stored into it, that segment keeps what it was at the start.
    fn keep_borrowed(&mut self) {
        for at in 0..self.segments.len() {
            for value in std::mem::take(&mut self.segments[at].borrowed) {
                let stores = |segment: &Segment| {
                    segment.commits.iter().any(|commit| self.is_of(value, commit.variable))
                };
                match self.segments[..at].iter().position(stores) {
                    Some(from) => self.carry(value, from, at),
                    None => self.segments[at].borrowed.push(value),
                }
            }
        }
    }

    /// Whether a value is the elements of a variable.
    fn is_of(&self, value: ValueId, variable: NodeId) -> bool {
        matches!(self.values[value.0 as usize].source, Source::Variable(own) if own == variable)
    }

    /// Whether a device takes what another has by a copy on the GPU.
    fn is_direct(&self, from: DeviceIndex, to: DeviceIndex) -> bool {
        self.places.queues.is_direct(from.0 as usize, to.0 as usize)
    }

    /// The device where a variable lives.
    fn device_of(&self, variable: NodeId) -> DeviceIndex {
        self.places.variables.get(&variable).copied().unwrap_or(HOST)
    }

    fn can_fail(&self, segment: &Segment) -> bool {
        segment.groups.iter().any(|&i| self.groups[i as usize].can_fail_late(self.values))
    }
}
