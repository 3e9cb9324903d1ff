"""One forward pass of a transformers model, and what its routers and indexers chose on the way."""
import dataclasses

import torch
from transformers.models.deepseek_v32 import modeling_deepseek_v32
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa


@dataclasses.dataclass
class Seen:
    """T tokens. `experts` [MoE layers][T][top_k] and `selected` [layers][T][..] are ascending; `indexer_kl` is [layers][T],
    `index_scores` [layers] of [T, T], `hidden` [layers] of [T, hidden_size], what each layer returns."""
    logits: torch.Tensor
    experts: list
    selected: list
    margins: dict
    indexer_kl: torch.Tensor
    index_scores: list
    hidden: list


def observe(model, tokens, index_topk=None, dense_layers=None, other_rotation=False, experts=None):
    """The pass over one sequence. `index_topk` replaces the model's own, in all layers or in `dense_layers`;
    `other_rotation` swaps the layout in which the indexer rotates: half-split for interleaved and back. `experts`, as
    `Seen` has them, are taken instead of those that the routers choose."""
    routers = modules(model, "topkrouter")
    indexers = modules(model, "indexer")
    routed, scores, chosen = [], [], []
    hooks = [router.register_forward_hook(lambda module, inputs, output: routed.append((module, inputs[0], output)))
             for router in routers]
    for router, ids in zip(routers, experts or []):
        hooks.append(router.register_forward_hook(lambda module, _, output, ids=ids: forced(module, output, ids)))
    own_topk = [indexer.index_topk for indexer in indexers]
    layers = modules(model, "decoderlayer")
    outputs = {}
    hooks += [layer.register_forward_hook(lambda module, inputs, output: outputs.setdefault(module, output))
              for layer in layers]
    for layer, indexer in enumerate(indexers):
        if index_topk and (dense_layers is None or layer in dense_layers):
            indexer.index_topk = index_topk
        indexer.forward = spied(indexer.forward, scores, chosen, other_rotation)
    try:
        with torch.no_grad():
            output = model(torch.tensor([tokens]), output_attentions=True, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        for indexer, topk in zip(indexers, own_topk):
            indexer.index_topk = topk
            del indexer.forward
    margins = {}
    for router, hidden, (_, _, experts) in routed:
        for kind, margin in router_margins(router, hidden).items():
            margins[kind] = min(margin, margins.get(kind, margin))
    visible = [[sorted(s for s in row if s <= t) for t, row in enumerate(rows)] for rows in chosen]
    if indexers:
        margins["keys"] = min(key_margin(rows, indexers[0].index_topk) for rows in scores)
    return Seen(
        logits=output.logits[0].float(),
        experts=[torch.sort(experts.reshape(len(tokens), -1)).values.tolist() for _, _, (_, _, experts) in routed],
        selected=visible,
        margins=margins,
        indexer_kl=torch.stack([kl(*layer) for layer in zip(output.attentions, scores, visible)]) if indexers else None,
        index_scores=scores,
        hidden=[(output[0] if isinstance(output, tuple) else output).reshape(len(tokens), -1)
                for output in map(outputs.get, layers)],
    )


def modules(model, kind):
    return [module for module in model.modules() if type(module).__name__.lower().endswith(kind)]


def spied(forward, scores, chosen, other_rotation):
    """`forward` of an indexer that also appends what it hands to topk and what it returns."""
    def run(*args, **kwargs):
        caught, topk = [], torch.Tensor.topk
        torch.Tensor.topk = lambda values, *a, **k: caught.append(values.clone()) or topk(values, *a, **k)
        v32, glm = modeling_deepseek_v32, modeling_glm_moe_dsa
        half_split, interleaved = v32.apply_rotary_pos_emb, glm.apply_rotary_pos_emb_interleave
        if other_rotation:
            v32.apply_rotary_pos_emb, glm.apply_rotary_pos_emb_interleave = interleaved, half_split
        try:
            indices = forward(*args, **kwargs)
        finally:
            torch.Tensor.topk = topk
            v32.apply_rotary_pos_emb, glm.apply_rotary_pos_emb_interleave = half_split, interleaved
        scores.append(caught[-1][0])
        chosen.append(indices[0].tolist())
        return indices
    return run


def key_margin(scores, topk):
    """Least distance between the last visible key selected and the first left out; infinite where all are selected."""
    least = float("inf")
    for t in range(topk, len(scores)):
        ordered = scores[t, :t + 1].sort(descending=True).values
        least = min(least, float(ordered[topk - 1] - ordered[topk]))
    return least


def forced(router, output, experts):
    """What `router` returns, with the given experts and the gates that its scores then mean."""
    logits, gates, _ = output
    experts = torch.tensor(experts)
    is_sigmoid = hasattr(router, "e_score_correction_bias")
    scores = (logits.float().sigmoid() if is_sigmoid else logits.float().softmax(-1)).gather(-1, experts)
    if getattr(router, "norm_topk_prob", True):
        scores = scores / scores.sum(-1, keepdim=True)
    return logits, (scores * getattr(router, "routed_scaling_factor", 1.0)).to(gates.dtype), experts


def router_margins(router, hidden):
    """The same for experts, and for groups of experts where a router limits itself to some."""
    logits = torch.nn.functional.linear(hidden.reshape(-1, hidden.shape[-1]).float(), router.weight.float()).detach()
    gap = lambda values, k: float((values[:, k - 1] - values[:, k]).min())
    bias = getattr(router, "e_score_correction_bias", None)
    if bias is None:
        return {"experts": gap(logits.softmax(-1).sort(-1, descending=True).values, router.top_k)}
    scores = logits.sigmoid() + bias
    groups = scores.reshape(len(scores), router.num_group, -1)
    found = {}
    if router.topk_group < router.num_group:
        best = groups.sort(-1, descending=True).values[..., :2].sum(-1).sort(-1, descending=True)
        found["groups"] = gap(best.values, router.topk_group)
        kept = best.indices[:, :router.topk_group, None].expand(-1, -1, groups.shape[-1])
        scores = groups.gather(1, kept).flatten(1)
    if router.top_k < scores.shape[1]:
        found["experts"] = gap(scores.sort(-1, descending=True).values, router.top_k)
    return found


def kl(attention, scores, visible):
    """KL(p || softmax(scores)) of each query over its keys; p is the mean over heads of `attention` [1][H][T][T]."""
    rows = []
    for t, keys in enumerate(visible):
        p = attention[0, :, t, keys].double().mean(0)
        p = p / p.sum()
        q = scores[t, keys].double().log_softmax(-1)
        rows.append((p * (p.clamp_min(1e-300).log() - q)).sum())
    return torch.stack(rows)
