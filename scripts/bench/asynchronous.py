#!/usr/bin/env python3
"""Sampling beside learning against sampling before learning: one configuration, run in both modes.

    python3 scripts/bench/asynchronous.py configs/quickstart.ron --baleen target/debug/baleen \\
        --runs runs/bench --cores 8,8 --set threads=8

Both runs go through all stages with the same seed; they start together, each on cores of its own (`--cores N,N`), or
one after the other (`--cores N`: the first N cores; without it, all). What is compared is the last stage, which must
be grpo. Times are without evaluations and saving. Reward a minute is the sum of the trained samples' rewards over the
stage's time; the second table says how far each mode was at equal times. With `--read A B` two runs that are there
already are compared: first the synchronous one.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys

MODES = ("synchronous", "asynchronous")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?")
    parser.add_argument("--baleen", default="target/debug/baleen")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/bench"))
    parser.add_argument("--stage", type=int, default=3, help="index of the grpo stage in the configuration")
    parser.add_argument("--cores", default="", help="N: one after the other on N cores; N,N: at once, each on N")
    parser.add_argument("--age", type=int, default=1, help="max_policy_age of the asynchronous run")
    parser.add_argument("--sampler-threads", type=int, default=0, help="0: half of the threads")
    parser.add_argument("--set", action="append", default=[], help="passed on to both runs")
    parser.add_argument("--read", nargs=2, type=pathlib.Path, help="two finished runs")
    given = parser.parse_args()
    if not given.read and not given.config:
        parser.error("name a configuration, or two runs with --read")
    return given


def start(given, mode, cores):
    run = given.runs / mode
    if run.exists():
        sys.exit(f"{run} is there already; name another folder with --runs")
    command = [given.baleen, "train", given.config, "--run", str(run)]
    for value in given.set:
        command += ["--set", value]
    if mode == "asynchronous":
        value = f"(max_policy_age: {given.age}, sampler_threads: {given.sampler_threads})"
        command += ["--set", f"stages[{given.stage}].grpo.asynchronous={value}"]
    given.runs.mkdir(parents=True, exist_ok=True)
    log = open(given.runs / f"{mode}.log", "w", encoding="utf-8")
    pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    print("$", " ".join(command), f"  [cores {sorted(cores)}]" if cores else "", flush=True)
    return subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=pin)


def finish(process, given, mode):
    if process.wait() != 0:
        sys.exit(f"the {mode} run failed: see {given.runs / (mode + '.log')}")


def run_both(given):
    counts = [int(part) for part in given.cores.split(",") if part]
    have = sorted(os.sched_getaffinity(0))
    if sum(counts) > len(have):
        sys.exit(f"--cores asks for {sum(counts)} cores; {len(have)} are there")
    if len(counts) == 2:
        parts = (set(have[: counts[0]]), set(have[counts[0] : sum(counts)]))
        processes = [start(given, mode, cores) for mode, cores in zip(MODES, parts)]
        for process, mode in zip(processes, MODES):
            finish(process, given, mode)
    else:
        for mode in MODES:
            finish(start(given, mode, set(have[: counts[0]]) if counts else None), given, mode)


def lines(run):
    with open(run / "metrics.jsonl", encoding="utf-8") as file:
        steps = [json.loads(line) for line in file]
    last = steps[-1]["stage_index"]
    steps = [step for step in steps if step["stage_index"] == last and step["step"] > 0]
    if not steps or any(step["stage"] != "grpo" for step in steps):
        sys.exit(f"{run}: the last stage is not grpo")
    return steps


def own_secs(step):
    return step["secs_total"] - step.get("secs_evaluation", 0.0)


def mean(values):
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else float("nan")


def summary(runs):
    print(f"\n{'grpo stage':<46}{MODES[0]:>14}{MODES[1]:>14}")

    def row(name, of, form="{:.2f}"):
        print(f"{name:<46}" + "".join(f"{form.format(of(run)):>14}" for run in runs))

    minutes = [sum(map(own_secs, run)) / 60 for run in runs]
    row("steps", len, "{}")
    row("seconds a step, mean", lambda run: mean(map(own_secs, run)))
    row("  waiting for this step's samples", lambda run: mean(step.get("secs_rollout") for step in run))
    row("  learning", lambda run: mean(step.get("secs_train") for step in run))
    row("sampled tokens a second, while sampling", lambda run: mean(s.get("rollout_tokens_per_sec") for s in run), "{:.0f}")
    row("completion tokens a sample", lambda run: mean(step["completion_tokens_mean"] for step in run))
    row("mean reward, all steps", lambda run: mean(step["reward_mean"] for step in run), "{:.3f}")
    row("mean reward, last 8 steps", lambda run: mean(step["reward_mean"] for step in run[-8:]), "{:.3f}")
    print(
        f"{'reward a minute (mean reward x steps / minutes)':<46}"
        + "".join(f"{sum(s['reward_mean'] for s in run) / time:>14.2f}" for run, time in zip(runs, minutes))
    )
    row("policy age of a sample, mean", lambda run: mean(step.get("policy_age") for step in run))
    row("policy age, largest", lambda run: max(step.get("policy_age_max", 0) for step in run), "{}")
    row("samples that span versions", lambda run: sum(step.get("spanning_samples", 0) for step in run), "{}")
    row("sequences masked as off-policy", lambda run: sum(step.get("masked_sequences", 0) for step in run), "{}")
    row("|trainer - sampler| log-prob, mean", lambda run: mean(step.get("logprob_gap_mean") for step in run), "{:.2e}")
    for index, run in enumerate(runs):
        evaluations = [(step["step"], step["held_out_pass_rate"]) for step in run if step.get("held_out_pass_rate")]
        print(f"held-out pass rate, {MODES[index]}: " + ", ".join(f"{rate:.3f} after step {at}" for at, rate in evaluations))


def at_equal_times(runs):
    """Step and mean reward of the last 4 steps at each tenth of the slower mode's time."""
    clocks = []
    for run in runs:
        clock, total = [], 0.0
        for step in run:
            total += own_secs(step)
            clock.append(total)
        clocks.append(clock)
    longest = max(clock[-1] for clock in clocks)
    print(f"\n{'minutes':>8}" + "".join(f"{mode + ': step':>20}{'reward':>8}" for mode in MODES))
    for tenth in range(1, 11):
        now = longest * tenth / 10 + 1e-9
        cells = ""
        for run, clock in zip(runs, clocks):
            done = sum(end <= now for end in clock)
            reward = mean(step["reward_mean"] for step in run[max(0, done - 4) : done])
            cells += f"{done:>20}{reward:>8.3f}"
        print(f"{now / 60:>8.2f}{cells}")


def main():
    given = arguments()
    if not given.read:
        run_both(given)
    runs = [lines(run) for run in given.read or [given.runs / mode for mode in MODES]]
    summary(runs)
    at_equal_times(runs)


if __name__ == "__main__":
    main()
