//! What people read of a rollout file, without the token ids and experts that make it large.

use std::path::Path;

use arrow::datatypes::{Float64Type, UInt64Type};
use environments::Verdict;

use crate::error::RolloutError;
use crate::sample::FinishReason;
use crate::table;

/// The columns of an [`Answer`].
const COLUMNS: [&str; 11] = [
    "prompt_id",
    "question",
    "sample_index",
    "completion",
    "reward",
    "extracted",
    "invalid_reason",
    "advantage",
    "finish_reason",
    "segment",
    "verdict_details",
];

/// One sample, as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Prompt that it answers.
    pub prompt_id: u64,
    /// The prompt's question.
    pub question: String,
    /// Index within the group.
    pub index: usize,
    /// Decoded completion.
    pub completion: String,
    /// The grader's word.
    pub verdict: Verdict,
    /// Advantage; no number for an invalid sample.
    pub advantage: f64,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The answers of the file at `path`, in row order: group after group.
///
/// # Errors
/// As [`read`](super::read).
pub fn read_answers(path: &Path) -> Result<Vec<Answer>, RolloutError> {
    let mut answers = Vec::new();
    table::read_columns(path, &COLUMNS, |rows, row| {
        if rows.segment(row)? > 0 {
            return Ok(());
        }
        answers.push(Answer {
            prompt_id: rows.number::<UInt64Type>("prompt_id", row)?,
            question: rows.required_text("question", row)?,
            index: rows.number::<UInt64Type>("sample_index", row)? as usize,
            completion: rows.required_text("completion", row)?,
            verdict: rows.verdict(row)?,
            advantage: rows.number::<Float64Type>("advantage", row)?,
            finish_reason: rows.variant("finish_reason", row)?,
        });
        Ok(())
    })?;
    Ok(answers)
}
