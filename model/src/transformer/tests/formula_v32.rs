//! A tiny DeepSeek-V3.2 whose weights are a formula, against numbers that transformers computed.
//!
//! `tests/golden/formula_v32.json` holds them. Of the checkpoint's names in alphabetical order, the
//! n-th (from 0) has the values v_i = sin(0.37 (i + 1) (1 + 0.01 (n + 1)) + 1.7 (n + 1)), i counting
//! row by row: norms are 1 + 0.1 v, biases 0.1 v, the embedding v, other matrices 1.2 v / sqrt(columns).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::*;
use crate::config::{IndexerQuantization, MlaConfig, ScaleFormat, ScoringFunc, YarnConfig};
use crate::context::PackContext;

const TOLERANCE: f64 = 1e-5;

fn config() -> ModelConfig {
    ModelConfig {
        model_type: ModelType::DeepseekV32,
        vocab_size: 64,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        head_dim: 8,
        rms_norm_eps: 1e-6,
        yarn: Some(YarnConfig {
            factor: 40.0,
            original_max_position_embeddings: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 1.0,
        }),
        max_position_embeddings: 163_840,
        mla: Some(MlaConfig {
            q_lora_rank: Some(16),
            kv_lora_rank: 16,
            qk_nope_head_dim: 8,
            qk_rope_head_dim: 8,
            v_head_dim: 8,
            rope_interleave: true,
        }),
        moe: Some(MoeConfig {
            scoring_func: ScoringFunc::Sigmoid,
            moe_intermediate_size: Some(16),
            first_k_dense_replace: 1,
            n_shared_experts: 1,
            n_group: 4,
            topk_group: 2,
            routed_scaling_factor: 2.5,
            correction_bias: true,
            ..MoeConfig::mixtral(8, 2)
        }),
        dsa: Some(DsaConfig::new(4, 16, 4)),
        ..ModelConfig::sizeless_llama()
    }
}

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/formula_v32.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// The weights of the formula, by the alphabetical place of a name among all names.
struct FormulaSource(BTreeMap<String, usize>);

impl WeightSource for FormulaSource {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        let n = self.0[name] as f64 + 1.0;
        let count = shape.iter().product::<i64>();
        let v: Vec<f64> = (1..=count)
            .map(|i| (0.37 * i as f64 * (1.0 + 0.01 * n) + 1.7 * n).sin())
            .collect();
        let v = Tensor::from_slice(&v).view(shape);
        let values = match name {
            _ if name.ends_with("norm.weight") => v * 0.1 + 1.0,
            _ if name.ends_with("bias") => v * 0.1,
            "model.embed_tokens.weight" => v,
            _ => v * (1.2 / (shape[1] as f64).sqrt()),
        };
        Ok(values.to_kind(Kind::Float))
    }
}

/// Notes the names that a model asks for.
struct Names(Vec<String>);

impl WeightSource for Names {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        self.0.push(name.to_string());
        Ok(Tensor::zeros(shape, (Kind::Float, Device::Cpu)))
    }
}

fn names(config: &ModelConfig) -> Vec<String> {
    let mut names = Names(Vec::new());
    Transformer::load(config, &mut names, Kind::Float, Device::Cpu).unwrap();
    names.0.sort();
    names.0
}

fn model_of(config: &ModelConfig) -> Transformer {
    tch::set_num_threads(1);
    let names = names(config).into_iter().enumerate();
    let mut source = FormulaSource(names.map(|(n, name)| (name, n)).collect());
    Transformer::load(config, &mut source, Kind::Float, Device::Cpu).unwrap()
}

fn tokens() -> Vec<u32> {
    read(&golden()["input_ids"])
}

/// `rows` of numbers, as f32.
fn matrix(value: &Value) -> Tensor {
    Tensor::from_slice2(&read::<Vec<Vec<f32>>>(value))
}

fn logits(model: &Transformer, options: &ForwardOptions) -> Tensor {
    let output = model.forward_packed(&alone(&tokens()), options);
    model.logits(&output.hidden)
}

#[test]
fn config_and_tensor_names_are_those_of_the_checkpoint() {
    let (config, golden) = (config(), golden());
    assert_eq!(config.problems(), Vec::<String>::new());
    assert_eq!(names(&config), read::<Vec<String>>(&golden["tensor_order"]));
    let scale = golden["softmax_scale"].as_f64().unwrap();
    assert!((config.softmax_scale() - scale).abs() < 1e-15);
    // The numbers of the checkpoint's 106 tensors.
    assert_eq!(config.num_parameters(), 55_344);
    let model = model_of(&config);
    let count: usize = model.parameters().iter().map(|p| p.master.numel()).sum();
    assert_eq!(count, 55_344);
}

#[test]
fn logits_selected_keys_and_experts_equal_those_of_transformers() {
    let (model, golden) = (model_of(&config()), golden());
    let options = ForwardOptions {
        selection: Selection::Record,
        ..recording()
    };
    let output = model.forward_packed(&alone(&tokens()), &options);
    let found = model.logits(&output.hidden);
    assert_close(&found, &matrix(&golden["logits"]), TOLERANCE, "logits");
    let selected = output.selected_keys().unwrap();
    for (layer, selected) in selected.iter().enumerate() {
        let expected = &golden["selected"][format!("layer{layer}")];
        assert_eq!(selected, &read::<Vec<Vec<i64>>>(expected), "layer {layer}");
    }
    let experts = output.routing.unwrap();
    assert_eq!(experts.size(), [12, 2, 2], "the first layer is dense");
    for (row, name) in ["layer1", "layer2"].iter().enumerate() {
        let found = experts.select(1, row as i64).sort(-1, false).0;
        let mut expected: Vec<Vec<i64>> = read(&golden["experts"][name]);
        expected.iter_mut().for_each(|experts| experts.sort());
        assert_eq!(
            Vec::<Vec<i64>>::try_from(found).unwrap(),
            expected,
            "{name}"
        );
    }
}

#[test]
fn hidden_states_and_index_scores_of_every_layer_equal_those_of_transformers() {
    let (model, golden) = (model_of(&config()), golden());
    let input = alone(&tokens());
    let pack = PackContext::new(model.config(), &input, Kind::Float);
    let mut x = model.embed(&input.tokens);
    for (index, layer) in model.layers.iter().enumerate() {
        let name = format!("layer{index}");
        let found = layer.index_scores(&x, &pack);
        let expected = matrix_of_visible(&golden["index_scores"][&name]);
        let found = found.masked_fill(&found.isinf(), -1e30);
        assert_close(&found, &expected, TOLERANCE, &name);
        x = layer
            .packed(&x, &pack, &request(Attention::Sparse), None, None)
            .x;
        let last: Vec<f32> = read(&golden["hidden_last_token"][&name]);
        // Hidden states reach 9 here; logits, after the final norm, don't.
        assert_close(
            &x.get(11),
            &Tensor::from_slice(&last),
            2.0 * TOLERANCE,
            &name,
        );
    }
}

/// The Hadamard transform and e4m3, with scales of either format.
#[test]
fn quantised_index_scores_equal_those_of_rounded_queries_and_keys() {
    let golden = golden();
    let input = alone(&tokens());
    let plain = matrix_of_visible(&golden["index_scores"]["layer0"]);
    for (scale_format, name) in [(ScaleFormat::Ue8m0, "ue8m0"), (ScaleFormat::F32, "f32")] {
        let quantised = ModelConfig {
            dsa: Some(DsaConfig {
                quantization: Some(IndexerQuantization { scale_format }),
                ..DsaConfig::new(4, 16, 4)
            }),
            ..config()
        };
        let model = model_of(&quantised);
        let pack = PackContext::new(model.config(), &input, Kind::Float);
        let found = model.layers[0].index_scores(&model.embed(&input.tokens), &pack);
        let found = found.masked_fill(&found.isinf(), -1e30);
        let expected = matrix_of_visible(&golden["quantised_index_scores"][name]);
        assert_close(&found, &expected, TOLERANCE, name);
        assert!(max_difference(&expected, &plain) > 1e-2, "rounding shows");
    }
}

/// Rows of scores, null where a key is not visible: -1e30.
fn matrix_of_visible(value: &Value) -> Tensor {
    let rows: Vec<Vec<Option<f32>>> = read(value);
    let visible = |row: Vec<Option<f32>>| row.into_iter().map(|s| s.unwrap_or(-1e30)).collect();
    let rows: Vec<Vec<f32>> = rows.into_iter().map(visible).collect();
    Tensor::from_slice2(&rows)
}

fn request(attention: Attention) -> AttentionRequest {
    AttentionRequest {
        attention,
        indexer_loss: true,
        selection: Selection::Free,
    }
}

/// The losses of the first n rows, for every n: each row's loss is what it adds.
#[test]
fn indexer_losses_of_every_layer_and_row_equal_the_golden_ones() {
    let (model, golden) = (model_of(&config()), golden());
    let tokens = tokens();
    let sums = |name: &str, layer: usize| {
        let rows: Vec<f64> = read(&golden["dsa_losses"][format!("{name}_layer{layer}")]);
        rows.iter()
            .scan(0.0, |sum, row| {
                *sum += row;
                Some(*sum)
            })
            .collect::<Vec<f64>>()
    };
    for len in 1..=tokens.len() {
        let input = alone(&tokens[..len]);
        let pack = PackContext::new(model.config(), &input, Kind::Float);
        let mut x = model.embed(&input.tokens);
        for (index, layer) in model.layers.iter().enumerate() {
            let loss = |attention| {
                let output = layer.packed(&x, &pack, &request(attention), None, None);
                (output.indexer_loss.unwrap().double_value(&[]), output.x)
            };
            let (dense, _) = loss(Attention::Dense);
            let (sparse, next) = loss(Attention::Sparse);
            for (name, found) in [("dense_kl_per_row", dense), ("sparse_kl_per_row", sparse)] {
                let expected = sums(name, index)[len - 1];
                let difference = (found - expected).abs();
                assert!(
                    // Sums of up to 12 rows in f32.
                    difference < 3e-6 * expected.max(1.0),
                    "{name} {index} {len}: {found} {expected}"
                );
            }
            x = next;
        }
    }
}

#[test]
fn decoding_token_by_token_equals_transformers() {
    let (model, golden) = (model_of(&config()), golden());
    let (tokens, options) = (tokens(), recording());
    let whole = model.forward_packed(&alone(&tokens), &options);
    for prompt_len in [1, 3, 7] {
        let mut cache = KvCache::new(model.config(), 1, 12, Kind::Float, Device::Cpu);
        let (prompt, rest) = tokens.split_at(prompt_len);
        let output = model.prefill(&mut cache, &[0], &[prompt], &options);
        let (mut hidden, mut experts) = (vec![output.hidden], vec![output.routing.unwrap()]);
        for &token in rest {
            let token = Tensor::from_slice(&[i64::from(token)]);
            let output = model.decode(&mut cache, &token, &options);
            hidden.push(output.hidden);
            experts.push(output.routing.unwrap());
        }
        let found = tch::no_grad(|| model.logits(&Tensor::cat(&hidden, 0)));
        assert_close(&found, &matrix(&golden["logits"]), TOLERANCE, "logits");
        let experts = Tensor::cat(&experts, 0);
        assert_eq!(&experts, whole.routing.as_ref().unwrap());
    }
}

/// More keys selected than there are: the numbers of the dense model.
#[test]
fn selecting_more_keys_than_there_are_is_dense_attention() {
    let all = ModelConfig {
        dsa: Some(DsaConfig::new(4, 16, 64)),
        ..config()
    };
    let expected: Vec<f32> = read(&golden()["last_logits_of_dense_limit"]);
    let expected = Tensor::from_slice(&expected);
    let last = |logits: &Tensor| logits.get(11);
    let dense = ForwardOptions {
        attention: Attention::Dense,
        ..ForwardOptions::inference()
    };
    // The loss needs the selection even where it must select all.
    let selecting = ForwardOptions {
        indexer_loss: true,
        ..ForwardOptions::inference()
    };
    for (model, options) in [
        (model_of(&all), &selecting),
        (model_of(&all), &dense),
        (model_of(&config()), &dense),
    ] {
        // The expected numbers have five digits.
        assert_close(
            &last(&logits(&model, options)),
            &expected,
            1.5e-5,
            "last row",
        );
    }
}

/// The pairing that DeepSeek's first published inference code had: another selection in every layer.
#[test]
fn interleaved_rope_in_the_indexer_selects_other_keys() {
    let golden = golden();
    let interleaved = ModelConfig {
        dsa: Some(DsaConfig {
            rope_interleave: true,
            ..DsaConfig::new(4, 16, 4)
        }),
        ..config()
    };
    let options = ForwardOptions {
        selection: Selection::Record,
        ..ForwardOptions::inference()
    };
    let model = model_of(&interleaved);
    let output = model.forward_packed(&alone(&tokens()), &options);
    for (layer, found) in output.selected_keys().unwrap().iter().enumerate() {
        let expected: Vec<Vec<i64>> = read(&golden["selected"][format!("layer{layer}")]);
        assert_ne!(found, &expected, "layer {layer}");
        if layer == 0 {
            let changed = (0..12).filter(|&row| found[row] != expected[row]);
            assert_eq!(changed.collect::<Vec<_>>(), [11]);
        }
    }
    let change = max_difference(&model.logits(&output.hidden), &matrix(&golden["logits"]));
    assert!((0.5..0.56).contains(&change), "{change}");
}
