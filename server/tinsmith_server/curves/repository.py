"""A run's steps as curves: whole, thinned to what a screen can show, or the last few."""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tinsmith_server.db import RunStep

MOST_SHOWN = 1024
"""More points than a screen has pixels for are no help, and slow on a slow link."""


class Step(NamedTuple):
    """What a curve takes of a row; a tuple, because there are a thousand."""

    step: int
    at: datetime
    loss: float | None
    grad_norm: float
    learning_rate: float
    drift: float | None
    tokens: int


_COLUMNS = {
    "loss": "loss per token",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "drift": "log q - log p",
}


async def steps(sql: AsyncSession, run_id: str) -> list[Step]:
    """In order; of a long run every second, fourth, ... one, as its collector thins it out, but sooner."""
    last = await sql.scalar(select(func.max(RunStep.step)).where(RunStep.run_id == run_id))
    stride = 1 << max(0, (((last or 0) - 1) // MOST_SHOWN).bit_length())
    query = (
        select(*(getattr(RunStep, name) for name in Step._fields))
        .where(RunStep.run_id == run_id, RunStep.step % stride == 0)
        .order_by(RunStep.step)
    )
    return [Step(*row) for row in (await sql.execute(query)).all()]


async def last_steps(sql: AsyncSession, run_id: str, count: int) -> Sequence[RunStep]:
    """Newest first."""
    query = select(RunStep).where(RunStep.run_id == run_id).order_by(RunStep.step.desc())
    return (await sql.scalars(query.limit(count))).all()


def columns(steps: Sequence[Step]) -> dict[str, Any]:
    """By the name of a column: the steps, and one series of its values."""
    found: dict[str, Any] = {}
    for name, label in _COLUMNS.items():
        kept = [(one.step, getattr(one, name)) for one in steps if getattr(one, name) is not None]
        found[name] = _curve(label, kept)
    found["rate"] = _curve("tokens per second", _rates(steps))
    return found


def _rates(steps: Sequence[Step]) -> list[tuple[int, float]]:
    """A step's tokens over the time since the step before it, as the client saw it."""
    pairs = pairwise(steps)
    timed = [(two, (two.at - one.at).total_seconds() / (two.step - one.step)) for one, two in pairs]
    return [(one.step, one.tokens / seconds) for one, seconds in timed if seconds > 0]


def _curve(label: str, points: Sequence[tuple[int, float]]) -> dict[str, Any]:
    return {
        "x": [step for step, _ in points],
        "series": [{"label": label, "values": [value for _, value in points]}],
    }
