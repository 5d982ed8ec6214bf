"""The loop of TRL's trainers, with the service in place of the models."""

import itertools
import json
import logging
import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from tinsmith.distill.distiller import Distiller
from tinsmith.distill.drawing import Drawn
from tinsmith.distill.methods import Method
from tinsmith.distill.reports import ConsoleTable, Report, TensorBoard, Wandb
from tinsmith.distill.rollout import Example, Rollout
from tinsmith.distill.teacher import Teacher
from tinsmith.service_client import ServiceClient
from tinsmith.trl.configs import TrainingConfig
from tinsmith.trl.lora import lora_settings
from tinsmith.trl.models import Models, source_of
from tinsmith.trl.rows import example_of
from tinsmith.trl.saving import save_adapter, save_base

_LOG = logging.getLogger("tinsmith.trl")
_RESUME = "tinsmith.json"


@dataclass
class TrainerState:
    """What callbacks and scripts read: transformers' names."""

    global_step: int = 0
    epoch: float = 0.0
    max_steps: int = 0
    log_history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class TrainerControl:
    should_training_stop: bool = False


@dataclass(frozen=True)
class TrainOutput:
    global_step: int
    training_loss: float
    metrics: dict[str, float]


class Trainer:
    """Base. A subclass says how a config becomes a method and a sampling."""

    config: ClassVar[type[TrainingConfig]]

    def __init__(
        self,
        model: Any,
        teacher_model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: Any = (None, None),
        preprocess_logits_for_metrics: Any = None,
        peft_config: Any = None,
        formatting_func: Any = None,
        teacher_processing_class: Any = None,
        **more: Any,
    ) -> None:
        _refuse(
            type(self).__name__,
            data_collator=data_collator,
            compute_metrics=compute_metrics,
            optimizers=None if tuple(optimizers) == (None, None) else optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            formatting_func=formatting_func,
            **more,
        )
        self.args = args if args is not None else self.config()
        if not isinstance(self.args, self.config):
            raise TypeError(f"args: {type(self.args).__name__} is not a {self.config.__name__}.")
        self.state, self.control = TrainerState(), TrainerControl()
        self.callbacks = list(callbacks or ())
        self._saves = itertools.count()
        self._service = ServiceClient(base_url=self.args.base_url, api_key=self.args.api_key)
        models = Models(self._service)
        self.base_model = models.name_of("model", model)
        if self.base_model.startswith("tinker://"):
            raise ValueError(
                "model: give the base model; a checkpoint is continued by resume_from_checkpoint."
            )
        self._source = source_of(model) or self.base_model
        self._base = model if peft_config is None else None
        self.run = self._service.create_lora_training_client(
            self.base_model, seed=self.args.seed, **lora_settings(peft_config, self.args.lora_rank)
        ).result()
        self.processing_class = processing_class or self.run.get_tokenizer()
        teacher = self._teacher(models, teacher_model, teacher_processing_class)
        self.distiller = self._distiller(teacher)
        self._foreign = not self.distiller.staff[0].same_tokens
        self.train_examples = self._examples(train_dataset)
        self.eval_examples = self._examples(eval_dataset)

    # What a subclass decides.

    def method(self, teacher: Teacher) -> Method:
        raise NotImplementedError

    def sampling(self) -> dict[str, Any]:
        """max_tokens, group_size, sampling_temperature, top_p, top_k."""
        raise NotImplementedError

    # What scripts call.

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
        if not self.train_examples:
            raise ValueError("train_dataset: there is nothing to train on.")
        resumed = resume_from_checkpoint or self.args.resume_from_checkpoint
        self.state.max_steps = self._total_steps()
        if resumed:
            self._resume(resumed)
        reports = self._reports()
        self._event("on_train_begin")
        if self.args.eval_on_start:
            self.evaluate()
        losses = self._steps(reports)
        if self.args.save_strategy != "no":
            self.save_model()
        self._event("on_train_end")
        for report in reports:
            report.close()
        mean = sum(losses) / max(1, len(losses))
        return TrainOutput(self.state.global_step, mean, {"train_loss": mean})

    def evaluate(self, eval_dataset: Any = None) -> dict[str, float]:
        """The divergence on the dataset's completions, or on one sample of each prompt without one."""
        examples = self._examples(eval_dataset) if eval_dataset is not None else self.eval_examples
        if not examples:
            raise ValueError("eval_dataset: there is nothing to evaluate on.")
        size, totals, tokens = self.args.per_device_eval_batch_size, 0.0, 0.0
        sampler = self.distiller.sampler()
        for start in range(0, len(examples), size):
            rollouts = self._evaluated(examples[start : start + size], sampler)
            found = self.distiller.signal.look(rollouts, sampler).metrics()
            count = sum(len(one.completion) for one in rollouts)
            value = found.get("divergence", found.get("sampled_kl", found.get("loss", 0.0)))
            totals, tokens = totals + value * count, tokens + count
        self._log({"eval_loss": totals / tokens})
        self._event("on_evaluate", metrics=self.state.log_history[-1])
        return {"eval_loss": totals / tokens, "epoch": self.state.epoch}

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """A PEFT folder, with the tokenizer: AutoPeftModelForCausalLM opens it.

        As with TRL, it is a whole model too where no peft_config asked for an adapter alone and the
        base model is on this machine: AutoModelForCausalLM and lm_eval open it by its path.
        """
        self._save(Path(output_dir or self.args.output_dir), whole=True)

    def close(self) -> None:
        """Ends the session. What was saved stays."""
        self.distiller.close()
        self._service.close().result()

    # How it does it.

    def _save(self, folder: Path, *, whole: bool) -> None:
        name = f"trl-{self.state.global_step}-{next(self._saves)}"
        save_adapter(self.run, name, folder, self._source, self.processing_class)
        if whole and self._base is not None and not save_base(self._base, folder):
            _LOG.info("%s holds an adapter; lm_eval takes it as peft=.", folder)

    def _teacher(self, models: Models, given: Any, tokenizer: Any) -> Teacher:
        if given is None:
            given = getattr(self.args, "teacher_model_name_or_path", None)
        if given is None:
            raise ValueError("teacher_model: give one, or args.teacher_model_name_or_path.")
        own = given in ("base", "self") if isinstance(given, str) else False
        name = given if own else models.name_of("teacher_model", given)
        return Teacher(name, tokenizer=tokenizer)

    def _distiller(self, teacher: Teacher) -> Distiller:
        args = self.args
        rate = self._schedule()
        made = Distiller(
            self.run,
            teacher,
            self.method(teacher),
            learning_rate=rate,
            adam={
                "beta1": args.adam_beta1,
                "beta2": args.adam_beta2,
                "eps": args.adam_epsilon,
                "weight_decay": args.weight_decay,
                "grad_clip_norm": args.max_grad_norm,
            },
            tokenizer=self.processing_class,
            ahead=False,
            seed=args.seed if args.data_seed is None else args.data_seed,
            **self.sampling(),
        )
        _LOG.info("%s: %s.", type(self).__name__, made.support)
        return made

    def _schedule(self) -> Callable[[int], float]:
        """transformers' own schedules, asked for each step."""
        found: list[Callable[[int], float]] = []

        def rate(step: int) -> float:
            if not found:
                found.append(self._factors())
            return float(self.args.learning_rate * found[0](step))

        return rate

    def _factors(self) -> Callable[[int], float]:
        import torch
        from transformers import get_scheduler

        args, total = self.args, self.state.max_steps
        warmup = args.warmup_steps or args.warmup_ratio
        steps = math.ceil(total * warmup) if warmup < 1 else int(warmup)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        made: Any = get_scheduler(
            args.lr_scheduler_type, optimizer, steps, total, dict(args.lr_scheduler_kwargs or {})
        )
        if not hasattr(made, "lr_lambdas"):
            raise ValueError(f"args.lr_scheduler_type: {args.lr_scheduler_type} looks at the loss.")
        factor: Callable[[int], float] = made.lr_lambdas[0]
        return factor

    def _total_steps(self) -> int:
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        return math.ceil(self.args.num_train_epochs * self._steps_an_epoch())

    def _steps_an_epoch(self) -> int:
        return math.ceil(len(self.train_examples) / self.args.batch_size)

    def _steps(self, reports: Sequence[Report]) -> list[float]:
        losses: list[float] = []
        while (
            self.state.global_step < self.state.max_steps and not self.control.should_training_stop
        ):
            step = self.state.global_step
            self._event("on_step_begin")
            drawn = self._draw(step)
            rollouts = drawn.collect()
            done = self.distiller.learn(step, rollouts, drawn.sampler)()
            self.state.global_step = step + 1
            self.state.epoch = (step + 1) / self._steps_an_epoch()
            losses.append(done.metrics.get("loss", done.metrics.get("divergence", 0.0)))
            self._event("on_step_end")
            self._after_step(done.metrics | {"loss": losses[-1]}, rollouts, reports)
        return losses

    def _draw(self, step: int) -> Drawn:
        """The micro-batches of a step, each drawn by itself, sent as one."""
        args, sampler = self.args, self.distiller.sampler()
        batch, size = self._batch(step), args.per_device_train_batch_size
        parts = [
            part
            for number, start in enumerate(range(0, len(batch), size))
            for part in self.distiller.draw(
                batch[start : start + size],
                step * args.gradient_accumulation_steps + number,
                sampler,
            ).parts
        ]
        return Drawn(parts, sampler)

    def _batch(self, step: int) -> list[Example]:
        """Every row once an epoch; the last batch of an epoch may be short."""
        epoch, place = divmod(step, self._steps_an_epoch())
        order = list(range(len(self.train_examples)))
        random.Random(f"{self.args.seed}/{epoch}").shuffle(order)
        size = self.args.batch_size
        return [self.train_examples[index] for index in order[place * size : (place + 1) * size]]

    def _evaluated(self, examples: Sequence[Example], sampler: Any) -> list[Rollout]:
        drawn = self.distiller.draw(examples, -1, sampler, by_student=self._needs_samples(examples))
        return drawn.collect()

    def _needs_samples(self, examples: Sequence[Example]) -> bool:
        served = type(self.distiller.signal).__name__ in ("ServedSignal", "SupervisedSignal")
        return not served or any(one.completion is None for one in examples)

    def _after_step(
        self, metrics: Mapping[str, float], rollouts: Sequence[Rollout], reports: Sequence[Report]
    ) -> None:
        args, step = self.args, self.state.global_step
        if self._due(args.logging_strategy, args.logging_steps) or (
            step == 1 and args.logging_first_step
        ):
            self._log(dict(metrics))
            for report in reports:
                report.write(step, self.state.log_history[-1])
            if args.log_completions:
                self._print(rollouts)
        if self._due(args.eval_strategy, args.eval_steps or args.logging_steps):
            self.evaluate()
        if self._due(args.save_strategy, args.save_steps):
            self._save_checkpoint()

    def _due(self, strategy: str, steps: int) -> bool:
        if strategy == "epoch":
            return self.state.global_step % self._steps_an_epoch() == 0
        return strategy == "steps" and self.state.global_step % steps == 0

    def _log(self, metrics: dict[str, float]) -> None:
        entry = metrics | {"epoch": self.state.epoch, "step": self.state.global_step}
        self.state.log_history.append(entry)
        _LOG.info("%s", ", ".join(f"{name} {value:.4g}" for name, value in entry.items()))
        self._event("on_log", logs=entry)

    def _print(self, rollouts: Sequence[Rollout]) -> None:
        for one in rollouts[: self.args.num_completions_to_print or len(rollouts)]:
            _LOG.info(
                "%r -> %r",
                *(self.processing_class.decode(part) for part in (one.prompt, one.completion)),
            )

    def _reports(self) -> list[Report]:
        wanted = self.args.report_to
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        made: list[Report] = []
        if self.args.disable_tqdm is False:
            made.append(ConsoleTable(self.state.max_steps))
        for name in names:
            if name == "wandb":
                made.append(Wandb(name=self.args.run_name))
            elif name == "tensorboard":
                made.append(TensorBoard(Path(self.args.output_dir) / "runs"))
            elif name != "none":
                raise ValueError(f"args.report_to: {name!r} is not wandb, tensorboard or none.")
        return made

    def _save_checkpoint(self) -> None:
        step = self.state.global_step
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        self._save(folder, whole=False)
        saved = self.run.save_state(f"trl-{step}", overwrite=True).result().path
        told = {"checkpoint": saved, "step": step, "log_history": self.state.log_history}
        (folder / _RESUME).write_text(json.dumps(told), encoding="utf-8")
        if limit := self.args.save_total_limit:
            for old in self._checkpoints()[:-limit]:
                shutil.rmtree(old)
        self._event("on_save")

    def _checkpoints(self) -> list[Path]:
        """Oldest first; a folder without its last file was never finished."""
        found = Path(self.args.output_dir).glob(f"checkpoint-*/{_RESUME}")
        return sorted((one.parent for one in found), key=lambda one: int(one.name.split("-")[1]))

    def _resume(self, which: str | bool) -> None:
        if which is True:
            found = self._checkpoints()
            if not found:
                raise ValueError(
                    f"resume_from_checkpoint: {self.args.output_dir} has no checkpoint."
                )
            folder = found[-1]
        else:
            folder = Path(str(which))
        told = json.loads((folder / _RESUME).read_text(encoding="utf-8"))
        self.run.load_state_with_optimizer(told["checkpoint"]).result()
        self.state.global_step, self.state.log_history = told["step"], told["log_history"]
        self.state.epoch = told["step"] / self._steps_an_epoch()

    def _examples(self, dataset: Any) -> list[Example]:
        return [self._example(row) for row in dataset] if dataset is not None else []

    def _example(self, row: Mapping[str, Any]) -> Example:
        made = example_of(row, self.processing_class, self.args.max_length)
        template = getattr(self.distiller.staff[0].renderer.tokenizer, "chat_template", None)
        if self._foreign and "messages" in row and template:
            return replace(made, teacher_prompt=list(row["messages"])[:-1])
        return made

    def _event(self, name: str, **more: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(self.args, self.state, self.control, **more)


def _refuse(trainer: str, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{trainer}.{name}: it has no meaning here, where the service computes; leave it out."
            )
