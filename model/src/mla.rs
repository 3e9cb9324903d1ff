//! Multi-head latent attention (DeepSeek-V2, section 2.1): one latent a token holds all heads' keys
//! and values.
//!
//! c_q = norm(W_qa h);  [q_nope | q_pe] = W_qb c_q (or W_q h);  [c | k_pe] = W_kva h, c normalised;
//! q_pe and k_pe rotated, k_pe shared by all heads. W_kvb holds W_UK and W_UV of each head.
//! expanded: k_h = [W_UK,h c | k_pe], v_h = W_UV,h c; dense attention over heads of their own.
//! absorbed: q'_h = [W_UK,h^T q_nope,h | q_pe,h] attends to the cached [c | k_pe] itself, one key head for
//!   all, with c as values; then out_h = W_UV,h o_h. Decoding and gathered sparse attention use it.
//! Both compute scores (q_nope,h . W_UK,h c + q_pe,h . k_pe) (d_nope + d_rope)^-0.5 m^2, m by YaRN.

use kernels::dsa::Values;
use kernels::dsa::gpu::choice::HeadShape;
use kernels::paged;
use kernels::tch::{Kind, Tensor};

use crate::attention::{CacheWrite, HeadValues, Heads, MainAttention, write_rows};
use crate::config::{MlaConfig, ModelConfig};
use crate::context::{DecodeContext, DocumentContext, PackContext};
use crate::dense_attention;
use crate::kv_cache::{KeyValueCache, LayerCache};
use crate::norm::RmsNorm;
use crate::parameter::{Parameter, ParameterGroup, ParameterLoader};
use crate::rope::Rotation;
use crate::weights::WeightError;

/// Epsilon of the latents' norms, whatever the config's `rms_norm_eps`.
const LATENT_NORM_EPS: f64 = 1e-6;

/// Attention of one layer.
#[derive(Debug)]
pub struct MultiHeadLatentAttention {
    num_heads: i64,
    nope_dim: i64,
    rope_dim: i64,
    v_dim: i64,
    latent_rank: i64,
    softmax_scale: f64,
    query: QueryProjection,
    kv_a_proj: Parameter,
    kv_a_norm: RmsNorm,
    kv_b_proj: Parameter,
    o_proj: Parameter,
}

/// How hidden states become queries.
#[derive(Debug)]
enum QueryProjection {
    Direct(Parameter),
    Latent {
        a_proj: Parameter,
        a_norm: RmsNorm,
        b_proj: Parameter,
    },
}

/// What tokens are projected to, after RoPE.
#[derive(Debug)]
pub(crate) struct LatentStates {
    /// Normalised query latent, `[T, q_lora_rank]`.
    q_latent: Option<Tensor>,
    /// `[T, heads, qk_nope_head_dim]`.
    q_nope: Tensor,
    /// `[T, heads, qk_rope_head_dim]`.
    q_pe: Tensor,
    /// `[c | k_pe]`, `[T, kv_lora_rank + qk_rope_head_dim]`.
    latent: Tensor,
}

impl MultiHeadLatentAttention {
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        prefix: &str,
        config: &ModelConfig,
        mla: &MlaConfig,
    ) -> Result<Self, WeightError> {
        let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
        let name = |part: &str| format!("{prefix}.{part}.weight");
        let mut load =
            |part: &str, shape: [usize; 2]| loader.load(&name(part), ParameterGroup::Main, &shape);
        let q_dim = heads * mla.qk_head_dim();
        let query = match mla.q_lora_rank {
            None => QueryProjection::Direct(load("q_proj", [q_dim, hidden])?),
            Some(rank) => QueryProjection::Latent {
                a_proj: load("q_a_proj", [rank, hidden])?,
                b_proj: load("q_b_proj", [q_dim, rank])?,
                a_norm: RmsNorm::load(loader, &name("q_a_layernorm"), rank, LATENT_NORM_EPS)?,
            },
        };
        let mut load =
            |part: &str, shape: [usize; 2]| loader.load(&name(part), ParameterGroup::Main, &shape);
        let rank = mla.kv_lora_rank;
        let expanded = heads * (mla.qk_nope_head_dim + mla.v_head_dim);
        Ok(MultiHeadLatentAttention {
            num_heads: heads as i64,
            nope_dim: mla.qk_nope_head_dim as i64,
            rope_dim: mla.qk_rope_head_dim as i64,
            v_dim: mla.v_head_dim as i64,
            latent_rank: rank as i64,
            softmax_scale: config.softmax_scale(),
            query,
            kv_a_proj: load("kv_a_proj_with_mqa", [mla.latent_dim(), hidden])?,
            kv_b_proj: load("kv_b_proj", [expanded, rank])?,
            o_proj: load("o_proj", [hidden, heads * mla.v_head_dim])?,
            kv_a_norm: RmsNorm::load(loader, &name("kv_a_layernorm"), rank, LATENT_NORM_EPS)?,
        })
    }

    /// W_UK `[heads, nope, rank]` and W_UV `[heads, v, rank]`.
    fn up_projections(&self) -> (Tensor, Tensor) {
        let width = self.nope_dim + self.v_dim;
        let both = self.kv_b_proj.weight();
        let both = both.view([self.num_heads, width, self.latent_rank]);
        (
            both.narrow(1, 0, self.nope_dim),
            both.narrow(1, self.nope_dim, self.v_dim),
        )
    }

    /// Queries against latents, `[T, heads, rank + rope]`.
    fn absorbed_queries(&self, q_nope: &Tensor, q_pe: &Tensor) -> Tensor {
        let (w_uk, _) = self.up_projections();
        let against_latent = q_nope.transpose(0, 1).bmm(&w_uk).transpose(0, 1);
        Tensor::cat(&[against_latent, q_pe.shallow_clone()], 2)
    }

    /// Attended latents `[T, heads, rank]` to head outputs `[T, heads, v]`.
    fn up_project_values(&self, attended: &Tensor) -> Tensor {
        let (_, w_uv) = self.up_projections();
        attended
            .transpose(0, 1)
            .bmm(&w_uv.transpose(1, 2))
            .transpose(0, 1)
    }

    fn flatten_heads(&self, outputs: &Tensor) -> Tensor {
        outputs.reshape([-1, self.num_heads * self.v_dim])
    }

    fn expanded_heads(&self, q_nope: &Tensor, q_pe: &Tensor, latent: &Tensor) -> Heads {
        let (num_tokens, width) = (latent.size()[0], self.nope_dim + self.v_dim);
        let kv = self
            .kv_b_proj
            .project(&latent.narrow(1, 0, self.latent_rank))
            .view([num_tokens, self.num_heads, width]);
        let k_pe = latent
            .narrow(1, self.latent_rank, self.rope_dim)
            .unsqueeze(1)
            .expand([num_tokens, self.num_heads, self.rope_dim], false);
        Heads {
            q: Tensor::cat(&[q_nope, q_pe], 2),
            k: Tensor::cat(&[kv.narrow(2, 0, self.nope_dim), k_pe], 2),
            v: HeadValues::Own(kv.narrow(2, self.nope_dim, self.v_dim)),
        }
    }

    fn absorbed_heads(&self, states: &LatentStates, document: &DocumentContext) -> Heads {
        let (q_nope, q_pe) = (document.rows(&states.q_nope), document.rows(&states.q_pe));
        Heads {
            q: self.absorbed_queries(&q_nope, &q_pe),
            k: document.keys(&states.latent).unsqueeze(1),
            v: HeadValues::KeyPrefix(self.latent_rank),
        }
    }
}

impl MainAttention for MultiHeadLatentAttention {
    type States = LatentStates;

    fn states(&self, h: &Tensor, rotation: &Rotation) -> LatentStates {
        let (q, q_latent) = match &self.query {
            QueryProjection::Direct(q_proj) => (q_proj.project(h), None),
            QueryProjection::Latent {
                a_proj,
                a_norm,
                b_proj,
            } => {
                let latent = a_norm.forward(&a_proj.project(h));
                (b_proj.project(&latent), Some(latent))
            }
        };
        let q = q.view([-1, self.num_heads, self.nope_dim + self.rope_dim]);
        let kv = self.kv_a_proj.project(h);
        let c = self.kv_a_norm.forward(&kv.narrow(1, 0, self.latent_rank));
        let k_pe = kv.narrow(1, self.latent_rank, self.rope_dim).unsqueeze(1);
        let k_pe = rotation.apply(&k_pe).squeeze_dim(1);
        LatentStates {
            q_latent,
            q_nope: q.narrow(2, 0, self.nope_dim),
            q_pe: rotation.apply(&q.narrow(2, self.nope_dim, self.rope_dim)),
            latent: Tensor::cat(&[c, k_pe], 1),
        }
    }

    fn indexer_input<'a>(&self, states: &'a LatentStates) -> Option<&'a Tensor> {
        states.q_latent.as_ref()
    }

    /// The expanded form.
    fn dense_heads(&self, states: &LatentStates, document: &DocumentContext) -> Heads {
        self.expanded_heads(
            &document.rows(&states.q_nope),
            &document.rows(&states.q_pe),
            &document.keys(&states.latent),
        )
    }

    /// Absorbed where selected entries are gathered, for all heads at once; where the others are
    /// masked, the narrower heads of the expanded form cost less.
    fn sparse_heads(
        &self,
        states: &LatentStates,
        document: &DocumentContext,
        gathers: bool,
    ) -> Heads {
        match gathers {
            true => self.absorbed_heads(states, document),
            false => self.dense_heads(states, document),
        }
    }

    fn head_shape(&self) -> HeadShape {
        HeadShape {
            heads: self.num_heads,
            gathered_kv_heads: 1,
            gathered: [self.latent_rank + self.rope_dim, self.latent_rank],
            dense: [self.nope_dim + self.rope_dim, self.v_dim],
        }
    }

    fn head_outputs(&self, attended: &Tensor, heads: &Heads) -> Tensor {
        match heads.v {
            HeadValues::Own(_) => self.flatten_heads(attended),
            HeadValues::KeyPrefix(_) => self.flatten_heads(&self.up_project_values(attended)),
        }
    }

    fn write_prompts(&self, states: &LatentStates, write: CacheWrite) {
        write_rows(latents_of(write.cache), write.rows, &states.latent);
    }

    fn attend_pack(
        &self,
        h: &Tensor,
        pack: &PackContext,
        write: Option<CacheWrite>,
    ) -> Option<Tensor> {
        if !dense_attention::knows_sequences(h, self.nope_dim + self.rope_dim, self.v_dim) {
            return None;
        }
        let states = self.states(h, &pack.rotations.main);
        if let Some(write) = write {
            self.write_prompts(&states, write);
        }
        let heads = self.expanded_heads(&states.q_nope, &states.q_pe, &states.latent);
        let plan = pack.varlen_plan();
        let attended = dense_attention::attend_sequences(&heads, plan, self.softmax_scale);
        Some(self.flatten_heads(&attended))
    }

    fn with_cached(&self, states: LatentStates, cache: &LayerCache, rows: &Tensor) -> LatentStates {
        LatentStates {
            latent: latents_of(cache).index_select(0, rows),
            ..states
        }
    }

    fn write_step(&self, states: &LatentStates, step: &DecodeContext, cache: &LayerCache) {
        write_rows(latents_of(cache), &step.rows, &states.latent);
    }

    fn attend_cached(
        &self,
        states: &LatentStates,
        step: &DecodeContext,
        cache: &LayerCache,
        selected: Option<&Tensor>,
    ) -> Tensor {
        let q = self.absorbed_queries(&states.q_nope, &states.q_pe);
        let latents = latents_of(cache);
        let (k, v) = (latents.unsqueeze(1), Values::KeyPrefix(self.latent_rank));
        let scale = self.softmax_scale;
        let attended = match selected {
            Some(selected) => {
                let rows = step.rows_of(selected);
                kernels::dsa::attend_selected_cached(&q, &k, v, &rows, scale)
            }
            None if paged::serves(&q, 1) => {
                paged::attend(&q, &k, v, step.table(), &step.lengths, scale)
            }
            None => self.attend_cached_latents(&q, &step.gathered(latents), step.visible()),
        };
        self.flatten_heads(&self.up_project_values(&attended))
    }

    fn output(&self, head_outputs: &Tensor) -> Tensor {
        self.o_proj.project(head_outputs)
    }

    fn parameters(&self) -> Vec<&Parameter> {
        let mut all = match &self.query {
            QueryProjection::Direct(q_proj) => vec![q_proj],
            QueryProjection::Latent {
                a_proj,
                a_norm,
                b_proj,
            } => vec![a_proj, a_norm.parameter(), b_proj],
        };
        all.extend([&self.kv_a_proj, self.kv_a_norm.parameter()]);
        all.extend([&self.kv_b_proj, &self.o_proj]);
        all
    }
}

impl MultiHeadLatentAttention {
    /// Absorbed attention to every visible latent, products and softmax in f32: q `[B, heads, rank +
    /// rope]`, latents `[B, len, rank + rope]`, visible `[B, len]` -> `[B, heads, rank]`.
    fn attend_cached_latents(&self, q: &Tensor, latents: &Tensor, visible: &Tensor) -> Tensor {
        let keys = latents.to_kind(Kind::Float);
        let hidden = Tensor::zeros(visible.size(), (Kind::Float, q.device()))
            .masked_fill(&visible.logical_not(), f64::NEG_INFINITY)
            .unsqueeze(1);
        let scores = hidden.baddbmm(
            &q.to_kind(Kind::Float),
            &keys.transpose(1, 2),
            1.0,
            self.softmax_scale,
        );
        let values = keys.narrow(2, 0, self.latent_rank);
        scores
            .softmax(-1, Kind::Float)
            .bmm(&values)
            .to_kind(q.kind())
    }
}

fn latents_of(cache: &LayerCache) -> &Tensor {
    match &cache.main {
        KeyValueCache::Latent(latents) => latents,
        KeyValueCache::Heads { .. } => {
            panic!("the cache of grouped queries under latent attention")
        }
    }
}

#[cfg(test)]
mod tests;
