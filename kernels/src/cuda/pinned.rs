//! Host memory that the card copies from and to without a stop in between.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::{ptr, slice};

use cudarc::driver::sys;

use super::context::{Cuda, check};
use crate::error::KernelError;

/// Plain numbers that may lie in pinned memory: every bit pattern is a value.
pub trait Number: Copy {}
impl Number for i32 {}
impl Number for u16 {}
impl Number for f32 {}
impl Number for f64 {}

/// A slice in pinned memory.
#[derive(Debug)]
pub struct Pinned<T: Number> {
    start: *mut T,
    len: usize,
    of: PhantomData<T>,
}

// SAFETY: it owns its memory, which any thread may read, write and free.
unsafe impl<T: Number + Send> Send for Pinned<T> {}

impl<T: Number> Pinned<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// The driver gives no memory.
    pub fn zeros(cuda: &Cuda, len: usize) -> Result<Pinned<T>, KernelError> {
        cuda.enter()?;
        let mut start = ptr::null_mut();
        let bytes = len.max(1) * size_of::<T>();
        // SAFETY: the out pointer lives through the call; what was given is as large as what is cleared.
        unsafe {
            check("cuMemHostAlloc", sys::cuMemHostAlloc(&mut start, bytes, 0))?;
            ptr::write_bytes(start.cast::<u8>(), 0, bytes);
        }
        Ok(Pinned {
            start: start.cast(),
            len,
            of: PhantomData,
        })
    }

    /// Its address.
    pub(crate) fn address(&self) -> *mut T {
        self.start
    }
}

impl<T: Number> Deref for Pinned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised numbers, owned by self. Copies by the card are over when the host reads
        // (`StepGraph::read`).
        unsafe { slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T: Number> DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl<T: Number> Drop for Pinned<T> {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeros`, freed once. A failure leaves nothing to do.
        unsafe { sys::cuMemFreeHost(self.start.cast()) };
    }
}
