"""Writes formula_v32.json beside this file: a tiny DeepSeek-V3.2 whose weights are sines, computed by transformers.

    python tests/golden/make_formula_v32.py        (needs torch and transformers 5 with deepseek_v32)

With n the place of a name among the sorted names of the checkpoint, from 0, and i counting a tensor's values row by row,
v = sin(0.37 (i + 1) (1 + 0.01 (n + 1)) + 1.7 (n + 1)): norms are 1 + 0.1 v, biases 0.1 v, the embedding v, other matrices
1.2 v / sqrt(columns). Everything is eager f32 on the CPU. Rows are tokens; index scores of keys to come are null.
`dense_kl` of a layer has dense attention in that layer alone. `quantised_index_scores` are those of layer 0 with queries and
keys that passed a Hadamard transform and were rounded to e4m3, one scale a vector: `ue8m0` powers of two, `f32` amax / 448.
"""
import json
import pathlib

import torch
import transformers
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Indexer

from make_families import load, stored_shapes
from family_configs import DEEPSEEK_V32
from observe import observe

TOKENS = [0, 5, 17, 42, 3, 60, 9, 33, 21, 8, 50, 12]
CONFIG = {
    **DEEPSEEK_V32, "vocab_size": 64, "intermediate_size": 48, "moe_intermediate_size": 16, "q_lora_rank": 16,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "num_experts_per_tok": 2, "index_n_heads": 4, "index_topk": 4,
    "max_position_embeddings": 163840, "rope_theta": 10000,
    "rope_scaling": {**DEEPSEEK_V32["rope_scaling"], "factor": 40, "original_max_position_embeddings": 4096}}


def sine_tensors(shapes):
    out = {}
    for n, name in enumerate(sorted(shapes)):
        i = torch.arange(torch.Size(shapes[name]).numel(), dtype=torch.float64)
        v = torch.sin(0.37 * (i + 1) * (1 + 0.01 * (n + 1)) + 1.7 * (n + 1)).reshape(shapes[name])
        if name.endswith("norm.weight"):
            v = 1 + 0.1 * v
        elif name.endswith("bias"):
            v = 0.1 * v
        elif not name.endswith("embed_tokens.weight"):
            v = v * 1.2 / shapes[name][1] ** 0.5
        out[name] = v.float()
    return out


def e4m3(x, scale_format):
    """H x / sqrt(n) as an FP8 kernel holds it, multiplied out."""
    hadamard = torch.ones(1, 1)
    while len(hadamard) < x.shape[-1]:
        hadamard = torch.kron(torch.tensor([[1., 1.], [1., -1.]]), hadamard)
    x = x @ hadamard / len(hadamard) ** 0.5
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 448
    if scale_format == "ue8m0":
        scale = 2 ** scale.log2().ceil()
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


def quantised_scores(model, scale_format):
    """Index scores of layer 0 when the indexers' queries and keys are rounded before their product."""
    plain, matmul = DeepseekV32Indexer.forward, torch.matmul

    def forward(*args, **kwargs):
        def product(queries, keys):
            torch.matmul = matmul
            keys = e4m3(keys.transpose(-1, -2), scale_format).transpose(-1, -2)
            return matmul(e4m3(queries, scale_format), keys)

        torch.matmul = product
        return plain(*args, **kwargs)

    DeepseekV32Indexer.forward = forward
    try:
        return observe(model, TOKENS).index_scores[0]
    finally:
        DeepseekV32Indexer.forward = plain


def rounded(values):
    return [round(value, 6) for value in values.tolist()]


def main():
    torch.set_num_threads(1)
    shapes, _ = stored_shapes(CONFIG)
    model = load(CONFIG, sine_tensors(shapes), torch.float32)
    seen = observe(model, TOKENS)
    print("margins", seen.margins)
    assert min(seen.margins.values()) > 1e-4
    layers = range(CONFIG["num_hidden_layers"])
    losses = {}
    for layer in layers:
        dense = observe(model, TOKENS, index_topk=len(TOKENS), dense_layers=[layer])
        losses[f"dense_kl_per_row_layer{layer}"] = dense.indexer_kl[layer].tolist()
        losses[f"sparse_kl_per_row_layer{layer}"] = seen.indexer_kl[layer].tolist()
    dense = observe(model, TOKENS, index_topk=len(TOKENS))
    causal = lambda scores: [rounded(row[:t + 1]) + [None] * (len(row) - t - 1) for t, row in enumerate(scores)]
    values = {
        "made_by": f"tests/golden/make_formula_v32.py, transformers {transformers.__version__}, torch {torch.__version__}",
        "input_ids": TOKENS,
        "tensor_order": sorted(shapes),
        "logits": [rounded(row) for row in seen.logits],
        "yarn_inv_freq": model.model.rotary_emb.inv_freq.tolist(),
        "softmax_scale": model.model.layers[0].self_attn.scaling,
        "selected": {f"layer{layer}": seen.selected[layer] for layer in layers},
        "index_scores": {f"layer{layer}": causal(seen.index_scores[layer]) for layer in layers},
        "quantised_index_scores": {kind: causal(quantised_scores(model, kind)) for kind in ("ue8m0", "f32")},
        "experts": {f"layer{layer + 1}": rows for layer, rows in enumerate(seen.experts)},
        "hidden_last_token": {f"layer{layer}": rounded(seen.hidden[layer][-1]) for layer in layers},
        "dsa_losses": losses,
        "last_logits_of_dense_limit": rounded(dense.logits[-1]),
    }
    path = pathlib.Path(__file__).parent / "formula_v32.json"
    path.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in values.items()) + "\n}\n")


main()
