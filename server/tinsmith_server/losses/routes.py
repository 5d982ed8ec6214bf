"""Custom losses: a traced graph, checked and kept for its session, and handed on with each use.

The worker is never told a loss's id: the graph travels inside the request, so that the log from which
a run is rebuilt holds all there is to know.
"""

from fastapi import APIRouter, Request
from fastapi.responses import Response
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.bodies import Submitted
from tinsmith.protocol.errors import BadRequest, TinsmithError
from tinsmith.protocol.jobs import Result, encode, failure
from tinsmith.protocol.loss_graph import GRAPH_KEY, CreateCustomLoss, LossGraph, check, parse
from tinsmith.protocol.paths import custom_loss_id, session_of

from tinsmith_server.auth import Caller, User
from tinsmith_server.db import CustomLoss, TrainingRun
from tinsmith_server.losses import repository
from tinsmith_server.service import Served, Service
from tinsmith_server.sessions.repository import open_session
from tinsmith_server.wire import answer, decode, read_body

router = APIRouter()
CUSTOM = "custom"
_MAX_LOSSES = 256
_MAX_NAME = 200


@router.post("/create_custom_loss")
async def create_custom_loss(request: Request, user: User, service: Served) -> Response:
    """(session_id, custom_loss_seq_id) is its name; what is wrong with its graph is told as a future."""
    body = decode(await read_body(request), CreateCustomLoss)
    if body.custom_loss_seq_id < 0:
        raise BadRequest(f"custom_loss_seq_id: {body.custom_loss_seq_id} is not a number from 0.")
    loss_id = custom_loss_id(body.session_id, body.custom_loss_seq_id)
    try:
        await _keep(service, user, body, loss_id)
    except _Refused as refused:
        result = failure(refused.message)
    else:
        result = Result(data=encode({"type": "create_custom_loss", "loss_id": loss_id}))
    await service.bus.settled(user.organization_id, loss_id, "create_custom_loss", result)
    return answer(Submitted(request_id=loss_id))


class _Refused(TinsmithError):
    pass


async def _keep(service: Service, user: Caller, body: CreateCustomLoss, loss_id: str) -> None:
    """Record the loss; one that is known stands."""
    async with service.db.begin() as sql:
        await open_session(sql, user, body.session_id)
        if await sql.get(CustomLoss, loss_id) is not None:
            return
        graph = encode(LossGraph(inputs=body.inputs, graph=body.graph))
        try:
            check(parse(graph))
        except TinsmithError as error:
            raise _Refused(error.message) from None
        if await repository.count(sql, body.session_id) >= _MAX_LOSSES:
            raise _Refused(f"graph: this session has {_MAX_LOSSES} custom losses already.")
        sql.add(
            CustomLoss(
                id=loss_id,
                session_id=body.session_id,
                organization_id=user.organization_id,
                name=body.name[:_MAX_NAME],
                graph=graph,
            )
        )


async def with_graph(
    service: Service, user: Caller, run: TrainingRun, message: pb.ForwardBackwardRequest, raw: bytes
) -> bytes:
    """The request with the graph that its loss_id names. Appended fields of protobuf are merged."""
    loss_id = message.loss_fn_config_v2["loss_id"].text
    if session_of(loss_id) != run.session_id:
        raise BadRequest(
            f"loss_fn_config.loss_id: {loss_id[:120]!r} is not a custom loss of this run's session; "
            "create it there."
        )
    graph = await service.owners.custom_loss(user, loss_id)
    more = pb.ForwardBackwardRequest()
    more.loss_fn_config_v2[GRAPH_KEY].text = graph.decode()
    return raw + more.SerializeToString()
