//! What a model is to be: what is kept, and what is fed, fetched and run under which names.

use std::collections::BTreeSet;

use convoke_graph_core::{BodyId, Error, Graph, Operation, Result, Tensor};

use super::DEFAULT_SIGNATURE;

/// What of a graph a model keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModelForm {
    /// What the outputs and operations need, with the elements of variables as constants.
    Frozen,
    /// What inputs, outputs, operations and collections need, with variables, their initializers, and how often random
    /// operations were drawn.
    Trainable,
}

/// What a model is to give and take, by names of its own.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// The default signature. In a frozen model, an input that is no placeholder becomes one, and what only it needed
    /// is left out; but not what another signature needs and does not feed.
    pub signature: SignatureSpec,
    /// What is kept.
    pub form: ModelForm,
    /// What else the model can be used for, by name.
    pub signatures: Vec<(String, SignatureSpec)>,
}

/// One use of a model: what is fed, fetched and run for it, by name.
#[derive(Debug, Clone, Default)]
pub struct SignatureSpec {
    /// What is fed.
    pub inputs: Vec<(String, Tensor)>,
    /// What is fetched.
    pub outputs: Vec<(String, Tensor)>,
    /// What is run for its effect, such as a training step.
    pub operations: Vec<(String, Operation)>,
}

impl ModelSpec {
    /// A frozen model.
    pub fn frozen(inputs: &[(&str, &Tensor)], outputs: &[(&str, &Tensor)]) -> Self {
        let signature = SignatureSpec::of(inputs, outputs, &[]);
        Self { signature, form: ModelForm::Frozen, signatures: Vec::new() }
    }

    /// A model to be trained on.
    pub fn trainable(
        inputs: &[(&str, &Tensor)],
        outputs: &[(&str, &Tensor)],
        operations: &[(&str, &Operation)],
    ) -> Self {
        let signature = SignatureSpec::of(inputs, outputs, operations);
        Self { signature, form: ModelForm::Trainable, signatures: Vec::new() }
    }

    /// As it is, with one more signature.
    #[must_use]
    pub fn with_signature(
        mut self,
        name: &str,
        inputs: &[(&str, &Tensor)],
        outputs: &[(&str, &Tensor)],
        operations: &[(&str, &Operation)],
    ) -> Self {
        let signature = SignatureSpec::of(inputs, outputs, operations);
        self.signatures.push((name.to_owned(), signature));
        self
    }

    /// All signatures by name, the default one first.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &SignatureSpec)> {
        let others = self.signatures.iter().map(|(name, signature)| (name.as_str(), signature));
        std::iter::once((DEFAULT_SIGNATURE, &self.signature)).chain(others)
    }

    pub(super) fn check(&self, graph: &Graph) -> Result<()> {
        let mut names = BTreeSet::new();
        for (name, signature) in self.all() {
            if !names.insert(name) {
                let message = match name {
                    DEFAULT_SIGNATURE => format!(
                        "{name:?} is the signature of the model's own inputs and outputs; give another name"
                    ),
                    _ => format!("two signatures are named {name:?}"),
                };
                return Err(Error::invalid(message));
            }
            signature.check(graph).map_err(|e| match name {
                DEFAULT_SIGNATURE => e,
                _ => Error::new(e.kind(), format!("signature {name:?}: {}", e.message())),
            })?;
        }
        Ok(())
    }
}

impl SignatureSpec {
    fn of(
        inputs: &[(&str, &Tensor)],
        outputs: &[(&str, &Tensor)],
        operations: &[(&str, &Operation)],
    ) -> Self {
        let (inputs, outputs, operations) = (owned(inputs), owned(outputs), owned(operations));
        Self { inputs, outputs, operations }
    }

    fn check(&self, graph: &Graph) -> Result<()> {
        let tensors = self.inputs.iter().chain(&self.outputs);
        let own = tensors.map(|(name, tensor)| {
            (name, tensor.graph(), tensor.output().node, tensor.fact().is_variable())
        });
        let operations =
            self.operations.iter().map(|(name, op)| (name, op.graph(), op.id(), false));
        for (name, other, node, is_variable) in own.chain(operations) {
            if other.id() != graph.id() {
                let message = format!("{name:?} belongs to another graph than the session's");
                return Err(Error::invalid(message));
            }
            if graph.node(node).body != BodyId::GRAPH {
                let message = format!(
                    "{name:?} lies inside of a branch or loop; return it from the closure that builds it"
                );
                return Err(Error::invalid(message));
            }
            if is_variable {
                let message = format!("{name:?} is a variable's handle; give its value");
                return Err(Error::invalid(message));
            }
        }
        let is_unique = |mut names: Vec<&String>| {
            let n = names.len();
            names.sort_unstable();
            names.dedup();
            names.len() == n
        };
        let tensors =
            |list: &'_ [(String, Tensor)]| is_unique(list.iter().map(|(n, _)| n).collect());
        let operations = is_unique(self.operations.iter().map(|(name, _)| name).collect());
        if !(tensors(&self.inputs) && tensors(&self.outputs) && operations) {
            return Err(Error::invalid("two inputs, outputs or operations have the same name"));
        }
        Ok(())
    }
}

fn owned<T: Clone>(named: &[(&str, &T)]) -> Vec<(String, T)> {
    named.iter().map(|&(name, what)| (name.to_owned(), what.clone())).collect()
}
