"""Teachers of a distillation loss: names of a client made into facts, and only those it may use.

A checkpoint must be the caller's own or published: any other is as absent as none. The facts travel
inside the request, so that the log from which a run is rebuilt holds all there is to know.
"""

from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.distillation import TEACHERS_KEY, Teacher, encode_teachers, names, own
from tinsmith.protocol.errors import BadRequest, NotFound
from tinsmith.protocol.paths import TinkerPath

from tinsmith_server.auth import Caller
from tinsmith_server.checkpoints import repository as checkpoints
from tinsmith_server.db import TrainingRun
from tinsmith_server.models.routes import model_card
from tinsmith_server.service import Service


def refuse_resolved(message: pb.ForwardBackwardRequest) -> None:
    """Facts are found here alone: a client's own could name a stranger's weights, under any loss."""
    if TEACHERS_KEY in message.loss_fn_config_v2 or TEACHERS_KEY in message.loss_fn_config:
        raise BadRequest(
            f"loss_fn_config.{TEACHERS_KEY}: this is the service's own entry; name teachers in `teacher`."
        )


async def with_teachers(
    service: Service, user: Caller, run: TrainingRun, message: pb.ForwardBackwardRequest, raw: bytes
) -> bytes:
    """The request with its teachers as they are found now. Appended fields of protobuf are merged."""
    asked = names(message.loss_fn_config_v2["teacher"].text)
    found = [own(name) or await _look_up(service, user, run, name) for name in asked]
    more = pb.ForwardBackwardRequest()
    more.loss_fn_config_v2[TEACHERS_KEY].text = encode_teachers(found)
    return raw + more.SerializeToString()


async def _look_up(service: Service, user: Caller, run: TrainingRun, name: str) -> Teacher:
    held = (await model_card(service.bus, run.base_model)).teachers
    if not name.startswith("tinker://"):
        _check_held(name, name, held)
        return Teacher(name=name, base_model=name)
    async with service.db.begin() as sql:
        checkpoint, source = await checkpoints.ready_at(sql, user, TinkerPath.parse(name))
    _check_held(source.base_model, name, held)
    return Teacher(name=name, base_model=source.base_model, prefix=checkpoints.prefix(checkpoint))


def _check_held(base_model: str, name: str, held: tuple[str, ...]) -> None:
    if base_model not in held:
        of = "" if name == base_model else f", the base model of {name}"
        raise NotFound(
            f"loss_fn_config.teacher: {base_model[:120]!r}{of} is not held for this run. "
            f"Held: {', '.join(held)}; or a tinker:// path, base, self or ema:<rate>."
        )
