//! TensorFlow's own cases of placement (`placer_test.cc`), one row each, on fake devices.
//!
//! Expected values are TensorFlow's. A row that differs on purpose says why, and so does
//! `docs/placement.md`. GPUs are cheaper than CPUs, so that TensorFlow's "first candidate" is the cheapest;
//! a kernel's priority is a cost.

mod rows;

use convoke_graph_core::{ErrorKind, Result};

use super::*;
use crate::{Solution, solve};
use rows::ROWS;

/// One case.
#[derive(Clone, Copy)]
struct Row {
    test: &'static str,
    soft: bool,
    /// The devices by name, the first a CPU; empty for ten CPUs and ten GPUs.
    devices: &'static str,
    /// See [`graph`].
    graph: &'static str,
    expected: Expected,
    /// Why it is not what TensorFlow does.
    differs: Option<&'static str>,
}

#[derive(Clone, Copy)]
enum Expected {
    /// For each item `name=device`, or `name==other` for one device.
    On(&'static str),
    /// An error of this kind whose message contains these.
    Fails(ErrorKind, &'static [&'static str]),
}

const fn soft(test: &'static str, graph: &'static str) -> Row {
    Row { test, soft: true, devices: "", graph, expected: Expected::On(""), differs: None }
}

const fn hard(test: &'static str, graph: &'static str) -> Row {
    Row { soft: false, ..soft(test, graph) }
}

impl Row {
    const fn on(self, places: &'static str) -> Self {
        Self { expected: Expected::On(places), ..self }
    }

    const fn fails(self, kind: ErrorKind, texts: &'static [&'static str]) -> Self {
        Self { expected: Expected::Fails(kind, texts), ..self }
    }

    const fn invalid(self, texts: &'static [&'static str]) -> Self {
        self.fails(ErrorKind::InvalidArgument, texts)
    }

    const fn among(self, devices: &'static str) -> Self {
        Self { devices, ..self }
    }

    const fn differs(self, why: &'static str) -> Self {
        Self { differs: Some(why), ..self }
    }
}

/// A device type, perhaps with an index, or a longer name.
fn named(text: &str) -> Result<DeviceSpec> {
    if text.starts_with('/') { text.parse() } else { format!("/device:{text}").parse() }
}

/// A device on which the kinds of kernel take so many microseconds: those without a priority 1000 on a CPU
/// and 100 on a GPU, those for CPUs first 100 and 1600, those for GPUs first 2600 and 100. So a kernel with
/// a priority outweighs one without, and of two that disagree the GPU wins.
fn fake(name: &str) -> DeviceModel {
    let name = spec("/job:a/replica:0/task:0").merge(&named(name).unwrap());
    let is_gpu = name.device_type.as_deref() == Some("GPU");
    // 100 operations in so many microseconds.
    let rates = |plain, cpu_first, gpu_first, xla| {
        Rates::by(|family| {
            Curve::rate(
                100_000_000
                    / match family {
                        Family::Elementwise => plain,
                        Family::Contract => cpu_first,
                        Family::Reduce => gpu_first,
                        Family::Other => xla,
                        _ => 1,
                    },
            )
        })
    };
    let is_xla = name.device_type.as_deref() == Some("XLA_CPU");
    DeviceModel {
        name,
        kind: if is_gpu { DeviceKind::DiscreteGpu } else { DeviceKind::Cpu },
        arithmetic: match is_gpu {
            true => rates(100, 1600, 100, 100),
            false => rates(1000, 100, 2600, if is_xla { 200 } else { 100 }),
        },
        memory: Curve::rate(u64::MAX),
        run: 0,
        launch: 0,
        submission: if is_gpu { 10 * US } else { 0 },
        memory_bytes: GIB,
        buffers: u32::MAX,
    }
}

/// The kernels of a kind of item: its family, and the device types that it runs on.
fn kernels(kind: &str) -> (Family, &'static [&'static str]) {
    match kind {
        "any" | "var" | "tiny" => (Family::Elementwise, &["CPU", "GPU"]),
        "cpu" | "var-cpu" => (Family::Elementwise, &["CPU"]),
        "gpu" | "var-gpu" => (Family::Elementwise, &["GPU"]),
        "cpu-first" => (Family::Contract, &["CPU", "GPU"]),
        "gpu-first" => (Family::Reduce, &["CPU", "GPU"]),
        "xla" => (Family::Other, &["CPU", "XLA_CPU"]),
        "none" => (Family::Other, &[]),
        _ => panic!("no kind {kind}"),
    }
}

/// `name:kind`, then perhaps `@` and the requested or `#` and the assigned device.
fn read_item(problem: &Problem, name: &str, rest: &str) -> Result<Item> {
    let (kind, requested, assigned) = match (rest.split_once('@'), rest.split_once('#')) {
        (Some((kind, device)), _) => (kind, Some(named(device)?), None),
        (_, Some((kind, device))) => (kind, None, Some(named(device)?)),
        _ => (rest, None, None),
    };
    let (family, types) = kernels(kind);
    let refusal = |device: &DeviceModel| {
        let device_type = device.name.device_type.clone().unwrap_or_default();
        let runs = types.contains(&device_type.as_str());
        (!runs).then(|| format!("no kernel for {device_type}"))
    };
    let is_it = |spec: DeviceSpec| {
        let found =
            problem.devices.iter().position(|d| d.name.is_complete() && spec.matches(&d.name));
        found.filter(|_| spec.index.is_some()).unwrap_or(problem.devices.len())
    };
    Ok(Item {
        requested,
        assigned: assigned.map(is_it),
        refusals: problem.devices.iter().map(refusal).collect(),
        work: Work::new(family, if kind == "tiny" { 0 } else { 100 }, 0),
        known: Vec::new(),
        is_resource: kind.starts_with("var"),
        ..item(name, 0)
    })
}

/// Reads a graph: items as [`read_item`] has them, `a->b` for a tensor of 1000 bytes, `a=>b` for a use of
/// the resource `a` by `b`, and `a~b` where `a` asks to be with `b`.
fn graph(row: &Row, text: &str) -> Result<Problem> {
    let ten = |name: &'static str| (0..10).map(move |i| format!("{name}:{i}"));
    let devices: Vec<DeviceModel> = match row.devices {
        "" => ten("CPU").chain(ten("GPU")).map(|name| fake(&name)).collect(),
        "none" => Vec::new(),
        names => names.split_whitespace().map(fake).collect(),
    };
    let mut problem = Problem { soft_placement: row.soft, ..Problem::new(devices) };
    problem.links.fill(Link { latency: 10 * US, bytes_per_second: 1_000_000_000 });
    for token in text.split_whitespace() {
        let find = |name: &str| problem.items.iter().position(|item| item.name == name).unwrap();
        if let Some((from, to)) = token.split_once("->") {
            let (from, to) = (find(from), find(to));
            let made = |t: &&mut TensorEdge| t.producer == Producer::Item(from);
            match problem.tensors.iter_mut().find(made) {
                Some(tensor) => tensor.consumers.push(to),
                None => problem.tensors.push(edge(token, 1000, Producer::Item(from), &[to])),
            }
        } else if let Some((source, user)) = token.split_once("=>") {
            let pair = (find(source), find(user));
            problem.resource_edges.push(pair);
        } else if let Some((item, with)) = token.split_once('~') {
            let pair = (find(item), find(with));
            problem.colocations.push(pair);
        } else {
            let (name, rest) = token.split_once(':').unwrap();
            let item = read_item(&problem, name, rest)?;
            problem.items.push(item);
        }
    }
    Ok(problem)
}

/// What is wrong with the places of a row's items.
fn misplaced(problem: &Problem, solution: &Solution, places: &str) -> Option<String> {
    let place = |name: &str| {
        let item = problem.items.iter().position(|item| item.name == name).unwrap();
        &problem.devices[solution.device[item]].name
    };
    places.split_whitespace().find_map(|token| {
        let (name, fits) = match token.split_once("==") {
            Some((name, other)) => (name, place(name) == place(other)),
            None => {
                let (name, device) = token.split_once('=').unwrap();
                (name, named(device).unwrap().matches(place(name)))
            }
        };
        (!fits).then(|| format!("{token} expected, and {name} is on {}", place(name)))
    })
}

/// What is wrong with a row.
fn wrong(row: &Row) -> Option<String> {
    let problem = graph(row, row.graph);
    let outcome = problem.and_then(|problem| Ok((solve(&problem)?, problem)));
    match (row.expected, outcome) {
        (Expected::On("") | Expected::Fails(_, []), _) => Some("expects nothing".into()),
        (Expected::On(places), Ok((solution, problem))) => misplaced(&problem, &solution, places),
        (Expected::On(_), Err(error)) => Some(error.to_string()),
        (Expected::Fails(..), Ok((solution, _))) => Some(format!("no error, but\n{solution}")),
        (Expected::Fails(kind, texts), Err(error)) => {
            let text = error.to_string();
            let missing = texts.iter().find(|part| !text.contains(**part));
            let fits = error.kind() == kind && text.lines().count() <= 15;
            (missing.is_some() || !fits).then(|| format!("{missing:?} {kind:?} expected: {text}"))
        }
    }
}

#[test]
fn tensorflows_cases() {
    let wrongs: Vec<String> = ROWS
        .iter()
        .filter_map(|row| Some(format!("{} ({}): {}", row.test, row.graph, wrong(row)?)))
        .collect();
    assert!(wrongs.is_empty(), "{} of {}:\n{}", wrongs.len(), ROWS.len(), wrongs.join("\n"));
}

#[test]
fn the_document_names_every_difference() {
    let text = include_str!("../../../../docs/placement.md");
    for row in ROWS.iter().filter(|row| row.differs.is_some()) {
        assert!(text.contains(row.test), "{}: {:?}", row.test, row.differs);
    }
}

/// TestColocationAndReferenceConnections: 100 variables and their assignments, tied across.
#[test]
fn colocation_and_resource_edges_together() {
    let mut text = "in:cpu".to_owned();
    let mut expected = String::new();
    for i in 0..100 {
        text += &format!(" var_{i}:var assign_{i}:any var_{i}=>assign_{i} in->assign_{i}");
        expected += &format!(" var_{i}==assign_{i}");
        if i >= 10 {
            let (var, assign) = (i % 6, i % 3);
            text += &format!(" var_{i}~var_{var} assign_{i}~assign_{assign}");
            expected += &format!(" var_{i}==var_{var} assign_{i}==assign_{assign}");
        }
    }
    let problem = graph(&soft("TestColocationAndReferenceConnections", ""), &text).unwrap();
    let solution = solve(&problem).unwrap();
    assert_eq!(misplaced(&problem, &solution, &expected), None);
}
