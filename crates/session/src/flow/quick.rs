//! Loops whose body is one program on the host and whose shapes stay: nothing is looked up or allocated in an iteration.

use std::time::Instant;

use convoke_compiler::flow::{Place, ProgramStep};
use convoke_graph_core::{
    AlignedBytes, DType, Error, ErrorKind, HostTensor, LoopOp, Result, Shape,
};
use smallvec::SmallVec;

use super::repeat::{Kept, Repeat, Repeated};
use super::{Running, named};
use crate::executor::Compiled;
use crate::feeds::FeedData;

/// Where a feed of the body's program comes from.
enum Source {
    Carried(usize),
    Slice(usize),
    Fixed(HostTensor),
}

/// How the values of a loop go through its program.
struct Ways {
    feeds: Vec<Source>,
    results: Vec<Given>,
}

/// Where a result of the body comes from.
enum Given {
    Fetch(usize),
    /// It is what the body was given.
    Passed(Source),
}

impl Ways {
    /// Those through the program that is all of the body. Nothing if it lacks a value.
    fn new(repeat: &Repeat<'_>, program: &ProgramStep) -> Option<Self> {
        let body = &repeat.step.body;
        let n = repeat.carried.len();
        let source = |slot: usize| {
            let fixed = body.constants.iter().find(|(own, _)| *own == slot);
            if let Some((_, constant)) = fixed {
                return Some(Source::Fixed(constant.clone()));
            }
            match body.given.iter().position(|given| *given == Some(slot))? {
                at if at < n => Some(Source::Carried(at)),
                at if at < n + repeat.scanned.len() => Some(Source::Slice(at - n)),
                at => {
                    let capture = repeat.captures.get(at - n - repeat.scanned.len())?.clone()?;
                    Some(Source::Fixed(capture))
                }
            }
        };
        let feed = |place: &Place| match *place {
            Place::Slot(slot) => source(slot),
            Place::Variable(_) | Place::Changed(..) => None,
        };
        let result = |&slot: &usize| {
            let fetch = program.fetches.iter().position(|fetch| *fetch == Place::Slot(slot));
            fetch.map(Given::Fetch).or_else(|| source(slot).map(Given::Passed))
        };
        Some(Self {
            feeds: program.feeds.iter().map(feed).collect::<Option<_>>()?,
            results: body.results.iter().map(result).collect::<Option<_>>()?,
        })
    }

    /// The results that a fetch gives.
    fn given_by(&self, fetch: usize) -> impl Iterator<Item = usize> {
        let is_it = move |given: &Given| matches!(given, Given::Fetch(own) if *own == fetch);
        let all = self.results.iter().enumerate().filter(move |(_, given)| is_it(given));
        all.map(|(result, _)| result)
    }

    /// The results that are what the body was given.
    fn passed(&self) -> impl Iterator<Item = (usize, &Source)> {
        self.results.iter().enumerate().filter_map(|(result, given)| match given {
            Given::Passed(source) => Some((result, source)),
            Given::Fetch(_) => None,
        })
    }

    /// For each carried tensor, whether it is passed on as it is, so that it stays where it is.
    fn stays(&self, op: &LoopOp) -> Vec<bool> {
        let is_passed = |at: usize| {
            let result = self.results.get(op.next_at() + at);
            matches!(result, Some(Given::Passed(Source::Carried(own))) if *own == at)
        };
        (0..op.n_carried).map(is_passed).collect()
    }

    /// Whether strings go through the loop, which have no bytes of one size.
    fn has_strings(&self, repeat: &Repeat<'_>) -> bool {
        let is_string = |tensor: &HostTensor| tensor.dtype() == DType::String;
        let passed = self.passed().map(|(_, source)| source);
        repeat.carried.iter().chain(&repeat.scanned).any(is_string)
            || (self.feeds.iter().chain(passed))
                .any(|feed| matches!(feed, Source::Fixed(t) if is_string(t)))
    }

    /// The feeds of an iteration that is given these tensors, and the first of the slices.
    fn first<'a>(
        &'a self,
        carried: &'a [HostTensor],
        scanned: &'a [Scanned<'a>],
    ) -> SmallVec<[FeedData<'a>; 4]> {
        let data = |source: &'a Source| match source {
            Source::Carried(at) => FeedData::Tensor(carried[*at].clone()),
            Source::Slice(at) => scanned[*at].slice(0),
            Source::Fixed(tensor) => FeedData::Tensor(tensor.clone()),
        };
        self.feeds.iter().map(data).collect()
    }

    /// The feeds of an iteration.
    fn data<'a>(
        &'a self,
        carried: &'a [Carried],
        scanned: &'a [Scanned<'a>],
        row: usize,
    ) -> SmallVec<[FeedData<'a>; 4]> {
        self.feeds.iter().map(|source| source.data(carried, scanned, row)).collect()
    }
}

impl Source {
    fn data<'a>(
        &'a self,
        carried: &'a [Carried],
        scanned: &'a [Scanned<'a>],
        row: usize,
    ) -> FeedData<'a> {
        match self {
            Self::Carried(at) => {
                let Carried { dtype, shape, now, .. } = &carried[*at];
                FeedData::Borrowed(*dtype, shape.clone(), now)
            }
            Self::Slice(at) => scanned[*at].slice(row),
            Self::Fixed(tensor) => {
                FeedData::Borrowed(tensor.dtype(), tensor.shape().clone(), tensor.bytes())
            }
        }
    }

    /// The dtype and shape.
    fn like<'a>(
        &'a self,
        carried: &'a [HostTensor],
        scanned: &'a [Scanned<'a>],
    ) -> (DType, &'a Shape) {
        match self {
            Self::Carried(at) => (carried[*at].dtype(), carried[*at].shape()),
            Self::Slice(at) => (scanned[*at].dtype, &scanned[*at].shape),
            Self::Fixed(tensor) => (tensor.dtype(), tensor.shape()),
        }
    }
}

/// What is carried: now, and where it is put next.
struct Carried {
    dtype: DType,
    shape: Shape,
    now: AlignedBytes,
    next: AlignedBytes,
}

impl Carried {
    fn take_next(&mut self) -> AlignedBytes {
        std::mem::take(&mut self.next)
    }
}

/// A tensor of which each iteration takes a slice.
struct Scanned<'a> {
    dtype: DType,
    shape: Shape,
    bytes: &'a [u8],
}

impl<'a> Scanned<'a> {
    fn slice(&self, row: usize) -> FeedData<'a> {
        let n_bytes = self.shape.len() * self.dtype.n_bytes();
        let bytes = self.bytes.get(row * n_bytes..).and_then(|rest| rest.get(..n_bytes));
        FeedData::Borrowed(self.dtype, self.shape.clone(), bytes.unwrap_or(&[]))
    }
}

/// Slices one after the other.
pub(super) struct Stack {
    output: usize,
    dtype: DType,
    row: Shape,
    /// The bytes of a slice.
    n_bytes: usize,
    bytes: AlignedBytes,
    kept: Kept,
}

impl Stack {
    /// Whether it collects a result of the body.
    fn is_of(&self, result: usize) -> bool {
        matches!(self.kept, Kept::Collected(own) if own == result)
    }

    /// Puts slices at their places, of which this is the first. The memory doubles where it ends.
    pub fn put(&mut self, at: usize, slices: &[u8], limit: Option<u64>) -> Result<()> {
        let n_bytes = self.n_bytes;
        let too_large = || {
            let message = format!("no memory for {at} slices of {n_bytes} bytes");
            Error::new(ErrorKind::ResourceExhausted, message)
        };
        let from = at.checked_mul(n_bytes).ok_or_else(too_large)?;
        let to = from.checked_add(slices.len()).ok_or_else(too_large)?;
        if to > self.bytes.len() {
            let most = limit.and_then(|n| usize::try_from(n).ok()?.checked_mul(n_bytes));
            let doubled = to.checked_mul(2).ok_or_else(too_large)?;
            let mut more = AlignedBytes::zeroed(most.map_or(doubled, |most| doubled.min(most)))?;
            more[..self.bytes.len()].copy_from_slice(&self.bytes);
            self.bytes = more;
        }
        self.bytes[from..to].copy_from_slice(slices);
        Ok(())
    }

    /// The bytes of a slice.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    pub fn finish(self, op: &LoopOp, trips: usize) -> Result<HostTensor> {
        if trips == 0 {
            return op.none_collected(self.output);
        }
        let mut dims = vec![trips];
        dims.extend_from_slice(self.row.dims());
        HostTensor::from_shared(self.dtype, Shape::new(&dims)?, self.bytes.into())
    }
}

impl Running<'_> {
    /// Runs a loop whose body is one program, on the host by itself or [in blocks](Self::in_blocks) on GPUs; nothing if that
    /// is not so, or shapes change.
    pub(super) fn quickly(&mut self, repeat: &Repeat<'_>) -> Result<Option<Repeated>> {
        let (op, limit) = (repeat.op, repeat.limit);
        let Some(program) = repeat.step.program() else { return Ok(None) };
        let (planned, recent) = &self.flow.programs[program.plan];
        let Some(ways) = Ways::new(repeat, program) else { return Ok(None) };
        let has_sizes = planned.plan.shape_feeds.contains(&true);
        if limit == Some(0) || has_sizes || ways.has_strings(repeat) {
            return Ok(None);
        }
        let scanned = scanned(&repeat.scanned)?;
        let data = ways.first(&repeat.carried, &scanned);
        let (compiled, stays) = self.core.current(planned, &data, Some(recent), self.metadata)?;
        drop(data);
        let Some(mut stacks) = stacks(repeat, &ways, &compiled, &scanned) else { return Ok(None) };
        if compiled.uses_gpus() {
            drop(stays);
            return self.in_blocks(repeat, &compiled, stacks);
        }
        let run = self.core.run_state(self.request, Some(self.progress.held.journal()));
        let timings = self.request.options.timings;
        let Some(mut turns) = compiled.turns(run, timings, self.stop, self.metadata)? else {
            return Ok(None);
        };
        let mut carried = carried(&repeat.carried)?;
        let passed = ways.stays(op);
        let (begun, before) = (Instant::now(), self.metadata.noted());
        let (mut trips, mut goes_on) = (0usize, true);
        while goes_on && limit.is_none_or(|limit| (trips as u64) < limit) {
            self.stop.check()?;
            let row = op.slice_of(trips, limit);
            for stack in &mut stacks {
                if let Kept::History(at) = stack.kept {
                    stack.put(row, &carried[at].now, limit)?;
                }
            }
            // What is fed is borrowed from what is carried, so that what comes next leaves it meanwhile.
            let mut next: Next = carried.iter_mut().map(Carried::take_next).collect();
            let data = ways.data(&carried, &scanned, row);
            let mut put = |result: usize, bytes: &[u8]| -> Result<()> {
                match result.checked_sub(op.next_at()) {
                    None => goes_on = bytes.first() == Some(&1),
                    Some(at) if at < op.n_carried && !passed[at] => next[at].copy_from_slice(bytes),
                    Some(_) => {}
                }
                let mut own = stacks.iter_mut().filter(|stack| stack.is_of(result));
                own.try_for_each(|stack| stack.put(row, bytes, limit))
            };
            turns.turn(&data, self.metadata, |fetch, bytes| {
                ways.given_by(fetch).try_for_each(|result| put(result, bytes))
            })?;
            for (result, source) in ways.passed() {
                put(result, source.data(&carried, &scanned, row).bytes())?;
            }
            drop(data);
            go_on(&mut carried, next, &passed);
            trips += 1;
        }
        drop(turns);
        compiled.describe(self.metadata);
        self.metadata.note_executions(program.plan, trips, before, begun.elapsed());
        finished(repeat, carried, stacks, trips).map(Some)
    }
}

/// Memory for what is carried next.
type Next = SmallVec<[AlignedBytes; 4]>;

/// What is carried next is carried now, but for what stays.
fn go_on(carried: &mut [Carried], next: Next, stays: &[bool]) {
    for ((carried, next), &stays) in carried.iter_mut().zip(next).zip(stays) {
        carried.next = if stays { next } else { std::mem::replace(&mut carried.now, next) };
    }
}

fn carried(tensors: &[HostTensor]) -> Result<Vec<Carried>> {
    let carried = |tensor: &HostTensor| {
        Ok(Carried {
            dtype: tensor.dtype(),
            shape: tensor.shape().clone(),
            now: AlignedBytes::copy_of(tensor.bytes())?,
            next: AlignedBytes::zeroed(tensor.bytes().len())?,
        })
    };
    tensors.iter().map(carried).collect()
}

fn scanned(tensors: &[HostTensor]) -> Result<Vec<Scanned<'_>>> {
    let mut all = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let shape = Shape::new(tensor.dims().get(1..).unwrap_or(&[]))?;
        all.push(Scanned { dtype: tensor.dtype(), shape, bytes: tensor.bytes() });
    }
    Ok(all)
}

/// What is stacked; nothing if the program gives something else than what is carried.
fn stacks(
    repeat: &Repeat<'_>,
    ways: &Ways,
    compiled: &Compiled,
    scanned: &[Scanned<'_>],
) -> Option<Vec<Stack>> {
    let op = repeat.op;
    let given = |result: usize| match ways.results.get(result)? {
        Given::Fetch(fetch) => compiled.fetched(*fetch),
        Given::Passed(source) => Some(source.like(&repeat.carried, scanned)),
    };
    for (at, tensor) in repeat.carried.iter().enumerate() {
        if given(op.next_at() + at)? != (tensor.dtype(), tensor.shape()) {
            return None;
        }
    }
    let stack = |(output, kept): (usize, Kept)| {
        let (dtype, row) = match kept {
            Kept::History(at) => {
                let tensor = &repeat.carried[at];
                (tensor.dtype(), tensor.shape())
            }
            Kept::Collected(result) => given(result)?,
            Kept::Carried(_) | Kept::Trips => return None,
        };
        let n_bytes = row.len().checked_mul(dtype.n_bytes())?;
        let (row, bytes) = (row.clone(), AlignedBytes::default());
        (dtype != DType::String).then_some(Stack { output, dtype, row, n_bytes, bytes, kept })
    };
    repeat.stacked().map(stack).collect()
}

/// What a loop gives in the end.
fn finished(
    repeat: &Repeat<'_>,
    carried: Vec<Carried>,
    stacks: Vec<Stack>,
    trips: usize,
) -> Result<Repeated> {
    let refused = |e| named(e, &repeat.step.node);
    let tensor = |c: Carried| HostTensor::from_bytes(c.dtype, c.shape, c.now);
    let carried = carried.into_iter().map(tensor).collect::<Result<_>>()?;
    let stacks = stacks.into_iter().map(|stack| stack.finish(repeat.op, trips).map_err(refused));
    Ok(Repeated { carried, trips, stacks: stacks.collect::<Result<_>>()? })
}
