"""Writes tiny_llama_sparse beside this file: a llama with lightning indexers, computed by transformers.

    python tests/golden/make_sparse.py        (needs torch, transformers 5 with deepseek_v32, safetensors)

The layers are transformers' LlamaDecoderLayer, the indexers its DeepseekV32Indexer, whose query
latent is the normalised hidden state here. Layer after layer, the indexer's choice becomes the
attention mask. expected.json holds {tokens, logits [24][vocab_size], selected [layers][24][<= 6]
ascending, interleaved [24][<= 6]}; `interleaved` is what layer 0 would select with interleaved RoPE.
"""
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import DeepseekV32Config, LlamaConfig, LlamaForCausalLM
from transformers.models.deepseek_v32 import modeling_deepseek_v32 as deepseek

HERE = pathlib.Path(__file__).parent
TOPK, HEADS, DIM, LENGTH = 6, 8, 8, 24

torch.manual_seed(10)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=96, hidden_size=32, num_hidden_layers=2, intermediate_size=24, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
    tie_word_embeddings=True, rope_theta=50.0, initializer_range=0.2, attn_implementation="eager")).eval()
config = DeepseekV32Config(
    hidden_size=32, q_lora_rank=32, qk_rope_head_dim=DIM, index_head_dim=DIM, index_n_heads=HEADS, index_topk=TOPK)
indexers = [deepseek.DeepseekV32Indexer(config, layer) for layer in range(2)]
with torch.no_grad():
    for name, weight in [*model.named_parameters(), *(p for i in indexers for p in i.named_parameters())]:
        if name.endswith("bias"):
            weight.normal_(0, 0.2)
        elif "norm" in name:  # ones would hide a norm that isn't applied
            weight.uniform_(0.5, 1.5)
        elif any(part in name for part in ("wq_b", "wk", "weights_proj")):
            weight.normal_(0, 0.2)
tokens = torch.randint(3, 96, (1, LENGTH))
causal = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
# The indexer's rotation must have its own width; the base is the model's.
positions = torch.arange(LENGTH)[None]
angles = positions[0, :, None] * 50.0 ** (-torch.arange(0, DIM, 2) / DIM)
angles = torch.cat([angles, angles], -1)[None]
index_rotation = (angles.cos(), angles.sin())


def rows(chosen):
    """Ascending keys of each query, the invisible ones that fill up short rows left out."""
    return [sorted(s for s in row if s <= t) for t, row in enumerate(chosen[0].tolist())]


def scores_of(indexer, h):
    """Index scores of visible keys [24][24], -inf elsewhere: what the indexer hands to topk."""
    caught = []
    topk = torch.Tensor.topk
    torch.Tensor.topk = lambda scores, *args, **kwargs: caught.append(scores.clone()) or topk(scores, *args, **kwargs)
    try:
        indexer(h, h, index_rotation, causal, positions)
    finally:
        torch.Tensor.topk = topk
    return caught[0][0]


def margin(scores):
    """Least distance between the last score selected and the first one left out. topk promises no order among ties."""
    ordered = scores.sort(-1, descending=True).values[TOPK:]
    return float((ordered[:, TOPK - 1] - ordered[:, TOPK]).min())


def interleaved(q, k, cos, sin, unsqueeze_dim):
    return deepseek.apply_rotary_pos_emb_interleave(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)


selected, other, margins = [], None, []
with torch.no_grad():
    x = model.model.embed_tokens(tokens)
    main_rotation = model.model.rotary_emb(x, position_ids=positions)
    for layer, indexer in zip(model.model.layers, indexers):
        h = layer.input_layernorm(x)
        margins.append(margin(scores_of(indexer, h)))
        choose = lambda: rows(indexer(h, h, index_rotation, causal, positions))
        selected.append(choose())
        if other is None:
            half_split, deepseek.apply_rotary_pos_emb = deepseek.apply_rotary_pos_emb, interleaved
            other = choose()
            deepseek.apply_rotary_pos_emb = half_split
        mask = torch.full((LENGTH, LENGTH), float("-inf"))
        for t, keys in enumerate(selected[-1]):
            mask[t, keys] = 0.0
        out = layer(x, attention_mask=mask[None, None], position_ids=positions, position_embeddings=main_rotation)
        x = out[0] if isinstance(out, tuple) else out
    logits = model.lm_head(model.model.norm(x))[0]
    dense = model(tokens).logits[0]

folder = HERE / "tiny_llama_sparse"
shutil.rmtree(folder, ignore_errors=True)
model.save_pretrained(folder)
(folder / "generation_config.json").unlink(missing_ok=True)
path = folder / "config.json"
path.write_text(json.dumps({**json.loads(path.read_text()), "index_n_heads": HEADS, "index_head_dim": DIM,
                            "index_topk": TOPK}, indent=2) + "\n")
tensors = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
for layer, indexer in enumerate(indexers):
    for name, weight in indexer.state_dict().items():
        tensors[f"model.layers.{layer}.self_attn.indexer.{name.replace('wq_b', 'wq')}"] = weight
save_file({name: weight.contiguous() for name, weight in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
expected = {"tokens": tokens[0].tolist(), "logits": [[round(v, 6) for v in row] for row in logits.tolist()],
            "selected": selected, "interleaved": other}
(folder / "expected.json").write_text(json.dumps(expected) + "\n")
print("margins of the selection", margins)
assert min(margins) > 1e-3, "a near tie: another seed"
print("dense against sparse", float((dense - logits).abs().max()), "logits std", float(logits.std()))
print("rows that interleaving changes", sum(a != b for a, b in zip(selected[0], other)), "of", LENGTH)
