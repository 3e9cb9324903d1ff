//! How time and memory of a training step grow with the length of its one document.
//!
//! Sparse attention over k keys takes O(L k) where dense takes O(L^2); the indexer's scores are O(L^2)
//! either way, over fewer and narrower heads.

use kernels::gpu_memory;
use kernels::runtime::{memory_bytes, peak_memory_bytes, reset_peak_memory};
use kernels::tch::Device;
use model::Attention;

use super::workloads::Subject;
use crate::error::TrainerError;
use crate::learner::TextObjective;

/// Tokens of the document, on a CPU and on a GPU.
const LENGTHS: [usize; 3] = [1024, 4096, 16_384];
const GPU_LENGTHS: [usize; 5] = [4096, 8192, 16_384, 32_768, 65_536];

/// The steps that a run makes of text, by what they train on.
const STEPS: [(&str, TextObjective); 4] = [
    ("sparse", objective(Attention::Sparse, true, false)),
    (
        "sparse, indexer loss too",
        objective(Attention::Sparse, true, true),
    ),
    ("dense", objective(Attention::Dense, true, false)),
    (
        "dense, indexer loss only",
        objective(Attention::Dense, false, true),
    ),
];

const fn objective(attention: Attention, language_loss: bool, indexer_loss: bool) -> TextObjective {
    TextObjective {
        attention,
        language_loss,
        indexer_loss,
    }
}

/// Measures each kind of step at each length and prints a row for it. Memory is the most that the
/// process held during the step beyond what it held before the first one.
///
/// # Errors
/// Gradients that are not finite, and errors of `print`.
pub(super) fn run<E: From<TrainerError>>(
    subject: &Subject,
    print: &mut impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let has_indexer = subject.policy.config().dsa.is_some();
    let device = subject.policy.device();
    let most = subject.policy.config().max_position_embeddings;
    let lengths = match device.is_cuda() {
        true => &GPU_LENGTHS[..],
        false => &LENGTHS,
    };
    let counter = MemoryCounter::new(device)?;
    print(&header())?;
    for &len in lengths.iter().filter(|&&len| len <= most) {
        for (name, objective) in STEPS {
            if !has_indexer && (objective.attention == Attention::Sparse || objective.indexer_loss)
            {
                continue;
            }
            let counts = counter.reset()?;
            let secs = subject.train_document(len, objective)?;
            let memory = counts.then(|| counter.peak_bytes()).transpose()?;
            print(&row(len, name, secs, memory))?;
        }
    }
    Ok(())
}

/// The most memory beyond what was held before the first step: of the process, or of the GPU.
struct MemoryCounter {
    device: Device,
    held: u64,
}

impl MemoryCounter {
    fn new(device: Device) -> Result<MemoryCounter, TrainerError> {
        let counter = MemoryCounter { device, held: 0 };
        counter.reset()?;
        let held = match device.is_cuda() {
            true => counter.peak_bytes()?,
            false => memory_bytes(),
        };
        Ok(MemoryCounter { device, held })
    }

    /// Starts the peak anew; whether that can be done here.
    fn reset(&self) -> Result<bool, TrainerError> {
        gpu_memory::reset_peak(self.device)?;
        Ok(self.device.is_cuda() || reset_peak_memory())
    }

    fn peak_bytes(&self) -> Result<u64, TrainerError> {
        let peak = gpu_memory::peak(self.device)?;
        let peak = peak.map_or_else(peak_memory_bytes, |peak| peak.allocated_bytes);
        Ok(peak.saturating_sub(self.held))
    }
}

fn header() -> String {
    format!(
        "\n{:>6}  {:<27}{:>10}{:>11}{:>13}",
        "tokens", "training step", "tokens/s", "seconds", "memory, GB"
    )
}

fn row(len: usize, name: &str, secs: f64, memory: Option<u64>) -> String {
    let memory = memory.map_or("-".to_string(), |bytes| {
        format!("{:.3}", bytes as f64 / 1e9)
    });
    format!(
        "{len:>6}  {name:<27}{:>10.0}{secs:>11.3}{memory:>13}",
        len as f64 / secs
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_speed_time_and_memory() {
        assert_eq!(
            row(4096, "dense", 2.0, Some(1_500_000_000)),
            "  4096  dense                            2048      2.000        1.500"
        );
        assert!(row(4096, "dense", 2.0, None).ends_with("2.000            -"));
        assert_eq!(header().len(), row(1, "", 1.0, None).len() + 1);
    }
}
