"""The guide's snippets as they are written, but for the import; and TRL's own classes as the reference."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tinsmith import ServiceClient, types
from tinsmith.trl import (
    DistillationConfig,
    DistillationTrainer,
    GKDConfig,
    GKDTrainer,
    GOLDConfig,
    MiniLLMConfig,
    MiniLLMTrainer,
    SDFTConfig,
    SDFTTrainer,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, AutoTokenizer, TokenizersBackend

from tests.contract.conftest import BASE_MODEL, SECOND_MODEL, VOCAB, Service

GUIDE = Path(__file__).parent / "guide"
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}w10 {{ message['content'] }} "
    "{% else %}w11 {{ message['content'] }} w1 {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}w11 {% endif %}"
)
CHATS = [(f"w{20 + index} w30", f"w{40 + index} w50 w{60 + index}") for index in range(4)]
ROWS = [
    {
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answered},
        ]
    }
    for asked, answered in CHATS
]


def save_tokenizer(folder: Path, shift: int) -> None:
    """The same words; with a shift other ids."""
    words = {f"w{index}": (index + shift) % VOCAB for index in range(VOCAB)}
    backend = Tokenizer(WordLevel(words, unk_token="w2"))
    backend.pre_tokenizer = Whitespace()
    made = TokenizersBackend(tokenizer_object=backend, unk_token="w2", eos_token="w1")
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)


@pytest.fixture
def desk(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where the guide's names are there: `from_pretrained` takes folders before hubs."""
    for name, model, shift in (
        ("meta-llama/Llama-3.2-1B", "tiny", 0),
        ("meta-llama/Llama-3.2-3B-Instruct", "tiny-two", 0),
        ("Qwen/Qwen2.5-7B-Instruct", "tiny-two", 7),
    ):
        shutil.copytree(service.data_dir / model, tmp_path / name)
        save_tokenizer(tmp_path / name, shift)
    data = tmp_path / "trl-lib/Capybara"
    data.mkdir(parents=True)
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINKER_BASE_URL", service.url)
    monkeypatch.setenv("TINKER_API_KEY", service.api_key)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    return tmp_path


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[ServiceClient]:
    with ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        yield client


def snippet(name: str) -> str:
    code = (GUIDE / f"{name}.txt").read_text(encoding="utf-8")
    for theirs in ("trl.experimental.gold", "trl.experimental.minillm", "trl"):
        code = code.replace(f"from {theirs} import", "from tinsmith.trl import")
    return code


def test_the_guides_trainers_run_as_written(desk: Path) -> None:
    names: dict[str, Any] = {}
    for name, folder in (
        ("1_gkd", "gkd_output"),
        ("2_gold", "gold_output"),
        ("3_minillm", "minillm_output"),
    ):
        exec(compile(snippet(name), name, "exec"), names)
        trainer = names["trainer"]
        assert trainer.state.global_step == 3  # 3 epochs of 4 rows
        assert (desk / folder / "adapter_config.json").exists()
        trainer.close()
    rows = names["dataset"]
    names |= {"train_dataset": rows, "eval_dataset": rows}
    exec(compile(snippet("1_gkd").split("dataset = ")[0], "models", "exec"), names)
    exec(compile(snippet("5_evaluation"), "5_evaluation", "exec"), names)
    assert names["trainer"].evaluate()["eval_loss"] > 0
    assert names["config"].eval_strategy == "steps"
    names["trainer"].close()


def test_the_guides_tinker_calls_run_as_written(desk: Path) -> None:
    code = (GUIDE / "4_tinker.txt").read_text(encoding="utf-8")
    for theirs, ours in (
        ("meta-llama/Llama-3.2-1B", BASE_MODEL),
        ("forward_backward(...)", "forward_backward([datum], 'cross_entropy')"),
        ("optim_step(...)", "optim_step(tinker.types.AdamParams(learning_rate=1e-3))"),
        ("save_state(...)", "save_state('guide')"),
    ):
        assert theirs in code
        code = code.replace(theirs, ours)
    from tinker import types as official

    datum = official.Datum(
        model_input=official.ModelInput.from_ints([5, 6]),
        loss_fn_inputs={"target_tokens": [6, 7], "weights": [1.0, 1.0]},  # type: ignore[arg-type]
    )
    names: dict[str, Any] = {"datum": datum}
    exec(compile(code, "4_tinker", "exec"), names)
    sampled = names["sampling_client"].sample(
        official.ModelInput.from_ints([5]), 1, official.SamplingParams(max_tokens=2)
    )
    assert sampled.result(60).sequences


@pytest.mark.parametrize(
    ("beta", "trainer", "config"),
    [(0.5, GKDTrainer, GKDConfig), (1.0, GKDTrainer, GKDConfig)],
)
def test_loss_and_gradient_are_those_of_trl(
    desk: Path, beta: float, trainer: Any, config: Any
) -> None:
    """lmbda 0, so that both see the dataset's completions; TRL's loss on the exported adapter."""
    from peft import AutoPeftModelForCausalLM
    from trl.experimental.gkd import GKDTrainer as Theirs

    tokenizer = AutoTokenizer.from_pretrained("meta-llama/Llama-3.2-1B")
    args = config("out", lmbda=0.0, beta=beta, learning_rate=1e-2, max_steps=3, logging_steps=1)
    ours = trainer(
        model=AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.2-1B"),
        teacher_model=SECOND_MODEL,
        args=args,
        train_dataset=ROWS,
        processing_class=tokenizer,
    )
    ours.train()
    ours.save_model("before")
    ours.args.max_steps = 4
    ours.train()
    logged = ours.state.log_history[-1]
    ours.close()

    student = AutoPeftModelForCausalLM.from_pretrained("before", is_trainable=True)
    teacher = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.2-3B-Instruct")
    total, count = torch.zeros(()), 0
    for asked, answered in CHATS:
        prompt = tokenizer.encode(f"w10 {asked} w11")
        tokens = torch.tensor([prompt + tokenizer.encode(f"{answered} w1")])
        labels = tokens.clone()
        labels[:, : len(prompt)] = -100
        total = total + Theirs.generalized_jsd_loss(
            student(input_ids=tokens).logits[:, :-1],
            teacher(input_ids=tokens).logits[:, :-1].detach(),
            labels=labels[:, 1:],
            beta=beta,
            reduction="sum",
        )
        count += int((labels != -100).sum())
    loss = total / count
    loss.backward()
    gradients = [one.grad for one in student.parameters() if one.grad is not None]
    norm = torch.stack([one.norm() for one in gradients]).norm().item()
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert logged["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_a_saved_model_opens_in_peft_and_scores_as_the_service(
    desk: Path, client: ServiceClient
) -> None:
    from peft import AutoPeftModelForCausalLM

    trainer = DistillationTrainer(
        model="meta-llama/Llama-3.2-1B",  # a folder
        teacher_model=SECOND_MODEL,
        args=DistillationConfig(
            "out", max_steps=2, learning_rate=1e-2, max_completion_length=4, save_strategy="no"
        ),
        train_dataset=[{"prompt": "w5 w6"}, {"prompt": "w7"}],
        processing_class=AutoTokenizer.from_pretrained("meta-llama/Llama-3.2-1B"),
    )
    trainer.train()
    trainer.save_model("final")
    tokens = [5, 6, 70, 11, 42, 8]
    sampler = trainer.run.save_weights_and_get_sampling_client().result()
    scored = sampler.compute_logprobs(types.ModelInput.from_ints(tokens)).result()
    trainer.close()
    model = AutoPeftModelForCausalLM.from_pretrained("final")
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    theirs = [logprobs[index, token].item() for index, token in enumerate(tokens[1:])]
    assert scored[1:] == pytest.approx(theirs, abs=1e-4)
    base = client.create_sampling_client(base_model=BASE_MODEL).result()
    untrained = base.compute_logprobs(types.ModelInput.from_ints(tokens)).result()
    assert scored[1:] != pytest.approx(untrained[1:], abs=1e-3)
    assert AutoTokenizer.from_pretrained("final").get_vocab()["w5"] == 5


def test_training_goes_on_from_a_checkpoint_with_the_same_losses(desk: Path) -> None:
    def trainer(folder: str, steps: int) -> Any:
        args = GKDConfig(
            folder, max_steps=steps, save_steps=2, logging_steps=1, learning_rate=1e-2, max_new_tokens=4,
            lr_scheduler_type="constant", save_total_limit=1,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained("meta-llama/Llama-3.2-1B")
        return GKDTrainer(
            BASE_MODEL, SECOND_MODEL, args, train_dataset=ROWS, processing_class=tokenizer
        )

    whole, first = trainer("whole", 4), trainer("cut", 2)
    whole.train()
    first.train()
    second = trainer("cut", 4)
    second.train(resume_from_checkpoint=True)
    losses = [[row["loss"] for row in one.state.log_history] for one in (whole, second)]
    assert losses[0] == losses[1]
    assert [one.name for one in Path("cut").glob("checkpoint-*")] == ["checkpoint-4"]
    for one in (whole, first, second):
        one.close()


def test_a_student_teaches_itself_what_it_may_not_read(desk: Path) -> None:
    rows = [
        {"prompt": "w5 w6", "privileged_context": "w70 w71"},
        {"prompt": "w7", "privileged_context": "w9"},
    ]
    trainer = SDFTTrainer(
        BASE_MODEL,
        args=SDFTConfig(
            "out", max_steps=2, num_generations=2, max_completion_length=4, logging_steps=1
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained("meta-llama/Llama-3.2-1B"),
    )
    assert trainer.train().global_step == 2
    assert trainer.state.log_history[0]["divergence"] > 0
    trainer.close()


def test_minillm_without_the_single_step_is_a_policy_gradient(desk: Path) -> None:
    args = MiniLLMConfig(
        "out", max_steps=1, num_generations=2, max_completion_length=4, logging_steps=1,
        use_distribution_distillation=False, save_strategy="no",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained("meta-llama/Llama-3.2-1B")
    trainer = MiniLLMTrainer(
        BASE_MODEL, SECOND_MODEL, args, train_dataset=[{"prompt": "w5"}], processing_class=tokenizer
    )
    trainer.train()
    assert "sampled_kl" in trainer.state.log_history[0]
    assert "divergence" not in trainer.state.log_history[0]
    trainer.close()


@pytest.mark.parametrize(
    ("config", "module"),
    [
        (GKDConfig, "trl.experimental.gkd:GKDConfig"),
        (GOLDConfig, "trl.experimental.gold:GOLDConfig"),
        (DistillationConfig, "trl:DistillationConfig"),
        (SDFTConfig, "trl.experimental.sdft:SDFTConfig"),
    ],
    ids=["gkd", "gold", "distillation", "sdft"],
)
def test_every_argument_of_trls_config_is_known(
    config: Any, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    path, name = module.split(":")
    theirs = getattr(importlib.import_module(path), name)
    merge = {"uld_token_merge_strategy"}  # ours is the one that is right
    for one in dataclasses.fields(theirs):
        value = one.default
        if value is dataclasses.MISSING:
            value = None if one.default_factory is dataclasses.MISSING else one.default_factory()
        made = config("out", **({} if one.name == "output_dir" else {one.name: value}))
        shared = one.name in {field.name for field in dataclasses.fields(config)}
        ours_alone = {"output_dir", "report_to", *merge}
        if shared and one.name not in ours_alone and not isinstance(value, float | int):
            assert getattr(made, one.name) == getattr(config("out"), one.name) or value is not None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: GKDConfig("out", label_smoothing_factor=0.1),
            "label_smoothing_factor: a divergence",
        ),
        (lambda: GKDConfig("out", push_to_hub=True), "push_to_hub"),
        (lambda: GKDConfig("out", optim="adafactor"), "optim"),
        (lambda: GKDConfig("out", learning_rat=1.0), "Did you mean learning_rate"),
        (lambda: GKDConfig("out", eval_strategy="no", evaluation_strategy="no"), "another name"),
        (lambda: SDFTConfig("out", distillation_mode="sampled_token"), "distillation_mode"),
        (lambda: SDFTConfig("out", num_iterations=2), "num_iterations"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(make: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        make()


def test_a_model_that_is_not_served_is_refused(desk: Path) -> None:
    stranger = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.2-1B")
    with torch.no_grad():
        stranger.lm_head.weight.mul_(3)
    args = GKDConfig("out")
    with pytest.raises(ValueError, match=r"model: no base model of the service has the weights"):
        GKDTrainer(stranger, SECOND_MODEL, args, train_dataset=ROWS)
    with pytest.raises(ValueError, match=r"teacher_model: 'no/such' is not served"):
        GKDTrainer(BASE_MODEL, "no/such", args, train_dataset=ROWS)
    with pytest.raises(ValueError, match="compute_metrics"):
        GKDTrainer(BASE_MODEL, SECOND_MODEL, args, compute_metrics=print)
