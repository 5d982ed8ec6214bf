"""What each kind of job does to a run. One table for live ops and for replay, so they cannot differ.

Legend of results: (new state or None if it is unchanged, payload for the client).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from tinsmith.protocol import tensors
from tinsmith.protocol.errors import TinsmithError
from tinsmith.protocol.jobs import (
    Content,
    CreateModelJob,
    Job,
    Kind,
    LoadJob,
    OptimStepJob,
    Result,
    SaveJob,
    SaveResult,
    encode,
    failure,
)

from tinsmith_worker import checkpoint_files
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.training import (
    AdamParams,
    Outcome,
    RunState,
    Work,
    forward_backward,
    optim_step,
)
from tinsmith_worker.engine.values import Datum, InvalidInput
from tinsmith_worker.external_files import pack_external
from tinsmith_worker.store import FolderDamaged, Store, StoreUnavailable

_NOT_STORED = (
    "The checkpoint was not saved: the service's store is full or out of reach. Try again."
)


@dataclass(frozen=True)
class Ops:
    store: Store
    max_pass_tokens: int

    def run_one(
        self, model: BaseModel, state: RunState | None, job: Job
    ) -> tuple[RunState | None, Result]:
        """A create, load, step or save. A user's mistake becomes a failed result."""
        try:
            return self._dispatch(model, state, job)
        except (InvalidInput, TinsmithError) as error:
            return state, failure(str(error))

    def run_pass(
        self, model: BaseModel, states: Sequence[RunState | None], jobs: Sequence[Job]
    ) -> list[Result]:
        """The forward ops of several runs in shared passes; each fails or succeeds alone."""
        results: dict[int, Result] = {}
        works: dict[int, Work] = {}
        for index, (state, job) in enumerate(zip(states, jobs, strict=True)):
            try:
                works[index] = _work(_created(state), job)
            except (InvalidInput, TinsmithError) as error:
                results[index] = failure(str(error))
        outcomes = forward_backward(
            model, list(works.values()), max_pass_tokens=self.max_pass_tokens
        )
        for index, outcome in zip(works, outcomes, strict=True):
            results[index] = _answer(outcome)
        return [results[index] for index in range(len(jobs))]

    def replay(self, model: BaseModel, state: RunState | None, job: Job) -> RunState | None:
        """Repeat a logged op. It succeeded once, so a failure now is ours, not the user's."""
        if job.kind is Kind.FORWARD_BACKWARD:
            [result] = self.run_pass(model, [state], [job])
        else:
            state, result = self.run_one(model, state, job)
        if result.failed:
            raise RuntimeError(f"replay of {job.request_id} failed: {result.data[:200]!r}")
        return state

    def _dispatch(
        self, model: BaseModel, state: RunState | None, job: Job
    ) -> tuple[RunState | None, Result]:
        match job.kind:
            case Kind.CREATE_MODEL:
                return self._create(model, job)
            case Kind.LOAD_WEIGHTS:
                return self._load(model, job)
            case Kind.OPTIM_STEP:
                return state, self._step(_created(state), job)
            case Kind.SAVE_WEIGHTS | Kind.SAVE_WEIGHTS_FOR_SAMPLER:
                return state, self._save(model, _created(state), job)
        raise AssertionError(f"{job.kind} needs a pass")

    def _create(self, model: BaseModel, job: Job) -> tuple[RunState, Result]:
        spec = msgspec.json.decode(job.body, type=CreateModelJob).adapter
        adapter = Adapter.create(
            model,
            rank=spec.rank,
            seed=spec.seed,
            train_attn=spec.train_attn,
            train_mlp=spec.train_mlp,
            train_unembed=spec.train_unembed,
        )
        payload = {"type": "create_model", "model_id": job.run_id}
        return RunState(adapter), Result(data=encode(payload))

    def _load(self, model: BaseModel, job: Job) -> tuple[RunState, Result]:
        body = msgspec.json.decode(job.body, type=LoadJob)
        try:
            files = self.store.read_folder(body.prefix)
        except FolderDamaged:
            raise InvalidInput(f"path: the files of {body.path} are not whole any more.") from None
        state = checkpoint_files.unpack(model, files, optimizer=body.optimizer)
        payload = {"type": "load_weights", "path": body.path, "model_id": job.run_id}
        return state, Result(data=encode(payload))

    def _step(self, state: RunState, job: Job) -> Result:
        adam = msgspec.json.decode(job.body, type=OptimStepJob).adam
        params = AdamParams(**msgspec.structs.asdict(adam))
        return Result(data=encode({"metrics": optim_step(state, params)}))

    def _save(self, model: BaseModel, state: RunState, job: Job) -> Result:
        body = msgspec.json.decode(job.body, type=SaveJob)
        if body.external:
            files = pack_external(state, model.name, body.recipients)
        else:
            files = checkpoint_files.pack(state, model.name, optimizer=body.optimizer)
        try:
            size = self.store.write_folder(body.prefix, files)
        except StoreUnavailable:
            return failure(_NOT_STORED, "server")
        return Result(data=encode(SaveResult(size_bytes=size, answer=body.answer)))


def snapshot_files(state: RunState, base_model: str) -> dict[str, bytes]:
    return checkpoint_files.pack(state, base_model, optimizer=True)


def restore_snapshot(model: BaseModel, files: dict[str, bytes]) -> RunState:
    return checkpoint_files.unpack(model, files, optimizer=True)


def _created(state: RunState | None) -> RunState:
    if state is None:
        raise InvalidInput("model_id: this run was never created; its creation failed.")
    return state


def _work(state: RunState, job: Job) -> Work:
    request = tensors.parse_forward_backward(job.body)
    data = [Datum(datum.tokens, datum.inputs) for datum in tensors.decode_data(request)]
    return Work(
        run=state,
        data=data,
        loss_fn=request.loss_fn,
        loss_fn_config=tensors.loss_config(request),
        forward_only=request.forward_only,
    )


def _answer(outcome: Outcome) -> Result:
    if outcome.error is not None:
        return failure(outcome.error)
    output = tensors.encode_outputs(outcome.logprobs, outcome.metrics)
    return Result(data=output.SerializeToString(), content=Content.FORWARD_BACKWARD)
