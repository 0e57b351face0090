//! An operation that gives its input, and takes its time on the host or fails there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use convoke::{
    Backward, Class, CustomKernel, Error, ErrorKind, Fact, Facts, HostTensor, KernelShapes, Op,
    OpError, Result, Tensor, TensorView, TensorViewMut, Values, Wgsl,
};

/// The elements of an f32 vector, after `time` if it runs on the host.
#[track_caller]
pub fn slow(x: &Tensor, time: Duration) -> Tensor {
    x.apply(Slow { time, gpus: false, fails: None }, &[x])
}

/// The same, with a kernel for GPUs, which takes no time of its own.
#[track_caller]
pub fn slow_on_host(x: &Tensor, time: Duration) -> Tensor {
    x.apply(Slow { time, gpus: true, fails: None }, &[x])
}

/// The elements, on the host; an error of kind `Aborted` while `fails` is set.
#[track_caller]
pub fn fails_while(x: &Tensor, fails: &Arc<AtomicBool>) -> Tensor {
    let fails = Some(fails.clone());
    x.apply(Slow { time: Duration::ZERO, gpus: false, fails }, &[x])
}

#[derive(Debug, Clone)]
struct Slow {
    time: Duration,
    gpus: bool,
    fails: Option<Arc<AtomicBool>>,
}

impl Op for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<Facts, OpError> {
        Ok([inputs[0].clone()].into())
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<Values, OpError> {
        Ok([inputs[0].clone()].into())
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![backward.dy()]
    }

    fn class(&self) -> Class<'_> {
        Class::Custom(Arc::new(self.clone()))
    }

    fn encode(&self) -> Option<convoke::Attributes> {
        None
    }
}

impl CustomKernel for Slow {
    fn cpu(&self, inputs: &[TensorView<'_>], outputs: &mut [TensorViewMut<'_>]) -> Result<()> {
        if !self.time.is_zero() {
            thread::sleep(self.time);
        }
        if self.fails.as_ref().is_some_and(|fails| fails.load(Ordering::Relaxed)) {
            return Err(Error::new(ErrorKind::Aborted, "the test wants this to fail"));
        }
        outputs[0].as_slice_mut::<f32>()?.copy_from_slice(inputs[0].as_slice::<f32>()?);
        Ok(())
    }

    fn wgsl(&self, shapes: &KernelShapes) -> Option<Wgsl> {
        self.gpus.then(|| Wgsl {
            name: "slow",
            text: "@compute @workgroup_size(1)\n\
                   fn main(@builtin(workgroup_id) group: vec3<u32>) {\n\
                   store_0(group.x, load_0(group.x));\n}\n",
            params: Vec::new(),
            workgroups: shapes.inputs[0].1.len() as u64,
        })
    }

    fn flops(&self, shapes: &KernelShapes) -> u64 {
        shapes.inputs[0].1.len() as u64
    }
}
