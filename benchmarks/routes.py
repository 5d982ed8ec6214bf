"""Route planning on a fixed random graph: a task with an exact verifier that tiny models can learn.

A question names a start and a goal; an answer is seven nodes, each an edge away from the one before, the
goal last. Most questions have dozens of right answers. The bases are made on the spot: a teacher
that has been told the share of every right next node, and a student, a sixth its size, that has seen a
few routes.

Legend: B routes of a batch, T their tokens, V the vocabulary.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

NODES, DEGREE, HOPS = 24, 3, 7
BEGIN, END, VOCAB = NODES, NODES + 1, 32
BATCH = 256
HELD_OUT = 96
TEACHER_STEPS, STUDENT_STEPS = 700, 160
Question = tuple[int, int]
Route = tuple[int, ...]


@dataclass(frozen=True)
class Size:
    hidden: int
    inner: int
    layers: int
    heads: int


TEACHER, STUDENT = Size(64, 192, 3, 4), Size(32, 96, 2, 4)


def settings() -> dict[str, object]:
    """What the task and the bases follow from."""
    return {
        "graph": [NODES, DEGREE, HOPS, HELD_OUT],
        "bases": [astuple(TEACHER), TEACHER_STEPS, astuple(STUDENT), STUDENT_STEPS, BATCH],
    }


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

    def shares(self, tokens_BT: Tensor) -> Tensor:
        """Of each next node among the routes that are left, uniform over them: [B, HOPS, V]."""
        edge = torch.zeros(VOCAB, VOCAB)
        for node, others in enumerate(self.edges):
            edge[node, sorted(others)] = 1.0
        walks = [torch.eye(VOCAB)]  # from a node to a goal, by how many hops are left
        for _ in range(HOPS - 1):
            walks.append(edge @ walks[-1])
        goal = tokens_BT[:, 2]
        at = torch.cat([tokens_BT[:, 1:2], tokens_BT[:, 3:-1]], 1)
        ways = [edge[at[:, hop]] * walks[HOPS - 1 - hop][:, goal].T for hop in range(HOPS)]
        ways_BTV = torch.stack(ways, 1)
        return ways_BTV / ways_BTV.sum(-1, keepdim=True)

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


Loss = Callable[[Tensor, Tensor], Tensor]
"""Of the answers' logits [B, HOPS, V] and the routes [B, T]."""


def taught(
    model: LlamaForCausalLM,
    routes: Routes,
    questions: Sequence[Question],
    loss: Loss,
    *,
    steps: int,
    rate: float,
    seed: int,
) -> LlamaForCausalLM:
    """Trained on right answers alone, in plain torch: where a base model comes from is not measured."""
    dice = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        tokens = routes.draw(dice, questions, BATCH)
        loss(model(tokens[:, :-1]).logits[:, 2:], tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def of_one_route(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    return cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 3:].flatten())


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

    def of_all_routes(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
        return cross_entropy(logits_BTV.flatten(0, 1), routes.shares(tokens_BT).flatten(0, 1))

    def teacher(model: LlamaForCausalLM) -> LlamaForCausalLM:
        steps, every = 10 if quick else TEACHER_STEPS, [*routes.known, *routes.held_out]
        return taught(model, routes, every, of_all_routes, steps=steps, rate=1e-2, seed=1)

    def student(model: LlamaForCausalLM) -> LlamaForCausalLM:
        steps = 10 if quick else STUDENT_STEPS
        return taught(model, routes, routes.known, of_one_route, steps=steps, rate=6e-3, seed=2)

    return {
        "teacher": _saved(folder / "teacher", lambda: teacher(new_model(TEACHER, 1))),
        "student": _saved(folder / "student", lambda: student(new_model(STUDENT, 2))),
    }


def _saved(folder: Path, make: Callable[[], LlamaForCausalLM]) -> Path:
    """A folder of that name is whole: it gets its name when its last file is there."""
    if not folder.exists():
        new = folder.with_suffix(".new")
        make().save_pretrained(new)
        new.rename(folder)
    return folder
