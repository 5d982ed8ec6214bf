"""A Llama model: its config, the layout of its weights, its byte-level BPE tokenizer.

The tokenizer is rebuilt from the file's own tokens and merges. llama.cpp stores the rows of Q and K
with the two halves of each head interleaved; transformers wants the halves apart.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from tinsmith_worker.prepare.gguf_file import CONTROL, GGUF, Convert, FloatArray, rename

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def config(file: GGUF) -> LlamaConfig:
    heads, hidden = file.field("llama.attention.head_count"), file.field("llama.embedding_length")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=file.field("llama.vocab_size"),
        hidden_size=hidden,
        intermediate_size=file.field("llama.feed_forward_length"),
        num_hidden_layers=file.field("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=file.field("llama.attention.head_count_kv"),
        head_dim=hidden // heads,
        max_position_embeddings=file.field("llama.context_length"),
        rms_norm_eps=float(file.field("llama.attention.layer_norm_rms_epsilon")),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(file.field("llama.rope.freq_base")),
        },
        tie_word_embeddings=not file.has("output.weight"),
        bos_token_id=file.field("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.field("tokenizer.ggml.eos_token_id"),
        pad_token_id=file.field("tokenizer.ggml.padding_token_id"),
        dtype="float32",
    )


def weight_names(file: GGUF) -> Convert:
    heads = file.field("llama.attention.head_count")
    kv_heads = file.field("llama.attention.head_count_kv")

    def convert(name: str, array: FloatArray) -> tuple[str, FloatArray]:
        if ".attn_q." in name:
            array = _halves_apart(array, heads)
        elif ".attn_k." in name:
            array = _halves_apart(array, kv_heads)
        return rename(name, _LAYER, _TOP), array

    return convert


def _halves_apart(array: FloatArray, heads: int) -> FloatArray:
    rows, columns = array.shape
    split = array.reshape(heads, rows // heads // 2, 2, columns)
    return split.swapaxes(1, 2).reshape(rows, columns)


def tokenizer(file: GGUF) -> PreTrainedTokenizerFast:
    tokens = file.field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in file.field("tokenizer.ggml.merges")]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = file.field("tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in control]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[file.field("tokenizer.ggml.bos_token_id")],
        eos_token=tokens[file.field("tokenizer.ggml.eos_token_id")],
        pad_token=tokens[file.field("tokenizer.ggml.padding_token_id")],
        unk_token=tokens[file.field("tokenizer.ggml.unknown_token_id")],
        model_max_length=file.field("llama.context_length"),
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = file.field("tokenizer.chat_template")
    return wrapped
