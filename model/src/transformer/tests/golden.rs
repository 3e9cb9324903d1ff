//! Logits, log-probs and selected keys against numbers computed by transformers.
//!
//! `tests/golden/make_checkpoints.py` and `make_sparse.py` write the checkpoints and the numbers.

use std::path::{Path, PathBuf};

use super::*;
use crate::checkpoint::{HfFolder, read_config};
use crate::logprobs;

/// Logits are of order 1 and rounded to six digits in the files.
const TOLERANCE: f64 = 1e-5;
const MODELS: [&str; 4] = [
    "tiny_llama",
    "tiny_llama_tied",
    "tiny_mixtral",
    "tiny_llama_sparse",
];

struct Golden {
    model: Transformer,
    tokens: Vec<u32>,
    /// `[T, vocab_size]`.
    logits: Tensor,
    json: serde_json::Value,
}

fn folder(name: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    golden.join(name)
}

fn read<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn golden(name: &str) -> Golden {
    tch::set_num_threads(1);
    let folder = folder(name);
    let text = std::fs::read(folder.join("expected.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let logits: Vec<Vec<f32>> = read(&json["logits"]);
    let mut source = HfFolder::open(&folder).unwrap();
    let config = read_config(&folder).unwrap();
    Golden {
        model: Transformer::load(&config, &mut source, Kind::Float, Device::Cpu).unwrap(),
        tokens: read(&json["tokens"]),
        logits: Tensor::from_slice2(&logits),
        json,
    }
}

#[test]
fn packed_logits_equal_those_of_transformers() {
    for name in MODELS {
        let golden = golden(name);
        let input = alone(&golden.tokens);
        let output = golden
            .model
            .forward_packed(&input, &ForwardOptions::inference());
        let logits = golden.model.logits(&output.hidden);
        assert_close(&logits, &golden.logits, TOLERANCE, name);
    }
}

#[test]
fn prefill_and_decode_logits_equal_those_of_transformers() {
    for name in MODELS {
        let golden = golden(name);
        let options = ForwardOptions::inference();
        for prompt_len in [1, 4, golden.tokens.len() - 1] {
            let (prompt, completion) = golden.tokens.split_at(prompt_len);
            let mut cache = KvCache::new(golden.model.config(), 1, 30, Kind::Float, Device::Cpu);
            let output = golden.model.prefill(&mut cache, &[0], &[prompt], &options);
            let mut hidden = vec![output.hidden];
            for &token in completion {
                let token = Tensor::from_slice(&[i64::from(token)]);
                hidden.push(golden.model.decode(&mut cache, &token, &options).hidden);
            }
            let logits = tch::no_grad(|| golden.model.logits(&Tensor::cat(&hidden, 0)));
            assert_close(&logits, &golden.logits, TOLERANCE, name);
        }
    }
}

#[test]
fn token_logprobs_equal_the_log_softmax_of_golden_logits() {
    for name in MODELS {
        let golden = golden(name);
        let targets: Vec<i64> = golden.tokens[1..].iter().map(|&t| i64::from(t)).collect();
        let (count, targets) = (targets.len() as i64, Tensor::from_slice(&targets));
        let input = alone(&golden.tokens);
        let output = golden
            .model
            .forward_packed(&input, &ForwardOptions::inference());
        let rows = Tensor::arange(count, (Kind::Int64, Device::Cpu));
        let found = golden
            .model
            .token_logprobs(&output.hidden, &rows, &targets, 1.0, None);
        let expected = golden
            .logits
            .narrow(0, 0, count)
            .to_kind(Kind::Double)
            .log_softmax(-1, Kind::Double)
            .gather(1, &targets.unsqueeze(1), false)
            .squeeze_dim(1);
        assert_close(&found.to_kind(Kind::Double), &expected, TOLERANCE, name);
    }
}

/// More rows than one chunk holds, in an order of their own, with temperature and kept tokens.
#[test]
fn logprobs_in_chunks_equal_those_at_once() {
    let golden = golden("tiny_llama");
    let count = 1100i64;
    let output = tch::no_grad(|| {
        let options = ForwardOptions::inference();
        golden
            .model
            .forward_packed(&alone(&golden.tokens), &options)
    });
    let numbers = Tensor::arange(count, (Kind::Int64, Device::Cpu));
    let rows = (&numbers * 7).remainder(12);
    let targets = (&numbers * 5).remainder(96);
    let mut kept = logprobs::KeptTokens::default();
    for i in 0..count {
        let target = (i * 5 % 96) as u32;
        match i % 3 {
            0 => kept.push(&[]),
            _ => kept.push(&[target / 2, target, 95].map(|id| id.max(target % 7))),
        }
    }
    let logits = golden.model.logits(&output.hidden.index_select(0, &rows));
    for kept in [None, Some(&kept)] {
        let at_once = logprobs::token_logprobs(&logits, &targets, 0.7, kept);
        let chunked = golden
            .model
            .token_logprobs(&output.hidden, &rows, &targets, 0.7, kept);
        assert_eq!(chunked.size(), [count]);
        let finite = at_once.isfinite().sum(Kind::Int64).int64_value(&[]);
        assert_eq!(finite, count);
        assert_close(&chunked, &at_once, 1e-6, "chunks of 512, 512 and 76");
    }
}

fn selected(golden: &Golden) -> Vec<Vec<Vec<i64>>> {
    let options = ForwardOptions {
        selection: Selection::Record,
        ..ForwardOptions::inference()
    };
    let output = golden
        .model
        .forward_packed(&alone(&golden.tokens), &options);
    output.selected_keys().unwrap()
}

#[test]
fn selected_keys_equal_those_of_the_deepseek_indexer() {
    let golden = golden("tiny_llama_sparse");
    let expected: Vec<Vec<Vec<i64>>> = read(&golden.json["selected"]);
    assert_eq!(selected(&golden), expected);
}

#[test]
fn indexer_rope_is_not_interleaved() {
    let golden = golden("tiny_llama_sparse");
    let half_split: Vec<Vec<i64>> = read(&golden.json["selected"][0]);
    let interleaved: Vec<Vec<i64>> = read(&golden.json["interleaved"]);
    let found = &selected(&golden)[0];
    assert_eq!(found, &half_split);
    let changed = found.iter().zip(&interleaved).filter(|(a, b)| a != b);
    assert_eq!(
        changed.count(),
        18,
        "all rows with more than 6 visible keys"
    );
}
