"""What a model thinks of prompts: log p of their own tokens, of the likeliest, and of chosen ones.

A prompt may be read in several passes, and the prompts of a pass are scored together, some rows of
logits at a time. Scores are of the unscaled distribution, whatever the request's temperature; only
alternatives are drawn, and scored, at that temperature, as sampled tokens are.

Legend: R rows scored at a time, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.elementwise import logsumexp
from tinsmith_worker.engine.head import HEAD_ROWS
from tinsmith_worker.engine.packed import merge_rows
from tinsmith_worker.engine.prompt_alternatives import alternatives
from tinsmith_worker.engine.values import SampleRequest

FloatArray = npt.NDArray[np.float32]
_NO_TOPK = -99999.0  # what the wire writes where nothing was computed


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
    alternatives: TopK | None = None
    """Tokens drawn after each beginning of the prompt, one row less than it has tokens."""


class PromptReader:
    """One request's scores, filled row by row; row i says what comes after i + 1 tokens."""

    def __init__(self, request: SampleRequest) -> None:
        self.request = request
        self.wanted = bool(
            request.prompt_logprobs
            or request.topk_prompt_logprobs
            or request.targets is not None
            or request.prompt_alt_tokens_k
        )
        self.first_row = len(request.prompt) - 1
        """Rows before it need not be computed."""
        if self.wanted:
            self.first_row = _first_scored(request) - 1
        count = len(request.prompt) - 1
        k = request.topk_prompt_logprobs
        self._own = np.full(count, np.nan, np.float32)
        self._ids = np.zeros((count, k), np.int32)
        self._tops = np.full((count, k), _NO_TOPK, np.float32)
        cells = 0 if request.targets is None else request.targets.tokens.size
        self._cells = np.zeros(cells, np.float32)
        self._alternatives = (
            np.zeros((count, request.prompt_alt_tokens_k), np.int32),
            np.zeros((count, request.prompt_alt_tokens_k), np.float32),
        )

    def rows_in(self, start: int, end: int) -> range:
        """Which of these rows are to be scored."""
        if not self.wanted:
            return range(0)
        return range(max(start, self.first_row), min(end, len(self.request.prompt) - 1))

    def take(
        self, rows: range, logits_RV: Tensor, total_R1: Tensor, ids_Rk: Tensor, tops_Rk: Tensor
    ) -> None:
        """Note these rows' scores; the last two hold at least as many candidates as were asked."""
        some = slice(rows.start, rows.stop)
        targets = self.request.prompt[rows.start + 1 : rows.stop + 1]
        targets_R1 = torch.tensor(targets, device=logits_RV.device)[:, None]
        own_R1 = logits_RV.gather(1, targets_R1) - total_R1
        self._own[some] = own_R1[:, 0].cpu().numpy()
        k = self._ids.shape[1]
        if k:
            self._ids[some] = ids_Rk[:, :k].cpu().numpy()
            self._tops[some] = tops_Rk[:, :k].cpu().numpy()
        if self.request.targets is not None:
            self._take_cells(rows, logits_RV, total_R1)
        if self.request.prompt_alt_tokens_k:
            tokens, logprobs = alternatives(self.request, rows, logits_RV)
            self._alternatives[0][some], self._alternatives[1][some] = tokens, logprobs

    def _take_cells(self, rows: range, logits_RV: Tensor, total_R1: Tensor) -> None:
        assert self.request.targets is not None
        cell_rows = self.request.targets.rows
        first, last = np.searchsorted(cell_rows, (rows.start, rows.stop))
        places = torch.from_numpy(cell_rows[first:last] - rows.start).to(logits_RV.device)
        tokens = torch.from_numpy(self.request.targets.tokens[first:last]).to(logits_RV.device)
        scores = logits_RV[places, tokens.clamp(min=0)] - total_R1[places, 0]
        self._cells[first:last] = scores.masked_fill(tokens < 0, 0.0).cpu().numpy()

    def scores(self) -> PromptScores:
        """With an entry for the first token, which has none, and none before the last n."""
        request = self.request
        own, ids, tops = self._own.copy(), self._ids.copy(), self._tops.copy()
        if request.prompt_logprobs_last_n is not None:
            skipped = max(0, own.size - request.prompt_logprobs_last_n)
            own[:skipped], ids[:skipped], tops[:skipped] = np.nan, 0, _NO_TOPK
        topk = None
        if request.topk_prompt_logprobs:
            none = np.full((1, tops.shape[1]), _NO_TOPK, np.float32)
            topk = TopK(
                np.concatenate([np.zeros((1, ids.shape[1]), np.int32), ids]),
                _first_cell_only(np.concatenate([none, tops])),
            )
        return PromptScores(
            np.concatenate([np.full(1, np.nan, np.float32), own])
            if request.prompt_logprobs
            else None,
            topk,
            self._cells if request.targets is not None else None,
            TopK(*self._alternatives) if request.prompt_alt_tokens_k else None,
        )


def _first_cell_only(tops: FloatArray) -> FloatArray:
    """The wire marks a row of nothing in its first cell."""
    tops[tops[:, 0] == _NO_TOPK, 1:] = 0.0
    return tops


def score_prompts(model: BaseModel, read: Sequence[tuple[PromptReader, int, Tensor]]) -> None:
    """Score what a pass has read of some prompts: each with its first row and hidden states."""
    pieces = [
        (reader, range(at, min(at + HEAD_ROWS, rows.stop)), hidden_NH[at - start :])
        for reader, start, hidden_NH in read
        for rows in [reader.rows_in(start, start + hidden_NH.shape[0])]
        for at in range(rows.start, rows.stop, HEAD_ROWS)
    ]
    chunk: list[tuple[PromptReader, range, Tensor]] = []
    for piece in pieces:
        if chunk and sum(len(rows) for _, rows, _ in chunk) + len(piece[1]) > HEAD_ROWS:
            _score(model, chunk)
            chunk = []
        chunk.append(piece)
    if chunk:
        _score(model, chunk)


def _score(model: BaseModel, chunk: Sequence[tuple[PromptReader, range, Tensor]]) -> None:
    sizes = [len(rows) for _, rows, _ in chunk]
    hidden_RH = torch.cat(
        [hidden[:size] for (_, _, hidden), size in zip(chunk, sizes, strict=True)]
    )
    owners = [(reader.request.adapter, None) for reader, _, _ in chunk]
    logits_RV = model.logits(hidden_RH, merge_rows(owners, sizes))
    total_R1 = logsumexp(logits_RV)[:, None]
    k = max(reader.request.topk_prompt_logprobs for reader, _, _ in chunk)
    best = logits_RV.topk(k)
    columns = (logits_RV, total_R1, best.indices, best.values - total_R1)
    parts = [torch.split(column, sizes) for column in columns]
    for (reader, rows, _), *some in zip(chunk, *parts, strict=True):
        reader.take(rows, *some)


def _first_scored(request: SampleRequest) -> int:
    """The first prompt position whose logits are needed: never 0, which nothing precedes."""
    last_n = request.prompt_logprobs_last_n
    if last_n is None or request.targets is not None or request.prompt_alt_tokens_k:
        return 1
    return max(1, len(request.prompt) - last_n)
