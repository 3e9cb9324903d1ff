//! Kernels on the stream that libtorch itself works on, between its operations.
//!
//! Order with what libtorch is told before and after needs no care there, and memory that libtorch frees is not
//! used again before the kernel has run. The autograd engine may call from threads of its own.

use std::ptr;
use std::sync::OnceLock;

use tch::Device;

use super::context::Cuda;
use super::launch::{Argument, Functions, Grid, Kernel, Place};
use crate::error::KernelError;

/// A card whose default stream kernels are put on.
#[derive(Debug)]
pub(crate) struct DefaultStream {
    cuda: Cuda,
    functions: Functions,
}

// SAFETY: the context handle in `cuda` is never released, and the driver's functions that take it may be called from any
// thread.
unsafe impl Send for DefaultStream {}
// SAFETY: as above; the functions have a lock.
unsafe impl Sync for DefaultStream {}

impl DefaultStream {
    /// The one of `device`; `None` where kernels can't be used, which the log tells once.
    pub(crate) fn of(device: Device) -> Option<&'static DefaultStream> {
        // One process, one card.
        static FIRST: OnceLock<Option<DefaultStream>> = OnceLock::new();
        if !device.is_cuda() {
            return None;
        }
        let stream = FIRST.get_or_init(|| match Cuda::new(device) {
            Ok(cuda) => Some(DefaultStream {
                cuda,
                functions: Functions::default(),
            }),
            Err(error) => {
                tracing::warn!("training computes without kernels of its own, slowly: {error}");
                None
            }
        });
        stream.as_ref().filter(|own| own.cuda.device() == device)
    }

    /// Whether kernels for Hopper's own instructions (sm_90a) run.
    pub(crate) fn is_hopper(&self) -> bool {
        self.cuda.is_hopper()
    }

    /// Shared memory that a block of threads may ask for.
    pub(crate) fn most_shared_bytes(&self) -> i64 {
        self.cuda.most_shared_bytes()
    }

    /// Puts a kernel on the stream, with `block` threads a block.
    ///
    /// # Safety
    /// The arguments are what the kernel takes; addresses are those of tensors on this card that are as large as the
    /// kernel expects and alive now.
    ///
    /// # Errors
    /// It does not compile or can't be launched.
    pub(crate) unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: impl Into<Grid>,
        block: u32,
        arguments: &[Argument],
    ) -> Result<(), KernelError> {
        let place = Place {
            stream: ptr::null_mut(),
            may_overlap: false,
        };
        // SAFETY: null is libtorch's default stream; the rest is the caller's.
        unsafe {
            self.functions
                .launch(&self.cuda, place, kernel, grid.into(), block, arguments)
        }
    }
}
