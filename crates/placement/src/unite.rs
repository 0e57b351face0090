//! Which items share a device: union-find over resource edges, then over colocations.
//!
//! What two classes would be together is worked out before they are united, so that a request that fails
//! leaves nothing behind.

use convoke_graph_core::{Error, Result};

use crate::explain::DroppedColocation;
use crate::problem::Problem;
use crate::refuse::{self, Apart, Tie};
use crate::request::{Clash, Request};

/// Items in classes, each with a root that knows what the class asks for and where it runs.
pub(crate) struct Union<'a> {
    problem: &'a Problem,
    parent: Vec<u32>,
    /// The number of members of each root's class.
    size: Vec<u32>,
    /// What each root's class asks for.
    requests: Vec<Request>,
    /// Whether the class of root `i` runs on device `d`, at `i * devices + d`.
    runs: Vec<bool>,
    /// The members of each root's class whose wishes count.
    wishers: Vec<Vec<usize>>,
    /// For each item, the item whose resource edge overruled its request.
    overruled: Vec<Option<usize>>,
    dropped: Vec<(usize, DroppedColocation)>,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// For each item, the item whose resource edge overruled its request.
    pub(crate) overruled: Vec<Option<usize>>,
    /// The colocations that soft placement gave up, with the items that asked for them.
    pub(crate) dropped: Vec<(usize, DroppedColocation)>,
}

impl<'a> Union<'a> {
    /// Unites what a checked problem ties.
    ///
    /// # Errors
    /// `InvalidArgument` for a resource edge that can't be met, or without soft placement a colocation.
    pub(crate) fn new(problem: &'a Problem) -> Result<Self> {
        let mut union = Self::singles(problem);
        for &(source, user) in &problem.resource_edges {
            union.connect(source, user)?;
        }
        for &(item, with) in &problem.colocations {
            union.colocate(item, with)?;
        }
        Ok(union)
    }

    fn singles(problem: &'a Problem) -> Self {
        let n_items = problem.items.len();
        let devices = 0..problem.devices.len();
        let is_user = problem.users();
        let items = problem.items.iter().zip(&is_user);
        let runs = |item: usize| devices.clone().map(move |d| problem.refusal(item, d).is_none());
        let wishes = |i: usize| {
            let item = &problem.items[i];
            let binds = item.is_resource && !is_user[i];
            item.requested.is_some() && item.assigned.is_none() && !binds
        };
        Self {
            problem,
            parent: (0..n_items as u32).collect(),
            size: vec![1; n_items],
            requests: items.map(|(item, &is_user)| Request::of(item, is_user)).collect(),
            runs: (0..n_items).flat_map(runs).collect(),
            wishers: (0..n_items).map(|i| Vec::from_iter(wishes(i).then_some(i))).collect(),
            overruled: vec![None; n_items],
            dropped: Vec::new(),
        }
    }

    /// The root of an item's class.
    pub(crate) fn root(&mut self, item: usize) -> usize {
        let mut at = item;
        while self.parent[at] as usize != at {
            self.parent[at] = self.parent[self.parent[at] as usize];
            at = self.parent[at] as usize;
        }
        at
    }

    /// What a root's class asks for.
    pub(crate) fn request(&self, root: usize) -> &Request {
        &self.requests[root]
    }

    /// For each item, the item whose resource edge overruled its request.
    pub(crate) fn overruled(&self) -> &[Option<usize>] {
        &self.overruled
    }

    /// Whether a root's class runs on each device.
    pub(crate) fn runs(&self, root: usize) -> &[bool] {
        let n_devices = self.problem.devices.len();
        &self.runs[root * n_devices..(root + 1) * n_devices]
    }

    pub(crate) fn notes(self) -> Notes {
        Notes { overruled: self.overruled, dropped: self.dropped }
    }

    /// Unites the holder of a resource with a user of it.
    fn connect(&mut self, source: usize, user: usize) -> Result<()> {
        let (a, b) = (self.root(source), self.root(user));
        if a == b {
            return Ok(());
        }
        let connected = Request::connect(self.problem, &self.requests[a], &self.requests[b]);
        let both = connected.and_then(|connected| Ok((connected, self.common(a, b)?)));
        let (connected, runs) = match both {
            Ok(both) => both,
            Err(clash) => return Err(self.refused(Tie::Resource, (source, user), &clash)),
        };
        if connected.source_overruled {
            self.overrule(a, user);
        }
        if connected.user_overruled {
            self.overrule(b, source);
        }
        self.unite(a, b, connected.request, &runs);
        Ok(())
    }

    /// Unites an item with the one that it asked to be with, or with soft placement drops what fails.
    fn colocate(&mut self, item: usize, with: usize) -> Result<()> {
        let (a, b) = (self.root(item), self.root(with));
        if a == b {
            return Ok(());
        }
        match self.colocated(a, b) {
            Ok((request, runs)) => self.unite(a, b, request, &runs),
            Err(clash) if self.problem.soft_placement => {
                self.dropped.push((item, DroppedColocation { with, why: clash.to_string() }));
            }
            Err(clash) => return Err(self.refused(Tie::Colocation, (item, with), &clash)),
        }
        Ok(())
    }

    /// What two classes would be if they were colocated.
    fn colocated(&self, a: usize, b: usize) -> Result<(Request, Vec<bool>), Clash> {
        let request = Request::colocate(self.problem, &self.requests[a], &self.requests[b])?;
        let runs = self.common(a, b)?;
        if self.problem.soft_placement && request.devices(self.problem, &runs).is_empty() {
            return Err(Clash::NoDevice);
        }
        Ok((request, runs))
    }

    /// Whether two classes run together on each device.
    fn common(&self, a: usize, b: usize) -> Result<Vec<bool>, Clash> {
        let runs: Vec<bool> =
            self.runs(a).iter().zip(self.runs(b)).map(|(a, b)| *a && *b).collect();
        if runs.contains(&true) { Ok(runs) } else { Err(Clash::NoKernel) }
    }

    /// Notes that the wishes of a root's class count no more.
    fn overrule(&mut self, root: usize, by: usize) {
        for item in std::mem::take(&mut self.wishers[root]) {
            self.overruled[item] = Some(by);
        }
    }

    fn unite(&mut self, a: usize, b: usize, request: Request, runs: &[bool]) {
        let (root, other) = if self.size[a] >= self.size[b] { (a, b) } else { (b, a) };
        self.parent[other] = root as u32;
        self.size[root] += self.size[other];
        let mut wishers = std::mem::take(&mut self.wishers[other]);
        if wishers.len() > self.wishers[root].len() {
            std::mem::swap(&mut wishers, &mut self.wishers[root]);
        }
        self.wishers[root].append(&mut wishers);
        self.requests[root] = request;
        let n_devices = runs.len();
        self.runs[root * n_devices..(root + 1) * n_devices].copy_from_slice(runs);
    }

    fn refused(&mut self, tie: Tie, pair: (usize, usize), clash: &Clash) -> Error {
        let (a, b) = (self.root(pair.0), self.root(pair.1));
        let all = 0..self.problem.items.len();
        let mut is_member = |item: &usize| [a, b].contains(&self.root(*item));
        let members = all.filter(&mut is_member).collect();
        let apart = Apart { tie, pair, members, overruled: &self.overruled, clash };
        refuse::apart(self.problem, &apart)
    }
}
