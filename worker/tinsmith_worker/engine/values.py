"""What goes into the engine, and the one way to refuse it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tinsmith_worker.engine.adapter import Adapter


class InvalidInput(ValueError):
    """A caller's mistake: the message names the field and says what to do."""


@dataclass(frozen=True)
class Datum:
    """One example: tokens int32 [N] and dense loss inputs by name ([N] or [N, K])."""

    tokens: npt.NDArray[np.int32]
    inputs: dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class TargetCells:
    """Tokens to score beside the prompt's own: cell i asks for `tokens[i]` after `rows[i] + 1` tokens.

    Rows ascend; a token of -1 asks for nothing.
    """

    rows: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    request_id: str
    adapter: "Adapter | None"
    prompt: list[int]
    num_samples: int
    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: list[str | int] | None
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_logprobs_last_n: int | None = None
    targets: TargetCells | None = None
    prompt_alt_tokens_k: int = 0
    """Draws at each prompt position after the first, with replacement, at the request's temperature."""
    stream: bool = False
    """Whether each token is wanted as soon as it is drawn."""
