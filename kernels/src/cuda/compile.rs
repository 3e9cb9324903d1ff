//! CUDA sources to machine code, by NVRTC, kept on disk.
//!
//! A file is named by a hash of all that decides it: source, headers, constants, target, the
//! compiler's and the driver's versions. It lies in `$BALEEN_CACHE/kernels` (default `~/.cache/baleen/kernels`).

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::{env, fs, process, ptr};

use cudarc::nvrtc::result::NvrtcError;
use cudarc::nvrtc::{result, sys};

use super::context::driver_version;
use crate::error::KernelError;

/// A file of `kernels/cuda/`.
#[derive(Debug)]
pub struct Source {
    /// File name.
    pub name: &'static str,
    pub(super) text: &'static str,
    /// Whether its kernels may start before the kernel in front of them is done: each waits for it itself (`overlap.cuh`).
    pub(super) overlaps: bool,
}

macro_rules! source {
    ($name:literal, overlaps: $overlaps:literal) => {
        Source {
            name: $name,
            text: include_str!(concat!("../../cuda/", $name)),
            overlaps: $overlaps,
        }
    };
    ($name:literal) => {
        source!($name, overlaps: false)
    };
}

/// Embedding, norm, SwiGLU.
pub const ROWS: Source = source!("rows.cu", overlaps: true);
/// RoPE with the cache's write and attention over the cache; needs `HEAD_DIM`, `GROUP` and `WARPS`.
pub const ATTENTION: Source = source!("attention.cu", overlaps: true);
/// Router, sum of experts.
pub const EXPERTS: Source = source!("experts.cu", overlaps: true);
/// Sampling.
pub const SAMPLING: Source = source!("sampling.cu", overlaps: true);

/// A learner's norm, SwiGLU, RoPE and log-probs; needs `EIGHTS` for the norm and `HEAD_DIM` for RoPE.
pub const FUSED: Source = source!("fused.cu");
/// Attention over selected keys; needs `DIM`, `V_DIM`, `ROWS` and `OWN_VALUES`.
pub const DSA_ATTENTION: Source = source!("dsa_attention.cu");
/// The same kernels at DeepSeek-V3.2's widths for Hopper's own products; compiles for sm_90a alone.
pub const DSA_LATENT_SM90: Source = source!("dsa_latent_sm90.cu");
/// The indexer's scores, selection and loss; needs `INDEX_HEADS` and `DIM`.
pub const DSA_INDEXER: Source = source!("dsa_indexer.cu");
/// What the indexer learns from while attention is dense; needs `DIM`.
pub const DENSE_HEAD_SUMS: Source = source!("dense_head_sums.cu");

/// A learner's rows to experts and back.
pub const DISPATCH: Source = source!("dispatch.cu");

/// A decode step's products of few rows; needs `INNER`, `WARPS`, `ROWS`, `COLUMNS`, `NORMED` and `EPILOGUE`.
pub const SMALL_PRODUCTS: Source = source!("small_products.cu", overlaps: true);

/// Every source but [`DSA_LATENT_SM90`], with the constants that a test compiles it for.
pub const ALL: [(&Source, &[Constant]); 12] = [
    (&ROWS, &[]),
    (&ATTENTION, &[("HEAD_DIM", 64), ("GROUP", 3), ("WARPS", 4)]),
    (&EXPERTS, &[]),
    (&SAMPLING, &[]),
    (&FUSED, &[("EIGHTS", 3), ("HEAD_DIM", 64)]),
    (&DISPATCH, &[]),
    (&SMALL_PRODUCTS, &[]),
    (
        &SMALL_PRODUCTS,
        &[("COLUMNS", 32), ("NORMED", 1), ("EPILOGUE", 2)],
    ),
    (&DSA_ATTENTION, &[]),
    (
        &DSA_ATTENTION,
        &[("DIM", 64), ("V_DIM", 64), ("ROWS", 16), ("OWN_VALUES", 1)],
    ),
    (&DSA_INDEXER, &[]),
    (&DENSE_HEAD_SUMS, &[]),
];

/// A compile-time constant: name and value.
pub type Constant = (&'static str, i64);

/// What sources include.
const HEADERS: [(&CStr, &str); 5] = [
    (c"bf16.cuh", include_str!("../../cuda/bf16.cuh")),
    (c"mma.cuh", include_str!("../../cuda/mma.cuh")),
    (c"overlap.cuh", include_str!("../../cuda/overlap.cuh")),
    (c"wgmma.cuh", include_str!("../../cuda/wgmma.cuh")),
    (c"dsa_tiles.cuh", include_str!("../../cuda/dsa_tiles.cuh")),
];

/// Machine code of `source` for the card `arch`, from the disk where it was compiled before.
///
/// # Errors
/// The source does not compile. A cache that can't be written is no error.
pub(crate) fn cubin(
    source: &Source,
    constants: &[Constant],
    arch: &str,
) -> Result<Vec<u8>, KernelError> {
    let key = key(source, constants, arch)?;
    let path = cache_folder().map(|folder| folder.join(format!("{key}.cubin")));
    if let Some(code) = path.as_ref().and_then(|path| fs::read(path).ok()) {
        return Ok(code);
    }
    let code = compile(source, constants, arch)?;
    if let Some(path) = path {
        // Another process may do the same: the name appears with the whole file.
        let partial = path.with_extension(format!("{}.partial", process::id()));
        let written = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&partial, &code))
            .and_then(|()| fs::rename(&partial, &path));
        if let Err(error) = written {
            tracing::debug!("a compiled kernel is not kept: {}: {error}", path.display());
        }
    }
    Ok(code)
}

/// Compiles `source` for `arch` (`sm_90a`, say); no GPU is needed.
///
/// # Errors
/// [`KernelError::Compile`] with the compiler's log; [`KernelError::Cuda`] where the compiler itself fails.
///
/// # Panics
/// Where [`has_compiler`] is false.
pub fn compile(
    source: &Source,
    constants: &[Constant],
    arch: &str,
) -> Result<Vec<u8>, KernelError> {
    let text = CString::new(source.text).expect("sources hold no zero byte");
    let headers = HEADERS.map(|(_, text)| CString::new(text).expect("sources hold no zero byte"));
    let (texts, names) = (
        headers.each_ref().map(|text| text.as_ptr()),
        HEADERS.map(|(name, _)| name.as_ptr()),
    );
    let mut options = vec![format!("--gpu-architecture={arch}"), "--std=c++17".into()];
    options.extend(
        constants
            .iter()
            .map(|(name, value)| format!("-D{name}={value}")),
    );
    let mut program = ptr::null_mut();
    // SAFETY: all strings live through the calls; the program is destroyed once, after its last use.
    unsafe {
        let code = sys::nvrtcCreateProgram(
            &mut program,
            text.as_ptr(),
            c"kernel.cu".as_ptr(),
            HEADERS.len() as i32,
            texts.as_ptr(),
            names.as_ptr(),
        );
        check("nvrtcCreateProgram", code)?;
        let compiled = result::compile_program(program, &options)
            .map_err(|_| KernelError::Compile {
                source_name: source.name,
                arch: arch.to_string(),
                log: log(program),
            })
            .and_then(|()| code_of(program));
        let destroyed = result::destroy_program(program);
        let code = compiled?;
        destroyed.map_err(|error| failed("nvrtcDestroyProgram", error))?;
        Ok(code)
    }
}

/// Whether NVRTC can be loaded.
pub fn has_compiler() -> bool {
    // SAFETY: only tries to load the library.
    unsafe { sys::is_culib_present() }
}

/// # Safety
/// `program` is alive and was compiled.
unsafe fn code_of(program: sys::nvrtcProgram) -> Result<Vec<u8>, KernelError> {
    let mut size = 0;
    // SAFETY: the caller's; the buffer has the size that NVRTC asks for.
    unsafe {
        check(
            "nvrtcGetCUBINSize",
            sys::nvrtcGetCUBINSize(program, &mut size),
        )?;
        let mut code = vec![0_u8; size];
        check(
            "nvrtcGetCUBIN",
            sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()),
        )?;
        Ok(code)
    }
}

/// # Safety
/// `program` is alive.
unsafe fn log(program: sys::nvrtcProgram) -> String {
    // SAFETY: the caller's.
    let log = unsafe { result::get_program_log(program) }.unwrap_or_default();
    let bytes: Vec<u8> = log
        .into_iter()
        .map(|c| c as u8)
        .filter(|&c| c != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn check(operation: &'static str, code: sys::nvrtcResult) -> Result<(), KernelError> {
    code.result().map_err(|error| failed(operation, error))
}

fn failed(operation: &'static str, error: NvrtcError) -> KernelError {
    KernelError::Cuda {
        operation,
        message: format!("{:?}", error.0),
    }
}

fn key(source: &Source, constants: &[Constant], arch: &str) -> Result<String, KernelError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both live through the call.
    check("nvrtcVersion", unsafe {
        sys::nvrtcVersion(&mut major, &mut minor)
    })?;
    let mut hash = blake3::Hasher::new();
    let headers = HEADERS.map(|(_, text)| text);
    for part in headers.into_iter().chain([source.text, arch]) {
        hash.update(part.as_bytes()).update(&[0]);
    }
    let driver = driver_version()?;
    hash.update(format!("{constants:?} nvrtc {major}.{minor} driver {driver}").as_bytes());
    Ok(hash.finalize().to_hex().as_str()[..32].to_string())
}

fn cache_folder() -> Option<PathBuf> {
    let own = env::var_os("BALEEN_CACHE").map(PathBuf::from);
    let user = || env::var_os("XDG_CACHE_HOME").map(|home| PathBuf::from(home).join("baleen"));
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/baleen"));
    Some(own.or_else(user).or_else(home)?.join("kernels"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_skipped() -> bool {
        if !has_compiler() {
            eprintln!("SKIPPED: no libnvrtc in LD_LIBRARY_PATH");
        }
        !has_compiler()
    }

    #[test]
    fn every_source_compiles_for_ampere_and_hopper() {
        if is_skipped() {
            return;
        }
        for arch in ["sm_80", "sm_90a"] {
            for (source, constants) in ALL {
                let code = compile(source, constants, arch).unwrap();
                assert_eq!(&code[..4], b"\x7fELF", "{} for {arch}", source.name);
            }
        }
    }

    #[test]
    fn hoppers_own_source_compiles() {
        if !is_skipped() {
            compile(&DSA_LATENT_SM90, &[], "sm_90a").unwrap();
        }
    }

    #[test]
    fn attention_compiles_for_all_head_sizes() {
        if is_skipped() {
            return;
        }
        for head_dim in [16, 32, 64, 128, 256] {
            let constants = [("HEAD_DIM", head_dim), ("GROUP", 4), ("WARPS", 4)];
            compile(&ATTENTION, &constants, "sm_90a").unwrap();
        }
    }

    /// Name and body of each kernel of `text`.
    fn kernels_of(text: &str) -> Vec<(&str, &str)> {
        let declared = text.split("extern \"C\" __global__").skip(1);
        declared
            .map(|rest| {
                let (head, body) = rest.split_once(") {\n").expect("parameters end");
                let (head, _) = head.rsplit_once('(').expect("parameters begin");
                let name = head.rsplit(' ').next().expect("a name");
                (name, body.split_once("\n}").expect("a body ends").0)
            })
            .collect()
    }

    #[test]
    fn every_kernel_that_overlaps_waits_before_it_may_return() {
        let overlapping = ALL.iter().filter(|(source, _)| source.overlaps);
        let mut num_kernels = 0;
        for (source, _) in overlapping {
            for (name, body) in kernels_of(source.text) {
                num_kernels += 1;
                // Two spaces: in no branch and no loop.
                let before = body.split_once("\n  wait_for_kernels_before();\n");
                let before = before.map(|(before, _)| before);
                assert!(
                    before.is_some_and(|before| !before.contains("return;")),
                    "{name} of {} does not wait first",
                    source.name
                );
            }
        }
        assert!(num_kernels >= 8, "{num_kernels} kernels found");
        let others = ALL.iter().filter(|(source, _)| !source.overlaps);
        for (source, _) in others {
            assert!(
                !source.text.contains("start_next_kernel"),
                "{}",
                source.name
            );
        }
    }

    #[test]
    fn an_error_shows_the_compilers_log() {
        if is_skipped() {
            return;
        }
        let source = Source {
            name: "wrong.cu",
            text: "__global__ void wrong() { no_such_function(); }",
            overlaps: false,
        };
        let error = compile(&source, &[], "sm_90a").unwrap_err().to_string();
        assert!(
            error.contains("wrong.cu") && error.contains("no_such_function"),
            "{error}"
        );
    }
}
