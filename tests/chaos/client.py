"""What one client does, and what it was told: the same program twice must read the same.

A program is fixed by its seed. It trains in chunks, saves, loads what it saved, and samples, and it
writes down every number it gets.
"""

import hashlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import tinker
from tinker import types

from tests.contract.conftest import BASE_MODEL, VOCAB

T = TypeVar("T")
_WAIT_SECONDS = 90
_LEARNING_RATE = 3e-2


@dataclass(frozen=True)
class Wait:
    """From when a client asked to when it had its answer; in monotonic seconds."""

    began: float
    ended: float
    what: str


@dataclass
class Client:
    url: str
    api_key: str
    seed: int
    steps: int
    progress: Callable[[], None] = lambda: None
    transcript: list[object] = field(default_factory=list)
    """Every number that it was told, in order."""
    run_ids: list[str] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    refused_saves: int = 0
    error: BaseException | None = None
    final_path: str = ""

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name=f"client-{self.seed}")
        thread.start()
        return thread

    def _run(self) -> None:
        try:
            with tinker.ServiceClient(base_url=self.url, api_key=self.api_key) as service:
                self._program(service)
        except BaseException as error:  # noqa: BLE001 - the test asserts that there was none
            self.error = error

    def _program(self, service: Any) -> None:
        draw = random.Random(self.seed)
        run = self._wait(
            "create",
            lambda: service.create_lora_training_client(BASE_MODEL, rank=4, seed=self.seed),
        )
        self.run_ids.append(run.model_id)
        for step in range(self.steps):
            self._train(run, draw)
            if step % 5 == 2:
                self._sample(run, draw)
            if step % 7 == 4:
                path = self._save(run, f"at-{step}")
                run = self._wait(
                    "load",
                    lambda path=path: service.create_training_client_from_state_with_optimizer(
                        path
                    ),
                )
                self.run_ids.append(run.model_id)
        self.final_path = self._save(run, "final")

    def _train(self, run: Any, draw: random.Random) -> None:
        batch = [_datum(draw) for _ in range(3)]  # two chunks
        params = types.AdamParams(learning_rate=_LEARNING_RATE)
        gradient = run.forward_backward(batch, "cross_entropy")
        step = run.optim_step(params)
        told = self._wait("forward_backward", lambda: gradient)
        self.transcript.append(told.metrics["loss:sum"])
        self.transcript += [row["logprobs"].data for row in told.loss_fn_outputs]
        self.transcript.append(self._wait("optim_step", lambda: step).metrics["grad_norm"])

    def _sample(self, run: Any, draw: random.Random) -> None:
        sampler = self._wait("sampler", run.save_weights_and_get_sampling_client)
        prompt = types.ModelInput.from_ints([draw.randrange(2, VOCAB) for _ in range(4)])
        params = types.SamplingParams(max_tokens=12, temperature=1.0, seed=draw.randrange(1 << 30))
        told = self._wait("sample", lambda: sampler.sample(prompt, 2, params))
        self.transcript += [(one.tokens, one.logprobs) for one in told.sequences]

    def _save(self, run: Any, name: str) -> str:
        """A full disk may refuse a save, in a sentence; a client saves again under another name."""
        for attempt in range(1000):
            try:
                return str(self._wait("save", lambda n=f"{name}-{attempt}": run.save_state(n)).path)
            except tinker.RequestFailedError as error:
                if "not saved: the service's store is full" not in str(error):
                    raise
                self.refused_saves += 1
                time.sleep(0.2)
        raise AssertionError("the store never took the checkpoint")

    def _wait(self, what: str, ask: Callable[[], Any]) -> Any:
        began = time.monotonic()
        answer = ask()
        if hasattr(answer, "result"):
            answer = answer.result(_WAIT_SECONDS)
        self.waits.append(Wait(began, time.monotonic(), what))
        self.progress()
        return answer


def _datum(draw: random.Random) -> Any:
    tokens = [draw.randrange(2, VOCAB) for _ in range(draw.randrange(6, 20))]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
