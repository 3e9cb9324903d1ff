//! Latent attention, the indexer it feeds, and the experts that come with it.

use super::*;
use crate::config::{IndexerQuantization, ScaleFormat};

/// Long enough for selected latents to be gathered: more than 8 keys for each of the 5 selected.
const GATHERING: usize = 60;

fn selecting() -> ForwardOptions {
    ForwardOptions {
        selection: Selection::Record,
        ..recording()
    }
}

/// The gathered (absorbed) form in packs, the absorbed form in decoding, the expanded form of prompts.
#[test]
fn every_form_of_latent_attention_computes_the_same() {
    for config in [latent_config(), latent_sparse_config(TOPK)] {
        let model = loud_model(&config, Kind::Float);
        let tokens = sequence(1, GATHERING);
        let whole = model.forward_packed(&alone(&tokens), &recording());
        // Prompts short enough to be masked, and long enough to be gathered.
        for prompt_len in [1, 8, 30, 50] {
            let mut cache = KvCache::new(&config, 1, GATHERING, Kind::Float, Device::Cpu);
            let (prompt, rest) = tokens.split_at(prompt_len);
            let output = model.prefill(&mut cache, &[0], &[prompt], &recording());
            let mut hidden = vec![output.hidden];
            for &token in rest {
                let token = Tensor::from_slice(&[i64::from(token)]);
                hidden.push(model.decode(&mut cache, &token, &recording()).hidden);
            }
            let hidden = Tensor::cat(&hidden, 0);
            assert_close(&hidden, &whole.hidden.detach(), 2e-5, "hidden states");
        }
    }
}

#[test]
fn branches_longer_than_what_is_masked_equal_their_sequences() {
    let model = loud_model(&latent_sparse_config(TOPK), Kind::Float);
    let (trunk, branches) = (sequence(1, 45), [sequence(2, 15), sequence(3, 9)]);
    let output = model.forward_packed(&branched(&trunk, &branches), &selecting());
    let (logits, selected) = (
        model.logits(&output.hidden),
        output.selected_keys().unwrap(),
    );
    let mut start = 45;
    for branch in &branches {
        let len = branch.len();
        let whole = [&trunk[..], branch].concat();
        let expected = model.forward_packed(&alone(&whole), &selecting());
        let own = model.logits(&expected.hidden).narrow(0, 45, len as i64);
        let found = logits.narrow(0, start as i64, len as i64);
        assert_close(&found, &own, 1e-5, "logits of a branch");
        for (found, alone) in selected.iter().zip(expected.selected_keys().unwrap()) {
            assert_eq!(found[start..][..len], alone[45..]);
        }
        start += len;
    }
}

/// Weights of a pass, gathered or dense: losses of language and indexer, each by those that it trains.
#[test]
fn gradients_of_latent_attention_and_its_indexer_equal_finite_differences() {
    let tokens = sequence(1, GATHERING);
    for attention in [Attention::Sparse, Attention::Dense] {
        let model = loud_model(&latent_sparse_config(TOPK), Kind::Float);
        let ids = model.forward_packed(&alone(&tokens), &recording()).routing;
        let ids = ids.unwrap();
        let losses = || {
            let options = ForwardOptions {
                routing: Routing::Replay(ids.shallow_clone()),
                attention,
                indexer_loss: true,
                ..ForwardOptions::inference()
            };
            let output = model.forward_packed(&alone(&tokens), &options);
            let kl = Tensor::stack(&output.indexer_losses, 0).sum(Kind::Float);
            (language_loss(&model, &output.hidden, &tokens, 1), kl)
        };
        let (language, kl) = losses();
        (language + kl).backward();
        for name in [
            "layers.0.self_attn.kv_b_proj.weight",
            "layers.0.self_attn.kv_a_proj_with_mqa.weight",
            "layers.0.self_attn.q_a_layernorm.weight",
            "layers.1.self_attn.q_b_proj.weight",
            "layers.1.mlp.shared_experts.down_proj.weight",
            "layers.1.self_attn.indexer.wq_b.weight",
            "layers.1.self_attn.indexer.wk.weight",
            "layers.1.self_attn.indexer.weights_proj.weight",
            "layers.1.self_attn.indexer.k_norm.weight",
            "layers.1.self_attn.indexer.k_norm.bias",
        ] {
            let parameters = model.parameters();
            let parameter = parameters.iter().find(|p| p.name.ends_with(name)).unwrap();
            let is_indexer = parameter.group == ParameterGroup::Indexer;
            let loss = || {
                let (language, kl) = losses();
                let loss = if is_indexer { kl } else { language };
                loss.double_value(&[])
            };
            // The keys selected must not change on the way: the losses have steps where they do.
            assert_slopes(&parameter.master, &parameter.master.grad(), 2e-4, loss);
        }
    }
}

#[test]
fn the_correction_bias_moves_the_choice_and_is_not_trained() {
    let model = loud_model(&latent_config(), Kind::Float);
    let input = alone(&sequence(1, 30));
    let before = model.forward_packed(&input, &recording()).routing.unwrap();
    assert_eq!(before.size(), [30, 1, 2], "the dense layer has no record");
    let parameters = model.parameters();
    let bias = parameters
        .iter()
        .find(|p| p.name == "model.layers.1.mlp.gate.e_score_correction_bias")
        .expect("a tensor of the model");
    assert_eq!(bias.group, ParameterGroup::Frozen);
    let favoured = Tensor::from_slice(&[0f32, 0.0, 0.0, 9.0]);
    tch::no_grad(|| bias.master.shallow_clone().copy_(&favoured));
    let after = model.forward_packed(&input, &recording()).routing.unwrap();
    assert_ne!(before, after);
    let has_favoured = after.eq(3).any_dim(-1, false).all().int64_value(&[]);
    assert_eq!(has_favoured, 1, "{after}");
}

/// Replay indexes layers with experts: the first record belongs to the first layer that has some.
#[test]
fn replay_after_dense_layers_reproduces_the_pass() {
    let config = ModelConfig {
        num_hidden_layers: 3,
        ..latent_config()
    };
    let model = loud_model(&config, Kind::Float);
    let input = alone(&sequence(1, 25));
    let recorded = model.forward_packed(&input, &recording());
    let ids = recorded.routing.unwrap();
    assert_eq!(ids.size(), [25, 2, 2]);
    assert_ne!(ids.select(1, 0), ids.select(1, 1));
    let replay = |ids: Tensor| {
        let options = ForwardOptions {
            routing: Routing::Replay(ids),
            ..ForwardOptions::inference()
        };
        model.forward_packed(&input, &options)
    };
    let same = replay(ids.shallow_clone());
    assert_eq!(same.hidden, recorded.hidden);
    assert_eq!(same.routing_agreement(), Some(1.0));
    assert!(replay(ids.flip([1])).routing_agreement().unwrap() < 1.0);
}

fn quantized(scale_format: ScaleFormat) -> ModelConfig {
    let mut config = latent_sparse_config(TOPK);
    config.dsa = Some(DsaConfig {
        quantization: Some(IndexerQuantization { scale_format }),
        ..DsaConfig::new(4, 8, TOPK)
    });
    config
}

/// Rounding to e4m3 moves few of the selected keys, the same ones in a pack and in decoding; and the
/// indexer still learns.
#[test]
fn the_quantised_indexer_selects_nearly_the_same_keys() {
    let tokens = sequence(1, 40);
    let plain = ModelConfig {
        dsa: Some(DsaConfig::new(4, 8, TOPK)),
        ..latent_sparse_config(TOPK)
    };
    let first_layer = |config: &ModelConfig| {
        let model = loud_model(config, Kind::Float);
        let output = model.forward_packed(&alone(&tokens), &selecting());
        output.selected_keys().unwrap().remove(0)
    };
    let exact = first_layer(&plain);
    for scale_format in [ScaleFormat::Ue8m0, ScaleFormat::F32] {
        let config = quantized(scale_format);
        let rounded = first_layer(&config);
        let pairs = || exact.iter().zip(&rounded);
        let total: usize = exact.iter().map(Vec::len).sum();
        let common: usize = pairs()
            .map(|(a, b)| a.iter().filter(|key| b.contains(key)).count())
            .sum();
        assert!(common < total, "rounding changed no selection");
        assert!(common * 10 > total * 9, "{common} of {total}");

        let model = loud_model(&config, Kind::Float);
        let whole = model.forward_packed(&alone(&tokens), &ForwardOptions::inference());
        let mut cache = KvCache::new(&config, 1, 40, Kind::Float, Device::Cpu);
        let options = ForwardOptions::inference();
        let mut hidden = vec![
            model
                .prefill(&mut cache, &[0], &[&tokens[..9]], &options)
                .hidden,
        ];
        for &token in &tokens[9..] {
            let token = Tensor::from_slice(&[i64::from(token)]);
            hidden.push(model.decode(&mut cache, &token, &options).hidden);
        }
        let hidden = Tensor::cat(&hidden, 0);
        assert_close(&hidden, &whole.hidden.detach(), 2e-5, "hidden states");
    }
}

#[test]
fn the_quantised_indexer_learns() {
    let (model, tokens) = (
        loud_model(&quantized(ScaleFormat::Ue8m0), Kind::Float),
        sequence(1, 30),
    );
    let options = ForwardOptions {
        indexer_loss: true,
        ..ForwardOptions::inference()
    };
    let mut found = Vec::new();
    for _ in 0..24 {
        let output = model.forward_packed(&alone(&tokens), &options);
        let kl = Tensor::stack(&output.indexer_losses, 0).sum(Kind::Float) / 30.0;
        kl.backward();
        found.push(kl.double_value(&[]));
        for parameter in model.parameters() {
            if parameter.group == ParameterGroup::Indexer {
                let mut weight = parameter.master.detach();
                weight -= parameter.master.grad() * 0.05;
            }
            parameter.clear_grad();
        }
    }
    assert!(found[23] < 0.8 * found[0], "{found:?}");
}
