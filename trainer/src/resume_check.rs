//! What may change between a run's start and its resumption.
//!
//! A resumed run continues bit for bit, so whatever shapes its results must stay: model, tasks,
//! seed, threads (the order of sums), finished stages. What only says how often to look or to save
//! (`checkpoints`, `evaluation`), how long to wait (`grading`, `episodes`) or what to do with bad rows may change,
//! and the last stage may get more `steps` while its learning rate is constant, since no earlier
//! step depends on their number.

use std::collections::BTreeMap;

use crate::config::{Decay, LearningRate, RunConfig, StageConfig};
use crate::config_file::{self, ConfigError};
use crate::ron_text;

/// Sections that don't touch the weights.
const FREE_SECTIONS: [&str; 4] = ["checkpoints.", "evaluation.", "grading.", "episodes."];

/// Keys of any section that leave what was done as it is: no row that was drawn before was a bad one, and how long a
/// server may take says nothing about its tasks.
const FREE_KEYS: [&str; 9] = [
    ".dataset.on_bad_row",
    ".connect_secs",
    ".make_secs",
    ".open_secs",
    ".call_secs",
    ".grade_secs",
    ".max_restarts",
    ".screened_tasks",
    ".server.log",
];

/// Keys that the configuration did not have from the start, each with the value that means what was done
/// before: so valued they don't count in a fingerprint, and a run begun before there was the key goes on.
/// Whoever adds a key adds a line.
const LATER_KEYS: [(&str, &str); 12] = [
    (".initializer_range", "0.02"),
    ("model.check_finite", "false"),
    (".kl_scale", "1.0"),
    (".grpo.max_invalid_share", "0.1"),
    (".grpo.asynchronous", "None"),
    ("cache_memory", "auto"),
    ("max_prefill_tokens", "8192"),
    (".outcome", "1.0"),
    (".format_gate", "false"),
    (".length", "0.0"),
    (".length_buffer_tokens", "4096"),
    (".language", "0.0"),
];

/// Checks that a run begun with `saved` can continue with `edited`.
///
/// # Errors
/// [`ConfigError::NotResumable`] with every key that was changed and may not change.
pub fn check_resumable(saved: &RunConfig, edited: &RunConfig) -> Result<(), ConfigError> {
    let extended = extended_steps(saved, edited);
    let (before, after) = (leaves(saved), leaves(edited));
    let absent = "absent".to_string();
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed: Vec<String> = keys
        .into_iter()
        .filter(|key| !is_free(key))
        .filter(|key| extended.as_ref() != Some(key))
        .filter_map(|key| {
            let was = before.get(key).unwrap_or(&absent);
            let is = after.get(key).unwrap_or(&absent);
            (was != is).then(|| format!("{key} was {was} and is now {is}; it may not change"))
        })
        .collect();
    if changed.is_empty() {
        Ok(())
    } else {
        Err(ConfigError::NotResumable { changed })
    }
}

/// A hash that stays the same under every change that [`check_resumable`] allows, and under no
/// other: stored with a checkpoint, it tells whether `config.ron` was edited by hand since.
pub fn fingerprint(config: &RunConfig) -> String {
    let extensible = extended_steps(config, config);
    let mut hasher = blake3::Hasher::new();
    for (key, value) in leaves(config) {
        let is_later = LATER_KEYS
            .iter()
            .any(|(name, before)| key.ends_with(name) && value == *before);
        if !is_free(&key) && !is_later && extensible.as_ref() != Some(&key) {
            hasher.update(format!("{key}={value}\n").as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

fn is_free(key: &str) -> bool {
    FREE_SECTIONS.iter().any(|section| key.starts_with(section))
        || FREE_KEYS.iter().any(|ending| key.ends_with(ending))
}

/// Path of the last stage's `steps`, where raising it leaves the earlier steps as they were.
fn extended_steps(saved: &RunConfig, edited: &RunConfig) -> Option<String> {
    let index = saved.stages.len().checked_sub(1)?;
    let (kind, was, rate) = steps_of(saved.stages.get(index)?);
    let (_, is, _) = steps_of(edited.stages.get(index)?);
    (is >= was && rate.decay == Decay::Constant).then(|| format!("stages[{index}].{kind}.steps"))
}

fn steps_of(stage: &StageConfig) -> (&'static str, usize, &LearningRate) {
    match stage {
        StageConfig::IndexerWarmup(text) => ("indexer_warmup", text.steps, &text.learning_rate),
        StageConfig::SparseTraining(text) => ("sparse_training", text.steps, &text.learning_rate),
        StageConfig::Sft(text) => ("sft", text.steps, &text.learning_rate),
        StageConfig::Grpo(grpo) => ("grpo", grpo.steps, &grpo.learning_rate),
    }
}

/// Every innermost value of the written-out configuration by its path.
pub(crate) fn leaves(config: &RunConfig) -> BTreeMap<String, String> {
    let text = config_file::to_ron(config);
    let entries = ron_text::entries(&text);
    let mut leaves = BTreeMap::new();
    for (i, entry) in entries.iter().enumerate() {
        let holds_next = entries
            .get(i + 1)
            .is_some_and(|next| next.value.start < entry.value.end);
        if !holds_next {
            leaves.insert(entry.path.clone(), text[entry.value.clone()].to_string());
        }
    }
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> RunConfig {
        let text = r#"(
            name: "a",
            model: (source: Path("model")),
            environments: [(family: sums)],
            stages: [
                sft(steps: 1, learning_rate: (peak: 1e-3)),
                grpo(steps: 5, prompts_per_step: 4, group_size: 8, learning_rate: (peak: 1e-5)),
            ],
        )"#;
        config_file::parse(text, "test").expect("sound")
    }

    fn refused(overrides: &[&str]) -> Vec<String> {
        let mut edited = saved();
        for argument in overrides {
            edited = config_file::with_override(&edited, argument)
                .unwrap_or_else(|error| panic!("{error}"));
        }
        match check_resumable(&saved(), &edited) {
            Ok(()) => Vec::new(),
            Err(ConfigError::NotResumable { changed }) => changed,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn looking_saving_and_going_on_longer_are_allowed() {
        let free = [
            "checkpoints.every=3",
            "checkpoints.keep=9",
            "grading.timeout_secs=60",
            "evaluation.prompts=8",
            "stages[1].grpo.steps=50",
        ];
        assert_eq!(refused(&free), Vec::<String>::new());
    }

    /// A key added since must leave this fingerprint alone, or runs of older builds no longer resume.
    #[test]
    fn keys_added_later_leave_the_fingerprint_of_older_runs() {
        let with = |argument: &str| {
            let edited = config_file::with_override(&saved(), argument);
            fingerprint(&edited.unwrap_or_else(|error| panic!("{error}")))
        };
        let first = "03343d53f97163948beb6c843637ee998fa723815118995ec9b6db014f4bd568";
        assert_eq!(fingerprint(&saved()), first);
        for argument in [
            "model.check_finite=true",
            "cache_memory=bytes(1000000)",
            "max_prefill_tokens=100",
            "environments[0].kl_scale=2",
            "stages[1].grpo.max_invalid_share=0.2",
            "rewards.math.length=0.1",
        ] {
            assert_ne!(with(argument), first, "{argument}");
        }
        assert_eq!(with("environments[0].kl_scale=1"), first);
    }

    #[test]
    fn bad_rows_may_be_skipped_from_now_on() {
        let set = |config: &RunConfig, argument: &str| {
            config_file::with_override(config, argument).unwrap_or_else(|error| panic!("{error}"))
        };
        let dataset = "environments=[(dataset: (path: \"a.jsonl\", grader: exact))]";
        let begun = set(&saved(), dataset);
        let skipping = set(&begun, "environments[0].dataset.on_bad_row=skip");
        assert!(check_resumable(&begun, &skipping).is_ok());
        assert_eq!(fingerprint(&begun), fingerprint(&skipping));
        let other = set(&begun, "environments[0].dataset.path=b.jsonl");
        assert!(check_resumable(&begun, &other).is_err());
    }

    #[test]
    fn a_server_may_be_given_more_time_but_not_other_tasks() {
        let set = |config: &RunConfig, argument: &str| {
            config_file::with_override(config, argument).unwrap_or_else(|error| panic!("{error}"))
        };
        let server = "environments=[(family: sums), (server: (name: \"a\", command: [\"b\"]))]";
        let begun = set(&saved(), server);
        let patient = set(&begun, "environments[1].server.deadlines.call_secs=300.0");
        assert!(check_resumable(&begun, &patient).is_ok());
        assert_eq!(fingerprint(&begun), fingerprint(&patient));
        let harder = set(&begun, "environments[1].level=2");
        assert!(check_resumable(&begun, &harder).is_err());
    }

    #[test]
    fn every_other_change_is_listed() {
        assert_eq!(
            refused(&["seed=1", "threads=2", "model.source.Path=other"]),
            [
                "model.source.Path was \"model\" and is now \"other\"; it may not change",
                "seed was 0 and is now 1; it may not change",
                "threads was 0 and is now 2; it may not change",
            ]
        );
    }

    #[test]
    fn steps_of_other_stages_and_fewer_steps_may_not_change() {
        assert_eq!(refused(&["stages[0].sft.steps=2"]).len(), 1);
        assert_eq!(refused(&["stages[1].grpo.steps=4"]).len(), 1);
    }

    #[test]
    fn steps_under_a_cosine_may_not_change() {
        let cosine = "stages[1].grpo.learning_rate.decay=cosine(floor: 0.1)";
        let mut begun = saved();
        begun = config_file::with_override(&begun, cosine).expect("sound");
        let longer = config_file::with_override(&begun, "stages[1].grpo.steps=9").expect("sound");
        assert!(check_resumable(&begun, &longer).is_err());
    }

    #[test]
    fn fingerprint_changes_with_what_may_not_change() {
        let of = |argument: &str| {
            fingerprint(&config_file::with_override(&saved(), argument).expect("sound"))
        };
        let before = fingerprint(&saved());
        assert_eq!(of("checkpoints.every=3"), before);
        assert_eq!(of("stages[1].grpo.steps=50"), before);
        assert_ne!(of("stages[0].sft.steps=2"), before);
        assert_ne!(of("seed=1"), before);
    }

    #[test]
    fn a_dropped_stage_is_listed_by_its_keys() {
        let mut edited = saved();
        edited.stages.pop();
        let error = check_resumable(&saved(), &edited).expect_err("must be refused");
        let text = error.to_string();
        assert!(
            text.contains("stages[1].grpo.group_size was 8 and is now absent"),
            "{text}"
        );
    }
}
