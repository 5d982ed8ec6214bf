"""x_distill_pg, and x_distill_uld by chunks: what the teacher thinks of the tokens that were drawn.

r = log q - log p of a token, or of a stretch of text that the two sides spell with other tokens: their
sum is log q(text) - log p(text) either way, so its mean is minus the sequences' reverse KL.

Advantages: coefficient times the return R_t = sum over i >= t of gamma^(i-t) r_i of scored tokens, from
i = t + 1 where the current token is left out (MiniLLM, 2306.08543, section 2.2: the rest of it is the
whole vocabulary's KL, single_step).
"""

import numpy as np
import torch
from torch import Tensor

from tinsmith_worker.engine.distill_config import PGConfig
from tinsmith_worker.engine.divergence import Measure
from tinsmith_worker.engine.lessons import DenseLesson, Pupil
from tinsmith_worker.engine.losses import LOSSES
from tinsmith_worker.engine.readings import Ints, Reading
from tinsmith_worker.engine.taught import Taught

_TINY = 1e-8


class PolicyLesson(DenseLesson):
    def __init__(
        self,
        config: PGConfig,
        pupil: Pupil,
        taught: Taught,
        *,
        rewards: Tensor | None = None,
        mixture: Tensor | None = None,
    ) -> None:
        """`rewards`: advantages of the task's own; `mixture`: log p of whoever drew the tokens."""
        tau = config.temperature
        measure = Measure(temperature=tau, teacher_temperature=config.teacher_temperature or tau)
        super().__init__(config, pupil, taught, measure, config.single_step)
        self._pg, self._rewards, self._mixture = config, rewards, mixture
        self.needs_logprobs = pupil.sampled is None
        self._loss = LOSSES[config.pg_loss]
        self._inner = self._loss.config(**config.clips)
        if not config.single_step:
            self.whole_rows = None

    def begin(self, logprobs_P: Tensor | None) -> None:
        drawn_P = logprobs_P if self.pupil.sampled is None else self.pupil.sampled
        assert drawn_P is not None
        theirs_L = self.taught.logprobs().to(drawn_P.device)
        advantages = []
        for index, reading in enumerate(self.pupil.readings):
            pairs = slice(int(self.pupil.starts[index]), int(self.pupil.starts[index + 1]))
            lines = slice(int(self.taught.starts[index]), int(self.taught.starts[index + 1]))
            gap_N = self._gap(reading, pairs, drawn_P[pairs], theirs_L[lines])
            advantages.append(advantages_of(gap_N, self.pupil.weights[pairs] != 0, self._pg))
        self.advantages = torch.cat(advantages)
        if self._rewards is not None:
            self.advantages = self.advantages + self._rewards
        self._behaviour = self._behaved(drawn_P)

    def _gap(self, reading: Reading, pairs: slice, drawn_N: Tensor, theirs_L: Tensor) -> Tensor:
        """r of each target, 0 where nothing is compared; notes what the teacher gave."""
        notes, gap_N = self.notes, torch.zeros_like(drawn_N)
        if not reading.groups:
            here = torch.from_numpy(np.flatnonzero(reading.line >= 0)).to(gap_N.device)
            line = torch.from_numpy(reading.line[reading.line >= 0]).to(gap_N.device)
            gap_N[here] = theirs_L[line] - drawn_N[here]
            notes.teacher_logprobs[pairs][here] = theirs_L[line]
            notes.divergence[pairs] = -gap_N
            notes.compared[pairs][here] = 1.0
            return gap_N
        for group in reading.groups:
            ours, size = slice(group.s0, group.s1), group.s1 - group.s0
            theirs = theirs_L[group.l0 : group.l1].sum()
            gap_N[ours] = theirs - drawn_N[ours].sum()
            notes.teacher_logprobs[pairs][ours] = theirs / size
            notes.divergence[pairs][ours] = -gap_N[ours] / size
            notes.compared[pairs][ours] = (self.pupil.weights[pairs][ours] != 0).float()
        return gap_N

    def _behaved(self, drawn_P: Tensor) -> Tensor:
        """log of the distribution that the tokens were drawn from."""
        if self._mixture is not None:
            return self._mixture
        alpha = self._pg.teacher_mix_alpha
        if not alpha:
            return drawn_P
        mixed_P = torch.logaddexp(
            drawn_P + np.log1p(-alpha), self.notes.teacher_logprobs + np.log(alpha)
        )
        return torch.where(self.notes.compared > 0, mixed_P, drawn_P)

    def weigh(self, logprobs: Tensor, pairs: Ints) -> Tensor:
        some = torch.from_numpy(pairs).to(logprobs.device)
        inputs = {name: one[some] for name, one in self._inputs.items()}
        slope = self._loss.gradient(logprobs, inputs, self._inner)
        return super().weigh(logprobs, pairs) + self.config.distill_weight * slope

    def loss(self, logprobs_P: Tensor) -> Tensor:
        policy = self._loss.function(logprobs_P, self._inputs, self._inner)
        return super().loss(logprobs_P) + self.config.distill_weight * policy

    @property
    def _inputs(self) -> dict[str, Tensor]:
        """What the token loss reads: a weight counts as so much advantage."""
        return {"logprobs": self._behaviour, "advantages": self.advantages * self.pupil.weights}

    def metrics(self) -> dict[str, float]:
        found = super().metrics()
        if not self._pg.single_step:  # nothing looked at whole rows
            for name in ("entropy", "teacher_entropy", "support_mass_student"):
                del found[f"distill/{name}:sum"]
            del found["distill/support_mass_teacher:sum"]
        groups = sum(len(reading.groups) for reading in self.pupil.readings)
        return found | ({"distill/chunks:sum": float(groups)} if groups else {})


def advantages_of(gap_N: Tensor, scored_N: Tensor, config: PGConfig) -> Tensor:
    """coef R, weighed by position and whitened where asked; 0 on tokens that are not scored."""
    kept_N = gap_N * scored_N
    found_N = kept_N
    if config.gamma or config.exclude_current:
        found_N = _returns(kept_N, config.gamma, bool(config.exclude_current))
        if config.length_norm and config.gamma:
            sizes_N = _returns(scored_N.float(), config.gamma, bool(config.exclude_current))
            found_N = found_N / sizes_N.clamp(min=_TINY)
    found_N = config.kl_coef * found_N * scored_N
    if config.iw_gamma:
        size_N = found_N.abs()
        before_N = size_N.cumsum(0) - size_N
        found_N = found_N * (1 + config.iw_gamma * (1 - before_N / size_N.sum().clamp(min=_TINY)))
    if config.whiten and int(scored_N.sum()) > 1:
        some = found_N[scored_N]
        found_N = ((found_N - some.mean()) / (some.std() + _TINY)) * scored_N
    return found_N


def _returns(values_N: Tensor, gamma: float, later: bool) -> Tensor:
    """sum over i >= t of gamma^(i-t) v_i; with `later` over i > t of gamma^(i-t-1) v_i."""
    found, total = [], torch.zeros((), dtype=torch.float64)
    for value in values_N.double().cpu().flip(0):
        if later:
            found.append(total)
        total = value + gamma * total
        if not later:
            found.append(total)
    return torch.stack(found).flip(0).to(values_N.device, values_N.dtype)
