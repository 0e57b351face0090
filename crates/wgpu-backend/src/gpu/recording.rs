//! A fixed list of commands that is replayed run after run.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use super::GpuError;
use super::buffer::Buffer;
use super::device::Shared;
use super::pipeline::{BindGroup, Pipeline};

/// One command. Offsets and sizes are in bytes and multiples of 4.
#[derive(Debug, Clone)]
pub enum Command {
    /// Runs a pipeline. One with a zero in `groups` does nothing.
    Dispatch {
        /// What runs.
        pipeline: Arc<Pipeline>,
        /// On which buffers.
        bind_group: BindGroup,
        /// An offset for each dynamic uniform, in the order of the bindings.
        dynamic_offsets: SmallVec<[u32; 1]>,
        /// Workgroups along x, y and z.
        groups: [u32; 3],
    },
    /// Copies between two different buffers.
    Copy {
        /// From here: a buffer of the device, or of another part of its GPU.
        src: Buffer,
        /// Bytes from its start.
        src_offset: u64,
        /// To here.
        dst: Buffer,
        /// Bytes from its start.
        dst_offset: u64,
        /// How many bytes.
        size: u64,
    },
    /// Sets bytes to zero.
    Clear {
        /// Where.
        buffer: Buffer,
        /// Bytes from its start.
        offset: u64,
        /// How many bytes.
        size: u64,
    },
}

/// A checked list of commands. Consecutive dispatches form one compute pass. It keeps all that it names alive.
#[derive(Debug)]
pub struct Recording {
    commands: Vec<Command>,
    n_dispatches: u32,
    n_copies: u32,
}

/// Pairs of queries that measure spans of time: one for all dispatches, or one for each.
pub(super) struct Spans<'a> {
    pub(super) queries: &'a wgpu::QuerySet,
    pub(super) n: u32,
}

impl Recording {
    /// Checks all commands against the device; those that do nothing are left out.
    pub(super) fn new(shared: &Shared, mut commands: Vec<Command>) -> Result<Recording, GpuError> {
        commands.retain(|command| match command {
            Command::Dispatch { groups, .. } => !groups.contains(&0),
            Command::Copy { size, .. } | Command::Clear { size, .. } => *size > 0,
        });
        let mut recording = Recording { commands, n_dispatches: 0, n_copies: 0 };
        for command in &recording.commands {
            check(shared, command)?;
            match command {
                Command::Dispatch { .. } => recording.n_dispatches += 1,
                Command::Copy { .. } | Command::Clear { .. } => recording.n_copies += 1,
            }
        }
        Ok(recording)
    }

    /// The commands, in order.
    pub fn commands(&self) -> &[Command] {
        &self.commands
    }

    /// How many dispatches there are.
    pub fn n_dispatches(&self) -> u32 {
        self.n_dispatches
    }

    /// How many copies and clears there are.
    pub fn n_copies(&self) -> u32 {
        self.n_copies
    }

    /// Appends the commands to `encoder`. With one span, it reaches from the first dispatch to the last; with
    /// as many as there are dispatches, each is a pass of its own.
    pub(super) fn encode(&self, encoder: &mut wgpu::CommandEncoder, spans: Option<&Spans<'_>>) {
        let each = spans.is_some_and(|spans| spans.n > 1);
        let mut done = 0;
        let mut rest = self.commands.as_slice();
        while let Some(command) = rest.first() {
            let is_dispatch = |c: &&Command| matches!(c, Command::Dispatch { .. });
            let most = if each { 1 } else { rest.len() };
            let n = rest.iter().take(most).take_while(is_dispatch).count();
            let (pass, after) = rest.split_at(n.max(1));
            rest = after;
            if n > 0 {
                let (first, at) = (done == 0, 2 * done);
                done += n as u32;
                let last = done == self.n_dispatches;
                let timestamp_writes = spans.map(|spans| wgpu::ComputePassTimestampWrites {
                    query_set: spans.queries,
                    beginning_of_pass_write_index: (each || first).then_some(at),
                    end_of_pass_write_index: if each { Some(at + 1) } else { last.then_some(1) },
                });
                // wgpu refuses timestamp writes that write none.
                let timestamp_writes = timestamp_writes.filter(|_| each || first || last);
                encode_pass(encoder, pass, timestamp_writes);
            } else {
                encode_copy(encoder, command);
            }
        }
    }
}

fn encode_pass(
    encoder: &mut wgpu::CommandEncoder,
    dispatches: &[Command],
    timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
) {
    let desc = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
    let mut pass = encoder.begin_compute_pass(&desc);
    let mut before: Option<(&Arc<Pipeline>, &BindGroup)> = None;
    for command in dispatches {
        if let Command::Dispatch { pipeline, bind_group, dynamic_offsets, groups: [x, y, z] } =
            command
        {
            if !before.is_some_and(|(other, _)| Arc::ptr_eq(other, pipeline)) {
                pass.set_pipeline(&pipeline.raw);
            }
            let bound = before.is_some_and(|(_, other)| other.same(bind_group));
            if !bound || !dynamic_offsets.is_empty() {
                pass.set_bind_group(0, bind_group.raw(), dynamic_offsets);
            }
            pass.dispatch_workgroups(*x, *y, *z);
            before = Some((pipeline, bind_group));
        }
    }
}

pub(super) fn encode_copy(encoder: &mut wgpu::CommandEncoder, command: &Command) {
    match command {
        Command::Copy { src, src_offset, dst, dst_offset, size } => {
            encoder.copy_buffer_to_buffer(
                src.raw(),
                *src_offset,
                dst.raw(),
                *dst_offset,
                Some(*size),
            );
        }
        Command::Clear { buffer, offset, size } => {
            encoder.clear_buffer(buffer.raw(), *offset, Some(*size));
        }
        Command::Dispatch { .. } => {}
    }
}

pub(super) fn check(shared: &Shared, command: &Command) -> Result<(), GpuError> {
    let whole = |what: &'static str, size: u64| {
        if size.is_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT) {
            Ok(())
        } else {
            Err(GpuError::validation(what, format!("size {size} is not a multiple of 4")))
        }
    };
    match command {
        Command::Dispatch { pipeline, bind_group, dynamic_offsets, groups } => {
            let limits = &shared.info.limits;
            let max = limits.max_compute_workgroups_per_dimension.into();
            for got in groups {
                let limit = "max_compute_workgroups_per_dimension";
                GpuError::check_limit(limit, max, u64::from(*got))?;
            }
            let alignment = limits.min_uniform_buffer_offset_alignment;
            bind_group.check(pipeline, dynamic_offsets, alignment)
        }
        Command::Copy { src, src_offset, dst, dst_offset, size } => {
            whole("copy", *size)?;
            src.check_source("copy", &shared.meter, *src_offset, *size)?;
            dst.check_range("copy", &shared.meter, *dst_offset, *size)?;
            if src.same(dst) {
                return Err(GpuError::validation("copy", "source and destination are one buffer"));
            }
            Ok(())
        }
        Command::Clear { buffer, offset, size } => {
            whole("clear", *size)?;
            buffer.check_range("clear", &shared.meter, *offset, *size)
        }
    }
}

/// One line per command, for example `dispatch "add" [4, 1, 1]` or `copy 64 bytes 0 -> 128`.
impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for command in &self.commands {
            match command {
                Command::Dispatch { pipeline, dynamic_offsets, groups, .. } => {
                    write!(f, "dispatch {:?} {groups:?}", pipeline.label())?;
                    if !dynamic_offsets.is_empty() {
                        write!(f, " offsets {dynamic_offsets:?}")?;
                    }
                    writeln!(f)?;
                }
                Command::Copy { src_offset, dst_offset, size, .. } => {
                    writeln!(f, "copy {size} bytes {src_offset} -> {dst_offset}")?;
                }
                Command::Clear { offset, size, .. } => {
                    writeln!(f, "clear {size} bytes at {offset}")?;
                }
            }
        }
        Ok(())
    }
}
