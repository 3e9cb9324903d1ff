"""Weights that a formula gives, so that no weight file is needed. formula_weights.rs is the same in Rust.

    h = FNV-1a 64 of the text "SEED:NAME";   b_i = top byte of splitmix64's i-th output from state h, i = 0, 1, ... row-major
    u_i = (2 b_i - 255) / 256, within (-1, 1)

    *norm.weight          0.5 + floor(b / 2) / 128, within [0.5, 1.5)
    *bias                 u / 4
    *embed_tokens.weight  u
    FP8 matrices          the e4m3 number with the bits b; NaN (0x7f, 0xff) becomes the largest number (0x7e, 0xfe)
    *weight_scale_inv     (1 + b / 256) 2^(-7 - floor(floor(log2 columns) / 2)), one a block of 128 x 128
    any other matrix      u 2^(1 - floor(floor(log2 columns) / 2)); columns = inputs of the matrix

All but FP8 times its scale are bf16 numbers, so a model in bf16 has exactly the weights of the one in f32. What has a
sibling `_scale_inv` is FP8.
"""
import numpy as np
import torch

MASK = (1 << 64) - 1
FNV_START, FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3
BLOCK = 128


def random_bytes(seed, name, count):
    """The b_i of one tensor."""
    h = FNV_START
    for byte in f"{seed}:{name}".encode():
        h = ((h ^ byte) * FNV_PRIME) & MASK
    z = np.uint64(h) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(56)).astype(np.float64)


def half_log2(columns):
    return (columns.bit_length() - 1) // 2


def tensor(seed, name, shapes):
    """Tensor `name` as it is stored: bf16, f32 (correction biases and scales) or e4m3."""
    shape = shapes[name]
    b = torch.from_numpy(random_bytes(seed, name, torch.Size(shape).numel())).reshape(shape)
    u = (2 * b - 255) / 256
    if f"{name}_scale_inv" in shapes:
        bits = b.to(torch.uint8)
        return torch.where(bits & 0x7F == 0x7F, bits ^ 1, bits).view(torch.float8_e4m3fn)
    if name.endswith("_scale_inv"):
        columns = shapes[name.removesuffix("_scale_inv")][1]
        return ((1 + b / 256) * 2.0 ** (-7 - half_log2(columns))).float()
    if name.endswith("norm.weight"):
        return (0.5 + (b / 2).floor() / 128).bfloat16()
    if name.endswith("bias"):
        return (u / 4).to(torch.float32 if "correction" in name else torch.bfloat16)
    if name.endswith("embed_tokens.weight"):
        return u.bfloat16()
    return (u * 2.0 ** (1 - half_log2(shape[-1]))).bfloat16()


def tensors(seed, shapes):
    return {name: tensor(seed, name, shapes) for name in shapes}


def dequantized(stored):
    """`stored` without FP8: W[r, c] = e4m3[r, c] scale_inv[r // 128, c // 128], exact in f32."""
    plain = {}
    for name, weight in stored.items():
        if name.endswith("_scale_inv"):
            continue
        scale = stored.get(f"{name}_scale_inv")
        if scale is not None:
            rows, columns = weight.shape
            blocks = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
            weight = weight.float() * blocks
        plain[name] = weight
    return plain


def checksum(stored):
    """FNV-1a 64 of the tensors' bytes as they lie in a file, one tensor after the other by name, in hexadecimal."""
    h = FNV_START
    for name in sorted(stored):
        for byte in stored[name].contiguous().view(torch.uint8).numpy().tobytes():
            h = ((h ^ byte) * FNV_PRIME) & MASK
    return f"{h:016x}"
