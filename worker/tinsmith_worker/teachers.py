"""Teachers as the engine knows them: a frozen model, with an adapter or without.

A teacher on the run's own base model costs no weights: it is one more pass under another adapter. Other
base models are those that this worker serves anyway, and those that it holds for teaching only, which
are loaded when they are first asked for and leave when nobody has asked for a while.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog
from tinsmith.protocol.distillation import Teacher as Fact

from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel, ModelRefused
from tinsmith_worker.engine.optimizer import RunState
from tinsmith_worker.engine.readings import Teacher
from tinsmith_worker.engine.values import InvalidInput
from tinsmith_worker.fetcher import Reader
from tinsmith_worker.sampler_weights import NotThere, SamplerWeights
from tinsmith_worker.store import FolderDamaged, Store

_log = structlog.get_logger()
_HELD_ADAPTERS = 4


@dataclass
class _Guest:
    """A base model that is here to teach only."""

    model: BaseModel
    weights: SamplerWeights
    used: float


class Teachers:
    """`load` answers a base model by name; `guests` are the names that it is asked for when needed."""

    def __init__(
        self,
        store: Store,
        models: Mapping[str, BaseModel],
        samplers: Mapping[str, SamplerWeights],
        *,
        guests: Iterable[str] = (),
        load: Callable[[str], BaseModel] | None = None,
        idle_seconds: float = 0.0,
    ) -> None:
        self._store, self._models, self._samplers = store, models, samplers
        self._guest_names, self._load, self._idle_seconds = frozenset(guests), load, idle_seconds
        self._guests: dict[str, _Guest] = {}

    @property
    def names(self) -> list[str]:
        return sorted({*self._models, *self._guest_names})

    def resolve(
        self, model: BaseModel, run: RunState, facts: Iterable[Fact], reader: Reader
    ) -> tuple[Teacher, ...]:
        """Raises OnItsWay for one whose adapter is not here yet."""
        return tuple(self._one(model, run, fact, reader) for fact in facts)

    def _one(self, model: BaseModel, run: RunState, fact: Fact, reader: Reader) -> Teacher:
        if fact.live:
            return Teacher(fact.name, model, run.adapter)
        if fact.average is not None:
            return Teacher(fact.name, model, run.averaged(fact.average.rate, fact.average.every))
        name = fact.base_model or model.name
        teaching, weights = self._base(name)
        adapter = None
        if fact.prefix is not None:
            adapter = _fetched(weights, fact.prefix, fact.name, reader)
        return Teacher(fact.name, teaching, adapter)

    def _base(self, name: str) -> tuple[BaseModel, SamplerWeights]:
        if name in self._models:
            return self._models[name], self._samplers[name]
        if name not in self._guest_names or self._load is None:
            raise InvalidInput(
                f"loss_fn_config.teacher: {name} is not held where this run is trained. Held: "
                f"{', '.join(self.names)}."
            )
        guest = self._guests.get(name)
        if guest is None:
            guest = self._guests[name] = self._admit(name, self._load)
        guest.used = time.monotonic()
        return guest.model, guest.weights

    def _admit(self, name: str, load: Callable[[str], BaseModel]) -> _Guest:
        try:
            model = load(name)
        except ModelRefused as error:
            raise InvalidInput(f"loss_fn_config.teacher: {error}") from None
        _log.info("teacher_loaded", model=name, parameters=model.num_parameters)
        weights = SamplerWeights(self._store, model, _HELD_ADAPTERS)
        return _Guest(model, weights, time.monotonic())

    def dismiss_idle(self) -> None:
        """Unload what nobody has asked for in time; 0 keeps all."""
        if not self._idle_seconds:
            return
        for name, guest in list(self._guests.items()):
            if time.monotonic() - guest.used >= self._idle_seconds:
                del self._guests[name]
                _log.info("teacher_unloaded", model=name)


def _fetched(weights: SamplerWeights, prefix: str, name: str, reader: Reader) -> Adapter:
    """A folder that another worker has yet to write is waited for."""
    adapter = weights.held(prefix)
    if adapter is not None:
        return adapter
    try:
        return weights.admit(prefix, reader.files(prefix))
    except FolderDamaged:
        later = reader.later(prefix)
    try:
        weights.expect(prefix)
    except NotThere:
        raise InvalidInput(
            f"loss_fn_config.teacher: the files of {name} are not there any more."
        ) from None
    raise later
