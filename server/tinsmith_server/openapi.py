"""The OpenAPI document: what the framework knows of the routes, and what the bodies are.

Bodies are read and written by msgspec, which the framework cannot see. The table says of every route
what it reads and answers; the schemas come from the very types that parse and render them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from tinsmith.protocol import (
    account_bodies,
    bodies,
    download_bodies,
    job_bodies,
    loss_graph,
    report_bodies,
    session_bodies,
)

from tinsmith_server import extensions
from tinsmith_server.openai import answers as openai_answers
from tinsmith_server.openai import bodies as openai_bodies
from tinsmith_server.openai import tokenizer_routes
from tinsmith_server.runs.json_forward import JsonForwardBackward
from tinsmith_server.traces.routes import TraceExport

JSON, BINARY, PROTOBUF = "application/json", "application/octet-stream", "application/x-protobuf"
_EVENTS = "text/event-stream"
_REF = "#/components/schemas/{name}"
_REFUSALS = {
    "400": "The request can never work; `detail` names the field.",
    "401": "No key, a wrong one, or a revoked one.",
    "403": "This key's scopes do not cover the route.",
    "404": "There is nothing under that name, or it is someone else's.",
    "422": "The body or a parameter does not parse; `detail` names the field.",
    "429": "A limit, which passes; Retry-After says when.",
    "503": "A part of the service is down; the same request may work later.",
}


class Problem(msgspec.Struct, kw_only=True, frozen=True):
    detail: str


@dataclass(frozen=True, kw_only=True)
class Route:
    """None for a body: none is read. `answer` None: any JSON object."""

    body: Any = None
    answer: Any = None
    kind: str = JSON
    more: Sequence[tuple[str, str]] = ()
    """Further statuses, each with what it means."""
    also_protobuf: bool = False
    streams: bool = False


_CHECKPOINT = "/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}"
_LINK = Route(kind=BINARY)
ROUTES: dict[tuple[str, str], Route] = {
    ("post", "/api/v1/client/config"): Route(),
    ("post", "/api/v1/client/dynamic_config"): Route(),
    ("post", "/api/v1/telemetry"): Route(),
    ("get", "/api/v1/healthz"): Route(),
    ("get", "/healthz"): Route(),
    ("post", "/api/v1/auth/token"): Route(answer=account_bodies.TokenIssued),
    ("get", "/api/v1/auth/apikey/me"): Route(answer=account_bodies.KeyInfo),
    ("delete", "/api/v1/auth/apikey/me"): Route(),
    ("get", "/api/v1/audit"): Route(answer=report_bodies.AuditLog),
    ("get", "/api/v1/billing/usage/events"): Route(answer=report_bodies.UsageReport),
    ("get", "/api/v1/billing/usage/checkpoints/current"): Route(answer=report_bodies.StorageReport),
    ("post", "/api/v1/create_session"): Route(
        body=bodies.CreateSession, answer=bodies.SessionCreated
    ),
    ("post", "/api/v1/session_heartbeat"): Route(
        body=bodies.SessionRef, more=(("410", "The session is finished."),)
    ),
    ("post", "/api/v1/sessions/{session_id}/finish"): Route(body=bodies.FinishSession),
    ("get", "/api/v1/sessions"): Route(answer=session_bodies.Sessions),
    ("get", "/api/v1/sessions/{session_id}"): Route(answer=session_bodies.SessionInfo),
    ("put", "/api/v1/sessions/{session_id}/project"): Route(body=session_bodies.AssignProject),
    ("post", "/api/v1/sessions/search"): Route(
        body=session_bodies.SearchSessions, answer=session_bodies.FoundSessions
    ),
    ("get", "/api/v1/get_server_capabilities"): Route(answer=bodies.Capabilities),
    ("get", "/api/v1/tokenizers"): Route(),
    ("get", "/api/v1/tokenizers/{digest}/{name}"): _LINK,
    ("post", "/api/v1/create_model"): Route(body=bodies.CreateModel, answer=bodies.Submitted),
    ("post", "/api/v1/load_weights"): Route(body=bodies.LoadWeights, answer=bodies.Submitted),
    ("post", "/api/v1/get_info"): Route(body=bodies.RunRef, answer=bodies.RunInfo),
    ("post", "/api/v1/forward"): Route(
        body=JsonForwardBackward, answer=bodies.Submitted, also_protobuf=True
    ),
    ("post", "/api/v1/forward_backward"): Route(
        body=JsonForwardBackward, answer=bodies.Submitted, also_protobuf=True
    ),
    ("post", "/api/v1/optim_step"): Route(body=bodies.OptimStep, answer=bodies.Submitted),
    ("get", "/api/v1/training_runs"): Route(answer=bodies.TrainingRuns),
    ("get", "/api/v1/training_runs/{run_id}"): Route(answer=bodies.TrainingRun),
    ("post", "/api/v1/create_custom_loss"): Route(
        body=loss_graph.CreateCustomLoss, answer=bodies.Submitted
    ),
    ("post", "/api/v1/create_sampling_session"): Route(
        body=bodies.CreateSamplingSession, answer=bodies.SamplingSessionCreated
    ),
    ("get", "/api/v1/samplers/{sampler_id}"): Route(answer=bodies.Sampler),
    ("post", "/api/v1/asample"): Route(body=bodies.Sample, answer=bodies.Submitted),
    ("post", "/api/v1/cancel_future"): Route(body=bodies.FutureRef),
    ("post", "/api/v1/join_sampling_session"): Route(
        body=bodies.JoinSamplingSession, answer=bodies.SamplingSessionJoined
    ),
    ("post", "/api/v1/save_weights"): Route(body=bodies.SaveWeights, answer=bodies.Submitted),
    ("post", "/api/v1/save_weights_for_sampler"): Route(
        body=bodies.SaveWeightsForSampler, answer=bodies.Submitted
    ),
    ("post", "/api/v1/save_weights_external"): Route(
        body=bodies.SaveWeightsExternal, answer=bodies.Submitted
    ),
    ("post", "/api/v1/copy_weights"): Route(
        body=download_bodies.CopyWeights, answer=download_bodies.WeightsCopied
    ),
    ("post", "/api/v1/imports"): Route(answer=job_bodies.BackgroundJob),
    ("get", f"{_CHECKPOINT}/external_weights_urls"): Route(answer=download_bodies.FileUrls),
    ("get", f"{_CHECKPOINT}/files"): Route(answer=download_bodies.FileUrls),
    ("get", f"{_CHECKPOINT}/archive"): Route(
        more=(("302", "The link stands in Location and in the body."),)
    ),
    ("get", "/api/v1/signed/checkpoints/{checkpoint_id}/files/{name}"): _LINK,
    ("get", "/api/v1/signed/checkpoints/{checkpoint_id}/archive.tar"): _LINK,
    ("post", "/api/v1/exports"): Route(
        body=download_bodies.Export, answer=job_bodies.BackgroundJob
    ),
    ("get", "/api/v1/jobs/{job_id}/files"): Route(answer=download_bodies.FileUrls),
    ("get", "/api/v1/signed/jobs/{job_id}/files/{name}"): _LINK,
    ("get", "/api/v1/jobs/{job_id}"): Route(answer=job_bodies.BackgroundJob),
    ("get", "/api/v1/sessions/{session_id}/trace_export"): Route(answer=TraceExport),
    ("get", "/api/v1/signed/sessions/{session_id}/trace.pftrace"): _LINK,
    ("get", "/api/v1/extensions"): Route(answer=extensions.Extensions),
    ("post", "/api/v1/weights_info"): Route(body=bodies.PathRef, answer=bodies.WeightsInfo),
    ("get", "/api/v1/training_runs/{run_id}/checkpoints"): Route(answer=bodies.Checkpoints),
    ("get", "/api/v1/checkpoints"): Route(answer=bodies.Checkpoints),
    ("delete", _CHECKPOINT): Route(),
    ("post", f"{_CHECKPOINT}/publish"): Route(),
    ("delete", f"{_CHECKPOINT}/publish"): Route(),
    ("put", f"{_CHECKPOINT}/ttl"): Route(body=bodies.TimeToLive),
    ("post", "/api/v1/retrieve_future"): Route(
        body=bodies.FutureRef,
        also_protobuf=True,
        more=(
            ("408", "It is pending, and why; ask again."),
            ("410", "It is unknown, or its result has expired."),
        ),
    ),
    ("post", "/api/v1/retrieve_futures"): Route(
        body=bodies.RetrieveFutures, answer=bodies.Completions
    ),
}
OPENAI_ROUTES: dict[tuple[str, str], Route] = {
    ("get", "/v1/models"): Route(answer=openai_answers.ModelList),
    ("get", "/v1/models/{name}"): Route(answer=openai_answers.ModelEntry),
    ("post", "/v1/completions"): Route(
        body=openai_bodies.CompletionRequest, answer=openai_answers.Completion, streams=True
    ),
    ("post", "/v1/chat/completions"): Route(
        body=openai_bodies.ChatRequest, answer=openai_answers.Chat, streams=True
    ),
    ("get", "/tokenizer_info"): Route(),
    ("post", "/tokenize"): Route(body=tokenizer_routes.Tokenize),
    ("post", "/detokenize"): Route(body=tokenizer_routes.Detokenize),
}
"""At each of the endpoint's addresses."""
_FILE = {"type": "string", "format": "binary"}
_IMPORT_FORM = {
    "type": "object",
    "required": ["base_model", "adapter_config", "adapter_model"],
    "properties": {
        "base_model": {"type": "string"},
        "name": {"type": "string"},
        "project_id": {"type": "string"},
        "adapter_config": _FILE,
        "adapter_model": _FILE,
        "optimizer": _FILE,
        "tinsmith": _FILE,
    },
}


def route_of(method: str, path: str) -> Route | None:
    """By its entry in the table; OpenAI's below any address."""
    if (method, path) in ROUTES:
        return ROUTES[method, path]
    found = [
        one for (verb, end), one in OPENAI_ROUTES.items() if verb == method and path.endswith(end)
    ]
    return found[0] if found else None


def document(app: FastAPI) -> dict[str, Any]:
    """Made once: routes do not change."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version="1", routes=app.routes)
        schemas = _schemas()
        made.setdefault("components", {})["schemas"] = schemas[1]
        made["components"]["securitySchemes"] = {
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        }
        for path, methods in made["paths"].items():
            for method, operation in methods.items():
                problem = schemas[0][Problem] if path.startswith("/api/") else {"type": "object"}
                _fill(operation, route_of(method, path) or Route(), schemas[0], problem)
                if path.endswith("/imports"):
                    operation["requestBody"] = _content({"multipart/form-data": _IMPORT_FORM})
        app.openapi_schema = made
    return app.openapi_schema


def _types() -> list[Any]:
    every = [*ROUTES.values(), *OPENAI_ROUTES.values()]
    found = [one for route in every for one in (route.body, route.answer) if one is not None]
    return list(dict.fromkeys([*found, bodies.Pending, Problem]))


def _schemas() -> tuple[dict[Any, Any], dict[str, Any]]:
    """A reference for each type, and what they refer to."""
    types = _types()
    references, components = msgspec.json.schema_components(types, ref_template=_REF)
    return dict(zip(types, references, strict=True)), components


def _fill(
    operation: dict[str, Any], route: Route, schemas: dict[Any, Any], problem: dict[str, Any]
) -> None:
    anything = {"type": "object"}
    if route.body is not None:
        kinds = {JSON: schemas[route.body]}
        kinds |= {PROTOBUF: {}} if route.also_protobuf and route.body is JsonForwardBackward else {}
        operation["requestBody"] = _content(kinds)
    kinds = {route.kind: {} if route.kind == BINARY else schemas.get(route.answer, anything)}
    kinds |= {PROTOBUF: {}} if route.also_protobuf and route.body is bodies.FutureRef else {}
    kinds |= {_EVENTS: {}} if route.streams else {}
    responses: dict[str, Any] = {"200": {"description": "Done.", **_answer(kinds)}}
    for status, meaning in _REFUSALS.items():
        responses[status] = {"description": meaning, **_answer({JSON: problem})}
    for status, meaning in route.more:
        schema = schemas[bodies.Pending] if status == "408" else anything
        responses[status] = {"description": meaning, **_answer({JSON: schema})}
    operation["responses"] = responses
    operation["security"] = [{"key": []}, {"bearer": []}]


def _content(kinds: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, **_answer(kinds)}


def _answer(kinds: dict[str, Any]) -> dict[str, Any]:
    return {"content": {kind: {"schema": schema} for kind, schema in kinds.items()}}
