//! Random weights: for tests, for timing, and for whatever a pretrained model doesn't have.
//!
//! Every tensor depends on (seed, name) alone, so the order of loading doesn't matter:
//! norm weights are 1, biases 0, all else is N(0, initializer_range^2). Projections that write to the residual
//! stream (o_proj, down_proj, w2) are divided by sqrt(2 num_hidden_layers), so that the stream's
//! variance does not grow with depth (GPT-2). The numbers come from splitmix64 through Box-Muller.

use kernels::tch::{Kind, Tensor};

use crate::config::ModelConfig;
use crate::weights::{WeightError, WeightSource};

/// A model of random weights.
#[derive(Debug)]
pub struct RandomSource {
    seed: u64,
    std: f64,
    residual_scale: f64,
}

impl RandomSource {
    /// Random weights for a model of shape `config`.
    pub fn new(config: &ModelConfig, seed: u64) -> RandomSource {
        RandomSource {
            seed,
            std: config.initializer_range,
            residual_scale: (2.0 * config.num_hidden_layers as f64).powf(-0.5),
        }
    }
}

impl WeightSource for RandomSource {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        let tensor = fresh_tensor(self.seed, name, shape, self.std);
        let writes_to_residual = ["o_proj.weight", "down_proj.weight", "w2.weight"]
            .iter()
            .any(|end| name.ends_with(end));
        Ok(if writes_to_residual {
            tensor * self.residual_scale
        } else {
            tensor
        })
    }
}

/// The initial value of an untrained tensor: ones for norms, zeros for biases, else N(0, std^2).
pub(crate) fn fresh_tensor(seed: u64, name: &str, shape: &[i64], std: f64) -> Tensor {
    let on_cpu = (Kind::Float, kernels::tch::Device::Cpu);
    if name.ends_with("norm.weight") {
        Tensor::ones(shape, on_cpu)
    } else if name.ends_with("bias") {
        Tensor::zeros(shape, on_cpu)
    } else {
        let count = shape.iter().product::<i64>() as usize;
        let values: Vec<f32> = Normal::new(seed, name)
            .take(count)
            .map(|z| (std * z) as f32)
            .collect();
        Tensor::from_slice(&values).reshape(shape)
    }
}

/// Endless independent N(0, 1) numbers, fixed by (seed, name).
struct Normal {
    state: u64,
    second: Option<f64>,
}

impl Normal {
    fn new(seed: u64, name: &str) -> Normal {
        // FNV-1a of the name; the seed goes through the generator once, so that neighbouring
        // seeds start far apart.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut state = seed;
        Normal {
            state: splitmix64(&mut state) ^ hash,
            second: None,
        }
    }
}

impl Iterator for Normal {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        if let Some(z) = self.second.take() {
            return Some(z);
        }
        let unit = 2f64.powi(-53);
        // In (0, 1], where the logarithm is finite, and in [0, 1).
        let u = ((splitmix64(&mut self.state) >> 11) + 1) as f64 * unit;
        let v = (splitmix64(&mut self.state) >> 11) as f64 * unit;
        let radius = (-2.0 * u.ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * v).sin_cos();
        self.second = Some(radius * sin);
        Some(radius * cos)
    }
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(num_hidden_layers: usize) -> ModelConfig {
        ModelConfig {
            vocab_size: 96,
            hidden_size: 32,
            intermediate_size: 40,
            num_hidden_layers,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            max_position_embeddings: 256,
            tie_word_embeddings: false,
            bos_token_id: None,
            eos_token_ids: vec![2],
            ..ModelConfig::sizeless_llama()
        }
    }

    fn values(seed: u64, name: &str, shape: &[i64]) -> Vec<f32> {
        let tensor = RandomSource::new(&config(8), seed)
            .tensor(name, shape)
            .unwrap();
        assert_eq!(tensor.size(), shape);
        Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn splitmix64_matches_the_published_sequence() {
        let mut state = 1234567;
        let first = [splitmix64(&mut state), splitmix64(&mut state)];
        assert_eq!(first, [6457827717110365317, 3203168211198807973]);
    }

    #[test]
    fn normal_numbers_have_the_moments_of_a_normal() {
        let z: Vec<f64> = Normal::new(3, "x").take(200_000).collect();
        let moment = |k: i32| z.iter().map(|v| v.powi(k)).sum::<f64>() / z.len() as f64;
        // Five standard errors: sqrt(1, 2, 15, 96) / sqrt(200000).
        assert!(moment(1).abs() < 0.0112, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.0158, "variance {}", moment(2));
        assert!(moment(3).abs() < 0.0433, "skew {}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.1096, "kurtosis {}", moment(4));
        let lag: f64 = z.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / z.len() as f64;
        assert!(lag.abs() < 0.0112, "correlation of neighbours {lag}");
    }

    #[test]
    fn a_tensor_depends_on_seed_and_name_only() {
        let name = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(values(7, name, &[32, 32]), values(7, name, &[32, 32]));
        assert_ne!(values(7, name, &[32, 32]), values(8, name, &[32, 32]));
        let other = "model.layers.1.self_attn.q_proj.weight";
        assert_ne!(values(7, name, &[32, 32]), values(7, other, &[32, 32]));
    }

    #[test]
    fn residual_projections_shrink_with_depth_and_norms_are_one() {
        let std = |v: &[f32]| (v.iter().map(|x| x * x).sum::<f32>() / v.len() as f32).sqrt();
        let gate = values(1, "model.layers.0.mlp.gate_proj.weight", &[100, 100]);
        assert!((std(&gate) - 0.02).abs() < 0.0008);
        let wide = ModelConfig {
            initializer_range: 0.08,
            ..config(8)
        };
        let wide = RandomSource::new(&wide, 1).tensor("lm_head.weight", &[100, 100]);
        assert!((wide.unwrap().std(false).double_value(&[]) - 0.08).abs() < 0.0032);
        // 8 layers: 0.02 / sqrt(16) = 0.005.
        for name in [
            "self_attn.o_proj",
            "mlp.down_proj",
            "block_sparse_moe.experts.3.w2",
            "mlp.experts.3.down_proj",
            "mlp.shared_experts.down_proj",
        ] {
            let out = values(1, &format!("model.layers.0.{name}.weight"), &[100, 100]);
            assert!((std(&out) - 0.005).abs() < 0.0002, "{name} {}", std(&out));
        }
        assert_eq!(values(1, "model.norm.weight", &[3]), [1.0; 3]);
        let k_norm = "model.layers.0.self_attn.indexer.k_norm";
        assert_eq!(values(1, &format!("{k_norm}.weight"), &[2]), [1.0; 2]);
        assert_eq!(values(1, &format!("{k_norm}.bias"), &[2]), [0.0; 2]);
        let layer = "model.layers.0";
        for norm in ["q_a_layernorm", "kv_a_layernorm", "q_norm", "k_norm"] {
            let name = format!("{layer}.self_attn.{norm}.weight");
            assert_eq!(values(1, &name, &[2]), [1.0; 2], "{norm}");
        }
        let bias = format!("{layer}.mlp.gate.e_score_correction_bias");
        assert_eq!(values(1, &bias, &[2]), [0.0; 2]);
        assert_eq!(
            values(1, &format!("{layer}.self_attn.q_proj.bias"), &[2]),
            [0.0; 2]
        );
    }
}
