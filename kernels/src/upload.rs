//! Numbers of the host on their way to a device.
//!
//! libtorch's own copy from ordinary memory waits until the device has done all it was told before; that leaves it idle
//! while the host prepares what comes next.

use std::ffi::c_int;
use std::ptr;

use tch::kind::Element;
use tch::{Device, Tensor};

use crate::ffi;

/// `values` as a row on `device`, without waiting for the device.
///
/// # Panics
/// No page-locked memory is left, or none on the device.
pub fn upload<T: Element>(values: &[T], device: Device) -> Tensor {
    let Device::Cuda(index) = device else {
        return Tensor::from_slice(values).to_device(device);
    };
    let like = Tensor::from_slice(&values[..values.len().min(1)]);
    let lent = ffi::lend([&like]);
    let index = c_int::try_from(index).unwrap_or(c_int::MAX);
    let mut result = ptr::null_mut();
    let (count, start) = (values.len() as i64, values.as_ptr().cast());
    // SAFETY: a live tensor of the type T, of which there are `count` values; the shim fills the result where it
    // succeeds.
    let code = unsafe { ffi::baleen_upload(start, count, lent[0], index, &mut result) };
    if let Err(error) = ffi::check("upload", code) {
        panic!("{error}");
    }
    // SAFETY: handed out just now.
    unsafe { ffi::take(result) }.expect("a copy is a defined tensor")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime;

    #[test]
    fn values_arrive_in_order() {
        // On a GPU where there is one, and with no memory to hold on to in either case.
        for device in [Device::Cpu, runtime::start(1).device] {
            let uploaded: Vec<Tensor> = (0..20)
                .map(|first| upload(&Vec::from_iter(first..first + 70_000_i64), device))
                .collect();
            for (first, tensor) in uploaded.iter().enumerate() {
                assert_eq!(tensor.device(), device);
                let expected: Vec<i64> = (first as i64..first as i64 + 70_000).collect();
                assert_eq!(Vec::<i64>::try_from(tensor).unwrap(), expected);
            }
        }
        assert_eq!(upload::<f32>(&[], Device::Cpu).size(), [0]);
    }
}
