//! `baleen replay`: a grpo step worked out again, so that its arithmetic can be checked.

use std::fmt::Write;
use std::path::PathBuf;

use super::{Failure, logging, output};
use crate::replay::{self, Replay, ReplayedSample};
use crate::run_folder::RunLayout;

/// Work a grpo step out again from its stored samples and weights
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The weights come from the newest checkpoint before the step; the steps between are learned again from their
stored samples. Nothing is written but the file of --json: per sample mask and weight, and per token logprob,
sampler_logprob, ref_logprob, ratio, surrogate and KL term; the keys are those of
trainer/src/replay.rs::Replay. In a synchronous run on the same machine the log-probs are those of the run, bit
for bit.")]
pub struct Args {
    /// Run folder, such as runs/quickstart
    run: PathBuf,
    /// Step of the run, `global_step` in metrics.jsonl
    #[arg(long)]
    step: u64,
    /// Write everything to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print the tokens of this prompt's samples
    #[arg(long, value_name = "ID")]
    prompt: Option<u64>,
}

/// Prints the step's table, or the tokens of a prompt.
pub fn run(args: &Args) -> Result<(), Failure> {
    logging::start()?;
    let layout = RunLayout::new(&args.run);
    let config = layout.read_config()?;
    let replay = replay::replay(&config, &layout, args.step)?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string(&replay).map_err(Failure::running)?;
        std::fs::write(path, text).map_err(|error| {
            Failure::running(format!("can't write {}: {error}", path.display()))
        })?;
    }
    let mut text = head(&replay);
    match args.prompt {
        None => text.push_str(&table(&replay.samples)),
        Some(id) => {
            let of_prompt = |sample: &&ReplayedSample| sample.prompt_id == id;
            let samples: Vec<_> = replay.samples.iter().filter(of_prompt).collect();
            if samples.is_empty() {
                let text = format!("step {} trained no sample of prompt {id}", replay.step);
                return Err(Failure::usage(text).hint("without --prompt all samples are listed"));
            }
            samples
                .into_iter()
                .for_each(|sample| text.push_str(&tokens(sample)));
        }
    }
    output::print_line(text.trim_end()).map(|_| ())
}

fn head(replay: &Replay) -> String {
    let mut text = format!(
        "step {} of run {} (stage {}, step {}), from checkpoint {}\n",
        replay.step, replay.run, replay.stage_index, replay.step_in_stage, replay.checkpoint
    );
    for (index, (loss, of_terms)) in replay
        .losses
        .iter()
        .zip(&replay.losses_of_terms)
        .enumerate()
    {
        let _ = writeln!(
            text,
            "mini-batch {index}: loss {loss:.9}, from the terms {of_terms:.9}"
        );
    }
    if let Some(loss) = replay.recorded_loss {
        let _ = writeln!(
            text,
            "metrics.jsonl: loss {loss:.9}, the mean over mini-batches"
        );
    }
    let _ = match replay.largest_difference {
        Some(0.0) => writeln!(text, "log-probs: those that the run stored, bit for bit"),
        Some(largest) => writeln!(
            text,
            "log-probs: up to {largest:.3e} nats from those that the run stored"
        ),
        None => writeln!(text, "log-probs: the run stored none to compare with"),
    };
    text.push('\n');
    text
}

fn table(samples: &[ReplayedSample]) -> String {
    let mut text = format!(
        "{:>12} {:>6} {:>5} {:>4} {:>7} {:>9} {:>10} {:>4} {:>6} {:>9} {:>10}\n",
        "prompt",
        "sample",
        "batch",
        "age",
        "reward",
        "advantage",
        "drift",
        "mask",
        "tokens",
        "max ratio",
        "mean kl"
    );
    for sample in samples {
        let max = sample.ratio.iter().copied().fold(0.0, f64::max);
        let mean = sample.kl.iter().sum::<f64>() / sample.kl.len().max(1) as f64;
        let _ = writeln!(
            text,
            "{:>12} {:>6} {:>5} {:>4} {:>7.3} {:>9.4} {:>10.6} {:>4} {:>6} {max:>9.4} {mean:>10.3e}",
            sample.prompt_id,
            name(sample),
            sample.mini_batch,
            sample.policy_age,
            sample.reward.unwrap_or(f64::NAN),
            sample.advantage,
            sample.drift,
            sample.mask,
            sample.tokens.len(),
        );
    }
    text
}

/// `3`, or `3.1` for its second segment.
fn name(sample: &ReplayedSample) -> String {
    match sample.segment {
        0 => sample.sample_index.to_string(),
        segment => format!("{}.{segment}", sample.sample_index),
    }
}

fn tokens(sample: &ReplayedSample) -> String {
    let mut text = format!(
        "prompt {} sample {}: advantage {:.6}, mask {}, weight {:.6e}, kl_scale {}, {} given tokens without loss\n{:>6} {:>8} {:>12} {:>15} {:>12} {:>12} {:>12} {:>12}\n",
        sample.prompt_id,
        name(sample),
        sample.advantage,
        sample.mask,
        sample.weight,
        sample.kl_scale,
        sample.num_given,
        "token",
        "id",
        "logprob",
        "sampler_logprob",
        "ref_logprob",
        "ratio",
        "surrogate",
        "kl"
    );
    for (t, id) in sample.tokens.iter().enumerate() {
        let reference = sample.ref_logprobs.as_ref().map_or(f64::NAN, |all| all[t]);
        let _ = writeln!(
            text,
            "{:>6} {id:>8} {:>12.6} {:>15.6} {reference:>12.6} {:>12.6} {:>12.6} {:>12.4e}",
            sample.positions[t],
            sample.logprobs[t],
            sample.sampler_logprobs[t],
            sample.ratio[t],
            sample.surrogate[t],
            sample.kl[t],
        );
    }
    text.push('\n');
    text
}
