//! Fetches: what a run gives back has the shape of what was asked for.
//!
//! Source: TensorFlow's `Session.run` (nested fetches, duplicates computed once).

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash};

use convoke_compiler::Signature;
use convoke_graph_core::{
    Error, HostTensor, IndexedSlices, Operation, Output, Result, SparseTensor, Tensor, Variable,
};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::device_tensor::{AllFetched, DeviceTensor, Fetched};

/// What can be fetched: tensors give host tensors, variables their elements at the start of the run,
/// operations `()`; tuples, arrays, vectors, maps and options of them give the same structure back.
///
/// Derive it for your own struct: `#[derive(Fetch)] struct Step<T> { loss: T, accuracy: T }` makes a
/// `Step<Tensor>` give a `Step<HostTensor>`.
pub trait Fetch {
    /// What comes back.
    type Output;

    /// Lists what is needed.
    fn collect(&self, list: &mut FetchList);

    /// Takes what was listed from the results, in the same order.
    ///
    /// # Errors
    /// The results are fewer than what was listed.
    fn take(&self, results: &mut FetchResults) -> Result<Self::Output>;
}

/// For each fetched tensor in order, its place among the signature's fetches.
pub(crate) type Places = SmallVec<[usize; 4]>;

/// What a run needs.
#[derive(Debug, Default)]
pub struct FetchList {
    pub(crate) signature: Signature,
    places: Places,
    /// The place of each output, and whether it stays where it is.
    known: FxHashMap<(Output, bool), usize>,
    graph: Option<u64>,
    mixed: bool,
}

/// What a run gave.
#[derive(Debug)]
pub struct FetchResults {
    values: AllFetched,
    places: smallvec::IntoIter<[usize; 4]>,
}

impl FetchList {
    /// Adds a tensor whose value comes back.
    pub fn tensor(&mut self, tensor: &Tensor) {
        self.add(tensor, false);
    }

    /// Adds a tensor whose value stays on the device that has it.
    pub fn on_device(&mut self, tensor: &Tensor) {
        self.add(tensor, true);
    }

    fn add(&mut self, tensor: &Tensor, stays: bool) {
        self.belongs(tensor.graph().id());
        self.add_output(tensor.output(), stays);
    }

    /// Adds all that another list has, in its order.
    pub(crate) fn append(&mut self, other: &Self) {
        other.graph.iter().for_each(|&graph| self.belongs(graph));
        self.mixed |= other.mixed;
        let Signature { fetches, residents, targets, .. } = &other.signature;
        for place in &other.places {
            self.add_output(fetches[*place], residents.contains(place));
        }
        for target in targets {
            if !self.signature.targets.contains(target) {
                self.signature.targets.push(*target);
            }
        }
    }

    /// How many tensors were added, those that were added before counted again.
    pub(crate) fn n_places(&self) -> usize {
        self.places.len()
    }

    fn add_output(&mut self, output: Output, stays: bool) {
        let place = *self.known.entry((output, stays)).or_insert_with(|| {
            self.signature.fetches.push(output);
            let place = self.signature.fetches.len() - 1;
            self.signature.residents.extend(stays.then_some(place));
            place
        });
        self.places.push(place);
    }

    /// Adds an operation that runs for its effect.
    pub fn operation(&mut self, operation: &Operation) {
        self.belongs(operation.graph().id());
        if !self.signature.targets.contains(&operation.id()) {
            self.signature.targets.push(operation.id());
        }
    }

    fn belongs(&mut self, graph: u64) {
        self.mixed |= *self.graph.get_or_insert(graph) != graph;
    }

    /// Refuses handles that are not of `graph`.
    pub(crate) fn check_graph(&self, graph: u64) -> Result<()> {
        if self.mixed || self.graph.is_some_and(|other| other != graph) {
            return Err(Error::invalid("a fetch belongs to another graph than the session's"));
        }
        Ok(())
    }

    /// The places of the fetched tensors.
    pub(crate) fn into_places(self) -> Places {
        self.places
    }

    /// The results of `values`, one for each fetch of the signature.
    pub(crate) fn results(self, values: AllFetched) -> FetchResults {
        FetchResults { values, places: self.places.into_iter() }
    }
}

impl FetchResults {
    /// The results of `values` at these places.
    pub(crate) fn new(values: AllFetched, places: Places) -> Self {
        Self { values, places: places.into_iter() }
    }

    /// The value of the next tensor.
    ///
    /// # Errors
    /// There is none left, or it stays on a device: `take` asks for something else than `collect` listed.
    pub fn tensor(&mut self) -> Result<HostTensor> {
        self.next()?.host().cloned()
    }

    /// The next tensor, where it is.
    ///
    /// # Errors
    /// There is none left, or it was brought to the host: `take` asks for something else than `collect` listed.
    pub fn on_device(&mut self) -> Result<DeviceTensor> {
        self.next()?.device().cloned()
    }

    /// The last `n` tensors.
    pub(crate) fn last(&self, n: usize) -> AllFetched {
        let places = self.places.as_slice();
        let own = places.get(places.len().saturating_sub(n)..).unwrap_or_default();
        own.iter().filter_map(|&place| self.values.get(place).cloned()).collect()
    }

    fn next(&mut self) -> Result<&Fetched> {
        let place = self.places.next();
        let value = place.and_then(|place| self.values.get(place));
        value.ok_or_else(|| Error::internal("a fetch takes more than it listed"))
    }
}

impl Fetch for Tensor {
    type Output = HostTensor;

    fn collect(&self, list: &mut FetchList) {
        list.tensor(self);
    }

    fn take(&self, results: &mut FetchResults) -> Result<HostTensor> {
        results.tensor()
    }
}

impl Fetch for Variable {
    type Output = HostTensor;

    fn collect(&self, list: &mut FetchList) {
        list.tensor(self.value());
    }

    fn take(&self, results: &mut FetchResults) -> Result<HostTensor> {
        results.tensor()
    }
}

impl Fetch for Operation {
    type Output = ();

    fn collect(&self, list: &mut FetchList) {
        list.operation(self);
    }

    fn take(&self, _: &mut FetchResults) -> Result<()> {
        Ok(())
    }
}

impl Fetch for SparseTensor {
    type Output = SparseTensor<HostTensor>;

    fn collect(&self, list: &mut FetchList) {
        (&self.indices, &self.values, &self.dense_shape).collect(list);
    }

    fn take(&self, results: &mut FetchResults) -> Result<Self::Output> {
        let parts = (&self.indices, &self.values, &self.dense_shape);
        let (indices, values, dense_shape) = parts.take(results)?;
        Ok(SparseTensor { indices, values, dense_shape })
    }
}

impl Fetch for IndexedSlices {
    type Output = IndexedSlices<HostTensor>;

    fn collect(&self, list: &mut FetchList) {
        (&self.values, &self.indices, &self.dense_shape).collect(list);
    }

    fn take(&self, results: &mut FetchResults) -> Result<Self::Output> {
        let parts = (&self.values, &self.indices, &self.dense_shape);
        let (values, indices, dense_shape) = parts.take(results)?;
        Ok(IndexedSlices { values, indices, dense_shape })
    }
}

impl<F: Fetch + ?Sized> Fetch for &F {
    type Output = F::Output;

    fn collect(&self, list: &mut FetchList) {
        F::collect(self, list);
    }

    fn take(&self, results: &mut FetchResults) -> Result<F::Output> {
        F::take(self, results)
    }
}

impl<F: Fetch> Fetch for Option<F> {
    type Output = Option<F::Output>;

    fn collect(&self, list: &mut FetchList) {
        if let Some(fetch) = self {
            fetch.collect(list);
        }
    }

    fn take(&self, results: &mut FetchResults) -> Result<Self::Output> {
        self.as_ref().map(|fetch| fetch.take(results)).transpose()
    }
}

impl<F: Fetch> Fetch for [F] {
    type Output = Vec<F::Output>;

    fn collect(&self, list: &mut FetchList) {
        self.iter().for_each(|fetch| fetch.collect(list));
    }

    fn take(&self, results: &mut FetchResults) -> Result<Self::Output> {
        self.iter().map(|fetch| fetch.take(results)).collect()
    }
}

impl<F: Fetch> Fetch for Vec<F> {
    type Output = Vec<F::Output>;

    fn collect(&self, list: &mut FetchList) {
        self.as_slice().collect(list);
    }

    fn take(&self, results: &mut FetchResults) -> Result<Self::Output> {
        self.as_slice().take(results)
    }
}

impl<F: Fetch, const N: usize> Fetch for [F; N] {
    type Output = [F::Output; N];

    fn collect(&self, list: &mut FetchList) {
        self.as_slice().collect(list);
    }

    fn take(&self, results: &mut FetchResults) -> Result<Self::Output> {
        let all: Vec<F::Output> = self.as_slice().take(results)?;
        all.try_into().map_err(|_| Error::internal("an array of fetches changed its length"))
    }
}

impl<K: Ord + Clone, F: Fetch> Fetch for BTreeMap<K, F> {
    type Output = BTreeMap<K, F::Output>;

    fn collect(&self, list: &mut FetchList) {
        self.values().for_each(|fetch| fetch.collect(list));
    }

    fn take(&self, results: &mut FetchResults) -> Result<Self::Output> {
        self.iter().map(|(key, fetch)| Ok((key.clone(), fetch.take(results)?))).collect()
    }
}

impl<K: Eq + Hash + Clone, F: Fetch, S: BuildHasher> Fetch for HashMap<K, F, S> {
    type Output = HashMap<K, F::Output>;

    fn collect(&self, list: &mut FetchList) {
        self.values().for_each(|fetch| fetch.collect(list));
    }

    fn take(&self, results: &mut FetchResults) -> Result<Self::Output> {
        self.iter().map(|(key, fetch)| Ok((key.clone(), fetch.take(results)?))).collect()
    }
}

macro_rules! tuples {
    ($(($($name:ident),*)),*) => { $(
        impl<$($name: Fetch),*> Fetch for ($($name,)*) {
            type Output = ($($name::Output,)*);

            #[expect(non_snake_case, reason = "a field is named like its type")]
            fn collect(&self, list: &mut FetchList) {
                let ($($name,)*) = self;
                $($name.collect(list);)*
            }

            #[expect(non_snake_case, reason = "a field is named like its type")]
            fn take(&self, results: &mut FetchResults) -> Result<Self::Output> {
                let ($($name,)*) = self;
                Ok(($($name.take(results)?,)*))
            }
        }
    )* };
}

tuples! {
    (A), (A, B), (A, B, C), (A, B, C, D), (A, B, C, D, E), (A, B, C, D, E, F),
    (A, B, C, D, E, F, G), (A, B, C, D, E, F, G, H)
}

impl Fetch for () {
    type Output = ();

    fn collect(&self, _: &mut FetchList) {}

    fn take(&self, _: &mut FetchResults) -> Result<()> {
        Ok(())
    }
}
