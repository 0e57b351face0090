//! Kernels against expected values that are computed element by element, in `f64` or `i128`.

mod blocks;
mod elementwise;
mod graphs;
mod images;
mod math;
mod matmul;
mod moves;
mod random;
mod reduce;
mod threads;

use convoke_compiler::{Asked, Group, Kernel, Operand, Program, Source, Value, ValueId};
use convoke_graph_core::{AlignedBytes, DType, HostTensor, Layout, Result, Shape};

use crate::{CpuKernel, Threads, supports};

fn shape(dims: &[usize]) -> Shape {
    Shape::new(dims).unwrap()
}

/// A program of one group, and the values of its inputs.
struct Case {
    program: Program,
    group: Group,
    inputs: Vec<HostTensor>,
}

impl Case {
    fn new(kernel: Kernel, inputs: Vec<(HostTensor, Layout)>, outputs: &[(DType, Shape)]) -> Self {
        let mut values = Vec::new();
        let mut add = |dtype, shape: &Shape| {
            values.push(Value { dtype, shape: shape.clone(), source: Source::Computed });
            ValueId(values.len() as u32 - 1)
        };
        let operands = inputs.iter().map(|(tensor, layout)| {
            let value = add(tensor.dtype(), tensor.shape());
            Operand { value, layout: layout.clone() }
        });
        let operands = operands.collect();
        let outputs = outputs.iter().map(|(dtype, shape)| add(*dtype, shape)).collect();
        let group = Group::plain(kernel, (operands, outputs), Vec::new(), Asked::default());
        let program = Program {
            values,
            groups: Vec::new(),
            segments: Vec::new(),
            fetches: Vec::new(),
            residents: Vec::new(),
            variables: Vec::new(),
            optional: Vec::new(),
            random: Vec::new(),
            apart: Vec::new(),
            late: Vec::new(),
        };
        let inputs = inputs.into_iter().map(|(tensor, _)| tensor).collect();
        Self { program, group, inputs }
    }

    /// Runs with outputs that hold garbage before.
    fn try_run(&self, threads: &Threads) -> Result<Vec<HostTensor>> {
        let kernel = CpuKernel::compile(&self.program, &self.group)?;
        let inputs: Vec<&[u8]> = self.inputs.iter().map(HostTensor::bytes).collect();
        let values = || self.group.outputs.iter().map(|&id| self.program.value(id));
        let mut outputs: Vec<AlignedBytes> =
            values().map(|v| AlignedBytes::zeroed(v.n_bytes()).unwrap()).collect();
        let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(|o| &mut **o).collect();
        slices.iter_mut().for_each(|s| s.fill(0xAB));
        kernel.run(&inputs, &mut slices, threads)?;
        values()
            .zip(outputs)
            .map(|(v, o)| HostTensor::from_bytes(v.dtype, v.shape.clone(), o))
            .collect()
    }

    /// The first output, which must not depend on the number of threads.
    #[track_caller]
    fn run(&self) -> HostTensor {
        assert!(supports(&self.program, &self.group));
        let one = self.try_run(&Threads::one()).unwrap().remove(0);
        if one.len() > 10_000 {
            for n in [2, 4] {
                let many = self.try_run(&Threads::new(n).unwrap()).unwrap().remove(0);
                assert!(one == many, "{n} threads give other bits than one");
            }
        }
        one
    }

    /// As [`Self::run`], with threads for small outputs of large inputs too.
    #[track_caller]
    fn run_with_threads(&self) -> HostTensor {
        let one = self.run();
        for n in [2, 4] {
            let many = self.try_run(&Threads::new(n).unwrap()).unwrap().remove(0);
            assert!(one == many, "{n} threads give other bits than one");
        }
        one
    }
}

/// Layouts that see `dims` in buffers: with their lengths.
fn layouts(dims: &[usize]) -> Vec<(usize, Layout)> {
    let len = shape(dims).len();
    let packed = Layout::packed(shape(dims));
    let mut all = vec![(len, packed.clone())];
    let rank = dims.len();
    if rank == 0 || len == 0 {
        return all;
    }
    let reversed: Vec<usize> = dims.iter().rev().copied().collect();
    let axes: Vec<usize> = (0..rank).rev().collect();
    all.push((len, Layout::packed(shape(&reversed)).permute(&axes).unwrap()));
    if rank > 2 {
        let mut swapped = dims.to_vec();
        swapped.swap(rank - 2, rank - 1);
        let mut axes: Vec<usize> = (0..rank).collect();
        axes.swap(rank - 2, rank - 1);
        all.push((len, Layout::packed(shape(&swapped)).permute(&axes).unwrap()));
    }
    let last: Vec<usize> = dims.iter().map(|d| d - 1).collect();
    all.push((len, packed.slice(&last, dims, &vec![-1; rank]).unwrap()));
    let wide: Vec<usize> = dims.iter().map(|d| 2 * d + 1).collect();
    let sparse = Layout::packed(shape(&wide));
    all.push((shape(&wide).len(), sparse.slice(&vec![1; rank], dims, &vec![2; rank]).unwrap()));
    for mask in 0..1 << rank {
        let one: Vec<usize> =
            (0..rank).map(|axis| if mask >> axis & 1 == 1 { 1 } else { dims[axis] }).collect();
        let repeated = Layout::packed(shape(&one)).broadcast(&shape(dims)).unwrap();
        all.push((shape(&one).len(), repeated));
    }
    all
}

/// Small numbers of both signs, all of which every dtype but bool and unsigned holds.
fn numbers(dtype: DType, len: usize) -> HostTensor {
    let ints: Vec<i128> = (0..len as i128).map(|i| (i * 37 + 11) % 23 - 11).collect();
    if dtype.is_float() {
        let floats: Vec<f64> = ints.iter().map(|&x| x as f64 * 0.25).collect();
        return HostTensor::from_f64s(dtype, shape(&[len]), &floats).unwrap();
    }
    HostTensor::from_i128s(dtype, shape(&[len]), &ints).unwrap()
}

/// The elements that a layout sees, in order.
fn seen<T: Copy>(xs: &[T], layout: &Layout) -> Vec<T> {
    (0..layout.shape().len()).map(|i| xs[layout.at(&layout.shape().coords(i))]).collect()
}

/// Asserts that floats differ by at most `tolerance` relative to the greater, NaN equal to NaN.
#[track_caller]
fn assert_close(found: &HostTensor, expected: &HostTensor, tolerance: f64, what: &str) {
    assert_eq!(found.dtype(), expected.dtype(), "{what}");
    assert_eq!(found.shape(), expected.shape(), "{what}");
    if !found.dtype().is_float() {
        assert!(found == expected, "{what}: {found} is not {expected}");
        return;
    }
    let (found, expected) = (found.to_f64s().unwrap(), expected.to_f64s().unwrap());
    for (i, (&y, &e)) in found.iter().zip(&expected).enumerate() {
        let close = y == e || (y.is_nan() && e.is_nan()) || (y - e).abs() <= tolerance * e.abs();
        // Subnormal results have fewer bits.
        assert!(close || (y - e).abs() < 2e-45, "{what}: {y} at {i}, expected {e}");
    }
}
