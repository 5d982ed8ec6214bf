"""The folder that a trainer leaves, evaluated by the guide's lm_eval command."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from tinsmith import types
from tinsmith.trl import DistillationConfig, DistillationTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.contract.conftest import SECOND_MODEL, Service

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that meet here
COMMAND = Path(__file__).parent / "guide/6_lm_eval.txt"
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


@pytest.fixture
def desk(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task of the test's own."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "words.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/words.yaml").write_text(TASK.format(data=data))
    return tmp_path


def trained(service: Service, model: Any, **more: Any) -> Any:
    """Its folder is the guide's, ./gkd_output."""
    args = DistillationConfig(
        "./gkd_output", base_url=service.url, api_key=service.api_key, max_steps=2,
        learning_rate=3e-2, max_completion_length=4,
    )  # fmt: skip
    trainer = DistillationTrainer(
        model=model,
        teacher_model=SECOND_MODEL,
        args=args,
        train_dataset=[{"prompt": "w5 w6"}, {"prompt": "w7"}],
        processing_class=AutoTokenizer.from_pretrained(service.data_dir / "tiny", eos_token="w1"),
        **more,
    )
    trainer.train()
    return trainer


def evaluated(desk: Path, given: str, base: str) -> tuple[float, list[Any]]:
    """The guide's command with our task, in this process; answers the accuracy and each answer's log p."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    words = shlex.split(COMMAND.read_text(encoding="utf-8").replace("\\\n", " "))
    asked = dict(zip(words[1::2], words[2::2], strict=True))
    assert asked["--model_args"] == "pretrained=./gkd_output"
    whole = f"pretrained={base},peft=./gkd_output,tokenizer=./gkd_output"
    found: Any = simple_evaluate(
        model=asked["--model"],
        model_args=whole if given == "adapter" else asked["--model_args"],
        tasks=["words"],
        task_manager=TaskManager(include_path=str(desk / "tasks"), include_defaults=False),
        device="cpu",
        batch_size=asked["--batch_size"],
        bootstrap_iters=0,
    )
    rows = sorted(found["samples"]["words"], key=lambda row: row["doc_id"])
    scored = [[float(pair[0]) for pair in row["filtered_resps"]] for row in rows]
    return found["results"]["words"]["acc,none"], scored


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


@pytest.mark.parametrize("given", ["loaded", "folder", "adapter"])
def test_lm_eval_scores_it_as_the_service_does(given: str, service: Service, desk: Path) -> None:
    """By the folder's path; an adapter alone, which peft_config asks for, with its base model."""
    base = str(service.data_dir / "tiny")
    model: Any = AutoModelForCausalLM.from_pretrained(base) if given == "loaded" else base
    more = {"peft_config": LoraConfig(r=8, lora_alpha=32)} if given == "adapter" else {}
    trainer = trained(service, model, **more)
    expected = scores(trainer.run.save_weights_and_get_sampling_client().result())
    before = scores(trainer._service.create_sampling_client(base_model=trainer.base_model).result())
    trainer.close()
    accuracy, found = evaluated(desk, given, base)
    for ours, theirs, old in zip(expected, found, before, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-3)
        assert theirs != pytest.approx(old, abs=1e-2)
    best = [
        row.index(max(row)) == one["answer"] for row, one in zip(expected, QUESTIONS, strict=True)
    ]
    assert accuracy == pytest.approx(sum(best) / len(best))
    assert (desk / "gkd_output/model.safetensors").exists() == (given != "adapter")
