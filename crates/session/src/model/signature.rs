//! What a loaded model takes and gives, by the names of one of its signatures.

use std::collections::BTreeMap;

use convoke_graph_core::{Error, ErrorKind, Graph, Operation, Output, Result, Tensor};

use super::StoredSignature;

/// One use of a model: what is fed, fetched and run for it, by name. See [`SavedModel`](super::SavedModel).
///
/// # Source
/// TensorFlow's `SignatureDef`, which has no operations.
#[derive(Debug, Clone)]
pub struct ModelSignature {
    inputs: BTreeMap<String, Tensor>,
    outputs: BTreeMap<String, Tensor>,
    operations: BTreeMap<String, Operation>,
}

impl ModelSignature {
    pub(super) fn of(graph: &Graph, stored: StoredSignature) -> Result<Self> {
        let tensors = |named: Vec<(String, Output)>| -> Result<BTreeMap<String, Tensor>> {
            let tensor = |(name, at): (String, Output)| {
                let node = graph.node(at.node);
                Ok((name, graph.tensor(&format!("{}:{}", node.name, at.index))?))
            };
            named.into_iter().map(tensor).collect()
        };
        let operations = stored.operations.into_iter();
        let operations =
            operations.map(|(name, id)| Ok((name, graph.operation(&graph.node(id).name)?)));
        Ok(Self {
            inputs: tensors(stored.inputs)?,
            outputs: tensors(stored.outputs)?,
            operations: operations.collect::<Result<_>>()?,
        })
    }

    /// What is fed under this name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such input, with the names that there are.
    pub fn input(&self, name: &str) -> Result<&Tensor> {
        find(texts(&self.inputs), "input", name)
    }

    /// What is fetched under this name.
    ///
    /// # Errors
    /// As [`Self::input`].
    pub fn output(&self, name: &str) -> Result<&Tensor> {
        find(texts(&self.outputs), "output", name)
    }

    /// What is run under this name.
    ///
    /// # Errors
    /// As [`Self::input`].
    pub fn operation(&self, name: &str) -> Result<&Operation> {
        find(texts(&self.operations), "operation", name)
    }

    /// All inputs, by name.
    pub fn inputs(&self) -> &BTreeMap<String, Tensor> {
        &self.inputs
    }

    /// All outputs, by name.
    pub fn outputs(&self) -> &BTreeMap<String, Tensor> {
        &self.outputs
    }

    /// All operations, by name.
    pub fn operations(&self) -> &BTreeMap<String, Operation> {
        &self.operations
    }
}

fn texts<T>(named: &BTreeMap<String, T>) -> impl Iterator<Item = (&str, &T)> {
    named.iter().map(|(name, what)| (name.as_str(), what))
}

pub(super) fn find<'a, T>(
    named: impl Iterator<Item = (&'a str, &'a T)>,
    what: &str,
    name: &str,
) -> Result<&'a T> {
    let mut names = Vec::new();
    for (own, found) in named {
        if own == name {
            return Ok(found);
        }
        names.push(own);
    }
    let message = format!("no {what} is named {name:?}; there are {names:?}");
    Err(Error::new(ErrorKind::NotFound, message))
}
