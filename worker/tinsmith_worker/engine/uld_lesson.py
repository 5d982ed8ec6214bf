"""x_distill_uld, modes gold and uld: two vocabularies compared by the sizes of their probabilities.

ULD (2402.12030): l = sum over k of |sort(p)_k - sort(q)_k|, the shorter one padded with zeros. GOLD
(TRL's GOLDTrainer) makes one distribution of a group of tokens first, and compares tokens that both
vocabularies spell alike by name.

A group is looked at as a whole, so autograd over its few rows is enough.

Legend: G groups, R rows of them, V a vocabulary.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinsmith_worker.engine.distill_config import ULDConfig
from tinsmith_worker.engine.lessons import TOGETHER, Lesson, Pupil
from tinsmith_worker.engine.readings import Ints
from tinsmith_worker.engine.taught import Taught

_LEAST = 1e-8


@dataclass(frozen=True)
class Names:
    """Ids of the tokens that both vocabularies spell alike, in the teacher's order."""

    student: Tensor
    teacher: Tensor


@dataclass(frozen=True, eq=False)
class _Group:
    pairs: Ints
    """Whose rows are merged."""
    tokens: Ints
    """The token that each of those rows is asked about."""
    lines: Ints
    """The teacher's rows."""
    answers: Ints
    """The token that each of those is asked about."""
    last: int
    """The pair that the loss is noted at."""
    weight: float
    teacher: int


class ULDLesson(Lesson):
    def __init__(
        self, config: ULDConfig, pupil: Pupil, taught: Taught, names: dict[int, Names]
    ) -> None:
        """`names` by the teacher's id; empty where tokens are not compared by name."""
        super().__init__(config, pupil, taught)
        self._uld, self._names = config, names
        self._groups = self._made()
        self._of_pair = np.full(pupil.size, -1)
        self.together = np.arange(pupil.size)
        for number, group in enumerate(self._groups):
            self._of_pair[group.pairs] = number
            self.together[group.pairs] = group.pairs[0]
            self.idle[group.pairs] = False
        self.whole_rows = self.look

    def _made(self) -> list[_Group]:
        """Observed rows stand one later: TRL's own reading of them (docs/losses.md)."""
        later = int(self._uld.merge == "observed")
        weights, targets = self.pupil.weights.cpu().numpy(), self.pupil.targets.cpu().numpy()
        made = []
        for index, reading in enumerate(self.pupil.readings):
            first, line = int(self.pupil.starts[index]), int(self.taught.starts[index])
            for one in reading.groups:
                own = first + np.arange(one.s0, one.s1)
                made.append(
                    _Group(
                        pairs=own + later,
                        tokens=targets[own],
                        lines=line + np.arange(one.l0, one.l1),
                        answers=reading.targets[one.l0 : one.l1],
                        last=int(own[-1]),
                        weight=float(weights[own].mean()),
                        teacher=id(reading.teacher),
                    )
                )
                self.notes.compared[own] = (self.pupil.weights[own] != 0).float()
        return made

    def look(
        self, logits_RV: Tensor, rows: Ints, pairs: Ints, logprobs: Tensor, into_RV: Tensor | None
    ) -> None:
        place = dict(zip(pairs.tolist(), rows.tolist(), strict=True))
        numbers = np.unique(self._of_pair[pairs])
        here = [self._groups[number] for number in numbers if number >= 0]
        for teacher in {group.teacher for group in here}:
            mine = [group for group in here if group.teacher == teacher]
            for start in range(0, len(mine), TOGETHER):
                self._compare(logits_RV, place, mine[start : start + TOGETHER], into_RV)

    def _compare(
        self, logits_RV: Tensor, place: dict[int, int], groups: list[_Group], into_RV: Tensor | None
    ) -> None:
        device = logits_RV.device
        rows = torch.tensor([place[pair] for one in groups for pair in one.pairs], device=device)
        theirs_RV = self.taught.logits(groups[0].teacher, np.concatenate([g.lines for g in groups]))
        tau = self.config.temperature
        leaf_RV = logits_RV[rows].detach().requires_grad_(into_RV is not None)
        with torch.enable_grad():
            ours_GV = self._merged((leaf_RV / tau).softmax(-1), [one.tokens for one in groups])
            with torch.no_grad():
                q_RV = (theirs_RV / (self.config.teacher_temperature or tau)).softmax(-1)
                theirs_GV = self._merged(q_RV, [one.answers for one in groups])
            found_G = self._distance(ours_GV, theirs_GV, self._names.get(groups[0].teacher))
            weights_G = torch.tensor([one.weight for one in groups], device=device)
            total_G = self.config.distill_weight * weights_G * found_G
            total = total_G.sum()
        if into_RV is not None:
            [back_RV] = torch.autograd.grad(total, leaf_RV)
            into_RV.index_add_(0, rows, back_RV)
        last = torch.tensor([one.last for one in groups], device=device)
        self.notes.divergence[last] = found_G.detach()
        self.notes.loss[last] = total_G.detach()

    def _merged(self, p_RV: Tensor, tokens: list[Ints]) -> Tensor:
        """One row a group: bayesian, the last one's times what the others gave their own token.

        So the merged mass at the last token is the chain rule's product. Observed takes the first row.
        """
        made, start = [], 0
        for some in tokens:
            own_RV = p_RV[start : start + some.size]
            start += some.size
            base = some.size - 1 if self._uld.merge == "bayesian" else 0
            others = [index for index in range(some.size) if index != base]
            chances = own_RV[others, torch.from_numpy(some[others])].clamp(min=_LEAST)
            made.append(own_RV[base] * chances.prod())
        return torch.stack(made)

    def _distance(self, p_GV: Tensor, q_GV: Tensor, names: Names | None) -> Tensor:
        if names is None:
            return sorted_distance(p_GV, q_GV)
        weights = self._uld.w_matched, self._uld.w_unmatched
        if weights[0] < 0:
            share = names.teacher.numel() / q_GV.shape[1]
            weights = share, 1 - share
        rest = (_without(p_GV, names.student), _without(q_GV, names.teacher))
        by_size = sorted_distance(*rest) if all(one.shape[1] for one in rest) else 0.0
        by_name = _by_name(p_GV[:, names.student], q_GV[:, names.teacher], self._uld.beta)
        return weights[0] * by_name + weights[1] * by_size

    def metrics(self) -> dict[str, float]:
        found = super().metrics()
        kept = ("divergence", "tokens", "unaligned_tokens")
        found = {f"distill/{name}:sum": found[f"distill/{name}:sum"] for name in kept}
        found["distill/chunks:sum"] = float(len(self._groups))
        if self._names:
            sizes = [self._names[id(one.teacher)].teacher.numel() for one in self.pupil.readings]
            found["distill/matched_vocab:mean"] = float(sum(sizes))  # its mean is over the datums
        return found


def sorted_distance(p_GV: Tensor, q_GV: Tensor) -> Tensor:
    """[G]: the L1 distance of the sorted probabilities, the shorter side padded with zeros."""
    width = max(p_GV.shape[1], q_GV.shape[1])
    one, other = (
        torch.nn.functional.pad(side.sort(1, descending=True).values, (0, width - side.shape[1]))
        for side in (p_GV, q_GV)
    )
    return (one - other).abs().sum(1)


def _by_name(p_GV: Tensor, q_GV: Tensor, beta: float) -> Tensor:
    """The generalised divergence of what both name alike, as it is: not made to sum to one."""
    log_p, log_q = p_GV.clamp(min=_LEAST).log(), q_GV.clamp(min=_LEAST).log()
    if beta == 0:
        return (log_q.exp() * (log_q - log_p)).sum(1)
    if beta == 1:
        return (log_p.exp() * (log_p - log_q)).sum(1)
    log_m = torch.logaddexp(log_p + math.log1p(-beta), log_q + math.log(beta))
    teachers = beta * log_q.exp() * (log_q - log_m)
    return (teachers + (1 - beta) * log_p.exp() * (log_p - log_m)).sum(1)


def _without(p_GV: Tensor, ids: Tensor) -> Tensor:
    rest = torch.ones(p_GV.shape[1], dtype=torch.bool, device=p_GV.device)
    rest[ids] = False
    return p_GV[:, rest]
