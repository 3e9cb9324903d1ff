//! Round trips, replacement, and errors of the rollout file.

use std::fs::{self, File};

use environments::{Family, FamilyKey, RowKey, Split, Stop};
use parquet::arrow::ArrowWriter;

use super::*;
use crate::sample::{EpisodeRecord, FinishReason};

fn sample(index: usize, tokens: &[u32], verdict: Verdict) -> Sample {
    let mut kept = KeptTokens::default();
    for (i, &token) in tokens.iter().enumerate() {
        let row = if i % 2 == 0 {
            vec![token, token + 9]
        } else {
            vec![]
        };
        kept.push(&row);
    }
    Sample {
        given: Vec::new(),
        later: Vec::new(),
        paid: None,
        episode: None,
        index,
        tokens: tokens.to_vec(),
        sampler_logprobs: tokens.iter().map(|&t| -1.0 / t as f32).collect(),
        kept,
        routing: RoutingTrace {
            num_layers: 2,
            top_k: 3,
            ids: (0..6 * (tokens.len() as u16 + 1))
                .map(|i| i.wrapping_mul(7919))
                .collect(),
        },
        selection: SelectionTrace::default(),
        policy_versions: (0..tokens.len() as u64).map(|t| 12 + t / 2).collect(),
        finish_reason: if index == 0 {
            FinishReason::Stop
        } else {
            FinishReason::Length
        },
        text: format!("answer {index}: \"7\"\n"),
        verdict,
    }
}

/// A segment that draws `tokens` behind a context of its own.
fn later(tokens: &[u32]) -> Segment {
    let sample = sample(0, tokens, Verdict::graded(0.0, None));
    Segment {
        prompt_tokens: vec![tokens[0], 9],
        completion: GeneratedSample {
            tokens: sample.tokens,
            sampler_logprobs: sample.sampler_logprobs,
            kept: sample.kept,
            routing: sample.routing,
            selection: sample.selection,
            policy_versions: sample.policy_versions,
            finish_reason: sample.finish_reason,
            given: std::iter::once(0..1).collect(),
        },
    }
}

fn groups() -> Vec<Group> {
    let prompt = |id: u64, family, split| Prompt {
        id,
        task: FamilyKey {
            family,
            split,
            level: 2,
            seed: u64::MAX - id,
        }
        .into(),
        question: "What is 3 + 4?".to_string(),
        tokens: vec![5, 6, 7],
    };
    let graded =
        |reward, extracted: Option<&str>| Verdict::graded(reward, extracted.map(str::to_string));
    let invalid = Verdict::invalid(
        environments::FaultKind::Timeout,
        "grader stopped".to_string(),
    );
    let mut dense = sample(1, &[9], graded(0.25, Some("7")));
    dense.routing = RoutingTrace::default();
    let mut talk = sample(0, &[3, 4, 2], graded(1.0, Some("7")));
    talk.given = vec![0..1, 2..3];
    talk.episode = Some(EpisodeRecord {
        num_turns: 3,
        num_calls: 2,
        num_bad_calls: 1,
        stop: Some(Stop::Answered),
    });
    let clauses = [("polite".to_string(), true), ("short".to_string(), false)];
    talk.verdict = Verdict::of_clauses(Some("7".to_string()), clauses);
    talk.later = [[1, 2], [3, 4]].map(|tokens| later(&tokens)).to_vec();
    vec![
        Group {
            prompt: prompt(1, Family::Sums, Split::Train),
            samples: vec![
                talk,
                sample(1, &[8; 40], graded(0.0, None)),
                sample(2, &[1], invalid),
            ],
        },
        Group {
            prompt: prompt(2, Family::Countdown, Split::HeldOut),
            samples: vec![sample(0, &[1, 2], graded(0.0, Some(""))), dense],
        },
    ]
}

#[test]
fn read_gives_back_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step.parquet");
    // Enough groups for several read batches, which cut groups in two.
    let mut written = Vec::new();
    for id in 0..8 {
        let mut groups = groups();
        groups[0].prompt.id = 2 * id;
        groups[1].prompt.id = 2 * id + 1;
        written.extend(groups);
    }
    let advantages: Vec<f64> = (0..40).map(|i| f64::from(i) / 3.0 - 5.0).collect();
    write(&path, 17, &written, &advantages).unwrap();
    let found = read(&path).unwrap();
    assert_eq!((found.step, found.groups.len()), (17, 16));
    assert_eq!(found.groups, written);
    assert_eq!(found.advantages, advantages);
}

#[test]
fn answers_are_the_text_of_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step.parquet");
    let advantages = [0.5, -0.5, 0.0, 1.0, -1.0];
    write(&path, 3, &groups(), &advantages).unwrap();
    let found = read_answers(&path).unwrap();
    let expected: Vec<Answer> = groups()
        .iter()
        .flat_map(|group| group.samples.iter().map(move |sample| (group, sample)))
        .zip(advantages)
        .map(|((group, sample), advantage)| Answer {
            prompt_id: group.prompt.id,
            question: group.prompt.question.clone(),
            index: sample.index,
            completion: sample.text.clone(),
            verdict: sample.verdict.clone(),
            advantage,
            finish_reason: sample.finish_reason,
        })
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn a_row_of_a_dataset_is_named_by_dataset_and_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step.parquet");
    let mut written = groups();
    written[1].prompt.task = RowKey {
        dataset: "sums: my own".to_string(),
        split: Split::HeldOut,
        row: 7,
    }
    .into();
    write(&path, 1, &written, &[0.0; 5]).unwrap();
    assert_eq!(read(&path).unwrap().groups, written);
    let columns = TaskColumns::of(&written[1].prompt.task);
    assert_eq!(columns.family, "dataset:sums: my own");
    assert_eq!((columns.level, columns.task_seed), (0, 7));
    let unknown = TaskColumns {
        family: "sum".to_string(),
        ..columns
    };
    assert!(
        unknown
            .key()
            .unwrap_err()
            .contains("no task family is called \"sum\"")
    );
}

#[test]
fn writing_again_replaces_the_file_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step.parquet");
    write(&path, 1, &groups(), &[0.0; 5]).unwrap();
    write(&path, 2, &groups()[1..], &[0.5; 2]).unwrap();
    let found = read(&path).unwrap();
    assert_eq!((found.step, found.groups), (2, groups()[1..].to_vec()));
    let files: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(files, ["step.parquet"]);
}

#[test]
fn any_flipped_bit_of_the_data_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step.parquet");
    let groups = groups();
    let advantages = vec![0.5; groups.iter().map(|group| group.samples.len()).sum()];
    write(&path, 7, &groups, &advantages).unwrap();
    assert!(crate::table::verify(&path).unwrap());
    let sound = fs::read(&path).unwrap();
    let footer = u32::from_le_bytes(*sound[..sound.len() - 4].last_chunk().unwrap()) as usize;
    let data = sound.len() - 8 - footer;
    for at in 0..data {
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, &bytes).unwrap();
        assert!(crate::table::verify(&path).is_err(), "byte {at} of {data}");
    }
}

#[test]
fn errors_name_the_file_and_the_column() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.parquet");
    let error = read(&missing).unwrap_err();
    assert!(matches!(&error, RolloutError::Io { path, .. } if *path == missing));

    let text = folder.path().join("text.parquet");
    fs::write(&text, "not parquet at all").unwrap();
    let error = read(&text).unwrap_err();
    assert!(matches!(&error, RolloutError::Parquet { path, .. } if *path == text));

    let other = folder.path().join("other.parquet");
    let column: ArrayRef = Arc::new(UInt64Array::from_iter_values([1]));
    let batch = RecordBatch::try_from_iter([("step", column)]).unwrap();
    let file = File::create(&other).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let message = read(&other).unwrap_err().to_string();
    assert!(message.contains("other.parquet"), "{message}");
    assert!(message.contains("column 'advantage'"), "{message}");

    let below_a_file = text.join("step.parquet");
    let error = write(&below_a_file, 1, &groups(), &[0.0; 5]).unwrap_err();
    assert!(
        error.to_string().contains("text.parquet/step.parquet"),
        "{error}"
    );
}
