//! Prompts in, groups of samples out.
//!
//! [`engine::Engine`] generates (schedule -> run -> postprocess), [`group`] turns prompts into graded
//! groups, [`sample`] holds the types that travel, [`rollout_file`] writes them to parquet.

pub mod engine;
pub mod group;
pub mod rollout_file;
pub mod sample;
pub mod sampler;
pub mod scheduler;

pub use sample::{FinishReason, Group, Prompt, Sample};
pub use sampler::SamplingConfig;
