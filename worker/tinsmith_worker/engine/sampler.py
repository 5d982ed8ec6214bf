"""Continuous batching: every step is one packed pass over whoever is there.

Prompts are read, in parts if they are long, beside sequences that decode; a request's samples share
its prompt, and what earlier prompts and conversations have in common with it is not read again. The
sampler decides who is in the next pass; how a token is drawn stands in `sampling`.
"""

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.kv_pool import BLOCK, KVCache, KVPool
from tinsmith_worker.engine.memory import is_out_of_memory, release
from tinsmith_worker.engine.packed import Pass, Segment, merge_rows
from tinsmith_worker.engine.prefix_cache import PrefixCache
from tinsmith_worker.engine.prompt_scores import PromptReader, PromptScores, TopK, score_prompts
from tinsmith_worker.engine.sample_checks import token_limit
from tinsmith_worker.engine.sampling import Draw, draw, uniform
from tinsmith_worker.engine.stops import stop_reason
from tinsmith_worker.engine.values import InvalidInput, SampleRequest

_NO_MEMORY = "prompt: the service is out of memory; send fewer or shorter."
_NOT_FINITE = (
    "sampling_session_id: these weights give logits that are not finite. Sample from an earlier "
    "save, or load an earlier checkpoint into the run."
)


@dataclass(frozen=True)
class SampledSequence:
    tokens: list[int]
    logprobs: list[float]
    stop_reason: str
    topk: TopK | None


@dataclass(frozen=True)
class Drawn:
    """A token of a request that streams."""

    request_id: str
    sample: int
    position: int
    token: int
    logprob: float
    top: list[tuple[int, float]] | None


@dataclass(frozen=True)
class Finished:
    request_id: str
    sequences: list[SampledSequence] = field(default_factory=list)
    scores: PromptScores = field(default_factory=PromptScores)
    prompt_cache_hit_tokens: int = 0
    error: str | None = None


class _Active:
    """A request in work: its samples, those that are done, and what its prompt scores."""

    def __init__(self, request: SampleRequest, limit: int) -> None:
        self.request, self.limit = request, limit
        self.done: list[SampledSequence | None] = [None] * request.num_samples
        self.reader = PromptReader(request)
        self.cache_hit_tokens: int | None = None

    def finished(self) -> Finished:
        return Finished(
            self.request.request_id,
            [one for one in self.done if one is not None],
            self.reader.scores() if self.reader.wanted else PromptScores(),
            self.cache_hit_tokens or 0,
        )


@dataclass(eq=False)
class _Sequence:
    """One sample. Sample 0 reads the prompt and, after it, stands for all that are not drawn yet."""

    owner: _Active
    index: int
    cache: KVCache | None = None
    """None while it waits for a place."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    topk: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def adapter(self) -> Adapter | None:
        return self.owner.request.adapter

    @property
    def known(self) -> list[int]:
        """Every token that the model has to read before the next is drawn."""
        return self.owner.request.prompt + self.tokens

    def next_tokens(self, count: int) -> list[int]:
        """The first of those that it has not read."""
        start, size = self.unread, len(self.tokens)
        if start <= size:  # all of the prompt is read
            return self.tokens[size - start : size - start + count]
        return self.known[-start:][:count]

    @property
    def unread(self) -> int:
        read = self.cache.length if self.cache else 0
        return len(self.owner.request.prompt) + len(self.tokens) - read


class Sampler:
    def __init__(
        self, model: BaseModel, *, max_slots: int, max_pass_tokens: int, max_blocks: int = 4096
    ) -> None:
        self._model, self._max_slots, self._max_tokens = model, max_slots, max_pass_tokens
        self._pool = KVPool(max_blocks)
        self._prefixes = PrefixCache(self._pool)
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._drawn: list[Drawn] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def room(self) -> int:
        """Sequences that would find a place now; below 0 when some wait for one."""
        return self._max_slots - sum(_width(one) for one in [*self._running, *self._waiting])

    def add(self, request: SampleRequest) -> None:
        """Refuses by field what can never run."""
        limit = token_limit(self._model, request)
        most = -(-(len(request.prompt) + limit) // BLOCK) + 1
        if most > self._pool.max_blocks:
            raise InvalidInput(
                f"prompt: {len(request.prompt)} tokens and {limit} to sample are more than the "
                f"{self._pool.max_blocks * BLOCK} that this service keeps; ask for fewer."
            )
        self._waiting.append(_Sequence(_Active(request, limit), 0))

    def cancel(self, request_id: str) -> None:
        for one in [*self._waiting, *self._running]:
            if _id(one) == request_id:
                self._leave(one)
        self._waiting = deque(one for one in self._waiting if _id(one) != request_id)
        self._running = [one for one in self._running if _id(one) != request_id]

    def forget(self, adapter: Adapter) -> None:
        """Nobody will sample from it again."""
        self._prefixes.forget(adapter)

    @torch.no_grad()
    def step(self) -> list[Finished]:
        """One pass; the requests that it finished."""
        parts = self._schedule()
        if not parts:
            return []
        segments = [
            Segment(one.next_tokens(count), one.adapter, one.cache)
            for one, count in parts
            if one.cache is not None
        ]
        try:
            return self._run(parts, self._model.new_pass(segments))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        release(self._model.device)
        return self._give_up({_id(one) for one, _ in parts}, _NO_MEMORY)

    def take_drawn(self) -> list[Drawn]:
        """Tokens of streaming requests since the last call, in order."""
        drawn, self._drawn = self._drawn, []
        return drawn

    def clear(self) -> list[str]:
        """Give everything up; answers the requests that were not finished."""
        ids = {_id(one) for one in [*self._waiting, *self._running]}
        for request_id in ids:
            self.cancel(request_id)
        return sorted(ids)

    # Who is in the pass

    def _schedule(self) -> list[tuple[_Sequence, int]]:
        """Each sequence of the pass with how many tokens it reads, adapters side by side.

        Whoever decodes is in; prompts share what the token budget leaves, first come first served.
        """
        self._make_room()
        budget = self._max_tokens
        parts: list[tuple[_Sequence, int]] = []
        for one in [*self._running]:
            count = min(one.unread, max(1, budget))
            assert one.cache is not None
            one.cache.make_room(count)
            parts.append((one, count))
            budget -= count
        while self._waiting and (budget > 0 or not parts):
            one = self._waiting[0]
            if self._slots_taken(one) > self._max_slots and self._running:
                break
            count = self._place(one, budget)
            if not count:
                break
            self._waiting.popleft()
            self._running.append(one)
            parts.append((one, count))
            budget -= count
        order: dict[Adapter | None, int] = {}
        for one, _ in parts:
            order.setdefault(one.adapter, len(order))
        return sorted(parts, key=lambda part: order[part[0].adapter])

    def _slots_taken(self, more: _Sequence) -> int:
        """Rows of the decode steps to come, if this one joins."""
        return sum(_width(one) for one in [*self._running, more])

    def _place(self, one: _Sequence, budget: int) -> int:
        """Give a waiting sequence its cache with the blocks of what it reads now, and say how much
        that is; 0 when there are no blocks for it.

        The blocks are taken at once: whoever is placed next must not count on the same ones.
        """
        limit = len(one.owner.request.prompt) + len(one.tokens) - 1
        if not one.tokens:
            limit = min(limit, one.owner.reader.first_row)
        cache = self._prefixes.find(one.adapter, one.known, limit)
        count = min(len(one.known) - cache.length, budget)
        if not self._reserve(cache.blocks_wanted(count) + 1):
            cache.release()
            return 0
        cache.make_room(count)
        if one.owner.cache_hit_tokens is None:
            one.owner.cache_hit_tokens = cache.length
        one.cache = cache
        return count

    def _reserve(self, blocks: int) -> bool:
        """Prefixes are forgotten only where that is enough: who cannot be placed costs nobody his."""
        missing = blocks - self._pool.blocks_left
        if missing > 0 and self._prefixes.num_reclaimable < missing:
            return False
        while self._pool.blocks_left < blocks:
            if not self._prefixes.forget_least_used():
                return False
        return True

    def _make_room(self) -> None:
        """Blocks for every running sequence's next token; the youngest wait again if there are none."""
        while self._running:
            wanted = sum(
                one.cache.blocks_wanted(min(one.unread, self._max_tokens))
                for one in self._running
                if one.cache is not None
            )
            if self._reserve(wanted) or len(self._running) == 1:
                return
            one = self._running.pop()
            self._release(one)
            self._waiting.appendleft(one)

    # What the pass gave

    def _run(self, parts: list[tuple[_Sequence, int]], current: Pass) -> list[Finished]:
        hidden_NH = self._model.hidden(current)
        rows = [hidden_NH[some] for some in current.rows]
        self._score(parts, rows)
        ready = [
            (one, each[-1]) for (one, _), each in zip(parts, rows, strict=True) if not one.unread
        ]
        return self._draw(ready) if ready else []

    def _score(self, parts: list[tuple[_Sequence, int]], rows: list[Tensor]) -> None:
        read = [
            (one.owner.reader, one.cache.length - count, each)
            for (one, count), each in zip(parts, rows, strict=True)
            if one.cache is not None and not one.tokens and not one.index
        ]
        score_prompts(self._model, read)

    def _draw(self, ready: list[tuple[_Sequence, Tensor]]) -> list[Finished]:
        """A token for every sample that has read all it knows; samples part after their prompt."""
        owners = [(one.adapter, None) for one, _ in ready]
        last_SH = torch.stack([row for _, row in ready])
        logits_SV = self._model.logits(last_SH, merge_rows(owners, [1] * len(ready)))
        samples: list[_Sequence] = []
        picked: list[int] = []
        for place, (one, _) in enumerate(ready):
            twins = self._part(one) if not one.tokens and not one.index else [one]
            samples += twins
            picked += [place] * len(twins)
        if len(picked) > len(ready):
            logits_SV = logits_SV[picked]
        draws = [_next_draw(one) for one in samples]
        tokens, logprobs, all_SV = draw(logits_SV, draws)
        for place, one in enumerate(samples):
            one.tokens.append(tokens[place])
            one.logprobs.append(logprobs[place])
            if k := one.owner.request.topk_sample_logprobs:
                top = all_SV[place].topk(k)
                one.topk.append((top.indices, top.values))
        lost = {_id(one) for one in samples if not math.isfinite(one.logprobs[-1])}
        sound = [one for one in samples if _id(one) not in lost]
        self._drawn += [_drawn(one) for one in sound if one.owner.request.stream]
        finished = self._retire(sound)
        return finished + self._give_up(lost, _NOT_FINITE)

    def _part(self, one: _Sequence) -> list[_Sequence]:
        """The prompt is read: remember it, and let every sample go on from it by itself."""
        assert one.cache is not None
        self._prefixes.remember(one.adapter, one.owner.request.prompt, one.cache)
        twins = []
        for index in range(1, one.owner.request.num_samples):
            twin = _Sequence(one.owner, index)
            if self._reserve(1):
                twin.cache = one.cache.fork()
                self._running.append(twin)
            else:
                self._waiting.append(twin)
            twins.append(twin)
        return [one, *twins]

    def _retire(self, samples: list[_Sequence]) -> list[Finished]:
        finished: list[Finished] = []
        for one in samples:
            owner = one.owner
            reason = stop_reason(self._model, owner.request, one.tokens, owner.limit)
            if reason is None:
                continue
            topk = _topk_rows(one.topk) if one.topk else None
            done = SampledSequence(one.tokens, one.logprobs, reason, topk)
            one.owner.done[one.index] = done
            if one.cache is not None:
                self._prefixes.remember(one.adapter, one.known, one.cache)
            self._leave(one)
            if all(one.owner.done):
                finished.append(one.owner.finished())
        return finished

    def _leave(self, one: _Sequence) -> None:
        self._release(one)
        if one in self._running:
            self._running.remove(one)
        elif one in self._waiting:
            self._waiting.remove(one)

    def _release(self, one: _Sequence) -> None:
        if one.cache is not None:
            one.cache.release()
            one.cache = None

    def _give_up(self, request_ids: set[str], sentence: str) -> list[Finished]:
        for request_id in request_ids:
            self.cancel(request_id)
        return [Finished(request_id, error=sentence) for request_id in sorted(request_ids)]


def _id(one: _Sequence) -> str:
    return one.owner.request.request_id


def _width(one: _Sequence) -> int:
    """How many rows a decode step has for it; a prompt brings all its samples."""
    return one.owner.request.num_samples if not one.tokens and not one.index else 1


def _next_draw(one: _Sequence) -> Draw:
    request = one.owner.request
    u = uniform(request.seed, one.index, len(one.tokens))
    return Draw(request.temperature, request.top_k, request.top_p, u)


def _drawn(one: _Sequence) -> Drawn:
    top = None
    if one.topk:
        ids, logprobs = one.topk[-1]
        top = list(zip(ids.tolist(), logprobs.tolist(), strict=True))
    position = len(one.tokens) - 1
    return Drawn(_id(one), one.index, position, one.tokens[-1], one.logprobs[-1], top)


def _topk_rows(rows: list[tuple[Tensor, Tensor]]) -> TopK:
    ids, logprobs = zip(*rows, strict=True)
    return TopK(
        torch.stack(ids).cpu().numpy().astype(np.int32),
        torch.stack(logprobs).cpu().numpy().astype(np.float32),
    )
