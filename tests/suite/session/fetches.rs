//! What comes back, and what is refused.

use std::collections::BTreeMap;

use convoke::prelude::*;

fn session(g: &Graph) -> Session {
    Session::new(g, &Devices::cpu()).unwrap()
}

#[derive(Fetch)]
struct Step<T> {
    loss: T,
    all: Vec<T>,
}

#[test]
fn nested_fetches_give_the_same_structure() {
    let g = Graph::new();
    let (a, b) = (g.constant(1.0f32), g.constant([2.0f32, 3.0]));
    let session = session(&g);
    let (x, [y, z]) = session.run(&[], (&a, [&b, &a])).unwrap();
    assert_eq!((x.scalar::<f32>().unwrap(), z.scalar::<f32>().unwrap()), (1.0, 1.0));
    assert_eq!(y.to_vec::<f32>().unwrap(), [2.0, 3.0]);
    let map = BTreeMap::from([("a", a.clone()), ("b", b.clone())]);
    assert_eq!(session.run(&[], &map).unwrap()["b"].len(), 2);
    assert!(session.run(&[], None::<Tensor>).unwrap().is_none());
    assert_eq!(session.run(&[], vec![a.clone(); 3]).unwrap().len(), 3);
    let step = Step { loss: a.clone(), all: vec![a, b] };
    let step: Step<HostTensor> = session.run(&[], &step).unwrap();
    assert_eq!((step.loss.scalar::<f32>().unwrap(), step.all.len()), (1.0, 2));
    session.run(&[], ()).unwrap();
}

#[test]
fn a_fed_tensor_that_is_fetched_is_the_feed() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let y = &x + 1.0;
    let session = session(&g);
    let (x2, y2) = session.run(&[x.feed([1.0f32])], (&x, &y)).unwrap();
    assert_eq!((x2.to_vec::<f32>().unwrap(), y2.to_vec::<f32>().unwrap()), (vec![1.0], vec![2.0]));
    // Any tensor can be fed, not only placeholders.
    let y3 = session.run(&[y.feed([7.0f32])], &(&y * 2.0)).unwrap();
    assert_eq!(y3.to_vec::<f32>().unwrap(), [14.0]);
}

#[test]
fn only_what_is_needed_runs() {
    let g = Graph::new();
    let unfed = g.placeholder("unfed", F32, dims![2]);
    let _unused = unfed.relu();
    let y = g.constant(2.0f32) * 3.0;
    assert_eq!(session(&g).run(&[], &y).unwrap().scalar::<f32>().unwrap(), 6.0);
}

#[test]
fn nodes_added_after_a_run_are_seen() {
    let g = Graph::new();
    let a = g.constant(2.0f32);
    let session = session(&g);
    session.run(&[], &a).unwrap();
    let b = &a + 5.0;
    assert_eq!(session.run(&[], &b).unwrap().scalar::<f32>().unwrap(), 7.0);
    g.finalize();
    let late = &b + 1.0;
    let error = session.run(&[], &late).unwrap_err();
    assert!(error.message().contains("finalized"), "{error}");
}

#[test]
fn names_scopes_and_look_up() {
    let g = Graph::new();
    let a = g.scope("layer", || g.constant(1.0f32).named("out"));
    let b = g.scope("layer", || g.constant(2.0f32).named("out"));
    assert_eq!((a.name(), b.name()), ("layer/out:0".into(), "layer_1/out:0".into()));
    assert!(g.tensor("layer/out").unwrap().is(&a));
    assert_eq!(g.tensor("nothing").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(g.tensor("layer/out:1").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_refused_operation_names_the_callers_line() {
    let g = Graph::new();
    let (a, b) = (g.constant([1.0f32, 2.0]), g.constant([1.0f32, 2.0, 3.0]));
    let line = line!() + 1;
    let y = (a + b).softmax(0).relu();
    let error = session(&g).run(&[], &y).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(error.location().unwrap().line(), line);
    assert!(error.to_string().contains("shapes [2] and [3] do not broadcast together"), "{error}");
}

#[test]
fn a_closed_session_and_a_foreign_node_are_refused() {
    let (g, h) = (Graph::new(), Graph::new());
    let (a, b) = (g.constant(1.0f32), h.constant(1.0f32));
    let session = session(&g);
    assert_eq!(session.run(&[], &b).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(session.run(&[b.feed(1.0f32)], &a).unwrap_err().kind(), ErrorKind::InvalidArgument);
    session.close();
    session.close();
    assert_eq!(session.run(&[], &a).unwrap_err().kind(), ErrorKind::FailedPrecondition);
}

#[test]
fn second_order_gradients() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let y = &x * &x * &x;
    let dy = y.gradients(&[&x])[0].clone().unwrap();
    let ddy = dy.gradients(&[&x])[0].clone().unwrap();
    let [dy, ddy] = session(&g).run(&[x.feed(2.0f32)], [&dy, &ddy]).unwrap();
    // 3 x^2 and 6 x.
    assert_eq!((dy.scalar::<f32>().unwrap(), ddy.scalar::<f32>().unwrap()), (12.0, 12.0));
    let unconnected = y.gradients(&[&g.constant(1.0f32)]);
    assert!(unconnected[0].is_none());
    assert!(x.stop_gradient().gradients(&[&x])[0].is_none());
}

#[test]
fn operations_of_another_graph_are_refused_as_controls() {
    let (g, h) = (Graph::new(), Graph::new());
    for _ in 0..50 {
        h.constant(1.0f32);
    }
    let foreign = h.constant(2.0f32).operation();
    let session = session(&g);
    let group = g.group([&foreign]);
    let after = g.after(&[&foreign], || g.constant(1.0f32) + 1.0);
    let near = g.colocate_with(&foreign, || g.constant(1.0f32));
    g.collect(Collection::Global, &h.constant(1.0f32));
    assert!(g.global_variables().is_empty());
    for error in [
        session.run(&[], &group).unwrap_err(),
        session.run(&[], &after).unwrap_err(),
        session.run(&[], &near).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("belongs to another graph"), "{error}");
    }
}

#[test]
fn a_fetched_tensor_keeps_its_elements_and_gives_its_memory_back() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let y = &x * 2.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let run = |element: f32| session.run(&[x.feed(vec![element; 5000])], (&y, &y)).unwrap();
    let (first, twin) = run(1.0);
    let (second, _) = run(2.0);
    assert_eq!(first.to_vec::<f32>().unwrap(), [2.0; 5000]);
    assert_eq!(second.to_vec::<f32>().unwrap(), [4.0; 5000]);
    assert_eq!(first.bytes().as_ptr(), twin.bytes().as_ptr(), "one value is one buffer");
    let place = second.bytes().as_ptr().addr();
    drop(second);
    assert_eq!(run(3.0).0.bytes().as_ptr().addr(), place, "the buffer is used again");
    drop((first, twin));
    // What is fetched and stored into a variable is two buffers.
    let v = g.variable("v", Init::Zeros, F32, [5000]);
    let assign = v.assign(&y);
    let feed = [x.feed(vec![4.0f32; 5000])];
    let fetched = session.run(&feed, &assign).unwrap();
    session.run(&[], &v.assign(v.value() * 0.0)).unwrap();
    assert_eq!(fetched.to_vec::<f32>().unwrap(), [8.0; 5000]);
}
