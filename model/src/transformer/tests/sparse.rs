//! Which keys sparse attention selects, and that selecting all of them is dense attention.

use super::*;

fn selecting() -> ForwardOptions {
    ForwardOptions {
        selection: Selection::Record,
        ..ForwardOptions::inference()
    }
}

fn dense() -> ForwardOptions {
    ForwardOptions {
        attention: Attention::Dense,
        ..ForwardOptions::inference()
    }
}

fn two_branches() -> PackedInput {
    branched(&sequence(1, 10), &[sequence(2, 7), sequence(3, 12)])
}

#[test]
fn selecting_every_key_is_dense_attention() {
    // The second is longer than a tile of 256 query rows.
    for (input, topk) in [(two_branches(), 22), (alone(&sequence(1, 300)), 300)] {
        for config in sparse_configs(topk) {
            let model = loud_model(&config, Kind::Float);
            // The loss goes through the selection even where it must select all.
            let losing = ForwardOptions {
                indexer_loss: true,
                ..selecting()
            };
            let sparse = model.forward_packed(&input, &losing);
            let dense = model.forward_packed(&input, &dense());
            assert_close(&sparse.hidden, &dense.hidden, 1e-5, "hidden states");
            assert!(dense.selected.is_none());
            let recorded = model.forward_packed(&input, &selecting());
            assert_eq!(recorded.hidden, dense.hidden, "the dense kernel ran");
            assert_eq!(recorded.selected, sparse.selected);
            for layer in recorded.selected_keys().unwrap() {
                for (keys, position) in layer.iter().zip(input.documents[0].positions()) {
                    assert_eq!(keys.len() as i64, position + 1);
                }
            }
        }
    }
}

#[test]
fn one_key_fewer_than_the_longest_query_sees_changes_that_query_alone() {
    let input = alone(&sequence(1, 12));
    for config in sparse_configs(11) {
        let model = loud_model(&config, Kind::Float);
        let sparse = model.forward_packed(&input, &ForwardOptions::inference());
        let dense = model.forward_packed(&input, &dense());
        let changes = (&sparse.hidden - &dense.hidden).abs().amax(-1, false);
        let changes = Vec::<f64>::try_from(changes).unwrap();
        let (others, last) = changes.split_at(11);
        assert!(others.iter().all(|&change| change < 1e-5), "{changes:?}");
        assert!(last[0] > 1e-3, "{changes:?}");
    }
}

#[test]
fn selected_keys_are_visible_distinct_ascending_and_at_most_topk() {
    let model = loud_model(&with_indexer(dense_config(), TOPK), Kind::Float);
    let input = two_branches();
    let output = model.forward_packed(&input, &selecting());
    let positions = input.documents[0].positions();
    let layers = output.selected_keys().unwrap();
    assert_eq!(layers.len(), 2);
    assert_ne!(layers[0], layers[1], "each layer has its own indexer");
    let mut share = 0.0;
    for layer in &layers {
        assert_eq!(layer.len(), 29);
        for (t, keys) in layer.iter().enumerate() {
            let num_visible = positions[t] + 1;
            assert_eq!(keys.len() as i64, num_visible.min(TOPK as i64));
            assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "{keys:?}");
            let is_seen = |&key: &i64| key >= 0 && key < num_visible;
            assert!(keys.iter().all(is_seen), "query {t}: {keys:?}");
            share += keys.len() as f64 / num_visible as f64;
        }
    }
    let difference = output.key_share - share / 58.0;
    assert!(difference.abs() < 1e-12, "{difference}");
}

/// Which keys count is the indexer's choice: not the last ones, and not those of the main heads.
#[test]
fn selection_follows_the_indexer() {
    let model = loud_model(&with_indexer(dense_config(), TOPK), Kind::Float);
    let input = alone(&sequence(1, 40));
    let select = || model.forward_packed(&input, &selecting());
    let before = select();
    for parameter in model.parameters() {
        if parameter.name.ends_with("indexer.weights_proj.weight") {
            let _ = tch::no_grad(|| parameter.master.shallow_clone().neg_());
        }
    }
    let after = select();
    let hidden_change = max_difference(&before.hidden, &after.hidden);
    assert!(hidden_change > 1e-2, "{hidden_change}");
    let (before, after) = (
        before.selected_keys().unwrap(),
        after.selected_keys().unwrap(),
    );
    // Where scores change their sign, the highest become the lowest.
    for t in 10..40 {
        assert_ne!(before[0][t], after[0][t], "query {t}");
    }
}

#[test]
fn key_share_of_dense_attention_is_one() {
    let model = loud_model(&with_indexer(dense_config(), TOPK), Kind::Float);
    assert_eq!(
        model.forward_packed(&two_branches(), &dense()).key_share,
        1.0
    );
}
