//! Parts of one GPU: what they share, and what each has of its own.

use std::sync::Arc;

use super::losses::all_calls_answer_lost;
use super::*;

fn parts() -> [Gpu; 2] {
    let whole = noop();
    [300_000, 1 << 20].map(|bytes| whole.part(Some(bytes)))
}

fn copy<'a>(src: &'a Buffer, dst: &'a Buffer, size: u64) -> BufferCopy<'a> {
    BufferCopy { src, src_offset: 4, dst, dst_offset: 8, size }
}

#[test]
fn a_part_copies_from_another_and_counts_that_itself() {
    let [first, second] = parts();
    assert!(first.is_beside(&second) && !first.same(&second) && !first.is_beside(&noop()));
    let from = first.buffer("from", 1000, BufferUse::Storage).unwrap();
    let to = second.buffer("to", 1000, BufferUse::Storage).unwrap();
    let bytes = pattern(1000);
    round_trip(&first, &from, 0, &bytes);
    let before = (first.counters(), second.counters());
    // The source goes while the copy is on its way.
    let uploads = [Upload { bytes: &[7; 16], dst: &to, offset: 0 }];
    let downloads = [Download { src: &to, offset: 0, size: 508 }];
    let work = Submission {
        uploads: &uploads,
        copies: &[copy(&from, &to, 500)],
        downloads: &downloads,
        ..Submission::default()
    };
    let pending = second.submit(&work).unwrap();
    drop(from);
    let output = pending.wait().unwrap();
    assert_eq!((&output.data[0][..8], &output.data[0][8..]), (&[7; 8][..], &bytes[4..504]));
    assert_eq!((output.copies, output.submissions), (1, 1));
    assert_eq!(first.counters().submissions, before.0.submissions);
    assert_eq!(second.counters().copies, before.1.copies + 1);
    assert_eq!(first.counters().bytes_alive, before.0.bytes_alive - 1008);
    let recorded = first.buffer("from", 16, BufferUse::Storage).unwrap();
    let [src, dst] = [recorded, to];
    let command = Command::Copy { src, src_offset: 0, dst, dst_offset: 0, size: 16 };
    assert_eq!(second.recording(vec![command.clone()]).unwrap().n_copies(), 1);
    // What is written is the part's own, and so is all that is bound or sent.
    assert_eq!(first.recording(vec![command]).unwrap_err().kind(), GpuErrorKind::Validation);
    assert_eq!(first.stray_error(), None);
}

#[test]
fn a_part_reads_nothing_of_another_but_by_copies() {
    let [first, second] = parts();
    let own = first.buffer("own", 64, BufferUse::Storage).unwrap();
    let [other, foreign] =
        [&second, &noop()].map(|gpu| gpu.buffer("b", 64, BufferUse::Storage).unwrap());
    let refused = |work: &Submission<'_>| {
        assert_eq!(first.run(work).unwrap_err().kind(), GpuErrorKind::Validation);
    };
    refused(&Submission { copies: &[copy(&foreign, &own, 8)], ..Submission::default() });
    refused(&Submission { copies: &[copy(&own, &other, 8)], ..Submission::default() });
    refused(&Submission { copies: &[copy(&other, &own, 64)], ..Submission::default() });
    let upload = Upload { bytes: &[1; 4], dst: &other, offset: 0 };
    refused(&Submission { uploads: &[upload], ..Submission::default() });
    let download = Download { src: &other, offset: 0, size: 4 };
    refused(&Submission { downloads: &[download], ..Submission::default() });
    first.run(&Submission { copies: &[copy(&other, &own, 8)], ..Submission::default() }).unwrap();
}

#[test]
fn each_part_has_its_own_budget_and_staging_memory() {
    let [first, second] = parts();
    let full = first.buffer("full", 300_000 - 65_536, BufferUse::Storage).unwrap();
    let error = first.buffer("more", 100_000, BufferUse::Storage).unwrap_err();
    let (in_use, budget) = (300_000 - 65_536, Some(300_000));
    assert_eq!(error, GpuError::OutOfMemory { asked: 100_000, in_use, budget });
    let large = second.buffer("large", 900_000, BufferUse::Storage).unwrap();
    assert_eq!(second.counters().bytes_alive, 900_000);
    // Idle staging memory of one part makes no room in another.
    let upload = Upload { bytes: &[1; 4], dst: &large, offset: 0 };
    second.run(&Submission { uploads: &[upload], ..Submission::default() }).unwrap();
    let upload = Upload { bytes: &[1; 4], dst: &full, offset: 0 };
    first.run(&Submission { uploads: &[upload], ..Submission::default() }).unwrap();
    assert_eq!(first.free_bytes(), Some(65_536));
    assert_eq!(second.free_bytes(), Some((1 << 20) - 900_000));
    drop(large);
    assert_eq!(second.free_bytes(), Some(1 << 20));
    assert_eq!(first.counters().bytes_alive, 300_000);
}

#[test]
fn a_pipeline_is_made_once_for_all_parts() {
    let [first, second] = parts();
    let [one, other] = [&first, &second].map(|gpu| gpu.pipeline(&desc(DOUBLE, false)).unwrap());
    assert!(Arc::ptr_eq(&one, &other));
    let made = [&first, &second].map(|gpu| gpu.counters().pipelines_created);
    assert_eq!(made, [1, 0]);
    Double::new(&second, 4, false).run(&[1.0; 4], Timestamps::None).unwrap();
}

#[test]
fn all_parts_are_lost_together() {
    let ways: [fn(&Gpu); 3] = [
        |gpu| gpu.destroy(),
        |gpu| gpu.notify_lost("the app said so"),
        |gpu| gpu.device().destroy(),
    ];
    for lose in ways {
        let [first, second] = parts();
        let buffer = second.buffer("b", 16, BufferUse::Storage).unwrap();
        all_calls_answer_lost(&first, lose);
        let upload = Upload { bytes: &[1; 4], dst: &buffer, offset: 0 };
        let work = Submission { uploads: &[upload], ..Submission::default() };
        assert_eq!(second.run(&work).unwrap_err().kind(), GpuErrorKind::Lost);
        assert_eq!(second.lost().unwrap().kind(), GpuErrorKind::Lost);
    }
}

#[test]
fn the_thread_ends_with_the_last_part() {
    let [first, second] = parts();
    let driver = Arc::downgrade(&first.0.owner);
    drop(first);
    second.buffer("b", 16, BufferUse::Storage).unwrap();
    assert!(driver.upgrade().is_some());
    drop(second);
    assert!(driver.upgrade().is_none());
}
