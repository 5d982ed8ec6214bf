"""A Gemma 3 text model: its config, the layout of its weights, its SentencePiece tokenizer.

GGUF leaves out three things that every Gemma 3 shares (Gemma 3 Technical Report, section 2): each sixth
layer attends to everything, the others to a window; the others rotate with base 10,000; queries are
scaled by the width of a head. It stores the norms as the factor, transformers as the factor less one.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import Gemma3TextConfig, PreTrainedTokenizerFast

from tinsmith_worker.prepare.gguf_file import (
    CONTROL,
    GGUF,
    USER_DEFINED,
    Convert,
    FloatArray,
    rename,
)

_GLOBAL_EVERY = 6
_LOCAL_ROPE_BASE = 10_000.0
_SPACE = "▁"  # how SentencePiece writes a space
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def config(file: GGUF) -> Gemma3TextConfig:
    layers, head_dim = file.field("gemma3.block_count"), file.field("gemma3.attention.key_length")
    return Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        vocab_size=len(file.field("tokenizer.ggml.tokens")),
        hidden_size=file.field("gemma3.embedding_length"),
        intermediate_size=file.field("gemma3.feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=file.field("gemma3.attention.head_count"),
        num_key_value_heads=file.field("gemma3.attention.head_count_kv"),
        head_dim=head_dim,
        query_pre_attn_scalar=head_dim,
        max_position_embeddings=file.field("gemma3.context_length"),
        sliding_window=file.field("gemma3.attention.sliding_window"),
        layer_types=[
            "sliding_attention" if (layer + 1) % _GLOBAL_EVERY else "full_attention"
            for layer in range(layers)
        ],
        rms_norm_eps=float(file.field("gemma3.attention.layer_norm_rms_epsilon")),
        rope_parameters={
            "full_attention": {
                "rope_type": "default",
                "rope_theta": float(file.field("gemma3.rope.freq_base")),
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": _LOCAL_ROPE_BASE},
        },
        tie_word_embeddings=True,
        bos_token_id=file.field("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.field("tokenizer.ggml.eos_token_id"),
        pad_token_id=file.field("tokenizer.ggml.padding_token_id"),
        dtype="float32",
    )


def weight_names(file: GGUF) -> Convert:
    def convert(name: str, array: FloatArray) -> tuple[str, FloatArray]:
        return rename(name, _LAYER, _TOP), array - 1 if name.endswith("norm.weight") else array

    return convert


def tokenizer(file: GGUF) -> PreTrainedTokenizerFast:
    """BPE over characters, bytes where a character is unknown; it begins every text with <bos>."""
    tokens, kinds = file.field("tokenizer.ggml.tokens"), file.field("tokenizer.ggml.token_type")
    vocab = {token: index for index, token in enumerate(tokens)}
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    whole = [token for token, kind in zip(tokens, kinds, strict=True) if kind == USER_DEFINED]
    named = {
        name: tokens[file.field(f"tokenizer.ggml.{key}_token_id")]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    merges = _merges(tokens, file.field("tokenizer.ggml.scores"), set(special) | set(whole))
    backend = Tokenizer(
        models.BPE(
            vocab=vocab, merges=merges, unk_token=named["unk"], fuse_unk=True, byte_fallback=True
        )
    )
    backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in whole])
    bos = named["bos"]
    backend.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocab[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=named["eos"],
        unk_token=named["unk"],
        pad_token=named["pad"],
        model_max_length=file.field("gemma3.context_length"),
        clean_up_tokenization_spaces=False,
    )


def _merges(tokens: list[str], scores: list[float], indivisible: set[str]) -> list[tuple[str, str]]:
    """Every way to build a token of two others, the best-scored token first.

    SentencePiece joins the neighbours whose union scores best; a list of merges says the same.
    """
    known = {token: rank for rank, token in enumerate(tokens) if token not in indivisible}
    ranked = sorted(known, key=lambda token: (-scores[known[token]], known[token]))
    return [
        (token[:cut], token[cut:])
        for token in ranked
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
