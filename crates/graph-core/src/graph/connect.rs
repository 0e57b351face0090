//! Snapshots in which the value of one tensor stands for another.
//!
//! Source: TensorFlow's `TensorConnection` of `core/protobuf/config.proto`, which puts an identity between the two.

use std::panic::Location;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::{SmallVec, smallvec};

use super::{BodyId, GraphSnapshot, Node, NodeId, NodeList, Output};
use crate::op::{arity, one, value};
use crate::{
    Attributes, Backward, Class, DType, Dims, Error, ErrorKind, Fact, Host, HostTensor, Op,
    OpError, Result, Tensor, View,
};

/// A tensor whose value another takes.
#[derive(Debug, Clone, Copy)]
struct Connected {
    from: Output,
    /// What looks at the shape, where that is not known to fit.
    check: Option<NodeId>,
}

impl GraphSnapshot {
    /// This graph where whoever takes the second tensor of a pair is given the first, and whoever runs after a
    /// placeholder that is connected runs after what stands for it; and for each pair, the output that is given. Inputs
    /// and controls may have greater ids then.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for other dtypes, shapes that cannot be equal, handles of variables, tensors of
    /// branches and loops, a tensor that is given twice or among `feeds`, and where the first needs the second.
    pub fn connect(
        &self,
        pairs: &[(Output, Output)],
        feeds: &[Output],
    ) -> Result<(Self, Vec<Output>)> {
        let mut connections: FxHashMap<Output, Connected> = FxHashMap::default();
        let mut next = self.nodes.len();
        for &(from, to) in pairs {
            let fits = self.check_pair(from, to)?;
            let id = u32::try_from(next).map_err(|_| Error::invalid("the graph is too large"))?;
            let check = (!fits).then_some(NodeId(id));
            next += usize::from(!fits);
            let is_fed = feeds.contains(&to);
            if connections.insert(to, Connected { from, check }).is_some() || is_fed {
                let message =
                    "the tensor is fed more than once; feed it or connect it to one other";
                return Err(Error::invalid(message).with_node(self.name_of(to)));
            }
        }
        let given = |output: Output| self.given(&connections, output);
        let mut nodes = NodeList::default();
        for node in self.nodes.iter() {
            // What bodies capture, they are given by the node that runs them.
            let takes = |input: &Output| connections.contains_key(input);
            let follows = |control: &NodeId| self.is_replaced(*control, takes);
            let changes = node.inputs.iter().any(takes) || node.controls.iter().any(follows);
            if node.body != BodyId::GRAPH || !changes {
                nodes.push(node.clone());
                continue;
            }
            let inputs = node.inputs.iter().map(|&input| given(input)).collect::<Result<_>>()?;
            let control = |&control: &NodeId| match follows(&control) {
                true => Ok(given(Output { node: control, index: 0 })?.node),
                false => Ok(control),
            };
            let controls = node.controls.iter().map(control).collect::<Result<_>>()?;
            let body_controls = node.body_controls.iter().filter(|control| !follows(control));
            let body_controls = body_controls.copied().collect();
            nodes.push(Arc::new(Node { inputs, controls, body_controls, ..Node::clone(node) }));
        }
        for (_, to) in pairs {
            let Connected { from, check: Some(id) } = connections[to] else { continue };
            nodes.push(Arc::new(self.check_of(id, given(from)?, *to)));
        }
        let connected = Self { graph_id: self.graph_id, nodes, is_connected: true };
        self.check_cycles(&connected, &connections, pairs, feeds)?;
        let stands = pairs.iter().map(|&(_, to)| given(to)).collect::<Result<_>>()?;
        Ok((connected, stands))
    }

    /// The node that runs in the place of one where `pairs` are connected, for each of which one of `stands` is given: a
    /// placeholder that is connected is not there itself.
    pub fn stand_in(&self, node: NodeId, pairs: &[(Output, Output)], stands: &[Output]) -> NodeId {
        let is_it = |(_, to): &(Output, Output)| self.is_replaced(node, |own| own == to);
        let at = pairs.iter().position(is_it);
        at.and_then(|at| stands.get(at)).map_or(node, |stand| stand.node)
    }

    /// # Errors
    /// The first tensor of a pair needs the second.
    fn check_cycles(
        &self,
        connected: &Self,
        connections: &FxHashMap<Output, Connected>,
        pairs: &[(Output, Output)],
        feeds: &[Output],
    ) -> Result<()> {
        for &(from, to) in pairs {
            let mut stack = vec![self.given(connections, from)?.node];
            let mut seen: FxHashSet<NodeId> = FxHashSet::default();
            while let Some(id) = stack.pop() {
                if !seen.insert(id) {
                    continue;
                }
                let is_old = (id.0 as usize) < self.nodes.len();
                let takes = is_old && {
                    let old = self.node(id);
                    let follows = |control: &NodeId| self.is_replaced(*control, |own| *own == to);
                    old.inputs.contains(&to) || old.controls.iter().any(follows)
                };
                if takes || connections[&to].check == Some(id) {
                    return Err(self.cycle(from, to));
                }
                let node = connected.node(id);
                let inputs = node.inputs.iter().filter(|input| !feeds.contains(input));
                stack.extend(inputs.map(|input| input.node).chain(node.controls.iter().copied()));
            }
        }
        Ok(())
    }

    /// Whether a node is a placeholder without a default, and is connected.
    fn is_replaced(&self, node: NodeId, is_connected: impl Fn(&Output) -> bool) -> bool {
        let own = self.node(node);
        let is_placeholder = matches!(own.op.class(), Class::Host(Host::Placeholder));
        is_placeholder && own.inputs.is_empty() && is_connected(&Output { node, index: 0 })
    }

    /// What stands for an output.
    fn given(&self, connections: &FxHashMap<Output, Connected>, output: Output) -> Result<Output> {
        let mut now = output;
        for _ in 0..=connections.len() {
            match connections.get(&now) {
                None => return Ok(now),
                Some(Connected { check: Some(id), .. }) => {
                    return Ok(Output { node: *id, index: 0 });
                }
                Some(Connected { from, check: None }) => now = *from,
            }
        }
        Err(self.cycle(now, output))
    }

    /// Whether the shape is known to fit.
    fn check_pair(&self, from: Output, to: Output) -> Result<bool> {
        let refused = |message: String| Err(Error::invalid(message).with_node(self.name_of(to)));
        for output in [from, to] {
            if self.node(output.node).body != BodyId::GRAPH {
                let message = "what is built inside of a branch or loop cannot be connected; return it from the closure";
                return Err(Error::invalid(message).with_node(self.name_of(output)));
            }
        }
        let [source, target] = [from, to].map(|output| self.fact(output));
        let name = self.name_of(from);
        if source.is_variable() || target.is_variable() {
            return refused("a variable's handle cannot be connected; connect its value".into());
        }
        if source.dtype != target.dtype {
            let (found, expected) = (source.dtype, target.dtype);
            return refused(format!("expected a tensor of {expected}, and {name} is {found}"));
        }
        let (found, expected) = (&source.dims, &target.dims);
        if found.unify(expected).is_err() {
            return refused(format!("expected a shape like {expected}, and {name} is {found}"));
        }
        let fits = match (found.dims(), expected.dims()) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(found), Some(expected)) => found
                .iter()
                .zip(expected)
                .all(|(f, e)| e.known().is_none_or(|n| f.known() == Some(n))),
        };
        if !fits && source.dtype == DType::String {
            let message = format!(
                "unsupported: to connect strings of which the shape is not known to fit: {found} to {expected}"
            );
            let error = Error::new(ErrorKind::Unimplemented, message);
            return Err(error.with_node(self.name_of(to)));
        }
        Ok(fits)
    }

    fn check_of(&self, id: NodeId, from: Output, to: Output) -> Node {
        let Fact { dtype, dims, .. } = self.fact(to).clone();
        let location: &'static Location<'static> = self.node(to.node).location;
        Node {
            id,
            name: format!("connection/{}", self.name_of(to)).into(),
            op: Arc::new(Connection { dtype, dims: dims.clone() }),
            inputs: smallvec![from],
            controls: SmallVec::new(),
            body_controls: Box::default(),
            facts: smallvec![Fact::new(dtype, dims)],
            device: None,
            colocated: SmallVec::new(),
            body: BodyId::GRAPH,
            container: None,
            location,
            invalid: None,
        }
    }

    fn name_of(&self, output: Output) -> String {
        format!("{}:{}", self.node(output.node).name, output.index)
    }

    fn cycle(&self, from: Output, to: Output) -> Error {
        let (from, to) = (self.name_of(from), self.name_of(to));
        let message = format!("connecting {from} to {to} would create a cycle: {from} needs {to}");
        Error::invalid(message).with_node(to)
    }
}

/// What passes a tensor on that is to have such a shape.
#[derive(Debug, Clone)]
struct Connection {
    dtype: DType,
    dims: Dims,
}

impl Op for Connection {
    fn name(&self) -> &str {
        "connection"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x] = arity(inputs)?;
        if x.dtype != self.dtype || x.shape().is_some_and(|shape| !self.dims.admits(&shape)) {
            let message = format!("expected a tensor of {}{}, got {x}", self.dtype, self.dims);
            return Err(OpError::Invalid(message));
        }
        one(x.clone())
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let [x] = arity(inputs)?;
        value(Ok::<_, OpError>(x.clone()))
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None]
    }

    fn class(&self) -> Class<'_> {
        Class::View(View::Identity)
    }

    fn encode(&self) -> Option<Attributes> {
        None
    }
}
