//! Rotary position embedding, in both pairings, plain or stretched by YaRN.
//!
//! half-split (llama, DeepSeek-V3.2's indexer): dimension i turns with i + d/2
//!   y_i       = x_i cos(p f_i) - x_{i+d/2} sin(p f_i)
//!   y_{i+d/2} = x_{i+d/2} cos(p f_i) + x_i sin(p f_i)
//! interleaved (latent attention): dimension 2i turns with 2i + 1, otherwise the same.
//!
//! f_i = base^(-2i/d); YaRN mixes f_i and f_i / factor by how often i turns in the original context.
//! Angles are computed in f32, as Hugging Face does.

use kernels::tch::{Kind, Tensor};

use crate::config::YarnConfig;

/// Which dimensions turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// i with i + d/2.
    HalfSplit,
    /// 2i with 2i + 1.
    Interleaved,
}

impl RopeLayout {
    /// The layout that a config's `rope_interleave` means.
    pub fn of(rope_interleave: bool) -> RopeLayout {
        match rope_interleave {
            true => RopeLayout::Interleaved,
            false => RopeLayout::HalfSplit,
        }
    }
}

/// Radians per position of the `dim / 2` pairs of a head of width `dim`.
pub fn inverse_frequencies(dim: usize, base: f64, yarn: Option<&YarnConfig>) -> Vec<f32> {
    let wavelength = |i: usize| (base as f32).powf(2.0 * i as f32 / dim as f32);
    let plain = (0..dim / 2).map(|i| 1.0 / wavelength(i));
    let Some(yarn) = yarn else {
        return plain.collect();
    };
    // The pair that turns `turns` times over the original context.
    let pair = |turns: f64| {
        let context = yarn.original_max_position_embeddings as f64;
        dim as f64 * (context / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln())
    };
    let low = pair(yarn.beta_fast).floor().max(0.0);
    let high = pair(yarn.beta_slow).ceil().min(dim as f64 - 1.0);
    let width = if low == high { 0.001 } else { high - low };
    let slowed = |i: usize| ((i as f64 - low) / width).clamp(0.0, 1.0) as f32;
    plain
        .enumerate()
        .map(|(i, frequency)| {
            let stretched = 1.0 / (yarn.factor as f32 * wavelength(i));
            stretched * slowed(i) + frequency * (1.0 - slowed(i))
        })
        .collect()
}

/// Cosines and sines for a set of tokens.
#[derive(Debug)]
pub struct Rotation {
    layout: RopeLayout,
    /// Dimensions that turn.
    dim: i64,
    /// `[T, 1, dim]` with both halves filled when half-split, `[T, 1, dim / 2]` when interleaved.
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// The rotation at `positions` (`[T]` i64) by `frequencies` (`dim / 2` of them), to be applied in
    /// `kind`; `factor` multiplies cosine and sine.
    pub fn new(
        positions: &Tensor,
        frequencies: &[f32],
        factor: f64,
        layout: RopeLayout,
        kind: Kind,
    ) -> Rotation {
        let dim = 2 * frequencies.len() as i64;
        let frequencies = kernels::upload(frequencies, positions.device());
        let pairs = positions.to_kind(Kind::Float).unsqueeze(1) * frequencies.unsqueeze(0);
        let angles = match layout {
            RopeLayout::HalfSplit => Tensor::cat(&[&pairs, &pairs], 1),
            RopeLayout::Interleaved => pairs,
        };
        let angles = angles.unsqueeze(1);
        let scaled = |x: Tensor| if factor == 1.0 { x } else { x * factor };
        Rotation {
            layout,
            dim,
            cos: scaled(angles.cos()).to_kind(kind),
            sin: scaled(angles.sin()).to_kind(kind),
        }
    }

    /// Cosines and sines `[T, dim]` where all of heads of width `dim` turns, half-split.
    pub(crate) fn half_split_tables(&self, dim: i64) -> Option<[Tensor; 2]> {
        let fits = self.layout == RopeLayout::HalfSplit && self.dim == dim;
        fits.then(|| [&self.cos, &self.sin].map(|table| table.squeeze_dim(1)))
    }

    /// Rotates the leading dimensions of `x`, `[T, heads, at least dim]`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let (tokens, heads, width) = x.size3().expect("x is [T, heads, width]");
        if width > self.dim {
            let turned = self.apply(&x.narrow(2, 0, self.dim));
            return Tensor::cat(&[turned, x.narrow(2, self.dim, width - self.dim)], 2);
        }
        let half = width / 2;
        match self.layout {
            RopeLayout::HalfSplit => {
                let (first, second) = (x.narrow(2, 0, half), x.narrow(2, half, half));
                let turned = Tensor::cat(&[&second.neg(), &first], 2);
                x * &self.cos + turned * &self.sin
            }
            RopeLayout::Interleaved => {
                let pairs = x.reshape([tokens, heads, half, 2]);
                let (first, second) = (pairs.select(3, 0), pairs.select(3, 1));
                let turned = [
                    &first * &self.cos - &second * &self.sin,
                    &second * &self.cos + &first * &self.sin,
                ];
                Tensor::stack(&turned, 3).view([tokens, heads, width])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yarn() -> YarnConfig {
        YarnConfig {
            factor: 40.0,
            original_max_position_embeddings: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 1.0,
        }
    }

    fn close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= tolerance * b.abs(), "{found:?}");
        }
    }

    /// d = 4, base 100 (inverse frequencies 1 and 0.1), position 3, factor 1.
    fn turned(layout: RopeLayout, x: &[f32]) -> Vec<f32> {
        let positions = Tensor::from_slice(&[3i64]);
        let frequencies = inverse_frequencies(4, 100.0, None);
        let rotation = Rotation::new(&positions, &frequencies, 1.0, layout, Kind::Float);
        let x = Tensor::from_slice(x).view([1, 1, -1]);
        Vec::try_from(rotation.apply(&x).view([-1])).expect("a flat tensor")
    }

    #[test]
    fn half_split_turns_a_dimension_with_the_one_half_a_head_away() {
        let expected = [-1.413_352_5, 0.728_592_16, -2.828_857_4, 4.412_386_4];
        let found = turned(RopeLayout::HalfSplit, &[1.0, 2.0, 3.0, 4.0]);
        close(&found, &expected, 1e-5);
    }

    #[test]
    fn interleaved_turns_neighbours() {
        let expected = [-1.272_232_5, -1.838_865, 1.683_928_6, 4.707_906_7];
        let found = turned(RopeLayout::Interleaved, &[1.0, 2.0, 3.0, 4.0]);
        close(&found, &expected, 1e-5);
    }

    #[test]
    fn dimensions_behind_the_rotated_ones_pass() {
        for layout in [RopeLayout::HalfSplit, RopeLayout::Interleaved] {
            let found = turned(layout, &[1.0, 2.0, 3.0, 4.0, 5.0, -6.0]);
            assert_eq!(found[..4], turned(layout, &[1.0, 2.0, 3.0, 4.0])[..]);
            assert_eq!(found[4..], [5.0, -6.0]);
        }
    }

    #[test]
    fn the_factor_lengthens_rotated_vectors() {
        let positions = Tensor::from_slice(&[3i64]);
        let frequencies = inverse_frequencies(4, 100.0, None);
        let layout = RopeLayout::Interleaved;
        let rotation = Rotation::new(&positions, &frequencies, 2.0, layout, Kind::Float);
        let x = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view([1, 1, 4]);
        let found: Vec<f32> = Vec::try_from(rotation.apply(&x).view([4])).expect("four values");
        let once = turned(layout, &[1.0, 2.0, 3.0, 4.0]);
        close(
            &found,
            &once.iter().map(|x| 2.0 * x).collect::<Vec<_>>(),
            1e-6,
        );
    }

    /// DeepSeek-V3's table (low 10, high 23), and that of a head of 8 (low 1, high 3).
    #[test]
    fn yarn_frequencies_equal_the_worked_examples() {
        let found = inverse_frequencies(64, 1e4, Some(&yarn()));
        let at = [0, 1, 8, 10, 11, 16, 22, 23, 31].map(|i| found[i]);
        let expected = [
            1.0,
            0.749_894_2,
            0.1,
            0.056_234_132,
            0.039_006_926,
            0.0055,
            0.000_177_827_94,
            3.333_803_6e-5,
            3.333_803_6e-6,
        ];
        close(&at, &expected, 2e-6);
        let small = inverse_frequencies(8, 1e4, Some(&yarn()));
        close(&small, &[1.0, 0.1, 0.005_125, 2.5e-5], 2e-6);
    }
}
