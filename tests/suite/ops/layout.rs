//! Views and moves: reshape, transpose, broadcast, slice, pad, concat, gather.

use convoke::prelude::*;
use convoke::{Conv2d, Pool};
use convoke_tests::{case, cast, check, devices, indices, ramp};

#[test]
fn views() {
    let x = [[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]];
    check(
        "transpose",
        |xs| xs[0].transpose(),
        &[
            case("by hand").x(x).y([[1.0f32, 4.0], [2.0, 5.0], [3.0, 6.0]]).gradient(),
            case("empty").x(ramp(&[0, 3])),
            case("odd").x(ramp(&[37, 53])),
            case("a vector").x(ramp(&[3])).refused("expected rank 2, got shape [3]"),
        ],
    );
    check(
        "permute",
        |xs| xs[0].permute(&[2, 0, 1]),
        &[case("three axes").x(ramp(&[2, 3, 4])).gradient()],
    );
    check(
        "permute",
        |xs| xs[0].permute(&[0, usize::MAX]),
        &[case("an axis that is -1 as a signed number")
            .x(ramp(&[2, 3]))
            .refused("axis 9223372036854775807 is out of range for rank 2")],
    );
    check(
        "reshape",
        |xs| xs[0].reshape(&[3, -1]),
        &[
            case("by hand").x(x).y([[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]]).gradient(),
            case("misfit")
                .x(ramp(&[4]))
                .refused("cannot reshape [4], which has 4 elements, to [3, -1]"),
        ],
    );
    check(
        "reshape of transpose",
        |xs| xs[0].transpose().reshape(&[-1]),
        &[case("must move").x(x).y([1.0f32, 4.0, 2.0, 5.0, 3.0, 6.0])],
    );
    check(
        "broadcast",
        |xs| xs[0].broadcast_to(&[2, 3, 2]),
        &[
            case("by hand").x([[1.0f32], [2.0], [3.0]]).gradient(),
            case("misfit")
                .x(ramp(&[4]))
                .refused("shapes [4] and [2, 3, 2] do not broadcast together"),
        ],
    );
}

#[test]
fn parts_and_axes_of_one() {
    check(
        "slice",
        |xs| xs[0].slice(&[1, 1], &[None, Some(2)]),
        &[
            case("by hand")
                .x([[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
                .y([[5.0f32, 6.0], [8.0, 9.0]])
                .gradient(),
            case("outside")
                .x(ramp(&[2, 2]))
                .refused("the slice from 1 of size 2 is not inside of axis 1, which has size 2"),
        ],
    );
    check(
        "squeeze",
        |xs| xs[0].expand_dims(1).squeeze(&[1]) * 1.0,
        &[case("there and back").x(ramp(&[3, 2])).gradient()],
    );
    check(
        "squeeze",
        |xs| xs[0].squeeze(&[0]),
        &[case("not 1").x(ramp(&[3])).refused("axis 0 has size 3, expected 1")],
    );
}

#[test]
fn moves() {
    check(
        "pad",
        |xs| xs[0].pad(&[[1, 0], [0, 2]]),
        &[
            case("by hand").x([[1.0f32, 2.0]]).y([[0.0f32; 4], [1.0, 2.0, 0.0, 0.0]]).gradient(),
            case("bool").x(HostTensor::new(&[1, 2], vec![true, true]).unwrap()),
            case("empty").x(ramp(&[0, 2])),
        ],
    );
    check(
        "concat",
        |xs| xs[0].graph().concat(&[&xs[0], &xs[1]], 1),
        &[
            case("by hand")
                .x([[1.0f32], [2.0]])
                .x([[3.0f32, 4.0], [5.0, 6.0]])
                .y([[1.0f32, 3.0, 4.0], [2.0, 5.0, 6.0]])
                .gradient(),
            case("integers").x(cast(&ramp(&[2, 3]), I32)).x(cast(&ramp(&[2, 5]), I32)),
        ],
    );
    check(
        "gather",
        |xs| xs[0].gather(&xs[1], 0),
        &[
            case("by hand")
                .x([[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]])
                .x([2i32, 0])
                .y([[5.0f32, 6.0], [1.0, 2.0]])
                .gradient(),
            case("repeated").x(ramp(&[7, 3])).x(indices(&[4, 5], 7)).gradient(),
        ],
    );
    check(
        "gather",
        |xs| xs[0].gather(&xs[1], 1),
        &[case("inner axis").x(ramp(&[5, 7])).x(indices(&[3], 7))],
    );
    check(
        "one_hot",
        |xs| xs[0].one_hot(3, F32),
        &[case("by hand").x([1i32, 0, 5]).y([[0.0f32, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0; 3]])],
    );
}

/// What is computed for a concatenation is stored where it belongs in it.
#[test]
fn concatenations_of_what_is_computed() {
    for axis in [0, 1] {
        check(
            "elementwise, products, reductions, rows and what is fed",
            |xs| {
                let x = &xs[0];
                let parts = [
                    x * 2.0,
                    x.matmul(&xs[1]),
                    x.matmul(&xs[1]).tanh() + 1.0,
                    x.softmax(-1),
                    x.clone(),
                    x.clone(),
                    x.transpose() + 0.5,
                    x.reshape(&[17, 17, 1]).sum_keep(-1).reshape(&[17, 17]).exp(),
                ];
                x.graph().concat(&parts.iter().collect::<Vec<_>>(), axis)
            },
            &[case("odd").x(ramp(&[17, 17])).x(ramp(&[17, 17])).gradient().within(1e-3)],
        );
    }
    check(
        "parts that others read, in order and out of it",
        |xs| {
            let (a, b) = (xs[0].exp(), &xs[0] * 2.0);
            let both = xs[0].graph().concat(&[&a, &b], 1);
            let product = a.matmul(b.transpose());
            both.sum_keep(1) + product.sum_keep(1) + b.slice(&[0, 1], &[None, Some(1)])
        },
        &[
            // 1, 1; 0, 0: 2 + 0 + 0.
            case("by hand").x([[0.0f32, 0.0]]).y([[2.0f32]]),
            case("odd").x(ramp(&[9, 13])).gradient().within(1e-3),
        ],
    );
}

#[test]
fn concatenations_of_steps_and_of_images() {
    check(
        "each step reads the one before",
        |xs| {
            let mut all = vec![xs[0].tanh()];
            for _ in 0..9 {
                let last = &all[all.len() - 1];
                all.push((last.matmul(&xs[1]) + last).tanh());
            }
            xs[0].graph().stack(&all.iter().collect::<Vec<_>>(), 0)
        },
        &[case("odd").x(ramp(&[3, 7])).x(ramp(&[7, 7])).gradient().within(1e-3)],
    );
    check(
        "concatenations of concatenations, and of one tensor twice",
        |xs| {
            let (g, y) = (xs[0].graph(), xs[0].exp());
            let inner = g.concat(&[&y, &y, &(&y * 2.0)], 0);
            g.concat(&[&inner, &inner.tanh(), &xs[0].sigmoid()], 0)
        },
        &[case("odd").x(ramp(&[2, 3])).gradient()],
    );
    check(
        "images and their halves, by channels",
        |xs| {
            let y = xs[0].conv2d(&xs[1], Conv2d::default());
            let pooled = xs[0].max_pool(Pool { stride: [1, 1], ..Pool::default() });
            let all = [y.relu(), pooled, xs[0].conv2d(&xs[1], Conv2d::default())];
            xs[0].graph().concat(&all.iter().collect::<Vec<_>>(), 1)
        },
        &[case("odd").x(ramp(&[2, 3, 5, 4])).x(ramp(&[5, 3, 2, 2])).within(1e-4)],
    );
}

#[test]
fn a_concatenation_of_what_is_computed_is_no_dispatch() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 9]);
        let (a, b) = (x.exp(), x.softmax(-1));
        // One of them is read by others too.
        let all = g.concat(&[&a, &b, &a.matmul(a.transpose())], 1);
        let session = device.session(&g);
        let feed = [x.feed(ramp(&[5, 9]))];
        let (_, run) = session.run_with(&feed, &all, Default::default()).unwrap();
        assert_eq!(run.dispatches, 3, "{}: {run}", device.name);
    }
}
