"""Writes families/NAME/{config.json, config_transformers.json, expected.json} beside this file: one tiny model of every
family, computed by transformers.

    python tests/golden/make_families.py [--folders DIR] [NAME ...]

needs torch and transformers 5 (with deepseek_v32 and glm_moe_dsa). The weights come from formula_weights.py. config.json
is spelled as in the family's releases, config_transformers.json as transformers saves it. families/tokenizer.json has
one token a character: id 0 is '!', 93 '~', 94 blank, 95 newline. --folders also writes complete model folders, with
weights and that tokenizer, to DIR/NAME.

expected.json holds, T being the number of tokens and layers counted from 0:
    made_by, seed        versions, and the seed of the weights
    tensors, checksum    names and shapes on disk; hash of all weights
    tokens, logits       [T], [T][vocab_size]: eager attention in f32 on the CPU
    greedy               the most likely tokens that follow, one after the other; none ends the sequence
    experts              [MoE layers][T][top_k], ascending
    selected             [layers][T][<= index_topk], ascending: the keys that attention sees
    other_rotation       [T][..]: what layer 0 would select if the indexer rotated pairs in the other layout
    dense_limit          logits of the last token with index_topk >= T
    indexer_kl           {sparse, dense}: [layers][T], KL(head-mean attention || softmax(index scores)) in nats, over the
                         selected keys, and with dense attention in all layers over all visible keys
    margins              least distance of a chosen score to one left out, of each kind of choice (`greedy`: of logits)
    bf16                 transformers' own bf16 against its f32, max and rms of the logits' difference: `free` as it is,
                         with the share of tokens whose experts or keys differ in some layer; `same_choices` with the
                         experts of f32 and every key attended to
"""
import argparse
import json
import pathlib
import shutil
import tempfile

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

import formula_weights
from family_configs import CONFIGS
from observe import observe

HERE = pathlib.Path(__file__).parent
MIN_MARGIN = 5e-4


def tokens_of(config, count):
    """Arbitrary ids, with repetitions."""
    return [(7 * i * i + 11 * i + 5 * (i % 3)) % config["vocab_size"] for i in range(count)]


def stored_shapes(config):
    """Names and shapes of a checkpoint as transformers saves it, and its own spelling of the config."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        plain = {key: value for key, value in config.items() if key != "quantization_config"}
        write_json(folder / "config.json", plain)
        parsed = transformers.AutoConfig.from_pretrained(folder)
        transformers.AutoModelForCausalLM.from_config(parsed).save_pretrained(folder)
        with safe_open(folder / "model.safetensors", "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
        saved = json.loads((folder / "config.json").read_text())
    if "quantization_config" in config:
        for name, shape in list(shapes.items()):
            if is_fp8(name, shape):
                shapes[f"{name}_scale_inv"] = [-(-size // formula_weights.BLOCK) for size in shape]
    return shapes, saved


def is_fp8(name, shape):
    """Which matrices DeepSeek's releases quantize."""
    high_precision = ("embed_tokens", "lm_head", "mlp.gate.", "weights_proj")
    return len(shape) == 2 and not any(part in name for part in high_precision)


def load(config, tensors, dtype):
    """A model that transformers loads from a folder, all tensors used and none missing."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        plain = {key: value for key, value in config.items() if key != "quantization_config"}
        write_json(folder / "config.json", plain)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager",
            output_loading_info=True)
    problems = {kind: names for kind, names in info.items() if names}
    assert not problems, problems
    return model.eval()


def rounded(rows):
    return [[round(x, 6) for x in row] for row in rows.tolist()]


def expected(name, config, seed):
    """The contents of expected.json, config_transformers.json and the stored tensors; None where a choice is too close, or
    where bf16 is no measure."""
    torch.manual_seed(0)
    shapes, saved = stored_shapes(config)
    stored = formula_weights.tensors(seed, shapes)
    plain = formula_weights.dequantized(stored)
    model = load(config, plain, torch.float32)
    tokens = tokens_of(config, 40 if "index_topk" in config else 24)
    seen = observe(model, tokens)
    greedy, seen.margins["greedy"] = continuation(model, tokens)
    print(f"{name} seed {seed}: margins {seen.margins}, logits std {seen.logits.std():.3f}", flush=True)
    ends = config["eos_token_id"] if isinstance(config["eos_token_id"], list) else [config["eos_token_id"]]
    if min(seen.margins.values()) < MIN_MARGIN or set(greedy) & set(ends):
        return None
    out = {
        "made_by": {"script": "tests/golden/make_families.py", "torch": torch.__version__,
                    "transformers": transformers.__version__},
        "seed": seed, "tensors": shapes, "checksum": formula_weights.checksum(stored),
        "tokens": tokens, "logits": rounded(seen.logits), "greedy": greedy,
    }
    if seen.experts:
        out["experts"] = seen.experts
    if seen.selected:
        out["selected"] = seen.selected
        out["other_rotation"] = observe(model, tokens, other_rotation=True).selected[0]
        dense = observe(model, tokens, index_topk=len(tokens))
        out["dense_limit"] = rounded(dense.logits[-1:])[0]
        out["indexer_kl"] = {"sparse": rounded(seen.indexer_kl), "dense": rounded(dense.indexer_kl)}
        changed = sum(a != b for a, b in zip(seen.selected[0], out["other_rotation"]))
        print("   rows of layer 0 that the other rotation changes", changed, "dense against sparse",
              float((dense.logits - seen.logits).abs().max()))
        assert changed > 0, "the other rotation must change something"
    out["margins"] = seen.margins
    out["bf16"] = bf16_difference(config, plain, tokens, seen, model)
    print("   bf16 against f32", out["bf16"])
    if seen.selected and out["bf16"]["free"]["other_choices"] == 0:
        return None  # By chance no choice flipped: that is no scale for a pass where one does.
    return out, saved, stored


def continuation(model, tokens, count=6):
    """The most likely next tokens without a cache, and how far the second were at least."""
    tokens, margin = list(tokens), float("inf")
    for _ in range(count):
        with torch.no_grad():
            best = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        tokens.append(int(best.indices[0]))
    return tokens[-count:], margin


def bf16_difference(config, plain, tokens, exact, model):
    narrow = load(config, plain, torch.bfloat16)
    found = observe(narrow, tokens)
    choices = lambda seen: list(zip(*seen.experts, *seen.selected))
    other = [a != b for a, b in zip(choices(found), choices(exact))]
    dense = observe(model, tokens, index_topk=len(tokens))
    same = observe(narrow, tokens, index_topk=len(tokens), experts=dense.experts)
    return {"free": {**difference(found, exact), "other_choices": sum(other) / len(tokens)},
            "same_choices": difference(same, dense)}


def difference(found, exact):
    difference = found.logits - exact.logits
    return {"max": difference.abs().max().item(), "rms": difference.square().mean().sqrt().item()}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_expected(path, value):
    """One line a key."""
    lines = [f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def tokenizer():
    symbols = [chr(33 + i) for i in range(94)] + ["\u0120", "\u010a"]
    blanks = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": blanks, "post_processor": None, "decoder": blanks,
            "model": {"type": "BPE", "vocab": {symbol: i for i, symbol in enumerate(symbols)}, "merges": []}}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folders", type=pathlib.Path)
    parser.add_argument("names", nargs="*", default=list(CONFIGS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    (HERE / "families").mkdir(exist_ok=True)
    (HERE / "families/tokenizer.json").write_text(json.dumps(tokenizer()) + "\n")
    for name in arguments.names:
        config = CONFIGS[name]
        made = next(filter(None, (expected(name, config, seed) for seed in range(200))))
        values, saved, stored = made
        folder = HERE / "families" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(folder / "config.json", config)
        write_json(folder / "config_transformers.json", saved)
        write_expected(folder / "expected.json", values)
        if arguments.folders:
            whole = arguments.folders / name
            shutil.copytree(folder, whole, dirs_exist_ok=True)
            shutil.copy(HERE / "families/tokenizer.json", whole)
            save_file(stored, whole / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
