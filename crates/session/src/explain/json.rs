//! An explanation as JSON.

use serde_json::{Value, json};

use super::measured::picoseconds;
use super::{Crossing, ExplainedParts, Explanation, Origin, PlacedItem, PlacedTensor};
use convoke_placement::{Decision, Picoseconds};

/// The version of the schema: it goes up when a field changes its meaning or goes away.
const VERSION: u32 = 1;

/// Picoseconds in a microsecond.
const US: f64 = 1e6;

impl Explanation {
    /// One JSON object. Times are numbers in microseconds (fields that end in `_us`), sizes are integers in bytes
    /// (`bytes`), and devices are names. Items, tensors and crossings refer to each other by their `id`, which is
    /// the place in its list.
    ///
    /// | field | what it holds |
    /// |---|---|
    /// | `version` | 1; new fields may come without a new version |
    /// | `predicted_us`, `submissions` | the whole run by the cost model, one thing after the other |
    /// | `makespan_us` | until the run is done, where devices work at the same time |
    /// | `bound_us`, `proven` | no placement takes less, 0 if unknown; and whether this one is the best |
    /// | `devices` | `name`, `items`, `compute_us`, `submission_us`, `bytes`, `peak_bytes`, `measured_us` |
    /// | `items` | `id`, `kind` (`kernel`, `again`, `variable`), `name`, `nodes`, `location`, `device`, `segment`, `family`, `kernel`, `flops`, `bytes`, `cost_us`, `candidates`, `rule`, `why`, `neighbour`, `next_best`, `dropped`, `measured_us` |
    /// | ... `candidates` | `device`, `cost_us`, `known`: whether it took that in runs, `excluded`: null, or why it may not be there |
    /// | ... `rule`, `why` | what decided, as [`Decision::tag`] and in words |
    /// | ... `neighbour` | the tensor whose crossing decided, by name, else null |
    /// | ... `dropped` | colocations that soft placement gave up, in words |
    /// | ... `next_best` | null, or `device`, `more_us`, `exact` |
    /// | `tensors` | `id`, `name`, `shape`, `bytes`, `origin` (`item`, `feed`, `constant`, `session`), `from` (an item or null), `to` (items), `fetched`, `crosses` |
    /// | `crossings` | `tensor`, `name`, `from`, `to`, `copy`: whether one GPU copies it from another, `bytes`, `predicted_us`, `segment`, `measured_bytes`, `measured_us` |
    /// | `segments` | `device`, `items` in order |
    /// | `absent` | needed nodes for which nothing runs: `name`, `why` |
    /// | `gaps` | tensors between kernels of one device: `node`, `bytes`, `why` |
    /// | `memory` | `device`, `planned_bytes`, `live_bytes` |
    /// | `measured` | null, or `runs`, `wall_us` |
    ///
    /// `measured_us` and `measured_bytes` are null where nothing was measured or could be told.
    ///
    /// Of a run with branches, loops or assertions, there are `version`, `measured`, `predicted_us` and these:
    ///
    /// | field | what it holds |
    /// |---|---|
    /// | `part` | `predicted_us` (null if unknown; see [`ExplainedParts::predicted`](super::ExplainedParts::predicted)), `steps` in order |
    /// | `steps` | `kind` (`program`, `branch`, `loop`, `assertion`, `call`, `read_or`), `name`, `location`, `program`, `trips`, `parts`, `takes`, `gives`; what a kind has not is null or empty |
    /// | ... `program` | a place in `programs` |
    /// | ... `trips` | `exactly`, `at_most`: numbers, null if the data decides |
    /// | ... `parts` | those that a branch chooses from, or the loop's body, each as `part` |
    /// | ... `takes`, `gives` | `id`, `name`, `shape`, `bytes`; one that is given and taken has the same `id`; `shape` and `bytes` are null if only a run knows them |
    /// | `programs` | each as a run of one program, or `unknown`: why there is none before a run |
    pub fn to_json(&self) -> String {
        self.json().to_string()
    }

    pub(super) fn json(&self) -> Value {
        match &self.parts {
            Some(parts) => self.parts_json(parts, Self::json),
            None => self.program_json(),
        }
    }

    /// What a run with parts has; each program as `form` gives it.
    pub(super) fn parts_json(&self, parts: &ExplainedParts, form: fn(&Self) -> Value) -> Value {
        json!({
            "version": VERSION,
            "predicted_us": parts.predicted(&parts.whole).map(us),
            "part": parts.part_json(&parts.whole),
            "programs": parts.programs_json(form),
            "measured": self.measured_json(),
        })
    }

    fn measured_json(&self) -> Value {
        self.measured.as_ref().map_or(Value::Null, |m| {
            json!({
                "runs": m.runs,
                "wall_us": us(picoseconds(m.wall)),
            })
        })
    }

    fn program_json(&self) -> Value {
        let prediction = self.solution.prediction();
        let items: Vec<Value> = (0..self.items.len()).map(|i| self.item_json(i)).collect();
        json!({
            "version": VERSION,
            "predicted_us": us(prediction.total),
            "makespan_us": us(prediction.makespan),
            "bound_us": us(self.solution.bound),
            "proven": self.solution.bound >= prediction.total,
            "submissions": prediction.submissions,
            "devices": self.devices_json(),
            "items": items,
            "tensors": self.tensors_json(),
            "crossings": self.crossings_json(),
            "segments": self.segments.iter().map(|segment| json!({
                "device": self.device_name(segment.device),
                "items": segment.items,
            })).collect::<Vec<_>>(),
            "absent": self.absent.iter().map(|node| json!({
                "name": &*node.name,
                "why": node.why,
            })).collect::<Vec<_>>(),
            "gaps": self.gaps.iter().map(|gap| json!({
                "node": gap.node,
                "bytes": gap.bytes,
                "why": gap.why.to_string(),
            })).collect::<Vec<_>>(),
            "memory": self.memory.iter().map(|memory| json!({
                "device": memory.device,
                "planned_bytes": memory.planned_bytes,
                "live_bytes": memory.live_bytes,
            })).collect::<Vec<_>>(),
            "measured": self.measured_json(),
        })
    }

    fn devices_json(&self) -> Vec<Value> {
        let totals = self.devices.iter().zip(&self.solution.prediction().devices);
        let device = |(i, (name, total)): (usize, (&String, &convoke_placement::DeviceTotal))| {
            let measured = self.measured.as_ref().and_then(|m| *m.devices.get(i)?);
            json!({
                "name": name,
                "items": total.items,
                "compute_us": us(total.compute),
                "submission_us": us(total.submission),
                "bytes": total.bytes,
                "peak_bytes": total.peak_bytes,
                "measured_us": measured.map(|time| us(picoseconds(time))),
            })
        };
        totals.enumerate().map(device).collect()
    }

    pub(super) fn item_json(&self, id: usize) -> Value {
        let Some(item) = self.items.get(id) else { return Value::Null };
        let PlacedItem { kind, name, nodes, location, segment, kernel, work, .. } = item;
        let nodes: Vec<&str> = nodes.iter().map(|node| &**node).collect();
        let measured = self.measured.as_ref().and_then(|m| *m.items.get(id)?);
        let mut all = json!({
            "id": id,
            "kind": kind.text(),
            "name": &**name,
            "nodes": nodes,
            "location": location,
            "device": self.device_name(item.device),
            "segment": segment,
            "family": item.family(),
            "kernel": kernel,
            "flops": work.operations(),
            "bytes": work.bytes,
            "cost_us": us(item.cost),
            "why": self.why(id),
            "measured_us": measured.map(|time| us(picoseconds(time))),
        });
        if let (Some(all), Value::Object(reason)) = (all.as_object_mut(), self.reason_json(id)) {
            all.extend(reason);
        }
        all
    }

    /// The fields of an item that come from its reason.
    fn reason_json(&self, item: usize) -> Value {
        let Some(reason) = self.reason(item) else { return Value::Null };
        let candidates = reason.candidates.iter().map(|candidate| {
            json!({
                "device": self.device_name(candidate.device),
                "cost_us": us(candidate.cost),
                "known": candidate.is_known,
                "excluded": candidate.excluded,
            })
        });
        let neighbour = match &reason.decision {
            Decision::Neighbour { tensor } => self.solution.tensor_name(*tensor),
            _ => None,
        };
        let dropped = reason.dropped.iter().map(|dropped| self.solution.without(dropped));
        let next_best = reason.next_best.map(|next| {
            json!({
                "device": self.device_name(next.device),
                "more_us": next.more as f64 / US,
                "exact": next.is_exact,
            })
        });
        json!({
            "candidates": candidates.collect::<Vec<_>>(),
            "rule": reason.decision.tag(),
            "neighbour": neighbour,
            "next_best": next_best,
            "dropped": dropped.collect::<Vec<_>>(),
        })
    }

    fn tensors_json(&self) -> Vec<Value> {
        let mut crosses = vec![false; self.tensors.len()];
        self.crossings.iter().for_each(|crossing| crosses[crossing.tensor] = true);
        let tensor = |(id, tensor): (usize, &PlacedTensor)| {
            let from = match tensor.from {
                Origin::Item(item) => Some(item),
                _ => None,
            };
            json!({
                "id": id,
                "name": &*tensor.name,
                "shape": tensor.shape,
                "bytes": tensor.bytes,
                "origin": tensor.from.text(),
                "from": from,
                "to": tensor.to,
                "fetched": tensor.is_fetched,
                "crosses": crosses[id],
            })
        };
        self.tensors.iter().enumerate().map(tensor).collect()
    }

    fn crossings_json(&self) -> Vec<Value> {
        let crossing = |(i, crossing): (usize, &Crossing)| {
            let found = self.measured.as_ref().and_then(|m| m.crossings.get(i));
            let time = found.and_then(|found| found.time);
            json!({
                "tensor": crossing.tensor,
                "name": self.tensors.get(crossing.tensor).map(|tensor| &*tensor.name),
                "from": self.device_name(crossing.from),
                "to": self.device_name(crossing.to),
                "copy": crossing.is_copy(),
                "bytes": crossing.bytes,
                "predicted_us": us(crossing.time),
                "segment": crossing.segment,
                "measured_bytes": found.map(|found| found.bytes),
                "measured_us": time.map(|time| us(picoseconds(time))),
            })
        };
        self.crossings.iter().enumerate().map(crossing).collect()
    }
}

impl super::NodeReport<'_> {
    /// One JSON object: `items` and `crossings` as in [`Explanation::to_json`]; `step`: null, or `kind` and `location` of
    /// the step of a run with parts; and `absent`: null, or why nothing runs for the node.
    pub fn to_json(&self) -> String {
        let items: Vec<Value> = self.items.iter().map(|&i| self.explanation.item_json(i)).collect();
        let all = self.explanation.crossings_json();
        let ours = |crossing: &&Crossing| {
            self.items.iter().any(|&i| self.explanation.crosses_for(crossing, i).is_some())
        };
        let crossings = self.explanation.crossings.iter().zip(all);
        let crossings = crossings.filter(|(crossing, _)| ours(crossing)).map(|(_, json)| json);
        json!({
            "version": VERSION,
            "items": items,
            "crossings": crossings.collect::<Vec<_>>(),
            "step": self.step().map(|step| json!({
                "kind": step.kind(),
                "location": step.node().map(|node| &node.location),
            })),
            "absent": self.absent().map(|node| node.why),
        })
        .to_string()
    }
}

pub(super) fn us(time: Picoseconds) -> f64 {
    time as f64 / US
}
