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
        Graph::random_uniform as fn(&Graph, &[usize], DType, u64) -> Tensor,
        Graph::random_normal,
        Graph::truncated_normal,
    ];
    for make in make {
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
                assert_close(&found, &expected, 0.0, &format!("{random:?} of {dtype}"));
            }
        }
    }
}

#[test]
fn elements_made_side_by_side_are_those_made_alone() {
    use convoke_graph_core::Distribution::{Normal, TruncatedNormal, Uniform};
    for distribution in [Uniform, Normal, TruncatedNormal] {
        for first in [0, (1 << 32) - 5, (1 << 40) + 3] {
            let found = philox::samples(distribution, 0x0123_4567_89AB_CDEF, first, 4);
            let alone = |i| philox::sample(distribution, 0x0123_4567_89AB_CDEF, first + i, 4);
            let alone: Vec<f64> = (0..philox::LANES as u64).map(alone).collect();
            assert_eq!(found.to_vec(), alone, "{distribution:?} from {first}");
        }
    }
}
