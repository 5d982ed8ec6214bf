"""What both ends know of the distillation losses: their names, and how a teacher is spelled.

A client writes names; the API process resolves them to facts, which travel inside the request: so the
log from which a run is rebuilt holds all there is to know.
"""

import re

import msgspec

from tinsmith.protocol.bodies import Body
from tinsmith.protocol.errors import BadRequest

LOSS_VERSIONS = {"x_distill_jsd": 1, "x_distill_uld": 1, "x_distill_pg": 1}
"""Offered losses, and the version of what each computes."""
TEACHERS_KEY = "resolved_teachers"
"""The API process's own entry of loss_fn_config, refused where a client writes it."""
MAX_TEACHERS = 16
_EMA = re.compile(r"ema:([0-9.eE+-]+)(?::([0-9]+))?")


class Average(Body, kw_only=True, frozen=True):
    """The run's own weights, averaged over its steps: every `every` of them, a share `rate` of now."""

    rate: float
    every: int = 1

    @property
    def name(self) -> str:
        return f"{self.rate:g}:{self.every}"


class Teacher(Body, kw_only=True, frozen=True):
    """One teacher, resolved. No base model means the run's own."""

    name: str
    base_model: str | None = None
    prefix: str | None = None
    """Folder of its adapter; None is the base model as it is."""
    live: bool = False
    """The run itself, as it is now."""
    average: Average | None = None


def names(text: str) -> list[str]:
    """The teachers of a config's `teacher`, in the order that teacher_index counts."""
    found = [name.strip() for name in text.split("|")]
    if not text.strip() or not all(found):
        raise BadRequest(
            "loss_fn_config.teacher: name one: a base model, a tinker:// path, base, self or "
            "ema:<rate>; several are separated by |."
        )
    if len(found) > MAX_TEACHERS:
        raise BadRequest(f"loss_fn_config.teacher: {len(found)} are more than {MAX_TEACHERS}.")
    return found


def own(name: str) -> Teacher | None:
    """A teacher that the run itself provides; None for one that must be looked up."""
    if name == "base":
        return Teacher(name=name)
    if name == "self":
        return Teacher(name=name, live=True)
    if not name.startswith("ema:"):
        return None
    return Teacher(name=name, average=_average(name))


def _average(name: str) -> Average:
    match = _EMA.fullmatch(name)
    rate = _number(match[1]) if match else 0.0
    every = int(match[2] or 1) if match else 0
    if not (0 < rate <= 1 and 1 <= every <= 1_000_000):
        raise BadRequest(
            f"loss_fn_config.teacher: {name[:60]!r} is not ema:<rate>[:<every>] with a rate above 0, "
            "at most 1, and a whole number of steps."
        )
    return Average(rate=rate, every=every)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def encode_teachers(teachers: list[Teacher]) -> str:
    return msgspec.json.encode(teachers).decode()


def decode_teachers(text: str) -> list[Teacher]:
    return msgspec.json.decode(text, type=list[Teacher])
