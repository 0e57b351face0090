//! Branches and loops: values and gradients on every device, against the definition.

use convoke::LoopOptions;
use convoke::prelude::*;
use convoke_tests::{case, check, ramp};

/// Whether the sum of a tensor is above a number.
fn is_above(x: &Tensor, limit: f64) -> Tensor {
    x.sum(()).greater(limit)
}

#[test]
fn a_branch_gives_what_the_taken_side_gives() {
    let build = |inputs: &[Tensor]| {
        let x = &inputs[0];
        let g = x.graph().clone();
        g.cond(&is_above(x, 0.0), || x * x, || x.exp() - 1.0)
    };
    check(
        "cond",
        build,
        &[
            case("then").x(ramp(&[7])).gradient(),
            case("otherwise").x(HostTensor::from([-0.5f32, -0.25])).gradient(),
            case("of two sizes").x(ramp(&[3, 5])).gradient(),
            case("of nothing")
                .x(HostTensor::zeros(F32, convoke::Shape::new(&[0]).unwrap()).unwrap()),
        ],
    );
}

#[test]
fn branches_capture_what_lies_outside() {
    let build = |inputs: &[Tensor]| {
        let (x, y) = (&inputs[0], &inputs[1]);
        let g = x.graph().clone();
        let product = x * y;
        g.cond(&is_above(x, 0.0), || &product * x, || &product - y)
    };
    check(
        "cond",
        build,
        &[
            case("then").x(ramp(&[4])).x(ramp(&[4])).gradient(),
            case("otherwise").x(HostTensor::from([-1.0f32, -2.0])).x(ramp(&[2])).gradient(),
        ],
    );
}

#[test]
fn a_loop_repeats_its_body() {
    let build = |inputs: &[Tensor]| {
        let x = &inputs[0];
        let g = x.graph().clone();
        let start = (g.constant(0i32), x.clone());
        let (_, y) = g.while_loop(start, |(i, _)| i.less(5), |(i, y)| (i + 1, (y * 0.5 + x).sin()));
        y
    };
    check("while", build, &[case("five times").x(ramp(&[6])).gradient()]);
}

#[test]
fn a_scan_carries_and_collects() {
    let build = |inputs: &[Tensor]| {
        let (xs, w) = (&inputs[0], &inputs[1]);
        let g = xs.graph().clone();
        let init = g.fill(&[2, 3], 0.25f32);
        let (last, all) = g.scan(init, xs.clone(), |state, x| {
            let next = (x + &state.matmul(w)).tanh();
            (next.clone(), &next * 2.0)
        });
        last + all.sum([0])
    };
    let w = ramp(&[3, 3]);
    check(
        "scan",
        build,
        &[
            case("four steps").x(ramp(&[4, 2, 3])).x(w.clone()).gradient(),
            case("one step").x(ramp(&[1, 2, 3])).x(w).gradient(),
        ],
    );
}

#[test]
fn a_scan_goes_backwards_too() {
    let build = |inputs: &[Tensor]| {
        let xs = &inputs[0];
        let g = xs.graph().clone();
        let (_, all) = g.scan_reversed(g.constant(0.0f32), xs.clone(), |sum, x| {
            let next = sum * 0.5 + x * x;
            (next.clone(), next)
        });
        all
    };
    check("scan_reversed", build, &[case("of seven").x(ramp(&[7])).gradient()]);
}

#[test]
fn a_map_goes_over_slices() {
    let build = |inputs: &[Tensor]| {
        let (xs, w) = (&inputs[0], &inputs[1]);
        xs.graph().clone().map(xs.clone(), |x| x.matmul(w).exp())
    };
    check("map", build, &[case("of three").x(ramp(&[3, 2, 4])).x(ramp(&[4, 5])).gradient()]);
}

#[test]
fn loops_and_branches_nest() {
    let build = |inputs: &[Tensor]| {
        let x = &inputs[0];
        let g = x.graph().clone();
        let outer = (g.constant(0i32), x.clone());
        let (_, y) = g.while_loop(
            outer,
            |(i, _)| i.less(3),
            |(i, y)| {
                let inner = (g.constant(0i32), y.clone());
                let (_, z) = g.while_loop(
                    inner,
                    |(j, _)| j.less(i),
                    |(j, z)| {
                        let even = (j.clone()).equal(0);
                        (j + 1, g.cond(&even, || z * x, || z + x))
                    },
                );
                (i + 1, z * 0.5)
            },
        );
        y
    };
    check("nested", build, &[case("three deep").x(ramp(&[4])).gradient()]);
}

#[test]
fn loops_can_be_differentiated_twice() {
    // y = x^4 by a loop; dy/dx = 4x^3.
    let build = |inputs: &[Tensor]| {
        let x = &inputs[0];
        let g = x.graph().clone();
        let start = (g.constant(0i32), x * 0.0 + 1.0);
        let (_, y) = g.while_loop(start, |(i, _)| i.less(4), |(i, y)| (i + 1, y * x));
        y.gradients(&[x]).remove(0).expect("a gradient")
    };
    let x = HostTensor::from([0.5f32, -1.0, 2.0]);
    check("gradient of a loop", build, &[case("of a power").x(x).gradient()]);
}

#[test]
fn shapes_may_change_where_invariants_say_so() {
    let build = |inputs: &[Tensor]| {
        let x = &inputs[0];
        let g = x.graph().clone();
        let options =
            LoopOptions { invariants: vec![None, Some(dims![None])], ..LoopOptions::default() };
        let (_, y) = g.while_loop_with(
            (g.constant(0i32), x.clone()),
            |(i, _)| i.less(3),
            |(i, y)| (i + 1, g.concat(&[y, x], 0)),
            options,
        );
        y
    };
    check("while", build, &[case("that grows").x(ramp(&[2]))]);
}
