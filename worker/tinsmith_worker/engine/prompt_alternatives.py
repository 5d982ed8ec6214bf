"""What a model would rather have said: tokens drawn at every position of a prompt.

The draws of a position come from a counter hash of the request's seed, apart from those of its samples,
so they are the same in any company and however the prompt was cut.

Legend: R rows, V vocabulary, k draws.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinsmith_worker.engine.sampling import Draw, draw, uniform
from tinsmith_worker.engine.values import SampleRequest

_APART = 1 << 32
"""Where the draws' numbers begin: no request has so many samples."""


def alternatives(
    request: SampleRequest, rows: range, logits_RV: Tensor
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """k tokens a row and their log-probabilities, both [R, k]."""
    tokens, logprobs = [], []
    for number in range(request.prompt_alt_tokens_k):
        draws = [
            Draw(request.temperature, -1, 1.0, uniform(request.seed, _APART + number, row))
            for row in rows
        ]
        some_tokens, some_logprobs, _ = draw(logits_RV, draws)
        tokens.append(some_tokens)
        logprobs.append(some_logprobs)
    both = torch.tensor(tokens).T.numpy(), torch.tensor(logprobs).T.numpy()
    return both[0].astype(np.int32), both[1].astype(np.float32)
