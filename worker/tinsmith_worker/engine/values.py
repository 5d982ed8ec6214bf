"""What goes into the engine, and the one way to refuse it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
