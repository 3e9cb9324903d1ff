//! A tensor's memory as bytes, so that files are read to where libtorch reads them from.

use tch::{Device, Tensor};

/// Lets `fill` write the memory of `tensor`, contiguous on the CPU, in the machine's byte order. What shares
/// its storage changes with it, as with `copy_`.
///
/// # Panics
/// A tensor on another device, or with gaps.
pub fn write_bytes<R>(tensor: &mut Tensor, fill: impl FnOnce(&mut [u8]) -> R) -> R {
    assert_eq!(
        tensor.device(),
        Device::Cpu,
        "bytes of a tensor off the CPU"
    );
    assert!(tensor.is_contiguous(), "bytes of a tensor with gaps");
    let len = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if len == 0 {
        return fill(&mut []);
    }
    // SAFETY: a contiguous CPU tensor owns `len` bytes from its data pointer on, which live as long as the
    // borrow of it. Every pattern of bits is a value of a number type; `tensor` is borrowed mutably, and
    // tensors that share its storage are only read by libtorch calls, none of which runs meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), len) };
    fill(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn bytes_are_the_values_in_order() {
        let mut tensor = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        write_bytes(&mut tensor, |bytes| {
            assert_eq!(bytes.len(), 12);
            bytes[4..8].copy_from_slice(&1.5f32.to_ne_bytes());
        });
        assert_eq!(Vec::<f32>::try_from(&tensor).unwrap(), [0.0, 1.5, 0.0]);
        let mut empty = Tensor::zeros([0], (Kind::Float, Device::Cpu));
        write_bytes(&mut empty, |bytes| assert!(bytes.is_empty()));
    }

    #[test]
    #[should_panic(expected = "with gaps")]
    fn a_tensor_with_gaps_is_refused() {
        let mut column = Tensor::zeros([3, 2], (Kind::Float, Device::Cpu)).select(1, 0);
        write_bytes(&mut column, |_| ());
    }
}
