//! How much memory kernels take for what heads make and tails take, which never is a value of the program.

use convoke_compiler::{Group, Head, Kernel, Program, Tail};
use convoke_graph_core::DType;

use crate::matmul;
use crate::operand::WHOLE_BYTES;
use crate::pool::FINISHED_BYTES;

/// The most bytes that a group takes at one time on so many threads, for operands that its heads make and the result that
/// its tail takes.
pub fn scratch_bytes(program: &Program, group: &Group, n_threads: usize) -> u64 {
    let all = |whole: usize, of_each: usize| whole.min(of_each.saturating_mul(n_threads)) as u64;
    let head = |head: &Head| {
        let n_bytes = program.value(head.value).n_bytes();
        all(n_bytes, made_by_each(program, group, head))
    };
    let tail = group.tail.as_ref().map_or(0, |tail| {
        let n_bytes = program.value(tail.result).n_bytes();
        all(n_bytes, finished_by_each(program, group, tail, n_threads))
    });
    group.heads.iter().map(head).fold(tail, u64::saturating_add)
}

/// What each thread makes of an operand at one time.
fn made_by_each(program: &Program, group: &Group, head: &Head) -> usize {
    let value = program.value(head.value);
    let n_bytes = value.n_bytes();
    match (&group.kernel, head.operand) {
        _ if !matches!(value.dtype, DType::F32 | DType::F64) => n_bytes,
        (Kernel::Matmul, _) => matmul::made_bytes(program, group, head),
        (Kernel::Conv2d(g), 0) | (Kernel::Conv2dInput(g), 1) | (Kernel::Conv2dFilter(g), _) => {
            n_bytes / g.batch.max(1)
        }
        _ => n_bytes,
    }
}

/// What each thread finishes of a result at one time.
fn finished_by_each(program: &Program, group: &Group, tail: &Tail, n_threads: usize) -> usize {
    let value = program.value(tail.result);
    let n_bytes = value.n_bytes();
    let by_blocks = tail.layout.is_packed() && matches!(value.dtype, DType::F32 | DType::F64);
    match &group.kernel {
        _ if !by_blocks => n_bytes,
        Kernel::Conv2d(g) | Kernel::Conv2dInput(g) => n_bytes / g.batch.max(1),
        Kernel::Pool { geometry, .. } => (n_bytes / geometry.batch.max(1)).max(FINISHED_BYTES),
        Kernel::Matmul if n_bytes > WHOLE_BYTES => {
            matmul::finished_bytes(program, group, n_threads)
        }
        _ => n_bytes,
    }
}
