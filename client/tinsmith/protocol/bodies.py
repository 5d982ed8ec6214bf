"""JSON bodies of the API, as msgspec structs.

Requests ignore fields they do not know: tomorrow's SDK sends them. Defaults are the SDK's, because
its older versions leave them out. Responses carry what the SDK validates, nothing invented.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec


class Body(msgspec.Struct, kw_only=True, frozen=True):
    pass


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """Written whole, nulls too: the SDK takes null for every optional field."""


class Versioned(Body, kw_only=True, frozen=True):
    sdk_version: str = ""


class CreateSession(Body, kw_only=True, frozen=True):
    tags: list[str] = []
    user_metadata: dict[str, Any] | None = None
    sdk_version: str = ""
    project_id: str | None = None
    display_name: str | None = None


class SessionCreated(Answer, kw_only=True, frozen=True):
    session_id: str
    type: str = "create_session"
    info_message: str | None = None
    warning_message: str | None = None
    error_message: str | None = None


class SessionRef(Body, kw_only=True, frozen=True):
    session_id: str


class FinishReason(Body, kw_only=True, frozen=True):
    type: Literal["success", "errored", "interrupted"] = "success"


class FinishSession(Body, kw_only=True, frozen=True):
    reason: FinishReason = FinishReason()
    detail: str | None = None


class LoraConfig(Body, kw_only=True, frozen=True):
    rank: int = 32
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(Body, kw_only=True, frozen=True):
    type: str = "adamw"
    version: int = 1


class CreateModel(Body, kw_only=True, frozen=True):
    session_id: str
    model_seq_id: int
    base_model: str
    user_metadata: dict[str, Any] | None = None
    lora_config: LoraConfig | None = None
    optimizer_config: OptimizerConfig | None = None


class Addressed(Body, kw_only=True, frozen=True):
    """What every op of a run carries: enough to fail it in its turn when the rest does not parse."""

    model_id: str
    seq_id: int


class RunRef(Body, kw_only=True, frozen=True):
    model_id: str


class ModelData(Answer, kw_only=True, frozen=True):
    arch: str | None = None
    model_name: str | None = None
    tokenizer_id: str | None = None


class RunInfo(Answer, kw_only=True, frozen=True):
    model_data: ModelData
    model_id: str
    optimizer_config: dict[str, Any]
    is_lora: bool
    lora_rank: int
    model_name: str
    type: str = "get_info"


class AdamParams(Body, kw_only=True, frozen=True):
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class DimuonParams(Body, kw_only=True, frozen=True):
    learning_rate: float
    beta1: float = 0.9
    grad_clip_norm: float = 0.0


class OptimStep(Addressed, kw_only=True, frozen=True):
    adam_params: AdamParams | None = None
    optimizer_params: dict[str, Any] | None = None


class SaveWeights(Addressed, kw_only=True, frozen=True):
    path: str | None = None
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: dict[str, Any] | None = None


class SaveWeightsForSampler(Addressed, kw_only=True, frozen=True):
    path: str | None = None
    sampling_session_seq_id: int | None = None
    kind: str = "snapshot"
    ttl_seconds: int | None = None
    user_metadata: dict[str, Any] | None = None


class SaveWeightsExternal(Addressed, kw_only=True, frozen=True):
    path: str | None = None
    ttl_seconds: int | None = None
    age_encryption_recipients: list[str] | None = None
    user_metadata: dict[str, Any] | None = None


class LoadWeights(Body, kw_only=True, frozen=True):
    """Either (model_id, seq_id) or (session_id, model_seq_id) addresses it (wire: 8.4)."""

    path: str
    optimizer: bool = False
    model_id: str | None = None
    seq_id: int | None = None
    session_id: str | None = None
    model_seq_id: int | None = None
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None
    optimizer_config: OptimizerConfig | None = None
    weights_access_token: str | None = None


class CreateSamplingSession(Body, kw_only=True, frozen=True):
    session_id: str
    sampling_session_seq_id: int
    model_path: str | None = None
    base_model: str | None = None


class SamplingSessionCreated(Answer, kw_only=True, frozen=True):
    sampling_session_id: str
    type: str = "create_sampling_session"


class JoinSamplingSession(Body, kw_only=True, frozen=True):
    sampling_session_id: str


class SamplingSessionJoined(Answer, kw_only=True, frozen=True):
    client_counter: int
    type: str = "join_sampling_session"


class SamplingParams(Body, kw_only=True, frozen=True):
    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str | int] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class Chunk(Body, kw_only=True, frozen=True):
    """One piece of a model input. Only text is trained on and sampled from here."""

    type: str | None = None
    tokens: list[int] | None = None


class ModelInput(Body, kw_only=True, frozen=True):
    chunks: list[Chunk]


class JsonTensor(Body, kw_only=True, frozen=True):
    """A tensor in JSON: flat values, or only those that a CSR pattern lists."""

    data: list[float]
    dtype: str = "float32"
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class Sample(Body, kw_only=True, frozen=True):
    sampling_session_id: str
    seq_id: int
    prompt: ModelInput
    num_samples: int = 1
    sampling_params: SamplingParams = SamplingParams()
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: JsonTensor | None = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None
    record_stability_info: bool | None = None


class Submitted(Answer, kw_only=True, frozen=True):
    """The future stub that every heavy call answers at once."""

    request_id: str
    model_id: str | None = None
    sample_sequence_ids: list[str] | None = None


class FutureRef(Body, kw_only=True, frozen=True):
    request_id: str
    allow_metadata_only: bool = False


class SamplerTarget(Body, kw_only=True, frozen=True):
    sampling_session_id: str
    cloned_sampler_id: int = 0
    type: str = "sampling_session"


class RetrieveFutures(Body, kw_only=True, frozen=True):
    target: SamplerTarget
    prev_cursor: int = 0
    timeout: float | None = None
    retrieved_request_ids: list[str] = []


class Completion(Answer, kw_only=True, frozen=True):
    state: str
    request_id: str
    response_payload_uncompressed_size: int | None = None


class Completions(Answer, kw_only=True, frozen=True):
    completions: list[Completion]
    cursor: int


class Pending(Answer, kw_only=True, frozen=True):
    request_id: str
    type: str = "try_again"
    queue_state: str = "active"
    queue_state_reason: str | None = None


class SupportedModel(Answer, kw_only=True, frozen=True):
    model_name: str
    max_context_length: int | None = None
    trainable: bool | None = None
    sampleable: bool | None = None
    # Beyond the SDK's fields, which ignores what it does not know:
    engine: str | None = None
    dtype: str | None = None
    exact: bool | None = None


class Capabilities(Answer, kw_only=True, frozen=True):
    supported_models: list[SupportedModel]


class Sampler(Answer, kw_only=True, frozen=True):
    sampler_id: str
    base_model: str
    model_path: str | None = None


class PathRef(Body, kw_only=True, frozen=True):
    tinker_path: str


class TimeToLive(Body, kw_only=True, frozen=True):
    ttl_seconds: int | None


class WeightsInfo(Answer, kw_only=True, frozen=True):
    base_model: str
    is_lora: bool
    lora_rank: int
    train_unembed: bool
    train_mlp: bool
    train_attn: bool
    optimizer_config: dict[str, Any]


class Cursor(Answer, kw_only=True, frozen=True):
    offset: int
    limit: int
    total_count: int


class Checkpoint(Answer, kw_only=True, frozen=True):
    checkpoint_id: str
    checkpoint_type: str
    time: datetime
    tinker_path: str
    size_bytes: int | None = None
    public: bool = False
    user_metadata: dict[str, str] | None = None
    expires_at: datetime | None = None


class Checkpoints(Answer, kw_only=True, frozen=True):
    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None


class TrainingRun(Answer, kw_only=True, frozen=True):
    training_run_id: str
    base_model: str
    model_owner: str
    is_lora: bool
    last_request_time: datetime
    corrupted: bool = False
    lora_rank: int | None = None
    last_checkpoint: Checkpoint | None = None
    last_sampler_checkpoint: Checkpoint | None = None
    user_metadata: dict[str, str] | None = None


class TrainingRuns(Answer, kw_only=True, frozen=True):
    training_runs: list[TrainingRun]
    cursor: Cursor
