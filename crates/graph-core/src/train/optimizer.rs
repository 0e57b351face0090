//! Optimizers: each says how one variable is updated from its gradient; the rest is shared.

use crate::ops::state::{Assign, Read};
use crate::train::Rate;
use crate::{Collection, DType, Graph, Init, Op, Operation, Tensor, Variable};

/// Updates variables from gradients.
pub trait Optimizer {
    /// The name, of the scope that its own variables are in.
    fn name(&self) -> &'static str;

    /// The assignments that update `variable`; its own variables, called after it, come from `slots`.
    #[track_caller]
    fn update(&self, slots: &Slots<'_>, variable: &Variable, grad: &Tensor) -> Vec<Operation>;

    /// One operation that takes a step down the gradient of `loss` for all trainable variables of the
    /// graph. Those that `loss` does not depend on stay as they are.
    #[track_caller]
    fn minimize(&self, loss: &Tensor) -> Operation {
        let variables = loss.graph().trainable_variables();
        let grads = loss.variable_gradients(&variables);
        self.apply_gradients(loss.graph(), &variables, &grads)
    }

    /// One operation that applies these gradients to these variables, and runs the collection of
    /// updates.
    #[track_caller]
    fn apply_gradients(
        &self,
        g: &Graph,
        variables: &[Variable],
        grads: &[Option<Tensor>],
    ) -> Operation {
        let mut operations: Vec<Operation> =
            g.collection(&Collection::Updates).iter().map(Tensor::operation).collect();
        g.scope(self.name(), || {
            let slots = Slots { graph: g, step: std::cell::OnceCell::new() };
            for (variable, grad) in variables.iter().zip(grads) {
                if let Some(grad) = grad {
                    operations.extend(self.update(&slots, variable, grad));
                }
            }
            operations.extend(slots.step.get().map(|(_, next)| next.operation()));
        });
        g.group(&operations)
    }
}

/// Where an optimizer keeps what it remembers.
pub struct Slots<'a> {
    graph: &'a Graph,
    step: std::cell::OnceCell<(Variable, Tensor)>,
}

impl Slots<'_> {
    /// A variable like `variable`, first filled with `value`.
    #[track_caller]
    pub fn like(&self, variable: &Variable, kind: &str, value: f64) -> Variable {
        let name = format!("{}/{kind}", variable.name());
        let sizes = variable.dims().shape().map(|s| s.dims().to_vec()).unwrap_or_default();
        self.graph.untrained_variable(&name, Init::Constant(value), variable.dtype(), sizes)
    }

    /// The number of this step, from 1, as an f32 scalar.
    #[track_caller]
    pub fn step(&self) -> Tensor {
        let (_, next) = self.step.get_or_init(|| {
            let step = self.graph.untrained_variable("step", Init::Zeros, DType::F32, []);
            let next = step.assign_add(1.0);
            (step, next)
        });
        next.clone()
    }
}

impl Graph {
    /// The variables that optimizers train, in order of creation.
    pub fn trainable_variables(&self) -> Vec<Variable> {
        self.variables_of(&Collection::Trainable)
    }

    /// All variables but local ones, in order of creation.
    pub fn global_variables(&self) -> Vec<Variable> {
        self.variables_of(&Collection::Global)
    }

    /// The local variables, in order of creation.
    pub fn local_variables(&self) -> Vec<Variable> {
        self.variables_of(&Collection::Local)
    }

    pub(crate) fn variables_of(&self, collection: &Collection) -> Vec<Variable> {
        let snapshot = self.snapshot();
        let find = |handle: &Tensor, name: &str| {
            let mut users = snapshot.nodes.iter().skip(handle.output().node.0 as usize + 1);
            let node = users
                .find(|n| n.op.name() == name && n.inputs.first() == Some(&handle.output()))?;
            Some(Tensor::new(self.clone(), crate::Output { node: node.id, index: 0 }))
        };
        let variable = |handle: Tensor| {
            let read = find(&handle, Read.name())?;
            let initializer = find(&handle, Assign::SET.name())?.operation();
            Some(Variable { handle, read, initializer })
        };
        self.collection(collection).into_iter().filter_map(variable).collect()
    }
}

/// Stochastic gradient descent: `w -= rate * g`.
#[derive(Debug, Clone)]
pub struct Sgd {
    /// The learning rate.
    pub rate: Rate,
}

impl Sgd {
    /// With this learning rate.
    pub fn new(rate: impl Into<Rate>) -> Self {
        Self { rate: rate.into() }
    }
}

impl Optimizer for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    #[track_caller]
    fn update(&self, slots: &Slots<'_>, variable: &Variable, grad: &Tensor) -> Vec<Operation> {
        let rate = self.rate.tensor(slots.graph, variable.dtype());
        vec![variable.assign_sub(grad * rate).operation()]
    }
}

/// Momentum: `v = momentum * v + g; w -= rate * v`. With `nesterov`, `w -= rate * (g + momentum * v)`.
///
/// Source: Sutskever et al., 2013, in TensorFlow's form.
#[derive(Debug, Clone)]
pub struct Momentum {
    /// The learning rate.
    pub rate: Rate,
    /// How much of the last step stays.
    pub momentum: f64,
    /// Whether to look ahead.
    pub nesterov: bool,
}

impl Momentum {
    /// With this learning rate and momentum, without looking ahead.
    pub fn new(rate: impl Into<Rate>, momentum: f64) -> Self {
        Self { rate: rate.into(), momentum, nesterov: false }
    }
}

impl Optimizer for Momentum {
    fn name(&self) -> &'static str {
        "momentum"
    }

    #[track_caller]
    fn update(&self, slots: &Slots<'_>, variable: &Variable, grad: &Tensor) -> Vec<Operation> {
        let rate = self.rate.tensor(slots.graph, variable.dtype());
        let velocity = slots.like(variable, "velocity", 0.0);
        let next = velocity.assign(velocity.value() * self.momentum + grad);
        let ahead = if self.nesterov { grad + &next * self.momentum } else { next.clone() };
        vec![next.operation(), variable.assign_sub(ahead * rate).operation()]
    }
}

/// Adam: Kingma and Ba, 2015, with TensorFlow's epsilon outside of the root.
#[derive(Debug, Clone)]
pub struct Adam {
    /// The learning rate.
    pub rate: Rate,
    /// The decay of the mean of gradients.
    pub beta1: f64,
    /// The decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root.
    pub epsilon: f64,
}

impl Adam {
    /// With this learning rate, betas 0.9 and 0.999, and epsilon 1e-8.
    pub fn new(rate: impl Into<Rate>) -> Self {
        Self { rate: rate.into(), beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }

    #[track_caller]
    fn delta(
        &self,
        slots: &Slots<'_>,
        variable: &Variable,
        grad: &Tensor,
    ) -> (Tensor, [Tensor; 2]) {
        let dtype = variable.dtype();
        let (m, v) = (slots.like(variable, "m", 0.0), slots.like(variable, "v", 0.0));
        let m = m.assign(m.value() * self.beta1 + grad * (1.0 - self.beta1));
        let v = v.assign(v.value() * self.beta2 + grad.square() * (1.0 - self.beta2));
        let step = slots.step();
        // 1 - beta^t, from logarithms.
        let unbiased = |beta: f64| -((&step * beta.ln()).exp()) + 1.0;
        let rate = self.rate.tensor(slots.graph, DType::F32);
        let scaled = (rate * unbiased(self.beta2).sqrt() / unbiased(self.beta1)).cast(dtype);
        (&m * scaled / (v.sqrt() + self.epsilon), [m, v])
    }
}

impl Optimizer for Adam {
    fn name(&self) -> &'static str {
        "adam"
    }

    #[track_caller]
    fn update(&self, slots: &Slots<'_>, variable: &Variable, grad: &Tensor) -> Vec<Operation> {
        let (delta, [m, v]) = self.delta(slots, variable, grad);
        vec![m.operation(), v.operation(), variable.assign_sub(delta).operation()]
    }
}

/// Adam with decoupled weight decay: Loshchilov and Hutter, 2019.
#[derive(Debug, Clone)]
pub struct AdamW {
    /// The step without decay.
    pub adam: Adam,
    /// How much of each weight is taken off in a step, times the learning rate.
    pub decay: f64,
}

impl AdamW {
    /// Adam with this learning rate, and this decay.
    pub fn new(rate: impl Into<Rate>, decay: f64) -> Self {
        Self { adam: Adam::new(rate), decay }
    }
}

impl Optimizer for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    #[track_caller]
    fn update(&self, slots: &Slots<'_>, variable: &Variable, grad: &Tensor) -> Vec<Operation> {
        let (delta, [m, v]) = self.adam.delta(slots, variable, grad);
        let rate = self.adam.rate.tensor(slots.graph, variable.dtype());
        let delta = delta + variable.value() * (rate * self.decay);
        vec![m.operation(), v.operation(), variable.assign_sub(delta).operation()]
    }
}

/// RMSProp: `s = decay * s + (1 - decay) g^2; w -= rate * g / sqrt(s + epsilon)`.
///
/// Source: Tieleman and Hinton, 2012, in TensorFlow's form.
#[derive(Debug, Clone)]
pub struct RmsProp {
    /// The learning rate.
    pub rate: Rate,
    /// The decay of the mean of squares.
    pub decay: f64,
    /// Added under the root.
    pub epsilon: f64,
}

impl RmsProp {
    /// With this learning rate, decay 0.9 and epsilon 1e-10.
    pub fn new(rate: impl Into<Rate>) -> Self {
        Self { rate: rate.into(), decay: 0.9, epsilon: 1e-10 }
    }
}

impl Optimizer for RmsProp {
    fn name(&self) -> &'static str {
        "rmsprop"
    }

    #[track_caller]
    fn update(&self, slots: &Slots<'_>, variable: &Variable, grad: &Tensor) -> Vec<Operation> {
        let rate = self.rate.tensor(slots.graph, variable.dtype());
        let squares = slots.like(variable, "squares", 1.0);
        let next =
            squares.assign(squares.value() * self.decay + grad.square() * (1.0 - self.decay));
        let delta = grad * rate * (&next + self.epsilon).rsqrt();
        vec![next.operation(), variable.assign_sub(delta).operation()]
    }
}

/// Adagrad: `s += g^2; w -= rate * g / sqrt(s)`: Duchi, Hazan and Singer, 2011.
#[derive(Debug, Clone)]
pub struct Adagrad {
    /// The learning rate.
    pub rate: Rate,
    /// What the sum of squares begins at.
    pub initial: f64,
}

impl Adagrad {
    /// With this learning rate, from 0.1.
    pub fn new(rate: impl Into<Rate>) -> Self {
        Self { rate: rate.into(), initial: 0.1 }
    }
}

impl Optimizer for Adagrad {
    fn name(&self) -> &'static str {
        "adagrad"
    }

    #[track_caller]
    fn update(&self, slots: &Slots<'_>, variable: &Variable, grad: &Tensor) -> Vec<Operation> {
        let rate = self.rate.tensor(slots.graph, variable.dtype());
        let squares = slots.like(variable, "squares", self.initial);
        let next = squares.assign(squares.value() + grad.square());
        let delta = grad * rate * next.rsqrt();
        vec![next.operation(), variable.assign_sub(delta).operation()]
    }
}
