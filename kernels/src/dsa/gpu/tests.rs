//! The self-test as a test; it says so and stops where there is no GPU.

use tch::{Kind, Tensor};

use super::selftest;
use crate::runtime;

#[test]
fn kernels_of_sparse_attention_equal_their_references() {
    let device = runtime::start(1).device;
    let probe = Tensor::zeros([1], (Kind::Float, device)).to_kind(Kind::BFloat16);
    if super::stream(&probe).is_none() {
        eprintln!("SKIPPED: no GPU with a run-time compiler");
        return;
    }
    for outcome in selftest::run(device, 7).unwrap() {
        assert!(outcome.has_passed(), "{outcome:?}");
    }
}
