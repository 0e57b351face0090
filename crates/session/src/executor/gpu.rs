//! GPU segments of a run: each is started when its turn comes, and waited for when somebody needs what it sends,
//! so that the host and other devices work meanwhile.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use convoke_compiler::{Donation, ValueId};
use convoke_graph_core::{Error, ErrorKind, NodeId, Result};
use convoke_wgpu_backend::gpu::{Buffer, Timestamps};
use convoke_wgpu_backend::{
    Carried, GpuRun, GpuSegment, GpuTensor, GpuTensors, Lease, RunOptions, Running, Sent, Work,
};
use smallvec::SmallVec;

use super::across::Across;
use super::{Bound, Compiled, CpuStep, On, Place};
use crate::device_tensor::DeviceTensor;
use crate::donation::Given;
use crate::feeds::FeedData;
use crate::instance::Instance;
use crate::metadata::{KernelNote, Phase, PhaseKind, RunMetadata, TransferNote, Way};
use crate::session::Timings;
use crate::state::State;

/// A segment on a GPU.
pub(super) struct GpuWork {
    /// Its place in the program.
    pub at: usize,
    pub segment: GpuSegment,
    pub device: Arc<str>,
    pub uploads: Vec<ValueId>,
    pub downloads: Vec<ValueId>,
    /// Values that stay on the device, and what makes tensors for them.
    pub residents: Vec<ValueId>,
    pub tensors: GpuTensors,
    /// What it takes from earlier segments of its queue, with their indices.
    pub carried: Vec<(ValueId, u32)>,
    /// The memory of the variables of other devices of its queue that it copies.
    pub borrowed: Vec<Buffer>,
    /// What of all this comes from other devices.
    pub across: Vec<Across>,
    pub commits: Vec<NodeId>,
    pub donations: Vec<Donation>,
    pub barriers: u64,
    pub planned_bytes: u64,
    pub live_bytes: u64,
}

impl GpuWork {
    /// Whether what outlives the run is overwritten.
    pub fn stores(&self) -> bool {
        !self.commits.is_empty() || !self.donations.is_empty()
    }
}

/// The memory of the GPU segments of a run, for later ones that take values from it.
pub(super) type Leases<'a> = SmallVec<[(&'a GpuWork, Rc<Lease<'a>>); 2]>;

/// A segment that its device works on.
pub(super) struct RunningWork<'a> {
    work: &'a GpuWork,
    running: Running<'a>,
    _lease: Rc<Lease<'a>>,
    /// The feeds that it overwrites.
    given: SmallVec<[Arc<Given>; 1]>,
    /// From when until when it was handed over, if that is recorded.
    submitted: Option<[Duration; 2]>,
}

/// The segments that devices work on, in the order in which they were started.
pub(super) type Works<'a> = SmallVec<[RunningWork<'a>; 2]>;

impl RunningWork<'_> {
    fn sends(&self, values: &[ValueId]) -> bool {
        values.iter().any(|value| self.work.downloads.contains(value))
    }

    /// Whether another segment is for the same device.
    pub fn is_on(&self, other: &GpuWork) -> bool {
        self.work.device == other.device
    }

    /// Whether another segment has to wait for this one: it is sent what this one sends to the host, or it stores
    /// into variables or feeds, which comes after all that can fail.
    pub fn delays(&self, other: &GpuWork) -> bool {
        other.stores() || self.sends(&other.uploads)
    }
}

impl Compiled {
    /// Hands a segment to its device.
    pub(super) fn start_gpu<'a>(
        &'a self,
        work: &'a GpuWork,
        leases: &mut Leases<'a>,
        instance: &mut Instance,
        bound: &Bound<'_>,
        on: &On<'_>,
        metadata: &mut RunMetadata,
    ) -> Result<RunningWork<'a>> {
        let named = |e: Error| e.with_device(&*work.device);
        let begun = metadata.now();
        let residents = self.make_residents(work, instance).map_err(named)?;
        let given = self.take_given(work, instance, bound)?;
        let donated: SmallVec<[GpuTensor; 2]> =
            given.iter().filter_map(|given| given.tensor.gpu().cloned()).collect();
        let sent = |&id: &ValueId| match self.on_device(id, work, bound) {
            Some(tensor) => Ok(Sent::Tensor(tensor)),
            None => self.bytes(id, instance, bound).map(Sent::Bytes),
        };
        let uploads: SmallVec<[Sent<'_>; 4]> =
            work.uploads.iter().map(sent).collect::<Result<_>>()?;
        let stores = metadata.stores;
        let start = Instant::now();
        let lease = Rc::new(work.segment.lease(&|| on.check(stores)).map_err(named)?);
        metadata.gpu_wait += start.elapsed();
        let timestamps = match on.timings {
            Timings::Host => Timestamps::None,
            Timings::Devices => Timestamps::Whole,
            Timings::Nodes => Timestamps::Each,
        };
        let options = RunOptions { timestamps, ..RunOptions::default() };
        let carried = work.carried.iter().map(|(id, from)| {
            let lease = leases.iter().find(|(other, _)| other.at == *from as usize);
            let (other, lease) =
                lease.ok_or_else(|| Error::internal(format!("{id} has no memory")))?;
            Ok(Carried::Of(&other.segment, lease))
        });
        let borrowed = work.borrowed.iter().map(|buffer| Ok(Carried::Variable(buffer)));
        let carried: SmallVec<[Carried<'_>; 4]> = carried.chain(borrowed).collect::<Result<_>>()?;
        let (residents, donated) = (&*residents, &*donated);
        let sent = Work { uploads: &uploads, carried: &carried, residents, donated };
        let running = work.segment.submit(&lease, &sent, &options).map_err(named)?;
        drop(carried);
        leases.push((work, lease.clone()));
        metadata.uploads += uploads.iter().filter(|sent| sent.host_bytes() > 0).count() as u64;
        metadata.upload_bytes += uploads.iter().map(|sent| sent.host_bytes() as u64).sum::<u64>();
        let submitted = begun.zip(metadata.now()).map(<[Duration; 2]>::from);
        if let Some(submitted) = submitted {
            note_uploads(work, &uploads, submitted, metadata);
        }
        self.note_across(work, &uploads, bound, begun, metadata);
        Ok(RunningWork { work, running, _lease: lease, given, submitted })
    }

    /// The feeds that a segment overwrites, which become what it gives.
    fn take_given(
        &self,
        work: &GpuWork,
        instance: &mut Instance,
        bound: &Bound<'_>,
    ) -> Result<SmallVec<[Arc<Given>; 1]>> {
        let mut all = SmallVec::new();
        for donation in &work.donations {
            let feed = match self.places[donation.feed.0 as usize] {
                Place::Feed(at) => bound.feeds.get(at as usize),
                _ => None,
            };
            let missing = || Error::internal(format!("{} was not given", donation.feed));
            let Some(FeedData::Given(given, _)) = feed else { return Err(missing()) };
            let tensor = given.tensor.gpu().ok_or_else(missing)?.clone();
            let value = self.program.value(donation.value);
            let (dtype, shape) = (value.dtype, value.shape.clone());
            let kept = DeviceTensor::on_gpu(dtype, shape, work.device.clone(), tensor);
            instance.residents.push((donation.value, kept));
            all.push(given.clone());
        }
        Ok(all)
    }

    /// Makes tensors for what a segment leaves on its device.
    fn make_residents(
        &self,
        work: &GpuWork,
        instance: &mut Instance,
    ) -> Result<SmallVec<[GpuTensor; 2]>> {
        let mut made = SmallVec::new();
        for &id in &work.residents {
            let value = self.program.value(id);
            let tensor = work.tensors.tensor(value.n_bytes() as u64)?;
            let (dtype, shape) = (value.dtype, value.shape.clone());
            let kept = DeviceTensor::on_gpu(dtype, shape, work.device.clone(), tensor.clone());
            instance.residents.push((id, kept));
            made.push(tensor);
        }
        Ok(made)
    }

    /// The tensor that is fed as a value, if a segment's device has it or can copy it.
    fn on_device<'b>(
        &self,
        id: ValueId,
        work: &GpuWork,
        bound: &'b Bound<'_>,
    ) -> Option<&'b GpuTensor> {
        let Place::Feed(at) = self.places[id.0 as usize] else { return None };
        let tensor = bound.feeds[at as usize].resident().and_then(DeviceTensor::gpu);
        tensor.filter(|tensor| work.segment.reaches(tensor))
    }

    /// Waits for the segments that send what a step of the host reads. Gives how long it took.
    pub(super) fn wait_for_inputs(
        &self,
        step: &CpuStep,
        running: &mut Works<'_>,
        instance: &mut Instance,
        state: &State,
        metadata: &mut RunMetadata,
    ) -> Result<Duration> {
        if running.is_empty() {
            return Ok(Duration::ZERO);
        }
        let start = Instant::now();
        self.wait_for(|work| work.sends(&step.inputs), running, instance, state, metadata)?;
        Ok(start.elapsed())
    }

    /// Waits for the segments that `delay` somebody.
    pub(super) fn wait_for(
        &self,
        delay: impl Fn(&RunningWork<'_>) -> bool,
        running: &mut Works<'_>,
        instance: &mut Instance,
        state: &State,
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        while let Some(at) = running.iter().position(&delay) {
            self.finish_gpu(running.remove(at), instance, state, metadata)?;
        }
        Ok(())
    }

    /// Waits for a segment, and brings what it sends into the host's slots.
    pub(super) fn finish_gpu(
        &self,
        RunningWork { work, running, given, submitted, .. }: RunningWork<'_>,
        instance: &mut Instance,
        state: &State,
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        let (start, waiting) = (Instant::now(), metadata.now());
        let (mut arrived, mut copying) = (None, Duration::ZERO);
        given.iter().for_each(|given| given.set_used(true));
        let run = running.wait_with(&mut |index, bytes| {
            let begun = metadata.now();
            arrived = arrived.or(begun);
            let value = work.downloads.get(index).copied();
            let place = value.map(|value| self.places[value.0 as usize]);
            metadata.downloads += u64::from(!bytes.is_empty());
            metadata.download_bytes += bytes.len() as u64;
            let own = match place {
                Some(Place::Slot(slot)) => {
                    instance.slots.get_mut(slot as usize).map(|own| &mut own[..])
                }
                Some(Place::Arena(offset)) => instance.arena.get_mut(offset..),
                _ => None,
            };
            if let Some(own) = own.and_then(|own| own.get_mut(..bytes.len())) {
                let begun = Instant::now();
                own.copy_from_slice(bytes);
                copying += begun.elapsed();
            }
            if let (Some(value), Some(begun), false) = (value, begun, bytes.is_empty()) {
                let (segment, n_bytes) = (work.at, bytes.len());
                let time = metadata.now().map(|now| now.saturating_sub(begun));
                let note =
                    TransferNote { value, segment, way: Way::Down, n_bytes, start: begun, time };
                metadata.notes.transfers.push(note);
            }
        });
        if let Err(error) = &run {
            // Data that is not as it should be keeps the segment from storing.
            let stored = error.kind() != ErrorKind::InvalidArgument;
            given.iter().for_each(|given| given.set_used(stored));
        }
        let run = run.map_err(|e| e.with_device(&*work.device))?;
        metadata.donations += given.len() as u64;
        metadata.dispatches += u64::from(run.dispatches);
        metadata.submissions += u64::from(run.submissions);
        metadata.barriers += work.barriers;
        metadata.planned_bytes += work.planned_bytes;
        metadata.live_bytes += work.live_bytes;
        metadata.gpu += run.gpu_time.unwrap_or_default();
        if let (Some(submitted), Some(waiting), Some(now)) = (submitted, waiting, metadata.now()) {
            let done = arrived.unwrap_or(now);
            let [begun, submitted] = submitted;
            note_segment(work, &run, [begun, submitted, waiting, done, now], metadata);
        }
        if !work.commits.is_empty() {
            let mut kept = state.lock();
            for &variable in &work.commits {
                if !self.was_reset(variable, &kept) {
                    kept.stored_on_device(variable);
                }
            }
        }
        metadata.gpu_wait += start.elapsed().saturating_sub(copying + recording_since(&run, start));
        metadata.copying += copying + run.copying;
        Ok(())
    }
}

/// What a device's thread took to record and submit a segment, as far as it was after `start`.
fn recording_since(run: &GpuRun, start: Instant) -> Duration {
    let [received, submitted] = run.recorded.unwrap_or([start; 2]);
    submitted.saturating_duration_since(received.max(start))
}

/// Notes what a segment was sent between `begun` and `submitted`.
fn note_uploads(
    work: &GpuWork,
    uploads: &[Sent<'_>],
    [begun, submitted]: [Duration; 2],
    metadata: &mut RunMetadata,
) {
    let sent = work.uploads.iter().zip(uploads).filter(|(_, sent)| sent.host_bytes() > 0);
    let is_alone = sent.clone().count() == 1;
    let time = is_alone.then_some(submitted.saturating_sub(begun));
    metadata.notes.transfers.extend(sent.map(|(&value, sent)| {
        let (segment, n_bytes) = (work.at, sent.host_bytes());
        TransferNote { value, segment, way: Way::Up, n_bytes, start: begun, time }
    }));
}

/// Notes a segment: from when until when it was submitted, when the host began to wait for it, knew that it was done,
/// and had all that it sends.
fn note_segment(
    work: &GpuWork,
    run: &GpuRun,
    [begun, submitted, waiting, done, received]: [Duration; 5],
    metadata: &mut RunMetadata,
) {
    let own = metadata.notes.transfers.iter().filter(|note| note.segment == work.at);
    let bytes = |way: Way| {
        let these = own.clone().filter(|note| note.way == way);
        these.map(|note| note.n_bytes as u64).sum()
    };
    let (sent, brought) = (bytes(Way::Up), bytes(Way::Down));
    let mut note = |kind, start: Duration, end: Duration, bytes| {
        let (device, time) = (Some(work.device.clone()), end.saturating_sub(start));
        metadata.phases.push(Phase { kind, device, start, time, bytes });
    };
    note(PhaseKind::Submit, begun, submitted, sent);
    note(PhaseKind::Wait, waiting, done, 0);
    note(PhaseKind::Receive, done, received, brought);
    // It may have begun before the host went on.
    note(PhaseKind::Segment, begun, done, 0);
    // The device's clock is not the host's: what is not known of the offset is shared between both ends.
    let slack = done.saturating_sub(begun).saturating_sub(run.gpu_time.unwrap_or_default());
    let first = begun + slack / 2;
    let steps = work.segment.origins().zip(run.step_starts.iter().zip(&run.step_times));
    for (origins, (&start, &time)) in steps {
        let mut start = first + start;
        let mut note = |group, share: f64| {
            let (segment, time) = (work.at, time.mul_f64(share));
            let note = KernelNote { group, segment, start, time, share, is_aligned: true };
            metadata.notes.kernels.push(note);
            start += time;
        };
        if origins.is_empty() {
            note(None, 1.0);
        }
        let shares: u64 = origins.iter().map(|origin| origin.share).sum();
        for origin in origins {
            note(Some(origin.group), origin.share as f64 / shares.max(1) as f64);
        }
    }
}
