//! Pad, concat, gather, scatter_add and random elements.

use convoke_compiler::{Kernel, Operand};
use convoke_graph_core::{DType, ErrorKind, philox};

use super::harness::*;
use crate::segment::GpuVariables;

#[test]
fn pad_puts_zeros_around() {
    for (dims, before, out) in [
        (vec![3], vec![2], vec![7]),
        (vec![3, 4], vec![0, 1], vec![3, 6]),
        (vec![3, 4], vec![1, 0], vec![5, 4]),
        (vec![2, 3, 4], vec![0, 2, 0], vec![2, 7, 4]),
        (vec![2, 3, 2, 3], vec![1, 0, 0, 2], vec![4, 3, 2, 6]),
        (vec![0, 2], vec![1, 1], vec![3, 4]),
        (vec![], vec![], vec![]),
    ] {
        let mut b = Build::new();
        let len = shape(&dims).len();
        let xs: Vec<i32> = (1..=len as i32).collect();
        let bs: Vec<bool> = xs.iter().map(|x| x % 3 != 0).collect();
        let (x, flags) = (b.upload(&dims, &xs), b.upload(&dims, &bs));
        for (value, dtype) in [(x, DType::I32), (flags, DType::Bool)] {
            let operand = b.whole(value);
            let kernel = Kernel::Pad { before: before.clone() };
            let y = b.one(kernel, &[operand], dtype, &out);
            b.download(y);
        }
        let mut expected = vec![0; shape(&out).len()];
        let inside = packed(&out).slice(&before, &dims, &vec![1; dims.len()]).unwrap();
        for (i, &x) in xs.iter().enumerate() {
            expected[inside.at(&shape(&dims).coords(i))] = x;
        }
        b.on_all(|name, data| {
            assert_eq!(elements::<i32>(&data[0]), expected, "{name} {dims:?}");
            let flags: Vec<bool> = expected.iter().map(|x| x % 3 != 0).collect();
            assert_eq!(elements::<bool>(&data[1]), flags, "{name} {dims:?}");
        });
    }
}

#[test]
fn concat_of_two_of_eleven_and_of_bools() {
    for n in [1, 2, 6, 7, 8, 11] {
        for (axis, outer, inner) in [(0, 1, 3), (1, 5, 1), (1, 4, 6)] {
            let mut b = Build::new();
            let dims = |a: usize| if axis == 0 { vec![a, inner] } else { vec![outer, a, inner] };
            let sizes: Vec<usize> = (0..n).map(|k| (k * 2 + 1) % 4).collect();
            let total: usize = sizes.iter().sum();
            let mut parts: Vec<Vec<i32>> = Vec::new();
            let mut operands = [Vec::new(), Vec::new()];
            for (k, &a) in sizes.iter().enumerate() {
                let xs: Vec<i32> = (0..outer * a * inner).map(|i| (k * 1000 + i) as i32).collect();
                let bs: Vec<bool> = xs.iter().map(|x| x % 3 == 0).collect();
                let (x, flags) = (b.upload(&dims(a), &xs), b.upload(&dims(a), &bs));
                operands[0].push(b.whole(x));
                operands[1].push(b.whole(flags));
                parts.push(xs);
            }
            let kernel = || Kernel::Concat { axis };
            let y = b.one(kernel(), &operands[0], DType::I32, &dims(total));
            b.download(y);
            if n <= 7 {
                let y = b.one(kernel(), &operands[1], DType::Bool, &dims(total));
                b.download(y);
            }
            let mut expected = Vec::new();
            for o in 0..outer {
                for (xs, &a) in parts.iter().zip(&sizes) {
                    expected.extend_from_slice(&xs[o * a * inner..(o + 1) * a * inner]);
                }
            }
            b.on_all(|name, data| {
                assert_eq!(elements::<i32>(&data[0]), expected, "{name} {n} {axis}");
                if let Some(flags) = data.get(1) {
                    let expected: Vec<bool> = expected.iter().map(|x| x % 3 == 0).collect();
                    assert_eq!(elements::<bool>(flags), expected, "{name} {n} {axis}");
                }
            });
        }
    }
}

#[test]
fn gather_and_scatter_add_are_each_others_gradient() {
    let (outer, along, inner) = (3, 5, 7);
    let indices = [4, 0, 0, 3, 4, 4, 1, 0];
    let mut b = Build::new();
    let xs = noise(outer * along * inner, 11);
    let x = b.upload(&[outer, along, inner], &xs);
    let i = b.upload(&[2, 4], &indices);
    let inputs = [b.whole(x), b.whole(i)];
    let y = b.one(Kernel::Gather { axis: 1 }, &inputs, DType::F32, &[outer, 2, 4, inner]);
    let back = [b.whole(i), b.whole(y)];
    let z = b.one(Kernel::ScatterAdd { axis: 1 }, &back, DType::F32, &[outer, along, inner]);
    let flags = b.constant(&[3], &[true, false, true]);
    let u = b.constant(&[5], &[2u32, 0, 0, 1, 2]);
    let inputs = [b.whole(flags), b.whole(u)];
    let w = b.one(Kernel::Gather { axis: 0 }, &inputs, DType::Bool, &[5]);
    for id in [y, z, w] {
        b.download(id);
    }
    b.on_all(|name, data| {
        let mut gathered = Vec::new();
        let mut added = vec![0.0; xs.len()];
        for o in 0..outer {
            for &index in &indices {
                let at = (o * along + index as usize) * inner;
                gathered.extend_from_slice(&xs[at..at + inner]);
                for j in at..at + inner {
                    added[j] += xs[j];
                }
            }
        }
        assert_eq!(elements::<f32>(&data[0]), gathered, "{name}");
        assert_near(&elements::<f32>(&data[1]), &added, 1e-6, name);
        assert_eq!(elements::<bool>(&data[2]), [true, true, true, false, true], "{name}");
    });
}

#[test]
fn an_index_out_of_range_fails_the_run_and_commits_nothing() {
    for bad in [-1, 5, i32::MIN, i32::MAX] {
        for scatter in [false, true] {
            let mut b = Build::new();
            let x = b.upload(&[5, 2], &noise(10, 1));
            let i = b.upload(&[3], &[1, bad, 2]);
            let w = b.variable(7, DType::F32, &[2]);
            let y = if scatter {
                let updates = b.upload(&[3, 2], &noise(6, 2));
                let inputs = [b.whole(i), b.whole(updates)];
                b.one(Kernel::ScatterAdd { axis: 0 }, &inputs, DType::F32, &[5, 2])
            } else {
                let inputs = [b.whole(x), b.whole(i)];
                b.one(Kernel::Gather { axis: 0 }, &inputs, DType::F32, &[3, 2])
            };
            let operands = [b.whole(w), b.whole(w)];
            let sum = b.row("add", &operands, &[2]);
            b.commit(7, sum);
            b.download(y);
            for gpu in gpus() {
                let variables = GpuVariables::new(&gpu);
                let node = convoke_graph_core::NodeId(7);
                variables.store(node, bytemuck::cast_slice(&[1.5f32, 2.5])).unwrap();
                let segment = b.compile(&gpu, &variables);
                let lease = segment.lease(&|| Ok(())).unwrap();
                let error = segment.run(&lease, &b.uploads()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidArgument);
                let text = format!("index {bad} at position 1 is out of range for an axis of 5");
                assert!(error.message().contains(&text), "{error}");
                let kept = elements::<f32>(&variables.load(node, 8).unwrap());
                assert_eq!(kept, [1.5, 2.5]);
                let mut good = b.uploads.clone();
                good[1] = bytemuck::cast_slice(&[1i32, 0, 2]).to_vec();
                let good: Vec<&[u8]> = good.iter().map(Vec::as_slice).collect();
                segment.run(&lease, &good).unwrap();
                let stored = elements::<f32>(&variables.load(node, 8).unwrap());
                assert_eq!(stored, [3.0, 5.0]);
            }
        }
    }
}

#[test]
fn random_elements_are_those_of_the_cpu() {
    use convoke_graph_core::{Class, Graph};
    let graph = Graph::with_seed(3);
    let tensors = [
        graph.random_uniform(&[10_007], DType::F32, 5),
        graph.random_normal(&[10_007], DType::F32, 5),
        graph.truncated_normal(&[10_007], DType::F32, 5),
    ];
    for (which, tensor) in tensors.iter().enumerate() {
        let node = graph.node(tensor.output().node);
        let Class::Random(random) = node.op.class() else { panic!("{:?}", node.op) };
        let mut b = Build::new();
        let draws = b.upload(&[], &[3u32]);
        let operand: Operand = b.whole(draws);
        let y = b.one(Kernel::Random(random), &[operand], DType::F32, &[10_007]);
        b.download(y);
        let sample = |i| philox::sample(random.distribution, random.key, i, 3) as f32;
        let expected: Vec<f32> = (0..10_007).map(sample).collect();
        b.on_all(|name, data| {
            let got = elements::<f32>(&data[0]);
            if which == 0 {
                let bits = |xs: &[f32]| xs.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&got), bits(&expected), "{name}");
            } else {
                // An element just below 2 here may be just above there, and drawn again.
                let off = got.iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() > 1e-4);
                assert!(off.count() < which, "{name}");
            }
        });
    }
}
