//! How much of a GPU's memory was taken at most: the account of libtorch's caching allocator.
//!
//! The same figures as `torch.cuda.max_memory_allocated` and `max_memory_reserved`, so that they can be
//! compared with those of Python programs. What the driver and libraries hold beside it is not in them.

use std::ffi::c_int;

use tch::Device;

use crate::error::KernelError;
use crate::ffi;

/// Most memory of a GPU at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeakMemory {
    /// Bytes in tensors.
    pub allocated_bytes: u64,
    /// Bytes taken from the device: those in tensors, and those kept for the next ones.
    pub reserved_bytes: u64,
}

/// The peak ever or since [`reset_peak`]; `None` for a CPU.
///
/// # Errors
/// [`KernelError::Libtorch`] for a GPU that is not there or was never used.
pub fn peak(device: Device) -> Result<Option<PeakMemory>, KernelError> {
    let Device::Cuda(index) = device else {
        return Ok(None);
    };
    let (mut allocated, mut reserved) = (0, 0);
    // SAFETY: both pointers are to live numbers for the length of the call.
    let code =
        unsafe { ffi::baleen_gpu_peak_memory(device_index(index), &mut allocated, &mut reserved) };
    ffi::check("gpu_memory::peak", code)?;
    let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(Some(PeakMemory {
        allocated_bytes: bytes(allocated),
        reserved_bytes: bytes(reserved),
    }))
}

/// Bytes that libtorch has taken from a GPU and keeps for the next tensors; 0 for a CPU.
///
/// # Errors
/// As [`peak`].
pub fn kept_bytes(device: Device) -> Result<u64, KernelError> {
    let Device::Cuda(index) = device else {
        return Ok(0);
    };
    let mut kept = 0;
    // SAFETY: the pointer is to a live number for the length of the call.
    let code = unsafe { ffi::baleen_gpu_kept_memory(device_index(index), &mut kept) };
    ffi::check("gpu_memory::kept_bytes", code)?;
    Ok(u64::try_from(kept).unwrap_or(0))
}

/// Starts the peak of [`peak`] anew from what is taken now; nothing to do for a CPU.
///
/// # Errors
/// As [`peak`].
pub fn reset_peak(device: Device) -> Result<(), KernelError> {
    let Device::Cuda(index) = device else {
        return Ok(());
    };
    // SAFETY: no pointers.
    let code = unsafe { ffi::baleen_reset_gpu_peak_memory(device_index(index)) };
    ffi::check("gpu_memory::reset_peak", code)
}

fn device_index(index: usize) -> c_int {
    c_int::try_from(index).unwrap_or(c_int::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_no_gpu_memory_and_an_absent_gpu_is_an_error() {
        assert_eq!(peak(Device::Cpu).unwrap(), None);
        assert!(reset_peak(Device::Cpu).is_ok());
        assert!(peak(Device::Cuda(99)).is_err());
        assert_eq!(kept_bytes(Device::Cpu).unwrap(), 0);
        assert!(kept_bytes(Device::Cuda(99)).is_err());
        assert!(reset_peak(Device::Cuda(99)).is_err());
    }
}
