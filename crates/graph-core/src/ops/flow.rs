//! Branches and loops as they are built: closures over structures of tensors.
//!
//! Source: TensorFlow's `python/ops/control_flow_ops.py` and `functional_ops.py`. There, what a branch captures may run
//! whichever branch is taken, and nothing can be differentiated twice through a loop; here bodies are sub-graphs.

use std::collections::BTreeMap;
use std::panic::Location;

use crate::ops::body::{Built, effects};
use crate::ops::branch::branch;
use crate::ops::control::Refused;
use crate::ops::loops::{Iteration, LoopSpec, repeat};
use crate::{DType, Dims, Graph, OpError, Operation, Tensor};

/// What branches give, and loops carry: tensors, operations (which run where they are), and tuples, arrays, vectors,
/// maps and options of them.
pub trait Structure: Sized {
    /// Adds its tensors, in order.
    fn flatten(&self, parts: &mut Vec<Tensor>);

    /// The same structure of other tensors, taken in order. There are as many as `flatten` adds.
    #[must_use]
    fn rebuild(&self, parts: &mut dyn Iterator<Item = Tensor>) -> Self;

    /// Whether `other` has as many of everything, under the same keys: what branches give, and what a loop is given and
    /// gives, is alike.
    fn is_like(&self, other: &Self) -> bool;
}

impl Structure for Tensor {
    fn flatten(&self, parts: &mut Vec<Tensor>) {
        parts.push(self.clone());
    }

    fn rebuild(&self, parts: &mut dyn Iterator<Item = Tensor>) -> Self {
        parts.next().unwrap_or_else(|| {
            let reason = OpError::Invalid("a structure has lost a tensor".into());
            self.apply(Refused(reason), &[])
        })
    }

    fn is_like(&self, _: &Self) -> bool {
        true
    }
}

/// In a body it is a value that comes after it; outside, an operation that comes after that value.
impl Structure for Operation {
    fn flatten(&self, parts: &mut Vec<Tensor>) {
        parts.push(self.graph().after(&[self], || self.graph().constant(true)));
    }

    fn rebuild(&self, parts: &mut dyn Iterator<Item = Tensor>) -> Self {
        // What needs the value needs the effect.
        parts.next().map_or_else(|| self.graph().no_op(), |tensor| tensor.identity().operation())
    }

    fn is_like(&self, _: &Self) -> bool {
        true
    }
}

impl<T: Structure> Structure for Option<T> {
    fn flatten(&self, parts: &mut Vec<Tensor>) {
        self.iter().for_each(|part| part.flatten(parts));
    }

    fn rebuild(&self, parts: &mut dyn Iterator<Item = Tensor>) -> Self {
        self.as_ref().map(|part| part.rebuild(parts))
    }

    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Some(part), Some(other)) => part.is_like(other),
            (part, other) => part.is_none() == other.is_none(),
        }
    }
}

impl<T: Structure> Structure for Vec<T> {
    fn flatten(&self, parts: &mut Vec<Tensor>) {
        self.iter().for_each(|part| part.flatten(parts));
    }

    fn rebuild(&self, parts: &mut dyn Iterator<Item = Tensor>) -> Self {
        self.iter().map(|part| part.rebuild(parts)).collect()
    }

    fn is_like(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().zip(other).all(|(part, other)| part.is_like(other))
    }
}

impl<T: Structure, const N: usize> Structure for [T; N] {
    fn flatten(&self, parts: &mut Vec<Tensor>) {
        self.iter().for_each(|part| part.flatten(parts));
    }

    fn rebuild(&self, parts: &mut dyn Iterator<Item = Tensor>) -> Self {
        std::array::from_fn(|i| self[i].rebuild(parts))
    }

    fn is_like(&self, other: &Self) -> bool {
        self.iter().zip(other).all(|(part, other)| part.is_like(other))
    }
}

impl<K: Ord + Clone, T: Structure> Structure for BTreeMap<K, T> {
    fn flatten(&self, parts: &mut Vec<Tensor>) {
        self.values().for_each(|part| part.flatten(parts));
    }

    fn rebuild(&self, parts: &mut dyn Iterator<Item = Tensor>) -> Self {
        self.iter().map(|(key, part)| (key.clone(), part.rebuild(parts))).collect()
    }

    fn is_like(&self, other: &Self) -> bool {
        let is_like = |((key, part), (other_key, other)): ((&K, &T), (&K, &T))| {
            key == other_key && part.is_like(other)
        };
        self.len() == other.len() && self.iter().zip(other).all(is_like)
    }
}

macro_rules! tuples {
    ($($(($name:ident $at:tt))+;)*) => {
        $(impl<$($name: Structure),+> Structure for ($($name,)+) {
            fn flatten(&self, parts: &mut Vec<Tensor>) {
                $(self.$at.flatten(parts);)+
            }

            fn rebuild(&self, parts: &mut dyn Iterator<Item = Tensor>) -> Self {
                ($(self.$at.rebuild(parts),)+)
            }

            fn is_like(&self, other: &Self) -> bool {
                $(self.$at.is_like(&other.$at))&&+
            }
        })*
    };
}

impl Structure for () {
    fn flatten(&self, _: &mut Vec<Tensor>) {}

    fn rebuild(&self, _: &mut dyn Iterator<Item = Tensor>) -> Self {}

    fn is_like(&self, (): &Self) -> bool {
        true
    }
}

tuples! {
    (A 0);
    (A 0) (B 1);
    (A 0) (B 1) (C 2);
    (A 0) (B 1) (C 2) (D 3);
    (A 0) (B 1) (C 2) (D 3) (E 4);
    (A 0) (B 1) (C 2) (D 3) (E 4) (F 5);
}

/// What a branch is built by.
pub type Build<'a, T> = Box<dyn FnOnce() -> T + 'a>;

/// How a loop runs.
#[derive(Debug, Clone, Default)]
pub struct LoopOptions {
    /// At most so many iterations.
    pub max_iterations: Option<u64>,
    /// What is known of the shape of each loop variable in every iteration, in the order of the structure; `None` for
    /// those that keep the shape that they begin with. May be shorter than there are variables.
    pub invariants: Vec<Option<Dims>>,
}

/// The parts of a structure.
fn parts(structure: &impl Structure) -> Vec<Tensor> {
    let mut parts = Vec::new();
    structure.flatten(&mut parts);
    parts
}

const OTHER_BRANCH: &str = "branches give different structures";
const OTHER_STRUCTURE: &str = "a loop's body gives another structure than it was given";

/// The parts of a structure that is to be like another, of `n` parts. If it is not, and numbers don't tell, the first one
/// is refused.
fn parts_like<T: Structure>(like: &T, n: usize, structure: &T, what: &str) -> Vec<Tensor> {
    let mut found = parts(structure);
    if !like.is_like(structure) && n == found.len() {
        let reason =
            format!("{what}: other keys, lengths or options, with the same number of tensors");
        found.iter_mut().take(1).for_each(|part| {
            *part = part.apply(Refused(OpError::Invalid(reason.clone())), &[part]);
        });
    }
    found
}

/// A structure of a node's first outputs. A refused node has one output, which stands for all.
fn structured<T: Structure>(like: &T, outputs: &[Tensor]) -> T {
    let refused = outputs.first().filter(|first| first.node().invalid.is_some());
    match refused {
        Some(refused) => like.rebuild(&mut std::iter::repeat_with(|| refused.clone())),
        None => like.rebuild(&mut outputs.iter().cloned()),
    }
}

impl Graph {
    /// What `then` builds where `condition`, a scalar bool, is true, else what `otherwise` builds. Only the one that is
    /// taken runs, with what it needs of what is built inside of it; what is built outside and used inside runs first,
    /// whichever is taken, as far as the results that a run needs use it.
    ///
    /// # Shapes
    /// A size in which the two differ is not known.
    ///
    /// # Errors
    /// Recorded: a condition that is no scalar bool, or structures or dtypes that differ.
    #[track_caller]
    pub fn cond<T: Structure>(
        &self,
        condition: &Tensor,
        then: impl FnOnce() -> T,
        otherwise: impl FnOnce() -> T,
    ) -> T {
        let at = Location::caller();
        if condition.dtype() != DType::Bool && condition.node().invalid.is_none() {
            let found = condition.dtype();
            let what = "the condition of cond";
            let reason = OpError::DType { what, expected: "bool", found };
            let refused = condition.apply(Refused(reason), &[condition]);
            return self.choose(&refused, vec![Box::new(otherwise)], then, at);
        }
        self.choose(condition, vec![Box::new(otherwise)], then, at)
    }

    /// What the branch with this index builds, a scalar i32, or `default` where there is no such.
    ///
    /// # Errors
    /// Recorded: an index that is no scalar i32, or structures or dtypes that differ.
    #[track_caller]
    pub fn switch_case<T: Structure>(
        &self,
        index: &Tensor,
        branches: Vec<Build<'_, T>>,
        default: impl FnOnce() -> T,
    ) -> T {
        self.choose(index, branches, default, Location::caller())
    }

    /// What the first branch builds whose condition is true, else what `default` builds.
    ///
    /// # Errors
    /// Recorded: conditions that are no scalar bools, or structures or dtypes that differ.
    #[track_caller]
    pub fn case<T: Structure>(
        &self,
        branches: Vec<(Tensor, Build<'_, T>)>,
        default: impl FnOnce() -> T,
    ) -> T {
        let at = Location::caller();
        let n = i32::try_from(branches.len()).unwrap_or(i32::MAX);
        let mut index = self.constant(n);
        let mut builds: Vec<Build<'_, T>> = Vec::new();
        for (i, (condition, build)) in branches.into_iter().enumerate().rev() {
            let i = self.constant(i32::try_from(i).unwrap_or(i32::MAX));
            index = condition.select(&i, &index);
            builds.push(build);
        }
        builds.reverse();
        self.choose(&index, builds, default, at)
    }

    fn choose<T: Structure>(
        &self,
        index: &Tensor,
        branches: Vec<Build<'_, T>>,
        last: impl FnOnce() -> T,
        at: &'static Location<'static>,
    ) -> T {
        let mut built = Vec::with_capacity(branches.len() + 1);
        let mut first: Option<(T, usize)> = None;
        for build in branches {
            let (own, structure) = self.branch_like(first.as_ref(), build, at);
            built.push(own);
            first.get_or_insert(structure);
        }
        let (own, (like, _)) = self.branch_like(first.as_ref(), last, at);
        built.push(own);
        structured(&like, &branch(self, index, built, at))
    }

    /// A branch whose structure is that of the first, if there is one; its structure, and of how many parts.
    fn branch_like<T: Structure>(
        &self,
        first: Option<&(T, usize)>,
        build: impl FnOnce() -> T,
        at: &'static Location<'static>,
    ) -> (Built, (T, usize)) {
        Built::new(self, Vec::new(), at, |_| {
            let structure = build();
            let found = match first {
                Some((like, n)) => parts_like(like, *n, &structure, OTHER_BRANCH),
                None => parts(&structure),
            };
            let n = found.len();
            (found, (structure, n))
        })
    }

    /// Runs `body` while `condition` holds: both are given what is carried from iteration to iteration, `init` at first,
    /// and `body` gives what is carried next. Gives what is carried in the end.
    ///
    /// Effects of an iteration come before those of the next; `condition` sees those of the iteration before.
    ///
    /// # Errors
    /// Recorded: a condition that is no scalar bool, another structure, or dtypes or shapes that change.
    #[track_caller]
    pub fn while_loop<T: Structure>(
        &self,
        init: T,
        condition: impl Fn(&T) -> Tensor,
        body: impl FnOnce(&T) -> T,
    ) -> T {
        self.while_loop_with(init, condition, body, LoopOptions::default())
    }

    /// As [`Self::while_loop`], with options.
    ///
    /// # Errors
    /// As [`Self::while_loop`]. A run fails if a shape becomes another than the options say.
    #[track_caller]
    pub fn while_loop_with<T: Structure>(
        &self,
        init: T,
        condition: impl Fn(&T) -> Tensor,
        body: impl FnOnce(&T) -> T,
        options: LoopOptions,
    ) -> T {
        let at = Location::caller();
        let carried = parts(&init);
        let n = carried.len();
        let mut invariants = options.invariants;
        invariants.resize(carried.len().max(invariants.len()), None);
        let spec = LoopSpec {
            pred: Some(condition(&init)),
            count: None,
            carried,
            invariants,
            scanned: Vec::new(),
            max: options.max_iterations,
            reverse: false,
            trips: None,
            counted_by: Vec::new(),
        };
        let (outputs, ()) = repeat(self, spec, at, |carried, _| {
            let next = body(&init.rebuild(&mut carried.iter().cloned()));
            let carried = parts_like(&init, n, &next, OTHER_STRUCTURE);
            let effects = effects(self, &carried);
            let pred = self.after(&effects.iter().collect::<Vec<_>>(), || condition(&next));
            (Iteration { pred: Some(pred), carried, collected: Vec::new() }, ())
        });
        structured(&init, &outputs)
    }

    /// Goes over the slices of `xs` along axis 0: `step` is given what is carried, `init` at first, and a slice of each
    /// tensor, and gives what is carried next and what is collected. Gives what is carried in the end, and what was
    /// collected, stacked along a new axis 0.
    ///
    /// # Errors
    /// Recorded: no tensors to go over, tensors of different lengths, a structure, dtype or shape that changes.
    #[track_caller]
    pub fn scan<S: Structure, X: Structure, Y: Structure>(
        &self,
        init: S,
        xs: X,
        step: impl FnOnce(&S, &X) -> (S, Y),
    ) -> (S, Y) {
        self.go_over(init, xs, false, Location::caller(), step)
    }

    /// As [`Self::scan`], from the last slice to the first. What is collected of a slice stands at its place.
    ///
    /// # Errors
    /// As [`Self::scan`].
    #[track_caller]
    pub fn scan_reversed<S: Structure, X: Structure, Y: Structure>(
        &self,
        init: S,
        xs: X,
        step: impl FnOnce(&S, &X) -> (S, Y),
    ) -> (S, Y) {
        self.go_over(init, xs, true, Location::caller(), step)
    }

    /// What `f` gives for each slice of `xs` along axis 0, stacked.
    ///
    /// # Errors
    /// As [`Self::scan`].
    #[track_caller]
    pub fn map<X: Structure, Y: Structure>(&self, xs: X, f: impl FnOnce(&X) -> Y) -> Y {
        let at = Location::caller();
        self.go_over((), xs, false, at, |(), slice| ((), f(slice))).1
    }

    fn go_over<S: Structure, X: Structure, Y: Structure>(
        &self,
        init: S,
        xs: X,
        reverse: bool,
        at: &'static Location<'static>,
        step: impl FnOnce(&S, &X) -> (S, Y),
    ) -> (S, Y) {
        let carried = parts(&init);
        let n = carried.len();
        let invariants = vec![None; n];
        let scanned = parts(&xs);
        let spec = LoopSpec {
            pred: None,
            count: None,
            carried,
            invariants,
            scanned,
            max: None,
            reverse,
            trips: None,
            counted_by: Vec::new(),
        };
        let (outputs, like) = repeat(self, spec, at, |carried, slices| {
            let state = init.rebuild(&mut carried.iter().cloned());
            let (next, collected) = step(&state, &xs.rebuild(&mut slices.iter().cloned()));
            let carried = parts_like(&init, n, &next, OTHER_STRUCTURE);
            let iteration = Iteration { pred: None, carried, collected: parts(&collected) };
            (iteration, collected)
        });
        let collected = outputs.get(n..).filter(|rest| !rest.is_empty()).unwrap_or(&outputs);
        (structured(&init, &outputs), structured(&like, collected))
    }
}
