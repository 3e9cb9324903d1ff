//! What the machine can do at most, measured: matrix products and reads of memory.
//!
//! Both run through the library that the model computes with, on the same threads.

use kernels::tch::{Device, Kind, Tensor};

use super::timing::{Timing, rate};
use super::work::{self, Work};

/// Rows, inner size and columns: a small and a large batch through SmolLM2-135M's feed-forward, and
/// a product large enough for the highest rate.
pub const PRODUCTS: [[i64; 3]; 3] = [[32, 576, 1536], [1024, 576, 1536], [2048, 2048, 2048]];
/// Large against every cache, so that reads come from memory.
const READ_BYTES: i64 = 1 << 30;

/// Rates that nothing on this machine exceeds.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Floating-point operations a second, in the type that the model computes in.
    pub flops_per_sec: f64,
    /// Bytes read a second.
    pub bytes_per_sec: f64,
}

impl Ceilings {
    /// Seconds that `work` takes at least: its operations and its transfers may overlap.
    pub fn secs(&self, work: Work) -> f64 {
        (work.flops / self.flops_per_sec).max(work.bytes / self.bytes_per_sec)
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
    let numbers = Tensor::ones([READ_BYTES / 4], (Kind::Float, device));
    rate(timing, READ_BYTES as f64, |times| {
        for _ in 0..times {
            wait_for(&numbers.sum(Kind::Float));
        }
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
