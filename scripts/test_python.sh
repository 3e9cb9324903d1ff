#!/usr/bin/env bash
# Prints the path of a Python that has the packages of tests/requirements.txt, with which some tests read
# results back. Made once in the download cache ($BALEEN_CACHE, default ~/.cache/baleen; 142 MB
# are fetched, 480 MB unpacked), and again whenever the requirements or python3 change. Prints nothing where python3 is too
# old for them; those tests then say that they are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${HOME:=$(echo ~)}" # containers and services may start without HOME
cache="${BALEEN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/baleen}"
say() { printf 'test: %s\n' "$*" >&2; }

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))'; then
    say "$(python3 --version 2>&1) has no current tensorboard; tests that read event files will be skipped"
    exit 0
fi
key=$({ cat tests/requirements.txt; python3 -c 'import sys; print(sys.version, sys.base_prefix)'; } | sha256sum | cut -c1-16)
made="$cache/test-python-$key"
if [ ! -e "$made/bin/python" ]; then
    say "fetching the Python packages of tests/requirements.txt into $made"
    mkdir -p "$cache"
    partial=$(mktemp -d "$made.XXXXXX")
    trap 'rm -rf "$partial"' EXIT
    # The system's pip fills it: Debian's python3 comes without what a pip inside would be made from.
    python3 -m venv --without-pip "$partial"
    site=$("$partial/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    TMPDIR="$partial" PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-input --no-cache-dir \
        --disable-pip-version-check --no-deps --only-binary=:all: --target "$site" --requirement tests/requirements.txt >&2 || {
        say "error: pip could not install them; check the network and pip's index settings (python3 -m pip config list)"
        exit 1
    }
    # Where another process was faster, its result serves as well.
    mv -T "$partial" "$made" 2>/dev/null || [ -e "$made/bin/python" ]
fi
printf '%s\n' "$made/bin/python"
