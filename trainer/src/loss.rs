//! The GRPO loss of the report (3.1, equations 5 to 9) on packed tokens; pure functions.
//!
//! ```text
//! J    = sum_t w_t * ( min(r_t A, clip(r_t, 1 - eps, 1 + eps) A) * M  -  c beta * D_t )
//! r_t  = exp(logprobs - sampler_logprobs)                                            (eq. 6)
//! D_t  = r_t * ( exp(d) - d - 1 ),  d = ref_logprobs - logprobs                      (eq. 7)
//! M    = 0 if A < 0 and mean_t(sampler_logprobs - logprobs) > delta, else 1          (eq. 9)
//! ```
//! N tokens, S sequences (completions); `w_t = 1 / (G |o_i|) / num_groups` comes precomputed, and
//! c scales the KL term of a sequence's domain. The
//! ratio inside D keeps its gradient (that makes D's gradient unbiased); M has none, is one decision
//! a sequence and leaves D alone. Nothing is clamped: extreme tokens are counted, not silenced.

use kernels::tch::{Kind, Tensor};

/// KL term, in nats, above which a token counts as extreme. Implementations that clamp here lose
/// the gradient of exactly these tokens.
const EXTREME_KL: f64 = 10.0;

/// Tensors of one micro-batch.
#[derive(Debug)]
pub struct GrpoLossInput<'a> {
    /// Policy being trained, `[N]`, with gradient.
    pub logprobs: &'a Tensor,
    /// pi_old as the engine returned it, `[N]`.
    pub sampler_logprobs: &'a Tensor,
    /// Frozen reference, `[N]`; needed when `kl_beta > 0`.
    pub ref_logprobs: Option<&'a Tensor>,
    /// Sequence of each token, `[N]` i64 in `0..S`.
    pub sequence: &'a Tensor,
    /// Advantage of each sequence, `[S]`.
    pub advantages: &'a Tensor,
    /// Tokens of each sequence, `[S]`.
    pub lengths: &'a Tensor,
    /// Strength of the KL term of each sequence's domain relative to `kl_beta`, c, `[S]`.
    pub kl_scales: &'a Tensor,
    /// Share of each token in the step's objective, `[N]`.
    pub token_weights: &'a Tensor,
}

/// Constants of the objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GrpoLossParams {
    /// Half width of the clip interval around ratio 1.
    pub clip_epsilon: f64,
    /// Strength of the KL term.
    pub kl_beta: f64,
    /// Largest mean drift (nats a token) of a sequence with negative advantage; `None`: no mask.
    pub off_policy_delta: Option<f64>,
}

/// Loss of a micro-batch; the losses of a step's micro-batches add up.
#[derive(Debug)]
pub struct GrpoLoss {
    /// `-J`, a scalar with gradient.
    pub loss: Tensor,
    /// Tokens N.
    pub num_tokens: usize,
    /// What happened on the way, f64 `[5]` on the device: see [`GrpoStats::of`].
    pub figures: Tensor,
    /// mean_t(sampler_logprobs - logprobs) of each sequence, `[S]` f64, without gradient.
    pub drift: Tensor,
    /// M of each sequence, `[S]` bool.
    pub keep: Tensor,
}

/// Sums over the tokens of one or, after [`GrpoStats::merge`], several micro-batches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GrpoStats {
    /// Tokens N.
    pub tokens: u64,
    /// Sum of D over tokens, nats.
    pub kl_sum: f64,
    /// Sum of r over tokens.
    pub ratio_sum: f64,
    /// Largest r.
    pub ratio_max: f64,
    /// Tokens whose surrogate is the clipped, constant one.
    pub clipped_tokens: u64,
    /// Tokens whose KL term exceeds 10 nats.
    pub extreme_tokens: u64,
}

impl GrpoStats {
    /// The stats of `num_tokens` tokens whose [`GrpoLoss::figures`] are `figures`.
    pub fn of(num_tokens: usize, figures: [f64; 5]) -> GrpoStats {
        let [kl_sum, ratio_sum, ratio_max, clipped, extreme] = figures;
        GrpoStats {
            tokens: num_tokens as u64,
            kl_sum,
            ratio_sum,
            ratio_max,
            clipped_tokens: clipped as u64,
            extreme_tokens: extreme as u64,
        }
    }

    /// Adds another micro-batch.
    pub fn merge(&mut self, other: &GrpoStats) {
        self.tokens += other.tokens;
        self.kl_sum += other.kl_sum;
        self.ratio_sum += other.ratio_sum;
        self.ratio_max = self.ratio_max.max(other.ratio_max);
        self.clipped_tokens += other.clipped_tokens;
        self.extreme_tokens += other.extreme_tokens;
    }

    /// Mean of D over tokens, nats; 0 without tokens.
    pub fn kl_mean(&self) -> f64 {
        self.kl_sum / self.tokens.max(1) as f64
    }

    /// Mean of r over tokens.
    pub fn ratio_mean(&self) -> f64 {
        self.ratio_sum / self.tokens.max(1) as f64
    }

    /// Share of tokens with a clipped surrogate.
    pub fn clipped_share(&self) -> f64 {
        self.clipped_tokens as f64 / self.tokens.max(1) as f64
    }
}

/// `r = exp(logprobs - sampler_logprobs)` (eq. 6), elementwise, with gradient.
pub fn importance_ratio(logprobs: &Tensor, sampler_logprobs: &Tensor) -> Tensor {
    (logprobs - sampler_logprobs).exp()
}

/// `min(r A, clip(r, 1 - eps, 1 + eps) A)` (eq. 5), elementwise; `ratio` and `advantages` `[N]`.
pub fn clipped_surrogate(ratio: &Tensor, advantages: &Tensor, clip_epsilon: f64) -> Tensor {
    let clipped = ratio.clamp(1.0 - clip_epsilon, 1.0 + clip_epsilon);
    (ratio * advantages).minimum(&(clipped * advantages))
}

/// `K3 = exp(d) - d - 1` with `d = ref_logprobs - logprobs`, elementwise.
pub fn k3(logprobs: &Tensor, ref_logprobs: &Tensor) -> Tensor {
    let d = ref_logprobs - logprobs;
    // expm1 keeps the digits of small differences.
    d.expm1() - d
}

/// `D = r * K3` (eq. 7), elementwise; its gradient is `r * (logprobs - ref_logprobs)`.
///
/// Above `d = 1` it is computed as `exp(ref_logprobs - sampler_logprobs) - r (1 + d)`, the same: the parts of
/// the gradient that come through `r` and through `exp(d)` would cancel each other, digit by digit, until in
/// f32 nothing is left from `d = 21` on, and `exp(d)` may overflow where `r exp(d)` does not.
pub fn unbiased_kl(logprobs: &Tensor, sampler_logprobs: &Tensor, ref_logprobs: &Tensor) -> Tensor {
    let ratio = importance_ratio(logprobs, sampler_logprobs);
    let d = ref_logprobs - logprobs;
    let is_near = d.le(1.0);
    // The other branch's overflow would reach the gradient as 0 * inf.
    let near = ref_logprobs.where_self(&is_near, &logprobs.detach());
    let near = &ratio * k3(&logprobs.where_self(&is_near, &logprobs.detach()), &near);
    let far = (ref_logprobs - sampler_logprobs).exp() - ratio * (d + 1.0);
    near.where_self(&is_near, &far)
}

/// `mean_t(sampler_logprobs - logprobs)` of each sequence, `[S]` f64, without gradient.
///
/// Summed in f64, so that the order of the sum can't decide about a sequence.
pub fn sequence_drift(input: &GrpoLossInput) -> Tensor {
    let difference = input.sampler_logprobs.to_kind(Kind::Double)
        - input.logprobs.detach().to_kind(Kind::Double);
    Tensor::zeros_like(&input.lengths.to_kind(Kind::Double)).index_add(
        0,
        input.sequence,
        &difference,
    ) / input.lengths
}

/// M of eq. 9, `[S]` bool: whether a sequence stays in the surrogate.
pub fn keep_sequence(drift: &Tensor, advantages: &Tensor, off_policy_delta: Option<f64>) -> Tensor {
    match off_policy_delta {
        Some(delta) => advantages.ge(0.0).logical_or(&drift.le(delta)),
        None => advantages.ones_like().to_kind(Kind::Bool),
    }
}

/// `-J` of a micro-batch (eq. 5 to 9 above).
///
/// # Panics
/// When `kl_beta > 0` without reference log-probs, or when shapes disagree.
pub fn grpo_loss(input: &GrpoLossInput, params: &GrpoLossParams) -> GrpoLoss {
    assert!(
        params.kl_beta == 0.0 || input.ref_logprobs.is_some(),
        "kl_beta is {} but there are no reference log-probs",
        params.kl_beta
    );
    let logprobs = input.logprobs;
    let kind = logprobs.kind();
    let sampler_logprobs = input.sampler_logprobs.to_kind(kind);
    let ratio = importance_ratio(logprobs, &sampler_logprobs);
    let drift = sequence_drift(input);
    let keep = keep_sequence(&drift, input.advantages, params.off_policy_delta);

    let token_advantages = input
        .advantages
        .to_kind(kind)
        .index_select(0, input.sequence);
    let token_keep = keep.index_select(0, input.sequence);
    // A masked token's ratio is set to 1 before it can overflow: 0 * inf would be NaN, here and in
    // the gradient. The KL keeps the true one.
    let surrogate_ratio = importance_ratio(
        &logprobs.where_self(&token_keep, &sampler_logprobs),
        &sampler_logprobs,
    );
    let surrogate = clipped_surrogate(&surrogate_ratio, &token_advantages, params.clip_epsilon)
        * token_keep.to_kind(kind);
    let kl = input
        .ref_logprobs
        .map(|reference| unbiased_kl(logprobs, &sampler_logprobs, &reference.to_kind(kind)));
    let objective = match &kl {
        Some(kl) if params.kl_beta != 0.0 => {
            let scales = input.kl_scales.to_kind(kind) * params.kl_beta;
            surrogate - kl * scales.index_select(0, input.sequence)
        }
        _ => surrogate,
    };
    GrpoLoss {
        loss: -(objective * input.token_weights.to_kind(kind)).sum(kind),
        num_tokens: logprobs.numel(),
        figures: figures(input, params, &ratio, &token_keep, kl.as_ref()),
        drift,
        keep,
    }
}

/// Cross-entropy of a micro-batch: `-sum_t w_t logprobs_t`; weights `[N]` sum to 1 over a step.
pub fn sft_loss(logprobs: &Tensor, token_weights: &Tensor) -> Tensor {
    -(logprobs * token_weights.to_kind(logprobs.kind())).sum(logprobs.kind())
}

/// What [`GrpoStats::of`] takes.
fn figures(
    input: &GrpoLossInput,
    params: &GrpoLossParams,
    ratio: &Tensor,
    token_keep: &Tensor,
    kl: Option<&Tensor>,
) -> Tensor {
    if input.logprobs.numel() == 0 {
        return Tensor::zeros([5], (Kind::Double, input.logprobs.device()));
    }
    let ratio = ratio.detach().to_kind(Kind::Double);
    let advantages = input.advantages.to_kind(Kind::Double);
    let token_advantages = advantages.index_select(0, input.sequence);
    let clipped_above = ratio
        .gt(1.0 + params.clip_epsilon)
        .logical_and(&token_advantages.gt(0.0));
    let clipped_below = ratio
        .lt(1.0 - params.clip_epsilon)
        .logical_and(&token_advantages.lt(0.0));
    // A masked token has no surrogate that could be clipped.
    let clipped = clipped_above
        .logical_or(&clipped_below)
        .logical_and(token_keep);
    let kl = match kl {
        Some(kl) => kl.detach().to_kind(Kind::Double),
        None => ratio.zeros_like(),
    };
    let sum = |t: &Tensor| t.sum(Kind::Double);
    Tensor::stack(
        &[
            sum(&kl),
            sum(&ratio),
            ratio.max(),
            sum(&clipped),
            sum(&kl.gt(EXTREME_KL)),
        ],
        0,
    )
}

#[cfg(test)]
mod tests;
