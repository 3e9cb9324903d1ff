//! The declarations of `csrc/shim.h` and the handling of tensor pointers on the Rust side.
//!
//! A tensor crosses as a pointer to an `at::Tensor` on the C++ heap, which is what tch holds too.
//! Pointers lent to the shim stay ours for the length of the call; pointers it hands out are owned
//! by whoever receives them; null is an undefined tensor.

use std::ffi::{CStr, c_char, c_int, c_void};

use tch::Tensor;

use crate::error::KernelError;

/// A pointer to an `at::Tensor`.
pub type RawTensor = *mut c_void;

/// `baleen_backward_fn` of the shim.
pub type BackwardFn = unsafe extern "C" fn(
    closure: *mut c_void,
    grads: *const RawTensor,
    num_grads: usize,
    result: *mut RawTensor,
    num_result: usize,
    message: *mut c_char,
    message_bytes: usize,
) -> c_int;

/// `baleen_drop_fn` of the shim.
pub type DropFn = unsafe extern "C" fn(closure: *mut c_void);

unsafe extern "C" {
    fn baleen_last_error() -> *const c_char;
    pub fn baleen_grad_mode_is_enabled() -> c_int;
    pub fn baleen_clear_grad(leaf: RawTensor) -> c_int;
    pub fn baleen_backward(
        outputs: *const RawTensor,
        num_outputs: usize,
        grads: *const RawTensor,
        num_grads: usize,
    ) -> c_int;
    pub fn baleen_grad(
        outputs: *const RawTensor,
        num_outputs: usize,
        grads: *const RawTensor,
        num_grads: usize,
        inputs: *const RawTensor,
        num_inputs: usize,
        result: *mut RawTensor,
    ) -> c_int;
    pub fn baleen_custom(
        outputs: *const RawTensor,
        num_outputs: usize,
        inputs: *const RawTensor,
        num_inputs: usize,
        closure: *mut c_void,
        call: BackwardFn,
        drop: DropFn,
        result: *mut RawTensor,
    ) -> c_int;
    pub fn baleen_fused_adamw_(
        params: *const RawTensor,
        grads: *const RawTensor,
        exp_avgs: *const RawTensor,
        exp_avg_sqs: *const RawTensor,
        num_params: usize,
        step: i64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> c_int;
    pub fn baleen_foreach_norm(
        tensors: *const RawTensor,
        num_tensors: usize,
        result: *mut RawTensor,
    ) -> c_int;
    pub fn baleen_varlen_attention(
        q: RawTensor,
        k: RawTensor,
        v: RawTensor,
        cum_q: RawTensor,
        cum_k: RawTensor,
        longest_q: i64,
        longest_k: i64,
        scale: f64,
        result: *mut RawTensor,
    ) -> c_int;
    pub fn baleen_masked_attention(
        q: RawTensor,
        k: RawTensor,
        v: RawTensor,
        bias: RawTensor,
        scale: f64,
        output: *mut RawTensor,
        lse: *mut RawTensor,
    ) -> c_int;
    pub fn baleen_upload(
        values: *const c_void,
        count: i64,
        like: RawTensor,
        device: c_int,
        result: *mut RawTensor,
    ) -> c_int;
    pub fn baleen_foreach_copy_(
        to: *const RawTensor,
        from: *const RawTensor,
        num_tensors: usize,
    ) -> c_int;
    pub fn baleen_foreach_scale_(
        tensors: *const RawTensor,
        num_tensors: usize,
        factor: f64,
    ) -> c_int;
    pub fn baleen_gpu_peak_memory(device: c_int, allocated: *mut i64, reserved: *mut i64) -> c_int;
    pub fn baleen_gpu_kept_memory(device: c_int, kept: *mut i64) -> c_int;
    pub fn baleen_reset_gpu_peak_memory(device: c_int) -> c_int;
    pub fn baleen_profiler_start(with_gpu: c_int) -> c_int;
    pub fn baleen_profiler_stop(path: *const c_char) -> c_int;
    pub fn baleen_range_begin(name: *const c_char) -> *mut c_void;
    pub fn baleen_range_end(range: *mut c_void);
}

/// Pointers to lend for one call; valid as long as `tensors` are.
pub fn lend<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<RawTensor> {
    tensors
        .into_iter()
        .map(|tensor| tensor.as_ptr().cast_mut().cast())
        .collect()
}

/// Takes over a tensor handed out by the shim.
///
/// # Safety
/// `pointer` is null or was handed out by the shim and is not used again.
pub unsafe fn take(pointer: RawTensor) -> Option<Tensor> {
    // SAFETY: by the caller's promise this is the one owner of an at::Tensor made with `new`, which
    // is how tch makes and frees its own.
    (!pointer.is_null()).then(|| unsafe { Tensor::from_ptr(pointer.cast()) })
}

/// Hands a tensor to the shim, which frees it.
pub fn give(tensor: Option<Tensor>) -> RawTensor {
    let Some(tensor) = tensor else {
        return std::ptr::null_mut();
    };
    let tensor = std::mem::ManuallyDrop::new(tensor);
    tensor.as_ptr().cast_mut().cast()
}

/// Turns a return code of the shim into a result.
pub fn check(operation: &'static str, code: c_int) -> Result<(), KernelError> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the shim returns a zero-terminated string that lives until the next failure on this
    // thread; it is copied here.
    let message = unsafe { CStr::from_ptr(baleen_last_error()) };
    Err(KernelError::Libtorch {
        operation,
        message: message.to_string_lossy().into_owned(),
    })
}
