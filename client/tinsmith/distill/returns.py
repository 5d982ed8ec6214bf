"""From log-ratios of tokens to advantages: Tinker's and MiniLLM's.

Legend: r[n] = log q(x_n) - log p(x_n) of the T tokens of one completion, in nats.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def discounted(ratios_T: Floats, discount: float) -> Floats:
    """sum over i >= n of discount^(i-n) r[i]; r itself at 0."""
    found = np.zeros_like(ratios_T)
    later = np.float32(0)
    for index in range(len(ratios_T) - 1, -1, -1):
        later = ratios_T[index] + np.float32(discount) * later
        found[index] = later
    return found


def after(values_T: Floats) -> Floats:
    """What stands one token later; 0 after the last."""
    return np.append(values_T[1:], np.float32(0))


def minillm(ratios_T: Floats, gamma: float, length_norm: bool, exclude_current: bool) -> Floats:
    """R[n+1] of Gu et al. (eq. 5), or R[n]; normalised by the discounts that it sums.

    gamma 0 is r[n] itself, and nothing once the current token is excluded.
    """
    total = discounted(ratios_T, gamma)
    shares = discounted(np.ones_like(ratios_T), gamma)
    if exclude_current:
        total, shares = (after(total), after(shares)) if gamma else (total * 0, shares)
    if not length_norm:
        return total
    return np.asarray(total / np.maximum(shares, 1), np.float32)
