//! Runs as a trace: JSON in Chrome's Trace Event Format, which Perfetto and `chrome://tracing` show.
//!
//! Source: "Trace Event Format", Google, 2016: complete events (`X`), pairs of asynchronous events (`b`, `e`), counters
//! (`C`) and names (`M`). Each device is a process, and so is the host; each lane is a thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use serde_json::{Value, json};

use crate::metadata::{NodeTime, Phase, PhaseKind, RunMetadata, TransferTime};

/// Runs on one time line. Runs that were under way at the same time get processes of their own.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// When the first run began.
    origin: Option<Instant>,
    events: Vec<Value>,
    /// When the last run of each track ended.
    tracks: Vec<Duration>,
    /// The track and the device of each process; the number of a process is its place here, from 1.
    processes: Vec<(usize, Arc<str>)>,
    /// The processes and lanes that have names already.
    lanes: Vec<(usize, Lane)>,
    /// Numbers the asynchronous events.
    n_spans: u64,
}

/// A row of a process. The number is its `tid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Run = 1,
    Waits = 2,
    Compute = 3,
    Uploads = 4,
    Downloads = 5,
    Segments = 6,
    Copies = 7,
}

impl Lane {
    fn text(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Waits => "waits",
            Self::Compute => "compute",
            Self::Uploads => "uploads",
            Self::Downloads => "downloads",
            Self::Segments => "segments in flight",
            Self::Copies => "copies from other GPUs",
        }
    }
}

/// The process of what the host does itself.
const HOST: &str = "host";

impl Trace {
    /// A trace of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a run under this name. A run without [`Timings::Nodes`](crate::Timings::Nodes) shows only as a whole, after
    /// all that are there. The first that is added should be the first that began: none is shown before it.
    ///
    /// Kernels, transfers and parts of the run are events with `args`: bytes, shapes, nodes and kernel texts. GPUs tell
    /// times by a clock of their own: their kernels lie in the middle of the time between submission and end, and
    /// have `aligned` in their `args`. Of GPUs that tell none, only the segments show.
    pub fn add(&mut self, name: &str, run: &RunMetadata) {
        let last = self.tracks.iter().max().copied().unwrap_or_default();
        let start = match (self.origin, run.begun) {
            (Some(origin), Some(begun)) => begun.saturating_duration_since(origin),
            (None, Some(begun)) => {
                self.origin = Some(begun.checked_sub(last).unwrap_or(begun));
                last
            }
            (_, None) => last,
        };
        let end = start + run.wall;
        let track = match self.tracks.iter().position(|&end| end <= start) {
            Some(track) => track,
            None => {
                self.tracks.push(Duration::ZERO);
                self.tracks.len() - 1
            }
        };
        self.tracks[track] = end;
        let mut adding = Adding { trace: self, track, start };
        adding.run(name, run);
        adding.counters(run);
        run.phases.iter().for_each(|phase| adding.phase(phase, run));
        let downloads = run.transfers.iter().filter(|t| !t.is_upload && !t.is_copy);
        downloads.for_each(|transfer| adding.download(transfer));
        adding.kernels(&run.nodes);
    }

    /// Whether no run was added.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The trace as one JSON object.
    pub fn to_json(&self) -> String {
        let other = json!({ "version": 1, "producer": "convoke" });
        json!({ "traceEvents": self.events, "displayTimeUnit": "ms", "otherData": other })
            .to_string()
    }

    /// The number of a device's process; named when it is new.
    fn process(&mut self, track: usize, device: &str) -> usize {
        let is_it = |(t, name): &(usize, Arc<str>)| *t == track && &**name == device;
        if let Some(at) = self.processes.iter().position(is_it) {
            return at + 1;
        }
        self.processes.push((track, device.into()));
        let (pid, index) = (self.processes.len(), self.processes.len());
        let name = match track {
            0 => device.to_owned(),
            _ => format!("{device}, concurrent run {track}"),
        };
        let args = json!({ "name": name });
        self.events.push(json!({ "ph": "M", "name": "process_name", "pid": pid, "args": args }));
        let args = json!({ "sort_index": index });
        let name = "process_sort_index";
        self.events.push(json!({ "ph": "M", "name": name, "pid": pid, "args": args }));
        pid
    }

    /// The numbers of a lane: its process and thread.
    fn lane(&mut self, track: usize, device: &str, lane: Lane) -> (usize, usize) {
        let (pid, tid) = (self.process(track, device), lane as usize);
        if !self.lanes.contains(&(pid, lane)) {
            self.lanes.push((pid, lane));
            for (name, args) in [
                ("thread_name", json!({ "name": lane.text() })),
                ("thread_sort_index", json!({ "sort_index": tid })),
            ] {
                self.events
                    .push(json!({ "ph": "M", "name": name, "pid": pid, "tid": tid, "args": args }));
            }
        }
        (pid, tid)
    }
}

/// A run that is being added.
struct Adding<'a> {
    trace: &'a mut Trace,
    track: usize,
    /// When it began on the trace's time line.
    start: Duration,
}

impl Adding<'_> {
    /// A complete event.
    fn event(
        &mut self,
        (device, lane): (&str, Lane),
        name: &str,
        category: &str,
        (start, time): (Duration, Duration),
        args: Value,
    ) {
        let (pid, tid) = self.trace.lane(self.track, device, lane);
        self.trace.events.push(json!({
            "ph": "X",
            "name": name,
            "cat": category,
            "pid": pid,
            "tid": tid,
            "ts": us(self.start + start),
            "dur": us(time),
            "args": args,
        }));
    }

    fn run(&mut self, name: &str, run: &RunMetadata) {
        let mut args = json!({
            "graph_nodes": run.graph_nodes,
            "plan_cached": run.plan_cached,
            "program_cached": run.program_cached,
            "dispatches": run.dispatches,
            "submissions": run.submissions,
            "upload_bytes": run.upload_bytes,
            "download_bytes": run.download_bytes,
            "copy_bytes": run.copy_bytes,
            "kernel_bytes": run.kernel_bytes,
            "planned_bytes": run.planned_bytes,
            "live_bytes": run.live_bytes,
        });
        if let Some(session) = &run.session {
            args["session"] = json!({ "name": session.name, "version": session.version });
        }
        self.event((HOST, Lane::Run), name, "run", (Duration::ZERO, run.wall), args);
    }

    /// Memory before and after the run.
    fn counters(&mut self, run: &RunMetadata) {
        let before = [
            run.host_bytes.saturating_sub(run.host_bytes_allocated),
            run.device_bytes.saturating_sub(run.device_bytes_allocated),
        ];
        let after = [run.host_bytes, run.device_bytes];
        let pid = self.trace.process(self.track, HOST);
        for (at, [host, device]) in [(Duration::ZERO, before), (run.wall, after)] {
            self.trace.events.push(json!({
                "ph": "C",
                "name": "memory",
                "pid": pid,
                "ts": us(self.start + at),
                "args": { "host bytes": host, "device bytes": device },
            }));
        }
    }

    fn phase(&mut self, phase: &Phase, run: &RunMetadata) {
        let Phase { kind, start, time, bytes, .. } = phase;
        let device = phase.device.as_deref().unwrap_or(HOST);
        let span = (*start, *time);
        let (lane, name) = match kind {
            PhaseKind::Plan => (Lane::Run, "plan"),
            PhaseKind::Compile => (Lane::Run, "compile"),
            PhaseKind::Prepare => (Lane::Run, "prepare"),
            PhaseKind::Bind => (Lane::Run, "bind"),
            PhaseKind::Submit => (Lane::Run, "submit"),
            PhaseKind::Wait => (Lane::Waits, "wait"),
            PhaseKind::Receive => (Lane::Run, "receive"),
            PhaseKind::Fetch => (Lane::Run, "fetch"),
            PhaseKind::Commit => (Lane::Run, "commit"),
            PhaseKind::Segment => return self.segment(device, span),
        };
        let args = match kind {
            PhaseKind::Plan => json!({
                "plan_cached": run.plan_cached,
                "program_cached": run.program_cached,
            }),
            _ => json!({ "device": device }),
        };
        self.event((HOST, lane), name, "host", span, args);
        if *kind == PhaseKind::Submit {
            self.copies(device, span, run);
        }
        let (lane, name) = match kind {
            PhaseKind::Submit if *bytes > 0 => (Lane::Uploads, "upload"),
            PhaseKind::Receive if *bytes > 0 => (Lane::Downloads, "download"),
            _ => return,
        };
        // What is sent begins with its submission, and what is received comes while it is received.
        let belongs = |t: &&TransferTime| match kind {
            _ if t.is_copy => false,
            PhaseKind::Submit => &*t.to == device && t.start == *start,
            _ => &*t.from == device && t.start >= *start && t.start <= *start + *time,
        };
        let tensors = run.transfers.iter().filter(belongs).map(tensor);
        let args = json!({ "bytes": bytes, "tensors": tensors.collect::<Vec<_>>() });
        self.event((device, lane), name, "transfer", span, args);
    }

    /// What a submission lets a device copy from others: it begins with that.
    fn copies(&mut self, device: &str, (start, time): (Duration, Duration), run: &RunMetadata) {
        let own = |t: &&TransferTime| t.is_copy && &*t.to == device && t.start == start;
        let copies: Vec<&TransferTime> = run.transfers.iter().filter(own).collect();
        if copies.is_empty() {
            return;
        }
        let bytes: u64 = copies.iter().map(|copy| copy.bytes).sum();
        let tensors: Vec<Value> = copies.into_iter().map(tensor).collect();
        let args = json!({ "bytes": bytes, "tensors": tensors });
        self.event((device, Lane::Copies), "copy", "transfer", (start, time), args);
    }

    /// The time that a device has a segment. Several may be in flight at once.
    fn segment(&mut self, device: &str, (start, time): (Duration, Duration)) {
        let (pid, tid) = self.trace.lane(self.track, device, Lane::Segments);
        self.trace.n_spans += 1;
        for (ph, at) in [("b", start), ("e", start + time)] {
            self.trace.events.push(json!({
                "ph": ph,
                "name": "segment",
                "cat": "segment",
                "id": self.trace.n_spans,
                "pid": pid,
                "tid": tid,
                "ts": us(self.start + at),
                "args": {},
            }));
        }
    }

    /// A tensor that came to the host; what goes to a device is told with its submission.
    fn download(&mut self, transfer: &TransferTime) {
        let Some(time) = transfer.time else { return };
        let lane = (&*transfer.from, Lane::Downloads);
        let span = (transfer.start, time);
        self.event(lane, &transfer.tensor, "transfer", span, tensor(transfer));
    }

    fn kernels(&mut self, nodes: &[NodeTime]) {
        // A GPU may get a segment while it is at work on another: its kernels come after those.
        let mut ends: FxHashMap<&str, Duration> = FxHashMap::default();
        for node in nodes {
            let end = ends.entry(&node.device).or_default();
            let start = if node.is_aligned { node.start.max(*end) } else { node.start };
            *end = start + node.time;
            let names: Vec<&str> = node.nodes.iter().map(|name| &**name).collect();
            let mut args = json!({
                "kernel": node.kernel,
                "nodes": names,
                "shapes": node.shapes,
                "bytes_read_and_written": node.bytes,
            });
            if let Some(args) = args.as_object_mut().filter(|_| node.is_aligned) {
                let text = "by the device's clock, put into the middle of the segment";
                args.insert("aligned".into(), text.into());
            }
            let name = names.last().copied().unwrap_or("copy");
            let span = (start, node.time);
            self.event((&node.device, Lane::Compute), name, "kernel", span, args);
        }
    }
}

/// A transfer in `args`.
fn tensor(transfer: &TransferTime) -> Value {
    let TransferTime { tensor, shape, bytes, from, to, .. } = transfer;
    json!({
        "tensor": &**tensor,
        "shape": shape,
        "tensor_bytes": bytes,
        "from": &**from,
        "to": &**to,
    })
}

/// Microseconds, with nanoseconds as decimals.
fn us(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}
