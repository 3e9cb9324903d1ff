"""The tiny models of make_families.py: config.json as the families' releases spell it. Sizes differ from one another
wherever they may, so that no two can be confused; norms' epsilons are large where two of them differ."""

SMALL = dict(vocab_size=96, hidden_size=32, hidden_act="silu", initializer_range=0.02, use_cache=True,
             torch_dtype="bfloat16", attention_dropout=0.0)

# head_dim where it is not hidden_size / num_attention_heads, in the families that allow it.
LLAMA = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", **SMALL, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=500.0,
    rope_scaling=None, attention_bias=False, mlp_bias=False, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
QWEN2 = dict(
    architectures=["Qwen2ForCausalLM"], model_type="qwen2", **SMALL, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, max_window_layers=2, rms_norm_eps=1e-6,
    rope_theta=1000000.0, sliding_window=128, use_sliding_window=False, tie_word_embeddings=True, bos_token_id=0,
    eos_token_id=1)
QWEN3 = dict(
    architectures=["Qwen3ForCausalLM"], model_type="qwen3", **SMALL, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=12, max_position_embeddings=128, max_window_layers=2,
    rms_norm_eps=1e-6, rope_theta=1000000, rope_scaling=None, sliding_window=None, use_sliding_window=False,
    attention_bias=False, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1)
MIXTRAL = dict(
    architectures=["MixtralForCausalLM"], model_type="mixtral", **SMALL, intermediate_size=20, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=6, num_experts_per_tok=2, max_position_embeddings=128,
    rms_norm_eps=1e-5, rope_theta=1000000.0, sliding_window=None, output_router_logits=False, router_aux_loss_coef=0.02,
    tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
QWEN3_MOE = dict(
    architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", **SMALL, intermediate_size=40, moe_intermediate_size=20,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12, num_experts=8, num_experts_per_tok=3,
    norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], max_position_embeddings=128, max_window_layers=2,
    rms_norm_eps=1e-6, rope_theta=1000000.0, rope_scaling=None, sliding_window=None, use_sliding_window=False,
    attention_bias=False, output_router_logits=False, router_aux_loss_coef=0.001, tie_word_embeddings=False, bos_token_id=0,
    eos_token_id=1)

# YaRN's ramp lies within the four frequencies, and sequences are longer than the original context.
YARN = dict(type="yarn", factor=4, original_max_position_embeddings=32, beta_fast=32, beta_slow=1, mscale=1.0,
            mscale_all_dim=1.0)
MLA = dict(
    **SMALL, intermediate_size=40, moe_intermediate_size=20, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10,
    n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3, n_group=4, topk_group=2, norm_topk_prob=True,
    routed_scaling_factor=2.5, scoring_func="sigmoid", topk_method="noaux_tc", first_k_dense_replace=1, moe_layer_freq=1,
    ep_size=1, max_position_embeddings=128, rms_norm_eps=1e-6, rope_theta=100, rope_scaling=YARN, attention_bias=False,
    tie_word_embeddings=False, num_nextn_predict_layers=1, bos_token_id=0, eos_token_id=1)
INDEXER = dict(index_n_heads=32, index_head_dim=16, index_topk=8)

# mscale and mscale_all_dim differ: a factor on cos and sin. Two shared experts.
DEEPSEEK_V3 = {
    **MLA, "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "n_shared_experts": 2,
    "rope_scaling": {**YARN, "mscale_all_dim": 0.8}}
DEEPSEEK_V32 = {**MLA, **INDEXER, "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32"}
# No groups, plain RoPE, values wider than keys, as in the releases. The norms of the latents keep the epsilon 1e-6.
GLM_MOE_DSA = {
    **{key: value for key, value in MLA.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")}, **INDEXER,
    "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "dtype": "bfloat16", "n_group": 1,
    "topk_group": 1, "v_head_dim": 24, "rms_norm_eps": 0.01, "rope_parameters": {"rope_theta": 100, "rope_type": "default"},
    "rope_interleave": True, "indexer_rope_interleave": True, "eos_token_id": [1, 2]}
# Matrices of several blocks of 128 x 128 whose last blocks are partial.
DEEPSEEK_V32_FP8 = {
    **DEEPSEEK_V32, "hidden_size": 160, "intermediate_size": 200, "moe_intermediate_size": 136, "num_hidden_layers": 2,
    "q_lora_rank": 40, "kv_lora_rank": 136, "num_experts_per_tok": 2,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                            "weight_block_size": [128, 128]}}

# So few keys that attention gathers them: more than 8 keys for each selected one.
DEEPSEEK_V32_FEW_KEYS = {**DEEPSEEK_V32, "num_hidden_layers": 2, "index_topk": 4}

CONFIGS = {
    "llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, "mixtral": MIXTRAL, "qwen3_moe": QWEN3_MOE, "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v32": DEEPSEEK_V32, "glm_moe_dsa": GLM_MOE_DSA, "deepseek_v32_fp8": DEEPSEEK_V32_FP8,
    "deepseek_v32_few_keys": DEEPSEEK_V32_FEW_KEYS,
}
