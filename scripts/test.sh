#!/usr/bin/env bash
# Every check of the project: documentation, formatting, lints, tests. Stops at the first that fails.
# Uses cargo-nextest where it is installed, else cargo's own test runner.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
step() { printf '\ntest: %s\n' "$*"; }

# Test processes share the cores: libgomp's threads shall sleep while they wait, not spin.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
# Binaries find libtorch by themselves only in a target folder inside the checkout.
export LD_LIBRARY_PATH="$PWD/.libtorch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

scripts/setup.sh
# Tests read some results back with the Python packages that they are made for.
BALEEN_TEST_PYTHON="$(scripts/test_python.sh)"
export BALEEN_TEST_PYTHON
if [ -n "$BALEEN_TEST_PYTHON" ]; then
    # One of them is the CUDA compiler: tests compile every kernel, without a GPU.
    packages=$("$BALEEN_TEST_PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    export LD_LIBRARY_PATH="$LD_LIBRARY_PATH:$packages/nvidia/cu13/lib"
fi

step "documentation names what exists"
python3 scripts/check_docs.py

for part in rustfmt clippy; do
    cargo "${part#rust}" --version >/dev/null 2>&1 || {
        echo "test: error: cargo ${part#rust} is missing; install it with: rustup component add $part" >&2
        exit 1
    }
done
step "formatting"
cargo fmt --all --check

step "lints (the first build takes some minutes)"
cargo clippy --locked --workspace --all-targets -- -D warnings

if cargo nextest --version >/dev/null 2>&1; then
    step "tests (cargo nextest)"
    cargo nextest run --locked --workspace
else
    step "tests (cargo test)"
    cargo test --locked --workspace --lib --bins --tests
fi
step "all passed"
