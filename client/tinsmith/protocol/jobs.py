"""What rides the queue: a job's kinds, their bodies and their results.

A training or sampling job carries the HTTP body as it came (protobuf or JSON). The others carry one
of the structs below, because the API process has already resolved names to facts: a `tinker://`
path to a folder of the store, an absent seed to a number. Nothing here is looked up twice.
"""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from tinsmith.protocol.bodies import AdamParams, Body, DimuonParams, SamplingParams
from tinsmith.protocol.origin import NOBODY, Origin


class Kind(StrEnum):
    CREATE_MODEL = "create_model"
    LOAD_WEIGHTS = "load_weights"
    FORWARD = "forward"
    FORWARD_BACKWARD = "forward_backward"
    OPTIM_STEP = "optim_step"
    SAVE_WEIGHTS = "save_weights"
    SAVE_WEIGHTS_FOR_SAMPLER = "save_weights_for_sampler"
    SAMPLE = "sample"

    @property
    def changes_state(self) -> bool:
        """Whether replaying a run must repeat it."""
        return self in _STATEFUL

    @property
    def needs_pass(self) -> bool:
        """Whether it runs tokens through the base model."""
        return self in (Kind.FORWARD, Kind.FORWARD_BACKWARD)

    @property
    def saves(self) -> bool:
        return self in (Kind.SAVE_WEIGHTS, Kind.SAVE_WEIGHTS_FOR_SAMPLER)


_STATEFUL = frozenset(
    (Kind.CREATE_MODEL, Kind.LOAD_WEIGHTS, Kind.FORWARD_BACKWARD, Kind.OPTIM_STEP)
)


class Content(StrEnum):
    """How the bytes of a result are to be read."""

    JSON = "json"
    FORWARD_BACKWARD = "forward_backward"  # protobuf ForwardBackwardOutput
    SAMPLE = "sample"  # protobuf SampleResponse


@dataclass(frozen=True, kw_only=True)
class Job:
    """One op of a run, or one sampling request (whose run_id is its sampling session)."""

    request_id: str
    run_id: str
    seq_id: int
    kind: Kind
    body: bytes
    num_tokens: int = 0
    origin: Origin = NOBODY
    submitted_us: int = 0
    """Microseconds since 1970 by Redis's clock, once it is in the queue."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a future resolves to: a payload, or a sentence and who can mend it."""

    data: bytes
    content: Content = Content.JSON
    failed: bool = False
    figures: str = ""
    """What the run's curves take of it, as done.lua reads it."""


class Failure(Body, kw_only=True, frozen=True):
    error: str
    category: str


def failure(message: str, category: str = "user") -> Result:
    return Result(data=encode(Failure(error=message, category=category)), failed=True)


class AdapterSpec(Body, kw_only=True, frozen=True):
    base_model: str
    rank: int
    seed: int
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True


class CreateModelJob(Body, kw_only=True, frozen=True):
    adapter: AdapterSpec
    optimizer: str = "adamw"


class LoadJob(Body, kw_only=True, frozen=True):
    """Replace a run's weights by a checkpoint's; a new run (seq 0) takes its shape from it.

    Without the optimizer's state, the run goes on with a fresh one of `optimizer_type`.
    """

    prefix: str
    path: str
    optimizer: bool
    base_model: str
    optimizer_type: str = "adamw"


class OptimStepJob(Body, kw_only=True, frozen=True):
    """Params of the run's own optimizer."""

    adam: AdamParams | None = None
    muon: DimuonParams | None = None


class SaveJob(Body, kw_only=True, frozen=True):
    """Write the run's weights below `prefix`, then answer `answer` as it stands.

    With `behind` the answer comes first: the run's log holds the save until the store has it. With
    `inflight` the run's inflight samplers go on with these weights.
    External ones are for use elsewhere, encrypted to the recipients if there are any.
    """

    prefix: str
    optimizer: bool
    answer: dict[str, str]
    behind: bool = False
    inflight: bool = False
    external: bool = False
    recipients: list[str] | None = None


class SaveResult(Body, kw_only=True, frozen=True):
    """Beside the answer, what the API process records of the checkpoint."""

    size_bytes: int
    answer: dict[str, str]


class SampleJob(Body, kw_only=True, frozen=True):
    """A sampling request with its adapter resolved and its seed fixed: a repeat gives the same."""

    base_model: str
    adapter_prefix: str | None
    prompt: list[int]
    num_samples: int
    params: SamplingParams
    seed: int
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_logprobs_last_n: int | None = None
    target_prompt_logprobs: bytes | None = None  # protobuf Tensor of token ids
    prompt_alt_tokens_k: int = 0
    record: bool = False
    """Whether the sequences are kept for a day, for losses that need what was known when sampling."""
    tokens_to: str | None = None
    """The API process that wants each token as it is drawn."""


class DrawnToken(Body, kw_only=True, frozen=True, array_like=True):
    """One token of a sample on its way, before its request has a result."""

    request_id: str
    sample: int
    position: int
    token: int
    logprob: float
    top: list[tuple[int, float]] | None = None


class ModelCard(Body, kw_only=True, frozen=True):
    """What a worker announces of a base model it holds."""

    name: str
    family: str
    vocab_size: int
    max_context_length: int
    max_lora_rank: int
    tokenizer_prefix: str | None = None
    engine: str = ""
    """fused or generic"""
    dtype: str = ""
    exact: bool = False
    """Sampler and trainer agree to the last bit."""
    teachers: tuple[str, ...] = ()
    """Base models that the runs of this one may be taught by."""
    eos_token_ids: tuple[int, ...] = ()
    """Any of these ends a sample that names no stop of its own."""
    tied_head: bool = False
    """Its unembedding is its embedding: one tensor."""


def encode(value: object) -> bytes:
    return msgspec.json.encode(value)
