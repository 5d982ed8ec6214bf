"""What became of a job."""

from fastapi import APIRouter
from fastapi.responses import Response

from tinsmith_server.auth import User
from tinsmith_server.service import Served
from tinsmith_server.wire import answer

router = APIRouter()


@router.get("/jobs/{job_id}")
async def job(job_id: str, user: User, service: Served) -> Response:
    return answer(await service.jobs.look(user, job_id))
