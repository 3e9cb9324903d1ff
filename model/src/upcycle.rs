//! Upcycling: a dense model becomes a mixture of experts, and an indexer is attached.
//!
//! Every expert starts as a copy of the dense SwiGLU (w1 = gate_proj, w2 = down_proj,
//! w3 = up_proj). The gate weights of a token sum to 1, so the new model computes what the dense
//! one computed. Random router rows send tokens to different experts, whose gradients then differ:
//! that is what breaks the symmetry. (Komatsuzaki et al. 2023, "Sparse upcycling".)
//! The indexer starts at random; its warm-up stage trains it before attention becomes sparse.

use std::collections::HashMap;

use kernels::tch::Tensor;

use crate::config::{DsaConfig, ModelConfig, ModelType, MoeConfig, initializer_range};
use crate::random_model::fresh_tensor;
use crate::weights::{WeightError, WeightSource};

/// The wish does not fit the model.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UpcycleError {
    /// Experts are there already.
    #[error("the model has {0} experts a layer already; upcycling starts from a dense model")]
    AlreadyMoe(usize),
    /// The format with experts of another family has other tensors.
    #[error("upcycling makes a mixtral of a llama; this model is a {0}")]
    NotLlama(&'static str),
    /// An indexer is there already.
    #[error("the model has an indexer already (index_topk {0}); attach one to a model without")]
    AlreadySparse(usize),
    /// The new config contradicts itself.
    #[error("{0}")]
    Contradiction(String),
}

fn sound(config: ModelConfig) -> Result<ModelConfig, UpcycleError> {
    match config.problems() {
        problems if problems.is_empty() => Ok(config),
        problems => Err(UpcycleError::Contradiction(problems.join("; "))),
    }
}

/// `dense` with `num_experts` experts in every layer, `top_k` of them chosen per token.
///
/// # Errors
/// The model has experts already or is no llama, or `top_k` is not in `1..=num_experts`.
pub fn upcycle_config(
    dense: &ModelConfig,
    num_experts: usize,
    top_k: usize,
) -> Result<ModelConfig, UpcycleError> {
    if let Some(moe) = &dense.moe {
        return Err(UpcycleError::AlreadyMoe(moe.num_experts));
    }
    if dense.model_type != ModelType::Llama {
        return Err(UpcycleError::NotLlama(dense.model_type.name()));
    }
    sound(ModelConfig {
        model_type: ModelType::Mixtral,
        moe: Some(MoeConfig::mixtral(num_experts, top_k)),
        ..dense.clone()
    })
}

/// `config` with an indexer in every layer.
///
/// # Errors
/// The model has an indexer already, or `dsa` contradicts itself.
pub fn indexer_config(config: &ModelConfig, dsa: DsaConfig) -> Result<ModelConfig, UpcycleError> {
    if let Some(old) = &config.dsa {
        return Err(UpcycleError::AlreadySparse(old.index_topk));
    }
    let model_type = match config.model_type {
        ModelType::DeepseekV3 => ModelType::DeepseekV32,
        other => other,
    };
    sound(ModelConfig {
        model_type,
        dsa: Some(dsa),
        ..config.clone()
    })
}

/// The weights of [`upcycle_config`]: experts copied from the dense model `inner`, a random router,
/// all else as in `inner`.
pub struct UpcycledSource {
    inner: Box<dyn WeightSource>,
    seed: u64,
    /// The dense matrices of the layer being read, so that they are read once, not once an expert.
    layer: HashMap<String, Tensor>,
}

impl UpcycledSource {
    /// Wraps the dense `inner`; `seed` draws the router.
    pub fn new(inner: Box<dyn WeightSource>, seed: u64) -> UpcycledSource {
        UpcycledSource {
            inner,
            seed,
            layer: HashMap::new(),
        }
    }
}

impl WeightSource for UpcycledSource {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        if name.ends_with(".block_sparse_moe.gate.weight") {
            return Ok(fresh_tensor(self.seed, name, shape, initializer_range()));
        }
        let Some(dense) = dense_name(name) else {
            return self.inner.tensor(name, shape);
        };
        if !self.layer.contains_key(&dense) {
            let layer = &dense[..dense.rfind("mlp.").expect("dense_name writes it")];
            self.layer.retain(|kept, _| kept.starts_with(layer));
            let weight = self.inner.tensor(&dense, shape)?;
            self.layer.insert(dense.clone(), weight);
        }
        // A real copy: experts that shared storage could never part.
        Ok(self.layer[&dense].copy())
    }
}

/// `P.block_sparse_moe.experts.E.w1.weight` -> `P.mlp.gate_proj.weight`, and so on.
fn dense_name(name: &str) -> Option<String> {
    let (layer, expert) = name.split_once(".block_sparse_moe.experts.")?;
    let (_, matrix) = expert.split_once('.')?;
    let matrix = match matrix {
        "w1.weight" => "gate_proj",
        "w2.weight" => "down_proj",
        "w3.weight" => "up_proj",
        _ => return None,
    };
    Some(format!("{layer}.mlp.{matrix}.weight"))
}

/// The weights of [`indexer_config`]: a random indexer (k_norm: weight 1, bias 0), all else as in
/// `inner`.
pub struct IndexerSource {
    inner: Box<dyn WeightSource>,
    seed: u64,
}

impl IndexerSource {
    /// Wraps `inner`, which has no indexer; `seed` draws one.
    pub fn new(inner: Box<dyn WeightSource>, seed: u64) -> IndexerSource {
        IndexerSource { inner, seed }
    }
}

impl WeightSource for IndexerSource {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        if name.contains(".self_attn.indexer.") {
            Ok(fresh_tensor(self.seed, name, shape, initializer_range()))
        } else {
            self.inner.tensor(name, shape)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use kernels::tch::{Kind, no_grad};

    use super::*;
    use crate::random_model::RandomSource;

    fn dense() -> ModelConfig {
        ModelConfig {
            vocab_size: 96,
            hidden_size: 4,
            intermediate_size: 6,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 2,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            max_position_embeddings: 256,
            tie_word_embeddings: true,
            bos_token_id: None,
            eos_token_ids: vec![2],
            ..ModelConfig::sizeless_llama()
        }
    }

    /// A dense model that knows no expert and no indexer, and counts how often it is read.
    struct Dense(RandomSource, std::rc::Rc<std::cell::Cell<usize>>);

    impl WeightSource for Dense {
        fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
            self.1.set(self.1.get() + 1);
            if name.contains("block_sparse_moe") || name.contains("indexer") {
                return Err(WeightError::Missing {
                    path: PathBuf::from("dense"),
                    name: name.to_string(),
                });
            }
            self.0.tensor(name, shape)
        }
    }

    fn source() -> (UpcycledSource, std::rc::Rc<std::cell::Cell<usize>>) {
        let reads = std::rc::Rc::new(std::cell::Cell::new(0));
        let dense = Dense(RandomSource::new(&dense(), 5), reads.clone());
        (UpcycledSource::new(Box::new(dense), 1), reads)
    }

    #[test]
    fn every_expert_starts_as_the_dense_ffn() {
        let (mut upcycled, reads) = source();
        let mut dense = RandomSource::new(&dense(), 5);
        for (w, matrix, shape) in [
            ("w1", "gate_proj", [6, 4]),
            ("w2", "down_proj", [4, 6]),
            ("w3", "up_proj", [6, 4]),
        ] {
            let expected = dense
                .tensor(&format!("model.layers.1.mlp.{matrix}.weight"), &shape)
                .unwrap();
            for e in 0..3 {
                let name = format!("model.layers.1.block_sparse_moe.experts.{e}.{w}.weight");
                assert_eq!(upcycled.tensor(&name, &shape).unwrap(), expected);
            }
        }
        assert_eq!(reads.get(), 3, "each dense matrix is read once");
    }

    #[test]
    fn experts_do_not_share_storage() {
        let (mut upcycled, _) = source();
        let expert = |u: &mut UpcycledSource, e: usize| {
            let name = format!("model.layers.0.block_sparse_moe.experts.{e}.w1.weight");
            u.tensor(&name, &[6, 4]).unwrap()
        };
        let (mut first, second) = (expert(&mut upcycled, 0), expert(&mut upcycled, 1));
        let _ = no_grad(|| first.fill_(9.0));
        assert_ne!(first, second);
        assert_ne!(first, expert(&mut upcycled, 2));
    }

    #[test]
    fn identical_experts_with_gates_that_sum_to_one_compute_the_dense_output() {
        let (mut upcycled, _) = source();
        let prefix = "model.layers.0.block_sparse_moe";
        let x = Tensor::from_slice(&[0.5f32, -1.0, 2.0, 0.25, 1.5, 0.0, -0.5, 1.0]).reshape([2, 4]);
        let gate = upcycled
            .tensor(&format!("{prefix}.gate.weight"), &[3, 4])
            .unwrap();
        let swiglu = |w1: &Tensor, w2: &Tensor, w3: &Tensor| {
            (x.linear::<&Tensor>(w1, None).silu() * x.linear::<&Tensor>(w3, None))
                .linear::<&Tensor>(w2, None)
        };
        let outputs: Vec<Tensor> = (0..3)
            .map(|e| {
                let mut w = |m: &str, shape: [i64; 2]| {
                    let name = format!("{prefix}.experts.{e}.{m}.weight");
                    upcycled.tensor(&name, &shape).unwrap()
                };
                swiglu(&w("w1", [6, 4]), &w("w2", [4, 6]), &w("w3", [6, 4]))
            })
            .collect();
        let scores = x.linear::<&Tensor>(&gate, None).softmax(-1, Kind::Float);
        let (top, ids) = scores.topk(2, -1, true, true);
        let gates = &top / top.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
        let stacked = Tensor::stack(&outputs, 1); // [T, experts, hidden]
        let chosen = stacked.gather(1, &ids.unsqueeze(-1).expand([2, 2, 4], false), false);
        let mixed =
            (chosen * gates.unsqueeze(-1)).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let mut dense = RandomSource::new(&dense(), 5);
        let mut w = |m: &str, shape: [i64; 2]| {
            let name = format!("model.layers.0.mlp.{m}_proj.weight");
            dense.tensor(&name, &shape).unwrap()
        };
        let expected = swiglu(&w("gate", [6, 4]), &w("down", [4, 6]), &w("up", [6, 4]));
        let error = (mixed - &expected).abs().max().double_value(&[]);
        let size = expected.abs().max().double_value(&[]);
        assert!(size > 1e-6 && error < 1e-5 * size, "{error} of {size}");
    }

    #[test]
    fn router_rows_differ_between_experts_layers_and_seeds() {
        let (mut upcycled, _) = source();
        let gate = |u: &mut UpcycledSource, layer: usize| {
            let name = format!("model.layers.{layer}.block_sparse_moe.gate.weight");
            u.tensor(&name, &[8, 4]).unwrap()
        };
        let first = gate(&mut upcycled, 0);
        assert_ne!(first.get(0), first.get(1));
        assert_ne!(first, gate(&mut upcycled, 1));
        assert_eq!(first, gate(&mut source().0, 0));
        let other = Dense(RandomSource::new(&dense(), 5), Default::default());
        assert_ne!(first, gate(&mut UpcycledSource::new(Box::new(other), 2), 0));
    }

    #[test]
    fn indexer_is_drawn_and_the_rest_passes_through() {
        let mut with_indexer = IndexerSource::new(Box::new(source().0), 3);
        let prefix = "model.layers.0.self_attn.indexer";
        let wq = with_indexer.tensor(&format!("{prefix}.wq.weight"), &[8, 4]);
        let std = wq.unwrap().std(false).double_value(&[]);
        assert!((0.01..0.03).contains(&std), "{std}");
        let bias = with_indexer.tensor(&format!("{prefix}.k_norm.bias"), &[4]);
        assert_eq!(bias.unwrap(), Tensor::from_slice(&[0f32; 4]));
        let weight = with_indexer.tensor(&format!("{prefix}.k_norm.weight"), &[4]);
        assert_eq!(weight.unwrap(), Tensor::from_slice(&[1f32; 4]));
        let name = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(
            with_indexer.tensor(name, &[4, 4]).unwrap(),
            RandomSource::new(&dense(), 5)
                .tensor(name, &[4, 4])
                .unwrap()
        );
    }

    #[test]
    fn impossible_wishes_are_refused() {
        let moe = upcycle_config(&dense(), 8, 2).unwrap();
        assert_eq!(moe.moe, Some(MoeConfig::mixtral(8, 2)));
        assert_eq!(moe.model_type, ModelType::Mixtral);
        assert_eq!(upcycle_config(&moe, 4, 2), Err(UpcycleError::AlreadyMoe(8)));
        let error = upcycle_config(&dense(), 2, 3).unwrap_err().to_string();
        assert!(error.contains("num_experts_per_tok (3)"), "{error}");
        assert!(upcycle_config(&dense(), 2, 0).is_err());
        let dsa = |index_head_dim| DsaConfig::new(4, index_head_dim, 16);
        let sparse = indexer_config(&dense(), dsa(8)).unwrap();
        assert_eq!(sparse.dsa, Some(dsa(8)));
        assert_eq!(
            indexer_config(&sparse, dsa(8)),
            Err(UpcycleError::AlreadySparse(16))
        );
        assert!(indexer_config(&dense(), dsa(7)).is_err());
    }
}
