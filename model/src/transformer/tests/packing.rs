//! Packing changes no value: a branch equals its sequence alone, and so does each document.

use super::*;

const TOLERANCE: f64 = 1e-5;

fn trunk_and_branches() -> (Vec<u32>, Vec<Vec<u32>>) {
    let branches = [(2, 6), (3, 1), (4, 9)].map(|(seed, len)| sequence(seed, len));
    (sequence(1, 8), branches.to_vec())
}

/// Rows of a branched document that make up each branch's own sequence.
fn rows_of_branches(trunk: &[u32], branches: &[Vec<u32>]) -> Vec<Tensor> {
    let mut next = trunk.len();
    let rows = branches.iter().map(|branch| {
        let own = next..next + branch.len();
        next = own.end;
        let rows: Vec<i64> = (0..trunk.len()).chain(own).map(|row| row as i64).collect();
        Tensor::from_slice(&rows)
    });
    rows.collect()
}

fn assert_branches_equal_sequences_alone(
    model: &Transformer,
    trunk: &[u32],
    branches: &[Vec<u32>],
) {
    let output = model.forward_packed(&branched(trunk, branches), &recording());
    for (branch, rows) in branches.iter().zip(rows_of_branches(trunk, branches)) {
        let sequence = [trunk, branch].concat();
        let expected = model.forward_packed(&alone(&sequence), &recording());
        let found = model.logits(&output.hidden.index_select(0, &rows));
        let expected_logits = model.logits(&expected.hidden);
        assert_close(&found, &expected_logits, TOLERANCE, "logits of a branch");
        let routing = output
            .routing
            .as_ref()
            .map(|ids| ids.index_select(0, &rows));
        assert_eq!(routing, expected.routing);
    }
}

#[test]
fn every_branch_equals_its_sequence_alone() {
    let (trunk, branches) = trunk_and_branches();
    for config in variants() {
        let model = loud_model(&config, Kind::Float);
        assert_branches_equal_sequences_alone(&model, &trunk, &branches);
        assert_branches_equal_sequences_alone(&model, &trunk, &branches[..1]);
    }
}

/// More than the 256 query rows that sparse attention works on at a time.
#[test]
fn branches_on_both_sides_of_a_tile_boundary_equal_their_sequences() {
    let branches = [sequence(2, 30), sequence(3, 40)];
    for config in sparse_configs(TOPK) {
        let model = loud_model(&config, Kind::Float);
        assert_branches_equal_sequences_alone(&model, &sequence(1, 240), &branches);
    }
}

#[test]
fn branches_have_the_gradients_of_their_sequences() {
    let (trunk, branches) = trunk_and_branches();
    let advantages = [1.0, -0.5, 2.0];
    for config in variants() {
        let model = loud_model(&config, Kind::Float);
        let loss_of = |hidden: &Tensor, branch: &[u32]| {
            language_loss(&model, hidden, &[&trunk, branch].concat(), trunk.len())
        };
        for (branch, advantage) in branches.iter().zip(advantages) {
            let sequence = [&trunk[..], branch].concat();
            let output = model.forward_packed(&alone(&sequence), &recording());
            (loss_of(&output.hidden, branch) * advantage).backward();
        }
        let expected = take_gradients(&model);

        let output = model.forward_packed(&branched(&trunk, &branches), &recording());
        let losses: Vec<Tensor> = rows_of_branches(&trunk, &branches)
            .iter()
            .zip(branches.iter().zip(advantages))
            .map(|(rows, (branch, advantage))| {
                loss_of(&output.hidden.index_select(0, rows), branch) * advantage
            })
            .collect();
        Tensor::stack(&losses, 0).sum(Kind::Float).backward();
        assert_same_gradients(&take_gradients(&model), &expected, 1e-4);
    }
}

#[test]
fn a_shared_trunk_counts_once_in_the_indexer_loss() {
    let (trunk, branches) = trunk_and_branches();
    let models = sparse_configs(TOPK).map(|config| loud_model(&config, Kind::Float));
    let modes = [Attention::Dense, Attention::Sparse];
    for (model, attention) in models.iter().flat_map(|m| modes.map(|mode| (m, mode))) {
        let options = ForwardOptions {
            attention,
            indexer_loss: true,
            ..ForwardOptions::inference()
        };
        let losses = |input: &PackedInput| {
            let output = model.forward_packed(input, &options);
            assert_eq!(output.indexer_losses.len(), 2);
            Tensor::stack(&output.indexer_losses, 0)
        };
        let mut expected = losses(&alone(&trunk)) * -2.0;
        for branch in &branches {
            expected += losses(&alone(&[&trunk[..], branch].concat()));
        }
        let found = losses(&branched(&trunk, &branches));
        assert!(found.min().double_value(&[]) > 0.1, "{found}");
        assert_close(&found, &expected, 1e-4, "indexer losses");
    }
}

#[test]
fn documents_of_a_pack_equal_each_alone() {
    let (trunk, branches) = trunk_and_branches();
    let parts = [
        alone(&sequence(11, 13)),
        branched(&trunk, &branches),
        alone(&sequence(12, 1)),
        alone(&sequence(13, 7)),
    ];
    let mut pack = PackedInput {
        tokens: Tensor::cat(&parts.each_ref().map(|part| &part.tokens), 0),
        documents: Vec::new(),
    };
    let mut start = 0;
    for part in &parts {
        let document = part.documents[0].clone();
        pack.documents.push(Document { start, ..document });
        start += part.num_tokens();
    }
    for config in variants() {
        let model = loud_model(&config, Kind::Float);
        let options = ForwardOptions {
            selection: Selection::Record,
            ..recording()
        };
        let whole = model.forward_packed(&pack, &options);
        let mut start = 0;
        for part in &parts {
            let (rows, output) = (part.num_tokens(), model.forward_packed(part, &options));
            let found = model.logits(&whole.hidden.narrow(0, start, rows));
            let expected = model.logits(&output.hidden);
            assert_close(&found, &expected, TOLERANCE, "logits of a document");
            let routing = whole.routing.as_ref().map(|ids| ids.narrow(0, start, rows));
            assert_eq!(routing, output.routing);
            if let (Some(whole), Some(alone)) = (whole.selected_keys(), output.selected_keys()) {
                for (whole, alone) in whole.iter().zip(alone) {
                    assert_eq!(whole[start as usize..][..rows as usize], alone);
                }
            }
            start += rows;
        }
    }
}
