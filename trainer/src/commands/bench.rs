//! `baleen bench`: how fast a model computes on this machine, against what the machine can do.

use std::path::PathBuf;

use kernels::profiler::check_file;
use model::DsaConfig;

use super::model_arguments::{LoadedModel, ModelArguments, parse_dsa, parse_upcycle};
use super::{Failure, output, train};
use crate::bench::grpo::GrpoShape;
use crate::bench::timing::Timing;
use crate::bench::workloads::Subject;
use crate::bench::{self, Part};
use crate::config::{PolicyConfig, PolicySource, UpcycleConfig};

/// Measure prefill, decode, training and a GRPO step against the machine's limits
#[derive(Debug, clap::Args)]
#[command(after_help = "\
MODEL may also be smollm2-135m: random weights of that model's shape, no file needed; or
deepseek-v32-layer: one layer of DeepSeek-V3.2 in small; or deepseek-v32-attention: the attention of
one layer at its full widths, with a small feed-forward.
Columns: what was measured, the operations and bytes that the work needs at least, the time those
take at the measured ceilings (the longer of both), and the share of that limit reached. Tokens a
second: completion tokens of a rollout, prompt tokens of its prefill; of learning those forwarded, and
below prompt + completion of every sample. docs/benchmarks.md has the formulas.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArguments,
    /// Make experts of a dense model: experts=4,top_k=2
    #[arg(long, value_parser = parse_upcycle, value_name = "experts=N,top_k=K")]
    upcycle: Option<UpcycleConfig>,
    /// Attach a lightning indexer, untrained: heads=4,dim=32,topk=16
    #[arg(long, value_parser = parse_dsa, value_name = "heads=H,dim=D,topk=K")]
    dsa: Option<DsaConfig>,
    /// Measure only these [default: all but context, kernels, sparse and rollout]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    #[command(flatten)]
    shape: ShapeArguments,
    /// One run of each measurement instead of the median of three
    #[arg(long)]
    quick: bool,
    /// Write the timeline of one more GRPO step there, for ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
}

/// The batch of a GRPO step.
#[derive(Debug, clap::Args)]
struct ShapeArguments {
    /// Prompts of a rollout or step
    #[arg(long, value_name = "N", default_value_t = GrpoShape::default().prompts, value_parser = count)]
    prompts: usize,
    /// Samples of each prompt
    #[arg(long, value_name = "N", default_value_t = GrpoShape::default().group, value_parser = count)]
    group: usize,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = GrpoShape::default().prompt_tokens, value_parser = count)]
    prompt_tokens: usize,
    /// Tokens of every completion
    #[arg(long, value_name = "N", default_value_t = GrpoShape::default().new_tokens, value_parser = count)]
    new_tokens: usize,
    /// Tokens forwarded at once in learning, of step and train
    #[arg(long, value_name = "N", default_value_t = GrpoShape::default().micro_batch_tokens, value_parser = count)]
    micro_batch_tokens: usize,
    /// Compute each layer again in the backward pass, of step and train
    #[arg(long)]
    activation_checkpointing: bool,
}

impl ShapeArguments {
    fn shape(&self) -> GrpoShape {
        GrpoShape {
            prompts: self.prompts,
            group: self.group,
            prompt_tokens: self.prompt_tokens,
            new_tokens: self.new_tokens,
            micro_batch_tokens: self.micro_batch_tokens,
            activation_checkpointing: self.activation_checkpointing,
        }
    }
}

/// A number of things, at least one.
fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".to_string()),
        Ok(number) => Ok(number),
        Err(_) => Err("not a whole number".to_string()),
    }
}

/// Measures and prints line by line.
pub fn run(args: &Args) -> Result<(), Failure> {
    if let Some(path) = &args.profile {
        check_file(path).map_err(train::no_profile)?;
    }
    let model = load(args)?;
    let config = model.policy.config();
    let shape = match &config.moe {
        Some(moe) => format!(
            "{} experts, top-{}",
            moe.num_experts, moe.num_experts_per_tok
        ),
        None => "dense".to_string(),
    };
    let keys = match &config.dsa {
        Some(dsa) => format!(", sparse attention over {} keys", dsa.index_topk),
        None => String::new(),
    };
    print(&format!(
        "{}: {:.1} M parameters, {shape}{keys}\n{} on {:?}, {} threads, fast bf16: {}\n",
        args.model.model.display(),
        config.num_parameters() as f64 / 1e6,
        bench::kind_name(model.policy.kind()),
        model.policy.device(),
        kernels::tch::get_num_threads(),
        if kernels::runtime::has_fast_bf16(model.policy.device()) {
            "yes"
        } else {
            "no"
        },
    ))?;
    let subject = Subject {
        policy: &model.policy,
        attention: model.attention,
        timing: Timing {
            repeats: if args.quick { 1 } else { 3 },
        },
        shape: args.shape.shape(),
    };
    let parts = match args.only.as_slice() {
        [] => &bench::USUAL_PARTS,
        only => only,
    };
    bench::run(&subject, parts, print)?;
    match &args.profile {
        Some(path) => subject.profiled_step(path).map_err(Failure::from),
        None => Ok(()),
    }
}

fn load(args: &Args) -> Result<LoadedModel, Failure> {
    let path = &args.model.model;
    let shape = path.to_str().and_then(bench::shapes::named);
    let source = if let (Some(shape), false) = (shape, path.exists()) {
        PolicySource::Random(Box::new(shape))
    } else if args.upcycle.is_none() && args.dsa.is_none() {
        return args.model.load();
    } else {
        PolicySource::Path(path.display().to_string())
    };
    args.model.load_policy(&PolicyConfig {
        upcycle: args.upcycle.clone(),
        dsa: args.dsa.clone(),
        ..args.model.source(source)
    })
}

fn print(line: &str) -> Result<(), Failure> {
    output::print_line(line).map(|_| ())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(words: &str) -> Result<Args, clap::Error> {
        let line = format!("bench smollm2-135m {words}");
        Line::try_parse_from(line.split_whitespace()).map(|line| line.args)
    }

    #[test]
    fn the_shape_of_a_step_is_taken_from_options() {
        let args = parsed("--only step,rollout --prompts 64 --new-tokens 256").expect("valid");
        assert_eq!(args.only, [Part::Step, Part::Rollout]);
        let shape = GrpoShape {
            prompts: 64,
            new_tokens: 256,
            ..GrpoShape::default()
        };
        assert_eq!(args.shape.shape(), shape);
        let args = parsed("--only grpo").expect("the older name of step");
        assert_eq!(args.only, [Part::Step]);
        for wrong in ["--group 0", "--group -1", "--prompt-tokens many"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
