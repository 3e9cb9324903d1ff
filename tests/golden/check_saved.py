"""Loads model folders with transformers and compares the logits with those expected.

    python tests/golden/check_saved.py FOLDER [FOLDER ...]

A folder named like one in families/ is compared with its expected.json; another brings an expected.json of its own with
`tokens` and `logits`. Every tensor must be used and none missing. Exits 1 when logits differ by more than 1e-4.
To prove what baleen saves:

    python tests/golden/make_families.py --folders runs/families
    for NAME in runs/families/*; do baleen import $NAME runs/saved/$(basename $NAME); done
    python tests/golden/check_saved.py runs/saved/*
"""
import json
import pathlib
import sys

import torch
import transformers

FAMILIES = pathlib.Path(__file__).parent / "families"


def difference(folder):
    own = folder / "expected.json"
    expected = json.loads((own if own.exists() else FAMILIES / folder.name / "expected.json").read_text())
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager",
        output_loading_info=True)
    problems = {kind: names for kind, names in info.items() if names}
    assert not problems, (folder, problems)
    with torch.no_grad():
        logits = model.eval()(torch.tensor([expected["tokens"]])).logits[0]
    return float((logits - torch.tensor(expected["logits"])).abs().max())


def main():
    worst = 0.0
    for folder in map(pathlib.Path, sys.argv[1:]):
        found = difference(folder)
        print(f"{folder}: logits differ by {found:.2e}")
        worst = max(worst, found)
    sys.exit(worst > 1e-4)


main()
