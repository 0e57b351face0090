//! One dispatch before buffers exist: a kernel, the places that it binds, and its grid.

use std::fmt;

use convoke_compiler::ValueId;
use convoke_graph_core::{DType, NodeId};
use convoke_shaders::{Access, Kernel, Source};
use smallvec::SmallVec;

use crate::gpu::GpuLimits;

/// The most elements of a value, and of what a kernel counts: offsets of them fit 32 bits with room to round.
pub(crate) const MAX_LEN: u64 = 1 << 31;

/// Loops of one invocation turn less often than this, all taken together. llvmpipe stops silently at 65,535.
pub(crate) const MAX_TURNS: u64 = 60_000;

/// Something that a kernel binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A value of the program: computed, uploaded or constant.
    Value(ValueId),
    /// The elements of a variable.
    Variable(NodeId),
    /// Memory between the steps of one group, or a variable's elements at the start of the run.
    Scratch(u32),
    /// The status word, and what it is about.
    Status,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(id) => write!(f, "{id}"),
            Self::Variable(node) => write!(f, "variable %{}", node.0),
            Self::Scratch(i) => write!(f, "scratch {i}"),
            Self::Status => f.write_str("status"),
        }
    }
}

/// A group of the program, and its share of a step's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The group's number.
    pub group: u32,
    /// In proportion to those of the step's other groups, at least 1.
    pub share: u64,
}

/// A dispatch.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// What runs.
    pub kernel: Kernel,
    /// What is bound, one for each binding of the kernel.
    pub places: Vec<Place>,
    /// Workgroups.
    pub groups: [u32; 3],
    /// The program's groups that it does the work of; none for the copies of commits.
    pub origins: SmallVec<[Origin; 1]>,
    /// Whether the kernel is one of ours, which checks every index and bounds every loop itself.
    pub trusted: bool,
    /// Places of which a part is written that no other step writes, each with whether other parts are read.
    pub parts: Vec<(Place, bool)>,
}

impl Step {
    /// The places with this access.
    pub(crate) fn with_access(&self, wanted: Access) -> impl Iterator<Item = Place> {
        let both = self.kernel.bindings().iter().zip(&self.places);
        both.filter(move |(binding, _)| binding.access == wanted).map(|(_, place)| *place)
    }

    /// Whether it can set the status word.
    pub(crate) fn can_fail(&self) -> bool {
        self.with_access(Access::ReadWrite).any(|place| place == Place::Status)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kernel.name(), self.groups)?;
        for (binding, place) in self.kernel.bindings().iter().zip(&self.places) {
            let sign = if binding.access == Access::Read { "" } else { "=" };
            write!(f, " {sign}{place}")?;
        }
        Ok(())
    }
}

/// A step that is being made.
pub(crate) struct StepBuilder {
    pub kernel: Kernel,
    places: Vec<Place>,
    trusted: bool,
    parts: Vec<Place>,
    reads: Vec<Place>,
}

impl StepBuilder {
    /// A step with the kernel of the file `name`.
    pub(crate) fn new(name: &'static str) -> Self {
        let file = convoke_shaders::KERNELS.iter().find(|source| source.name == name);
        // A name without a file gives a shader without an entry point, which every test of it refuses.
        let file = file.copied().unwrap_or(Source { name, text: "" });
        Self {
            kernel: Kernel::new(file),
            places: Vec::new(),
            trusted: true,
            parts: vec![],
            reads: vec![],
        }
    }

    /// A step with a kernel that a user wrote.
    pub(crate) fn custom(file: Source) -> Self {
        Self {
            kernel: Kernel::new(file),
            places: Vec::new(),
            trusted: false,
            parts: vec![],
            reads: vec![],
        }
    }

    /// Binds a place; what is bound already is bound once.
    pub(crate) fn bind(&mut self, place: Place, element: &'static str, access: Access) -> usize {
        if access == Access::Read {
            self.reads.push(place);
        }
        match self.places.iter().position(|&other| other == place) {
            Some(binding) => {
                if access == Access::ReadWrite {
                    self.kernel.make_writable(binding);
                }
                binding
            }
            None => {
                self.places.push(place);
                if element == "f16" {
                    self.kernel.enable_f16().import("math");
                }
                let name = format!("b{}", self.places.len() - 1);
                self.kernel.bind(&name, element, access)
            }
        }
    }

    /// Binds a place of which a part is written that no other step writes.
    pub(crate) fn bind_part(&mut self, place: Place, element: &'static str) -> usize {
        self.parts.push(place);
        self.bind(place, element, Access::ReadWrite)
    }

    /// Ends with a grid of `n` workgroups.
    pub(crate) fn finish(self, n: u64, limits: &GpuLimits) -> Result<Step, String> {
        let max = limits.max_storage_buffers_per_shader_stage as usize;
        if self.places.len() > max {
            let n = self.places.len();
            return Err(format!("unsupported: {n} buffers in one kernel, the device has {max}"));
        }
        let groups = fold(n, limits.max_compute_workgroups_per_dimension)
            .ok_or_else(|| format!("unsupported: {n} workgroups in one kernel"))?;
        let Self { kernel, places, trusted, parts, reads } = self;
        let parts = parts.into_iter().map(|place| (place, reads.contains(&place))).collect();
        Ok(Step { kernel, places, groups, origins: SmallVec::new(), trusted, parts })
    }
}

/// A grid of at least `n` workgroups, with little more than that.
fn fold(n: u64, max: u32) -> Option<[u32; 3]> {
    let max = u64::from(max.max(1));
    let z = n.div_ceil(max * max).max(1);
    let y = n.div_ceil(max * z).max(1);
    let x = n.div_ceil(y * z);
    (z <= max).then_some([x as u32, y as u32, z as u32])
}

/// The type of a dtype's elements in a buffer.
pub(crate) fn stored(dtype: DType) -> Result<&'static str, String> {
    Ok(match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::I32 => "i32",
        DType::U32 | DType::Bool => "u32",
        _ => return Err(format!("unsupported: {dtype} on a GPU")),
    })
}

/// The type of a dtype's elements in a function: f16 is computed with as f32, and rounded after each
/// operation.
pub(crate) fn wgsl(dtype: DType) -> Result<&'static str, String> {
    match dtype {
        DType::Bool => Ok("bool"),
        DType::F16 => Ok("f32"),
        _ => stored(dtype),
    }
}

/// An element in a buffer, as its dtype's type in functions.
pub(crate) fn loaded(dtype: DType, element: &str) -> String {
    if dtype == DType::F16 { format!("f32({element})") } else { element.to_owned() }
}

/// An expression of a dtype's type in functions, as its type in a buffer.
pub(crate) fn as_stored(dtype: DType, expression: &str) -> String {
    if dtype == DType::F16 {
        format!("f16(round_f16({expression}))")
    } else {
        expression.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::fold;

    #[test]
    fn grids_hold_all_workgroups() {
        let groups = [0, 1, 2, 65_535, 65_536, 65_537, 1 << 20, 65_535 * 65_535, 1 << 33];
        for n in groups {
            let [x, y, z] = fold(n, 65_535).unwrap();
            assert!(x <= 65_535 && y <= 65_535 && z <= 65_535, "{n}");
            let held = u64::from(x) * u64::from(y) * u64::from(z);
            assert!(held >= n && held <= n + 2 * u64::from(y) * u64::from(z), "{n}: {held}");
        }
        assert_eq!(fold(u64::MAX, 65_535), None);
    }
}
