"""Supervised fine-tuning, interrupted on purpose: it goes on from a saved state in a new client."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tinker
from tinker import types

from tinsmith.demo.measure import example
from tinsmith.demo.task import Question

BATCH = 12
ADAM = types.AdamParams(learning_rate=1e-3)


def datum(tokenizer: Any, question: Question) -> types.Datum:
    """Position i of the input predicts target i; only the answer counts."""
    prompt, answer = example(tokenizer, question)
    tokens = prompt + answer
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "weights": [0.0] * (len(prompt) - 1) + [1.0] * len(answer),
        },
    )


def batches(questions: Sequence[Question]) -> Iterator[list[Question]]:
    while True:
        for start in range(0, len(questions) - BATCH + 1, BATCH):
            yield list(questions[start : start + BATCH])


def tune(
    run: tinker.TrainingClient,
    tokenizer: Any,
    source: Iterator[list[Question]],
    steps: int,
    on_step: Callable[[float], None],
) -> None:
    """Gradient and step are sent together: the service runs them back to back."""
    for _ in range(steps):
        data = [datum(tokenizer, question) for question in next(source)]
        gradient = run.forward_backward(data, "cross_entropy")
        step = run.optim_step(ADAM)
        answers = sum(sum(one.loss_fn_inputs["weights"].data) for one in data)
        on_step(gradient.result().metrics["loss:sum"] / answers)
        step.result()
