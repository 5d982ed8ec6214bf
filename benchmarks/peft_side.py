"""The rival: transformers and peft, as their documentation has a user do it, well used.

Adapters are peft's on all seven linears, batches are padded, the loss is cross-entropy over full
logits, sampling is `generate`. What a careful user adds is a choice here, not a given: sequences
sorted by length into micro-batches, adapters in the base model's dtype. None of our packages is
imported, so nothing of ours can make it slower or faster.

Shapes: B sequences, T positions (padded), V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from benchmarks.workloads import Batch, Datum, SampleRequest

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORED = -100  # F.cross_entropy's default, and the documentation's


@dataclass(frozen=True)
class Completion:
    tokens: list[int]
    logprobs: list[float]


class Rival:
    """One base model with `num_adapters` LoRA adapters; the first is active."""

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        num_adapters: int = 1,
        *,
        rank: int = 32,
        adapters_in_base_dtype: bool = False,
    ) -> None:
        disable_progress_bar()
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        config = LoraConfig(
            r=rank, lora_alpha=32, target_modules=LINEARS, lora_dropout=0.0, task_type="CAUSAL_LM"
        )
        autocast = not adapters_in_base_dtype
        self.model: PeftModel = get_peft_model(
            base, config, adapter_name=_name(0), autocast_adapter_dtype=autocast
        )
        for index in range(1, num_adapters):
            self.model.add_adapter(_name(index), config, autocast_adapter_dtype=autocast)
        self.pad = base.generation_config.pad_token_id
        self._randomize()

    def _randomize(self) -> None:
        """B starts at zero, where a comparison of gradients and tokens would see half of nothing."""
        generator = torch.Generator().manual_seed(0)
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                values = torch.randn(parameter.shape, generator=generator) * 0.02
                parameter.data.copy_(values)

    def parameters(self, adapter: int = 0) -> dict[str, torch.nn.Parameter]:
        """The adapter's trainable tensors by peft's own names."""
        mark = f".{_name(adapter)}."
        return {name: p for name, p in self.model.named_parameters() if mark in name}

    def weights(self, adapter: int = 0) -> dict[str, Tensor]:
        """The adapter as peft would write it to adapter_model.safetensors."""
        return get_peft_model_state_dict(self.model, adapter_name=_name(adapter))

    def optimizer(self, adapter: int = 0, **options: object) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.parameters(adapter).values(), lr=1e-4, **options)  # type: ignore[arg-type]

    # Training

    def zero_grad(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def forward_backward(
        self,
        batch: Batch,
        *,
        adapter: int = 0,
        micro_batch: int | None = None,
        sort_by_length: bool = False,
    ) -> float:
        """The summed weighted loss; gradients are added up over the micro-batches."""
        self.model.train()
        self.model.set_adapter(_name(adapter))
        data = sorted(batch.data, key=len) if sort_by_length else list(batch.data)
        size = micro_batch or len(data)
        return sum(
            self._backward(data[start : start + size]) for start in range(0, len(data), size)
        )

    def forward_backward_at_best(self, batch: Batch, *, adapter: int = 0) -> float:
        """Length-sorted micro-batches of four; pair it with `adapters_in_base_dtype`."""
        return self.forward_backward(batch, adapter=adapter, micro_batch=4, sort_by_length=True)

    def forward_backward_in_turn(self, batches: Sequence[Batch]) -> list[float]:
        """Tenants one after another, each with the adapter of its place."""
        return [self.forward_backward(batch, adapter=i) for i, batch in enumerate(batches)]

    def _backward(self, data: Sequence[Datum]) -> float:
        tokens_BT = _right_padded([datum.tokens for datum in data], self.pad)
        mask_BT = _right_padded([np.ones(len(datum), np.int64) for datum in data], 0)
        weights_BT = _right_padded([datum.weights for datum in data], 0)
        labels_BT = _right_padded([datum.targets for datum in data], IGNORED)
        labels_BT[weights_BT == 0] = IGNORED
        logits_BTV = self.model(
            input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False
        ).logits.float()
        nll = F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), reduction="none")
        loss = (nll * weights_BT.flatten()).sum()
        loss.backward()
        return loss.item()

    # Sampling

    def sample_per_adapter(
        self, requests: Sequence[SampleRequest], *, slots: int | None = None
    ) -> list[Completion]:
        """One `generate` after another, each with one adapter and at most `slots` requests."""
        order = sorted(range(len(requests)), key=lambda index: requests[index].adapter)
        done: dict[int, Completion] = {}
        for adapter, places in groupby(order, key=lambda index: requests[index].adapter):
            self.model.set_adapter(_name(adapter), inference_mode=True)
            done |= self._in_batches(requests, list(places), slots, mixed=False)
        return [done[index] for index in range(len(requests))]

    def sample_mixed(
        self, requests: Sequence[SampleRequest], *, slots: int | None = None
    ) -> list[Completion]:
        """Any adapters in one `generate` by `adapter_names`; a queue in batches of `slots`."""
        done = self._in_batches(requests, list(range(len(requests))), slots, mixed=True)
        return [done[index] for index in range(len(requests))]

    def sample_many(self, request: SampleRequest) -> list[Completion]:
        """`num_return_sequences` completions, which `generate` prefills as so many prompts."""
        self.model.set_adapter(_name(request.adapter), inference_mode=True)
        return self._generate([request], copies=request.num_samples)

    def _in_batches(
        self,
        requests: Sequence[SampleRequest],
        places: list[int],
        slots: int | None,
        *,
        mixed: bool,
    ) -> dict[int, Completion]:
        size = slots or len(places)
        done: dict[int, Completion] = {}
        for start in range(0, len(places), size):
            some = places[start : start + size]
            chosen = [requests[index] for index in some]
            names = {"adapter_names": [_name(r.adapter) for r in chosen]} if mixed else {}
            done |= dict(zip(some, self._generate(chosen, **names), strict=True))
        return done

    @torch.no_grad()
    def _generate(
        self, requests: Sequence[SampleRequest], *, copies: int = 1, **options: object
    ) -> list[Completion]:
        """Temperature 1 over the whole vocabulary; a row that is done waits for the longest."""
        self.model.eval()
        torch.manual_seed(requests[0].seed)
        prompts_BT = _left_padded([request.prompt for request in requests], self.pad)
        mask_BT = _left_padded([np.ones(len(r.prompt), np.int64) for r in requests], 0)
        config = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max(request.new_tokens for request in requests),
            pad_token_id=self.pad,
            eos_token_id=None,
            num_return_sequences=copies,
            output_logits=True,
            return_dict_in_generate=True,
        )
        answer = self.model.generate(
            input_ids=prompts_BT, attention_mask=mask_BT, generation_config=config, **options
        )
        tokens_BT = answer.sequences[:, prompts_BT.shape[1] :]
        logprobs_BT = _logprobs(answer.logits, tokens_BT)
        lengths = [request.new_tokens for request in requests for _ in range(copies)]
        return [
            Completion(tokens_BT[row, :length].tolist(), logprobs_BT[row, :length].tolist())
            for row, length in enumerate(lengths)
        ]


def training_step(
    folder: Path, dtype: torch.dtype, batch: Batch, *, at_best: bool = False
) -> Callable[[], object]:
    """One forward_backward, ready to be measured (`memory.peak_bytes`): model loaded, warmed up."""
    torch.set_num_threads(1)
    rival = Rival(folder, dtype, adapters_in_base_dtype=at_best)
    step = rival.forward_backward_at_best if at_best else rival.forward_backward
    step(Batch((min(batch.data, key=len),)))
    rival.zero_grad()
    return lambda: step(batch)


def _logprobs(logits: Sequence[Tensor], tokens_BT: Tensor) -> Tensor:
    """log p of the chosen tokens, a step at a time: all steps' logits at once would not fit."""
    steps = []
    for step, logits_BV in enumerate(logits):
        chosen_B1 = logits_BV.float().gather(1, tokens_BT[:, step : step + 1])
        steps.append(chosen_B1.squeeze(1) - logits_BV.float().logsumexp(-1))
    return torch.stack(steps, dim=1)


def _right_padded(rows: Sequence[np.ndarray], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(_tensors(rows), True, value)


def _left_padded(rows: Sequence[np.ndarray], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(_tensors(rows), True, value, padding_side="left")


def _tensors(rows: Sequence[np.ndarray]) -> list[Tensor]:
    """Integers as int64, which embeddings and labels want."""
    tensors = [torch.from_numpy(row) for row in rows]
    return [tensor if tensor.is_floating_point() else tensor.long() for tensor in tensors]


def _name(adapter: int) -> str:
    return f"adapter_{adapter}"
