//! Programs made by hand, and a way to run them.

use std::sync::OnceLock;

use convoke_compiler::{
    Arg, Asked, Commit, DeviceIndex, Fused, Group, Head, Instr, Kernel, Operand, Program,
    Reduction, Segment, Source, Tail, Value, ValueId,
};
use convoke_graph_core::{
    DType, Element, Elementwise, HostTensor, Layout, NodeId, Output, ReduceKind, Row, Shape,
};
use smallvec::SmallVec;

use crate::gpu::{Adapter, Gpu, GpuFeatures, GpuOptions, enumerate};
use crate::segment::{GpuRun, GpuSegment, GpuVariables};

/// Two devices for each adapter that the environment names, the second without subgroups; the same ones for all tests.
pub(super) fn gpus() -> Vec<Gpu> {
    static GPUS: OnceLock<Vec<Gpu>> = OnceLock::new();
    let with_all = || open(&GpuOptions::default()).into_iter();
    GPUS.get_or_init(|| with_all().chain(open(&without_subgroups(None))).collect()).clone()
}

/// As [`gpus`], each with the tiles of products that it would not choose itself, without subgroups.
fn gpus_of_other_tiles() -> Vec<Gpu> {
    static GPUS: OnceLock<Vec<Gpu>> = OnceLock::new();
    let wide_tiles = gpus().first().map(|gpu| !gpu.info().wide_tiles);
    GPUS.get_or_init(|| open(&without_subgroups(wide_tiles))).clone()
}

fn without_subgroups(wide_tiles: Option<bool>) -> GpuOptions {
    let features = GpuFeatures { subgroups: false, ..GpuFeatures::ALL };
    GpuOptions { features, wide_tiles, ..GpuOptions::default() }
}

fn open(options: &GpuOptions) -> Vec<Gpu> {
    let names = std::env::var("CONVOKE_TEST_ADAPTERS").unwrap_or_default().to_lowercase();
    let names: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
    let all = if names.is_empty() { Vec::new() } else { enumerate() };
    let named = |a: &&Adapter| names.iter().any(|n| a.info().name.to_lowercase().contains(n));
    let found: Vec<&Adapter> = all.iter().filter(named).collect();
    assert_eq!(found.len(), names.len(), "{names:?} of {all:?}");
    found.into_iter().map(|a| Gpu::open(a, options).unwrap()).collect()
}

pub(super) fn row(name: &str) -> &'static Row {
    convoke_graph_core::ops::rows().find(|row| row.name == name).unwrap()
}

pub(super) fn shape(dims: &[usize]) -> Shape {
    Shape::new(dims).unwrap()
}

pub(super) fn packed(dims: &[usize]) -> Layout {
    Layout::packed(shape(dims))
}

pub(super) fn reduction(kind: ReduceKind, n_outer: usize) -> Kernel {
    Kernel::Reduce(Reduction { kind, n_outer })
}

/// A program of one segment that is being made, with the bytes of its uploads.
pub(super) struct Build {
    pub program: Program,
    pub uploads: Vec<Vec<u8>>,
}

impl Build {
    pub fn new() -> Build {
        let segment = Segment::on(DeviceIndex(1));
        let program = Program {
            values: Vec::new(),
            groups: Vec::new(),
            segments: vec![segment],
            fetches: Vec::new(),
            residents: Vec::new(),
            variables: Vec::new(),
            optional: Vec::new(),
            random: Vec::new(),
            apart: Vec::new(),
            late: Vec::new(),
        };
        Build { program, uploads: Vec::new() }
    }

    fn value(&mut self, dtype: DType, dims: &[usize], source: Source) -> ValueId {
        self.program.values.push(Value { dtype, shape: shape(dims), source });
        ValueId(self.program.values.len() as u32 - 1)
    }

    pub fn segment(&mut self) -> &mut Segment {
        &mut self.program.segments[0]
    }

    pub fn upload<T: Element>(&mut self, dims: &[usize], elements: &[T]) -> ValueId {
        assert_eq!(shape(dims).len(), elements.len());
        let node = NodeId(self.program.values.len() as u32);
        let id = self.value(T::DTYPE, dims, Source::Feed(Output { node, index: 0 }));
        self.segment().uploads.push(id);
        self.uploads.push(bytemuck::cast_slice(elements).to_vec());
        id
    }

    pub fn constant<T: Element>(&mut self, dims: &[usize], elements: &[T]) -> ValueId {
        let tensor = HostTensor::new(dims, elements.to_vec()).unwrap();
        self.value(T::DTYPE, dims, Source::Constant(tensor))
    }

    pub fn variable(&mut self, node: u32, dtype: DType, dims: &[usize]) -> ValueId {
        self.value(dtype, dims, Source::Variable(NodeId(node)))
    }

    pub fn whole(&self, value: ValueId) -> Operand {
        Operand { value, layout: Layout::packed(self.program.value(value).shape.clone()) }
    }

    pub fn group(
        &mut self,
        kernel: Kernel,
        inputs: &[Operand],
        outputs: &[(DType, &[usize])],
    ) -> Vec<ValueId> {
        let outputs: Vec<ValueId> = outputs
            .iter()
            .map(|(dtype, dims)| self.value(*dtype, dims, Source::Computed))
            .collect();
        let index = self.program.groups.len() as u32;
        let ends = (inputs.iter().cloned().collect(), outputs.iter().copied().collect());
        self.program.groups.push(Group::plain(kernel, ends, Vec::new(), Asked::default()));
        self.segment().groups.push(index);
        outputs
    }

    /// Gives the last group a tail: its result plus another operand, then relu.
    pub fn tail(&mut self, other: Operand) -> ValueId {
        let result = self.program.groups.last().unwrap().outputs[0];
        let Value { dtype, shape, .. } = self.program.value(result).clone();
        let output = self.value(dtype, shape.dims(), Source::Computed);
        let instr = |name, args: &[Arg]| {
            let (op, args) = (Elementwise::Row(row(name)), SmallVec::from_slice(args));
            Instr { op, args, dtype }
        };
        let instrs = vec![
            instr("add", &[Arg::Input(0), Arg::Input(1)]),
            instr("maximum", &[Arg::Instr(0), Arg::Input(1)]),
        ];
        let fused = Fused {
            shape,
            input_dtypes: [dtype; 2].into_iter().collect(),
            constants: Vec::new(),
            instrs,
            stores: [Arg::Instr(1)].into_iter().collect(),
            check: None,
        };
        let group = self.program.groups.last_mut().unwrap();
        group.inputs.push(other);
        group.outputs[0] = output;
        let layout = packed(fused.shape.dims());
        group.tail = Some(Tail { result, layout, fused });
        output
    }

    /// Lets the last group make operand `k`, the last that it makes, where it is loaded: what it was, halved, times
    /// another of its value's shape.
    pub fn head(&mut self, k: usize, other: Operand) {
        let group = self.program.groups.last().unwrap();
        let place = k + group.heads.len();
        let Operand { value: x, layout } = group.inputs[place].clone();
        let Value { dtype, shape, .. } = self.program.value(x).clone();
        let value = self.value(dtype, shape.dims(), Source::Computed);
        let instr = |args: &[Arg]| {
            let (op, args) = (Elementwise::Row(row("mul")), SmallVec::from_slice(args));
            Instr { op, args, dtype }
        };
        let instrs =
            vec![instr(&[Arg::Input(0), Arg::Constant(0)]), instr(&[Arg::Instr(0), Arg::Input(1)])];
        let half = HostTensor::from_f64s(dtype, Shape::scalar(), &[0.5]).unwrap();
        let input_dtypes = [dtype; 2].into_iter().collect();
        let stores = [Arg::Instr(1)].into_iter().collect();
        let fused =
            Fused { shape, input_dtypes, constants: vec![half], instrs, stores, check: None };
        let own = Operand { value: x, layout: packed(fused.shape.dims()) };
        let group = self.program.groups.last_mut().unwrap();
        group.inputs[place] = own;
        group.inputs.insert(place + 1, other);
        group.heads.push(Head { operand: k, value, layout, fused });
    }

    /// One output of a kernel.
    pub fn one(
        &mut self,
        kernel: Kernel,
        inputs: &[Operand],
        dtype: DType,
        dims: &[usize],
    ) -> ValueId {
        self.group(kernel, inputs, &[(dtype, dims)])[0]
    }

    /// One row over operands of `dims`.
    pub fn row(&mut self, name: &str, inputs: &[Operand], dims: &[usize]) -> ValueId {
        let from = self.program.value(inputs[0].value).dtype;
        let to = row(name).output(from).unwrap();
        let op = Elementwise::Row(row(name));
        self.elementwise(op, inputs, to, dims)
    }

    /// One operation over operands of `dims`.
    pub fn elementwise(
        &mut self,
        op: Elementwise,
        inputs: &[Operand],
        dtype: DType,
        dims: &[usize],
    ) -> ValueId {
        let args = (0..inputs.len() as u32).map(Arg::Input).collect();
        let instrs = vec![Instr { op, args, dtype }];
        let fused = self.fused(dims, inputs, Vec::new(), instrs, &[Arg::Instr(0)]);
        self.one(fused, inputs, dtype, dims)
    }

    pub fn fused(
        &self,
        dims: &[usize],
        inputs: &[Operand],
        constants: Vec<HostTensor>,
        instrs: Vec<Instr>,
        stores: &[Arg],
    ) -> Kernel {
        let input_dtypes = inputs.iter().map(|x| self.program.value(x.value).dtype).collect();
        let stores = SmallVec::from_slice(stores);
        Kernel::Elementwise(Fused {
            shape: shape(dims),
            input_dtypes,
            constants,
            instrs,
            stores,
            check: None,
        })
    }

    pub fn download(&mut self, id: ValueId) {
        self.segment().downloads.push(id);
    }

    pub fn commit(&mut self, variable: u32, value: ValueId) {
        let commit = Commit { variable: NodeId(variable), value, accumulates: false, sums: false };
        self.segment().commits.push(commit);
    }

    pub fn compile(&self, gpu: &Gpu, variables: &GpuVariables) -> GpuSegment {
        for group in &self.program.groups {
            crate::segment::supports(gpu.info(), &self.program, group).unwrap();
        }
        GpuSegment::compile(gpu, &self.program, 0, variables).unwrap()
    }

    pub fn uploads(&self) -> Vec<&[u8]> {
        self.uploads.iter().map(Vec::as_slice).collect()
    }

    pub fn run(&self, gpu: &Gpu) -> GpuRun {
        let segment = self.compile(gpu, &GpuVariables::new(gpu));
        let run = segment.run(&segment.lease(&|| Ok(())).unwrap(), &self.uploads()).unwrap();
        assert_eq!(gpu.stray_error(), None);
        run
    }

    /// Runs on all devices, and hands each the bytes of the downloads.
    pub fn on_all(&self, check: impl Fn(&str, &[Vec<u8>])) {
        self.on(gpus(), check);
    }

    /// As [`Self::on_all`], with each kind of tiles of products.
    pub fn with_all_tiles(&self, check: impl Fn(&str, &[Vec<u8>])) {
        self.on(gpus().into_iter().chain(gpus_of_other_tiles()), check);
    }

    fn on(&self, gpus: impl IntoIterator<Item = Gpu>, check: impl Fn(&str, &[Vec<u8>])) {
        for gpu in gpus {
            let run = self.run(&gpu);
            let bytes: Vec<Vec<u8>> = run.downloads.iter().map(|bytes| bytes.to_vec()).collect();
            check(&gpu.info().name, &bytes);
        }
    }
}

pub(super) fn elements<T: Element>(bytes: &[u8]) -> Vec<T> {
    let mut elements = vec![T::default(); bytes.len() / size_of::<T>()];
    for (to, from) in elements.iter_mut().zip(bytes.chunks_exact(size_of::<T>())) {
        *to = bytemuck::checked::pod_read_unaligned(from);
    }
    elements
}

#[track_caller]
pub(super) fn assert_near(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (&a, &b)) in got.iter().zip(expected).enumerate() {
        let near =
            (a - b).abs() <= tolerance * b.abs().max(1.0) || a == b || a.is_nan() && b.is_nan();
        assert!(near, "{what}: element {i} is {a}, expected {b}");
    }
}

/// Numbers between -1 and 1 without a pattern; the same each time.
pub(super) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32) / ((1u64 << 23) as f32) - 1.0
        })
        .collect()
}
