"""The real lm-eval on the endpoint: its scores are those of `--model hf` on the folder of base and adapter.

Tasks and data are local files, so nothing is fetched.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from tests.contract.smollm2.conftest import Tuned

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that meet here
CHOICES = [
    ("The capital of France is", ["Paris", "Rome", "a fish"], 0),
    ("Two and two make", ["five", "four", "green"], 1),
    ("The sky over the old harbour is", ["blue", "green.", "grey"], 1),
    ("Ice is frozen", ["water", "fire", "music and more"], 0),
    ("The opposite of hot is", ["warm", "cold", "Ünïcödé 東京"], 1),
    ("A dog is an", ["animal", "idea", "apple"], 0),
]
QUESTIONS = ["What is the capital of Italy?", "Name a colour.", "How many legs has a spider?"]
PROSE = [
    "The ship left the harbour at dawn, and nobody on the quay waved to it.",
    "Numbers such as 12.5 and 1,000 are read out; so are names like Grüße or 東京.",
]
TASKS = {
    "choice": """
        output_type: multiple_choice
        doc_to_text: "{{text}}"
        doc_to_choice: "{{choices}}"
        doc_to_target: "{{answer}}"
        metric_list: [{metric: acc}, {metric: acc_norm}]""",
    "answer": """
        output_type: generate_until
        doc_to_text: "Q: {{text}}\\nA:"
        doc_to_target: "Rome"
        generation_kwargs: {until: ["\\n", "Q:"], max_gen_toks: 12, do_sample: false}
        metric_list: [{metric: exact_match}]""",
    "prose": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]""",
}
DATA: dict[str, list[dict[str, Any]]] = {
    "choice": [{"text": text, "choices": some, "answer": at} for text, some, at in CHOICES],
    "answer": [{"text": text} for text in QUESTIONS],
    "prose": [{"text": text} for text in PROSE],
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return TaskManager(include_path=str(folder), include_defaults=False)


def write_tasks(folder: Path) -> None:
    for name, text in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in DATA[name]))
        head = f"task: {name}\ndataset_path: json\ntest_split: test\n"
        head += f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        (folder / f"{name}.yaml").write_text(
            head + "\n".join(line.strip() for line in text.split("\n"))
        )


def evaluated(
    model: str, arguments: dict[str, Any], tasks: TaskManager, names: list[str], **options: Any
) -> Any:
    return simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=names,
        task_manager=tasks,
        bootstrap_iters=0,
        cache_requests=False,
        **options,
    )


def hf(tuned: Tuned, tasks: TaskManager, names: list[str], **options: Any) -> Any:
    arguments = {
        "pretrained": str(tuned.base),
        "peft": str(tuned.adapter),
        "dtype": "float32",
        "device": "cpu",
    }
    return evaluated("hf", arguments, tasks, names, batch_size=1, **options)


@pytest.fixture(scope="module", autouse=True)
def key(tuned: Tuned) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", tuned.service.api_key)
        yield


@pytest.fixture(scope="module")
def expected(tuned: Tuned, tasks: TaskManager) -> Any:
    return hf(tuned, tasks, list(TASKS))


def rows(results: Any) -> list[str]:
    """What lm-eval prints: scores to their last digit."""
    return [line for line in make_table(results).splitlines() if "|" in line]


def replies(results: Any, name: str) -> list[Any]:
    samples = sorted(results["samples"][name], key=lambda one: one["doc_id"])
    return [one["filtered_resps"] for one in samples]


def test_scores_are_those_of_the_exported_folder(
    tuned: Tuned, tasks: TaskManager, expected: Any
) -> None:
    arguments = {
        "model": tuned.path,
        "base_url": f"{tuned.service.url}/v1/completions",
        "tokenizer": str(tuned.base),
        "tokenizer_backend": "huggingface",
    }
    found = evaluated("local-completions", arguments, tasks, list(TASKS), batch_size=4)
    assert rows(found) == rows(expected)
    assert replies(found, "answer") == replies(expected, "answer")
    for ours, theirs in zip(replies(found, "choice"), replies(expected, "choice"), strict=True):
        for (logprob, greedy), (their_logprob, their_greedy) in zip(ours, theirs, strict=True):
            assert logprob == pytest.approx(their_logprob, abs=1e-3)
            assert greedy == their_greedy


def test_without_a_tokenizer_of_its_own(tuned: Tuned, tasks: TaskManager, expected: Any) -> None:
    """The model stands in the address, because lm-eval's tokenizer calls name none."""
    root = f"{tuned.service.url}/m/{quote(tuned.path, safe='')}"
    arguments = {
        "model": "as-in-the-address",
        "base_url": f"{root}/v1/completions",
        "auth_token": tuned.service.api_key,
        "num_concurrent": 4,
    }
    found = evaluated("local-completions", arguments, tasks, ["choice", "answer"], batch_size=1)
    assert replies(found, "answer") == replies(expected, "answer")
    assert found["results"]["choice"] == expected["results"]["choice"]


def test_chats_answer_as_the_exported_folder_does(tuned: Tuned, tasks: TaskManager) -> None:
    arguments = {
        "model": tuned.path,
        "base_url": f"{tuned.service.url}/v1/chat/completions",
        "num_concurrent": 3,
    }
    found = evaluated(
        "local-chat-completions", arguments, tasks, ["answer"], apply_chat_template=True
    )
    expected = hf(tuned, tasks, ["answer"], apply_chat_template=True)
    assert rows(found) == rows(expected)
    assert replies(found, "answer") == replies(expected, "answer")
