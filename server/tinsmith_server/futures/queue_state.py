"""Why a request is still pending, in the words that the SDK shows its user."""

from tinsmith.protocol.bodies import Pending
from tinsmith.protocol.jobs import Kind

from tinsmith_server.auth import Caller
from tinsmith_server.bus import FutureState
from tinsmith_server.service import Service


async def pending(service: Service, user: Caller, request_id: str, future: FutureState) -> Pending:
    """Paused while no worker of its base model lives, while its worker waits for a part of the service,
    or while a limit keeps others like it out; else it waits for its turn, or runs.
    """
    owner = request_id.rpartition(":")[0]
    if future.kind == Kind.SAMPLE:
        base_model = (await service.owners.sampler(user, owner)).base_model
    else:
        base_model = (await service.owners.run(user, owner)).base_model
    reason = await service.bus.why_waiting(request_id, owner)
    if reason is None and not await service.bus.workers_of(base_model):
        reason = f"No worker that holds {base_model} is up just now."
    if reason is not None:
        return Pending(
            request_id=request_id, queue_state="paused_capacity", queue_state_reason=reason
        )
    if refusal := await service.bus.refusals(request_id):
        return Pending(
            request_id=request_id,
            queue_state=refusal.queue_state,
            queue_state_reason=refusal.sentence,
        )
    return Pending(request_id=request_id)
