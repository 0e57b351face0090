//! From the times of probes to the speeds of a device. Pure: the same times give the same speeds.

use convoke_graph_core::{Error, Result};
use convoke_placement::{Curve, DeviceKind, DeviceModel, Family, Link, Picoseconds, Work};

use super::graphs::CHAIN;
use super::measure::{Amount, Key, LINK_ELEMENTS, SERIES, Samples};
use super::probe::Timed;

/// What `samples` say of a device; `default` where they say nothing.
///
/// # Errors
/// `Internal` for a probe that is not the kernel that it should be.
pub(super) fn fit(samples: &Samples, default: DeviceModel) -> Result<(DeviceModel, Link, Link)> {
    let mut model = default;
    let time = |key: Key| samples.get(&key).map_or(0, Timed::usual);
    let (least, run) = (time(Key::Least), time(Key::Run));
    model.launch = time(Key::Chain).saturating_sub(time(Key::One)) / CHAIN as u64;
    match model.kind {
        DeviceKind::Cpu => model.run = run.saturating_sub(model.launch),
        _ => model.submission = least.saturating_sub(model.launch).saturating_sub(run),
    }
    for (at, series) in SERIES.iter().enumerate() {
        let sizes = samples.range(Key::Series(at, 0)..=Key::Series(at, usize::MAX));
        let points = sizes.map(|(_, timed)| point(&model, series.family, timed, least));
        let points: Vec<(u64, Picoseconds)> = points.collect::<Result<_>>()?;
        match (Curve::through(points), series.family) {
            (None, _) => {}
            (Some(curve), None) => model.memory = curve,
            (Some(curve), Some(family)) => model.arithmetic.set(family, curve),
        }
    }
    let link = |from: DeviceKind, to: DeviceKind, crossed: fn(Amount) -> Key| {
        let crossing =
            |amount: Amount| time(crossed(amount)).saturating_sub(time(Key::Resident(amount)));
        match samples.contains_key(&crossed(Amount::Many)) {
            true => link(crossing(Amount::Few), crossing(Amount::Many)),
            false => Link::between(from, to),
        }
    };
    let mut upload = link(DeviceKind::Cpu, model.kind, Key::Fed);
    let mut download = link(model.kind, DeviceKind::Cpu, Key::Fetched);
    if samples.contains_key(&Key::Both) {
        share(time(Key::Both).saturating_sub(least), [&mut upload, &mut download]);
    }
    Ok((model, upload, download))
}

/// Makes the latencies of both ways be so much in all: a run that goes both ways waits once.
fn share(both: Picoseconds, links: [&mut Link; 2]) {
    let sum: u128 = links.iter().map(|link| u128::from(link.latency)).sum();
    for link in links {
        let own = u128::from(link.latency) * u128::from(both);
        let own = own.checked_div(sum).unwrap_or(u128::from(both) / 2);
        link.latency = Picoseconds::try_from(own).unwrap_or(Picoseconds::MAX);
    }
}

/// The amount of a probe, and the time of it alone.
fn point(
    model: &DeviceModel,
    family: Option<Family>,
    timed: &Timed,
    least: Picoseconds,
) -> Result<(u64, Picoseconds)> {
    let [work] = timed.work.as_slice() else {
        let found = timed.work.len();
        return Err(Error::internal(format!("a probe of one kernel has {found}")));
    };
    let time = timed.usual().saturating_sub(least).max(1);
    let own = |others: Work| time.saturating_sub(model.besides(&others)).max(1);
    Ok(match family {
        None => (work.bytes, time),
        Some(Family::Elementwise) => (work.pointwise, own(Work { pointwise: 0, ..*work })),
        Some(Family::Function) => (work.functions, own(Work { functions: 0, ..*work })),
        Some(_) => (model.operations(work), own(*work)),
    })
}

/// From what crossings of next to nothing and of [`LINK_ELEMENTS`] take.
fn link(latency: Picoseconds, many: Picoseconds) -> Link {
    let time = many.saturating_sub(latency).max(1);
    let n_bytes = (LINK_ELEMENTS * size_of::<f32>()) as u128;
    let rate = n_bytes * 1_000_000_000_000 / u128::from(time);
    Link { latency, bytes_per_second: u64::try_from(rate).unwrap_or(u64::MAX) }
}
