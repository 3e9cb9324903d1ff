//! Golden numbers: the report's equations worked out in f64 (`grpo_vectors.json`) and what public
//! frameworks compute on one sample with a hole for a tool token (`peer_golden.json`).

use serde_json::Value;

use super::*;
use crate::advantage::group_advantages;
use kernels::tch::Device;

const GRPO: &str = include_str!("../../../tests/golden/grpo_vectors.json");
const PEERS: &str = include_str!("../../../tests/golden/peer_golden.json");

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("a golden file")
}

fn row(value: &Value) -> Vec<f64> {
    let numbers = value.as_array().expect("an array");
    numbers
        .iter()
        .map(|n| n.as_f64().expect("a number"))
        .collect()
}

/// The rows of a nested array, without the places where `mask` is 0.
fn rows(value: &Value, mask: Option<&Value>) -> Vec<Vec<f64>> {
    let keep = |i: usize, j: usize| mask.is_none_or(|m| m[i][j].as_f64() != Some(0.0));
    let outer = value.as_array().expect("an array").iter().enumerate();
    outer
        .map(|(i, r)| {
            let kept = row(r).into_iter().enumerate().filter(|&(j, _)| keep(i, j));
            kept.map(|(_, number)| number).collect()
        })
        .collect()
}

/// Owned tensors of one group, f64.
struct Case {
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    ref_logprobs: Tensor,
    sequence: Tensor,
    advantages: Tensor,
    lengths: Tensor,
    kl_scales: Tensor,
    token_weights: Tensor,
}

impl Case {
    fn new(cur: &[Vec<f64>], old: &[Vec<f64>], reference: &[Vec<f64>], advantages: &[f64]) -> Case {
        let mut sequence = Vec::new();
        let mut weights = Vec::new();
        for (i, tokens) in cur.iter().enumerate() {
            let len = tokens.len();
            sequence.extend(vec![i as i64; len]);
            weights.extend(vec![1.0 / (cur.len() * len) as f64; len]);
        }
        let lengths: Vec<i64> = cur.iter().map(|tokens| tokens.len() as i64).collect();
        Case {
            logprobs: Tensor::from_slice(&cur.concat()).set_requires_grad(true),
            sampler_logprobs: Tensor::from_slice(&old.concat()),
            ref_logprobs: Tensor::from_slice(&reference.concat()),
            sequence: Tensor::from_slice(&sequence),
            advantages: Tensor::from_slice(advantages),
            lengths: Tensor::from_slice(&lengths),
            kl_scales: Tensor::ones([lengths.len() as i64], (Kind::Double, Device::Cpu)),
            token_weights: Tensor::from_slice(&weights),
        }
    }

    /// The sample of `grpo_vectors.json`: rewards 1, 0, 0.
    fn report() -> Case {
        let golden = json(GRPO);
        let rewards: Vec<Option<f64>> = row(&golden["rewards"]).into_iter().map(Some).collect();
        let advantages: Vec<f64> = group_advantages(&rewards).into_iter().flatten().collect();
        Case::new(
            &rows(&golden["logp_theta"], None),
            &rows(&golden["logp_old"], None),
            &rows(&golden["logp_ref"], None),
            &advantages,
        )
    }

    /// The sample of `peer_golden.json`; `reference` replaces the one of sequence 1, token 2.
    fn peers(reference: Option<f64>) -> Case {
        let mut inputs = json(PEERS)["inputs"].take();
        if let Some(value) = reference {
            inputs["ref"][1][2] = value.into();
        }
        let mask = Some(&inputs["mask"]);
        Case::new(
            &rows(&inputs["cur"], mask),
            &rows(&inputs["old"], mask),
            &rows(&inputs["ref"], mask),
            &row(&inputs["adv"]),
        )
    }

    fn input(&self) -> GrpoLossInput<'_> {
        GrpoLossInput {
            logprobs: &self.logprobs,
            sampler_logprobs: &self.sampler_logprobs,
            ref_logprobs: Some(&self.ref_logprobs),
            sequence: &self.sequence,
            advantages: &self.advantages,
            lengths: &self.lengths,
            kl_scales: &self.kl_scales,
            token_weights: &self.token_weights,
        }
    }

    fn loss(&self, clip_epsilon: f64, kl_beta: f64, off_policy_delta: Option<f64>) -> GrpoLoss {
        grpo_loss(
            &self.input(),
            &GrpoLossParams {
                clip_epsilon,
                kl_beta,
                off_policy_delta,
            },
        )
    }

    /// Gradient of a scalar by the log-probs, `[N]`.
    fn gradient(&self, scalar: &Tensor) -> Vec<f64> {
        let gradients = Tensor::run_backward(&[scalar], &[&self.logprobs], true, false);
        numbers(&gradients[0])
    }
}

fn masked_sequences(loss: &GrpoLoss) -> i64 {
    loss.keep.logical_not().sum(Kind::Int64).int64_value(&[])
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.to_kind(Kind::Double)).expect("one dimension")
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() < tolerance, "entry {i}: {f} against {e}");
    }
}

#[test]
fn loss_and_gradient_equal_the_worked_example() {
    let golden = json(GRPO);
    let case = Case::report();
    for (name, delta) in [
        ("delta=0.5 unbiased KL", Some(0.5)),
        ("delta=inf unbiased KL", Some(f64::INFINITY)),
        ("delta=inf unbiased KL", None),
    ] {
        let expected = &golden["cases"][name];
        let found = case.loss(0.2, 0.05, delta);
        let value = expected["loss"].as_f64().expect("a number");
        assert_close(&[found.loss.double_value(&[])], &[value], 1e-9);
        let gradient = rows(&expected["grad"], None).concat();
        assert_close(&case.gradient(&found.loss), &gradient, 1e-9);
    }
}

#[test]
fn parts_equal_the_worked_example() {
    let golden = json(GRPO);
    let expected = &golden["cases"]["delta=0.5 unbiased KL"]["rows"];
    let column = |key: &str| -> Vec<f64> {
        let sequences = expected.as_array().expect("an array").iter();
        sequences.flat_map(|s| row(&s[key])).collect()
    };
    let case = Case::report();
    let input = case.input();
    let ratio = importance_ratio(input.logprobs, input.sampler_logprobs);
    let advantages = input.advantages.index_select(0, input.sequence);
    assert_close(&numbers(&ratio), &column("ratio"), 1e-12);
    let surrogate = clipped_surrogate(&ratio, &advantages, 0.2);
    assert_close(&numbers(&surrogate), &column("surr"), 1e-12);
    let k3 = k3(input.logprobs, &case.ref_logprobs);
    assert_close(&numbers(&k3), &column("k3"), 1e-12);
    let kl = unbiased_kl(input.logprobs, input.sampler_logprobs, &case.ref_logprobs);
    assert_close(&numbers(&kl), &column("kl"), 1e-12);
    let drift = [0.1 / 3.0, 2.3 / 3.0, 0.1 / 4.0];
    assert_close(&numbers(&sequence_drift(&input)), &drift, 1e-12);
}

#[test]
fn plain_k3_in_place_of_the_unbiased_kl_gives_the_other_worked_example() {
    let expected = &json(GRPO)["cases"]["delta=0.5 plain K3"];
    let case = Case::report();
    let input = case.input();
    let ratio = importance_ratio(input.logprobs, input.sampler_logprobs);
    let keep = keep_sequence(&sequence_drift(&input), input.advantages, Some(0.5));
    let token_keep = keep.index_select(0, input.sequence);
    let advantages = input.advantages.index_select(0, input.sequence);
    let objective = clipped_surrogate(&ratio, &advantages, 0.2) * token_keep
        - k3(input.logprobs, &case.ref_logprobs) * 0.05;
    let loss = -(objective * input.token_weights).sum(Kind::Double);
    let value = expected["loss"].as_f64().expect("a number");
    assert_close(&[loss.double_value(&[])], &[value], 1e-9);
    let gradient = rows(&expected["grad"], None).concat();
    assert_close(&case.gradient(&loss), &gradient, 1e-9);
}

#[test]
fn kl_equals_the_peer_that_clamps_nothing() {
    let golden = json(PEERS);
    let expected = &golden["kl"]["trl use_bias_correction_kl (no clamps)"];
    let mask = Some(&golden["inputs"]["mask"]);
    let case = Case::peers(None);
    let kl = unbiased_kl(&case.logprobs, &case.sampler_logprobs, &case.ref_logprobs);
    assert_close(&numbers(&kl), &rows(&expected["kl"], mask).concat(), 1e-9);
    let gradient = rows(&expected["grad_wrt_cur"], mask).concat();
    assert_close(&case.gradient(&kl.sum(Kind::Double)), &gradient, 1e-9);
}

#[test]
fn mask_equals_the_peers_at_every_delta() {
    let golden = json(PEERS);
    let case = Case::peers(None);
    let drift = sequence_drift(&case.input());
    let expected = row(&golden["opsm"]["seq_kl=mean(old-cur)"]);
    assert_close(&numbers(&drift), &expected, 1e-9);
    for delta in [0.0001, 0.05, 0.2, 0.5] {
        let keep = numbers(&keep_sequence(&drift, &case.advantages, Some(delta)));
        for peer in ["slime", "miles", "trl", "swift", "cosmos"] {
            let expected = &golden["opsm"][format!("delta={delta}")][format!("{peer}_keep")];
            assert_eq!(keep, row(expected), "{peer} at delta {delta}");
        }
    }
}

#[test]
fn loss_and_gradient_equal_the_peers() {
    let golden = json(PEERS);
    let cases = golden.as_object().expect("an object");
    let (_, losses) = cases
        .iter()
        .find(|(key, _)| key.starts_with("loss eps=.2"))
        .expect("losses");
    let expected = &losses["paper/trl/slime"];
    let case = Case::peers(Some(-3.3));
    let found = case.loss(0.2, 0.05, Some(0.2));
    let value = expected["loss"].as_f64().expect("a number");
    assert_close(&[found.loss.double_value(&[])], &[value], 1e-9);
    let gradient = rows(&expected["grad"], Some(&golden["inputs"]["mask"])).concat();
    assert_close(&case.gradient(&found.loss), &gradient, 1e-9);
}

#[test]
fn kl_gradient_is_ratio_times_log_ratio_to_the_reference() {
    let case = Case::peers(None);
    let ratio = importance_ratio(&case.logprobs, &case.sampler_logprobs);
    let kl = unbiased_kl(&case.logprobs, &case.sampler_logprobs, &case.ref_logprobs);
    let expected = numbers(&(ratio * (&case.logprobs - &case.ref_logprobs)));
    assert_close(&case.gradient(&kl.sum(Kind::Double)), &expected, 1e-12);
}

/// Largest gap between the gradient of `E_old[estimate]` and that of KL(theta || ref), both by
/// enumeration of a 7-way categorical.
fn enumerated_gradient_gap(estimate: impl Fn(&Tensor, &Tensor, &Tensor) -> Tensor) -> f64 {
    let theta = Tensor::from_slice(&[0.3, -1.2, 2.0, 0.1, -0.4, 1.1, -2.5]).set_requires_grad(true);
    let old = Tensor::from_slice(&[0.5, -0.7, 0.9, 0.4, -1.0, 1.6, -1.5]);
    let reference = Tensor::from_slice(&[-2.0, 1.4, 0.2, -0.3, 2.2, -0.6, 0.8]);
    let log_softmax = |logits: &Tensor| logits.log_softmax(-1, Kind::Double);
    let (logprobs, old, reference) = (
        log_softmax(&theta),
        log_softmax(&old),
        log_softmax(&reference),
    );
    let expectation = (old.exp() * estimate(&logprobs, &old, &reference)).sum(Kind::Double);
    let exact = (logprobs.exp() * (&logprobs - &reference)).sum(Kind::Double);
    let gradient = |of: &Tensor| Tensor::run_backward(&[of], &[&theta], true, false).remove(0);
    (gradient(&expectation) - gradient(&exact))
        .abs()
        .max()
        .double_value(&[])
}

#[test]
fn kl_is_unbiased_in_value_and_gradient_and_its_look_alikes_are_not() {
    let plain = |lp: &Tensor, _: &Tensor, reference: &Tensor| k3(lp, reference);
    let detached = |lp: &Tensor, old: &Tensor, reference: &Tensor| {
        importance_ratio(lp, old).detach() * k3(lp, reference)
    };
    assert!(enumerated_gradient_gap(unbiased_kl) < 1e-14);
    assert!(enumerated_gradient_gap(plain) > 0.1);
    assert!(enumerated_gradient_gap(detached) > 0.1);
}

#[test]
fn masked_sequence_gets_no_policy_gradient() {
    let case = Case::report();
    let masked = case.gradient(&case.loss(0.2, 0.0, Some(0.5)).loss);
    assert_eq!(masked[3..6], [0.0, 0.0, 0.0]);
    // The middle sequence is the only one that changes when the mask goes.
    let unmasked = case.gradient(&case.loss(0.2, 0.0, None).loss);
    assert!(unmasked[4] > 0.01 && unmasked[5] > 0.01);
    assert_eq!(masked[..3], unmasked[..3]);
    assert_eq!(masked[6..], unmasked[6..]);
}

#[test]
fn masked_sequence_keeps_its_kl_gradient() {
    let case = Case::report();
    let gradient = case.gradient(&case.loss(0.2, 0.05, Some(0.5)).loss);
    let ratio = importance_ratio(&case.logprobs, &case.sampler_logprobs);
    let log_ratio = &case.logprobs - &case.ref_logprobs;
    let expected = numbers(&(ratio * log_ratio * &case.token_weights * 0.05));
    assert_close(&gradient[3..6], &expected[3..6], 1e-15);
    assert!(expected[3..6].iter().all(|g| g.abs() > 1e-4));
}

/// The middle one of three sequences is of a domain with twice the KL, the last of one without.
#[test]
fn kl_of_each_domain_has_its_own_strength() {
    let mut case = Case::report();
    case.kl_scales = Tensor::from_slice(&[1.0, 2.0, 0.0]);
    let gradient = |kl_beta: f64| case.gradient(&case.loss(0.2, kl_beta, Some(0.5)).loss);
    let of_kl = gradient(0.05).into_iter().zip(gradient(0.0));
    let of_kl: Vec<f64> = of_kl.map(|(with, without)| with - without).collect();
    let ratio = importance_ratio(&case.logprobs, &case.sampler_logprobs);
    let log_ratio = &case.logprobs - &case.ref_logprobs;
    let plain = numbers(&(ratio * log_ratio * &case.token_weights * 0.05));
    let scales = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0];
    let expected: Vec<f64> = plain.iter().zip(scales).map(|(a, b)| a * b).collect();
    assert_close(&of_kl, &expected, 1e-15);
    assert!(plain.iter().any(|g| g.abs() > 1e-4));
}

#[test]
fn ratio_of_a_masked_sequence_may_overflow() {
    // The first token's ratio is exp(900), infinite; the sequence is masked for its other tokens.
    let case = Case::new(
        &[vec![-1.0, -3000.0], vec![-1.0, -1.0]],
        &[vec![-901.0, -1.0], vec![-1.0, -1.0]],
        &[vec![-1.0, -1.0], vec![-1.0, -1.0]],
        &[-0.5, 0.5],
    );
    let found = case.loss(0.2, 0.0, Some(0.5));
    assert_eq!(masked_sequences(&found), 1);
    assert_eq!(found.loss.double_value(&[]), -0.25);
    assert_eq!(case.gradient(&found.loss), [0.0, 0.0, -0.125, -0.125]);
}

#[test]
fn positive_advantage_is_never_masked() {
    // Both sequences drifted by 2 nats a token; the mask is one-sided.
    let case = Case::new(
        &[vec![-3.0, -3.0], vec![-3.0, -3.0]],
        &[vec![-1.0, -1.0], vec![-1.0, -1.0]],
        &[vec![-1.0, -1.0], vec![-1.0, -1.0]],
        &[0.5, -0.5],
    );
    let keep = case.loss(0.2, 0.0, Some(0.1)).keep;
    assert_eq!(Vec::<bool>::try_from(keep).unwrap(), [true, false]);
    // Upward drift (the policy likes the tokens more than the sampler did) is not masked either.
    let case = Case::new(
        &[vec![-1.0], vec![-1.0]],
        &[vec![-3.0], vec![-3.0]],
        &[vec![-1.0], vec![-1.0]],
        &[0.5, -0.5],
    );
    assert_eq!(masked_sequences(&case.loss(0.2, 0.0, Some(0.1))), 0);
}

#[test]
fn zero_variance_group_gives_zero_gradient() {
    let mut case = Case::report();
    case.advantages = Tensor::zeros([3], (Kind::Double, Device::Cpu));
    let gradient = case.gradient(&case.loss(0.2, 0.0, Some(0.5)).loss);
    assert!(gradient.iter().all(|&g| g == 0.0), "{gradient:?}");
}

#[test]
fn extreme_token_keeps_its_gradient_and_is_counted() {
    let case = Case::peers(None);
    let found = case.loss(0.2, 1.0, None);
    assert_eq!(stats_of(&found).extreme_tokens, 1);
    // Token 2 of sequence 1: reference -30, policy -3.6; w = 1/20, gradient 16.0124 w.
    let without_kl = case.gradient(&case.loss(0.2, 0.0, None).loss);
    let kl_gradient = case.gradient(&found.loss)[7] - without_kl[7];
    assert_close(&[kl_gradient], &[16.012_409_416_4 / 20.0], 1e-9);
}

/// In f32, as in training, where the policy has left what the reference holds likely.
#[test]
fn kl_gradient_survives_single_precision() {
    for (logprob, sampler, reference) in [
        (-0.5_f32, -0.6_f32, -0.7_f32),
        (-1.25, -1.5, -0.5),
        (-18.0, -18.0, -1.0),
        (-21.0, -21.0, -0.5),
        (-92.0, -1.0, -0.5),
        (-92.0, -90.0, -91.5),
        (-0.5, -0.5, -120.0),
    ] {
        let leaf = Tensor::from_slice(&[logprob]).set_requires_grad(true);
        let constants = [sampler, reference].map(|x| Tensor::from_slice(&[x]));
        let kl = unbiased_kl(&leaf, &constants[0], &constants[1]);
        kl.backward();
        let [logprob, sampler, reference] = [logprob, sampler, reference].map(f64::from);
        let (ratio, d) = ((logprob - sampler).exp(), reference - logprob);
        let found = [kl.double_value(&[0]), leaf.grad().double_value(&[0])];
        for (found, expected) in found
            .into_iter()
            .zip([ratio * (d.exp_m1() - d), -ratio * d])
        {
            // Below 1e-38 f32 has no digits.
            let error = (found - expected).abs();
            assert!(
                error <= 2e-6 * expected.abs() + 1e-38,
                "{found} for {expected} at d = {d}"
            );
        }
    }
}

fn stats_of(loss: &GrpoLoss) -> GrpoStats {
    let figures = Vec::<f64>::try_from(&loss.figures).expect("a row of f64");
    GrpoStats::of(loss.num_tokens, figures.try_into().expect("five"))
}

#[test]
fn stats_count_what_happened() {
    let found = Case::report().loss(0.2, 0.05, Some(0.5));
    assert_eq!(masked_sequences(&found), 1);
    assert_close(&numbers(&found.drift)[1..2], &[2.3 / 3.0], 1e-12);
    let stats = stats_of(&found);
    assert_eq!(stats.tokens, 10);
    // The first token of the second sequence has r = 0.08 and A < 0, but the sequence is masked.
    assert_eq!(stats.clipped_tokens, 0);
    let unmasked = stats_of(&Case::report().loss(0.2, 0.05, None));
    assert_eq!(unmasked.clipped_tokens, 1);
    assert_eq!(stats.extreme_tokens, 0);
    assert_close(&[stats.ratio_max], &[1.349_858_807_576], 1e-12);
    let rows = &json(GRPO)["cases"]["delta=0.5 unbiased KL"]["rows"];
    let kl_sum: f64 = (0..3).flat_map(|i| row(&rows[i]["kl"])).sum();
    assert_close(&[stats.kl_sum], &[kl_sum], 1e-12);
}

#[test]
fn merged_stats_equal_those_of_the_whole() {
    let a = stats_of(&Case::report().loss(0.2, 0.05, Some(0.5)));
    let b = stats_of(&Case::peers(None).loss(0.2, 0.05, Some(0.5)));
    let mut both = GrpoStats::default();
    both.merge(&a);
    both.merge(&b);
    assert_eq!(both.tokens, 26);
    assert_eq!(both.ratio_max, a.ratio_max.max(b.ratio_max));
    assert!((both.kl_mean() - (a.kl_sum + b.kl_sum) / 26.0).abs() < 1e-15);
}

#[test]
fn sft_loss_is_the_weighted_negative_logprob() {
    let logprobs = Tensor::from_slice(&[-1.0_f32, -3.0]).set_requires_grad(true);
    let loss = sft_loss(&logprobs, &Tensor::from_slice(&[0.25_f64, 0.75]));
    assert_eq!(loss.double_value(&[]), 2.5);
    loss.backward();
    assert_eq!(numbers(&logprobs.grad()), [-0.25, -0.75]);
}

#[test]
#[should_panic(expected = "no reference log-probs")]
fn kl_without_reference_is_refused() {
    let case = Case::report();
    let input = GrpoLossInput {
        ref_logprobs: None,
        ..case.input()
    };
    grpo_loss(
        &input,
        &GrpoLossParams {
            clip_epsilon: 0.2,
            kl_beta: 0.05,
            off_policy_delta: None,
        },
    );
}
