//! Where fetched elements go: into tensors of their own, or memory of the caller.

use convoke_compiler::{HOST, Operand, Program, Source, ValueId};
use convoke_graph_core::{DType, Error, HostTensor, Result, Shape, TensorViewMut};

use super::{Bound, Compiled, Place};
use crate::device_tensor::{AllFetched, DeviceTensor, Fetched};
use crate::instance::{Instance, LEND_MIN};

/// Where fetched elements go.
pub(crate) enum Outputs<'o, 'b> {
    /// Tensors of their own, one for each fetch of the program.
    Tensors(&'o mut AllFetched),
    /// Memory of the caller, and for each piece, its place among the fetches of the program.
    Into(&'o mut [TensorViewMut<'b>], &'o [usize]),
}

impl Outputs<'_, '_> {
    /// # Errors
    /// The caller's memory is for other tensors than those fetched, of which `fetched` knows dtypes and shapes.
    pub(crate) fn check<'s>(
        &self,
        fetched: &dyn Fn(usize) -> Option<(DType, &'s Shape)>,
    ) -> Result<()> {
        let Self::Into(views, places) = self else { return Ok(()) };
        if views.len() != places.len() {
            let (n, given) = (places.len(), views.len());
            return Err(Error::invalid(format!("expected memory for {n} tensors, got {given}")));
        }
        for (i, (view, &place)) in views.iter().zip(*places).enumerate() {
            let (dtype, shape) = fetched(place).ok_or_else(|| no_fetch(place))?;
            if view.dtype() != dtype || view.dims() != shape.dims() {
                let (is, dims) = (view.dtype(), view.dims());
                let message = format!(
                    "expected memory for a tensor of {dtype}{shape} at place {i}, got {is}{dims:?}"
                );
                return Err(Error::invalid(message));
            }
        }
        Ok(())
    }

    /// Gives other elements than those of the instance wherever this value is fetched.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn replace(
        &mut self,
        program: &Program,
        value: ValueId,
        elements: &[u8],
    ) -> Result<()> {
        let is_it = |fetch: &Operand| fetch.value == value;
        match self {
            Self::Tensors(tensors) => {
                for (tensor, fetch) in tensors.iter_mut().zip(&program.fetches) {
                    if is_it(fetch) {
                        let (dtype, shape) = (program.value(value).dtype, fetch.layout.shape());
                        let new = HostTensor::copy_of(dtype, shape.clone(), elements)?;
                        *tensor = match tensor {
                            Fetched::Host(_) => Fetched::Host(new),
                            Fetched::Device(_) => Fetched::Device(DeviceTensor::on_host(new)),
                        };
                    }
                }
            }
            Self::Into(views, places) => {
                for (view, &place) in views.iter_mut().zip(*places) {
                    if program.fetches.get(place).is_some_and(is_it) {
                        view.copy_from(elements)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives tensors that a run fetched, and maybe more.
    ///
    /// # Errors
    /// The caller's memory is for other tensors.
    pub(crate) fn fill(&mut self, tensors: AllFetched) -> Result<()> {
        match self {
            Self::Tensors(own) => **own = tensors,
            Self::Into(views, places) => {
                for (view, &place) in views.iter_mut().zip(*places) {
                    let tensor = tensors.get(place);
                    let tensor = tensor.ok_or_else(|| Error::internal("a fetch is missing"))?;
                    view.copy_from(tensor.host()?.bytes())?;
                }
            }
        }
        Ok(())
    }
}

/// The fetch at a place.
///
/// # Errors
/// There is none.
fn fetch_of(program: &Program, place: usize) -> Result<&Operand> {
    let fetched = program.fetches.get(place);
    fetched.ok_or_else(|| no_fetch(place))
}

fn no_fetch(place: usize) -> Error {
    Error::internal(format!("a run has no fetch {place}"))
}

impl Compiled {
    /// The dtype and shape of a fetch.
    pub(crate) fn fetched(&self, place: usize) -> Option<(DType, &Shape)> {
        let fetch = self.program.fetches.get(place)?;
        Some((self.program.value(fetch.value).dtype, fetch.layout.shape()))
    }

    pub(super) fn fetch_all(
        &self,
        instance: &mut Instance,
        bound: &Bound<'_>,
        outputs: &mut Outputs<'_, '_>,
    ) -> Result<()> {
        match outputs {
            Outputs::Tensors(tensors) => {
                tensors.clear(); // An attempt before may have failed on the way.
                tensors.reserve_exact(self.program.fetches.len());
                for (place, fetch) in self.program.fetches.iter().enumerate() {
                    tensors.push(match self.program.residents.contains(&place) {
                        true => Fetched::Device(self.resident(fetch, instance, bound)?),
                        false => Fetched::Host(self.fetch(fetch, instance, bound)?),
                    });
                }
            }
            Outputs::Into(views, places) => {
                for (view, &place) in views.iter_mut().zip(*places) {
                    let fetched = fetch_of(&self.program, place)?;
                    view.copy_from(self.bytes(fetched.value, instance, bound)?)?;
                }
            }
        }
        Ok(())
    }

    /// What stays where it is.
    fn resident(
        &self,
        fetch: &Operand,
        instance: &mut Instance,
        bound: &Bound<'_>,
    ) -> Result<DeviceTensor> {
        if let Some((_, tensor)) = instance.residents.iter().find(|(id, _)| *id == fetch.value) {
            return tensor.reshaped(fetch.layout.shape());
        }
        if let Place::Feed(at) = self.places[fetch.value.0 as usize]
            && let Some(tensor) = bound.feeds[at as usize].resident()
        {
            return tensor.reshaped(fetch.layout.shape());
        }
        Ok(DeviceTensor::on_host(self.fetch(fetch, instance, bound)?))
    }

    fn fetch(
        &self,
        fetch: &Operand,
        instance: &mut Instance,
        bound: &Bound<'_>,
    ) -> Result<HostTensor> {
        let (value, shape) = (self.program.value(fetch.value), fetch.layout.shape().clone());
        match (&value.source, self.places[fetch.value.0 as usize]) {
            (Source::Constant(tensor), _) => tensor.reshaped(shape),
            (Source::Feed(_), Place::Feed(at)) => {
                bound.feeds[at as usize].to_tensor()?.reshaped(shape)
            }
            (_, Place::Variable(at)) => match &bound.variables[at as usize].elements {
                Some(elements) => elements.tensor(value.dtype, shape),
                None => Err(Error::internal("a variable is not on the host")),
            },
            (_, Place::Strings(_)) => self.strings(fetch.value, instance, bound)?.reshaped(shape),
            (_, Place::Slot(slot))
                if value.n_bytes() >= LEND_MIN && !self.is_committed(fetch.value) =>
            {
                HostTensor::from_shared(value.dtype, shape, instance.lend(slot as usize))
            }
            _ => HostTensor::copy_of(value.dtype, shape, self.bytes(fetch.value, instance, bound)?),
        }
    }

    /// Whether a variable of the host takes the value's slot.
    fn is_committed(&self, value: ValueId) -> bool {
        let on_host = self.program.segments.iter().filter(|segment| segment.device == HOST);
        on_host.flat_map(|segment| &segment.commits).any(|commit| commit.value == value)
    }
}
