#!/usr/bin/env python3
"""Works out a grpo step's loss from the log-probs that `baleen replay --json` wrote, with nothing of baleen.

    target/debug/baleen replay runs/quickstart --step 40 --json step.json
    python3 scripts/check_replay.py step.json

Ratio, clipped surrogate, unbiased KL, drift, off-policy mask, weights and loss follow the report's equations
(docs/algorithm.md, section 1); each must agree with what the file says. Exit code 1 where one does not.
"""
import json
import math
import sys
from collections import defaultdict

TERMS = 1e-12  # both sides compute in double precision
LOSS = 1e-6  # the learner sums in single precision


def close(found, expected, tolerance):
    return abs(found - expected) <= tolerance * max(1.0, abs(expected))


def main(path):
    step = json.load(open(path, encoding="utf-8"))
    problems = []

    def check(what, found, expected, tolerance=TERMS):
        if not close(found, expected, tolerance):
            problems.append(f"{what}: the file says {found!r}, it should be {expected!r}")

    epsilon, beta, delta = step["clip_epsilon"], step["kl_beta"], step["off_policy_delta"]
    losses = [0.0] * len(step["losses"])
    weights = defaultdict(float)
    advantages = defaultdict(float)
    for sample in step["samples"]:
        name = f"prompt {sample['prompt_id']} sample {sample['sample_index']}"
        advantage, tokens = sample["advantage"], len(sample["tokens"])
        reference = sample["ref_logprobs"] or [None] * tokens
        drift = sum(s - p for s, p in zip(sample["sampler_logprobs"], sample["logprobs"])) / tokens
        check(f"{name}: drift", sample["drift"], drift)
        masked = delta is not None and advantage < 0 and drift > delta
        check(f"{name}: mask", sample["mask"], 0 if masked else 1)
        for t, (logprob, sampled, ref) in enumerate(zip(sample["logprobs"], sample["sampler_logprobs"], reference)):
            ratio = math.exp(logprob - sampled)
            clipped = min(max(ratio, 1 - epsilon), 1 + epsilon)
            surrogate = min(ratio * advantage, clipped * advantage)
            d = 0.0 if ref is None else ref - logprob
            kl = ratio * (math.exp(d) - d - 1)
            for key, value in (("ratio", ratio), ("surrogate", surrogate), ("kl", kl)):
                check(f"{name}, token {t}: {key}", sample[key][t], value)
            objective = (0.0 if masked else surrogate) - sample["kl_scale"] * beta * kl
            losses[sample["mini_batch"]] -= sample["weight"] * objective
        weights[sample["mini_batch"]] += sample["weight"] * tokens
        advantages[sample["prompt_id"]] += advantage

    for batch, loss in enumerate(losses):
        check(f"mini-batch {batch}: loss from the terms", step["losses_of_terms"][batch], loss)
        check(f"mini-batch {batch}: loss of the learner", step["losses"][batch], loss, LOSS)
        # 1/num_groups of each group, 1/G of each of its samples, 1/|o_i| of each token: together at most 1,
        # and less only where groups without a learning signal were left out.
        if weights[batch] > 1 + TERMS:
            problems.append(f"mini-batch {batch}: the weights add up to {weights[batch]}")
    for prompt, total in advantages.items():
        check(f"prompt {prompt}: sum of the advantages", total, 0.0, 1e-9)
    tokens = sum(len(sample["tokens"]) for sample in step["samples"])
    print(f"step {step['step']}: {len(step['samples'])} samples, {tokens} tokens, loss {sum(losses) / max(1, len(losses)):.9f}")
    for problem in problems[:20]:
        print(f"differs: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
