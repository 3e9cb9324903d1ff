//! Prompts in, groups of samples out.
//!
//! [`engine::Engine`] generates (schedule -> run -> postprocess): [`scheduler`] says which sample
//! runs in which cache slot and on which pages, [`memory`] how much they may take, [`sampler`] turns logits into tokens with the random numbers of
//! [`draws`]. [`group`] turns prompts into groups that [`grading`] has graded, [`sample`] holds the types
//! that travel, [`rollout_file`] writes them to parquet. Losses and optimizers live elsewhere.

pub mod crash_point;
pub mod draws;
pub mod engine;
pub mod episodes;
pub mod error;
pub mod generation;
pub mod grading;
pub mod group;
pub mod memory;
mod paid;
pub mod rollout_file;
pub mod sample;
pub mod sampler;
pub mod scheduler;
pub mod table;
mod task_columns;
mod truncation;
mod vocabulary;

pub use engine::Engine;
pub use episodes::{Driver, EpisodeHost, EpisodesConfig};
pub use error::RolloutError;
pub use generation::{
    GeneratedGroup, GeneratedSample, GenerationSettings, GenerationStats, PausedSample, Request,
};
pub use grading::{Grader, GradingConfig, GuardedGrader};
pub use group::{Judge, sample_groups};
pub use memory::{CacheMemory, MemorySettings};
pub use sample::{EpisodeRecord, FinishReason, Group, Prompt, Sample, Segment, SegmentView};
pub use sampler::SamplingConfig;
pub use vocabulary::Vocabulary;
