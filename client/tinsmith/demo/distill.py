"""On-policy distillation with plain Tinker calls (Thinking Machines, "On-Policy Distillation", 2025).

The student samples, the teacher scores each sampled token, and the reverse KL becomes the advantage:
A = -(log p_student - log q_teacher). The loss is importance sampling.
"""

from collections.abc import Callable, Iterator
from typing import Any

import tinker
from tinker import types

from tinsmith.demo.task import Question

SAMPLES = 2
ADAM = types.AdamParams(learning_rate=1e-3)
PARAMS = types.SamplingParams(max_tokens=5, temperature=1.0)


def distill(
    student: tinker.TrainingClient,
    teacher: tinker.SamplingClient,
    tokenizer: Any,
    source: Iterator[list[Question]],
    steps: int,
    on_step: Callable[[float], None],
) -> None:
    """Reports the KL per sampled token of each step, before it."""
    for _ in range(steps):
        prompts = [tokenizer.encode(question.prompt) for question in next(source)]
        sampler = student.save_weights_and_get_sampling_client().result()
        data, gaps = score(sampler, teacher, prompts)
        gradient = student.forward_backward(data, "importance_sampling")
        step = student.optim_step(ADAM)
        gradient.result()
        step.result()
        on_step(sum(gaps) / len(gaps))


def score(
    sampler: tinker.SamplingClient, teacher: tinker.SamplingClient, prompts: list[list[int]]
) -> tuple[list[types.Datum], list[float]]:
    """A datum per sample, and log p - log q of every sampled token."""
    drawn = [
        sampler.sample(types.ModelInput.from_ints(prompt), SAMPLES, PARAMS) for prompt in prompts
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
    data, gaps = [], []
    for (prompt, sequence), future in zip(pairs, scored, strict=True):
        count = len(sequence.tokens)
        ours = list(sequence.logprobs or [])
        theirs = [logprob or 0.0 for logprob in future.result()[-count:]]
        gap = [p - q for p, q in zip(ours, theirs, strict=True)]
        gaps += gap
        data.append(_datum(prompt, list(sequence.tokens), ours, [-one for one in gap]))
    return data, gaps


def _datum(
    prompt: list[int], sampled: list[int], logprobs: list[float], advantages: list[float]
) -> types.Datum:
    tokens, padding = prompt + sampled, [0.0] * (len(prompt) - 1)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "logprobs": padding + logprobs,
            "advantages": padding + advantages,
        },
    )
