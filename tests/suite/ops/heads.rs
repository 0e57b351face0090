//! Elementwise work on what products and convolutions load, done where it is loaded.

use convoke::prelude::*;
use convoke::{Conv2d, ImageLayout, Padding, Shape};
use convoke_tests::{case, check, devices, indices, ramp};

#[test]
fn products() {
    check(
        "of what is scaled, shifted and cast",
        |xs| ((&xs[0] * 0.5) - 1.0).matmul(xs[1].cast(F32)),
        &[
            // [[0, 1]] times [[3, 4], [5, 6]].
            case("by hand").x([[2.0f32, 4.0]]).x([[3i32, 4], [5, 6]]).y([[5.0f32, 6.0]]),
            case("one").x(ramp(&[1, 1])).x([[3i32]]),
            case("no depth").x(ramp(&[2, 0])).x(indices(&[0, 3], 1)),
            case("no rows").x(ramp(&[0, 2])).x([[3i32], [4]]),
        ],
    );
    let layer = |xs: &[Tensor]| {
        // Columns are scaled by a vector, and weights masked.
        let x = (&xs[0] * &xs[1]).relu();
        (x.matmul(&xs[2] * xs[3].greater(0.0).cast(F32)) + &xs[4]).tanh()
    };
    check(
        "scaled by columns, masked, with a tail",
        layer,
        &[
            case("odd")
                .x(ramp(&[67, 33]))
                .x(ramp(&[33]))
                .x(ramp(&[33, 29]))
                .x(ramp(&[33, 1]))
                .x(ramp(&[29]))
                .within(1e-4),
            case("thin, with a long sum")
                .x(ramp(&[5, 2000]))
                .x(ramp(&[2000]))
                .x(ramp(&[2000, 3]))
                .x(ramp(&[2000, 1]))
                .x(ramp(&[3]))
                .within(1e-4),
        ],
    );
    check(
        "turned, of a batch that shares its right side",
        |xs| (&xs[0] + 1.0).transpose().matmul((&xs[1] * 2.0).expand_dims(0)),
        &[
            case("odd").x(ramp(&[3, 5, 7])).x(ramp(&[5, 6])).within(1e-4),
            case("one").x(ramp(&[1, 1, 1])).x(ramp(&[1, 1])),
        ],
    );
    check(
        "of integers",
        |xs| (&xs[0] + 1).matmul(&xs[1] * 2),
        &[
            // [[2, 3]] times [[6], [8]].
            case("by hand").x([[1i32, 2]]).x([[3i32], [4]]).y([[36i32]]),
        ],
    );
    check(
        "of f16 weights",
        |xs| xs[0].matmul(xs[1].cast(F16).cast(F32)),
        &[case("odd").x(ramp(&[9, 17])).x(ramp(&[17, 5])).within(1e-4)],
    );
    check(
        "of more than a cache holds",
        |xs| (&xs[0] * 0.5 + 0.25).matmul(&xs[1]),
        &[case("odd").x(ramp(&[1031, 517])).x(ramp(&[517, 129])).within(1e-3)],
    );
}

#[test]
fn convolutions() {
    for layout in [ImageLayout::Nchw, ImageLayout::Nhwc] {
        let conv = Conv2d { padding: Padding::Same, layout, ..Conv2d::default() };
        let (images, filters) = match layout {
            ImageLayout::Nchw => ([2, 3, 7, 5], [4, 3, 3, 3]),
            _ => ([2, 7, 5, 3], [3, 3, 3, 4]),
        };
        check(
            "of images that are scaled and shifted, with filters that are masked, and a tail",
            move |xs| {
                (&xs[0] * 0.5 + 1.0).conv2d(&xs[1] * xs[1].greater(0.0).cast(F32), conv).relu()
            },
            &[case("odd").x(ramp(&images)).x(ramp(&filters)).within(1e-4)],
        );
        check(
            "its gradients, of what is loaded",
            move |xs| {
                let y = (&xs[0] * 0.5 + 1.0).conv2d(&xs[1] * 2.0, conv);
                let both = (&y * &xs[2]).sum(()).gradients(&[&xs[0], &xs[1]]);
                let [Some(dx), Some(dw)] = &both[..] else { panic!("both are differentiable") };
                dx.sum(()) + dw.square().sum(())
            },
            &[case("odd")
                .x(ramp(&images))
                .x(ramp(&filters))
                .x(ramp(&match layout {
                    ImageLayout::Nchw => [2, 4, 7, 5],
                    _ => [2, 7, 5, 4],
                }))
                .within(1e-3)],
        );
    }
}

/// A product or convolution whose operands are cast and scaled is one dispatch, and no more bytes are read than the
/// operands have.
#[test]
fn what_has_heads_is_one_dispatch() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", I32, dims![64, 32]);
        let w = g.variable("w", Init::Constant(1.0), F32, [32, 16]);
        let y = (x.cast(F32) * 0.5).matmul(w.value() * 2.0) + 1.0;
        let images = x.reshape(&[2, 2, 16, 32]).cast(F32) * 0.5;
        let filters = g.variable("filters", Init::Constant(1.0), F32, [3, 2, 1, 1]);
        let z = images.conv2d(filters.value() * 2.0, Conv2d::default()) + 1.0;
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let threes = HostTensor::new(&[64, 32], vec![3i32; 64 * 32]).unwrap();
        let run = |y: &Tensor| session.run_with(&[x.feed(&threes)], y, Default::default()).unwrap();
        // 32 times 1.5 * 2, and 1; of two channels, 2 times 1.5 * 2, and 1.
        let n_bytes = [4 * (64 * 32 + 32 * 16 + 64 * 16), 4 * (64 * 32 + 6 + 2 * 3 * 16 * 32)];
        for ((y, value), n_bytes) in [(&y, 97.0f32), (&z, 7.0)].into_iter().zip(n_bytes) {
            let (y, metadata) = run(y);
            assert_eq!(metadata.dispatches, 1, "{}\n{metadata}", device.name);
            assert!(y.to_vec::<f32>().unwrap().iter().all(|&x| x == value), "{}", device.name);
            assert_eq!(metadata.kernel_bytes, n_bytes, "{}\n{metadata}", device.name);
        }
    }
}

/// What is made on the host for a product counts in its budget.
#[test]
fn heads_are_within_the_budget_of_the_host() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![1024, 256]);
    let y = (&x * 0.5).matmul(g.constant(ramp(&[256, 1])));
    let run = |host_budget_bytes| {
        let options = SessionOptions { host_budget_bytes, ..SessionOptions::default() };
        let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
        session.run(&[x.feed(ramp(&[1024, 256]))], &y)
    };
    // The operand is 1 MiB, and the result 4 KiB.
    let error = run((1 << 20) + 1024).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    run((1 << 20) + 8192).unwrap();
}

/// Of what is made and finished block by block, each thread has a block: two have one of 1 MiB each here.
#[test]
fn blocks_are_within_the_budget_of_the_host() {
    let g = Graph::new();
    let ones = |name: &str, sizes: [usize; 2]| g.variable(name, Init::Constant(1.0), F32, sizes);
    let zeros = |sizes: [usize; 2]| HostTensor::zeros(F32, Shape::new(&sizes).unwrap()).unwrap();
    let (v, w) = (ones("v", [2048, 64]), ones("w", [64, 512]));
    let x = g.placeholder("x", F32, dims![1024, 2048]);
    let z = g.placeholder("z", F32, dims![2048, 64]);
    // The operand is 8 MiB, and the result 256 KiB; a result of 4 MiB goes through a tail.
    let made = ((&x * 0.5).matmul(v.value()), x.feed(zeros([1024, 2048])));
    let finished = (z.matmul(w.value()).tanh(), z.feed(zeros([2048, 64])));
    // An operand of 16 MiB, of whose product next to nothing comes, is made whole.
    let t = g.placeholder("t", F32, dims![16, 1 << 18]);
    let whole = ((&t * 0.5).matmul(g.constant(zeros([1 << 18, 8]))), t.feed(zeros([16, 1 << 18])));
    const MIB: u64 = 1 << 20;
    for ((y, feed), needed) in
        [(&made, 2 * MIB + MIB / 4), (&finished, 6 * MIB), (&whole, 16 * MIB + 512)]
    {
        let run = |host_budget_bytes| {
            let options =
                SessionOptions { host_budget_bytes, threads: 2, ..SessionOptions::default() };
            let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
            session.run(&[], g.initializers()).unwrap();
            session.run(std::slice::from_ref(feed), y)
        };
        let error = run(needed - 4096).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
        run(needed + 4096).unwrap();
    }
}
