"""Tinsmith: a training service on your own GPUs that speaks the API of Tinker.

This package is its thin client, under the official SDK's names: `import tinsmith as tinker`.
"""

from tinsmith import types as types
from tinsmith.admin_client import AdminClient as AdminClient
from tinsmith.custom_loss import LossHandle as LossHandle
from tinsmith.exceptions import APIConnectionError as APIConnectionError
from tinsmith.exceptions import APIError as APIError
from tinsmith.exceptions import APIStatusError as APIStatusError
from tinsmith.exceptions import APITimeoutError as APITimeoutError
from tinsmith.exceptions import AuthenticationError as AuthenticationError
from tinsmith.exceptions import BadRequestError as BadRequestError
from tinsmith.exceptions import InternalServerError as InternalServerError
from tinsmith.exceptions import NotFoundError as NotFoundError
from tinsmith.exceptions import PermissionDeniedError as PermissionDeniedError
from tinsmith.exceptions import RateLimitError as RateLimitError
from tinsmith.exceptions import RequestFailedError as RequestFailedError
from tinsmith.exceptions import TinkerError as TinkerError
from tinsmith.exceptions import UnprocessableEntityError as UnprocessableEntityError
from tinsmith.futures import APIFuture as APIFuture
from tinsmith.rest_client import RestClient as RestClient
from tinsmith.sampling_client import SamplingClient as SamplingClient
from tinsmith.service_client import ServiceClient as ServiceClient
from tinsmith.training_client import TrainingClient as TrainingClient
from tinsmith.types import AdamOptimizerConfig as AdamOptimizerConfig
from tinsmith.types import AdamParams as AdamParams
from tinsmith.types import Checkpoint as Checkpoint
from tinsmith.types import Datum as Datum
from tinsmith.types import DimuonOptimizerConfig as DimuonOptimizerConfig
from tinsmith.types import DimuonParams as DimuonParams
from tinsmith.types import EncodedTextChunk as EncodedTextChunk
from tinsmith.types import ForwardBackwardOutput as ForwardBackwardOutput
from tinsmith.types import LoraConfig as LoraConfig
from tinsmith.types import ModelInput as ModelInput
from tinsmith.types import OptimParams as OptimParams
from tinsmith.types import OptimStepResponse as OptimStepResponse
from tinsmith.types import PromptProvenanceSpan as PromptProvenanceSpan
from tinsmith.types import SampledProvenanceSpan as SampledProvenanceSpan
from tinsmith.types import SampledSequence as SampledSequence
from tinsmith.types import SampleResponse as SampleResponse
from tinsmith.types import SamplingParams as SamplingParams
from tinsmith.types import TensorData as TensorData
from tinsmith.types import TrainingRun as TrainingRun
