//! The card that libtorch computes on, as the CUDA driver sees it.

use std::ffi::CStr;
use std::ptr;

use cudarc::driver::sys;
use cudarc::{cublas, nvrtc};
use tch::Device;

use crate::error::KernelError;

/// Oldest compute capability that kernels are written for (bf16 arithmetic).
const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// A card, in the context that libtorch uses.
#[derive(Debug)]
pub struct Cuda {
    context: sys::CUcontext,
    device: Device,
    capability: (i32, i32),
    most_shared_bytes: i32,
}

impl Cuda {
    /// The card behind `device`.
    ///
    /// # Errors
    /// Not a CUDA device, a library that is missing, or a card older than sm_80.
    pub fn new(device: Device) -> Result<Cuda, KernelError> {
        let Device::Cuda(ordinal) = device else {
            return Err(no_cuda(format!("{device:?} is no CUDA device")));
        };
        require_libraries()?;
        let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
        let (mut card, mut context) = (0, ptr::null_mut());
        // SAFETY: the driver's library is there; out pointers live through the calls. The primary context is the
        // one that libtorch's runtime uses, and is retained for the life of the process.
        unsafe {
            check("cuInit", sys::cuInit(0))?;
            check("cuDeviceGet", sys::cuDeviceGet(&mut card, ordinal))?;
            check(
                "cuDevicePrimaryCtxRetain",
                sys::cuDevicePrimaryCtxRetain(&mut context, card),
            )?;
        }
        use sys::CUdevice_attribute as Attribute;
        let capability = (
            attribute(
                card,
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            )?,
            attribute(
                card,
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )?,
        );
        if capability < LEAST_CAPABILITY {
            let (major, minor) = capability;
            return Err(no_cuda(format!(
                "this card is of compute capability {major}.{minor}, kernels need 8.0 (A100) or later"
            )));
        }
        let cuda = Cuda {
            context,
            device,
            capability,
            most_shared_bytes: attribute(
                card,
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
        };
        cuda.enter()?;
        Ok(cuda)
    }

    /// libtorch's name of the card.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Target of the compiler: `sm_90a` on Hopper, whose own instructions need the suffix.
    pub fn arch(&self) -> String {
        let (major, minor) = self.capability;
        let suffix = if major >= 9 { "a" } else { "" };
        format!("sm_{major}{minor}{suffix}")
    }

    /// Whether kernels for Hopper's own instructions (sm_90a) run.
    pub(crate) fn is_hopper(&self) -> bool {
        self.capability == (9, 0)
    }

    /// Whether a kernel may start before the one in front of it is done.
    pub(super) fn overlaps_kernels(&self) -> bool {
        self.capability >= (9, 0)
    }

    /// Shared memory that a block of threads may ask for: 163 KB on an A100, 227 KB on an H100.
    pub(crate) fn most_shared_bytes(&self) -> i64 {
        i64::from(self.most_shared_bytes)
    }

    /// Makes the card the calling thread's.
    pub(crate) fn enter(&self) -> Result<(), KernelError> {
        // SAFETY: the context was retained and is never released.
        check("cuCtxSetCurrent", unsafe {
            sys::cuCtxSetCurrent(self.context)
        })
    }
}

/// The driver's version as it states it, 13000 for 13.0.
pub(crate) fn driver_version() -> Result<i32, KernelError> {
    let mut version = 0;
    // SAFETY: callers hold a `Cuda`, so the library is there.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    check("cuDriverGetVersion", code).map(|()| version)
}

/// Turns a return code of the driver into a result.
pub(crate) fn check(operation: &'static str, code: sys::CUresult) -> Result<(), KernelError> {
    if code == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: the driver writes a pointer to a constant string of its own, or leaves null.
    let text = unsafe {
        sys::cuGetErrorString(code, &mut text);
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    Err(KernelError::Cuda {
        operation,
        message: text.unwrap_or_else(|| format!("{code:?}")),
    })
}

fn require_libraries() -> Result<(), KernelError> {
    // SAFETY: these only try to load the libraries.
    let found = unsafe {
        [
            (sys::is_culib_present(), "the driver (libcuda)"),
            (
                nvrtc::sys::is_culib_present(),
                "the run-time compiler (libnvrtc)",
            ),
            (cublas::sys::is_culib_present(), "cuBLAS (libcublas)"),
        ]
    };
    match found.into_iter().find(|(is_there, _)| !is_there) {
        None => Ok(()),
        Some((_, what)) => Err(no_cuda(format!(
            "{what} was not found; the lib folder of torch's CUDA packages (nvidia/cu13/lib) must be in LD_LIBRARY_PATH"
        ))),
    }
}

fn attribute(card: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<i32, KernelError> {
    let mut value = 0;
    // SAFETY: `value` lives through the call.
    let code = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, card) };
    check("cuDeviceGetAttribute", code).map(|()| value)
}

fn no_cuda(reason: String) -> KernelError {
    KernelError::NoCuda { reason }
}
