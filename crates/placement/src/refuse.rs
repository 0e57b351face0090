//! Messages for what can't be placed: the nodes, what was asked for, the devices that exist, those with
//! a kernel, and what would help, in at most 15 lines.

use std::fmt::Write as _;

use convoke_graph_core::{Error, ErrorKind};

use crate::DeviceSpec;
use crate::problem::{Problem, TensorEdge};
use crate::request::Clash;
use crate::unite::Union;

/// Most nodes, and most refusals, that a message lists.
const MAX_LISTED: usize = 4;
/// Most devices that a message lists on a line.
const MAX_DEVICES: usize = 8;
/// Most characters of a line of a message.
const MAX_LINE: usize = 240;

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
    let no_kernel = *clash == Clash::NoKernel;
    if no_kernel {
        message.asked(problem, &members);
    } else {
        message.asked(problem, &in_conflict(problem, apart));
    }
    message.devices(problem, &common(problem, &members));
    if no_kernel {
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
    let names = match supported {
        [_] => names(problem, supported),
        _ => format!("one of {}", names(problem, supported)),
    };
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
    needed: u64,
) -> Error {
    let labels = problem.labels();
    let memory = problem.devices[on].memory_bytes;
    let mut message = Message::new(format!(
        "{} has {memory} bytes of memory, and what can't be anywhere else takes at least {needed}",
        labels[on],
    ));
    let mut largest: Vec<&TensorEdge> =
        problem.tensors.iter().filter(|tensor| is_on(tensor, device, on)).collect();
    largest.sort_by_key(|tensor| std::cmp::Reverse(tensor.bytes));
    for tensor in largest.iter().take(MAX_LISTED) {
        message.line(&format!("'{}' takes {} bytes", tensor.name, tensor.bytes));
    }
    if largest.len() > MAX_LISTED {
        message.line(&format!("and {} more tensors", largest.len() - MAX_LISTED));
    }
    let others = (0..labels.len()).filter(|&d| d != on).take(MAX_DEVICES);
    for d in others {
        message.line(&format!("{} has {} bytes", labels[d], problem.devices[d].memory_bytes));
    }
    message.help(
        "use smaller tensors or batches, let variables be on other devices, or raise the device's budget",
    );
    Error::new(ErrorKind::ResourceExhausted, message.0)
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

fn names(problem: &Problem, devices: &[usize]) -> String {
    let labels = problem.labels();
    let shown: Vec<&str> = devices.iter().take(MAX_DEVICES).map(|&d| labels[d].as_str()).collect();
    let more = devices.len() - shown.len();
    let list = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
    if more > 0 { format!("{list} and {more} more") } else { list }
}

fn described(problem: &Problem, item: usize) -> String {
    let what = if problem.is_holder(item) { "variable " } else { "" };
    let item = &problem.items[item];
    match &item.location {
        Some(location) => format!("{what}'{}' at {location}", item.name),
        None => format!("{what}'{}'", item.name),
    }
}

/// A message that grows line by line.
struct Message(String);

impl Message {
    fn new(headline: impl Into<String>) -> Self {
        Self(cut_off(&headline.into()))
    }

    fn line(&mut self, line: &str) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "\n  {}", cut_off(line));
    }

    /// Who asked for what; members that asked for nothing come last.
    fn asked(&mut self, problem: &Problem, members: &[usize]) {
        let asks = |item: &usize| problem.claim(*item).is_some();
        let mut listed: Vec<usize> = members.iter().copied().filter(asks).collect();
        listed.extend(members.iter().copied().filter(|item| !asks(item)));
        for &item in listed.iter().take(MAX_LISTED) {
            let who = described(problem, item);
            match (problem.items[item].assigned, problem.claim(item)) {
                (Some(device), _) => {
                    self.line(&format!("{who} is assigned to {}", names(problem, &[device])));
                }
                (None, Some(spec)) => self.line(&format!("{who} asks for {spec}")),
                (None, None) => self.line(&format!("{who} asks for no device")),
            }
        }
        if listed.len() > MAX_LISTED {
            self.line(&format!("and {} more operations", listed.len() - MAX_LISTED));
        }
    }

    fn devices(&mut self, problem: &Problem, supported: &[usize]) {
        let all: Vec<usize> = (0..problem.devices.len()).collect();
        self.line(&format!("devices: {}", names(problem, &all)));
        self.line(&format!("with a kernel: {}", names(problem, supported)));
    }

    /// Why devices have no kernel, a line for each item and reason.
    fn refusals(&mut self, problem: &Problem, members: &[usize]) {
        let mut n_lines = 0;
        for &item in members {
            let mut by_reason: Vec<(&str, Vec<usize>)> = Vec::new();
            for device in 0..problem.devices.len() {
                let Some(why) = problem.refusal(item, device) else { continue };
                match by_reason.iter_mut().find(|(known, _)| *known == why) {
                    Some((_, devices)) => devices.push(device),
                    None => by_reason.push((why, vec![device])),
                }
            }
            for (why, devices) in by_reason {
                if n_lines == MAX_LISTED {
                    return;
                }
                n_lines += 1;
                let name = &problem.items[item].name;
                let devices = names(problem, &devices);
                self.line(&format!("{devices} can't run '{name}': {why}"));
            }
        }
    }

    fn help(&mut self, help: &str) {
        self.line(&format!("help: {help}"));
    }

    fn error(self, problem: &Problem, item: usize) -> Error {
        Error::invalid(self.0).with_node(problem.items[item].name.as_str())
    }
}

/// One line of limited length.
fn cut_off(text: &str) -> String {
    let line = text.replace(['\n', '\r'], " ");
    match line.char_indices().nth(MAX_LINE) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
