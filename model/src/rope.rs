//! Rotary position embedding, half-split (NeoX) pairing: dimension i turns with i + d/2.
//!
//! y_i       = x_i cos(p f_i) - x_{i+d/2} sin(p f_i)
//! y_{i+d/2} = x_{i+d/2} cos(p f_i) + x_i sin(p f_i),   f_i = base^(-2i/d)
//!
//! Angles are computed in f32, as Hugging Face does for llama-like models.

use kernels::tch::{Kind, Tensor};

/// Cosines and sines for a set of tokens, `[T, 1, dim]` each, both halves filled.
#[derive(Debug)]
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// The rotation of heads of width `dim` at `positions` (`[T]` i64), to be applied in `kind`.
    pub fn new(positions: &Tensor, dim: usize, base: f64, kind: Kind) -> Rotation {
        let device = positions.device();
        let inverse_frequencies: Vec<f32> = (0..dim / 2)
            .map(|i| 1.0 / (base as f32).powf(2.0 * i as f32 / dim as f32))
            .collect();
        let frequencies = Tensor::from_slice(&inverse_frequencies).to_device(device);
        let half = positions.to_kind(Kind::Float).unsqueeze(1) * frequencies.unsqueeze(0);
        let angles = Tensor::cat(&[&half, &half], 1).unsqueeze(1);
        Rotation {
            cos: angles.cos().to_kind(kind),
            sin: angles.sin().to_kind(kind),
        }
    }

    /// Rotates `x` of shape `[T, heads, dim]`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let half = x.size()[2] / 2;
        let (first, second) = (x.narrow(2, 0, half), x.narrow(2, half, half));
        let turned = Tensor::cat(&[&second.neg(), &first], 2);
        x * &self.cos + turned * &self.sin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// d = 4, base 100 (inverse frequencies 1 and 0.1), position 3, x = 1, 2, 3, 4.
    #[test]
    fn pairs_are_half_split_not_interleaved() {
        let positions = Tensor::from_slice(&[3i64]);
        let x = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view([1, 1, 4]);
        let y = Vec::<f32>::try_from(
            Rotation::new(&positions, 4, 100.0, Kind::Float)
                .apply(&x)
                .view([4]),
        )
        .expect("four values");
        for (value, expected) in
            y.iter()
                .zip([-1.413_352_5, 0.728_592_16, -2.828_857_4, 4.412_386_4])
        {
            assert!((value - expected).abs() < 1e-5, "{y:?}");
        }
    }
}
