//! The policy network: ONE definition, used unchanged by rollout and trainer.
//!
//! A checkpoint folder in Hugging Face layout (or a GGUF file) becomes a [`Transformer`]; its three
//! forward passes ([`Transformer::forward_packed`], [`Transformer::prefill`],
//! [`Transformer::decode`]) share every layer. Losses and rollouts live elsewhere.

mod attention;
pub mod chat;
pub mod checkpoint;
pub mod config;
mod context;
pub mod decode_graph;
mod dense_attention;
mod experts;
pub mod gguf;
pub mod gqa;
pub mod indexer;
pub mod indexer_loss;
pub mod input;
pub mod kv_cache;
mod layer;
pub mod logprobs;
pub mod mla;
pub mod mlp;
pub mod moe;
mod norm;
pub mod pages;
pub mod parameter;
pub mod random_model;
pub mod rope;
pub mod router;
pub mod selection;
mod sparse_attention;
pub mod tokenizer;
pub mod transformer;
pub mod upcycle;
pub mod weights;

pub use config::{
    DsaConfig, IndexerQuantization, MlaConfig, ModelConfig, ModelType, MoeConfig, ScaleFormat,
    ScoringFunc, YarnConfig,
};
pub use decode_graph::{
    DecodedStep, GraphDecoder, GraphSampling, LaunchedStep, LentDecoder, StepToken, Truncation,
};
pub use input::{Document, PackedInput};
pub use kv_cache::{CacheShape, KvCache};
pub use logprobs::KeptTokens;
pub use parameter::{Parameter, ParameterGroup};
pub use router::{Routing, RoutingTrace};
pub use selection::{Selection, SelectionTrace};
pub use tokenizer::Tokenizer;
pub use transformer::{AgreeingExperts, Attention, ForwardOptions, ForwardOutput, Transformer};
pub use weights::{WeightError, WeightSource};
