//! Messages for what can't be placed: the nodes, what was asked for, the devices that exist, those with
//! a kernel, and what would help, in at most 15 lines.

use std::fmt::Write as _;

use convoke_graph_core::{Error, ErrorKind};

use crate::DeviceSpec;
use crate::problem::{Item, Problem, TensorEdge};

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

/// The members of a class run on no common device.
pub(crate) fn no_common_device(problem: &Problem, members: &[usize]) -> Error {
    let mut message = Message::new(format!(
        "{} operations are colocated, and no device has a kernel for all of them",
        members.len()
    ));
    message.asked(problem, members);
    message.devices(problem, &[]);
    message.refusals(problem, members);
    message.help(
        "take the operation that needs another device out of the colocation, or give the variable \
         that ties them a dtype that both have kernels for",
    );
    message.error(problem, to_blame(problem, members))
}

/// Members of a class ask for different devices.
pub(crate) fn conflict(problem: &Problem, members: &[usize], binding: bool) -> Error {
    let what = if binding { "variables" } else { "operations" };
    let mut message =
        Message::new(format!("colocated {what} ask for different devices, which can't be merged"));
    let asking: Vec<usize> = members
        .iter()
        .copied()
        .filter(|&item| problem.items[item].requested.is_some())
        .filter(|&item| !binding || problem.items[item].is_resource)
        .collect();
    let different = first_conflict(problem, &asking);
    message.asked(problem, &different);
    message.devices(problem, &common(problem, members));
    message.help(if binding || problem.soft_placement {
        "ask for the same device for all of them (soft placement does not relax this), or take one \
         out of the colocation"
    } else {
        "ask for the same device for all of them, take one out of the colocation, or turn soft \
         placement on"
    });
    message.error(problem, different.last().copied().unwrap_or(members[0]))
}

/// No device meets the request of a class.
pub(crate) fn unmet_request(
    problem: &Problem,
    members: &[usize],
    merged: &DeviceSpec,
    supported: &[usize],
) -> Error {
    let exists = problem.devices.iter().any(|device| merged.matches(&device.name));
    let tasked = problem.devices.iter().any(|device| merged.relaxed().matches(&device.name));
    let asked = members.iter().copied().filter(|&item| problem.items[item].requested.is_some());
    let asking: Vec<usize> = asked.collect();
    let first = asking.first().copied().unwrap_or(members[0]);
    let mut message = Message::new(match (exists, members.len()) {
        (false, _) => format!("{merged} was requested, and there is no such device"),
        (true, 1) => format!("{merged} was requested, and it has no kernel for this operation"),
        (true, _) => {
            format!("{merged} was requested, and it has no kernel for all that is colocated here")
        }
    });
    message.asked(problem, &asking);
    message.devices(problem, supported);
    if exists {
        message.refusals(problem, members);
    }
    let names = match supported {
        [_] => names(problem, supported),
        _ => format!("one of {}", names(problem, supported)),
    };
    message.help(&match (tasked, problem.soft_placement) {
        (true, false) => format!("ask for {names}, or turn soft placement on"),
        _ => format!("ask for {names}: soft placement never changes job, replica or task"),
    });
    message.error(problem, first)
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

/// The first pair whose requests conflict.
fn first_conflict(problem: &Problem, asking: &[usize]) -> Vec<usize> {
    let mut merged = DeviceSpec::default();
    for &item in asking {
        let Some(asked) = &problem.items[item].requested else { continue };
        match merged.combine(asked) {
            Ok(both) => merged = both,
            Err(_) => {
                let against = asking.iter().copied().find(|&other| {
                    let other = problem.items[other].requested.as_ref();
                    other.is_some_and(|other| other.combine(asked).is_err())
                });
                return against.into_iter().chain([item]).collect();
            }
        }
    }
    asking.to_vec()
}

/// The member that most likely is the surprise: the one that runs on the fewest devices.
fn to_blame(problem: &Problem, members: &[usize]) -> usize {
    let n_refusals = |item: usize| problem.items[item].refusals.iter().flatten().count();
    let mut worst = members[0];
    for &item in members {
        if n_refusals(item) > n_refusals(worst) {
            worst = item;
        }
    }
    worst
}

fn names(problem: &Problem, devices: &[usize]) -> String {
    let labels = problem.labels();
    let shown: Vec<&str> = devices.iter().take(MAX_DEVICES).map(|&d| labels[d].as_str()).collect();
    let more = devices.len() - shown.len();
    let list = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
    if more > 0 { format!("{list} and {more} more") } else { list }
}

fn described(item: &Item) -> String {
    let what = if item.is_resource { "variable " } else { "" };
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

    /// Who asked for what; members that asked for nothing only where none did.
    fn asked(&mut self, problem: &Problem, members: &[usize]) {
        let asks = |item: &usize| problem.items[*item].requested.is_some();
        let mut listed: Vec<usize> = members.iter().copied().filter(asks).collect();
        listed.extend(members.iter().copied().filter(|item| !asks(item)));
        for &item in listed.iter().take(MAX_LISTED) {
            let item = &problem.items[item];
            match &item.requested {
                Some(spec) => self.line(&format!("{} asks for {spec}", described(item))),
                None => self.line(&format!("{} asks for no device", described(item))),
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

    /// Why devices have no kernel, a line for each different reason.
    fn refusals(&mut self, problem: &Problem, members: &[usize]) {
        let labels = problem.labels();
        let all = members.iter().flat_map(|&item| {
            labels.iter().enumerate().filter_map(move |(d, label)| {
                let why = problem.refusal(item, d)?;
                Some(format!("{label} can't run '{}': {why}", problem.items[item].name))
            })
        });
        let mut lines: Vec<String> = Vec::new();
        for line in all {
            if !lines.contains(&line) {
                lines.push(line);
            }
            if lines.len() == MAX_LISTED {
                break;
            }
        }
        for line in lines {
            self.line(&line);
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
