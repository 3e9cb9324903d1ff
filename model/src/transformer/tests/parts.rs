//! A prompt that goes through the model in parts, each behind those before in the cache, equals the full forward.

use std::ops::Range;

use super::*;
use crate::kv_cache::CacheShape;

const TOLERANCE: f64 = 1e-5;

fn recording_all() -> ForwardOptions {
    ForwardOptions {
        selection: Selection::Record,
        ..recording()
    }
}

/// Pages of 4 tokens, for two slots.
fn small_pages(config: &ModelConfig) -> KvCache {
    let shape = CacheShape {
        num_slots: 2,
        num_pages: 24,
        page_tokens: 4,
    };
    KvCache::of_pages(config, shape, Kind::Float, Device::Cpu)
}

/// What passes over parts of a sequence have put out.
#[derive(Default)]
struct Parts {
    logits: Vec<Tensor>,
    routing: Vec<Tensor>,
    selected: Vec<Vec<Vec<Vec<i64>>>>,
    key_share: f64,
}

impl Parts {
    /// Adds rows `first..first + len` of a pass, which are a part of the sequence.
    fn add(&mut self, model: &Transformer, output: &ForwardOutput, first: i64, len: i64) {
        let rows = |x: &Tensor| x.narrow(0, first, len);
        self.logits.push(model.logits(&rows(&output.hidden)));
        self.routing.extend(output.routing.as_ref().map(rows));
        let keys = |layers: Vec<Vec<Vec<i64>>>| -> Vec<Vec<Vec<i64>>> {
            let of_part = first as usize..(first + len) as usize;
            let layers = layers.into_iter();
            layers.map(|rows| rows[of_part.clone()].to_vec()).collect()
        };
        self.selected.extend(output.selected_keys().map(keys));
        self.key_share += output.key_share * len as f64;
    }

    /// The same as one pass over `tokens` puts out.
    #[track_caller]
    fn assert_whole(&self, model: &Transformer, tokens: &[u32], what: &str) {
        let output = model.forward_packed(&alone(tokens), &recording_all());
        let expected = model.logits(&output.hidden);
        assert_close(&Tensor::cat(&self.logits, 0), &expected, TOLERANCE, what);
        match &output.routing {
            Some(routing) => assert_eq!(&Tensor::cat(&self.routing, 0), routing, "{what}"),
            None => assert!(self.routing.is_empty()),
        }
        let Some(expected) = output.selected_keys() else {
            return assert!(self.selected.is_empty());
        };
        for (layer, expected) in expected.iter().enumerate() {
            let parts = self.selected.iter();
            let found: Vec<&Vec<i64>> = parts.flat_map(|part| &part[layer]).collect();
            assert_eq!(found, expected.iter().collect::<Vec<_>>(), "{what}");
        }
    }
}

#[test]
fn a_prompt_in_parts_equals_the_whole() {
    // In parts of one, shorter and longer than the indexer's choice of 5, and ending within pages and with them.
    for lens in [&[9, 9][..], &[1, 1, 1, 15], &[3, 4, 11], &[16, 1, 1], &[18]] {
        for config in variants() {
            let model = loud_model(&config, Kind::Float);
            let mut cache = small_pages(&config);
            let tokens = sequence(1, 18);
            let (mut parts, mut past) = (Parts::default(), 0);
            for &len in lens {
                let part = &tokens[past..past + len];
                let output =
                    model.prefill_behind(&mut cache, &[1], &[past], &[part], &recording_all());
                parts.add(&model, &output, 0, len as i64);
                past += len;
                assert_eq!(cache.pages.len(1), past);
            }
            let what = format!("{lens:?}, {config:?}");
            parts.assert_whole(&model, &tokens, &what);
            let whole = model.forward_packed(&alone(&tokens), &recording_all());
            let key_share = parts.key_share / 18.0;
            assert!((key_share - whole.key_share).abs() < 1e-12, "{what}");
        }
    }
}

#[test]
fn documents_with_and_without_a_past_share_a_pass_and_decode_goes_on() {
    for config in variants() {
        let model = loud_model(&config, Kind::Float);
        let mut cache = small_pages(&config);
        let (long, short) = (sequence(2, 17), sequence(3, 7));
        let mut parts = [Parts::default(), Parts::default()];
        let first = model.prefill_behind(&mut cache, &[0], &[0], &[&long[..6]], &recording_all());
        parts[0].add(&model, &first, 0, 6);
        // The one that continues comes second.
        let rows = [&short[..5], &long[6..15]];
        let both = model.prefill_behind(&mut cache, &[1, 0], &[0, 6], &rows, &recording_all());
        parts[1].add(&model, &both, 0, 5);
        parts[0].add(&model, &both, 5, 9);
        for step in 0..2 {
            let tokens = [long[15 + step], short[5 + step]].map(i64::from);
            let tokens = Tensor::from_slice(&tokens);
            let output = model.decode(&mut cache, &tokens, &recording_all());
            parts[0].add(&model, &output, 0, 1);
            parts[1].add(&model, &output, 1, 1);
        }
        parts[0].assert_whole(&model, &long, "long");
        parts[1].assert_whole(&model, &short, "short");
    }
}

#[test]
fn siblings_continue_a_shared_prompt_by_several_tokens() {
    for config in variants() {
        let model = loud_model(&config, Kind::Float);
        let mut cache = small_pages(&config);
        let (prompt, own) = (sequence(4, 10), [sequence(5, 8), sequence(6, 3)]);
        let first = model.prefill(&mut cache, &[0], &[&prompt], &recording_all());
        cache.share_slot(0, 1);
        let rows = own.each_ref().map(Vec::as_slice);
        let output = model.prefill_behind(&mut cache, &[0, 1], &[10, 10], &rows, &recording_all());
        for (index, start) in [(0, 0), (1, 8)] {
            let mut parts = Parts::default();
            parts.add(&model, &first, 0, 10);
            parts.add(&model, &output, start, own[index].len() as i64);
            let tokens = [prompt.as_slice(), &own[index]].concat();
            parts.assert_whole(&model, &tokens, &format!("sibling {index}"));
        }
    }
}

/// Queries enough for several tiles of sparse attention, behind enough keys that the selected ones are gathered.
#[test]
fn parts_of_several_tiles_equal_the_whole() {
    for config in sparse_configs(TOPK).into_iter().chain([dense_config()]) {
        let model = loud_model(&config, Kind::Float);
        let mut cache = KvCache::new(&config, 1, 400, Kind::Float, Device::Cpu);
        let tokens = sequence(7, 400);
        let mut parts = Parts::default();
        for (past, len) in [(0, 30), (30, 300), (330, 70)] {
            let part = &tokens[past..past + len];
            let output = model.prefill_behind(&mut cache, &[0], &[past], &[part], &recording_all());
            parts.add(&model, &output, 0, len as i64);
        }
        parts.assert_whole(&model, &tokens, "long");
    }
}

/// Widths that a GPU's kernels know, of attention and of the indexer.
fn kernel_widths() -> [(&'static str, ModelConfig); 4] {
    let grouped_query = ModelConfig {
        hidden_size: 64,
        head_dim: 16,
        ..dense_config()
    };
    let latent = |config: ModelConfig| ModelConfig {
        hidden_size: 64,
        head_dim: 16,
        mla: config.mla.map(|mla| MlaConfig {
            kv_lora_rank: 16,
            qk_nope_head_dim: 16,
            qk_rope_head_dim: 16,
            v_head_dim: 16,
            ..mla
        }),
        dsa: config.dsa.map(|dsa| DsaConfig::new(4, 16, dsa.index_topk)),
        ..config
    };
    let sparse = ModelConfig {
        dsa: Some(DsaConfig::new(4, 16, 16)),
        ..with_experts(grouped_query.clone())
    };
    [
        ("grouped queries", with_experts(grouped_query)),
        ("grouped queries, sparse", sparse),
        ("latent", latent(latent_config())),
        ("latent, sparse", latent(latent_sparse_config(16))),
    ]
}

/// What a pass runs of sequences: slot and tokens.
type Pass<'a> = &'a [(usize, Range<usize>)];

/// Hidden states of prompts of 700 and 90 tokens in parts, in bf16 with the experts and keys recorded in f32, are as near to
/// those in f32 as the whole prompts' are: by a CPU's operations, and by a GPU's kernels, which are others for parts.
#[test]
fn in_bf16_parts_are_as_exact_as_the_whole() {
    tch::set_num_threads(1);
    let sequences = [sequence(11, 700), sequence(12, 90)];
    let starts = [0, 700];
    let whole: &[Pass] = &[&[(0, 0..700), (1, 0..90)]];
    let parts: &[Pass] = &[
        &[(0, 0..300)],
        &[(0, 300..600), (1, 0..40)],
        &[(1, 40..90), (0, 600..700)],
    ];
    for device in [Some(Device::Cpu), super::gpu::gpu()].into_iter().flatten() {
        for (what, config) in kernel_widths() {
            assert_eq!(config.problems(), Vec::<String>::new(), "{what}");
            let load = |kind| Transformer::load(&config, &mut LoudSource(3), kind, device).unwrap();
            let input =
                PackedInput::from_sequences(&sequences.each_ref().map(Vec::as_slice), device);
            let exact = tch::no_grad(|| load(Kind::Float).forward_packed(&input, &recording_all()));
            let model = load(Kind::BFloat16);
            // Squared error of all tokens over their squares.
            let run = |passes: &[Pass]| {
                let mut cache = KvCache::new(&config, 2, 700, Kind::BFloat16, device);
                let mut error = 0.0;
                for pass in passes {
                    let rows = |x: &Tensor| {
                        let rows = pass.iter().map(|(slot, tokens)| {
                            let first = starts[*slot] + tokens.start as i64;
                            x.narrow(0, first, tokens.len() as i64)
                        });
                        Tensor::cat(&rows.collect::<Vec<Tensor>>(), 0)
                    };
                    let options = ForwardOptions {
                        routing: Routing::Replay(rows(exact.routing.as_ref().unwrap())),
                        selection: match &exact.selected {
                            Some(keys) => Selection::Replay(rows(keys)),
                            None => Selection::Free,
                        },
                        ..ForwardOptions::inference()
                    };
                    let slots: Vec<usize> = pass.iter().map(|(slot, _)| *slot).collect();
                    let pasts: Vec<usize> = pass.iter().map(|(_, tokens)| tokens.start).collect();
                    let tokens = pass
                        .iter()
                        .map(|(slot, tokens)| &sequences[*slot][tokens.clone()]);
                    let tokens: Vec<&[u32]> = tokens.collect();
                    let output =
                        model.prefill_behind(&mut cache, &slots, &pasts, &tokens, &options);
                    let difference = output.hidden.to_kind(Kind::Float) - rows(&exact.hidden);
                    error += difference.square().sum(Kind::Double).double_value(&[]);
                }
                error / exact.hidden.square().sum(Kind::Double).double_value(&[])
            };
            let (whole, parts) = (run(whole).sqrt(), run(parts).sqrt());
            eprintln!("{what} on {device:?}: {whole:.5} whole, {parts:.5} in parts");
            assert!(whole > 0.0 && whole < 0.1, "{what}: {whole}");
            assert!(parts < 1.1 * whole, "{what}: {parts} against {whole}");
        }
    }
}
