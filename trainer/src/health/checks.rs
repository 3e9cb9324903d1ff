//! The checks: each from the steps of a stage to the advice that they call for.

use super::ranges::*;
use super::{Advisory, Figure, StageLines, ends, mean, median, newest, standard_error};
use crate::config::{Compute, GrpoConfig};
use crate::metrics::StepMetrics;

/// Those that make sense in every stage.
pub(super) fn of_any_stage(lines: &StageLines) -> Vec<Advisory> {
    let optimizer = &lines.config.optimizer;
    let norms = |figure, key: &str, limit, norm: fn(&StepMetrics) -> Option<f64>| {
        grad_norm(lines, figure, (key, limit), &lines.values(norm))
    };
    let main = norms(
        Figure::GradNorm,
        "max_grad_norm",
        optimizer.max_grad_norm,
        |s| s.grad_norm,
    );
    let indexer = norms(
        Figure::IndexerGradNorm,
        "max_indexer_grad_norm",
        optimizer.max_indexer_grad_norm,
        |s| s.indexer_grad_norm,
    );
    main.into_iter().chain(indexer).collect()
}

/// Those of a grpo stage.
pub(super) fn of_grpo(lines: &StageLines, stage: &GrpoConfig) -> Vec<Advisory> {
    [
        reward(lines),
        held_out(lines),
        zero_spread(lines, stage),
        entropy(lines),
        logprob_gap(lines, stage),
        kl(lines),
        off_policy_mask(lines, stage),
        clipped(lines, stage),
        finished(lines),
        length(lines),
        routing(lines),
        routing_replay(lines, stage),
        invalid(lines, stage),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// No line for several times as long as a step takes.
pub(super) fn silence(lines: &StageLines, silent_secs: f64) -> Option<Advisory> {
    let secs = lines.values(|step| step.secs.total);
    let recent = &secs[secs.len().saturating_sub(WINDOW)..];
    let longest = recent.iter().copied().fold(0.0, f64::max);
    let usual = median(recent);
    let limit = (STALL_STEPS * usual)
        .max(STALL_LONGEST_STEPS * longest)
        .max(MIN_STALL_SECS);
    (!secs.is_empty() && silent_secs > limit).then(|| {
        lines.warning(
            Figure::Silence,
            format!("no line for {silent_secs:.0} s, where a step takes {usual:.1} s"),
            "Look at the end of log.txt and whether the process computes; after a kill, `baleen resume` continues.",
        )
    })
}

fn reward(lines: &StageLines) -> Option<Advisory> {
    let rewards = lines.values(|step| step.reward_mean);
    let (first, last) = ends(&rewards)?;
    let (before, now) = (mean(first), mean(last));
    let best = rewards[..rewards.len() - last.len()]
        .windows(last.len())
        .max_by(|a, b| mean(a).total_cmp(&mean(b)))?;
    let loss = mean(best) - now;
    if loss > MAX_REWARD_LOSS && loss > STANDARD_ERRORS * standard_error(best, last) {
        return Some(lines.warning(
            Figure::Reward,
            format!("{now:.3} in the newest {} steps, after {:.3} at best", last.len(), mean(best)),
            "Look at kl, entropy and logprob_gap_mean from where it fell; lower the learning rate or raise kl_beta.",
        ));
    }
    let is_flat = (now - before).abs() <= STANDARD_ERRORS * standard_error(first, last);
    (rewards.len() >= FLAT_REWARD_STEPS && is_flat && now < SOLVED_REWARD).then(|| {
        lines.warning(
            Figure::Reward,
            format!("{now:.3}, not above {before:.3} of the start, after {} steps", rewards.len()),
            "Look at zero_spread_groups, whether any group teaches; try another level of the tasks, a larger group_size or \
             learning rate.",
        )
    })
}

fn held_out(lines: &StageLines) -> Option<Advisory> {
    let rates = lines.values(|step| step.pass_rate);
    let training = mean(newest(&rates)?);
    let held_out = *lines.values(|step| step.held_out_pass_rate).last()?;
    let gap = training - held_out;
    let prompts = lines.config.evaluation.prompts.max(1) as f64;
    let error = (held_out * (1.0 - held_out) / prompts).sqrt();
    (gap > MAX_HELD_OUT_GAP && gap > STANDARD_ERRORS * error).then(|| {
        lines.warning(
            Figure::HeldOut,
            format!("{held_out:.3}, where training passes {training:.3}"),
            "Train on more different prompts or fewer steps, or raise kl_beta; compare evaluation.temperature with \
             sampling.temperature.",
        )
    })
}

fn zero_spread(lines: &StageLines, stage: &GrpoConfig) -> Option<Advisory> {
    let groups = stage.prompts_per_step.max(1) as f64;
    let shares = lines.values(|step| Some(step.zero_spread_groups? as f64 / groups));
    let recent = newest(&shares)?;
    let share = mean(recent);
    if share <= MAX_ZERO_SPREAD_SHARE {
        return None;
    }
    let rewards = lines.values(|step| step.reward_mean);
    let advice = match newest(&rewards).map(mean) {
        Some(reward) if reward >= SOLVED_REWARD => "The tasks are solved: raise their level.",
        Some(reward) if reward > 0.5 => {
            "Raise the tasks' level, group_size or the sampling temperature."
        }
        _ => "Lower the tasks' level, train longer in sft first, or raise group_size.",
    };
    let found = format!(
        "{share:.2} of the groups in the newest {} steps",
        recent.len()
    );
    Some(lines.warning(Figure::ZeroSpread, found, advice))
}

fn entropy(lines: &StageLines) -> Option<Advisory> {
    let rewards = lines.values(|step| step.reward_mean);
    if mean(newest(&rewards)?) >= SOLVED_REWARD {
        return None;
    }
    let values = lines.values(|step| step.entropy);
    let recent = newest(&values)?;
    let now = mean(recent);
    let advice = "Lower the learning rate, raise kl_beta or the sampling temperature; a policy that is there already needs an \
                  earlier checkpoint.";
    if let Some((first, last)) = ends(&values)
        && mean(last) < MIN_ENTROPY_LEFT * mean(first)
    {
        let found = format!(
            "fell from {:.3} to {:.3} nats a token",
            mean(first),
            mean(last)
        );
        return Some(lines.warning(Figure::Entropy, found, advice));
    }
    (now < MIN_ENTROPY).then(|| {
        let found = format!("{now:.3} nats a token in the newest {} steps", recent.len());
        lines.warning(Figure::Entropy, found, advice)
    })
}

fn logprob_gap(lines: &StageLines, stage: &GrpoConfig) -> Option<Advisory> {
    // A rollout that is older than its own mini-batches make it differs from the trainer by right.
    let is_fresh = |step: &&StepMetrics| {
        step.policy_age_max
            .is_none_or(|age| age < stage.mini_batches as u64)
    };
    let values = lines.values(|step| Some(step).filter(is_fresh)?.logprob_gap_mean);
    let recent = newest(&values)?;
    let now = median(recent);
    // `auto` may have meant either: the wider range.
    let (limit, arithmetic) = match lines.config.compute {
        Compute::F32 => (MAX_LOGPROB_GAP_F32, "f32"),
        Compute::Bf16 | Compute::Auto => (MAX_LOGPROB_GAP_BF16, "bf16"),
    };
    if now > limit {
        return Some(lines.warning(
            Figure::LogprobGap,
            format!("{now:.1e} nats in the newest {} steps, too much for {arithmetic}", recent.len()),
            "See keep_routing, keep_sampling_mask and routing_agreement_replay; `baleen report` colours the tokens that \
             disagree. If nothing is wrong there, compute in f32.",
        ));
    }
    let (first, last) = ends(&values)?;
    let (before, now) = (median(first), median(last));
    (now > MAX_LOGPROB_GAP_RISE * before && now > LOGPROB_GAP_NOISE * limit).then(|| {
        lines.warning(
            Figure::LogprobGap,
            format!("rose from {before:.1e} to {now:.1e} nats"),
            "The policy grows into a corner where rounding counts: lower the learning rate, or compute in f32.",
        )
    })
}

fn kl(lines: &StageLines) -> Option<Advisory> {
    let values = lines.values(|step| step.kl);
    let split = values.len().checked_sub(KL_STEPS)?;
    // From 0, where the stage began, the first steps multiply it by right.
    let before = newest(&values[..split]).filter(|before| before.len() == WINDOW)?;
    let (before, now) = (median(before), median(&values[split..]));
    (now > MAX_KL_JUMP * before && now > KL_NOISE).then(|| {
        lines.warning(
            Figure::Kl,
            format!("jumped from {before:.1e} to {now:.1e} nats a token within {KL_STEPS} steps"),
            "Lower the learning rate or raise kl_beta; look at grad_norm and reward_mean of the same steps.",
        )
    })
}

fn off_policy_mask(lines: &StageLines, stage: &GrpoConfig) -> Option<Advisory> {
    let delta = stage.off_policy_delta?;
    let shares = lines.values(|step| step.off_policy.masked_advantage_share);
    let recent = newest(&shares)?;
    let share = mean(recent);
    if share > MAX_MASKED_ADVANTAGE_SHARE {
        return Some(lines.warning(
            Figure::OffPolicyMask,
            format!("{share:.2} of the advantage in the newest {} steps", recent.len()),
            "Use fewer mini_batches or a lower learning rate, so that the policy drifts less within a rollout; or raise \
             off_policy_delta.",
        ));
    }
    let is_stale = lines
        .values(|step| step.policy_age)
        .iter()
        .any(|&age| age > 0.0);
    let masked = lines.values(|step| Some(step.masked_sequences? as f64));
    let is_idle = masked.len() >= IDLE_MASK_STEPS && masked.iter().all(|&count| count == 0.0);
    (is_stale && is_idle).then(|| {
        let deltas = lines.values(|step| step.off_policy.delta_masking_5_percent);
        let advice = match newest(&deltas).map(median) {
            Some(delta) => format!("An off_policy_delta of {delta:.1e} would mask 5 % of the sequences with negative advantage."),
            None => "delta_masking_10_percent tells which off_policy_delta would.".to_string(),
        };
        let found = format!("no sequence in {} steps drifted beyond {delta}", masked.len());
        lines.notice(Figure::OffPolicyMask, found, advice)
    })
}

fn clipped(lines: &StageLines, stage: &GrpoConfig) -> Option<Advisory> {
    let shares = lines.values(|step| step.clipped_share);
    let recent = newest(&shares)?;
    let share = mean(recent);
    (share > MAX_CLIPPED_SHARE).then(|| {
        lines.warning(
            Figure::ClippedShare,
            format!("{share:.2} of the tokens in the newest {} steps", recent.len()),
            match stage.mini_batches {
                1 => "At one mini-batch a rollout only a gap between sampler and trainer can clip: see logprob_gap_mean.",
                _ => "Lower the learning rate, use fewer mini_batches, or raise clip_epsilon.",
            },
        )
    })
}

fn finished(lines: &StageLines) -> Option<Advisory> {
    let shares = lines.values(|step| step.finished_share);
    let recent = newest(&shares)?;
    let share = mean(recent);
    (share < MIN_FINISHED_SHARE).then(|| {
        lines.warning(
            Figure::Finished,
            format!("{share:.2} of the completions in the newest {} steps", recent.len()),
            format!(
                "Raise sampling.max_new_tokens ({}), or train longer in sft, where completions end.",
                lines.config.sampling.max_new_tokens
            ),
        )
    })
}

fn length(lines: &StageLines) -> Option<Advisory> {
    let lengths = lines.values(|step| step.completion_tokens_mean);
    let (first, last) = ends(&lengths)?;
    let (before, now) = (mean(first), mean(last));
    let advice = if now > MAX_LENGTH_CHANGE * before {
        "Read some long samples; see whether finished_share falls, and whether length earns reward by itself."
    } else if now * MAX_LENGTH_CHANGE < before {
        "Read some short samples: is the reasoning gone, and does the reward still ask for it?"
    } else {
        return None;
    };
    Some(lines.notice(
        Figure::Length,
        format!("went from {before:.1} to {now:.1} tokens"),
        advice,
    ))
}

fn routing(lines: &StageLines) -> Option<Advisory> {
    let shares = lines.values(|step| step.routing_agreement_free);
    let recent = newest(&shares)?;
    let share = mean(recent);
    (share < MIN_ROUTING_AGREEMENT).then(|| {
        lines.warning(
            Figure::RoutingAgreement,
            format!("{share:.3} of the experts in the newest {} steps", recent.len()),
            "Leave keep_routing on; with several mini_batches or old rollouts lower the learning rate, else look at \
             logprob_gap_mean.",
        )
    })
}

fn routing_replay(lines: &StageLines, stage: &GrpoConfig) -> Option<Advisory> {
    let shares = lines.values(|step| step.routing_agreement_replay);
    let least = newest(&shares)?
        .iter()
        .copied()
        .fold(f64::INFINITY, f64::min);
    (stage.keep_routing && least < MIN_ROUTING_REPLAY).then(|| {
        lines.warning(
            Figure::RoutingReplay,
            format!("{least:.6} of the experts in a recent step"),
            "Replay is broken: results of this run can't be trusted; keep its folder and report it.",
        )
    })
}

fn invalid(lines: &StageLines, stage: &GrpoConfig) -> Option<Advisory> {
    let samples = (stage.prompts_per_step * stage.group_size).max(1) as f64;
    let shares = lines.values(|step| Some(step.invalid_samples? as f64 / samples));
    let recent = newest(&shares)?;
    let share = mean(recent);
    (share > MAX_INVALID_SHARE).then(|| {
        lines.warning(
            Figure::Invalid,
            format!("{:.1} % of the samples in the newest {} steps", share * 100.0, recent.len()),
            "Column invalid_reason of the rollout files says why; the run stops above max_invalid_share.",
        )
    })
}

/// `limit` is the key of the clip and its value.
fn grad_norm(
    lines: &StageLines,
    figure: Figure,
    (key, limit): (&str, f64),
    norms: &[f64],
) -> Option<Advisory> {
    let recent = newest(norms)?;
    let (usual, largest) = (median(norms), recent.iter().copied().fold(0.0, f64::max));
    if largest > MAX_GRAD_SPIKE * usual {
        return Some(lines.warning(
            figure,
            format!("{largest:.2} in one of the newest {} steps, where {usual:.2} is usual", recent.len()),
            "Look at the samples of that step; lower the learning rate or the clip if the loss jumps with it.",
        ));
    }
    (recent.len() == WINDOW && recent.iter().all(|&norm| norm > limit)).then(|| {
        lines.notice(
            figure,
            format!("above {key} ({limit}) in all of the newest {} steps, {usual:.2} as a rule", recent.len()),
            format!("The learning rate means little while every step is clipped; raise optimizer.{key} if training is steady."),
        )
    })
}
