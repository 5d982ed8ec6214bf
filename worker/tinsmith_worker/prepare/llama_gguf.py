"""A Llama model in GGUF as transformers spells it: config, weights, byte-level BPE tokenizer.

The tokenizer is rebuilt from the file's own tokens and merges. llama.cpp stores the rows of Q and K
with the two halves of each head interleaved; transformers wants the halves apart.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

_CONTROL = 3  # token type of GGUF
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


class GGUF:
    def __init__(self, path: Path) -> None:
        self.reader = gguf.GGUFReader(path)

    def field(self, name: str) -> Any:
        return self.reader.fields[name].contents()

    def has(self, name: str) -> bool:
        return any(tensor.name == name for tensor in self.reader.tensors)


def write_config(file: GGUF, folder: Path) -> None:
    heads, hidden = file.field("llama.attention.head_count"), file.field("llama.embedding_length")
    config = LlamaConfig(
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
    config.save_pretrained(folder)


def write_weights(file: GGUF, folder: Path) -> Iterator[float]:
    """float32: what quantised weights stand for is not exact in bfloat16. Yields progress."""
    heads = file.field("llama.attention.head_count")
    kv_heads = file.field("llama.attention.head_count_kv")
    tensors: dict[str, Tensor] = {}
    for done, tensor in enumerate(file.reader.tensors, 1):
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if ".attn_q." in tensor.name:
            array = _halves_apart(array, heads)
        elif ".attn_k." in tensor.name:
            array = _halves_apart(array, kv_heads)
        tensors[_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(array))
        yield done / len(file.reader.tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _halves_apart(array: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    rows, columns = array.shape
    split = array.reshape(heads, rows // heads // 2, 2, columns)
    return split.swapaxes(1, 2).reshape(rows, columns)


def _name(name: str) -> str:
    if name.startswith("blk."):
        _, layer, part, kind = name.split(".")
        return f"model.layers.{layer}.{_LAYER[part]}.{kind}"
    part, kind = name.split(".")
    return f"{_TOP[part]}.{kind}"


def write_tokenizer(file: GGUF, folder: Path) -> None:
    tokens = file.field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in file.field("tokenizer.ggml.merges")]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = file.field("tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in control]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[file.field("tokenizer.ggml.bos_token_id")],
        eos_token=tokens[file.field("tokenizer.ggml.eos_token_id")],
        pad_token=tokens[file.field("tokenizer.ggml.padding_token_id")],
        unk_token=tokens[file.field("tokenizer.ggml.unknown_token_id")],
        model_max_length=file.field("llama.context_length"),
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = file.field("tokenizer.chat_template")
    wrapped.save_pretrained(folder)
