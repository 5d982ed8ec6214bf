"""The folder that a trainer leaves, evaluated by the real lm-eval with `--model hf`, adapter and base together."""

import json
from pathlib import Path
from typing import Any

import pytest
from tinsmith import types
from tinsmith.trl import DistillationConfig, DistillationTrainer
from transformers import AutoTokenizer

from tests.contract.conftest import BASE_MODEL, SECOND_MODEL, Service

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that meet here
QUESTIONS: list[dict[str, Any]] = [
    {"text": "w5 w6", "choices": ["w7", "w8 w9", "w30 w31 w32"], "answer": 0},
    {"text": "w40 w41 w42", "choices": ["w50 w51", "w60"], "answer": 1},
]
TASK = """
task: words
dataset_path: json
test_split: test
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


def evaluated(folder: Path, tmp_path: Path) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    data = tmp_path / "words.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/words.yaml").write_text(TASK.format(data=data))
    return simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32", "device": "cpu"},
        tasks=["words"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        bootstrap_iters=0,
        cache_requests=False,
        batch_size=1,
    )


def scores(sampler: Any) -> list[list[float]]:
    """What the service gives each answer: log p of its words."""
    found = []
    for one in QUESTIONS:
        begin = [int(word[1:]) for word in one["text"].split()]
        row = []
        for choice in one["choices"]:
            words = [int(word[1:]) for word in choice.split()]
            scored = sampler.compute_logprobs(types.ModelInput.from_ints(begin + words)).result()
            row.append(sum(scored[len(begin) :]))
        found.append(row)
    return found


def test_lm_eval_scores_it_as_the_service_does(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    base = service.data_dir / "tiny"
    args = DistillationConfig(
        str(tmp_path / "out"), base_url=service.url, api_key=service.api_key, max_steps=2,
        learning_rate=3e-2, max_completion_length=4, save_strategy="no",
    )  # fmt: skip
    trainer = DistillationTrainer(
        model=str(base),
        teacher_model=SECOND_MODEL,
        args=args,
        train_dataset=[{"prompt": "w5 w6"}, {"prompt": "w7"}],
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    assert trainer.base_model == BASE_MODEL
    trainer.train()
    trainer.save_model(tmp_path / "final")
    expected = scores(trainer.run.save_weights_and_get_sampling_client().result())
    untrained = trainer._service.create_sampling_client(base_model=BASE_MODEL).result()
    before = scores(untrained)
    trainer.close()
    found = evaluated(tmp_path / "final", tmp_path)
    samples = sorted(found["samples"]["words"], key=lambda one: one["doc_id"])
    theirs = [[float(pair[0]) for pair in one["filtered_resps"]] for one in samples]
    for ours, row, old in zip(expected, theirs, before, strict=True):
        assert row == pytest.approx(ours, abs=1e-3)
        assert row != pytest.approx(old, abs=1e-2)
    best = [
        row.index(max(row)) == one["answer"] for row, one in zip(expected, QUESTIONS, strict=True)
    ]
    assert found["results"]["words"]["acc,none"] == pytest.approx(sum(best) / len(best))
