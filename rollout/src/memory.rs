//! How much memory sampling takes: the cache's budget, and what one prefill runs at once.

use kernels::{gpu_memory, machine};
use model::pages::PAGE_TOKENS;
use serde::{Deserialize, Serialize};
use tch::Device;

/// Share of the free memory that the cache takes at most on a GPU; the rest is for activations and logits.
const GPU_SHARE: f64 = 0.8;
/// The same of a machine's own memory, which other programs want too.
const CPU_SHARE: f64 = 0.5;

/// Memory for keys and values, at most. Never more than the sequences can need is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheMemory {
    /// 80 % of what is free on a GPU when sampling starts, half of what is available on a CPU.
    #[default]
    Auto,
    /// That share of it.
    Share(f64),
    /// So many bytes.
    Bytes(u64),
}

impl CacheMemory {
    /// What is wrong with the value, in words that follow the key.
    pub fn problem(self) -> Option<String> {
        match self {
            CacheMemory::Share(share) if !(share > 0.0 && share <= 1.0) => Some(format!(
                "is share({share}); a share of the free memory is above 0 and at most 1"
            )),
            CacheMemory::Bytes(0) => Some("is bytes(0); nothing can be sampled so".to_string()),
            _ => None,
        }
    }

    /// Bytes on `device`, as free as it is now.
    pub fn bytes(self, device: Device) -> u64 {
        let share = match self {
            CacheMemory::Bytes(bytes) => return bytes,
            CacheMemory::Share(share) => share,
            CacheMemory::Auto if device.is_cuda() => GPU_SHARE,
            CacheMemory::Auto => CPU_SHARE,
        };
        // Where nobody says, what is needed is tried.
        let free = machine::available_memory_bytes(device).map_or(u64::MAX as f64, |b| b as f64);
        let kept = gpu_memory::kept_bytes(device).unwrap_or(0) as f64;
        ((free + kept) * share) as u64
    }
}

/// What sampling may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemorySettings {
    /// Keys and values.
    pub cache: CacheMemory,
    /// Tokens run through the model at once when samples start, at most; longer sequences go in parts.
    /// Bounds the activations, and how long live sequences wait.
    pub max_prefill_tokens: usize,
    /// Tokens of a page of the cache, a power of two.
    pub page_tokens: usize,
}

impl Default for MemorySettings {
    fn default() -> MemorySettings {
        MemorySettings {
            cache: CacheMemory::Auto,
            max_prefill_tokens: 8192,
            page_tokens: PAGE_TOKENS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_share_of_what_is_free_or_a_number() {
        assert_eq!(CacheMemory::Bytes(77).bytes(Device::Cpu), 77);
        let [half, quarter] = [CacheMemory::Auto, CacheMemory::Share(0.25)]
            .map(|memory| memory.bytes(Device::Cpu) as f64);
        // Other programs take and give memory in between.
        assert!((half / quarter - 2.0).abs() < 0.5, "{half} {quarter}");
    }

    #[test]
    fn senseless_budgets_are_named() {
        for (memory, part) in [
            (CacheMemory::Share(0.0), "share(0)"),
            (CacheMemory::Share(1.5), "at most 1"),
            (CacheMemory::Share(f64::NAN), "share(NaN)"),
            (CacheMemory::Bytes(0), "bytes(0)"),
        ] {
            let problem = memory.problem().unwrap();
            assert!(problem.contains(part), "{problem}");
        }
        let sound = [
            CacheMemory::Auto,
            CacheMemory::Share(1.0),
            CacheMemory::Bytes(1),
        ];
        assert!(sound.iter().all(|memory| memory.problem().is_none()));
    }
}
