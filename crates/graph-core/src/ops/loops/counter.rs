//! Loops that a counter ends: how many iterations they have follows from the numbers that they begin with.

use super::LoopOp;
use crate::{Class, DType, Elementwise, Host, HostTensor, Node, Output};

/// How deep what is compared may be computed.
const DEPTH_MAX: usize = 8;

/// An integer that grows by the same number in each iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progression {
    /// In the first iteration.
    first: i128,
    step: i128,
}

impl Progression {
    fn plus(self, other: Self) -> Option<Self> {
        let first = self.first.checked_add(other.first)?;
        Some(Self { first, step: self.step.checked_add(other.step)? })
    }

    fn minus(self, other: Self) -> Option<Self> {
        self.plus(Self { first: other.first.checked_neg()?, step: other.step.checked_neg()? })
    }

    /// In which iteration, from 1, it is first 0 or more.
    fn reaches_zero(self) -> Option<u64> {
        if self.first >= 0 {
            return Some(1);
        }
        let distance = self.first.checked_neg()?;
        let iterations = (self.step > 0).then(|| (distance - 1) / self.step + 1)?;
        u64::try_from(iterations).ok()?.checked_add(1)
    }

    /// In which iteration, from 1, it is first 0.
    fn is_zero(self) -> Option<u64> {
        if self.first == 0 {
            return Some(1);
        }
        let distance = self.first.checked_neg()?;
        let iterations = distance.checked_div(self.step).filter(|n| *n > 0)?;
        (distance % self.step == 0).then_some(())?;
        u64::try_from(iterations).ok()?.checked_add(1)
    }
}

/// What may end a loop.
const COMPARISONS: [&str; 5] = ["less", "less_equal", "greater", "greater_equal", "not_equal"];

/// What a loop begins with, as far as it is known.
pub(super) struct Start<'a> {
    pub results: &'a [Output],
    pub params: &'a [Output],
    pub own: &'a dyn Fn(Output) -> Option<&'a Node>,
    /// What is carried at first.
    pub carried: &'a dyn Fn(usize) -> Option<HostTensor>,
    /// What the body has from elsewhere.
    pub outer: &'a dyn Fn(Output) -> Option<HostTensor>,
}

/// The dtype, and the progression of an integer.
type Counted = (DType, Progression);

impl Start<'_> {
    /// The comparison that says whether the loop goes on, and both its sides, if they are integers of which each grows by a
    /// number that stays; and all that they are computed from.
    fn compared(&self) -> Option<(&'static str, [Progression; 2], Vec<Counted>)> {
        let pred = (self.own)(*self.results.first()?)?;
        let Class::Elementwise(Elementwise::Row(row)) = pred.op.class() else { return None };
        let &[lhs, rhs] = &pred.inputs[..] else { return None };
        COMPARISONS.contains(&row.name).then_some(())?;
        let mut seen = Vec::new();
        let (lhs, rhs) =
            (self.progression(lhs, 0, &mut seen)?, self.progression(rhs, 0, &mut seen)?);
        Some((row.name, [lhs.1, rhs.1], seen))
    }

    /// How many iterations a loop has that runs at all, if it compares integers of which each grows by a number that stays.
    /// `results` are those of the body, the condition first.
    pub fn count(&self) -> Option<u64> {
        let (name, [lhs, rhs], seen) = self.compared()?;
        let difference = lhs.minus(rhs)?;
        let back = Progression { first: 0, step: 0 }.minus(difference)?;
        let one = Progression { first: 1, step: 0 };
        // It ends where what holds no longer holds.
        let trips = match name {
            "less" => difference.reaches_zero(),
            "less_equal" => difference.minus(one)?.reaches_zero(),
            "greater" => back.reaches_zero(),
            "greater_equal" => back.minus(one)?.reaches_zero(),
            "not_equal" => difference.is_zero(),
            _ => None,
        }?;
        // Up to then nothing leaves its dtype.
        let fits = |&(dtype, counted): &Counted| {
            let (min, max) = dtype.int_range()?;
            let before = i128::from(trips).checked_sub(1)?;
            let last = before.checked_mul(counted.step)?.checked_add(counted.first)?;
            let is_within = |x: i128| (min..=max).contains(&x);
            (is_within(counted.first) && is_within(last)).then_some(())
        };
        seen.iter().map(fits).collect::<Option<Vec<()>>>()?;
        Some(trips)
    }

    /// What an output of the body is in each iteration. What it is computed from is noted.
    fn progression(
        &self,
        output: Output,
        depth: usize,
        seen: &mut Vec<Counted>,
    ) -> Option<Counted> {
        (depth < DEPTH_MAX).then_some(())?;
        let counted = if let Some(at) = self.params.iter().position(|param| *param == output) {
            let start = whole(&(self.carried)(at)?)?;
            (start.0, Progression { first: start.1, step: self.step(at)? })
        } else if let Some(node) = (self.own)(output) {
            match node.op.class() {
                Class::Host(Host::Constant(tensor)) => still(tensor)?,
                Class::Elementwise(Elementwise::Row(row)) => {
                    let &[lhs, rhs] = &node.inputs[..] else { return None };
                    let lhs = self.progression(lhs, depth + 1, seen)?;
                    let rhs = self.progression(rhs, depth + 1, seen)?;
                    let both = match row.name {
                        "add" => lhs.1.plus(rhs.1),
                        "sub" => lhs.1.minus(rhs.1),
                        _ => None,
                    };
                    (lhs.0, both?)
                }
                _ => return None,
            }
        } else {
            still(&(self.outer)(output)?)?
        };
        seen.push(counted);
        Some(counted)
    }

    /// What is added to a carried integer in each iteration.
    fn step(&self, at: usize) -> Option<i128> {
        let (param, next) = (self.params.get(at)?, *self.results.get(1 + at)?);
        if next == *param {
            return Some(0);
        }
        let node = (self.own)(next)?;
        let Class::Elementwise(Elementwise::Row(row)) = node.op.class() else { return None };
        let constant = |output: Output| match (self.own)(output).map(|node| node.op.class()) {
            Some(Class::Host(Host::Constant(tensor))) => Some(whole(tensor)?.1),
            Some(_) => None,
            None if self.params.contains(&output) => None,
            None => Some(whole(&(self.outer)(output)?)?.1),
        };
        match (row.name, &node.inputs[..]) {
            ("add", [lhs, rhs]) if lhs == param => constant(*rhs),
            ("add", [lhs, rhs]) if rhs == param => constant(*lhs),
            ("sub", [lhs, rhs]) if lhs == param => constant(*rhs)?.checked_neg(),
            _ => None,
        }
    }
}

/// A number that stays.
fn still(tensor: &HostTensor) -> Option<Counted> {
    let (dtype, first) = whole(tensor)?;
    Some((dtype, Progression { first, step: 0 }))
}

/// The only element, if it is an integer.
fn whole(tensor: &HostTensor) -> Option<(DType, i128)> {
    let is_one = tensor.dtype().is_int() && tensor.shape().rank() == 0;
    let elements = is_one.then(|| tensor.to_i128s().ok())??;
    Some((tensor.dtype(), *elements.first()?))
}

impl LoopOp {
    /// How many iterations the loop has, if it has a condition that is true at first and compares integers of which each
    /// grows by a number that stays. `carried` are the tensors that it begins with, and `outer` what its body uses from
    /// elsewhere, as far as they are known.
    pub fn counted(
        &self,
        carried: &dyn Fn(usize) -> Option<HostTensor>,
        outer: &dyn Fn(Output) -> Option<HostTensor>,
    ) -> Option<u64> {
        self.has_pred.then(|| self.start(carried, outer, |start| start.count()))?
    }

    /// Whether [`Self::counted`] may say how many iterations there are, whatever the integers are that the loop begins
    /// with: any of the same dtypes will do.
    pub fn is_counted(
        &self,
        carried: &dyn Fn(usize) -> Option<HostTensor>,
        outer: &dyn Fn(Output) -> Option<HostTensor>,
    ) -> bool {
        let compared = || self.start(carried, outer, |start| start.compared().map(|_| ()));
        self.has_pred && compared().is_some()
    }

    fn start<R>(
        &self,
        carried: &dyn Fn(usize) -> Option<HostTensor>,
        outer: &dyn Fn(Output) -> Option<HostTensor>,
        ask: impl FnOnce(&Start<'_>) -> Option<R>,
    ) -> Option<R> {
        let own = |output: Output| {
            let at = self.body.nodes.binary_search_by_key(&output.node, |node| node.id).ok()?;
            self.body.nodes.get(at).map(|node| &**node)
        };
        let (results, params) = (&self.body.results, self.body.params.get(..self.n_carried)?);
        ask(&Start { results, params, own: &own, carried, outer })
    }
}

#[cfg(test)]
mod tests {
    use crate::{Class, DType, Flow, Graph, HostTensor, Output, Tensor, dims};

    type Holds = fn(i128, i128) -> bool;

    const COMPARE: [(&str, Holds); 5] = [
        ("less", |a, b| a < b),
        ("less_equal", |a, b| a <= b),
        ("greater", |a, b| a > b),
        ("greater_equal", |a, b| a >= b),
        ("not_equal", |a, b| a != b),
    ];

    fn compare(name: &str, a: &Tensor, b: &Tensor) -> Tensor {
        match name {
            "less" => a.less(b),
            "less_equal" => a.less_equal(b),
            "greater" => a.greater(b),
            "greater_equal" => a.greater_equal(b),
            _ => a.not_equal(b),
        }
    }

    /// Iterations one by one; `None` where a number leaves the dtype, or after many.
    fn by_hand([mut i, step, limit]: [i128; 3], holds: Holds, range: (i128, i128)) -> Option<u64> {
        for trips in 1..=600 {
            i += step;
            (range.0..=range.1).contains(&i).then_some(())?;
            if !holds(i, limit) {
                return Some(trips);
            }
        }
        None
    }

    #[test]
    fn formulas_count_what_iterations_count() {
        let mut counted_of = [0; 5];
        for dtype in [DType::U8, DType::I8, DType::I32, DType::I64, DType::U64] {
            let (min, max) = dtype.int_range().unwrap();
            let all = [min, min + 1, min + 100, -3, 0, 1, 2, 7, 96, max - 100, max - 1, max];
            let numbers: Vec<i128> = all.into_iter().filter(|n| (min..=max).contains(n)).collect();
            for (at, (name, holds)) in COMPARE.into_iter().enumerate() {
                for subtracts in [false, true] {
                    let g = Graph::new();
                    let [start, step, limit] =
                        ["start", "step", "limit"].map(|name| g.placeholder(name, dtype, dims![]));
                    g.while_loop(
                        start,
                        |i| compare(name, i, &limit),
                        |i| if subtracts { i - &step } else { i + &step },
                    );
                    let node = g.operation("while").unwrap().node();
                    let Class::Flow(Flow::Loop(op)) = node.op.class() else { panic!("{node:?}") };
                    let number = |n: i128| {
                        let bytes = n.to_le_bytes()[..dtype.n_bytes()].to_vec();
                        let bytes = crate::AlignedBytes::copy_of(&bytes).unwrap();
                        HostTensor::from_bytes(dtype, crate::Shape::scalar(), bytes).unwrap()
                    };
                    for &first in &numbers {
                        for &by in &numbers {
                            for &end in numbers.iter().filter(|&&end| holds(first, end)) {
                                let carried = |_: usize| Some(number(first));
                                let outer = |output: Output| {
                                    let is_step = output.node == step.output().node;
                                    Some(number(if is_step { by } else { end }))
                                };
                                let change = if subtracts { -by } else { by };
                                let expected = by_hand([first, change, end], holds, (min, max));
                                let found = op.counted(&carried, &outer);
                                let case = format!("{dtype} {first} by {change} {name} {end}");
                                // By hand only short loops are counted.
                                let found = found.filter(|&n| n <= 600);
                                assert_eq!(found, expected, "{case}");
                                assert!(op.is_counted(&carried, &outer), "{case}");
                                counted_of[at] += u64::from(found.is_some());
                            }
                        }
                    }
                }
            }
        }
        assert!(counted_of.iter().all(|&n| n > 100), "{counted_of:?}");
    }
}
