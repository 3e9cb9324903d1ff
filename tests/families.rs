//! The program on a model folder of every family, against transformers' numbers: `score` with experts
//! and selected keys, `generate`, and `import`, in f32 and bf16.

#[path = "golden/formula_weights.rs"]
mod formula_weights;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::program;
use crate::run_files::text;

const FAMILIES: [&str; 10] = [
    "llama",
    "qwen2",
    "qwen3",
    "mixtral",
    "qwen3_moe",
    "deepseek_v3",
    "deepseek_v32",
    "glm_moe_dsa",
    "deepseek_v32_fp8",
    "deepseek_v32_few_keys",
];

/// Token i of `families/tokenizer.json` is the character '!' + i, 94 is blank and 95 newline.
fn text_of(tokens: &[u8]) -> String {
    let character = |&token: &u8| match token {
        94 => ' ',
        95 => '\n',
        token => char::from(b'!' + token),
    };
    tokens.iter().map(character).collect()
}

/// A model folder of the family `name`, with a tokenizer, and its numbers.
fn family(name: &str) -> (tempfile::TempDir, Value) {
    let folder = tempfile::tempdir().unwrap();
    formula_weights::write_model(name, folder.path());
    let tokenizer = formula_weights::family("tokenizer.json");
    fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
    (folder, formula_weights::expected(name))
}

fn floats(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

fn ids(value: &Value) -> Vec<u8> {
    serde_json::from_value(value.clone()).unwrap()
}

fn score(model: &Path, tokens: &Value, dtype: &str) -> Value {
    let input = model.join("input.jsonl");
    fs::write(&input, json!({"tokens": tokens}).to_string()).unwrap();
    let ended = program::succeed(&[
        "score",
        text(model),
        "--input",
        text(&input),
        "--dtype",
        dtype,
        "--routing",
        "--selected",
    ]);
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Log-probs in nats of tokens 1.. under the golden logits.
fn logprobs(expected: &Value) -> Vec<f64> {
    let rows = expected["logits"].as_array().unwrap();
    let targets = &ids(&expected["tokens"])[1..];
    let logprob = |(row, &target): (&Value, &u8)| {
        let row = floats(row);
        row[usize::from(target)] - row.iter().map(|x| x.exp()).sum::<f64>().ln()
    };
    rows.iter().zip(targets).map(logprob).collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f64::max)
}

#[test]
fn score_of_every_family_equals_transformers() {
    for name in FAMILIES {
        let (folder, expected) = family(name);
        let scored = score(folder.path(), &expected["tokens"], "f32");
        let found = floats(&scored["logprobs"]);
        let difference = largest_difference(&found, &logprobs(&expected));
        assert!(difference < 1e-4, "{name}: {difference}");
        let mut routing = scored["routing"].clone();
        for layer in routing.as_array_mut().into_iter().flatten() {
            for experts in layer.as_array_mut().unwrap() {
                let mut sorted = ids(experts);
                sorted.sort_unstable();
                *experts = json!(sorted);
            }
        }
        assert_eq!(routing, expected["experts"], "{name}");
        if !expected["selected"].is_null() {
            assert_eq!(scored["selected"], expected["selected"], "{name}");
        }
    }
}

/// Root mean squares: a log-prob is the difference of a logit and the logarithm of a sum, each of which
/// moves as a logit does.
#[test]
fn score_in_bf16_of_every_family_is_near_transformers() {
    for name in FAMILIES {
        let (folder, expected) = family(name);
        let scored = score(folder.path(), &expected["tokens"], "bf16");
        let found = floats(&scored["logprobs"]);
        let squares: Vec<f64> = found
            .iter()
            .zip(logprobs(&expected))
            .map(|(a, b)| (a - b).powi(2))
            .collect();
        let rms = (squares.iter().sum::<f64>() / squares.len() as f64).sqrt();
        let bound = 2.0 * expected["bf16"]["free"]["rms"].as_f64().unwrap();
        assert!(rms < bound, "{name}: {rms} of {bound}");
        assert!(rms > 1e-4, "{name}: bf16 computed in f32");
    }
}

#[test]
fn generate_of_every_family_continues_as_transformers_does() {
    for name in FAMILIES {
        let (folder, expected) = family(name);
        let prompt = text_of(&ids(&expected["tokens"]));
        let greedy = ids(&expected["greedy"]);
        let count = greedy.len().to_string();
        for dtype in ["f32", "bf16"] {
            let ended = program::succeed(&[
                "generate",
                text(folder.path()),
                "--raw",
                "--prompt",
                &prompt,
                "--temperature",
                "0",
                "--max-new-tokens",
                &count,
                "--dtype",
                dtype,
            ]);
            match dtype {
                "f32" => assert_eq!(ended.stdout, text_of(&greedy) + "\n", "{name}"),
                _ => assert_eq!(
                    ended.stdout.trim_end_matches('\n').len(),
                    greedy.len(),
                    "{name}"
                ),
            }
        }
    }
}

#[test]
fn import_of_every_family_keeps_the_scores() {
    for name in FAMILIES {
        let (folder, expected) = family(name);
        let target = folder.path().join("imported");
        program::succeed(&["import", text(folder.path()), text(&target)]);
        let before = score(folder.path(), &expected["tokens"], "f32");
        assert_eq!(score(&target, &expected["tokens"], "f32"), before, "{name}");
    }
}
