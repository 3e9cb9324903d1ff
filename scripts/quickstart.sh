#!/usr/bin/env bash
# The main job in one command: set up, build, and train configs/quickstart.ron into runs/quickstart.
# Run it again, and an interrupted run is continued; after a complete one the next run goes to
# runs/quickstart-2 and so on. Nothing that is there is ever overwritten.
#
#   scripts/quickstart.sh                                   train, or continue
#   scripts/quickstart.sh --set seed=2                      a new run with a changed value
#   scripts/quickstart.sh --dry-run                         only show what would be run
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { printf 'quickstart: %s\n' "$*"; }

# How long libgomp's threads spin before they sleep while they wait for each other: long enough for the
# gaps between operations, short enough to leave a busy machine's cores alone (docs/benchmarks.md).
[ -n "${OMP_WAIT_POLICY:-}" ] || export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-50000}"
scripts/setup.sh

say "building baleen (the first build takes some minutes)"
# The launcher of the sandbox lies beside the program.
cargo build --locked --bin baleen --bin baleen-sandbox
# `cargo run` finds the binary wherever the target folder lies, and becomes the program: Ctrl-C and
# SIGTERM reach it.
baleen=(cargo run --quiet --locked --bin baleen --)

for argument in "$@"; do
    case "$argument" in
        # The folder is chosen by the user, or none is wanted.
        --run | --run=* | --dry-run | -h | --help) exec "${baleen[@]}" train configs/quickstart.ron "$@" ;;
    esac
done

# The first folder without a run that is complete (its policy is exported last).
run=runs/quickstart
number=1
while [ -f "$run/model/config.json" ] || { [ $# -gt 0 ] && [ -f "$run/config.ron" ]; }; do
    say "$run holds a run already; it stays as it is"
    number=$((number + 1))
    run=runs/quickstart-$number
done

if [ -f "$run/config.ron" ]; then
    say "$run was interrupted; continuing it with the configuration it was started with"
    exec "${baleen[@]}" resume "$run"
fi
free=$(($(df -Pk . | awk 'NR==2{print $4}') / 1024 / 1024))
[ "$free" -ge 10 ] || say "warning: $PWD has $free GB free; the run folder takes up to 9 GB"
say "training into $run; see how it goes in another terminal: tail -f $run/log.txt"
exec "${baleen[@]}" train configs/quickstart.ron --run "$run" "$@"
