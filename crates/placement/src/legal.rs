//! Which devices a colocation class may use, by TensorFlow's rules (`docs/placement.md` lists them).
//!
//! A class is a set of items that share a device: those that a resource connects (`unite.rs`), then those
//! that were colocated. Its members' kernels are intersected, and their requests become one
//! (`request.rs`). A request that no device with a kernel meets is refused, or with soft placement gives
//! way in type and index; job, replica and task never do. A request of a resource gives way last, and an
//! assigned device never. What nobody asked a device for goes to the preferred one, if that runs it.

use convoke_graph_core::Result;

use crate::explain::DroppedColocation;
use crate::problem::{HOST, Problem};
use crate::unite::{Notes, Union};
use crate::{Picoseconds, refuse};

/// Items grouped by colocation, with the devices that each group may use.
#[derive(Debug)]
pub(crate) struct Classes {
    n_devices: usize,
    of: Vec<u32>,
    /// The members of class `c` are at `first[c]..first[c + 1]`.
    first: Vec<u32>,
    members: Vec<usize>,
    /// Whether class `c` may use device `d`, at `c * devices + d`.
    legal: Vec<bool>,
    /// What class `c` costs on device `d`, at `c * devices + d`.
    costs: Vec<Picoseconds>,
    /// Whether the preferred device kept class `c` from others that it could use.
    preferred: Vec<bool>,
    notes: Notes,
}

impl Classes {
    /// Groups the items of a checked problem.
    ///
    /// # Errors
    /// `InvalidArgument` for items without a kernel, and for requests that can't be met; `Internal` for an
    /// item that is assigned to a device which can't run it.
    pub(crate) fn new(problem: &Problem) -> Result<Self> {
        for (i, item) in problem.items.iter().enumerate() {
            if (0..problem.devices.len()).all(|d| problem.refusal(i, d).is_some()) {
                return Err(refuse::no_kernel(problem, i));
            }
            if let Some(why) = item.assigned.and_then(|d| problem.refusal(i, d)) {
                return Err(refuse::assigned_without_kernel(problem, i, why));
            }
        }
        let mut union = Union::new(problem)?;
        let mut classes = Self::group(problem, &mut union);
        for class in 0..classes.len() {
            let root = union.root(classes.members(class)[0]);
            classes.limit(problem, &union, class, root)?;
        }
        classes.notes = union.notes();
        Ok(classes)
    }

    fn group(problem: &Problem, union: &mut Union<'_>) -> Self {
        let n_items = problem.items.len();
        let mut class_of_root: Vec<Option<u32>> = vec![None; n_items];
        let mut first = vec![0u32];
        let mut of = Vec::with_capacity(n_items);
        for item in 0..n_items {
            let new = first.len() as u32 - 1;
            let class = *class_of_root[union.root(item)].get_or_insert(new);
            if class == new {
                first.push(0);
            }
            first[class as usize + 1] += 1;
            of.push(class);
        }
        for class in 1..first.len() {
            first[class] += first[class - 1];
        }
        let mut next = first.clone();
        let mut members = vec![0; of.len()];
        for (item, &class) in of.iter().enumerate() {
            members[next[class as usize] as usize] = item;
            next[class as usize] += 1;
        }
        let (n_classes, n_devices) = (first.len() - 1, problem.devices.len());
        Self {
            n_devices,
            of,
            first,
            members,
            legal: vec![false; n_classes * n_devices],
            costs: vec![0; n_classes * n_devices],
            preferred: vec![false; n_classes],
            notes: Notes::default(),
        }
    }

    /// Finds the legal devices of a class and what it costs on them.
    fn limit(
        &mut self,
        problem: &Problem,
        union: &Union<'_>,
        class: usize,
        root: usize,
    ) -> Result<()> {
        let members = self.members(class);
        let mut chosen = union.request(root).devices(problem, union.runs(root));
        if chosen.is_empty() {
            return Err(refuse::unmet_request(problem, members, union, root));
        }
        let is_free = |&item: &usize| {
            let item = &problem.items[item];
            item.requested.is_none() && item.assigned.is_none()
        };
        let wanted = problem.preferred.filter(|d| chosen.contains(d) && chosen.len() > 1);
        let preferred = wanted.filter(|_| members.iter().all(is_free));
        if let Some(device) = preferred {
            chosen = vec![device];
        }
        let cost = |d: usize| {
            let costs = members.iter().map(|&item| problem.item_cost(item, d));
            costs.fold(0, Picoseconds::saturating_add)
        };
        let costs: Vec<Picoseconds> = (0..self.n_devices).map(cost).collect();
        let at = class * self.n_devices;
        self.costs[at..at + self.n_devices].copy_from_slice(&costs);
        self.preferred[class] = preferred.is_some();
        for d in chosen {
            self.legal[at + d] = true;
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.first.len() - 1
    }

    /// The class of an item.
    pub(crate) fn of(&self, item: usize) -> usize {
        self.of[item] as usize
    }

    pub(crate) fn members(&self, class: usize) -> &[usize] {
        &self.members[self.first[class] as usize..self.first[class + 1] as usize]
    }

    pub(crate) fn legal(&self, class: usize, device: usize) -> bool {
        self.legal[class * self.n_devices + device]
    }

    pub(crate) fn cost(&self, class: usize, device: usize) -> Picoseconds {
        self.costs[class * self.n_devices + device]
    }

    /// The device that a class may use where it costs least by itself.
    pub(crate) fn cheapest(&self, class: usize) -> usize {
        self.devices(class).min_by_key(|&d| self.cost(class, d)).unwrap_or(HOST)
    }

    /// The devices that a class may use: at least one.
    pub(crate) fn devices(&self, class: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.n_devices).filter(move |&d| self.legal(class, d))
    }

    /// Whether a class would have had a choice but for the preferred device.
    pub(crate) fn is_preferred(&self, class: usize) -> bool {
        self.preferred[class]
    }

    /// The item whose resource edge overruled an item's request.
    pub(crate) fn overruled_by(&self, item: usize) -> Option<usize> {
        self.notes.overruled[item]
    }

    /// The colocations that soft placement gave up, with the items that asked for them.
    pub(crate) fn dropped(&self) -> &[(usize, DroppedColocation)] {
        &self.notes.dropped
    }

    /// Each item's device, from each class's.
    pub(crate) fn spread(&self, places: &[usize], device: &mut Vec<usize>) {
        device.clear();
        device.extend(self.of.iter().map(|&class| places[class as usize]));
    }
}
