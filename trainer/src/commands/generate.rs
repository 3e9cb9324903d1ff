//! `baleen generate`: continues a prompt with the engine that rollouts use.

use model::chat::{ChatOptions, Message, Thinking};
use rollout::{Engine, MemorySettings, Request, SamplingConfig};

use super::model_arguments::ModelArguments;
use super::{Failure, output};

/// Answer a prompt
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArguments,
    /// What the user says
    #[arg(long)]
    prompt: String,
    /// System message [default: the chat template's own]
    #[arg(long, conflicts_with = "raw")]
    system: Option<String>,
    /// Let the model reason first, where its chat format has a mode for it
    #[arg(long, conflicts_with = "raw")]
    thinking: bool,
    /// Continue the text as it is, without the chat template
    #[arg(long)]
    raw: bool,
    /// New tokens at most
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// Divides the logits; 0 always takes the most likely token
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Draw from the most likely tokens that hold this probability together
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Random draws derive from it
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Answers wanted
    #[arg(long, default_value_t = 1)]
    samples: usize,
}

/// Generates and prints.
pub fn run(args: &Args) -> Result<(), Failure> {
    let model = args.model.load()?;
    let tokens = if args.raw {
        model.tokenizer.encode(&args.prompt)
    } else {
        let system = args.system.as_ref().map(Message::system);
        let user = Message::user(&args.prompt);
        let messages: Vec<Message> = system.into_iter().chain([user]).collect();
        let options = ChatOptions {
            thinking: if args.thinking {
                Thinking::On
            } else {
                Thinking::Off
            },
            ..ChatOptions::default()
        };
        model.tokenizer.chat(&messages, &options)?
    };
    let sampling = SamplingConfig {
        temperature: args.temperature,
        top_p: args.top_p,
        max_new_tokens: args.max_new_tokens,
        ..SamplingConfig::default()
    };
    let (slots, memory) = (args.samples.clamp(1, 64), MemorySettings::default());
    let settings = model.generation(sampling, args.seed, slots, memory)?;
    let requests = [Request {
        prompt_id: 0,
        tokens,
        num_samples: args.samples,
        begun: Vec::new(),
        pauses: false,
    }];
    let engine = Engine::new(&model.policy, &settings, &requests)?;
    let (samples, stats) = engine.generate(&mut |_, _| {})?;
    for (index, sample) in samples.into_iter().flatten().enumerate() {
        if args.samples > 1 {
            output::print_line(&format!("--- sample {index}"))?;
        }
        // Special tokens, the stop token among them, decode to nothing.
        let text = model.tokenizer.decode(&sample.tokens);
        if !output::print_line(&text)? {
            return Ok(());
        }
    }
    let secs = stats.prefill_secs + stats.decode_secs;
    tracing::info!(
        "{} tokens in {secs:.1} s, {:.1} tokens/s",
        stats.sampled_tokens,
        stats.sampled_tokens as f64 / secs
    );
    Ok(())
}
