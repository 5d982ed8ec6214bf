"""`tinsmith eval`: the real lm-eval, started by one command, on a task from local files."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tinker
from tinsmith_server.cli.evaluation import _model_args
from tinsmith_server.cli.remote import Remote
from tinsmith_server.problems import Problem

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.test_clients import train

TASK = """
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
QUESTIONS: list[
    dict[str, Any]
] = [  # without w20 to w29: the tiny tokenizer's unknown word is w2, and splits them
    {"text": "w5 w9 w14", "choices": ["w3", "w41 w8"], "answer": 0},
    {"text": "w17 w41", "choices": ["w3", "w8"], "answer": 1},
    {"text": "w17 w8", "choices": ["w41", "w5"], "answer": 0},
]


def scored(service: Service, model: str, folder: Path) -> list[list[float]]:
    """Log-probability of each choice of each question, as lm-eval writes them down."""
    out = folder / "out"
    command = [sys.executable, "-m", "tinsmith_server.cli", "eval", "--model", model]
    command += ["--tasks", "words", "--include-path", str(folder), "--output-path", str(out)]
    environment = service.environment | {
        "TINKER_BASE_URL": service.url,
        "TINKER_API_KEY": service.api_key,
        "XDG_CACHE_HOME": str(folder),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    command.append("--log-samples")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "words" in done.stdout
    [file] = out.glob("**/samples_words_*.jsonl")
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    rows.sort(key=lambda row: row["doc_id"])
    return [[float(answer[0][0]) for answer in row["resps"]] for row in rows]


def test_one_command_scores_a_checkpoint_as_the_sampler_does(
    service: Service, tmp_path: Path
) -> None:
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=1).result(60)
        train(tinker, run, 3)
        path = run.save_weights_for_sampler("scored").result(60).path
        data = tmp_path / "words.jsonl"
        data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
        (tmp_path / "words.yaml").write_text(TASK.format(data=data))
        found = scored(service, path, tmp_path)
        sampler = client.create_sampling_client(model_path=path)
        for question, scores in zip(QUESTIONS, found, strict=True):
            for choice, score in zip(question["choices"], scores, strict=True):
                words = f"{question['text']} {choice}".split()
                prompt = tinker.ModelInput.from_ints([int(word[1:]) for word in words])
                logprobs = sampler.compute_logprobs(prompt).result(60)
                expected = sum(filter(None, logprobs[-len(choice.split()) :]))
                assert math.isclose(score, expected, abs_tol=1e-5)


def test_what_lm_eval_cannot_be_told_is_refused_before_it_starts(service: Service) -> None:
    remote = Remote(service.url, service.api_key)
    for model, message in (
        ("a,b", "which lm-eval cannot be told"),
        ("no/such", "is not served"),
        ("tinker://sess-1:train:0/weights/gone", "there is no checkpoint"),
    ):
        with pytest.raises(Problem, match=message):
            _model_args(remote, model, 1)
    assert "max_length=128" in _model_args(remote, "llama", 1)
