//! What segments copy from other devices of their queue, without the host.

use std::sync::Arc;
use std::time::Duration;

use convoke_compiler::{DeviceIndex, Segment, Source, ValueId};
use convoke_graph_core::{Error, NodeId, Result};
use convoke_wgpu_backend::Sent;
use convoke_wgpu_backend::gpu::Buffer;

use super::gpu::GpuWork;
use super::{Bound, Compiled, Place};
use crate::devices::Gpus;
use crate::metadata::{RunMetadata, TransferNote, Way};

/// A value that a segment copies from another device.
pub(super) struct Across {
    value: ValueId,
    /// The other device's name.
    from: Arc<str>,
    n_bytes: usize,
}

impl Compiled {
    /// The memory of the variables that a segment borrows.
    pub(super) fn borrowed(&self, segment: &Segment, gpus: &Gpus) -> Result<Vec<Buffer>> {
        let buffer = |&id: &ValueId| {
            let (variable, home) = self.home_of(id)?;
            let n_bytes = self.program.value(id).n_bytes() as u64;
            gpus.get(home.0 as usize)?.1.buffer(variable, n_bytes)
        };
        segment.borrowed.iter().map(buffer).collect()
    }

    /// What a segment copies from other devices, but for feeds, which lie where a run is given them.
    pub(super) fn across_to(&self, segment: &Segment, gpus: &Gpus) -> Result<Vec<Across>> {
        let across = |value: ValueId, from: DeviceIndex| Across {
            value,
            from: gpus.name(from.0 as usize),
            n_bytes: self.program.value(value).n_bytes(),
        };
        let device_of = |from: u32| self.program.segments[from as usize].device;
        let carried = segment.carried.iter().map(|&(id, from)| (id, device_of(from)));
        let carried = carried.filter(|&(_, from)| from != segment.device);
        let mut all: Vec<Across> = carried.map(|(id, from)| across(id, from)).collect();
        for &id in &segment.borrowed {
            all.push(across(id, self.home_of(id)?.1));
        }
        Ok(all)
    }

    /// The variable whose elements a value is, and the device where it lives.
    fn home_of(&self, id: ValueId) -> Result<(NodeId, DeviceIndex)> {
        let missing = || Error::internal(format!("{id} is no variable of the program"));
        let Source::Variable(variable) = self.program.value(id).source else {
            return Err(missing());
        };
        let homes = &self.program.variables;
        let at = homes.binary_search_by_key(&variable, |&(own, _)| own).map_err(|_| missing())?;
        Ok((variable, homes[at].1))
    }

    /// Notes what a segment copies from other devices, feeds among it, once it is handed over.
    pub(super) fn note_across(
        &self,
        work: &GpuWork,
        uploads: &[Sent<'_>],
        bound: &Bound<'_>,
        begun: Option<Duration>,
        metadata: &mut RunMetadata,
    ) {
        let mut note = |&Across { value, ref from, n_bytes }: &Across| {
            if n_bytes == 0 {
                return;
            }
            metadata.copies += 1;
            metadata.copy_bytes += n_bytes as u64;
            if let Some(start) = begun {
                let (segment, way) = (work.at, Way::Across(from.clone()));
                // What it takes is part of the segment.
                let note = TransferNote { value, segment, way, n_bytes, start, time: None };
                metadata.notes.transfers.push(note);
            }
        };
        for (&value, sent) in work.uploads.iter().zip(uploads) {
            let Sent::Tensor(tensor) = sent else { continue };
            if let Some(from) = self.feed_device(value, bound).filter(|_| !work.segment.has(tensor))
            {
                let n_bytes = self.program.value(value).n_bytes();
                note(&Across { value, from: from.into(), n_bytes });
            }
        }
        work.across.iter().for_each(note);
    }

    /// The name of the device that has a fed value.
    fn feed_device<'b>(&self, value: ValueId, bound: &'b Bound<'_>) -> Option<&'b str> {
        let Place::Feed(at) = self.places[value.0 as usize] else { return None };
        Some(bound.feeds.get(at as usize)?.resident()?.device())
    }
}
