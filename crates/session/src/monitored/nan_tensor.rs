//! A training that has gone wrong.
//!
//! Source: TensorFlow's `NanTensorHook`.

use convoke_graph_core::{Error, Graph, Result, Tensor};

use super::hook::{AfterRun, BeforeRun, Hook, Wanted};

/// Ends a training whose loss is NaN.
#[derive(Debug)]
pub struct NanTensor {
    loss: Tensor,
    fails: bool,
    wanted: Option<Wanted<Tensor>>,
}

impl NanTensor {
    /// Fails the run whose `loss`, a tensor of floats, has a NaN, with `InvalidArgument`.
    pub fn new(loss: &Tensor) -> Self {
        Self { loss: loss.clone(), fails: true, wanted: None }
    }

    /// As [`Self::new`], but asks for the end instead.
    pub fn stops(loss: &Tensor) -> Self {
        Self { fails: false, ..Self::new(loss) }
    }
}

impl Hook for NanTensor {
    fn begin(&mut self, _: &Graph) -> Result<()> {
        let dtype = self.loss.dtype();
        if !dtype.is_float() {
            let message = format!("expected a loss of floats, got {dtype}");
            return Err(Error::invalid(message).with_node(self.loss.name()));
        }
        Ok(())
    }

    fn before_run(&mut self, run: &mut BeforeRun<'_>) -> Result<()> {
        self.wanted = Some(run.fetch(self.loss.clone()));
        Ok(())
    }

    fn after_run(&mut self, run: &AfterRun<'_>) -> Result<()> {
        let Some(wanted) = self.wanted.take() else { return Ok(()) };
        if !run.get(&wanted)?.to_f64s()?.iter().any(|x| x.is_nan()) {
            return Ok(());
        }
        let message = "the model has diverged: its loss is NaN; make the learning rate smaller, \
                       or clip gradients";
        let error = Error::invalid(message).with_node(self.loss.name());
        if self.fails {
            return Err(error);
        }
        tracing::warn!("{error}");
        run.request_stop();
        Ok(())
    }
}
