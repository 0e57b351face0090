//! The placement with its reasons, and how it prints.

mod units;

use std::fmt;
use std::sync::{Arc, OnceLock};

use convoke_graph_core::Result;

pub use units::{Bytes, Signed, Table, Time};

use crate::decide::reasons;
use crate::price::predicted;
use crate::problem::Problem;
use crate::{DeviceSpec, Picoseconds, Prediction, SegmentOrder};

/// Most transfers that the table lists.
const MAX_TRANSFERS: usize = 50;
/// Most items that the table lists.
const MAX_ITEMS: usize = 200;

/// Where everything goes, what that is predicted to cost, and why. Prints as a table.
#[derive(Debug, Clone)]
pub struct Solution {
    /// Each item's device.
    pub device: Vec<usize>,
    /// Whose turn it is when a segment ends.
    pub order: SegmentOrder,
    /// No legal choice takes less in total, as far as is known. Equal to the prediction's total if the choice
    /// is proven to be the best; 0 where nothing is known.
    pub bound: Picoseconds,
    pub(crate) problem: Arc<Problem>,
    /// Whether each item stayed where it was while something else was placed; empty if none did.
    pub(crate) kept: Vec<bool>,
    device_names: Vec<String>,
    prediction: OnceLock<Prediction>,
    /// Found when somebody asks: most runs are never explained.
    reasons: OnceLock<Vec<Reason>>,
}

/// Why an item is where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Its device.
    pub device: usize,
    /// Every device, in order.
    pub candidates: Vec<Candidate>,
    /// What decided.
    pub decision: Decision,
    /// The best other legal device, if there is one.
    pub next_best: Option<NextBest>,
    /// The items that it asked in vain to share a device with.
    pub dropped: Vec<DroppedColocation>,
}

/// A request to share a device that soft placement gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedColocation {
    /// The item that was to share it.
    pub with: usize,
    /// Why it can't.
    pub why: String,
}

/// A device that an item could be on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The device.
    pub device: usize,
    /// What the item by itself takes there.
    pub cost: Picoseconds,
    /// Whether it took that in runs; else it is predicted.
    pub is_known: bool,
    /// Why the item may not be there; `None` where it may.
    pub excluded: Option<String>,
}

/// What decided where an item is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The runtime fixed it: a variable already lives here.
    Assigned,
    /// There is one device.
    OnlyDevice,
    /// It was asked for.
    Requested {
        /// As it was asked for.
        spec: DeviceSpec,
    },
    /// No other device has a kernel.
    OnlyKernel {
        /// The other devices, and why each has none.
        refusals: Vec<(usize, String)>,
    },
    /// An item that it is colocated with can be nowhere else.
    Colocated {
        /// That item.
        with: usize,
    },
    /// Nobody asked for a device, and the session prefers this one.
    Preferred,
    /// It was placed here before, and what is new is placed beside it.
    Kept,
    /// It costs least here.
    Cheapest {
        /// What this saves against the next best device, in picoseconds.
        saved: i64,
    },
    /// It would be cheaper elsewhere by itself, but a tensor would have to cross.
    Neighbour {
        /// The tensor whose crossing would cost most.
        tensor: usize,
    },
    /// What was asked for counts no more: the item shares the device of a resource, and that is elsewhere.
    Overruled {
        /// What was asked for.
        requested: DeviceSpec,
        /// The item at the other end of the resource edge.
        by: usize,
    },
    /// What was asked for can't be had, and gave way.
    Softened {
        /// What was asked for.
        requested: DeviceSpec,
        /// Why it can't be had.
        why: String,
    },
}

impl Decision {
    /// The rule's name for programs: `"cheapest"`, `"neighbour"`.
    pub fn tag(&self) -> &'static str {
        match self {
            Self::OnlyDevice => "only-device",
            Self::Requested { .. } => "requested",
            Self::OnlyKernel { .. } => "only-kernel",
            Self::Colocated { .. } => "colocated",
            Self::Cheapest { .. } => "cheapest",
            Self::Neighbour { .. } => "neighbour",
            Self::Softened { .. } => "softened",
            Self::Assigned => "assigned",
            Self::Preferred => "preferred",
            Self::Kept => "kept",
            Self::Overruled { .. } => "overruled",
        }
    }
}

/// What an item's next best device would cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextBest {
    /// The device.
    pub device: usize,
    /// How much more the run would take, in picoseconds, if the item and all that is colocated with it
    /// were there.
    pub more: i64,
    /// Whether the run was priced anew. In very large problems it is not, and `more` leaves out what
    /// segments and coalesced transfers change.
    pub is_exact: bool,
}

/// One item of a [`Solution`], to print.
#[derive(Debug, Clone, Copy)]
pub struct ItemReport<'a> {
    solution: &'a Solution,
    item: usize,
}

impl Default for Solution {
    /// Of nothing on no device.
    fn default() -> Self {
        let problem = Arc::new(Problem::new(Vec::new()));
        Self::new(problem, Vec::new(), SegmentOrder::default())
    }
}

impl Solution {
    pub(crate) fn new(problem: Arc<Problem>, device: Vec<usize>, order: SegmentOrder) -> Self {
        Self {
            device,
            order,
            bound: 0,
            kept: Vec::new(),
            device_names: problem.labels(),
            problem,
            prediction: OnceLock::new(),
            reasons: OnceLock::new(),
        }
    }

    /// With what is known of it already.
    pub(crate) fn predicted(self, prediction: Prediction, bound: Picoseconds) -> Self {
        Self { prediction: prediction.into(), bound, ..self }
    }

    /// A solution whose places were found one by one, as a graph grew: see [`Standing`](crate::Standing). `kept` are the
    /// items that stayed while the last were placed; empty if none did. Of a malformed problem nothing is predicted.
    ///
    /// # Errors
    /// `Internal` for places that are not of the problem's items and devices.
    pub fn grown(
        problem: impl Into<Arc<Problem>>,
        device: Vec<usize>,
        order: SegmentOrder,
        kept: Vec<bool>,
    ) -> Result<Self> {
        let problem = problem.into();
        problem.check_places(&device)?;
        Ok(Self { kept, ..Self::new(problem, device, order) })
    }

    /// What the run is predicted to take. Of what has grown it is found when this is first asked for.
    pub fn prediction(&self) -> &Prediction {
        self.prediction.get_or_init(|| predicted(&self.problem, &self.device, self.order))
    }

    /// Whether devices have the memory that the run is predicted to take. Nothing is predicted for this if all have as much as
    /// is asked of them.
    pub fn fits(&self) -> bool {
        let models = &self.problem.devices;
        if models.iter().all(|model| model.memory_bytes == u64::MAX) {
            return true;
        }
        let mut totals = self.prediction().devices.iter().zip(models);
        totals.all(|(total, model)| total.peak_bytes <= model.memory_bytes)
    }

    /// Why each item is where it is. Found when this is first asked for.
    pub fn reasons(&self) -> &[Reason] {
        self.reasons.get_or_init(|| reasons(self))
    }

    /// What there is to say about item `item`; `None` if there is no such item.
    pub fn explain_item(&self, item: usize) -> Option<ItemReport<'_>> {
        (item < self.device.len()).then_some(ItemReport { solution: self, item })
    }

    /// What decided where item `item` is, in words; empty if there is no such item.
    pub fn why(&self, item: usize) -> String {
        self.reasons().get(item).map_or_else(String::new, |reason| self.decision(reason))
    }

    /// The devices' names for people, in order.
    pub fn device_names(&self) -> &[String] {
        &self.device_names
    }

    /// The name of a tensor of the problem, which a [`Decision::Neighbour`] or a transfer has.
    pub fn tensor_name(&self, tensor: usize) -> Option<&str> {
        self.problem.tensors.get(tensor).map(|tensor| tensor.name.as_str())
    }

    fn decision(&self, reason: &Reason) -> String {
        let Problem { items, tensors, .. } = &*self.problem;
        match &reason.decision {
            Decision::Assigned => "assigned: it is already here".into(),
            Decision::OnlyDevice => "the only device".into(),
            Decision::Requested { spec } => format!("{} requested", spec.short()),
            Decision::OnlyKernel { refusals } => {
                let why = |(d, why): &(usize, String)| format!("{}: {why}", self.device_names[*d]);
                let whys: Vec<String> = refusals.iter().map(why).collect();
                format!("only kernel ({})", whys.join("; "))
            }
            Decision::Colocated { with } => format!("colocated with {}", items[*with].name),
            Decision::Preferred => "the session prefers it".into(),
            Decision::Kept => "kept: it was placed here before".into(),
            Decision::Cheapest { saved } if reason.next_best.is_some() && *saved > 0 => {
                format!("cheapest, saves {}", Signed(*saved))
            }
            Decision::Cheapest { .. } => "cheapest".into(),
            Decision::Neighbour { tensor } => format!("stays with {}", tensors[*tensor].name),
            Decision::Overruled { requested, by } => {
                format!("{} requested, overruled by {}", requested.short(), items[*by].name)
            }
            Decision::Softened { requested, why } => {
                format!("{} requested, softened: {why}", requested.short())
            }
        }
    }

    /// A colocation that was given up, in words.
    pub fn without(&self, dropped: &DroppedColocation) -> String {
        format!("not with {}: {}", self.problem.items[dropped.with].name, dropped.why)
    }

    fn write_devices(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["device", "items", "compute", "submitting", "bytes"]);
        for (name, total) in self.device_names.iter().zip(&self.prediction().devices) {
            table.row([
                name.clone(),
                total.items.to_string(),
                Time(total.compute).to_string(),
                Time(total.submission).to_string(),
                Bytes(total.bytes).to_string(),
            ]);
        }
        write!(f, "{table}")
    }

    fn write_transfers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transfers = &self.prediction().transfers;
        if transfers.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        let mut table = Table::new(["tensor", "from", "to", "bytes", "time"]);
        for transfer in transfers.iter().take(MAX_TRANSFERS) {
            let how = if transfer.is_copy() { ", a copy" } else { "" };
            table.row([
                self.problem.tensors[transfer.tensor].name.clone(),
                self.device_names[transfer.from].clone(),
                format!("{}{how}", self.device_names[transfer.to]),
                Bytes(transfer.bytes).to_string(),
                Time(transfer.time).to_string(),
            ]);
        }
        write!(f, "{table}")?;
        rest(f, transfers.len(), MAX_TRANSFERS)
    }

    fn write_items(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        let mut table = Table::new(["item", "device", "cost", "next best", "why"]);
        for (item, reason) in self.problem.items.iter().zip(self.reasons()).take(MAX_ITEMS) {
            let next = reason.next_best.map(|next| {
                let sign = if next.more < 0 { "" } else { "+" };
                format!("{} {sign}{}", self.device_names[next.device], Signed(next.more))
            });
            let cost = reason.candidates.get(reason.device).map_or(0, |candidate| candidate.cost);
            let without = reason.dropped.iter().map(|dropped| self.without(dropped));
            let why: Vec<String> = std::iter::once(self.decision(reason)).chain(without).collect();
            table.row([
                item.name.clone(),
                self.device_names[reason.device].clone(),
                Time(cost).to_string(),
                next.unwrap_or_else(|| "-".into()),
                why.join("; "),
            ]);
        }
        write!(f, "{table}")?;
        rest(f, self.device.len(), MAX_ITEMS)
    }
}

fn rest(f: &mut fmt::Formatter<'_>, len: usize, max: usize) -> fmt::Result {
    if len > max { writeln!(f, "and {} more", len - max) } else { Ok(()) }
}

impl fmt::Display for Solution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_devices(f)?;
        let Prediction { total, makespan, transfers, submissions, .. } = self.prediction();
        let n_bytes = transfers.iter().fold(0, |sum: u64, t| sum.saturating_add(t.bytes));
        writeln!(
            f,
            "predicted {}: {} of {}, {}",
            Time(*total),
            counted(transfers.len(), "transfer"),
            Bytes(n_bytes),
            counted(*submissions, "submission"),
        )?;
        if makespan < total {
            writeln!(f, "done after {}, since devices work at the same time", Time(*makespan))?;
        }
        match self.bound {
            0 => {}
            bound if bound >= *total && self.device_names.len() > 1 => {
                writeln!(f, "proven: no other placement takes less in all")?;
            }
            bound if bound >= *total => {}
            bound => writeln!(f, "no placement takes less than {} in all", Time(bound))?,
        }
        self.write_transfers(f)?;
        self.write_items(f)
    }
}

impl fmt::Display for ItemReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = &self.solution.device_names;
        let item = self.solution.problem.items.get(self.item);
        let Some((item, reason)) = item.zip(self.solution.reasons().get(self.item)) else {
            return Ok(());
        };
        write!(f, "{}", item.name)?;
        if let Some(location) = &item.location {
            write!(f, " at {location}")?;
        }
        let decision = self.solution.decision(reason);
        writeln!(f, " on {}: {decision}", names[reason.device])?;
        for dropped in &reason.dropped {
            writeln!(f, "  {}", self.solution.without(dropped))?;
        }
        for candidate in &reason.candidates {
            let name = &names[candidate.device];
            match &candidate.excluded {
                Some(why) => writeln!(f, "  {name}: excluded, {why}")?,
                None if candidate.is_known => {
                    writeln!(f, "  {name}: {} by itself in runs", Time(candidate.cost))?;
                }
                None => writeln!(f, "  {name}: {} by itself", Time(candidate.cost))?,
            }
        }
        if let Some(next) = reason.next_best {
            let name = &names[next.device];
            let about = if next.is_exact { "" } else { "about " };
            let much = Time(next.more.unsigned_abs());
            let more = if next.more < 0 { "less" } else { "more" };
            writeln!(f, "  on {name} the run would take {about}{much} {more}")?;
        }
        Ok(())
    }
}

fn counted(n: usize, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {what}{plural}")
}
