"""Recipes that learn from a teacher, unmodified: each must come closer to it."""

import json

import tinker
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.cookbook.conftest import STUDENT, TEACHER, Cookbook
from tests.cookbook.models import END

RENDERER = "qwen3_instruct"


def test_prompt_distillation_teaches_what_the_prompt_said(cookbook: Cookbook) -> None:
    """The long prompt's answers, made by the recipe itself, without the prompt."""
    file = cookbook.folder / "languages.jsonl"
    recipe = "tinker_cookbook.recipes.prompt_distillation"
    cookbook.python("-m", f"{recipe}.create_data", f"output_file={file}")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 64
    assert {row["messages"][1]["content"] for row in rows} <= {"en", "de", "fr"}
    run = cookbook.recipe(
        "prompt_distillation.train",
        "prompt_distillation",
        file_path=file,
        model_name=STUDENT,
        learning_rate=1e-2,
        batch_size=16,
        num_epochs=3,
        max_length=1024,
    )
    first, last = run.ends("train_mean_nll")
    assert last < first - 1


def test_off_policy_reasoning_lowers_the_loss(cookbook: Cookbook) -> None:
    run = cookbook.recipe(
        "distillation.off_policy_reasoning",
        "off_policy_reasoning",
        model_name=STUDENT,
        renderer_name=RENDERER,
        learning_rate=1e-2,
        batch_size=16,
        lora_rank=32,
        buffer_size=128,
        max_prompts=128,
    )
    first, last = run.ends("train_mean_nll")
    assert last < first - 1


def test_each_data_set_comes_closer_to_its_own_teacher(cookbook: Cookbook) -> None:
    """One of them is a checkpoint: a model that was taught, in the same service, that every sum is 3."""
    run = cookbook.recipe(
        "distillation.on_policy_multi_teacher",
        "multi_teacher",
        model_name=STUDENT,
        deepmath_teacher_model=TEACHER,
        tulu3_teacher_model=STUDENT,
        tulu3_teacher_checkpoint=teacher_who_answers(cookbook, "3"),
        deepmath_groups_per_batch=8,
        tulu3_groups_per_batch=8,
        lora_rank=32,
        learning_rate=1e-2,
        max_tokens=12,
        max_steps=8,
    )
    for data_set in (0, 1):
        first, last = run.ends(f"teacher_kl/dataset_{data_set}")
        assert last < 0.6 * first


def teacher_who_answers(cookbook: Cookbook, answer: str) -> str:
    """A sampler's path."""
    tokenizer = AutoTokenizer.from_pretrained(cookbook.folder / STUDENT)
    sums = [f"What is {one} + {other}?" for one in (1, 4) for other in (2, 6)]
    data = [_answered(tokenizer, question, answer) for question in sums]
    with tinker.ServiceClient(
        base_url=cookbook.service.url, api_key=cookbook.service.api_key
    ) as service:
        run = service.create_lora_training_client(STUDENT, rank=8, seed=1).result(60)
        for _ in range(12):
            run.forward_backward(data, "cross_entropy").result(60)
            run.optim_step(tinker.AdamParams(learning_rate=1e-2)).result(60)
        return run.save_weights_for_sampler("teacher").result(60).path


def _answered(tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> tinker.Datum:
    asked = tokenizer.encode(f"<|im_start|>user\n{question}{END}\n<|im_start|>assistant\n")
    answered = tokenizer.encode(answer + END)
    tokens = asked + answered
    weights = [0.0] * (len(asked) - 1) + [1.0] * len(answered)
    inputs = {"target_tokens": tokens[1:], "weights": weights}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def test_sdft_lowers_the_divergence_from_the_model_that_was_shown_the_answer(
    cookbook: Cookbook,
) -> None:
    run = cookbook.recipe(
        "sdft.train",
        "sdft",
        model_name=STUDENT,
        reverse=True,
        groups_per_batch=16,
        lora_rank=32,
        learning_rate=1e-2,
        max_tokens=24,
        max_steps=7,
        eval_every=0,
    )
    first, last = run.ends("sdft/reverse_kl_mean")
    assert last < 0.6 * first
