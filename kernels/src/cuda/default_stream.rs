//! Kernels on the stream that libtorch itself works on, between its operations.
//!
//! Order with what libtorch is told before and after needs no care there, and memory that libtorch frees is not
//! used again before the kernel has run. The autograd engine may call from threads of its own.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::sys;
use tch::Device;

use super::compile::{Constant, Source, cubin};
use super::context::{Cuda, check};
use super::queue::Argument;
use crate::error::KernelError;

/// A function of the driver, which any thread may launch.
#[derive(Clone, Copy, Debug)]
struct Function(sys::CUfunction);

// SAFETY: a handle that the driver looks up; it guards what is behind it itself, and modules are never unloaded.
unsafe impl Send for Function {}

/// A card whose default stream kernels are put on.
#[derive(Debug)]
pub(crate) struct DefaultStream {
    cuda: Cuda,
    functions: Mutex<HashMap<String, Function>>,
}

// SAFETY: the context handle in `cuda` is never released, and the driver's functions that take it may be called from any
// thread.
unsafe impl Send for DefaultStream {}
// SAFETY: as above; the map has a lock.
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
                functions: Mutex::default(),
            }),
            Err(error) => {
                tracing::warn!("training computes without kernels of its own, slowly: {error}");
                None
            }
        });
        stream.as_ref().filter(|own| own.cuda.device() == device)
    }

    fn function(
        &self,
        (source, constants, kernel): (&Source, &[Constant], &str),
    ) -> Result<Function, KernelError> {
        let name = format!("{kernel} {constants:?}");
        let mut functions = self
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(&function) = functions.get(&name) {
            return Ok(function);
        }
        let code = cubin(source, constants, &self.cuda.arch())?;
        let symbol = CString::new(kernel).expect("kernels' names hold no zero byte");
        let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the driver copies the code; the module is never unloaded.
        unsafe {
            check(
                "cuModuleLoadData",
                sys::cuModuleLoadData(&mut module, code.as_ptr().cast()),
            )?;
            let found = sys::cuModuleGetFunction(&mut function, module, symbol.as_ptr());
            check("cuModuleGetFunction", found)?;
        }
        functions.insert(name, Function(function));
        Ok(Function(function))
    }

    /// Puts a kernel on the stream.
    ///
    /// # Safety
    /// The arguments are what the kernel takes; addresses are those of tensors on this card that are as large as the
    /// kernel expects and alive now.
    ///
    /// # Errors
    /// It does not compile or can't be launched.
    pub(crate) unsafe fn launch(
        &self,
        kernel: (&Source, &[Constant], &str),
        grid: [u32; 2],
        block: u32,
        arguments: &[Argument],
    ) -> Result<(), KernelError> {
        self.cuda.enter()?;
        let Function(function) = self.function(kernel)?;
        let mut addresses: Vec<*mut c_void> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Pointer(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::Int(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::Long(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::Float(value) => ptr::from_ref(value).cast_mut().cast(),
            })
            .collect();
        // SAFETY: the driver copies the arguments before it returns; null is libtorch's default stream; the rest is the
        // caller's.
        check("cuLaunchKernel", unsafe {
            sys::cuLaunchKernel(
                function,
                grid[0],
                grid[1],
                1,
                block,
                1,
                1,
                0,
                ptr::null_mut(),
                addresses.as_mut_ptr(),
                ptr::null_mut(),
            )
        })
    }
}
