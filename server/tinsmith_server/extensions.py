"""What this service offers beyond Tinker's API, so that a client can ask before it relies on it."""

from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter
from fastapi.responses import Response
from tinsmith.protocol.bodies import Answer
from tinsmith.protocol.distillation import LOSS_VERSIONS

from tinsmith_server.auth import User
from tinsmith_server.service import Served
from tinsmith_server.wire import answer

router = APIRouter()


class Extension(Answer, kw_only=True, frozen=True):
    """`endpoints` are those it adds or widens."""

    name: str
    description: str
    endpoints: list[str]


class Extensions(Answer, kw_only=True, frozen=True):
    server: str
    version: str
    extensions: list[Extension]
    losses: dict[str, int]
    """Losses beyond Tinker's, and the version of each."""
    teachers: list[str]
    """Base models that a run may be taught by, where its worker holds them."""


EXTENSIONS = [
    Extension(
        name="tokenizers",
        description="The files of a base model's tokenizer, so that no hub is needed.",
        endpoints=["GET /api/v1/tokenizers", "GET /api/v1/tokenizers/{digest}/{name}"],
    ),
    Extension(
        name="json_training",
        description="Datums in JSON, and results in JSON for whoever does not accept protobuf.",
        endpoints=[
            "POST /api/v1/forward_backward",
            "POST /api/v1/forward",
            "POST /api/v1/retrieve_future",
        ],
    ),
    Extension(
        name="openai",
        description="OpenAI's API on base models and checkpoints; also below /oai/api and /m/{model}.",
        endpoints=[
            "GET /v1/models",
            "POST /v1/completions",
            "POST /v1/chat/completions",
            "GET /tokenizer_info",
            "POST /tokenize",
            "POST /detokenize",
        ],
    ),
    Extension(
        name="bearer_keys",
        description="A key or token may also come as `Authorization: Bearer`.",
        endpoints=["every endpoint"],
    ),
    Extension(
        name="files",
        description="Every file of a checkpoint over signed links.",
        endpoints=["GET /api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/files"],
    ),
    Extension(
        name="exports",
        description="A checkpoint merged into its base model, in transformers' layout.",
        endpoints=["POST /api/v1/exports", "GET /api/v1/jobs/{job_id}/files"],
    ),
    Extension(
        name="imports",
        description="A PEFT adapter from outside as a checkpoint to train on from.",
        endpoints=["POST /api/v1/imports"],
    ),
    Extension(
        name="distillation",
        description="Losses against a teacher that the service runs: nothing of it crosses the wire.",
        endpoints=["POST /api/v1/forward_backward", "POST /api/v1/forward"],
    ),
    Extension(
        name="jobs",
        description="Slow work in the background: how far it is, and what came of it.",
        endpoints=["GET /api/v1/jobs/{job_id}"],
    ),
]


@router.get("/extensions")
async def extensions(user: User, service: Served) -> Response:
    cards = await service.bus.models()
    return answer(
        Extensions(
            server="tinsmith",
            version=_installed_version(),
            extensions=EXTENSIONS,
            losses=LOSS_VERSIONS,
            teachers=sorted({name for card in cards for name in card.teachers}),
        )
    )


def _installed_version() -> str:
    try:
        return version("tinsmith")
    except PackageNotFoundError:
        return "source"
