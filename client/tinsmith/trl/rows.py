"""Rows of a dataset as examples: TRL's columns, TRL's cut between prompt and completion."""

from collections.abc import Mapping, Sequence
from typing import Any

from tinsmith.distill.rollout import Example


def example_of(row: Mapping[str, Any], tokenizer: Any, max_length: int | None) -> Example:
    """From `messages`, of which the last is the completion, or from `prompt` and `completion`."""
    if "messages" in row:
        return _chat(list(row["messages"]), tokenizer, max_length)
    if "prompt" not in row:
        raise ValueError(
            f"dataset: a row has messages, or prompt and perhaps completion, not {sorted(row)}."
        )
    prompt, completion = row["prompt"], row.get("completion")
    if isinstance(prompt, str):
        asked = list(tokenizer.encode(prompt))
        return _cut(asked, _answer(completion, tokenizer), max_length)
    if completion is None:
        text = _template(tokenizer, prompt, True)
        return _cut(_encode(tokenizer, text), None, max_length)
    answer = (
        [{"role": "assistant", "content": completion}]
        if isinstance(completion, str)
        else completion
    )
    return _chat([*prompt, *answer], tokenizer, max_length)


def _chat(messages: Sequence[Any], tokenizer: Any, max_length: int | None) -> Example:
    """The whole chat rendered; what follows its prompt is the completion."""
    prompt = _template(tokenizer, messages[:-1], True)
    whole = _template(tokenizer, messages, False)
    if not whole.startswith(prompt):
        raise ValueError(
            "dataset: the chat template does not repeat the prompt when it renders the whole chat; give "
            "prompt and completion as text."
        )
    return _cut(_encode(tokenizer, prompt), _encode(tokenizer, whole[len(prompt) :]), max_length)


def _answer(completion: Any, tokenizer: Any) -> list[int] | None:
    if completion is None:
        return None
    tokens = _encode(tokenizer, completion)
    return tokens if tokenizer.eos_token_id is None else [*tokens, tokenizer.eos_token_id]


def _cut(prompt: list[int], completion: list[int] | None, max_length: int | None) -> Example:
    """The oldest context goes first."""
    spare = (
        len(prompt) + len(completion or ()) - (max_length or len(prompt) + len(completion or ()))
    )
    if spare > 0:
        if spare >= len(prompt):
            raise ValueError(
                f"dataset: a completion alone is longer than max_length, {max_length}."
            )
        prompt = prompt[spare:]
    return Example(prompt, completion)


def _template(tokenizer: Any, messages: Sequence[Any], generation: bool) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "processing_class: its tokenizer has no chat_template, and the dataset is of chats; set one."
        )
    text: str = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=generation
    )
    return text


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
