//! The decoder: embedding, layers, final norm, output head, and its three forward passes.
//!
//! [`Transformer::forward_packed`] is the learner's pass over packed documents;
//! [`Transformer::prefill`] is the same pass writing a cache; [`Transformer::decode`] adds one token
//! to each cached sequence. Shapes: T tokens of a pack, B cached sequences.

use std::cell::RefCell;
use std::rc::Rc;

use kernels::fused::logprobs::Head;
use kernels::tch::{self, Device, Kind, Tensor};
use kernels::{KernelError, decode};

use crate::attention::{AttentionRequest, CacheWrite};
use crate::config::ModelConfig;
use crate::context::{DecodeContext, PackContext};
use crate::decode_graph::{GraphDecoder, GraphSampling, LentDecoder, StepRecorder};
use crate::experts::Experts;
use crate::input::PackedInput;
use crate::kv_cache::KvCache;
use crate::layer::{Layer, LayerOutput, LayerRecord};
use crate::norm::RmsNorm;
use crate::parameter::{Parameter, ParameterGroup, ParameterLoader};
use crate::router::Routing;
use crate::selection::Selection;
use crate::weights::{WeightError, WeightSource};

/// Which attention the main model uses where an indexer is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Every visible key (and always where no indexer is attached).
    Dense,
    /// The indexer's top-k.
    Sparse,
}

/// What a forward pass shall do besides computing hidden states.
#[derive(Debug)]
pub struct ForwardOptions {
    /// Experts.
    pub routing: Routing,
    /// Attention.
    pub attention: Attention,
    /// Also return the indexer's KL loss of every layer.
    pub indexer_loss: bool,
    /// Keys, where attention is sparse.
    pub selection: Selection,
    /// Recompute each layer's activations in backward instead of keeping them.
    pub activation_checkpointing: bool,
}

impl ForwardOptions {
    /// Plain inference with free routing and sparse attention over freely selected keys.
    pub fn inference() -> ForwardOptions {
        ForwardOptions {
            routing: Routing::Free,
            attention: Attention::Sparse,
            indexer_loss: false,
            selection: Selection::Free,
            activation_checkpointing: false,
        }
    }
}

/// Result of a forward pass over T tokens.
#[derive(Debug)]
pub struct ForwardOutput {
    /// Normalised final hidden states, `[T, hidden_size]`.
    pub hidden: Tensor,
    /// Experts used, i64 `[T, num_moe_layers, top_k]`, in a MoE model unless routing is `Free`.
    pub routing: Option<Tensor>,
    /// Under `Routing::Replay`: how many of the recorded experts free routing would choose now.
    pub agreeing: Option<AgreeingExperts>,
    /// Indexer KL per layer, each a scalar summed over tokens, when asked for.
    pub indexer_losses: Vec<Tensor>,
    /// Under `Selection::Record` with sparse attention: positions that each token attends to in its own
    /// sequence, i64 `[T, num_layers, K]`, ascending, -1 for absent ones.
    pub selected: Option<Tensor>,
    /// Under `Selection::Replay`: share of the recorded keys that free selection would choose now, over the
    /// tokens that see more keys than they may select; `None` where there is no such token.
    pub selection_agreement: Option<f64>,
    /// Keys attended over keys visible, averaged over tokens (1 when dense).
    pub key_share: f64,
}

/// How far recorded experts agree with free routing.
#[derive(Debug)]
pub struct AgreeingExperts {
    /// Recorded experts that free routing would choose, an i64 scalar on the device.
    pub count: Tensor,
    /// Recorded experts.
    pub recorded: usize,
}

impl ForwardOutput {
    /// Under `Routing::Replay`: share of the recorded experts that free routing would choose now. Waits for the
    /// device.
    pub fn routing_agreement(&self) -> Option<f64> {
        let agreeing = self.agreeing.as_ref()?;
        Some(agreeing.count.int64_value(&[]) as f64 / agreeing.recorded as f64)
    }

    /// `selected` by layer and token, absent ones left out.
    pub fn selected_keys(&self) -> Option<Vec<Vec<Vec<i64>>>> {
        let selected = self.selected.as_ref()?;
        let present = |row: Vec<i64>| row.into_iter().filter(|&key| key >= 0).collect();
        let of_layer = |layer| {
            let rows = Vec::<Vec<i64>>::try_from(selected.select(1, layer));
            let rows = rows.expect("selected is i64 [T, num_layers, K]");
            rows.into_iter().map(present).collect()
        };
        Some((0..selected.size()[1]).map(of_layer).collect())
    }
}

/// A causal language model.
#[derive(Debug)]
pub struct Transformer {
    config: ModelConfig,
    kind: Kind,
    embed_tokens: Parameter,
    layers: Vec<Rc<Layer>>,
    norm: RmsNorm,
    /// `None` when tied to the embedding.
    lm_head: Option<Parameter>,
    /// Between uses.
    decoder: RefCell<Option<GraphDecoder>>,
}

impl Transformer {
    /// Loads every tensor from `source`, computing in `kind` on `device`.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape than `config` implies.
    pub fn load(
        config: &ModelConfig,
        source: &mut dyn WeightSource,
        kind: Kind,
        device: Device,
    ) -> Result<Transformer, WeightError> {
        let mut loader = ParameterLoader::new(source, kind, device);
        let table = [config.vocab_size, config.hidden_size];
        Ok(Transformer {
            embed_tokens: loader.load("model.embed_tokens.weight", ParameterGroup::Main, &table)?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::load(&mut loader, index, config).map(Rc::new))
                .collect::<Result<_, _>>()?,
            norm: RmsNorm::load(
                &mut loader,
                "model.norm.weight",
                config.hidden_size,
                config.rms_norm_eps,
            )?,
            lm_head: match config.tie_word_embeddings {
                true => None,
                false => Some(loader.load("lm_head.weight", ParameterGroup::Main, &table)?),
            },
            config: config.clone(),
            kind,
            decoder: RefCell::default(),
        })
    }

    /// Shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Compute type.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Device of the weights.
    pub fn device(&self) -> Device {
        self.embed_tokens.master.device()
    }

    /// Every parameter, in a fixed order.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let mut all = vec![&self.embed_tokens];
        all.extend(self.layers.iter().flat_map(|layer| layer.parameters()));
        all.push(self.norm.parameter());
        all.extend(&self.lm_head);
        all
    }

    /// Makes the masters visible to the next inference pass.
    pub fn publish(&self) {
        let parameters = self.parameters();
        let copied = parameters.iter().filter_map(|parameter| parameter.copied());
        let (to, from): (Vec<Tensor>, Vec<Tensor>) = copied
            .map(|[compute, master]| (compute.shallow_clone(), master.shallow_clone()))
            .unzip();
        kernels::foreach::copy_(&to, &from).expect("copies have their masters' shapes");
    }

    /// Forward over packed documents, differentiable.
    pub fn forward_packed(&self, input: &PackedInput, options: &ForwardOptions) -> ForwardOutput {
        let pack = PackContext::new(&self.config, input, self.kind);
        self.packed(input, pack, options, None)
    }

    /// Forward over prompts, one a slot, writing keys and values to the cache. Hidden states cover
    /// all prompt tokens, `[sum of lengths, hidden_size]`. No gradient.
    ///
    /// # Panics
    /// More tokens than the cache has pages for.
    pub fn prefill(
        &self,
        cache: &mut KvCache,
        slots: &[usize],
        prompts: &[&[u32]],
        options: &ForwardOptions,
    ) -> ForwardOutput {
        self.prefill_behind(cache, slots, &vec![0; slots.len()], prompts, options)
    }

    /// The same of tokens that continue what the slots hold: of slot `slots[i]` the first `pasts[i]` tokens were run
    /// before, by prefill or decode. Positions in `selected` count them.
    ///
    /// # Panics
    /// More tokens than the cache has pages for, or a slot that holds another number of tokens.
    pub fn prefill_behind(
        &self,
        cache: &mut KvCache,
        slots: &[usize],
        pasts: &[usize],
        tokens: &[&[u32]],
        options: &ForwardOptions,
    ) -> ForwardOutput {
        let input = PackedInput::from_sequences(tokens, self.device());
        let ends = pasts.iter().zip(tokens);
        let ranges = ends.map(|(&past, tokens)| past..past + tokens.len());
        cache.begin(slots.iter().copied().zip(ranges));
        let pack = PackContext::behind(&self.config, &input, pasts, self.kind);
        tch::no_grad(|| self.packed(&input, pack, options, Some((cache, slots))))
    }

    /// One more token for each of the slots `0..B`: `tokens` i64 `[B]`; hidden `[B, hidden_size]`.
    /// No gradient. Under `Routing::Record` the experts and under `Selection::Record` the keys come back as
    /// in a packed pass.
    ///
    /// # Panics
    /// More tokens than the cache has pages for.
    pub fn decode(
        &self,
        cache: &mut KvCache,
        tokens: &Tensor,
        options: &ForwardOptions,
    ) -> ForwardOutput {
        let _guard = tch::no_grad_guard();
        let batch = tokens.size()[0] as usize;
        cache.make_room(batch);
        let step = DecodeContext::new(&self.config, cache, batch, self.kind, self.device());
        let mut x = self.embed(tokens);
        let (mut routed, mut selected) = (Vec::new(), Vec::new());
        let records_keys = matches!(options.selection, Selection::Record)
            && self.sparse_topk(options.attention).is_some();
        for (layer, layer_cache) in self.layers.iter().zip(&cache.layers) {
            let (next, chosen, keys) = layer.cached(&x, &step, layer_cache, options.attention);
            x = next;
            routed.extend(chosen.map(|chosen| chosen.experts));
            if records_keys {
                selected.push(keys.unwrap_or_else(|| step.all_in_sight()));
            }
        }
        let key_share = self.sparse_topk(options.attention).map_or(1.0, |topk| {
            let share = |&len: &i64| topk.min(len) as f64 / len as f64;
            step.lengths.iter().map(share).sum::<f64>() / batch as f64
        });
        cache.push(batch);
        let records = matches!(options.routing, Routing::Record) && !routed.is_empty();
        ForwardOutput {
            hidden: self.norm.forward(&x),
            routing: records.then(|| Tensor::stack(&routed, 1)),
            agreeing: None,
            indexer_losses: Vec::new(),
            selected: records_keys.then(|| Tensor::stack(&selected, 1)),
            selection_agreement: None,
            key_share,
        }
    }

    /// Drops the gradients of experts that no row reached in the backward passes since the last call. To be called
    /// before an update: an expert that no token chose keeps its value and its moments.
    ///
    /// A GPU leaves zeros in these gradients, since knowing which they are would have made the host wait.
    pub fn settle_gradients(&self) {
        let experts = self.layers.iter().filter_map(|layer| layer.experts());
        let (experts, rows): (Vec<&Experts>, Vec<Tensor>) = experts
            .filter_map(|experts| Some((experts, experts.take_rows_of_backward()?)))
            .unzip();
        if rows.is_empty() {
            return;
        }
        // All layers have as many experts.
        let rows = Vec::<Vec<i32>>::try_from(Tensor::stack(&rows, 0)).expect("rows are [L, E]");
        for (experts, rows) in experts.iter().zip(&rows) {
            experts.drop_gradients(rows);
        }
    }

    /// Output head: hidden `[N, hidden_size]` to f32 logits `[N, vocab_size]`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.lm_head
            .as_ref()
            .unwrap_or(&self.embed_tokens)
            .project(hidden)
            .to_kind(Kind::Float)
    }

    /// Shows the output head to `use_head`.
    pub(crate) fn head<T>(&self, use_head: impl FnOnce(Head) -> T) -> T {
        let head = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
        let weight = head.weight().detach();
        use_head(Head {
            weight: &weight,
            master: &head.master,
        })
    }

    /// A decoder of up to `max_rows` sequences by CUDA graphs, which stays the model's.
    ///
    /// # Errors
    /// CUDA can't be used, a kernel does not compile, or memory is short.
    ///
    /// # Panics
    /// Where [`GraphDecoder::supports`] is false.
    pub fn decoder(
        &self,
        max_rows: usize,
        sampling: Option<GraphSampling>,
    ) -> Result<LentDecoder<'_>, KernelError> {
        LentDecoder::take(&self.decoder, self, max_rows, sampling)
    }

    /// Whether [`Transformer::record`] knows all layers.
    pub(crate) fn can_be_recorded(&self) -> bool {
        self.layers.iter().all(|layer| layer.can_be_recorded())
    }

    /// Puts a decode step on the recorder's queue: `tokens` i32 `[N]` to bf16 `logits` `[N, V]`.
    pub(crate) fn record(
        &self,
        step: &StepRecorder,
        cache: &KvCache,
        tokens: &Tensor,
        logits: &Tensor,
    ) -> Result<(), KernelError> {
        let table = self.embed_tokens.weight();
        decode::rows::embed(step.queue, &table, tokens, &step.drawn, &step.x)?;
        for (index, (layer, layer_cache)) in self.layers.iter().zip(&cache.layers).enumerate() {
            layer.record(step, layer_cache, index == 0)?;
        }
        // Products of few rows have added up the residual stream themselves.
        let y = (!step.has_small_products).then_some(&step.y);
        self.norm.record(step, y)?;
        let head = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
        step.queue.product(&step.h, &head.weight(), logits)
    }

    fn embed(&self, tokens: &Tensor) -> Tensor {
        Tensor::embedding(&self.embed_tokens.weight(), tokens, -1, false, false)
    }

    /// Keys a query attends to, at most, where attention is sparse.
    fn sparse_topk(&self, attention: Attention) -> Option<i64> {
        let dsa = self.config.dsa.as_ref()?;
        (attention == Attention::Sparse).then_some(dsa.index_topk as i64)
    }

    fn packed(
        &self,
        input: &PackedInput,
        pack: PackContext,
        options: &ForwardOptions,
        cache: Option<(&KvCache, &[usize])>,
    ) -> ForwardOutput {
        let pack = Rc::new(pack);
        let cache = cache.map(|(cache, slots)| {
            let key_rows = pack.key_rows(cache, slots);
            (cache, pack.cache_rows(cache, slots), key_rows)
        });
        // The residual stream, and what is still to be added to it.
        let (mut x, mut y) = (self.embed(&input.tokens), None);
        let mut indexer_losses = Vec::new();
        let mut records = Vec::new();
        let mut num_moe_layers = 0;
        for (index, layer) in self.layers.iter().enumerate() {
            let recorded = match layer.has_experts() {
                true => options.routing.layer(num_moe_layers),
                false => None,
            };
            num_moe_layers += usize::from(layer.has_experts());
            let request = AttentionRequest {
                attention: options.attention,
                indexer_loss: options.indexer_loss,
                selection: options.selection.layer(index),
            };
            let write = cache.as_ref().map(|(cache, rows, key_rows)| CacheWrite {
                cache: &cache.layers[index],
                rows,
                key_rows: key_rows.as_ref(),
            });
            // A pass that writes a cache has no backward to save memory for.
            let output = if options.activation_checkpointing && write.is_none() {
                checkpointed(layer, &x, &pack, request, recorded)
            } else {
                let recorded = recorded.as_ref();
                let (output, own) =
                    layer.packed_behind(&x, y.as_ref(), &pack, &request, recorded, write);
                y = Some(own);
                output
            };
            x = output.x;
            indexer_losses.extend(output.indexer_loss);
            records.push(output.record);
        }
        let hidden = match &y {
            Some(y) => self.norm.add_forward(&x, y).1,
            None => self.norm.forward(&x),
        };
        ForwardOutput {
            hidden,
            routing: recorded_routing(options, &records),
            agreeing: agreeing_experts(&records),
            indexer_losses,
            selected: recorded_selection(&records),
            selection_agreement: selection_agreement(&records),
            key_share: self
                .sparse_topk(options.attention)
                .map_or(1.0, |topk| pack.key_share(&input.documents, topk)),
        }
    }
}

/// A layer's packed pass that keeps only its input for backward.
fn checkpointed(
    layer: &Rc<Layer>,
    x: &Tensor,
    pack: &Rc<PackContext>,
    request: AttentionRequest,
    recorded: Option<Tensor>,
) -> LayerOutput {
    let record = Rc::new(RefCell::new(None));
    let (layer, pack, sink) = (layer.clone(), pack.clone(), record.clone());
    let outputs = kernels::autograd::checkpoint(&[x.shallow_clone()], move |inputs| {
        let output = layer.packed(&inputs[0], &pack, &request, recorded.as_ref(), None);
        // The recomputation in backward records the same again; nobody reads that.
        *sink.borrow_mut() = Some(output.record);
        std::iter::once(output.x)
            .chain(output.indexer_loss)
            .collect()
    });
    let mut outputs = outputs.into_iter();
    let record = record.borrow_mut().take().unwrap_or_default();
    LayerOutput {
        x: outputs.next().expect("the layer's output comes first"),
        indexer_loss: outputs.next(),
        record,
    }
}

fn recorded_routing(options: &ForwardOptions, records: &[LayerRecord]) -> Option<Tensor> {
    if matches!(options.routing, Routing::Free) {
        return None;
    }
    let layers: Vec<&Tensor> = records
        .iter()
        .filter_map(|r| r.routed.as_ref())
        .map(|r| &r.experts)
        .collect();
    (!layers.is_empty()).then(|| Tensor::stack(&layers, 1))
}

fn agreeing_experts(records: &[LayerRecord]) -> Option<AgreeingExperts> {
    let routed = || records.iter().filter_map(|r| r.routed.as_ref());
    let agreeing: Vec<&Tensor> = routed().filter_map(|r| r.agreeing.as_ref()).collect();
    (!agreeing.is_empty()).then(|| AgreeingExperts {
        count: Tensor::stack(&agreeing, 0).sum(Kind::Int64),
        recorded: routed().map(|r| r.experts.numel()).sum(),
    })
}

fn recorded_selection(records: &[LayerRecord]) -> Option<Tensor> {
    let layers: Vec<&Tensor> = records.iter().filter_map(|r| r.selected.as_ref()).collect();
    (!layers.is_empty()).then(|| Tensor::stack(&layers, 1))
}

fn selection_agreement(records: &[LayerRecord]) -> Option<f64> {
    let counts = records
        .iter()
        .filter_map(|r| r.selection_agreement.as_ref());
    let counts: Vec<&Tensor> = counts.collect();
    if counts.is_empty() {
        return None;
    }
    let sum = Tensor::stack(&counts, 0).sum_dim_intlist(0, false, Kind::Int64);
    let (recorded, agreeing) = (sum.int64_value(&[0]), sum.int64_value(&[1]));
    (recorded > 0).then(|| agreeing as f64 / recorded as f64)
}

#[cfg(test)]
mod tests;
