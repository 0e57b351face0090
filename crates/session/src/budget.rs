//! Memory budgets: a program that takes more than there may be computes what is cheap again instead of keeping it,
//! and is refused before it runs if that does not suffice.

use convoke_compiler::memory::host_memory;
use convoke_compiler::{HOST, Program, live_bytes, recompute};
#[cfg(feature = "gpu")]
use convoke_compiler::{Source, ValueId};
use convoke_graph_core::{Error, ErrorKind, Result};

use crate::devices::Gpus;

/// Makes a program fit the host's budget, and those of GPUs as far as that can be told before it is compiled.
pub(crate) fn fit(program: &mut Program, host_budget: u64, gpus: &Gpus) -> Result<()> {
    let on_host = |program: &Program| host_memory(program).n_bytes();
    for at in 0..program.segments.len() {
        if program.segments[at].device == HOST {
            recompute(program, at, |program| {
                live_bytes(program, at) <= host_budget && on_host(program) <= host_budget
            });
        } else {
            fit_gpu(program, at, gpus)?;
        }
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

/// A GPU itself refuses what is too large for its budget.
#[cfg(feature = "gpu")]
fn fit_gpu(program: &mut Program, at: usize, gpus: &Gpus) -> Result<()> {
    let segment = &program.segments[at];
    let (gpu, _) = gpus.get(segment.device.0 as usize)?;
    let Some(free) = gpu.free_bytes() else { return Ok(()) };
    let groups = segment.groups.iter().flat_map(|&group| &program.groups[group as usize].inputs);
    let mut constants: Vec<ValueId> = groups.map(|input| input.value).collect();
    constants.retain(|&id| matches!(program.value(id).source, Source::Constant(_)));
    constants.sort_unstable();
    constants.dedup();
    let sent = segment.uploads.iter().chain(&segment.downloads).chain(&segment.residents);
    let sent = sent.chain(&constants);
    let bytes = sent.map(|&id| program.value(id).n_bytes() as u64).fold(0, u64::saturating_add);
    // All that crosses is on the device and in staging memory.
    let room = free.saturating_sub(bytes.saturating_mul(2));
    recompute(program, at, |program| live_bytes(program, at) <= room);
    Ok(())
}

#[cfg(not(feature = "gpu"))]
fn fit_gpu(_: &mut Program, _: usize, _: &Gpus) -> Result<()> {
    Ok(())
}
