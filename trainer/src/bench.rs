//! How fast a model computes here, and how fast it could at most.
//!
//! First the machine's ceilings are measured ([`ceilings`]), then what a run spends its time on
//! ([`workloads`]). Each row tells the operations and bytes that the work needs at least ([`work`]),
//! the time those take at the ceilings, and the share of that limit which was reached. How time and
//! memory grow with the length of a document is a table of its own ([`context`]).

pub mod ceilings;
mod context;
pub mod shapes;
pub mod timing;
pub mod work;
pub mod workloads;

use kernels::tch::Kind;

use self::ceilings::{Ceilings, PRODUCTS, product_rate, read_rate};
use self::work::Work;
use self::workloads::{GRPO_SHAPE, NEW_TOKENS, PREFILL_TOKENS, Subject, TRAIN_DOCUMENTS};
use crate::error::TrainerError;

/// Sequences decoded at once.
const DECODE_BATCHES: [usize; 3] = [1, 16, 64];

/// A group of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// One prompt of 512 tokens
    Prefill,
    /// 24 tokens for 1, 16 and 64 sequences, drawn with their log-probs
    Decode,
    /// Forward, backward and AdamW on 1024 packed tokens
    Train,
    /// 8 prompts x 8 samples of 24 tokens, and learning from them
    Grpo,
    /// Matrix products in f32 and bf16
    Products,
    /// Training on one document of 1K, 4K and 16K tokens, sparse and dense: time and memory
    Context,
}

/// What is measured unless asked otherwise.
pub const USUAL_PARTS: [Part; 5] = [
    Part::Prefill,
    Part::Decode,
    Part::Train,
    Part::Grpo,
    Part::Products,
];

/// Measures `parts` and hands every line of the table to `print` as soon as it is known. The
/// ceilings in the model's own type are always measured: every limit rests on them.
///
/// # Errors
/// Whatever keeps a step from being made, and errors of `print`.
pub fn run<E: From<TrainerError>>(
    subject: &Subject,
    parts: &[Part],
    mut print: impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let (device, timing) = (subject.policy.device(), subject.timing);
    let own_kind = subject.policy.kind();
    let mut flops_per_sec = 0.0_f64;
    for kind in [Kind::Float, Kind::BFloat16] {
        if kind != own_kind && !parts.contains(&Part::Products) {
            continue;
        }
        for size in PRODUCTS {
            let rate = product_rate(size, kind, device, timing);
            if kind == own_kind {
                flops_per_sec = flops_per_sec.max(rate);
            }
            let [rows, inner, columns] = size;
            let name = format!("product {rows}x{inner}x{columns} {}", kind_name(kind));
            print(&format!("{name:<32}{:>10.3} TFLOP/s", rate / 1e12))?;
        }
    }
    let bytes_per_sec = read_rate(device, timing);
    print(&format!(
        "{:<32}{:>10.2} GB/s\n",
        "memory read",
        bytes_per_sec / 1e9
    ))?;
    let ceilings = Ceilings {
        flops_per_sec,
        bytes_per_sec,
    };

    let work_parts = [Part::Prefill, Part::Decode, Part::Train, Part::Grpo];
    if work_parts.iter().any(|part| parts.contains(part)) {
        print(&header())?;
    }
    let mut row = |name: &str, tokens: usize, secs: f64, work: Work| {
        print(&line(name, tokens, secs, work, ceilings))
    };
    if parts.contains(&Part::Prefill) {
        let name = format!("prefill, {PREFILL_TOKENS} tokens");
        let work = workloads::prefill_work(subject);
        row(&name, PREFILL_TOKENS, subject.prefill(), work)?;
    }
    if parts.contains(&Part::Decode) {
        for batch in DECODE_BATCHES {
            let name = format!("decode, batch {batch}");
            let work = workloads::decode_work(subject, batch);
            row(&name, batch * NEW_TOKENS, subject.decode(batch), work)?;
        }
    }
    if parts.contains(&Part::Train) {
        let tokens = TRAIN_DOCUMENTS.iter().product();
        let name = format!("train, {tokens} tokens");
        let work = workloads::train_work(subject);
        row(&name, tokens, subject.train()?, work)?;
    }
    if parts.contains(&Part::Grpo) {
        let [rollout_secs, learning_secs] = subject.grpo()?;
        let [rollout, learning] = workloads::grpo_work(subject);
        let [prompts, group, _] = GRPO_SHAPE;
        let tokens = prompts * group * NEW_TOKENS;
        let name = format!("GRPO step, {prompts}x{group} samples");
        let secs = rollout_secs + learning_secs;
        let limit = ceilings.secs(rollout) + ceilings.secs(learning);
        print(&columns(&name, None, secs, rollout + learning, limit))?;
        print(&line("  rollout", tokens, rollout_secs, rollout, ceilings))?;
        print(&line(
            "  learning",
            tokens,
            learning_secs,
            learning,
            ceilings,
        ))?;
    }
    if parts.contains(&Part::Context) {
        context::run(subject, &mut print)?;
    }
    let peak = kernels::runtime::peak_memory_bytes() as f64 / 1e9;
    print(&format!("\n{:<32}{peak:>10.2} GB", "peak memory"))
}

/// The name of a compute type.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        _ => "f32",
    }
}

fn header() -> String {
    format!(
        "{:<27}{:>10}{:>11}{:>13}{:>10}{:>11}{:>10}",
        "", "tokens/s", "seconds", "needs GFLOP", "needs GB", "limit, s", "reached"
    )
}

/// One row: the limit is what the whole work takes at the ceilings.
fn line(name: &str, tokens: usize, secs: f64, work: Work, ceilings: Ceilings) -> String {
    columns(name, Some(tokens), secs, work, ceilings.secs(work))
}

fn columns(name: &str, tokens: Option<usize>, secs: f64, work: Work, limit: f64) -> String {
    let speed = tokens.map_or(String::new(), |n| format!("{:.1}", n as f64 / secs));
    let (gflop, gb) = (work.flops / 1e9, work.bytes / 1e9);
    let reached = format!("{:.0} %", 100.0 * limit / secs);
    format!("{name:<27}{speed:>10}{secs:>11.3}{gflop:>13.1}{gb:>10.2}{limit:>11.3}{reached:>10}")
}

#[cfg(test)]
mod tests;
