//! Compiles the C++ shim (`csrc/`) against the libtorch headers that `scripts/setup.sh` installs.
//!
//! Checks first that the headers are there and of the one version the project is made for, since
//! what the compiler says otherwise helps nobody.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

/// The libtorch release that tch 0.24 binds, as (major, minor).
const TORCH_VERSION: (u32, u32) = (2, 11);

fn main() {
    println!("cargo:rerun-if-changed=csrc");
    println!("cargo:rerun-if-env-changed=LIBTORCH");

    let libtorch = libtorch_dir();
    let include = libtorch.join("include");
    check_version(&include.join("torch/headeronly/version.h"));

    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .file("csrc/shim.cpp")
        .file("csrc/gpu_memory.cpp")
        .file("csrc/profiler.cpp")
        .include("csrc")
        // As system headers: their warnings are not ours.
        .flag("-isystem")
        .flag(&include)
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include"))
        .compile("baleen_shim");

    println!(
        "cargo:rustc-link-search=native={}",
        libtorch.join("lib").display()
    );
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}

/// The folder named by `LIBTORCH` (set in `.cargo/config.toml`).
fn libtorch_dir() -> PathBuf {
    let Some(dir) = env::var_os("LIBTORCH").map(PathBuf::from) else {
        fail(
            "the environment variable LIBTORCH is not set (plain `cargo` inside the checkout sets it)",
        );
    };
    if !dir.join("include").is_dir() || !dir.join("lib").is_dir() {
        fail(&format!(
            "no libtorch in {}: it needs the folders include/ and lib/",
            dir.display()
        ));
    }
    dir
}

fn check_version(header: &Path) {
    let text = fs::read_to_string(header)
        .unwrap_or_else(|error| fail(&format!("can't read {}: {error}", header.display())));
    let found = (
        defined_number(&text, "TORCH_VERSION_MAJOR"),
        defined_number(&text, "TORCH_VERSION_MINOR"),
    );
    let (major, minor) = TORCH_VERSION;
    if found != (Some(major), Some(minor)) {
        fail(&format!(
            "{} is of version {found:?}, libtorch {major}.{minor} is needed",
            header.display()
        ));
    }
}

/// N of the line `#define NAME N`.
fn defined_number(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let is_definition = words.next() == Some("#define") && words.next() == Some(name);
        is_definition.then(|| words.next()?.parse().ok())?
    })
}

fn fail(what: &str) -> ! {
    eprintln!("error: {what}");
    eprintln!(
        "help: run scripts/setup.sh once in this checkout; it installs libtorch under .libtorch/"
    );
    process::exit(1)
}
