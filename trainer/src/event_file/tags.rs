//! Where TensorBoard shows a figure: `GROUP/NAME`, one group a question that one would ask of a run.

use crate::figures::Figure;

/// Tags by key of `metrics.jsonl`. The times, the speeds and what is counted by age have rules instead.
const TAGS: [(&str, &str); 48] = [
    ("reward_mean", "reward/mean"),
    ("reward_std", "reward/std"),
    ("pass_rate", "reward/pass_rate"),
    ("held_out_pass_rate", "reward/held_out_pass_rate"),
    ("invalid_samples", "reward/invalid_samples"),
    ("zero_spread_groups", "reward/zero_spread_groups"),
    ("loss", "training/loss"),
    ("grad_norm", "training/grad_norm"),
    ("learning_rate", "training/learning_rate"),
    ("kl", "kl/unbiased"),
    ("extreme_kl_tokens", "kl/extreme_tokens"),
    ("entropy", "policy/entropy"),
    ("ratio_mean", "policy/ratio_mean"),
    ("ratio_max", "policy/ratio_max"),
    ("clipped_share", "policy/clipped_share"),
    ("policy_age", "policy/age"),
    ("policy_age_max", "policy/age_max"),
    ("spanning_samples", "policy/spanning_samples"),
    ("policy_version", "policy/version"),
    ("masked_sequences", "mask/sequences"),
    ("masked_tokens", "mask/tokens"),
    ("masked_advantage_share", "mask/advantage_share"),
    ("delta_masking_1_percent", "mask/delta_masking_1_percent"),
    ("delta_masking_5_percent", "mask/delta_masking_5_percent"),
    ("delta_masking_10_percent", "mask/delta_masking_10_percent"),
    ("logprob_gap_mean", "gap/logprob_mean"),
    ("logprob_gap_max", "gap/logprob_max"),
    ("routing_agreement_free", "replay/routing_agreement_free"),
    (
        "routing_agreement_replay",
        "replay/routing_agreement_replay",
    ),
    ("routing_bytes_per_token", "replay/routing_bytes_per_token"),
    ("kept_bytes_per_token", "replay/kept_bytes_per_token"),
    ("kept_tokens_mean", "replay/kept_tokens_mean"),
    ("prompt_tokens_mean", "tokens/prompt_mean"),
    ("completion_tokens_mean", "tokens/completion_mean"),
    ("finished_share", "tokens/finished_share"),
    ("indexer_kl", "indexer/kl"),
    ("indexer_grad_norm", "indexer/grad_norm"),
    ("keys_selected_share", "indexer/keys_selected_share"),
    ("stage_index", "progress/stage_index"),
    ("step", "progress/step_in_stage"),
    ("global_step", "progress/global_step"),
    ("peak_memory_bytes", "memory/peak_bytes"),
    ("preemptions", "memory/preemptions"),
    ("turns_mean", "episodes/turns_mean"),
    ("tool_calls_mean", "episodes/tool_calls_mean"),
    ("bad_tool_calls_share", "episodes/bad_tool_calls_share"),
    ("malformed_share", "episodes/malformed_share"),
    ("limited_share", "episodes/limited_share"),
];

/// The tag of `figure`; a figure without a place of its own is found under `other/`.
pub(super) fn tag(figure: &Figure) -> String {
    let name = figure.name.as_str();
    if let Some((_, tag)) = TAGS.iter().find(|(key, _)| *key == name) {
        return tag.to_string();
    }
    if let Some(part) = name.strip_prefix("secs_") {
        return format!("secs/{part}");
    }
    if name.ends_with("_per_sec") {
        return format!("speed/{name}");
    }
    let label = figure.label.as_ref().map(|(_, value)| value);
    if let (Some(part), Some(age)) = (name.strip_prefix("masked_by_age_"), label) {
        return format!("mask_by_age/{part}_at_{age}");
    }
    if let (Some(part), Some(environment)) = (name.strip_prefix("by_environment_"), label) {
        return format!("environment/{environment}/{part}");
    }
    if let ("reward_parts_mean", Some(part)) = (name, label) {
        return format!("reward/{part}_part");
    }
    format!("other/{name}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn of(name: &str, label: Option<(&'static str, &str)>) -> String {
        tag(&Figure {
            name: name.to_string(),
            label: label.map(|(name, value)| (name, value.to_string())),
            value: 1.0,
        })
    }

    #[test]
    fn every_figure_has_one_place() {
        assert_eq!(of("reward_mean", None), "reward/mean");
        assert_eq!(of("secs_rollout", None), "secs/rollout");
        assert_eq!(
            of("train_tokens_per_sec", None),
            "speed/train_tokens_per_sec"
        );
        assert_eq!(
            of("masked_by_age_masked_tokens", Some(("age", "2"))),
            "mask_by_age/masked_tokens_at_2"
        );
        assert_eq!(
            of(
                "by_environment_reward_mean",
                Some(("environment", "sums 1"))
            ),
            "environment/sums 1/reward_mean"
        );
        assert_eq!(of("another", None), "other/another");
        let tags: BTreeSet<&str> = TAGS.iter().map(|(_, tag)| *tag).collect();
        assert_eq!(tags.len(), TAGS.len(), "two figures share a tag");
    }
}
