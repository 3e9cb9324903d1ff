use super::*;

fn close(found: &Tensor, expected: &[f64]) {
    let found = Vec::<f64>::try_from(found.to_kind(Kind::Double).flatten(0, -1)).expect("flat");
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() < 1e-6, "{found:?} against {expected:?}");
    }
}

/// Two heads (.1 .2 .3 .4), (.7 .1 .1 .1): p = (.4 .15 .2 .25); I = (.3 -1 2 .7).
#[test]
fn kl_and_its_gradient_equal_the_worked_example() {
    let target = Tensor::from_slice(&[0.4f32, 0.15, 0.2, 0.25]).view([1, 4]);
    let scores = Tensor::from_slice(&[0.3f32, -1.0, 2.0, 0.7])
        .view([1, 4])
        .set_requires_grad(true);
    let loss = kl_to_target(&target, &scores);
    loss.backward();
    close(&loss, &[0.544249020]);
    close(
        &scores.grad(),
        &[-0.278615791, -0.116918944, 0.464450774, -0.068916040],
    );
}

/// Golden numbers of the Megatron order: heads renormalised inside the selected set, then summed.
#[test]
fn sparse_loss_restricts_each_head_to_the_selected_set() {
    let scores = Tensor::from_slice(&[1.0f32, 0.2]).view([1, 2]);
    let heads = [[0.2, 0.5], [0.6, 0.2]].map(|[a, b]: [f64; 2]| [a / (a + b), b / (a + b)]);
    let sum = [heads[0][0] + heads[1][0], heads[0][1] + heads[1][1]].map(|p| p as f32);
    close(
        &sparse_loss(&scores, &Tensor::from_slice(&sum).view([1, 2]), 2),
        &[0.0643056618506],
    );
}

#[test]
fn absent_entries_carry_no_loss() {
    let scores = Tensor::from_slice(&[0.4f32, f32::NEG_INFINITY]).view([1, 2]);
    let sum = Tensor::from_slice(&[2f32, 0.0]).view([1, 2]);
    close(&sparse_loss(&scores, &sum, 2), &[0.0]);
}

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, tch::Device::Cpu))
}

/// Losses of 3 tiles of queries, their sum doubled: against one graph over all of them.
#[test]
fn tiled_losses_have_the_value_and_gradient_of_the_whole() {
    tch::manual_seed(1);
    let shapes: [&[i64]; 3] = [&[7, 2, 4], &[7, 4], &[7, 2]];
    let inputs = shapes.map(random);
    let target = random(&[7, 7]).softmax(-1, Kind::Float);
    let loss_of = |tile: &IndexerStates, first: i64, rows: i64| {
        let scores = kernels::dsa::index_scores(&tile.q, &tile.weights, &tile.k);
        kl_to_target(&target.narrow(0, first, rows), &scores)
    };
    let run = |tiles: &[(i64, i64)], activations_are_kept: bool| {
        let leaves = inputs.each_ref().map(|x| x.copy().set_requires_grad(true));
        // A history of its own, as projections give the states.
        let [q, k, weights] = leaves.each_ref().map(|x| x * 1.5);
        let states = IndexerStates { q, k, weights };
        let sum = match activations_are_kept {
            true => loss_of(&states, 0, 7),
            false => {
                let mut loss = TiledLoss::new(states, true);
                for &(first, rows) in tiles {
                    let tile = loss.tile(first, rows);
                    let value = loss_of(&tile, first, rows);
                    loss.add(tile, &value);
                }
                loss.sum()
            }
        };
        (&sum * 2.0).backward();
        let [q, k, weights] = leaves.map(|leaf| leaf.grad());
        [sum.detach(), q, k, weights]
    };
    let expected = run(&[], true);
    for tiles in [&[(0, 7)][..], &[(0, 3), (3, 3), (6, 1)]] {
        for (found, expected) in run(tiles, false).iter().zip(&expected) {
            let difference = (found - expected).abs().max().double_value(&[]);
            let size = expected.abs().max().double_value(&[]);
            assert!(
                size > 0.1 && difference < 1e-5 * size,
                "{difference} of {size}"
            );
        }
    }
}

#[test]
fn tiled_losses_without_gradient_have_the_same_value() {
    tch::manual_seed(2);
    let states = || {
        tch::manual_seed(3);
        IndexerStates {
            q: random(&[4, 2, 4]).set_requires_grad(true),
            k: random(&[4, 4]),
            weights: random(&[4, 2]),
        }
    };
    let sum = |has_gradient: bool| {
        let mut loss = TiledLoss::new(states(), has_gradient);
        let tile = loss.tile(0, 4);
        let value = kernels::dsa::index_scores(&tile.q, &tile.weights, &tile.k).sum(Kind::Float);
        loss.add(tile, &value);
        loss.sum()
    };
    let (with, without) = (sum(true), sum(false));
    assert!(with.requires_grad() && !without.requires_grad());
    assert_eq!(with.detach(), without);
    assert_eq!(tch::no_grad(|| sum(true)), without);
}
