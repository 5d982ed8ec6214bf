"""The unembedding and the loss, a few rows at a time: logits, loss and gradient in one pass.

A pair asks for the log-probability of one token after one row of a pass. [N, vocab] is never held:
while some rows' logits are there, their pairs are scored, the loss says what each log-probability
weighs, and the gradient of those rows goes straight back into the hidden states. A row whose pairs
weigh nothing is scored and no more.

A request is cut into pieces by itself, and pieces are never cut again: so its sums are the same in
any company.

Legend: N rows of the pass, R rows of a chunk, P pairs, V vocabulary, H hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinsmith_worker.engine.adapter import Adapter, Gradient
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.elementwise import cross_entropy_backward, logsumexp
from tinsmith_worker.engine.packed import AdapterRows, merge_rows

HEAD_ROWS = 128
"""Rows of logits held at a time."""

Ints = npt.NDArray[np.int64]
Weigh = Callable[[Tensor, Ints], Tensor]


@dataclass(frozen=True)
class Pairs:
    """What one request asks of a pass: token `tokens[i]` after row `rows[i]`, [P] each."""

    rows: Ints
    tokens: Ints
    idle: npt.NDArray[np.bool_]
    """Pairs that cannot weigh anything in the loss."""


class Rows(Protocol):
    """The part of a loss that looks at whole rows of logits, not only at the pairs' log p."""

    def __call__(
        self, logits_RV: Tensor, rows: Ints, pairs: Ints, logprobs: Tensor, into_RV: Tensor | None
    ) -> None:
        """Look at `logits_RV[rows[i]]` for the request's pair `pairs[i]`; add d loss / d logits."""


@dataclass(frozen=True, eq=False)
class Asked:
    """One request's pairs and whose they are."""

    pairs: Pairs
    adapter: Adapter
    gradient: Gradient | None
    weigh: Weigh | None = None
    """d loss / d log p of some pairs, given their log p and indices; None asks for no gradient."""
    whole_rows: Rows | None = None
    together: Ints | None = None
    """For each pair, ascending over the rows, the group whose rows must be there at once."""


@dataclass(frozen=True)
class _Piece:
    asked: Asked
    found: Tensor
    rows: Ints
    pairs: Ints
    places: Ints
    """For each pair, its row's place in `rows`."""


def score(
    model: BaseModel, hidden_NH: Tensor, requests: Sequence[Asked]
) -> tuple[list[Tensor], Tensor | None]:
    """Per request log p of its pairs [P] in fp32; and d loss / d hidden [N, H] if any weighs.

    Gradients of adapters on the unembedding go where the requests say.
    """
    found = [torch.zeros(one.pairs.rows.size, device=hidden_NH.device) for one in requests]
    live: list[_Piece] = []
    idle: list[_Piece] = []
    for one, into in zip(requests, found, strict=True):
        weighing, others = _rows(one)
        live += _pieces(one, into, weighing)
        idle += _pieces(one, into, others)
    back_NH = torch.zeros_like(hidden_NH) if live else None
    for chunk in _chunks(live):
        assert back_NH is not None
        rows = _rows_of(chunk, hidden_NH.device)
        back_NH[rows] = _learn(model, hidden_NH[rows], chunk, hidden_NH.requires_grad)
    with torch.no_grad():
        for chunk in _chunks(idle):
            rows = _rows_of(chunk, hidden_NH.device)
            raw_RV = model.unembed(hidden_NH[rows], _owners(chunk))
            logits_RV = raw_RV if model.plain_head else model.finish(raw_RV)
            rows_P, _, each = _read(logits_RV, logsumexp(logits_RV), chunk)
            _look(logits_RV, rows_P, each, chunk, wanted=False)
    return found, back_NH


def _rows(one: Asked) -> tuple[Ints, Ints]:
    """Rows with a pair that weighs, and those without."""
    rows = np.unique(one.pairs.rows)
    if one.weigh is None:
        return rows[:0], rows
    weighing = np.unique(one.pairs.rows[~one.pairs.idle])
    return weighing, np.setdiff1d(rows, weighing, assume_unique=True)


def _pieces(one: Asked, found: Tensor, wanted: Ints) -> Iterator[_Piece]:
    order = np.argsort(one.pairs.rows, kind="stable")
    by_row = one.pairs.rows[order]
    for rows in _parts(one, wanted, by_row, order):
        firsts = np.searchsorted(by_row, rows, "left")
        counts = np.searchsorted(by_row, rows, "right") - firsts
        places = np.repeat(np.arange(rows.size), counts)
        steps = np.arange(places.size) - np.repeat(np.cumsum(counts) - counts, counts)
        yield _Piece(one, found, rows, order[np.repeat(firsts, counts) + steps], places)


def _parts(one: Asked, wanted: Ints, by_row: Ints, order: Ints) -> Iterator[Ints]:
    """At most HEAD_ROWS rows each, but for a group that is larger by itself."""
    groups = None
    if one.together is not None:
        groups = one.together[order[np.searchsorted(by_row, wanted, "left")]]
    start = 0
    while start < wanted.size:
        end = start + HEAD_ROWS
        if groups is not None and end < wanted.size and groups[end] == groups[end - 1]:
            end = int(np.searchsorted(groups, groups[end], "left"))
            if end <= start:
                end = int(np.searchsorted(groups, groups[start], "right"))
        yield wanted[start:end]
        start = end


def _chunks(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    chunk: list[_Piece] = []
    for piece in pieces:
        if chunk and sum(one.rows.size for one in chunk) + piece.rows.size > HEAD_ROWS:
            yield chunk
            chunk = []
        chunk.append(piece)
    if chunk:
        yield chunk


def _rows_of(chunk: Sequence[_Piece], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate([piece.rows for piece in chunk])).to(device)


def _owners(chunk: Sequence[_Piece]) -> list[AdapterRows]:
    owners = [(piece.asked.adapter, piece.asked.gradient) for piece in chunk]
    return merge_rows(owners, [piece.rows.size for piece in chunk])


def _read(
    logits_RV: Tensor, total_R: Tensor, chunk: Sequence[_Piece]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Note each pair's log p; answers rows and tokens of all pairs, and each piece's log p."""
    starts = np.cumsum([0, *(piece.rows.size for piece in chunk)])
    places = [piece.places + start for piece, start in zip(chunk, starts, strict=False)]
    tokens = [piece.asked.pairs.tokens[piece.pairs] for piece in chunk]
    rows_P, tokens_P = (
        torch.from_numpy(np.concatenate(column)).to(logits_RV.device) for column in (places, tokens)
    )
    logprobs_P = logits_RV[rows_P, tokens_P].float() - total_R[rows_P]
    each = list(torch.split(logprobs_P, [piece.pairs.size for piece in chunk]))
    for piece, logprobs in zip(chunk, each, strict=True):
        piece.found[torch.from_numpy(piece.pairs).to(logits_RV.device)] = logprobs
    return rows_P, tokens_P, each


def _look(
    logits_RV: Tensor, rows_P: Tensor, each: list[Tensor], chunk: Sequence[_Piece], *, wanted: bool
) -> Tensor | None:
    """Show whole rows to whoever asks for them; answers d loss / d logits if that is wanted."""
    if not any(piece.asked.whole_rows for piece in chunk):
        return None
    into_RV = torch.zeros_like(logits_RV) if wanted else None
    places = np.split(rows_P.cpu().numpy(), np.cumsum([piece.pairs.size for piece in chunk]))
    for piece, rows, logprobs in zip(chunk, places, each, strict=False):
        if piece.asked.whole_rows is not None:
            piece.asked.whole_rows(logits_RV, rows, piece.pairs, logprobs, into_RV)
    return into_RV


def _learn(
    model: BaseModel, hidden_RH: Tensor, chunk: Sequence[_Piece], below: bool
) -> Tensor | float:
    """d loss / d hidden of some rows; 0 where nothing below the head learns."""
    leaf_RH = hidden_RH.detach().requires_grad_(below)
    with torch.enable_grad():
        raw_RV = model.unembed(leaf_RH, _owners(chunk))
    with torch.no_grad():
        logits_RV = raw_RV.detach() if model.plain_head else model.finish(raw_RV.detach())
        total_R = logsumexp(logits_RV)
        rows_P, tokens_P, each = _read(logits_RV, total_R, chunk)
        weights_P = torch.cat(
            [
                piece.asked.weigh(logprobs, piece.pairs)
                for piece, logprobs in zip(chunk, each, strict=True)
                if piece.asked.weigh
            ]
        )
        slope_RV = model.slope(logits_RV)
        whole_RV = _look(logits_RV, rows_P, each, chunk, wanted=True)
        back_RV = cross_entropy_backward(logits_RV, total_R, rows_P, tokens_P, weights_P)
        if whole_RV is not None:
            back_RV += whole_RV
        if slope_RV is not None:
            back_RV = back_RV * slope_RV
    if raw_RV.requires_grad:
        raw_RV.backward(back_RV)
    return 0.0 if leaf_RH.grad is None else leaf_RH.grad
