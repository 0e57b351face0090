//! From groups to steps: one file for each kind of kernel.
//!
//! Pure: the steps of a group are a function of the program, the group and the limits of the device. Placement
//! asks [`supports`], which lowers and throws the steps away, so that the two never disagree.

use convoke_compiler::{Group, Kernel, Operand, Program, Source, ValueId};
use convoke_graph_core::{DType, Layout};
use convoke_shaders::Access;
use rustc_hash::{FxHashMap, FxHashSet};

use super::address::Axes;
use super::parts::Parts;
use super::step::{MAX_LEN, Place, Step, StepBuilder, as_stored, stored, wgsl};
use crate::gpu::AdapterInfo;

mod conv;
mod custom;
mod elementwise;
mod head;
mod matmul;
mod moves;
mod pool;
mod random;
mod reduce;
mod rows;
mod tail;

/// Invocations of a workgroup where nothing speaks for another number.
const WG: u64 = 256;

/// Whether the device of `info` can do the work of `group`.
///
/// # Errors
/// Why not, as a text.
pub fn supports(info: &AdapterInfo, program: &Program, group: &Group) -> Result<(), String> {
    Lowering::new(info, program).group(group).map(|_| ())
}

/// Makes steps, and gathers what they need beside values.
pub(crate) struct Lowering<'a> {
    pub info: &'a AdapterInfo,
    pub program: &'a Program,
    /// Values that are brought to the device, variables of others among them.
    pub uploaded: FxHashSet<ValueId>,
    /// Bytes of each [`Place::Scratch`].
    pub scratch: Vec<u64>,
    /// Outputs that are stored into variables.
    pub redirect: FxHashMap<ValueId, Place>,
    /// Values that lie inside of others.
    pub parts: Parts,
    /// Whether nothing may be stored once the status word is set.
    pub guarded: bool,
    /// The number that kernels report with a fault.
    pub number: u32,
    /// What is done with the result of the kernel at hand, whose place is that of its input 0.
    tail: Option<tail::Tail>,
}

impl<'a> Lowering<'a> {
    pub(crate) fn new(info: &'a AdapterInfo, program: &'a Program) -> Self {
        Self {
            info,
            program,
            uploaded: FxHashSet::default(),
            scratch: Vec::new(),
            redirect: FxHashMap::default(),
            parts: Parts::default(),
            guarded: false,
            number: 0,
            tail: None,
        }
    }

    /// The steps of a group, in order. None if all that it writes is empty.
    pub(crate) fn group(&mut self, group: &Group) -> Result<Vec<Step>, String> {
        if self.info.limits.max_compute_invocations_per_workgroup < WG as u32 {
            return Err(format!("unsupported: a device without workgroups of {WG} invocations"));
        }
        if group.has_strings(&self.program.values) {
            return Err("unsupported: strings, which are on the host only".to_owned());
        }
        let group = &self.parts.seen(group);
        for operand in &group.inputs {
            self.check(operand.value, operand.layout.shape().len())?;
        }
        for &output in &group.outputs {
            self.check(output, 0)?;
        }
        if let Kernel::Gather { .. } | Kernel::ScatterAdd { .. } = group.kernel {
            moves::check_indices(self, group)?;
        }
        if group.outputs.iter().all(|&id| self.program.value(id).shape.is_empty()) {
            return Ok(Vec::new());
        }
        if group.tail.is_none() {
            return self.kernel(group);
        }
        let tail = group.tail().ok_or("a tail without its group")?;
        self.tail = Some(tail::numbered(group, tail)?);
        let steps = self.kernel(&group.core());
        self.tail = None;
        steps
    }

    /// One step for elementwise groups without checks, none of which reads or writes what another writes.
    pub(crate) fn together(&self, groups: &[&Group]) -> Result<Step, String> {
        let seen: Vec<Group> = groups.iter().map(|group| self.parts.seen(group)).collect();
        elementwise::lower_together(self, &seen)
    }

    fn kernel(&mut self, group: &Group) -> Result<Vec<Step>, String> {
        match &group.kernel {
            Kernel::Elementwise(fused) => elementwise::lower(self, group, fused),
            Kernel::Reduce(reduction) => reduce::lower(self, group, *reduction),
            Kernel::Rows(work) => rows::lower(self, group, work),
            Kernel::Matmul => matmul::lower(self, group),
            Kernel::Pad { before } => moves::pad(self, group, before),
            Kernel::Concat { axis } => moves::concat(self, group, *axis),
            Kernel::Gather { axis } => moves::gather(self, group, *axis),
            Kernel::ScatterAdd { axis } => moves::scatter_add(self, group, *axis),
            Kernel::Random(random) => random::lower(self, group, *random),
            Kernel::Conv2d(g) => conv::lower(self, group, conv::Way::Forward, g),
            Kernel::Conv2dInput(g) => conv::lower(self, group, conv::Way::Input, g),
            Kernel::Conv2dFilter(g) => conv::lower(self, group, conv::Way::Filter, g),
            Kernel::Pool { kind, geometry } => pool::lower(self, group, *kind, geometry),
            Kernel::Custom(kernel) => custom::lower(self, group, &**kernel),
            other => Err(format!("unsupported: {other} on a GPU")),
        }
    }

    /// Copies the words of `from` to `to`.
    pub(crate) fn copy(&self, from: Place, to: Place, n_bytes: u64) -> Result<Step, String> {
        let words = n_bytes.div_ceil(4);
        let mut step = StepBuilder::new("elementwise");
        let x = step.bind(from, "u32", Access::Read);
        let y = step.bind(to, "u32", Access::ReadWrite);
        step.kernel.declare(format!("fn compute(i: u32) {{ b{y}[i] = b{x}[i]; }}"));
        step.kernel.size("items", words as u32);
        self.guard(&mut step);
        step.finish(words.div_ceil(WG), &self.info.limits)
    }

    /// Makes the step store nothing once the status word is set.
    fn guard(&self, step: &mut StepBuilder) {
        if self.guarded {
            let status = step.bind(Place::Status, "u32", Access::Read);
            step.kernel.declare(format!("fn allowed() -> bool {{ return b{status}[0] == 0u; }}"));
        }
    }

    /// Lets the step report indices that are out of range.
    fn report(&self, step: &mut StepBuilder) {
        let status = step.bind(Place::Status, "atomic<u32>", Access::ReadWrite);
        step.kernel.rename(status, "status");
        step.kernel.size("kernel", self.number).import("status");
    }

    /// Whether the value fits a binding and can be counted, and so can `len`.
    fn check(&self, id: ValueId, len: usize) -> Result<(), String> {
        let value = self.program.value(id);
        stored(value.dtype)?;
        if value.dtype == DType::F16 && !self.info.features.f16 {
            return Err("unsupported: f16 on a device without it".to_owned());
        }
        let (n_bytes, max) =
            (value.n_bytes() as u64, self.info.limits.max_storage_buffer_binding_size);
        if n_bytes > max {
            return Err(format!(
                "unsupported: {n_bytes} bytes in one buffer, the device has {max}"
            ));
        }
        let len = len.max(value.shape.len()) as u64;
        if len >= MAX_LEN {
            return Err(format!("unsupported: {len} elements in one kernel, at most {MAX_LEN}"));
        }
        Ok(())
    }

    fn dtype(&self, id: ValueId) -> DType {
        self.program.value(id).dtype
    }

    /// Where a value is read.
    pub(crate) fn place(&self, id: ValueId) -> Place {
        match self.program.value(id).source {
            Source::Variable(node) if !self.uploaded.contains(&id) => Place::Variable(node),
            _ => Place::Value(id),
        }
    }

    /// Where a value is written.
    fn target(&self, id: ValueId) -> Place {
        self.redirect.get(&id).copied().unwrap_or(Place::Value(id))
    }

    /// Binds output `k` of a kernel, of `dtype` at `target`.
    fn bind_output(
        &self,
        step: &mut StepBuilder,
        k: usize,
        target: Place,
        dtype: DType,
    ) -> Result<Output, String> {
        let part = match target {
            Place::Value(id) => self.parts.get(id),
            _ => None,
        };
        let Some(part) = part else {
            let binding = step.bind(target, stored(dtype)?, Access::ReadWrite);
            return Ok(Output { binding, dtype, part: None });
        };
        let binding = step.bind_part(Place::Value(part.whole), stored(dtype)?);
        let (axes, kernel) = (Axes::of(&[&part.layout]), &mut step.kernel);
        kernel.size(format!("y{k}"), part.layout.offset() as u32);
        axes.size_params(kernel, &format!("y{k}_d"));
        let (sizes, strides) = (format!("y{k}_d"), format!("y{k}_s"));
        let body = axes.address(kernel, 0, &sizes, &strides, &format!("p.y{k}"));
        kernel.declare(format!("fn part_{k}(i: u32) -> u32 {{ {body} }}"));
        Ok(Output { binding, dtype, part: Some(k) })
    }

    /// Refuses operands and outputs that are not of `dtype` with these sizes, or operands with a layout.
    fn check_packed(
        &self,
        group: &Group,
        inputs: &[[usize; 4]],
        output: [usize; 4],
        dtype: DType,
    ) -> Result<ValueId, String> {
        let &[id] = group.outputs.as_slice() else {
            return Err(format!("{} has one output", group.kernel));
        };
        if group.inputs.len() != inputs.len() || self.program.value(id).shape.dims() != output {
            return Err(format!(
                "{} has {} inputs and gives {output:?}",
                group.kernel,
                inputs.len()
            ));
        }
        for (operand, dims) in group.inputs.iter().zip(inputs) {
            let layout = &operand.layout;
            let n = self.program.value(operand.value).shape.len();
            let whole = layout.is_packed() && layout.offset() == 0 && layout.shape().len() == n;
            if !whole || layout.shape().dims() != dims {
                return Err(format!("{} of {operand}, which is not {dims:?}", group.kernel));
            }
        }
        let ids = group.inputs.iter().map(|operand| operand.value).chain([id]);
        match ids.map(|id| self.dtype(id)).find(|&other| other != dtype) {
            Some(other) => Err(format!("unsupported: {} of {other} on a GPU", group.kernel)),
            None => Ok(id),
        }
    }

    /// f16 for groups that give it, else f32: what images are of.
    fn float(&self, group: &Group) -> DType {
        let first = group.outputs.first().map(|&id| self.dtype(id));
        first.filter(|&dtype| dtype == DType::F16).unwrap_or(DType::F32)
    }

    /// New memory of its own.
    pub(crate) fn new_scratch(&mut self, n_bytes: u64) -> Result<Place, String> {
        let max = self.info.limits.max_storage_buffer_binding_size;
        if n_bytes > max {
            return Err(format!(
                "unsupported: {n_bytes} bytes in one buffer, the device has {max}"
            ));
        }
        self.scratch.push(n_bytes);
        Ok(Place::Scratch(self.scratch.len() as u32 - 1))
    }

    /// Declares `load_{k}(i)`, which reads element `i` of `operand` in the order of its layout's shape. The
    /// layout is that of `axes[k]`, whose sizes are params `d1`, `d2`, ..
    fn load(
        &self,
        step: &mut StepBuilder,
        operand: &Operand,
        axes: &Axes,
        k: usize,
        sizes: &str,
        index: usize,
    ) -> Result<(), String> {
        let dtype = self.dtype(operand.value);
        let binding = step.bind(self.place(operand.value), stored(dtype)?, Access::Read);
        let kernel = &mut step.kernel;
        kernel.size(format!("x{k}"), operand.layout.offset() as u32);
        let body = axes.address(kernel, index, sizes, &format!("x{k}_s"), &format!("p.x{k}"));
        kernel.declare(format!("fn at_{k}(i: u32) -> u32 {{ {body} }}"));
        let (ty, element) = (wgsl(dtype)?, element(dtype, binding, &format!("at_{k}(i)")));
        kernel.declare(format!("fn load_{k}(i: u32) -> {ty} {{ {element} }}"));
        Ok(())
    }

    /// As [`Self::load`], of an operand that is alone with its sizes.
    fn load_alone(
        &self,
        step: &mut StepBuilder,
        operand: &Operand,
        k: usize,
    ) -> Result<(), String> {
        let axes = Axes::of(&[&operand.layout]);
        let sizes = format!("x{k}_d");
        axes.size_params(&mut step.kernel, &sizes);
        self.load(step, operand, &axes, k, &sizes, 0)
    }
}

/// A buffer that a kernel stores into.
pub(super) struct Output {
    binding: usize,
    dtype: DType,
    /// The number of the function that tells where elements lie, if they are part of something.
    part: Option<usize>,
}

impl Output {
    /// The statement that stores `v`, of the dtype's type in functions, as element `i`.
    fn store(&self, i: &str, v: &str) -> String {
        let (binding, v) = (self.binding, as_stored(self.dtype, v));
        match self.part {
            Some(k) => format!("b{binding}[part_{k}({i})] = {v};"),
            None => format!("b{binding}[{i}] = {v};"),
        }
    }
}

/// Statements that return the element at `at` of a binding.
fn element(dtype: DType, binding: usize, at: &str) -> String {
    match dtype {
        DType::Bool => {
            format!("let at = {at}; return (b{binding}[at / 4u] >> (at % 4u * 8u) & 0xffu) != 0u;")
        }
        DType::F16 => format!("return f32(b{binding}[{at}]);"),
        _ => format!("return b{binding}[{at}];"),
    }
}

/// A packed layout as an operand.
fn as_packed(program: &Program, value: ValueId) -> Operand {
    Operand { value, layout: Layout::packed(program.value(value).shape.clone()) }
}
