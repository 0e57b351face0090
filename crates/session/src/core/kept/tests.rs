//! Storing on several devices, of which one is lost.

use std::sync::Arc;

use convoke_graph_core::{DType, Graph, HostTensor, Init, Node, NodeId, Result, Tensor};

use crate::calibrate::Calibrations;
use crate::state::NewElements;
use crate::{DeviceOptions, Devices, PipelineDir, Session};

/// The CPU and each adapter that `CONVOKE_TEST_ADAPTERS` names, opened twice: as two GPUs that are not lost together.
fn devices() -> Vec<Result<Devices>> {
    let named = std::env::var("CONVOKE_TEST_ADAPTERS").unwrap_or_default();
    let open = |name: &str| {
        Devices::with_options(&DeviceOptions {
            name: Some(name.to_owned()),
            gpu_budget_bytes: Some(16 << 20),
            calibrations: Calibrations::Nowhere,
            pipeline_dir: PipelineDir::Nowhere,
            ..DeviceOptions::default()
        })
    };
    let twice = |name: &str| Ok(open(name)?.beside(open(name)?));
    named.split(',').filter(|name| !name.is_empty()).map(twice).collect()
}

#[test]
fn what_is_stored_with_what_a_lost_gpu_has_is_undone() {
    for devices in devices() {
        let devices = devices.unwrap();
        let g = Graph::new();
        let names = ["CPU:0", "GPU:0", "GPU:1"];
        let variables = names.map(|name| {
            g.device(name, || {
                g.variable(&name.replace(':', ""), Init::Constant(1.0), DType::F32, [4])
            })
        });
        let read = |at: usize| g.device(names[at], || variables[at].value() + 1.0);
        let sums: Vec<Tensor> = (0..3).map(read).collect();
        let session = Session::new(&g, &devices).unwrap();
        session.run(&[], g.initializers()).unwrap();
        session.run(&[], &sums).unwrap();
        let homes: Vec<usize> = session.variables().iter().map(|v| v.device).collect();
        assert_eq!(homes, [0, 1, 2]);
        let core = &session.core;
        let ids = core.state.lock().variables.keys().copied().collect::<Vec<NodeId>>();
        let store = |x: f32| {
            let elements = |id: NodeId| (id, NewElements::of(&HostTensor::from([x; 4])).unwrap());
            core.store_all(&mut core.state.lock(), ids.iter().copied().map(elements).collect())
        };
        let now = |at: usize| {
            let node: Arc<Node> = ids
                .iter()
                .map(|&id| core.graph.node(id))
                .find(|node| *node.name == *names[at].replace(':', ""))
                .unwrap();
            core.elements_of(&core.state.lock(), &node).unwrap().to_vec::<f32>().unwrap()
        };
        store(2.0).unwrap();
        assert_eq!((0..3).map(now).collect::<Vec<_>>(), [[2.0; 4]; 3]);
        core.gpus.get(2).unwrap().0.destroy();
        assert!(store(3.0).is_err());
        assert_eq!((0..2).map(now).collect::<Vec<_>>(), [[2.0; 4]; 2]);
        let value = |&id: &NodeId| (id, HostTensor::from([4.0f32; 4]));
        let draws = Some(vec![(ids[0], 7)]);
        assert!(core.set(ids.iter().map(value).collect(), draws, Vec::new()).is_err());
        assert_eq!((0..2).map(now).collect::<Vec<_>>(), [[2.0; 4]; 2]);
        assert!(core.state.lock().draws.counts.is_empty());
    }
}
