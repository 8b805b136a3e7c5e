"""Data of the tiny models: how far each size shrinks, and what single families need besides."""

from __future__ import annotations

from typing import Any, Final

VOCABULARY: Final = 64
TRAINED: Final = 32  # tokens
FEWEST_LAYERS: Final = 2
MOST_LAYERS: Final = 4

# The largest value of each key of a config; smaller defaults stay as they are.
_LARGEST: Final[dict[int, str]] = {
    64: """
        router_hidden_size hidden_size d_model n_embd d_embed emb_dim embedding_size embedding_dim
        intermediate_size ffn_dim dim_ff dff d_ff d_inner ffn_hidden_size
        encoder_ffn_dim decoder_ffn_dim mlp_dim feed_forward_size expert_ffn_hidden_size
        moe_intermediate_size shared_expert_intermediate_size
        shared_experts_intermediate_size moe_shared_expert_intermediate_size
        dense_intermediate_size intermediate_size_mlp shared_intermediate_size
        nffn_hidden_size lru_width word_embed_proj_dim out_hidden_size output_channels
        input_embedding_size output_embedding_size input_size hidden_size_global
        projector_input_dim projector_output_dim vision_output_dim prompt_mid_dim
        pronunciation_embed_dim shape_embed_dim adapter_in_dim adapter_input_size
        adapter_out_dim ext_pw_out_channel depthwise_separable_out_channel mamba_d_ssm
        """,
    32: """
        position_bias_num_buckets image_size
        max_source_positions max_target_positions max_position_embeddings max_seq_len
        n_positions n_ctx model_max_length original_max_position_embeddings
        max_positions context_length floor_scale num_position_embeddings
        """,
    16: """
        head_dim kv_channels v_head_dim qk_head_dim swa_head_dim d_kv d_head dim_head
        attention_head_size sliding_window kv_lora_rank q_lora_rank o_lora_rank
        attention_window_size local_attention_window_len window_size index_head_dim
        sliding_window_size attention_chunk_size keep_window_size local_attention
        index_n_heads
        num_mel_bins num_filters base_channels mamba_d_state state_size ssm_state_size
        mamba_d_head mamba_head_dim mamba_headdim linear_key_head_dim
        linear_value_head_dim linear_head_dim mamba_chunk_size chunk_size hc_lowrank
        laurel_rank hidden_size_per_layer_input adapter_rank time_step_rank
        mamba_dt_rank nemo_conv_channels rel_extent codebook_size codebook_dim
        vector_quantization_hidden_dimension block_multiple_of query_pre_attn_scalar
        """,
    8: """
        qk_nope_head_dim qk_rope_head_dim rotary_dim mamba_n_heads mamba_num_heads
        num_quantizers num_buckets d_rel index_topk index_block_size
        """,
    4: """
        num_attention_heads n_head n_heads num_heads encoder_attention_heads
        decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads
        attention_heads swa_num_attention_heads linear_num_value_heads linear_num_heads
        num_experts num_local_experts n_routed_experts moe_num_experts
        patch_size
        """,
    2: """
        num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads
        index_topk_blocks num_query_groups num_experts_per_tok num_experts_per_token moe_topk moe_k
        zero_expert_num n_group n_groups num_expert_group encoder_layers decoder_layers
        num_encoder_layers num_decoder_layers depth num_blocks num_global_layers
        global_attn_every_n_layers sliding_window_pattern attn_layer_period
        layer_group_size num_kv_shared_layers num_codebooks num_random_blocks
        """,
    1: """
        first_k_dense_replace num_dense_layers attn_layer_offset topk_group
        n_shared_experts num_shared_experts moe_num_shared_experts o_groups
        """,
}
LARGEST: Final = {key: size for size, keys in _LARGEST.items() for key in keys.split()}

# What counts the layers of a config, and lists of the numbers of some of its layers.
LAYERS: Final = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
LAYER_NUMBERS: Final = (
    "cross_attention_layers",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "mlp_only_layers",
    "moe_layers",
)

# The ids of special tokens; all others become 0, so that ids from 3 on are plain words.
SPECIAL: Final = {"pad": 0, "bos": 1, "eos": 2}

# What the rules above do not do: what a default leaves out although its own model needs it, kinds
# of layers that a default does not show, and sizes that depend on each other.
_OFFSET: Final = {"max_position_embeddings": TRAINED + 2}  # a row for padding, one to look ahead
_ROPE: Final = {"rope_type": "default", "rope_theta": 10000.0}
_EXPERTS: Final = {"n_routed_experts": 4, "num_experts_per_tok": 2}
_BOTH: Final = {"layer_types": ["full_attention", "sliding_attention"]}
_INDEXER: Final = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_SPARSE: Final = {"layer_types": ["full_attention", "minimax_m3_sparse"]}
_LATENT: Final = {
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16, "swa_head_dim": 16, "swa_qk_nope_head_dim": 12, "swa_v_head_dim": 16,
}  # fmt: skip
FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "bamba": {"attn_layer_indices": [1]},
    "camembert": _OFFSET,
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {**_ROPE, "mrope_section": [4, 2, 2]},
            "full_attention": None,
        },
    },
    "data2vec-text": _OFFSET,
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0, "kv_n_heads": 2}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {
        "head_dim": 64,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "dots1": {**_EXPERTS, **_BOTH, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note": {"text_config": _LATENT},
    "dots3_note_text": _LATENT,
    "gemma4": {"text_config": {"global_head_dim": 32}},
    "gemma4_text": {"global_head_dim": 32},
    "gemma4_unified": {"text_config": {"global_head_dim": 32}},
    "gemma4_unified_text": {"global_head_dim": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite_swa": {"layer_rope_theta": None},  # follows from the other settings
    "granitemoe_swa": {"layer_rope_theta": None},
    "granitemoehybrid": {"position_embedding_type": "rope", "layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "jamba": {"use_mamba_kernels": False},
    "laguna": _BOTH,
    "lfm2": {"full_attn_idxs": [1]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "mellum": _BOTH,
    "mimo_v2_flash": {"head_dim": 24, "v_head_dim": 24},  # a third of it rotates
    "minimax_m3_vl": {"text_config": _SPARSE},
    "minimax_m3_vl_text": _SPARSE,
    "ministral": {"head_dim": 16},
    "modernbert-decoder": {"local_attention": 16},
    "moshi": {"sliding_window": 128},  # its cache forgets what its masks still show
    "nemotron": {"num_key_value_heads": 2},
    "prophetnet": _OFFSET,
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "axial_pos_shape": [4, 8], "axial_pos_embds_dim": [16, 48]},
    "roberta": _OFFSET,
    "roberta-prelayernorm": _OFFSET,
    "roformer": {"is_decoder": True},
    "xlm-prophetnet": _OFFSET,
    "xlm-roberta": _OFFSET,
    "xlm-roberta-xl": _OFFSET,
    "xlstm": {"chunk_size": 64},
    "xmod": {**_OFFSET, "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "use_mamba_kernels": False,
    },
    "zamba2": {"use_mem_rope": True},
    "zaya": {"layer_types": ["hybrid", "hybrid_sliding"], "sliding_window": 16},
}

# The same for transformers 4.
_VISION: Final = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 4, "crop_size": 32, "image_token_id": 0,
}  # fmt: skip
_AUDIO: Final = {
    "hidden_size": 64, "intermediate_size": 64, "num_blocks": 2, "num_attention_heads": 4,
    "ext_pw_out_channel": 64, "depthwise_separable_out_channel": 64, "nemo_conv_channels": 16,
    "audio_token_id": 0,
}  # fmt: skip
OLD_FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "mllama": {"text_config": {"rope_scaling": {"rope_type": "default"}}},
    "phi4_multimodal": {"vision_config": _VISION, "audio_config": _AUDIO},
}
