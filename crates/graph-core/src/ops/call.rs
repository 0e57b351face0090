//! Functions of the host: what a graph computes of whole tensors by Rust code, also of strings.
//!
//! Source: TensorFlow's `tf.py_func`.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::ops::branch::outputs;
use crate::{
    Attributes, Backward, Class, DType, Dims, Error, Fact, Flow, Graph, HostTensor, Op, OpError,
    Result, Tensor,
};

/// A function of host tensors.
pub type HostFunction = dyn Fn(&[HostTensor]) -> Result<Vec<HostTensor>> + Send + Sync;

impl Graph {
    /// What `function` gives for some tensors, on the host, between the programs of a run. `gives` is the dtype and
    /// what is known of the shape of each of its results.
    ///
    /// It is to give the same for the same inputs: a run that is made again calls it again. It has no gradient, and a
    /// model with it cannot be saved.
    ///
    /// # Errors
    /// A run fails if the function does, panics (`Unknown`), or gives other dtypes or shapes than it says.
    #[track_caller]
    pub fn host_function(
        &self,
        name: &str,
        inputs: &[&Tensor],
        gives: impl IntoIterator<Item = (DType, Dims)>,
        function: impl Fn(&[HostTensor]) -> Result<Vec<HostTensor>> + Send + Sync + 'static,
    ) -> Vec<Tensor> {
        let gives = gives.into_iter().map(|(dtype, dims)| Fact::new(dtype, dims));
        let gives: SmallVec<[Fact; 1]> = gives.collect();
        let n = gives.len();
        let op = Call { name: name.to_owned(), gives, function: Arc::new(function) };
        let inputs: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
        let at = std::panic::Location::caller();
        let given = outputs(self, Arc::new(op), &inputs, name, at);
        match given.first() {
            Some(refused) if refused.node().invalid.is_some() => vec![refused.clone(); n],
            _ => given,
        }
    }
}

struct Call {
    name: String,
    gives: SmallVec<[Fact; 1]>,
    function: Arc<HostFunction>,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Call {{ name: {:?}, gives: {:?} }}", self.name, self.gives)
    }
}

impl Op for Call {
    fn name(&self) -> &str {
        &self.name
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        if inputs.iter().any(Fact::is_variable) {
            let message = "a function takes no variable's handle; give it what it reads";
            return Err(OpError::Invalid(message.into()));
        }
        Ok(self.gives.clone())
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Ok(self.call(inputs)?)
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None; backward.n_inputs()]
    }

    fn class(&self) -> Class<'_> {
        Class::Flow(Flow::Call(self))
    }

    fn encode(&self) -> Option<Attributes> {
        None
    }
}

/// What a run computes of whole tensors on the host, between its programs.
pub trait HostCall: fmt::Debug + Send + Sync {
    /// The results, one for each output.
    ///
    /// # Errors
    /// What the data is refused for.
    fn call(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>>;
}

impl HostCall for Call {
    fn call(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>> {
        let results = catch_unwind(AssertUnwindSafe(|| (self.function)(inputs)));
        let results = results.unwrap_or_else(|payload| {
            Err(Error::panicked(format_args!("the function {}", self.name), &*payload))
        })?;
        let fits = |(tensor, fact): (&HostTensor, &Fact)| {
            tensor.dtype() == fact.dtype && fact.dims.admits(tensor.shape())
        };
        if results.len() == self.gives.len() && results.iter().zip(&self.gives).all(fits) {
            return Ok(results.into());
        }
        let list = |texts: Vec<String>| texts.join(", ");
        let given = results.iter().map(|t| format!("{}{}", t.dtype(), t.shape())).collect();
        let said = self.gives.iter().map(ToString::to_string).collect();
        let (given, said) = (list(given), list(said));
        Err(Error::invalid(format!("the function says that it gives {said}, and gives {given}")))
    }
}
