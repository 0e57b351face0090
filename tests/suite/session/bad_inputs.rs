//! What is refused: each wrong graph, feed and fetch gives an error of its kind, with what does not fit, and leaves the
//! session as it was, on every device.

use std::sync::Arc;

use convoke::prelude::*;
use convoke::{Conv2d, GraphLimits, Padding, Pool, RunOptions};
use convoke_tests::{TestDevice, devices};

/// A session with a variable and a random operation that was drawn, so that there is a state to damage.
struct Subject {
    g: Graph,
    session: Session,
    /// `[1, 2, 3]` unless it is fed.
    x: Tensor,
    v: Variable,
}

impl Subject {
    fn new(device: &TestDevice) -> Self {
        let g = Graph::with_seed(3);
        let x = g.placeholder_with_default("x", [1.0f32, 2.0, 3.0], dims![None]);
        let v = g.variable("v", Init::Constant(4.0), F32, [3]);
        let drawn = g.random_uniform(&[3], F32, 1);
        let session = device.session_with(&g, SessionOptions::default());
        session.run(&[], g.initializers()).unwrap();
        session.run(&[], &drawn).unwrap();
        Self { g, session, x, v }
    }

    fn zeros(&self, dims: &[i64]) -> Tensor {
        self.g.fill(dims, 0.0f32)
    }
}

type Build = fn(&Subject) -> Tensor;

/// Builds, runs, and expects this; then a step that assigns the result, too.
#[track_caller]
fn refuse(what: &str, kind: ErrorKind, says: &[&str], build: Build) {
    for device in devices() {
        let s = Subject::new(device);
        let before = s.session.state_digest().unwrap();
        let bad = build(&s);
        let step = s.v.assign_add(bad.sum(()).cast(F32).broadcast_to(&[3]));
        let runs = [s.session.run(&[], &bad).map(|_| ()), s.session.run(&[], step.operation())];
        for run in runs {
            let error = run.expect_err(what);
            assert_eq!(error.kind(), kind, "{what} on {}: {error}", device.name);
            for says in says {
                assert!(error.to_string().contains(says), "{what} on {}: {error}", device.name);
            }
            assert_eq!(s.session.state_digest().unwrap(), before, "{what} on {}", device.name);
        }
        let good = s.session.run(&[], &s.x * &s.v).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(good, [4.0, 8.0, 12.0], "after {what} on {}", device.name);
    }
}

const INVALID: ErrorKind = ErrorKind::InvalidArgument;

fn refuse_all(rows: &[(&str, &[&str], Build)]) {
    for &(what, says, build) in rows {
        refuse(what, INVALID, says, build);
    }
}

#[test]
fn sizes_and_dtypes() {
    refuse_all(&[
        ("inner sizes", &["[2, 3]", "[4, 5]"], |s| s.zeros(&[2, 3]).matmul(s.zeros(&[4, 5]))),
        ("broadcasting", &["[2, 3]", "[4]"], |s| s.zeros(&[2, 3]) + s.zeros(&[4])),
        ("sizes whose product overflows", &["4294967296"], |s| s.zeros(&[1 << 32, 1 << 32])),
        ("the largest size, twice", &["overflow"], |s| s.zeros(&[i64::MAX, 2])),
        ("partial products that overflow", &["overflow"], |s| s.zeros(&[1 << 40, 1 << 40, 0])),
        ("a negative size", &["-1"], |s| s.zeros(&[2, -1])),
        ("a reshape to two open sizes", &["-1"], |s| s.x.reshape(&[-1, -1])),
        ("a reshape to an overflow", &[], |s| s.zeros(&[4]).reshape(&[i64::MAX, i64::MAX])),
        ("a broadcast to an overflow", &[], |s| s.zeros(&[1]).broadcast_to(&[1 << 40, 1 << 40])),
        ("a broadcast to fewer", &["[3]"], |s| s.zeros(&[3]).broadcast_to(&[2])),
    ]);
}

#[test]
fn axes_and_parts() {
    refuse_all(&[
        ("an axis beyond", &["axis 2"], |s| s.zeros(&[2, 3]).sum([2])),
        ("an axis before", &["axis -3"], |s| s.zeros(&[2, 3]).sum([-3])),
        ("an axis twice", &["twice"], |s| s.zeros(&[2, 3]).sum([0, 0])),
        ("an axis twice, once from behind", &["twice"], |s| s.zeros(&[2, 3]).mean([1, -1])),
        ("the least axis", &["axis"], |s| s.zeros(&[2, 3]).softmax(i64::MIN)),
        ("the largest axis", &["axis"], |s| s.zeros(&[2, 3]).argmax(i64::MAX)),
        ("an axis to insert beyond", &["axis"], |s| s.zeros(&[2, 3]).expand_dims(i64::MAX)),
        ("an axis to stack along before", &["axis"], |s| s.g.stack(&[&s.x, &s.x], i64::MIN)),
        ("an axis to gather along", &["axis"], |s| s.x.gather(s.g.constant([0i32]), 1)),
        ("a draw of more than there is", &["overflow"], |s| {
            s.g.random_normal(&[usize::MAX], F32, 0)
        }),
        ("a variable of more than there is", &["overflow"], |s| {
            s.g.variable("huge", Init::glorot(1), F32, [usize::MAX, 8]).value().clone()
        }),
        ("a draw of an overflow", &[], |s| s.g.random_uniform(&[1 << 40, 1 << 40], F32, 0)),
        ("a draw of integers", &["i32"], |s| s.g.random_uniform(&[2], I32, 0).cast(F32)),
        ("one of more places than there are", &[], |s| {
            s.g.constant([[1i32; 3]; 3]).one_hot(usize::MAX, F32).reshape(&[2])
        }),
        ("no permutation", &[], |s| s.zeros(&[2, 3]).permute(&[0, 0])),
        ("a permutation beyond", &[], |s| s.zeros(&[2, 3]).permute(&[0, usize::MAX])),
        ("a short permutation", &[], |s| s.zeros(&[2, 3]).permute(&[0])),
        ("a squeeze of more than one", &[], |s| s.zeros(&[2, 3]).squeeze(&[0])),
        ("a part beyond", &[], |s| s.zeros(&[2]).slice(&[usize::MAX], &[Some(2)])),
        ("a part that is too long", &[], |s| s.zeros(&[2]).slice(&[1], &[Some(usize::MAX)])),
        ("a part of other axes", &[], |s| s.zeros(&[2]).slice(&[0, 0], &[None, None])),
        ("padding without end", &[], |s| s.zeros(&[2]).pad(&[[usize::MAX, 1]])),
        ("a concatenation of other sizes", &[], |s| {
            s.g.concat(&[&s.zeros(&[2, 3]), &s.zeros(&[3, 2])], 0)
        }),
        ("a concatenation of nothing", &[], |s| s.g.concat(&[], 0)),
    ]);
}

#[test]
fn windows_and_rates() {
    refuse_all(&[
        ("a stride of 0", &["stride"], |s| conv(s, Conv2d { stride: [0, 1], ..Conv2d::default() })),
        ("a dilation of 0", &["dilation"], |s| {
            conv(s, Conv2d { dilation: [1, 0], ..Conv2d::default() })
        }),
        ("no groups", &["groups"], |s| conv(s, Conv2d { groups: 0, ..Conv2d::default() })),
        ("groups that do not divide", &[], |s| conv(s, Conv2d { groups: 3, ..Conv2d::default() })),
        ("a filter larger than the image", &[], |s| {
            s.zeros(&[1, 2, 2, 2]).conv2d(s.zeros(&[2, 2, 3, 3]), Conv2d::default())
        }),
        ("a dilated filter larger than anything", &[], |s| {
            conv(s, Conv2d { dilation: [usize::MAX, 1], ..Conv2d::default() })
        }),
        ("padding of images without end", &[], |s| {
            let padding = Padding::Explicit([[usize::MAX, 1], [0, 0]]);
            conv(s, Conv2d { padding, ..Conv2d::default() })
        }),
        ("pooling by 0", &[], |s| {
            let pool = Pool { stride: [0, 0], ..Pool::default() };
            s.zeros(&[1, 2, 4, 4]).max_pool(pool)
        }),
        ("windows of nothing", &[], |s| {
            s.zeros(&[1, 2, 4, 4]).avg_pool(Pool { window: [0, 1], ..Pool::default() })
        }),
        ("windows without end", &[], |s| {
            s.zeros(&[1, 2, 4, 4]).avg_pool(Pool { window: [usize::MAX, 1], ..Pool::default() })
        }),
        ("groups without end", &[], |s| {
            conv(s, Conv2d { groups: usize::MAX, ..Conv2d::default() })
        }),
        ("dtypes", &["f32", "i32"], |s| s.zeros(&[3]) + s.g.constant([1i32, 2, 3])),
        ("a logarithm of integers", &["i32"], |s| s.g.constant([1i32]).log()),
        ("a dropout rate above 1", &["[0, 1)"], |s| s.zeros(&[3]).dropout(1.5, 0)),
        ("a dropout rate below 0", &["[0, 1)"], |s| s.zeros(&[3]).dropout(-0.1, 0)),
        ("a dropout rate that is none", &["NaN"], |s| s.zeros(&[3]).dropout(f64::NAN, 0)),
        ("an assignment of another shape", &["[3]", "[4]"], |s| s.v.assign(s.zeros(&[4]))),
        ("an assignment of another dtype", &["i32"], |s| s.v.assign(s.g.constant([1i32, 2, 3]))),
        ("a rank above the limit", &["rank"], |s| s.zeros(&[1; 40])),
    ]);
}

/// Filters of 3 by 3 over two channels of 4 by 4.
fn conv(s: &Subject, conv: Conv2d) -> Tensor {
    s.zeros(&[1, 2, 4, 4]).conv2d(s.zeros(&[2, 2, 3, 3]), conv)
}

#[test]
fn indices() {
    let rows: &[(&str, Build)] = &[
        ("one before", |s| s.v.value().gather(s.g.constant([0i32, -1]) + 0i32, 0)),
        ("one beyond", |s| s.v.value().gather(s.g.constant([0i32, 3]) + 0i32, 0)),
        ("the least", |s| s.v.value().gather(s.g.constant([i32::MIN]) + 0i32, 0)),
        ("the largest", |s| s.v.value().gather(s.g.constant([i32::MAX]) + 0i32, 0)),
        ("one that is 1 when it is cut to 32 bits", |s| {
            s.v.value().gather(s.g.constant([(1i64 << 32) + 1]), 0)
        }),
        ("one of no elements", |s| {
            s.v.value().slice(&[3], &[None]).gather(s.g.constant([0i32]), 0)
        }),
        ("one of an embedding", |s| {
            s.v.value().reshape(&[3, 1]).embedding(s.g.constant([1i32, 5]))
        }),
        ("a label", |s| s.v.value().reshape(&[1, 3]).cross_entropy(s.g.constant([3i32]))),
    ];
    for &(what, build) in rows {
        refuse(what, ErrorKind::InvalidArgument, &[], build);
    }
}

/// What a graph cannot know, a run finds before it changes anything.
#[test]
fn runs() {
    for device in devices() {
        let s = Subject::new(device);
        let (g, x, v) = (&s.g, &s.x, &s.v);
        let n = g.placeholder("n", I32, dims![2]);
        let y = x + v.value();
        let step = v.assign_add(x.sum(()).broadcast_to(&[3])).operation();
        let set = v.assign(x).operation();
        let both = g.group([&v.assign(1.0).operation(), &v.assign(2.0).operation()]);
        let empty = g.variable("empty", Init::Zeros, F32, [1]);
        let other = Graph::new();
        let foreign = other.placeholder("x", F32, dims![]);
        let reshaped = x.reshape_to(&n);
        let run =
            |feeds: &[Feed<'_>], fetch: &Tensor| s.session.run(feeds, (fetch, &step)).map(|_| ());
        let ones = [1.0f32; 3];
        let before = s.session.state_digest().unwrap();
        let cases = [
            ("a feed twice", INVALID, run(&[x.feed(ones), x.feed(ones)], &y)),
            ("another dtype", INVALID, run(&[x.feed([1i64])], &y)),
            ("a fraction for an integer", INVALID, run(&[n.feed([1.5f32, 2.0])], &reshaped)),
            ("an integer too large", INVALID, run(&[n.feed([1i64 << 40, 1])], &reshaped)),
            ("too few elements", INVALID, run(&[n.feed((&[1i32][..], [2]))], &reshaped)),
            ("no element for a scalar", INVALID, run(&[x.feed((&[][..] as &[f32], []))], &y)),
            ("two elements for a scalar", INVALID, run(&[x.feed((&ones[..2], []))], &y)),
            ("another rank", INVALID, run(&[x.feed([ones])], &y)),
            ("sizes that do not broadcast", INVALID, run(&[x.feed([1.0f32; 4])], &y)),
            ("nothing fed", INVALID, run(&[], &reshaped)),
            ("sizes of another count", INVALID, run(&[n.feed([2i32, 2])], &reshaped)),
            ("negative sizes", INVALID, run(&[n.feed([-2i32, -2])], &reshaped)),
            ("a feed of another graph", INVALID, run(&[foreign.feed(1.0)], &y)),
            ("a fetch of another graph", INVALID, run(&[], &foreign)),
            ("a handle", INVALID, run(&[v.handle().feed(ones)], &y)),
            ("an assignment of other sizes", INVALID, s.session.run(&[x.feed([1.0f32; 2])], &set)),
            ("two assignments in no order", INVALID, s.session.run(&[], &both)),
            ("no elements yet", ErrorKind::FailedPrecondition, run(&[], empty.value())),
        ];
        for (what, kind, result) in cases {
            let error = result.expect_err(what);
            assert_eq!(error.kind(), kind, "{what} on {}: {error}", device.name);
        }
        assert_eq!(s.session.state_digest().unwrap(), before, "{}", device.name);
        g.finalize();
        let late = run(&[], &(x + 1.0)).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::FailedPrecondition, "{late}");
        assert_eq!(s.session.state_digest().unwrap(), before);
    }
}

/// The last node and the last edge that there may be work, and those after them are refused.
#[test]
fn one_more_than_a_graph_may_have() {
    for device in devices() {
        let limits = GraphLimits::default();
        for (what, of) in [("nodes", 1), ("edges", 2)] {
            let s = Subject::new(device);
            let before = s.session.state_digest().unwrap();
            let edges: usize = (s.g.snapshot().nodes.iter())
                .map(|node| node.inputs.len() + node.controls.len())
                .sum();
            s.g.set_limits(match what {
                "nodes" => GraphLimits { nodes: s.g.len() + of, ..limits },
                _ => GraphLimits { edges: edges + of, ..limits },
            });
            // A node with two edges.
            let last = &s.x + &s.x;
            let beyond = &last * &last;
            let max = if what == "nodes" { s.g.len() - 1 } else { edges + of };
            let error = s.session.run(&[], &beyond).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
            let says = format!("the graph has all the {max} {what} that it may have");
            assert!(error.message().contains(&says), "{error}");
            assert_eq!(s.session.state_digest().unwrap(), before, "{}", device.name);
            let good = s.session.run(&[], &last).unwrap().to_vec::<f32>().unwrap();
            assert_eq!(good, [2.0, 4.0, 6.0], "{}", device.name);
            // All that comes after is one node, and what is too much counts for nothing.
            let n = s.g.len();
            (0..10).for_each(|_| drop(&last + &last));
            assert_eq!(s.g.len(), if what == "nodes" { n } else { n + 10 });
            s.g.set_limits(GraphLimits { nodes: s.g.len() + 1, edges: edges + 4 });
            let more = &last + &last;
            assert_eq!(s.session.run(&[], &more).unwrap().to_vec::<f32>().unwrap()[0], 4.0);
        }
    }
}

/// What looks wrong and is not: nothing, no elements, and every element that a float has.
#[test]
fn odd_and_right() {
    for device in devices() {
        let s = Subject::new(device);
        let before = s.session.state_digest().unwrap();
        let run = |feeds: &[Feed<'_>], fetch: &Tensor| s.session.run(feeds, fetch).unwrap();
        let none: &[f32] = &[];
        assert_eq!(run(&[s.x.feed(none)], &(&s.x * 2.0)).dims(), [0], "{}", device.name);
        let same = run(&[s.x.feed([7.0f32])], &s.x);
        assert_eq!(same.to_vec::<f32>().unwrap(), [7.0], "fed and fetched is what was fed");
        let empty = s.g.placeholder("empty", F32, dims![None, 4]);
        let full = s.g.placeholder("full", F32, dims![None, 4]);
        let (none, zeros) = ((none, [0, 4]), (&[0.0f32; 12][..], [3, 4]));
        for (what, y, dims) in [
            ("sum", empty.sum(0), &[4][..]),
            ("softmax", empty.softmax(1), &[0, 4]),
            ("matmul", empty.matmul(full.transpose()), &[0, 3]),
            ("product over nothing", empty.transpose().matmul(&empty), &[4, 4]),
            ("gather", full.gather(empty.sum(1).cast(I32), 0), &[0, 4]),
            ("concat", s.g.concat(&[&empty, &full], 0), &[3, 4]),
            ("slice", full.slice(&[3, 0], &[None, None]), &[0, 4]),
        ] {
            let y = run(&[empty.feed(none), full.feed(zeros)], &y);
            assert_eq!(y.dims(), dims, "{what} on {}", device.name);
            assert!(y.to_f64s().unwrap().iter().all(|&y| y == 0.0), "{what} on {}", device.name);
        }
        s.session.run(&[], ()).unwrap();
        assert_eq!(s.session.state_digest().unwrap(), before, "{}", device.name);
        for seed in [0, u64::MAX] {
            let kept = run(&[], &s.g.fill(&[100], 1.0f32).dropout(0.5, seed));
            let kept = kept.to_vec::<f32>().unwrap();
            assert!(kept.iter().all(|&x| x == 0.0 || x == 2.0), "{}", device.name);
            assert!(kept.contains(&0.0) && kept.contains(&2.0), "{}", device.name);
        }
    }
}

/// NaN, infinities, the least number above 0 and a negative 0 go through every sort of kernel without harm. What a GPU
/// gives for them is not promised.
#[test]
fn every_element_of_a_float() {
    let odd =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-45, -0.0, f32::MAX, f32::MIN, 1.0, 2.0];
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![3, 3]);
        let v = g.variable("v", Init::Constant(1.0), F32, [3]);
        let image = x.reshape(&[1, 1, 3, 3]);
        let filters = image.slice(&[0, 0, 0, 0], &[None, None, Some(2), Some(2)]);
        let loss = image.conv2d(&filters, Conv2d::default()).mean(()) + x.log_softmax(1).sum(());
        let all = vec![
            x.exp() + x.log() * x.sqrt() / &x - x.tanh(),
            x.log_sum_exp(0),
            x.gelu() + x.silu() + x.elu() + x.leaky_relu(0.1) + x.clamp(-1.0, 1.0),
            x.layer_norm(&v, &v, 1e-5),
            x.prod(0) + x.min(0),
            x.argmin(0).cast(F32),
            x.is_nan().any(1).cast(F32) + x.is_finite().all(1).cast(F32),
            x.pad(&[[1, 0], [0, 2]]),
            g.concat(&[&x, &x.transpose()], 1),
            g.stack(&[&x, &(&x * 2.0)], 0),
            x.cast(F16).cast(F32) + x.cast(U32).cast(F32),
            image.avg_pool(Pool::default()),
            x.sigmoid_cross_entropy(x.sigmoid()) + x.huber(0.0, 1.0),
            loss.gradients(&[&x]).remove(0).unwrap(),
            x.softmax(1),
            x.matmul(&x),
            x.sum(1) + x.mean(1) * x.max(1),
            x.argmax(1).cast(F32),
            x.cast(I32).cast(F32),
            x.greater(0.0).select(&x, 1.0),
            x.gather(g.constant([2i32, 0]), 0),
            image.conv2d(&filters, Conv2d::default()),
            image.max_pool(Pool::default()),
            x.cross_entropy(g.constant([0i32, 1, 2])),
            x.embedding(g.constant([1i32, 1, 0])),
            image.max_pool(Pool::default()).sum(()).gradients(&[&x]).remove(0).unwrap(),
            x.layer_norm(&v, &v, 1e-5).sum(()).gradients(&[&x]).remove(0).unwrap(),
            x.gather(g.constant([2i32, 0, 2]), 0)
                .square()
                .sum(())
                .gradients(&[&x])
                .remove(0)
                .unwrap(),
            g.scan(x.sum(()) * 0.0, x.clone(), |sum, row| (sum + row.sum(()), row * sum)).1,
            g.cond(&x.sum(()).greater(0.0), || x.exp(), || x.log()),
        ];
        let session = device.session_with(&g, SessionOptions::default());
        session.run(&[], g.initializers()).unwrap();
        let before = session.state_digest().unwrap();
        let feeds = [x.feed((&odd[..], [3, 3]))];
        let got = session.run(&feeds, &all).unwrap();
        assert_eq!(got.len(), all.len(), "{}", device.name);
        // Other elements of the session are what they were.
        assert_eq!(session.state_digest().unwrap(), before, "{}", device.name);
        assert_eq!(session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(), [1.0; 3]);
        let cut = session.run(&feeds, x.cast(I32)).unwrap().to_vec::<i32>().unwrap();
        let expected = [0, i32::MAX, i32::MIN, 0, 0, i32::MAX, i32::MIN, 1, 2];
        // WGSL leaves open what NaN and infinities become.
        let sure = if device.name == "CPU" { 0 } else { 3 };
        assert_eq!(cut[sure..], expected[sure..], "{}", device.name);
    }
}

/// Names are data: no text of theirs becomes text of a kernel, of a path or of a format.
#[test]
fn names() {
    let odd = [
        "%n%s",
        "{} {0:?}",
        "*/ @compute fn main(){}",
        "a\nenable f16;\n",
        "../../x",
        "\0",
        "\u{202e}",
    ];
    for device in devices() {
        for name in odd {
            let g = Graph::new();
            let x = g.placeholder(name, F32, dims![2]);
            let v = g.variable(name, Init::Constant(1.0), F32, [2]);
            let y = g.scope(name, || (&x * 2.0 + &v).named(name));
            let session = device.session(&g);
            session.run(&[], g.initializers()).unwrap();
            let y = session.run(&[x.feed([1.0f32, 2.0])], &y).unwrap();
            assert_eq!(y.to_vec::<f32>().unwrap(), [3.0, 5.0], "{name:?} on {}", device.name);
            let error = session.run(&[], x.relu()).unwrap_err();
            assert_eq!(error.kind(), INVALID, "{error}");
        }
    }
}

/// The last handle goes while sixty-four runs are under way or wait: they are what keeps it.
#[test]
fn a_session_dropped_under_its_runs() {
    for device in devices() {
        let s = Subject::new(device);
        let y = s.x.sum(()) + s.v.value().sum(());
        let runs: Vec<_> = (0..64)
            .map(|i| s.session.submit(&[s.x.feed(vec![i as f32])], &y, RunOptions::default()))
            .collect();
        let Subject { session, .. } = s;
        let session = Arc::new(session);
        drop(session);
        for (i, run) in runs.into_iter().enumerate() {
            let y = run.wait().unwrap().scalar::<f32>().unwrap();
            assert_eq!(y, i as f32 + 12.0, "{}", device.name);
        }
    }
}
