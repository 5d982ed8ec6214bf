"""Our side: the worker's engine on the workloads that `peft_side.Rival` runs.

Everything is as the worker has it by default; what a benchmark turns off to see what it is worth is
an argument here, and named for what is off. Adapters are on the same seven linears as the rival's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from tinsmith_worker.engine import kernels, values
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel, load
from tinsmith_worker.engine.kv_pool import KVCache, KVPool
from tinsmith_worker.engine.optimizer import AdamParams, RunState, optim_steps
from tinsmith_worker.engine.prefix_cache import Owner, PrefixCache
from tinsmith_worker.engine.sampler import Finished, Sampler
from tinsmith_worker.engine.training import Outcome, Work, forward_backward
from tinsmith_worker.settings import Settings
from torch import Tensor

from benchmarks.workloads import Batch, SampleRequest, TokenIds

SLOTS, PASS_TOKENS = Settings.max_sampling_slots, Settings.max_pass_tokens


class Ours:
    """One base model with a training run for each of `num_adapters` adapters."""

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        num_adapters: int = 1,
        *,
        rank: int = 32,
        exact: bool | None = None,
        pass_tokens: int = PASS_TOKENS,
    ) -> None:
        self.model: BaseModel = load(str(folder), name=folder.name, dtype=dtype, exact=exact)
        self.pass_tokens = pass_tokens
        self.runs = [self._run(rank, seed) for seed in range(num_adapters)]

    def _run(self, rank: int, seed: int) -> RunState:
        """B starts at zero, where a comparison of gradients and tokens would see half of nothing."""
        adapter = Adapter.create(self.model, rank=rank, seed=seed, train_unembed=False)
        adapter.row.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
        adapter.changed()
        return RunState(adapter)

    def take_weights(self, weights: Mapping[str, Tensor], adapter: int = 0) -> None:
        """The rival's (`Rival.weights`), by peft's names."""
        own = self.runs[adapter].adapter
        assert weights.keys() == own.parameters().keys()
        for name, into in own.parameters().items():
            into.copy_(weights[name])
        own.changed()

    def gradients(self, adapter: int = 0) -> dict[str, Tensor]:
        """What the run has gathered, by peft's names."""
        run = self.runs[adapter]
        assert run.gradient is not None
        return run.adapter.layout.tensors(run.gradient)

    # Training

    def zero_grad(self) -> None:
        for run in self.runs:
            run.gradient = None

    def forward_backward(
        self, batch: Batch, *, adapter: int = 0, share_prompts: bool = True
    ) -> float:
        """The summed weighted loss."""
        return self._train([self._work(batch, adapter)], share_prompts)[0]

    def forward_backward_together(self, batches: Sequence[Batch]) -> list[float]:
        """Tenants in one pass, each with the adapter of its place."""
        return self._train([self._work(batch, index) for index, batch in enumerate(batches)])

    def forward_backward_in_turn(self, batches: Sequence[Batch]) -> list[float]:
        return [self.forward_backward(batch, adapter=index) for index, batch in enumerate(batches)]

    def forward_backward_chunks(self, chunks: Sequence[Batch]) -> list[float]:
        """Requests of one run, as the SDK cuts a batch, in one pass."""
        return self._train([self._work(chunk, 0) for chunk in chunks])

    def forward(self, batch: Batch, *, adapter: int = 0) -> list[Tensor]:
        """Log p of every target, a tensor a datum."""
        [outcome] = self._outcomes([replace(self._work(batch, adapter), forward_only=True)])
        return [torch.from_numpy(one) for one in outcome.logprobs]

    def _work(self, batch: Batch, adapter: int) -> Work:
        data = [
            values.Datum(one.tokens, {"target_tokens": one.targets, "weights": one.weights})
            for one in batch.data
        ]
        return Work(run=self.runs[adapter], data=data, loss_fn="cross_entropy", loss_fn_config={})

    def _train(self, works: Sequence[Work], share_prompts: bool = True) -> list[float]:
        return [one.metrics["loss:sum"] for one in self._outcomes(works, share_prompts)]

    def _outcomes(self, works: Sequence[Work], share_prompts: bool = True) -> list[Outcome]:
        outcomes = forward_backward(
            self.model, works, max_pass_tokens=self.pass_tokens, share_prompts=share_prompts
        )
        for outcome in outcomes:
            if outcome.error is not None:
                raise RuntimeError(outcome.error)
        return outcomes

    def optimizer_steps(self, runs: Sequence[RunState] | None = None) -> None:
        """All of these runs' steps (all runs' where none are named) in one call."""
        optim_steps([(run, AdamParams()) for run in (self.runs if runs is None else runs)])

    # Hand-over

    def snapshot(self, adapter: int = 0) -> Adapter:
        """What `save_weights_and_get_sampling_client` does on the way to the first token."""
        return self.runs[adapter].adapter.frozen()

    # Sampling

    def sample(
        self, requests: Sequence[SampleRequest], *, slots: int = SLOTS, share_prefixes: bool = True
    ) -> list[Finished]:
        return run_to_end(self.sampler(slots, share_prefixes), self.requests(requests))

    def sample_apart(self, request: SampleRequest, *, slots: int = SLOTS) -> list[Finished]:
        """Each of its samples as a request of its own, with a prefill of its own."""
        singles = [
            replace(request, seed=request.seed + index, num_samples=1)
            for index in range(request.num_samples)
        ]
        return self.sample(singles, slots=slots, share_prefixes=False)

    def score(self, prompts: Sequence[TokenIds]) -> list[Finished]:
        """What a teacher does (`compute_logprobs`): every prompt token's log p, all prompts at once."""
        return run_to_end(self.sampler(SLOTS), self._scorings(prompts))

    def score_one_by_one(self, prompts: Sequence[TokenIds]) -> list[Finished]:
        sampler = self.sampler(SLOTS)
        return [done for one in self._scorings(prompts) for done in run_to_end(sampler, [one])]

    def sampler(self, slots: int = SLOTS, share_prefixes: bool = True) -> Sampler:
        """A new one, which remembers nothing of the round before."""
        made = Sampler(self.model, max_slots=slots, max_pass_tokens=self.pass_tokens)
        if not share_prefixes:
            made._prefixes = _Forgetful(made._pool)
        return made

    def requests(self, requests: Sequence[SampleRequest]) -> list[values.SampleRequest]:
        return [
            self._request(
                str(index),
                one.prompt,
                one.adapter,
                num_samples=one.num_samples,
                max_tokens=one.new_tokens,
                seed=one.seed,
            )
            for index, one in enumerate(requests)
        ]

    def _scorings(self, prompts: Sequence[TokenIds]) -> list[values.SampleRequest]:
        return [
            self._request(str(index), prompt, 0, max_tokens=1, prompt_logprobs=True)
            for index, prompt in enumerate(prompts)
        ]

    def _request(
        self,
        request_id: str,
        prompt: TokenIds,
        adapter: int,
        *,
        max_tokens: int,
        num_samples: int = 1,
        seed: int = 0,
        prompt_logprobs: bool = False,
    ) -> values.SampleRequest:
        """Temperature 1 over the whole vocabulary, as the rival's; `stop` [] lets an end token pass."""
        return values.SampleRequest(
            request_id=request_id,
            adapter=self.runs[adapter].adapter,
            prompt=prompt.tolist(),
            num_samples=num_samples,
            max_tokens=max_tokens,
            temperature=1.0,
            top_k=-1,
            top_p=1.0,
            seed=seed,
            stop=[],
            prompt_logprobs=prompt_logprobs,
        )

    # Switches

    @contextmanager
    def plain_weights(self) -> Iterator[None]:
        """Without the copies of the weights in oneDNN's blocked layout."""
        groups = self.model._groups
        blocked = [group._blocked for group in groups]
        for group in groups:
            group._blocked = None
        try:
            yield
        finally:
            for group, copy in zip(groups, blocked, strict=True):
                group._blocked = copy


@contextmanager
def torchs_ops() -> Iterator[None]:
    """Without compiled kernels, as on a machine that has no compiler."""
    with patch.object(kernels, "_library", return_value=None):
        yield


def under(
    switch: Callable[[], AbstractContextManager[None]], work: Callable[[], object]
) -> Callable[[], object]:
    """The work with something off."""

    def run() -> object:
        with switch():
            return work()

    return run


def run_to_end(sampler: Sampler, requests: Sequence[values.SampleRequest]) -> list[Finished]:
    """Answers in the order of the requests."""
    for request in requests:
        sampler.add(request)
    done: dict[str, Finished] = {}
    while sampler.busy:
        done |= {one.request_id: one for one in sampler.step()}
    for one in done.values():
        if one.error is not None:
            raise RuntimeError(one.error)
    return [done[request.request_id] for request in requests]


def training_step(folder: Path, dtype: torch.dtype, batch: Batch) -> Callable[[], object]:
    """One forward_backward, ready to be measured (`memory.peak_bytes`): model loaded, warmed up."""
    torch.set_num_threads(1)
    ours = Ours(folder, dtype)
    ours.forward_backward(Batch((min(batch.data, key=len),)))
    ours.zero_grad()
    return lambda: ours.forward_backward(batch)


class _Forgetful(PrefixCache):
    """Knows no prompt: what sharing prefixes is worth is what it costs to be this."""

    def __init__(self, pool: KVPool) -> None:
        super().__init__(pool)
        self._empty = pool

    def find(self, owner: Owner, tokens: list[int], limit: int) -> KVCache:
        return KVCache(self._empty, [], 0)

    def remember(self, owner: Owner, tokens: list[int], cache: KVCache) -> None:
        pass
