//! Which devices a colocation class may use, by TensorFlow's rules.
//!
//! A class is a set of items that share a device. Its members' kernels are intersected, and their
//! requests merged field by field. Requests of resources bind: they overrule those of the operations
//! colocated with them, and two that conflict are refused. Other conflicts, and requests that no device
//! with a kernel meets, are refused, or with soft placement give way in type and index; job, replica and
//! task never do. A request of a resource gives way last.

use convoke_graph_core::Result;
use rustc_hash::FxHashMap;

use crate::problem::Problem;
use crate::{DeviceSpec, FieldConflict, Picoseconds, refuse};

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
}

impl Classes {
    /// Groups the items of a checked problem.
    ///
    /// # Errors
    /// `InvalidArgument` for items without a kernel, and for requests that can't be met.
    pub(crate) fn new(problem: &Problem) -> Result<Self> {
        let mut classes = Self::group(problem);
        for item in 0..problem.items.len() {
            let runs = (0..classes.n_devices).any(|d| problem.refusal(item, d).is_none());
            if !runs {
                return Err(refuse::no_kernel(problem, item));
            }
        }
        for class in 0..classes.len() {
            classes.limit(problem, class)?;
        }
        Ok(classes)
    }

    fn group(problem: &Problem) -> Self {
        let mut known: FxHashMap<u32, u32> = FxHashMap::default();
        let mut first = vec![0u32];
        let mut of = Vec::with_capacity(problem.items.len());
        for item in &problem.items {
            let new = first.len() as u32 - 1;
            let class = match item.colocation {
                Some(colocation) => *known.entry(colocation).or_insert(new),
                None => new,
            };
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
        }
    }

    /// Finds the legal devices of a class and what it costs on them.
    fn limit(&mut self, problem: &Problem, class: usize) -> Result<()> {
        let members = self.members(class);
        let runs = |d: usize| members.iter().all(|&item| problem.refusal(item, d).is_none());
        let supported: Vec<usize> = (0..self.n_devices).filter(|&d| runs(d)).collect();
        if supported.is_empty() {
            return Err(refuse::no_common_device(problem, members));
        }
        let request = Request::of(problem, members)?;
        let chosen = request.devices(problem, &supported);
        if chosen.is_empty() {
            return Err(refuse::unmet_request(problem, members, &request.merged(), &supported));
        }
        let cost = |d: usize| {
            let costs = members.iter().map(|&item| problem.item_cost(item, d));
            costs.fold(0, Picoseconds::saturating_add)
        };
        let costs: Vec<Picoseconds> = (0..self.n_devices).map(cost).collect();
        let at = class * self.n_devices;
        self.costs[at..at + self.n_devices].copy_from_slice(&costs);
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

    /// The devices that a class may use: at least one.
    pub(crate) fn devices(&self, class: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.n_devices).filter(move |&d| self.legal(class, d))
    }

    /// Each item's device, from each class's.
    pub(crate) fn spread(&self, places: &[usize], device: &mut Vec<usize>) {
        device.clear();
        device.extend(self.of.iter().map(|&class| places[class as usize]));
    }
}

/// What the members of a class ask for together.
#[derive(Default)]
struct Request {
    soft: bool,
    /// Of resources.
    binding: DeviceSpec,
    /// Of all else, where it does not contradict `binding`.
    wished: DeviceSpec,
    /// Whether wishes were in conflict; the field then stays open, whoever asks for it later.
    open_type: bool,
    open_index: bool,
}

impl Request {
    fn of(problem: &Problem, members: &[usize]) -> Result<Self> {
        let mut request = Self { soft: problem.soft_placement, ..Self::default() };
        let requests = |of_resources: bool| {
            let items = members.iter().map(|&item| &problem.items[item]);
            items.filter(move |item| item.is_resource == of_resources)
        };
        for asked in requests(true).filter_map(|item| item.requested.as_ref()) {
            let both = request.binding.combine(asked);
            request.binding = both.map_err(|_| refuse::conflict(problem, members, true))?;
        }
        for asked in requests(false).filter_map(|item| item.requested.as_ref()) {
            let asked = asked.merge(&request.binding);
            request.wish(asked).map_err(|_| refuse::conflict(problem, members, false))?;
        }
        Ok(request)
    }

    /// Adds what one operation asks for.
    fn wish(&mut self, mut asked: DeviceSpec) -> Result<(), FieldConflict> {
        loop {
            if self.open_type {
                asked.device_type = None;
            }
            if self.open_type || self.open_index {
                asked.index = None;
            }
            match self.wished.combine(&asked) {
                Ok(merged) => {
                    self.wished = merged;
                    return Ok(());
                }
                Err(FieldConflict::Type) if self.soft => {
                    (self.wished.device_type, self.wished.index) = (None, None);
                    self.open_type = true;
                }
                Err(FieldConflict::Index) if self.soft => {
                    self.wished.index = None;
                    self.open_index = true;
                }
                Err(field) => return Err(field),
            }
        }
    }

    fn merged(&self) -> DeviceSpec {
        self.wished.merge(&self.binding)
    }

    /// The devices among `supported` that meet the request, or with soft placement its nearest
    /// relaxation that any meets.
    fn devices(&self, problem: &Problem, supported: &[usize]) -> Vec<usize> {
        let matching = |spec: &DeviceSpec| -> Vec<usize> {
            let fits = |&d: &usize| spec.matches(&problem.devices[d].name);
            supported.iter().copied().filter(fits).collect()
        };
        let merged = self.merged();
        let mut found = matching(&merged);
        if found.is_empty() && self.soft {
            found = matching(&self.wished.relaxed().merge(&self.binding));
        }
        if found.is_empty() && self.soft {
            found = matching(&merged.relaxed());
        }
        found
    }
}
