//! Elementwise groups: sizes, layouts, rows, casts, bools.

use convoke_compiler::{Arg, Instr, Operand};
use convoke_graph_core::{DType, Elementwise, HostTensor, Layout};
use smallvec::smallvec;

use super::harness::*;

#[test]
fn sizes_from_none_to_a_million() {
    for len in [0, 1, 63, 65, 1_000_003] {
        let mut b = Build::new();
        let (x, y) = (noise(len, 1), noise(len, 2));
        let (xs, ys) = (b.upload(&[len], &x), b.upload(&[len], &y));
        let inputs = [b.whole(xs), b.whole(ys)];
        let sum = b.row("add", &inputs, &[len]);
        let less = b.row("less", &inputs, &[len]);
        b.download(sum);
        b.download(less);
        b.on_all(|name, data| {
            let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            assert_eq!(elements::<f32>(&data[0]), expected, "{name} {len}");
            let expected: Vec<bool> = x.iter().zip(&y).map(|(x, y)| x < y).collect();
            assert_eq!(elements::<bool>(&data[1]), expected, "{name} {len}");
        });
    }
}

/// Layouts of shape `[3, 5, 7]` over buffers of 200 elements or fewer.
fn layouts() -> Vec<(Vec<usize>, Layout)> {
    let own = packed(&[3, 5, 7]);
    let of = |dims: &[usize]| packed(dims);
    vec![
        (vec![3, 5, 7], own.clone()),
        (vec![7, 5, 3], of(&[7, 5, 3]).permute(&[2, 1, 0]).unwrap()),
        (vec![5, 3, 7], of(&[5, 3, 7]).permute(&[1, 0, 2]).unwrap()),
        (vec![7], of(&[7]).broadcast(own.shape()).unwrap()),
        (vec![5, 1], of(&[5, 1]).broadcast(own.shape()).unwrap()),
        (vec![3, 1, 7], of(&[3, 1, 7]).broadcast(own.shape()).unwrap()),
        (vec![], of(&[]).broadcast(own.shape()).unwrap()),
        (vec![3, 5, 7], own.slice(&[2, 4, 6], &[3, 5, 7], &[-1, -1, -1]).unwrap()),
        (vec![4, 6, 8], of(&[4, 6, 8]).slice(&[1, 0, 1], &[3, 5, 7], &[1, 1, 1]).unwrap()),
        (vec![3, 5, 14], of(&[3, 5, 14]).slice(&[0, 4, 1], &[3, 5, 7], &[1, -1, 2]).unwrap()),
    ]
}

#[test]
fn layouts_of_numbers_and_bools() {
    let dims = [3, 5, 7];
    for (i, (dims_x, x)) in layouts().iter().enumerate() {
        for (j, (dims_y, y)) in layouts().iter().enumerate() {
            let mut b = Build::new();
            let xs: Vec<i32> = (0..shape(dims_x).len() as i32).map(|i| i * 3 - 40).collect();
            let ys: Vec<bool> = (0..shape(dims_y).len()).map(|i| i * i % 3 == 1).collect();
            let (vx, vy) = (b.upload(dims_x, &xs), b.upload(dims_y, &ys));
            let condition = Operand { value: vy, layout: y.clone() };
            let value = Operand { value: vx, layout: x.clone() };
            let seven = HostTensor::new(&[], vec![7i32]).unwrap();
            let args = smallvec![Arg::Input(0), Arg::Input(1), Arg::Constant(0)];
            let instrs = vec![Instr { op: Elementwise::Select, args, dtype: DType::I32 }];
            let inputs = [condition, value];
            let stores = [Arg::Instr(0), Arg::Input(0)];
            let kernel = b.fused(&dims, &inputs, vec![seven], instrs, &stores);
            let outputs = [(DType::I32, &dims[..]), (DType::Bool, &dims[..])];
            for output in b.group(kernel, &inputs, &outputs) {
                b.download(output);
            }
            let coords: Vec<_> = (0..105).map(|i| shape(&dims).coords(i)).collect();
            let bools: Vec<bool> = coords.iter().map(|c| ys[y.at(c)]).collect();
            let chosen: Vec<i32> =
                coords.iter().map(|c| if ys[y.at(c)] { xs[x.at(c)] } else { 7 }).collect();
            b.on_all(|name, data| {
                assert_eq!(elements::<i32>(&data[0]), chosen, "{name} {i} {j}");
                assert_eq!(elements::<bool>(&data[1]), bools, "{name} {i} {j}");
            });
        }
        if std::env::var("CONVOKE_TEST_ADAPTERS").is_err() {
            break;
        }
    }
}

#[test]
fn every_row_at_its_probe_points() {
    for row in convoke_graph_core::ops::rows() {
        let pairs: Vec<(f64, f64)> = match row.arity {
            1 => row.probe.iter().map(|&x| (x, 0.0)).collect(),
            _ => row.probe.iter().flat_map(|&x| row.probe.iter().map(move |&y| (x, y))).collect(),
        };
        for dtype in [DType::F32, DType::I32, DType::U32, DType::Bool] {
            let Some(to) = row.output(dtype) else { continue };
            let xs: Vec<Vec<f64>> = [0, 1][..row.arity]
                .iter()
                .map(|side| pairs.iter().map(|&(x, y)| if *side == 0 { x } else { y }).collect())
                .collect();
            let n = pairs.len();
            let mut b = Build::new();
            let inputs: Vec<Operand> = xs.iter().map(|x| upload_as(&mut b, dtype, x)).collect();
            let y = b.elementwise(Elementwise::Row(row), &inputs, to, &[n]);
            b.download(y);
            let expected = reference(row, dtype, &xs, n);
            b.on_all(|name, data| {
                let what = format!("{} of {dtype} on {name}", row.name);
                match to {
                    DType::F32 => {
                        let expected: Vec<f32> = expected.iter().map(|&y| y as f32).collect();
                        // WGSL asks of these for no more than 2^-11.
                        let coarse = ["sin", "cos", "tan", "asin", "acos", "atan", "atan2"];
                        let tolerance = if coarse.contains(&row.name) { 1e-3 } else { 2e-5 };
                        assert_near(&elements::<f32>(&data[0]), &expected, tolerance, &what);
                    }
                    _ => {
                        let got: Vec<i64> = match to {
                            DType::I32 => {
                                elements::<i32>(&data[0]).iter().map(|&y| y.into()).collect()
                            }
                            DType::U32 => {
                                elements::<u32>(&data[0]).iter().map(|&y| y.into()).collect()
                            }
                            _ => elements::<bool>(&data[0]).iter().map(|&y| y.into()).collect(),
                        };
                        let expected: Vec<i64> = expected.iter().map(|&y| y as i64).collect();
                        assert_eq!(got, expected, "{what}");
                    }
                }
            });
        }
    }
}

fn upload_as(b: &mut Build, dtype: DType, xs: &[f64]) -> Operand {
    let n = [xs.len()];
    let id = match dtype {
        DType::F32 => b.upload(&n, &xs.iter().map(|&x| x as f32).collect::<Vec<_>>()),
        DType::I32 => b.upload(&n, &xs.iter().map(|&x| x as i32).collect::<Vec<_>>()),
        DType::U32 => b.upload(&n, &xs.iter().map(|&x| x as i64 as u32).collect::<Vec<_>>()),
        _ => b.upload(&n, &xs.iter().map(|&x| x != 0.0).collect::<Vec<_>>()),
    };
    b.whole(id)
}

fn reference(row: &convoke_graph_core::Row, dtype: DType, xs: &[Vec<f64>], n: usize) -> Vec<f64> {
    (0..n)
        .map(|i| {
            let at: Vec<f64> = xs.iter().map(|x| x[i]).collect();
            match dtype {
                DType::F32 => (row.float.as_ref().unwrap().reference)(
                    &at.iter().map(|&x| f64::from(x as f32)).collect::<Vec<_>>(),
                ),
                DType::I32 => {
                    let at: Vec<i128> = at.iter().map(|&x| i128::from(x as i32)).collect();
                    ((row.int.as_ref().unwrap().reference)(&at) as i32).into()
                }
                DType::U32 => {
                    let at: Vec<i128> = at.iter().map(|&x| i128::from(x as i64 as u32)).collect();
                    ((row.int.as_ref().unwrap().reference)(&at) as u32).into()
                }
                _ => {
                    let at: Vec<bool> = at.iter().map(|&x| x != 0.0).collect();
                    u8::from((row.bools.as_ref().unwrap().reference)(&at)).into()
                }
            }
        })
        .collect()
}

#[test]
fn casts_saturate_wrap_and_test() {
    let xs = [
        0.0,
        -0.0,
        1.5,
        -1.5,
        3e9,
        -3e9,
        5e9,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e-40,
        2147483648.0,
        2147483520.0,
        -2147483648.0,
    ];
    let is: Vec<i32> = vec![0, 1, -1, i32::MIN, i32::MAX, 16_777_217, 33_554_435];
    let mut b = Build::new();
    let (x, i) = (b.upload(&[xs.len()], &xs), b.upload(&[is.len()], &is));
    for (value, n) in [(x, xs.len()), (i, is.len())] {
        for to in [DType::I32, DType::U32, DType::Bool, DType::F32] {
            let operand = b.whole(value);
            let y = b.elementwise(Elementwise::Cast, &[operand], to, &[n]);
            b.download(y);
        }
    }
    b.on_all(|name, data| {
        let to_i32: Vec<i32> = xs.iter().map(|&x| x as i32).collect();
        assert_eq!(elements::<i32>(&data[0]), to_i32, "{name}");
        let to_u32: Vec<u32> = xs.iter().map(|&x| x as u32).collect();
        assert_eq!(elements::<u32>(&data[1]), to_u32, "{name}");
        let to_bool: Vec<bool> = xs.iter().map(|&x| x != 0.0).collect();
        assert_eq!(elements::<bool>(&data[2]), to_bool, "{name}");
        let bits = |xs: &[f32]| xs.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&elements::<f32>(&data[3]))[..7], bits(&xs)[..7], "{name}");
        assert_eq!(elements::<i32>(&data[4]), is, "{name}");
        let wrapped: Vec<u32> = is.iter().map(|&i| i as u32).collect();
        assert_eq!(elements::<u32>(&data[5]), wrapped, "{name}");
        let to_f32: Vec<f32> = is.iter().map(|&i| i as f32).collect();
        assert_eq!(elements::<f32>(&data[7]), to_f32, "{name}");
    });
}

#[test]
fn integers_divide_by_zero_and_overflow_as_the_cpu_does() {
    let xs = [7, -7, i32::MIN, i32::MIN, 0, 5];
    let ys = [0, 0, -1, 0, 0, -2];
    let mut b = Build::new();
    let (x, y) = (b.upload(&[6], &xs), b.upload(&[6], &ys));
    let inputs = [b.whole(x), b.whole(y)];
    for name in ["div", "rem"] {
        let id = b.row(name, &inputs, &[6]);
        b.download(id);
    }
    b.on_all(|name, data| {
        assert_eq!(elements::<i32>(&data[0]), [7, -7, i32::MIN, i32::MIN, 0, -2], "{name}");
        assert_eq!(elements::<i32>(&data[1]), [0, 0, 0, 0, 0, 1], "{name}");
    });
}

#[test]
fn nan_and_infinity_are_told_by_their_bits() {
    let xs = [0.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-45];
    let mut b = Build::new();
    let x = b.upload(&[7], &xs);
    let operand = b.whole(x);
    for name in ["is_nan", "is_finite"] {
        let id = b.row(name, std::slice::from_ref(&operand), &[7]);
        b.download(id);
    }
    b.on_all(|name, data| {
        let nan: Vec<bool> = xs.iter().map(|x| x.is_nan()).collect();
        let finite: Vec<bool> = xs.iter().map(|x| x.is_finite()).collect();
        assert_eq!(elements::<bool>(&data[0]), nan, "{name}");
        assert_eq!(elements::<bool>(&data[1]), finite, "{name}");
    });
}

#[test]
fn one_group_has_many_outputs_and_shares_a_buffer_between_layouts() {
    let mut b = Build::new();
    let x = noise(64 * 64, 3);
    let value = b.upload(&[64, 64], &x);
    let inputs =
        [b.whole(value), Operand { value, layout: packed(&[64, 64]).permute(&[1, 0]).unwrap() }];
    let args = smallvec![Arg::Input(0), Arg::Input(1)];
    let instrs = vec![Instr { op: Elementwise::Row(row("add")), args, dtype: DType::F32 }];
    let stores = [Arg::Instr(0), Arg::Input(1), Arg::Input(0)];
    let kernel = b.fused(&[64, 64], &inputs, Vec::new(), instrs, &stores);
    let outputs = [(DType::F32, &[64, 64][..]); 3];
    for id in b.group(kernel, &inputs, &outputs) {
        b.download(id);
    }
    b.on_all(|name, data| {
        let sum: Vec<f32> = (0..64 * 64).map(|i| x[i] + x[i % 64 * 64 + i / 64]).collect();
        assert_eq!(elements::<f32>(&data[0]), sum, "{name}");
        assert_eq!(elements::<f32>(&data[2]), x, "{name}");
    });
}
