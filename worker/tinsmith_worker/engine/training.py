"""Gradients of many runs on one frozen base model.

A pass holds micro-batches of several requests, of one run or of many. A request is cut by its own
size alone, its gradient is collected apart and added to its run's only when all of it is finite: so
what a run learns depends on nobody else, and a failed request leaves nothing behind.

Legend: N rows of a pass, P pairs of a row and a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor

from tinsmith_worker.engine import custom_loss, losses
from tinsmith_worker.engine.adapter import Gradient
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.batching import Group, cut, group_by_beginning
from tinsmith_worker.engine.head import Asked, score
from tinsmith_worker.engine.lesson_plan import LessonPlan, plan
from tinsmith_worker.engine.lessons import Lesson
from tinsmith_worker.engine.loss_program import Program
from tinsmith_worker.engine.memory import is_out_of_memory, release
from tinsmith_worker.engine.micro_batch import Drift, MicroBatch
from tinsmith_worker.engine.optimizer import RunState
from tinsmith_worker.engine.readings import Teacher
from tinsmith_worker.engine.taught import consult
from tinsmith_worker.engine.values import Datum, InvalidInput

_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Work:
    run: RunState
    data: list[Datum]
    loss_fn: str
    loss_fn_config: dict[str, float | str]
    forward_only: bool = False
    teachers: tuple[Teacher, ...] = ()
    averages: tuple[tuple[float, int], ...] = ()
    """Averages of the run's weights that it is taught by: rate, and steps between."""


@dataclass
class Outcome:
    """One float32 array per datum, shaped like its targets; or why there is none."""

    logprobs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    more: dict[str, list[npt.NDArray[np.float32]]] = field(default_factory=dict)
    """Further arrays of the same shapes, by name."""
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None


class _Request:
    """A request on its way: the micro-batches to come and what came of the others."""

    def __init__(
        self,
        work: Work,
        groups: list[Group],
        config: Any,
        max_tokens: int,
        memory_tokens: int,
        plan: LessonPlan | None = None,
    ) -> None:
        self.work, self.config, self.plan = work, config, plan
        self.gradient = None if work.forward_only else Gradient(work.run.adapter)
        self.error: str | None = None
        self.alone = self.checkpoint = False
        self.max_tokens = min(max_tokens, memory_tokens)
        self._memory_tokens = memory_tokens
        self._groups = groups
        self._sizes = [datum.tokens.size for datum in work.data]
        self._begin()

    @classmethod
    def refused(cls, work: Work, sentence: str) -> "_Request":
        """Has nothing to run, and its place in the order all the same."""
        one = cls(replace(work, forward_only=True, data=[]), [], None, 1, 1)
        one.work, one.error = work, sentence
        return one

    @property
    def loss(self) -> losses.Loss:
        return losses.find(self.work.loss_fn)

    def _begin(self) -> None:
        self.batches = cut(self._groups, self._sizes, self.max_tokens)
        self.logprobs: dict[int, npt.NDArray[np.float32]] = {}
        self.more: dict[str, dict[int, npt.NDArray[np.float32]]] = {}
        self.sum = 0.0
        self.drift = Drift()
        self.own_metrics: dict[str, float] = {}
        """Sums of what a custom loss reports."""

    @property
    def active(self) -> bool:
        return bool(self.batches) and self.error is None

    @property
    def next_tokens(self) -> int:
        return sum(group.num_tokens(self._sizes) for group in self.batches[0])

    @property
    def needs_checkpoint(self) -> bool:
        """Only a datum that is too long for the memory by itself makes such a micro-batch."""
        return self.checkpoint or self.next_tokens > self._memory_tokens

    def shrink(self, alone: bool, error: RuntimeError) -> None:
        """Memory ran out: begin again, by itself, then in halves, then with checkpoints."""
        members = [index for group in self.batches[0] for index in group.members]
        if not alone:
            self.alone = True
        elif len(members) > 1:
            self.max_tokens = max(1, min(self.max_tokens, self.next_tokens) // 2)
        elif not self.needs_checkpoint:
            self.checkpoint = True
        else:
            self.error = (
                f"data[{members[0]}]: its {self.next_tokens} tokens need more memory than this "
                f"service has; shorten it. ({str(error).splitlines()[0][:120]})"
            )
            return
        self._begin()
        if self.gradient is not None:
            self.gradient.clear()

    def outcome(self) -> Outcome:
        """The gradient joins the run's, unless something failed."""
        if self.error is None and self.gradient is not None:
            row_P = self.gradient.finish()
            if torch.isfinite(row_P.norm()):
                self.work.run.add_gradient(row_P)
                for rate, every in self.work.averages:
                    self.work.run.keep_average(rate, every)
            else:
                self.error = "data: the gradient is not finite; nothing of it was kept."
        if self.error is not None:
            return Outcome(error=self.error)
        metrics = {"loss:sum": self.sum, "tokens:sum": float(sum(self._sizes))}
        if self.drift.count:
            metrics["sampler_kl:mean"] = self.drift.total / self.drift.count
        for key, value in self.own_metrics.items():
            metrics[key] = value / len(self._sizes) if key.endswith(":mean") else value
        indices = range(len(self._sizes))
        more = {name: [found[index] for index in indices] for name, found in self.more.items()}
        return Outcome([self.logprobs[index] for index in indices], more, metrics)


Settled = tuple[Work, Outcome]


class Trainer:
    """Forward and backward passes of whoever asks, begun and finished between any two passes."""

    def __init__(
        self,
        model: BaseModel,
        *,
        max_pass_tokens: int,
        share_prompts: bool = True,
    ) -> None:
        self._model, self._max_tokens, self._share = model, max_pass_tokens, share_prompts
        self._requests: list[_Request] = []
        """In order of arrival, in which those of one run are settled."""
        self._turns: list[_Request] = []
        """The same ones, whoever waits longest for a pass first."""

    @property
    def busy(self) -> bool:
        return bool(self._requests)

    def add(self, work: Work, *, first: bool = False) -> None:
        """What cannot be run is refused when its turn to be settled comes.

        `first`: its first pass is the next one.
        """
        try:
            config = losses.configure(work.loss_fn, work.loss_fn_config)
            losses.validate(
                work.data, work.loss_fn, self._model.vocab_size, self._model.max_context_length
            )
            if isinstance(config, Program):
                custom_loss.check(work.data, config)
            lessons = plan(work.data, config, self._model, work.teachers)
        except InvalidInput as error:
            self.refuse(work, str(error))
            return
        share = self._share and not (lessons and lessons.rows_apart)
        groups = group_by_beginning([datum.tokens for datum in work.data], share=share)
        room = self._max_tokens, self._model.memory_tokens
        one = _Request(work, groups, config, *room, lessons)
        self._requests.append(one)
        self._turns.insert(0 if first else len(self._turns), one)

    def refuse(self, work: Work, sentence: str) -> None:
        """Settle it with this error, behind the earlier requests of its run."""
        self._requests.append(_Request.refused(work, sentence))

    def abandon(self, run: RunState) -> None:
        """Nothing of this run's requests is wanted any more."""
        self._requests = [one for one in self._requests if one.work.run is not run]
        self._turns = [one for one in self._turns if one.work.run is not run]

    def clear(self) -> list[Work]:
        """Give all of it up; answers what was not settled."""
        works = [one.work for one in self._requests]
        self._requests, self._turns = [], []
        return works

    def step(self) -> list[Settled]:
        """One pass, and what it settled. The gradient of a work that succeeded joins its run's."""
        chosen = self._choose()
        if not chosen:
            return self._settle()
        try:
            with torch.set_grad_enabled(not chosen[0].work.forward_only):
                _pass(self._model, chosen, self._max_tokens)
        except RuntimeError as error:  # torch.OutOfMemoryError is one, and the CPU has only this
            if not is_out_of_memory(error):
                raise
            _log.warning("training_out_of_memory", tokens=sum(one.next_tokens for one in chosen))
            for one in chosen:
                one.shrink(len(chosen) == 1, error)
            release(self._model.device)
        else:
            for one in chosen:
                one.batches.pop(0)
        return self._settle()

    def _choose(self) -> list[_Request]:
        """The next micro-batch of each request that still fits beside the others."""
        chosen: list[_Request] = []
        total = 0
        for one in self._turns:
            fits = total + one.next_tokens <= self._max_tokens and not one.alone
            alike = not chosen or one.work.forward_only is chosen[0].work.forward_only
            if not chosen or (fits and alike):
                chosen.append(one)
                total += one.next_tokens
                if one.alone:
                    break
        self._turns = [one for one in self._turns if one not in chosen] + chosen
        return chosen

    def _settle(self) -> list[Settled]:
        """Requests that are through, unless an earlier one of their run is not."""
        settled: list[Settled] = []
        open_runs: set[int] = set()
        for one in list(self._requests):
            run = id(one.work.run)
            if one.active or run in open_runs:
                open_runs.add(run)
                continue
            settled.append((one.work, one.outcome()))
            self._requests.remove(one)
        self._turns = [one for one in self._turns if one.active]
        return settled


def forward_backward(
    model: BaseModel, works: Sequence[Work], *, max_pass_tokens: int, **options: Any
) -> list[Outcome]:
    """All of these works, in as few passes as the budget allows; `options` are the trainer's."""
    trainer = Trainer(model, max_pass_tokens=max_pass_tokens, **options)
    outcomes: dict[int, Outcome] = {}
    for work in works:
        trainer.add(work)
    while trainer.busy:
        outcomes |= {id(work): outcome for work, outcome in trainer.step()}
    return [outcomes[id(work)] for work in works]


def _pass(model: BaseModel, requests: Sequence[_Request], max_tokens: int) -> None:
    batches, segments, rows = [], [], 0
    for one in requests:
        batch = MicroBatch(one.work.data, one.batches[0], rows)
        batches.append(batch)
        segments += batch.segments(one.work.run.adapter, one.gradient)
        rows += batch.num_rows
    lessons = [
        one.plan.lesson(batch) if one.plan else None
        for one, batch in zip(requests, batches, strict=True)
    ]
    consult([lesson.taught for lesson in lessons if lesson], max_tokens)
    checkpoint = any(one.needs_checkpoint for one in requests)
    hidden_NH = model.hidden(model.new_pass(segments, checkpoint=checkpoint))
    asked = [
        _ask(model, hidden_NH, *three) for three in zip(requests, batches, lessons, strict=True)
    ]
    found, back_NH = score(model, hidden_NH, asked)
    if back_NH is not None and hidden_NH.requires_grad:
        hidden_NH.backward(back_NH)
    for one, batch, lesson, logprobs_P in zip(requests, batches, lessons, found, strict=True):
        _note(one, batch, lesson, logprobs_P)


def _ask(
    model: BaseModel, hidden_NH: Tensor, one: _Request, batch: MicroBatch, lesson: Lesson | None
) -> Asked:
    adapter, gradient = one.work.run.adapter, one.gradient
    pairs = batch.pairs(one.loss)
    if lesson is not None:
        return _with_teacher(model, hidden_NH, lesson, Asked(pairs, adapter, gradient))
    plain = Asked(pairs, adapter, gradient)
    if gradient is None:
        return plain
    if not one.loss.whole_datum:
        return replace(plain, weigh=batch.weigh(one.loss, one.config))
    with torch.no_grad():
        [logprobs_P], _ = score(model, hidden_NH, [plain])
    try:
        whole_P = batch.weigh_whole(logprobs_P, one.loss, one.config)
    except InvalidInput as error:  # of this request's own loss: the others of the pass go on
        one.error = str(error)
        return plain
    return Asked(plain.pairs, adapter, gradient, lambda _, some: whole_P[some])


def _with_teacher(model: BaseModel, hidden_NH: Tensor, lesson: Lesson, plain: Asked) -> Asked:
    logprobs_P = None
    if lesson.needs_logprobs:
        with torch.no_grad():
            [logprobs_P], _ = score(model, hidden_NH, [plain])
    lesson.begin(logprobs_P)
    return replace(
        plain,
        pairs=replace(plain.pairs, idle=lesson.idle),
        weigh=None if plain.gradient is None else lesson.weigh,
        whole_rows=lesson.whole_rows,
        together=lesson.together,
    )


def _note(one: _Request, batch: MicroBatch, lesson: Lesson | None, logprobs_P: Tensor) -> None:
    """Record a micro-batch; numbers that are not finite fail the request."""
    if one.error is not None:
        return
    metrics: dict[str, float] = {}
    try:
        if isinstance(one.config, Program):
            loss, metrics = batch.report(logprobs_P, one.config)
        elif lesson is not None:
            loss, metrics = lesson.loss(logprobs_P), lesson.metrics()
        else:
            loss = batch.loss(logprobs_P, one.loss, one.config)
    except InvalidInput as error:
        one.error = str(error)
        return
    if not (torch.isfinite(loss) and torch.isfinite(logprobs_P).all()):
        one.error = (
            "data: the loss is not finite. Check logprobs, advantages and weights, and whether "
            "the run has diverged (load an earlier checkpoint)."
        )
        return
    one.sum += float(loss)
    one.drift += batch.drift(logprobs_P, one.loss)
    one.logprobs |= batch.by_datum(logprobs_P)
    for name, found_P in lesson.fields().items() if lesson else ():
        one.more.setdefault(name, {}).update(batch.by_datum(found_P))
    for key, value in metrics.items():
        one.own_metrics[key] = one.own_metrics.get(key, 0.0) + value
