"""Route planning on a fixed random graph: a task with an exact verifier that tiny models can learn.

A question names a start and a goal; an answer is seven nodes, each an edge away from the one before, the
goal last. Most questions have dozens of right answers. The bases are made on the spot: a teacher
that has seen many routes, and a student, a quarter its size, that has seen few.

Legend: B routes of a batch, T their tokens.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

NODES, DEGREE, HOPS = 24, 3, 7
BEGIN, END, VOCAB = NODES, NODES + 1, 32
HELD_OUT = 96
TEACHER_STEPS, STUDENT_STEPS = 700, 250
Question = tuple[int, int]
Route = tuple[int, ...]


@dataclass(frozen=True)
class Size:
    hidden: int
    inner: int
    layers: int
    heads: int


TEACHER, STUDENT = Size(64, 192, 3, 4), Size(40, 96, 2, 4)


class Routes:
    """The graph, all its routes by question, and which questions no student is trained on."""

    def __init__(self, seed: int = 0) -> None:
        dice = random.Random(seed)
        others = [[other for other in range(NODES) if other != node] for node in range(NODES)]
        self.edges = [frozenset(dice.sample(some, DEGREE)) for some in others]
        self.by_question: dict[Question, list[Route]] = {}
        for start in range(NODES):
            for route in self._walk((start,)):
                self.by_question.setdefault((start, route[-1]), []).append(route[1:])
        questions = sorted(self.by_question)
        dice.shuffle(questions)
        self.held_out, self.known = questions[:HELD_OUT], questions[HELD_OUT:]

    def _walk(self, path: Route) -> Iterator[Route]:
        if len(path) == HOPS + 1:
            yield path
            return
        for node in sorted(self.edges[path[-1]]):
            yield from self._walk((*path, node))

    def valid(self, question: Question, answer: Sequence[int]) -> bool:
        start, goal = question
        path = [start, *answer]
        steps = all(
            node < NODES and node in self.edges[before] for before, node in itertools.pairwise(path)
        )
        return len(answer) == HOPS and steps and path[-1] == goal

    def draw(self, dice: random.Random, questions: Sequence[Question], count: int) -> Tensor:
        """Uniform over questions, then over their routes: [B, T]."""
        rows = []
        for question in dice.choices(questions, k=count):
            rows.append([*prompt(question), *dice.choice(self.by_question[question])])
        return torch.tensor(rows)


def prompt(question: Question) -> list[int]:
    return [BEGIN, *question]


def new_model(size: Size, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=32,
        bos_token_id=BEGIN,
        eos_token_id=END,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def taught(
    routes: Routes, size: Size, questions: Sequence[Question], steps: int, *, seed: int, batch: int
) -> LlamaForCausalLM:
    """Trained on right answers alone, in plain torch: where a base model comes from is not measured."""
    model, dice = new_model(size, seed), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for _ in range(steps):
        tokens = routes.draw(dice, questions, batch)
        logits = model(tokens[:, :-1]).logits[:, 2:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 3:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def answers(
    model: LlamaForCausalLM, questions: Sequence[Question], seed: int = 0
) -> list[tuple[Question, list[int]]]:
    """One sampled answer to each, at temperature 1."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([prompt(question) for question in questions])
    for _ in range(HOPS):
        odds = model(tokens).logits[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(odds, 1, generator=generator)], 1)
    return list(zip(questions, tokens[:, 3:].tolist(), strict=True))


def share_valid(routes: Routes, answered: Sequence[tuple[Question, Sequence[int]]]) -> float:
    return sum(routes.valid(*one) for one in answered) / len(answered)


def make_bases(folder: Path, routes: Routes, *, quick: bool = False) -> dict[str, Path]:
    """The teacher knows every question's routes, the student a short course on the known ones."""
    steps = (20, 10) if quick else (TEACHER_STEPS, STUDENT_STEPS)
    every = [*routes.known, *routes.held_out]
    teacher = taught(routes, TEACHER, every, steps[0], seed=1, batch=256)
    student = taught(routes, STUDENT, routes.known, steps[1], seed=2, batch=256)
    folders = {"teacher": folder / "teacher", "student": folder / "student"}
    for name, model in (("teacher", teacher), ("student", student)):
        model.save_pretrained(folders[name])
    return folders
