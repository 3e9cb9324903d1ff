//! Recorded routing, replayed: the same experts, with gates that live and learn.

use super::*;
use crate::config::ScoringFunc;

fn expert_variants() -> [ModelConfig; 3] {
    let sigmoid = {
        let mut config = with_experts(dense_config());
        config.moe.as_mut().unwrap().scoring_func = ScoringFunc::Sigmoid;
        config
    };
    let [_, softmax, _, sparse, ..] = variants();
    [softmax, sigmoid, sparse]
}

fn replaying(ids: &Tensor) -> ForwardOptions {
    ForwardOptions {
        routing: Routing::Replay(ids.shallow_clone()),
        ..ForwardOptions::inference()
    }
}

#[test]
fn replayed_routing_reproduces_logits() {
    let input = branched(&sequence(1, 9), &[sequence(2, 8), sequence(3, 11)]);
    for config in expert_variants() {
        let model = loud_model(&config, Kind::Float);
        let recorded = model.forward_packed(&input, &recording());
        let ids = recorded.routing.as_ref().unwrap().shallow_clone();
        assert_eq!(ids.size(), [28, 2, 2]);
        assert_eq!(recorded.routing_agreement(), None);
        let free = model.forward_packed(&input, &ForwardOptions::inference());
        assert_eq!(free.hidden, recorded.hidden);
        assert!(free.routing.is_none());

        let replayed = model.forward_packed(&input, &replaying(&ids));
        assert_eq!(replayed.hidden, recorded.hidden, "bit for bit");
        assert_eq!(replayed.routing_agreement(), Some(1.0));

        let moved = model.forward_packed(&input, &replaying(&other_experts(&ids)));
        assert!(max_difference(&moved.hidden, &recorded.hidden) > 0.1);
        assert!(moved.routing_agreement().unwrap() < 0.9);
    }
}

#[test]
fn routing_agreement_counts_experts_not_their_order() {
    let config = ModelConfig {
        num_hidden_layers: 1,
        ..with_experts(dense_config())
    };
    let model = loud_model(&config, Kind::Float);
    let input = alone(&sequence(1, 20));
    let ids = model.forward_packed(&input, &recording()).routing.unwrap();
    let agreement = |ids: &Tensor| {
        let output = model.forward_packed(&input, &replaying(ids));
        output.routing_agreement().unwrap()
    };
    assert_eq!(agreement(&ids.flip([-1])), 1.0);
    // The second choice of every token is exchanged for an expert that was not chosen.
    let (first, second) = (ids.select(2, 0), ids.select(2, 1));
    let not_chosen = |candidate: Tensor| {
        let taken = candidate
            .eq_tensor(&first)
            .logical_or(&candidate.eq_tensor(&second));
        candidate.masked_fill(&taken, 4)
    };
    let candidates = [0, 1, 2, 3].map(|expert| not_chosen(first.full_like(expert)));
    let lowest = Tensor::stack(&candidates, 0).amin(0, false);
    assert_eq!(agreement(&Tensor::stack(&[&first, &lowest], 2)), 0.5);
}

#[test]
fn experts_vary_over_tokens_and_gates_sum_to_one() {
    let model = loud_model(&with_experts(dense_config()), Kind::Float);
    let output = model.forward_packed(&alone(&sequence(1, 40)), &recording());
    let ids = output.routing.unwrap();
    let loads = ids.flatten(0, -1).bincount(None::<&Tensor>, 4);
    assert!(loads.min().int64_value(&[]) > 0, "{loads}");
    let same = ids.select(2, 0).eq_tensor(&ids.select(2, 1));
    assert_eq!(same.any().int64_value(&[]), 0, "an expert chosen twice");
}

#[test]
fn gradients_reach_the_gate_under_replay() {
    let tokens = sequence(1, 16);
    for config in expert_variants() {
        let model = loud_model(&config, Kind::Float);
        let gradients = |options: &ForwardOptions| {
            let output = model.forward_packed(&alone(&tokens), options);
            language_loss(&model, &output.hidden, &tokens, 1).backward();
            (output.routing, take_gradients(&model))
        };
        let (ids, free) = gradients(&recording());
        let ids = ids.unwrap();
        let (_, replayed) = gradients(&replaying(&ids));
        assert_same_gradients(&replayed, &free, 1e-6);
        let (_, moved) = gradients(&replaying(&other_experts(&ids)));
        let gates = moved
            .iter()
            .filter(|(name, ..)| name.ends_with("gate.weight"));
        let sizes: Vec<f64> = gates
            .map(|(_, _, grad)| grad.as_ref().unwrap().abs().max().double_value(&[]))
            .collect();
        assert!(
            sizes.len() == 2 && sizes.iter().all(|&size| size > 1e-3),
            "{sizes:?}"
        );
    }
}

/// The gate's gradient under replay is the derivative of the loss with the experts held fixed: with
/// softmax and sigmoid scores, normalised and not, and with the gate of DeepSeek-V3.
#[test]
fn gate_gradient_under_replay_equals_the_finite_difference() {
    let tokens = sequence(1, 12);
    let unnormalised = |mut config: ModelConfig| {
        config.moe.as_mut().unwrap().norm_topk_prob = false;
        config
    };
    let [softmax, sigmoid, _] = expert_variants();
    for config in [
        unnormalised(softmax.clone()),
        unnormalised(sigmoid.clone()),
        softmax,
        sigmoid,
        latent_config(),
    ] {
        let model = loud_model(&config, Kind::Float);
        let ids = model.forward_packed(&alone(&tokens), &recording()).routing;
        let options = replaying(&other_experts(&ids.unwrap()));
        let loss = || {
            let output = model.forward_packed(&alone(&tokens), &options);
            language_loss(&model, &output.hidden, &tokens, 1)
        };
        loss().backward();
        let parameters = model.parameters();
        let gate = parameters.iter().find(|p| p.name.ends_with("gate.weight"));
        let gate = &gate.unwrap().master;
        assert_slopes(gate, &gate.grad(), 0.01, || loss().double_value(&[]));
    }
}
