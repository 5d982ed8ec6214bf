"""How good a model is at the task: held-out loss, exact match, and how far it is from its teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinker import SamplingClient, types

from tinsmith.demo.task import Question


@dataclass(frozen=True)
class Figures:
    loss: float
    """Nats per answer token, held-out questions."""
    exact_match: float
    """Share of greedy answers that are the topic and nothing else."""


def example(tokenizer: Any, question: Question) -> tuple[list[int], list[int]]:
    """Prompt and answer as tokens; the answer ends the turn."""
    return (
        tokenizer.encode(question.prompt),
        [*tokenizer.encode(question.answer), tokenizer.eos_token_id],
    )


def measure(sampler: SamplingClient, tokenizer: Any, questions: Sequence[Question]) -> Figures:
    """All requests are sent before the first answer is awaited: the service batches them."""
    greedy = types.SamplingParams(max_tokens=6, temperature=0.0)
    scored, answered = [], []
    for question in questions:
        prompt, answer = example(tokenizer, question)
        scored.append(sampler.compute_logprobs(types.ModelInput.from_ints(prompt + answer)))
        answered.append(sampler.sample(types.ModelInput.from_ints(prompt), 1, greedy))
    losses: list[float] = []
    hits = 0
    for question, score, reply in zip(questions, scored, answered, strict=True):
        _, answer = example(tokenizer, question)
        losses += [-logprob for logprob in score.result()[-len(answer) :] if logprob is not None]
        text = tokenizer.decode(reply.result().sequences[0].tokens, skip_special_tokens=True)
        hits += text == question.answer
    return Figures(sum(losses) / len(losses), hits / len(questions))
