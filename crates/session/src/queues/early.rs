//! What must be known before a run takes anything: how many elements, and of which queue.

use std::borrow::Cow;
use std::sync::Arc;

use convoke_compiler::Signature;
use convoke_graph_core::{
    Amount, Class, Dim, Error, ErrorKind, Flow, GraphSnapshot, Host, HostTensor, Node, NodeId,
    Output, QueueAction, QueueOp, QueueRole, QueueSpec, Result,
};
use rustc_hash::FxHashSet;

use super::parts::{Key, check_once};
use super::uses::{Use, Uses};
use crate::feeds::FeedData;

/// What is known before a run.
#[derive(Debug, Clone)]
pub(super) enum Given {
    /// Fed, at this place.
    Fed(usize),
    Constant(HostTensor),
    /// Computed before the run, and fetched at this place.
    Computed(usize),
}

/// What an operation on a queue needs to know before the run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Early {
    number: Option<Given>,
    keys: Option<Given>,
    queue: Option<(Given, Arc<[Arc<QueueSpec>]>)>,
    rows: RowCount,
}

/// What is known before a run of how many rows an operation puts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum RowCount {
    #[default]
    Unknown,
    /// As many as the feed at this place has.
    Fed(usize),
    /// None at all.
    None,
}

impl RowCount {
    /// What is known of the rows of these tensors.
    fn of(graph: &GraphSnapshot, signature: &Signature, components: &[Output]) -> Self {
        let has_none = |&component: &Output| {
            let dims = graph.fact(component).dims.dims();
            dims.and_then(<[Dim]>::first) == Some(&Dim::Known(0))
        };
        if components.iter().any(has_none) {
            return Self::None;
        }
        let fed = signature.feeds.iter().position(|feed| components.contains(feed));
        fed.map_or(Self::Unknown, Self::Fed)
    }

    /// What is known of them with these feeds.
    fn with(self, data: &[FeedData<'_>]) -> Self {
        match self {
            Self::Fed(at) => {
                let rows = data.get(at).and_then(|data| data.shape().dims().first());
                if rows == Some(&0) { Self::None } else { Self::Unknown }
            }
            known => known,
        }
    }
}

impl Early {
    pub fn is_empty(&self) -> bool {
        self.number.is_none() && self.keys.is_none() && self.queue.is_none()
    }

    /// Of an operation inside of a branch or loop: its last operands tell it when the run comes to it.
    pub fn inside(op: &QueueOp) -> Self {
        let mut n = 0;
        let mut next = |is_expected: bool| {
            is_expected.then(|| {
                n += 1;
                Given::Computed(n - 1)
            })
        };
        let (number, keys) = (next(op.has_number()), next(op.has_keys()));
        let queue = next(!op.among.is_empty()).map(|index| (index, op.among.clone()));
        Self { number, keys, queue, rows: RowCount::Unknown }
    }

    /// How many tensors tell it.
    pub fn n_given(&self) -> usize {
        let given = [self.number.is_some(), self.keys.is_some(), self.queue.is_some()];
        given.into_iter().map(usize::from).sum()
    }

    /// The places of feeds that tell it.
    fn fed(&self) -> impl Iterator<Item = usize> {
        let queue = self.queue.as_ref().map(|(index, _)| index);
        let all = self.number.iter().chain(&self.keys).chain(queue);
        all.filter_map(|given| match given {
            Given::Fed(at) => Some(*at),
            Given::Constant(_) | Given::Computed(_) => None,
        })
    }

    /// Whether it is known that the operation puts no rows.
    pub fn has_no_rows(&self) -> bool {
        self.rows == RowCount::None
    }

    /// The queues that it may be about, if that is not known yet.
    pub fn among(&self) -> &[Arc<QueueSpec>] {
        self.queue.as_ref().map_or(&[], |(_, queues)| queues)
    }

    /// What an operation needs. What is to be computed is added to `wanted`.
    ///
    /// # Errors
    /// Something that is not known before the run.
    pub fn of(
        graph: &GraphSnapshot,
        signature: &Signature,
        node: &Node,
        op: &QueueOp,
        wanted: &mut Vec<Output>,
    ) -> Result<Self> {
        let n_components = node.inputs.len().saturating_sub(op.n_early());
        let mut inputs = node.inputs.iter().skip(n_components);
        let mut next = |is_expected: bool| if is_expected { inputs.next() } else { None };
        let (number, keys) = (next(op.has_number()), next(op.has_keys()));
        let index = next(!op.among.is_empty());
        let mut given = |&input: &Output| given(graph, signature, input, wanted);
        let number = number.map(&mut given).transpose()?;
        let keys = keys.map(&mut given).transpose()?;
        let index = index.map(given).transpose()?;
        let rows = match op.action {
            QueueAction::EnqueueMany => {
                RowCount::of(graph, signature, &node.inputs[..n_components])
            }
            _ => RowCount::Unknown,
        };
        let queue = index.map(|index| (index, op.among.clone()));
        Ok(Self { number, keys, queue, rows })
    }
}

/// How a tensor is known before the run.
///
/// # Errors
/// It is not.
fn given(
    graph: &GraphSnapshot,
    signature: &Signature,
    output: Output,
    wanted: &mut Vec<Output>,
) -> Result<Given> {
    if let Some(given) = known(graph, signature, output) {
        return Ok(given);
    }
    check(graph, signature, output)?;
    let at = wanted.iter().position(|&other| other == output).unwrap_or_else(|| {
        wanted.push(output);
        wanted.len() - 1
    });
    Ok(Given::Computed(at))
}

/// A tensor that is fed or constant.
pub(super) fn known(graph: &GraphSnapshot, signature: &Signature, output: Output) -> Option<Given> {
    if let Some(at) = signature.feeds.iter().position(|&feed| feed == output) {
        return Some(Given::Fed(at));
    }
    match graph.node(output.node).op.class() {
        Class::Host(Host::Constant(value)) => Some(Given::Constant(value.clone())),
        _ => None,
    }
}

/// # Errors
/// A tensor that is computed from something that only the run knows.
fn check(graph: &GraphSnapshot, signature: &Signature, output: Output) -> Result<()> {
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    let mut stack = vec![output.node];
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = graph.node(id);
        let what = match node.op.class() {
            Class::State(_) => "a variable",
            Class::Random(_) => "a random operation",
            Class::Queue(_) => "what is taken from a queue",
            Class::Reader(_) => "what a reader reads",
            Class::Table(_) | Class::Flow(Flow::Find(_)) => "a table that runs change",
            Class::Flow(Flow::Call(_)) => "a function of the host",
            Class::Flow(_) => "a branch, a loop or an assertion",
            _ => {
                let inputs = node.inputs.iter().filter(|input| !signature.feeds.contains(input));
                stack.extend(inputs.map(|input| input.node).chain(node.controls.iter().copied()));
                continue;
            }
        };
        let message = format!(
            "unsupported: '{}', which must be known before the run takes anything, depends on {what}, '{}'; \
             fetch it, and feed it to a later run",
            graph.node(output.node).name,
            node.name,
        );
        return Err(Error::new(ErrorKind::Unimplemented, message));
    }
    Ok(())
}

/// The value of something that is known. `data` is what is fed, `computed` what was wanted.
///
/// # Errors
/// It is not there.
pub(super) fn value<'a>(
    given: &'a Given,
    data: &'a [FeedData<'_>],
    computed: &'a [HostTensor],
) -> Result<Cow<'a, HostTensor>> {
    let missing = || Error::internal("what must be known before a run is not there");
    Ok(match given {
        Given::Constant(value) => Cow::Borrowed(value),
        Given::Fed(at) => Cow::Owned(data.get(*at).ok_or_else(missing)?.to_tensor()?),
        Given::Computed(at) => Cow::Borrowed(computed.get(*at).ok_or_else(missing)?),
    })
}

impl Uses {
    /// Whether something must be known first, or these feeds tell that an operation puts nothing.
    pub fn is_open(&self, data: &[FeedData<'_>]) -> bool {
        let is_open = |early: &Early| !early.is_empty() || early.rows.with(data) == RowCount::None;
        self.queues.iter().any(|used| is_open(&used.early))
    }

    /// The places of those feeds that must be there before the run takes anything, in order: what is told by them, or
    /// computed from them. `signature` is what it was planned of.
    pub fn early_feeds(&self, graph: &GraphSnapshot, signature: &Signature) -> Vec<usize> {
        let states = self.fed_states().map(|(at, _)| at);
        let told = self.queues.iter().flat_map(|used| used.early.fed());
        let mut early: Vec<usize> = states.chain(told).collect();
        let mut seen: FxHashSet<NodeId> = FxHashSet::default();
        let mut stack: Vec<NodeId> = self.wanted.iter().map(|output| output.node).collect();
        while let Some(id) = stack.pop() {
            if !seen.insert(id) {
                continue;
            }
            let node = graph.node(id);
            stack.extend(&node.controls);
            for input in &node.inputs {
                match signature.feeds.iter().position(|feed| feed == input) {
                    Some(at) => early.push(at),
                    None => stack.push(input.node),
                }
            }
        }
        early.sort_unstable();
        early.dedup();
        early
    }

    /// The uses with all that must be known. `data` is what is fed, `computed` what was wanted.
    ///
    /// # Errors
    /// A number below 0, an index out of range, a component that is put twice under one key.
    pub fn resolved(&self, data: &[FeedData<'_>], computed: &[HostTensor]) -> Result<Self> {
        let resolve = |used: &Use| {
            let resolved = used.resolved(data, computed);
            resolved.map_err(|e| e.with_node(&*used.node))
        };
        let queues: Vec<Use> = self.queues.iter().map(resolve).collect::<Result<_>>()?;
        check_once(&queues)?;
        Ok(Self { queues, wanted: Vec::new(), ..self.clone() })
    }
}

impl Use {
    /// As [`Uses::resolved`].
    pub(super) fn resolved(&self, data: &[FeedData<'_>], computed: &[HostTensor]) -> Result<Self> {
        let early = Early { rows: self.early.rows.with(data), ..Early::default() };
        let mut resolved = Self { early, ..self.clone() };
        if let Some(number) = &self.early.number {
            let n = Some(Amount::value(&*value(number, data, computed)?)?);
            resolved.action = match self.action {
                QueueAction::DequeueMany(None) => QueueAction::DequeueMany(n),
                QueueAction::DequeueUpTo(None) => QueueAction::DequeueUpTo(n),
                QueueAction::Peek(None) => QueueAction::Peek(n),
                QueueAction::TakeGradient(None) => QueueAction::TakeGradient(n),
                QueueAction::TakeMany { up_to, .. } => QueueAction::TakeMany { n, up_to },
                action => action,
            };
        }
        if let Some(keys) = &self.early.keys {
            resolved.keys = self.keys_of(&*value(keys, data, computed)?)?;
        }
        if let Some((index, queues)) = &self.early.queue {
            let index = value(index, data, computed)?;
            let &[index] = &index.to_i128s()?[..] else {
                let message = format!("expected an index that is a scalar, got {}", index.shape());
                return Err(Error::invalid(message));
            };
            let queue = usize::try_from(index).ok().and_then(|at| queues.get(at));
            let queue = queue.ok_or_else(|| {
                let n = queues.len();
                Error::invalid(format!(
                    "index {index} is not in [0, {n}), the queues to choose from"
                ))
            })?;
            resolved.queue = queue.clone();
        }
        Ok(resolved)
    }

    /// # Errors
    /// No vector of keys, or of a map staging area no scalar.
    fn keys_of(&self, keys: &HostTensor) -> Result<Arc<[Key]>> {
        if self.queue.role != QueueRole::MapStaging {
            if keys.dims().len() != 1 {
                let message = format!("expected a vector of keys, got {}", keys.shape());
                return Err(Error::invalid(message));
            }
            return Ok(keys.as_strings()?.iter().map(|key| Key::Text(key.clone())).collect());
        }
        match (keys.dims(), &keys.to_i128s()?[..]) {
            ([], &[key]) => {
                let key = i64::try_from(key);
                let key = key.map_err(|_| Error::invalid("expected a key of i64"))?;
                Ok([Key::Number(key)].into())
            }
            _ => {
                let message = format!("expected a key that is a scalar, got {}", keys.shape());
                Err(Error::invalid(message))
            }
        }
    }
}
