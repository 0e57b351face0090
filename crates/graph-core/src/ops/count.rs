//! Counting: each run takes the next number of a variable, up to a limit.
//!
//! Source: TensorFlow's `tf.count_up_to`.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::{arity, one};
use crate::ops::registry::Decode;
use crate::ops::state::{handle, no_value};
use crate::{
    Attributes, Backward, Class, CustomKernel, DType, Error, ErrorKind, Fact, HostTensor,
    KernelShapes, Op, OpError, Result, State, Tensor, TensorView, TensorViewMut, Variable, Wgsl,
};

impl Variable {
    /// The variable as it is, to which one is added: the numbers up to `limit`, which is left out, one for each run.
    ///
    /// Runs that count follow one another in a session, so that no number comes twice and none is left out. What
    /// a run that does not count assigns in between is overwritten, as by any assignment. A run that is made in steps
    /// keeps nobody from counting: it ends with `Aborted` if somebody has, or has assigned, or if the variable was
    /// reset, since it began.
    ///
    /// # Errors
    /// Recorded: a variable that is no scalar of i32 or i64. In a run: `OutOfRange` once the limit is reached;
    /// nothing has changed then.
    #[track_caller]
    pub fn count_up_to(&self, limit: i64) -> Tensor {
        let handle = self.handle();
        handle.apply(Count { limit }, &[handle]) - 1
    }
}

/// Its output is what is stored, as that of assignments is.
#[derive(Debug, Clone, Copy)]
struct Count {
    limit: i64,
}

impl Op for Count {
    fn name(&self) -> &str {
        "count_up_to"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [variable] = arity(inputs)?;
        let variable = handle(variable)?;
        variable.dims.expect_rank(0)?;
        variable.expect("count_up_to", "i32 or i64", |d| matches!(d, DType::I32 | DType::I64))?;
        one(Fact::new(variable.dtype, variable.dims.clone()))
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Err(no_value())
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None]
    }

    fn class(&self) -> Class<'_> {
        Class::State(State::Count { limit: self.limit })
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("limit", self.limit))
    }
}

/// The kernel of [`State::Count`]: one more than its input, if that is below the limit.
#[derive(Debug, Clone, Copy)]
pub struct Counting {
    /// The first number that is not given.
    pub limit: i64,
}

impl CustomKernel for Counting {
    fn cpu(&self, inputs: &[TensorView<'_>], outputs: &mut [TensorViewMut<'_>]) -> Result<()> {
        let ([x], [y]) = (inputs, outputs) else {
            return Err(Error::internal("a count has one input and one output"));
        };
        // What is below the limit has a next number: no sum wraps.
        macro_rules! next {
            ($t:ty) => {{
                for (&x, y) in x.as_slice::<$t>()?.iter().zip(y.as_slice_mut::<$t>()?) {
                    *y = match x.checked_add(1) {
                        Some(next) if i64::from(x) < self.limit => next,
                        _ => return Err(self.reached()),
                    };
                }
                Ok(())
            }};
        }
        match x.dtype() {
            DType::I32 => next!(i32),
            DType::I64 => next!(i64),
            other => Err(Error::internal(format!("a count of {other}"))),
        }
    }

    /// Only the CPU says that the limit is reached.
    fn wgsl(&self, _: &KernelShapes) -> Option<Wgsl> {
        None
    }

    fn flops(&self, _: &KernelShapes) -> u64 {
        1
    }
}

impl Counting {
    fn reached(&self) -> Error {
        Error::new(ErrorKind::OutOfRange, format!("reached the limit of {}", self.limit))
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] =
    &[("count_up_to", |a| Ok(Arc::new(Count { limit: a.int("limit")? })))];
