//! Elementwise groups that do the same to each element: those of one level may be one dispatch of a GPU.

use convoke_graph_core::{DType, Elementwise};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{Arg, Fused, Group, Kernel, Program};

/// The most groups that become one dispatch: each is some lines of its kernel, and a comparison for those after it.
const GROUPS_MOST: usize = 16;
/// The most places that such a dispatch binds, if the device allows as many.
pub const PLACES_MOST: usize = 64;
/// The most operations of all its groups: its kernel is compiled when it is first met.
const OPERATIONS_MOST: usize = 256;
/// The most elements of a group that is one of several: more take longer than it takes to start a dispatch.
const ELEMENTS_MOST: usize = 1 << 18;

/// What a group does to each element, if others that do the same may be done beside it by one dispatch.
pub fn beside<'a>(program: &Program, group: &'a Group) -> Option<&'a Fused> {
    let Kernel::Elementwise(fused) = &group.kernel else { return None };
    let is_word = |&id: &_| program.value(id).dtype == DType::Bool;
    let is_plain = fused.check.is_none()
        && fused.shape.len() <= ELEMENTS_MOST
        && !group.outputs.iter().any(is_word);
    is_plain.then_some(fused)
}

/// How many groups that do what this one does become one dispatch.
pub fn most_beside(fused: &Fused) -> usize {
    GROUPS_MOST.min(OPERATIONS_MOST / fused.instrs.len().max(1))
}

/// `items` by what they do: those of one kind together, in order.
pub fn by_kind<'a, T>(
    items: impl IntoIterator<Item = T>,
    fused: impl Fn(&T) -> &'a Fused,
) -> Vec<Vec<T>> {
    let mut all: Vec<Vec<T>> = Vec::new();
    // Those that can't be alike are not compared.
    let mut kinds: FxHashMap<[usize; 4], Vec<usize>> = FxHashMap::default();
    for item in items {
        let kinds = kinds.entry(counts(fused(&item))).or_default();
        match kinds.iter().find(|&&kind| is_alike(fused(&all[kind][0]), fused(&item))) {
            Some(&kind) => all[kind].push(item),
            None => {
                kinds.push(all.len());
                all.push(vec![item]);
            }
        }
    }
    all
}

/// For each group, how many the dispatch does that it is part of, if all are on one GPU: those of one level that do the same.
pub fn dispatches(program: &Program) -> Vec<u32> {
    let mut level_of = vec![0u32; program.values.len()];
    let mut levels: Vec<Vec<(usize, &Fused)>> = Vec::new();
    for (i, group) in program.groups.iter().enumerate() {
        let inputs = group.inputs.iter().map(|input| level_of[input.value.0 as usize]);
        let level = inputs.max().unwrap_or(0);
        group.outputs.iter().for_each(|id| level_of[id.0 as usize] = level + 1);
        levels.resize_with(levels.len().max(level as usize + 1), Vec::new);
        levels[level as usize].extend(beside(program, group).map(|fused| (i, fused)));
    }
    let mut all = vec![1; program.groups.len()];
    for level in levels {
        for kind in by_kind(level, |(_, fused)| fused) {
            for some in kind.chunks(most_beside(kind[0].1).max(1)) {
                some.iter().for_each(|(i, _)| all[*i] = some.len() as u32);
            }
        }
    }
    all
}

fn counts(fused: &Fused) -> [usize; 4] {
    let Fused { input_dtypes, constants, instrs, stores, .. } = fused;
    [input_dtypes.len(), constants.len(), instrs.len(), stores.len()]
}

/// Whether two do the same to each element, whatever the constants are, however the elements lie, and in whichever order
/// their inputs stand.
fn is_alike(a: &Fused, b: &Fused) -> bool {
    let same_op = |a: Elementwise, b: Elementwise| match (a, b) {
        (Elementwise::Row(a), Elementwise::Row(b)) => std::ptr::eq(a, b),
        (Elementwise::Select, Elementwise::Select) | (Elementwise::Cast, Elementwise::Cast) => true,
        _ => false,
    };
    let both = a.instrs.iter().zip(&b.instrs);
    let same = counts(a) == counts(b)
        && both.clone().all(|(a, b)| {
            same_op(a.op, b.op) && a.dtype == b.dtype && a.args.len() == b.args.len()
        });
    let args =
        both.flat_map(|(a, b)| a.args.iter().zip(&b.args)).chain(a.stores.iter().zip(&b.stores));
    let mut pairs: FxHashMap<Arg, Arg> = FxHashMap::default();
    let mut taken: FxHashSet<Arg> = FxHashSet::default();
    same && args.into_iter().all(|(&x, &y)| {
        let is_same = match (x, y) {
            (Arg::Instr(_), _) | (_, Arg::Instr(_)) => return x == y,
            (Arg::Input(_), Arg::Input(_)) | (Arg::Constant(_), Arg::Constant(_)) => {
                a.dtype(x) == b.dtype(y)
            }
            _ => false,
        };
        is_same
            && match pairs.get(&x) {
                Some(known) => *known == y,
                None => taken.insert(y) && pairs.insert(x, y).is_none(),
            }
    })
}

#[cfg(test)]
mod tests {
    use convoke_graph_core::{DType, Graph, Tensor};

    use super::*;
    use crate::tests::{host, program, signature};

    /// By hand: of five that scale and shift, as many as are of one level are one dispatch; another function, many
    /// elements and what comes behind a product are apart.
    #[test]
    fn what_is_alike_and_of_one_level_is_one_dispatch() {
        let g = Graph::new();
        let feeds: Vec<Tensor> = [4, 30, 7, 1 << 19, 6]
            .iter()
            .enumerate()
            .map(|(i, &n)| g.placeholder(&format!("x{i}"), DType::F32, [n]))
            .collect();
        let mut fetches: Vec<Tensor> = feeds[..4].iter().map(|x| x * 2.0 + 1.0).collect();
        fetches.push((&feeds[4] + 3.0) * 2.0);
        let square = g.placeholder("square", DType::F32, [3, 3]);
        let behind = square.matmul(&square);
        fetches.extend([&behind * 3.0 + 1.0, &behind * 5.0 + 2.0]);
        let fetches: Vec<&Tensor> = fetches.iter().collect();
        let all: Vec<&Tensor> = feeds.iter().chain([&square]).collect();
        let shapes: [&[usize]; 6] = [&[4], &[30], &[7], &[1 << 19], &[6], &[3, 3]];
        let program = program(&g, signature(&fetches, &[], &all), &shapes, &host).unwrap();
        let dispatches = dispatches(&program);
        let of = |fetch: usize| {
            let value = program.fetches[fetch].value;
            let mut groups = program.groups.iter().zip(&dispatches);
            groups.find(|(group, _)| group.outputs.contains(&value)).map(|(_, &n)| n)
        };
        let found: Vec<Option<u32>> = (0..7).map(of).collect();
        assert_eq!(found, [3, 3, 3, 1, 1, 2, 2].map(Some));
    }
}
