"""What goes into a call and what comes back, under the official SDK's names.

Legend: N tokens of one datum, K candidates per position.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from tinsmith.optimizers import AdamOptimizerConfig as AdamOptimizerConfig
from tinsmith.optimizers import AdamParams as AdamParams
from tinsmith.optimizers import DimuonOptimizerConfig as DimuonOptimizerConfig
from tinsmith.optimizers import DimuonParams as DimuonParams
from tinsmith.optimizers import OptimParams as OptimParams
from tinsmith.protocol.bodies import Capabilities as GetServerCapabilitiesResponse
from tinsmith.protocol.bodies import Checkpoint as Checkpoint
from tinsmith.protocol.bodies import Checkpoints as CheckpointsListResponse
from tinsmith.protocol.bodies import Cursor as Cursor
from tinsmith.protocol.bodies import LoraConfig as LoraConfig
from tinsmith.protocol.bodies import ModelData as ModelData
from tinsmith.protocol.bodies import RunInfo, WeightsInfo
from tinsmith.protocol.bodies import Sampler as GetSamplerResponse
from tinsmith.protocol.bodies import SamplingParams as SamplingParams
from tinsmith.protocol.bodies import SupportedModel as SupportedModel
from tinsmith.protocol.bodies import TrainingRun as TrainingRun
from tinsmith.protocol.bodies import TrainingRuns as TrainingRunsResponse
from tinsmith.protocol.download_bodies import FileUrls as ExternalWeightsUrlsResponse
from tinsmith.protocol.report_bodies import AuditLog as AuditLogResponse
from tinsmith.protocol.report_bodies import AuditLogEntry as AuditLogEntry
from tinsmith.protocol.report_bodies import StorageReport as CurrentCheckpointStorageUsageResponse
from tinsmith.protocol.session_bodies import AccessibleSessions as AccessibleSearchOwner
from tinsmith.protocol.session_bodies import AreActive as ActiveSessionStatusQuery
from tinsmith.protocol.session_bodies import AreCancelled as CancelledSessionStatusQuery
from tinsmith.protocol.session_bodies import AreFailed as FailedSessionStatusQuery
from tinsmith.protocol.session_bodies import AreFinished as ClientFinishedSessionStatusQuery
from tinsmith.protocol.session_bodies import FoundSessions as SessionSearchResponse
from tinsmith.protocol.session_bodies import OwnSessions as OwnSearchOwner
from tinsmith.protocol.session_bodies import SearchCursor as SessionSearchCursor
from tinsmith.protocol.session_bodies import SearchSessions as SessionSearchRequest
from tinsmith.protocol.session_bodies import SessionInfo as GetSessionResponse
from tinsmith.protocol.session_bodies import Sessions as ListSessionsResponse
from tinsmith.protocol.session_bodies import SessionsOf as UserSearchOwner
from tinsmith.protocol.session_bodies import SessionSummary as SessionSummary
from tinsmith.report_types import BillingUsageEvent as BillingUsageEvent
from tinsmith.report_types import BillingUsageResponse as BillingUsageResponse
from tinsmith.report_types import CheckpointBillingEvent as CheckpointBillingEvent
from tinsmith.report_types import SamplingPrefillBillingEvent as SamplingPrefillBillingEvent
from tinsmith.report_types import SamplingSampleBillingEvent as SamplingSampleBillingEvent
from tinsmith.report_types import StorageBillingEvent as StorageBillingEvent
from tinsmith.report_types import TrainingBillingEvent as TrainingBillingEvent
from tinsmith.report_types import WhoamiResponse as WhoamiResponse
from tinsmith.spans import PromptProvenanceSpan as PromptProvenanceSpan
from tinsmith.spans import ProvenanceSpans, check_tiling
from tinsmith.spans import SampledProvenanceSpan as SampledProvenanceSpan

__all__ = [
    "AccessibleSearchOwner",
    "ActiveSessionStatusQuery",
    "AdamOptimizerConfig",
    "AdamParams",
    "AuditLogEntry",
    "AuditLogResponse",
    "BillingUsageEvent",
    "BillingUsageResponse",
    "CancelledSessionStatusQuery",
    "Checkpoint",
    "CheckpointBillingEvent",
    "CheckpointsListResponse",
    "ClientFinishedSessionStatusQuery",
    "CurrentCheckpointStorageUsageResponse",
    "Cursor",
    "Datum",
    "DimuonOptimizerConfig",
    "DimuonParams",
    "EncodedTextChunk",
    "ExternalWeightsUrlsResponse",
    "FailedSessionStatusQuery",
    "ForwardBackwardOutput",
    "GetInfoResponse",
    "GetSamplerResponse",
    "GetServerCapabilitiesResponse",
    "GetSessionResponse",
    "ListSessionsResponse",
    "LoadWeightsResponse",
    "LoraConfig",
    "LossFnType",
    "ModelData",
    "ModelInput",
    "OptimParams",
    "OptimStepResponse",
    "OwnSearchOwner",
    "PromptAltTokens",
    "PromptProvenanceSpan",
    "SampleResponse",
    "SampledProvenanceSpan",
    "SampledSequence",
    "SamplingClientKind",
    "SamplingParams",
    "SamplingPrefillBillingEvent",
    "SamplingSampleBillingEvent",
    "SaveWeightsExternalResponse",
    "SaveWeightsForSamplerResponse",
    "SaveWeightsResponse",
    "SessionSearchCursor",
    "SessionSearchRequest",
    "SessionSearchResponse",
    "SessionSummary",
    "StopReason",
    "StorageBillingEvent",
    "SupportedModel",
    "TensorData",
    "TopkLogprobs",
    "TrainingBillingEvent",
    "TrainingRun",
    "TrainingRunsResponse",
    "UserSearchOwner",
    "WeightsInfoResponse",
    "WhoamiResponse",
]

Array = npt.NDArray[Any]
LossFnType = Literal[
    "cross_entropy",
    "importance_sampling",
    "ppo",
    "cispo",
    "dro",
    "gspo",
    "stable_reinforce",
    "custom",
]
SamplingClientKind = Literal["snapshot", "inflight"]
StopReason = Literal["length", "stop"]
TensorDtype = Literal["int64", "float32"]
_NUMPY: dict[str, type[np.generic]] = {"int64": np.int64, "float32": np.float32}
_NO_TOPK = -99999.0  # logprob of an empty cell of a top-k row

# Inputs that may be plain lists: everything else must bring its own dtype.
_DTYPE_OF: dict[str, TensorDtype] = {
    "target_tokens": "int64",
    "weights": "float32",
    "advantages": "float32",
    "logprobs": "float32",
    "clip_low_threshold": "float32",
    "clip_high_threshold": "float32",
    "sequence_ratio_mask": "float32",
}


@dataclass(frozen=True, eq=False)
class TensorData:
    """A dense tensor: flat `data`, its dtype and, when it has more than one dimension, its shape."""

    data: Any
    dtype: TensorDtype
    shape: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in _NUMPY:
            raise ValueError(f"dtype: {self.dtype!r} is not 'int64' or 'float32'.")
        array = np.asarray(self.data, _NUMPY[self.dtype])
        array = array.reshape(self.shape) if self.shape is not None else array
        object.__setattr__(self, "_array", array)
        object.__setattr__(self, "shape", list(array.shape))
        object.__setattr__(self, "data", array.ravel().tolist())

    @classmethod
    def from_numpy(cls, array: Array) -> "TensorData":
        if array.dtype.kind not in "iuf":
            raise TypeError(f"A {array.dtype} array is neither of integers nor of floats.")
        return cls(array, "float32" if array.dtype.kind == "f" else "int64", list(array.shape))

    @classmethod
    def from_torch(cls, tensor: Any) -> "TensorData":
        """bfloat16 and half tensors are widened to float32."""
        tensor = tensor.detach().cpu()
        return cls.from_numpy((tensor.float() if tensor.is_floating_point() else tensor).numpy())

    def to_numpy(self) -> Array:
        array: Array = self._array  # type: ignore[attr-defined]
        return array

    def to_torch(self) -> Any:
        import torch

        return torch.from_numpy(self.to_numpy().copy())

    def tolist(self) -> list[Any]:
        nested: list[Any] = self.to_numpy().tolist()
        return nested


@dataclass(frozen=True)
class EncodedTextChunk:
    tokens: list[int]
    type: Literal["encoded_text"] = "encoded_text"

    @property
    def length(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class ModelInput:
    """The tokens a model reads. Only text is served here."""

    chunks: list[EncodedTextChunk]

    @classmethod
    def from_ints(cls, tokens: Sequence[int]) -> "ModelInput":
        return cls([EncodedTextChunk(list(tokens))])

    @classmethod
    def empty(cls) -> "ModelInput":
        return cls([])

    def append(self, chunk: EncodedTextChunk) -> "ModelInput":
        return ModelInput([*self.chunks, chunk])

    def append_int(self, token: int) -> "ModelInput":
        return self.append(EncodedTextChunk([token]))

    def to_ints(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.tokens]

    @property
    def length(self) -> int:
        return sum(chunk.length for chunk in self.chunks)


@dataclass(frozen=True)
class Datum:
    """One example: position i of the input predicts `target_tokens[i]`.

    Every entry of `loss_fn_inputs` has length N (or [N, K] for `target_tokens` and `weights`). Lists
    are taken for the names the losses know; any other name needs a numpy array or a torch tensor.
    """

    model_input: ModelInput
    loss_fn_inputs: Mapping[str, Any] = field(default_factory=dict)
    model_input_spans: ProvenanceSpans | None = None
    loss_fn_input_spans: ProvenanceSpans | None = None

    def __post_init__(self) -> None:
        if (self.model_input_spans is None) != (self.loss_fn_input_spans is None):
            raise ValueError(
                "Datum: give model_input_spans and loss_fn_input_spans, or neither of them."
            )
        tensors = {name: _tensor(name, value) for name, value in self.loss_fn_inputs.items()}
        object.__setattr__(self, "loss_fn_inputs", tensors)

    def with_provenance(
        self, model_input: ProvenanceSpans, loss_fn_inputs: ProvenanceSpans
    ) -> "Datum":
        """A copy that says where its input tokens and its targets came from."""
        check_tiling(model_input, self.model_input.length, "model_input")
        if "target_tokens" in self.loss_fn_inputs:
            num_targets = len(self.loss_fn_inputs["target_tokens"].to_numpy())
            check_tiling(loss_fn_inputs, num_targets, "loss_fn_inputs")
        return replace(self, model_input_spans=model_input, loss_fn_input_spans=loss_fn_inputs)


def _tensor(name: str, value: Any) -> TensorData:
    if isinstance(value, TensorData):
        return value
    if isinstance(value, np.ndarray):
        return TensorData.from_numpy(value)
    if hasattr(value, "detach"):
        return TensorData.from_torch(value)
    if name not in _DTYPE_OF:
        raise TypeError(f"loss_fn_inputs.{name}: give a numpy array or a TensorData, not a list.")
    try:
        return TensorData(value, _DTYPE_OF[name])
    except ValueError:
        raise ValueError(
            f"loss_fn_inputs.{name}: rows of different lengths make no tensor."
        ) from None


@dataclass(frozen=True)
class ForwardBackwardOutput:
    """Per datum its named tensors (`logprobs`: the shape of `target_tokens`), and the metrics."""

    loss_fn_output_type: str
    loss_fn_outputs: list[dict[str, TensorData]]
    metrics: dict[str, float]


class ChosenOptimizer(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    type: str
    version: int | None = None


class GetInfoResponse(RunInfo, kw_only=True, frozen=True):
    optimizer_config: ChosenOptimizer  # type: ignore[assignment]  # the service writes any dict


class WeightsInfoResponse(WeightsInfo, kw_only=True, frozen=True):
    optimizer_config: ChosenOptimizer  # type: ignore[assignment]


class OptimStepResponse(msgspec.Struct, kw_only=True, frozen=True):
    metrics: dict[str, float] | None = None


class SaveWeightsResponse(msgspec.Struct, kw_only=True, frozen=True):
    path: str


class SaveWeightsForSamplerResponse(msgspec.Struct, kw_only=True, frozen=True):
    path: str


class SaveWeightsExternalResponse(msgspec.Struct, kw_only=True, frozen=True):
    path: str


class LoadWeightsResponse(msgspec.Struct, kw_only=True, frozen=True):
    path: str | None = None


@dataclass(frozen=True)
class TopkLogprobs:
    """Per position the K likeliest tokens: two [length, K] matrices."""

    token_ids: Array
    logprobs: Array

    def to_lists(self) -> list[list[tuple[int, float]] | None]:
        """Per position (token, logprob) pairs, or None where nothing was computed."""
        rows = []
        for ids, scores in zip(self.token_ids.tolist(), self.logprobs.tolist(), strict=True):
            pairs = [pair for pair in zip(ids, scores, strict=True) if pair[1] != _NO_TOPK]
            rows.append(pairs or None)
        return rows


@dataclass(frozen=True)
class SampledSequence:
    """What was sampled; the token that stopped it, if one did, is its last."""

    stop_reason: StopReason
    sequence_id: str
    tokens_np: Array = field(repr=False)
    logprobs_np: Array | None = field(default=None, repr=False)
    topk_logprobs_np: TopkLogprobs | None = field(default=None, repr=False)

    @cached_property
    def tokens(self) -> list[int]:
        tokens: list[int] = self.tokens_np.tolist()
        return tokens

    @cached_property
    def logprobs(self) -> list[float] | None:
        return None if self.logprobs_np is None else self.logprobs_np.tolist()

    @cached_property
    def topk_logprobs(self) -> list[list[tuple[int, float]] | None] | None:
        return None if self.topk_logprobs_np is None else self.topk_logprobs_np.to_lists()


@dataclass(frozen=True)
class PromptAltTokens:
    """Draws at every prompt position after the first: two [length - 1, k] tensors."""

    tokens: TensorData
    logprobs: TensorData


@dataclass(frozen=True)
class SampleResponse:
    sequences: Sequence[SampledSequence]
    prompt_logprobs_np: Array | None = field(default=None, repr=False)
    topk_prompt_logprobs_np: TopkLogprobs | None = field(default=None, repr=False)
    prompt_cache_hit_tokens: int = 0
    target_prompt_logprobs: TensorData | None = None
    prompt_alt_tokens: PromptAltTokens | None = None

    @cached_property
    def prompt_logprobs(self) -> list[float | None] | None:
        """One per prompt token; None where none was computed, as for the first."""
        if self.prompt_logprobs_np is None:
            return None
        return [None if np.isnan(score) else float(score) for score in self.prompt_logprobs_np]

    @cached_property
    def topk_prompt_logprobs(self) -> list[list[tuple[int, float]] | None] | None:
        return (
            None
            if self.topk_prompt_logprobs_np is None
            else self.topk_prompt_logprobs_np.to_lists()
        )
