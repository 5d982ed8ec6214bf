"""What each kind of job does to a run. One table for live ops and for replay, so they cannot differ."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec
import structlog
from tinsmith.protocol import bodies, tensors
from tinsmith.protocol.distillation import TEACHERS_KEY, decode_teachers
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

from tinsmith_worker import checkpoint_files, figures
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.muon import MuonParams
from tinsmith_worker.engine.optimizer import AdamParams, Params, RunState, check_params, optim_steps
from tinsmith_worker.engine.training import Outcome, Trainer, Work
from tinsmith_worker.engine.values import Datum, InvalidInput
from tinsmith_worker.external_files import pack_external, parse_recipients
from tinsmith_worker.fetcher import Fetcher
from tinsmith_worker.sampler_weights import SamplerWeights
from tinsmith_worker.saver import Saver, Until
from tinsmith_worker.store import FolderDamaged, StoreUnavailable
from tinsmith_worker.teachers import Teachers

_log = structlog.get_logger()
NEVER_CREATED = "model_id: this run was never created; its creation failed."
_NOT_STORED = "The checkpoint was not saved: the service's store is full or refuses it. Try again."
_MOST_BEHIND_BYTES = 1 << 30
"""Of copies that wait for the store. With more, a save behind its answer is answered after it."""


@dataclass(frozen=True)
class Ops:
    saver: Saver
    fetcher: Fetcher
    samplers: Mapping[str, SamplerWeights]
    """By base model."""
    max_pass_tokens: int
    point_slot: Callable[[str, int, str], None]
    """Let a run's inflight samplers go on with what its op of this seq wrote."""
    teachers: Teachers

    def run_one(
        self, model: BaseModel, state: RunState | None, job: Job
    ) -> tuple[RunState | None, "Result | Future[Result]"]:
        """A create, load or save. A user's mistake becomes a failed result."""
        try:
            return self._dispatch(model, state, job)
        except (InvalidInput, TinsmithError) as error:
            return state, failure(str(error))

    def run_steps(self, states: Sequence[RunState | None], jobs: Sequence[Job]) -> list[Result]:
        """The optimizer steps of several runs together; each fails or succeeds alone."""
        results: dict[int, Result] = {}
        steps: dict[int, tuple[RunState, Params]] = {}
        for index, (state, job) in enumerate(zip(states, jobs, strict=True)):
            try:
                steps[index] = (run := _created(state), params := _params(job))
                check_params(run, params)
            except InvalidInput as error:
                steps.pop(index, None)
                results[index] = failure(str(error))
        for index, metrics in zip(steps, optim_steps(list(steps.values())), strict=True):
            line = figures.of_step(metrics)
            results[index] = Result(data=encode({"metrics": metrics}), figures=line)
        return [results[index] for index in range(len(jobs))]

    def trainer(self, model: BaseModel) -> Trainer:
        return Trainer(model, max_pass_tokens=self.max_pass_tokens)

    def replay(self, model: BaseModel, state: RunState | None, job: Job) -> RunState | None:
        """Repeat a logged op. It succeeded once, so a failure now is ours, not the user's."""
        result: Result | Future[Result]
        if job.kind is Kind.FORWARD_BACKWARD:
            result = self._train_again(model, _created(state), job)
        elif job.kind is Kind.OPTIM_STEP:
            [result] = self.run_steps([state], [job])
        elif job.kind.saves:
            return self._save_again(model, _created(state), job)
        else:
            state, result = self.run_one(model, state, job)
        assert isinstance(result, Result)
        if result.failed:
            raise RuntimeError(f"replay of {job.request_id} failed: {result.data[:200]!r}")
        return state

    def _dispatch(
        self, model: BaseModel, state: RunState | None, job: Job
    ) -> tuple[RunState | None, "Result | Future[Result]"]:
        match job.kind:
            case Kind.CREATE_MODEL:
                return self._create(model, job)
            case Kind.LOAD_WEIGHTS:
                return self._load(model, job)
            case Kind.SAVE_WEIGHTS | Kind.SAVE_WEIGHTS_FOR_SAMPLER:
                return state, self._save(model, _created(state), job)
        raise AssertionError(f"{job.kind} is not run alone")

    def _create(self, model: BaseModel, job: Job) -> tuple[RunState, Result]:
        body = msgspec.json.decode(job.body, type=CreateModelJob)
        spec = body.adapter
        adapter = Adapter.create(
            model,
            rank=spec.rank,
            seed=spec.seed,
            train_attn=spec.train_attn,
            train_mlp=spec.train_mlp,
            train_unembed=spec.train_unembed,
        )
        payload = {"type": "create_model", "model_id": job.run_id}
        return RunState(adapter, body.optimizer), Result(data=encode(payload))

    def _load(self, model: BaseModel, job: Job) -> tuple[RunState, Result]:
        body = msgspec.json.decode(job.body, type=LoadJob)
        try:
            files = self.fetcher.files(job.run_id, body.prefix)
        except FolderDamaged:
            raise InvalidInput(f"path: the files of {body.path} are not whole any more.") from None
        state = checkpoint_files.unpack(
            model, files, fresh=None if body.optimizer else body.optimizer_type
        )
        payload = {"type": "load_weights", "path": body.path, "model_id": job.run_id}
        return state, Result(data=encode(payload))

    def _save(self, model: BaseModel, state: RunState, job: Job) -> "Result | Future[Result]":
        """A sampler's weights are at hand at once; whether its answer waits for the store, the job says."""
        body = msgspec.json.decode(job.body, type=SaveJob)
        recipients = parse_recipients(body.recipients)
        copy = state.copied()

        def files() -> dict[str, bytes]:
            if body.external:
                return pack_external(copy, model.name, recipients)
            return checkpoint_files.pack(copy, model.name, optimizer=body.optimizer)

        answered_first = body.behind and self.saver.held_bytes < _MOST_BEHIND_BYTES
        written = self.saver.write(
            job.run_id,
            body.prefix,
            files,
            until=Until.WRITTEN if body.behind else Until.REFUSED,
            held_bytes=checkpoint_files.size_bytes(copy, optimizer=True),
        )
        if job.kind is Kind.SAVE_WEIGHTS_FOR_SAMPLER:
            self.samplers[model.name].put(body.prefix, copy.adapter, written)
        if body.inflight:
            self.point_slot(job.run_id, job.seq_id, body.prefix)
        if answered_first:
            size = checkpoint_files.size_bytes(copy, optimizer=body.optimizer)
            return Result(data=encode(SaveResult(size_bytes=size, answer=body.answer)))
        answer: Future[Result] = Future()
        written.add_done_callback(lambda done: answer.set_result(_saved(done, job, body)))
        return answer

    def work_of(self, model: BaseModel, state: RunState, job: Job) -> Work:
        """Raises InvalidInput and TinsmithError."""
        request = tensors.parse_forward_backward(job.body)
        data = [Datum(datum.tokens, datum.inputs) for datum in tensors.decode_data(request)]
        config = tensors.loss_config(request)
        facts = decode_teachers(str(config.pop(TEACHERS_KEY, "[]")))
        return Work(
            run=state,
            data=data,
            loss_fn=request.loss_fn,
            loss_fn_config=config,
            forward_only=request.forward_only,
            teachers=self.teachers.resolve(model, state, facts, self.fetcher.reader(job.run_id)),
            averages=tuple((one.average.rate, one.average.every) for one in facts if one.average),
        )

    def _train_again(self, model: BaseModel, state: RunState, job: Job) -> Result:
        trainer = self.trainer(model)
        trainer.add(self.work_of(model, state, job))
        settled = []
        while trainer.busy:
            settled += trainer.step()
        [(work, outcome)] = settled
        return answer_of(work, outcome)

    def _save_again(self, model: BaseModel, state: RunState, job: Job) -> RunState:
        """A logged save was answered before the store had it; now it may, or may not."""
        body = msgspec.json.decode(job.body, type=SaveJob)
        copy = state.copied()
        written = self.saver.write(
            job.run_id,
            body.prefix,
            lambda: checkpoint_files.pack(copy, model.name, optimizer=body.optimizer),
            until=Until.WRITTEN,
            unless_there=True,
            held_bytes=checkpoint_files.size_bytes(copy, optimizer=True),
        )
        if job.kind is Kind.SAVE_WEIGHTS_FOR_SAMPLER:
            self.samplers[model.name].put(body.prefix, copy.adapter, written)
        return state


def _saved(done: "Future[int]", job: Job, body: SaveJob) -> Result:
    try:
        size = done.result()
    except StoreUnavailable:
        return failure(_NOT_STORED, "server")
    except Exception as error:  # noqa: BLE001 - it is told, and the run goes on
        _log.error(
            "save_failed",
            request_id=job.request_id,
            http_request_id=job.origin.http_request_id,
            prefix=body.prefix,
            exc_info=error,
        )
        return failure(_NOT_STORED, "server")
    return Result(data=encode(SaveResult(size_bytes=size, answer=body.answer)))


def logged(job: Job) -> bool:
    """Whether a replay of the run must repeat the op: it changed the run, or the store may lack it."""
    if job.kind.saves:
        return msgspec.json.decode(job.body, type=SaveJob).behind
    return job.kind.changes_state


def snapshot_files(state: RunState, base_model: str) -> dict[str, bytes]:
    return checkpoint_files.pack(state, base_model, optimizer=True)


def restore_snapshot(model: BaseModel, files: dict[str, bytes]) -> RunState:
    return checkpoint_files.unpack(model, files)


def _created(state: RunState | None) -> RunState:
    if state is None:
        raise InvalidInput(NEVER_CREATED)
    return state


def answer_of(work: Work, outcome: Outcome) -> Result:
    if outcome.error is not None:
        return failure(outcome.error)
    output = tensors.encode_outputs(outcome.logprobs, outcome.metrics, outcome.more)
    return Result(
        data=output.SerializeToString(),
        content=Content.FORWARD_BACKWARD,
        figures=figures.of_pass(work, outcome),
    )


def _params(job: Job) -> Params:
    body = msgspec.json.decode(job.body, type=OptimStepJob)
    if body.muon is not None:
        return MuonParams(**msgspec.structs.asdict(body.muon))
    return AdamParams(**msgspec.structs.asdict(body.adam or bodies.AdamParams()))
