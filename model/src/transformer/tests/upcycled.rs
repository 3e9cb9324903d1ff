//! An upcycled model starts as the dense one, and its experts part with the first gradient.

use super::*;
use crate::checkpoint::{HfFolder, read_config, save};
use crate::tokenizer::Tokenizer;
use crate::upcycle::{IndexerSource, UpcycledSource, indexer_config, upcycle_config};

/// The dense model with 4 experts of which 2 work, and an indexer selecting `index_topk` keys.
fn upcycled_model(index_topk: usize) -> Transformer {
    let dsa = with_indexer(dense_config(), index_topk).dsa.unwrap();
    let moe = upcycle_config(&dense_config(), 4, 2).unwrap();
    let config = indexer_config(&moe, dsa).unwrap();
    let experts = UpcycledSource::new(Box::new(LoudSource(3)), 1);
    let mut source = IndexerSource::new(Box::new(experts), 2);
    Transformer::load(&config, &mut source, Kind::Float, Device::Cpu).unwrap()
}

#[test]
fn upcycled_logits_equal_those_of_the_dense_model() {
    let (dense, upcycled) = (loud_model(&dense_config(), Kind::Float), upcycled_model(64));
    let input = alone(&sequence(1, 30));
    let output = upcycled.forward_packed(&input, &recording());
    let expected = dense.forward_packed(&input, &ForwardOptions::inference());
    let (found, expected) = (
        upcycled.logits(&output.hidden),
        dense.logits(&expected.hidden),
    );
    assert_close(&found, &expected, 1e-5, "logits");

    let ids = output.routing.unwrap();
    for layer in 0..2 {
        let loads = ids
            .select(1, layer)
            .flatten(0, -1)
            .bincount(None::<&Tensor>, 4);
        assert!(loads.min().int64_value(&[]) > 0, "layer {layer}: {loads}");
    }
}

#[test]
fn the_first_gradient_parts_the_experts() {
    let (model, tokens) = (upcycled_model(64), sequence(1, 30));
    let output = model.forward_packed(&alone(&tokens), &ForwardOptions::inference());
    language_loss(&model, &output.hidden, &tokens, 1).backward();
    let gradients = take_gradients(&model);
    for layer in 0..2 {
        for matrix in ["w1", "w2", "w3"] {
            let prefix = format!("model.layers.{layer}.block_sparse_moe.experts.");
            let of_experts: Vec<&Tensor> = gradients
                .iter()
                .filter(|(name, ..)| name.starts_with(&prefix) && name.contains(matrix))
                .map(|(_, _, gradient)| gradient.as_ref().unwrap())
                .collect();
            assert_eq!(of_experts.len(), 4);
            for (e, first) in of_experts.iter().enumerate() {
                for second in &of_experts[e + 1..] {
                    let size = first.norm().double_value(&[]);
                    let difference = (*first - *second).norm().double_value(&[]);
                    assert!(difference > 0.1 * size, "{prefix}{e}.{matrix}");
                }
            }
        }
    }
}

#[test]
fn an_upcycled_sparse_model_survives_saving_and_loading() {
    let dir = tempfile::TempDir::new().unwrap();
    let folder = dir.path().join("model");
    let model = upcycled_model(TOPK);
    let tensors: Vec<(String, Tensor)> = model
        .parameters()
        .into_iter()
        .map(|parameter| (parameter.name.clone(), parameter.master.shallow_clone()))
        .collect();
    let tokenizer = Tokenizer::byte_level();
    // Small shards: an index is written too.
    let written = save(
        &folder,
        model.config(),
        &tokenizer,
        &tensors,
        Kind::Float,
        20_000,
    );
    written.unwrap();

    let config = read_config(&folder).unwrap();
    assert_eq!(&config, model.config());
    let mut source = HfFolder::open(&folder).unwrap();
    source.check(&config).unwrap();
    let loaded = Transformer::load(&config, &mut source, Kind::Float, Device::Cpu).unwrap();
    let options = ForwardOptions {
        selection: Selection::Record,
        ..recording()
    };
    let run = |model: &Transformer| {
        let output = model.forward_packed(&alone(&sequence(1, 30)), &options);
        (
            model.logits(&output.hidden),
            output.routing,
            output.selected,
        )
    };
    assert_eq!(run(&loaded), run(&model));
}
