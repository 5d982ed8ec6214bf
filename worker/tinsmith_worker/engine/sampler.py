"""Continuous batching: every step is one packed pass over whoever is there.

New prompts are prefilled beside sequences that decode. A request's samples share its prefill. The
sampler decides who is in the next pass; how a token is drawn stands in `sampling`.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.packed import KVCache, Pass, Segment, adapter_rows, enough_rows
from tinsmith_worker.engine.prompt_scores import PromptScores, TopK, score_prompts
from tinsmith_worker.engine.sampling import draw, uniform
from tinsmith_worker.engine.values import InvalidInput, SampleRequest

MAX_SAMPLES = 1024
MAX_TOPK = 1024


@dataclass(frozen=True)
class SampledSequence:
    tokens: list[int]
    logprobs: list[float]
    stop_reason: str
    topk: TopK | None


@dataclass(frozen=True)
class Finished:
    request_id: str
    sequences: list[SampledSequence] = field(default_factory=list)
    scores: PromptScores = field(default_factory=PromptScores)
    error: str | None = None


@dataclass
class _Active:
    request: SampleRequest
    limit: int
    sequences: list["_Sequence"]
    done: list[SampledSequence | None]
    scores: PromptScores = field(default_factory=PromptScores)


@dataclass
class _Sequence:
    """One sample: `pending` are the tokens that the next pass must read."""

    owner: _Active
    index: int
    cache: KVCache
    pending: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    topk: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Sampler:
    def __init__(self, model: BaseModel, *, max_slots: int, max_pass_tokens: int) -> None:
        self._model, self._max_slots, self._max_tokens = model, max_slots, max_pass_tokens
        self._waiting: list[_Active] = []
        self._decoding: list[_Sequence] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._decoding)

    def add(self, request: SampleRequest) -> None:
        """Refuses by field what can never run."""
        limit = self._validate(request)
        active = _Active(request, limit, [], [None] * request.num_samples)
        self._waiting.append(active)

    def cancel(self, request_id: str) -> None:
        self._waiting = [one for one in self._waiting if one.request.request_id != request_id]
        self._decoding = [
            one for one in self._decoding if one.owner.request.request_id != request_id
        ]

    @torch.no_grad()
    def step(self) -> list[Finished]:
        """One pass; the requests that it finished."""
        prefills = self._admit()
        if not prefills and not self._decoding:
            return []
        fresh = [
            _Sequence(active, 0, KVCache(), list(active.request.prompt)) for active in prefills
        ]
        everyone = sorted(self._decoding + fresh, key=lambda one: id(one.owner.request.adapter))
        self._decoding = []
        try:
            hidden = self._pass(everyone)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return [
                Finished(name, error="prompt: the service is out of memory; send fewer or shorter.")
                for name in {one.owner.request.request_id for one in everyone}
            ]
        self._draw_all(everyone, hidden)
        owners = {id(one.owner): one.owner for one in everyone}
        return [_finished(owner) for owner in owners.values() if all(owner.done)]

    def _admit(self) -> list[_Active]:
        """Waiting prompts, first come first served, while slots and the token budget last."""
        admitted: list[_Active] = []
        slots, tokens = len(self._decoding), 0
        while self._waiting:
            request = self._waiting[0].request
            slots += request.num_samples
            tokens += len(request.prompt)
            alone = not admitted and not self._decoding
            if not alone and (slots > self._max_slots or (admitted and tokens > self._max_tokens)):
                break
            admitted.append(self._waiting.pop(0))
        return admitted

    def _pass(self, sequences: list[_Sequence]) -> list[Tensor]:
        """Hidden states of each sequence's pending tokens."""
        segments = [Segment(one.pending, one.owner.request.adapter, one.cache) for one in sequences]
        current = Pass(enough_rows(segments))
        hidden_NH = self._model.hidden(current)
        return [hidden_NH[rows] for rows in current.rows[: len(sequences)]]

    def _draw_all(self, sequences: list[_Sequence], hidden: list[Tensor]) -> None:
        last_SH = torch.stack([rows[-1] for rows in hidden])
        rows = adapter_rows([one.owner.request.adapter for one in sequences])
        logits_SV = self._model.logits(last_SH, rows)
        fresh = [not one.tokens and not one.index for one in sequences]
        prompts = {
            place: (one.owner.request, rows_NH)
            for place, (one, rows_NH) in enumerate(zip(sequences, hidden, strict=True))
            if fresh[place]
        }
        found = score_prompts(self._model, list(prompts.values()))
        for place, scores in zip(prompts, found, strict=True):
            sequences[place].owner.scores = scores
        for one, logits_V, new in zip(sequences, logits_SV, fresh, strict=True):
            if not new:
                self._extend(one, logits_V)
                continue
            twins = [
                _Sequence(one.owner, index, one.cache.copy(), [])
                for index in range(1, one.owner.request.num_samples)
            ]
            for sample in (one, *twins):
                self._extend(sample, logits_V)

    def _extend(self, one: _Sequence, logits_V: Tensor) -> None:
        """Draw the sample's next token; it decodes on, or is done."""
        request = one.owner.request
        u = uniform(request.seed, one.index, len(one.tokens))
        token, logprob = draw(logits_V, request.temperature, request.top_k, request.top_p, u)
        one.tokens.append(token)
        one.logprobs.append(logprob)
        one.pending = [token]
        if request.topk_sample_logprobs:
            scaled = logits_V / request.temperature if request.temperature else logits_V
            top = scaled.log_softmax(-1).topk(request.topk_sample_logprobs)
            one.topk.append((top.indices, top.values))
        reason = self._stop_reason(one)
        if reason is None:
            self._decoding.append(one)
        else:
            topk = _topk_rows(one.topk) if one.topk else None
            one.owner.done[one.index] = SampledSequence(one.tokens, one.logprobs, reason, topk)

    def _stop_reason(self, one: _Sequence) -> str | None:
        request, last = one.owner.request, one.tokens[-1]
        if request.stop is None:
            stopped = last in self._model.eos_token_ids
        else:
            stopped = any(
                last == stop if isinstance(stop, int) else self._ends_with(one.tokens, stop)
                for stop in request.stop
            )
        if stopped:
            return "stop"
        return "length" if len(one.tokens) >= one.owner.limit else None

    def _ends_with(self, tokens: list[int], stop: str) -> bool:
        """Whether the text now contains the stop: any earlier one would have ended the sample.

        A token is at least one byte of text, so a window of the stop's bytes and a few more (for
        special tokens and letters cut in the middle) is enough.
        """
        window = tokens[-(len(stop.encode()) + 8) :]
        return stop in self._model.tokenizer.decode(window, skip_special_tokens=False)

    def _validate(self, request: SampleRequest) -> int:
        """How many tokens a sample may have."""
        context, vocab = self._model.max_context_length, self._model.vocab_size
        room = context - len(request.prompt)
        bad = next((token for token in request.prompt if not 0 <= token < vocab), None)
        checks = [
            (not request.prompt, "prompt: it holds no token."),
            (
                bad is not None,
                f"prompt: token id {bad} is outside the vocabulary (0 to {vocab - 1}).",
            ),
            (
                room < 1,
                f"prompt: {len(request.prompt)} tokens leave no room in the model's context of {context}.",
            ),
            (
                not 1 <= request.num_samples <= MAX_SAMPLES,
                f"num_samples: {request.num_samples} is not from 1 to {MAX_SAMPLES}.",
            ),
            (
                not (np.isfinite(request.temperature) and request.temperature >= 0),
                f"sampling_params.temperature: {request.temperature} is not a number from 0.",
            ),
            (
                not 0 < request.top_p <= 1,
                f"sampling_params.top_p: {request.top_p} is not above 0 and at most 1.",
            ),
            (
                request.top_k < -1,
                f"sampling_params.top_k: {request.top_k} is neither -1 (no limit) nor positive.",
            ),
            (
                request.max_tokens is not None and request.max_tokens < 1,
                f"sampling_params.max_tokens: {request.max_tokens} is not at least 1.",
            ),
            (
                any(isinstance(one, str) for one in request.stop or [])
                and self._model.tokenizer is None,
                "sampling_params.stop: this model has no tokenizer here; give token ids.",
            ),
            (any(one == "" for one in request.stop or []), "sampling_params.stop: '' is no stop."),
        ]
        for name in ("topk_prompt_logprobs", "topk_sample_logprobs"):
            top = min(vocab, MAX_TOPK)
            value = getattr(request, name)
            checks.append((not 0 <= value <= top, f"{name}: {value} is not from 0 to {top}."))
        if request.targets is not None and request.targets.tokens.size:
            low, high = int(request.targets.tokens.min()), int(request.targets.tokens.max())
            sentence = f"target_prompt_logprobs: token ids must be from -1 to {vocab - 1}."
            checks.append((low < -1 or high >= vocab, sentence))
        last_n = request.prompt_logprobs_last_n
        checks.append(
            (
                last_n is not None and not 1 <= last_n <= len(request.prompt) - 1,
                f"prompt_logprobs_last_n: {last_n} is not from 1 to {len(request.prompt) - 1}.",
            )
        )
        for wrong, sentence in checks:
            if wrong:
                raise InvalidInput(sentence)
        return min(request.max_tokens or room, room)


def _finished(owner: _Active) -> Finished:
    return Finished(
        owner.request.request_id,
        [sequence for sequence in owner.done if sequence is not None],
        owner.scores,
    )


def _topk_rows(rows: list[tuple[Tensor, Tensor]]) -> TopK:
    ids, logprobs = zip(*rows, strict=True)
    return TopK(
        torch.stack(ids).cpu().numpy().astype(np.int32),
        torch.stack(logprobs).cpu().numpy().astype(np.float32),
    )
