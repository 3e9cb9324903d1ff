//! Grouped-query attention with RoPE.
//!
//! q [T, heads, head_dim], k and v [T, kv_heads, head_dim]; query head j uses key head j / (heads / kv_heads).
//! out = softmax(q k^T head_dim^-0.5) v over the visible (dense) or selected (sparse) keys.
//! Qwen2 adds biases to the three projections, Qwen3 a norm to every query and key head before RoPE.
//! The softmax over a pack is in [`crate::attention`].

use kernels::decode::attention::Cache;
use kernels::tch::Tensor;
use kernels::{KernelError, decode};

use crate::attention::{HeadValues, Heads, MAX_FLASH_WIDTH, MainAttention};
use crate::config::ModelConfig;
use crate::context::{DecodeContext, DocumentContext};
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

    /// Whether [`GroupedQueryAttention::record`] can be used.
    pub(crate) fn can_be_recorded(&self) -> bool {
        self.qkv.is_some() && self.norms.is_none()
    }

    /// Puts a decode step on the recorder's queue: `h` to `y`.
    pub(crate) fn record(
        &self,
        step: &StepRecorder,
        cache: &LayerCache,
    ) -> Result<(), KernelError> {
        let qkv = self.qkv.as_ref().expect("a stack in bf16");
        let (k, v) = heads_of(cache);
        let (queue, heads, cache) = (step.queue, step.heads, Cache { k, v });
        queue.product(&step.h, &qkv.weight, &step.qkv)?;
        let bias = qkv.bias.as_ref();
        decode::attention::rope_and_cache(
            queue,
            heads,
            &step.qkv,
            bias,
            step.rope,
            &step.positions,
            cache,
        )?;
        let (scale, out) = (self.softmax_scale, &step.attended);
        decode::attention::attend(queue, heads, &step.qkv, &step.positions, cache, scale, out)?;
        queue.product(out, &self.o_proj.weight(), &step.y)
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
            k: document.rows(&states.k),
            v: HeadValues::Own(document.rows(&states.v)),
        }
    }

    fn sparse_heads(
        &self,
        states: &HeadStates,
        document: &DocumentContext,
        _num_selected: i64,
    ) -> Heads {
        self.dense_heads(states, document)
    }

    fn head_outputs(&self, attended: &Tensor, _heads: &Heads) -> Tensor {
        attended.reshape([-1, self.num_heads * self.head_dim])
    }

    fn pack_heads(&self, states: &HeadStates) -> Option<Heads> {
        (self.head_dim <= MAX_FLASH_WIDTH).then(|| Heads {
            q: states.q.shallow_clone(),
            k: states.k.shallow_clone(),
            v: HeadValues::Own(states.v.shallow_clone()),
        })
    }

    fn write_prompts(&self, heads: &Heads, slots: &Tensor, positions: &Tensor, cache: &LayerCache) {
        let (k_cache, v_cache) = heads_of(cache);
        let at = [Some(slots), None, Some(positions)];
        let _ = k_cache.shallow_clone().index_put_(&at, &heads.k, false);
        if let HeadValues::Own(v) = &heads.v {
            let _ = v_cache.shallow_clone().index_put_(&at, v, false);
        }
    }

    fn write_prompt(
        &self,
        states: &HeadStates,
        document: &DocumentContext,
        cache: &LayerCache,
        slot: usize,
    ) {
        let (k_cache, v_cache) = heads_of(cache);
        for (cache, rows) in [(k_cache, &states.k), (v_cache, &states.v)] {
            let place = cache.select(0, slot as i64).narrow(1, 0, document.len);
            place
                .shallow_clone()
                .copy_(&document.rows(rows).transpose(0, 1));
        }
    }

    fn write_step(&self, states: &HeadStates, step: &DecodeContext, cache: &LayerCache) {
        let (k_cache, v_cache) = heads_of(cache);
        let at = [Some(&step.slots), None, Some(&step.positions)];
        let _ = k_cache.shallow_clone().index_put_(&at, &states.k, false);
        let _ = v_cache.shallow_clone().index_put_(&at, &states.v, false);
    }

    fn attend_cached(
        &self,
        states: &HeadStates,
        step: &DecodeContext,
        cache: &LayerCache,
        selected: Option<&Tensor>,
    ) -> Tensor {
        let (k_cache, v_cache) = heads_of(cache);
        let (batch, len) = (states.q.size()[0], step.max_len);
        let (k, v) = (k_cache.narrow(0, 0, batch), v_cache.narrow(0, 0, batch));
        let out = match selected {
            Some(selected) => {
                let scale = self.softmax_scale;
                kernels::dsa::attend_selected_cached(&states.q, &k, &v, selected, scale)
            }
            None => Tensor::scaled_dot_product_attention(
                &states.q.unsqueeze(2),
                &k.narrow(2, 0, len),
                &v.narrow(2, 0, len),
                Some(&step.visible.view([batch, 1, 1, len])),
                0.0,
                false,
                self.softmax_scale,
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
