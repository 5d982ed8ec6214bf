"""Why a request is still pending, in the words that the SDK shows its user."""

from sqlalchemy import select
from tinsmith.protocol.bodies import Pending
from tinsmith.protocol.jobs import Kind

from tinsmith_server.bus import FutureState
from tinsmith_server.db import SamplingSession, TrainingRun
from tinsmith_server.service import Service


async def pending(service: Service, request_id: str, future: FutureState) -> Pending:
    """Paused while no worker of its base model lives; else it waits for its turn, or runs."""
    table = SamplingSession if future.kind == Kind.SAMPLE else TrainingRun
    async with service.db.begin() as sql:
        base_model = await sql.scalar(select(table.base_model).where(table.id == future.run_id))
    if base_model is None or await service.bus.workers_of(base_model):
        return Pending(request_id=request_id)
    return Pending(
        request_id=request_id,
        queue_state="paused_capacity",
        queue_state_reason=f"No worker that holds {base_model} is up just now.",
    )
