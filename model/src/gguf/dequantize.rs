//! GGUF tensor encodings to f32.
//!
//! Blocks of 32 values, all numbers little-endian:
//! - Q8_0, 34 bytes: scale d f16, q i8[32];              y[i] = d q[i]
//! - Q4_1, 20 bytes: scale d f16, minimum m f16, 16 bytes; y[i] = d (low nibble of byte i) + m,
//!   y[i + 16] = d (high nibble of byte i) + m
//!
//! Source: the block structs of ggml. Other encodings are left out.

use half::f16;

/// How a tensor's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    F32,
    F16,
    Q4_1,
    Q8_0,
}

impl Encoding {
    /// By ggml's type number.
    pub fn from_code(code: u32) -> Option<Encoding> {
        match code {
            0 => Some(Encoding::F32),
            1 => Some(Encoding::F16),
            3 => Some(Encoding::Q4_1),
            8 => Some(Encoding::Q8_0),
            _ => None,
        }
    }

    /// Values and bytes of a block.
    fn block(self) -> (u64, u64) {
        match self {
            Encoding::F32 => (1, 4),
            Encoding::F16 => (1, 2),
            Encoding::Q4_1 => (32, 20),
            Encoding::Q8_0 => (32, 34),
        }
    }

    /// Bytes of a tensor with these dimensions, fastest first; none when a dimension is 0, a row is
    /// no whole number of blocks, or the f32 values could not be addressed.
    pub fn num_bytes(self, dims: &[u64]) -> Option<u64> {
        let (values, bytes) = self.block();
        if dims.contains(&0) || !dims[0].is_multiple_of(values) {
            return None;
        }
        let count = dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim))?;
        i64::try_from(count.checked_mul(4)?).ok()?;
        (count / values).checked_mul(bytes)
    }

    /// The values in `bytes`, a whole number of blocks.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let f16_at =
            |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let (values, block_bytes) = self.block();
        let mut out = Vec::with_capacity(bytes.len() / block_bytes as usize * values as usize);
        for block in bytes.chunks_exact(block_bytes as usize) {
            match self {
                Encoding::F32 => {
                    out.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]]))
                }
                Encoding::F16 => out.push(f16_at(block, 0)),
                Encoding::Q4_1 => {
                    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
                    out.extend(block[4..].iter().map(|q| d * f32::from(q & 15) + m));
                    out.extend(block[4..].iter().map(|q| d * f32::from(q >> 4) + m));
                }
                Encoding::Q8_0 => {
                    let d = f16_at(block, 0);
                    out.extend(block[2..].iter().map(|&q| d * f32::from(q as i8)));
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q8_0_is_scale_times_signed_byte() {
        let mut block = vec![0x00, 0x38]; // 0.5 in f16
        block.extend([1u8, 2, 0xff, 0x80, 127]);
        block.resize(34, 0);
        let values = Encoding::Q8_0.decode(&block);
        assert_eq!(values.len(), 32);
        assert_eq!(values[..6], [0.5, 1.0, -0.5, -64.0, 63.5, 0.0]);
    }

    #[test]
    fn q4_1_puts_low_nibbles_first_and_adds_the_minimum() {
        let mut block = vec![0x00, 0x40, 0x00, 0xbc]; // d = 2, m = -1 in f16
        block.extend([0x10, 0xf2]);
        block.resize(20, 0);
        let values = Encoding::Q4_1.decode(&block);
        assert_eq!(values.len(), 32);
        assert_eq!(values[..3], [-1.0, 3.0, -1.0]);
        assert_eq!(values[16..19], [1.0, 29.0, -1.0]);
    }

    #[test]
    fn f16_and_f32_are_read_as_they_are() {
        assert_eq!(Encoding::F16.decode(&[0x00, 0x3c, 0x00, 0xc1]), [1.0, -2.5]);
        assert_eq!(Encoding::F32.decode(&[0, 0, 0x20, 0xc0]), [-2.5]);
    }

    #[test]
    fn impossible_dimensions_have_no_size() {
        assert_eq!(Encoding::Q4_1.num_bytes(&[64, 3]), Some(120));
        assert_eq!(Encoding::Q8_0.num_bytes(&[32]), Some(34));
        assert_eq!(Encoding::Q4_1.num_bytes(&[48]), None);
        assert_eq!(Encoding::F32.num_bytes(&[5, 0]), None);
        assert_eq!(Encoding::F32.num_bytes(&[1 << 40, 1 << 40]), None);
        assert_eq!(Encoding::F16.num_bytes(&[1 << 62]), None);
    }
}
