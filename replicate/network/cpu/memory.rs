//! Memory for values, aligned to cache lines. Buffers are reused from one step of a network to the
//! next, because allocating fresh pages for every layer would take a tenth of the time.

use super::simd::lanes::LANES;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Values aligned to cache lines and padded to whole lines, so that no vector of sixteen crosses a
/// line.
pub struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

impl Aligned {
    pub fn zeros(len: usize) -> Aligned {
        Aligned { lines: vec![Line([0.0; LANES]); len.div_ceil(LANES)], len }
    }
}

impl Deref for Aligned {
    type Target = [f32];
    #[inline(always)]
    fn deref(&self) -> &[f32] {
        // SAFETY: lines are sixteen values each without gaps, and there are enough for `len`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Aligned {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Most lines that all threads together keep for reuse: 512 MB, enough for the activations of the
/// three passes of BCM at mini.
const MOST_KEPT: usize = (1 << 29) / size_of::<Line>();

/// Lines that all threads keep.
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Free buffers of a thread by their number of lines.
#[derive(Default)]
struct Free(BTreeMap<usize, Vec<Vec<Line>>>);

impl Drop for Free {
    fn drop(&mut self) {
        let lines: usize = self.0.iter().map(|(lines, buffers)| lines * buffers.len()).sum();
        KEPT.fetch_sub(lines, Ordering::Relaxed);
    }
}

thread_local! {
    static FREE: RefCell<Free> = RefCell::default();
}

/// Values whose memory returns to the thread's pool when they are dropped.
pub struct Buffer(Aligned);

impl Buffer {
    /// `len` arbitrary values, for callers that write all of them.
    pub fn uninit(len: usize) -> Buffer {
        let lines = len.div_ceil(LANES);
        let kept = FREE.with_borrow_mut(|free| {
            // The smallest buffer that is large enough, and at most twice as large.
            let found = *free.0.range(lines..=2 * lines).next()?.0;
            let buffers = free.0.get_mut(&found)?;
            let buffer = buffers.pop();
            if buffers.is_empty() {
                free.0.remove(&found);
            }
            KEPT.fetch_sub(found, Ordering::Relaxed);
            buffer
        });
        Buffer(kept.map_or_else(|| Aligned::zeros(len), |lines| Aligned { lines, len }))
    }

    pub fn zeros(len: usize) -> Buffer {
        let mut buffer = Buffer::uninit(len);
        buffer.fill(0.0);
        buffer
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(values: Vec<f32>) -> Buffer {
        let mut buffer = Buffer::uninit(values.len());
        buffer.copy_from_slice(&values);
        buffer
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.0.lines);
        // At the end of a thread its pool may be gone already.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if lines.is_empty() {
                return;
            }
            let mut kept = KEPT.fetch_add(lines.len(), Ordering::Relaxed) + lines.len();
            free.0.entry(lines.len()).or_default().push(lines);
            // Drop the largest buffers first: they are the least used and free the most room.
            while kept > MOST_KEPT {
                let Some(mut largest) = free.0.last_entry() else { return };
                let gone = largest.get_mut().pop().map_or(0, |lines| lines.len());
                if largest.get().is_empty() {
                    largest.remove();
                }
                kept = KEPT.fetch_sub(gone, Ordering::Relaxed) - gone;
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [f32];
    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}
