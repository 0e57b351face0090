//! Views and moves: reshape, transpose, broadcast, slice, pad, concat, gather.

use convoke::prelude::*;
use convoke_tests::{case, cast, check, indices, ramp};

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
