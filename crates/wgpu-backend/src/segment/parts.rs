//! Parts: values that lie inside of a concatenation from the start, since the kernels that compute them store them
//! there. What else reads such a value reads that part of the whole.

use convoke_compiler::{Group, Kernel, Operand, Program, Segment, ValueId};
use convoke_graph_core::{DType, Layout};
use rustc_hash::{FxHashMap, FxHashSet};

use super::schedule::needed_after;

/// Groups between what makes a part and its concatenation, and bytes of a concatenation, up to which it lives from
/// its first part on.
const NEAR: usize = 16;
const SMALL: usize = 1 << 20;

/// Where a value lies.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// The concatenation.
    pub whole: ValueId,
    /// The value's elements in it.
    pub layout: Layout,
}

/// The values of a segment that are parts.
#[derive(Debug, Default)]
pub(crate) struct Parts(FxHashMap<ValueId, Part>);

impl Parts {
    /// The parts of the concatenations of a segment.
    pub(crate) fn of(program: &Program, segment: &Segment) -> Parts {
        let mut parts = Parts::default();
        let uses = Uses::of(program, segment);
        for &index in &segment.groups {
            let Some(group) = program.groups.get(index as usize) else { continue };
            if let (Kernel::Concat { axis }, &[whole]) = (&group.kernel, group.outputs.as_slice()) {
                parts.add(&uses, group, *axis, whole);
            }
        }
        parts
    }

    fn add(&mut self, uses: &Uses<'_>, group: &Group, axis: usize, whole: ValueId) {
        let shape = &uses.program.value(whole).shape;
        let mut starts = vec![0; shape.rank()];
        let steps = vec![1; shape.rank()];
        for input in &group.inputs {
            let dims = input.layout.shape().dims();
            let (Some(start), Some(&own)) = (starts.get(axis).copied(), dims.get(axis)) else {
                return;
            };
            let layout = Layout::packed(shape.clone()).slice(&starts, dims, &steps);
            starts[axis] = start.saturating_add(own);
            let Some(layout) = layout.filter(|_| !self.0.contains_key(&input.value)) else {
                continue;
            };
            let part = Part { whole, layout };
            if uses.is_whole(input) && uses.allow(input.value, group, &part) {
                self.0.insert(input.value, part);
            }
        }
    }

    /// Where a value lies, if it is a part.
    pub(crate) fn get(&self, id: ValueId) -> Option<&Part> {
        self.0.get(&id)
    }

    /// The group as it reads parts, all but those of the whole that it makes.
    pub(crate) fn seen(&self, group: &Group) -> Group {
        let mut seen = group.clone();
        for input in &mut seen.inputs {
            let part = self.get(input.value).filter(|part| !group.outputs.contains(&part.whole));
            if let Some((part, layout)) = part.and_then(|part| Some((part, part.view(input)?))) {
                *input = Operand { value: part.whole, layout };
            }
        }
        seen
    }
}

impl Part {
    /// An operand that sees the value, as a layout of the whole.
    fn view(&self, operand: &Operand) -> Option<Layout> {
        self.layout.through(&operand.layout)
    }
}

/// Who makes and who reads the values of a program.
struct Uses<'a> {
    program: &'a Program,
    /// The groups of the segment, each with its place among them.
    own: FxHashMap<u32, usize>,
    makers: FxHashMap<ValueId, u32>,
    readers: FxHashMap<ValueId, Vec<u32>>,
    /// Values that something but groups needs as they are.
    kept: FxHashSet<ValueId>,
}

impl<'a> Uses<'a> {
    fn of(program: &'a Program, segment: &Segment) -> Self {
        let mut uses = Self {
            program,
            own: segment.groups.iter().enumerate().map(|(at, &index)| (index, at)).collect(),
            makers: FxHashMap::default(),
            readers: FxHashMap::default(),
            kept: needed_after(segment).collect(),
        };
        for (index, group) in program.groups.iter().enumerate() {
            uses.makers.extend(group.outputs.iter().map(|&id| (id, index as u32)));
            for input in &group.inputs {
                uses.readers.entry(input.value).or_default().push(index as u32);
            }
        }
        let commits = program.segments.iter().flat_map(|segment| &segment.commits);
        uses.kept.extend(commits.map(|commit| commit.value));
        uses.kept.extend(program.fetches.iter().map(|fetch| fetch.value));
        uses
    }

    /// Whether an operand sees all of its value, in order.
    fn is_whole(&self, operand: &Operand) -> bool {
        let (layout, shape) = (&operand.layout, &self.program.value(operand.value).shape);
        layout.is_packed() && layout.offset() == 0 && layout.shape().len() == shape.len()
    }

    /// Whether the value can be stored as a part, and all but the concatenation can read it so.
    fn allow(&self, id: ValueId, concat: &Group, part: &Part) -> bool {
        let value = self.program.value(id);
        let group = |index: &u32| &self.program.groups[*index as usize];
        let maker = self.makers.get(&id).filter(|maker| self.own.contains_key(maker));
        let times = concat.inputs.iter().filter(|input| input.value == id).count();
        let readers = self.readers.get(&id).map_or(&[][..], |readers| readers.as_slice());
        value.dtype != DType::Bool
            && !value.shape.is_empty()
            && !self.kept.contains(&id)
            && times == 1
            && maker.is_some_and(|maker| stores_anywhere(group(maker)))
            && self.is_near(maker, part.whole)
            && readers.iter().all(|reader| {
                let reading = group(reader);
                let is_concat = reading.outputs == concat.outputs;
                self.own.contains_key(reader) && (is_concat || reads_anywhere(reading, id, part))
            })
    }
}

impl Uses<'_> {
    /// Whether the whole would not live much longer if it began with what `maker` makes, or is small.
    fn is_near(&self, maker: Option<&u32>, whole: ValueId) -> bool {
        let place = |index: Option<&u32>| index.and_then(|index| self.own.get(index));
        let far = match (place(maker), place(self.makers.get(&whole))) {
            (Some(from), Some(to)) => to.saturating_sub(*from),
            _ => usize::MAX,
        };
        far <= NEAR || self.program.value(whole).n_bytes() <= SMALL
    }
}

/// Whether the kernels of a group can store elements wherever they shall lie.
fn stores_anywhere(group: &Group) -> bool {
    match &group.kernel {
        Kernel::Rows(rows) => rows.totals.is_empty(),
        Kernel::Elementwise(_)
        | Kernel::Reduce(_)
        | Kernel::Matmul
        | Kernel::Conv2d(_)
        | Kernel::Conv2dInput(_)
        | Kernel::Conv2dFilter(_)
        | Kernel::Pool { .. } => true,
        _ => false,
    }
}

/// Whether a group can read value `id` where the part lies: its kernel takes any layout, or its tail reads it.
fn reads_anywhere(group: &Group, id: ValueId, part: &Part) -> bool {
    let takes_layouts = matches!(
        group.kernel,
        Kernel::Elementwise(_) | Kernel::Rows(_) | Kernel::Reduce(_) | Kernel::Matmul
    );
    let n_core = group.core().inputs.len();
    let mut inputs = group.inputs.iter().enumerate().filter(|(_, input)| input.value == id);
    inputs.all(|(k, input)| (takes_layouts || k >= n_core) && part.view(input).is_some())
}
