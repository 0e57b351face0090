//! What runs took, beside what was predicted.

use std::fmt;
use std::time::Duration;

use convoke_graph_core::{Error, ErrorKind, Result};
use convoke_placement::{Picoseconds, Table, Time};
use rustc_hash::FxHashMap;

use super::{Explanation, ItemKind};
use crate::metadata::RunMetadata;

/// Most rows of a table.
const ROWS_MAX: usize = 200;

/// What runs of a program took. Times are medians over the runs.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// How many runs.
    pub runs: usize,
    /// The whole run as the caller saw it, with all kernels timed one by one.
    pub wall: Duration,
    /// The time of each item's kernel; `None` for variables, and on GPUs that can't tell.
    pub items: Vec<Option<Duration>>,
    /// What each crossing moved, in the order of [`Explanation::crossings`].
    pub crossings: Vec<MeasuredCrossing>,
    /// The sum over the items of each device; `None` where none of its kernels has a time.
    pub devices: Vec<Option<Duration>>,
}

/// What a crossing moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeasuredCrossing {
    /// The tensor's bytes, counted where they were handed over.
    pub bytes: u64,
    /// How long the host took for it, where that can be told: see
    /// [`TransferTime::time`](crate::TransferTime::time).
    pub time: Option<Duration>,
}

impl Explanation {
    /// The same with what `runs` took, in columns of their own: of several runs, the medians. The runs are of this
    /// session with the same feeds and fetches, with [`Timings::Nodes`](crate::Timings::Nodes). Of a run with parts, each
    /// program gets what it took each time that it ran.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] without runs, or for runs of other programs or without times of kernels.
    pub fn measured<'r>(&self, runs: impl IntoIterator<Item = &'r RunMetadata>) -> Result<Self> {
        let runs: Vec<&RunMetadata> = runs.into_iter().collect();
        if runs.is_empty() {
            return Err(Error::invalid("expected at least one run to measure, got none"));
        }
        if let Some(parts) = &self.parts {
            return self.measured_parts(parts, &runs);
        }
        let mut samples = Samples::new(self);
        for run in runs {
            samples.add(run)?;
        }
        let items: Vec<Option<Duration>> = samples.items.into_iter().map(median).collect();
        let mut devices = vec![None; self.devices.len()];
        for (item, time) in self.items.iter().zip(&items) {
            if let (Some(total), Some(time)) = (devices.get_mut(item.device), time) {
                *total = Some(total.unwrap_or(Duration::ZERO) + *time);
            }
        }
        let crossings = samples.crossings.into_iter();
        let crossings =
            crossings.map(|(bytes, times)| MeasuredCrossing { bytes, time: median(times) });
        let measured = Measured {
            runs: samples.walls.len(),
            wall: median(samples.walls).unwrap_or_default(),
            items,
            crossings: crossings.collect(),
            devices,
        };
        Ok(Self { measured: Some(measured), ..self.clone() })
    }

    /// What runs took, if [`Self::measured`] was given any.
    pub fn measurement(&self) -> Option<&Measured> {
        self.measured.as_ref()
    }

    pub(super) fn write_measured(
        &self,
        f: &mut fmt::Formatter<'_>,
        measured: &Measured,
    ) -> fmt::Result {
        let runs = if measured.runs == 1 { "run" } else { "runs" };
        writeln!(
            f,
            "\nmeasured in {} {runs}: {} in all, predicted {}",
            measured.runs,
            Time(picoseconds(measured.wall)),
            Time(self.solution.prediction().total),
        )?;
        let mut table =
            Table::new(["item", "device", "predicted", "measured", "measured/predicted"]);
        let kernels = self.items.iter().zip(&measured.items);
        let kernels = kernels.filter(|(item, _)| item.kind != ItemKind::Variable);
        for (item, time) in kernels.clone().take(ROWS_MAX) {
            let device = self.device_name(item.device);
            table.row(row(&item.name, device, item.cost, *time));
        }
        let totals = self.devices.iter().zip(&measured.devices);
        for ((name, time), total) in totals.zip(&self.solution.prediction().devices) {
            table.row(row("all", name, total.compute, *time));
        }
        write!(f, "{table}")?;
        let n_kernels = kernels.count();
        if n_kernels > ROWS_MAX {
            writeln!(f, "and {} more", n_kernels - ROWS_MAX)?;
        }
        self.write_crossings(f, measured)
    }

    fn write_crossings(&self, f: &mut fmt::Formatter<'_>, measured: &Measured) -> fmt::Result {
        if self.crossings.is_empty() {
            return Ok(());
        }
        let head = ["crossing", "way", "predicted", "measured", "time predicted and measured"];
        let mut table = Table::new(head);
        for (crossing, found) in self.crossings.iter().zip(&measured.crossings).take(ROWS_MAX) {
            let name = self.tensors.get(crossing.tensor).map_or("?", |tensor| &tensor.name);
            let time = found.time.map_or("not told".into(), |t| Time(picoseconds(t)).to_string());
            table.row([
                name.to_owned(),
                self.way(crossing),
                format!("{} B", crossing.bytes),
                format!("{} B", found.bytes),
                format!("{}, {time}", Time(crossing.time)),
            ]);
        }
        write!(f, "\n{table}")
    }
}

fn row(
    name: &str,
    device: &str,
    predicted: Picoseconds,
    measured: Option<Duration>,
) -> [String; 5] {
    let measured = measured.map(picoseconds);
    let ratio = measured.filter(|_| predicted > 0).map(|t| t as f64 / predicted as f64);
    [
        name.to_owned(),
        device.to_owned(),
        Time(predicted).to_string(),
        measured.map_or("-".into(), |time| Time(time).to_string()),
        ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")),
    ]
}

pub(super) fn picoseconds(time: Duration) -> Picoseconds {
    u64::try_from(time.as_nanos().saturating_mul(1000)).unwrap_or(u64::MAX)
}

/// The middle of `times`; `None` of nothing.
pub(super) fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// What was seen of each item and crossing, run by run.
struct Samples<'a> {
    explanation: &'a Explanation,
    walls: Vec<Duration>,
    items: Vec<Vec<Duration>>,
    crossings: Vec<(u64, Vec<Duration>)>,
    /// The item of each group.
    item_of: FxHashMap<usize, usize>,
}

impl<'a> Samples<'a> {
    fn new(explanation: &'a Explanation) -> Self {
        let items = explanation.items.iter().enumerate();
        Self {
            explanation,
            walls: Vec::new(),
            items: vec![Vec::new(); explanation.items.len()],
            crossings: vec![(0, Vec::new()); explanation.crossings.len()],
            item_of: items.filter_map(|(i, item)| Some((item.group?, i))).collect(),
        }
    }

    fn add(&mut self, run: &RunMetadata) -> Result<()> {
        if run.begun.is_none() {
            let message = "the run has no times of kernels; ask for them with Timings::Nodes";
            return Err(Error::invalid(message));
        }
        let mut times: FxHashMap<usize, Duration> = FxHashMap::default();
        for node in &run.nodes {
            let Some(group) = node.group else { continue };
            let item = self.item_of.get(&group).copied();
            let item = item.filter(|&item| self.explanation.items[item].nodes == node.nodes);
            *times.entry(item.ok_or_else(other_program)?).or_default() += node.time;
        }
        times.into_iter().for_each(|(item, time)| self.items[item].push(time));
        if run.transfers.len() != self.crossings.len() {
            return Err(other_program());
        }
        let seen = run.transfers.iter();
        let seen: FxHashMap<(usize, usize, bool), _> =
            seen.map(|t| ((t.value, t.segment, t.is_upload), (t.bytes, t.time))).collect();
        for (i, crossing) in self.explanation.crossings.iter().enumerate() {
            let value = self.explanation.tensors[crossing.tensor].value;
            let found = seen.get(&(value, crossing.segment, crossing.from == 0));
            let (bytes, time) = found.ok_or_else(other_program)?;
            self.crossings[i].0 = *bytes;
            self.crossings[i].1.extend(*time);
        }
        self.walls.push(run.wall);
        Ok(())
    }
}

pub(super) fn other_program() -> Error {
    let message = "the run is of another program than the one explained; give both the same feeds and fetches";
    Error::new(ErrorKind::InvalidArgument, message)
}
