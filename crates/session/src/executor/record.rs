//! What a recorded run has noted gets its names and texts, once the run is over.

use std::sync::Arc;

use convoke_compiler::{Group, Source, ValueId};

use super::{Compiled, SegmentWork};
use crate::devices::HOST_NAME;
use crate::metadata::{KernelNote, NodeTime, RunMetadata, TransferNote, TransferTime, Way};

impl Compiled {
    /// Turns a run's notes into what users see.
    pub(crate) fn describe(&self, metadata: &mut RunMetadata) {
        let mut notes = std::mem::take(&mut metadata.notes);
        notes.kernels.sort_by_key(|note| note.start);
        metadata.nodes.extend(notes.kernels.iter().map(|note| self.node_time(note)));
        let transfers = notes.transfers.iter().map(|note| self.transfer_time(note));
        metadata.transfers.extend(transfers);
    }

    fn device_of(&self, segment: usize) -> Arc<str> {
        match self.segments.get(segment) {
            #[cfg(feature = "gpu")]
            Some(SegmentWork::Gpu(work)) => work.device.clone(),
            Some(SegmentWork::Cpu(_)) | None => HOST_NAME.into(),
        }
    }

    fn node_time(&self, note: &KernelNote) -> NodeTime {
        let &KernelNote { group, segment, start, time, is_aligned, .. } = note;
        let group = group.map(|group| group as usize);
        let work = group.and_then(|group| self.program.groups.get(group));
        let names = group.and_then(|group| self.names.get(group));
        NodeTime {
            group,
            nodes: names.cloned().unwrap_or_default(),
            device: self.device_of(segment),
            kernel: work.map_or_else(|| "copy".into(), |work| work.kernel.to_string()),
            shapes: work.map_or_else(String::new, |work| self.shapes(work)),
            bytes: work.map_or(0, |work| work.work(&self.program.values).bytes),
            start,
            time,
            is_aligned,
        }
    }

    fn shapes(&self, group: &Group) -> String {
        let dtype = |id: ValueId| self.program.value(id).dtype;
        let inputs = group.inputs.iter();
        let inputs = inputs.map(|x| format!("{}{}", dtype(x.value), x.layout.shape()));
        let outputs = group.outputs.iter();
        let outputs = outputs.map(|&id| format!("{}{}", dtype(id), self.program.value(id).shape));
        let [inputs, outputs] = [inputs.collect::<Vec<_>>(), outputs.collect()];
        format!("{} -> {}", inputs.join(", "), outputs.join(", "))
    }

    fn transfer_time(&self, note: &TransferNote) -> TransferTime {
        let TransferNote { value: id, segment, way, n_bytes, start, time } = note.clone();
        let value = self.program.value(id);
        let (is_upload, is_copy) = (way == Way::Up, matches!(way, Way::Across(_)));
        let device = self.device_of(segment);
        let (from, to) = match way {
            Way::Up => (HOST_NAME.into(), device),
            Way::Down => (device, HOST_NAME.into()),
            Way::Across(from) => (from, device),
        };
        TransferTime {
            value: id.0 as usize,
            segment,
            tensor: self.value_name(id),
            shape: format!("{}{}", value.dtype, value.shape),
            is_upload,
            is_copy,
            from,
            to,
            bytes: n_bytes as u64,
            start,
            time,
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
