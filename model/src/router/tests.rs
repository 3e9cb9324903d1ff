use kernels::tch::Device;

use super::*;

/// A router whose logits are its input: the gate is the identity.
fn router(config: MoeConfig, bias: Option<&[f32]>) -> Router {
    let experts = config.num_experts as i64;
    let parameter =
        |name: &str, group, values: Tensor| Parameter::new(name, group, values, Kind::Float);
    let identity = Tensor::eye(experts, (Kind::Float, Device::Cpu));
    Router {
        gate: parameter("gate", ParameterGroup::Main, identity),
        correction_bias: bias
            .map(|bias| parameter("bias", ParameterGroup::Frozen, Tensor::from_slice(bias))),
        config,
    }
}

/// One token whose sigmoid scores are `scores`.
fn logits_of(scores: &[f64]) -> Tensor {
    let logits: Vec<f32> = scores.iter().map(|s| (s / (1.0 - s)).ln() as f32).collect();
    Tensor::from_slice(&logits).unsqueeze(0)
}

fn routed(router: &Router, x: &Tensor, recorded: Option<&[i64]>) -> (Vec<i64>, Vec<f32>) {
    let recorded = recorded.map(|ids| Tensor::from_slice(ids).unsqueeze(0));
    let routed = router.route(x, recorded.as_ref());
    (
        Vec::try_from(routed.experts.squeeze_dim(0)).unwrap(),
        Vec::try_from(routed.gates.squeeze_dim(0).detach()).unwrap(),
    )
}

#[track_caller]
fn close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (f64::from(*a) - b).abs() < 1e-6,
            "{found:?} against {expected:?}"
        );
    }
}

const SCORES: [f64; 8] = [0.9, 0.1, 0.5, 0.45, 0.3, 0.8, 0.2, 0.6];
const BIAS: [f32; 8] = [-0.6, 0.0, 0.1, 0.2, 0.0, 0.0, 0.0, 0.0];

/// 8 experts in 4 groups of which 2 are kept, 2 experts a token.
fn noaux_tc() -> MoeConfig {
    MoeConfig {
        scoring_func: ScoringFunc::Sigmoid,
        n_group: 4,
        topk_group: 2,
        routed_scaling_factor: 2.5,
        correction_bias: true,
        ..MoeConfig::mixtral(8, 2)
    }
}

/// Choice scores .3 .1 | .6 .65 | .3 .8 | .2 .6, groups .4 1.25 1.1 .8: experts 5 and 3 of groups 2 and
/// 1; gates .8 and .45 over 1.25, times 2.5.
#[test]
fn bias_and_groups_decide_the_choice_and_scores_the_gates() {
    let router = router(noaux_tc(), Some(&BIAS));
    let (experts, gates) = routed(&router, &logits_of(&SCORES), None);
    assert_eq!(experts, [5, 3]);
    close(&gates, &[1.6, 0.9]);
}

#[test]
fn without_groups_the_best_experts_of_all_are_chosen() {
    let moe = MoeConfig {
        n_group: 1,
        topk_group: 1,
        ..noaux_tc()
    };
    // Choice scores .3 .1 .6 .65 .3 .95 .2 .6 and, with the bias gone, .9 .1 .5 .45 .3 .8 .2 .6.
    let mut bias = BIAS;
    bias[5] = 0.15;
    let x = logits_of(&SCORES);
    assert_eq!(
        routed(&router(moe.clone(), Some(&bias)), &x, None).0,
        [5, 3]
    );
    let (experts, gates) = routed(&router(moe, None), &x, None);
    assert_eq!(experts, [0, 5]);
    close(&gates, &[2.5 * 0.9 / 1.7, 2.5 * 0.8 / 1.7]);
}

#[test]
fn gates_are_the_scores_where_they_are_not_normalised() {
    let moe = MoeConfig {
        norm_topk_prob: false,
        ..noaux_tc()
    };
    let (_, gates) = routed(&router(moe, Some(&BIAS)), &logits_of(&SCORES), None);
    close(&gates, &[2.0, 1.125]);
}

/// A group of bad experts stays out even where every choice score is below zero.
#[test]
fn excluded_groups_are_at_minus_infinity_not_at_zero() {
    let router = router(noaux_tc(), Some(&[-2.0; 8]));
    let scores = [0.9, 0.8, 0.7, 0.6, 0.1, 0.1, 0.1, 0.1];
    assert_eq!(routed(&router, &logits_of(&scores), None).0, [0, 1]);
    let bias = [-2.0, -2.0, -2.0, -2.0, -2.5, -2.5, -2.5, -2.5];
    let router = super::tests::router(
        MoeConfig {
            num_experts_per_tok: 4,
            ..noaux_tc()
        },
        Some(&bias),
    );
    assert_eq!(routed(&router, &logits_of(&scores), None).0, [0, 1, 2, 3]);
}

#[test]
fn ties_go_to_the_lower_group_and_expert() {
    let router = router(noaux_tc(), Some(&[0.0; 8]));
    assert_eq!(routed(&router, &logits_of(&[0.5; 8]), None).0, [0, 1]);
}

#[test]
fn replay_forces_experts_outside_the_best_groups() {
    let router = router(noaux_tc(), Some(&BIAS));
    let (experts, gates) = routed(&router, &logits_of(&SCORES), Some(&[1, 0]));
    assert_eq!(experts, [1, 0]);
    close(&gates, &[0.25, 2.25]);
    let recorded = Tensor::from_slice(&[3i64, 0]).unsqueeze(0);
    let agreeing = router.route(&logits_of(&SCORES), Some(&recorded)).agreeing;
    assert_eq!(agreeing.unwrap().int64_value(&[]), 1);
}

/// Gradient of the gate of the first recorded expert by the logit of each expert: the gate matrix is the
/// identity, so that row e of its gradient is that number times the input.
fn slopes(moe: MoeConfig, x: &Tensor, recorded: &[i64]) -> Vec<f32> {
    let bias = vec![0.0; moe.num_experts];
    let router = router(moe, Some(&bias));
    let recorded = Tensor::from_slice(recorded).unsqueeze(0);
    let gates = router.route(x, Some(&recorded)).gates;
    gates.narrow(1, 0, 1).sum(Kind::Float).backward();
    // The first input is not 0.
    let column = router.gate.master.grad().select(1, 0) / x.double_value(&[0, 0]);
    Vec::try_from(column).unwrap()
}

fn four_experts(scoring_func: ScoringFunc, norm_topk_prob: bool) -> MoeConfig {
    MoeConfig {
        scoring_func,
        norm_topk_prob,
        ..MoeConfig::mixtral(4, 2)
    }
}

/// Scores .4 .3 .2 .1, of which .3 and .1 were recorded: g = .75 and .25, slopes g (1 - g) and -g g'.
#[test]
fn normalised_softmax_gates_give_unselected_experts_no_gradient() {
    let x = Tensor::from_slice(&[4f32, 3.0, 2.0, 1.0])
        .log()
        .unsqueeze(0);
    let found = slopes(four_experts(ScoringFunc::Softmax, true), &x, &[1, 3]);
    close(&found, &[0.0, 0.1875, 0.0, -0.1875]);
}

/// Undivided, g = s: slopes s (1 - s) and -s s_e, for experts that were not selected as well.
#[test]
fn softmax_gates_without_normalisation_push_unselected_experts_down() {
    let x = Tensor::from_slice(&[4f32, 3.0, 2.0, 1.0])
        .log()
        .unsqueeze(0);
    let found = slopes(four_experts(ScoringFunc::Softmax, false), &x, &[1, 3]);
    close(&found, &[-0.12, 0.21, -0.06, -0.03]);
}

/// Scores .9 .5 .2 .6, of which .5 and .6 were recorded. Each depends on its own logit alone, slope
/// s (1 - s); divided by 1.1, g = 5/11 and slopes .25 / 1.1 * 6/11 and -.24 / 1.1 * 5/11.
#[test]
fn sigmoid_gates_give_unselected_experts_no_gradient() {
    let x = logits_of(&[0.9, 0.5, 0.2, 0.6]);
    let plain = slopes(four_experts(ScoringFunc::Sigmoid, false), &x, &[1, 3]);
    close(&plain, &[0.0, 0.25, 0.0, 0.0]);
    let normalised = slopes(four_experts(ScoringFunc::Sigmoid, true), &x, &[1, 3]);
    let (own, other) = (0.25 / 1.1 * 6.0 / 11.0, -0.24 / 1.1 * 5.0 / 11.0);
    close(&normalised, &[0.0, own, 0.0, other]);
    for slope in [plain[0], plain[2], normalised[0], normalised[2]] {
        assert_eq!(slope, 0.0, "no rounding either");
    }
    let scaled = MoeConfig {
        routed_scaling_factor: 2.5,
        ..four_experts(ScoringFunc::Sigmoid, true)
    };
    let scaled = slopes(scaled, &x, &[1, 3]);
    close(&scaled, &[0.0, 2.5 * own, 0.0, 2.5 * other]);
}

#[test]
fn the_correction_bias_gets_no_gradient() {
    let router = router(noaux_tc(), Some(&BIAS));
    let gates = router.route(&logits_of(&SCORES), None).gates;
    gates.narrow(1, 0, 1).sum(Kind::Float).backward();
    let [gate, bias] = router.parameters().collect::<Vec<_>>()[..] else {
        panic!("a gate and a bias");
    };
    assert!(gate.master.grad().abs().max().double_value(&[]) > 1e-3);
    assert!(!bias.master.requires_grad() && !bias.master.grad().defined());
}
