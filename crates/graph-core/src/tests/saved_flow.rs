//! Branches and loops of graphs that are put together again.

use crate::ops::decode;
use crate::{
    Attributes, BodyId, Class, DType, Error, ErrorKind, Flow, Graph, GraphParts, Init, LoopOptions,
    NodeId, Output, Result, Tensor, Variable,
};

/// Branches and loops of all kinds, with gradients of gradients.
pub(super) fn flows(g: &Graph) {
    let p = g.placeholder("p", DType::Bool, crate::dims![]);
    let x = g.placeholder("xs", DType::F32, crate::dims![None, 3]);
    let w = g.variable("weights", Init::Zeros, DType::F32, [3]);
    let chosen = g.cond(&p, || &x * &w, || x.random_like());
    let loss = chosen.sum(()) + nested(g, &x, &w);
    let dx = loss.gradients(&[&x, w.value()]);
    let sum = dx.into_iter().flatten().map(|dx| dx.square().sum(())).reduce(|a, b| a + b);
    sum.unwrap().gradients(&[&x, w.value()]);
    let index = g.placeholder("index", DType::I32, crate::dims![]);
    let same = || x.clone();
    g.switch_case(&index, vec![Box::new(same), Box::new(|| &x + 1.0)], || &x * 2.0);
    let limit = g.placeholder("limit", DType::I32, crate::dims![]);
    let count = g.untrained_variable("counted", Init::Zeros, DType::F32, []);
    let start = (g.constant(0i32), g.fill(&[2], 1.0f32));
    let options = LoopOptions { max_iterations: Some(9), ..LoopOptions::default() };
    g.while_loop_with(
        start,
        |(i, _)| i.less(&limit),
        |(i, y)| {
            let check = g.assert(&y.sum(()).less(1e6), "it stays small", &[y]);
            let all = count.assign_add(1.0);
            (i + 1, g.after(&[&check, &all.operation()], || y * 1.5))
        },
        options,
    );
    let one = g.constant(1i32);
    g.while_loop(one, |i| i.less(40), |i| i * 2);
}

/// A scan in which a loop of known length has a branch in which something is drawn.
fn nested(g: &Graph, x: &Tensor, w: &Variable) -> Tensor {
    let (last, all) = g.scan(g.fill(&[3], 0.5f32), x.clone(), |state, slice| {
        let start = (g.constant(0i32), state * slice);
        let (_, y) = g.while_loop(
            start,
            |(i, _)| i.less(2),
            |(i, y)| {
                let is_large = y.sum(()).greater(1.0);
                let y = g.cond(&is_large, || y * w, || y + y.random_like());
                (i + 1, y * slice)
            },
        );
        (&y + w.value(), y.square())
    });
    last.sum(()) + all.sum(())
}

impl Tensor {
    fn random_like(&self) -> Self {
        let graph = self.graph();
        graph.random_uniform(&[3], DType::F32, 4) + self * 0.0
    }
}

/// The parts with their operations as files have them.
fn from_file(mut parts: GraphParts) -> GraphParts {
    for node in &mut parts.nodes {
        node.op = decode(&node.op.encode().unwrap()).unwrap().unwrap();
    }
    parts
}

#[test]
fn flows_are_put_together_as_they_were() {
    let g = Graph::with_seed(3);
    flows(&g);
    assert!(g.check().is_empty(), "{:?}", g.check());
    let n_flows = g.snapshot().nodes.iter().filter(|node| is_flow(node)).count();
    assert!(n_flows > 15, "{n_flows}");
    let mut n_moved = 0;
    for parts in [g.parts(), from_file(g.parts())] {
        let again = Graph::from_parts(parts).unwrap();
        assert!(again.check().is_empty(), "{:?}", again.check());
        assert_eq!(again.to_string(), g.to_string());
        assert_eq!(again.parts().bodies, g.parts().bodies);
        for (a, b) in again.snapshot().nodes.iter().zip(g.snapshot().nodes.iter()) {
            // Facts, the number of iterations, and whether they are written out stand in that.
            assert_eq!(format!("{:?}", a.op), format!("{:?}", b.op), "{}", b.name);
            assert_eq!((&a.facts, a.body), (&b.facts, b.body), "{}", b.name);
            assert_eq!((&a.inputs, &a.controls), (&b.inputs, &b.controls), "{}", b.name);
            let (Class::Flow(a), Class::Flow(b)) = (a.op.class(), b.op.class()) else { continue };
            assert_eq!(a.captures(), b.captures());
            for (a, b) in a.bodies().iter().zip(b.bodies()) {
                assert_eq!((&a.params, &a.results), (&b.params, &b.results));
                assert_eq!((&a.captures, &a.before, &a.facts), (&b.captures, &b.before, &b.facts));
                let ids = |body: &crate::Body| body.nodes.iter().map(|n| n.id).collect::<Vec<_>>();
                assert_eq!(ids(a), ids(b));
            }
        }
        let nodes = again.snapshot().nodes;
        n_moved += nodes.iter().filter(|node| is_moved(node)).count();
        // What is built on it next is what would have been built.
        let grow = |g: &Graph| {
            let x = g.tensor("xs").unwrap();
            g.scan(g.constant(0.0f32), x, |s, x| (s + x.sum(()), ()));
            g.to_string()
        };
        let whole = Graph::from_parts(g.parts()).unwrap();
        assert_eq!(grow(&again), grow(&whole));
    }
    assert!(n_moved > 0, "some branch or loop was built again with other inputs");
}

fn is_flow(node: &crate::Node) -> bool {
    matches!(node.op.class(), Class::Flow(_))
}

/// Whether a branch or loop is given something else for what its bodies capture.
fn is_moved(node: &crate::Node) -> bool {
    match node.op.class() {
        Class::Flow(flow) => {
            let captures = flow.captures();
            let last = node.inputs.iter().rev().zip(captures.iter().rev());
            !captures.is_empty() && last.clone().any(|(input, key)| input != key)
        }
        _ => false,
    }
}

/// A loop with a branch in it: `x`, the loop's and the branch's nodes by name.
fn small() -> (Graph, GraphParts) {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, [2]);
    let start = (g.constant(0i32), x.clone());
    g.while_loop(
        start,
        |(i, _)| i.less(3),
        |(i, y)| (i + 1, g.cond(&y.sum(()).less(5.0), || y * 2.0, || y + &x)),
    );
    let parts = from_file(g.parts());
    (g, parts)
}

/// Puts parts together of which `change` has changed the attributes of the loop or branch `name`.
fn changed(
    g: &Graph,
    parts: &GraphParts,
    name: &str,
    change: impl Fn(Attributes) -> Attributes,
) -> Result<Graph> {
    let mut parts = parts.clone();
    let at = g.operation(name)?.id().0 as usize;
    let attributes = change(parts.nodes[at].op.encode().unwrap());
    parts.nodes[at].op = decode(&attributes)?.unwrap();
    Graph::from_parts(parts)
}

#[track_caller]
fn assert_refused(found: Result<Graph>, text: &str) {
    let error: Error = found.err().unwrap_or_else(|| panic!("expected {text:?}, got a graph"));
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.to_string().contains(text), "{error}");
}

#[test]
fn bodies_that_no_program_builds_are_refused() {
    let (g, parts) = small();
    Graph::from_parts(parts.clone()).unwrap();
    let id = |name: &str| g.operation(name).unwrap().id().0;
    let (own, cond, x) = (id("while"), id("cond"), id("x"));
    let of = |change: &dyn Fn(Attributes) -> Attributes| changed(&g, &parts, "while", change);
    let ints = |a: &Attributes, name: &str| a.ints::<u32>(name).unwrap();
    let with = |name: &'static str, change: &dyn Fn(&mut Vec<u32>)| {
        of(&|a| {
            let mut values = ints(&a, name);
            change(&mut values);
            a.with(name, values)
        })
    };
    // Ids.
    assert_refused(of(&|a| a.with("body", 0u32)), "body 0 is the graph itself");
    assert_refused(of(&|a| a.with("body", 4u32)), "there are 3 bodies, and none 4");
    assert_refused(of(&|a| a.with("body", 2u32)), "is no parameter of body 2");
    // Parameters.
    assert_refused(with("params", &|p| p[0] = x), "x is no parameter of body 1");
    assert_refused(with("params", &|p| p[0] = cond), "cond is no parameter");
    assert_refused(with("params", &|p| p[0] = p[1]), "is no parameter");
    assert_refused(with("params", &|p| p[0] = own), "does not come before");
    assert_refused(with("params", &|p| p[0] = u32::MAX), "does not come before");
    assert_refused(with("params", &|p| p.truncate(1)), "expected 2 parameters of a body, got 1");
    let fewer = of(&|a| {
        let params = ints(&a, "params");
        a.with("params", [params[0]]).with("n_carried", 1u32)
    });
    assert_refused(fewer, "is no parameter of the branch or loop");
    // Results.
    assert_refused(with("results", &|r| r.truncate(4)), "expected at least 3 results");
    assert_refused(with("results", &|r| r.truncate(5)), "are pairs");
    assert_refused(with("results", &|r| r[4] = own), "does not come before");
    assert_refused(with("results", &|r| r[5] = 7), "output 7 of node");
    let inner = g.tensor("mul").unwrap().output().node.0;
    assert_refused(with("results", &|r| r[4] = inner), "mul has no value in body 1");
    assert_refused(with("results", &|r| r.swap(0, 2)), "");
    // Captures.
    assert_refused(with("captures", &|c| c.extend([x, 0])), "expected 5 inputs, got 4");
    // Numbers.
    for name in ["n_carried", "n_scanned", "n_collected"] {
        for n in [9, u64::MAX] {
            assert!(of(&|a| a.with(name, n)).is_err(), "{name} of {n}");
        }
    }
    assert_refused(of(&|a| a.with("trips", 4u32).with("size", crate::dims![4])), "3 iterations");
    assert_refused(of(&|a| a.with("size", crate::dims![4])), "stacks of 4 slices");
    assert_refused(of(&|a| a.with("size", crate::dims![None])), "stacks of ? slices");
    assert!(of(&|a| a.with("has_count", true)).is_err());
    assert!(of(&|a| a.with("has_pred", false)).is_err());
    // The branch.
    let of = |change: &dyn Fn(Attributes) -> Attributes| changed(&g, &parts, "cond", change);
    assert_refused(of(&|a| a.with("bodies", [2u32])), "do not belong together");
    assert_refused(of(&|a| a.with("counts", [1u32, 0]).with("results", [inner, 0])), "1 results");
    assert_refused(of(&|a| a.with("counts", [u64::MAX, 3])), "do not belong together");
    assert_refused(of(&|a| a.with("bodies", [2u32, 1])), "it lies in body 1, which it would run");
    let other = of(&|a| {
        let bodies = ints(&a, "bodies");
        a.with("bodies", [bodies[1], bodies[0]])
    });
    assert_refused(other, "has no value in body");
    assert_refused(of(&|a| a.with("n_results", 2u32)), "expected 2 results");
    // It is nothing by itself.
    for name in ["while", "cond"] {
        let op = parts.nodes[id(name) as usize].op.clone();
        assert!(op.infer(&[]).is_err() && op.eval(&[]).is_err());
    }
}

#[test]
fn nodes_that_lie_elsewhere_are_refused() {
    let (g, parts) = small();
    let id = |name: &str| g.operation(name).unwrap().id();
    let refused = |change: &dyn Fn(&mut GraphParts), text: &str| {
        let mut parts = parts.clone();
        change(&mut parts);
        assert_refused(Graph::from_parts(parts), text);
    };
    let at = |name: &str| id(name).0 as usize;
    refused(&|p| p.bodies[0] = BodyId(1), "body 1 does not come before body 1");
    refused(&|p| p.bodies[1] = BodyId(9), "body 9 does not come before body 2");
    refused(&|p| p.bodies[1] = BodyId(0), "has no value outside of it");
    refused(&|p| p.bodies.truncate(1), "there are 1 bodies");
    refused(&|p| p.bodies = (0..40).map(BodyId).collect(), "body 33 lies 33 deep; the limit is 32");
    refused(&|p| p.nodes[at("cond")].body = BodyId(u32::MAX), "none 4294967295");
    refused(&|p| p.nodes[at("cond")].body = BodyId(0), "has no value outside of it");
    refused(&|p| p.nodes[at("cond")].body = BodyId(2), "it lies in body 2, which it would run");
    refused(&|p| p.nodes[at("mul")].body = BodyId(1), "");
    let control = |p: &mut GraphParts| p.nodes[at("while")].controls.push(id("mul"));
    refused(&control, "mul does not run where it is a control");
    refused(&|p| p.nodes[at("while")].inputs.truncate(2), "expected 4 inputs, got 2");
    let bool = |p: &mut GraphParts| {
        let [pred, ..] = p.nodes[at("while")].inputs[..] else { unreachable!() };
        *p.nodes[at("while")].inputs.last_mut().unwrap() = pred;
    };
    refused(&bool, "while: ");
    let far = Output { node: NodeId(u32::MAX), index: 0 };
    refused(&|p| p.nodes[at("while")].inputs[0] = far, "does not come before");
    refused(&|p| p.n_symbols = u32::MAX, "too many");
}

#[test]
fn what_bodies_capture_is_found_anew() {
    // What a file says that a body captures only says which input stands for what.
    let (g, parts) = small();
    let again = changed(&g, &parts, "while", |a| a.with("captures", Vec::<u32>::new()));
    assert_refused(again, "expected 3 inputs, got 4");
    let mut less = parts.clone();
    let at = g.operation("while").unwrap().id().0 as usize;
    less.nodes[at].inputs.pop();
    let attributes = less.nodes[at].op.encode().unwrap().with("captures", Vec::<u32>::new());
    less.nodes[at].op = decode(&attributes).unwrap().unwrap();
    let again = Graph::from_parts(less).unwrap();
    assert_eq!(again.to_string(), g.to_string());
}

#[test]
fn a_loop_that_says_what_nothing_shows_is_not_written_out() {
    let g = Graph::new();
    let n = g.placeholder("n", DType::I32, crate::dims![]);
    g.while_loop(g.constant(0i32), |i| i.less(&n), |i| i + 1);
    let parts = g.parts();
    let again =
        changed(&g, &parts, "while", |a| a.with("trips", 3u32).with("size", crate::dims![3]));
    let node = again.unwrap().operation("while").unwrap().node();
    let Class::Flow(Flow::Loop(op)) = node.op.class() else { panic!("{node:?}") };
    assert_eq!((op.trips, op.unrolled), (Some(3), false));
    assert!(op.check_trips(3).is_ok() && op.check_trips(4).is_err());
}

/// Branches that run in each other, each `n` times in the next, though their bodies lie in the graph itself.
fn tower(height: usize, n: usize) -> Result<Graph> {
    let g = Graph::new();
    let p = g.placeholder("p", DType::Bool, crate::dims![]);
    let x = g.placeholder("x", DType::F32, crate::dims![]);
    let some = |x: &Tensor| vec![x.clone(); n];
    for _ in 0..height * n {
        g.cond(&p, || some(&(&x * 2.0)), || some(&x));
    }
    let mut parts = from_file(g.parts());
    let is_cond = |at: &usize| parts.nodes[*at].op.name() == "cond";
    let conds: Vec<usize> = (0..parts.nodes.len()).filter(is_cond).collect();
    let mut before: &[usize] = &[];
    for floor in conds.chunks(n) {
        let attributes = parts.nodes[floor[0]].op.encode().unwrap();
        let bodies: Vec<u32> = attributes.ints("bodies")?;
        // Its first body gives what those of the floor before give.
        let mut results: Vec<u32> = attributes.ints("results")?;
        for (result, &at) in results.chunks_mut(2).zip(before) {
            result.copy_from_slice(&[at as u32, 0]);
            parts.nodes[at].body = BodyId(bodies[0]);
        }
        let op = decode(&attributes.with("results", results))?.unwrap();
        floor.iter().for_each(|&at| parts.nodes[at].op = op.clone());
        before = floor;
    }
    Graph::from_parts(parts)
}

#[test]
fn bodies_that_run_too_deep_or_too_often_are_refused() {
    tower(60, 1).unwrap();
    assert_refused(tower(70, 1), "run 65 deep");
    tower(10, 2).unwrap();
    assert_refused(tower(40, 2), "have more than 16777216 nodes");
}
