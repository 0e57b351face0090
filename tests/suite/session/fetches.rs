//! What comes back, and what is refused.

use std::collections::{BTreeMap, HashMap};

use convoke::prelude::*;
use convoke::{FetchList, FetchResults};
use convoke_tests::devices;

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

/// A cast to integers and an index of the greatest end the way of a gradient, and not other ways. What stays of integers
/// has gradients of integers.
#[test]
fn gradients_through_integers() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![3]);
        let n = g.placeholder("n", I32, dims![2]);
        let (whole, at) = (x.cast(I32).cast(F32).sum(()), x.argmax(0));
        assert!(whole.gradients(&[&x])[0].is_none());
        assert!(at.gradients(&[&x])[0].is_none());
        assert!((n.cast(F32) * 3.0).sum(()).gradients(&[&n])[0].is_none());
        let slope = |y: &Tensor, x: &Tensor| y.gradients(&[x]).remove(0).unwrap();
        let beside = slope(&(&whole + (&x * 2.0).sum(())), &x);
        let scaled = slope(&(&x * at.cast(F32)).sum(()), &x);
        let triple = slope(&(&n * 3).sum(()), &n);
        assert!(g.check().is_empty(), "{:?}", g.check());
        let session = device.session(&g);
        let feeds = [x.feed([-2.5f32, 1.5, 7.5]), n.feed([4i32, 5])];
        // -2, 1 and 7; the third is the greatest.
        let (whole, at) = session.run(&feeds, (&whole, &at)).unwrap();
        assert_eq!((whole.scalar::<f32>().unwrap(), at.scalar::<i32>().unwrap()), (6.0, 2));
        let (beside, scaled, triple) = session.run(&feeds, (&beside, &scaled, &triple)).unwrap();
        assert_eq!(beside.to_vec::<f32>().unwrap(), [2.0; 3], "{}", device.name);
        assert_eq!(scaled.to_vec::<f32>().unwrap(), [2.0; 3], "{}", device.name);
        assert_eq!(triple.to_vec::<i32>().unwrap(), [3, 3], "{}", device.name);
    }
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

fn number(tensor: &HostTensor) -> f32 {
    tensor.scalar::<f32>().unwrap()
}

/// TensorFlow: `testFetchSingleton`, by itself and through `make_callable`.
#[test]
fn fetch_singleton() {
    for device in devices() {
        let g = Graph::new();
        let (x, v) = (g.constant(42.0f32), g.variable("v", Init::Constant(37.0), F32, []));
        let bump = v.assign(&x).operation();
        let session = device.session(&g);
        assert_eq!(number(&session.run(&[], &x).unwrap()), 42.0, "{}", device.name);
        session.run(&[], &bump).unwrap();
        assert_eq!(number(&session.run(&[], &v).unwrap()), 42.0, "{}", device.name);
        assert_eq!(number(&session.callable(&[], &x).unwrap().call(()).unwrap()), 42.0);
        session.callable(&[], &bump).unwrap().call(()).unwrap();
    }
}

/// TensorFlow: `testFetchSingletonByName`.
#[test]
fn fetch_singleton_by_name() {
    let g = Graph::new();
    g.constant(42.0f32).named("a");
    let session = session(&g);
    assert_eq!(number(&session.run(&[], g.tensor("a:0").unwrap()).unwrap()), 42.0);
    session.run(&[], g.operation("a").unwrap()).unwrap();
}

/// TensorFlow: `testFetchByNameDifferentStringTypes`: whatever strings there are.
#[test]
fn fetch_by_name_different_string_types() {
    let g = Graph::new();
    let c = g.constant(42.0f32).named("c");
    let (text, boxed): (String, Box<str>) = (String::from("c:0"), "c".into());
    for name in ["c", &text, &boxed, std::str::from_utf8(b"c:0").unwrap()] {
        let found = g.tensor(name).unwrap();
        assert!(found.is(&c), "{name}");
        assert_eq!(number(&session(&g).run(&[], &found).unwrap()), 42.0);
    }
}

/// TensorFlow: `testFetchList`: tensors by handle and by name among operations.
#[test]
fn fetch_list() {
    let g = Graph::new();
    let (a, b) = (g.constant(42.0f32), g.no_op());
    let (c, v) = (g.constant(44.0f32).named("c"), g.variable("v", Init::Constant(54.0), F32, []));
    let assign = v.assign(63.0);
    let session = session(&g);
    session.run(&[], v.initializer()).unwrap();
    let fetches = (&a, &b, &c, v.initializer(), g.tensor("c:0").unwrap(), &assign);
    // Both assignments of one run would be in no order.
    let error = session.run(&[], &fetches).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    let (a, (), c, again, assign) =
        session.run(&[], (&a, &b, &c, g.tensor("c:0").unwrap(), &assign)).unwrap();
    let got = [a, c, again, assign].map(|x| number(&x));
    assert_eq!(got, [42.0, 44.0, 44.0, 63.0]);
}

/// TensorFlow: `testFetchTuple`.
#[test]
fn fetch_tuple() {
    let g = Graph::new();
    let (a, b, c) = (g.constant(42.0f32), g.no_op(), g.constant([44i32, 45]));
    let (a, (), c) = session(&g).run(&[], (a, b, c)).unwrap();
    assert_eq!((number(&a), c.to_vec::<i32>().unwrap()), (42.0, vec![44, 45]));
}

#[derive(Fetch)]
struct Abc<T, O> {
    a: T,
    b: O,
    c: T,
}

/// TensorFlow: `testFetchNamedTuple`.
#[test]
fn fetch_named_tuple() {
    let g = Graph::new();
    let fetch = Abc { a: g.constant(42.0f32), b: g.no_op(), c: g.constant(44.0f32) };
    let Abc { a, b: (), c } = session(&g).run(&[], &fetch).unwrap();
    assert_eq!((number(&a), number(&c)), (42.0, 44.0));
}

/// TensorFlow: `testFetchDict`.
#[test]
fn fetch_dict() {
    let g = Graph::new();
    let (a, c) = (g.constant(42.0f32), g.constant(44.0f32));
    let map = HashMap::from([("a", &a), ("c", &c), ("again", &a)]);
    let got = session(&g).run(&[], &map).unwrap();
    assert_eq!(got.len(), 3);
    assert_eq!(["a", "c", "again"].map(|key| number(&got[key])), [42.0, 44.0, 42.0]);
}

/// TensorFlow: `testFetchOrderedDict`.
#[test]
fn fetch_ordered_dict() {
    let g = Graph::new();
    let constants = [44.0f32, 42.0, 43.0].map(|x| g.constant(x));
    let sorted: BTreeMap<i32, &Tensor> = [3, 1, 2].into_iter().zip(&constants).collect();
    let got = session(&g).run(&[], &sorted).unwrap();
    let got: Vec<(i32, f32)> = got.iter().map(|(key, x)| (*key, number(x))).collect();
    assert_eq!(got, [(1, 42.0), (2, 43.0), (3, 44.0)]);
}

/// TensorFlow: `testFetchAttrs`: a structure of one's own, of which a field is fed.
#[test]
fn fetch_attrs() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let fetch = Abc { a: &x + 1.0, b: g.no_op(), c: x.clone() };
        let session = device.session(&g);
        let got = session.run(&[x.feed(7.0)], &fetch).unwrap();
        assert_eq!((number(&got.a), number(&got.c)), (8.0, 7.0), "{}", device.name);
        let got = session.run(&[x.feed(0.0), fetch.a.feed(5.0)], &fetch).unwrap();
        assert_eq!((number(&got.a), number(&got.c)), (5.0, 0.0), "{}", device.name);
    }
}

/// TensorFlow: `testFetchNestedAttrs`.
#[test]
fn fetch_nested_attrs() {
    let g = Graph::new();
    let constants = [1.0f32, 2.0, 3.0].map(|x| g.constant(x));
    let [a, b, c] = &constants;
    let fetch =
        Abc { a: Step { loss: a, all: vec![b, c] }, b: [a, b], c: Step { loss: c, all: vec![] } };
    let got = session(&g).run(&[], &fetch).unwrap();
    let all: Vec<f32> = got.a.all.iter().chain(&got.b).map(number).collect();
    assert_eq!((number(&got.a.loss), all), (1.0, vec![2.0, 3.0, 1.0, 2.0]));
    assert_eq!((number(&got.c.loss), got.c.all.len()), (3.0, 0));
}

/// TensorFlow: `testFetchNestingEmptyOneLevel`: empty structures stay, alone and beside a tensor.
#[test]
fn fetch_nesting_empty_one_level() {
    let g = Graph::new();
    let a = g.constant(42.0f32);
    let session = session(&g);
    let (list, tuple, map) = (Vec::<Tensor>::new(), (), BTreeMap::<&str, Tensor>::new());
    let (no_list, (), no_map) = session.run(&[], (&list, tuple, &map)).unwrap();
    assert!(no_list.is_empty() && no_map.is_empty());
    let lists = session.run(&[], [&list, &list]).unwrap();
    assert_eq!(lists.map(|list| list.len()), [0, 0]);
    let (no_list, x, no_map) = session.run(&[], (&list, &a, &map)).unwrap();
    assert_eq!((no_list.len(), number(&x), no_map.len()), (0, 42.0, 0));
}

/// TensorFlow: `testFetchNestingOneLevel`: each kind of structure in each other.
#[test]
fn fetch_nesting_one_level() {
    let g = Graph::new();
    let (a, b, c) = (g.constant(42.0f32), g.no_op(), g.constant(44.0f32));
    let session = session(&g);
    let list = vec![&a, &c];
    let map = HashMap::from([("a", &a), ("c", &c)]);
    let own = || Abc { a: &a, b: &b, c: &c };
    let check = |a: &HostTensor, c: &HostTensor| assert_eq!((number(a), number(c)), (42.0, 44.0));
    for inner in session.run(&[], vec![&list, &list]).unwrap() {
        check(&inner[0], &inner[1]);
    }
    for (a, (), c) in session.run(&[], vec![(&a, &b, &c); 2]).unwrap() {
        check(&a, &c);
    }
    for inner in session.run(&[], vec![&map, &map]).unwrap() {
        check(&inner["a"], &inner["c"]);
    }
    for Abc { a, b: (), c } in session.run(&[], [own(), own()]).unwrap() {
        check(&a, &c);
    }
    let (lists, maps, owns) = session
        .run(
            &[],
            (Abc { a: &list, b: (), c: &list }, Abc { a: &map, b: (), c: &map }, (own(), own())),
        )
        .unwrap();
    check(&lists.a[0], &lists.c[1]);
    check(&maps.a["a"], &maps.c["c"]);
    check(&owns.0.a, &owns.1.c);
    let maps = session.run(&[], BTreeMap::from([(1, own()), (2, own())])).unwrap();
    check(&maps[&1].a, &maps[&2].c);
    let maps = session.run(&[], BTreeMap::from([(1, &map), (2, &map)])).unwrap();
    check(&maps[&1]["a"], &maps[&2]["c"]);
}

/// TensorFlow: `testFetchTensorObject`: the same tensor in every way.
#[test]
fn fetch_tensor_object() {
    for device in devices() {
        let g = Graph::new();
        let (x, y) = (g.constant([[1.0f32, 1.0]]), g.constant([[2.0f32, 2.0], [3.0, 3.0]]));
        let c = x.matmul(&y);
        let session = device.session(&g);
        let right = |c: &HostTensor| assert_eq!(c.to_vec::<f32>().unwrap(), [5.0, 5.0]);
        right(&session.run(&[], &c).unwrap());
        right(&session.run(&[], [&c]).unwrap()[0]);
        right(&session.run(&[], (&c,)).unwrap().0);
        right(&session.run(&[], HashMap::from([("c", &c)])).unwrap()["c"]);
        right(&session.run(&[], vec![[(&c, vec![Some(&c)])]]).unwrap()[0][0].1[0].clone().unwrap());
        right(&session.callable(&[], &c).unwrap().call(()).unwrap());
        right(&session.submit(&[], &c, Default::default()).wait().unwrap());
    }
}

/// TensorFlow: `testFetchScalar`: the dtype stays in every structure.
#[test]
fn fetch_scalar() {
    for device in devices() {
        for dtype in [I32, I64, F16, F32, F64] {
            let g = Graph::new();
            let (x, y) = (g.constant(7i32).cast(dtype), g.constant(8i32).cast(dtype));
            let z = &x + &y;
            let session = device.session_with(&g, SessionOptions::default());
            let right = |z: &HostTensor| {
                let what = format!("{dtype} on {}", device.name);
                assert_eq!((z.dtype(), z.dims()), (dtype, &[][..]), "{what}");
                assert_eq!(z.to_f64s().unwrap(), [15.0], "{what}");
            };
            right(&session.run(&[], &z).unwrap());
            let (one, [two], three) = session.run(&[], (&z, [&z], vec![&z])).unwrap();
            [one, two, three[0].clone()].iter().for_each(right);
            right(&session.run(&[], HashMap::from([("z", &z)])).unwrap()["z"]);
            right(&session.run(&[], Step { loss: &z, all: vec![] }).unwrap().loss);
            right(&session.callable(&[], &z).unwrap().call(()).unwrap());
        }
    }
}

/// TensorFlow: `testFetchOperationObject`: a variable's elements once its initialiser has run.
#[test]
fn fetch_operation_object() {
    for device in devices() {
        let g = Graph::new();
        let ones = g.variable("v", Init::Constant(1.0), F32, [1, 2]);
        let session = device.session(&g);
        session.run(&[], ones.initializer()).unwrap();
        let (v, ()) = session.run(&[], (&ones, ones.handle().operation())).unwrap();
        assert_eq!((v.dims(), v.to_vec::<f32>().unwrap()), (&[1, 2][..], vec![1.0, 1.0]));
    }
}

/// TensorFlow: `testDuplicatedInputs`.
#[test]
fn duplicated_inputs() {
    for device in devices() {
        let g = Graph::new();
        let (a, b) = (g.random_uniform(&[3], F32, 5), g.constant([2.0f32; 3]));
        let (first, b, again) = device.session(&g).run(&[], (&a, &b, &a)).unwrap();
        assert_eq!((&first, b.to_vec::<f32>().unwrap()), (&again, vec![2.0; 3]));
    }
}

/// TensorFlow: `FetchMultipleTimes` of `direct_session_test.cc`.
#[test]
fn fetch_multiple_times() {
    for device in devices() {
        let g = Graph::new();
        let seven = g.constant(7.0f32);
        let all = device.session(&g).run(&[], vec![&seven; 5]).unwrap();
        assert_eq!(all.iter().map(number).collect::<Vec<_>>(), [7.0; 5], "{}", device.name);
    }
}

/// TensorFlow: `testIncorrectGraph`: what is of another graph is refused, even if names are the same.
#[test]
fn incorrect_graph() {
    let (g, h) = (Graph::new(), Graph::new());
    let (a, b) = (g.constant(1.0f32).named("a"), h.constant(2.0f32).named("a"));
    assert_eq!(a.name(), b.name());
    let (of_g, of_h) = (session(&g), session(&h));
    assert_eq!(number(&of_g.run(&[], &a).unwrap()), 1.0);
    assert_eq!(number(&of_h.run(&[], &b).unwrap()), 2.0);
    let errors = [
        of_g.run(&[], &b).unwrap_err(),
        of_g.run(&[], b.operation()).unwrap_err(),
        of_h.run(&[], a.operation()).unwrap_err(),
        of_g.run(&[], (&a, &b)).unwrap_err(),
        of_g.run(&[b.feed(0.0)], &a).unwrap_err(),
        of_g.callable(&[], &b).err().unwrap(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains("another graph"), "{error}");
    }
}

/// Two numbers that are one value, as `SquaredTensor` is in TensorFlow's test.
struct Complex<T> {
    re: T,
    im: T,
}

impl Fetch for Complex<Tensor> {
    type Output = Complex<f32>;

    fn collect(&self, list: &mut FetchList) {
        (&self.re, &self.im).collect(list);
    }

    fn take(&self, results: &mut FetchResults) -> convoke::Result<Complex<f32>> {
        let (re, im) = (&self.re, &self.im).take(results)?;
        Ok(Complex { re: re.scalar()?, im: im.scalar()? })
    }
}

impl Complex<Tensor> {
    fn feed(&self, value: &Complex<f32>) -> [Feed<'static>; 2] {
        [self.re.feed(value.re), self.im.feed(value.im)]
    }
}

/// TensorFlow: `testRegisterFetchAndFeedConversionFunctions`: types of one's own are fetched and fed.
#[test]
fn register_fetch_and_feed_conversion_functions() {
    for device in devices() {
        let g = Graph::new();
        let z = Complex {
            re: g.placeholder("re", F32, dims![]),
            im: g.placeholder("im", F32, dims![]),
        };
        let square = Complex { re: &z.re * &z.re - &z.im * &z.im, im: &z.re * &z.im * 2.0 };
        let session = device.session(&g);
        let feeds = z.feed(&Complex { re: 3.0, im: 2.0 });
        let (found, (same, list)) = session.run(&feeds, (&square, (&z, vec![&square]))).unwrap();
        assert_eq!((found.re, found.im), (5.0, 12.0), "{}", device.name);
        assert_eq!((same.re, same.im, list[0].im), (3.0, 2.0, 12.0));
        let callable = session.callable(&[&z.re, &z.im], square).unwrap();
        let found = callable.call([1.0f32, 1.0]).unwrap();
        assert_eq!((found.re, found.im), (0.0, 2.0), "{}", device.name);
    }
}
