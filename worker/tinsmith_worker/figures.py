"""What a finished op contributes to its run's curves, as one line that done.lua reads."""

from collections.abc import Mapping

import numpy as np

from tinsmith_worker.engine.training import Outcome, Work
from tinsmith_worker.engine.values import Datum


def of_pass(work: Work, outcome: Outcome) -> str:
    """Its loss, the weight of its tokens, and how far the sampler was from the trainer, if known.

    A forward pass without a gradient is no part of a step.
    """
    if work.forward_only:
        return ""
    weight = sum(map(_weight, work.data))
    drift = outcome.metrics.get("sampler_kl:mean")
    told = f"{outcome.metrics['loss:sum']:.9g} {weight:.9g}"
    return told if drift is None else f"{told} {drift:.9g}"


def of_step(metrics: Mapping[str, float]) -> str:
    return f"{metrics['grad_norm']:.9g} {metrics['learning_rate']:.9g}"


def _weight(datum: Datum) -> float:
    """What a loss per token divides by: the weights, or the tokens that have an advantage."""
    inputs = datum.inputs
    if "weights" in inputs:
        return float(np.sum(inputs["weights"]))
    if "advantages" in inputs:
        return float(np.count_nonzero(inputs["advantages"]))
    return float(inputs["target_tokens"].size)
