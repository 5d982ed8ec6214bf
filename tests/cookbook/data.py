"""Data sets under the recipes' names, with the real ones' columns, in the folder where recipes run.

`load_dataset("org/name")` takes a folder of that name before it thinks of a hub.
"""

import json
import random
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, object]
_MAIN = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: train.jsonl}
  - {split: test, path: test.jsonl}
---
"""


def write_data(folder: Path, cookbook: Path) -> None:
    chats = (cookbook / "example_data" / "conversations.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in chats]
    _write(folder / "HuggingFaceH4/no_robots", train=rows[:112], test=rows[112:])
    _write(folder / "openai/gsm8k", train=_sums(0, 256), test=_sums(1, 16))
    (folder / "openai/gsm8k/README.md").write_text(_MAIN)
    _write(folder / "zwhe99/DeepMath-103K", train=_sums(2, 256))
    _write(folder / "Anthropic/hh-rlhf", train=_preferences(0, 128), test=_preferences(1, 16))
    _write(folder / "allenai/tulu-3-sft-mixture", train=_chats(3, 256))
    _write(folder / "open-thoughts/OpenThoughts3-1.2M", train=_thoughts(4, 128))
    _write(folder / "hicai-zju/SciKnowEval", test=_choices(5, 128))
    examples = folder / "tinker_cookbook/example_data"  # a recipe reads it from where it runs
    examples.mkdir(parents=True)
    sentences = (cookbook / "example_data" / "multilingual.txt").read_text().splitlines()
    (examples / "multilingual.txt").write_text("\n".join(sentences[:64]))


def _write(folder: Path, **splits: Iterable[Row]) -> None:
    folder.mkdir(parents=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _sums(seed: int, count: int) -> list[Row]:
    """Every answer is 7, so that a model of a few thousand weights can learn to be right."""
    draw, rows = random.Random(seed), list[Row]()
    for _ in range(count):
        first = draw.randint(0, 7)
        question = f"What is {first} + {7 - first}?"
        rows.append({"question": question, "answer": f"{first} and {7 - first} make\n#### 7"})
    return rows


def _preferences(seed: int, count: int) -> list[Row]:
    draw, rows = random.Random(seed), list[Row]()
    for _ in range(count):
        asked = f"\n\nHuman: Is {draw.randint(0, 999)} a number?\n\nAssistant: "
        rows.append({"chosen": f"{asked}Yes, it is.", "rejected": f"{asked}No idea."})
    return rows


def _chats(seed: int, count: int) -> list[Row]:
    """The first turn of each is all that its recipe reads."""
    asked = (str(row["question"]) for row in _sums(seed, count))
    return [{"messages": [{"role": "user", "content": question}]} for question in asked]


def _thoughts(seed: int, count: int) -> list[Row]:
    rows = list[Row]()
    for row in _sums(seed, count):
        thought = f"<think>\nI count on.\n</think>\n\n{row['answer']}"
        asked = {"from": "human", "value": row["question"]}
        rows.append({"conversations": [asked, {"from": "gpt", "value": thought}]})
    return rows


def _choices(seed: int, count: int) -> list[Row]:
    draw, rows, labels = random.Random(seed), list[Row](), ["A", "B", "C", "D"]
    for _ in range(count):
        words = [f"element {draw.randint(1, 118)}" for _ in labels]
        rows.append(
            {
                "domain": "Chemistry",
                "details": {"level": "L3"},
                "type": "mcq-4-choices",
                "question": "Which is the heaviest?",
                "choices": {"text": words, "label": labels},
                "answerKey": draw.choice(labels),
            }
        )
    return rows
