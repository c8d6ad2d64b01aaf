//! Memory that one step of a network leaves to the next: fresh pages for every
//! layer would cost a tenth of the time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

/// Most bytes that a thread keeps for later.
const KEPT: usize = 1 << 28;

#[derive(Default)]
struct Free {
    buffers: BTreeMap<usize, Vec<Vec<f32>>>,
    bytes: usize,
}

thread_local! {
    static FREE: RefCell<Free> = RefCell::default();
}

/// Values that go back to the thread's pool when they are dropped.
pub struct Buffer {
    /// May be longer than what was asked for.
    values: Vec<f32>,
    len: usize,
}

impl Buffer {
    /// `n` values: whatever was there before.
    pub fn stale(n: usize) -> Buffer {
        let kept = FREE.with_borrow_mut(|free| {
            // The smallest that is enough and not a waste.
            let length = *free.buffers.range(n..=2 * n).next()?.0;
            let buffers = free.buffers.get_mut(&length)?;
            let found = buffers.pop();
            if buffers.is_empty() {
                free.buffers.remove(&length);
            }
            free.bytes -= 4 * length;
            found
        });
        Buffer { values: kept.unwrap_or_else(|| vec![0f32; n]), len: n }
    }

    pub fn zeros(n: usize) -> Buffer {
        let mut buffer = Buffer::stale(n);
        buffer.fill(0.0);
        buffer
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(values: Vec<f32>) -> Buffer {
        Buffer { len: values.len(), values }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        // At the end of a thread its pool may be gone already.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if !values.is_empty() && free.bytes + 4 * values.len() <= KEPT {
                free.bytes += 4 * values.len();
                free.buffers.entry(values.len()).or_default().push(values);
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}
