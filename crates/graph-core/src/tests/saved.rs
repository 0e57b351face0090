//! What files keep of operations and graphs.

use std::collections::BTreeSet;

use crate::ops::row::RowOp;
use crate::ops::{decode, rows, saved_names};
use crate::{
    AccumulatorOptions, Attribute, Attributes, Class, Collection, Compression, Conv2d, DType, Dim,
    ErrorKind, FixedOptions, Graph, GraphParts, HostTensor, ImageLayout, Init, LineOptions, NodeId,
    Op, Output, Padding, Pool, ProducerOptions, QueueKind, QueueOptions, RecordFormat, Reduction,
    StagingOptions, Tensor, TfRecordOptions,
};

/// A graph with every operation that there is.
fn everything() -> Graph {
    let g = Graph::with_seed(7);
    for row in rows() {
        let dtype = [DType::F32, DType::I32, DType::Bool].into_iter();
        let dtype = dtype.clone().find(|&dtype| row.output(dtype).is_some()).unwrap();
        let x = g.placeholder("x", dtype, [2]);
        g.apply(RowOp(row), &vec![&x; row.arity]);
    }
    let x = g.placeholder("x", DType::F32, crate::dims![None, 3]);
    let bools = x.greater(0.0);
    let half = x.cast(DType::F16).cast(DType::F32);
    g.placeholder_with_default("y", [1.0f32, f32::NAN], [2]);
    g.concat(&[&x, &half], 0);
    x.pad(&[[1, 2], [0, 1]]).slice(&[1, 0], &[None, Some(3)]);
    bools.select(&x, &half);
    x.matmul_with(&x, true, false).matmul_with(&x, false, true);
    x.reshape(&[3, -1]).permute(&[1, 0]).expand_dims(-1).squeeze(&[2]).broadcast_to(&[4, 2, 3]);
    x.identity().stop_gradient().shape();
    x.size();
    g.range(0, 4);
    let _ = (x.sum(()), x.mean_keep([-1]), x.prod(0), x.max(0), x.min(0));
    let _ = (x.argmax(1), x.argmin(0), bools.any(()), bools.all(()));
    x.sum_to_like(&x.sum_keep(0));
    g.random_uniform(&[2], DType::F32, u64::MAX);
    g.random_normal(&[2], DType::F64, 1);
    g.truncated_normal(&[2], DType::F16, 2);
    g.constant(HostTensor::strings(&[2], ["a", "\u{0}b\""]).unwrap());
    windows(&g);
    texts(&g, &x);
    state(&g, &x);
    queues(&g);
    chosen_queues(&g);
    areas_and_accumulators(&g);
    readers(&g);
    super::saved_flow::flows(&g);
    g
}

fn texts(g: &Graph, x: &Tensor) {
    let v = g.variable("words", Init::Zeros, DType::String, [2, 2]);
    let x = x.slice(&[0, 0], &[Some(2), Some(2)]).as_string();
    let both = g.string_join(&[&x, v.value()], "\u{0}\"");
    both.reduce_join((), false, "");
    both.reduce_join([1, -2], true, ", ");
    let _ = (both.string_length(), both.substr(1, -2), both.string_to_number(DType::I64));
}

fn windows(g: &Graph) {
    let images = g.placeholder("images", DType::F32, [1, 6, 6, 2]);
    let padding = Padding::Explicit([[1, 0], [0, 1]]);
    let layout = ImageLayout::Nhwc;
    let filters = g.placeholder("filters", DType::F32, [3, 3, 2, 4]);
    let conv = Conv2d { stride: [2, 1], padding, layout, ..Conv2d::default() };
    let pool = Pool { window: [2, 3], padding: Padding::Same, layout, ..Pool::default() };
    let y = images.conv2d(&filters, conv);
    let loss = y.max_pool(pool).square().sum(()) + y.avg_pool(pool).sum(());
    let dx = loss.gradients(&[&images, &filters]).remove(0).unwrap();
    // The gradient of a gradient of a maximum takes elements from its place.
    dx.square().sum(()).gradients(&[&images]);
}

fn state(g: &Graph, x: &Tensor) {
    let v = g.variable("v", Init::Zeros, DType::F32, [4, 2]);
    let rows = g.constant([0i32, 3]);
    v.assign(v.value() * 2.0);
    v.assign_add(1.0);
    v.assign_sub(1.0);
    v.initialized_value();
    v.is_initialized();
    let one = g.constant(1.0f32);
    for scatter in [
        crate::Variable::scatter_update,
        crate::Variable::scatter_add,
        crate::Variable::scatter_sub,
        crate::Variable::scatter_mul,
        crate::Variable::scatter_div,
        crate::Variable::scatter_min,
        crate::Variable::scatter_max,
    ] {
        scatter(&v, &rows, &one);
    }
    let gathered = v.value().gather(&rows, 0).sum(());
    gathered.gradients(&[v.value()]);
    let dx = x.slice(&[0, 1], &[None, Some(1)]).sum(());
    let dx = dx.gradients(&[x]).remove(0).unwrap();
    dx.square().sum(()).gradients(&[x]);
    let padded = x.pad(&[[0, 1], [0, 0]]).square().sum(());
    padded.gradients(&[x]);
    let count = g.local_variable("count", Init::Zeros, DType::I64, []);
    count.count_up_to(i64::MAX);
    g.shared_variable("w", Init::Zeros, DType::F32, [1]);
    let table = crate::LookupTable::new([1i32, 5], [0.5f32, 2.5]).unwrap();
    table.lookup(&rows, -1.0f32);
    let table = g.container("c", || g.mutable_table("table", DType::I32, DType::F32));
    table.insert(&rows, &table.find(&rows, 0.5f32));
    let _ = (table.remove(&rows), table.size(), table.export());
    g.no_op();
}

fn queues(g: &Graph) {
    let x = g.placeholder("x", DType::I64, crate::dims![]);
    let kinds = [
        QueueKind::Fifo,
        QueueKind::PaddingFifo,
        QueueKind::RandomShuffle { min_after_dequeue: 2, seed: u64::MAX },
        QueueKind::Priority,
    ];
    for (i, kind) in kinds.into_iter().enumerate() {
        let shared_name = (i == 1).then(|| "q".to_owned());
        let options = QueueOptions { kind, capacity: (i > 0).then_some(5), shared_name };
        let components = [(DType::I64, crate::Dims::from([0usize; 0]))];
        let queue = g.container("inputs", || g.queue("q", components, options));
        queue.enqueue(&[&x]);
        queue.enqueue_many(&[&x.expand_dims(0)]);
        let _ = (queue.dequeue(), queue.dequeue_many(2), queue.dequeue_up_to(3));
        let _ = (queue.size(), queue.is_closed(), queue.close(), queue.close_and_cancel());
    }
}

fn chosen_queues(g: &Graph) {
    let index = g.placeholder("index", DType::I32, crate::dims![]);
    let queue = |name: &str| g.fifo_queue(name, 4, [(DType::F32, crate::dims![2])]);
    let chosen = g.select_queue(&index, &[&queue("one"), &queue("two")]);
    let _ = (chosen.dequeue_many(&index), chosen.dequeue_up_to(&index), chosen.dequeue_many(3));
    chosen.enqueue(&chosen.dequeue().iter().collect::<Vec<_>>());
}

fn areas_and_accumulators(g: &Graph) {
    let (x, step) = (g.constant([1.0f32, 2.0]), g.constant(3i64));
    let options = StagingOptions { capacity: Some(3), memory_limit: Some(16), shared_name: None };
    let area = g.staging_area("area", [(DType::F32, crate::dims![2])], options);
    area.put(&[&x]);
    let _ = (area.get(), area.peek(1), area.peek(&step), area.size(), area.clear());
    for reduction in [Reduction::Mean, Reduction::Sum] {
        let options = AccumulatorOptions { reduction, shared_name: None };
        let all = g.conditional_accumulator("all", DType::F32, crate::dims![2], options);
        all.apply_gradient(&x, &step);
        let _ = (all.take_gradient(2), all.take_gradient(&step), all.num_accumulated());
        all.set_global_step(&step);
    }
    let barrier = g.barrier("barrier", [(DType::F32, crate::dims![])], Some("shared".into()));
    let keys = g.constant(HostTensor::strings(&[2], ["a", "b"]).unwrap());
    barrier.insert_many(0, &keys, &x);
    let _ = (barrier.take_many(2), barrier.take_up_to(&step), barrier.close_and_cancel());
    let _ = (barrier.ready_size(), barrier.incomplete_size(), barrier.close());
}

fn readers(g: &Graph) {
    let options = ProducerOptions { epochs: Some(2), shuffle: Some(u64::MAX), capacity: 3 };
    let names = g.string_input_producer("files", ["a", "\u{e9}\n"], options);
    g.string_input_producer("more", [vec![0u8, 255]], ProducerOptions::default());
    let compression = Compression::Gzip;
    let lines = LineOptions { skip_header_lines: 1, max_line_bytes: 9, compression };
    let fixed = FixedOptions {
        header_bytes: 1,
        footer_bytes: 3,
        hop_bytes: 4,
        compression: Compression::Zlib,
        max_record_bytes: u64::MAX,
        ..FixedOptions::new(2)
    };
    for format in [
        RecordFormat::WholeFile { max_bytes: 7 },
        RecordFormat::Lines(lines),
        RecordFormat::Fixed(fixed),
        RecordFormat::TfRecord(TfRecordOptions::default()),
        RecordFormat::Identity,
    ] {
        let reader = g.container("c", || g.reader("reader", format.clone()));
        let (key, _) = reader.read(&names);
        let _ = (reader.read_up_to(&names, 5), reader.skip_file(&names), reader.reset());
        let _ = (reader.num_records_produced(), reader.num_work_units_completed());
        if format == RecordFormat::Identity {
            reader.restore_state(&key);
            reader.serialize_state();
        }
    }
}

#[test]
fn every_operation_is_made_again() {
    let g = everything();
    assert!(g.check().is_empty(), "{:?}", g.check());
    let mut missing: BTreeSet<&str> = saved_names().collect();
    assert_eq!(missing.len(), saved_names().count(), "names are unique");
    for node in g.snapshot().nodes.iter() {
        let encoded = node.op.encode().unwrap();
        let again = decode(&encoded).unwrap().unwrap();
        // What follows from the nodes of bodies comes when a graph is put together.
        let is_whole = !matches!(node.op.class(), Class::Flow(flow) if !flow.bodies().is_empty());
        if is_whole {
            assert_eq!(format!("{again:?}"), format!("{:?}", node.op), "{}", node.name);
        }
        assert_eq!(again.name(), node.op.name());
        assert_eq!(again.encode(), Some(encoded.clone()));
        missing.remove(encoded.operation());
        // With one attribute more, fewer, or other than expected it is refused.
        assert!(decode(&encoded.clone().with("more", 1i64)).is_err(), "{encoded:?}");
        for (name, value) in encoded.iter() {
            let other: Attribute = match value {
                Attribute::Text(_) => 1i64.into(),
                _ => "other".into(),
            };
            if !matches!(name, "name" | "container" | "queue_name" | "message") {
                let wrong = encoded.clone().with(name, other);
                assert!(decode(&wrong).is_err(), "{wrong:?}");
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
    assert!(decode(&Attributes::of("conv7d")).unwrap().is_none());
}

#[test]
fn graphs_are_put_together_as_they_were() {
    let g = everything();
    let x = g.tensor("x").unwrap();
    g.collect(Collection::Named("mine".into()), &x);
    let near = g.device("GPU:0", || x.identity());
    g.after(&[&near.operation()], || {
        g.colocate_with(&near.operation(), || g.scope("part", || x.identity()))
    });
    let again = Graph::from_parts(g.parts()).unwrap();
    assert_eq!(again.to_string(), g.to_string());
    assert_eq!(again.seed(), 7);
    for (a, b) in again.snapshot().nodes.iter().zip(g.snapshot().nodes.iter()) {
        assert_eq!((&a.facts, &a.device, &a.container), (&b.facts, &b.device, &b.container));
        assert_eq!((&a.controls, &a.colocated), (&b.controls, &b.colocated));
    }
    let outputs = |list: Vec<Tensor>| list.iter().map(Tensor::output).collect::<Vec<_>>();
    for name in [
        Collection::Trainable,
        Collection::Global,
        Collection::Local,
        Collection::Initializers,
        Collection::LocalInitializers,
        Collection::Named("mine".into()),
    ] {
        assert!(!again.collection(&name).is_empty(), "{name:?}");
        assert_eq!(outputs(again.collection(&name)), outputs(g.collection(&name)), "{name:?}");
    }
    // What is built next is what would have been built next.
    for g in [&g, &again] {
        let x = g.placeholder("x", DType::F32, crate::dims![None]);
        g.scope("part", || x.identity());
        g.shared_variable("w", Init::Zeros, DType::F32, [1]);
    }
    let last = |g: &Graph| g.snapshot().nodes.iter().last().unwrap().name.to_string();
    assert_eq!((last(&again), again.to_string()), ("part_1/identity".into(), g.to_string()));
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, crate::dims![None, 2]);
    let v = g.variable("v", Init::Zeros, DType::F32, [2]);
    let y = &x + &v;
    let n = g.len() as u32;
    let parts = g.parts();
    let refused = |change: &dyn Fn(&mut GraphParts), text: &str| {
        let mut parts = parts.clone();
        change(&mut parts);
        let error = Graph::from_parts(parts).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    let last = y.output().node.0 as usize;
    let far = Output { node: NodeId(n), index: 0 };
    refused(&|p| p.nodes[last].inputs[0] = far, "add: node 8 does not come before it");
    refused(&|p| p.nodes[last].inputs[0].node.0 = last as u32, "does not come before it");
    refused(&|p| p.nodes[last].inputs[0].index = 1, "x has 1 outputs, and none 1");
    refused(&|p| p.nodes[last].controls.push(NodeId(u32::MAX)), "does not come before it");
    refused(&|p| p.nodes[last].colocated.push(NodeId(n)), "does not come before it");
    refused(&|p| p.nodes[last].name = "x".into(), "two nodes have this name");
    refused(&|p| p.nodes[last].inputs.truncate(1), "add: expected 2 inputs, got 1");
    refused(&|p| p.n_symbols = 0, "x: symbol s0 of a graph of 0 symbols");
    refused(&|p| p.n_symbols = u32::MAX, "too many");
    refused(&|p| p.collections.push((Collection::Updates, vec![far])), "node 8 does not come");
    let g = Graph::new();
    let w = g.shared_variable("w", Init::Zeros, DType::F32, [2]);
    for (i, text) in ["w is no", "is no Read", "is no Assign"].into_iter().enumerate() {
        let mut parts = g.parts();
        let other = if i == 0 { w.value() } else { w.handle() }.output().node;
        let shared = &mut parts.shared[0];
        match i {
            0 => shared.handle = other,
            1 => shared.read = other,
            _ => shared.initializer = other,
        }
        let error = Graph::from_parts(parts).unwrap_err().to_string();
        assert!(error.contains(text) || error.contains("is no Variable"), "{error}");
    }
    assert_eq!(g.parts().nodes.len(), g.len());
    assert!(
        parts.nodes[0].inputs.is_empty() && n == 8 && Dim::Symbol(0) == x.dims().dims().unwrap()[0]
    );
}

#[test]
fn hostile_attributes_are_refused_by_operations() {
    let g = Graph::new();
    let any = g.placeholder("any", DType::F32, crate::Dims::UnknownRank);
    let x = g.placeholder("x", DType::F32, [2, 3]);
    let huge = usize::MAX;
    let cases = [
        Attributes::of("transpose").with("axes", [0usize, 0]),
        Attributes::of("transpose").with("axes", [huge, huge]),
        Attributes::of("expand_dims").with("axis", i64::MIN),
        Attributes::of("squeeze").with("axes", [i64::MIN, i64::MAX]),
        Attributes::of("slice_to").with("begin", [huge, huge]),
        Attributes::of("pad_to").with("begin", [huge, huge]),
        Attributes::of("pad").with("padding", [huge, huge, huge, huge]),
        Attributes::of("concat").with("axis", huge),
        Attributes::of("gather").with("axis", huge),
        Attributes::of("sum").with("axes", [i64::MIN]).with("keep_dims", true),
    ];
    let shape = x.shape();
    let indices = g.constant([0i64]);
    for attributes in cases {
        let Ok(Some(op)) = decode(&attributes) else { continue };
        for inputs in
            [vec![&x], vec![&x, &shape], vec![&x, &indices], vec![&any], vec![&any, &indices]]
        {
            let node = Shared(op.clone());
            let y = g.apply(node, &inputs);
            let fits = y.node().invalid.is_none();
            assert!(!fits || inputs[0].is(&any), "{attributes:?} of {inputs:?}: {y:?}");
        }
    }
    for (name, sides) in [("pad", vec![1usize]), ("slice", vec![1])] {
        let attributes = Attributes::of(name).with("padding", sides.clone()).with("begin", sides);
        assert!(decode(&attributes).is_err());
    }
    let unequal = crate::Dims::from([1usize, 1]);
    assert!(
        decode(&Attributes::of("slice").with("begin", [0usize]).with("size", unequal)).is_err()
    );
    let open = crate::dims![None];
    let variable = Attributes::of("variable").with("dtype", DType::F32).with("dims", open);
    assert!(decode(&variable).is_err());
    // The same slip in a program is refused, too.
    assert!(any.slice(&[0, 0], &[None]).node().invalid.is_some());
}

/// An operation that others hold too.
#[derive(Debug)]
struct Shared(std::sync::Arc<dyn Op>);

impl Op for Shared {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn infer(&self, inputs: &[crate::Fact]) -> Result<crate::Facts, crate::OpError> {
        self.0.infer(inputs)
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<crate::Values, crate::OpError> {
        self.0.eval(inputs)
    }

    fn gradient(&self, backward: &crate::Backward<'_>) -> Vec<Option<Tensor>> {
        self.0.gradient(backward)
    }

    fn class(&self) -> Class<'_> {
        self.0.class()
    }

    fn encode(&self) -> Option<Attributes> {
        self.0.encode()
    }
}
