//! The quantised indexer, simulated: Hadamard transform, then e4m3 with one scale a vector.
//!
//! x -> H x / sqrt(n), H the Sylvester-Hadamard matrix: products of two transformed vectors are those
//! of the vectors, but outliers are spread before rounding.
//! s = max(amax(|x|), 1e-4) / 448, with ue8m0 rounded up to a power of two;  x ~ s e4m3(x / s).
//! Real FP8 products are left out: scores computed from the rounded vectors in f32 equal them up to
//! the order of summation. The transform sums in f32 and rounds once to the type of x; s e4m3(x / s)
//! stays f32, since with scales in f32 no narrower type holds it.

use tch::{Kind, Tensor};

use super::accumulation_kind;
use crate::autograd;

/// Largest e4m3 number.
const MAX_E4M3: f64 = 448.0;
/// Least amax a scale is made of, so that vectors of zeros have one.
const MIN_AMAX: f64 = 1e-4;

/// How a vector's scale is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleFormat {
    /// A power of two, rounded up.
    Ue8m0,
    /// amax / 448 as it is.
    F32,
}

/// H x / sqrt(n) along the last dim, whose length n is a power of two. Differentiable.
///
/// # Panics
/// Another n.
pub fn hadamard(x: &Tensor) -> Tensor {
    let shape = x.size();
    let n = *shape.last().expect("x has a last dim");
    assert!(n > 0 && n & (n - 1) == 0, "{n} is not a power of two");
    let mut sums = x.to_kind(accumulation_kind(x)).reshape([-1, n]);
    let mut width = 1;
    while width < n {
        let pairs = sums.view([-1, n / (2 * width), 2, width]);
        let (a, b) = (pairs.select(2, 0), pairs.select(2, 1));
        sums = Tensor::stack(&[&a + &b, &a - &b], 2).view([-1, n]);
        width *= 2;
    }
    let scaled = sums * (n as f64).powf(-0.5);
    scaled.to_kind(x.kind()).view(shape.as_slice())
}

/// e4m3 values of `x`, one scale per vector of the last dim: (`[..,n]` e4m3, `[..,1]` f32).
fn quantize_e4m3(x: &Tensor, format: ScaleFormat) -> (Tensor, Tensor) {
    let x = x.to_kind(Kind::Float);
    let amax = x.abs().amax(-1, true).clamp_min(MIN_AMAX);
    let scale = match format {
        ScaleFormat::F32 => amax / MAX_E4M3,
        ScaleFormat::Ue8m0 => {
            // scale = m 2^e with 1/2 <= m < 1: the next power of two is 2^e, or itself for m = 1/2.
            let (mantissa, exponent) = (amax / MAX_E4M3).frexp();
            let exponent = exponent - mantissa.eq(0.5).to_kind(Kind::Int);
            mantissa.ones_like().ldexp(&exponent)
        }
    };
    // Conversion to e4m3 does not saturate; it rounds half to even.
    let values = (x / &scale).clamp(-MAX_E4M3, MAX_E4M3);
    (values.to_kind(Kind::Float8e4m3fn), scale)
}

/// `x` as e4m3 holds it, in f32. The gradient passes straight through.
///
/// # Shapes
/// `[..,n]`, one scale per vector of the last dim.
pub fn fp8_round_trip(x: &Tensor, format: ScaleFormat) -> Tensor {
    let rounded = tch::no_grad(|| {
        let (values, scale) = quantize_e4m3(x, format);
        values.to_kind(Kind::Float) * scale
    });
    let kind = x.kind();
    let to_kind = move |grad: Option<Tensor>| grad.map(|grad| grad.to_kind(kind));
    autograd::custom(vec![rounded], &[x], move |grads| {
        grads.into_iter().map(to_kind).collect()
    })
    .expect("a fresh floating tensor can be given a history")
    .remove(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(x: &Tensor) -> Vec<f64> {
        Vec::try_from(x.to_kind(Kind::Double).reshape([-1])).unwrap()
    }

    #[test]
    fn hadamard_equals_the_worked_example() {
        let x = Tensor::from_slice(&[1.0_f64, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        // Row sums of signs: 36, -4, -8, 0, -16, 0, 0, 0, over sqrt(8).
        let expected = [36.0, -4.0, -8.0, 0.0, -16.0, 0.0, 0.0, 0.0].map(|v| v / 8f64.sqrt());
        for (a, b) in values(&hadamard(&x)).iter().zip(expected) {
            assert!((a - b).abs() < 1e-12, "{a} against {b}");
        }
        assert!((expected[0] - 12.7279).abs() < 1e-4 && (expected[4] + 5.65685).abs() < 1e-5);
    }

    #[test]
    fn hadamard_keeps_products() {
        tch::manual_seed(1);
        let x = Tensor::randn([2, 3, 128], (Kind::Double, tch::Device::Cpu));
        let product = |x: &Tensor| x.matmul(&x.transpose(1, 2));
        let difference = product(&hadamard(&x)) - product(&x);
        assert!(difference.abs().max().double_value(&[]) < 1e-12);
        let back = hadamard(&hadamard(&x)) - x;
        assert!(back.abs().max().double_value(&[]) < 1e-12);
    }

    #[test]
    fn scales_are_rounded_up_to_powers_of_two() {
        let x = Tensor::from_slice(&[3.7_f32, -448.0, 7.0, 0.0]).view([4, 1]);
        let (_, scale) = quantize_e4m3(&x, ScaleFormat::Ue8m0);
        let expected = [0.015625, 1.0, 0.015625, 2.384185791015625e-07];
        assert_eq!(values(&scale), expected);
    }

    #[test]
    fn ue8m0_scales_are_exact_powers_at_every_magnitude() {
        for exponent in -12..40 {
            let amax = 448.0 * 2f64.powi(exponent);
            // The power itself, one step of f32 above it, and just below the next.
            let x = [amax as f32, (amax as f32).next_up(), (2.0 * amax) as f32];
            let x = Tensor::from_slice(&x).view([3, 1]);
            let (_, scale) = quantize_e4m3(&x, ScaleFormat::Ue8m0);
            let power = 2f64.powi(exponent);
            assert_eq!(values(&scale), [power, 2.0 * power, 2.0 * power]);
        }
    }

    #[test]
    fn e4m3_values_equal_the_worked_examples() {
        let x = [3.7_f32, -1.23, 0.017, 0.5, -3.69, 2.2, 0.001];
        let x = Tensor::from_slice(&x);
        let (q, _) = quantize_e4m3(&x, ScaleFormat::Ue8m0);
        assert_eq!(
            values(&q),
            [240.0, -80.0, 1.125, 32.0, -240.0, 144.0, 0.0625]
        );
        let back = [3.75, -1.25, 0.017578125, 0.5, -3.75, 2.25, 0.0009765625];
        assert_eq!(values(&fp8_round_trip(&x, ScaleFormat::Ue8m0)), back);
        let (q, scale) = quantize_e4m3(&x, ScaleFormat::F32);
        assert_eq!(
            values(&q),
            [448.0, -144.0, 2.0, 60.0, -448.0, 256.0, 0.1171875]
        );
        assert_eq!(values(&scale), [f64::from(3.7_f32 / 448.0)]);
    }

    /// Sums of 128 numbers rounded at each of 7 stages would be off by several steps of bf16.
    #[test]
    fn bf16_vectors_are_rounded_once() {
        tch::manual_seed(2);
        let x = Tensor::randn([64, 128], (Kind::Double, tch::Device::Cpu)).to_kind(Kind::BFloat16);
        let once = hadamard(&x.to_kind(Kind::Double)).to_kind(Kind::BFloat16);
        let found = hadamard(&x);
        assert_eq!(found.kind(), Kind::BFloat16);
        // f32 sums lie next to f64 sums: a few may round the other way.
        let other = found.ne_tensor(&once).sum(Kind::Int64).int64_value(&[]);
        assert!(other < 8, "{other} of 8192 differ");
        // Scales in f32 times e4m3 values have more digits than bf16.
        let rounded = fp8_round_trip(&found, ScaleFormat::F32);
        assert_eq!(rounded.kind(), Kind::Float);
        let narrow = rounded.to_kind(Kind::BFloat16).to_kind(Kind::Float);
        assert!(rounded.ne_tensor(&narrow).any().int64_value(&[]) == 1);
        assert_eq!(
            rounded,
            fp8_round_trip(&found.to_kind(Kind::Float), ScaleFormat::F32)
        );
    }

    #[test]
    fn the_gradient_passes_straight_through() {
        let x = Tensor::from_slice(&[3.7_f32, 0.017]).set_requires_grad(true);
        let y = fp8_round_trip(&x, ScaleFormat::Ue8m0);
        autograd::backward(&[y], &[Tensor::from_slice(&[2.0_f32, -3.0])]).unwrap();
        assert_eq!(values(&x.grad()), [2.0, -3.0]);
    }
}
