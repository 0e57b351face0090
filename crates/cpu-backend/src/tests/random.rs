//! Random elements against the generator of graph-core.

use convoke_compiler::Kernel;
use convoke_graph_core::{Class, DType, Graph, HostTensor, Layout, Random, Tensor, philox};

use super::{Case, assert_close, shape};

/// What a random operation of a graph is: its key comes from the seeds.
fn random_of(tensor: &Tensor) -> Random {
    match tensor.node().op.class() {
        Class::Random(random) => random,
        other => panic!("expected a random operation, got {other:?}"),
    }
}

#[test]
fn elements_are_those_of_the_generator() {
    let graph = Graph::with_seed(3);
    let make = [
        (Graph::random_uniform as fn(&Graph, &[usize], DType, u64) -> Tensor, 0.0),
        (Graph::random_normal, 1e-6),
        (Graph::truncated_normal, 1e-6),
    ];
    for (make, tolerance) in make {
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            for (len, run) in [(0, 0), (1, 5), (1023, 7), (20_000, u32::MAX)] {
                let random = random_of(&make(&graph, &[len], dtype, 11));
                let draws = (HostTensor::from([9, run, 9]), Layout::packed(shape(&[3])));
                let draws = (draws.0, draws.1.slice(&[1], &[1], &[1]).unwrap());
                let output = (dtype, shape(&[len]));
                let found = Case::new(Kernel::Random(random), vec![draws], &[output]).run();
                let sample = |i| philox::sample(random.distribution, random.key, i, run);
                let expected: Vec<f64> = (0..len as u64).map(sample).collect();
                let expected = HostTensor::from_f64s(dtype, shape(&[len]), &expected).unwrap();
                let tolerance = if dtype == DType::F64 { 1e-7 } else { tolerance };
                let tolerance =
                    if tolerance > 0.0 && dtype == DType::F16 { 1e-3 } else { tolerance };
                let tolerance =
                    if tolerance > 0.0 && dtype == DType::BF16 { 8e-3 } else { tolerance };
                assert_close(&found, &expected, tolerance, &format!("{random:?} of {dtype}"));
            }
        }
    }
}
