//! Random operations: equal bits on every device, new draws in each run, fixed by seeds.

use convoke::philox::philox;
use convoke::prelude::*;
use convoke_tests::{TestDevice, compare, devices};

/// Known answers: Random123's `kat_vectors`, philox4x32 with 10 rounds.
#[test]
fn philox_known_answers() {
    assert_eq!(philox(0, [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(
        philox(u64::MAX, [u32::MAX; 4]),
        [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
    );
    let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
    let key = 0x299f_31d0_a409_3822;
    assert_eq!(philox(key, counter), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
}

#[test]
fn draws_agree_on_all_devices_and_go_on() {
    let mut first: Option<[HostTensor; 6]> = None;
    for device in devices() {
        let g = Graph::with_seed(5);
        let u = g.random_uniform(&[1001], F32, 1);
        let n = g.random_normal(&[1001], F32, 2);
        let t = g.truncated_normal(&[1001], F32, 3);
        let session = device.session(&g);
        let [a, b, c] = session.run(&[], [&u, &n, &t]).unwrap();
        let [d, e, f] = session.run(&[], [&u, &n, &t]).unwrap();
        assert_ne!(a, d, "{}: a second run draws anew", device.name);
        assert!(c.as_slice::<f32>().unwrap().iter().all(|x| x.abs() <= 2.0));
        let own = [a, b, c, d, e, f];
        let truth = first.get_or_insert_with(|| own.clone());
        for (i, (own, truth)) in own.iter().zip(truth.iter()).enumerate() {
            let uniform = i % 3 == 0;
            compare(&device.name, own, truth, Some(if uniform { 0.0 } else { 1e-4 }));
        }
    }
}

#[test]
fn uniforms_fill_the_unit_interval_evenly() {
    let g = Graph::with_seed(9);
    let u = g.random_uniform(&[100_000], F32, 1);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let u = session.run(&[], &u).unwrap().to_f64s().unwrap();
    let mean = u.iter().sum::<f64>() / u.len() as f64;
    // Five deviations of the mean of 100,000 uniforms.
    assert!((mean - 0.5).abs() < 5.0 * (1.0f64 / 12.0 / 1e5).sqrt(), "{mean}");
    assert!(u.iter().all(|x| (0.0..1.0).contains(x)));
}

/// Draws of an operation and of initial values with a seed, in a graph with one.
fn draws(device: &TestDevice, graph_seed: u64, seed: u64) -> [Vec<f32>; 5] {
    let g = Graph::with_seed(graph_seed);
    let [glorot, he] = [("glorot", Init::glorot(seed)), ("he", Init::he(seed))]
        .map(|(name, init)| g.variable(name, init, F32, [16, 8]).value().clone());
    let tensors = [
        g.random_uniform(&[1001], F32, seed),
        g.random_normal(&[1001], F32, seed),
        g.truncated_normal(&[1001], F32, seed),
        glorot,
        he,
    ];
    let session = device.session(&g);
    session.run(&[], g.initializers()).unwrap();
    session.run(&[], &tensors).unwrap().map(|x| x.to_vec::<f32>().unwrap())
}

#[test]
fn the_least_and_the_greatest_seed_are_as_good_as_others() {
    for device in devices() {
        let seeds = [(0, 0), (0, u64::MAX), (u64::MAX, 0), (u64::MAX, u64::MAX)];
        let all = seeds.map(|(graph_seed, seed)| draws(device, graph_seed, seed));
        for (own, seeds) in all.iter().zip(seeds) {
            let [uniform, normal, truncated, glorot, he] = own;
            let what = format!("{seeds:?} on {}", device.name);
            assert!(uniform.iter().all(|x| (0.0..1.0).contains(x)), "{what}");
            // A normal number goes beyond 10 once in 10^23 times.
            assert!(normal.iter().all(|x| x.abs() < 10.0), "{what}");
            assert!(truncated.iter().all(|x| x.abs() <= 2.0), "{what}");
            // sqrt(6 / (16 + 8)), and twice sqrt(2 / 16).
            assert!(glorot.iter().all(|x| x.abs() <= 0.5), "{what}");
            assert!(he.iter().all(|x| x.abs() < 0.7072), "{what}");
            // Five deviations of the means of 1001 uniforms and normals: sqrt(1 / 12 / 1001) and sqrt(1 / 1001).
            let mean = |xs: &[f32]| xs.iter().map(|&x| f64::from(x)).sum::<f64>() / xs.len() as f64;
            assert!((mean(uniform) - 0.5).abs() < 0.0457, "{what}: {}", mean(uniform));
            assert!(mean(normal).abs() < 0.1581, "{what}: {}", mean(normal));
        }
        for (i, one) in all.iter().enumerate() {
            for other in &all[..i] {
                let differ = one.iter().zip(other).all(|(one, other)| one != other);
                assert!(differ, "{}", device.name);
            }
        }
    }
}
