//! Work row by row: reductions with what comes before and after them in one kernel.

use convoke::Shape;
use convoke::prelude::*;
use convoke_tests::{Case, case, check, devices, indices, ramp};

#[test]
fn softmax_and_layer_norm() {
    check(
        "softmax",
        |xs| xs[0].softmax(-1),
        &[
            // exp(0), exp(ln 3): 1 and 3 of 4.
            case("by hand").x([[0.0f32, 3f32.ln()], [5.0, 5.0]]).y([[0.25f32, 0.75], [0.5, 0.5]]),
            case("one").x(ramp(&[1, 1])),
            case("rows of one").x(ramp(&[7, 1])),
            case("short rows").x(ramp(&[67, 10])).gradient(),
            case("odd rows").x(ramp(&[5, 3, 131])),
            case("a long row").x(ramp(&[1, 16_384])),
            case("too long for one walk").x(ramp(&[2, 16_385])),
            case("many long rows").x(ramp(&[17, 50_257])),
            case("too long for any").x(ramp(&[16, 65_537])),
            case("no rows").x(ramp(&[0, 4])),
        ],
    );
    check(
        "layer norm",
        |xs| xs[0].layer_norm(&xs[1], &xs[2], 1e-5),
        &[
            // Mean 2, variance 1.
            case("by hand")
                .x([[1.0f32, 3.0], [3.0, 1.0]])
                .x([2.0f32, 1.0])
                .x([0.0f32, 10.0])
                .y([[-2.0f32, 11.0], [2.0, 9.0]])
                .within(1e-4),
            case("short rows")
                .x(ramp(&[33, 6]))
                .x(ramp(&[6]))
                .x(ramp(&[6]))
                .gradient()
                .within(1e-3),
            case("odd rows").x(ramp(&[9, 300])).x(ramp(&[300])).x(ramp(&[300])).within(1e-4),
        ],
    );
}

#[test]
fn reductions_with_what_feeds_them() {
    check(
        "several reductions of the same rows",
        |xs| {
            let squares = xs[0].square();
            let spread = xs[0].max_keep(-1) - xs[0].min_keep(-1);
            (&squares / squares.mean_keep(-1).sqrt() + spread) * xs[0].sum_keep(-1)
        },
        &[
            // Squares 1 and 49, the root of their mean 5, spread 6, sum 8.
            case("by hand").x([[1.0f32, 7.0]]).y([[49.6f32, 126.4]]),
            case("odd").x(ramp(&[13, 37])).within(1e-4),
        ],
    );
    check(
        "a reduction alone with its producers",
        |xs| ((&xs[0] * &xs[1] + &xs[0]).square() * 0.5).sum(()),
        &[
            // (3^2 + (-8)^2) / 2.
            case("by hand").x([1.0f32, -4.0]).x([2.0f32, 1.0]).y(36.5f32),
            case("few").x(ramp(&[7])).x(ramp(&[7])).gradient(),
            case("odd").x(ramp(&[4099])).x(ramp(&[4099])).within(1e-3),
            case("in parts").x(ramp(&[70_001])).x(ramp(&[70_001])).within(1e-3),
        ],
    );
    check(
        "what follows has the size of a row",
        |xs| (xs[0].exp().sum(-1).log() - &xs[1]).square(),
        &[
            case("by hand").x([[0.0f32, 0.0, 0.0, 0.0]]).x([0.0f32]).y([4f32.ln().powi(2)]),
            case("odd").x(ramp(&[21, 66])).x(ramp(&[21])).within(1e-4),
        ],
    );
    check(
        "of integers",
        |xs| &xs[0] * 2 - (&xs[0] + 1).sum_keep(-1) + xs[0].max_keep(-1),
        &[case("by hand").x([[1i32, 2, 3], [-5, 0, 7]]).y([[-4i32, -2, 0], [-8, 2, 16]])],
    );
    check(
        "of halves",
        |xs| (xs[0].cast(F16) * 2.0).softmax(-1).cast(F32),
        &[case("odd").x(ramp(&[9, 70])).within(2e-3), case("short").x(ramp(&[9, 5])).within(2e-3)],
    );
    check(
        "of doubles",
        |xs| (&xs[0] * 2.0).softmax(-1),
        &[case("by hand").x([[0.0f64, 3f64.ln() / 2.0]]).y([[0.25f64, 0.75]])],
    );
}

#[test]
fn tests_of_elements_against_their_row() {
    check(
        "greater than the mean",
        |xs| xs[0].greater(xs[0].mean_keep(-1)),
        &[
            case("by hand").x([[1.0f32, 3.0, 2.5]]).y([[false, true, true]]),
            case("odd").x(ramp(&[7, 33])),
        ],
    );
}

#[test]
fn reductions_of_the_same_rows_are_one_dispatch() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 50]);
        let fetches = (x.sum(-1), x.max(-1), x.min(-1));
        let session = device.session(&g);
        let feed = [x.feed(ramp(&[3, 50]))];
        let (_, run) = session.run_with(&feed, &fetches, Default::default()).unwrap();
        assert_eq!(run.dispatches, 1, "{}: {run}", device.name);
    }
}

#[test]
fn a_tail_that_sees_rows_in_two_shapes() {
    check(
        "a reshaped sum, with a transposed factor",
        |xs| {
            let flat = xs[0].sum(-1).reshape(&[-1]) + &xs[1];
            flat.reshape(&[2, 32]) * xs[2].transpose()
        },
        &[case("odd").x(ramp(&[2, 32, 5])).x(ramp(&[64])).x(ramp(&[32, 2])).within(1e-4)],
    );
}

/// Rows of a transposed matrix, and rows along leading axes, are not those that lie in memory.
#[test]
fn rows_that_do_not_lie_in_order() {
    check(
        "softmax along the first axis",
        |xs| xs[0].softmax(0),
        &[
            case("by hand").x([[0.0f32, 5.0], [3f32.ln(), 5.0]]).y([[0.25f32, 0.5], [0.75, 0.5]]),
            case("square").x(ramp(&[40, 40])).gradient().within(1e-3),
        ],
    );
    check(
        "softmax of a transposed slice",
        |xs| xs[0].transpose().slice(&[1, 0], &[Some(5), None]).softmax(-1),
        &[case("odd").x(ramp(&[9, 7])).gradient()],
    );
    check(
        "a square, normalised along one axis and scaled along the other",
        |xs| (&xs[0] - xs[0].mean_keep(0)) * xs[0].sum_keep(1) + xs[0].max(()),
        &[
            // Means 2, 3; sums 3, 7; greatest 4.
            case("by hand").x([[1.0f32, 2.0], [3.0, 4.0]]).y([[1.0f32, 1.0], [11.0, 11.0]]),
            case("odd").x(ramp(&[35, 35])).within(1e-3),
        ],
    );
}

#[test]
fn the_scores_of_a_large_vocabulary_are_one_dispatch() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 50_257]);
        let session = device.session(&g);
        let feed = [x.feed(ramp(&[16, 50_257]))];
        let (_, run) = session.run_with(&feed, &x.softmax(-1), Default::default()).unwrap();
        assert_eq!(run.dispatches, 1, "{}: {run}", device.name);
    }
}

#[test]
fn long_rows_with_what_comes_before_and_after() {
    check(
        "long rows, each with numbers of its own",
        |xs| -((&xs[0] - &xs[1]).abs().max(-1)) * 2.0,
        &[
            case("by hand").x([[1.0f32, 7.0], [2.0, 2.0]]).x([[3.0f32], [5.0]]).y([-8.0f32, -6.0]),
            case("in parts").x(ramp(&[3, 70_001])).x(ramp(&[3, 1])),
        ],
    );
    check(
        "long rows, and what follows with numbers of its own",
        |xs| ((&xs[0] * 3.0).max(-1) - &xs[1]) * 2.0,
        &[
            case("by hand").x([[1.0f32, 7.0], [2.0, 2.0]]).x([3.0f32, 5.0]).y([36.0f32, 2.0]),
            case("in parts").x(ramp(&[3, 70_001])).x(ramp(&[3])),
        ],
    );
}

#[test]
fn columns_with_what_feeds_them() {
    check(
        "the deviation along the first axis",
        |xs| ((&xs[0] - &xs[1]).square().mean(0) + 1.0).sqrt(),
        &[
            // Squares 1 and 9, 4 and 16: means 5 and 10, and 1.
            case("by hand")
                .x([[1.0f32, 2.0], [3.0, 4.0]])
                .x([0.0f32, 0.0])
                .y([6f32.sqrt(), 11f32.sqrt()]),
            case("one column").x(ramp(&[7, 1])).x(ramp(&[1])),
            case("one row").x(ramp(&[1, 7])).x(ramp(&[7])),
            case("short").x(ramp(&[37, 53])).x(ramp(&[53])).gradient(),
            case("wide").x(ramp(&[9, 1_111])).x(ramp(&[1_111])),
            case("long").x(ramp(&[5_003, 70])).x(ramp(&[70])).within(1e-4),
            case("longer than a row kernel").x(ramp(&[20_011, 3])).x(ramp(&[3])).within(1e-4),
            case("no rows").x(ramp(&[0, 4])).x(ramp(&[4])),
            case("no columns").x(ramp(&[4, 0])).x(ramp(&[0])),
        ],
    );
    check(
        "the mean of images for each channel",
        |xs| (xs[0].relu() * &xs[1]).mean(&[0, 1, 2][..]),
        &[case("odd").x(ramp(&[3, 7, 5, 33])).x(ramp(&[5, 33])).gradient().within(1e-4)],
    );
    check(
        "an axis in the middle",
        |xs| (&xs[0] * 2.0 + xs[1].transpose()).exp().max(1),
        &[case("odd").x(ramp(&[5, 40, 33])).x(ramp(&[33, 40]))],
    );
}

#[test]
fn what_is_turned_lies_as_it_may() {
    check(
        "columns that do not lie side by side",
        |xs| (&xs[0] * 2.0).permute(&[2, 1, 0]).sum(2),
        &[case("three axes").x(ramp(&[2, 3, 4])), case("odd").x(ramp(&[33, 20, 17])).gradient()],
    );
    check(
        "images seen with their channels first",
        |xs| xs[0].relu().permute(&[0, 3, 1, 2]).mean(2),
        &[case("odd").x(ramp(&[2, 5, 7, 3]))],
    );
    check(
        "the nearest axis is among those that go",
        |xs| (&xs[0] * 2.0).permute(&[1, 2, 0]).sum(&[1, 2][..]),
        &[case("odd").x(ramp(&[21, 3, 19])).within(1e-4)],
    );
    check(
        "shapes of one size before a transposition",
        |xs| {
            let flat = (&xs[0] + &xs[1]).reshape(&[-1]) * &xs[2];
            flat.reshape(&[4, 3]).transpose() + 1.0
        },
        &[case("odd").x(ramp(&[4, 3])).x(ramp(&[3])).x(ramp(&[12])).gradient()],
    );
    check(
        "of halves",
        |xs| (xs[0].cast(F16) * 2.0).sum(0).cast(F32),
        &[case("odd").x(ramp(&[31, 20])).within(2e-3)],
    );
    check(
        "what others read too",
        |xs| {
            let scaled = &xs[0] * 2.0;
            scaled.sum(0) + scaled.transpose().slice(&[0, 1], &[None, Some(1)]).reshape(&[-1])
        },
        &[case("by hand").x([[1.0f32, 2.0], [3.0, 4.0]]).y([14.0f32, 20.0])],
    );
    check(
        "transposed before and after",
        |xs| ((&xs[0] + 1.0).transpose() * &xs[1]).tanh().transpose() - 1.0,
        &[case("odd").x(ramp(&[31, 20])).x(ramp(&[20, 31])).gradient()],
    );
}

#[test]
fn columns_with_what_feeds_them_are_one_dispatch() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 50]);
        let spread = ((&x - 1.0).square().mean(0) + 1.0).sqrt();
        let turned = (&x + 1.0).transpose().exp();
        let session = device.session(&g);
        for (fetch, size) in [(spread, 100), (turned, 3)] {
            let feed = [x.feed(ramp(&[size, 50]))];
            let (_, run) = session.run_with(&feed, &fetch, Default::default()).unwrap();
            assert_eq!(run.dispatches, 1, "{}: {run}", device.name);
        }
    }
}

/// What is a row kernel by its shape needs no name for it.
#[test]
fn a_row_kernel_is_one_dispatch() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 100]);
        let scale = g.variable("scale", Init::Constant(1.0), F32, [100]);
        let labels = g.placeholder("labels", F32, dims![None, 100]);
        let rms = &x / (x.square().mean_keep(-1) + 1e-6).sqrt() * &scale;
        let loss = x.cross_entropy_with(&labels);
        let gradient = loss.sum(()).gradients(&[&x])[0].clone().unwrap();
        let cases = [
            ("softmax", x.softmax(-1), 1),
            ("log softmax", x.log_softmax(-1), 1),
            ("log sum exp", x.log_sum_exp(-1), 1),
            ("layer norm", x.layer_norm(&scale, &scale, 1e-5), 1),
            ("RMS norm", rms, 1),
            ("cross entropy", loss, 1),
            ("its gradient", gradient, 1),
        ];
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        for (name, fetch, n) in cases {
            let feeds = [x.feed(ramp(&[3, 100])), labels.feed(ramp(&[3, 100]))];
            let (_, metadata) = session.run_with(&feeds, &fetch, Default::default()).unwrap();
            assert_eq!(metadata.dispatches, n, "{} {name}\n{metadata}", device.name);
        }
    }
}

/// On the CPU grouping changes no bit, NaN included.
#[test]
fn fused_and_not_give_the_same_bits() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None, None]);
    let rows = (&x * 3.0).softmax(-1) + x.layer_norm(1.0, 0.0, 1e-5);
    let all = (&x * 3.0).sin().sum(());
    let odd = |sizes: &[usize; 2]| {
        let mut elements = ramp(sizes).to_vec::<f32>().unwrap();
        elements[1] = f32::NAN;
        HostTensor::from(elements).reshaped(Shape::new(sizes).unwrap()).unwrap()
    };
    for sizes in [[7, 5], [3, 700], [2, 16_384], [1, 70_003], [130, 1029]] {
        let mut bits = [true, false].into_iter().flat_map(|fuse| {
            [1, 3].map(|threads| {
                let options = SessionOptions { fuse, threads, ..SessionOptions::default() };
                let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
                let (rows, all) = session.run(&[x.feed(odd(&sizes))], (&rows, &all)).unwrap();
                let elements = [rows.to_vec::<f32>().unwrap(), all.to_vec::<f32>().unwrap()];
                elements.concat().into_iter().map(f32::to_bits).collect::<Vec<u32>>()
            })
        });
        let first = bits.next().unwrap();
        assert!(bits.all(|other| other == first), "{sizes:?}");
    }
}

/// Few short rows are added up by the kernel that computes them; many, and long ones, are not.
#[test]
fn means_over_a_batch() {
    let batches = |of: &dyn Fn(usize, usize) -> Case| -> Vec<Case> {
        let shapes =
            [(1, 4), (2, 1), (2, 32), (33, 10), (64, 3), (64, 33), (65, 3), (200, 2), (0, 3)];
        shapes.iter().map(|&(rows, inner)| of(rows, inner)).collect()
    };
    let of_one = |rows, inner| case(format!("{rows} of {inner}")).x(ramp(&[rows, inner]));
    check("mean of log-sum-exp", |xs| xs[0].log_sum_exp(1).mean(()), &batches(&of_one));
    check(
        "sums of rows, their greatest and their mean",
        |xs| {
            let sums = xs[0].tanh().sum(1);
            let scaled = &xs[0] * sums.reshape(&[-1, 1]);
            scaled.sum(()) + (&sums * 3.0 - 1.0).max(()) + sums.mean(())
        },
        &batches(&|rows, inner| of_one(rows.max(1), inner)),
    );
    let labelled = |rows: usize, inner: usize| {
        of_one(rows, inner).x(indices(&[rows], inner as i32)).within(1e-4)
    };
    check(
        "mean cross entropy with its gradient",
        |xs| {
            let loss = xs[0].cross_entropy(&xs[1]).mean(());
            let slope = loss.gradients(&[&xs[0]]).remove(0).unwrap();
            slope.square().sum(()) + loss
        },
        &batches(&|rows, inner| labelled(rows.max(1), inner)),
    );
}
