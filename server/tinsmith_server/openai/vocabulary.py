"""A base model's tokenizer as the API process needs it: text to ids and back, special tokens, chats.

The files come from the store, where the model's worker has put them; no model folder is needed here.
"""

import asyncio
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinsmith.protocol.errors import BadRequest, NotFound
from tinsmith.protocol.jobs import ModelCard
from tokenizers import Tokenizer

from tinsmith_server.openai.chat_template import ChatTemplate, Messages
from tinsmith_server.remembered import Remembered
from tinsmith_server.storage import Storage

_SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_REMEMBERED_SECONDS = 3600.0
_REMEMBERED_MODELS = 8
_LONG_TEXT = 20_000
"""Characters from which encoding is worth a thread of its own."""


class Vocabulary:
    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = _json(files, "special_tokens_map.json") | _json(files, "tokenizer_config.json")
        self.special_tokens = {name: _text(config[name]) for name in _SPECIAL if config.get(name)}
        self._templates = _templates(config, files)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self._anchor = self._tokenizer.encode("a", add_special_tokens=False).ids[:1]
        self.text_of = functools.lru_cache(maxsize=200_000)(self._text_of)
        self.template = functools.cache(self._template)

    @property
    def chat_template(self) -> str | None:
        return self._templates.get("default")

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if len(text) < _LONG_TEXT:
            return self._encode(text, add_special_tokens)
        return await asyncio.to_thread(self._encode, text, add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRequest(
                "prompt: it holds half of a surrogate pair, which is no text."
            ) from None
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def _text_of(self, token: int) -> str:
        """One token's text as it stands inside a text; U+FFFD for what is no whole letter."""
        before = self.decode(self._anchor)
        both = self.decode([*self._anchor, token])
        return both[len(before) :] if both.startswith(before) else self.decode([token])

    def bytes_of(self, token: int) -> bytes | None:
        """Its bytes, also of a part of a letter; None where its tokenizer does not say."""
        name = self._tokenizer.id_to_token(token) or ""
        if byte := _BYTE.fullmatch(name):
            return bytes([int(byte[1], 16)])
        text = self.text_of(token)
        if "\ufffd" not in text:
            return text.encode()
        known = [_BYTE_OF_LETTER.get(letter) for letter in name]
        return bytes(one for one in known if one is not None) if None not in known else None

    def name_of(self, token: int) -> str:
        """Its text, or its id where the text does not tell it from others."""
        text = self.text_of(token)
        return f"token_id:{token}" if "\ufffd" in text or not text else text

    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
    ) -> str:
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        return self.template(name).render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**self.special_tokens, **variables},
        )

    def _template(self, name: str) -> ChatTemplate:
        if name not in self._templates:
            raise BadRequest(
                "model: its tokenizer has no chat template; use /v1/completions with a prompt."
            )
        return ChatTemplate(self._templates[name])


class Vocabularies:
    """Those of the models that are asked for, by the digest of their files."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known = Remembered(self._load, seconds=_REMEMBERED_SECONDS, most=_REMEMBERED_MODELS)

    async def of(self, card: ModelCard) -> Vocabulary:
        if card.tokenizer_prefix is None:
            raise BadRequest(
                f"model: {card.name} came without a tokenizer; it is sampled by token ids, through "
                "the training API."
            )
        return await self._known.get(card.tokenizer_prefix)

    async def _load(self, prefix: str) -> Vocabulary:
        names = await self._storage.names(prefix)
        files = {name: await self._storage.file(prefix, name) for name in names if name in _FILES}
        if "tokenizer.json" not in files:
            raise NotFound("model: its tokenizer's files are not in the store.")
        return await asyncio.to_thread(Vocabulary, files)


def _bytes_of_letters() -> dict[str, int]:
    """How byte-level tokenizers spell bytes: printable ones as themselves, the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    spelled = {chr(byte): byte for byte in plain}
    return spelled | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF_LETTER = _bytes_of_letters()
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return dict(json.loads(files.get(name, b"{}")))


def _text(token: Any) -> str:
    """Old files write a token with its flags."""
    return str(token["content"] if isinstance(token, dict) else token)


def _templates(config: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, str]:
    """By name. A file of its own stands above the configuration, as in transformers."""
    if "chat_template.jinja" in files:
        return {"default": files["chat_template.jinja"].decode()}
    given = config.get("chat_template")
    if isinstance(given, list):
        return {str(one["name"]): str(one["template"]) for one in given}
    return {"default": given} if isinstance(given, str) else {}
