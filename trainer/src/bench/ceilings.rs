//! What the machine can do at most, measured: matrix products, reads and copies of memory.
//!
//! Both run through the library that the model computes with, on the same threads.

use kernels::tch::{Device, Kind, Tensor};

use super::timing::{Timing, rate};
use super::work::{self, Work};

/// Rows, inner size and columns: a small and a large batch through SmolLM2-135M's feed-forward, a
/// product large enough for the highest rate of a few cores, and one for that of a GPU.
const PRODUCTS: [[i64; 3]; 4] = [
    [32, 576, 1536],
    [1024, 576, 1536],
    [2048, 2048, 2048],
    [8192, 8192, 8192],
];
/// Large against every cache, so that reads come from memory.
const MEMORY_BYTES: i64 = 1 << 30;

/// Rates that nothing on this machine exceeds.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Floating-point operations a second, in the type that the model computes in.
    pub flops_per_sec: f64,
    /// Bytes read and written a second, by reading alone or by copying, whichever is faster.
    pub bytes_per_sec: f64,
}

impl Ceilings {
    /// Seconds that `work` takes at least: its operations and its transfers may overlap.
    pub fn secs(&self, work: Work) -> f64 {
        (work.flops / self.flops_per_sec).max(work.bytes / self.bytes_per_sec)
    }
}

/// The products to measure on `device`: the largest takes a GPU.
pub fn products(device: Device) -> &'static [[i64; 3]] {
    if device.is_cuda() {
        &PRODUCTS
    } else {
        &PRODUCTS[..3]
    }
}

/// Operations a second of `x W^T` with `size` in `kind`.
pub fn product_rate(size: [i64; 3], kind: Kind, device: Device, timing: Timing) -> f64 {
    let [rows, inner, columns] = size;
    let x = Tensor::randn([rows, inner], (Kind::Float, device)).to_kind(kind);
    let weight = Tensor::randn([columns, inner], (Kind::Float, device)).to_kind(kind);
    rate(timing, work::product(size, kind).flops, |times| {
        let mut last = x.linear(&weight, None::<&Tensor>);
        for _ in 1..times {
            last = x.linear(&weight, None::<&Tensor>);
        }
        wait_for(&last);
    })
}

/// Bytes a second of a sum over 1 GiB of f32.
pub fn read_rate(device: Device, timing: Timing) -> f64 {
    let numbers = Tensor::ones([MEMORY_BYTES / 4], (Kind::Float, device));
    rate(timing, MEMORY_BYTES as f64, |times| {
        let mut last = numbers.sum(Kind::Float);
        for _ in 1..times {
            last = numbers.sum(Kind::Float);
        }
        wait_for(&last);
    })
}

/// Bytes a second of copying 1 GiB within the device, read and written.
pub fn copy_rate(device: Device, timing: Timing) -> f64 {
    let from = Tensor::ones([MEMORY_BYTES / 4], (Kind::Float, device));
    let mut to = from.zeros_like();
    rate(timing, 2.0 * MEMORY_BYTES as f64, |times| {
        for _ in 0..times {
            to.copy_(&from);
        }
        wait_for(&to);
    })
}

/// Reads one number, so that the device has finished.
pub fn wait_for(result: &Tensor) {
    let _ = result.flatten(0, -1).double_value(&[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_computing_and_reading_is_the_limit() {
        let ceilings = Ceilings {
            flops_per_sec: 100.0,
            bytes_per_sec: 10.0,
        };
        let secs = |flops, bytes| ceilings.secs(Work { flops, bytes });
        assert_eq!(secs(200.0, 10.0), 2.0);
        assert_eq!(secs(200.0, 30.0), 3.0);
    }
}
