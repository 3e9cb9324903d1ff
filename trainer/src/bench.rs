//! How fast a model computes here, and how fast it could at most.
//!
//! First the machine's ceilings are measured ([`ceilings`]), then what a run spends its time on
//! ([`workloads`], [`grpo`]). Each row tells the operations and bytes that the work needs at least ([`work`]),
//! the time those take at the ceilings, and the share of that limit which was reached. How time and
//! memory grow with the length of a document is a table of its own ([`context`]), so are single operations
//! ([`operations`]) and sparse
//! attention at DeepSeek-V3.2's widths ([`sparse`]).

pub mod ceilings;
mod context;
pub mod grpo;
mod operations;
pub mod shapes;
mod sparse;
pub mod timing;
mod ways;
pub mod work;
pub mod workloads;

use kernels::gpu_memory;
use kernels::tch::{Device, Kind};

use self::ceilings::{Ceilings, copy_rate, product_rate, products, read_rate};
use self::grpo::{GrpoWork, RolloutSecs, grpo_work};
use self::work::Work;
use self::workloads::{NEW_TOKENS, PREFILL_TOKENS, Subject, TRAIN_DOCUMENTS};
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
    /// Sampling alone of a GRPO step (--prompts, --group, --prompt-tokens, --new-tokens)
    Rollout,
    /// A whole GRPO step: sampling, and learning from what was sampled
    #[value(alias = "grpo")]
    Step,
    /// Matrix products in f32 and bf16
    Products,
    /// Single operations at the model's shapes, our kernels beside libtorch's
    Kernels,
    /// Training on one document of 1K, 4K and 16K tokens (to 64K on a GPU), sparse and dense: time and memory
    Context,
    /// Attention alone at DeepSeek-V3.2's widths, sparse and dense, 4K to 64K tokens, on a GPU
    Sparse,
    /// The ways to attend to selected keys, 1K to 16K tokens, on a GPU
    SparseWays,
}

/// What is measured unless asked otherwise.
pub const USUAL_PARTS: [Part; 5] = [
    Part::Prefill,
    Part::Decode,
    Part::Train,
    Part::Step,
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
        for &size in products(device) {
            let rate = product_rate(size, kind, device, timing);
            if kind == own_kind {
                flops_per_sec = flops_per_sec.max(rate);
            }
            let [rows, inner, columns] = size;
            let name = format!("product {rows}x{inner}x{columns} {}", kind_name(kind));
            print(&format!("{name:<32}{:>10.3} TFLOP/s", rate / 1e12))?;
        }
    }
    let mut bytes_per_sec = 0.0_f64;
    for (name, rate) in [
        ("memory read", read_rate(device, timing)),
        ("memory copy, read + written", copy_rate(device, timing)),
    ] {
        bytes_per_sec = bytes_per_sec.max(rate);
        print(&format!("{name:<32}{:>10.2} GB/s", rate / 1e9))?;
    }
    let ceilings = Ceilings {
        flops_per_sec,
        bytes_per_sec,
    };

    let without_rows = [
        Part::Products,
        Part::Context,
        Part::Kernels,
        Part::Sparse,
        Part::SparseWays,
    ];
    if parts.iter().any(|part| !without_rows.contains(part)) {
        print(&format!("\n{}", header()))?;
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
    if parts.contains(&Part::Rollout) {
        gpu_memory::reset_peak(device).map_err(TrainerError::from)?;
        let secs = subject.rollout()?;
        rollout_rows("rollout", subject, secs, grpo_work(subject), ceilings)
            .iter()
            .try_for_each(|row| print(row))?;
        print_gpu_memory(device, &mut print)?;
    }
    if parts.contains(&Part::Step) {
        gpu_memory::reset_peak(device).map_err(TrainerError::from)?;
        step_rows(subject, ceilings)?
            .iter()
            .try_for_each(|row| print(row))?;
        print_gpu_memory(device, &mut print)?;
    }
    if parts.contains(&Part::Kernels) {
        operations::run(subject, ceilings, &mut print)?;
    }
    if parts.contains(&Part::Context) {
        context::run(subject, &mut print)?;
    }
    if parts.contains(&Part::Sparse) {
        sparse::run(device, timing, &mut print)?;
    }
    if parts.contains(&Part::SparseWays) {
        ways::run(device, timing, &mut print)?;
    }
    let peak = kernels::runtime::peak_memory_bytes() as f64 / 1e9;
    print(&format!("\n{:<32}{peak:>10.2} GB", "peak memory"))
}

/// A whole step, its phases, and how far sampler and learner agree.
fn step_rows(subject: &Subject, ceilings: Ceilings) -> Result<Vec<String>, TrainerError> {
    let (shape, work) = (subject.shape, grpo_work(subject));
    let step = subject.step()?;
    let total = step.rollout.total() + step.learning_secs;
    let sampling = work.prefill + work.decode;
    let limit = ceilings.secs(sampling) + ceilings.secs(work.learning);
    let name = format!("step, {}x{} samples", shape.prompts, shape.group);
    let mut rows = vec![columns(&name, None, total, sampling + work.learning, limit)];
    rows.extend(rollout_rows(
        "  rollout",
        subject,
        step.rollout,
        work,
        ceilings,
    ));
    let learning = step.learning_secs;
    let forwarded = step.forwarded_tokens;
    rows.push(line(
        "  learning",
        forwarded,
        learning,
        work.learning,
        ceilings,
    ));
    let whole = shape.sequence_tokens() as f64 / learning;
    rows.push(format!("{:<27}{whole:>10.1}", "    prompt + completion"));
    let [mean, largest] = step.logprob_gap;
    let gap = "  |log-prob sampler - learner|";
    rows.push(format!("{gap:<32}mean {mean:.2e}, largest {largest:.2e}"));
    Ok(rows)
}

/// A rollout in completion tokens a second, and its parts: prompt tokens, tokens of decode steps.
fn rollout_rows(
    name: &str,
    subject: &Subject,
    secs: RolloutSecs,
    work: GrpoWork,
    ceilings: Ceilings,
) -> [String; 3] {
    let shape = subject.shape;
    let row = |name: &str, tokens, secs, work| line(name, tokens, secs, work, ceilings);
    let decoded = shape.samples() * (shape.new_tokens - 1);
    let indent = " ".repeat(name.len() - name.trim_start().len() + 2);
    [
        row(
            name,
            shape.completion_tokens(),
            secs.total(),
            work.prefill + work.decode,
        ),
        row(
            &format!("{indent}prefill"),
            shape.prompts * shape.prompt_tokens,
            secs.prefill,
            work.prefill,
        ),
        row(
            &format!("{indent}decode"),
            decoded,
            secs.decode,
            work.decode,
        ),
    ]
}

/// Most memory of a GPU since its peak was reset; nothing for a CPU.
fn print_gpu_memory<E: From<TrainerError>>(
    device: Device,
    print: &mut impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let peak = gpu_memory::peak(device).map_err(TrainerError::from)?;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    peak.map_or(Ok(()), |peak| {
        print(&format!(
            "{:<32}in use {:.2}, reserved {:.2} GiB",
            "  peak GPU memory",
            gib(peak.allocated_bytes),
            gib(peak.reserved_bytes)
        ))
    })
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
