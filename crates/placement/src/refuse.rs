//! Messages for what can't be placed: the nodes, what was asked for, the devices that exist, those with
//! a kernel, and what would help, in at most 15 lines.

mod message;

use convoke_graph_core::{Error, ErrorKind};
use rustc_hash::FxHashSet;

use crate::DeviceSpec;
use crate::memory::Least;
use crate::problem::{Problem, TensorEdge};
use crate::request::Clash;
use crate::unite::Union;
use message::{MAX_LISTED, Message, cut_off, described, names, one_of};

/// There are no devices at all.
pub(crate) fn no_devices(problem: &Problem) -> Error {
    let mut message = Message::new("no devices are registered: a session needs at least the CPU");
    // An item can't be assigned to what is not there.
    let is_free = |&item: &usize| problem.items[item].assigned.is_none();
    let items: Vec<usize> = (0..problem.items.len()).filter(is_free).collect();
    message.asked(problem, &items);
    message.all_devices(problem);
    message.help("open devices, with the CPU among them");
    Error::new(ErrorKind::FailedPrecondition, message.text())
}

/// The name of a device was not understood, which `error` says.
pub(crate) fn malformed_name(problem: &Problem, error: &Error) -> Error {
    // What the name may look like is worth a longer line.
    let mut message = Message::of(error.message());
    message.all_devices(problem);
    let all: Vec<usize> = (0..problem.devices.len()).collect();
    let names = one_of(problem, &all);
    message.help(&format!("ask for {names}; soft placement does not relax this"));
    Error::new(error.kind(), message.text())
}

/// No device has a kernel for an item.
pub(crate) fn no_kernel(problem: &Problem, item: usize) -> Error {
    let mut message = Message::new("no device has a kernel for this operation");
    message.asked(problem, &[item]);
    message.devices(problem, &[]);
    message.refusals(problem, &[item]);
    message.help("use another dtype or other attributes, or open a device that has such a kernel");
    message.error(problem, item)
}

/// The runtime assigned an item to a device that can't run it: not the user's fault.
pub(crate) fn assigned_without_kernel(problem: &Problem, item: usize, why: &str) -> Error {
    let label = problem.items[item].assigned.map(|d| names(problem, &[d])).unwrap_or_default();
    let message = format!("assigned to {label}, which has no kernel for this operation: {why}");
    Error::internal(cut_off(&message)).with_node(problem.items[item].name.as_str())
}

/// Why two items should share a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tie {
    /// The second uses what the first holds.
    Resource,
    /// The first asked to be with the second.
    Colocation,
}

/// Two items that should share a device, and can't.
pub(crate) struct Apart<'a> {
    pub(crate) tie: Tie,
    pub(crate) pair: (usize, usize),
    /// They and all that already shares a device with one of them.
    pub(crate) members: Vec<usize>,
    /// For each item of the problem, who overruled its request.
    pub(crate) overruled: &'a [Option<usize>],
    pub(crate) clash: &'a Clash,
}

/// Items can't share a device.
pub(crate) fn apart(problem: &Problem, apart: &Apart<'_>) -> Error {
    let (first, second) = apart.pair;
    let clash = apart.clash;
    let (item, headline) = match apart.tie {
        Tie::Resource => {
            let holder = &problem.items[first].name;
            (second, format!("must be on the device of '{holder}', which it uses: {clash}"))
        }
        Tie::Colocation => {
            let with = &problem.items[second].name;
            (first, format!("can't be colocated with '{with}': {clash}"))
        }
    };
    let mut message = Message::new(headline);
    let others = apart.members.iter().copied().filter(|&other| other != first && other != second);
    let members: Vec<usize> = [first, second].into_iter().chain(others).collect();
    if *clash == Clash::NoKernel {
        message.asked(problem, &members);
    } else {
        let mut listed = in_conflict(problem, apart);
        let first: FxHashSet<usize> = listed.iter().copied().collect();
        listed.extend(members.iter().filter(|item| !first.contains(item)));
        message.asked(problem, &listed);
    }
    message.devices(problem, &common(problem, &members));
    if *clash == Clash::NoKernel {
        message.refusals(problem, &members);
    }
    message.help(&match (apart.tie, clash) {
        (Tie::Resource, Clash::NoKernel | Clash::NoDevice) => format!(
            "give '{}' a dtype that both have kernels for; soft placement does not relax this",
            problem.items[first].name
        ),
        (Tie::Resource, Clash::Assigned(..)) => {
            "use in one operation only what is on one device: read the values first".into()
        }
        (Tie::Resource, Clash::AssignedAndBinding(..)) => {
            "ask for the same device for all of them, or turn soft placement on".into()
        }
        (Tie::Resource, _) => {
            "ask for the same device for all of them; soft placement does not relax this".into()
        }
        (Tie::Colocation, Clash::NoKernel | Clash::NoDevice | Clash::Assigned(..)) => {
            "take one out of the colocation, or turn soft placement on".into()
        }
        (Tie::Colocation, _) => "ask for the same device for all of them, take one out of the \
                                 colocation, or turn soft placement on"
            .into(),
    });
    message.error(problem, item)
}

/// No device meets the request of a class, given by its members and its root.
pub(crate) fn unmet_request(
    problem: &Problem,
    members: &[usize],
    union: &Union<'_>,
    root: usize,
) -> Error {
    let (request, runs) = (union.request(root), union.runs(root));
    if let Some(home) = request.assigned() {
        return unfit_home(problem, members, home);
    }
    let supported: Vec<usize> = (0..runs.len()).filter(|&d| runs[d]).collect();
    let merged = request.merged(problem);
    let exists = problem.devices.iter().any(|device| merged.matches(&device.name));
    let asks = |&item: &usize| {
        problem.items[item].requested.is_some() && union.overruled()[item].is_none()
    };
    let asking: Vec<usize> = members.iter().copied().filter(asks).collect();
    let first = asking.first().copied().unwrap_or(members[0]);
    let mut message = Message::new(match (exists, members.len()) {
        (false, _) => format!("{merged} was requested, and there is no such device"),
        (true, 1) => format!("{merged} was requested, and it has no kernel for this operation"),
        (true, _) => {
            format!("{merged} was requested, and it has no kernel for all that is colocated here")
        }
    });
    message.asked(problem, &asking);
    message.devices(problem, &supported);
    if exists {
        message.refusals(problem, members);
    }
    message.help(&instead(problem, &merged, &supported));
    message.error(problem, first)
}

/// What to ask for instead of a request that no device meets.
fn instead(problem: &Problem, merged: &DeviceSpec, supported: &[usize]) -> String {
    let names = one_of(problem, supported);
    let is_gpu = |spec: &DeviceSpec| spec.device_type.as_deref() == Some("GPU");
    let has_gpu = problem.devices.iter().any(|device| is_gpu(&device.name));
    let open = if is_gpu(merged) && !has_gpu { "no GPU is open: open one, or " } else { "" };
    let relaxed = merged.relaxed();
    let helps = supported.iter().any(|&d| relaxed.matches(&problem.devices[d].name));
    match (helps, problem.soft_placement) {
        (true, false) => format!("{open}ask for {names}, or turn soft placement on"),
        _ => format!("{open}ask for {names}: soft placement never changes job, replica or task"),
    }
}

/// The device that a member of a class is assigned to does not run all members.
fn unfit_home(problem: &Problem, members: &[usize], home: usize) -> Error {
    let is_assigned = |item: &usize| problem.items[*item].assigned == Some(home);
    let refuses = |item: &usize| problem.refusal(*item, home).is_some();
    let settled = members.iter().copied().find(is_assigned).unwrap_or(members[0]);
    let unfit = members.iter().copied().find(refuses).unwrap_or(members[0]);
    let label = names(problem, &[home]);
    let mut message = Message::new(format!(
        "has to share {label} with '{}', and it has no kernel there",
        problem.items[settled].name
    ));
    message.asked(problem, &[settled, unfit]);
    message.devices(problem, &common(problem, members));
    message.refusals(problem, &[unfit]);
    message.help(&format!(
        "use another dtype or other attributes, or take the operation out of what shares {label}"
    ));
    message.error(problem, unfit)
}

/// A device has too little memory for its resources and its largest item.
pub(crate) fn too_little_memory(
    problem: &Problem,
    device: &[usize],
    on: usize,
    least: &Least,
) -> Error {
    let labels = problem.labels();
    let memory = problem.devices[on].memory_bytes;
    let needed = least.n_bytes();
    let mut message = Message::new(format!(
        "{} has {memory} bytes of memory, and what can't be anywhere else takes at least {needed}",
        labels[on],
    ));
    if let Some(item) = least.item {
        let who = described(problem, item);
        message.line(&format!("{who} needs {} bytes for what it reads and makes", least.bytes));
    }
    if least.resident > 0 {
        let resident = least.resident;
        message.line(&format!("variables and constants there take {resident} bytes at all times"));
    }
    let mut largest: Vec<&TensorEdge> =
        problem.tensors.iter().filter(|tensor| is_on(tensor, device, on)).collect();
    largest.sort_by_key(|tensor| std::cmp::Reverse(tensor.bytes));
    for tensor in largest.iter().take(MAX_LISTED) {
        message.line(&format!("'{}' takes {} bytes", tensor.name, tensor.bytes));
    }
    message.more(largest.len(), "tensor");
    let others = (0..labels.len()).filter(|&d| d != on);
    for d in others.clone().take(MAX_LISTED) {
        message.line(&format!("{} has {} bytes", labels[d], problem.devices[d].memory_bytes));
    }
    message.more(others.count(), "device");
    message.help(
        "use smaller tensors or batches, let variables be on other devices, or raise the device's budget",
    );
    let error = Error::new(ErrorKind::ResourceExhausted, message.text());
    match least.item {
        Some(item) => error.with_node(problem.items[item].name.as_str()),
        None => error,
    }
}

/// Whether a tensor is made or read on a device.
fn is_on(tensor: &TensorEdge, device: &[usize], on: usize) -> bool {
    let made_by = tensor.producer.item();
    tensor.consumers.iter().copied().chain(made_by).any(|item| device[item] == on)
}

/// The devices that run all members.
fn common(problem: &Problem, members: &[usize]) -> Vec<usize> {
    let runs = |d: &usize| members.iter().all(|&item| problem.refusal(item, *d).is_none());
    (0..problem.devices.len()).filter(runs).collect()
}

/// The first two items whose requests are in conflict.
fn in_conflict(problem: &Problem, apart: &Apart<'_>) -> Vec<usize> {
    let counts = |&item: &usize| match apart.clash {
        Clash::Assigned(..) => problem.items[item].assigned.is_some(),
        Clash::Bindings(..) => problem.is_holder(item),
        Clash::AssignedAndBinding(..) => {
            problem.items[item].assigned.is_some() || problem.is_holder(item)
        }
        Clash::Requests(..) | Clash::NoKernel | Clash::NoDevice => apart.overruled[item].is_none(),
    };
    let asking: Vec<(usize, &DeviceSpec)> = apart
        .members
        .iter()
        .copied()
        .filter(counts)
        .filter_map(|item| Some((item, problem.claim(item)?)))
        .collect();
    let mut merged = DeviceSpec::default();
    for &(item, asked) in &asking {
        match merged.combine(asked) {
            Ok(both) => merged = both,
            Err(_) => {
                let against = asking.iter().find(|(_, other)| other.combine(asked).is_err());
                return against.map(|&(other, _)| other).into_iter().chain([item]).collect();
            }
        }
    }
    asking.into_iter().map(|(item, _)| item).collect()
}
