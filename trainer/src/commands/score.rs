//! `baleen score`: log-probs of given token ids, for comparison with other implementations.
//!
//! Input, a line a sequence: `{"tokens": [1, 2, 3]}`. Output, a line each, in order: `logprobs` of
//! tokens 1.. (one fewer than tokens, nats, temperature 1); with `--logits` those of every token,
//! `logits[token][vocabulary]`; with `--routing` the experts `routing[layer][token][k]`; with
//! `--selected` the attended keys `selected[layer][token]`, positions in ascending order, where a
//! layer selects. All are those of the trainer's forward pass.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use kernels::tch::{self, Tensor};
use model::PackedInput;
use serde::{Deserialize, Serialize};

use super::model_arguments::{LoadedModel, ModelArguments};
use super::{Failure, output};

/// Print log-probs of given token ids
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArguments,
    /// JSON lines, {"tokens": [1, 2, 3]} each
    #[arg(long, value_name = "FILE.jsonl")]
    input: PathBuf,
    /// Also print the logits of every token, one for each id of the vocabulary
    #[arg(long)]
    logits: bool,
    /// Also print the experts of every token
    #[arg(long)]
    routing: bool,
    /// Also print the keys that every token attends to
    #[arg(long)]
    selected: bool,
}

#[derive(Debug, Deserialize)]
struct InputLine {
    tokens: Vec<u32>,
}

#[derive(Debug, Serialize)]
struct OutputLine {
    logprobs: Vec<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<Vec<Vec<f32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routing: Option<Vec<Vec<Vec<i64>>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    selected: Option<Vec<Vec<Vec<i64>>>>,
}

/// Scores line by line.
pub fn run(args: &Args) -> Result<(), Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::usage(format!("can't read {}: {error}", args.input.display()))
    };
    let file = File::open(&args.input).map_err(unreadable)?;
    let model = args.model.load()?;
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(unreadable)?;
        if line.trim().is_empty() {
            continue;
        }
        let tokens = parse(&line, model.policy.config())
            .map_err(|problem| format!("{}:{}: {problem}", args.input.display(), index + 1))
            .map_err(Failure::usage)?;
        let scored = tch::no_grad(|| score(&model, &tokens, args));
        let text = serde_json::to_string(&scored).map_err(Failure::running)?;
        if !output::print_line(&text)? {
            break;
        }
    }
    Ok(())
}

fn parse(line: &str, config: &model::ModelConfig) -> Result<Vec<u32>, String> {
    let InputLine { tokens } = serde_json::from_str(line)
        .map_err(|error| format!("not of the form {{\"tokens\": [1, 2, 3]}}: {error}"))?;
    if tokens.is_empty() {
        return Err("no tokens".to_string());
    }
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= config.vocab_size) {
        return Err(format!(
            "token {id} is outside the vocabulary of {}",
            config.vocab_size
        ));
    }
    if tokens.len() > config.max_position_embeddings {
        return Err(format!(
            "{} tokens, but the model's context has {}",
            tokens.len(),
            config.max_position_embeddings
        ));
    }
    Ok(tokens)
}

fn score(model: &LoadedModel, tokens: &[u32], args: &Args) -> OutputLine {
    let device = model.policy.device();
    let input = PackedInput::from_sequences(&[tokens], device);
    let output = model
        .policy
        .forward_packed(&input, &model.recording(args.selected));
    let num_targets = tokens.len() as i64 - 1;
    let rows = Tensor::arange(num_targets, (tch::Kind::Int64, device));
    let targets = input.tokens.narrow(0, 1, num_targets);
    // Nothing where no layer selects.
    let selected = output.selected_keys();
    let logprobs = match num_targets {
        0 => Vec::new(),
        _ => floats(
            &model
                .policy
                .token_logprobs(&output.hidden, &rows, &targets, 1.0, None),
        ),
    };
    OutputLine {
        logprobs,
        logits: args.logits.then(|| {
            let logits = model
                .policy
                .logits(&output.hidden)
                .to_kind(tch::Kind::Float);
            Vec::try_from(logits).expect("logits are [T, vocab_size]")
        }),
        routing: output
            .routing
            .filter(|_| args.routing)
            .map(|ids| by_layer(&ids)),
        selected,
    }
}

fn floats(values: &Tensor) -> Vec<f32> {
    Vec::<f32>::try_from(values.to_kind(tch::Kind::Float)).expect("a tensor of one axis")
}

/// `[token, layer, k]` ids as `[layer][token][k]`.
fn by_layer(ids: &Tensor) -> Vec<Vec<Vec<i64>>> {
    let (_, num_layers, _) = ids.size3().expect("routing is [T, num_layers, top_k]");
    (0..num_layers)
        .map(|layer| Vec::try_from(ids.select(1, layer)).expect("two axes remain"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_is_turned_to_layer_token_k() {
        // 2 tokens, 2 layers, top 1.
        let ids = Tensor::from_slice(&[10_i64, 11, 20, 21]).reshape([2, 2, 1]);
        assert_eq!(by_layer(&ids), [[[10], [20]], [[11], [21]]]);
    }
}
