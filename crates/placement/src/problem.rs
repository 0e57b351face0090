//! What is to be placed: plain data, filled in by the compiler.

use std::sync::Arc;

use convoke_graph_core::{Error, Result};

use crate::order::Order;
use crate::refuse;
use crate::{DeviceKind, DeviceModel, DeviceSpec, Link, Picoseconds, Queues, Work};

/// The host among a problem's devices.
pub(crate) const HOST: usize = 0;

/// Devices, items of work, and the tensors between them.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The devices. The first is the host, a CPU.
    pub devices: Vec<DeviceModel>,
    /// The link from each device to each other: that from `a` to `b` is at `a * devices.len() + b`.
    pub links: Vec<Link>,
    /// Which devices submit to one queue: see [`Self::join`].
    pub queues: Queues,
    /// The work, in the order in which it was declared.
    pub items: Vec<Item>,
    /// What flows between items, from the host and to it.
    pub tensors: Vec<TensorEdge>,
    /// What is brought to devices once, before all runs: it takes memory there, and no time.
    pub constants: Vec<Constant>,
    /// The items that may fail by their data once they run, by their place in [`Self::items`]: nothing is stored
    /// into resources before them.
    pub fallible: Vec<usize>,
    /// Items that must share a device, since the second uses what the first holds: `(source, user)`. Soft
    /// placement does not relax this. What an item asks for that uses itself binds nobody.
    pub resource_edges: Vec<(usize, usize)>,
    /// Items that were asked to share a device, in the order in which it was asked: `(item, with)`. With
    /// soft placement, what can't be had is dropped.
    pub colocations: Vec<(usize, usize)>,
    /// The device of what nobody asked a device for, as far as it has kernels.
    pub preferred: Option<usize>,
    /// Whether a device type or index that can't be had gives way, and a colocation that can't be had.
    pub soft_placement: bool,
    /// What is to be small.
    pub objective: Objective,
}

/// What a placement minimises, within the memory of its devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Objective {
    /// The time of all work and transfers, one after the other: what the machine spends on a run.
    #[default]
    Total,
    /// The time until the run is done, where devices work beside each other.
    Makespan,
}

/// Work that is one kernel, or a resource.
#[derive(Debug, Clone)]
pub struct Item {
    /// The name in messages.
    pub name: String,
    /// The device that was asked for. Ignored where one is assigned.
    pub requested: Option<DeviceSpec>,
    /// The device that the runtime fixed: where a variable already lives. No request overrules it.
    pub assigned: Option<usize>,
    /// For each device, why it can't run there; `None` where it can. Empty: it can run everywhere.
    pub refusals: Vec<Option<String>>,
    /// What it does. Ignored for a resource.
    pub work: Work,
    /// For each device, what it has taken there in runs; `None` where only the model tells. Empty: nowhere. Ignored
    /// for a resource.
    pub known: Vec<Option<Picoseconds>>,
    /// A variable or another thing that stays: it takes no time, is there from the start, and a tensor
    /// that it consumes is stored in it at the end. The requested device of one that uses no other
    /// resource overrules those of its users; one that does, such as a store into a variable, is a user.
    pub is_resource: bool,
    /// Where a resource's contents are at the moment, if it has any: among equal choices it stays there.
    pub now: Option<usize>,
    /// The line that declared it, as in `src/main.rs:12:5`.
    pub location: Option<String>,
}

/// Who makes a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Producer {
    /// An item, by its place in [`Problem::items`].
    Item(usize),
    /// The host, before the run: a feed or a constant.
    Host,
}

/// Elements that never change.
#[derive(Debug, Clone)]
pub struct Constant {
    /// The size.
    pub bytes: u64,
    /// The items that read it, by their place in [`Problem::items`].
    pub consumers: Vec<usize>,
}

impl Producer {
    /// The item, unless the host has it before the run.
    pub(crate) fn item(self) -> Option<usize> {
        match self {
            Self::Item(item) => Some(item),
            Self::Host => None,
        }
    }
}

/// A tensor with its producer and all its consumers.
#[derive(Debug, Clone)]
pub struct TensorEdge {
    /// The name in reports.
    pub name: String,
    /// The size.
    pub bytes: u64,
    /// Who makes it.
    pub producer: Producer,
    /// The items that read it, by their place in [`Problem::items`].
    pub consumers: Vec<usize>,
    /// Whether the host needs it in the end: a fetch.
    pub host_reads: bool,
}

impl From<&Problem> for Arc<Problem> {
    fn from(problem: &Problem) -> Self {
        Self::new(problem.clone())
    }
}

impl Problem {
    /// A problem without items on these devices, with the default links between them.
    pub fn new(devices: Vec<DeviceModel>) -> Self {
        let kinds: Vec<DeviceKind> = devices.iter().map(|device| device.kind).collect();
        let links =
            kinds.iter().flat_map(|&from| kinds.iter().map(move |&to| Link::between(from, to)));
        let links = links.collect();
        Self {
            devices,
            links,
            queues: Queues::default(),
            items: Vec::new(),
            tensors: Vec::new(),
            constants: Vec::new(),
            fallible: Vec::new(),
            resource_edges: Vec::new(),
            colocations: Vec::new(),
            preferred: None,
            soft_placement: false,
            objective: Objective::default(),
        }
    }

    /// A problem on the same devices, of which the same is asked, without any work.
    pub(crate) fn without_work(&self) -> Self {
        Self {
            links: self.links.clone(),
            queues: self.queues.clone(),
            preferred: self.preferred,
            soft_placement: self.soft_placement,
            objective: self.objective,
            ..Self::new(self.devices.clone())
        }
    }

    /// The devices that a name asks for.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed name, with the part that was not understood, the devices, and what to ask for
    /// instead. Whoever knows the node adds it.
    pub fn device_spec(&self, name: &str) -> Result<DeviceSpec> {
        name.parse().map_err(|error| refuse::malformed_name(self, &error))
    }

    /// Lets two GPUs that are parts of one submit to one queue. The links between all that have it become copies there,
    /// which take no longer than the ways through the host, since these are copies as well.
    ///
    /// # Panics
    /// If a device is out of range.
    pub fn join(&mut self, a: usize, b: usize) {
        self.queues.join(a, b);
        let n_devices = self.devices.len();
        let pairs = (0..n_devices).flat_map(|from| (0..n_devices).map(move |to| (from, to)));
        for (from, to) in pairs {
            if self.is_direct(from, to) {
                let staged = self.link(from, HOST).then(self.link(HOST, to));
                self.links[from * n_devices + to] = Link::on(&self.devices[to]).or_faster(&staged);
            }
        }
    }

    /// Whether a device takes what another has by a copy on the GPU.
    pub(crate) fn is_direct(&self, from: usize, to: usize) -> bool {
        self.queues.is_direct(from, to)
    }

    /// The link from one device to another.
    ///
    /// # Panics
    /// If a device is out of range.
    pub(crate) fn link(&self, from: usize, to: usize) -> &Link {
        &self.links[from * self.devices.len() + to]
    }

    /// The devices' names for people: the short form where all are of one task.
    pub(crate) fn labels(&self) -> Vec<String> {
        let task = |spec: &DeviceSpec| (spec.job.clone(), spec.replica, spec.task);
        let mut tasks = self.devices.iter().map(|device| task(&device.name));
        let first = tasks.next();
        let one_task = tasks.all(|other| Some(&other) == first.as_ref());
        let label = |name: &DeviceSpec| if one_task { name.short() } else { name.to_string() };
        self.devices.iter().map(|device| label(&device.name)).collect()
    }

    /// What an item takes on a device.
    pub(crate) fn item_cost(&self, item: usize, device: usize) -> Picoseconds {
        let known = self.known_cost(item, device);
        let item = &self.items[item];
        match known {
            _ if item.is_resource => 0,
            Some(known) => known,
            None => self.devices[device].cost(&item.work),
        }
    }

    /// What an item has taken on a device in runs.
    pub(crate) fn known_cost(&self, item: usize, device: usize) -> Option<Picoseconds> {
        self.items[item].known.get(device).copied().flatten()
    }

    /// For each item, whether it uses what another holds.
    pub(crate) fn users(&self) -> Vec<bool> {
        let mut users = vec![false; self.items.len()];
        for &(_, user) in &self.resource_edges {
            users[user] = true;
        }
        users
    }

    /// Whether an item is a resource that uses no other: its request binds its users.
    pub(crate) fn is_holder(&self, item: usize) -> bool {
        let uses = self.resource_edges.iter().any(|&(_, user)| user == item);
        self.items[item].is_resource && !uses
    }

    /// The device that an item is assigned to, or else the one that it asks for.
    pub(crate) fn claim(&self, item: usize) -> Option<&DeviceSpec> {
        let item = &self.items[item];
        match item.assigned {
            Some(device) => Some(&self.devices[device].name),
            None => item.requested.as_ref(),
        }
    }

    /// Why an item can't run on a device, if it can't.
    pub(crate) fn refusal(&self, item: usize, device: usize) -> Option<&str> {
        self.items[item].refusals.get(device)?.as_deref()
    }

    /// Checks every index and count, and that work does not wait for itself.
    ///
    /// # Errors
    /// `FailedPrecondition` without devices; `Internal` for a malformed problem, since only the library
    /// makes problems.
    pub(crate) fn check(&self) -> Result<Order> {
        let n_devices = self.devices.len();
        let Some(host) = self.devices.first() else { return Err(refuse::no_devices(self)) };
        if host.kind != DeviceKind::Cpu {
            return Err(Error::internal(format!("device 0, {}, is not a CPU", host.name)));
        }
        if self.links.len() != n_devices * n_devices {
            let found = self.links.len();
            return Err(Error::internal(format!("{n_devices} devices with {found} links")));
        }
        if self.queues.len() > n_devices {
            let found = self.queues.len();
            return Err(Error::internal(format!("{n_devices} devices and queues of {found}")));
        }
        // Half of the range is left for the helper nodes of the cut.
        if u32::try_from(self.items.len()).is_err()
            || u32::try_from(self.tensors.len().saturating_mul(2)).is_err()
        {
            return Err(Error::internal("more items or tensors than fit 31 bits"));
        }
        self.check_devices()?;
        self.check_items()?;
        Order::new(self)
    }

    /// Checks that an assignment has one of the devices for each item.
    ///
    /// # Errors
    /// `Internal` if not.
    pub(crate) fn check_places(&self, device: &[usize]) -> Result<()> {
        let n_devices = self.devices.len();
        if device.len() == self.items.len() && device.iter().all(|&d| d < n_devices) {
            return Ok(());
        }
        Err(Error::internal("an assignment needs one of the devices for each item"))
    }

    /// Checks the devices' names, and what names a device.
    fn check_devices(&self) -> Result<()> {
        let n_devices = self.devices.len();
        for (d, device) in self.devices.iter().enumerate() {
            let known = self.devices[..d].iter().any(|other| other.name == device.name);
            if known || !device.name.is_complete() {
                let message = format!("device {d} needs a full name of its own: {}", device.name);
                return Err(Error::internal(message));
            }
        }
        self.check_asked(&self.items)?;
        match self.preferred.filter(|&device| device >= n_devices) {
            Some(device) => {
                let message = format!("device {device} is preferred, and there are {n_devices}");
                Err(Error::internal(message))
            }
            None => Ok(()),
        }
    }

    /// Checks what items say of devices.
    ///
    /// # Errors
    /// `Internal` if they are not the problem's.
    pub(crate) fn check_asked(&self, items: &[Item]) -> Result<()> {
        let n_devices = self.devices.len();
        for item in items {
            let found = item.refusals.len();
            if found != 0 && found != n_devices {
                let message = format!("{found} refusals for {n_devices} devices");
                return Err(Error::internal(message).with_node(item.name.as_str()));
            }
            if let Some(device) = item.assigned.filter(|&device| device >= n_devices) {
                let message = format!("assigned to device {device}, and there are {n_devices}");
                return Err(Error::internal(message).with_node(item.name.as_str()));
            }
        }
        Ok(())
    }

    /// Checks what names an item.
    fn check_items(&self) -> Result<()> {
        let known = |item: usize| item < self.items.len();
        if !self.constants.iter().flat_map(|constant| &constant.consumers).all(|&i| known(i)) {
            return Err(Error::internal("a constant names an item that is not there"));
        }
        if !self.fallible.iter().all(|&item| known(item)) {
            return Err(Error::internal("an item that is not there can fail"));
        }
        for tensor in &self.tensors {
            let made_by = tensor.producer.item();
            if !tensor.consumers.iter().copied().chain(made_by).all(known) {
                let message = format!("tensor {} names an item that is not there", tensor.name);
                return Err(Error::internal(message));
            }
        }
        let ties = self.resource_edges.iter().chain(&self.colocations);
        for &(a, b) in ties {
            if !known(a) || !known(b) {
                let message =
                    format!("items {a} and {b} are to share a device; not both are there");
                return Err(Error::internal(message));
            }
        }
        Ok(())
    }
}
