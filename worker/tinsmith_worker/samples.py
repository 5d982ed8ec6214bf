"""Sampling jobs on their way through the sampler: adapters resolved, results encoded.

Has never heard of a training run.
"""

from dataclasses import dataclass

import msgspec
import numpy as np
import structlog
from tinsmith.protocol import tensors
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.errors import TinsmithError
from tinsmith.protocol.jobs import Content, DrawnToken, Result, SampleJob, failure
from tinsmith.protocol.object_store import OUT_OF_REACH
from tinsmith.protocol.paths import sequence_id
from tinsmith.protocol.provenance import Recorded

from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.prompt_scores import TopK
from tinsmith_worker.engine.sampler import Finished, Sampler
from tinsmith_worker.engine.values import InvalidInput, SampleRequest, TargetCells
from tinsmith_worker.queue import Queue
from tinsmith_worker.sample_queue import SampleTicket
from tinsmith_worker.sampler_weights import NotThere, SamplerWeights

_WAITING_HERE = 2
"""Sequences that may wait at the worker, so that a place that falls free is filled at once."""
_log = structlog.get_logger()


@dataclass(frozen=True)
class _Waiting:
    """For a folder of the store."""

    ticket: SampleTicket
    prefix: str


@dataclass
class SamplingDesk:
    """One base model's sampler and the tickets it is working on."""

    queue: Queue
    model: BaseModel
    sampler: Sampler
    weights: SamplerWeights
    max_jobs: int

    def __post_init__(self) -> None:
        self._tickets: dict[str, SampleTicket] = {}
        self._streams: dict[str, str] = {}
        """The API process that each streaming request's tokens go to."""
        self._without_weights: list[_Waiting] = []

    @property
    def busy(self) -> bool:
        return bool(self._tickets)

    def take(self) -> None:
        """As many as have a place, and a few more: the turns of tenants are kept in the queue."""
        room = self.sampler.room + _WAITING_HERE
        if room > 0 and len(self._tickets) < self.max_jobs:
            for ticket in self.queue.samples.take(self.model.name, room):
                self._start(ticket)

    def retake(self) -> None:
        """After Redis was away: the answer to our last look may have been lost."""
        for ticket in self.queue.samples.retake(self.model.name):
            self._start(ticket)

    def rescue(self) -> None:
        self.queue.samples.rescue(self.model.name)

    def cancel(self, request_ids: set[str]) -> None:
        for request_id in request_ids & self._tickets.keys():
            self.sampler.cancel(request_id)
            self._finish(request_id, failure("The request was cancelled by the client."))

    @property
    def ready(self) -> bool:
        """Whether a step would do something."""
        return self.sampler.busy

    def step(self) -> None:
        try:
            answers = self.sampler.step()
        except Exception as error:  # noqa: BLE001 - a step's accident is not the worker's end
            self._fail_all(error)
            return
        self._tell_drawn()
        for finished in answers:
            ticket = self._tickets[finished.request_id]
            if records := _records(finished, ticket.body):
                self.queue.samples.keep_sequences(
                    records
                )  # before the answer: a loss may ask for them at once
            self._finish(finished.request_id, _result(finished, ticket.body))

    def _tell_drawn(self) -> None:
        """Before the results, which hold every token again: a reader needs no order between the two."""
        by_process: dict[str, list[DrawnToken]] = {}
        for one in self.sampler.take_drawn():
            if process := self._streams.get(one.request_id):
                by_process.setdefault(process, []).append(DrawnToken(**vars(one)))
        if by_process:
            self.queue.samples.tell_tokens(by_process)

    def _fail_all(self, error: Exception) -> None:
        """An error that is nobody's input: nobody in the sampler can go on from it."""
        lost = self.sampler.clear()
        asked = [self._tickets[one].origin.http_request_id for one in lost]
        _log.error(
            "sampling_step_failed",
            model=self.model.name,
            request_ids=lost,
            http_request_ids=asked,
            exc_info=error,
        )
        for request_id in lost:
            sentence = f"Internal error in the worker (reference {request_id}). Sample again."
            self._finish(request_id, failure(sentence, "server"))

    def go_on(self) -> None:
        """Jobs whose weights have come."""
        waiting, self._without_weights = self._without_weights, []
        for one in waiting:
            if one.ticket.request_id not in self._tickets:
                self.weights.forget(one.prefix)  # whoever else waits for it asks anew
            elif self.weights.news_of(one.prefix):
                self._begin(one.ticket)
            else:
                self._without_weights.append(one)

    def try_again(self) -> None:
        """Weights that were not in the store yet, or that it did not give."""
        for one in self._without_weights:
            if self.weights.out_of_reach(one.prefix):
                self.queue.say_why(one.ticket.request_id, OUT_OF_REACH)
        self.weights.try_again()

    def _start(self, ticket: SampleTicket) -> None:
        if ticket.request_id in self._tickets:
            return
        self._tickets[ticket.request_id] = ticket
        self._begin(ticket)

    def _begin(self, ticket: SampleTicket) -> None:
        try:
            job = msgspec.json.decode(ticket.body, type=SampleJob)
            adapter = self.weights.get(job.adapter_prefix) if job.adapter_prefix else None
            if job.adapter_prefix and adapter is None:
                self._without_weights.append(_Waiting(ticket, job.adapter_prefix))
            else:
                self.sampler.add(self._request(ticket, job, adapter))
        except (InvalidInput, TinsmithError) as error:
            self._finish(ticket.request_id, failure(str(error)))
        except NotThere:
            sentence = "sampling_session_id: its weights were deleted; save them again."
            self._finish(ticket.request_id, failure(sentence))

    def _request(
        self, ticket: SampleTicket, job: SampleJob, adapter: Adapter | None
    ) -> SampleRequest:
        if job.tokens_to:
            self._streams[ticket.request_id] = job.tokens_to
        params = job.params
        stop: list[str | int] | None
        stop = [params.stop] if isinstance(params.stop, str) else params.stop
        return SampleRequest(
            request_id=ticket.request_id,
            adapter=adapter,
            prompt=job.prompt,
            num_samples=job.num_samples,
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            seed=job.seed,
            stop=stop,
            prompt_logprobs=job.prompt_logprobs,
            topk_prompt_logprobs=job.topk_prompt_logprobs,
            topk_sample_logprobs=job.topk_sample_logprobs,
            prompt_logprobs_last_n=job.prompt_logprobs_last_n,
            targets=_targets(job),
            prompt_alt_tokens_k=job.prompt_alt_tokens_k,
            stream=job.tokens_to is not None,
        )

    def _finish(self, request_id: str, result: Result) -> None:
        self._streams.pop(request_id, None)
        self.queue.samples.done(self._tickets.pop(request_id), result)


def _targets(job: SampleJob) -> TargetCells | None:
    if job.target_prompt_logprobs is None:
        return None
    tensor = pb.Tensor.FromString(job.target_prompt_logprobs)
    return TargetCells(*tensors.target_cells(tensor, len(job.prompt) - 1))


def _records(finished: Finished, body: bytes) -> dict[str, Recorded]:
    """What a loss may want to know of the sequences later, if the request said so."""
    job = msgspec.json.decode(body, type=SampleJob)
    if not job.record:
        return {}
    return {
        sequence_id(finished.request_id, index): Recorded(
            prompt_length=len(job.prompt),
            tokens=np.asarray(one.tokens, "<i4").tobytes(),
            logprobs=np.asarray(one.logprobs, "<f4").tobytes(),
        )
        for index, one in enumerate(finished.sequences)
    }


def _result(finished: Finished, body: bytes) -> Result:
    if finished.error is not None:
        return failure(finished.error)
    response = pb.SampleResponse(prompt_cache_hit_tokens=finished.prompt_cache_hit_tokens)
    for sequence in finished.sequences:
        reason = pb.STOP_REASON_STOP if sequence.stop_reason == "stop" else pb.STOP_REASON_LENGTH
        response.sequences.append(
            pb.SampledSequence(
                stop_reason=reason,
                tokens=np.asarray(sequence.tokens, "<i4").tobytes(),
                logprobs=np.asarray(sequence.logprobs, "<f4").tobytes(),
                topk_sampled_logprobs=_topk(sequence.topk),
            )
        )
    if finished.scores.prompt_logprobs is not None:
        response.prompt_logprobs = np.asarray(finished.scores.prompt_logprobs, "<f4").tobytes()
    if topk := _topk(finished.scores.topk_prompt):
        response.topk_prompt_logprobs.CopyFrom(topk)
    if finished.scores.target_logprobs is not None:
        asked = msgspec.json.decode(body, type=SampleJob).target_prompt_logprobs
        layout = pb.Tensor.FromString(asked or b"")
        response.target_prompt_logprobs.CopyFrom(
            tensors.in_cells(layout, finished.scores.target_logprobs)
        )
    if finished.scores.alternatives is not None:
        drawn = finished.scores.alternatives
        response.prompt_alt_tokens.tokens.CopyFrom(tensors.encode_tensor(drawn.token_ids))
        response.prompt_alt_tokens.logprobs.CopyFrom(tensors.encode_tensor(drawn.logprobs))
    return Result(data=response.SerializeToString(), content=Content.SAMPLE)


def _topk(topk: TopK | None) -> pb.TopkLogprobs | None:
    if topk is None:
        return None
    length, k = topk.token_ids.shape
    return pb.TopkLogprobs(
        token_ids=np.asarray(topk.token_ids, "<i4").tobytes(),
        logprobs=np.asarray(topk.logprobs, "<f4").tobytes(),
        k=k,
        length=length,
    )
