//! What a learner's pass computes between its products, in one kernel each where eager operations take many passes
//! over memory: norms, SwiGLU, RoPE, attention within the sequences of a pack, log-probs, the way to experts and back.
//!
//! Each is stated as a contract and as a slow reference in plain tch, which also is what runs wherever the kernel
//! of `kernels/cuda/fused.cu` or `dispatch.cu` can't: on CPUs, in types other than bf16, and for sizes that it does not know.
//! Forward values are rounded where the reference rounds; gradients are computed in f32 and rounded once.

pub mod dispatch;
pub mod logprobs;
pub mod norm;
pub mod rope;
pub mod route;
pub mod selftest;
pub mod swiglu;
pub mod varlen;

use tch::{Kind, Tensor};

use crate::cuda::compile::{Constant, FUSED};
use crate::cuda::launch::Kernel;
use crate::cuda::{Argument, DefaultStream};

/// Numbers that a thread reads at once: widths are multiples of it.
const EIGHT: i64 = 8;

/// Whether kernels can be used for what is computed of `x`.
pub fn runs_on(x: &Tensor) -> bool {
    stream(x).is_some()
}

fn stream(x: &Tensor) -> Option<&'static DefaultStream> {
    match x.kind() {
        Kind::BFloat16 => DefaultStream::of(x.device()),
        _ => None,
    }
}

/// A contiguous tensor's address.
fn address(tensor: &Tensor) -> Argument {
    assert!(tensor.is_contiguous(), "a tensor without gaps");
    Argument::Pointer(tensor.data_ptr() as u64)
}

fn int(value: i64) -> Argument {
    Argument::Int(i32::try_from(value).expect("a side of a tensor below 2^31"))
}

/// Puts `kernel` on libtorch's stream, as many blocks of `block` threads as `items` need.
///
/// # Safety
/// As [`DefaultStream::launch`].
unsafe fn launch(
    stream: &DefaultStream,
    (kernel, constants): (&str, &[Constant]),
    [items, per_block]: [i64; 2],
    block: u32,
    arguments: &[Argument],
) {
    let blocks = items.div_euclid(per_block) + i64::from(items % per_block > 0);
    // SAFETY: the caller's.
    unsafe { launch_grid(stream, (kernel, constants), [blocks, 1], block, arguments) }
}

/// # Safety
/// As [`DefaultStream::launch`].
unsafe fn launch_grid(
    stream: &DefaultStream,
    (kernel, constants): (&str, &[Constant]),
    grid: [i64; 2],
    block: u32,
    arguments: &[Argument],
) {
    // SAFETY: the caller's.
    unsafe { launch_kernel(stream, (&FUSED, constants, kernel), grid, block, arguments) }
}

/// Puts a kernel of any source on libtorch's stream; none where `grid` is empty.
///
/// # Safety
/// As [`DefaultStream::launch`].
unsafe fn launch_kernel(
    stream: &DefaultStream,
    kernel: Kernel,
    grid: [i64; 2],
    block: u32,
    arguments: &[Argument],
) {
    if grid[0] == 0 {
        return;
    }
    let grid = grid.map(|blocks| u32::try_from(blocks).expect("fewer than 2^31 blocks"));
    // SAFETY: the caller's.
    if let Err(error) = unsafe { stream.launch(kernel, grid, block, arguments) } {
        panic!("{}: {error}", kernel.2);
    }
}
