//! Whether the run fits the machine, and what the machine offers.

use kernels::runtime::{Cuda, Runtime};
use kernels::tch::{self, Device, Kind};
use kernels::{machine, runtime};
use model::ModelConfig;

use super::finding::Finding;
use crate::config::{Compute, RunConfig};
use crate::memory::memory_bytes;

/// Threads, speed of bf16, CUDA, NCCL and libtorch, as a note.
pub fn machine_findings(runtime: &Runtime, config: &RunConfig) -> Vec<Finding> {
    let has_fast_bf16 = runtime::has_fast_bf16(runtime.device);
    let cuda = match &runtime.cuda {
        Cuda::Absent => "no GPU".to_string(),
        Cuda::Available { num_devices } => format!("{num_devices} GPUs, of which a run uses one"),
        Cuda::Unusable { reason } => format!("a GPU that can't be used ({reason})"),
    };
    let nccl = match machine::find_nccl() {
        Ok(()) => "NCCL found",
        Err(_) => "no NCCL (runs don't need it)",
    };
    let text = format!(
        "computing on {:?}, CPU threads: {}; {} bf16; {cuda}; {nccl}; libtorch {}",
        runtime.device,
        tch::get_num_threads(),
        if has_fast_bf16 { "fast" } else { "no fast" },
        machine::libtorch_version(),
    );
    let mut found = vec![Finding::note("machine", text)];
    if config.compute == Compute::Bf16 && !has_fast_bf16 {
        found.push(Finding::note(
            "machine",
            "compute is bf16, which this processor multiplies more slowly than f32: `compute: auto` takes f32 here",
        ));
    }
    found
}

/// The estimate for the run against what is left now; ask before the policy is loaded.
pub fn memory_finding(
    config: &RunConfig,
    shape: &ModelConfig,
    kind: Kind,
    device: Device,
) -> Finding {
    let needed = memory_bytes(config, shape, kind, device) as u64;
    judge(needed, machine::available_memory_bytes(device))
}

/// The most main memory that this process has held so far.
pub fn peak_memory_finding() -> Finding {
    let peak = runtime::peak_memory_bytes();
    let text = format!("this check held {} of main memory at most", gigabytes(peak));
    Finding::note("memory", text).figure("peak_bytes", peak as f64)
}

fn judge(needed: u64, left: Option<u64>) -> Finding {
    let Some(left) = left else {
        let text = format!(
            "the run takes about {}; the system does not say what is left",
            gigabytes(needed)
        );
        return Finding::note("memory", text).figure("needed_bytes", needed as f64);
    };
    let text = format!(
        "the run takes about {}, {} are left",
        gigabytes(needed),
        gigabytes(left)
    );
    let finding = Finding::of("memory", needed <= left, text)
        .figure("needed_bytes", needed as f64)
        .figure("left_bytes", left as f64);
    match finding.has_failed() {
        false => finding,
        true => finding.because(
            "weights with their optimizer state, the cache and the activations of a micro-batch don't fit together",
            "lower micro_batch_tokens or max_batch_sequences, set activation_checkpointing: true, kl_beta: 0 (no \
             reference policy), or take a smaller model",
        ),
    }
}

fn gigabytes(bytes: u64) -> String {
    match bytes {
        0..100_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_larger_than_what_is_left_fails() {
        let fits = judge(2_000_000_000, Some(2_000_000_000));
        assert!(!fits.has_failed(), "{fits}");
        let large = judge(2_000_000_001, Some(1_500_000_000));
        assert!(large.has_failed());
        assert!(
            large.measured.contains("2.0 GB, 1.5 GB are left"),
            "{large}"
        );
        assert!(large.advice.unwrap().contains("micro_batch_tokens"));
        assert!(!judge(1, None).has_failed());
        let small = judge(12_000_000, Some(5_000_000_000));
        assert!(small.measured.contains("12 MB, 5.0 GB are left"), "{small}");
    }
}
