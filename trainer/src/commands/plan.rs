//! `baleen train --dry-run`: the configuration written out, and what it amounts to.
//!
//! The output is itself a configuration; what is said about it stands in comments at its end.

use std::fmt::Write;

use kernels::tch::{Device, Kind};
use model::ModelConfig;

use super::{Failure, output};
use crate::config::{RunConfig, StageConfig};
use crate::config_file;
use crate::memory::memory_bytes;
use crate::policy;
use crate::prompts::open_tasks;
use crate::without_effect::without_effect;

/// Prints configuration and plan.
pub fn print(config: &RunConfig) -> Result<(), Failure> {
    let device = kernels::runtime::start(config.threads).device;
    let kind = policy::compute_kind(config.compute, device);
    let parts = policy::open(&config.model, config.seed)?;
    let max_new_tokens = config.sampling.max_new_tokens;
    let shape = &parts.config;
    let tasks = open_tasks(
        &config.environments,
        shape,
        &parts.tokenizer,
        max_new_tokens,
    )?;
    let mut text = config_file::to_ron(config) + &describe(config, shape, kind, device);
    for dataset in tasks.datasets() {
        let _ = writeln!(
            text,
            "//   dataset {}: {}",
            dataset.name(),
            dataset.summary()
        );
    }
    output::print_line(text.trim_end()).map(|_| ())
}

fn describe(config: &RunConfig, shape: &ModelConfig, kind: Kind, device: Device) -> String {
    let mut text = String::from("// What would be run:\n");
    let dtype = if kind == Kind::Float { "f32" } else { "bf16" };
    let _ = writeln!(
        text,
        "//   policy: {:.1} M parameters, {} layers, computing in {dtype}",
        shape.num_parameters() as f64 / 1e6,
        shape.num_hidden_layers
    );
    for (index, stage) in config.stages.iter().enumerate() {
        let _ = write!(
            text,
            "//   stage {index}: {}, {} steps",
            stage.name(),
            stage.steps()
        );
        let _ = match stage {
            StageConfig::IndexerWarmup(stage)
            | StageConfig::SparseTraining(stage)
            | StageConfig::Sft(stage) => {
                writeln!(text, " of {} documents", stage.documents_per_step)
            }
            StageConfig::Grpo(stage) => writeln!(
                text,
                " of {} prompts x {} samples in {} mini-batches",
                stage.prompts_per_step, stage.group_size, stage.mini_batches
            ),
        };
    }
    let _ = writeln!(
        text,
        "//   memory: about {:.1} GB",
        memory_bytes(config, shape, kind, device) as f64 / 1e9
    );
    for sentence in without_effect(config, shape) {
        let _ = writeln!(text, "//   without effect: {sentence}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_leaves_the_configuration_readable() {
        let config = include_str!("../../../configs/smoke.ron");
        let config = config_file::parse(config, "smoke").unwrap_or_else(|error| panic!("{error}"));
        let parts = policy::open(&config.model, 0).expect("a random model");
        let text = config_file::to_ron(&config)
            + &describe(&config, &parts.config, Kind::Float, Device::Cpu);
        assert!(
            text.contains("//   stage 3: grpo, 4 steps of 4 prompts x 4 samples"),
            "{text}"
        );
        assert_eq!(
            config_file::parse(&text, "plan").expect("still RON"),
            config
        );
    }
}
