//! How often a thread of this binary allocates, and what may not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use convoke::prelude::*;
use convoke::{Shape, TensorViewMut};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// The system's, and counts.
struct Counting;

#[expect(unsafe_code, reason = "an allocator is unsafe to write; this one only passes calls on")]
// SAFETY: All calls go to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: The caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: The caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
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
    // What comes back is a tensor, a list of them, and their places.
    let call = || drop(callable.call([&xs]).unwrap());
    (0..3).for_each(|_| call());
    let n = allocations(|| (0..100).for_each(|_| call()));
    assert!(n <= 400, "{n} allocations in 100 calls");
}
