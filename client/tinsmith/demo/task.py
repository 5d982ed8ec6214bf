"""The task: name the topic of a short English question.

The questions are those of the package chatterbot-corpus (BSD-3-Clause), read from where it is
installed. Which are held out is decided by a hash of the question, never by a run.
"""

import hashlib
import importlib.util
import random
from dataclasses import dataclass
from pathlib import Path

import yaml

TOPICS = ("ai", "coding", "emotion", "literature", "psychology", "trivia")
_PER_TOPIC = 60
_LONGEST = 80  # characters


@dataclass(frozen=True)
class Question:
    text: str
    topic: str

    @property
    def prompt(self) -> str:
        return f"Question: {self.text}\nTopic:"

    @property
    def answer(self) -> str:
        return f" {self.topic}"


def load() -> tuple[list[Question], list[Question]]:
    """Training and held-out questions, shuffled the same way every time."""
    training: list[Question] = []
    held_out: list[Question] = []
    for topic in TOPICS:
        chosen = sorted(_questions(topic), key=_hash)[:_PER_TOPIC]
        for question in chosen:
            (held_out if int(_hash(question), 16) % 4 == 0 else training).append(question)
    for part in (training, held_out):
        random.Random(0).shuffle(part)
    return training, held_out


def _questions(topic: str) -> set[Question]:
    text = (_corpus() / f"{topic}.yml").read_text(encoding="utf-8")
    talks = yaml.safe_load(text)["conversations"]
    asked = {" ".join(str(talk[0]).split()) for talk in talks}
    return {Question(text, topic) for text in asked if 8 <= len(text) <= _LONGEST}


def _corpus() -> Path:
    """Found without importing the package, which would pull in far more than its data."""
    spec = importlib.util.find_spec("chatterbot_corpus")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The demo needs its data: pip install 'tinsmith[demo]'.")
    return Path(spec.submodule_search_locations[0], "data", "english")


def _hash(question: Question) -> str:
    return hashlib.sha256(question.text.encode()).hexdigest()
