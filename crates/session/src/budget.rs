//! Memory budgets: a program that takes more than there may be computes what is cheap again instead of keeping it,
//! and is refused before it runs if that does not suffice.

use convoke_compiler::memory::host_memory;
use convoke_compiler::{DeviceIndex, HOST, Program, ValueId, live_bytes, recompute};
#[cfg(feature = "gpu")]
use convoke_compiler::{Segment, Source};
use convoke_cpu_backend::scratch_bytes;
#[cfg(feature = "gpu")]
use convoke_graph_core::NodeId;
use convoke_graph_core::{Error, ErrorKind, Result};
#[cfg(feature = "gpu")]
use convoke_placement::Staged;
#[cfg(feature = "gpu")]
use convoke_wgpu_backend::GpuVariables;
use rustc_hash::FxHashMap;

use crate::devices::Gpus;

/// Makes a program fit the host's budget on so many threads, and those of GPUs as far as that can be told before it is
/// compiled. `homes` are the fed values that GPUs have.
pub(crate) fn fit(
    program: &mut Program,
    (host_budget, n_threads): (u64, usize),
    gpus: &Gpus,
    homes: &FxHashMap<ValueId, DeviceIndex>,
) -> Result<()> {
    let on_host = |program: &Program| {
        host_memory(program).n_bytes().saturating_add(within_groups(program, n_threads))
    };
    let mut devices: Vec<DeviceIndex> = Vec::new();
    for at in 0..program.segments.len() {
        let device = program.segments[at].device;
        if device == HOST {
            recompute(program, at, |program| {
                live_bytes(program, at) <= host_budget && on_host(program) <= host_budget
            });
        } else if !devices.contains(&device) {
            devices.push(device);
        }
    }
    for device in devices {
        fit_gpu(program, device, gpus, homes)?;
    }
    let needed = on_host(program);
    if needed <= host_budget {
        return Ok(());
    }
    let message = format!(
        "the run needs {needed} bytes of host memory, and its budget is {host_budget}; use smaller tensors \
         or batches, or raise SessionOptions::host_budget_bytes"
    );
    Err(Error::new(ErrorKind::ResourceExhausted, message))
}

/// What the operands that a group of the host makes for itself take, and the results that it goes on with, at most at one time.
fn within_groups(program: &Program, n_threads: usize) -> u64 {
    let own = program.segments.iter().filter(|segment| segment.device == HOST);
    let groups = own.flat_map(|segment| &segment.groups);
    let of = |&group: &u32| scratch_bytes(program, &program.groups[group as usize], n_threads);
    groups.map(of).max().unwrap_or(0)
}

/// A GPU itself refuses what is too large for its budget.
#[cfg(feature = "gpu")]
fn fit_gpu(
    program: &mut Program,
    device: DeviceIndex,
    gpus: &Gpus,
    homes: &FxHashMap<ValueId, DeviceIndex>,
) -> Result<()> {
    let (gpu, variables) = gpus.get(device.0 as usize)?;
    let Some(free) = gpu.free_bytes() else { return Ok(()) };
    let own = program.segments.iter().filter(|segment| segment.device == device);
    // A segment that finds no staging memory waits for others.
    let queues = gpus.queues();
    // What the device's queue copies is not staged.
    let is_there = |id: &ValueId| {
        let home = homes.get(id).map(|home| home.0 as usize);
        home.is_some_and(|home| queues.of(home) == queues.of(device.0 as usize))
    };
    let staged = own.clone().map(|segment| staged_bytes(program, segment, &is_there)).max();
    let fixed = own.map(|segment| fixed_bytes(program, segment));
    let fixed = fixed.fold(staged.unwrap_or(0), u64::saturating_add);
    let room = free.saturating_sub(fixed.saturating_add(lacking(program, device, &variables)));
    let segments = 0..program.segments.len();
    let own: Vec<usize> = segments.filter(|&at| program.segments[at].device == device).collect();
    let mut live: Vec<u64> = own.iter().map(|&at| live_bytes(program, at)).collect();
    for (i, &at) in own.iter().enumerate() {
        let all = live.iter().copied().fold(0, u64::saturating_add);
        if all <= room {
            break;
        }
        let room = room.saturating_sub(all.saturating_sub(live[i]));
        recompute(program, at, |program| live_bytes(program, at) <= room);
        live[i] = live_bytes(program, at);
    }
    Ok(())
}

/// What a segment keeps besides what it computes: its constants, what it is sent and takes from others, what stays, and
/// variables as they were before it stores into them.
#[cfg(feature = "gpu")]
fn fixed_bytes(program: &Program, segment: &Segment) -> u64 {
    let groups = segment.groups.iter().flat_map(|&group| &program.groups[group as usize].inputs);
    let stored = segment.commits.iter().map(|commit| commit.value);
    let mut constants: Vec<ValueId> = groups.map(|input| input.value).chain(stored).collect();
    constants.retain(|&id| matches!(program.value(id).source, Source::Constant(_)));
    constants.sort_unstable();
    constants.dedup();
    let carried = segment.carried.iter().map(|(id, _)| id).chain(&segment.borrowed);
    let is_variable = |id: &&ValueId| matches!(program.value(**id).source, Source::Variable(_));
    let before = segment.kept.iter().filter(is_variable);
    let all = segment.uploads.iter().chain(carried).chain(&segment.residents).chain(&constants);
    let all = all.chain(before);
    all.map(|&id| program.value(id).n_bytes() as u64).fold(0, u64::saturating_add)
}

/// The staging memory through which a segment's tensors cross, but for those that its queue has.
#[cfg(feature = "gpu")]
fn staged_bytes(program: &Program, segment: &Segment, is_there: &dyn Fn(&ValueId) -> bool) -> u64 {
    let n_bytes = |id: &ValueId| program.value(*id).n_bytes() as u64;
    let mut staged = Staged::default();
    let sent = segment.uploads.iter().filter(|id| !is_there(id));
    sent.for_each(|id| staged.send(n_bytes(id)));
    segment.downloads.iter().for_each(|id| staged.receive(n_bytes(id)));
    if segment.groups.iter().any(|&group| program.groups[group as usize].can_fail()) {
        staged.receive_status();
    }
    staged.bytes()
}

/// What the variables of a program take that have no memory on their device yet.
#[cfg(feature = "gpu")]
fn lacking(program: &Program, device: DeviceIndex, variables: &GpuVariables) -> u64 {
    let lacks = |variable: NodeId| {
        let at = program.variables.binary_search_by_key(&variable, |(own, _)| *own);
        at.is_ok_and(|at| program.variables[at].1 == device) && !variables.contains(variable)
    };
    let read = (0u32..).map(ValueId).zip(&program.values);
    let read = read.filter_map(|(id, value)| match value.source {
        Source::Variable(variable) => Some((variable, id)),
        _ => None,
    });
    let commits = program.segments.iter().flat_map(|segment| &segment.commits);
    let used = read.chain(commits.map(|commit| (commit.variable, commit.value)));
    let sizes: FxHashMap<NodeId, u64> = used
        .filter(|(variable, _)| lacks(*variable))
        .map(|(variable, id)| (variable, program.value(id).n_bytes() as u64))
        .collect();
    sizes.into_values().fold(0, u64::saturating_add)
}

#[cfg(not(feature = "gpu"))]
fn fit_gpu(
    _: &mut Program,
    _: DeviceIndex,
    _: &Gpus,
    _: &FxHashMap<ValueId, DeviceIndex>,
) -> Result<()> {
    Ok(())
}
