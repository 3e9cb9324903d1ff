#!/usr/bin/env python3
"""Loads a model folder with transformers: a manual proof that other tools read what `baleen` writes. Needs torch,
transformers 5, safetensors. Any family works; weights are taken as f32, on the CPU.

    scripts/check_transformers.py FOLDER [TOKEN ...]       e.g. runs/import 1 17 42

Prints JSON: {"class", "ignored", "missing", "tokens", "logits" [tokens][vocab]}. "ignored" lists tensors that
transformers does not know (an indexer on grouped-query attention); "missing" must be empty. Without tokens, the folder's
tokenizer encodes a short conversation, which also checks the tokenizer and its chat template.

    scripts/check_transformers.py --baleen target/debug/baleen FOLDER ...

Compares each folder with `baleen score` on random tokens: logits, experts and selected keys. Exits 1 where logits
differ by more than 1e-4 or any choice differs. Where transformers ignores the indexer, attention is dense.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-4
SEQUENCES, LENGTH = 4, 48


def load(folder):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True)
    return model.eval(), sorted(report["unexpected_keys"]), sorted(report["missing_keys"])


def print_logits(folder, tokens):
    model, ignored, missing = load(folder)
    if not tokens:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokens = tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is 2 + 3?"}], add_generation_prompt=True, return_dict=True)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].tolist()
    json.dump({"class": type(model).__name__, "ignored": ignored, "missing": missing, "tokens": tokens, "logits": logits},
              sys.stdout)
    print()
    return not missing


class Choices:
    """What the model's routers and indexers choose in one pass: [layers][T] sorted lists."""

    def __init__(self, model):
        self.experts, self.selected = [], []
        self.hooks = []
        for module in model.modules():
            kind = type(module).__name__.lower()
            if kind.endswith("topkrouter"):
                self.hooks.append(module.register_forward_hook(
                    lambda _, inputs, output: self.experts.append(output[2].sort(-1).values.tolist())))
            elif kind.endswith("indexer"):
                self.hooks.append(module.register_forward_hook(
                    lambda _, inputs, output: self.selected.append(
                        [sorted(s for s in row if s <= t) for t, row in enumerate(output[0].tolist())])))

    def remove(self):
        for hook in self.hooks:
            hook.remove()


def expected(model, tokens):
    """Logits [T, vocab], experts and selected keys."""
    choices = Choices(model)
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    choices.remove()
    return logits, choices


def scored(baleen, folder, sequences, dense):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps({"tokens": tokens}) + "\n" for tokens in sequences)
        file.flush()
        command = [baleen, "score", str(folder), "--input", file.name, "--dtype", "f32", "--logits", "--routing", "--selected"]
        command += ["--attention", "dense"] if dense else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def share_equal(found, wanted):
    """Share of (layer, token) pairs where both chose the same."""
    pairs = [(sorted(a), b) for layer, other in zip(found or [], wanted, strict=True)
             for a, b in zip(layer, other, strict=True)]
    return 1.0 if not pairs else sum(a == b for a, b in pairs) / len(pairs)


def compare(baleen, folder):
    """Prints one line; whether all is well."""
    model, ignored, missing = load(folder)
    config = model.config
    generator = torch.Generator().manual_seed(0)
    length = min(LENGTH, config.max_position_embeddings)
    sequences = torch.randint(config.vocab_size, (SEQUENCES, length), generator=generator).tolist()
    found = scored(baleen, folder, sequences, dense=bool(ignored))
    worst, experts, selected = 0.0, 1.0, 1.0
    for tokens, line in zip(sequences, found, strict=True):
        logits, choices = expected(model, tokens)
        worst = max(worst, float((logits - torch.tensor(line["logits"])).abs().max()))
        has_indexer = hasattr(config, "index_topk") and not ignored
        if bool(choices.experts) != ("routing" in line) or bool(choices.selected) != has_indexer:
            sys.exit(f"{folder}: experts or keys were recorded on one side only")
        experts = min(experts, share_equal(line.get("routing"), choices.experts))
        if has_indexer:
            selected = min(selected, share_equal(line.get("selected"), choices.selected))
    print(f"{folder}: {type(model).__name__}, logits differ by {worst:.1e}, equal experts {experts:.4f}, equal keys "
          f"{selected:.4f}, ignored tensors {len(ignored)}, missing {missing}")
    return worst <= TOLERANCE and experts == 1.0 and selected == 1.0 and not missing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baleen", type=pathlib.Path, metavar="PROGRAM")
    parser.add_argument("folder")
    parser.add_argument("rest", nargs="*", help="tokens, or with --baleen further folders")
    args = parser.parse_args()
    if args.baleen:
        results = [compare(args.baleen.resolve(), folder) for folder in [args.folder, *args.rest]]
        sys.exit(0 if all(results) else 1)
    sys.exit(0 if print_logits(args.folder, [int(token) for token in args.rest]) else 1)


main()
