//! Deadlines, and submissions in any order.

use std::time::{Duration, Instant};

use super::*;

#[test]
fn a_passed_deadline_stops_the_work() {
    let gpu = noop();
    let buffer = gpu.buffer("b", 16, BufferUse::Storage).unwrap();
    let uploads = [Upload { bytes: &[1; 16], dst: &buffer, offset: 0 }];
    let deadline = Some(Instant::now() - Duration::from_secs(1));
    let work = Submission { uploads: &uploads, deadline, ..Submission::default() };
    let error = gpu.run(&work).unwrap_err();
    assert!(matches!(error, GpuError::Timeout { submitted: false, .. }), "{error}");
    let deadline = Some(Instant::now() + Duration::from_secs(60));
    gpu.run(&Submission { deadline, ..work }).unwrap();
    assert_eq!(gpu.counters().submissions, 1);
}

#[test]
fn submissions_can_be_waited_for_in_any_order_or_not_at_all() {
    let gpu = noop();
    let buffer = gpu.buffer("b", 4, BufferUse::Storage).unwrap();
    let submit = |i: u8| {
        let uploads = [Upload { bytes: &[i; 4], dst: &buffer, offset: 0 }];
        let downloads = [Download { src: &buffer, offset: 0, size: 4 }];
        let work = Submission { uploads: &uploads, downloads: &downloads, ..Submission::default() };
        gpu.submit(&work).unwrap()
    };
    let mut pending: Vec<(u8, Pending)> = (0..100).map(|i| (i, submit(i))).collect();
    pending.truncate(90);
    for (i, pending) in pending.into_iter().rev() {
        assert_eq!(*pending.wait().unwrap().data[0], [i; 4]);
    }
    let last = submit(7);
    drop((gpu, buffer));
    assert_eq!(*last.wait().unwrap().data[0], [7; 4]);
}
