//! Every kernel that can be asked for is valid WGSL, and becomes SPIR-V, MSL and HLSL with the options that
//! wgpu-hal 30 itself uses. Metal and DX12 are promised and not at hand. `spirv-val` checks where it is found.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use convoke_compiler::{Kernel, Operand};
use convoke_graph_core::{DType, ReduceKind};
use half::f16;
use naga::ResourceBinding;
use naga::ShaderStage::Compute;
use naga::back::{hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

use super::fused::{Dice, random_group};
use super::harness::*;
use crate::gpu::{Adapter, AdapterInfo, AdapterKind, Gpu, GpuOptions};
use crate::segment::schedule::{Merging, schedule};
use crate::segment::step::Step;

/// A kernel's text and its number of storage buffers, with those that are written.
type Text = (String, Vec<bool>);

/// The texts of all steps of the one segment of `b`.
fn texts(info: &AdapterInfo, b: &Build, texts: &mut BTreeSet<Text>) {
    let schedule = schedule(info, &b.program, &b.program.segments[0], Merging::Alike).unwrap();
    for (_, Step { kernel, .. }) in &schedule.steps {
        let written = kernel.bindings().iter();
        let written = written.map(|b| b.access == convoke_shaders::Access::ReadWrite).collect();
        texts.insert((kernel.assemble(), written));
    }
}

/// A device whose subgroups have so many invocations.
pub(super) fn with_subgroups(info: &AdapterInfo, kind: AdapterKind, size: u32) -> AdapterInfo {
    let mut info = AdapterInfo { kind, ..info.clone() };
    (info.subgroup_min_size, info.subgroup_max_size) = (size, size);
    info.features.subgroups = true;
    info
}

fn uses_subgroups(text: &str) -> bool {
    text.contains("subgroup_invocation_id")
}

fn policies(trusted: bool) -> BoundsCheckPolicies {
    let policy = if trusted { BoundsCheckPolicy::Unchecked } else { BoundsCheckPolicy::Restrict };
    BoundsCheckPolicies {
        index: policy,
        buffer: policy,
        image_load: policy,
        binding_array: BoundsCheckPolicy::Unchecked,
    }
}

fn binding(i: usize) -> ResourceBinding {
    ResourceBinding { group: 0, binding: i as u32 }
}

/// As wgpu-hal's vulkan/device.rs.
fn to_spirv(
    (text, module, info): (&str, &naga::Module, &ModuleInfo),
    n: usize,
    trusted: bool,
) -> Vec<u32> {
    let mut binding_map = spv::BindingMap::default();
    for i in 0..=n {
        let target =
            spv::BindingInfo { descriptor_set: 0, binding: i as u32, binding_array_size: None };
        binding_map.insert(binding(i), target);
    }
    let mut capabilities = vec![spv::Capability::Shader];
    if uses_subgroups(text) {
        use spv::Capability::{GroupNonUniform, GroupNonUniformArithmetic, GroupNonUniformShuffle};
        capabilities.extend([GroupNonUniform, GroupNonUniformArithmetic, GroupNonUniformShuffle]);
    }
    if module.types.iter().any(|(_, ty)| ty.inner == naga::TypeInner::Scalar(naga::Scalar::F16)) {
        use spv::Capability::{
            Float16, StorageBuffer16BitAccess, UniformAndStorageBuffer16BitAccess,
        };
        capabilities.extend([
            Float16,
            StorageBuffer16BitAccess,
            UniformAndStorageBuffer16BitAccess,
        ]);
    }
    let options = spv::Options {
        lang_version: if trusted { (1, 6) } else { (1, 3) },
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        capabilities: Some(capabilities.into_iter().collect()),
        bounds_check_policies: policies(trusted),
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: !trusted,
        binding_map,
        debug_info: None,
        ..spv::Options::default()
    };
    let pipeline = spv::PipelineOptions { shader_stage: Compute, entry_point: "main".to_owned() };
    spv::write_vec(module, info, &options, Some(&pipeline)).unwrap()
}

/// As wgpu-hal's metal/device.rs.
fn to_msl(module: &naga::Module, info: &ModuleInfo, written: &[bool], trusted: bool) -> String {
    let n = written.len();
    let mut resources = BTreeMap::new();
    for i in 0..=n {
        let mutable = written.get(i).copied().unwrap_or(false);
        let target = msl::BindTarget { buffer: Some(i as u8), mutable, ..Default::default() };
        resources.insert(binding(i), target);
    }
    let own = msl::EntryPointResources {
        resources,
        immediates_buffer: None,
        sizes_buffer: Some(n as u8 + 1),
    };
    let options = msl::Options {
        lang_version: if trusted { (3, 1) } else { (2, 0) },
        per_entry_point_map: BTreeMap::from([("main".to_owned(), own)]),
        fake_missing_bindings: false,
        bounds_check_policies: policies(trusted),
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: !trusted,
        ..msl::Options::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((Compute, "main".to_owned())),
        vertex_pulling_transform: true,
        ..Default::default()
    };
    let (text, info) = msl::write_string(module, info, &options, &pipeline).unwrap();
    assert!(info.entry_point_names.iter().all(Result::is_ok));
    text
}

/// As wgpu-hal's dx12/device.rs: no immediates, and a constant buffer for the number of workgroups.
fn to_hlsl(module: &naga::Module, info: &ModuleInfo, written: &[bool], fxc: bool) -> String {
    let (mut reads, mut writes) = (0, 0);
    let mut binding_map = hlsl::BindingMap::default();
    let target = |register: &mut u32| {
        let own = *register;
        *register += 1;
        hlsl::BindTarget { space: 0, register: own, restrict_indexing: true, ..Default::default() }
    };
    for (i, &written) in written.iter().enumerate() {
        let register = if written { &mut writes } else { &mut reads };
        binding_map.insert(binding(i), target(register));
    }
    binding_map.insert(binding(written.len()), target(&mut 0));
    let options = hlsl::Options {
        shader_model: if fxc { hlsl::ShaderModel::V5_1 } else { hlsl::ShaderModel::V6_0 },
        binding_map,
        fake_missing_bindings: false,
        special_constants_binding: Some(target(&mut 1)),
        ..hlsl::Options::default()
    };
    let pipeline = hlsl::PipelineOptions { entry_point: Some((Compute, "main".to_owned())) };
    let mut text = String::new();
    let reflection =
        hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None).unwrap();
    assert!(reflection.entry_point_names.iter().all(Result::is_ok));
    text
}

/// Validates and translates, and gives the SPIR-V of both modes.
fn translate((text, written): &Text) -> [Vec<u32>; 2] {
    let module = naga::front::wgsl::parse_str(text);
    let module = module.unwrap_or_else(|e| panic!("{}\n{text}", e.emit_to_string(text)));
    let mut capabilities = Capabilities::empty();
    capabilities.set(Capabilities::SHADER_FLOAT16, text.starts_with("enable f16;"));
    capabilities.set(Capabilities::SUBGROUP, uses_subgroups(text));
    let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module);
    let info = info.unwrap_or_else(|e| panic!("{}\n{text}", e.emit_to_string(text)));
    let storage = |g: &naga::GlobalVariable| matches!(g.space, naga::AddressSpace::Storage { .. });
    let n = module.global_variables.iter().filter(|(_, g)| storage(g)).count();
    assert_eq!(n, written.len());
    let workgroup: u32 = module
        .global_variables
        .iter()
        .filter(|(_, g)| g.space == naga::AddressSpace::WorkGroup)
        .map(|(_, g)| module.types[g.ty].inner.size(module.to_ctx()))
        .sum();
    assert!(workgroup <= 16 << 10, "{workgroup} bytes of workgroup memory\n{text}");
    let size: u32 = module.entry_points[0].workgroup_size.iter().product();
    assert!(size <= 256, "{size} invocations\n{text}");
    [false, true].map(|mode| {
        assert!(!to_msl(&module, &info, written, mode).is_empty());
        // The older compiler of HLSL has no subgroups, and no adapter with it offers them.
        let fxc = mode && !uses_subgroups(text);
        assert!(!to_hlsl(&module, &info, written, fxc).is_empty());
        to_spirv((text, &module, &info), n, mode)
    })
}

/// Runs spirv-val on the words, if it is on PATH.
fn spirv_val(words: &[u32], env: &str, text: &str) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("convoke-{}-{number}.spv", std::process::id()));
    std::fs::write(&path, bytemuck::cast_slice::<u32, u8>(words)).unwrap();
    let run = Command::new("spirv-val").args(["--target-env", env]).arg(&path).output();
    let _ = std::fs::remove_file(&path);
    if let Ok(output) = run {
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{message}\n{text}");
    }
}

fn check(texts: &BTreeSet<Text>, every: usize) {
    for (i, text) in texts.iter().enumerate() {
        let [checked, trusted] = translate(text);
        if i % every == 0 {
            spirv_val(&checked, "vulkan1.1", &text.0);
            spirv_val(&trusted, "vulkan1.3", &text.0);
        }
    }
}

#[test]
fn two_thousand_random_groups() {
    let gpu = Gpu::open(&Adapter::noop(), &GpuOptions::default()).unwrap();
    let mut dice = Dice(42);
    let mut all = BTreeSet::new();
    for _ in 0..2000 {
        texts(gpu.info(), &random_group(&mut dice, 4), &mut all);
    }
    assert!(all.len() > 1900, "{}", all.len());
    check(&all, 40);
}

#[test]
fn every_kind_of_kernel() {
    let gpu = Gpu::open(&Adapter::noop(), &GpuOptions::default()).unwrap();
    let mut all = BTreeSet::new();
    let kinds =
        [matmuls(), reductions(), heads(), tails(), halves(), moves(), super::images::every_kind()];
    for b in kinds {
        texts(gpu.info(), &b, &mut all);
    }
    for (kind, size) in [(AdapterKind::Cpu, 4), (AdapterKind::Cpu, 8), (AdapterKind::Discrete, 32)]
    {
        let info = with_subgroups(gpu.info(), kind, size);
        for b in [reductions(), rows(), matmuls(), heads(), tails(), super::images::every_kind()] {
            texts(&info, &b, &mut all);
        }
    }
    assert!(all.iter().filter(|(text, _)| uses_subgroups(text)).count() >= 10);
    assert!(all.len() > 50, "{}", all.len());
    assert!(all.iter().filter(|(text, _)| text.starts_with("enable f16;")).count() >= 5);
    check(&all, 1);
}

pub(super) fn matmuls() -> Build {
    let mut b = Build::new();
    for [batch, m, k, n] in [[1, 1, 1, 1], [2, 100, 30, 100], [40, 64, 64, 64], [1, 4, 5000, 4]] {
        let x = b.upload(&[batch, m, k], &vec![0f32; batch * m * k]);
        let y = b.upload(&[batch, n, k], &vec![0f32; batch * n * k]);
        let u = b.upload(&[k, n], &vec![0u32; k * n]);
        let layout = packed(&[batch, n, k]).permute(&[0, 2, 1]).unwrap();
        let inputs = [b.whole(x), Operand { value: y, layout }];
        b.one(Kernel::Matmul, &inputs, DType::F32, &[batch, m, n]);
        let transposed = packed(&[k, n]).permute(&[1, 0]).unwrap();
        let inputs = [Operand { value: u, layout: transposed }, b.whole(u)];
        b.one(Kernel::Matmul, &inputs, DType::U32, &[n, n]);
        let row = b.upload(&[n], &vec![0u32; n]);
        let layout = packed(&[n]).broadcast(&shape(&[n, n])).unwrap();
        b.tail(Operand { value: row, layout });
    }
    b
}

/// Products whose operands are made where they are loaded, the right one transposed, in one step and in several.
pub(super) fn heads() -> Build {
    let mut b = Build::new();
    for [m, k, n] in [[1, 1, 1], [64, 784, 128], [4, 5000, 4], [100, 5000, 100]] {
        let (x, y) = (b.upload(&[m, k], &vec![0f32; m * k]), b.upload(&[n, k], &vec![0f32; n * k]));
        let (scale, bias) = (b.upload(&[k], &vec![0f32; k]), b.upload(&[n], &vec![0f32; n]));
        let turned = packed(&[n, k]).permute(&[1, 0]).unwrap();
        let inputs = [b.whole(x), Operand { value: y, layout: turned }];
        b.one(Kernel::Matmul, &inputs, DType::F32, &[m, n]);
        for (operand, dims) in [[m, k], [n, k]].iter().enumerate() {
            let layout = packed(&[k]).broadcast(&shape(dims)).unwrap();
            b.head(operand, Operand { value: scale, layout });
        }
        let layout = packed(&[n]).broadcast(&shape(&[m, n])).unwrap();
        b.tail(Operand { value: bias, layout });
    }
    b
}

/// Products and reductions, in one step and in several, whose result goes through more work.
pub(super) fn tails() -> Build {
    let mut b = Build::new();
    for [m, k, n] in [[1, 1, 1], [64, 784, 128], [4, 5000, 4]] {
        let (x, y) = (b.upload(&[m, k], &vec![0f32; m * k]), b.upload(&[k, n], &vec![0f32; k * n]));
        let row = b.upload(&[n], &vec![0f32; n]);
        b.one(Kernel::Matmul, &[b.whole(x), b.whole(y)], DType::F32, &[m, n]);
        let layout = packed(&[n]).broadcast(&shape(&[m, n])).unwrap();
        b.tail(Operand { value: row, layout });
    }
    for (m, k) in [(3, 7), (5, 200_000), (300, 64)] {
        let (x, y) = (b.upload(&[m, k], &vec![0i32; m * k]), b.upload(&[m], &vec![0i32; m]));
        b.one(reduction(ReduceKind::Sum, 1), &[b.whole(x)], DType::I32, &[m]);
        b.tail(b.whole(y));
    }
    b
}

/// Softmax of short, middling and long rows.
fn rows() -> Build {
    let mut b = Build::new();
    for dims in [[7, 10], [7, 100], [7, 1000], [7, 10_000]] {
        let x = b.upload(&dims, &vec![0f32; dims[0] * dims[1]]);
        let x = b.whole(x);
        b.one(super::golden::softmax(&dims), &[x], DType::F32, &dims);
    }
    b
}

fn reductions() -> Build {
    use ReduceKind::{All, Any, ArgMax, ArgMin, Max, Mean, Min, Prod, Sum};
    let mut b = Build::new();
    let f = b.upload(&[40, 50, 60], &vec![0f32; 120_000]);
    let i = b.upload(&[40, 50, 60], &vec![0i32; 120_000]);
    let u = b.upload(&[40, 50, 60], &vec![0u32; 120_000]);
    let flags = b.upload(&[40, 50, 60], &vec![false; 120_000]);
    for axes in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let layout = packed(&[40, 50, 60]).permute(&axes).unwrap();
        for n_outer in 0..4 {
            let dims = layout.shape().dims()[..n_outer].to_vec();
            let mut add = |kind, value, dtype| {
                let operand = Operand { value, layout: layout.clone() };
                b.one(reduction(kind, n_outer), &[operand], dtype, &dims);
            };
            for (value, dtype) in [(f, DType::F32), (i, DType::I32), (u, DType::U32)] {
                for kind in [Sum, Prod, Max, Min] {
                    add(kind, value, dtype);
                }
                add(ArgMax, value, DType::I32);
                add(ArgMin, value, DType::I32);
            }
            add(Mean, f, DType::F32);
            add(Any, flags, DType::Bool);
            add(All, flags, DType::Bool);
        }
    }
    b
}

/// Of f16: a product in parts with a tail, a reduction, a move and an elementwise group.
fn halves() -> Build {
    let mut b = Build::new();
    let [x, y] =
        [[5, 3000], [3000, 3]].map(|dims| b.upload(&dims, &vec![f16::ZERO; dims[0] * dims[1]]));
    let row = b.upload(&[3], &[f16::ONE; 3]);
    let product = b.one(Kernel::Matmul, &[b.whole(x), b.whole(y)], DType::F16, &[5, 3]);
    let layout = packed(&[3]).broadcast(&shape(&[5, 3])).unwrap();
    let row = Operand { value: row, layout };
    b.one(reduction(ReduceKind::Max, 1), &[b.whole(x)], DType::F16, &[5]);
    b.one(Kernel::Pad { before: vec![1, 1] }, &[b.whole(x)], DType::F16, &[7, 3002]);
    b.row("tanh", &[b.whole(product)], &[5, 3]);
    b.row("less", &[b.whole(product), row.clone()], &[5, 3]);
    b.one(Kernel::Matmul, &[b.whole(x), b.whole(y)], DType::F16, &[5, 3]);
    b.tail(row);
    b
}

pub(super) fn moves() -> Build {
    let mut b = Build::new();
    let x = b.upload(&[3, 4, 5], &[0f32; 60]);
    let flags = b.upload(&[3, 4, 5], &[false; 60]);
    let signed = b.upload(&[7], &[0i32; 7]);
    let unsigned = b.upload(&[7], &[0u32; 7]);
    let turned = packed(&[3, 4, 5]).slice(&[2, 0, 4], &[3, 4, 5], &[-1, 1, -1]).unwrap();
    let w = b.variable(99, DType::F32, &[3, 4, 5]);
    for (value, dtype) in [(x, DType::F32), (flags, DType::Bool)] {
        let operand = Operand { value, layout: turned.clone() };
        let whole = b.whole(value);
        for before in [[0, 0, 0], [1, 2, 3], [0, 2, 0]] {
            let out = [0, 1, 2].map(|i| [3, 4, 5][i] + 2 * before[i]);
            let kernel = Kernel::Pad { before: before.to_vec() };
            b.one(kernel, std::slice::from_ref(&operand), dtype, &out);
        }
        for n in 1..=7 {
            let inputs = vec![operand.clone(); n];
            b.one(Kernel::Concat { axis: 1 }, &inputs, dtype, &[3, 4 * n, 5]);
        }
        for indices in [signed, unsigned] {
            let inputs = [whole.clone(), b.whole(indices)];
            b.one(Kernel::Gather { axis: 1 }, &inputs, dtype, &[3, 7, 5]);
        }
    }
    for indices in [signed, unsigned] {
        let updates = b.upload(&[7, 5], &[0f32; 35]);
        let inputs = [b.whole(indices), b.whole(updates)];
        b.one(Kernel::ScatterAdd { axis: 0 }, &inputs, DType::F32, &[4, 5]);
    }
    let graph = convoke_graph_core::Graph::with_seed(1);
    let dtype = DType::F32;
    let tensors = [
        graph.random_uniform(&[9], dtype, 1),
        graph.random_normal(&[9], dtype, 1),
        graph.truncated_normal(&[9], dtype, 1),
    ];
    let draws = b.upload(&[], &[0u32]);
    for tensor in tensors {
        let node = graph.node(tensor.output().node);
        let convoke_graph_core::Class::Random(random) = node.op.class() else { continue };
        let operand = b.whole(draws);
        b.one(Kernel::Random(random), &[operand], dtype, &[9]);
    }
    // Commits that ask the status word: in place, and a copy.
    let operands = [b.whole(w), b.whole(x)];
    let next = b.row("add", &operands, &[3, 4, 5]);
    b.commit(99, next);
    b.commit(98, x);
    b
}
