//! What of a segment belongs to one run at a time: slabs, bind groups and the recording; and the run itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use convoke_compiler::ValueId;
use convoke_graph_core::{Error, OpError};
use convoke_placement::STATUS_BYTES;
use smallvec::SmallVec;

use super::compile::{GpuSegment, Home};
use super::error::to_error;
use super::pool::Leased;
use super::resident::GpuTensor;
use super::step::Step;
use crate::gpu::{
    BindGroup, BindingSlice, Buffer, BufferCopy, BufferUse, Command, Download, Pending, Pipeline,
    Recording, Submission, Timestamps, Upload,
};

/// Buffers and commands for one run of a [`GpuSegment`]. Lease it, run it, give it back.
#[derive(Debug)]
pub struct GpuInstance {
    slabs: Vec<Buffer>,
    uploads: Vec<Buffer>,
    status: Buffer,
    recorded: Mutex<Option<Recorded>>,
}

/// What was recorded, for the donated buffers that came last. It keeps them: no more than one run's.
#[derive(Debug)]
struct Recorded {
    donated: SmallVec<[Buffer; 2]>,
    recording: Arc<Recording>,
}

/// How a run is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// When to give up waiting.
    pub deadline: Option<Instant>,
    /// What to measure on the device.
    pub timestamps: Timestamps,
}

/// Where a run finds a value that its device has already, or another part of its GPU.
#[derive(Debug, Clone, Copy)]
pub enum Carried<'a> {
    /// In an earlier segment's instance, not used by another run since.
    Of(&'a GpuSegment, &'a GpuInstance),
    /// In the memory of a variable.
    Variable(&'a Buffer),
}

/// What a segment is sent: a value of its uploads.
#[derive(Debug, Clone, Copy)]
pub enum Sent<'a> {
    /// From the host.
    Bytes(&'a [u8]),
    /// From a tensor of its device, or of another part of its GPU.
    Tensor(&'a GpuTensor),
}

impl Sent<'_> {
    /// Bytes that come from the host.
    pub fn host_bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Tensor(_) => 0,
        }
    }
}

/// What a run of a segment is given.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work<'a> {
    /// Its uploads, in order.
    pub uploads: &'a [Sent<'a>],
    /// Where each value is that it takes from earlier segments, and then each variable that it borrows.
    pub carried: &'a [Carried<'a>],
    /// Where each value goes that stays on the device.
    pub residents: &'a [GpuTensor],
    /// For each of the segment's donations, the tensor that is read and overwritten, which nobody else reads.
    pub donated: &'a [GpuTensor],
}

/// A run that the device works on.
#[derive(Debug)]
pub struct Running<'a> {
    segment: &'a GpuSegment,
    pending: Pending,
}

/// What a run brought back and what it took.
#[derive(Debug, Default)]
pub struct GpuRun {
    /// The bytes of each download of the segment, in order, unless they were only shown.
    pub downloads: Vec<Vec<u8>>,
    /// Bytes brought to the device.
    pub upload_bytes: u64,
    /// Bytes brought back.
    pub download_bytes: u64,
    /// Dispatches run.
    pub dispatches: u32,
    /// Queue submissions: 1, or 0 if there was nothing to do.
    pub submissions: u32,
    /// Time on the device, if it was asked for and the device can tell.
    pub gpu_time: Option<Duration>,
    /// The time of each step of [`GpuSegment::origins`], if it was asked for and the device can tell.
    pub step_times: Vec<Duration>,
    /// When each of these steps began, from the beginning of the first.
    pub step_starts: Vec<Duration>,
    /// Time of the host for copying what went to the device.
    pub copying: Duration,
    /// From when until when the device's thread recorded and submitted.
    pub recorded: Option<[Instant; 2]>,
}

/// An instance for one run. Dropping it gives it back.
pub type Lease<'a> = Leased<'a, GpuInstance>;

impl GpuSegment {
    /// Buffers, bind groups and the recording for one run at a time. See [`GpuSegment::lease`].
    ///
    /// # Errors
    /// No memory, a lost device.
    pub fn instance(&self) -> Result<GpuInstance, Error> {
        let make = |label: &'static str| {
            move |&n_bytes: &u64| self.gpu.buffer(label, n_bytes, BufferUse::Storage)
        };
        let slabs: Result<Vec<Buffer>, _> = self.plan.slabs.iter().map(make("slab")).collect();
        let uploads: Result<_, _> = self.upload_arenas.iter().map(make("uploads")).collect();
        let status = make("status")(&STATUS_BYTES);
        let instance = GpuInstance {
            slabs: slabs.map_err(|e| to_error(&e))?,
            uploads: uploads.map_err(|e| to_error(&e))?,
            status: status.map_err(|e| to_error(&e))?,
            recorded: Mutex::default(),
        };
        if self.donated.is_empty() {
            self.recording(&instance, &[])?;
        }
        Ok(instance)
    }

    /// The recording for these tensors, made now if there is none.
    fn recording(
        &self,
        instance: &GpuInstance,
        donated: &[GpuTensor],
    ) -> Result<Arc<Recording>, Error> {
        let sizes = donated.iter().map(GpuTensor::n_bytes);
        if !sizes.eq(self.donated.iter().copied()) {
            let expected = &self.donated;
            return Err(Error::invalid(format!("expected donated tensors of {expected:?} bytes")));
        }
        let mut recorded = instance.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*recorded {
            let mut pairs = last.donated.iter().zip(donated);
            if pairs.all(|(buffer, tensor)| buffer.same(tensor.buffer())) {
                return Ok(last.recording.clone());
            }
        }
        let recording = Recorder { at: self.slabs(instance, donated), segment: self }.record()?;
        let donated = donated.iter().map(|tensor| tensor.buffer().clone()).collect();
        *recorded = Some(Recorded { donated, recording: recording.clone() });
        Ok(recording)
    }

    fn slabs<'a>(&'a self, instance: &'a GpuInstance, donated: &'a [GpuTensor]) -> Slabs<'a> {
        let GpuInstance { slabs, uploads, status, .. } = instance;
        Slabs { segment: self, slabs, uploads, status, donated }
    }

    /// An instance that nobody uses, or a new one; waits while there are as many as may be, and asks `check` again and
    /// again meanwhile.
    ///
    /// # Errors
    /// As [`Self::instance`]; those of `check`.
    pub fn lease(&self, check: &dyn Fn() -> Result<(), Error>) -> Result<Lease<'_>, Error> {
        self.pool.lease(|| self.instance(), check)
    }

    /// Runs a segment that takes nothing from others, and waits: `uploads` are the bytes of its uploads, in order.
    ///
    /// # Errors
    /// As [`Self::submit`] and [`Running::wait_with`].
    pub fn run(&self, instance: &GpuInstance, uploads: &[&[u8]]) -> Result<GpuRun, Error> {
        let uploads: Vec<Sent<'_>> = uploads.iter().copied().map(Sent::Bytes).collect();
        let work = Work { uploads: &uploads, ..Work::default() };
        let running = self.submit(instance, &work, &RunOptions::default())?;
        let mut downloads = Vec::new();
        let mut run = running.wait_with(&mut |_, bytes| downloads.push(bytes.to_vec()))?;
        run.downloads = downloads;
        Ok(run)
    }

    /// Starts a run. The instance may be used again once this returns, unless a later segment takes values from
    /// it: the device goes through runs in order.
    ///
    /// # Errors
    /// `InvalidArgument` for other values than the segment has, `DeadlineExceeded`, no memory, a lost device.
    pub fn submit(
        &self,
        instance: &GpuInstance,
        work: &Work<'_>,
        options: &RunOptions,
    ) -> Result<Running<'_>, Error> {
        let mut copies = self.copies_of(instance, work.carried)?;
        let uploads = self.uploads_of(instance, work.uploads, &mut copies)?;
        let copies_after = self.residents_of(instance, work.residents)?;
        let recording = self.recording(instance, work.donated)?;
        let mut wanted: SmallVec<[Download<'_>; 8]> = SmallVec::new();
        let at = self.slabs(instance, work.donated);
        for &(home, size) in &self.downloads {
            let (src, offset) = at.buffer(home)?;
            wanted.push(Download { src, offset, size });
        }
        if self.schedule.can_fail {
            wanted.push(Download { src: &instance.status, offset: 0, size: STATUS_BYTES });
        }
        let submission = Submission {
            uploads: &uploads,
            copies: &copies,
            copies_after: &copies_after,
            recording: Some(&recording),
            downloads: &wanted,
            deadline: options.deadline,
            timestamps: options.timestamps,
        };
        let pending = self.gpu.submit(&submission).map_err(|e| to_error(&e))?;
        Ok(Running { segment: self, pending })
    }

    /// The copies that bring what earlier segments and variables elsewhere have.
    fn copies_of<'a>(
        &'a self,
        instance: &'a GpuInstance,
        carried: &[Carried<'a>],
    ) -> Result<SmallVec<[BufferCopy<'a>; 4]>, Error> {
        if carried.len() != self.carried.len() {
            let (expected, found) = (self.carried.len(), carried.len());
            return Err(Error::invalid(format!("expected {expected} carried values, got {found}")));
        }
        let at = self.slabs(instance, &[]);
        let copy = |(&(id, home, n_bytes), from): (&(ValueId, Home, u64), &Carried<'a>)| {
            let (src, src_offset) = match *from {
                Carried::Of(segment, instance) => {
                    let kept = segment.kept.get(&id).copied();
                    let kept = kept.ok_or_else(|| Error::invalid(format!("{id} was not kept")))?;
                    segment.slabs(instance, &[]).buffer(kept)?
                }
                Carried::Variable(buffer) => (buffer, 0),
            };
            let (dst, dst_offset) = at.buffer(home)?;
            Ok(BufferCopy { src, src_offset, dst, dst_offset, size: n_bytes })
        };
        self.carried.iter().zip(carried).map(copy).collect()
    }

    /// The copies to what stays on the device.
    fn residents_of<'a>(
        &'a self,
        instance: &'a GpuInstance,
        residents: &'a [GpuTensor],
    ) -> Result<SmallVec<[BufferCopy<'a>; 4]>, Error> {
        if residents.len() != self.residents.len() {
            let (expected, found) = (self.residents.len(), residents.len());
            return Err(Error::invalid(format!("expected {expected} tensors, got {found}")));
        }
        let at = self.slabs(instance, &[]);
        let copy = |(&(home, n_bytes), to): (&(Home, u64), &'a GpuTensor)| {
            if to.n_bytes() != n_bytes {
                let found = to.n_bytes();
                return Err(Error::invalid(format!(
                    "expected a tensor of {n_bytes} bytes, got {found}"
                )));
            }
            let (src, src_offset) = at.buffer(home)?;
            Ok(BufferCopy { src, src_offset, dst: to.buffer(), dst_offset: 0, size: n_bytes })
        };
        self.residents.iter().zip(residents).map(copy).collect()
    }

    /// The error that a status word stands for, if it is set.
    fn out_of_range(&self, status: &[u8; STATUS_BYTES as usize]) -> Option<Error> {
        let word = |i: usize| {
            let bytes = status.get(4 * i..4 * i + 4).and_then(|bytes| bytes.first_chunk());
            bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        let [set, group, position, index, size] = [0, 1, 2, 3, 4].map(word);
        if set == 0 {
            return None;
        }
        let (index, position) = (i64::from(index as i32), position as usize);
        let error = Error::from(OpError::Index { index, position, size: size as usize });
        Some(match self.names.get(group as usize) {
            Some(name) => error.with_node(&**name),
            None => error,
        })
    }

    /// Checks the uploads, and says where they go. Those from the device are `copies`.
    fn uploads_of<'a>(
        &self,
        instance: &'a GpuInstance,
        sent: &[Sent<'a>],
        copies: &mut SmallVec<[BufferCopy<'a>; 4]>,
    ) -> Result<SmallVec<[Upload<'a>; 8]>, Error> {
        if sent.len() != self.uploads.len() {
            let (expected, found) = (self.uploads.len(), sent.len());
            return Err(Error::invalid(format!("expected {expected} uploads, got {found}")));
        }
        let mut uploads = SmallVec::new();
        for ((&(id, home, n_bytes), shape), sent) in self.uploads.iter().zip(&self.shapes).zip(sent)
        {
            let found = match sent {
                Sent::Bytes(bytes) => bytes.len() as u64,
                Sent::Tensor(tensor) => tensor.n_bytes(),
            };
            if found != n_bytes {
                return Err(Error::invalid(format!(
                    "expected {n_bytes} bytes for {id} of shape {shape}, got {found}"
                )));
            }
            if let Home::Upload(arena, offset) = home
                && let Some(dst) = instance.uploads.get(arena)
            {
                match *sent {
                    Sent::Bytes(bytes) => uploads.push(Upload { bytes, dst, offset }),
                    Sent::Tensor(tensor) => {
                        let (src, size) = (tensor.buffer(), n_bytes);
                        copies.push(BufferCopy {
                            src,
                            src_offset: 0,
                            dst,
                            dst_offset: offset,
                            size,
                        });
                    }
                }
            }
        }
        Ok(uploads)
    }
}

impl Running<'_> {
    /// Waits for the end, and shows `visit` the index and the bytes of each of the segment's downloads, in
    /// order. What it saw counts only if this answers `Ok`.
    ///
    /// # Errors
    /// `InvalidArgument` for an index in the data that is out of range (no variable has changed then),
    /// `DeadlineExceeded`, a lost device.
    pub fn wait_with(self, visit: &mut dyn FnMut(usize, &[u8])) -> Result<GpuRun, Error> {
        let Running { segment, pending } = self;
        let mut status = [0; STATUS_BYTES as usize];
        let output = pending.wait_with(&mut |index, bytes| {
            if index < segment.downloads.len() {
                visit(index, bytes);
            } else if let Some(bytes) = bytes.first_chunk() {
                status = *bytes;
            }
        });
        let output = output.map_err(|e| to_error(&e))?;
        if let Some(error) = segment.out_of_range(&status) {
            return Err(error);
        }
        Ok(GpuRun {
            downloads: Vec::new(),
            upload_bytes: output.upload_bytes,
            download_bytes: output.download_bytes,
            dispatches: output.dispatches,
            submissions: output.submissions,
            gpu_time: output.gpu_time,
            step_times: output.dispatch_times,
            step_starts: output.dispatch_starts,
            copying: output.copying,
            recorded: output.recorded,
        })
    }
}

/// Records a run.
struct Recorder<'a> {
    segment: &'a GpuSegment,
    at: Slabs<'a>,
}

/// Finds buffers.
struct Slabs<'a> {
    segment: &'a GpuSegment,
    slabs: &'a [Buffer],
    uploads: &'a [Buffer],
    status: &'a Buffer,
    donated: &'a [GpuTensor],
}

impl<'a> Slabs<'a> {
    fn buffer(&self, home: Home) -> Result<(&'a Buffer, u64), Error> {
        let found = match home {
            Home::Slab(slab, offset) => self.slabs.get(slab).map(|buffer| (buffer, offset)),
            Home::Upload(arena, offset) => self.uploads.get(arena).map(|buffer| (buffer, offset)),
            Home::Constant(arena, offset) => {
                self.segment.constants.get(arena).map(|buffer| (buffer, offset))
            }
            Home::Variable(node) => self.segment.variables.get(&node).map(|buffer| (buffer, 0)),
            Home::Donated(k) => self.donated.get(k).map(|tensor| (tensor.buffer(), 0)),
            Home::Status => Some((self.status, 0)),
        };
        found.ok_or_else(|| Error::internal(format!("{home:?} has no buffer")))
    }
}

impl Recorder<'_> {
    /// The recording: the status word cleared, snapshots, then all steps.
    fn record(&self) -> Result<Arc<Recording>, Error> {
        let Recorder { segment, at } = self;
        let mut commands = Vec::with_capacity(segment.schedule.steps.len() + 1);
        if segment.schedule.can_fail {
            let size = STATUS_BYTES;
            commands.push(Command::Clear { buffer: at.status.clone(), offset: 0, size });
        }
        for &(from, to) in &segment.schedule.snapshots {
            let (src, src_offset) = at.buffer(segment.home(from)?)?;
            let (dst, dst_offset) = at.buffer(segment.home(to)?)?;
            let size = segment.sizes.get(&to).copied().unwrap_or(0).next_multiple_of(4);
            let (src, dst) = (src.clone(), dst.clone());
            commands.push(Command::Copy { src, src_offset, dst, dst_offset, size });
        }
        let steps = segment.schedule.steps.iter().zip(&segment.pipelines);
        for (((_, step), pipeline), &params) in steps.zip(&segment.param_places) {
            let bind_group = self.bind(step, pipeline, params)?;
            commands.push(Command::Dispatch {
                pipeline: pipeline.clone(),
                bind_group,
                dynamic_offsets: SmallVec::new(),
                groups: step.groups,
            });
        }
        segment.gpu.recording(commands).map_err(|e| to_error(&e))
    }

    fn bind(
        &self,
        step: &Step,
        pipeline: &Pipeline,
        params: (u64, u64),
    ) -> Result<BindGroup, Error> {
        let segment = self.segment;
        let mut slices: SmallVec<[BindingSlice<'_>; 9]> = SmallVec::new();
        for &place in &step.places {
            let (buffer, offset) = self.at.buffer(segment.home(place)?)?;
            let size = segment.sizes.get(&place).copied().unwrap_or(0);
            slices.push(BindingSlice { buffer, offset, size });
        }
        let (offset, size) = params;
        slices.push(BindingSlice { buffer: &segment.params, offset, size });
        segment.gpu.bind_group(pipeline, &slices).map_err(|e| to_error(&e))
    }
}
