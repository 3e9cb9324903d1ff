"""Writes the tiny random checkpoints beside this file, with logits computed by transformers.

    python tests/golden/make_checkpoints.py        (needs torch, transformers 5, safetensors)

Each folder holds config.json, model.safetensors (f32) and expected.json {tokens, logits}: the
logits of one sequence of 12 tokens, [12, vocab_size], eager attention in f32 on the CPU.
"""
import json
import pathlib
import shutil

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

HERE = pathlib.Path(__file__).parent
TOKENS = [1, 17, 42, 5, 93, 17, 60, 8, 8, 71, 33, 2]
SHARED = dict(vocab_size=96, hidden_size=32, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=256, rms_norm_eps=1e-5, bos_token_id=1, hidden_act="silu",
              initializer_range=0.2, attn_implementation="eager")

MODELS = {
    "tiny_llama": (LlamaForCausalLM, LlamaConfig(
        **SHARED, num_hidden_layers=2, intermediate_size=40, eos_token_id=2, tie_word_embeddings=False, rope_theta=500.0)),
    # head_dim differs from hidden_size / num_attention_heads, and there are two end-of-sequence ids.
    "tiny_llama_tied": (LlamaForCausalLM, LlamaConfig(
        **SHARED, num_hidden_layers=1, intermediate_size=24, eos_token_id=[2, 3], tie_word_embeddings=True, rope_theta=10000.0,
        head_dim=12)),
    "tiny_mixtral": (MixtralForCausalLM, MixtralConfig(
        **SHARED, num_hidden_layers=2, intermediate_size=16, eos_token_id=2, tie_word_embeddings=False, rope_theta=500.0,
        num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
}

for seed, (name, (cls, config)) in enumerate(MODELS.items()):
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key:  # ones would hide a norm that isn't applied
                weight.uniform_(0.5, 1.5)
        logits = model(torch.tensor([TOKENS])).logits[0]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    expected = {"tokens": TOKENS, "logits": [[round(x, 6) for x in row] for row in logits.tolist()]}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    print(name, sum(p.numel() for p in model.parameters()), "parameters, logits std", float(logits.std()))
