"""The loop: complete a batch, have the teacher judge it, step, and be ready to stop at any moment.

Sampling of the next batch leaves before the step of this one: the service runs both. What it draws is
then one step old, which `ahead=False` forbids. `importance_sampling` and `is_clip` correct for it.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from tinsmith.distill.choice import Choice
from tinsmith.distill.connection import base_model_of, connect, resolved, tokenizer_of, types_of
from tinsmith.distill.drawing import Drawn, Sampling, draw
from tinsmith.distill.methods import Method, PromptDistillation
from tinsmith.distill.reports import JSONL, ConsoleTable, Report, Reports
from tinsmith.distill.rollout import Example, Rollout
from tinsmith.distill.signals import Metrics, Signal
from tinsmith.distill.state import State, digest
from tinsmith.distill.teacher import Prompt, Renderer, Rendering, Teacher
from tinsmith.distill.teachers import Staff, Student

Batch = Sequence[Example | Prompt]
Schedule = float | Callable[[int], float]
EVALUATION_STEP = -1  # draws its seeds from a step that no training has


@dataclass(frozen=True)
class Step:
    number: int
    metrics: Metrics
    rollouts: Sequence[Rollout]


class Distiller:
    """One student, its teachers and a method.

    `run` is a training client, ours or the official SDK's; it is asked once what its service offers.
    `method` says what is computed, `support` how this service does it.
    """

    def __init__(
        self,
        run: Any,
        teacher: Teacher | str | Sequence[Teacher | str],
        method: Method,
        *,
        max_tokens: int = 256,
        group_size: int = 1,
        sampling_temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = -1,
        stop: str | Sequence[str] | Sequence[int] | None = None,
        learning_rate: Schedule = 1e-4,
        adam: dict[str, float] | None = None,
        renderer: str | Rendering | None = None,
        system_prompt: str | None = None,
        template_arguments: dict[str, Any] | None = None,
        tokenizer: Any = None,
        backend: str = "auto",
        ahead: bool = True,
        seed: int = 0,
    ) -> None:
        connection = connect(run)
        base_model = base_model_of(run)
        tokenizer = tokenizer or tokenizer_of(connection, run, base_model)
        rendering = Renderer(tokenizer, renderer, system_prompt, template_arguments or {})
        self.run_client, self.method = run, method
        context = connection.contexts.get(base_model)
        self.student = Student(base_model, rendering, types_of(run), context)
        self.staff = Staff(_teachers(teacher), self.student, connection)
        self.sampling = Sampling(
            max_tokens=max_tokens,
            group_size=group_size,
            temperature=sampling_temperature,
            top_p=top_p,
            top_k=top_k,
            stop=stop,
            seed=seed,
        )
        self.signal: Signal = Choice(run, self.student, self.staff, connection, backend).signal(
            method
        )
        self._schedule, self._adam, self._ahead = learning_rate, adam or {}, ahead
        self.steps_done = 0

    @property
    def support(self) -> str:
        """What computes the signal, in words."""
        return self.signal.words

    def step(self, batch: Batch) -> Step:
        """Draws, teaches and steps, strictly on-policy."""
        drawn = self.draw(examples_of(batch), self.steps_done, self.sampler())
        done = self.learn(self.steps_done, drawn.collect(), drawn.sampler)
        self.steps_done += 1
        return done()

    def evaluate(self, batch: Batch, num_samples: int = 1) -> Metrics:
        """Figures on what the student says to these prompts now; nothing is trained."""
        sampler = self.sampler()
        sampling = replace(self.sampling, group_size=num_samples)
        examples = examples_of(batch)
        settings = (self.method, sampling, self.student, self.staff)
        by_student = None if isinstance(self.method, PromptDistillation) else True
        drawn = draw(examples, EVALUATION_STEP, sampler, *settings, by_student)
        rollouts = drawn.collect()
        metrics = self.signal.look(rollouts, sampler).metrics()
        return metrics | lengths(rollouts)

    def run(
        self,
        prompts: Batch,
        steps: int,
        *,
        batch_size: int = 8,
        state: str | Path | None = None,
        save_every: int = 20,
        metrics: str | Path | None = None,
        reports: Sequence[Report] = (),
        console: bool = False,
    ) -> list[Step]:
        """Trains to `steps`. With `state`, goes on from where that file says an earlier run was.

        A checkpoint and the state are written every `save_every` steps and at the end, together with
        what was drawn ahead. `metrics` names a JSONL file; `console` shows a bar and a table.
        """
        examples = examples_of(prompts)
        path = None if state is None else Path(state)
        settings = self._settings(examples, batch_size)
        found = None if path is None else State.read(path, settings)
        if found is not None:
            self.run_client.load_state_with_optimizer(found.checkpoint).result()
            self.steps_done = found.step
        members: list[Report] = list(reports)
        members += [JSONL(metrics)] if metrics is not None else []
        members += [ConsoleTable(steps)] if console else []
        with Reports(members) as report:
            report.resume(self.steps_done)
            loop = _Loop(self, examples, batch_size, path, settings, save_every)
            return loop.run(steps, found.drawn if found else None, report)

    def close(self) -> None:
        """Ends the session that was opened for the teachers."""
        self.staff.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settings(self, examples: Sequence[Example], batch_size: int) -> str:
        teachers = [(one.teacher.name, one.teacher.system_prompt) for one in self.staff.members]
        rate = "a schedule" if callable(self._schedule) else self._schedule
        parts = (self.method, teachers, self.sampling, rate, sorted(self._adam.items()))
        return digest(*parts, self._ahead, self.signal.words, batch_size, examples)

    def sampler(self) -> Any:
        """Of the weights as they are after what was sent so far."""
        return resolved(self.run_client.save_weights_and_get_sampling_client())

    def draw(
        self,
        examples: Sequence[Example],
        step: int,
        sampler: Any,
        by_student: bool | None = None,
    ) -> Drawn:
        """Completions of a batch, under way."""
        settings = (self.method, self.sampling, self.student, self.staff)
        return draw(examples, step, sampler, *settings, by_student)

    def learn(self, step: int, rollouts: Sequence[Rollout], sampler: Any) -> Callable[[], Step]:
        """Sends gradient and step; the answer waits for both."""
        started = time.monotonic()
        sent = self.signal.send(rollouts, sampler)
        rate = self._schedule(step) if callable(self._schedule) else self._schedule
        params = self.student.types.AdamParams(learning_rate=rate, **self._adam)
        stepped = self.run_client.optim_step(params)

        def answer() -> Step:
            metrics = sent.metrics() | lengths(rollouts)
            told = stepped.result().metrics or {}
            if "grad_norm" in told:
                metrics["grad_norm"] = told["grad_norm"]
            metrics |= {"learning_rate": rate, "seconds": time.monotonic() - started}
            return Step(step, metrics, rollouts)

        return answer


class _Loop:
    """One call of `run`: which examples come when, and what is written down."""

    def __init__(
        self,
        distiller: Distiller,
        examples: Sequence[Example],
        batch_size: int,
        state: Path | None,
        settings: str,
        save_every: int,
    ) -> None:
        if not 0 < batch_size <= len(examples):
            raise ValueError(f"batch_size: {batch_size} is not from 1 to {len(examples)} prompts.")
        self._d, self._examples, self._batch_size = distiller, examples, batch_size
        self._state, self._settings, self._save_every = state, settings, save_every

    def run(self, steps: int, drawn: Sequence[Rollout] | None, report: Reports) -> list[Step]:
        d, done = self._d, []
        if d.steps_done >= steps:
            return []
        sampler = d.sampler()
        coming = (
            Drawn([lambda: list(drawn)], sampler) if drawn else self._draw(d.steps_done, sampler)
        )
        while d.steps_done < steps:
            number, rollouts = d.steps_done, coming.collect()
            current = coming.sampler
            last = number + 1 == steps
            if d._ahead:
                current = d.sampler()
                coming = coming if last else self._draw(number + 1, current)
            answer = d.learn(number, rollouts, current)
            if not d._ahead and not last:
                coming = self._draw(number + 1, d.sampler())
            one = answer()
            d.steps_done = number + 1
            report.write(number, one.metrics)
            done.append(one)
            if self._state is not None and (d.steps_done % self._save_every == 0 or last):
                coming = self._save(None if last else coming)
        return done

    def _draw(self, step: int, sampler: Any) -> Drawn:
        return self._d.draw(self._batch(step), step, sampler)

    def _batch(self, step: int) -> list[Example]:
        """Every example once an epoch, in an order that the seed and the epoch decide."""
        count = len(self._examples)
        found = []
        for place in range(step * self._batch_size, (step + 1) * self._batch_size):
            epoch, index = divmod(place, count)
            order = list(range(count))
            random.Random(f"{self._d.sampling.seed}/{epoch}").shuffle(order)
            found.append(self._examples[order[index]])
        return found

    def _save(self, coming: Drawn | None) -> Drawn:
        d = self._d
        saved = d.run_client.save_state(f"step-{d.steps_done}", overwrite=True).result().path
        rollouts = coming.collect() if coming is not None else None
        assert self._state is not None
        ahead = rollouts if d._ahead else None
        State(d.steps_done, saved, self._settings, ahead).write(self._state)
        sampler = coming.sampler if coming is not None else None
        return Drawn([lambda: list(rollouts or ())], sampler)


def _teachers(given: Teacher | str | Sequence[Teacher | str]) -> list[Teacher]:
    several = [given] if isinstance(given, Teacher | str) else list(given)
    return [Teacher(one) if isinstance(one, str) else one for one in several]


def examples_of(batch: Batch) -> list[Example]:
    return [one if isinstance(one, Example) else Example(one) for one in batch]


def lengths(rollouts: Sequence[Rollout]) -> Metrics:
    tokens = sum(len(one.completion) for one in rollouts)
    student = sum(len(one.completion) for one in rollouts if one.source == "student")
    finished = sum(one.finished for one in rollouts)
    return {
        "length": tokens / len(rollouts),
        "student_tokens": float(student),
        "finished": finished / len(rollouts),
    }
