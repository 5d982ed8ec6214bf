"""Arguments of TRL's that no trainer here computes with: what the service does by itself, what is refused.

Every name that TRL 1.16 or transformers' TrainingArguments knows is a field of a config here, or in one
of these tables; a test holds them to TRL's own classes.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypeVar

_LOG = logging.getLogger("tinsmith.trl")
Config = TypeVar("Config")

_HANDLED_PREFIXES = ("vllm_", "dataloader_", "ddp_", "ds3_", "fsdp", "wandb_", "trackio_")
HANDLED = frozenset(
    [
        "accelerator_config",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "activation_offloading",
        "auto_find_batch_size",
        "average_tokens_across_devices",
        "batch_eval_metrics",
        "bf16",
        "bf16_full_eval",
        "cache_implementation",
        "deepspeed",
        "disable_dropout",
        "dataset_num_proc",
        "do_eval",
        "do_predict",
        "do_train",
        "enable_jit_checkpoint",
        "eval_accumulation_steps",
        "eval_do_concat_batches",
        "eval_packing",
        "eval_use_gather_object",
        "fp16",
        "fp16_full_eval",
        "full_determinism",
        "generation_batch_size",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "include_num_input_tokens_seen",
        "include_tokens_per_second",
        "length_column_name",
        "liger_kernel_config",
        "local_rank",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "logging_dir",
        "logging_nan_inf_filter",
        "no_cuda",
        "overwrite_output_dir",
        "pad_to_multiple_of",
        "pad_token",
        "packing",
        "packing_strategy",
        "padding_free",
        "parallelism_config",
        "prediction_loss_only",
        "project",
        "remove_unused_columns",
        "restore_callback_states_from_checkpoint",
        "save_on_each_node",
        "save_only_model",
        "save_safetensors",
        "skip_memory_metrics",
        "steps_per_generation",
        "teacher_model_init_kwargs",
        "teacher_model_revision",
        "tf32",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "torch_empty_cache_steps",
        "trust_remote_code",
        "use_cache",
        "use_cpu",
        "use_legacy_prediction_loop",
        "use_liger_kernel",
        "use_liger_loss",
        "use_teacher_server",
        "use_vllm",
        "model_init_kwargs",
        "split_batches",
        "dispatch_batches",
        "use_mps_device",
        "tpu_num_cores",
        "half_precision_backend",
        "fp16_backend",
        "fp16_opt_level",
        "log_unique_prompts",
        "shuffle_dataset",
    ]
)
"""How the service runs a model, lays out batches and keeps files is its own affair."""

_MINE = "it is not offered; leave it out"
REFUSED: Mapping[str, tuple[Any, str]] = {
    "assistant_only_loss": (False, "the completion is what is scored"),
    "callbacks": ([], "give callbacks to the trainer, as objects"),
    "chat_template_kwargs": (None, "give template arguments to tinsmith.distill.Distiller"),
    "chat_template_path": (None, "set chat_template on the tokenizer that you pass"),
    "completion_only_loss": (None, "the completion is what is scored; leave it None"),
    "dataset_kwargs": (None, "prepare the dataset before you pass it"),
    "debug": ("", _MINE),
    "eos_token": (None, "set it on the tokenizer that you pass"),
    "generation_kwargs": (None, "the service samples by temperature, top_p and top_k"),
    "greater_is_better": (None, "load_best_model_at_end is not offered"),
    "hub_always_push": (False, "nothing is pushed; push the folder of save_model yourself"),
    "hub_model_id": (None, "nothing is pushed; push the folder of save_model yourself"),
    "hub_private_repo": (None, "nothing is pushed; push the folder of save_model yourself"),
    "hub_revision": (None, "nothing is pushed; push the folder of save_model yourself"),
    "hub_strategy": ("every_save", "nothing is pushed; push the folder of save_model yourself"),
    "hub_token": (None, "nothing is pushed; push the folder of save_model yourself"),
    "push_to_hub": (False, "nothing is pushed; push the folder of save_model yourself"),
    "eval_delay": (0, "evaluation follows eval_strategy alone"),
    "ignore_data_skip": (False, "a run that goes on skips what it has seen"),
    "include_for_metrics": ([], "compute_metrics is not offered"),
    "label_names": (None, _MINE),
    "label_smoothing_factor": (0.0, "a divergence has no labels to smooth"),
    "load_best_model_at_end": (False, "call evaluate and save_model yourself"),
    "log_completions_steps": (100, "log_completions prints them with the logs"),
    "loss_type": ("nll", "the loss is the divergence"),
    "max_prompt_length": (512, "shorten prompts in the dataset"),
    "max_tool_calling_iterations": (None, "tools are not offered"),
    "metric_for_best_model": (None, "load_best_model_at_end is not offered"),
    "min_p": (None, "the service samples by temperature, top_p and top_k"),
    "neftune_noise_alpha": (None, "the service adds no noise to embeddings"),
    "num_generations_eval": (
        None,
        "evaluation reads the dataset's completions, or one sample a prompt",
    ),
    "num_iterations": (1, "each batch is used once"),
    "optim_args": (None, "the optimizer is Adam"),
    "optim_target_modules": (None, "the optimizer is Adam, on all of the adapter"),
    "repetition_penalty": (1.0, "the service samples by temperature, top_p and top_k"),
    "router_aux_loss_coef": (None, "models with experts are not served"),
    "train_sampling_strategy": ("random", "examples come in random order"),
    "truncation_mode": ("keep_start", "rows longer than max_length lose the start of their prompt"),
    "dataset_text_field": ("text", "rows have messages, or prompt and completion"),
    "generate_from_teacher": (False, "the student's own completions are what is scored"),
}
"""What has no meaning here, the value that asks for nothing, and why."""
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
}


def takes_trls_arguments(cls: type[Config]) -> type[Config]:
    """A dataclass that takes the other arguments too, says once what became of them, or refuses them."""
    made: Callable[..., None] = cls.__init__
    known = {one.name for one in fields(cls)}  # type: ignore[arg-type]

    def taking(self: Any, output_dir: str | None = None, **given: Any) -> None:
        if output_dir is not None:
            given["output_dir"] = output_dir
        own = sort_out(cls.__name__, known, given)
        made(self, **own)

    cls.__init__ = taking  # type: ignore[method-assign]
    return cls


def sort_out(config: str, known: set[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the config's own fields are given. Raises ValueError or TypeError by name."""
    own, handled = {}, []
    for spelled, value in given.items():
        name = RENAMED.get(spelled, spelled)
        if name in known:
            if name in own:
                raise TypeError(f"{config}: {spelled} is another name of {name}; give one of them.")
            own[name] = value
        elif name in HANDLED or name.startswith(_HANDLED_PREFIXES):
            handled.append(name)
        elif name in REFUSED:
            if value != REFUSED[name][0]:
                raise ValueError(f"{config}.{name}: {REFUSED[name][1]}.")
        else:
            close = get_close_matches(name, [*known, *HANDLED, *REFUSED], 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise TypeError(f"{config}: there is no argument {name!r}.{hint}")
    if handled:
        _LOG.info("%s: handled by the service: %s.", config, ", ".join(handled))
    return own
