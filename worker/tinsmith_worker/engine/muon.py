"""Muon for the matrices of an adapter: what this service does where a client asks for `dimuon`.

Dimuon's own rule is not published. This is Muon as Jordan et al. (2024, kellerjordan.github.io/posts/muon)
describe it, Nesterov's momentum made nearly orthogonal by five Newton-Schulz steps, with the scale of Liu
et al. (2502.16982, eq. 4), 0.2 sqrt(max(rows, columns)), under which an update is about as large as
AdamW's. Each A and each B of a LoRA pair is a matrix of its own; there is no weight decay.

Legend: P numbers of an adapter, M matrices of one shape, R and C their rows and columns.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinsmith_worker.engine.adapter import Layout
from tinsmith_worker.engine.values import InvalidInput

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_SCALE = 0.2


@dataclass(frozen=True, kw_only=True)
class MuonParams:
    """Names and defaults are the SDK's DimuonParams."""

    learning_rate: float
    beta1: float = 0.9
    grad_clip_norm: float = 0.0
    """Largest global norm of this run's gradient; 0 or less leaves it as it is."""

    def validate(self) -> None:
        if not 0 <= self.learning_rate <= 1e3:
            raise InvalidInput(
                f"optimizer_params.learning_rate: {self.learning_rate} is not from 0 to 1000."
            )
        if not 0 <= self.beta1 < 1:
            raise InvalidInput(f"optimizer_params.beta1: {self.beta1} is not from 0 to below 1.")
        if not np.isfinite(self.grad_clip_norm):
            raise InvalidInput(
                f"optimizer_params.grad_clip_norm: {self.grad_clip_norm} is not a finite number."
            )


def muon(
    weights_P: Tensor, gradient_P: Tensor, momentum_P: Tensor, layout: Layout, params: MuonParams
) -> None:
    """One step, in place."""
    momentum_P.lerp_(gradient_P, 1 - params.beta1)
    ahead_P = torch.lerp(gradient_P, momentum_P, params.beta1)
    weights = layout.tensors(weights_P)
    alike: defaultdict[torch.Size, list[str]] = defaultdict(list)
    ahead = layout.tensors(ahead_P)
    for name, matrix in ahead.items():
        alike[matrix.shape].append(name)
    for shape, names in alike.items():
        updates_MRC = orthogonal(torch.stack([ahead[name] for name in names]))
        scale = _SCALE * max(shape) ** 0.5
        for name, update_RC in zip(names, updates_MRC, strict=True):
            weights[name].sub_(update_RC, alpha=params.learning_rate * scale)


def orthogonal(matrices_MRC: Tensor) -> Tensor:
    """About U V^T of each one's singular value decomposition; zero for zero."""
    a, b, c = _COEFFICIENTS
    tall = matrices_MRC.shape[1] > matrices_MRC.shape[2]
    x: Tensor = matrices_MRC.mT if tall else matrices_MRC
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
