"""What a key may be used for, and what each route of the API asks for.

A route that is not listed is for keys without any restriction, so a new one is never open by mistake.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache

from starlette.routing import compile_path
from tinsmith.protocol.errors import BadRequest, Forbidden


class Scope(StrEnum):
    READ = "read"
    """Look at sessions, runs, checkpoints and models; download weights."""
    TRAIN = "train"
    """Sessions, runs, ops, saves and loads."""
    SAMPLE = "sample"
    """Samplers, samples, the OpenAI-compatible endpoint."""
    MANAGE = "manage"
    """Delete, publish, copy and expire checkpoints; move sessions between projects."""
    ADMIN = "admin"
    """The audit log, usage and what is stored."""


ALL = frozenset(Scope)
_ANY: frozenset[Scope] = ALL
_READ = frozenset({Scope.READ, Scope.TRAIN, Scope.SAMPLE, Scope.MANAGE})
_WORK = frozenset({Scope.TRAIN, Scope.SAMPLE})
_TRAIN, _SAMPLE = frozenset({Scope.TRAIN}), frozenset({Scope.SAMPLE})
_MANAGE, _ADMIN = frozenset({Scope.MANAGE}), frozenset({Scope.ADMIN})
_CHECKPOINT = "/training_runs/{run_id}/checkpoints/{kind}/{name}"
API_ROUTES: dict[str, frozenset[Scope]] = {
    "POST /client/config": _ANY,
    "POST /client/dynamic_config": _ANY,
    "POST /auth/token": _ANY,
    "GET /auth/apikey/me": _ANY,
    "DELETE /auth/apikey/me": _ANY,
    "GET /extensions": _ANY,
    "GET /audit": _ADMIN,
    "GET /billing/usage/events": _ADMIN,
    "GET /billing/usage/checkpoints/current": _ADMIN,
    "POST /create_session": _WORK,
    "POST /session_heartbeat": _WORK,
    "POST /sessions/{session_id}/finish": _WORK,
    "POST /retrieve_future": _WORK | _MANAGE,
    "POST /retrieve_futures": _SAMPLE,
    "POST /cancel_future": _WORK,
    "GET /sessions": _READ,
    "GET /sessions/{session_id}": _READ,
    "POST /sessions/search": _READ,
    "GET /sessions/{session_id}/trace_export": _READ,
    "PUT /sessions/{session_id}/project": _MANAGE,
    "GET /get_server_capabilities": _READ,
    "GET /tokenizers": _READ,
    "GET /tokenizers/{digest}/{name}": _READ,
    "GET /training_runs": _READ,
    "GET /training_runs/{run_id}": _READ,
    "POST /get_info": _READ,
    "GET /samplers/{sampler_id}": _READ,
    "GET /checkpoints": _READ,
    "POST /weights_info": _READ,
    "GET /training_runs/{run_id}/checkpoints": _READ,
    f"GET {_CHECKPOINT}/external_weights_urls": _READ,
    f"GET {_CHECKPOINT}/archive": _READ,
    "GET /jobs/{job_id}": _READ,
    "GET /jobs/{job_id}/files": _READ,
    f"GET {_CHECKPOINT}/files": _READ,
    "POST /exports": _TRAIN | _MANAGE,
    "POST /imports": _TRAIN | _MANAGE,
    "POST /create_model": _TRAIN,
    "POST /load_weights": _TRAIN,
    "POST /forward": _TRAIN,
    "POST /forward_backward": _TRAIN,
    "POST /optim_step": _TRAIN,
    "POST /create_custom_loss": _TRAIN,
    "POST /save_weights": _TRAIN,
    "POST /save_weights_for_sampler": _TRAIN,
    "POST /save_weights_external": _TRAIN | _MANAGE,
    "POST /create_sampling_session": _SAMPLE,
    "POST /join_sampling_session": _SAMPLE,
    "POST /asample": _SAMPLE,
    "POST /copy_weights": _MANAGE,
    f"DELETE {_CHECKPOINT}": _MANAGE,
    f"POST {_CHECKPOINT}/publish": _MANAGE,
    f"DELETE {_CHECKPOINT}/publish": _MANAGE,
    f"PUT {_CHECKPOINT}/ttl": _MANAGE,
}
"""Any one of the scopes is enough. Paths below /api/v1."""
OPENAI_ROUTES: dict[str, frozenset[Scope]] = {
    "GET /v1/models": _READ,
    "GET /v1/models/{name:path}": _READ,
    "GET /tokenizer_info": _READ,
    "POST /v1/completions": _SAMPLE,
    "POST /v1/chat/completions": _SAMPLE,
    "POST /tokenize": _READ,
    "POST /detokenize": _READ,
}
"""The same for the ends of the paths of the OpenAI-compatible endpoint."""
_API = "/api/v1"


def parse_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """`all`, or some of them by name."""
    given = {name.strip() for name in names} - {""}
    if given == {"all"}:
        return ALL
    known = {scope.value for scope in Scope}
    if not given or given - known:
        raise BadRequest(f"scopes: give all, or some of {', '.join(sorted(known))}.")
    return frozenset(Scope(name) for name in given)


def spelled(scopes: frozenset[Scope]) -> str:
    return "all" if scopes == ALL else ",".join(sorted(scopes))


def check_scope(scopes: frozenset[Scope], method: str, path: str) -> None:
    """Raises Forbidden. Costs nothing for a key without restriction."""
    if scopes == ALL:
        return
    wanted = wanted_by(method, path)
    if wanted is None or not scopes & wanted:
        names = " or ".join(sorted(wanted)) if wanted and wanted != ALL else "all"
        raise Forbidden(f"This needs a key with the scope {names}; yours has {spelled(scopes)}.")


@lru_cache(maxsize=4096)
def wanted_by(method: str, path: str) -> frozenset[Scope] | None:
    """The scopes of which one is enough, or None for a route that is not listed."""
    if path.startswith(f"{_API}/"):
        line = f"{method} {path.removeprefix(_API)}"
        patterns = _COMPILED_API
    else:
        line, patterns = f"{method} {path}", _COMPILED_OPENAI
    for pattern, scopes in patterns:
        if pattern.match(line):
            return scopes
    return None


def _compiled(
    routes: dict[str, frozenset[Scope]], before: str
) -> list[tuple[re.Pattern[str], frozenset[Scope]]]:
    found = []
    for route, scopes in routes.items():
        method, path = route.split(" ", 1)
        pattern = compile_path(path)[0].pattern.removeprefix("^")
        found.append((re.compile(f"{method} {before}{pattern}"), scopes))
    return found


_COMPILED_API = _compiled(API_ROUTES, "")
_COMPILED_OPENAI = _compiled(OPENAI_ROUTES, "(?:/.*)?")
