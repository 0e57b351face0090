//! A message line by line, none of them too long, and lists that are cut.

use std::fmt::Write as _;

use convoke_graph_core::Error;

use crate::problem::Problem;

/// Most nodes, and most refusals, that a message lists.
pub(super) const MAX_LISTED: usize = 4;
/// Most devices that a message lists on a line.
const MAX_DEVICES: usize = 8;
/// Of names that take so many characters, no more come.
const MAX_NAMES: usize = 100;
/// Most characters of a line of a message.
const MAX_LINE: usize = 240;

/// A message that grows line by line.
pub(super) struct Message(String);

impl Message {
    pub(super) fn new(headline: impl Into<String>) -> Self {
        Self(cut_off(&headline.into()))
    }

    /// A message whose first line is not cut.
    pub(super) fn of(headline: &str) -> Self {
        Self(one_line(headline))
    }

    pub(super) fn line(&mut self, line: &str) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "\n  {}", cut_off(line));
    }

    /// Who asked for what; members that asked for nothing come last.
    pub(super) fn asked(&mut self, problem: &Problem, members: &[usize]) {
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
        self.more(listed.len(), "operation");
    }

    /// How many of `n` were not listed.
    pub(super) fn more(&mut self, n: usize, what: &str) {
        match n.saturating_sub(MAX_LISTED) {
            0 => {}
            1 => self.line(&format!("and 1 more {what}")),
            more => self.line(&format!("and {more} more {what}s")),
        }
    }

    pub(super) fn all_devices(&mut self, problem: &Problem) {
        let all: Vec<usize> = (0..problem.devices.len()).collect();
        self.line(&format!("devices: {}", names(problem, &all)));
    }

    pub(super) fn devices(&mut self, problem: &Problem, supported: &[usize]) {
        self.all_devices(problem);
        self.line(&format!("with a kernel: {}", names(problem, supported)));
    }

    /// Why devices have no kernel, a line for each item and reason.
    pub(super) fn refusals(&mut self, problem: &Problem, members: &[usize]) {
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

    pub(super) fn help(&mut self, help: &str) {
        self.line(&format!("help: {help}"));
    }

    pub(super) fn text(self) -> String {
        self.0
    }

    pub(super) fn error(self, problem: &Problem, item: usize) -> Error {
        Error::invalid(self.0).with_node(problem.items[item].name.as_str())
    }
}

pub(super) fn names(problem: &Problem, devices: &[usize]) -> String {
    let labels = problem.labels();
    let mut n_chars = 0;
    let fits = |label: &&str| {
        let is_room = n_chars < MAX_NAMES;
        n_chars += label.len();
        is_room
    };
    let first = devices.iter().take(MAX_DEVICES).map(|&d| labels[d].as_str());
    let shown: Vec<&str> = first.take_while(fits).collect();
    let more = devices.len() - shown.len();
    let list = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
    if more > 0 { format!("{list} and {more} more") } else { list }
}

/// Any of these devices, to ask for.
pub(super) fn one_of(problem: &Problem, devices: &[usize]) -> String {
    let names = names(problem, devices);
    if devices.len() == 1 { names } else { format!("one of {names}") }
}

pub(super) fn described(problem: &Problem, item: usize) -> String {
    let what = if problem.is_holder(item) { "variable " } else { "" };
    let item = &problem.items[item];
    match &item.location {
        Some(location) => format!("{what}'{}' at {location}", item.name),
        None => format!("{what}'{}'", item.name),
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// One line of limited length.
pub(super) fn cut_off(text: &str) -> String {
    let line = one_line(text);
    match line.char_indices().nth(MAX_LINE) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
