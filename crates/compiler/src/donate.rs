//! Which results get the memory of feeds that a run may overwrite.
//!
//! A feed and a result of as many bytes are a pair if one segment of the feed's device is all that reads the one and
//! makes the other, which is fetched and stays there. The segment reads the feed where it lies, and stores the result
//! there as it stores into variables: last, in place where its kernel allows, and not at all if the data fails the run.
//! Nothing that comes after it can fail by the data, or needs a GPU's memory.

use convoke_graph_core::Output;

use crate::{
    DeviceIndex, Donation, Group, HOST, InputFact, Kernel, Plan, Program, Segment, Source, ValueId,
};

/// How well a feed and a result fit.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fit {
    /// One kernel can replace each element of the one by that of the other.
    InPlace,
    /// They have one dtype and shape.
    Alike,
    /// They have as many bytes.
    Bytes,
}

/// Pairs feeds with results, each at most once; those that fit best come first.
pub(crate) fn pair(program: &mut Program, plan: &Plan, inputs: &[InputFact]) {
    for fit in [Fit::InPlace, Fit::Alike, Fit::Bytes] {
        for (feed, input) in plan.signature.feeds.iter().zip(inputs) {
            let Some(device) = input.donated.filter(|&device| device != HOST) else { continue };
            let Some(id) = value_of(program, *feed) else { continue };
            let Some(at) = only_reader(program, id, device) else { continue };
            let segment = &program.segments[at];
            let fits = |value: &ValueId| can_take(program, segment, id, *value, fit);
            let Some(value) = segment.residents.iter().copied().find(fits) else { continue };
            let segment = &mut program.segments[at];
            segment.uploads.retain(|upload| *upload != id);
            segment.residents.retain(|resident| *resident != value);
            segment.donations.push(Donation { feed: id, value });
        }
    }
}

fn value_of(program: &Program, feed: Output) -> Option<ValueId> {
    let is_it = |source: &Source| matches!(source, Source::Feed(output) if *output == feed);
    let at = program.values.iter().position(|value| is_it(&value.source))?;
    Some(ValueId(at as u32))
}

/// The segment of the device that a feed is brought to, if nothing else asks for it there, now or later, and nothing can
/// fail after it.
fn only_reader(program: &Program, id: ValueId, device: DeviceIndex) -> Option<usize> {
    let at = program.segments.iter().position(|segment| segment.uploads.contains(&id))?;
    let segment = &program.segments[at];
    let can_fail = |&group: &u32| program.groups[group as usize].can_fail_late(&program.values);
    let later = &program.segments[at + 1..];
    let is_last =
        later.iter().all(|other| other.device == HOST && !other.groups.iter().any(can_fail));
    let is_alone = segment.device == device
        && is_last
        && !segment.kept.contains(&id)
        && !later.iter().any(|other| other.uploads.contains(&id))
        && !program.resident_fetches().any(|fetched| fetched == id);
    is_alone.then_some(at)
}

/// Whether a segment makes a value that fits a feed.
fn can_take(program: &Program, segment: &Segment, feed: ValueId, value: ValueId, fit: Fit) -> bool {
    let (from, to) = (program.value(feed), program.value(value));
    let is_alike = to.dtype == from.dtype && to.shape == from.shape;
    let makes = |&group: &u32| {
        let group = &program.groups[group as usize];
        group.outputs.contains(&value) && (fit != Fit::InPlace || replaces(group, feed))
    };
    to.n_bytes() == from.n_bytes()
        && to.n_bytes() > 0
        && (fit == Fit::Bytes || is_alike)
        && segment.groups.iter().any(makes)
        && !segment.commits.iter().any(|commit| commit.value == value)
}

/// Whether a group reads each element of a value where it stores its own.
fn replaces(group: &Group, value: ValueId) -> bool {
    let is_elementwise = matches!(group.kernel, Kernel::Elementwise(_));
    let inputs = match group.tail {
        Some(_) => &group.inputs[group.core().inputs.len()..],
        None if is_elementwise => &group.inputs[..],
        None => &[],
    };
    inputs.iter().any(|input| input.value == value && input.layout.is_packed())
}
