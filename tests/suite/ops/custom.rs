//! Operations that users bring: the example's running sum as a table, several outputs, and kernels that are
//! wrong.

use std::sync::Arc;

use convoke::prelude::*;
use convoke::{
    Backward, Class, CustomKernel, Fact, Facts, KernelShapes, LoadOptions, Op, OpError, Output,
    Result, TensorView, TensorViewMut, Values, Wgsl,
};
use convoke_tests::{Folder, case, check, devices, ramp};

#[path = "../../../crates/convoke/examples/custom_op/cumsum.rs"]
mod cumsum;

use cumsum::cumsum;

#[test]
fn running_sums() {
    check(
        "cumsum",
        |xs| cumsum(&xs[0]),
        &[
            case("by hand")
                .x([[1.0f32, 2.0, 3.0], [4.0, -5.0, 6.0]])
                .y([[1.0f32, 3.0, 6.0], [4.0, -1.0, 5.0]])
                .gradient(),
            case("empty").x(ramp(&[0, 3])),
            case("empty rows").x(ramp(&[3, 0])),
            case("one").x(ramp(&[1])).gradient(),
            case("odd").x(ramp(&[67, 3, 51])).within(1e-4),
            case("a row too long for a GPU").x(ramp(&[2, 60_001])).within(1e-3),
            case("a scalar").x(1.0f32).refused("expected rank 1, got shape []"),
            case("integers")
                .x([1i32])
                .refused("cumsum needs a tensor of f32, got i32; cast it first"),
        ],
    );
    check(
        "cumsum of views",
        |xs| {
            cumsum(&xs[0].transpose())
                + cumsum(&(&xs[0].slice(&[0, 0], &[None, Some(1)]) * 2.0)).relu()
        },
        &[case("odd").x(ramp(&[13, 1])).gradient()],
    );
}

#[test]
fn the_gradient_of_a_gradient() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, [3]);
    let y = cumsum(&x).square().sum(());
    let slope = y.gradients(&[&x]).remove(0).unwrap();
    let curve = slope.sum(()).gradients(&[&x]).remove(0).unwrap();
    for device in devices() {
        let session = device.session(&g);
        let feed = x.feed([1.0f32, 10.0, 100.0]);
        let (slope, curve) = session.run(&[feed], (&slope, &curve)).unwrap();
        // y = a^2 + (a+b)^2 + (a+b+c)^2.
        assert_eq!(slope.to_vec::<f32>().unwrap(), [246.0, 244.0, 222.0], "{}", device.name);
        assert_eq!(curve.to_vec::<f32>().unwrap(), [12.0, 10.0, 6.0], "{}", device.name);
    }
}

#[test]
fn a_saved_model_has_it_if_it_is_told_how_to_make_it() {
    let folder = Folder::new("custom");
    let path = folder.path().join("model.safetensors");
    let g = Graph::new();
    let x = g.placeholder("x", F32, [3]);
    let y = x.apply(cumsum::CumSum { reverse: true }, &[&x]);
    for device in devices() {
        let session = device.session(&g);
        session.save_model(&path, &ModelSpec::frozen(&[("x", &x)], &[("y", &y)])).unwrap();
        let load = |operations| {
            let options = LoadOptions { operations, ..LoadOptions::default() };
            SavedModel::load_with(&path, &device.devices, options)
        };
        let error = load(vec![]).unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::Unimplemented, Some("cumsum")));
        let expected = "unsupported: no operation is kept as \"cumsum\"";
        assert!(error.message().contains(expected), "{error}");
        let decode: convoke::ops::Decode = cumsum::decode;
        let model = load(vec![("cumsum".into(), decode)]).unwrap();
        let feed = model.input("x").unwrap().feed([1.0f32, 2.0, 4.0]);
        let found = model.session().run(&[feed], model.output("y").unwrap()).unwrap();
        assert_eq!(found.to_vec::<f32>().unwrap(), [7.0, 6.0, 4.0], "{}", device.name);
        // Attributes of another kind are refused by its own decoder.
        let error = load(vec![("cumsum".into(), |_| Err(OpError::Invalid("no".into())))]);
        let error = error.unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("cumsum")));
    }
}

/// The sums and the products of two vectors' elements, or one of several faults.
#[derive(Debug, Clone, Copy)]
struct Both {
    fault: Option<Fault>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Shader,
    Workgroup,
    Refused,
    Panic,
}

impl Op for Both {
    fn name(&self) -> &str {
        "both"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<Facts, OpError> {
        Ok([inputs[0].clone(), inputs[0].clone()].into_iter().collect())
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<Values, OpError> {
        let _ = inputs;
        Err(OpError::Unsupported("no values outside of a session".into()))
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        Vec::new()
    }

    fn class(&self) -> Class<'_> {
        Class::Custom(Arc::new(*self))
    }

    fn encode(&self) -> Option<convoke::Attributes> {
        None
    }
}

impl CustomKernel for Both {
    #[expect(clippy::panic, reason = "a user's kernel may panic; the run must not")]
    fn cpu(&self, inputs: &[TensorView<'_>], outputs: &mut [TensorViewMut<'_>]) -> Result<()> {
        match self.fault {
            Some(Fault::Panic) => panic!("as it was told"),
            Some(Fault::Refused) => return Err(convoke::Error::invalid("these will not do")),
            _ => {}
        }
        let [sums, products] = outputs else { return Err(convoke::Error::internal("outputs")) };
        let (x, y) = (inputs[0].as_slice::<f32>()?, inputs[1].as_slice::<f32>()?);
        for (i, (&x, &y)) in x.iter().zip(y).enumerate() {
            sums.as_slice_mut::<f32>()?[i] = x + y;
            products.as_slice_mut::<f32>()?[i] = x * y;
        }
        Ok(())
    }

    fn wgsl(&self, shapes: &KernelShapes) -> Option<Wgsl> {
        let text = match self.fault {
            Some(Fault::Shader) => {
                "@compute @workgroup_size(64) fn main() { store_0(0u, load_7(0u)); }"
            }
            // Larger than any device takes.
            Some(Fault::Workgroup) => {
                "@compute @workgroup_size(8192) fn main() { store_0(0u, load_0(0u)); }"
            }
            _ => {
                "@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    // One step too many: an index out of range does no harm.
    if id.x > p.y0_len { return; }
    store_0(id.x, load_0(id.x) + load_1(id.x));
    store_1(id.x, load_0(id.x) * load_1(id.x));
}"
            }
        };
        let workgroups = shapes.outputs[0].1.len().div_ceil(64) as u64;
        Some(Wgsl { name: "both", text, params: Vec::new(), workgroups })
    }

    fn flops(&self, shapes: &KernelShapes) -> u64 {
        2 * shapes.outputs[0].1.len() as u64
    }
}

#[test]
fn several_outputs() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let both = x.apply(Both { fault: None }, &[&x, &(&x + 1.0)]).operation();
    let outputs = both.outputs();
    assert_eq!(outputs.iter().map(Tensor::name).collect::<Vec<_>>(), ["both:0", "both:1"]);
    for device in devices() {
        for n in [1usize, 64, 130] {
            let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let session = device.session(&g);
            let got = session.run(&[x.feed(values)], &outputs).unwrap();
            let expected = |f: fn(f32) -> f32| (0..n).map(|i| f(i as f32)).collect::<Vec<_>>();
            assert_eq!(
                got[0].to_vec::<f32>().unwrap(),
                expected(|x| x + x + 1.0),
                "{}",
                device.name
            );
            assert_eq!(
                got[1].to_vec::<f32>().unwrap(),
                expected(|x| x * (x + 1.0)),
                "{}",
                device.name
            );
        }
    }
}

fn faulty(fault: Fault, device: &str) -> (Graph, Tensor) {
    let g = Graph::new();
    let x = g.constant(ramp(&[2000]));
    let y = g.device(device, || x.apply(Both { fault: Some(fault) }, &[&x, &x]));
    (g, y)
}

#[test]
fn faults_of_the_cpu_function_fail_the_run() {
    for (fault, kind, says) in [
        (Fault::Refused, ErrorKind::InvalidArgument, "these will not do"),
        (Fault::Panic, ErrorKind::Unknown, "panicked: as it was told"),
    ] {
        let (g, y) = faulty(fault, "CPU:0");
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        let error = session.run(&[], &y).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(says), "{error}");
        assert_eq!(error.node(), Some("both"), "{error}");
    }
}

#[test]
fn a_shader_that_does_not_compile_is_a_reason_against_its_device() {
    for device in devices().iter().skip(1) {
        let (g, y) = faulty(Fault::Shader, "GPU:0");
        let options = SessionOptions { soft_placement: false, ..SessionOptions::default() };
        let error = device.session_with(&g, options).run(&[], &y).unwrap_err();
        assert!(
            error.to_string().contains("no definition in scope for identifier: `load_7`"),
            "{error}"
        );
        let options = SessionOptions { soft_placement: true, ..SessionOptions::default() };
        let sums = device.session_with(&g, options).run(&[], &y).unwrap();
        assert_eq!(sums.len(), 2000);
    }
}

#[test]
fn a_kernel_that_the_driver_refuses_runs_elsewhere() {
    for device in devices().iter().skip(1) {
        let (g, y) = faulty(Fault::Workgroup, "GPU:0");
        let doubled = g.device("GPU:0", || &y * 2.0);
        let strict = SessionOptions { soft_placement: false, ..SessionOptions::default() };
        let error = device.session_with(&g, strict).run(&[], &doubled).unwrap_err();
        assert_eq!(error.node(), Some("both"), "{error}");
        assert_eq!(error.device(), Some("GPU:0"), "{error}");
        assert!(error.message().contains("shader"), "{error}");
        let session = device.session_with(&g, SessionOptions::default());
        let x = ramp(&[2000]).to_vec::<f32>().unwrap();
        for _ in 0..2 {
            let (sums, run) = session.run_with(&[], &doubled, Default::default()).unwrap();
            let expected: Vec<f32> = x.iter().map(|x| (x + x) * 2.0).collect();
            assert_eq!(sums.to_vec::<f32>().unwrap(), expected, "{}", device.name);
            assert_eq!(run.dispatches, 1, "the rest stays on the GPU: {run}");
        }
        let text = session.explain(&[], &doubled).unwrap().to_string();
        assert!(text.contains("was refused"), "{text}");
    }
}

/// An operation that says of itself whatever it likes.
#[derive(Debug)]
struct Claim {
    class: Class<'static>,
    outputs: Facts,
}

impl Op for Claim {
    fn name(&self) -> &str {
        "claim"
    }

    fn infer(&self, _: &[Fact]) -> Result<Facts, OpError> {
        Ok(self.outputs.clone())
    }

    fn eval(&self, _: &[HostTensor]) -> Result<Values, OpError> {
        Err(OpError::Unsupported("no definition".into()))
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        Vec::new()
    }

    fn class(&self) -> Class<'_> {
        self.class.clone()
    }

    fn encode(&self) -> Option<convoke::Attributes> {
        None
    }
}

/// Classes as the library's own operations have them.
fn classes() -> Vec<Class<'static>> {
    let g = Graph::new();
    let x = g.placeholder("x", F32, [2, 3]);
    let images = g.placeholder("images", F32, [1, 2, 4, 4]);
    let filters = g.placeholder("filters", F32, [2, 2, 3, 3]);
    let index = g.placeholder("index", I32, [2]);
    let variable = g.variable("v", Init::Zeros, F32, [2, 3]);
    let conv = images.conv2d(&filters, convoke::Conv2d::default());
    let pool = images.max_pool(convoke::Pool::default());
    let mean = images.avg_pool(convoke::Pool::default());
    let _ = [
        &x + &x,
        x.exp(),
        x.greater(0.0).select(&x, &x),
        x.cast(I32),
        x.transpose(),
        x.reshape(&[-1]),
    ];
    let _ = [
        x.sum(0),
        x.mean(()),
        x.argmax(1),
        x.matmul_with(&x, false, true),
        x.broadcast_to(&[5, 2, 3]),
    ];
    let _ = [x.slice(&[0, 1], &[None, Some(1)]), x.pad(&[[1, 1], [0, 2]]), x.gather(&index, 0)];
    let _ = [g.concat(&[&x, &x], 0), x.random_uniform_like(3), x.shape(), variable.read()];
    for y in [&conv, &pool, &mean, &x.gather(&index, 0)] {
        let loss = (y * y).sum(());
        loss.gradients(&[&images, &filters, &x]);
    }
    assert!(g.check().is_empty(), "{:?}", g.check());
    let mut seen = std::collections::HashSet::new();
    // Classes borrow from their operations, which live as long as the test.
    let nodes: &'static _ = Box::leak(Box::new(g.snapshot().nodes));
    let mut classes = Vec::new();
    for node in nodes.iter() {
        if seen.insert(format!("{:?}", node.op.class())) {
            classes.push(node.op.class());
        }
    }
    classes
}

#[test]
fn claims_that_do_not_fit_are_refused_and_never_panic() {
    let shapes: [&[usize]; 5] = [&[], &[0], &[3], &[2, 3], &[1, 2, 4, 4]];
    let classes = classes();
    assert!(classes.len() > 25, "{}", classes.len());
    let mut runs = 0;
    for class in &classes {
        for (i, &input) in shapes.iter().enumerate() {
            for n_inputs in 0..4 {
                for (dtype, output) in [(F32, shapes[(i + 1) % 5]), (I32, input), (F32, input)] {
                    let g = Graph::new();
                    let x = g.placeholder("x", F32, input);
                    let shape = convoke::Shape::new(output).unwrap();
                    let outputs = [Fact::new(dtype, &shape)].into();
                    let claim = Claim { class: class.clone(), outputs };
                    let y = g.apply(claim, &vec![&x; n_inputs]);
                    for device in devices() {
                        let run = || {
                            let _ = device.session(&g).run(&[x.feed(ramp(input))], &y);
                        };
                        let what =
                            format!("{class:?} of {n_inputs} {input:?} as {dtype} {output:?}");
                        let kept = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                        assert!(kept.is_ok(), "{what} on {}", device.name);
                        runs += 1;
                    }
                }
            }
        }
    }
    assert!(runs >= 1500, "{runs}");
}

#[test]
fn an_operation_without_outputs_is_refused() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, [2]);
    let y = x.apply(Claim { class: classes().remove(1), outputs: Facts::new() }, &[&x]);
    assert_eq!(g.check().len(), 1);
    assert_eq!(y.output(), Output { node: y.operation().id(), index: 0 });
}
