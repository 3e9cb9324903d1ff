//! Grouped-query attention with RoPE.
//!
//! q [T, heads, head_dim], k and v [T, kv_heads, head_dim]; query head j uses key head j / (heads / kv_heads).
//! out = softmax(q k^T head_dim^-0.5) v over the visible (dense) or selected (sparse) keys.
//! Qwen2 adds biases to the three projections, Qwen3 a norm to every query and key head before RoPE.
//! The softmax over a pack is in [`crate::attention`].

use kernels::decode::attention::{Cache, NewTokens};
use kernels::decode::small_products::{Epilogue, small_product};
use kernels::dsa::gpu::choice::HeadShape;
use kernels::fused::rope::{RotatedHeads, rope_and_gather};
use kernels::fused::varlen;
use kernels::tch::Tensor;
use kernels::{KernelError, decode, fused, paged};

use crate::attention::{CacheWrite, HeadValues, Heads, MainAttention, write_rows};
use crate::config::ModelConfig;
use crate::context::{DecodeContext, DocumentContext, PackContext};
use crate::decode_graph::StepRecorder;
use crate::kv_cache::{KeyValueCache, LayerCache};
use crate::norm::RmsNorm;
use crate::parameter::{Parameter, ParameterLoader, Projection, Stack};
use crate::rope::Rotation;
use crate::weights::WeightError;

/// Attention of one layer.
#[derive(Debug)]
pub struct GroupedQueryAttention {
    num_heads: i64,
    num_kv_heads: i64,
    head_dim: i64,
    softmax_scale: f64,
    q_proj: Projection,
    k_proj: Projection,
    v_proj: Projection,
    o_proj: Projection,
    /// The first three in one, for a GPU's decode steps.
    qkv: Option<Stack>,
    norms: Option<HeadNorms>,
}

/// Norms of query and key heads.
#[derive(Debug)]
struct HeadNorms {
    q: RmsNorm,
    k: RmsNorm,
}

/// q, k, v of a pack or a decode step, after RoPE.
#[derive(Debug)]
pub(crate) struct HeadStates {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl GroupedQueryAttention {
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        prefix: &str,
        config: &ModelConfig,
    ) -> Result<Self, WeightError> {
        let hidden = config.hidden_size;
        let (q_dim, kv_dim) = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        );
        let ([q_proj, k_proj, v_proj], qkv) = Projection::load_stacked(
            loader,
            ["q_proj", "k_proj", "v_proj"].map(|name| format!("{prefix}.{name}")),
            [q_dim, kv_dim, kv_dim],
            hidden,
            config.qkv_bias,
        )?;
        let o_proj = Projection::load(loader, &format!("{prefix}.o_proj"), [hidden, q_dim], false)?;
        let mut norm = |name: &str| {
            let name = format!("{prefix}.{name}.weight");
            RmsNorm::load(loader, &name, config.head_dim, config.rms_norm_eps)
        };
        let norms = match config.qk_norm {
            true => Some(HeadNorms {
                q: norm("q_norm")?,
                k: norm("k_norm")?,
            }),
            false => None,
        };
        Ok(GroupedQueryAttention {
            num_heads: config.num_attention_heads as i64,
            num_kv_heads: config.num_key_value_heads as i64,
            head_dim: config.head_dim as i64,
            softmax_scale: config.softmax_scale(),
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            qkv,
            norms,
        })
    }

    /// States of a pack, keys and values gathered as its plan says; `None` where heads don't turn half-split as a
    /// whole.
    fn gathered_states(&self, h: &Tensor, pack: &PackContext) -> Option<HeadStates> {
        let [cos, sin] = pack.rotations.main.half_split_tables(self.head_dim)?;
        let heads = RotatedHeads {
            heads: self.num_heads,
            kv_heads: self.num_kv_heads,
            cos: &cos,
            sin: &sin,
        };
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        let mut qkv = Projection::project_stacked(projections, self.qkv.as_ref(), h);
        if let Some(norms) = &self.norms {
            let parts = [self.num_heads, self.num_kv_heads, self.num_kv_heads];
            let parts = qkv.split_with_sizes(parts.map(|heads| heads * self.head_dim), 1);
            let normed = |norm: &RmsNorm, x: &Tensor| {
                let y = norm.forward(&x.reshape([x.size()[0], -1, self.head_dim]));
                y.flatten(1, 2)
            };
            let (q, k) = (normed(&norms.q, &parts[0]), normed(&norms.k, &parts[1]));
            qkv = Tensor::cat(&[&q, &k, &parts[2]], 1);
        }
        let [q, k, v] = rope_and_gather(&qkv, &heads, pack.varlen_plan());
        Some(HeadStates { q, k, v })
    }

    /// Whether [`GroupedQueryAttention::record`] can be used.
    pub(crate) fn can_be_recorded(&self) -> bool {
        self.qkv.is_some() && self.norms.is_none()
    }

    /// Puts a decode step on the recorder's queue: `h` to `y`.
    pub(crate) fn record(
        &self,
        step: &StepRecorder,
        cache: &LayerCache,
        norm: Option<(&Tensor, f64)>,
    ) -> Result<(), KernelError> {
        let qkv = self.qkv.as_ref().expect("a stack in bf16");
        let (k, v) = heads_of(cache);
        let (queue, heads) = (step.queue, step.heads);
        let cache = Cache {
            k,
            v,
            table: &step.table,
            page: step.page,
        };
        match norm {
            Some(_) => small_product(
                queue,
                &step.x,
                &qkv.weight,
                norm,
                Epilogue::Plain,
                &step.qkv,
            )?,
            None => queue.product(&step.h, &qkv.weight, &step.qkv)?,
        }
        let new = NewTokens {
            qkv: &step.qkv,
            bias: qkv.bias.as_ref(),
            rope: step.rope,
            positions: &step.positions,
        };
        let (scale, out) = (self.softmax_scale, &step.attended);
        decode::attention::attend(queue, heads, new, cache, scale, out)?;
        let weight = self.o_proj.weight();
        match norm {
            Some(_) => small_product(queue, out, &weight, None, Epilogue::Added, &step.x),
            None => queue.product(out, &weight, &step.y),
        }
    }
}

impl MainAttention for GroupedQueryAttention {
    type States = HeadStates;

    fn states(&self, h: &Tensor, rotation: &Rotation) -> HeadStates {
        let split =
            |projection: &Projection, heads| projection.project(h).view([-1, heads, self.head_dim]);
        let q = split(&self.q_proj, self.num_heads);
        let k = split(&self.k_proj, self.num_kv_heads);
        let (q, k) = match &self.norms {
            Some(norms) => (norms.q.forward(&q), norms.k.forward(&k)),
            None => (q, k),
        };
        HeadStates {
            q: rotation.apply(&q),
            k: rotation.apply(&k),
            v: split(&self.v_proj, self.num_kv_heads),
        }
    }

    fn indexer_input<'a>(&self, _states: &'a HeadStates) -> Option<&'a Tensor> {
        None
    }

    fn dense_heads(&self, states: &HeadStates, document: &DocumentContext) -> Heads {
        Heads {
            q: document.rows(&states.q),
            k: document.keys(&states.k),
            v: HeadValues::Own(document.keys(&states.v)),
        }
    }

    fn sparse_heads(
        &self,
        states: &HeadStates,
        document: &DocumentContext,
        _gathers: bool,
    ) -> Heads {
        self.dense_heads(states, document)
    }

    fn head_shape(&self) -> HeadShape {
        HeadShape {
            heads: self.num_heads,
            gathered_kv_heads: self.num_kv_heads,
            gathered: [self.head_dim; 2],
            dense: [self.head_dim; 2],
        }
    }

    fn head_outputs(&self, attended: &Tensor, _heads: &Heads) -> Tensor {
        attended.reshape([-1, self.num_heads * self.head_dim])
    }

    fn write_prompts(&self, states: &HeadStates, write: CacheWrite) {
        let (k_cache, v_cache) = heads_of(write.cache);
        write_rows(k_cache, write.rows, &states.k);
        write_rows(v_cache, write.rows, &states.v);
    }

    fn with_cached(&self, states: HeadStates, cache: &LayerCache, rows: &Tensor) -> HeadStates {
        let (k, v) = heads_of(cache);
        HeadStates {
            q: states.q,
            k: k.index_select(0, rows),
            v: v.index_select(0, rows),
        }
    }

    fn attend_pack(
        &self,
        h: &Tensor,
        pack: &PackContext,
        write: Option<CacheWrite>,
    ) -> Option<Tensor> {
        let is_known = self.head_dim % 16 == 0 && self.head_dim <= 256;
        if !is_known || !fused::runs_on(h) {
            return None;
        }
        let plan = pack.varlen_plan();
        let states = self.gathered_states(h, pack)?;
        if let Some(write) = write {
            // Prompts have no branches: gathered rows are those of the pack.
            self.write_prompts(&states, write);
        }
        let HeadStates { q, k, v } = &states;
        let attended = varlen::attend(q, k, v, plan, self.softmax_scale);
        let attended = attended.expect("flash attention knows bf16 heads of up to 256");
        Some(attended.reshape([-1, self.num_heads * self.head_dim]))
    }

    fn attend_behind(&self, states: &HeadStates, pack: &PackContext) -> Option<Tensor> {
        let HeadStates { q, k, v } = states;
        if !varlen::serves(q, v) {
            return None;
        }
        let attended = varlen::attend(q, k, v, pack.key_plan(), self.softmax_scale);
        let attended = attended.expect("flash attention knows bf16 heads of up to 256");
        Some(attended.reshape([-1, self.num_heads * self.head_dim]))
    }

    fn write_step(&self, states: &HeadStates, step: &DecodeContext, cache: &LayerCache) {
        let (k_cache, v_cache) = heads_of(cache);
        write_rows(k_cache, &step.rows, &states.k);
        write_rows(v_cache, &step.rows, &states.v);
    }

    fn attend_cached(
        &self,
        states: &HeadStates,
        step: &DecodeContext,
        cache: &LayerCache,
        selected: Option<&Tensor>,
    ) -> Tensor {
        let ((k, v), q) = (heads_of(cache), &states.q);
        let (batch, len, scale) = (q.size()[0], step.max_len, self.softmax_scale);
        let out = match selected {
            Some(selected) => {
                let rows = step.rows_of(selected);
                kernels::dsa::attend_selected_cached(q, k, v, &rows, scale)
            }
            None if paged::serves(q, self.num_kv_heads) => {
                paged::attend(q, k, v, step.table(), &step.lengths, scale)
            }
            None => Tensor::scaled_dot_product_attention(
                &q.unsqueeze(2),
                &step.gathered(k).transpose(1, 2),
                &step.gathered(v).transpose(1, 2),
                Some(&step.visible().view([batch, 1, 1, len])),
                0.0,
                false,
                scale,
                self.num_kv_heads != self.num_heads,
            ),
        };
        out.reshape([batch, self.num_heads * self.head_dim])
    }

    fn output(&self, head_outputs: &Tensor) -> Tensor {
        self.o_proj.project(head_outputs)
    }

    fn parameters(&self) -> Vec<&Parameter> {
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj];
        let norms = self.norms.iter().flat_map(|norms| [&norms.q, &norms.k]);
        projections
            .into_iter()
            .flat_map(Projection::parameters)
            .chain(norms.map(RmsNorm::parameter))
            .collect()
    }
}

fn heads_of(cache: &LayerCache) -> (&Tensor, &Tensor) {
    match &cache.main {
        KeyValueCache::Heads { k, v } => (k, v),
        KeyValueCache::Latent(_) => panic!("the cache of latent attention under grouped queries"),
    }
}

#[cfg(test)]
mod tests {
    use kernels::tch::{self, Device, Kind};

    use super::*;
    use crate::input::{Document, PackedInput};
    use crate::random_model::RandomSource;

    /// The attention of a whole pack by its plan, in reference operations, equals that of its documents one by one.
    #[test]
    fn all_documents_at_once_attend_as_one_by_one() {
        let config = ModelConfig {
            vocab_size: 32,
            hidden_size: 48,
            intermediate_size: 64,
            num_hidden_layers: 1,
            num_attention_heads: 6,
            num_key_value_heads: 2,
            head_dim: 16,
            qkv_bias: true,
            qk_norm: true,
            ..ModelConfig::sizeless_llama()
        };
        let mut source = RandomSource::new(&config, 3);
        let mut loader = ParameterLoader::new(&mut source, Kind::Float, Device::Cpu);
        let prefix = "model.layers.0.self_attn";
        let attention = GroupedQueryAttention::load(&mut loader, prefix, &config).unwrap();
        let document = |start, trunk_len, branch_lens: &[i64]| Document {
            start,
            trunk_len,
            branch_lens: branch_lens.to_vec(),
        };
        let input = PackedInput {
            tokens: Tensor::zeros([36], (Kind::Int64, Device::Cpu)),
            documents: vec![
                document(0, 4, &[3, 1, 6]),
                document(14, 5, &[]),
                document(19, 3, &[4]),
                document(26, 1, &[2, 7]),
            ],
        };
        let pack = PackContext::new(&config, &input, Kind::Float);
        tch::manual_seed(2);
        let h = Tensor::randn([36, 48], (Kind::Float, Device::Cpu));
        let scale = attention.softmax_scale;

        let gathered = attention.gathered_states(&h, &pack).unwrap();
        let HeadStates { q, k, v } = &gathered;
        let at_once = varlen::attend_reference(q, k, v, pack.varlen_plan(), scale);

        let states = attention.states(&h, &pack.rotations.main);
        let one_by_one = pack.documents.iter().map(|document| {
            let heads = attention.dense_heads(&states, document);
            crate::dense_attention::attend_dense(&heads, document, scale)
        });
        let one_by_one = Tensor::cat(&one_by_one.collect::<Vec<Tensor>>(), 0);
        let difference = (at_once - one_by_one).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{difference}");
    }
}
