"""The cookbook's recipes, unmodified: each must learn, not only end well."""

from tests.cookbook.conftest import STUDENT, TEACHER, Cookbook

RENDERED = {"model_name_for_tokenizer": STUDENT, "renderer_name": "qwen3_instruct"}


def below(name: str, **options: object) -> dict[str, object]:
    """Of an option that has options: the basic recipes' builders are named again, to be smaller."""
    return {f"{name}.{key}": value for key, value in options.items()}


def test_sl_basic_lowers_the_loss(each_cookbook: Cookbook) -> None:
    run = each_cookbook.recipe(
        "sl_basic",
        "sl_basic",
        model_name=STUDENT,
        learning_rate=1e-2,
        dataset_builder="tinker_cookbook.recipes.chat_sl.chat_datasets:NoRobotsBuilder",
        **below("dataset_builder.common_config", batch_size=8, max_length=512, **RENDERED),
    )
    first, last = run.ends("train_mean_nll")
    assert last < first - 1
    first, last = run.ends("test/nll", 1)
    assert last < first - 1


def test_sl_loop_lowers_the_loss(cookbook: Cookbook) -> None:
    options = {"model_name": STUDENT, "learning_rate": 1e-2, "batch_size": 8, "save_every": 5}
    first, last = cookbook.recipe("sl_loop", "sl_loop", **options).ends("train_mean_nll")
    assert last < first - 1


def test_rl_basic_raises_the_reward(each_cookbook: Cookbook) -> None:
    run = each_cookbook.recipe(
        "rl_basic",
        "rl_basic",
        model_name=STUDENT,
        learning_rate=1e-2,
        dataset_builder="tinker_cookbook.recipes.math_rl.math_env:Gsm8kDatasetBuilder",
        **below("dataset_builder", batch_size=8, group_size=8, **RENDERED),
        max_tokens=12,
        max_steps=8,
    )
    first, last = run.ends("env/all/reward/total")
    assert last > first + 0.3


def test_math_rl_arithmetic_learns_to_end_its_answers(cookbook: Cookbook) -> None:
    """Of the format alone: a wrong answer without an end costs 0.1."""
    run = cookbook.recipe(
        "math_rl.train",
        "math_rl",
        model_name=STUDENT,
        learning_rate=1e-2,
        groups_per_batch=8,
        group_size=8,
        max_steps=8,
    )
    first, last = run.ends("env/all/reward/total")
    assert last > first + 0.01


def test_on_policy_distillation_lowers_the_divergence(cookbook: Cookbook) -> None:
    run = cookbook.recipe(
        "distillation.on_policy_distillation",
        "on_policy",
        model_name=STUDENT,
        teacher_model=TEACHER,
        lora_rank=32,
        learning_rate=1e-2,
        groups_per_batch=8,
        group_size=8,
        max_tokens=12,
        max_steps=8,
    )
    first, last = run.ends("teacher_kl")
    assert last < 0.6 * first


def test_dpo_raises_the_margin(cookbook: Cookbook) -> None:
    options = {"model_name": STUDENT, "learning_rate": 1e-3, "batch_size": 16, "max_steps": 6}
    run = cookbook.recipe("preference.dpo.train", "dpo", **options)
    first, last = run.ends("dpo_loss", 1)
    assert abs(first - 0.6931) < 0.02  # log 2: nothing is learnt yet
    assert last < 0.5
    first, last = run.ends("margin", 1)
    assert last > first + 0.3
