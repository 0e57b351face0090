//! The cases on Burn, as one of its users would write them.

use std::time::Duration;

use burn::backend::wgpu::WgpuDevice;
use burn::backend::{Autodiff, Flex, Vulkan};
use burn::nn::{LayerNorm, LayerNormConfig};
use burn::tensor::activation::{gelu, log_softmax, relu, softmax};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};

use crate::data::Data;
use crate::{Failure, time};

type Measured = Option<(&'static str, Duration, Vec<f32>)>;

/// On `flex`.
pub fn on_cpu(name: &str, data: &Data, seconds: f64) -> Result<Measured, Failure> {
    let measured = run::<Autodiff<Flex>>(name, data, &Default::default(), seconds)?;
    Ok(measured.map(|(median, found)| ("Burn flex", median, found)))
}

/// On the first Vulkan adapter that is a CPU.
pub fn on_vulkan(name: &str, data: &Data, seconds: f64) -> Result<Measured, Failure> {
    let measured = run::<Autodiff<Vulkan>>(name, data, &WgpuDevice::Cpu, seconds)?;
    Ok(measured.map(|(median, found)| ("Burn wgpu", median, found)))
}

fn run<A: AutodiffBackend>(
    name: &str,
    data: &Data,
    device: &A::Device,
    seconds: f64,
) -> Result<Option<(Duration, Vec<f32>)>, Failure> {
    let cases = Cases::<A::InnerBackend> { data, device };
    let measured = match name {
        "A" => time(seconds, || {
            let x = TensorData::new(cases.data.feeds["x"].1.clone(), [1]);
            elements(Tensor::<A::InnerBackend, 1>::from_data(x, device) + 1.0)
        }),
        "C" => {
            let v = cases.weight::<1>("v");
            time(seconds, || {
                let x = cases.fed::<1>("x");
                let y = (x.clone() * v.clone() + x) * 0.5 - v.clone();
                elements(relu(y).tanh().sum())
            })
        }
        "D1" | "D64" => {
            let net = Mlp::of(&cases);
            time(seconds, || elements(softmax(net.logits(cases.fed("x")), 1)))
        }
        "E-sgd" | "E-adam" => {
            let mut step = Training::<A>::new(&cases, name == "E-adam");
            time(seconds, || elements(step.run(&cases, device)))
        }
        "H" => {
            let block = Encoder::of(&cases);
            time(seconds, || elements(block.run(cases.fed("x"))))
        }
        "I-norm" => {
            let norm: LayerNorm<A::InnerBackend> =
                LayerNormConfig::new(1024).with_epsilon(1e-5).init(device);
            time(seconds, || elements(norm.forward(cases.fed::<2>("x"))))
        }
        "I-softmax" => time(seconds, || elements(softmax(cases.fed::<2>("x"), 1))),
        _ => return Ok(None),
    };
    Ok(Some(measured?))
}

/// The elements on the host.
fn elements<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Result<Vec<f32>, Failure> {
    Ok(tensor.into_data().into_vec::<f32>().map_err(|e| format!("{e:?}"))?)
}

struct Cases<'a, B: Backend> {
    data: &'a Data,
    device: &'a B::Device,
}

impl<B: Backend> Cases<'_, B> {
    fn fed<const D: usize>(&self, name: &str) -> Tensor<B, D> {
        let (sizes, xs) = &self.data.feeds[name];
        Tensor::from_data(TensorData::new(xs.clone(), sizes.clone()), self.device)
    }

    fn weight<const D: usize>(&self, name: &str) -> Tensor<B, D> {
        let (sizes, xs) = &self.data.weights[name];
        Tensor::from_data(TensorData::new(xs.clone(), sizes.clone()), self.device)
    }
}

struct Mlp<B: Backend> {
    w1: Tensor<B, 2>,
    b1: Tensor<B, 1>,
    w2: Tensor<B, 2>,
    b2: Tensor<B, 1>,
}

impl<B: Backend> Mlp<B> {
    fn of(cases: &Cases<'_, B>) -> Self {
        Self {
            w1: cases.weight("dense1/weights"),
            b1: cases.weight("dense1/bias"),
            w2: cases.weight("dense2/weights"),
            b2: cases.weight("dense2/bias"),
        }
    }

    fn logits(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let hidden = relu(x.matmul(self.w1.clone()) + self.b1.clone().unsqueeze());
        hidden.matmul(self.w2.clone()) + self.b2.clone().unsqueeze()
    }
}

/// A parameter of any rank, flat, with what Adam keeps for it.
struct Kept<B: Backend, const D: usize> {
    value: Tensor<B, D>,
    m: Tensor<B, D>,
    v: Tensor<B, D>,
}

impl<B: Backend, const D: usize> Kept<B, D> {
    fn new(value: Tensor<B, D>) -> Self {
        Self { m: value.zeros_like(), v: value.zeros_like(), value }
    }

    /// `adam` is the step's number, from 1 on.
    fn update(&mut self, g: Tensor<B, D>, adam: Option<i32>) {
        let Some(t) = adam else {
            self.value = self.value.clone() - g * 0.01;
            return;
        };
        self.m = self.m.clone() * 0.9 + g.clone() * 0.1;
        self.v = self.v.clone() * 0.999 + g.powi_scalar(2) * 0.001;
        let rate = 1e-3 * (1.0 - 0.999f64.powi(t)).sqrt() / (1.0 - 0.9f64.powi(t));
        let by = self.m.clone() * rate / (self.v.clone().sqrt() + 1e-8);
        self.value = self.value.clone() - by;
    }
}

struct Training<A: AutodiffBackend> {
    w1: Kept<A::InnerBackend, 2>,
    b1: Kept<A::InnerBackend, 1>,
    w2: Kept<A::InnerBackend, 2>,
    b2: Kept<A::InnerBackend, 1>,
    adam: Option<i32>,
}

impl<A: AutodiffBackend> Training<A> {
    fn new(cases: &Cases<'_, A::InnerBackend>, adam: bool) -> Self {
        let Mlp { w1, b1, w2, b2 } = Mlp::of(cases);
        let (w1, b1, w2, b2) = (Kept::new(w1), Kept::new(b1), Kept::new(w2), Kept::new(b2));
        Self { w1, b1, w2, b2, adam: adam.then_some(0) }
    }

    /// A step; gives the loss before it.
    fn run(
        &mut self,
        cases: &Cases<'_, A::InnerBackend>,
        device: &A::Device,
    ) -> Tensor<A::InnerBackend, 1> {
        let net = Mlp::<A> {
            w1: Tensor::from_inner(self.w1.value.clone()).require_grad(),
            b1: Tensor::from_inner(self.b1.value.clone()).require_grad(),
            w2: Tensor::from_inner(self.w2.value.clone()).require_grad(),
            b2: Tensor::from_inner(self.b2.value.clone()).require_grad(),
        };
        let (sizes, labels) = &cases.data.feeds["y"];
        let labels: Vec<i32> = labels.iter().map(|&x| x as i32).collect();
        let labels = TensorData::new(labels, [sizes[0], 1]);
        let labels = Tensor::<A, 2, Int>::from_data(labels, device);
        let logits = net.logits(Tensor::from_inner(cases.fed("x")));
        let loss = log_softmax(logits, 1).gather(1, labels).mean().neg();
        let grads = loss.backward();
        self.adam = self.adam.map(|t| t + 1);
        for (kept, grad) in
            [(&mut self.w1, net.w1.grad(&grads)), (&mut self.w2, net.w2.grad(&grads))]
        {
            kept.update(grad.unwrap_or_else(|| kept.value.zeros_like()), self.adam);
        }
        for (kept, grad) in
            [(&mut self.b1, net.b1.grad(&grads)), (&mut self.b2, net.b2.grad(&grads))]
        {
            kept.update(grad.unwrap_or_else(|| kept.value.zeros_like()), self.adam);
        }
        loss.inner()
    }
}

struct Encoder<B: Backend> {
    all: (Tensor<B, 2>, Tensor<B, 1>),
    out: (Tensor<B, 2>, Tensor<B, 1>),
    hidden: (Tensor<B, 2>, Tensor<B, 1>),
    last: (Tensor<B, 2>, Tensor<B, 1>),
    norm: LayerNorm<B>,
}

fn dense<B: Backend>(x: Tensor<B, 2>, (w, b): &(Tensor<B, 2>, Tensor<B, 1>)) -> Tensor<B, 2> {
    x.matmul(w.clone()) + b.clone().unsqueeze()
}

impl<B: Backend> Encoder<B> {
    fn of(cases: &Cases<'_, B>) -> Self {
        let layer = |name: &str| {
            (cases.weight(&format!("{name}/weights")), cases.weight(&format!("{name}/bias")))
        };
        Self {
            all: layer("attention/in"),
            out: layer("attention/out"),
            hidden: layer("hidden"),
            last: layer("out"),
            // Scales of 1 and shifts of 0, as the case has them.
            norm: LayerNormConfig::new(256).with_epsilon(1e-5).init(cases.device),
        }
    }

    fn run(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let all = dense(x.clone(), &self.all).reshape([128, 3, 8, 32]).permute([1, 2, 0, 3]);
        let part = |i: usize| all.clone().narrow(0, i, 1).reshape([8, 128, 32]);
        let scores = part(0).matmul(part(1).swap_dims(1, 2)) * (1.0 / 32f64.sqrt());
        let heads = softmax(scores, 2).matmul(part(2)).permute([1, 0, 2]).reshape([128, 256]);
        let x = self.norm.forward(x + dense(heads, &self.out));
        let out = dense(gelu(dense(x.clone(), &self.hidden)), &self.last);
        self.norm.forward(x + out)
    }
}
