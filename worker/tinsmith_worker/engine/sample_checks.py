"""Refuses, by field, a sampling request that can never run."""

from collections.abc import Iterator

import numpy as np

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.values import InvalidInput, SampleRequest

MAX_SAMPLES = 1024
MAX_TOPK = 1024


def token_limit(model: BaseModel, request: SampleRequest) -> int:
    """How many tokens a sample may have. Raises InvalidInput."""
    for wrong, sentence in (
        *_prompt(model, request),
        *_params(model, request),
        *_scores(model, request),
    ):
        if wrong:
            raise InvalidInput(sentence)
    room = model.max_context_length - len(request.prompt)
    return min(request.max_tokens or room, room)


def _prompt(model: BaseModel, request: SampleRequest) -> Iterator[tuple[bool, str]]:
    vocab, context, size = model.vocab_size, model.max_context_length, len(request.prompt)
    bad = next((token for token in request.prompt if not 0 <= token < vocab), None)
    yield not size, "prompt: it holds no token."
    yield (
        bad is not None,
        f"prompt: token id {bad} is outside the vocabulary (0 to {vocab - 1}).",
    )
    yield (
        size >= context,
        f"prompt: {size} tokens leave no room in the model's context of {context}.",
    )
    yield (
        not 1 <= request.num_samples <= MAX_SAMPLES,
        f"num_samples: {request.num_samples} is not from 1 to {MAX_SAMPLES}.",
    )


def _params(model: BaseModel, request: SampleRequest) -> Iterator[tuple[bool, str]]:
    yield (
        not (np.isfinite(request.temperature) and request.temperature >= 0),
        f"sampling_params.temperature: {request.temperature} is not a number from 0.",
    )
    yield (
        not 0 < request.top_p <= 1,
        f"sampling_params.top_p: {request.top_p} is not above 0 and at most 1.",
    )
    yield (
        request.top_k < -1,
        f"sampling_params.top_k: {request.top_k} is neither -1 (no limit) nor positive.",
    )
    yield (
        request.max_tokens is not None and request.max_tokens < 1,
        f"sampling_params.max_tokens: {request.max_tokens} is not at least 1.",
    )
    stops = [one for one in request.stop or [] if isinstance(one, str)]
    yield (
        bool(stops) and model.tokenizer is None,
        "sampling_params.stop: this model has no tokenizer here; give token ids.",
    )
    yield "" in stops, "sampling_params.stop: '' is no stop."


def _scores(model: BaseModel, request: SampleRequest) -> Iterator[tuple[bool, str]]:
    top = min(model.vocab_size, MAX_TOPK)
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs"):
        value = getattr(request, name)
        yield not 0 <= value <= top, f"{name}: {value} is not from 0 to {top}."
    drawn = request.prompt_alt_tokens_k
    yield not 0 <= drawn <= MAX_TOPK, f"prompt_alt_tokens_k: {drawn} is not from 0 to {MAX_TOPK}."
    if request.targets is not None and request.targets.tokens.size:
        low, high = int(request.targets.tokens.min()), int(request.targets.tokens.max())
        yield (
            low < -1 or high >= model.vocab_size,
            f"target_prompt_logprobs: token ids must be from -1 to {model.vocab_size - 1}.",
        )
    last_n = request.prompt_logprobs_last_n
    yield (
        last_n is not None and not 1 <= last_n <= len(request.prompt) - 1,
        f"prompt_logprobs_last_n: {last_n} is not from 1 to {len(request.prompt) - 1}.",
    )
