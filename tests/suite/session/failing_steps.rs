//! A whole training step of which everything fails in turn: each operation of its layers, dropout, loss, gradients,
//! learning rate and Adam, then its queues, variables and data. Whatever did, all state is as before.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use convoke::prelude::*;
use convoke::train::exponential_decay;
use convoke::{
    Attributes, Backward, BodyId, Class, CustomKernel, Element, Error, Fact, Facts, KernelShapes,
    NodeId, NodeParts, Op, OpError, Output, Queue, RunOptions, Shape, TensorView, TensorViewMut,
    Values, Wgsl,
};
use convoke_tests::{TestDevice, devices, indices, ramp};

/// The operations of a step, counted by hand: 39 give the loss, 37 the gradients, 9 the rate, 146 are Adam's, and 5 add
/// to the global step, put the loss, and group.
///
/// Adam is no operation of its own that could fail as a whole. For each of the four variables, 36 operations read and
/// assign its two moments, take their part of the gradient, the rate and the powers of the betas, and update it; 2
/// count its steps. So all that an update takes is among them, and the probe of an assignment is what comes after it.
const OPERATIONS: usize = 39 + 37 + 9 + (4 * 36 + 2) + 5;

/// Three of them give nothing, and the batch is two tensors.
const OUTPUTS: usize = OPERATIONS - 3 + 1;

/// Sizes, ranges and what is added to a count are known when a step is compiled, so that nothing on their way can fail.
const KNOWN: usize = 16;

/// One in so many outputs has a probe at a time, so that most of a step is fused as it is without any.
const GROUPS: usize = 6;

/// A training step: it takes a batch from a queue, updates two dense layers by Adam with a rate that falls with the
/// global step, counts, and puts its loss into another queue.
struct Step {
    g: Graph,
    /// Puts a batch into the queue.
    put: Operation,
    loss: Tensor,
    train: Operation,
}

/// What a step is made of.
struct Inside {
    batches: Queue,
    done: Queue,
    /// The batch and what becomes of it, with a row for each example: x, labels, hidden, logits, losses.
    rows: [Tensor; 5],
}

impl Step {
    fn new() -> Self {
        Self::of(Some(8)).0
    }

    /// With batches of so many examples, or of a number that is not known before a run.
    fn of(n: Option<usize>) -> (Self, Inside) {
        let g = Graph::with_seed(11);
        let batches = g.fifo_queue("batches", 9, [(F32, dims![n, 6]), (I32, dims![n])]);
        let done = g.fifo_queue("done", 9, [(F32, dims![])]);
        let w1 = g.variable("w1", Init::glorot(1), F32, [6, 5]);
        let b1 = g.variable("b1", Init::Constant(0.1), F32, [5]);
        let w2 = g.variable("w2", Init::glorot(2), F32, [5, 4]);
        let b2 = g.variable("b2", Init::Zeros, F32, [4]);
        let steps = g.global_step();
        let batch = batches.dequeue();
        let (x, labels) = (batch[0].clone(), batch[1].clone());
        let hidden = (x.matmul(&w1) + &b1).relu().dropout(0.25, 3);
        let logits = hidden.matmul(&w2) + &b2;
        let losses = logits.cross_entropy(&labels);
        let loss = losses.mean(());
        let rate = exponential_decay(0.05, steps.value(), 10.0, 0.5, false);
        let update = Adam::new(rate).minimize(&loss);
        let count = steps.assign_add(1).operation();
        let train = g.group([&update, &count, &done.enqueue(&[&loss])]);
        let put = batches.enqueue(&[&g.constant(ramp(&[8, 6])), &g.constant(indices(&[8], 4))]);
        let rows = [x, labels, hidden, logits, losses];
        (Self { g, put, loss, train }, Inside { batches, done, rows })
    }

    /// A session with variables and three batches.
    fn session(&self, device: &TestDevice) -> Session {
        let session = device.session(&self.g);
        session.run(&[], self.g.initializers()).unwrap();
        (0..3).for_each(|_| session.run(&[], &self.put).unwrap());
        session
    }

    /// Gives the loss.
    fn run(
        &self,
        session: &Session,
        feeds: &[Feed<'_>],
        beside: &[Tensor],
    ) -> convoke::Result<f32> {
        // No run is to wait: what a failed run takes comes back.
        let options = RunOptions { fail_if_blocked: true, ..RunOptions::default() };
        let run = session.run_with(feeds, (&self.loss, &self.train, beside), options);
        run.and_then(|((loss, (), _), _)| loss.scalar::<f32>())
    }

    /// The error of a run that fails and changes nothing.
    #[track_caller]
    fn refused(&self, session: &Session, feeds: &[Feed<'_>]) -> Error {
        let before = session.state_digest().unwrap();
        let error = self.run(session, feeds, &[]).unwrap_err();
        assert_eq!(session.state_digest().unwrap(), before, "left a trace: {error}");
        error
    }

    /// The operations that it runs, in order, but for the handles of variables: these do nothing, and what reads and
    /// assigns the variables is among the others.
    fn operations(&self) -> Vec<Operation> {
        let graph = self.g.snapshot();
        let mut runs = vec![false; graph.nodes.len()];
        runs[self.train.id().0 as usize] = true;
        for id in (0..graph.nodes.len()).rev() {
            if runs[id] {
                let node = &graph.nodes[id];
                node.inputs.iter().for_each(|input| runs[input.node.0 as usize] = true);
                node.controls.iter().for_each(|control| runs[control.0 as usize] = true);
            }
        }
        let all = graph.nodes.iter().filter(|node| runs[node.id.0 as usize]);
        let all = all.filter(|node| !node.facts.first().is_some_and(Fact::is_variable));
        let all: Vec<_> = all.map(|node| self.g.operation(&node.name).unwrap()).collect();
        assert!(all.len() >= OPERATIONS, "{} operations", all.len());
        all
    }

    /// What its operations give.
    fn outputs(&self) -> Vec<Tensor> {
        let all: Vec<_> = self.operations().iter().flat_map(Operation::outputs).collect();
        assert!(all.len() >= OUTPUTS, "{} outputs", all.len());
        all
    }

    /// A probe of each output, and after each operation that gives nothing, with what it is put on.
    fn beside(&self, turn: &Turn, probe: Probing) -> Vec<(String, Tensor)> {
        let one = self.g.constant(1.0f32);
        let mut probes = Vec::new();
        for operation in self.operations() {
            let outputs = operation.outputs();
            for x in &outputs {
                let own = probes.len();
                probes.push((x.name(), probe(x, own, turn)));
            }
            if outputs.is_empty() {
                let own = probes.len();
                let after = self.g.after(&[&operation], || probe(&one, own, turn));
                probes.push((operation.name(), after));
            }
        }
        probes
    }

    /// The same step, where some outputs go through probes of these numbers: what takes an output, or runs after its
    /// operation, comes after the probe.
    fn through(&self, probed: &[(usize, Tensor)], turn: &Turn) -> Self {
        let mut parts = self.g.parts();
        let mut nodes: Vec<NodeParts> = Vec::new();
        let mut probes: HashMap<Output, NodeId> = HashMap::new();
        // For each node, where it is now, then its probes.
        let mut now: Vec<Vec<NodeId>> = Vec::new();
        for (id, mut node) in (0..).map(NodeId).zip(std::mem::take(&mut parts.nodes)) {
            let given = |input: &Output| match probes.get(input) {
                Some(&node) => Output { node, index: 0 },
                None => Output { node: now[input.node.0 as usize][0], index: input.index },
            };
            node.inputs = node.inputs.iter().map(given).collect();
            let before = node.controls.iter().flat_map(|id| now[id.0 as usize].clone());
            node.controls = before.collect();
            let (name, own) = (node.name.clone(), NodeId(nodes.len() as u32));
            nodes.push(node);
            now.push(vec![own]);
            for (number, x) in probed.iter().filter(|(_, x)| x.output().node == id) {
                let (output, probe) = (x.output(), NodeId(nodes.len() as u32));
                nodes.push(NodeParts {
                    name: format!("{name}/probe_{}", output.index).into(),
                    op: Arc::new(Probe { own: *number, turn: turn.clone() }),
                    inputs: vec![Output { node: own, index: output.index }],
                    controls: Vec::new(),
                    device: None,
                    colocated: Vec::new(),
                    body: BodyId::GRAPH,
                    container: None,
                });
                now[id.0 as usize].push(probe);
                probes.insert(output, probe);
            }
        }
        parts.nodes = nodes;
        for (_, outputs) in &mut parts.collections {
            outputs.iter_mut().for_each(|output| output.node = now[output.node.0 as usize][0]);
        }
        let g = Graph::from_parts(parts).unwrap();
        let [put, train] =
            [&self.put, &self.train].map(|operation| g.operation(&operation.name()).unwrap());
        let loss = g.tensor(&self.loss.name()).unwrap();
        Self { g, put, loss, train }
    }
}

/// The number of the probe that fails.
#[derive(Debug, Clone)]
struct Turn(Arc<AtomicUsize>);

impl Turn {
    /// Nobody's.
    fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(usize::MAX)))
    }

    fn set(&self, own: usize) {
        self.0.store(own, Ordering::Relaxed);
    }

    /// Fails if it is the turn of this one. Nothing else here fails with such an error.
    fn check(&self, own: usize) -> convoke::Result<()> {
        if self.0.load(Ordering::Relaxed) == own {
            return Err(Error::new(ErrorKind::DataLoss, format!("probe {own} fails")));
        }
        Ok(())
    }
}

/// Makes a probe of a tensor with this number.
type Probing = fn(&Tensor, usize, &Turn) -> Tensor;

/// One that is a kernel of the host, in the midst of a program.
fn kernel(x: &Tensor, own: usize, turn: &Turn) -> Tensor {
    x.apply(Probe { own, turn: turn.clone() }, &[x])
}

/// One that is a function of the host, between programs.
fn function(x: &Tensor, own: usize, turn: &Turn) -> Tensor {
    let (turn, gives) = (turn.clone(), [(x.dtype(), x.dims())]);
    let given = x.graph().host_function("probe", &[x], gives, move |inputs| {
        turn.check(own)?;
        Ok(inputs.to_vec())
    });
    given[0].clone()
}

/// Gives its input, of any dtype that the step has, on the host; fails there in its turn.
#[derive(Debug, Clone)]
struct Probe {
    own: usize,
    turn: Turn,
}

impl Op for Probe {
    fn name(&self) -> &str {
        "probe"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<Facts, OpError> {
        Ok([Fact::new(inputs[0].dtype, inputs[0].dims.clone())].into())
    }

    /// Nothing, so that the probe of a constant is no constant.
    fn eval(&self, _: &[HostTensor]) -> Result<Values, OpError> {
        Err(OpError::Invalid("a probe has no value outside of a run".into()))
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None]
    }

    fn class(&self) -> Class<'_> {
        Class::Custom(Arc::new(self.clone()))
    }

    fn encode(&self) -> Option<Attributes> {
        None
    }
}

impl CustomKernel for Probe {
    fn cpu(
        &self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
    ) -> convoke::Result<()> {
        self.turn.check(self.own)?;
        let (from, to) = (&inputs[0], &mut outputs[0]);
        match from.dtype() {
            Bool => copy::<bool>(from, to),
            I32 => copy::<i32>(from, to),
            I64 => copy::<i64>(from, to),
            F32 => copy::<f32>(from, to),
            other => Err(Error::internal(format!("the step has a tensor of {other}"))),
        }
    }

    fn wgsl(&self, _: &KernelShapes) -> Option<Wgsl> {
        None
    }

    fn flops(&self, _: &KernelShapes) -> u64 {
        1
    }
}

fn copy<T: Element>(from: &TensorView<'_>, to: &mut TensorViewMut<'_>) -> convoke::Result<()> {
    to.as_slice_mut::<T>()?.copy_from_slice(from.as_slice::<T>()?);
    Ok(())
}

/// Probes of a step.
struct Probes {
    turn: Turn,
    /// Their numbers, and what they are put on.
    own: Vec<(usize, String)>,
    /// Those that are no part of the step.
    beside: Vec<Tensor>,
}

/// The losses of two runs without probes.
fn losses(device: &TestDevice) -> [f32; 2] {
    let step = Step::new();
    let session = step.session(device);
    [(); 2].map(|()| step.run(&session, &[], &[]).unwrap())
}

/// Lets each probe of a step fail between two runs that succeed, and have the losses that they have without probes.
fn fail_each(device: &TestDevice, step: &Step, probes: &Probes, losses: [f32; 2]) {
    let session = step.session(device);
    let run = || step.run(&session, &[], &probes.beside);
    let succeeds = |expected: f32| {
        let loss = run().unwrap();
        let is_near = (loss - expected).abs() <= 1e-3 * expected.abs();
        assert!(is_near, "{}, {:?}: {loss}, {expected}", device.name, probes.own);
    };
    succeeds(losses[0]);
    let before = session.state_digest().unwrap();
    for (own, name) in &probes.own {
        let what = format!("{}, probe {own}, of {name}", device.name);
        probes.turn.set(*own);
        let error = run().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataLoss, "{what}: {error}");
        assert_eq!(error.message(), format!("probe {own} fails"), "{what}");
        assert_eq!(session.state_digest().unwrap(), before, "{what} left a trace");
    }
    probes.turn.set(usize::MAX);
    succeeds(losses[1]);
    assert_ne!(session.state_digest().unwrap(), before, "{}: a step changes it", device.name);
}

/// Runs the step together with probes that take what each of its operations gives.
fn fail_beside_each(probe: Probing) {
    for device in devices() {
        let (step, turn, losses) = (Step::new(), Turn::new(), losses(device));
        let all = step.beside(&turn, probe);
        assert!(all.len() > OPERATIONS, "{} probes", all.len());
        for first in 0..GROUPS {
            let some = || all.iter().enumerate().skip(first).step_by(GROUPS);
            let own = some().map(|(own, (name, _))| (own, name.clone())).collect();
            let beside = some().map(|(_, (_, probe))| probe.clone()).collect();
            let probes = Probes { turn: turn.clone(), own, beside };
            fail_each(device, &step, &probes, losses);
        }
    }
}

/// Kernels that take what an operation gives run in the program of the step, after it: what they fail is all but done.
#[test]
fn a_kernel_beside_each_operation_of_a_training_step() {
    fail_beside_each(kernel);
}

/// Functions run before the program that does what they do not need, so that they fail a step in its midst.
#[test]
fn a_function_beside_each_operation_of_a_training_step() {
    fail_beside_each(function);
}

/// What each operation gives fails on its way, so that nothing that takes it or runs after it has run.
#[test]
fn each_operation_of_a_training_step_before_what_follows() {
    for device in devices() {
        let (step, turn, losses) = (Step::new(), Turn::new(), losses(device));
        let outputs = step.outputs().into_iter().enumerate();
        let all: Vec<_> = outputs.filter(|(_, x)| x.fact().integers().is_none()).collect();
        assert!(all.len() >= OUTPUTS - KNOWN, "{} probes", all.len());
        for first in 0..GROUPS {
            let some: Vec<_> = all.iter().skip(first).step_by(GROUPS).cloned().collect();
            let own = some.iter().map(|(own, x)| (*own, x.name())).collect();
            let probes = Probes { turn: turn.clone(), own, beside: Vec::new() };
            fail_each(device, &step.through(&some, &turn), &probes, losses);
        }
    }
}

/// Every tensor can be fed: with an axis too many, each is refused.
#[test]
fn a_wrong_shape_of_each_tensor_of_a_training_step() {
    for device in devices() {
        let step = Step::new();
        let session = step.session(device);
        step.run(&session, &[], &[]).unwrap();
        for x in step.outputs() {
            let mut sizes = x.dims().shape().unwrap().dims().to_vec();
            sizes.push(3);
            let wrong = HostTensor::zeros(x.dtype(), Shape::new(&sizes).unwrap()).unwrap();
            let error = step.refused(&session, &[x.feed(wrong)]);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}: {error}", device.name);
            assert_eq!(error.node(), Some(&*x.name()), "{}: {error}", device.name);
        }
        step.run(&session, &[], &[]).unwrap();
    }
}

/// Where the number of examples is not known, that of an inner tensor is seen to be another than the batch's once that
/// has been taken.
#[test]
fn another_number_of_rows_inside_of_a_training_step() {
    let sizes: [&[usize]; 5] = [&[3, 6], &[3], &[3, 5], &[3, 4], &[3]];
    for device in devices() {
        let (step, inside) = Step::of(None);
        let session = step.session(device);
        step.run(&session, &[], &[]).unwrap();
        for (x, sizes) in inside.rows.iter().zip(sizes) {
            let wrong = HostTensor::zeros(x.dtype(), Shape::new(sizes).unwrap()).unwrap();
            let error = step.refused(&session, &[x.feed(wrong)]);
            let kind = error.kind();
            assert_eq!(kind, ErrorKind::InvalidArgument, "{}, {x:?}: {error}", device.name);
        }
        step.run(&session, &[], &[]).unwrap();
    }
}

/// One after the other, each variable is the only one without elements: weights, moments and counts.
#[test]
fn each_variable_that_a_training_step_lacks() {
    let step = Step::new();
    let variables = step.g.global_variables();
    // Of each layer two, two moments of each, Adam's count and the global step.
    assert_eq!(variables.len(), 4 + 8 + 2);
    for device in devices() {
        for lacks in &variables {
            let others = variables.iter().filter(|other| other.name() != lacks.name());
            let others: Vec<_> = others.map(Variable::initializer).collect();
            let session = device.session(&step.g);
            session.run(&[], (&step.put, others)).unwrap();
            let error = step.refused(&session, &[]);
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{}: {error}", device.name);
            assert_eq!(error.node(), Some(&*lacks.name()), "{}: {error}", device.name);
            session.run(&[], lacks.initializer()).unwrap();
            step.run(&session, &[], &[]).unwrap();
        }
    }
}

/// A queue without a batch, a batch with a label out of range, a queue without room for the loss, and closed ones.
#[test]
fn queues_and_labels_that_fail_a_training_step() {
    for device in devices() {
        let (step, Inside { batches, done, .. }) = Step::of(Some(8));
        let labels = step.g.constant(vec![0i32, 1, 2, 3, 0, 1, 2, 4]);
        let put_wrong = batches.enqueue(&[&step.g.constant(ramp(&[8, 6])), &labels]);
        let put_loss = done.enqueue(&[&step.g.constant(0.0f32)]);
        let [take, take_loss] = [&batches, &done].map(|queue| queue.dequeue()[0].operation());
        let [close, close_losses] = [&batches, &done].map(Queue::close);
        let session = step.session(device);
        let succeeds = |runs: &[&Operation]| {
            runs.iter().for_each(|run| session.run(&[], *run).unwrap());
        };
        let fails = |expected: ErrorKind| {
            for _ in 0..2 {
                let error = step.refused(&session, &[]);
                assert_eq!(error.kind(), expected, "{}: {error}", device.name);
            }
        };
        succeeds(&[&step.train; 3]);
        fails(ErrorKind::FailedPrecondition);
        succeeds(&[&put_wrong]);
        fails(ErrorKind::InvalidArgument);
        succeeds(&[&take, &step.put]);
        // There are three losses, and room for six more.
        succeeds(&[&put_loss; 6]);
        fails(ErrorKind::FailedPrecondition);
        succeeds(&[&take_loss, &step.train, &step.put, &close]);
        fails(ErrorKind::FailedPrecondition);
        succeeds(&[&take_loss, &step.train, &take_loss]);
        fails(ErrorKind::OutOfRange);
        // With batches, and a queue of losses that is closed.
        let session = step.session(device);
        session.run(&[], &close_losses).unwrap();
        let error = step.refused(&session, &[]);
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{}: {error}", device.name);
    }
}
