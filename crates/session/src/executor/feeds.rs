//! Feeds that lie on GPUs: which of them a run needs on the host.

use std::borrow::Cow;

use convoke_compiler::{DeviceIndex, HOST, Segment, Source, Value, ValueId};
use convoke_graph_core::{Output, Result};

#[cfg(feature = "gpu")]
use super::SegmentWork;
use super::{Compiled, Place};
use crate::feeds::FeedData;
use crate::metadata::RunMetadata;

impl Compiled {
    /// Finds the feeds whose elements the host reads, wherever they are.
    pub(super) fn find_host_feeds(&mut self) {
        let on_host = self.program.segments.iter().filter(|segment| segment.device == HOST);
        let stored = on_host.flat_map(|segment| segment.commits.iter().map(|c| c.value));
        let read = self.cpu_steps().flat_map(|step| step.inputs.iter().copied());
        let values: Vec<ValueId> = stored.chain(read).chain(self.program.host_fetches()).collect();
        for value in values {
            if let Place::Feed(at) = self.places[value.0 as usize] {
                self.host_feeds[at as usize] = true;
            }
        }
    }

    /// The feeds, those on the host as well that are needed there: by the host, or on their way to another device.
    ///
    /// # Errors
    /// A device does not give them.
    pub(super) fn brought<'f>(
        &self,
        feeds: &'f [FeedData<'f>],
        metadata: &mut RunMetadata,
    ) -> Result<Cow<'f, [FeedData<'f>]>> {
        let mut feeds = Cow::Borrowed(feeds);
        for at in 0..feeds.len() {
            let (FeedData::Device(_, None) | FeedData::Given(_, None), Some(tensor)) =
                (&feeds[at], feeds[at].resident())
            else {
                continue;
            };
            if !self.host_feeds.get(at).is_some_and(|&reads| reads)
                && !self.goes_elsewhere(at, &feeds[at])
            {
                continue;
            }
            let (tensor, host) = (tensor.clone(), tensor.to_host()?);
            metadata.downloads += u64::from(tensor.n_bytes() > 0);
            metadata.download_bytes += tensor.n_bytes();
            if let FeedData::Device(_, on_host) | FeedData::Given(_, on_host) =
                &mut feeds.to_mut()[at]
            {
                *on_host = Some(host);
            }
        }
        Ok(feeds)
    }

    /// Whether some of it runs on a GPU.
    pub(crate) fn uses_gpus(&self) -> bool {
        self.program.segments.iter().any(|segment| segment.device != HOST)
    }

    /// Whether another device than the one that computes something needs it, in this run or in later ones. `next` are
    /// values that are fed, and what of a run they are in the next one.
    pub(crate) fn comes_back(&self, next: &[(ValueId, ValueId)]) -> bool {
        let segments = &self.program.segments;
        let sent = |id: &ValueId| segments.iter().any(|segment| segment.downloads.contains(id));
        let read = self.cpu_steps().flat_map(|step| &step.inputs);
        if read.chain(segments.iter().flat_map(|segment| &segment.uploads)).any(sent) {
            return true;
        }
        // The GPU whose work each value is of.
        let mut made: Vec<Option<DeviceIndex>> = vec![None; self.program.values.len()];
        // What is only handed on comes everywhere in as many runs.
        for _ in 0..=next.len() {
            for segment in segments {
                let own = (segment.device != HOST).then_some(segment.device);
                let groups = segment.groups.iter();
                for group in groups.filter_map(|&at| self.program.groups.get(at as usize)) {
                    let mut inputs = group.inputs.iter().map(|input| made[input.value.0 as usize]);
                    if inputs.any(|by| by.is_some() && by != own) {
                        return true;
                    }
                    group.outputs.iter().for_each(|id| made[id.0 as usize] = own);
                }
            }
            let later: Vec<Option<DeviceIndex>> =
                next.iter().map(|(_, from)| made[from.0 as usize]).collect();
            let mut changes = false;
            for ((to, _), by) in next.iter().zip(later) {
                changes |= std::mem::replace(&mut made[to.0 as usize], by) != by;
            }
            if !changes {
                break;
            }
        }
        false
    }

    /// Whether a GPU has more than one segment.
    pub(crate) fn is_split(&self) -> bool {
        let on_gpus = self.program.segments.iter().filter(|segment| segment.device != HOST);
        let mut devices: Vec<DeviceIndex> = on_gpus.map(|segment| segment.device).collect();
        devices.sort_unstable();
        devices.windows(2).any(|pair| pair[0] == pair[1])
    }

    /// The value that is an output which is fed.
    pub(crate) fn fed(&self, output: Output) -> Option<ValueId> {
        let is_it = |value: &Value| matches!(value.source, Source::Feed(fed) if fed == output);
        let at = self.program.values.iter().position(is_it)?;
        u32::try_from(at).ok().map(ValueId)
    }

    /// The first GPU that a feed is brought to; the host if there is none.
    pub(crate) fn first_reader(&self, at: usize) -> DeviceIndex {
        let is_it = |id: &ValueId| matches!(self.places[id.0 as usize], Place::Feed(feed) if feed as usize == at);
        let reads = |segment: &&Segment| segment.uploads.iter().any(is_it);
        self.program.segments.iter().find(reads).map_or(HOST, |segment| segment.device)
    }

    /// Whether a segment is sent a feed through the host: one of a device that cannot copy it.
    fn goes_elsewhere(&self, at: usize, feed: &FeedData<'_>) -> bool {
        #[cfg(feature = "gpu")]
        {
            let Some(tensor) = feed.resident() else { return false };
            let is_it = |id: &ValueId| matches!(self.places[id.0 as usize], Place::Feed(feed) if feed as usize == at);
            self.segments.iter().any(|work| match work {
                SegmentWork::Gpu(work) => {
                    let is_here = tensor.gpu().is_some_and(|tensor| work.segment.reaches(tensor));
                    !is_here && work.uploads.iter().any(is_it)
                }
                SegmentWork::Cpu(_) => false,
            })
        }
        #[cfg(not(feature = "gpu"))]
        {
            let _ = (at, feed);
            false
        }
    }
}
