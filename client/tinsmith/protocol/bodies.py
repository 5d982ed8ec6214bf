"""JSON bodies of the API, as msgspec structs.

Requests ignore fields they do not know: tomorrow's SDK sends them. Defaults are the SDK's, because
its older versions leave them out. Responses carry what the SDK validates, nothing invented.
"""

from datetime import datetime
from typing import Any

import msgspec


class Body(msgspec.Struct, kw_only=True, frozen=True):
    pass


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """Written whole, nulls too: the SDK takes null for every optional field."""


class Versioned(Body):
    sdk_version: str = ""


class CreateSession(Body):
    tags: list[str] = []
    user_metadata: dict[str, Any] | None = None
    sdk_version: str = ""
    project_id: str | None = None
    display_name: str | None = None


class SessionCreated(Answer):
    session_id: str
    type: str = "create_session"
    info_message: str | None = None
    warning_message: str | None = None
    error_message: str | None = None


class SessionRef(Body):
    session_id: str


class FinishReason(Body):
    type: str = "success"


class FinishSession(Body):
    reason: FinishReason = FinishReason()
    detail: str | None = None


class LoraConfig(Body):
    rank: int = 32
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(Body):
    type: str = "adamw"


class CreateModel(Body):
    session_id: str
    model_seq_id: int
    base_model: str
    user_metadata: dict[str, Any] | None = None
    lora_config: LoraConfig | None = None
    optimizer_config: OptimizerConfig | None = None


class Addressed(Body):
    """What every op of a run carries: enough to fail it in its turn when the rest does not parse."""

    model_id: str
    seq_id: int


class RunRef(Body):
    model_id: str


class ModelData(Answer):
    arch: str | None = None
    model_name: str | None = None
    tokenizer_id: str | None = None


class RunInfo(Answer):
    model_data: ModelData
    model_id: str
    optimizer_config: dict[str, Any]
    is_lora: bool
    lora_rank: int
    model_name: str
    type: str = "get_info"


class AdamParams(Body):
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class OptimStep(Addressed):
    adam_params: AdamParams | None = None
    optimizer_params: dict[str, Any] | None = None


class SaveWeights(Addressed):
    path: str | None = None
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: dict[str, Any] | None = None


class SaveWeightsForSampler(Addressed):
    path: str | None = None
    sampling_session_seq_id: int | None = None
    kind: str = "snapshot"
    ttl_seconds: int | None = None
    user_metadata: dict[str, Any] | None = None


class LoadWeights(Body):
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


class CreateSamplingSession(Body):
    session_id: str
    sampling_session_seq_id: int
    model_path: str | None = None
    base_model: str | None = None


class SamplingSessionCreated(Answer):
    sampling_session_id: str
    type: str = "create_sampling_session"


class SamplingParams(Body):
    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | list[int] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class Chunk(Body):
    """One piece of a model input. Only text is trained on and sampled from here."""

    type: str | None = None
    tokens: list[int] | None = None


class ModelInput(Body):
    chunks: list[Chunk]


class Sample(Body):
    sampling_session_id: str
    seq_id: int
    prompt: ModelInput
    num_samples: int = 1
    sampling_params: SamplingParams = SamplingParams()
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: Any = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None
    record_stability_info: bool = False


class Submitted(Answer):
    """The future stub that every heavy call answers at once."""

    request_id: str
    model_id: str | None = None
    sample_sequence_ids: list[str] | None = None


class FutureRef(Body):
    request_id: str
    allow_metadata_only: bool = False


class SamplerTarget(Body):
    sampling_session_id: str
    cloned_sampler_id: int = 0
    type: str = "sampling_session"


class RetrieveFutures(Body):
    target: SamplerTarget
    prev_cursor: int = 0
    timeout: float | None = None
    retrieved_request_ids: list[str] = []


class Completion(Answer):
    state: str
    request_id: str
    response_payload_uncompressed_size: int | None = None


class Completions(Answer):
    completions: list[Completion]
    cursor: int


class Pending(Answer):
    request_id: str
    type: str = "try_again"
    queue_state: str = "active"
    queue_state_reason: str | None = None


class SupportedModel(Answer):
    model_name: str
    max_context_length: int | None = None
    trainable: bool | None = None
    sampleable: bool | None = None


class Capabilities(Answer):
    supported_models: list[SupportedModel]


class Sampler(Answer):
    sampler_id: str
    base_model: str
    model_path: str | None = None


class PathRef(Body):
    tinker_path: str


class WeightsInfo(Answer):
    base_model: str
    is_lora: bool
    lora_rank: int
    train_unembed: bool
    train_mlp: bool
    train_attn: bool
    optimizer_config: dict[str, Any]


class Cursor(Answer):
    offset: int
    limit: int
    total_count: int


class Checkpoint(Answer):
    checkpoint_id: str
    checkpoint_type: str
    time: datetime
    tinker_path: str
    size_bytes: int | None = None
    public: bool = False
    user_metadata: dict[str, str] | None = None
    expires_at: datetime | None = None


class Checkpoints(Answer):
    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None


class TrainingRun(Answer):
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


class TrainingRuns(Answer):
    training_runs: list[TrainingRun]
    cursor: Cursor
