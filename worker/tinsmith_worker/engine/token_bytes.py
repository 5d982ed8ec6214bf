"""Which bytes of text each token stands for, whatever the tokenizer's family.

Byte-level BPE spells a byte as one printable character (GPT-2); SentencePiece spells a space as U+2581
and a byte that it has no piece for as <0xHH>; tiktoken holds the bytes themselves. Tokens that were
added to any of them stand for their own text.
"""

import json
import re
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


def byte_table(tokenizer: Any) -> list[bytes] | None:
    """By token id; None where tokens do not spell out the text they came from."""
    if tokenizer is None:
        return None
    if hasattr(tokenizer, "decode_single_token_bytes"):  # tiktoken's Encoding
        return _of_tiktoken(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    told = json.loads(backend.to_str())
    parts = [*_types(told.get("pre_tokenizer")), *_types(told.get("decoder"))]
    vocabulary = tokenizer.get_vocab()
    if "ByteLevel" in parts:
        spell = _byte_level
    elif "ByteFallback" in parts or any(_SPACE in token for token in vocabulary):
        spell = _sentence_piece
    else:
        return None
    added = {one["id"]: one["content"].encode() for one in told.get("added_tokens", [])}
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        table[index] = added[index] if index in added else spell(token)
    return table


def _of_tiktoken(encoding: Any) -> list[bytes]:
    table = []
    for index in range(encoding.n_vocab):
        try:
            table.append(encoding.decode_single_token_bytes(index))
        except KeyError:  # ids between the last rank and the special tokens mean nothing
            table.append(b"")
    return table


def _types(part: Any) -> list[str]:
    """Of a component and of those it is made of."""
    if not isinstance(part, dict):
        return []
    inner = [*(part.get("pretokenizers") or []), *(part.get("decoders") or [])]
    return [part["type"], *(name for one in inner for name in _types(one))]


def _characters() -> dict[str, int]:
    """GPT-2's printable character for each byte, the other way round."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


_BYTES = _characters()


def _byte_level(token: str) -> bytes:
    if all(character in _BYTES for character in token):
        return bytes(_BYTES[character] for character in token)
    return token.encode()


def _sentence_piece(token: str) -> bytes:
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(_SPACE, " ").encode()
