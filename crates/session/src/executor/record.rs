//! What a recorded run notes of its GPU segments: kernels, transfers, and the time in between.

use std::sync::Arc;
use std::time::Duration;

use convoke_compiler::{Group, Source, ValueId};
use convoke_wgpu_backend::GpuRun;

use super::Compiled;
use super::gpu::GpuWork;
use crate::metadata::{NodeTime, Phase, PhaseKind, RunMetadata, TransferTime};

impl Compiled {
    /// Notes what a segment was sent between `begun` and `submitted`.
    pub(super) fn record_uploads(
        &self,
        work: &GpuWork,
        uploads: &[&[u8]],
        [begun, submitted]: [Duration; 2],
        metadata: &mut RunMetadata,
    ) {
        let time = submitted.saturating_sub(begun);
        let sent = work.uploads.iter().zip(uploads).filter(|(_, bytes)| !bytes.is_empty());
        let alone = sent.clone().count() == 1;
        for (&value, bytes) in sent {
            metadata.transfers.push(TransferTime {
                start: begun,
                time: alone.then_some(time),
                ..self.transfer(work, value, bytes.len(), true)
            });
        }
    }

    /// Notes what a segment sent; the host has copied it since `begun`.
    pub(super) fn record_download(
        &self,
        work: &GpuWork,
        value: ValueId,
        n_bytes: usize,
        begun: Duration,
        metadata: &mut RunMetadata,
    ) {
        let time = metadata.now().map(|now| now.saturating_sub(begun));
        let transfer = self.transfer(work, value, n_bytes, false);
        metadata.transfers.push(TransferTime { start: begun, time, ..transfer });
    }

    /// Notes a segment: from when until when it was submitted, when the host began to wait for it, knew that it was
    /// done, and had all that it sends.
    pub(super) fn record_segment(
        &self,
        work: &GpuWork,
        run: &GpuRun,
        [begun, submitted, waiting, done, received]: [Duration; 5],
        metadata: &mut RunMetadata,
    ) {
        let bytes = |values: &[ValueId]| {
            values.iter().map(|&id| self.program.value(id).n_bytes() as u64).sum()
        };
        let mut note = |kind, start: Duration, end: Duration, bytes| {
            let (device, time) = (Some(work.device.clone()), end.saturating_sub(start));
            metadata.phases.push(Phase { kind, device, start, time, bytes });
        };
        note(PhaseKind::Submit, begun, submitted, bytes(&work.uploads));
        note(PhaseKind::Wait, waiting, done, 0);
        note(PhaseKind::Receive, done, received, bytes(&work.downloads));
        // It may have begun before the host went on.
        note(PhaseKind::Segment, begun, done, 0);
        // The device's clock is not the host's: what is not known of the offset is shared between both ends.
        let slack = done.saturating_sub(begun).saturating_sub(run.gpu_time.unwrap_or_default());
        let first = begun + slack / 2;
        let steps = work.segment.origins().zip(run.step_starts.iter().zip(&run.step_times));
        for (origin, (&start, &time)) in steps {
            let known = match origin {
                Some(group) => self.node_time(group as usize, work.device.clone()),
                None => copy(work.device.clone()),
            };
            let start = first + start;
            metadata.nodes.push(NodeTime { start, time, is_aligned: true, ..known });
        }
    }

    fn transfer(&self, work: &GpuWork, id: ValueId, n_bytes: usize, up: bool) -> TransferTime {
        let value = self.program.value(id);
        let (host, device): (Arc<str>, _) = ("CPU:0".into(), work.device.clone());
        let (from, to) = if up { (host, device) } else { (device, host) };
        TransferTime {
            value: id.0 as usize,
            segment: work.at,
            tensor: self.value_name(id),
            shape: format!("{}{}", value.dtype, value.shape),
            is_upload: up,
            from,
            to,
            bytes: n_bytes as u64,
            start: Duration::ZERO,
            time: None,
        }
    }

    /// The name of the node that computes a value, of the variable or of the feed.
    fn value_name(&self, id: ValueId) -> Arc<str> {
        let makes = |group: &Group| group.outputs.contains(&id);
        let named = match &self.program.value(id).source {
            Source::Feed(output) => {
                let feed = self.feeds.iter().find(|(feed, _)| feed == output);
                feed.map(|(_, name)| name.clone())
            }
            Source::Variable(node) => {
                let variable = self.variables.iter().find(|(variable, _)| variable == node);
                variable.map(|(_, name)| name.clone())
            }
            _ => {
                let group = self.program.groups.iter().position(makes);
                group.and_then(|group| self.names[group].last().cloned())
            }
        };
        named.unwrap_or_else(|| id.to_string().into())
    }
}

/// The time of a copy that a device makes for itself.
fn copy(device: Arc<str>) -> NodeTime {
    NodeTime {
        group: None,
        nodes: Vec::new(),
        device,
        kernel: "copy".into(),
        shapes: String::new(),
        bytes: 0,
        start: Duration::ZERO,
        time: Duration::ZERO,
        is_aligned: false,
    }
}
