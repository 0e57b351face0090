//! The harness: every operation is tested by one table and one [`check`].
//!
//! For each case, [`check`] computes the reference node by node, compares it with values given by hand,
//! compares every device with it, fused and not, and compares gradients with central differences of the
//! reference. Software adapters are used where `CONVOKE_TEST_ADAPTERS` names them; `cargo xtask test`
//! sets it.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test harness fails by panicking")]

mod folder;
mod slow;
mod stress;
mod waits;

use std::collections::HashMap;
use std::sync::OnceLock;

use convoke::prelude::*;
use convoke::{
    Calibrations, DeviceOptions, DevicePolicy, Error, Output, PipelineDir, Result, Shape,
};

pub use folder::Folder;
pub use slow::{fails_while, slow, slow_on_host};
pub use stress::{Figures, Stress};
pub use waits::{A_WHILE, GRACE, comes, kind, waiting};

/// A device that cases run on.
pub struct TestDevice {
    /// `CPU`, or the adapter's name in `CONVOKE_TEST_ADAPTERS`.
    pub name: String,
    /// Its devices.
    pub devices: Devices,
    /// What its sessions prefer.
    pub policy: DevicePolicy,
}

/// The CPU, and each adapter that `CONVOKE_TEST_ADAPTERS` names.
///
/// # Panics
/// If one of them is not there.
pub fn devices() -> &'static [TestDevice] {
    static DEVICES: OnceLock<Vec<TestDevice>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let cpu = TestDevice {
            name: "CPU".into(),
            devices: Devices::cpu(),
            policy: DevicePolicy::Prefer("CPU:0".into()),
        };
        let named = std::env::var("CONVOKE_TEST_ADAPTERS").unwrap_or_default();
        let adapters = named.split(',').filter(|name| !name.is_empty()).map(|name| TestDevice {
            name: name.into(),
            devices: open(name, DeviceOptions::default()),
            policy: DevicePolicy::Prefer("GPU:0".into()),
        });
        let all: Vec<TestDevice> = std::iter::once(cpu).chain(adapters).collect();
        if all.len() == 1 {
            eprintln!("skipped on GPUs: CONVOKE_TEST_ADAPTERS names no adapter");
        }
        all
    })
}

/// The CPU, or the adapter that has this in its name.
///
/// # Errors
/// There is none.
pub fn device(name: &str) -> std::result::Result<TestDevice, String> {
    let is_cpu = name.eq_ignore_ascii_case("cpu");
    let options = options(name, DeviceOptions::default());
    let devices = if is_cpu { Ok(Devices::cpu()) } else { Devices::with_options(&options) };
    let own = if is_cpu { "CPU:0" } else { "GPU:0" };
    let devices = devices.map_err(|e| format!("{name}: {e}"))?;
    Ok(TestDevice { name: name.into(), devices, policy: DevicePolicy::Prefer(own.into()) })
}

/// The CPU and the adapter of this name, with default speeds whatever was calibrated on this machine, and with no
/// pipelines of earlier runs. SwiftShader has no subgroups here, so that kernels are seen with them and without.
///
/// # Panics
/// If it is not there.
fn open(name: &str, more: DeviceOptions) -> Devices {
    Devices::with_options(&options(name, more)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The CPU and all adapters of this machine, software among them, if `CONVOKE_TEST_ADAPTERS` names two or more.
///
/// # Panics
/// If they cannot be opened.
pub fn several_adapters(more: DeviceOptions) -> Option<Devices> {
    let all = DeviceOptions { name: None, allow_software: true, ..options("SwiftShader", more) };
    (devices().len() > 2).then(|| Devices::with_options(&all).unwrap())
}

fn options(name: &str, options: DeviceOptions) -> DeviceOptions {
    DeviceOptions {
        name: Some(name.to_owned()),
        calibrations: Calibrations::Nowhere,
        pipeline_dir: PipelineDir::Nowhere,
        without_subgroups: name.eq_ignore_ascii_case("SwiftShader"),
        ..options
    }
}

impl TestDevice {
    /// The same device, opened once more, so that what it counts is of one test.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub fn alone(&self) -> TestDevice {
        let devices = match self.devices.list().len() {
            1 => Devices::cpu(),
            _ => self.open(DeviceOptions::default()),
        };
        TestDevice { name: self.name.clone(), devices, policy: self.policy.clone() }
    }

    /// The CPU and this adapter, opened with other options.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub fn open(&self, options: DeviceOptions) -> Devices {
        open(&self.name, options)
    }

    /// A session on this device, where a kernel that the driver refuses is an error.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn session(&self, graph: &Graph) -> Session {
        self.session_with(graph, SessionOptions { soft_placement: false, ..Default::default() })
    }

    /// A session on this device with other options.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn session_with(&self, graph: &Graph, options: SessionOptions) -> Session {
        let options = SessionOptions { policy: self.policy.clone(), ..options };
        Session::with_options(graph, &self.devices, options).unwrap()
    }
}

/// One row of an operation's table.
#[derive(Default)]
pub struct Case {
    name: String,
    inputs: Vec<HostTensor>,
    expected: Option<HostTensor>,
    refused: Option<String>,
    gradient: bool,
    tolerance: Option<f64>,
}

/// A case called `name`.
pub fn case(name: impl Into<String>) -> Case {
    Case { name: name.into(), ..Case::default() }
}

impl Case {
    /// Adds an input.
    pub fn x(mut self, x: impl Into<HostTensor>) -> Self {
        self.inputs.push(x.into());
        self
    }

    /// The value, computed by hand or by a named source.
    pub fn y(mut self, y: impl Into<HostTensor>) -> Self {
        self.expected = Some(y.into());
        self
    }

    /// The operation is refused with this message.
    pub fn refused(mut self, message: &str) -> Self {
        self.refused = Some(message.into());
        self
    }

    /// The gradient of each float input is compared with central differences.
    pub fn gradient(mut self) -> Self {
        self.gradient = true;
        self
    }

    /// Devices may differ from the reference by this, relative to the greater of 1 and the reference;
    /// without it, by `1e-5` for f32 and by the step of narrower floats.
    pub fn within(mut self, tolerance: f64) -> Self {
        self.tolerance = Some(tolerance);
        self
    }
}

/// Elements that are small, differ, and repeat only after many.
pub fn ramp(sizes: &[usize]) -> HostTensor {
    let n: usize = sizes.iter().product();
    let x = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 25.0;
    HostTensor::new(sizes, (0..n).map(x).collect::<Vec<f32>>()).unwrap()
}

/// Elements from 0.1 up, for logarithms and roots.
pub fn positive(sizes: &[usize]) -> HostTensor {
    let n: usize = sizes.iter().product();
    let x = |i: usize| (i * 37 % 101) as f32 / 25.0 + 0.1;
    HostTensor::new(sizes, (0..n).map(x).collect::<Vec<f32>>()).unwrap()
}

/// Integers from 0 up to `limit`, which is left out.
pub fn indices(sizes: &[usize], limit: i32) -> HostTensor {
    let n: usize = sizes.iter().product();
    let x = |i: usize| (i as i32 * 37 + 11) % limit;
    HostTensor::new(sizes, (0..n).map(x).collect::<Vec<i32>>()).unwrap()
}

/// `tensor` in another dtype, by the rules of [`Tensor::cast`].
///
/// # Panics
/// If it has no such form.
pub fn cast(tensor: &HostTensor, dtype: DType) -> HostTensor {
    let g = Graph::new();
    let x = g.constant(tensor.clone());
    reference(&g, &[x.cast(dtype).output()], &[]).unwrap().remove(0)
}

/// Tests an operation: each case's inputs go through `build`, whose result is compared.
///
/// # Panics
/// If anything differs; the message names the operation, case, device and element.
#[track_caller]
pub fn check(operation: &str, build: impl Fn(&[Tensor]) -> Tensor, cases: &[Case]) {
    for case in cases {
        let what = format!("{operation}, {}", case.name);
        let g = Graph::with_seed(7);
        let xs = placeholders(&g, &case.inputs);
        let y = build(&xs);
        if let Some(refused) = &case.refused {
            check_refused(&what, &g, refused);
            continue;
        }
        assert!(g.check().is_empty(), "{what}: {:?}", g.check());
        let feeds: Vec<(Output, HostTensor)> =
            xs.iter().map(Tensor::output).zip(case.inputs.iter().cloned()).collect();
        let truth = reference(&g, &[y.output()], &feeds).unwrap_or_else(|e| panic!("{what}: {e}"));
        if let Some(expected) = &case.expected {
            compare(&format!("{what}: the reference"), &truth[0], expected, case.tolerance);
        }
        assert!(y.dims().admits(truth[0].shape()), "{what}: {} {}", y.dims(), truth[0].shape());
        on_all_devices(&what, case, &g, &xs, &y, &truth[0]);
        if case.gradient {
            check_gradient(&what, case, &g, &xs, &y);
        }
    }
}

fn placeholders(g: &Graph, inputs: &[HostTensor]) -> Vec<Tensor> {
    let dims = |x: &HostTensor| x.dims().to_vec();
    inputs.iter().map(|x| g.placeholder("x", x.dtype(), dims(x))).collect()
}

fn check_refused(what: &str, g: &Graph, refused: &str) {
    let errors = g.check();
    let first = errors.first().unwrap_or_else(|| panic!("{what}: was not refused"));
    assert_eq!(first.message(), refused, "{what}");
    assert!(first.location().is_some(), "{what}: no line of the caller");
}

fn on_all_devices(
    what: &str,
    case: &Case,
    g: &Graph,
    xs: &[Tensor],
    y: &Tensor,
    truth: &HostTensor,
) {
    for device in devices() {
        for (fuse, simplify) in [(true, true), (false, true), (true, false)] {
            let options =
                SessionOptions { fuse, simplify, soft_placement: false, ..Default::default() };
            let session = device.session_with(g, options);
            let feeds: Vec<Feed<'_>> =
                xs.iter().zip(&case.inputs).map(|(x, value)| x.feed(value)).collect();
            let got =
                session.run(&feeds, y).unwrap_or_else(|e| panic!("{what} on {}: {e}", device.name));
            let how = match (fuse, simplify) {
                (false, _) => " unfused",
                (_, false) => " as it is written",
                _ => "",
            };
            let place = format!("{what} on {}{how}", device.name);
            compare(&place, &got, truth, case.tolerance);
        }
    }
}

/// Compares element by element; floats within a tolerance, all else exactly.
///
/// # Panics
/// If they differ.
#[track_caller]
pub fn compare(what: &str, got: &HostTensor, expected: &HostTensor, tolerance: Option<f64>) {
    assert_eq!(got.dtype(), expected.dtype(), "{what}: dtype");
    assert_eq!(got.shape(), expected.shape(), "{what}: shape");
    if !got.dtype().is_float() {
        assert_eq!(got, expected, "{what}");
        return;
    }
    let step = match got.dtype() {
        F16 => 2e-3,
        BF16 => 2e-2,
        F64 => 1e-12,
        _ => 1e-5,
    };
    let tolerance = tolerance.unwrap_or(step).max(if step > 1e-4 { step } else { 0.0 });
    let pairs = got.to_f64s().unwrap().into_iter().zip(expected.to_f64s().unwrap());
    for (i, (got, expected)) in pairs.enumerate() {
        let same = got == expected || (got.is_nan() && expected.is_nan());
        let near = (got - expected).abs() <= tolerance * expected.abs().max(1.0);
        assert!(same || near, "{what}: element {i} is {got}, expected {expected}");
    }
}

/// Computes outputs of a graph node by node with the operations' own definitions.
///
/// # Errors
/// What an operation refuses.
pub fn reference(
    g: &Graph,
    outputs: &[Output],
    feeds: &[(Output, HostTensor)],
) -> Result<Vec<HostTensor>> {
    let graph = g.snapshot();
    let mut values: HashMap<Output, HostTensor> = feeds.iter().cloned().collect();
    let mut needed = vec![false; graph.nodes.len()];
    outputs.iter().for_each(|output| needed[output.node.0 as usize] = true);
    for id in (0..graph.nodes.len()).rev() {
        if needed[id] {
            graph.nodes[id].inputs.iter().for_each(|input| needed[input.node.0 as usize] = true);
        }
    }
    for node in graph.nodes.iter().filter(|node| needed[node.id.0 as usize]) {
        let own = |index| Output { node: node.id, index };
        if values.contains_key(&own(0)) {
            continue;
        }
        let inputs: Vec<HostTensor> = node.inputs.iter().map(|i| values[i].clone()).collect();
        let results = node.op.eval(&inputs).map_err(|e| Error::from(e).with_node(&*node.name))?;
        values.extend((0..).map(own).zip(results));
    }
    Ok(outputs.iter().map(|output| values[output].clone()).collect())
}

/// Compares `d sum(y * weights) / dx` with central differences of the reference in `f64`.
fn check_gradient(what: &str, case: &Case, g: &Graph, xs: &[Tensor], y: &Tensor) {
    let weights = g.constant(cast(&ramp(reference_dims(g, xs, y, case).dims()), y.dtype()));
    let loss = (y * weights).sum(());
    let inputs: Vec<&Tensor> = xs.iter().collect();
    let grads = loss.gradients(&inputs);
    assert!(g.check().is_empty(), "{what}: gradient: {:?}", g.check());
    for (i, grad) in grads.iter().enumerate() {
        if !xs[i].dtype().is_float() {
            continue;
        }
        let grad = grad.as_ref().unwrap_or_else(|| panic!("{what}: no gradient of input {i}"));
        let feeds: Vec<(Output, HostTensor)> =
            xs.iter().map(Tensor::output).zip(case.inputs.iter().cloned()).collect();
        let got = reference(g, &[grad.output()], &feeds).unwrap().remove(0);
        let expected = differences(xs, &case.inputs, i, y, g);
        compare(&format!("{what}: gradient of input {i}"), &got, &expected, Some(2e-2));
        on_all_devices(&format!("{what}: gradient of input {i}"), case, g, xs, grad, &got);
    }
}

fn reference_dims(g: &Graph, xs: &[Tensor], y: &Tensor, case: &Case) -> Shape {
    let feeds: Vec<(Output, HostTensor)> =
        xs.iter().map(Tensor::output).zip(case.inputs.iter().cloned()).collect();
    reference(g, &[y.output()], &feeds).unwrap()[0].shape().clone()
}

/// The step of central differences: large enough that f32 results keep three digits.
const STEP: f64 = 1e-2;

fn differences(
    xs: &[Tensor],
    inputs: &[HostTensor],
    which: usize,
    y: &Tensor,
    g: &Graph,
) -> HostTensor {
    let weigh = |inputs: &[HostTensor]| -> f64 {
        let feeds: Vec<(Output, HostTensor)> =
            xs.iter().map(Tensor::output).zip(inputs.iter().cloned()).collect();
        let y = reference(g, &[y.output()], &feeds).unwrap().remove(0);
        let weights = cast(&ramp(y.dims()), y.dtype()).to_f64s().unwrap();
        y.to_f64s().unwrap().iter().zip(weights).map(|(y, w)| y * w).sum()
    };
    let x = inputs[which].to_f64s().unwrap();
    let shape = inputs[which].shape();
    let moved = |at: usize, by: f64| {
        let mut x = x.clone();
        x[at] += by;
        let mut inputs = inputs.to_vec();
        inputs[which] = HostTensor::from_f64s(inputs[which].dtype(), shape.clone(), &x).unwrap();
        weigh(&inputs)
    };
    let slopes: Vec<f64> =
        (0..x.len()).map(|i| (moved(i, STEP) - moved(i, -STEP)) / (2.0 * STEP)).collect();
    HostTensor::from_f64s(inputs[which].dtype(), shape.clone(), &slopes).unwrap()
}
