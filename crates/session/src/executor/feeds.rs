//! Feeds that lie on GPUs: which of them a run needs on the host.

use std::borrow::Cow;

use convoke_compiler::{DeviceIndex, HOST, Segment, ValueId};
use convoke_graph_core::Result;

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

    /// Whether something else than the caller needs what a GPU sends.
    pub(crate) fn comes_back(&self) -> bool {
        let segments = &self.program.segments;
        let sent = |id: &ValueId| segments.iter().any(|segment| segment.downloads.contains(id));
        let read = self.cpu_steps().flat_map(|step| &step.inputs);
        read.chain(segments.iter().flat_map(|segment| &segment.uploads)).any(sent)
    }

    /// The first GPU that a feed is brought to; the host if there is none.
    pub(crate) fn first_reader(&self, at: usize) -> DeviceIndex {
        let is_it = |id: &ValueId| matches!(self.places[id.0 as usize], Place::Feed(feed) if feed as usize == at);
        let reads = |segment: &&Segment| segment.uploads.iter().any(is_it);
        self.program.segments.iter().find(reads).map_or(HOST, |segment| segment.device)
    }

    /// Whether a segment of another device is sent a feed.
    fn goes_elsewhere(&self, at: usize, feed: &FeedData<'_>) -> bool {
        #[cfg(feature = "gpu")]
        {
            let Some(tensor) = feed.resident() else { return false };
            let is_it = |id: &ValueId| matches!(self.places[id.0 as usize], Place::Feed(feed) if feed as usize == at);
            self.segments.iter().any(|work| match work {
                SegmentWork::Gpu(work) => {
                    let is_here = tensor.gpu().is_some_and(|tensor| work.segment.has(tensor));
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
