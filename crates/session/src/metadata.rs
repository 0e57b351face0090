//! What a run did: times, transfers and counts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The time of one kernel.
#[derive(Debug, Clone)]
pub struct NodeTime {
    /// The nodes that it did the work of, by name.
    pub nodes: Vec<Arc<str>>,
    /// The device's name.
    pub device: Arc<str>,
    /// What was done.
    pub kernel: String,
    /// How long it took.
    pub time: Duration,
}

/// What a run did. Counts are taken where the work is encoded, not from the plan.
#[derive(Debug, Clone, Default)]
pub struct RunMetadata {
    /// The whole run as the caller saw it.
    pub wall: Duration,
    /// The kernels in order, with [`Timings::Nodes`](crate::Timings::Nodes); those of GPUs where they can
    /// tell.
    pub nodes: Vec<NodeTime>,
    /// How many tensors placement expected to cross.
    pub predicted_transfers: u64,
    /// How many bytes placement expected to cross.
    pub predicted_transfer_bytes: u64,
    /// Bytes that went to devices.
    pub upload_bytes: u64,
    /// Bytes that came back.
    pub download_bytes: u64,
    /// Tensors that went to devices.
    pub uploads: u64,
    /// Tensors that came back.
    pub downloads: u64,
    /// GPU dispatches.
    pub dispatches: u64,
    /// GPU queue submissions.
    pub submissions: u64,
    /// Segments that began while a GPU was at work on another.
    pub overlaps: u64,
    /// How often GPUs had to wait for dispatches before they could go on with others.
    pub barriers: u64,
    /// Bytes that kernels read and write, on all devices: each operand of a kernel once, as far as it is
    /// seen, and each result.
    pub kernel_bytes: u64,
    /// Time that GPUs report, with [`Timings::Devices`](crate::Timings::Devices), where they can.
    pub gpu: Duration,
    /// Time that the host waited for GPU segments.
    pub gpu_wait: Duration,
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
}

impl RunMetadata {
    /// The time of the host in none of its kernels, not waiting for GPUs, and with no new program.
    pub fn overhead(&self) -> Duration {
        self.wall.saturating_sub(self.cpu + self.gpu_wait + self.planning + self.preparing)
    }
}

impl fmt::Display for RunMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:?} in all, {:?} in CPU kernels, {:?} waiting for GPUs, {:?} planning, {:?} preparing; plan \
             {}, program {}",
            self.wall,
            self.cpu,
            self.gpu_wait,
            self.planning,
            self.preparing,
            if self.plan_cached { "cached" } else { "made" },
            if self.program_cached { "cached" } else { "made" },
        )?;
        writeln!(
            f,
            "{} uploads of {} bytes, {} downloads of {} bytes, {} dispatches with {} barriers in {} \
             submissions, {} bytes read and written by kernels",
            self.uploads,
            self.upload_bytes,
            self.downloads,
            self.download_bytes,
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
