//! Where fetched elements go: into tensors of their own, or memory of the caller.

use convoke_compiler::{Operand, Program};
use convoke_graph_core::{Error, HostTensor, Result, TensorViewMut};

/// Where fetched elements go.
pub(crate) enum Outputs<'o, 'b> {
    /// Tensors of their own, one for each fetch of the program.
    Tensors(&'o mut Vec<HostTensor>),
    /// Memory of the caller, and for each piece, its place among the fetches of the program.
    Into(&'o mut [TensorViewMut<'b>], &'o [usize]),
}

impl Outputs<'_, '_> {
    /// # Errors
    /// The caller's memory is for other tensors than `program` fetches.
    pub(crate) fn check(&self, program: &Program) -> Result<()> {
        let Self::Into(views, places) = self else { return Ok(()) };
        if views.len() != places.len() {
            let (n, given) = (places.len(), views.len());
            return Err(Error::invalid(format!("expected memory for {n} tensors, got {given}")));
        }
        for (i, (view, &place)) in views.iter().zip(*places).enumerate() {
            let fetched = fetch_of(program, place)?;
            let (dtype, shape) = (program.value(fetched.value).dtype, fetched.layout.shape());
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

    /// Gives tensors that a run fetched, and maybe more.
    ///
    /// # Errors
    /// The caller's memory is for other tensors.
    pub(crate) fn fill(&mut self, tensors: Vec<HostTensor>) -> Result<()> {
        match self {
            Self::Tensors(own) => **own = tensors,
            Self::Into(views, places) => {
                for (view, &place) in views.iter_mut().zip(*places) {
                    let tensor = tensors.get(place);
                    let tensor = tensor.ok_or_else(|| Error::internal("a fetch is missing"))?;
                    view.copy_from(tensor.bytes())?;
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
pub(super) fn fetch_of(program: &Program, place: usize) -> Result<&Operand> {
    let fetched = program.fetches.get(place);
    fetched.ok_or_else(|| Error::internal(format!("a program has no fetch {place}")))
}
