//! Selected keys, recorded and replayed: recording only looks on, and what is replayed is attended to
//! whatever the indexer has become.

use super::*;

fn with(selection: Selection) -> ForwardOptions {
    ForwardOptions {
        selection,
        ..ForwardOptions::inference()
    }
}

/// Branches, and documents with more than 8 keys for each selected one: there keys are gathered.
fn inputs() -> [PackedInput; 3] {
    [
        branched(&sequence(1, 10), &[sequence(2, 7), sequence(3, 12)]),
        branched(&sequence(1, 240), &[sequence(2, 30), sequence(3, 40)]),
        alone(&sequence(4, 300)),
    ]
}

/// Changes what every indexer thinks of the keys.
fn disturb_indexers(model: &Transformer) {
    for parameter in model.parameters() {
        if parameter.name.ends_with("indexer.weights_proj.weight") {
            let _ = tch::no_grad(|| parameter.master.shallow_clone().neg_());
        }
    }
}

#[test]
fn recording_changes_nothing_and_replay_repeats_it_bit_for_bit() {
    for config in sparse_configs(TOPK) {
        let model = loud_model(&config, Kind::Float);
        for input in inputs() {
            let free = model.forward_packed(&input, &with(Selection::Free));
            assert!(free.selected.is_none() && free.selection_agreement.is_none());
            let recorded = model.forward_packed(&input, &with(Selection::Record));
            assert_eq!(recorded.hidden, free.hidden);
            let keys = recorded.selected.unwrap();
            assert_eq!(keys.size(), [input.num_tokens(), 2, TOPK as i64]);
            let replayed = model.forward_packed(&input, &with(Selection::Replay(keys)));
            assert_eq!(replayed.hidden, free.hidden);
            assert_eq!(replayed.selection_agreement, Some(1.0));
        }
    }
}

#[test]
fn replayed_keys_are_attended_to_whatever_the_indexer_selects_now() {
    for config in sparse_configs(TOPK) {
        let model = loud_model(&config, Kind::Float);
        for input in inputs() {
            let before = model.forward_packed(&input, &with(Selection::Record));
            let keys = before.selected.as_ref().unwrap();
            disturb_indexers(&model);
            let after = model.forward_packed(&input, &with(Selection::Record));
            assert!(max_difference(&after.hidden, &before.hidden) > 1e-2);
            let replay = with(Selection::Replay(keys.shallow_clone()));
            let replayed = model.forward_packed(&input, &replay);
            assert_eq!(replayed.hidden, before.hidden);
            disturb_indexers(&model);
            let agreement = replayed.selection_agreement.unwrap();
            assert!(agreement < 0.9, "{agreement}");
        }
    }
}

#[test]
fn selection_agreement_is_the_share_of_recorded_keys_that_would_be_chosen_now() {
    let config = ModelConfig {
        num_hidden_layers: 1,
        ..with_indexer(dense_config(), TOPK)
    };
    let model = loud_model(&config, Kind::Float);
    let input = branched(&sequence(1, 10), &[sequence(2, 7), sequence(3, 12)]);
    let keys = model
        .forward_packed(&input, &with(Selection::Record))
        .selected;
    let keys = keys.unwrap();
    // Every fourth token gets the first of the keys it sees.
    let positions = input.documents[0].positions();
    let selected = Vec::<Vec<i64>>::try_from(keys.select(1, 0)).unwrap();
    let (mut changed, mut recorded, mut common) = (selected.clone(), 0, 0);
    for (t, row) in changed.iter_mut().enumerate() {
        if positions[t] < TOPK as i64 {
            continue;
        }
        if t % 4 == 0 {
            *row = (0..TOPK as i64).collect();
        }
        recorded += TOPK;
        common += row.iter().filter(|key| selected[t].contains(key)).count();
    }
    assert!(common < recorded);
    let changed = Tensor::from_slice2(&changed).unsqueeze(1);
    let replayed = model.forward_packed(&input, &with(Selection::Replay(changed)));
    assert_eq!(
        replayed.selection_agreement,
        Some(common as f64 / recorded as f64)
    );
}

#[test]
fn prefill_and_decode_record_the_keys_of_the_packed_pass() {
    let options = || ForwardOptions {
        selection: Selection::Record,
        ..recording()
    };
    for config in sparse_configs(TOPK) {
        let model = loud_model(&config, Kind::Float);
        let prompts = [sequence(1, 11), sequence(2, 3)];
        let mut cache = KvCache::new(&config, 2, 60, Kind::Float, Device::Cpu);
        let borrowed = prompts.each_ref().map(Vec::as_slice);
        let output = model.prefill(&mut cache, &[0, 1], &borrowed, &options());
        let mut found: Vec<Vec<Vec<Vec<i64>>>> = vec![vec![Vec::new(); 2]; 2];
        for (layer, rows) in output.selected_keys().unwrap().iter().enumerate() {
            found[0][layer].extend_from_slice(&rows[..11]);
            found[1][layer].extend_from_slice(&rows[11..]);
        }
        let mut sequences = prompts.clone();
        for tokens in sequence(4, 84).chunks(2) {
            let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
            let output = model.decode(&mut cache, &Tensor::from_slice(&ids), &options());
            for (layer, rows) in output.selected_keys().unwrap().into_iter().enumerate() {
                for (slot, row) in rows.into_iter().enumerate() {
                    found[slot][layer].push(row);
                }
            }
            (0..2).for_each(|slot| sequences[slot].push(tokens[slot]));
        }
        for (sequence, found) in sequences.iter().zip(found) {
            let whole = model.forward_packed(&alone(sequence), &options());
            assert_eq!(whole.selected_keys().unwrap(), found);
        }
    }
}

/// The strongest equality between sampler and trainer: the same tokens by the same kernels, one pass
/// writing a cache and recording, the other replaying with a graph for gradients.
#[test]
fn a_replaying_training_pass_equals_the_recording_prefill_bit_for_bit() {
    let sequences = [sequence(1, 50), sequence(2, 9), sequence(3, 70)];
    let borrowed = sequences.each_ref().map(Vec::as_slice);
    let input = PackedInput::from_sequences(&borrowed, Device::Cpu);
    for config in variants() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let model = loud_model(&config, kind);
            let record = ForwardOptions {
                selection: Selection::Record,
                ..recording()
            };
            let mut cache = KvCache::new(&config, 3, 70, kind, Device::Cpu);
            let sampled = model.prefill(&mut cache, &[0, 1, 2], &borrowed, &record);
            let replay = ForwardOptions {
                routing: sampled.routing.map_or(Routing::Free, Routing::Replay),
                selection: sampled.selected.map_or(Selection::Free, Selection::Replay),
                ..ForwardOptions::inference()
            };
            let trained = model.forward_packed(&input, &replay);
            assert!(trained.hidden.requires_grad(), "a training pass");
            assert_eq!(trained.hidden.detach(), sampled.hidden);
            let logits = |hidden: &Tensor| tch::no_grad(|| model.logits(hidden));
            assert_eq!(logits(&trained.hidden), logits(&sampled.hidden));
            assert!(matches!(trained.routing_agreement(), None | Some(1.0)));
            assert!(matches!(trained.selection_agreement, None | Some(1.0)));
        }
    }
}

/// Of the language model and, by its own loss, of the indexer; under activation checkpointing too.
#[test]
fn gradients_under_replay_are_those_of_the_keys_attended_to() {
    let tokens = sequence(1, 60);
    for config in sparse_configs(TOPK) {
        let model = loud_model(&config, Kind::Float);
        let gradients = |selection: Selection, activation_checkpointing: bool| {
            let options = ForwardOptions {
                selection,
                indexer_loss: true,
                activation_checkpointing,
                ..ForwardOptions::inference()
            };
            let output = model.forward_packed(&alone(&tokens), &options);
            let kl = Tensor::stack(&output.indexer_losses, 0).sum(Kind::Float);
            (language_loss(&model, &output.hidden, &tokens, 1) + kl).backward();
            (output.selected, take_gradients(&model))
        };
        let (keys, free) = gradients(Selection::Record, false);
        let keys = keys.unwrap();
        let replay = || Selection::Replay(keys.shallow_clone());
        assert_same_gradients(&gradients(replay(), false).1, &free, 1e-6);
        disturb_indexers(&model);
        let (_, plain) = gradients(replay(), false);
        let (_, recomputed) = gradients(replay(), true);
        assert_same_gradients(&recomputed, &plain, 1e-6);
        // The language model attends as before; the indexer's loss is another one now.
        for ((name, group, found), (_, _, expected)) in plain.iter().zip(&free) {
            if let (ParameterGroup::Main, Some(found), Some(expected)) = (group, found, expected) {
                let size = expected.abs().max().double_value(&[]);
                assert_close(found, expected, 1e-6 * size, name);
            }
        }
    }
}

#[test]
fn dense_attention_selects_and_replays_nothing() {
    let model = loud_model(&with_indexer(dense_config(), TOPK), Kind::Float);
    let input = alone(&sequence(1, 30));
    let dense = |selection| ForwardOptions {
        attention: Attention::Dense,
        selection,
        ..ForwardOptions::inference()
    };
    let recorded = model.forward_packed(&input, &dense(Selection::Record));
    assert!(recorded.selected.is_none());
    let keys = Tensor::zeros([30, 2, 5], (Kind::Int64, Device::Cpu));
    let replayed = model.forward_packed(&input, &dense(Selection::Replay(keys)));
    assert_eq!(replayed.hidden, recorded.hidden);
    assert_eq!(replayed.selection_agreement, None);
}
