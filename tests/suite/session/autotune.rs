//! Sessions that learn from their own runs.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{
    Backward, Class, CustomKernel, Fact, Facts, KernelShapes, Op, OpError, Result, RunMetadata,
    RunOptions, TensorView, TensorViewMut, Values, Wgsl,
};
use convoke_tests::{devices, ramp};

/// Adds 1 to the elements of a vector: on the host as if there were much to do, which nobody predicts.
#[derive(Debug, Clone, Copy)]
struct SlowOnHost;

const HOST_TIME: Duration = Duration::from_millis(30);

impl Op for SlowOnHost {
    fn name(&self) -> &str {
        "slow_on_host"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<Facts, OpError> {
        Ok([inputs[0].clone()].into())
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<Values, OpError> {
        let x: Vec<f64> = inputs[0].to_f64s()?.iter().map(|x| x + 1.0).collect();
        Ok([HostTensor::from_f64s(F32, inputs[0].shape().clone(), &x)?].into())
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![backward.dy()]
    }

    fn class(&self) -> Class<'_> {
        Class::Custom(Arc::new(*self))
    }
}

impl CustomKernel for SlowOnHost {
    fn cpu(&self, inputs: &[TensorView<'_>], outputs: &mut [TensorViewMut<'_>]) -> Result<()> {
        thread::sleep(HOST_TIME);
        let y = outputs[0].as_slice_mut::<f32>()?;
        for (y, x) in y.iter_mut().zip(inputs[0].as_slice::<f32>()?) {
            *y = x + 1.0;
        }
        Ok(())
    }

    fn wgsl(&self, shapes: &KernelShapes) -> Option<Wgsl> {
        Some(Wgsl {
            name: "slow_on_host",
            text: "@compute @workgroup_size(1)\n\
                   fn main(@builtin(workgroup_id) group: vec3<u32>) {\n\
                   store_0(group.x, load_0(group.x) + 1.0);\n}\n",
            params: Vec::new(),
            workgroups: shapes.inputs[0].1.len() as u64,
        })
    }

    fn flops(&self, shapes: &KernelShapes) -> u64 {
        shapes.inputs[0].1.len() as u64
    }
}

fn options() -> SessionOptions {
    SessionOptions { autotune: true, ..SessionOptions::default() }
}

#[test]
fn what_runs_took_decides_where_the_next_ones_go() {
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None]);
        let v = g.variable("v", Init::Zeros, F32, [4]);
        let y = x.apply(SlowOnHost, &[&x]) + &v;
        let step = v.assign_add(&y * 0.5).operation();
        let alone = device.alone();
        let session = Session::with_options(&g, &alone.devices, options()).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let feed = ramp(&[4]);
        let runs: Vec<RunMetadata> = (0..24)
            .map(|_| {
                let run = session.run_with(&[x.feed(&feed)], &step, RunOptions::default());
                run.unwrap_or_else(|e| panic!("{}: {e}", device.name)).1
            })
            .collect();
        // Two runs, then five that are timed, on the host; then the same on the GPU, which remains.
        let tunes: Vec<usize> = (0..runs.len()).filter(|&i| runs[i].tunes).collect();
        assert_eq!(tunes, [2, 3, 4, 5, 6, 9, 10, 11, 12, 13], "{}", device.name);
        for (i, run) in runs.iter().enumerate() {
            assert_eq!(run.submissions, u64::from(i > 6), "{}, run {i}", device.name);
            assert!(run.nodes.is_empty() && run.phases.is_empty(), "nobody asked for times");
        }
        let again: Vec<usize> = (0..runs.len()).filter(|&i| !runs[i].program_cached).collect();
        assert_eq!(again, [0, 7, 14], "{}", device.name);
        // The variable has moved along with what it was: v becomes 1.5 v + (x + 1) / 2 in each run.
        let v = session.run(&[], v.value()).unwrap().to_vec::<f32>().unwrap();
        for (v, x) in v.iter().zip(feed.to_vec::<f32>().unwrap()) {
            let expected = (0..24).fold(0.0, |v, _| 1.5 * v + (f64::from(x) + 1.0) / 2.0);
            let error = (f64::from(*v) - expected).abs();
            assert!(error <= 1e-5 * expected.abs().max(1.0), "{}: {v} for {expected}", device.name);
        }
        let explanation = session.explain(&[x.feed(&feed)], &step).unwrap();
        let report = explanation.node("slow_on_host").unwrap().to_string();
        assert!(report.contains("CPU:0: 30.") && report.contains("in runs"), "{report}");
    }
}

#[test]
fn without_it_no_run_is_timed() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let y = x.apply(SlowOnHost, &[&x]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for _ in 0..4 {
        let (_, run) = session.run_with(&[x.feed(ramp(&[4]))], &y, Default::default()).unwrap();
        assert!(!run.tunes);
    }
}
