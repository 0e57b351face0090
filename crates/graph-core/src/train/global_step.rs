//! The number of training steps that a graph counts.
//!
//! Source: TensorFlow's `python/training/training_util.py`.

use crate::{Collection, DType, Graph, Init, Variable};

/// The collection that the counter is in, as in TensorFlow.
const COLLECTION: &str = "global_step";

impl Graph {
    /// The graph's counter of training steps, a scalar of i64 that begins at 0: made by the first call, in the scope of
    /// that call. It is saved as other variables are, and no optimizer trains it. Have each step add 1 to it:
    ///
    /// ```
    /// # use convoke_graph_core::{DType, Graph, Init};
    /// # let g = Graph::new();
    /// # let train = g.variable("w", Init::Zeros, DType::F32, []).assign_add(1.0).operation();
    /// let step = g.after(&[&train], || g.global_step().assign_add(1)).operation();
    /// ```
    #[track_caller]
    pub fn global_step(&self) -> Variable {
        self.find_global_step().unwrap_or_else(|| {
            let step = self.untrained_variable(COLLECTION, Init::Zeros, DType::I64, []);
            self.collect(Collection::Named(COLLECTION.into()), step.handle());
            step
        })
    }

    /// The graph's counter of training steps, if [`Self::global_step`] has made one.
    pub fn find_global_step(&self) -> Option<Variable> {
        self.variables_of(&Collection::Named(COLLECTION.into())).into_iter().next()
    }
}
