//! Counts what each thread has allocated, to hold a reader to its bound. For test
//! files that name it with `#[path]`: it becomes the allocator of the whole program.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

impl Counting {
    fn add(bytes: usize) {
        // A thread that is ending has no counters any more.
        _ = NOW.try_with(|now| {
            now.set(now.get() + bytes);
            PEAK.with(|peak| peak.set(peak.get().max(now.get())));
        });
    }

    fn remove(bytes: usize) {
        _ = NOW.try_with(|now| now.set(now.get().saturating_sub(bytes)));
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Counting::add(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Counting::remove(layout.size());
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The result of `f` and the bytes that it held at its worst, beyond what was
/// held before.
pub fn peak_of<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.get();
    PEAK.set(before);
    let result = f();
    (result, PEAK.get() - before)
}
