//! The memory plan: reuse, levels, and the rule that no step writes a slab that it reads.

use crate::segment::memory::{Plan, Slot, Uses, plan};

fn check(slots: &[Slot], uses: &[Uses], plan: &Plan) {
    for step in uses {
        for &write in &step.writes {
            for &read in &step.reads {
                assert_ne!(plan.spots[write].slab, plan.spots[read].slab, "{write} {read}\n{plan}");
            }
        }
    }
    for (i, a) in slots.iter().enumerate() {
        let (at, size) = (plan.spots[i], a.n_bytes);
        assert!(at.offset.is_multiple_of(256) && at.offset + size <= plan.slabs[at.slab], "{plan}");
        for (j, b) in slots.iter().enumerate().skip(i + 1) {
            let other = plan.spots[j];
            let live = a.first <= b.last && b.first <= a.last;
            let apart = at.offset + size <= other.offset || other.offset + b.n_bytes <= at.offset;
            assert!(!live || at.slab != other.slab || apart, "{i} {j}\n{plan}");
        }
    }
}

fn uses(level: u32, reads: &[usize], writes: &[usize]) -> Uses {
    Uses { level, reads: reads.to_vec(), writes: writes.to_vec() }
}

#[test]
fn a_chain_needs_two_slabs() {
    let n = 20;
    let slot = |i| Slot { n_bytes: 1000, first: i, last: i + 1 };
    let slots: Vec<Slot> = (1..=n).map(slot).collect();
    let steps: Vec<Uses> = (0..n as usize)
        .map(|i| uses(i as u32 + 1, if i == 0 { vec![] } else { vec![i - 1] }.as_slice(), &[i]))
        .collect();
    let plan = plan(&slots, &steps, 256, 1 << 30);
    check(&slots, &steps, &plan);
    assert_eq!(plan.slabs, [1024, 1024], "{plan}");
}

#[test]
fn a_level_writes_different_slabs() {
    let mut slots = vec![Slot { n_bytes: 100, first: 1, last: 2 }];
    slots.extend((0..4).map(|_| Slot { n_bytes: 100, first: 2, last: 3 }));
    slots.push(Slot { n_bytes: 100, first: 3, last: 9 });
    let mut steps = vec![uses(1, &[], &[0])];
    steps.extend((1..5).map(|i| uses(2, &[0], &[i])));
    steps.push(uses(3, &[1, 2, 3, 4], &[5]));
    let plan = plan(&slots, &steps, 256, 1 << 30);
    check(&slots, &steps, &plan);
    let text = "slab 0: 256 bytes\n  0: 100 bytes at 0, levels 1 to 2\n  5: 100 bytes at 0, levels 3 to 9\n\
                slab 1: 256 bytes\n  1: 100 bytes at 0, levels 2 to 3\n\
                slab 2: 256 bytes\n  2: 100 bytes at 0, levels 2 to 3\n\
                slab 3: 256 bytes\n  3: 100 bytes at 0, levels 2 to 3\n\
                slab 4: 256 bytes\n  4: 100 bytes at 0, levels 2 to 3\n";
    assert_eq!(plan.to_string(), text);
}

#[test]
fn random_schedules_obey_the_rules() {
    let mut state = 12345u64;
    let mut next = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    };
    for _ in 0..300 {
        let n = 1 + next(40);
        let mut slots: Vec<Slot> = Vec::new();
        let mut steps: Vec<Uses> = Vec::new();
        let mut level = 1;
        let mut ready = 0;
        for _ in 0..n {
            if next(3) == 0 {
                level += 1;
                ready = slots.len();
            }
            let reads: Vec<usize> =
                (0..next(5)).filter(|_| ready > 0).map(|_| next(ready)).collect();
            for &read in &reads {
                slots[read].last = slots[read].last.max(level);
            }
            let writes: Vec<usize> = (0..1 + next(2)).map(|k| slots.len() + k).collect();
            for _ in &writes {
                slots.push(Slot { n_bytes: 1 + next(5000) as u64, first: level, last: level });
            }
            steps.push(Uses { level, reads, writes });
        }
        let plan = plan(&slots, &steps, 256, 8192);
        check(&slots, &steps, &plan);
    }
}
