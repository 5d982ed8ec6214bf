"""On-policy distillation with plain Tinker calls (Thinking Machines, "On-Policy Distillation", 2025).

The student samples, the teacher scores each sampled token, and the reverse KL becomes the advantage:
A = -(log p_student - log q_teacher), less the batch's mean. The mean is a baseline: it leaves the
expected gradient as it is (but for one part in the batch's tokens) and takes most of its variance
(Williams 1992); without it a student so far from its teacher may wander off. The loss is importance sampling.
"""

from collections.abc import Callable, Iterator
from typing import Any

import tinker
from tinker import types

from tinsmith.demo.task import Question

SAMPLES = 2
MAX_TOKENS = 5
ADAM = types.AdamParams(learning_rate=1e-3)


def distill(
    student: tinker.TrainingClient,
    teacher: tinker.SamplingClient,
    tokenizer: Any,
    source: Iterator[list[Question]],
    steps: int,
    on_step: Callable[[float], None],
) -> None:
    """Reports the KL per sampled token of each step, before it."""
    for number in range(steps):
        prompts = [tokenizer.encode(question.prompt) for question in next(source)]
        sampler = student.save_weights_and_get_sampling_client().result()
        data, gaps = score(sampler, teacher, prompts, seed=number)
        gradient = student.forward_backward(data, "importance_sampling")
        step = student.optim_step(ADAM)
        gradient.result()
        step.result()
        on_step(sum(gaps) / len(gaps))


def score(
    sampler: tinker.SamplingClient,
    teacher: tinker.SamplingClient,
    prompts: list[list[int]],
    seed: int,
) -> tuple[list[types.Datum], list[float]]:
    """A datum per sample, and log p - log q of every sampled token."""
    drawn = [
        sampler.sample(
            types.ModelInput.from_ints(prompt),
            SAMPLES,
            types.SamplingParams(max_tokens=MAX_TOKENS, seed=1000 * seed + index),
        )
        for index, prompt in enumerate(prompts)
    ]
    pairs = [
        (prompt, sequence)
        for prompt, future in zip(prompts, drawn, strict=True)
        for sequence in future.result().sequences
    ]
    scored = [
        teacher.compute_logprobs(types.ModelInput.from_ints(prompt + list(sequence.tokens)))
        for prompt, sequence in pairs
    ]
    gaps = [
        _gap(sequence, future.result()) for (_, sequence), future in zip(pairs, scored, strict=True)
    ]
    flat = [one for gap in gaps for one in gap]
    mean = sum(flat) / len(flat)
    data = [
        _datum(prompt, sequence, [mean - one for one in gap])
        for (prompt, sequence), gap in zip(pairs, gaps, strict=True)
    ]
    return data, flat


def _gap(sequence: types.SampledSequence, scored: list[float | None]) -> list[float]:
    """log p - log q of its tokens; the teacher scored them at the end of its prompt."""
    theirs = [logprob or 0.0 for logprob in scored[-len(sequence.tokens) :]]
    return [p - q for p, q in zip(sequence.logprobs or [], theirs, strict=True)]


def _datum(
    prompt: list[int], sequence: types.SampledSequence, advantages: list[float]
) -> types.Datum:
    tokens, padding = prompt + list(sequence.tokens), [0.0] * (len(prompt) - 1)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "logprobs": padding + list(sequence.logprobs or []),
            "advantages": padding + advantages,
        },
    )
