//! Which results get the memory of feeds that a run may overwrite.
//!
//! A feed and a result of as many bytes are a pair if one segment of the feed's device is all that reads the one and
//! makes the other, which is fetched and stays there. The segment reads the feed where it lies, and stores the result
//! there as it stores into variables: last, in place where its kernel allows, and not at all if the data fails the run.

use convoke_graph_core::Output;

use crate::{DeviceIndex, Donation, HOST, InputFact, Plan, Program, Segment, Source, ValueId};

/// Pairs feeds with results, each at most once; those of one dtype and shape come first.
pub(crate) fn pair(program: &mut Program, plan: &Plan, inputs: &[InputFact]) {
    for is_alike in [true, false] {
        for (feed, input) in plan.signature.feeds.iter().zip(inputs) {
            let Some(device) = input.donated.filter(|&device| device != HOST) else { continue };
            let Some(id) = value_of(program, *feed) else { continue };
            let Some(at) = only_reader(program, id, device) else { continue };
            let segment = &program.segments[at];
            let fits = |value: &ValueId| can_take(program, segment, id, *value, is_alike);
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

/// The segment of the device that a feed is brought to, if nothing else asks for it there, now or later.
fn only_reader(program: &Program, id: ValueId, device: DeviceIndex) -> Option<usize> {
    let at = program.segments.iter().position(|segment| segment.uploads.contains(&id))?;
    let segment = &program.segments[at];
    let is_alone = segment.device == device
        && !segment.kept.contains(&id)
        && !program.segments[at + 1..].iter().any(|other| other.uploads.contains(&id))
        && !program.resident_fetches().any(|fetched| fetched == id);
    is_alone.then_some(at)
}

/// Whether a segment makes a value that has as many bytes as a feed, and dtype and shape too if it is to be alike.
fn can_take(
    program: &Program,
    segment: &Segment,
    feed: ValueId,
    value: ValueId,
    is_alike: bool,
) -> bool {
    let (from, to) = (program.value(feed), program.value(value));
    let makes = |&group: &u32| program.groups[group as usize].outputs.contains(&value);
    to.n_bytes() == from.n_bytes()
        && to.n_bytes() > 0
        && (!is_alike || (to.dtype == from.dtype && to.shape == from.shape))
        && segment.groups.iter().any(makes)
        && !segment.commits.iter().any(|commit| commit.value == value)
}
