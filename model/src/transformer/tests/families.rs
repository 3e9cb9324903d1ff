//! Every family of checkpoints against transformers: logits, experts, selected keys, indexer losses.
//!
//! `tests/golden/make_families.py` has written the numbers of `tests/golden/families/`; the weights
//! come from a formula (`formula_weights.rs`). Each model goes through a folder on disk, as a
//! release does.

#[path = "../../../../tests/golden/formula_weights.rs"]
mod formula_weights;

use super::*;
use crate::checkpoint::{self, HfFolder, read_config};
use crate::tokenizer::Tokenizer;

/// Logits are of order 1 and rounded to six digits in the files.
const TOLERANCE: f64 = 2e-5;
/// Decoding sums in another order (latent attention in its absorbed form).
const CACHED_TOLERANCE: f64 = 1e-4;
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
/// The last gathers its keys, the others mask those not selected.
const SPARSE: [&str; 4] = [
    "deepseek_v32",
    "glm_moe_dsa",
    "deepseek_v32_fp8",
    "deepseek_v32_few_keys",
];

/// A family's model folder and numbers.
struct Family {
    folder: tempfile::TempDir,
    expected: serde_json::Value,
}

impl Family {
    fn new(name: &'static str) -> Family {
        tch::set_num_threads(1);
        let folder = tempfile::tempdir().unwrap();
        formula_weights::write_model(name, folder.path());
        Family {
            folder,
            expected: formula_weights::expected(name),
        }
    }

    fn load(&self, kind: Kind) -> Transformer {
        self.load_as(&read_config(self.folder.path()).unwrap(), kind)
    }

    fn load_as(&self, config: &ModelConfig, kind: Kind) -> Transformer {
        let mut source = HfFolder::open(self.folder.path()).unwrap();
        source.check(config).unwrap();
        Transformer::load(config, &mut source, kind, Device::Cpu).unwrap()
    }

    fn read<T: serde::de::DeserializeOwned>(&self, key: &str) -> T {
        serde_json::from_value(self.expected[key].clone()).unwrap()
    }

    fn tokens(&self) -> Vec<u32> {
        self.read("tokens")
    }

    /// `[T, vocab_size]`.
    fn logits(&self) -> Tensor {
        Tensor::from_slice2(&self.read::<Vec<Vec<f32>>>("logits"))
    }
}

fn forward(model: &Transformer, family: &Family, options: &ForwardOptions) -> ForwardOutput {
    tch::no_grad(|| model.forward_packed(&alone(&family.tokens()), options))
}

fn logits(model: &Transformer, output: &ForwardOutput) -> Tensor {
    tch::no_grad(|| model.logits(&output.hidden))
}

#[test]
fn logits_of_every_family_equal_those_of_transformers() {
    for name in FAMILIES {
        let family = Family::new(name);
        let model = family.load(Kind::Float);
        let output = forward(&model, &family, &ForwardOptions::inference());
        assert_close(&logits(&model, &output), &family.logits(), TOLERANCE, name);
    }
}

/// Logits of every token, those after the first `prompt_len` decoded one by one.
fn decoded(model: &Transformer, tokens: &[u32], prompt_len: usize, kind: Kind) -> Tensor {
    let options = ForwardOptions::inference();
    let (prompt, completion) = tokens.split_at(prompt_len);
    let mut cache = KvCache::new(model.config(), 1, 48, kind, Device::Cpu);
    tch::no_grad(|| {
        let output = model.prefill(&mut cache, &[0], &[prompt], &options);
        let mut hidden = vec![output.hidden];
        for &token in completion {
            let token = Tensor::from_slice(&[i64::from(token)]);
            hidden.push(model.decode(&mut cache, &token, &options).hidden);
        }
        model.logits(&Tensor::cat(&hidden, 0))
    })
}

#[test]
fn prefill_and_decode_of_every_family_equal_the_whole_pass_of_transformers() {
    for name in FAMILIES {
        let family = Family::new(name);
        let (model, tokens) = (family.load(Kind::Float), family.tokens());
        for prompt_len in [1, 7, tokens.len() - 1] {
            let found = decoded(&model, &tokens, prompt_len, Kind::Float);
            assert_close(&found, &family.logits(), CACHED_TOLERANCE, name);
        }
    }
}

/// Ids `[T, layers, top_k]` as sets, `[layers][T][top_k]` ascending.
fn by_layer(ids: &Tensor) -> Vec<Vec<Vec<i64>>> {
    let (sorted, _) = ids.sort(-1, false);
    let layers = sorted.unbind(1);
    let rows = layers.iter().map(Vec::<Vec<i64>>::try_from);
    rows.collect::<Result<_, _>>().unwrap()
}

#[test]
fn experts_of_every_family_equal_those_of_transformers() {
    let mut checked = 0;
    for name in FAMILIES {
        let family = Family::new(name);
        let output = forward(&family.load(Kind::Float), &family, &recording());
        match family.expected.get("experts") {
            Some(_) => {
                let found = by_layer(&output.routing.unwrap());
                let expected: Vec<Vec<Vec<i64>>> = family.read("experts");
                assert_eq!(found, expected, "{name}");
                checked += 1;
            }
            None => assert!(output.routing.is_none(), "{name} has no experts"),
        }
    }
    assert_eq!(checked, 7);
}

#[test]
fn selected_keys_of_every_family_equal_those_of_transformers_and_not_those_of_the_other_rotation() {
    for name in SPARSE {
        let family = Family::new(name);
        let options = ForwardOptions {
            selection: Selection::Record,
            ..ForwardOptions::inference()
        };
        let output = forward(&family.load(Kind::Float), &family, &options);
        let found = output.selected_keys().unwrap();
        let expected: Vec<Vec<Vec<i64>>> = family.read("selected");
        assert_eq!(found, expected, "{name}");
        let other: Vec<Vec<i64>> = family.read("other_rotation");
        let changed = found[0].iter().zip(&other).filter(|(a, b)| a != b).count();
        assert!(changed > 0, "{name}: the layout of the pairs has an effect");
    }
}

#[test]
fn attention_over_every_key_equals_transformers_with_a_large_topk() {
    for name in SPARSE {
        let family = Family::new(name);
        let expected = Tensor::from_slice(&family.read::<Vec<f32>>("dense_limit"));
        let model = family.load(Kind::Float);
        let dense = ForwardOptions {
            attention: Attention::Dense,
            ..ForwardOptions::inference()
        };
        let last_logits = |model: &Transformer, options: &ForwardOptions| {
            logits(model, &forward(model, &family, options)).get(-1)
        };
        assert_close(&last_logits(&model, &dense), &expected, TOLERANCE, name);
        // The sparse path, with room for every key.
        let mut config = model.config().clone();
        config.dsa.as_mut().unwrap().index_topk = family.tokens().len();
        let model = family.load_as(&config, Kind::Float);
        let sparse = ForwardOptions::inference();
        assert_close(&last_logits(&model, &sparse), &expected, TOLERANCE, name);
    }
}

#[test]
fn indexer_losses_equal_the_kl_of_the_attention_of_transformers() {
    for name in SPARSE {
        let family = Family::new(name);
        let model = family.load(Kind::Float);
        for (key, attention) in [("sparse", Attention::Sparse), ("dense", Attention::Dense)] {
            let rows: Vec<Vec<f64>> =
                serde_json::from_value(family.expected["indexer_kl"][key].clone()).unwrap();
            let options = ForwardOptions {
                attention,
                indexer_loss: true,
                ..ForwardOptions::inference()
            };
            let output = forward(&model, &family, &options);
            assert_eq!(output.indexer_losses.len(), rows.len());
            for (layer, (found, rows)) in output.indexer_losses.iter().zip(&rows).enumerate() {
                let (found, expected) = (found.double_value(&[]), rows.iter().sum::<f64>());
                let difference = (found - expected).abs();
                let what = format!("{name} {key} layer {layer}: {found} against {expected}");
                assert!(difference < 1e-4 * expected, "{what}");
            }
        }
    }
}

#[test]
fn both_spellings_of_a_config_mean_the_same() {
    for name in FAMILIES {
        let family = Family::new(name);
        let released = read_config(family.folder.path()).unwrap();
        let path = family.folder.path().join("config.json");
        let saved = formula_weights::family(name).join("config_transformers.json");
        std::fs::copy(saved, path).unwrap();
        assert_eq!(read_config(family.folder.path()).unwrap(), released);
    }
}

#[test]
fn a_saved_model_of_every_family_has_the_same_logits_and_every_name_that_transformers_reads() {
    for name in FAMILIES {
        let family = Family::new(name);
        let model = family.load(Kind::Float);
        let tensors: Vec<(String, Tensor)> = model
            .parameters()
            .into_iter()
            .map(|parameter| (parameter.name.clone(), parameter.master.detach()))
            .collect();
        let target = family.folder.path().join("saved");
        checkpoint::save(
            &target,
            model.config(),
            &Tokenizer::byte_level(),
            &tensors,
            Kind::Float,
            40 << 10,
        )
        .unwrap();
        let config = read_config(&target).unwrap();
        assert_eq!(&config, model.config(), "{name}");
        let mut source = HfFolder::open(&target).unwrap();
        let shapes: std::collections::BTreeMap<String, Vec<i64>> = family.read("tensors");
        let names: Vec<String> = shapes
            .into_keys()
            .filter(|name| !name.ends_with("_scale_inv"))
            .collect();
        source
            .check(&config)
            .expect("no tensor too many or too few");
        let mut saved: Vec<&String> = tensors.iter().map(|(name, _)| name).collect();
        saved.sort();
        assert_eq!(saved, names.iter().collect::<Vec<_>>(), "{name}");
        let again = Transformer::load(&config, &mut source, Kind::Float, Device::Cpu).unwrap();
        let options = ForwardOptions::inference();
        let before = logits(&model, &forward(&model, &family, &options));
        let after = logits(&again, &forward(&again, &family, &options));
        assert_eq!(before, after, "{name}");
    }
}

/// What transformers' own bf16 differs from its f32, with the same experts and every key attended to,
/// is the scale; every rounding is another draw, so up to twice that.
#[test]
fn bf16_of_every_family_is_as_near_to_f32_as_that_of_transformers() {
    for name in FAMILIES {
        let family = Family::new(name);
        let dense = |routing| ForwardOptions {
            routing,
            attention: Attention::Dense,
            ..ForwardOptions::inference()
        };
        let wide = family.load(Kind::Float);
        let output = forward(&wide, &family, &dense(Routing::Record));
        let exact = logits(&wide, &output);
        let routing = output.routing.map_or(Routing::Free, Routing::Replay);
        let narrow = family.load(Kind::BFloat16);
        let found = logits(&narrow, &forward(&narrow, &family, &dense(routing)));
        let (max, rms) = difference(&found, &exact);
        let bound = |key: &str| {
            let value = &family.expected["bf16"]["same_choices"][key];
            value.as_f64().unwrap()
        };
        assert!(max < 2.0 * bound("max"), "{name}: max {max}");
        assert!(rms < 1.5 * bound("rms"), "{name}: rms {rms}");
        assert!(rms > 0.1 * bound("rms"), "{name}: bf16 computed in f32");

        // Free choices turn small differences into large ones, in transformers as here.
        let free = forward(&narrow, &family, &ForwardOptions::inference());
        let bound = family.expected["bf16"]["free"]["rms"].as_f64().unwrap();
        let cached = decoded(&narrow, &family.tokens(), 7, Kind::BFloat16);
        for (what, found) in [("packed", logits(&narrow, &free)), ("cached", cached)] {
            let (_, rms) = difference(&found, &family.logits());
            assert!(rms < 2.0 * bound, "{name}: rms {rms}, free choices, {what}");
        }
    }
}

/// Largest and root mean square difference.
fn difference(a: &Tensor, b: &Tensor) -> (f64, f64) {
    let rms = (a - b).square().mean(Kind::Double).sqrt();
    (max_difference(a, b), rms.double_value(&[]))
}
