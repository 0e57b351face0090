//! What is known before a run: why kernels are not fewer, and the memory that the run takes.

use convoke::{Apart, prelude::*};
use convoke_tests::{devices, ramp};

#[test]
fn memory_and_gaps_are_known_before_a_run() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 64]);
        let first = g.scope("first", || x.matmul(x.transpose()));
        let second = first.matmul(&x);
        let session = device.session(&g);
        let feed = [x.feed(ramp(&[32, 64]))];
        let explanation = session.explain(&feed, &second).unwrap();
        let [gap] = explanation.gaps() else { panic!("{explanation}") };
        // 32x32 floats.
        assert_eq!((&*gap.node, gap.bytes, &gap.why), ("first/matmul", 4096, &Apart::Kernels));
        let (_, run) = session.run_with(&feed, &second, Default::default()).unwrap();
        let sum = |bytes: fn(&convoke::MemoryUse) -> u64| -> u64 {
            explanation.memory().iter().map(bytes).sum()
        };
        assert_eq!(sum(|m| m.planned_bytes), run.planned_bytes, "{}", device.name);
        assert_eq!(sum(|m| m.live_bytes), run.live_bytes, "{}", device.name);
        // Both products live at once: 4096 bytes, and 32x64 floats.
        assert!(run.live_bytes >= 4096 + 8192, "{}: {run}", device.name);
        let text = explanation.to_string();
        assert!(
            text.contains("first/matmul (4096 bytes): both ends are more than elementwise work"),
            "{text}"
        );
    }
}
