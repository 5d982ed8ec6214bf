"""What a model thinks of prompts: log p of their own tokens, of the likeliest, and of chosen ones.

All prompts of a pass are scored together, some rows of logits at a time. Scores are of the unscaled
distribution, whatever the request's temperature.

Legend: N tokens of a prompt, R rows scored at a time, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.packed import HEAD_ROWS, adapter_rows
from tinsmith_worker.engine.values import SampleRequest

FloatArray = npt.NDArray[np.float32]
_NO_TOPK = -99999.0  # what the wire writes where nothing was computed
_Asked = tuple[SampleRequest, Tensor, int]  # with its hidden states and first scored position


@dataclass(frozen=True)
class TopK:
    """token_ids int32 and logprobs float32, both [positions, k]; a row of (0, -99999) means none."""

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]


@dataclass(frozen=True)
class PromptScores:
    """What the request asked for, each with an entry per prompt token; None what it did not."""

    prompt_logprobs: FloatArray | None = None
    topk_prompt: TopK | None = None
    target_logprobs: FloatArray | None = None
    """One per cell of the request's targets; 0 where a cell asked for nothing."""


def score_prompts(
    model: BaseModel, prompts: list[tuple[SampleRequest, Tensor]]
) -> list[PromptScores]:
    """The scores of each prompt, from its hidden states [N, hidden]; a first token has none."""
    asked = [
        (request, rows_NH, _first_scored(request))
        for request, rows_NH in prompts
        if _wants_scores(request)
    ]
    found = iter(_score(model, asked) if asked else [])
    return [next(found) if _wants_scores(request) else PromptScores() for request, _ in prompts]


def _score(model: BaseModel, asked: list[_Asked]) -> list[PromptScores]:
    hidden_RH = torch.cat([rows_NH[first - 1 : -1] for _, rows_NH, first in asked])
    adapters = [request.adapter for request, rows_NH, first in asked for _ in rows_NH[first:]]
    tokens = [token for request, _, first in asked for token in request.prompt[first:]]
    targets_R1 = torch.tensor(tokens, dtype=torch.int64, device=hidden_RH.device)[:, None]
    k = max(request.topk_prompt_logprobs for request, _, _ in asked)
    cells = _cells(asked)
    scores, ids, tops = [np.empty(0, "f4")], [np.empty((0, k), "i4")], [np.empty((0, k), "f4")]
    for start in range(0, len(tokens), HEAD_ROWS):
        some = slice(start, start + HEAD_ROWS)
        logits_RV = model.logits(hidden_RH[some], adapter_rows(adapters[some]))
        total_R1 = logits_RV.logsumexp(-1, keepdim=True)
        scores.append((logits_RV.gather(1, targets_R1[some]) - total_R1)[:, 0].cpu().numpy())
        cells.read(start, logits_RV, total_R1)
        best = logits_RV.topk(k)
        ids.append(best.indices.cpu().numpy())
        tops.append((best.values - total_R1).cpu().numpy())
    columns = [np.concatenate(parts) for parts in (scores, ids, tops)]
    made, start = [], 0
    for (request, rows_NH, first), targets in zip(asked, cells.of_each(asked), strict=True):
        end = start + rows_NH.shape[0] - first
        own, ids_k, tops_k = (column[start:end] for column in columns)
        made.append(_scores(request, first, own, ids_k, tops_k, targets))
        start = end
    return made


def _wants_scores(request: SampleRequest) -> bool:
    return bool(
        request.prompt_logprobs or request.topk_prompt_logprobs or request.targets is not None
    )


def _first_scored(request: SampleRequest) -> int:
    """The first prompt position whose logits are needed: never 0, which nothing precedes."""
    last_n = request.prompt_logprobs_last_n
    if last_n is None or request.targets is not None:
        return 1
    return max(1, len(request.prompt) - last_n)


@dataclass
class _Cells:
    """The target cells of every prompt of a pass, by row of their scored rows back to back."""

    rows: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]

    def read(self, start: int, logits_RV: Tensor, total_R1: Tensor) -> None:
        first, last = np.searchsorted(self.rows, (start, start + logits_RV.shape[0]))
        rows = torch.from_numpy(self.rows[first:last] - start).to(logits_RV.device)
        tokens = torch.from_numpy(self.tokens[first:last]).to(logits_RV.device)
        scores = logits_RV[rows, tokens.clamp(min=0)] - total_R1[rows, 0]
        self.values[first:last] = scores.masked_fill(tokens < 0, 0.0).cpu().numpy()

    def of_each(self, asked: list[_Asked]) -> list[FloatArray | None]:
        found: list[FloatArray | None] = []
        start = 0
        for request, _, _ in asked:
            size = 0 if request.targets is None else request.targets.tokens.size
            found.append(None if request.targets is None else self.values[start : start + size])
            start += size
        return found


def _cells(asked: list[_Asked]) -> _Cells:
    rows, tokens, start = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for request, rows_NH, first in asked:
        if (targets := request.targets) is not None:
            rows.append(targets.rows + start)
            tokens.append(targets.tokens)
        start += rows_NH.shape[0] - first
    joined = np.concatenate(rows)
    return _Cells(joined, np.concatenate(tokens), np.zeros(joined.size, np.float32))


def _scores(
    request: SampleRequest,
    first: int,
    scores: FloatArray,
    ids: npt.NDArray[np.int32],
    tops: FloatArray,
    targets: FloatArray | None,
) -> PromptScores:
    if request.prompt_logprobs_last_n is not None:  # more may have been read for the targets
        skipped = len(scores) - min(len(scores), request.prompt_logprobs_last_n)
        first, scores, ids, tops = first + skipped, scores[skipped:], ids[skipped:], tops[skipped:]
    logprobs = topk = None
    if request.prompt_logprobs:
        logprobs = np.concatenate([np.full(first, np.nan, np.float32), scores])
    if k := request.topk_prompt_logprobs:
        empty = np.zeros((first, k), np.float32)
        empty[:, :1] = _NO_TOPK
        topk = TopK(
            np.concatenate([np.zeros((first, k), np.int32), ids[:, :k].astype(np.int32)]),
            np.concatenate([empty, tops[:, :k]]),
        )
    return PromptScores(logprobs, topk, targets)
