//! Decode steps on a GPU as CUDA graphs: one launch a step instead of some hundreds.
//!
//! A [`GraphDecoder`] records [`Transformer::decode`] with the output head and sampling, once
//! for each batch size in use, in kernels of [`kernels::decode`] and cuBLAS products on buffers of its own. Arithmetic
//! and roundings are those of the eager pass, so that the learner finds the same log-probs. It knows grouped-query
//! attention over all keys and feed-forwards that are dense or have few experts, in bf16
//! ([`GraphDecoder::supports`]); whatever else a model has decodes eagerly.
//!
//! Sizes: B live sequences in slots `0..B`; N >= B rows that a graph was recorded for, those above B being padding with
//! position -1.

mod recorder;
mod step;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use kernels::cuda::{Queue, StepGraph};
use kernels::decode::attention::{Heads, Rope};
pub use kernels::decode::sampling::Truncation;
use kernels::decode::sampling::{self, Rows};
use kernels::decode::small_products::{Epilogue, Shape};
use kernels::tch::{self, Device, Kind, Tensor};
use kernels::{KernelError, decode};

pub(crate) use self::recorder::StepRecorder;
use self::recorder::{Buffers, shaped};
pub use self::step::{DecodedStep, DrawnToken, LaunchedStep, StepToken};
use crate::config::{ModelConfig, YarnConfig};
use crate::kv_cache::KvCache;
use crate::rope::inverse_frequencies;
use crate::transformer::{Attention, Transformer};

/// Largest steps between the sizes that graphs are recorded for.
const SIZE_STEP: usize = 64;

/// How tokens are drawn in a graph: everything but greedy choice.
#[derive(Debug, PartialEq)]
pub struct GraphSampling {
    /// Divides the logits.
    pub temperature: f64,
    /// Ids that may be drawn, one flag a column of the logits; `None` where all may.
    pub allowed: Option<Vec<bool>>,
    /// Which of them are drawn from; `None` for all.
    pub truncation: Option<Truncation>,
}

/// Decodes by graphs.
#[derive(Debug)]
pub struct GraphDecoder {
    queue: Queue,
    heads: Heads,
    rope: Rope,
    sampling: Option<GraphSampling>,
    /// The allowed ids of `sampling`, one bit each.
    allowed: Option<Tensor>,
    max_rows: usize,
    buffers: Buffers,
    /// By N.
    graphs: BTreeMap<usize, StepGraph>,
    /// Address of the cache that the graphs write to, and pages of a sequence in their tables.
    cache_place: (usize, usize),
}

impl GraphDecoder {
    /// Whether steps of `model` under `attention` can be recorded.
    pub fn supports(model: &Transformer, attention: Attention) -> bool {
        let config = model.config();
        let is_dense = config.dsa.is_none() || attention == Attention::Dense;
        let widths = [
            config.hidden_size,
            config.expert_intermediate_size(),
            config.intermediate_size,
            config.vocab_size,
        ];
        matches!(model.device(), Device::Cuda(_))
            && model.kind() == Kind::BFloat16
            && is_dense
            && config.mla.is_none()
            && widths.iter().all(|width| width.is_multiple_of(8))
            && heads(config).are_supported()
            && model.can_be_recorded()
    }

    /// A decoder of up to `max_rows` sequences.
    ///
    /// # Errors
    /// CUDA can't be used, a kernel does not compile, or memory is short.
    ///
    /// # Panics
    /// A model that is not supported.
    pub fn new(model: &Transformer, max_rows: usize) -> Result<GraphDecoder, KernelError> {
        assert!(
            GraphDecoder::supports(model, Attention::Dense),
            "asked before"
        );
        let (config, device) = (model.config(), model.device());
        let queue = Queue::new(device)?;
        let heads = heads(config);
        decode::prepare(&queue)?;
        let frequencies =
            inverse_frequencies(config.head_dim, config.rope_theta, config.yarn.as_ref());
        let rope = Rope {
            frequencies: Tensor::from_slice(&frequencies).to_device(device),
            factor: config
                .yarn
                .as_ref()
                .map_or(1.0, YarnConfig::rotation_factor),
        };
        Ok(GraphDecoder {
            queue,
            heads,
            rope,
            sampling: None,
            allowed: None,
            max_rows,
            buffers: Buffers::new(config, graph_size(max_rows, max_rows), device),
            graphs: BTreeMap::new(),
            cache_place: (0, 0),
        })
    }

    /// How steps draw their tokens; `None` makes them hand out logits.
    fn set_sampling(&mut self, sampling: Option<GraphSampling>) {
        if self.sampling == sampling {
            return;
        }
        let device = self.queue.cuda().device();
        let allowed = sampling
            .as_ref()
            .and_then(|sampling| sampling.allowed.as_ref());
        self.allowed = allowed.map(|allowed| {
            sampling::allowed_bits(allowed.len(), |id| allowed[id]).to_device(device)
        });
        self.sampling = sampling;
        self.graphs.clear();
    }

    fn truncation(&self) -> Option<Truncation> {
        self.sampling.as_ref()?.truncation
    }

    /// Whether steps draw the tokens, so that the next may be launched before one is read.
    pub fn draws(&self) -> bool {
        self.sampling.is_some()
    }

    /// Starts a step of one more token for each of the slots `0..B`: forwards `tokens` `[B]` and draws the next by
    /// `draws` `[B]`, in [0, 1), where the decoder samples. It may run ahead of a step that is not read yet.
    ///
    /// # Errors
    /// The card fails or has no memory.
    ///
    /// # Panics
    /// More sequences than `max_rows` or than the cache has slots, more tokens than it has pages for, or two steps
    /// not read.
    pub fn launch(
        &mut self,
        model: &Transformer,
        cache: &mut KvCache,
        tokens: &[StepToken],
        draws: &[f64],
    ) -> Result<LaunchedStep, KernelError> {
        let _guard = tch::no_grad_guard();
        let batch = tokens.len();
        cache.make_room(batch);
        let width = cache.place().1;
        let longest = (0..batch).map(|slot| cache.pages.table(slot).len()).max();
        assert!(longest <= Some(width), "a sequence longer than reserved");
        let rows = graph_size(batch, cache.num_slots());
        self.forget_other_cache(cache);
        if !self.graphs.contains_key(&rows) {
            let graph = self.record(model, cache, rows)?;
            self.graphs.insert(rows, graph);
        }
        let graph = self.graphs.get_mut(&rows).expect("inserted above");
        let tables = &*cache;
        let launched = graph.launch(&self.queue, |input| {
            let (draw_words, rest) = input.split_at_mut(2 * rows);
            let (token_words, rest) = rest.split_at_mut(rows);
            let (position_words, table_words) = rest.split_at_mut(rows);
            for row in 0..rows {
                let bits = draws.get(row).copied().unwrap_or(0.0).to_bits();
                draw_words[2 * row] = (bits as u32).cast_signed();
                draw_words[2 * row + 1] = ((bits >> 32) as u32).cast_signed();
                token_words[row] = tokens.get(row).map_or(0, |token| token.word());
                position_words[row] = match row < batch {
                    true => tables.pages.len(row) as i32,
                    false => -1,
                };
            }
            for (slot, table) in table_words.chunks_mut(width).take(batch).enumerate() {
                tables.write_table(slot, table);
            }
        })?;
        cache.push(batch);
        Ok(LaunchedStep {
            launched,
            batch,
            rows,
        })
    }

    /// Waits for `step` and shows what it gave, row by row in the order in which its tokens came.
    ///
    /// # Errors
    /// The card failed.
    pub fn read(
        &mut self,
        model: &Transformer,
        step: LaunchedStep,
    ) -> Result<DecodedStep<'_>, KernelError> {
        let config = model.config();
        let shape = [step.batch as i64, config.vocab_size as i64];
        let logits = self
            .sampling
            .is_none()
            .then(|| shaped(&self.buffers.logits, &shape));
        let kept_words = self.truncation().map_or(0, |_| kept_words(config));
        let graph = self.graphs.get_mut(&step.rows).expect("launched from it");
        Ok(DecodedStep {
            words: graph.read(step.launched)?,
            rows: step.rows,
            routing_width: routing_width(config),
            kept_words,
            logits,
        })
    }

    /// Lets go of the graphs, and with them of the cache that they were recorded for.
    pub fn forget(&mut self) {
        self.graphs.clear();
    }

    /// Graphs know addresses: those of a cache that has grown since are of no use.
    fn forget_other_cache(&mut self, cache: &KvCache) {
        let place = cache.place();
        if self.cache_place != place {
            self.graphs.clear();
            self.cache_place = place;
        }
    }

    fn record(
        &self,
        model: &Transformer,
        cache: &KvCache,
        rows: usize,
    ) -> Result<StepGraph, KernelError> {
        let config = model.config();
        let (n, hidden) = (rows as i64, config.hidden_size as i64);
        let routing_words = routing_words(config, rows);
        let width = cache.place().1;
        let output =
            self.buffers
                .output
                .narrow(0, 0, output_words(config, rows, self.truncation()) as i64);
        let shapes = small_products(config, n);
        self.heads.prepare(&self.queue, n)?;
        let has_small_products = config.moe.is_none() && shapes.iter().all(Shape::is_supported);
        if has_small_products {
            shapes
                .iter()
                .try_for_each(|shape| shape.prepare(&self.queue))?;
        }
        StepGraph::record(&self.queue, (4 + width) * rows, &output, |input| {
            let draws = input.narrow(0, 0, 2 * n).view_dtype(Kind::Double);
            let tokens = input.narrow(0, 2 * n, n);
            let buffers = &self.buffers;
            let (num_moe_layers, top_k) = routing_shape(config);
            let routing = (routing_words > 0).then(|| {
                let words = output
                    .narrow(0, 3 * n, routing_words as i64)
                    .view_dtype(Kind::Int16);
                shaped(&words, &[n, num_moe_layers, top_k])
            });
            let step = StepRecorder {
                queue: &self.queue,
                heads: self.heads,
                rope: &self.rope,
                positions: input.narrow(0, 3 * n, n),
                drawn: self.buffers.output.narrow(0, 0, self.buffers.rows),
                table: input.narrow(0, 4 * n, n * width as i64).view([n, -1]),
                page: cache.pages.page_tokens() as i64,
                has_small_products,
                x: shaped(&buffers.x, &[n, hidden]),
                h: shaped(&buffers.h, &[n, hidden]),
                y: shaped(&buffers.y, &[n, hidden]),
                qkv: shaped(&buffers.qkv, &[n, self.heads.qkv_width()]),
                attended: shaped(&buffers.attended, &[n, self.heads.queries * self.heads.dim]),
                buffers,
                rows: n,
                routing,
                moe_layer: Cell::new(0),
            };
            let logits = shaped(&buffers.logits, &[n, config.vocab_size as i64]);
            model.record(&step, cache, &tokens, &logits)?;
            let Some(sampling) = &self.sampling else {
                return Ok(());
            };
            let rows = Rows {
                logits: &logits,
                draws: &draws,
                tokens: &output.narrow(0, 0, n),
                logprobs: &output.narrow(0, n, n).view_dtype(Kind::Float),
                entropies: &output.narrow(0, 2 * n, n).view_dtype(Kind::Float),
            };
            let (queue, allowed) = (&self.queue, self.allowed.as_ref());
            let Some(truncation) = sampling.truncation else {
                return sampling::sample(queue, rows, allowed, sampling.temperature);
            };
            let words = kept_words(config) as i64;
            let kept = output.narrow(0, 3 * n + routing_words as i64, n * words);
            let kept = kept.view([n, words]);
            let temperature = sampling.temperature;
            sampling::sample_truncated(queue, rows, allowed, temperature, truncation, &kept)
        })
    }
}

/// A model's decoder in use; it returns to the model when dropped, with all that is compiled, but without graphs:
/// they would keep the cache.
#[derive(Debug)]
pub struct LentDecoder<'a> {
    home: &'a RefCell<Option<GraphDecoder>>,
    decoder: Option<GraphDecoder>,
}

impl<'a> LentDecoder<'a> {
    /// The decoder in `home`, or a new one, for `max_rows` sequences.
    pub(crate) fn take(
        home: &'a RefCell<Option<GraphDecoder>>,
        model: &Transformer,
        max_rows: usize,
        sampling: Option<GraphSampling>,
    ) -> Result<LentDecoder<'a>, KernelError> {
        let kept = home.borrow_mut().take();
        let mut decoder = match kept.filter(|kept| kept.max_rows >= max_rows) {
            Some(kept) => kept,
            None => GraphDecoder::new(model, max_rows)?,
        };
        decoder.set_sampling(sampling);
        Ok(LentDecoder {
            home,
            decoder: Some(decoder),
        })
    }
}

impl Deref for LentDecoder<'_> {
    type Target = GraphDecoder;

    fn deref(&self) -> &GraphDecoder {
        self.decoder.as_ref().expect("there until dropped")
    }
}

impl DerefMut for LentDecoder<'_> {
    fn deref_mut(&mut self) -> &mut GraphDecoder {
        self.decoder.as_mut().expect("there until dropped")
    }
}

impl Drop for LentDecoder<'_> {
    fn drop(&mut self) {
        self.forget();
        *self.home.borrow_mut() = self.decoder.take();
    }
}

/// Rows of the graph that serves `batch` sequences of at most `most`: powers of two, then steps of 64.
fn graph_size(batch: usize, most: usize) -> usize {
    let size = match batch {
        0..SIZE_STEP => batch.next_power_of_two(),
        _ => batch.next_multiple_of(SIZE_STEP),
    };
    size.min(most.max(batch)).max(1)
}

fn heads(config: &ModelConfig) -> Heads {
    Heads {
        queries: config.num_attention_heads as i64,
        keys: config.num_key_value_heads as i64,
        dim: config.head_dim as i64,
    }
}

/// The products of a layer with a dense feed-forward, for `rows` rows.
fn small_products(config: &ModelConfig, rows: i64) -> [Shape; 4] {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let qkv = heads(config).qkv_width() as usize;
    let attended = config.num_attention_heads * config.head_dim;
    let shape = |inner: usize, columns: usize, is_normed, epilogue| Shape {
        rows,
        inner: inner as i64,
        columns: columns as i64,
        is_normed,
        epilogue,
    };
    [
        shape(hidden, qkv, true, Epilogue::Plain),
        shape(attended, hidden, false, Epilogue::Added),
        shape(hidden, inner, true, Epilogue::Gated),
        shape(inner, hidden, false, Epilogue::Added),
    ]
}

/// Layers with experts, and experts a token.
fn routing_shape(config: &ModelConfig) -> (i64, i64) {
    let top_k = config.moe.as_ref().map_or(0, |moe| moe.num_experts_per_tok);
    (config.num_moe_layers() as i64, top_k as i64)
}

/// Words of the experts of `rows` rows, two in each.
fn routing_words(config: &ModelConfig, rows: usize) -> usize {
    (rows * routing_width(config)).div_ceil(2)
}

/// Words of the ids of a row that were drawn from, a bit each.
fn kept_words(config: &ModelConfig) -> usize {
    config.vocab_size.div_ceil(32)
}

/// Words that a step of `rows` rows gives the host.
fn output_words(config: &ModelConfig, rows: usize, truncation: Option<Truncation>) -> usize {
    let kept = truncation.map_or(0, |_| rows * kept_words(config));
    3 * rows + routing_words(config, rows) + kept
}

fn routing_width(config: &ModelConfig) -> usize {
    let (layers, top_k) = routing_shape(config);
    (layers * top_k) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graph_sizes_are_few_and_large_enough() {
        let sizes = [1, 2, 3, 17, 63, 64, 65, 100, 500].map(|batch| graph_size(batch, 512));
        assert_eq!(sizes, [1, 2, 4, 32, 64, 64, 128, 128, 512]);
        assert_eq!(graph_size(100, 100), 100);
        assert_eq!(graph_size(0, 8), 1);
    }
}
