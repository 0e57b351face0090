//! Graphs that are compiled and run here, kernel by kernel.

use convoke_compiler::{
    CompileOptions, Group, GroupLimits, HOST, InputFact, Places, Plan, Signature, Source, Unplaced,
    compile,
};
use convoke_graph_core::{AlignedBytes, DType, HostTensor, Tensor};

use super::shape;
use crate::{CpuKernel, Threads};

/// Numbers without a pattern, some of them equal.
pub(super) fn noise(dtype: DType, dims: &[usize], seed: u64) -> HostTensor {
    let shape = shape(dims);
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) % 33) as f64 / 8.0 - 2.0
    };
    let xs: Vec<f64> = (0..shape.len()).map(|_| next()).collect();
    HostTensor::from_f64s(dtype, shape, &xs).unwrap()
}

/// Compiled and run.
pub(super) fn run(y: &Tensor, feeds: &[(&Tensor, &HostTensor)], threads: &Threads) -> HostTensor {
    run_grouped(y, feeds, threads, GroupLimits::default()).0
}

/// Compiled, with groups that are within `limits`, and run; and what the groups are.
pub(super) fn run_grouped(
    y: &Tensor,
    feeds: &[(&Tensor, &HostTensor)],
    threads: &Threads,
    limits: GroupLimits,
) -> (HostTensor, Vec<Group>) {
    let feeds_of = feeds.iter().map(|(tensor, _)| tensor.output()).collect();
    let signature =
        Signature { fetches: vec![y.output()], feeds: feeds_of, ..Signature::default() };
    let plan = Plan::new(&y.graph().snapshot(), signature).unwrap();
    let inputs: Vec<InputFact> = feeds
        .iter()
        .map(|(_, value)| InputFact { shape: value.shape().clone(), contents: None, donated: None })
        .collect();
    let host = |unplaced: &Unplaced<'_>| {
        let variables = unplaced.variables().into_iter().map(|v| (v, HOST)).collect();
        let groups = vec![HOST; unplaced.program.groups.len()];
        Ok(Places { groups, variables, ..Places::default() })
    };
    let options = CompileOptions { limits, simplify: true, place: &host };
    let program = compile(&plan, &inputs, &options).unwrap();
    let mut values: Vec<HostTensor> = program
        .values
        .iter()
        .map(|value| match &value.source {
            Source::Feed(output) => {
                let fed = feeds.iter().find(|(tensor, _)| tensor.output() == *output);
                fed.unwrap().1.clone()
            }
            Source::Constant(tensor) => tensor.clone(),
            _ => HostTensor::zeros(value.dtype, value.shape.clone()).unwrap(),
        })
        .collect();
    for group in &program.groups {
        let kernel = CpuKernel::compile(&program, group).unwrap();
        let inputs: Vec<HostTensor> =
            group.inputs.iter().map(|input| values[input.value.0 as usize].clone()).collect();
        let inputs: Vec<&[u8]> = inputs.iter().map(HostTensor::bytes).collect();
        let mut outputs: Vec<AlignedBytes> = Vec::new();
        for &id in &group.outputs {
            let n_bytes = program.value(id).n_bytes();
            let mut bytes = AlignedBytes::zeroed(n_bytes).unwrap();
            bytes.fill(0xAB);
            outputs.push(bytes);
        }
        let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(|o| &mut **o).collect();
        kernel.run(&inputs, &mut slices, threads).unwrap();
        for (&id, bytes) in group.outputs.iter().zip(outputs) {
            let value = program.value(id);
            let tensor = HostTensor::from_bytes(value.dtype, value.shape.clone(), bytes);
            values[id.0 as usize] = tensor.unwrap();
        }
    }
    let fetch = &program.fetches[0];
    let y = values[fetch.value.0 as usize].reshaped(fetch.layout.shape().clone()).unwrap();
    (y, program.groups)
}
