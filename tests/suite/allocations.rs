//! How often a thread of this binary allocates, and what may not; what it gives back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use convoke::prelude::*;
use convoke::{SessionOptions, Shape, TensorViewMut};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
    static FREED: Cell<u64> = const { Cell::new(0) };
}

fn note(n_bytes: usize) {
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
    let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + n_bytes as u64));
}

fn note_freed(n_bytes: usize) {
    let _ = FREED.try_with(|bytes| bytes.set(bytes.get() + n_bytes as u64));
}

/// How many bytes more this thread has allocated than freed.
fn held() -> i64 {
    BYTES.get() as i64 - FREED.get() as i64
}

/// The system's, and counts.
struct Counting;

#[expect(unsafe_code, reason = "an allocator is unsafe to write; this one only passes calls on")]
// SAFETY: All calls go to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: The caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note_freed(layout.size());
        // SAFETY: The caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        note_freed(layout.size());
        // SAFETY: The caller's promises are passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `f` allocates.
fn allocations(f: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    f();
    COUNT.get() - before
}

#[test]
fn a_call_into_memory_allocates_nothing() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![3]);
    let v = g.variable("v", Init::Constant(1.0), F32, [3]);
    let y = (&x * 2.0 + &v).tanh();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let callable = session.callable(&[&x], &y).unwrap();
    let (shape, mut memory) = (Shape::new(&[3]).unwrap(), [0u8; 12]);
    let xs = [1.0f32, 2.0, 3.0];
    let mut call = || {
        let view = TensorViewMut::new(F32, &shape, &mut memory).unwrap();
        callable.call_into([&xs], &mut [view]).unwrap();
    };
    (0..3).for_each(|_| call());
    assert_eq!(allocations(|| (0..100).for_each(|_| call())), 0);
    // Numbers that take the placeholder's dtype.
    let a = g.placeholder("a", F32, dims![]);
    let sum = session.callable(&[&a, &x], &a + &x).unwrap();
    let mut add = || {
        let view = TensorViewMut::new(F32, &shape, &mut memory).unwrap();
        sum.call_into((1.5, &xs), &mut [view]).unwrap();
    };
    (0..3).for_each(|_| add());
    assert_eq!(allocations(|| (0..100).for_each(|_| add())), 0);
    assert_eq!(memory, [2.5f32, 3.5, 4.5].map(f32::to_ne_bytes).concat()[..]);
}

/// As often as to make by hand what comes back: once for a tensor of few bytes, and twice for one of more, its elements and
/// what its handles share.
#[test]
fn a_call_allocates_what_is_fetched_and_nothing_else() {
    for (n, times) in [(1, 1), (4, 1), (5, 2), (5000, 2)] {
        let (shape, bytes) = (Shape::new(&[n]).unwrap(), vec![0; 4 * n]);
        let copy = || drop(HostTensor::copy_of(F32, shape.clone(), &bytes).unwrap());
        assert_eq!(allocations(copy), times, "{n} elements");
    }
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let (a, b) = (g.placeholder("a", F32, dims![]), g.placeholder("b", F32, dims![]));
    let v = g.variable("v", Init::Constant(1.0), F32, []);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let of = |call: &dyn Fn()| {
        (0..4).for_each(|_| call());
        allocations(|| (0..100).for_each(|_| call()))
    };
    let add = session.callable(&[&a, &b], &a + &b).unwrap();
    assert_eq!(of(&|| drop(add.call((1.0f32, 2.0f32)).unwrap())), 100);
    let both = session.callable(&[&a], (&a + &v, &a * 2.0)).unwrap();
    assert_eq!(of(&|| drop(both.call([2.0f32]).unwrap())), 200);
    let twice = session.callable(&[&x], &x * 2.0).unwrap();
    for (n, each) in [(1, 1), (4, 1), (5, 2), (100, 2), (5000, 2)] {
        let xs = vec![1.0f32; n];
        assert_eq!(of(&|| drop(twice.call([&xs]).unwrap())), 100 * each, "{n} elements");
    }
}

/// A step of a partial run that has been made before costs the same after however many others.
#[test]
fn a_step_allocates_as_much_after_many_steps_as_after_few() {
    const STEPS: usize = 256;
    let g = Graph::new();
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    let mut sum = g.constant(1.0f32);
    for _ in 0..STEPS {
        inputs.push(g.placeholder("x", F32, dims![]));
        sum = sum + &inputs[inputs.len() - 1];
        outputs.push(sum.clone());
    }
    let options = SessionOptions { plans: STEPS, ..SessionOptions::default() };
    let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
    let feeds: Vec<&Tensor> = inputs.iter().collect();
    let mut spent = Vec::new();
    for _ in 0..2 {
        let mut run = session.partial_run(&feeds, &outputs).unwrap();
        spent = (0..STEPS)
            .map(|i| {
                let before = BYTES.get();
                let n = allocations(|| drop(run.run(&[inputs[i].feed(1.0)], &outputs[i]).unwrap()));
                (n, BYTES.get() - before)
            })
            .collect();
        assert!(run.is_done());
    }
    // Sets of what was fed and fetched grow at times.
    let of = |steps: &[(u64, u64)]| {
        let mut steps = steps.to_vec();
        steps.sort_unstable();
        steps[steps.len() / 2]
    };
    let (few, many) = (of(&spent[8..40]), of(&spent[STEPS - 40..STEPS - 8]));
    assert_eq!(few, many, "allocations and bytes of a step, after few and after many");
}

/// Variables, what queues and tables hold, and the memory of programs, which a callable has still.
#[test]
fn a_session_gives_the_hosts_memory_back() {
    const N: usize = 1 << 20;
    const BYTES: i64 = 4 * N as i64;
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, F32, [N]);
    let (q, table) = (g.fifo_queue("q", 1, [(F32, dims![N])]), g.mutable_table("t", I64, F32));
    let keys = g.placeholder("keys", I64, dims![None]);
    let (put, insert) = (q.enqueue(&[&(v.value() * 2.0)]), table.insert(&keys, v.value()));
    let grow = (v.assign_add(1.0) * 3.0).sum(());
    let branch = g.cond(&grow.less(1.0f32), || v.value().sum(()), || v.value().max(()));
    let all: Vec<i64> = (0..N as i64).collect();
    for is_closed in [true, false] {
        let before = held();
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let callables = [&grow, &branch].map(|y| session.callable(&[], y).unwrap());
        callables.iter().for_each(|callable| drop(callable.call(()).unwrap()));
        session.run(&[keys.feed(&all)], (&put, &insert)).unwrap();
        assert!(held() > before + 5 * BYTES, "{} of {before}", held());
        match is_closed {
            true => session.close(),
            false => drop((session, callables)),
        }
        let left = held() - before;
        assert!(left < BYTES / 4, "{left}");
    }
}
