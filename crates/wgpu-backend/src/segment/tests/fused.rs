//! Random fused groups: the same each time, of every row, select and cast, over many layouts.

use convoke_compiler::{Arg, Instr, Kernel, Operand, ValueId};
use convoke_graph_core::{DType, Elementwise, HostTensor, Layout};
use smallvec::SmallVec;

use super::harness::*;

const DTYPES: [DType; 4] = [DType::I32, DType::U32, DType::Bool, DType::F32];
const DIMS: [usize; 3] = [3, 4, 5];

pub(super) struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }

    fn layout(&mut self) -> (Vec<usize>, Layout) {
        let own = packed(&DIMS);
        match self.below(6) {
            0 | 1 => (DIMS.to_vec(), own),
            2 => (vec![], packed(&[]).broadcast(own.shape()).unwrap()),
            3 => (vec![5], packed(&[5]).broadcast(own.shape()).unwrap()),
            4 => (vec![5, 4, 3], packed(&[5, 4, 3]).permute(&[2, 1, 0]).unwrap()),
            _ => (DIMS.to_vec(), own.slice(&[0, 3, 4], &DIMS, &[1, -1, -1]).unwrap()),
        }
    }
}

/// A group of up to twelve operations, with `n_dtypes` of the dtypes: three leave floats out.
pub(super) fn random_group(dice: &mut Dice, n_dtypes: usize) -> Build {
    let mut b = Build::new();
    let mut inputs = Vec::new();
    for _ in 0..1 + dice.below(4) {
        let (dims, layout) = dice.layout();
        let value = input(&mut b, dice, n_dtypes, &dims);
        inputs.push(Operand { value, layout });
    }
    let constants: Vec<HostTensor> = (0..dice.below(3))
        .map(|_| match dice.below(n_dtypes) {
            0 => HostTensor::new(&[], vec![dice.below(9) as i32 - 4]),
            1 => HostTensor::new(&[], vec![dice.below(9) as u32]),
            2 => HostTensor::new(&[], vec![dice.below(2) == 1]),
            _ => HostTensor::new(&[], vec![f32::INFINITY]),
        })
        .collect::<Result<_, _>>()
        .unwrap();
    let mut known: Vec<(Arg, DType)> = Vec::new();
    for (i, operand) in inputs.iter().enumerate() {
        known.push((Arg::Input(i as u32), b.program.value(operand.value).dtype));
    }
    for (i, constant) in constants.iter().enumerate() {
        known.push((Arg::Constant(i as u32), constant.dtype()));
    }
    let mut instrs: Vec<Instr> = Vec::new();
    for _ in 0..1 + dice.below(12) {
        if let Some(instr) = random_instr(dice, n_dtypes, &known) {
            known.push((Arg::Instr(instrs.len() as u32), instr.dtype));
            instrs.push(instr);
        }
    }
    let stores: Vec<(Arg, DType)> =
        (0..1 + dice.below(3)).map(|_| known[known.len() - 1 - dice.below(known.len())]).collect();
    let args: Vec<Arg> = stores.iter().map(|(arg, _)| *arg).collect();
    let outputs: Vec<(DType, &[usize])> = stores.iter().map(|(_, d)| (*d, &DIMS[..])).collect();
    let kernel = b.fused(&DIMS, &inputs, constants, instrs, &args);
    for id in b.group(kernel, &inputs, &outputs) {
        b.download(id);
    }
    b
}

fn input(b: &mut Build, dice: &mut Dice, n_dtypes: usize, dims: &[usize]) -> ValueId {
    let len = shape(dims).len();
    let mut ints = || -> Vec<i32> { (0..len).map(|_| dice.below(200) as i32 - 100).collect() };
    let xs = ints();
    match dice.below(n_dtypes) {
        0 => b.upload(dims, &xs),
        1 => b.upload(dims, &xs.iter().map(|&x| x as u32).collect::<Vec<_>>()),
        2 => b.upload(dims, &xs.iter().map(|&x| x % 2 == 0).collect::<Vec<_>>()),
        _ => b.upload(dims, &xs.iter().map(|&x| x as f32 / 16.0).collect::<Vec<_>>()),
    }
}

fn random_instr(dice: &mut Dice, n_dtypes: usize, known: &[(Arg, DType)]) -> Option<Instr> {
    let (x, from) = known[dice.below(known.len())];
    let same: Vec<Arg> = known.iter().filter(|(_, d)| *d == from).map(|(arg, _)| *arg).collect();
    let y = same[dice.below(same.len())];
    match dice.below(8) {
        0 => {
            let dtype = DTYPES[dice.below(n_dtypes)];
            Some(Instr { op: Elementwise::Cast, args: SmallVec::from_slice(&[x]), dtype })
        }
        1 => {
            let bools: Vec<Arg> =
                known.iter().filter(|(_, d)| *d == DType::Bool).map(|(arg, _)| *arg).collect();
            let condition = *bools.get(dice.below(bools.len().max(1)))?;
            let args = SmallVec::from_slice(&[condition, x, y]);
            Some(Instr { op: Elementwise::Select, args, dtype: from })
        }
        _ => {
            let rows: Vec<_> =
                convoke_graph_core::ops::rows().filter(|r| r.output(from).is_some()).collect();
            let row = rows[dice.below(rows.len())];
            let args = SmallVec::from_slice(&[x, y][..row.arity]);
            Some(Instr { op: Elementwise::Row(row), args, dtype: row.output(from)? })
        }
    }
}

/// What the one group of `b` computes for element `i`, for dtypes without floats.
fn expected(b: &Build, i: usize) -> Vec<i128> {
    let group = &b.program.groups[0];
    let Kernel::Elementwise(fused) = &group.kernel else { panic!("{}", group.kernel) };
    let wrap = |x: i128, dtype: DType| match dtype {
        DType::I32 => i128::from(x as i32),
        DType::U32 => i128::from(x as u32),
        _ => i128::from(x != 0),
    };
    let load = |k: u32| {
        let operand = &group.inputs[k as usize];
        let at = operand.layout.at(&operand.layout.shape().coords(i));
        let bytes = &b.uploads[operand.value.0 as usize];
        match b.program.value(operand.value).dtype {
            DType::I32 => i128::from(elements::<i32>(bytes)[at]),
            DType::U32 => i128::from(elements::<u32>(bytes)[at]),
            _ => i128::from(bytes[at]),
        }
    };
    let mut done: Vec<i128> = Vec::new();
    let value = |arg: Arg, done: &[i128]| match arg {
        Arg::Input(k) => load(k),
        Arg::Constant(k) => fused.constants[k as usize].to_i128s().unwrap()[0],
        Arg::Instr(k) => done[k as usize],
    };
    for instr in &fused.instrs {
        let args: Vec<i128> = instr.args.iter().map(|&arg| value(arg, &done)).collect();
        let result = match instr.op {
            Elementwise::Select => args[if args[0] != 0 { 1 } else { 2 }],
            Elementwise::Row(row) if fused.dtype(instr.args[0]) == DType::Bool => {
                let args: Vec<bool> = args.iter().map(|&x| x != 0).collect();
                i128::from((row.bools.as_ref().unwrap().reference)(&args))
            }
            Elementwise::Row(row) => (row.int.as_ref().unwrap().reference)(&args),
            _ => args[0],
        };
        done.push(wrap(result, instr.dtype));
    }
    fused.stores.iter().map(|&arg| value(arg, &done)).collect()
}

#[test]
fn random_groups_of_integers_and_bools_are_exact() {
    let mut dice = Dice(7);
    for round in 0..60 {
        let b = random_group(&mut dice, 3);
        b.on_all(|name, data| {
            let outputs = b.program.groups[0].outputs.clone();
            for (k, (bytes, id)) in data.iter().zip(outputs).enumerate() {
                let dtype = b.program.value(id).dtype;
                let got: Vec<i128> = match dtype {
                    DType::I32 => elements::<i32>(bytes).iter().map(|&x| x.into()).collect(),
                    DType::U32 => elements::<u32>(bytes).iter().map(|&x| x.into()).collect(),
                    _ => bytes.iter().map(|&x| x.into()).collect(),
                };
                let expected: Vec<i128> = (0..60).map(|i| expected(&b, i)[k]).collect();
                assert_eq!(got, expected, "{name}, round {round}: {}", b.program.groups[0].kernel);
            }
        });
    }
}
