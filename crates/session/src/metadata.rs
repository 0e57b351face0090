//! What a run did: times, transfers and counts.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use convoke_compiler::ValueId;

use crate::core::Request;
use crate::identity::{Prefix, SessionMetadata};
use crate::session::Timings;
use crate::trace::Trace;

/// The time of one kernel.
#[derive(Debug, Clone)]
pub struct NodeTime {
    /// The group of the program that it belongs to; `None` for copies that a device makes for itself.
    pub group: Option<usize>,
    /// The nodes that it did the work of, by name.
    pub nodes: Vec<Arc<str>>,
    /// The device's name.
    pub device: Arc<str>,
    /// What was done.
    pub kernel: String,
    /// Dtypes and shapes of what it reads and writes: `f32[6, 8], f32[8, 4] -> f32[6, 4]`.
    pub shapes: String,
    /// Bytes that it reads and writes: each operand once, as far as it is seen, and each result.
    pub bytes: u64,
    /// When it began, from the beginning of the run.
    pub start: Duration,
    /// How long it took. Where a GPU does the work of several groups in one dispatch, each has its share of the time, by
    /// elements, one after the other.
    pub time: Duration,
    /// Whether `start` was told by a GPU, whose clock is not the host's: then the segment's kernels lie in the
    /// middle of the time between its submission and its end.
    pub is_aligned: bool,
}

/// A tensor that went from one device to another.
#[derive(Debug, Clone)]
pub struct TransferTime {
    /// The value of the program; `usize::MAX` of what a loop carries at first or in the end, which moves by itself.
    pub value: usize,
    /// The segment of the program that it was sent for or by; `usize::MAX` if none.
    pub segment: usize,
    /// The tensor's name.
    pub tensor: Arc<str>,
    /// Dtype and shape: `f32[32, 64]`.
    pub shape: String,
    /// Whether it went from the host to a device; else it came to the host, or is a copy.
    pub is_upload: bool,
    /// Whether one GPU copied it from another by itself, both being parts of one: the host took no part.
    pub is_copy: bool,
    /// The name of the device that had it.
    pub from: Arc<str>,
    /// The name of the device that got it.
    pub to: Arc<str>,
    /// Its size in bytes.
    pub bytes: u64,
    /// When the host began to copy it to or from staging memory, from the beginning of the run; for one of
    /// several that go together, when the first did.
    pub start: Duration,
    /// How long the host took for it, if that can be told: what goes to a device in one go can't be told apart,
    /// and what a bus takes is part of its segment.
    pub time: Option<Duration>,
}

/// What else takes time in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PhaseKind {
    /// A plan is found or made, feeds are checked, and a program for their shapes is found or made.
    Plan,
    /// A new program is made for these shapes and placed: a part of `Plan`.
    Compile,
    /// A new program gets its kernels, pipelines and memory: a part of `Plan`.
    Prepare,
    /// Variables are read, and memory is leased.
    Bind,
    /// A segment is handed to its device, with what it needs from the host.
    Submit,
    /// The host waits for a segment.
    Wait,
    /// A device has a segment: from when the host began to hand it over until it knows that it is done.
    Segment,
    /// Results are copied out of what the host has received.
    Receive,
    /// Fetched tensors are made.
    Fetch,
    /// New elements of variables are stored.
    Commit,
}

/// A part of a run that is no kernel.
#[derive(Debug, Clone)]
pub struct Phase {
    /// What it is.
    pub kind: PhaseKind,
    /// The device that the host deals with; `None` where it is by itself.
    pub device: Option<Arc<str>>,
    /// When it began, from the beginning of the run.
    pub start: Duration,
    /// How long it took.
    pub time: Duration,
    /// Bytes that it moved from device to device: those of its tensors, each rounded up to a multiple of 4, and of
    /// status words.
    pub bytes: u64,
}

/// What a run did. Counts are taken where the work is encoded, not from the plan.
#[derive(Debug, Clone, Default)]
pub struct RunMetadata {
    /// The whole run as the caller saw it.
    pub wall: Duration,
    /// The kernels as they began, with [`Timings::Nodes`](crate::Timings::Nodes); those of GPUs where they can
    /// tell.
    pub nodes: Vec<NodeTime>,
    /// When the run began, with [`Timings::Nodes`](crate::Timings::Nodes).
    pub begun: Option<Instant>,
    /// The tensors that crossed, in order, with [`Timings::Nodes`](crate::Timings::Nodes).
    pub transfers: Vec<TransferTime>,
    /// What else took time, with [`Timings::Nodes`](crate::Timings::Nodes).
    pub phases: Vec<Phase>,
    /// How many tensors were expected to cross: by the placement of each program each time that it ran, and of what a
    /// run with several programs holds or carries.
    pub predicted_transfers: u64,
    /// How many bytes were expected to cross.
    pub predicted_transfer_bytes: u64,
    /// Bytes that went to devices.
    pub upload_bytes: u64,
    /// Bytes that came back.
    pub download_bytes: u64,
    /// Tensors that went to devices.
    pub uploads: u64,
    /// Tensors that came back.
    pub downloads: u64,
    /// Tensors that one GPU copied from another, both being [parts of one](crate::DeviceOptions::virtual_devices).
    pub copies: u64,
    /// Bytes of those.
    pub copy_bytes: u64,
    /// GPU dispatches.
    pub dispatches: u64,
    /// GPU queue submissions.
    pub submissions: u64,
    /// Segments that began while a GPU was at work on another.
    pub overlaps: u64,
    /// Donated tensors in whose memory results were stored: see [`DeviceTensor::donate`](crate::DeviceTensor::donate).
    pub donations: u64,
    /// How often GPUs had to wait for dispatches before they could go on with others.
    pub barriers: u64,
    /// Bytes that kernels read and write, on all devices: each operand of a kernel once, as far as it is
    /// seen, and each result.
    pub kernel_bytes: u64,
    /// Time that GPUs report, with [`Timings::Devices`](crate::Timings::Devices), where they can.
    pub gpu: Duration,
    /// Time that the host waited for GPU segments.
    pub gpu_wait: Duration,
    /// Time of the host for copying what goes to GPU segments and comes from them.
    pub copying: Duration,
    /// Whether others have stored meanwhile into what the run was to store into.
    pub(crate) is_overtaken: bool,
    /// Time in CPU kernels.
    pub cpu: Duration,
    /// Time from the graph to a program; nothing where it was there already.
    pub planning: Duration,
    /// Time for the kernels, pipelines and memory of a new program.
    pub preparing: Duration,
    /// Nodes of the graph that the run needed.
    pub graph_nodes: u64,
    /// Bytes of device memory that the run allocated.
    pub device_bytes_allocated: u64,
    /// Bytes of host memory that the run allocated for values and intermediate results.
    pub host_bytes_allocated: u64,
    /// Pipelines that the run built.
    pub pipelines_built: u64,
    /// Pipelines that a new program of the run needed and that were there already.
    pub pipelines_found: u64,
    /// Bytes of device memory that the devices' buffers take after the run.
    pub device_bytes: u64,
    /// Bytes of memory that values and intermediate results of the program were planned to lie in, on the host
    /// and for all its segments on devices; inputs, constants and variables come on top.
    pub planned_bytes: u64,
    /// The least that any plan would take: the largest sum of the bytes that live at once, on the host and for
    /// each segment.
    pub live_bytes: u64,
    /// Bytes of host memory that the program's values lie in.
    pub host_bytes: u64,
    /// Whether the plan was there already.
    pub plan_cached: bool,
    /// Whether the program for these shapes was there already.
    pub program_cached: bool,
    /// Whether its kernels were timed one by one, for the session to learn from it: see
    /// [`SessionOptions::autotune`](crate::SessionOptions::autotune).
    pub tunes: bool,
    /// The name and version of the session.
    pub session: Option<Arc<SessionMetadata>>,
    /// Whether a segment was started that stores into variables or feeds.
    pub(crate) stores: bool,
    /// What a recorded run has noted so far.
    pub(crate) notes: Notes,
    /// When programs ran of a run that has several, with what of `nodes` and `transfers` is theirs.
    pub(crate) executions: Vec<Execution>,
}

/// One time that a program of several ran.
#[derive(Debug, Clone)]
pub(crate) struct Execution {
    /// The plan's place in the run's.
    pub(crate) plan: usize,
    /// Whether the program is many times that one.
    pub(crate) is_block: bool,
    pub(crate) nodes: Range<usize>,
    pub(crate) transfers: Range<usize>,
    pub(crate) wall: Duration,
}

/// What is noted while a run is under way: no more than takes part in it. Names and texts come when it is over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes {
    pub(crate) kernels: Vec<KernelNote>,
    pub(crate) transfers: Vec<TransferNote>,
}

/// A kernel that ran.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KernelNote {
    /// Its group; `None` for a copy that a device makes for itself.
    pub(crate) group: Option<u32>,
    /// The segment of the program.
    pub(crate) segment: usize,
    pub(crate) start: Duration,
    pub(crate) time: Duration,
    /// The part of a dispatch that it is; 1 but where a device does the work of several groups at once.
    pub(crate) share: f64,
    pub(crate) is_aligned: bool,
}

/// Which way a value went.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "nothing leaves the host"))]
pub(crate) enum Way {
    /// From the host to the segment's device.
    Up,
    /// From there to the host.
    Down,
    /// To the segment's device from another, which is named.
    Across(Arc<str>),
}

/// A value that went to a device or came from it.
#[derive(Debug, Clone)]
pub(crate) struct TransferNote {
    pub(crate) value: ValueId,
    pub(crate) segment: usize,
    pub(crate) way: Way,
    pub(crate) n_bytes: usize,
    pub(crate) start: Duration,
    pub(crate) time: Option<Duration>,
}

impl RunMetadata {
    /// The time of the host in none of its kernels, neither waiting for GPUs nor copying what goes there and comes back,
    /// and with no new program. What is recorded for GPUs and submitted counts.
    pub fn overhead(&self) -> Duration {
        let beside = self.cpu + self.gpu_wait + self.copying + self.planning + self.preparing;
        self.wall.saturating_sub(beside)
    }

    /// The run as a trace that Perfetto and Chrome show. Only a run with
    /// [`Timings::Nodes`](crate::Timings::Nodes) has more to show than itself.
    pub fn to_trace(&self) -> Trace {
        let mut trace = Trace::new();
        trace.add("run", self);
        trace
    }

    /// Records from now on, if the request asks for it.
    pub(crate) fn begin(&mut self, request: &Request<'_>) {
        let records = request.options.timings == Timings::Nodes;
        self.begun = records.then_some(request.start);
    }

    /// Begins anew, for a run that is made again. How it was planned stays.
    pub(crate) fn begin_again(&mut self, request: &Request<'_>) {
        let planned = (self.plan_cached, self.graph_nodes, self.planning);
        *self = Self::default();
        self.begin(request);
        (self.plan_cached, self.graph_nodes, self.planning) = planned;
    }

    /// Notes that a tensor of so many bytes is expected to cross.
    pub(crate) fn predict(&mut self, bytes: u64) {
        self.predicted_transfers += 1;
        self.predicted_transfer_bytes += bytes;
    }

    /// Forgets what only [`Timings::Nodes`](crate::Timings::Nodes) asks for.
    pub(crate) fn forget_times(&mut self) {
        self.begun = None;
        self.phases.clear();
        self.notes = Notes::default();
    }

    /// The time since the run began, if it is recorded.
    pub(crate) fn now(&self) -> Option<Duration> {
        self.begun.map(|begun| begun.elapsed())
    }

    /// Notes a part that ends now, and began at `start`: nothing if the run is not recorded.
    pub(crate) fn note(&mut self, kind: PhaseKind, start: Option<Duration>) {
        self.note_device(kind, start, None, 0);
    }

    /// As [`Self::note`], for a part about a device, that moved bytes.
    pub(crate) fn note_device(
        &mut self,
        kind: PhaseKind,
        start: Option<Duration>,
        device: Option<&Arc<str>>,
        bytes: u64,
    ) {
        if let (Some(start), Some(now)) = (start, self.now()) {
            let (device, time) = (device.cloned(), now.saturating_sub(start));
            self.phases.push(Phase { kind, device, start, time, bytes });
        }
    }
}

impl fmt::Display for RunMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}{:?} in all, {:?} in CPU kernels, {:?} waiting for GPUs, {:?} copying for them, {:?} planning, {:?} \
             preparing; plan {}, program {}, {} pipelines built and {} found",
            Prefix(self.session.as_deref()),
            self.wall,
            self.cpu,
            self.gpu_wait,
            self.copying,
            self.planning,
            self.preparing,
            if self.plan_cached { "cached" } else { "made" },
            if self.program_cached { "cached" } else { "made" },
            self.pipelines_built,
            self.pipelines_found,
        )?;
        writeln!(
            f,
            "{} uploads of {} bytes, {} downloads of {} bytes, {}{} dispatches with {} barriers in {} \
             submissions, {} bytes read and written by kernels",
            self.uploads,
            self.upload_bytes,
            self.downloads,
            self.download_bytes,
            match self.copies {
                0 => String::new(),
                n => format!("{n} copies of {} bytes from GPU to GPU, ", self.copy_bytes),
            },
            self.dispatches,
            self.barriers,
            self.submissions,
            self.kernel_bytes,
        )?;
        for node in &self.nodes {
            writeln!(f, "{:>12?}  {:8} {}", node.time, node.device, node.kernel)?;
        }
        Ok(())
    }
}
