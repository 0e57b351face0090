//! Random operations: equal bits on every device, new draws in each run, fixed by seeds.

use convoke::philox::philox;
use convoke::prelude::*;
use convoke_tests::{compare, devices};

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
