//! What the groups of small graphs do, counted by hand.

use convoke_graph_core::{Conv2d, DType, Graph, Pool, Shape, Tensor, dims};
use convoke_placement::{Family, Work};

use crate::{
    CompileOptions, GroupLimits, HOST, InputFact, Places, Plan, Signature, Unplaced, compile,
};

/// The work of each group of a program that is fed `inputs` of these shapes.
fn works(g: &Graph, inputs: &[Tensor], shapes: &[&[usize]], result: &Tensor) -> Vec<Work> {
    let signature = Signature {
        residents: Vec::new(),
        fetches: vec![result.output()],
        targets: Vec::new(),
        feeds: inputs.iter().map(Tensor::output).collect(),
        ..Signature::default()
    };
    let plan = Plan::new(&g.snapshot(), signature).unwrap();
    let fact = |dims: &&[usize]| InputFact {
        shape: Shape::new(dims).unwrap(),
        contents: None,
        donated: None,
    };
    let facts: Vec<InputFact> = shapes.iter().map(fact).collect();
    let place = |unplaced: &Unplaced<'_>| {
        let groups = vec![HOST; unplaced.program.groups.len()];
        Ok(Places { groups, ..Places::default() })
    };
    let limits = GroupLimits::default();
    let options = CompileOptions { limits, simplify: true, place: &place };
    let program = compile(&plan, &facts, &options).unwrap();
    program.groups.iter().map(|group| group.work(&program.values)).collect()
}

/// The work of the one group that `build` makes of f32 placeholders with these shapes.
#[track_caller]
fn work(shapes: &[&[usize]], build: impl Fn(&[Tensor]) -> Tensor) -> Work {
    let g = Graph::new();
    let inputs: Vec<Tensor> = shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| g.placeholder(&format!("x{i}"), DType::F32, shape.to_vec()))
        .collect();
    let all = works(&g, &inputs, shapes, &build(&inputs));
    assert_eq!(all.len(), 1, "{all:?}");
    all[0]
}

#[test]
fn elementwise_work_counts_functions_apart() {
    let found = work(&[&[100], &[100]], |x| (&x[0] * &x[1] + 1.0).tanh());
    let none = Work::new(Family::Elementwise, 0, 1200);
    // A hyperbolic tangent is as dear as two exponentials.
    assert_eq!(found, Work { pointwise: 200, functions: 200, buffers: 3, ..none });
}

#[test]
fn products_count_the_edges_of_tiles_on_gpus() {
    let product = |m: usize, k: usize, n: usize| work(&[&[m, k], &[k, n]], |x| x[0].matmul(&x[1]));
    let found = product(64, 100, 128);
    // The CPU stores 64 times 128 elements, each in the time of 16 of its 100 terms.
    assert_eq!((found.family, found.flops), (Family::Contract, 64 * 128 * 2 * 116));
    assert_eq!(found.lanes, 64 * 128 * 200);
    assert_eq!(found.bytes, 4 * (6400 + 12_800 + 8192));
    // 16 of 32 rows, 10 of 32 columns; tiles of drivers on the CPU have 16 rows, and its own vectors 16 columns.
    let found = product(16, 100, 10);
    assert_eq!((found.family, found.lanes), (Family::Contract, 204_800));
    assert_eq!(found.flops, 16 * 16 * 2 * 116);
    assert_eq!(found.narrow, 102_400);
    let found = product(40, 100, 128);
    assert_eq!((found.lanes, found.narrow), (64 * 128 * 200, 48 * 128 * 200));
    // Few elements and a long sum: tiles of 4 by 4.
    let found = product(1, 784, 128);
    assert_eq!((found.family, found.flops, found.lanes), (Family::Thin, 200_704, 802_816));
    assert_eq!(found.on_gpu, Family::Thin);
    // Of fewer terms only where other tiles would be mostly empty: 1 of 4 rows, 10 of 12 columns.
    let found = product(1, 64, 10);
    assert_eq!((found.on_gpu, found.lanes, found.narrow), (Family::Thin, 6144, 6144));
    for (m, k, n) in [(1, 63, 10), (5, 255, 5), (4, 64, 260)] {
        assert_eq!(product(m, k, n).on_gpu, Family::Contract, "{m} {k} {n}");
    }
    for (m, k, n) in [(4, 64, 256), (256, 64, 4), (5, 256, 5)] {
        assert_eq!(product(m, k, n).on_gpu, Family::Thin, "{m} {k} {n}");
        assert_eq!(product(m, k, n).family, Family::Contract, "{m} {k} {n}");
    }
    // What is thin for a processor is a vector.
    assert_eq!([product(1, 2, 3), product(3, 2, 1)].map(|work| work.family), [Family::Thin; 2]);
    let found = product(0, 784, 128);
    assert_eq!((found.flops, found.lanes), (0, 0));
}

/// Each tile of 32 columns computes the elements of the left side that it loads.
#[test]
fn what_gpus_compute_again_is_counted() {
    let head = |n: usize| work(&[&[64, 100], &[100, n]], |x| (&x[0] * 2.0).matmul(&x[1]));
    let found = head(32);
    assert_eq!((found.pointwise, found.again), (6400, [0; 2]));
    let found = head(65);
    assert_eq!((found.pointwise, found.again), (6400, [2 * 6400, 0]));
}

#[test]
fn a_tail_is_elementwise_work() {
    let found = work(&[&[64, 100], &[100, 64], &[64]], |x| (x[0].matmul(&x[1]) + &x[2]).sigmoid());
    assert_eq!((found.family, found.flops), (Family::Contract, 64 * 64 * 2 * 116));
    assert_eq!((found.pointwise, found.functions), (4096, 4096));
}

#[test]
fn rows_count_each_fold_each_element_and_each_turn() {
    // exp(x - max x): a fold, and an exponential of a difference.
    let found = work(&[&[8, 1000]], |x| (&x[0] - x[0].max_keep(1)).exp());
    // A GPU goes over the elements once more to store them.
    assert_eq!((found.family, found.lanes), (Family::Reduce, 16_000));
    assert_eq!(found.flops, 8000 + 8 * 3 * 48);
    assert_eq!((found.pointwise, found.functions), (0, 8000));
    assert_eq!(found.bytes, 64_000);
    // What is computed of a fold alone is computed once for each row.
    let found = work(&[&[8, 1000]], |x| &x[0] * x[0].max_keep(1).exp());
    assert_eq!((found.pointwise, found.functions), (8000, 8));
}

#[test]
fn sums_of_columns_are_a_family_of_their_own() {
    let found = work(&[&[1000, 8]], |x| x[0].sum(0));
    assert_eq!((found.family, found.flops), (Family::Columns, 8000));
    let found = work(&[&[8, 1000]], |x| x[0].sum(1));
    assert_eq!(found.family, Family::Reduce);
}

#[test]
fn convolutions_of_few_taps_take_the_cpu_longer() {
    let conv = |x: &[Tensor]| x[0].conv2d(&x[1], Conv2d::default());
    // 6x6 pixels of 64 filters with 9 taps; 36 of 64 columns of two tiles.
    let found = work(&[&[2, 1, 8, 8], &[64, 1, 3, 3]], conv);
    let flops = 2 * 36 * 64 * 9 * 2;
    assert_eq!(found.family, Family::Convolve);
    assert_eq!((found.flops, found.lanes), (flops / 9 * 96, flops / 36 * 64));
    let found = work(&[&[2, 16, 8, 8], &[64, 16, 3, 3]], conv);
    assert_eq!(found.flops, flops * 16);
    let found = work(&[&[2, 3, 8, 8]], |x| x[0].max_pool(Pool::default()));
    assert_eq!((found.family, found.flops), (Family::Pool, 2 * 3 * 64));
}

#[test]
fn of_a_table_only_what_is_gathered_is_read() {
    let g = Graph::new();
    let table = g.placeholder("table", DType::F32, dims![1000, 16]);
    let rows = g.placeholder("rows", DType::I32, dims![10]);
    let y = table.gather(&rows, 0);
    let found = works(&g, &[table, rows], &[&[1000, 16], &[10]], &y);
    // 640 bytes read and written, and 40 of indices.
    assert_eq!(found.iter().map(|work| work.bytes).collect::<Vec<_>>(), [640 + 640 + 40]);
}
