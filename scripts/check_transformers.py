#!/usr/bin/env python3
"""Loads a model folder with transformers and prints its logits as JSON: a manual proof that other
tools read what `baleen` writes. Needs torch, transformers, safetensors.

    scripts/check_transformers.py FOLDER [TOKEN ...]       e.g. runs/import 1 17 42

Prints {"class", "ignored", "missing", "tokens", "logits" [tokens][vocab]} with f32 weights on the
CPU. "ignored" lists tensors that transformers does not know (an indexer's); "missing" must be empty.
Without tokens, the folder's tokenizer encodes a short conversation, which also checks the tokenizer
and its chat template.
"""
import argparse
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
parser.add_argument("folder")
parser.add_argument("tokens", nargs="*", type=int)
args = parser.parse_args()

model, report = AutoModelForCausalLM.from_pretrained(
    args.folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True)
tokens = args.tokens
if not tokens:
    tokenizer = AutoTokenizer.from_pretrained(args.folder, local_files_only=True)
    tokens = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2 + 3?"}], add_generation_prompt=True, return_dict=True)["input_ids"]
with torch.no_grad():
    logits = model.eval()(torch.tensor([tokens])).logits[0].tolist()
json.dump({"class": type(model).__name__, "ignored": sorted(report["unexpected_keys"]),
           "missing": sorted(report["missing_keys"]), "tokens": tokens, "logits": logits}, sys.stdout)
print()
sys.exit(1 if report["missing_keys"] else 0)
