//! Sparse attention and its indexer by kernels of our own: `dsa_attention.cu`, `dsa_indexer.cu` and `dense_head_sums.cu` of `kernels/cuda/`.
//!
//! They compute what the operations beside this module compute, which are their references, for bf16 inputs on a card of
//! compute capability 8.0 or later with enough shared memory: products of bf16 with f32 sums on tensor cores,
//! softmaxes in f32, probabilities and the gradients of scores rounded to bf16 where they enter a product.
//! Nothing of the size of queries x selected keys x width, nor of heads x queries x keys, is written to memory.
//! [`selftest`] compares them with their references. Gradients of keys are added up by atomics, in no fixed order; everything else gives the same bits each time.

pub mod attention;
pub mod choice;
pub mod dense;
pub mod indexer;
pub mod masked;
pub mod selftest;

#[cfg(test)]
mod tests;

use tch::{Kind, Tensor};

use crate::cuda::compile::{Constant, Source};
use crate::cuda::{Argument, DefaultStream, Grid};

/// Threads of a block, as `WARPS` says in `kernels/cuda/dsa_tiles.cuh`.
const THREADS: u32 = 256;

/// The stream of a card that takes bf16 tensors like `x`.
fn stream(x: &Tensor) -> Option<&'static DefaultStream> {
    match x.kind() {
        Kind::BFloat16 => DefaultStream::of(x.device()),
        _ => None,
    }
}

/// Numbers that a row of a tile in shared memory has room for.
fn padded(width: i64) -> i64 {
    (width + 63) / 64 * 64
}

/// A contiguous tensor's address.
fn address(tensor: &Tensor, kind: Kind) -> Argument {
    assert!(tensor.is_contiguous(), "a tensor without gaps");
    assert_eq!(tensor.kind(), kind);
    Argument::Pointer(tensor.data_ptr() as u64)
}

/// The address of a tensor that may be left out.
fn address_of(tensor: Option<&Tensor>, kind: Kind) -> Argument {
    tensor.map_or(Argument::Pointer(0), |tensor| address(tensor, kind))
}

fn int(value: i64) -> Argument {
    Argument::Int(i32::try_from(value).expect("a side of a tensor below 2^31"))
}

/// Puts a kernel on libtorch's stream, in `blocks` of `block` threads with `shared` bytes each.
///
/// # Safety
/// As [`DefaultStream::launch`].
unsafe fn launch(
    stream: &DefaultStream,
    kernel: (&Source, &[Constant], &str),
    blocks: [i64; 2],
    (block, shared): (u32, i64),
    arguments: &[Argument],
) {
    if blocks.contains(&0) {
        return;
    }
    let blocks = blocks.map(|blocks| u32::try_from(blocks).expect("fewer than 2^31 blocks"));
    let shared = u32::try_from(shared).expect("shared memory was checked to suffice");
    let grid = Grid::from(blocks).with_shared(shared);
    // SAFETY: the caller's.
    if let Err(error) = unsafe { stream.launch(kernel, grid, block, arguments) } {
        panic!("{}: {error}", kernel.2);
    }
}
