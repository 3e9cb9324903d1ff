//! What the machine offers, found once at start-up: threads, device, bf16 speed, memory.
//!
//! The program links only the CPU half of libtorch. Where the CUDA half (`libtorch_cuda.so`) can be
//! loaded at run time it registers itself, and the same binary computes on the GPU. Numerics are
//! left as libtorch has them: no flushing of denormals, no reduced-precision f32 products.

use std::ffi::c_int;
use std::fs;
use std::thread;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::Device;

use crate::machine;

/// What became of the CUDA half of libtorch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cuda {
    /// It is not installed, or there is no NVIDIA driver.
    Absent,
    /// It could not be used although there is an NVIDIA driver.
    Unusable {
        /// Why, in the loader's or libtorch's words.
        reason: String,
    },
    /// It is loaded.
    Available {
        /// GPUs of this machine that this process may use.
        num_devices: i64,
    },
}

/// The machine as this process uses it.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Where tensors live: the first GPU if there is one, else the CPU.
    pub device: Device,
    /// What became of the CUDA half of libtorch.
    pub cuda: Cuda,
}

/// Sets libtorch's number of CPU threads (0: one for each core) and looks for a GPU.
///
/// Call it once, before any tensor is made: libtorch looks for its CUDA half only once.
pub fn start(threads: usize) -> Runtime {
    let threads = if threads == 0 {
        thread::available_parallelism().map_or(1, usize::from)
    } else {
        threads
    };
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    keep_freed_memory();

    let cuda = load_cuda();
    let device = match &cuda {
        Cuda::Available { .. } => Device::Cuda(0),
        Cuda::Unusable { reason } => {
            tracing::warn!(
                "there is an NVIDIA driver, but computing goes on on the CPU: {reason}; \
                 set LD_LIBRARY_PATH to the lib folders of a torch 2.11 with CUDA"
            );
            Device::Cpu
        }
        Cuda::Absent => Device::Cpu,
    };
    Runtime { device, cuda }
}

unsafe extern "C" {
    /// glibc's switchboard of malloc, from malloc.h.
    fn mallopt(parameter: c_int, value: c_int) -> c_int;
    /// Gives free pages back to the system, but for `keep` bytes at the heap's end.
    fn malloc_trim(keep: usize) -> c_int;
}

/// Makes malloc reuse what tensors leave behind. By default it maps every block from 128 KB on afresh
/// and returns it at once, and the kernel then clears the same pages step after step: a sixth of
/// the time of a training step on a CPU. The largest blocks are mapped all the same: in the heap an
/// aligned block rarely fits where its like has been, and each would leave another hole.
fn keep_freed_memory() {
    const M_TRIM_THRESHOLD: c_int = -1;
    const M_MMAP_THRESHOLD: c_int = -3;
    /// The most that malloc accepts on 64 bits.
    const MAPPED_FROM_BYTES: c_int = 32 << 20;
    // SAFETY: both calls only set options of the allocator, under its own lock.
    let accepted = unsafe {
        mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES) == 1 && mallopt(M_TRIM_THRESHOLD, -1) == 1
    };
    if !accepted {
        tracing::debug!("malloc kept its defaults for large blocks");
    }
}

fn load_cuda() -> Cuda {
    let has_driver = fs::exists("/proc/driver/nvidia/version").unwrap_or(false);
    // SAFETY: loading runs the initialisers of libtorch_cuda, which register its kernels with the
    // libtorch already loaded; they are meant to run at any time. No symbol is looked up here.
    let loaded = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    match loaded {
        // What registered itself must never be unloaded.
        Ok(library) => std::mem::forget(library),
        Err(_) if !has_driver => return Cuda::Absent,
        Err(error) => {
            return Cuda::Unusable {
                reason: machine::loader_reason(&error),
            };
        }
    }
    match tch::Cuda::device_count() {
        0 if !has_driver => Cuda::Absent,
        0 => Cuda::Unusable {
            reason: "libtorch_cuda.so is loaded but finds no GPU".to_string(),
        },
        num_devices => Cuda::Available { num_devices },
    }
}

/// Waits until a GPU has done what it was given; a CPU has by the time an operation returns.
pub fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// Whether bf16 products on `device` are faster than f32 ones: on GPUs, and on CPUs with AMX.
pub fn has_fast_bf16(device: Device) -> bool {
    match device {
        Device::Cuda(_) => true,
        Device::Cpu => fs::read_to_string("/proc/cpuinfo")
            .is_ok_and(|cpuinfo| has_cpu_flag(&cpuinfo, "amx_bf16")),
        _ => false,
    }
}

fn has_cpu_flag(cpuinfo: &str, flag: &str) -> bool {
    cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split_whitespace().any(|word| word == flag))
}

/// Most main memory this process held at once, ever or since [`reset_peak_memory`], in bytes; 0 where
/// the system does not say.
pub fn peak_memory_bytes() -> u64 {
    own_status("VmHWM:")
}

/// Main memory this process holds, in bytes; 0 where the system does not say.
pub fn memory_bytes() -> u64 {
    own_status("VmRSS:")
}

/// Gives back what is held but free, and starts the peak of [`peak_memory_bytes`] anew. False where the
/// system refuses.
pub fn reset_peak_memory() -> bool {
    // SAFETY: takes the allocator's own locks and touches no block in use.
    unsafe { malloc_trim(0) };
    // proc_pid_clear_refs(5): 5 resets the peak resident set size.
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

fn own_status(key: &str) -> u64 {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| bytes_of_status(&status, key))
        .unwrap_or(0)
}

fn bytes_of_status(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_sets_the_thread_count() {
        start(1);
        assert_eq!(tch::get_num_threads(), 1);
        start(0);
        let cores = thread::available_parallelism().unwrap().get();
        assert_eq!(tch::get_num_threads(), cores as i32);
    }

    #[test]
    fn device_follows_cuda() {
        let runtime = start(1);
        let is_gpu = matches!(runtime.device, Device::Cuda(0));
        assert_eq!(is_gpu, matches!(runtime.cuda, Cuda::Available { .. }));
        if !is_gpu {
            assert_eq!(runtime.device, Device::Cpu);
        }
    }

    #[test]
    fn cpu_flags_are_whole_words() {
        let cpuinfo = "model name\t: X\nflags\t\t: fpu amx_bf16_x avx512_bf16\n";
        assert!(has_cpu_flag(cpuinfo, "avx512_bf16"));
        assert!(!has_cpu_flag(cpuinfo, "amx_bf16"));
        assert!(!has_cpu_flag("", "fpu"));
    }

    #[test]
    fn peak_memory_is_read_in_kib() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(bytes_of_status(status, "VmHWM:"), Some(2_097_152));
        assert_eq!(bytes_of_status("Name:\tx\n", "VmHWM:"), None);
    }

    #[test]
    fn peak_memory_grows_with_use() {
        let before = peak_memory_bytes();
        let block = std::hint::black_box(vec![1_u8; before as usize + (64 << 20)]);
        assert!(peak_memory_bytes() >= before + (32 << 20));
        drop(block);
        let peak = peak_memory_bytes();
        assert!(reset_peak_memory());
        assert!(peak_memory_bytes() + (32 << 20) <= peak);
        assert!(peak_memory_bytes() >= memory_bytes() / 2);
    }
}
