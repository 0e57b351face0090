//! Where the groups of a large program went, so that a program that builds on it keeps their places.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use convoke_compiler::{Group, Program, ValueId};
use convoke_graph_core::{NodeId, Output};
use convoke_placement::Solution;
use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

use super::Placing;
use crate::sync::Mutex;

/// Fewer groups are placed anew in little time, and better.
const GROUPS_MIN: usize = 1024;

/// What is new may be this part of what was placed together, and so may what is missing.
const NEW_PART: usize = 8;

/// The places of a program's items.
#[derive(Debug)]
pub(crate) struct Grown {
    variables: FxHashMap<NodeId, usize>,
    /// By what they compute.
    groups: FxHashMap<u64, usize>,
    /// The device that each feed was on.
    homes: FxHashMap<Output, usize>,
    /// How many groups were placed together, how many beside them since, and how many have gone.
    n_together: usize,
    n_since: usize,
    n_gone: usize,
}

/// The last large program's.
pub(crate) type LastGrown = Mutex<Option<Arc<Grown>>>;

/// What is known of a program that may build on another.
pub(super) struct Growing {
    last: Option<Arc<Grown>>,
    /// What each group computes.
    groups: Vec<u64>,
}

impl Growing {
    /// Nothing of a program that is placed by itself: a small one, one that drivers refused kernels of, or one of a session
    /// that learns from its runs.
    pub fn of(placing: &Placing<'_>, program: &Program) -> Option<Self> {
        let is_alone = program.groups.len() < GROUPS_MIN
            || placing.devices.list().len() == 1
            || placing.options.autotune
            || !placing.refused.is_empty();
        if is_alone {
            return None;
        }
        let last = placing.grown.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        Some(Self { last, groups: identities(program) })
    }

    /// The places that items had: of variables, then of groups. None if the program does not build on the last one.
    pub fn before(
        &self,
        placing: &Placing<'_>,
        variables: &[NodeId],
    ) -> Option<Vec<Option<usize>>> {
        let last = self.last.as_ref()?;
        let groups = self.groups.iter().map(|group| last.groups.get(group).copied());
        let (n_new, n_missing) = self.changes(last);
        let is_part = |n: usize| n.saturating_mul(NEW_PART) <= last.n_together;
        let mut homes = homes(placing).into_iter();
        let is_moved =
            homes.any(|(feed, home)| last.homes.get(&feed).is_some_and(|&at| at != home));
        if is_moved || !is_part(n_new + last.n_since) || !is_part(n_missing + last.n_gone) {
            return None;
        }
        let variables = variables.iter().map(|variable| last.variables.get(variable).copied());
        Some(variables.chain(groups).collect())
    }

    /// How many groups are new, and how many have gone.
    fn changes(&self, last: &Grown) -> (usize, usize) {
        let n_new = self.groups.iter().filter(|group| !last.groups.contains_key(group)).count();
        (n_new, last.groups.len().saturating_sub(self.groups.len() - n_new))
    }

    /// Notes where the program's items went.
    pub fn note(self, placing: &Placing<'_>, variables: &[NodeId], solution: &Solution) {
        let n_groups = self.groups.len();
        let last = self.last.as_ref().filter(|_| solution.n_kept > 0);
        let (n_together, n_since, n_gone) = last.map_or((n_groups, 0, 0), |last| {
            let (n_new, n_missing) = self.changes(last);
            (last.n_together, last.n_since + n_new, last.n_gone + n_missing)
        });
        let grown = Grown {
            variables: variables.iter().copied().zip(solution.device.iter().copied()).collect(),
            groups: self
                .groups
                .into_iter()
                .zip(solution.device[variables.len()..].iter().copied())
                .collect(),
            homes: homes(placing),
            n_together,
            n_since,
            n_gone,
        };
        let mut last = placing.grown.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *last = Some(Arc::new(grown));
    }
}

fn homes(placing: &Placing<'_>) -> FxHashMap<Output, usize> {
    let feeds = placing.plan.signature.feeds.iter().copied();
    feeds.zip(placing.homes.iter().map(|home| home.0 as usize)).collect()
}

/// What each group computes: of which nodes, from and in what shapes, what of it is fetched, and how many before it
/// compute the same.
fn identities(program: &Program) -> Vec<u64> {
    let mut seen: FxHashMap<u64, u32> = FxHashMap::default();
    let fetched: FxHashSet<ValueId> = program.fetches.iter().map(|fetch| fetch.value).collect();
    let identity = |group: &Group| {
        let mut hasher = FxHasher::default();
        group.nodes.hash(&mut hasher);
        for &output in &group.outputs {
            let value = program.value(output);
            (value.dtype, &value.shape, fetched.contains(&output)).hash(&mut hasher);
        }
        for input in &group.inputs {
            (program.value(input.value).dtype, input.layout.shape()).hash(&mut hasher);
        }
        let earlier = seen.entry(hasher.finish()).or_insert(0);
        earlier.hash(&mut hasher);
        *earlier += 1;
        hasher.finish()
    };
    program.groups.iter().map(identity).collect()
}
